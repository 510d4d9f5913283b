"""Benchmarks: each figure beside a floor that is measured in the same run.

    bash tests/run --bench [NAME...]          all quick ones, or the named ones
    bash tests/run --bench --long [NAME...]   those that take many minutes, too
    ... --rounds N                            of each (5)
    LEORONIC_BENCH_PEERS=VENV ...             beside hyperqueue, hypershell and
                                              distributed, as VENV has them

Nothing here asserts: absolute times mean little on shared machines. It prints a table
in Markdown, as README has it. What it runs of peers is in table.py.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, Iterator, List

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import oldmachine
import table
from haunts import Haunted
from helpers import Node, free_port
from table import Row

TASKS, TASKS_LONG = 2000, 10000  # short ones in a round
OLD_TASKS = 10000  # on an old machine
PEER_TASKS = 300
MANY, MOST = 100000, 1000000
BIG_MIB = 1024  # of the large necessary file
IDLE_S = 20.0  # looked at while nothing happens
ADDRESSES = ["127.14.0.%d" % n for n in range(31, 39)]
SYSTEM_PYTHON = "/usr/bin/python3"  # what a user's machine has


class Asked:
    """What the command line asks for."""

    rounds = 5
    tasks = TASKS


def cluster(stack: ExitStack, count: int, cores: int) -> List[Node]:
    """Start comrades that know each other."""
    addresses = ADDRESSES[:count]
    port = free_port(addresses)
    nodes = [
        Node(
            *(address, port, [a for a in addresses if a != address]),
            python=python(),
            env={"LEORONIC_CORES": str(cores)},
        )
        for address in addresses
    ]
    return [stack.enter_context(node) for node in nodes]


def python() -> str:
    """Give the interpreter of the nodes."""
    return SYSTEM_PYTHON if os.path.exists(SYSTEM_PYTHON) else sys.executable


def listed(count: int, command: str, conditions: str = "") -> str:
    """Give a list of equal tasks."""
    return "1K 1 1K true '%s' '' '%s'\n" % (conditions, command) * count


def run(node: Node, script: str) -> str:
    """Run a script with the utilities; give what it prints."""
    code, out, err = node.sh(script, timeout=1800)
    assert code == 0, err
    return out.decode(errors="replace")


def timed(node: Node, script: str) -> float:
    """Give the seconds that a script takes, without bash's start."""
    out = run(node, "TIMEFORMAT=%%R; { time { %s; } >/dev/null; } 2>&1" % script)
    return float(out.split()[-1])


# --- rates ------------------------------------------------------------------------


def floor() -> float:
    """Give tasks per second of xargs: fork and exec of bash, on two processors."""
    return Asked.tasks / table.seconds(table.XARGS % Asked.tasks)


def rate(node: Node, command: str, after: str = "") -> float:
    """Give tasks per second from adding a list to its last end seen."""
    (node.directory / "list").write_text(listed(Asked.tasks, command))
    took = timed(node, "ids=$(leoronic_add_tasks_from_file list); leoronic_wait $ids")
    return Asked.tasks / (took + (timed(node, after) if after else 0.0))


def rates(node: Node, what: str, reach: str, measure: Callable[[], float]) -> Row:
    """Give the row of a rate beside xargs."""
    measure()  # the first round starts the shells
    floors, found = table.beside(floor, measure, Asked.rounds)
    return Row(what, found, floors, "xargs -P2", reach)


def one_node() -> Iterator[Row]:
    """Short tasks on one node, journalled, beside xargs -P2, and their cost."""
    costs: List[float] = []
    low_costs: List[float] = []

    def measured_floor() -> float:
        before = table.children_s()
        found = floor()
        low_costs.append((table.children_s() - before) / Asked.tasks * 1000)
        return found

    def measure() -> float:
        before = table.cpu_s(*table.all_of(node), with_children=True)
        client = table.children_s()
        found = rate(node, "true")
        after = table.cpu_s(*table.all_of(node), with_children=True)
        used = after - before + table.children_s() - client
        costs.append(used / Asked.tasks * 1000)
        return found

    with ExitStack() as stack:
        (node,) = cluster(stack, 1, cores=2)
        rate(node, "true")
        floors, found = table.beside(measured_floor, measure, Asked.rounds)
    told = peers(table.PEERS, PEER_TASKS, floor)
    what = "one node, %d x `true`, tasks/s" % Asked.tasks
    yield Row(what, found, floors, "xargs -P2", "1.7", peers=told)
    yield Row(
        "- processor time a task, ms", costs, low_costs, "xargs -P2", is_cost=True
    )


def peers(scripts: Dict[str, str], count: int, low: Callable[[], float]) -> str:
    """Give the ratios to a floor, a rate, of the peers that are installed: medians."""
    found: Dict[str, List[float]] = {}
    with tempfile.TemporaryDirectory(prefix="leoronic-bench.") as directory:
        for _ in range(Asked.rounds):
            beside = low()
            took = table.peers_of(scripts, count, Path(directory))
            if scripts is table.PEERS:
                took.update(table.pypi_peers_of(count, Path(directory)))
            for name, seconds in took.items():
                found.setdefault(name, []).append(count / seconds / beside)
    return ", ".join(
        "%s %.2f" % (name, statistics.median(ratios)) for name, ratios in found.items()
    )


def one_node_output() -> Iterator[Row]:
    """Tasks that print, on one node; then each one's output is fetched."""
    with ExitStack() as stack:
        (node,) = cluster(stack, 1, cores=2)
        what = "one node, %d x `echo hello`, tasks/s" % Asked.tasks
        yield rates(node, what, "", lambda: rate(node, "echo hello"))
        fetch = "for id in $(leoronic_get_queue --csv | tail -n %d | cut -d, -f1); do "
        fetch += "leoronic_get_output $id; done"
        yield rates(
            *(node, "- and each output fetched by the shell, tasks/s", "1.5"),
            lambda: rate(node, "echo hello", fetch % Asked.tasks),
        )


def one_node_full() -> Iterator[Row]:
    """The same beside 100,000 tasks that wait for what isn't there."""
    with ExitStack() as stack:
        full, empty = (cluster(stack, 1, cores=2)[0] for _ in range(2))
        (full.directory / "many").write_text(listed(MANY, "true", "worker:tag none"))
        run(full, "leoronic_add_tasks_from_file many >/dev/null")
        for node in (full, empty):
            rate(node, "true")
        floors, found = table.beside(
            lambda: rate(empty, "true"), lambda: rate(full, "true"), Asked.rounds
        )
    what = "the same with 100,000 others waiting, tasks/s"
    yield Row(what, found, floors, "with none", "0.95")


def three_nodes() -> Iterator[Row]:
    """Short tasks on three comrades on these processors, replicated."""
    with ExitStack() as stack:
        nodes = cluster(stack, 3, cores=1)
        what = "three comrades here, replicated, `true`, tasks/s"
        yield rates(nodes[0], what, "1.2", lambda: rate(nodes[0], "true"))


# --- one at a time ----------------------------------------------------------------


def submit() -> Iterator[Row]:
    """One leoronic_add_task in a shell loop, durable, beside a bash that is started."""
    count = 200
    add = "leoronic_add_task 1K 1 1K true 'worker:tag none' '' true"
    loop = "for ((i = 0; i < %d; i++)); do %s; done"

    def each(script: str) -> float:
        return timed(node, loop % (count, script)) / count * 1000

    with ExitStack() as stack:
        (node,) = cluster(stack, 1, cores=1)
        low = "`bash -c true`"
        for what, script, reach in (
            ("leoronic_add_task in a loop, ms", add, "1.2 ms"),
            ("- inside `$(...)`, ms", "x=$(%s)" % add, "2 ms"),
        ):
            floors, found = table.beside(
                *(lambda: each("bash -c true"), lambda s=script: each(s)),
                Asked.rounds,
            )
            yield Row(what, found, floors, low, reach, is_cost=True)


def latency() -> Iterator[Row]:
    """From adding a task to its end, as the shell sees it, on an idle node."""
    count = 50
    with ExitStack() as stack:
        (node,) = cluster(stack, 1, cores=2)
        one = "leoronic_add_task 1K 1 1K true '' '' true; leoronic_wait $LEORONIC_ID"
        loop = "for ((i = 0; i < %d; i++)); do %s; done"

        def each(script: str) -> float:
            return timed(node, loop % (count, script)) / count * 1000

        floors, found = table.beside(
            *(lambda: each("bash -c true"), lambda: each(one)), Asked.rounds
        )
        told = peers(table.PEERS_ONE, count, lambda: 1000 / each("bash -c true"))
    what = "add to end seen by the shell, ms"
    yield Row(what, found, floors, "`bash -c true`", "8 ms", is_cost=True, peers=told)


# --- many -------------------------------------------------------------------------


def inserts(count: int, directory: Path) -> float:
    """Give the seconds that SQLite alone takes for so many rows, durable."""
    script = (
        "import sqlite3, sys; d = sqlite3.connect('rows.db')\n"
        "d.execute('PRAGMA journal_mode=WAL'); d.execute('CREATE TABLE r(k, v)')\n"
        "d.executemany('INSERT INTO r VALUES(?, ?)',"
        " ((str(i), 'x' * 150) for i in range(%d))); d.commit(); d.close()" % count
    )
    start = time.monotonic()
    subprocess.run([python(), "-c", script], cwd=str(directory), check=True)
    found = time.monotonic() - start
    (directory / "rows.db").unlink()
    return found


def many(count: int = MANY, rounds: int = 0) -> Iterator[Row]:
    """Many different tasks from a file, waiting: time, memory, listing, restart."""
    adds, lows, memory, lists, starts = [], [], [], [], []
    for _ in range(rounds or Asked.rounds):
        with ExitStack() as stack:
            (node,) = cluster(stack, 1, cores=1)
            line = "1K 1 1K true 'worker:tag none' '' 'echo %d'\n"
            with open(str(node.directory / "list"), "w") as file:
                file.writelines(line % i for i in range(count))
            before = table.pss([node.pid])
            lows.append(inserts(count, node.directory))
            adds.append(timed(node, "leoronic_add_tasks_from_file list"))
            time.sleep(4)  # what is free goes back once the queue is quiet
            memory.append(table.pss([node.pid]) - before)
            lists.append(timed(node, "leoronic_get_queue --json"))
            node.stop()
            start = time.monotonic()
            node.launch()
            node.await_ready(60 + count / 1000)  # as long as it takes
            starts.append(time.monotonic() - start)
    is_most = count == MOST
    told = f"{count:,}"
    reach = ("", "300 MiB", "60 s") if is_most else ("2 s", "40 MiB", "")
    yield Row(
        *(told + " tasks from a file, s", adds, lows, "SQLite alone", reach[0], True)
    )
    yield Row("- memory that they take, MiB", memory, reach=reach[1])
    yield Row("- listed as JSON, s", lists)
    yield Row("- restart with them, s", starts, reach=reach[2])


def million() -> Iterator[Row]:
    """A million tasks queued, and how long others wait for an answer meanwhile."""
    yield from many(MOST, 1)
    ask = "{ time leoronic_get_tags >/dev/null; } 2>&1"
    with ExitStack() as stack:
        (node,) = cluster(stack, 1, cores=1)
        (node.directory / "list").write_text(listed(MOST, "true", "worker:tag none"))
        idle = "for ((i = 0; i < 200; i++)); do %s; done"
        adding = "leoronic_add_tasks_from_file list >/dev/null & "
        busy = adding + "while kill -0 $! 2>/dev/null; do %s; done"
        lows, found = (
            run(node, "TIMEFORMAT=%R; " + script % ask).split()
            for script in (idle, busy)
        )
    worst, low = (max(map(float, times)) * 1000 for times in (found, lows))
    what = "- longest answer while they are added, ms"
    yield Row(what, [worst], [low], "idle", is_cost=True)


def sync() -> Iterator[Row]:
    """A fresh comrade joins one that has 100,000 tasks."""
    took, told = [], 0
    for _ in range(Asked.rounds):
        with ExitStack() as stack:
            addresses, port = ADDRESSES[:2], free_port(ADDRESSES[:2])
            first, second = (
                Node(*(address, port, addresses), python=python())
                for address in addresses
            )
            stack.enter_context(first)
            stack.callback(second.close)
            (first.directory / "list").write_text(listed(MANY, "true", "worker:tag x"))
            run(first, "leoronic_add_tasks_from_file list >/dev/null")
            start = time.monotonic()
            second.start()
            count = "leoronic_get_queue --csv | wc -l"
            while int(run(second, count)) <= MANY:
                time.sleep(0.2)
            took.append(time.monotonic() - start)
            logs = [log_of(node) for node in (first, second)]
            told += len(re.findall("suspect|lost|silent", "".join(logs)))
    yield Row("a fresh comrade has 100,000 tasks, s", took, reach="15 s")
    yield Row("- lines of doubt in the logs meanwhile", [told], reach="0")


def log_of(node: Node) -> str:
    """Give what a node has noted; it begins no log before there is something."""
    log = node.home / "log"
    return log.read_text() if log.exists() else ""


def growth() -> Iterator[Row]:
    """What a task costs as the cluster grows: processor time and packets."""
    for count in (2, 4, 8):
        with ExitStack() as stack:
            nodes = cluster(stack, count, cores=1)
            rate(nodes[0], "true")
            costs, packets = [], []
            for _ in range(Asked.rounds):
                before = table.cpu_s(*(n.pid for n in nodes))
                sent = table.loopback("packets")
                rate(nodes[0], "true")
                used = table.cpu_s(*(n.pid for n in nodes)) - before
                costs.append(used / Asked.tasks * 1000)
                packets.append((table.loopback("packets") - sent) / Asked.tasks)
        yield Row("%d comrades: processor time a task, all, ms" % count, costs)
        yield Row("- packets a task, all", packets)


def big_file() -> Iterator[Row]:
    """A 1 GiB necessary file on its way to three comrades."""
    found, lows = [], []
    with ExitStack() as stack:
        nodes = cluster(stack, 3, cores=1)
        path = nodes[0].directory / "big"
        before = [table.peak_rss(node) for node in nodes]
        add = "leoronic_add_task 1K 1 1K true 'worker:is %s' big 'wc -c < big'"
        script = add % nodes[2].address + "; leoronic_wait"
        for _ in range(Asked.rounds):
            with open(str(path), "wb") as file:
                for _ in range(BIG_MIB):
                    file.write(os.urandom(1 << 20))
            lows.append(BIG_MIB / piped(path))
            found.append(BIG_MIB / timed(nodes[0], script))
        grown = [table.peak_rss(node) - b for node, b in zip(nodes, before)]
    what = "1 GiB file: hashed, sent to all, used on one, MiB/s"
    yield Row(what, found, lows, "cat >/dev/tcp, to a file", "0.7")
    yield Row("- peak memory more, each comrade, MiB", grown, reach="flat")


def piped(path: Path) -> float:
    """Give the seconds in which cat sends a file over TCP to one that writes it."""
    script = (
        "import shutil, socket; s = socket.socket(); s.bind(('127.14.0.30', 0))\n"
        "s.listen(1); print(s.getsockname()[1], flush=True)\n"
        "shutil.copyfileobj(s.accept()[0].makefile('rb'), open('big2', 'wb'), 1 << 18)"
    )
    command = [python(), "-c", script]
    with subprocess.Popen(command, cwd=str(path.parent), stdout=subprocess.PIPE) as end:
        assert end.stdout
        port = int(end.stdout.readline())
        start = time.monotonic()
        table.seconds("cat big >/dev/tcp/127.14.0.30/%d" % port, path.parent)
        end.wait()
        found = time.monotonic() - start
    (path.parent / "big2").unlink()
    return found


def old_machine() -> Iterator[Row]:
    """An old machine that runs 10,000 tasks: how long one waits for the queue."""
    with ExitStack() as stack:
        node = Node(ADDRESSES[0], python=python(), env={"LEORONIC_CORES": "1"})
        stack.callback(node.close)
        old = oldmachine.OldMachine(str(node.top))
        stack.callback(old.close)
        stack.callback(node.close)  # before: what runs in a group keeps it
        node.prefix = old.prefix
        node.start()
        (node.directory / "list").write_text(listed(OLD_TASKS, "true"))
        script = "TIMEFORMAT=%%R; { time %s >/dev/null; } 2>&1"
        few, every = "leoronic_get_queue running", "leoronic_get_queue"
        adding = timed(node, "leoronic_add_tasks_from_file list")
        start = time.monotonic()
        asked = "leoronic_wait >/dev/null & "
        asked += "while kill -0 $! 2>/dev/null; do %s; sleep 0.2; done"
        found = list(oldmachine.milliseconds(run(node, asked % (script % few))))
        took = time.monotonic() - start
        whole = run(node, "; ".join([script % every] * Asked.rounds))
        peak = table.peak_rss(node)
    what = "old machine (%s): %s tasks from a file, s"
    yield Row(what % (old.told, f"{OLD_TASKS:,}"), [adding])
    yield Row("- they run, tasks/s", [OLD_TASKS / took])
    yield Row("- `%s` meanwhile, ms" % few, found, reach="200 ms")
    yield Row("- all of them listed, ms", list(oldmachine.milliseconds(whole)))
    yield Row("- peak memory of the comrade, MiB", [peak], reach="256 MiB")


# --- at rest ----------------------------------------------------------------------


def idle() -> Iterator[Row]:
    """Memory, processor time and traffic of comrades and a ghost that do nothing."""
    memory = []
    for _ in range(Asked.rounds):
        with ExitStack() as stack:
            (node,) = cluster(stack, 1, cores=2)
            time.sleep(1)
            memory.append(table.pss(table.all_of(node)))
    bare = "import time; time.sleep(9)"
    lows = []
    for _ in range(Asked.rounds):
        with subprocess.Popen([python(), "-S", "-c", bare]) as process:
            time.sleep(0.5)
            lows.append(table.pss([process.pid]))
            process.kill()
    what = "idle comrade, all its processes (PSS), MiB"
    yield Row(what, memory, lows, "bare Python", "16 MiB", is_cost=True)
    yield from idle_ghost()
    with ExitStack() as stack:
        nodes = cluster(stack, 3, cores=2)
        time.sleep(3)  # until they have met
        pids = [node.pid for node in nodes]
        busy, traffic = [], []
        for _ in range(Asked.rounds):
            cpu, sent = table.run_s(*pids), table.loopback("bytes")
            time.sleep(IDLE_S)
            busy.append((table.run_s(*pids) - cpu) / 3 / IDLE_S * 100)
            # each of three links is counted once on its way out
            traffic.append((table.loopback("bytes") - sent) / 3 / IDLE_S)
    yield Row("idle comrade of three, % of a core", busy, reach="0.05 %")
    yield Row("idle traffic for each peer, both ways, bytes/s", traffic, reach="500")


def idle_ghost() -> Iterator[Row]:
    """A ghost's memory; its comrade has another Python, so that they share nothing."""
    memory = []
    for _ in range(Asked.rounds):
        haunted = Haunted(1, 1, 61)
        (ghost,) = haunted.ghosts
        ghost.env["LEORONIC_PYTHON"] = python()
        with haunted:
            time.sleep(1)
            assert ghost.process
            memory.append(table.pss([ghost.process.pid]))
    yield Row("idle ghost (PSS), MiB", memory, reach="16 MiB")


def first_task() -> Iterator[Row]:
    """From `bash leoronic` to the end of the first task."""

    def measure() -> float:
        start = time.monotonic()
        with Node(ADDRESSES[0], python=python()) as node:
            run(node, "leoronic_add_task 1K 1 1K true '' '' true; leoronic_wait")
            return time.monotonic() - start

    low = [python(), "-c", "import sqlite3, json, socket"]

    def bare() -> float:
        start = time.monotonic()
        subprocess.run(low, check=True)
        return time.monotonic() - start

    floors, found = table.beside(bare, measure, Asked.rounds)
    what = "start to first task done, s"
    yield Row(what, found, floors, "Python with sqlite3", "0.5 s", is_cost=True)


QUICK = (
    *(one_node, one_node_output, one_node_full, three_nodes),
    *(submit, latency, many, idle, first_task),
)
LONG = (million, sync, growth, big_file, old_machine)
BENCHES = {bench.__name__: bench for bench in (*QUICK, *LONG)}


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], default=[])
    parser.add_argument("--rounds", type=int, default=Asked.rounds)
    parser.add_argument("--long", action="store_true")
    options = parser.parse_args()
    Asked.rounds = options.rounds
    Asked.tasks = TASKS_LONG if options.long else TASKS
    print("\n".join(table.head()), flush=True)
    for name in options.names or [b.__name__ for b in QUICK + LONG * options.long]:
        for row in BENCHES[name]():
            print(row.line(), flush=True)


if __name__ == "__main__":
    main()
