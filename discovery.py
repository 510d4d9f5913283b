"""How nodes find each other on a LAN: beacons, a question at the start, a sweep.

Reason for this file beside net.py: it is the one that speaks to addresses which nobody
has named; with discovery off nothing of it runs but `sweep`'s arithmetic, which sends
nothing.

Rules: gives hints to dial, never liveness: who is there proves itself over TCP. Reads
no clock but in `listen_for_cluster`, which alone blocks.

How it works: a comrade says HERE, as a directed broadcast on each LAN interface. Who
has no queue (a ghost, a start without a cookie) asks WHO, and comrades answer that one
datagram with one no longer than it. A beacon is 37 bytes: magic, version, what it
says, cluster fingerprint, node id, port.

A cluster that has a new cookie is known by both fingerprints while the old one counts
(jar.py): it says the new one, hears both, and answers by the one that it is asked by.

Invariants (D14): datagrams have one size and are read in sips; a flood, or spoofed
senders, cost a bounded number of dials, none to another port than the cluster's; no
answer is longer, or more often than once a second, so nothing is amplified.
"""

import os
import select
import socket
import struct
import sys
import time
from enum import IntEnum
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from wire import FINGERPRINT_BYTES, MAGIC, NO_CLUSTER, VERSION

BEACON_LONELY_S, BEACON_SETTLED_S = 2.0, 60.0  # DESIGN 10
BEACONS_PER_ROUND = 32  # read at a time, then none for
BEACON_REST_S = 0.1  # so a flood costs 320 datagrams a second, whatever its rate
HINT_REPEAT_S = 10.0  # one dial to an address
HINTS_MAX = 32  # addresses remembered for that; more are ignored meanwhile
ANSWER_INTERVAL_S = 1.0  # to anyone: no amplifier

BEACON = struct.Struct(f"!8sHB{FINGERPRINT_BYTES}s8sH")


class Interface(NamedTuple):
    """A LAN interface: its IPv4 address and its directed broadcast address."""

    address: str
    broadcast: str


class Hint(NamedTuple):
    """An address worth a dial or, if not `ours`, where another cluster is."""

    address: str
    port: int
    ours: bool


class Say(IntEnum):
    """What a datagram says."""

    HERE = 1
    WHO = 2
    ANSWER = 3


def lan_interfaces() -> List[Interface]:
    """List those that are up and can broadcast, without loopback; [] if unknown."""
    if sys.platform != "linux":
        return []
    from fcntl import ioctl

    found: List[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s24x", os.fsencode(name))
            try:
                flags = ioctl(sock, 0x8913, request)[16:18]  # SIOCGIFFLAGS
                address = ioctl(sock, 0x8915, request)[20:24]  # SIOCGIFADDR
                mask = ioctl(sock, 0x891B, request)[20:24]  # SIOCGIFNETMASK
            except OSError:
                continue  # it has no IPv4 address
            loopback_broadcast_up = struct.unpack("H", flags)[0] & 0b1011
            hosts = ~int.from_bytes(mask, "big") & 0xFFFFFFFF
            if loopback_broadcast_up == 0b0011 and hosts > 1:
                # Worked out: SIOCGIFBRDADDR is 0.0.0.0 where nobody has set it.
                everyone = (int.from_bytes(address, "big") | hosts).to_bytes(4, "big")
                pair = socket.inet_ntoa(address), socket.inet_ntoa(everyone)
                found.append(Interface(*pair))
    return found


class Discovery:
    """Says on the LAN that a comrade is here, or asks who is; gives hints to dial.

    With discovery off make none: nothing else here sends to whom it wasn't told. A
    comrade hears on the cluster's port; all leaves from an ephemeral one, where the
    answers to a question come in.
    """

    def __init__(
        self,
        port: int,
        node: str,
        clusters: Callable[[], Sequence[bytes]],
        is_comrade: bool = True,
        interfaces: Callable[[], List[Interface]] = lan_interfaces,
    ) -> None:
        """`clusters`: the fingerprints of our cookies, the newest first."""
        self._port, self._node, self._clusters = port, bytes.fromhex(node), clusters
        self._is_comrade, self._interfaces = is_comrade, interfaces
        self._own: List[str] = []
        self._said = self._answered = self._rests_until = float("-inf")
        self._hinted: Dict[str, float] = {}  # address -> when
        self._out = self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if is_comrade:
            self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._in.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._in.bind(("", port if is_comrade else 0))
        except OSError:
            self.close()
            raise
        self._out.setblocking(False)
        self._in.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return self._in.fileno()

    def close(self) -> None:
        """Send and hear nothing any more."""
        self._out.close()
        self._in.close()

    def want_read(self, now: float) -> bool:
        """Whether to watch for reading: not for a moment after many datagrams."""
        return now >= self._rests_until

    def tick(self, now: float, lonely: bool) -> float:
        """Say it if it is time; return when it will be (or reading goes on)."""
        interval = BEACON_LONELY_S if lonely else BEACON_SETTLED_S
        if now >= self._said + interval:
            self._said = now
            self.say()
        due = self._said + interval
        return due if self.want_read(now) else min(due, self._rests_until)

    def say(self) -> None:
        """Broadcast at once that we are here, or who is."""
        try:
            interfaces = self._interfaces()
        except OSError:
            return  # no descriptor is free; the next beacon comes
        self._own = [interface.address for interface in interfaces]
        say = Say.HERE if self._is_comrade else Say.WHO
        cluster = self._clusters()[0]
        for interface in interfaces:
            self._send(say, cluster, (interface.broadcast, self._port))

    def _send(self, say: Say, cluster: bytes, target: Tuple[str, int]) -> None:
        message = (MAGIC, VERSION, say, cluster, self._node, self._port)
        try:
            self._out.sendto(BEACON.pack(*message), target)
        except OSError:
            pass  # that network is down just now; the next beacon comes

    def on_readable(self, now: float) -> List[Hint]:
        """Read some datagrams; return what is new, answer who asks."""
        hints: List[Hint] = []
        for _ in range(BEACONS_PER_ROUND):
            try:
                datagram, sender = self._in.recvfrom(BEACON.size + 1)
            except BlockingIOError:
                return hints
            except OSError:
                continue  # an ICMP error for what was sent before
            hints.extend(self._on_datagram(datagram, sender, now))
        self._rests_until = now + BEACON_REST_S
        return hints

    def _on_datagram(
        self, datagram: bytes, sender: Tuple[str, int], now: float
    ) -> Iterator[Hint]:
        if len(datagram) != BEACON.size:
            return
        magic, version, say, cluster, node, port = BEACON.unpack(datagram)
        # One port for a cluster: so nobody can aim our dials at other services.
        if (magic, port) != (MAGIC, self._port):
            return
        known = self._clusters()
        if version != VERSION and cluster not in known:
            return  # else a dial lets both ends tell their users (wire.py)
        ours = cluster in known or known[0] == NO_CLUSTER
        if say == (Say.HERE if self._is_comrade else Say.ANSWER):
            is_own = node == self._node and sender[0] in self._own
            if not is_own and self._is_new(sender[0], now):
                yield Hint(sender[0], port, ours)
        elif say == Say.WHO and self._is_comrade and (ours or cluster == NO_CLUSTER):
            if now >= self._answered + ANSWER_INTERVAL_S:
                self._answered = now
                self._send(Say.ANSWER, cluster if ours else known[0], sender)

    def _is_new(self, address: str, now: float) -> bool:
        fresh = {a: t for a, t in self._hinted.items() if now < t + HINT_REPEAT_S}
        self._hinted = fresh
        if address in fresh or len(fresh) >= HINTS_MAX:
            return False
        fresh[address] = now
        return True


def listen_for_cluster(
    port: int,
    seconds: float,
    interfaces: Callable[[], List[Interface]] = lan_interfaces,
) -> List[str]:
    """Ask twice who is here, whatever the cookie; return addresses. It blocks."""
    asker = Discovery(port, "00" * 8, lambda: [NO_CLUSTER], False, interfaces)
    found: List[str] = []
    start = time.monotonic()
    try:
        for deadline in (start + seconds / 2, start + seconds):
            asker.say()
            while time.monotonic() < deadline:
                select.select([asker], [], [], max(0.0, deadline - time.monotonic()))
                found += [hint.address for hint in asker.on_readable(time.monotonic())]
    finally:
        asker.close()
    return sorted(found, key=socket.inet_aton)


def sweep(own: str) -> Iterator[str]:
    """Yield the others of the own /24, nearest first; none if it is no private LAN."""
    first, second, _, last = socket.inet_aton(own)
    private = (first, second) in ((192, 168), (169, 254)) or first == 10
    if private or (first == 172 and 16 <= second < 32):
        stem = own.rpartition(".")[0]
        for distance in range(1, 254):
            for host in (last - distance, last + distance):
                if 0 < host < 255:
                    yield f"{stem}.{host}"
