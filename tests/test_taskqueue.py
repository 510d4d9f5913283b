"""The queue: what it counts, finds, forgets and purges. Merge laws: test_merge.py."""

import json
import random
import time
from typing import Any, List, Optional

import pytest
from desk import Desk

from hashtree import LEAVES, leaf_of
from record import (
    ATTEMPT_MAX,
    COUNTER_MAX,
    Malformed,
    Needs,
    Phase,
    Record,
    Run,
    State,
    canonical,
    encode,
    hash64,
    is_name,
    named_key,
    text_of,
)
from taskqueue import Purged, Queue

W = "0123456789abcdef"
V = "fedcba9876543210"


def add(queue: Queue, n: int, writer: str = W, name: str = "", **needs: Any) -> Record:
    asked = Needs(**needs)
    key = named_key(name, "true", asked) if name else f"{n}-{writer}"
    return queue.add(key, "true", asked, "me", 0.0, name)


def wire_of(record: Record) -> Any:
    return json.loads(json.dumps(encode(record)))


def leaves_of(queue: Queue) -> List[int]:
    leaves = [0] * LEAVES
    for key, record in queue.records.items():
        leaves[leaf_of(key)] ^= hash64(canonical(encode(record)))
    return leaves


def finish(queue: Queue, key: str, code: int = 0) -> None:
    run_key = f"1.1.{W}.1"
    queue.grant(key, run_key, Run(W, 0, 0, Phase.STARTED, {}))
    queue.advance(key, run_key, "end", {"exit": code})


def test_a_tasks_age_is_the_lamport_order_and_then_its_key():
    queue = Queue()
    first, second = add(queue, 2), add(queue, 1)
    assert queue.in_order() == [first, second] and first < second
    queue.merge(dict(wire_of(first), k="1-" + V, o=50))
    assert add(queue, 3).order == 51
    twin = queue.merge(dict(wire_of(first), k="2-" + V))
    assert twin is not None and first < twin < second


def test_counts_and_unfinished_follow_the_states():
    queue = Queue()
    for n in range(1, 5):
        add(queue, n)
    queue.grant("1-" + W, f"1.1.{W}.1", Run(W, 0, 0, Phase.GRANTED, {}))
    finish(queue, "2-" + W, 0)
    finish(queue, "3-" + W, 1)
    queue.delete("4-" + W)
    assert queue.counts == {
        State.WAITING: 0,
        State.RUNNING: 1,
        State.DONE: 1,
        State.FAILED: 1,
        State.DELETED: 1,
    }
    assert queue.unfinished() == 1


def test_every_change_is_told_once_and_what_changes_nothing_is_not():
    told: List[Any] = []
    queue = Queue(lambda record, old, new: told.append((record.key, old, new)))
    record = add(queue, 1)
    queue.merge(wire_of(record))
    queue.delete("1-" + W)
    queue.delete("1-" + W)
    queue.purge(["1-" + W])
    assert [(old, new) for _, old, new in told] == [
        (None, State.WAITING),
        (State.WAITING, State.DELETED),
        (State.DELETED, None),
    ]


def test_a_merge_that_makes_a_task_older_is_told_as_gone_and_come_back():
    told: List[Any] = []

    def listen(record: Record, old: Optional[State], new: Optional[State]) -> None:
        told.append((record, record.order, old, new))

    queue = Queue(listen)
    add(queue, 1)
    mine = add(queue, 0, name="mine")
    theirs = queue.merge(dict(wire_of(mine), o=1))
    assert theirs is not mine and theirs is queue.records[mine.key]
    assert mine.order == 2  # whoever keeps it in a heap finds it where it was
    assert told[2:] == [
        (mine, 2, State.WAITING, None),
        (theirs, 1, None, State.WAITING),
    ]
    assert queue.names == {"mine": [mine.key]} and queue.counts[State.WAITING] == 2


def test_find_takes_ids_names_and_their_beginnings():
    queue = Queue()
    one, eleven = add(queue, 1), add(queue, 11)
    other = add(queue, 1, V)
    named, longer = add(queue, 0, name="job"), add(queue, 0, name="job2")
    assert queue.find("1-" + W[:8]) == [one]
    assert queue.find("1-" + W) == [one]
    assert queue.find("1-f") == [other]
    assert sorted(queue.find("1-")) == sorted([one, other])
    assert queue.find("11") == [eleven]
    assert queue.find("11-0") == [eleven]
    assert len(queue.find("1")) == 3
    assert queue.find("job") == [named]  # whole, so it wins
    assert queue.find("job2") == [longer]
    assert sorted(queue.find("jo")) == sorted([named, longer])
    for text in ("", "nobody", "2-", "1-x", "\u00b2-0", "-", "0" * 50 + "-0"):
        assert queue.find(text) == []


def test_two_specs_under_one_name_are_both_found():
    queue = Queue()
    a = add(queue, 0, name="job")
    b = add(queue, 0, name="job", retries=1)
    assert queue.find("job") == [a, b]
    queue.purge([a.key])
    assert queue.find("job") == [b]


def test_two_specs_under_one_name_are_shown_with_suffixes_that_find_each():
    one, other = Queue(), Queue()
    a = add(one, 0, name="job")
    b = add(other, 0, name="job", retries=1)
    longer = add(other, 0, name="job-x")
    assert (a.shown, b.shown) == ("job", "job")
    for queue, wires in ((one, [b, longer]), (other, [a])):  # each way round
        for wire in [wire_of(record) for record in wires]:
            queue.merge(wire)
        a, b = queue.records[a.key], queue.records[b.key]
        assert (a.shown, b.shown) == ("job-" + a.key[2:6], "job-" + b.key[2:6])
        assert a.shown != b.shown and is_name(a.shown)
        assert [queue.find(r.shown) for r in (a, b)] == [[a], [b]]
        assert queue.find("job-x") == [queue.records[longer.key]]
        assert sorted(queue.find("job")) == sorted([a, b])
    assert one.root == other.root
    one.purge([a.key])
    assert one.records[b.key].shown == "job" and one.find("job") == [one.records[b.key]]


def test_suffixes_of_keys_that_begin_alike_are_longer():
    queue = Queue()
    for writer in ("1a2b3c4d00000000", "1a2b3c4e00000000", "ff00000000000000"):
        queue.add("0-" + writer, "true", Needs(), "old1", 0, "job")
    shown = sorted(record.shown for record in queue.records.values())
    assert shown == ["job-1a2b3c4d", "job-1a2b3c4e", "job-ff000000"]


def test_forgotten_tasks_leave_no_trace_and_may_be_added_again():
    queue = Queue()
    empty = queue.root
    record = add(queue, 0, name="job")
    queue.forget([record.key])
    assert queue.root == empty and not queue.names and not queue.writers
    assert not queue.is_name_purged("job") and queue.find("job") == []
    assert add(queue, 0, name="job").key == record.key


def test_purged_ids_and_names_are_known_as_such():
    queue = Queue()
    keys = [add(queue, 1).key, add(queue, 0, name="job").key, add(queue, 12345678).key]
    queue.purge([*keys, "3-" + V])
    assert not queue.records and not queue.writers and not queue.names
    for text in ("1-" + W[:8], "1-" + W, "job", "3-" + V[:8], "12345678-" + W[:7]):
        assert queue.is_id_purged(text), text
    odd = ["2-" + W[:8], "01-" + W[:8], "1-" + W[:7], "", "-", "jo", "é", "\u00b2-" + W]
    for text in [*odd, "9" * 5000 + "-" + W, "x-" + W[:8]]:
        assert not queue.is_id_purged(text), text


def test_a_name_that_looks_like_an_id_is_known_as_purged():
    queue = Queue()
    queue.purge([add(queue, 0, name="5-abcdefgh").key])
    assert queue.is_id_purged("5-abcdefgh")


def test_cover_drops_what_it_covers_and_nothing_between():
    queue = Queue()
    for n in range(1, 8):
        add(queue, n)
    add(queue, 2, V)
    queue.cover(W, 1, 2)
    queue.cover(W, 5, 1 << 50)  # longer than the queue: found by another way
    assert sorted(queue.records) == ["2-" + V, "3-" + W, "4-" + W]
    assert queue.purged.intervals == {W: [[1, 2], [5, 1 << 50]]}
    queue.cover(W, 3, 4)
    assert queue.purged.intervals == {W: [[1, 1 << 50]]}
    assert sorted(queue.records) == ["2-" + V]


def test_an_interval_that_is_none_is_malformed_and_changes_nothing_d9():
    queue = Queue()
    add(queue, 1)
    root = queue.root
    for odd in (("x", 1, 2), (W, 2, 1), (W, -1, 2), (W, 1, 1 << 60), (W, True, 2)):
        with pytest.raises(Malformed):
            queue.cover(*odd)
    for odd2 in ((None, 1, 2), (W, "1", "2"), (W, 1.0, 2.0), (W, None, None)):
        with pytest.raises(Malformed):
            queue.cover(*odd2)  # type: ignore[arg-type] # as a peer may send it
    assert queue.root == root


def test_intervals_are_those_of_a_set_whatever_the_order_s9():
    for seed in range(200):
        rng = random.Random(seed)
        purged, twin, members = Purged(), Purged(), set()
        added = []
        for _ in range(30):
            low = rng.randrange(60)
            high = low + rng.choice([0, 0, 1, 5])
            purged.add(W, low, high)
            added.append((low, high))
            members |= set(range(low, high + 1))
            for n in range(70):
                assert purged.covers(f"{n}-{W}") == (n in members), f"seed {seed}"
        rng.shuffle(added)
        for low, high in added * 2:
            twin.add(W, low, high)
        assert twin.intervals == purged.intervals, f"seed {seed}"
        assert twin.hash == purged.hash, f"seed {seed}"
        ends = [end for pair in purged.intervals[W] for end in pair]
        assert ends == sorted(ends), f"seed {seed}"
        for (_, high), (low, _) in zip(purged.intervals[W], purged.intervals[W][1:]):
            assert high + 1 < low, f"seed {seed}"


def test_fifty_thousand_intervals_of_a_peer_cost_a_moment() -> None:
    queue = Queue()
    for n in range(2000):
        add(queue, 2 * n + 1)
    far = [[n * 1000, n * 1000 + 500] for n in range(1, 50000)]
    began = time.process_time()
    queue.cover_all({W: far[::2] + far[1::2][::-1], V: far})
    queue.cover_all({W: far, V: far})
    assert time.process_time() - began < 5  # it was minutes
    assert queue.purged.intervals[W] == far == queue.purged.intervals[V]
    assert len(queue.records) == 2000 - sum(
        2 * n + 1 >= 1000 for n in range(2000)
    ) + sum((2 * n + 1) % 1000 > 500 and 2 * n + 1 >= 1000 for n in range(2000))


@pytest.mark.parametrize("field", ["order", "attempt"])
def test_a_number_that_is_the_highest_there_is_stops_nobody(field: str) -> None:
    mad, other = Queue(), Queue()
    record = add(mad, 1)
    wire = wire_of(record)
    if field == "order":
        wire["o"] = COUNTER_MAX
    else:
        lost = [V, 0, 0, int(Phase.LOST), {}]
        wire["runs"] = {"%d.1.%s.1" % (ATTEMPT_MAX, W): lost}
    queue = Queue()
    assert queue.merge(wire) is not None
    if field == "order":
        mine = queue.add("1-" + V, "true", Needs(), "me", 0.0, "")
        assert other.merge(wire_of(mine)) is not None
        assert mine in queue.in_order()
    else:
        (found,) = queue.records.values()
        run_key = "%d.2.%s.2" % (found.next_attempt(), W)
        queue.grant(found.key, run_key, Run(V, 0, 0, Phase.GRANTED, {}))
        assert other.merge(wire_of(found)) is not None
        assert other.root == queue.root
    assert not other.malformed


def test_the_root_tells_order_spec_runs_and_purged_apart_d11():
    queue = Queue()
    roots = [queue.root]
    add(queue, 1)
    roots.append(queue.root)
    queue.grant("1-" + W, f"1.1.{W}.1", Run(W, 0, 0, Phase.GRANTED, {}))
    roots.append(queue.root)
    queue.advance("1-" + W, f"1.1.{W}.1", "start", {"at": 1.0})
    roots.append(queue.root)
    queue.advance("1-" + W, f"1.1.{W}.1", "end", {"exit": 0})
    roots.append(queue.root)
    queue.purge(["1-" + W])
    roots.append(queue.root)
    queue.cover(V, 1, 1)
    roots.append(queue.root)
    assert len(set(roots)) == len(roots)


def test_leaf_keys_name_every_record_once():
    queue = Queue()
    for n in range(1, 200):
        add(queue, n)
    found = [
        pair for leaf in range(len(queue.tree.leaves)) for pair in queue.leaf_keys(leaf)
    ]
    assert dict(found) == {key: r.digest for key, r in queue.records.items()}
    assert len(found) == 199


def test_equal_needs_are_one_object_and_those_of_nobody_are_dropped():
    queue = Queue()
    assert add(queue, 1, memory=5).needs is add(queue, 2, memory=5).needs
    for n in range(3, 5000):
        key = add(queue, n, memory=n).key
        queue.delete(key)
        queue.purge([key])
    assert len(queue._needs) < 1100
    assert add(queue, 9000, memory=5).needs is queue.records["1-" + W].needs


def test_neighbours_share_what_they_have_in_common_until_one_changes():
    queue = Queue()
    one, two, three = (add(queue, n) for n in (1, 2, 3))
    assert one.rest is two.rest is three.rest
    queue.delete(two.key)
    queue.give_up(three.key, "it kills")
    assert (one.deleted, two.deleted, three.deleted) == (False, True, False)
    assert (one.given_up, two.given_up, three.given_up) == ("", "", "it kills")


def test_neighbours_that_come_from_disk_share_as_those_that_are_added():
    desk = Desk()
    assert desk.ask("add_tasks_str", "1K 1 1K true '' '' true\n" * 3).code == 0
    rows = [json.loads(text_of(r)) for r in desk.node.queue.in_order()]
    again = Desk()
    again.node.load(rows, {})
    again.node.begin([], [], 1000.0)
    one, two, three = again.node.queue.in_order()
    assert one.rest is two.rest is three.rest


def test_equal_numbers_that_are_other_texts_are_not_shared():
    queue = Queue()
    for n, newer in enumerate((1, True, 1.0, {"a": 1}, {"a": True}), 1):
        wire = {"k": f"{n}-{W}", "c": "true", "o": n, "by": "me", "at": 0, "new": newer}
        found = queue.merge(wire)
        assert found is not None
        assert json.dumps(encode(found)["new"]) == json.dumps(newer)


def test_the_tree_of_hashes_follows_every_change_of_records_that_run_or_not_d11():
    rng = random.Random(4)
    queue = Queue()
    for n in range(1, 300):
        key = add(queue, n).key
        run_key = f"1.1.{W}.{n}"
        steps = [
            lambda key=key, run=run_key: queue.grant(
                key, run, Run(W, 0, 0, Phase.GRANTED, {})
            ),
            lambda key=key, run=run_key: queue.advance(key, run, "start", {"at": 1.0}),
            lambda key=key, run=run_key: queue.advance(key, run, "end", {"exit": 0}),
            lambda key=key: queue.delete(key),
        ]
        for step in steps[: rng.randrange(5)]:
            step()
    queue.purge(list(queue.records)[::7])
    assert queue.tree.leaves == leaves_of(queue)
    assert set(queue.tree._known) == {
        key for key, r in queue.records.items() if r.state is State.RUNNING
    }


def test_version_grows_with_every_change_also_of_what_is_purged():
    queue = Queue()
    seen = [queue.version]
    add(queue, 1)
    seen.append(queue.version)
    queue.delete("1-" + W)
    seen.append(queue.version)
    queue.purge(["1-" + W])
    seen.append(queue.version)
    queue.cover(V, 1, 9)
    seen.append(queue.version)
    assert seen == sorted(set(seen))


def test_malformed_records_are_counted_by_content_and_not_without_bound_d9():
    queue = Queue()
    for n in range(3000):
        queue.merge({"k": n, "a": 1})
        queue.merge({"a": 1, "k": n})
    assert len(queue.malformed) == 1000
    assert not queue.records


@pytest.mark.parametrize("wires", ["x" * 100000, {}, None, [None] * 5001])
def test_what_is_no_list_of_records_is_refused_as_a_whole_d9(wires: Any) -> None:
    queue = Queue()
    with pytest.raises(Malformed, match="records must be a list"):
        queue.join_all(wires)
    assert not queue.malformed


def test_the_text_for_the_disk_is_that_of_the_record_whatever_became_of_it() -> None:
    queue, other = Queue(), Queue()
    draw = random.Random(3)
    for n in range(1, 2001):
        command = "x" * draw.choice([1, 1, 1, 3000])
        queue.add(f"{n}-{W}", command, Needs(), "me", 1.0, "")
        key = f"{draw.randrange(1, n + 1)}-{W}"
        record = queue.records.get(key)
        step = draw.randrange(6)
        if record is not None and step == 0:
            queue.delete(key)
        elif record is not None and step == 1:
            queue.purge([key])
        elif record is not None and step == 2 and not record.runs:
            queue.grant(key, f"1.1.{W}.{n}", Run(W, 0, 0, Phase.GRANTED, {"node": "a"}))
        elif record is not None and step == 3:
            other.merge(encode(record))
            if key in other.records:
                other.delete(key)
                queue.merge(encode(other.records[key]))
        elif record is not None and step == 4:
            assert queue.tree.text(record) == text_of(record)
        if n % 100 == 0:
            assert queue.tree.leaves == leaves_of(queue)
    assert len(queue.records) > 1000
    for record in queue.records.values():
        assert queue.tree.text(record) == text_of(record) == canonical(encode(record))
    assert not queue.tree._texts
