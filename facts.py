"""What a node says of itself in MEMBER, a ghost in GHOST: what each field must be.

Reason for this file beside mesh.py: validation (D9) is no membership. Facts are kept
as they came, passed on and read by every part for as long as a node is known: what is
malformed must not get in.

Rules. Pure (D6). A field that isn't here is unknown, kept and passed on.
"""

from typing import Any, Callable, Dict

TERM_MAX = 1 << 50
NUMBER_MAX = 1 << 53  # JSON numbers stay exact up to here
TEXT_CHARS_MAX = 300
FACT_BYTES = 1 << 20  # free memory and disk are told in steps of 1 MiB

Facts = Dict[str, Any]


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_CHARS_MAX


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_claim(value: Any) -> bool:
    if value is None:
        return True
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(_is_number(n) for n in value) and value[0] <= TERM_MAX


def _is_call(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and _is_text(value[0]) and _is_number(value[1])


FACTS: Dict[str, Callable[[Any], bool]] = {
    "id": _is_text,
    "writer": _is_text,
    "starts": _is_number,
    "seq": _is_number,
    # the mesh's own
    "links": _are_texts,
    "claim": _is_claim,
    "follows": _is_text,
    "call": _is_number,  # how often this node has asked all to say whom they follow
    "heeds": _is_call,  # the last call of whom it follows: its writer, the number
    "term": lambda value: _is_number(value) and value <= TERM_MAX,
    "ready": _is_flag,
    "stopping": _is_flag,
    "dead": _are_texts,
    "role": _is_text,
}
OFFER: Dict[str, Callable[[Any], bool]] = {  # what a worker offers
    "name": _is_text,
    "address": _is_text,
    "cores": _is_number,
    "memory": _is_number,
    "free_memory": lambda value: value is None or _is_number(value),
    "free_disk": _is_number,
    "holds": _are_texts,
    "tags": _are_texts,
    "draining": _is_flag,
    "stuck": lambda value: value is ... or _is_flag(value),  # its disk hangs
}
STATES = ("here", "away", "dead", "replaced")
GHOST: Dict[str, Callable[[Any], bool]] = {
    "id": _is_text,
    "session": _is_number,
    "seq": _is_number,
    "at": _is_text,
    "state": lambda value: value in STATES,
}


def in_steps(size: int) -> int:
    """Give bytes as they are told: what changes all the time is no news."""
    return size // FACT_BYTES * FACT_BYTES


def check_facts(facts: Facts) -> None:
    """Raise ValueError unless facts are what MEMBER may hold (D9)."""
    _check("MEMBER", FACTS, facts)
    _check("MEMBER", OFFER, facts)


def check_offer(offer: Facts) -> Facts:
    """Give what a ghost says that it offers, or raise ValueError."""
    _check("an offer", OFFER, offer)
    return offer


def check_ghost(facts: Facts) -> None:
    """Raise ValueError unless facts are what GHOST may hold."""
    _check("GHOST", GHOST, facts)
    check_offer(facts["offer"])


def _check(what: str, rules: Dict[str, Callable[[Any], bool]], facts: Facts) -> None:
    for field, is_right in rules.items():
        if not is_right(facts.get(field, ...)):
            raise ValueError("%s of %s is %.40r" % (field, what, facts.get(field)))
