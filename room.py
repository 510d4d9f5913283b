"""What this node offers as a worker, and when a grant to it may start.

Reason for this file beside node.py and hands.py: hands.py is what runs, the same for
any worker; here is what a comrade's own machine has (conditions, memory, disk, files),
told to the others as facts, and the second copy that a grant to oneself needs.

Rules. Pure (D6). Asks the machine with Check and WantFile; answers come as messages.

How it works. While some task waits for a worker and this one isn't full, the machine
is asked which of the wanted conditions hold, if the last answer is older than FACTS_S;
until the answer nothing is granted to this node by itself. Else nothing is asked (D5).
A grant whose files are still coming is held until they are here, but no file holds up
grants for longer than FILE_S: then all that need it are handed back, and the refusals'
back-off says when it is tried again. The file keeps coming, whoever has it next.

Invariants.
D2  A grant of this process to itself starts only when another comrade has merged it, if
    there is one that answers within COPY_S: else nobody would know of it if we die now.
    Alone, when it is on this disk: so tasks that take their node with them are counted;
    but not while runs are short, of which many take less than an fsync.
"""

from typing import (
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Mapping,
    NamedTuple,
    Optional,
    Set,
)

from coordinator import is_own_grant
from effects import Check, Cores, Drain, Effect, Facts, Identity, Log, Tags, WantFile
from facts import clipped, in_steps
from hands import FILE_S, NO_FILE, Hands
from matching import Matcher
from mesh import Mesh
from record import UNFINISHED, Record
from replica import Replica
from workers import Worker

FACTS_S = 1.0  # what a worker said of its room is believed this long
COPY_S = 3.0  # a grant to oneself waits this long for a second copy
FILE_FORGET_S = 3600.0  # then it may hold up grants once more
CLAIRVOYANT = "clairvoyant"  # the tag of a comrade that has ghosts


class Copying(NamedTuple):
    """A grant to oneself that waits for its copy; frames sent before don't count."""

    key: str
    until: float
    after: Dict[str, int]  # peer -> frames sent to it before


class Room:
    """This machine, as the core knows it."""

    def __init__(
        self, me: Identity, worker: Worker, tags: Iterable[str], mesh: Mesh
    ) -> None:
        self.me = me
        self.worker = worker
        self.tags: Set[str] = set(tags)
        self.mesh = mesh
        self.files: Set[str] = set()  # digests in this node's store
        self._lacked: Dict[str, float] = {}  # digest -> when a grant first needed it
        self._facts_at: Optional[float] = None
        self._checked: FrozenSet[str] = frozenset()
        self._is_asked = False
        self._copying: Dict[str, Copying] = {}  # run key -> what it waits for
        self._copied: Set[str] = set()  # run keys that may start now
        self._waiting: Mapping[str, str] = {}  # run keys that wait to go to a ghost
        self._look_at_waiting: Callable[[], None] = lambda: None
        self._is_clairvoyant = False

    def attach(
        self,
        matcher: Matcher,
        replica: Replica,
        hands: Hands,
        emit: Callable[[Effect], None],
        is_kept: Callable[[str], bool],
    ) -> None:
        """Know the other parts of the node."""
        self.is_kept = is_kept  # says whether this disk has a task as it is
        self.matcher = matcher
        self.replica = replica
        self.hands = hands
        self.emit = emit
        self.tell()

    def serve(self, waiting: Mapping[str, str], look: Callable[[], None]) -> None:
        """Look after the second copies of grants to ghosts, too."""
        self._waiting, self._look_at_waiting = waiting, look

    # --- what the machine has -----------------------------------------------------

    def on_tags(self, message: Tags, now: float) -> None:
        """Take tags and give them away."""
        self.tags |= set(message.add)
        self.tags -= set(message.remove)
        self.look_again()
        self.tell()

    def be_clairvoyant(self, is_so: bool) -> None:
        """Have the tag, or lose it; the user's own one of that name stays."""
        if is_so != self._is_clairvoyant:
            self._is_clairvoyant = is_so
            self.look_again()
            self.tell()

    def all_tags(self) -> Set[str]:
        """Give the user's tags, and the one that ghosts give."""
        return self.tags | ({CLAIRVOYANT} if self._is_clairvoyant else set())

    def on_cores(self, message: Cores, now: float) -> None:
        """Offer so many cores."""
        self.worker.cores = self.hands.cores = message.cores
        self.tell()

    def on_moved(self, me: Identity) -> None:
        """Tell the new address; it may be what a task waits for (`worker:is`)."""
        self.me = me
        self.look_again()
        self.tell()

    def on_drain(self, message: Drain, now: float) -> None:
        """Take nothing new, or take it again."""
        self.worker.draining = message.on
        self.tell()

    def on_disk(self, is_stuck: bool) -> None:
        """Take nothing new while the disk hangs: to start a task is to write there."""
        if is_stuck != self.worker.stuck:
            self.worker.stuck = is_stuck
            self.emit(Log("the disk %s" % ("hangs" if is_stuck else "answers again")))
            self.tell()

    def on_facts(self, message: Facts, now: float) -> None:
        """Take the machine's answer."""
        self._is_asked = False
        self._facts_at = now
        self.worker.free_memory = message.free_memory
        self.worker.free_disk = message.free_disk
        self.matcher.facts(self.worker, message.holds)
        self.tell()

    def look_again(self) -> None:
        """Believe no longer what was said of this machine."""
        self._facts_at = None

    def tell(self) -> None:
        """Tell the others what this node offers."""
        worker = self.worker
        memory = worker.free_memory
        self.mesh.tell(
            name=self.me.name,
            address=self.me.address,
            role="comrade",
            cores=worker.cores,
            memory=worker.memory,
            free_memory=None if memory is None else in_steps(memory),
            free_disk=in_steps(worker.free_disk),
            holds=clipped(worker.holds),
            tags=clipped(self.all_tags()),
            draining=worker.draining,
            stuck=worker.stuck,
        )

    def check(self, now: float) -> None:
        """Ask the machine, if a task waits for a worker and the answer is old."""
        if self.hands.is_stopping or self._is_asked or not self._is_wanted():
            return
        is_old = self._facts_at is None or now - self._facts_at >= FACTS_S
        if is_old or not self._checked.issuperset(self.matcher.wanted):
            self._ask()
        self.worker.away = is_old  # What it has now isn't known: nothing is granted.

    def refresh(self) -> None:
        """Ask the machine now, for somebody who looks: else it may be long ago."""
        if not self._is_asked:
            self._ask()

    def _ask(self) -> None:
        self._is_asked = True
        self._checked = frozenset(self.matcher.wanted)
        self.emit(Check(sorted(self._checked)))

    def _is_wanted(self) -> bool:
        """Say whether some task waits for a worker, and not only for other tasks."""
        away, self.worker.away = self.worker.away, False
        is_full, self.worker.away = self.worker.is_full(), away
        if is_full:
            return False
        return bool(self.matcher.wanted) or self.matcher.peek() is not None

    def deadline(self, now: float) -> Optional[float]:
        """Give the time when something is due here."""
        times = [c.until for c in self._copying.values() if c.until > now]
        times += self._hand_back_at(now).values()
        if not (self.hands.is_stopping or self._is_asked) and self._is_wanted():
            times.append((self._facts_at or now) + FACTS_S)
        return min(times, default=None)

    # --- files --------------------------------------------------------------------

    def want_files(self, record: Record, source: str) -> None:
        """Get what an unfinished task needs, from the peer that sent the task first."""
        if record.state in UNFINISHED:
            for file in record.needs.files:
                if file.digest not in self.files:
                    self.emit(WantFile(file.digest, file.size, source))

    def has_files(self, record: Record) -> bool:
        """Say whether all that a task needs is in the store."""
        return all(file.digest in self.files for file in record.needs.files)

    def _hand_back_at(self, now: float) -> Dict[str, float]:
        """Give when each grant that is held for want of a file is handed back."""
        found: Dict[str, float] = {}
        for run_key, key in self.hands.held.items():
            record = self.hands.queue.records.get(key)
            for file in record.needs.files if record is not None else ():
                if file.digest not in self.files:
                    until = self._lacked.setdefault(file.digest, now) + FILE_S
                    found[run_key] = min(found.get(run_key, until), until)
        return found

    # --- starting -----------------------------------------------------------------

    def may_start(self, record: Record, run_key: str, now: float) -> bool:
        """Say whether a grant to this process may start: files, and a second copy."""
        is_own = is_own_grant(run_key, self.me.writer)
        if is_own and not self.is_copied(record.key, run_key, now):
            return False
        return self.has_files(record)

    def is_copied(self, key: str, run_key: str, now: float) -> bool:
        """Say whether a grant of this process is known elsewhere; else wait for it."""
        if run_key in self._copied or self._is_enough_here(key, now):
            return True
        if run_key not in self._copying:
            after = {peer: box.number for peer, box in self.replica.boxes.items()}
            self._copying[run_key] = Copying(key, now + COPY_S, after)
        return False

    def _is_enough_here(self, key: str, now: float) -> bool:
        """Say whether nobody else is there to know of a grant, and the disk does."""
        if self.mesh.links:
            return False
        return self.worker.is_quick(now) or self.is_kept(key)

    def _is_late(self, copying: Copying, now: float) -> bool:
        """Say whether nothing is waited for any longer; alone, a disk that hangs is."""
        is_over = now >= copying.until
        return is_over and (bool(self.mesh.links) or not self.worker.stuck)

    def on_got(self, peer: str, n: int, keys: Iterable[str]) -> None:
        """A peer has merged frame n of ours, with these records."""
        for run_key, copying in list(self._copying.items()):
            if n > copying.after.get(peer, 0) and copying.key in keys:
                self._copy_is_made(run_key)

    def on_link_lost(self, peer: str) -> None:
        """Frames of its next link count anew."""
        for copying in self._copying.values():
            copying.after.pop(peer, None)

    def expire(self, now: float) -> None:
        """Start or hand back what has waited for long enough; forget what is over."""
        late = [run for run, at in self._hand_back_at(now).items() if at <= now]
        self.hands.give_back(late, NO_FILE)
        for digest, since in list(self._lacked.items()):
            if digest in self.files or now - since >= FILE_FORGET_S:
                del self._lacked[digest]
        self._expire_copies(now)

    def _expire_copies(self, now: float) -> None:
        """Start what nobody wanted to copy; forget what won't start here at all."""
        held, waiting = self.hands.held, self._waiting
        self._copied = {r for r in self._copied if r in held or r in waiting}
        for run_key, copying in list(self._copying.items()):
            if run_key not in held and run_key not in waiting:
                del self._copying[run_key]
            elif self._is_late(copying, now) or self._is_enough_here(copying.key, now):
                self._copy_is_made(run_key)

    def _copy_is_made(self, run_key: str) -> None:
        del self._copying[run_key]
        self._copied.add(run_key)
        self.hands.look_at_held()
        self._look_at_waiting()
