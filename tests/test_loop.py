"""What a role's loop does besides waiting: what it is given, in order."""

from typing import List

import pytest

from loop import InOrder


def test_what_is_given_on_the_way_comes_behind_what_was_there() -> None:
    done: List[int] = []

    def do(number: int) -> None:
        if number < 10:
            in_order([10 * number, 10 * number + 1])
        done.append(number)

    in_order = InOrder(do)
    in_order([1, 2])
    assert done == [1, 2, 10, 11, 20, 21]
    in_order([])
    assert len(done) == 6


def test_what_breaks_is_left_out_and_the_rest_comes_with_the_next() -> None:
    done: List[int] = []

    def do(number: int) -> None:
        if number == 2:
            raise ValueError
        done.append(number)

    in_order = InOrder(do)
    with pytest.raises(ValueError):
        in_order([1, 2, 3])
    in_order([4])
    assert done == [1, 3, 4]
