"""Links and the listener: sockets on 127.0.0.x, one poll, a false clock."""

import errno
import os
import resource
import select
import socket
import time
from typing import Any, Callable, Iterator, List, Tuple

import pytest

import net
from net import Link, Listener
from wire import End, Frame, Handshake, Hello, Kind, Role

COOKIE = b"0123456789abcdef0123456789abcdef"
ALICE = Hello("00000000000000aa", "aaaaaaaaaaaaaaaa", Role.COMRADE)
BOB = Hello("00000000000000bb", "bbbbbbbbbbbbbbbb", Role.COMRADE)
GHOST = Hello("00000000000000cc", "cccccccccccccccc", Role.GHOST)


class Net:
    """A listener on 127.0.0.1 and links to it, driven by one poll; `now` is a fake."""

    def __init__(self, roles: Tuple[Role, ...] = (Role.COMRADE,)) -> None:
        self.now = 1000.0
        self.listener = Listener(
            "127.0.0.1", 0, lambda: Handshake(False, COOKIE, BOB, roles)
        )
        self.served: List[Link] = []
        self.dialled: List[Link] = []
        self.heard: List[Tuple[Link, Frame]] = []

    def dial(self, me: Hello = ALICE, cookie: bytes = COOKIE, own: str = "") -> Link:
        shake = Handshake(True, cookie, me)
        link = net.dial("127.0.0.1", self.listener.port, shake, self.now, own)
        self.dialled.append(link)
        return link

    def links(self) -> List[Link]:
        return [link for link in self.served + self.dialled if link.ended is None]

    def turn(self, wait_s: float = 0.01) -> None:
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        for link in self.links():
            events = select.POLLIN * link.want_read | select.POLLOUT * link.want_write
            poll.register(link.fileno(), events)
        ready = dict(poll.poll(wait_s * 1000))
        for link in self.links():
            if ready.get(link.fileno(), 0) & (select.POLLIN | select.POLLHUP):
                self.heard += [(link, frame) for frame in link.on_readable(self.now)]
        for link in self.links():
            if link.want_write:
                link.on_writable(self.now)
        if self.listener.fileno() in ready:
            self.served += self.listener.on_readable(self.now)

    def until(self, done: Callable[[], Any], real_s: float = 5) -> None:
        deadline = time.monotonic() + real_s
        while not done():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()

    def joined(self, me: Hello = ALICE) -> Tuple[Link, Link]:
        link = self.dial(me)
        self.until(lambda: link.peer and self.served and self.served[-1].peer)
        return link, self.served[-1]

    def close(self) -> None:
        self.listener.close()
        for link in self.served + self.dialled:
            link.close()


@pytest.fixture
def lan() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


def silent(port: int, own: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket()
    sock.bind((own, 0))
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1000) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_links_authenticate_and_carry_frames_both_ways(lan: Net) -> None:
    client, server = lan.joined()
    assert client.peer == BOB and server.peer == ALICE and not server.is_stranger
    client.send(Kind.PING, {"n": 1})
    server.send(Kind.FILE_PIECE, {"offset": 0}, b"x" * 50000)
    lan.until(lambda: len(lan.heard) == 2)
    assert (server, Frame(Kind.PING, {"n": 1})) in lan.heard
    assert (client, Frame(Kind.FILE_PIECE, {"offset": 0}, b"x" * 50000)) in lan.heard
    assert client.sent_seq == server.heard_seq == 1
    assert not client.want_write and client.want_read


def test_frames_may_follow_the_last_proof_at_once(lan: Net) -> None:
    client = lan.dial()
    lan.until(lambda: lan.served and client.shake.received)
    server = lan.served[0]
    deadline = time.monotonic() + 2
    while server.peer is None and time.monotonic() < deadline:
        server.on_readable(lan.now)
    server.send(Kind.PING, {"n": 1})
    server.on_writable(lan.now)  # waits at the client together with the proof
    lan.until(lambda: lan.heard)
    assert lan.heard == [(client, Frame(Kind.PING, {"n": 1}))]


def test_a_wrong_cookie_and_a_dead_host_are_told_apart_in_words(lan: Net) -> None:
    wrong = lan.dial(cookie=b"wrong")
    lan.until(lambda: wrong.ended and lan.served[-1].ended)
    assert wrong.ended is lan.served[-1].ended is End.WRONG_COOKIE
    assert "cookie" in wrong.ended.value
    port = lan.listener.port
    lan.listener.close()
    dead = net.dial("127.0.0.1", port, Handshake(True, COOKIE, ALICE), 0.0)
    deadline = time.monotonic() + 2
    while dead.ended is None and time.monotonic() < deadline:
        dead.on_writable(0.0)
    assert dead.ended is End.REFUSED and dead.fileno() == -1
    lan.listener = Listener("127.0.0.1", 0, lambda: Handshake(False, COOKIE, BOB))


def test_a_flood_from_hundreds_of_addresses_keeps_no_known_peer_out() -> None:
    strangers = net.Strangers(lambda address: address == "known")
    links = []
    for n in range(2 * net.STRANGERS_MAX):
        for address in ["known"] * (n == 10) + ["10.0.%d.%d" % divmod(n, 200)]:
            one, other = socket.socketpair()
            other.close()
            links.append(net.Link(one, address, Handshake(False, COOKIE, BOB), 0.0))
            strangers.admit(links[-1])
    left = [link for link in links if link.ended is None]
    assert len(left) == net.STRANGERS_MAX
    assert left[0].address == "known"  # the others that are left are the newest
    for link in links:
        link.close()


def test_a_flood_from_a_member_keeps_nobody_out() -> None:
    strangers = net.Strangers(lambda address: address == "mad member")
    links = []
    for n in range(3 * net.STRANGERS_MAX):
        one, other = socket.socketpair()
        other.close()
        address = "newcomer" if n == net.STRANGERS_MAX else "mad member"
        links.append(net.Link(one, address, Handshake(False, COOKIE, BOB), 0.0))
        strangers.admit(links[-1])
    assert links[net.STRANGERS_MAX].ended is None
    assert sum(link.ended is None for link in links) == net.STRANGERS_MAX
    for link in links:
        link.close()


def test_a_dial_from_an_address_that_is_gone_is_unreachable() -> None:
    shake = Handshake(True, COOKIE, ALICE)
    assert net.dial("127.0.0.1", 9, shake, 0.0, "192.0.2.1").ended is End.UNREACHABLE


def test_a_dial_without_an_answer_ends_after_a_second(lan: Net) -> None:
    link = lan.dial()
    assert link.tick(lan.now) == lan.now + net.DIAL_TIMEOUT_S
    assert link.tick(lan.now + net.DIAL_TIMEOUT_S) is None and link.ended is End.SILENT


def test_a_peer_that_closes_before_its_hello_is_busy() -> None:
    for reads in (False, True):
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen(1)
            shake = Handshake(True, COOKIE, ALICE)
            link = net.dial("127.0.0.1", busy.getsockname()[1], shake, 0.0)
            peer = busy.accept()[0]
            link.on_writable(0.0)
            if reads:
                peer.recv(100)
            peer.close()  # with our hello unread: a reset
            deadline = time.monotonic() + 2
            while link.ended is None and time.monotonic() < deadline:
                link.on_readable(0.0)
            assert link.ended is End.BUSY


def test_silence_ends_a_link_and_frames_or_forgiveness_keep_it(lan: Net) -> None:
    client, server = lan.joined()
    lan.now += 4.9
    client.send(Kind.HEARTBEAT, {"heard": client.heard_seq})
    lan.until(lambda: lan.heard)
    lan.now += 1
    assert server.tick(lan.now) == lan.now - 1 + net.DEAD_S
    client.last_heard = lan.now
    assert client.tick(lan.now) == lan.now + net.DEAD_S
    assert client.tick(lan.now + net.DEAD_S) is None and client.ended is End.SILENT


@pytest.mark.parametrize("why", ["stopping", "closing"])
def test_bye_says_why_even_to_a_peer_that_was_just_writing(lan: Net, why: str) -> None:
    client, server = lan.joined()
    client.send(Kind.PING, {"n": 1})
    client.bye(why)
    assert client.ended is End.CLOSED
    for _ in range(3):  # runs into a reset, before the BYE is read
        server.send(Kind.PING, {"n": 2})
        server.on_writable(lan.now)
        time.sleep(0.01)
    lan.until(lambda: server.ended)
    assert server.ended is (End.STOPPING if why == "stopping" else End.CLOSING)
    assert [frame.kind for _, frame in lan.heard] == [Kind.PING, Kind.BYE]


def test_a_vanished_or_half_closed_peer_is_eof(lan: Net) -> None:
    for leave in (Link.close, lambda link: link._sock.shutdown(socket.SHUT_WR)):
        client, server = lan.joined()
        leave(client)
        lan.until(lambda server=server: server.ended)
        assert server.ended is End.EOF
        client.close()


def test_a_frame_damaged_on_the_way_ends_the_link_and_those_before_it_count(
    lan: Net,
) -> None:
    client, server = lan.joined()
    good = client._seal.seal(Kind.PING, b'{"n":1}')
    client._wire += good + client._seal.seal(Kind.PING, b'{"n":2}')[:-1] + b"?"
    lan.until(lambda: server.ended)
    assert server.ended is End.BAD_FRAME and "tag" in server.detail
    assert [frame.fields for _, frame in lan.heard] == [{"n": 1}]


def test_a_heartbeat_waits_behind_one_piece_at_most(lan: Net) -> None:
    client, server = lan.joined()
    pulled = []

    def source() -> Frame:
        pulled.append(1)
        return Frame(Kind.FILE_PIECE, {"n": len(pulled)}, bytes(net.PIECE_BYTES))

    client.source = source
    client.wake()
    for _ in range(1000):  # the peer reads nothing until all buffers are full
        client.on_writable(lan.now)
    before = len(pulled)
    assert len(client._wire) <= net.PIECE_BYTES + 100
    client.send(Kind.HEARTBEAT, {"heard": 0})
    lan.until(lambda: any(frame.kind is Kind.HEARTBEAT for _, frame in lan.heard))
    kinds = [frame.kind for _, frame in lan.heard]
    assert kinds.index(Kind.HEARTBEAT) <= before


def test_a_heartbeat_passes_records_that_wait(lan: Net) -> None:
    client, _ = lan.joined()
    for n in range(20):
        client.send(Kind.RECORDS, {"n": n, "records": "x" * net.PIECE_BYTES})
    client.send(Kind.HEARTBEAT, {"heard": 0})
    lan.until(lambda: len(lan.heard) == 21)
    kinds = [frame.kind for _, frame in lan.heard]
    assert kinds.index(Kind.HEARTBEAT) <= 1
    told = [frame.fields["n"] for _, frame in lan.heard if frame.kind is Kind.RECORDS]
    assert told == list(range(20))


def test_a_source_is_asked_until_it_has_nothing_and_again_after_wake(lan: Net) -> None:
    client, _ = lan.joined()
    pieces = [Frame(Kind.FILE_PIECE, {"n": n}, b"x") for n in range(5)]
    client.source = lambda: pieces.pop(0) if pieces else None
    for count in (5, 6):
        client.wake()
        lan.until(lambda count=count: len(lan.heard) == count)
        assert not client.want_write
        pieces.append(Frame(Kind.FILE_PIECE, {"n": 6}, b"x"))


def test_a_peer_that_reads_nothing_costs_a_bounded_queue(lan: Net) -> None:
    client, _ = lan.joined()
    for _ in range(100):
        client.send(Kind.RECORDS, {"records": "x" * 100000})
        client.on_writable(lan.now)
    assert client.ended is End.OVERRUN


def test_a_link_that_has_begun_is_given_to_another_process_with_its_keys() -> None:
    lan = Net((Role.COMRADE, Role.GHOST))
    ghost = lan.dial(GHOST)
    lan.until(lambda: ghost.peer and lan.served and lan.served[0].peer)
    here = lan.served[0]
    assert here.peer == GHOST
    released: List[int] = []
    here.release = lambda: released.append(here.fileno())
    given = here.give()
    assert given is not None and here.ended is End.GIVEN and len(released) == 1
    with given[0] as sock:
        lan.served[0] = net.adopt(sock.dup(), "127.0.0.1", GHOST, given[1], lan.now)
    ghost.send(Kind.PING, {"n": 1})
    lan.until(lambda: lan.heard)
    assert lan.heard == [(lan.served[0], Frame(Kind.PING, {"n": 1}))]
    lan.served[0].send(Kind.PONG, {"n": 1})
    lan.until(lambda: len(lan.heard) == 2)
    assert lan.heard[1] == (ghost, Frame(Kind.PONG, {"n": 1}))
    lan.close()


# --- strangers ------------------------------------------------------------------------


def test_a_drip_of_bytes_does_not_extend_the_three_seconds(lan: Net) -> None:
    hello = Handshake(True, COOKIE, ALICE).take()
    slow = silent(lan.listener.port)
    lan.until(lambda: lan.served)
    link = lan.served[0]
    for byte in hello[:4]:
        assert link.tick(lan.now)
        slow.send(bytes([byte]))
        lan.until(lambda: link.shake.received[-1:] == bytes([byte]))  # noqa: B023
        lan.now += 0.76
    assert link.tick(lan.now) is None and link.ended is End.LATE
    slow.close()


def test_1000_silent_connections_keep_no_good_peer_out(lan: Net) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1500:
        pytest.skip("too few descriptors allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    flood: List[socket.socket] = []
    try:
        for n in range(1000):
            flood.append(silent(lan.listener.port))
            if n % 50 == 0:
                lan.turn(0)
        for own in ("127.0.0.2", "127.0.0.1"):
            start = time.monotonic()
            good = lan.dial(own=own)
            while good.peer is None:
                assert good.ended is None and time.monotonic() < start + 2
                lan.turn()
                flood.append(silent(lan.listener.port))
            assert sum(link.is_stranger for link in lan.served) <= net.STRANGERS_MAX
    finally:
        for sock in flood:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_crowded_address_loses_its_oldest_stranger_others_stay(lan: Net) -> None:
    lone = silent(lan.listener.port, "127.0.0.9")
    lan.until(lambda: len(lan.served) == 1)
    crowd = []
    for n in range(net.STRANGERS_MAX):
        crowd.append(silent(lan.listener.port))
        lan.until(lambda n=n: len(lan.served) == n + 2)
    assert is_closed(crowd[0]) and not is_closed(crowd[1]) and not is_closed(lone)
    assert lan.served[1].ended is End.BUSY
    for sock in [lone, *crowd]:
        sock.close()


def test_without_descriptors_who_waits_is_turned_away_and_the_loop_rests(
    lan: Net,
) -> None:
    waiting = silent(lan.listener.port)
    later = socket.socket()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        with pytest.raises(OSError) as full:
            os.open(os.devnull, os.O_RDONLY)
        assert full.value.errno == errno.EMFILE
        assert lan.listener.on_readable(lan.now) == []
        assert is_closed(waiting)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert lan.listener._spare >= 0
    waiting.close()
    later.close()
    lan.joined()


def test_a_port_in_use_is_an_error_and_leaves_nothing_open(lan: Net) -> None:
    with pytest.raises(OSError):
        Listener("127.0.0.1", lan.listener.port, lan.listener._greet)


def test_redials_grow_from_a_fifth_of_a_second_to_two() -> None:
    for luck in (0.0, 0.5, 0.999):
        delays = [net.redial_delay(failures, luck) for failures in range(2000)]
        assert delays == sorted(delays)
        assert delays[0] == net.REDIAL_MIN_S and delays[-1] <= net.REDIAL_MAX_S
    assert delays[-1] > 1.9
