"""Comrades whose disk fails: one call of one kind, made to fail from outside by strace.

    fault = Fault("fsync", "EIO", 7)       the 7th fsync of each thread
    count = calls("fsync")                 how many there are in the scenario
    try_fault(fault, beside=1)             0: alone; 1: with one sound comrade beside

The scenario: a first start, tasks added and run, SIGKILL; a start without faults, where
everything acknowledged must be there and all tasks must end. `again`: the same, but the
faults begin at a second start, on what is there already. Whatever fails, it is told in
words (no traceback), and a start that can't be says so with 111.

All fsyncs and renames of a comrade, and all that SQLite writes, are on its state
directory; of other writes and opens only those at the paths in PATHS are touched, since
tasks, sockets and Python's own modules have theirs.
"""

import os
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import (
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from cluster import Cluster, Member, await_component, until
from crashes import Story, acts, await_gone
from helpers import POLL_S, READY_TIMEOUT_S

KINDS = {  # what fails: the system calls, and whether only at PATHS
    "fsync": (("fsync", "fdatasync"), False),
    "rename": (("rename", "renameat", "renameat2"), False),
    "pwrite": (("pwrite64",), False),
    "write": (("write",), True),
    "open": (("openat",), True),
}
PATHS = (
    "queue queue/db queue/db-wal queue.new queue.new/db queue.new/db-wal queue.made "
    "ballast control.new files lock log outputs runs".split()
)
ENDED_S = 20.0  # for the tasks of a scenario, some of which a fault delays


class Fault(NamedTuple):
    """The nth call of a kind fails, in each thread; or each from the nth on."""

    kind: str
    error: str
    n: int
    is_lasting: bool = False


class Faulty(Member):
    """A node that runs under strace."""

    fault: Optional[Fault] = None  # None: it is only traced
    kind = "fsync"
    is_traced = True

    @property
    def trace(self) -> Path:
        return self.top / "strace"

    def command(self) -> List[str]:
        if not self.is_traced:
            return super().command()
        names, only_paths = KINDS[self.fault.kind if self.fault else self.kind]
        # -D: the comrade stays the child of the test, with the pid that it knows.
        words = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", str(self.trace)]
        if only_paths:
            words += [w for p in ["", *PATHS] for w in ("-P", str(self.home / p))]
        words += ["-e", "trace=" + ",".join(names)]
        if self.fault is not None:
            _, error, n, is_lasting = self.fault
            when = "%d%s" % (n, "+" if is_lasting else "")
            inject = "inject=%s:error=%s:when=%s" % (",".join(names), error, when)
            words += ["-e", inject]
        return [*words, *super().command()]

    def comes_up(self) -> bool:
        """Start it; say if it came up, else check that it said why not."""
        self.launch()
        assert self.process
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.is_ready():
            code = self.process.poll()
            if code is not None:
                assert code == 111, (self.fault, code, self.told())
                assert re.search(r"^leoronic: .", self.printed(), re.M), self.told()
                return False
            assert time.monotonic() < deadline, self.told()
            time.sleep(POLL_S)
        return True

    def calls(self) -> int:
        """Give the most calls that one thread has made."""
        count: Dict[str, int] = {}
        for line in self.trace.read_text(errors="replace").splitlines():
            thread, _, rest = line.partition(" ")
            if "(" in rest and "resumed" not in rest:
                count[thread] = count.get(thread, 0) + 1
        return max(count.values(), default=0)

    def was_hit(self) -> bool:
        """Say whether a call was made to fail."""
        return self.trace.exists() and "(INJECTED)" in self.trace.read_text(
            errors="replace"
        )


WAYS = {  # how a disk fails that worked until now: what strace injects
    "hangs": "fsync,fdatasync:delay_enter=%d" % (60 * 10**6),
    "is full": "pwrite64,ftruncate,ftruncate64:error=ENOSPC",
    "fails": "fsync,fdatasync:error=EIO",
}


@contextmanager
def disk_that(way: str, node: Member) -> Iterator[None]:
    """Let the disk of a running comrade hang, be full or fail for a while."""
    words = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(node.pid)]
    tracer = subprocess.Popen([*words, "-e", "inject=" + WAYS[way]])
    try:
        until("it is traced", lambda: _tracers(node.pid) == {tracer.pid})
        yield
    finally:
        tracer.kill()  # The kernel lets go of what it held up.
        tracer.wait(10)


def _tracers(pid: int) -> Set[int]:
    """Give who traces the threads of a process; 0: nobody."""
    texts = [path.read_text() for path in Path("/proc", str(pid)).glob("task/*/status")]
    return {int(text.partition("TracerPid:")[2].split()[0]) for text in texts}


def _prepared(beside: int) -> Tuple[Cluster, Faulty, Sequence[Member]]:
    cluster = Cluster(1 + beside, first=91)
    last = cluster.nodes[-1]
    peers = last.env["LEORONIC_PEERS"].split()
    python = os.environ["LEORONIC_PYTHON"]
    node = Faulty(last.address, cluster.port, peers, python=python, env=cluster.env)
    cluster.all.append(node)
    cluster.nodes[-1] = node
    return cluster, node, cluster.nodes[:-1]


def _work(node: Faulty, others: Sequence[Member], story: Story) -> None:
    """Add tasks and see them end; what is refused must be so in words."""
    for _ in acts(story, node, others[0] if others else node):
        pass
    deadline = time.monotonic() + ENDED_S
    while not story.is_over(node) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _check_words(node: Member) -> None:
    log = node.home / "log"
    text = node.printed() + (log.read_text(errors="replace") if log.exists() else "")
    assert "Traceback" not in text, node.told()


def calls(kind: str, again: bool = False) -> int:
    """Count the calls of a kind in the scenario without faults."""
    cluster, node, others = _prepared(0)
    node.kind = kind
    story = Story(cluster.ledger)
    try:
        for _ in range(1 + again):
            node.start()
            _work(node, others, story)
            node.kill9()
            await_gone(node)
        return node.calls()
    finally:
        cluster.close()


def try_fault(fault: Fault, beside: int = 0, again: bool = False) -> bool:
    """Play the scenario with a fault; say whether it hit anything."""
    cluster, node, others = _prepared(beside)
    story = Story(cluster.ledger)
    story.may_refuse = True
    try:
        for other in others:
            other.start()
        if again:
            node.is_traced = False
            node.start()
            _work(node, others, story)
            node.kill9()
            await_gone(node)
            node.is_traced = True
        node.fault = fault
        if node.comes_up():
            story.check(cluster.nodes)
            _work(node, others, story)
            assert node.process and node.process.poll() is None, node.told()
            node.kill9()
        _check_words(node)
        await_gone(node)
        node.is_traced = False
        node.start()
        if others:
            await_component(cluster.nodes)
        if "was damaged" in node.printed() or "vanished" in node.printed():
            assert others or story.lost(node) == [], node.told()
        story.check_end(cluster.nodes, node)
        _check_words(node)
        return node.was_hit()
    except AssertionError as problem:
        raise AssertionError("%s beside %d: %s" % (fault, beside, problem)) from problem
    finally:
        cluster.close()
