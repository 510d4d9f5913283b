"""Runs that are granted ahead of their cores: when, to whom, and how that ends."""

from typing import Any, List

import pytest
from desk import Client, Desk, request
from test_matching import MIB, Bench

import coordinator
import effects as core
import hands
from matching import pick_ahead
from record import File, Phase, Run
from workers import AHEAD_S, SHORT_RUNS, SHORT_S


class Scene(Desk):
    """A comrade of two cores with tasks to run."""

    def __init__(self, **seams: Any) -> None:
        super().__init__(cores=2, **seams)
        self.over: List[str] = []

    def settle(self) -> None:
        for _ in range(9):
            self.perform(self.node.tick(self.now)[0])

    def add(
        self, count: int, cores: int = 1, memory: str = "1K", ifs: str = ""
    ) -> None:
        for n in range(count):
            call = [
                "add_task",
                memory,
                str(cores),
                "1K",
                "true",
                ifs,
                "",
                "echo %d" % n,
            ]
            Client(self, request(call))
        self.settle()

    def going(self) -> List[core.Start]:
        return [start for run, start in self.started.items() if run not in self.over]

    def end(self, took: float, count: int = 1) -> None:
        """Let what began first end."""
        for _ in range(count):
            run = self.going()[0].run
            self.over.append(run)
            times = (self.wall, self.wall, took)
            self.step(core.RunEnded(run, 0, "", *times, [0, ""], [0, ""]))
            self.settle()

    def refuse(self, run: str, why: str) -> None:
        self.over.append(run)
        self.step(core.RunRefused(run, why))
        self.settle()

    def ahead(self) -> List[int]:
        return [start.ahead for start in self.going()]


def ran_some(took: float = SHORT_S, count: int = SHORT_RUNS, **seams: Any) -> Scene:
    """Give a scene in which so many runs are over."""
    scene = Scene(**seams)
    scene.add(count)
    scene.end(took, count)
    assert not scene.going()
    return scene


@pytest.mark.parametrize(
    "took, count, most",
    [(SHORT_S, SHORT_RUNS, 4), (SHORT_S, SHORT_RUNS - 1, 2), (0.021, 20, 2)],
)
def test_who_has_run_short_ones_gets_as_many_again_as_it_has_cores(
    took: float, count: int, most: int
) -> None:
    scene = ran_some(took, count)
    scene.add(9)
    assert scene.ahead() == [0, 0, 2, 2][:most]


def test_who_runs_long_ones_costs_no_look_at_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(*_: Any) -> None:
        raise AssertionError("each full node costs this, at each turn")

    monkeypatch.setattr(coordinator, "pick_ahead", look)
    scene = ran_some(0.021)
    scene.add(9)
    assert scene.ahead() == [0, 0]


def test_each_end_makes_room_for_the_next() -> None:
    scene = ran_some()
    scene.add(9)
    scene.end(0.001)
    assert scene.ahead() == [0, 2, 2, 2]
    scene.end(0.001, 8)
    assert not scene.going()


def test_a_long_one_is_the_last_for_which_others_wait() -> None:
    scene = ran_some()
    scene.add(9)
    scene.end(SHORT_S + 0.001)
    assert len(scene.going()) == 3
    scene.end(0.001)
    assert len(scene.going()) == 2


def test_what_idled_for_long_is_seen_anew() -> None:
    scene = ran_some()
    scene.add(9)
    scene.now += AHEAD_S + 0.001
    scene.end(0.001)  # no more than one of them has ended since
    assert len(scene.going()) == 3


def test_what_waited_too_long_goes_to_the_next_free_core_without_delay() -> None:
    scene = ran_some()
    scene.add(4)
    last = scene.going()[-1]
    scene.refuse(last.run, core.BEHIND)
    record = scene.node.queue.records[last.record.key]
    assert [run.phase for run in record.runs.values()] == [Phase.RETURNED]
    assert len(scene.going()) == 3, "granted ahead again"
    scene.end(0.001, 2)
    again = scene.going()[-1]
    assert (again.record.key, again.attempt) == (last.record.key, 1)


@pytest.mark.parametrize(
    "needs",
    [
        dict(cores=2),
        dict(concurrency=False),
        dict(files=(File("a", "0" * 64, 1, 0o644),)),
        dict(conditions=("worker:tag x",)),
        dict(memory=3000 * MIB),
        dict(storage=1 << 50),
    ],
)
def test_only_small_ones_go_ahead(needs: Any) -> None:
    bench = Bench()
    worker = bench.worker(cores=1, memory=4096 * MIB)
    worker.holds = frozenset(["worker:tag x"])
    for _ in range(SHORT_RUNS):
        worker.note_end(ended(0.0))
    running = bench.add(memory=2000 * MIB)
    bench.grant(running, worker)
    wanted = bench.add("true", *needs.pop("conditions", ()), **needs)
    assert pick_ahead(bench.matcher, worker, 0.0) is None
    bench.queue.delete(wanted.key)
    small = bench.add(memory=2000 * MIB)
    assert pick_ahead(bench.matcher, worker, 0.0) is small


def ended(took: float) -> Run:
    return Run("w", 0, 0, Phase.ENDED, {"took": took})


@pytest.mark.parametrize("state", ["draining", "away", "stuck"])
def test_who_takes_nothing_new_gets_none_ahead(state: str) -> None:
    bench = Bench()
    worker = bench.worker(cores=1)
    for _ in range(SHORT_RUNS):
        worker.note_end(ended(0.0))
    bench.grant(bench.add(), worker)
    bench.add()
    setattr(worker, state, True)
    assert pick_ahead(bench.matcher, worker, 0.0) is None
    setattr(worker, state, False)
    assert pick_ahead(bench.matcher, worker, 0.0) is not None


def test_nothing_goes_ahead_on_a_node_that_is_kept_for_a_bigger_task() -> None:
    bench = Bench()
    worker = bench.worker(cores=2)
    for _ in range(SHORT_RUNS):
        worker.note_end(ended(0.0))
    for _ in range(2):
        bench.grant(bench.add(), worker)
    big = bench.add(cores=2, priority=1)
    bench.add()
    assert pick_ahead(bench.matcher, worker, 0.0) is None, "the big one comes first"
    worker.kept_for = big.key
    assert pick_ahead(bench.matcher, worker, 0.0) is None


def test_a_task_behind_others_still_shows_no_more_cores_than_there_are() -> None:
    scene = ran_some()
    scene.add(9)
    (row,) = scene.node.members()
    assert (row["cores"], row["cores_free"], row["running"]) == (2, 0, 2)


def test_a_grant_ahead_of_two_cores_tasks_comes_back() -> None:
    scene = Scene()
    scene.add(1, cores=2)
    assert scene.node.hands._has_room(record_of(scene, 2)) == (False, False)
    assert scene.node.hands._has_room(record_of(scene, 1)) == (False, False)


def record_of(scene: Scene, cores: int) -> Any:
    scene.add(1, cores=cores)
    return list(scene.node.queue.in_order())[-1]


def test_what_is_deleted_before_it_began_is_taken_back() -> None:
    scene = ran_some()
    scene.add(4)
    last = scene.going()[-1]
    assert last.ahead
    scene.step(core.Delete(99, [last.record.key]))
    assert [kill.run for kill in scene.kills] == [last.run]
    scene.refuse(last.run, scene.kills[0].cause)
    assert [run.phase for run in last.record.runs.values()] == [Phase.RETURNED]


def test_what_is_purged_while_it_is_stopped_leaves_no_room_until_it_is_gone() -> None:
    scene = Scene()
    scene.add(1)
    (running,) = scene.going()
    scene.node.queue.forget([running.record.key])
    scene.settle()
    assert [kill.run for kill in scene.kills] == [running.run]
    scene.add(1)
    assert scene.going() == [running]
    scene.refuse(running.run, scene.kills[0].cause)
    scene.now += 1.0  # it was handed back: it is tried again
    scene.settle()
    assert len(scene.going()) == 1


def test_a_node_that_hands_back_all_that_is_ahead_gets_that_ever_less_often() -> None:
    scene = Scene()
    scene.add(300)
    back = 0
    while scene.going():
        ahead = [start for start in scene.going() if start.ahead][:1]
        back += len(ahead)
        for start in ahead:
            scene.refuse(start.run, core.BEHIND)
        if not ahead:
            scene.end(0.001)
    assert len(scene.over) == 300 + back
    assert 4 < back < 20


@pytest.mark.parametrize("why", [core.BEHIND, hands.NO_ROOM])
def test_one_that_keeps_what_is_ahead_again_is_as_any_other(why: str) -> None:
    worker = Bench().worker(cores=1)

    def may_begin() -> int:
        for count in range(1, 99):
            worker.note_end(ended(0.0))
            if worker.goes_ahead(0.0):
                return count
        return 99

    def hand_back() -> None:
        for _ in range(2):  # what was ahead comes back at once
            worker.note_end(
                ended(0.0)._replace(phase=Phase.RETURNED, detail={"why": why})
            )

    assert may_begin() == SHORT_RUNS
    hand_back()
    assert may_begin() == 2 * SHORT_RUNS
    hand_back()
    assert may_begin() == 4 * SHORT_RUNS
    for _ in range(SHORT_RUNS):
        worker.note_end(ended(0.0))
    assert worker.goes_ahead(0.0)
    hand_back()
    assert may_begin() == 2 * SHORT_RUNS
