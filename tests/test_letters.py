"""letters.py: what is asked of a node is answered, or said not to be, over any way."""

from typing import Any, Dict, List, Optional, Tuple

import pytest

import letters
from letters import Letter, Letters, Seams


class Net:
    """Nodes in a row; a letter goes one step at a time, and may be lost."""

    def __init__(self, names: str) -> None:
        self.now = 0.0
        self.names = names
        self.cut: List[Tuple[str, str]] = []
        self.wires: List[Tuple[str, str, Dict[str, Any]]] = []
        self.asked: List[Tuple[str, str, Any, bytes]] = []
        self.silent = False
        self.nodes = {name: self.node(name) for name in names}

    def node(self, me: str) -> Letters:
        def way(to: str) -> Optional[str]:
            if to in ("", me):
                return ""
            if to not in self.names:
                return None
            step = 1 if to > me else -1
            hop = self.names[self.names.index(me) + step]
            return None if (me, hop) in self.cut else hop

        def send(peer: str, kind: str, fields: Dict[str, Any]) -> None:
            self.wires.append((peer, kind, fields))

        def answer(asker: str, verb: str, args: Any, body: bytes, then: Any) -> None:
            self.asked.append((me, verb, args, body))
            if not self.silent:
                then(({"asker": asker}, body[::-1]))

        return Letters(Seams(me, way, send, answer, lambda: self.now))

    def run(self) -> None:
        while self.wires:
            peer, kind, fields = self.wires.pop(0)
            self.nodes[peer].on_frame(kind, fields)

    def ask(self, me: str, to: str) -> List[Any]:
        said: List[Any] = []
        self.nodes[me].ask(Letter(to, "read", {"a": 1}, b"abc"), said.append)
        return said


@pytest.mark.parametrize("me, to", ["ab", "ac", "ad", "da", "aa"])
def test_a_letter_reaches_any_node_over_others_and_the_reply_comes_back(
    me: str, to: str
) -> None:
    net = Net("abcd")
    said = net.ask(me, to)
    net.run()
    assert said == [({"asker": me}, b"cba")]
    assert net.asked == [(to, "read", {"a": 1}, b"abc")]
    assert net.nodes[me].tick(net.now) is None  # nothing is owed, so nothing is due


def test_a_letter_that_is_lost_is_sent_again_and_answered_once() -> None:
    net = Net("ab")
    said = net.ask("a", "b")
    net.wires.clear()
    net.now = letters.AGAIN_S
    net.nodes["a"].tick(net.now)
    net.wires *= 2  # and doubled
    net.run()
    assert said == [({"asker": "a"}, b"cba")]


def test_a_letter_whose_way_was_lost_is_sent_again_at_once() -> None:
    net = Net("ab")
    said = net.ask("a", "b")
    net.wires.clear()
    for net.now, net.cut in ((1.0, [("a", "b")]), (2.0, [])):
        net.nodes["a"].tick(net.now)
    net.run()
    assert said == [({"asker": "a"}, b"cba")]


def test_who_never_answers_is_given_up() -> None:
    net = Net("ab")
    net.silent = True
    said = net.ask("a", "b")
    while not said:
        due = net.nodes["a"].tick(net.now)
        net.run()
        assert said or due is not None and due > net.now
        net.now = due or net.now
    assert said == [None]
    assert letters.GIVE_UP_S <= net.now <= letters.GIVE_UP_S + letters.LOOK_S
    assert len(net.asked) == 1  # it is being answered: not begun again


def test_where_no_way_leads_is_given_up_sooner_but_a_link_may_be_made_anew() -> None:
    net = Net("ab")
    net.cut = [("a", "b")]
    said = net.ask("a", "b")
    net.now = letters.AWAY_S - 1
    net.nodes["a"].tick(net.now)
    assert not said
    net.cut = []
    net.nodes["a"].tick(net.now)
    net.run()
    assert said == [({"asker": "a"}, b"cba")]
    net.cut = [("a", "b")]
    said = net.ask("a", "b")
    net.now += letters.AWAY_S
    net.nodes["a"].tick(net.now)
    assert said == [None]


def test_a_reply_to_another_question_or_of_another_node_is_none() -> None:
    net = Net("abc")
    net.silent = True
    said = net.ask("a", "b")
    reply = {"to": "a", "hops": 1, "said": {}, "body": b""}
    net.nodes["a"].on_frame("REPLY", dict(reply, n=1, origin="c"))
    net.nodes["a"].on_frame("REPLY", dict(reply, n=7, origin="b"))
    assert not said
    net.nodes["a"].on_frame("REPLY", dict(reply, n=1, origin="b"))
    assert said == [({}, b"")]


def test_a_ghost_that_nobody_has_is_told_at_once() -> None:
    net = Net("a")
    seams = net.nodes["a"].seams._replace(way=lambda to: None)
    said: List[Any] = []
    Letters(seams).ask(Letter("", "nodes", {}), said.append)
    assert said == [None]


def test_a_letter_that_goes_in_circles_ends() -> None:
    net = Net("ab")
    net.names = "ab" + "c"  # each believes that the other leads to c
    net.nodes["b"].seams = net.nodes["b"].seams._replace(way=lambda to: "a")
    net.nodes["a"].seams = net.nodes["a"].seams._replace(way=lambda to: "b")
    net.ask("a", "c")
    net.run()
    assert net.asked == []


def test_so_many_letters_are_answered_at_once_and_no_more() -> None:
    net = Net("ab")
    net.silent = True
    for _ in range(letters.ANSWERING_MAX + 5):
        net.ask("a", "b")
    net.run()
    assert len(net.asked) == letters.ANSWERING_MAX


@pytest.mark.parametrize("kind", ["LETTER", "REPLY"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"to": "a"}, {"to": "a", "n": "x", "origin": "b", "args": 5, "said": 5}]
    + [{"to": "b", "hops": None}],
)
def test_a_frame_that_is_none_raises_what_ends_its_link(
    kind: str, fields: Dict[str, Any]
) -> None:
    net = Net("ab")
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        net.nodes["a"].on_frame(kind, dict(fields, body=b""))
    assert net.asked == []
