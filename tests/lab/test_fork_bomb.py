"""A task that forks without end, and one that kills all there is of its user.

The node of the first answers, ends it, and runs the next one; the second takes its node
with it, five times.

As a user of its own with few processes: root has no limit, and this machine others.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Iterator, List

import figures
import pytest
from cluster import Member, until
from helpers import free_port, processes_of
from test_comrade import copy_of_the_folder, runs_as

import keeper

ADDRESS = "127.13.0.41"
USER = 61307  # nobody else's: the limit is one on all processes of a user
PROCESSES = 320
PREFIX = ["setpriv", "--reuid=%d" % USER, "--regid=%d" % USER, "--clear-groups"]
LIMITED = ["bash", "-c", 'ulimit -u %d; exec "$@"' % PROCESSES, "limited", *PREFIX]
BOMB = "bomb() { bomb | bomb & }; bomb; sleep 300"


def python() -> str:
    check = 'exec "$(type -P "$0")" -c "import sqlite3"'
    for path in (os.environ["LEORONIC_PYTHON"], "/usr/bin/python3"):
        if runs_as(PREFIX, "bash", "-c", check, path):
            return path
    pytest.skip("no other user can run an interpreter here")
    return ""


def member(python: str, prefix: List[str]) -> Member:
    env = {"LEORONIC_NICE": "19"}  # others use this machine
    return Member(ADDRESS, free_port([ADDRESS]), python=python, prefix=prefix, env=env)


def of_the_user(prefix: List[str]) -> Member:
    node = member(python(), prefix)
    node.program = copy_of_the_folder(node.top)
    for path in [node.top, *node.top.rglob("*")]:
        shutil.chown(str(path), USER, USER)
    return node


is_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")


@is_root
def test_a_fork_bomb_ends_with_its_task_and_the_next_one_runs() -> None:
    survive(of_the_user(LIMITED), "a fork bomb")


@is_root
def test_a_task_that_kills_all_of_its_user_is_given_up_after_five_nodes() -> None:
    node = of_the_user(PREFIX)
    deaths, slowest = 0, 0.0
    try:
        node.start()
        # The one that kills is spared by the system, and with nobody left it goes on.
        deadly = node.add("kill -9 -1; exec sleep 1000")
        until("the node is gone", lambda: has_ended(node))
        while has_ended(node):
            deaths += 1
            assert deaths <= 5
            began = time.monotonic()
            node.start()
            slowest = max(slowest, time.monotonic() - began)
            until("it is gone, or the task", lambda: has_ended(node) or is_over(node))
        _, told, _ = node.sh("leoronic_get_queue --json failed")
        assert b"lost its node 5 times" in told and deadly.encode() in told
        assert node.wait(node.add("echo next")) == 0
        left = [pid for pid in processes_of(node.home) if is_sleep(pid)]
    finally:
        node.close()
    figures.note("kill -9 -1: nodes lost, then given up", "5", str(deaths), "56")
    figures.note("... started again within", "3 s", "%.1f s" % slowest, "56")
    assert deaths == 5 and not left


def has_ended(node: Member) -> bool:
    return node.process is None or node.process.poll() is not None


def is_over(node: Member) -> bool:
    """Say whether there is a failed task; a node that dies meanwhile says nothing."""
    code, out, _ = node.sh("leoronic_get_queue --csv failed")
    return code == 0 and out.count(b"\n") > 1


def is_sleep(pid: int) -> bool:
    try:
        return b"sleep" in Path("/proc/%d/cmdline" % pid).read_bytes()
    except OSError:
        return False


@pytest.fixture
def group() -> Iterator[Path]:
    """A pids cgroup that has room for PROCESSES."""
    found = keeper.pids_group("/test%d" % os.getpid())
    try:
        os.mkdir(found)
        Path(found, "pids.max").write_text("%d" % PROCESSES)
    except OSError as problem:
        pytest.skip("no pids cgroup can be made here: %s" % problem)
    yield Path(found)
    keeper.remove_pids_group(found)


def test_a_fork_bomb_of_root_ends_in_a_cgroup_of_the_tasks(group: Path) -> None:
    enter = 'echo $$ >"$0/cgroup.procs"; exec "$@"'
    prefix = ["bash", "-c", enter, str(group)]
    survive(member(os.environ["LEORONIC_PYTHON"], prefix), "one of root, in a cgroup")
    assert not [path for path in group.iterdir() if path.is_dir()]


def survive(node: Member, what: str) -> None:
    try:
        node.start()
        assert node.wait(node.add("true")) == 0
        before = len(processes_of(node.home))
        task = node.add(BOMB)
        until("it forks", lambda: len(processes_of(node.home)) > 150)
        time.sleep(1)
        most = len(processes_of(node.home))
        assert most < PROCESSES - 60  # what is left for node and utilities
        began = time.monotonic()
        assert node.members()[ADDRESS]["state"] == "ready"
        answered = time.monotonic() - began
        began = time.monotonic()
        node.call("leoronic_del_task", task)
        until("all are gone", lambda: len(processes_of(node.home)) <= before)
        gone = time.monotonic() - began
        assert node.wait(node.add("echo next")) == 0
    finally:
        node.close()
    told = "%s, %d processes: leoronic_nodes" % (what, most)
    figures.note(told, "5 s", "%.1f s" % answered)
    figures.note("... all gone after leoronic_del_task", "10 s", "%.1f s" % gone)
