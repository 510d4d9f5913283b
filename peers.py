"""The links of a comrade: what comes over them, and what that means for its parts.

Reason for this file beside node.py: the catalogue of frames is a table of its own, and
its handlers are most of what a cluster adds to a lone node.

Rules. Pure (D6). Only here are frames read. Each handler checks nothing that a part
checks already; what raises ends the link (D9) and changes nothing else.

How it works. FRAMES names the handler of each kind; ROUTED are those that also come in
a ROUTE frame, over others, where no link leads to the target. A link begins (`on_up`)
and ends (`lose`) for all parts at once.

Invariants. An answer goes to the link that asked, never to its successor: frames are
numbered anew on each, and STORED is what D10 counts on.
"""

from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    NamedTuple,
    Set,
    Tuple,
)

from blame import STUBBORN_FAULTS
from effects import CloseLink, Drain, Frame, Log, WantOutput
from facts import number
from hands import PAUSED
from matching import owner_of
from mesh import ROOT_DIFFERS, Link
from record import Phase, Record
from workers import Worker

if TYPE_CHECKING:  # The node makes its Peers; only the hint looks back.
    from node import Node

ROUTE_HOPS = 8  # a routed frame goes no further
SMALL_OUTPUT_BYTES = 65536  # outputs up to here are kept by every comrade

Fields = Dict[str, Any]


class Storing(NamedTuple):
    """A frame whose records a peer wants on our disk: their files aren't here yet."""

    link: Link
    n: int
    keys: List[str]
    ok: bool


class Peers:
    """The half of a node that talks to other comrades."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.queue = node.queue
        self.mesh = node.mesh
        self.replica = node.replica
        self.hands = node.hands
        self.source = ""  # the peer whose records are being merged
        self._component: Set[str] = set()  # as `know_workers` saw it
        self._shared: Tuple[FrozenSet[str], FrozenSet[str]] = (frozenset(), frozenset())
        self._storing: List[Storing] = []
        self._told_of = 0  # records that are set aside

    # --- links --------------------------------------------------------------------

    def on_up(self, peer: str, writer: str, now: float) -> None:
        """Begin with a new link."""
        if self.mesh.blame.is_away(peer, now):
            self.node.emit(CloseLink(peer, "kept away"))
            return
        if not self.mesh.links:
            self.mesh.tell(ready=False)
        self.mesh.on_link(peer, writer, now)
        self.replica.on_link(peer)
        self.node.durable.on_link(peer)
        self.node.ghosts.where.on_link(peer)
        self.mesh.refresh(now)

    def lose(self, peer: str, why: str, now: float) -> None:
        """End with a link."""
        self.replica.on_link_lost(peer)
        self.node.ghosts.where.on_link_lost(peer)
        self.mesh.on_link_lost(peer, why, now)
        self.node.room.on_link_lost(peer)
        if not self.mesh.links:
            self.mesh.tell(ready=True)
            self.mesh.refresh(now)
        self.know_workers()

    def close(self, peer: str, reason: str, why: str, now: float) -> None:
        """End a link from here."""
        self.node.emit(CloseLink(peer, reason))
        self.lose(peer, why, now)

    def on_uncovered(self) -> None:
        """Others may have missed what wasn't passed on to them (mesh.covers)."""
        self.replica.send_living()
        self.node.ghosts.where.tell_all()

    def close_silent(self, now: float) -> None:
        """End the links over which nothing came, or no echo in time (mesh.py).

        What is under way is let through first: on a slow link, whose echoes are late,
        a reconciliation that began anew each time would never come to its end.
        """
        for peer in self.mesh.dead_links(now):
            self.close(peer, "silent", "silent", now)
        for peer, link in sorted(self.mesh.links.items()):
            if link.has_returned(now) and self.replica.boxes[peer].is_empty():
                self._leave(peer, "dropped out", now)

    def on_pause(self, now: float) -> None:
        """This process was stopped: accuse nobody, step down, reconcile (DESIGN 7).

        What the links still hold is as old as what is known here, so they begin anew.
        """
        self.node.emit(Log("this process was stopped for a while; it reconciles"))
        self.mesh.tell(claim=None)
        self.hands.give_back(list(self.hands.held), PAUSED)
        others = {member.node_id for member in self.mesh.others()}
        self.node.coordinator.begin(others | set(self.mesh.links), now)
        for peer in sorted(self.mesh.links):
            self._leave(peer, "paused", now)

    def _leave(self, peer: str, reason: str, now: float) -> None:
        """End a link so that both ends make a new one at once."""
        self.node.send(peer, "BYE", {"why": "closing"})
        self.close(peer, reason, "closing", now)

    def route(self, target: str, kind: str, fields: Fields) -> None:
        """Send to a member or a ghost, over others if there is no link to it."""
        place = self.node.ghosts.where.place_of(target)
        if place == self.mesh.node_id:
            self.node.ghosts.to_ghost(target, kind, dict(fields, origin=place))
            return
        hop = self.mesh.hop(place)
        if hop == target:
            self.node.send(target, kind, fields)
        elif hop is not None:
            frame = {"kind": kind, "fields": fields, "to": target, "hops": ROUTE_HOPS}
            self.node.send(hop, "ROUTE", dict(frame, origin=self.mesh.node_id))

    def look_around(self) -> None:
        """Know the workers anew if the component changed, be it by time alone."""
        if self.mesh.component != self._component:
            self.know_workers()

    def know_workers(self) -> None:
        """Keep a Worker for each comrade of the component."""
        matcher, own = self.node.matcher, self.mesh.writer
        self._component = self.mesh.component
        present = self.mesh.others()
        writers = {own, *(member.writer for member in present)}
        writers |= self.node.ghosts.where.present
        for writer in [w for w in matcher.workers if w not in writers]:
            matcher.detach(writer)
        for member in present:
            facts = member.facts
            worker = matcher.workers.get(member.writer)
            if worker is None:
                worker = Worker(member.writer, "", 0, 0)
                matcher.attach(worker)
            worker.name = self.node.roster.shown_name(facts)
            worker.cores, worker.memory = facts["cores"], facts["memory"]
            worker.free_memory = facts["free_memory"]
            worker.free_disk = facts["free_disk"]
            worker.draining = facts["draining"]
            worker.stuck = facts.get("stuck", False)
            matcher.facts(worker, frozenset(facts["holds"]))
        self.node.roster.name_own()
        claims = self.mesh.claims().values()
        self.hands.term = max([self.hands.term, *(claim[0] for claim in claims)])
        self._share()

    def _share(self) -> None:
        """Prefer our share of the tasks while members may be on another side."""
        known = frozenset(self.mesh.component | self.mesh.maybe_apart())
        here = frozenset(self.mesh.component)
        if (here, known) != self._shared:
            self._shared = (here, known)
            is_split = known != here
            self.node.matcher.share(
                (lambda key: owner_of(key, known) not in here) if is_split else None
            )

    # --- frames -------------------------------------------------------------------

    def on_frame(self, message: Frame, now: float) -> None:
        """Take a frame; one that isn't what the catalogue says ends its link."""
        link = self.mesh.links.get(message.peer)
        if link is None:
            return
        if link.has_stalled(now) and message.kind != "BYE":
            self._leave(message.peer, "stalled", now)
            return
        link.heard_at = now
        try:
            FRAMES[message.kind](self, message.peer, message.fields, now)
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            # An authenticated peer that is mad, or of another version (D9).
            self.node.emit(Log("%s of %s: %r" % (message.kind, message.peer, problem)))
            self._blame(message.peer, now)
            self.close(message.peer, "bad frame", "broken", now)

    def _blame(self, peer: str, now: float, faults: int = 1) -> None:
        """Note faults of a peer (blame.py)."""
        seconds = self.mesh.blame.note(peer, now, faults)
        if seconds:
            what = "%s breaks the protocol again and again: it is kept away for %d s"
            self.node.emit(Log(what % (peer, seconds)))

    def on_heartbeat(self, peer: str, fields: Fields, now: float) -> None:
        link = self.mesh.links[peer]
        root = "%x" % self.queue.root
        self.mesh.on_heartbeat(link, fields, root, self.queue.version)
        # One of the two ends asks, so that they don't ask each other at once.
        if link.root_differs >= ROOT_DIFFERS and self.mesh.node_id < peer:
            if self.replica.compare_again(peer):
                link.root_differs = 0.0
        coordinator, why = self.node.coordinator, ""
        if self.mesh.blame.is_stubborn(peer, coordinator.agrees(peer), now):
            why = "doesn't follow who coordinates"
        elif link.root_differs == 0 and coordinator.is_idle(peer, now):
            why = "coordinates and grants nothing"
        if why:
            self.node.emit(Log(f"{peer} {why}"))
            self._blame(peer, now, STUBBORN_FAULTS)
            self._leave(peer, why, now)

    def on_member(self, peer: str, fields: Fields, now: float) -> None:
        if self.mesh.on_member(peer, fields, now):
            self.know_workers()

    def on_records(self, peer: str, fields: Fields, now: float) -> None:
        n = number(fields["n"])
        self.source = peer
        merged, is_whole = self.replica.on_records(peer, fields["r"])
        self.source = ""
        self.tell_set_aside(peer)
        self.node.send(peer, "GOT", {"n": n})
        for record in merged:
            self._want_outputs(peer, record)
        if fields["store"]:
            keys = [record.key for record in merged]
            self._store(Storing(self.mesh.links[peer], n, keys, is_whole))

    def tell_set_aside(self, who: str) -> None:
        """Log which records were malformed, each once; the queue bounds how many."""
        malformed = list(self.queue.malformed.values())
        for why in malformed[self._told_of :]:
            self.node.emit(Log("a record of %s is set aside: %.300s" % (who, why)))
        self._told_of = len(malformed)

    def _store(self, storing: Storing) -> None:
        """Tell a peer when records, and the files they need, are on this disk."""
        found = (self.queue.records.get(key) for key in storing.keys)
        if not all(self.node.room.has_files(r) for r in found if r is not None):
            self._storing.append(storing)
            return

        def written(error: str) -> None:
            if self.mesh.links.get(storing.link.peer) is storing.link:
                ok = storing.ok and not error
                self.node.send(storing.link.peer, "STORED", {"n": storing.n, "ok": ok})

        self.node.durable.persist(storing.keys, written)

    def on_file_here(self) -> None:
        """A file came: what waited for it may be told."""
        self.node.ghosts.look_at_waiting()
        storing, self._storing = self._storing, []
        for one in storing:
            if self.mesh.links.get(one.link.peer) is one.link:
                self._store(one)

    def _want_outputs(self, peer: str, record: Record) -> None:
        for run in record.runs.values():
            if run.phase is Phase.ENDED and run.worker != self.mesh.writer:
                for which in ("out", "err"):
                    size, digest = run.detail.get(which, (0, ""))
                    if 0 < size <= SMALL_OUTPUT_BYTES:
                        self.node.emit(WantOutput(digest, size, peer))

    def on_got(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_got(peer, fields["n"])

    def on_stored(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_stored(peer, fields["n"], fields["ok"])

    def on_purged(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_purged(peer, fields["w"])
        if "n" in fields:
            self.node.send(peer, "GOT", {"n": fields["n"]})

    def on_tree(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_tree(peer, fields["t"], fields["ask"])

    def on_leaf(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_leaf(peer, fields["k"])
        self.node.send(peer, "GOT", {"n": fields["n"]})

    def on_mark(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_mark(peer, fields["p"])
        if fields["p"] == 1:
            self.mesh.links[peer].got_first = True
        self._on_marks(peer, now)

    def on_marked(self, peer: str, fields: Fields, now: float) -> None:
        self.replica.on_marked(peer, fields["p"])
        if fields["p"] == 1:
            self.mesh.links[peer].gave_first = True
        self._on_marks(peer, now)

    def _on_marks(self, peer: str, now: float) -> None:
        if self.replica.is_reconciled(peer) and not self.hands.is_stopping:
            self.mesh.tell(ready=True)
        self.mesh.refresh(now)
        self.know_workers()

    def on_alive(self, peer: str, fields: Fields, now: float) -> None:
        run_key = fields["run"]
        yes = self.hands.is_running(run_key)
        self.answer_alive(fields.get("origin", peer), run_key, yes, now)

    def answer_alive(self, origin: str, run_key: str, yes: bool, now: float) -> None:
        """Answer a coordinator, which may be this node, whether a run still runs."""
        if origin == self.mesh.node_id:
            self.node.coordinator.on_alive(run_key, yes, now)
        else:
            self.route(origin, "ALIVE_ANSWER", {"run": run_key, "yes": yes})

    def on_alive_answer(self, peer: str, fields: Fields, now: float) -> None:
        self.node.coordinator.on_alive(fields["run"], fields["yes"], now)

    def on_stop(self, peer: str, fields: Fields, now: float) -> None:
        self.hands.stop_duplicate(fields["run"], fields["smaller"])

    def on_drain(self, peer: str, fields: Fields, now: float) -> None:
        self.node.room.on_drain(Drain(bool(fields["on"])), now)

    def on_route(self, peer: str, fields: Fields, now: float) -> None:
        if fields["to"] == self.mesh.node_id:
            inner = dict(fields["fields"], origin=fields["origin"])
            if fields["kind"] in ROUTED:
                FRAMES[fields["kind"]](self, peer, inner, now)
        elif fields["to"] in self.node.ghosts.own:
            inner = dict(fields["fields"], origin=fields["origin"])
            if fields["kind"] in ROUTED:
                self.node.ghosts.to_ghost(fields["to"], fields["kind"], inner)
        elif 0 < fields["hops"] <= ROUTE_HOPS:
            hop = self.mesh.hop(self.node.ghosts.where.place_of(fields["to"]))
            if hop is not None:
                self.node.send(hop, "ROUTE", dict(fields, hops=fields["hops"] - 1))

    def on_ghost(self, peer: str, fields: Fields, now: float) -> None:
        self.node.ghosts.on_ghost(peer, fields, now)

    def on_bye(self, peer: str, fields: Fields, now: float) -> None:
        why = "stopping" if fields["why"] == "stopping" else "closing"
        self.close(peer, why, why, now)


FRAMES: Dict[str, Callable[[Peers, str, Fields, float], None]] = {
    "ALIVE": Peers.on_alive,
    "ALIVE_ANSWER": Peers.on_alive_answer,
    "BYE": Peers.on_bye,
    "DRAIN": Peers.on_drain,
    "GHOST": Peers.on_ghost,
    "GOT": Peers.on_got,
    "HEARTBEAT": Peers.on_heartbeat,
    "LEAF": Peers.on_leaf,
    "MARK": Peers.on_mark,
    "MARKED": Peers.on_marked,
    "MEMBER": Peers.on_member,
    "PURGED": Peers.on_purged,
    "RECORDS": Peers.on_records,
    "ROUTE": Peers.on_route,
    "STOP": Peers.on_stop,
    "STORED": Peers.on_stored,
    "TREE": Peers.on_tree,
}
ROUTED: FrozenSet[str] = frozenset(["ALIVE", "ALIVE_ANSWER", "DRAIN", "STOP"])
