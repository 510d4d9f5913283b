"""Probation: a worker on which tasks fail at once that end well elsewhere.

Reason for this file beside matching.py: whom a coordinator trusts is a concern of its
own, and must be readable in one place.

Rules. Pure (D6). Sees ends and picks, knows no task. Nobody is slowed for what fails
everywhere, nor where there is nobody else: then it is the tasks.

How it works. One broken machine that fails all it gets in no time is always free, and
so would eat the queue (HTCondor's users call it a black hole). A worker whose last
STREAK runs all ended badly within QUICK_S is *in doubt* while some other hasn't failed
as often: it gets one task each DOUBT_S, until it shows who is to blame. Once as many
have ended well elsewhere it is *on probation*: a task after FIRST_S, then after twice
as long, up to MOST_S. The first that ends well, or takes its time, is the end of it.

Invariant. Whoever is slowed still gets tasks, one at a time, for ever.
"""

from typing import Dict, Optional

STREAK = 5  # runs that failed at once, one behind the other
QUICK_S = 5.0  # a run that took longer has at least begun to work
DOUBT_S = 1.0  # between two tasks, while it isn't known whose fault it is
FIRST_S, MOST_S = 10.0, 600.0  # between two tasks, on probation


class Conduct:
    """How the last runs of one worker ended."""

    __slots__ = ("bad", "delay", "elsewhere", "good", "next_at")

    def __init__(self) -> None:
        self.good = 0  # all that ended well here
        self.bad = 0  # that failed at once since the last one that didn't
        self.elsewhere = 0  # what had ended well at others when that began
        self.delay = 0.0
        self.next_at: Optional[float] = None  # of the next task, on probation


class Probation:
    """The conduct of all workers, as one node has seen it since its start."""

    def __init__(self) -> None:
        self._known: Dict[str, Conduct] = {}
        self._good = 0

    def know(self, writer: str) -> None:
        """Count a worker among those whose tasks may end well."""
        self._known.setdefault(writer, Conduct())

    def note(self, writer: str, is_good: bool, took: float) -> None:
        """Take the end of a run."""
        self.know(writer)
        conduct = self._known[writer]
        if is_good:
            self._good += 1
            conduct.good += 1
        if is_good or took > QUICK_S:
            conduct.bad, conduct.delay, conduct.next_at = 0, 0.0, None
            return
        if not conduct.bad:
            conduct.elsewhere = self._good - conduct.good
        conduct.bad += 1

    def forget(self, writer: str) -> None:
        """Drop what is known of a worker that is gone."""
        conduct = self._known.pop(writer, None)
        if conduct is not None:
            self._good -= conduct.good

    def failures(self, writer: str) -> int:
        """Give how many failed at once, if that is probation; else 0."""
        conduct = self._known.get(writer)
        if conduct is None or conduct.bad < STREAK:
            return 0
        elsewhere = self._good - conduct.good - conduct.elsewhere
        return conduct.bad if elsewhere >= STREAK else 0

    def has_failed(self, writer: str) -> bool:
        """Say whether the last that is known to have ended there failed at once."""
        conduct = self._known.get(writer)
        return conduct is not None and conduct.bad > 0

    def _is_slowed(self, writer: str) -> bool:
        conduct = self._known.get(writer)
        if conduct is None or conduct.bad < STREAK:
            return False
        others = (each for each in self._known.values() if each is not conduct)
        return any(each.bad < STREAK for each in others)

    def may_have(self, writer: str, is_idle: bool, now: float) -> bool:
        """Say whether a worker may get a task now."""
        if not self._is_slowed(writer):
            return True
        conduct = self._known[writer]
        if conduct.next_at is None:
            self._put_off(writer, now)
        return is_idle and conduct.next_at is not None and now >= conduct.next_at

    def picked(self, writer: str, now: float) -> None:
        """Note that a worker gets a task."""
        if self._is_slowed(writer):
            self._put_off(writer, now)

    def _put_off(self, writer: str, now: float) -> None:
        conduct = self._known[writer]
        if self.failures(writer):
            conduct.delay = min(max(2 * conduct.delay, FIRST_S), MOST_S)
        else:
            conduct.delay = DOUBT_S
        conduct.next_at = now + conduct.delay

    def deadline(self, now: float) -> Optional[float]:
        """Give the time when the next of those on probation may have a task."""
        times = [c.next_at for c in self._known.values() if c.next_at is not None]
        return min((at for at in times if at > now), default=None)
