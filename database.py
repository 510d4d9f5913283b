"""One SQLite database of rows: making, opening, checking and salvaging it.

Reason for this file beside journal.py: how a damaged SQLite file is told, kept and
salvaged is a concern of its own, and larger than writing to a sound one.

Rules
    Only journal.py opens databases, by the functions here. They know nothing of what a
    row means or where a state directory keeps what. The words for errors are here too.

How it works
    Table rows: key, group, value, and a hash of these. A key that begins with NUL is
    the journal's own and sorts before all others. Table outputs: digest, data, hash.
    SQLite trusts what a disk gives it, so it isn't trusted here: `check` looks at the
    structure and whether the log was read to its end, `scan` at each row and the order.
    `fill` salvages: a copy gets a fresh first page, so that a broken header is no
    matter; it is read from both ends towards what can't be read, and the hash of each
    row tells whether it counts.

Invariants
    1. Damage is one exception, `Damage`, however it shows.
    2. A damaged database is only ever copied; no row of it is lost that can be read.

Not done: repairing in place; salvaging what lies behind damage in the log.
"""

import errno
import os
import struct

# Without the package around it, which brings datetime (half a MiB).
from _sqlite3 import Connection, DatabaseError, OperationalError, connect
from collections import deque
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Sequence, Set, Tuple

try:
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

PAGE_BYTES = 8192  # rows of up to 2 KB stay within a page (a quarter of it)
CHECKPOINT_PAGES = 256  # the log moves into the database each 2 MiB
LOG_BYTES_MAX = 4 << 20  # a log that a big transaction made longer is cut to this
ROW_HASH_BYTES = 8  # against accidents, not enemies
BLOCK_BYTES = 4096  # a bad sector costs this much of a damaged database
SALVAGE_TRIES_MAX = 2000  # times that a damaged tree is entered, some 20 us each
SALVAGE_KEY_BYTES = 64  # while salvaging, keys are told apart by this much of them

_PRAGMAS_OF_NEW = (
    f"page_size={PAGE_BYTES}",
    "auto_vacuum=INCREMENTAL",  # else the file could never become smaller
)
_PRAGMAS = (
    "locking_mode=EXCLUSIVE",  # also: no file of shared memory
    "journal_mode=WAL",
    "synchronous=FULL",
    f"wal_autocheckpoint={CHECKPOINT_PAGES}",
    f"journal_size_limit={LOG_BYTES_MAX}",
    "temp_store=MEMORY",
    "cell_size_check=ON",
)
_SCHEMA = (
    "CREATE TABLE rows (key BLOB, grp INTEGER, value BLOB, hash BLOB,"
    " PRIMARY KEY (key, grp)) WITHOUT ROWID",
    "CREATE TABLE outputs (n INTEGER PRIMARY KEY, digest BLOB UNIQUE,"
    " data BLOB, hash BLOB)",
)
PUT = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)"
PUT_OUTPUT = "INSERT OR REPLACE INTO outputs (digest, data, hash) VALUES (?, ?, ?)"
OWN_END = b"\1"  # after all keys that begin with NUL
CLOSED = b"\0closed "  # and a group's number: the group is closed
_DAMAGE_SIGNS = ("disk I/O error", "no such table", "readonly", "unsupported")

Row = Tuple[bytes, int, Optional[bytes], bytes]  # key, group, value, hash


class StateInUse(Exception):
    """Another process has this state directory; nothing in it was touched."""


class StateBroken(Exception):
    """The state directory can't be used; the text tells the user why."""


class Damage(Exception):
    """The database can't be trusted."""


@contextmanager
def telling(home: str) -> Iterator[None]:
    """Turn what goes wrong with `home` into words for the user."""
    try:
        yield
    except (OSError, DatabaseError, Damage) as error:
        raise StateBroken(trouble(error, home)) from error


GARBLED = "its schema is garbled"  # Python 3.7 says nothing at all, later ones raise


@contextmanager
def _reading() -> Iterator[None]:
    """Tell damage from other errors."""
    try:
        yield
    except DatabaseError as error:
        text = str(error)
        if "locked" in text:
            raise StateInUse("another program has the queue's database open") from error
        if type(error) is DatabaseError or any(sign in text for sign in _DAMAGE_SIGNS):
            raise Damage(text or GARBLED) from error
        raise
    except UnicodeDecodeError as error:  # of what SQLite says, with names that it read
        raise Damage(GARBLED) from error


def _connect(path: str, first: Sequence[str] = ()) -> Connection:
    database = connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    database.text_factory = bytes  # a flipped bit may turn bytes into broken text
    try:
        for pragma in (*first, *_PRAGMAS):
            database.execute("PRAGMA " + pragma).fetchall()
    except (DatabaseError, UnicodeDecodeError):
        database.close()
        raise
    return database


def connect_existing(path: str) -> Connection:
    # Of an empty file SQLite would make a new database, and remove the log beside it.
    if not os.path.exists(path) or os.path.getsize(path) < PAGE_BYTES:
        raise Damage("it is empty")
    with _reading():
        return _connect(path)


def check(database: Connection, path: str) -> None:
    """Raise Damage if the structure is wrong or the log wasn't read to its end."""
    with _reading():
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        frames = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    if verdict != b"ok":
        raise Damage(decode(verdict))
    if _has_more_commits(path + "-wal", frames):
        raise Damage("its log is damaged")


def _has_more_commits(path: str, frames: int) -> bool:
    """Tell whether the log holds commits after those that SQLite took.

    SQLite ends a log silently at the first frame that is wrong. That is right for what
    a crash cut short, which has no commit behind it; anything else was lost.
    """
    if not os.path.exists(path):
        return False
    with open(path, "rb") as log:
        head = log.read(32)
        if len(head) == 32 and not _is_log_head(head):
            return len(log.read(1)) > 0
        log.seek(max(0, frames) * (24 + PAGE_BYTES), os.SEEK_CUR)
        while True:
            # Page, pages after this commit or 0, salt, sum; then the page itself.
            frame = log.read(24 + PAGE_BYTES)
            if len(frame) < 24 + PAGE_BYTES:
                return False
            if frame[8:16] == head[16:24] and frame[4:8] != bytes(4):
                return True


def _is_log_head(head: bytes) -> bool:
    order = ">" if head[3] & 1 else "<"
    words = struct.unpack(order + "6I", head[:24])
    first = second = 0
    for i in range(0, 6, 2):
        first = (first + words[i] + second) & 0xFFFFFFFF
        second = (second + words[i + 1] + first) & 0xFFFFFFFF
    return struct.pack(">2I", first, second) == head[24:]


def scan(
    database: Connection, after: bytes
) -> Iterator[Tuple[bytes, int, Optional[bytes]]]:
    """Yield key, group and value in order, and raise Damage at the first wrong row."""
    query = "SELECT key, grp, value, hash FROM rows WHERE key > ? ORDER BY key, grp"
    last = (after, -1)
    with _reading():
        for row in database.execute(query, (after,)):
            if not is_sound(row):
                raise Damage("a row doesn't match its hash")
            if not last < row[:2]:  # a page that took another's place
                raise Damage("rows out of order")
            last = row[:2]
            yield row[0], row[1], row[2]


def fill(new: str, source: str) -> str:
    """Make a database in a new directory, with what can be read of that in `source`."""
    path = os.path.join(new, "db")
    os.mkdir(new, 0o700)
    os.close(create(path))
    database = _connect(path, _PRAGMAS_OF_NEW)
    report = ""
    try:
        for statement in _SCHEMA:
            database.execute(statement)
        if source:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            copy = os.path.join(new, "copy")
            _copy_with_page(os.path.join(source, "db"), copy, _first_page(path))
            report = _salvage(copy, database)
        # Closing would do this too, but never say that it failed.
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        database.close()
    for name in os.listdir(new):
        if name != "db":
            os.unlink(os.path.join(new, name))
    sync_file(path)
    sync_directory(new)
    return report


def _first_page(path: str) -> bytearray:
    with open(path, "rb") as file:
        return bytearray(file.read(PAGE_BYTES))


def _copy_with_page(damaged: str, path: str, page: bytearray) -> None:
    """Copy a database and its log, with the first page of a fresh one.

    Without a sound header SQLite refuses everything. The first page is the same in all,
    since their tables are; only the number of pages differs.
    """
    for end in ("", "-wal"):
        _copy(damaged + end, path + end)
    page[28:32] = struct.pack(">I", max(1, os.path.getsize(path) // PAGE_BYTES))
    with open(path, "r+b") as file:
        file.write(page)


def _salvage(path: str, new: Connection) -> str:
    """Take over each row and output that its hash confirms; say in words how many."""
    new.execute("PRAGMA synchronous=OFF")  # the whole file is fsynced before it counts
    wrong: Set[Tuple[Any, Any]] = set()
    holes = 0
    try:
        old = _connect(path)
    except (DatabaseError, UnicodeDecodeError):
        return "nothing of it could be read"
    for row in _readable(old):
        if row is None:
            holes += 1
        elif is_sound(row):
            new.execute(PUT, row)
        else:
            wrong.add((row[0], row[1]))
    # Whether an open group was closed may be unknown now: better a row too many.
    groups = new.execute("SELECT DISTINCT grp FROM rows WHERE grp > 0").fetchall()
    new.executemany(PUT, [sealed(CLOSED + b"%d" % n, b"") for (n,) in groups])
    _salvage_outputs(old, new)
    old.close()
    query = "SELECT count(*) FROM rows WHERE key > ?"
    saved = new.execute(query, (OWN_END,)).fetchone()[0]
    unread = ", some places could not be read" if holes else ""
    return f"{saved} rows saved, {len(wrong)} wrong{unread}"


def _salvage_outputs(old: Connection, new: Connection) -> None:
    try:
        for row in old.execute("SELECT digest, data, hash FROM outputs ORDER BY n"):
            if is_sound((row[0], 0, row[1], row[2])):
                new.execute(PUT_OUTPUT, row)
    except DatabaseError:
        pass  # the rest can be had from the node that ran the task


def _readable(old: Connection) -> Iterator[Optional[Row]]:
    """Yield all rows that can be reached, some twice; None for each place that can't.

    From both ends towards the damage; what lies between is halved, and again.
    """
    query = (
        "SELECT key, grp, value, hash FROM rows WHERE key > ? AND key <= ? ORDER BY "
    )
    pieces = deque([(b"", b"\xff" * SALVAGE_KEY_BYTES)])
    for _ in range(SALVAGE_TRIES_MAX):
        if not pieces:
            return
        low, high = pieces.popleft()
        try:
            for row in old.execute(query + "key, grp", (low, high)):
                low = row[0] if is_sound(row) else low
                yield row
            continue
        except DatabaseError:
            yield None
        try:
            for row in old.execute(query + "key DESC, grp DESC", (low, high)):
                high = row[0] if is_sound(row) else high
                yield row
        except DatabaseError:
            middle = _between(low, high)
            if low < middle < high:
                pieces += [(low, middle), (middle, high)]


def _between(low: bytes, high: bytes) -> bytes:
    size = SALVAGE_KEY_BYTES
    ends = (int.from_bytes(key[:size].ljust(size, b"\0"), "big") for key in (low, high))
    return (sum(ends) // 2).to_bytes(size, "big")


# Rows, files and words


def row_hash(key: bytes, group: int, value: Optional[bytes]) -> bytes:
    size = -1 if value is None else len(value)
    head = b"%d %d %d " % (len(key), group, size)
    return blake2b(head + key + (value or b""), digest_size=ROW_HASH_BYTES).digest()


def sealed(key: bytes, value: Optional[bytes], group: int = 0) -> Row:
    """Make a row with its hash."""
    return key, group, value, row_hash(key, group, value)


def is_sound(row: Sequence[Any]) -> bool:
    """Tell whether a row is what was written; flipped bits may change types too."""
    key, group, value, mark = row
    if type(key) is not bytes or type(group) is not int:
        return False
    if value is not None and type(value) is not bytes:
        return False
    return bool(mark == row_hash(key, group, value))


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def free_bytes(path: str) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def is_full(error: Exception, home: str) -> bool:
    """Tell whether the disk of `home` being full made the error."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not isinstance(error, OperationalError):
        return False
    if "disk I/O" in str(error) and os.path.exists(home):
        # Some file systems, and quotas, say so to fsync only.
        return free_bytes(home) < PAGE_BYTES
    return "full" in str(error)


def trouble(error: Exception, home: str) -> str:
    """Say in words for the user why `home` could not be read or written."""
    if is_full(error, home):
        return f"no space left on the disk of {home}"
    if isinstance(error, OSError):
        return f"cannot use {home}: {error.strerror or error}; see LEORONIC_HOME"
    if "disk I/O" in str(error):
        return f"the disk of {home} fails: disk I/O error"
    if type(error) in (DatabaseError, Damage):
        return f"the queue's database in {home} is damaged ({error}); restart this node"
    return f"cannot use the queue's database in {home}: {error}"


def sync_directory(path: str) -> None:
    sync_file(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: str, flags: int = os.O_RDWR) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a directory on FAT and the like
            raise
    finally:
        os.close(fd)


def create(path: str) -> int:
    """Open a new file that only this user may read."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy(source: str, path: str) -> None:
    """Copy what can be read; zeros for the rest (old disks have bad sectors)."""
    copied = create(path)
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        os.close(copied)
        return
    try:
        for offset in range(0, os.fstat(fd).st_size, BLOCK_BYTES):
            try:
                block = os.pread(fd, BLOCK_BYTES, offset)
            except OSError:
                block = bytes(BLOCK_BYTES)
            write_all(copied, block)
    finally:
        os.close(fd)
        os.close(copied)


def remove_directory(path: str) -> None:
    if os.path.isdir(path):
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
