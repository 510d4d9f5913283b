"""The wire of a cluster: the catalogue of messages, their bytes, and the handshake.

Reason for this file beside net.py: all of it can be read, and tested, without a socket;
the relay and the ghosts speak it too.

Rules: what a byte on a TCP connection means is written here and nowhere else. No I/O
but `os.urandom`, no clock. Nothing here knows what a frame is for.

    Handshake --keys--> Seal (sending), Decoder(Seal) (receiving) --> Frame

Handshake (client C, server S, K the cookie, | joins; each message has a fixed size):
    1  C  hello_c = magic version role nonce fingerprint node writer
    2  S  hello_s
    3  C  HMAC(K, "leoronic1 client proof" | hello_c | hello_s)
    4  S  HMAC(K, "leoronic1 server proof" | hello_c | hello_s | 3), or zeros: refused
Who sees another version or fingerprint in a hello stops there, and knows why. A server
that has several cookies (jar.py) takes the one that hello_c names: none is tried out.
Each direction's key is an HMAC of a label of its own and both hellos.
Frame: payload length u32, kind u8, payload, 16 bytes of BLAKE2b, keyed, over a 64-bit
sequence number (never sent) and all before it. A payload is a JSON object; that of a
raw kind is the u16 length of one, the object, and bytes as they are. That of a secret
kind is veiled: XORed with BLAKE2b, keyed, of the sequence number and a block's number.

Invariants (D14): before authentication bytes reach fixed-size parsing alone. No frame
is accepted twice, out of order, or from another connection; after the first bad one a
decoder gives nothing any more.

Not done: secrecy (all else can be read on the LAN), compression.
"""

import json
import os
import re
import struct
from enum import Enum, IntEnum
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

# The private modules are small; hashlib and hmac load OpenSSL (3.5 MiB).
try:
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b
try:
    from _operator import _compare_digest as same_digest
except ImportError:
    from hmac import compare_digest as same_digest  # type: ignore[no-redef]  # the same
try:
    from _sha2 import sha256  # Python 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256

FRAME_BYTES_MAX = 1 << 20  # a record with the longest command, escaped, fits
JSON_DEPTH_MAX = 32  # a record needs 8; newer versions may add some
# What costs far more memory than its bytes, outside of texts: 12 MiB and 60 ms a frame.
JSON_MARKS_MAX = ((b"[{", 50_000), (b":", 40_000), (b",", 100_000))
JSON_SHORT = min(most for _, most in JSON_MARKS_MAX)  # bytes: it can't have so many
JSON_QUOTES_MAX = 120_000  # of a frame in which the marks must be told from texts
JSON_NUMBER_DIGITS_MAX = 32  # 64-bit integers and any float; int() is quadratic

MAGIC = b"Leoronic"
# 2: MEMBER has call and heeds, and there are letters. 3: there is NEW_COOKIE.
VERSION = 3
FINGERPRINT_BYTES, NONCE_BYTES, PROOF_BYTES, TAG_BYTES = 16, 32, 32, 16
NO_CLUSTER = bytes(FINGERPRINT_BYTES)  # of one who has no cookie yet
REFUSED_PROOF = bytes(PROOF_BYTES)
HEAD = struct.Struct("!IB")
RAW_HEAD = struct.Struct("!H")
SEQUENCE = struct.Struct("!Q")
VEIL_BYTES = 64  # of a block: the longest BLAKE2b
SECRET_BYTES_MAX = 1024  # of a secret frame: before its tag is known it costs no more
HELLO = struct.Struct(f"!8sHB{NONCE_BYTES}s{FINGERPRINT_BYTES}s8s8s")
HELLO_START = struct.Struct("!8sH")  # the same in every version
PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX - HEAD.size - TAG_BYTES

Fields = Dict[str, Any]


class BadFrame(Exception):
    """The peer's bytes are not a frame: nothing of it happened; close the link."""


class End(Enum):
    """How a dial, a handshake or a link ended; the value is the words for a user."""

    REFUSED = "it refuses connections: no Leoronic runs there"
    UNREACHABLE = "there is no way to it: is it on, and on this network?"
    SILENT = "it doesn't answer: is it on?"
    BUSY = "it is busy with too many connections"
    LATE = "it did not complete the handshake in time"
    NOT_OURS = "what answers there is not Leoronic"
    WRONG_VERSION = "it runs another version of Leoronic: update the older one"
    WRONG_COOKIE = "it has another cookie: copy one machine's cookie file to the others"
    GIVEN = "its socket was given to another process"  # see Link.give
    SELF = "it is this very process"
    STOPPING = "it is being stopped"
    CLOSING = "it closed this link"
    EOF = "its end of the link is gone"
    RESET = "the link broke"
    BAD_FRAME = "what came was damaged or forged"
    OVERRUN = "it is too far behind"
    CLOSED = "closed here"


class Kind(IntEnum):
    """What a frame says. Append only: the numbers are the wire's."""

    HEARTBEAT = 1
    MEMBER = 2
    RECORDS = 3
    GOT = 4
    STORED = 5
    PURGED = 6
    TREE = 7
    LEAF = 8
    MARK = 9
    MARKED = 10
    ALIVE = 11
    ALIVE_ANSWER = 12
    STOP = 13
    DRAIN = 14
    ROUTE = 15
    BYE = 16
    PING = 17
    PONG = 18
    FILE_WANT = 19
    FILE_PIECE = 20
    OUTPUT_WANT = 21
    OUTPUT_PIECE = 22
    GHOST = 23
    ATTACH = 24
    COMRADES = 25
    CHECK = 26
    OFFER = 27
    OUTPUT = 28
    CALL = 29
    ANSWER = 30
    TAKEN = 31
    KEEP = 32
    KEPT = 33
    HANGUP = 34
    LETTER = 35
    REPLY = 36
    NEW_COOKIE = 37


class Row(NamedTuple):
    """One kind. `may`: be Lost, Doubled, Reordered (by a new link) without harm."""

    fields: str  # names; those of a raw kind's head
    sender: str
    receiver: str
    may: str
    answer: Optional[Kind] = None
    raw: bool = False  # bytes follow the fields


_C, _O, _G, _K, _N = "comrade coordinator ghost clairvoyant node".split()
CATALOGUE: Dict[Kind, Row] = {
    Kind.HEARTBEAT: Row("n heard root", _C, _C, "LDR"),
    Kind.MEMBER: Row(
        "id writer starts seq name address role cores memory free_memory free_disk"
        " holds tags draining stuck links claim ready dead follows call heeds",
        *(_C, _C, "LDR"),
    ),
    Kind.RECORDS: Row("n r store", _C, _C, "LDR", Kind.GOT),
    Kind.GOT: Row("n", _C, _C, "LD"),
    Kind.STORED: Row("n ok", _C, _C, "LD"),
    Kind.PURGED: Row("n w", _C, _C, "LDR", Kind.GOT),
    Kind.TREE: Row("t ask", _C, _C, "LD", Kind.LEAF),
    Kind.LEAF: Row("n leaf k", _C, _C, "LD", Kind.GOT),
    Kind.MARK: Row("p", _C, _C, "LD", Kind.MARKED),
    Kind.MARKED: Row("p", _C, _C, "LD"),
    Kind.ALIVE: Row("run", _O, _C, "LDR", Kind.ALIVE_ANSWER),
    Kind.ALIVE_ANSWER: Row("run yes", _C, _O, "LDR"),
    Kind.STOP: Row("run smaller", _O, _C, "LDR"),
    Kind.DRAIN: Row("on", _C, _C, "LD"),
    Kind.ROUTE: Row("kind fields to origin hops", _C, _C, "LDR"),
    Kind.BYE: Row("why", _C, _C, "L"),  # why: stopping | closing | clone
    Kind.PING: Row("n", _C, _C, "LDR", Kind.PONG),
    Kind.PONG: Row("n", _C, _C, "LDR"),
    Kind.FILE_WANT: Row("digest offset size", _C, _C, "LDR", Kind.FILE_PIECE),
    Kind.FILE_PIECE: Row("digest offset size", _C, _C, "LD", raw=True),
    Kind.OUTPUT_WANT: Row("digest offset size", _C, _C, "LDR", Kind.OUTPUT_PIECE),
    Kind.OUTPUT_PIECE: Row("digest offset size", _C, _C, "LD", raw=True),
    Kind.GHOST: Row("id session seq at state offer", _C, _C, "LDR"),
    Kind.ATTACH: Row("n session term former runs offer", _G, _K, "LD", Kind.COMRADES),
    Kind.COMRADES: Row("n name addresses term", _K, _G, "LDR"),
    Kind.CHECK: Row("conditions on more", _K, _G, "LD", Kind.OFFER),
    Kind.OFFER: Row("offer", _G, _K, "LDR"),
    Kind.OUTPUT: Row("digest", _G, _K, "LD", raw=True),
    Kind.CALL: Row("call", _G, _K, "R", Kind.TAKEN, raw=True),
    Kind.ANSWER: Row("call over", _K, _G, "R", Kind.TAKEN, raw=True),
    Kind.TAKEN: Row("call", _G, _K, "R"),
    Kind.KEEP: Row("call path", _K, _G, "R", Kind.KEPT),
    Kind.KEPT: Row("call digest size mode error errno", _G, _K, "R"),
    Kind.HANGUP: Row("call", _G, _K, "DR"),
    Kind.LETTER: Row("n to origin verb args hops", _N, _N, "LDR", Kind.REPLY, raw=True),
    Kind.REPLY: Row("n to origin said hops", _N, _N, "LDR", raw=True),
    Kind.NEW_COOKIE: Row("cookie grace", _N, _N, "LDR"),
}
# No core's concern: letters.py, jar.py.
POST = frozenset((Kind.LETTER, Kind.REPLY, Kind.NEW_COOKIE))
SECRET = frozenset((Kind.NEW_COOKIE,))  # not to be read on the LAN
# What is large, and goes beside everything else (transfer.py).
BULK = frozenset((Kind.FILE_WANT, Kind.FILE_PIECE, Kind.OUTPUT_WANT, Kind.OUTPUT_PIECE))
_RAW = frozenset(kind for kind, row in CATALOGUE.items() if row.raw)
_KINDS = {int(kind): kind for kind in Kind}


class Frame(NamedTuple):
    """What a link carries; `body` is empty unless the kind is raw."""

    kind: Kind
    fields: Fields
    body: bytes = b""


def _object(pairs: List[Tuple[str, Any]]) -> Fields:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key comes twice")
    return result


def _int(text: str) -> int:
    if len(text) > JSON_NUMBER_DIGITS_MAX:
        raise ValueError("too long a number")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= JSON_NUMBER_DIGITS_MAX else float("inf")
    if value in (float("inf"), float("-inf")):  # 1e999 is no NaN to the parser
        raise ValueError("too great a number")
    return value


def _constant(text: str) -> None:
    raise ValueError(text + " is no JSON")


_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_from_json = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_int,
    parse_float=_float,
    parse_constant=_constant,
).decode


def encode(kind: Kind, fields: Fields, body: bytes = b"") -> bytes:
    """Return the payload; ValueError if it can't be a frame (the caller's fault)."""
    payload = _to_json(fields).encode("ascii")
    if kind in _RAW:
        if len(payload) > 0xFFFF:
            raise ValueError(f"{kind.name} with a head of {len(payload)} bytes")
        payload = RAW_HEAD.pack(len(payload)) + payload + body
    elif body:
        raise ValueError(f"{kind.name} is not raw")
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"{kind.name} of {len(payload)} bytes")
    return payload


def decode(kind: Kind, payload: bytes) -> Frame:
    """Return the frame of an authentic payload, or raise BadFrame."""
    body = b""
    try:
        if kind in _RAW:
            end = RAW_HEAD.size + RAW_HEAD.unpack_from(payload)[0]
            if len(payload) < end:
                raise ValueError("a head longer than the frame")
            payload, body = payload[RAW_HEAD.size : end], payload[end:]
        if _has_many(payload):
            raise ValueError("too many values")
        fields = _from_json(payload.decode("utf-8"))
        if sum(map(payload.count, b"[{")) > JSON_DEPTH_MAX:  # else it isn't deep
            _check_depth(fields)
    except (ValueError, RecursionError, struct.error) as error:
        raise BadFrame(f"{kind.name}: {error}") from None
    if not isinstance(fields, dict):
        raise BadFrame(f"{kind.name}: not an object")
    return Frame(kind, fields, body)


def _has_many(payload: bytes) -> bool:
    if len(payload) <= JSON_SHORT or not _is_over(payload):
        return False
    # A command may be full of brackets: look closer.
    is_mad = payload.count(b'"') > JSON_QUOTES_MAX
    return is_mad or _is_over(_TEXT.sub(b"", payload))


def _is_over(payload: bytes) -> bool:
    return any(sum(map(payload.count, marks)) > most for marks, most in JSON_MARKS_MAX)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH_MAX + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError("too deep")


class Seal:
    """One direction's key and count of frames; both ends hold an equal one."""

    __slots__ = ("_key", "seq")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.seq = 0  # frames sealed, or found good, so far

    def tag(self, signed: bytes) -> bytes:
        """Return the tag of the next frame's head and payload, and count it."""
        digest = blake2b(SEQUENCE.pack(self.seq), key=self._key, digest_size=TAG_BYTES)
        digest.update(signed)
        self.seq += 1
        return digest.digest()

    def veil(self, payload: bytes) -> bytes:
        """Veil the payload of the next frame, or lift its veil."""
        stream = b"".join(
            blake2b(
                SEQUENCE.pack(self.seq) + SEQUENCE.pack(block),
                key=self._key,
                person=b"leoronic veil",
            ).digest()
            for block in range(len(payload) // VEIL_BYTES + 1)
        )
        return bytes(one ^ other for one, other in zip(payload, stream))

    def seal(self, kind: Kind, payload: bytes) -> bytes:
        """Return the next frame's bytes; they must be sent in this very order."""
        if kind in SECRET:
            payload = self.veil(payload)
        signed = HEAD.pack(len(payload), kind) + payload
        return signed + self.tag(signed)


class Decoder:
    """Bytes in, frames out. After the first bad frame it gives nothing any more."""

    def __init__(self, seal: Seal) -> None:
        self.seal = seal
        self._bytes = bytearray()  # grows with what came, not with what was announced
        self._wrong = ""

    def feed(self, data: bytes) -> None:
        """Take bytes as they come; call `next` until None before the next feed."""
        if not self._wrong:
            self._bytes += data

    def next(self) -> Optional[Frame]:
        """Return the next frame, None if more bytes are needed, or raise BadFrame."""
        if not self._wrong:
            try:
                return self._next()
            except BadFrame as bad:
                self._wrong = str(bad)
                self._bytes = bytearray()
        raise BadFrame(self._wrong)

    def _next(self) -> Optional[Frame]:
        if len(self._bytes) < HEAD.size:
            return None
        length, number = HEAD.unpack_from(self._bytes)
        if length > PAYLOAD_BYTES_MAX:
            raise BadFrame(f"a frame of {length} bytes")
        if number not in _KINDS:
            raise BadFrame(f"a frame of the unknown kind {number}")
        if _KINDS[number] in SECRET and length > SECRET_BYTES_MAX:
            raise BadFrame(f"a secret of {length} bytes")
        end = HEAD.size + length
        if len(self._bytes) < end + TAG_BYTES:
            return None
        with memoryview(self._bytes) as view:
            signed, tag = bytes(view[:end]), bytes(view[end : end + TAG_BYTES])
        del self._bytes[: end + TAG_BYTES]
        kind, payload = _KINDS[number], signed[HEAD.size :]
        if kind in SECRET:
            payload = self.seal.veil(payload)  # the tag counts this frame
        if not same_digest(self.seal.tag(signed), tag):
            raise BadFrame("a wrong tag")
        return decode(kind, payload)


# --- Handshake ------------------------------------------------------------------------


class Role(IntEnum):
    """What a process is to the cluster."""

    COMRADE = 1
    GHOST = 2


class Hello(NamedTuple):
    """Who speaks: `node` and `writer` are 16 lower-case hexadecimal digits."""

    node: str
    writer: str
    role: Role
    version: int = VERSION


_INNER = bytes(x ^ 0x36 for x in range(256))
_OUTER = bytes(x ^ 0x5C for x in range(256))


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """Return RFC 2104's HMAC with SHA-256."""
    block = (sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner: bytes = sha256(block.translate(_INNER) + message).digest()
    outer: bytes = sha256(block.translate(_OUTER) + inner).digest()
    return outer


def fingerprint(cookie: bytes) -> bytes:
    """Return the cluster's public name, which doesn't give the cookie away."""
    if not cookie:
        raise ValueError("the cookie is empty")
    return hmac_sha256(cookie, b"leoronic1 cluster")[:FINGERPRINT_BYTES]


def parse_hello(message: bytes) -> Optional[Hello]:
    """Return who the first HELLO.size bytes claim to be from; None if not ours."""
    magic, version, role, _, _, node, writer = HELLO.unpack(message)
    if magic != MAGIC or role not in (Role.COMRADE, Role.GHOST):
        return None
    return Hello(node.hex(), writer.hex(), Role(role), version)


class Handshake:
    """Both sides' proof that they have the cookie.

    Feed it what came, send what `take` gives. It is over when `end` is set (failed) or
    `keys` are: (for sending, for receiving). Only those who have a role of `roles` are
    answered. A nonce may be given: its first bytes may count the dials of a process,
    the rest must be random. A server takes the cookies of `others`, too, by the
    fingerprints that they have; `cookie` is the one that counts here.
    """

    def __init__(
        self,
        dialled: bool,
        cookie: bytes,
        me: Hello,
        roles: Tuple[Role, ...] = (Role.COMRADE,),
        nonce: bytes = b"",
        others: Mapping[bytes, bytes] = {},
    ) -> None:
        self.dialled = dialled
        self.peer: Optional[Hello] = None  # claimed, until there are keys
        self.keys: Optional[Tuple[bytes, bytes]] = None
        self.end: Optional[End] = None
        self.version = me.version  # the peer's, once its hello begins
        self.received = bytearray()
        self._me, self._roles, self._others = me, roles, others
        self._nonce = nonce or os.urandom(NONCE_BYTES)
        self._choose(cookie, fingerprint(cookie))
        self._transcript = b""
        self._outgoing = self._hello if dialled else b""

    def _choose(self, cookie: bytes, cluster: bytes) -> None:
        me = self._me
        self.cookie, self._cluster = cookie, cluster
        self._hello = HELLO.pack(
            *(MAGIC, me.version, me.role, self._nonce),
            *(cluster, bytes.fromhex(me.node), bytes.fromhex(me.writer)),
        )

    @property
    def needs(self) -> int:
        """How many bytes to read, and no more: what follows may be frames."""
        whole = HELLO.size + (PROOF_BYTES if self._transcript else 0)
        return whole - len(self.received)

    @property
    def order(self) -> bytes:
        """The client's nonce, which both ends know once there are keys."""
        nonce: bytes = HELLO.unpack(self._transcript[: HELLO.size])[3]
        return nonce

    def take(self) -> bytes:
        """Return what is to be sent now (once)."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def feed(self, data: bytes) -> None:
        """Take at most `needs` bytes."""
        self.received += data
        if not self._transcript:
            self._on_hello(bytes(self.received))
        elif not self.needs:
            self._on_proof(bytes(self.received[HELLO.size :]))

    def _on_hello(self, hello: bytes) -> None:
        self.end = self._judge(hello)
        if self.end in (End.WRONG_VERSION, End.WRONG_COOKIE, End.SELF):
            if not self.dialled:
                self._outgoing = self._hello  # so that it can tell as well
        elif self.end is None and len(hello) == HELLO.size:
            pair = (self._hello, hello) if self.dialled else (hello, self._hello)
            self._transcript = b"".join(pair)
            self._outgoing = self._mac("client proof") if self.dialled else self._hello

    def _judge(self, hello: bytes) -> Optional[End]:
        if not MAGIC.startswith(hello[: len(MAGIC)]):
            return End.NOT_OURS  # at once: what isn't ours may send no more
        if len(hello) < HELLO_START.size:
            return None
        self.version = HELLO_START.unpack_from(hello)[1]
        if self.version != self._me.version:
            return End.WRONG_VERSION
        if len(hello) < HELLO.size:
            return None
        self.peer = parse_hello(hello)
        if self.peer is None:
            return End.NOT_OURS
        cluster = HELLO.unpack(hello)[4]
        if not self.dialled and cluster in self._others:
            self._choose(self._others[cluster], cluster)
        if cluster != self._cluster:
            return End.WRONG_COOKIE
        if self.peer.writer == self._me.writer:
            return End.SELF
        return None if self.peer.role in self._roles else End.NOT_OURS

    def _mac(self, label: str, more: bytes = b"") -> bytes:
        message = b"leoronic1 %s" % label.encode() + self._transcript + more
        return hmac_sha256(self.cookie, message)

    def _on_proof(self, proof: bytes) -> None:
        client_proof = self._mac("client proof")
        server_proof = self._mac("server proof", client_proof)
        good = same_digest(proof, server_proof if self.dialled else client_proof)
        if not self.dialled:
            self._outgoing = server_proof if good else REFUSED_PROOF
        if not good:
            self.end = End.WRONG_COOKIE
            return
        keys = self._mac("client key"), self._mac("server key")
        self.keys = keys if self.dialled else (keys[1], keys[0])
