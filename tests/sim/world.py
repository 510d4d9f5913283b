"""A cluster in one thread: real cores on a virtual network, clock, disk and sandbox.

Rules. One seed decides everything: every random number comes from `World.rng`, every
iteration has an order. Here is what can be done to the cluster, as verbs; machines.py,
comrades.py, ghostprocess.py, relays.py, wires.py and disks.py say how it behaves,
ledger.py what may not happen (it never asks a core what is true), faults.py what goes
wrong in a seed, recovery.py what must follow.

How it works. `World.heap` holds what happens next, by virtual time. After each event
the ledger looks at the processes that it touched.
"""

import random
from heapq import heappop, heappush
from math import ceil
from typing import Any, Callable, Dict, Iterable, List, Sequence, Set, Tuple

from comrades import Comrade
from ghostprocess import Ghost
from ledger import Ledger
from machines import Host, Process
from wires import Network, Wire

import effects as core
from node import Node
from record import Needs, State

TICK_S = 0.002  # virtual time is rounded up to this: what is due together runs together
WATCHER_S = 1.0  # a killed comrade's tasks are gone within this (D13)
PEER_TIMEOUT_S = 5.0  # TCP_USER_TIMEOUT
STOP_S = 1.9  # then a process that is being stopped ends as it is
RESET = 0.3  # how often a killed process's peers read a reset, not an EOF


class World:
    """The machines, the network between them, and the clock of it all."""

    def __init__(
        self, seed: int, names: Iterable[str], walls: int = 0, ghosts: str = ""
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.wall_rng = random.Random(walls)  # wall clocks decide nothing (S13)
        self.t = 0.0
        self.heap: List[Tuple[float, int, Callable[..., None], Any]] = []
        self.dialling: Set[Any] = set()
        self.network = Network(self)
        self.steps = self._count = self._tickets = 0
        self.story: List[str] = []
        self._touched: Dict[Process, None] = {}
        self.broken: Set[str] = set()  # machines that stay broken for ever
        self.ledger = Ledger(self)
        self.hosts: Dict[str, Host] = {name: Host(self, name) for name in names}
        self.ghosts: Dict[str, Host] = {name: Host(self, name) for name in ghosts}
        self.machines = dict(self.hosts, **self.ghosts)

    # --- time ---------------------------------------------------------------------

    def at(self, t: float, call: Callable[..., None], *args: Any) -> None:
        """Do something at a time."""
        self._count += 1
        t = ceil(t / TICK_S) * TICK_S if t > self.t else self.t
        heappush(self.heap, (t, self._count, call, args))

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
            self._look()
        self.t = end
        return is_so()

    def touch(self, process: Process) -> None:
        """Know that an event reached a core."""
        self.steps += 1
        self._touched[process] = None

    def _look(self) -> None:
        if self._touched:
            touched, self._touched = list(self._touched), {}
            self.ledger.after_event(touched)

    def log(self, text: str) -> None:
        """Note what happened, for whoever reads a failed seed."""
        self.story.append("%8.3f %s" % (self.t, text))

    # --- what happens to machines -------------------------------------------------

    def start(self, name: str) -> None:
        """Switch a machine on and start its comrade, or ghost."""
        host = self.machines[name]
        host.is_on = True
        if host.process is None:
            self.ledger.on_clean_up(host)
            host.process = (Ghost if name in self.ghosts else Comrade)(host)
            found, writer = host.process.found, host.process.writer
            self.log("start %s as %s %s" % (name, writer, found.damage))
            host.process.begin()

    def kill(self, name: str) -> None:
        """Kill the comrade or ghost (SIGKILL): its peers read EOF, or a reset."""
        process = self.machines[name].process
        if process is not None:
            self.log("kill " + name)
            self.end_process(process, is_clean=False)

    def power_off(self, name: str) -> None:
        """Switch the machine off: nobody is told."""
        process = self.machines[name].process
        self.machines[name].is_on = False
        if process is not None:
            self.log("power off " + name)
            self.end_process(process, is_clean=False)

    def kill_relay(self, name: str) -> None:
        """Kill the relay of a comrade alone: main starts another for the next ghost."""
        process = self.hosts[name].process
        if process is not None and process.desk.relay is not None:
            self.log("kill the relay of " + name)
            self.ledger.attachments.on_relay_killed(process)
            process.desk.end(is_reset=self.rng.random() < RESET)

    def end_process(self, process: Process, is_clean: bool) -> None:
        """End a process: what wasn't fsynced is on its disk, or not, or torn."""
        host = process.host
        host.process = None
        host.disk.crash(self.rng)
        self.ledger.on_death(process, self.rng.uniform(0, WATCHER_S * host.is_on))
        is_reset = not is_clean and self.rng.random() < RESET
        if isinstance(process, Comrade):
            process.desk.end(is_reset, is_told=host.is_on)
        for wire in list(process.wires.values()):
            to = 1 - wire.side(process)
            if is_reset or not host.is_on:  # what was under way is lost with it
                wire.lose(to)
            if host.is_on:
                wire.close(process)
            else:
                wire.close(process, tell=False)
                self.after(PEER_TIMEOUT_S + 1, self._time_out, wire, wire.ends[to])

    def _time_out(self, wire: Wire, peer: Any) -> None:
        if peer.is_alive() and not wire.is_closed[wire.side(peer)]:
            wire.close(peer, tell=False)
            peer.take(peer.on_end, wire, "broken")

    def stop(self, name: str) -> None:
        """Stop a comrade or ghost as its user would."""
        process = self.machines[name].process
        if process is not None:
            self.log("stop " + name)
            process.take(process.step, core.Stop())
            self.after(STOP_S, self._hurry, process)

    def _hurry(self, process: Process) -> None:
        if process.is_alive():
            self.log("stop of %s took too long" % process.host.name)
            self.end_process(process, is_clean=False)

    def pause(self, name: str) -> None:
        """SIGSTOP: the process stands still; its tasks, relay and the kernel don't."""
        process = self.machines[name].process
        if process is not None and not process.is_paused:
            self.log("pause " + name)
            process.is_paused, process.paused_at = True, self.t

    def pause_in_turn(self, name: str) -> None:
        """SIGSTOP between deciding and sending."""
        process = self.machines[name].process
        if process is not None:
            process.is_to_pause = True

    def resume(self, name: str) -> None:
        """SIGCONT."""
        process = self.machines[name].process
        if process is not None:
            process.is_to_pause = False
        if process is not None and process.is_paused:
            self.log("resume " + name)
            process.resume()

    def suspend(self, name: str) -> None:
        """Let a machine sleep: all on it stands still, nothing reaches it."""
        self.machines[name].is_asleep = True
        self.pause(name)
        self.partition([name])

    def wake(self, name: str) -> None:
        """Wake a machine up; its clock says how long it slept."""
        self.machines[name].is_asleep = False
        for other in self.machines:
            self.mend(name, other)
        self.resume(name)

    def wipe(self, name: str) -> None:
        """Empty the disk of a process that doesn't run: it'll be another node."""
        host = self.machines[name]
        if host.process is None:
            self.log("wipe " + name)
            host.disk, host.files = type(host.disk)(), set()
            if name in self.hosts:
                self.ledger.promises.on_damage(host)
            self.ledger.attachments.on_wiped(host)

    def flip(self, name: str, bits: int = 1) -> None:
        """Flip bits on the disk of a comrade that doesn't run."""
        host = self.hosts[name]
        if host.process is None:
            self.log("flip %d bits of %s" % (bits, name))
            for _ in range(bits):
                host.disk.flip(self.rng)
            self.ledger.promises.on_damage(host)

    # --- what happens to the network ----------------------------------------------

    def cut_way(self, a: str, b: str) -> None:
        """Let nothing from a reach b any more."""
        self.log("cut %s -> %s" % (a, b))
        self.network.cuts[a, b] = None

    def cut(self, a: str, b: str) -> None:
        """Let nothing pass between a and b."""
        self.cut_way(a, b)
        self.cut_way(b, a)

    def shape(self, cuts: Sequence[Tuple[str, str]]) -> None:
        """Make all these cuts (shapes.py)."""
        self.log("cut " + " ".join(a + b for a, b in cuts))
        self.network.cuts.update(dict.fromkeys(cuts))

    def partition(self, names: Iterable[str]) -> None:
        """Part some from all others."""
        names = list(names)
        for a in names:
            for b in self.machines:
                if b not in names:
                    self.cut(a, b)

    def mend(self, a: str, b: str) -> None:
        """Undo cuts between a and b; what was stalled arrives."""
        self.log("mend %s %s" % (a, b))
        self.network.cuts.pop((a, b), None)
        self.network.cuts.pop((b, a), None)
        for end in self._ends():
            for wire in list(end.wires.values()):
                to = 1 - wire.side(end)
                if wire.is_stalled[to]:
                    wire.arrive(to)

    def mend_all(self) -> None:
        """Undo all cuts."""
        for a, b in sorted(self.network.cuts):
            self.mend(a, b)

    def break_links(self, a: str, b: str) -> None:
        """Reset the connection between a and b."""
        process = self.machines[a].process
        for wire in list(process.wires.values()) if process is not None else ():
            if wire.other(process).host.name == b:
                self.log("break %s-%s" % (a, b))
                self.ledger.attachments.on_reset(a, b)
                wire.reset()

    def heal(self) -> None:
        """Undo all that is wrong: network, disks, pauses; not the dead."""
        self.log("heal")
        self.network.heal()
        self.mend_all()
        for name, host in self.machines.items():
            host.disk.error, host.disk.is_hung, host.refusal = "", False, 0.0
            host.disk.delay = (0.002, 0.02)
            host.disk.fails_once = host.is_asleep = False
            self.resume(name)

    # --- what users do ------------------------------------------------------------

    def _ask(self, name: str, what: str) -> Any:
        """Give a process that can be asked, with a ticket, or None."""
        process = self.hosts[name].process
        self._tickets += 1
        if process is None or process.is_paused:
            return None
        self.ledger.promises.on_ask(process, what, self._tickets)
        return process

    def add(self, name: str, count: int = 1, command: str = "1 0", **needs: Any) -> int:
        """Add tasks at a node; give the ticket. `command` is seconds and exit."""
        return self.add_slices(name, [count], command, **needs)

    def add_slices(
        self, name: str, counts: Sequence[int], command: str, **needs: Any
    ) -> int:
        """Add tasks, all or none, a slice each 50 ms; an empty one: abandoned."""
        own = needs.pop("own", "")
        process = self._ask(name, "add")
        ticket = self._tickets
        if process is None:
            return 0
        given = Needs(**needs)
        self.hosts[name].files.update(file.digest for file in given.files)
        for i, count in enumerate(counts):
            tasks = [core.NewTask(command, given, own) for _ in range(count)]
            more = i < len(counts) - 1
            message: Any = core.Add(ticket, tasks, self.hosts[name].wall(), more)
            if not count:
                message = core.Abandon(ticket)
            if i:
                self.after(0.05 * i, process.take, self._slice, process, message)
            else:
                process.step(message)
        return ticket

    def _slice(self, process: Comrade, message: Any) -> None:
        # An add that failed in the middle is over for who gave its slices (verbs.py).
        if message.ticket not in self.ledger.promises.acks:
            process.step(message)

    def delete(self, name: str, keys: List[str]) -> int:
        """Delete tasks at a node."""
        process = self._ask(name, "delete")
        if process is None:
            return 0
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
        process.node.queue.purge(keys)
        process.tick_soon()

    # --- what is asked ------------------------------------------------------------

    def living(self) -> List[Comrade]:
        """Give the processes that run, by name."""
        found = [host.process for _, host in sorted(self.hosts.items())]
        return [process for process in found if process is not None]

    def haunting(self) -> List[Ghost]:
        """Give the ghosts that run, by name."""
        found = [host.process for _, host in sorted(self.ghosts.items())]
        return [process for process in found if process is not None]

    def _ends(self) -> List[Any]:
        relays = [p.desk.relay for p in self.living() if p.desk.relay is not None]
        return [*self.living(), *relays, *self.haunting()]

    def host_at(self, address: str) -> Host:
        """Give the machine of an address."""
        return next(h for h in self.machines.values() if h.address == address)

    def core(self) -> List[Comrade]:
        """Give those of them that aren't broken for ever."""
        return [p for p in self.living() if p.host.name not in self.broken]

    def node(self, name: str) -> Node:
        """Give a node's core."""
        process = self.hosts[name].process
        assert process is not None, name + " doesn't run"
        return process.node

    def is_meshed(self) -> bool:
        """Say whether every two of the core that may are linked."""
        return all(
            q.node_id in p.wires or self.network.is_cut(p.host.name, q.host.name)
            for p in self.core()
            for q in self.core()
            if p is not q
        )

    def is_equal(self) -> bool:
        """Say whether all queues of the core are equal."""
        return len({process.node.queue.root for process in self.core()}) == 1

    def coordinators(self) -> List[str]:
        """Give whom each of the core takes for the coordinator."""
        return [process.node.mesh.coordinator() for process in self.core()]
