"""Many ghosts in one process: real cores, real frames, no tasks.

    with Phantoms(200, addresses, port) as many:
        many.until(lambda: many.attached() == 200, 20)

Each phantom is a ghostnode.GhostNode with a link of its own (net.Link) over loopback,
so a comrade and its relay can't tell it from a ghost; but what it is told to start has
ended at once, and its disk is memory: the machine's two cores go to what is measured.
"""

import os
import random
import selectors
import time
from typing import Any, Callable, Dict, List, Optional

from helpers import COOKIE

import effects as core
import net
import wire
from clairvoyants import Clairvoyants
from ghostnode import GhostNode
from process import clock
from wire import Kind

MEMORY, DISK = 1 << 30, 1 << 34
TICK_S = 0.05  # the loop looks at all deadlines so often


class Phantom:
    """One ghost."""

    def __init__(self, many: "Phantoms", number: int) -> None:
        self.many = many
        writer = os.urandom(8).hex()
        me = core.Identity(writer, writer, "phantom%d" % number, "127.0.1.1")
        luck = random.Random(number).random
        choice = Clairvoyants("", luck)
        self.node = GhostNode(me, 1, MEMORY, ["phantom"], choice)
        self.link: Optional[net.Link] = None
        self.peer = ""
        self.dials = 0
        self.later: List[core.Message] = []
        self.due: Optional[float] = 0.0

    def begin(self, addresses: List[str]) -> None:
        self.node.begin(addresses, [], clock())
        self.step(core.Found(addresses))

    def step(self, message: core.Message) -> None:
        self.perform(self.node.step(message, clock()))
        self.due = 0.0

    def tick(self, now: float) -> None:
        while self.later:
            self.step(self.later.pop(0))
        if self.due is not None and now >= self.due:
            made, self.due = self.node.tick(now)
            self.perform(made)
        if self.link is not None:
            self.link.tick(now)
            self.look()

    def perform(self, made: List[Any]) -> None:
        for effect in made:
            if isinstance(effect, core.Check):
                self.later.append(core.Facts(frozenset(), None, DISK))
            elif isinstance(effect, core.Dial):
                self.dial(effect.address)
            elif isinstance(effect, core.Send):
                self.send(effect)
            elif isinstance(effect, core.Start):
                self.many.started.append(effect.run)
                self.later.append(core.RunStarted(effect.run, 1.0))
                ended = (effect.run, 0, "", 1.0, 2.0, 1.0, [0, ""], [0, ""])
                self.later.append(core.RunEnded(*ended))
            elif isinstance(effect, core.Persist):
                self.later.append(core.Written(effect.seq, ""))

    def dial(self, address: str) -> None:
        hello = wire.Hello(self.node.me.writer, self.node.me.writer, wire.Role.GHOST)
        shake = wire.Handshake(True, self.many.cookie, hello)
        if self.link is not None:
            self.many.unwatch(self.link)
            self.link.close()
        self.link = net.dial(address, self.many.port, shake, clock())
        self.peer = ""
        self.watch()
        self.look()

    def send(self, effect: core.Send) -> None:
        if self.link is None or self.link.ended is not None or not self.peer:
            return
        if effect.kind == "BYE":
            self.link.bye("closing")
        else:
            self.link.send(Kind[effect.kind], effect.fields)
        self.watch()

    def watch(self) -> None:
        if self.link is not None and self.link.ended is None:
            self.many.watch(self.link, self)

    def on_ready(self, mask: int) -> None:
        link = self.link
        assert link is not None
        was_stranger = link.is_stranger
        frames = link.on_readable(clock()) if mask & selectors.EVENT_READ else []
        if link.ended is None and mask & selectors.EVENT_WRITE:
            link.on_writable(clock())
        if was_stranger and link.peer is not None:
            self.dials += 1
            self.peer = "k%d" % self.dials
            self.step(core.LinkUp(self.peer, link.peer.writer))
        for frame in frames:
            if frame.kind is not Kind.BYE:
                self.step(core.Frame(self.peer, frame.kind.name, frame.fields))
        self.watch()
        self.look()

    def look(self) -> None:
        """See whether the link has ended."""
        link = self.link
        if link is None or link.ended is None:
            return
        self.many.unwatch(link)
        link.close()
        self.link = None
        if self.peer:
            peer, self.peer = self.peer, ""
            self.later.append(core.LinkLost(peer, net.LOST.get(link.ended, "broken")))
        else:
            self.later.append(core.DialEnded(link.address, link.ended.name))


class Phantoms:
    """All of them, in one loop."""

    def __init__(self, count: int, addresses: List[str], port: int) -> None:
        self.port = port
        self.cookie = COOKIE.strip().encode("ascii")
        self.started: List[str] = []
        self._selector = selectors.DefaultSelector()
        self._fds: Dict[net.Link, int] = {}
        self.all = [Phantom(self, n) for n in range(count)]
        for phantom in self.all:
            phantom.begin(addresses)

    def attached(self) -> int:
        """Count those whose clairvoyant has answered."""
        return sum(bool(phantom.node.clairvoyant) for phantom in self.all)

    def at(self, address: str) -> int:
        """Count those that are attached there."""
        nodes = [phantom.node for phantom in self.all]
        return sum(bool(n.clairvoyant) and n.choice.at == address for n in nodes)

    def watch(self, link: net.Link, phantom: Phantom) -> None:
        events = selectors.EVENT_READ if link.want_read else 0
        events |= selectors.EVENT_WRITE if link.want_write else 0
        if link not in self._fds:
            self._fds[link] = link.fileno()
            self._selector.register(link.fileno(), events, phantom)
        elif self._selector.get_key(self._fds[link]).events != events:
            self._selector.modify(self._fds[link], events, phantom)

    def unwatch(self, link: net.Link) -> None:
        fd = self._fds.pop(link, None)
        if fd is not None:
            self._selector.unregister(fd)

    def turn(self) -> None:
        now = clock()
        for phantom in self.all:
            phantom.tick(now)
        is_busy = any(phantom.later for phantom in self.all)
        for key, mask in self._selector.select(0 if is_busy else TICK_S):
            key.data.on_ready(mask)

    def until(self, holds: Callable[[], bool], seconds: float) -> float:
        """Go on until something holds; give the seconds that it took."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < seconds, "not within %g s" % seconds
            self.turn()
        return time.monotonic() - began

    def go_on(self, seconds: float) -> None:
        """Go on for some time."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self.turn()

    def __enter__(self) -> "Phantoms":
        return self

    def __exit__(self, *_: Any) -> None:
        for phantom in self.all:
            if phantom.link is not None:
                phantom.link.close()
        self._selector.close()
