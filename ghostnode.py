"""The core of a ghost: what it decides, as effects for ghost.py to carry out.

Reason for this file beside ghost.py: the simulator runs this very class (D6), as it
does a comrade's node.py.

Rules. Pure: `step(message, now)` and `tick(now)` lead to effects, as in node.py. It has
no queue of the cluster, only the records that have a run of its own: of those that run
here, and of those whose end no comrade has acknowledged. What runs here is hands.py's,
the same as a comrade's; whom to go to is clairvoyants.py's.

How it works. Attached, it merges the records that its clairvoyant sends (RECORDS: a new
grant is one), and sends back each that it changes. At a new link it first sends all
that it holds, small outputs ahead of the ends that name them, then ATTACH; so whoever
becomes its clairvoyant knows what is going on here before it tells anybody.

Each frame of records is numbered; GOT says that it is merged, STORED that it is durable
(D10). Only then is an end forgotten, here and on this disk. A frame that isn't
answered within ANSWER_S, or a second's heartbeats that are not for DEAD_S: the
clairvoyant is lost, whatever TCP says, and the next one has its turn.

Invariants.
D2  A run starts once (hands.py), also when it is told of again after it is over and
    forgotten: then its end is told again. A grant of an older term than the newest
    known is handed back.
D4  Nothing that runs is stopped because a clairvoyant is gone.
D12 What has ended stays on this disk until a comrade has acknowledged it; so it
    survives this process, and is told by the next.
"""

from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

from clairvoyants import Clairvoyants
from effects import (
    Check,
    CloseLink,
    Dial,
    DialEnded,
    Drain,
    Effect,
    Facts,
    FileHere,
    Found,
    Frame,
    Identity,
    LinkLost,
    LinkUp,
    Log,
    Message,
    Persist,
    Probe,
    Probed,
    Push,
    RunEnded,
    RunRefused,
    RunStarted,
    Send,
    Stop,
    Stopped,
    Tags,
    WantFile,
    Written,
)
from hands import PAUSED, Hands
from mesh import DEAD_S, HEARTBEAT_S, PAUSE_S
from record import FINAL, Malformed, Phase, Record, canonical, encode, run_order
from taskqueue import Queue

ANSWER_S = 5.0  # a request is answered within this, or the clairvoyant is lost (seed)
LOOK_S = 1.0  # while a task waits somewhere, what is free here is looked at so often
AGAIN_S = 2.0  # a comrade that couldn't store an end is asked again
BYE_WAIT_S = 0.5  # all is handed back: the clairvoyant gets it so long
FRAME_BYTES = 262144  # of records, about
SMALL_OUTPUT_BYTES = 65536  # pushed ahead of the end; larger ones stay here
OVER_MAX = 10000  # finished runs that are remembered, some 500 bytes each
FACT_BYTES = 1 << 20  # free memory and disk are told in steps of 1 MiB


class Sent(Dict[str, int]):
    """A frame of records under way: the hash of each; and when an answer is due."""

    due = 0.0


class GhostNode:
    """One ghost's decisions."""

    def __init__(
        self,
        me: Identity,
        cores: int,
        memory: int,
        tags: Iterable[str],
        choice: Clairvoyants,
    ) -> None:
        self.me = me
        self.now = 0.0
        self._effects: List[Effect] = []
        self.queue = Queue(self._on_change)
        self.hands = Hands(self.queue, me.writer, self.emit, self._may_start)
        self.choice = choice
        self.files: Set[str] = set()
        self.tags = set(tags)
        self.clairvoyant = ""  # its name, once it has answered
        self.offer: Dict[str, Any] = dict(
            name=me.name, address=me.address, cores=cores, memory=memory
        )
        self.offer.update(free_memory=None, free_disk=0, holds=[], draining=False)
        self.offer["tags"] = sorted(self.tags)
        self.peer = ""  # the comrade that it is linked to
        self._session = 0
        self._former: List[str] = []
        self._heard_at = self._beat_at = 0.0
        self._seen: Optional[float] = None
        self._numbers = 0
        self._sent: Dict[int, Sent] = {}
        self._attach = 0  # the number of ATTACH, until it is answered
        self._to_send: Dict[str, None] = {}
        self._again_at: Optional[float] = None
        self._stored: Dict[str, int] = {}  # what may be forgotten once it doesn't run
        self._over: Dict[str, List[Any]] = {}  # runs of forgotten records, as sent
        self._unsaved: Dict[str, None] = {}  # keys that the disk doesn't have as here
        self._on_disk: Set[str] = set()
        self._batches: Dict[int, List[str]] = {}
        self._seq = 0
        self._told: Dict[str, Any] = {}  # what was offered last
        self._wanted: List[str] = []  # conditions to look at
        self._is_watching = False
        self._look_at: Optional[float] = None
        self._is_asked = False
        self._bye_at: Optional[float] = None
        self._is_over = False

    # --- the two verbs ------------------------------------------------------------

    def step(self, message: Message, now: float) -> List[Effect]:
        """Take one message; give what is to be done."""
        self._wake(now)
        DISPATCH[type(message)](self, message)
        return self._turn()

    def tick(self, now: float) -> Tuple[List[Effect], Optional[float]]:
        """Do what is due; give it and the time of the next call, if any is needed."""
        self._wake(now)
        self._watch_link()
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            self._ask()
        address = "" if self.hands.is_stopping else self.choice.next(now)
        if address:
            self.emit(Dial(address))
        return self._turn(), self._deadline()

    def emit(self, effect: Effect) -> None:
        """Give an effect with the others of this turn."""
        self._effects.append(effect)

    def _wake(self, now: float) -> None:
        gap, self.now = now - (self._seen or now), now
        self._seen = now
        if self.peer and gap > PAUSE_S:
            # Stopped for a while: what the link still holds is out of date (DESIGN 7).
            self.hands.give_back_held(PAUSED)
            self._leave("closing")

    def _turn(self) -> List[Effect]:
        self.hands.look_again()
        self.queue.changed.clear()
        self._forget()
        if self._again_at is not None and self.now >= self._again_at:
            self._again_at = None
            self._to_send.update(dict.fromkeys(self._on_disk))
        if self.peer:
            self._send_records()
            self._tell_offer()
        self._save()
        if self.hands.is_stopping:
            self._end_stop()
        effects, self._effects = self._effects, []
        return effects

    def _deadline(self) -> Optional[float]:
        times = [self.choice.deadline(), self._look_at, self._bye_at, self._again_at]
        if self.peer:
            times += [self._beat_at, self._heard_at + DEAD_S]
            times += [sent.due for sent in self._sent.values()]
        return min((t for t in times if t is not None), default=None)

    # --- start and stop -----------------------------------------------------------

    def load(self, rows: Iterable[Any], former: Iterable[str]) -> None:
        """Take the ends that former processes couldn't tell anybody."""
        self._former = list(former)
        for wire in rows:
            record = self.queue.merge(wire)
            if record is not None:
                self._on_disk.add(record.key)
        self.queue.changed.clear()
        self._unsaved.clear()

    def begin(
        self, given: Iterable[str], remembered: Iterable[str], now: float
    ) -> None:
        """Start work: look around for comrades."""
        self._seen = self.now = now
        self.choice.begin(given, remembered, now)
        for address in self.choice.probes():
            self.emit(Probe(address))
        self._ask()

    def _on_stop(self, message: Stop) -> None:
        self.hands.stop()
        self.offer["draining"] = True

    def _end_stop(self) -> None:
        """Say good-bye once all is handed back, on disk and told."""
        if self._is_over or self.hands.mine or self._batches:
            return
        if self._bye_at is None:
            self._bye_at = self.now + BYE_WAIT_S
        is_told = not self.peer or not (self._sent or self._to_send)
        if is_told or self.now >= self._bye_at:
            self._is_over, self._bye_at = True, None
            if self.peer:
                self.emit(Send(self.peer, "BYE", {"why": "stopping"}))
            self.emit(Stopped())

    # --- records ------------------------------------------------------------------

    def _on_change(self, record: Record, old: Any, new: Any) -> None:
        if new is None:
            self._to_send.pop(record.key, None)
        else:
            self.hands.to_look.add(record.key)
            self._to_send[record.key] = None
        self._unsaved[record.key] = None

    def _may_start(self, record: Record, run_key: str) -> bool:
        missing = [f for f in record.needs.files if f.digest not in self.files]
        for file in missing:
            self.emit(WantFile(file.digest, file.size, self.peer))
        return not missing

    def _send_records(self) -> None:
        while self._to_send:
            wires, sent, size, store = [], Sent(), 0, False
            while self._to_send and size < FRAME_BYTES:
                key = next(iter(self._to_send))
                del self._to_send[key]
                record = self.queue.records[key]
                store = self._push_outputs(record) or store
                wires.append(encode(record))
                sent[key] = record.digest
                size += 200 + len(record.command) + 200 * len(record.runs)
            self._number("RECORDS", {"r": wires, "store": store}, sent)

    def _number(self, kind: str, fields: Dict[str, Any], sent: Sent) -> int:
        self._numbers += 1
        sent.due = self.now + ANSWER_S
        self._sent[self._numbers] = sent
        self.emit(Send(self.peer, kind, dict(fields, n=self._numbers)))
        return self._numbers

    def _push_outputs(self, record: Record) -> bool:
        """Send what ended runs of ours printed, if it is little; say if any ended."""
        ended = self._ends(record)
        for run_key in ended:
            for which in ("out", "err"):
                size, digest = record.runs[run_key].detail.get(which, (0, ""))
                if digest and size <= SMALL_OUTPUT_BYTES:
                    self.emit(Push(self.peer, digest))
        return bool(ended)

    def _ends(self, record: Record) -> List[str]:
        """Give the runs of this ghost, or of its former processes, that have ended."""
        ours = {self.me.writer, *self._former}
        return [
            run_key
            for run_key, run in sorted(record.runs.items())
            if run.phase is Phase.ENDED and run.worker in ours
        ]

    def _forget(self) -> None:
        """Drop the records that are of no use here any more."""
        for key, digest in list(self._stored.items()):
            record = self.queue.records.get(key)
            if record is None or record.digest != digest:
                del self._stored[key]  # it goes on: another answer will come
            elif not self._is_needed(record):
                del self._stored[key]
                self._remember(record)
                self.queue.forget([key])

    def _remember(self, record: Record) -> None:
        """Know what was over here: a comrade whose copy is older may grant it again."""
        for run_key, run in record.runs.items():
            if run.worker == self.me.writer and run.phase >= FINAL:
                self._over[run_key] = [*run[:3], int(run.phase), run.detail]
        while len(self._over) > OVER_MAX:
            del self._over[next(iter(self._over))]

    def _is_needed(self, record: Record) -> bool:
        hands = self.hands
        return record.key in hands.mine.values() or record.key in hands.held.values()

    def _save(self) -> None:
        """Keep on disk what has ended and isn't acknowledged."""
        if not self._unsaved:
            return
        rows: List[Tuple[str, Optional[bytes]]] = []
        for key in self._unsaved:
            record = self.queue.records.get(key)
            if record is not None and self._ends(record):
                rows.append((key, canonical(encode(record))))
                self._on_disk.add(key)
            elif key in self._on_disk:
                rows.append((key, None))
                self._on_disk.discard(key)
        self._unsaved.clear()
        if rows:
            self._seq += 1
            self._batches[self._seq] = [key for key, _ in rows]
            self.emit(Persist(self._seq, rows, {}))

    def _on_written(self, message: Written) -> None:
        keys = self._batches.pop(message.seq)
        if message.error:
            self.emit(Log(message.error))
            if not self.hands.is_stopping:
                self._unsaved.update(dict.fromkeys(keys))
                self._again_at = self._again_at or self.now + AGAIN_S

    # --- the link -----------------------------------------------------------------

    def _on_found(self, message: Found) -> None:
        self.choice.find(message.addresses, self.now)

    def _on_probed(self, message: Probed) -> None:
        if message.is_there:
            self.choice.find([message.address], self.now)

    def _on_dial_ended(self, message: DialEnded) -> None:
        self.choice.on_failed(message.address, message.why, self.now)

    def _on_link_up(self, message: LinkUp) -> None:
        """Attach: what is held first, then ATTACH, in order."""
        if self.peer:
            self._leave("closing")
        self.choice.on_up(self.choice.dialling, self.now)
        self.peer, self.clairvoyant = message.peer, ""
        self._heard_at = self._beat_at = self.now
        self._session += 1
        self._sent.clear()
        self._stored.clear()
        self._again_at = None
        self._told = self.offer_now()
        self._to_send = dict.fromkeys(sorted(self.queue.records))
        self._send_records()
        runs = [
            [record.key, run_key]
            for record in self.queue.records.values()
            for run_key, run in record.runs.items()
            if run.worker == self.me.writer
        ]
        fields = {"session": self._session, "term": self.hands.term, "runs": runs}
        fields.update(former=self._former, offer=self._told)
        self._attach = self._number("ATTACH", fields, Sent())

    def _on_link_lost(self, message: LinkLost) -> None:
        if message.peer == self.peer:
            self._lose(message.why == "stopping")

    def _lose(self, is_closing: bool) -> None:
        self.peer = self.clairvoyant = ""
        self._is_watching = False
        self._sent.clear()
        self.choice.on_lost(self.now, is_closing)

    def _leave(self, why: str) -> None:
        """End the link from here: it isn't trusted any more."""
        peer = self.peer
        self.emit(Send(peer, "BYE", {"why": why}))
        self.emit(CloseLink(peer, why))
        self._lose(False)

    def _watch_link(self) -> None:
        if not self.peer:
            return
        if self.now >= self._beat_at:
            self._beat_at = self.now + HEARTBEAT_S
            self.emit(Send(self.peer, "HEARTBEAT", {"n": 0, "heard": 0, "root": ""}))
        late = [n for n, sent in self._sent.items() if self.now >= sent.due]
        if late or self.now - self._heard_at >= DEAD_S:
            self.emit(Log("no answer of the clairvoyant; on to the next"))
            self._leave("closing")

    # --- what comes over it -------------------------------------------------------

    def _on_frame(self, message: Frame) -> None:
        if message.peer != self.peer:
            return
        self._heard_at = self.now
        try:
            GHOSTS_FRAMES[message.kind](self, message.fields)
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            self.emit(Log("%s: %r" % (message.kind, problem)))
            self._leave("closing")

    def _on_heartbeat(self, fields: Dict[str, Any]) -> None:
        pass  # it is heard

    def _on_comrades(self, fields: Dict[str, Any]) -> None:
        self._answered(fields["n"])
        self._learn_term(fields)
        self.clairvoyant = str(fields["name"])
        self.choice.learn(str(address) for address in fields["addresses"])

    def _learn_term(self, fields: Dict[str, Any]) -> None:
        self.hands.term = max(self.hands.term, int(fields["term"]))

    def _answered(self, n: int) -> Optional[Sent]:
        if n == self._attach:
            self._attach = 0
        return self._sent.pop(n, None)

    def _on_records(self, fields: Dict[str, Any]) -> None:
        self._learn_term(fields)
        for wire in fields["r"]:
            before = self.queue.records.get(wire["k"])
            runs = dict(wire.get("runs", {}))
            runs.update((r, self._over[r]) for r in runs if r in self._over)
            is_older = runs != wire.get("runs", {})
            record = self.queue.merge(dict(wire, runs=runs) if is_older else wire)
            if record is None:
                raise Malformed("a record")
            if before is None and not is_older:  # Just so it was sent: no echo.
                self._to_send.pop(record.key, None)
                self._stored[record.key] = record.digest

    def _on_got(self, fields: Dict[str, Any]) -> None:
        sent = self._sent.get(fields["n"])
        if sent is None:
            return
        sent.due = float("inf")  # merged; durable is another matter, and may take long
        done = {key: digest for key, digest in sent.items() if not self._has_end(key)}
        self._stored.update(done)
        if len(done) == len(sent):
            del self._sent[fields["n"]]

    def _has_end(self, key: str) -> bool:
        record = self.queue.records.get(key)
        return record is not None and bool(self._ends(record))

    def _on_stored(self, fields: Dict[str, Any]) -> None:
        sent = self._sent.pop(fields["n"], None)
        if sent is None:
            return
        if fields["ok"]:
            self._stored.update(sent)
        else:
            self._again_at = self.now + AGAIN_S

    def _on_purged(self, fields: Dict[str, Any]) -> None:
        for writer, intervals in fields["w"].items():
            for low, high in intervals:
                self.queue.cover(writer, low, high)

    def _on_alive(self, fields: Dict[str, Any]) -> None:
        run_key = fields["run"]
        yes = run_key in self.hands.mine and run_key not in self.hands.killed
        answer = {"run": run_key, "yes": yes, "origin": fields["origin"]}
        self.emit(Send(self.peer, "ALIVE_ANSWER", answer))

    def _on_stop_run(self, fields: Dict[str, Any]) -> None:
        if run_order(fields["smaller"]) < run_order(fields["run"]):
            self.hands.stop_duplicate(fields["run"])

    def _on_drain_frame(self, fields: Dict[str, Any]) -> None:
        self.offer["draining"] = bool(fields["on"])

    def _on_check(self, fields: Dict[str, Any]) -> None:
        self._wanted = [str(text) for text in fields["conditions"]]
        self._is_watching = bool(fields["on"])
        if self._is_watching:
            self._ask()

    def _on_bye(self, fields: Dict[str, Any]) -> None:
        self.emit(CloseLink(self.peer, "closing"))
        self._lose(fields["why"] == "stopping")

    # --- what this machine has ----------------------------------------------------

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self.emit(Check(self._wanted))

    def _on_facts(self, message: Facts) -> None:
        self._is_asked = False
        memory = message.free_memory
        self.offer["free_memory"] = (
            None if memory is None else memory // FACT_BYTES * FACT_BYTES
        )
        self.offer["free_disk"] = message.free_disk // FACT_BYTES * FACT_BYTES
        self.offer["holds"] = sorted(message.holds)
        if self._is_watching and len(self.hands.mine) < self.offer["cores"]:
            self._look_at = self.now + LOOK_S

    def offer_now(self) -> Dict[str, Any]:
        """Give a copy of what is offered."""
        return dict(self.offer, tags=sorted(self.tags))

    def _tell_offer(self) -> None:
        offer = self.offer_now()
        if offer != self._told:
            self._told = offer
            self.emit(Send(self.peer, "OFFER", {"offer": offer}))

    def _on_tags(self, message: Tags) -> None:
        self.tags |= set(message.add)
        self.tags -= set(message.remove)
        self._ask()

    def _on_drain(self, message: Drain) -> None:
        self.offer["draining"] = message.on

    # --- what runs here -----------------------------------------------------------

    def _on_run_started(self, message: RunStarted) -> None:
        self.hands.on_started(message)

    def _on_run_refused(self, message: RunRefused) -> None:
        self.hands.on_refused(message)
        self._look_soon()

    def _on_run_ended(self, message: RunEnded) -> None:
        self.hands.on_ended(message)
        self._look_soon()

    def _look_soon(self) -> None:
        if self._is_watching:
            self._ask()

    def _on_file_here(self, message: FileHere) -> None:
        self.files.add(message.digest)
        self.hands.look_at_held()


DISPATCH: Dict[type, Callable[..., None]] = {
    DialEnded: GhostNode._on_dial_ended,
    Drain: GhostNode._on_drain,
    Facts: GhostNode._on_facts,
    FileHere: GhostNode._on_file_here,
    Found: GhostNode._on_found,
    Frame: GhostNode._on_frame,
    LinkLost: GhostNode._on_link_lost,
    LinkUp: GhostNode._on_link_up,
    Probed: GhostNode._on_probed,
    RunEnded: GhostNode._on_run_ended,
    RunRefused: GhostNode._on_run_refused,
    RunStarted: GhostNode._on_run_started,
    Stop: GhostNode._on_stop,
    Tags: GhostNode._on_tags,
    Written: GhostNode._on_written,
}
GHOSTS_FRAMES: Dict[str, Callable[[GhostNode, Dict[str, Any]], None]] = {
    "ALIVE": GhostNode._on_alive,
    "BYE": GhostNode._on_bye,
    "CHECK": GhostNode._on_check,
    "COMRADES": GhostNode._on_comrades,
    "DRAIN": GhostNode._on_drain_frame,
    "GOT": GhostNode._on_got,
    "HEARTBEAT": GhostNode._on_heartbeat,
    "PURGED": GhostNode._on_purged,
    "RECORDS": GhostNode._on_records,
    "STOP": GhostNode._on_stop_run,
    "STORED": GhostNode._on_stored,
}
