"""When a node may grant: what it must have heard from whom (D2); when it looks anew."""

from typing import Any, Dict, List, Sequence, Tuple

import pytest

from mesh import FREEZE_S, HEARTBEAT_S, ROOT_DIFFERS, SUSPECT_S, Mesh

OFFER: Dict[str, Any] = {
    "address": "10.0.0.1",
    "cores": 2,
    "memory": 1 << 30,
    "free_memory": 1 << 29,
    "free_disk": 1 << 30,
    "holds": [],
    "tags": [],
    "draining": False,
    "role": "comrade",
}


def writer_of(node_id: str) -> str:
    return node_id * 16


class View:
    """Node a's membership, and what it is told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: List[Any] = []
        self.mesh = Mesh("a", writer_of("a"), 1, lambda *frame: self.sent.append(frame))
        self.mesh.tell(ready=True)
        self.mesh.refresh(self.now)

    def link(self, peer: str) -> None:
        """A link comes up, and each end has merged the other's first part."""
        link = self.mesh.on_link(peer, writer_of(peer), self.now)
        link.gave_first = link.got_first = True
        self.mesh.refresh(self.now)

    def hear(self, node_id: str, seq: int, links: Sequence[str], call: int) -> None:
        """Facts arrive: a node lists these links, follows a and heeds that call."""
        facts = dict(
            OFFER, id=node_id, writer=writer_of(node_id), name=node_id, seq=seq
        )
        facts.update(starts=1, links=list(links), claim=None, follows="a", term=0)
        facts.update(ready=True, stopping=False, dead=[], call=0)
        facts["heeds"] = [writer_of("a"), call]
        assert self.mesh.on_member("c", facts, self.now)

    @property
    def call(self) -> int:
        return int(self.mesh.facts["call"])

    def join(self, *links: str) -> None:
        """Let c join, over a new link, and heed the call that follows."""
        self.link("c")
        self.hear("c", 1, links, 0)
        self.hear("c", 2, links, self.call)

    def hear_all(self) -> None:
        """Frames came and were echoed just now, over the link to c."""
        link = self.mesh.links["c"]
        link.heard_at = link.echoed_at = self.now

    def may_grant(self) -> bool:
        return self.mesh.may_grant(self.now)


def test_what_a_member_said_before_it_was_away_is_no_answer():
    view = View()
    view.link("c")
    view.hear("b", 1, ["c"], 0)  # that may have been long ago
    view.hear("c", 1, ["a", "b"], 0)
    assert view.mesh.component == {"a", "b", "c"}
    assert not view.may_grant()
    view.hear("c", 2, ["a", "b"], view.call)
    assert not view.may_grant()  # b hasn't answered yet
    view.hear("b", 2, ["c"], view.call)
    assert view.may_grant()


def test_a_component_that_shrinks_needs_no_new_answer():
    view = View()
    view.link("c")
    view.hear("b", 1, ["c"], 0)
    view.hear("c", 1, ["a", "b"], view.call)
    for node_id, links in (("b", ["c"]), ("c", ["a", "b"])):
        view.hear(node_id, 2, links, view.call)
    assert view.may_grant()
    view.hear("c", 3, ["a"], view.call)  # b is gone
    assert view.mesh.component == {"a", "c"} and view.may_grant()
    view.hear("c", 4, ["a", "b"], view.call)  # it is back, and says what it said
    assert view.mesh.component == {"a", "b", "c"} and not view.may_grant()


def test_who_is_named_by_a_member_but_not_known_yet_is_waited_for():
    view = View()
    view.join("a", "b")
    assert view.mesh.component == {"a", "c"}
    assert not view.may_grant()
    view.now += FREEZE_S
    view.hear_all()
    assert view.may_grant()  # b is heard by c alone, or its facts are lost


def test_a_new_link_is_waited_for_until_its_peer_is_in_the_component():
    view = View()
    view.link("c")
    assert not view.may_grant()
    view.hear("c", 1, ["a"], 0)
    view.hear("c", 2, ["a"], view.call)
    assert view.may_grant()


def test_a_link_that_dropped_out_never_counts_again():
    view = View()
    view.join("a")
    view.now += SUSPECT_S
    view.mesh.refresh(view.now)
    assert view.mesh.component == {"a"}
    view.hear_all()
    view.mesh.refresh(view.now)
    assert view.mesh.component == {"a"}
    view.link("c")
    view.mesh.links["c"].hold_until = view.now
    view.mesh.refresh(view.now)
    assert view.mesh.component == {"a", "c"}


def whole() -> Tuple[View, List[Any]]:
    """Let a, b and c be linked with each other; and tell when that is over."""
    view, refilled = View(), []
    view.mesh.on_uncovered = lambda: refilled.append(view.mesh.whole)
    view.link("b")
    view.link("c")
    view.hear("b", 1, ["a", "c"], 0)
    view.hear("c", 1, ["a", "b"], 0)
    return view, refilled


def test_what_another_said_is_passed_on_once_its_link_to_somebody_has_gone():
    view, refilled = whole()
    assert view.mesh.whole == {"a", "b", "c"} and view.mesh.covers("c", "b")
    view.mesh.gossip(lambda peer: True)
    refilled.clear()
    view.sent.clear()
    view.hear("c", 2, ["a", "b"], 0)
    view.mesh.gossip(lambda peer: True)
    assert not [frame for frame in view.sent if frame[2]["id"] == "c"]
    view.hear("c", 3, ["a"], 0)  # it doesn't hear b any more
    assert refilled == [set()]  # living runs go out first
    view.mesh.gossip(lambda peer: True)
    told = {(peer, facts["id"], facts["seq"]) for peer, _, facts in view.sent}
    assert ("b", "c", 3) in told and ("c", "b", 1) in told


def test_a_member_that_is_gone_leaves_nothing_untold():
    view, refilled = whole()
    refilled.clear()
    view.mesh.on_link_lost("c", "eof", view.now)
    view.hear("b", 2, ["a"], 0)
    assert refilled and view.mesh.whole == {"a", "b"}


def test_roots_are_compared_only_when_all_of_the_other_end_has_come():
    view = View()
    view.link("c")
    link = view.mesh.links["c"]
    for n in range(1, 40):  # more is to come all the time
        view.mesh.on_heartbeat(link, {"n": n, "heard": 0, "root": ""}, "1f", 1)
    assert 0 < link.root_differs < ROOT_DIFFERS
    for n in range(40, 40 + ROOT_DIFFERS):
        view.mesh.on_heartbeat(link, {"n": n, "heard": 0, "root": "2a"}, "1f", 1)
    assert link.root_differs >= ROOT_DIFFERS
    view.mesh.on_heartbeat(link, {"n": 50, "heard": 0, "root": "1f"}, "1f", 1)
    assert link.root_differs == 0


def test_a_heartbeat_says_the_root_where_all_is_sent():
    view = View()
    view.link("b")
    view.link("c")
    view.sent.clear()
    view.now += 1.0
    view.mesh.tick(view.now, lambda: 0x1F, lambda peer: peer == "b")
    beats = {peer: facts["root"] for peer, kind, facts in view.sent}
    assert beats == {"b": "1f", "c": ""}


# --- when it looks anew -----------------------------------------------------------


@pytest.fixture
def joined() -> View:
    """One that c has joined, and that has looked at all that followed."""
    view = View()
    view.join("a")
    pass_by(view, 10.25, is_heard=True)
    return view


def looks_of(view: View, monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """Give the times at which it looks anew from now on."""
    times: List[float] = []
    refresh = view.mesh.refresh

    def counted(now: float) -> None:
        times.append(now)
        refresh(now)

    monkeypatch.setattr(view.mesh, "refresh", counted)
    return times


def pass_by(view: View, seconds: float, is_heard: bool) -> None:
    until = view.now + seconds
    while view.now < until:
        if is_heard:
            view.hear_all()
        view.mesh.tick(view.now, lambda: 0, lambda peer: True)
        view.now = min(view.mesh.deadline() or until, until)


def test_while_heartbeats_put_all_doubts_off_it_doesnt_look_anew(
    joined: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = joined
    times = looks_of(view, monkeypatch)
    pass_by(view, 60.0, is_heard=True)
    assert not times and view.mesh.component == {"a", "c"}


def test_without_any_it_looks_anew_as_soon_as_a_link_is_in_doubt(
    joined: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = joined
    view.hear_all()
    silent, times = view.now, looks_of(view, monkeypatch)
    pass_by(view, SUSPECT_S + HEARTBEAT_S, is_heard=False)
    assert silent + SUSPECT_S in times
    assert view.mesh.component == {"a"}


def test_it_looks_anew_with_the_next_turn_once_facts_of_its_own_have_changed(
    joined: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = joined
    view.mesh.tell(ready=False)
    times = looks_of(view, monkeypatch)
    view.mesh.tick(view.now, lambda: 0, lambda peer: True)
    assert times == [view.now]
