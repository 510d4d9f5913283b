"""Ghosts, for real: their clairvoyants, their tasks, and what becomes of both."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import List, Set

import pytest
from cluster import Cluster, Member, until
from haunts import Ghost, Haunted, relays_of
from helpers import CHECKOUT

import addresses
import ghost as program
import settings
import shelf
from addresses import Sweep
from decoding import decode
from effects import WantFile
from record import File, Needs, Record, encode

SLACK_S = 3.0  # of a busy machine, beyond what is promised


def test_a_ghost_takes_tasks_with_files_and_gives_their_outputs_back():
    with Haunted(2, 1) as haunted:
        first, second = haunted.nodes
        (ghost,) = haunted.ghosts
        row = second.members()[ghost.address]
        assert (row["role"], row["state"], row["cores"]) == ("ghost", "ready", 2)
        assert "ghost of " in second.call("leoronic_nodes")
        assert "clairvoyant" in first.members()[first.address]["tags"]
        assert first.members()[first.address]["cores"] == 3  # one is for the relay
        assert "clairvoyant" in first.call("leoronic_get_tags")

        (ghost.directory / "there.txt").write_text("here\n")
        big = first.directory / "big"
        big.write_bytes(os.urandom(3 << 20))
        tasks = [
            second.add("echo $LEORONIC_NODE; echo err >&2", "worker:tag ghost1"),
            second.add("cat there.txt", "worker:has_file there.txt"),
            second.add("pwd", "worker:is " + ghost.address),
            first.add("wc -c < big", "worker:tag ghost1", "big"),
            second.add("head -c 200000 /dev/zero", "worker:tag ghost1"),
        ]
        assert second.wait(*tasks) == 0
        assert second.output(tasks[0]).endswith(b"@%s\n" % ghost.address.encode())
        assert first.output(tasks[0], "--stderr") == b"err\n"
        assert second.output(tasks[1]) == b"here\n"
        assert second.output(tasks[2]) == b"%s\n" % os.fsencode(str(ghost.directory))
        assert second.output(tasks[3]) == b"%d\n" % (3 << 20)
        assert second.output(tasks[4]) == bytes(200000)
        assert os.listdir(str(ghost.directory)) == ["there.txt"]


def test_which_comrade_a_ghost_goes_to():
    with Cluster(3, 8) as cluster:  # 127.0.0.8, .9, .10: as numbers, not as words
        top = cluster.nodes[0].top
        wanted = {"": 8, "1": 9, "5": 10, "127.0.0.9": 9}
        ghosts = [
            Ghost(top, cluster.nodes[0], n, list(reversed(cluster.addresses)))
            for n in range(1, 5)
        ]
        try:
            for ghost, argument in zip(ghosts, wanted):
                ghost.start(*filter(None, [argument]))
            for ghost, last in zip(ghosts, wanted.values()):
                node = cluster.nodes[last - 8]
                until(
                    "%s at %d" % (ghost.env, last),
                    lambda g=ghost, n=node: (
                        Haunted.clairvoyant(g, n) == n.address  # type: ignore[misc]
                    ),
                )
        finally:
            for ghost in ghosts:
                ghost.close()


@pytest.mark.parametrize("argument", ["-1", "1.2.3", "old1", "1 2"])
def test_a_wrong_argument_is_told_in_words(argument, tmp_path):
    env = dict(os.environ, HOME=str(tmp_path), LEORONIC_DISCOVERY="off")
    done = subprocess.run(
        [env["LEORONIC_PYTHON"], str(CHECKOUT / "ghost.py"), argument],
        env=env,
        cwd=str(tmp_path),
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 100
    assert argument in done.stderr.decode() and "Traceback" not in done.stderr.decode()


def test_a_ghost_without_a_cookie_says_where_to_put_it(tmp_path):
    env = dict(os.environ, HOME=str(tmp_path), LEORONIC_DISCOVERY="off")
    env["LEORONIC_COOKIE_FILE"] = str(tmp_path / "no cookie")
    done = subprocess.run(
        [env["LEORONIC_PYTHON"], str(CHECKOUT / "ghost.py")],
        env=env,
        cwd=str(tmp_path),
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 100
    assert str(tmp_path / "no cookie") in done.stderr.decode()


def test_its_tasks_go_on_when_its_clairvoyant_is_killed():
    with Haunted(3, 1) as haunted:
        first, second, third = haunted.nodes
        (ghost,) = haunted.ghosts
        ledger = haunted.ledger
        ids = third.add_all(
            [ledger.task("t%d" % i, gated=True) for i in range(2)], "worker:tag ghost1"
        )
        until("both run", lambda: len(ledger.running()) == 2)
        first.kill9()
        took = haunted.await_attached(ghost, second)
        assert took < 5 + SLACK_S
        time.sleep(2)
        ledger.open_gate()
        assert third.wait(*ids) == 0
        ledger.check(["t0", "t1"])


def test_what_ended_while_nobody_was_there_is_told_later():
    with Haunted(1, 1) as haunted:
        (node,) = haunted.nodes
        (ghost,) = haunted.ghosts
        task = node.add(
            haunted.ledger.task("t", 2) + "; echo done", "worker:tag ghost1"
        )
        until("it runs", lambda: haunted.ledger.running())
        node.stop()
        until("the end is on the ghost's disk", ghost.kept)
        ghost.kill9()
        ghost.start()
        time.sleep(1)
        node.start()
        assert node.wait(task, seconds=30) == 0
        assert node.output(task) == b"done\n"
        haunted.ledger.check(["t"])


def test_a_relay_that_is_killed_alone_costs_nothing():
    with Haunted(2, 2) as haunted:
        first, second = haunted.nodes
        ledger = haunted.ledger
        names = ["t%d" % i for i in range(4)]
        ids = second.add_all(
            [ledger.task(name, gated=True) for name in names], "worker:tag spooky"
        )
        until("all run", lambda: len(ledger.running()) == 4)
        (relay,) = relays_of(first)
        os.kill(relay, signal.SIGKILL)
        until("another is started", lambda: relays_of(first) not in ([], [relay]))
        for ghost in haunted.ghosts:
            haunted.await_attached(ghost, first)
        ledger.open_gate()
        assert second.wait(*ids) == 0
        ledger.check(names)
        (relay,) = relays_of(first)
        first.kill9()
        until("it goes with main", lambda: not os.path.exists("/proc/%d" % relay), 3)


def test_a_killed_ghosts_tasks_run_elsewhere_and_a_stopped_ones_come_back_at_once():
    with Haunted(2, 2) as haunted:
        first, second = haunted.nodes
        ledger = haunted.ledger
        names = ["t%d" % i for i in range(4)]
        ids = second.add_all(
            [ledger.task(name, gated=True) for name in names], "worker:tag spooky"
        )
        until("all run", lambda: len(ledger.running()) == 4)
        victim, other = haunted.ghosts
        mine = {
            name
            for name, line in ledger.running().items()
            if victim.address in line.node
        }
        assert len(mine) == 2
        second.call("leoronic_add_tag", "spooky")
        at = time.time()
        victim.kill9()
        until("again", lambda: set(ledger.extra()) == mine)
        again = [line.at - at for line in ledger.lines("start") if line.at > at]
        assert 1.0 < min(again) and max(again) < 3.0 + SLACK_S
        began = time.monotonic()
        assert other.stop() == 0
        assert time.monotonic() - began < 2.0 + SLACK_S
        until("all again", lambda: len(ledger.extra()) == 4)
        ledger.open_gate()
        assert second.wait(*ids) == 0
        rows = {row["id"]: row["attempt"] for row in second.rows()}
        assert sorted(rows.values()) == [1, 1, 2, 2]  # handed back: that is no try


def test_a_ghost_can_be_drained_and_its_task_deleted_from_anywhere():
    with Haunted(2, 1) as haunted:
        second = haunted.nodes[1]
        (ghost,) = haunted.ghosts
        name = second.members()[ghost.address]["name"]
        task = second.add("sleep 60", "worker:tag ghost1")
        until("it runs", lambda: second.state(task) == "running")
        second.call("leoronic_drain", name)
        until(
            "it drains",
            lambda: second.members()[ghost.address]["state"] == "draining",
        )
        late = second.add("echo late", "worker:tag ghost1")
        second.call("leoronic_del_task", task)
        until("it is stopped", lambda: second.members()[ghost.address]["running"] == 0)
        assert second.state(late) == "waiting"
        assert "it is draining" in second.call("leoronic_why", late)
        second.call("leoronic_undrain", name)
        assert second.wait(late) == 0


def test_a_ghost_leaves_a_comrade_that_is_stuck_and_keeps_its_task():
    with Haunted(2, 1) as haunted:
        first, second = haunted.nodes
        (ghost,) = haunted.ghosts
        task = second.add(haunted.ledger.task("t", gated=True), "worker:tag ghost1")
        until("it runs", lambda: haunted.ledger.running())
        os.kill(first.pid, signal.SIGSTOP)
        try:
            took = haunted.await_attached(ghost, second)
            assert took < 10 + SLACK_S
        finally:
            os.kill(first.pid, signal.SIGCONT)
        haunted.ledger.open_gate()
        assert second.wait(task) == 0
        haunted.ledger.check(["t"])


def test_it_goes_on_to_the_next_when_its_clairvoyant_is_stopped():
    with Haunted(2, 1) as haunted:
        first, second = haunted.nodes
        (ghost,) = haunted.ghosts
        task = second.add(haunted.ledger.task("t", gated=True), "worker:tag ghost1")
        until("it runs", lambda: haunted.ledger.running())
        assert first.stop() == 0
        assert haunted.await_attached(ghost, second) < 5 + SLACK_S
        assert "clairvoyant" in second.members()[second.address]["tags"]
        haunted.ledger.open_gate()
        assert second.wait(task) == 0
        haunted.ledger.check(["t"])
        assert [row["attempt"] for row in second.rows()] == [1]


def test_ctrl_c_hands_back_what_runs_and_ends_with_0():
    with Haunted(2, 1) as haunted:
        second = haunted.nodes[1]
        (ghost,) = haunted.ghosts
        second.add("sleep 60", "worker:tag ghost1")
        until("it runs", lambda: set(second.states().values()) == {"running"})
        assert ghost.process
        began = time.monotonic()
        ghost.process.send_signal(signal.SIGINT)
        assert ghost.process.wait(10) == 0
        assert time.monotonic() - began < 2.0 + SLACK_S
        until("it waits", lambda: set(second.states().values()) == {"waiting"}, 2)


def test_what_ended_while_all_comrades_were_gone_is_told_to_the_first_that_is_back():
    with Haunted(2, 1) as haunted:
        first, second = haunted.nodes
        (ghost,) = haunted.ghosts
        said = haunted.ledger.task("t", gated=True) + "; echo said; echo err >&2"
        task = second.add(said, "worker:tag ghost1")
        until("it runs", lambda: haunted.ledger.running())
        first.kill9()
        second.kill9()
        haunted.ledger.open_gate()
        until("it has ended", lambda: haunted.ledger.lines("end"))
        second.start()
        assert second.wait(task) == 0
        assert second.output(task) == b"said\n"
        assert second.output(task, "--stderr") == b"err\n"
        haunted.ledger.check(["t"])
        assert [row["attempt"] for row in second.rows()] == [1]


# A comrade that gives no output away, as if it died before anybody had asked for it.
GIVES_NOTHING = """
_on_frame = Transfers.on_frame

def _on_all_but_one(self, peer, frame):
    if frame.kind is not Kind.OUTPUT_WANT:
        _on_frame(self, peer, frame)

Transfers.on_frame = _on_all_but_one
"""


def test_what_a_task_printed_is_found_at_its_ghost_when_its_clairvoyant_is_gone():
    haunted = Haunted(3, 1)
    first, second, third = haunted.nodes
    (ghost,) = haunted.ghosts
    first.program = program_with(first.top, "transfer", GIVES_NOTHING)
    with haunted:
        task = second.add("echo said; echo err >&2", "worker:tag ghost1")
        assert second.wait(task) == 0
        assert first.output(task) == b"said\n"  # there it is, and at the ghost
        time.sleep(1)  # by then it knows that the end is kept, and has forgotten it
        first.kill9()
        haunted.await_attached(ghost, second, seen_by=third)
        assert third.output(task) == b"said\n"  # by way of its new clairvoyant
        assert second.output(task, "--stderr") == b"err\n"


# --- the relay's core -------------------------------------------------------------

has_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, one of them for a relay",
)


def program_with(top: Path, module: str, code: str) -> Path:
    """Copy the program, with an addition to a module."""
    program = top / "program"
    program.mkdir()
    for pattern in ("*.py", "leoronic", "leoronic_utilities"):
        for path in CHECKOUT.glob(pattern):
            shutil.copy(str(path), str(program))
    with (program / (module + ".py")).open("a") as file:
        file.write("\n%s\n" % code)
    return program


def cores_of_tasks(node: Member) -> Set[int]:
    """Give the cores on which a task of a node may run."""
    tell = "import os; print(*os.sched_getaffinity(0))"
    command = '"%s" -c "%s"' % (node.env["LEORONIC_PYTHON"], tell)
    task = node.add(command, "worker:is " + node.address)
    assert node.wait(task) == 0
    return set(map(int, node.output(task).split()))


@has_cores
def test_a_core_is_the_relays_while_there_are_ghosts_and_given_back_then():
    every = os.sched_getaffinity(0)
    haunted = Haunted(1, 1)
    (node,) = haunted.nodes
    (ghost,) = haunted.ghosts
    node.program = program_with(node.top, "relaying", "IDLE_S = 1.0")
    with haunted:
        (relay,) = relays_of(node)
        assert os.sched_getaffinity(relay) == {max(every)}
        assert node.members()[node.address]["cores"] == 3
        assert cores_of_tasks(node) == every - {max(every)}
        assert ghost.stop() == 0
        until("the relay has ended", lambda: relays_of(node) == [])
        until("it is back", lambda: node.members()[node.address]["cores"] == 4)
        assert cores_of_tasks(node) == every
        assert "clairvoyant" not in node.members()[node.address]["tags"]


@has_cores
def test_no_core_is_the_relays_if_the_user_doesnt_want_it():
    every = os.sched_getaffinity(0)
    with Haunted(1, 1, env={"LEORONIC_RELAY_CORE": "off"}) as haunted:
        (node,) = haunted.nodes
        (relay,) = relays_of(node)
        assert os.sched_getaffinity(relay) == every
        assert node.members()[node.address]["cores"] == 4
        assert cores_of_tasks(node) == every


def test_two_ghosts_of_one_machine_take_a_home_each():
    with Cluster(1) as cluster:
        (node,) = cluster.nodes
        ghosts = [Ghost(node.top, node, n, cluster.addresses) for n in (1, 2)]
        try:
            for ghost in ghosts:
                del ghost.env["LEORONIC_HOME"]
                ghost.start()
                until("ready", lambda ghost=ghost: "is ready" in ghost.printed())
            homes = sorted(path.name for path in (node.top / ".leoronic").iterdir())
            host = os.uname().nodename.partition(".")[0]
            assert homes == [host + "-ghost1", host + "-ghost2"]
            tasks = [node.add("pwd", "worker:tag ghost%d" % n) for n in (1, 2)]
            assert node.wait(*tasks) == 0
            # Without the comrade's home, the utilities there find the first ghost.
            code, out, _ = node.sh("leoronic_get_tags", env={"LEORONIC_HOME": ""})
            assert (code, out.split()) == (0, [b"ghost1", b"spooky"])
        finally:
            for ghost in ghosts:
                assert ghost.stop() == 0


def lonely_ghost(tmp_path: Path) -> program.Ghost:
    env = {"HOME": str(tmp_path), "LEORONIC_ADDRESS": "127.0.0.31"}
    lonely = program.Ghost(settings.read_settings(env, str(CHECKOUT), "ghost"), "")
    lonely.log.path = os.devnull
    return lonely


def test_a_ghost_that_finds_no_comrade_says_so(tmp_path):
    env = dict(os.environ, HOME=str(tmp_path), LEORONIC_DISCOVERY="off")
    env.update(LEORONIC_ADDRESS="127.0.0.31", LEORONIC_COOKIE_FILE=str(tmp_path / "c"))
    (tmp_path / "c").write_text("x" * 64)
    for argument in ("127.0.0.99", "0"):
        ghost = subprocess.Popen(
            [env["LEORONIC_PYTHON"], str(CHECKOUT / "ghost.py"), argument],
            env=env,
            cwd=str(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with ghost:
            assert ghost.stderr
            told = ghost.stderr.readline().decode()
            while "cookie" in told:
                told = ghost.stderr.readline().decode()
            ghost.send_signal(signal.SIGTERM)
        tried = argument if argument != "0" else "no address"
        assert "no comrade answers yet; found %s to try" % tried in told


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", ">/dev/full"])
def test_a_ghost_works_whatever_stdin_stdout_and_stderr_are(redirection):
    with Cluster(1) as cluster:
        (node,) = cluster.nodes
        ghost = Ghost(node.top, node, 1, cluster.addresses)
        words = [ghost.env["LEORONIC_PYTHON"], str(CHECKOUT / "ghost.py")]
        script = 'exec "$@" ' + redirection
        process = subprocess.Popen(
            ["bash", "-c", script, "ghost", *words],
            env=ghost.env,
            cwd=str(ghost.directory),
        )
        try:
            task = node.add("echo hi; echo ho >&2", "worker:tag ghost1")
            assert node.wait(task) == 0
            assert node.output(task) == b"hi\n"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_a_ghost_that_was_started_anew_is_in_the_list_once_also_when_lost():
    with Haunted(1, 1) as haunted:
        (node,), (ghost,) = haunted.nodes, haunted.ghosts
        for _ in range(2):
            ghost.kill9()
            ghost.start()
            haunted.await_attached(ghost, node)
        ghost.kill9()
        until("lost", lambda: node.members()[ghost.address]["state"] == "lost")
        code, out, _ = node.sh("leoronic_nodes")
        assert code == 0 and out.count(b"\n" + ghost.address.encode()) == 1, out


def test_a_ghost_whose_comrades_all_have_other_addresses_tries_its_neighbours(tmp_path):
    lonely = lonely_ghost(tmp_path)
    lonely.choice.begin([], ["192.168.7.5"], 0.0)  # of former days
    lonely.node = SimpleNamespace(peer="")  # type: ignore[assignment]
    lonely._beacons = SimpleNamespace(  # type: ignore[assignment]
        want_read=lambda now: False, tick=lambda now, is_lonely: None
    )
    lonely._sweep = Sweep(lambda: iter(["192.168.7.1"]))
    tried: List[str] = []
    lonely._probe = lambda effect: tried.append(effect.address)
    lonely._look_around(0.0)
    assert tried == []
    lonely._look_around(addresses.LONELY_SWEEP_S)
    assert tried == ["192.168.7.1"]


def test_a_ghost_drops_files_of_other_days_before_its_disk_is_full(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shelf, "FLOOR", 1000)
    lonely = lonely_ghost(tmp_path)
    lonely.store.open()
    lonely._open_sandbox()
    lonely._open_core()
    try:
        kept = [
            lonely.files.keep_bytes(letter * 1000).digest for letter in (b"a", b"b")
        ]
        lonely.node.files.update(kept)
        record = Record("1-" + "0" * 16, "true", Needs(), 1, "old1")
        record.needs = Needs(files=(File("f", kept[0], 1000, 0o644),))
        lonely.node.queue.join(decode(encode(record)))
        lonely.shelf.free = lambda: 1000 * (2 - lonely.files.has(kept[1]))
        lonely._want_file(WantFile("0" * 64, 1000, ""))
        assert list(lonely.files.all()) == [kept[0]]  # a task that waits here needs it
        assert lonely.node.files == {kept[0]}
    finally:
        lonely.sandbox.close()
        lonely.store.close()


def test_a_flood_of_answers_is_read_in_sips(tmp_path):
    lonely = lonely_ghost(tmp_path)
    lonely.node = SimpleNamespace(peer="")  # type: ignore[assignment]
    heard = SimpleNamespace(rests=False, fileno=lambda: 0, tick=lambda now, lonely: 9.0)
    heard.want_read = lambda now: not heard.rests
    lonely._beacons = heard  # type: ignore[assignment]
    lonely._sweep = SimpleNamespace(  # type: ignore[assignment]
        due=None, tick=lambda now, is_lonely: ""
    )
    watched: List[bool] = []
    lonely.watch = lambda *_: watched.append(True)
    lonely.unwatch = lambda *_: watched.append(False)
    for heard.rests in (False, True, True, False):
        assert 9.0 in lonely._look_around(1.0)
    assert watched == [True, False, True]
