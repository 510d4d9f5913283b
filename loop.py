"""The one loop that every role has: what is due is done, then it waits for what comes.

Reason for this file beside comrade.py: comrade, relay and ghost turn in the same way,
so that a reader learns it once.

Rules. One thread. `tick()` does all that is due and gives the time of the next (None:
there is none); then one `select` waits until that time or for a file that is ready,
and calls its function. Other threads and signal handlers only wake it. Nothing polls.
A function that gives True has seen heartbeats alone; if all did, `is_calm` tells the
next `tick` that nothing but those may have made something due.

Invariants. D5: with nothing due it sleeps for ever. An exception in a callback is
logged with its traceback and costs the connection it belongs to (its owner is closed),
one in `tick` costs that turn: a bug of ours must not take the node with it.
"""

import selectors
import signal
import socket
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, Optional, Tuple

from process import clock, traced

RETRY_S = 0.1  # after a bug of ours stopped a turn halfway

OnReady = Callable[[], object]


def earliest(times: Iterable[Optional[float]]) -> Optional[float]:
    """Give the first of some deadlines; None: there is none."""
    return min((t for t in times if t is not None), default=None)


class Loop:
    """A selector with deadlines, signals and a way to wake it."""

    def __init__(
        self, tick: Callable[[], Optional[float]], log: Callable[[str], None]
    ) -> None:
        self.is_over = False
        self.is_calm = False
        self._tick = tick
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._signals: Dict[int, OnReady] = {}
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)
        self.watch(self._in.fileno(), self._on_wake)

    def turn(self, until: Optional[float] = None) -> None:
        """Do what is due, wait for what comes next, at most until then, and take it."""
        try:
            due = self._tick()
            self.is_calm = True
        except Exception:
            self._log(traced())
            due, self.is_calm = clock() + RETRY_S, False
        if self.is_over:
            return
        first = earliest((due, until))
        timeout = None if first is None else max(first - clock(), 0)
        for key, mask in self._selector.select(timeout):
            self._call(key.data, mask)

    def _call(self, pair: Tuple[OnReady, Optional[OnReady]], mask: int) -> None:
        for function, event in zip(pair, (selectors.EVENT_READ, selectors.EVENT_WRITE)):
            if mask & event and function is not None:
                try:
                    self.is_calm &= function() is True
                except Exception:
                    self.is_calm = False
                    self._log(traced())
                    self._close(getattr(function, "__self__", None))

    @staticmethod
    def _close(owner: Any) -> None:
        if getattr(owner, "is_expendable", False):
            owner.close()

    def watch(
        self, fd: int, on_read: OnReady, on_write: Optional[OnReady] = None
    ) -> None:
        """Call functions when a file is ready; watching again replaces them."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_write else 0)
        if fd not in self._selector.get_map():
            self._selector.register(fd, events, (on_read, on_write))
        elif self._selector.get_key(fd).events != events:
            self._selector.modify(fd, events, (on_read, on_write))

    def unwatch(self, fd: int) -> None:
        """Watch a file no longer."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def wake(self) -> None:
        """End the wait (from any thread)."""
        try:
            self._out.send(b"\0")
        except OSError:
            pass  # Full: it is awake already. Closed: it is over.

    def on_signals(self, numbers: Iterable[int], function: OnReady) -> None:
        """Call a function, in the loop, after any of these signals."""
        signal.set_wakeup_fd(self._out.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            self._signals[number] = function
            signal.signal(number, lambda number, frame: None)

    def _on_wake(self) -> None:
        for number in set(self._in.recv(4096)):
            if number in self._signals:
                self._signals[number]()


class InOrder:
    """Does something with each of what it is given, in order.

    What is given meanwhile, by that very doing, comes behind what was there: else an
    older row of a record would be written over a newer one.
    """

    def __init__(self, do: Callable[[Any], None]) -> None:
        self._do = do
        self._left: Deque[Any] = deque()
        self._is_on = False

    def __call__(self, items: Iterable[Any]) -> None:
        """Do it with these. What breaks is out of it; the rest comes with the next."""
        self._left.extend(items)
        if self._is_on:
            return
        self._is_on = True
        try:
            while self._left:
                self._do(self._left.popleft())
        finally:
            self._is_on = False
