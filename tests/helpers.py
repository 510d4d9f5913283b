"""Real comrades for tests: each with its own folders, address and environment.

    with Node() as node:
        code, out, err = node.sh("leoronic_add_task 1K 1 1K true '' '' 'echo hello'")

Nodes of one test find each other when they share a port and are told `peers`; they all
have the same cookie. Nothing here reaches another machine: addresses are loopback
ones and discovery is off. Only processes that a Node started are killed, by pid.
"""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Type, Union

CHECKOUT = Path(__file__).resolve().parent.parent
COOKIE = "00112233445566778899aabbccddeeff" * 2 + "\n"
READY_TIMEOUT_S = 20.0  # from the start to the ready line, on a busy machine
STOP_TIMEOUT_S = 10.0  # CONTRACT says 2 s; a test of that measures it
GONE_TIMEOUT_S = 5.0  # until no process of the node is left (D13: 1 s)
POLL_S = 0.02


def cpu_s(work: Callable[[], object]) -> float:
    """Call it three times; return the least seconds of the processor that it took.

    Without what Python takes to look for garbage among all that the tests hold (0.1 s).
    """
    gc.collect()
    gc.freeze()
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    gc.unfreeze()
    return min(taken)


def free_port(addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """Return a port that is free, for TCP and UDP, at all of these addresses."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = int(first.getsockname()[1])
        if all(_is_free(address, port) for address in addresses):
            return port
    raise AssertionError("no port is free at all of %s" % (addresses,))


def _is_free(address: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def processes_of(home: Path) -> List[int]:
    """Return the living processes that carry this LEORONIC_HOME."""
    mark = b"\0LEORONIC_HOME=" + os.fsencode(str(home)) + b"\0"
    found = []
    for entry in os.listdir("/proc"):
        try:
            environ = Path("/proc", entry, "environ").read_bytes()
        except OSError:
            continue  # not a process, gone, or another user's
        if entry.isdigit() and mark in b"\0" + environ:
            found.append(int(entry))
    return sorted(found)


class Node:
    """A comrade in a folder of its own, up from `with` on, or from start()."""

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: Optional[int] = None,
        peers: Sequence[str] = (),
        program: Path = CHECKOUT,
        python: str = sys.executable,
        env: Optional[Dict[str, str]] = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Prepare folders; prefix is put before all that is run, such as setpriv."""
        self.prefix = list(prefix)
        self.address = address
        self.port = port or free_port([address])
        self.program = program
        # A blank in every path: what isn't quoted shows.
        self.top = Path(tempfile.mkdtemp(prefix="leoronic test "))
        self.home = self.top / "state of node"
        self.directory = self.top / "working directory"
        self.log = self.top / "out"
        self.directory.mkdir()
        cookie = self.top / "cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o600)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.top),
            "LC_ALL": os.environ.get("LC_ALL", "C"),
            "LEORONIC_PYTHON": python,
            "LEORONIC_HOME": str(self.home),
            "LEORONIC_ADDRESS": address,
            "LEORONIC_PORT": str(self.port),
            "LEORONIC_PEERS": " ".join(peers),
            "LEORONIC_DISCOVERY": "off",
            "LEORONIC_COOKIE_FILE": str(cookie),
        }
        self.env.update(env or {})
        self.process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> "Node":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        problem: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self.process, "the node was not started"
        return self.process.pid

    def start(self) -> None:
        """Start the comrade, return at its ready line; what it printed is in log."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start the comrade and don't wait for it."""
        assert self.process is None or self.process.poll() is not None
        with open(str(self.log), "wb") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command()],
                cwd=str(self.directory),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(self) -> List[str]:
        """Give what is run to start it."""
        return ["bash", str(self.program / "leoronic")]

    def await_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return at the ready line of the comrade that was started."""
        assert self.process, "the node was not started"
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            code = self.process.poll()
            assert code is None, "exit %s:\n%s" % (code, self.printed())
            assert time.monotonic() < deadline, "not ready:\n%s" % self.printed()
            time.sleep(POLL_S)

    def is_ready(self) -> bool:
        """Tell whether the ready line, with the address, is out."""
        ready = r" is ready at %s:%d\b" % (re.escape(self.address), self.port)
        return re.search(ready, self.printed()) is not None

    def printed(self) -> str:
        """Return what the comrade has printed, on stdout and stderr, since start."""
        return self.log.read_text(errors="replace")

    def sh(
        self,
        script: Union[str, bytes],
        timeout: float = 60.0,
        stdin: bytes = b"",
        cwd: Optional[Path] = None,
        env: Optional[Dict[str, str]] = None,
    ) -> Tuple[int, bytes, bytes]:
        """Run the script in bash with the utilities; return code, stdout, stderr.

        It starts in the node's working directory, unless cwd says where.
        """
        text = script if isinstance(script, str) else os.fsdecode(script)
        utilities = str(self.program / "leoronic_utilities")
        script = 'source "$0"\n' + text
        bash = ["bash", "--norc", "--noprofile", "-c", script, utilities]
        done = subprocess.run(
            [*self.prefix, *bash],
            cwd=str(cwd or self.directory),
            env=dict(self.env, **(env or {})),
            input=stdin,
            capture_output=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout, done.stderr

    def kill9(self) -> None:
        """Kill the comrade's own process; its watcher does the rest, as in a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Stop the comrade as SIGTERM does; return its exit code."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start it again, in the same state; stop it first if it is up."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> int:
        assert self.process, "the node was not started"
        self.process.send_signal(number)  # does nothing to one that has ended
        return self.process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop it, remove its folders; fail if a process of it was left behind."""
        try:
            if self.process:
                self.stop()
        finally:
            left = self._kill_what_is_left()
            shutil.rmtree(str(self.top), ignore_errors=True)
        assert not left, "left behind: %s" % left
        assert not self.top.exists(), "%s can't be removed" % self.top

    def _kill_what_is_left(self) -> List[str]:
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while processes_of(self.home) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        left = []
        for pid in processes_of(self.home):
            try:
                command = Path("/proc", str(pid), "cmdline").read_bytes()
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue  # gone by now
            left.append("%d %s" % (pid, command.replace(b"\0", b" ").decode()))
        if self.process:
            self.process.wait(STOP_TIMEOUT_S)
        return left
