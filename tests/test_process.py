"""What a role's process needs of its system: its log, on good disks and on bad ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import CHECKOUT, cpu_s

import process
from process import LogFile


def test_memory_goes_back_once_when_a_long_list_is_in_and_the_queue_quiet() -> None:
    trims: list[float] = []
    now = 100.0
    spare = process.Spare(lambda: trims.append(now))
    for count in range(0, 20001, 200):  # a list comes in
        due = spare.look(count, True, now)
        assert due == (now + process.QUIET_S if count >= process.MANY else None)
        now += 0.5
    assert spare.look(20000, False, now) == now + 0.5 and not trims
    now += 0.5
    assert spare.look(20000, False, now) is None and trims == [now]
    assert spare.look(20100, False, now + 9) is None and len(trims) == 1
    assert spare.look(9000, True, now + 10) == now + 10 + process.QUIET_S  # deleted
    assert spare.look(9000, False, now + 11) is None and len(trims) == 2


def test_free_memory_goes_back_to_the_system() -> None:
    script = (
        "import process, re\n"
        "def rss(): return int(re.search(r'VmRSS:\\s+(\\d+)',"
        " open('/proc/self/status').read()).group(1))\n"
        "parts = [bytes(4096) for _ in range(10000)]\n"
        "last = bytes(4096)\n"  # the end of the heap stays in use
        "del parts\n"
        "before = rss()\n"
        "process.trim()\n"
        "print(before - rss())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=str(CHECKOUT), stdout=subprocess.PIPE
    )
    assert done.returncode == 0 and int(done.stdout) > 20000


def test_the_log_has_a_dated_line_for_each_text_in_order(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    for i in range(100):
        log.write("line %d" % i)
    log.close(10)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["line %d" % i for i in range(100)]
    assert time.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")


def test_what_would_disturb_a_terminal_is_escaped_lines_stay_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a name\x1b[2J\r\x07\x9b\u202e of\ttwo\nlines \u00e9"
    told = "a name\\x1b[2J\\x0d\\x07\\x9b\\x202e of\ttwo\nlines \u00e9\n"
    process.say(text)
    assert capsys.readouterr().err == "leoronic: " + told
    log = LogFile(str(tmp_path / "log"))
    log.write(text)
    log.close(5)
    assert (tmp_path / "log").read_text("utf-8").endswith(" " + told)


def test_a_long_log_begins_anew_and_the_old_one_is_kept(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"), 5000)
    log.write("x" * 5000)
    log.write("new")
    log.close(10)
    assert (tmp_path / "log").read_text().endswith(" new\n")
    assert (tmp_path / "log.old").stat().st_size > 5000


def test_a_limit_that_was_dropped_once_comes_again() -> None:
    """As Python drops it where it interrupts a destructor."""
    dropped = []

    def work() -> None:
        while True:
            try:
                while True:
                    pass
            except TimeoutError:
                dropped.append(True)
                if len(dropped) > 2:
                    raise

    with pytest.raises(TimeoutError):
        process.within(0.001, work)
    spins = sum(1 for _ in range(3000000))  # nothing comes afterwards
    assert spins and len(dropped) == 3


def test_a_regex_has_a_limit_of_our_time_not_of_the_machines() -> None:
    assert process.search("^a.c$", "abc") and not process.search("^b", "abc")
    assert process.search("(", "abc")  # a peer's, undecided

    def search() -> None:
        with pytest.raises(TimeoutError):
            process.search("(a|a)*c", "a" * 40)

    assert cpu_s(search) < process.SEARCH_S + 0.05
    # What the machine does meanwhile is no fault of the regex.
    assert process.within(process.SEARCH_S, time.sleep, 3 * process.SEARCH_S) is None


def test_a_line_that_a_peer_made_long_is_cut(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "log"))
    log.write("x" * 1000000)
    log.close(5)
    assert (tmp_path / "log").stat().st_size < process.LOG_CHARS_MAX + 30


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


# ---- a log of two processes

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from process import LogFile
log = LogFile(sys.argv[2], int(sys.argv[3]))
for i in range(int(sys.argv[4])):
    log.write("%s %d %s" % (sys.argv[5], i, "x" * 100))
    while log._lines.qsize() > 100:
        pass
log.close(60)
"""


def test_who_comes_too_late_to_begin_the_log_anew_leaves_the_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    main, relay = LogFile(str(path), 100), LogFile(str(path), 100)
    main._append("x" * 90)
    with open(str(path), "a") as late:  # the relay is about to write its line
        main._append("full" * 10)
        assert not path.exists()
        main._append("new")
        late.write("late")
        late.flush()
        relay._begin_anew(late.fileno())
    assert path.read_text() == "new"
    assert (tmp_path / "log.old").read_text() == "x" * 90 + "full" * 10 + "late"


def test_two_processes_lose_no_line_while_the_log_begins_anew(tmp_path: Path) -> None:
    lines, size = 2000, len("2026-01-01 00:00:00 a 1000 " + "x" * 100 + "\n")
    bytes_max = int(2 * lines * size * 0.6)  # reached once
    writers = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", WRITER, str(CHECKOUT), str(tmp_path / "log")),
                *(str(bytes_max), str(lines), name),
            ]
        )
        for name in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    whole = (tmp_path / "log.old").read_text() + (tmp_path / "log").read_text()
    found = [line.split()[2:4] for line in whole.splitlines()]
    assert sorted(found) == sorted(
        [name, str(i)] for name in "ab" for i in range(lines)
    )
    assert (tmp_path / "log.old").stat().st_size < bytes_max + 3 * size


def test_stderr_that_goes_to_the_log_goes_on_to_the_new_one(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from process import LogFile\n"
        "path = sys.argv[2]; log = LogFile(path, 50)\n"
        "fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "os.dup2(fd, 2)\n"
        "for i in range(3): log._append('x' * 30 + chr(10))\n"
        "os.write(2, b'by stderr')\n"
    )
    path = tmp_path / "log"
    argv = [sys.executable, "-c", script, str(CHECKOUT), str(path)]
    assert subprocess.run(argv).returncode == 0
    assert path.read_text() == "x" * 30 + "\nby stderr"


def test_what_stays_is_kept_out_of_the_garbage_collectors_way() -> None:
    script = """
import gc
from process import set_aside
looks = []
gc.callbacks.append(lambda phase, found: looks.append(found["generation"]))
set_aside()
assert gc.get_freeze_count() == 0  # nothing has come
kept = []
for _ in range(300000):
    kept.append([])
    set_aside()
assert gc.get_freeze_count() > 250000
assert 2 not in looks and 1 in looks
kept.clear()  # what is set aside goes like all else
assert gc.get_freeze_count() < 50000
"""
    subprocess.run([sys.executable, "-c", script], cwd=str(CHECKOUT), check=True)


def traced_bug() -> str:
    try:
        raise ZeroDivisionError("a bug of ours")
    except ZeroDivisionError:
        return process.traced()


def test_a_bug_is_traced_also_where_nothing_more_can_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = traced_bug()
    assert told.startswith("Traceback ") and "in traced_bug\n" in told
    assert told.endswith("ZeroDivisionError: a bug of ours\n")
    monkeypatch.setitem(sys.modules, "traceback", None)
    assert traced_bug().startswith("ZeroDivisionError('a bug of ours'")
