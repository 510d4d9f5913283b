"""What happens to comrades' processes: SIGKILL, SIGSTOP, SIGTERM, at bad moments.

A killed comrade takes its tasks with it (D13); a stopped one goes on later as if
nothing had happened, and must not do harm then. Numbers are those of FAULTS.
"""

import os
import random
import shlex
import signal
import time
from typing import Dict, List

import figures
import pytest
from cluster import at_once, await_component, await_equal, until
from netlab import Lan, Machine
from scenes import (
    SLACK_S,
    Lab,
    add_one,
    await_again,
    await_single,
    begin,
    check,
    clock,
    coordinator_of,
    doubles,
    extra_text,
    finish,
    marks,
    others,
    since,
    tasks_of,
)
from tools import add_to_program, hog, long, meanwhile, pause_for

pytestmark = marks


# --- killed -----------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_comrade_killed_with_9(lab: Lab, which: int) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6, by=1)
    victim, survivor = lan.nodes[which], lan.nodes[which - 1]
    doomed = tasks_of(lan.ledger, [victim])
    at = time.time()
    victim.kill9()
    await_again(lan, doomed)
    again = since(lan, at)
    figures.note("kill -9: tasks run elsewhere", "3 s", "%.2f s" % max(again), "15")
    assert max(again) < 3.0 + SLACK_S and min(again) > 1.0
    finish(lan, survivor, tasks, doomed)


# How the coordinator goes, the seconds until another grants (D12), the case.
GOING = {"killed": (2.0, "3"), "without power": (7.0, "5"), "stopped": (0.5, "70")}


@pytest.mark.parametrize("round_of_three", range(3))
@pytest.mark.parametrize("how", list(GOING))
def test_another_coordinator_grants(lab: Lab, how: str, round_of_three: int) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 3)
    victim = coordinator_of(lan)
    heir, _ = others(lan, victim)
    doomed = tasks_of(lan.ledger, [victim])
    at = time.time()
    if how == "killed":
        os.kill(victim.pid, signal.SIGKILL)
    elif how == "stopped":
        os.kill(victim.pid, signal.SIGTERM)
    else:
        lan.unplug(victim)
        victim.power_off()
    add_one(lan, heir, "late")
    until("it is granted", lambda: lan.ledger.lines("start", "late"))
    (took,) = since(lan, at, ["late"])
    bound, case = GOING[how]
    text = "the coordinator is %s: another grants" % how
    figures.note(text, "%g s" % bound, "%.2f s" % took, case)
    assert took < bound + SLACK_S
    finish(lan, heir, [*tasks, "late"], doomed)
    if how == "stopped":
        assert victim.process and victim.process.wait(5) == 0


def test_the_coordinator_and_its_successor_killed_one_after_the_other(
    lab: Lab,
) -> None:
    lan = lab(4)
    lan.start()
    tasks = begin(lan, 8)
    first = coordinator_of(lan)
    second = others(lan, first)[0]
    doomed = tasks_of(lan.ledger, [first, second])
    at = time.time()
    first.power_off()
    time.sleep(0.5)
    second.power_off()
    await_again(lan, doomed)
    again = max(since(lan, at))
    figures.note("two killed, 0.5 s apart: tasks again", "14 s", "%.2f s" % again, "6")
    assert again < 14.0 + SLACK_S
    finish(lan, others(lan, first, second)[0], tasks, doomed)


# Where the coordinator dies while it grants: code that is added to its program. It is
# armed by a file, so that it first gets to coordinate.
DIES = """
def _armed(data):
    armed = os.path.exists(os.path.join(os.environ["HOME"], "armed"))
    return armed and "victim" in str(data)

def _die():
    os.kill(os.getpid(), signal.SIGKILL)

_persist, _send, _step, _seen = Comrade._persist, Comrade._send, Comrade.step, set()

def _grants(records):
    return _armed(records) and 0 in list(_phases())

def _phases():
    for each in _me[0].node.queue.records.values():
        if "victim" in each.command:
            for run in each.runs.values():
                yield int(run.phase)

_me = []

def _persist_or_die(self, effect):
    _me[:] = [self]
    grants = _grants(effect.rows)
    if grants and POINT == "before its disk has it":
        _die()
    if grants:
        _seen.add(effect.seq)
    _persist(self, effect)

def _send_or_die(self, effect):
    _me[:] = [self]
    _send(self, effect)
    if effect.kind == "RECORDS" and _grants(effect.fields):
        if POINT == "once it is sent":
            self.links.flush()
            _die()
        _seen.add("sent")

def _step_or_die(self, message):
    is_written = isinstance(message, core.Written) and message.seq in _seen
    if is_written and POINT == "once its disk has it":
        _die()
    is_got = isinstance(message, core.Frame) and message.kind == "GOT"
    if is_got and "sent" in _seen and POINT == "once another has it":
        _die()
    _step(self, message)

PERFORM[core.Persist] = _persist_or_die
PERFORM[core.Send] = _send_or_die
Comrade.step = _step_or_die
"""
POINTS = ["before its disk has it", "once its disk has it", "once it is sent"]
POINTS += ["once another has it"]


@pytest.mark.parametrize("point", POINTS)
def test_a_coordinator_killed_within_a_grant(lab: Lab, point: str) -> None:
    lan = lab(3)
    for node in lan.nodes:
        add_to_program(node, "comrade", "POINT = %r\n%s" % (point, DIES))
    lan.start()
    tasks = begin(lan, 3)
    victim = coordinator_of(lan)
    heir, _ = others(lan, victim)
    doomed = tasks_of(lan.ledger, [victim])
    (victim.top / "armed").write_text("")
    at = time.time()
    heir.add_all([lan.ledger.task("victim%d" % i, gated=True) for i in range(4)])
    assert victim.process and victim.process.wait(10) == -signal.SIGKILL
    new = ["victim%d" % i for i in range(4)]
    until("all run", lambda: set(lan.ledger.running()) >= set(tasks + new), 30)
    took = max(since(lan, at, new))
    ran_there = {x.task for x in lan.ledger.lines("start") if x.node == victim.name}
    extra = set(lan.ledger.extra()) - ran_there
    what = "the coordinator dies within a grant"
    figures.note(what + ": all granted", "3 s", "%.2f s" % took, "4")
    text = "%d of %d" % (len(extra), len(tasks + new))
    figures.note(what + ": tasks of others twice", "0", text, "4")
    assert not extra
    finish(lan, heir, tasks + new, [*doomed, *ran_there])


def test_the_last_of_four_finishes_the_queue_alone(lab: Lab) -> None:
    lan = lab(4)
    lan.start()
    tasks = ["t%d" % i for i in range(60)]
    lan.nodes[0].add_all([lan.ledger.task(name, 0.5) for name in tasks])
    until("under way", lambda: len(lan.ledger.lines("end")) > 8)
    last = lan.nodes[3]
    began = time.monotonic()
    at_once([node.kill9 for node in lan.nodes[:3]])
    assert last.wait(seconds=60) == 0
    figures.note("3 of 4 killed: all 60 done", "all", "%.1f s" % clock(began), "7")
    twice = list(lan.ledger.extra())
    assert len(twice) <= 12 + 4  # what ran on the killed
    check(lan, tasks, twice)


@pytest.mark.parametrize("disks", ["all", "one"])
def test_all_are_killed_and_one_goes_on_from_its_disk(lab: Lab, disks: str) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    held = lan.nodes[0].add("echo kept", "worker:tag later")
    heir = lan.nodes[2]
    until("it has a copy", lambda: held in heir.states())
    at_once([node.power_off for node in lan.nodes])
    for node in others(lan, heir) if disks == "one" else []:
        node.wipe()
    at = time.time()
    heir.start()
    until("it goes on", lambda: since(lan, at), 30)
    what, case = (
        ("one starts again", "8") if disks == "all" else ("one disk is left", "9")
    )
    first = min(since(lan, at))
    figures.note("all killed, %s: goes on" % what, "10 s", "%.2f s" % first, case)
    assert first < 10.0 + SLACK_S
    until("also with the others' tasks", lambda: len(since(lan, at)) >= 4, 40)
    text = "%.2f s" % max(since(lan, at))
    figures.note("all killed, %s: with the others' tasks" % what, "20 s", text, case)
    for node in others(lan, heir) if disks == "one" else []:
        node.start()
    heir.call("leoronic_add_tag", "later")
    finish(lan, heir, tasks, tasks)
    assert heir.output(held) == b"kept\n"


# --- stopped and continued --------------------------------------------------------


@pytest.mark.parametrize("seconds", [2, 3])
def test_a_comrade_stopped_for_a_moment_isnt_missed(lab: Lab, seconds: int) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    paused = (
        coordinator_of(lan) if seconds == 2 else others(lan, coordinator_of(lan))[0]
    )
    pause_for(paused, seconds)
    time.sleep(3)
    await_component(lan.nodes)
    finish(lan, lan.nodes[1], tasks, [])
    case = "10" if seconds == 2 else "13"
    figures.note("SIGSTOP for %d s" % seconds, "0 starts", extra_text(lan), case)


def test_the_coordinator_stopped_for_ten_seconds_steps_down(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    paused = coordinator_of(lan)
    other = others(lan, paused)[0]
    at = time.time()
    paused.pause()
    late = ["late%d" % i for i in range(4)]
    other.add_all([lan.ledger.task(name, gated=True) for name in late])
    until("new ones run", lambda: set(late) <= set(lan.ledger.running()), 30)
    grants = max(since(lan, at))
    time.sleep(max(0.0, at + 10 - time.time()))
    began = time.monotonic()
    paused.go_on()
    await_component(lan.nodes)
    await_equal(lan.nodes)
    equal = clock(began)
    time.sleep(2)  # what it may do wrong takes a moment
    assert not doubles(lan.nodes)
    what = "the coordinator hangs for 10 s"
    figures.note(what + ": another grants", "7 s", "%.2f s" % grants, "11")
    figures.note(what + ", goes on: equal", "5 s", "%.2f s" % equal, "11")
    figures.note(what + ": tasks twice", "1", extra_text(lan), "11")
    assert grants < 7.0 + SLACK_S
    finish(lan, other, tasks + late, [])


def test_a_comrade_stopped_for_a_minute(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    paused = lan.nodes[0]
    doomed = tasks_of(lan.ledger, [paused])
    at = time.time()
    paused.pause()
    add_one(lan, lan.nodes[1], "meanwhile")
    await_again(lan, doomed)
    again = max(since(lan, at, doomed))
    time.sleep(max(0.0, at + 60 - time.time()))
    began = time.monotonic()
    paused.go_on()
    await_component(lan.nodes)
    single = await_single(lan, began)
    what = "SIGSTOP for 60 s"
    figures.note(what + ": its tasks run elsewhere", "20 s", "%.1f s" % again, "13")
    figures.note(what + ", SIGCONT: no duplicate", "10 s", "%.2f s" % single, "13")
    assert again < 20.0 + SLACK_S and single < 10.0 + SLACK_S
    finish(lan, paused, [*tasks, "meanwhile"], doomed)


def test_all_are_stopped_one_after_the_other_for_a_minute(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = ["t%d" % i for i in range(150)]
    lan.nodes[0].add_all([lan.ledger.task(name, 1.0) for name in tasks])
    over = time.monotonic() + 60
    luck, turn = random.Random(12), 0
    while time.monotonic() < over:
        pause_for(lan.nodes[turn % 3], luck.choice([1.0, 3.0, 6.0]))
        turn += 1
    began = time.monotonic()
    await_component(lan.nodes, 30)
    await_equal(lan.nodes)
    took = clock(began)
    what = "SIGSTOP in turn for 60 s"
    figures.note(what + ": all as before", "10 s", "%.2f s" % took, "12")
    assert lan.nodes[1].wait(seconds=90) == 0
    figures.note(what + ", 150 tasks", "-", extra_text(lan), "12")
    check(lan, tasks, tasks)


def test_busy_machines_that_pause_for_half_a_second_miss_nobody(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = ["t%d" % i for i in range(200)]
    log = [node.home / "log" for node in lan.nodes]

    def pause(luck: random.Random) -> None:
        time.sleep(luck.random())
        pause_for(luck.choice(lan.nodes), 0.5)

    with hog(2), meanwhile(pause, 2) as count:
        lan.nodes[0].add_all([lan.ledger.task(name, 0.2) for name in tasks])
        assert lan.nodes[0].wait(seconds=120) == 0
    assert count[0] > 5
    lost = sum("lost" in path.read_text() for path in log if path.exists())
    figures.note("2 hogs, pauses of 0.5 s: lost nodes", "0", str(lost), "2")
    figures.note("2 hogs, pauses of 0.5 s, 200 tasks", "0", extra_text(lan), "2")
    assert [sorted(node.ready()) for node in lan.nodes] == [
        sorted(node.address for node in lan.nodes)
    ] * 3
    check(lan, tasks)


# --- again and again --------------------------------------------------------------


def restart_while_adding(lan: Lan, times: int) -> None:
    """Restart a node so often, by SIGTERM and SIGKILL, while two add."""
    victim, other = lan.nodes[0], lan.nodes[1]
    ids: List[str] = []

    def add(luck: random.Random) -> None:
        ids.append(other.add(lan.ledger.task("o%d" % len(ids)), "worker:is old2"))

    mine: List[str] = []
    with meanwhile(add, 35):
        for i in range(times):
            mine.append(victim.add(lan.ledger.task("v%d" % i), "worker:is old3"))
            (victim.kill9 if i % 2 else victim.stop)()
            victim.start()
    await_component(lan.nodes)
    assert victim.wait(seconds=60) == 0
    await_equal(lan.nodes)
    assert len(set(ids + mine)) == len(ids + mine)
    tasks = ["o%d" % i for i in range(len(ids))] + ["v%d" % i for i in range(times)]
    check(lan, tasks)
    text = "%d lost of %d" % (len(lan.ledger.amiss(tasks)[0]), len(tasks))
    figures.note("a node restarted %d times while adding" % times, "0", text, "35")


def test_a_node_is_restarted_again_and_again_while_tasks_are_added(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    restart_while_adding(lan, 12)


@long
@pytest.mark.timeout(900)
def test_a_node_is_restarted_a_hundred_times_while_tasks_are_added(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    restart_while_adding(lan, 100)


def kill_at_random(lan: Lan, seconds: float, least_s: float, most_s: float) -> None:
    """Kill every comrade every so often for so long, while each adds; then calm."""
    tasks: List[str] = []
    up: Dict[Machine, float] = {}
    luck = random.Random(74)
    over = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < over:
        now = time.monotonic()
        for node in lan.nodes:
            if now >= up.setdefault(node, now + luck.uniform(least_s, most_s)):
                node.kill9()
                kills += 1
                node.start()
                up[node] = time.monotonic() + luck.uniform(least_s, most_s)
        name = "t%d" % len(tasks)
        adder = luck.choice(lan.nodes)
        command = lan.ledger.task(name, luck.choice([0.0, 0.5]))
        words = ["leoronic_add_task", *"1K 1 1K true".split(), "", "", command, name]
        code, _, err = adder.sh(" ".join(map(shlex.quote, words)))
        assert code in (0, 3), err  # 3: it was killed under our hands
        if code == 0:
            tasks.append(name)
        time.sleep(0.1)  # no backlog: queues that still work look different each moment
    began = time.monotonic()
    await_component(lan.nodes, 30)
    await_equal(lan.nodes, 30)
    equal = clock(began)
    # What kills have taken five times is given up, and said so: no loss.
    code = lan.nodes[0].wait(seconds=120)
    states = lan.nodes[0].states()
    given_up = [name for name in tasks if states[name] == "failed"]
    assert (code == 0) is not given_up, (code, given_up)
    lost, _ = lan.ledger.amiss([name for name in tasks if name not in given_up])
    what = "all killed at random for %d s" % seconds
    text = "%d lost of %d, %d kills" % (len(lost), len(tasks), kills)
    figures.note(what, "0 lost", text, "74")
    figures.note(what + ", then calm: equal", "30 s", "%.1f s" % equal, "74")
    figures.note(what + ": given up after 5 losses", "-", str(len(given_up)), "74")
    assert not lost and equal < 30.0


def test_every_comrade_is_killed_every_few_seconds(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    kill_at_random(lan, 60, 5, 20)


@long
@pytest.mark.timeout(1200)
def test_every_comrade_is_killed_every_few_seconds_for_ten_minutes(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    kill_at_random(lan, 600, 5, 20)
