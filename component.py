"""The graph of a cluster's links: who is reached, by whom, and what leads nowhere yet.

Reason for this file beside mesh.py: these are questions about a graph, asked and tested
without time, facts or frames.

Rules. Pure (D6). `links` is what each node lists: node id -> node ids. A link counts
while both its ends list it.
"""

from typing import Dict, List, Optional, Set, Tuple

Links = Dict[str, List[str]]


def reachable(start: str, links: Links) -> Set[str]:
    """Give the component of a node: itself, and all that links lead to."""
    found, edge = {start}, [start]
    while edge:
        one = edge.pop()
        for other in links.get(one, ()):
            if other not in found and one in links.get(other, ()):
                found.add(other)
                edge.append(other)
    return found


def loose_ends(component: Set[str], links: Links) -> List[Tuple[str, str]]:
    """Give the links that a member lists, whose other end isn't in the component."""
    return [
        (one, other)
        for one in component
        for other in links.get(one, ())
        if other not in component
    ]


def is_whole(component: Set[str], links: Links) -> bool:
    """Say whether each of a component is linked with each."""
    return all(component <= {one, *links.get(one, ())} for one in component)


def first_hop(start: str, target: str, links: Links) -> Optional[str]:
    """Give the neighbour of `start` over which the target is reached soonest."""
    seen = {start}
    edge = [(peer, peer) for peer in links.get(start, ())]
    while edge:
        first, one = edge.pop(0)
        if one == target:
            return first
        if one not in seen:
            seen.add(one)
            edge.extend((first, other) for other in links.get(one, ()))
    return None
