"""A comrade's turn: whom it goes through, and whom not; no socket, no disk."""

from typing import Any, List, Optional, Tuple

import pytest

import comrade
import effects as core
from loop import InOrder


class Decider:
    """A node that notes when it is asked, and gives a deadline."""

    def __init__(self) -> None:
        self.asked: List[float] = []
        self.due: Optional[float] = None
        self.took: List[Any] = []

    def take(self, messages: List[Any], now: float) -> None:
        self.took += messages
        messages.clear()

    def tick(self, now: float) -> Tuple[List[Any], Optional[float]]:
        self.asked.append(now)
        return [], self.due


def test_the_node_is_asked_once_it_was_told_something_or_is_due() -> None:
    one = comrade.Comrade.__new__(comrade.Comrade)
    node: Any = Decider()
    one.node, one._gathered, one.perform = node, [], InOrder(lambda effect: None)
    one._has_stepped, one._node_due = False, 0.0
    one._tick_node(1.0)
    assert node.asked == [1.0]
    one._tick_node(2.0)  # for a client alone
    assert node.asked == [1.0]
    one._has_stepped, node.due = True, 5.0
    one._tick_node(3.0)
    one._tick_node(4.9)
    assert node.asked == [1.0, 3.0] and one._node_due == 5.0
    node.due = None
    one._tick_node(5.0)
    one._tick_node(9.0)
    assert node.asked == [1.0, 3.0, 5.0]
    message = core.RunStarted("1.1.aa.1", 1.0)
    one.step(message)
    one._tick_node(9.5)
    assert node.took == [message] and node.asked[-1] == 9.5


def test_a_node_that_broke_is_asked_again() -> None:
    one = comrade.Comrade.__new__(comrade.Comrade)
    node: Any = Decider()
    one.node, one._gathered, one.perform = node, [], InOrder(lambda effect: None)
    one._has_stepped, one._node_due = True, None
    node.tick = lambda now: 1 / 0
    with pytest.raises(ZeroDivisionError):
        one._tick_node(1.0)
    node.tick = lambda now: Decider.tick(node, now)
    one._tick_node(1.1)
    assert node.asked == [1.1]
