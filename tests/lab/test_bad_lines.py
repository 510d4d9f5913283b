"""What bad lines do: loss, delay, little bandwidth, damaged bytes, breaks in between.

nft loses packets, tbf slows a cable, a proxy (line.py) does what this kernel can't.
Numbers are those of FAULTS.
"""

import time
from typing import List

import figures
import pytest
from cluster import await_component, await_equal, until
from scenes import Lab, check, clock, extra_text, marks, share
from tools import Firewall, carried, line, long, memory_of, needs_nft, slow_down

pytestmark = marks


@needs_nft
@pytest.mark.parametrize("percent", [20, 30])
def test_a_network_that_loses_packets(lab: Lab, percent: int) -> None:
    lan = lab(3)
    lan.start()
    wall = Firewall(lan.nodes)
    wall.lose(percent)
    tasks = ["t%d" % i for i in range(100)]
    missed, over = 0, time.monotonic() + 40
    began = time.monotonic()
    lan.nodes[0].add_all([lan.ledger.task(name, 0.5) for name in tasks])
    while time.monotonic() < over:
        missed += any(len(node.ready()) < 3 for node in lan.nodes)
        time.sleep(0.5)
    wall.clear()
    await_component(lan.nodes, 30)
    assert lan.nodes[2].wait(seconds=60) == 0
    what = "%d %% of all packets lost for 40 s" % percent
    figures.note(what + ": 100 tasks", "all", "%.1f s" % clock(began), "30")
    expected = "0 looks" if percent <= 20 else "-"
    figures.note(what + ": a node missed", expected, "%d looks" % missed, "30")
    figures.note(what + ": twice", "-", extra_text(lan), "30")
    check(lan, tasks, tasks)
    await_equal(lan.nodes)


def test_a_line_with_a_delay_of_a_fifth_of_a_second(lab: Lab) -> None:
    lan = lab(2)
    one, other = lan.nodes
    with line(lan, one, other, delay_s=0.2):
        other.start()
        one.start()
        await_component(lan.nodes)
        tasks = ["t%d" % i for i in range(60)]
        began = time.monotonic()
        one.add_all([lan.ledger.task(name, 0.1) for name in tasks])
        assert other.wait(seconds=60) == 0
        took = clock(began)
        await_equal(lan.nodes)
    figures.note("a delay of 0.2 s: 60 tasks", "once", "%.1f s" % took, "30")
    check(lan, tasks)


def test_a_cable_that_carries_64_kbit(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    slow = lan.nodes[2]
    slow_down(lan, slow, "64kbit", "4kb")
    tasks = ["t%d" % i for i in range(60)]
    began, before = time.monotonic(), carried(slow)
    lan.nodes[0].add_all([lan.ledger.task(name, 0.5) for name in tasks])
    assert lan.nodes[0].wait(seconds=90) == 0
    took = clock(began)
    await_equal(lan.nodes, 60)
    text = "%.1f s, %d kB to the slow one" % (took, (carried(slow) - before) >> 10)
    figures.note("64 kbit/s to one: 60 tasks", "all", text, "30")
    figures.note("64 kbit/s to one: twice", "0", extra_text(lan), "30")
    check(lan, tasks, tasks)


def test_damaged_bytes_end_the_link_and_change_nothing(lab: Lab) -> None:
    lan = lab(2)
    one, other = lan.nodes
    with line(lan, one, other, damage_bytes=20000) as told:
        other.start()
        one.start()
        tasks: List[str] = []
        began = time.monotonic()
        while told().count("damage") < 12 and clock(began) < 120:
            name = "t%d" % len(tasks)
            tasks.append(name)
            one.add(lan.ledger.task(name) + " # " + "x" * 500)
        count = told().count("damage")
    lan.part_two(one, other, on=False)
    assert other.wait(seconds=60) == 0
    await_equal(lan.nodes, 60)
    assert count >= 12
    text = "%d lost of %d, %d damages" % (
        *(len(lan.ledger.amiss(tasks)[0]), len(tasks), count),
    )
    figures.note("a bit flipped now and then", "0 lost", text, "31")
    figures.note("a bit flipped now and then: twice", "-", extra_text(lan), "31")
    check(lan, tasks, tasks)


def cut_while_adding(lab: Lab, cuts: int, seconds: float) -> None:
    """Cut the link after random numbers of bytes, so often, while tasks are added."""
    lan = lab(2)
    one, other = lan.nodes
    with line(lan, one, other, cut_bytes=30000) as told:
        other.start()
        one.start()
        ids: List[str] = []
        began = time.monotonic()
        while told().count("cut") < cuts and clock(began) < seconds:
            for node in lan.nodes:
                ids += node.add_all(["true " + "x" * 300] * 10, "worker:tag never")
        count = told().count("cut")
        lan.part_two(one, other, on=False)
        began = time.monotonic()
        rows = await_equal(lan.nodes, 60)
        equal = clock(began)
    assert count >= cuts
    assert sorted(row["id"] for row in rows) == sorted(ids)
    what = "cut at a random byte, %d times" % cuts
    text = "0 lost of %d, %d cuts" % (len(ids), count)
    figures.note(what, "0 lost", text, "73")
    figures.note(what + ", then whole: equal", "10 s", "%.2f s" % equal, "73")


def test_a_sync_that_is_cut_in_the_middle_goes_on(lab: Lab) -> None:
    cut_while_adding(lab, 20, 150)


@long
@pytest.mark.timeout(900)
def test_a_sync_that_is_cut_a_hundred_times_goes_on(lab: Lab) -> None:
    cut_while_adding(lab, 100, 800)


def test_one_that_takes_in_next_to_nothing_slows_nobody_down(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    quick, _, slow = lan.nodes
    slow_down(lan, slow, "10kbit", "3kb")
    ids: List[str] = []
    waits: List[float] = []
    over = time.monotonic() + 20
    while time.monotonic() < over:
        began = time.monotonic()
        ids += quick.add_all(["true"] * 125, "worker:tag never")
        waits.append(clock(began))
        time.sleep(max(0.0, 0.25 - clock(began)))
    memory = memory_of(quick, "VmRSS")
    rate = "%.0f a second" % (len(ids) / 20)
    figures.note("10 kbit/s to one: adds taken", "500 a second", rate, "59")
    p95 = "%.2f s" % share(sorted(waits), 0.95)
    figures.note("10 kbit/s to one: 125 adds, 95 %", "2 s", p95, "59")
    figures.note("10 kbit/s to one: memory", "-", "%d MiB" % memory, "59")
    slow_down(lan, slow, "")
    began = time.monotonic()
    await_component(lan.nodes, 60)
    until("it has all", lambda: len(slow.states()) == len(ids), 60)
    text = "%.1f s" % clock(began)
    figures.note("10 kbit/s to one, then all: equal", "20 s", text, "59")
