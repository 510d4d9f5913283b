"""A node as a place of work: what is looked at once more before a start."""

from typing import Any, List, Tuple

import pytest

import machine
import workplace
from effects import RunRefused, RunStarted, Start
from record import Needs, Record
from sandbox import Ended, Output, Started
from workplace import SEEN_S

MIB = 1 << 20


class Box:
    """A sandbox that starts all, and notes it."""

    def __init__(self) -> None:
        self.started: List[str] = []
        self.ahead: List[str] = []
        self.happened: List[Any] = []

    def start(self, job: Any, ahead: bool = False) -> None:
        self.started.append(job.run)
        if ahead:
            self.ahead.append(job.run)

    def events(self) -> List[Any]:
        return self.happened


class Place:
    """A Workplace on a machine whose room a test sets; `looks` counts who asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks = 100.0, 0
        self.memory = self.disk = 100 * MIB
        self.said: List[Any] = []
        self.box = Box()
        monkeypatch.setattr(machine, "free_memory", lambda: self._look(self.memory))
        monkeypatch.setattr(machine, "free_disk", lambda _: self._look(self.disk))
        seams = workplace.Seams(
            *(self.said.append, str, str, str, list, len, self.said.append),
            clock=lambda: self.now,
        )
        box: Any = self.box
        self.place = workplace.Workplace(box, "/", False, seams)

    def _look(self, size: int) -> int:
        self.looks += 1
        return size

    def start(self, memory: int = MIB, storage: int = 0) -> Tuple[int, int]:
        """Start a run; give how many were started and refused so far."""
        needs = Needs(memory=memory, storage=storage)
        record = Record("1-00000000000000aa", "true", needs, 1, "bb")
        run = "1.1.00000000000000aa.%d" % (len(self.box.started) + len(self.said))
        self.place.start(Start(run, record, 1))
        refused = sum(isinstance(said, RunRefused) for said in self.said)
        return len(self.box.started), refused


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_starts_at_one_time_look_at_the_machine_once(place: Place) -> None:
    for _ in range(50):
        place.start()
    assert (len(place.box.started), place.looks) == (50, 2)  # memory, disk
    place.now += 2 * SEEN_S
    place.start()
    assert place.looks == 4


def test_what_was_started_since_the_last_look_is_not_free(place: Place) -> None:
    assert place.start(60 * MIB) == (1, 0)
    place.memory = 40 * MIB  # as the machine has it now
    assert place.start(60 * MIB) == (1, 1)
    assert place.said[0].why == "not enough free memory"


def test_nothing_is_refused_for_what_was_seen_a_moment_ago(place: Place) -> None:
    assert place.start(60 * MIB, 60 * MIB) == (1, 0)
    assert place.start(60 * MIB, 60 * MIB) == (2, 0)  # the first is over, all is free
    place.disk = 50 * MIB
    assert place.start(MIB, 60 * MIB) == (2, 1)
    assert place.said[0].why == "not enough free disk space"


def test_a_start_ahead_is_one_for_the_sandbox_after_the_same_checks(
    place: Place,
) -> None:
    for run, memory in (("1.1.aa.1", MIB), ("1.1.aa.2", 200 * MIB)):
        record = Record("1-00000000000000aa", "true", Needs(memory=memory), 1, "bb")
        place.place.start(Start(run, record, 1, ahead=True))
    assert place.box.ahead == ["1.1.aa.1"]
    assert place.said == [RunRefused("1.1.aa.2", "not enough free memory")]
    place.start()
    assert place.box.ahead == ["1.1.aa.1"]


def test_a_start_is_told_by_an_end_that_nothing_delays(place: Place) -> None:
    small, large = Output(0, b"", ""), Output(9 << 20, None, "/a/file")
    times = (1.0, 2.0, 1.0)
    short = Ended("1.1.aa.1", 0, "", *times, small, small)
    moved = Ended("1.1.aa.2", 0, "", *times, small, large)
    starts = [Started("1.1.aa.%d" % n, 1.0) for n in (1, 2, 3)]
    place.box.happened = [*starts, short, moved]
    place.place.poll()
    told = [RunStarted("1.1.aa.2", 1.0), RunStarted("1.1.aa.3", 1.0)]
    assert place.said == [*told, short, moved]
