"""The journal against crashes, power cuts, full and failing disks, and flipped bits.

Crashes are child processes that kill themselves at a named point. Disk faults are a
small C library (preloaded, skipped without a compiler) and a small tmpfs (root only).
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import database
from journal import BALLAST_BYTES, Batch, Journal

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def opened(home: Path, ballast: int = 65536) -> Tuple[Journal, Dict[str, bytes]]:
    home.mkdir(mode=0o700, exist_ok=True)
    it = Journal(str(home), ballast, 1 << 20)
    it.open()
    return it, dict(it.rows())


def rows_in(home: Path) -> Dict[str, bytes]:
    """Read what is there, twice: a second look must see the same and find no fault."""
    it, rows = opened(home)
    it.close()
    again, same = opened(home)
    again.close()
    assert (same, again.notices) == (rows, [])
    return rows


def write(it: Journal, *batches: Batch) -> List[str]:
    return [written.error for written in it.write(batches)]


def value_of(n: int) -> bytes:
    return b"%06d" % n * 50


def filled(home: Path, count: int = 2000) -> Dict[str, bytes]:
    it, _ = opened(home)
    rows = {f"k{n:05}": value_of(n) for n in range(count)}
    assert write(it, Batch(1, list(rows.items()), {"me": b"old1"})) == [""]
    assert write(it, Batch(2, outputs=[("d", b"hello, world")])) == [""]
    it.close()
    return rows


def set_aside(home: Path) -> List[Path]:
    return sorted(home.glob("damaged-*"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


# ---- damage


@pytest.mark.parametrize("kind", ["garbage", "empty", "short", "missing", "directory"])
def test_an_unreadable_database_is_set_aside_and_said(home, kind):
    filled(home)
    path = home / "queue" / "db"
    if kind == "garbage":
        path.write_bytes(os.urandom(path.stat().st_size))
    elif kind == "empty":
        os.truncate(str(path), 0)
    elif kind == "short":
        os.truncate(str(path), 5000)
    elif kind == "missing":
        path.unlink()
    else:
        path.unlink()
        shutil.rmtree(str(home / "queue"))
        (home / "queue").mkdir()
    before = path.read_bytes() if path.exists() else None
    it, rows = opened(home)
    assert rows == {}
    assert "the queue's database was damaged" in it.notices[0]
    (aside,) = set_aside(home)
    assert aside.name in it.notices[0]
    if before is not None:
        assert (aside / "db").read_bytes() == before
    assert write(it, Batch(1, [("a", b"1")])) == [""]
    it.close()
    assert rows_in(home) == {"a": b"1"}


def test_a_database_that_has_vanished_is_said(home):
    filled(home)
    shutil.rmtree(str(home / "queue"))
    it, rows = opened(home)
    assert rows == {}
    assert "has vanished" in it.notices[0]
    it.close()
    assert rows_in(home) == {}


def test_a_new_home_has_nothing_to_say(home):
    it, rows = opened(home)
    assert (rows, it.notices) == ({}, [])
    it.close()


def test_an_empty_database_beside_a_log_is_not_an_empty_queue(home):
    crashed_with_log(home)
    os.truncate(str(home / "queue" / "db"), 0)
    log = (home / "queue" / "db-wal").read_bytes()
    it, rows = opened(home)
    it.close()
    assert "was damaged (it is empty)" in it.notices[0]
    (aside,) = set_aside(home)
    assert (aside / "db-wal").read_bytes() == log
    assert rows_in(home) == rows


def crashed_with_log(home: Path, count: int = 50) -> Dict[str, bytes]:
    """Make a home whose last `count` rows, a batch each, are in the log alone."""
    before = filled(home, 200)
    live = home.parent / "live"
    shutil.copytree(str(home), str(live))
    it, _ = opened(live)
    for n in range(count):
        assert write(it, Batch(n, [(f"log{n:05}", value_of(n))])) == [""]
        before[f"log{n:05}"] = value_of(n)
    shutil.rmtree(str(home))
    shutil.copytree(str(live), str(home))
    it.close()
    assert (home / "queue" / "db-wal").stat().st_size > 0
    return before


def flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_a_flipped_bit_in_a_row_costs_this_row_alone(home):
    rows = filled(home)
    path = home / "queue" / "db"
    flip(path, path.read_bytes().index(value_of(777)) + 100, 3)
    before = path.read_bytes()
    it, found = opened(home)
    assert found == {key: rows[key] for key in rows if key != "k00777"}
    assert "1999 rows saved, 1 wrong" in it.notices[0]
    assert it.meta == {"me": b"old1"}
    assert it.output("d") == b"hello, world"
    it.close()
    (aside,) = set_aside(home)
    assert (aside / "db").read_bytes() == before
    assert rows_in(home) == found


def test_no_flipped_bit_anywhere_gives_a_wrong_or_silently_missing_row(home, tmp_path):
    rows = filled(home, 400)
    size = (home / "queue" / "db").stat().st_size
    dice = random.Random(5)
    saved = 0
    spots = [(n, dice.randrange(8)) for n in range(100)]  # the header, all of it
    spots += [(dice.randrange(size), dice.randrange(8)) for _ in range(100)]
    for n, (offset, bit) in enumerate(spots):
        copy = tmp_path / f"copy{n}"
        shutil.copytree(str(home), str(copy))
        flip(copy / "queue" / "db", offset, bit)
        it, found = opened(copy)
        for key, value in found.items():
            assert rows[key] == value, (offset, bit)
        if found != rows:
            assert it.notices, (offset, bit)
            assert set_aside(copy), (offset, bit)
        saved += len(found)
        it.close()
        shutil.rmtree(str(copy))
    assert saved > 0.995 * len(spots) * len(rows)


def test_a_schema_that_sqlite_names_in_no_text_costs_no_row(home):
    rows = filled(home)
    path = home / "queue" / "db"
    data = path.read_bytes()
    broken = data.replace(b"tablerows", b"table\xffows").replace(
        b"CREATE T", b"CREATE X"
    )
    assert broken != data
    path.write_bytes(broken)
    journal, found = opened(home)
    journal.close()
    assert found == rows
    assert "its schema is garbled" in journal.notices[0] and len(set_aside(home)) == 1


def test_a_broken_header_costs_no_row(home):
    rows = filled(home)
    path = home / "queue" / "db"
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    it, found = opened(home)
    assert found == rows
    assert "file is not a database" in it.notices[0]
    it.close()


def leaves_of(data: bytes) -> List[int]:
    """Return the pages that hold rows and no pointers, those of other tables apart."""
    pages = range(len(data) // 8192)
    pages = [n for n in pages if data[n * 8192] == 10]  # a leaf of an index tree
    return [n for n in pages if b"k0" in data[n * 8192 : (n + 1) * 8192]]


@pytest.mark.parametrize("page", ["first", "middle", "last", "three"])
def test_a_lost_page_costs_what_it_held(home, page):
    rows = filled(home)
    path = home / "queue" / "db"
    data = bytearray(path.read_bytes())
    leaves = leaves_of(data)
    lost = {
        "first": leaves[:1],
        "middle": leaves[len(leaves) // 2 :][:1],
        "last": leaves[-1:],
        "three": [leaves[20], leaves[40], leaves[60]],
    }[page]
    for n in lost:
        data[n * 8192 : (n + 1) * 8192] = os.urandom(8192)
    path.write_bytes(bytes(data))
    it, found = opened(home)
    it.close()
    assert "could not be read" in it.notices[0]
    assert len(rows) - 30 * len(lost) < len(found) < len(rows)
    assert rows_in(home) == found


def test_a_damaged_output_is_not_handed_out(home):
    filled(home)
    path = home / "queue" / "db"
    flip(path, path.read_bytes().index(b"hello, world"), 0)
    it, _ = opened(home)
    assert it.output("d") is None
    it.close()


def test_damage_in_the_log_is_noticed(home, tmp_path):
    rows = crashed_with_log(home)
    dice = random.Random(3)
    size = (home / "queue" / "db-wal").stat().st_size
    spots = [*range(0, 32, 5), *(dice.randrange(size) for _ in range(40))]
    for n, offset in enumerate(spots):
        copy = tmp_path / f"copy{n}"
        shutil.copytree(str(home), str(copy))
        flip(copy / "queue" / "db-wal", offset, 2)
        it, found = opened(copy)
        it.close()
        assert found.items() <= rows.items(), offset
        # The very last commit looks like one that a crash cut short.
        if len(found) < len(rows) - 1:
            assert "its log is damaged" in it.notices[0], offset
            assert set_aside(copy)
    assert rows_in(home) == rows


def test_a_file_with_bad_sectors_is_salvaged_around_them(home, monkeypatch):
    rows = filled(home)
    path = home / "queue" / "db"
    flip(path, path.read_bytes().index(value_of(5)), 0)
    bad = leaves_of(path.read_bytes())[30] * 8192
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        if offset == bad:
            raise OSError(5, "Input/output error")
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    it, found = opened(home)
    assert len(rows) - 60 < len(found) < len(rows)
    it.close()


# ---- crashes

CHILD = r"""
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import points
from journal import Batch, Journal
home, place, times = sys.argv[2], sys.argv[3], int(sys.argv[4])

def point(name):
    global times
    if name == place:
        times -= 1
        if times == 0:
            os.kill(os.getpid(), signal.SIGKILL)

points.POINT = point
it = Journal(home, 65536, 1 << 20)
it.open()
for _ in it.rows():
    pass
def put(*batches):
    for written in it.write(batches):
        if not written.error:
            os.write(1, b"%d\n" % written.seq)
for n in range(10):
    put(Batch(n, [("k%d" % n, b"v")]))
    put(Batch(100 + n, [("g%d" % n, b"v")], group=1))
put(Batch(200, close=1), Batch(201, [("k10", b"v")]))
it.close()
os.write(1, b"end\n")
"""


def crash(home: Path, place: str, times: int) -> List[str]:
    """Run the child until it dies at that point; return what it had been promised."""
    home.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-c", CHILD, TOP, str(home), place, str(times)]
    result = subprocess.run(command, stdout=subprocess.PIPE)
    assert result.returncode in (0, -signal.SIGKILL)
    return result.stdout.decode().split()


@pytest.mark.parametrize("place", ["placed", "before commit", "after commit"])
@pytest.mark.parametrize("times", [1, 2, 9, 20, 21])
def test_a_crash_at_any_point_keeps_what_was_promised_and_no_half_group(
    home, place, times
):
    promised = crash(home, place, times)
    rows = rows_in(home)
    for n in range(11):
        if str(n) in promised or (n == 10 and "201" in promised):
            assert f"k{n}" in rows
    group = [f"g{n}" in rows for n in range(10)]
    assert all(group) or not any(group)
    if "200" in promised:
        assert all(group)
    if place == "before commit":
        singles = sum(key.startswith("k") for key in rows)
        assert singles == sum(len(seq) == 1 for seq in promised) + ("201" in promised)
    if "end" in promised:
        assert len(rows) == 21


@pytest.mark.parametrize("place", ["set aside", "salvaged", "placed", "kept"])
def test_a_crash_while_salvaging_loses_nothing_that_could_be_saved(home, place):
    rows = filled(home)
    path = home / "queue" / "db"
    flip(path, path.read_bytes().index(value_of(777)), 3)
    before = path.read_bytes()
    for _ in range(3):
        if place in crash(home, place, 1):
            break
    it, found = opened(home)
    it.close()
    assert found.items() >= {k: rows[k] for k in rows if k != "k00777"}.items()
    asides = set_aside(home)
    assert [(aside / "db").read_bytes() for aside in asides] == [before]
    assert rows_in(home) == found


def test_a_log_cut_anywhere_behind_what_was_promised_loses_nothing(home, tmp_path):
    it, _ = opened(home)
    promised: List[Tuple[int, int]] = []  # rows, log size
    log = home / "queue" / "db-wal"
    for n in range(20):
        assert write(it, Batch(n, [(f"k{n}", value_of(n) * (n + 1))])) == [""]
        promised.append((n + 1, log.stat().st_size))
    dice = random.Random(11)
    for n in range(60):
        copy = tmp_path / f"copy{n}"
        shutil.copytree(str(home), str(copy))
        cut = dice.randrange(promised[0][1], promised[-1][1] + 1)
        os.truncate(str(copy / "queue" / "db-wal"), cut)
        least = max(count for count, size in promised if size <= cut)
        rows = rows_in(copy)
        assert sorted(rows) == sorted(f"k{n}" for n in range(len(rows)))
        assert len(rows) >= least
        shutil.rmtree(str(copy))
    it.close()


def test_a_log_with_a_torn_end_is_no_damage(home):
    rows = crashed_with_log(home)
    with open(str(home / "queue" / "db-wal"), "ab") as log:
        log.write(os.urandom(5000))
    assert rows_in(home) == rows
    assert set_aside(home) == []


def test_the_log_stays_small(home):
    it, _ = opened(home)
    for n in range(30):
        batch = Batch(n, [(f"k{n}-{i}", os.urandom(1000)) for i in range(1000)])
        assert write(it, batch) == [""]
        size = (home / "queue" / "db-wal").stat().st_size
        assert size <= database.LOG_BYTES_MAX * 1.1
    it.close()
    assert not (home / "queue" / "db-wal").exists()


# ---- a full disk

NEEDS_TMPFS = "mounting a tmpfs needs root and permission"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)]
    try:
        done = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip(NEEDS_TMPFS)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    hog = disk / "hog"
    with open(str(hog), "ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return hog


def add_until_refused(it: Journal, start: int) -> Tuple[List[str], str]:
    """Add rows until that fails; return the keys that were accepted, and the error."""
    keys: List[str] = []
    for n in range(start, start + 9000):
        (error,) = write(it, Batch(n, [(f"k{n}", os.urandom(4000))]))
        if error:
            return keys, error
        keys.append(f"k{n}")
    raise AssertionError("the disk never got full")


def test_a_full_disk_refuses_adds_in_words_and_takes_them_again_later(small_disk):
    home = small_disk / "home"
    it, _ = opened(home, BALLAST_BYTES)
    hog = fill(small_disk)
    keys, error = add_until_refused(it, 0)
    assert error == f"no space left on the disk of {home}"
    several = [Batch(n, [(f"x{n}", b"1"), (f"y{n}", bytes(4000))]) for n in range(3)]
    accepted = [error == "" for error in write(it, *several)]
    hog.unlink()
    assert write(it, Batch(3, [("later", b"1")])) == [""]
    it.close()
    rows = rows_in(home)
    assert {*keys, "later"} <= set(rows)
    assert [f"x{n}" in rows for n in range(3)] == accepted
    assert [f"y{n}" in rows for n in range(3)] == accepted
    assert len(rows) == len(keys) + 2 * sum(accepted) + 1


def test_on_a_full_disk_ends_and_deletes_are_still_written(small_disk):
    home = small_disk / "home"
    it, _ = opened(home, BALLAST_BYTES)
    olds = [(f"old{n}", b"waiting" * 20) for n in range(500)]
    assert write(it, Batch(0, olds)) == [""]
    fill(small_disk)
    keys, _ = add_until_refused(it, 0)
    for n in range(200):
        change = Batch(n, [(f"old{n}", b"deleted" * 20), (f"old{n + 250}", None)])
        assert write(it, change) == [""], n
    assert write(it, Batch(1, [("new", b"1")])) != [""]
    it.close()
    rows = rows_in(home)
    assert "new" not in rows
    assert set(keys) <= set(rows)
    assert rows["old49"] == b"deleted" * 20
    assert "old449" not in rows


def test_a_group_that_does_not_fit_leaves_nothing(small_disk):
    home = small_disk / "home"
    it, _ = opened(home, BALLAST_BYTES)
    parts = [
        Batch(n, [(f"k{n}-{i}", os.urandom(4000)) for i in range(50)], group=1)
        for n in range(120)
    ]
    errors = [write(it, part)[0] for part in parts]
    assert errors[0] == ""
    assert errors[-1]
    assert write(it, Batch(100, close=1)) != [""]
    assert write(it, Batch(101, abort=1)) == [""]
    assert write(it, Batch(102, [("after", b"1")])) == [""]
    it.close()
    assert rows_in(home) == {"after": b"1"}


def test_a_node_starts_on_a_full_disk(small_disk):
    home = small_disk / "home"
    live, _ = opened(home, BALLAST_BYTES)
    for n in range(50):
        assert write(live, Batch(n, [(f"k{n}", os.urandom(1000))])) == [""]
    copy = small_disk / "copy"
    shutil.copytree(str(home), str(copy))  # as a crash would leave it: with a log
    live.close()
    fill(small_disk)
    it, rows = opened(copy, BALLAST_BYTES)
    assert len(rows) == 50
    assert write(it, Batch(1, [("k1", None)])) == [""]
    assert write(it, Batch(2, [("new", b"x")])) != [""]
    it.close()


def test_a_first_start_on_a_full_disk_says_so(small_disk):
    (small_disk / "home").mkdir()
    fill(small_disk)
    with pytest.raises(database.StateBroken, match="no space left on the disk of"):
        opened(small_disk / "home", BALLAST_BYTES)


# ---- a failing disk

FAULTS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
static char what[32];
static int left = -1, times = 0, code = 0;
void fail_at(const char *call, int n, int how_often, int error) {
    strncpy(what, call, sizeof what - 1);
    left = n; times = how_often; code = error;
}
int fail_count(void) { return left; }
static int fails(const char *call) {
    if (times == 0 || strcmp(call, what) != 0) return 0;
    if (left > 0) { left--; return 0; }
    if (times > 0) times--;
    errno = code;
    return 1;
}
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))
int fsync(int fd) { return fails("sync") ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails("sync") ? -1 : REAL(fdatasync)(fd); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) {
    return fails("write") ? -1 : REAL(pwrite64)(fd, b, n, o);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) {
    return fails("write") ? -1 : REAL(pwrite)(fd, b, n, o);
}
ssize_t write(int fd, const void *b, size_t n) {
    return fd > 2 && fails("write") ? -1 : REAL(write)(fd, b, n);
}
int rename(const char *a, const char *b) {
    return fails("rename") ? -1 : REAL(rename)(a, b);
}
int ftruncate64(int fd, off64_t n) {
    return fails("truncate") ? -1 : REAL(ftruncate64)(fd, n);
}
"""

# Runs under the library above: for each n, the nth call of a kind fails.
SWEEP = r"""
import ctypes, os, shutil, sys
sys.path.insert(0, sys.argv[1])
from database import StateBroken
from journal import Batch, Journal
library = ctypes.CDLL(None)
top, call, often, code = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
arm = lambda n: library.fail_at(call.encode(), n, often, code)

def run(home):
    promised, refused = {}, 0
    it = Journal(home, 65536, 1 << 20)
    it.open()
    rows = dict(it.rows())
    for n in range(8):
        for key in ("k%d" % n, "same"):
            value = b"%d" % n
            batch = Batch(n, [(key, value), ("pair-" + key, value)])
            (written,) = it.write([batch])
            if written.error:
                refused += 1
                assert written.error.startswith(("the disk of", "no space", "cannot"))
            else:
                promised[key] = value
    it.close()
    return promised, refused

def look(home):
    it = Journal(home, 65536, 1 << 20)
    it.open()
    rows = dict(it.rows())
    assert not it.notices, it.notices
    it.close()
    return rows

failed = 0
for n in range(int(sys.argv[6])):
    home = os.path.join(top, "%s-%d" % (call, n))
    os.mkdir(home)
    promised, refused = {}, 0
    arm(n)
    try:
        promised, refused = run(home)
    except StateBroken as error:
        assert str(error), n
        failed += 1
    library.fail_at(b"", 0, 0, 0)
    failed += bool(refused)
    rows = look(home)
    for key, value in promised.items():
        if key != "same":
            assert rows[key] == value, (n, key)
        assert int(rows[key]) >= int(value), (n, key)
    for key in rows:
        if not key.startswith("pair-"):
            assert rows[key] == rows["pair-" + key], (n, key)
    if refused and often == 1:
        assert refused <= 2, (n, refused)
    shutil.rmtree(home)
print(failed)
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: Any) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = Path(str(tmp_path_factory.mktemp("faults")))
    (folder / "faults.c").write_text(FAULTS)
    command = [compiler, "-shared", "-fPIC", "-o", "faults.so", "faults.c", "-ldl"]
    subprocess.run(command, cwd=str(folder), check=True)
    return folder / "faults.so"


@pytest.mark.parametrize("often", [1, -1], ids=["once", "for ever"])
@pytest.mark.parametrize("call", ["sync", "write", "truncate", "rename"])
@pytest.mark.parametrize("code", [5, 28], ids=["EIO", "ENOSPC"])
def test_whichever_call_fails_nothing_promised_is_lost_and_no_batch_is_half_there(
    faults, tmp_path, call, often, code
):
    command = [sys.executable, "-c", SWEEP, TOP, str(tmp_path), call]
    calls = 60 if call in ("sync", "write") else 12  # of the others there are few
    command += [str(often), str(code), str(calls)]
    environ = dict(os.environ, LD_PRELOAD=str(faults))
    result = subprocess.run(command, env=environ, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    if call in ("sync", "write"):
        assert int(result.stdout) > 10  # the library does what it is there for


SYNCS = r"""
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from journal import Batch, Journal
library = ctypes.CDLL(None)
os.mkdir(sys.argv[2])
it = Journal(sys.argv[2], 65536, 1 << 20)
it.open()
list(it.rows())
for n in range(300):
    library.fail_at(b"sync", 1000, 1, 5)
    assert it.write([Batch(n, [("k%d" % n, b"v" * 500)])])[0].error == ""
    assert library.fail_count() < 1000, n
"""


def test_nothing_is_promised_before_an_fsync(faults, home):
    environ = dict(os.environ, LD_PRELOAD=str(faults))
    command = [sys.executable, "-c", SYNCS, TOP, str(home)]
    subprocess.run(command, env=environ, check=True)
