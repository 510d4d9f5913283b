"""Who connects to a real comrade: peers that speak the protocol, and those that don't.

All of it is on loopback, from addresses in 127.13.0.0/16.
"""

import os
import select
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from helpers import COOKIE, Node

import net
import wire
from wire import Hello, Kind, Role

SECRET = COOKIE.strip().encode("ascii")
ADDRESS = "127.13.0.1"  # of the comrade
PATIENCE_S = 20.0


def hello(role: Role = Role.COMRADE) -> Hello:
    """Make up who one is: another each time."""
    return Hello(os.urandom(8).hex(), os.urandom(8).hex(), role)


class Peer:
    """One end of a link, driven by `turn`; it may say whatever it likes."""

    def __init__(
        self, port: int, own: str = "127.13.0.2", cookie: bytes = SECRET, **more: Any
    ) -> None:
        self.port, self.own, self.cookie = port, own, cookie
        self.me: Hello = more.get("me") or hello()
        self.heard: List[wire.Frame] = []
        self.began = time.monotonic()
        self.dials = 0
        self.joined_s = 0.0
        self.link = self._dial()

    def _dial(self) -> net.Link:
        self.dials += 1
        shake = wire.Handshake(True, self.cookie, self.me)
        return net.dial(ADDRESS, self.port, shake, time.monotonic(), self.own)

    def turn(self, wait_s: float = 0.01) -> None:
        """Read and write what can be."""
        link, now = self.link, time.monotonic()
        if link.ended is None:
            poll = select.poll()
            events = select.POLLIN * link.want_read | select.POLLOUT * link.want_write
            poll.register(link.fileno(), events)
            found = dict(poll.poll(wait_s * 1000)).get(link.fileno(), 0)
            if found & (select.POLLIN | select.POLLHUP):
                self.heard += link.on_readable(now)
            if link.want_write:
                link.on_writable(now)
            link.tick(now)

    def until(self, is_so: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        """Turn until it is so; give what it gave."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, (self.link.ended, self.link.detail)
            self.turn()
        return is_so()

    def join(self, also: Callable[[], Any] = lambda: None) -> "Peer":
        """Become authenticated, dialling again while it is busy, as a comrade does."""
        while self.link.peer is None:
            self.turn(0.002)
            also()
            assert time.monotonic() < self.began + PATIENCE_S, self.link.ended
            if self.link.ended is not None:
                assert self.link.ended is not wire.End.WRONG_COOKIE
                time.sleep(net.REDIAL_MIN_S)
                self.link = self._dial()
        self.joined_s = time.monotonic() - self.began
        return self

    def say(self, kind: Kind, fields: Dict[str, Any], body: bytes = b"") -> None:
        """Send a frame, whatever is in it, as long as it is JSON."""
        self.link.send(kind, fields, body)
        self.turn(0)

    def say_payload(self, kind: Kind, payload: bytes) -> None:
        """Send an authentic frame of these bytes."""
        self.link._wire += self.link._seal.seal(kind, payload)
        self.turn(0)

    def beat(self) -> None:
        """Stay alive: a heartbeat, as a comrade sends it each second."""
        self.say(Kind.HEARTBEAT, {"n": 1, "heard": 1, "root": "0"})

    def close(self) -> None:
        self.link.close()


def connect(port: int, own: str = "", data: bytes = b"") -> socket.socket:
    """Connect without waiting; send some bytes once that is possible."""
    sock = socket.socket()
    sock.setblocking(False)
    if own:
        sock.bind((own, 0))
    sock.connect_ex((ADDRESS, port))
    if data:
        select.select([], [sock], [], 2)
        sock.send(data)
    return sock


def is_closed(sock: socket.socket, seconds: float = 5.0) -> bool:
    """Say whether the other end closes within that time; what it says is dropped."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([sock], [], [], 0.1)[0]:
            try:
                if not sock.recv(4096):
                    return True
            except OSError:
                return True
    return False


class Usage:
    """What a comrade has used since this was made."""

    def __init__(self, node: Node) -> None:
        self.pid = node.pid
        self._at, self._cpu, self._memory = time.monotonic(), self.cpu_s, self.memory

    @property
    def cpu_s(self) -> float:
        fields = Path("/proc/%d/stat" % self.pid).read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> int:
        rows = Path("/proc/%d/status" % self.pid).read_text().split("\n")
        return (
            next(int(row.split()[1]) for row in rows if row.startswith("VmRSS")) << 10
        )

    @property
    def descriptors(self) -> int:
        return len(os.listdir("/proc/%d/fd" % self.pid))

    @property
    def grown_mb(self) -> float:
        return (self.memory - self._memory) / 1e6

    @property
    def share(self) -> float:
        """The part of a core that it has used."""
        return (self.cpu_s - self._cpu) / (time.monotonic() - self._at)


class Flood:
    """Connections that are never more than so many, from many addresses."""

    def __init__(self, port: int, sources: int, most: int = 1000) -> None:
        self.port, self.most = port, most
        self.sources = [
            "127.13.%d.%d" % (1 + n // 250, 1 + n % 250) for n in range(sources)
        ]
        self.socks: List[socket.socket] = []
        self.count = 0

    def add(self, count: int, data: Optional[bytes] = None) -> None:
        """Connect so many more; the oldest are dropped."""
        for _ in range(count):
            own = self.sources[self.count % len(self.sources)]
            self.socks.append(connect(self.port, own))
            self.count += 1
        for sock in self.socks[: -self.most]:
            sock.close()
        del self.socks[: -self.most]
        if data:
            for sock in self.socks:
                try:
                    sock.send(data)
                except OSError:
                    pass

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        self.socks.clear()
