"""Files that other nodes put into this node's working directory.

Reason for this file beside folder.py: that only reads; what is written has rules of its
own.

Rules. As folder.py: a name from a peer is one name in the top directory, never a path;
it may block, and runs in a thread.

How it works. A file comes in pieces, one behind the other, under a token of its sender,
into a part beside its place; the last has the digest of the whole. A piece may come
twice, for its answer may have been lost. Who has just been started says BEGIN_ANEW.

Invariants
1. A file is under its name whole, by its digest, or what was there before is.
2. Half files go: when their sender says so, after IDLE_S, at the node's end and start.
3. FLOOR_BYTES of the disk stay free.
"""

import errno
import os
from typing import Any, Callable, Dict

from folder import (
    COOKIE,
    PART,
    Hidden,
    Said,
    digest_of_pieces,
    identity,
    parts_of,
)
from places import raw

COMING_MAX = 8  # files that are coming at once
IDLE_S = 60.0  # a file whose sender is gone is dropped
FLOOR_BYTES = 64 << 20  # of the disk, that a file put here leaves free
DONE_MAX = 64  # files that were put lately: their last piece may come twice
BEGIN_ANEW = "a piece is missing"  # this process has just begun: so must the sender


class Coming:
    """A file that is being put here, piece behind piece."""

    def __init__(self, fd: int, part: bytes) -> None:
        self.fd = fd
        self.part = part
        self.heard = 0.0
        self.size = 0
        self.digest = digest_of_pieces()

    def take(self, data: bytes, offset: int) -> None:
        """Write a piece; one whose answer was lost comes twice."""
        if offset + len(data) == self.size and offset < self.size:
            return
        if offset != self.size:
            raise ValueError(BEGIN_ANEW)
        _write(self.fd, data)
        self.digest.update(data)
        self.size += len(data)


class Arrivals:
    """The files that are coming."""

    def __init__(
        self,
        directory: str,
        hidden: Hidden,
        free: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._hidden = hidden
        self._free = free
        self._clock = clock
        self._coming: Dict[str, Coming] = {}
        self._done: Dict[str, None] = {}  # tokens of what was put, the last few

    def clean_up(self) -> None:
        """Remove what a former process was being sent."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return
        for name in names:
            if name.startswith(PART):
                _unlink(os.path.join(self._directory, name))

    @property
    def is_receiving(self) -> bool:
        """Whether a file is coming; any thread may ask."""
        return bool(self._coming)

    def close(self) -> None:
        """Drop what is half here."""
        for token in list(self._coming):
            self._drop(token)

    def put(self, top: int, asker: str, args: Dict[str, Any], body: bytes) -> Said:
        """Take a piece; ValueError or OSError says why not, and drops the file."""
        name, token = args["name"], "%s %s" % (asker, args["token"])
        self._check_name(top, name)
        offset, size = int(args["offset"]), int(args["size"])
        if not 0 <= offset <= offset + len(body) <= size:
            raise ValueError("a piece beyond the end")
        if token in self._done or self._is_it(top, name, args["source"]):
            return {"is_there": True}, b""
        if token not in self._coming:
            if offset:
                raise ValueError(BEGIN_ANEW)
            self._coming[token] = self._begin(top, size)
        coming = self._coming[token]
        coming.heard = self._clock()
        try:
            coming.take(body, offset)
            if args["digest"]:
                self._finish(top, coming, raw(name), args)
                self._done[token] = None
                if len(self._done) > DONE_MAX:
                    del self._done[next(iter(self._done))]
        except BaseException:
            self._drop(token)
            raise
        if args["digest"]:
            self._drop(token)
        return {}, b""

    def _check_name(self, top: int, name: Any) -> None:
        (last,) = parts_of(name)
        is_hidden = last == raw(COOKIE) or last.startswith(raw(PART))
        try:
            facts = os.stat(last, dir_fd=top)
            is_hidden |= (facts.st_dev, facts.st_ino) in self._hidden.inodes()
        except OSError:
            pass  # nothing is there
        if is_hidden:
            raise ValueError("that name is kept for something else")

    @staticmethod
    def _is_it(top: int, name: str, source: str) -> bool:
        """Say whether what is there is the very file that is being sent."""
        try:
            return identity(os.stat(raw(name), dir_fd=top)) == source
        except OSError:
            return False

    def _begin(self, top: int, size: int) -> Coming:
        if len(self._coming) >= COMING_MAX:
            raise ValueError("too many files are coming at once")
        if self._free() < size + FLOOR_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = raw(PART) + os.urandom(8).hex().encode("ascii")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return Coming(os.open(part, flags, 0o600, dir_fd=top), part)

    @staticmethod
    def _finish(top: int, coming: Coming, name: bytes, args: Dict[str, Any]) -> None:
        if coming.size != args["size"] or coming.digest.hexdigest() != args["digest"]:
            raise ValueError("what came is not what was sent")
        os.fchmod(coming.fd, int(args["mode"]) & 0o777)
        os.fsync(coming.fd)  # after a power cut it is there, or what was before
        os.rename(coming.part, name, src_dir_fd=top, dst_dir_fd=top)

    def drop(self, top: int, asker: str, args: Dict[str, Any], body: bytes) -> Said:
        """Forget a file that won't come after all."""
        token = "%s %s" % (asker, args["token"])
        if token in self._coming:
            self._drop(token)
        return {}, b""

    def _drop(self, token: str) -> None:
        coming = self._coming.pop(token)
        os.close(coming.fd)
        _unlink(os.path.join(os.fsencode(self._directory), coming.part))

    def drop_idle(self) -> None:
        """Drop the files whose senders are gone."""
        for token, coming in list(self._coming.items()):
            if self._clock() - coming.heard > IDLE_S:
                self._drop(token)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _unlink(path: Any) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it has its name now, or never was
