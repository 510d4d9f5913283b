"""What a role's loop does besides waiting: order, and what it tells."""

import os
from typing import Callable, Iterator, List

import pytest

from loop import InOrder, Loop
from process import clock

OnReady = Callable[[], object]


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


# --- whether anything but heartbeats came -----------------------------------------


class Calls:
    """A loop with two files that are ready for ever, and what is called for each."""

    def __init__(self) -> None:
        self.does: List[OnReady] = []
        self.is_broken = False
        self.loop = Loop(self.tick, lambda line: None)
        self.files = [*os.pipe(), *os.pipe()]
        for at in range(2):
            os.write(self.files[2 * at + 1], b"x")
            self.loop.watch(self.files[2 * at], lambda at=at: self.does[at]())  # type: ignore[misc]

    def tick(self) -> float:
        assert not self.is_broken
        return clock()

    def is_calm_after(self, *does: OnReady) -> bool:
        self.does = list(does)
        self.loop.turn()
        return self.loop.is_calm


@pytest.fixture
def calls() -> Iterator[Calls]:
    made = Calls()
    yield made
    for fd in made.files:
        os.close(fd)


def beats() -> bool:
    return True


def fails() -> bool:
    raise ValueError


def test_a_turn_is_calm_if_all_that_was_called_says_so(calls: Calls) -> None:
    assert not calls.loop.is_calm  # nobody has looked yet
    assert calls.is_calm_after(beats, beats)


@pytest.mark.parametrize("other", [lambda: None, lambda: False, lambda: 1, fails])
@pytest.mark.parametrize("is_first", [True, False])
def test_it_is_not_if_one_does_not(
    calls: Calls, other: OnReady, is_first: bool
) -> None:
    assert not calls.is_calm_after(*((other, beats) if is_first else (beats, other)))
    assert calls.is_calm_after(beats, beats)


def test_what_woke_it_makes_a_turn_that_is_not_calm(calls: Calls) -> None:
    calls.loop.wake()
    assert not calls.is_calm_after(beats, beats)


def test_a_turn_that_broke_leaves_none_that_is_calm(calls: Calls) -> None:
    calls.is_broken = True
    assert not calls.is_calm_after(beats, beats)
