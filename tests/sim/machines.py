"""The machines: clocks, sandboxes, and the process that comrade.py is.

Rules. Does with a core what comrade.py does, in its order, and nothing else. The
effects that a core may have are a table (PERFORM), so that another kind of process
(one that has no disk, say) has another table; what runs tasks (`Sandbox`) and what
goes over a wire (wires.py) know only an owner.

How it works. A `Host` is a machine: its two clocks, its disk, its files, at most one
`Comrade`. A Comrade steps and ticks a node.Node and performs its effects. When it is
paused it takes what came in when it resumes, as a select loop does: first the messages,
then the tick. Its disk's writes are those of the journal's thread: all that waits is
one transaction, and answers when that is fsynced.

Clocks. `Comrade.now` is CLOCK_BOOTTIME: it runs a little fast or slow, and jumps
forward when the machine was suspended. The wall clock is any number at all, drawn anew
at each look, from a generator of its own: nothing may depend on it (D4, S13).
"""

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Set, Tuple

from disks import Disk
from wires import Wire

import effects as core
from node import Node
from record import Record

if TYPE_CHECKING:
    from world import World

TICK_S = 0.001  # the next tick isn't before this: no clock here is finer
REDIAL_S = (0.2, 2.0)
DIAL_S = 1.0  # then a dial has timed out
DRIFT = 0.005  # a clock gains or loses up to this much of a second each second
WALL_S = 315e6  # wall clocks are wrong by up to ten years
MEMORY, DISK = 1 << 30, 1 << 40


class Host:
    """One machine."""

    def __init__(self, world: "World", name: str) -> None:
        rng = world.rng
        self.world = world
        self.name = name
        self.offset = rng.choice([0.0, rng.uniform(0, 1e6)])
        self.rate = 1 + rng.choice([0.0, rng.uniform(-DRIFT, DRIFT)])
        self.disk = Disk()
        self.files: Set[str] = set()
        self.ids = 0  # node ids drawn so far
        self.is_on = True
        self.is_asleep = False  # suspended: its tasks stand still too
        self.process: Optional[Comrade] = None
        self.cores = 2
        self.tags = ["tag " + name]
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

    def start(self, run: str, record: Record) -> None:
        """Start a run. The command is: seconds, exit code."""
        owner, rng, after = self.owner, self.world.rng, self.world.after
        if rng.random() < owner.host.refusal:
            after(0.01, owner.take, owner.step, core.RunRefused(run, "no room"))
            return
        seconds, status = record.command.split()[:2]
        self.world.ledger.on_start(owner, run, record)
        self.runs[run] = record.key
        started = core.RunStarted(run, owner.host.wall())
        after(rng.uniform(0.005, 0.03), owner.take, owner.step, started)
        after(0.03 + float(seconds), self.end, run, int(status), "")

    def kill(self, effect: core.Kill) -> None:
        """Stop a run; its end follows."""
        if effect.run in self.runs:
            self.world.ledger.on_kill(self.owner, effect)
            delay = self.world.rng.uniform(0.01, min(effect.grace_s, 1.0))
            self.world.after(delay, self.end, effect.run, 143, effect.cause)

    def end(self, run: str, status: int, cause: str) -> None:
        """A task's processes are all gone."""
        owner = self.owner
        if not owner.is_alive() or run not in self.runs:
            return
        if owner.host.is_asleep:
            self.world.after(0.1, self.end, run, status, cause)
            return
        del self.runs[run]
        self.world.ledger.on_end(run, status, cause)
        at, end = owner.host.wall(), owner.host.wall()
        ended = core.RunEnded(run, status, cause, at, end, 1.0, [0, ""], [0, ""])
        owner.take(owner.step, ended)


class Comrade:
    """One life of a comrade: what comrade.py does around a node.Node."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        found = host.disk.load()
        self.found = found
        meta = {name: data.decode("ascii") for name, data in found.meta.items()}
        self.node_id = meta.get("node_id") or host.new_id()
        self.writer = "%016x" % self.world.rng.getrandbits(64)
        self.former = meta.get("writers", "").split()
        self.known: Dict[str, str] = json.loads(meta.get("members", "{}"))
        starts = int(meta.get("starts", "0")) + 1
        self.meta = {  # what is to be kept beside the records
            "node_id": self.node_id,
            "starts": str(starts),
            "writers": " ".join([*self.former, self.writer]),
        }
        self.written: Dict[str, str] = {}  # meta as the disk has it
        self.node = self.new_node()
        self.sandbox = Sandbox(self)
        self.wires: Dict[str, Wire] = {}  # peer's node id -> wire
        self.ids: Dict[str, str] = {}  # machine -> the node id that answered there
        self.waiting: List[core.Persist] = []  # for the disk
        self.writing: List[core.Persist] = []  # under way to it
        self.inbox: List[Tuple[Callable[..., None], Any]] = []
        self.is_paused = False
        self.is_to_pause = False  # in the middle of its next turn that sends records
        self.is_ticking = False
        self.wake: Optional[float] = None

    def new_node(self) -> Node:
        """Make a core for this process."""
        host, starts = self.host, int(self.meta["starts"])
        me = core.Identity(self.node_id, self.writer, host.name, "10.0.0.1", starts)
        return Node(me, host.cores, MEMORY, (), lambda regex, text: regex in text)

    def load(self, node: Node) -> None:
        """Let a core take what the disk had."""
        node.files.update(self.host.files)
        rows = [json.loads(row.decode("ascii")) for row in self.found.rows.values()]
        node.load(rows, self.found.meta)

    def is_alive(self) -> bool:
        """Say whether this is still the process of its host."""
        return self.host.process is self

    def begin(self) -> None:
        """Start from what the disk has."""
        world = self.world
        world.ledger.watch(self)
        self.load(self.node)
        world.ledger.on_recovered(self)
        self.node.begin(self.former, self.known, self.now)
        self.step(core.Sync(0))
        for name in world.hosts:
            if name != self.host.name:
                world.after(world.rng.uniform(0, 0.5), self.dial, name)
        self.tick_soon()

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
        self._know_members()
        if self.is_alive() and deadline is not None:
            at = max(self.host.when(deadline), self.world.t + TICK_S)
            if self.wake is None or not self.world.t < self.wake <= at:
                self.wake = at
                self.world.at(at, self.wake_up, at)

    def _know_members(self) -> None:
        members = self.node.mesh.members
        if members and members.keys() != self.known.keys():
            self.known = {node_id: "10.0.0.1" for node_id in members}
            self.meta["members"] = json.dumps(self.known, sort_keys=True)

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
            PERFORM[type(effect)](self, effect)

    def _send(self, effect: core.Send) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            wire.send(self, effect.kind, effect.fields)

    def _close_link(self, effect: core.CloseLink) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            wire.close(self)
            self._redial(wire)

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
        self.step(core.Written(batch.seq, error))

    def _acked(self, effect: core.Acked) -> None:
        if effect.ticket:  # 0 is the process's own Sync
            self.world.ledger.on_acked(self, effect)

    def _check(self, effect: core.Check) -> None:
        holds = [c for c in effect.conditions if c.split(":")[1] in self.host.tags]
        facts = core.Facts(frozenset(holds), MEMORY, DISK)
        self.world.after(0.005, self.take, self.step, facts)

    def _start(self, effect: core.Start) -> None:
        self.sandbox.start(effect.run, effect.record)

    def _kill(self, effect: core.Kill) -> None:
        self.sandbox.kill(effect)

    def _stopped(self, effect: core.Stopped) -> None:
        self.world.ledger.on_stopped(self)
        self.world.end_process(self, is_clean=True)

    def _log(self, effect: core.Log) -> None:
        self.world.log("%s: %s" % (self.host.name, effect.text))

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

    def _want_output(self, effect: core.WantOutput) -> None:
        """Outputs are empty here; outputs.py and its tests are about them."""

    # --- links --------------------------------------------------------------------

    def on_frame(self, wire: Wire, kind: str, fields: Dict[str, Any]) -> None:
        """Give the core what came."""
        self.step(core.Frame(wire.other(self).node_id, kind, fields))

    def on_end(self, wire: Wire, why: str) -> None:
        """A wire is gone, and not by our will."""
        self._redial(wire)
        self.step(core.LinkLost(wire.other(self).node_id, why))

    def forget(self, wire: Wire) -> None:
        """It is closed at this end."""
        peer = wire.other(self).node_id
        if self.wires.get(peer) is wire:
            del self.wires[peer]

    def is_linked(self, name: str) -> bool:
        """Say whether there is a wire to a machine."""
        return any(wire.other(self).host.name == name for wire in self.wires.values())

    def _redial(self, wire: Wire) -> None:
        name = wire.other(self).host.name
        self.world.after(self.world.rng.uniform(0.2, 0.5), self.dial, name)

    def dial(self, name: str) -> None:
        """Try to connect to a machine; go on trying while there is no link."""
        world, network, here = self.world, self.world.network, self.host.name
        if not self.is_alive() or self.is_linked(name):
            return
        there, pair = world.hosts[name], frozenset((name, here))
        is_open = not network.is_cut(here, name) and there.is_on
        if is_open and not self.is_paused and pair not in world.dialling:
            other, delay = there.process, 2 * network.latency(here, name)
            if other is None:
                refused = core.DialRefused(self.ids.get(name, name))
                world.after(delay, self.take, self.step, refused)
            elif not other.is_paused and delay <= DIAL_S:
                world.dialling.add(pair)
                wire = Wire(network, self, other)
                world.after(delay, _accept, world, wire, 1, pair)
        world.after(world.rng.uniform(*REDIAL_S), self.dial, name)


def _accept(world: "World", wire: Wire, side: int, pair: Any) -> None:
    """One end, then the other, has authenticated its peer."""
    process, other = wire.ends[side], wire.ends[1 - side]
    is_cut = world.network.is_cut(process.host.name, other.host.name)
    are_there = process.is_alive() and other.is_alive() and not process.is_paused
    if is_cut or not are_there:
        world.dialling.discard(pair)
        wire.close(other)
        return
    old = process.wires.get(other.node_id)
    if old is not None:
        old.close(process)
        process.step(core.LinkLost(other.node_id, "broken"))
    if not process.is_alive():
        world.dialling.discard(pair)
        return
    process.wires[other.node_id] = wire
    process.ids[other.host.name] = other.node_id
    process.step(core.LinkUp(other.node_id, other.writer))
    wire.open(process)
    if side == 1:
        delay = world.network.latency(process.host.name, other.host.name)
        world.after(min(delay, DIAL_S), _accept, world, wire, 0, pair)
    else:
        world.dialling.discard(pair)


PERFORM: Dict[type, Callable[..., None]] = {
    core.Acked: Comrade._acked,
    core.Check: Comrade._check,
    core.CloseLink: Comrade._close_link,
    core.Kill: Comrade._kill,
    core.Log: Comrade._log,
    core.Persist: Comrade._persist,
    core.Send: Comrade._send,
    core.Start: Comrade._start,
    core.Stopped: Comrade._stopped,
    core.WantFile: Comrade._want_file,
    core.WantOutput: Comrade._want_output,
}
