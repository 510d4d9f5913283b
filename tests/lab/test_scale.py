"""What large queues do: halves that differ by thousands, newcomers, a million tasks.

Tasks that only fill the queue wait for a tag that no node has. Numbers are those of
FAULTS; the sizes beyond this machine's patience are in the long ones.
"""

import random
import time
from typing import List

import figures
import pytest
from cluster import await_component, await_equal, until
from netlab import Lan, Machine
from scenes import (
    SLACK_S,
    Lab,
    await_single,
    check,
    clock,
    extra_text,
    marks,
)
from test_disks import count_of
from tools import long, memory_of, slow_down

pytestmark = marks

NEVER = "worker:tag never"


def test_halves_that_differ_by_ten_thousand_records(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    away = lan.nodes[2]
    lan.part([away])
    await_component(lan.nodes[:2])
    await_component([away])
    lan.nodes[0].add_all(["true"] * 5000, NEVER)
    away.add_all(["false"] * 5000, NEVER)
    for node, name in ((lan.nodes[0], "left"), (away, "right")):
        node.add("true", NEVER, name=name)  # they are sent last
    began = time.monotonic()
    lan.heal()
    until("all have the last", lambda: all(map(has_both, lan.nodes)), 60)
    took = clock(began)
    assert count_of(lan.nodes) == [10002] * 3
    await_component(lan.nodes)
    await_equal(lan.nodes)
    text = "%.2f s" % took
    figures.note("10,000 differing records, healed: equal", "5 s", text, "20")
    assert took < 5.0 + SLACK_S


def has_both(node: Machine) -> bool:
    """Say whether a node has the last task of each half."""
    return not any(node.sh("leoronic_why " + name)[0] for name in ("left", "right"))


def test_two_halves_with_a_thousand_waiting_tasks_each(lab: Lab) -> None:
    lan = lab(4)
    lan.start()
    lan.part(lan.nodes[2:])
    await_component(lan.nodes[:2])
    await_component(lan.nodes[2:])
    left = ["l%d" % i for i in range(1000)]
    right = ["r%d" % i for i in range(1000)]
    lan.nodes[0].add_all([lan.ledger.task(name, 0.5) for name in left])
    lan.nodes[3].add_all([lan.ledger.task(name, 0.5) for name in right])
    until("both work", lambda: len(lan.ledger.lines("end")) > 40)
    at, began = time.time(), time.monotonic()
    twice = sum(lan.ledger.extra().values())
    lan.heal()
    await_component(lan.nodes, 30)
    single = await_single(lan, began)
    time.sleep(5)
    starts = sorted(x.at for x in lan.ledger.lines("start") if x.at > at - 1)
    gap = max(b - a for a, b in zip(starts, starts[1:]))
    assert lan.nodes[1].wait(seconds=180) == 0
    what = "1000 | 1000 waiting, healed"
    figures.note(what + ": longest without a start", "2 s", "%.2f s" % gap, "72")
    figures.note(what + ": no duplicate", "10 s", "%.2f s" % single, "72")
    after = sum(lan.ledger.extra().values()) - twice
    figures.note(what + ": started twice since", "0", str(after), "72")
    check(lan, left + right)
    assert gap < 2.0 + SLACK_S


def test_a_newcomer_gets_a_hundred_thousand_tasks_over_100_mbit(lab: Lab) -> None:
    lan = lab(3)
    count = 100000
    lan.start(lan.nodes[:2])
    began = time.monotonic()
    lan.nodes[0].add_all(["echo some task of a user's own"] * count, NEVER)
    text = "%.1f s" % clock(began)
    figures.note("100,000 tasks are added", "-", text, "38")
    new = lan.nodes[2]
    slow_down(lan, new, "100mbit")
    began = time.monotonic()
    new.start()
    until("it has all", lambda: count_of([new]) == [count], 120)
    took = clock(began)
    figures.note("an empty node gets 100,000 tasks", "60 s", "%.1f s" % took, "38")
    assert took < 60 + SLACK_S
    assert {tuple(node.ready()) for node in lan.nodes} == {
        tuple(node.address for node in lan.nodes)
    }


def test_a_newcomer_is_killed_again_and_again_while_it_takes_the_queue_in(
    lab: Lab,
) -> None:
    lan = lab(3)
    count = 20000
    lan.start(lan.nodes[:2])
    lan.nodes[0].add_all(["true"] * count, NEVER)
    new, luck = lan.nodes[2], random.Random(73)
    for _ in range(10):
        new.launch()
        time.sleep(luck.uniform(0.3, 2.0))
        new.kill9()
    began = time.monotonic()
    new.start()
    until("it has all", lambda: count_of([new]) == [count], 60)
    text = "%.1f s" % clock(began)
    figures.note("killed 10 times while taking 20,000 in: equal", "-", text, "73")
    await_component(lan.nodes)


def add_many(lan: Lan, node: Machine, count: int) -> List[float]:
    """Add tasks, 100,000 at a time; give the seconds of each."""
    took = []
    for _ in range(count // 100000):
        began = time.monotonic()
        node.add_all(["true"] * 100000, NEVER)
        took.append(clock(began))
        assert [node.ready() for node in lan.nodes[:2]], lan
    return took


@long
@pytest.mark.timeout(3600)
def test_a_million_tasks(lab: Lab) -> None:
    lan = lab(3)
    count = 1000000
    first, _, new = lan.nodes
    lan.start(lan.nodes[:2])
    took = add_many(lan, first, count)
    figures.note("1,000,000 tasks are added", "-", "%.0f s" % sum(took), "58")
    until("all have all", lambda: count_of(lan.nodes[:2]) == [count] * 2, 600)
    text = "%d MiB" % max(memory_of(node) for node in lan.nodes[:2])
    figures.note("1,000,000 tasks: memory", "600 MiB", text, "58")
    logs = [(node.home / "log").read_text() for node in lan.nodes[:2]]
    lost = sum(log.count("silent") for log in logs)
    figures.note("1,000,000 tasks: links lost", "0", str(lost), "58")
    began = time.monotonic()
    lan.nodes[1].stop()
    lan.nodes[1].launch()
    until("it is up", lan.nodes[1].is_ready, 300)
    figures.note("1,000,000 tasks: up again", "60 s", "%.0f s" % clock(began), "58")
    await_component(lan.nodes[:2], 300)
    text = "%.0f s" % clock(began)
    figures.note("1,000,000 tasks: restarted, and one component", "-", text, "58")
    began = time.monotonic()
    new.launch()
    until("it is up", new.is_ready, 300)
    until("it has all", lambda: count_of([new]) == [count], 1200)
    text = "%.0f s" % clock(began)
    figures.note("1,000,000 tasks: a newcomer has all", "-", text, "58")
    await_component(lan.nodes, 60)
    figures.note("1,000,000 tasks", "-", extra_text(lan), "58")
