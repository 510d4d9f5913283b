"""The hashes of all records, in a tree by which two replicas find where they differ.

Reason for this file beside taskqueue.py: that is what becomes of a record, this what it
hashes to, and when that is worked out; it costs more than the change itself.

Rules. Pure (D6). Knows no step of a task, and changes no record.

How it works. A leaf is the XOR of the hashes of its records; the root covers the
leaves. A record's hash isn't kept, for a million of them fill the memory, but that of
what has a living run is: it changes soon. What this node changes itself is hashed when
somebody asks for leaves, or the disk wants the text of it: until then a short task is
granted and over. A text that was made for its hash is kept for the disk.

Invariant. `leaves` and `root` are those of the records as they are (D11).
"""

from binascii import crc32
from typing import Dict, List, Mapping, Set

from record import Record, State, hash64, text_of

LEAVES = 512  # one that differs costs the list of its ids
TEXTS_MAX, TEXT_BYTES_MAX = 1000, 2000  # that are kept for the disk, and of each


class HashTree:
    """Hashes over records that others change: who does says so, before or after."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records
        self._leaves = [0] * LEAVES
        self._hashed = [0] * LEAVES  # the leaves' own hashes, in `_root`
        self._root = 0
        self._stale: Set[int] = set()  # leaves that changed since
        self._known: Dict[str, int] = {}  # hashes of what has a living run
        self._changed: Dict[str, int] = {}  # keys -> the hash that is in the leaves
        self._texts: Dict[str, bytes] = {}  # of what changed lately

    @property
    def leaves(self) -> List[int]:
        """The XOR of the hashes of each leaf's records; not to be changed."""
        for key in list(self._changed):
            self._catch_up(self._records[key])
        return self._leaves

    @property
    def root(self) -> int:
        """The hash of all records."""
        leaves = self.leaves
        for i in self._stale:  # Heartbeats ask each second: only what changed.
            known = self._hashed[i]
            self._hashed[i] = hash64(b"%d.%d" % (i, leaves[i])) if leaves[i] else 0
            self._root ^= known ^ self._hashed[i]
        self._stale.clear()
        return self._root

    def digest_of(self, record: Record) -> int:
        """Give a record's hash."""
        if record.key in self._changed:
            return self._catch_up(record)
        known = self._known.get(record.key)
        return record.digest if known is None else known

    def text(self, record: Record) -> bytes:
        """Give the text of a record for the disk, once without making it."""
        if record.key in self._changed:
            self._catch_up(record)
        return self._texts.pop(record.key, None) or text_of(record)

    def will_change(self, record: Record) -> None:
        """Know that a record is about to be changed, and hash it when that is due."""
        if record.key not in self._changed:
            self._changed[record.key] = self.digest_of(record)
        self._texts.pop(record.key, None)

    def note(self, record: Record, text: bytes, digest: int, before: int = 0) -> None:
        """Take a record's text and hash; before: the hash it had, 0 for a new one."""
        self._texts.pop(record.key, None)
        if len(self._texts) >= TEXTS_MAX:  # there are some that no disk wants
            self._texts.clear()
        if len(text) <= TEXT_BYTES_MAX:
            self._texts[record.key] = text
        if record.state is State.RUNNING:
            self._known[record.key] = digest
        else:
            self._known.pop(record.key, None)
        self._turn(record.key, digest ^ before)

    def drop(self, record: Record) -> None:
        """Take a record out."""
        self._turn(record.key, self.digest_of(record))
        self._known.pop(record.key, None)
        self._texts.pop(record.key, None)

    def _catch_up(self, record: Record) -> int:
        text = text_of(record)
        digest = hash64(text)
        self.note(record, text, digest, self._changed.pop(record.key))
        return digest

    def _turn(self, key: str, bits: int) -> None:
        leaf = leaf_of(key)
        self._leaves[leaf] ^= bits
        self._stale.add(leaf)


def leaf_of(key: str) -> int:
    """Give the leaf of the tree that a key belongs to."""
    return crc32(key.encode("ascii")) % LEAVES
