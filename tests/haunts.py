"""Real ghosts for tests, each with its own folders, address and environment.

    with Haunted(2, 2) as haunted:            # two comrades, two ghosts
        haunted.nodes[0].add("echo hi", "worker:tag ghost1")

On loopback, with discovery off, as helpers.Node; ghost i has the tag `ghosti`.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, Type

from cluster import Cluster, Member, until
from helpers import CHECKOUT, processes_of

from journal import Journal

STOP_TIMEOUT_S = 10.0


class Ghost:
    """One ghost; `start` it, with the argument that its user would give."""

    def __init__(self, top: Path, node: Member, number: int, peers: List[str]) -> None:
        self.address = "127.0.0.%d" % (30 + number)
        self.home = top / ("ghost state %d" % number)
        self.directory = top / ("ghost %d" % number)
        self.directory.mkdir()
        self.log = top / ("ghost %d.log" % number)
        self.env = dict(node.env, LEORONIC_HOME=str(self.home))
        self.env.update(LEORONIC_ADDRESS=self.address, LEORONIC_CORES="2")
        self.env.update(LEORONIC_TAGS="ghost%d spooky" % number)
        self.env["LEORONIC_PEERS"] = " ".join(peers)
        self.process: Optional[subprocess.Popen[bytes]] = None

    def start(self, *args: str) -> None:
        """Start it; it isn't attached yet."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.env["LEORONIC_PYTHON"], str(CHECKOUT / "ghost.py"), *args],
                env=self.env,
                cwd=str(self.directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def kept(self) -> List[str]:
        """Give the records that a kill would leave: with ends that nobody has yet."""
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(str(self.home / "queue"), os.path.join(copy, "queue"))
            journal = Journal(copy, 0, 1 << 20)
            journal.open()
            keys = [key for key, _ in journal.rows()]
            journal.close()
        return keys

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop it; fail if a process of it was left behind."""
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.stop()
            until("nothing is left", lambda: not processes_of(self.home), 5)


class Haunted(Cluster):
    """Comrades and ghosts, all started."""

    def __init__(self, count: int, ghosts: int, first: int = 11, **more: Any) -> None:
        super().__init__(count, first, **more)
        self.ghosts = [
            Ghost(self.nodes[0].top, self.nodes[0], n + 1, self.addresses)
            for n in range(ghosts)
        ]

    def await_attached(
        self, ghost: Ghost, node: Member, seen_by: Optional[Member] = None
    ) -> float:
        """Wait until a ghost is one of that comrade; give the seconds it took."""
        began = time.monotonic()
        until(
            "%s is a ghost of %s\n%s" % (ghost.address, node.address, ghost.printed()),
            lambda: self.clairvoyant(ghost, seen_by or node) == node.address,
            25,
        )
        return time.monotonic() - began

    @staticmethod
    def clairvoyant(ghost: Ghost, seen_by: Member) -> str:
        """Give the address of a ghost's clairvoyant, '' if it has none."""
        row: Dict[str, Any] = seen_by.members().get(ghost.address, {})
        return str(row.get("clairvoyant") or "").rpartition("@")[2]

    def __enter__(self) -> "Haunted":
        super().__enter__()
        try:
            for ghost in self.ghosts:
                ghost.start()
            for ghost in self.ghosts:
                self.await_attached(ghost, self.nodes[0])
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
        if problem is not None:
            for ghost in self.ghosts:
                log = ghost.home / "log"
                print(ghost.printed(), log.read_text() if log.exists() else "")
        super().__exit__(kind, problem, traceback)

    def close(self) -> None:
        try:
            for ghost in self.ghosts:
                ghost.close()
        finally:
            super().close()


def relays_of(node: Member) -> List[int]:
    """Give the relay processes of a comrade."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            status = Path("/proc", entry, "status").read_text()
        except OSError:
            continue
        is_its = "PPid:\t%d\n" % node.pid in status
        if is_its and any(word.endswith(b"relay.py") for word in words):
            found.append(int(entry))
    return found
