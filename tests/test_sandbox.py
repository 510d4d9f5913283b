"""Tasks on this machine: run by real bash, compared with plain bash, and ended (D13).

A Box is a Sandbox with a selectors loop around it. What a test starts has its own mark
in the environment or the arguments; at the end of each test nothing may be left.
"""

import errno
import hashlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple, Union

import pytest

import keeper
import sandbox
import slots
from excess import LOOK_S
from process import clock
from sandbox import Ended, Job, Refused, Sandbox, Started
from shells import Keeper
from slots import Slot

pytestmark = pytest.mark.timeout(60)

TOP = Path(__file__).resolve().parent.parent
PATIENCE_S = 30.0  # for what takes milliseconds on an idle machine
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith("LEORONIC_")}


class Box:
    """A Sandbox, and the loop that a node would have around it."""

    def __init__(self, base: Path, environ: Optional[Dict[str, str]] = None) -> None:
        self.work, self.home, self.store = base / "work", base / "home", base / "store"
        for directory in (self.work, self.home, self.store):
            directory.mkdir(exist_ok=True)
        self.selector = selectors.DefaultSelector()
        self.seen: List[sandbox.Event] = []
        self.count = 0
        self.box = Sandbox(
            str(self.work),
            str(self.home),
            ENVIRON if environ is None else environ,
            self._watch,
            self._unwatch,
            lambda digest: str(self.store / digest),
            clock,
            umask=0o022,
        )

    def _watch(self, fd: int, call: Callable[[], None]) -> None:
        self.selector.register(fd, selectors.EVENT_READ, call)

    def _unwatch(self, fd: int) -> None:
        self.selector.unregister(fd)

    def turn(self, longest: float = 1.0) -> None:
        due = self.box.tick(clock())
        self.seen += self.box.events()
        wait = longest if due is None else min(longest, due - clock())
        for key, _ in self.selector.select(max(0.0, wait)):
            key.data()
        self.seen += self.box.events()

    def until(self, happened: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not happened():
            assert time.monotonic() < give_up, self.seen
            self.turn(0.05)

    def start(self, command: str, ahead: bool = False, **more: object) -> str:
        self.count += 1
        run = "%s/%d" % (self.home, self.count)
        env = {"LEORONIC_HOME": str(self.home)}
        self.box.start(Job(run, command, env, **more), ahead)  # type: ignore[arg-type]
        return run

    def result(self, run: str) -> Union[Ended, Refused]:
        self.until(lambda: any(e.run == run and self._is_end(e) for e in self.seen))
        (end,) = (e for e in self.seen if e.run == run and self._is_end(e))
        assert not isinstance(end, Started)
        return end

    @staticmethod
    def _is_end(event: sandbox.Event) -> bool:
        return not isinstance(event, Started)

    def run(self, command: str, **more: object) -> Ended:
        end = self.result(self.start(command, **more))
        assert isinstance(end, Ended), end
        return end

    def wait_for(self, name: str) -> str:
        """Let the loop turn until a task has written that file; return its text."""
        path = self.work / name
        self.until(lambda: path.exists() and path.read_text().endswith("\n"))
        return path.read_text().strip()

    def file(
        self, name: str, content: bytes, mode: int = 0o644
    ) -> Tuple[str, str, int, int]:
        digest = hashlib.sha256(content).hexdigest()
        (self.store / digest).write_bytes(content)
        return name, digest, len(content), mode

    def files(self) -> List[str]:
        return sorted(os.listdir(self.work))


@pytest.fixture(autouse=True)
def _plain_signals() -> None:
    """Whoever started pytest in the background ignores these; plain bash would, too."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.box.close()
    # a keeper whose watcher was killed ends by itself, but nobody waits for it
    assert gone(below_here(tmp_path), 5.0), "processes are left"


def is_alive(pid: int) -> bool:
    try:
        text = Path("/proc/%d/stat" % pid).read_text()
    except OSError:
        return False
    return text.rpartition(") ")[2][0] not in "ZX"


def below_here(base: Path) -> List[int]:
    """Living processes, but this one, whose directory or output is below `base`."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        for link in ("cwd", "fd/1", "fd/2"):
            try:
                target = os.readlink("/proc/%s/%s" % (entry, link))
            except OSError:
                continue
            if target.startswith(str(base)) and int(entry) != os.getpid():
                found.append(int(entry))
    return sorted({pid for pid in found if is_alive(pid)})


def gone(pids: List[int], within: float) -> bool:
    give_up = time.monotonic() + within
    while any(map(is_alive, pids)):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def output(end: Ended) -> Tuple[bytes, bytes]:
    return whole(end.out), whole(end.err)


def whole(output: sandbox.Output) -> bytes:
    return Path(output.path).read_bytes() if output.data is None else output.data


def plain_bash(
    command: str, work: Path, environ: Dict[str, str]
) -> Tuple[int, bytes, bytes]:
    done = subprocess.run(
        ["bash", "-c", os.fsencode(command)],
        cwd=str(work),
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
    )
    code = done.returncode
    return (128 - code if code < 0 else code), done.stdout, done.stderr


# ---- the same as plain bash

AWKWARD = [
    "true",
    "false",
    "exit 7",
    "exit 300",
    "exit 137",
    "exit 143",
    "echo out; echo err >&2",
    "printf 'no newline'",
    "echo what's up",
    'echo "open',
    "echo $(",
    "if true",
    "cat <<END\nhere $((1 + 1))\nEND",
    "cat <<END\nnever ended",
    "cat <<'END'\n$literal `text`\nEND\n",
    "echo one\necho two\n",
    "# only a comment",
    "",
    " ",
    ";",
    "echo a \\",
    "echo 'it'\\''s'; echo \"'\"",
    'echo "$0" "$#" "$@"',
    "echo $-",
    "echo $SHLVL; bash -c 'echo $SHLVL'",
    "echo $BASH_SUBSHELL $BASH_SOURCE x${BASH_ENV-unset}x",
    "[ $$ = $BASHPID ] && echo same",
    "set -u; echo $nothing; echo no",
    "echo ${x?is not set}; echo no",
    "set -e; false; echo no",
    "set -euo pipefail; false | true; echo no",
    "set -x; echo traced",
    "set -n; echo no",
    "return 3; echo after",
    "break; continue; echo after $?",
    "caller; echo $?",
    "echo $LINENO\necho $LINENO",
    "trap 'echo bye' EXIT; echo hi",
    "trap 'echo bye' EXIT; exit 4",
    "trap 'echo err' ERR; false",
    "trap 'echo usr; exit 5' USR1; kill -USR1 $$; sleep 5",
    "trap -p",
    "trap '' TERM; kill -TERM $$; echo survived",
    "exec echo replaced",
    "exec false",
    "exec /nonexistent; echo no",
    "exec >&-; echo lost; exit 6",
    "exec 0<&- 1>&- 2>&-; exit 8",
    "exec 3>&1 >/dev/null; echo three >&3",
    "cat; echo $?",
    'read x; echo $? "$x"',
    "cat /dev/stdin | wc -c",
    "ls -1 /proc/self/fd | wc -l",
    "echo >&3",
    "echo >&4",
    "echo >&9",
    "kill -9 $$",
    "kill -TERM $$",
    "kill -INT $$",
    "kill -HUP $$",
    "kill -QUIT $$",
    "kill -PIPE $$",
    "kill -ALRM $$",
    "kill -SEGV $$",
    "kill -USR1 $$",
    "kill 0; echo no",
    "kill -9 0; echo no",
    "sh -c 'kill -9 $$'; echo $?",
    "sh -c 'kill -9 $$'",
    "(exit 9)",
    "! true",
    "true & wait $!; echo $?",
    "sleep 0.01 & wait; echo waited",
    "yes | head -n 1",
    "yes | head -n 1; echo ${PIPESTATUS[*]}",
    "trap -p PIPE; (trap '' PIPE; true); grep Sig[BI] /proc/self/status",
    "umask; umask 777; umask",
    "cd /; pwd; cd - ; pwd",
    'pwd; pwd -P; echo "$PWD" x${OLDPWD-unset}x',
    "declare -F; alias; compgen -A function",
    "ulimit -n 20; ulimit -n",
    "shopt -s nullglob; echo /nothing/*; shopt nullglob",
    "echo *",
    "IFS=:; x=a:b; echo $x",
    "PATH=; ls",
    "nosuchcommand",
    "./nosuchfile",
    "/",
    "readonly x=1; x=2; echo no",
    "unset PATH; type ls; echo $?",
    "f() { echo in f; return 3; }; f; echo $?",
    "function read { echo hijacked; }; read",
    "echo() { builtin echo mine; }; echo x; export -f echo; bash -c 'echo y'",
    "coproc cat; kill $COPROC_PID; wait; echo done",
    "exec {fd}>/dev/null; echo $fd",
    "echo {1..3} {a,b}",
    "printf '\\001\\177\\377\\200'",
    "printf '%q\\n' '\udcff\udc80\x01\x7f\\'",
    "echo '\udce2'\udce2''",
    "echo $'\\t' '\t' '\r'",
    "echo \u00e4\u20ac",
    "TIMEFORMAT=timed; time true; echo $?",
    "let x=0; echo $?",
    "((0)) || echo zero",
    "[[ a == b ]]; echo $?",
    "exec bash -c 'echo $0 $SHLVL'",
    "exit abc",
    "eval 'echo (' ; echo after",
    ". /nonexistent; echo $?",
    "set -o posix; . /nonexistent; echo no",
    "set -- a b; shift 5; echo $?",
    "times >/dev/null; echo $?",
    "history; fc -l; echo $?",
    "bind -l 2>/dev/null >/dev/null; echo $?",
    "x=1 y=2 env | grep -c '^[xy]='",
    "printenv LEORONIC_RUN >/dev/null; echo $?",
    "env | grep -v -e ^_= -e ^LEORONIC_ | sort",
    "set | grep -i -e keeper -e sandbox",
    "declare -p | grep -v -e LEORONIC -e BASH -e PPID -e RANDOM -e SECONDS -e EPOCH"
    " -e PIPESTATUS -e ' _=' -e 'declare -ir' -e FUNCNAME",
    "head -c 70000 /dev/zero; head -c 70000 /dev/zero >&2",
    "exec sleep 0",
    "echo " + "x" * 100000 + " | wc -c",
    ": '" + "\n" * 1000 + "'; echo $LINENO",
]


def comparable(text: bytes) -> bytes:
    """Without process ids, and signals 32 and 33, which glibc's posix_spawn ignores."""
    text = text.replace(b"SigIgn:\t0000000180000000", b"SigIgn:\t0000000000000000")
    return re.sub(rb"( |\b)\d{3,7}(?= +(Killed|Term))", b"PID", text)


def test_awkward_commands_end_as_in_plain_bash(box: Box) -> None:
    different = []
    for command in AWKWARD:
        end = box.run(command)
        environ = dict(ENVIRON, LEORONIC_RUN=end.run, LEORONIC_HOME=str(box.home))
        expected = plain_bash(command, box.work, environ)
        found = (end.exit, *map(comparable, output(end)))
        if found != (expected[0], *map(comparable, expected[1:])):
            different.append((command[:200], found, expected))
    assert not different


NASTY_ENVIRON = {
    "PATH": ENVIRON["PATH"],
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
    "SHLVL": "5",
    "_": "/usr/bin/nothing",
    "OLDPWD": "/tmp",
    "PWD": "/nonexistent",
    "BASH_ENV": "/nonexistent/file",
    "SHELLOPTS": "braceexpand:hashall:noglob",
    "BASHOPTS": "extglob",
    "POSIXLY_CORRECT": "y",
    "TMOUT": "1",
    "IFS": "x",
    "UID": "77",
    "PPID": "1",
    "RANDOM": "4",
    "BASH_XTRACEFD": "1",
    "PS4": "$(echo traced)",
    "a.b": "odd name",
    "with space": "1",
    "REPLY": "mine",
    "number": "mine",
    "BASH_FUNC_read%%": "() { echo hijacked; }",
    "BASH_FUNC_wait%%": "() { echo hijacked; }",
    "BASH_FUNC_echo%%": "() { builtin echo hijacked; }",
    "MULTI": "a\nb'c\"d\\e$(f)`g`",
    "BYTES": "\udcff\udc80",
    "EMPTY": "",
}


@pytest.mark.parametrize("level", ["5", "", "x", None])
def test_the_environment_is_the_nodes_own(tmp_path: Path, level: Optional[str]) -> None:
    environ = {k: v for k, v in NASTY_ENVIRON.items() if k != "SHLVL"}
    if level is not None:
        environ["SHLVL"] = level
    box = Box(tmp_path, environ)
    try:
        commands = ["env -0 | sort -z", "echo $- $SHLVL; set -o", "read x", "echo * $_"]
        commands += ["shopt extglob", "env | grep -c HIJ", "printf '%s' \"$BYTES\""]
        for command in commands:
            end = box.run(command)
            more = {"LEORONIC_RUN": end.run, "LEORONIC_HOME": str(box.home)}
            expected = plain_bash(command, box.work, {**environ, **more})
            # `_` is where the shell was found; PPID and the like are nobody's
            clean = [
                [e for e in text.split(b"\0") if not e.startswith((b"_=", b"RANDOM="))]
                for text in (output(end)[0], expected[1])
            ]
            assert clean[0] == clean[1], command
            assert (end.exit, output(end)[1]) == (expected[0], expected[2]), command
    finally:
        box.box.close()


def test_random_bytes_reach_bash_as_they_are(box: Box) -> None:
    import random

    draw = random.Random(7)
    for _ in range(60):
        raw = bytes(
            draw.choice(b"'\\\"\xe2\x82\xff\x81\x01\x7f\n a") for _ in range(40)
        )
        text = raw.decode("utf-8", "surrogateescape")
        quoted = "'" + text.replace("'", "'\\''") + "'"
        assert output(box.run("printf %s " + quoted))[0] == raw


def test_commands_as_long_as_bash_takes_run_and_longer_ones_are_refused(
    box: Box,
) -> None:
    frame = "echo '' | wc -c"
    longest = "echo '%s' | wc -c" % ("'" * 0 + "x" * (131071 - len(frame)))
    assert box.run(longest).exit == 0
    refused = box.result(box.start(longest + " "))
    assert isinstance(refused, Refused) and "131072 bytes" in refused.why
    assert box.run("echo again").out.data == b"again\n"


def test_what_no_program_can_be_given_is_refused(box: Box) -> None:
    for command in ("echo \0", "echo \ud800"):
        assert isinstance(box.result(box.start(command)), Refused)
    assert box.run("echo fine").exit == 0


def test_nothing_of_a_task_reaches_the_next(box: Box) -> None:
    box.run("cd /; x=1; export y=2; f() { :; }; trap 'echo no' EXIT; umask 0; set -f")
    end = box.run("pwd; echo ${x-}${y-}; declare -F; trap -p; umask; echo $-")
    assert end.out.data == ("%s\n\n0022\nhBc\n" % box.work).encode()


def test_the_users_umask_holds_for_what_tasks_write(box: Box) -> None:
    before = os.umask(0o077)
    try:
        box.run("echo x > made")
    finally:
        os.umask(before)
    assert (box.work / "made").stat().st_mode & 0o777 == 0o644


def test_signals_and_descriptors_are_as_after_login(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    box = Box(tmp_path)
    try:
        box.run("true")
        end = box.run("exec grep -E 'SigBlk|SigIgn' /proc/self/status")
        zero = b"0000000000000000\n"
        assert (
            comparable(end.out.data or b"") == b"SigBlk:\t" + zero + b"SigIgn:\t" + zero
        )
        assert box.run("exec ls -m /proc/self/fd").out.data == b"0, 1, 2, 3\n"
    finally:
        box.box.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR2, before)
        os.close(read)
        os.close(write)


def test_ten_megabytes_of_any_bytes_are_kept_apart_and_whole(box: Box) -> None:
    (box.work / "in").write_bytes(os.urandom(10_000_000))
    end = box.run("cat in & cat in >&2; wait")
    assert end.out.data is None and end.out.path != end.err.path
    assert output(end) == ((box.work / "in").read_bytes(),) * 2
    assert end.out.size == end.err.size == 10_000_000
    again = box.run("echo small; echo err >&2")
    assert output(again) == (b"small\n", b"err\n")
    assert Path(end.out.path).stat().st_size == 10_000_000


def test_output_up_to_64_kib_comes_in_memory(box: Box) -> None:
    for size in (0, 1, 65536):
        end = box.run("head -c %d /dev/zero" % size)
        assert end.out == sandbox.Output(size, b"\0" * size, "")
    end = box.run("head -c 65537 /dev/zero")
    assert end.out.data is None and Path(end.out.path).stat().st_size == 65537


def test_output_can_be_read_while_it_gathers(box: Box) -> None:
    assert box.box.live_output("unknown", "out") is None
    for content in ("first", "second"):
        file = box.file("in.txt", b"x")
        run = box.start("echo %s; echo >up; exec sleep 1000" % content, files=(file,))
        assert box.box.live_output(run, "out") is None
        box.wait_for("up")
        path = box.box.live_output(run, "out")
        assert path and Path(path).read_text() == content + "\n"
        box.box.kill(run, "deleted", 5)
        end = box.result(run)
        assert isinstance(end, Ended) and output(end)[0] == content.encode() + b"\n"
        assert box.box.live_output(run, "out") is None
        (box.work / "up").unlink()


# ---- causes


def test_a_signal_is_told_from_an_exit_with_the_same_number(box: Box) -> None:
    causes = {
        "exit 137": "",
        "exit 139": "",
        "exit 255": "",
        "sh -c 'kill -9 $$'; exit": "",
        "kill -9 $$": "signal KILL",
        "kill -SEGV $$": "signal SEGV",
        "kill -USR1 $$": "signal USR1",
        "kill -TERM $$": "signal TERM",
        "kill -INT $$": "signal INT",
        "exec sh -c 'kill -9 $$'": "signal KILL",
    }
    assert {command: box.run(command).cause for command in causes} == causes


def test_an_exit_is_never_taken_for_a_signal_however_busy_the_machine(box: Box) -> None:
    """bash notes an exit, too, if it reads on while job control is on."""
    runs = [box.start("exit 139") for _ in range(2)]
    for _ in range(300):
        end = box.result(runs.pop(0))
        assert isinstance(end, Ended) and (end.exit, end.cause) == (139, "")
        runs.append(box.start("exit 139"))


def test_times_are_told(box: Box) -> None:
    before = time.time()
    end = box.run("sleep 0.3")
    assert 0.3 <= end.took < PATIENCE_S
    assert before <= end.began < end.ended <= time.time()


def test_a_run_out_of_time_is_stopped(box: Box) -> None:
    end = box.run("echo before; sleep 100; echo after", timeout=0.3)
    assert (end.exit, end.cause) == (143, "time-out after 0.3s")
    assert end.out.data == b"before\n"
    assert box.run("echo next", timeout=2).exit == 0
    assert box.run("exit 3", timeout=0.3).cause == ""


def test_a_stopped_run_never_reports_success(box: Box) -> None:
    end = box.run("trap 'exit 0' TERM; sleep 100 & wait", timeout=0.3)
    assert (end.exit, end.cause) == (143, "time-out after 0.3s")


# ---- D13: what a task started is gone

LASTING = [
    "sleep 1000 & echo $! >pid; exit 3",
    "nohup sleep 1000 & echo $! >pid; exit 3",
    "setsid sleep 1000 & echo $! >pid; exit 3",
    "env -i setsid sleep 1000 & echo $! >pid; exit 3",
    "(env -i setsid sh -c 'echo $$ >pid; exec sleep 1000' &) & sleep 0.3; exit 3",
    "setsid sh -c '(setsid sleep 1000 & echo $! >pid) &'; sleep 0.3; exit 3",
    "sh -c 'sleep 1000 & echo $! >pid' >/dev/null 2>&1 </dev/null; exit 3",
    "coproc sleep 1000; echo $! >pid; disown -a; exit 3",
    "sleep 1000 & echo $! >pid; kill -STOP $!; exit 3",
    "set -m; (sleep 1000; true) & echo $! >pid; exit 3",
]


@pytest.mark.parametrize("command", LASTING)
def test_what_a_task_leaves_running_is_gone_when_it_has_ended(
    box: Box, command: str
) -> None:
    end = box.run(command)
    pid = int((box.work / "pid").read_text())
    assert not is_alive(pid)
    assert (end.exit, end.cause) == (3, "")
    assert box.run("echo next").out.data == b"next\n"


def test_what_ignores_term_is_killed_five_seconds_later(box: Box) -> None:
    end = box.run(
        "(trap '' TERM; echo $BASHPID >pid; sleep 1000; sleep 1000) & sleep 0.2"
    )
    before = end.ended
    assert end.exit == 0 and time.time() - before > 4.5
    assert not is_alive(int((box.work / "pid").read_text()))


def test_what_orphans_print_while_they_end_is_in_the_output(box: Box) -> None:
    end = box.run(
        "(trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.01; done) &"
        " sleep 0.3"
    )
    assert end.out.data == b"up\nbye\n"


KILLED = [
    "echo $$ >pid; sleep 1000",
    "trap '' TERM; echo $$ >pid; sleep 1000; sleep 1000",
    "trap '' TERM INT HUP; env -i setsid sh -c 'trap \"\" TERM; echo $$ >pid;"
    " sleep 1000; :' & wait",
    "echo $$ >pid; kill -STOP $$",
    "kill -STOP $PPID; echo $$ >pid; sleep 1000",
    "sh -c 'sleep 1000 & setsid sleep 1000 &'; echo $$ >pid; exec sleep 1000",
    "(for i in {1..50}; do sleep 1000 & done; wait) & echo $! >pid; wait",
]


@pytest.mark.parametrize("command", KILLED)
def test_a_killed_run_is_gone_with_all_that_it_started(box: Box, command: str) -> None:
    run = box.start(command)
    pid = int(box.wait_for("pid"))
    box.box.kill(run, "deleted", 0.3)
    end = box.result(run)
    assert isinstance(end, Ended) and end.cause == "deleted" and end.exit > 128
    assert not is_alive(pid)
    # nothing but keeper and watcher: all descend from the watcher
    assert box.run("echo next").out.data == b"next\n"


def test_a_run_killed_before_its_shell_is_up_does_not_start(box: Box) -> None:
    run = box.start("touch started")
    box.box.kill(run, "deleted", 5)
    assert box.result(run) == Refused(run, "deleted")
    assert box.files() == []
    assert box.run("echo next").exit == 0


def test_a_run_killed_at_once_ends_as_killed(box: Box) -> None:
    box.run("true")
    for _ in range(20):
        run = box.start("sleep 1000")
        box.until(lambda run=run: any(e.run == run for e in box.seen))
        box.box.kill(run, "deleted", 5)
        end = box.result(run)
        assert isinstance(end, Ended) and (end.exit, end.cause) == (143, "deleted")
        assert end.took < 4


def test_killing_what_is_unknown_or_over_changes_nothing(box: Box) -> None:
    run = box.start("true")
    box.result(run)
    box.box.kill(run, "deleted", 0)
    box.box.kill("unknown", "deleted", 0)
    box.turn(0)
    assert len(box.seen) == 2


def test_stopping_ends_all_runs_and_refuses_new_ones(box: Box) -> None:
    runs = [
        box.start("trap '' TERM; echo >up%d; sleep 1000; sleep 1000" % i)
        for i in range(3)
    ]
    for i in range(3):
        box.wait_for("up%d" % i)
    before = time.monotonic()
    box.box.stop(0.5)
    ends = [box.result(run) for run in runs]
    assert time.monotonic() - before < 10
    assert {e.cause for e in ends if isinstance(e, Ended)} == {"its node stops"}
    assert isinstance(box.result(box.start("true")), Refused)


HOSTILE = [
    "kill -9 $PPID",
    "kill -9 $PPID; sleep 1000",
    "kill -TERM $PPID; sleep 1000",
    "kill -INT $PPID; sleep 0.2",
    "env -i setsid sleep 1000 & echo $! >pid; sleep 0.2; kill -9 $PPID; sleep 1000",
    "(setsid sh -c 'echo $$ >pid; sleep 1000; :' &); sleep 0.2; kill -9 $PPID",
    "kill -9 -$PPID; sleep 1000",
    "watcher=$(ps -o ppid= -p $PPID); kill -9 $watcher $PPID; sleep 1000",
    "kill -9 $(ps -o ppid= -p $PPID); sleep 0.2",
    "echo garbage >/proc/$PPID/fd/1; echo ended abc >/proc/$PPID/fd/1",
    "for fd in 0 1 2 3 4; do : >/proc/$PPID/fd/$fd; done",
    "kill -STOP $PPID; sleep 0.2; kill -CONT $PPID",
]


@pytest.mark.parametrize("command", HOSTILE)
def test_a_task_that_attacks_its_shells_ends_and_the_next_one_runs(
    box: Box, command: str
) -> None:
    (box.work / "pid").write_text("0")
    box.run("true")
    end = box.run(command)
    assert end.exit == 0 or end.exit > 128, end
    assert not is_alive(int((box.work / "pid").read_text()))
    for _ in range(2):
        assert box.run("echo next").out.data == b"next\n"


def test_a_task_that_removes_the_files_of_its_shells_fakes_no_result(box: Box) -> None:
    box.run("true")
    box.run("rm -rf ../home/runs/*")
    ends = [box.result(box.start("echo next; exit 3")) for _ in range(3)]
    for end in ends:
        assert isinstance(end, Refused) or end.exit in (3, 137), end
        if isinstance(end, Ended) and end.exit == 3:
            assert end.out.data == b"next\n"


def test_a_neighbour_of_a_task_that_kills_the_watcher_ends_as_it_should(
    box: Box,
) -> None:
    neighbour = box.start("echo >up; sleep 0.5; echo fine; exit 4")
    box.wait_for("up")
    box.run("kill -9 $(ps -o ppid= -p $PPID)")
    end = box.result(neighbour)
    assert isinstance(end, Ended) and (end.exit, end.out.data) == (4, b"fine\n")


# ---- the death of the node

OWNER = """
import os, sys
sys.path[:0] = [%r, %r]
from pathlib import Path
from test_sandbox import Box
box = Box(Path(sys.argv[1]))
files = [box.file("in.txt", b"x"), box.file("made/b.txt", b"y")]
box.start("cat in.txt; echo $$ >pid0; sleep 1000; :", files=tuple(files[:1]))
box.start(
    "env -i setsid sh -c 'trap \\"\\" TERM HUP; echo $$ >pid1; sleep 1000; :' &"
    " sleep 1000"
)
box.start("(setsid sh -c 'sleep 1000; :' &) & kill -9 $PPID; sleep 1000")
box.start("echo $$ >pid3; sleep 1000; :", files=tuple(files), keep_names=True)
for i in range(4):
    if i != 2:
        box.wait_for("pid%%d" %% i)
print("up", flush=True)
box.until(lambda: False)
""" % (str(TOP), str(TOP / "tests"))


def owner(tmp_path: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=ENVIRON,
    )
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    return process


def test_killing_the_node_takes_its_tasks_with_it(tmp_path: Path) -> None:
    process = owner(tmp_path)
    pids = [pid for pid in below_here(tmp_path) if pid != process.pid]
    assert len(pids) >= 4
    process.kill()
    process.communicate()
    assert gone(pids, 5.0)  # 1 s in D13, on an idle machine
    assert not below_here(tmp_path)


def test_a_fresh_start_removes_what_a_crash_left(tmp_path: Path) -> None:
    process = owner(tmp_path)
    pids = [pid for pid in below_here(tmp_path) if pid != process.pid]
    watchers = [
        pid for pid in pids_with(b"leoronic-watcher") if str(tmp_path) in cmdline(pid)
    ]
    for pid in watchers:  # it must not come to help
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    assert any(map(is_alive, pids))
    (tmp_path / "work" / "own").write_text("the user's")
    box = Box(tmp_path)
    box.box.clean_up()
    assert not below_here(tmp_path)
    assert not [f for f in box.files() if not f.startswith("pid")] != ["own"]
    assert os.listdir(tmp_path / "home" / "runs") == []
    box.box.close()


def cmdline(pid: int) -> str:
    try:
        return Path("/proc/%d/cmdline" % pid).read_bytes().decode()
    except OSError:
        return ""


def pids_with(word: bytes) -> List[int]:
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if word.decode() in cmdline(pid).split("\0")]


def test_cleaning_up_spares_whoever_only_has_the_home_exported(tmp_path: Path) -> None:
    box = Box(tmp_path)
    home = {"LEORONIC_HOME": str(box.home)}
    spared = [
        subprocess.Popen(["sleep", "1000"], env={**ENVIRON, **more})
        for more in (
            home,
            {"LEORONIC_RUN": "x", "LEORONIC_HOME": str(box.home) + "2"},
            {"LEORONIC_RUN": "x"},
        )
    ]
    left = subprocess.Popen(
        ["sleep", "1000"], env={**ENVIRON, **home, "LEORONIC_RUN": "x"}
    )
    try:
        box.box.clean_up()
        assert left.wait(10) == -signal.SIGKILL
        assert [process.poll() for process in spared] == [None] * 3
    finally:
        for process in [*spared, left]:
            process.kill()
            process.wait()
        box.box.close()


# ---- necessary files


def test_files_come_under_unique_names_and_go_with_the_task(box: Box) -> None:
    file = box.file("some dir/in put.tar.gz", b"content\n", 0o755)
    end = box.run(
        "ls; cat 'in put.tar.gz' 'some dir/in put.tar.gz'; stat -c %a 'in put.tar.gz';"
        " echo more >> 'in put.tar.gz'",
        files=(file,),
    )
    assert end.out.data
    name, *rest = end.out.data.decode().splitlines()
    assert name.endswith(".tar.gz") and name != "in put.tar.gz"
    assert rest == ["content", "content", "755"]
    assert box.files() == []
    assert (box.store / file[1]).read_bytes() == b"content\n"


def test_twin_runs_have_copies_of_their_own(box: Box) -> None:
    file = box.file("in", b"1\n")
    runs = [
        box.start("echo x >>in; sleep 0.2; cat in", files=(file,)) for _ in range(3)
    ]
    ends = [box.result(run) for run in runs]
    assert [e.out.data for e in ends if isinstance(e, Ended)] == [b"1\nx\n"] * 3
    assert box.files() == []


def test_kept_names_keep_their_directories_as_long_as_someone_needs_them(
    box: Box,
) -> None:
    (box.work / "there").mkdir()
    files = tuple(
        box.file(name, name.encode())
        for name in ("there/a", "new/deep/b", "/absolute/c", "../up/d", "./e")
    )
    end = box.run("cat there/a new/deep/b c d e", files=files, keep_names=True)
    assert end.out.data == b"there/anew/deep/b/absolute/c../up/d./e", end
    assert box.files() == ["there"] and os.listdir(box.work / "there") == []
    end = box.run("touch new/deep/mine", files=files, keep_names=True)
    assert sorted(os.listdir(box.work / "new" / "deep")) == ["mine"]


def test_a_kept_name_is_shared_and_goes_with_the_last_that_uses_it(box: Box) -> None:
    file = box.file("data/in", b"content")
    other = box.file("data/in", b"other")
    first = box.start(
        "echo >up; while [ ! -e go ]; do sleep 0.01; done",
        files=(file,),
        keep_names=True,
    )
    box.wait_for("up")
    assert box.run("cat data/in", files=(file,), keep_names=True).out.data == b"content"
    assert (box.work / "data/in").exists()
    refused = box.result(box.start("true", files=(other,), keep_names=True))
    assert isinstance(refused, Refused) and "data/in" in refused.why
    assert box.box.may_place("data/in", file[1])
    assert not box.box.may_place("data/in", other[1])
    (box.work / "go").touch()
    box.result(first)
    assert box.files() == ["go", "up"]


def test_a_file_of_the_users_is_never_overwritten_nor_removed(box: Box) -> None:
    (box.work / "same").write_bytes(b"same")
    (box.work / "differs").write_bytes(b"users")
    same, differs = box.file("same", b"same"), box.file("differs", b"other")
    assert box.run("cat same", files=(same,), keep_names=True).out.data == b"same"
    for files in ((differs,), (same, box.file("third", b""), differs)):
        refused = box.result(box.start("true", files=files, keep_names=True))
        assert isinstance(refused, Refused) and "differs" in refused.why
    assert box.files() == ["differs", "same"]
    assert (box.work / "differs").read_bytes() == b"users"
    assert box.box.may_place("same", same[1]) and box.box.may_place("new", same[1])
    assert not box.box.may_place("differs", differs[1])


def test_links_are_not_followed(box: Box, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"x")
    (box.work / "link").symlink_to(outside)
    (box.work / "file").symlink_to(outside / "f")
    for name in ("link/new", "link/f", "file"):
        file = box.file(name, b"x")
        assert isinstance(
            box.result(box.start("true", files=(file,), keep_names=True)), Refused
        )
        assert not box.box.may_place(name, file[1])
        assert not box.box.has_file(name)
    assert os.listdir(outside) == ["f"]


@pytest.mark.parametrize(
    "name",
    ["-rf", "$(id)", "a\nb", "x" * 200, "\udcff.bin", "a;b", "~", "*", "'", "a..."],
)
def test_strange_names_are_taken_literally(box: Box, name: str) -> None:
    file = box.file(name, b"content")
    end = box.run("cat -- *", files=(file,), keep_names=True)
    assert end.out.data == b"content"
    assert box.run("cat -- *", files=(file,)).exit == 0
    assert box.files() == []


LONG = "/".join(["x" * 200] * 20)  # 4 KB, some less than a system call takes


@pytest.mark.parametrize("last", ["", "/" + "y" * 60, "/" + "y" * 250])
def test_a_name_of_four_kilobytes_is_taken_literally_or_refused(
    box: Box, last: str
) -> None:
    file = box.file(LONG + last, b"content")
    for keep_names in (True, False):
        count = "find . -type f | wc -l"
        end = box.result(box.start(count, files=(file,), keep_names=keep_names))
        if isinstance(end, Ended):
            assert end.out.data == b"1\n"
        else:
            assert "too long" in end.why
        assert box.files() == []


def test_names_that_differ_in_case_alone_are_files_of_their_own(box: Box) -> None:
    files = tuple(box.file(name, name.encode()) for name in ("in.txt", "In.txt", "IN"))
    assert box.run("cat in.txt In.txt IN", files=files).out.data == b"in.txtIn.txtIN"
    end = box.run("ls | wc -l; cat in.txt In.txt IN", files=files, keep_names=True)
    assert end.out.data == b"3\nin.txtIn.txtIN"
    assert box.files() == []


@pytest.mark.parametrize("name", ["..", "/", "", ".", "a/..", "a\0b", "x" * 300])
def test_names_that_are_none_are_refused(box: Box, name: str) -> None:
    file = box.file(name, b"content")
    assert isinstance(
        box.result(box.start("true", files=(file,), keep_names=True)), Refused
    )
    assert box.files() == []


def test_a_file_that_is_missing_or_shorter_than_announced_refuses_the_run(
    box: Box,
) -> None:
    good, short = box.file("good", b"x"), box.file("short", b"x")
    for file in (("gone", "0" * 64, 1, 0o644), (*short[:2], 2, 0o644)):
        refused = box.result(box.start("true", files=(good, file)))
        assert isinstance(refused, Refused) and file[0] in refused.why
    assert box.files() == []


def test_the_loop_goes_on_while_a_large_file_is_copied(box: Box) -> None:
    file = box.file("large", b"\0" * 200_000_000)
    run = box.start("stat -c %s large", files=(file,))
    longest = 0.0
    while not any(e.run == run for e in box.seen):
        before = time.monotonic()
        box.turn(0.005)
        longest = max(longest, time.monotonic() - before)
    end = box.result(run)
    assert isinstance(end, Ended) and end.out.data == b"200000000\n"
    assert longest < 1.0
    assert box.files() == []


def test_copying_ends_early_when_the_run_is_killed(box: Box) -> None:
    run = box.start("touch started", files=(box.file("large", b"\0" * 100_000_000),))
    box.box.kill(run, "deleted", 5)
    assert box.result(run) == Refused(run, "deleted")
    assert box.files() == []


# ---- renaming


def rename(command: str, *files: str) -> Tuple[str, List[str]]:
    return sandbox.renames(command, files, lambda i: "U%d" % i)


def test_names_are_replaced_literally_longest_first_and_in_one_pass() -> None:
    assert rename("cat a.txt b", "a.txt", "b") == (
        "cU1t U0 U1".replace("U1t", "at"),
        [],
    )
    assert rename("x d/in.c in.c", "d/in.c") == ("x U0 U0", [])
    assert rename("in.csv in.c", "in.c", "in.csv") == ("U1 U0", [])
    assert rename("U1 a", "a", "U1") == ("U1 U0", [])
    assert rename("a.c abc", "a.c") == ("U0 abc", [])
    assert rename("nothing", "a.c") == ("nothing", [])
    assert rename("nothing") == ("nothing", [])


def test_a_shared_last_part_stays_unless_it_is_a_full_name() -> None:
    assert rename("x/a.c y/a.c a.c", "x/a.c", "y/a.c") == ("U0 U1 a.c", [])
    assert rename("x/a.c a.c", "x/a.c", "a.c") == ("U0 U1", [])
    assert rename("a.c x/a.c", "x/a.c", "x/a.c") == ("U0 U0", [])


def test_a_warning_tells_what_is_glued_to_other_words() -> None:
    command, warnings = rename("echo main.c in.c2 -in.c xin.c", "in.c")
    assert command == "echo maU0 U02 -U0 xU0".replace("maU0", "maU0")
    assert [w.split()[-1] for w in warnings] == ["main.c", "in.c2", "xin.c"]
    assert rename("./in.c 'in.c' in.c;", "in.c")[1] == []


def test_unique_names_keep_the_extension() -> None:
    for name, extension in {
        "a.tar.gz": ".tar.gz",
        "a.txt": ".txt",
        "d.d/a": "",
        ".hidden": "",
        "a.b c": "",
        "a.": "",
        "x/y.c++": ".c++",
        "a.$(id)": "",
    }.items():
        unique = sandbox.unique_name("run", 3, name)
        assert unique.endswith("-3" + extension), (name, unique)
    assert sandbox.unique_name("a", 0, "x") != sandbox.unique_name("b", 0, "x")


# ---- what is there


def test_has_file_stays_inside(box: Box) -> None:
    (box.work / "d").mkdir()
    (box.work / "d" / "f").touch()
    os.mkfifo(str(box.work / "fifo"))
    assert (
        box.box.has_file("d/f") and box.box.has_file("d") and box.box.has_file("./d/f")
    )
    for name in (
        "",
        ".",
        "..",
        "/etc/passwd",
        "../work/d/f",
        "d/g",
        "fifo",
        "a\0",
        "\ud800",
    ):
        assert not box.box.has_file(name)


def test_has_command_looks_on_the_path(box: Box) -> None:
    assert box.box.has_command("bash")
    for name in ("", "nosuchcommand", "/bin/sh", "../bin/sh"):
        assert not box.box.has_command(name)


# ---- the rest


def test_more_runs_than_idle_shells_are_kept_at_once(box: Box) -> None:
    runs = [box.start("sleep 0.3; echo %d" % i) for i in range(8)]
    ends = [box.result(run) for run in runs]
    expected = [b"%d\n" % i for i in range(8)]
    assert [end.out.data for end in ends if isinstance(end, Ended)] == expected
    assert box.run("echo x").exit == 0


def test_a_replaced_working_directory_is_where_tasks_start(box: Box) -> None:
    box.run("true")
    box.work.rename(box.work.parent / "old")
    refused = box.result(box.start("true"))
    assert isinstance(refused, Refused) and "No such file" in refused.why
    box.work.mkdir()
    (box.work / "new").touch()
    assert box.run("ls").out.data == b"new\n"


def test_a_bash_that_does_not_start_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "bash"
    broken.parent.mkdir()
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    path = "%s:%s" % (broken.parent, ENVIRON["PATH"])
    box = Box(tmp_path, {**ENVIRON, "PATH": path})
    refused = box.result(box.start("true"))
    assert isinstance(refused, Refused) and str(broken) in refused.why
    box.box.close()


def test_an_idle_sandbox_asks_for_no_turn(box: Box) -> None:
    box.run("true")
    assert box.box.tick(clock()) is None
    box.start("no such\0thing")
    now = clock()
    assert box.box.tick(now) == now  # somebody has to take the events
    run = box.start("sleep 0.2", timeout=1000)
    box.until(lambda: any(e.run == run for e in box.seen))
    box.turn(0.05)  # a start is told a little later
    due = box.box.tick(clock())
    assert due and due > now + LOOK_S / 2  # at what it prints
    box.until(lambda: any(isinstance(e, Ended) and e.took > 0.2 for e in box.seen))


@pytest.mark.parametrize("step", ["make", "load"])
def test_a_disk_that_hangs_at_a_start_holds_up_no_turn_and_hands_the_run_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner = Keeper if step == "make" else Slot
    hangs, real = threading.Event(), getattr(owner, step)
    if step == "load":  # where a file in memory can't be had
        monkeypatch.setattr(slots, "memory_file", lambda: -1)
        box.run("true")  # its shell waits

    def hanging(*args: object) -> None:
        hangs.wait()
        real(*args)

    monkeypatch.setattr(owner, step, hanging)
    runs = [box.start("touch started"), box.start("touch started")]
    began, slowest = time.monotonic(), 0.0
    while len(box.seen) < (2 if step == "make" else 4):
        before = time.monotonic()
        box.turn(0.05)
        slowest = max(slowest, time.monotonic() - before)
        assert time.monotonic() < began + PATIENCE_S
    assert slowest < 1.0
    for run in runs:
        assert box.result(run) == Refused(run, "the disk of its node doesn't answer")
    hangs.set()
    monkeypatch.undo()
    assert box.run("echo next").out.data == b"next\n"
    assert box.files() == []


def test_a_system_without_files_in_memory_runs_tasks_all_the_same(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "memory_file", lambda: -1)
    for text in (b"one", b"x" * 100000, b"two"):
        assert box.run("echo " + text.decode()).out.size == len(text) + 1
    feeds = list((box.home / "runs").glob("*.feed"))
    assert feeds and all(feed.is_file() and not feed.is_symlink() for feed in feeds)


def test_a_disk_that_hangs_at_an_end_holds_up_no_turn(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, real = threading.Event(), Slot.take_output
    monkeypatch.setattr(Slot, "glance", lambda _: None)
    monkeypatch.setattr(Slot, "take_output", lambda *args: hangs.wait() and real(*args))
    run = box.start("echo late; touch over")
    box.until(lambda: (box.work / "over").exists())
    began = time.monotonic()
    while time.monotonic() < began + 0.5:
        box.turn(0.05)
    assert [e.run for e in box.seen] == [run] and time.monotonic() < began + 1.5
    hangs.set()
    end = box.result(run)
    assert isinstance(end, Ended) and (end.exit, end.out.data) == (0, b"late\n")


def test_an_output_that_cant_be_read_is_said_with_the_end(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Slot, "glance", lambda _: None)
    monkeypatch.setattr(Slot, "take_output", broken)
    end = box.run("echo gone")
    assert (end.exit, end.out) == (0, sandbox.NO_OUTPUT)
    assert end.cause.startswith("its output can't be read: OSError")
    monkeypatch.undo()
    assert box.run("echo next").out.data == b"next\n"


def test_what_is_taken_at_a_glance_is_what_a_thread_would_have_taken(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = slots.GLANCE_BYTES
    commands = [
        "true",
        "echo a",
        "echo b >&2",
        "printf '\\0\\377\\n'",
        "echo c; echo d >&2",
    ]
    commands += ["x=y; echo $x", "echo plain", "false", "echo e; exit 3", "kill -9 $$"]
    commands += [f"head -c {most + more} /dev/zero" for more in (-1, 0, 1)]
    commands += [f"head -c {sandbox.SMALL_OUTPUT_BYTES + 1} /dev/zero", "echo last"]

    def ends() -> List[Tuple[object, ...]]:
        found = [box.run(command) for command in commands * 2]
        both = [[(o.size, o.data) for o in (end.out, end.err)] for end in found]
        return [(end.exit, end.cause, each) for end, each in zip(found, both)]

    glances, real = [], Slot.glance
    monkeypatch.setattr(
        Slot, "glance", lambda slot: glances.append(real(slot)) or glances[-1]
    )
    quick = ends()
    slow = 3 if hasattr(os, "memfd_create") else len(commands) - 2
    assert sum(glance is not None for glance in glances) >= 2 * (len(commands) - slow)
    monkeypatch.setattr(Slot, "glance", lambda _: None)
    assert quick == ends()


def test_what_a_former_task_printed_is_never_shown_as_the_next_ones(box: Box) -> None:
    box.run("echo former")
    seen = set()
    run = box.start("sleep 0.1; echo mine; sleep 0.1")
    while not any(isinstance(e, Ended) and e.run == run for e in box.seen):
        path = box.box.live_output(run, "out")
        seen.add(Path(path).read_bytes() if path else b"")
        box.turn(0.001)
    assert seen == {b"", b"mine\n"}


def test_closing_with_runs_kills_them(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.start("env -i setsid sleep 1000 & echo $! >pid; sleep 1000")
    pid = int(box.wait_for("pid"))
    box.box.close()
    assert gone([pid], 5)
    assert not below_here(tmp_path)
    assert [n for n in os.listdir(tmp_path / "home" / "runs") if n != "environ"] == []


# ---- yielding to other programs


@pytest.mark.parametrize("nice", [0, 7])
def test_all_that_a_task_starts_is_as_nice_as_the_node_was_told(
    box: Box, nice: int
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    box.box.nice = nice
    end = box.run("nice; (nice); setsid nice; ionice 2>/dev/null")
    levels = (end.out.data or b"").decode().split("\n")
    assert levels[:3] == [str(max(nice, own))] * 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    if nice and os.path.exists("/proc/self/autogroup"):
        end = box.run("cat /proc/self/autogroup")  # tasks share their keeper's
        assert output(end)[0].split()[-1] == levels[0].encode()
    if nice and shutil.which("ionice"):
        ask = ["ionice", "-c", "3", "ionice"]  # a machine may have no such classes
        assert levels[3] == subprocess.check_output(ask).decode().strip()


def test_without_ionice_tasks_run_all_the_same(tmp_path: Path) -> None:
    for name in ("bash", "env", "nice"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "box").mkdir()
    box = Box(tmp_path / "box", dict(ENVIRON, PATH=str(tmp_path)))
    box.box.nice = 19
    try:
        assert output(box.run("nice")) == (b"19\n", b"")
    finally:
        box.box.close()
    assert gone(below_here(tmp_path), 5.0)


def test_the_watcher_which_has_to_kill_in_time_is_not_niced(box: Box) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    box.box.nice = 7
    box.run("true")
    watcher = box.box._shells._watcher
    assert watcher and os.getpriority(os.PRIO_PROCESS, watcher.pid) == own


# --- the cgroup of tasks --------------------------------------------------------------


def cgroups(top: Path, line: str) -> Tuple[str, str, str]:
    """Lay a tree out as the kernel does; give runs, its top, and the file of `own`."""
    own = top / "own"
    own.write_text("3:cpu:/a\n" + line + "\n")
    return "/home/x/runs", str(top), str(own)


def test_the_cgroup_of_tasks_is_below_the_nodes_own(tmp_path: Path) -> None:
    name = "leoronic.home.x.runs"
    first = cgroups(tmp_path, "8:pids:/user/1")
    assert keeper.pids_group(*first) == "%s/pids/user/1/%s" % (tmp_path, name)
    second = cgroups(tmp_path, "0::/user/2")
    assert keeper.pids_group(*second) == ""  # there are no cgroups of version 2
    (tmp_path / "cgroup.controllers").write_text("pids")
    assert keeper.pids_group(*second) == "%s/user/2/%s" % (tmp_path, name)
    assert keeper.pids_group("/x", str(tmp_path), "/nonexistent") == ""


def test_a_cgroup_is_made_only_among_cgroups_and_gone_if_it_has_no_pids(
    tmp_path: Path,
) -> None:
    path = tmp_path / "leoronic"
    keeper.make_pids_group(str(path))
    assert not path.exists()  # a folder of another kind
    keeper.join_pids_group(str(path))
    keeper.make_pids_group("")
    keeper.join_pids_group("")
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.subtree_control").mkdir()  # as if it can't be written
    keeper.make_pids_group(str(path))
    assert not path.exists()


def test_what_tasks_may_have_is_what_the_cgroup_above_has_less_some(
    tmp_path: Path,
) -> None:
    path = tmp_path / "leoronic"
    (tmp_path / "cgroup.procs").write_text("")
    path.mkdir()
    for above, mine in (("4000", "3744"), ("100", "75")):
        (tmp_path / "pids.max").write_text(above + "\n")
        (path / "pids.max").write_text("max")
        keeper.make_pids_group(str(path))
        assert (path / "pids.max").read_text() == mine
    (tmp_path / "pids.max").write_text("max\n")
    keeper.make_pids_group(str(path))
    assert 1000 < int((path / "pids.max").read_text()) <= 1 << 22
