"""A comrade's links: dialling, twins, clones, discovery; sockets on 127.0.0.x only."""

import select
import selectors
import socket
from typing import Any, Iterator, List, Tuple

import pytest
from lan import COOKIE, Lan, Peer

import addresses
import discovery
import links
import net
import wire
from addresses import OwnAddress, Sweep, Targets, is_unicast
from effects import DialRefused, Frame, LinkLost, LinkUp, Moved
from wire import End, Handshake, Hello, Role


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    yield made
    made.close()


def are_joined(*peers: Peer) -> bool:
    return all(
        other.up.get(peer.id) == peer.links.me.writer
        for peer in peers
        for other in peers
        if peer is not other
    )


def assert_one_link(a: Peer, b: Peer) -> None:
    """Both ends know one link, the same one, and no other is open."""
    one, other = a.links.links[b.id], b.links.links[a.id]
    assert one._sock.getsockname() == other._sock.getpeername()
    assert one.order == other.order
    assert [x for x in a.links._all if x.peer and x.peer.node == b.id] == [one]
    assert [x for x in b.links._all if x.peer and x.peer.node == a.id] == [other]


def settle(lan: Lan, seconds: float = 3.0) -> None:
    lan.pass_by(seconds)


# --- what came --------------------------------------------------------------------


def test_a_read_tells_whether_nothing_but_heartbeats_came(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    settle(lan)
    link = a.links.links[b.id]

    def reads(*kinds: str) -> bool:
        for kind in kinds:
            b.links.send(a.id, kind, {"n": 1, "heard": 1, "root": "", "run": ""})
        assert b.links.flush() and select.select([link], [], [], 5.0)[0]
        return a.links._on_read(link)

    while not b.links.flush() or select.select([link], [], [], 0.1)[0]:
        a.links._on_read(link)  # pings of the time that went by
    assert reads("HEARTBEAT") and reads("HEARTBEAT", "HEARTBEAT")
    assert not reads("HEARTBEAT", "ALIVE") and not reads("PING")
    b.links.links[a.id].close()
    assert not reads()


# --- twins ------------------------------------------------------------------------


def test_of_a_mutual_dial_one_link_stays_and_both_ends_agree_71(lan: Lan) -> None:
    for round_ in range(10):
        a = lan.peer(1, "a", peers=(2,))
        b = lan.peer(2, "b", peers=(1,))
        lan.until(lambda: are_joined(a, b))  # noqa: B023
        settle(lan)
        assert_one_link(a, b)
        assert len(a.of(LinkLost)) <= 1 and len(b.of(LinkLost)) <= 1, round_
        for x, y in ((a, b), (b, a)):
            x.links.send(y.id, "STOP", {"run": "r", "smaller": "s"})
        lan.until(lambda: a.of(Frame) and b.of(Frame))  # noqa: B023
        a.die()
        b.die()


def test_five_comrades_that_start_at_once_have_ten_links(lan: Lan) -> None:
    everyone = tuple(range(1, 6))
    peers = [lan.peer(n, "%x" % (n + 9), peers=everyone) for n in everyone]
    lan.until(lambda: are_joined(*peers))
    settle(lan)
    for at, a in enumerate(peers):
        for b in peers[at + 1 :]:
            assert_one_link(a, b)


def test_of_twins_dialled_by_one_side_the_later_stays_at_both_ends(lan: Lan) -> None:
    a = lan.peer(1, "a")
    b = lan.peer(2, "b")
    for _ in range(6):
        for _ in range(3):
            shake = a.links._shake(True)
            link = net.dial(b.address, lan.port, shake, lan.now, a.address)
            a.links._take(link)
        settle(lan, 1.0)
        assert are_joined(a, b)
        assert_one_link(a, b)


def test_a_peer_known_under_two_addresses_is_one_node(lan: Lan) -> None:
    a = lan.peer(1, "a", peers=(2, 3))
    b = lan.peer(2, "b")
    second = net.Listener("127.0.0.3", lan.port, lambda: b.links._shake(False))

    def on_second() -> None:
        for link in second.on_readable(lan.now):
            b.links._take(link)

    b.watch(second.fileno(), on_second)
    lan.until(lambda: a.links.targets.all["127.0.0.3"].owner == b.id)
    settle(lan)
    assert are_joined(a, b)
    assert_one_link(a, b)
    assert not a.of(DialRefused)
    # Its process lives on, but the link breaks, and the other address refuses.
    b.unwatch(second.fileno())
    second.close()
    a.links.links[b.id].close(End.RESET)
    lan.until(lambda: a.of(LinkLost) and are_joined(a, b))
    settle(lan)
    stale = [m for m in a.of(DialRefused)]
    where = a.links.links[b.id].address
    assert where == "127.0.0.2" and not stale


# --- dialling ---------------------------------------------------------------------


def test_a_dead_process_is_lost_by_eof_then_refused(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    settle(lan)
    start = lan.now
    b.die()
    lan.until(lambda: a.of(DialRefused))
    assert a.heard.index(LinkLost(b.id, "eof")) < a.heard.index(DialRefused(b.id))
    assert lan.now - start < 1.0  # D12


def test_a_process_started_anew_takes_the_place_of_the_dead(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b", "1")
    lan.until(lambda: are_joined(a, b))
    b.die()
    b = lan.peer(2, "b", "2", peers=(1,))
    lan.until(lambda: are_joined(a, b))
    settle(lan)
    assert_one_link(a, b)
    ups = [m for m in a.heard if isinstance(m, (LinkUp, LinkLost))]
    assert ups[:2] == [LinkUp(b.id, "1" * 16), LinkLost(b.id, "eof")]
    assert ups[2] == LinkUp(b.id, "2" * 16)


def test_links_that_do_not_hold_are_not_dialled_in_a_tight_loop(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    step = b.step

    def refuse(message: Any) -> None:
        step(message)
        if isinstance(message, LinkUp):
            b.links.close(message.peer, "bad frame")
            del b.up[message.peer]

    b.links.seams = b.links.seams._replace(step=refuse)
    settle(lan, 20.0)
    assert 5 < len(a.of(LinkUp)) < 60


def test_bye_stopping_and_closing_are_told_apart(lan: Lan) -> None:
    for why in ("stopping", "closing"):
        a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
        lan.until(lambda: are_joined(a, b))  # noqa: B023
        b.links.send(a.id, "BYE", {"why": why})
        assert b.links.flush()
        lan.until(lambda: a.of(LinkLost))  # noqa: B023
        assert a.of(LinkLost) == [LinkLost(b.id, why)]
        a.die()
        b.die()


def test_frames_leave_in_the_next_tick_and_the_selector_is_not_asked_for_them(
    lan: Lan,
) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    settle(lan, 2.0)
    asked: List[int] = []
    watch = a.links.seams.watch
    a.links.seams = a.links.seams._replace(
        watch=lambda fd, *how: (asked.append(fd), watch(fd, *how))[1]
    )
    assert a.links.flush()
    sent = a.links.links[b.id].sent_seq
    for n in range(5):
        a.links.send(b.id, "GOT", {"n": n})
        a.links.tick(lan.now)
        assert a.links.flush()
    assert a.links.links[b.id].sent_seq == sent + 5 and asked == []
    lan.until(lambda: len([f for f in b.of(Frame) if f.kind == "GOT"]) == 5)


def test_what_the_kernel_does_not_take_waits_for_the_selector(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    b.is_mute = True
    count = 0
    while a.links.flush():
        a.links.send(b.id, "RECORDS", {"n": count, "r": ["x" * 200] * 1000})
        count += 1
        assert count < 1000
    a.links.tick(lan.now)
    fd = a.links.links[b.id].fileno()
    assert lan.selector.get_key(fd).events & selectors.EVENT_WRITE
    b.is_mute = False
    lan.until(a.links.flush)
    a.links.tick(lan.now)
    assert not lan.selector.get_key(fd).events & selectors.EVENT_WRITE


def test_a_dial_nobody_answers_gives_the_loop_a_deadline(lan: Lan) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.2", lan.port))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", lan.port))
        a = lan.peer(1, "a", peers=(2,))
        due = a.links.tick(lan.now)
        assert due is not None and due <= lan.now + net.DIAL_TIMEOUT_S
        lan.until(lambda: a.links.targets.all["127.0.0.2"].failures >= 2)
        for filler in fillers:
            filler.close()


def test_who_never_finishes_the_handshake_is_let_go(lan: Lan) -> None:
    a = lan.peer(1, "a")
    with socket.socket() as mute:
        mute.bind(("127.0.0.2", lan.port))
        mute.listen(8)
        b = lan.peer(3, "b", peers=(2,))  # dials one that accepts and says nothing
        strangers = [socket.socket() for _ in range(100)]
        for stranger in strangers:
            stranger.connect((a.address, lan.port))
        lan.until(lambda: len(a.links._all) >= net.STRANGERS_MAX // 2)
        assert len(a.links._all) <= net.STRANGERS_MAX
        assert all(link.ended is None for link in a.links._all)
        lan.until(lambda: not a.links._all)
        lan.until(lambda: b.links.targets.all["127.0.0.2"].failures >= 2)
        for stranger in strangers:
            stranger.close()
    assert not a.heard and not b.heard


def test_a_wrong_cookie_is_told_once_at_both_ends(lan: Lan) -> None:
    lan.cookies[2] = b"another cookie"
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    settle(lan, 40.0)
    assert a.said == ["127.0.0.2: " + End.WRONG_COOKIE.value]
    assert b.said == ["127.0.0.1: " + End.WRONG_COOKIE.value]
    assert not a.heard and not b.heard


def test_one_with_the_old_cookie_is_let_in_and_no_user_is_told_of_another(
    lan: Lan,
) -> None:
    for dialler in (1, 2):
        a = lan.peer(1, "a", peers=(2,) if dialler == 1 else ())
        a.links.jar.succeed(1e6)
        a.said.clear()
        b = lan.peer(2, "b", peers=(1,) if dialler == 2 else ())
        lan.until(lambda: are_joined(a, b))  # noqa: B023
        settle(lan, 5.0)
        assert not a.said and not b.said
        # What a peer is told goes to `on_bulk`, as letters do; there is no role here.
        assert [frame.kind for _, frame in b.bulk] == [wire.Kind.NEW_COOKIE]
        assert not a.bulk
        (node, frame) = b.bulk[0]
        b.links.jar.on_frame(node, frame.fields)
        assert b.links.jar.newest == a.links.jar.newest
        a.die()
        b.die()


def test_two_that_each_made_a_cookie_meet_by_the_one_before_both(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    a.on_bulk = lambda peer, frame: a.links.jar.on_frame(peer, frame.fields)
    b.on_bulk = lambda peer, frame: b.links.jar.on_frame(peer, frame.fields)
    for one in (a, b):
        for _ in range(3):
            one.links.jar.succeed(1e6)
        one.said.clear()
    lan.until(lambda: are_joined(a, b))
    settle(lan, 5.0)
    assert a.links.jar.newest == b.links.jar.newest
    told = {"the cluster has a new cookie"}
    assert set(a.said) | set(b.said) == told


def test_after_the_grace_both_are_told_as_of_any_other_cookie(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    a.links.jar.succeed(10.0)
    lan.pass_by(0.5)
    assert a.links.jar.tick(lan.now) is not None
    lan.now += 10.0
    a.said.clear()
    for link in list(a.links._all):
        link.close()
    settle(lan, 30.0)
    assert a.said == ["127.0.0.2: " + End.WRONG_COOKIE.value]
    assert b.said == ["127.0.0.1: " + End.WRONG_COOKIE.value]


def test_a_beacon_with_the_old_cookie_is_a_hint_while_that_counts(lan: Lan) -> None:
    a, b = lan.peer(1, "a"), lan.peer(2, "b")
    a.links.discover(interfaces=list)
    a.links.jar.succeed(1e6)
    a.said.clear()
    beacon(lan, COOKIE, b.address)
    lan.until(lambda: are_joined(a, b))
    assert not a.said and not b.said


def test_a_ghost_is_handed_over_once_it_has_proved_itself(lan: Lan) -> None:
    a = lan.peer(1, "a")
    me = Hello("c" * 16, "c" * 16, Role.GHOST)
    ghost = net.dial(a.address, lan.port, Handshake(True, COOKIE, me), lan.now)
    forged = net.dial(a.address, lan.port, Handshake(True, b"wrong", me), lan.now)

    def turn() -> bool:
        for link in (ghost, forged):
            if link.want_write:
                link.on_writable(lan.now)
            link.on_readable(lan.now)
        return bool(a.ghosts)

    lan.until(turn)
    (handed,) = a.ghosts
    assert handed.peer == me and not a.heard
    given = handed.give()
    assert given is not None
    lan.until(lambda: handed not in a.links._all)
    given[0].close()
    for link in (ghost, forged):
        link.close()


def test_when_this_process_was_stopped_it_accuses_nobody(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    lan.now += 60
    lan.beat()
    settle(lan)
    assert not a.of(LinkLost) and not b.of(LinkLost)


def test_silence_is_noticed(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    b.is_mute = True
    lan.until(lambda: a.of(LinkLost))
    assert a.of(LinkLost) == [LinkLost(b.id, "silent")]


def test_an_error_of_the_core_costs_the_link_and_the_next_one_works(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    step = b.step

    def fail(message: Any) -> None:
        step(message)
        if isinstance(message, Frame):
            raise RuntimeError("a bug")

    b.links.seams = b.links.seams._replace(step=fail)
    a.links.send(b.id, "STOP", {"run": "r", "smaller": "s"})
    with pytest.raises(RuntimeError):
        settle(lan, 1.0)
    lan.until(lambda: b.of(LinkLost) and are_joined(a, b))


def test_a_frame_that_is_too_long_is_not_sent_and_costs_nothing_else(lan: Lan) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    a.links.send(b.id, "RECORDS", {"r": "x" * wire.FRAME_BYTES_MAX})
    a.links.send(b.id, "STOP", {"run": "r", "smaller": "s"})
    lan.until(lambda: b.of(Frame))
    assert len(a.said) == 1 and "RECORDS" in a.said[0]


def test_a_peer_that_has_been_told_goodbye_and_reads_nothing_is_let_go(
    lan: Lan,
) -> None:
    a, b = lan.peer(1, "a", peers=(2,)), lan.peer(2, "b")
    lan.until(lambda: are_joined(a, b))
    b.is_mute = True
    link = a.links.links[b.id]
    for _ in range(30):
        a.links.send(b.id, "RECORDS", {"r": "x" * 100000})
    a.links.close(b.id, "closing")
    link.last_heard = lan.now + 1000  # it talks on
    lan.until(lambda: link.ended)


# --- one id, two processes --------------------------------------------------------


def test_a_clone_is_told_so_and_the_original_stays(lan: Lan) -> None:
    a = lan.peer(1, "a")
    original = lan.peer(2, "b", "2", peers=(1,))
    lan.until(lambda: are_joined(a, original))
    clone = lan.peer(3, "b", "3", peers=(1,))
    lan.until(lambda: clone.clones)
    settle(lan)
    assert a.up == {original.id: "2" * 16}
    assert not original.clones and not a.of(LinkLost)


def test_one_that_does_not_answer_for_a_second_is_replaced(lan: Lan) -> None:
    a = lan.peer(1, "a")
    old = lan.peer(2, "b", "2", peers=(1,))
    lan.until(lambda: are_joined(a, old))
    a.links.send(old.id, "STOP", {"run": "r", "smaller": "s"})
    old.is_mute = True
    start = lan.now
    new = lan.peer(3, "b", "3", peers=(1,))
    lan.until(lambda: new.up)
    new.links.send(a.id, "STOP", {"run": "1", "smaller": "2"})  # while it is in doubt
    lan.until(lambda: a.of(Frame))
    assert a.up == {new.id: "3" * 16} and not new.clones
    assert links.PING_S <= lan.now - start < links.PING_S + 2.0
    assert a.of(LinkLost) == [LinkLost(old.id, "eof")]


def test_a_frame_that_was_on_its_way_is_no_answer_to_the_ping(lan: Lan) -> None:
    a = lan.peer(1, "a")
    old = lan.peer(2, "b", "2", peers=(1,))
    lan.until(lambda: are_joined(a, old))
    a.is_mute = True
    old.links.send(a.id, "STOP", {"run": "r", "smaller": "s"})
    old.links.send(a.id, "PONG", {"n": 0})
    assert old.links.flush()
    old.is_mute, a.is_mute = True, False
    new = lan.peer(3, "b", "3", peers=(1,))
    lan.until(lambda: a.up.get(new.id) == "3" * 16)
    assert not new.clones


def test_two_processes_with_ones_own_id_agree_on_who_is_the_clone(lan: Lan) -> None:
    one = lan.peer(1, "a", "1", peers=(2,))
    two = lan.peer(2, "a", "2", peers=(1,))
    settle(lan, 5.0)
    assert not one.clones and two.clones and not one.up and not two.up


# --- discovery --------------------------------------------------------------------


def sent(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    dialled: List[str] = []
    real = net.dial

    def dial(address: str, *rest: Any) -> net.Link:
        dialled.append(address)
        return real(address, *rest)

    monkeypatch.setattr(net, "dial", dial)
    return dialled


def test_with_discovery_off_only_named_addresses_are_dialled(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("discovery is off")

    monkeypatch.setattr(discovery, "Discovery", never)
    monkeypatch.setattr(discovery, "sweep", never)
    dialled = sent(monkeypatch)
    a = lan.peer(1, "a", peers=(2,))
    settle(lan, 60.0)
    assert set(dialled) == {"127.0.0.2"}
    a.links.know({"127.0.0.3"})
    settle(lan, 5.0)
    assert set(dialled) == {"127.0.0.2", "127.0.0.3"}


def beacon(lan: Lan, cookie: bytes, source: str) -> None:
    fields = (wire.MAGIC, wire.VERSION, 1, wire.fingerprint(cookie), bytes(8), lan.port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.sendto(discovery.BEACON.pack(*fields), ("127.0.0.1", lan.port))


def test_a_beacon_is_dialled_and_another_clusters_is_told_once(lan: Lan) -> None:
    a, b = lan.peer(1, "a"), lan.peer(2, "b")
    a.links.discover(interfaces=list)
    beacon(lan, COOKIE, b.address)
    lan.until(lambda: are_joined(a, b))
    for _ in range(3):
        beacon(lan, b"another", "127.0.0.9")
        settle(lan, 11.0)
    assert a.said == ["127.0.0.9: " + End.WRONG_COOKIE.value]


def test_a_flood_of_beacons_rests_the_socket_and_harms_nobody_68(lan: Lan) -> None:
    a = lan.peer(1, "a")
    a.links.discover(interfaces=list)
    for _ in range(4):
        for n in range(100):
            beacon(lan, COOKIE, "127.0.1.%d" % (n + 1))
        lan.turn()
        a.links.tick(lan.now)
        a.links.tick(lan.now)  # resting twice in a row
    settle(lan, 30.0)
    assert len(a.links.targets.all) <= discovery.HINTS_MAX * 4
    settle(lan, 60.0)
    assert not a.links.targets.all  # nobody proved himself there


def test_a_lonely_comrade_sweeps_slowly_and_stops_once_it_has_a_peer(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled = sent(monkeypatch)
    a, b = lan.peer(1, "a"), lan.peer(200, "b")
    near = ["127.0.0.%d" % n for n in range(100, 201)]
    a.links.discover(interfaces=list, sweep=lambda own: iter(near))
    settle(lan, addresses.LONELY_SWEEP_S - 1)
    assert not dialled
    lan.until(lambda: are_joined(a, b))
    assert dialled == near  # each once
    count = len(dialled)
    settle(lan, 60.0)
    assert len(dialled) == count and set(a.links.targets.all) == {b.address}


def test_a_sweep_takes_its_time_rests_and_begins_anew() -> None:
    sweep = Sweep(lambda: iter(["x", "y"]))
    assert sweep.tick(0.0, True) == "" and sweep.due == addresses.LONELY_SWEEP_S
    found = []
    for now in range(0, 2000):
        address = sweep.tick(float(now), True)
        if address:
            found.append((now, address))
    assert [a for _, a in found] == ["x", "y"] * 3
    assert found[2][0] - found[1][0] >= addresses.SWEEP_REST_S
    assert sweep.tick(3000.0, False) == "" and sweep.due is None


# --- bounds -----------------------------------------------------------------------


def test_only_addresses_of_one_host_are_dialled() -> None:
    good = ["127.0.0.1", "10.0.0.255", "192.168.1.1"]
    bad: List[Any] = ["", "0.0.0.0", "255.255.255.255", "224.0.0.1", "localhost"]
    bad += ["1.2.3", "a" * 300, "\u20ac.de", "1.2.3.4\0", None, 7, ["1.2.3.4"], "::1"]
    assert [x for x in good + bad if is_unicast(x)] == good


def test_addresses_are_bounded_and_hints_displace_no_named_one() -> None:
    targets = Targets(["10.0.0.1"], "10.0.0.2", lambda: 0.5)
    for n in range(5000):
        targets.add("10.1.%d.%d" % (n >> 8, n & 255), addresses.HINT_TRIES)
    assert len(targets.all) == addresses.ADDRESSES_MAX
    for n in range(5000):
        targets.add("10.2.%d.%d" % (n >> 8, n & 255))
    assert len(targets.all) == addresses.ADDRESSES_MAX
    assert all(t.tries is None for t in targets.all.values())
    assert targets.add("10.3.0.1", 1) is None and "10.0.0.1" in targets.all
    assert targets.add("10.0.0.2") is None  # oneself


def test_every_address_gets_its_turn_though_none_answers() -> None:
    names = ["10.0.0.%d" % n for n in range(1, 101)]
    targets = Targets(names, "10.0.1.1", lambda: 0.5)
    now, dialled, under_way = 0.0, set(), []
    for _ in range(100):
        for address, target in targets.due(now, {}):
            dialled.add(address)
            shake = Handshake(True, COOKIE, Hello("a" * 16, "a" * 16, Role.COMRADE))
            sock = socket.socket()
            target.link = net.Link(sock, address, shake, now)
            under_way.append(target.link)
        assert len(under_way) <= addresses.DIALS_MAX
        now += 1.0
        for link in under_way:
            link.close(End.SILENT)
            targets.on_ended(link, now)
        under_way.clear()
    assert dialled == set(names)


# --- the own address --------------------------------------------------------------


@pytest.mark.parametrize("moves", [("a", 1), ("b", 2)])
def test_one_that_moved_is_met_at_its_new_address_and_not_at_the_old_41(
    lan: Lan, moves: Tuple[str, int]
) -> None:
    a = lan.peer(1, "a", peers=(2,))
    b = lan.peer(2, "b", peers=(1,))
    lan.until(lambda: are_joined(a, b))
    settle(lan)
    one, other = (a, b) if moves[0] == "a" else (b, a)
    former, present = one.address, "127.0.0.7"
    assert one.links.move(present)
    assert one.links.me.address == present
    assert one.said == ["this machine's address is 127.0.0.7 now"]
    assert not one.up  # the core knows it
    lan.until(lambda: are_joined(a, b))
    settle(lan)
    assert_one_link(a, b)
    assert other.links.targets.all[present].owner == one.id
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((former, lan.port))


def test_where_it_cannot_listen_it_stays_and_says_so_once(lan: Lan) -> None:
    a = lan.peer(1, "a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.7", lan.port))
        taken.listen()
        assert not a.links.move("127.0.0.7") and not a.links.move("127.0.0.7")
    assert a.links.me.address == a.address
    assert len(a.said) == 1 and "can't listen there" in a.said[0]


@pytest.mark.parametrize(
    "found, own, is_lonely, wanted",
    [
        ("127.0.0.2", "127.0.0.2", True, ""),  # nothing has changed
        ("10.0.0.1", "10.9.9.9", False, "10.0.0.1"),  # 10.9.9.9 isn't here any more
        ("10.0.0.1", "127.0.0.2", False, ""),  # 127.0.0.2 still is, and has links
        ("10.0.0.1", "127.0.0.2", True, "10.0.0.1"),
        ("127.0.0.1", "10.9.9.9", True, ""),  # a cable is out: wait
        ("", "10.9.9.9", True, ""),
    ],
)
def test_an_address_is_kept_while_it_serves(
    found: str, own: str, is_lonely: bool, wanted: str
) -> None:
    assert OwnAddress(lambda: found).choose(own, is_lonely) == wanted


def test_what_the_kernel_tells_is_taken_in_and_leads_to_one_move(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, kernels = socket.socketpair(type=socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(OwnAddress, "_open", lambda self: ours)
    a = lan.peer(1, "a")
    looks: List[str] = []
    a.links.follow(lambda: looks.append("") or "10.0.0.7", Moved)
    monkeypatch.setattr(a.links, "move", lambda address: True)
    for _ in range(3):
        kernels.send(b"news")
    lan.until(lambda: a.of(Moved))
    settle(lan)
    assert len(looks) == 1 and a.of(Moved) == [Moved("10.0.0.7")]
    kernels.close()
