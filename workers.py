"""What one worker offers, what it holds, and what it lacks for a task, in words.

Reason for this file beside matching.py: all about one worker is one concern (a ghost
needs it too), choosing among many tasks another.

Rules. Pure (D6). Memory, disk in bytes. A node never commits more than it has: cores
and memory that its runs asked for are taken; of memory no more is free than the
node saw free, less what was granted since; of disk what running tasks asked for is
taken. While its runs are short, a node is granted a few *ahead* of its cores, which
begin as others end: to ask for the next one takes longer than such a run.

Invariant. The text of `lacks` and `busy_with` is the reason that users read; both are
empty exactly if the task fits.
"""

from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

import conditions
from record import LOSSES_ALONE, Needs, Phase, Record, Run

SHORT_S = 0.02  # a run of this length at most is short
SHORT_RUNS = 4  # so many, one behind the other, say that the next will be short, too
SHORT_RUNS_MOST = 4096  # the same where what was ahead comes back each time
AHEAD_S = 1.0  # for this long


class Worker:
    """What a worker offers, and what it holds (memory in bytes; see `Needs`)."""

    def __init__(self, writer: str, name: str, cores: int, memory: int) -> None:
        self.writer = writer
        self.name = name
        self.session = 0
        self.cores = cores
        self.memory = memory
        self.free_memory: Optional[int] = None  # None: LEORONIC_MEMORY says it all
        self.free_disk = 0
        self.holds: FrozenSet[str] = frozenset()  # `worker:` conditions that hold
        self.draining = False
        self.away = False  # suspect, or not reconciled: gets nothing new
        self.stuck = False  # its disk hangs: gets nothing new
        self.runs: Dict[str, Tuple[Needs, bool]] = {}  # by hold and release alone
        self.granted_since: int = 0  # bytes asked by runs younger than free_memory
        self.refused: Dict[str, Tuple[float, float, str]] = {}  # until, delay, why
        self.kept_for = ""  # the key of a big task that this worker is kept free for
        self._used = (0, 0, 0)
        self._lonely = 0  # runs that have the node for themselves
        self._short_runs = 0  # that ended here, one behind the other
        self._short_wanted = SHORT_RUNS  # before some go ahead
        self._ahead_until = float("-inf")

    def hold(self, run_key: str, needs: Needs, alone: bool) -> None:
        """Take a run."""
        self.release(run_key)
        self.runs[run_key] = (needs, alone)
        self.granted_since += needs.memory
        self._count(needs, alone, 1)

    def release(self, run_key: str) -> None:
        """Let go of a run, if it was here."""
        if run_key in self.runs:
            self._count(*self.runs.pop(run_key), -1)

    def _count(self, needs: Needs, alone: bool, sign: int) -> None:
        cores, memory, disk = self._used
        self._lonely += sign * alone
        self._used = (
            cores + sign * needs.cores,
            memory + sign * needs.memory,
            disk + sign * needs.disk,
        )

    def used(self) -> Tuple[int, int, int]:
        """Give cores, memory and disk that the runs here asked for."""
        return self._used

    def could_hold(self, needs: Needs, here: List[str]) -> bool:
        """Say whether it has the size and the conditions, busy or not."""
        return (
            needs.cores <= self.cores
            and needs.memory <= self.memory
            and self.holds.issuperset(here)
        )

    def lacks(self, needs: Needs) -> List[str]:
        """Say why such a task can't ever run here as things are; empty: it could."""
        found = [text for text in needs.conditions if is_unmet_here(text, self.holds)]
        if needs.cores > self.cores:
            found.append("cores: needs %d, it has %d" % (needs.cores, self.cores))
        if needs.memory > self.memory:
            found.append(sizes("memory", needs.memory, "it offers", self.memory))
        if needs.disk > self.free_disk:
            found.append(sizes("disk", needs.disk, "free", self.free_disk))
        return found

    def busy_with(self, needs: Needs, alone: bool) -> List[str]:
        """Say what such a task must wait for here now; empty: there is room."""
        cores, memory, disk = self.used()
        found = []
        if self.runs and alone:
            found.append(f"wants the node for itself: {tasks(len(self.runs))} there")
        if self._lonely:
            found.append("a task has the node for itself")
        if needs.cores > self.cores - cores:
            free = self.cores - cores
            found.append("cores: needs %d, %d free" % (needs.cores, max(free, 0)))
        return found + self._lacks_beside(needs, memory, disk)

    def _lacks_beside(self, needs: Needs, memory: int, disk: int) -> List[str]:
        found = []
        free = self.memory - memory
        if self.free_memory is not None:
            free = min(free, self.free_memory - self.granted_since)
        if needs.memory > free:
            found.append(sizes("memory", needs.memory, "free", free))
        if needs.disk > self.free_disk - disk:
            found.append(sizes("disk", needs.disk, "free", self.free_disk - disk))
        return found

    def note_end(self, run: Run) -> None:
        """Learn from a run that is over here whether the next may be short.

        Some nodes hand back all that is ahead: an older version, one without memfd.
        """
        if run.phase is Phase.ENDED and float(run.detail.get("took", 0.0)) <= SHORT_S:
            self._short_runs += 1
            return
        if run.phase is Phase.RETURNED and self._ahead_until > float("-inf"):
            self._short_wanted = min(2 * self._short_wanted, SHORT_RUNS_MOST)
        self._short_runs, self._ahead_until = 0, float("-inf")

    def is_quick(self, now: float) -> bool:
        """Say whether the last runs here were short ones."""
        return self._short_runs >= SHORT_RUNS or now < self._ahead_until

    def goes_ahead(self, now: float) -> bool:
        """Say whether runs here are so short that some may go ahead of its cores."""
        if now < self._ahead_until and self._short_runs >= SHORT_RUNS:
            self._short_wanted = SHORT_RUNS
        if self._short_runs >= self._short_wanted:
            self._short_runs, self._ahead_until = 0, now + AHEAD_S
        return now < self._ahead_until

    def has_room_ahead(self, needs: Needs, alone: bool) -> bool:
        """Say whether one that goes ahead has room for such a task ahead of a core."""
        _, memory, disk = self.used()
        kinds = [*self.runs.values(), (needs, alone)]
        return (
            not self.takes_nothing()
            and fits_ahead(kinds, self.cores)
            and not (needs.files or needs.conditions)
            and not self.lacks(needs)
            and not self._lacks_beside(needs, memory, disk)
        )

    def why_not(self, record: Record, now: float) -> List[str]:
        """Say all that keeps a waiting task from here now; empty: it fits."""
        needs = record.needs
        found = self.lacks(needs) or self.busy_with(needs, is_lonely(record))
        if self.draining:
            found.insert(0, "it is draining")
        if self.away:
            found.insert(0, "what is free there is being looked at")
        if self.stuck:
            found.insert(0, "its disk doesn't answer")
        until, _, why = self.refused.get(record.key, (0.0, 0.0, ""))
        if until > now:
            left = max(until - now, 1)
            found.append("refused it (%s); asked again in %.0f s" % (why, left))
        if self.kept_for not in ("", record.key):
            found.append("is kept free for a bigger task that has waited longer")
        return found

    def takes_nothing(self) -> bool:
        """Say whether it gets nothing new, whatever room it has."""
        return self.draining or self.away or self.stuck

    def is_full(self) -> bool:
        """Say whether no task at all fits, without looking at any."""
        return self.takes_nothing() or self.cores <= self._used[0] or bool(self._lonely)


def fits_ahead(kinds: List[Tuple[Needs, bool]], cores: int) -> bool:
    """Say whether so many cores may hold these runs (needs, alone), some ahead."""
    return len(kinds) <= 2 * cores and all(
        needs.cores == 1 and not alone for needs, alone in kinds
    )


class Why(NamedTuple):
    """A line of leoronic_why: a condition or a worker, whether it is met, and how."""

    subject: str
    is_met: bool
    text: str


def is_lonely(record: Record) -> bool:
    """Say whether a task gets its node for itself (DESIGN 4: also after two losses)."""
    if not record.needs.concurrency:
        return True
    may_be = len(record.runs) >= LOSSES_ALONE  # else it isn't worth a look
    return may_be and len(record.attempts(Phase.LOST)) >= LOSSES_ALONE


def is_unmet_here(text: str, holds: FrozenSet[str]) -> bool:
    """Say whether a condition is a `worker:` one that doesn't hold there."""
    return text not in holds and conditions.is_worker(conditions.unwire(text))


def sizes(what: str, needed: int, word: str, found: int) -> str:
    """Say how much is needed and found, in MiB."""
    mib = 1048576.0
    return f"{what}: needs {needed / mib:.1f} MiB, {max(found, 0) / mib:.1f} MiB {word}"


def tasks(n: int) -> str:
    """Count tasks in words."""
    return "1 task" if n == 1 else "%d tasks" % n
