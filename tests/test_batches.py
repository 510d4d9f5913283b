"""What waits for more before it goes to the disk, and what never does."""

from typing import Any, List, Optional

import pytest

import store
from batches import PAUSE_S, WRITE_SEQ, Batches
from effects import Acked, Add, Delete, Identity, NewTask, Persist, Sync, Written
from node import Node
from record import Needs, Phase, Run
from workers import SHORT_RUNS


class Printed:
    """What tasks printed and is on no disk yet."""

    def __init__(self) -> None:
        self.pending: List[Any] = []

    def take(self) -> List[Any]:
        pending, self.pending = self.pending, []
        return pending

    def give_back(self, kept: List[Any]) -> None:
        self.pending[:0] = kept


class Desk:
    """Batches with a store that notes them, and a clock to be set."""

    def __init__(self) -> None:
        self.now = 10.0
        self.sent: List[store.Batch] = []
        self.batches = Batches(self.sent.append, lambda: self.now)
        self.printed: Any = Printed()
        self.batches.outputs = self.printed
        self.seq = 0

    def persist(self, may_wait: bool, **meta: bytes) -> int:
        self.seq += 1
        row = ("1-" + "ab" * 8, b"row %d" % self.seq)
        self.batches.persist(Persist(self.seq, [row], meta, may_wait=may_wait))
        return self.seq

    def tick(self, after: float = 0.0) -> Optional[float]:
        self.now += after
        return self.batches.tick(self.now)

    def numbers(self) -> List[int]:
        return [batch.seq for batch in self.sent]


@pytest.fixture(name="desk")
def _desk() -> Desk:
    return Desk()


def test_after_a_pause_nothing_is_held(desk: Desk) -> None:
    first = desk.persist(may_wait=True)
    assert desk.numbers() == [first] and desk.tick() is None


def test_what_nobody_waits_for_leaves_a_pause_after_the_last_one(desk: Desk) -> None:
    first = desk.persist(may_wait=True)
    second = desk.persist(may_wait=True)
    due = desk.tick(after=PAUSE_S * 0.9)
    assert desk.numbers() == [first] and due == pytest.approx(10.0 + PAUSE_S)
    assert desk.tick(after=PAUSE_S * 0.2) is None
    assert desk.numbers() == [first, second]


def test_what_somebody_waits_for_leaves_at_once_behind_what_was_held(
    desk: Desk,
) -> None:
    for _ in range(3):
        held, asked = desk.persist(may_wait=True), desk.persist(may_wait=False)
        assert desk.numbers()[-2:] == [held, asked]
        assert desk.tick() is None


def test_a_batch_takes_along_what_was_printed_while_it_was_held(desk: Desk) -> None:
    desk.persist(may_wait=True)
    desk.persist(may_wait=True)
    desk.printed.pending.append(("digest", b"hello\n"))
    desk.tick(after=2 * PAUSE_S)
    assert desk.sent[-1].outputs == [("digest", b"hello\n")]


def test_a_fact_is_written_until_the_disk_has_it(desk: Desk) -> None:
    desk.batches.remember("node_id", "me")
    first = desk.persist(may_wait=False, term=b"1")
    second = desk.persist(may_wait=False, term=b"1")
    assert desk.sent[1].meta == desk.sent[0].meta == {"node_id": b"me", "term": b"1"}
    assert desk.batches.on_written(store.Written(first, ""))
    assert desk.batches.on_written(store.Written(second, "no space"))
    desk.persist(may_wait=False, term=b"2")
    assert desk.sent[2].meta == {"term": b"2"}


def test_outputs_of_a_batch_that_failed_go_with_the_next(desk: Desk) -> None:
    desk.printed.pending.append(("digest", b"hello\n"))
    failed = desk.persist(may_wait=True)
    assert desk.batches.on_written(store.Written(failed, "no space"))
    desk.persist(may_wait=False)
    assert desk.sent[-1].outputs == [("digest", b"hello\n")]


def test_the_core_is_not_told_of_what_it_did_not_write(desk: Desk) -> None:
    desk.batches.write_outputs()
    assert desk.numbers() == [WRITE_SEQ]
    assert not desk.batches.on_written(store.Written(WRITE_SEQ, ""))


def test_only_what_the_disk_gets_of_the_cores_own_accord_may_wait_d10() -> None:
    me = Identity("f" * 16, "0123456789abcdef", "old1", "127.0.0.1")
    node = Node(me, 2, 1 << 30, (), lambda regex, text: False)
    node.begin([], [], 1.0)

    def told(effects: List[Any]) -> List[bool]:
        """Whether each batch of these effects may wait; the disk writes them."""
        found = [e for e in effects if isinstance(e, Persist)]
        for effect in found:
            effects = effects + node.step(Written(effect.seq, ""), 1.0)
        assert all(not e.error for e in effects if isinstance(e, Acked))
        return [effect.may_wait for effect in found]

    needs = Needs(cores=9)  # it fits nowhere
    assert told(node.step(Add(1, [NewTask("true", needs, "")], 1.0), 1.0)) == [False]
    (key,) = node.queue.records
    assert told(node.step(Delete(2, [key]), 1.0)) == [False]
    assert told(node.step(Sync(3), 1.0)) == [False]
    node.queue.add("1-0123456789abcdef", "false", needs, "old1", 1.0, "")
    assert told(node.tick(1.0)[0]) == [False]
    for _ in range(SHORT_RUNS):  # much changes now, none of it for long
        node.worker.note_end(Run(me.writer, 0, 0, Phase.ENDED, {"took": 0.001}))
    node.queue.add("2-0123456789abcdef", "false", needs, "old1", 1.0, "")
    assert told(node.tick(1.0)[0]) == [True]
