"""Connections of one node to others: dialling, accepting, frames both ways.

Reason for this file beside wire.py and links.py: wire.py is bytes without sockets,
links.py what a comrade does with all its links; here is one link, and its socket.

Rules: nothing here knows what a frame means (but BYE), reads a clock (`now` is an
argument), starts a thread or blocks.

    dial ------------------------.
    Listener --Strangers, 64 ----+--> Link --> frames (kind, fields, body)

The caller registers each object in its selector by `want_read` and `want_write`, calls
`on_readable` before `on_writable`, then `tick`, and looks at `ended` after each call. A
link calls its `release` just before it closes its socket: from then on the number of
the descriptor may be another file's, and must not be watched as the link's any more.

Invariants (D14): a stranger costs one socket. The first bad frame ends a link. What a
peer doesn't read costs a bounded queue; a heartbeat waits for what is on the wire only.

Not done: IPv6, choosing between twin links, finding one-way links (heartbeats carry
`heard` for that; the core decides).
"""

import errno
import os
import socket
import struct
from collections import Counter, deque
from typing import Callable, Deque, List, Optional, Tuple

from descriptors import are_left
from points import point
from wire import (
    FRAME_BYTES_MAX,
    VERSION,
    BadFrame,
    Decoder,
    End,
    Fields,
    Frame,
    Handshake,
    Hello,
    Kind,
    Seal,
    encode,
)

HEARTBEAT_INTERVAL_S = 1.0  # each costs some 150 bytes a link
SUSPECT_S = 3.0  # two heartbeats lost, and one late
DEAD_S = 4.8  # without a valid frame, also TCP_USER_TIMEOUT: 5 s with what follows
DIAL_TIMEOUT_S = 1.0  # a LAN answers in 1 ms; a lost SYN would be sent again then
HANDSHAKE_S = 3.0  # in all, from accept or connect: a drip of bytes gains nothing
LEAVE_S = 1.0  # for a BYE to be taken; D13 and CONTRACT stop a node within 2 s
REDIAL_MIN_S, REDIAL_MAX_S = 0.2, 2.0  # one restart of a peer; bounds D12's take-over
STRANGERS_MAX = 64  # sockets not yet authenticated, beyond which the oldest goes

FEW = 4  # dials of a member that are under way at once: it was restarted, say
BACKLOG = 512  # wait to be accepted; where that is full a dial is lost for a second
ACCEPTS_MAX = STRANGERS_MAX // 4  # in one turn: who came before has turns to speak in

PIECE_BYTES = 16 << 10  # of a file, an output, or (about) a batch of records
SLOW_LINK_BYTES_S = 8 << 10  # 64 kbit/s, the slowest link that must hold
SEND_BUFFER_BYTES = 64 << 10  # SO_SNDBUF: fills 100 Mbit/s at 5 ms
URGENT_BYTES_MAX = 4 << 20  # a peer so far behind is closed; reconcile makes it good
NO_COOKIE = b"-"  # of a link whose handshake is over
READ_BYTES = 64 << 10  # at a time, so that the loop soon turns to the next
WRITE_BYTES = 256 << 10  # likewise

assert 2 * HEARTBEAT_INTERVAL_S < SUSPECT_S < DEAD_S
assert PIECE_BYTES / SLOW_LINK_BYTES_S < SUSPECT_S  # a file doesn't look like death
assert DIAL_TIMEOUT_S + REDIAL_MAX_S < DEAD_S  # one more try before a peer is dead
assert PIECE_BYTES < SEND_BUFFER_BYTES < FRAME_BYTES_MAX < URGENT_BYTES_MAX

_ENDS = {
    errno.ECONNREFUSED: End.REFUSED,
    errno.ETIMEDOUT: End.SILENT,
    errno.ENETUNREACH: End.UNREACHABLE,
    errno.EHOSTUNREACH: End.UNREACHABLE,
    errno.EADDRNOTAVAIL: End.UNREACHABLE,
}


# Why a link is gone, in the core's words (effects.LinkLost); all else is "broken".
LOST = {
    End.STOPPING: "stopping",
    End.CLOSING: "closing",
    End.CLOSED: "closing",
    End.EOF: "eof",
    End.RESET: "eof",
    End.SILENT: "silent",
}
# What goes with the socket of a link that is given to another process: its number, the
# two keys, the peer's writer and address.
HANDED = struct.Struct("!I64s16s15s")


def version_words(theirs: int, ours: int) -> str:
    """Say why two versions can't speak, and which end is to be updated."""
    older = "this node" if theirs > ours else "that node"
    return (
        "it speaks version %d of Leoronic's protocol, this node version %d; update %s: "
        "copy the newer folder to it and start it again" % (theirs, ours, older)
    )


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_SNDBUF", SEND_BUFFER_BYTES),
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int(DEAD_S * 1000)),
        # What the kernel holds unsent is all that a heartbeat waits for.
        (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", PIECE_BYTES),
    ):
        try:
            sock.setsockopt(level, getattr(socket, name), value)
        except (AttributeError, OSError):
            pass  # another system, or a socketpair: slower to notice, not wrong


class Link:
    """A connection to one node: dialling, handshake, then frames both ways.

    `peer` is set once it is authenticated, `ended` once it is over. What `send` gets
    goes first; when nothing of it waits, `source` is asked for bulk, a piece at a time,
    until it gives None (call `wake` when it has some again). A failed write doesn't
    end a link, reading does: a BYE may still be there to be read.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        handshake: Handshake,
        now: float,
        connecting: bool = False,
    ) -> None:
        self.address = address
        self.dialled = handshake.dialled
        self.peer: Optional[Hello] = None
        self.ended: Optional[End] = None
        self.detail = ""  # of a bad frame, for the log
        self.last_heard = now  # set it anew after this process was stopped itself
        self.source: Callable[[], Optional[Frame]] = lambda: None
        self.release: Callable[[], None] = lambda: None  # called at the close
        self.since = now  # accepted, or connected
        self._sock, self.shake = sock, handshake
        self._connecting = connecting
        self._seal = self._unseal = Seal(b"")
        self._decoder = Decoder(self._unseal)
        self._wire = bytearray(handshake.take())  # sealed: must go in this order
        self._urgent: Deque[Tuple[Kind, bytes]] = deque()
        self._urgent_bytes = 0
        self._has_bulk = self._leaving = self._broken = False
        self._leave_by: Optional[float] = None
        self._said = End.EOF  # what an EOF means, as far as we have been told
        _tune(sock)

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._sock.fileno()

    @property
    def is_stranger(self) -> bool:
        """Whether this is a live connection of nobody we know yet."""
        return self.peer is None and self.ended is None

    @property
    def want_read(self) -> bool:
        """Whether the selector should watch for reading."""
        return self.ended is None and not self._connecting

    @property
    def want_write(self) -> bool:
        """Whether the selector should watch for writing."""
        if self.ended is not None or self._broken:
            return False
        bulk = self._has_bulk and not self._leaving
        return self._connecting or bool(self._wire or self._urgent or bulk)

    @property
    def owes(self) -> bool:
        """Whether something is on its way out, bulk that hasn't begun not counted."""
        is_open = self.ended is None and not self._broken
        return is_open and bool(self._wire or self._urgent)

    @property
    def order(self) -> bytes:
        """What tells links of one dialler apart, the same at both ends; later: more."""
        return self.shake.order

    @property
    def heard_seq(self) -> int:
        """How many good frames have come: a heartbeat's `heard`."""
        return self._unseal.seq

    @property
    def sent_seq(self) -> int:
        """How many frames have been sealed: what the peer's `heard` is held against."""
        return self._seal.seq

    @property
    def why(self) -> str:
        """Why it has ended, in words for a user; '' while it hasn't."""
        if self.ended is End.WRONG_VERSION:
            return version_words(self.shake.version, VERSION)
        return self.ended.value if self.ended is not None else ""

    def send(self, kind: Kind, fields: Fields, body: bytes = b"") -> None:
        """Queue a small frame, a heartbeat before all; only once authenticated."""
        assert self.peer is not None, "not authenticated"
        if self.ended is not None or self._leaving:
            return
        payload = encode(kind, fields, body)
        waiting, is_beat = self._urgent, kind is Kind.HEARTBEAT
        (waiting.appendleft if is_beat else waiting.append)((kind, payload))
        self._urgent_bytes += len(payload)
        if self._urgent_bytes > URGENT_BYTES_MAX:
            self.close(End.OVERRUN)

    def wake(self) -> None:
        """Note that `source` has something to give."""
        self._has_bulk = True

    def bye(self, why: str) -> None:
        """Say that we leave (stopping or closing) and close once that is sent."""
        if self.peer is None:
            self.close()
            return
        self.send(Kind.BYE, {"why": why})
        self._leaving = True
        self._flush()

    def close(self, end: End = End.CLOSED) -> None:
        """Close at once; the first reason given stays."""
        self.ended = self.ended or end
        release, self.release = self.release, lambda: None
        release()
        self._sock.close()

    def give(self) -> Optional[Tuple[socket.socket, Tuple[bytes, bytes]]]:
        """Give away the socket and the keys of a link that has just begun.

        None while our part of the handshake isn't out. Another process makes a link of
        them with `adopt`, and closes the socket; here it is to be closed, too.
        """
        assert self.shake.keys is not None, "not authenticated"
        if self._wire:
            return None
        self.ended = End.GIVEN
        release, self.release = self.release, lambda: None
        release()
        return self._sock, self.shake.keys

    def tick(self, now: float) -> Optional[float]:
        """Close if its time is up, else return when that will be."""
        if self.ended is not None:
            return None
        if self._connecting:
            deadline, end = self.since + DIAL_TIMEOUT_S, End.SILENT
        elif self.peer is None:
            deadline, end = self.since + HANDSHAKE_S, End.LATE
        else:
            deadline, end = self.last_heard + DEAD_S, End.SILENT
        if self._leaving:  # it must not stay because the peer reads nothing
            self._leave_by = self._leave_by or now + LEAVE_S
            deadline, end = min(deadline, self._leave_by), End.CLOSED
        if now < deadline:
            return deadline
        self.close(end)
        return None

    def on_readable(self, now: float) -> List[Frame]:
        """Read some; return the frames that are complete."""
        if not self.want_read:
            return []
        size = READ_BYTES if self.peer is not None else self.shake.needs
        try:
            data = self._sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            self._on_eof(_ENDS.get(error.errno or 0, End.RESET))
            return []
        if not data:
            self._on_eof(End.EOF)
        elif self.peer is not None:
            return self._open(data, now)
        else:
            self._shake(data, now)
        return []

    def _on_eof(self, end: End) -> None:
        if self._said is not End.EOF:
            end = self._said
        if self.dialled and not self.shake.received:
            if end in (End.EOF, End.RESET):  # a reset if our hello was unread there
                end = End.BUSY
        self.close(end)

    def _shake(self, data: bytes, now: float) -> None:
        shake = self.shake
        shake.feed(data)
        self._wire += shake.take()
        self._flush()
        if shake.end is not None:
            self.close(shake.end)
        elif shake.keys is not None and self.ended is None:
            self._begin(shake.peer, shake.keys, now)

    def _begin(
        self, peer: Optional[Hello], keys: Tuple[bytes, bytes], now: float
    ) -> None:
        self.peer, self.last_heard = peer, now
        self._seal, self._unseal = Seal(keys[0]), Seal(keys[1])
        self._decoder = Decoder(self._unseal)

    def _open(self, data: bytes, now: float) -> List[Frame]:
        frames: List[Frame] = []
        self._decoder.feed(data)
        try:
            frames.extend(iter(self._decoder.next, None))
        except BadFrame as bad:
            self.detail = str(bad)
            self.close(End.BAD_FRAME)
        if frames:
            self.last_heard = now
        for frame in frames:
            if frame.kind is Kind.BYE:
                stopping = frame.fields.get("why") == "stopping"
                self._said = End.STOPPING if stopping else End.CLOSING
        return frames

    def on_writable(self, now: float) -> None:
        """Write what the kernel takes."""
        if self._connecting:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self.close(_ENDS.get(code, End.UNREACHABLE))
            self._connecting, self.since = False, now
        self._flush()

    def _flush(self) -> None:
        budget = WRITE_BYTES
        try:
            while budget > 0 and self.ended is None and self._fill():
                point("before send")
                sent = self._sock.send(self._wire)
                point("after send")
                del self._wire[:sent]
                budget -= sent
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._broken = True
            if self._said is End.EOF:
                self._said = _ENDS.get(error.errno or 0, End.RESET)
        if self._leaving and not self.want_write:
            self.close()

    def _fill(self) -> bool:
        """See to it that there is something on the wire, if there is anything."""
        while self._urgent and len(self._wire) < PIECE_BYTES:
            kind, payload = self._urgent.popleft()
            self._urgent_bytes -= len(payload)
            self._wire += self._seal.seal(kind, payload)
        if not self._wire and self._has_bulk and not self._leaving:
            piece = self.source()
            self._has_bulk = piece is not None
            if piece is not None:
                self._wire += self._seal.seal(piece.kind, encode(*piece))
        return bool(self._wire)


def dial(
    address: str, port: int, handshake: Handshake, now: float, own: str = ""
) -> Link:
    """Start to connect, from `own` if given. OSError: no descriptor is free."""
    sock = socket.socket()
    link = Link(sock, address, handshake, now, connecting=True)
    try:
        if own:
            sock.bind((own, 0))
        sock.connect((address, port))
    except BlockingIOError:
        pass
    except OSError as error:
        link.close(_ENDS.get(error.errno or 0, End.UNREACHABLE))
    return link


def adopt(
    sock: socket.socket,
    address: str,
    peer: Hello,
    keys: Tuple[bytes, bytes],
    now: float,
) -> Link:
    """Go on with a link that another process has begun (`Link.give`)."""
    link = Link(sock, address, Handshake(False, NO_COOKIE, peer), now)
    link._begin(peer, keys, now)
    return link


def redial_delay(failures: int, luck: float) -> float:
    """Return seconds to wait after that many dials in vain; `luck` is random, 0..1."""
    most = min(REDIAL_MIN_S * 2.0 ** min(failures, 10), REDIAL_MAX_S)
    return REDIAL_MIN_S + luck * (most - REDIAL_MIN_S)


class Strangers:
    """Links that have not proved themselves: a bounded number.

    Over the limit the one that came first of the address with the most goes ("busy"),
    not the newcomer: a thousand silent connections keep no good peer out (FAULTS 62).
    Addresses that are known go last, with FEW at once: so neither a flood from hundreds
    nor one from a member that is mad keeps anybody out.
    """

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._links: List[Link] = []

    def admit(self, link: Link) -> None:
        """Count it in until it is known or gone; if sockets are few another goes."""
        self._links = [known for known in self._links if known.is_stranger] + [link]
        if len(self._links) > STRANGERS_MAX or not are_left(link.fileno()):
            crowd = Counter(one.address for one in self._links)
            few = {a for a in crowd if crowd[a] <= FEW and self._is_known(a)}
            key = lambda one: (one.address not in few, crowd[one.address])  # noqa: E731
            max(self._links, key=key).close(End.BUSY)


class Listener:
    """The cluster's TCP port; `greet` makes the handshake for each who connects."""

    def __init__(
        self,
        address: str,
        port: int,
        greet: Callable[[], Handshake],
        is_known: Callable[[str], bool] = lambda address: False,
    ) -> None:
        self._greet = greet
        self._strangers = Strangers(is_known)
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._sock = socket.socket()
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind((address, port))
            self._sock.listen(BACKLOG)
        except OSError:
            self.close()
            raise
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    @property
    def port(self) -> int:
        """The port in force (for tests, which ask for port 0)."""
        return int(self._sock.getsockname()[1])

    def close(self) -> None:
        """Stop listening; links live on."""
        self._sock.close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def on_readable(self, now: float) -> List[Link]:
        """Accept those who wait; return the links to watch from now on."""
        new: List[Link] = []
        for _ in range(ACCEPTS_MAX):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away()
                continue
            new.append(Link(sock, peer[0], self._greet(), now))
            self._strangers.admit(new[-1])
        return [link for link in new if link.ended is None]

    def _turn_away(self) -> None:
        """Close one who waits, by the spare descriptor: else the loop would spin."""
        if self._spare >= 0:
            os.close(self._spare)
        try:
            self._sock.accept()[0].close()
        except OSError:
            pass
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self._spare = -1
