"""Small clusters of real comrades on loopback, from end to end."""

import hashlib
import os
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Iterator, List, Sequence

import figures
import pytest
from cluster import (
    Cluster,
    Ledger,
    Member,
    at_once,
    await_component,
    await_equal,
    until,
)

# Upper bounds on a busy machine with two cores; what was measured is noted. The first
# is CONTRACT's and D12's figure, the slack is for the machine.
JOIN_S = 3.0
TAKE_OVER_S = 3.0 + 1.5
STOP_S = 2.0 + 0.5
PYTHONS = ("3.7", "3.13", "3.11")
MANY = 12  # rounds of what must never fail
MIB = 1 << 20


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Three comrades; each test leaves them without unfinished tasks."""
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three comrades for one test, which may do to them what it likes."""
    with Cluster(3, first=21) as cluster:
        yield cluster


def others(nodes: Sequence[Member], node: Member) -> List[Member]:
    return [one for one in nodes if one is not node]


# --- forming ----------------------------------------------------------------------


def test_three_form_a_cluster_within_three_seconds_and_say_whom_they_joined(
    three: Cluster,
) -> None:
    figures.note("3 on loopback form a cluster", "3 s", "%.2f s" % three.joined_s)
    assert three.joined_s < JOIN_S
    first, second, third = (node.printed() for node in three.nodes)
    # All have this host's name, so each is told by its address as well.
    assert "no other comrade was found yet" in first
    assert "joined" in second and "@127.0.0.11" in second
    assert "@127.0.0.11" in third and "@127.0.0.12" in third


def test_three_that_start_at_once_form_one_cluster_and_start_each_task_once() -> None:
    cluster = Cluster(3, first=31)
    try:
        cluster.start_at_once()
        figures.note("3 started at once", "3 s", "%.2f s" % cluster.joined_s)
        tasks = ["t%d" % i for i in range(12)]
        commands = [cluster.ledger.task(name) for name in tasks]
        adds = [partial(n.add_all, commands[i::3]) for i, n in enumerate(cluster.nodes)]
        ids = sum(at_once(adds), [])
        assert cluster.nodes[0].wait(*ids) == 0
        cluster.ledger.check(tasks)
    finally:
        cluster.close()


def test_python_versions_form_one_cluster(tmp_path: Path) -> None:
    pythons = [python for python in map(find_python, PYTHONS) if python]
    if len(pythons) < 2:
        pytest.skip("fewer than two of the versions %s are here" % (PYTHONS,))
    count = len(pythons)
    with Cluster(count, first=41, pythons=pythons, env={"LEORONIC_CORES": "1"}) as some:
        tasks = ["t%d" % i for i in range(3 * count)]
        ids = some.nodes[-1].add_all([some.ledger.task(name, 0.1) for name in tasks])
        for node in some.nodes:
            ids.append(node.add("echo $LEORONIC_TASK_ID", "worker:is " + node.address))
        assert some.nodes[0].wait(*ids) == 0
        some.ledger.check(tasks)
        rows = await_equal(some.nodes)
        assert len(rows) == 4 * count
        assert len({row["node"] for row in rows}) == count
        for row in rows[-count:]:
            printed = row["id"].encode() + b"\n"
            assert [n.output(row["id"]) for n in some.nodes] == [printed] * count


def find_python(version: str) -> str:
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    found = Path(root, "versions").glob(version + ".*/bin/python")
    candidates = [shutil.which("python" + version) or "", *map(str, found)]
    script = (
        "import sys, sqlite3; print(sys.executable, '%d.%d' % sys.version_info[:2])"
    )
    for python in filter(None, candidates):
        try:
            done = subprocess.run([python, "-c", script], capture_output=True)
        except OSError:
            continue
        path, _, is_version = done.stdout.decode().strip().rpartition(" ")
        if done.returncode == 0 and is_version == version:
            return path
    return ""


# --- one queue, seen and taken at every node ----------------------------------------


def test_the_queue_is_equal_everywhere_whoever_added(three: Cluster) -> None:
    for node in three.nodes:
        bad = node.add("echo from %s; echo oops >&2; exit 3" % node.address)
        good = node.add("true", name="mine-%s" % node.address)
        assert node.wait(bad, good) == 1
    rows = await_equal(three.nodes)
    assert len(rows) >= 6
    assert {"done", "failed"} == {row["state"] for row in rows}
    tables = {node.call("leoronic_get_queue", "--csv") for node in three.nodes}
    assert len(tables) == 1


def test_a_tasks_output_is_read_from_every_node_small_and_large(
    three: Cluster,
) -> None:
    small = three.nodes[0].add("printf 'a\\0b'; echo oops >&2", "worker:is 127.0.0.12")
    command = "head -c %d /dev/zero | tr '\\0' x" % MIB
    large = three.nodes[0].add(command, "worker:is 127.0.0.13")
    for node in three.nodes:
        assert node.wait(small, large) == 0
        assert node.output(small) == b"a\0b"
        assert node.output(small, "--stderr") == b"oops\n"
        assert node.output(large) == b"x" * MIB
        assert node.output(large, "--stderr") == b""


def test_a_task_that_runs_elsewhere_is_really_stopped_when_deleted(
    three: Cluster, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = "sleep 300 & echo $$ $! >'%s'; trap '' TERM; sleep 300" % pids
    task = three.nodes[1].add(command, "worker:is 127.0.0.13")
    until("the task runs", lambda: pids.exists() and pids.read_text().endswith("\n"))
    began = time.monotonic()
    three.nodes[0].call("leoronic_del_task", task)
    until("its processes are gone", lambda: not living(pids.read_text().split()))
    took = time.monotonic() - began
    figures.note("del_task elsewhere, a task that ignores TERM", "7 s", "%.2f s" % took)
    assert took < 8
    assert [node.state(task) for node in three.nodes] == ["deleted"] * 3
    code, _, err = three.nodes[2].sh("leoronic_del_task " + task)
    assert code == 1 and b"deleted already" in err


def living(pids: Sequence[str]) -> List[str]:
    return [pid for pid in pids if is_living(pid)]


def is_living(pid: str) -> bool:
    try:
        return ") Z " not in Path("/proc", pid, "stat").read_text()
    except OSError:
        return False


def test_why_has_a_line_for_each_node_wherever_it_is_asked(three: Cluster) -> None:
    task = three.nodes[0].add("true", "worker:tag nowhere-at-all")
    for node in three.nodes:
        until("it is known here", lambda node=node: node.state(task) == "waiting")
        lines = node.call("leoronic_why", task).splitlines()
        assert lines[0] == task + " is waiting"
        for address in three.addresses:
            about = [line for line in lines if "@" + address in line]
            assert about and "worker:tag nowhere-at-all" in about[0], lines
    three.nodes[2].call("leoronic_del_task", task)


def test_nodes_tells_the_same_of_all_at_every_node(three: Cluster) -> None:
    for node in three.nodes:
        rows = node.members()
        assert sorted(rows) == three.addresses
        for address, row in rows.items():
            assert row["state"] == "ready" and row["role"] == "comrade"
            assert row["name"].endswith("@" + address) and row["cores"] == 4
        table = node.call("leoronic_nodes").splitlines()
        assert len(table) == 4 and table[0].startswith("ADDRESS")


def test_a_node_is_drained_and_undrained_from_another(three: Cluster) -> None:
    first, second, third = three.nodes
    first.call("leoronic_drain", "127.0.0.12")
    for node in three.nodes:
        until("drained", lambda n=node: state_of(n, "127.0.0.12") == "draining")
    held = third.add("true", "worker:is 127.0.0.12")
    free = third.add_all(["echo $LEORONIC_NODE"] * 6)
    assert third.wait(*free) == 0
    assert not [row for row in third.rows() if row["node"] == "127.0.0.12"]
    assert not [t for t in free if b"127.0.0.12" in third.output(t)]
    assert third.state(held) == "waiting"
    assert "drain" in third.call("leoronic_why", held)
    third.call("leoronic_undrain", "127.0.0.12")
    assert second.wait(held) == 0


def state_of(node: Member, address: str) -> str:
    return str(node.members().get(address, {}).get("state"))


def test_tasks_go_where_their_conditions_hold(three: Cluster) -> None:
    first, second, third = three.nodes
    (third.directory / "data").mkdir()
    (third.directory / "data" / "x.bin").write_text("")
    tagged = first.add("echo $LEORONIC_NODE", "worker:tag has_gpu")
    having = first.add("echo $LEORONIC_NODE", "worker:has_file data/x.bin")
    here = first.add("echo $LEORONIC_NODE", "worker:is 127.0.0.11")
    assert first.wait(having, here) == 0
    assert first.state(tagged) == "waiting"
    second.call("leoronic_add_tag", "has_gpu")
    assert first.wait(tagged) == 0
    ran = [first.output(task).decode().strip() for task in (tagged, having, here)]
    wanted = ["@127.0.0.12", "@127.0.0.13", "@127.0.0.11"]
    assert [name.endswith(end) for name, end in zip(ran, wanted)] == [True] * 3, ran
    second.call("leoronic_del_tag", "has_gpu")


def test_a_condition_on_a_task_of_another_node_holds_back(three: Cluster) -> None:
    gate = three.nodes[0].top / "gate of first"
    wait = "until test -e '%s'; do sleep 0.05; done" % gate
    one = three.nodes[0].add(wait, "worker:is 127.0.0.12")
    then = three.nodes[2].add("test -e '%s'" % gate, "queue:done " + one)
    until("the first runs", lambda: three.nodes[1].state(one) == "running")
    assert three.nodes[1].state(then) == "waiting"
    gate.write_text("")
    assert three.nodes[1].wait(one, then) == 0


def test_an_id_of_the_users_own_is_one_task_wherever_it_is_added(
    three: Cluster,
) -> None:
    ledger = three.ledger
    command = ledger.task("named")
    for node in three.nodes:
        assert node.add(command, name="named") == "named"
        assert node.wait("named") == 0
    assert ledger.starts()["named"] == 1
    words = "leoronic_add_task 1K 1 1K true '' '' 'echo other' named"
    code, _, err = three.nodes[2].sh(words)
    assert code != 0 and b"named" in err


def test_wait_at_another_node_tells_how_it_ended(three: Cluster) -> None:
    good = three.nodes[0].add("sleep 0.3")
    bad = three.nodes[0].add("sleep 0.3; exit 9")
    assert three.nodes[1].wait(good) == 0
    assert three.nodes[2].wait(bad, good) == 1


def test_a_file_of_20_mb_reaches_its_task_and_no_heartbeat_waits_for_it(
    three: Cluster,
) -> None:
    data = os.urandom(MIB) * 20
    source = three.nodes[0].directory / "big file.bin"
    source.write_bytes(data)
    began = time.monotonic()
    task = three.nodes[0].add(
        "sha256sum <'big file.bin'; sleep 0.5",
        "worker:is 127.0.0.13",
        "big file.bin",
    )
    added = time.monotonic() - began
    while three.nodes[1].state(task) in ("waiting", "running"):
        for node in three.nodes:
            assert sorted(node.ready()) == three.addresses, node.told()
        assert time.monotonic() < began + 30
    took = time.monotonic() - began
    figures.note(
        "a 20 MB file at add / at the task's node",
        "no node suspect",
        "%.2f / %.2f s" % (added, took),
    )
    printed = three.nodes[1].output(task).split()[0].decode()
    assert printed == hashlib.sha256(data).hexdigest()
    source.unlink()
    until("the copy is removed", lambda: not unwanted_files(three.nodes[2]))


def unwanted_files(node: Member) -> List[str]:
    return [name for name in os.listdir(str(node.directory)) if name.endswith(".bin")]


# --- notes on stderr ----------------------------------------------------------------


def test_one_who_knows_no_other_says_nothing_and_one_left_alone_says_so_at_once() -> (
    None
):
    cluster = Cluster(2, first=51)
    try:
        first, second = cluster.nodes
        first.start()
        words = "leoronic_add_task 1K 1 1K true '' '' true"
        code, _, err = first.sh(words)
        assert (code, err) == (0, b"")
        second.start()
        await_component(cluster.nodes)
        code, _, err = second.sh(words)
        assert (code, err) == (0, b"")
        first.kill9()
        until("it is missed", lambda: second.ready() == [second.address])
        began = time.monotonic()
        code, _, err = second.sh(words)
        took = time.monotonic() - began
        assert code == 0 and err.startswith(b"leoronic: ") and b"only" in err
        assert took < 1.5
        figures.note("add, known members away", "at once", "%.2f s" % took)
    finally:
        cluster.close()


# --- nothing acknowledged is lost ---------------------------------------------------


def test_what_was_acknowledged_survives_the_adder_and_its_disk(
    cluster: Cluster,
) -> None:
    added: List[str] = []
    for i in range(MANY):
        node = cluster.nodes[i % 3]
        words = "leoronic_add_task 1K 1 1K true 'worker:tag never' '' 'echo %d'" % i
        code, out, err = node.sh("%s && kill -9 %d" % (words, node.pid))
        assert (code, err) == (0, b""), err
        assert node.process and node.process.wait(5) == -9
        shutil.rmtree(str(node.home))
        added.append(out.decode().strip())
        for other in others(cluster.nodes, node):
            missing = set(added) - set(other.states())
            assert not missing, "round %d: %s\n%s" % (i, missing, other.told())
        node.start()
        await_component(cluster.nodes)
    figures.note("add, kill -9, disk gone: %d rounds" % MANY, "0 lost", "0 lost")
    assert {row["id"] for row in await_equal(cluster.nodes)} == set(added)


def test_a_deletion_that_was_acknowledged_survives_too(cluster: Cluster) -> None:
    for i in range(3):
        node = cluster.nodes[i]
        task = node.add("echo", "worker:tag never")
        script = "leoronic_del_task %s && kill -9 %d" % (task, node.pid)
        assert node.sh(script) == (0, b"", b"")
        assert node.process and node.process.wait(5) == -9
        shutil.rmtree(str(node.home))
        other = others(cluster.nodes, node)[0]
        assert other.state(task) == "deleted"
        node.start()
        await_component(cluster.nodes)


def test_after_all_were_killed_the_queue_goes_on_from_the_disks() -> None:
    cluster = Cluster(3, first=61)
    try:
        cluster.start()
        ledger = cluster.ledger
        gated = ["g%d" % i for i in range(4)]
        cluster.nodes[0].add_all([ledger.task(name, gated=True) for name in gated])
        until("they run", lambda: len(ledger.running()) == 4)
        task = cluster.nodes[1].add("echo kept", "worker:tag later")
        at_once([node.kill9 for node in cluster.nodes])
        cluster.start_at_once()
        figures.note("3 restarted at once", "3 s", "%.2f s" % cluster.joined_s)
        assert {row["id"] for row in cluster.nodes[2].rows()} >= {task}
        until("they run again", lambda: set(ledger.running()) == set(gated))
        ledger.open_gate()
        cluster.nodes[2].call("leoronic_add_tag", "later")
        assert cluster.nodes[1].wait() == 0
        ledger.check(gated, extra=gated)
        assert set(ledger.extra().values()) == {1}
    finally:
        cluster.close()


# --- one dies, one stops, one comes -------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_tasks_of_a_killed_node_run_again_elsewhere_and_all_others_once(
    cluster: Cluster, which: int
) -> None:
    ledger, victim = cluster.ledger, cluster.nodes[which]
    survivor = cluster.nodes[which - 1]
    tasks = ["t%d" % i for i in range(6)]
    victim.add_all([ledger.task(name, gated=True) for name in tasks])
    until("all run", lambda: len(ledger.running()) == 6)
    doomed = tasks_of(ledger, victim)
    assert doomed
    killed_at = time.time()
    victim.kill9()
    until("they run again", lambda: set(ledger.extra()) == set(doomed))
    last = max(line.at for line in ledger.lines("start")) - killed_at
    first = min(ledger.running()[name].at for name in doomed) - killed_at
    figures.note(
        "kill -9 of node %d: its tasks start elsewhere" % which,
        "1.2 to 3 s",
        "%.2f to %.2f s" % (first, last),
    )
    ledger.open_gate()
    assert survivor.wait() == 0
    ledger.check(tasks, extra=doomed)
    assert [line.attempt for line in ledger.lines("end", doomed[0])] == [2]
    assert 1.0 <= first and last < TAKE_OVER_S
    await_equal(others(cluster.nodes, victim))


def tasks_of(ledger: Ledger, node: Member) -> List[str]:
    """Give the tasks that run on a node."""
    running = ledger.running().values()
    return [line.task for line in running if line.node.endswith("@" + node.address)]


def test_waiting_tasks_start_once_though_a_node_is_killed_meanwhile(
    cluster: Cluster,
) -> None:
    ledger, victim = cluster.ledger, cluster.nodes[0]
    tasks = ["t%d" % i for i in range(60)]
    victim.add_all([ledger.task(name, 0.3) for name in tasks])
    until("some are over", lambda: len(ledger.lines("end")) > 8)
    at = time.time()
    victim.kill9()
    assert cluster.nodes[1].wait() == 0
    died = [
        line.task
        for line in ledger.lines("start")
        if line.node.endswith("@" + victim.address)
        and (line.task, line.run)
        not in [(end.task, end.run) for end in ledger.lines("end")]
    ]
    late = ended_just_before(ledger, victim, at)
    ledger.check(tasks, extra=died + late)
    figures.note(
        "60 tasks, one node killed meanwhile",
        "once, but for what ran there",
        "%d twice of %d that ran there" % (len(ledger.extra()), len(died + late)),
    )


def ended_just_before(ledger: Ledger, node: Member, at: float) -> List[str]:
    """Give the tasks whose end may not have left the node before it was killed."""
    ends = [line for line in ledger.lines("end") if line.at > at - 0.5]
    return [line.task for line in ends if line.node.endswith("@" + node.address)]


def test_a_planned_stop_hands_its_tasks_back_at_once(cluster: Cluster) -> None:
    ledger, leaver = cluster.ledger, cluster.nodes[0]
    tasks = ["t%d" % i for i in range(6)]
    leaver.add_all([ledger.task(name, gated=True) for name in tasks])
    until("all run", lambda: len(ledger.running()) == 6)
    handed = tasks_of(ledger, leaver)
    began, wall = time.monotonic(), time.time()
    assert leaver.stop() == 0
    took = time.monotonic() - began
    until("they run elsewhere", lambda: set(ledger.extra()) == set(handed))
    last = max(line.at for line in ledger.lines("start")) - wall
    figures.note("planned stop", "2 s", "%.2f s" % took)
    figures.note("planned stop: tasks run elsewhere", "1.5 s", "%.2f s" % last)
    assert took < STOP_S and last < STOP_S
    ledger.open_gate()
    assert cluster.nodes[1].wait() == 0
    ledger.check(tasks, extra=handed)
    # What was handed back doesn't count as an attempt.
    assert {line.attempt for line in ledger.lines("end")} == {1}


def test_a_fourth_joins_while_tasks_run_and_each_starts_once(
    cluster: Cluster,
) -> None:
    ledger = cluster.ledger
    tasks = ["t%d" % i for i in range(100)]
    cluster.nodes[0].add_all([ledger.task(name, 0.4) for name in tasks])
    until("some are over", lambda: len(ledger.lines("end")) > 12)
    fourth = cluster.node("127.0.0.29")
    fourth.start()
    assert cluster.nodes[1].wait() == 0
    ledger.check(tasks)
    ran = [line for line in ledger.lines("start") if line.node.endswith("127.0.0.29")]
    figures.note("a fourth joins under way", "0 twice", "it ran %d of 100" % len(ran))
    assert ran
    await_equal([*cluster.nodes, fourth])


@pytest.mark.parametrize("disk", ["old", "empty"])
def test_a_node_that_was_killed_comes_back_with_its_disk_old_or_empty(
    cluster: Cluster, disk: str
) -> None:
    ledger, node = cluster.ledger, cluster.nodes[2]
    tasks = ["t%d" % i for i in range(8)]
    node.add_all([ledger.task(name, gated=True) for name in tasks[:6]])
    until("six run", lambda: len(ledger.running()) == 6)
    doomed = tasks_of(ledger, node)
    node.kill9()
    cluster.nodes[0].add_all([ledger.task(name, gated=True) for name in tasks[6:]])
    if disk == "empty":
        shutil.rmtree(str(node.home))
    began = time.monotonic()
    node.start()
    await_component(cluster.nodes)
    figures.note(
        "restart with %s disk: joined" % disk,
        "3 s",
        "%.2f s" % (time.monotonic() - began),
    )
    until("all run again", lambda: set(ledger.running()) == set(tasks))
    until("those that died too", lambda: set(ledger.extra()) == set(doomed))
    ledger.open_gate()
    assert node.wait() == 0
    ledger.check(tasks, extra=doomed)
    assert len(await_equal(cluster.nodes)) == 8


# --- who doesn't belong -------------------------------------------------------------


def test_a_wrong_cookie_is_told_in_words_and_nothing_is_said_to_it(
    three: Cluster,
) -> None:
    stranger = three.node("127.0.0.19")
    cookie = Path(stranger.env["LEORONIC_COOKIE_FILE"])
    cookie.write_text("another cookie of another cluster\n")
    stranger.start()
    try:
        before = set(stranger.states())
        task = stranger.add("echo mine")
        assert stranger.wait(task) == 0
        until("it is told there", lambda: "cookie" in stranger.printed())
        until(
            "it is told here",
            lambda: all("127.0.0.19: " in node.printed() for node in three.nodes[:1]),
        )
        time.sleep(2.5)  # neither side goes on about it
        assert stranger.ready() == ["127.0.0.19"]
        assert before == set() and set(stranger.states()) == {task}
        for node in three.nodes:
            assert task not in node.states()
            assert sorted(node.members()) == three.addresses
            told = [t for t in node.printed().splitlines() if "127.0.0.19" in t]
            assert len(told) <= 1, told
        told = [t for t in stranger.printed().splitlines() if "another cookie" in t]
        assert 1 <= len(told) <= 3, stranger.printed()
    finally:
        stranger.close()
        three.all.remove(stranger)


def test_a_cloned_state_directory_becomes_a_node_of_its_own(cluster: Cluster) -> None:
    ledger, origin = cluster.ledger, cluster.nodes[0]
    origin.add_all([ledger.task(name, gated=True) for name in ("a", "b", "c")])
    until("they run", lambda: len(ledger.running()) == 3)
    origin.stop()
    clone = cluster.node("127.0.0.29")
    shutil.copytree(str(origin.home), str(clone.home))
    origin.start()
    await_component(cluster.nodes)
    until("all run", lambda: len(ledger.running()) == 3)
    before = ledger.starts()
    time.sleep(5.5)  # who is up for 5 s is the original, whoever dials whom
    clone.start()
    until("it is told", lambda: "copy of another node" in clone.printed())
    until("it is up again", lambda: clone.sh("leoronic_nodes")[0] == 0)
    await_component([*cluster.nodes, clone])
    time.sleep(2)  # no ping-pong
    await_component([*cluster.nodes, clone])
    assert "copy of another node" not in origin.printed()
    ledger.open_gate()
    assert clone.wait() == 0
    assert ledger.starts() == before
    assert len(await_equal([*cluster.nodes, clone])) == 3


def test_a_node_that_fails_all_it_gets_doesnt_eat_the_queue() -> None:
    with Cluster(2) as cluster:
        good, bad = cluster.nodes
        command = "case $LEORONIC_NODE in *%s) exit 3; esac; sleep 0.1" % bad.address
        good.add_all([command] * 60)
        assert good.wait() == 1
        failed = [row["node"] for row in good.rows() if row["state"] == "failed"]
        assert all(name.endswith("@" + bad.address) for name in failed)
        # 4 have failed, 8 more are with it when the fifth is heard of; 2 while in doubt
        assert 5 <= len(failed) <= 14
        code, out, _ = good.sh("leoronic_doctor")
        assert code == 1 and b"failed at once, those of others don't" in out
