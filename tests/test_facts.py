"""Facts: what no node may say of itself, and that no node says what none takes."""

from typing import Any, Dict

import pytest

import facts
from facts import FACTS_BYTES_MAX, TEXTS_BYTES_MAX, check_facts, check_ghost, clipped
from mesh import Mesh
from record import COUNTER_MAX, TERM_MAX, canonical

OFFER: Dict[str, Any] = dict(
    name="n", address="10.0.0.1", cores=2, memory=1, free_memory=None, free_disk=1
)
OFFER.update(holds=[], tags=[], draining=False)
MEMBER: Dict[str, Any] = dict(OFFER, id="b" * 16, writer="b" * 16, starts=1, seq=1)
MEMBER.update(links=[], claim=None, follows="", call=0, heeds=["", 0], term=0)
MEMBER.update(ready=True, stopping=False, dead=[], role="comrade")
GHOST: Dict[str, Any] = dict(id="g", session=1, seq=1, at="b", state="here")
WRONG: Dict[str, Any] = {
    "seq": [-1, COUNTER_MAX + 1, 1.0, True, "1", None],
    "term": [TERM_MAX + 1, -1, 1.5],
    "id": ["\xe9" * 16, "\ud800", "x" * 65, 1, None],
    "writer": ["\xe9", "x" * 65, 1],
    "heeds": [["\xe9", 0], ["a"], ["a", -1]],
    "claim": [[TERM_MAX + 1, 1], [1], [1, 2, 3], 7],
    "name": ["x" * 301, 1, None, ["n"]],
    "links": [["x"] * (facts.IDS_MAX + 1), ["x" * 301], [1], {}],
    "dead": [["x"] * (facts.IDS_MAX + 1), "abc"],
    "tags": [["x" * TEXTS_BYTES_MAX], ["\u00e9" * (TEXTS_BYTES_MAX // 6)], [None]],
    "holds": [["worker:tag %d" % n for n in range(20000)], 1],
    "call": [COUNTER_MAX + 1, None],
    "unknown": ["x" * FACTS_BYTES_MAX, [[]] * FACTS_BYTES_MAX],
}


def test_what_a_member_may_say_passes_with_what_is_unknown() -> None:
    check_facts(MEMBER)
    check_facts(dict(MEMBER, unknown={"a": [1, None]}, seq=COUNTER_MAX, term=TERM_MAX))
    check_ghost(dict(GHOST, offer=OFFER))


@pytest.mark.parametrize("field", sorted(WRONG))
def test_what_no_node_says_is_refused(field: str) -> None:
    for value in WRONG[field]:
        with pytest.raises(ValueError, match="has|of MEMBER") as refused:
            check_facts(dict(MEMBER, **{field: value}))
        assert len(str(refused.value)) < 200
        if field in OFFER or field == "unknown":
            with pytest.raises(ValueError):
                check_ghost(dict(GHOST, offer=dict(OFFER, **{field: value})))


def test_a_node_tells_no_more_than_others_take() -> None:
    many = {"worker:has_file %06d \u00e9" % n for n in range(20000)}
    told = clipped(many)
    assert told == sorted(many)[: len(told)] and 5000 < len(told)
    assert len(canonical(told)) <= TEXTS_BYTES_MAX < len(canonical(clipped(many))) + 99
    assert clipped(["b", "a"]) == ["a", "b"]
    check_facts(dict(MEMBER, holds=told, tags=told))


def test_a_number_of_a_frame_is_a_number_and_a_list_of_ids_one() -> None:
    assert facts.number(COUNTER_MAX) == COUNTER_MAX
    for wrong in ("9" * 1000000, True, -1, 1.0, None, COUNTER_MAX + 1):
        with pytest.raises(ValueError):
            facts.number(wrong)
    assert facts.ids(["a", "b"]) == ["a", "b"]
    for wrong in ("x" * 100000, [1], None, {}, ["x"] * (facts.IDS_MAX + 1)):
        with pytest.raises(ValueError):
            facts.ids(wrong)
    assert facts.next_number(COUNTER_MAX) == COUNTER_MAX


def test_the_highest_term_there_is_stops_no_granting() -> None:
    mesh = Mesh("a" * 16, "a" * 16, 1, lambda *frame: None)
    mesh.tell(ready=True)
    mesh.on_member("b" * 16, dict(MEMBER, term=TERM_MAX), 1.0)
    assert mesh.claim() == TERM_MAX == mesh.claim()
    assert mesh.may_grant(1000.0)
    check_facts(dict(MEMBER, **{k: v for k, v in mesh.facts.items() if k in MEMBER}))
