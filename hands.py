"""What this process itself runs: which grants it acts on, what it reports of them.

Reason for this file beside node.py: being a worker is one concern, the same for a
comrade and a ghost; coordinating is another.

Rules. Pure (D6). The only author of STARTED, RETURNED and ENDED, and of nobody's runs
but this process's. Works on records of a Queue; leaves starting and killing to effects.

How it works. `look(record)` compares what a record says of this writer's runs with what
runs here: a GRANTED run that isn't here is started, or RETURNED if the grant is stale
or the node stops; a run that someone called LOST is refuted (its incarnation raised);
one that is no longer wanted is killed. Reports of the sandbox become steps of the run.

Invariants.
D2  A run is started only from GRANTED, once, by the writer it was granted to.
D4  A grant of an older term than the newest known is handed back unstarted. So is one
    of a task that runs elsewhere, or is to: of two coordinators with the same term.
    One for which no core is left is too, unless it may wait for one: what runs at once
    is never more than there are cores for.
D13 RETURNED and ENDED are written when the run is gone, not when it is told to go.
S7  Why a run is killed: deleted, done or failed by another end, purged, handed back,
    or the coordinator said that a smaller one lives. Never because it is doubted.
"""

from typing import Any, Callable, Dict, Iterable, Set, Tuple

from effects import Effect, Kill, RunEnded, RunRefused, RunStarted, Start
from record import FINAL, Phase, Record, Run, State, run_order
from taskqueue import Queue
from workers import fits_ahead, is_lonely

KILL_GRACE_S = 5.0  # between TERM and KILL (D13)
STOP_GRACE_S = 1.0  # the same when the node stops: all is over within 2 s
# Grants wait for a file so long, all in all: 150 MiB on a LAN. If who had it is gone,
# it may never come; and what is granted takes cores, or the whole node (L2).
FILE_S = 5.0
HANDED_BACK = "handed back"
DELETED = "deleted"
DUPLICATE = "a duplicate: the same task runs elsewhere, and began earlier"
SUPERFLUOUS = "the task is finished already"
PAUSED = "this process was stopped for a while"
STALE = "granted by a coordinator of an older term"
ELSEWHERE = "granted by a coordinator that didn't know of another run"
NO_ROOM = "granted by a coordinator that didn't see what runs there"
NO_FILE = "a file that it needs isn't here yet"


class Hands:
    """The runs of one process. `emit` takes effects; `has_files` knows the store."""

    def __init__(
        self,
        queue: Queue,
        writer: str,
        cores: int,
        emit: Callable[[Effect], None],
        may_start: Callable[[Record, str], bool],
    ) -> None:
        self.queue = queue
        self.writer = writer
        self.cores = cores  # that this node offers
        self.emit = emit
        self.may_start = may_start
        self.mine: Dict[str, str] = {}  # run key -> task key: what runs here
        self.killed: Dict[str, str] = {}  # run key -> why, on their way out
        self.term = 0  # grants of lower terms are stale
        self.is_stopping = False
        self.to_look: Set[str] = set()  # keys of records that changed
        self.held: Dict[str, str] = {}  # run -> task: starts that wait (copy, file)

    # --- what the records say -----------------------------------------------------

    def look_again(self) -> None:
        """Act on all records that changed."""
        keys, self.to_look = sorted(self.to_look), set()
        for key in keys:
            record = self.queue.records.get(key)
            if record is not None:
                for run_key in sorted(record.runs):
                    if record.runs[run_key].worker == self.writer:
                        self._look(record, run_key, record.runs[run_key])
        for run_key, key in list(self.mine.items()):
            if key not in self.queue.records:
                self.kill(run_key, SUPERFLUOUS, KILL_GRACE_S)
        for run_key, key in list(self.held.items()):
            if key not in self.queue.records:
                del self.held[run_key]

    def _look(self, record: Record, run_key: str, run: Run) -> None:
        if run_key in self.mine:
            if run.phase is Phase.LOST:
                self._advance(record.key, run_key, "refute", {})
            why = unwanted(record, run_key)
            if why:
                self.kill(run_key, why, KILL_GRACE_S)
        elif run.phase is Phase.GRANTED:
            self._answer_grant(record, run_key)
        else:
            self.held.pop(run_key, None)

    def _answer_grant(self, record: Record, run_key: str) -> None:
        self.held.pop(run_key, None)
        _, term, _, _ = run_order(run_key)
        why = unwanted(record, run_key)
        has_core, may_wait = self._has_room(record)
        if self.is_stopping:
            why = HANDED_BACK
        elif term < self.term:
            why = STALE
        elif runs_elsewhere(record, run_key):
            why = ELSEWHERE
        elif not (has_core or may_wait):
            why = NO_ROOM
        if why:
            self._advance(record.key, run_key, "return", {"why": why})
        elif self.may_start(record, run_key):
            self.mine[run_key] = record.key
            attempt = int(run_key.partition(".")[0])
            ahead = 0 if has_core else self.cores
            self.emit(Start(run_key, record, attempt, ahead))
        else:
            self.held[run_key] = record.key

    def _has_room(self, record: Record) -> Tuple[bool, bool]:
        """Say whether it fits beside what runs here, or behind; a grant may be mad."""
        kinds = [(record.needs, is_lonely(record))]
        for key in self.mine.values():
            other = self.queue.records.get(key)
            if other is None:
                return False, False  # purged: on its way out, and nobody knows its size
            kinds.append((other.needs, is_lonely(other)))
        is_alone = len(kinds) == 1 or not any(alone for _, alone in kinds)
        has_core = sum(needs.cores for needs, _ in kinds) <= self.cores
        may_wait = fits_ahead(kinds, self.cores) and not record.needs.files
        return has_core and is_alone, may_wait

    def kill(self, run_key: str, why: str, grace_s: float) -> None:
        """Stop a run of this process; a second reason only hurries it."""
        known = self.killed.get(run_key)
        if run_key in self.mine and (known is None or why == HANDED_BACK != known):
            self.killed[run_key] = known or why
            self.emit(Kill(run_key, why, grace_s))

    def is_running(self, run_key: str) -> bool:
        """Say whether a run lives here and isn't on its way out."""
        return run_key in self.mine and run_key not in self.killed

    def stop_duplicate(self, run_key: str, smaller: str) -> None:
        """Stop a run because a smaller one lives (a coordinator's order)."""
        if run_order(smaller) < run_order(run_key):
            self.kill(run_key, DUPLICATE, KILL_GRACE_S)

    def give_back(self, run_keys: Iterable[str], why: str) -> None:
        """Return grants that haven't started."""
        for run_key in sorted(run_keys):
            self._advance(self.held.pop(run_key), run_key, "return", {"why": why})

    def look_at_held(self) -> None:
        """Try again to start what waits."""
        self.to_look.update(self.held.values())

    def stop(self) -> None:
        """Hand everything back."""
        self.is_stopping = True
        for run_key in list(self.mine):
            self.kill(run_key, HANDED_BACK, STOP_GRACE_S)
        self.look_at_held()

    # --- what the sandbox says ----------------------------------------------------

    def on_started(self, message: RunStarted) -> None:
        """A run runs."""
        key = self.mine[message.run]
        self._advance(key, message.run, "start", {"at": message.at})

    def on_refused(self, message: RunRefused) -> str:
        """A run can't start here; give its task's key."""
        key = self.mine.pop(message.run)
        why = self.killed.pop(message.run, message.why)
        self._advance(key, message.run, "return", {"why": why})
        return key

    def on_ended(self, message: RunEnded) -> None:
        """A run is over: ENDED, or RETURNED if it was stopped for no fault of it."""
        key = self.mine.pop(message.run)
        why = self.killed.pop(message.run, "")
        is_good = message.exit == 0 and not message.cause  # It was quicker than TERM.
        if why and why != DELETED and not is_good:
            self._advance(key, message.run, "return", {"why": why})
            return
        detail = dict(message._asdict())
        del detail["run"]
        self._advance(key, message.run, "end", detail)

    def _advance(
        self, key: str, run_key: str, event: str, detail: Dict[str, Any]
    ) -> None:
        """Write what happened to a run of ours, whatever others thought of it."""
        record = self.queue.records.get(key)
        if record is None or run_key not in record.runs:
            return  # Purged meanwhile: nobody wants to know.
        phase = record.runs[run_key].phase
        if phase >= FINAL or (phase is Phase.STARTED and event == "start"):
            return  # Or it was called lost and refuted before the sandbox answered.
        if phase is Phase.LOST and event == "start":
            event = "refute"
        if phase is Phase.GRANTED and event == "end":
            event = "start end"  # of a short one only the end is told
        self.queue.advance(key, run_key, event, detail)


def unwanted(record: Record, run_key: str) -> str:
    """Say why a run of this task should stop, or not begin; empty: it is wanted."""
    if record.state is State.DELETED:
        return DELETED
    if record.state is State.DONE and record.telling_run() != run_key:
        return SUPERFLUOUS
    if record.state is State.FAILED and not record.given_up:
        return SUPERFLUOUS
    return ""


def runs_elsewhere(record: Record, run_key: str) -> bool:
    """Say whether another run of this task has begun, or may before this one."""
    others = [key for key in record.living() if key != run_key]
    mine = run_order(run_key)
    return any(
        record.runs[key].phase is Phase.STARTED or run_order(key) < mine
        for key in others
    )
