"""leoronic_get_all_files: the working directories of all nodes, collected.

Reason for this file beside verbs.py: these two speak with other nodes (letters.py), at
length, and work on a machine that runs only a ghost as they do beside a comrade.

Rules. As verbs.py: words for users are made here, nothing is decided for others. Each
node is asked one after the other: the network is the limit, not the nodes.

How it works. A node lists what it has; what DEST lacks is read from it in pieces, and
written by collection.py. What may be there already is compared by hashes, block by
block. What is sent goes in pieces as well. A piece is as large as the way to that node
lets pass in a moment (`Pace`): so a slow line still carries heartbeats between two.

Invariants. Whatever goes wrong with one file or node is said, and the others go on;
then 1 is returned. Memory holds one piece.
"""

import re
from typing import Any, Callable, Dict, Generator, Iterator, List, NamedTuple

from control import (
    NO_COMRADE,
    NO_COMRADE_TEXT,
    Call,
    Control,
    Do,
    No,
    Verb,
    Waits,
    absolute,
    at_most,
    printable,
    told,
)
from letters import Letter
from settings import format_size

PIECE_BYTES_MIN, PIECE_BYTES, PIECE_BYTES_MAX = 4 << 10, 16 << 10, 256 << 10
QUICK_S, SLOW_S = 0.1, 0.5  # a piece that took less, more: the next is larger, smaller
SMALL_BYTES = PIECE_BYTES_MAX  # up to here a file may be read at once, with others
BLOCK_BYTES = 1 << 20  # of a large file, compared at once
HEAD_BYTES_MAX = 32 << 10  # of the paths in one letter; a frame's head has 64 KiB
SEND_TRIES = 3  # to a node that is restarted meanwhile
SAID_MAX = 10  # of files left out, by node; the rest is counted
NAME_CHARS = re.compile(r"[^A-Za-z0-9._@-]")

Steps = Generator[Waits, Any, Any]


class Place(NamedTuple):
    """A node, as the cluster knows it."""

    node: str
    name: str
    state: str
    tags: List[str]
    address: str
    role: str


class Gone(Exception):
    """A node can't be reached."""


class NoComrade(Exception):
    """This is a ghost, and none has it."""


class Pace:
    """How much a letter to one node carries, by how long the last ones took."""

    def __init__(self, ctl: Control, to: str) -> None:
        self.clock = ctl.acts.clock
        self.to = to
        self.room = PIECE_BYTES

    def ask(self, verb: str, args: Dict[str, Any], body: bytes = b"") -> Steps:
        """Ask, and give the reply: what is said, and bytes; Gone: none came."""
        began = self.clock()
        said = yield Letter(self.to, verb, args, body)
        if said is None:
            raise Gone()
        took = self.clock() - began
        if took < QUICK_S:
            self.room = min(2 * self.room, PIECE_BYTES_MAX)
        elif took > SLOW_S:
            self.room = max(self.room // 2, PIECE_BYTES_MIN)
        return said


def places_of(ctl: Control) -> Steps:
    """Give all nodes: a comrade knows them, a ghost's clairvoyant does."""
    said = yield Letter("", "nodes", {})
    if said is None:
        raise NoComrade()
    return [Place(*row) for row in said[0]["nodes"]]


# --- collecting -------------------------------------------------------------------


class Tally:
    """What came of one node."""

    def __init__(self) -> None:
        self.files = 0
        self.new = 0
        self.bytes = 0
        self.missing: List[str] = []
        self.left_out: List[str] = []


def _get_all_files(ctl: Control, call: Call) -> Verb:
    import collection  # whoever never collects has no use for it

    at_most(call, 1)
    dest = absolute(call, "DEST", call.args[1] if len(call.args) > 1 else ".")
    places = yield from places_of(ctl)
    names = _folders(places)
    try:
        hide = yield Do(lambda: collection.prepare(dest, names))
    except OSError as problem:
        raise _cant_write(dest, problem) from None
    is_whole = True
    for place, name in zip(places, names):
        into = collection.Collection(dest, name)
        tally = Tally()
        try:
            if place.state == "lost":
                raise Gone()
            yield Do(into.open)
            yield from _Collecting(ctl, call, place, into, tally).all(hide)
        except Gone:
            tally.missing.append("it can't be reached")
        except OSError as problem:
            tally.missing.append("%s: %s" % (into.path, collection.words(problem)))
        finally:  # behind what the thread may still do with it
            ctl.acts.aside(0, into.close)
        call.progress("")
        _report(call, place, into.path, tally)
        is_whole = is_whole and not tally.missing
    if not is_whole:
        call.end(1)


def _cant_write(path: str, problem: OSError) -> No:
    is_file = isinstance(problem, (FileExistsError, NotADirectoryError))
    why = "it is no directory" if is_file else problem.strerror or problem
    what = "DEST can't be written (%s)" % why
    return No(told(what, path, "name a directory of your own"))


def _folders(places: List[Place]) -> List[str]:
    """Give the name of each node's folder: never a path, and no two the same."""
    names: List[str] = []
    for place in places:
        name = NAME_CHARS.sub("_", place.name).lstrip(".-") or "node"
        while name in names:
            name += "_"
        names.append(name)
    return names


def _report(call: Call, place: Place, path: str, tally: Tally) -> None:
    some = "%d file%s, %d new, %s came" % (
        *(tally.files, "" if tally.files == 1 else "s", tally.new),
        amount(tally.bytes),
    )
    call.line(printable("%s: %s" % (path, some)))
    for texts, what in ((tally.left_out, "left out"), (tally.missing, "missing")):
        for text in texts[:SAID_MAX]:
            call.err(printable("%s: %s: %s" % (place.name, what, text)))
        if len(texts) > SAID_MAX:
            call.err("%s: %s: %d more" % (place.name, what, len(texts) - SAID_MAX))


class _Collecting:
    """The working directory of one node, on its way into DEST."""

    def __init__(
        self, ctl: Control, call: Call, place: Place, into: Any, tally: Tally
    ) -> None:
        self.ctl = ctl
        self.call = call
        self.place = place
        self.into = into
        self.tally = tally
        self.pace = Pace(ctl, place.node)

    def all(self, hide: List[str]) -> Steps:
        """Fetch all that is not there."""
        try:
            yield from self._all(hide)
        except BaseException:
            self.ctl.acts.aside(0, self.into.finish)
            raise
        problems = yield Do(self.into.finish)
        if problems:
            self.tally.missing.append(problems)

    def _all(self, hide: List[str]) -> Steps:
        from folder import DIRECTORY, FILE, Entry

        after, is_more = "", True
        while is_more:
            args = {"after": after, "room": self.pace.room, "hide": hide}
            said, _ = yield from self.pace.ask("list", args)
            if "error" in said:
                self.tally.missing.append("its working directory: %s" % said["error"])
                return
            entries = [Entry(*row) for row in said["entries"]]
            is_more = bool(said["more"]) and bool(entries)
            after = entries[-1].path if entries else ""
            wanted = []
            for entry in entries:
                if entry.kind in (FILE, DIRECTORY):
                    wanted.append(entry)
                    self.tally.files += entry.kind == FILE
                elif entry.kind.startswith("can't"):
                    self.tally.missing.append("%s: %s" % (entry.path, entry.kind))
                else:
                    self.tally.left_out.append(
                        "%s is neither file nor directory but %s"
                        % (entry.path, entry.kind)
                    )
            fetch, maybe, problems = yield Do(lambda: self.into.take(wanted))  # noqa: B023
            if problems:
                self.tally.missing.append(problems)
            fetch += yield from self._differing(maybe)
            yield from self._fetch(fetch)

    def _differing(self, maybe: List[Any]) -> Steps:
        """Compare small files of equal size; give those that differ, and large ones."""
        differing = [entry for entry in maybe if entry.size > SMALL_BYTES]
        small = [entry for entry in maybe if entry.size <= SMALL_BYTES]
        for some in _lots(small, BLOCK_BYTES):
            spans = [(entry.path, 0, entry.size) for entry in some]
            said, _ = yield from self.pace.ask("hash", {"spans": spans})
            mine = yield Do(lambda: [self.into.hash(*span) for span in spans])  # noqa: B023
            for entry, own, other in zip(some, mine, said.get("hashes", [])):
                if own != other:
                    differing.append(entry)
                    continue
                problem = yield Do(lambda: self.into.touch(entry))  # noqa: B023
                if problem:
                    self.tally.missing.append(problem)
        return differing

    def _fetch(self, entries: List[Any]) -> Steps:
        # What a letter can't carry in a moment comes in pieces, like a large file.
        most = min(SMALL_BYTES, self.pace.room)
        left = [entry for entry in entries if entry.size <= most]
        while left:
            some = next(_lots(left, self.pace.room))
            del left[: len(some)]
            yield from self._fetch_small(some)
        for entry in entries:
            if entry.size > most:
                yield from self._fetch_large(entry)

    def _fetch_small(self, some: List[Any]) -> Steps:
        spans = [(entry.path, 0, entry.size) for entry in some]
        said, body = yield from self.pace.ask("read", {"spans": spans})
        offset, files = 0, []
        for entry, got in zip(some, said.get("got") or [said.get("error")] * len(some)):
            data = b""
            if isinstance(got, list):
                data = body[offset : offset + got[0]]
                offset += got[0]
            if self._is_good(entry, got, len(data)):
                files.append((entry, data))
        why = yield Do(lambda: [self._write(entry, data) for entry, data in files])
        for (entry, data), problem in zip(files, why):
            if problem:
                self.tally.missing.append("%s: %s" % (entry.path, problem))
            else:
                self._count(len(data), True)

    def _write(self, entry: Any, data: bytes) -> str:
        from collection import words

        try:
            self.into.write(entry, data)
        except (OSError, ValueError) as problem:
            return words(problem)
        return ""

    def _is_good(self, entry: Any, got: Any, size: int) -> bool:
        """Say whether what came is what was listed; if not, note that it is missing.

        What has grown since, as a log does, is taken as it was.
        """
        if not isinstance(got, list):
            self.tally.missing.append("%s: %s" % (entry.path, got))
            return False
        _, mtime, now, inode = got
        has_grown = now > entry.size and inode == entry.inode
        if size != entry.size or (mtime != entry.mtime and not has_grown):
            self.tally.missing.append("%s changed while it was read" % entry.path)
            return False
        return True

    def _count(self, size: int, is_new: bool) -> None:
        self.tally.new += is_new
        self.tally.bytes += size
        if not self.call.out:  # whoever doesn't read gets no more
            came = amount(self.tally.bytes)
            text = "%s: %d files, %s came" % (self.place.name, self.tally.files, came)
            self.call.progress(printable(text))

    def _fetch_large(self, entry: Any) -> Steps:
        try:
            part = yield Do(lambda: self.into.part(entry))
        except (OSError, ValueError) as problem:
            self.tally.missing.append("%s: %s" % (entry.path, problem))
            return
        try:
            for offset in range(0, entry.size, BLOCK_BYTES):
                size = min(BLOCK_BYTES, entry.size - offset)
                if not (yield from self._block(entry, part, offset, size)):
                    return
            yield Do(lambda: part.finish(entry.size))
            self._count(0, True)
        except OSError as problem:
            what = "%s: %s" % (entry.path, problem.strerror or problem)
            self.tally.missing.append(what)
        finally:  # behind what the thread may still do with it
            self.ctl.acts.aside(0, part.close)

    def _block(self, entry: Any, part: Any, offset: int, size: int) -> Steps:
        """Get one block: it is there, or in the file that is, or it is read."""
        where = (offset, size)
        here = yield Do(lambda: (part.hash(*where), self.into.hash(entry.path, *where)))
        if any(here):
            spans = [(entry.path, *where)]
            said, _ = yield from self.pace.ask("hash", {"spans": spans})
            (theirs,) = said.get("hashes") or [None]
            if theirs == here[0]:
                return True
            if theirs == here[1]:
                yield Do(lambda: part.copy(*where))
                return True
        end = offset + size
        while offset < end:
            piece = min(self.pace.room, end - offset)
            spans = [(entry.path, offset, piece)]
            said, body = yield from self.pace.ask("read", {"spans": spans})
            (got,) = said.get("got") or [said.get("error")]
            is_whole = isinstance(got, list) and len(body) == piece
            if not self._is_good(entry, got, entry.size if is_whole else 0):
                yield Do(part.drop)
                return False
            at = offset
            yield Do(lambda: part.write(at, body))  # noqa: B023
            offset += piece
            self._count(piece, False)
        return True


def amount(size: int) -> str:
    return format_size(size) if size >= 1024 else "%d bytes" % size


def _lots(entries: List[Any], room: int) -> Iterator[List[Any]]:
    """Part files into lots that fill a letter each."""
    from folder import head_bytes

    lot: List[Any] = []
    used = head = 0
    for entry in entries:
        if lot and (used + entry.size > room or head > HEAD_BYTES_MAX):
            yield lot
            lot, used, head = [], 0, 0
        lot.append(entry)
        used += entry.size
        head += head_bytes(entry.path)
    if lot:
        yield lot


def with_comrade(verb: Callable[[Control, Call], Verb]) -> Callable[..., Verb]:
    """Let a verb end as all do on a ghost that no comrade has."""

    def whole(ctl: Control, call: Call) -> Verb:
        try:
            yield from verb(ctl, call)
        except NoComrade:
            call.err(NO_COMRADE_TEXT)
            call.end(NO_COMRADE)

    return whole


VERBS = {"get_all_files": with_comrade(_get_all_files)}
