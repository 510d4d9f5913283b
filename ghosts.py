"""The ghosts of a comrade: what they tell it, and what it tells them.

Reason for this file beside peers.py: a ghost is no member: it has no queue, no vote and
one link. What a clairvoyant does for its ghosts is a concern of its own.

Rules. Pure (D6). Knows links of ghosts by name (`GhostUp.peer`); how their frames come
to this process is the relay's. A ghost's id is its writer: started anew, it is another.

How it works. A ghost that has come to this comrade sends the records it holds, then
ATTACH. From then on it is told of each record with a run of its writer that changes
(a new grant among them), and sends those that it changes itself. Both merge what they
get: the protocol is replication of a part of the queue, nothing more.

What it offers is gossiped (whereabouts.py), and so it is a worker to all.

Invariants.
D2  A grant of this process to a ghost of its own goes out only when another comrade has
    merged it (room.py), and only when the files it needs are here.
D10 STORED tells a ghost what is durable as an add would be: then it may forget.
D12 A ghost whose link ended with EOF, or that said that it stops, is dead. One that is
    away otherwise, or whose clairvoyant is gone, has GONE_SILENT_S to turn up again.
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional

from coordinator import is_own_grant
from deaths import GONE_EOF_S
from effects import CloseLink, GhostUp, Log
from facts import (
    Facts,
    check_ghost,
    check_offer,
    clipped,
    ids,
    next_number,
    number,
    parted,
)
from hands import FILE_S
from record import UNFINISHED, Phase, Record, encode, split_key
from whereabouts import Whereabouts

if TYPE_CHECKING:  # The node makes its Ghosts; only the hint looks back.
    from node import Node

OFF_S = 5.0  # nothing waits for so long: ghosts are no longer asked what they have
FRAME_BYTES = 262144  # of records in one frame to a ghost, about
CHECK_PART_BYTES = 65536  # of conditions in one, about
CHECK_BYTES_MAX = 2 << 20  # of them in all: the relay holds twice as much for a ghost
RUNS_TOLD = 10000  # of a ghost, in one ATTACH


class Attached(NamedTuple):
    """A link of a ghost: whose it is, and the records that it is to be told of."""

    peer: str
    writer: str
    to_tell: Dict[str, None]


class Ghosts:
    """The ghosts of one comrade's view of the cluster."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.queue = node.queue
        self.mesh = node.mesh
        self.links: Dict[str, Attached] = {}  # by the link's name
        self.own: Dict[str, Attached] = {}  # writer -> the link it has attached over
        self.where = Whereabouts(node)
        self.waiting: Dict[str, str] = {}  # grants that may not go out -> tasks
        self._waits_since: Dict[str, float] = {}  # the same, for a file
        self._asked: Dict[str, Any] = {"conditions": [], "on": False}
        self._idle_since: Optional[float] = None
        self._addresses: List[str] = []  # as ghosts were told
        node.room.serve(self.waiting, self.look_at_waiting)

    # --- links of ghosts ----------------------------------------------------------

    def on_up(self, message: GhostUp, now: float) -> None:
        """Begin with a ghost's link; it is served once it attaches."""
        old = self.own.get(message.writer)
        if old is not None:
            self.node.emit(CloseLink(old.peer, "replaced"))
            self.lose(old.peer, "closing", now)
        self.links[message.peer] = Attached(message.peer, message.writer, {})

    def lose(self, peer: str, why: str, now: float) -> None:
        """End with a ghost's link."""
        link = self.links.pop(peer)
        self._hold_nothing_for(link.writer)
        if self.own.get(link.writer) is link:
            del self.own[link.writer]
            is_dead = why in ("eof", "stopping")
            if is_dead:
                at = now if why == "eof" else now - GONE_EOF_S
                self.mesh.deaths.note_ghost(link.writer, at)
            self.where.author(link.writer, now, state="dead" if is_dead else "away")
            self._tag()

    def close(self, peer: str, why: str, now: float) -> None:
        """End a ghost's link from here."""
        self.node.emit(CloseLink(peer, why))
        self.lose(peer, "broken", now)

    def stop(self) -> None:
        """This comrade stops: its ghosts are to look for another."""
        for peer in sorted(self.links):
            self.node.send(peer, "BYE", {"why": "stopping"})

    def _tag(self) -> None:
        """Have the tag `clairvoyant` exactly while there are ghosts."""
        self.node.room.be_clairvoyant(bool(self.own))

    # --- what ghosts send ---------------------------------------------------------

    def on_frame(self, peer: str, kind: str, fields: Facts, now: float) -> None:
        """Take a frame of a ghost; one that is wrong ends its link (D9)."""
        link = self.links[peer]
        try:
            GHOST_FRAMES[kind](self, link, fields, now)
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            self.node.emit(Log("%s of a ghost: %r" % (kind, problem)))
            self.close(peer, "bad frame", now)

    def on_attach(self, link: Attached, fields: Facts, now: float) -> None:
        offer = check_offer(fields["offer"])
        runs = {str(run): str(key) for key, run in fields["runs"][:RUNS_TOLD]}
        former = ids(fields["former"])
        session, term = number(fields["session"]), number(fields["term"])
        if link.writer in self.mesh.writers():
            raise ValueError("a comrade is no ghost")
        self.mesh.learn_term(term)
        for writer in former:  # Its process killed all that they ran (DESIGN 4).
            self.mesh.deaths.note_ghost(writer, now - GONE_EOF_S)
            if writer in self.where.known:
                self.where.author(writer, now, state="replaced")
        self.own[link.writer] = link
        self.where.author(link.writer, now, session=session, state="here", offer=offer)
        for run_key, (writer, key) in self.node.coordinator.living.items():
            if writer == link.writer and run_key not in runs:
                link.to_tell[key] = None
        self._tell_purged(
            link, [k for k in runs.values() if k not in self.queue.records]
        )
        self._tag()
        self._addresses = self._known_addresses()
        self._send_comrades(link, number(fields["n"]))
        self._send_check(link)

    def on_records(self, link: Attached, fields: Facts, now: float) -> None:
        """Merge what a ghost knows; say so, and say it again when it is durable."""
        n = number(fields["n"])
        joined, is_whole = self.queue.join_all(fields["r"])
        self.node.peers.tell_set_aside("a ghost")
        for key, record, is_just_so in joined:
            if record is None:
                self._tell_purged(link, [key])
            elif is_just_so:  # It has it just so: no echo.
                link.to_tell.pop(key, None)
            else:
                link.to_tell[key] = None
        kept = [key for key, record, _ in joined if record is not None]
        self.node.send(link.peer, "GOT", {"n": n})
        if fields["store"]:
            self._store(link, n, kept, is_whole, now)

    def _store(
        self, link: Attached, n: int, keys: List[str], is_whole: bool, now: float
    ) -> None:
        def then(error: str) -> None:
            if self.links.get(link.peer) is link:
                ok = is_whole and not error
                self.node.send(link.peer, "STORED", {"n": n, "ok": ok})

        self.node.durable.vouch(keys, then, now)

    def on_offer(self, link: Attached, fields: Facts, now: float) -> None:
        if self.own.get(link.writer) is link:
            offer = check_offer(fields["offer"])
            self.where.author(link.writer, now, state="here", offer=offer)

    def on_alive_answer(self, link: Attached, fields: Facts, now: float) -> None:
        self.node.peers.answer_alive(
            fields["origin"], fields["run"], fields["yes"], now
        )

    def on_bye(self, link: Attached, fields: Facts, now: float) -> None:
        self.lose(
            link.peer, "stopping" if fields["why"] == "stopping" else "closing", now
        )

    # --- what ghosts are told -----------------------------------------------------

    def note(self, record: Record, gone: bool) -> None:
        """See who must know of a record that changed."""
        for run in record.runs.values():
            link = self.own.get(run.worker)
            if link is not None:
                if gone:
                    link.to_tell.pop(record.key, None)
                    self._tell_purged(link, [record.key])
                else:
                    link.to_tell[record.key] = None

    def look_at_waiting(self) -> None:
        """Try again to send the grants that wait for a copy or a file."""
        for run_key, key in list(self.waiting.items()):
            record = self.queue.records.get(key)
            if record is not None:
                self.note(record, gone=False)
            else:
                self._stop_waiting(run_key)

    def _hold_nothing_for(self, writer: str) -> None:
        for run_key, key in list(self.waiting.items()):
            record = self.queue.records.get(key)
            if record is None or record.runs[run_key].worker == writer:
                self._stop_waiting(run_key)

    def _stop_waiting(self, run_key: str) -> None:
        self.waiting.pop(run_key, None)
        self._waits_since.pop(run_key, None)

    def flush(self, now: float) -> None:
        """Tell each ghost what changed for it."""
        late = [r for r, at in self._waits_since.items() if now >= at + FILE_S]
        if late:
            self.look_at_waiting()
        for link in list(self.own.values()):
            while link.to_tell:
                self._send_records(link, now)
        if self.own and self._addresses != self._known_addresses():
            self._addresses = self._known_addresses()
            for link in self.own.values():
                self._send_comrades(link, 0)

    def _send_records(self, link: Attached, now: float) -> None:
        wires, size = [], 0
        while link.to_tell and size < FRAME_BYTES:
            key = next(iter(link.to_tell))
            del link.to_tell[key]
            record = self.queue.records.get(key)
            if record is None:
                continue
            if self._must_wait(link, record, now):
                continue
            wires.append(encode(record))
            size += 200 + len(record.command) + 200 * len(record.runs)
        if wires:
            fields = {"n": 0, "r": wires, "store": False, "term": self.node.hands.term}
            self.node.send(link.peer, "RECORDS", fields)

    def _must_wait(self, link: Attached, record: Record, now: float) -> bool:
        """Say whether a grant in a record may not go out yet (D2)."""
        room = self.node.room
        for run_key, run in record.runs.items():
            if run.worker != link.writer:
                continue  # another ghost's, that may wait on
            if run.phase is not Phase.GRANTED:
                self._stop_waiting(run_key)
                continue
            is_own = is_own_grant(run_key, self.mesh.writer)
            may_go = not is_own or room.is_copied(record.key, run_key, now)
            if may_go and not room.has_files(record):
                # Then it goes all the same: the ghost hands it back, or gets the file.
                since = self._waits_since.setdefault(run_key, now)
                may_go = now >= since + FILE_S
            if record.state in UNFINISHED and not may_go:
                self.waiting[run_key] = record.key
                return True
            self._stop_waiting(run_key)
        return False

    def _tell_purged(self, link: Attached, keys: List[str]) -> None:
        covered: Dict[str, List[List[int]]] = {}
        for key in keys:
            n, writer = split_key(key)
            covered.setdefault(writer, []).append([n, n])
        if covered:
            self.node.send(link.peer, "PURGED", {"w": covered})

    def _send_comrades(self, link: Attached, n: int) -> None:
        fields = {"name": self.node.me.name, "addresses": self._addresses}
        term = self.node.hands.term
        self.node.send(link.peer, "COMRADES", dict(fields, n=n, term=term))

    def _known_addresses(self) -> List[str]:
        addresses = {str(m.facts["address"]) for m in self.mesh.members.values()}
        return sorted(addresses | {self.node.me.address})

    def check(self, now: float) -> None:
        """Let ghosts look at what they have while some task waits for a worker."""
        if not self.own:
            return
        matcher = self.node.matcher
        is_on = bool(matcher.wanted) or matcher.peek() is not None
        if is_on:
            self._idle_since = None
        elif self._asked["on"]:
            if self._idle_since is None:
                self._idle_since = now
            is_on = now - self._idle_since < OFF_S
        asked = {"conditions": clipped(matcher.wanted, CHECK_BYTES_MAX), "on": is_on}
        if asked != self._asked:
            self._asked = asked
            for link in self.own.values():
                self._send_check(link)

    def _send_check(self, link: Attached) -> None:
        """Ask for the conditions, in parts."""
        parts = parted(self._asked["conditions"], CHECK_PART_BYTES)
        for i, part in enumerate(parts, 1):
            fields = dict(self._asked, conditions=part, more=i < len(parts))
            self.node.send(link.peer, "CHECK", fields)

    def deadline(self) -> Optional[float]:
        """Give the time when something is due here."""
        times = [since + FILE_S for since in self._waits_since.values()]
        if self._idle_since is not None and self._asked["on"]:
            times.append(self._idle_since + OFF_S)
        return min(times, default=None)

    # --- news from other comrades -------------------------------------------------

    def on_ghost(self, source: str, facts: Facts, now: float) -> None:
        """Take facts of a ghost from a peer; pass them on if they are news."""
        check_ghost(facts)
        writer = str(facts["id"])
        if writer in self.mesh.writers() or not self.where.are_news(facts):
            return  # A comrade, of which a mad peer says that it is a ghost: no news.
        link = self.own.get(writer)
        if facts["at"] == self.mesh.node_id and facts["state"] == "here":
            # It was attached to a former process of this node, and hasn't come back.
            if link is None:
                facts = dict(facts, seq=next_number(facts["seq"]), state="away")
        elif link is not None:  # It has moved, and its old link is about to end.
            self.node.emit(CloseLink(link.peer, "moved"))
            del self.links[link.peer], self.own[writer]
            self._hold_nothing_for(writer)
            self._tag()
        self.where.take(facts, source, now)

    def to_ghost(self, writer: str, kind: str, fields: Facts) -> None:
        """Send a frame to a ghost that is attached here."""
        link = self.own.get(writer)
        if link is not None:
            self.node.send(link.peer, kind, fields)

    def way_to(self, target: str) -> Optional[str]:
        """Give the link that leads to a node or a ghost; None: none does."""
        link = self.own.get(target)
        if link is not None:
            return link.peer
        place = self.where.place_of(target)
        return None if place == self.node.mesh.node_id else self.node.mesh.hop(place)


GHOST_FRAMES: Dict[str, Callable[[Ghosts, Attached, Facts, float], None]] = {
    "ALIVE_ANSWER": Ghosts.on_alive_answer,
    "ATTACH": Ghosts.on_attach,
    "BYE": Ghosts.on_bye,
    "OFFER": Ghosts.on_offer,
    "RECORDS": Ghosts.on_records,
}
