"""The core of a comrade: what it decides, as effects for others to carry out.

Rules. Pure (D6): two verbs, `step(message, now)` and `tick(now)`, both lead to a list
of effects; no I/O, no clock, no randomness, nothing blocks. The simulator and
comrade.py run this very class. `now` is CLOCK_BOOTTIME in seconds (D4); wall-clock
times only pass through, for display.
This file ties the parts together; each has one concern:

    taskqueue, record   all tasks, and how copies become one
    matching            which task fits which worker
    mesh                who is there, who coordinates, who is gone
    replica             what each peer doesn't have yet
    durable             when something may be acknowledged
    hands               what this process itself runs
    adding              new tasks, in slices, all or none
    room                what this machine offers, and when a grant to it may start
    coordinator         what one comrade of a component decides for all
    peers               links and frames
    rest                when heartbeats make no turn
    ghosts              the light workers, and who is whose
    roster              the members in words
    reasons             why a task waits, in words

How it works. Every message is handled by the method that DISPATCH names. Then `_turn`
does what is due, in an order that matters: the coordinator decides, this node's own
runs are started and stopped, records leave (those with living runs first), then news
of members, last the disk. A change of a record, whatever caused it, goes through
`_on_change`, which tells every part.

Invariants. Those of the parts. A message that comes after this process was stopped
(SIGSTOP) finds a node that has let go of all its links first.
"""

from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Set,
    Tuple,
)

import reasons
from adding import Adding
from coordinator import Coordinator
from durable import Durable
from effects import (
    Abandon,
    Acked,
    Add,
    Cores,
    Delete,
    DialRefused,
    Drain,
    Effect,
    Facts,
    FileHere,
    Frame,
    GhostUp,
    Identity,
    LinkLost,
    LinkUp,
    Message,
    Moved,
    Refresh,
    RunEnded,
    RunRefused,
    RunStarted,
    Send,
    Stop,
    Stopped,
    Sync,
    Tags,
    Written,
)
from ghosts import Ghosts
from hands import Hands
from matching import Matcher
from mesh import Mesh
from peers import Peers
from purge import Purge
from record import Record, State, run_order, split_key
from replica import Replica
from rest import Rest
from room import Room
from roster import Roster
from taskqueue import Queue
from waits import Search
from workers import Why, Worker

LOOK_S = 1.0  # with runs in the cluster, what they became is looked at this often
BYE_WAIT_S = 0.5  # all is handed back and on disk: a slow peer gets it so long


class Node:
    """One comrade's view of the cluster and its decisions."""

    def __init__(
        self, me: Identity, cores: int, memory: int, tags: Iterable[str], search: Search
    ) -> None:
        self.me = me
        self.now = 0.0
        self._effects: List[Effect] = []
        self.queue = Queue(self._on_change)
        self.matcher = Matcher(self.queue, search)
        self.worker = Worker(me.writer, me.name, cores, memory)
        self.matcher.attach(self.worker)
        self.mesh = Mesh(
            *(me.node_id, me.writer, me.starts, self.send),
            lambda: self.peers.on_uncovered(),
        )
        self.room = Room(me, self.worker, tags, self.mesh)
        self.files, self.tags = self.room.files, self.room.tags
        self.replica = Replica(
            *(self.queue, self.send, self.room.on_got, self._on_stored),
            self.mesh.covers,
        )
        self.durable = Durable(
            self.queue, self.matcher, self.mesh, self.replica, self.emit
        )
        self.hands = Hands(self.queue, me.writer, cores, self.emit, self._may_start)
        self.room.attach(
            *(self.matcher, self.replica, self.hands, self.emit, self.durable.is_kept)
        )
        self.ghosts: Ghosts
        self.coordinator = Coordinator(
            *(self.queue, self.matcher, self.mesh, self.hands),
            *(self._route, self._present),
        )
        self.purge = Purge(self.queue)
        self.ghosts = Ghosts(self)
        self.peers = Peers(self)
        self.roster = Roster(me, self.mesh, self.matcher, self.ghosts.where)
        self.adding = Adding(me, self.queue, self.durable, self.room, self.emit)
        self._is_sending = self._is_moving = self._is_purging = False
        self.rest = Rest(self)
        self._bye_at: Optional[float] = None
        self._is_over = False

    # --- the two verbs ------------------------------------------------------------

    def step(self, message: Message, now: float) -> List[Effect]:
        """Take one message; give what is to be done."""
        self._wake(now)
        self.rest.has_news = True
        DISPATCH[type(message)](self, message, now)
        return self._turn(now)

    def take(self, messages: List[Message], now: float) -> None:
        """Take messages out of a list; the `step` or `tick` behind them decides.

        One that breaks is out of it, too; a frame, half taken in, ends its link.
        """
        self._wake(now)
        while messages:
            message = messages.pop(0)
            try:
                DISPATCH[type(message)](self, message, now)
                self.rest.note(message, not self._effects)
            except Exception:
                self.rest.has_news = True
                if isinstance(message, Frame) and message.peer in self.mesh.links:
                    self.peers.close(message.peer, "bad frame", "broken", now)
                raise

    def tick(self, now: float) -> Tuple[List[Effect], Optional[float]]:
        """Do what is due; give it and the time of the next call, if any is needed."""
        self._wake(now)
        if not self.rest.is_over(now):
            return [], self.rest.next_at
        self.mesh.tick(now, lambda: self.queue.root, self.replica.is_sent)
        self.peers.close_silent(now)
        if self.rest.goes_on(now):
            effects, self._effects = self._effects, []
        else:
            effects = self._turn(now)
            self.rest.begin(now, self._deadline(now))
        return effects, self.rest.wait()

    def _wake(self, now: float) -> None:
        self.now = now
        if self.mesh.notice_pause(now):
            self.rest.has_news = True
            self.peers.on_pause(now)

    def _turn(self, now: float) -> List[Effect]:
        self.peers.look_around()
        self.ghosts.where.look_around(now)
        self.matcher.waits.scan()
        self._is_moving = self.matcher.move()
        self.room.on_disk(self.durable.is_stuck(now))
        self.room.check(now)
        self.ghosts.check(now)
        self.durable.settle(now)  # Before: what can't be kept isn't started any more.
        self.hands.look_again()  # Refutes first what was merged as lost but runs here.
        if not self.hands.is_stopping:
            self.coordinator.decide(now)
        self._forget_old(now)
        self.room.expire(now)
        self.hands.look_again()
        self.ghosts.flush(now)  # Before: what it waits for is a copy yet to be sent.
        self._is_sending = self.replica.flush()
        self.mesh.gossip(self.replica.may_gossip)
        self.ghosts.where.gossip(self.replica.may_gossip)
        self.durable.flush(now)
        if self.hands.is_stopping:
            self._end_stop(now)
        effects, self._effects = self._effects, []
        return effects

    def _forget_old(self, now: float) -> None:
        """Purge what has been over for long, if this node may decide that."""
        self.purge.count(now)
        self.durable.hours = self.purge.hours
        self._is_purging = False
        if self.purge.is_due() and self.coordinator.may_grant(now):
            if all(link.root_differs == 0 for link in self.mesh.links.values()):
                self._is_purging = self.purge.look()

    def _deadline(self, now: float) -> Optional[float]:
        is_scanning = self.matcher.waits.is_scanning()
        if self._is_sending or self._is_moving or self._is_purging or is_scanning:
            return now
        coordinator = self.coordinator
        times = [self.durable.deadline(now)]
        times += [self.room.deadline(now), coordinator.next_gone, self._bye_at]
        times += [self.purge.deadline(), self.ghosts.deadline()]
        times.append(self.matcher.probation.deadline(now))
        if coordinator.wait_for and now < coordinator.wait_until:
            times.append(coordinator.wait_until)
        if self.mesh.links and coordinator.living:
            times.append(now + LOOK_S)
        return min((t for t in times if t is not None), default=None)

    def emit(self, effect: Effect) -> None:
        """Give an effect with the others of this turn."""
        self._effects.append(effect)

    def send(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        """Send a frame with the effects of this turn."""
        self._effects.append(Send(peer, kind, fields))

    # --- start --------------------------------------------------------------------

    def load(self, rows: Iterable[Any], meta: Mapping[str, bytes]) -> None:
        """Take what the disk had: records in their wire form, and what Persist kept."""
        self.durable.load_purged(meta)
        for wire in rows:
            self.durable.load(wire)
        self.durable.dirty.clear()
        self.durable.hours = int(meta.get("hours", b"0"))
        self.mesh.term = max(self.mesh.term, int(meta.get("term", b"0")))

    def begin(self, former: Iterable[str], known: Iterable[str], now: float) -> None:
        """Start work: what this node's former processes ran is lost, they are dead.

        `known` are the ids of the members known before; they are waited for, and so
        are others whose tasks are here: those come before word of their nodes.
        """
        self.now = now
        ours = set(former)
        for run_key, (writer, key) in list(self.coordinator.living.items()):
            if writer in ours:
                self.queue.advance(key, run_key, "lose", {})
        # Writers are no ids and never met: they are waited for as long as may be.
        others = set(known) or {split_key(key)[1] for key in self.queue.records} - ours
        self.coordinator.begin(others, now)
        self.mesh.tell(ready=not self.coordinator.wait_for)
        self.purge.begin(self.durable.hours, now)
        self.room.refresh()  # What is free here is told with the first facts.

    # --- every change of a record -------------------------------------------------

    def _on_change(
        self, record: Record, old: Optional[State], new: Optional[State]
    ) -> None:
        self.rest.has_news = True
        self.matcher.on_change(record, old, new)
        self.purge.note(record)
        self.durable.dirty[record.key] = None
        self.replica.touch(record, gone=new is None)
        if record.runs:
            self.hands.to_look.add(record.key)
            self.coordinator.note(record, gone=new is None)
            self.ghosts.note(record, gone=new is None)
            for run_key in record.runs:
                self.mesh.term = max(self.mesh.term, run_order(run_key)[1])
        if record.needs.files and new is not None:
            self.room.want_files(record, self.peers.source)

    # --- adding and deleting ------------------------------------------------------

    def _on_add(self, message: Add, now: float) -> None:
        self.adding.on_add(message, now)

    def _on_abandon(self, message: Abandon, now: float) -> None:
        self.adding.on_abandon(message.ticket)

    def _on_delete(self, message: Delete, now: float) -> None:
        keys = [key for key in message.keys if key in self.queue.records]
        for key in keys:
            self.queue.delete(key)
        if keys:
            self.durable.pledge(message.ticket, keys, [], now)
        else:
            self.emit(Acked(message.ticket, [], ""))

    def _on_sync(self, message: Sync, now: float) -> None:
        self.durable.sync(message.ticket, message.unless_stuck)

    def _on_written(self, message: Written, now: float) -> None:
        self.durable.on_written(message, now)

    def _on_stored(self, peer: str, n: int, keys: List[str], ok: bool) -> None:
        self.durable.on_stored(peer, n, keys, ok, self.now)

    # --- this node as a worker ----------------------------------------------------

    def _may_start(self, record: Record, run_key: str) -> bool:
        return self.room.may_start(record, run_key, self.now)

    def _on_tags(self, message: Tags, now: float) -> None:
        self.room.on_tags(message, now)

    def _on_facts(self, message: Facts, now: float) -> None:
        self.room.on_facts(message, now)

    def _on_refresh(self, message: Refresh, now: float) -> None:
        self.room.refresh()

    def _on_drain(self, message: Drain, now: float) -> None:
        if message.node in ("", self.me.node_id):
            self.room.on_drain(message, now)
        else:  # also a ghost of this comrade
            self._route(message.node, "DRAIN", {"on": message.on})

    def _on_run_started(self, message: RunStarted, now: float) -> None:
        self.hands.on_started(message)

    def _on_run_refused(self, message: RunRefused, now: float) -> None:
        self.hands.on_refused(message)
        self.room.look_again()

    def _on_run_ended(self, message: RunEnded, now: float) -> None:
        self.hands.on_ended(message)
        if self.matcher.wanted:
            self.room.look_again()  # It may have made what another waits for.

    def _on_file_here(self, message: FileHere, now: float) -> None:
        self.files.add(message.digest)
        self.hands.look_at_held()
        self.peers.on_file_here()

    def _on_stop(self, message: Stop, now: float) -> None:
        self.hands.stop()
        self.ghosts.stop()
        self.worker.draining = True
        self.mesh.tell(claim=None, draining=True, ready=False, stopping=True)
        self.mesh.refresh(now)

    def _end_stop(self, now: float) -> None:
        """Say good-bye once all is handed back, on disk and sent."""
        if self._is_over or self.hands.mine or not self.durable.is_clean():
            return
        if self._bye_at is None:
            self._bye_at = now + BYE_WAIT_S
        boxes = self.replica.boxes.values()
        if all(box.is_empty() for box in boxes) or now >= self._bye_at:
            self._is_over, self._bye_at = True, None
            for peer in sorted(self.mesh.links):
                self.send(peer, "BYE", {"why": "stopping"})
            self.emit(Stopped())

    # --- links --------------------------------------------------------------------

    def _on_ghost_up(self, message: GhostUp, now: float) -> None:
        self.ghosts.on_up(message, now)
        if self.hands.is_stopping:
            self.ghosts.stop()

    def _on_cores(self, message: Cores, now: float) -> None:
        self.room.on_cores(message, now)

    def _present(self) -> Set[str]:
        """Give the writers of the component: comrades and ghosts."""
        return self.mesh.writers() | self.ghosts.where.present

    def _on_link_up(self, message: LinkUp, now: float) -> None:
        self.peers.on_up(message.peer, message.writer, now)

    def _on_link_lost(self, message: LinkLost, now: float) -> None:
        if message.peer in self.ghosts.links:
            self.ghosts.lose(message.peer, message.why, now)
        else:
            self.peers.lose(message.peer, message.why, now)

    def _on_moved(self, message: Moved, now: float) -> None:
        self.me = self.me._replace(address=message.address)
        self.room.on_moved(self.me)
        self.roster.name_own()

    def _on_dial_refused(self, message: DialRefused, now: float) -> None:
        self.mesh.on_refused(message.peer, now)

    def _on_frame(self, message: Frame, now: float) -> None:
        if message.peer in self.ghosts.links:
            self.ghosts.on_frame(message.peer, message.kind, message.fields, now)
        else:
            self.peers.on_frame(message, now)

    def _route(self, target: str, kind: str, fields: Dict[str, Any]) -> None:
        self.peers.route(target, kind, fields)

    # --- what the utilities ask ---------------------------------------------------

    def why(self, record: Record, now: float) -> List[Why]:
        """Give what a waiting task waits for, a line per condition and worker."""
        return reasons.why(self, record, now)

    def reason(self, record: Record, now: float) -> str:
        """Say in a few words why a task waits, or how it ended."""
        return reasons.reason(self, record, now)

    def alike(self, record: Record) -> Optional[Tuple[int, bool]]:
        """Give what waiting tasks of one and the same reason have in common, if any."""
        return reasons.alike(self, record)

    def history(self, record: Record) -> List[str]:
        """Say what became of a task so far, a line each."""
        return reasons.history(self, record)

    def all_tags(self) -> Set[str]:
        """Give this node's tags, the one that ghosts give among them."""
        return self.room.all_tags()

    def members(self) -> List[Dict[str, Any]]:
        """Give the nodes, as `leoronic_nodes --json` shows them."""
        return self.roster.members()


DISPATCH: Dict[type, Callable[..., None]] = {
    Abandon: Node._on_abandon,
    Add: Node._on_add,
    Cores: Node._on_cores,
    Delete: Node._on_delete,
    DialRefused: Node._on_dial_refused,
    Drain: Node._on_drain,
    Facts: Node._on_facts,
    FileHere: Node._on_file_here,
    Frame: Node._on_frame,
    GhostUp: Node._on_ghost_up,
    LinkLost: Node._on_link_lost,
    LinkUp: Node._on_link_up,
    Moved: Node._on_moved,
    Refresh: Node._on_refresh,
    RunEnded: Node._on_run_ended,
    RunRefused: Node._on_run_refused,
    RunStarted: Node._on_run_started,
    Stop: Node._on_stop,
    Sync: Node._on_sync,
    Tags: Node._on_tags,
    Written: Node._on_written,
}
