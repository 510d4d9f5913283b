"""The machines: clocks, sandboxes, and the process that any worker is.

Rules. Does with a core what comrade.py and ghost.py both do, in their order, and
nothing else. The effects that a core may have are a table (PERFORM) of each kind of
process; what runs tasks (`Sandbox`) and what goes over a wire (wires.py) know only an
owner. comrades.py and specters.py are the two kinds.

How it works. A `Host` is a machine: its two clocks, its disk, its files, at most one
`Process`. That steps and ticks a core and performs its effects. When it is paused it
takes what came in when it resumes, as a select loop does: first the messages, then the
tick. Its disk's writes are those of the journal's thread: all that waits is one
transaction, and answers when that is fsynced.

Clocks. `Comrade.now` is CLOCK_BOOTTIME: it runs a little fast or slow, and jumps
forward when the machine was suspended. The wall clock is any number at all, drawn anew
at each look, from a generator of its own: nothing may depend on it (D4, S13).
"""

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set, Tuple

from disks import Disk
from wires import Wire

import effects as core
from record import Record

if TYPE_CHECKING:
    from world import World

TICK_S = 0.001  # the next tick isn't before this: no clock here is finer
DIAL_S = 1.0  # then a dial has timed out
WRITE_SEQ = 0  # of batches that nobody waits for
DRIFT = 0.005  # a clock gains or loses up to this much of a second each second
WALL_S = 315e6  # wall clocks are wrong by up to ten years
MEMORY, DISK = 1 << 30, 1 << 40
BEHIND_S = (0.1, 0.5)  # a run ahead waits this long; the virtual ones take longer


class Host:
    """One machine."""

    def __init__(self, world: "World", name: str) -> None:
        rng = world.rng
        self.world = world
        self.name = name
        self.address = "10.0.0.%d" % (1 + ord(name[0]) - ord("a"))
        self.wanted = ""  # of a ghost: the argument of ghost.py
        self.offset = rng.choice([0.0, rng.uniform(0, 1e6)])
        self.rate = 1 + rng.choice([0.0, rng.uniform(-DRIFT, DRIFT)])
        self.disk = Disk()
        self.files: Set[str] = set()
        self.ids = 0  # node ids drawn so far
        self.is_on = True
        self.jumps = 0
        self.is_asleep = False  # suspended: its tasks stand still too
        self.process: Any = None  # of it, while it runs
        self.cores = 2
        self.tags = ["tag " + name]
        self.relay_cores = 0  # of a comrade: set aside while it has ghosts
        self.refusal = 0.0  # how often the sandbox refuses a run

    def now(self) -> float:
        """Give CLOCK_BOOTTIME."""
        return self.offset + self.rate * self.world.t

    def when(self, now: float) -> float:
        """Give the world's time of a time of this machine."""
        return (now - self.offset) / self.rate

    def wall(self) -> float:
        """Give what the wall clock shows: anything."""
        return 1.6e9 + self.world.t + self.world.wall_rng.uniform(-WALL_S, WALL_S)

    def jump(self, seconds: float) -> None:
        """Let CLOCK_BOOTTIME jump forward."""
        self.world.log("clock of %s jumps by %.0f s" % (self.name, seconds))
        self.offset += seconds
        self.jumps += 1
        if self.process is not None:
            self.process.wake = None
            self.process.tick_soon()

    def new_id(self) -> str:
        """Draw a node id; the first is the machine's name."""
        self.ids += 1
        return self.name + ("" if self.ids == 1 else str(self.ids))


class Sandbox:
    """What runs tasks for one process, its `owner`, and tells it their ends."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.world = owner.world
        self.runs: Dict[str, str] = {}  # run key -> task key
        self.ahead: Dict[str, Record] = {}  # run key -> what begins behind another
        self.told_by: Dict[str, float] = {}  # when a start has been told, at the latest

    def start(self, run: str, record: Record, ahead: int) -> None:
        """Start a run now, or once fewer than `ahead` go on; that waits for no turn."""
        owner, rng, after = self.owner, self.world.rng, self.world.after
        if rng.random() < owner.host.refusal:
            after(0.01, owner.take, owner.step, core.RunRefused(run, "no room"))
        elif ahead and len(self.runs) >= ahead:
            self.ahead[run] = record
            self.world.ledger.on_ahead(owner, run, record.key)
            after(rng.uniform(*BEHIND_S), owner.take, self.refuse, run, core.BEHIND)
        else:
            self._begin(run, record)

    def refuse(self, run: str, why: str) -> None:
        """Take back what hasn't begun."""
        if self.ahead.pop(run, None) is not None:
            self.world.log("%s takes back %s" % (self.owner.host.name, run))
            self.owner.step(core.RunRefused(run, why))

    def _begin(self, run: str, record: Record) -> None:
        """Let it begin. The command is: seconds, exit code, a third word if short."""
        owner, rng, after = self.owner, self.world.rng, self.world.after
        seconds, status = record.command.split()[:2]
        self.world.ledger.on_start(owner, run, record)
        self.runs[run] = record.key
        started, delay = (
            core.RunStarted(run, owner.host.wall()),
            rng.uniform(0.005, 0.03),
        )
        self.told_by[run] = self.world.t + delay
        after(delay, owner.take, owner.step, started)
        took = 0.01 if record.command.split()[2:] else 1.0
        after(0.03 + float(seconds), self.end, run, int(status), "", took)

    def kill(self, effect: core.Kill) -> None:
        """Stop a run; its end follows."""
        if effect.run in self.ahead:
            self.world.after(0.001, self.refuse, effect.run, effect.cause)
        elif effect.run in self.runs:
            self.world.ledger.on_kill(self.owner, effect)
            delay = self.world.rng.uniform(0.01, min(effect.grace_s, 1.0))
            at = max(self.world.t + delay, self.told_by[effect.run])
            self.world.at(at, self.end, effect.run, 143, effect.cause)

    def end(self, run: str, status: int, cause: str, took: float = 1.0) -> None:
        """A task's processes are all gone."""
        owner = self.owner
        if not owner.is_alive() or run not in self.runs:
            return
        if owner.host.is_asleep:
            self.world.after(0.1, self.end, run, status, cause, took)
            return
        del self.runs[run]
        self.world.ledger.on_end(run, status, cause)
        at, end = owner.host.wall(), owner.host.wall()
        out = owner.output(run)
        ended = core.RunEnded(run, status, cause, at, end, took, out, [0, ""])
        for first in list(self.ahead)[:1]:
            self._begin(first, self.ahead.pop(first))
        owner.take(owner.step, ended)


class Process:
    """One life of a worker: what comrade.py and ghost.py do around a core."""

    performs: Dict[type, Callable[..., None]]

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.found = host.disk.load()
        self.kept = {k: data.decode("ascii") for k, data in self.found.meta.items()}
        self.writer = "%016x" % self.world.rng.getrandbits(64)
        self.former = self.kept.get("writers", "").split()
        # What is to be kept beside the records.
        self.meta = {"writers": " ".join([*self.former, self.writer])}
        self.written: Dict[str, str] = {}  # meta as the disk has it
        self.node: Any = None
        self.sandbox = Sandbox(self)
        self.wires: Dict[str, Wire] = {}  # by the peer's name
        self.waiting: List[core.Persist] = []  # for the disk
        self.writing: List[core.Persist] = []  # under way to it
        self.inbox: List[Tuple[Callable[..., None], Any]] = []
        self.is_paused = False
        self.paused_at = 0.0
        self.is_to_pause = False  # in the middle of its next turn that sends records
        self.is_ticking = False
        self.wake: Optional[float] = None

    def is_alive(self) -> bool:
        """Say whether this is still the process of its host."""
        return self.host.process is self

    @property
    def now(self) -> float:
        """Give this machine's clock."""
        return self.host.now()

    # --- the loop -----------------------------------------------------------------

    def take(self, call: Callable[..., None], *args: Any) -> None:
        """Let something happen to this process, or wait until it runs again."""
        if not self.is_alive():
            return
        if self.is_paused:
            self.inbox.append((call, args))
        else:
            call(*args)

    def step(self, message: core.Message) -> None:
        """Give the core a message and perform what it wants."""
        self.world.touch(self)
        self.perform(self.node.step(message, self.now))
        self.tick_soon()

    def rows(self) -> List[Any]:
        """Give the records that the disk had, as a core takes them."""
        return [json.loads(row.decode("ascii")) for row in self.found.rows.values()]

    def tick_soon(self) -> None:
        """Tick once all that happens at this moment has happened."""
        if not self.is_ticking:
            self.is_ticking = True
            self.world.at(self.world.t, self.tick)

    def tick(self) -> None:
        """Let the core do what is due; come back at its deadline."""
        self.is_ticking = False
        if not self.is_alive() or self.is_paused:
            return
        self.world.touch(self)
        made, deadline = self.node.tick(self.now)
        self.perform(made)
        self._look_after()
        if self.is_alive() and deadline is not None:
            at = max(self.host.when(deadline), self.world.t + TICK_S)
            if self.wake is None or not self.world.t < self.wake <= at:
                self.wake = at
                self.world.at(at, self.wake_up, at)

    def _look_after(self) -> None:
        """Do what a kind of process does after each tick."""

    def wake_up(self, at: float) -> None:
        """The deadline that `select` was given."""
        if self.wake == at and self.is_alive() and not self.is_paused:
            self.wake = None
            self.tick_soon()

    def resume(self) -> None:
        """Go on: what came in first, then the tick."""
        self.is_paused = False
        inbox, self.inbox = self.inbox, []
        for call, args in inbox:
            self.take(call, *args)
        self.wake = None
        self.tick_soon()

    # --- effects ------------------------------------------------------------------

    def perform(self, made: List[core.Effect]) -> None:
        """Carry out what the core decided."""
        if self.is_to_pause and any(getattr(e, "kind", "") == "RECORDS" for e in made):
            self.is_to_pause, self.is_paused = False, True
            self.world.log("pause %s in the middle of a turn" % self.host.name)
            self.inbox.append((self.perform, (made,)))
            return
        for effect in made:
            self.performs[type(effect)](self, effect)

    def _persist(self, effect: core.Persist) -> None:
        own = {k: v for k, v in self.meta.items() if self.written.get(k) != v}
        meta = {name: text.encode("ascii") for name, text in own.items()}
        self.waiting.append(effect._replace(meta=dict(meta, **effect.meta)))
        if not self.writing:
            self._write()

    def _write(self) -> None:
        disk = self.host.disk
        self.writing, self.waiting = self.waiting, []
        disk.begin(self.writing)
        self.world.after(self.world.rng.uniform(*disk.delay), self.fsync)

    def fsync(self) -> None:
        """Group commit: all that was under way is on disk, or is not."""
        disk = self.host.disk
        if not self.is_alive():
            return
        if disk.is_hung:
            self.world.after(0.2, self.fsync)
            return
        batches, self.writing = self.writing, []
        errors = disk.commit(batches)
        disk.failed_at = self.world.t if any(errors) else disk.failed_at
        for batch, error in zip(batches, errors):
            if not error:
                self.world.ledger.on_fsync(self.host, batch)
        if self.waiting:
            self._write()
        for batch, error in zip(batches, errors):
            self.take(self._on_written, batch, error)

    def _on_written(self, batch: core.Persist, error: str) -> None:
        if not error:
            own = [name for name in batch.meta if name in self.meta]
            self.written.update({name: batch.meta[name].decode() for name in own})
        if batch.seq != WRITE_SEQ:
            self.step(core.Written(batch.seq, error))

    def _log(self, effect: core.Log) -> None:
        self.world.log("%s: %s" % (self.host.name, effect.text))

    def _check(self, effect: core.Check) -> None:
        holds = [c for c in effect.conditions if c.split(":")[1] in self.host.tags]
        facts = core.Facts(frozenset(holds), MEMORY, DISK)
        self.world.after(0.005, self.take, self.step, facts)

    def _start(self, effect: core.Start) -> None:
        self.sandbox.start(*effect[:2], effect.ahead)

    def _kill(self, effect: core.Kill) -> None:
        self.sandbox.kill(effect)

    def _stopped(self, effect: core.Stopped) -> None:
        self.world.ledger.on_stopped(self)
        self.world.end_process(self, is_clean=True)

    def _want_file(self, effect: core.WantFile) -> None:
        self.world.after(0.1, self.fetch, effect.digest)

    def fetch(self, digest: str) -> None:
        """Get a file from whoever is linked and has it; try again until then."""
        if not self.is_alive():
            return
        for _, wire in sorted(self.wires.items()):
            there = wire.other(self)
            if digest in there.host.files and there.is_alive() and not there.is_paused:
                if not self.world.network.is_cut(self.host.name, there.host.name):
                    self.host.files.add(digest)
                    self.take(self.step, core.FileHere(digest))
                    return
        self.world.after(0.5, self.fetch, digest)

    def output(self, run: str) -> List[Any]:
        """Give what a run printed: nothing."""
        return [0, ""]

    # --- links --------------------------------------------------------------------

    def forget(self, wire: Wire) -> None:
        """It is closed at this end."""
        for peer in [peer for peer, known in self.wires.items() if known is wire]:
            del self.wires[peer]


PERFORM: Dict[type, Callable[..., None]] = {  # of any worker
    core.Check: Process._check,
    core.Kill: Process._kill,
    core.Log: Process._log,
    core.Persist: Process._persist,
    core.Start: Process._start,
    core.Stopped: Process._stopped,
    core.WantFile: Process._want_file,
}
