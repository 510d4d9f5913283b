"""Crashes of real comrades at named points, failing disks, power cuts: some of each.

All of it, every Nth passing and call, a thousand trials: bash tests/run --crash.
"""

import time
from typing import Sequence

import figures
from cluster import Cluster, Member, await_component, until
from crashes import Armed, Plan, Story, armed, await_gone, crash, is_over

import points

CALM_EVERY = 3  # crashes; LOSSES_MAX is 5

# --- kill points --------------------------------------------------------------------

ALONE = [
    Plan("before commit"),
    Plan("after commit", 3),
    Plan("before answer"),
    Plan("after answer", 2),
    Plan("before start"),
    Plan("after start"),
    Plan("before end"),
    Plan("before rename"),
    Plan("after rename"),
    Plan("set aside", damage="header"),
    Plan("salvaged"),  # begins again, since it was cut short
    Plan("placed"),
    Plan("kept", damage="header"),
]



TOGETHER = [
    *(Plan(when + " send: a grant", leads=True) for when in ("before", "after")),
    *(
        Plan("%s send: %s" % (when, what))
        for what in ("a new task", "a start", "an end", "GOT", "STORED")
        for when in ("before", "after")
    ),
    Plan("before commit", 2),
    Plan("after commit", 2),
    Plan("before answer"),
    Plan("after answer"),
    Plan("before end", damage="all"),  # all of it comes back from the other
]


def calm(node: Armed, others: Sequence[Member], story: Story) -> None:
    """Let all tasks end for once: after five losses in a row one would be given up."""
    node.plan = Plan("")
    node.start()
    try:
        until("all is done", lambda: is_over(story, node))
    except AssertionError as problem:
        raise AssertionError(story.unfinished([node, *others])) from problem
    story.check([node, *others])
    node.kill9()
    await_gone(node)


def run(cluster: Cluster, plans: Sequence[Plan]) -> None:
    """Crash the last node of a cluster at each plan, one after the other; check."""
    node = armed(cluster)
    others = cluster.nodes[:-1]
    story = Story(cluster.ledger)
    try:
        for other in others:
            other.start()
        missed = []
        for i, plan in enumerate(plans):
            if i and i % CALM_EVERY == 0:
                calm(node, others, story)
            began = time.monotonic()
            if not crash(node, others, story, plan):
                missed.append(plan)
                node.kill9()
            await_gone(node)
            print("%.1f s: %s" % (time.monotonic() - began, plan))
        calm(node, others, story)
        node.start()
        if others:
            await_component(cluster.nodes)
        story.check_end(cluster.nodes, node)
        assert not missed, "never reached: %s" % (missed,)
    finally:
        cluster.close()
    figures.note(
        "%d crashes at named points, %d comrades" % (len(plans), len(cluster.nodes)),
        "0 lost",
        "0 of %d" % len(story.kept),
    )


def test_a_lone_comrade_killed_at_any_point_loses_nothing_it_acknowledged() -> None:
    run(Cluster(1, first=71), ALONE)


def test_one_of_two_killed_at_any_point_loses_nothing_and_runs_nothing_twice() -> None:
    run(Cluster(2, first=72), TOGETHER)


def test_every_point_of_the_catalogue_is_where_some_comrade_is_killed() -> None:
    reached = {plan.place.partition(":")[0] for plan in ALONE + TOGETHER}
    assert reached == set(points.CATALOGUE)
