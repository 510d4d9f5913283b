"""leoronic_doctor: each finding, with its command; and a real cluster that is well."""

import os
from typing import Any, Dict, List

import pytest
from cluster import until
from haunts import Haunted

import doctor
from doctor import Finding, Node
from filecalls import Place

GIB = 1 << 30


def node(number: int, clock: float = 0.0, role: str = "comrade", **more: Any) -> Node:
    """Make a comrade that is well, and hears all three."""
    place = Place(
        "id%d" % number, "old%d" % number, "ready", [], "10.0.0.%d" % number, role
    )
    place = place._replace(state=more.pop("state", "ready"))
    health: Dict[str, Any] = {"version": "1.0", "python": "3.7.3", "wall": 1.0}
    health.update(home="/h", home_free=GIB, work="/w x", work_free=GIB, program="/p q")
    if role == "comrade":
        health.update(hears=["id1", "id2", "id3"], failing=[], up=1000.0, port=7117)
        health.update(stuck=False, broadcasts=["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    health.update(more)
    return Node(place, None if more.get("gone") else health, clock)


def wrong(nodes: List[Node], of: int = 0) -> List[Finding]:
    return [f for f in doctor._findings(nodes[of], nodes) if f.is_wrong]


def test_three_that_are_well_have_no_problem_and_say_what_was_looked_at() -> None:
    cookie = [1, "ab"]
    roles = {4: "ghost"}
    nodes = [node(i, role=roles.get(i, "comrade"), cookie=cookie) for i in range(1, 5)]
    assert not any(wrong(nodes, i) for i in range(4))
    said = "\n".join(f.text for f in doctor._findings(nodes[0], nodes))
    for text in ("hears old2, old3", "clock is right", "1G free for the queue"):
        assert text in said
    assert "broadcasts of all others reach it" in said
    assert not any(f.remedy for f in doctor._findings(nodes[0], nodes))


@pytest.mark.parametrize(
    "more, text, remedy",
    [
        ({"gone": True, "state": "lost"}, "it is lost", "ping -c 3 10.0.0.1"),
        ({"gone": True, "state": "suspect"}, "it is suspect", "ping"),
        ({"hears": ["id2"]}, "no link with old3", "on old1:  nc -vz 10.0.0.3 7117"),
        ({"version": "0.9"}, "its Leoronic is 0.9, others have 1.0", "copy the newer"),
        ({"clock": 7200.0}, "its clock is 2h00m ahead of", "ssh 10.0.0.1 "),
        ({"clock": -90.0}, "behind this node's", "sudo date -s @$(date +%s)"),
        (
            {"probation": {"old1": 7}},
            "its last 7 runs failed at once",
            "leoronic_drain old1",
        ),
        ({"stuck": True}, "its disk doesn't answer", "dmesg"),
        ({"home_free": 1 << 20}, "1M free for the queue", "du -xh /h |"),
        ({"work_free": 0}, "0 free for tasks", "du -xh '/w x' |"),
        ({"failing": [["10.0.0.9", "REFUSED"]]}, "10.0.0.9 refuses", "bash leoronic"),
        (
            {"failing": [["10.0.0.9", "WRONG_COOKIE"]]},
            "10.0.0.9 has another cookie",
            "scp '/p q/.leoronic_cookie' 10.0.0.9:leoronic/",
        ),
        (
            {"strange": {"10.0.0.9": "it speaks version 2; update that node: copy"}},
            "10.0.0.9 is no node of this cluster: it speaks version 2",
            "update that node: copy",
        ),
        ({"failing": [["10.0.0.9", "SILENT"]]}, "doesn't answer", "ping -c 3 10.0.0.9"),
        (
            {"broadcasts": ["10.0.0.2"]},
            "no broadcast of old3 reaches it",
            'LEORONIC_PEERS="10.0.0.3"',
        ),
    ],
)
def test_each_problem_is_told_once_with_the_command_that_mends_it(
    more: Dict[str, Any], text: str, remedy: str
) -> None:
    nodes = [node(1, **more), node(2), node(3)]
    (found,) = wrong(nodes)
    assert text in found.text and remedy in found.remedy


@pytest.mark.parametrize("odd", [None, 7, [], [None, 1], ["1", "ab"], {"a": 1}])
def test_an_older_cookie_is_told_of_and_what_is_none_is_passed_over(odd: Any) -> None:
    nodes = [node(1, cookie=[1, "ab"]), node(2, cookie=[2, "aa"]), node(3, cookie=odd)]
    (found,) = wrong(nodes)
    assert "it has an older cookie" in found.text and "on old1:" in found.remedy
    assert not wrong(nodes, 1) and not wrong(nodes, 2)
    unkept = node(1, cookie=[2, "aa"], unkept="/x can't be written (Read-only)")
    (found,) = wrong([unkept, *nodes[1:]])
    assert "can't be kept: /x can't be written" in found.text


def test_a_lost_node_that_answers_with_another_cookie_is_told_of_as_that() -> None:
    lost = node(3, gone=True, state="lost")
    nodes = [node(1, failing=[["10.0.0.3", "WRONG_COOKIE"]]), node(2), lost]
    assert not wrong(nodes)
    (found,) = wrong(nodes, 2)
    assert found.text == "it is lost: it has another cookie"
    assert "scp '/p q/.leoronic_cookie' 10.0.0.3:leoronic/" in found.remedy


def test_what_is_no_problem_is_told_as_none() -> None:
    for more, text in (
        ({"broadcasts": None}, "discovery is off"),
        ({"up": 5.0}, "it has just been started"),
        ({"state": "draining"}, "it takes no new task"),
        ({"cookie": [1, "ab"], "grace": 3600.0}, "lets nodes in for another 1h00m"),
    ):
        nodes = [node(1, **more), node(2), node(3)]
        assert not wrong(nodes)
        assert any(text in f.text for f in doctor._findings(nodes[0], nodes))
    # Who has just come up was not heard yet.
    assert not wrong([node(1, broadcasts=["10.0.0.2"]), node(2), node(3, up=5.0)])


def test_an_address_of_a_node_that_is_told_of_is_not_told_of_again() -> None:
    lost = node(3, gone=True, state="lost")
    nodes = [node(1, failing=[["10.0.0.3", "REFUSED"]]), node(2), lost]
    assert not wrong(nodes)
    assert len(wrong(nodes, 2)) == 1


def test_a_real_cluster_is_well_until_one_is_killed() -> None:
    with Haunted(2, 1, first=61) as haunted:
        first, second = haunted.nodes
        (ghost,) = haunted.ghosts
        for env in ({}, {"LEORONIC_HOME": str(ghost.home)}):
            code, out, err = first.sh("leoronic_doctor", env=env)
            assert (code, err) == (0, b"") and b"3 nodes, all is well" in out, out
            assert b"it hears " in out and b"discovery is off" in out
        second.kill9()
        until("lost", lambda: first.members()[second.address]["state"] == "lost")
        code, out, err = first.sh("leoronic_doctor")
        assert (code, err) == (1, b"") and b"1 problem" in out, out
        assert b"ping -c 3 " + os.fsencode(second.address) in out
        code, out, err = first.sh("leoronic_doctor x")
        assert code == 2 and b"usage: leoronic_doctor" in err
