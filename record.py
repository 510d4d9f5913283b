"""What a task's record is, and how two copies of it become one.

Reason for this file beside taskqueue.py: the lattice and its validation are one
concern (what a record may be), the set of all records another; each fills a file.

Rules. Everything that decides a task's state lives here and nowhere else. Pure: no
I/O, no clock, no randomness (D6); whoever calls passes names and times in. It knows
nothing of nodes, links or resources, nor of other tasks.

How it works. A record is a point in a join semilattice; `absorb` is the join:

    record = PURGED                     (top: an id in `Purged`)
           | spec                       immutable: name, command, needs
             (order, adder, added)      the smallest stays
             deleted, given_up          only ever set
             runs {run key: Run}        joined key by key
    run    = (worker, session) immutable + the greatest of: final
             (RETURNED < ENDED); else the incarnation; then GRANTED < STARTED < LOST

A task's *state* is never stored: `derive` computes it from the record. LIFECYCLE says
how states may follow each other, RUN_STEPS what may happen to a run. Keys of tasks
are `n-writer` (n counts what one process added, the writer is that process's random
64-bit name), so that what users see, `n-xxxxxxxx`, is a prefix of the key. A task
with a user's own id has the key `0-hash of all that the user gave`.

Invariants.
D7  `absorb` is total, commutative, associative, idempotent; every step moves up.
D8  Keys come from (writer, n): the caller never uses a pair twice.
D9  `decode` accepts a record or raises Malformed; unknown fields are kept.
Order ("older"): (Lamport counter, key). One source's tasks keep their order.

Not here: who may author which step (node.py), what is durable (store.py).
"""

import json
from bisect import bisect
from enum import Enum, IntEnum
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from operator import attrgetter
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

try:  # The small C module: hashlib would bring OpenSSL, 3.5 MiB of memory.
    from _blake2 import blake2b
except ImportError:  # pragma: no cover - other Python implementations
    from hashlib import blake2b

COMMAND_BYTES_MAX = 120000  # one argument of execve holds 128 KiB; files add names
NAME_CHARS_MAX = 64  # of a user's own id (CONTRACT)
SHOWN_CHARS = 16  # the longest id that we make up (CONTRACT)
RUNS_MAX = 1000  # of one task; far above what retries and losses can make
RETRIES_MAX = 100
LOSSES_MAX = 5  # distinct attempts LOST before a task is given up (Slurm: 5)
LOSSES_ALONE = 2  # after that many it no longer gets neighbours to take with it
ATTEMPT_MAX = 1 << 20  # far above RUNS_MAX; a mad peer's is no more than that
TERM_MAX = 1 << 50  # far above what elections can make
COUNTER_MAX = 1 << 53  # JSON numbers stay exact up to here, in any language
NEEDS_KEPT = 64  # whose wire form is remembered: tasks come in lists of equal needs
DEPTH_MAX = 20  # of values that we don't know; each Python's own limit differs
HEX = frozenset("0123456789abcdef")
NAME_CHARS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
)


# What is written was read from JSON or made here: it has no circles to look for, which
# would take half of the time.
_write = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), check_circular=False
).encode


class Malformed(ValueError):
    """A record that breaks the rules; the text says which."""


class IllegalStep(Exception):
    """A step that RUN_STEPS doesn't have: our own bug; nothing was changed."""


class State(Enum):
    """What users see of a task; `value` is the word in every listing."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DELETED = "deleted"

    __hash__ = object.__hash__  # Enum's own is in Python, until 3.12


class Phase(IntEnum):
    """Where a run is. The last two are final and written by its worker alone."""

    GRANTED = 0
    STARTED = 1
    LOST = 2
    RETURNED = 3
    ENDED = 4


UNFINISHED = frozenset((State.WAITING, State.RUNNING))
LIVING = frozenset((Phase.GRANTED, Phase.STARTED))
FINAL = Phase.RETURNED

# (state, what happened) -> state. A pair that isn't here can't be observed; the
# README draws the same arrows and a test compares both with what `derive` does.
LIFECYCLE: Dict[Tuple[State, str], State] = {
    (State.WAITING, "granted"): State.RUNNING,
    (State.RUNNING, "handed back"): State.WAITING,
    (State.RUNNING, "lost"): State.WAITING,
    (State.WAITING, "refuted"): State.RUNNING,
    (State.RUNNING, "ended badly, retries left"): State.WAITING,
    (State.RUNNING, "ended badly"): State.FAILED,
    (State.RUNNING, "ended well"): State.DONE,
    # A run that was thought lost ends after all, or the second of two runs.
    (State.WAITING, "ended badly"): State.FAILED,
    (State.WAITING, "ended well"): State.DONE,
    (State.FAILED, "ended well"): State.DONE,
    (State.WAITING, "given up"): State.FAILED,
    (State.RUNNING, "given up"): State.FAILED,
    (State.WAITING, "deleted"): State.DELETED,
    (State.RUNNING, "deleted"): State.DELETED,
    # Deleted in one partition while it finished in the other.
    (State.DONE, "deleted"): State.DELETED,
    (State.FAILED, "deleted"): State.DELETED,
}

RUN_STEPS: Dict[Tuple[Phase, str], Phase] = {
    (Phase.GRANTED, "start"): Phase.STARTED,
    (Phase.GRANTED, "return"): Phase.RETURNED,
    (Phase.GRANTED, "lose"): Phase.LOST,
    (Phase.STARTED, "end"): Phase.ENDED,
    (Phase.STARTED, "return"): Phase.RETURNED,
    (Phase.STARTED, "lose"): Phase.LOST,
    (Phase.LOST, "refute"): Phase.STARTED,
    (Phase.LOST, "end"): Phase.ENDED,
    (Phase.LOST, "return"): Phase.RETURNED,
}


class File(NamedTuple):
    """A file that a task needs: its name as given, sha256 hex, bytes, mode bits."""

    name: str
    digest: str
    size: int
    mode: int


class Needs(NamedTuple):
    """What a task asks for. Equal needs are one object, shared by all tasks."""

    memory: int = 0
    cores: int = 1
    storage: int = 0
    concurrency: bool = True
    conditions: Tuple[str, ...] = ()
    files: Tuple[File, ...] = ()
    keep_names: bool = False
    timeout: float = 0.0  # seconds; 0: none
    retries: int = 0
    priority: int = 0

    @property
    def disk(self) -> int:
        """Bytes that must be free where it runs: STORAGE and the files' sizes."""
        sizes = sum(file.size for file in self.files) if self.files else 0
        return self.storage + sizes


class Run(NamedTuple):
    """One attempt at a task. `detail` says what its phase has to tell:

    node (name), at (wall clock of the start), and once final: why, or exit, cause,
    end (wall), took (s), out and err as [bytes, digest].
    """

    worker: str
    session: int
    inc: int
    phase: Phase
    detail: Dict[str, Any]


def canonical(value: Any) -> bytes:
    """Give the one JSON text of a value, on every version and word size."""
    return _write(value).encode("ascii")


def hash64(data: bytes) -> int:
    """Give the 64-bit BLAKE2b of data as a number."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def smaller(a: Any, b: Any) -> Any:
    """Choose between copies that contradict each other: the smaller hash, anywhere."""
    x, y = canonical(a), canonical(b)  # not a == b: 1, 1.0 and True are three texts
    return a if (hash64(x), x) <= (hash64(y), y) else b


@lru_cache(maxsize=1000)
def run_order(run_key: str) -> Tuple[int, int, str, int]:
    """Split a run key, `attempt.term.coordinator's writer.n`, into what orders it."""
    attempt, term, writer, n = run_key.split(".")
    return int(attempt), int(term), writer, int(n)


def advance(run: Run, event: str, detail: Dict[str, Any]) -> Run:
    """Take one step of RUN_STEPS; `refute` raises the incarnation."""
    phase = RUN_STEPS.get((run.phase, event))
    if phase is None:
        raise IllegalStep(f"a run that is {run.phase.name} can't {event}")
    inc = min(run.inc + (event == "refute"), COUNTER_MAX)
    return Run(run.worker, run.session, inc, phase, {**run.detail, **detail})


def join_runs(a: Run, b: Run) -> Run:
    """Join two copies of one run (associative: a lexicographic join)."""
    mine, theirs = [a.worker, a.session], [b.worker, b.session]
    if mine != theirs:
        return a if smaller(mine, theirs) is mine else b
    x, y = _rank(a), _rank(b)
    if x != y:
        return a if x > y else b
    return a if smaller(a.detail, b.detail) is a.detail else b


def _contradict(a: Run, b: Run) -> bool:
    """Say whether copies differ in what one author writes once."""
    if (a.worker, a.session) != (b.worker, b.session):
        return True
    if min(a.phase, b.phase) < FINAL:
        return False
    return canonical([a.phase, a.detail]) != canonical([b.phase, b.detail])


def _rank(run: Run) -> Tuple[int, int, int]:
    return (run.phase if run.phase >= FINAL else 0, run.inc, run.phase)


class Rest(NamedTuple):
    """What tasks of one list have in common: one object for all, and never changed."""

    needs: Needs
    adder: str
    added: float = 0.0
    name: str = ""
    deleted: bool = False
    given_up: str = ""
    extra: Optional[Dict[str, Any]] = None
    suffix: str = ""  # by which the queue tells it from one of the same name
    over_at: int = -1  # this node's own stamp (purge.py); never on the wire


def _in_rest(field: str) -> Any:
    """Make an attribute that stands in `rest`; to set it takes a Rest of one's own."""

    def put(record: "Record", value: Any) -> None:
        record.rest = record.rest._replace(**{field: value})

    return property(attrgetter("rest." + field), put)


class Record:
    """One task as a replica knows it. Change it through Queue only.

    A million may wait, so each has little of its own: what is shared is in `rest`, and
    what can be computed isn't kept.
    """

    __slots__ = [*"key command order state runs rest".split()]  # mypy: not all there is

    needs: Needs = _in_rest("needs")
    adder: str = _in_rest("adder")
    added: float = _in_rest("added")
    name: str = _in_rest("name")
    deleted: bool = _in_rest("deleted")
    given_up: str = _in_rest("given_up")
    extra: Optional[Dict[str, Any]] = _in_rest("extra")
    suffix: str = _in_rest("suffix")
    over_at: int = _in_rest("over_at")

    def __init__(
        self, key: str, command: str, needs: Needs, order: int, adder: str
    ) -> None:
        self.key = key
        self.command = command
        self.order = order
        self.state = State.WAITING
        self.runs: Dict[str, Run] = NO_RUNS
        self.rest = Rest(needs, adder)

    @property
    def digest(self) -> int:
        """The hash by which copies are compared."""
        return hash64(text_of(self))

    def __lt__(self, other: "Record") -> bool:
        if self.order != other.order:
            return self.order < other.order
        return self.key < other.key

    @property
    def shown(self) -> str:
        """The id that users see: their own, or a prefix of the key.

        Two tasks of one name, from two partitions, differ by their suffix.
        """
        if self.name:
            return self.name + self.suffix
        return self.key[: min(self.key.index("-") + 9, SHOWN_CHARS)]

    def living(self) -> List[str]:
        """Give the keys of the runs GRANTED or STARTED, smallest first."""
        keys = (key for key, run in self.runs.items() if run.phase in LIVING)
        return sorted(keys, key=run_order)

    def attempts(self, phase: Phase) -> "set[int]":
        """Give the distinct attempts in a phase; ENDED counts the bad ends only."""
        return {
            int(key.partition(".")[0])
            for key, run in self.runs.items()
            if run.phase is phase and not is_good_end(run)
        }

    def next_attempt(self) -> int:
        """Give 1 + the highest attempt LOST or ENDED (RETURNED doesn't count)."""
        used = [
            int(key.partition(".")[0])
            for key, run in self.runs.items()
            if run.phase in (Phase.LOST, Phase.ENDED)
        ]
        return min(1 + max(used, default=0), ATTEMPT_MAX)

    def telling_run(self) -> Optional[str]:
        """Give the key of the run that speaks for the state, if any does.

        Done: the smallest good end, the result. Running: the smallest that lives.
        Else the latest that ended, was lost or lives.
        """
        runs = self.runs.items()
        if self.state is State.DONE:
            ends = (key for key, run in runs if is_good_end(run))
            return min(ends, key=run_order, default=None)
        if self.state is State.RUNNING:
            return self.living()[0]
        kept = [key for key, run in runs if run.phase is not Phase.RETURNED]
        return max(kept, key=run_order, default=None)


NO_RUNS: Dict[str, Run] = {}  # shared by all that never ran; never written to


def is_good_end(run: Run) -> bool:
    """Say whether a run ended with exit 0."""
    return run.phase is Phase.ENDED and run.detail["exit"] == 0


def derive(record: Record) -> State:
    """Compute the state of a record, the first that applies (DESIGN 4)."""
    if record.deleted:
        return State.DELETED
    has_ended = lives = False
    for run in record.runs.values():
        if is_good_end(run):
            return State.DONE
        has_ended = has_ended or run.phase is Phase.ENDED
        lives = lives or run.phase in LIVING
    if record.given_up:
        return State.FAILED
    if has_ended and len(record.attempts(Phase.ENDED)) > record.needs.retries:
        return State.FAILED
    return State.RUNNING if lives else State.WAITING


def absorb(mine: Record, theirs: Record) -> bool:
    """Join another copy of the same record into mine; say whether copies disagreed.

    The caller compares `canonical(encode(mine))` or digests for "did it change".
    """
    contradiction = differs(mine, theirs)
    if contradiction:
        spec, other = _spec(mine), _spec(theirs)
        if smaller(spec, other) is other:
            mine.name, mine.command = theirs.name, theirs.command
            mine.needs = theirs.needs
    mine.order, mine.adder, mine.added = min(
        (mine.order, mine.adder, mine.added),
        (theirs.order, theirs.adder, theirs.added),
    )
    mine.deleted = mine.deleted or theirs.deleted
    if theirs.given_up:
        both = mine.given_up or theirs.given_up
        mine.given_up = smaller(both, theirs.given_up)
    if theirs.runs:
        runs = dict(mine.runs)
        for key, run in theirs.runs.items():
            known = runs.get(key, run)
            contradiction = contradiction or _contradict(known, run)
            runs[key] = join_runs(known, run)
        mine.runs = runs
    if theirs.extra:
        extra = dict(mine.extra or {})
        for field, value in theirs.extra.items():
            extra[field] = smaller(extra.get(field, value), value)
        mine.extra = extra
    return contradiction


def differs(mine: Record, theirs: Record) -> bool:
    """Say whether two copies disagree on what is immutable."""
    return canonical(_spec(mine)) != canonical(_spec(theirs))


def _spec(record: Record) -> List[Any]:
    return [record.name, record.command, _encode_needs(record.needs)]


# --- the wire and disk form -----------------------------------------------------

_NEEDS_WIRE = (
    # wire name, attribute; conditions and files are lists on the wire
    ("mem", "memory"),
    ("cores", "cores"),
    ("sto", "storage"),
    ("con", "concurrency"),
    ("if", "conditions"),
    ("files", "files"),
    ("keep", "keep_names"),
    ("time", "timeout"),
    ("try", "retries"),
    ("pri", "priority"),
)
_DEFAULTS = Needs()
KNOWN_FIELDS = frozenset(
    ["k", "id", "c", "o", "by", "at", "del", "gu", "runs"]
    + [wire for wire, _ in _NEEDS_WIRE]
)


def encode(record: Record) -> Dict[str, Any]:
    """Give the record as a JSON object; what has its default is left out."""
    wire: Dict[str, Any] = dict(record.extra or {})
    wire.update(_encode_needs(record.needs))
    wire["k"], wire["c"], wire["o"] = record.key, record.command, record.order
    wire["by"], wire["at"] = record.adder, record.added
    if record.name:
        wire["id"] = record.name
    if record.deleted:
        wire["del"] = True
    if record.given_up:
        wire["gu"] = record.given_up
    if record.runs:
        wire["runs"] = {key: list(run) for key, run in record.runs.items()}
    return wire


def text_of(record: Record) -> bytes:
    """Give canonical(encode(record)), in a third of the time for most records."""
    needs, adder, added, name, deleted, given_up, extra = record.rest[:7]
    if deleted or given_up or extra:
        return canonical(encode(record))
    before_id, before_k, before_o, before_runs, last = _needs_texts(needs)
    text = '{"at":%r,"by":%s,"c":%s%s%s%s,"k":"%s"%s,"o":%d%s%s%s}' % (
        *(added, _quoted(adder), _quoted(record.command), before_id),
        ',"id":' + _quoted(name) if name else "",
        *(before_k, record.key, before_o, record.order, before_runs),
        ',"runs":' + _write(record.runs) if record.runs else "",
        last,
    )
    return text.encode("ascii")


@lru_cache(maxsize=NEEDS_KEPT)
def _needs_texts(needs: Needs) -> List[str]:
    """Give the wire form of needs as text, cut where other fields come between."""
    texts = ["", "", "", "", ""]
    for wire, value in sorted(_encode_needs(needs).items()):
        texts[bisect(("id", "k", "o", "runs"), wire)] += f',"{wire}":{_write(value)}'
    return texts


@lru_cache(maxsize=NEEDS_KEPT)
def _encode_needs(needs: Needs) -> Dict[str, Any]:
    """Give the wire form of needs; it is shared, and nobody may change it."""
    needs = needs._replace(timeout=float(needs.timeout))  # 90 and 90.0 hash alike
    return {
        wire: getattr(needs, name)
        for wire, name in _NEEDS_WIRE
        if getattr(needs, name) != getattr(_DEFAULTS, name)
    }


def split_key(key: Any) -> Tuple[int, str]:
    """Split `n-writer`; Malformed if it isn't one."""
    if isinstance(key, str):
        n, dash, writer = key.partition("-")
        if dash and 0 < len(n) < 17 and n.isdecimal() and str(int(n)) == n:
            if int(n) <= COUNTER_MAX and is_writer(writer):
                return int(n), writer
        raise Malformed(f"{key[:40]!r} is no key")
    raise Malformed("a key must be a text")


def is_writer(text: Any) -> bool:
    """Say whether it is a writer, 64 bits in hex."""
    return isinstance(text, str) and len(text) == 16 and HEX.issuperset(text)


def named_key(name: str, command: str, needs: Needs) -> str:
    """Give the key of a task with a user's own id: one name and spec, one record."""
    spec = canonical([name, command, _encode_needs(needs)])
    return f"0-{hash64(spec):016x}"


def is_name(name: str) -> bool:
    """Say whether a text may be a user's own id (CONTRACT)."""
    return (
        0 < len(name) <= NAME_CHARS_MAX
        and NAME_CHARS.issuperset(name)
        and not name.startswith("-")
        and name not in ("all", "last")
    )
