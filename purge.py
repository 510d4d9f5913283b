"""When tasks that are over are forgotten, so that the queue doesn't grow for ever.

Reason for this file beside coordinator.py: it is the one decision that takes something
away for good; when it may be taken should be read in one place.

Rules. Pure (D6). A coordinator's decision, taken while nobody's copy differs from ours.
Ages are hours of *counted uptime*, never of a wall clock (D4): a dead CMOS battery must
not forget anybody's results. The count is kept in memory and written only together
with something else (D5); a crash loses some of it, which only forgets later.

How it works. Each node stamps a record with its own count when it sees it finished
(`over_at`, on this disk only). Once an hour the coordinator goes through the queue, a
slice a turn, and purges what was over for KEEP_H, or for LEAST_H where more than MOST
are kept. PURGED (taskqueue.py) tells everybody, also those who come back in a year.

Invariants. L9: what is over is forgotten in the end. S9: only what is over is purged.
What is purged is on disk as PURGED in the very batch that drops its rows (durable.py).
"""

from itertools import islice
from typing import Iterator, Optional

from record import UNFINISHED, Record, State
from taskqueue import Queue

HOUR_S = 3600.0
KEEP_H = 30 * 24  # what is over is kept so long
LEAST_H = 24  # and never less than this, however many there are
MOST = 2000000  # finished tasks kept
SLICE = 2000  # records looked at in one turn of the loop (some ms)


class Purge:
    """The purging of one node, while it coordinates."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.before = 0  # hours counted by former processes
        self.hours = 0  # counted so far
        self._began: Optional[float] = None
        self._looked = 0  # the hour of the last look
        self._scan: Optional[Iterator[str]] = None

    def begin(self, hours: int, now: float) -> None:
        """Go on counting; what has no stamp yet was finished by now."""
        self.before = self.hours = self._looked = hours
        self._began = now
        for record in self.queue.records.values():
            self.note(record)

    def note(self, record: Record) -> None:
        """Stamp a record that is over, or take the stamp from one that isn't."""
        if record.state in UNFINISHED:
            if record.over_at >= 0:
                record.over_at = -1
        elif record.over_at < 0:
            record.over_at = self.hours

    def count(self, now: float) -> None:
        """Count the time."""
        if self._began is not None:
            self.hours = self.before + int((now - self._began) / HOUR_S)

    def is_due(self) -> bool:
        """Say whether there is something to look at, if this node may."""
        return self._scan is not None or self.hours > self._looked

    def look(self) -> bool:
        """Purge what may be forgotten, a slice; say whether more is to be looked at."""
        if self._scan is None:
            self._looked = self.hours
            self._scan = iter(list(self.queue.records))
        keys = list(islice(self._scan, SLICE))
        if not keys:
            self._scan = None
        counts = self.queue.counts
        over = sum(n for state, n in counts.items() if state not in UNFINISHED)
        spare = over - MOST
        for key in keys:
            record = self.queue.records.get(key)
            if record is not None and self._is_old(record, spare > 0):
                self.queue.purge([key])
                spare -= 1
        return self._scan is not None

    def _is_old(self, record: Record, are_many: bool) -> bool:
        if record.state in UNFINISHED or record.over_at < 0:
            return False
        return self.hours - record.over_at >= (LEAST_H if are_many else KEEP_H)

    def deadline(self) -> Optional[float]:
        """Give the time of the next look, if anything is over."""
        counts = self.queue.counts
        if self._began is None or not any(counts[s] for s in OVER):
            return None
        return self._began + (self.hours - self.before + 1) * HOUR_S


OVER = frozenset(State) - UNFINISHED
