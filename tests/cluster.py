"""Clusters of real comrades for tests, and a ledger that their tasks write.

    with Cluster(3) as cluster:
        cluster.nodes[0].add(cluster.ledger.task("a"))

All on loopback addresses, told of each other, discovery off (helpers.Node). The
laboratory puts the same kind of nodes into network namespaces (tests/netlab.py).

The ledger is a file outside the cluster. Each task that `Ledger.task` makes appends a
line when it starts and one when it ends, so starts, ends and duplicates are counted
independently of what Leoronic says (Jepsen's way). A task waits for the *gate*, a
file, where a test must find it running.
"""

import json
import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from helpers import Node, free_port

POLL_S = 0.02
ARGUMENT_BYTES = 100000  # Linux takes 128 KiB in one argument
PATIENCE_S = 20.0  # for what takes a moment, on a busy machine; not a measure
T = TypeVar("T")


def until(what: str, holds: Callable[[], T], seconds: float = PATIENCE_S) -> T:
    """Wait until `holds` gives something true, and give it; fail with `what`."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, "not within %g s: %s" % (seconds, what)
        time.sleep(POLL_S)


class Line(NamedTuple):
    """What one task did: start or end, which run of it, where, when."""

    what: str
    task: str
    run: str
    node: str
    at: float

    @property
    def attempt(self) -> int:
        return int(self.run.partition(".")[0])


class Ledger:
    """What tasks did, by their own account."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger"
        self.gate = folder / "gate"
        self.path.write_text("")

    def task(self, name: str, seconds: float = 0, gated: bool = False) -> str:
        """Give a command that tells the ledger its start and its end."""
        tell = 'echo %s %s "$LEORONIC_RUN" "$LEORONIC_NODE" "$(date +%%s.%%N)" >>%s'
        path = shlex.quote(str(self.path))
        gate = "until test -e %s; do sleep 0.1; done; " % shlex.quote(str(self.gate))
        return "%s; %ssleep %g; %s" % (
            tell % ("start", name, path),
            gate if gated else "",
            seconds,
            tell % ("end", name, path),
        )

    def open_gate(self) -> None:
        """Let all gated tasks go on."""
        self.gate.write_text("")

    def lines(self, what: str = "", task: str = "") -> List[Line]:
        """Give the lines so far, all or those of one kind, one task."""
        found = []
        for text in self.path.read_text().splitlines():
            kind, name, run, node, at = text.split(" ")
            if what in ("", kind) and task in ("", name):
                found.append(Line(kind, name, run, node, float(at)))
        return found

    def starts(self) -> Dict[str, int]:
        """Count the starts of each task."""
        count: Dict[str, int] = {}
        for line in self.lines("start"):
            count[line.task] = count.get(line.task, 0) + 1
        return count

    def running(self) -> Dict[str, Line]:
        """Give the last start of each task that has no end yet."""
        over = {line.run for line in self.lines("end")}
        return {line.task: line for line in self.lines("start") if line.run not in over}

    def extra(self) -> Dict[str, int]:
        """Give the starts beyond the first of tasks that have any."""
        return {task: n - 1 for task, n in self.starts().items() if n > 1}

    def amiss(self, tasks: Sequence[str]) -> Tuple[List[str], List[str]]:
        """Give which of these never ended, and which ran that aren't of these."""
        ended = {line.task for line in self.lines("end")}
        return sorted(set(tasks) - ended), sorted(set(self.starts()) - set(tasks))

    def check(self, tasks: Sequence[str], extra: Sequence[str] = ()) -> None:
        """Check that each ended, none is unknown, and none but `extra` began twice."""
        lost, unexpected = self.amiss(tasks)
        doubled = sorted(set(self.extra()) - set(extra))
        assert not (lost or unexpected or doubled), (
            "lost %s, unexpected %s, twice %s in\n%s"
            % (lost, unexpected, doubled, self.path.read_text())
        )


class Member(Node):
    """A node that tests talk to in the words of its users."""

    def call(self, *words: str, **more: Any) -> str:
        """Call a utility that must succeed; give what it printed."""
        code, out, err = self.sh(" ".join(map(shlex.quote, words)), **more)
        assert code == 0, "%s: exit %d\n%s\n%s" % (
            *(words, code, err.decode(errors="replace")),
            self.told(),
        )
        return out.decode(errors="surrogateescape")

    def told(self) -> str:
        """Give what the comrade printed and logged, for a failed test."""
        log = self.home / "log"
        logged = log.read_text(errors="replace") if log.exists() else "no log"
        return "%s printed:\n%s\nlog:\n%s" % (
            *(self.address, self.printed()),
            logged[-4000:],
        )

    def add(
        self, command: str, conditions: str = "", files: str = "", **more: str
    ) -> str:
        """Add a task; give its id. `more`: ID, CORES, CONCURRENCY, options."""
        words = ["leoronic_add_task", *more.get("options", "").split()]
        words += ["1K", more.get("cores", "1"), "1K", more.get("concurrency", "true")]
        words += [conditions, files, command]
        words += [more["name"]] if "name" in more else []
        return self.call(*words).strip()

    def add_all(self, commands: Sequence[str], conditions: str = "") -> List[str]:
        """Add tasks in one call; give their ids."""
        lines = [
            " ".join(map(shlex.quote, ["1K", "1", "1K", "true", conditions, "", text]))
            for text in commands
        ]
        listed = "\n".join(lines)
        if len(listed) < ARGUMENT_BYTES:
            return self.call("leoronic_add_tasks_from_str", listed).split()
        path = self.top / "list"
        path.write_text(listed)
        words = ("leoronic_add_tasks_from_file", str(path))
        return self.call(*words, timeout=600.0).split()

    def rows(self) -> List[Dict[str, Any]]:
        """Give the queue; the reasons to wait, which nodes see differently, without."""
        rows: List[Dict[str, Any]] = json.loads(
            self.call("leoronic_get_queue", "--json")
        )
        for row in rows:
            del row["reason"]
        return rows

    def states(self) -> Dict[str, str]:
        """Give the state of each task."""
        return {row["id"]: row["state"] for row in self.rows()}

    def state(self, task: str) -> str:
        """Give the state of one task; 'unknown' if it isn't in the queue."""
        return self.states().get(task, "unknown")

    def members(self) -> Dict[str, Dict[str, Any]]:
        """Give the rows of leoronic_nodes, by address.

        Who came back with an empty disk is another node; the former is lost.
        """
        rows = json.loads(self.call("leoronic_nodes", "--json"))
        rows.sort(key=lambda row: row["state"] != "lost")
        return {row["address"]: row for row in rows}

    def ready(self) -> List[str]:
        """Give the addresses of the nodes that are ready, as this one sees it."""
        return [a for a, row in self.members().items() if row["state"] == "ready"]

    def output(self, task: str, *flags: str) -> bytes:
        """Give what a task printed."""
        code, out, err = self.sh(" ".join(["leoronic_get_output", *flags, task]))
        assert code == 0, "%d %r\n%s" % (code, err, self.told())
        return out

    def wait(self, *tasks: str, seconds: float = 40) -> int:
        """Wait for tasks (all unfinished ones); give the exit code.

        An acknowledged task is on two nodes; this may be the third, so it is awaited.
        """
        until("known: %s" % (tasks,), lambda: self.states().keys() >= set(tasks))
        words = ["leoronic_wait", "--timeout", "%g" % seconds, *tasks]
        return self.sh(" ".join(words), timeout=seconds + 20)[0]


def at_once(things: Sequence[Callable[[], Any]]) -> List[Any]:
    """Do things beside each other; give their results in order."""
    with ThreadPoolExecutor(len(things)) as pool:
        return [done.result() for done in [pool.submit(thing) for thing in things]]


class Cluster:
    """Some nodes on loopback that are told of each other, and their ledger."""

    def __init__(
        self,
        count: int,
        first: int = 11,
        pythons: Sequence[str] = (),
        env: Optional[Dict[str, str]] = None,
    ) -> None:
        self.addresses = ["127.0.0.%d" % (first + i) for i in range(count)]
        self.port = free_port(self.addresses)
        self.env = {"LEORONIC_CORES": "4", "LEORONIC_MEMORY": "1G"}
        self.env.update(env or {})
        self.all: List[Member] = []
        self.nodes = [
            self.node(address, python=python)
            for address, python in zip(
                self.addresses, list(pythons) or [os.environ["LEORONIC_PYTHON"]] * count
            )
        ]
        self.ledger = Ledger(self.nodes[0].top)
        self.joined_s = 0.0  # from the last start until all saw all

    def node(self, address: str, **more: Any) -> Member:
        """Make one more node, which isn't started yet."""
        peers = [a for a in self.addresses if a != address]
        env = dict(self.env, **more.pop("env", {}))
        more.setdefault("python", os.environ["LEORONIC_PYTHON"])
        node = Member(address, self.port, peers, env=env, **more)
        self.all.append(node)
        return node

    def start(self) -> None:
        """Start the nodes one after the other; return once all see all."""
        for node in self.nodes:
            began = time.monotonic()
            node.start()
        self.await_all()
        self.joined_s = time.monotonic() - began

    def start_at_once(self) -> None:
        """Start the nodes beside each other; return once all see all."""
        began = time.monotonic()
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.await_ready()
        self.await_all()
        self.joined_s = time.monotonic() - began

    def await_all(self, nodes: Optional[Sequence[Member]] = None) -> None:
        """Wait until these nodes (all) see just these ready."""
        chosen = self.nodes if nodes is None else nodes
        await_component(chosen)

    def __enter__(self) -> "Cluster":
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
        if problem is not None:
            for node in self.all:
                if node.log.exists():
                    print(node.told())
        self.close()

    def close(self) -> None:
        """Stop and remove all nodes, whatever becomes of one of them."""
        close_all(self.all)


def close_all(nodes: Sequence[Node]) -> None:
    """Close nodes beside each other; fail as the first that fails."""
    if nodes:
        at_once([node.close for node in nodes])


def await_component(nodes: Sequence[Member], seconds: float = PATIENCE_S) -> None:
    """Wait until each of these nodes sees just these ready."""
    addresses = sorted(node.address for node in nodes)
    until(
        "%s all see each other, and nobody else" % addresses,
        lambda: all(sorted(node.ready()) == addresses for node in nodes),
        seconds,
    )


def await_equal(
    nodes: Sequence[Member], seconds: float = PATIENCE_S
) -> List[Dict[str, Any]]:
    """Wait until the queue is equal at all nodes (D11); give it."""

    def are_equal() -> Union[bool, List[List[Dict[str, Any]]]]:
        found = [node.rows() for node in nodes]
        return all(rows == found[0] for rows in found) and found

    found = until("equal queues", are_equal, seconds)
    assert not isinstance(found, bool)
    return found[0]
