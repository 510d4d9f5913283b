"""Running tasks on this machine: their files, their output, and their end.

Rules: what a task can do to its node is dealt with here and in the files that only this
one imports: shells.py, keeper.py (what tasks run in, the process table), places.py
(necessary files) and excess.py (endless outputs). What the machine has: machine.py.

How it works. A run goes

    PLACING files -> WAITING for a shell -> RUNNING -> ENDING -> CLEARING files

where ENDING is that what it started is stopped; what a run doesn't need it skips.
`tick` does what is due: time-outs, and a look each 10 to 50 ms while a run is ENDING.
No method blocks but `clean_up` and `close`: what touches the disk is done aside, by one
thread for shells and one for files.

Invariants:
1. D13: a run is reported as ended only when all that it started is gone (zombies are).
2. A run that was told to stop never reports exit 0: 143 stands in for it.
3. kill -9 of this process takes all tasks with it, by way of the watcher.

Not done here: limits on memory and processor time, keeping outputs, choosing what runs.
"""

import functools
import os
import signal
import time
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Union,
)

from excess import Excess
from keeper import Process, below, leftovers, processes, signal_all
from machine import is_program, which
from places import Places, Worker, raw, renames, unique_name
from points import point
from shells import Keeper, Shells, Told, Watcher, tried
from taskscript import Scripts, cause_of

SMALL_OUTPUT_BYTES = 64 * 1024  # handed over in memory; more stays in a file
COMMAND_BYTES_MAX = 128 * 1024 - 1  # Linux: MAX_ARG_STRLEN, with the NUL
END_GRACE_S = 5.0  # between TERM and KILL (D13)
KEEPER_START_S = 20.0  # two execs, on a busy old machine
DISK_S = 3.0  # a start that the disk holds up for longer is for another node
STARTED_S = 0.005  # a start is told with what comes next, or so long after
PRESS_FIRST_S, PRESS_LAST_S = 0.01, 0.05  # between two looks at what is being ended
CLEAN_UP_S, CLEAN_UP_PAUSE_S = 5.0, 0.01  # leftovers have this long to go
KILLED_EXIT, STOPPED_EXIT = 128 + signal.SIGKILL, 128 + signal.SIGTERM
USER_UMASK = os.umask(0o077)  # read as early as can be: the node sets its own
os.umask(USER_UMASK)

__all__ = ["Sandbox", "renames", "unique_name"]


class Job(NamedTuple):
    """A run to start. `files`: (name as the user gave it, digest, size, mode)."""

    run: str
    command: str
    env: Dict[str, str]
    files: Tuple[Tuple[str, str, int, int], ...] = ()
    keep_names: bool = False
    timeout: Optional[float] = None


class Output(NamedTuple):
    """`data` if it is small, else `path`: a file that the receiver moves away."""

    size: int
    data: Optional[bytes]
    path: str


class Started(NamedTuple):
    run: str
    at: float  # wall clock


class Refused(NamedTuple):
    """It never started, and nothing of it is left."""

    run: str
    why: str


class Ended(NamedTuple):
    """`exit` is 0..255, `began` and `ended` are wall clock, `took` is seconds."""

    run: str
    exit: int
    cause: str  # '', or 'signal KILL', 'time-out after 90s', what `kill` was given
    began: float
    ended: float
    took: float
    out: Output
    err: Output


Event = Union[Started, Refused, Ended]


def _clock() -> float:
    """Seconds that go on while the machine is suspended, where the system has them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Run:
    """One job on its way."""

    def __init__(self, job: Job, script: bytes, is_plain: bool) -> None:
        self.job = job
        self.script, self.is_plain = script, is_plain
        self.state = "PLACING"
        self.keeper: Optional[Keeper] = None
        self.late = ""  # what it waits for, in words
        self.cause = ""  # why it was told to stop, or how it died
        self.exit: Optional[int] = None
        self.due: Optional[float] = None  # when `tick` must look at it
        self.kill_at = 0.0
        self.pause = PRESS_FIRST_S
        self.asked: Set[int] = set()  # processes that got their TERM
        self.foreign: Set[int] = set()  # another user's, which we may not kill
        self.began = self.ended = 0.0  # wall clock
        self.began_clock = self.took = 0.0


def _script(job: Job, scripts: Scripts) -> Tuple[bytes, bool]:
    """What a keeper must do for the job, and whether it is a plain script.

    ValueError tells why it can't be done.
    """
    names = [file[0] for file in job.files]
    command = job.command
    if names and not job.keep_names:
        command, _ = renames(
            command, names, lambda i: unique_name(job.run, i, names[i])
        )
    size = len(raw(command))
    if size > COMMAND_BYTES_MAX:
        raise ValueError(
            f"the command has {size} bytes; the system passes {COMMAND_BYTES_MAX}"
            " at most; put it into a file and run that"
        )
    environ = {**job.env, "LEORONIC_RUN": job.run}
    script, is_plain = scripts.make(raw(command), environ)
    if b"\0" in script:
        raise ValueError("a NUL byte is in the command; no program can be given one")
    return script, is_plain


NO_OUTPUT = Output(0, b"", "")


def _take(keeper: Keeper, name: str) -> Output:
    size, data, path = keeper.take_output(name, SMALL_OUTPUT_BYTES)
    return Output(size, None if path else data, path)


def _take_all(
    keeper: Keeper, status: int, excess: Excess
) -> Tuple[Output, Output, str]:
    """Take what a run has left in its keeper: out, err, and of what it died."""
    excess.cut_long_ones([keeper.output_path(name) for name in ("out", "err")])
    was_signalled = status > 128 and keeper.was_signalled()
    cause = cause_of(status, was_signalled)
    return _take(keeper, "out"), _take(keeper, "err"), cause


class Sandbox:
    """Runs tasks. `watch(fd, on_readable)` and `unwatch(fd)` tie it into the loop.

    `umask` is the tasks'; without it the one that this module was imported under.
    """

    def __init__(
        self,
        directory: str,
        home: str,
        environ: Mapping[str, str],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        file_path: Callable[[str], str],
        clock: Callable[[], float] = _clock,
        wall: Callable[[], float] = time.time,
        umask: int = USER_UMASK,
    ) -> None:
        self.nice = 0  # of tasks; before the first of them
        self._directory = directory = os.path.abspath(directory)
        self._home = os.path.abspath(home)
        self._records = records = self._home + "/runs"
        self._environ = {k: v for k, v in environ.items() if k != "LEORONIC_RUN"}
        self._scripts = Scripts(
            self._environ, lambda name: is_program(name, directory, self._environ)
        )
        self._clock, self._wall, self._unwatch = clock, wall, unwatch
        os.makedirs(records, 0o700, exist_ok=True)
        self._places = Places(directory, records, file_path)
        self._worker = Worker(watch)
        self._clerk = Worker(watch)  # never behind the copy of a large file
        self._excess = Excess(self._home, self._clerk.do)

        bash = which("bash", directory, self._environ) or "/bin/bash"
        self._shells = Shells(
            lambda: Watcher(records, directory, umask, bash, self._environ, self.nice),
            f"{records}/{os.getpid()}",
            directory,
            (watch, unwatch, self._clerk.do),
            Told(self._on_made, self._on_up, self._on_status, self._on_lost),
        )
        self.keep_off = self._shells.keep_off  # a core that isn't for tasks
        self._runs: Dict[str, Run] = {}
        self._in: Dict[Keeper, Run] = {}  # what runs in a keeper
        self._events: List[Event] = []
        self._tell_at: Optional[float] = None  # when `tick` has to ask for a call
        self._is_stopping = False

    # -- what the loop calls

    def clean_up(self) -> None:
        """Kill and remove what a former process left. Waits, 5 s at most."""
        deadline = self._clock() + CLEAN_UP_S
        left = leftovers(self._home)
        while left and self._clock() < deadline:
            signal_all(left, signal.SIGKILL)
            time.sleep(CLEAN_UP_PAUSE_S)
            left = leftovers(self._home)
        for name in os.listdir(self._records):
            path = f"{self._records}/{name}"
            try:
                if name.endswith(".placed"):
                    Places(self._directory, self._records, str).undo(path)
                else:
                    os.unlink(path)
            except OSError:  # it may hurt the next start, not this one
                pass

    def start(self, job: Job) -> None:
        """Start a run: Started or Refused follows as an event, and Ended at its end."""
        try:
            if self._is_stopping:
                raise ValueError("its node stops")
            if job.run in self._runs:
                raise ValueError("it runs already")
            run = Run(job, *_script(job, self._scripts))
        except ValueError as error:
            self._tell(Refused(job.run, str(error)))
            return
        self._runs[job.run] = run
        if not job.files:
            self._launch(run)
            return

        def place() -> str:
            return self._places.place(
                job.run, job.files, job.keep_names, lambda: bool(run.cause)
            )

        def then(why: str) -> None:
            if run.cause or why:
                self._refuse(run, run.cause or why)
            else:
                self._launch(run)

        self._worker.do(place, then)

    def kill(self, run: str, cause: str, grace_s: float) -> None:
        """TERM now, KILL after the grace. Ended, or Refused, tells the cause."""
        found = self._runs.get(run)
        if not found or found.state == "CLEARING":
            return
        if found.state == "ENDING":
            found.kill_at = min(found.kill_at, self._clock() + grace_s)
            return
        found.cause = cause
        if found.state == "RUNNING":
            self._end(found, grace_s)

    def tick(self, now: float) -> Optional[float]:
        """Do what is due; return when to call again, also for `events`."""
        due = [r for r in self._runs.values() if r.due is not None and r.due <= now]
        known: Dict[int, Process] = {}
        for run in due:
            if run.state == "RUNNING":
                cause = f"time-out after {run.job.timeout:g}s"
                self.kill(run.job.run, cause, END_GRACE_S)
            elif run.state == "WAITING" and run.keeper:
                self._shells.lose(run.keeper, run.late)
            if run.state == "ENDING":
                known = known or processes()
                self._press(run, known, now)
        dues = [run.due for run in self._runs.values()]
        outputs = [k.output_path(name) for k in self._in for name in ("out", "err")]
        dues.append(self._excess.look(now, outputs))
        if self._tell_at is not None:
            dues.append(max(now, self._tell_at))
        return min((due for due in dues if due is not None), default=None)

    def events(self) -> List[Event]:
        """What happened since the last call."""
        events, self._events, self._tell_at = self._events, [], None
        return events

    def _tell(self, event: Event, at: float = 0.0) -> None:
        self._events.append(event)
        self._tell_at = at if self._tell_at is None else min(at, self._tell_at)

    def stop(self, grace_s: float = 1.0) -> None:
        """End all runs and refuse new ones."""
        self._is_stopping = True
        for run in list(self._runs):
            self.kill(run, "its node stops", grace_s)

    def close(self) -> None:
        """Kill what is left and give everything back; waits, 2 s at most."""
        self._shells.close()
        for run in self._runs.values():
            run.cause = run.cause or "its node stops"  # ends copying
            self._worker.do(functools.partial(self._places.remove, run.job.run))
        self._worker.close(self._unwatch)
        self._clerk.close(self._unwatch)

    def live_output(self, run: str, name: str) -> Optional[str]:
        """Return the file in which a run's `out` or `err` gathers while it runs."""
        found = self._runs.get(run)
        if found and found.keeper and found.state in ("RUNNING", "ENDING"):
            return found.keeper.live_path(name)
        return None

    def has_file(self, path: str) -> bool:
        """Whether the working directory has it, inside and through no link."""
        return self._places.has_file(path)

    def has_command(self, name: str) -> bool:
        """Whether tasks find that program on their PATH."""
        return "/" not in name and which(name, self._directory, self._environ) != ""

    def may_place(self, name: str, digest: str) -> bool:
        """Whether no other content has the name that `--keep-names` would give."""
        return self._places.may_place(name, digest, self._worker.do)

    # -- starting

    def _launch(self, run: Run) -> None:
        self._wait(run, DISK_S, "the disk of its node doesn't answer")
        try:
            run.keeper = self._shells.lend()
        except OSError as error:
            self._refuse(run, f"it can't be started: {error.strerror}")
            return
        self._in[run.keeper] = run
        if run.keeper.pid:
            self._on_up(run.keeper)

    def _wait(self, run: Run, most_s: float, late: str) -> None:
        run.state, run.late, run.due = "WAITING", late, self._clock() + most_s

    # -- what its shell tells

    def _on_made(self, keeper: Keeper) -> None:
        late = "its shell did not start in time"
        self._wait(self._in[keeper], KEEPER_START_S, late)

    def _on_up(self, keeper: Keeper) -> None:
        run = self._in[keeper]
        if run.cause:
            self._refuse(run, run.cause)
            return
        self._wait(run, DISK_S, "the disk of its node doesn't answer")

        def load() -> str:
            return tried(lambda: keeper.load(run.script, run.is_plain))

        if keeper.is_quick:
            self._on_loaded(run, keeper, load())
        else:
            self._clerk.do(load, lambda why: self._on_loaded(run, keeper, why))

    def _on_loaded(self, run: Run, keeper: Keeper, why: str) -> None:
        if run.state != "WAITING":
            return  # it was given up: that took too long
        if run.cause or why:
            self._refuse(run, run.cause or why)
            return
        point("before start")
        keeper.go()
        point("after start")
        run.state = "RUNNING"
        run.began, run.began_clock = self._wall(), self._clock()
        timeout = run.job.timeout
        run.due = None if timeout is None else run.began_clock + timeout
        self._tell(Started(run.job.run, run.began), run.began_clock + STARTED_S)

    def _on_status(self, keeper: Keeper, status: int) -> None:
        run = self._in.get(keeper)
        if not run or run.state == "WAITING":
            return  # it is a task that wrote there
        if run.cause and status == 0:
            status = STOPPED_EXIT
        self._note_end(run, status, "")
        if run.state == "ENDING":
            run.due = self._clock()
        elif keeper.may_have_children():
            self._end(run, END_GRACE_S)
        else:
            self._finish(run, keeper)

    def _on_lost(self, keeper: Keeper, why: str) -> None:
        run = self._in[keeper]
        if run.state == "WAITING":
            self._refuse(run, run.cause or why)
            return
        if run.exit is None:
            self._note_end(run, KILLED_EXIT, "its shell was killed")
        if run.state == "RUNNING":
            self._end(run, END_GRACE_S)

    def _note_end(self, run: Run, exit: int, cause: str) -> None:
        run.exit, run.cause = exit, run.cause or cause
        run.ended, run.took = self._wall(), self._clock() - run.began_clock

    # -- ending

    def _end(self, run: Run, grace_s: float) -> None:
        run.state = "ENDING"
        run.due = self._clock()
        run.kill_at = run.due + grace_s

    def _press(self, run: Run, known: Mapping[int, Process], now: float) -> None:
        """Look at what is left of a run, and press it to end."""
        keeper = run.keeper
        assert keeper
        run.due = now + run.pause
        run.pause = min(run.pause * 1.5, PRESS_LAST_S)
        if keeper.is_lost:
            mark = b"LEORONIC_RUN=" + os.fsencode(run.job.run)
            strays = self._shells.strays(keeper, mark, known)
            if strays is None:
                return
            left = strays
        else:
            left = below(keeper.pid, known)
            signal_all([keeper.pid], signal.SIGCONT)  # a task may have stopped it
        left = [pid for pid in left if pid not in run.foreign]
        if not left and run.exit is not None:
            self._finish(run, keeper)
        elif now >= run.kill_at:
            run.foreign |= signal_all(left, signal.SIGKILL)
        else:
            new = [pid for pid in left if pid not in run.asked]
            signal_all(new, signal.SIGTERM, signal.SIGCONT)
            run.asked.update(new)

    def _finish(self, run: Run, keeper: Keeper) -> None:
        """All that it started is gone: take its output."""
        assert run.exit is not None
        run.state, run.due, status = "CLEARING", None, run.exit
        both = keeper.glance() if status <= 128 else None
        if both is not None:
            out, err = (Output(len(data), data, "") for data in both)
            self._on_taken(run, keeper, (out, err, ""))
            return
        self._clerk.do(
            lambda: _take_all(keeper, status, self._excess),
            lambda taken: self._on_taken(run, keeper, taken),
        )

    def _on_taken(self, run: Run, keeper: Keeper, taken: Any) -> None:
        assert run.exit is not None
        if isinstance(taken, str):  # the disk is broken; the end counts all the same
            keeper.is_last = True
            taken = (NO_OUTPUT, NO_OUTPUT, f"its output can't be read: {taken}")
        out, err, cause = taken
        times = (run.began, run.ended, run.took)
        cause = run.cause or cause
        event = Ended(run.job.run, run.exit, cause, *times, out, err)
        self._conclude(run, event)

    def _refuse(self, run: Run, why: str) -> None:
        self._conclude(run, Refused(run.job.run, why))

    def _conclude(self, run: Run, event: Event) -> None:
        """Release the keeper, and report once the files are removed."""
        if run.keeper:
            del self._in[run.keeper]
            self._shells.release(run.keeper)
        run.state, run.due = "CLEARING", None

        def then(_: Any) -> None:
            del self._runs[run.job.run]
            self._tell(event)

        if run.job.files:
            self._worker.do(lambda: self._places.remove(run.job.run), then)
        else:
            then(None)
