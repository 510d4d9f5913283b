"""What a comrade gathers for one turn of its core ends as if each had its own.

The same tasks, with the same ends, at a desk that steps and one that gathers. That
no rule is broken on the way is the simulator's: its comrades gather, too.
"""

import random
from typing import Any, Dict, List, Optional, Tuple

import pytest
from desk import Desk

import effects as core
from record import UNFINISHED, Phase, text_of


class Gathering(Desk):
    """Does what comrade.py does with such messages."""

    def __init__(self, **more: Any) -> None:
        self.gathered: List[core.Message] = []
        super().__init__(**more)

    def step(self, message: core.Message) -> None:
        if isinstance(message, core.GATHERED):
            self.gathered.append(message)
        else:
            super().step(message)

    def tick(self) -> Optional[float]:
        self.node.take(self.gathered, self.now)
        due = super().tick()
        return self.now if self.gathered else due


def story(desk: Desk, seed: int, is_told: bool = True) -> Dict[str, Tuple[Any, ...]]:
    """Let random tasks run to their random ends, several at once; tell what became.

    Their starts are told, or only their ends are.
    """
    draw = random.Random(seed)
    ends: Dict[str, List[int]] = {}
    for number in range(30):
        name = "t%d" % number
        conditions = ["", "queue:is_first", "queue:all_with_cmd_done 1$"]
        if number:
            conditions.append("queue:done t%d" % draw.randrange(number))
        retries = draw.randrange(3)
        ends[name] = [draw.choice([0, 0, 1, 137]) for _ in range(retries + 1)]
        command = "echo %d" % draw.randrange(5)
        one = draw.choice(conditions)
        desk.add(command, "--retries", str(retries), CONDITIONS=one, ID=name)
    for _ in range(400):
        desk.settle()
        living = [r for r in desk.node.queue.in_order() if r.living()]
        for record in living:
            (run,) = record.living()
            attempt = int(run.partition(".")[0])
            code = ends[record.name][attempt - 1]
            cause = "signal KILL" if code > 1 else ""
            if is_told:
                desk.step(core.RunStarted(run, 1.0))
            end = core.RunEnded(run, code, cause, 1.0, 2.0, 1.0, [0, ""], [0, ""])
            desk.step(end)
    desk.settle()
    return {
        record.name: (
            record.state,
            sorted(record.attempts(Phase.ENDED)),
            [run.detail["exit"] for _, run in sorted(record.runs.items())],
        )
        for record in desk.node.queue.in_order()
    }


@pytest.mark.parametrize("seed", range(6))
def test_gathered_messages_end_as_if_each_had_its_turn(seed: int) -> None:
    slow, quick = Desk(), Gathering()
    expected = story(slow, seed)
    assert story(quick, seed) == expected
    ended = [state for state, _, _ in expected.values() if state not in UNFINISHED]
    assert len(ended) >= 10  # others wait for each other, at both desks
    for desk in (slow, quick):  # the disk has all as it is
        newest = {key: row for p in desk.persisted for key, row in p.rows}
        assert newest.keys() == {r.key for r in desk.node.queue.in_order()}
        durable = desk.node.durable
        assert {key: durable._row(key) for key in newest} == newest


@pytest.mark.parametrize("seed", range(6))
def test_runs_told_at_their_ends_only_leave_the_same_records(seed: int) -> None:
    texts = []
    for is_told in (True, False):
        desk = Gathering()
        story(desk, seed, is_told)
        texts.append([text_of(record) for record in desk.node.queue.in_order()])
    assert texts[0] == texts[1] and b'"exit"' in texts[0][0]


def test_an_answer_of_the_disk_that_is_gathered_acknowledges_an_add() -> None:
    desk = Gathering()
    client = desk.client("add_task", "1K", "1", "1K", "true", "", "", "true")
    desk.settle()
    assert client.answer.code == 0 and len(client.answer.lines) == 1


def test_a_frame_that_breaks_this_node_ends_its_link_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    node = Desk().node
    node.step(core.LinkUp("peer", "b" * 16), 1000.0)
    assert "peer" in node.mesh.links
    monkeypatch.setattr(node.peers, "on_frame", broken)
    added = core.Add(7, [], 1.0)
    messages: List[core.Message] = [core.Frame("peer", "GOT", {"n": 1}), added]
    with pytest.raises(ZeroDivisionError):
        node.take(messages, 1000.0)
    assert messages == [added] and "peer" not in node.mesh.links
    effects, _ = node.tick(1000.0)
    assert core.CloseLink("peer", "bad frame") in effects
