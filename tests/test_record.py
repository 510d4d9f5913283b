"""Records: the lifecycle as it is really observed, decoding what peers send (D9)."""

import copy
import json
import random
import time
from typing import Any, Dict, List, Set, Tuple

import pytest

import decoding
import record
from decoding import decode
from record import (
    LIFECYCLE,
    RUN_STEPS,
    TERM_MAX,
    File,
    IllegalStep,
    Malformed,
    Needs,
    Phase,
    Record,
    Run,
    State,
    advance,
    canonical,
    derive,
    encode,
    hash64,
    is_name,
    named_key,
    split_key,
    text_of,
)
from taskqueue import Queue

W = "0123456789abcdef"
KEY = "1-" + W
RUN_KEY = f"1.1.{W}.1"
EVENTS = ["start", "end", "return", "lose", "refute"]


def said(before: Record, event: str, run: Run, after: State) -> str:
    """Say in the words of LIFECYCLE what a step of a run was."""
    if event == "end":
        if run.detail["exit"] == 0:
            return "ended well"
        is_left = after is State.WAITING
        return "ended badly, retries left" if is_left else "ended badly"
    words = {"return": "handed back", "lose": "lost", "refute": "refuted"}
    return words.get(event, event)


def walk(seed: int) -> List[Tuple[State, str, State]]:
    """Take random steps with one task; give the changes of state."""
    rng = random.Random(seed)
    queue = Queue()
    record = queue.add(KEY, "true", Needs(retries=rng.randrange(3)), "me", 0, "")
    seen = []
    for n in range(rng.randrange(2, 14)):
        old = record.state
        roll = rng.random()
        if roll < 0.03:
            what = "deleted"
            queue.delete(KEY)
        elif roll < 0.06:
            what = "given up"
            queue.give_up(KEY, "lost 5 times")
        elif roll < 0.4:
            # Two runs beside each other are what a partition leaves.
            what = "granted"
            run = Run(W, 0, 0, Phase.GRANTED, {})
            queue.grant(KEY, f"{record.next_attempt()}.1.{W}.{n}", run)
        else:
            may = [
                (key, event)
                for key, run in sorted(record.runs.items())
                for event in EVENTS
                if (run.phase, event) in RUN_STEPS
            ]
            if not may:
                continue
            key, event = rng.choice(may)
            detail = {"exit": rng.choice([0, 1])} if event == "end" else {}
            queue.advance(KEY, key, event, detail)
            what = said(record, event, record.runs[key], record.state)
        if record.state is not old:
            seen.append((old, what, record.state))
    return seen


def test_every_change_of_state_is_a_row_of_lifecycle_and_every_row_is_observed():
    observed: Set[Tuple[State, str]] = set()
    for seed in range(1500):
        for old, what, new in walk(seed):
            assert LIFECYCLE.get((old, what)) is new, f"seed {seed}: {old} {what} {new}"
            observed.add((old, what))
    assert observed == set(LIFECYCLE)


def test_a_run_steps_as_the_table_says_and_in_no_other_way():
    for phase in Phase:
        for event in [*EVENTS, "explode"]:
            run = Run(W, 3, 4, phase, {"node": "old1"})
            expected = RUN_STEPS.get((phase, event))
            if expected is None:
                with pytest.raises(IllegalStep, match=f"{phase.name} can't {event}"):
                    advance(run, event, {})
                assert run == Run(W, 3, 4, phase, {"node": "old1"})
            else:
                after = advance(run, event, {"at": 1.0})
                assert after.phase is expected
                assert (after.worker, after.session) == (W, 3)
                assert after.inc == 4 + (event == "refute")
                assert after.detail == {"node": "old1", "at": 1.0}
    assert set(RUN_STEPS.values()) == set(Phase) - {Phase.GRANTED}


def test_an_illegal_step_changes_nothing_in_the_queue():
    queue = Queue()
    queue.add(KEY, "true", Needs(), "me", 0, "")
    queue.grant(KEY, RUN_KEY, Run(W, 0, 0, Phase.GRANTED, {}))
    before = (canonical(encode(queue.records[KEY])), queue.root, queue.version)
    with pytest.raises(IllegalStep):
        queue.advance(KEY, RUN_KEY, "refute", {})
    assert before == (canonical(encode(queue.records[KEY])), queue.root, queue.version)


def record_with(retries: int, **phases: str) -> Record:
    """Make a record whose runs are given as a1_2="ended 1" (attempt 1, run 2)."""
    record = Record(KEY, "true", Needs(retries=retries), 1, "me")
    record.runs = {}
    for name, text in phases.items():
        attempt, n = name[1:].split("_")
        phase, _, code = text.partition(" ")
        detail: Dict[str, Any] = {"exit": int(code)} if code else {}
        run = Run(W, 0, 0, Phase[phase.upper()], detail)
        record.runs[f"{attempt}.1.{W}.{n}"] = run
    record.state = derive(record)
    return record


@pytest.mark.parametrize(
    ("retries", "phases", "state", "attempt", "telling"),
    [
        (0, {}, "waiting", 1, None),
        (0, {"a1_1": "granted"}, "running", 1, "1.1"),
        (0, {"a1_1": "returned"}, "waiting", 1, None),
        (0, {"a1_1": "lost"}, "waiting", 2, "1.1"),
        (0, {"a1_1": "lost", "a2_2": "started"}, "running", 3 - 1, "2.2"),
        (0, {"a1_1": "ended 1"}, "failed", 2, "1.1"),
        (1, {"a1_1": "ended 1"}, "waiting", 2, "1.1"),
        (1, {"a1_1": "ended 1", "a1_2": "ended 2"}, "waiting", 2, "1.2"),
        (1, {"a1_1": "ended 1", "a2_2": "ended 2"}, "failed", 3, "2.2"),
        (1, {"a1_1": "ended 1", "a2_2": "ended 0"}, "done", 3, "2.2"),
        (0, {"a2_9": "ended 0", "a10_1": "ended 0"}, "done", 11, "2.9"),
        (0, {"a1_2": "started", "a1_10": "granted"}, "running", 1, "1.2"),
        (0, {"a1_1": "returned", "a1_2": "started"}, "running", 1, "1.2"),
    ],
)
def test_state_next_attempt_and_telling_run_follow_from_the_runs(
    retries, phases, state, attempt, telling
):
    record = record_with(retries, **phases)
    assert record.state.value == state
    assert record.next_attempt() == attempt
    key = record.telling_run()
    if telling is None:
        assert key is None
    else:
        assert key is not None
        assert (key.split(".")[0], key.split(".")[3]) == tuple(telling.split("."))


def test_attempts_counts_distinct_ones_and_only_bad_ends():
    record = record_with(
        9, a1_1="lost", a1_2="lost", a2_1="ended 0", a3_1="ended 2", a4_1="returned"
    )
    assert record.attempts(Phase.LOST) == {1}
    assert record.attempts(Phase.ENDED) == {3}
    assert record.attempts(Phase.RETURNED) == {4}


@pytest.mark.parametrize(
    ("key", "name", "shown"),
    [
        ("1-" + W, "", "1-01234567"),
        ("1234567-" + W, "", "1234567-01234567"),
        ("12345678-" + W, "", "12345678-0123456"),
        ("0-" + W, "mine", "mine"),
    ],
)
def test_shown_ids_are_names_or_prefixes_of_16_characters_at_most(key, name, shown):
    record = Record(key, "true", Needs(), 1, "me")
    record.name = name
    assert record.shown == shown


# --- decode ---------------------------------------------------------------------------


def good() -> Dict[str, Any]:
    detail = {"exit": 0, "cause": "", "at": 1.5, "end": 2, "took": 0.5, "node": "old1"}
    detail.update(out=[3, "ab" * 32], err=[0, ""], later=[1])
    return {
        "k": KEY,
        "c": "echo \udcff",
        "o": 7,
        "by": "old1",
        "at": 5.0,
        "cores": 2,
        "mem": 1024,
        "con": False,
        "if": ["worker:tag gpu"],
        "files": [["in.csv", "ab" * 32, 10, 420]],
        "try": 2,
        "runs": {RUN_KEY: [W, 0, 0, 4, detail]},
        "new": {"deep": [1, None, "x"]},
    }


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


LONG = 10**5000  # longer than what Python 3.11 and later turn into text

MALFORMED: List[Tuple[str, Any]] = [
    *(("k", key) for key in (None, 1, LONG, "", "1", "x-" + W, "01-" + W, "-1-" + W)),
    *(
        ("k", key)
        for key in ("\u00b2-" + W, "\u0663-" + W, "1-" + W[1:], "1-" + W + "0")
    ),
    *(("k", key) for key in ("1-" + W.upper(), "9" * 17 + "-" + W, "9" * 16 + "-" + W)),
    *(("k", key) for key in ("0-" + W, [], nested(500), ["1"])),
    *(
        ("c", text)
        for text in (None, "", 5, "a\0b", "x" * 120001, "é" * 60001, "\ud800")
    ),
    *(("o", n) for n in (None, -1, 1.0, True, "1", LONG, 1 << 54, float("nan"))),
    *(("by", text) for text in (None, 5, "x" * 301)),
    *(("at", n) for n in (None, "1", True, float("inf"), float("nan"), 1e13, LONG)),
    *(("id", text) for text in (5, "mine", "a b", "x" * 65, "-x", "all", "last", "é")),
    *(("del", flag) for flag in (None, 1, "true", [])),
    *(("gu", text) for text in (None, 1, "x" * 301)),
    *(("mem", n) for n in (-1, None, 1.5, "1", LONG)),
    *(("cores", n) for n in (0, -1, None, 1.5, 1000001)),
    *(("con", flag) for flag in (None, 0, "no")),
    *(("keep", flag) for flag in (None, 0, "no")),
    *(("time", n) for n in (-1, None, "1", float("nan"))),
    *(("try", n) for n in (-1, 101, None)),
    *(("pri", n) for n in (1 << 40, -(1 << 40), 1.0)),
    *(("if", c) for c in (None, "queue:is_first", {}, [5], ["nonsense"], ["x"] * 1001)),
    *(("if", [c]) for c in ("queue:done", "queue:is_first x", "worker:has_file ../x")),
    *(("if", [f"queue:done {key}"]) for key in ("x", "1-" + W[1:], "1-\u00e9" + W[1:])),
    *(("files", f) for f in (None, {}, [5], [["in"]], [["in", "x", 1, 1]])),
    *(("files", [["in", "ab" * 32, size, mode]]) for size, mode in ((-1, 1), (1, 512))),
    *(("files", [["a\0b", "ab" * 32, 1, 1]]),),
    *(("runs", runs) for runs in (None, [], {"1": []}, {RUN_KEY: []}, {RUN_KEY: {}})),
    *(
        ("runs", {key: [W, 0, 0, 0, {}]})
        for key in (
            f"01.1.{W}.1",
            f"-1.1.{W}.1",
            f"1_0.1.{W}.1",
            f" 1.1.{W}.1",
            f"1.1.{W}.1.1",
            "1.1.a\0b.1",
            f"{'9' * 100000}.1.{W}.1",
            f"{1 << 54}.1.{W}.1",
            f"1.{TERM_MAX + 1}.{W}.1",
        )
    ),
    *(
        ("runs", {RUN_KEY: run})
        for run in (
            ["w", 0, 0, 0, {}],
            [None, 0, 0, 0, {}],
            [W, -1, 0, 0, {}],
            [W, 0, 1.0, 0, {}],
            [W, 0, 0, 5, {}],
            [W, 0, 0, True, {}],
            [W, 0, 0, 0, []],
            [W, 0, 0, 4, {}],
            [W, 0, 0, 4, {"exit": 256}],
            [W, 0, 0, 4, {"exit": True}],
            [W, 0, 0, 1, {"at": "now"}],
            [W, 0, 0, 1, {"node": 5}],
            [W, 0, 0, 4, {"exit": 0, "out": [1]}],
            [W, 0, 0, 4, {"exit": 0, "out": [-1, ""]}],
            [W, 0, 0, 4, {"exit": 0, "out": [1, "../x"]}],
            [W, 0, 0, 1, {"new": "x" * 20001}],
            [W, 0, 0, 1, {"new": nested(500)}],
        )
    ),
    ("runs", {f"1.1.{W}.{n}": [W, 0, 0, 0, {}] for n in range(1001)}),
    *(("new", value) for value in (nested(100), nested(100000), LONG, float("inf"))),
    *(("new", value) for value in ({1: 2}, b"x", {"x": {5}})),
]


@pytest.mark.parametrize("i", range(len(MALFORMED)))
def test_a_malformed_record_is_refused_as_such_and_set_aside_d9(i):
    field, value = MALFORMED[i]
    wire = good()
    wire[field] = value
    with pytest.raises(Malformed) as problem:
        decode(wire)
    assert len(str(problem.value)) < 300
    queue = Queue()
    assert queue.merge(wire) is None
    assert queue.merge(wire) is None
    assert len(queue.malformed) == 1 and not queue.records and queue.root == 0


def test_what_is_no_object_is_malformed_d9():
    for wire in (None, 5, "x", [], [good()], LONG, nested(100000)):
        with pytest.raises(Malformed):
            decode(wire)
        assert Queue().merge(wire) is None


def test_unknown_fields_survive_in_records_and_runs_d9():
    wire = good()
    again = json.loads(json.dumps(encode(decode(json.loads(json.dumps(wire))))))
    assert again["new"] == wire["new"]
    assert again["runs"][RUN_KEY][4]["later"] == [1]


def test_a_condition_of_a_newer_version_is_kept_d9():
    wire = dict(good(), **{"if": ["queue:moon_is full", "worker:smells nice"]})
    assert encode(decode(wire))["if"] == ("queue:moon_is full", "worker:smells nice")


JUNK = [None, True, -1, 0, 1, 1 << 60, 1.5, float("nan"), "", "x", "\0", "\ud800"]


def junk(rng: random.Random) -> Any:
    return copy.copy(rng.choice([*JUNK, [], {}, [1], {"x": 1}, nested(30), LONG]))


def mutate(rng: random.Random, value: Any) -> Any:
    """Change one place of a JSON value, however deep."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        roll = rng.random()
        if roll < 0.1:
            del value[key]
        elif roll < 0.2 and isinstance(value, dict):
            value[str(key)[:-1] + rng.choice(["", "9", "-", ".", "\u00b2"])] = (
                value.pop(key)
            )
        else:
            value[key] = mutate(rng, value[key])
        return value
    if isinstance(value, str) and value and rng.random() < 0.5:
        i = rng.randrange(len(value))
        return (
            value[:i] + rng.choice(["", "\0", "é", "0", "-", "\udc80"]) + value[i + 1 :]
        )
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 1 << 20, -(1 << 60)])
    return junk(rng)


def test_20000_mutations_raise_only_malformed_and_none_is_slow_d9():
    text = json.dumps(good())
    accepted, slowest, where = 0, 0.0, -1
    for seed in range(20000):
        rng = random.Random(seed)
        wire = json.loads(text)
        for _ in range(rng.randrange(1, 4)):
            wire = mutate(rng, wire)
        begun = time.perf_counter()
        try:
            record = decode(wire)
        except Malformed:
            pass
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {problem!r}") from problem
        else:
            accepted += 1
            if accepted % 10 == 0:
                again = decode(json.loads(json.dumps(encode(record))))
                assert again.digest == record.digest, f"seed {seed}"
        took = time.perf_counter() - begun
        if took > slowest:
            slowest, where = took, seed
    assert 1000 < accepted < 19000
    assert slowest < 0.5, f"seed {where} took {slowest:.2f} s"  # usually 0.2 ms


# --- keys and names -------------------------------------------------------------------


def test_needs_that_are_remembered_let_nothing_pass_that_only_equals_them():
    decoding._plain_needs.cache_clear()
    sound = {"k": KEY, "c": "true", "o": 1, "by": "me", "at": 0.0, "mem": 1, "cores": 1}
    sound.update({"con": False, "keep": True, "time": 1.0, "try": 1, "pri": 1})
    sound["if"] = ["worker:tag x"]
    for _ in range(2):
        first = decode(dict(sound)).needs
        assert first.memory == 1 and first.conditions == ("worker:tag x",)
        for field in ("mem", "cores", "try", "pri"):
            for wrong in (True, 1.0, [], {}, None):
                with pytest.raises(Malformed):
                    decode(dict(sound, **{field: wrong}))
        for field, wrong in (("con", 0), ("keep", 1), ("time", True), ("if", [[]])):
            with pytest.raises(Malformed):
                decode(dict(sound, **{field: wrong}))
        assert decode(dict(sound, time=1)).needs == first


def test_canonical_is_json_sorted_and_without_blanks():
    rng = random.Random(3)
    for _ in range(2000):
        value = mutate(rng, good())
        try:
            slow = json.dumps(value, sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError) as problem:
            with pytest.raises(type(problem)):
                canonical(value)
        else:
            assert canonical(value) == slow.encode("ascii")


def test_the_wire_form_of_needs_that_is_remembered_is_the_one_that_is_made():
    made = record._encode_needs.__wrapped__
    for n in range(3 * record.NEEDS_KEPT):
        for time_out in (n % 100, float(n % 100)):  # equal, and to hash alike
            needs = Needs(memory=n, files=(File("f", "0" * 64, n, 0o644),))
            needs = needs._replace(timeout=time_out, conditions=("worker:tag x",))
            for _ in range(2):
                assert canonical(record._encode_needs(needs)) == canonical(made(needs))
                wire = encode(Record(KEY, "true", needs, 1, "me"))
                wire["mem"] = -1  # who changes a record's wire form changes his own


def test_the_text_of_a_record_is_that_of_its_wire_form():
    """The fast path equals the slow one, whatever fields a record has."""
    texts, fields = set(), set()
    for seed in range(6000):
        rng = random.Random(seed)
        wire = good()
        wire.update(sto=1, keep=True, time=rng.choice([90, 2.5]), pri=-1, gu="x")
        wire.update({"del": True, "by": '\u00e9"', "at": rng.choice([5, 0.1, 1e9])})
        for field in rng.sample(sorted(wire), rng.randrange(len(wire))):
            if field not in ("k", "c", "o", "by", "at"):
                del wire[field]
        try:
            found = decode(mutate(rng, wire) if rng.random() < 0.3 else wire)
        except Malformed:
            continue
        if rng.random() < 0.3:
            found.name, found.deleted = "mine", False
        slow = canonical(encode(found))
        assert text_of(found) == slow, f"seed {seed}"
        texts.add(slow)
        fields.update(json.loads(slow))
    assert len(texts) > 2000 and fields >= record.KNOWN_FIELDS


def test_a_record_that_came_decoded_has_the_state_and_hash_of_one_that_is_derived():
    queue = Queue()
    for n in range(1, 200):
        phase = n % len(Phase)
        run = [W, 0, 0, phase, {"exit": n % 2} if phase == Phase.ENDED else {}]
        key = "%d-%s" % (n, W)
        wire = dict(good(), k=key, runs={RUN_KEY: run} if n % 3 else {})
        wire.pop("id", None)
        found = queue.merge(wire)
        assert found is not None and found is queue.records[key]
        assert found.state is derive(found)
        assert found.digest == hash64(canonical(encode(found)))
    assert sum(queue.counts.values()) == len(queue.records) == 199


def test_keys_split_into_number_and_writer():
    assert split_key(KEY) == (1, W)
    assert split_key("9007199254740992-" + W) == (1 << 53, W)


def test_the_key_of_a_named_task_depends_on_all_that_the_user_gave():
    needs = Needs()
    keys = {
        named_key("a", "true", needs),
        named_key("b", "true", needs),
        named_key("a", "false", needs),
        named_key("a", "true", needs._replace(retries=1)),
    }
    assert len(keys) == 4
    assert all(split_key(key)[0] == 0 for key in keys)
    wire = {"k": named_key("a", "true", needs), "id": "a", "c": "true"}
    wire.update(o=1, by="me", at=0)  # type: ignore[call-overload]
    assert decode(wire).name == "a"
    with pytest.raises(Malformed):
        decode(dict(wire, c="false"))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a", True), ("A.b_c-9", True), ("x" * 64, True), ("x" * 65, False), ("", False)]
    + [(name, False) for name in ("-a", "all", "last", "a b", "a/b", "é", "a\n")],
)
def test_a_users_own_id_is_what_the_contract_allows(name, is_one):
    assert is_name(name) is is_one
