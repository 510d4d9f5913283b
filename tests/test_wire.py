"""The wire: catalogue, codec and handshake, as bytes. No socket, no clock.

Frames are exchanged with every other Python that is found here.
"""

import glob
import hmac
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest
from helpers import cpu_s

import calls
import ghostnode
import ghosts
import links
import net
import peers
import wire
from wire import (
    BadFrame,
    Decoder,
    End,
    Frame,
    Handshake,
    Hello,
    Kind,
    Role,
    Seal,
)

FOLDER = str(Path(__file__).resolve().parent.parent)
COOKIE = b"0123456789abcdef0123456789abcdef"
ALICE = Hello("00000000000000aa", "aaaaaaaaaaaaaaaa", Role.COMRADE)
BOB = Hello("00000000000000bb", "bbbbbbbbbbbbbbbb", Role.COMRADE)
GHOST = Hello("00000000000000cc", "cccccccccccccccc", Role.GHOST)


class Pair:
    """Two handshakes, then codecs, joined by a wire that cuts at random places."""

    def __init__(self, client: Handshake, server: Handshake, seed: int = 1) -> None:
        print("seed", seed)
        self.random = random.Random(seed)
        self.client, self.server = client, server
        self.said: List[bytes] = []

    def shake(self, alter: Callable[[int, bytes], bytes] = lambda n, m: m) -> "Pair":
        sides = [(self.client, self.server), (self.server, self.client)]
        for turn in range(4):
            speaker, hearer = sides[turn % 2]
            message = speaker.take()
            self.said.append(message)
            self._deliver(alter(turn, message), hearer)
        return self

    def _deliver(self, message: bytes, hearer: Handshake) -> None:
        while message and hearer.end is None and hearer.keys is None:
            size = self.random.randint(1, hearer.needs)
            hearer.feed(message[:size])
            message = message[size:]

    def codecs(self) -> Tuple[Seal, Decoder]:
        assert self.client.keys and self.server.keys
        return Seal(self.client.keys[0]), Decoder(Seal(self.server.keys[1]))

    def pour(self, data: bytes, decoder: Decoder) -> List[Frame]:
        frames = []
        while data:
            size = self.random.randint(1, min(len(data), 3000))
            decoder.feed(data[:size])
            data = data[size:]
            frames += list(iter(decoder.next, None))
        return frames


def pair(
    cookies: Tuple[bytes, bytes] = (COOKIE, COOKIE),
    client: Hello = ALICE,
    server: Hello = BOB,
    seed: int = 1,
) -> Pair:
    return Pair(
        Handshake(True, cookies[0], client), Handshake(False, cookies[1], server), seed
    )


def codec(key: bytes = b"k" * 32) -> Tuple[Seal, Decoder]:
    return Seal(key), Decoder(Seal(key))


# --- catalogue and codec --------------------------------------------------------------


def test_every_kind_is_in_the_catalogue_and_numbers_have_no_gap() -> None:
    assert list(wire.CATALOGUE) == list(Kind)
    assert [int(kind) for kind in Kind] == list(range(1, len(Kind) + 1))
    for kind, row in wire.CATALOGUE.items():
        assert row.fields.split() and set(row.may) <= set("LDR"), kind
        assert row.answer is None or isinstance(row.answer, Kind), kind


def test_every_kind_has_one_place_that_takes_it_and_every_place_a_kind() -> None:
    core = set(peers.FRAMES)
    rim = {kind.name for kind in links.OWN | wire.BULK}
    assert core & rim <= {"BYE"}  # a link's end, and what it says, concern both
    ghosts_too = set(ghosts.GHOST_FRAMES) | set(ghostnode.GHOSTS_FRAMES)
    relayed = {kind.name for kind in wire.BULK} | {"HEARTBEAT", "OUTPUT", "BYE"}
    called = set(calls.OF_GHOSTS) | set(calls.PASSING)
    post = {kind.name for kind in wire.POST}  # letters.py takes them, on any node
    found = core | rim | ghosts_too | relayed | called | post
    assert found == {kind.name for kind in wire.CATALOGUE}


@pytest.mark.parametrize("seed", range(20))
def test_frames_cut_anywhere_come_out_as_they_went_in(seed: int) -> None:
    joined = pair(seed=seed).shake()
    seal, decoder = joined.codecs()
    frames = [
        Frame(Kind.RECORDS, {"n": seed, "records": {"a": "\udc80 \u20ac" * 9000}}),
        Frame(Kind.HEARTBEAT, {"heard": 2**64 - 1, "load": 0.5, "root": None}),
        Frame(Kind.FILE_PIECE, {"offset": 0}, os.urandom(net.PIECE_BYTES)),
        Frame(Kind.OUTPUT_PIECE, {}, b""),
    ]
    data = b"".join(seal.seal(f.kind, wire.encode(*f)) for f in frames)
    assert joined.pour(data, decoder) == frames
    assert decoder.seal.seq == seal.seq == len(frames)


def test_the_largest_frame_passes_and_a_larger_one_is_refused_where_it_is_made() -> (
    None
):
    seal, decoder = codec()
    room = wire.PAYLOAD_BYTES_MAX - len(wire.encode(Kind.FILE_PIECE, {}))
    sealed = seal.seal(*_payload(Kind.FILE_PIECE, {}, bytes(room)))
    assert len(sealed) == wire.FRAME_BYTES_MAX
    decoder.feed(sealed)
    frame = decoder.next()
    assert frame is not None and len(frame.body) == room
    for wrong in (
        (Kind.FILE_PIECE, {}, bytes(room + 1)),
        (Kind.FILE_PIECE, {"a": "x" * 70000}, b""),
        (Kind.PING, {"n": float("nan")}, b""),
        (Kind.PING, {"n": 1}, b"bytes"),
    ):
        with pytest.raises(ValueError):
            wire.encode(*wrong)


def _payload(kind: Kind, fields: Any, body: bytes = b"") -> Tuple[Kind, bytes]:
    return kind, wire.encode(kind, fields, body)


@pytest.mark.parametrize("length", [0, wire.PAYLOAD_BYTES_MAX + 1, 0xFFFFFFFF])
def test_a_wrong_length_poisons_the_decoder(length: int) -> None:
    _, decoder = codec()
    decoder.feed(wire.HEAD.pack(length, Kind.PING) + bytes(16))
    for _ in range(2):
        with pytest.raises(BadFrame):
            decoder.next()
        decoder.feed(b"more")


def test_a_long_frame_announced_costs_nothing_until_its_bytes_come() -> None:
    _, decoder = codec()
    decoder.feed(wire.HEAD.pack(wire.PAYLOAD_BYTES_MAX, Kind.RECORDS))
    assert decoder.next() is None
    assert sys.getsizeof(decoder._bytes) < 200


def test_an_unknown_kind_is_refused_before_its_payload_comes() -> None:
    _, decoder = codec()
    decoder.feed(wire.HEAD.pack(1000, 200))
    with pytest.raises(BadFrame, match="unknown kind 200"):
        decoder.next()


JUNK = {
    "empty": b"",
    "no object": b"[1]",
    "a string": b'"a"',
    "half": b'{"a":',
    "more after it": b"{}{}",
    "NaN": b'{"a":NaN}',
    "infinity": b'{"a":-Infinity}',
    "infinity in disguise": b'{"a":1e999}',
    "a key twice": b'{"a":1,"a":2}',
    "a key twice, deep": b'{"b":[{"a":1,"a":2}]}',
    "no UTF-8": b'{"a":"\xff"}',
    "a raw surrogate": b'{"a":"\xed\xa0\x80"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "33 digits": b'{"a":' + b"9" * 33 + b"}",
    "10,000 digits": b'{"a":' + b"9" * 10000 + b"}",
    "a million digits": b'{"a":' + b"9" * 1000000 + b"}",
    "a long fraction": b'{"a":0.' + b"9" * 10000 + b"}",
    "33 levels": b'{"a":' + b"[" * 33 + b"]" * 33 + b"}",
    "deep lists": b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}",
    "deep lists, open": b"[" * 1000000,
    "deep objects": b'{"a":' * 100000 + b"1" + b"}" * 100000,
}


@pytest.mark.parametrize("name", JUNK)
def test_an_authentic_frame_of_junk_poisons_the_decoder(name: str) -> None:
    for kind, payload in (
        (Kind.RECORDS, JUNK[name]),
        (Kind.FILE_PIECE, wire.RAW_HEAD.pack(min(len(JUNK[name]), 65535)) + JUNK[name]),
    ):
        seal, decoder = codec()
        decoder.feed(seal.seal(kind, payload))
        with pytest.raises(BadFrame):
            decoder.next()
        decoder.feed(seal.seal(Kind.PING, b'{"n":1}'))
        with pytest.raises(BadFrame):
            decoder.next()


def test_a_raw_head_longer_than_its_frame_is_a_bad_frame() -> None:
    for payload in (b"", b"\0", b"\0\3{}"):
        with pytest.raises(BadFrame):
            wire.decode(Kind.FILE_PIECE, payload)


def test_what_may_be_deep_and_long_still_passes() -> None:
    value: Any = 1
    for _ in range(wire.JSON_DEPTH_MAX - 1):
        value = [value]
    for fields in ({"a": value}, {"a": -(2**63)}, {"a": 2**64 - 1}, {"a": 5e-324}):
        payload = wire.encode(Kind.PING, fields)
        assert wire.decode(Kind.PING, payload).fields == fields


@pytest.mark.parametrize("change", ["doubled", "swapped", "lost", "flipped", "foreign"])
def test_frames_not_in_order_once_and_whole_are_refused(change: str) -> None:
    seal, decoder = codec()
    a, b, c = (seal.seal(Kind.PING, b'{"n":%d}' % n) for n in range(3))
    data = {
        "doubled": a + a,
        "swapped": b + a,
        "lost": a + c,
        "flipped": a + bytes([b[0], b[1], b[2], b[3], b[4] ^ 1]) + b[5:],
        "foreign": a + Seal(b"other" * 6).seal(Kind.PING, b"{}"),
    }[change]
    decoder.feed(data)
    with pytest.raises(BadFrame, match="tag"):
        decoder.next()
        decoder.next()


def test_20000_mutilated_streams_give_frames_or_one_error() -> None:
    seed = 20
    print("seed", seed)
    dice = random.Random(seed)
    kinds = list(Kind)
    for _ in range(20000):
        seal, decoder = codec()
        data = bytearray()
        for _ in range(dice.randint(1, 3)):
            body = bytes(dice.choices(b'{}[]":,1e\\u-nx\xff\0', k=dice.randint(0, 30)))
            data += seal.seal(dice.choice(kinds), body)
        for _ in range(dice.randint(0, 3)):
            at = dice.randrange(len(data) + 1)
            data[at : at + dice.randint(0, 5)] = dice.choices(range(256), k=3)
        _drain(decoder, bytes(data), dice)


def _drain(decoder: Decoder, data: bytes, dice: random.Random) -> None:
    cut = dice.randrange(len(data) + 1)
    try:
        for part in (data[:cut], data[cut:]):
            decoder.feed(part)
            for frame in iter(decoder.next, None):
                assert isinstance(frame, Frame) and isinstance(frame.fields, dict)
    except BadFrame:
        pass


# --- handshake ------------------------------------------------------------------------


def test_hmac_is_that_of_the_standard_library() -> None:
    dice = random.Random(3)
    for size in (0, 1, 63, 64, 65, 200):
        key, message = bytes(dice.choices(range(256), k=size)), os.urandom(size)
        assert wire.hmac_sha256(key, message) == hmac.digest(key, message, "sha256")


@pytest.mark.parametrize("seed", range(20))
def test_equal_cookies_authenticate_with_a_key_for_each_direction(seed: int) -> None:
    joined = pair(seed=seed).shake()
    client, server = joined.client, joined.server
    assert client.keys and server.keys and client.end is server.end is None
    assert client.peer == BOB and server.peer == ALICE
    assert client.keys == server.keys[::-1] and client.keys[0] != client.keys[1]
    assert [len(message) for message in joined.said] == [75, 75, 32, 32]


def test_no_message_shows_the_cookie_and_no_two_sessions_share_a_key() -> None:
    first, second = pair().shake(), pair().shake()
    assert COOKIE not in b"".join(first.said)
    assert not set(first.said) & set(second.said)
    assert first.client.keys and second.client.keys
    assert not set(first.client.keys) & set(second.client.keys)


@pytest.mark.parametrize(
    "other", [b"x", COOKIE[:-1], COOKIE + b"\n", bytes([COOKIE[0] ^ 1]) + COOKIE[1:]]
)
def test_a_wrong_cookie_is_named_on_both_sides(other: bytes) -> None:
    for cookies in ((COOKIE, other), (other, COOKIE)):
        joined = pair(cookies).shake()
        assert joined.client.end is joined.server.end is End.WRONG_COOKIE
        assert joined.client.keys is joined.server.keys is None
        assert joined.said[2] == b""  # nothing is proved to a stranger


def test_an_empty_cookie_is_refused_before_a_byte_is_sent() -> None:
    with pytest.raises(ValueError, match="empty"):
        Handshake(True, b"", ALICE)


def test_an_impostor_with_the_right_fingerprint_fails_and_both_sides_know() -> None:
    for cheat in (0, 1):
        cookies = [COOKIE, COOKIE]
        cookies[cheat] = b"stolen fingerprint, no cookie"
        joined = pair((cookies[0], cookies[1]))
        for side in (joined.client, joined.server):
            side._cluster = wire.fingerprint(COOKIE)
            side._hello = side._hello.replace(
                wire.fingerprint(cookies[cheat]), side._cluster
            )
        joined.client._outgoing = joined.client._hello
        joined.shake()
        assert joined.server.end is End.WRONG_COOKIE
        assert joined.client.end is End.WRONG_COOKIE
        assert joined.said[3] == wire.REFUSED_PROOF


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"ab",', b'"a":1,', b'"",'])
def test_a_frame_of_very_many_values_costs_no_memory(unit: bytes) -> None:
    opened, closed = (b"{", b"}") if b":" in unit else (b'{"a":[', b"0]}")
    payload = opened + unit * 200000 + closed

    def read() -> None:
        with pytest.raises(wire.BadFrame, match="too many"):
            wire.decode(Kind.PING, payload)

    assert cpu_s(read) < 0.5


@pytest.mark.parametrize("text", ["[" * 120000, "{:,}" * 30000, '"[' * 60000, "\\" * 9])
def test_brackets_in_a_command_are_no_lists(text: str) -> None:
    payload = wire.encode(Kind.RECORDS, {"r": [text]})
    assert wire.decode(Kind.RECORDS, payload).fields["r"] == [text]


def test_another_version_is_named_on_both_sides() -> None:
    newer = BOB._replace(version=wire.VERSION + 1)
    for client, server in ((ALICE, newer), (newer, ALICE)):
        joined = pair(client=client, server=server).shake()
        assert joined.client.end is joined.server.end is End.WRONG_VERSION


def test_a_connection_to_oneself_is_named() -> None:
    joined = pair(server=ALICE).shake()
    assert joined.client.end is joined.server.end is End.SELF
    twin = BOB._replace(node=ALICE.node)  # a clone, or before a restart: not oneself
    assert pair(server=twin).shake().client.keys


def test_ones_own_hello_reflected_is_refused() -> None:
    client = Handshake(True, COOKIE, ALICE)
    client.feed(client.take())
    assert client.end is End.SELF


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-", b"\0", b"Leoronix"]
)
def test_junk_is_refused_at_once_and_not_answered(junk: bytes) -> None:
    for dialled in (True, False):
        side = Handshake(dialled, COOKIE, ALICE)
        side.take()
        side.feed(junk)
        assert side.end is End.NOT_OURS and side.take() == b""


def test_a_replayed_client_is_refused() -> None:
    old = pair().shake().said
    server = Handshake(False, COOKIE, BOB)
    server.feed(old[0])
    server.take()
    server.feed(old[2])
    assert server.end is End.WRONG_COOKIE and server.take() == wire.REFUSED_PROOF


def test_a_replayed_server_is_refused() -> None:
    old = pair().shake().said
    client = Handshake(True, COOKIE, ALICE)
    client.take()
    client.feed(old[1])
    client.feed(old[3])
    assert client.end is End.WRONG_COOKIE


def test_a_proof_of_one_direction_is_no_proof_of_the_other() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    server.feed(client.take())
    client.feed(server.take())
    client.feed(client.take())  # its own proof, reflected
    assert client.end is End.WRONG_COOKIE and client.keys is None


def test_a_proof_relayed_into_another_session_is_refused() -> None:
    victim, server = Handshake(True, COOKIE, ALICE), Handshake(False, COOKIE, BOB)
    rogue_hello = Handshake(True, COOKIE, GHOST._replace(role=Role.COMRADE)).take()
    victim.take()
    server.feed(rogue_hello)
    victim.feed(server.take())
    server.feed(victim.take())
    assert server.end is End.WRONG_COOKIE


def test_any_byte_changed_on_the_way_prevents_the_handshake() -> None:
    for turn, size in ((0, 75), (1, 75), (2, 32)):
        for at in range(size):

            def flip(n: int, message: bytes, turn: int = turn, at: int = at) -> bytes:
                if n != turn or not message:
                    return message
                return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]

            joined = pair().shake(flip)
            assert joined.client.keys is None, (turn, at)
            assert joined.server.keys is None, (turn, at)


def test_messages_cut_short_leave_the_handshake_waiting() -> None:
    for turn in range(4):
        joined = pair().shake(lambda n, m, turn=turn: m[:-1] if n == turn else m)
        assert joined.client.keys is None and joined.client.end is None
        assert turn == 3 or joined.server.keys is None


def test_who_relays_a_handshake_can_neither_inject_nor_reflect_nor_read_ahead() -> None:
    joined = pair().shake()  # every byte went through the relay's hands
    assert joined.client.keys and joined.server.keys
    injected = Seal(wire.hmac_sha256(b"guess", b"".join(joined.said)))
    decoder = Decoder(Seal(joined.server.keys[1]))
    decoder.feed(injected.seal(Kind.BYE, b'{"why":"closing"}'))
    with pytest.raises(BadFrame, match="tag"):
        decoder.next()
    back = Decoder(Seal(joined.client.keys[1]))
    back.feed(Seal(joined.client.keys[0]).seal(Kind.PING, b"{}"))
    with pytest.raises(BadFrame, match="tag"):
        back.next()


def test_20000_mutilated_handshakes_authenticate_nobody() -> None:
    seed = 21
    print("seed", seed)
    dice = random.Random(seed)
    good = pair().shake().said
    for _ in range(20000):
        dialled = dice.random() < 0.5
        side = Handshake(dialled, COOKIE, ALICE if dialled else BOB, nonce=b"n" * 32)
        side.take()
        data = bytearray(good[1] + good[3] if dialled else good[0] + good[2])
        for _ in range(dice.randint(0, 4)):
            at = dice.randrange(len(data) + 1)
            data[at : at + dice.randint(0, 3)] = dice.choices(range(256), k=2)
        while data and side.end is None:
            size = dice.randint(1, side.needs)
            side.feed(bytes(data[:size]))
            del data[:size]
            assert side.keys is None
        assert len(side.take()) <= 75 + 32


def test_only_who_has_a_role_that_is_wanted_is_answered() -> None:
    ghost = Handshake(True, COOKIE, GHOST)
    server = Handshake(False, COOKIE, BOB, roles=(Role.COMRADE,))
    server.feed(ghost.take())
    assert server.end is End.NOT_OURS and server.take() == b""
    both = Handshake(False, COOKIE, BOB, roles=(Role.COMRADE, Role.GHOST))
    ghost = Handshake(True, COOKIE, GHOST)
    both.feed(ghost.take())
    ghost.feed(both.take())
    both.feed(ghost.take())
    ghost.feed(both.take())
    assert ghost.keys and both.keys and both.peer == GHOST


def test_a_server_takes_the_one_cookie_that_is_named_of_those_it_has() -> None:
    new, old = b"n" * 32, b"o" * 32
    others = {wire.fingerprint(cookie): cookie for cookie in (new, old)}
    for cookie, works in ((new, True), (old, True), (COOKIE, False)):
        server = Handshake(False, new, BOB, others=others)
        client = Handshake(True, cookie, ALICE)
        Pair(client, server, 1).shake()
        assert bool(client.keys and server.keys) == works
        if works:
            assert server.cookie == client.cookie == cookie
        else:
            assert server.end is client.end is End.WRONG_COOKIE and server.cookie == new


def test_who_names_one_cookie_and_has_another_is_refused() -> None:
    new, old = b"n" * 32, b"o" * 32
    server = Handshake(False, new, BOB, others={wire.fingerprint(old): old})
    client = Handshake(True, old, ALICE)
    server.feed(client.take())
    client.cookie = new  # he knows the newest, and names the old one; or the reverse
    client.feed(server.take())
    server.feed(client.take())
    assert server.end is End.WRONG_COOKIE and not server.keys
    assert server.take() == wire.REFUSED_PROOF


def test_one_that_dials_is_bound_to_the_cookie_it_has_named() -> None:
    new, old = b"n" * 32, b"o" * 32
    client = Handshake(True, new, ALICE, others={wire.fingerprint(old): old})
    client.take()
    client.feed(Handshake(False, old, BOB)._hello)
    assert client.end is End.WRONG_COOKIE and client.take() == b""


def test_a_secret_is_not_to_be_read_on_the_wire_and_comes_out_as_it_went_in() -> None:
    fields = {"cookie": "1-" + "ab" * 32, "grace": 5.0}
    payload = wire.encode(Kind.NEW_COOKIE, fields)
    seal, decoder = codec()
    seen = set()
    for _ in range(3):
        data = seal.seal(Kind.NEW_COOKIE, payload)
        assert b"ab" * 8 not in data and b"cookie" not in data
        seen.add(data[wire.HEAD.size : -wire.TAG_BYTES])
        decoder.feed(data)
        assert decoder.next() == Frame(Kind.NEW_COOKIE, fields)
    assert len(seen) == 3  # the same secret is never veiled twice alike
    veiled = Seal(b"k" * 32).veil(b"\0" * wire.SECRET_BYTES_MAX)
    blocks = [veiled[i : i + 64] for i in range(0, len(veiled), 64)]
    assert len(set(blocks)) == len(blocks) == 16
    _, other = codec(b"j" * 32)
    other.feed(Seal(b"k" * 32).seal(Kind.NEW_COOKIE, payload))
    with pytest.raises(BadFrame, match="a wrong tag"):
        other.next()


def test_a_secret_that_is_announced_too_long_is_not_waited_for() -> None:
    _, decoder = codec()
    decoder.feed(wire.HEAD.pack(wire.SECRET_BYTES_MAX + 1, Kind.NEW_COOKIE))
    with pytest.raises(BadFrame, match="a secret of 1025 bytes"):
        decoder.next()


PEER = """
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import wire
shake = wire.Handshake(False, b"0123456789abcdef0123456789abcdef",
                      wire.Hello("00000000000000bb", "b" * 16, wire.Role.COMRADE))
read, write = sys.stdin.buffer, sys.stdout.buffer
while shake.keys is None:
    shake.feed(read.read(shake.needs))
    write.write(shake.take())
    write.flush()
seal, decoder = wire.Seal(shake.keys[0]), wire.Decoder(wire.Seal(shake.keys[1]))
decoder.feed(read.read(int(read.readline())))
for frame in iter(decoder.next, None):
    write.write(seal.seal(frame.kind, wire.encode(*frame)))
write.flush()
"""


def find_python(minor: int) -> str:
    """Find a Python 3 of that minor version: on the PATH, or where pyenv keeps them."""
    name = "python3.%d" % minor
    kept = "~/.pyenv/versions/3.%d.*/bin/python" % minor
    found = [shutil.which(name) or "", *glob.glob(os.path.expanduser(kept))]
    version = "import sys; print(sys.version_info[1])"
    for python in filter(None, found):
        said = subprocess.run([python, "-c", version], stdout=subprocess.PIPE)
        if said.stdout.split() == [b"%d" % minor]:  # a shim of pyenv may have none
            return python
    return ""


@pytest.mark.parametrize("minor", range(7, 15))
def test_another_python_speaks_the_same(minor: int) -> None:
    python = find_python(minor)
    if not python:
        pytest.skip("no python3.%d" % minor)
    command = [python, "-c", PEER, FOLDER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as peer:
        assert peer.stdin and peer.stdout
        client = Handshake(True, COOKIE, ALICE)
        for size in (75, 32):
            peer.stdin.write(client.take())
            peer.stdin.flush()
            client.feed(peer.stdout.read(size))
        assert client.keys and client.peer == BOB
        seal, decoder = Seal(client.keys[0]), Decoder(Seal(client.keys[1]))
        frames = [
            Frame(
                Kind.RECORDS, {"n": 2**64 - 1, "r": {"a": "\udcff\u20ac\0", "f": 0.1}}
            ),
            Frame(Kind.FILE_PIECE, {"offset": 1}, os.urandom(5000)),
        ]
        data = b"".join(seal.seal(f.kind, wire.encode(*f)) for f in frames)
        peer.stdin.write(b"%d\n" % len(data) + data)
        peer.stdin.close()
        decoder.feed(peer.stdout.read())
        assert list(iter(decoder.next, None)) == frames
