"""What a role's process needs of its system: its log, on good disks and on bad ones."""

import os
import time
from pathlib import Path

import process
from process import LogFile


def test_the_log_has_a_dated_line_for_each_text_in_order(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    for i in range(100):
        log.write("line %d" % i)
    log.close(10)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["line %d" % i for i in range(100)]
    assert time.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")


def test_a_long_log_begins_anew_and_the_old_one_is_kept(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    log.write("x" * process.LOG_BYTES_MAX)
    log.write("new")
    log.close(10)
    assert (tmp_path / "log").read_text().endswith(" new\n")
    assert (tmp_path / "log.old").stat().st_size > process.LOG_BYTES_MAX


def test_a_log_that_cant_be_written_stops_nobody(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "no" / "log"))
    log.write("lost")
    log.close(10)


def test_a_disk_that_hangs_holds_up_neither_writing_nor_closing_the_log(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    os.mkfifo(str(path))  # to open it takes until somebody reads
    log = LogFile(str(path))
    began = time.monotonic()
    for i in range(2 * process.LOG_LINES_MAX):
        log.write("line %d" % i)
    log.close(0.1)
    assert time.monotonic() < began + 2
    with open(str(path)) as file:
        assert file.readline().endswith(" line 0\n")


def test_a_log_to_which_nothing_was_written_closes_at_once(tmp_path: Path) -> None:
    LogFile(str(tmp_path / "log")).close(10)
    assert os.listdir(str(tmp_path)) == []
