"""Forgetting what is over: when, by whom, and that it stays forgotten."""

import json
from typing import Any, Dict, List, Optional, Tuple

from effects import (
    Acked,
    Add,
    Check,
    Facts,
    Identity,
    NewTask,
    Persist,
    RunEnded,
    RunStarted,
    Start,
    Written,
)
from node import Node
from purge import HOUR_S, KEEP_H, LEAST_H, Purge
from record import Needs, State
from taskqueue import Queue

W = "0123456789abcdef"
START = 1000.0


class Disk:
    """What a node wrote: rows and meta, as the store keeps them."""

    def __init__(self) -> None:
        self.rows: Dict[str, bytes] = {}
        self.meta: Dict[str, bytes] = {}
        self.error = ""

    def write(self, batch: Persist) -> None:
        for key, data in batch.rows:
            if data is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = data
        self.meta.update(batch.meta)


class Lone:
    """A node alone, its disk and a worker that ends all tasks at once."""

    def __init__(self, disk: Optional[Disk] = None, writer: str = W) -> None:
        self.disk = disk or Disk()
        self.now = START
        self.tickets = 0
        me = Identity("f" * 16, writer, "old1", "127.0.0.1")
        self.node = Node(me, 2, 1 << 30, (), lambda regex, text: False)
        rows = [json.loads(data) for data in self.disk.rows.values()]
        self.node.load(rows, self.disk.meta)
        self.node.begin([], [], self.now)
        self.tick()

    def tick(self, hours: float = 0.0) -> None:
        """Let time pass, and all that is due be done."""
        self.now += hours * HOUR_S
        for _ in range(100):
            effects, due = self.node.tick(self.now)
            self.perform(effects)
            if due is None or due > self.now:
                return
        raise AssertionError("it never comes to rest")

    def perform(self, effects: List[Any]) -> None:
        """Do what the node wants, at once."""
        for effect in effects:
            if isinstance(effect, Persist):
                if not self.disk.error:
                    self.disk.write(effect)
                self.step(Written(effect.seq, self.disk.error))
            elif isinstance(effect, Check):
                self.step(Facts(frozenset(effect.conditions), None, 1 << 40))
            elif isinstance(effect, Start):
                self.step(RunStarted(effect.run, 1.0))
                out: Tuple[int, str] = (0, "")
                ends = (1.0, 2.0, 1.0, list(out), list(out))
                self.step(RunEnded(effect.run, 0, "", *ends))
            elif isinstance(effect, Acked):
                assert not effect.error

    def step(self, message: Any) -> None:
        self.perform(self.node.step(message, self.now))

    def add(self, count: int = 1, **needs: Any) -> None:
        """Add tasks."""
        self.tickets += 1
        tasks = [NewTask("true", Needs(**needs), "")] * count
        self.step(Add(self.tickets, tasks, 1.0))
        self.tick()

    def states(self) -> List[State]:
        return [record.state for record in self.node.queue.in_order()]


def test_what_is_over_is_forgotten_after_thirty_days_of_uptime() -> None:
    lone = Lone()
    lone.add(3)
    assert lone.states() == [State.DONE] * 3
    lone.tick(hours=KEEP_H - 1)
    assert len(lone.states()) == 3
    lone.tick(hours=2)
    assert lone.states() == [] and lone.disk.rows == {}


def test_what_is_not_over_is_never_forgotten() -> None:
    lone = Lone()
    lone.add(cores=99)
    for _ in range(5):
        lone.tick(hours=KEEP_H)
    assert lone.states() == [State.WAITING]


def test_uptime_is_counted_over_restarts_and_nothing_is_written_while_idle() -> None:
    lone = Lone()
    lone.add()
    lone.tick(hours=KEEP_H - 100)
    lone.disk.error = "nothing may be written now"
    lone.tick(hours=50)
    lone.disk.error = ""
    lone.add()
    again = Lone(lone.disk, "f" * 16)
    assert again.states() == [State.DONE] * 2
    again.tick(hours=51)
    assert again.states() == [State.DONE]  # The second was over for 50 h only.


def test_purged_is_on_disk_in_the_batch_that_drops_the_rows() -> None:
    lone = Lone()
    lone.add(2)
    key = next(iter(lone.disk.rows))
    lone.tick(hours=KEEP_H + 1)
    assert lone.disk.meta["purged/" + W] == b"[[1,2]]"
    again = Lone(lone.disk, "f" * 16)
    assert again.node.queue.purged.covers(key)
    assert again.node.queue.root == lone.node.queue.root


def test_a_disk_that_fails_is_told_again_what_is_purged() -> None:
    lone = Lone()
    lone.add(2)
    lone.disk.error = "full"
    lone.tick(hours=KEEP_H + 1)
    assert "purged/" + W not in lone.disk.meta and len(lone.disk.rows) == 2
    lone.disk.error = ""
    lone.tick(hours=1)
    assert lone.disk.meta["purged/" + W] == b"[[1,2]]" and lone.disk.rows == {}


def test_of_too_many_the_oldest_go_but_none_within_a_day(monkeypatch: Any) -> None:
    monkeypatch.setattr("purge.MOST", 10)
    lone = Lone()
    lone.add(15)
    lone.tick(hours=LEAST_H - 1)
    assert len(lone.states()) == 15
    lone.tick(hours=2)
    assert len(lone.states()) == 10
    assert min(lone.node.queue.records.values()).key.startswith("6-")


def test_a_large_queue_is_looked_at_in_slices(monkeypatch: Any) -> None:
    monkeypatch.setattr("purge.SLICE", 10)
    queue = Queue()
    purge = Purge(queue)
    for n in range(1, 36):
        record = queue.add("%d-%s" % (n, W), "true", Needs(), "old1", 1.0, "")
        queue.delete(record.key)
        purge.note(record)
    purge.begin(0, 0.0)
    purge.count(KEEP_H * HOUR_S)
    turns = 1
    while purge.look():
        turns += 1
    assert turns == 5 and not queue.records
    assert queue.purged.intervals == {W: [[1, 35]]}
