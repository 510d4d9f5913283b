"""Shapes of networks: which directions are cut, given who is there.

Rules. Each is a function of the names, in an order that the caller has drawn, to a
list of (from, to). Nothing here is random; CHAIN to STAR are the shapes of Jepsen.
"""

from typing import Callable, Dict, List, Sequence, Tuple

Cuts = List[Tuple[str, str]]
Names = Sequence[str]


def apart(groups: Sequence[Names]) -> Cuts:
    """Part groups from each other."""
    return [
        (a, b)
        for group in groups
        for other in groups
        if other is not group
        for a in group
        for b in other
    ]


def all_but(names: Names, kept: Sequence[Tuple[str, str]]) -> Cuts:
    """Cut all links but some."""
    links = {frozenset(pair) for pair in kept}
    return [
        (a, b)
        for a in names
        for b in names
        if a != b and frozenset((a, b)) not in links
    ]


def halves(names: Names) -> Cuts:
    """Two sides, the smaller first."""
    return apart([names[: len(names) // 2], names[len(names) // 2 :]])


def alone(names: Names) -> Cuts:
    """One on its own."""
    return apart([names[:1], names[1:]])


def shattered(names: Names) -> Cuts:
    """Each on its own."""
    return apart([[name] for name in names])


def bridge(names: Names) -> Cuts:
    """Two sides, and one that hears both (FAULTS 23)."""
    middle = len(names) // 2
    return apart([names[:middle], names[middle + 1 :]])


def ring(names: Names) -> Cuts:
    """Each hears its two neighbours: of five, a majority, another one (FAULTS 22)."""
    return all_but(names, list(zip(names, [*names[1:], names[0]])))


def chain(names: Names) -> Cuts:
    """Each hears the one before and the one after."""
    return all_but(names, list(zip(names, names[1:])))


def star(names: Names) -> Cuts:
    """All hear the first, and only that."""
    return all_but(names, [(names[0], name) for name in names[1:]])


def one_link(names: Names) -> Cuts:
    """Two don't hear each other (FAULTS 24)."""
    return [(names[0], names[1]), (names[1], names[0])]


def one_way(names: Names) -> Cuts:
    """One direction of one link is gone (FAULTS 25)."""
    return [(names[0], names[1])]


def mute(names: Names) -> Cuts:
    """One hears all, and nobody hears it."""
    return [(names[0], name) for name in names[1:]]


def deaf(names: Names) -> Cuts:
    """All hear one that hears nobody."""
    return [(name, names[0]) for name in names[1:]]


def one_way_ring(names: Names) -> Cuts:
    """Around a circle one direction of each link is gone."""
    return list(zip(names, [*names[1:], names[0]]))


SHAPES: Dict[str, Callable[[Names], Cuts]] = {
    "halves": halves,
    "alone": alone,
    "shattered": shattered,
    "bridge": bridge,
    "ring": ring,
    "chain": chain,
    "star": star,
    "one_link": one_link,
    "one_way": one_way,
    "mute": mute,
    "deaf": deaf,
    "one_way_ring": one_way_ring,
}
