"""The simulator isn't blind: each rule, broken on purpose, is caught, more than once.

A mutation replaces one method or constant. Each of its seeds must catch it: two or
more, or a readable history, or a test of the rule itself where another rule would hide
it. If a change moves what seeds do, `find` looks for others.
"""

from typing import Any, Dict, Iterable, List, NamedTuple, Tuple, Union

import pytest
import test_histories
import test_mesh
from faults import simulate
from ledger import Broken

import adding
import coordinator
import durable
import hands
import mesh
import peers
import replica
import room
import taskqueue


class Mutation(NamedTuple):
    """What is broken, by what, and what sees it."""

    owner: Any
    name: str
    broken: Any
    seeds: Tuple[Union[int, str], ...]  # a number, or a history by its name


def _start_at_once(self: Any, record: Any, run_key: str, now: float) -> bool:
    return bool(self.has_files(record))


def _never(self: Any, *args: Any) -> bool:
    return False


def _grant_unfollowed(self: Any, now: float) -> bool:
    return bool(self.coordinator() == self.node_id and not self.is_frozen(now))


def _heed_any_call(self: Any, facts: Any) -> bool:
    return bool(facts["follows"] == self.node_id)


def _none_are_loose(component: Any, links: Any) -> List[Tuple[str, str]]:
    return []


def _make_nothing_good(self: Any) -> None:
    pass


def _go_on(self: Any, now: float) -> bool:
    return bool(self.coordinator() == self.node_id)


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


def _all_others_are_gone(self: Any, now: float) -> List[Tuple[str, str]]:
    own, found = self.mesh.writer, sorted(self.living.items())
    return [(run, key) for run, (writer, key) in found if writer != own]


def _stored_in_memory(self: Any, storing: Any) -> None:
    self.node.send(storing.link.peer, "STORED", {"n": storing.n, "ok": True})


def _nobody_is_stale(self: Any, record: Any, run_key: str) -> None:
    self.term = 0
    _beside_another(self, record, run_key)


def _beside_another(self: Any, record: Any, run_key: str) -> None:
    self._has_room = lambda record: (True, False)  # else one of the two is handed back
    known, hands.runs_elsewhere = hands.runs_elsewhere, _never
    ANSWER_GRANT(self, record, run_key)
    hands.runs_elsewhere = known


def _told_to_one(self: Any, record: Any, gone: bool) -> None:
    boxes = dict(self.boxes)
    for peer in sorted(self.boxes)[1:]:
        del self.boxes[peer]
    TOUCH(self, record, gone)
    self.boxes = boxes


def _purged_rows_first(self: Any, keys: Any, then: Any, *more: Any, **how: Any) -> None:
    """PURGED is written in the next batch, not in that which drops the rows."""
    keys, unsaved = list(keys), self.queue.purged.unsaved
    later = dict(unsaved) if keys else {}
    if keys:
        unsaved.clear()
    PERSIST(self, keys, then, *more, **how)
    unsaved.update(later)


def _forget_their_order(self: Any, theirs: Any) -> Any:
    lamport = self.lamport
    record = JOIN(self, theirs)
    self.lamport = lamport
    return record


def _always_term_one(self: Any) -> int:
    self.tell(claim=[1, len(self.component)])
    return 1


def _no_incarnation(run: Any, event: str, detail: Any) -> Any:
    after = ADVANCE(run, event, detail)
    return after._replace(inc=run.inc)


def _slice_by_slice(self: Any, ticket: int, bulk: Any, keys: List[str]) -> None:
    self.durable.persist(keys, lambda error: None)


def _note_nothing(self: Any, now: float) -> None:
    """A link that dropped out goes on as if nothing had been."""


def _all_have_a_core(self: Any, record: Any) -> Tuple[bool, bool]:
    return True, False


ANSWER_GRANT = hands.Hands._answer_grant
TOUCH = replica.Replica.touch
PERSIST = durable.Durable.persist
JOIN = taskqueue.Queue.join
ADVANCE = taskqueue.advance

MUTATIONS: Dict[str, Mutation] = {
    "a grant to oneself starts without a second copy": Mutation(
        *(room.Room, "may_start", _start_at_once),
        (
            1,
            10,
        ),
    ),
    "a new link doesn't freeze granting": Mutation(
        *(mesh.Mesh, "is_frozen", _never),
        (
            4,
            144,
        ),
    ),
    "a follower is believed whatever call it heeds": Mutation(
        *(mesh.Mesh, "_heeds_me", _heed_any_call),
        (
            "what_a_member_said_before_it_was_away_is_no_answer",
            "a_component_that_shrinks_needs_no_new_answer",
        ),
    ),
    "who joins behind a third node doesn't freeze granting": Mutation(
        *(mesh, "loose_ends", _none_are_loose),
        ("who_is_named_by_a_member_but_not_known_yet_is_waited_for",),
    ),
    "a coordinator doesn't wait until all follow it": Mutation(
        *(mesh.Mesh, "may_grant", _grant_unfollowed),
        (
            9,
            21,
        ),
    ),
    "no freeze when two coordinators meet": Mutation(
        *(mesh.Mesh, "may_grant", _go_on),
        (
            4,
            9,
        ),
    ),
    "what wasn't passed on is never made good": Mutation(
        *(mesh.Mesh, "_uncover", _make_nothing_good),
        (
            "what_another_said_is_passed_on_once_its_link_to_somebody_has_gone",
            "a_member_that_is_gone_leaves_nothing_untold",
        ),
    ),
    "a restarted node waits for no member": Mutation(
        *(coordinator, "START_S", 0.0),
        (
            265,
            285,
            "a_node_that_comes_back_waits_for_those_it_knew",
        ),
    ),
    "stale grants are started": Mutation(
        *(hands.Hands, "_answer_grant", _nobody_is_stale),
        (
            "a_grant_that_is_late_is_not_started_when_another_coordinates",
            "late_grants_of_a_node_that_was_cut_off_are_not_started",
        ),
    ),
    "what runs elsewhere is started": Mutation(
        *(hands.Hands, "_answer_grant", _beside_another),
        (
            4382,
            "grants_that_a_pause_kept_back_are_not_started_beside_those_of_another",
        ),
    ),
    "what is granted ahead of its core begins at once": Mutation(
        *(hands.Hands, "_has_room", _all_have_a_core),
        (
            2,
            6,
        ),
    ),
    "a pause isn't noticed": Mutation(
        *(mesh.Mesh, "notice_pause", _never),
        (
            340,
            421,
        ),
    ),
    "acknowledged before fsync": Mutation(
        *(durable.Durable, "_settle", _settle_at_once),
        (
            0,
            1,
        ),
    ),
    "acknowledged without a peer's disk": Mutation(
        *(durable.Durable, "_settle", _settle_without_peer),
        (
            1,
            2,
        ),
    ),
    "a peer says stored before fsync": Mutation(
        *(peers.Peers, "_store", _stored_in_memory),
        (
            3,
            1,
        ),
    ),
    "the older duplicate is killed": Mutation(
        *(coordinator.Coordinator, "_settle_doubles", _kill_the_smallest),
        (
            "the_stop_of_a_duplicate_does_not_fail_the_good_run",
            "a_run_that_was_called_lost_is_its_workers_after_all",
        ),
    ),
    "a disk that hangs gets work": Mutation(
        *(durable.Durable, "is_stuck", _never),
        (
            "a_node_whose_disk_hangs_gets_nothing_new_until_it_answers",
            "a_node_whose_disk_hangs_alone_starts_nothing_until_it_answers",
        ),
    ),
    "purged tasks come back": Mutation(
        *(taskqueue.Purged, "covers", _never),
        (
            8,
            12,
            "a_node_that_was_away_for_long_brings_nothing_back_but_what_it_added",
        ),
    ),
    "purged before it is durable": Mutation(
        *(durable.Durable, "persist", _purged_rows_first),
        ("a_purge_outlives_a_loss_of_power_whole_or_not_at_all",),
    ),
    "the order of counters is forgotten": Mutation(
        *(taskqueue.Queue, "join", _forget_their_order),
        (
            1,
            2,
        ),
    ),
    "a coordinator forgets what terms there were": Mutation(
        *(mesh.Mesh, "claim", _always_term_one),
        (
            6,
            8,
        ),
    ),
    "a run that was called lost can't be refuted": Mutation(
        *(taskqueue, "advance", _no_incarnation),
        (
            "the_stop_of_a_duplicate_does_not_fail_the_good_run",
            "a_run_that_was_called_lost_is_its_workers_after_all",
        ),
    ),
    "runs are lost whose worker others hear": Mutation(
        *(coordinator.Coordinator, "_gone", _all_others_are_gone),
        (
            3,
            "the_path_1_3_2_has_one_coordinator",
        ),
    ),
    "changes reach one peer only": Mutation(
        *(replica.Replica, "touch", _told_to_one),
        (
            1,
            17,
        ),
    ),
    "a link that dropped out counts again": Mutation(
        *(mesh.Link, "note_doubt", _note_nothing),
        ("a_link_that_dropped_out_never_counts_again",),
    ),
    "a file that never comes is waited for": Mutation(
        *(room, "FILE_S", 1e9),
        ("a_file_that_never_comes_holds_up_no_other_task",),
    ),
    "the slices of an add come to life one by one": Mutation(
        *(adding.Adding, "_stage", _slice_by_slice),
        (
            "an_add_in_slices_that_is_cut_short_leaves_nothing",
            "a_lone_node_keeps_nothing_of_an_add_that_it_died_in",
        ),
    ),
}


@pytest.mark.parametrize("what", sorted(MUTATIONS))
def test_each_of_its_seeds_catches(what, monkeypatch):
    mutation = MUTATIONS[what]
    assert len(mutation.seeds) >= 2 or isinstance(mutation.seeds[0], str)
    monkeypatch.setattr(mutation.owner, mutation.name, mutation.broken)
    for seed in mutation.seeds:
        with pytest.raises(AssertionError):
            replay(seed)


def replay(seed: Union[int, str]) -> None:
    """Run a seed, or the history of that name."""
    if isinstance(seed, int):
        simulate(seed)
    else:
        name = "test_" + seed
        getattr(test_histories if hasattr(test_histories, name) else test_mesh, name)()


def find(what: str, seeds: Iterable[int], most: int = 3) -> List[Tuple[int, str]]:
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
