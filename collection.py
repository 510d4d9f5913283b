"""Where the working directories of nodes are collected: DEST/NODE/...

Reason for this file beside folder.py: that answers for a directory of this node's, here
is one of the user's that is written to; what they share is how a path is gone along.

Rules. Nothing is written but below DEST, step by step, following no link that lies
there. Files that are there count by their content, whoever made them. All of it may
block: it runs in a thread.

How it works. A file is new, equal (size and time, else each block's hash is compared)
or other. A small one is written aside and renamed. A large one grows in a *part* beside
its place, block by block: what the part has, or the file that is there, isn't fetched
again; so it goes on where a former call was broken off.

Invariants. A file is under its name whole, with mode and time, or as it was before. A
directory gets its own mode and time last, for what comes into it changes both.
"""

import os
import stat
from typing import List, Optional, Sequence, Tuple

from folder import (
    DIRECTORY,
    PART,
    Entry,
    hash_of,
    identity,
    open_file,
    open_parent,
    parts_of,
)
from places import raw

DIRECTORY_MODE = 0o755  # of DEST itself, and of each node's


class InTheWay(Exception):
    """Something else is where a file or directory is to be; the text says what."""


class Collection:
    """One node's part of DEST."""

    def __init__(self, dest: str, name: str) -> None:
        self.path = os.path.join(dest, name)
        self._top = -1
        self._directories: List[Entry] = []

    def open(self) -> None:
        """Begin; `prepare` has made the directory."""
        self._top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def close(self) -> None:
        """Give the directory back."""
        if self._top >= 0:
            os.close(self._top)
            self._top = -1

    __del__ = close

    def take(self, entries: Sequence[Entry]) -> Tuple[List[Entry], List[Entry], str]:
        """Make directories; give the files to fetch, those that may be equal, and
        what is in the way, in words ('' if nothing is).
        """
        fetch: List[Entry] = []
        maybe: List[Entry] = []
        problems: List[str] = []
        for entry in entries:
            try:
                if entry.kind == DIRECTORY:
                    self._make(entry)
                else:
                    found = self._stat(entry.path)
                    if found is None or found.st_size != entry.size:
                        fetch.append(entry)
                    elif found.st_mtime_ns != entry.mtime:
                        maybe.append(entry)
                    elif stat.S_IMODE(found.st_mode) != entry.mode & 0o777:
                        problems += filter(None, [self.touch(entry)])
            except (OSError, ValueError, InTheWay) as problem:
                problems.append("%s: %s" % (entry.path, words(problem)))
        return fetch, maybe, "; ".join(problems)

    def _make(self, entry: Entry) -> None:
        parts = parts_of(entry.path)
        parent = open_parent(self._top, parts)
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                raise InTheWay("what is no directory is in the way") from None
            if found.st_mode & 0o700 != 0o700:  # until `finish`
                os.chmod(parts[-1], 0o700, dir_fd=parent)
        finally:
            os.close(parent)
        self._directories.append(entry)

    def _stat(self, path: str) -> Optional[os.stat_result]:
        """Look at what is in a file's place; None: nothing, or what may be replaced."""
        parts = parts_of(path)
        parent = open_parent(self._top, parts)
        try:
            found = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            os.close(parent)
        if stat.S_ISDIR(found.st_mode):
            raise InTheWay("a directory is in the way")
        return found if stat.S_ISREG(found.st_mode) else None

    def hash(self, path: str, offset: int, size: int) -> str:
        """Hash a block of the file that is there; '' if it can't be read."""
        try:
            fd = open_file(self._top, path)
        except (OSError, ValueError):
            return ""
        try:
            return hash_of(os.pread(fd, size, offset))
        except OSError:
            return ""
        finally:
            os.close(fd)

    def touch(self, entry: Entry) -> str:
        """Give an equal file its mode and time; say in words if that can't be."""
        try:
            fd = open_file(self._top, entry.path)
            try:
                _dress(fd, entry)
            finally:
                os.close(fd)
        except OSError as problem:
            return "%s: %s" % (entry.path, words(problem))
        return ""

    def write(self, entry: Entry, data: bytes) -> None:
        """Put a small file there."""
        part = Part(self._top, entry)
        try:
            part.write(0, data)
            part.finish(len(data))
        finally:
            part.close()

    def part(self, entry: Entry) -> "Part":
        """Begin a large file, or go on with it."""
        return Part(self._top, entry)

    def finish(self) -> str:
        """Give the directories their modes and times, the deepest first; say in words
        where that went wrong.
        """
        problems: List[str] = []
        while self._directories:
            entry = self._directories.pop()
            try:
                self._dress_directory(entry)
            except OSError as problem:
                problems.append("%s: %s" % (entry.path, words(problem)))
        return "; ".join(problems)

    def _dress_directory(self, entry: Entry) -> None:
        parts = parts_of(entry.path)
        parent = open_parent(self._top, parts)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            fd = os.open(parts[-1], flags, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            _dress(fd, entry)
        finally:
            os.close(fd)


class Part:
    """A file that grows beside its place."""

    def __init__(self, top: int, entry: Entry) -> None:
        self._fd = self._parent = -1
        self.entry = entry
        parts = parts_of(entry.path)
        self._name = parts[-1]
        self._part = raw(PART + hash_of(self._name)[:16])
        self._parent = open_parent(top, parts)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._fd = os.open(self._part, flags, 0o600, dir_fd=self._parent)

    def close(self) -> None:
        """Give it back; what has come stays."""
        fds, self._fd, self._parent = (self._fd, self._parent), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    __del__ = close  # also when whoever asked for it had gone

    def hash(self, offset: int, size: int) -> str:
        """Hash a block of what has come; '' if it isn't all there."""
        data = os.pread(self._fd, size, offset)
        return hash_of(data) if len(data) == size else ""

    def copy(self, offset: int, size: int) -> None:
        """Take a block from the file that is in its place."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self._name, flags, dir_fd=self._parent)
        try:
            self.write(offset, os.pread(fd, size, offset))
        finally:
            os.close(fd)

    def write(self, offset: int, data: bytes) -> None:
        """Write what has come."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def finish(self, size: int) -> None:
        """Put it into its place."""
        os.ftruncate(self._fd, size)
        _dress(self._fd, self.entry)
        os.rename(
            *(self._part, self._name), src_dir_fd=self._parent, dst_dir_fd=self._parent
        )

    def drop(self) -> None:
        """Forget what has come: it can't be finished."""
        os.unlink(self._part, dir_fd=self._parent)


def prepare(dest: str, names: Sequence[str]) -> List[str]:
    """Make DEST and each node's part; give what tells these from all directories."""
    _make_directory(dest)
    found = [identity(os.stat(dest))]
    for name in names:
        path = os.path.join(dest, name)
        if not os.path.lexists(path):
            _make_directory(path)
        found.append(identity(os.lstat(path)))
    return found


def words(problem: Exception) -> str:
    """Say what is wrong, for a user."""
    return getattr(problem, "strerror", None) or str(problem)


def _make_directory(path: str) -> None:
    """Make a directory and those above it, which this process' umask would close."""
    if not os.path.isdir(path):
        above = os.path.dirname(path.rstrip("/"))
        if above:
            _make_directory(above)
        os.mkdir(path)
        os.chmod(path, DIRECTORY_MODE)


def _dress(fd: int, entry: Entry) -> None:
    os.fchmod(fd, entry.mode & 0o777)
    os.utime(fd, ns=(entry.mtime, entry.mtime))
