"""Calls that a ghost passes on: both ends joined, then real utilities on loopback."""

import hashlib
import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import figures
import pytest
from cluster import Cluster, Member, until
from desk import TOKEN, Answer, Client, Desk, parse, request

import calls
import control
from calls import PATH_BYTES_MAX, PIECE_BYTES, Passing, Serving
from clients import CLIENTS_MAX
from control import Call
from room import COPY_S
from store import Kept

MIB = 1 << 20
SECONDS = 10.0  # for what takes a moment, on a busy machine


# --- both ends, joined ------------------------------------------------------------


class Joined:
    """A ghost's end and its clairvoyant's, and all that goes over the link."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.peer = "k1"
        self.frames: List[Tuple[str, str, Dict[str, Any]]] = []  # on their way
        self.seen: List[str] = []
        self.disk: Dict[str, Any] = {}  # of the ghost: path -> Kept or OSError
        self.store: Dict[str, int] = {}  # of the clairvoyant
        self.fetches_well = True
        self.passing = Passing(
            calls.GhostSeams(lambda: self.peer, self.send, self.keep)
        )
        self.serving = Serving(
            self.desk.control,
            calls.ServingSeams(
                lambda peer: bool(self.peer),
                self.send_back,
                self.store.__contains__,
                self.fetch,
            ),
        )
        acts = self.desk.control.acts._replace(keep=self.keep_there)
        self.desk.control.acts = acts

    def keep_there(self, call: Call, ticket: int, paths: Any) -> None:
        assert self.serving.keep(call, ticket, paths)

    def send(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        assert len(fields.get("body", b"")) <= PIECE_BYTES
        self.frames.append(("served", kind, fields))

    def send_back(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        assert len(fields.get("body", b"")) <= PIECE_BYTES
        self.frames.append(("passed", kind, fields))

    def keep(self, path: str, then: Any) -> None:
        found = self.disk.get(path, OSError("cannot read %s: no such file" % path))
        then(*((found, None) if isinstance(found, Kept) else (None, found)))

    def fetch(self, peer: str, digest: str, size: int, then: Any) -> None:
        if self.fetches_well:
            self.store[digest] = size
        then(self.fetches_well)

    def turn(self) -> None:
        """Deliver until nothing is on its way."""
        while True:
            due = self.desk.control.tick(self.desk.now, True)
            self.serving.flush()
            self.passing.drop_lost()
            self.passing.flush()
            if not self.frames:
                if due == self.desk.now:
                    continue
                return
            to, kind, fields = self.frames.pop(0)
            self.seen.append(kind)
            if to == "served":
                self.serving.on_frame("g1", kind, fields)
            else:
                self.passing.on_frame("k1", kind, fields)

    def ask(self, *args: str) -> Call:
        call = Call(TOKEN)
        assert call.feed(request(args))
        self.passing.pass_on(call, call.args)
        return call

    def answer(self, *args: str) -> Answer:
        call = self.ask(*args)
        got = b""
        while not (call.is_over and not call.out):
            got += call.out
            call.out.clear()
            self.turn()
            assert call.out or call.is_over
        return parse(got + bytes(call.out))


@pytest.fixture
def joined() -> Joined:
    return Joined()


def test_a_call_comes_back_as_if_it_was_made_there(joined: Joined) -> None:
    task = ("1K", "1", "1K", "true", "", "", "echo \udc80 \u20ac")
    added = joined.answer("add_task", *task)
    assert added.code == 0 and len(added.lines) == 1
    listed = joined.answer("get_queue", "--json")
    assert listed == joined.desk.ask("get_queue", "--json")
    assert not joined.passing.calls and not joined.serving.calls


def test_wrong_arguments_keep_their_words_and_codes(joined: Joined) -> None:
    for args in (
        ("add_task", "1K"),
        ("add_tasks_str", "only three words"),
        ("del_task", "nothing"),
        ("get_output", "a", "b"),
        ("get_queue", "wrong"),
        ("drain", "nobody"),
    ):
        there = Client(joined.desk, request(args)).answer
        assert there.code in (1, 2) and joined.answer(*args) == there


def test_a_long_request_goes_in_pieces_one_at_a_time(joined: Joined) -> None:
    lines = ["1K 1 1K true '' '' 'echo %d'" % i for i in range(5000)]
    call = joined.ask("add_tasks_str", "\n".join(lines))
    size = sum(len(line) + 1 for line in lines)
    for _ in range(3):
        assert len(joined.frames) == 1
        to, kind, fields = joined.frames.pop()
        joined.serving.on_frame("g1", kind, fields)
        to, kind, fields = joined.frames.pop()
        joined.passing.on_frame("k1", kind, fields)
    joined.turn()
    assert joined.seen.count("CALL") == -(-size // PIECE_BYTES) - 3
    assert len(joined.desk.node.queue.records) == 5000
    assert not call.is_over  # its ids are more than one piece


def test_who_does_not_read_is_sent_one_piece_and_holds_up_nobody(
    joined: Joined,
) -> None:
    joined.answer("add_tasks_str", "1K 1 1K true '' '' true\n" * 3000)
    slow = joined.ask("get_queue", "--json")
    joined.turn()
    assert len(slow.out) == PIECE_BYTES and joined.seen.count("ANSWER") > 0
    before = len(joined.seen)
    for _ in range(20):
        joined.turn()
    assert len(joined.seen) == before
    (served,) = joined.serving.calls.values()
    assert len(served.call.out) < 2 * control.OUT_BYTES_MAX
    assert joined.answer("get_queue", "done").code == 0
    joined.passing.on_closed(slow)
    joined.turn()
    assert not joined.passing.calls and not joined.serving.calls
    assert not joined.desk.control._turning


def test_files_are_taken_in_at_the_ghost_and_brought_once(joined: Joined) -> None:
    joined.disk["/a"] = Kept("a" * 64, 3, 0o755)
    joined.disk["/b"] = Kept("b" * 64, 0, 0o600)
    task = ("1K", "1", "1K", "true", "", "a;/b", "true")
    assert joined.answer("add_task", *task).code == 0
    (record,) = joined.desk.node.queue.records.values()
    assert [file.mode for file in record.needs.files] == [0o755, 0o600]
    assert joined.store == {"a" * 64: 3, "b" * 64: 0}
    joined.fetches_well = False  # both are there already
    assert joined.answer("add_task", *task).code == 0


@pytest.mark.parametrize(
    "case",
    [
        (OSError("cannot read /a: no such file"), 2, "no such file; found /a;"),
        (calls._error("the disk of the ghost is full", 28), 1, "nothing was added"),
        (Kept("a" * 64, 3, 0o644), 1, "can't be brought to this ghost's comrade"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_as_at_a_comrade(
    joined: Joined, case: Tuple[Any, int, str]
) -> None:
    joined.disk["/a"], code, words = case
    joined.fetches_well = False
    found = joined.answer("add_task", "1K", "1", "1K", "true", "", "/a", "true")
    assert found.code == code and words in found.err[0]
    assert not joined.desk.node.queue.records


def test_a_path_that_no_system_opens_is_not_sent(joined: Joined) -> None:
    path = "/" + "x" * PATH_BYTES_MAX
    found = joined.answer("add_task", "1K", "1", "1K", "true", "", path, "true")
    assert found.code == 2 and "KEEP" not in joined.seen


def test_without_a_clairvoyant_no_comrade_is_reachable(joined: Joined) -> None:
    joined.peer = ""
    found = joined.answer("get_queue")
    assert found.code == 3 and "no comrade is reachable from here" in found.err[0]


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_link_that_breaks_amid_a_call_ends_it_at_both_ends(
    joined: Joined, is_whole: bool
) -> None:
    joined.answer("add_task", "1K", "9", "1K", "true", "", "", "true")
    if is_whole:
        call = joined.ask("wait")
        joined.turn()
        assert joined.serving.calls and not call.is_over
    else:
        call = joined.ask("add_tasks_str", "# " + "x" * 2 * PIECE_BYTES)
    joined.peer = ""
    joined.frames.clear()
    joined.turn()
    told = parse(bytes(call.out))
    words = "done or not" if is_whole else "nothing was done"
    assert told.code == 3 and words in told.err[0]
    assert not joined.serving.calls and not joined.desk.control._watching


def test_what_no_ghost_sends_is_refused(joined: Joined) -> None:
    on_frame = joined.serving.on_frame
    with pytest.raises(ValueError):  # it would stop the comrade
        on_frame("g1", "CALL", {"call": 1, "body": request(["stop"])[len(TOKEN) + 1 :]})
    with pytest.raises(ValueError):
        on_frame("g1", "CALL", {"call": 1, "body": b"more"})
    for number in range(2, CLIENTS_MAX + 1):
        on_frame("g1", "CALL", {"call": number, "body": b"1"})
    with pytest.raises(ValueError):
        on_frame("g1", "CALL", {"call": 0, "body": b"1"})
    on_frame("g1", "KEPT", {"call": 5})  # it was asked for nothing
    on_frame("g1", "HANGUP", {"call": 99999})


# --- real ones --------------------------------------------------------------------


class Ghost(Member):
    """A ghost in a folder of its own; its utilities ask its control port."""

    def command(self) -> List[str]:
        return [self.env["LEORONIC_PYTHON"], str(self.program / "ghost.py")]

    def is_ready(self) -> bool:
        return " is ready, of " in self.printed()


class Haunted(Cluster):
    """Two comrades, and a ghost of the first."""

    def __init__(self, first: int) -> None:
        super().__init__(2, first=first)
        self.ghost = Ghost(
            "127.0.0.%d" % (first + 2),
            self.port,
            self.addresses,
            env=dict(self.env, LEORONIC_TAGS="spooky"),
            python=os.environ["LEORONIC_PYTHON"],
        )
        self.all.append(self.ghost)

    def start(self) -> None:
        super().start()
        self.ghost.launch()
        self.ghost.await_ready()
        until("here", lambda: len(self.nodes[1].members()) == 3)


@pytest.fixture(scope="module")
def haunted() -> Iterator[Haunted]:
    with Haunted(71) as cluster:
        yield cluster


# --- large outputs ----------------------------------------------------------------


@pytest.mark.parametrize("asked", [0, 1])
def test_a_large_output_of_a_ghost_is_found_from_any_comrade(
    haunted: Haunted, asked: int
) -> None:
    node = haunted.nodes[asked]
    command = "head -c %d /dev/zero | tr '\\0' %d" % (MIB, asked)
    task = node.add(command, "worker:tag spooky")
    assert node.wait(task) == 0
    assert node.output(task) == b"%d" % asked * MIB


# --- adding and asking, from the ghost --------------------------------------------


def test_a_task_added_at_a_ghost_is_waited_for_asked_about_and_done(
    haunted: Haunted,
) -> None:
    ghost = haunted.ghost
    task = ghost.add("echo hi; echo oops >&2")
    assert ghost.wait(task) == 0
    assert ghost.output(task) == b"hi\n" and ghost.output(task, "--stderr") == b"oops\n"
    assert ghost.state(task) == "done"
    assert "is done" in ghost.call("leoronic_why", task)
    assert len(ghost.call("leoronic_nodes").splitlines()) == 4
    assert "3 nodes" in ghost.call("leoronic_top").splitlines()[0]
    assert ghost.members()[ghost.address]["role"] == "ghost"
    format_ = "leoronic_task_format"
    assert ghost.call(format_) == haunted.nodes[0].call(format_)


def test_a_task_on_a_ghost_waits_for_no_more_than_its_second_copy(
    haunted: Haunted,
) -> None:
    node = haunted.nodes[0]
    began = time.monotonic()
    task = node.add("true", "worker:is 127.0.0.73")
    assert node.wait(task) == 0
    figures.note("a task of one line on a ghost", "", "%.2f s" % since(began))
    assert since(began) < COPY_S / 2  # what is waited for if no comrade answers


def test_files_of_the_ghosts_machine_come_to_where_the_task_runs(
    haunted: Haunted,
) -> None:
    ghost = haunted.ghost
    (ghost.directory / "a b").write_text("small\n")
    large = os.urandom(20 * MIB)
    (ghost.directory / "large").write_bytes(large)
    (ghost.directory / "run").write_text("#!/bin/sh\necho ran\n")
    (ghost.directory / "run").chmod(0o755)
    (ghost.directory / "none").write_text("")
    command = "cat 'a b'; ./run; cat none; sha256sum <large"
    began = time.monotonic()
    task = ghost.add(command, "worker:is 127.0.0.72", "a b;large;run;none")
    figures.note("a 20 MiB file added at a ghost", "", "%.2f s" % since(began))
    assert ghost.wait(task) == 0
    digest = hashlib.sha256(large).hexdigest()
    assert ghost.output(task) == b"small\nran\n%s  -\n" % digest.encode()


def since(began: float) -> float:
    return time.monotonic() - began


def test_a_list_of_tasks_is_read_on_the_ghosts_machine(haunted: Haunted) -> None:
    ghost = haunted.ghost
    line = "1K 1 1K true 'worker:tag never' '' 'echo %d'"
    lines = ["1K 1 1K true '' '' 'echo %d'" % i for i in range(10)]
    lines += [line % i for i in range(10, 2000)]
    (ghost.directory / "list").write_text("\n".join(lines))
    ids = ghost.call("leoronic_add_tasks_from_file", "list").split()
    assert len(ids) == 2000 and len(set(ids)) == 2000
    ghost.call("leoronic_del_task", *ids[10:])
    assert ghost.wait(*ids[:10]) == 0
    assert [ghost.state(task) for task in ids[9:11]] == ["done", "deleted"]


@pytest.mark.parametrize(
    "words",
    [
        ["leoronic_add_task", "1K"],
        ["leoronic_add_task", "1K", "1", "1K", "true", "", "gone", "true"],
        ["leoronic_add_task", "1K", "1", "1K", "true", "", "/", "true"],
        ["leoronic_add_tasks_from_file", "gone"],
        ["leoronic_add_tasks_from_file", "/"],
        ["leoronic_add_tasks_from_file", "bad list"],
        ["leoronic_add_tasks_from_file"],
        ["leoronic_add_tasks_from_str", "1K 1"],
        ["leoronic_del_task", "zzz"],
        ["leoronic_get_output", "zzz"],
        ["leoronic_get_queue", "zzz"],
        ["leoronic_wait", "--timeout"],
        ["leoronic_wait", "--timeout", "0.1", "zzz"],
        ["leoronic_why"],
        ["leoronic_nodes", "x"],
        ["leoronic_add_tag"],
        ["leoronic_add_tag", "-x"],
        ["leoronic_del_tag", "never"],
        ["leoronic_get_tags", "x"],
        ["leoronic_drain", "nobody"],
        ["leoronic_drain", ""],
        ["leoronic_undrain", "a", "b"],
        ["leoronic_stop", "now"],
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(
    haunted: Haunted, words: List[str]
) -> None:
    script = " ".join(map(shlex.quote, words))
    answers = []
    for node in (haunted.nodes[0], haunted.ghost):
        (node.directory / "bad list").write_text("# one\n1K 1 1K maybe '' '' true\n")
        code, out, err = node.sh(script)
        told = err.decode().replace(str(node.directory), "HERE")
        answers.append((code, out, told))
    assert answers[0] == answers[1] and answers[0][0] in (1, 2)


def test_a_sweep_at_a_ghost_sends_the_ghosts_files(haunted: Haunted) -> None:
    ghost = haunted.ghost
    for name in ("one v.csv", "two.csv"):
        (ghost.directory / name).write_text(name)
    code, out, err = ghost.sh(
        "leoronic_add_sweep --send 1K 1 1K true '' '' 'cat {}; printf %s {/.}' -- *.csv"
    )
    ids = out.decode().split()
    assert (code, err, len(ids)) == (0, b"", 2)
    assert ghost.wait(*ids) == 0
    assert [ghost.output(task) for task in ids] == [b"one v.csvone v", b"two.csvtwo"]


def test_the_settings_in_force_are_those_of_the_node_that_is_asked(
    haunted: Haunted,
) -> None:
    for node in (haunted.nodes[0], haunted.ghost):
        rows = {
            row["name"]: row
            for row in json.loads(node.call("leoronic_config", "--json"))
        }
        for name, value, origin in (
            ("LEORONIC_ADDRESS", node.address, "environment"),
            ("LEORONIC_HOME", str(node.home), "environment"),
            ("LEORONIC_NICE", "0", "default"),
        ):
            assert (rows[name]["value"], rows[name]["origin"]) == (value, origin)
    helped = subprocess.run(
        ["bash", str(node.program / "leoronic"), "--help"],
        env=dict(haunted.nodes[0].env),
        stdout=subprocess.PIPE,
    ).stdout.decode()
    told = haunted.nodes[0].call("leoronic_config")
    assert told and helped.endswith(told)
    assert haunted.nodes[0].sh("leoronic_config x")[0] == 2


@pytest.mark.parametrize("runs_on", ["127.0.0.71", "127.0.0.73"])
def test_a_task_is_followed_from_any_node_wherever_it_runs(
    haunted: Haunted, runs_on: str
) -> None:
    gate = haunted.ghost.top / ("gate " + runs_on)
    text = "echo one; until test -e %s; do sleep 0.05; done; echo two; exit 3"
    task = haunted.ghost.add(text % shlex.quote(str(gate)), "worker:is " + runs_on)
    followers = []
    for node in (*haunted.nodes, haunted.ghost):
        call = 'source "$0"; leoronic_get_output --follow ' + task
        words = ["bash", "-c", call, str(node.program / "leoronic_utilities")]
        followers.append(subprocess.Popen(words, env=node.env, stdout=subprocess.PIPE))
    for follower in followers:
        assert follower.stdout and follower.stdout.readline() == b"one\n"
    gate.write_text("")
    for follower in followers:
        assert follower.communicate(timeout=SECONDS) == (b"two\n", None)
        assert follower.returncode == 0


def test_tags_and_draining_are_the_ghosts_own(haunted: Haunted) -> None:
    ghost, node = haunted.ghost, haunted.nodes[1]
    ghost.call("leoronic_add_tag", "cold", "pale")
    ghost.call("leoronic_del_tag", "pale")
    assert ghost.call("leoronic_get_tags").split() == ["cold", "spooky"]
    assert "cold" not in haunted.nodes[0].call("leoronic_get_tags")
    task = ghost.add("true", "worker:tag cold")
    assert ghost.wait(task) == 0
    assert ghost.call("leoronic_retry", "last") == task + ".r1\n"
    assert ghost.call("leoronic_wait", "last") == ""
    for drained, options, words in (
        (ghost, ["--timeout", "20"], []),
        (node, ["--timeout", "20"], [node.address]),
        (ghost, [], ["127.0.0.73"]),
    ):
        ghost.call("leoronic_drain", *options, *words)
        await_state(node, drained.address, "draining")
        ghost.call("leoronic_undrain", *words)
        await_state(node, drained.address, "ready")


def await_state(node: Member, address: str, state: str) -> None:
    until(state, lambda: node.members()[address]["state"] == state)


def test_a_large_answer_reaches_who_asks_the_ghost(haunted: Haunted) -> None:
    ghost = haunted.ghost
    command = "head -c %d /dev/zero | tr '\\0' x" % (4 * MIB)
    for where in ("127.0.0.71", "127.0.0.72", "127.0.0.73"):
        task = ghost.add(command + "; : " + where, "worker:is " + where)
        assert ghost.wait(task) == 0
        began = time.monotonic()
        assert ghost.output(task) == b"x" * 4 * MIB
        figures.note("4 MiB of output read at a ghost", "", "%.2f s" % since(began))


def test_a_client_that_goes_away_disturbs_nobody(
    haunted: Haunted,
) -> None:
    ghost, node = haunted.ghost, haunted.nodes[0]
    task = ghost.add("true", "worker:tag never")
    waiting = asking(ghost, "leoronic_wait " + task)
    time.sleep(0.5)
    waiting.kill()
    waiting.wait()
    ghost.call("leoronic_del_task", task)
    assert ghost.state(task) == "deleted"
    assert "Traceback" not in node.told() + ghost.told()


def asking(node: Member, script: str) -> "subprocess.Popen[bytes]":
    """Start a utility and don't wait for it."""
    utilities = str(node.program / "leoronic_utilities")
    return subprocess.Popen(
        ["bash", "--norc", "-c", 'source "$0"\n' + script, utilities],
        cwd=str(node.directory),
        env=node.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_task_on_a_ghost_can_add_a_task(haunted: Haunted) -> None:
    utilities = shlex.quote(str(haunted.ghost.program / "leoronic_utilities"))
    adds = "source %s; leoronic_add_task 1K 1 1K true '' '' 'echo inner'" % utilities
    task = haunted.nodes[1].add(adds, "worker:tag spooky")
    assert haunted.nodes[1].wait(task) == 0
    inner = haunted.nodes[1].output(task).decode().strip()
    assert haunted.nodes[1].wait(inner) == 0
    assert haunted.nodes[1].output(inner) == b"inner\n"


# --- when something goes away -----------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Haunted]:
    with Haunted(81) as cluster:
        yield cluster


def test_a_clairvoyant_that_is_killed_ends_a_wait_with_3_and_the_next_serves(
    cluster: Haunted,
) -> None:
    ghost, (first, second) = cluster.ghost, cluster.nodes
    task = ghost.add("true", "worker:tag never")
    until("known", lambda: task in second.states())
    waiting = asking(ghost, "leoronic_wait " + task)
    time.sleep(0.5)
    assert waiting.poll() is None
    first.kill9()
    _, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 3
    assert b"no comrade is reachable from here" in err and b"done or not" in err

    def is_served() -> bool:
        return ghost.sh("leoronic_get_queue >/dev/null")[0] == 0

    until("another clairvoyant", is_served)
    second.kill9()

    def is_alone() -> Optional[bytes]:
        code, _, err = ghost.sh("leoronic_get_queue >/dev/null")
        return err if code == 3 else None

    assert b"no comrade is reachable from here; " in until("alone", is_alone)
    assert ghost.call("leoronic_get_tags") == "spooky\n"


def test_stop_ends_the_ghost_and_nobody_else(cluster: Haunted) -> None:
    ghost, node = cluster.ghost, cluster.nodes[0]
    began = time.monotonic()
    ghost.call("leoronic_stop")
    assert ghost.process is not None and ghost.process.wait(SECONDS) == 0
    assert since(began) < 2.5
    assert not Path(str(ghost.home), "control").exists()
    assert len(node.ready()) == 2
    assert ghost.sh("leoronic_nodes")[0] == 3
