"""What clocks do: wrong, jumping, standing still; a machine that slept, or never did.

Wall clocks can't be set for one machine alone. So here the copy of the program on that
machine reads a wrong one (`time.time` is replaced, nothing else); its tasks don't. The
clock since boot is another in a time namespace, which the kernel gives at the start;
that it jumps, as after a suspend, is again an addition to the copy. Numbers: FAULTS.
"""

import time

import figures
import pytest
from cluster import await_component, await_equal, until
from scenes import (
    Lab,
    begin,
    check,
    coordinators,
    extra_text,
    finish,
    marks,
    tasks_of,
)
from tools import add_to_program, has_time_namespaces, in_another_time

pytestmark = marks

YEAR_S = 365 * 86400
HOUR_S = 3600

WALL = """
_true_time = time.time

def _wrong_time():
    now = _true_time()
    return {
        "ahead": now + TEN_YEARS_S,
        "behind": now - TEN_YEARS_S,
        "strobe": now + (int(now * 10) % 3 - 1) * TEN_YEARS_S,
    }[MODE]

time.time = _wrong_time
"""

# All copies look at one file each: from when it is there they have slept for an hour.
SLEPT = """
_awake_clock, _slept = clock, [0.0]

def clock():
    if not _slept[0] and os.path.exists(os.environ["HOME"] + "/slept"):
        _slept[0] = 3600.0
    return _awake_clock() + _slept[0]
"""


@pytest.mark.parametrize("mode", ["ahead", "behind", "strobe"])
def test_a_wall_clock_that_is_ten_years_wrong_changes_nothing(
    lab: Lab, mode: str
) -> None:
    lan = lab(3)
    code = "MODE, TEN_YEARS_S = %r, %d" % (mode, 10 * YEAR_S)
    add_to_program(lan.nodes[0], "process", code + WALL)
    lan.start()
    tasks = begin(lan, 6)
    more = ["m%d" % i for i in range(60)]
    for i, node in enumerate(lan.nodes):
        node.add_all([lan.ledger.task(name) for name in more[i::3]])
    finish(lan, lan.nodes[0], tasks + more, [])
    rows = await_equal(lan.nodes)
    added = {row["added"] for row in rows if row["id"].startswith("1-")}
    assert max(added) - min(added) > YEAR_S or mode == "strobe"  # it was wrong
    text = "wall clock of one node %s by 10 years" % mode
    figures.note(text, "0 starts", extra_text(lan), "33")
    assert len(coordinators(lan.ledger)) == 1


def test_machines_that_have_run_for_years_and_just_now_form_one_cluster(
    lab: Lab,
) -> None:
    if not has_time_namespaces():
        pytest.skip("no time namespaces here (Linux 5.6, unshare --time)")
    lan = lab(3)
    in_another_time(lan.nodes[0], 10 * YEAR_S)
    in_another_time(lan.nodes[1], HOUR_S)
    lan.start()
    code, out, _ = lan.nodes[0].sh("cat /proc/uptime")
    assert code == 0 and float(out.split()[0]) > 10 * YEAR_S
    tasks = begin(lan, 6)
    victim = lan.nodes[0]
    doomed = tasks_of(lan.ledger, [victim])
    victim.kill9()
    until("again", lambda: set(lan.ledger.extra()) == set(doomed))
    victim.start()  # what it kept from its last life is of the same clock
    await_component(lan.nodes)
    finish(lan, victim, tasks, doomed)
    text = "%d lost" % len(lan.ledger.amiss(tasks)[0])
    figures.note("up for 10 years, 1 h, and just now", "0 lost", text, "34")


def test_all_machines_sleep_for_an_hour_and_nothing_is_called_lost(lab: Lab) -> None:
    lan = lab(3)
    for node in lan.nodes:
        add_to_program(node, "process", SLEPT)
    lan.start()
    tasks = begin(lan, 6)
    for node in lan.nodes:
        node.pause()
    time.sleep(3)
    for node in lan.nodes:
        (node.top / "slept").write_text("")
    for node in lan.nodes:
        node.go_on()
    time.sleep(5)  # what goes wrong takes a moment
    await_component(lan.nodes)
    figures.note("all sleep for 1 h", "0 starts", extra_text(lan), "34")
    finish(lan, lan.nodes[1], tasks, [])


def test_one_machine_sleeps_for_an_hour_and_accuses_nobody(lab: Lab) -> None:
    lan = lab(3)
    sleeper = lan.nodes[0]
    add_to_program(sleeper, "process", SLEPT)
    lan.start()
    tasks = begin(lan, 6)
    doomed = tasks_of(lan.ledger, [sleeper])
    sleeper.pause()
    until("they run again", lambda: set(lan.ledger.extra()) == set(doomed), 40)
    (sleeper.top / "slept").write_text("")
    sleeper.go_on()
    await_component(lan.nodes)
    time.sleep(3)
    extra = sorted(set(lan.ledger.extra()) - set(doomed))
    text = "%d of the others' tasks again" % len(extra)
    figures.note("one sleeps for 1 h", "0", text, "34")
    await_equal(lan.nodes)
    lan.ledger.open_gate()
    assert sleeper.wait() == 0
    check(lan, tasks, doomed)
