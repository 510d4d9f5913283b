"""Virtual disks: what journal.py promises of a real one, and not a bit more.

Rules. Bytes: rows are sealed, and believed or not, by database.py's own functions.
What a record means is nobody's business here.

How it works. Transactions are appended to a log; up to `safe` it is fsynced. A crash
cuts it at any byte behind that: un-fsynced writes are lost, the last may be torn. Now
and then the log moves into the table, row by row. `read` gives what a start finds, as
the journal would: the log ends at the first transaction that is wrong; if others follow
it was damaged, and so is a table with a row that its hash doesn't confirm. Of damage
all is kept that can be read, groups that were never closed too.

Invariants, those of journal.py: what was written without error is there unless a bit
flipped; what was written with an error may be there after a crash, whole; a group comes
to life whole, when it is closed, or never (but for damage).
"""

import json
from random import Random
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set

import effects as core
from database import Row, is_sound, row_hash, sealed

CHECKPOINT_BYTES = 16384  # of log; small, so that both places hold something
HEAD_BYTES = 4 + 8  # length and hash of a transaction
META, CLOSED = b"\0meta ", b"\0closed "
FULL, EIO = "no space left", "disk I/O error"

Table = Dict[bytes, Dict[int, Row]]  # key -> group -> row


class Found(NamedTuple):
    """What a start finds."""

    rows: Dict[str, bytes]
    meta: Dict[str, bytes]
    damage: str  # what the user is told; empty: nothing was wrong


class Disk:
    """One disk: what survives a process, and the faults of the day."""

    def __init__(self) -> None:
        self.error = ""  # FULL: nothing new fits; EIO: no fsync succeeds
        self.fails_once = False
        self.failed_at = -1.0
        self.is_hung = False
        self.delay = (0.002, 0.02)
        self.rows: Dict[str, bytes] = {}  # records as a start would find them now
        self._staged: Dict[int, Dict[str, Optional[bytes]]] = {}
        self._broken: Set[int] = set()  # groups of which a part couldn't be written
        self._numbers: Dict[int, int] = {}  # the core's number of a group: ours
        self._last_number = 0
        self._table: Table = {}
        self._log = bytearray()
        self._safe = 0

    # --- writing ------------------------------------------------------------------

    def begin(self, batches: Sequence[core.Persist]) -> None:
        """Begin to write: from now on a crash may find it there, or torn."""
        del self._log[self._safe :]
        self._log += _sealed_text([self._entry(batch) for batch in batches])

    def commit(self, batches: Sequence[core.Persist]) -> List[str]:
        """Fsync, one by one if not all can be; give an error, or '', for each batch."""
        if self.fails_once or self.error == EIO:
            self.fails_once = False
            self._broken.update(batch.group for batch in batches if batch.group)
            return [EIO] * len(batches)  # What the log has of it stays in doubt.
        if not any(self._refusal(batch) for batch in batches):
            self._make_safe(batches)
            return [""] * len(batches)
        errors = []
        for batch in batches:
            error = self._refusal(batch)
            if error and batch.group:
                self._broken.add(batch.group)
            if not error:
                self.begin([batch])
                self._make_safe([batch])
            errors.append(error)
        del self._log[self._safe :]
        return errors

    def _refusal(self, batch: core.Persist) -> str:
        if batch.group in self._broken or batch.close in self._broken:
            return "a part of this group of tasks could not be written"
        is_new = any(
            row is not None and (batch.group or key not in self.rows)
            for key, row in batch.rows
        )
        return FULL if self.error == FULL and is_new else ""

    def _make_safe(self, batches: Sequence[core.Persist]) -> None:
        self._safe = len(self._log)
        for batch in batches:
            rows = dict(batch.rows)
            if batch.group:
                self._staged.setdefault(batch.group, {}).update(rows)
                rows = {}
            if batch.close:
                rows.update(self._staged.pop(batch.close, {}))
            self._staged.pop(batch.abort, None)
            self._broken.discard(batch.abort)
            for key, row in rows.items():
                self.rows.pop(key, None)
                if row is not None:
                    self.rows[key] = row
        if self._safe > CHECKPOINT_BYTES:
            self._replay(self._table)
            self._log.clear()
            self._safe = 0

    def _entry(self, batch: core.Persist) -> List[Any]:
        rows = [(k, None if v is None else v.decode("ascii")) for k, v in batch.rows]
        meta = {name: value.decode("ascii") for name, value in batch.meta.items()}
        groups = [self._number(n) for n in (batch.group, batch.close, batch.abort)]
        return [rows, meta, groups]

    def _number(self, group: int) -> int:
        if not group:
            return 0
        if group not in self._numbers:
            self._last_number += 1
            self._numbers[group] = self._last_number
        return self._numbers[group]

    # --- what goes wrong ----------------------------------------------------------

    def crash(self, rng: Random) -> None:
        """Lose what wasn't fsynced, or part of it, or nothing."""
        first, last = self._safe, len(self._log)
        del self._log[rng.choice([first, rng.randint(first, last), last]) :]
        self._safe = len(self._log)
        self.rows = self.read().rows

    def flip(self, rng: Random) -> None:
        """Flip a bit of what is at rest."""
        keys = sorted(key for key, versions in self._table.items() if versions)
        if self._log and (not keys or rng.random() < 0.5):
            self._log[rng.randrange(len(self._log))] ^= 1 << rng.randrange(8)
        elif keys:
            key = rng.choice(keys)
            group = rng.choice(sorted(self._table[key]))
            self._table[key][group] = _flipped(self._table[key][group], rng)
        self.rows = self.read().rows

    # --- reading ------------------------------------------------------------------

    def read(self) -> Found:
        """Give what a start would find now."""
        table = {key: dict(versions) for key, versions in self._table.items()}
        damage = self._replay(table)
        wrong = 0
        for versions in table.values():
            unsound = [group for group, row in versions.items() if not is_sound(row)]
            wrong += len(unsound)
            for group in unsound:
                del versions[group]
        if wrong:
            damage = "%d rows are wrong" % wrong
        found = Found({}, {}, damage)
        closed = {int(k[len(CLOSED) :]) for k in table if k.startswith(CLOSED)}
        for key, versions in sorted(table.items()):
            valid = [g for g in versions if not g or g in closed or damage]
            value = versions[max(valid)][2] if valid else None
            if value is None or key.startswith(CLOSED):
                continue
            if key.startswith(META):
                found.meta[key[len(META) :].decode("ascii")] = value
            else:
                found.rows[key.decode("ascii")] = value
        return found

    def load(self) -> Found:
        """Start from it: what was damaged is repaired, open groups are dropped."""
        found = self.read()
        self._log.clear()
        self._safe = 0
        self._table = {}
        for key, value in found.rows.items():
            _put(self._table, key.encode("ascii"), value)
        for name, value in found.meta.items():
            _put(self._table, META + name.encode("ascii"), value)
        self.rows = dict(found.rows)
        self._staged, self._broken, self._numbers = {}, set(), {}
        return found

    def _replay(self, table: Table) -> str:
        """Apply the log to a table; say what is wrong with it."""
        at = 0
        while at < len(self._log):
            size = int.from_bytes(self._log[at : at + 4], "big")
            end = at + HEAD_BYTES + size
            text = bytes(self._log[at + HEAD_BYTES : end])
            if self._log[at + 4 : at + HEAD_BYTES] != row_hash(b"", 0, text):
                return "its log is damaged" if self._has_more(at + 1) else ""
            for rows, meta, groups in json.loads(text.decode("ascii")):
                _apply(table, rows, meta, groups)
            at = end
        return ""

    def _has_more(self, at: int) -> bool:
        """Say whether a sound transaction follows: only then is it known as damage."""
        for i in range(at, len(self._log) - HEAD_BYTES):
            size = int.from_bytes(self._log[i : i + 4], "big")
            text = bytes(self._log[i + HEAD_BYTES : i + HEAD_BYTES + size])
            if 0 < size == len(text):
                if self._log[i + 4 : i + HEAD_BYTES] == row_hash(b"", 0, text):
                    return True
        return False


def _sealed_text(entries: List[Any]) -> bytes:
    text = json.dumps(entries).encode("ascii")
    return len(text).to_bytes(4, "big") + row_hash(b"", 0, text) + text


def _put(table: Table, key: bytes, value: Optional[bytes], group: int = 0) -> None:
    table.setdefault(key, {})[group] = sealed(key, value, group)


def _apply(table: Table, rows: Any, meta: Any, groups: Any) -> None:
    """Do what Journal._apply does."""
    group, close, abort = groups
    for name, text in rows:
        key = name.encode("ascii")
        value = None if text is None else text.encode("ascii")
        if not group:
            table.pop(key, None)
        if group or value is not None:
            _put(table, key, value, group)
    for name, text in meta.items():
        _put(table, META + name.encode("ascii"), text.encode("ascii"))
    if close:
        _put(table, CLOSED + b"%d" % close, b"")
    if abort:
        for versions in table.values():
            versions.pop(abort, None)


def _flipped(row: Row, rng: Random) -> Row:
    key, group, value, mark = row
    if not value:
        return key, group, value, bytes([mark[0] ^ 1]) + mark[1:]
    at = rng.randrange(len(value))
    bit = bytes([value[at] ^ (1 << rng.randrange(8))])
    return key, group, value[:at] + bit + value[at + 1 :], mark
