"""Which waiting task goes to which worker: needs, conditions, room, order.

Reason for this file beside taskqueue.py: the queue is replicated and merged, what is
here is one coordinator's index over it, built anew at every start; two concerns.

Rules. Pure (D6): `now` is an argument. Reads records, never changes one. Knows no node,
only Workers (workers.py); `queue:` conditions are counted in waits.py.

How it works. Tasks of equal needs (and equally lonely) share a `Bucket`, a heap by
age. A bucket whose `queue:` conditions are met and that some worker could hold is
*ready*: it stands in one heap by (priority, age of its first task). `pick(worker)`
goes down that heap to the first task that fits. So placing one task costs the same
with 100,000 in the queue as with 100: what waits on something isn't looked at.

While members are missing, `share` says which tasks are this component's: within a
priority they go first, so that two halves of a split cluster work on different ones.

A worker that fails at once what ends well elsewhere gets few tasks (probation.py).

Smaller tasks may pass a big one that has no room *now*; after PATIENCE_S a worker
that could hold it is kept free for it. A task refused by a worker isn't offered to
it for 1 s, doubling to 10 min.

Invariants. `held` mirrors the living runs of the queue exactly. A task is picked only
while it is waiting, not blocked, and fits. Nothing here is remembered on disk.
"""

from heapq import heappop, heappush
from typing import Callable, Dict, FrozenSet, Iterable, List, Optional, Set, Tuple

import conditions
from probation import Probation
from record import (
    LIVING,
    UNFINISHED,
    Needs,
    Phase,
    Record,
    State,
    hash64,
    is_good_end,
)
from taskqueue import Queue
from waits import IS_FIRST, Search, Waits, Watch
from workers import Why, Worker, is_lonely

PATIENCE_S = 60.0  # a big task waits this long before a worker is kept free for it
REFUSED_FIRST_S = 1.0  # then doubling
REFUSED_MOST_S = 600.0
MOVE_SLICE = 2000  # tasks that change buckets in one turn of the loop (< 20 ms)
REFUSALS_PASSED = 32  # tasks of one bucket that may be tried behind a refused one
SPARE = 64  # entries of a heap that may be stale beyond as many as are valid
ON_PROBATION = (
    "on probation: its last %d runs failed at once, those of others don't; it gets a "
    "task now and then"
)
NOWHERE = ""  # parked here: no single worker has the cores, memory and conditions

Where = Tuple[int, bool, int, str, int]  # -priority, foreign, order, key, bucket
Kind = Tuple[Needs, bool, bool]  # the tasks of a bucket: needs, alone, foreign
SIDES = [(alone, foreign) for alone in (False, True) for foreign in (False, True)]


class Bucket:
    """The waiting tasks of equal needs: a heap; what is gone is dropped lazily."""

    def __init__(self, number: int, kind: Kind) -> None:
        self.number = number
        self.kind = kind
        self.needs, self.alone, self.foreign = kind
        self.heap: List[Record] = []
        self.stale = 0  # entries of the heap that may be gone, or there twice
        self.watches: List[Watch] = []
        self.is_first = False
        self.here: List[str] = []  # its `worker:` conditions
        self.offered: Optional[Where] = None  # its one valid entry in `ready`


class Matcher:
    """The index of one node over the queue; `on_change` is the queue's listener."""

    def __init__(self, queue: Queue, search: Search) -> None:
        self.queue = queue
        self.waits = Waits(queue, search, self._offer_all)
        self.workers: Dict[str, Worker] = {}
        self.held: Dict[str, str] = {}  # living run key -> worker's writer
        self.blocked: Set[str] = set()  # keys not to be placed (not durable yet)
        self.buckets: Dict[Kind, Bucket] = {}
        self.numbered: Dict[int, Bucket] = {}
        self.ready: List[Where] = []
        self.waiting_since: Dict[str, float] = {}  # first passed over for want of room
        self.wanted: Dict[str, int] = {}  # `worker:` condition -> buckets that have it
        self.parked: Dict[str, Set[int]] = {}  # the same, held nowhere -> buckets
        self._is_foreign: Optional[Callable[[str], bool]] = None
        self.probation = Probation()
        self._moving: List[Record] = []  # to other buckets
        self._counter = 0

    # --- keeping the index --------------------------------------------------------

    def on_change(
        self, record: Record, old: Optional[State], new: Optional[State]
    ) -> None:
        """Follow one change of the queue (Queue.on_change)."""
        self._hold(record, gone=new is None)
        self.waits.on_change(record, old, new)
        # Also one that goes on waiting: it may have become lonely, or no longer be.
        if new is State.WAITING and record.key not in self.blocked:
            self.place(record)
        if old is State.WAITING:
            self._leave(record)
        if old in UNFINISHED and new not in UNFINISHED:
            self._forget(record.key)
            self._offer_oldest()
        if len(self.ready) > 2 * len(self.numbered) + SPARE:
            offers = (bucket.offered for bucket in self.numbered.values())
            self.ready = sorted(where for where in offers if where is not None)

    def place(self, record: Record) -> None:
        """Put a waiting task into its bucket (also when it is no longer blocked)."""
        kind = self._kind_of(record)
        bucket = self.buckets.get(kind)
        if bucket is None:
            bucket = self._new_bucket(kind)
        heappush(bucket.heap, record)
        if 2 * bucket.stale > len(bucket.heap) + SPARE:
            # One that was granted and came back may stand here twice.
            valid = {r.key: r for r in bucket.heap if self._is_placeable(bucket, r)}
            bucket.heap, bucket.stale = sorted(valid.values()), 0
        if bucket.heap[0] is record or bucket.watches or bucket.is_first:
            self._offer(bucket)

    def _leave(self, record: Record) -> None:
        """Drop the bucket that a task leaves empty, and what was kept while it waited.

        Which bucket it was in, its state no longer tells; both are looked at.
        """
        if record.state is not State.WAITING or not self.waits.is_there(record):
            self.waiting_since.pop(record.key, None)
            for worker in self.workers.values():
                if worker.kept_for == record.key:
                    worker.kept_for = ""
        for bucket in self._buckets_of(record):
            bucket.stale += 1
            if not self._top(bucket):
                self._drop(bucket)

    def _kind_of(self, record: Record) -> Kind:
        foreign = self._is_foreign is not None and self._is_foreign(record.key)
        return record.needs, is_lonely(record), foreign

    def _buckets_of(self, record: Record) -> List[Bucket]:
        """Give the buckets that a task may be in."""
        needs = record.needs
        found = [self.buckets.get((needs, *side)) for side in SIDES]
        return [bucket for bucket in found if bucket is not None]

    def share(self, is_foreign: Optional[Callable[[str], bool]]) -> None:
        """Let tasks that belong to missing members wait behind the others.

        None: nobody is missing. The tasks change buckets in slices (`move`).
        """
        if is_foreign is not None or self._is_foreign is not None:
            self._is_foreign = is_foreign
            self._moving = list(self.queue.records.values())

    def move(self) -> bool:
        """Go on moving tasks after `share`; say whether more is to do."""
        if not self._moving:
            return False
        for record in self._moving[-MOVE_SLICE:]:
            if record.state is State.WAITING and record.key not in self.blocked:
                if self.waits.is_there(record):
                    for bucket in self._buckets_of(record):
                        bucket.stale += 1
                    self.place(record)
        del self._moving[-MOVE_SLICE:]
        if not self._moving:
            for bucket in list(self.numbered.values()):
                if not self._top(bucket):
                    self._drop(bucket)
        return bool(self._moving)

    def _forget(self, key: str) -> None:
        for worker in self.workers.values():
            worker.refused.pop(key, None)

    def unblock(self, key: str) -> None:
        """Let a task be placed that wasn't durable before."""
        record = self.queue.records.get(key) if key in self.blocked else None
        self.blocked.discard(key)
        if not self.blocked:
            self.blocked.clear()  # else it stays as large as it ever was
        if record is not None and record.state is State.WAITING:
            self.place(record)

    def facts(self, worker: Worker, holds: FrozenSet[str]) -> None:
        """Learn which of the wanted `worker:` conditions hold at a worker."""
        gained = holds - worker.holds
        worker.holds = holds
        worker.granted_since = 0
        if gained:
            self._unpark([*gained, NOWHERE])

    def _unpark(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._offer_all(sorted(self.parked.pop(text, ())))

    def _hold(self, record: Record, gone: bool) -> None:
        for run_key, run in record.runs.items():
            holder = run.worker if run.phase in LIVING and not gone else None
            known = self.held.get(run_key)
            if holder == known:
                continue
            if known is not None:
                del self.held[run_key]
                if known in self.workers:
                    self.workers[known].release(run_key)
                    self.workers[known].note_end(run)
                if run.phase is Phase.ENDED and not gone:
                    took = float(run.detail.get("took", 0.0))
                    self.probation.note(run.worker, is_good_end(run), took)
            if holder is not None:
                self.held[run_key] = holder
                if holder in self.workers:
                    self.workers[holder].hold(run_key, record.needs, is_lonely(record))

    def attach(self, worker: Worker) -> None:
        """Know a worker, with the runs of its writer that the queue has."""
        self.workers[worker.writer] = worker
        self.probation.know(worker.writer)
        if worker.writer in self.held.values():
            for record in self.queue.records.values():
                for run_key in record.runs:
                    if self.held.get(run_key) == worker.writer:
                        worker.hold(run_key, record.needs, is_lonely(record))
        self._unpark([*worker.holds, NOWHERE])

    def detach(self, writer: str) -> None:
        """Forget a worker; its runs stay held until the queue says otherwise."""
        self.workers.pop(writer, None)
        self.probation.forget(writer)

    # --- conditions of the queue --------------------------------------------------

    def _new_bucket(self, kind: Kind) -> Bucket:
        self._counter += 1
        bucket = Bucket(self._counter, kind)
        self.buckets[kind] = self.numbered[bucket.number] = bucket
        for text in bucket.needs.conditions:
            if text == IS_FIRST:
                bucket.is_first = True
            elif conditions.is_worker(conditions.unwire(text)):
                bucket.here.append(text)
                self.wanted[text] = self.wanted.get(text, 0) + 1
            else:
                bucket.watches.append(self.waits.add(text, bucket.number))
        return bucket

    def candidate(self, bucket: Bucket) -> Optional[Record]:
        """Give the task of a bucket that its `queue:` conditions let through."""
        top = self._top(bucket)
        if top is None:
            return None
        is_open, only = self.waits.let_through(bucket.watches, bucket.is_first)
        if not is_open or only is None:
            return top if is_open else None
        record = self.queue.records.get(only)
        if record is None or not self._is_placeable(bucket, record):
            return None
        return record

    def _top(self, bucket: Bucket) -> Optional[Record]:
        heap = bucket.heap
        while heap and not self._is_placeable(bucket, heap[0]):
            heappop(heap)
            bucket.stale -= 1
        return heap[0] if heap else None

    def _is_placeable(self, bucket: Bucket, record: Record) -> bool:
        return (
            record.state is State.WAITING
            and record.needs is bucket.needs
            and self._kind_of(record) == bucket.kind
            and record.key not in self.blocked
            and self.waits.is_there(record)
        )

    def _offer_all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._offer(self.numbered[number])

    def _offer_oldest(self) -> None:
        record = self.waits.first()
        if record is not None:
            for bucket in self._buckets_of(record):
                if bucket.is_first:
                    self._offer(bucket)

    def _offer(self, bucket: Bucket) -> None:
        """Make a bucket ready if it is: one valid entry in the heap, no more."""
        record = self.candidate(bucket)
        where = None
        if record is not None and not self._park(bucket):
            where = (*self._place_of(record), bucket.number)
        if where != bucket.offered:
            bucket.offered = where
            if where is not None:
                heappush(self.ready, where)

    def _park(self, bucket: Bucket) -> bool:
        """Set a bucket aside until some worker has what it wants."""
        workers = self.workers.values()
        if any(worker.could_hold(bucket.needs, bucket.here) for worker in workers):
            return False
        lacking = NOWHERE
        for text in bucket.here:
            if not any(text in worker.holds for worker in workers):
                lacking = text
        self.parked.setdefault(lacking, set()).add(bucket.number)
        return True

    def _drop(self, bucket: Bucket) -> None:
        del self.numbered[bucket.number]
        del self.buckets[bucket.kind]
        for text in [*bucket.here, NOWHERE]:
            parked = self.parked.get(text, set())
            parked.discard(bucket.number)
            if not parked:
                self.parked.pop(text, None)
        for text in bucket.here:
            self.wanted[text] -= 1
            if not self.wanted[text]:
                del self.wanted[text]
        for watch in bucket.watches:
            self.waits.remove(watch, bucket.number)

    # --- picking ------------------------------------------------------------------

    def pick(self, worker: Worker, now: float) -> Optional[Record]:
        """Give the first task, by priority and age, that fits this worker now."""
        idle = not worker.runs
        if worker.is_full() or not self.probation.may_have(worker.writer, idle, now):
            return None
        passed: List[Where] = []
        found: Optional[Record] = None  # behind a refused one, unless one is older
        while True:
            top = self.peek()
            if top is None or (found and self._place_of(found) < self.ready[0][:4]):
                break
            bucket, record = top
            fitting = self._try(worker, bucket, record, now)
            if fitting and (
                found is None or self._place_of(fitting) < self._place_of(found)
            ):
                found = fitting
            if found is record:
                break
            passed.append(heappop(self.ready))
            if worker.kept_for == record.key:
                break
        for where in passed:
            heappush(self.ready, where)
        if found is not None:
            self.probation.picked(worker.writer, now)
        return found

    def peek(self) -> Optional[Tuple[Bucket, Record]]:
        """Give the first task that waits for nothing but a worker."""
        while self.ready:
            where = self.ready[0]
            bucket = self.numbered.get(where[4])
            if bucket is None or bucket.offered != where:
                heappop(self.ready)
                continue
            record = self.candidate(bucket)
            if record is None or record.key != where[3] or self._park(bucket):
                heappop(self.ready)
                bucket.offered = None
                self._offer(bucket)
                continue
            return bucket, record
        return None

    def _place_of(self, record: Record) -> Tuple[int, bool, int, str]:
        foreign = self._kind_of(record)[2]
        return (-record.needs.priority, foreign, record.order, record.key)

    def _try(
        self, worker: Worker, bucket: Bucket, record: Record, now: float
    ) -> Optional[Record]:
        needs = bucket.needs
        if worker.lacks(needs):
            return None
        is_refused = self._is_refused(worker, record, now)
        if worker.busy_with(needs, bucket.alone):
            if not is_refused:
                self._be_patient(worker, record.key, now)
            return None
        if not is_refused:
            return record
        return self._behind(worker, bucket, now)

    def _be_patient(self, worker: Worker, key: str, now: float) -> None:
        """Keep a worker free for a task that was passed over for long enough."""
        since = self.waiting_since.setdefault(key, now)
        if not worker.runs and not worker.granted_since:
            # It is free and yet has no room: what takes it is none of ours.
            if worker.kept_for == key:
                worker.kept_for = ""
                self.waiting_since[key] = now
        elif now - since >= PATIENCE_S and not self._is_kept(key):
            worker.kept_for = key

    def _is_kept(self, key: str) -> bool:
        return any(
            worker.kept_for == key and not worker.takes_nothing()
            for worker in self.workers.values()
        )

    def _behind(self, worker: Worker, bucket: Bucket, now: float) -> Optional[Record]:
        """Find a task behind one that this worker refused."""
        if bucket.is_first or any(watch.keys for watch in bucket.watches):
            return None  # Its conditions let no other through.
        aside: List[Record] = []
        found = None
        while bucket.heap and len(aside) < REFUSALS_PASSED and found is None:
            record = heappop(bucket.heap)
            if not self._is_placeable(bucket, record):
                continue
            aside.append(record)
            if not self._is_refused(worker, record, now):
                found = record
        for record in aside:
            heappush(bucket.heap, record)
        return found

    def refuse(self, worker: Worker, key: str, why: str, now: float) -> None:
        """Remember that a worker refused a task: 1 s, doubling to 10 min."""
        _, delay, _ = worker.refused.get(key, (0.0, 0.0, ""))
        delay = min(max(2 * delay, REFUSED_FIRST_S), REFUSED_MOST_S)
        worker.refused[key] = (now + delay, delay, why)

    def _is_refused(self, worker: Worker, record: Record, now: float) -> bool:
        return worker.refused.get(record.key, (0.0,))[0] > now

    # --- explaining ---------------------------------------------------------------

    def why(self, record: Record, now: float) -> List[Why]:
        """Say what a waiting task waits for: each condition, each worker."""
        rows = [self.waits.why(record, text) for text in record.needs.conditions]
        return [row for row in rows if row is not None] + self.why_not_on(record, now)

    def why_not_on(self, record: Record, now: float) -> List[Why]:
        """Say of each worker what a waiting task lacks there."""
        lines = []
        for worker in sorted(self.workers.values(), key=lambda w: w.name):
            found = worker.why_not(record, now)
            failed = self.probation.failures(worker.writer)
            if failed:
                found.append(ON_PROBATION % failed)
            lines.append(Why(worker.name, not found, "; ".join(found) or "fits"))
        return lines


def pick_ahead(matcher: Matcher, worker: Worker, now: float) -> Optional[Record]:
    """Give the very first task, if it may begin at a worker once another ends."""
    top = matcher.peek()
    if top is None or not matcher.probation.may_have(worker.writer, False, now):
        return None
    bucket, record = top
    until, _, _ = worker.refused.get(record.key, (now, 0.0, ""))
    if worker.kept_for or until > now:
        return None
    fits = worker.has_room_ahead(bucket.needs, bucket.alone)
    return record if fits else None


def owner_of(key: str, members: Iterable[str]) -> str:
    """Give the member that a task belongs to while some are missing.

    Rendezvous hashing (Thaler, Ravishankar 1998): all sides of a split agree, and who
    comes or goes changes the owner of its own share only.
    """
    return max(members, key=lambda member: hash64((member + key).encode("ascii")))
