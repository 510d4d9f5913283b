"""The harness itself, with a stub in the place of comrade.py."""

import os
import shutil
import signal
from pathlib import Path

import helpers
import pytest
from helpers import CHECKOUT, Node, processes_of

STUB = r"""
import os, signal, socket, subprocess, sys, time
home, address = os.environ["LEORONIC_HOME"], os.environ["LEORONIC_ADDRESS"]
mode = os.environ.get("MODE", "")
if mode == "fails":
    sys.exit("leoronic: no luck")
os.makedirs(home, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(5)
with open(home + "/control", "w") as control:
    control.write("%d\ntoken\n%d\n" % (listener.getsockname()[1], os.getpid()))
if mode == "leaves":
    subprocess.Popen(["sleep", "60"], start_new_session=True)
if mode != "mute":
    port = os.environ["LEORONIC_PORT"]
    print("old1 is ready at %s:%s with 2 cores" % (address, port), flush=True)
while True:
    link = listener.accept()[0]
    link.recv(65536)
    link.sendall(b"L %d\nE \xff\nX 1\n" % os.getpid())
    link.close()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a folder with the launcher, the utilities and a stub of a comrade."""
    for name in ("leoronic", "leoronic_utilities"):
        shutil.copy(str(CHECKOUT / name), str(tmp_path))
    (tmp_path / "comrade.py").write_text(STUB)
    return tmp_path


def test_a_node_is_up_in_the_block_and_gone_without_a_trace_after_it(
    program: Path,
) -> None:
    with Node(address="127.0.0.2", program=program) as node:
        assert processes_of(node.home) == [node.pid]
        assert os.readlink("/proc/%d/cwd" % node.pid) == str(node.directory)
        assert node.sh("leoronic_nodes") == (1, b"%d\n" % node.pid, b"\xff\n")
        assert node.sh("cat; pwd", stdin=b"x\n", cwd=node.top)[1] == (
            b"x\n%s\n" % str(node.top).encode()
        )
    assert processes_of(node.home) == [] and not node.top.exists()


def test_a_node_can_be_killed_stopped_and_restarted(program: Path) -> None:
    with Node(program=program) as node:
        first = node.pid
        node.restart()
        assert node.pid != first
        node.kill9()
        assert processes_of(node.home) == []
        assert node.sh("leoronic_nodes")[0] == 3
        node.start()
        assert node.stop() == 0


def test_a_node_that_fails_shows_what_it_printed(program: Path) -> None:
    with pytest.raises(AssertionError, match="exit 1:\n(.*\n)*leoronic: no luck"):
        Node(program=program, env={"MODE": "fails"}).__enter__()


def test_a_node_that_is_never_ready_is_given_up(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "READY_TIMEOUT_S", 1.0)
    node = Node(program=program, env={"MODE": "mute"})
    with pytest.raises(AssertionError, match="not ready"):
        node.__enter__()
    assert processes_of(node.home) == [] and not node.top.exists()


def test_a_process_that_is_left_behind_fails_the_test(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "GONE_TIMEOUT_S", 0.2)
    with pytest.raises(AssertionError, match="left behind: .*sleep 60"):
        with Node(program=program, env={"MODE": "leaves"}):
            pass


def test_a_node_that_ignores_the_stop_is_killed(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "STOP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(helpers, "GONE_TIMEOUT_S", 0.2)
    node = Node(program=program)
    node.start()
    os.kill(node.pid, signal.SIGSTOP)
    with pytest.raises(Exception, match="timed out"):
        node.close()
    assert processes_of(node.home) == [] and not node.top.exists()
