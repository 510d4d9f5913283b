"""Many ghosts of one comrade: what its relay spares it, and a large file for all.

On loopback: what is measured is work, not the network. *Without a relay* is a comrade
whose copy of the program runs the relay as a thread of its own, so that all of it is
main's work; a process stands in for the relay that would have been started.

Processor time, not time: the two are compared in the same run on a machine that others
use too.
"""

import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import figures
import pytest
from cluster import Cluster, Member, until
from haunts import Haunted, relays_of
from helpers import CHECKOUT
from netlab import PROGRAM
from phantoms import Phantoms
from scenes import clock, latencies, marks, share
from test_many_ghosts import cpu
from tools import add_to_script, meanwhile, memory_of, memory_of_process

pytestmark = [*marks, pytest.mark.timeout(600)]

PHANTOMS, TASKS, IDLE_S = 200, 2000, 10.0
GHOSTS = 16
FILE_BYTES = 200 << 20
SMALL_BYTES = 20 << 20  # for each ghost, where the two ways are compared
BESIDE_S = 10.0  # for which short tasks are measured beside nothing else
GROWN_MIB, RELAY_MIB = 20, 60  # a file isn't held in memory

# A relay in a thread of main's: what it would be to do without one.
INLINE = """
def _in_main(words, environ, stdin, *more, spawn=relaying.shells.spawn, **kind):
    if not words[-1].endswith("relay.py"):
        return spawn(words, environ, stdin, *more, **kind)
    import relay, threading
    sock = relaying.socket.socket(fileno=os.dup(stdin))
    threading.Thread(target=lambda: relay.Relay(sock).run(), daemon=True).start()
    return spawn(["sleep", "10000"], environ, stdin, *more)


relaying.shells.spawn = _in_main
"""


def without_relay(node: Member) -> None:
    """Let a comrade that isn't started yet do its relay's work itself."""
    program = node.top / "program"
    program.mkdir()
    for pattern in PROGRAM:
        for path in CHECKOUT.glob(pattern):
            shutil.copy(str(path), str(program))
    add_to_script(program / "comrade.py", "import relaying\n" + INLINE)
    node.program = program


def tell(what: str, spent: Dict[bool, float]) -> None:
    """Note main's processor time with a relay beside that without one."""
    figures.note(
        "main's work with a relay, of that without: " + what,
        "20 %",
        "%.0f %% (%.2f of %.2f s)"
        % (100 * spent[True] / spent[False], spent[True], spent[False]),
    )


def test_what_a_relay_spares_main_with_two_hundred_ghosts() -> None:
    idle: Dict[bool, float] = {}
    busy: Dict[bool, float] = {}
    for has_relay in (True, False):
        cluster = Cluster(1)
        (node,) = cluster.nodes
        if not has_relay:
            without_relay(node)
        with cluster, Phantoms(PHANTOMS, cluster.addresses, cluster.port) as many:
            many.until(lambda: many.attached() == PHANTOMS, 60)
            many.go_on(2)
            before = cpu(node.pid)
            many.go_on(IDLE_S)
            idle[has_relay] = cpu(node.pid) - before
            node.call("leoronic_drain", node.address)
            line = '1K 1 1K true "" "" "true"'
            before = cpu(node.pid)
            node.call("leoronic_add_tasks_from_str", "\n".join([line] * TASKS))
            many.until(lambda: len(many.started) >= TASKS, 120)
            many.go_on(1)
            busy[has_relay] = cpu(node.pid) - before
            assert len(set(many.started)) == TASKS
    tell("200 idle ghosts, %g s" % IDLE_S, idle)
    tell("2000 tasks that print nothing", busy)


@contextmanager
def haunted(has_relay: bool = True) -> Iterator[Haunted]:
    """Start two comrades and the ghosts of the first."""
    cluster = Haunted(2, GHOSTS)
    if not has_relay:
        without_relay(cluster.nodes[0])
    with cluster:
        yield cluster


def give_all(cluster: Haunted, size: int) -> Tuple[float, float]:
    """Let a file of that size reach each ghost; give the seconds, and main's of them.

    Both comrades have it before that is measured.
    """
    node, other = cluster.nodes
    path = node.directory / "large"
    with open(str(path), "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    gate = node.add("true", "worker:tag nobody")
    tasks = [
        node.add(
            *("wc -c <large", "worker:tag ghost%d; queue:done %s" % (n + 1, gate)),
            files="large",
        )
        for n in range(GHOSTS)
    ]
    stored = other.home / "files"
    until("the other comrade has it", lambda: size in sizes(stored), 60)
    before, began = cpu(node.pid), time.monotonic()
    node.call("leoronic_del_task", gate)
    until("all have it", lambda: ends(node, tasks) == GHOSTS, 300)
    took, spent = clock(began), cpu(node.pid) - before
    for task in tasks:
        assert node.output(task).strip() == b"%d" % size
    path.unlink()
    return took, spent


def sizes(folder: Path) -> List[int]:
    """Give the sizes of all files in a folder."""
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def ends(node: Member, tasks: List[str]) -> int:
    states = node.states()
    return sum(states[task] == "done" for task in tasks)


def test_what_a_relay_spares_main_of_files() -> None:
    spent: Dict[bool, float] = {}
    for has_relay in (True, False):
        with haunted(has_relay) as cluster:
            _, spent[has_relay] = give_all(cluster, SMALL_BYTES)
    tell("%d MiB to each of %d ghosts" % (SMALL_BYTES >> 20, GHOSTS), spent)


def test_a_large_file_for_sixteen_ghosts_delays_nobody() -> None:
    what = "200 MiB to each of %d ghosts" % GHOSTS
    with haunted() as cluster:
        first, second = cluster.nodes
        for node in cluster.nodes:
            node.call("leoronic_add_tag", "comrades")
        quiet: List[str] = []
        beside: List[str] = []
        over = time.monotonic() + BESIDE_S
        while time.monotonic() < over:
            short_task(second, quiet)
        memory = memory_of(first)
        (relay,) = relays_of(first)
        with meanwhile(lambda luck: short_task(second, beside), 16):
            took, _ = give_all(cluster, FILE_BYTES)
        assert second.wait(*beside) == 0
        rate = GHOSTS * (FILE_BYTES >> 20) / took
        figures.note(what, "-", "%.0f s, %.0f MiB/s in all" % (took, rate))
        for part in (50, 95):
            times = [latencies(second, ids) for ids in (beside, quiet)]
            figures.note(
                what + ": short tasks' starts, %d %% within" % part,
                "-",
                "%.0f ms; without it %.0f ms"
                % tuple(1000 * share(each, part / 100) for each in times),
            )
        homes = [first.home, second.home, *(ghost.home for ghost in cluster.ghosts)]
        logs = [home / "log" for home in homes if (home / "log").exists()]
        silent = sum(log.read_text().count("silent") for log in logs)
        figures.note(what + ": links lost", "0", str(silent))
        grown, most = memory_of(first) - memory, memory_of_process(relay)
        text = "+%d MiB; the relay: %d MiB in all" % (grown, most)
        figures.note(what + ": the clairvoyant's memory", "+10 MiB", text)
        assert silent == 0
        assert grown < GROWN_MIB and most < RELAY_MIB


def short_task(node: Member, ids: List[str]) -> None:
    """Add a short task that a comrade is to run, as a user's loop would."""
    ids.append(node.add("true", "worker:tag comrades"))
    time.sleep(0.1)
