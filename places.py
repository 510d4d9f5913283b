"""The necessary files of runs, in a node's working directory.

Reason for this file beside sandbox.py: names and paths from users are dealt with in one
place, without processes beside them.

Rules: knows nothing of processes and of the cluster. No name from a user is used as a
path but step by step from the working directory, following no link.

How it works: files are *copied* (a task may append to them) from the store by content,
under a unique name, or under `--keep-names` under their own, where runs that name the
same content share one copy. Before something is placed, a line in a record of the run
says so; after a crash `undo` removes what the records tell. All that may take long
happens in one thread (class Worker), which hands back results and owns the bookkeeping.

Invariants:
1. No file that was there before is overwritten or removed.
2. Of a file never more than 1 MiB is in memory.

Not done here: room on the disk is checked before, by whoever starts the run.
"""

import json
import os
import re
import stat
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Set, Tuple

from slots import remove

try:  # hashlib would bring OpenSSL along: 3.5 MiB
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

COPY_BYTES = 1024 * 1024  # a piece of a file while it is copied, compared or hashed
CLOSE_S = 1.0  # the thread has this long to finish

File = Tuple[str, str, int, int]  # name as the user gave it, digest, size, mode
IsOff = Callable[[], bool]


def raw(text: str) -> bytes:
    """The bytes that the user gave; ValueError if there are none for it."""
    return text.encode("utf-8", "surrogateescape")


def unique_name(run: str, index: int, name: str) -> str:
    """The name of the run's copy of its file number `index`, with the extension."""
    mark = blake2b(raw(run), digest_size=6).hexdigest()
    last = name.rpartition("/")[2]
    extension = re.search(r"(?<=[^.])((\.tar)?\.[\w+-]{1,16})$", last)
    return f"leoronic-{mark}-{index}{extension.group(1) if extension else ''}"


def renames(
    command: str, files: Sequence[str], unique: Callable[[int], str]
) -> Tuple[str, List[str]]:
    """Put unique names into a command; return it and warnings for the user.

    Pure. Literal, longest first, in one pass; as given and, where only one of the files
    has it, as the last part.
    """
    lasts = [name.rpartition("/")[2] for name in files]
    index_of: Dict[str, int] = {}
    for index, name in enumerate(files):
        index_of.setdefault(name, index)
    for index, last in enumerate(lasts):
        if last and len({f for f, other in zip(files, lasts) if other == last}) == 1:
            index_of.setdefault(last, index)
    warnings: List[str] = []

    def replace(found: "re.Match[str]") -> str:
        start, end = found.span()
        before, after = command[max(start - 20, 0) : start], command[end : end + 20]
        if re.search(r"\w$", before) or re.match(r"\w", after):
            word = re.split(r"\s", before)[-1] + found.group()
            word += re.split(r"\s", after)[0]
            warnings.append(f"{found.group()} is also replaced inside {word}")
        return unique(index_of[found.group()])

    names = sorted(filter(None, index_of), key=len, reverse=True)
    if not names:
        return command, warnings
    command = re.sub("|".join(map(re.escape, names)), replace, command)
    return command, list(dict.fromkeys(warnings))


def kept_name(name: str) -> str:
    """Where a file goes under `--keep-names`; ValueError if that is nowhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        parts = parts[-1:]
    if not parts or parts == [".."] or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    return "/".join(parts)


def _sha256(file: Any) -> str:
    try:
        from _sha256 import sha256  # until 3.11
    except ImportError:
        from hashlib import sha256
    digest = sha256()
    for piece in iter(lambda: file.read(COPY_BYTES), b""):
        digest.update(piece)
    return str(digest.hexdigest())


class Places:
    """The necessary files of runs in one working directory.

    Its methods run in the worker thread, but for `may_place` and `has_file`, which the
    loop calls and which change nothing but the cache of digests. Names are relative.
    """

    def __init__(
        self, directory: str, records: str, file_path: Callable[[str], str]
    ) -> None:
        self._directory = directory
        self._records = records
        self._file_path = file_path
        self._placed: Dict[str, List[str]] = {}  # run: names
        self._kept: Dict[str, Tuple[str, int]] = {}  # name: digest, runs that use it
        self._made: Set[str] = set()  # directories that are ours
        self._digests: Dict[Tuple[int, ...], str] = {}  # identity of a file: digest

    def place(
        self, run: str, files: Sequence[File], keep_names: bool, is_off: IsOff
    ) -> str:
        """Copy all files of a run, or none; return why not. `is_off` ends it early."""
        self._placed[run] = []
        name = ""
        try:
            self._note(run, "directory", self._directory)
            for index, file in enumerate(files):
                name = file[0]
                if keep_names:
                    self._place(run, kept_name(name), file, True, is_off)
                else:
                    where = unique_name(run, index, name)
                    self._place(run, where, file, False, is_off)
        except (OSError, ValueError) as error:
            self.remove(run)
            self._prune_all()
            why = error.strerror if isinstance(error, OSError) else error
            return f"{name} can't be placed in {self._directory}: {why}"
        return ""

    def remove(self, run: str) -> None:
        """Remove what was placed for a run, as far as no other run shares it."""
        for where in reversed(self._placed.pop(run, [])):
            digest, users = self._kept.pop(where, ("", 1))
            if users > 1:
                self._kept[where] = (digest, users - 1)
            else:
                self._unlink(where)
        remove(self._record(run))

    def undo(self, record: str) -> None:
        """Remove what a former process recorded and didn't come to remove."""
        entries = []
        with open(record) as file:
            for line in file:
                try:
                    entries.append(json.loads(line))
                except ValueError:  # cut short by the crash
                    break
        inodes = {entry[1]: entry[2:] for entry in entries if entry[0] == "inode"}
        for kind, where, *rest in entries:
            if kind == "directory":
                self._directory = where
            elif kind == "made":
                self._made.add(where)
            elif kind == "file" and self._is_ours(where, rest[0], inodes.get(where)):
                self._unlink(where)
        self._prune_all()
        remove(record)

    def has_file(self, name: str) -> bool:
        """Whether a file or directory is there, inside and reached through no link."""
        if name.startswith("/") or ".." in name.split("/"):
            return False
        try:
            mode = self._stat(kept_name(name)).st_mode
        except (OSError, ValueError):
            return False
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def may_place(self, name: str, digest: str, later: Callable[..., None]) -> bool:
        """Whether no other content has that name.

        A big file is hashed by way of `later`; until that is done the answer is no.
        """
        try:
            where = kept_name(name)
            if where in self._kept:
                return self._kept[where][0] == digest
            with open(self._open(where), "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
                if not stat.S_ISREG(found.st_mode):
                    return False
                if key not in self._digests and found.st_size <= COPY_BYTES:
                    self._digests[key] = _sha256(file)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):
            return False
        if key not in self._digests:
            self._digests[key] = ""
            later(lambda: self._hash(where, key))
        return self._digests[key] == digest

    def _hash(self, where: str, key: Tuple[int, ...]) -> None:
        try:
            with open(self._open(where), "rb", buffering=0) as file:
                self._digests[key] = _sha256(file)
        except OSError:
            del self._digests[key]

    def _record(self, run: str) -> str:
        return f"{self._records}/{unique_name(run, 0, '')}.placed"

    def _note(self, run: str, *entry: Any) -> None:
        with open(self._record(run), "a") as file:  # JSON is ASCII here
            file.write(json.dumps(entry) + "\n")

    def _parent(self, where: str, run: str = "") -> Tuple[int, bytes]:
        """Open a name's directory step by step, making what is missing if for a run."""
        *directories, last = where.split("/")
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = os.open(self._directory, flags)
        for depth, part in enumerate(map(raw, directories), 1):
            parent = fd
            try:
                try:
                    fd = os.open(part, flags | os.O_NOFOLLOW, dir_fd=parent)
                except FileNotFoundError:
                    if not run:
                        raise
                    made = "/".join(directories[:depth])
                    self._note(run, "made", made)
                    os.mkdir(part, dir_fd=parent)
                    self._made.add(made)
                    fd = os.open(part, flags | os.O_NOFOLLOW, dir_fd=parent)
            finally:
                os.close(parent)
        return fd, raw(last)

    def _open(self, where: str) -> int:
        parent, last = self._parent(where)
        try:  # NONBLOCK: a FIFO must not hold us up
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            return os.open(last, flags, dir_fd=parent)
        finally:
            os.close(parent)

    def _stat(self, where: str) -> os.stat_result:
        parent, last = self._parent(where)
        try:
            return os.stat(last, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _share(self, run: str, where: str, digest: str) -> bool:
        if where not in self._kept:
            return False
        if self._kept[where][0] != digest:
            raise ValueError("a running task has another file of that name there")
        self._kept[where] = (digest, self._kept[where][1] + 1)
        self._placed[run].append(where)
        return True

    def _place(
        self, run: str, where: str, file: File, is_kept: bool, is_off: IsOff
    ) -> None:
        _, digest, size, mode = file
        if is_kept and self._share(run, where, digest):
            return
        with open(self._file_path(digest), "rb", buffering=0) as source:
            fd = self._create(run, where, is_kept, source)
            if fd < 0:
                return  # the user's own will do, and stays
            with open(fd, "wb", buffering=0) as target:
                _copy(source, target, size, is_off)
                os.fchmod(fd, mode & 0o777)
        if is_kept:
            self._kept[where] = (digest, 1)

    def _create(self, run: str, where: str, is_kept: bool, source: Any) -> int:
        """Make the empty file, or return -1 if one with that content is there."""
        parent, last = self._parent(where, run)
        try:
            self._note(run, "file", where, is_kept)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            fd = os.open(last, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            if is_kept and self._is_same(where, source):
                return -1
            raise ValueError("another file of that name is there") from None
        finally:
            os.close(parent)
        self._placed[run].append(where)
        found = os.fstat(fd)
        self._note(run, "inode", where, found.st_dev, found.st_ino)
        return fd

    def _is_same(self, where: str, source: Any) -> bool:
        with open(self._open(where), "rb", buffering=0) as there:
            found = os.fstat(there.fileno())
            if not stat.S_ISREG(found.st_mode):
                return False
            if found.st_size != os.fstat(source.fileno()).st_size:
                return False
            for piece in iter(lambda: source.read(COPY_BYTES), b""):
                if piece != there.read(len(piece)):
                    return False
        return True

    def _is_ours(self, where: str, is_kept: bool, inode: Optional[List[int]]) -> bool:
        """Whether a recorded name is still our copy; a unique name always is."""
        if not is_kept:
            return True
        try:
            found = self._stat(where)
        except OSError:
            return False
        if inode is None:  # the crash came around the creation
            return found.st_size == 0
        return inode == [found.st_dev, found.st_ino]

    def _unlink(self, where: str) -> None:
        """Remove a file, then the directories above it that are ours and empty."""
        self._try(os.unlink, where)
        self._prune(where.rpartition("/")[0])

    def _prune(self, where: str) -> None:
        while where in self._made and self._try(os.rmdir, where):
            self._made.discard(where)
            where = where.rpartition("/")[0]

    def _prune_all(self) -> None:
        for where in sorted(self._made, reverse=True):
            self._prune(where)

    def _try(self, remove: Callable[..., None], where: str) -> bool:
        try:
            parent, last = self._parent(where)
        except (OSError, ValueError):
            return False
        try:
            remove(last, dir_fd=parent)
        except OSError:
            return False
        finally:
            os.close(parent)
        return True


def _copy(source: Any, target: Any, size: int, is_off: IsOff) -> None:
    copied = 0
    for piece in iter(lambda: source.read(COPY_BYTES), b""):
        if is_off():
            raise ValueError("stopped")
        view = memoryview(piece)
        while view:
            view = view[target.write(view) :]
        copied += len(piece)
    if copied != size:
        raise ValueError(f"it has {copied} bytes where {size} were announced")


class Worker:
    """One thread, started with the first job, that hands results back to the loop."""

    def __init__(self, watch: Callable[[int, Callable[[], None]], None]) -> None:
        self._watch = watch
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._results: Deque[Tuple[Callable[[Any], None], Any]] = deque()
        self._wake: Tuple[int, ...] = ()

    def do(
        self, job: Callable[[], Any], then: Callable[[Any], None] = lambda _: None
    ) -> None:
        """Run `job` in the thread, then `then` with its result in the loop."""
        if not self._wake:
            self._wake = os.pipe()
            self._watch(self._wake[0], self._on_result)
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._jobs.put((job, then))

    def close(self, unwatch: Callable[[int], None]) -> None:
        """Let it finish what it has, for a second; nothing more is handed back."""
        if self._wake:
            unwatch(self._wake[0])
            self._jobs.put(None)
            self._thread.join(CLOSE_S)

    def _work(self) -> None:
        for job, then in iter(self._jobs.get, None):
            try:
                result = job()
            except Exception as error:  # the thread must go on for the other runs
                result = f"{type(error).__name__}: {error}"
            self._results.append((then, result))
            os.write(self._wake[1], b"\n")
        for fd in self._wake:
            os.close(fd)

    def _on_result(self) -> None:
        os.read(self._wake[0], 4096)
        while self._results:
            then, result = self._results.popleft()
            then(result)
