"""Two hundred ghosts on one clairvoyant (phantoms.py), and its death."""

import os
from pathlib import Path
from typing import List

import figures
import pytest
from cluster import Cluster, until
from haunts import relays_of
from phantoms import Phantoms

GHOSTS = 200
TASKS = 2000
IDLE_S = 5.0  # for which the cost of doing nothing is measured
MOVED_S = 10.0  # the death of a clairvoyant moves all within this
SLACK_S = 5.0  # of a busy machine; the figure that was measured is printed
TICKS_S = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Give the seconds of processor time that a process has had."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def spent(pids: List[int], many: Phantoms, seconds: float) -> List[float]:
    """Let time pass; give what each process has used of it."""
    before = [cpu(pid) for pid in pids]
    many.go_on(seconds)
    return [cpu(pid) - was for pid, was in zip(pids, before)]


@pytest.mark.timeout(180)
def test_two_hundred_ghosts_run_each_task_once_and_move_when_their_clairvoyant_dies():
    with Cluster(2) as cluster:
        first, second = cluster.nodes
        # Told of the first alone: on a busy machine some would try the next one.
        with Phantoms(GHOSTS, [first.address], cluster.port) as many:
            took = many.until(lambda: many.at(first.address) == GHOSTS, 60)
            figures.note("200 ghosts attach", "-", "%.1f s" % took)
            pids = [first.pid, *relays_of(first)]
            main, relay = spent(pids, many, IDLE_S)
            figures.note(
                "200 idle ghosts: main's share of all that they cost",
                "20 %",
                "%.0f %% (%.2f of %.2f s in %g s)"
                % (100 * main / (main + relay), main, main + relay, IDLE_S),
            )
            assert main < 0.2 * (main + relay) + 2 / TICKS_S
            line = '1K 1 1K true "" "" "true"'
            before = [cpu(pid) for pid in pids]
            for node in (first, second):
                node.call("leoronic_drain", node.address)
            first.call("leoronic_add_tasks_from_str", "\n".join([line] * TASKS))
            took = many.until(lambda: len(many.started) >= TASKS, 90)
            many.go_on(1)
            main, relay = (cpu(pid) - was for pid, was in zip(pids, before))
            figures.note(
                "2000 tasks over 200 ghosts",
                "each once",
                "%.1f s; processor time main %.2f, relay %.2f s" % (took, main, relay),
            )
            assert len(many.started) == len(set(many.started)) == TASKS
            first.kill9()
            took = many.until(lambda: many.at(second.address) == GHOSTS, 60)
            figures.note("their clairvoyant dies: all moved", "10 s", "%.1f s" % took)
            assert took < MOVED_S + SLACK_S
            many.go_on(2)
            states = second.states().values()
            until("all done", lambda: set(states) == {"done"}, 20)
            assert len(many.started) == TASKS
