"""What a node says of itself in MEMBER, a ghost in GHOST: what each field must be.

Reason for this file beside mesh.py: validation (D9) is no membership. Facts are kept
as they came, passed on and read by every part for as long as a node is known: what is
malformed must not get in.

Rules. Pure (D6). A field that isn't here is unknown, kept and passed on. What this node
says itself keeps to the same bounds: who said more would lose its links.
"""

from typing import Any, Callable, Dict, Iterable, List

from record import COUNTER_MAX as NUMBER_MAX  # JSON numbers stay exact up to here
from record import TERM_MAX, canonical

TEXT_CHARS_MAX = 300
ID_CHARS_MAX = 64  # ids, writers and addresses have 16
IDS_MAX = 1000  # of links or dead writers: several times what a node tells
FACTS_BYTES_MAX = 512 << 10  # of one node, with what is unknown: fits into a frame
TEXTS_BYTES_MAX = 200 << 10  # of the tags, and of the conditions that hold
FACT_BYTES = 1 << 20  # free memory and disk are told in steps of 1 MiB

assert 2 * TEXTS_BYTES_MAX < FACTS_BYTES_MAX

Facts = Dict[str, Any]


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_CHARS_MAX


def _is_id(value: Any) -> bool:
    # Ids are hashed with keys, and sorted: a strange one would raise far from here.
    return isinstance(value, str) and len(value) <= ID_CHARS_MAX and value.isascii()


def _are_texts(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return False
    return len(canonical(value)) <= TEXTS_BYTES_MAX


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= IDS_MAX and all(map(_is_text, value))
    )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_claim(value: Any) -> bool:
    if value is None:
        return True
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(_is_number(n) for n in value) and value[0] <= TERM_MAX


def _is_call(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and _is_id(value[0]) and _is_number(value[1])


FACTS: Dict[str, Callable[[Any], bool]] = {
    "id": _is_id,
    "writer": _is_id,
    "starts": _is_number,
    "seq": _is_number,
    # the mesh's own
    "links": _are_ids,
    "claim": _is_claim,
    "follows": _is_id,
    "call": _is_number,  # how often this node has asked all to say whom they follow
    "heeds": _is_call,  # the last call of whom it follows: its writer, the number
    "term": lambda value: _is_number(value) and value <= TERM_MAX,
    "ready": _is_flag,
    "stopping": _is_flag,
    "dead": _are_ids,
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
    "id": _is_id,
    "session": _is_number,
    "seq": _is_number,
    "at": _is_id,
    "state": lambda value: value in STATES,
}


def in_steps(size: int) -> int:
    """Give bytes as they are told: what changes all the time is no news."""
    return size // FACT_BYTES * FACT_BYTES


def clipped(texts: Iterable[str], most: int = TEXTS_BYTES_MAX) -> List[str]:
    """Give texts in order, as many as may be told.

    Of conditions the rest doesn't hold for now: its turn comes when those before it
    are of tasks that have ended.
    """
    told, size = sorted(texts), 2
    for i, text in enumerate(told):
        size += len(canonical(text)) + 1
        if size > most:
            return told[:i]
    return told


def parted(texts: Iterable[str], most: int) -> List[List[str]]:
    """Part texts into lists of about so many bytes; without any: one empty list."""
    parts: List[List[str]] = [[]]
    size = 0
    for text in texts:
        if size >= most:
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(canonical(text)) + 1
    return parts


def number(value: Any, most: int = NUMBER_MAX) -> int:
    """Give a number that a frame must have, or raise ValueError."""
    if not _is_number(value) or value > most:
        raise ValueError("%.40r is no number from 0 to %d" % (value, most))
    return int(value)


def ids(value: Any) -> List[str]:
    """Give a list of short texts that a frame must have, or raise ValueError."""
    if not _are_ids(value):
        raise ValueError("%.40r is no list of %d ids at most" % (value, IDS_MAX))
    return list(value)


def next_number(value: int) -> int:
    """Count one further; a mad peer's may be the highest there is."""
    return min(value + 1, NUMBER_MAX)


def check_facts(facts: Facts) -> None:
    """Raise ValueError unless facts are what MEMBER may hold (D9)."""
    _check("MEMBER", FACTS, facts)
    _check("MEMBER", OFFER, facts)
    _check_size("MEMBER", facts)


def check_offer(offer: Facts) -> Facts:
    """Give what a ghost says that it offers, or raise ValueError."""
    _check("an offer", OFFER, offer)
    _check_size("an offer", offer)
    return offer


def check_ghost(facts: Facts) -> None:
    """Raise ValueError unless facts are what GHOST may hold."""
    _check("GHOST", GHOST, facts)
    check_offer(facts["offer"])
    _check_size("GHOST", facts)


def _check(what: str, rules: Dict[str, Callable[[Any], bool]], facts: Facts) -> None:
    for field, is_right in rules.items():
        if not is_right(facts.get(field, ...)):
            raise ValueError("%s of %s is %.40r" % (field, what, facts.get(field)))


def _check_size(what: str, facts: Facts) -> None:
    size = len(canonical(facts))
    if size > FACTS_BYTES_MAX:
        raise ValueError("%s has %d bytes" % (what, size))
