"""A node's working directory as other nodes see it: what is in it.

Reason for this file beside places.py: that is about the files of runs, which come and
go with them; this is about what users fetch from a node (arrivals.py: and put there).

Rules. No path from a peer is used but step by step from the top, following no link.
Nothing here knows who asks. All of it may block: it runs in a thread (places.Worker).

How it works. `answer(verb, args, body)` does one small thing, so that an asker that
goes away costs nothing and one that asks again gets the same:

    list  after room hide   the next entries behind a path, in order, names only
    hash  spans             a hash for each (path, offset, size)
    read  spans             the bytes of each, one after the other, as the body

A listing keeps its place for the next question (`_walks`); without it, it begins anew
behind the path that is named.

Invariants
1. The cookie, the state of nodes and half files aren't listed (`Hidden`). That is no
   secret kept: who may ask has the cookie.
2. One answer reads BLOCK_BYTES at most (D9): its cost doesn't depend on the file.

Not done: links, devices, sockets and FIFOs are told of, and left out; owners, sparse
holes and times of access aren't kept.
"""

import errno
import os
import stat
import time
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from places import raw

try:  # hashlib would bring OpenSSL along: 3.5 MiB
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

BLOCK_BYTES = 1 << 20  # of a file, hashed at once; and the most that is read
ROOM_MAX = 256 << 10  # bytes of a reply: a quarter of a frame
LIST_BYTES_MAX = 32 << 10  # of a listing, a long path more: a frame's head has 64 KiB
LIST_S = 0.2  # a listing answers by then with what it has
SPANS_MAX = 500
WALKS_MAX = 4  # listings whose place is kept
DEPTH_MAX = 100  # directories in one another: each is open while it is listed
PATH_BYTES_MAX = 4096
assert LIST_BYTES_MAX + 6 * PATH_BYTES_MAX < 60000
PART = ".leoronic-part-"  # half files, here and where they are collected
COOKIE = ".leoronic_cookie"
BOOT = "/proc/sys/kernel/random/boot_id"

FILE, DIRECTORY = "file", "directory"
KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}

Said = Tuple[Dict[str, Any], bytes]
Answer = Callable[[int, str, Dict[str, Any], bytes], Said]  # top, asker, args, body


class Entry(NamedTuple):
    """What a listing tells of one name; mtime in nanoseconds."""

    path: str
    kind: str  # FILE, DIRECTORY, or words for what is left out
    mode: int = 0
    mtime: int = 0
    size: int = 0
    inode: int = 0


def text_of(name: bytes) -> str:
    """Give a name as it goes over the wire."""
    return name.decode("utf-8", "surrogateescape")


def parts_of(path: Any) -> List[bytes]:
    """Split a path of a peer; ValueError if it could lead out of the top."""
    if not isinstance(path, str) or not 0 < len(raw(path)) <= PATH_BYTES_MAX:
        raise ValueError("no path")
    parts = raw(path).split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise ValueError("a path that leads elsewhere")
    return parts


def open_parent(top: int, parts: Sequence[bytes]) -> int:
    """Open the directory that holds the last of these, step by step."""
    fd = os.dup(top)
    for part in parts[:-1]:
        above = fd
        try:
            fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(above)
    return fd


def open_file(top: int, path: str) -> int:
    """Open a regular file below `top` for reading; OSError or ValueError if not."""
    parts = parts_of(path)
    parent = open_parent(top, parts)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(parts[-1], flags, dir_fd=parent)
    finally:
        os.close(parent)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("it is no regular file")
    return fd


def head_bytes(path: str) -> int:
    """Give what a path and its facts take of a frame's head at most: all escaped."""
    return 100 + 6 * len(path)


def hash_of(data: bytes) -> str:
    """Give the hash by which two ends compare a block."""
    return blake2b(data, digest_size=16).hexdigest()


def identity(facts: os.stat_result) -> str:
    """Tell one directory from all others, on all machines."""
    try:
        with open(BOOT, encoding="ascii") as file:
            machine = file.read().strip()
    except OSError:
        machine = ""
    return "%s %d %d" % (machine, facts.st_dev, facts.st_ino)


def digest_of_pieces() -> Any:
    """Begin the digest of a whole file, the same at both ends."""
    return blake2b(digest_size=32)


class Hidden:
    """What of a working directory is nobody's business."""

    def __init__(self, home: str, cookie: str) -> None:
        above = os.path.dirname(home)
        is_shared = os.path.basename(above) == ".leoronic"  # states of other nodes too
        self._paths = [home, cookie] + ([above] if is_shared else [])

    def inodes(self) -> Set[Tuple[int, int]]:
        """Give what they are just now."""
        found = set()
        for path in self._paths:
            try:
                facts = os.stat(path)
                found.add((facts.st_dev, facts.st_ino))
            except OSError:
                pass  # it isn't there, and so can't be listed
        return found


class Walk:
    """A listing on its way: all below a directory, in order, from some path on."""

    def __init__(self, top: int, after: str, hidden: Set[Tuple[int, int]]) -> None:
        self.at = after
        self._hidden = hidden
        behind = parts_of(after) if after else []
        self.entries = self._below(os.dup(top), b"", behind)

    def close(self) -> None:
        """Close the directories that are open."""
        self.entries.close()  # type: ignore[attr-defined]  # a generator

    def _below(self, fd: int, prefix: bytes, behind: List[bytes]) -> Iterator[Entry]:
        """Give what is in a directory and below, behind these names; close it."""
        try:
            for name in sorted(map(os.fsencode, os.listdir(fd))):
                if behind and name < behind[0]:
                    continue
                is_told = bool(behind) and name == behind[0]
                yield from self._at(fd, prefix, name, behind[1:] if is_told else None)
        except OSError as problem:
            yield Entry(text_of(prefix[:-1]) or ".", _words(problem))
        finally:
            os.close(fd)

    def _at(
        self, fd: int, prefix: bytes, name: bytes, behind: Optional[List[bytes]]
    ) -> Iterator[Entry]:
        """Give one name and what is below it; `behind` is not None if it was told."""
        path = prefix + name
        try:
            facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as problem:
            if problem.errno != errno.ENOENT:  # else it has just gone
                yield Entry(text_of(path), _words(problem))
            return
        if name.startswith((raw(PART), raw(COOKIE))):
            return
        if (facts.st_dev, facts.st_ino) in self._hidden:
            return
        kind = KINDS.get(stat.S_IFMT(facts.st_mode), "a device")
        if behind is None:
            mode = stat.S_IMODE(facts.st_mode)
            size = facts.st_size if kind == FILE else 0
            times = (facts.st_mtime_ns, size, facts.st_ino)
            yield Entry(text_of(path), kind, mode, *times)
        if kind == DIRECTORY and path.count(b"/") >= DEPTH_MAX:
            yield Entry(text_of(path), "can't be read: it lies too deep")
        elif kind == DIRECTORY:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            try:
                below = os.open(name, flags, dir_fd=fd)
            except OSError as problem:
                yield Entry(text_of(path), _words(problem))
                return
            yield from self._below(below, path + b"/", behind or [])


def _words(problem: OSError) -> str:
    return "can't be read: %s" % (problem.strerror or problem)


class Folder:
    """The working directory of this node, for whoever asks."""

    def __init__(
        self,
        directory: str,
        hidden: Hidden,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._hidden = hidden
        self._clock = clock
        self._walks: Dict[str, Walk] = {}  # asker -> its listing
        self.verbs: Dict[str, Answer] = {
            "list": self._list,
            "hash": self._hash,
            "read": self._read,
        }

    def answer(self, asker: str, verb: str, args: Dict[str, Any], body: bytes) -> Said:
        """Do what a letter asks; what goes wrong is said in `error`, for the user."""
        try:
            top = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return self.verbs[verb](top, asker, args, body)
            finally:
                os.close(top)
        except OSError as problem:
            return {"error": problem.strerror or str(problem)}, b""
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            return {"error": str(problem) or repr(problem)}, b""

    def close(self) -> None:
        """Give all listings up."""
        for walk in self._walks.values():
            walk.close()

    def _list(self, top: int, asker: str, args: Dict[str, Any], body: bytes) -> Said:
        after, room = str(args["after"]), min(int(args["room"]), LIST_BYTES_MAX)
        hide = {str(mark) for mark in args["hide"]}
        walk = self._walks.pop(asker, None)
        if walk is None or walk.at != after:
            if walk is not None:
                walk.close()
            walk = Walk(top, after, self._hidden.inodes() | self._marked(top, hide))
        entries: List[Entry] = []
        used, until = 0, self._clock() + LIST_S
        for entry in walk.entries:
            entries.append(entry)
            walk.at = entry.path
            used += head_bytes(entry.path)
            if used >= room or len(entries) >= SPANS_MAX or self._clock() >= until:
                self._walks[asker] = walk
                if len(self._walks) > WALKS_MAX:
                    self._walks.pop(next(iter(self._walks))).close()
                return {"entries": entries, "more": True}, b""
        return {"entries": entries, "more": False}, b""

    def _marked(self, top: int, marks: Set[str]) -> Set[Tuple[int, int]]:
        """Give the directories that the asker named by `identity`, if they are here."""
        mine = identity(os.fstat(top)).rpartition(" ")[0].rpartition(" ")[0]
        found = set()
        for mark in marks:
            machine, device, inode = mark.rsplit(" ", 2)
            if machine == mine:
                found.add((int(device), int(inode)))
        return found

    def _hash(self, top: int, asker: str, args: Dict[str, Any], body: bytes) -> Said:
        hashes: List[Optional[str]] = []
        for path, data, _ in self._spans(top, args["spans"], BLOCK_BYTES):
            hashes.append(hash_of(data) if path else None)
        return {"hashes": hashes}, b""

    def _read(self, top: int, asker: str, args: Dict[str, Any], body: bytes) -> Said:
        got: List[Any] = []
        pieces: List[bytes] = []
        for path, data, facts in self._spans(top, args["spans"], ROOM_MAX):
            got.append([len(data), *facts] if path else facts[0])
            pieces.append(data)
        return {"got": got}, b"".join(pieces)

    def _spans(
        self, top: int, spans: Any, most: int
    ) -> Iterator[Tuple[str, bytes, List[Any]]]:
        """Read each span: its path, bytes, and [mtime, size, inode]; '' and why not."""
        if len(spans) > SPANS_MAX:
            raise ValueError("too many at once")
        for path, offset, size in spans:
            if not (type(offset) is type(size) is int and 0 <= offset < 1 << 62):
                raise ValueError("no place in a file")
            most -= size
            if size < 0 or most < 0:
                raise ValueError("too much at once")
            try:
                fd = open_file(top, path)
            except OSError as problem:
                yield "", b"", [problem.strerror or str(problem)]
                continue
            except ValueError as problem:
                yield "", b"", [str(problem)]
                continue
            try:
                facts = os.fstat(fd)
                data = _pread(fd, size, offset)
                yield path, data, [facts.st_mtime_ns, facts.st_size, facts.st_ino]
            except OSError as problem:
                yield "", b"", [problem.strerror or str(problem)]
            finally:
                os.close(fd)


def _pread(fd: int, size: int, offset: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.pread(fd, size - len(data), offset + len(data))
        if not piece:
            break
        data += piece
    return data
