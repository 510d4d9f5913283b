"""Outputs that outgrow the disk: cut, said so in them, and everything else goes on."""

from pathlib import Path
from typing import Callable, List

import pytest
from test_sandbox import Box, box  # noqa: F401  # a fixture

import excess
import machine
from excess import Excess, cut

KEPT = 1000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excess, "KEPT_BYTES", KEPT)
    monkeypatch.setattr(excess, "LOOK_S", 0.02)
    monkeypatch.setattr(machine, "free_disk", lambda path: 5000)


def test_an_output_larger_than_what_is_free_is_cut_when_it_is_looked_at(
    tmp_path: Path,
) -> None:
    jobs: List[Callable[[], None]] = []
    one = Excess(str(tmp_path), jobs.append)
    short, long = tmp_path / "short", tmp_path / "long"
    short.write_bytes(b"s" * 5000)
    long.write_bytes(b"l" * 5001)
    paths = [str(short), str(long), str(tmp_path / "gone")]
    assert one.look(1.0, []) is None and not jobs
    assert one.look(1.0, paths) == 1.0 + excess.LOOK_S and not jobs
    assert one.look(2.0, paths) == 2.0 + excess.LOOK_S and len(jobs) == 1
    assert one.look(3.0, paths) and len(jobs) == 1  # the disk hangs
    jobs[0]()
    assert one.look(4.0, paths) and len(jobs) == 2
    assert short.read_bytes() == b"s" * 5000
    kept, note = long.read_bytes()[:KEPT], long.read_bytes()[KEPT:]
    assert kept == b"l" * KEPT
    assert b"at least 4001 bytes were dropped here" in note


@pytest.mark.parametrize("free, pause", [(0, 0.02), (10 << 30, 10.24), (1 << 40, 60)])
def test_the_more_is_free_the_later_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, pause: float
) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: free)
    one = Excess(str(tmp_path), lambda job: job())
    assert one.look(1.0, ["none"]) == 1.02
    assert one.look(2.0, ["none"]) == 2.02
    assert one.look(3.0, ["none"]) == 3.0 + pause


def test_what_is_another_tasks_by_now_or_a_link_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"x" * 3000)
    cut(str(path), 5000)
    assert path.stat().st_size == 3000
    (tmp_path / "link").symlink_to(path)
    cut(str(tmp_path / "link"), 100)
    cut(str(tmp_path / "gone"), 100)
    assert path.stat().st_size == 3000


def test_what_filled_the_disk_at_once_is_cut_at_the_end(
    box: Box,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(excess, "LOOK_S", 1000.0)
    end = box.run("head -c 50000 /dev/zero")
    assert end.out.data is not None and len(end.out.data) < KEPT + 200
    assert b"at least 49000 bytes were dropped" in end.out.data


def test_a_loud_task_goes_on_and_ends_as_it_would(box: Box) -> None:  # noqa: F811
    loud = "for i in {1..60}; do printf '%0999d\\n' $i; done"
    cut = "until (($(stat -Lc %s /proc/$$/fd/5) < 3000)); do sleep 0.02; done"
    end = box.run(f"exec 5>&1; echo first; {loud}; {cut}; echo last; exit 3")
    assert end.exit == 3 and end.cause == ""
    assert end.out.data is not None
    assert end.out.data.startswith(b"first\n") and end.out.data.endswith(b"\nlast\n")
    assert b"bytes were dropped here" in end.out.data
    assert len(end.out.data) < 3100
    assert box.run("echo quiet").out.data == b"quiet\n"
