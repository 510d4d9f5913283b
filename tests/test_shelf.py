"""What is dropped from the store, in which order, and what never is."""

import os
from pathlib import Path
from typing import List, Set

import pytest

import shelf
import store
from record import File, Needs
from taskqueue import Queue

W = "0123456789abcdef"


class Disk:
    """A store of files on a disk of which this much is free."""

    def __init__(self, home: Path, room: int) -> None:
        self.store = store.Store(str(home), lambda: None)
        self.store.open()
        self.files = self.store.files
        self.queue = Queue()
        self.known: Set[str] = set()
        self.room = room
        self.log: List[str] = []
        self.shelf = shelf.Shelf(
            self.files, self.queue, self.known, self.free, self.log.append
        )

    def free(self) -> int:
        """Give what is free: the room less what lies here."""
        taken = [os.stat(self.files.path(d)).st_size for d in self.files.all()]
        return self.room - sum(taken)

    def keep(self, letter: bytes, age: int) -> str:
        """Keep 1,000 bytes, a task that needs them; used so many seconds ago."""
        kept = self.files.keep_bytes(letter * 1000)
        os.utime(self.files.path(kept.digest), (1e9 - age, 1e9 - age))
        self.known.add(kept.digest)
        number = len(self.queue.records) + 1
        needs = Needs(files=(File("f", kept.digest, 1000, 0o644),))
        self.queue.add("%d-%s" % (number, W), "true", needs, "old1", 1.0, "")
        return kept.digest

    def finish(self, *numbers: int) -> None:
        """End tasks."""
        for number in numbers:
            self.queue.delete("%d-%s" % (number, W))


@pytest.fixture()
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shelf, "FLOOR", 1000)
    disk = Disk(tmp_path / "home", 5000)
    yield disk
    disk.store.close()


def test_while_there_is_room_all_files_stay(disk: Disk) -> None:
    one = disk.keep(b"a", age=10)
    disk.finish(1)
    disk.shelf.make_room(3000)
    assert disk.files.has(one) and not disk.log


def test_the_longest_unused_of_finished_tasks_go_first_and_no_more_than_needed(
    disk: Disk,
) -> None:
    new, old = disk.keep(b"a", age=1), disk.keep(b"b", age=100)
    used = disk.keep(b"c", age=200)
    disk.finish(1, 2, 3)
    disk.shelf.use([used])
    disk.shelf.make_room(2000)
    assert not disk.files.has(old) and old not in disk.known
    assert disk.files.has(new) and disk.files.has(used)
    assert len(disk.log) == 1


def test_what_an_unfinished_task_needs_is_never_dropped(disk: Disk) -> None:
    one = disk.keep(b"a", age=100)
    disk.shelf.make_room(100000)
    assert disk.files.has(one)


def test_a_start_drops_what_no_record_names_and_knows_the_rest(disk: Disk) -> None:
    one = disk.keep(b"a", age=1)
    stray = disk.files.keep_bytes(b"z").digest
    disk.known.clear()
    disk.shelf.tidy()
    assert disk.known == {one} and not disk.files.has(stray)
