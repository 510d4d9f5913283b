"""Probation: one machine that fails all it gets must not eat the queue."""

import pytest

from probation import DOUBT_S, FIRST_S, MOST_S, QUICK_S, STREAK, Probation


def fail(known: Probation, writer: str, times: int = STREAK, took: float = 0.1) -> None:
    for _ in range(times):
        known.note(writer, False, took)


def succeed(known: Probation, writer: str, times: int = STREAK) -> None:
    for _ in range(times):
        known.note(writer, True, 0.1)


def test_who_fails_at_once_what_ends_well_elsewhere_is_on_probation() -> None:
    known = Probation()
    fail(known, "bad", 1)
    succeed(known, "good")
    fail(known, "bad", STREAK - 2)
    assert not known.failures("bad")
    fail(known, "bad", 1)
    assert known.failures("bad") == STREAK and not known.failures("good")


@pytest.mark.parametrize("others", ["nobody", "fail too"])
def test_tasks_that_fail_everywhere_slow_nobody(others: str) -> None:
    known = Probation()
    if others == "fail too":
        succeed(known, "other", 3 * STREAK)  # before
        fail(known, "other", 2 * STREAK)
    fail(known, "bad", 2 * STREAK)
    assert not known.failures("bad") and known.may_have("bad", False, 0.0)


@pytest.mark.parametrize("others", ["have ended nothing yet", "ended well before"])
def test_while_it_isnt_known_whose_fault_it_is_one_a_second(others: str) -> None:
    known = Probation()
    known.know("other")
    if others == "ended well before":
        succeed(known, "other", 3 * STREAK)
    fail(known, "bad")
    assert not known.failures("bad")
    for now in (0.0, DOUBT_S, 2 * DOUBT_S):
        assert not known.may_have("bad", True, now)
        due = known.deadline(now)
        assert due == now + DOUBT_S and known.may_have("bad", True, due)
        known.picked("bad", due)
        fail(known, "bad", 1)
    fail(known, "other")  # so it is the tasks
    assert known.may_have("bad", False, now)


def test_runs_that_took_their_time_are_no_streak() -> None:
    known = Probation()
    fail(known, "slow", STREAK - 1)
    fail(known, "slow", 1, QUICK_S + 1)
    fail(known, "slow", STREAK - 1)
    succeed(known, "good")
    assert not known.failures("slow")


def test_on_probation_one_task_at_a_time_less_and_less_often_until_one_ends_well() -> (
    None
):
    known, now, waits = Probation(), 0.0, []
    fail(known, "bad", 1)
    succeed(known, "good")
    fail(known, "bad", STREAK)
    for _ in range(9):
        assert not known.may_have("bad", True, now)
        due = known.deadline(now)
        assert due is not None and not known.may_have("bad", False, due)
        assert known.may_have("bad", True, due)
        waits.append(due - now)
        now = due
        known.picked("bad", now)
        fail(known, "bad", 1)
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits[-1] == MOST_S
    succeed(known, "bad", 1)
    assert known.may_have("bad", False, now) and known.deadline(now) is None


def test_who_is_gone_is_forgotten_with_what_ended_well_there() -> None:
    known = Probation()
    fail(known, "bad")
    succeed(known, "good")
    assert known.failures("bad")
    known.forget("good")
    assert not known.failures("bad")
    known.forget("bad")
    known.forget("bad")
    assert not known.failures("bad")
