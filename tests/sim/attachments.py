"""What may not happen to ghosts, their links and their ends, as the world saw it.

Rules. Knows links, frames between relay and main, starts, ends and fsyncs from the
virtual machines; asks a core only what it holds, and whom it takes for linked.

    S6   a grant to an own ghost starts only with its second copy
    D10  STORED is said of an end only when it is durable as an add would be; a ghost
         forgets an end only then
    D12  a run of a ghost is called lost after its EOF and 1.2 s, or 15 s after its
         clairvoyant's or its relay's EOF, or 5 + 15 s of silence; never while a comrade
         hears it.
         A ghost is attached 5 s after EOF, 10 s after silence begins, and what it has
         to report is known 5 s later. What its disk has is never lost.

recovery.py has L5: at the end ghosts are attached, nothing is left at them.
"""

import json
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Set, Tuple

from copies import is_covered, runs_at

import effects as core
from deaths import GONE_EOF_S, GONE_SILENT_S
from net import DEAD_S
from record import FINAL, Phase, Run, run_order

if TYPE_CHECKING:
    from ledger import Ledger, Life
    from machines import Host

COPY_S = 2.95  # a grant to an own ghost may go without its second copy after 3 s
ALONE_S = (
    1.85  # an end may be durable here alone after 1.9 s, or when all others refuse
)
CLOCKS = 0.98  # two clocks, one slow and one fast, measure so much of a time
EOF_S, SILENCE_S, REPORT_S = 5.0, 10.0, 5.0  # D12
SLOW_S = 4.0  # more, where a frame takes up to 0.5 s: a dial and four frames
GOSSIP_S = 5.0  # until all of a component know where a ghost is
RESET_S = 25.0  # a reset counts as a death: for so long it excuses a run called lost
LOOK_S = 0.25


class Place(NamedTuple):
    """Where a ghost is attached: ATTACH has reached the core."""

    comrade: Any
    peer: str
    at: float


class Death(NamedTuple):
    """How a process ended."""

    at: float
    has_eof: bool
    is_clean: bool
    was_attached: bool


class Attachments:
    """Links of ghosts, and the ends that travel over them."""

    def __init__(self, ledger: "Ledger") -> None:
        self.ledger = ledger
        self.world = ledger.world
        self.check = ledger.check
        self.ghosts: Dict[str, Any] = {}  # writer -> process
        self._newest: Dict[str, Any] = {}  # machine -> its last process
        self.places: Dict[str, Place] = {}  # writer -> the newest
        self.unreported: Dict[str, Life] = {}  # runs whose end is news
        self.stored: Set[str] = set()  # runs whose end was told to be durable
        self.kept: Dict[str, Dict[str, str]] = {}  # ghost's disk: run -> task
        self._heard: Dict[str, Dict[str, float]] = {}  # ghost -> comrade -> when
        self._deaths: Dict[str, Death] = {}
        self._reset_at: Dict[str, float] = {}  # ghost's machine -> when
        self._wiped_at: Dict[str, float] = {}  # the same; what ended before is gone
        self._relay_died: Dict[str, float] = {}  # comrade -> when
        self._durable: Dict[str, Set[str]] = {}  # run -> comrades' disks
        self._frames: Dict[Any, Tuple[float, List[Tuple[str, str]]]] = {}
        self._keys: Set[str] = set()  # tasks of which a run ended on a ghost
        self._lost: Set[Tuple[str, int]] = set()
        self._lonely: Dict[str, Tuple[float, float]] = {}  # writer -> since, bound
        self._reached: Dict[Tuple[str, str], float] = {}  # ghost, comrade -> since
        self._look_at = 0.0

    # --- what the machines tell ---------------------------------------------------

    def watch(self, process: Any) -> None:
        """Look at a new ghost."""
        self.ghosts[process.writer] = process
        self._newest[process.host.name] = process
        self.ledger.copies.watch(process)

    def on_recovered(self, process: Any) -> None:
        """A ghost has loaded its disk, from which what was STORED may be gone."""
        for run, key in self.kept.get(process.host.name, {}).items():
            is_here = run in self.stored or run in runs_at(process, key)
            self.check(is_here, "S15", "%s isn't on the ghost's disk" % run)

    def on_reset(self, *names: str) -> None:
        """A link between two machines was reset."""
        self._reset_at.update(dict.fromkeys(names, self.world.t))

    def on_relay_killed(self, comrade: Any) -> None:
        """Its links are gone at once: there is no silence to wait for."""
        self._relay_died[comrade.writer] = self.world.t

    def on_death(self, process: Any) -> None:
        """A process has ended: what was under way may have reached its disk."""
        host, is_on = process.host, process.host.is_on
        is_clean = process.node.hands.is_stopping
        was_attached = self.where(process) is not None
        death = Death(self.world.t, is_on, is_clean, was_attached)
        self._deaths[process.writer] = death
        for key in sorted(self._keys & host.disk.rows.keys()):
            self._note(host, key, host.disk.rows[key])
        self._lonely.pop(process.writer, None)

    def on_wiped(self, host: "Host") -> None:
        """A disk is empty now."""
        self.kept.pop(host.name, None)
        self._wiped_at[host.name] = self.world.t

    def on_end(self, life: "Life") -> None:
        """A run of a ghost has ended."""
        self._keys.add(life.key)
        self.unreported[life.run] = life

    def on_fsync(self, host: "Host", batch: core.Persist) -> None:
        """A batch is on a disk."""
        for key in [key for key, _ in batch.rows if key in self._keys]:
            row = host.disk.rows.get(key)
            if row is not None:
                self._note(host, key, row)
            elif host.name in self.world.ghosts:
                kept = self.kept.get(host.name, {})
                for run in [run for run, of in kept.items() if of == key]:
                    del kept[run]

    def _note(self, host: "Host", key: str, row: bytes) -> None:
        runs = json.loads(row.decode("ascii")).get("runs", {})
        for run, value in runs.items():
            if Phase(value[3]) is Phase.ENDED and value[0] in self.ghosts:
                if host.name in self.world.hosts:
                    self._durable.setdefault(run, set()).add(host.name)
                elif self.ghosts[value[0]].host is host:
                    self.kept.setdefault(host.name, {})[run] = key

    # --- frames between relay and main --------------------------------------------

    def on_heard(self, comrade: Any, ghost: Any) -> None:
        """A relay has heard a ghost; before it is attached nobody can know."""
        place = self.where(ghost)
        if place is not None and place.comrade is comrade:
            self._note_heard(comrade, ghost)

    def _note_heard(self, comrade: Any, ghost: Any) -> None:
        self._heard.setdefault(ghost.writer, {})[comrade.writer] = self.world.t

    def on_said(self, comrade: Any, peer: str, kind: str, fields: Any) -> None:
        """A ghost's frame reaches a core."""
        ghost = comrade.desk.links[peer]
        if kind == "ATTACH":
            self.places[ghost.writer] = Place(comrade, peer, self.world.t)
            self._note_heard(comrade, ghost)
        if kind != "RECORDS":
            return
        ends = []
        for wire in fields["r"]:
            for run, value in wire.get("runs", {}).items():
                owner = self.ghosts.get(value[0])
                is_end = Phase(value[3]) is Phase.ENDED
                if is_end and owner is not None and owner.host is ghost.host:
                    ends.append((wire["k"], run))
                    is_here = value[4]["out"][1] in comrade.desk.outputs
                    self.check(is_here, "D12", "the output of %s comes late" % run)
        if fields["store"]:
            name = comrade.writer, peer, fields["n"]  # it may come twice
            self._frames.setdefault(name, (self.world.t, ends))

    def on_told(self, comrade: Any, peer: str, kind: str, fields: Any) -> None:
        """A core sends a frame to a ghost."""
        if kind == "STORED" and fields["ok"]:
            name = comrade.writer, peer, fields["n"]
            said, ends = self._frames.get(name, (0.0, []))
            for key, run in ends:
                if not is_covered(comrade, key):
                    self._check_durable(comrade, run, said)
                self.stored.add(run)

    def _all_refused(self, comrade: Any, said: float) -> bool:
        """Say whether each disk that this core could ask has failed since."""
        linked = comrade.node.mesh.links
        others = [p for p in self.world.living() if p.node_id in linked]
        return all(process.host.disk.failed_at >= said for process in others)

    def _check_durable(self, comrade: Any, run: str, said: float) -> None:
        on_disk = self._durable.get(run, set())
        here, links = comrade.host.name, len(comrade.node.mesh.links)
        others = len(on_disk - {here})
        if here in on_disk:
            waited = self.world.t - said >= ALONE_S * CLOCKS
            may_be = (
                waited or comrade.host.jumps > 0 or self._all_refused(comrade, said)
            )
            is_enough = others >= 1 or not links or may_be
        else:
            is_enough = others >= max(1, min(2, links))
        text = "the end of %s is told to be durable; on %s" % (run, sorted(on_disk))
        self.check(is_enough, "D10", text)

    # --- starts, ends, losses -----------------------------------------------------

    def on_start(self, run: str, key: str) -> None:
        """A ghost starts a run."""
        copies = [p for p in self.world.living() if run in runs_at(p, key)]
        by = [p for p in self.world.living() if p.writer == run_order(run)[2]]
        waited = self.world.t - self.ledger.copies.granted_at[run] >= COPY_S
        lately = self.world.t - self.ledger.last_death < COPY_S
        is_alone = not by or not by[0].node.mesh.links or not self.ledger.is_prompt
        is_kept = len(copies) >= 2 or waited or lately or is_alone
        self.check(is_kept, "S6", run + " has one copy only")

    def on_forgotten(self, process: Any, key: str) -> None:
        """A ghost has dropped a record: its ends must be durable."""
        wiped_at = self._wiped_at.get(process.host.name, 0.0)
        for life in self.ledger.of_task.get(key, ()):
            is_own = life.process.host is process.host and life.begun >= wiped_at
            if is_own and self.ledger.copies.is_said(life.run, Phase.ENDED):
                is_kept = life.run in self.stored or is_covered(process, key)
                self.check(is_kept, "D12", "the end of %s is forgotten" % life.run)

    def on_lost(self, process: Any, run: str, value: Run) -> None:
        """Somebody calls a run lost."""
        ghost = self.ghosts.get(value.worker)
        if ghost is None or (run, value.inc) in self._lost:
            return
        self._lost.add((run, value.inc))
        if process.host.jumps or ghost.host.jumps:
            return  # its clock, not ours, says what 15 s are
        if self._newest[ghost.host.name] is not ghost:
            return  # the next process has killed what it ran
        self._check_lost(process, run, ghost)

    def _check_lost(self, process: Any, run: str, ghost: Any) -> None:
        t, name, death = self.world.t, ghost.host.name, self._deaths.get(ghost.writer)
        if death is not None and death.has_eof:
            is_late = death.is_clean or t - death.at >= GONE_EOF_S * CLOCKS
            self.check(is_late, "D12", "%s is lost at %s's EOF" % (run, name))
            return
        if t - self._reset_at.get(name, -RESET_S) < RESET_S:
            return
        place = self.where(ghost)
        component = process.node.mesh.component
        if place is not None and place.comrade.node_id in component:
            is_news = t - place.at < GOSSIP_S or place.comrade.is_paused
            text = "%s is lost, but %s is heard" % (run, name)
            self.check(is_news or ghost.is_paused, "D12", text)
        ours = {p.writer for p in self.world.living() if p.node_id in component}
        away = {p.writer for p in self.world.living()} - ours
        heard = self._heard.get(ghost.writer, {})
        last = [
            (min(at, self._left(process, writer)), writer)
            for writer, at in heard.items()
            if writer not in away
        ]
        if last:
            at, writer = max(last)
            is_silent = death is not None and death.was_attached  # else it is known
            is_silent = is_silent and self._relay_died.get(writer, 0.0) < at
            silence = DEAD_S if writer in ours and is_silent else 0.0
            is_late = t - at >= (GONE_SILENT_S + silence) * CLOCKS
            text = "%s is lost: %s is silent for %.1f s" % (run, name, t - at)
            self.check(is_late, "D12", text)

    def _left(self, process: Any, writer: str) -> float:
        """Give when a comrade left the component: what it heard then, nobody knows."""
        mesh = process.node.mesh
        known = [m.node_id for m in mesh.members.values() if m.writer == writer]
        ages = [process.now - mesh.left_at.get(i, process.now) for i in known]
        return float(self.world.t - max(ages, default=0.0))

    # --- where ghosts are ---------------------------------------------------------

    def where(self, ghost: Any) -> Optional[Place]:
        """Give where a ghost is attached, as the wires say."""
        place = self.places.get(ghost.writer)
        if place is None or not place.comrade.is_alive():
            return None
        relay = place.comrade.desk.relay
        wire = relay.wires.get(place.peer) if relay is not None else None
        if wire is None or wire not in ghost.wires.values():
            return None
        return place if place.peer in place.comrade.desk.links else None

    def core_ghosts(self) -> List[Any]:
        """Give the ghosts that are attached to the core of the cluster."""
        places = [(ghost, self.where(ghost)) for ghost in self.world.haunting()]
        processes = self.world.core()
        return [g for g, place in places if place and place.comrade in processes]

    def after_event(self) -> None:
        """Look now and then at who is attached, and what isn't reported."""
        if self.world.t < self._look_at or not self.world.ghosts:
            return
        self._look_at = self.world.t + LOOK_S
        for run, life in list(self.unreported.items()):
            if self._is_known(life):
                del self.unreported[run]
        for ghost in self.world.haunting():
            self._look_at_reach(ghost)
            if ghost.is_paused or ghost.node.hands.is_stopping:
                self._lonely.pop(ghost.writer, None)
            elif self.ledger.is_healthy:
                self._look_at_ghost(ghost)

    def _is_known(self, life: "Life") -> bool:
        for process in self.world.living():
            run = runs_at(process, life.key).get(life.run)
            is_final = run is not None and run.phase >= FINAL
            if is_final or is_covered(process, life.key):
                return True
        return False

    def _look_at_reach(self, ghost: Any) -> None:
        for name, host in self.world.hosts.items():
            pair, process = (ghost.writer, name), host.process
            is_open = process is not None and not process.is_paused
            is_open = is_open and not process.node.hands.is_stopping
            if is_open and not self.world.network.is_cut(ghost.host.name, name):
                self._reached.setdefault(pair, self.world.t)
            else:
                self._reached.pop(pair, None)

    def _look_at_ghost(self, ghost: Any) -> None:
        t, writer, place = self.world.t, ghost.writer, self.where(ghost)
        if place is not None:
            self._lonely.pop(writer, None)
            self._check_reports(ghost, place)
            return
        if writer not in self._lonely:
            last = self.places.get(writer)
            has_eof = last is not None and last.comrade.host.is_on
            self._lonely[writer] = (t, EOF_S if has_eof else SILENCE_S)
        since, bound = self._lonely[writer]
        names = self.world.hosts
        reached = [n for n in names if self._reached.get((writer, n), t) <= since]
        is_late = t - since > bound + self._slowness()
        text = "%s isn't attached since %.1f, but %s could be reached"
        text %= (ghost.host.name, since, reached)
        self.check(not (reached and is_late), "D12", text)

    def _slowness(self) -> float:
        return LOOK_S * 2 if self.world.network.delay[1] < 0.05 else SLOW_S

    def _check_reports(self, ghost: Any, place: Place) -> None:
        if place.comrade.is_paused or not self.ledger.is_prompt:
            return
        for run, life in self.unreported.items():
            if life.process.host is ghost.host and life.ended is not None:
                is_kept = run in self.kept.get(ghost.host.name, {})
                if life.process is ghost or is_kept:
                    took = self.world.t - max(life.ended, place.at)
                    is_late = took > REPORT_S + self._slowness()
                    self.check(not is_late, "D12", "%s isn't reported" % run)

    # --- at the end ---------------------------------------------------------------

    def settle(self, processes: List[Any]) -> None:
        """Check that what a ghost's disk had is known, now that it is back."""
        for ghost in self.core_ghosts():
            for run, key in self.kept.get(ghost.host.name, {}).items():
                for process in processes:
                    value = runs_at(process, key).get(run)
                    is_told = value is not None and value.phase is Phase.ENDED
                    is_told = is_told or is_covered(process, key)
                    text = "%s isn't at %s" % (run, process.host.name)
                    self.check(is_told, "D12", text)
