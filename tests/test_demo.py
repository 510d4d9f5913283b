"""`bash leoronic --demo`: it shows what it promises, and leaves nothing behind.

Every process that a demo starts inherits a mark in its environment, so that what is
left can be told from what other tests run. The program is copied: blanks in its path,
and nothing may be written beside it.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
from helpers import CHECKOUT

import conditions
from comrade import EXIT_SYSTEM

DEMO_TIMEOUT_S = 60.0  # some 10 s on two cores with nothing else to do
STOP_TIMEOUT_S = 15.0  # from a signal to the end
GONE_TIMEOUT_S = 3.0  # a process that has ended may still be listed for a moment
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
TELLING = "# All stop, and nothing of this is left."

pytestmark = pytest.mark.timeout(DEMO_TIMEOUT_S + STOP_TIMEOUT_S + 15)


class Demo:
    """A demo in folders of its own."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.program = top / "pro gram"
        self.temporary = top / "tem porary"
        self.mark = "DEMO_OF=%s" % top
        self.printed = ""
        self.process: Optional[subprocess.Popen[bytes]] = None
        skip = shutil.ignore_patterns(".*", "tests", "__pycache__")
        shutil.copytree(str(CHECKOUT), str(self.program), ignore=skip)
        self.temporary.mkdir()
        self.files_before = self.files()

    def start(self, **more: str) -> None:
        name, value = self.mark.split("=")
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.top),
            "TMPDIR": str(self.temporary),
            "LEORONIC_PYTHON": os.environ["LEORONIC_PYTHON"],
            # The user's own settings are not the demo's.
            "LEORONIC_HOME": str(self.top / "home"),
            "LEORONIC_TAGS": "of_the_user",
            "LEORONIC_PEERS": "192.0.2.1",
            name: value,
        }
        self.process = subprocess.Popen(
            ["bash", str(self.program / "leoronic"), "--demo"],
            cwd="/",
            env=dict(env, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, as a terminal gives
        )

    def read_until(self, text: str) -> None:
        """Read what is printed until a line has the text, or to the end."""
        assert self.process and self.process.stdout
        for line in iter(self.process.stdout.readline, b""):
            self.printed += line.decode()
            if text and text in line.decode():
                return

    def finish(self, timeout: float) -> int:
        """Wait for the end; return the exit code."""
        assert self.process and self.process.stdout
        if not self.process.stdout.closed:
            self.printed += self.process.communicate(timeout=timeout)[0].decode()
        return self.process.wait(timeout)

    def output_of(self, command: str) -> str:
        """Return what was shown under the last line that has this command."""
        start = self.printed.rindex(command)
        start = self.printed.index("\n", start) + 1
        return re.split(r"^(?:\$ |# )", self.printed[start:], flags=re.M)[0].rstrip()

    def files(self) -> List[str]:
        """List all files, but for what Python itself keeps of a program."""
        found = [str(path) for path in self.top.rglob("*")]
        return sorted(path for path in found if "__pycache__" not in path)

    def left(self) -> List[str]:
        """Name processes, files and ports that are there still."""
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.02)
        found = ["process %d" % pid for pid in self.pids()]
        found += [path for path in self.files() if path not in self.files_before]
        for port in set(re.findall(r" is ready at [\d.]+:(\d+)", self.printed)):
            for address in ADDRESSES:
                with socket.socket() as probe:
                    if probe.connect_ex((address, int(port))) == 0:
                        found.append("port %s:%s" % (address, port))
        return found

    def pids(self) -> List[int]:
        mark = b"\0" + os.fsencode(self.mark) + b"\0"
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue  # gone, or another user's
            if mark in b"\0" + environ:
                found.append(int(entry))
        return found

    def close(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    made.close()


def test_the_demo_shows_what_it_promises_and_leaves_nothing(demo: Demo) -> None:
    demo.start()
    assert demo.finish(DEMO_TIMEOUT_S) == 0, demo.printed
    assert demo.left() == []
    text = demo.printed
    assert text.count(" is ready at 127.0.0.") == 3
    assert len(demo.output_of("$ leoronic_nodes").splitlines()) == 6
    assert "of_the_user" not in text

    # README's tasks, the third of which is an open quote to bash
    assert "unexpected EOF while looking for matching `''" in text
    assert demo.output_of("$ leoronic_get_output $LEORONIC_ID") == "what's up"

    # a condition of each kind, a file
    for verb in conditions.GRAMMAR:
        assert verb in text
    assert "not yet  worker:tag printer: on no node" in text
    sorted_lines = demo.output_of("$ leoronic_get_output f").split()
    assert sorted_lines[:2] == ["apple", "pear"]
    assert re.fullmatch(r"leoronic-\w+-\d+\.txt", sorted_lines[2])
    assert demo.output_of("$ ls ../2") == ""

    # the death of a comrade
    killed = demo.output_of("$ leoronic_get_queue running")
    survivor = demo.output_of("$ leoronic_get_output long")
    first = re.findall(r"@(127\.0\.0\.[34])", killed)
    again = re.findall(r"^attempt 2 on .*@(127\.0\.0\.[34])$", survivor, re.MULTILINE)
    assert sorted(first + again) == ["127.0.0.3", "127.0.0.4"]
    assert demo.output_of("$ leoronic_get_queue").count(" done ") == 16
    assert TELLING in text

    # two ghosts, and the death of the clairvoyant of one
    assert text.count("leoronic: ghost ") == 2
    eerie = demo.output_of("$ leoronic_get_output eerie")
    assert re.fullmatch(r"attempt 1 on .*@127\.0\.0\.6\nstill here", eerie)
    at_last = text.rpartition("$ leoronic_nodes")[2]
    assert len(re.findall(r" ghost of \S+@127\.0\.0\.2 ", at_last)) == 2


@pytest.mark.parametrize(
    "seen, number, code",
    [
        ("# Three comrades", signal.SIGINT, 130),
        (" is ready at ", signal.SIGTERM, 143),
        ("# --- Conditions", signal.SIGINT, 130),
        ("$ kill -9", signal.SIGHUP, 143),
    ],
)
def test_a_demo_that_is_interrupted_leaves_nothing(
    seen: str, number: signal.Signals, code: int, demo: Demo
) -> None:
    demo.start()
    demo.read_until(seen)
    assert demo.process
    os.killpg(demo.process.pid, number)  # as a terminal does
    assert demo.finish(STOP_TIMEOUT_S) == code, demo.printed
    assert TELLING not in demo.printed
    assert demo.left() == []


def test_a_demo_that_is_told_to_stop_takes_its_comrades_with_it(demo: Demo) -> None:
    demo.start()
    demo.read_until("# --- Tasks")
    assert demo.process
    demo.process.terminate()  # it alone gets the signal
    assert demo.finish(STOP_TIMEOUT_S) == 143
    assert demo.left() == []


def test_a_demo_that_nobody_reads_ends_and_leaves_nothing(demo: Demo) -> None:
    demo.start()
    demo.read_until("# --- Tasks")
    assert demo.process and demo.process.stdout
    demo.process.stdout.close()  # as `| head` does
    demo.finish(STOP_TIMEOUT_S)
    assert demo.left() == []


def test_a_demo_that_fails_says_so_and_leaves_nothing(demo: Demo) -> None:
    demo.start(LEORONIC_PYTHON="/nowhere/python3")
    assert demo.finish(DEMO_TIMEOUT_S) == EXIT_SYSTEM
    assert "a comrade did not start at 127.0.0.2" in demo.printed
    assert "LEORONIC_PYTHON is /nowhere/python3" in demo.printed
    assert demo.left() == []
