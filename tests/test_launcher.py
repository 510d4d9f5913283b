"""The launcher, `bash leoronic`, with a stub in the place of comrade.py.

No test here may reach a package index: discovery is off but where the interpreter is a
fake that only writes down what it is asked for.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from helpers import CHECKOUT, processes_of

BASH = shutil.which(os.environ.get("BASH_UNDER_TEST", "bash")) or "bash"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON = sys.executable  # new enough, and with all that is asked for
STUB = """
import os, sys
out = sys.stdout.buffer
for words in ([str(os.getpid()), sys.executable] + sys.argv, sys._xoptions, os.environ):
    for word in words:
        value = "=" + words[word] if words is os.environ else ""
        out.write(os.fsencode(word + value) + b"\\0")
    out.write(b"|\\0")
"""
FAKE = """#!/bin/sh
# An interpreter that answers the launcher's question with what it is told
case "$*" in
*import*) printf '%b' "$ANSWER" ;;
*) echo "$0 $*" ;;
esac
"""


class Started:
    """What the stub found when it was started."""

    def __init__(self, out: bytes) -> None:
        parts = [part.split("\0")[:-1] for part in os.fsdecode(out).split("|\0")]
        self.pid, self.python, self.script = parts[0][:3]
        self.arguments = parts[0][3:]
        self.options = parts[1]
        self.environ = dict(word.split("=", 1) for word in parts[2])


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a folder with copies of the launcher and utilities, and a stub."""
    folder = tmp_path / "pro gram"
    folder.mkdir()
    for name in ("leoronic", "leoronic_utilities"):
        shutil.copy(str(CHECKOUT / name), str(folder))
    (folder / "comrade.py").write_text(STUB)
    return folder


def environment(program: Path, **more: str) -> Dict[str, str]:
    env = {
        "LEORONIC_HOME": str(program.parent / "state dir"),
        "LEORONIC_DISCOVERY": "off",
    }
    env.update(more)
    return env


def launch(program: Path, *arguments: str, **more: str) -> Tuple[int, bytes, bytes]:
    """Run `bash leoronic` from /, with an environment of just these variables."""
    done = subprocess.run(
        [BASH, str(program / "leoronic"), *arguments],
        env=environment(program, **more),
        cwd="/",
        capture_output=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def started(program: Path, *arguments: str, **more: str) -> Started:
    code, out, err = launch(program, *arguments, LEORONIC_PYTHON=PYTHON, **more)
    assert code == 0, err
    return Started(out)


def fake(folder: Path, name: str, text: str = FAKE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def told(folder: Path, name: str, *answer: str) -> Path:
    """Make a fake interpreter with that answer to whether it will do."""
    return fake(folder, name, FAKE.replace("$ANSWER", "\\n".join(answer) + "\\n"))


# ---- becoming the comrade


def test_the_launcher_becomes_the_comrade_under_its_own_pid(program: Path) -> None:
    process = subprocess.Popen(
        [BASH, str(program / "leoronic"), "--background"],
        env=environment(program, LEORONIC_PYTHON=PYTHON),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    found = Started(process.communicate()[0])
    assert found.pid == str(process.pid)
    assert found.script == str(program / "comrade.py")
    assert found.options == ["utf8"]


@pytest.mark.parametrize("option", ["--background", "--help", "--version"])
def test_arguments_are_passed_on(option: str, program: Path) -> None:
    assert started(program, option).arguments == [option]
    assert started(program).arguments == []


def test_the_demo_is_a_script_of_its_own(program: Path) -> None:
    code, out, err = launch(program, "--demo")
    assert (code, out) == (111, b"") and b"leoronic_demo can't be read; copy" in err
    (program / "leoronic_demo").write_text('echo "$0" $#')
    told = "%s 0\n" % (program / "leoronic_demo")
    assert launch(program, "--demo") == (0, told.encode(), b"")


@pytest.mark.parametrize(
    "arguments", ["--foo", "x", "--help --demo", "-h", "--marked-lines x"]
)
def test_unknown_arguments_are_wrong_usage(arguments: str, program: Path) -> None:
    code, out, err = launch(program, *arguments.split())
    assert (code, out) == (100, b"")
    assert arguments.encode() in err and b"\nusage: bash leoronic" in err


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"HOME": "/x", "LANG": "C", "LC_ALL": "POSIX", "PYTHONPATH": "/x", "A": " \n"},
        {"PATH": "/usr/bin:/bin", "LEORONIC_PORT": "7", "PYTHONHOME": "/x"},
        {"LC_ALL": "C", "SHLVL": "7", "BASH_ENV": "/x", "B": "\\"},
    ],
)
def test_tasks_will_inherit_the_environment_as_it_was(
    given: Dict[str, str], program: Path
) -> None:
    found = started(program, **given).environ
    # A bash that does nothing else adds _, PWD and SHLVL. Python adds LC_CTYPE where
    # the locale is C (PEP 538).
    for name in ("_", "PWD", "SHLVL", "LC_CTYPE"):
        found.pop(name, None)
        given = {key: value for key, value in given.items() if key != name}
    expected = environment(program, LEORONIC_PYTHON=PYTHON, **given)
    expected.setdefault("PATH", DEFAULT_PATH)
    assert found == expected


def test_an_empty_path_is_as_good_as_none(program: Path) -> None:
    assert started(program, PATH="").environ["PATH"] == DEFAULT_PATH


def test_signals_keep_their_meaning(program: Path) -> None:
    (program / "comrade.py").write_text(
        "print(open('/proc/self/status').read().split('SigIgn:')[1].split()[0])"
    )
    code, out, _ = launch(program, LEORONIC_PYTHON=PYTHON)
    ignored = int(out, 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert code == 0 and not ignored & (1 << (number - 1))


def test_it_starts_through_links_and_from_a_folder_that_cant_be_written(
    program: Path, tmp_path: Path
) -> None:
    links = tmp_path / "li nks"
    links.mkdir()
    (links / "up").symlink_to("../pro gram")
    (links / "start here").symlink_to("up/leoronic")
    program.chmod(0o555)
    for command in (
        [BASH, "start here"],
        [BASH, "up/leoronic"],
        [BASH, "../li nks/./up/leoronic"],
        ["sh", str(links / "start here")],
    ):
        out = subprocess.run(
            command,
            cwd=str(links),
            env=environment(program, LEORONIC_PYTHON=PYTHON),
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        assert Started(out).script == str(program / "comrade.py")
    program.chmod(0o755)


def test_an_incomplete_copy_of_the_folder_is_told(program: Path) -> None:
    for name in ("leoronic_utilities", "comrade.py"):
        (program / name).unlink()
        code, out, err = launch(program)
        assert (code, out) == (111, b"")
        assert name.encode() in err and err.count(b"\n") == 1


# ---- finding Python


def test_the_first_python_that_will_do_is_taken(program: Path, tmp_path: Path) -> None:
    bin_, other = tmp_path / "b in", tmp_path / "other"
    path = "%s:%s:/usr/bin:/bin" % (other, bin_)
    told(bin_, "python3", "is Python 3.5", "yes", "")
    fake(other, "python3.13", "#!/bin/sh\necho not installed >&2; exit 127\n")
    told(bin_, "python3.12", "is without sqlite3", "yes", "")
    told(bin_, "python3.11", "ok", "yes", str(fake(tmp_path, "real python")))
    told(bin_, "python3.10", "ok", "yes", "/never")
    code, out, err = launch(program, PATH=path)
    expected = "%s/real python -E -W ignore -X utf8 %s/comrade.py\n" % (
        tmp_path,
        program,
    )
    assert (code, out.decode(), err) == (0, expected, b"")


def test_the_private_environment_goes_first_if_it_has_psutil(
    program: Path, tmp_path: Path
) -> None:
    bin_ = tmp_path / "bin"
    told(bin_, "python3", "ok", "yes", "")
    venv = told(tmp_path / "state dir/venv/bin", "python", "ok", "yes", "")
    path = "%s:/usr/bin:/bin" % bin_
    assert launch(program, PATH=path)[1].startswith(b"%s -E " % bytes(venv))
    told(venv.parent, "python", "ok", "", "")
    assert launch(program, PATH=path)[1].startswith(b"%s/python3 -E " % bytes(bin_))


def test_an_interpreter_of_ones_own_choice_is_the_only_one(
    program: Path, tmp_path: Path
) -> None:
    chosen = told(tmp_path, "my python", "ok", "yes", "")
    out = launch(program, LEORONIC_PYTHON=str(chosen))[1]
    assert out.startswith(os.fsencode(str(chosen)))
    told(tmp_path, "my python", "is Python 2.7", "", "")
    for path, word in ((chosen, b"is Python 2.7"), (tmp_path, b"no such program")):
        code, out, err = launch(program, LEORONIC_PYTHON=str(path))
        assert (code, out) == (100, b"") and word in err


@pytest.mark.parametrize("option", ["", "--background", "--help", "--version"])
def test_without_a_python_it_says_what_was_found_and_what_to_install(
    option: str, program: Path, tmp_path: Path
) -> None:
    # /usr/bin/python3, the last resort, is there on most machines: not in this copy.
    launcher = program / "leoronic"
    launcher.write_text(launcher.read_text().replace("/usr/bin/python3", "/no/python3"))
    bin_ = tmp_path / "bin"
    for name in ("readlink", "timeout"):
        (bin_ / name).parent.mkdir(exist_ok=True)
        (bin_ / name).symlink_to(shutil.which(name) or "/")
    arguments = [option] if option else []
    code, out, err = launch(program, *arguments, PATH=str(bin_))
    assert (code, out) == (111, b"")
    assert b"found: none\n" in err and b"apt install python3" in err
    assert b"usage: bash leoronic" in err
    told(bin_, "python3", "is Python 3.5", "yes", "")
    fake(bin_, "python3.9", "#!/bin/sh\nexit 127\n")
    err = launch(program, *arguments, PATH=str(bin_))[2]
    expected = "found: %s/python3 is Python 3.5, %s/python3.9 does not run\n"
    assert expected % (bin_, bin_) in err.decode()


def pythons_around() -> List[str]:
    versions = ["python2.7"] + ["python3.%d" % minor for minor in range(4, 15)]
    paths = [shutil.which(name) for name in versions]
    pyenv = Path.home() / ".pyenv/versions"
    return [p for p in paths if p] + [str(p) for p in pyenv.glob("*/bin/python")]


def test_every_python_around_is_judged_by_its_version(program: Path) -> None:
    for python in pythons_around():
        asked = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info >= (3, 7))"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        code, _, err = launch(program, LEORONIC_PYTHON=python)
        if asked.returncode != 0:
            assert code == 100 and b"does not run" in err
        elif asked.stdout.strip() == b"True":
            assert code == 0, err
        else:
            assert code == 100 and b" is Python " in err


# ---- psutil

FETCHER = r"""#!/bin/sh
# Has no psutil; writes down what it is asked to do and does it as if it were Python
case "$*" in
*import*) printf 'ok\n\n\n'; exit ;;
*comrade.py*) mkdir -p "$LEORONIC_HOME"; echo up; exit ;;
esac
echo "$*" >>"$NOTES"
for last; do :; done
case "$*" in
*"-m venv"*) mkdir -p "$last/lib/python3.9/site-packages" "$last/bin" ;;
*"-m pip"*) mkdir -p "$TMPDIR/pip-unpack" ;; # which pip removes unless it is stopped
esac
case "$*" in
*"$WHEN"*) exec $THEN ;;
esac
"""


@pytest.fixture
def fetching(program: Path, tmp_path: Path) -> Dict[str, str]:
    python = fake(tmp_path / "bin", "python3", FETCHER)
    (tmp_path / "tmp").mkdir()
    return {
        "TMPDIR": str(tmp_path / "tmp"),
        "PATH": "%s:/usr/bin:/bin" % python.parent,
        "NOTES": str(tmp_path / "notes"),
        "THEN": "true",
        "WHEN": "",
        "LEORONIC_PYTHON": str(python),
    }


def wait_until_gone(state: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(state):
        assert time.monotonic() < deadline, "still there after %s s" % seconds
        time.sleep(0.05)


def test_with_discovery_off_psutil_is_missed_but_not_fetched(
    program: Path, fetching: Dict[str, str], tmp_path: Path
) -> None:
    for value in ("off", " off ", "0", "maybe"):
        ran = launch(program, **dict(fetching, LEORONIC_DISCOVERY=value))
        assert ran[:2] == (0, b"up\n")
        assert ran[2].startswith(b"leoronic: psutil is not installed; starting without")
        assert ran[2].count(b"\n") == 1
        assert processes_of(tmp_path / "state dir") == []
    assert not (tmp_path / "notes").exists()
    assert os.listdir(str(tmp_path / "state dir")) == []


def test_psutil_is_fetched_once_for_the_next_start(
    program: Path, fetching: Dict[str, str], tmp_path: Path
) -> None:
    state, notes = tmp_path / "state dir", tmp_path / "notes"
    fetching["LEORONIC_DISCOVERY"] = "on"
    assert launch(program, **fetching)[:2] == (0, b"up\n")
    wait_until_gone(state, 10)
    asked = notes.read_text().splitlines()
    assert asked == [
        "-E -m venv --without-pip -- %s/venv-new" % state,
        "-E -m pip install --only-binary :all: --target "
        "%s/venv-new/lib/python3.9/site-packages psutil" % state,
    ]
    assert sorted(os.listdir(str(state))) == ["venv", "venv-tried"]
    launch(program, "--background", **fetching)
    wait_until_gone(state, 10)
    assert notes.read_text().splitlines() == asked


@pytest.mark.parametrize("when", ["-m venv", "-m pip"])
@pytest.mark.parametrize("then, seconds", [("false", 5.0), ("sleep 60", 10.5)])
def test_a_fetch_that_fails_or_hangs_is_over_in_time_and_leaves_nothing(
    then: str,
    seconds: float,
    when: str,
    program: Path,
    fetching: Dict[str, str],
    tmp_path: Path,
) -> None:
    state = tmp_path / "state dir"
    fetching.update(LEORONIC_DISCOVERY="on", THEN=then, WHEN=when)
    began = time.monotonic()
    assert launch(program, **fetching)[:2] == (0, b"up\n")
    assert time.monotonic() - began < 5  # not held up
    wait_until_gone(state, seconds)
    assert os.listdir(str(state)) == ["venv-tried"]
    assert os.listdir(fetching["TMPDIR"]) == []


def test_no_state_directory_is_made_by_the_fetch(
    program: Path, fetching: Dict[str, str], tmp_path: Path
) -> None:
    launcher = program / "leoronic"
    launcher.write_text(
        launcher.read_text().replace("FETCH_TERM_S=8 ", "FETCH_TERM_S=1 ")
    )
    text = FETCHER.replace('mkdir -p "$LEORONIC_HOME"; ', "")
    fake(tmp_path / "bin", "python3", text)
    launch(program, **dict(fetching, LEORONIC_DISCOVERY="on"))
    wait_until_gone(tmp_path / "state dir", 3.0)
    assert not (tmp_path / "state dir").exists() and not (tmp_path / "notes").exists()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_nothing_is_fetched_unless_a_comrade_is_to_stay(
    option: str, program: Path, fetching: Dict[str, str], tmp_path: Path
) -> None:
    ran = launch(program, option, **dict(fetching, LEORONIC_DISCOVERY="on"))
    assert ran == (0, b"up\n", b"")
    assert processes_of(tmp_path / "state dir") == []


# ---- the marked lines


def test_the_marked_lines_run_in_bash_with_the_utilities(program: Path) -> None:
    assert launch(program, "--marked-lines") == (0, b"", b"")
    launcher = program / "leoronic"
    lines = "false\necho $unset $-; declare -F leoronic_add_tag; pwd; leoronic_nodes\n"
    place = "# leoronic_add_tag has_gpu\n"
    assert place in launcher.read_text()
    launcher.write_text(launcher.read_text().replace(place, place + lines))
    code, out, err = launch(program, "--marked-lines")
    assert (code, out) == (3, b"hB\nleoronic_add_tag\n/\n")
    assert err.startswith(b"leoronic: no comrade is reachable from here; ")
