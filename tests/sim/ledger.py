"""What may not happen, checked as it happens, by what the world saw itself.

Rules. The ledger knows of starts, ends, deaths and fsyncs from the virtual machines,
not from the cores; it reads a core's records only to compare. A broken invariant raises
Broken at once, with its number of FAULTS.md or DESIGN.md.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set

import effects as core
from hands import DUPLICATE
from record import FINAL, Phase, Record, State, run_order, split_key

if TYPE_CHECKING:
    from world import Host, Process, World

COPY_S = 2.99  # a grant to oneself may go without its second copy after 3 s
STALE_S = 30.0  # an order to stop a duplicate reaches a paused worker this late
FINISHED = (State.DONE, State.FAILED, State.DELETED)
STILL_POSSIBLE = {
    (State.FAILED, State.DONE),
    (State.FAILED, State.DELETED),
    (State.DONE, State.DELETED),
}


class Broken(AssertionError):
    """An invariant doesn't hold."""


class Life:
    """One run as its machine saw it."""

    def __init__(self, run: str, key: str, process: "Process", t: float) -> None:
        self.run = run
        self.key = key
        self.process = process
        self.begun = t
        self.ended: Optional[float] = None
        self.fate = ""  # "0", "1", why it was killed, or "died"

    def is_alive(self, t: float) -> bool:
        """Say whether its processes were there at a time."""
        return self.begun <= t and (self.ended is None or t < self.ended)


class Ledger:
    """Starts, ends and promises."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.is_healthy = False  # D2 holds: nothing but single deaths and joins
        self.lives: Dict[str, Life] = {}
        self.of_task: Dict[str, List[Life]] = {}
        self.promised: Dict[str, Dict[str, None]] = {"add": {}, "delete": {}}
        self.durable: Dict[str, Dict[str, Set[str]]] = {"add": {}, "delete": {}}
        self.asked: Dict[int, Any] = {}  # ticket -> process, keys to delete, time
        self.acks: Dict[int, core.Acked] = {}
        self.granted: Dict[str, str] = {}  # run key -> worker
        self.purged: Set[str] = set()
        self.excused: Set[str] = set()  # no copy of it is left anywhere
        self.worst_ack = 0.0
        self.granted_at: Dict[str, float] = {}
        self.last_death = -COPY_S

    def check(self, holds: bool, rule: str, what: str) -> None:
        """Raise if a rule is broken."""
        if not holds:
            raise Broken("%s at %.3f: %s" % (rule, self.world.t, what))

    # --- tasks --------------------------------------------------------------------

    def on_start(self, process: "Process", run: str, record: Record) -> None:
        t, key = self.world.t, record.key
        self.world.log("%s starts %s of %s" % (process.host.name, run, key))
        here = process.node.queue.records.get(key)
        granted = here.runs.get(run) if here is not None else None
        self.check(granted is not None and granted.worker == process.writer, "S2", run)
        self.check(run not in self.lives, "S11", run + " starts twice")
        assert here is not None
        self.check(here.state not in FINISHED, "S10", "%s is %s" % (key, here.state))
        self._check_copies(process, run, key)
        former = self.of_task.setdefault(key, [])
        if self.is_healthy:
            for life in former:
                over = not life.is_alive(t) and life.fate != "0"
                self.check(over, "D2", "%s runs as %s too" % (run, life.run))
        life = self.lives[run] = Life(run, key, process, t)
        former.append(life)

    def _check_copies(self, process: "Process", run: str, key: str) -> None:
        if run_order(run)[2] != process.writer or not process.node.mesh.links:
            return
        others = [p for p in self.world.living() if p is not process]
        copies = [p for p in others if run in _runs(p, key)]
        waited = self.world.t - self.granted_at[run] >= COPY_S
        lately = self.world.t - self.last_death < COPY_S
        self.check(bool(copies) or waited or lately, "S6", run + " has one copy only")

    def on_end(self, run: str, status: int, cause: str) -> None:
        life = self.lives[run]
        if life.ended is None:
            life.ended, life.fate = self.world.t, cause or str(status)
            self.world.log("%s ends: %s" % (run, life.fate))

    def on_kill(self, process: "Process", effect: core.Kill) -> None:
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

    def on_death(self, process: "Process", delay: float) -> None:
        """A process is killed: so are its tasks, within a second."""
        self.last_death = self.world.t
        others = [p for p in self.world.living() if p is not process]
        for life in self.lives.values():
            if life.process is not process:
                continue
            if life.ended is None:
                life.ended, life.fate = self.world.t + delay, "died"
            elif not any(_is_final(p, life) for p in others):
                life.fate = "died"  # It took the news of the end with it.
        process.tasks.clear()
        self._excuse()

    def on_stopped(self, process: "Process") -> None:
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

    # --- promises -----------------------------------------------------------------

    def on_add(self, process: "Process", ticket: int) -> None:
        self.asked[ticket] = (process, None, self.world.t)

    def on_delete(self, process: "Process", ticket: int, keys: List[str]) -> None:
        self.asked[ticket] = (process, keys, self.world.t)

    def on_fsync(self, host: "Host", batch: core.Persist) -> None:
        rows = host.disk.rows
        for key in rows if batch.close else [key for key, _ in batch.rows]:
            row = rows.get(key)
            if row is not None:
                self.durable["add"].setdefault(key, set()).add(host.name)
                if b'"del":true' in row:
                    self.durable["delete"].setdefault(key, set()).add(host.name)

    def on_acked(self, process: "Process", effect: core.Acked) -> None:
        ticket, here = effect.ticket, process.host.name
        self.check(ticket not in self.acks, "S8", "ticket %d twice" % ticket)
        self.acks[ticket] = effect
        who, deleted, since = self.asked.pop(ticket)
        self.check(who is process, "S8", "ticket %d" % ticket)
        self.worst_ack = max(self.worst_ack, self.world.t - since)
        if effect.error:
            return
        what = "add" if deleted is None else "delete"
        for key in effect.keys:
            on_disk = self.durable[what].get(key, set())
            text = "%s of %s at %s is on %s: %s" % (
                *(what, key, here, sorted(on_disk), effect.note),
            )
            if key in self.purged:
                continue
            if "not on this disk" in effect.note:
                self.check(len(on_disk - {here}) >= 1, "D10", text)
            elif effect.note or not process.node.mesh.links:
                self.check(here in on_disk, "D10", text)
            else:
                self.check(here in on_disk and len(on_disk) >= 2, "D10", text)
            self.promised[what][key] = None

    def on_wipe(self) -> None:
        self._excuse()

    def _excuse(self) -> None:
        """Excuse what no copy is left of: all that held it are dead and wiped."""
        hosts = self.world.hosts.values()
        for key in self.promised["add"]:
            if not any(
                key in host.disk.rows
                or (host.process is not None and key in host.process.node.queue.records)
                for host in hosts
            ):
                self.excused.add(key)
        for key in self.promised["delete"]:
            if not any(
                b'"del":true' in host.disk.rows.get(key, b"")
                or (host.process is not None and _is_deleted(host.process, key))
                for host in hosts
            ):
                self.excused.add(key)

    def on_purge(self, keys: List[str]) -> None:
        self.purged.update(keys)

    # --- every change of a record, anywhere ---------------------------------------

    def watch(self, process: "Process") -> None:
        """Look at every change of a core's records."""
        queue = process.node.queue
        inner = queue.on_change

        def on_change(
            record: Record, old: Optional[State], new: Optional[State]
        ) -> None:
            inner(record, old, new)
            if new is None:
                return
            is_back = old in FINISHED and new is not old
            if is_back and (old, new) not in STILL_POSSIBLE:
                self.check(False, "S4", "%s from %s to %s" % (record.key, old, new))
            is_purged = _is_covered(queue.purged.intervals, record.key)
            self.check(not is_purged, "S9", record.key)
            for run, value in record.runs.items():
                worker = self.granted.setdefault(run, value.worker)
                self.granted_at.setdefault(run, self.world.t)
                self.check(worker == value.worker, "S11", run)

        queue.on_change = on_change

    # --- at the end ---------------------------------------------------------------

    def settle(self) -> None:
        """Check what must hold once all is quiet."""
        self.excused |= self._switched_off()
        for process in self.world.living():
            queue, name = process.node.queue, process.host.name
            self.check(not queue.contradictions, "S8", name + " saw a contradiction")
            self.check(not queue.malformed, "D9", "%s" % (queue.malformed,))
            for what in ("add", "delete"):
                for key in self.promised[what]:
                    if key in self.excused or _is_covered(queue.purged.intervals, key):
                        continue
                    self.check(key in queue.records, "S1", "%s at %s" % (key, name))
                    is_deleted = what == "add" or queue.records[key].deleted
                    self.check(is_deleted, "S1", "%s isn't deleted" % key)
            for record in queue.records.values():
                self._check_runs(record)
        self.check_over()

    def _switched_off(self) -> Set[str]:
        """Give what only the disks of nodes that stayed away have."""
        hosts = self.world.hosts.values()
        away = {k for h in hosts if h.process is None for k in h.disk.rows}
        living = self.world.living()
        return {k for k in away if not any(k in p.node.queue.records for p in living)}

    def _check_runs(self, record: Record) -> None:
        for run, value in record.runs.items():
            life = self.lives.get(run)
            if value.phase is Phase.ENDED:
                self.check(life is not None, "S8", run + " ended, but never began")
            if value.phase is Phase.STARTED:
                self.check(life is not None, "S2", run + " never began")

    def check_over(self) -> None:
        """Check that nothing runs on, and that all were answered (L8)."""
        t = self.world.t
        alive = [life.run for life in self.lives.values() if life.is_alive(t)]
        self.check(not alive, "L7", "%s still run" % alive)
        late = [
            ticket
            for ticket, (process, _, _) in self.asked.items()
            if process.is_alive()
        ]
        self.check(not late, "L8", "tickets %s never got an answer" % late)


def _is_covered(intervals: Dict[str, List[List[int]]], key: str) -> bool:
    n, writer = split_key(key)
    return any(low <= n <= high for low, high in intervals.get(writer, ()))


def _runs(process: "Process", key: str) -> Dict[str, Any]:
    record = process.node.queue.records.get(key)
    return record.runs if record is not None else {}


def _is_deleted(process: "Process", key: str) -> bool:
    record = process.node.queue.records.get(key)
    return record is not None and record.deleted


def _is_final(process: "Process", life: Life) -> bool:
    run = _runs(process, life.key).get(life.run)
    return run is not None and run.phase >= FINAL
