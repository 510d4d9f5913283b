"""Peers that break the protocol again and again: kept away for a growing time.

Reason for this file beside mesh.py and peers.py: they are about nodes that are gone, or
slow; here one is there, has the cookie, and is mad: a bug, memory that fails.

Rules. Pure (D6). Knows node ids alone. What counts is what no network can do: frames
that are damaged on the way end a link before anything here hears of them.

    a fault    an authentic frame that isn't what the catalogue says
    five       in the component for STUBBORN_S without following who coordinates; or
               followed by all of it for IDLE_S and granting nothing, while it has a
               task that a worker with nothing to do could run (coordinator.py)
    FREE_FAULTS are free; each further one within FORGET_S of the last doubles the time
    for which the node is kept away, from AWAY_FIRST_S to AWAY_MOST_S

Its links are closed meanwhile as soon as they are up: to the others it is as if it were
cut off, so they grant without it (D3). Each node decides for itself.

A link that ends before its first part is in has held up granting (mesh.py), and costs
nothing else. After UNSETTLED_FREE such links in a row a node's next ones hold up
nothing until one is settled: then it may happen that a task runs twice (D4).

Invariant. Whatever a peer does, what is remembered is bounded by NODES_MAX.

Not done: one that lies with skill. Who says that it runs tasks, or keeps copies, and
doesn't, can't be told from one that does and is slow.
"""

from typing import Dict, List, Tuple

FREE_FAULTS = 3  # a node that was restarted amid them isn't punished for what was
FORGET_S = 600.0
AWAY_FIRST_S, AWAY_MOST_S = 5.0, 600.0
STUBBORN_FAULTS = 5  # they held up granting for long enough
STUBBORN_S = 60.0  # gossip takes a moment; on a slow line, behind a long queue, some s
IDLE_S = 60.0  # likewise; new links, which stop granting, come one after the other
UNSETTLED_FREE = 3  # it was killed amid joining, or the line broke
NODES_MAX = 200  # as many as mesh.py knows


class Fault:
    """What is remembered of a node."""

    __slots__ = (
        *("at", "away_until", "count", "granted", "idle", "since", "unsettled"),
    )

    def __init__(self) -> None:
        self.count = 0
        self.at = 0.0  # the last fault
        self.away_until = 0.0
        self.since = 0.0  # it hasn't followed who coordinates; 0: it does
        self.idle = 0.0  # it has granted nothing, though it should; 0: it does
        self.granted = 0  # grants known then
        self.unsettled = 0  # links in a row


class Blame:
    """What one comrade holds against others."""

    def __init__(self) -> None:
        self._known: Dict[str, Fault] = {}

    def _of(self, node_id: str) -> Fault:
        fault = self._known.pop(node_id, None) or Fault()
        self._known[node_id] = fault
        if len(self._known) > NODES_MAX:
            del self._known[next(iter(self._known))]
        return fault

    def note(self, node_id: str, now: float, faults: int = 1) -> float:
        """Note faults; give for how long the node is kept away, 0: not yet."""
        fault = self._of(node_id)
        fault.count = faults + (fault.count if now < fault.at + FORGET_S else 0)
        fault.at, fault.since, fault.idle = now, 0.0, 0.0
        doubled = fault.count - FREE_FAULTS - 1
        away = min(AWAY_FIRST_S * 2.0 ** min(doubled, 20), AWAY_MOST_S)
        fault.away_until = now + (away if doubled >= 0 else 0.0)
        return fault.away_until - now

    def is_away(self, node_id: str, now: float) -> bool:
        """Say whether a node is kept away."""
        return node_id in self._known and now < self._known[node_id].away_until

    def is_stubborn(self, node_id: str, agrees: bool, now: float) -> bool:
        """Say whether a node hasn't followed who coordinates for too long."""
        if agrees:
            if node_id in self._known:
                self._known[node_id].since = 0.0
            return False
        fault = self._of(node_id)
        fault.since = fault.since or now
        return now >= fault.since + STUBBORN_S

    def is_idle(self, node_id: str, is_overdue: bool, granted: int, now: float) -> bool:
        """Say whether who coordinates hasn't granted for too long; see Coordinator.

        To be asked while it has what is here: that it had it all the time is then sure,
        and what it `granted` meanwhile is counted.
        """
        if not is_overdue:
            if node_id in self._known:
                self._known[node_id].idle = 0.0
            return False
        fault = self._of(node_id)
        if not fault.idle or fault.granted != granted:
            fault.idle, fault.granted = now, granted
        return now >= fault.idle + IDLE_S

    def on_link_lost(self, node_id: str, was_settled: bool) -> None:
        """A link of that node is over."""
        if not was_settled:
            self._of(node_id).unsettled += 1
        elif node_id in self._known:
            self._known[node_id].unsettled = 0
            self._known[node_id].since = self._known[node_id].idle = 0.0

    def may_hold_up(self, node_id: str) -> bool:
        """Say whether granting waits for a node's new link."""
        fault = self._known.get(node_id)
        return fault is None or fault.unsettled < UNSETTLED_FREE

    def away(self, now: float) -> List[Tuple[str, int, float]]:
        """Give who is kept away: node id, faults, seconds left."""
        return [
            (node_id, fault.count, fault.away_until - now)
            for node_id, fault in sorted(self._known.items())
            if now < fault.away_until
        ]
