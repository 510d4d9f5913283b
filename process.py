"""What the process of a role needs of its system: clock, log, environment, words.

Reason for this file beside comrade.py: a ghost is such a process too, and the two must
not import each other.

Rules. Knows nothing of tasks or the cluster. The only place that reads the clock that
decides (D4): CLOCK_BOOTTIME, which goes on through a suspend, where there is one.

Invariants. The log never stops its process: a disk that is full or hangs costs lines,
nothing else. A user's regex can't freeze the loop: a timer's signal interrupts `re`.
"""

import fcntl
import os
import re
import signal
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any, Dict, Optional, Tuple

SEARCH_S = 0.02  # of a user's regex on one command; then it counts as matching
LOG_LINES_MAX = 1000  # that wait for the disk
LOG_BYTES_MAX = 10 << 20  # then the log begins anew, the old one is kept as log.old
EXIT_DONE, EXIT_USAGE, EXIT_SYSTEM = 0, 100, 111
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_S = 1.9  # CONTRACT: exit 0 within 2 s of a signal
CLOSE_S = 0.5  # a disk that hangs doesn't keep the process from ending


class Quit(Exception):
    """The program can't go on; the text is for the user, `code` is the exit."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def clock() -> float:
    """Give the seconds since boot, suspend included where the system counts it (D4)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Search:
    """Python's `re.search` with a time limit: a signal interrupts it (main thread)."""

    def __init__(self) -> None:
        self._is_on = False  # Python may call the handler a little late
        signal.signal(signal.SIGALRM, self._on_alarm)

    def __call__(self, regex: str, text: str) -> bool:
        try:
            self._is_on = True
            signal.setitimer(signal.ITIMER_REAL, SEARCH_S)
            try:
                return re.search(regex, text) is not None
            finally:
                self._is_on = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (re.error, RecursionError, OverflowError):
            return True  # From a peer of another Python version; undecided.

    def _on_alarm(self, number: int, frame: Any) -> None:
        if self._is_on:
            raise TimeoutError("the regex takes too long")


class LogFile:
    """The node's log: a line with a date each, begun anew at `bytes_max`.

    A thread of its own writes it, from the first line on. A comrade and its relay write
    one log: which of them begins it anew, and no line is lost by that, a lock on the
    file decides. Log and log.old are a little more than twice `bytes_max` at most.
    """

    def __init__(self, path: str, bytes_max: int = LOG_BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._former = (0, 0)  # the file that the last line went to
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._thread: Optional[threading.Thread] = None

    def write(self, text: str) -> None:
        """Have a line appended; too many that a hanging disk doesn't take are lost."""
        if self._lines.qsize() < LOG_LINES_MAX:
            self._lines.put("%s %s\n" % (time.strftime("%Y-%m-%d %H:%M:%S"), text))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def close(self, wait_s: float) -> None:
        """Wait until all is written, for so long; after it nothing more is."""
        if self._thread is not None:
            self._lines.put("")
            self._thread.join(wait_s)

    def _work(self) -> None:
        for line in iter(self._lines.get, ""):
            self._append(line)

    def _append(self, line: str) -> None:
        try:
            with open(self.path, "a", encoding="utf-8", errors="replace") as file:
                file.write(line)
                is_long = file.tell() > self._bytes_max
                self._take_along(file.fileno())
                if is_long:
                    self._begin_anew(file.fileno())
        except OSError:
            pass

    def _take_along(self, fd: int) -> None:
        """Let stdout and stderr follow that went to the former log (--background)."""
        former, self._former = self._former, _identity(fd)
        for standard in (1, 2):
            if former != self._former and _identity(standard) == former:
                os.dup2(fd, standard)

    def _begin_anew(self, fd: int) -> None:
        """Move this file away, unless the other process has done that meanwhile.

        Else a log that has just begun would take the place of a full log.old.
        """
        fcntl.flock(fd, fcntl.LOCK_EX)  # gone with the descriptor
        found = os.stat(self.path)
        if (found.st_dev, found.st_ino) == _identity(fd):
            os.replace(self.path, self.path + ".old")


def _identity(fd: int) -> Tuple[int, int]:
    """Tell an open file from all others."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def say(text: str) -> None:
    """Tell the user something on stderr."""
    print("leoronic: " + text, file=sys.stderr, flush=True)


def task_environ(home: str) -> Dict[str, str]:
    """Give the environment that this node was started with, for its tasks.

    Python in the C locale puts LC_CTYPE there by itself (PEP 538): it isn't the user's.
    """
    environ = dict(os.environ, LEORONIC_HOME=home)
    try:
        with open("/proc/self/environ", "rb") as file:
            given = file.read().split(b"\0")
    except OSError:
        return environ
    if not any(item.startswith(b"LC_CTYPE=") for item in given):
        environ.pop("LC_CTYPE", None)
    return environ


def reap_inherited() -> None:
    """Wait for the launcher's children, which are ours since it became this process."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except OSError:
        pass  # there are none
