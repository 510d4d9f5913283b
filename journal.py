"""The journal: the queue's rows and small outputs, written in groups, on disk for sure.

Reason for this file beside store.py: what is durable when is one concern, files by
content and the threads another.

Rules
    store.py has the only Journal: the loop's thread opens and reads it, then leaves it
    to one other thread, which writes. Rows are bytes here; what they mean is the
    queue's business. The caller has locked the directory.

How it works
    Each write is one transaction, and SQLite's log is fsynced before it returns. Rows
    of an open group carry its number; one more row, which says that it is closed, makes
    them valid: to close a group of a million costs no more than one of ten.

    queue/          the database and its log
    queue.made      there has been a database: one that is missing was lost
    queue.new       being made
    queue.damaged   being salvaged
    damaged-DATE    a database that could not be trusted, kept
    ballast         given up when the disk is full: ends and deletes still fit then

Invariants
    1. Written without error: it is on the disk. With an error: it doesn't count. (When
       the disk failed in the middle and a crash followed, it may be there, whole.)
    2. A group comes to life whole, when it is closed, or never.
    3. No row is believed that its hash doesn't confirm: SQLite can't see a flipped bit.
    4. An unreadable database is set aside and said, never taken for an empty queue and
       never overwritten; a repair that is cut short at any point begins again.

Not done: merging, retrying, telling old from new, deleting what was set aside.
"""

import errno
import os
import time
from _sqlite3 import Connection, DatabaseError, OperationalError
from typing import (
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from database import (
    CHECKPOINT_PAGES,
    CLOSED,
    OWN_END,
    PAGE_BYTES,
    PUT,
    PUT_OUTPUT,
    Damage,
    StateBroken,
    StateInUse,
    check,
    connect_existing,
    create,
    decode,
    encode,
    fill,
    free_bytes,
    is_full,
    is_sound,
    remove_directory,
    row_hash,
    scan,
    sealed,
    sync_directory,
    telling,
    trouble,
    write_all,
)
from points import point

BALLAST_BYTES = 4 << 20  # hundreds of small updates, and room for a checkpoint
assert BALLAST_BYTES >= 2 * CHECKPOINT_PAGES * PAGE_BYTES
OUTPUTS_BYTES_MAX = 64 << 20  # small outputs, all together; the oldest go first
_META, _LAST_GROUP = b"\0meta ", b"\0last group"


class Batch(NamedTuple):
    """What is written together or not at all."""

    seq: int
    rows: Sequence[Tuple[str, Optional[bytes]]] = ()  # None drops the row
    meta: Mapping[str, bytes] = {}
    outputs: Sequence[Tuple[str, bytes]] = ()  # digest, data
    group: int = 0  # its rows wait until the group is closed; no number is used twice
    close: int = 0
    abort: int = 0


class Written(NamedTuple):
    """The answer to a batch: without an error it is fsynced."""

    seq: int
    error: str


class _Ballast:
    """A file that keeps some of the disk free for the writes that matter most."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        self._size = size
        self._is_held = False

    def hold(self) -> bool:
        """Tell whether it is in place; make it when there is room."""
        if not self._is_held:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(self._path, flags, 0o600)
            except OSError:
                return False
            try:
                if os.fstat(fd).st_size < self._size:
                    if free_bytes(self._path) < 2 * self._size:
                        return False
                    write_all(fd, bytes(self._size))
            except OSError:
                os.truncate(self._path, 0)
                return False
            finally:
                os.close(fd)
            self._is_held = True
        return True

    def release(self) -> None:
        self._is_held = False
        if os.path.exists(self._path):
            os.truncate(self._path, 0)


class Journal:
    """The database of one state directory. Not for two threads at a time."""

    def __init__(self, home: str, ballast_bytes: int, outputs_bytes_max: int) -> None:
        self.notices: List[str] = []
        self.meta: Dict[str, bytes] = {}
        self._home = home
        self._queue = os.path.join(home, "queue")
        self._database: Optional[Connection] = None
        self._is_suspect = False  # after an error: don't build on the log as it is
        self._ballast = _Ballast(os.path.join(home, "ballast"), ballast_bytes)
        self._outputs_bytes_max = outputs_bytes_max
        self._outputs_bytes: Optional[int] = None  # None: to be counted
        self._groups: Dict[int, int] = {}  # the caller's number: the one on disk
        self._broken: Set[int] = set()  # groups of which a part could not be written
        self._closed: Set[int] = set()  # numbers on disk
        self._last_group = 0  # the highest number on disk

    # Reading, checking and repairing

    def open(self) -> None:
        """Open, make or salvage the database; raises StateInUse or StateBroken."""
        try:
            with telling(self._home):
                self._open_or_repair()
                if not os.path.exists(self._queue + ".made"):
                    os.close(create(self._queue + ".made"))
                    sync_directory(self._home)
        except (StateInUse, StateBroken):
            self._detach()
            raise
        self._ballast.hold()

    def rows(self) -> Iterator[Tuple[str, bytes]]:
        """Yield what is valid, by key; repair on the way what turns out damaged."""
        last = OWN_END
        groups: Set[int] = set()
        while True:
            try:
                for key, value in self._newest(last, groups):
                    last = key
                    if value is not None:
                        yield decode(key), value
                break
            except Damage as damage:
                with telling(self._home):
                    self._repair(str(damage))
        self._forget(groups)

    def _open_or_repair(self) -> None:
        remove_directory(self._queue + ".new")
        if os.path.exists(self._queue + ".damaged"):  # a repair was cut short
            if not os.path.exists(self._queue):
                os.rename(self._queue + ".damaged", self._queue)
                self._repair("its repair was interrupted")
                return
            kept = self._keep_damaged()
            self.notices.append(f"the queue's database was damaged; see {kept}")
        if os.path.exists(self._queue):
            try:
                self._attach()
            except Damage as damage:
                self._repair(str(damage))
        else:
            self._begin()

    def _begin(self) -> None:
        if os.path.exists(self._queue + ".made"):
            self.notices.append(
                f"the queue's database in {self._home} has vanished; this node begins "
                "with an empty queue; other comrades give it what they have"
            )
        fill(self._queue + ".new", "")
        self._place()

    def _repair(self, why: str) -> None:
        """Set the database aside, and begin one with all that can be read of it."""
        damaged = self._queue + ".damaged"
        os.rename(self._queue, damaged)
        sync_directory(self._home)
        # Only now: at its new name SQLite can't remove the log when it closes.
        self._detach()
        point("set aside")
        report = fill(self._queue + ".new", damaged)
        point("salvaged")
        self._place()
        self.notices.append(
            f"the queue's database was damaged ({why}): {report}; other comrades give "
            f"this node what is missing; a copy is kept in {self._keep_damaged()}"
        )

    def _place(self) -> None:
        os.rename(self._queue + ".new", self._queue)
        sync_directory(self._home)
        point("placed")
        self._attach()

    def _keep_damaged(self) -> str:
        date = os.path.join(self._home, time.strftime("damaged-%Y%m%d-%H%M%S"))
        path, n = date, 1
        while os.path.exists(path):
            n += 1
            path = f"{date}-{n}"
        os.rename(self._queue + ".damaged", path)
        sync_directory(self._home)
        point("kept")
        return path

    def _attach(self) -> None:
        """Open the database, check its structure and read the journal's own rows."""
        path = os.path.join(self._queue, "db")
        self._database = connect_existing(path)
        try:
            check(self._database, path)
        except OperationalError as error:
            if not is_full(error, self._home):
                raise
            self._ballast.release()
            check(self._database, path)
        self._closed = set()
        for key, _, value in scan(self._database, b""):
            if key >= OWN_END:
                break
            if key.startswith(_META):
                self.meta[decode(key[len(_META) :])] = value or b""
            elif key.startswith(CLOSED):
                self._closed.add(int(key[len(CLOSED) :]))
            elif key == _LAST_GROUP:
                self._last_group = int(value or b"0")

    def _detach(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except DatabaseError:
                pass  # it was to be given up in any case

    def _newest(
        self, after: bytes, groups: Set[int]
    ) -> Iterator[Tuple[bytes, Optional[bytes]]]:
        """Yield of each key the version that counts: that of the last closed group."""
        newest: Optional[Tuple[bytes, Optional[bytes]]] = None
        for key, group, value in scan(self._live, after):
            groups.add(group)
            if group and group not in self._closed:
                continue
            if newest is not None and newest[0] != key:
                yield newest
            newest = key, value
        if newest is not None:
            yield newest

    def _forget(self, groups: Set[int]) -> None:
        """Drop the rows of groups that were never closed, the marks of empty ones."""
        marks = [(CLOSED + b"%d" % n,) for n in self._closed - groups]
        try:
            for number in groups - self._closed - {0}:
                self._drop_group(number)
            self._live.executemany("DELETE FROM rows WHERE key = ?", marks)
        except DatabaseError as error:
            self._undo(error)  # a full disk, say; the next start tries again

    # Writing

    def write(self, batches: Sequence[Batch]) -> List[Written]:
        """Write all in one transaction or, if that fails, each in its own."""
        if len(batches) > 1 and self._database and not self._is_suspect:
            try:
                if self._ballast.hold():
                    self._commit(batches)
                    return [Written(batch.seq, "") for batch in batches]
            except Exception as error:  # the thread must live; one by one tells whose
                self._undo(error)
        return [Written(batch.seq, self._write_one(batch)) for batch in batches]

    def output(self, digest: str) -> Optional[bytes]:
        """Return a small output; None if it isn't here or is damaged."""
        try:
            self._mend()
            found = self._live.execute(
                "SELECT data, hash FROM outputs WHERE digest = ?", (encode(digest),)
            ).fetchone()
        except (OSError, DatabaseError, Damage):
            return None
        if found is None or not is_sound((encode(digest), 0, *found)):
            return None
        data: bytes = found[0]
        return data

    def close(self) -> None:
        self._detach()  # SQLite moves the log into the database and removes it

    @property
    def _live(self) -> Connection:
        assert self._database is not None, "the journal is not open"
        return self._database

    def _write_one(self, batch: Batch) -> str:
        try:
            try:
                self._try(batch)
            except Exception as error:
                self._undo(error)
                if not is_full(error, self._home) or self._adds(batch):
                    raise
                self._ballast.release()
                self._try(batch)
        except Exception as error:  # the thread must live, whatever a batch holds
            self._undo(error)
            if batch.group:
                self._broken.add(batch.group)
            return trouble(error, self._home)
        return ""

    def _try(self, batch: Batch) -> None:
        self._mend()
        if not self._ballast.hold() and self._adds(batch):
            self._shrink()
            if not self._ballast.hold():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._commit([batch])

    def _shrink(self) -> None:
        """Give the disk back what dropped rows have left, in small steps."""
        run = self._live.execute
        while run("PRAGMA freelist_count").fetchone()[0] > 0:
            run(f"PRAGMA incremental_vacuum({CHECKPOINT_PAGES})").fetchall()
            run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _adds(self, batch: Batch) -> bool:
        """Tell whether it holds new rows: what is refused when the disk is full."""
        if self._database is None:
            return True
        known = "SELECT 1 FROM rows WHERE key = ?"
        return any(
            value is not None
            and (
                batch.group
                or not self._database.execute(known, (encode(key),)).fetchone()
            )
            for key, value in batch.rows
        )

    def _commit(self, batches: Sequence[Batch]) -> None:
        self._live.execute("BEGIN IMMEDIATE")
        for batch in batches:
            self._apply(self._live, batch)
        point("before commit")
        self._live.execute("COMMIT")
        point("after commit")
        for batch in batches:
            if batch.abort in self._groups:
                self._drop_group(self._groups[batch.abort])
            self._groups.pop(batch.close, None)
            self._groups.pop(batch.abort, None)
            self._broken.discard(batch.abort)

    def _apply(self, database: Connection, batch: Batch) -> None:
        if batch.group in self._broken or batch.close in self._broken:
            raise ValueError("a part of this group of tasks could not be written")
        rows = [(encode(key), value) for key, value in dict(batch.rows).items()]
        number = self._number(batch.group) if batch.group else 0
        put = [
            sealed(k, value, number) for k, value in rows if number or value is not None
        ]
        put += [
            sealed(_META + encode(name), value) for name, value in batch.meta.items()
        ]
        if number:
            put.append(sealed(_LAST_GROUP, b"%d" % number))
        else:
            database.executemany(
                "DELETE FROM rows WHERE key = ?", [(k,) for k, _ in rows]
            )
        if batch.close in self._groups:
            put.append(sealed(CLOSED + b"%d" % self._groups[batch.close], b""))
        database.executemany(PUT, put)
        for digest, data in batch.outputs:
            self._put_output(database, encode(digest), data)

    def _drop_group(self, number: int) -> None:
        """Drop rows that don't count, in steps for which a small log will do."""
        some = (
            "SELECT key, grp FROM rows WHERE key > ? AND grp = ? ORDER BY key LIMIT 500"
        )
        last = b""
        while True:
            rows = self._live.execute(some, (last, number)).fetchall()
            if not rows:
                return
            self._live.execute("BEGIN IMMEDIATE")
            drop = "DELETE FROM rows WHERE key = ? AND grp = ?"
            self._live.executemany(drop, rows)
            self._live.execute("COMMIT")
            last = rows[-1][0]

    def _number(self, group: int) -> int:
        """Return the group's number on disk, which no other group ever had."""
        if group not in self._groups:
            self._last_group += 1
            self._groups[group] = self._last_group
        return self._groups[group]

    def _put_output(self, database: Connection, digest: bytes, data: bytes) -> None:
        """Keep an output as the newest; the oldest go when all are too large."""
        size = "SELECT coalesce(sum(length(data)), 0) FROM outputs"
        if self._outputs_bytes is None:
            self._outputs_bytes = database.execute(size).fetchone()[0]
        former = database.execute(size + " WHERE digest = ?", (digest,)).fetchone()[0]
        database.execute(PUT_OUTPUT, (digest, data, row_hash(digest, 0, data)))
        self._outputs_bytes += len(data) - former
        oldest = "SELECT n, length(data) FROM outputs ORDER BY n LIMIT 1"
        while self._outputs_bytes > self._outputs_bytes_max:
            n, length = database.execute(oldest).fetchone()
            database.execute("DELETE FROM outputs WHERE n = ?", (n,))
            self._outputs_bytes -= length

    def _undo(self, error: Exception) -> None:
        self._outputs_bytes = None
        if isinstance(error, DatabaseError):
            self._is_suspect = True
        try:
            if self._database is not None and self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except DatabaseError:
            self._is_suspect = True

    def _mend(self) -> None:
        """Get back to firm ground after an error, or raise.

        What a failed fsync left in the log may be gone from the disk and still be read
        back from memory. So all that was committed is moved into the database, with an
        fsync of its own, before anything else is promised. On a full disk the log that
        this empties makes room.
        """
        if self._database is None:
            self._database = connect_existing(os.path.join(self._queue, "db"))
            self._is_suspect = True
        if self._is_suspect:
            try:
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except DatabaseError as error:
                if not is_full(error, self._home):
                    self._detach()
                raise
            self._is_suspect = False
