"""What happens to ghosts, and to those whose ghosts they are: killed, paused, cut off.

The ghosts here are started plainly and find their comrades by broadcast; they are of
old1, the lowest address, unless a test says otherwise. Numbers are those of FAULTS, the
bounds those of D12.
"""

import os
import signal
import time
from pathlib import Path
from typing import List, Tuple

import figures
import pytest
from cluster import until
from netlab import Ghost, Lan, doubles
from scenes import SLACK_S, Lab, check, clock, extra_text, marks, since
from tools import add_to_program, carried, pause_for

pytestmark = marks

EOF_S, SILENT_S = 5.0, 10.0  # from a clairvoyant's end until its ghost is elsewhere
LOST_S = 20.0  # from a ghost's silence until its tasks run elsewhere
STOP_S = 2.0  # from the signal until the ghost's process has ended


def haunted(lab: Lab, comrades: int = 2) -> Tuple[Lan, Ghost]:
    """Start comrades and a ghost of the first."""
    lan = lab(comrades)
    ghost = lan.ghost()
    lan.start()
    ghost.start()
    await_attached(lan, ghost, 0)
    return lan, ghost


def await_attached(lan: Lan, ghost: Ghost, to: int, seconds: float = 30) -> float:
    """Wait until it is a ghost of that comrade; give the seconds it took."""
    began, node = time.monotonic(), lan.nodes[to]
    until(
        "%s is a ghost of %s\n%s" % (ghost.name, node.name, ghost.told()),
        lambda: ghost.clairvoyant(node) == node.name,
        seconds,
    )
    return clock(began)


def occupy(lan: Lan, ghost: Ghost, count: int = 2) -> List[str]:
    """Let gated tasks run on the ghost, which could run on comrades as well."""
    names = ["t%d" % i for i in range(count)]
    for node in lan.nodes:
        node.call("leoronic_drain", node.name)
    lan.nodes[-1].add_all([lan.ledger.task(name, gated=True) for name in names])
    until("all run", lambda: len(lan.ledger.running()) == count)
    assert all(ghost.name in line.node for line in lan.ledger.lines("start"))
    for node in lan.nodes:
        node.call("leoronic_undrain", node.name)
    return names


def finish_once(lan: Lan, tasks: List[str], what: str, case: str) -> None:
    """Let all end at the last comrade; none may have begun twice."""
    lan.ledger.open_gate()
    assert lan.nodes[-1].wait(seconds=60) == 0
    figures.note(what + ": starts beyond the first", "0", extra_text(lan), case)
    check(lan, tasks)
    assert {row["attempt"] for row in lan.nodes[-1].rows()} == {1}  # nor was it LOST


def finish_first_runs(lan: Lan, tasks: List[str], what: str, case: str) -> None:
    """Wait until each of the tasks, that ran twice, runs once: the first run stays."""
    began = time.monotonic()
    until("none runs twice", lambda: not doubles(lan.all), 40)
    single = clock(began)
    figures.note(what + ": no duplicate", "10 s", "%.2f s" % single, case)
    lan.ledger.open_gate()
    assert lan.nodes[-1].wait(seconds=60) == 0
    check(lan, tasks, tasks)
    assert {line.attempt for line in lan.ledger.lines("end")} == {1}
    assert single < 10.0 + SLACK_S


# --- the clairvoyant goes ---------------------------------------------------------


def test_the_clairvoyant_is_killed_while_its_ghost_runs_tasks(lab: Lab) -> None:
    lan, ghost = haunted(lab)
    tasks = occupy(lan, ghost)
    lan.nodes[0].kill9()
    took = await_attached(lan, ghost, 1)
    what = "a ghost's clairvoyant is killed"
    figures.note(what + ": attached elsewhere", "5 s", "%.2f s" % took, "17")
    assert took < EOF_S + SLACK_S
    finish_once(lan, tasks, what, "17")


def test_the_clairvoyants_machine_has_no_power_any_more(lab: Lab) -> None:
    lan, ghost = haunted(lab, 3)
    tasks = occupy(lan, ghost)
    lan.unplug(lan.nodes[0])
    lan.nodes[0].power_off()
    took = await_attached(lan, ghost, 1)
    what = "a ghost's clairvoyant is without power"
    figures.note(what + ": attached elsewhere", "10 s", "%.2f s" % took, "17")
    assert took < SILENT_S + SLACK_S
    time.sleep(LOST_S)  # the others have given up what they give up
    finish_once(lan, tasks, what, "17")


def test_the_clairvoyants_cable_is_pulled_and_plugged_in_again(lab: Lab) -> None:
    lan, ghost = haunted(lab, 3)
    tasks = occupy(lan, ghost)
    alone = lan.nodes[0]
    lan.unplug(alone)
    took = await_attached(lan, ghost, 1)
    what = "a ghost's clairvoyant is unplugged"
    figures.note(what + ": attached elsewhere", "10 s", "%.2f s" % took, "17")
    assert took < SILENT_S + SLACK_S
    # Alone it goes on with what it knows (D3); where the ghost is nothing runs twice.
    until("it has", lambda: set(lan.ledger.extra()) == set(tasks), 40)
    again = [line.node for line in lan.ledger.lines("start")[len(tasks) :]]
    twice = [node for node in again if node != alone.name]
    figures.note(what + ": starts beyond the first", "0", str(len(twice)), "17")
    assert twice == []
    lan.plug(alone)
    finish_first_runs(lan, tasks, what + " and plugged in", "17")


# Where the clairvoyant dies while its ghost reports an end: code that is added to its
# program. It is armed by a file, so that it first gets to be one.
DIES_AT_AN_END = """
import threading
import decoding
import ghosts
import record as records

def _die():
    os.kill(os.getpid(), signal.SIGKILL)

def _is_armed():
    return os.path.exists(os.path.join(os.environ["HOME"], "armed"))

def _has_end(fields):
    runs = [run for r in fields["r"] for run in decoding.decode(r).runs.values()]
    return any(run.phase is records.Phase.ENDED for run in runs)

_ends = set()
_take, _send = ghosts.GHOST_FRAMES["RECORDS"], relaying.Relay.send

def _take_or_die(self, link, fields, now):
    if _is_armed() and _has_end(fields):
        if POINT == "before it has taken it":
            _die()
        _ends.add(fields["n"])
    _take(self, link, fields, now)

def _send_or_die(self, peer, kind, fields):
    if kind == "STORED" and fields["n"] in _ends:
        if POINT == "before it says that it is kept":
            _die()
        threading.Timer(0.3, _die).start()  # it leaves
    _send(self, peer, kind, fields)

ghosts.GHOST_FRAMES["RECORDS"] = _take_or_die
relaying.Relay.send = _send_or_die
"""
POINTS = ["before it has taken it", "before it says that it is kept"]
POINTS += ["once it has said that it is kept"]


@pytest.mark.parametrize("point", POINTS)
def test_the_clairvoyant_dies_while_its_ghost_reports_an_end(
    lab: Lab, point: str
) -> None:
    lan = lab(2)
    ghost = lan.ghost()
    first, second = lan.nodes
    add_to_program(first, "comrade", "POINT = %r\n%s" % (point, DIES_AT_AN_END))
    lan.start()
    ghost.start()
    await_attached(lan, ghost, 0)
    said = lan.ledger.task("t", gated=True) + "; echo said"
    task = second.add(said, "worker:is " + ghost.name)
    until("it runs", lambda: lan.ledger.running())
    (first.top / "armed").write_text("")
    lan.ledger.open_gate()
    assert first.process and first.process.wait(10) == -signal.SIGKILL
    began = time.monotonic()
    assert second.wait(task) == 0
    # The end may be there before what the task printed: that comes with the ghost.
    tell = "leoronic_get_output " + task
    until("said is there", lambda: second.sh(tell)[:2] == (0, b"said\n"))
    took = clock(began)
    what = "the clairvoyant dies while an end is reported"
    figures.note(what + ": known elsewhere", "5 s", "%.2f s" % took, "18")
    assert [row["attempt"] for row in second.rows()] == [1]
    check(lan, ["t"])
    assert took < EOF_S + SLACK_S


DIES_WITH_A_GRANT = """
import ghosts

_send_records = ghosts.Ghosts._send_records

def _send_or_die(self, link, now):
    armed = os.path.exists(os.path.join(os.environ["HOME"], "armed"))
    records = [self.queue.records.get(key) for key in link.to_tell]
    if armed and any(r is not None and "echo start t" in r.command for r in records):
        os.kill(os.getpid(), signal.SIGKILL)
    _send_records(self, link, now)

ghosts.Ghosts._send_records = _send_or_die
"""


def test_the_clairvoyant_dies_with_a_grant_that_its_ghost_never_got(lab: Lab) -> None:
    lan = lab(3)
    ghost = lan.ghost()
    first, second, third = lan.nodes
    add_to_program(first, "comrade", DIES_WITH_A_GRANT)
    lan.start()
    ghost.start()
    await_attached(lan, ghost, 0)
    (first.top / "armed").write_text("")
    at = time.time()
    task = third.add(lan.ledger.task("t"), "worker:is " + ghost.name)
    assert first.process and first.process.wait(10) == -signal.SIGKILL
    assert third.wait(task) == 0
    (took,) = since(lan, at)
    what = "the clairvoyant dies with a grant for its ghost: it starts"
    figures.note(what, "10 s", "%.2f s" % took, "19")
    check(lan, ["t"])
    assert took < 10.0 + SLACK_S


# --- the ghost goes ---------------------------------------------------------------


def test_a_ghost_is_killed_with_9(lab: Lab) -> None:
    lan, ghost = haunted(lab)
    tasks = occupy(lan, ghost)
    at = time.time()
    ghost.kill9()
    until("they run again", lambda: set(lan.ledger.extra()) == set(tasks), 30)
    again = since(lan, at)
    text = "%.2f s" % max(again)
    figures.note("a ghost is killed: its tasks run elsewhere", "3 s", text, "14")
    assert max(again) < 3.0 + SLACK_S and min(again) > 1.0
    lan.ledger.open_gate()
    assert lan.nodes[1].wait() == 0
    check(lan, tasks, tasks)


def test_a_ghosts_cable_is_pulled_and_plugged_in_again(lab: Lab) -> None:
    lan, ghost = haunted(lab)
    tasks = occupy(lan, ghost)
    at = time.time()
    lan.unplug(ghost)
    until("they run again", lambda: set(lan.ledger.extra()) == set(tasks), 40)
    again = max(since(lan, at))
    what = "a ghost's cable is pulled"
    figures.note(what + ": its tasks run elsewhere", "20 s", "%.1f s" % again, "16")
    assert again < LOST_S + SLACK_S
    lan.plug(ghost)
    finish_first_runs(lan, tasks, what + " and plugged in", "16")


def test_a_ghost_stopped_for_three_seconds_isnt_missed(lab: Lab) -> None:
    lan, ghost = haunted(lab)
    tasks = occupy(lan, ghost)
    pause_for(ghost, 3)
    await_attached(lan, ghost, 0)
    time.sleep(LOST_S)  # nobody has a reason to give anything up
    finish_once(lan, tasks, "a ghost is stopped for 3 s", "13")


def test_a_ghost_stopped_for_a_minute(lab: Lab) -> None:
    lan, ghost = haunted(lab)
    tasks = occupy(lan, ghost)
    at = time.time()
    pause_for(ghost, 60)
    assert set(lan.ledger.extra()) == set(tasks)
    again = max(since(lan, at))
    what = "a ghost is stopped for 60 s"
    figures.note(what + ": its tasks run elsewhere", "20 s", "%.1f s" % again, "13")
    assert again < LOST_S + SLACK_S
    finish_first_runs(lan, tasks, what + ", and goes on", "13")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_ghost_that_is_told_to_stop_hands_back(
    lab: Lab, number: signal.Signals
) -> None:
    lan, ghost = haunted(lab)
    tasks = occupy(lan, ghost)
    at, began = time.time(), time.monotonic()
    os.kill(ghost.pid, number)
    assert ghost.process and ghost.process.wait(10) == 0
    ended = clock(began)
    until("they run again", lambda: set(lan.ledger.extra()) == set(tasks), 30)
    again = max(since(lan, at))
    name = "Ctrl-C" if number is signal.SIGINT else "SIGTERM"
    what = "%s of a ghost: " % name
    figures.note(what + "it has ended", "2 s", "%.2f s" % ended, "70")
    figures.note(what + "its tasks run elsewhere", "3 s", "%.2f s" % again, "70")
    assert ended < STOP_S + SLACK_S and again < 3.0 + SLACK_S
    lan.ledger.open_gate()
    assert lan.nodes[1].wait() == 0
    check(lan, tasks, tasks)
    assert {row["attempt"] for row in lan.nodes[1].rows()} == {1}  # that is no try


# --- the network between them -----------------------------------------------------


@pytest.mark.parametrize("way", ["from", "to"])
def test_one_direction_of_a_ghosts_link_is_lost(lab: Lab, way: str) -> None:
    lan, ghost = haunted(lab, 3)
    tasks = occupy(lan, ghost)
    ends = (ghost, lan.nodes[0]) if way == "from" else (lan.nodes[0], ghost)
    lan.lose_one_way(*ends)
    took = await_attached(lan, ghost, 1)
    what = "all %s a ghost is lost on its link" % way
    figures.note(what + ": attached elsewhere", "5 s", "%.2f s" % took, "26")
    assert took < SILENT_S + SLACK_S
    time.sleep(LOST_S)
    finish_once(lan, tasks, what, "26")


def test_a_ghost_that_hears_no_broadcast_tries_its_neighbours(lab: Lab) -> None:
    lan = lab(1)
    ghost = lan.ghost()
    lan.lose_broadcasts()
    lan.start()
    began = time.monotonic()
    ghost.launch()
    await_attached(lan, ghost, 0, 100)
    text = "%.1f s" % clock(began)
    figures.note("no broadcasts: a ghost's sweep finds", "120 s", text, "27")


# --- nothing happens --------------------------------------------------------------

IDLE_S = 30.0  # for which the cost of doing nothing is measured
TICKS_S = os.sysconf("SC_CLK_TCK")


def cpu_of(pids: List[int]) -> float:
    """Give the seconds of processor time that processes have had."""
    fields = [
        Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        for pid in pids
    ]
    return sum(int(each[11]) + int(each[12]) for each in fields) / TICKS_S


def memory_alone(pids: List[int]) -> float:
    """Give the MiB that processes have: their PSS, were no other Python running here.

    The comrades of a test share the interpreter's pages with the ghost; on a machine
    that runs only a ghost nobody does.
    """
    total, is_python = 0, False
    for pid in pids:
        for row in Path("/proc", str(pid), "smaps").read_text().splitlines():
            word, *rest = row.split()
            if not word.endswith(":"):  # the head of a mapping
                is_python = "python" in row
            elif word == ("Rss:" if is_python else "Pss:"):
                total += int(rest[0])
    return total / 1024.0


MEMORY_MIB = 16  # what is promised; it is not kept everywhere: see the figure
GROWN_MIB = 21  # until then: what it has (19.9 with Python 3.13), and one more


def test_an_idle_ghost_costs_next_to_nothing(lab: Lab) -> None:
    lan, ghost = haunted(lab)
    task = lan.nodes[1].add("echo once", "worker:is " + ghost.name)
    assert lan.nodes[1].wait(task) == 0  # it has all that it needs for work
    time.sleep(7)  # and isn't asked what it has any more
    pids = ghost.pids()
    spent, sent, began = cpu_of(pids), carried(ghost), time.monotonic()
    time.sleep(IDLE_S)
    took = clock(began)
    share = 100 * (cpu_of(pids) - spent) / took
    rate = (carried(ghost) - sent) / took
    memory = memory_alone(pids)
    what = "an idle ghost"
    text = "%.1f MiB in %d processes" % (memory, len(pids))
    figures.note(what + ": memory (PSS)", "%d MiB" % MEMORY_MIB, text)
    figures.note(what + ": of a core", "0", "%.2f %%" % share)
    figures.note(what + ": on its cable, both ways", "1000 B/s", "%.0f B/s" % rate)
    assert ghost.pids() == pids
    assert memory < GROWN_MIB and share < 0.5 and rate < 1000
