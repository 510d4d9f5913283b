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

A heartbeat goes each second. If nothing is heard for SUSPECT_S, or a frame isn't
answered in time (reports.py), the clairvoyant is lost, whatever TCP says, and the next
one has its turn.

Invariants.
D2  A run starts once (hands.py). A grant of an older term than the newest known is
    handed back.
D4  Nothing that runs is stopped because a clairvoyant is gone.
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
    Probe,
    Probed,
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
from facts import clipped, ids, in_steps, number
from hands import FILE_S, NO_FILE, PAUSED, Hands
from mesh import HEARTBEAT_S, PAUSE_S, SUSPECT_S
from record import TERM_MAX, Record
from reports import Reports, Sent
from taskqueue import Queue

CHECK_PARTS_MAX = 64  # twice what a comrade asks for
LOOK_S = 1.0  # while a task waits somewhere, what is free here is looked at so often
BYE_WAIT_S = 0.5  # all is handed back: the clairvoyant gets it so long


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
        self.hands = Hands(self.queue, me.writer, cores, self.emit, self._may_start)
        self.reports = Reports(self.queue, self.hands, me.writer, self.emit)
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
        self._told: Dict[str, Any] = {}  # what was offered last
        self._wanted: List[str] = []  # conditions to look at
        self._coming: List[List[str]] = []  # those that come in parts
        self._is_watching = False
        self._look_at: Optional[float] = None
        self._is_asked = False
        self._bye_at: Optional[float] = None
        self._is_over = False
        self._held_since: Dict[str, float] = {}  # run -> when it began to lack a file

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
        self._give_back_late()
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
            self.hands.give_back(list(self.hands.held), PAUSED)
            self._leave()

    def _turn(self) -> List[Effect]:
        self.hands.look_again()
        self.reports.flush(self.now)
        if self.peer:
            self._tell_offer()
        if self.hands.is_stopping:
            self._end_stop()
        effects, self._effects = self._effects, []
        return effects

    def _deadline(self) -> Optional[float]:
        times = [
            self.choice.deadline(),
            self._look_at,
            self._bye_at,
            self.reports.deadline(),
        ]
        if self.peer:
            times += [self._beat_at, self._heard_at + SUSPECT_S]
        times += [since + FILE_S for since in self._held_since.values()]
        return min((t for t in times if t is not None), default=None)

    # --- start and stop -----------------------------------------------------------

    def load(self, rows: Iterable[Any], former: Iterable[str]) -> None:
        """Take the ends that former processes couldn't tell anybody."""
        self._former = list(former)
        self.reports.load(rows, self._former)

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
        if self._is_over or self.hands.mine or not self.reports.is_clean():
            return
        if self._bye_at is None:
            self._bye_at = self.now + BYE_WAIT_S
        if self.reports.is_told() or self.now >= self._bye_at:
            self._is_over, self._bye_at = True, None
            if self.peer:
                self.emit(Send(self.peer, "BYE", {"why": "stopping"}))
            self.emit(Stopped())

    # --- records ------------------------------------------------------------------

    def _on_change(self, record: Record, old: Any, new: Any) -> None:
        if new is not None:
            self.hands.to_look.add(record.key)
        self.reports.note(record, gone=new is None)

    def _may_start(self, record: Record, run_key: str) -> bool:
        missing = [f for f in record.needs.files if f.digest not in self.files]
        for file in missing:
            self.emit(WantFile(file.digest, file.size, self.peer))
        return not missing

    def _give_back_late(self) -> None:
        """Hand back the grants whose files don't come (as room.py does)."""
        held, known = self.hands.held, self._held_since
        self._held_since = {run: known.get(run, self.now) for run in sorted(held)}
        late = [r for r, at in self._held_since.items() if self.now >= at + FILE_S]
        self.hands.give_back(late, NO_FILE)

    def _on_written(self, message: Written) -> None:
        self.reports.on_written(message, self.now)

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
            self._leave()
        self.choice.on_up(self.choice.dialling, self.now)
        self.peer, self.clairvoyant = message.peer, ""
        self._heard_at = self._beat_at = self.now
        self._session += 1
        self._told = self.offer_now()
        self.reports.on_link(self.peer, self.now)
        runs = [
            [record.key, run_key]
            for record in self.queue.records.values()
            for run_key, run in record.runs.items()
            if run.worker == self.me.writer
        ]
        fields = {"session": self._session, "term": self.hands.term, "runs": runs}
        fields.update(former=self._former, offer=self._told)
        self.reports.number("ATTACH", fields, Sent(), self.now)

    def _on_link_lost(self, message: LinkLost) -> None:
        if message.peer == self.peer:
            self._lose(message.why != "stopping")

    def _lose(self, may_be_there: bool) -> None:
        self.peer = self.clairvoyant = ""
        self._is_watching, self._coming = False, []
        self.reports.on_link_lost()
        self.choice.on_lost(self.now, may_be_there)

    def _leave(self, may_be_there: bool = True) -> None:
        """End the link from here: it isn't trusted any more."""
        peer = self.peer
        self.emit(Send(peer, "BYE", {"why": "closing"}))
        self.emit(CloseLink(peer, "closing"))
        self._lose(may_be_there)

    def _watch_link(self) -> None:
        if not self.peer:
            return
        if self.now >= self._beat_at:
            self._beat_at = self.now + HEARTBEAT_S
            self.emit(Send(self.peer, "HEARTBEAT", {"n": 0, "heard": 0, "root": ""}))
        is_silent = self.now - self._heard_at >= SUSPECT_S
        if is_silent or self.reports.is_late(self.now):
            self.emit(Log("no answer of the clairvoyant; on to the next"))
            self._leave(may_be_there=False)

    # --- what comes over it -------------------------------------------------------

    def _on_frame(self, message: Frame) -> None:
        if message.peer != self.peer:
            return
        self._heard_at = self.now
        try:
            GHOSTS_FRAMES[message.kind](self, message.fields)
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            self.emit(Log("%s: %r" % (message.kind, problem)))
            self._leave()

    def _on_heartbeat(self, fields: Dict[str, Any]) -> None:
        pass  # it is heard

    def _on_comrades(self, fields: Dict[str, Any]) -> None:
        self.reports.on_answered(fields["n"])
        self._learn_term(fields)
        self.clairvoyant = str(fields["name"])
        self.choice.learn(ids(fields["addresses"]))

    def _learn_term(self, fields: Dict[str, Any]) -> None:
        self.hands.term = max(self.hands.term, number(fields["term"], TERM_MAX))

    def _on_records(self, fields: Dict[str, Any]) -> None:
        self._learn_term(fields)
        for wire in fields["r"]:
            self.reports.merge(wire)

    def _on_got(self, fields: Dict[str, Any]) -> None:
        self.reports.on_got(fields["n"])

    def _on_stored(self, fields: Dict[str, Any]) -> None:
        self.reports.on_stored(fields["n"], fields["ok"], self.now)

    def _on_purged(self, fields: Dict[str, Any]) -> None:
        self.queue.cover_all(fields["w"])

    def _on_alive(self, fields: Dict[str, Any]) -> None:
        run_key = fields["run"]
        yes = self.hands.is_running(run_key)
        answer = {"run": run_key, "yes": yes, "origin": fields["origin"]}
        self.emit(Send(self.peer, "ALIVE_ANSWER", answer))

    def _on_stop_run(self, fields: Dict[str, Any]) -> None:
        self.hands.stop_duplicate(fields["run"], fields["smaller"])

    def _on_drain_frame(self, fields: Dict[str, Any]) -> None:
        self.offer["draining"] = bool(fields["on"])

    def _on_check(self, fields: Dict[str, Any]) -> None:
        self._coming.append([str(text) for text in fields["conditions"]])
        if len(self._coming) > CHECK_PARTS_MAX:
            raise ValueError("too many conditions")
        if fields.get("more"):
            return
        coming, self._coming = self._coming, []
        self._wanted = [text for part in coming for text in part]
        self._is_watching = bool(fields["on"])
        if self._is_watching:
            self._ask()

    def _on_bye(self, fields: Dict[str, Any]) -> None:
        self.emit(CloseLink(self.peer, "closing"))
        self._lose(fields["why"] != "stopping")

    # --- what this machine has ----------------------------------------------------

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self.emit(Check(self._wanted))

    def _on_facts(self, message: Facts) -> None:
        self._is_asked = False
        memory = message.free_memory
        self.offer["free_memory"] = None if memory is None else in_steps(memory)
        self.offer["free_disk"] = in_steps(message.free_disk)
        self.offer["holds"] = clipped(message.holds)
        if self._is_watching and len(self.hands.mine) < self.offer["cores"]:
            self._look_at = self.now + LOOK_S

    def all_tags(self) -> Set[str]:
        """Give this node's tags."""
        return self.tags

    def offer_now(self) -> Dict[str, Any]:
        """Give a copy of what is offered."""
        return dict(self.offer, tags=clipped(self.tags))

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
