"""The graph of links: against a plain search, on random graphs."""

import random
from itertools import product

from component import Links, first_hop, loose_ends, reachable

SEED = 20261126
GRAPHS = 300


def graphs():
    """Yield graphs of one to seven nodes, some of whose links one end alone lists."""
    chance = random.Random(SEED)
    for _ in range(GRAPHS):
        nodes = "abcdefg"[: chance.randint(1, 7)]
        density = chance.random()
        yield {
            node: [o for o in nodes if o != node and chance.random() < density]
            for node in nodes
            if chance.random() < 0.9 or node == "a"
        }


def is_both(one: str, other: str, links: Links) -> bool:
    return other in links.get(one, ()) and one in links.get(other, ())


def steps(links: Links, far: int, start: str = "a") -> dict:
    """Give in how many steps each is reached, over links of both ends."""
    found = {start: 0}
    for n in range(1, far + 1):
        for one, other in product(list(found), links):
            if other not in found and is_both(one, other, links):
                found[other] = n
    return found


def test_the_component_is_who_is_reached_over_links_that_both_ends_list():
    for links in graphs():
        assert reachable("a", links) == set(steps(links, 8)), links


def test_a_loose_end_is_a_members_link_to_somebody_who_is_not_in_it():
    for links in graphs():
        component = reachable("a", links)
        expected = {
            (one, other)
            for one, others in links.items()
            for other in others
            if one in component and other not in component
        }
        assert set(loose_ends(component, links)) == expected


def test_the_first_hop_is_on_a_shortest_way():
    for links in graphs():
        for node in links:  # as both ends list them once gossip has settled
            links[node] = [o for o in links[node] if is_both(node, o, links)]
        far = steps(links, 8)
        for target, distance in far.items():
            hop = first_hop("a", target, links)
            if distance > 0:
                assert hop in links["a"]
                beyond = steps(dict(links, a=[]), 8, hop)
                assert beyond[target] == distance - 1


def test_who_is_not_reached_has_no_hop():
    assert first_hop("a", "c", {"a": ["b"], "b": ["a"], "c": []}) is None
