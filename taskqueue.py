"""The replicated queue: every task's record, what is purged, and a hash over it all.

Rules. The only place that changes a Record. Pure (D6): no I/O, no clock. It doesn't
know who asks, why, or where tasks run: node.py decides, matching.py places.

How it works. `records` maps keys to records. Each change, local or merged from a
peer, is followed: the state is computed anew, the tree of hashes is told (hashtree.py)
and then `on_change(record, old state, new state)` (the matcher keeps its indexes by it;
None is "not there"; a record whose order or spec a merge changed goes, and comes back
as another object).

PURGED is remembered per writer as intervals that never bridge an id that isn't
purged itself: a comrade that was away for a year can't bring back what is done with,
and what it added alone survives.

Invariants.
D7  Merging is the join of record.py; purged ids stay out whatever arrives later.
D9  What can't be decoded is set aside (`malformed` counts it) and changes nothing.
D11 Equal `root` means equal queues: it covers the records and the intervals.
"""

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

from decoding import decode
from hashtree import HashTree, leaf_of
from record import (
    COUNTER_MAX,
    SHOWN_CHARS,
    Malformed,
    Needs,
    Record,
    Rest,
    Run,
    State,
    absorb,
    advance,
    canonical,
    derive,
    differs,
    hash64,
    is_name,
    split_key,
    text_of,
)

FRAME_RECORDS_MAX = 5000  # several times what any sender puts into one
MALFORMED_MAX = 1000  # records set aside that are told apart; more aren't counted
SUFFIX_CHARS = 4  # of a hash: tells tasks of one name apart; more if it must be
SPARE_NEEDS = 1000  # Needs that no record has any more, before they are dropped

Detail = Dict[str, Any]  # see record.Run
OnChange = Callable[[Record, Optional[State], Optional[State]], None]


class Purged:
    """The ids that are done with for good: {writer: sorted disjoint [low, high]}."""

    def __init__(self) -> None:
        self.intervals: Dict[str, List[List[int]]] = {}
        self.hash = 0
        self.unsaved: Dict[str, None] = {}  # writers whose intervals the disk lacks
        self.untold: Dict[str, None] = {}  # ... the outboxes lack (replica.py)

    def covers(self, key: str) -> bool:
        """Say whether a task's key is purged."""
        n, writer = split_key(key)
        known = self.intervals.get(writer)
        if known is None:
            return False
        i = bisect_right(known, [n, COUNTER_MAX])
        return i > 0 and n <= known[i - 1][1]

    def add(self, writer: str, low: int, high: int) -> None:
        """Cover low..high of a writer; touching intervals become one."""
        known = self.intervals.setdefault(writer, [])
        i = max(0, bisect_left(known, [low]) - 1)
        if i < len(known) and known[i][1] + 1 < low:
            i += 1
        end = bisect_right(known, [high + 1, COUNTER_MAX + 1])
        touched = known[i:end]
        ends = [low, high, *(n for interval in touched for n in interval)]
        whole = [min(ends), max(ends)]
        if touched == [whole]:
            return
        known[i:end] = [whole]
        self.unsaved[writer] = self.untold[writer] = None
        for interval in [*touched, whole]:
            self.hash ^= hash64(canonical([writer, interval]))


class Joined(NamedTuple):
    """What became of a record of a peer: None, it is purged; just so: no news to it."""

    key: str
    record: Optional[Record]
    is_just_so: bool


class Queue:
    """All tasks of the cluster, as this replica knows them."""

    def __init__(self, on_change: Optional[OnChange] = None) -> None:
        self.records: Dict[str, Record] = {}
        self.purged = Purged()
        self.tree = HashTree(self.records)
        self.lamport = 0
        self.version = 0  # grows with every change
        self.counts: Dict[State, int] = {state: 0 for state in State}
        self.contradictions = 0
        self.malformed: Dict[int, str] = {}  # hash of what arrived -> why; bounded
        self.names: Dict[str, List[str]] = {}  # a user's own id -> keys
        self.writers: Dict[str, int] = {}  # writer -> records with its name
        self.on_change = on_change or (lambda record, old, new: None)
        self._needs: Dict[Needs, Needs] = {}
        self._last = Record("", "", Needs(), 0, "")  # that came

    @property
    def root(self) -> int:
        """The hash of all records and of PURGED (D11)."""
        return self.tree.root ^ self.purged.hash

    # --- what comes from elsewhere ------------------------------------------------

    def merge(self, wire: Any) -> Optional[Record]:
        """Join a record in its wire form; None if it is purged or malformed."""
        try:
            theirs = decode(wire)
        except (Malformed, RecursionError) as problem:
            self.set_aside(wire, problem)
            return None
        return self.join(theirs).record

    def join(self, theirs: Record) -> Joined:
        """Join a record as `decode` gave it; its object is ours from now on."""
        key, text = theirs.key, text_of(theirs)
        digest = hash64(text)
        if self.purged.covers(key):
            return Joined(key, None, False)
        self.lamport = max(self.lamport, theirs.order)
        mine = self.records.get(key)
        if mine is None:
            self._insert(theirs, text)
            return Joined(key, theirs, True)
        known = self.tree.digest_of(mine)
        if known == digest:
            return Joined(key, mine, True)
        if theirs.order < mine.order or differs(mine, theirs):
            # Indexes hang on these: out with the old object, which stays as it was.
            self.contradictions += absorb(theirs, mine)
            self._remove(mine)
            joined = self._insert(theirs)
            return Joined(key, theirs, joined == digest)
        self.contradictions += absorb(mine, theirs)
        return Joined(key, mine, self._settle(mine, known) == digest)

    def join_all(self, wires: Any) -> Tuple[List[Joined], bool]:
        """Join what a frame holds, or raise Malformed; say if all could be decoded."""
        joined, is_whole = [], True
        if not isinstance(wires, list) or len(wires) > FRAME_RECORDS_MAX:
            raise Malformed("records must be a list of %d at most" % FRAME_RECORDS_MAX)
        for wire in wires:
            try:
                theirs = decode(wire)
            except (Malformed, RecursionError) as problem:
                self.set_aside(wire, problem)
                is_whole = False
                continue
            joined.append(self.join(theirs))
        return joined, is_whole

    def set_aside(self, wire: Any, problem: Exception) -> None:
        # By content, not by arrival order: the same poison counts once.
        try:
            content = canonical(wire)
        except (TypeError, ValueError, RecursionError):
            content = str(problem).encode("ascii", "backslashreplace")
        if len(self.malformed) < MALFORMED_MAX:
            self.malformed[hash64(content)] = str(problem)

    # --- what is done here --------------------------------------------------------

    def add(
        self, key: str, command: str, needs: Needs, adder: str, added: float, name: str
    ) -> Record:
        """Add a task under a key that was never used (D8), as the youngest of all."""
        # A mad peer's order may be the highest there is; then keys order alone.
        self.lamport = min(self.lamport + 1, COUNTER_MAX)
        record = Record(key, command, needs, self.lamport, adder)
        record.rest = Rest(needs, adder, float(added), name)
        self._insert(record)
        return record

    def delete(self, key: str) -> None:
        """Take a task out of the queue, for good."""
        self._change(self.records[key], "deleted", True)

    def give_up(self, key: str, cause: str) -> None:
        """Grant it no more (a coordinator's decision)."""
        record = self.records[key]
        self._change(record, "given_up", record.given_up or cause)

    def grant(self, key: str, run_key: str, run: Run) -> None:
        """Add a run that was never there."""
        record = self.records[key]
        self._change(record, "runs", {**record.runs, run_key: run})

    def advance(self, key: str, run_key: str, event: str, detail: Detail) -> None:
        """Take a step of record.RUN_STEPS, or some; IllegalStep changes nothing."""
        record = self.records[key]
        run = record.runs[run_key]
        for step in event.split():  # "start end": one change, at half of what two cost
            run = advance(run, step, detail)
        self._change(record, "runs", {**record.runs, run_key: run})

    def _change(self, record: Record, field: str, value: Any) -> None:
        if getattr(record, field) == value:
            return
        old = record.state
        self.tree.will_change(record)
        setattr(record, field, value)
        record.state = derive(record)
        self._tell(record, old)

    def purge(self, keys: Iterable[str]) -> None:
        """Forget tasks and remember that they are done with."""
        for key in list(keys):
            record = self.records.get(key)
            n, writer = split_key(key)
            self.purged.add(writer, n, n)
            self.version += 1
            if record is not None:
                if record.name:
                    self.purged.add(name_mark(record.name), 0, 0)
                self._remove(record)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop tasks that nobody was told of: an add that couldn't be kept."""
        for key in keys:
            self._remove(self.records[key])

    def cover_all(self, intervals: Dict[str, List[List[int]]]) -> None:
        """Join a peer's PURGED, or a part of it.

        Raises Malformed, and changes nothing, if it is none (D9).
        """
        for writer, known in intervals.items():
            for low, high in known:
                _check_interval(writer, low, high)
        for writer, known in intervals.items():
            for low, high in known:
                self.purged.add(writer, low, high)
            self.version += 1
            if writer in self.writers:
                self._drop_covered(writer, known)

    def cover(self, writer: str, low: int, high: int) -> None:
        """Join one interval."""
        self.cover_all({writer: [[low, high]]})

    def _drop_covered(self, writer: str, intervals: List[List[int]]) -> None:
        if sum(high - low + 1 for low, high in intervals) <= len(self.records):
            keys = [
                f"{n}-{writer}" for low, high in intervals for n in range(low, high + 1)
            ]
        else:
            keys = [key for key in self.records if key.endswith(writer)]
        for key in keys:
            if key in self.records and self.purged.covers(key):
                self._remove(self.records[key])

    # --- what is asked ------------------------------------------------------------

    def in_order(self) -> List[Record]:
        """Give all records, oldest first."""
        return sorted(self.records.values(), key=attrgetter("order", "key"))

    def unfinished(self) -> int:
        """Give the number of tasks waiting or running."""
        return self.counts[State.WAITING] + self.counts[State.RUNNING]

    def find(self, text: str) -> List[Record]:
        """Give the tasks that an id, or the beginning of one, may mean.

        A user's own id, whole, wins over longer ones that begin with it.
        """
        if not text:
            return []
        named = [self.records[key] for key in self.names.get(text, ())]
        if named:
            return named
        n, dash, _ = text.partition("-")
        if dash and n.isdecimal():
            keys = [n + "-" + writer for writer in self.writers]
            found = [
                self.records[key]
                for key in keys
                if key.startswith(text) and key in self.records
            ]
            if found:
                return found
        return [r for r in self.records.values() if r.shown.startswith(text)]

    def is_id_purged(self, text: str) -> bool:
        """Say whether an id, whole as users saw it, belonged to a purged task."""
        if is_name(text) and self.is_name_purged(text):
            return True
        n, _, start = text.partition("-")
        if len(start) < min(8, SHOWN_CHARS - 1 - len(n)):
            return False
        keys = [f"{n}-{w}" for w in self.purged.intervals if w.startswith(start)]
        try:
            return any(self.purged.covers(key) for key in keys)
        except Malformed:
            return False

    def is_name_purged(self, name: str) -> bool:
        """Say whether a user's own id belonged to a task that is purged."""
        return name_mark(name) in self.purged.intervals

    def shared(self, needs: Needs) -> Needs:
        """Give the one object that stands for equal needs (memory)."""
        return self._needs.setdefault(needs, needs)

    def leaf_keys(self, leaf: int) -> Iterator[Tuple[str, int]]:
        """Give (key, hash) of the records in a leaf of the tree."""
        for key, record in self.records.items():
            if leaf_of(key) == leaf:
                yield key, record.digest

    # --- the one way in and out ---------------------------------------------------

    def _insert(self, record: Record, text: Optional[bytes] = None) -> int:
        if len(self._needs) > 2 * len(self.records) + SPARE_NEEDS:
            self._needs = {r.needs: r.needs for r in self.records.values()}
        self._share(record)
        self.records[record.key] = record
        writer = record.key.rpartition("-")[2]
        self.writers[writer] = self.writers.get(writer, 0) + 1
        if record.name:
            self.names.setdefault(record.name, []).append(record.key)
            self._tell_apart(record.name)
        return self._settle(record, None, text)

    def _share(self, record: Record) -> None:
        """Let what neighbours have in common be one object."""
        last, self._last = self._last, record
        if record.command == last.command:
            record.command = last.command
        # 1, 1.0 and True are equal in `extra`, and three texts.
        if record.rest.extra is None and record.rest == last.rest:
            record.rest = last.rest
        needs = self.shared(record.rest.needs)
        if needs is not record.rest.needs:
            record.rest = record.rest._replace(needs=needs)

    def _settle(
        self, record: Record, known: Optional[int], text: Optional[bytes] = None
    ) -> int:
        """Follow a join; `known`: the hash before, None for what is new.

        `text` is given if it is known already: the dearest part of a merge.
        """
        old = None if known is None else record.state
        record.state = derive(record)
        if text is None:
            text = text_of(record)
        digest = hash64(text)
        if digest == known:
            return digest
        self.tree.note(record, text, digest, known or 0)
        self._tell(record, old)
        return digest

    def _tell(self, record: Record, old: Optional[State]) -> None:
        if old is not record.state:
            self.counts[record.state] += 1
            if old is not None:
                self.counts[old] -= 1
        self.version += 1
        self.on_change(record, old, record.state)

    def _remove(self, record: Record) -> None:
        del self.records[record.key]
        self.tree.drop(record)
        self.counts[record.state] -= 1
        writer = record.key.rpartition("-")[2]
        self.writers[writer] -= 1
        if not self.writers[writer]:
            del self.writers[writer]
        if record.name:
            self.names[record.name].remove(record.key)
            if not self.names[record.name]:
                del self.names[record.name]
            self._tell_apart(record.name)
        self.version += 1
        self.on_change(record, record.state, None)

    def _tell_apart(self, name: str) -> None:
        """Give tasks of one name the suffix by which users tell them apart.

        A part of the hash that their keys are: the same on every node, in any order.
        """
        keys, size = self.names.get(name, []), SUFFIX_CHARS
        while len({key[2 : 2 + size] for key in keys}) < len(keys):
            size *= 2
        for key in keys:
            is_alone = len(keys) == 1
            self.records[key].suffix = "" if is_alone else "-" + key[2 : 2 + size]


def _check_interval(writer: Any, low: Any, high: Any) -> None:
    if not (type(low) is type(high) is int and low <= high):
        raise Malformed("an interval must be two whole numbers, low and high")
    for n in (low, high):
        split_key(f"{n}-{writer}")


def name_mark(name: str) -> str:
    """Give the writer under which a purged name is remembered."""
    return "{:016x}".format(hash64(b"name:" + name.encode("ascii")))
