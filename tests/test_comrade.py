"""One real node, whole: what a stranger with one old computer sees of it.

A comrade started by `bash leoronic`, asked through leoronic_utilities in a real bash.
What its parts do in every corner, their own tests say; here is what CONTRACT.md
promises, from end to end. Nothing waits by sleeping: `until` looks until a deadline.
"""

import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Set, Tuple

import pytest
from helpers import CHECKOUT, Node, free_port, processes_of

PATIENCE_S = 20.0  # on a busy machine; nothing here takes a second on an idle one
STOP_S = 2.0  # CONTRACT: exit within this
SLACK_S = 2.0  # what a busy machine may add to that
KILLED_S = 1.0  # D13: a killed comrade's tasks are gone by then
PYTHON = os.environ.get("LEORONIC_PYTHON") or sys.executable
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
MARKED_PLACE = "# leoronic_add_tag has_gpu\n"
CRASHES = 12  # rounds of add, kill -9, restart
SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))

Ran = Tuple[int, bytes, bytes]  # code, stdout, stderr


def runs_as(prefix: Sequence[str], *command: str) -> bool:
    """Say whether a command works behind that prefix, for this user on this machine."""
    try:
        done = subprocess.run([*prefix, *command], capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def until(is_so: Callable[[], Any], what: str = "", seconds: float = PATIENCE_S) -> Any:
    """Wait until something is true; give it."""
    deadline = time.monotonic() + seconds
    while True:
        found = is_so()
        if found:
            return found
        assert time.monotonic() < deadline, "not within %g s: %s" % (seconds, what)
        time.sleep(0.01)


class OneNode(Node):
    """A comrade, and what a test asks of it."""

    def __init__(self, **more: Any) -> None:
        super().__init__(python=PYTHON, **more)

    def ask(self, verb: str, *arguments: str, **more: Any) -> Ran:
        """Call a utility; give code, stdout, stderr."""
        words = " ".join(shlex.quote(word) for word in arguments)
        return self.sh("leoronic_%s %s" % (verb, words), **more)

    def add(
        self,
        command: str,
        *flags: str,
        memory: str = "1K",
        cores: str = "1",
        storage: str = "1K",
        concurrency: str = "true",
        conditions: str = "",
        files: str = "",
        name: str = "",
        **more: Any,
    ) -> str:
        """Add a task; give its id."""
        fields = [memory, cores, storage, concurrency, conditions, files, command]
        names = [name] if name else []
        code, out, err = self.ask("add_task", *flags, *fields, *names, **more)
        assert code == 0, err
        return out.decode().strip()

    def wait(self, *ids: str) -> int:
        """Wait for tasks (or all); give leoronic_wait's code."""
        return self.ask("wait", "--timeout", "%d" % PATIENCE_S, *ids)[0]

    def out(self, task: str) -> bytes:
        code, out, err = self.ask("get_output", task)
        assert code == 0, err
        return out

    def err(self, task: str) -> bytes:
        code, out, err = self.ask("get_output", "--stderr", task)
        assert code == 0, err
        return out

    def run(self, command: str, *flags: str, **more: Any) -> bytes:
        """Add a task, wait until it is done, give what it printed."""
        task = self.add(command, *flags, **more)
        assert self.wait(task) == 0, self.row(task)
        return self.out(task)

    def rows(self) -> Dict[str, Dict[str, Any]]:
        code, out, err = self.ask("get_queue", "--json")
        assert (code, err) == (0, b"")
        return {row["id"]: row for row in json.loads(out.decode())}

    def row(self, task: str) -> Dict[str, Any]:
        return self.rows()[task]

    def state(self, task: str) -> str:
        return str(self.row(task)["state"])

    def until_state(self, task: str, state: str) -> None:
        until(lambda: self.state(task) == state, "%s is %s" % (task, state))

    def until_file(self, name: str, text: str = "") -> str:
        """Wait for a file in the working directory that holds text; give it all."""
        path = self.directory / name
        until(lambda: path.exists() and text in path.read_text(), name)
        return path.read_text()

    def pid_in(self, name: str) -> int:
        """Give the pid that a task has written to a file."""
        return int(self.until_file(name, "\n"))

    def run_program(self, *arguments: str, **settings: str) -> Ran:
        """Run `bash leoronic` until it ends, beside this node."""
        done = subprocess.run(
            [*self.prefix, "bash", str(self.program / "leoronic"), *arguments],
            cwd=str(self.directory),
            env=dict(self.env, **settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr


def is_alive(pid: int) -> bool:
    try:
        state = Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def node() -> Iterator[OneNode]:
    with OneNode(env={"LEORONIC_CORES": "2"}) as one:
        yield one


@pytest.fixture
def single() -> Iterator[OneNode]:
    """A node of one core: its tasks run one after the other."""
    with OneNode(env={"LEORONIC_CORES": "1"}) as one:
        yield one


def copy_of_the_folder(parent: Path) -> Path:
    """Copy the program as a user does, to a path with blanks."""
    skip = shutil.ignore_patterns(".*", "__pycache__", "tests")
    program = parent / "a copy of leoronic"
    shutil.copytree(str(CHECKOUT), str(program), ignore=skip)
    return program


# --- starting -------------------------------------------------------------------------


def test_the_ready_line_names_node_address_cores_memory_and_comrades() -> None:
    with OneNode(env={"LEORONIC_CORES": "3", "LEORONIC_MEMORY": "1536M"}) as node:
        name = json.loads(node.ask("nodes", "--json")[1].decode())[0]["name"]
        line = (
            "leoronic: %s is ready at 127.0.0.1:%d, 3 cores, 1.5G of memory; "
            "no other comrade was found yet\n"
        )
        assert node.printed().endswith(line % (name, node.port))
        rest = node.printed()[: -len(line % (name, node.port))]
        assert rest in ("", rest) and "Traceback" not in rest


def test_help_and_version_say_what_is_in_force_and_start_nothing() -> None:
    node = OneNode(env={"LEORONIC_TAGS": "has_gpu fast", "LEORONIC_MEMORY": "512M"})
    try:
        code, out, err = node.run_program("--help")
        assert (code, err) == (0, b"") or b"psutil" in err
        text = out.decode()
        for name in "HOME ADDRESS PORT PEERS DISCOVERY COOKIE_FILE CORES MEMORY TAGS \
                     RELAY_CORE".split():
            assert "LEORONIC_" + name in text
        for found in (str(node.home), str(node.port), "has_gpu fast", "512M", "off"):
            assert found in text
        code, out, _ = node.run_program("--version")
        assert code == 0 and re.match(rb"leoronic \d+\.\d+\n$", out)
        assert not node.home.exists() and os.listdir(str(node.directory)) == []
    finally:
        node.close()


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"]


@pytest.mark.parametrize("redirection", CLOSED)
def test_it_starts_whatever_stdin_stdout_and_stderr_are(redirection: str) -> None:
    node = OneNode()
    start = 'bash "%s/leoronic" %%s >told 2>&1 %s' % (node.program, redirection)
    try:
        for script in (start % "--background", start % "" + " &"):
            assert node.sh(script)[0] == 0
            until(lambda: node.ask("get_tags")[0] == 0, script)
            assert node.run("echo hi; echo ho >&2; cat") == b"hi\n"
            told = node.until_file("told")
            assert "Traceback" not in told and "ignored" not in told
            assert node.ask("stop")[0] == 0
    finally:
        node.ask("stop")
        node.close()


def test_what_stdout_does_not_take_is_told() -> None:
    node = OneNode()
    start = "bash %s/leoronic" % shlex.quote(str(node.program))
    try:
        for option in ("--help", "--version"):
            code, _, err = node.sh("%s %s >/dev/full" % (start, option))
            full = b"leoronic: stdout takes nothing; found: No space left on device"
            assert code == 111 and full in err and b"ignored" not in err
    finally:
        node.close()


WRONG_STARTS = [
    ({"LEORONIC_PORT": "abc"}, [], 100, b"LEORONIC_PORT is abc; it must be"),
    ({"LEORONIC_CORES": "0"}, [], 100, b"LEORONIC_CORES is 0; it must be"),
    ({"LEORONIC_MEMORY": "lots"}, [], 100, b"LEORONIC_MEMORY is lots; it must be"),
    ({"LEORONIC_DISCOVERY": "maybe"}, [], 100, b"it must be on or off"),
    ({"LEORONIC_ADDRESS": "192.0.2.1"}, [], 100, b"LEORONIC_ADDRESS is 192.0.2.1"),
    ({}, ["--what"], 100, b"--what"),
    ({}, ["--background", "x"], 100, b"usage: bash leoronic"),
    ({"LEORONIC_HOME": "/proc/nowhere"}, [], 111, b"/proc/nowhere"),
    ({"LEORONIC_HOME": "/dev/null"}, [], 111, b"/dev/null"),
]


@pytest.mark.parametrize("settings, arguments, code, text", WRONG_STARTS)
def test_a_wrong_start_says_what_is_wrong_and_exits_100_or_111(
    settings: Dict[str, str], arguments: List[str], code: int, text: bytes
) -> None:
    node = OneNode()
    try:
        found, out, err = node.run_program(*arguments, **settings)
        assert (found, out) == (code, b"") and text in err
        assert b"Traceback" not in err and b"Errno" not in err
    finally:
        node.close()


def test_in_the_background_a_wrong_start_has_the_same_code(node: OneNode) -> None:
    other = str(node.top / "other")
    for home, code in ((str(node.home), 100), (other, 111)):
        found, out, err = node.run_program("--background", LEORONIC_HOME=home)
        assert (found, out) == (code, b"")
        assert b"in use" in err if code == 100 else b"is taken" in err


def test_a_second_start_exits_100_and_the_first_is_unaffected(node: OneNode) -> None:
    task = node.add("sleep 600")
    node.until_state(task, "running")
    kept = [node.home / name for name in ("lock", "control", "queue/db")]
    before = [path.read_bytes() for path in kept]
    began = time.monotonic()
    code, out, err = node.run_program()
    assert (code, out) == (100, b"") and b"in use by process %d;" % node.pid in err
    assert time.monotonic() - began < PATIENCE_S
    assert [path.read_bytes() for path in kept] == before
    assert node.row(task)["attempt"] == 1 and node.state(task) == "running"


def test_a_taken_port_is_named_and_exits_111(node: OneNode) -> None:
    code, out, err = node.run_program(LEORONIC_HOME=str(node.top / "other"))
    assert (code, out) == (111, b"")
    assert b"port %d at 127.0.0.1 is taken" % node.port in err
    assert b"LEORONIC_PORT" in err and b"Errno" not in err


def test_in_the_background_it_outlives_its_terminal() -> None:
    node = OneNode()
    try:
        launcher = shlex.quote(str(node.program / "leoronic"))
        pid, terminal = pty.fork()
        if pid == 0:  # a shell in a terminal
            os.chdir(str(node.directory))
            script = "bash %s --background; echo code $?; read _" % launcher
            os.execvpe("bash", ["bash", "-c", script], node.env)
        shown = b""
        while b"code " not in shown:
            shown += os.read(terminal, 4096)
        lines = shown.decode().replace("\r", "").split("\n")
        assert "code 0" in lines[-1] + lines[-2]
        assert any(" is ready at 127.0.0.1:%d," % node.port in line for line in lines)
        said = re.search(r"leoronic: pid (\d+), log (.*)", "\n".join(lines))
        assert said and said.group(2) == str(node.home / "log")
        comrade = int(said.group(1))
        os.close(terminal)  # the window is closed: HUP to all in its session
        os.waitpid(pid, 0)
        assert node.run("ps -o sid= -p %d || :" % comrade).strip() in (
            b"%d" % comrade,
            b"",  # no ps here
        )
        assert node.run("echo alive") == b"alive\n"
        assert os.getsid(comrade) == comrade
        assert node.ask("stop") == (0, b"", b"")
        until(lambda: not is_alive(comrade), "it has stopped")
        assert "stopped" in (node.home / "log").read_text()
    finally:
        node.close()


# --- stopping -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_hands_its_tasks_back_and_exits_0_in_time(
    node: OneNode, number: signal.Signals
) -> None:
    stubborn = node.add("trap '' TERM INT HUP; echo $$ >pid; sleep 600; sleep 600")
    gentle = node.add("sleep 600")
    pid = node.pid_in("pid")
    node.until_state(gentle, "running")
    began = time.monotonic()
    assert node._end(number) == 0
    assert time.monotonic() - began < STOP_S + SLACK_S
    assert not is_alive(pid) and processes_of(node.home) == []
    assert node.ask("nodes")[0] == 3
    node.start()
    node.until_state(stubborn, "running")
    rows = node.rows()  # handed back, not lost: the attempt doesn't count
    assert [rows[task]["attempt"] for task in (stubborn, gentle)] == [1, 1]


def test_without_tasks_it_stops_at_once(node: OneNode) -> None:
    node.run("true")
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < STOP_S


def test_leoronic_stop_stops_it_as_a_signal_does(node: OneNode) -> None:
    task = node.add("sleep 600")
    node.until_state(task, "running")
    began = time.monotonic()
    assert node.ask("stop") == (0, b"", b"")
    assert node.process and node.process.wait(STOP_S + SLACK_S) == 0
    assert time.monotonic() - began < STOP_S  # a task that obeys TERM holds up nobody
    assert not (node.home / "control").exists()
    code, out, err = node.ask("get_queue")
    assert (code, out) == (3, b"") and b"bash leoronic" in err


def test_a_signal_before_it_is_ready_ends_it_without_a_traceback() -> None:
    node = OneNode()
    try:
        for delay_s in (0.1, 0.2, 0.3):  # wherever in its start that is
            process = subprocess.Popen(
                [PYTHON, "-E", "-X", "utf8", str(node.program / "comrade.py")],
                cwd=str(node.directory),
                env=node.env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            until(lambda p=process: os.listdir("/proc/%d/fd" % p.pid), "it runs")
            time.sleep(delay_s)  # the moment to hit is any; nothing is awaited
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode in (0, -signal.SIGTERM)
            assert b"Traceback" not in err
    finally:
        node.close()


# --- the folder -----------------------------------------------------------------------


def test_lines_at_the_marked_place_run_once_it_is_up(tmp_path: Path) -> None:
    program = copy_of_the_folder(tmp_path)
    launcher = program / "leoronic"
    lines = "leoronic_add_tag has_gpu\nfalse\necho said; pwd >where; umask >mask\n"
    lines += "sleep 600 # is ended with the comrade\n"
    assert MARKED_PLACE in launcher.read_text()
    text = launcher.read_text().replace(MARKED_PLACE, MARKED_PLACE + lines)
    launcher.write_text(text)
    with OneNode(program=program) as node:
        assert node.until_file("mask", "\n").strip().endswith("022")
        assert node.ask("get_tags")[1] == b"has_gpu\n"
        assert node.until_file("where") == "%s\n" % node.directory
        assert "said\n" in node.printed()
        assert node.run("true", conditions="worker:tag has_gpu") == b""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_it_runs_as_any_user_from_a_folder_that_is_read_only(tmp_path: Path) -> None:
    check = 'exec "$(type -P "$0")" -c "import sqlite3"'
    pythons = [PYTHON, "/usr/bin/python3"]
    found = [p for p in pythons if runs_as(NOBODY, "bash", "-c", check, p)]
    if not found:
        pytest.skip("nobody can't run an interpreter here")
    node = OneNode(prefix=NOBODY)
    node.env["LEORONIC_PYTHON"] = found[0]
    try:
        program = node.program = copy_of_the_folder(node.top)
        cookie = program / ".leoronic_cookie"
        shutil.copy(str(node.top / "cookie"), str(cookie))
        for path in [node.top, *node.top.rglob("*")]:
            os.chown(str(path), 65534, 65534)
        for path in [program, *program.rglob("*")]:
            path.chmod(0o500 if path.is_dir() else 0o400)
        del node.env["LEORONIC_COOKIE_FILE"]
        listed = sorted(os.listdir(str(program)))
        node.start()
        assert node.run("id -u") == b"65534\n"
        (node.directory / "a file").write_text("kept")
        assert node.run("cat 'a file'", files="a file") == b"kept"
        assert node.stop() == 0
        assert sorted(os.listdir(str(program))) == listed
    finally:
        node.close()


def test_it_starts_with_an_empty_environment_and_no_home() -> None:
    node = OneNode()
    try:
        keep = [
            "LEORONIC_" + name
            for name in "HOME ADDRESS PORT DISCOVERY COOKIE_FILE PYTHON".split()
        ]
        node.env = {name: node.env[name] for name in keep}
        node.prefix = [shutil.which("env") or "/usr/bin/env", "PATH=/usr/bin:/bin"]
        node.start()
        assert node.run('echo "$HOME-$PATH"') == b"-/usr/bin:/bin\n"
    finally:
        node.close()


def test_a_renamed_host_is_told_of_its_former_state() -> None:
    node = OneNode()
    try:
        del node.env["LEORONIC_HOME"]
        (node.top / ".leoronic" / "former-name").mkdir(parents=True)
        host = re.sub("[^A-Za-z0-9._-]", "_", socket.gethostname())
        node.home = node.top / ".leoronic" / host
        node.start()
        assert "former-name" in node.printed() and "renamed" in node.printed()
        assert node.run('echo "$LEORONIC_HOME"') == b"%s\n" % os.fsencode(
            str(node.home)
        )
        node.restart()
        assert "former-name" not in node.printed()
    finally:
        node.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a network namespace")
def test_no_network_is_needed(tmp_path: Path) -> None:
    if not runs_as(["unshare", "-n"], "ip", "link", "set", "lo", "up"):
        pytest.skip("no network namespaces here")
    node = OneNode()
    try:
        del node.env["LEORONIC_ADDRESS"]
        script = """
            ip link set lo up
            bash %s --background && source %s || exit
            leoronic_add_task 1K 1 1K true '' '' 'echo alone' && leoronic_wait &&
            leoronic_get_output "$LEORONIC_ID"
            leoronic_stop
        """
        paths = [shlex.quote(str(node.program / n)) for n in ("leoronic",)]
        paths.append(shlex.quote(str(node.program / "leoronic_utilities")))
        done = subprocess.run(
            ["unshare", "-n", "bash", "-c", script % tuple(paths)],
            cwd=str(node.directory),
            env=node.env,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0 and b"\nalone\n" in done.stdout, done
    finally:
        node.close()


# --- tasks ----------------------------------------------------------------------------


def test_the_three_tasks_of_the_seed_end_as_they_do_in_a_shell(node: OneNode) -> None:
    seed = ["echo hello", "ls nofile", "echo what's up"]
    ids = [node.add(c, memory="1024", storage="1024") for c in seed]
    assert node.wait() == 1  # some failed
    states = [(node.row(i)["state"], node.row(i)["exit"]) for i in ids]
    assert states == [("done", 0), ("failed", 2), ("failed", 2)]
    assert (node.out(ids[0]), node.err(ids[0])) == (b"hello\n", b"")
    assert node.out(ids[1]) == b"" and b"nofile" in node.err(ids[1])
    said = subprocess.run(["bash", "-c", seed[2]], capture_output=True).stderr
    assert node.err(ids[2]) == said != b""


def test_tasks_of_one_core_run_in_the_order_of_their_adding(single: OneNode) -> None:
    for i in range(12):
        single.add("echo %d >>order" % i)
    assert single.wait() == 0
    assert single.until_file("order").split() == [str(i) for i in range(12)]


def test_a_higher_priority_goes_first(single: OneNode) -> None:
    single.add("until [ -e go ]; do sleep 0.02; done")
    for priority in ("-5", "0", "7"):
        single.add("echo %s >>order" % priority, "--priority", priority)
    (single.directory / "go").touch()
    assert single.wait() == 0
    assert single.until_file("order").split() == ["7", "0", "-5"]


SPAN = "echo begin >>log; sleep 0.2; echo end >>log"


def most_at_once(text: str) -> int:
    now = most = 0
    for word in text.split():
        now += 1 if word == "begin" else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    "needs, most",
    [
        ({}, 2),
        ({"concurrency": "false"}, 1),
        ({"cores": "2"}, 1),
        ({"memory": "40M"}, 1),
        ({"memory": "30M"}, 2),
    ],
)
def test_no_more_runs_at_once_than_the_node_has(
    needs: Dict[str, str], most: int
) -> None:
    settings = {"LEORONIC_CORES": "2", "LEORONIC_MEMORY": "64M"}
    with OneNode(env=settings) as node:
        hold = node.add("until [ -e go ]; do sleep 0.02; done", concurrency="false")
        for _ in range(4):
            node.add(SPAN, **needs)
        (node.directory / "go").touch()
        assert node.wait() == 0 and node.state(hold) == "done"
        assert most_at_once(node.until_file("log")) == most


def test_what_no_node_can_ever_hold_waits_and_says_so() -> None:
    settings = {"LEORONIC_CORES": "2", "LEORONIC_MEMORY": "64M"}
    with OneNode(env=settings) as node:
        for needs, text in (
            ({"cores": "3"}, "cores: no node has 3; the largest has 2"),
            ({"memory": "65M"}, "memory: no node has it: needs 65.0 MiB, 64.0 MiB"),
            ({"storage": "4000T"}, "disk: no node has it: needs"),
        ):
            task = node.add("true", **needs)
            assert node.run("echo others go on") == b"others go on\n"
            row = node.row(task)
            assert row["state"] == "waiting" and text in row["reason"]
            assert text.encode() in node.ask("why", task)[1]


# --- conditions -----------------------------------------------------------------------


def test_is_first_waits_for_all_older_tasks(node: OneNode) -> None:
    node.add("until [ -e go ]; do sleep 0.02; done; echo old >>order")
    first = node.add("echo first >>order", conditions="queue:is_first")
    assert node.run("echo young >>order") == b""
    assert node.state(first) == "waiting"
    assert b"is older and not complete" in node.ask("why", first)[1]
    (node.directory / "go").touch()
    assert node.wait() == 0
    assert node.until_file("order").split() == ["young", "old", "first"]


@pytest.mark.parametrize("how, runs", [("exit 0", True), ("exit 3", False)])
def test_all_with_cmd_done_takes_any_end_and_cmd_ok_only_success(
    node: OneNode, how: str, runs: bool
) -> None:
    prepare = "until [ -e go ]; do sleep 0.02; done; %s # prepare-1" % how
    node.add(prepare)
    regex = "prepare-[0-9]+$"
    done = node.add("true", conditions="queue:all_with_cmd_done " + regex)
    good = node.add("true", conditions="queue:all_with_cmd_ok " + regex)
    assert (node.state(done), node.state(good)) == ("waiting", "waiting")
    (node.directory / "go").touch()
    assert node.wait(done) == 0
    if runs:
        assert node.wait(good) == 0
    else:
        assert node.state(good) == "waiting"
        assert b"all_with_cmd_ok" in node.ask("why", good)[1]


def test_queue_done_waits_for_one_task_by_its_id_or_a_prefix(node: OneNode) -> None:
    node.add("until [ -e go ]; do sleep 0.02; done", name="prepare-data")
    after = node.add("true", conditions="queue:done prepare-d")
    assert node.row(after)["conditions"] == ["queue:done prepare-data"]
    assert node.run("true") == b"" and node.state(after) == "waiting"
    (node.directory / "go").touch()
    assert node.wait(after) == 0


def test_worker_conditions_take_effect_when_they_come_true(node: OneNode) -> None:
    tagged = node.add("true", conditions="worker:tag has_gpu")
    filed = node.add("cat data/set.csv", conditions="worker:has_file data/set.csv")
    assert b"worker:tag has_gpu: on no node" in node.ask("why", tagged)[1]
    assert node.run("true") == b""
    assert [node.state(task) for task in (tagged, filed)] == ["waiting"] * 2
    assert node.ask("add_tag", "has_gpu", "b") == (0, b"", b"")
    assert node.wait(tagged) == 0
    assert node.ask("get_tags")[1] == b"b\nhas_gpu\n"
    assert node.ask("del_tag", "has_gpu") == (0, b"", b"")
    assert node.ask("get_tags")[1] == b"b\n"
    later = node.add("true", conditions="worker:tag has_gpu")
    (node.directory / "data").mkdir()
    (node.directory / "data" / "set.csv").write_text("1,2\n")
    assert node.wait(filed) == 0 and node.out(filed) == b"1,2\n"
    assert node.state(later) == "waiting"


def test_has_command_and_is_hold_at_once_or_wait(node: OneNode) -> None:
    name = json.loads(node.ask("nodes", "--json")[1].decode())[0]["name"]
    held = "worker:has_command bash; worker:is 127.0.0.1; worker:is %s" % name
    assert node.run("echo ran", conditions=held) == b"ran\n"
    for text in ("worker:has_command no-such-program", "worker:is 127.0.0.99"):
        task = node.add("true", conditions="worker:has_command bash;" + text)
        assert node.run("true") == b"" and node.state(task) == "waiting"
        assert text in node.row(task)["reason"]


def test_a_catastrophic_regex_freezes_nothing(node: OneNode) -> None:
    for i in range(5):
        node.add("until [ -e go ]; do sleep 0.05; done # %s%d" % ("a" * 4000, i))
    evil = node.add("true", conditions="queue:all_with_cmd_done (a+)+$")
    for _ in range(5):
        began = time.monotonic()
        assert node.ask("get_tags")[0] == 0
        assert time.monotonic() - began < SLACK_S
        node.add("true # %s!" % ("a" * 4000))
    assert node.state(evil) == "waiting"
    (node.directory / "go").touch()
    assert node.wait() == 0


# --- files ----------------------------------------------------------------------------


def test_files_are_copied_under_new_names_and_cleared_away(node: OneNode) -> None:
    elsewhere = node.top / "else where"
    elsewhere.mkdir()
    script = elsewhere / "my tool.sh"
    script.write_text("#!/bin/bash\necho $0 my tool.sh; cat data.csv 2>&1\n")
    script.chmod(0o755)
    (elsewhere / "data.csv").write_text("as added")
    (elsewhere / "data.csv").chmod(0o640)
    command = (
        "until [ -e go ]; do sleep 0.02; done; echo >>data.csv; cat data.csv; "
        "stat -c %a data.csv; echo data.csv; './my tool.sh'; rm 'my tool.sh'; ls"
    )
    files = "data.csv;%s" % script
    task = node.add(command, files=files, cwd=elsewhere)
    node.until_state(task, "running")
    (elsewhere / "data.csv").write_text("changed since")
    (node.directory / "go").touch()
    assert node.wait(task) == 0, node.err(task)
    lines = node.out(task).decode().splitlines()
    assert lines[:2] == ["as added", "640"]
    unique = lines[2]
    assert unique.endswith(".csv") and unique != "data.csv"
    assert re.match(r"\./.+\.sh my tool\.sh$", lines[3])  # inside: nothing is changed
    assert "No such file" in lines[4] and unique in lines[5:]
    assert os.listdir(str(node.directory)) == ["go"]
    assert (elsewhere / "data.csv").read_text() == "changed since"
    assert node.row(task)["files"] == ["data.csv", str(script)]


def test_twins_of_a_task_have_files_of_their_own(node: OneNode) -> None:
    (node.directory / "x.txt").write_text("")
    command = "echo 1 >>x.txt; sleep 0.1; cat x.txt; echo x.txt"
    ids = [node.add(command, files="x.txt") for _ in range(4)]
    assert node.wait() == 0
    outs = [node.out(i).decode().split() for i in ids]
    assert [out[0] for out in outs] == ["1"] * 4 and len({o[1] for o in outs}) == 4
    assert (node.directory / "x.txt").read_text() == ""


def test_a_name_glued_to_a_word_is_replaced_with_a_warning(node: OneNode) -> None:
    (node.directory / "a.py").write_text("")
    fields = ["1K", "1", "1K", "true", "", "a.py", "echo a.pyc a.py"]
    code, out, err = node.ask("add_task", *fields)
    assert code == 0 and err.startswith(b"leoronic: ") and b"a.py" in err
    assert node.wait() == 0
    words = node.out(out.decode().strip()).split()
    assert words[0] == words[1] + b"c" and b"a.py" not in words


def test_keep_names_keeps_them_and_never_overwrites(node: OneNode) -> None:
    elsewhere = node.top / "else where"
    elsewhere.mkdir()
    (elsewhere / "in.txt").write_text("mine")
    command = "cat in.txt; ls"
    add: Dict[str, Any] = {"files": "in.txt", "cwd": elsewhere}
    assert node.run(command, "--keep-names", **add) == b"minein.txt\n"
    assert os.listdir(str(node.directory)) == []
    there = node.directory / "in.txt"
    there.write_text("mine")  # of the same content: used and left
    assert node.run(command, "--keep-names", **add) == b"minein.txt\n"
    assert there.read_text() == "mine"
    there.write_text("other")
    task = node.add(command, "--keep-names", **add)
    assert node.run("true") == b"" and node.state(task) == "waiting"
    assert b"in.txt is free or has the same content" in node.ask("why", task)[1]
    assert there.read_text() == "other"
    there.unlink()
    assert node.wait(task) == 0


def test_a_missing_file_is_named_and_nothing_is_added(node: OneNode) -> None:
    (node.directory / "here").write_text("x")
    fields = ["1K", "1", "1K", "true", "", "here;mis sing", "true"]
    code, out, err = node.ask("add_task", *fields)
    assert (code, out) == (2, b"") and b"found mis sing; " in err
    assert b"No such file" in err and b"None" not in err and b"Errno" not in err
    fields[5] = "."
    code, out, err = node.ask("add_task", *fields)
    assert (code, out) == (2, b"") and b"directory" in err
    assert node.rows() == {}


# --- what a task sees -----------------------------------------------------------------


def test_a_task_over_its_time_is_stopped_with_all_that_it_started(
    node: OneNode,
) -> None:
    command = "sleep 600 & echo $! >pid; setsid sleep 600 & wait"
    task = node.add(command, "--timeout", "0.5")
    pid = node.pid_in("pid")
    assert node.wait(task) == 1 and not is_alive(pid)
    row = node.row(task)
    assert (row["state"], row["reason"]) == ("failed", "time-out after 0.5s")
    assert row["exit"] == 143


def test_a_task_is_tried_again_as_often_as_it_may(node: OneNode) -> None:
    command = "echo $LEORONIC_ATTEMPT | tee -a tries; [ $LEORONIC_ATTEMPT = 3 ]"
    assert node.run(command, "--retries", "4") == b"3\n"
    assert node.until_file("tries").split() == ["1", "2", "3"]
    task = node.add("echo $LEORONIC_ATTEMPT >>never; exit 9", "--retries", "1")
    assert node.wait(task) == 1
    row = node.row(task)
    assert (row["state"], row["attempt"], row["exit"]) == ("failed", 2, 9)
    assert node.until_file("never").split() == ["1", "2"]


def test_a_task_killed_by_a_signal_says_which(node: OneNode) -> None:
    task = node.add("kill -SEGV $$")
    assert node.wait(task) == 1
    row = node.row(task)
    assert (row["exit"], row["reason"]) == (139, "signal SEGV")


def test_a_task_sees_its_environment(node: OneNode) -> None:
    names = "TASK_ID ATTEMPT NODE CORES MEMORY STORAGE HOME".split()
    command = "printf '%s\\n' " + " ".join('"$LEORONIC_%s"' % n for n in names)
    task = node.add(
        command + ' "$OMP_NUM_THREADS"; cat; pwd',
        memory="2K",
        cores="2",
        storage="3K",
    )
    assert node.wait(task) == 0
    name = json.loads(node.ask("nodes", "--json")[1].decode())[0]["name"]
    home, pwd = str(node.home), str(node.directory)
    expected = [task, "1", name, "2", "2048", "3072", home, "2", pwd]
    assert node.out(task).decode().splitlines() == expected


def test_a_task_can_add_tasks(node: OneNode) -> None:
    utilities = shlex.quote(str(node.program / "leoronic_utilities"))
    add = "leoronic_add_task 1K 1 1K true '' '' 'echo from within'"
    child = node.run("source %s; %s" % (utilities, add)).decode().strip()
    assert node.wait(child) == 0 and node.out(child) == b"from within\n"


def test_what_a_task_changes_is_gone_for_the_next(single: OneNode) -> None:
    first = "mkdir sub; cd sub; umask 0; x=1; f() { :; }; export y=1; exec 9>&1; "
    first += "trap 'echo trapped' EXIT; set -f; ulimit -n 100; echo kept >file"
    assert single.run(first) == b"trapped\n"
    second = 'pwd; umask; echo "$x$y"; type f 2>/dev/null; trap -p; echo sub/*'
    out = single.run(second).decode().splitlines()
    assert out == [str(single.directory), "0022", "", "sub/file"]


def test_tasks_have_the_umask_and_the_environment_of_their_node() -> None:
    node = OneNode(env={"OF_THE_NODE": "a b\nc"})
    mask = os.umask(0o027)
    try:
        node.start()
        assert node.run('umask; echo "$OF_THE_NODE"; touch x') == b"0027\na b\nc\n"
        assert (node.directory / "x").stat().st_mode & 0o777 == 0o640
        assert node.run("cat -; read; echo $?") == b"1\n"  # stdin is empty
    finally:
        os.umask(mask)
        node.close()


# --- outputs --------------------------------------------------------------------------


def test_outputs_come_back_byte_for_byte(node: OneNode) -> None:
    binary = bytes(range(256)) * 3 + b"no newline at the end"
    (node.directory / "blob").write_bytes(binary)
    task = node.add("cat blob; cat blob blob >&2")
    nothing = node.add("true")
    big = node.add("head -c 10485760 /dev/zero | tr '\\0' x; echo; echo small >&2")
    assert node.wait() == 0
    assert node.out(task) == binary and node.err(task) == binary * 2
    assert node.out(nothing) == node.err(nothing) == b""
    assert node.out(big) == b"x" * 10485760 + b"\n" and node.err(big) == b"small\n"
    node.restart()
    assert node.out(task) == binary and len(node.out(big)) == 10485761


def test_the_output_of_a_running_task_shows_what_is_there_so_far(
    node: OneNode,
) -> None:
    task = node.add("echo so far; echo wrong >&2; until [ -e go ]; do sleep 0.02; done")
    node.until_state(task, "running")
    until(lambda: node.out(task) == b"so far\n", "its output")
    assert node.err(task) == b"wrong\n"
    (node.directory / "go").touch()
    assert node.wait(task) == 0 and node.out(task) == b"so far\n"


def test_a_task_that_has_not_run_has_no_output(node: OneNode) -> None:
    task = node.add("true", conditions="worker:tag never")
    code, out, err = node.ask("get_output", task)
    assert (code, out) == (1, b"") and b"has not run" in err
    assert node.ask("get_output", "nope")[0] == 1


# --- asking ---------------------------------------------------------------------------


def test_deleting_ends_a_task_wherever_it_is(node: OneNode) -> None:
    waiting = node.add("touch ran", conditions="worker:tag never")
    running = node.add("sleep 600 & echo $! >pid; setsid sleep 600 & wait")
    over = node.add("true")
    pid = node.pid_in("pid")
    assert node.wait(over) == 0
    assert node.ask("del_task", waiting, running) == (0, b"", b"")
    until(lambda: not is_alive(pid), "its process is gone")
    states = [node.state(task) for task in (waiting, running, over)]
    assert states == ["deleted", "deleted", "done"]
    code, _, err = node.ask("del_task", over)
    assert code == 1 and b"is done already" in err
    code, _, err = node.ask("del_task", waiting)
    assert code == 1 and b"is deleted already" in err
    assert node.wait(waiting) == 1
    until(lambda: len(processes_of(node.home)) < 6, "nothing of it is left")


def test_wait_tells_how_they_ended_or_that_time_is_up(node: OneNode) -> None:
    assert node.ask("wait")[0] == 0  # nothing is unfinished
    good, bad = node.add("true"), node.add("false")
    assert node.ask("wait", good)[0] == 0
    code, out, err = node.ask("wait", good, bad)
    assert (code, out) == (1, b"") and bad.encode() in err
    node.add("sleep 600")
    code, out, err = node.ask("wait", "--timeout", "0.1")
    assert (code, out) == (124, b"") and b"time is up; found 1 of 1" in err


def test_the_queue_is_shown_as_a_table_json_and_csv(node: OneNode) -> None:
    task = node.add("echo 'a;b,\"c\"'", "--priority", "3", name="my-task")
    assert node.wait(task) == 0
    table = node.ask("get_queue")[1].decode().splitlines()
    assert table[0].split() == "ID STATE NODE TIME TRY EXIT COMMAND REASON".split()
    assert table[1].split()[:2] == ["my-task", "done"]
    row = node.row(task)
    assert (
        list(row)
        == (
            "id state node attempt exit command added started finished reason "
            "conditions files memory cores storage concurrency priority"
        ).split()
    )
    assert row["added"] <= row["started"] <= row["finished"] <= time.time() + 1
    assert (row["priority"], row["concurrency"], row["memory"]) == (3, True, 1024)
    head, line = node.ask("get_queue", "--csv")[1].decode().splitlines()
    assert head == ",".join(row) and line.startswith("my-task,done,")
    assert node.ask("get_queue", "running")[1].decode().splitlines() == table[:1] or (
        len(node.ask("get_queue", "running")[1].splitlines()) == 1
    )
    assert json.loads(node.ask("get_queue", "--json", "failed")[1].decode()) == []


def test_nodes_shows_what_an_idle_node_has_now(node: OneNode) -> None:
    code, out, err = node.ask("nodes", "--json")
    assert (code, err) == (0, b"")
    (row,) = json.loads(out.decode())
    assert (
        list(row)
        == (
            "address name role state cores cores_free memory_free disk_free running "
            "tags clairvoyant"
        ).split()
    )
    found = os.statvfs(str(node.directory))
    free = found.f_bavail * found.f_frsize
    assert abs(row["disk_free"] - free) < free // 2 + (64 << 20)
    assert row["memory_free"] > 0
    assert (row["role"], row["state"], row["cores_free"]) == ("comrade", "ready", 2)
    task = node.add("sleep 600", cores="2")
    node.until_state(task, "running")
    table = node.ask("nodes")[1].decode().splitlines()
    heads = "ADDRESS NAME ROLE STATE CORES MEMORY DISK RUNNING TAGS"
    assert table[0].split() == heads.split()
    assert table[1].split()[4] == "0/2" and table[1].split()[7] == "1"


def test_a_drained_node_finishes_what_it_runs_and_takes_nothing_new(
    node: OneNode,
) -> None:
    running = node.add("until [ -e go ]; do sleep 0.02; done")
    node.until_state(running, "running")
    assert node.ask("drain") == (0, b"", b"")
    new = node.add("true")
    assert json.loads(node.ask("nodes", "--json")[1].decode())[0]["state"] == "draining"
    (node.directory / "go").touch()
    assert node.wait(running) == 0 and node.state(new) == "waiting"
    assert "draining" in node.row(new)["reason"]
    assert node.ask("undrain", "127.0.0.1") == (0, b"", b"")
    assert node.wait(new) == 0


RIGHT = ["1K", "1", "1K", "true", "", "", "true"]
WRONG = [
    (0, "-1", "MEMORY"),
    (1, "0", "CORES"),
    (2, "1KB", "STORAGE"),
    (3, "maybe", "CONCURRENCY"),
    (4, "queue:all_with_cmd_done (", "CONDITIONS"),
    (4, "worker:has_file ../x", "CONDITIONS"),
    (5, "no/such", "FILES"),
    (6, " ", "COMMANDS"),
    (7, "all", "ID"),
]


def test_wrong_arguments_change_nothing_and_name_the_argument(node: OneNode) -> None:
    for place, text, name in WRONG:
        fields = [*RIGHT, "own-id"]
        fields[place] = text
        code, out, err = node.ask("add_task", *fields)
        assert (code, out) == (2, b"") and name.encode() in err, (name, err)
        assert err.startswith(b"leoronic: ")
    for verb, arguments in (
        ("get_queue", ["sleeping"]),
        ("wait", ["--timeout", "soon"]),
        ("del_task", []),
        ("add_tag", ["two words"]),
        ("nodes", ["--xml"]),
    ):
        assert node.ask(verb, *arguments)[:2] == (2, b"")
    assert node.rows() == {} and node.ask("get_tags")[1] == b""


def test_an_id_of_ones_own_may_be_added_twice_if_it_is_the_same(node: OneNode) -> None:
    assert node.add("echo 1", name="mine") == node.add("echo 1", name="mine") == "mine"
    code, out, err = node.ask("add_task", *RIGHT[:6], "echo 2", "mine")
    assert code in (1, 2) and out == b"" and b"mine" in err
    assert node.wait() == 0 and len(node.rows()) == 1


def test_the_id_is_left_in_a_variable(node: OneNode) -> None:
    script = "leoronic_add_task 1K 1 1K true '' '' true; echo $LEORONIC_ID"
    first, second = node.sh(script)[1].split()
    assert first == second


def test_a_long_list_is_added_whole_or_not_at_all(node: OneNode) -> None:
    good = ["# a comment", ""]
    line = "1K 1 1K true 'worker:tag later' '' 'echo %d # x'"
    good += [line % i for i in range(2000)]
    bad = list(good)
    bad[1500] = "1K 1 1K true 'worker:tag later' '' 'echo open"
    (node.directory / "bad list").write_text("\n".join(bad) + "\n")
    code, out, err = node.ask("add_tasks_from_file", "bad list")
    assert (code, out) == (2, b"") and b"line 1501: " in err
    assert node.rows() == {}
    (node.directory / "good list").write_text("\n".join(good) + "\n")
    code, out, err = node.ask("add_tasks_from_file", "good list")
    assert (code, err) == (0, b"")
    ids = out.decode().split()
    rows = node.rows()
    assert list(rows) == ids and len(set(ids)) == 2000
    commands = [rows[i]["command"] for i in ids]
    assert commands == ["echo %d # x" % i for i in range(2000)]
    node.kill9()
    node.start()
    assert list(node.rows()) == ids


def test_a_list_from_a_string_may_refer_to_its_own_lines(single: OneNode) -> None:
    text = "1K 1 1K true 'queue:done first' '' 'echo second >>order' second\n"
    text += "1K 1 1K true '' '' 'echo first >>order' first\n"
    code, out, err = single.ask("add_tasks_from_str", text)
    assert (code, out) == (2, b"") and b"line 1: " in err  # only earlier lines count
    lines = text.splitlines()
    code, out, err = single.ask("add_tasks_from_str", "\n".join(reversed(lines)))
    assert (code, out, err) == (0, b"first\nsecond\n", b"")
    assert single.wait() == 0
    assert single.until_file("order").split() == ["first", "second"]


# --- crashes --------------------------------------------------------------------------


def test_a_killed_comrade_takes_its_tasks_with_it(node: OneNode) -> None:
    command = "sleep 600 & echo $! >a; setsid sleep 600 & echo $! >b; wait"
    task = node.add(command)
    pids = [node.pid_in("a"), node.pid_in("b")]
    node.until_state(task, "running")
    node.kill9()
    began = time.monotonic()
    until(lambda: not any(map(is_alive, pids)), "its tasks are gone")
    assert time.monotonic() - began < KILLED_S + SLACK_S
    until(lambda: processes_of(node.home) == [], "all that it started is gone")
    assert node.ask("nodes")[0] == 3
    node.start()
    until(lambda: node.row(task)["attempt"] == 2, "it runs again")
    node.until_state(task, "running")


def test_what_was_acknowledged_survives_a_kill_right_after(node: OneNode) -> None:
    added: List[str] = []
    for i in range(CRASHES):
        script = "leoronic_add_task 1K 1 1K true 'worker:tag never' '' 'echo %d'" % i
        code, out, err = node.sh(script + " && kill -9 %d" % node.pid)
        assert code == 0, err
        added.append(out.decode().strip())
        node.kill9()
        node.start()
        assert list(node.rows()) == added
    assert [row["command"] for row in node.rows().values()] == [
        "echo %d" % i for i in range(CRASHES)
    ]


def test_after_five_losses_a_task_is_given_up_with_the_reason(node: OneNode) -> None:
    task = node.add("echo $LEORONIC_ATTEMPT >>tries; sleep 600")
    for attempt in range(1, 6):
        node.until_file("tries", "%d\n" % attempt)
        until(lambda n=attempt: node.row(task)["attempt"] == n, "attempt is known")
        node.until_state(task, "running")
        node.kill9()
        node.start()
    row = node.row(task)
    assert (row["state"], row["reason"]) == ("failed", "lost its node 5 times")
    assert node.run("echo others go on") == b"others go on\n"
    assert node.until_file("tries").split() == list("12345")


def test_a_log_cut_off_beyond_what_was_acknowledged_loses_nothing(
    node: OneNode,
) -> None:
    """A power cut: what was never fsynced is gone, or in part."""
    chance = random.Random(SEED)
    acked = [node.add("true", conditions="worker:tag never") for _ in range(3)]
    wal = node.home / "queue" / "db-wal"
    settled = wal.stat().st_size
    for _ in range(3):
        node.add("echo later", conditions="worker:tag never")
    saved = node.top / "saved"
    os.kill(node.pid, signal.SIGSTOP)
    shutil.copytree(str(node.home), str(saved))
    os.kill(node.pid, signal.SIGCONT)
    whole = wal.stat().st_size
    assert whole > settled
    node.kill9()
    until(lambda: processes_of(node.home) == [], "it is gone")
    for _ in range(3):
        shutil.rmtree(str(node.home))
        shutil.copytree(str(saved), str(node.home))
        cut = chance.randrange(settled, whole)
        os.truncate(str(node.home / "queue" / "db-wal"), cut)
        node.start()
        found = list(node.rows())
        assert found[:3] == acked, "TEST_SEED=%d, cut at %d" % (SEED, cut)
        assert "damaged" not in node.printed()
        assert node.stop() == 0


def test_a_damaged_database_is_set_aside_and_said_so(node: OneNode) -> None:
    ids = [node.add("true # %d" % i) for i in range(20)]
    assert node.wait() == 0
    assert node.stop() == 0
    database = node.home / "queue" / "db"
    with open(str(database), "r+b") as file:
        file.write(b"\xff" * 100)  # its header
    node.start()
    assert "was damaged" in node.printed()
    kept = list(node.home.glob("damaged-*"))
    assert len(kept) == 1 and str(kept[0]) in node.printed()
    assert set(node.rows()) <= set(ids)  # never silently empty: it was said
    assert node.run("echo on") == b"on\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_refuses_clearly_and_works_again_with_room(tmp_path: Path) -> None:
    node = OneNode()
    disk = node.top / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)]
    if subprocess.call(mount, stderr=subprocess.DEVNULL):
        node.close()
        pytest.skip("no mounting here")
    try:
        node.home = disk / "state"
        node.env["LEORONIC_HOME"] = str(node.home)
        node.start()
        # It prints nothing: there is no room for that, and its echo would fail.
        first = node.add("until [ -e go ]; do sleep 0.02; done")
        node.until_state(first, "running")
        filler = disk / "filler"
        with open(str(filler), "wb", 0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        refused = 0
        for i in range(200):  # until what SQLite has in hand is used up as well
            fields = [*RIGHT[:4], "worker:tag never", "", "true # " + "x" * 50000]
            code, out, err = node.ask("add_task", *fields, "full-%d" % i)
            if code:
                refused += 1
                assert (code, out) == (1, b"") and b"no space left" in err.lower()
                assert b"nothing was added" in err
                assert "full-%d" % i not in node.rows()
            if refused == 2:
                break
        assert refused == 2
        before = list(node.rows())
        (node.directory / "data").write_bytes(bytes(100000))
        code, out, err = node.ask("add_task", *RIGHT[:5], "data", "cat data")
        # The copy or the record: which of them finds no room is a matter of bytes.
        assert (code, out) == (1, b"") and b"no space left" in err.lower()
        (node.directory / "go").touch()
        code, _, err = node.ask("wait", first)
        assert (code, err) == (0, b"")
        assert list(node.rows()) == before
        filler.unlink()
        assert node.run("echo again") == b"again\n"
        node.restart()
        assert [task for task in node.rows()][: len(before)] == before
    finally:
        node.stop()
        until(lambda: processes_of(node.home) == [], "it is gone")
        subprocess.check_call(["umount", str(disk)])
        node.close()


# --- leaving nothing, costing nothing -------------------------------------------------


def test_it_leaves_nothing_behind(node: OneNode) -> None:
    (node.directory / "in.txt").write_text("x")
    files = [node.add("cat in.txt", files="in.txt") for _ in range(3)]
    assert node.wait(*files) == 0
    control = int((node.home / "control").read_text().split()[0])
    assert node.stop() == 0
    assert processes_of(node.home) == []
    assert os.listdir(str(node.directory)) == ["in.txt"]
    assert not (node.home / "control").exists()
    assert set(os.listdir(str(node.home / "runs"))) <= {"environ"}
    for address, port in (("127.0.0.1", node.port), ("127.0.0.1", control)):
        with socket.socket() as probe:
            assert probe.connect_ex((address, port)) != 0


def test_the_state_directory_is_private(node: OneNode) -> None:
    node.run("head -c 100000 /dev/zero; sleep 0", storage="1K")
    (node.directory / "f").write_text("x")
    node.run("cat f", files="f")
    assert node.ask("drain")[0] == 0
    for path in [node.home, *node.home.rglob("*")]:
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


def written_by(pid: int) -> int:
    for line in Path("/proc/%d/io" % pid).read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise AssertionError("no write_bytes")


def ticks_of(pid: int) -> int:
    fields = Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wakes_of(pid: int) -> int:
    text = Path("/proc/%d/status" % pid).read_text()
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)
    assert found
    return int(found.group(1))


def test_an_idle_node_writes_nothing_and_does_not_wake(node: OneNode) -> None:
    node.add("true", conditions="queue:done " + node.add("sleep 600"))
    assert node.run("true") == b""
    until(lambda: is_still(node), "it comes to rest")


def is_still(node: OneNode, seconds: float = 1.5) -> bool:
    """Say whether a node did nothing for a while: the thing measured is silence."""

    def seen() -> List[int]:
        pids = processes_of(node.home)
        own = [written_by(node.pid), ticks_of(node.pid), wakes_of(node.pid)]
        return own + [tick for pid in pids for tick in (pid, ticks_of(pid))]

    before = seen()
    time.sleep(seconds)
    return seen() == before


def test_a_client_that_sends_nothing_costs_nobody_anything(node: OneNode) -> None:
    port = int((node.home / "control").read_text().split()[0])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    try:
        assert node.run("echo on") == b"on\n"
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
            stranger.settimeout(PATIENCE_S)
            assert stranger.recv(100) == b""
        assert node.stop() == 0  # nor does it hold up the end
    finally:
        for one in silent:
            one.close()


def open_files(pid: int) -> Set[str]:
    """Give what a process has open; its threads close files while we look."""
    found = set()
    for fd in os.listdir("/proc/%d/fd" % pid):
        try:
            found.add(os.readlink("/proc/%d/fd/%s" % (pid, fd)))
        except FileNotFoundError:
            pass  # closed meanwhile; who listens stays open
    return found


def test_the_ports_it_listens_on_are_the_clusters_and_a_loopback_one() -> None:
    address = "127.0.0.9"
    with OneNode(address=address, port=free_port([address])) as node:
        listening = set()
        inodes = open_files(node.pid)
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and "socket:[%s]" % fields[9] in inodes:
                host, port = fields[1].split(":")
                number = bytes.fromhex(host)
                if sys.byteorder == "little":
                    number = number[::-1]
                listening.add((socket.inet_ntoa(number), int(port, 16)))
        control = int((node.home / "control").read_text().split()[0])
        assert listening == {(address, node.port), ("127.0.0.1", control)}
