"""leoronic_new_cookie: a new cookie for the whole cluster, and who has it.

Reason for this file beside verbs.py: as doctor.py, it asks each node by letter. What a
new cookie does, and when the old one stops to count, is jar.py's.

Rules. Has one made here, asks each node that is there until it has it, SPREAD_S at most
in all, and says in one line how many do and which don't; 1: some don't.
"""

from typing import Any, Dict, List

from control import Call, Control, Until, Verb, Wrong, at_most, printable, told
from filecalls import Gone, Pace, Place, Steps, places_of
from settings import format_duration
from taskform import duration, take_option

GRACE_S = 86400.0  # so long the old one counts, unless the user says otherwise
GRACE_LEAST_S = 10.0  # all that are linked have it by then
GRACE_MOST_S = 366 * 86400.0
SPREAD_S = 5.0  # it takes milliseconds
LOOK_S = 0.1


def _new_cookie(ctl: Control, call: Call) -> Verb:
    given, call.args[1:] = take_option(call.args[1:], "--grace", duration)
    at_most(call, 0)
    grace = GRACE_S if given is None else given
    if not GRACE_LEAST_S <= grace <= GRACE_MOST_S:
        raise Wrong(told("--grace is no time from 10s to 366d", "%gs" % grace, "as 7d"))
    places = yield from places_of(ctl)
    rank = list(ctl.acts.new_cookie(grace))
    deadline = ctl.acts.clock() + SPREAD_S
    away: List[Place] = []
    for place in places:
        if not (yield from _has(ctl, call, place, rank, deadline)):
            away.append(place)
    call.line(printable(_told(len(places), away, format_duration(grace))))
    if away:
        call.end(1)


def _told(count: int, away: List[Place], within: str) -> str:
    text = "%d of %d nodes have the new cookie" % (count - len(away), count)
    if not away:
        return text + "; the old one lets nodes in for another " + within
    return text + ", not %s: who is back within %s gets it, later copy its file" % (
        *(", ".join(place.name for place in away), within),
    )


def _has(
    ctl: Control, call: Call, place: Place, rank: List[Any], deadline: float
) -> Steps:
    """Ask a node until it has the cookie; say whether it does."""
    said: Dict[str, Any] = {}
    while place.state in ("ready", "draining") and said.get("cookie") != rank:
        try:
            said, _ = yield from Pace(ctl, place.node).ask("health", {})
        except Gone:
            return False
        if said.get("cookie") != rank:
            if ctl.acts.clock() >= deadline:
                return False
            yield Until(ctl.acts.clock() + LOOK_S)
    if said.get("unkept"):
        call.err(printable("%s: %s" % (place.name, said["unkept"])))
    return said.get("cookie") == rank


VERBS = {"new_cookie": _new_cookie}
