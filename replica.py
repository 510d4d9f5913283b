"""Keeping the copies of the queue equal: what each peer doesn't have yet.

Reason for this file beside node.py: replication is a concern of its own; it knows
records and links, nothing of who runs what.

Rules. Pure (D6). Only here is it decided what is sent to whom and when a peer counts as
reconciled. Frames leave through `send`; what comes in goes into the queue by merge.

How it works. Each link has an `Outbox`: the *set of ids to send* (those with living
runs first). A record is made into bytes when it is sent, so bursts coalesce and a slow
peer holds a bounded set; WINDOW frames may be unanswered. Whoever's state a merge
changed passes the id on, so a mesh with a missing link converges through the others;
where no link is missing (mesh.covers) that would only say everything once more.

Reconcile, both ends alike, at a new link and when roots stay different:

    PURGED, records with living runs, MARK 1      the first part: grants wait for it
    TREE                                          a hash for each leaf of the queue
    LEAF lists of those that differ, MARK 2       keys and hashes
    records that the other lacks, MARK 3          cost follows the difference

A MARK is answered (MARKED) when all before it is merged: links are in order.

Invariants. D10: `stored` is told True only of what a peer has fsynced; `got` of
those that it has in memory. D11: after reconciling, with nothing left to send, roots
are equal. What looks at all records (scans, comparing) takes a slice a turn.
"""

from itertools import islice
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
    Tuple,
)

from hashtree import LEAVES, leaf_of
from record import LIVING, Record, encode, split_key
from taskqueue import Queue

WINDOW = 8  # frames under way to a peer
FRAME_RECORDS = 200  # in one frame, and no more than ...
FRAME_BYTES = 32768  # ... about this many bytes: 5 ms of a 64 Mbit/s link
LEAF_KEYS = 500  # of a list, in one frame
INTERVALS = 500  # of one writer's PURGED, in one frame
SCAN_SLICE = 2000  # keys looked at for reconciling in one turn of the loop (10 ms)

Send = Callable[[str, str, Dict[str, Any]], None]


class Sent(NamedTuple):
    """A frame under way: its records' keys, and whether the disk was asked for."""

    keys: List[str]
    store: bool


class Outbox:
    """What one peer doesn't have yet, and how far reconciling with it is."""

    def __init__(self) -> None:
        # Ordered sets (keys of a dict): what changed first is sent first.
        self.active: Dict[str, None] = {}  # with living runs: these go first
        self.rest: Dict[str, None] = {}
        self.purged: Dict[str, int] = {}  # writers -> intervals of theirs that are sent
        self.sent: Dict[int, Sent] = {}  # not yet answered
        self.storing: Dict[int, List[str]] = {}  # not yet said to be on disk
        self.number = 0
        self.marks = [1]  # to send, each when all before it has gone
        self.is_compared = False  # their TREE was looked at
        self.differing: Optional[Set[int]] = None  # leaves to list
        self.scan: Optional[Iterator[str]] = None
        self.listed: List[str] = []  # our keys in the leaves that differ
        self.lists: List[Dict[str, Any]] = []  # LEAF frames to send
        self.their_lists: Dict[str, str] = {}  # key -> hash, of the same leaves
        self.lacking: Optional[Iterator[str]] = None  # `listed`, being compared
        self.got_mark = 0
        self.gave_mark = 0

    def is_empty(self) -> bool:
        """Say whether all is sent and answered."""
        return not (self.active or self.rest or self.purged or self.sent)


class Replica:
    """Replication of one queue over all links."""

    def __init__(
        self,
        queue: Queue,
        send: Send,
        got: Callable[[str, int, List[str]], None],
        stored: Callable[[str, int, List[str], bool], None],
        covers: Callable[[str, str], bool],
    ) -> None:
        self.queue = queue
        self.send = send
        self.got = got
        self.stored = stored
        self.covers = covers  # (source, peer): the peer hears from the source itself
        self.boxes: Dict[str, Outbox] = {}
        self.wanted: Dict[str, int] = {}  # key -> who waits for a peer's disk
        self.held: Set[str] = set()  # keys not to be sent yet
        self.living: Dict[str, None] = {}  # keys with living runs
        self._source = ""  # the peer whose records are being merged

    # --- links --------------------------------------------------------------------

    def on_link(self, peer: str) -> None:
        """Begin with a new peer."""
        box = self.boxes[peer] = Outbox()
        box.purged = dict.fromkeys(self.queue.purged.intervals, 0)
        box.active.update(self.living)

    def on_link_lost(self, peer: str) -> None:
        """Forget what was under way to a peer."""
        self.boxes.pop(peer, None)

    def touch(self, record: Record, gone: bool) -> None:
        """Note that a record changed: every peer is to have it."""
        key = record.key
        if record.runs and not gone and is_active(record):
            self.living[key] = None
        else:
            self.living.pop(key, None)
        if gone or key in self.held:
            return
        source = self._source
        for peer, box in self.boxes.items():
            if not source or not self.covers(source, peer):
                self._put(box, key)

    def _put(self, box: Outbox, key: str) -> None:
        (box.active if key in self.living else box.rest)[key] = None

    def send_again(self, keys: Iterable[str], peer: str = "") -> None:
        """Send records once more, to all peers or to one, whatever they have."""
        for name, box in self.boxes.items():
            if peer in ("", name):
                box.rest.update(dict.fromkeys(keys))

    def send_living(self) -> None:
        """Send the records with living runs to all peers, before all else."""
        for box in self.boxes.values():
            box.active.update(self.living)

    def want(self, keys: Iterable[str]) -> None:
        """Ask each peer that is sent these whether its disk has them."""
        for key in keys:
            self.wanted[key] = self.wanted.get(key, 0) + 1

    def want_no_more(self, keys: Iterable[str]) -> None:
        """End that for one who wanted them."""
        for key in keys:
            self.wanted[key] -= 1
            if not self.wanted[key]:
                del self.wanted[key]
        if not self.wanted:
            self.wanted.clear()  # else it stays as large as it ever was

    def release(self, held: List[str], keys: List[str]) -> None:
        """Hold some no longer; send records, those among them."""
        self.held.difference_update(held)
        if not self.held:
            self.held.clear()  # else it stays as large as it ever was
        self.send_again(keys)

    def may_gossip(self, peer: str) -> bool:
        """Say whether no record with a living run is still to be sent to a peer."""
        box = self.boxes.get(peer)
        return box is None or not box.active

    def is_sent(self, peer: str) -> bool:
        """Say whether a peer has answered all that it is to have."""
        box = self.boxes.get(peer)
        return box is None or box.is_empty()

    def is_reconciled(self, peer: str) -> bool:
        """Say whether each side has merged what the other had."""
        box = self.boxes.get(peer)
        return box is not None and box.got_mark >= 3 and box.gave_mark >= 3

    def compare_again(self, peer: str) -> bool:
        """Reconcile once more, if nothing is left to send and nothing under way."""
        box = self.boxes.get(peer)
        if box is None or not box.is_empty() or box.marks:
            return False
        box.is_compared, box.got_mark, box.gave_mark = False, 1, 1
        self._send_tree(peer, ask=True)
        box.marks = [2, 3]
        return True

    # --- sending ------------------------------------------------------------------

    def flush(self) -> bool:
        """Send what may be sent; say whether a scan wants another turn soon."""
        is_scanning = False
        self._note_purged()
        for peer in sorted(self.boxes):
            box = self.boxes[peer]
            while len(box.sent) < WINDOW and box.purged:
                self._send_purged(peer, box)
            while len(box.sent) < WINDOW and (box.active or box.rest):
                self._send_records(peer, box)
            if box.scan is not None or box.lacking is not None:
                self._scan(box)
                self._compare(box)
                is_scanning = True
            while box.lists and len(box.sent) < WINDOW:
                self._send_numbered(peer, box, "LEAF", box.lists.pop(0), [])
            self._send_marks(peer, box)
        return is_scanning

    def _send_records(self, peer: str, box: Outbox) -> None:
        wires: List[Dict[str, Any]] = []
        keys: List[str] = []
        size = 0
        for key in list(islice(box.active or box.rest, FRAME_RECORDS)):
            box.active.pop(key, None)
            box.rest.pop(key, None)
            record = self.queue.records.get(key)
            if record is None or key in self.held:
                continue
            wires.append(encode(record))
            keys.append(key)
            size += 200 + len(record.command) + 200 * len(record.runs)
            if size >= FRAME_BYTES:
                break
        if keys:
            self._send_numbered(peer, box, "RECORDS", {"r": wires}, keys)

    def _send_numbered(
        self, peer: str, box: Outbox, kind: str, fields: Dict[str, Any], keys: List[str]
    ) -> None:
        box.number += 1
        store = not self.wanted.keys().isdisjoint(keys)
        box.sent[box.number] = Sent(keys, store)
        if store:
            box.storing[box.number] = keys
        self.send(peer, kind, dict(fields, n=box.number, store=store))

    def _send_marks(self, peer: str, box: Outbox) -> None:
        while box.marks:
            mark = box.marks[0]
            if box.active or box.purged or box.scan is not None or box.lists:
                return
            if mark == 2 and not box.is_compared:
                return
            if mark == 3 and (box.rest or box.lacking is not None or box.got_mark < 2):
                return
            box.marks.pop(0)
            self.send(peer, "MARK", {"p": mark})
            if mark == 1:
                self._send_tree(peer, ask=False)
                box.marks = [2, 3]

    def _send_tree(self, peer: str, ask: bool) -> None:
        hashes = ["%x" % leaf for leaf in self.queue.tree.leaves]
        self.send(peer, "TREE", {"t": hashes, "ask": ask})

    def _note_purged(self) -> None:
        """See to it that what was purged anew is told to all."""
        untold = self.queue.purged.untold
        for box in self.boxes.values() if untold else ():
            box.purged.update(dict.fromkeys(untold, 0))
        untold.clear()

    def _send_purged(self, peer: str, box: Outbox) -> None:
        """Send a part: a frame holds a million writers as little as a long queue."""
        part: Dict[str, List[List[int]]] = {}
        count = 0
        while box.purged and count < INTERVALS:
            writer, start = next(iter(box.purged.items()))
            known = self.queue.purged.intervals[writer]
            part[writer] = known[start : start + INTERVALS - count]
            count += len(part[writer])
            del box.purged[writer]
            if start + len(part[writer]) < len(known):
                box.purged[writer] = start + len(part[writer])
                break
        self._send_numbered(peer, box, "PURGED", {"w": part}, [])

    def _scan(self, box: Outbox) -> None:
        """Sort keys into the leaves that differ, a slice a turn; then list them."""
        if box.scan is None or box.differing is None:
            return
        keys = list(islice(box.scan, SCAN_SLICE))
        if len(keys) < SCAN_SLICE:
            box.scan = None
        found: List[Tuple[str, str]] = []
        for key in keys:
            leaf = leaf_of(key)
            record = self.queue.records.get(key)
            if record is not None and leaf in box.differing and key not in self.held:
                found.append((key, "%x" % record.digest))
                box.listed.append(key)
        # Of several leaves at once, in parts: the other end answers when it has all
        # (MARK 2). A frame for each of 512 leaves took 64 round trips.
        for i in range(0, len(found), LEAF_KEYS):
            part = dict(found[i : i + LEAF_KEYS])
            box.lists.append({"leaf": leaf_of(found[i][0]), "k": part})

    def _compare(self, box: Outbox) -> None:
        """Once all their lists are here, send what they lack; a slice a turn too."""
        if box.lacking is None or box.scan is not None:
            return
        keys = list(islice(box.lacking, SCAN_SLICE))
        for key in keys:
            record = self.queue.records.get(key)
            if record is not None and box.their_lists.get(key) != "%x" % record.digest:
                box.rest[key] = None
        if len(keys) < SCAN_SLICE:
            box.lacking, box.listed, box.their_lists = None, [], {}

    # --- receiving ----------------------------------------------------------------

    def on_purged(self, peer: str, intervals: Dict[str, List[List[int]]]) -> None:
        """Join what a peer has purged, or a part of it."""
        self.queue.cover_all(intervals)
        self._note_purged()
        mine, box = self.queue.purged.intervals, self.boxes[peer]
        for writer, known in intervals.items():
            if mine.get(writer) == known:  # They have it just so: no echo.
                box.purged.pop(writer, None)

    def on_records(self, peer: str, wires: List[Any]) -> Tuple[List[Record], bool]:
        """Merge what a peer sent; give the records that are here now, and if all are.

        What is purged counts as here: it is known to be done with.
        """
        box = self.boxes[peer]
        merged: List[Record] = []
        self._source = peer
        try:
            joined, is_whole = self.queue.join_all(wires)
        finally:
            self._source = ""
        for key, record, is_just_so in joined:
            if record is None:
                box.purged[split_key(key)[1]] = 0
                continue
            merged.append(record)
            if is_just_so:  # They have it just so: no echo.
                box.active.pop(key, None)
                box.rest.pop(key, None)
            else:  # More than they know, and others may not know it either.
                for other in self.boxes.values():
                    self._put(other, key)
        return merged, is_whole

    def on_got(self, peer: str, n: int) -> None:
        """A frame of ours is merged there."""
        sent = self.boxes[peer].sent.pop(n, None)
        if sent is not None and sent.keys:
            self.got(peer, n, sent.keys)

    def on_stored(self, peer: str, n: int, ok: bool) -> None:
        """The records of a frame of ours are on their disk, or can't be."""
        keys = self.boxes[peer].storing.pop(n, None)
        if keys is not None:
            self.stored(peer, n, keys, ok)

    def on_tree(self, peer: str, hashes: List[str], ask: bool) -> None:
        """Compare their leaves with ours; what differs is to be listed."""
        box = self.boxes[peer]
        if ask:
            self._send_tree(peer, ask=False)
            box.got_mark, box.gave_mark = 1, 1
            box.marks = [2, 3]
        theirs = [int(text, 16) for text in hashes[:LEAVES]]
        mine = self.queue.tree.leaves
        box.differing = {i for i, leaf in enumerate(theirs) if leaf != mine[i]}
        box.listed, box.lists, box.their_lists = [], [], {}
        box.scan = iter(list(self.queue.records)) if box.differing else None
        box.lacking = None
        box.is_compared = True

    def on_leaf(self, peer: str, listed: Dict[str, str]) -> None:
        """Remember what they have in the leaves that differ; it comes in parts.

        What we lack ourselves they send; so no list is longer than our queue.
        """
        known = self.queue.records
        self.boxes[peer].their_lists.update(
            (key, digest) for key, digest in listed.items() if key in known
        )

    def on_mark(self, peer: str, mark: int) -> None:
        """All that they sent before this mark is merged: answer it."""
        box = self.boxes[peer]
        box.got_mark = max(box.got_mark, mark)
        if mark == 2:
            box.lacking = iter(box.listed)
        self.send(peer, "MARKED", {"p": mark})

    def on_marked(self, peer: str, mark: int) -> None:
        """They have merged all that we sent before this mark."""
        box = self.boxes[peer]
        box.gave_mark = max(box.gave_mark, mark)


def is_active(record: Record) -> bool:
    """Say whether a record has a living run."""
    return any(run.phase in LIVING for run in record.runs.values())
