"""Outputs of running tasks that outgrow the disk: their middle is dropped.

Reason for this file beside sandbox.py: how long an output may be is a rule of its own;
it needs neither processes nor shells.

Rules. No output may be larger than what is left free on its disk: so the loudest task
takes half of it, and the node's own writes (the queue!) find room. There is no setting,
and where there is room no limit. Beyond that an output keeps its first KEPT_BYTES, a
line that says what was dropped, and what comes then, until that is too long again.

How it works. Tasks append, so a file that is cut goes on at its new end. While tasks
run their outputs are looked at, in a thread: the loop waits for no disk. How soon again
follows from what is free: a look comes before half of it can be written.

Not done: limiting what tasks write elsewhere (README, "Security").
"""

import os
from typing import Callable, List, Optional

import machine

LOOK_S, LOOK_MOST_S = 1.0, 60.0  # between two looks
DISK_BYTES_S = 500 << 20  # no disk of an old computer takes more
KEPT_BYTES = 16 << 20  # of the beginning; shorter outputs are never cut
NOTE = (
    "\n[leoronic: at least %d bytes were dropped here: "
    "there was no more room on the disk of this node]\n"
)


class Excess:
    """Watches over outputs; `aside` runs a job in a thread."""

    def __init__(self, home: str, aside: Callable[[Callable[[], None]], None]) -> None:
        self._home = home
        self._aside = aside
        self._look_at: Optional[float] = None
        self._is_looking = False
        self._pause = LOOK_S

    def look(self, now: float, paths: List[str]) -> Optional[float]:
        """Look at the outputs of all that runs, if it is time; give the next time."""
        if not paths:
            self._look_at = None
        elif self._look_at is None:
            self._look_at = now + LOOK_S
        elif now >= self._look_at:
            self._look_at = now + self._pause
            if not self._is_looking:  # or the disk hangs
                self._is_looking = True
                self._aside(lambda: self._look_now(paths))
        return self._look_at

    def _look_now(self, paths: List[str]) -> None:
        free = self.cut_long_ones(paths)
        self._pause = max(LOOK_S, min(free / 2 / DISK_BYTES_S, LOOK_MOST_S))
        self._is_looking = False

    def cut_long_ones(self, paths: List[str]) -> int:
        """Cut what is too long, now, also of a run that is over; give what is free."""
        free = machine.free_disk(self._home)
        for path in paths:
            cut(path, max(2 * KEPT_BYTES, free))
        return free


def cut(path: str, most: int) -> None:
    """Drop what an output has behind its beginning, if it is longer than that."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        size = os.fstat(fd).st_size  # by now it may be another task's
        if size > most:
            os.ftruncate(fd, KEPT_BYTES)
            os.pwrite(fd, (NOTE % (size - KEPT_BYTES)).encode("ascii"), KEPT_BYTES)
    except OSError:
        pass  # a disk that fails: the end says so
    finally:
        os.close(fd)
