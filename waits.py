"""What waiting tasks wait for in the queue itself: its `queue:` conditions.

Reason for this file beside matching.py: counting what a condition waits for is one
concern, giving tasks to workers another.

Rules. Pure (D6): `search(regex, command)` is passed in and raises TimeoutError when it
takes too long: undecided counts as matching, for it is better to wait too long than
too short. Knows buckets by number only; `offer(numbers)` asks to look at them again.

How it works. Each distinct condition is a `Watch`: the tasks it waits for, a set. New
ones read the queue in slices (`scan`). A change of a record corrects the sets of all
watches with a REGEX and of the one that waits for that very task. When a set shrinks to
one task or none its buckets are offered: a task doesn't wait for itself ("all other").
`queue:is_first` needs only the oldest unfinished task.

Invariant. A watch's set is what a search of the whole queue would find, once scanned.
"""

from heapq import heappop, heappush
from itertools import islice
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import conditions
from record import UNFINISHED, Record, State
from taskqueue import Queue
from workers import Why, tasks

SLOW_SEARCHES_MAX = 3  # a regex that is too slow more often counts as matching all
SCAN_SLICE = 2000  # searches for a new condition in one turn of the loop (< 20 ms)
SPARE = 64  # entries of a heap that may be stale beyond as many as are valid
SHOWN_OF_MANY = 100  # tasks among which `why` seeks the oldest to name
IS_FIRST = "queue:is_first"

Search = Callable[[str, str], bool]  # raises TimeoutError when it takes too long


class Watch:
    """One distinct `queue:` condition: the keys of the tasks it waits for."""

    def __init__(self, condition: conditions.Condition) -> None:
        self.condition = condition
        self.wants_ok = condition.verb == "queue:all_with_cmd_ok"
        self.is_for_one = condition.verb == "queue:done"
        self.keys: Set[str] = set()
        self.buckets: Set[int] = set()
        self.scan: Optional[Iterator[Record]] = None
        self.slow = 0

    def waits_for(self, record: Record) -> bool:
        """Say whether a task that matches is one to wait for."""
        if self.wants_ok:
            return record.state is not State.DONE
        return record.state in UNFINISHED


class Waits:
    """All distinct `queue:` conditions that waiting tasks have."""

    def __init__(
        self, queue: Queue, search: Search, offer: Callable[[Iterable[int]], None]
    ) -> None:
        self.queue = queue
        self.search = search
        self.offer = offer
        self.watches: Dict[str, Watch] = {}
        self.searching: Dict[str, Watch] = {}  # those of them with a REGEX
        self.oldest: List[Record] = []  # heap of the unfinished
        self._purged = queue.purged.hash  # as it was when last looked at

    def add(self, text: str, number: int) -> Watch:
        """Let a bucket wait for a condition."""
        watch = self.watches.get(text)
        if watch is None:
            watch = self.watches[text] = self._new_watch(conditions.unwire(text))
            if not watch.is_for_one:
                self.searching[text] = watch
        watch.buckets.add(number)
        return watch

    def remove(self, watch: Watch, number: int) -> None:
        """Let a bucket wait no longer; a watch without buckets is dropped."""
        watch.buckets.discard(number)
        if not watch.buckets:
            text = conditions.wire(watch.condition)
            del self.watches[text]
            self.searching.pop(text, None)

    def on_change(
        self, record: Record, old: Optional[State], new: Optional[State]
    ) -> None:
        """Follow one change of the queue."""
        if new in UNFINISHED and old not in UNFINISHED:
            heappush(self.oldest, record)
            if len(self.oldest) > 2 * self.queue.unfinished() + SPARE:
                self.oldest = sorted(r for r in self.oldest if self._is_unfinished(r))
        if old is not new and self.watches:
            is_new = old not in UNFINISHED
            self._tell_watches(record, is_new, gone=new is None)

    def let_through(
        self, watches: Sequence[Watch], is_first: bool
    ) -> Tuple[bool, Optional[str]]:
        """Say whether these conditions are met for some task: any (None) or one key."""
        only: Optional[str] = None
        if is_first:
            first = self.first()
            only = first.key if first is not None else None
        for watch in watches:
            if watch.scan is not None or len(watch.keys) > 1:
                return False, None
            for key in watch.keys:
                if only not in (None, key):
                    return False, None
                only = key
        return True, only

    def is_scanning(self) -> bool:
        """Say whether new conditions are still being compared with the queue."""
        return any(watch.scan is not None for watch in self.watches.values())

    def scan(self) -> bool:
        """Go on reading the queue for new conditions; say whether more is to do."""
        if self._purged != self.queue.purged.hash:
            self._purged = self.queue.purged.hash
            self._heed_purged()
        left = SCAN_SLICE
        for watch in [w for w in self.watches.values() if w.scan is not None]:
            assert watch.scan is not None
            for record in watch.scan:
                if self.is_there(record) and watch.waits_for(record):
                    if self._matches(watch, record):
                        watch.keys.add(record.key)
                left -= 1
                if left == 0:
                    return True
            watch.scan = None
            self.offer(sorted(watch.buckets))
        return False

    def _heed_purged(self) -> None:
        """End waiting for tasks that are purged and never were here."""
        for watch in list(self.watches.values()):
            key = watch.condition.argument
            if watch.is_for_one and key in watch.keys:
                if key not in self.queue.records and self.queue.purged.covers(key):
                    watch.keys.clear()
                    self.offer(sorted(watch.buckets))

    def _new_watch(self, condition: conditions.Condition) -> Watch:
        watch = Watch(condition)
        if watch.is_for_one:
            record = self.queue.records.get(condition.argument)
            if record is None:
                # Not here yet, or purged, which is complete.
                if not self.queue.purged.covers(condition.argument):
                    watch.keys.add(condition.argument)
            elif watch.waits_for(record):
                watch.keys.add(record.key)
        else:
            watch.scan = self._all_records()
        return watch

    def _all_records(self) -> Iterator[Record]:
        # A generator: the list is made when its turn comes, not for all conditions.
        yield from list(self.queue.records.values())

    def _tell_watches(self, record: Record, is_new: bool, gone: bool) -> None:
        one = self.watches.get("queue:done " + record.key)
        for watch in [*self.searching.values(), *([one] if one else ())]:
            before = len(watch.keys)
            if gone or not watch.waits_for(record):
                watch.keys.discard(record.key)
            elif is_new and (watch.is_for_one or self._matches(watch, record)):
                watch.keys.add(record.key)
            if len(watch.keys) != before and len(watch.keys) <= 1:
                self.offer(sorted(watch.buckets))

    def _matches(self, watch: Watch, record: Record) -> bool:
        if watch.slow >= SLOW_SEARCHES_MAX:
            return True
        try:
            return self.search(watch.condition.argument, record.command)
        except TimeoutError:
            # Undecided counts as matching: it waits too long rather than too short.
            watch.slow += 1
            return True

    def first(self) -> Optional[Record]:
        """Give the oldest task that isn't complete."""
        heap = self.oldest
        while heap and not self._is_unfinished(heap[0]):
            heappop(heap)
        return heap[0] if heap else None

    def is_there(self, record: Record) -> bool:
        """Say whether this very object is what the queue has."""
        return self.queue.records.get(record.key) is record

    def _is_unfinished(self, record: Record) -> bool:
        return record.state in UNFINISHED and self.is_there(record)

    def why(self, record: Record, text: str) -> Optional[Why]:
        condition = conditions.unwire(text)
        if condition.verb == "queue:is_first":
            first = self.first()
            if first is None or first is record:
                return Why(text, True, "all older tasks are complete")
            return Why(text, False, f"{first.shown} is older and not complete")
        watch = self.watches.get(text)
        if watch is None:
            return None
        if watch.scan is not None:
            return Why(text, False, "the queue is still being searched")
        count = len(watch.keys) - (record.key in watch.keys)
        if not count:
            return Why(text, True, "met")
        keys = [key for key in islice(watch.keys, SHOWN_OF_MANY) if key != record.key]
        known = [self.queue.records[key] for key in keys if key in self.queue.records]
        shown = min(known).shown if known else min(keys)
        slow = "; the regex is too slow, it counts as matching" if watch.slow else ""
        return Why(text, False, f"{tasks(count)} to go, such as {shown}{slow}")
