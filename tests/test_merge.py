"""The merge laws (D7, D9, D11; S3, S4, S9), on seeded random histories.

The oracle is slow and obvious: it keeps every fact that a replica ever saw, as JSON,
and folds them all by the rules that record.py writes down. A failure names its seed.
"""

import json
import random
from typing import Any, Dict, List, Set, Tuple

import pytest

from decoding import decode
from hashtree import leaf_of
from record import (
    RUN_STEPS,
    Needs,
    Phase,
    Run,
    State,
    absorb,
    canonical,
    encode,
    hash64,
    named_key,
    split_key,
)
from taskqueue import Queue, name_mark

WRITERS = ["%016x" % (n * 0x1111111111111111) for n in range(1, 5)]
DIGEST = "ab" * 32
ODD = [True, 1, 1.0, 0, -0.0, None, "", "\udcff", [1], [1.0], {"x": [None]}, "é"]

Wire = Dict[str, Any]


def through_json(wire: Any) -> Any:
    return json.loads(json.dumps(wire))


# --- random facts ---------------------------------------------------------------------


def some_detail(rng: random.Random, phase: int) -> Wire:
    detail: Wire = {"node": rng.choice(["old1", "old2"])}
    if phase >= Phase.STARTED:
        detail["at"] = rng.choice([1, 1.0, 2.5])
    if phase == Phase.ENDED:
        detail.update(exit=rng.choice([0, 1]), cause="", out=[3, DIGEST])
    if rng.random() < 0.1:
        detail["later"] = rng.choice(ODD)
    return detail


def some_run(rng: random.Random) -> List[Any]:
    phase = rng.randrange(5)
    worker = rng.choice(WRITERS[:2])
    return [worker, rng.randrange(2), rng.randrange(3), phase, some_detail(rng, phase)]


def some_copy(rng: random.Random, key: str) -> Wire:
    """Make one of the copies of a task that contradict each other in every way."""
    wire: Wire = {"k": key, "c": rng.choice(["true", "a", "a", "\udcff"])}
    wire.update(o=rng.randrange(3), by=rng.choice("ab"), at=rng.choice([0.0, -0.0, 1]))
    if rng.random() < 0.4:
        wire["try"] = rng.choice([1, 2])
    if rng.random() < 0.2:
        wire.update(files=[["in", DIGEST, 5, 420]], keep=True, con=False, time=90)
    if rng.random() < 0.2:
        wire["if"] = [rng.choice(["queue:is_first", "worker:tag gpu", "queue:new x"])]
    if rng.random() < 0.2:
        wire["del"] = True
    if rng.random() < 0.2:
        wire["gu"] = rng.choice(["lost 5 times", "why"])
    for attempt in range(1, rng.randrange(1, 4)):
        run_key = "%d.%d.%s.1" % (attempt, rng.randrange(2), rng.choice(WRITERS[:2]))
        wire.setdefault("runs", {})[run_key] = some_run(rng)
    for field in ("new", "newer"):
        if rng.random() < 0.3:
            wire[field] = rng.choice(ODD)
    return wire


def some_named_copy(rng: random.Random) -> Wire:
    wire = some_copy(rng, "")
    for field in ("try", "files", "keep", "con", "time", "if"):
        wire.pop(field, None)
    wire.update(c="true", id="mine", k=named_key("mine", "true", Needs()))
    return wire


# --- the oracle -----------------------------------------------------------------------


def least(values: List[Any]) -> Any:
    return min(values, key=lambda v: (hash64(canonical(v)), canonical(v)))


NEEDS = ("mem", "cores", "sto", "con", "if", "files", "keep", "time", "try", "pri")


def fold_runs(copies: List[List[Any]]) -> List[Any]:
    """Join copies of one run: immutable part, then how far it is, then the detail."""
    who = least([run[:2] for run in copies])
    copies = [run for run in copies if run[:2] == who]
    final = max(run[3] if run[3] >= Phase.RETURNED else 0 for run in copies)
    if final:
        copies = [run for run in copies if run[3] == final]
    inc = max(run[2] for run in copies)
    copies = [run for run in copies if run[2] == inc]
    phase = max(run[3] for run in copies)
    return [*who, inc, phase, least([run[4] for run in copies if run[3] == phase])]


def fold(facts: List[Wire]) -> Wire:
    """Join all copies of one task at once."""
    specs = [
        [w.get("id", ""), w["c"], {f: w[f] for f in NEEDS if f in w}] for w in facts
    ]
    name, command, needs = least(specs)
    o, by, at = min((w["o"], w["by"], w["at"]) for w in facts)
    wire: Wire = dict(needs, k=facts[0]["k"], c=command, o=o, by=by, at=at)
    if name:
        wire["id"] = name
    if any(w.get("del") for w in facts):
        wire["del"] = True
    if any("gu" in w for w in facts):
        wire["gu"] = least([w["gu"] for w in facts if "gu" in w])
    keys = sorted({key for w in facts for key in w.get("runs", {})})
    if keys:
        copies = {
            k: [w["runs"][k] for w in facts if k in w.get("runs", {})] for k in keys
        }
        wire["runs"] = {k: fold_runs(copies[k]) for k in keys}
    for field in ("new", "newer"):
        if any(field in w for w in facts):
            wire[field] = least([w[field] for w in facts if field in w])
    return wire


def tidy(wire: Wire) -> Wire:
    """Give the normal form (1 -> 1.0, defaults left out) as JSON has it."""
    return through_json(encode(decode(through_json(wire))))  # type: ignore[no-any-return]


def joined(*wires: Wire) -> Wire:
    record = decode(through_json(wires[0]))
    for wire in wires[1:]:
        absorb(record, decode(through_json(wire)))
    return through_json(encode(record))  # type: ignore[no-any-return]


def same(a: Any, b: Any) -> bool:
    return canonical(a) == canonical(b)


# --- the laws, for records ------------------------------------------------------------


def test_the_join_is_commutative_associative_idempotent_and_inflationary_d7():
    for seed in range(700):
        rng = random.Random(seed)
        key = "7-" + WRITERS[0]
        if seed % 5:
            a, b, c = (some_copy(rng, key) for _ in range(3))
        else:
            a, b, c = (some_named_copy(rng) for _ in range(3))
        ab = joined(a, b)
        assert same(ab, joined(b, a)), f"commutative, seed {seed}"
        assert same(joined(ab, c), joined(a, joined(b, c))), f"associative, seed {seed}"
        assert same(joined(a, a), tidy(a)), f"idempotent, seed {seed}"
        assert same(joined(ab, ab), ab), f"idempotent, seed {seed}"
        assert same(joined(a, ab), ab), f"inflationary, seed {seed}"
        assert same(joined(ab, b), ab), f"inflationary, seed {seed}"


def test_any_order_with_duplicates_gives_what_the_oracle_folds_s3():
    for seed in range(300):
        rng = random.Random(seed)
        key = "7-" + WRITERS[0]
        copies = [some_copy(rng, key) for _ in range(rng.randrange(1, 6))]
        expected = fold([tidy(w) for w in copies])
        delivered = copies + rng.choices(copies, k=3)
        rng.shuffle(delivered)
        assert same(joined(*delivered), expected), f"seed {seed}"


def test_the_wire_form_survives_a_round_trip_with_state_and_hash():
    for seed in range(400):
        rng = random.Random(seed)
        wire = some_copy(rng, "7-" + WRITERS[0]) if seed % 4 else some_named_copy(rng)
        record = decode(through_json(wire))
        again = decode(through_json(encode(record)))
        assert same(encode(record), encode(again)), f"seed {seed}"
        assert record.digest == again.digest, f"seed {seed}"
        assert record.state is again.state, f"seed {seed}"
        assert record.needs == again.needs and record.name == again.name
        for field in ("new", "newer"):
            assert same(wire.get(field), encode(again).get(field)), f"seed {seed}"


def test_a_record_made_here_and_its_decoded_copy_have_one_hash():
    queue = Queue()
    needs = Needs(timeout=90, conditions=("worker:tag gpu",))  # an int on purpose
    record = queue.add("1-" + WRITERS[0], "true", needs, "me", 5, "")
    assert decode(through_json(encode(record))).digest == record.digest
    key = named_key("mine", "true", needs)
    named = queue.add(key, "true", needs, "me", 5, "mine")
    assert decode(through_json(encode(named))).digest == named.digest


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [({"at": 1}, {"at": 1.0}), ({"x": True}, {"x": 1}), ({"x": 0.0}, {"x": -0.0})],
)
def test_what_python_calls_equal_but_json_writes_differently_still_commutes(
    mine, theirs
):
    base = {"k": "7-" + WRITERS[0], "c": "a", "o": 1, "by": "", "at": 0.0}
    run = [WRITERS[0], 0, 0, 1]
    a = dict(base, runs={f"1.1.{WRITERS[0]}.1": [*run, mine]}, new=mine)
    b = dict(base, runs={f"1.1.{WRITERS[0]}.1": [*run, theirs]}, new=theirs)
    assert same(joined(a, b), joined(b, a))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"c": "b"}, 1),
        ({"try": 3}, 1),
        ({"o": 9, "at": 9.0, "by": "z", "del": True, "gu": "x", "new": 1}, 0),
        ({"runs": {f"1.1.{WRITERS[0]}.1": [WRITERS[1], 0, 0, 0, {}]}}, 1),
        ({"runs": {f"1.1.{WRITERS[0]}.1": [WRITERS[0], 0, 1, 1, {}]}}, 0),
        ({"runs": {f"1.1.{WRITERS[0]}.1": [WRITERS[0], 0, 0, 4, {"exit": 1}]}}, 1),
        ({"runs": {f"1.1.{WRITERS[0]}.1": [WRITERS[0], 0, 0, 3, {}]}}, 1),
    ],
)
def test_copies_that_contradict_each_other_are_counted(change, counts):
    run = [WRITERS[0], 0, 0, 4, {"exit": 0}]
    wire = {"k": "7-" + WRITERS[0], "c": "a", "o": 1, "by": "", "at": 0.0}
    wire["runs"] = {f"1.1.{WRITERS[0]}.1": run}
    queue = Queue()
    queue.merge(wire)
    queue.merge(through_json(dict(wire, **change)))
    assert queue.contradictions == counts


# --- the laws, for queues -------------------------------------------------------------


class Replica:
    """A queue beside all the facts that it saw."""

    def __init__(self, writer: str) -> None:
        self.queue = Queue()
        self.writer = writer
        self.facts: Dict[str, List[Wire]] = {}
        self.purged: Set[Tuple[str, int]] = set()
        self.n = 0

    def see(self, key: str) -> None:
        """Note what a local step made of a record."""
        wire = through_json(encode(self.queue.records[key]))
        self.facts.setdefault(key, []).append(wire)

    def merge(self, wire: Wire) -> None:
        self.queue.merge(through_json(wire))
        self.facts.setdefault(wire["k"], []).append(wire)

    def cover(self, writer: str, low: int, high: int) -> None:
        self.queue.cover(writer, low, high)
        self.purged |= {(writer, n) for n in range(low, high + 1)}

    def content(self) -> bytes:
        records = [encode(r) for _, r in sorted(self.queue.records.items())]
        return canonical([records, self.queue.purged.intervals])

    def expected(self) -> bytes:
        records = [
            fold(facts)
            for key, facts in sorted(self.facts.items())
            if split_key(key)[::-1] not in self.purged
        ]
        intervals: Dict[str, List[List[int]]] = {}
        for writer, n in sorted(self.purged):
            known = intervals.setdefault(writer, [])
            if known and known[-1][1] == n - 1:
                known[-1][1] = n
            else:
                known.append([n, n])
        return canonical([records, intervals])


def local_step(rng: random.Random, replica: Replica) -> None:
    """Add a task, or take a legal step with one."""
    queue = replica.queue
    if rng.random() < 0.3 or not queue.records:
        replica.n += 1
        name = rng.choice(["", "", "", "one", "two"])
        key = f"{replica.n}-{replica.writer}"
        needs = Needs(retries=rng.randrange(2))
        if name:
            key = named_key(name, "true", needs)
            known = key in queue.records or queue.purged.covers(key)
            if known or queue.is_name_purged(name):
                return
        queue.add(key, "true", needs, replica.writer, replica.n, name)
        return replica.see(key)
    key = rng.choice(sorted(queue.records))
    record = queue.records[key]
    finished = record.state not in (State.WAITING, State.RUNNING)
    event = rng.choice(
        "grant grant start end end return lose refute delete gu purge".split()
    )
    if event == "purge":
        if finished:
            queue.purge([key])
            replica.purged.add(split_key(key)[::-1])
            if record.name:
                replica.purged.add((name_mark(record.name), 0))
        return
    if event == "delete" and rng.random() < 0.3:
        queue.delete(key)
    elif event == "gu" and rng.random() < 0.3:
        queue.give_up(key, "lost 5 times")
    elif event == "grant" and record.state is State.WAITING:
        replica.n += 1
        run_key = f"{record.next_attempt()}.1.{replica.writer}.{replica.n}"
        run = Run(rng.choice(WRITERS[:3]), 0, 0, Phase.GRANTED, {"node": "old1"})
        queue.grant(key, run_key, run)
    else:
        return step_a_run(rng, replica, key, event)
    replica.see(key)


def step_a_run(rng: random.Random, replica: Replica, key: str, event: str) -> None:
    runs = replica.queue.records[key].runs
    may = [
        key
        for key, run in sorted(runs.items())
        if (run.phase, event) in RUN_STEPS
        and (event == "lose" or run.worker == replica.writer)  # S8: who may write it
    ]
    if may:
        detail = {"exit": rng.choice([0, 1, 1])} if event == "end" else {}
        replica.queue.advance(key, rng.choice(may), event, detail)
        replica.see(key)


def deliver(rng: random.Random, sender: Replica, receiver: Replica, most: int) -> None:
    """Pass some of what one has to the other: any order, doubled, some lost."""
    wires = [through_json(encode(r)) for r in sender.queue.records.values()]
    for wire in rng.choices(wires, k=min(most, len(wires))):
        receiver.merge(wire)
    for writer, intervals in sender.queue.purged.intervals.items():
        for low, high in intervals:
            if rng.random() < 0.5:
                receiver.cover(writer, low, high)


def recomputed_leaves(queue: Queue) -> List[int]:
    leaves = [0] * len(queue.tree.leaves)
    for key, record in queue.records.items():
        leaves[leaf_of(key)] ^= decode(through_json(encode(record))).digest
    return leaves


@pytest.mark.parametrize("seeds", [range(n, n + 20) for n in range(0, 40, 20)])
def test_replicas_hold_what_the_oracle_folds_and_end_equal_s3_s9_d11(seeds):
    contents: Dict[int, bytes] = {}
    for seed in seeds:
        rng = random.Random(seed)
        replicas = [Replica(writer) for writer in WRITERS[:3]]
        late = random.Random(seed).choice(replicas)
        for turn in range(60):
            local_step(rng, rng.choice(replicas))
            if rng.random() < 0.4:
                a, b = rng.sample(replicas, 2)
                if late not in (a, b) or turn > 40:
                    deliver(rng, a, b, 4)
            if turn % 20 == 19:
                for replica in replicas:
                    where = f"seed {seed}, turn {turn}"
                    assert replica.content() == replica.expected(), where
                    check_sums(replica, where)
                    root = replica.queue.root
                    assert contents.setdefault(root, replica.content()) == (
                        replica.content()
                    ), f"equal roots of unlike queues, {where}"
        converge(replicas)
        for replica in replicas:
            assert replica.content() == replicas[0].content(), f"seed {seed}"
            assert replica.queue.root == replicas[0].queue.root, f"seed {seed}"
            assert replica.content() == replica.expected(), f"seed {seed}"
            assert replica.queue.contradictions == 0, f"seed {seed}"


def converge(replicas: List[Replica]) -> None:
    for _ in range(2):
        for sender in replicas:
            for receiver in replicas:
                for writer, found in sender.queue.purged.intervals.items():
                    for low, high in [tuple(pair) for pair in found]:
                        receiver.cover(writer, low, high)
                for record in list(sender.queue.records.values()):
                    receiver.merge(through_json(encode(record)))


def check_sums(replica: Replica, where: str) -> None:
    queue = replica.queue
    assert queue.tree.leaves == recomputed_leaves(queue), where
    fresh = Queue()
    for record in queue.records.values():
        fresh.merge(through_json(encode(record)))
    for writer, intervals in queue.purged.intervals.items():
        for low, high in intervals:
            fresh.cover(writer, low, high)
    assert fresh.root == queue.root, where
    assert fresh.counts == queue.counts, where
    assert fresh.writers == queue.writers, where
    assert {n: sorted(k) for n, k in fresh.names.items()} == (
        {n: sorted(k) for n, k in queue.names.items()}
    ), where


def test_every_local_step_only_moves_up_d7():
    for seed in range(25):
        rng = random.Random(seed)
        replica = Replica(WRITERS[0])
        for _ in range(60):
            local_step(rng, replica)
        for key, facts in replica.facts.items():
            for before, after in zip(facts, facts[1:]):
                assert same(joined(before, after), after), f"seed {seed}, {key}"


def test_a_final_state_never_becomes_an_unfinished_one_s4():
    for seed in range(20):
        rng = random.Random(seed)
        replicas = [Replica(writer) for writer in WRITERS[:3]]
        ended: Set[Tuple[str, str]] = set()
        for _ in range(80):
            local_step(rng, rng.choice(replicas))
            deliver(rng, *rng.sample(replicas, 2), 2)
            for replica in replicas:
                for key, record in replica.queue.records.items():
                    if record.state not in (State.WAITING, State.RUNNING):
                        ended.add((replica.writer, key))
                    else:
                        assert (replica.writer, key) not in ended, f"seed {seed}"


def test_what_is_purged_does_not_come_back_s9():
    queue = Queue()
    wires = []
    for n in range(1, 6):
        record = queue.add(f"{n}-{WRITERS[0]}", "true", Needs(), "me", 0, "")
        wires.append(through_json(encode(record)))
    queue.purge([f"{n}-{WRITERS[0]}" for n in (1, 2, 4)])
    assert queue.purged.intervals == {WRITERS[0]: [[1, 2], [4, 4]]}
    for wire in wires:
        queue.merge(wire)
    assert sorted(queue.records) == [f"{n}-{WRITERS[0]}" for n in (3, 5)]
