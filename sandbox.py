"""Running tasks on this machine: their files, their output, and their end.

Rules: what a task can do to its node is dealt with here and in the files that only this
one imports: shells.py, keeper.py (what tasks run in, the process table), places.py
(necessary files) and excess.py (endless outputs). What the machine has: machine.py.

How it works. A run goes

    PLACING files -> WAITING for a shell -> RUNNING -> ENDING -> CLEARING files

where ENDING is that what it started is stopped; what a run doesn't need it skips. Or it
is AHEAD: its keeper has a word to run it once another run, its former, is over.
`tick` does what is due: time-outs, and a look each 10 to 50 ms while a run is ENDING.
No method blocks but `clean_up` and `close`: what touches the disk is done aside, by one
thread for shells and one for files.

Invariants:
1. D13: a run is reported as ended only when all that it started is gone (zombies are).
2. A run that was told to stop never reports exit 0: 143 stands in for it.
3. kill -9 of this process takes all tasks with it, by way of the watcher.
4. A run AHEAD is refused only when its word was taken back, will be dropped (the former
   left something), or can't be read any more (the keeper is lost). Where the keeper has
   the word, what it reported before is heard first: so that run has begun, or was
   dropped. Before a former is made to end, what is behind it is dealt with in this way.

Not done here: limits on memory and processor time, keeping outputs, choosing what runs.
"""

import functools
import os
import signal
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from excess import Excess
from keeper import Process, below, leftovers, processes, signal_all
from machine import is_program, which
from places import Places, Worker, renames, unique_name
from points import point
from runs import (
    LATE,
    NO_OUTPUT,
    PRESS_LAST_S,
    SMALL_OUTPUT_BYTES,
    Ended,
    Event,
    Job,
    Output,
    Refused,
    Run,
    Started,
    script_of,
    take_all,
)
from shells import Keeper, Shells, Told, Watcher, tried
from slots import Slot
from taskscript import Scripts

END_GRACE_S = 5.0  # between TERM and KILL (D13)
KEEPER_START_S = 20.0  # two execs, on a busy old machine
DISK_S = 3.0  # a start that the disk holds up for longer is for another node
AHEAD_S = 0.1  # a run that waited so long for the one before it is for another core
STARTED_S = 0.005  # a start is told with its end, or so long after: that is one change
CLEAN_UP_S, CLEAN_UP_PAUSE_S = 5.0, 0.01  # leftovers have this long to go
KILLED_EXIT, STOPPED_EXIT = 128 + signal.SIGKILL, 128 + signal.SIGTERM
USER_UMASK = os.umask(0o077)  # read as early as can be: the node sets its own
os.umask(USER_UMASK)

__all__ = ["LATE", "NO_OUTPUT", "Ended", "Event", "Job", "Output", "Refused"]
__all__ += ["SMALL_OUTPUT_BYTES", "Sandbox", "Started", "renames", "unique_name"]


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
        clock: Callable[[], float],
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
        self._starts: Dict[str, Tuple[float, Started]] = {}  # and when they are told
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

    def start(self, job: Job, ahead: int = 0) -> None:
        """Start a run: Started or Refused follows as an event, and Ended at its end.

        `ahead`, if not 0: behind another, unless fewer than that go on; without files.
        """
        try:
            if self._is_stopping:
                raise ValueError("its node stops")
            if job.run in self._runs:
                raise ValueError("it runs already")
            run = Run(job, *script_of(job, self._scripts))
        except ValueError as error:
            self._tell(Refused(job.run, str(error)))
            return
        going = [r for r in self._runs.values() if r.state not in ("AHEAD", "CLEARING")]
        is_behind = 0 < ahead <= len(going)
        self._runs[job.run] = run
        if is_behind:
            self._launch_behind(run)
            return
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
        if found and found.state == "AHEAD":
            self._take_back(found, cause)
        elif found and found.behind:
            self._take_back(found.behind, LATE)
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
            if run.due is None or run.due > now:
                continue  # what was done for another has changed it
            if run.state == "AHEAD":
                self._take_back(run, LATE)
            elif run.state == "RUNNING":
                cause = f"time-out after {run.job.timeout:g}s"
                self.kill(run.job.run, cause, END_GRACE_S)
            elif run.state == "WAITING" and run.keeper:
                self._shells.lose(run.keeper, run.late)
            if run.state == "ENDING":
                known = known or processes()
                self._press(run, known, now)
        dues = [run.due for run in self._runs.values()]
        slots = [run.slot for run in self._in.values() if run.slot]
        outputs = [path for slot in slots for path in slot.output_paths()]
        dues.append(self._excess.look(now, outputs))
        if self._events:
            dues.append(now)
        dues += [at for at, _ in list(self._starts.values())[:1]]
        return min((due for due in dues if due is not None), default=None)

    def events(self) -> List[Event]:
        """What happened since the last call; a start of just now is not among it."""
        now = self._clock()
        due = [run for run, (at, _) in self._starts.items() if at <= now]
        starts: List[Event] = [self._starts.pop(run)[1] for run in due]
        events, self._events = starts + self._events, []
        return events

    def _tell(self, event: Event) -> None:
        if event.run in self._starts:
            self._events.append(self._starts.pop(event.run)[1])
        self._events.append(event)

    def stop(self, grace_s: float = 1.0) -> None:
        """End all runs and refuse new ones."""
        self._is_stopping = True
        for run in [*self._runs][::-1]:  # what is behind another first
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
            assert found.slot
            return found.keeper.live_path(found.slot, name)
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

    def _wait(self, run: Run, most_s: float, late: str, state: str = "WAITING") -> None:
        run.state, run.late, run.due = state, late, self._clock() + most_s

    def _occupy(self, run: Run, keeper: Keeper) -> Slot:
        slot = keeper.free_slot()
        assert slot
        slot.is_busy = True
        run.keeper, run.slot = keeper, slot
        return slot

    # -- ahead

    def _launch_behind(self, run: Run) -> None:
        """Give it to the keeper that is the likeliest to be free soon."""
        fit, now = [], self._clock()
        if not run.job.files and not tried(lambda: self._shells.glance(now)):
            fit = [f for f in self._in.values() if f.may_be_followed()]
        if not fit:
            self._refuse(run, LATE)
            return
        long_ago = now - AHEAD_S  # such a run is none of the short ones
        former = min(fit, key=lambda f: (f.began_clock < long_ago, f.began_clock))
        keeper = former.keeper
        assert keeper
        slot = self._occupy(run, keeper)
        former.behind = run
        why = tried(lambda: slot.load(run.script, run.is_plain))
        if why:
            self._refuse(run, why)
            return
        self._wait(run, AHEAD_S, LATE, "AHEAD")
        self._go(keeper, slot)

    def _take_back(self, run: Run, why: str) -> None:
        """Refuse a run that is ahead, unless its keeper tells that it is no more."""
        assert run.keeper
        run.late = why
        if not run.keeper.take_back():
            self._shells.hear(run.keeper)
        if run.state == "AHEAD":
            self._refuse(run, why)

    @staticmethod
    def _go(keeper: Keeper, slot: Slot) -> None:
        point("before start")
        keeper.go(slot)
        point("after start")

    def _begin(self, run: Run) -> None:
        assert run.slot
        run.slot.on_begun()
        run.state = "RUNNING"
        run.began, run.began_clock = self._wall(), self._clock()
        timeout = run.job.timeout
        run.due = None if timeout is None else run.began_clock + timeout
        started = Started(run.job.run, run.began)
        self._starts[run.job.run] = (run.began_clock + STARTED_S, started)

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
        slot = self._occupy(run, keeper)

        def load() -> str:
            return tried(lambda: slot.load(run.script, run.is_plain))

        if slot.is_quick:
            self._on_loaded(run, keeper, slot, load())
        else:
            self._clerk.do(load, lambda why: self._on_loaded(run, keeper, slot, why))

    def _on_loaded(self, run: Run, keeper: Keeper, slot: Slot, why: str) -> None:
        if run.state != "WAITING":
            return  # it was given up: that took too long
        if run.cause or why:
            self._refuse(run, run.cause or why)
            return
        self._go(keeper, slot)
        self._begin(run)

    def _on_status(self, keeper: Keeper, status: int, is_left: bool) -> None:
        """Its task is over. Unless it `is_left` to look here, all of it is."""
        run = self._in.get(keeper)
        if not run or run.state not in ("RUNNING", "ENDING"):
            return  # it is a task that wrote there
        if run.cause and status == 0:
            status = STOPPED_EXIT
        self._note_end(run, status, "")
        if is_left:
            self._drop_behind(run)
        behind, run.behind = run.behind, None
        if behind:
            self._in[keeper] = behind
            self._finish(run, keeper)
            self._begin(behind)
        elif run.state == "ENDING":
            run.due = self._clock()
        elif keeper.may_have_children():
            self._end(run, END_GRACE_S)
        else:
            self._finish(run, keeper)

    def _on_lost(self, keeper: Keeper, why: str) -> None:
        run = self._in[keeper]
        self._drop_behind(run)
        if run.state == "WAITING":
            self._refuse(run, run.cause or why)
            return
        if run.exit is None:
            self._note_end(run, KILLED_EXIT, "its shell was killed")
        if run.state == "RUNNING":
            self._end(run, END_GRACE_S)

    def _drop_behind(self, run: Run) -> None:
        """Refuse what is behind it: its keeper will never run that."""
        if run.behind:
            self._refuse(run.behind, run.behind.late)

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
        slot = run.slot
        assert slot
        both = slot.glance() if status <= 128 else None
        if both is not None:
            out, err = (Output(len(data), data, "") for data in both)
            self._on_taken(run, slot, (out, err, ""))
            return
        self._clerk.do(
            lambda: take_all(keeper, slot, status, self._excess),
            lambda taken: self._on_taken(run, slot, taken),
        )

    def _on_taken(self, run: Run, slot: Slot, taken: Any) -> None:
        assert run.exit is not None
        if isinstance(taken, str):  # the disk is broken; the end counts all the same
            slot.is_last = True
            taken = (NO_OUTPUT, NO_OUTPUT, f"its output can't be read: {taken}")
        out, err, cause = taken
        times = (run.began, run.ended, run.took)
        cause = run.cause or cause
        event = Ended(run.job.run, run.exit, cause, *times, out, err)
        self._conclude(run, event)

    def _refuse(self, run: Run, why: str) -> None:
        self._conclude(run, Refused(run.job.run, why))

    def _leave(self, run: Run) -> None:
        """Let its keeper be, in which another may run now."""
        current = self._in.get(run.keeper) if run.keeper else None
        if current is run:
            assert run.keeper
            del self._in[run.keeper]
            self._shells.release(run.keeper)
        elif current and current.behind is run:
            current.behind = None

    def _conclude(self, run: Run, event: Event) -> None:
        """Release the keeper, and report once the files are removed."""
        if run.slot:
            run.slot.is_busy = False
        self._leave(run)
        run.state, run.due = "CLEARING", None

        def then(_: Any) -> None:
            del self._runs[run.job.run]
            self._tell(event)

        if run.job.files:
            self._worker.do(lambda: self._places.remove(run.job.run), then)
        else:
            then(None)
