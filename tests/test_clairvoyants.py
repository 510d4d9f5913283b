"""Which comrade a ghost goes to (the seed's words)."""

from typing import List

import pytest

from clairvoyants import (
    FIND_S,
    LONELY_S,
    ROUND_MOST_S,
    SPREAD_S,
    Clairvoyants,
    parse,
)

ALL = ["10.0.0.10", "10.0.0.9", "10.0.0.2"]
SORTED = ["10.0.0.2", "10.0.0.9", "10.0.0.10"]


def choosing(wanted: str = "", found: List[str] = ALL) -> Clairvoyants:
    """Make a choice that has looked around."""
    choice = Clairvoyants(wanted, lambda: 0.5)
    choice.begin([], [], 0.0)
    choice.find(found, 0.1)
    return choice


def attached(wanted: str = "", at: str = SORTED[0]) -> Clairvoyants:
    choice = choosing(wanted)
    address = choice.next(FIND_S)
    while address != at:
        choice.on_failed(address, "REFUSED", FIND_S)
        address = choice.next(FIND_S + 1)
    choice.on_up(at, 5.0)
    return choice


def dialled(choice: Clairvoyants, count: int, now: float, why: str) -> List[str]:
    """Give the next dials, all of which come to nothing."""
    found = []
    while len(found) < count:
        due = choice.deadline()
        assert due is not None
        now = max(now, due)
        address = choice.next(now)
        if address:
            found.append(address)
            choice.on_failed(address, why, now)
    return found


@pytest.mark.parametrize(
    "wanted, first", [("", 0), ("0", 0), ("1", 1), ("2", 2), ("3", 0), ("7", 1)]
)
def test_the_lowest_or_the_one_at_the_index_modulo_their_number(wanted, first):
    choice = choosing(wanted)
    assert choice.next(0.5) == ""  # it looks around first
    assert choice.next(FIND_S) == SORTED[first]


def test_the_address_that_the_user_gave_at_once():
    choice = Clairvoyants("10.0.0.9", lambda: 0.5)
    choice.begin([], [], 0.0)
    assert choice.next(0.0) == "10.0.0.9"


def test_without_any_the_user_is_told_once_whom_it_tries():
    choice = choosing(found=["10.0.0.2"])
    assert choice.lonely(LONELY_S - 0.1) == []
    (text,) = choice.lonely(LONELY_S)
    assert "found 10.0.0.2 to try" in text
    assert choice.lonely(LONELY_S + 1) == [] and choice.lonely_at is None
    assert attached().lonely(LONELY_S) == []


def test_the_lost_one_once_more_then_the_second_lowest_if_it_was_the_lowest():
    choice = attached()
    choice.on_lost(60.0, True)
    lowest, second, third = SORTED
    assert dialled(choice, 3, 60.0, "REFUSED") == [lowest, second, third]


def test_else_the_lowest_and_on_through_all_for_ever():
    choice = attached(at=SORTED[1])
    choice.on_lost(60.0, True)
    lowest, second, third = SORTED
    assert dialled(choice, 3, 60.0, "SILENT") == [second, lowest, third]
    assert dialled(choice, 300, 70.0, "REFUSED") == 100 * SORTED


def test_one_that_stops_or_was_silent_is_not_dialled_again_first():
    choice = attached()
    choice.on_lost(60.0, may_be_there=False)
    assert dialled(choice, 2, 60.0, "REFUSED") == SORTED[1:]


def test_refused_ones_are_passed_within_the_spread_and_rounds_pause_longer():
    choice = attached()
    choice.on_lost(60.0, True)
    choice.on_failed(choice.next(60.0), "REFUSED", 60.0)
    due = choice.deadline()
    assert due is not None and due <= 60.0 + SPREAD_S
    choice.on_failed(choice.next(61.0), "REFUSED", 61.0)
    assert choice.deadline() == 61.0  # at once
    pauses, now = [], 61.0
    for _ in range(8):
        while True:
            address = choice.next(now)
            if not address:
                break
            choice.on_failed(address, "REFUSED", now)
        due = choice.deadline()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == sorted(pauses) and pauses[-1] <= ROUND_MOST_S


def test_a_busy_comrade_is_tried_again():
    choice = choosing()
    assert dialled(choice, 3, FIND_S, "BUSY") == 3 * [SORTED[0]]


def test_a_ghost_that_was_given_an_address_comes_back_to_it():
    choice = attached("10.0.0.9", at="10.0.0.9")
    choice.learn(ALL)
    choice.on_lost(60.0, True)
    assert choice.next(60.0) == "10.0.0.9"
    choice.on_failed("10.0.0.9", "REFUSED", 60.0)
    assert choice.next(63.0) == "10.0.0.2"
    choice.on_up("10.0.0.2", 63.0)
    assert choice.next(64.0) == ""
    assert choice.next(100.0) == "10.0.0.9"  # from where it is attached
    choice.on_failed("10.0.0.9", "REFUSED", 100.0)
    assert choice.at == "10.0.0.2"


def test_a_link_that_doesnt_hold_is_no_reason_to_dial_at_once():
    choice = attached()
    choice.on_lost(5.1, True)
    due = choice.deadline()
    assert due is not None and due > 5.5


@pytest.mark.parametrize(
    "text, is_right",
    [("2", True), ("10.0.0.7", True), ("-1", False), ("a", False), ("1.2.3", False)],
)
def test_the_argument_is_a_number_or_an_address(text, is_right):
    assert (parse(text)[1] is None) == is_right


def test_what_is_no_address_of_a_host_is_never_dialled():
    choice = choosing()
    wrong = ["", "n", "1.2.3", "1.2.3.256", "0.0.0.0", "224.0.0.1", "1.2.3.\u0664", "*"]
    choice.learn([*wrong, "10.0.0.3"])
    assert list(choice.known) == [*ALL, "10.0.0.3"]
    assert choice.next(FIND_S) == SORTED[0]
