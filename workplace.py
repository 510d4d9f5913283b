"""A node's machine as a place of work: what it has for tasks, and starting them.

Reason for this file beside comrade.py: comrade and ghost are both workers, and must
offer, check and start in the same way; neither may import the other.

Rules. Decides nothing about tasks. What the core asked with Check it answers with
Facts; a Start that can't be is answered with RunRefused, never with silence.

Invariants. What a grant was based on is checked once more just before the start: its
`worker:` conditions, memory and disk. That there is room may be known from SEEN_S ago,
less what was started since; that there is none is always seen anew.
"""

from typing import Callable, Dict, Iterable, List, NamedTuple, Sequence, Union

import conditions
import machine
import sandbox
from effects import BEHIND, Facts, RunRefused, RunStarted, Start
from record import Needs

SEEN_S = 0.05  # to look takes a fifth of what a short task costs its node

Said = Union[Facts, RunRefused, RunStarted]


class Seams(NamedTuple):
    """What the role does for this file."""

    step: Callable[[Said], None]
    name: Callable[[], str]  # as conditions mean it
    address: Callable[[], str]
    shown: Callable[[], str]  # as users see it
    tags: Callable[[], Iterable[str]]
    use: Callable[[Sequence[str]], None]  # these files are used now
    on_ended: Callable[[sandbox.Ended], None]
    clock: Callable[[], float]


class Workplace:
    """One node's sandbox, and what is free beside it."""

    def __init__(
        self, box: sandbox.Sandbox, directory: str, has_memory_set: bool, seams: Seams
    ) -> None:
        self.sandbox = box
        self._directory = directory
        self._has_memory_set = has_memory_set  # by the user: then that is all
        self._seams = seams
        self._seen_at = float("-inf")
        self._memory = self._disk = 0  # free then, less what was started since

    def check(self, asked: Sequence[str]) -> None:
        """Say which conditions hold here and what is free."""
        found = frozenset(text for text in asked if self._holds(text))
        free = None if self._has_memory_set else machine.free_memory()
        disk = machine.free_disk(self._directory)
        self._seams.step(Facts(found, free, disk))

    def _holds(self, text: str) -> bool:
        facts = conditions.WorkerFacts(
            self._seams.name(),
            self._seams.address(),
            frozenset(self._seams.tags()),
            self.sandbox.has_file,
            self.sandbox.has_command,
            self.sandbox.may_place,
        )
        return conditions.holds(conditions.unwire(text), facts)

    def start(self, effect: Start) -> None:
        """Start a run."""
        why = self._why_not(effect)
        if why:
            self._seams.step(RunRefused(effect.run, why))
            return
        record = effect.record
        needs = record.needs
        self._seams.use([file.digest for file in needs.files])
        env: Dict[str, str] = {
            "LEORONIC_TASK_ID": record.shown,
            "LEORONIC_ATTEMPT": str(effect.attempt),
            "LEORONIC_NODE": self._seams.shown(),
            "LEORONIC_CORES": str(needs.cores),
            "LEORONIC_MEMORY": str(needs.memory),
            "LEORONIC_STORAGE": str(needs.storage),
            "OMP_NUM_THREADS": str(needs.cores),
        }
        job = sandbox.Job(
            *(effect.run, record.command, env, needs.files, needs.keep_names),
            timeout=needs.timeout or None,
        )
        self.sandbox.start(job, effect.ahead)

    def _why_not(self, effect: Start) -> str:
        """Check once more, just before the start, what the grant was based on."""
        needs = effect.record.needs
        for text in needs.conditions:
            if conditions.is_worker(conditions.unwire(text)) and not self._holds(text):
                return text + " no longer holds"
        return self._lacks(needs) and self._lacks(needs, anew=True)

    def _lacks(self, needs: Needs, anew: bool = False) -> str:
        """Say what there isn't enough of; if there is, it is taken."""
        now = self._seams.clock()
        if anew or now - self._seen_at >= SEEN_S:
            self._seen_at = now
            self._disk = machine.free_disk(self._directory)
            if not self._has_memory_set:
                self._memory = machine.free_memory()
        if self._disk < needs.disk:
            return "not enough free disk space"
        if not self._has_memory_set and self._memory < needs.memory:
            return "not enough free memory"
        self._disk -= needs.disk
        self._memory -= needs.memory
        return ""

    def poll(self) -> None:
        """Tell what became of runs."""
        events: List[sandbox.Event] = self.sandbox.events()
        # The ends of short runs, if nothing delays them, tell of the starts, too.
        ends = [event for event in events if isinstance(event, sandbox.Ended)]
        short = {e.run for e in ends if None not in (e.out.data, e.err.data)}
        for event in events:
            if isinstance(event, sandbox.Started):
                if event.run not in short:
                    self._seams.step(RunStarted(event.run, event.at))
            elif isinstance(event, sandbox.Refused):
                why = BEHIND if event.why == sandbox.LATE else event.why
                self._seams.step(RunRefused(event.run, why))
            else:
                self._seams.on_ended(event)
