"""Readable histories of ghosts: their faults of FAULTS.md, told with verbs.

Times are those of D12; who does what is asked of the ledger, which saw it.
"""

from typing import Any, List

import pytest
from recovery import untold
from test_histories import begun, finish, settle
from world import World

from record import Phase


def haunted(ghosts: str = "x", size: int = 3, seed: int = 1, first: str = "") -> World:
    """Start comrades a, b, c, ... and ghosts: at the lowest, or at `first`."""
    world = World(seed, "abcde"[:size], ghosts=ghosts)
    for name in world.hosts:
        world.start(name)
    settle(world)
    for name, host in world.ghosts.items():
        host.wanted = first and world.hosts[first].address
        world.start(name)
    assert world.until(lambda: len(attached(world)) == len(ghosts), 5, 0.05)
    return world


def attached(world: World) -> List[str]:
    """Give where each ghost is attached that is."""
    places = [world.ledger.attachments.where(ghost) for ghost in world.haunting()]
    return [place.comrade.host.name for place in places if place is not None]


def on_ghost(world: World, command: str, seconds: float = 0.5, count: int = 1) -> str:
    """Let ghost x run a task, added at the last comrade; give its key."""
    where = sorted(world.hosts)[-1]
    ticket = world.add(where, count, command, conditions=("worker:tag x",))
    world.run(seconds)
    keys = world.ledger.promises.acks[ticket].keys
    assert begun(world, keys[0]) == ["x"]
    return str(keys[0])


def lost(world: World, key: str) -> List[str]:
    """Give the runs of a task that some comrade calls lost."""
    return [
        run
        for process in world.living()
        for run, value in process.node.queue.records[key].runs.items()
        if value.phase is Phase.LOST
    ]


def end(world: World, seconds: float = 40) -> None:
    """Wait until all is finished and no ghost holds anything."""
    finish(world, seconds)
    assert world.until(lambda: not untold(world), 10, 0.05)
    world.ledger.settle()


def clairvoyant_of(world: World) -> Any:
    """Give the process that ghost x is attached to."""
    (ghost,) = world.haunting()
    place = world.ledger.attachments.where(ghost)
    assert place is not None
    return place.comrade


# --- FAULTS 17, 18, 19: the clairvoyant dies --------------------------------------


def test_17_a_long_task_goes_on_when_its_clairvoyant_is_killed():
    world = haunted()
    world.ledger.is_healthy = True
    key = on_ghost(world, "600 0")
    assert attached(world) == ["a"]
    world.kill("a")
    assert world.until(lambda: attached(world) == ["b"], 5, 0.05)
    world.run(30)
    assert not lost(world, key)
    end(world, 620)
    assert begun(world) == ["x"]


def test_17_a_long_task_goes_on_when_its_clairvoyant_loses_power():
    world = haunted()
    world.ledger.is_healthy = True
    key = on_ghost(world, "60 0")
    world.power_off("a")
    assert world.until(lambda: bool(attached(world)), 10, 0.05)
    world.run(30)
    assert not lost(world, key)
    end(world, 60)
    assert begun(world) == ["x"]


def test_18_a_clairvoyant_that_dies_before_it_heard_of_an_end_loses_nothing():
    world = haunted()
    world.ledger.is_healthy = True
    on_ghost(world, "3 0")
    world.run(2.3)
    world.hosts["a"].process.desk.end(is_reset=True)  # what is under way is lost
    world.kill("a")
    world.run(1)
    assert [life.fate for life in world.ledger.lives.values()] == ["0"]
    end(world)
    assert begun(world) == ["x"]


def test_18_a_clairvoyant_that_dies_between_got_and_stored_loses_nothing():
    world = haunted()
    world.ledger.is_healthy = True
    key = on_ghost(world, "4 0")
    (run,) = world.ledger.lives
    for name in "abc":  # GOT comes at once, STORED doesn't
        world.hosts[name].disk.delay = (0.6, 0.7)
    world.network.slow["a", "b"] = world.network.slow["a", "c"] = (3.0, 3.0)
    process = clairvoyant_of(world)
    assert world.until(
        lambda: process.node.queue.records[key].runs[run].phase is Phase.ENDED, 4, 0
    )
    world.run(0.1)
    (ghost,) = world.haunting()
    assert run in ghost.node.queue.records[key].runs  # not forgotten at GOT
    world.kill("a")  # nobody else has merged the end
    world.heal()
    end(world)
    assert begun(world) == ["x"]
    assert run in world.node("b").queue.records[key].runs


def test_18_a_clairvoyant_that_dies_after_stored_told_others():
    world = haunted()
    world.ledger.is_healthy = True
    on_ghost(world, "2 0")
    (run,) = world.ledger.lives
    assert world.until(lambda: run in world.ledger.attachments.stored, 5, 0)
    world.kill("a")
    end(world)
    assert begun(world) == ["x"]


def test_19_a_grant_that_a_dying_clairvoyant_has_not_forwarded_comes_from_the_next():
    world = haunted(first="b")
    world.ledger.is_healthy = True
    world.network.slow["b", "x"] = (0.5, 0.5)
    world.add("a", 1, "3 0", conditions=("worker:tag x",))
    assert world.until(
        lambda: any(r.runs for r in world.node("b").queue.records.values()), 2, 0
    )
    assert not begun(world)
    killed = world.t
    world.kill("b")
    end(world)
    assert begun(world) == ["x"]
    (life,) = world.ledger.lives.values()
    assert life.begun - killed <= 6  # 5 s to attach, and the grant


def test_19_a_grant_to_an_own_ghost_goes_out_at_once_with_its_second_copy():
    world = haunted()
    world.ledger.is_healthy = True
    assert set(world.coordinators()) == {"a"} == set(attached(world))
    world.add("b", 1, "1 0", conditions=("worker:tag x",))
    world.run(0.3)
    assert begun(world) == ["x"]  # and no sooner: the ledger has seen it (S6)
    end(world)


def test_19_a_grant_to_an_own_ghost_is_known_when_its_clairvoyant_dies():
    world = haunted()
    world.ledger.is_healthy = True
    for name in "bc":
        world.network.slow["a", name] = (0.4, 0.4)
    world.add("a", 1, "9 0", conditions=("worker:tag x",))
    assert world.until(lambda: bool(begun(world)), 5, 0)
    world.kill("a")
    end(world)
    assert begun(world) == ["x"]


# --- the relay --------------------------------------------------------------------


def test_a_relay_that_dies_alone_costs_no_run():
    world = haunted("xyz")
    world.ledger.is_healthy = True
    world.add("b", 12, "8 0")
    world.run(1)
    world.kill_relay("a")
    assert world.until(lambda: attached(world) == ["a", "a", "a"], 5, 0.05)
    end(world)
    assert len(begun(world)) == 12


def test_a_relay_does_not_mask_a_main_that_is_stuck():
    world = haunted()
    world.ledger.is_healthy = True
    world.ledger.is_prompt = False
    key = on_ghost(world, "60 0")
    world.pause("a")
    assert world.until(lambda: attached(world) == ["b"], 3 + 10, 0.05)
    world.run(20)
    world.resume("a")
    world.run(5)
    assert attached(world) == ["b"] and not lost(world, key)
    end(world, 60)
    assert begun(world) == ["x"]


# --- FAULTS 13, 16, 26: the ghost is away -----------------------------------------


def test_13_a_ghost_that_is_paused_for_three_seconds_is_not_missed():
    world = haunted()
    world.ledger.is_healthy = True
    key = on_ghost(world, "10 0")
    world.pause("x")
    world.run(3)
    world.resume("x")
    world.run(2)
    assert attached(world) == ["a"] and not lost(world, key)
    end(world)
    assert begun(world) == ["x"]


def test_13_a_ghost_that_is_paused_for_a_minute_is_lost_and_its_run_is_the_smaller():
    world = haunted("x", seed=2)
    ticket = world.add("b", 1, "200 0", cores=2)
    world.run(0.5)
    (key,) = world.ledger.promises.acks[ticket].keys
    for _ in range(3):  # comrades first; the ghost has the next
        if begun(world)[-1] != "x":
            ticket = world.add("b", 1, "200 0", cores=2)
            world.run(0.5)
            (key,) = world.ledger.promises.acks[ticket].keys
    assert begun(world, key) == ["x"]
    world.delete("b", [k for k in world.node("b").queue.records if k != key])
    paused = world.t
    world.pause("x")
    assert world.until(lambda: len(begun(world, key)) == 2, 30, 0.05)
    assert 19 <= world.t - paused <= 22
    world.run(60 - (world.t - paused))
    world.resume("x")
    world.run(10)  # back, known, and within 5 s more it runs once
    alive = [life for life in world.ledger.of_task[key] if life.ended is None]
    assert [life.process.host.name for life in alive] == ["x"]
    end(world, 260)


def test_16_what_ran_on_a_ghost_without_power_starts_again_within_twenty_seconds():
    world = haunted()
    world.ledger.is_healthy = True
    world.add("b", 8, "30 0")
    world.run(0.5)
    count = begun(world).count("x")
    off = world.t
    world.power_off("x")
    world.run(60)
    again = [life.begun - off for life in world.ledger.lives.values()][8:]
    assert count == len(again) == 2
    assert min(again) >= 19
    end(world, 60)


def test_16_a_ghost_that_is_killed_and_started_anew_tells_the_end_its_disk_has():
    world = haunted(size=1)
    key = on_ghost(world, "3 0", 1)
    world.kill("a")
    world.run(4)  # it has ended, with nobody to tell
    (run,) = world.ledger.lives
    assert world.ledger.attachments.kept["x"] == {run: key}
    world.kill("x")
    world.start("x")
    world.start("a")
    world.run(5)
    assert world.node("a").queue.records[key].runs[run].phase is Phase.ENDED
    end(world)
    assert begun(world) == ["x"]


def test_26_a_ghost_that_hears_nothing_goes_to_the_next():
    world = haunted()
    key = on_ghost(world, "30 0")
    world.cut_way("a", "x")
    assert world.until(lambda: attached(world) == ["b"], 10, 0.05)
    world.run(25)
    assert not lost(world, key)
    end(world, 60)
    assert begun(world) == ["x"]


def test_26_a_ghost_that_is_not_heard_goes_to_the_next():
    world = haunted()
    key = on_ghost(world, "30 0")
    world.cut_way("x", "a")
    assert world.until(lambda: attached(world) == ["b"], 10, 0.05)
    world.run(25)
    assert not lost(world, key)
    end(world, 60)
    assert begun(world) == ["x"]


def test_a_ghost_that_is_cut_from_all_brings_what_ended_meanwhile():
    world = haunted()
    world.ledger.is_healthy = True
    on_ghost(world, "3 0")
    world.partition("x")
    world.run(12)
    assert world.ledger.attachments.unreported
    for name in "abc":
        world.mend("x", name)
    end(world)
    assert begun(world) == ["x"]


# --- FAULTS 70: planned stops -----------------------------------------------------


def test_70_a_clairvoyant_that_stops_sends_its_ghosts_away_first():
    world = haunted("xy")
    world.ledger.is_healthy = True
    world.add("b", 10, "6 0")
    world.run(1)
    world.stop("a")
    assert world.until(lambda: attached(world) == ["b", "b"], 3, 0.05)
    end(world)
    handed = [life for life in world.ledger.lives.values() if "handed" in life.fate]
    assert {life.process.host.name for life in handed} == {"a"}


def test_70_a_ghost_that_stops_hands_back_what_it_runs():
    world = haunted()
    world.ledger.is_healthy = True
    world.add("b", 8, "6 0")
    world.run(1)
    stopped = world.t
    world.stop("x")
    assert world.until(lambda: not world.haunting(), 2, 0.01)
    finish(world)
    handed = [life for life in world.ledger.lives.values() if "handed" in life.fate]
    assert [life.process.host.name for life in handed] == ["x", "x"]
    again = list(world.ledger.lives.values())[8:]
    assert min(life.begun for life in again) < stopped + 6


# --- copies that are behind -------------------------------------------------------


def test_a_ghost_tells_an_old_copy_what_it_ended_and_does_not_run_it_again():
    world = haunted(first="b")
    ticket = world.add("a", 1, "1 0", conditions=("worker:tag x",))
    copies = world.node("c").queue.records
    assert world.until(lambda: any(r.runs for r in copies.values()), 2, 0)
    world.partition("c")
    world.mend("c", "x")
    world.run(3)
    (run,) = world.ledger.lives
    assert run in world.ledger.attachments.stored and not untold(world)
    world.kill("a"), world.kill("b")
    world.broken.update("ab")  # for ever: c knows the grant only
    assert world.until(lambda: attached(world) == ["c"], 10, 0.05)
    end(world)
    (key,) = world.ledger.promises.acks[ticket].keys
    assert copies[key].runs[run].phase is Phase.ENDED
    assert begun(world) == ["x"]


def test_a_row_that_could_not_be_dropped_is_dropped_later():
    world = haunted(size=1)
    on_ghost(world, "1 0")
    disk = world.ghosts["x"].disk
    world.hosts["a"].disk.delay = (0.5, 0.6)  # STORED comes after the end is kept
    assert world.until(lambda: bool(disk.rows), 3, 0.01)
    disk.fails_once = True
    assert world.until(lambda: not disk.fails_once, 3, 0.01) and disk.rows
    end(world)
    assert not disk.rows


@pytest.mark.parametrize("first, then", ["xy", "yx"])
def test_a_grant_that_waits_for_its_copy_survives_word_to_another_ghost(first, then):
    world = World(1, "ab", ghosts="xy")
    for host in world.ghosts.values():
        host.tags.append("tag ghost")
    for name in world.machines:
        world.start(name)
    assert world.until(lambda: attached(world) == ["a", "a"], 8, 0.05)
    world.ledger.is_healthy = True
    world.add("b", 1, "20 0", conditions=("worker:tag " + first,))
    world.add("b", 2, "0.5 0", conditions=("worker:tag " + then,))
    world.run(0.3)
    ticket = world.add("b", 1, "2 1", conditions=("worker:tag ghost",), retries=1)
    world.run(1)
    world.network.slow["b", "a"] = (1.0, 1.0)  # that b has a copy is known late
    end(world)
    (key,) = world.ledger.promises.acks[ticket].keys
    assert begun(world, key) == [first, then]
