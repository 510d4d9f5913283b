"""What may not happen to any copy of any record, looked at whenever one changes.

Rules. Hears of each change of each core's queue (`Queue.on_change`) and compares it
with what it saw before: the cost follows what changed. Asks a core only what it holds.

    S2, S11  a run appears first where it was granted, a task where it was added; who
             runs it never changes, nor do two runs share a key
    S3       a copy only grows: nothing is unset, no run falls back or vanishes
    S4       what is finished stays so, but for record.LIFECYCLE's three late arrivals
    S8       what a worker says of its run comes from it first, and is said once
    S9       only what was finished is purged; what is purged stays out of the copy
    S12      frames under way and ids to send are bounded
    D2       two that are in each other's component never grant at once, and who grants
             knows each living run that the others of its component granted
    ORDER    a new task is younger than all that its node knows, a new term is higher
"""

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Set, Tuple

from record import FINAL, LIVING, Phase, Record, Run, State, run_order, split_key
from replica import WINDOW

if TYPE_CHECKING:
    from comrades import Comrade
    from ledger import Ledger

FINISHED = (State.DONE, State.FAILED, State.DELETED)
STILL_POSSIBLE = {
    (State.FAILED, State.DONE),
    (State.FAILED, State.DELETED),
    (State.DONE, State.DELETED),
}
BY_WORKER = (Phase.STARTED, Phase.RETURNED, Phase.ENDED)


class Copy(NamedTuple):
    """A copy as it was when it changed last."""

    deleted: bool
    given_up: str
    runs: Dict[str, Run]


class Copies:
    """All copies of all records, in all cores that live."""

    def __init__(self, ledger: "Ledger") -> None:
        self.ledger = ledger
        self.check = ledger.check
        self.granted: Dict[str, str] = {}  # run key -> worker
        self.granted_at: Dict[str, float] = {}
        self.born: Set[str] = set()  # keys of tasks that were added anywhere
        self.over: Set[str] = set()  # keys that some copy had finished
        self._copies: Dict[Tuple[str, str], Copy] = {}  # writer, key
        self._said: Dict[Tuple[str, Phase], Any] = {}  # run, phase -> detail
        self._youngest: Dict[str, Tuple[int, str]] = {}  # writer -> order, key
        self._terms: Dict[str, int] = {}  # writer -> highest seen
        self._claims: Set[Tuple[str, int]] = set()  # writer, term of its grants
        self._gone: List[Tuple[Any, str]] = []  # in this event

    def watch(self, process: Any) -> None:
        """Look at every change of a core's records."""
        queue = process.node.queue
        inner = queue.on_change

        def on_change(
            record: Record, old: Optional[State], new: Optional[State]
        ) -> None:
            inner(record, old, new)
            if new is None:
                self._gone.append((process, record.key))
            else:
                self._on_change(process, record, old, new)

        queue.on_change = on_change

    def _on_change(
        self, process: "Comrade", record: Record, old: Optional[State], new: State
    ) -> None:
        key = record.key
        is_back = old in FINISHED and new is not old
        if is_back and (old, new) not in STILL_POSSIBLE:
            self.check(False, "S4", "%s from %s to %s" % (key, old, new))
        if is_covered(process, key):
            self.check(False, "S9", key + " is purged, and here")
        if new in FINISHED:
            self.over.add(key)
        known = self._copies.get((process.writer, key))
        if known is None:
            self._on_new(process, record)
        else:
            self._only_grows(known, record)
        for run, value in record.runs.items():
            if known is None or known.runs.get(run) is not value:
                self._on_run(process, record, run, value)
        copy = Copy(record.deleted, record.given_up, record.runs)
        self._copies[process.writer, key] = copy

    def _on_new(self, process: "Comrade", record: Record) -> None:
        key, place = record.key, (record.order, record.key)
        n, writer = split_key(key)
        youngest = self._youngest.get(process.writer, (0, ""))
        if key not in self.born:
            is_own = n == 0 or writer == process.writer
            self.check(is_own, "S2", "%s comes from nowhere" % key)
            is_young = place > youngest or n == 0
            self.check(is_young, "ORDER", "%s is older than %s" % (key, youngest))
            self.born.add(key)
        self._youngest[process.writer] = max(youngest, place)

    def _only_grows(self, known: Copy, record: Record) -> None:
        key = record.key
        if known.deleted > record.deleted or (known.given_up and not record.given_up):
            self.check(False, "S3", "%s: something was unset" % key)
        for run, was in known.runs.items():
            value = record.runs.get(run)
            if value is None or _rank(value) < _rank(was):
                self.check(False, "S3", "%s of %s falls back" % (run, key))

    def _on_run(self, process: "Comrade", record: Record, run: str, value: Run) -> None:
        _, term, author, _ = run_order(run)
        highest = self._terms.get(process.writer, 0)
        if run not in self.granted:
            self.check(author == process.writer, "S2", run + " was never granted")
            is_new = (author, term) not in self._claims
            is_higher = term > highest or not is_new
            self.check(is_higher, "ORDER", "%s: term %d is known" % (run, highest))
            self._claims.add((author, term))
            self.granted[run] = value.worker
            self.granted_at[run] = self.ledger.world.t
            self._on_grant(process, record)
        self._terms[process.writer] = max(term, highest)
        self.check(self.granted[run] == value.worker, "S11", run)
        if value.phase is Phase.LOST:
            self.ledger.attachments.on_lost(process, run, value)
        if value.phase in BY_WORKER:
            said = self._said.get((run, value.phase))
            if said is None:
                is_own = value.worker == process.writer
                self.check(is_own, "S8", "%s of %s" % (value.phase, run))
                self._said[run, value.phase] = value.detail
            elif value.phase >= FINAL:
                self.check(said == value.detail, "S8", run + " is told in two ways")

    def _on_grant(self, process: "Comrade", record: Record) -> None:
        mesh = process.node.mesh
        for other in self.ledger.world.living():
            theirs = other.node.mesh
            if other is process or other.is_paused or not other.node.now:
                continue
            if other.node_id not in mesh.component:
                continue
            if process.node_id not in theirs.component:
                continue
            both = theirs.may_grant(other.now)
            self.check(not both, "D2", "%s grants too" % other.host.name)
            copy = other.node.queue.records.get(record.key)
            for run, value in copy.runs.items() if copy is not None else ():
                if run_order(run)[2] == other.writer and value.phase in LIVING:
                    is_known = run in record.runs
                    self.check(is_known, "D2", "%s granted %s" % (other.host.name, run))

    def is_said(self, run: str, phase: Phase) -> bool:
        """Say whether a worker has said this of its run."""
        return (run, phase) in self._said

    # --- after each event ---------------------------------------------------------

    def after_event(self, touched: List[Any]) -> None:
        """Check what needn't hold within an event."""
        gone, self._gone = self._gone, []
        for process, key in gone:
            if process.is_alive() and key not in process.node.queue.records:
                self._on_gone(process, key)
        for process in touched:
            if process.host.name in self.ledger.world.ghosts:
                continue
            for peer, box in process.node.replica.boxes.items():
                if len(box.sent) > WINDOW:
                    self.check(False, "S12", "%d frames to %s" % (len(box.sent), peer))
                if len(box.active) + len(box.rest) > 2 * len(self.born):
                    self.check(False, "S12", "what is to be sent to %s" % peer)

    def _on_gone(self, process: "Comrade", key: str) -> None:
        if process.host.name in self.ledger.world.ghosts:
            self.ledger.attachments.on_forgotten(process, key)
        elif is_covered(process, key):
            self.check(key in self.over, "S9", key + " is purged unfinished")
        else:
            promised = self.ledger.promises.promised["add"]
            self.check(key not in promised, "S1", key + " vanished")
        self._copies.pop((process.writer, key), None)


def is_covered(process: "Comrade", key: str) -> bool:
    """Say whether a process knows a task as purged, by what PURGED says itself."""
    intervals = process.node.queue.purged.intervals
    if not intervals:
        return False
    n, writer = split_key(key)
    return any(low <= n <= high for low, high in intervals.get(writer, ()))


def runs_at(process: "Comrade", key: str) -> Dict[str, Run]:
    """Give the runs of a task as a process has them."""
    record = process.node.queue.records.get(key)
    return record.runs if record is not None else {}


def _rank(run: Run) -> Tuple[int, int, int]:
    return (run.phase if run.phase >= FINAL else 0, run.inc, run.phase)
