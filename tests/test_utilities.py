"""leoronic_utilities in a real bash, against a control port that follows a script.

BASH_UNDER_TEST names another bash to take (4.0 is the oldest that must do).
"""

import contextlib
import os
import pty
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import pytest

UTILITIES = Path(__file__).resolve().parent.parent / "leoronic_utilities"
BASH = os.environ.get("BASH_UNDER_TEST", "bash")
BASH_TIMEOUT_S = 30
TOKEN = b"0123456789abcdef"
ODD = (
    b"  \\ \\n %s -n * \x01\x7f\x80\xff\xe9 \xc3( \xe2\x82 \r\t'\"$(id)  "  # as a line
)
NO_COMRADE = b"leoronic: no comrade is reachable from here; "

Ran = Tuple[int, bytes, bytes]  # code, stdout, stderr


class Request(NamedTuple):
    cwd: bytes
    columns: bytes
    terminals: bytes
    arguments: List[bytes]


class FakeControl:
    """A control port that answers every request with `answer`, and remembers it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.answer = b"X 0\n"
        self.reads_request = True
        self.pause_s = 0.0  # before the answer, but for
        self.early = 0  # of its bytes
        self.stays_open = False  # after the answer: silence instead of the end
        self.hung_up = threading.Event()  # the client did, while it stayed open
        self.requests: List[Request] = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port = self.listener.getsockname()[1]
        home.mkdir(parents=True, exist_ok=True)
        self.write_control(os.getpid())
        threading.Thread(target=self._serve, daemon=True).start()

    def write_control(self, pid: int) -> None:
        lines = "%d\n%s\n%d\n" % (self.port, TOKEN.decode(), pid)
        (self.home / "control").write_text(lines)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed by the test
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                link = self.listener.accept()[0]
                with link, contextlib.suppress(OSError):  # the client hung up
                    self._converse(link)

    def _converse(self, link: socket.socket) -> None:
        if self.reads_request:
            self.requests.append(self._request(link))
        link.sendall(self.answer[: self.early])
        time.sleep(self.pause_s)
        link.sendall(self.answer[self.early :])
        if self.stays_open:
            link.recv(1)
            self.hung_up.set()

    @staticmethod
    def _request(link: socket.socket) -> Request:
        received = bytearray()
        while True:
            head = received.split(b"\0", 5)
            if len(head) == 6 and head[5].count(b"\0") == int(head[1]):
                assert head[0] == TOKEN and head[5].endswith(b"\0")
                cwd, columns, terminals, arguments = map(bytes, head[2:])
                return Request(cwd, columns, terminals, arguments.split(b"\0")[:-1])
            more = link.recv(1 << 20)
            assert more, "the request is cut short: %r" % received
            received += more


@pytest.fixture
def control(tmp_path: Path) -> Iterator[FakeControl]:
    server = FakeControl(tmp_path / "a home")
    yield server
    server.close()


def environment(home: Optional[Path], **more: str) -> Dict[str, str]:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "U": str(UTILITIES)}
    if home:
        env["LEORONIC_HOME"] = str(home)
    env.update(more)
    return env


def bash(
    script: Union[str, bytes], env: Dict[str, str], cwd: str = "/", stdin: bytes = b""
) -> Ran:
    done = subprocess.run(
        [BASH, "--norc", "--noprofile", "-c", script],
        env=env,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=BASH_TIMEOUT_S,
    )
    return done.returncode, done.stdout, done.stderr


def ask(
    control: FakeControl,
    script: Union[str, bytes],
    answer: bytes = b"X 0\n",
    stdin: bytes = b"",
    **more: str,
) -> Ran:
    """Run the script, with the functions, against the control port."""
    control.answer = answer
    script = b'. "$U"\n' + (script.encode() if isinstance(script, str) else script)
    return bash(script, environment(control.home, **more), stdin=stdin)


# ---- sourcing

FUNCTIONS = """add_task add_sweep add_tasks_from_file add_tasks_from_str del_task retry
    get_queue get_output wait why top nodes add_tag del_tag get_tags task_format drain
    undrain stop config get_all_files send_file doctor new_cookie""".split()
HOSTILE = r"""
	shopt -s nullglob failglob nocasematch expand_aliases
	set -o posix -o noclobber -o noglob -o errtrace -o functrace -o pipefail -eu
	IFS='0123LEPOX /_.'
	printf() { echo no; }
	read() { echo no; }
	kill() { echo no; }
	head() { echo no; }
	alias printf='echo no' cat='echo no' head='echo no' read='echo no' kill='echo no'
	readonly line=1 text=1 code=1 port=1 token=1 home=1 id=1 file=1 n=1 pid=1 kind=1
	trap 'echo "ERR $BASH_COMMAND" >&2' ERR
	trap 'echo noise' USR1
"""
STATE = r"""
state() {
	declare -p | command grep -vE "$CHANGING"
	declare -F | command grep -v ' leoronic_'
	set -o; shopt || :; trap -p; alias; umask; pwd; ls "/proc/$$/fd"
}
"""
CHANGING = "^declare -[^ ]+ (_|BASH_.*|BASHPID|S?RANDOM|EPOCH.*|SECONDS|U|LINENO)(=|$)"


@pytest.mark.parametrize("options", ["", HOSTILE], ids=["plain", "hostile"])
def test_sourcing_defines_functions_and_changes_nothing_else(options: str) -> None:
    states = [
        bash(
            STATE + options + '\n. "$U"\nstate',
            environment(None, U=sourced, CHANGING=CHANGING),
        )
        for sourced in ("/dev/null", str(UTILITIES))
    ]
    assert states[0][0] == 0 and len(states[0][1]) > 1000
    assert states[0] == states[1]


def test_sourcing_prints_nothing_and_succeeds() -> None:
    assert bash('. "$U"', environment(None)) == (0, b"", b"")


def test_a_call_changes_nothing_but_the_id(control: FakeControl) -> None:
    call = "leoronic_add_task x >/dev/null"
    script = HOSTILE + '%s; state >"$D/1"; %s; state >"$D/2"' % (call, call)
    env = environment(control.home, D=str(control.home), CHANGING=CHANGING)
    control.answer = b"L n-1\nX 0\n"
    assert bash(STATE + '. "$U"\n' + script, env) == (0, b"", b"")
    before, after = ((control.home / n).read_bytes() for n in "12")
    assert len(before) > 1000
    assert before == after and b'LEORONIC_ID="n-1"' in after


def test_digits_in_ifs_take_nothing_off_the_port(control: FakeControl) -> None:
    call = "IFS=0123456789abcdef; leoronic_add_task x"
    control.answer = b"L n-1\nX 0\n"
    assert bash('. "$U"; ' + call, environment(control.home)) == (0, b"n-1\n", b"")


def test_the_functions_are_those_of_the_contract() -> None:
    listed = bash('. "$U"; declare -F', environment(None))[1].decode().split()[2::3]
    assert all(name.startswith("leoronic_") for name in listed)
    public = [name for name in listed if not name.startswith("leoronic__")]
    assert sorted(public) == sorted("leoronic_" + name for name in FUNCTIONS)


@pytest.mark.parametrize("shell", ["dash", "zsh", "busybox sh"])
def test_another_shell_is_told_that_it_is_the_wrong_one(shell: str) -> None:
    if not shutil.which(shell.split()[0]):
        pytest.skip("there is no %s here" % shell)
    done = subprocess.run(
        shell.split() + ["-c", '. "$U"; echo "code $?"'],
        env=environment(None),
        capture_output=True,
    )
    assert done.stdout == b"code 2\n"
    assert done.stderr.startswith(b"leoronic: ") and done.stderr.count(b"\n") == 1


# ---- the request


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "add_tasks_from_file"])
def test_each_function_passes_all_its_arguments_on(
    name: str, control: FakeControl
) -> None:
    call = b"leoronic_%s" % name.encode()
    odd = b"--flag '' ' a  b ' '*' $'new\\nline\\n' '$(id)' '\\' -- -n '%s' '\xff\xe9'"
    assert ask(control, call + b" " + odd + b"; " + call) == (0, b"", b"")
    verb = name.replace("_from", "").replace("add_sweep", "add_tasks_sweep").encode()
    given = [b"--flag", b"", b" a  b ", b"*", b"new\nline\n", b"$(id)", b"\\", b"--"]
    given += [b"-n", b"%s", b"\xff\xe9"]
    assert [r.arguments for r in control.requests] == [[verb] + given, [verb]]


def test_a_request_of_megabytes_arrives_whole(control: FakeControl) -> None:
    script = 'x=$(head -c 1500000 /dev/zero | tr "\\0" "\\n"; echo .)\n'
    assert ask(control, script + 'leoronic_add_tasks_from_str "$x"')[0] == 0
    assert control.requests[0].arguments[1] == b"\n" * 1500000 + b"."


def test_requests_around_the_size_of_one_write_arrive_whole(
    control: FakeControl,
) -> None:
    script = "for n in {960..1010}; do leoronic_why $(printf %0${n}d 0); done"
    assert ask(control, script) == (0, b"", b"")
    lengths = [len(r.arguments[1]) for r in control.requests]
    assert lengths == list(range(960, 1011))


def test_the_comrade_is_told_where_the_caller_is(
    control: FakeControl, tmp_path: Path
) -> None:
    (tmp_path / "real one").mkdir()
    (tmp_path / "link").symlink_to("real one")
    script = 'cd "$T/link"; %s; PWD=/elsewhere; %s; unset PWD; %s'
    ask(control, script.replace("%s", "leoronic_nodes"), T=str(tmp_path))
    link, real = (str(tmp_path / name).encode() for name in ("link", "real one"))
    assert [r.cwd for r in control.requests] == [link, real, real]


def test_a_call_from_a_directory_that_is_gone_is_heard(
    control: FakeControl, tmp_path: Path
) -> None:
    script = 'mkdir "$T/d"; cd "$T/d"; rmdir "$T/d"; leoronic_nodes'
    assert ask(control, script, T=str(tmp_path)) == (0, b"", b"")
    assert len(control.requests) == 1


# ---- tasks from a file


@pytest.mark.parametrize(
    "script",
    [
        "leoronic_add_tasks_from_file <(printf 'a b\\nc \\\\ d  \\n\\n')",
        "printf 'a b\\nc \\\\ d  \\n\\n' | leoronic_add_tasks_from_file /dev/stdin",
        'leoronic_add_tasks_from_file /dev/stdin <"$T/tasks"',
        'leoronic_add_tasks_from_file /dev/fd/5 5<"$T/tasks"',
        'mkfifo "$T/f"; cat "$T/tasks" >"$T/f" & leoronic_add_tasks_from_file "$T/f"',
    ],
    ids=["substitution", "pipe", "stdin", "descriptor", "fifo"],
)
def test_what_only_the_shell_can_open_goes_as_text(
    script: str, control: FakeControl, tmp_path: Path
) -> None:
    text = b"a b\nc \\ d  \n\n"
    (tmp_path / "tasks").write_bytes(text)
    assert ask(control, script, T=str(tmp_path)) == (0, b"", b"")
    assert [r.arguments for r in control.requests] == [[b"add_tasks_str", text]]


def test_a_regular_file_goes_by_its_path(control: FakeControl, tmp_path: Path) -> None:
    (tmp_path / "my tasks").write_bytes(b"a task\n")
    script = 'cd "$T"; leoronic_add_tasks_from_file "my tasks"'
    assert ask(control, script, T=str(tmp_path)) == (0, b"", b"")
    assert control.requests[0].arguments == [b"add_tasks", b"my tasks"]
    assert control.requests[0].cwd == str(tmp_path).encode()


@pytest.mark.parametrize("arguments", ["", "/nonexistent", "/tmp", "''", "a b"])
def test_a_wrong_file_is_left_to_the_comrade_to_complain_of(
    arguments: str, control: FakeControl
) -> None:
    script = "leoronic_add_tasks_from_file " + arguments
    assert ask(control, script, b"E leoronic: no\nX 2\n")[0] == 2
    given = [word.strip("'").encode() for word in arguments.split()]
    assert control.requests[0].arguments == [b"add_tasks"] + given


def test_a_stream_with_a_nul_is_refused(control: FakeControl) -> None:
    script = "leoronic_add_tasks_from_file <(printf 'a\\0b\\n')"
    code, out, err = ask(control, script)
    assert (code, out, control.requests) == (2, b"", [])
    assert b"holds a NUL byte" in err and err.count(b"\n") == 1


# ---- values of a sweep


@pytest.mark.parametrize("options", ["", HOSTILE], ids=["plain", "hostile"])
def test_values_on_stdin_go_as_one_text_before_the_fields(
    options: str, control: FakeControl
) -> None:
    call = options + "leoronic_add_sweep --send 1 2 3 true '' '' 'e {}'"
    text = b" a\\ b \n\xff\n\n"
    assert ask(control, call, b"L n-1\nX 0\n", stdin=text) == (0, b"n-1\n", b"")
    fields = b"--send 1 2 3 true   e".split(b" ")[:-1] + [b"e {}"]
    assert [r.arguments for r in control.requests] == [
        [b"add_tasks_sweep_text", text, *fields]
    ]


def test_a_nul_among_the_values_on_stdin_is_refused(control: FakeControl) -> None:
    call = "set -e; leoronic_add_sweep 1 2 3 true '' '' e || echo $?"
    code, out, err = ask(control, call, stdin=b"a\0b")
    assert (code, out, control.requests) == (0, b"2\n", [])
    assert b"NUL" in err and err.count(b"\n") == 1


# ---- the answer


@pytest.mark.parametrize("code", [0, 1, 2, 3, 124])
def test_the_code_of_the_answer_is_returned(code: int, control: FakeControl) -> None:
    assert ask(control, "leoronic_wait", b"X %d\n" % code) == (code, b"", b"")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "xx_XX.UTF-8"])
def test_lines_are_passed_on_byte_by_byte(locale: str, control: FakeControl) -> None:
    answer = b"L %s\nE %s\nL \nE \nX 1\n" % (ODD, ODD)
    # bash itself complains of a locale that isn't there, once.
    _, _, complaint = ask(control, ":", LC_ALL=locale)
    code, out, err = ask(control, "leoronic_nodes", answer, LC_ALL=locale)
    assert (code, out) == (1, ODD + b"\n\n")
    assert err == complaint + ODD + b"\n\n"


def test_any_single_byte_passes_in_a_line(control: FakeControl) -> None:
    lines = [bytes([n]) for n in range(1, 256) if n != 10]
    answer = b"".join(b"L %s\n" % line for line in lines) + b"X 0\n"
    script = "IFS=$'\\t'; leoronic_get_tags"
    assert ask(control, script, answer) == (0, b"\n".join(lines) + b"\n", b"")


@pytest.mark.parametrize("size", [0, 1, 100, 65536, 3000000])
def test_output_is_passed_on_byte_by_byte(size: int, control: FakeControl) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    block = b"O %d\n%s" % (size, data)
    answer = block + b"E between\n" + block + b"L last\nX 0\n"
    expected = (0, data + data + b"last\n", b"between\n")
    assert ask(control, "leoronic_get_output n-1", answer) == expected


def test_progress_is_drawn_over_itself(control: FakeControl) -> None:
    answer = b"P 1 of 2\nP 2 of 2\nP \nX 0\n"
    drawn = b"\r\033[K1 of 2\r\033[K2 of 2\r\033[K"
    assert ask(control, "leoronic_wait", answer) == (0, b"", drawn)


def test_an_add_prints_the_id_and_leaves_it_in_a_variable(control: FakeControl) -> None:
    script = 'LEORONIC_ID=old; leoronic_add_task x; echo "$? $LEORONIC_ID"'
    assert ask(control, script, b"L n-1\nX 0\n") == (0, b"n-1\n0 n-1\n", b"")


@pytest.mark.parametrize("call", ["add_tasks_from_str x", "retry all"])
def test_what_adds_many_leaves_the_last_id(control: FakeControl, call: str) -> None:
    script = "leoronic_%s; echo $LEORONIC_ID" % call
    answer = b"O 4\nn-1\nL n-2\nX 0\n"
    assert ask(control, script, answer) == (0, b"n-1\nn-2\nn-2\n", b"")


@pytest.mark.parametrize(
    "call, answer",
    [
        ("add_task x", b"L n-1\nX 1\n"),
        ("add_task x", b"L n-1\n"),
        ("add_task x", b"X 0\n"),
        ("get_tags", b"L a_tag\nX 0\n"),
    ],
)
def test_the_variable_stays_unless_an_add_succeeds(
    call: str, answer: bytes, control: FakeControl
) -> None:
    script = "LEORONIC_ID=old; leoronic_%s >/dev/null; echo $LEORONIC_ID" % call
    assert ask(control, script, answer)[1] == b"old\n"


def test_everything_works_in_a_hostile_shell(control: FakeControl) -> None:
    for name in FUNCTIONS:
        script = HOSTILE + "leoronic_%s 'a b' || echo failed; \\echo end" % name
        answer = b"O 3\n0\x001L L X_0\nE E\nP 1\nX 0\n"
        expected = (0, b"0\x001L X_0\nend\n", b"E\n\r\033[K1")
        assert ask(control, script, answer) == expected, name


def test_errexit_ends_a_script_at_a_failed_call_only(control: FakeControl) -> None:
    script = "set -e; leoronic_del_task x; echo not here"
    assert ask(control, script, b"E why\nX 1\n") == (1, b"", b"why\n")


def test_calls_work_in_substitutions_pipes_and_the_background(
    control: FakeControl,
) -> None:
    script = """
	set -euo pipefail
	id=$(leoronic_add_task x); echo "<$id>"
	leoronic_add_task x | { read -r id; echo "($id)"; }
	leoronic_add_task x & wait $!; echo "$?"
	leoronic_add_task x <&- ; f() { local LEORONIC_ID; leoronic_add_task x; }; f
	"""
    out = b"<n-1>\n(n-1)\nn-1\n0\nn-1\nn-1\n"
    assert ask(control, script, b"L n-1\nX 0\n") == (0, out, b"")


def test_an_add_forks_nothing(control: FakeControl) -> None:
    # Pids are dealt out in order: with no fork between, the second is the next one.
    script = """
	for n in {1..30}; do
		: & before=$!; wait
		leoronic_add_task 1K 1 1K true '' '' 'echo hello' >/dev/null
		: & wait; echo $(($! - before))
	done
	"""
    out = ask(control, script, b"L n-1\nX 0\n")[1]
    assert b"1" in out.split()


# ---- whoever reads stdout


@pytest.mark.parametrize(
    "lines", [b"L a line\n" * 20000, b"O 3000000\n" + b"x\n" * 1500000]
)
def test_a_reader_that_has_seen_enough_makes_no_noise(
    lines: bytes, control: FakeControl
) -> None:
    for options in ("", "set -o pipefail;"):
        script = options + "leoronic_get_queue | head -n 1; echo ${PIPESTATUS[0]}"
        code, out, err = ask(control, script, lines + b"X 0\n")
        assert (code, err) == (0, b"")
        assert out.splitlines()[1] == b"141"


@pytest.mark.parametrize("answer", [b"L a\nX 0\n", b"O 1\naX 0\n"])
def test_a_full_disk_behind_stdout_is_told(answer: bytes, control: FakeControl) -> None:
    code, _, err = ask(control, "leoronic_get_queue >/dev/full", answer)
    assert code == 1
    assert err.startswith(b"leoronic: stdout takes no more; ")


def test_whoever_closes_stderr_gets_no_messages_but_all_else(
    control: FakeControl,
) -> None:
    answer = b"E m\nL an-id\nX 0\n"
    script = "leoronic_add_task x 2>&-; echo $? $LEORONIC_ID"
    assert ask(control, script, answer) == (0, b"an-id\n0 an-id\n", b"")
    assert ask(control, "leoronic_wait 2>&-", b"E why\nX 1\n") == (1, b"", b"")


# ---- no comrade


def assert_unreachable(ran: Ran, *words: bytes) -> None:
    code, _, err = ran
    assert code == 3
    assert err.startswith(NO_COMRADE) and err.count(b"\n") == 1
    assert all(word in err for word in words), err


def test_without_a_control_file_there_is_no_comrade(tmp_path: Path) -> None:
    for home in (None, tmp_path):
        ran = bash('. "$U"; leoronic_get_queue', environment(home, HOME=str(tmp_path)))
        assert_unreachable(ran, str(tmp_path).encode(), b"/control", b"bash leoronic")


@pytest.mark.parametrize("content", ["", "7117\n", "7117\nabc", "\n\n\n", "x\ny\nz\n"])
def test_a_garbled_control_file_is_no_comrade(content: str, tmp_path: Path) -> None:
    (tmp_path / "control").write_text(content)
    ran = bash('. "$U"; leoronic_get_queue', environment(tmp_path))
    assert_unreachable(ran, b"bash leoronic")


def test_a_refused_connection_is_no_comrade(control: FakeControl) -> None:
    control.close()
    ran = ask(control, "set -euo pipefail; leoronic_get_queue")
    assert_unreachable(ran, b"%d" % control.port, b"bash leoronic")


def test_an_answer_cut_short_anywhere_may_have_been_done(control: FakeControl) -> None:
    whole = b"E a\nO 3\nb\0\nP c\nL d\nX 0"
    for length in range(len(whole) + 1):
        ran = ask(control, "leoronic_del_task x 2>&1 >/dev/null", whole[:length])
        err = ran[1].replace(b"\r\033[Kc", b"").replace(b"a\n", b"", length >= 4)
        assert_unreachable((ran[0], b"", err), b"may have been done or not")


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0-x\r\n", b"LX 0\n", b"\n"],
)
def test_another_service_at_the_port_is_no_comrade(
    answer: bytes, control: FakeControl
) -> None:
    assert_unreachable(ask(control, "leoronic_add_task x", answer + b"X 0\n"))


def test_a_peer_that_hangs_up_at_once_leaves_the_shell_alive(
    control: FakeControl,
) -> None:
    control.reads_request = False
    script = "x=$(head -c %d /dev/zero | tr '\\0' '\\n'; echo x)\n"
    script += 'for n in {1..20}; do leoronic_add_tasks_from_str "$x"; done; echo alive'
    for size in (1, 1000, 1000000):
        code, out, err = ask(control, script % size, b"")
        assert (code, out) == (0, b"alive\n")
        assert err.count(NO_COMRADE) == 20 == err.count(b"\n")


def hurried(tmp_path: Path) -> str:
    """Return a copy of the functions whose patience ends after 1 s instead of 4."""
    text = UTILITIES.read_text()
    assert text.count("-t 4 ") == 1
    copy = tmp_path / "hurried"
    copy.write_text(text.replace("-t 4 ", "-t 1 "))
    return str(copy)


def test_a_silent_port_of_a_comrade_that_is_gone_is_given_up(
    control: FakeControl, tmp_path: Path
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    control.write_control(gone.pid)
    control.stays_open = True
    ran = ask(control, "leoronic_wait", b"", U=hurried(tmp_path))
    assert_unreachable(ran, b"%d" % control.port)


def test_a_silent_comrade_that_lives_is_waited_for(
    control: FakeControl, tmp_path: Path
) -> None:
    control.pause_s = 2.5
    answer = b"L done\nX 0\n"
    ran = ask(control, "set -e; leoronic_wait", answer, U=hurried(tmp_path))
    assert ran == (0, b"done\n", b"")


def test_a_word_that_comes_as_the_time_is_up_is_no_other_program(
    control: FakeControl, tmp_path: Path
) -> None:
    control.pause_s, control.early = 1.5, 1
    ran = ask(control, "set -e; leoronic_wait", b"L x\nX 0\n", U=hurried(tmp_path))
    assert ran == (0, b"x\n", b"")


def test_a_comrade_that_is_stopped_is_said_to_be_once(
    control: FakeControl, tmp_path: Path
) -> None:
    stopped = subprocess.Popen(["sleep", "60"])
    try:
        stopped.send_signal(signal.SIGSTOP)
        control.write_control(stopped.pid)
        control.pause_s = 3.5
        code, out, err = ask(control, "set -e; leoronic_wait", U=hurried(tmp_path))
        assert (code, out, err.count(b"\n")) == (0, b"", 1)
        assert err.endswith(b"it goes on with: kill -CONT %d\n" % stopped.pid)
    finally:
        stopped.kill()
        stopped.wait()


# ---- which comrade


def test_the_default_home_is_the_comrades_else_a_ghosts(tmp_path: Path) -> None:
    host = re.sub("[^A-Za-z0-9._-]", "_", socket.gethostname())
    for name in ("-ghost12", "-ghost3", ""):
        server = FakeControl(tmp_path / ".leoronic" / (host + name))
        server.answer = b"L from%s\nX 0\n" % name.encode()
        env = environment(None, HOME=str(tmp_path), HOSTNAME="another")
        ran = bash('set -f; . "$U"; leoronic_nodes', env)
        server.close()  # and its control file stays: it is passed over from now on
        assert ran == (0, b"from%s\n" % name.encode(), b"")


def test_an_empty_home_directory_is_as_good_as_none() -> None:
    for change in ("HOME=", "unset HOME"):  # then it is the user's, as to Python
        script = '. "$U"; %s; leoronic_nodes; [[ -n ${HOME+x} ]]' % change
        code, _, err = bash(script, environment(None))
        assert pwd.getpwuid(os.getuid()).pw_dir.encode() + b"/.leoronic/" in err
        assert code == (change != "HOME=")  # and it stays what it was


def test_a_given_home_is_the_only_one_asked(
    control: FakeControl, tmp_path: Path
) -> None:
    (control.home.parent / "a home-ghost1").symlink_to(control.home)
    (control.home.parent / ".leoronic").mkdir()
    os.rename(str(control.home), str(tmp_path / "a home-ghost2"))
    assert_unreachable(ask(control, "leoronic_nodes", HOME=str(tmp_path)))


def test_a_tilde_in_the_setting_is_the_home_directory(
    control: FakeControl, tmp_path: Path
) -> None:
    env = environment(None, LEORONIC_HOME="~/a home", HOME=str(tmp_path))
    assert bash('. "$U"; leoronic_nodes', env) == (0, b"", b"")
    assert control.requests


# ---- a person at a terminal


class Terminal:
    def __init__(self, env: Dict[str, str]) -> None:
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(BASH, [BASH, "--norc", "--noprofile", "-i"], env)

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def expect(self, text: bytes) -> bytes:
        """Return what is seen up to the text, which must come."""
        deadline = time.monotonic() + BASH_TIMEOUT_S
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], deadline - time.monotonic())
            assert ready, "%r isn't in %r" % (text, self.seen)
            self.seen += os.read(self.fd, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@contextlib.contextmanager
def terminal(control: FakeControl) -> Iterator[Terminal]:
    """Give an interactive bash that has sourced the functions and says READY."""
    env = environment(control.home, PS1="PROMPT", PS2="", TERM="dumb")
    shell = Terminal(env)
    try:
        shell.expect(b"PROMPT")
        shell.type(b'bind "set enable-bracketed-paste off" 2>/dev/null; . "$U"\n')
        shell.expect(b"PROMPT")
        yield shell
    finally:
        shell.close()


def test_ctrl_c_ends_the_wait_and_closes_the_connection(control: FakeControl) -> None:
    control.answer = b"P 1 of 2\n"
    control.stays_open = True
    descriptors = b"echo =$?= /proc/$$/fd/* ==\n"
    with terminal(control) as shell:
        shell.type(descriptors)
        shell.expect(b"\n=0=")
        before = shell.expect(b"==")
        shell.expect(b"PROMPT")
        shell.type(b"leoronic_wait\n")
        shell.expect(b"1 of 2")
        shell.type(b"\x03")
        assert control.hung_up.wait(BASH_TIMEOUT_S)
        shell.expect(b"PROMPT")
        shell.type(descriptors)
        shell.expect(b"\n=")
        assert shell.expect(b"=")[-3:] in (b"130", b"128")  # 128: as 4.0 returns
        assert shell.expect(b"==") == before


def test_the_comrade_is_told_which_are_terminals_and_how_wide(
    control: FakeControl,
) -> None:
    ask(control, "leoronic_nodes; COLUMNS=132; leoronic_nodes")
    with terminal(control) as shell:
        shell.type(b"COLUMNS=99; leoronic_nodes </dev/null; leoronic_nodes | cat\n")
        shell.expect(b"PROMPT")
    told = [(r.columns, r.terminals) for r in control.requests]
    assert told == [(b"80", b""), (b"132", b""), (b"99", b"12"), (b"99", b"02")]


def test_deleting_all_is_asked_for_where_somebody_can_answer(
    control: FakeControl,
) -> None:
    control.answer = b"L 12 tasks, 3 of them running\nX 0\n"
    with terminal(control) as shell:
        for answer, code in ((b"n", b"1"), (b"", b"1"), (b"y", b"0"), (b"Yes", b"0")):
            control.requests.clear()
            shell.type(b"leoronic_del_task all; echo =$?=\n")
            shell.expect(b"delete 12 tasks, 3 of them running? [y/N] ")
            shell.type(answer + b"\n")
            shell.expect(b"=%s=" % code)
            asked = [r.arguments for r in control.requests]
            assert asked[0] == [b"count_all"]
            yes = [[b"del_task", b"--yes", b"all"]] if code == b"0" else []
            assert asked[1:] == yes
        for call in (b"leoronic_del_task --yes all", b"leoronic_del_task one"):
            control.requests.clear()
            shell.type(call + b"; echo =$?=\n")
            shell.expect(b"=0=")
            assert [r.arguments for r in control.requests] == [
                [b"del_task", *call.split()[1:]]
            ]
        control.answer = b"X 0\n"  # none is left
        shell.type(b"leoronic_del_task all; echo =$?=\n")
        shell.expect(b"=0=")
        control.requests.clear()
        shell.type(b"leoronic_del_task all </dev/null; echo =$?=\n")
        shell.expect(b"=0=")
        assert [r.arguments for r in control.requests] == [[b"del_task", b"all"]]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ("TERM=xterm NO_COLOR=", b"02c"),
        ("TERM=xterm NO_COLOR=1", b"02"),
        ("TERM=dumb NO_COLOR=", b"02"),
        ("TERM= NO_COLOR=", b"02"),
    ],
)
def test_colours_are_only_for_terminals_that_show_them_and_users_who_want_them(
    control: FakeControl, settings: str, expected: bytes
) -> None:
    with terminal(control) as shell:
        shell.type(settings.encode() + b" leoronic_nodes | cat; echo =$?=\n")
        shell.expect(b"=0=")
    assert [r.terminals for r in control.requests] == [expected]


FRAME = b"L 1.0:2:3\nL head\033[K\nL last line\033[K\033[J\nX 0\n"
ENTERED, LEFT = b"\033[?1049h\033[?25l", b"\033[?25h\033[?1049l"


@pytest.mark.parametrize("end", [b"q", b"Q", b"\x03"])
def test_the_live_view_draws_frames_and_leaves_the_terminal_as_it_was(
    control: FakeControl, end: bytes
) -> None:
    control.answer = FRAME
    with terminal(control) as shell:
        shell.type(b'stty rows 24 cols 80; stty -a >"$LEORONIC_HOME/before"\n')
        shell.expect(b"PROMPT")
        shell.type(b"set -eu; leoronic_top; echo =$?=\n")
        shell.expect(ENTERED)
        shell.expect(b"\033[Hhead\033[K\r\nlast line\033[K\033[J")
        control.answer = FRAME.replace(b"last", b"next")
        shell.expect(b"\033[Hhead\033[K\r\nnext line")
        shell.type(end)
        shell.expect(LEFT)
        shell.expect(b"=0=")
        shell.type(b'stty -a >"$LEORONIC_HOME/after"; echo =$?=\n')
        shell.expect(b"=0=")
    before, after = ((control.home / n).read_bytes() for n in ("before", "after"))
    assert before == after and b" echo " in after
    first, second = [r.arguments for r in control.requests[:2]]
    assert first == [b"top_frame", b"80", b"24", b""]
    assert second == [b"top_frame", b"80", b"24", b"1.0:2:3"]


def test_the_live_view_rests_at_ctrl_z_and_goes_on_at_fg(control: FakeControl) -> None:
    control.answer = FRAME
    with terminal(control) as shell:
        shell.type(b'stty -a >"$LEORONIC_HOME/before"; leoronic_top; echo =$?=\n')
        shell.expect(b"last line")
        shell.type(b"\x1a")
        shell.expect(LEFT)
        shell.expect(b"Stopped")
        shell.type(b'stty -a >"$LEORONIC_HOME/rests"; fg; echo =$?=\n')
        shell.expect(ENTERED)
        shell.expect(b"last line")
        shell.type(b"q")
        shell.expect(LEFT)
        shell.expect(b"=0=")
    before, rests = ((control.home / n).read_bytes() for n in ("before", "rests"))
    assert before == rests


def test_the_live_view_leaves_the_terminal_also_when_it_is_killed(
    control: FakeControl,
) -> None:
    control.answer = FRAME
    with terminal(control) as shell:
        shell.type(b"leoronic_top; echo =$?=\n")
        shell.expect(b"last line")
        os.kill(os.tcgetpgrp(shell.fd), signal.SIGTERM)
        shell.expect(LEFT)
        shell.expect(b"=143=")


def test_a_frame_that_is_the_same_is_not_sent_again(control: FakeControl) -> None:
    control.answer = FRAME
    with terminal(control) as shell:
        shell.type(b"leoronic_top; echo =$?=\n")
        shell.expect(b"last line")
        shell.type(b"xx")  # any other key: anew at once
        deadline = time.monotonic() + BASH_TIMEOUT_S
        while len(control.requests) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        shell.type(b"q")
        assert b"last line" not in shell.expect(LEFT)


def test_the_live_view_ends_with_a_message_when_the_comrade_is_gone(
    control: FakeControl,
) -> None:
    control.answer = FRAME
    with terminal(control) as shell:
        shell.type(b"leoronic_top; echo =$?=\n")
        shell.expect(b"last line")
        control.close()
        shell.type(b"x")
        shell.expect(LEFT)
        assert NO_COMRADE in shell.expect(b"=3=")


def test_without_a_terminal_the_view_is_one_plain_frame(control: FakeControl) -> None:
    assert ask(control, "leoronic_top", b"L a\nX 0\n") == (0, b"a\n", b"")
    assert control.requests[0].arguments == [b"top"]


# ---- Tab


@pytest.mark.parametrize(
    "options", [b":", b"set -u", b"set -o posix", b"IFS=o-1; set -f; set -o noclobber"]
)
def test_tab_offers_what_the_comrade_says(control: FakeControl, options: bytes) -> None:
    control.answer = b"L one-1\nX 0\n"
    with terminal(control) as shell:
        shell.type(options + b"\n")
        shell.expect(b"PROMPT")
        shell.type(b"leoronic_wait --timeout 5 on\t")
        shell.expect(b"one-1 ")
        shell.type(b"; echo =$?=\n")
        shell.expect(b"=0=")
    words = [b"complete", b"3", b"leoronic_wait", b"--timeout", b"5", b"on"]
    assert [r.arguments for r in control.requests][0] == words


def test_tab_without_a_comrade_gives_nothing_and_no_message(
    control: FakeControl,
) -> None:
    control.close()
    with terminal(control) as shell:
        shell.type(b"leoronic_wait on\t\t; echo =$?=\n")
        seen = shell.expect(b"=3=")
        assert seen.count(NO_COMRADE) == 1  # of the call itself, not of Tab
        assert b"leoronic_wait on" in seen.replace(b"\x07", b"")


def test_tab_in_a_shell_that_ends_at_errors_ends_nothing(control: FakeControl) -> None:
    control.close()
    with terminal(control) as shell:
        shell.type(b"set -eu\n")
        shell.expect(b"PROMPT")
        shell.type(b"leoronic_wait on\t\t\x15echo =$-=\n")
        shell.expect(b"\n=")
        assert b"e" in shell.expect(b"=")


def test_every_function_has_its_completion_in_an_interactive_shell(
    control: FakeControl,
) -> None:
    listed = bash('. "$U"; complete -p', environment(None))[1]
    assert listed == b""  # no terminal, no completion
    with terminal(control) as shell:
        shell.type(b'complete -p >"$LEORONIC_HOME/all"; echo =$?=\n')
        shell.expect(b"=0=")
    found = (control.home / "all").read_text().split()
    names = [
        name for name in found if name.startswith("leoronic_") and "__" not in name
    ]
    assert sorted(names) == sorted("leoronic_" + name for name in FUNCTIONS)
