"""Plain commands, which a keeper runs itself, end exactly as under `bash -c`.

The slow way is bash itself, started anew; what is compared is status, output, errors
and what a program sees of its process.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Dict, Iterator, List

import pytest
from test_sandbox import (
    AWKWARD,
    ENVIRON,
    NASTY_ENVIRON,
    Box,
    comparable,
    output,
    plain_bash,
)

import runs
import sandbox
from taskscript import Scripts

pytestmark = pytest.mark.timeout(60)

PLAIN = [
    "true",
    ":",
    "false",
    "false and some words",
    "echo",
    "echo hello",
    " echo  two   words ",
    "echo -n -e 'a\\tb\\c' x",
    "echo 'quoted; $HOME `ls` \"\\' \"it's\" a'b'\"c\"d",
    "echo a=b --x=y 100% user@host a,b:c ./d+e \"!\" '#' '~' '*'",
    "printf %s-%d a 1",
    "printf '%s|%q\\n' one 'two words' three",
    "printf '%d\\n' x 010 0x1f",
    "printf",
    "printf -v x y",
    "printf '%'",
    "printf '%z'",
    "/bin/true",
    "/bin/echo a 'b c'",
    "ls -1 /proc/self/fd",
    "ls /nonexistent",
    "readlink /proc/self/fd/0",
    "grep -E 'SigBlk|SigIgn|SigCgt' /proc/self/status",
    "cat",
    "cat in.txt",
    "cat nonexistent",
    "./program one 'two words'",
    "./bad-interpreter x",
    "sh -c 'kill -9 $$'",
    "sh -c 'kill -TERM $$'",
    "sh -c 'kill -SEGV $$'",
    "sh -c 'exit 137'",
    "sh -c 'echo out; echo err >&2; exit 5'",
    "sh -c 'umask; ulimit -n; ulimit -c; pwd'",
    "sh -c 'trap'",
    "bash -c 'echo $- $0 $# $SHLVL $BASH_SUBSHELL; set -o; trap -p; declare -F'",
    "sleep 0.01",
    "env nosuchprogram",
    "head -c 70000 /dev/zero",
    "dd if=/dev/zero bs=1 count=1 status=none",
    "nice",
    "id",
    "dirname /a/b/c",
]

NOT_PLAIN = [
    "",
    " ",
    "echo $x",
    "echo `x`",
    "echo a; echo b",
    "echo a && echo b",
    "echo a > b",
    "echo a | cat",
    "echo a & wait",
    "echo a\necho b",
    "echo *",
    "echo a?",
    "echo [a]",
    "echo ~",
    "echo {a,b}",
    "echo a\\b",
    'echo "a\\"b"',
    'echo "$x"',
    'echo "`x`"',
    "echo # x",
    "echo !x",
    "echo 'open",
    'echo "open',
    "echo (",
    "x=1",
    "x=1 echo a",
    "'echo' a",
    "ech'o' a",
    "! true",
    "exec true",
    "exit 3",
    "return",
    "kill -l",
    "test -o monitor",
    "[ a ]",
    "type ls",
    "cd /",
    "printf '%(now)T'",
    "echo \u00e4",
    "echo '\udcff'",
    "echo '\x01'",
    "nosuchcommand",
    "./nosuchfile",
    "./no-shebang",
    "./not-executable",
    "/",
    ".",
    "echo " + "x" * 5000,
]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    # Behind `&` of a script they are ignored; a keeper's tasks get the default again.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    box = Box(tmp_path)
    try:
        yield box
    finally:
        box.box.close()


def is_plain(box: Box, command: str) -> bool:
    return runs.script_of(sandbox.Job("one", command, {}), box.box._scripts)[1]


def differing(box: Box, commands: List[str]) -> List[object]:
    """Those of the commands that don't end as in plain bash."""
    found: List[object] = []
    for command in commands:
        end = box.run(command)
        environ = dict(ENVIRON, LEORONIC_RUN=end.run, LEORONIC_HOME=str(box.home))
        expected = plain_bash(command, box.work, environ)
        seen = (end.exit, *map(comparable, output(end)))
        if seen != (expected[0], *map(comparable, expected[1:])):
            found.append((command, seen, expected))
    return found


def make_programs(work: Path) -> None:
    def script(name: str, text: str, mode: int = 0o755) -> None:
        (work / name).write_text(text)
        (work / name).chmod(mode)

    script("program", '#!/bin/sh\necho "$0" "$@" "$#"; env | sort\n')
    script("bad-interpreter", "#!/nonexistent/interpreter\n")
    script("no-shebang", 'echo "$0" $- $SHLVL\n')
    script("not-executable", "#!/bin/sh\n", 0o644)
    (work / "in.txt").write_text("in\n")


def test_plain_commands_end_as_in_plain_bash(box: Box) -> None:
    make_programs(box.work)
    assert not [command for command in PLAIN if not is_plain(box, command)]
    assert not differing(box, PLAIN)


def test_all_others_have_their_own_bash(box: Box) -> None:
    make_programs(box.work)
    timed = "time true"  # takes as long as it takes
    assert not [c for c in [*NOT_PLAIN, timed] if is_plain(box, c)]
    seen = [command for command in AWKWARD if is_plain(box, command)]
    assert seen == [
        "true",
        "false",
        "printf 'no newline'",
        "sh -c 'kill -9 $$'",
        "printf '\\001\\177\\377\\200'",
    ]
    assert not differing(box, NOT_PLAIN)


def test_random_words_end_as_in_plain_bash(box: Box) -> None:
    draw = random.Random(11)
    words = [
        "echo",
        "printf",
        "true",
        "a",
        "%s",
        "-n",
        "'x y'",
        '"',
        "'",
        "\\n",
        "=",
        ":",
    ]
    words += ["/", ".", "..", "-", "+", "@", ",", "\\", "\t", "#", "^", "{}", "1", "_"]
    commands = []
    while len(commands) < 80:
        parts = ["".join(draw.choices(words, k=draw.randint(1, 3))) for _ in range(4)]
        command = draw.choice(["echo ", "printf "]) + " ".join(parts)
        if is_plain(box, command):
            commands.append(command)
    assert not differing(box, commands)


def test_a_program_sees_the_same_environment_and_parent(box: Box) -> None:
    command = "env -0 A=1"
    assert is_plain(box, command)
    end = box.run(command)
    environ = dict(ENVIRON, LEORONIC_RUN=end.run, LEORONIC_HOME=str(box.home))
    expected = plain_bash(command, box.work, environ)[1]
    assert set(output(end)[0].split(b"\0")) == set(expected.split(b"\0"))
    assert output(box.run("cut -d' ' -f4,6 /proc/self/stat")) == output(
        box.run("exec cut -d' ' -f4,6 /proc/self/stat")
    )


def test_nothing_of_one_plain_task_reaches_the_next(box: Box) -> None:
    commands = ["printf -v PATH x", "printf -v _leoronic_task x", "echo a", "true"]
    for command in commands:
        assert is_plain(box, command)
        assert box.run(command).exit == 0
    for command in ("env -0", "bash -c 'set'", "x=1; set | grep -c leoronic_task"):
        assert b"leoronic_task=" not in output(box.run(command))[0]
    assert not differing(box, ["echo $PATH", "echo b"])


@pytest.mark.parametrize(
    "name", [n for n in NASTY_ENVIRON if n.startswith("BASH")] + ["IFS", "GLOBIGNORE"]
)
def test_where_the_environment_steers_bash_nothing_is_plain(name: str) -> None:
    environ: Dict[str, str] = dict(ENVIRON)
    assert Scripts(environ, never).make(b"true", {})[1]
    environ[name] = NASTY_ENVIRON.get(name, "x")
    assert not Scripts(environ, never).make(b"true", {})[1]


def never(name: str) -> bool:
    return False


def test_an_environment_of_odd_bytes_is_for_a_bash_of_its_own() -> None:
    scripts = Scripts(ENVIRON, never)
    for value in ("a\nb", "\u00e4", "\udcff"):
        assert not scripts.make(b"true", {"X": value})[1]
    assert scripts.make(b"true", {"X": "it's"})[1]


def test_a_plain_program_is_gone_when_it_is_stopped(box: Box) -> None:
    assert is_plain(box, "sleep 1000")
    run = box.start("sleep 1000")
    box.until(lambda: any(isinstance(event, sandbox.Started) for event in box.seen))
    box.box.kill(run, "deleted", 5)
    end = box.result(run)
    assert isinstance(end, sandbox.Ended)
    assert (end.exit, end.cause) == (128 + signal.SIGTERM, "deleted")


def test_what_a_plain_program_leaves_is_gone_at_its_end(box: Box) -> None:
    assert is_plain(box, "setsid -f sleep 1000")
    before = time.monotonic()
    end = box.run("setsid -f sleep 1000")
    assert end.exit == 0 and time.monotonic() - before < 30
    assert not [p for p in os.listdir("/proc") if p.isdigit() and carries(p, end.run)]


def carries(pid: str, run: str) -> bool:
    try:
        environ = Path("/proc", pid, "environ").read_bytes()
    except OSError:
        return False
    return b"LEORONIC_RUN=" + os.fsencode(run) + b"\0" in environ


def test_signals_and_exits_of_plain_programs_are_told_apart(box: Box) -> None:
    causes = {
        "sh -c 'kill -9 $$'": "signal KILL",
        "sh -c 'exit 137'": "",
        "sh -c 'kill -USR1 $$'": "signal USR1",
        "sh -c 'kill -INT $$'": "signal INT",
        "sh -c 'kill -TERM $$'": "signal TERM",
        "sh -c 'exit 255'": "",
    }
    assert all(is_plain(box, command) for command in causes)
    assert {command: box.run(command).cause for command in causes} == causes
