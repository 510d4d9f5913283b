"""The simulator isn't blind to ghosts: each of their rules, broken, is caught."""

from typing import Any, Dict

import pytest
import relays
import test_ghost_histories
from faults import simulate
from test_mutations import Mutation

import ghostnode
import ghosts
import reports
import whereabouts
from record import Phase


def _dead_with_its_clairvoyant(self: Any, writer: str, now: float) -> None:
    PLACE(self, writer, now)
    if writer not in self.present:
        self.mesh.deaths.ghosts.setdefault(writer, now)


def _relay_is_ghost(self: Any, peer: str, why: str, now: float) -> None:
    LOSE(self, peer, "stopping" if why == "relay" else why, now)


def _stored_in_memory(self: Any, link: Any, n: int, *args: Any) -> None:
    self.node.send(link.peer, "STORED", {"n": n, "ok": True})


def _never(self: Any, *args: Any) -> bool:
    return False


def _nothing(self: Any, *args: Any) -> None:
    pass


def _unpushed(self: Any, record: Any) -> bool:
    return bool(self._ends(record))


def _told_of_all(self: Any, record: Any) -> Any:
    ours = {self.writer}
    runs = sorted(record.runs.items())
    return [r for r, run in runs if run.phase is Phase.ENDED and run.worker in ours]


PLACE = whereabouts.Whereabouts._place
LOSE = ghosts.Ghosts.lose

MUTATIONS: Dict[str, Mutation] = {
    "a clairvoyant's death counts as its ghosts'": Mutation(
        *(whereabouts.Whereabouts, "_place", _dead_with_its_clairvoyant),
        (9, 113),
    ),
    "a relay's death counts as its ghosts'": Mutation(
        *(ghosts.Ghosts, "lose", _relay_is_ghost),
        ("a_relay_that_dies_alone_costs_no_run",),
    ),
    "STORED is said before it is durable": Mutation(
        *(ghosts.Ghosts, "_store", _stored_in_memory), (3, 4)
    ),
    "a grant to an own ghost goes out without its second copy": Mutation(
        *(ghosts.Ghosts, "_must_wait", _never),
        ("19_a_grant_to_an_own_ghost_is_known_when_its_clairvoyant_dies",),
    ),
    "a ghost forgets an end at GOT": Mutation(
        *(reports.Reports, "_has_end", _never),
        (3, 4, "18_a_clairvoyant_that_dies_between_got_and_stored_loses_nothing"),
    ),
    "a ghost forgets what is over": Mutation(
        *(reports.Reports, "_remember", _nothing),
        ("a_ghost_tells_an_old_copy_what_it_ended_and_does_not_run_it_again",),
    ),
    "a ghost doesn't tell the ends of its former processes": Mutation(
        *(reports.Reports, "_ends", _told_of_all),
        ("16_a_ghost_that_is_killed_and_started_anew_tells_the_end_its_disk_has",),
    ),
    "outputs are not ahead of the ends that name them": Mutation(
        *(reports.Reports, "_push_outputs", _unpushed), (3, 4)
    ),
    "a ghost trusts a silent clairvoyant": Mutation(
        *(ghostnode, "SUSPECT_S", 60.0),
        (17, 33),
    ),
    "a relay answers for a main that is stuck": Mutation(
        *(relays, "FRESH_S", 1000.0), ("a_relay_does_not_mask_a_main_that_is_stuck",)
    ),
}


@pytest.mark.parametrize("what", sorted(MUTATIONS))
def test_each_of_its_seeds_or_histories_catches(what, monkeypatch):
    mutation = MUTATIONS[what]
    assert mutation.seeds
    monkeypatch.setattr(mutation.owner, mutation.name, mutation.broken)
    for seed in mutation.seeds:
        with pytest.raises(AssertionError):
            if isinstance(seed, int):
                simulate(seed)
            else:
                getattr(test_ghost_histories, "test_" + seed)()
