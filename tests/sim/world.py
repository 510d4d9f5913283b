"""A cluster in one thread: real cores on a virtual network, clock, disk and sandbox.

Rules. One seed decides everything: every random number comes from `World.rng`, every
iteration has an order. Here is what the machines do; what may not happen is checked by
ledger.py, which never asks a core what is true; what goes wrong is chosen by faults.py.

How it works. `World.heap` holds what happens next, by virtual time. A `Host` is a
machine: its clock's offset, its disk, at most one `Process`. A Process is what
comrade.py is: it steps and ticks a node.Node and performs its effects. A `Wire` is a
TCP connection: frames arrive in order or not at all; a cut direction stalls them, until
it is mended or an end gives up. A process that is paused takes what came in when it
resumes, as a select loop does: first the messages, then the tick.
"""

import json
import random
from heapq import heappop, heappush
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from ledger import Ledger

import effects as core
from node import Node
from record import Needs, State

TICK_S = 0.001  # virtual time is rounded up to this: what is due together runs together
REDIAL_S = (0.2, 2.0)
WATCHER_S = 1.0  # a killed comrade's tasks are gone within this (D13)
PEER_TIMEOUT_S = 5.0  # TCP_USER_TIMEOUT
MEMORY, DISK = 1 << 30, 1 << 40


class Disk:
    """What survives a process: rows that were fsynced, and the faults of the day."""

    def __init__(self) -> None:
        self.rows: Dict[str, bytes] = {}
        self.meta: Dict[str, bytes] = {}
        self.staged: Dict[int, Dict[str, Optional[bytes]]] = {}
        self.error = ""
        self.is_hung = False
        self.delay = (0.002, 0.02)

    def apply(self, batch: core.Persist) -> None:
        """Make one batch durable."""
        rows = dict(batch.rows)
        if batch.abort:
            self.staged.pop(batch.abort, None)
        elif batch.group and not batch.close:
            self.staged.setdefault(batch.group, {}).update(rows)
            rows = {}
        if batch.close:
            rows.update(self.staged.pop(batch.close, {}))
        for key, row in rows.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.meta.update(batch.meta)


class Host:
    """One machine."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.offset = world.rng.choice([0.0, world.rng.uniform(0, 1e6)])
        self.disk = Disk()
        self.files: Set[str] = set()
        self.known: Dict[str, None] = {}  # members met, kept on disk
        self.writers: List[str] = []
        self.is_on = True
        self.process: Optional[Process] = None
        self.cores = 2
        self.tags = ["tag " + name]
        self.refusal = 0.0  # how often the sandbox refuses a run

    def wipe(self) -> None:
        """Lose the disk."""
        self.disk = Disk()
        self.files, self.known, self.writers = set(), {}, []


class Wire:
    """A connection between two processes, as TCP makes it."""

    def __init__(self, world: "World", dialler: "Process", other: "Process") -> None:
        self.world = world
        self.ends = (dialler, other)
        self.queues: Tuple[List[Any], List[Any]] = ([], [])  # towards ends[i]
        self.last = [0.0, 0.0]
        self.is_up = [False, False]
        self.is_closed = [False, False]
        self.is_stalled = [False, False]

    def side(self, process: "Process") -> int:
        """Say which end a process is."""
        return 0 if self.ends[0] is process else 1

    def send(self, sender: "Process", item: Tuple[str, str]) -> None:
        """Put a frame, or the end, under way."""
        to = 1 - self.side(sender)
        world = self.world
        self.last[to] = max(self.last[to], world.t + world.latency())
        self.queues[to].append(item)
        world.at(self.last[to], self.arrive, to)

    def arrive(self, to: int) -> None:
        """Hand over what has arrived, if the direction isn't cut."""
        queue, receiver = self.queues[to], self.ends[to]
        if not queue:
            return
        pair = (self.ends[1 - to].host.name, receiver.host.name)
        if pair in self.world.cuts or not self.is_up[to]:
            self.is_stalled[to] = True  # cut, or not authenticated yet
            return
        if self.is_stalled[to]:
            self.is_stalled[to] = False
            items, queue[:] = list(queue), []
        else:
            items = [queue.pop(0)]
        for item in items:
            if not receiver.is_alive() or self.is_closed[to]:
                return
            receiver.take(self._deliver, to, item)

    def _deliver(self, to: int, item: Tuple[str, str]) -> None:
        receiver, sender = self.ends[to], self.ends[1 - to].host.name
        if self.is_closed[to]:
            return
        if item[0] == "end":
            self.close(receiver, tell=False)
            receiver.lose(sender, item[1])
        else:
            fields = json.loads(item[1])
            receiver.step(core.Frame(sender, item[0], fields))

    def close(self, process: "Process", tell: bool = True) -> None:
        """Close one end; the other reads the end of the stream, in order."""
        side = self.side(process)
        if self.is_closed[side]:
            return
        self.is_closed[side] = True
        peer = self.ends[1 - side].host.name
        if process.wires.get(peer) is self:
            del process.wires[peer]
        if tell and not self.is_closed[1 - side]:
            self.send(process, ("end", "eof"))


class Process:
    """One life of a comrade: what comrade.py does around a node.Node."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        rng = self.world.rng
        self.writer = "%016x" % rng.getrandbits(64)
        starts = len(host.writers) + 1
        me = core.Identity(host.name, self.writer, host.name, "10.0.0.1", starts)
        self.node = Node(me, host.cores, MEMORY, (), lambda regex, text: regex in text)
        self.wires: Dict[str, Wire] = {}
        self.tasks: Dict[str, str] = {}  # run key -> task key, as the sandbox has them
        self.pending: List[core.Persist] = []
        self.is_writing = False
        self.wants: Dict[str, None] = {}
        self.inbox: List[Tuple[Callable[..., None], Any]] = []
        self.is_paused = False
        self.is_to_pause = False  # in the middle of its next turn that sends records
        self.is_ticking = False
        self.wake: Optional[float] = None

    def is_alive(self) -> bool:
        """Say whether this is still the process of its host."""
        return self.host.process is self

    def begin(self) -> None:
        """Start from what the disk has."""
        host, node, now = self.host, self.node, self.now
        node.files.update(host.files)
        rows = [json.loads(row.decode("ascii")) for row in host.disk.rows.values()]
        node.load(rows, host.disk.meta)
        host.disk.staged.clear()
        self.world.ledger.watch(self)
        node.begin(list(host.writers), [k for k in host.known if k != host.name], now)
        host.writers.append(self.writer)
        for peer in self.world.hosts:
            if peer != host.name:
                self.world.after(self.world.rng.uniform(0, 0.5), self.dial, peer)
        self.tick_soon()

    @property
    def now(self) -> float:
        """Give this machine's clock."""
        return self.world.t + self.host.offset

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
        self.world.steps += 1
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
        self.world.steps += 1
        made, deadline = self.node.tick(self.now)
        self.perform(made)
        if self.is_alive() and deadline is not None:
            at = max(deadline - self.host.offset, self.world.t + TICK_S)
            if self.wake is None or not self.world.t < self.wake <= at:
                self.wake = at
                self.world.at(at, self.wake_up, at)

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
            getattr(self, "on_" + type(effect).__name__.lower())(effect)

    def on_send(self, effect: core.Send) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            self.world.frames += 1
            wire.send(self, (effect.kind, json.dumps(effect.fields)))

    def on_closelink(self, effect: core.CloseLink) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            wire.close(self)
            self.redial(effect.peer)

    def lose(self, peer: str, why: str) -> None:
        self.redial(peer)
        self.step(core.LinkLost(peer, why))

    def on_persist(self, effect: core.Persist) -> None:
        self.pending.append(effect)
        if not self.is_writing:
            self.is_writing = True
            self.world.after(self.world.rng.uniform(*self.host.disk.delay), self.fsync)

    def fsync(self) -> None:
        """Group commit: all that waits, in order."""
        disk = self.host.disk
        if not self.is_alive():
            return
        if disk.is_hung:
            self.world.after(0.2, self.fsync)
            return
        batches, self.pending, self.is_writing = self.pending, [], False
        for batch in batches:
            if not disk.error:
                disk.apply(batch)
                self.world.ledger.on_fsync(self.host, batch)
        for batch in batches:
            self.take(self.step, core.Written(batch.seq, disk.error))

    def on_acked(self, effect: core.Acked) -> None:
        self.world.ledger.on_acked(self, effect)

    def on_check(self, effect: core.Check) -> None:
        holds = [c for c in effect.conditions if c.split(":")[1] in self.host.tags]
        facts = core.Facts(frozenset(holds), MEMORY, DISK)
        self.world.after(0.005, self.take, self.step, facts)

    def on_start(self, effect: core.Start) -> None:
        rng, run = self.world.rng, effect.run
        if rng.random() < self.host.refusal:
            refused = core.RunRefused(run, "no room")
            self.world.after(0.01, self.take, self.step, refused)
            return
        seconds, status = effect.record.command.split()[:2]
        self.world.ledger.on_start(self, run, effect.record)
        self.tasks[run] = effect.record.key
        started = core.RunStarted(run, 5.0)
        self.world.after(rng.uniform(0.005, 0.03), self.take, self.step, started)
        self.world.after(0.03 + float(seconds), self.end, run, int(status), "")

    def end(self, run: str, status: int, cause: str) -> None:
        """A task's processes are all gone."""
        if not self.is_alive() or run not in self.tasks:
            return
        del self.tasks[run]
        self.world.ledger.on_end(run, status, cause)
        ended = core.RunEnded(run, status, cause, 5.0, 6.0, 1.0, [0, ""], [0, ""])
        self.take(self.step, ended)

    def on_kill(self, effect: core.Kill) -> None:
        if effect.run in self.tasks:
            self.world.ledger.on_kill(self, effect)
            delay = self.world.rng.uniform(0.01, min(effect.grace_s, 1.0))
            self.world.after(delay, self.end, effect.run, 143, effect.cause)

    def on_stopped(self, effect: core.Stopped) -> None:
        self.world.ledger.on_stopped(self)
        self.world.end_process(self, is_clean=True)

    def on_log(self, effect: core.Log) -> None:
        self.world.log("%s: %s" % (self.host.name, effect.text))

    def on_wantfile(self, effect: core.WantFile) -> None:
        self.wants[effect.digest] = None
        self.world.after(0.1, self.fetch, effect.digest)

    def fetch(self, digest: str) -> None:
        """Get a file from whoever is linked and has it; try again until then."""
        if not self.is_alive():
            return
        for peer, wire in sorted(self.wires.items()):
            there = self.world.hosts[peer]
            if digest in there.files and wire.ends[1 - wire.side(self)].is_alive():
                self.host.files.add(digest)
                self.take(self.step, core.FileHere(digest))
                return
        self.world.after(0.5, self.fetch, digest)

    def on_wantoutput(self, effect: core.WantOutput) -> None:
        pass

    # --- links --------------------------------------------------------------------

    def redial(self, peer: str) -> None:
        self.world.after(self.world.rng.uniform(0.2, 0.5), self.dial, peer)

    def dial(self, peer: str) -> None:
        """Try to connect; go on trying while there is no link."""
        world = self.world
        if not self.is_alive() or peer in self.wires:
            return
        there, pair = world.hosts[peer], frozenset((peer, self.host.name))
        is_open = not world.is_cut(self.host.name, peer) and there.is_on
        if is_open and not self.is_paused and pair not in world.dialling:
            other = there.process
            if other is None:
                refused = core.DialRefused(peer)
                world.after(2 * world.latency(), self.take, self.step, refused)
            elif not other.is_paused:
                wire = Wire(world, self, other)
                world.dialling.add(pair)
                world.after(2 * world.latency(), self._accept, wire, 1, pair)
        world.after(world.rng.uniform(*REDIAL_S), self.dial, peer)

    def _accept(self, wire: Wire, side: int, pair: Any) -> None:
        """One end, then the other, has authenticated its peer."""
        process, other = wire.ends[side], wire.ends[1 - side]
        is_cut = self.world.is_cut(process.host.name, other.host.name)
        are_there = process.is_alive() and other.is_alive() and not process.is_paused
        if is_cut or not are_there:
            self.world.dialling.discard(pair)
            wire.close(other)
            return
        old = process.wires.get(other.host.name)
        if old is not None:
            old.close(process)
            process.step(core.LinkLost(other.host.name, "broken"))
        if not process.is_alive():
            self.world.dialling.discard(pair)
            return
        process.wires[other.host.name] = wire
        wire.is_up[side] = True
        process.host.known[other.host.name] = None
        process.step(core.LinkUp(other.host.name, other.writer))
        if wire.is_stalled[side]:
            self.world.after(0, wire.arrive, side)
        if side == 1:
            self.world.after(self.world.latency(), self._accept, wire, 0, pair)
        else:
            self.world.dialling.discard(pair)


class World:
    """The machines, the network between them, and the clock of it all."""

    def __init__(self, seed: int, names: str) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.t = 0.0
        self.heap: List[Tuple[float, int, Callable[..., None], Any]] = []
        self.cuts: Set[Tuple[str, str]] = set()  # (from, to): frames don't arrive
        self.dialling: Set[Any] = set()
        self.delay = (0.001, 0.01)
        self.steps = self.frames = self._count = self._tickets = 0
        self.story: List[str] = []
        self.ledger = Ledger(self)
        self.hosts: Dict[str, Host] = {}
        for name in names:
            self.hosts[name] = Host(self, name)

    # --- time ---------------------------------------------------------------------

    def at(self, t: float, call: Callable[..., None], *args: Any) -> None:
        """Do something at a time."""
        self._count += 1
        heappush(self.heap, (max(t, self.t), self._count, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Do something later."""
        self.at(self.t + delay, call, *args)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.until(lambda: False, seconds)

    def until(self, is_so: Callable[[], bool], seconds: float, step: float = 0) -> bool:
        """Let time pass until something is so (looked at each `step`), or give up."""
        end, look = self.t + seconds, self.t
        while self.heap and self.heap[0][0] <= end:
            if self.heap[0][0] >= look:
                if is_so():
                    return True
                look = self.heap[0][0] + step
            self.t, _, call, args = heappop(self.heap)
            call(*args)
        self.t = end
        return is_so()

    def latency(self) -> float:
        """Draw how long a frame takes."""
        return self.rng.uniform(*self.delay)

    def log(self, text: str) -> None:
        """Note what happened, for whoever reads a failed seed."""
        self.story.append("%8.3f %s" % (self.t, text))

    # --- what happens to machines -------------------------------------------------

    def start(self, name: str) -> None:
        """Switch a machine on and start its comrade."""
        host = self.hosts[name]
        host.is_on = True
        if host.process is None:
            self.ledger.on_clean_up(host)
            host.process = Process(host)
            self.log("start %s as %s" % (name, host.process.writer))
            host.process.begin()

    def kill(self, name: str) -> None:
        """Kill the comrade (SIGKILL): its peers read EOF, or a reset."""
        process = self.hosts[name].process
        if process is not None:
            self.log("kill " + name)
            self.end_process(process, is_clean=False)

    def power_off(self, name: str) -> None:
        """Switch the machine off: nobody is told."""
        process = self.hosts[name].process
        self.hosts[name].is_on = False
        if process is not None:
            self.log("power off " + name)
            self.end_process(process, is_clean=False)

    def end_process(self, process: Process, is_clean: bool) -> None:
        """End a process: the disk keeps what it had begun to write, in order."""
        host = process.host
        disk = host.disk
        if process.is_writing and not disk.is_hung and not disk.error:
            for batch in process.pending[: self.rng.randint(0, len(process.pending))]:
                disk.apply(batch)
                self.ledger.on_fsync(host, batch)
        self.ledger.on_death(process, self.rng.uniform(0, WATCHER_S * host.is_on))
        host.process = None
        is_reset = not is_clean and self.rng.random() < 0.3
        for wire in list(process.wires.values()):
            if host.is_on:
                if is_reset:  # what was under way is lost with the connection
                    wire.queues[1 - wire.side(process)][:] = []
                wire.close(process)
            else:
                wire.is_closed[wire.side(process)] = True
                wire.queues[1 - wire.side(process)][:] = []
                peer = wire.ends[1 - wire.side(process)]
                self.after(PEER_TIMEOUT_S + 1, self._time_out, wire, peer)

    def _time_out(self, wire: Wire, peer: Process) -> None:
        name = wire.ends[1 - wire.side(peer)].host.name
        if peer.is_alive() and peer.wires.get(name) is wire:
            wire.close(peer)
            peer.take(peer.lose, name, "broken")

    def stop(self, name: str) -> None:
        """Stop a comrade as its user would."""
        process = self.hosts[name].process
        if process is not None:
            self.log("stop " + name)
            process.take(process.step, core.Stop())
            self.after(1.9, self._hurry, process)

    def _hurry(self, process: Process) -> None:
        if process.is_alive():
            self.log("stop of %s took too long" % process.host.name)
            self.end_process(process, is_clean=False)

    def pause(self, name: str) -> None:
        """SIGSTOP: the comrade stands still, its tasks and the kernel don't."""
        process = self.hosts[name].process
        if process is not None:
            self.log("pause " + name)
            process.is_paused = True

    def pause_in_turn(self, name: str) -> None:
        """SIGSTOP between deciding and sending."""
        process = self.hosts[name].process
        if process is not None:
            process.is_to_pause = True

    def resume(self, name: str) -> None:
        """SIGCONT."""
        process = self.hosts[name].process
        if process is not None:
            process.is_to_pause = False
        if process is not None and process.is_paused:
            self.log("resume " + name)
            process.resume()

    def wipe(self, name: str) -> None:
        """Empty the disk of a comrade that doesn't run."""
        if self.hosts[name].process is None:
            self.log("wipe " + name)
            self.hosts[name].wipe()
            self.ledger.on_wipe()

    # --- what happens to the network ----------------------------------------------

    def is_cut(self, a: str, b: str) -> bool:
        """Say whether a direction between two is cut."""
        return (a, b) in self.cuts or (b, a) in self.cuts

    def cut_way(self, a: str, b: str) -> None:
        """Let nothing from a reach b any more."""
        self.log("cut %s -> %s" % (a, b))
        self.cuts.add((a, b))

    def cut(self, a: str, b: str) -> None:
        """Let nothing pass between a and b."""
        self.cut_way(a, b)
        self.cut_way(b, a)

    def partition(self, names: str) -> None:
        """Part some from all others."""
        for a in names:
            for b in self.hosts:
                if b not in names:
                    self.cut(a, b)

    def mend(self, a: str, b: str) -> None:
        """Undo cuts between a and b; what was stalled arrives."""
        self.log("mend %s %s" % (a, b))
        self.cuts -= {(a, b), (b, a)}
        for host in self.hosts.values():
            process = host.process
            if process is not None:
                for wire in list(process.wires.values()):
                    to = 1 - wire.side(process)
                    if wire.is_stalled[to]:
                        wire.arrive(to)

    def break_links(self, a: str, b: str) -> None:
        """Reset the connection between a and b."""
        for x, y in ((a, b), (b, a)):
            process = self.hosts[x].process
            wire = process.wires.get(y) if process is not None else None
            if process is not None and wire is not None:
                self.log("break %s-%s" % (x, y))
                wire.close(process, tell=False)
                process.take(process.lose, y, "eof")

    def heal(self) -> None:
        """Undo all that is wrong for good: network, disks, pauses; not the dead."""
        self.log("heal")
        self.delay = (0.001, 0.01)
        for a, b in sorted(self.cuts):
            self.mend(a, b)
        for name, host in self.hosts.items():
            host.disk.error, host.disk.is_hung, host.refusal = "", False, 0.0
            host.disk.delay = (0.002, 0.02)
            self.resume(name)

    # --- what users do ------------------------------------------------------------

    def add(self, name: str, count: int = 1, command: str = "1 0", **needs: Any) -> int:
        """Add tasks at a node; give the ticket. `command` is seconds and exit."""
        own = needs.pop("own", "")
        process = self.hosts[name].process
        self._tickets += 1
        if process is None or process.is_paused:
            return 0
        given = Needs(**needs)
        for file in given.files:
            self.hosts[name].files.add(file.digest)
        tasks = [core.NewTask(command, given, own) for _ in range(count)]
        self.ledger.on_add(process, self._tickets)
        process.step(core.Add(self._tickets, tasks, 1.0))
        return self._tickets

    def delete(self, name: str, keys: List[str]) -> int:
        """Delete tasks at a node."""
        process = self.hosts[name].process
        self._tickets += 1
        if process is None or process.is_paused:
            return 0
        self.ledger.on_delete(process, self._tickets, keys)
        process.step(core.Delete(self._tickets, keys))
        return self._tickets

    def purge(self, name: str) -> None:
        """Purge what is finished, as its coordinator would after 30 days."""
        process = self.hosts[name].process
        if process is None or process.is_paused:
            return
        finished = (State.DONE, State.FAILED, State.DELETED)
        records = process.node.queue.records
        keys = sorted(k for k, r in records.items() if r.state in finished)
        self.log("purge %d at %s" % (len(keys), name))
        self.ledger.on_purge(keys)
        process.node.queue.purge(keys)
        process.tick_soon()

    # --- what is asked ------------------------------------------------------------

    def living(self) -> List[Process]:
        """Give the processes that run, by name."""
        found = [host.process for _, host in sorted(self.hosts.items())]
        return [process for process in found if process is not None]

    def node(self, name: str) -> Node:
        """Give a node's core."""
        process = self.hosts[name].process
        assert process is not None, name + " doesn't run"
        return process.node

    def is_meshed(self) -> bool:
        """Say whether every two that may are linked."""
        return all(
            q.host.name in p.wires or self.is_cut(p.host.name, q.host.name)
            for p in self.living()
            for q in self.living()
            if p is not q
        )

    def is_equal(self) -> bool:
        """Say whether all queues are equal."""
        return len({process.node.queue.root for process in self.living()}) == 1

    def is_over(self) -> bool:
        """Say whether no task waits or runs anywhere."""
        return all(not process.node.queue.unfinished() for process in self.living())

    def coordinators(self) -> List[str]:
        """Give whom each takes for the coordinator."""
        return [process.node.mesh.coordinator() for process in self.living()]
