"""When something may be acknowledged: this disk, and another comrade's.

Reason for this file beside node.py: D10 is one rule, and the only one that users bet
their work on; it should be readable in one place.

Rules. Pure (D6). Decides what is written when and what is acknowledged when; nothing
else may emit Persist or Acked.

How it works. The disk is a peer: `dirty` is the set of keys it doesn't have as they
are. A record is made into bytes when it is written, so bursts coalesce; a disk that
fails keeps its set and is tried again. What a user waits for is a `Pledge`: it is
acknowledged when the records are fsynced here *and* on one other comrade (the first to
answer); or here alone, when nobody answers within PATIENCE_S of the last progress or
nobody is there. If this disk can't, two others must (or the only one there is). Who has
confirmed is counted by link: a new link is sent the records again, and asked again.
What has to be done for each of many records takes a slice a turn (`_begin`).

Invariants.
D1, D10  Acked without error is only emitted as said above.
What nobody waits for may wait while runs here are short: then much changes. Else a
grant is soon on the disk, where those are counted that take their node with them.
An add that can't be acknowledged is gone again, or marked deleted wherever it got to.
"""

import json
from itertools import islice
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Set

from effects import Acked, Effect, Log, Persist, Written
from matching import Matcher
from mesh import Mesh
from record import canonical
from replica import Replica
from taskqueue import Queue

PATIENCE_S = 1.9  # for another comrade's disk, from its last progress: 2 s with a turn
DISK_RETRY_S = 2.0  # after a failed write; Written says what was wrong
STUCK_S = 2.0  # a disk that owes an answer this long gets no work: busy ones take 0.1 s
ROWS_A_WRITE = 1000  # records in one batch: a few ms to serialise
KEYS_A_TURN = 2000  # of a pledge, that are released or unblocked (10 ms)
NO_ANSWER = "this disk doesn't answer"
PURGED = "purged/"  # meta: a writer's intervals of PURGED, as JSON
OVER_AT = "~over"  # a row's own field: when this node saw it finished
COPIES_WITHOUT_DISK = 2  # other comrades that must have it if this disk fails
ONLY_HERE = (
    "it is kept on this node only so far; no other comrade %s; it is copied once one "
    "is there"
)


class Pledge:
    """Something to be acknowledged once it is durable."""

    def __init__(self, ticket: int, keys: List[str], now: float) -> None:
        self.ticket = ticket
        self.keys = keys
        self.new: List[str] = []  # tasks that are gone again if it can't be kept
        self.is_here: Optional[bool] = None  # None: the disk hasn't answered
        self.error = ""
        self.deadline = now + PATIENCE_S
        self.after: Dict[str, int] = {}  # peer -> frames sent before; they don't count
        self.left: Dict[str, Set[str]] = {}  # peer -> keys that it hasn't confirmed
        self.copies: Set[str] = set()  # peers that have all
        self.refusals: Set[str] = set()  # peers whose disk can't
        self.is_told = False  # some peer was sent it
        self.is_released = False  # whole: peers may be sent all of it
        self.then: Optional[Callable[[str], None]] = None  # told instead of a user

    def confirm(self, peer: str, keys: Iterable[str], now: float) -> None:
        """Note that a peer has some of the records on its disk."""
        left = self.left.setdefault(peer, set(self.keys))
        before = len(left)
        left.difference_update(keys)
        if len(left) < before:
            self.deadline = now + PATIENCE_S
        if not left:
            self.copies.add(peer)


class Durable:
    """The disk of one comrade, and what waits to be durable."""

    def __init__(
        self,
        queue: Queue,
        matcher: Matcher,
        mesh: Mesh,
        replica: Replica,
        emit: Callable[[Effect], None],
    ) -> None:
        self.queue = queue
        self.matcher = matcher
        self.mesh = mesh
        self.replica = replica
        self.emit = emit
        self.dirty: Dict[str, None] = {}  # an ordered set
        self.hours = 0  # of counted uptime (purge.py), written with whatever is
        self.error = ""
        self.pledges: Dict[int, Pledge] = {}
        self._seq = 0
        self._then: Dict[int, Callable[[str], None]] = {}
        self._under_way: Dict[str, int] = {}  # key -> the last batch with it
        self._syncs: Dict[int, bool] = {}  # tickets -> don't wait for one that hangs
        self._is_flushing = False
        self._retry_at: Optional[float] = None
        self._vouched = 0  # counts what is vouched for; tickets are above 0
        self._owes_since: Optional[float] = None  # the disk, an answer
        self._steps: List[Iterator[None]] = []  # of what is long: one each turn
        self.slice = KEYS_A_TURN
        self._has_unblocked = False  # behind the decisions of this turn

    # --- the disk -----------------------------------------------------------------

    def persist(
        self,
        keys: Iterable[str],
        then: Callable[[str], None],
        group: int = 0,
        close: int = 0,
        abort: int = 0,
        may_wait: bool = False,
    ) -> None:
        """Write records as one transaction; `then` gets an error or ''."""
        keys = list(keys)
        rows = [(key, self._row(key)) for key in keys]
        self._seq = seq = self._seq + 1
        self._clean(keys)
        self._under_way.update(dict.fromkeys(keys, seq))
        meta = {"term": b"%d" % self.mesh.term, "hours": b"%d" % self.hours}
        purged = self.queue.purged
        unsaved = list(purged.unsaved)
        for writer in unsaved:  # In the batch that drops what they cover, or before.
            meta[PURGED + writer] = canonical(purged.intervals[writer])
        purged.unsaved.clear()
        self.emit(Persist(seq, rows, meta, group, close, abort, may_wait))

        def written(error: str) -> None:
            for key in keys:
                if self._under_way.get(key) == seq:
                    del self._under_way[key]
            if error:
                purged.unsaved.update(dict.fromkeys(unsaved))
            if error and not group:
                self.dirty.update(dict.fromkeys(keys))
            then(error)

        self._then[seq] = written

    def is_kept(self, key: str) -> bool:
        """Say whether this disk has a task as it is, or can't have it for now."""
        is_new = key in self.dirty or key in self._under_way
        return not is_new or self._retry_at is not None

    def _clean(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.dirty.pop(key, None)

    def sync(self, ticket: int, unless_stuck: bool) -> None:
        """Acknowledge a ticket once all that is known now is on disk."""
        keys = [key for key in self.dirty if key not in self.matcher.blocked]
        self._syncs[ticket] = unless_stuck
        self.persist(keys, lambda error: self._synced(ticket, error))

    def _synced(self, ticket: int, error: str) -> None:
        if self._syncs.pop(ticket, None) is not None:
            self.emit(Acked(ticket, (), error))

    def _row(self, key: str) -> Optional[bytes]:
        record = self.queue.records.get(key)
        if record is None:
            return None
        text = self.queue.tree.text(record)
        if record.over_at >= 0:
            text = b'%s,"%s":%d}' % (text[:-1], OVER_AT.encode(), record.over_at)
        return text

    def load(self, wire: Any) -> None:
        """Take a row that the disk had."""
        over_at = wire.pop(OVER_AT, -1) if isinstance(wire, dict) else -1
        record = self.queue.merge(wire)
        if record is not None and over_at >= 0:  # Else it shares with its neighbours.
            record.over_at = over_at

    def load_purged(self, meta: Mapping[str, bytes]) -> None:
        """Take the intervals that the disk had; before the rows."""
        for name, value in meta.items():
            if name.startswith(PURGED):
                for low, high in json.loads(value):
                    self.queue.cover(name[len(PURGED) :], low, high)
        self.queue.purged.unsaved.clear()

    def on_written(self, message: Written, now: float) -> None:
        """Take the store's answer."""
        self._then.pop(message.seq)(message.error)
        self._owes_since = now if self._then else None
        if message.error:
            self._retry_at = now + DISK_RETRY_S
        if message.error != self.error:
            self.error = message.error
            self.emit(Log(message.error or "the disk works again"))

    def flush(self, now: float) -> None:
        """Hand what changed to the disk, one batch at a time."""
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        unsaved = self.queue.purged.unsaved
        may_flush = not self._is_flushing and self._retry_at is None
        if (self.dirty or unsaved) and may_flush:
            blocked = self.matcher.blocked
            free = (key for key in self.dirty if key not in blocked)
            keys = list(islice(free, ROWS_A_WRITE))
            if keys or unsaved:
                self._is_flushing = True
                worker = self.matcher.workers.get(self.mesh.writer)
                may_wait = worker is not None and worker.is_quick(now)
                self.persist(keys, self._on_flushed, may_wait=may_wait)
        if self._then and self._owes_since is None:
            self._owes_since = now
        if self.is_stuck(now):
            for ticket in [t for t, may_end in self._syncs.items() if may_end]:
                self._synced(ticket, NO_ANSWER)
        self._has_unblocked = False
        steps, self._steps = self._steps, []
        for rest in steps:
            self._begin(rest)

    def settle(self, now: float) -> None:
        """End the pledges that are kept, or can't be."""
        for pledge in list(self.pledges.values()):
            if pledge.is_released:
                self._settle(pledge, now)
            else:
                pledge.deadline = now + PATIENCE_S

    def _begin(self, steps: Iterator[None]) -> None:
        """Do a slice of what is long, and the others in the next turns."""
        for _ in steps:
            self._steps.append(steps)
            break

    def _slices(
        self, keys: List[str], do: Callable[[List[str]], None]
    ) -> Iterator[None]:
        for i in range(0, len(keys), self.slice):
            if i:
                yield
            do(keys[i : i + self.slice])

    def is_stuck(self, now: float) -> bool:
        """Say whether the disk hangs: it has owed an answer for long."""
        since = self._owes_since
        return since is not None and now - since >= STUCK_S

    def _on_flushed(self, error: str) -> None:
        self._is_flushing = False

    def is_clean(self) -> bool:
        """Say whether the disk has everything."""
        unsaved = self.queue.purged.unsaved
        return not (self.dirty or self._then or unsaved or self._steps)

    def deadline(self, now: float) -> Optional[float]:
        """Give the time when something is due; what is late waits for an answer."""
        if self._steps or self._has_unblocked:
            return now
        times = [p.deadline for p in self.pledges.values() if p.deadline > now]
        if self._retry_at is not None:
            times.append(self._retry_at)
        if self._owes_since is not None and not self.is_stuck(now):
            times.append(self._owes_since + STUCK_S)
        return min(times, default=None)

    # --- pledges ------------------------------------------------------------------

    def pledge(
        self, ticket: int, keys: List[str], new: List[str], now: float, group: int = 0
    ) -> None:
        """Acknowledge a ticket once its records are durable as D10 says."""
        pledge = self.pledges[ticket] = Pledge(ticket, keys, now)
        pledge.new = new
        pledge.is_told = bool(self.replica.boxes)
        for peer, box in self.replica.boxes.items():
            pledge.after[peer] = box.number
        self._begin(self._release(pledge))
        rows = keys
        if group:
            staged = set(new) if len(new) < len(keys) else ()
            rows = [key for key in keys if key not in staged] if staged else []
        self.persist(
            rows, lambda error: self._on_here(pledge, error), group, close=group
        )

    def _release(self, pledge: Pledge) -> Iterator[None]:
        """Let peers have what is pledged, and be asked for it."""
        for i in range(0, len(pledge.keys), self.slice):
            if i:
                yield
            keys = pledge.keys[i : i + self.slice]
            self.replica.want(keys)
            # What is new stands at the same place in its list, or before.
            self.replica.release(pledge.new[i : i + self.slice], keys)
        pledge.is_released = True

    def _unblock(self, keys: List[str]) -> None:
        for key in keys:
            self.matcher.unblock(key)
        self._has_unblocked = True

    def vouch(self, keys: List[str], then: Callable[[str], None], now: float) -> None:
        """Do the same for records of a ghost; `then` gets an error or ''."""
        if not keys:
            then("")  # all of it is purged: done with for ever
            return
        self._vouched -= 1
        self.pledge(self._vouched, keys, [], now)
        self.pledges[self._vouched].then = then

    def on_link(self, peer: str) -> None:
        """A new link: its frames count anew, and it is asked for what is pledged."""
        for pledge in self.pledges.values():
            pledge.after[peer] = 0
            pledge.refusals.discard(peer)
            pledge.is_told = True
            self.replica.send_again(pledge.keys, peer)

    def spoil(self, ticket: int, error: str) -> None:
        """Know that part of a sliced add didn't reach the disk."""
        pledge = self.pledges.get(ticket)
        if pledge is not None:
            pledge.error = pledge.error or error

    def _on_here(self, pledge: Pledge, error: str) -> None:
        pledge.error = pledge.error or error
        pledge.is_here = not pledge.error
        if pledge.is_here:
            self._begin(self._slices(pledge.new, self._unblock))
        else:  # Others may keep it; then it is for this disk too, when that works.
            self.dirty.update(dict.fromkeys(pledge.keys))

    def on_stored(
        self, peer: str, n: int, keys: List[str], ok: bool, now: float
    ) -> None:
        """A peer has the records of frame n on its disk, or can't write them."""
        for pledge in self.pledges.values():
            if n <= pledge.after.get(peer, 0):
                continue
            if ok:
                pledge.confirm(peer, keys, now)
            elif not pledge.left.get(peer, set(pledge.keys)).isdisjoint(keys):
                pledge.refusals.add(peer)

    def _settle(self, pledge: Pledge, now: float) -> None:
        peers = len(self.mesh.links)
        # There is no use in waiting for those that have said no.
        has_no = bool(peers) and pledge.refusals.issuperset(self.mesh.links)
        is_late = has_no or now >= pledge.deadline
        if pledge.is_here:
            if pledge.copies or not peers:
                self._end(pledge, "", "" if pledge.copies else self._alone())
            elif is_late:
                self._end(pledge, "", ONLY_HERE % "confirmed it in time")
            return
        enough = max(1, min(COPIES_WITHOUT_DISK, peers))
        if len(pledge.copies) >= enough and (is_late or pledge.is_here is False):
            note = pledge.error or NO_ANSWER
            self._end(pledge, "", "kept by other comrades, not on this disk: " + note)
        elif pledge.is_here is False and (is_late or not peers):
            self._fail(pledge)
        elif pledge.refusals and now >= pledge.deadline:
            self._ask_again(pledge, now)

    def _ask_again(self, pledge: Pledge, now: float) -> None:
        """This disk hangs: other comrades must have it, whose disks may work again."""
        for peer in pledge.refusals:
            self.replica.send_again(pledge.keys, peer)
        pledge.refusals.clear()
        pledge.deadline = now + PATIENCE_S

    def _alone(self) -> str:
        """Say that known members are away; one who knows no other says nothing."""
        return ONLY_HERE % "is reachable" if self.mesh.left_at else ""

    def _fail(self, pledge: Pledge) -> None:
        error = pledge.error
        others = [p for p in self.pledges.values() if p is not pledge]
        taken = {key for other in others for key in other.keys}
        keys = [key for key in pledge.new if key not in taken]
        if pledge.is_told:
            self.matcher.blocked.difference_update(keys)
            for key in keys:
                if key in self.queue.records:
                    self.queue.delete(key)
            if pledge.new:
                error += "; it is deleted again, but may still run where it got to"
        else:
            self.forget(keys)
        self._end(pledge, error, "")

    def forget(self, keys: List[str]) -> None:
        """Drop tasks that nobody was told of."""
        self.matcher.blocked.difference_update(keys)
        self.queue.forget([key for key in keys if key in self.queue.records])
        self._clean(keys)

    def _end(self, pledge: Pledge, error: str, note: str) -> None:
        del self.pledges[pledge.ticket]
        self._begin(self._slices(pledge.keys, self.replica.want_no_more))
        if not error and not pledge.is_here:
            self._begin(self._slices(pledge.new, self._unblock))
        if pledge.then is not None:
            pledge.then(error)
        else:
            self.emit(Acked(pledge.ticket, pledge.keys, error, note))
