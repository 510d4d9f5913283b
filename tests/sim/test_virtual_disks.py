"""The virtual disk gives back what a real one under journal.py would."""

from random import Random

import pytest
from disks import CHECKPOINT_BYTES, EIO, FULL, Disk

import effects as core


def batch(seq, rows=(), group=0, close=0, abort=0):
    pairs = [
        (key, None if row is None else row.encode()) for key, row in dict(rows).items()
    ]
    return core.Persist(seq, pairs, {}, group, close, abort)


def put(disk, rows, **groups):
    written = [batch(1, rows, **groups)]
    disk.begin(written)
    return disk.commit(written)[0]


def held(disk):
    return {key: row.decode() for key, row in disk.read().rows.items()}


@pytest.mark.parametrize("seed", range(50))
def test_a_crash_keeps_what_was_fsynced_and_the_rest_whole_or_not(seed):
    disk = Disk()
    put(disk, {"a": "1", "b": "1"})
    disk.begin([batch(2, {"a": "2", "b": "2"})])
    disk.crash(Random(seed))
    assert held(disk) in ({"a": "1", "b": "1"}, {"a": "2", "b": "2"})
    assert disk.rows == disk.load().rows == disk.load().rows
    assert not disk.read().damage  # a torn end is none


def test_a_crash_takes_each_of_the_courses_it_may():
    found = set()
    for seed in range(50):
        disk = Disk()
        disk.begin([batch(1, {"a": "1"})])
        whole = len(disk._log)
        disk.crash(Random(seed))
        torn = 0 < len(disk._log) < whole
        found.add("torn" if torn else "whole" if held(disk) else "nothing")
    assert found == {"torn", "whole", "nothing"}


def test_a_group_comes_to_life_whole_or_never():
    disk = Disk()
    put(disk, {"a": "1"}, group=7)
    assert held(disk) == {}
    put(disk, {"b": "1"}, close=7)
    assert held(disk) == {"a": "1", "b": "1"}
    put(disk, {"c": "1"}, group=8)
    put(disk, {}, abort=8)
    put(disk, {"d": "1"}, group=9)
    assert held(disk) == {"a": "1", "b": "1"}
    disk.load()
    put(disk, {}, close=9)  # of a process that is no more
    assert held(disk) == {"a": "1", "b": "1"}


def test_a_group_of_which_a_part_failed_can_not_be_closed():
    disk = Disk()
    disk.fails_once = True
    assert put(disk, {"a": "1"}, group=7) == EIO
    assert put(disk, {"b": "1"}, close=7)
    assert held(disk) == {}


def test_a_full_disk_takes_changes_but_nothing_new():
    disk = Disk()
    put(disk, {"a": "1"})
    disk.error = FULL
    written = [batch(1, {"b": "1"}), batch(2, {"a": "2"})]
    disk.begin(written)
    assert disk.commit(written) == [FULL, ""]
    assert held(disk) == {"a": "2"}


@pytest.mark.parametrize("seed", range(50))
def test_what_a_failed_fsync_wrote_is_forgotten_or_there_whole(seed):
    disk = Disk()
    disk.error = EIO
    assert put(disk, {"a": "1", "b": "1"}) == EIO
    assert held(disk) in ({}, {"a": "1", "b": "1"})
    disk.crash(Random(seed))
    assert held(disk) in ({}, {"a": "1", "b": "1"})


def test_what_a_failed_fsync_wrote_does_not_come_back_after_another_write():
    disk = Disk()
    disk.fails_once = True
    put(disk, {"a": "1"})
    put(disk, {"b": "1"})
    assert held(disk) == {"b": "1"}


@pytest.mark.parametrize("seed", range(100))
def test_a_flipped_bit_never_gives_a_row_that_was_not_written(seed):
    disk, rng = Disk(), Random(seed)
    written = {}
    for i in range(rng.choice([3, 200])):
        row = "x" * 100 + str(i)
        put(disk, {"k%d" % (i % 20): row})
        written.setdefault("k%d" % (i % 20), set()).add(row)
    before = held(disk)
    disk.flip(rng)
    for key, row in held(disk).items():
        assert row in written[key]
    found = disk.load()
    assert disk.read() == found._replace(damage="")
    assert len(before) - len(held(disk)) <= 20


def test_the_log_moves_into_the_table():
    disk = Disk()
    for i in range(100):
        put(disk, {"k%d" % i: "x" * (CHECKPOINT_BYTES // 50)})
    assert disk._table and len(disk._log) < 2 * CHECKPOINT_BYTES
    assert len(held(disk)) == 100
