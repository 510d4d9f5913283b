"""What happens when machines can't hear each other: unplugged, parted, one-way, moved.

A cut is made with the switch's ports (netlab.py) or with rules in the machines' own
namespaces (tools.Firewall). Numbers are those of FAULTS.
"""

import random
import time
from typing import List

import figures
import pytest
from cluster import at_once, await_component, await_equal, until
from netlab import NET, Lan, Machine
from scenes import (
    SLACK_S,
    Lab,
    await_single,
    begin,
    check,
    clock,
    coordinators,
    doubles,
    extra_text,
    finish,
    latencies,
    marks,
    others,
    share,
    since,
    tasks_of,
)
from tools import Firewall, long, needs_nft

pytestmark = marks


# --- forming ----------------------------------------------------------------------


def test_five_started_at_once_meet(lab: Lab) -> None:
    lan = lab(5)
    began = time.monotonic()
    lan.start_at_once()
    took = clock(began)
    lan.nodes[0].add_all([lan.ledger.task("t%d" % i) for i in range(20)])
    assert lan.nodes[4].wait() == 0
    figures.note("5 started at once: all ready", "5 s", "%.2f s" % took, "71")
    assert len(coordinators(lan.ledger)) == 1
    check(lan, ["t%d" % i for i in range(20)])
    assert took < 5.0 + SLACK_S


def test_two_groups_that_formed_apart_meet(lab: Lab) -> None:
    lan = lab(4)
    lan.part(lan.nodes[2:])
    lan.start(lan.nodes[:2])
    lan.start(lan.nodes[2:])
    lan.nodes[0].add("echo left")
    lan.nodes[3].add("echo right")
    began = time.monotonic()
    lan.heal()
    await_component(lan.nodes, 75)
    took = clock(began)
    figures.note("two groups formed apart meet", "60 s", "%.1f s" % took, "71")
    assert len(await_equal(lan.nodes)) == 2


def test_one_that_hears_no_broadcast_is_found_all_the_same(lab: Lab) -> None:
    lan = lab(2)
    first, second = lan.nodes
    lan.lose_broadcasts()
    first.start()
    began = time.monotonic()
    second.start()
    await_component(lan.nodes, 100)
    text = "%.1f s" % clock(began)
    figures.note("no broadcasts: the sweep finds", "120 s", text, "27")


@needs_nft
def test_without_any_datagram_named_peers_are_met_at_once(lab: Lab) -> None:
    lan = lab(3)
    Firewall(lan.nodes).lose_datagrams()
    for node in lan.nodes[1:]:
        node.env["LEORONIC_PEERS"] = lan.nodes[0].address
    began = time.monotonic()
    lan.start_at_once()
    took = clock(began)
    figures.note("no UDP, named peers: all ready", "5 s", "%.2f s" % took, "27")
    assert took < 5.0 + SLACK_S


# --- one is cut off ---------------------------------------------------------------


def test_a_cable_pulled_and_plugged_in_again(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    away = lan.nodes[2]
    doomed = tasks_of(lan.ledger, [away])
    at, began = time.time(), time.monotonic()
    lan.unplug(away)
    until("it is missed", lambda: len(lan.nodes[0].ready()) == 2)
    text = "%.2f s" % clock(began)
    figures.note("cable pulled: missed", "3 to 5 s", text, "21")
    # Behind the pulled cable the others' tasks are run again as well.
    until("again", lambda: set(lan.ledger.extra()) >= set(doomed), 40)
    again = max(since(lan, at, doomed))
    text = "%.1f s" % again
    figures.note("cable pulled: its tasks run elsewhere", "20 s", text, "16")
    assert again < 20.0 + SLACK_S
    assert len(away.ready()) == 1
    began = time.monotonic()
    lan.plug(away)
    await_component(lan.nodes)
    await_equal(lan.nodes)
    equal = clock(began)
    single = await_single(lan, began)
    figures.note("cable plugged in: equal", "5 s", "%.2f s" % equal, "21")
    figures.note("cable plugged in: no duplicate", "10 s", "%.2f s" % single, "21")
    assert single < 10.0 + SLACK_S and equal < 5.0 + SLACK_S
    # It may have taken the others' for lost as well, and run them again.
    finish(lan, away, tasks, tasks)
    assert set(lan.ledger.extra().values()) == {1}
    # The runs that began first stay.
    assert {line.attempt for line in lan.ledger.lines("end")} == {1}


def test_one_that_worked_alone_brings_its_tasks_back(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    alone = lan.nodes[1]
    lan.unplug(alone)
    until("it is alone", lambda: len(alone.ready()) == 1)
    mine = alone.add(lan.ledger.task("mine"))
    held = alone.add(lan.ledger.task("held"), "worker:is old1")
    assert alone.wait(mine) == 0
    began = time.monotonic()
    lan.plug(alone)
    assert lan.nodes[0].wait(mine, held) == 0
    text = "%.2f s" % clock(began)
    figures.note("isolated, then back: its task runs", "5 s", text, "37")
    check(lan, ["mine", "held"])


# --- the network is parted --------------------------------------------------------


def part_with_work(lan: Lan, count: int, seconds: float) -> None:
    """Part 2|3 with more work than both can do meanwhile; heal; check and note."""
    tasks = ["t%d" % i for i in range(count)]
    length = seconds / 12.0
    lan.nodes[0].add_all([lan.ledger.task(name, length) for name in tasks])
    until("under way", lambda: len(lan.ledger.lines("end")) > 8, 60)
    lan.part(lan.nodes[2:])
    time.sleep(seconds)
    sides = [ended_on(lan, lan.nodes[:2]), ended_on(lan, lan.nodes[2:])]
    began = time.monotonic()
    lan.heal()
    await_component(lan.nodes, 30)
    await_equal(lan.nodes)
    equal = clock(began)
    single = await_single(lan, began)
    assert lan.nodes[0].wait(seconds=600) == 0
    what = "2|3 for %d s" % seconds
    twice = sum(lan.ledger.extra().values())
    text = "%d | %d ended" % (sides[0], sides[1])
    figures.note(what + ": both go on", "both", text, "20")
    text = "%d of %d" % (twice, count)
    figures.note(what + ": tasks started twice", "few", text, "20")
    figures.note(what + ", healed: equal", "5 s", "%.2f s" % equal, "20")
    figures.note(what + ", healed: no duplicate", "10 s", "%.2f s" % single, "20")
    assert min(sides) > 8
    check(lan, tasks, tasks)
    assert twice <= 2 * 20  # what ran when it was cut
    assert equal < 5.0 + SLACK_S and single < 10.0 + SLACK_S


def ended_on(lan: Lan, machines: List[Machine]) -> int:
    names = [machine.name for machine in machines]
    return len([line for line in lan.ledger.lines("end") if line.node in names])


def test_a_partition_with_work_on_both_sides(lab: Lab) -> None:
    lan = lab(5)
    lan.start()
    part_with_work(lan, 400, 12)


@long
@pytest.mark.timeout(1500)
def test_a_partition_of_five_minutes_with_work_on_both_sides(lab: Lab) -> None:
    lan = lab(5)
    lan.start()
    part_with_work(lan, 400, 300)


def test_a_partition_long_enough_to_call_tasks_lost(lab: Lab) -> None:
    lan = lab(4)
    lan.start()
    tasks = begin(lan, 8)
    there = tasks_of(lan.ledger, lan.nodes[2:])
    lan.part(lan.nodes[2:])
    until("all run twice", lambda: set(lan.ledger.extra()) == set(tasks), 40)
    assert len(there) == 4
    began = time.monotonic()
    lan.heal()
    await_component(lan.nodes, 30)
    await_equal(lan.nodes)
    equal = clock(began)
    single = await_single(lan, began)
    what = "2|2 until all 8 tasks run twice, healed"
    figures.note(what + ": equal", "5 s", "%.2f s" % equal, "20")
    figures.note(what + ": no duplicate", "10 s", "%.2f s" % single, "20")
    assert single < 10.0 + SLACK_S
    # The run with the smallest key stays: the first, wherever it is.
    finish(lan, lan.nodes[3], tasks, tasks)
    assert {line.attempt for line in lan.ledger.lines("end")} == {1}


@needs_nft
def test_a_ring_of_majorities_has_one_coordinator(lab: Lab) -> None:
    lan = lab(5)
    wall = Firewall(lan.nodes)
    ring = [(lan.nodes[i], lan.nodes[(i + 1) % 5]) for i in range(5)]
    lan.start()
    wall.only(ring)
    time.sleep(7)  # until the other links are closed
    await_component(lan.nodes)
    tasks = ["t%d" % i for i in range(60)]
    began = time.monotonic()
    for i, node in enumerate(lan.nodes):
        node.add_all([lan.ledger.task(name, 0.1) for name in tasks[i::5]])
    assert lan.nodes[0].wait(seconds=60) == 0
    what = "5 in a ring, each hears two: 60 tasks"
    figures.note(what + " done", "all", "%.1f s" % clock(began), "22")
    figures.note(what + ", twice", "0", extra_text(lan), "22")
    granted = len(coordinators(lan.ledger))
    figures.note("5 in a ring: coordinators", "1", str(granted), "22")
    check(lan, tasks)
    assert granted == 1
    wall.clear()
    await_component(lan.nodes, 30)
    await_equal(lan.nodes)


@needs_nft
def test_a_bridge_between_two_groups_and_its_death(lab: Lab) -> None:
    lan = lab(5)
    bridge = lan.nodes[2]
    wall = Firewall(lan.nodes)
    left, right = lan.nodes[:2], lan.nodes[3:]
    lan.start()
    wall.only([left, right, *[(bridge, node) for node in [*left, *right]]])
    time.sleep(7)
    await_component(lan.nodes)
    tasks = begin(lan, 10)
    doomed = tasks_of(lan.ledger, [bridge])
    assert len(coordinators(lan.ledger)) == 1
    bridge.kill9()
    await_component(left)
    await_component(right)
    for side in (left, right):
        side[0].add(lan.ledger.task("of-" + side[0].name))
    began = time.monotonic()
    bridge.start()
    await_component(lan.nodes, 30)
    await_equal(lan.nodes)
    equal = clock(began)
    single = await_single(lan, began)
    what = "a bridge node dies and comes back"
    figures.note(what + ": equal", "5 s", "%.2f s" % equal, "23")
    figures.note(what + ": no duplicate", "10 s", "%.2f s" % single, "23")
    finish(lan, bridge, [*tasks, "of-old1", "of-old4"], tasks)
    assert doomed and single < 10.0 + SLACK_S


# --- some don't hear some -----------------------------------------------------------


def test_two_that_dont_hear_each_other_work_through_a_third(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    lan.part_two(lan.nodes[0], lan.nodes[2])
    time.sleep(7)  # until their link is closed
    await_component(lan.nodes)
    tasks = ["t%d" % i for i in range(40)]
    began = time.monotonic()
    ids = lan.nodes[0].add_all([lan.ledger.task(name, 0.1) for name in tasks])
    assert lan.nodes[2].wait(*ids) == 0
    check(lan, tasks)
    what = "1-3 cut, 2 hears both"
    figures.note(what + ": 40 tasks", "once", "%.1f s" % clock(began), "24")
    ids = [lan.nodes[0].add("true", "worker:is old3") for _ in range(20)]
    assert lan.nodes[0].wait(*ids) == 0
    p95 = share(latencies(lan.nodes[0], ids), 0.95)
    figures.note(what + ": grant to start, 95 %", "0.2 s", "%.3f s" % p95, "24")
    output = lan.nodes[0].add("head -c 200000 /dev/zero", "worker:is old3")
    assert lan.nodes[0].wait(output) == 0
    assert len(lan.nodes[1].output(output)) == 200000
    code, out, err = lan.nodes[0].sh("leoronic_get_output " + output, timeout=30)
    assert (code, len(out)) == (0, 200000), err
    await_equal(lan.nodes)


def test_one_direction_is_lost(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    began = time.monotonic()
    lan.lose_one_way(lan.nodes[0], lan.nodes[2])
    time.sleep(7)
    await_component(lan.nodes)
    more = ["m%d" % i for i in range(20)]
    lan.nodes[2].add_all([lan.ledger.task(name) for name in more])
    until("done", lambda: len(lan.ledger.lines("end")) == 20, 30)
    text = "%.1f s" % clock(began)
    figures.note("1 to 3 lost, not 3 to 1: 20 tasks", "once", text, "25")
    lan.lose_one_way(lan.nodes[0], lan.nodes[2], on=False)
    finish(lan, lan.nodes[1], tasks + more, [])
    await_equal(lan.nodes)


def flap(lan: Lan, times: int) -> None:
    """Pull a cable for 5 s so often, 5 s between, while tasks run."""
    tasks = ["t%d" % i for i in range(20 * times)]
    loose = lan.nodes[1]
    loose.add_all([lan.ledger.task(name, 1.0) for name in tasks])
    for _ in range(times):
        lan.unplug(loose)
        time.sleep(5)
        lan.plug(loose)
        time.sleep(5)
    began = time.monotonic()
    await_component(lan.nodes, 30)
    met = clock(began)
    assert loose.wait(seconds=90) == 0
    await_equal(lan.nodes)
    check(lan, tasks, tasks)
    what = "5 s off, 5 s on, %d times" % times
    figures.note(what + ": met again", "10 s", "%.1f s" % met, "28")
    figures.note(what + ", %d tasks" % len(tasks), "few", extra_text(lan), "28")
    granted = len(coordinators(lan.ledger))
    figures.note(what + ": coordinators", "2", str(granted), "28")


def test_a_cable_with_a_loose_contact(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    flap(lan, 3)


@long
@pytest.mark.timeout(900)
def test_a_cable_with_a_loose_contact_for_five_minutes(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    flap(lan, 30)


@needs_nft
def test_random_cuts_that_change_every_few_seconds(lab: Lab) -> None:
    lan = lab(5)
    lan.start()
    wall = Firewall(lan.nodes)
    tasks = ["t%d" % i for i in range(200)]
    lan.nodes[0].add_all([lan.ledger.task(name, 2.0) for name in tasks])
    pairs = [(a, b) for a in lan.nodes for b in lan.nodes if a.name < b.name]
    luck = random.Random(29)
    for _ in range(10):
        wall.only([pair for pair in pairs if luck.random() < 0.5])
        time.sleep(luck.uniform(1, 7))
    wall.clear()
    began = time.monotonic()
    await_component(lan.nodes, 40)
    await_equal(lan.nodes)
    took = clock(began)
    figures.note("10 random cuts, healed: equal", "10 s", "%.2f s" % took, "29")
    assert lan.nodes[0].wait(seconds=90) == 0
    figures.note("10 random cuts, 200 tasks", "-", extra_text(lan), "29")
    check(lan, tasks, tasks)


@needs_nft
def test_a_core_that_stays_whole_finishes_all_while_the_rest_is_broken(
    lab: Lab,
) -> None:
    lan = lab(5)
    lan.start()
    core, broken = lan.nodes[:3], lan.nodes[3:]
    tasks = ["t%d" % i for i in range(300)]
    lan.nodes[4].add_all([lan.ledger.task(name, 1.0) for name in tasks])
    until("all hold all", lambda: all(len(n.states()) == 300 for n in lan.nodes))
    wall = Firewall(lan.nodes)
    wall.only([(a, b) for a in core for b in core if a is not b])
    broken[0].pause()
    broken[1].kill9()
    began = time.monotonic()
    assert core[0].wait(seconds=90) == 0
    rows = await_equal(core)
    assert {row["state"] for row in rows} == {"done"}
    text = "%.1f s" % clock(began)
    figures.note("2 of 5 broken for ever: the rest finish all", "all", text, "75")
    broken[0].go_on()
    check(lan, tasks, tasks)


# --- addresses change -------------------------------------------------------------


def move(lan: Lan, machine: Machine, address: str) -> None:
    """Give a machine another address, as a router does: the lease of the old ends."""
    machine.ip("addr", "del", machine.address + "/24", "dev", "eth0")
    machine.ip("addr", "add", address + "/24", "dev", "eth0")
    machine.address = address


@pytest.mark.parametrize("which", [0, 2])
def test_a_new_address_from_the_router(lab: Lab, which: int) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    moved = lan.nodes[which]
    former = coordinators(lan.ledger)
    began = time.monotonic()
    move(lan, moved, NET + "99")
    await_component(lan.nodes, 40)
    took = clock(began)
    figures.note("a new address by DHCP: all ready", "15 s", "%.1f s" % took, "41")
    here = moved.add(lan.ledger.task("here"), "worker:is " + moved.address)
    assert lan.nodes[1].wait(here) == 0
    finish(lan, moved, [*tasks, "here"], [])
    assert took < 15 + SLACK_S
    if which == 2:
        assert coordinators(lan.ledger) == former


def test_every_machine_gets_a_new_address(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    began = time.monotonic()
    for i, node in enumerate(lan.nodes):
        move(lan, node, NET + str(101 + i))
    await_component(lan.nodes, 40)
    took = clock(began)
    text = "%.1f s" % took
    figures.note("every machine's address changes: all ready", "15 s", text, "41")
    figures.note("every machine's address changes", "0 twice", extra_text(lan), "41")
    assert took < 15 + SLACK_S
    finish(lan, lan.nodes[0], tasks, [])


def test_every_machine_has_a_new_address_after_a_power_cut(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    at_once([node.power_off for node in lan.nodes])
    for i, node in enumerate(lan.nodes):
        move(lan, node, NET + str(101 + i))
    began = time.monotonic()
    lan.start_at_once()
    took = clock(began)
    until("all again", lambda: set(lan.ledger.running()) == set(tasks), 30)
    what = "power cut, all with new addresses"
    figures.note(what + ": all ready", "15 s", "%.2f s" % took, "41")
    until("each twice", lambda: set(lan.ledger.extra()) == set(tasks), 30)
    finish(lan, lan.nodes[1], tasks, tasks)
    assert set(lan.ledger.extra().values()) == {1} and not doubles(lan.nodes)
    rows = lan.nodes[0].members()
    assert sorted(rows) == sorted(node.address for node in lan.nodes)


def test_an_address_that_the_user_gave_stays(lab: Lab) -> None:
    """A comrade whose user gave LEORONIC_ADDRESS stays there, whatever changes."""
    lan = lab(2)
    fixed = lan.nodes[0]
    fixed.env["LEORONIC_ADDRESS"] = fixed.address
    lan.start()
    fixed.ip("addr", "add", NET + "99/24", "dev", "eth0")
    time.sleep(1)
    await_component(lan.nodes)
    assert [n.members()[fixed.address]["state"] for n in lan.nodes] == ["ready"] * 2
    assert "address is" not in fixed.printed()
    assert others(lan, fixed)
