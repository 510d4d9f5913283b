"""Readable histories: what DESIGN.md promises, told with verbs.

    world = cluster(3); world.partition("a"); ...; world.heal()

Times are those of the rules; who does what is asked of the ledger, which saw it, and of
the cores only where they must know.
"""

from typing import Any, Dict, List

import shapes
from disks import EIO, FULL
from recovery import MONTH_S, is_agreed, may_finish
from world import World

from effects import Tags
from record import File, Phase


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


def test_where_all_hear_each_other_a_change_crosses_each_link_once():
    counts = {}
    for size in (2, 4):
        world = cluster(size)
        world.run(2)
        boxes = [b for p in world.living() for b in p.node.replica.boxes.values()]
        before = sum(box.number for box in boxes)
        world.add("a", 1, "0 0", conditions=("worker:tag a",))
        finish(world)
        counts[size] = sum(box.number for box in boxes) - before
    assert counts[4] == 3 * counts[2]  # passed on by each it would be 8 times


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


def test_grants_that_a_pause_kept_back_are_not_started_beside_those_of_another():
    for seed in (1, 3):
        world = cluster(3, seed)
        world.ledger.is_healthy = True
        world.pause_in_turn("a")
        world.add("b", 4, "9 0")  # a grants them all, and stands still
        world.run(5.2)
        assert begun(world) == ["c", "c", "b", "b"]  # b has the same term as a
        assert all(record.runs for record in world.node("a").queue.records.values())
        world.resume("a")
        finish(world, 60)
        assert len(begun(world)) == 4


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


def test_those_that_say_no_are_not_waited_for():
    world = cluster(3)
    for name in "bc":
        world.hosts[name].disk.error = FULL
    here = world.add("a")
    world.run(0.5)
    assert "on this node only" in world.ledger.promises.acks[here].note
    world.hosts["a"].disk.error = FULL
    refused = world.add("a")
    world.run(0.5)
    assert "no space left" in world.ledger.promises.acks[refused].error
    world.hosts["c"].disk.error, world.hosts["c"].disk.is_hung = "", True
    waits = world.add("a")
    world.run(0.5)
    assert waits not in world.ledger.promises.acks  # c may still say yes
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


def test_a_ring_in_which_each_hears_another_majority_has_one_coordinator():
    world = cluster(5)
    world.shape(shapes.ring("abcde"))
    world.run(8)
    assert set(world.coordinators()) == {"a"}
    world.ledger.is_healthy = True
    for name in world.hosts:
        world.add(name, 3, "2 0")
    finish(world)
    assert len(begun(world)) == 15


def test_a_bridge_joins_two_sides_and_parts_them_when_it_dies():
    world = cluster(5)
    world.shape(shapes.bridge("abcde"))
    world.run(8)
    assert set(world.coordinators()) == {"a"}
    world.kill("c")
    world.run(8)
    assert world.coordinators() == ["a", "a", "d", "d"]
    world.add("a", 2), world.add("e", 2)
    world.run(4)
    acks, sides = world.ledger.promises.acks, ("ab", "de")
    for ticket, side in zip(sorted(acks), sides):
        assert all(set(begun(world, key)) < set(side) for key in acks[ticket].keys)
    assert len(begun(world)) == 4
    world.heal()
    settle(world)
    finish(world)
    assert len(begun(world)) == 4  # each side has done its own, once


def test_two_coordinators_that_meet_grant_no_task_twice():
    world = cluster(4)
    world.partition("ab")
    world.run(8)
    assert world.coordinators() == ["a", "a", "c", "c"]
    world.add("a", 20, "1 0"), world.add("c", 20, "1 0")
    world.run(1)
    met = world.t
    world.heal()
    settle(world)
    finish(world, 60)
    for lives in world.ledger.of_task.values():
        assert not [life for life in lives[1:] if life.begun > met]


def test_a_disk_says_what_is_purged_before_it_drops_it():
    world = cluster(2)
    world.add("a", 3)
    finish(world)
    world.partition("b")  # b keeps them, and would bring them back
    disk = world.hosts["a"].disk
    disk.delay = (0.5, 0.5)
    world.purge("a")
    while any(world.ledger.promises.promised["add"].keys() & disk.rows.keys()):
        world.run(0.05)
    world.kill("a")
    world.start("a")
    purged = world.node("a").queue.purged
    assert all(map(purged.covers, world.ledger.promises.promised["add"]))
    world.heal()
    settle(world)
    assert world.until(world.is_equal, 5, 0.05)
    assert not world.node("a").queue.records and not world.node("b").queue.records


def test_a_node_that_was_away_for_long_brings_nothing_back_but_what_it_added():
    world = cluster(3)
    world.add("a", 4)
    finish(world)
    world.partition("c")
    world.run(6)
    world.add("c", 1, "1 0")
    world.run(5)
    for name in "ab":
        world.hosts[name].jump(MONTH_S)
    world.run(6)
    assert not world.node("a").queue.records  # forgotten, with c away
    world.heal()
    settle(world)
    finish(world)
    left = [record.key for record in world.node("a").queue.records.values()]
    assert left == [key for key in left if key.endswith(world.node("c").me.writer)]
    assert len(left) == 1 and len(begun(world)) == 4 + 1


def test_a_task_that_is_added_later_is_younger_wherever_it_is_added():
    world = cluster(3)
    for name in "abcabc":
        world.add(name, 2, "0.1 0")
        world.run(1)  # it is everywhere now
    orders = [r.order for r in world.node("a").queue.in_order()]
    acks = world.ledger.promises.acks
    added = [key for ticket in sorted(acks) for key in acks[ticket].keys]
    assert [r.key for r in world.node("a").queue.in_order()] == added
    assert orders == sorted(orders)
    finish(world)


def test_an_add_in_slices_that_is_cut_short_leaves_nothing():
    world = cluster(2)
    world.add_slices("a", [2, 2, 2, 2], "1 0")
    world.run(0.12)  # three of four
    world.kill("a")
    world.start("a")
    settle(world)
    world.run(3)
    assert not world.node("a").queue.records and not world.node("b").queue.records
    ticket = world.add_slices("a", [2, 2, 0], "1 0")
    world.run(1)
    assert world.ledger.promises.acks[ticket].error
    whole = world.add_slices("a", [2, 2, 1], "1 0")
    world.run(1)
    assert len(world.ledger.promises.acks[whole].keys) == 5
    finish(world)
    assert len(begun(world)) == 5


def test_a_list_that_takes_many_turns_to_let_go_is_kept_and_run_once():
    world = cluster(3)
    world.node("a").durable.slice = 1
    world.partition("ab")
    ticket = world.add_slices("a", [20, 20, 20], "0.1 0")
    world.run(0.11)  # the last slice is in
    world.heal()
    single = world.add("a", 1, "0.1 0")
    while single not in world.ledger.promises.acks:
        world.run(0.01)
    world.run(3)
    assert len(world.ledger.promises.acks[ticket].keys) == 60
    node = world.node("a")
    assert not (node.matcher.blocked or node.replica.held or node.replica.wanted)
    finish(world)
    assert len(begun(world)) == 61


def test_all_lose_power_and_keep_what_was_promised():
    world = cluster(3)
    ticket = world.add("a", 5, "8 0")
    while ticket not in world.ledger.promises.acks:
        world.run(0.01)
    for name in world.hosts:
        world.power_off(name)
    for name in world.hosts:
        world.start(name)
    settle(world)
    finish(world, 60)
    keys = world.ledger.promises.acks[ticket].keys
    assert all(world.node("c").queue.records[k].state.value == "done" for k in keys)


def test_what_a_flipped_bit_takes_the_others_give_back():
    world = cluster(2)
    world.add("a", 10)
    finish(world)
    everything = set(world.node("b").queue.records)
    world.kill("a")
    world.flip("a", 20)
    world.start("a")
    assert set(world.node("a").queue.records) < everything
    settle(world)
    assert world.until(world.is_equal, 10, 0.05)
    assert set(world.node("a").queue.records) == everything


def test_frames_that_come_twice_or_late_change_nothing():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.network.echo, world.network.late = 1.0, 1.0
    for name in "abc":
        world.add(name, 3, "3 0")
    world.run(2)
    world.break_links("a", "b")
    world.run(2)
    world.break_links("b", "c")
    finish(world)
    assert len(begun(world)) == 9


def test_a_core_finishes_all_it_holds_while_the_rest_is_broken_for_ever():
    world = cluster(5)
    world.add("a", 8, "3 0"), world.add("e", 4, "3 0")
    world.run(1)
    world.broken = {"a", "b", "c"}
    world.kill("a")
    world.pause("b")
    world.cut_way("c", "d"), world.cut_way("c", "e")
    world.hosts["d"].disk.error = EIO
    finish(world, 45)
    records = world.node("e").queue.records
    assert len(records) == 12
    assert {record.state.value for record in records.values()} == {"done"}


def test_a_node_whose_disk_hangs_gets_nothing_new_until_it_answers():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.hosts["c"].disk.is_hung = True
    world.add("a", 1, "1 0")
    world.run(4)
    world.add("a", 6, "1 0")
    world.run(8)
    assert len(begun(world)) == 7 and "c" not in begun(world)[1:]
    record = next(iter(world.node("a").queue.records.values()))
    texts = [row.text for row in world.node("a").why(record, 0.0)]
    assert "its disk doesn't answer" in "; ".join(texts)
    world.hosts["c"].disk.is_hung = False
    world.run(1)
    world.add("a", 6, "1 0")
    finish(world)
    assert sorted(begun(world)[7:]) == list("aabbcc")


def test_a_node_whose_disk_hangs_alone_starts_nothing_until_it_answers():
    world = cluster(2)
    world.hosts["b"].disk.is_hung = True
    world.add("a", 1, "1 0")
    world.run(4)
    world.add("a", 4, "3 0")
    world.run(1)
    before = begun(world)
    world.kill("a")
    world.run(10)
    assert begun(world) == before and len(before) == 3
    world.hosts["b"].disk.is_hung = False
    finish(world)
    assert begun(world)[3:] == list("bbbb")


def test_halves_that_differ_everywhere_list_what_they_have_in_a_few_frames():
    world = cluster(2)
    world.partition("a")
    world.run(6)
    everyone = [world.add(name, 1500, "1 0", cores=9) for name in "ab"]
    world.run(3)
    lists = {name: 0 for name in "ab"}
    for name in "ab":
        count_lists(world, name, lists)
    world.heal()
    assert world.until(world.is_equal, 10, 0.05) and everyone
    for name in "ab":  # 500 keys in each, where there were 512 frames
        assert len(world.node(name).queue.records) == 3000
        assert 3 <= lists[name] <= 4


def count_lists(world: World, name: str, lists: Dict[str, int]) -> None:
    """Count the LEAF frames that a node sends from now on."""
    replica = world.node(name).replica
    send = replica.send

    def counting(peer: str, kind: str, fields: Dict[str, Any]) -> None:
        lists[name] += kind == "LEAF"
        send(peer, kind, fields)

    replica.send = counting


def test_a_suspended_machine_accuses_nobody_and_its_task_is_told_once():
    world = cluster(3)
    world.add("a", 6, "30 0")
    world.run(1)
    world.suspend("c")
    world.run(10)
    world.wake("c")
    world.hosts["c"].jump(3600)  # its clock says how long it was
    finish(world, 60)
    assert len(begun(world)) == 6


def test_a_clock_that_jumps_makes_nobody_run_a_task_twice():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.ledger.is_prompt = False
    world.add("a", 6, "8 0")
    for name, seconds in zip("abc", (5, 600, 40000)):
        world.run(1.5)
        world.hosts[name].jump(seconds)
    finish(world)
    assert len(begun(world)) == 6


def test_nodes_that_join_a_busy_cluster_grant_nothing_before_they_belong_to_it():
    world = World(10, "abcde")
    world.ledger.is_healthy = True
    for name in "cde":
        world.start(name)
    world.run(4)
    world.network.delay = (0.05, 0.5)
    for i in range(60):  # what is added while they join reaches them at once
        world.after(0.1 * i, world.add, "d", 1, "0.5 0")
    for name in "ab":  # lower ids, disks that know nothing
        world.run(1.5)
        world.start(name)
    world.run(4)
    finish(world, 60)
    assert len(begun(world)) == 60


def test_a_node_that_comes_back_waits_for_those_it_knew():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.add("a", 16, "4 0")
    world.run(1)
    world.kill("a")  # ten wait, as its disk says
    world.run(7)
    world.start("a")
    finish(world, 60)
    assert len(begun(world)) == 16 + 2


def test_a_grant_that_is_late_is_not_started_when_another_coordinates():
    world = cluster(3)
    world.add("b", 1, "0.5 0")
    finish(world)
    assert set(world.coordinators()) == {"a"}
    for name in "bc":
        world.network.slow["a", name] = (4.6, 4.6)
    world.add("b", 2, "9 0", conditions=("worker:tag c",))
    world.run(4.4)  # silent for 4 s: b has taken over
    assert world.node("b").mesh.coordinator() == "b"
    world.heal()
    finish(world, 60)
    assert begun(world)[1:] == ["c", "c"]


def test_no_slice_of_an_add_runs_before_the_last_is_kept():
    world = cluster(2)
    world.add_slices("a", [1] * 40, "0.1 0")
    world.run(1.9)
    assert not begun(world) and not world.node("b").queue.records
    world.run(3)
    finish(world)
    assert len(begun(world)) == 40


def test_a_run_that_was_called_lost_is_its_workers_after_all():
    world = cluster(3)
    world.add("a", 1, "60 0")
    world.run(1)
    (first,) = begun(world)
    world.pause(first)
    world.run(23)  # lost after 20 s of silence, and begun again
    assert len(begun(world)) == 2
    world.resume(first)
    world.run(2 + 5 + 5)
    alive = world.ledger.alive(world.core())
    assert [life.process.host.name for life in alive] == [first]
    finish(world, 60)


def test_a_node_that_stood_still_grants_nothing_that_others_took_meanwhile():
    world = cluster(3)
    world.add("a", 24, "3 0")
    world.run(1)
    world.pause("a")
    world.run(12)
    world.resume("a")
    finish(world, 60)
    assert len(begun(world)) == 24


def test_a_lone_node_keeps_nothing_of_an_add_that_it_died_in():
    world = cluster(1)
    world.add_slices("a", [2, 2, 2, 2], "1 0")
    world.run(0.14)
    world.power_off("a")
    world.start("a")
    assert not world.node("a").queue.records


def test_late_grants_of_a_node_that_was_cut_off_are_not_started():
    world = cluster(4)
    world.add("b", 1, "0.5 0")
    finish(world)
    for name in "bcd":
        world.cut_way("a", name)  # it hears all, nobody hears it
    world.add("c", 2, "9 0", conditions=("worker:tag d",))
    world.run(4.6)
    assert world.node("b").mesh.coordinator() == "b"
    world.heal()  # what was under way arrives now
    finish(world, 60)
    assert begun(world)[1:] == ["d", "d"]


def test_a_node_that_never_coordinated_waits_for_those_it_knew_as_well():
    world = cluster(3)
    world.ledger.is_healthy = True
    world.add("b", 16, "4 0")
    world.run(1)
    world.kill("c")
    world.run(7)
    world.start("c")
    finish(world, 60)
    assert len(begun(world)) == 16 + 2


def test_a_node_that_has_others_tasks_and_no_word_of_them_waits_as_well():
    world = World(1, "abc")
    world.ledger.is_healthy = True
    for name in "ab":
        world.start(name)
    world.run(4)
    world.add("b", 4, "3 0")
    world.add("b", 1, "5 0")  # it waits, as c will have it
    world.start("c")
    kept, process = world.hosts["c"].disk, world.hosts["c"].process
    process._look_after = lambda: None  # word of members comes later than records
    assert world.until(lambda: len(kept.rows) == 5, 3, 0.001)
    world.kill("c")
    assert "members" not in kept.load().meta
    assert world.until(lambda: len(begun(world)) == 5, 6, 0.05)
    world.start("c")
    finish(world)
    assert len(begun(world)) == 5


def test_a_purge_outlives_a_loss_of_power_whole_or_not_at_all():
    world = cluster(3)
    world.add("b", 4)
    finish(world)
    world.shape(shapes.shattered("abc"))
    for name in world.hosts:
        disk = world.hosts[name].disk
        disk.delay = (0.3, 0.3)
        world.purge(name)
        assert world.until(lambda disk=disk: not disk.rows, 2, 0.01)
        world.run(0.1)  # the rows are gone; what followed is under way
        world.power_off(name)
        world.start(name)  # the ledger knows what this disk had
    world.heal()
    settle(world)
    assert world.until(world.is_equal, 5, 0.05)
    assert not world.node("a").queue.records


def test_a_link_that_comes_back_late_counts_only_when_it_has_begun_anew():
    world = cluster(3)
    world.cut("a", "b")
    world.run(8)  # c is between them
    for name in "ac":  # busy: the next one will be for b
        world.add("a", 1, "20 0", cores=2, conditions=("worker:tag " + name,))
    world.run(2)
    world.partition("b")
    world.run(1)
    world.add("b", 1, "5 0", own="x")
    world.hosts["b"].process.step(Tags(["new"], []))  # news of b, under way to c
    assert world.until(lambda: world.node("a").mesh.component == {"a", "c"}, 4, 0.01)
    world.add("a", 1, "5 0", own="x")  # the same task, which both may grant
    assert world.until(lambda: len(world.ledger.copies.granted) == 3, 1, 0.01)
    assert "c" in world.hosts["b"].process.wires  # silent, but not closed yet
    world.mend("b", "c")
    finish(world)
    assert sorted(begun(world)) == ["a", "b", "c"]


def test_who_grants_starts_nothing_that_a_former_coordinator_granted():
    world = cluster(2)
    world.add("a", 1, "0.5 0")
    finish(world)
    assert set(world.coordinators()) == {"a"}
    world.partition("b")
    world.run(1)
    world.add("b", 1, "5 0")  # under way to a as a task that waits
    assert world.until(lambda: len(world.ledger.copies.granted) == 2, 4, 0.01)
    assert world.node("a").mesh.component == {"a", "b"}  # it heard b a little later
    world.heal()
    finish(world)
    assert begun(world)[1:] == ["b"]


def test_a_link_that_was_silent_for_less_than_four_seconds_stays():
    world = cluster(2)
    (wire,) = world.hosts["a"].process.wires.values()
    world.partition("b")
    world.run(2.9)
    world.heal()
    world.run(3)
    assert list(world.hosts["a"].process.wires.values()) == [wire]
    assert is_agreed(world)


def test_a_file_that_never_comes_holds_up_no_other_task():
    world = cluster(2)
    file = File("data", "%064x" % 1, 10, 0o644)
    world.add("b", 2, "1 0", files=(file,), concurrency=False)
    world.run(0.05)  # a has the tasks, and has just begun to ask for the file
    world.kill("b")
    ticket = world.add("a", 2, "1 0")
    world.run(12)
    others = world.ledger.promises.acks[ticket].keys
    assert [begun(world, key) for key in others] == [["a"], ["a"]]
    runs = [len(r.runs) for r in world.node("a").queue.records.values()]
    assert max(runs) <= 6  # handed back at 0, 1, 3, 7 s, ... after the first
    world.start("b")
    finish(world)


def test_a_file_that_is_long_under_way_is_waited_for():
    world = cluster(2)
    file = File("data", "%064x" % 1, 10, 0o644)
    alone = ("worker:tag a",)
    ticket = world.add("b", 1, "1 0", files=(file,), conditions=alone)
    world.hosts["b"].files.clear()  # as if it took 20 s
    world.after(20, world.hosts["b"].files.add, file.digest)
    world.run(19)
    (key,) = world.ledger.promises.acks[ticket].keys
    assert not begun(world, key)
    world.run(2)
    finish(world)
    assert begun(world, key) == ["a"]
