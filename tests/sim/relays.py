"""The relay of a comrade and main's side of it: what relay.py and relaying.py do.

Rules. Does what they do to frames and links, in their order, and no more. A relay is a
process of its own: it goes on while its comrade is paused, dies alone or with it, and
stands still only with the whole machine.

    ghost --- wire (wires.py) --- Relay --- in order, after a moment --- Desk, Comrade

How it works. A wire of a ghost ends at the relay, whose host is the comrade's: cuts and
delays are those of the two machines. What was under way between relay and main when one
of them ends is not heard.
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Tuple

from wires import Wire

import effects as core
from net import DEAD_S
from relay import FRESH_S, WAIT_S
from relaying import IDLE_S

if TYPE_CHECKING:
    from comrades import Comrade

START_S = (0.1, 0.4)  # until a relay has started and reached its main
EXCHANGE_S = (0.0005, 0.003)  # from relay to main, or back
NEAR_S = 1e-6  # `World.at` rounds up to a tick, as well as floats can


class Relay:
    """One life of a relay: an end of the wires of its ghosts."""

    def __init__(self, desk: "Desk") -> None:
        self.desk = desk
        self.comrade = desk.comrade
        self.host = self.comrade.host
        self.world = desk.world
        self.wires: Dict[str, Wire] = {}  # by the link's name
        self.heard: Dict[str, float] = {}
        self.is_paused = True  # it is just starting
        self.inbox: List[Tuple[Callable[..., None], Any]] = []
        self._there = self._back = 0.0  # when the last thing said arrives
        self.world.after(self.world.rng.uniform(*START_S), self._begin)

    @property
    def files(self) -> Any:
        """Give what the comrade's store has: a ghost gets it from here."""
        return self.host.files

    def is_alive(self) -> bool:
        """Say whether it is still there."""
        return self.desk.relay is self and self.comrade.is_alive()

    def take(self, call: Callable[..., None], *args: Any) -> None:
        """Let something happen to this process, or wait until it has started."""
        if self.is_alive():
            if self.is_paused:
                self.inbox.append((call, args))
            else:
                call(*args)

    def _begin(self) -> None:
        self.is_paused = False
        inbox, self.inbox = self.inbox, []
        for call, args in inbox:
            self.take(call, *args)

    # --- ghosts -------------------------------------------------------------------

    def adopt(self, peer: str, wire: Wire) -> None:
        """Own a ghost's link from now on."""
        self.wires[peer] = wire
        self.heard[peer] = self.world.t
        wire.open(self)
        self.world.after(DEAD_S, self._look, peer)

    def _look(self, peer: str) -> None:
        if not self.is_alive() or peer not in self.wires:
            return
        if self.host.is_asleep:  # all stands still; so it accuses nobody
            self.heard[peer] = self.world.t
        due = self.heard[peer] + DEAD_S
        if self.world.t >= due - NEAR_S:
            self._lose(peer, "silent")
        else:
            self.world.at(due, self._look, peer)

    def _name(self, wire: Wire) -> str:
        return next((peer for peer, one in self.wires.items() if one is wire), "")

    def on_frame(self, wire: Wire, kind: str, fields: Dict[str, Any]) -> None:
        """Answer it here, or let main have it."""
        peer, ghost = self._name(wire), wire.other(self)
        self.heard[peer] = self.world.t
        self.world.ledger.attachments.on_heard(self.comrade, ghost)
        if kind == "HEARTBEAT":
            if self._is_fresh():
                wire.send(self, kind, fields)
        elif kind == "OUTPUT":
            self._tell(self.desk.on_output, fields["digest"])
        elif kind == "BYE":
            self._lose(peer, "stopping" if fields["why"] == "stopping" else "closing")
        else:
            self._tell(self.desk.on_frame, peer, kind, fields)

    def _is_fresh(self) -> bool:
        main = self.comrade
        if not main.is_paused:
            return True
        answered_at = main.paused_at - self.world.rng.uniform(0, WAIT_S)
        return self.world.t - answered_at < FRESH_S

    def on_end(self, wire: Wire, why: str) -> None:
        """A ghost's link has ended, and not by our will."""
        peer = self._name(wire)
        if peer:
            self._lose(peer, why)

    def _lose(self, peer: str, why: str) -> None:
        wire = self.wires.pop(peer)
        if not wire.is_closed[wire.side(self)]:
            wire.close(self)
        self._tell(self.desk.on_lost, peer, why)

    def forget(self, wire: Wire) -> None:
        """It is closed at this end; `_lose` says so to main."""

    # --- main ---------------------------------------------------------------------

    def _tell(self, call: Callable[..., None], *args: Any) -> None:
        delay = self.world.rng.uniform(*EXCHANGE_S)
        self._there = max(self._there, self.world.t + delay)
        self.world.at(self._there, self.comrade.take, self.desk.hear, self, call, args)

    def tell(self, call: Callable[..., None], *args: Any) -> None:
        """Hear from main, in order."""
        delay = self.world.rng.uniform(*EXCHANGE_S)
        self._back = max(self._back, self.world.t + delay)
        self.world.at(self._back, self.take, call, *args)

    def send(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        """Send a frame to a ghost; a BYE ends the link."""
        wire = self.wires.get(peer)
        if wire is not None:
            wire.send(self, kind, fields)
            if kind == "BYE":
                self._lose(peer, "closing")

    def end(self, is_reset: bool, is_told: bool) -> None:
        """End: the ghosts read EOF or a reset; of a machine that is off, nothing."""
        for wire in list(self.wires.values()):
            to = 1 - wire.side(self)
            if is_reset or not is_told:
                wire.lose(to)
            wire.close(self, tell=is_told)
        self.wires.clear()


class Desk:
    """A comrade's side of its relay, while there are ghosts."""

    def __init__(self, comrade: "Comrade") -> None:
        self.comrade = comrade
        self.world = comrade.world
        self.relay: Any = None
        self.links: Dict[str, Any] = {}  # links of ghosts, by name -> the ghost
        self.outputs: Dict[str, None] = {}  # small outputs that ghosts pushed
        self._count = 0

    def __contains__(self, peer: str) -> bool:
        """Say whether a link is one of a ghost's."""
        return peer in self.links

    # --- what comrade.py calls ----------------------------------------------------

    def hand(self, ghost: Any) -> Wire:
        """Take a ghost that has just proved itself."""
        if self.relay is None:
            self.relay = Relay(self)
            self.world.log("%s starts a relay" % self.comrade.host.name)
            self._offer(self.comrade.host.relay_cores)
        self._count += 1
        peer = "g%d" % self._count
        wire = Wire(self.world.network, ghost, self.relay)
        self.links[peer] = ghost
        self.relay.adopt(peer, wire)
        self.comrade.step(core.GhostUp(peer, ghost.writer))
        return wire

    def send(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        """Send a frame to a ghost."""
        if self.relay is None:  # it has just ended; the core will hear of that
            return
        self.world.ledger.attachments.on_told(self.comrade, peer, kind, fields)
        self.relay.tell(self.relay.send, peer, kind, fields)

    def close(self, peer: str) -> None:
        """End a ghost's link; the core knows it already."""
        del self.links[peer]
        if self.relay is not None:
            self.relay.tell(self.relay.send, peer, "BYE", {"why": "closing"})
            self._look_idle()

    def end(self, is_reset: bool, is_told: bool = True) -> None:
        """The relay ends, alone or with this process."""
        if self.relay is None:
            return
        relay, self.relay = self.relay, None
        relay.end(is_reset, is_told)
        if self.comrade.is_alive():
            delay = self.world.rng.uniform(*EXCHANGE_S)
            links = list(self.links)
            self.world.after(delay, self.comrade.take, self._on_relay_lost, links)

    def _on_relay_lost(self, links: List[str]) -> None:
        for peer in links:
            if peer in self.links:
                del self.links[peer]
                self.comrade.step(core.LinkLost(peer, "relay"))
        if self.relay is None:
            self._offer(0)

    def _offer(self, set_aside: int) -> None:
        host = self.comrade.host
        if host.relay_cores:
            self.comrade.step(core.Cores(host.cores - set_aside))

    def _look_idle(self) -> None:
        if self.relay is not None and not self.links:
            self.world.after(IDLE_S, self._on_idle, self.relay, self._count)

    def _on_idle(self, relay: Relay, count: int) -> None:
        if self.relay is relay and self._count == count and not self.links:
            self.end(is_reset=False)

    # --- what the relay says ------------------------------------------------------

    def hear(self, relay: Relay, call: Callable[..., None], args: Any) -> None:
        """Take something, unless it is of a relay that has ended."""
        if self.relay is relay:
            call(*args)

    def on_output(self, digest: str) -> None:
        """Keep a small output."""
        self.outputs[digest] = None

    def on_frame(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        """Give the core what a ghost sent."""
        if peer in self.links:
            attachments = self.world.ledger.attachments
            attachments.on_said(self.comrade, peer, kind, fields)
            self.comrade.step(core.Frame(peer, kind, fields))

    def on_lost(self, peer: str, why: str) -> None:
        """Tell the core that a ghost's link has ended."""
        if peer in self.links:
            del self.links[peer]
            self.comrade.step(core.LinkLost(peer, why))
            self._look_idle()
