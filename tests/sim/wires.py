"""The virtual network: connections as TCP makes them, between any two processes.

Rules. Knows cuts, delays and frames; nothing of what frames mean, but which of them
wire.CATALOGUE says may be doubled or come late. An *end* of a wire is any process:

    host                     its machine; its name is what cuts go by
    is_alive()               whether it is still there
    take(call, *args)        do this now or, if it is paused, when it runs again
    on_frame(wire, kind, fields), on_end(wire, why)
    forget(wire)             it is closed at this end

How it works. Frames arrive in order, each after its delay and after all before it, or
not at all: loss costs time (it is sent again), a cut direction stalls, until it is
mended or an end gives up. A reset loses what was under way. Nothing in the product
gives the core a frame twice or on another link (D14); that the core bears what the
catalogue says is shown by doing just that in some seeds: `echo` doubles what may be
doubled (D), at once or, if it may come in another order (R), later; `late` gives what a
reset has lost to the next wire of the same two, if that is allowed. Its number is taken
off then: numbers belong to a link, and no product's link would answer it.
"""

import json
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Tuple

from wire import CATALOGUE

if TYPE_CHECKING:
    from world import World

RESEND_S = 0.2  # a lost segment is sent again after this, then twice this, ...
RESENDS_MAX = 4
NO_NUMBER = 0  # frames are numbered from 1
MAY: Dict[str, str] = {kind.name: row.may for kind, row in CATALOGUE.items()}


class Item(NamedTuple):
    """A frame under way, or the end of the stream (kind '')."""

    kind: str
    text: str


class Network:
    """What is wrong with the network now, and what it still owes."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.cuts: Dict[Tuple[str, str], None] = {}  # (from, to): nothing arrives
        self.slow: Dict[Tuple[str, str], Tuple[float, float]] = {}
        self.delay = (0.001, 0.01)
        self.loss = self.echo = self.late = 0.0  # how often
        self.owed: Dict[Any, List[Item]] = {}  # (from, to) as ends -> late frames
        self.frames = 0

    def heal(self) -> None:
        """Be as good as a network can be."""
        self.delay = (0.001, 0.01)
        self.loss = self.echo = self.late = 0.0
        self.slow.clear()
        self.owed.clear()

    def latency(self, a: str = "", b: str = "") -> float:
        """Draw how long a frame takes from a to b."""
        rng = self.world.rng
        seconds, wait = rng.uniform(*self.slow.get((a, b), self.delay)), RESEND_S
        for _ in range(RESENDS_MAX):
            if not self.loss or rng.random() >= self.loss:
                break
            seconds, wait = seconds + wait, wait * 2
        return seconds

    def is_cut(self, a: str, b: str) -> bool:
        """Say whether a direction between two is cut: no handshake passes then."""
        return (a, b) in self.cuts or (b, a) in self.cuts


class Wire:
    """A connection."""

    def __init__(self, network: Network, dialler: Any, other: Any) -> None:
        self.network = network
        self.world = network.world
        self.ends = (dialler, other)
        self.queues: Tuple[List[Item], List[Item]] = ([], [])  # towards ends[i]
        self.last = [0.0, 0.0]
        self.is_up = [False, False]  # authenticated
        self.is_closed = [False, False]
        self.is_stalled = [False, False]

    def side(self, end: Any) -> int:
        """Say which end it is."""
        return 0 if self.ends[0] is end else 1

    def other(self, end: Any) -> Any:
        """Give the other end."""
        return self.ends[1 - self.side(end)]

    # --- sending ------------------------------------------------------------------

    def send(self, sender: Any, kind: str, fields: Dict[str, Any]) -> None:
        """Put a frame under way."""
        network, rng = self.network, self.world.rng
        network.frames += 1
        to, item = 1 - self.side(sender), Item(kind, json.dumps(fields))
        self._put(to, item)
        if network.echo and "D" in MAY[kind] and rng.random() < network.echo:
            if "R" in MAY[kind]:
                self.world.after(rng.uniform(0, 1), self._put, to, item)
            else:
                self._put(to, item)

    def _put(self, to: int, item: Item) -> None:
        if self.is_closed[to] or self.is_closed[1 - to] and item.kind:
            return
        names = self.ends[1 - to].host.name, self.ends[to].host.name
        at = self.world.t + self.network.latency(*names)
        self.last[to] = max(self.last[to], at)
        self.queues[to].append(item)
        self.world.at(self.last[to], self.arrive, to)

    # --- arriving -----------------------------------------------------------------

    def arrive(self, to: int) -> None:
        """Hand over what has arrived, if the direction isn't cut."""
        queue, receiver = self.queues[to], self.ends[to]
        if not queue:
            return
        names = self.ends[1 - to].host.name, receiver.host.name
        if names in self.network.cuts or not self.is_up[to]:
            self.is_stalled[to] = True  # cut, or not authenticated yet
            return
        count = len(queue) if self.is_stalled[to] else 1
        self.is_stalled[to] = False
        items, queue[:count] = queue[:count], []
        for item in items:
            if not receiver.is_alive() or self.is_closed[to]:
                return
            receiver.take(self._deliver, to, item)

    def _deliver(self, to: int, item: Item) -> None:
        receiver = self.ends[to]
        if self.is_closed[to]:
            return
        if item.kind:
            receiver.on_frame(self, item.kind, json.loads(item.text))
        else:
            self.close(receiver, tell=False)
            receiver.on_end(self, item.text)

    def open(self, end: Any) -> None:
        """Let an end have what came before it was authenticated, and what is late."""
        to = self.side(end)
        self.is_up[to] = True
        if self.is_stalled[to]:
            self.world.after(0, self.arrive, to)
        for item in self.network.owed.pop((self.other(end), end), ()):
            delay = self.world.rng.uniform(0, 1)
            self.world.after(delay, end.take, self._deliver, to, item)

    # --- ending -------------------------------------------------------------------

    def close(self, end: Any, tell: bool = True) -> None:
        """Close one end; the other reads the end of the stream, in order."""
        side = self.side(end)
        if self.is_closed[side]:
            return
        self.is_closed[side] = True
        end.forget(self)
        if tell and not self.is_closed[1 - side]:
            self._put(1 - side, Item("", "eof"))

    def reset(self) -> None:
        """Break it: what was under way is lost, or late; both ends are told."""
        whys = [self.world.rng.choice(["eof", "broken"]) for _ in self.ends]
        for to, end in enumerate(self.ends):
            self.lose(to)
            if not self.is_closed[to]:
                self.close(end, tell=False)
                end.take(end.on_end, self, whys[to])

    def lose(self, to: int) -> None:
        """Lose what is under way to an end; some of it comes with the next wire."""
        queue = self.queues[to]
        for item in queue:
            may = MAY[item.kind] if item.kind else ""
            if self.network.late and "R" in may:
                if self.world.rng.random() < self.network.late:
                    pair = self.ends[1 - to], self.ends[to]
                    self.network.owed.setdefault(pair, []).append(_unnumbered(item))
        queue.clear()


def _unnumbered(item: Item) -> Item:
    fields = json.loads(item.text)
    if item.kind == "RECORDS":
        fields["n"] = NO_NUMBER
    return Item(item.kind, json.dumps(fields))
