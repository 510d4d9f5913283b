"""Comrades' links on 127.0.0.x in one process: real sockets, a false clock.

The clock stands still while anything can be read or written, then jumps to the next
deadline; a ping a second stands for heartbeats. The `core` of each comrade is a list of
messages, and sees to it that LinkUp and LinkLost alternate.
"""

import random
import selectors
import socket
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import effects
import jar
import net
import wire
from links import Links, Seams

COOKIE = b"0123456789abcdef0123456789abcdef"
REAL_S = 20.0  # for a test to come to its end
STEP_S = 0.5  # the clock's largest jump


def free_port() -> int:
    """Find a port that is free on 127.0.0.x, and that no outgoing connection takes."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as sock:
            try:
                sock.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port


class Peer:
    """A comrade without a core."""

    def __init__(
        self, lan: "Lan", last: int, node: str, writer: str, peers: Tuple[int, ...]
    ) -> None:
        self.lan = lan
        self.heard: List[effects.Message] = []
        self.up: Dict[str, str] = {}
        self.said: List[str] = []
        self.bulk: List[Tuple[str, wire.Frame]] = []
        self.on_bulk: Callable[[str, wire.Frame], None] = lambda p, f: self.bulk.append(
            (p, f)
        )
        self.clones = 0
        self.ghosts: List[net.Link] = []
        self.address = "127.0.0.%d" % last
        me = effects.Identity(node * 16, writer * 16, "n" + node, self.address)
        self.id = me.node_id
        self.due: Optional[float] = None
        self.is_mute = False
        self.fds: Dict[int, Any] = {}
        seams = Seams(
            self.watch,
            self.unwatch,
            self.step,
            lambda: lan.now,
            self.said.append,
            lambda peer, frame: self.on_bulk(peer, frame),
            self._on_clone,
            self.ghosts.append,
        )
        named = ["127.0.0.%d" % peer for peer in peers]
        self.links: Links
        self.saved: List[Any] = []
        cookies = jar.Jar(
            *(lan.cookies.get(last, COOKIE), ()),
            jar.Seams(
                *(lambda: lan.now, lambda: list(self.links.links)),
                lambda peer, kind, fields: self.links.send(peer, kind, fields),
                *(self.saved.append, self.said.append),
            ),
        )
        self.links = Links(me, cookies, lan.port, named, seams)

    def _on_clone(self) -> None:
        self.clones += 1

    def watch(self, fd: int, on_read: Any, on_write: Any = None) -> None:
        """As Comrade.watch does it; a number that is another's already is an error."""
        assert fd >= 0
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_write else 0)
        if fd in self.lan.selector.get_map():
            key = self.lan.selector.get_key(fd)
            assert key.data[0] is self, "another's descriptor"
            if key.events != events:
                self.lan.selector.modify(fd, events, (self, on_read, on_write))
        else:
            self.lan.selector.register(fd, events, (self, on_read, on_write))

    def unwatch(self, fd: int) -> None:
        assert fd >= 0
        if fd in self.lan.selector.get_map():
            assert self.lan.selector.get_key(fd).data[0] is self
            self.lan.selector.unregister(fd)

    def step(self, message: effects.Message) -> None:
        self.heard.append(message)
        if isinstance(message, effects.LinkUp):
            assert message.peer not in self.up
            self.up[message.peer] = message.writer
        elif isinstance(message, effects.LinkLost):
            del self.up[message.peer]

    def of(self, kind: Any) -> List[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    def die(self) -> None:
        """As SIGKILL: the kernel closes all sockets, nobody says anything."""
        self.links.stop()
        self.lan.peers.remove(self)


class Lan:
    """Comrades, and what moves them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.port = free_port()
        self.selector = selectors.DefaultSelector()
        self.peers: List[Peer] = []
        self.cookies: Dict[int, bytes] = {}
        self.on_turn: Callable[[], Optional[float]] = lambda: None
        self._beat = self.now

    def peer(
        self, last: int, node: str, writer: str = "", peers: Tuple[int, ...] = ()
    ) -> Peer:
        """Start a comrade at 127.0.0.`last`."""
        self.peers.append(Peer(self, last, node, writer or node, peers))
        return self.peers[-1]

    def turn(self) -> None:
        """One round of the loop, for all of them."""
        times = [self.on_turn(), self._beat + 1.0]
        for peer in self.peers:
            if not peer.is_mute:
                times.append(peer.links.tick(self.now))
        ready = self.selector.select(0.001)
        for key, mask in ready:
            owner, *functions = key.data
            for function, event in zip(functions, (1, 2)):
                if mask & event and function and not owner.is_mute:
                    function()
        if not any(not key.data[0].is_mute for key, _ in ready):
            due = min(t for t in times if t is not None)
            self.now = min(max(due, self.now), self.now + STEP_S)
            if self.now >= self._beat + 1.0:
                self._beat = self.now
                self.beat()

    def beat(self) -> None:
        """Stand for heartbeats."""
        for peer in self.peers:
            if not peer.is_mute:
                for other in list(peer.links.links):
                    peer.links.send(other, "PING", {"n": 0})

    def until(self, done: Callable[[], Any]) -> None:
        """Go on until that is so."""
        deadline = time.monotonic() + REAL_S
        while not done():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()

    def pass_by(self, seconds: float) -> None:
        """Let so much of the false time pass."""
        end = self.now + seconds
        self.until(lambda: self.now >= end)

    def close(self) -> None:
        for peer in list(self.peers):
            peer.die()
        self.selector.close()
