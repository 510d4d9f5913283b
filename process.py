"""What the process of a role needs of its system: clock, log, environment, words.

Reason for this file beside comrade.py: a ghost is such a process too, and the two must
not import each other.

Rules. Knows nothing of tasks or the cluster. The only place that reads the clock that
decides (D4): CLOCK_BOOTTIME, which goes on through a suspend, where there is one.

Invariants. The log never stops its process: a disk that is full or hangs costs lines,
nothing else. A user's regex can't freeze the loop: a timer's signal interrupts `re`.
"""

import contextlib
import fcntl
import gc
import os
import re
import signal
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
VERSION = "1.0"  # of the program; the protocol's is in wire.py
SEARCH_S = 0.02  # of a user's regex on one command; then it counts as matching
AGAIN_S = 0.005  # Python drops an exception that a destructor was interrupted with
LOG_LINES_MAX = 1000  # that wait for the disk
LOG_CHARS_MAX = 10000  # of one: a traceback, with what a peer made of it
LOG_BYTES_MAX = 10 << 20  # then the log begins anew, the old one is kept as log.old
# But tab and newline; C1 and what reorders text too.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
SET_ASIDE_AT = 2  # looks at what is young, each after some 7000 new objects; of ten
MANY = 10000  # tasks more or less than before: some MiB may be free
QUIET_S = 1.0  # nothing changes, no long answer goes out: a list may want it until then
EXIT_DONE, EXIT_USAGE, EXIT_SYSTEM = 0, 100, 111
Given = TypeVar("Given")
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
    return time.clock_gettime(CLOCK)


class Limit:
    """Calls work within a time; a process has one, for it has one such signal."""

    def __init__(self) -> None:
        self._is_set = False
        self._is_on = False  # Python may call the handler a little late

    def __call__(self, seconds: float, work: Callable[..., Given], *args: Any) -> Given:
        """Call it; TimeoutError after that much of the processor (main thread).

        Not of the clock: a busy machine may take that from us, and the work isn't to
        blame. The signal interrupts Python code alone: what is called in C ends first.
        """
        if not self._is_set:
            signal.signal(signal.SIGVTALRM, self._on_alarm)
            self._is_set = True
        try:
            try:
                self._is_on = True
                signal.setitimer(signal.ITIMER_VIRTUAL, seconds, AGAIN_S)
                return work(*args)
            finally:
                self._is_on = False
        finally:  # also if one more came just then
            self._is_on = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _on_alarm(self, number: int, frame: Any) -> None:
        if self._is_on:
            raise TimeoutError("it takes too long")


within = Limit()


def search(regex: str, text: str) -> bool:
    """Do Python's `re.search`, within SEARCH_S."""
    try:
        return within(SEARCH_S, re.search, regex, text) is not None
    except (re.error, RecursionError, OverflowError):
        return True  # From a peer of another Python version; undecided.


def set_aside() -> None:
    """Keep Python from looking for garbage among what stays.

    Records don't form circles, and go as soon as nobody has them; but to look through a
    million of them is a pause of 0.3 s, again and again while they come. So what has
    survived is taken out, before a look at all of it is due.
    """
    if gc.get_count()[2] >= SET_ASIDE_AT:
        gc.collect(1)
        gc.freeze()


def trim() -> None:
    """Have the C library give back what is free in it, where that can be said."""
    try:
        import ctypes  # 0.6 MiB that most nodes never need

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, AttributeError, OSError):
        pass  # not glibc


class Spare:
    """What a long list took on its way in, and is free now, goes back to the system.

    glibc keeps it, 30 MiB after a million tasks, for the time when it is needed again.
    """

    def __init__(self, trim: Callable[[], None] = trim) -> None:
        self._trim = trim
        self._count = 0  # of tasks, when it was last given back
        self._quiet_at = 0.0

    def look(self, count: int, is_busy: bool, now: float) -> Optional[float]:
        """Give it back once all is quiet; give the time of the next look."""
        if is_busy:
            self._quiet_at = now + QUIET_S
        if abs(count - self._count) < MANY:
            return None
        if now >= self._quiet_at:
            self._count = count
            self._trim()
            return None
        return self._quiet_at


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
            at = time.strftime("%Y-%m-%d %H:%M:%S")
            self._lines.put("%s %s\n" % (at, harmless(text[:LOG_CHARS_MAX])))
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
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            fd = os.open(self.path, flags, 0o600)
            with open(fd, "a", encoding="utf-8", errors="replace") as file:
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


def traced() -> str:
    """Give the traceback of the exception that is being handled.

    What words it takes 0.3 MiB, so it is loaded for a bug only; where that can't be, as
    there is no descriptor left, the exception must do.
    """
    exception = sys.exc_info()
    try:
        import traceback
    except (ImportError, OSError):
        return repr(exception[1])
    return "".join(traceback.format_exception(*exception))


def say(text: str) -> None:
    """Tell the user something on stderr; one that takes nothing more stops nobody."""
    with contextlib.suppress(OSError):
        print("leoronic: " + harmless(text), file=sys.stderr, flush=True)


def show(text: str) -> bool:
    """Write what was asked for to stdout; say so, and give False, if that fails.

    Not by `print`: what stays in its buffer fails again, with a traceback, at the end.
    """
    try:
        os.write(1, text.encode("utf-8", "replace"))
    except BrokenPipeError:
        return False  # Whoever reads it has seen enough.
    except OSError as problem:
        say("stdout takes nothing; found: %s; see where it goes" % problem.strerror)
        return False
    return True


def harmless(text: str) -> str:
    """Escape what would disturb a terminal: names come from peers. Lines stay lines."""
    return CONTROLS.sub(lambda found: "\\x%02x" % ord(found.group()), text)


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
