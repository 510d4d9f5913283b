"""Files and outputs on their way between comrades, in pieces, beside everything else.

Reason for this file beside links.py: what is large has rules of its own (pieces, pulls,
resuming, digests), and must never pass through the core.

Rules. A file is pulled: who lacks it asks (FILE_WANT, from an offset), who has it sends
pieces (FILE_PIECE) in the bulk lane of the link, one when the wire is free, so that
a heartbeat waits for one piece at most and memory holds one. Pieces are larger while
the wire takes them within QUICK_S: most of what a small one costs isn't its bytes.
Outputs go the same way
(OUTPUT_WANT, OUTPUT_PIECE), from whichever comrade has them. An empty piece says that
the content can't be had there, or not now. A large output lies on the ghost that made
it: an OUTPUT_WANT may name the ghost in one field more, `at`, and the comrade to which
that is attached gets it first, then serves it.

How it works. A `Want` is a content that is to come here: it asks one linked peer after
the other, goes on where it was when a link breaks, and asks again a while after all
said no. What arrives is written as it comes, its digest checked at the end
(store.Part); finishing (fsync) is done aside. A `Serve` goes out on one link.

    want --> line --slot free--> coming --all pieces--> finishing --> then(True)
               ^                   | broken, stalled, refused: ask the next peer
               '---- paused <------' nobody has it, or this disk is in trouble

Invariants
1. Nothing is believed but the digest: a content is known by it, never by a name.
2. A peer that stops reading, or sends nothing, holds up its own transfers only.
3. A round of the loop costs the same whether ten contents are wanted or 10,000.
4. What one peer can make us open, look up or keep is bounded (SERVES_MAX).
"""

import heapq
import itertools
import os
from collections import deque
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Set, Tuple

import net
import store
import wire
from wire import Kind

SMALL_BYTES = 65536  # outputs up to here live in the database (store.py)
ASK_AGAIN_S = 1.0  # after every peer said that it doesn't have it; doubles up to
ASK_AGAIN_MAX_S = 30.0  # this: 10,000 files that nobody has cost 333 questions a second
STALL_S = 5.0  # without a piece: ask the next peer
BRING_BYTES_S = 1 << 20  # ... and so much longer if a ghost has to send it there first
QUICK_S = 0.02  # 1 MB/s at first; what is slower gets the smallest pieces
LARGE_BYTES = 64 << 10  # a link from 3 MB/s on has 13 KB/s left: still no death
COMING_MAX = 4  # files that come at once, and as many outputs; the rest wait in line
OUTPUTS_MAX = 10_000  # wanted at once; more are fetched when somebody asks for them
KEPT_MAX = 16  # begun ones that keep what came while nobody can go on with them
SERVES_MAX = 16  # contents that go out on one link, or are looked for; over it: no
FOREVER = float("inf")  # until a link comes up
SIZE_MAX = 1 << 50  # of a content: no arithmetic of a peer gets further

PIECES = {Kind.FILE_WANT: Kind.FILE_PIECE, Kind.OUTPUT_WANT: Kind.OUTPUT_PIECE}

assert 2 * COMING_MAX < SERVES_MAX  # who keeps to the rules is never told no for this


class Seams(NamedTuple):
    """What comrade.py does for this file."""

    links: Callable[[], Dict[str, net.Link]]
    aside: Callable[
        [Callable[[], Any], Callable[[Any, Optional[Exception]], None]], None
    ]
    small: Callable[[str, Callable[[Optional[bytes]], None]], None]  # ask the database
    clock: Callable[[], float]
    log: Callable[[str], None]
    # Ghost, digest, size, then: get an output from a ghost; False: it isn't ours.
    bring: Callable[[str, str, int, Callable[[bool], None]], bool] = lambda *_: False


class Want:
    """A content that is to come here; `then` gets True once it is in the store."""

    __slots__ = (
        *("at", "digest", "due", "first", "got", "is_finishing", "kind", "link"),
        *("part", "pauses", "peer", "refused", "size", "then"),
    )

    def __init__(
        self,
        kind: Kind,
        digest: str,
        size: int,
        first: str,
        then: Callable[[bool], None],
        at: str = "",
    ) -> None:
        self.at = at  # the ghost that has it, if one has
        self.kind = kind
        self.digest = digest
        self.size = size
        self.first = first  # the peer to ask first
        self.then = [then]
        self.part: Optional[store.Part] = None
        self.got = 0
        self.peer = ""  # who sends it now
        self.link: Optional[net.Link] = None  # over which it was asked for
        self.refused: Set[str] = set()
        self.due = 0.0  # the stall's end, or the pause's
        self.pauses = 0
        self.is_finishing = False

    @property
    def is_patient(self) -> bool:
        """Whether to ask for ever; for an output each peer is asked once."""
        return self.kind is Kind.FILE_WANT

    def begin_anew(self) -> None:
        """Throw away what came."""
        if self.part is not None:
            self.part.abandon()
        self.part, self.got = None, 0


class Serve:
    """A content that goes out: from a file, or from memory."""

    __slots__ = ("data", "digest", "fd", "kind", "offset", "size")

    def __init__(self, kind: Kind, digest: str, size: int, offset: int) -> None:
        self.kind = kind
        self.digest = digest
        self.size = size
        self.offset = offset
        self.fd = -1
        self.data = b""

    def piece(self, size: int) -> wire.Frame:
        """Give the next piece; an empty one says that it can't be had."""
        if self.fd < 0:
            body = self.data[self.offset : self.offset + size]
        else:
            try:
                body = os.pread(self.fd, size, self.offset)
            except OSError:
                body = b""  # a bad disk is no broken link
        fields = {"digest": self.digest, "offset": self.offset, "size": self.size}
        self.offset += len(body)
        return wire.Frame(self.kind, fields, body)

    def is_over(self) -> bool:
        """Say whether the last piece was given."""
        return self.offset >= self.size

    def close(self) -> None:
        """Give the file back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Line:
    """What goes out on one link, taking turns, and what is looked for to go out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.serves: Deque[Serve] = deque()
        self.looking = 0
        self._clock = clock
        self._given_at = 0.0  # the last piece
        self._piece_bytes = net.PIECE_BYTES

    def next(self) -> Optional[wire.Frame]:
        """Give the link its next piece; the one before is on its way."""
        if not self.serves:
            return None
        given_at, self._given_at = self._given_at, self._clock()
        is_quick = self._given_at - given_at < QUICK_S
        larger = min(2 * self._piece_bytes, LARGE_BYTES)
        self._piece_bytes = larger if is_quick else net.PIECE_BYTES
        serve = self.serves.popleft()
        frame = serve.piece(self._piece_bytes)
        if serve.is_over() or not frame.body:
            serve.close()
        else:
            self.serves.append(serve)
        return frame

    def drop(self, kind: Kind, digest: str) -> None:
        """Forget what is asked for anew, from another offset perhaps."""
        for serve in list(self.serves):
            if serve.kind is kind and serve.digest == digest:
                serve.close()
                self.serves.remove(serve)

    def close(self) -> None:
        """Give all files back."""
        while self.serves:
            self.serves.popleft().close()


class Transfers:
    """All contents on their way to and from this comrade."""

    def __init__(self, files: store.Files, seams: Seams) -> None:
        self.files = files
        self.seams = seams
        self.wants: Dict[str, Want] = {}
        self.serving: Dict[net.Link, Line] = {}
        self._line: Dict[Kind, Deque[Want]] = {kind: deque() for kind in PIECES}
        self._coming: Dict[Kind, List[Want]] = {kind: [] for kind in PIECES}
        self._paused: List[Tuple[float, int, Want]] = []  # a heap, by due
        self._kept: Dict[str, Want] = {}  # of those, with what came so far
        self._number = itertools.count()  # so that no two Wants are compared
        self._outputs = 0  # wanted
        self._peers: Set[net.Link] = set()  # the links of the last tick
        self._has_ended = False

    # --- coming -------------------------------------------------------------------

    def want(
        self,
        kind: Kind,
        digest: str,
        size: int,
        first: str,
        then: Callable[[bool], None],
        at: str = "",
    ) -> None:
        """Get a content, from this peer first; `then` is told when it is here.

        `at` is the ghost that has it, where no comrade may have it.
        """
        known = self.wants.get(digest)
        if known is not None:
            known.then.append(then)
            return
        want = Want(kind, digest, size, first, then, at)
        if not want.is_patient:
            if self._outputs >= OUTPUTS_MAX:
                then(False)
                return
            self._outputs += 1
        self.wants[digest] = want
        self._line[kind].append(want)

    def ask_ghost(
        self, ghost: str, digest: str, size: int, then: Callable[[bool], None]
    ) -> bool:
        """Get an output of a ghost that is attached here; say whether it is."""
        return self.seams.bring(ghost, digest, size, then)

    def forget(self, digests: Set[str]) -> None:
        """Stop wanting files that no unfinished task needs any more."""
        for digest in digests & set(self.wants):
            if not self.wants[digest].is_finishing:  # its file is in other hands now
                self._end(self.wants[digest], False)

    def tick(self, now: float) -> Optional[float]:
        """Ask who is to be asked; give the time of the next."""
        self._has_ended = False
        for link in [link for link in self.serving if link.ended is not None]:
            self.serving.pop(link).close()
        links = self.seams.links()
        self._wake(set(links.values()), now)
        for kind, coming in self._coming.items():
            for want in list(coming):
                self._look_after(want, now)
            line = self._line[kind]
            while line and len(coming) < COMING_MAX:
                if not links and line[0].is_patient:
                    break
                want = line.popleft()
                if self.wants.get(want.digest) is want:
                    coming.append(want)
                    self._ask(want, now)
        if self._has_ended:
            return now  # whoever was told may have something to do at once
        times = [w.due for c in self._coming.values() for w in c if not w.is_finishing]
        times += [due for due, _, _ in self._paused[:1]]
        return min((due for due in times if due < FOREVER), default=None)

    def _wake(self, links: Set[net.Link], now: float) -> None:
        """Back into the line with those whose pause is over: all, if a peer is new."""
        has_new, self._peers = bool(links - self._peers), links
        while self._paused and (has_new or self._paused[0][0] <= now):
            want = heapq.heappop(self._paused)[2]
            if self.wants.get(want.digest) is want:
                self._kept.pop(want.digest, None)
                want.pauses = 0 if has_new else want.pauses
                self._line[want.kind].append(want)

    def _look_after(self, want: Want, now: float) -> None:
        if want.is_finishing:
            return
        links = self.seams.links()
        if not want.peer:
            if links:
                self._ask(want, now)
        elif links.get(want.peer) is not want.link:
            self._ask(want, now)  # the link broke: go on where it was
        elif now >= want.due:
            self._refuse(want, now)

    def _refuse(self, want: Want, now: float) -> None:
        """This peer doesn't have it, or not now: ask the next."""
        want.refused.add(want.peer)
        self._ask(want, now)

    def _ask(self, want: Want, now: float) -> None:
        links = self.seams.links()
        want.peer, want.link, want.due = "", None, FOREVER
        peers = [peer for peer in sorted(links) if peer not in want.refused]
        if peers:
            want.peer = want.first if want.first in peers else peers[0]
            want.link = links[want.peer]
            want.due = now + STALL_S
            fields = {"digest": want.digest, "offset": want.got, "size": want.size}
            if want.at:
                fields["at"] = want.at
                want.due += want.size / BRING_BYTES_S
            want.link.send(want.kind, fields)
        elif not want.is_patient:
            self._end(want, False)
        elif links:
            self._pause(want, now)

    def _pause(self, want: Want, now: float) -> None:
        if want.got:  # the only link to who has it may break again and again
            self._kept[want.digest] = want
        while len(self._kept) > KEPT_MAX:  # thousands may pause; each holds a file open
            self._kept.pop(next(iter(self._kept))).begin_anew()
        want.refused.clear()
        want.peer, want.link = "", None
        want.due = now + min(ASK_AGAIN_S * 2.0**want.pauses, ASK_AGAIN_MAX_S)
        want.pauses = min(want.pauses + 1, 16)
        self._coming[want.kind].remove(want)
        heapq.heappush(self._paused, (want.due, next(self._number), want))

    def on_frame(self, peer: str, frame: wire.Frame) -> None:
        """Take a frame of these kinds; a bad one changes nothing."""
        try:
            if frame.kind in PIECES:
                self._on_want(peer, frame)
            else:
                self._on_piece(peer, frame)
        except (KeyError, TypeError, ValueError, OSError) as problem:
            self.seams.log("%s of %s: %r" % (frame.kind.name, peer, problem))

    def _on_piece(self, peer: str, frame: wire.Frame) -> None:
        want = self.wants.get(frame.fields["digest"])
        if want is None or want.peer != peer or want.is_finishing:
            return
        if (PIECES[want.kind], want.got) != (frame.kind, frame.fields["offset"]):
            return
        now = self.seams.clock()
        want.due = now + STALL_S
        if not frame.body and want.size:
            self._refuse(want, now)
        elif (
            frame.fields["size"] != want.size or want.got + len(frame.body) > want.size
        ):
            self.seams.log("%s of %s has another size" % (want.digest, peer))
            self._refuse(want, now)
        else:
            self._write(want, frame.body, now)

    def _write(self, want: Want, body: bytes, now: float) -> None:
        try:
            if want.part is None:
                want.part = self.files.receive(want.digest, want.size)
            want.part.write(body)
        except OSError as problem:  # our own disk: another peer won't help
            if not want.pauses:
                self.seams.log(str(problem))
            want.begin_anew()
            if want.is_patient:
                self._pause(want, now)
            else:
                self._end(want, False)
            return
        want.got += len(body)
        if want.got == want.size:
            want.is_finishing = True
            self.seams.aside(
                want.part.finish, lambda _, error: self._on_finished(want, error)
            )

    def _on_finished(self, want: Want, error: Optional[Exception]) -> None:
        want.is_finishing = False
        if error is None:
            want.part = None
            self._end(want, True)
            return
        self.seams.log("from %s: %s" % (want.peer, error))
        want.begin_anew()
        self._refuse(want, self.seams.clock())

    def _end(self, want: Want, is_here: bool) -> None:
        self.wants.pop(want.digest, None)
        self._kept.pop(want.digest, None)
        self._outputs -= not want.is_patient
        if want in self._coming[want.kind]:
            self._coming[want.kind].remove(want)
        want.begin_anew()
        self._has_ended = True
        for then in want.then:
            then(is_here)

    # --- going --------------------------------------------------------------------

    def _on_want(self, peer: str, frame: wire.Frame) -> None:
        digest, offset = frame.fields["digest"], frame.fields["offset"]
        size = frame.fields["size"]
        if not all(type(n) is int and 0 <= n <= SIZE_MAX for n in (offset, size)):
            raise ValueError("no place in a file")
        is_file = frame.kind is Kind.FILE_WANT
        ghost = str(frame.fields.get("at", ""))
        paths = [self.files.path(digest)]
        if not is_file:
            paths.insert(0, self.files.output_path(digest))
        link = self.seams.links()[peer]
        line = self._line_of(link)
        serve = Serve(PIECES[frame.kind], digest, size, offset)
        line.drop(serve.kind, digest)
        if len(line.serves) + line.looking >= SERVES_MAX:
            self._say_no(link, serve)
        elif not self._serve_file(link, serve, paths):
            if is_file or (size > SMALL_BYTES and not ghost):
                self._say_no(link, serve)
            elif size > SMALL_BYTES:
                self._bring(link, serve, ghost)
            else:
                line.looking += 1
                self.seams.small(
                    digest,
                    lambda data: self._serve_small(link, line, serve, data, ghost),
                )

    def _bring(self, link: net.Link, serve: Serve, ghost: str) -> None:
        """Serve what a ghost of this comrade has, once it is here."""
        line = self._line_of(link)

        def then(is_here: bool) -> None:
            line.looking -= 1
            path = self.files.path(serve.digest)
            if link.ended is not None:
                return
            if not (is_here and self._serve_file(link, serve, [path])):
                self._say_no(link, serve)

        line.looking += 1
        if not self.seams.bring(ghost, serve.digest, serve.size, then):
            then(False)

    def _line_of(self, link: net.Link) -> Line:
        if link not in self.serving:
            line = self.serving[link] = Line(self.seams.clock)
            link.source = line.next
        return self.serving[link]

    def _serve_file(self, link: net.Link, serve: Serve, paths: List[str]) -> bool:
        for path in paths:
            try:
                serve.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            serve.size = os.fstat(serve.fd).st_size
            self._serve(link, serve)
            return True
        return False

    def _serve_small(
        self,
        link: net.Link,
        line: Line,
        serve: Serve,
        data: Optional[bytes],
        ghost: str,
    ) -> None:
        line.looking -= 1
        if link.ended is not None:
            return
        if data:
            serve.data, serve.size = data, len(data)
            self._serve(link, serve)
        elif ghost:
            self._bring(link, serve, ghost)
        else:
            self._say_no(link, serve)

    def _serve(self, link: net.Link, serve: Serve) -> None:
        self._line_of(link).serves.append(serve)
        link.wake()

    def _say_no(self, link: net.Link, serve: Serve) -> None:
        names = ("digest", "offset", "size")
        link.send(serve.kind, {name: getattr(serve, name) for name in names})
