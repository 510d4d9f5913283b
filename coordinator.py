"""What a coordinator decides: who gets which task, which runs are lost or too many.

Reason for this file beside node.py: any comrade can be the coordinator, one of each
component is; what it alone may do stands here and nowhere else.

Rules. Pure (D6). The only author of GRANTED, LOST and given_up. Acts only while the
mesh says that this node may; remembers nothing that matters if it stops doing so.

How it works. `decide(now)` calls lost what ran on workers that are gone, gives up what
lost too many of them, grants what waits to who has room (and then, where runs are
short, some ahead of their cores), and looks after tasks with more than one living run:
it asks the worker of the smallest whether it still runs and has the others stopped only
when that has answered yes just now.

Invariants.
D2  Nothing is granted unless the mesh lets this node (all of the component follow it,
    no new link's first part is awaited), nor within START_S of a start from disk unless
    all known members are met: a comrade that joins must not hand out what another is
    running.
D3  A run is stopped as a duplicate only if a strictly smaller one answered "running"
    within ANSWER_S. So the smallest living run is never stopped.
"""

from functools import partial
from typing import Callable, Dict, List, Optional, Set, Tuple

from effects import BEHIND
from facts import Facts
from hands import STALE, Hands
from matching import Matcher, pick_ahead
from mesh import Mesh
from record import LIVING, LOSSES_MAX, Phase, Record, Run, run_order
from taskqueue import Queue
from workers import Worker

START_S = 3.0  # after a start from disk known members are waited for this long
ANSWER_S = 2.0  # an answer "running" is believed this long
ASK_S = 1.0  # between two questions about a duplicate, or two orders to stop it
FORGET_S = 60.0  # then what was asked and answered is dropped
GRANTS_A_TURN = 64  # then the loop looks at its sockets again
OVERDUE_LOOKS = 50  # tasks, each second
# Of a task, then it is given up: refusals add runs too, and a record with more than
# record.RUNS_MAX is malformed, also when two partitions' runs come together.
RUNS_MOST = 300

Route = Callable[[str, str, Facts], None]
Pick = Callable[[Worker, float], Optional[Record]]


class Coordinator:
    """The decisions that one comrade of a component takes for all."""

    def __init__(
        self,
        queue: Queue,
        matcher: Matcher,
        mesh: Mesh,
        hands: Hands,
        route: Route,
        present: Callable[[], Set[str]],
    ) -> None:
        self.queue = queue
        self.matcher = matcher
        self.mesh = mesh
        self.hands = hands
        self.route = route
        self.present = present  # writers of the component: comrades and ghosts
        self.wait_for: Set[str] = set()  # known members not met since the start
        self.wait_until = 0.0
        self.living: Dict[str, Tuple[str, str]] = {}  # run -> worker's writer, task
        self.doubles: Set[str] = set()  # tasks with more than one living run
        self.losers: Set[str] = set()  # tasks that a run was lost of
        self.asked_at: Dict[str, float] = {}  # run -> when its worker was asked
        self.alive_at: Dict[str, float] = {}  # run -> when its worker said "running"
        self.next_gone: Optional[float] = None  # when a worker will count as gone
        self._returned: List[Tuple[str, str, str]] = []  # worker, task, why
        self._grants = 0  # counts run keys (D8)
        self.granted = 0  # runs that were seen to begin, whoever granted them

    def note(self, record: Record, gone: bool) -> None:
        """Look at a changed record for what `decide` cares about."""
        living, is_odd = 0, len(record.runs) >= RUNS_MOST
        for run_key, run in record.runs.items():
            is_odd = is_odd or run.phase is Phase.LOST
            if run.phase in LIVING and not gone:
                living += 1
                self.granted += run_key not in self.living
                self.living[run_key] = (run.worker, record.key)
            elif self.living.pop(run_key, None) and run.phase is Phase.RETURNED:
                why = str(run.detail.get("why", ""))
                self._returned.append((run.worker, record.key, why))
        if living > 1:
            self.doubles.add(record.key)
        else:
            self.doubles.discard(record.key)
        if is_odd:
            self.losers.add(record.key)

    def begin(self, known: Set[str], now: float) -> None:
        """Start from disk: wait for the known members."""
        self.wait_for = set(known)
        self.wait_until = now + START_S if known else now

    def may_grant(self, now: float) -> bool:
        """Say whether this node may grant now."""
        self.wait_for -= self.mesh.component
        if self.wait_for and now < self.wait_until:
            return False
        return self.mesh.may_grant(now)

    def decide(self, now: float) -> None:
        """Do all that a coordinator does, as far as this node may."""
        gone = self._gone(now)
        self._heed_refusals(now)
        if not self.may_grant(now):
            return
        for run_key, key in gone:
            self.queue.advance(key, run_key, "lose", {})
        self._give_up()
        self._settle_doubles(now)
        self._match(now)

    def _heed_refusals(self, now: float) -> None:
        # Every comrade remembers them, as any may be the next coordinator.
        returned, self._returned = self._returned, []
        for writer, key, why in returned:
            worker = self.matcher.workers.get(writer)
            if worker is not None and why not in (STALE, BEHIND):
                self.matcher.refuse(worker, key, why, now)

    # --- who coordinates, seen by the others --------------------------------------

    def agrees(self, peer: str) -> bool:
        """Say whether a peer follows whom we follow, if it is in the component."""
        member = self.mesh.members.get(peer)
        if member is None or peer not in self.mesh.component:
            return True
        mine = self.mesh.facts
        facts = member.facts
        return (facts["follows"], facts["heeds"]) == (mine["follows"], mine["heeds"])

    def is_idle(self, peer: str, now: float) -> bool:
        """Say whether a peer coordinates, and for long has granted nothing (blame.py).

        To be asked while its queue is the same as ours.
        """
        is_overdue = (
            self.mesh.facts["follows"] == peer
            and bool(self.matcher.ready)
            and not self.mesh.is_frozen(now)
            and all(self.agrees(member.node_id) for member in self.mesh.others())
            and self._is_overdue()
        )
        return self.mesh.blame.is_idle(peer, is_overdue, self.granted, now)

    def _is_overdue(self) -> bool:
        """Say whether a task waits that whoever coordinates should grant at once.

        Only what all see alike counts: it waits for nothing in the queue, was never
        granted, and fits a worker that runs nothing and is in no doubt (probation.py).
        """
        matcher = self.matcher
        free = [
            worker
            for worker in matcher.workers.values()
            if not worker.runs and not worker.is_full() and not worker.refused
            if not matcher.probation.has_failed(worker.writer)
        ]
        for where in matcher.ready[:OVERDUE_LOOKS] if free else ():
            bucket = matcher.numbered.get(where[-1])
            record = self.queue.records.get(where[-2])
            if bucket is None or record is None or bucket.offered != where:
                continue
            if record.runs or bucket.watches or bucket.is_first:
                continue
            needs, alone = bucket.needs, bucket.alone
            if any(not (w.lacks(needs) or w.busy_with(needs, alone)) for w in free):
                return True
        return False

    # --- lost runs ----------------------------------------------------------------

    def _gone(self, now: float) -> List[Tuple[str, str]]:
        # Every comrade watches, so that a new coordinator needn't begin to count.
        present = self.present()
        found, self.next_gone = [], None
        for run_key, (writer, key) in sorted(self.living.items()):
            at = self.mesh.deaths.gone_at(writer, present, now)
            if at is not None and at <= now:
                found.append((run_key, key))
            elif at is not None and (self.next_gone is None or at < self.next_gone):
                self.next_gone = at
        return found

    def _give_up(self) -> None:
        keys, self.losers = sorted(self.losers), set()
        for key in keys:
            record = self.queue.records.get(key)
            if record is None or record.given_up:
                continue
            if len(record.attempts(Phase.LOST)) >= LOSSES_MAX:
                self.queue.give_up(key, "lost its node %d times" % LOSSES_MAX)
            elif len(record.runs) >= RUNS_MOST:
                self.queue.give_up(key, "handed back too often")

    # --- duplicates ---------------------------------------------------------------

    def _settle_doubles(self, now: float) -> None:
        for key in sorted(self.doubles):
            record = self.queue.records.get(key)
            living = record.living() if record is not None else []
            if record is None or len(living) < 2:
                self.doubles.discard(key)
                continue
            first = living[0]
            if self._is_alive(record, first, now):
                for run_key in living[1:]:
                    if self._is_time_to_ask(run_key, now):
                        self._stop(record, run_key, first)

    def _is_alive(self, record: Record, run_key: str, now: float) -> bool:
        if record.runs[run_key].worker == self.mesh.writer:
            return self.hands.is_running(run_key)
        if now - self.alive_at.get(run_key, now - ANSWER_S) < ANSWER_S:
            return True
        if self._is_time_to_ask(run_key, now):
            self._tell(record.runs[run_key].worker, "ALIVE", {"run": run_key})
        return False

    def _is_time_to_ask(self, run_key: str, now: float) -> bool:
        if now - self.asked_at.get(run_key, now - ASK_S) < ASK_S:
            return False
        self.asked_at[run_key] = now
        return True

    def on_alive(self, run_key: str, is_alive: bool, now: float) -> None:
        """Take a worker's answer."""
        if is_alive:
            self.alive_at[run_key] = now
        for times in (self.alive_at, self.asked_at):
            for old in [key for key, at in times.items() if now - at > FORGET_S]:
                del times[old]

    def _stop(self, record: Record, run_key: str, smaller: str) -> None:
        worker = record.runs[run_key].worker
        if worker == self.mesh.writer:
            self.hands.stop_duplicate(run_key, smaller)
        else:
            self._tell(worker, "STOP", {"run": run_key, "smaller": smaller})

    def _tell(self, writer: str, kind: str, fields: Facts) -> None:
        ids = [m.node_id for m in self.mesh.others() if m.writer == writer]
        self.route(ids[0] if ids else writer, kind, fields)  # a ghost's id: its writer

    # --- granting -----------------------------------------------------------------

    def _match(self, now: float) -> None:
        """Fill free cores first; then give what runs short tasks some ahead."""
        if not self.matcher.ready:
            return
        workers = self.matcher.workers.values()
        free = [worker for worker in workers if not worker.is_full()]
        left = self._match_all(free, self.matcher.pick, GRANTS_A_TURN, now)
        if self.matcher.peek() is not None:
            able = [worker for worker in workers if worker.goes_ahead(now)]
            self._match_all(able, partial(pick_ahead, self.matcher), left, now)

    def _match_all(
        self, workers: List[Worker], pick: Pick, left: int, now: float
    ) -> int:
        while workers and left > 0:
            workers.sort(key=lambda w: (w.used()[0] - w.cores, w.name))
            still = []
            for worker in workers:
                record = pick(worker, now)
                if record is not None:
                    self._grant(record, worker)
                    left -= 1
                    still.append(worker)
            workers = still
        return left

    def _grant(self, record: Record, worker: Worker) -> None:
        self._grants += 1
        term = self.mesh.claim()
        self.hands.term = max(self.hands.term, term)  # now, not at the next news
        number = (record.next_attempt(), term, self.mesh.writer)
        run_key = "%d.%d.%s.%d" % (*number, self._grants)
        detail = {"node": worker.name}
        run = Run(worker.writer, worker.session, 0, Phase.GRANTED, detail)
        self.queue.grant(record.key, run_key, run)


def is_own_grant(run_key: str, writer: str) -> bool:
    """Say whether a run was granted by this process."""
    return run_order(run_key)[2] == writer
