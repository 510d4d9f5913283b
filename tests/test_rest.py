"""Comrades with nothing to do make no turns for heartbeats, and miss nothing by it.

That whole clusters agree all the same is the simulator's.
"""

from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
from test_parts import A, B, Two

import comrade
import mesh
import wire
from comrade import Comrade
from effects import Add, Frame, NewTask, Persist, RunStarted, Send, Start, Written
from record import Needs, State
from rest import REST_S

LONG_S = 60.0
WAITS = Needs(conditions=("worker:tag none",))


class Resting(Two):
    """Two that gather frames as comrade.py does; their turns and frames are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.turns: Dict[str, List[float]] = {A: [], B: []}
        self.is_cut = False  # nothing gets through
        self.started: List[Start] = []
        for name, node in self.nodes.items():
            monkeypatch.setattr(node, "_turn", self._counted(name, node._turn))
        self.link()
        self.pass_by(REST_S)
        assert all(node.mesh.component == {A, B} for node in self.nodes.values())

    def _counted(self, name: str, turn: Any) -> Any:
        def counted(now: float) -> Any:
            self.turns[name].append(now)
            return turn(now)

        return counted

    def do(self, name: str, effects: Any) -> None:
        queue = [(name, effect) for effect in effects]
        while queue:
            name, effect = queue.pop(0)
            at, message = name, None
            if isinstance(effect, Persist):
                message = Written(effect.seq, "")
            elif isinstance(effect, Start):
                self.started.append(effect)
                message = RunStarted(effect.run, 1.0)
            elif isinstance(effect, Send):
                self.sent.append((name, effect.kind, effect.fields))
                kind = wire.Kind[effect.kind]
                fields = wire.decode(kind, wire.encode(kind, effect.fields)).fields
                at, message = effect.peer, Frame(name, effect.kind, fields)
            if message is not None and not (self.is_cut and at != name):
                self.nodes[at].take([message], self.now)
                queue += [(at, one) for one in self.nodes[at].tick(self.now)[0]]

    def turns_in(self, seconds: float) -> int:
        self.turns[A].clear()
        self.sent.clear()
        self.pass_by(seconds)
        return len(self.turns[A])

    def sent_of(self, name: str, kind: str) -> List[Any]:
        return [fields for at, what, fields in self.sent if (at, what) == (name, kind)]

    def add(self, needs: Needs) -> None:
        task = NewTask("true", needs, "")
        self.do(A, self.nodes[A].step(Add(1, [task], 1.0), self.now))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Resting:
    return Resting(monkeypatch)


def test_at_rest_they_beat_each_second_and_turn_seldom(two: Resting) -> None:
    turns = two.turns_in(LONG_S)
    assert LONG_S - 2 <= len(two.sent_of(A, "HEARTBEAT")) <= LONG_S + 2
    assert 2 <= turns <= LONG_S / REST_S + 1
    assert all(node.mesh.component == {A, B} for node in two.nodes.values())


def test_while_a_task_is_not_over_they_turn_each_second(two: Resting) -> None:
    two.add(WAITS)
    two.pass_by(1.0)
    assert [len(node.queue.records) for node in two.nodes.values()] == [1, 1]
    assert two.turns_in(LONG_S) >= LONG_S - 2


def test_a_task_that_comes_after_a_rest_starts_without_time_going_by(
    two: Resting,
) -> None:
    two.turns_in(LONG_S)
    two.add(Needs())
    assert len(two.started) == 1


def test_queues_that_differ_after_a_rest_are_compared(two: Resting) -> None:
    two.turns_in(LONG_S)
    two.is_cut = True  # what is sent now is lost, and yet the link is up
    two.add(WAITS)
    two.is_cut = False
    for node in two.nodes.values():  # as if it had been answered
        for box in node.replica.boxes.values():
            box.sent.clear()
            box.active.clear()
            box.rest.clear()
    assert [len(node.queue.records) for node in two.nodes.values()] == [1, 0]
    two.pass_by(6.0)
    (record,) = two.nodes[B].queue.records.values()
    assert record.state is State.WAITING


def test_who_falls_silent_after_a_rest_is_noticed_as_soon_as_ever(two: Resting) -> None:
    two.turns_in(LONG_S)
    two.is_cut = True
    began = two.now
    while two.nodes[A].mesh.component != {A}:
        two.pass_by(0.1)
        assert two.now < began + mesh.SUSPECT_S + 0.3
    while two.nodes[A].mesh.links:
        two.pass_by(0.1)
        assert two.now < began + mesh.DEAD_S + 0.3


# --- what else a comrade has ------------------------------------------------------


class Parts:
    """A comrade of which only `tick` is real, in a turn that only heartbeats began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.effects: List[Any] = []  # what the node does in the next turn
        self.is_sent = True  # at once
        self.asked = 0  # all but the node
        self.made = Comrade.__new__(Comrade)
        node = SimpleNamespace(take=lambda *_: None, tick=lambda _: (self.effects, 7.0))
        links = SimpleNamespace(flush=lambda: self.is_sent)
        self.loop = SimpleNamespace(is_calm=True)
        self.made.__dict__.update(node=node, links=links, loop=self.loop)
        self.made.__dict__.update(_has_stepped=True, _node_due=None, _gathered=[])
        self.made.__dict__.update(_parts_due=9.0, perform=lambda effects: None)
        self.made.__dict__.update(_poll=lambda: None, _tick_parts=self.tick_parts)
        monkeypatch.setattr(comrade, "clock", lambda: 5.0)

    def tick_parts(self, now: float) -> float:
        self.asked += 1
        return now + 1.0


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    return Parts(monkeypatch)


BEAT = Send(B, "HEARTBEAT", {})


@pytest.mark.parametrize("effects", [[], [BEAT], [BEAT, BEAT]])
def test_heartbeats_concern_the_core_alone(parts: Parts, effects: List[Any]) -> None:
    parts.effects = effects
    assert parts.made.tick() == 7.0
    assert not parts.asked


def test_the_others_are_asked_when_what_they_wait_for_is_due(parts: Parts) -> None:
    parts.made._parts_due = 6.0
    assert parts.made.tick() == 6.0 and not parts.asked
    parts.made._parts_due = 5.0
    assert parts.made.tick() == 6.0 and parts.asked == 1


@pytest.mark.parametrize("effect", [Send(B, "STOP", {}), Persist(1, (), (), {})])
def test_they_are_if_the_core_did_more_than_beat(parts: Parts, effect: Any) -> None:
    parts.effects = [BEAT, effect]
    parts.made.tick()
    assert parts.asked == 1


def test_they_are_if_a_heartbeat_is_not_out_at_once(parts: Parts) -> None:
    parts.effects, parts.is_sent = [BEAT], False
    parts.made.tick()
    assert parts.asked == 1


def test_they_are_if_something_else_came(parts: Parts) -> None:
    parts.loop.is_calm = False
    parts.made.tick()
    assert parts.asked == 1
