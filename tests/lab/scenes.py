"""What the cases of the laboratory have in common: moments, and what is measured then.

A *moment* is wall-clock time, as the ledger's lines have it; what began is monotonic.
"""

import time
from typing import Callable, List, Sequence

import figures
import pytest
from cluster import until
from netlab import Lan, Machine, coordinator_of, coordinators, doubles
from test_lan import SLACK_S, begin, check, finish, tasks_of
from tools import needs_lab

__all__ = ["SLACK_S", "begin", "check", "coordinator_of", "coordinators", "doubles"]
__all__ += ["finish", "tasks_of"]

Lab = Callable[[int], Lan]

marks = [needs_lab, pytest.mark.timeout(240)]


def clock(began: float) -> float:
    return time.monotonic() - began


def await_single(lan: Lan, began: float) -> float:
    """Wait until no task runs twice; give the time since."""
    until("no task runs twice", lambda: not doubles(lan.nodes), 40)
    return clock(began)


def extra_text(lan: Lan) -> str:
    return "%d starts beyond the first" % sum(lan.ledger.extra().values())


def others(lan: Lan, *away: Machine) -> List[Machine]:
    """Give the machines but for these."""
    return [node for node in lan.nodes if node not in away]


def await_again(lan: Lan, tasks: Sequence[str], seconds: float = 40) -> None:
    """Wait until just these tasks have been started again."""
    until("they run again", lambda: set(lan.ledger.extra()) == set(tasks), seconds)


def since(lan: Lan, at: float, tasks: Sequence[str] = ()) -> List[float]:
    """Give how long after a moment tasks were started (again)."""
    return [
        line.at - at
        for line in lan.ledger.lines("start")
        if line.at > at and (not tasks or line.task in tasks)
    ]


def add_one(lan: Lan, node: Machine, name: str) -> float:
    """Add a task that ends at once; give how long its acknowledgement took."""
    began = time.monotonic()
    node.add(lan.ledger.task(name))
    took = clock(began)
    figures.note(
        "an add is acknowledged, whatever one peer does", "2 s", "%.2f s" % took
    )
    assert took < 2.0 + SLACK_S
    return took


def latencies(node: Machine, ids: Sequence[str]) -> List[float]:
    """Give how long these tasks waited from being added to their start, sorted."""
    rows = [row for row in node.rows() if row["id"] in set(ids)]
    return sorted(row["started"] - row["added"] for row in rows)


def share(values: Sequence[float], part: float) -> float:
    """Give the value below which that part of the (sorted) values is."""
    return values[min(int(len(values) * part), len(values) - 1)]
