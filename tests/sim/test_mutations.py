"""The simulator isn't blind: each rule, broken on purpose, is caught by some seed.

A mutation replaces one method or constant. Its seeds are few and fixed; if a change of
the protocol or of the simulator moves what they do, look for others with `find`.
"""

from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
import test_histories
from faults import simulate
from ledger import Broken

import coordinator
import durable
import hands
import mesh
import peers
import replica
import room
import taskqueue


class Mutation(NamedTuple):
    """What is broken, by what, and the seeds that see it."""

    owner: Any
    name: str
    broken: Any
    seeds: Tuple[Any, ...]  # a number, or a history of test_histories.py


def _start_at_once(self: Any, record: Any, run_key: str, now: float) -> bool:
    return bool(self.has_files(record))


def _never_frozen(self: Any, now: float) -> bool:
    return False


def _grant_unfollowed(self: Any, now: float) -> bool:
    return bool(self.coordinator() == self.node_id and not self.is_frozen(now))


def _settle_at_once(self: Any, pledge: Any, now: float) -> None:
    self._end(pledge, "", "")


def _settle_without_peer(self: Any, pledge: Any, now: float) -> None:
    if pledge.is_here is not None:
        self._end(pledge, pledge.error, "")


def _kill_the_smallest(self: Any, now: float) -> None:
    for key in sorted(self.doubles):
        living = self.queue.records[key].living()
        for run_key in living[:-1]:
            self._stop(self.queue.records[key], run_key, "0.0.%016x.0" % 0)


def _nothing_is_purged(self: Any, key: str) -> bool:
    return False


def _all_others_are_gone(self: Any, now: float) -> List[Tuple[str, str]]:
    own, found = self.mesh.writer, sorted(self.living.items())
    return [(run, key) for run, (writer, key) in found if writer != own]


def _stored_in_memory(self: Any, storing: Any) -> None:
    self.node.send(storing.link.peer, "STORED", {"n": storing.n, "ok": True})


def _nobody_is_stale(self: Any, record: Any, run_key: str) -> None:
    self.term = 0
    ANSWER_GRANT(self, record, run_key)


ANSWER_GRANT = hands.Hands._answer_grant


def _no_pause(self: Any, now: float) -> bool:
    return False


def _told_to_one(self: Any, record: Any, gone: bool) -> None:
    boxes = dict(self.boxes)
    for peer in sorted(self.boxes)[1:]:
        del self.boxes[peer]
    TOUCH(self, record, gone)
    self.boxes = boxes


TOUCH = replica.Replica.touch

MUTATIONS: Dict[str, Mutation] = {
    "a grant to oneself starts without a second copy": Mutation(
        room.Room, "may_start", _start_at_once, (0, 1)
    ),
    "a new link doesn't freeze granting": Mutation(
        mesh.Mesh, "is_frozen", _never_frozen, (386,)
    ),
    "a coordinator doesn't wait until all follow it": Mutation(
        mesh.Mesh, "may_grant", _grant_unfollowed, (128,)
    ),
    "a restarted node waits for no member": Mutation(
        coordinator, "START_S", 0.0, (0, 8)
    ),
    "stale grants are started": Mutation(
        hands.Hands, "_answer_grant", _nobody_is_stale, (352,)
    ),
    "a pause isn't noticed": Mutation(mesh.Mesh, "notice_pause", _no_pause, (30, 253)),
    "acknowledged before fsync": Mutation(
        durable.Durable, "_settle", _settle_at_once, (0, 1)
    ),
    "acknowledged without a peer's disk": Mutation(
        durable.Durable, "_settle", _settle_without_peer, (0, 1)
    ),
    "a peer says stored before fsync": Mutation(
        peers.Peers, "_store", _stored_in_memory, (0, 1)
    ),
    "the smaller duplicate is killed": Mutation(
        coordinator.Coordinator,
        "_settle_doubles",
        _kill_the_smallest,
        (test_histories.test_the_stop_of_a_duplicate_does_not_fail_the_good_run,),
    ),
    "purged tasks come back": Mutation(
        taskqueue.Purged, "covers", _nothing_is_purged, (6, 24)
    ),
    "runs are lost whose worker others hear": Mutation(
        coordinator.Coordinator, "_gone", _all_others_are_gone, (5, 7)
    ),
    "changes reach one peer only": Mutation(
        replica.Replica, "touch", _told_to_one, (21, 31)
    ),
}


@pytest.mark.parametrize("what", sorted(MUTATIONS))
def test_some_seed_catches(what, monkeypatch):
    mutation = MUTATIONS[what]
    monkeypatch.setattr(mutation.owner, mutation.name, mutation.broken)
    with pytest.raises(Broken):
        for seed in mutation.seeds:
            seed() if callable(seed) else simulate(seed)


def find(what: str, seeds: range, most: int = 3) -> List[Tuple[int, str]]:
    """Give seeds that catch a mutation, and what they say."""
    mutation = MUTATIONS[what]
    sound = getattr(mutation.owner, mutation.name)
    setattr(mutation.owner, mutation.name, mutation.broken)
    found = []
    try:
        for seed in seeds:
            try:
                simulate(seed)
            except Broken as problem:
                found.append((seed, str(problem).partition("\n")[0]))
                if len(found) >= most:
                    break
    finally:
        setattr(mutation.owner, mutation.name, sound)
    return found
