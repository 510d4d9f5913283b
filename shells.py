"""The shells that tasks run in, seen from the node: keepers, their watcher, the pool.

Reason for this file beside sandbox.py: this is the seam where warm shells come in; what
a run is, and when it is over, is sandbox.py's.

Rules: knows of scripts and statuses, not of runs; keeper.py tells what these shells are
and do, taskscript.py what they are fed, slots.py how, and where they print. What
touches the disk of the state directory is done `aside`, in a thread: one that hangs
holds up its tasks, never the loop.

How it works: `Shells.lend` gives an idle keeper, or starts one; a keeper that is up is
fed a `task_script`. What keepers report arrives as calls of the functions that
the pool was made with. A keeper that is released waits for the next task, unless there
are more of them than cores, or something is wrong with it.

Invariants:
1. A keeper that has ended, or whose watcher has, gets no other task.
2. Descriptors of a keeper are closed aside too, behind whatever still uses them.
3. A word is one byte, for the keeper or back for the node, never both. At most one is
   ahead of the keeper's task, and no other is written behind that.
4. The keeper reports what has ended before it reads the next word. Whether that was a
   clean end it decides alone; if not (`left`) it drops words until the node's g, which
   comes with the first that is not ahead.
"""

import os
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import keeper as script
from keeper import Process, carries, living
from slots import Slot, new_file, remove
from taskscript import SLOTS, split_environ

Watch = Callable[[int, Callable[[], None]], None]
Unwatch = Callable[[int], None]
Aside = Callable[[Callable[[], Any], Callable[[Any], None]], None]

PIPE_BYTES = 64 * 1024  # what a pipe holds at most
CLOSE_S, CLOSE_PAUSE_S = 1.0, 0.005  # the watcher has this long to kill all below it
CHECK_PAUSE_S = 0.01  # between two looks at the working directory for tasks ahead
IDLE_KEEPERS_MAX = os.cpu_count() or 1


def tried(job: Callable[[], None]) -> str:
    """Do what belongs to a start, aside; tell why it can't be done."""
    try:
        job()
    except OSError as error:
        return f"it can't be started: {error.strerror}"
    return ""


class Keeper:
    """One keeper, seen from the node. All but `read_reports` expects it to be up.

    `make`, `was_signalled` and `close` are to be called aside.
    """

    def __init__(self, base: str) -> None:
        """Know how the names of its files begin."""
        self.base = base
        self.slots = [Slot(base, number) for number in range(SLOTS)]
        self.pid = 0  # until it is up
        self.is_watched = False  # for reports
        self.is_lost = False  # its shell has ended
        self.is_last = False  # it is not to be used again
        self.is_held = False  # it waits to be told that its last task is over
        self._partial = b""  # a report that is not complete
        self._children = -1
        self._fds: Dict[str, int] = {}

    def make(self) -> None:
        """Make its files; then it can be started."""
        for name in ("do", "did"):
            os.mkfifo(f"{self.base}.{name}", 0o600)
        # RDWR: neither end waits for the other
        self._fds["do"] = os.open(self.base + ".do", os.O_RDWR | os.O_NONBLOCK)
        self._fds["notes"] = new_file(self.base + ".notes")
        for slot in self.slots:
            slot.make()
        self._fds["did"] = os.open(self.base + ".did", os.O_RDONLY | os.O_NONBLOCK)

    def fileno(self) -> int:
        """What becomes readable when there are reports."""
        return self._fds["did"]

    def read_reports(self) -> List[bytes]:
        """Lines: `up PID`, `ended STATUS`, `left STATUS`, and `! WHY` at its own end.

        All that are there: what it told before it took a word is among them.
        """
        try:
            data = os.read(self._fds["did"], PIPE_BYTES)
        except BlockingIOError:
            return []
        *lines, self._partial = (self._partial + data).split(b"\n")
        return lines if data else [b"! its shell could not be started"]

    def come_up(self, pid: int) -> None:
        self.pid = pid
        try:  # kept open: one system call tells whether anything is left
            self._children = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY)
        except OSError:  # a system without it
            self._children = -1

    def may_have_children(self) -> bool:
        """False if nothing is below it; True if something is, or that can't be told."""
        try:
            return self._children < 0 or bool(os.pread(self._children, 1, 0))
        except OSError:
            return True

    def free_slot(self) -> Optional[Slot]:
        """One that can be loaded; if it is idle it has one."""
        free = [slot for slot in self.slots if not slot.is_busy and not slot.is_last]
        return free[0] if free else None

    def takes_ahead(self) -> bool:
        """Whether it can be given a task behind the one that runs."""
        is_fit = bool(self.pid) and not self.is_last and self.slots[0].is_quick
        return is_fit and self.free_slot() is not None

    def go(self, slot: Slot) -> None:
        """Let it run what was loaded, now or once what runs is over."""
        os.write(self._fds["do"], b"g" + slot.word if self.is_held else slot.word)
        self.is_held = False

    def take_back(self) -> bool:
        """Take back the last word, which was ahead; False if the keeper has it.

        What comes along was written before that, and goes back to the keeper.
        """
        try:
            words = os.read(self._fds["do"], PIPE_BYTES)
        except BlockingIOError:
            return False
        os.write(self._fds["do"], words[:-1])
        return True

    def live_path(self, slot: Slot, name: str) -> Optional[str]:
        """Where its task's output gathers, unless it may be a former task's."""
        is_own = slot.is_cut or self.may_have_children()
        return slot.output_path(name) if is_own else None

    def was_signalled(self) -> bool:
        """Whether bash noted that its task died of a signal."""
        noted = os.fstat(self._fds["notes"]).st_size > 0
        os.ftruncate(self._fds["notes"], 0)
        return noted

    def close(self) -> None:
        """Close and remove all that is its own. If it is idle, it ends by that."""
        for fd in [*self._fds.values(), self._children]:
            if fd >= 0:
                os.close(fd)
        for slot in self.slots:
            slot.close()
        for name in ("do", "did", "notes"):
            remove(f"{self.base}.{name}")


def spawn(
    argv: List[str],
    environ: Mapping[str, str],
    stdin: int,
    stdout: int,
    is_group: bool = False,
) -> int:
    """Start a program without forking Python, as a process group if asked."""
    if sys.version_info < (3, 8):
        import subprocess

        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            env=dict(environ),
            start_new_session=is_group,
        )
        process.returncode = 0  # it is ours to wait for
        return process.pid
    duplicate = os.POSIX_SPAWN_DUP2  # novm
    actions = [(duplicate, stdin, 0), (duplicate, stdout, 1)]
    start = os.posix_spawnp  # novm
    if is_group:
        return start(argv[0], argv, environ, file_actions=actions, setpgroup=0)
    return start(argv[0], argv, environ, file_actions=actions)


class Watcher:
    """The parent of all keepers, seen from the node; their files are in `runs`."""

    def __init__(
        self,
        runs: str,
        directory: str,
        umask: int,
        bash: str,
        environ: Mapping[str, str],
        nice: int = 0,
    ) -> None:
        plain = split_environ(environ)[0].items()
        self._environ = [os.fsencode(f"{name}={value}\0") for name, value in plain]
        self._runs = runs
        python = sys.executable or "python3"
        argv = [python, "-I", "-S", os.path.abspath(script.__file__)]
        orders, self._orders = os.pipe()
        self._life, life = os.pipe()  # carries nothing; EOF when the watcher has ended
        try:
            argv += [runs, directory, str(umask), bash, str(nice), "watcher"]
            self.pid = spawn(argv, environ, orders, life)
        finally:
            os.close(orders)
            os.close(life)

    def fileno(self) -> int:
        """What becomes readable when the watcher has ended, which only a task does."""
        return self._life

    def prepare(self, keeper: Keeper) -> None:
        """Make what a keeper's shell needs, aside."""
        keeper.make()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(self._runs + "/environ", flags, 0o600), "wb") as file:
            file.writelines(self._environ)

    def ask(self, keeper: Keeper) -> None:
        """Let it start the shell of a keeper."""
        os.write(self._orders, os.path.basename(keeper.base).encode() + b"\n")

    def close(self) -> None:
        """Let it kill all below it and end; waits for that, but not for long."""
        os.close(self._orders)
        os.close(self._life)
        deadline = time.monotonic() + CLOSE_S
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(CLOSE_PAUSE_S)

    def _has_ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return True


class Told(NamedTuple):
    """What is called with what a keeper that is lent tells."""

    made: Callable[[Keeper], None]  # the disk has its files; its shell comes next
    up: Callable[[Keeper], None]
    ended: Callable[[Keeper, int, bool], None]  # status; whether it must look itself
    lost: Callable[[Keeper, str], None]  # it has ended, or never came up, and why


class Shells:
    """All keepers of a node. Its watcher is started with the first one."""

    def __init__(
        self,
        start_watcher: Callable[[], Watcher],
        base: str,
        directory: str,
        loop: Tuple[Watch, Unwatch, Aside],
        told: Told,
    ) -> None:
        self._start_watcher = start_watcher
        self._base = base  # how the names of all files begin
        self._directory = directory
        self._watch, self._unwatch, self._aside = loop
        self._told = told
        self._watcher: Optional[Watcher] = None
        self._keepers: List[Keeper] = []
        self._idle: List[Keeper] = []
        self._directory_id = (0, 0)
        self._check_at = 0.0  # then it is looked at again for a task ahead
        self._made = 0  # keepers, ever
        self._off: Optional[int] = None  # a core that isn't for tasks

    def lend(self) -> Keeper:
        """An idle keeper, else a new one, which isn't up yet; or OSError."""
        self.check_directory()
        if self._idle:
            return self._idle.pop()
        if not self._watcher:
            self._watcher = self._start_watcher()
            self._watch(self._watcher.fileno(), self._on_watcher_end)
            self.keep_off(self._off)
        self._made += 1
        keeper = Keeper(f"{self._base}-{self._made}")
        self._keepers.append(keeper)
        watcher = self._watcher
        self._aside(
            lambda: tried(lambda: watcher.prepare(keeper)),
            lambda why: self._on_made(keeper, why),
        )
        return keeper

    def _on_made(self, keeper: Keeper, why: str) -> None:
        if keeper.is_lost:
            return  # it took too long, or its watcher has ended
        if why or not self._watcher:
            self.lose(keeper, why)
            return
        keeper.is_watched = True
        self._watch(keeper.fileno(), lambda: self.hear(keeper))
        self._told.made(keeper)
        self._watcher.ask(keeper)

    def keep_off(self, core: Optional[int]) -> None:
        """Let what starts from now on use all cores but this one; None: all."""
        if core is None is self._off or not hasattr(os, "sched_setaffinity"):
            return
        self._off = core
        cores = os.sched_getaffinity(0) - {core}
        pids = [keeper.pid for keeper in self._keepers if keeper.pid]
        for pid in [*([self._watcher.pid] if self._watcher else []), *pids]:
            try:
                os.sched_setaffinity(pid, cores)
            except OSError:
                pass  # it has just ended

    def release(self, keeper: Keeper) -> None:
        """Keep it for the next task, or give it up."""
        keeper.is_last |= any(slot.is_last for slot in keeper.slots)
        if keeper.pid and not keeper.is_last and len(self._idle) < IDLE_KEEPERS_MAX:
            self._idle.append(keeper)
            return
        self._keepers.remove(keeper)
        self._close(keeper)

    def _close(self, keeper: Keeper) -> None:
        self._listen_no_more(keeper)
        self._aside(keeper.close, lambda _: None)

    def _listen_no_more(self, keeper: Keeper) -> None:
        if keeper.is_watched:
            keeper.is_watched = False
            self._unwatch(keeper.fileno())

    def lose(self, keeper: Keeper, why: str) -> None:
        """It has ended, or doesn't come up."""
        keeper.is_lost = keeper.is_last = True
        self._listen_no_more(keeper)
        if keeper in self._idle:
            self._idle.remove(keeper)
            self.release(keeper)
        else:
            self._told.lost(keeper, why)

    def strays(
        self, keeper: Keeper, mark: bytes, known: Mapping[int, Process]
    ) -> Optional[List[int]]:
        """What is left below a keeper that was lost; None if that can't be told yet.

        The watcher's children are keepers, or were left by keepers. Where the watcher
        was killed too, what stayed in the session or carries the mark is still found.
        """
        if not all(other.pid or other.is_lost for other in self._keepers):
            return None  # what is new below the watcher may be a keeper on its way
        keepers = {other.pid for other in self._keepers if not other.is_lost}
        watcher = self._watcher.pid if self._watcher else -1
        roots = {
            pid
            for pid, process in known.items()
            if process.parent == watcher
            or process.session == keeper.pid
            or carries(pid, mark)
        }
        return living(sorted(roots - keepers), known)

    def close(self) -> None:
        """Kill all that is left; waits for that, 1 s at most. Files go aside."""
        if self._watcher:
            self._drop_watcher(self._watcher)
        for keeper in self._keepers:
            self._close(keeper)
        self._keepers, self._idle = [], []

    def check_directory(self) -> None:
        """Give up idle keepers if the working directory was replaced by another."""
        found = os.stat(self._directory)
        if self._directory_id != (found.st_dev, found.st_ino):
            self._directory_id = found.st_dev, found.st_ino
            self._give_up_all()

    def glance(self, now: float) -> None:
        """Check it for a task ahead: not each time, as that won't start at once."""
        if now >= self._check_at:
            self.check_directory()
            self._check_at = now + CHECK_PAUSE_S

    def _give_up_all(self) -> None:
        for keeper in self._keepers:
            keeper.is_last = True
        idle, self._idle = self._idle, []
        for keeper in idle:
            self.release(keeper)

    def hear(self, keeper: Keeper) -> None:
        """Tell what it has reported."""
        if not keeper.is_watched:
            return  # another call of this turn has given it up
        for line in keeper.read_reports():  # a task can write there, if it tries
            word, _, rest = line.partition(b" ")
            if word == b"!":
                self.lose(keeper, os.fsdecode(rest))
                return
            if word == b"up" and not keeper.pid:
                keeper.come_up(int(rest))
                self._told.up(keeper)
            elif word in (b"ended", b"left") and rest.isdigit():
                keeper.is_held = word == b"left"
                self._told.ended(keeper, int(rest) & 255, keeper.is_held)

    def _on_watcher_end(self) -> None:
        """A task killed it. What runs may end well, but its keepers get no more."""
        assert self._watcher
        self._drop_watcher(self._watcher)
        self._give_up_all()
        for keeper in self._keepers[:]:
            if not keeper.pid:
                self.lose(keeper, "its watcher was killed")

    def _drop_watcher(self, watcher: Watcher) -> None:
        self._watcher = None
        self._unwatch(watcher.fileno())
        watcher.close()
