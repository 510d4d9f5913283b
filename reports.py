"""What a ghost still has to tell: the records it holds, and those its disk keeps.

Reason for this file beside ghostnode.py: keeping and telling results is one rule (D10,
seen from the worker), whom to tell it is another.

Rules. Pure (D6). The only place where a ghost's records are sent, saved and forgotten.

How it works. What changed is sent in numbered frames; GOT says that one is merged,
STORED that it is durable. A record in which a run of this ghost has ended waits for
STORED, any other for GOT; then, once nothing of it runs here, it is forgotten. Ends are
on this disk until then, so a ghost that is killed tells them when it is started again.

Invariants. D2 A run that is over stays over, also when an old copy of it comes back.
D12 An end is forgotten only when a comrade has acknowledged it. Small
outputs go ahead of the end that names them. A frame that isn't answered within ANSWER_S
is `late`: the clairvoyant is not to be waited for any longer.
"""

from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

from effects import Effect, Log, Persist, Push, Send, Written
from hands import Hands
from record import FINAL, Malformed, Phase, Record, encode
from taskqueue import Queue

ANSWER_S = 5.0  # a request is answered within this, or the clairvoyant is lost (seed)
AGAIN_S = 2.0  # a comrade that couldn't store an end is asked again
FRAME_BYTES = 262144  # of records, about
SMALL_OUTPUT_BYTES = 65536  # pushed ahead of the end; larger ones stay here
OVER_MAX = 10000  # finished runs that are remembered, some 500 bytes each


class Sent(Dict[str, int]):
    """A frame of records under way: the hash of each; and when an answer is due."""

    due = 0.0


class Reports:
    """What one ghost still has to tell."""

    def __init__(
        self, queue: Queue, hands: Hands, writer: str, emit: Callable[[Effect], None]
    ) -> None:
        self.queue = queue
        self.hands = hands
        self.emit = emit
        self.writer = writer
        self.writers = {writer}  # of this process, and of former ones
        self._peer = ""
        self._numbers = 0
        self._sent: Dict[int, Sent] = {}
        self._to_send: Dict[str, None] = {}
        self._again_at: Optional[float] = None
        self._told: Dict[str, int] = {}  # what may be forgotten once it doesn't run
        self._over: Dict[str, List[Any]] = {}  # runs of forgotten records, as sent
        self._unsaved: Dict[str, None] = {}  # keys that the disk doesn't have as here
        self._on_disk: Set[str] = set()
        self._batches: Dict[int, List[str]] = {}
        self._seq = 0

    # --- what happens -------------------------------------------------------------

    def load(self, rows: Iterable[Any], former: Iterable[str]) -> None:
        """Take the ends that former processes couldn't tell anybody."""
        self.writers.update(former)
        for wire in rows:
            record = self.queue.merge(wire)
            if record is not None:
                self._on_disk.add(record.key)
        self._unsaved.clear()

    def note(self, record: Record, gone: bool) -> None:
        """A record has changed."""
        if gone:
            self._to_send.pop(record.key, None)
        else:
            self._to_send[record.key] = None
        self._unsaved[record.key] = None

    def on_link(self, peer: str, now: float) -> None:
        """A new clairvoyant: it is told all that is held here."""
        self._peer = peer
        self._sent.clear()
        self._told.clear()
        self._again_at = None
        self._to_send = dict.fromkeys(sorted(self.queue.records))
        self.flush(now)

    def on_link_lost(self) -> None:
        """Nobody is there to be told."""
        self._peer = ""
        self._sent.clear()

    def merge(self, wire: Any) -> None:
        """Take a record of the clairvoyant, or raise Malformed.

        Where its copy is older than what was over here and is forgotten, the end is
        merged in and told again: the run must not begin anew (D2).
        """
        before = self.queue.records.get(wire["k"])
        runs = dict(wire.get("runs", {}))
        runs.update((r, self._over[r]) for r in runs if r in self._over)
        is_older = runs != wire.get("runs", {})
        record = self.queue.merge(dict(wire, runs=runs) if is_older else wire)
        if record is None:
            raise Malformed("a record")
        if before is None and not is_older:  # Just so it was sent: no echo.
            self._to_send.pop(record.key, None)
            self._told[record.key] = record.digest

    def on_got(self, n: int) -> None:
        """A frame is merged; durable is another matter, and may take long."""
        sent = self._sent.get(n)
        if sent is None:
            return
        sent.due = float("inf")
        done = {key: digest for key, digest in sent.items() if not self._has_end(key)}
        self._told.update(done)
        if len(done) == len(sent):
            del self._sent[n]

    def on_stored(self, n: int, ok: bool, now: float) -> None:
        """A frame is durable, or can't be."""
        sent = self._sent.pop(n, None)
        if sent is not None and ok:
            self._told.update(sent)
        elif sent is not None:
            self._again_at = now + AGAIN_S

    def on_answered(self, n: int) -> None:
        """A frame of another kind is answered."""
        self._sent.pop(n, None)

    def on_written(self, message: Written, now: float) -> None:
        """Take the store's answer."""
        keys = self._batches.pop(message.seq)
        if message.error:
            self.emit(Log(message.error))
            if not self.hands.is_stopping:
                self._unsaved.update(dict.fromkeys(keys))
                self._on_disk.update(keys)  # or not: a row that wasn't dropped is
                self._again_at = self._again_at or now + AGAIN_S

    # --- what is done in each turn ------------------------------------------------

    def flush(self, now: float) -> None:
        """Forget what is of no use, send what is new, save what must be."""
        self._forget()
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._to_send.update(dict.fromkeys(sorted(self._on_disk)))
        while self._peer and self._to_send:
            self._send_records(now)
        self._save()

    def is_late(self, now: float) -> bool:
        """Say whether a frame has not been answered in time."""
        return any(now >= sent.due for sent in self._sent.values())

    def is_clean(self) -> bool:
        """Say whether the disk has everything."""
        return not self._batches

    def is_told(self) -> bool:
        """Say whether all is sent and answered, or nobody is there."""
        return not self._peer or not (self._sent or self._to_send)

    def deadline(self) -> Optional[float]:
        """Give the time when something is due here."""
        times = [sent.due for sent in self._sent.values()]
        if self._again_at is not None:
            times.append(self._again_at)
        return min(times, default=None)

    def number(self, kind: str, fields: Dict[str, Any], sent: Sent, now: float) -> None:
        """Send a frame that must be answered."""
        self._numbers += 1
        sent.due = now + ANSWER_S
        self._sent[self._numbers] = sent
        self.emit(Send(self._peer, kind, dict(fields, n=self._numbers)))

    def _send_records(self, now: float) -> None:
        wires: List[Any] = []
        sent, size, store = Sent(), 0, False
        while self._to_send and size < FRAME_BYTES:
            key = next(iter(self._to_send))
            del self._to_send[key]
            record = self.queue.records.get(key)
            if record is None:
                continue
            store = self._push_outputs(record) or store
            wires.append(encode(record))
            sent[key] = record.digest
            size += 200 + len(record.command) + 200 * len(record.runs)
        if wires:
            self.number("RECORDS", {"r": wires, "store": store}, sent, now)

    def _push_outputs(self, record: Record) -> bool:
        """Send what ended runs of ours printed, if it is little; say if any ended."""
        ended = self._ends(record)
        for run_key in ended:
            for which in ("out", "err"):
                size, digest = record.runs[run_key].detail.get(which, (0, ""))
                if digest and size <= SMALL_OUTPUT_BYTES:
                    self.emit(Push(self._peer, digest))
        return bool(ended)

    def _has_end(self, key: str) -> bool:
        record = self.queue.records.get(key)
        return record is not None and bool(self._ends(record))

    def _ends(self, record: Record) -> List[str]:
        """Give the runs of this ghost, or of its former processes, that have ended."""
        return [
            run_key
            for run_key, run in sorted(record.runs.items())
            if run.phase is Phase.ENDED and run.worker in self.writers
        ]

    def _forget(self) -> None:
        """Drop the records that are of no use here any more."""
        needed = {*self.hands.mine.values(), *self.hands.held.values()}
        for key, digest in list(self._told.items()):
            record = self.queue.records.get(key)
            if record is None or record.digest != digest:
                del self._told[key]  # it goes on: another answer will come
            elif key not in needed:
                del self._told[key]
                self._remember(record)
                self.queue.forget([key])

    def _remember(self, record: Record) -> None:
        """Know what was over here: a comrade whose copy is older may grant it again."""
        for run_key, run in record.runs.items():
            if run.worker == self.writer and run.phase >= FINAL:
                self._over[run_key] = [*run[:3], int(run.phase), run.detail]
        while len(self._over) > OVER_MAX:
            del self._over[next(iter(self._over))]

    def _save(self) -> None:
        """Keep on disk what has ended and isn't acknowledged."""
        if not self._unsaved:
            return
        rows: List[Tuple[str, Optional[bytes]]] = []
        for key in self._unsaved:
            record = self.queue.records.get(key)
            if record is not None and self._ends(record):
                rows.append((key, self.queue.tree.text(record)))
                self._on_disk.add(key)
            elif key in self._on_disk:
                rows.append((key, None))
                self._on_disk.discard(key)
        self._unsaved.clear()
        if rows:
            self._seq += 1
            self._batches[self._seq] = [key for key, _ in rows]
            self.emit(Persist(self._seq, rows, {}))
