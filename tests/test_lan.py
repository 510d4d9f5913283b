"""Real comrades that find each other by broadcast; the quick cases of the laboratory.

All cases: bash tests/run --lab (tests/lab). They need root, for network namespaces, and
are skipped without it. No packet leaves this machine: see tests/netlab.py.
"""

import time
from typing import Callable, List, Sequence

import figures
import pytest
from cluster import Ledger, await_component, await_equal, until
from netlab import Lan, Machine, doubles, lab, missing

__all__ = ["lab"]

Lab = Callable[[int], Lan]

REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason="the laboratory " + REASON)

SLACK_S = 1.5  # a busy machine with two cores; what was measured is noted


def tasks_of(ledger: Ledger, machines: Sequence[Machine]) -> List[str]:
    """Give the tasks that run on machines, as the ledger says."""
    names = [machine.name for machine in machines]
    return [line.task for line in ledger.running().values() if line.node in names]


def begin(lan: Lan, count: int, by: int = 0) -> List[str]:
    """Add gated tasks and wait until all run; give their names in the ledger."""
    names = ["t%d" % i for i in range(count)]
    lan.nodes[by].add_all([lan.ledger.task(name, gated=True) for name in names])
    until("all run", lambda: len(lan.ledger.running()) == count)
    return names


def check(lan: Lan, tasks: Sequence[str], extra: Sequence[str] = ()) -> None:
    """Check that each of these ended, and began once but for `extra`; note it."""
    lost, unexpected = lan.ledger.amiss(tasks)
    for what, names in (("lost", lost), ("unexpected", unexpected)):
        figures.note("tasks %s in all cases" % what, "0", str(len(names)))
    lan.ledger.check(tasks, extra=extra)


def finish(lan: Lan, at: Machine, tasks: Sequence[str], extra: Sequence[str]) -> None:
    """Let all end, and check that each did, and began once but for `extra`."""
    lan.ledger.open_gate()
    assert at.wait(seconds=90) == 0
    check(lan, tasks, extra)


def test_three_that_know_nothing_but_the_cookie_form_a_cluster(lab: Lab) -> None:
    lan = lab(3)
    for node in lan.nodes:
        began = time.monotonic()
        node.start()
    await_component(lan.nodes)
    took = time.monotonic() - began
    figures.note("3 find each other by broadcast", "3 s", "%.2f s" % took, "71")
    assert took < 3.0
    joined = lan.nodes[2].printed().rpartition("joined ")[2].strip()
    assert sorted(joined.split(", ")) == ["old1", "old2"]
    tasks = ["t%d" % i for i in range(30)]
    ids = lan.nodes[1].add_all([lan.ledger.task(name, 0.1) for name in tasks])
    assert lan.nodes[2].wait(*ids) == 0
    lan.ledger.check(tasks)
    await_equal(lan.nodes)


def test_a_start_without_a_cookie_says_where_to_copy_it_from_and_exits_100(
    lab: Lab,
) -> None:
    lan = lab(1)
    lan.start()
    newcomer = lan.machine(cookie="")
    began = time.monotonic()
    newcomer.launch()
    assert newcomer.process
    assert newcomer.process.wait(10) == 100, newcomer.printed()
    took = time.monotonic() - began
    figures.note("a start without a cookie: exit 100", "about 1 s", "%.2f s" % took)
    printed = newcomer.printed()
    cookie = newcomer.program / ".leoronic_cookie"
    assert "scp 10.77.0.11:" in printed and str(cookie) in printed
    assert not cookie.exists()
    newcomer.give_cookie((lan.nodes[0].program / cookie.name).read_text())
    newcomer.start()
    await_component([*lan.nodes, newcomer])


def test_a_start_without_a_cookie_that_hears_nobody_makes_one(lab: Lab) -> None:
    lan = lab(1)
    (lan.nodes[0].program / ".leoronic_cookie").unlink()
    lan.start()
    cookie = lan.nodes[0].program / ".leoronic_cookie"
    assert cookie.stat().st_mode & 0o777 == 0o600
    assert len(cookie.read_text().strip()) == 64


def test_tasks_of_a_machine_that_loses_its_power_run_again_elsewhere(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    doomed = tasks_of(lan.ledger, [lan.nodes[0]])
    at = time.time()
    lan.nodes[0].power_off()
    until("they run again", lambda: set(lan.ledger.extra()) == set(doomed))
    last = max(line.at for line in lan.ledger.lines("start")) - at
    figures.note("kill -9 of all on a machine", "1.2 to 3 s", "%.2f s" % last, "15")
    assert last < 3.0 + SLACK_S
    finish(lan, lan.nodes[1], tasks, doomed)


def test_halves_of_a_parted_network_go_on_and_are_equal_soon_after_it_heals(
    lab: Lab,
) -> None:
    lan = lab(3)
    lan.start()
    lan.part(lan.nodes[2:])
    await_component(lan.nodes[:2])
    await_component(lan.nodes[2:])
    left = ["l%d" % i for i in range(4)]
    right = ["r%d" % i for i in range(2)]
    lan.nodes[0].add_all([lan.ledger.task(name, gated=True) for name in left])
    lan.nodes[2].add_all([lan.ledger.task(name, gated=True) for name in right])
    until("both go on", lambda: len(lan.ledger.running()) == 6)
    began = time.monotonic()
    lan.heal()
    rows = await_equal(lan.nodes)
    took = time.monotonic() - began
    assert len(rows) == 6
    await_component(lan.nodes)
    met = time.monotonic() - began
    figures.note("2|1 parted, healed: equal", "5 s", "%.2f s" % took, "20")
    figures.note("2|1 parted, healed: all ready", "5 s", "%.2f s" % met, "20")
    assert not doubles(lan.nodes)
    finish(lan, lan.nodes[1], left + right, [])
    assert took < 5.0 + SLACK_S


def test_clusters_with_different_cookies_leave_each_other_alone(lab: Lab) -> None:
    lan = lab(1)
    other = lan.machine(cookie="another cookie of other people\n")
    lan.start([lan.nodes[0]])
    other.start()
    ours, theirs = lan.nodes[0].add("echo ours"), other.add("echo theirs")
    assert (lan.nodes[0].wait(ours), other.wait(theirs)) == (0, 0)
    for node, stranger in ((lan.nodes[0], other), (other, lan.nodes[0])):
        until("it is told", lambda n=node: "another cookie" in n.printed())
        assert list(node.members()) == [node.address]
        told = [t for t in node.printed().splitlines() if stranger.address in t]
        assert len(told) == 1, told
    assert list(lan.nodes[0].states()) == [ours]
    assert list(other.states()) == [theirs]
