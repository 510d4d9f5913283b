"""What may not happen, checked as it happens, by what the world saw itself.

Rules. The ledger knows of starts, ends, deaths and fsyncs from the virtual machines,
not from the cores; it reads a core's records only to compare. A broken invariant raises
Broken at once, with its number of FAULTS.md or DESIGN.md.

Where each is: here S2 (of starts), S5 (D2), S6, S7, S10, S11 (of starts), D13, L7.
copies.py, at each change of a copy: S2, S3, S4, S8, S9, S11, S12, D2, the order of
counters. promises.py: S1, S15, D10, L8. attachments.py: D12, and S6, S15 and D10 of
ghosts. recovery.py, after the faults: L1 to L7, L9, L10. test_seeds.py: S13, and that a
seed decides everything.
Elsewhere: S14 test_net.py, test_links.py; S16 test_journal.py, which also shows that a
real disk is as disks.py says; S3 as laws test_merge.py; the rest of S12 (sockets,
memory) test_links.py and the benchmarks.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Set

from attachments import Attachments
from copies import FINISHED, Copies, runs_at
from promises import Promises

import effects as core
from hands import DUPLICATE
from record import FINAL, Phase, Record, run_order

if TYPE_CHECKING:
    from comrades import Comrade
    from machines import Host
    from world import World

COPY_S = 2.95  # a grant to oneself may go without its second copy after 3 s
STALE_S = 30.0  # an order to stop a duplicate reaches a paused worker this late


class Broken(AssertionError):
    """An invariant doesn't hold."""


class Life:
    """One run as its machine saw it."""

    def __init__(self, run: str, key: str, process: Any, t: float) -> None:
        self.run = run
        self.key = key
        self.process = process
        self.begun = t
        self.cores = 1
        self.ended: Any = None  # None: it still runs
        self.fate = ""  # "0", "1", why it was killed, or "died"

    def is_alive(self, t: float) -> bool:
        """Say whether its processes were there at a time."""
        return self.begun <= t and (self.ended is None or t < self.ended)


class Ledger:
    """Starts, ends and promises."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.is_healthy = False  # D2 holds: nothing but single deaths and joins
        self.is_prompt = True  # no process was paused, no clock jumped
        self.lives: Dict[str, Life] = {}
        self.ahead: Set[str] = set()  # runs that were told to wait for a core
        self.of_task: Dict[str, List[Life]] = {}
        self.last_death = -COPY_S
        self.copies = Copies(self)
        self.promises = Promises(self)
        self.attachments = Attachments(self)
        self.on_acked = self.promises.on_acked
        self.on_recovered = self.promises.on_recovered
        self.watch = self.copies.watch

    def check(self, holds: bool, rule: str, what: str) -> None:
        """Raise if a rule is broken."""
        if not holds:
            raise Broken("%s at %.3f: %s" % (rule, self.world.t, what))

    # --- tasks --------------------------------------------------------------------

    def on_ahead(self, process: Any, run: str, key: str) -> None:
        """A run may begin from now on, whatever links come up meanwhile."""
        self.ahead.add(run)
        if process.host.name in self.world.hosts:
            self._check_copies(process, run, key)

    def on_start(self, process: Any, run: str, record: Record) -> None:
        """A machine starts a run."""
        t, key = self.world.t, record.key
        self.world.log("%s starts %s of %s" % (process.host.name, run, key))
        here = process.node.queue.records.get(key)
        granted = here.runs.get(run) if here is not None else None
        self.check(granted is not None and granted.worker == process.writer, "S2", run)
        self.check(run not in self.lives, "S11", run + " starts twice")
        assert here is not None
        self.check(here.state not in FINISHED, "S10", "%s is %s" % (key, here.state))
        if process.host.name in self.world.ghosts:
            self.attachments.on_start(run, key)
        elif run not in self.ahead:
            self._check_copies(process, run, key)
        taken = sum(
            life.cores
            for life in self.lives.values()
            if life.process is process and life.ended is None
        )
        cores = record.needs.cores
        self.check(taken + cores <= process.host.cores, "D2", "no core for " + run)
        former = self.of_task.setdefault(key, [])
        if self.is_healthy:
            for life in former:
                over = not life.is_alive(t) and life.fate != "0"
                self.check(over, "D2", "%s runs as %s too" % (run, life.run))
        life = self.lives[run] = Life(run, key, process, t)
        life.cores = cores
        former.append(life)

    def on_fsync(self, host: "Host", batch: core.Persist) -> None:
        """A batch is on a disk."""
        if host.name in self.world.hosts:
            self.promises.on_fsync(host, batch)
        self.attachments.on_fsync(host, batch)

    def _check_copies(self, process: "Comrade", run: str, key: str) -> None:
        if run_order(run)[2] != process.writer or not process.node.mesh.links:
            return
        others = [p for p in self.world.living() if p is not process]
        copies = [p for p in others if run in runs_at(p, key)]
        waited = self.world.t - self.copies.granted_at[run] >= COPY_S
        lately = self.world.t - self.last_death < COPY_S
        jumped = not self.is_prompt  # its clock, not ours, says what 3 s are
        is_kept = bool(copies) or waited or lately or jumped
        self.check(is_kept, "S6", run + " has one copy only")

    def on_end(self, run: str, status: int, cause: str) -> None:
        """A run's processes are gone."""
        life = self.lives[run]
        if life.ended is None:
            life.ended, life.fate = self.world.t, cause or str(status)
            if life.process.host.name in self.world.ghosts:
                self.attachments.on_end(life)
            self.world.log("%s ends: %s" % (run, life.fate))

    def on_kill(self, process: Any, effect: core.Kill) -> None:
        """A machine is to stop a run."""
        life, t = self.lives[effect.run], self.world.t
        self.world.log(
            "%s kills %s: %s" % (process.host.name, effect.run, effect.cause)
        )
        if effect.cause != DUPLICATE or life.ended is not None:
            return
        smaller = [
            other
            for other in self.of_task[life.key]
            if run_order(other.run) < run_order(effect.run)
            and (other.ended is None or t - other.ended < STALE_S)
        ]
        self.check(bool(smaller), "S7", effect.run + " is the smallest that lives")

    def on_death(self, process: Any, delay: float) -> None:
        """A process is killed: so are its tasks, within a second."""
        is_ghost = process.host.name in self.world.ghosts
        if not is_ghost:
            self.last_death = self.world.t
        others = [p for p in self.world.living() if p is not process]
        for life in self.lives.values():
            if life.process is not process:
                continue
            if life.ended is None:
                life.ended, life.fate = self.world.t + delay, "died"
            elif not any(_is_final(p, life) for p in others):
                life.fate = "died"  # It took the news of the end with it.
        process.sandbox.runs.clear()
        process.sandbox.ahead.clear()
        self.attachments.on_death(process)
        if not is_ghost:
            self.promises.on_crash(process.host)

    def on_stopped(self, process: Any) -> None:
        """A process says that it may end."""
        alive = [
            life.run
            for life in self.lives.values()
            if life.process is process and life.ended is None
        ]
        self.check(not alive, "D13", "%s run on after a stop" % alive)

    def on_clean_up(self, host: "Host") -> None:
        """A new process first kills what a former one left (DESIGN 4)."""
        for life in self.lives.values():
            if life.process.host is host and life.ended is not None:
                life.ended = min(life.ended, self.world.t)

    def after_event(self, touched: List[Any]) -> None:
        """Check what must hold between any two events."""
        self.copies.after_event(touched)
        self.attachments.after_event()

    def alive(self, processes: List[Any]) -> List[Life]:
        """Give what runs now on some of the machines."""
        t = self.world.t
        lives = [life for life in self.lives.values() if life.is_alive(t)]
        return [life for life in lives if life.process in processes]

    # --- at the end ---------------------------------------------------------------

    def settle(self) -> None:
        """Check what must hold once all is quiet, in the core of the cluster."""
        processes = self.world.core()
        self.promises.settle(processes)
        self.attachments.settle(processes)
        for process in processes:
            queue, name = process.node.queue, process.host.name
            self.check(not queue.contradictions, "S8", name + " saw a contradiction")
            self.check(not queue.malformed, "D9", "%s" % (queue.malformed,))
            for record in queue.records.values():
                self._check_runs(record)
        here = [*processes, *self.attachments.core_ghosts()]
        alive = [life.run for life in self.alive(here)]
        self.check(not alive, "L7", "%s still run" % alive)

    def _check_runs(self, record: Record) -> None:
        for run, value in record.runs.items():
            life = self.lives.get(run)
            if value.phase is Phase.ENDED:
                self.check(life is not None, "S8", run + " ended, but never began")
            if value.phase is Phase.STARTED:
                self.check(life is not None, "S2", run + " never began")


def _is_final(process: "Comrade", life: Life) -> bool:
    run = runs_at(process, life.key).get(life.run)
    return run is not None and run.phase >= FINAL
