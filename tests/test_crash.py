"""Crashes of real comrades at named points, failing disks, power cuts: some of each.

All of it, every Nth passing and call, a thousand trials: bash tests/run --crash.
"""

import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from typing import ContextManager, Iterator, Tuple

import figures
import pytest
from badcalls import Fault, disk_that, try_fault
from client import ask
from cluster import Cluster, Member, await_component, await_equal, until
from crashes import (
    NEVER,
    Plan,
    await_gone,
    damage,
    run,
    strace_missing,
)
from trials import destroyed, knows, power_cuts

import points

ROUNDS = 10  # of what must never fail; a thousand are in tests/crash
SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))
ACK_S = 2.0  # D10, and an fsync
SLACK_S = 0.5  # a busy machine with two cores; what was measured is noted
DEAD_S = 6.0  # more than after which a silent one counts as dead
NO_STRACE = strace_missing()
# Chains of restarts; a machine with other work takes five times as long.
pytestmark = pytest.mark.timeout(180)
needs_strace = pytest.mark.skipif(bool(NO_STRACE), reason=NO_STRACE)

# --- kill points --------------------------------------------------------------------

ALONE = [
    Plan("before commit"),
    Plan("after commit", 3),
    Plan("before answer"),
    Plan("after answer", 2),
    Plan("before start"),
    Plan("after start"),
    Plan("before end"),
    Plan("before rename"),
    Plan("after rename"),
    Plan("set aside", damage="header"),
    Plan("salvaged"),  # begins again, since it was cut short
    Plan("placed"),
    Plan("kept", damage="header"),
]


TOGETHER = [
    *(Plan(when + " send: a grant", leads=True) for when in ("before", "after")),
    *(
        Plan("%s send: %s" % (when, what))
        for what in ("a new task", "a start", "an end", "GOT", "STORED")
        for when in ("before", "after")
    ),
    Plan("before commit", 2),
    Plan("after commit", 2),
    Plan("before answer"),
    Plan("after answer"),
    Plan("before end", damage="all"),  # all of it comes back from the other
]


def test_a_lone_comrade_killed_at_any_point_loses_nothing_it_acknowledged() -> None:
    assert not run(Cluster(1, first=71), ALONE), "points that were never reached"


def test_one_of_two_killed_at_any_point_loses_nothing_and_runs_nothing_twice() -> None:
    assert not run(Cluster(2, first=72), TOGETHER), "points that were never reached"


# --- the disk is lost, or the power -------------------------------------------------


def test_what_one_acknowledged_survives_it_and_its_disk() -> None:
    found = destroyed(ROUNDS)
    figures.note("add at A, A and its disk destroyed", "0 lost", found.told())
    assert not found.lost


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_what_a_lone_comrade_acknowledged_survives_a_power_cut() -> None:
    found = power_cuts(ROUNDS, SEED)
    figures.note("add alone, power cut", "0 lost", found.told())
    assert not found.lost, "TEST_SEED=%d: %s" % (SEED, found.lost)


# --- one disk or one peer is bad ------------------------------------------------------


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Three comrades; each test leaves them sound."""
    with Cluster(3, first=76) as cluster:
        yield cluster


@contextmanager
def stopped(node: Member) -> Iterator[None]:
    """Stop a comrade as a debugger does, for a while."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


def bad(way: str, node: Member) -> ContextManager[None]:
    return stopped(node) if way == "is stopped" else disk_that(way, node)


def add_in_time(node: Member, case: str, expected: str) -> Tuple[str, bytes]:
    """Add a task within ACK_S; give its id and the message."""
    began = time.monotonic()
    code, out, err = ask(node, "add_task", "1K", "1", "1K", "true", NEVER, "", "true")
    took = time.monotonic() - began
    figures.note(case + ": add acknowledged", expected, "%.3f s" % took)
    assert code == 0 and took < ACK_S + SLACK_S, (code, took, err)
    return out.decode().strip(), err


BAD_WAYS = ["is stopped", "hangs", "is full", "fails"]


@needs_strace
@pytest.mark.parametrize("way", BAD_WAYS)
def test_an_add_is_acknowledged_in_time_whatever_one_of_two_peers_does(
    three: Cluster, way: str
) -> None:
    adder, sound, peer = three.nodes
    with bad(way, peer):
        task, err = add_in_time(adder, "one of two peers (its disk) " + way, "at once")
        assert err == b"" and knows(sound, task)
    until("the third gets it too", lambda: knows(peer, task))
    await_component(three.nodes)


@needs_strace
@pytest.mark.parametrize("way", BAD_WAYS)
def test_an_add_is_acknowledged_in_time_whatever_the_only_peer_does(way: str) -> None:
    with Cluster(2, first=79) as cluster:
        adder, peer = cluster.nodes
        with bad(way, peer):
            task, err = add_in_time(adder, "the only peer (its disk) " + way, "2 s")
            assert b"kept on this node only so far" in err
        until("the peer gets it too", lambda: knows(peer, task))


@needs_strace
def test_while_a_disk_hangs_its_comrade_lives_and_others_keep_what_it_adds(
    three: Cluster,
) -> None:
    adder, *others = three.nodes
    with disk_that("hangs", adder):
        task, err = add_in_time(adder, "the own disk hangs", "2 s")
        assert b"kept by other comrades, not on this disk" in err
        assert all(knows(node, task) for node in others)
        time.sleep(DEAD_S)
        for node in three.nodes:
            assert sorted(node.ready()) == three.addresses
        os.kill(adder.pid, signal.SIGKILL)  # it dies once strace lets go of it
    adder.kill9()
    await_gone(adder)
    adder.start()
    assert knows(adder, task)
    await_component(three.nodes)


def test_a_store_that_cannot_be_read_is_kept_and_filled_again_from_the_peers(
    three: Cluster,
) -> None:
    node, other = three.nodes[:2]
    tasks = [node.add("echo %d" % i) for i in range(20)]
    assert other.wait(*tasks) == 0
    before = await_equal(three.nodes)
    assert node.stop() == 0
    damage(node.home / "queue", "all")
    lost = (node.home / "queue" / "db").read_bytes()
    began = time.monotonic()
    node.start()
    assert await_equal(three.nodes) == before
    took = time.monotonic() - began
    (kept,) = node.home.glob("damaged-*")
    assert (kept / "db").read_bytes() == lost
    assert "was damaged" in node.printed() and str(kept) in node.printed()
    figures.note("a database of rubbish: filled again", "10 s", "%.2f s" % took)
    assert took < 10
    assert [node.output(task) for task in tasks[:3]] == [b"0\n", b"1\n", b"2\n"]


# --- a call fails ---------------------------------------------------------------------

SOME = [  # all: tests/crash
    Fault("fsync", "EIO", 2),
    Fault("fsync", "EIO", 12),
    Fault("fsync", "EIO", 1, True),
    Fault("pwrite", "ENOSPC", 4),
    Fault("pwrite", "EIO", 30),
    Fault("pwrite", "EIO", 20, True),
    Fault("rename", "EIO", 1),
    Fault("rename", "ENOSPC", 2),
    Fault("open", "EIO", 3),
    Fault("open", "EIO", 10),
    Fault("write", "ENOSPC", 1),
]


@needs_strace
@pytest.mark.parametrize("fault", SOME, ids=lambda fault: "-".join(map(str, fault)))
def test_whatever_call_fails_nothing_acknowledged_is_lost_and_it_is_said(
    fault: Fault,
) -> None:
    assert try_fault(fault)
    assert fault.n > 10 or try_fault(fault, beside=1)


def test_every_point_of_the_catalogue_is_where_some_comrade_is_killed() -> None:
    reached = {plan.place.partition(":")[0] for plan in ALONE + TOGETHER}
    assert reached == set(points.CATALOGUE)
