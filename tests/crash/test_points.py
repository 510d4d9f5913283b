"""A crash at every passing of every point: those that one scenario makes."""

from typing import List

import figures
import pytest
from cluster import Cluster
from crashes import Plan, Story, armed, await_gone, crash, run

# Of a heartbeat there may be one more or less; most of what was counted comes again.
REACHED = 0.75


def every_plan(count: int, leads: bool) -> List[Plan]:
    """Trace the scenario; give a plan for each passing of each place."""
    cluster = Cluster(count, first=101)
    node = armed(cluster)
    others = cluster.nodes[:-1]
    try:
        for other in others:
            other.start()
        plan = Plan("", leads=leads)
        assert not crash(node, others, Story(cluster.ledger), plan)
        passings = node.passings()
        node.kill9()
        await_gone(node)
        return [
            Plan(place, n + 1, leads)
            for place, times in sorted(passings.items())
            for n in range(times)
        ]
    finally:
        cluster.close()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "count, leads",
    [(1, False), (2, False), (2, True)],
    ids=["alone", "one of two", "the coordinator of two"],
)
def test_a_crash_at_any_passing_of_any_point_loses_nothing(
    count: int, leads: bool
) -> None:
    plans = every_plan(count, leads)
    missed = run(Cluster(count, first=101), plans)
    reached = len(plans) - len(missed)
    figures.note("passings of points", "%d" % len(plans), "%d reached" % reached)
    assert reached >= REACHED * len(plans), missed
