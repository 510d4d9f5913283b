"""What a node keeps on disk: its queue, by way of the journal, and files by content.

Rules
    One process owns a state directory (flock). The loop hands over batches and jobs and
    collects answers: `write`, `ask_output`, `aside` and `poll` never wait for a disk.
    Nothing here knows what a row or a file is for.

How it works
    loop -- write, ask_output --> journal's thread --.
    loop -- aside -------> thread for files ---------+-- poll --> loop (notify wakes it)

    The journal's thread takes all that waits, puts it into one transaction, and answers
    when that is fsynced. The other one hashes and copies. Both begin with their first
    item, and are daemons: a disk that hangs doesn't keep a node from stopping.

    home/lock            flocked while in use; says by which process
    home/files, outputs  by content, the name is its SHA-256; the rest is the journal's

Invariants
    1. A second process that opens a state directory is told so, and changes nothing.
    2. Answers come in the order of batches; a question sees the batches before it.
    3. A file is under its name whole and fsynced, or not at all.

Not done: deciding what to keep or for how long, fetching from other nodes.
"""

import errno
import itertools
import os
import stat
import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Union,
)

import home
from database import (
    StateBroken,
    StateInUse,
    create,
    free_bytes,
    sync_directory,
    telling,
    trouble,
    write_all,
)
from journal import BALLAST_BYTES, OUTPUTS_BYTES_MAX, Batch, Journal, Written
from points import point

# The private modules are small; hashlib loads OpenSSL (3.5 MiB).
try:
    from _sha2 import sha256
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256

__all__ = ["Batch", "StateBroken", "StateInUse", "Written"]  # from the journal

ROWS_PER_COMMIT = 4000  # bounds how long a commit takes, and its place in the log
CLOSE_WAIT_S = 10.0  # for a slow disk to take what was written; a hung one never does
PIECE_BYTES = 256 << 10  # hashed at once: the loop can't run for these ms
LARGE_BYTES = 16 << 20  # OpenSSL is worth its memory: quicker, and the loop runs
DIGEST_CHARACTERS = 64


class Found(NamedTuple):
    """The answer to `ask_output`: None if the output isn't here."""

    ticket: int
    data: Optional[bytes]


class Done(NamedTuple):
    """The answer to `aside`: what the job returned, or raised."""

    ticket: int
    result: Any
    error: Optional[Exception]


class Kept(NamedTuple):
    """A file in the store; mode: the permission bits that its source had."""

    digest: str
    size: int
    mode: int


class _Question(NamedTuple):
    ticket: int
    digest: str


class _Job(NamedTuple):
    ticket: int
    run: Callable[[], Any]


Answer = Union[Written, Found, Done]


class Store:
    """The state directory of one node. `open`, `load`, `start`; `close` at the end."""

    def __init__(
        self,
        home: str,
        notify: Callable[[], None],
        ballast_bytes: int = BALLAST_BYTES,
        outputs_bytes_max: int = OUTPUTS_BYTES_MAX,
    ) -> None:
        """Prepare; the threads call `notify` whenever `poll` has something."""
        self.files = Files(home)
        self._home = home
        self._notify = notify
        self._lock = -1
        self._journal = Journal(home, ballast_bytes, outputs_bytes_max)
        self._answers: Deque[Answer] = deque()
        self._writer = _Worker(self._on_journal, ROWS_PER_COMMIT)
        self._helper = _Worker(self._on_jobs, 1)

    @property
    def notices(self) -> List[str]:
        """Lines for the user that came up since `open`, in `load`."""
        return self._journal.notices

    @property
    def meta(self) -> Dict[str, bytes]:
        """What batches wrote as meta, as it was at `open`."""
        return self._journal.meta

    def open(self) -> List[str]:
        """Take the directory, or raise StateInUse or StateBroken; returns notices."""
        with telling(self._home):
            self._lock = home.take(self._home, self.notices)
        try:
            self._journal.open()
            self.files.open()
        except (StateInUse, StateBroken):
            self._journal.close()
            os.close(self._lock)
            raise
        notices = list(self.notices)
        self.notices.clear()
        return notices

    def load(self) -> Iterator[Tuple[str, bytes]]:
        """Yield all valid rows, by key. To be read to its end before `start`."""
        return self._journal.rows()

    def start(self) -> None:
        """Leave the journal to its thread, which begins with the first batch."""

    def write(self, batch: Batch) -> None:
        self._writer.put(batch)

    def ask_output(self, ticket: int, digest: str) -> None:
        """Look for a small output; the answer is a Found."""
        self._writer.put(_Question(ticket, digest))

    def aside(self, ticket: int, job: Callable[[], Any]) -> None:
        """Run what may take long in the other thread; the answer is a Done."""
        self._helper.put(_Job(ticket, job))

    def poll(self) -> List[Answer]:
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def close(self, wait_s: float = CLOSE_WAIT_S) -> bool:
        """Write all that waits and give the directory back; False if time was up."""
        is_written = self._writer.stop(self._journal.close, wait_s)
        if not (self._helper.stop(lambda: None, wait_s) and is_written):
            return False  # the lock stays: something is still being written
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        return True

    def _on_journal(self, items: List[Any]) -> None:
        batches = [item for item in items if isinstance(item, Batch)]
        self._answers.extend(self._journal.write(batches))
        for item in items:
            if isinstance(item, _Question):
                data = self._journal.output(item.digest)
                self._answers.append(Found(item.ticket, data))
        self._notify()

    def _on_jobs(self, jobs: List[Any]) -> None:
        for job in jobs:
            try:
                answer = Done(job.ticket, job.run(), None)
            except Exception as error:  # it is the caller's, who asked for the job
                answer = Done(job.ticket, None, error)
            self._answers.append(answer)
        self._notify()


class _Worker:
    """A thread that takes what waits, some of it at once, and works on it."""

    def __init__(self, work: Callable[[List[Any]], None], at_once: int) -> None:
        self._work = work
        self._at_once = at_once
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        self._last: Callable[[], None] = lambda: None

    def put(self, item: Any) -> None:
        self._items.put(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self, last: Callable[[], None], wait_s: float) -> bool:
        """Do `last` after all that waits; tell whether it came to that in time."""
        if self._thread is None:
            last()
            return True
        self._last = last
        self.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            items = [self._items.get()]
            weight = _weight(items[0])
            try:
                while weight < self._at_once:
                    items.append(self._items.get_nowait())
                    weight += _weight(items[-1])
            except Empty:
                pass
            is_over = items[-1] is None
            self._work(items[:-1] if is_over else items)
            if is_over:
                return self._last()


def _weight(item: Any) -> int:
    return 1 + len(item.rows) if isinstance(item, Batch) else 1


class Files:
    """Files by content, and large outputs. Each method may be used on any thread.

    What goes wrong is an OSError whose text is for the user.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._files = os.path.join(home, "files")
        self._outputs = os.path.join(home, "outputs")
        self._count = itertools.count()

    def open(self) -> None:
        """Make the directories, remove half files; only for who opened the Store."""
        with telling(self._home):
            for directory in (self._files, self._outputs):
                if not os.path.isdir(directory):
                    os.mkdir(directory, 0o700)
                    sync_directory(self._home)
                for name in os.listdir(directory):
                    if not _is_digest(name):
                        os.unlink(os.path.join(directory, name))

    def keep(self, path: str) -> Kept:
        """Copy a file into the store; if it changes meanwhile, what was read counts."""
        fd, facts = _open_source(path)
        try:
            with Part(self._files, self._part_name(), facts.st_size) as part:
                for piece in _pieces(fd, path):
                    part.write(piece)
                return part.finish()._replace(mode=facts.st_mode & 0o777)
        finally:
            os.close(fd)

    def keep_bytes(self, data: bytes) -> Kept:
        with Part(self._files, self._part_name(), len(data)) as part:
            part.write(data)
            return part.finish()

    def receive(self, digest: str, size: int) -> "Part":
        """Begin a file that another node sends; what isn't as announced is refused."""
        self.path(digest)
        return Part(self._files, self._part_name(), size, digest)

    def path(self, digest: str) -> str:
        return _place(self._files, digest)

    def has(self, digest: str) -> bool:
        return _is_digest(digest) and os.path.exists(self.path(digest))

    def drop(self, digest: str) -> None:
        _drop(self.path(digest))

    def all(self) -> Iterator[str]:
        """Yield the digests of the files that are here."""
        return filter(_is_digest, os.listdir(self._files))

    def keep_output(self, path: str) -> Tuple[int, str]:
        """Move a task's complete output to the large ones; returns size and digest."""
        fd, facts = _open_source(path)
        try:
            summary, size = _summary(facts.st_size), 0
            for piece in _pieces(fd, path):
                summary.update(piece)
                size += len(piece)
            digest: str = summary.hexdigest()
            os.fchmod(fd, 0o600)
            os.fsync(fd)
            point("before rename")
            os.rename(path, self.output_path(digest))
            sync_directory(self._outputs)
        except OSError as error:
            raise _told(error, self._home) from error
        finally:
            os.close(fd)
        return size, digest

    def output_path(self, digest: str) -> str:
        return _place(self._outputs, digest)

    def drop_output(self, digest: str) -> None:
        _drop(self.output_path(digest))

    def all_outputs(self) -> Iterator[str]:
        return filter(_is_digest, os.listdir(self._outputs))

    def _part_name(self) -> str:
        return f"part-{os.getpid()}-{next(self._count)}"


class Part:
    """A file that is being written; it is in the store once `finish` has returned.

    With a digest given, it must have exactly that and `size`; else `size` is a guess.
    """

    def __init__(self, directory: str, name: str, size: int, digest: str = "") -> None:
        self._directory = directory
        self._path = os.path.join(directory, name)
        self._announced = size
        self._digest = digest
        self._size = 0
        self._summary = _summary(size)
        self._fd = -1
        try:
            if size > free_bytes(directory):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._fd = create(self._path)
        except OSError as error:
            raise _told(error, directory) from error

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._digest and self._size > self._announced:
            raise OSError(f"a file was sent with more than its {self._announced} bytes")
        self._summary.update(piece)
        try:
            write_all(self._fd, piece)
        except OSError as error:
            raise _told(error, self._directory) from error

    def finish(self) -> Kept:
        """Put the file under its name, fsynced; OSError if it isn't as announced."""
        digest: str = self._summary.hexdigest()
        if self._digest and (digest, self._size) != (self._digest, self._announced):
            self.abandon()
            raise OSError(f"a file was sent with other content than {self._digest}")
        try:
            os.fsync(self._fd)
            point("before rename")
            os.rename(self._path, _place(self._directory, digest))
            point("after rename")
            sync_directory(self._directory)
        except OSError as error:
            raise _told(error, self._directory) from error
        finally:
            self.abandon()
        return Kept(digest, self._size, 0o644)

    def abandon(self) -> None:
        """Remove what was written; no harm once it is finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _drop(self._path)


def digest_of(data: bytes) -> str:
    """Return the SHA-256 by which `data` is kept, as a file or as an output."""
    return str(sha256(data).hexdigest())


def _summary(size: int) -> Any:
    """Begin the SHA-256 of so many bytes, about."""
    if size < LARGE_BYTES:
        return sha256()
    import hashlib

    return hashlib.sha256()


def _open_source(path: str) -> Tuple[int, os.stat_result]:
    """Open a regular file; a FIFO or a device must not hold up who asks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        found = "a directory" if stat.S_ISDIR(facts.st_mode) else "no regular file"
        raise OSError(f"cannot read {path}: it is {found}")
    return fd, facts


def _pieces(fd: int, path: str) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(fd, PIECE_BYTES)
        except OSError as error:
            raise OSError(f"cannot read {path}: {error.strerror}") from error
        if not piece:
            return
        yield piece


def _told(error: OSError, home: str) -> OSError:
    """Put an error into words, unless it is in words already."""
    return error if error.errno is None else OSError(trouble(error, home))


def _is_digest(name: str) -> bool:
    return len(name) == DIGEST_CHARACTERS and not set(name) - set("0123456789abcdef")


def _place(directory: str, digest: str) -> str:
    """Return the path of a content; what a peer sent becomes no path unchecked."""
    if not _is_digest(digest):
        raise ValueError(f"not a SHA-256 in hex: {digest!r}")
    return os.path.join(directory, digest)


def _drop(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
