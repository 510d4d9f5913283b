"""Files and outputs between comrades: links on 127.0.0.x, real directories."""

import errno
import hashlib
import os
import resource
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from lan import Lan, Peer

import net
import store
import transfer
import wire
from effects import Frame
from transfer import Transfers
from wire import Kind

FILE, OUTPUT = Kind.FILE_WANT, Kind.OUTPUT_WANT


class Node:
    """A comrade with a file store; what it does aside is done in the next round."""

    def __init__(self, lan: Lan, peer: Peer, home: str) -> None:
        self.peer, self.lan = peer, lan
        self.database: Dict[str, bytes] = {}
        self.jobs: List[Tuple[Callable[[], Any], Callable[..., None]]] = []
        self.log: List[str] = []
        self.told: List[Tuple[str, bool]] = []
        os.mkdir(home)
        self.files = store.Files(home)
        self.files.open()
        self.home = home
        seams = transfer.Seams(
            lambda: peer.links.links,
            lambda job, then: self.jobs.append((job, then)),
            lambda digest, then: self.jobs.append(
                (lambda: self.database.get(digest), lambda data, _: then(data))
            ),
            lambda: lan.now,
            self.log.append,
            self.bring,
        )
        self.ghost = ""  # that is attached here
        self.asked: List[Tuple[str, int, Callable[[bool], None]]] = []
        self.transfers = Transfers(self.files, seams)
        peer.on_bulk = self.transfers.on_frame

    def turn(self) -> Optional[float]:
        jobs, self.jobs = self.jobs, []
        for job, then in jobs:
            try:
                result, error = job(), None
            except Exception as problem:
                result, error = None, problem
            then(result, error)
        return self.transfers.tick(self.lan.now)

    def bring(
        self, ghost: str, digest: str, size: int, then: Callable[[bool], None]
    ) -> bool:
        if ghost == self.ghost:
            self.asked.append((digest, size, then))
        return ghost == self.ghost

    def want(self, digest: str, size: int, first: str = "", kind: Kind = FILE) -> None:
        def then(is_here: bool) -> None:
            self.told.append((digest, is_here))

        self.transfers.want(kind, digest, size, first, then)

    def parts(self) -> List[str]:
        names = os.listdir(os.path.join(self.home, "files"))
        return [name for name in names if len(name) != 64]


class Cluster:
    """Nodes a, b, c, ... each linked with all others."""

    def __init__(self, lan: Lan, folder: str, count: int) -> None:
        self.lan = lan
        last = tuple(range(1, count + 1))
        self.nodes = []
        for n in last:
            peer = lan.peer(n, "%x" % (n + 9), peers=last)
            self.nodes.append(Node(lan, peer, os.path.join(folder, str(n))))
        lan.on_turn = self.turn
        lan.until(lambda: all(len(n.peer.up) == count - 1 for n in self.nodes))
        lan.pass_by(2.0)

    def turn(self) -> Optional[float]:
        alive = [node for node in self.nodes if node.peer in self.lan.peers]
        times = [node.turn() for node in alive if not node.peer.is_mute]
        if any(node.jobs for node in alive):
            times.append(self.lan.now)
        return min((t for t in times if t is not None), default=None)


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    yield made
    made.close()


@pytest.fixture
def three(lan: Lan, tmp_path: Any) -> Cluster:
    return Cluster(lan, str(tmp_path), 3)


def content(size: int) -> Tuple[str, bytes]:
    data = os.urandom(size)
    return hashlib.sha256(data).hexdigest(), data


def read(node: Node, digest: str) -> bytes:
    with open(node.files.path(digest), "rb") as file:
        return file.read()


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- coming and going -------------------------------------------------------------


def test_50_mb_go_to_two_peers_at_once_while_frames_flow_between(
    three: Cluster, lan: Lan
) -> None:
    a, b, c = three.nodes
    size = 50 << 20
    digest, data = content(size)
    a.files.keep_bytes(data)
    del data
    order: List[str] = []
    for node in (b, c):
        take = node.transfers.on_frame

        def on_bulk(peer: str, frame: wire.Frame, take: Any = take) -> None:
            order.append("piece")
            assert len(frame.body) <= transfer.LARGE_BYTES
            take(peer, frame)

        node.peer.on_bulk = on_bulk
        node.want(digest, size)
    before = most = resident()
    rounds = 0
    three_turn = lan.on_turn

    def on_turn() -> Optional[float]:
        nonlocal rounds, most
        rounds += 1
        most = max(most, resident())
        a.peer.links.send(b.peer.id, "STOP", {"run": str(rounds), "smaller": ""})
        if len(b.peer.heard) != len(order):
            order.extend("frame" for _ in b.peer.of(Frame)[order.count("frame") :])
        return three_turn()

    lan.on_turn = on_turn
    lan.until(lambda: b.told and c.told)
    assert b.told == c.told == [(digest, True)]
    for node in (b, c):
        assert os.path.getsize(node.files.path(digest)) == size
    # A frame sent in each round came through in that round or the next ones, long
    # before the file was over: never behind more than a few pieces of each link.
    gaps = [len(gap) for gap in "".join(x[0] for x in order).split("f")]
    assert order.count("frame") > 100 and max(gaps) * net.PIECE_BYTES < 4 << 20
    assert most - before < 8 << 20
    assert not a.transfers.wants and not b.parts() and not c.parts()


def test_pieces_are_large_only_while_the_wire_takes_them_quickly() -> None:
    now = 10.0
    line = transfer.Line(lambda: now)
    content = os.urandom(400_000)
    serve = transfer.Serve(Kind.FILE_PIECE, "d" * 64, len(content), 0)
    serve.data = content
    line.serves.append(serve)
    found, came = [], b""
    for took in (0.0, 0.001, 0.001, 0.001, 0.001, 2.0, 0.001, 0.1):
        now += took
        piece = line.next()
        assert piece is not None and piece.fields["offset"] == len(came)
        found.append(len(piece.body) >> 10)
        came += piece.body
    assert found == [16, 32, 64, 64, 64, 16, 32, 16]
    assert content.startswith(came)


def test_a_file_goes_on_at_another_peer_where_its_link_broke(
    three: Cluster, lan: Lan
) -> None:
    a, b, c = three.nodes
    digest, data = content(3 << 20)
    a.files.keep_bytes(data)
    b.files.keep_bytes(data)
    c.want(digest, len(data), a.peer.id)
    want = c.transfers.wants[digest]
    lan.until(lambda: want.got > 1 << 20)
    assert want.peer == a.peer.id
    got, start = want.got, lan.now
    a.peer.die()
    lan.until(lambda: want.peer == b.peer.id)
    assert want.got >= got
    lan.until(lambda: c.told)
    assert c.told == [(digest, True)] and read(c, digest) == data
    assert lan.now - start < transfer.STALL_S  # nobody waited for a stall


def test_what_came_is_kept_where_the_only_link_to_the_rest_breaks(
    three: Cluster, lan: Lan
) -> None:
    a, _, c = three.nodes
    digest, data = content(3 << 20)
    a.files.keep_bytes(data)
    c.want(digest, len(data), a.peer.id)
    want = c.transfers.wants[digest]
    lan.until(lambda: want.got > 1 << 20)
    got = want.got
    c.peer.links.links[a.peer.id].close()
    lan.until(lambda: not want.peer and want.pauses)  # b said that it doesn't have it
    assert want.got >= got and c.parts()
    lan.until(lambda: c.told)
    assert c.told == [(digest, True)] and read(c, digest) == data


@pytest.mark.parametrize("is_there", [True, False])
def test_an_output_of_a_ghost_is_served_once_it_was_brought(
    three: Cluster, lan: Lan, is_there: bool
) -> None:
    a, b, c = three.nodes
    digest, data = content(20 << 20)
    a.ghost = "a ghost"
    c.transfers.want(
        *(OUTPUT, digest, len(data), a.peer.id),
        lambda is_here: c.told.append((digest, is_here)),
        "a ghost",
    )
    lan.until(lambda: a.asked)
    lan.pass_by(2 * transfer.STALL_S)  # it takes its time, and c is patient
    assert c.told == [] and len(a.asked) == 1 and not b.asked
    if is_there:
        a.files.keep_bytes(data)
    a.asked[0][2](is_there)
    lan.until(lambda: c.told)
    assert c.told == [(digest, is_there)]
    assert not is_there or read(c, digest) == data
    assert not any(line.looking for line in a.transfers.serving.values())


@pytest.mark.parametrize("is_there", [True, False])
def test_a_small_output_that_only_a_ghost_has_is_served_once_it_was_brought(
    three: Cluster, lan: Lan, is_there: bool
) -> None:
    a, b, c = three.nodes
    digest, data = content(1000)
    a.ghost = "a ghost"
    c.transfers.want(
        *(OUTPUT, digest, len(data), a.peer.id),
        lambda is_here: c.told.append((digest, is_here)),
        "a ghost",
    )
    lan.until(lambda: a.asked)
    if is_there:
        a.files.keep_bytes(data)
    a.asked[0][2](is_there)
    lan.until(lambda: c.told)
    assert c.told == [(digest, is_there)] and not b.asked
    assert not is_there or read(c, digest) == data
    assert not any(line.looking for line in a.transfers.serving.values())


def test_a_peer_that_stalls_is_left_for_the_next(three: Cluster, lan: Lan) -> None:
    a, b, c = three.nodes
    digest, data = content(1 << 20)
    a.transfers.on_frame = lambda *_: None  # type: ignore[method-assign]  # mute
    a.peer.on_bulk = lambda *_: None
    b.files.keep_bytes(data)
    c.want(digest, len(data), a.peer.id)
    lan.until(lambda: c.told)
    assert c.told == [(digest, True)] and read(c, digest) == data


def test_an_empty_file_arrives(three: Cluster, lan: Lan) -> None:
    a, _, c = three.nodes
    digest, _ = content(0)
    a.files.keep_bytes(b"")
    c.want(digest, 0)
    lan.until(lambda: c.told)
    assert c.told == [(digest, True)] and read(c, digest) == b""


@pytest.mark.parametrize("wrong", ["other", "longer", "shorter", "empty"])
def test_what_is_not_as_named_is_refused_and_had_from_another(
    three: Cluster, lan: Lan, wrong: str
) -> None:
    a, b, c = three.nodes
    digest, data = content(100_000)
    lie = {
        "other": data[:-1] + bytes([data[-1] ^ 1]),
        "longer": data + b"x" * 50_000,
        "shorter": data[:50_000],
        "empty": b"",
    }[wrong]
    with open(a.files.path(digest), "wb") as file:
        file.write(lie)
    c.want(digest, len(data), a.peer.id)
    lan.pass_by(20.0)
    assert not c.told and not c.files.has(digest) and digest in c.transfers.wants
    b.files.keep_bytes(data)
    lan.until(lambda: c.told)
    assert read(c, digest) == data and not c.parts()


def test_pieces_beyond_the_end_or_out_of_turn_change_nothing(
    three: Cluster, lan: Lan
) -> None:
    a, _, c = three.nodes
    digest, data = content(100_000)
    c.want(digest, len(data), a.peer.id)
    a.peer.on_bulk = lambda *_: None
    lan.until(lambda: c.transfers.wants[digest].peer == a.peer.id)
    want = c.transfers.wants[digest]

    def piece(offset: Any, size: Any, body: bytes, name: Any = digest) -> None:
        fields = {"digest": name, "offset": offset, "size": size}
        c.transfers.on_frame(a.peer.id, wire.Frame(Kind.FILE_PIECE, fields, body))

    piece(5, len(data), b"x")
    piece("0", len(data), b"x")
    piece(0, len(data), b"x", ["no", "name"])
    c.transfers.on_frame("nobody", wire.Frame(Kind.FILE_PIECE, {"digest": digest}, b""))
    c.transfers.on_frame(a.peer.id, wire.Frame(Kind.FILE_PIECE, {}, b""))
    assert want.got == 0 and want.peer == a.peer.id
    piece(0, len(data), data)
    assert want.is_finishing
    piece(len(data), len(data), b"more")  # while another thread has the file
    c.transfers.forget({digest})
    lan.until(lambda: c.told)
    assert c.told == [(digest, True)] and read(c, digest) == data


def test_a_file_that_is_missing_everywhere_is_got_once_it_appears(
    three: Cluster, lan: Lan
) -> None:
    a, _, c = three.nodes
    digest, data = content(30_000)
    c.want(digest, len(data))
    lan.pass_by(60.0)
    assert not c.told
    a.files.keep_bytes(data)
    start = lan.now
    lan.until(lambda: c.told)
    assert lan.now - start <= transfer.ASK_AGAIN_MAX_S + 1.0


def test_a_new_peer_is_asked_at_once(lan: Lan, tmp_path: Any) -> None:
    two = Cluster(lan, str(tmp_path), 2)
    digest, data = content(30_000)
    two.nodes[0].want(digest, len(data))
    lan.pass_by(100.0)
    peer = lan.peer(3, "c", peers=(1, 2))
    late = Node(lan, peer, str(tmp_path / "late"))
    late.files.keep_bytes(data)
    two.nodes.append(late)
    start = lan.now
    lan.until(lambda: two.nodes[0].told)
    assert lan.now - start < 5.0


def test_without_a_peer_a_file_waits_for_nothing_and_an_output_is_given_up(
    lan: Lan, tmp_path: Any
) -> None:
    alone = Node(lan, lan.peer(1, "a"), str(tmp_path / "a"))
    digest, _ = content(10)
    alone.want(digest, 10)
    alone.want("0" * 64, 10, kind=OUTPUT)
    assert alone.turn() == lan.now and alone.told == [("0" * 64, False)]
    assert alone.turn() is None  # D5


class FullDisk(store.Part):
    """Takes a piece, then none, as long as it is full."""

    is_full = True

    def write(self, piece: bytes) -> None:
        if FullDisk.is_full and self._size:
            raise OSError(errno.ENOSPC, "no space left")
        super().write(piece)


def test_a_full_disk_pauses_and_says_so_once(
    three: Cluster, lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, c = three.nodes
    digest, data = content(100_000)
    a.files.keep_bytes(data)
    monkeypatch.setattr(store, "Part", FullDisk)
    monkeypatch.setattr(FullDisk, "is_full", True)
    c.want(digest, len(data), a.peer.id)
    lan.pass_by(40.0)
    assert not c.told and not c.parts()
    assert len([line for line in c.log if "space" in line]) == 1
    FullDisk.is_full = False
    lan.until(lambda: c.told)
    assert c.told == [(digest, True)] and read(c, digest) == data


def test_what_is_forgotten_midway_leaves_nothing(three: Cluster, lan: Lan) -> None:
    a, _, c = three.nodes
    digest, data = content(5 << 20)
    a.files.keep_bytes(data)
    open_before = descriptors()
    c.want(digest, len(data))
    lan.until(lambda: c.transfers.wants[digest].got > 0)
    c.transfers.forget({digest, "unknown"})
    assert c.told == [(digest, False)] and not c.parts()
    c.want(digest, len(data))  # and wanted again, while old pieces still come
    lan.until(lambda: len(c.told) == 2)
    assert c.told[1] == (digest, True) and read(c, digest) == data
    assert descriptors() <= open_before


def test_small_outputs_come_from_the_database_and_large_from_their_file(
    three: Cluster, lan: Lan
) -> None:
    a, b, c = three.nodes
    small, data = content(transfer.SMALL_BYTES)
    b.database[small] = data
    large, more = content(1 << 20)
    with open(b.files.output_path(large), "wb") as file:
        file.write(more)
    missing, _ = content(10)
    c.want(small, len(data), a.peer.id, OUTPUT)
    c.want(large, len(more), "", OUTPUT)
    c.want(missing, 10, "", OUTPUT)
    lan.until(lambda: len(c.told) == 3)
    assert dict(c.told) == {small: True, large: True, missing: False}
    assert read(c, small) == data and read(c, large) == more
    assert not c.transfers.wants


# --- bounds -----------------------------------------------------------------------


def test_10000_wants_are_bounded_and_all_come(three: Cluster, lan: Lan) -> None:
    a, _, c = three.nodes
    digest, data = content(100)
    for n in range(10_000):
        c.want("%064x" % n, 100)
    c.transfers.tick(lan.now)
    assert sum(bool(want.peer) for want in c.transfers.wants.values()) == 4
    due = c.transfers.tick(lan.now)
    assert due is not None and due > lan.now  # the loop doesn't spin
    open_before = descriptors()
    c.transfers.forget({"%064x" % n for n in range(10_000)})
    assert not c.transfers.wants and len(c.told) == 10_000
    a.files.keep_bytes(data)
    c.want(digest, len(data))
    lan.until(lambda: c.files.has(digest))
    assert descriptors() <= open_before + 1
    for n in range(transfer.OUTPUTS_MAX + 5):
        c.want("%064x" % n, 100, kind=OUTPUT)
    assert c.told[-5:] == [
        ("%064x" % n, False)
        for n in range(transfer.OUTPUTS_MAX, transfer.OUTPUTS_MAX + 5)
    ]


def test_one_peer_can_make_us_open_a_bounded_number_of_files(three: Cluster) -> None:
    a, _, c = three.nodes
    digests = [a.files.keep_bytes(b"%d" % n * 50_000).digest for n in range(100)]
    before = descriptors()
    for _ in range(3):
        for digest in digests:
            fields = {"digest": digest, "offset": 0, "size": 50_000}
            a.transfers.on_frame(c.peer.id, wire.Frame(FILE, fields))
    assert descriptors() - before <= transfer.SERVES_MAX
    for n in range(100):
        fields = {"digest": "%064x" % n, "offset": 0, "size": 50}
        a.transfers.on_frame(c.peer.id, wire.Frame(OUTPUT, fields))
    assert len(a.jobs) <= transfer.SERVES_MAX
    a.peer.links.links[c.peer.id].close()
    a.turn()
    assert descriptors() < before


@pytest.mark.parametrize("field", ["digest", "offset", "size"])
def test_a_mad_question_is_logged_and_opens_nothing(three: Cluster, field: str) -> None:
    a, _, c = three.nodes
    digest = a.files.keep_bytes(b"x" * 100).digest
    good = {"digest": digest, "offset": 0, "size": 100}
    before = descriptors()
    mad: List[Any] = [None, -1, 1e308, True, 1 << 60, "../../etc/passwd", []]
    mad.append(["0"] * 64)
    for value in mad:
        a.transfers.on_frame(c.peer.id, wire.Frame(FILE, dict(good, **{field: value})))
    a.transfers.on_frame(c.peer.id, wire.Frame(FILE, {}))
    assert len(a.log) == len(mad) + 1 and descriptors() == before


def test_a_bad_disk_is_no_broken_link(three: Cluster, lan: Lan) -> None:
    a, b, c = three.nodes
    digest, data = content(100_000)
    os.mkdir(a.files.path(digest))  # pread says EISDIR
    b.files.keep_bytes(data)
    c.want(digest, len(data), a.peer.id)
    links = dict(a.peer.links.links)
    lan.until(lambda: c.told)
    lan.pass_by(3.0)
    assert c.told == [(digest, True)] and a.peer.links.links == links
