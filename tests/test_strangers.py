"""Strangers at a real comrade: nobody without the cookie gets, or costs, anything."""

import os
import resource
import socket
import time
from typing import Iterator

import figures
import pytest
from cluster import Member, await_component
from helpers import free_port
from strangers import ADDRESS, SECRET, Flood, Peer, Usage, connect, hello, is_closed

import net
import wire
from mesh import SUSPECT_S
from wire import End, Kind

JOIN_S = 2.0  # FAULTS 62
GROWN_MB = 10.0


@pytest.fixture(scope="module")
def node() -> Iterator[Member]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2500:
        pytest.skip("too few descriptors allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    with Member(ADDRESS, free_port([ADDRESS])) as one:
        yield one
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("sources", [1, 250], ids=["of one", "of 250"])
def test_silent_connections_and_drips_keep_no_good_peer_out_62(
    node: Member, sources: int
) -> None:
    Peer(node.port).join().close()
    usage, before = Usage(node), Usage(node).descriptors
    flood = Flood(node.port, sources)
    flood.add(1000)
    worst = most = 0.0
    try:
        for n in range(3):
            peer = Peer(node.port, "127.13.0.%d" % (2 + n))
            peer.join(lambda: flood.add(1, wire.MAGIC[:1]))
            worst = max(worst, peer.joined_s)
            most = max(most, usage.descriptors - before)
            peer.close()
        assert worst < JOIN_S
        assert most <= net.STRANGERS_MAX + 1  # and the good one
        assert usage.grown_mb < GROWN_MB
    finally:
        flood.close()
    case = "1,000 silent connections and drips, %d addresses" % sources
    figures.note(case + ": a good peer is in", "2 s", "%.2f s" % worst, "62")
    figures.note(case + ": memory", "10 MB", "%.1f MB" % usage.grown_mb, "62")


def test_a_flood_of_connections_keeps_no_good_peer_out_and_ends_with_itself(
    node: Member,
) -> None:
    usage = Usage(node)
    flood = Flood(node.port, 250, 200)
    worst = 0.0
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            peer = Peer(node.port).join(lambda: flood.add(20))
            worst = max(worst, peer.joined_s)
            peer.close()
        rate = flood.count / (time.monotonic() - until + 1)
        share = usage.share
    finally:
        flood.close()
    assert worst < JOIN_S and usage.grown_mb < GROWN_MB
    time.sleep(net.HANDSHAKE_S / 10)
    calm = Usage(node)
    time.sleep(0.5)
    assert calm.share < 0.5, "it has not come to rest"
    case = "%d connections a second, 250 addresses" % rate
    figures.note(case + ": a good peer is in", "2 s", "%.2f s" % worst, "62")
    figures.note(case + ": of a core", "1", "%.2f" % share, "62")


def test_junk_and_halves_are_let_go_and_told_nothing(node: Member) -> None:
    start = wire.Handshake(True, SECRET, hello()).take()
    for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 75, b"\xff" * 75, b"SSH-2.0-x\r\n"):
        sock = connect(node.port, data=junk)
        assert is_closed(sock), junk
        sock.close()
    late = [connect(node.port, data=start[:n]) for n in (0, 1, 20, len(start) - 1)]
    late.append(connect(node.port, data=start))  # and no proof
    began = time.monotonic()
    assert all(is_closed(sock) for sock in late)
    assert time.monotonic() - began < net.HANDSHAKE_S + 1
    for sock in late:
        sock.close()


def said(node: Member, *messages: bytes) -> bytes:
    """Give what the comrade answers to these messages, until it closes."""
    with connect(node.port, data=messages[0]) as sock:
        sock.settimeout(5)
        answer = b""
        for message in messages[1:]:
            while len(answer) < wire.HELLO.size:
                answer += sock.recv(wire.HELLO.size - len(answer))
            sock.send(message)
        try:
            while True:
                more = sock.recv(4096)
                if not more:
                    return answer
                answer += more
        except ConnectionError:
            return answer


def test_who_has_not_quite_the_cookie_learns_nothing_and_changes_nothing_61(
    node: Member,
) -> None:
    one_bit = bytes([SECRET[0] ^ 1]) + SECRET[1:]
    for wrong in (b"x", one_bit, SECRET + b"0", SECRET[:-1]):
        peer = Peer(node.port, cookie=wrong)
        peer.until(lambda peer=peer: peer.link.ended)
        assert peer.link.ended is End.WRONG_COOKIE
    # One who has read the fingerprint on the LAN, and has no cookie.
    good = wire.Handshake(True, SECRET, hello()).take()
    for proof in (bytes(32), os.urandom(32), wire.hmac_sha256(one_bit, good)):
        answer = said(node, good, proof)
        assert answer[wire.HELLO.size :] == wire.REFUSED_PROOF
        assert len(answer) == wire.HELLO.size + wire.PROOF_BYTES
    # Its own hello, reflected.
    with connect(node.port, data=good) as sock:
        sock.settimeout(5)
        theirs = sock.recv(wire.HELLO.size)
    assert len(said(node, theirs)) == wire.HELLO.size  # and no proof
    assert list(node.members()) == [ADDRESS]


class Tap:
    """A man in the middle: passes on, remembers, and does what he likes."""

    def __init__(self, port: int, own: str) -> None:
        self.there = socket.create_connection((ADDRESS, port), 5, (own, 0))
        self.shake = wire.Handshake(True, SECRET, hello())
        self.sent = self.shake.take()
        self.there.send(self.sent)
        self._hear(wire.HELLO.size)
        self.proof = self.shake.take()

    def _hear(self, size: int) -> None:
        data = b""
        while len(data) < size:
            data += self.there.recv(size - len(data))
        self.shake.feed(data)

    def finish(self) -> wire.Seal:
        """Pass the true end's proof on; give what the true end seals with."""
        self.there.send(self.proof)
        self._hear(wire.PROOF_BYTES)
        assert self.shake.keys is not None
        return wire.Seal(self.shake.keys[0])


def test_what_was_overheard_is_of_no_use_again_61(node: Member) -> None:
    tap = Tap(node.port, "127.13.0.20")
    tap.finish()
    replayed = said(node, tap.sent, tap.proof)  # another nonce: another proof
    assert replayed[wire.HELLO.size :] == wire.REFUSED_PROOF
    swapped = said(node, tap.sent, tap.proof[16:] + tap.proof[:16])
    assert swapped[wire.HELLO.size :] == wire.REFUSED_PROOF
    assert said(node, tap.proof + tap.sent[32:]) == b""  # reordered: no hello at all
    tap.there.close()


@pytest.mark.parametrize("how", ["inject", "change", "repeat", "drop", "reorder"])
def test_who_relays_a_handshake_can_only_end_the_link_31(
    node: Member, how: str
) -> None:
    tap = Tap(node.port, "127.13.0.21")
    seal = tap.finish()
    task = {"k": "1-" + "ab" * 8, "c": "true", "o": 1, "by": "x", "at": 1.0}
    record = wire.encode(Kind.RECORDS, {"n": 1, "r": [task], "store": False})
    ping = wire.encode(Kind.PING, {"n": 7})
    one, two = seal.seal(Kind.PING, ping), seal.seal(Kind.PING, ping)
    bad = {
        "inject": wire.Seal(os.urandom(32)).seal(Kind.RECORDS, record),
        "change": wire.HEAD.pack(len(record), Kind.RECORDS) + record + one[-16:],
        "repeat": one + one,
        "drop": two,
        "reorder": two + one,
    }[how]
    tap.there.send(bad)
    assert is_closed(tap.there)
    tap.there.close()
    assert node.rows() == []


@pytest.mark.parametrize("length", [1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
def test_no_length_that_is_announced_costs_memory_63(node: Member, length: int) -> None:
    usage = Usage(node)
    peer = Peer(node.port, "127.13.0.22").join()
    peer.link._wire += wire.HEAD.pack(length, Kind.RECORDS)
    peer.until(lambda: peer.link.ended)
    assert usage.grown_mb < GROWN_MB


def test_an_empty_frame_ends_its_link_63(node: Member) -> None:
    peer = Peer(node.port, "127.13.0.23").join()
    peer.say_payload(Kind.RECORDS, b"")
    peer.until(lambda: peer.link.ended)


def test_without_descriptors_peers_stay_and_it_recovers(node: Member) -> None:
    spare = "127.13.0.3"
    port = free_port([spare, "127.13.0.4"])
    limited = ["bash", "-c", 'ulimit -n 90; exec "$@"', "limited"]
    peers = ["127.13.0.4", "127.13.0.5"]  # the second never comes: it is dialled
    with Member(spare, port, peers, prefix=limited) as poor, Member(
        "127.13.0.4", port, [spare]
    ) as other:
        await_component([poor, other])
        control = [int(n) for n in (poor.home / "control").read_text().split()[:1]]
        held = []
        for where in [("127.0.0.1", control[0])] * 100 + [(spare, port)] * 100:
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(where)
        usage = Usage(poor)
        task = other.add("echo again", "worker:is " + spare)
        until = time.monotonic() + SUSPECT_S + 0.3
        while time.monotonic() < until:
            time.sleep(0.25)
            assert sorted(other.ready()) == [spare, "127.13.0.4"], poor.told()
        share = usage.share
        assert 90 - 90 // 4 - 5 < usage.descriptors < 90
        for sock in held:
            sock.close()
        assert other.wait(task) == 0, poor.told()
        assert other.output(task) == b"again\n"
        assert poor.wait(poor.add("true")) == 0
        log = poor.home / "log"
        assert not log.exists() or log.stat().st_size < 20000, poor.told()
    assert share < 0.3
    figures.note("without descriptors: of a core", "0.3", "%.2f" % share)


def test_after_all_that_it_works_and_its_log_is_short(node: Member) -> None:
    task = node.add("echo fine")
    assert node.wait(task) == 0 and node.output(task) == b"fine\n"
    log = (node.home / "log").read_text()
    assert "Traceback" not in log
    assert len(log) < 20000
