"""Readable histories: what DESIGN.md promises, told with verbs.

    world = cluster(3); world.partition("a"); ...; world.heal()

Times are those of the rules; who does what is asked of the ledger, which saw it, and of
the cores only where they must know.
"""

from typing import List

import shapes
from disks import EIO, FULL
from recovery import is_agreed, may_finish
from world import World

from record import Phase


def cluster(size: int, seed: int = 1) -> World:
    """Start comrades a, b, c, ... and wait until they are one."""
    world = World(seed, "abcde"[:size])
    for name in world.hosts:
        world.start(name)
    settle(world)
    return world


def settle(world: World) -> None:
    """Wait until all are linked, in step and agreed."""
    assert world.until(world.is_meshed, 5, 0.05)
    everyone = {process.host.name for process in world.living()}
    assert world.until(
        lambda: (
            is_agreed(world)
            and all(p.node.mesh.component == everyone for p in world.living())
        ),
        5,
        0.05,
    )


def begun(world: World, key: str = "") -> List[str]:
    """Give where the runs of a task (or of all) began, in order."""
    lives = sorted(world.ledger.lives.values(), key=lambda life: life.begun)
    return [life.process.host.name for life in lives if key in ("", life.key)]


def finish(world: World, seconds: float = 30) -> None:
    """Wait until all tasks are finished everywhere, and check the ledger."""
    assert world.until(
        lambda: not may_finish(world) and world.is_equal(), seconds, 0.05
    )
    world.run(1)
    world.ledger.settle()


def test_a_healthy_cluster_starts_each_task_once_and_uses_all_nodes():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.add("a", 6)
    finish(world)
    assert sorted(begun(world)) == list("aabbcc")


def test_the_path_1_3_2_has_one_coordinator():
    world = cluster(3)
    world.ledger.is_healthy = True  # D2 holds on any connected path
    world.cut("a", "b")
    world.run(8)
    assert set(world.coordinators()) == {"a"}
    world.add("b", 4, "2 0")
    world.add("a", 4, "2 0")
    finish(world)
    assert len(begun(world)) == 8


def test_a_node_that_joins_does_not_grant_what_others_run():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.kill("a")
    world.run(3)
    world.add("b", 4, "8 0")
    world.run(1)
    world.start("a")  # the lowest id, with a disk that knows nothing of this
    finish(world)
    assert len(begun(world)) == 4


def test_a_grant_from_before_a_pause_is_not_started_after_it():
    world = cluster(3)
    world.add("b", 1, "1 0")
    finish(world)
    assert set(world.coordinators()) == {"a"}
    world.hosts["b"].process.take(world.pause, "a")
    world.add("b", 3, "5 0")
    world.run(10)  # b coordinates now, and has granted all three
    assert world.node("b").mesh.coordinator() == "b"
    world.resume("a")
    finish(world)
    assert len(begun(world)) == 1 + 3


def test_a_one_way_link_drops_out_at_both_ends():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.cut_way("a", "b")
    world.run(7)
    assert "b" not in world.node("a").mesh.facts["links"]
    assert "a" not in world.node("b").mesh.facts["links"]
    assert is_agreed(world)
    world.add("b", 4)
    finish(world)
    assert len(begun(world)) == 4


def test_the_stop_of_a_duplicate_does_not_fail_the_good_run():
    world = cluster(2)
    world.add("a", 1, "60 0")
    world.run(0.5)
    key = world.ledger.promises.acks[1].keys[0]
    world.partition("a" if begun(world) == ["b"] else "b")
    world.run(25)  # silence: lost after 20 s, and begun again on the other side
    assert len(begun(world, key)) == 2
    world.heal()
    world.run(2 + 5 + 5)
    alive = [life for life in world.ledger.of_task[key] if life.ended is None]
    assert [life.run for life in alive] == [world.ledger.of_task[key][0].run]
    finish(world, 60)
    assert world.node("a").queue.records[key].state.value == "done"


def test_a_planned_stop_hands_over_at_once():
    world = cluster(3)
    world.add("a", 6, "4 0")
    world.run(0.5)
    assert set(world.coordinators()) == {"a"}
    world.stop("a")
    assert world.until(lambda: world.hosts["a"].process is None, 2, 0.01)
    world.add("b", 1, "1 0", priority=1, cores=1)
    world.run(0.5)
    assert set(world.coordinators()) == {"b"}
    finish(world)
    handed = [life for life in world.ledger.lives.values() if "handed" in life.fate]
    assert len(handed) == 2  # two cores: both runs came back, and began again
    assert len(begun(world)) == 7 + 2


def test_death_restarts_its_runs_within_three_seconds_and_not_before_the_watcher():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.add("a", 6, "10 0")
    world.run(1)
    world.kill("b")
    died = world.t
    world.run(20)
    again = [life.begun - died for life in world.ledger.lives.values()][6:]
    lost = [life for life in world.ledger.lives.values() if life.fate == "died"]
    assert len(lost) == 2
    states = world.node("a").queue.records[lost[0].key].runs[lost[0].run]
    assert states.phase is Phase.LOST
    assert again and min(again) >= 1.2


def test_an_add_is_acknowledged_with_a_second_copy():
    world = cluster(3)
    world.hosts["b"].disk.is_hung = world.hosts["c"].disk.is_hung = True
    ticket = world.add("a")
    world.run(1)
    assert ticket not in world.ledger.promises.acks  # its own disk alone is not enough
    world.hosts["c"].disk.is_hung = False
    world.run(0.5)
    assert world.ledger.promises.acks[ticket].note == ""
    key = world.ledger.promises.acks[ticket].keys[0]
    assert world.ledger.promises.durable["add"][key] == {"a", "c"}
    world.heal()
    finish(world)


def test_an_add_is_acknowledged_alone_with_a_note():
    world = cluster(2)
    world.hosts["b"].disk.is_hung = True
    ticket = world.add("a")
    world.run(1.9)
    assert ticket not in world.ledger.promises.acks
    world.run(0.3)
    assert "on this node only" in world.ledger.promises.acks[ticket].note
    world.heal()
    finish(world)


def test_a_disk_error_is_told_unless_two_others_have_it():
    world = cluster(3)
    world.hosts["a"].disk.error = FULL
    ticket = world.add("a")
    world.run(1)
    key = world.ledger.promises.acks[ticket].keys[0]
    assert "not on this disk" in world.ledger.promises.acks[ticket].note
    assert world.ledger.promises.durable["add"][key] == {"b", "c"}
    world.hosts["b"].disk.is_hung = True
    refused = world.add("a")
    world.run(3)
    assert "no space left" in world.ledger.promises.acks[refused].error
    world.heal()
    finish(world)


def test_a_lone_node_with_a_full_disk_refuses():
    world = cluster(1)
    world.hosts["a"].disk.error = FULL
    ticket = world.add("a")
    world.run(1)
    assert world.ledger.promises.acks[ticket].error == "no space left"
    assert not world.node("a").queue.records


def test_a_lone_node_calls_lost_what_others_ran_before_it_was_restarted():
    world = cluster(2)
    world.add("a", 4, "60 0")
    world.run(1)
    world.kill("a")
    world.power_off("b")
    world.start("a")
    world.run(25)
    assert begun(world)[4:] == ["a", "a"]
