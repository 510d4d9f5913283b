"""What the machine has, with each of the ways to find that out."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import machine

MIB = 1 << 20


@pytest.fixture
def proc(monkeypatch, tmp_path):
    """Let the machine's /proc/meminfo be what a test writes; None: there is none."""

    def set_to(**fields):
        path = tmp_path / "meminfo"
        rows = ["%s:%16d kB\n" % row for row in fields.items()]
        path.write_text("".join([*rows, "HugePages_Total:       0\n"]))
        monkeypatch.setattr(machine, "MEMINFO", str(path))

    monkeypatch.setattr(machine, "MEMINFO", str(tmp_path / "gone"))
    return set_to


@pytest.fixture
def psutil(monkeypatch):
    """Let there be a psutil that says 40 MiB of 100."""
    found = SimpleNamespace(total=100 * MIB, available=40 * MIB)
    fake = SimpleNamespace(virtual_memory=lambda: found)
    monkeypatch.setitem(sys.modules, "psutil", fake)


@pytest.fixture
def no_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)


def test_this_machine_is_told_with_and_without_psutil(monkeypatch):
    with_it = machine.machine()
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.machine() == with_it
    assert with_it.cores == len(os.sched_getaffinity(0))
    assert 0 < machine.free_memory() <= with_it.memory


def test_linux_is_asked_first_and_psutil_not_loaded(proc, no_psutil):
    proc(MemTotal=9 * 1024, MemFree=1024, MemAvailable=5 * 1024)
    assert machine.machine().memory == 9 * MIB
    assert machine.free_memory() == 5 * MIB


def test_psutil_knows_better_than_an_old_kernel(proc, psutil):
    proc(MemTotal=9 * 1024, MemFree=1024, Buffers=1024, Cached=2048)
    assert machine.machine().memory == 9 * MIB
    assert machine.free_memory() == 40 * MIB


def test_an_old_kernel_without_psutil(proc, no_psutil):
    proc(MemTotal=9 * 1024, MemFree=1024, Buffers=1024, Cached=2048)
    assert machine.free_memory() == 4 * MIB


def test_a_system_without_proc_is_asked_by_psutil(proc, psutil):
    assert machine.machine().memory == 100 * MIB
    assert machine.free_memory() == 40 * MIB


def test_with_neither_all_counts_as_free(proc, no_psutil):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.machine().memory == machine.free_memory() == pages


def test_free_disk_is_that_of_the_directory_and_none_where_it_is_gone(tmp_path: Path):
    assert machine.free_disk(str(tmp_path)) > 0
    assert machine.free_disk(str(tmp_path / "gone")) == 0
