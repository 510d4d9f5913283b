"""What users were promised, and which disks keep it: D10, S1, S15, L8.

Rules. Knows what was fsynced from the virtual disks, what was promised from Acked.

    D10  an acknowledgement without a note: on this disk and on another comrade's
    S1   what was promised is where it must be, unless all that held it are gone
    S15  what a disk had fsynced is there after a start; a start from what a start
         found finds the same
    L8   each is answered, and in time while the cluster is healthy
"""

from typing import TYPE_CHECKING, Any, Dict, List, Set

from copies import is_covered

import effects as core

if TYPE_CHECKING:
    from comrades import Comrade
    from ledger import Ledger
    from machines import Host

DELETED = b'"del":true'
# 2 s without progress, and the progress: own disk and a peer's, each 1 s at worst, and
# behind a write under way; frames of 0.5 s each way, on a clock that is slow.
ANSWER_S = 2.0 + 4 * 1.0 + 2 * 0.5


class Promises:
    """Asks, answers and durable copies."""

    def __init__(self, ledger: "Ledger") -> None:
        self.ledger = ledger
        self.world = ledger.world
        self.check = ledger.check
        self.promised: Dict[str, Dict[str, None]] = {"add": {}, "delete": {}}
        self.durable: Dict[str, Dict[str, Set[str]]] = {"add": {}, "delete": {}}
        # The same, with those that were wiped or damaged after they had confirmed it.
        self.confirmed: Dict[str, Dict[str, Set[str]]] = {"add": {}, "delete": {}}
        self.asked: Dict[int, Any] = {}  # ticket -> process, what, time
        self.acks: Dict[int, core.Acked] = {}
        self.excused: Set[str] = set()  # no copy of it is left anywhere
        self.worst_ack = 0.0

    # --- disks --------------------------------------------------------------------

    def on_fsync(self, host: "Host", batch: core.Persist) -> None:
        """A batch is on a disk."""
        rows = host.disk.rows
        for key in rows if batch.close else [key for key, _ in batch.rows]:
            self._note(host, key)

    def _note(self, host: "Host", key: str) -> None:
        row = host.disk.rows.get(key)
        if row is not None:
            for what in ("add", "delete") if DELETED in row else ("add",):
                for known in (self.durable, self.confirmed):
                    known[what].setdefault(key, set()).add(host.name)

    def on_crash(self, host: "Host") -> None:
        """What was under way may have reached the disk."""
        for key in host.disk.rows:
            self._note(host, key)
        self.excuse()

    def on_damage(self, host: "Host") -> None:
        """A disk was wiped, or a bit of it flipped: it keeps what it still gives."""
        for hosts in self.durable["add"].values():
            hosts.discard(host.name)
        for hosts in self.durable["delete"].values():
            hosts.discard(host.name)
        self.on_crash(host)

    def on_recovered(self, process: "Comrade") -> None:
        """A process has loaded what its disk gave."""
        host, queue = process.host, process.node.queue
        for what in ("add", "delete"):
            for key, hosts in self.durable[what].items():
                if host.name not in hosts or is_covered(process, key):
                    continue
                if key not in queue.records:
                    is_lost = key in self.promised["add"]
                    self.check(not is_lost, "S15", "%s at %s" % (key, host.name))
                elif what == "delete":
                    is_deleted = queue.records[key].deleted
                    self.check(is_deleted, "S15", "%s isn't deleted" % key)
        again = host.disk.read()
        is_same = (again.rows, again.meta) == (process.found.rows, process.found.meta)
        self.check(is_same and not again.damage, "S15", "a second start finds more")
        node = process.new_node()
        process.load(node)
        self.check(node.queue.root == queue.root, "S15", "a second start differs")

    def excuse(self) -> None:
        """Excuse what no copy is left of: all that held it are dead and wiped."""
        hosts = self.world.hosts.values()
        for key in self.promised["add"]:
            if not any(_has(host, key) for host in hosts):
                self.excused.add(key)
        for key in self.promised["delete"]:
            if not any(_has_deleted(host, key) for host in hosts):
                self.excused.add(key)

    # --- asks and answers ---------------------------------------------------------

    def on_ask(self, process: "Comrade", what: str, ticket: int) -> None:
        """Somebody asks for something: 'add' or 'delete'."""
        self.asked[ticket] = (process, what, self.world.t)

    def on_acked(self, process: "Comrade", effect: core.Acked) -> None:
        """And is answered."""
        ticket = effect.ticket
        self.check(ticket not in self.acks, "L8", "ticket %d twice" % ticket)
        self.acks[ticket] = effect
        who, what, since = self.asked.pop(ticket)
        self.check(who is process, "L8", "ticket %d" % ticket)
        took = self.world.t - since
        self.worst_ack = max(self.worst_ack, took)
        if self.ledger.is_healthy and self.ledger.is_prompt:
            self.check(took <= ANSWER_S, "L8", "%.1f s for an answer" % took)
        for key in effect.keys if not effect.error else ():
            if not is_covered(process, key):
                self._check_copies(process, what, key, effect.note)
                self.promised[what][key] = None

    def _check_copies(self, process: "Comrade", what: str, key: str, note: str) -> None:
        here, on_disk = process.host.name, self.confirmed[what].get(key, set())
        text = "%s of %s at %s is on %s: %s" % (what, key, here, sorted(on_disk), note)
        if "not on this disk" in note:
            enough = 2 if len(process.node.mesh.links) > 1 else 1
            self.check(len(on_disk - {here}) >= enough, "D10", text)
        elif note or not process.node.mesh.links:
            self.check(here in on_disk, "D10", text)
        else:
            self.check(here in on_disk and len(on_disk) >= 2, "D10", text)

    # --- at the end ---------------------------------------------------------------

    def settle(self, core_processes: List["Comrade"]) -> None:
        """Check that all that was promised is there, in each core that counts."""
        away = self._elsewhere(core_processes)
        for process in core_processes:
            queue, name = process.node.queue, process.host.name
            for what in ("add", "delete"):
                for key in self.promised[what]:
                    if key in self.excused or key in away or is_covered(process, key):
                        continue
                    self.check(key in queue.records, "S1", "%s at %s" % (key, name))
                    is_deleted = what == "add" or queue.records[key].deleted
                    self.check(is_deleted, "S1", "%s isn't deleted" % key)
        late = [
            ticket
            for ticket, (process, _, _) in self.asked.items()
            if process in core_processes
        ]
        self.check(not late, "L8", "tickets %s never got an answer" % late)

    def _elsewhere(self, core_processes: List["Comrade"]) -> Set[str]:
        """Give what only nodes outside of the core have: off, dead, cut off, paused."""
        inside = {process.host.name for process in core_processes}
        rest = [h for h in self.world.hosts.values() if h.name not in inside]
        away = set()
        for what, has in (("add", _has), ("delete", _has_deleted)):
            for key in self.promised[what]:
                is_here = any(has(p.host, key) for p in core_processes)
                if not is_here and any(has(host, key) for host in rest):
                    away.add(key)
        return away


def _has(host: "Host", key: str) -> bool:
    if key in host.disk.rows:
        return True
    return host.process is not None and key in host.process.node.queue.records


def _has_deleted(host: "Host", key: str) -> bool:
    if DELETED in host.disk.rows.get(key, b""):
        return True
    if host.process is None:
        return False
    record = host.process.node.queue.records.get(key)
    return record is not None and record.deleted
