"""The store: its threads and answers, the lock, files by content, large outputs."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

import store
from store import Batch, Done, Found, StateBroken, StateInUse, Store, Written

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE_S = 30.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this")


class Desk:
    """A store with somebody who waits for its answers."""

    def __init__(self, home: Path, **options: int) -> None:
        self._called = threading.Event()
        self.store = Store(str(home), self._called.set, **options)
        self.notices = self.store.open()
        self.rows: Dict[str, bytes] = dict(self.store.load())
        self.notices += self.store.notices
        self.store.start()

    def answers(self, count: int) -> List[Any]:
        found: List[Any] = []
        while len(found) < count:
            assert self._called.wait(PATIENCE_S), found
            self._called.clear()
            found += self.store.poll()
        return found

    def write(self, *batches: Batch) -> List[str]:
        for batch in batches:
            self.store.write(batch)
        return [answer.error for answer in self.answers(len(batches))]

    def close(self) -> None:
        assert self.store.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def desk(home: Path) -> Iterator[Desk]:
    desk = Desk(home)
    yield desk
    desk.close()


def rows_in(home: Path) -> Dict[str, bytes]:
    desk = Desk(home)
    desk.close()
    assert not desk.notices
    return desk.rows


def kept(desk: Desk, data: bytes) -> str:
    return desk.store.files.keep_bytes(data).digest


# ---- batches and answers


def test_what_was_written_is_there_after_a_restart(home):
    desk = Desk(home)
    batch = Batch(5, [("a", b"1"), ("b", b"2")], {"name": b"old1"})
    desk.store.write(batch)
    assert desk.answers(1) == [Written(5, "")]
    assert desk.write(Batch(6, [("a", None), ("c", b"")])) == [""]
    desk.close()
    desk = Desk(home)
    assert desk.rows == {"b": b"2", "c": b""}
    assert desk.store.meta == {"name": b"old1"}
    desk.close()


def test_the_later_of_two_values_stays(home):
    desk = Desk(home)
    desk.write(Batch(1, [("a", b"1"), ("a", b"2")]), Batch(2, [("b", b"1")]))
    desk.write(Batch(3, [("b", b"2")]), Batch(4, [("b", None)]))
    desk.close()
    assert rows_in(home) == {"a": b"2"}


def test_keys_may_hold_any_text_of_a_user(home):
    keys = ["a b", "ä€😀", "\udcff\udc80", "x" * 300, "'; --"]
    desk = Desk(home)
    desk.write(Batch(1, [(key, key.encode("utf-8", "replace")) for key in keys]))
    desk.close()
    assert sorted(rows_in(home)) == sorted(keys)


def test_rows_come_in_the_order_of_keys(home):
    desk = Desk(home)
    desk.write(Batch(1, [(f"k{n:04}", b"x") for n in range(999, -1, -1)]))
    desk.close()
    assert list(rows_in(home)) == [f"k{n:04}" for n in range(1000)]


def test_waiting_batches_share_a_commit_and_are_answered_in_order(desk, monkeypatch):
    commits: List[int] = []
    gate = threading.Event()
    inside = threading.Event()

    def wait(batches: Any) -> None:
        commits.append(len(batches))
        inside.set()
        assert gate.wait(PATIENCE_S)

    monkeypatch.setattr(store.Journal, "_commit", lambda self, batches: wait(batches))
    desk.store.write(Batch(0, [("k", b"v")]))
    assert inside.wait(PATIENCE_S)
    for seq in range(1, 41):
        desk.store.write(Batch(seq, [("k", b"v")]))
    gate.set()
    assert desk.answers(41) == [Written(seq, "") for seq in range(41)]
    assert commits == [1, 40]


def test_a_commit_takes_so_many_rows_and_no_more(desk, monkeypatch):
    commits: List[int] = []
    gate = threading.Event()

    def write(self: Any, batches: Any) -> List[Written]:
        assert gate.wait(PATIENCE_S)
        commits.append(len(batches))
        return [Written(batch.seq, "") for batch in batches]

    monkeypatch.setattr(store.Journal, "write", write)
    rows = [(f"k{n}", b"v") for n in range(store.ROWS_PER_COMMIT // 2 - 1)]
    for seq in range(9):
        desk.store.write(Batch(seq, rows))
    gate.set()
    desk.answers(9)
    assert sum(commits) == 9
    assert max(commits) == 2


def test_write_does_not_wait_for_a_disk_that_hangs(desk, monkeypatch):
    gate = threading.Event()
    real = store.Journal.write

    def hang(self: Any, batches: Any) -> Any:
        assert gate.wait(PATIENCE_S)
        return real(self, batches)

    monkeypatch.setattr(store.Journal, "write", hang)
    for seq in range(100):
        desk.store.write(Batch(seq, [("k", b"v")]))
    desk.store.ask_output(1, "x")
    assert desk.store.poll() == []
    assert not desk.store.close(wait_s=0.01)  # and the directory stays taken
    gate.set()
    assert len(desk.answers(101)) == 101


def test_close_writes_what_still_waits(home):
    desk = Desk(home)
    for seq in range(200):
        desk.store.write(Batch(seq, [(f"k{seq}", b"v")]))
    desk.close()
    assert [answer.seq for answer in desk.store.poll()] == list(range(200))
    assert len(rows_in(home)) == 200


def test_a_batch_that_cannot_be_written_harms_no_other(home):
    desk = Desk(home)
    bad: Any = [("b", b"2"), ("b2", object())]
    batches = [Batch(1, [("a", b"1")]), Batch(2, bad), Batch(3, [("c", b"3")])]
    errors = desk.write(*batches)
    assert [bool(error) for error in errors] == [False, True, False]
    desk.close()
    assert rows_in(home) == {"a": b"1", "c": b"3"}


def test_a_store_that_is_not_used_starts_no_thread(home):
    before = threading.active_count()
    desk = Desk(home)
    assert threading.active_count() == before
    desk.close()
    assert threading.active_count() == before


def test_an_idle_store_writes_nothing(home):
    desk = Desk(home)
    desk.write(Batch(1, [("a", b"1")]))
    kinds = ("write_bytes", "syscw")
    before = {kind: io_count(kind) for kind in kinds}
    assert not desk._called.wait(0.3)
    after = {kind: io_count(kind) for kind in kinds}
    assert after == before
    desk.close()


def io_count(kind: str) -> str:
    with open("/proc/self/io") as file:
        return next(line for line in file if line.startswith(kind))


# ---- groups


def test_a_group_comes_to_life_when_it_is_closed(home):
    desk = Desk(home)
    parts = [Batch(n, [(f"k{n}", b"v")], group=9) for n in range(5)]
    desk.write(*parts)
    assert desk.write(Batch(5, [("last", b"v")], group=9, close=9)) == [""]
    desk.close()
    assert sorted(rows_in(home)) == ["k0", "k1", "k2", "k3", "k4", "last"]


def test_an_open_group_is_gone_after_a_restart_and_its_number_means_nothing(home):
    desk = Desk(home)
    desk.write(Batch(1, [("a", b"1")], group=1), Batch(2, [("b", b"2")]))
    desk.close()
    desk = Desk(home)
    assert desk.rows == {"b": b"2"}
    desk.write(Batch(1, [("c", b"3")], group=1), Batch(2, close=1))
    desk.close()
    assert rows_in(home) == {"b": b"2", "c": b"3"}


def test_an_aborted_group_leaves_nothing(home):
    desk = Desk(home)
    desk.write(Batch(1, [("a", b"1")], group=1), Batch(2, [("b", b"2")], group=2))
    desk.write(Batch(3, abort=1), Batch(4, close=1), Batch(5, close=2))
    desk.close()
    assert rows_in(home) == {"b": b"2"}


def test_a_closed_group_replaces_and_is_replaced(home):
    desk = Desk(home)
    desk.write(Batch(1, [("a", b"old"), ("b", b"old"), ("c", b"old")]))
    desk.write(Batch(2, [("a", b"new"), ("b", None), ("c", b"new")], group=1))
    desk.write(Batch(3, close=1), Batch(4, [("c", b"newer")]))
    desk.close()
    assert rows_in(home) == {"a": b"new", "c": b"newer"}


def test_a_group_with_a_part_that_failed_cannot_be_closed(home):
    desk = Desk(home)
    bad: Any = [("b", object())]
    parts = [Batch(1, [("a", b"1")], group=1), Batch(2, bad, group=1)]
    assert [bool(e) for e in desk.write(*parts, Batch(3, close=1))] == [0, 1, 1]
    assert desk.write(Batch(4, abort=1)) == [""]
    desk.close()
    assert rows_in(home) == {}


# ---- small outputs, and work aside


def test_an_output_is_found_by_its_digest(desk):
    desk.store.write(Batch(1, outputs=[("d1", b"hello\n"), ("d2", b"")]))
    desk.store.ask_output(7, "d1")
    desk.store.ask_output(8, "d2")
    desk.store.ask_output(9, "d3")
    answers = desk.answers(4)
    assert answers[1:] == [Found(7, b"hello\n"), Found(8, b""), Found(9, None)]


def test_the_oldest_outputs_go_when_there_are_too_many(home):
    desk = Desk(home, outputs_bytes_max=1000)
    for n in range(20):
        again = [("first", b"x" * 100)]  # written again, so never the oldest
        desk.write(Batch(n, outputs=[(f"d{n}", b"x" * 100), *again]))
    names = ["first", *(f"d{n}" for n in range(20))]
    for n, name in enumerate(names):
        desk.store.ask_output(n, name)
    found = [names[a.ticket] for a in desk.answers(len(names)) if a.data]
    assert found == ["first", *(f"d{n}" for n in range(11, 20))]
    desk.close()


def test_work_aside_hands_back_its_result_or_its_error(desk):
    error = OSError("no such thing")

    def fail() -> None:
        raise error

    desk.store.aside(1, lambda: threading.current_thread().daemon)
    desk.store.aside(2, fail)
    desk.store.aside(3, lambda: "after")
    done = desk.answers(3)
    assert done == [Done(1, True, None), Done(2, None, error), Done(3, "after", None)]


def test_work_aside_does_not_hold_up_the_journal(desk):
    gate = threading.Event()
    desk.store.aside(1, lambda: gate.wait(PATIENCE_S))
    assert desk.write(Batch(1, [("a", b"1")])) == [""]
    gate.set()
    assert desk.answers(1) == [Done(1, True, None)]


# ---- the state directory


def test_the_state_is_private(home):
    os.umask(0)
    try:
        desk = Desk(home)
        desk.write(Batch(1, [("a", b"1")]))
        kept(desk, b"content")
        for directory, _, names in os.walk(str(home)):
            assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700, directory
            for name in names:
                path = os.path.join(directory, name)
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path
        desk.close()
    finally:
        os.umask(0o022)


def test_loose_modes_are_tightened_and_said(home):
    home.mkdir(mode=0o755)
    desk = Desk(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert "mode 755" in desk.notices[0]
    desk.close()
    assert rows_in(home) == {}


@needs_root
def test_the_home_of_another_user_is_refused_in_words(home):
    home.mkdir(mode=0o700)
    os.chown(str(home), 12345, 12345)
    with pytest.raises(StateBroken, match=r"another user \(uid 12345\).*LEORONIC_HOME"):
        Store(str(home), lambda: None).open()
    assert os.listdir(str(home)) == []


@pytest.mark.parametrize(
    "name", ["files", "outputs", "queue", "ballast", "log", "control.new", "runs/x"]
)
def test_a_planted_link_is_refused_in_words_and_followed_by_nothing(
    home, tmp_path, name
):
    """Each of these led to lost files: what isn't ours in `files` is removed."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "text").write_text("mine")
    home.mkdir(mode=0o700)
    (home / name).parent.mkdir(mode=0o700, exist_ok=True)
    target = precious if name in ("files", "outputs", "queue") else precious / "text"
    (home / name).symlink_to(target)
    with pytest.raises(StateBroken, match="no Leoronic made.*a link to .*remove it"):
        Store(str(home), lambda: None).open()
    assert (precious / "text").read_text() == "mine"
    assert os.listdir(str(precious)) == ["text"]
    (home / name).unlink()
    (home / "venv").mkdir()
    (home / "venv" / "lib64").symlink_to("lib")  # as Python makes them
    desk = Desk(home)
    assert desk.write(Batch(1, [("a", b"1")])) == [""]
    desk.close()


def test_a_home_that_others_could_write_to_holds_nothing_of_theirs(home, tmp_path):
    Desk(home).close()
    home.chmod(0o777)
    (tmp_path / "elsewhere").write_text("x")
    os.link(str(tmp_path / "elsewhere"), str(home / "log"))
    for _ in range(2):
        with pytest.raises(StateBroken, match="another name"):
            Store(str(home), lambda: None).open()
    (home / "log").unlink()
    Desk(home).close()
    if os.geteuid() == 0:
        home.chmod(0o777)
        os.chown(str(home / "queue" / "db"), 12345, 12345)
        with pytest.raises(StateBroken, match=r"another user \(uid 12345\)"):
            Store(str(home), lambda: None).open()


def test_a_home_that_is_no_directory_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateBroken, match="cannot use .*file"):
        Store(str(tmp_path / "file"), lambda: None).open()


def test_a_second_opener_is_told_and_changes_nothing(home):
    desk = Desk(home)
    desk.write(Batch(1, [("a", b"1")]))
    before = snapshot(home)
    code = "import sys, store\nstore.Store(sys.argv[1], print).open()"
    child = [sys.executable, "-c", code, str(home)]
    result = subprocess.run(child, cwd=TOP, stderr=subprocess.PIPE)
    text = result.stderr.decode()
    assert f"StateInUse: the state directory {home} is in use by process" in text
    assert f"process {os.getpid()};" in text
    with pytest.raises(StateInUse):
        Store(str(home), lambda: None).open()
    assert snapshot(home) == before
    assert desk.write(Batch(2, [("b", b"2")])) == [""]
    desk.close()
    assert rows_in(home) == {"a": b"1", "b": b"2"}


def snapshot(home: Path) -> Dict[str, Any]:
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in sorted(home.rglob("*"))
    }


def test_a_database_that_another_program_has_open_is_not_taken_for_damaged(home):
    sqlite3 = pytest.importorskip("sqlite3")
    Desk(home).close()
    other = sqlite3.connect(str(home / "queue" / "db"), isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    code = (
        "import sys, store\n"
        "try:\n store.Store(sys.argv[1], print).open()\n"
        "except store.StateInUse as error:\n sys.exit(str(error))\n"
    )
    child = [sys.executable, "-c", code, str(home)]
    result = subprocess.run(child, cwd=TOP, stderr=subprocess.PIPE)
    other.close()
    assert b"another program has the queue's database open" in result.stderr
    assert rows_in(home) == {}


# ---- files


def test_a_file_is_kept_by_its_content_once(desk, tmp_path, home):
    for name, mode in (("a.sh", 0o755), ("b.txt", 0o640)):
        (tmp_path / name).write_bytes(b"x" * 3_000_000)
        os.chmod(str(tmp_path / name), mode)
    files = desk.store.files
    first, second = (
        files.keep(str(tmp_path / "a.sh")),
        files.keep(str(tmp_path / "b.txt")),
    )
    assert (first.size, first.mode, second.mode) == (3_000_000, 0o755, 0o640)
    assert first.digest == second.digest == store.digest_of(b"x" * 3_000_000)
    assert list(files.all()) == [first.digest] == os.listdir(str(home / "files"))
    assert Path(files.path(first.digest)).read_bytes() == b"x" * 3_000_000
    assert files.has(first.digest)
    files.drop(first.digest)
    files.drop(first.digest)
    assert not files.has(first.digest)


def test_an_empty_file_is_kept(desk, tmp_path):
    (tmp_path / "empty").touch()
    assert desk.store.files.keep(str(tmp_path / "empty")).size == 0


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "missing", "socket"])
def test_what_is_no_file_is_refused_at_once(desk, tmp_path, kind):
    path = str(tmp_path / "it")
    words = {"directory": "it is a directory", "missing": "No such file"}
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "socket":
        socket = pytest.importorskip("socket").socket(1)
        socket.bind(path)
        words[kind] = "No such device"
    with pytest.raises(OSError) as caught:
        desk.store.files.keep(path)
    expected = words.get(kind, "it is no regular file")
    assert str(caught.value).startswith(f"cannot read {path}: {expected}")
    assert os.listdir(desk.store.files._files) == []


def test_a_sparse_file_counts_with_all_its_zeros(desk, tmp_path):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(str(path), 8 << 20)
    kept = desk.store.files.keep(str(path))
    assert (kept.size, kept.digest) == (8 << 20, store.digest_of(bytes(8 << 20)))
    try:
        os.truncate(str(path), 1 << 43)
    except OSError:
        return  # no file system of ours takes one of 8 TiB
    began = time.monotonic()
    with pytest.raises(OSError, match="no space left"):
        desk.store.files.keep(str(path))
    assert time.monotonic() - began < 1  # none of it was read
    assert os.listdir(desk.store.files._files) == [kept.digest]


def test_a_large_file_has_the_digest_that_it_would_have_as_a_small_one(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(3_000_001))
    small = desk.store.files.keep(str(path))
    monkeypatch.setattr(store, "LARGE_BYTES", 3_000_000)
    monkeypatch.setattr(store, "sha256", None)  # isn't asked now
    assert desk.store.files.keep(str(path)) == small
    with desk.store.files.receive(small.digest, small.size) as part:
        part.write(path.read_bytes())
        assert part.finish().digest == small.digest


def test_a_file_that_grows_while_it_is_read_has_the_digest_of_what_was_read(
    desk, tmp_path, monkeypatch
):
    path = tmp_path / "log"
    path.write_bytes(b"x" * store.PIECE_BYTES)
    real = store.Part.write

    def write(part: Any, piece: bytes) -> None:
        if path.stat().st_size < 3 * store.PIECE_BYTES:
            with open(str(path), "ab") as file:
                file.write(b"y" * 1000)
        real(part, piece)

    monkeypatch.setattr(store.Part, "write", write)
    it = desk.store.files.keep(str(path))
    content = Path(desk.store.files.path(it.digest)).read_bytes()
    assert it.size == len(content) > store.PIECE_BYTES
    assert store.digest_of(content) == it.digest


def test_a_read_error_is_said_and_leaves_nothing(desk):
    with pytest.raises(OSError, match="^cannot read /proc/self/mem: "):
        desk.store.files.keep("/proc/self/mem")
    assert os.listdir(desk.store.files._files) == []


def test_a_received_file_is_there_when_it_is_finished(desk):
    data = os.urandom(100_000)
    digest = store.digest_of(data)
    files = desk.store.files
    part = files.receive(digest, len(data))
    for n in range(0, len(data), 16384):
        part.write(data[n : n + 16384])
        assert not files.has(digest)
    assert part.finish().size == len(data)
    assert Path(files.path(digest)).read_bytes() == data


def test_a_received_file_that_is_not_as_announced_is_refused(desk):
    files = desk.store.files
    digest = store.digest_of(b"abc")
    part = files.receive(digest, 3)
    part.write(b"ab")
    with pytest.raises(OSError, match="more than its 3 bytes"):
        part.write(b"cd")
    part.abandon()
    for wrong in (b"abd", b"ab"):
        part = files.receive(digest, 3)
        part.write(wrong)
        with pytest.raises(OSError, match="other content than"):
            part.finish()
        part.abandon()
    assert os.listdir(files._files) == []


def test_a_file_larger_than_the_free_space_is_refused_before_it_comes(desk):
    with pytest.raises(OSError, match="^no space left on the disk of"):
        desk.store.files.receive("0" * 64, 1 << 60)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "0" * 65])
def test_no_name_from_a_peer_becomes_a_path_unchecked(desk, name):
    files = desk.store.files
    calls: List[Callable[[], Any]] = [
        lambda: files.path(name),
        lambda: files.drop(name),
        lambda: files.receive(name, 1),
        lambda: files.output_path(name),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a SHA-256"):
            call()
    assert not files.has(name)


def test_half_files_of_a_crash_are_removed(home):
    desk = Desk(home)
    whole = kept(desk, b"content")
    part = desk.store.files.receive("0" * 64, 10)
    part.write(b"half")
    desk.close()
    assert len(os.listdir(str(home / "files"))) == 2
    desk = Desk(home)
    assert os.listdir(str(home / "files")) == [whole]
    desk.close()


FILES_CHILD = r"""
import os, signal, sys
import points, store
place, home, path = sys.argv[1:]

def point(name):
    if name == place:
        os.kill(os.getpid(), signal.SIGKILL)

points.POINT = point
it = store.Store(home, lambda: None)
it.open()
it.files.keep(path)
"""


@pytest.mark.parametrize("place", ["before rename", "after rename"])
def test_a_crash_while_keeping_a_file_leaves_it_whole_or_not_at_all(
    home, tmp_path, place
):
    data = os.urandom(700_000)
    (tmp_path / "file").write_bytes(data)
    child = [sys.executable, "-c", FILES_CHILD, place, str(home)]
    result = subprocess.run([*child, str(tmp_path / "file")], cwd=TOP)
    assert result.returncode == -signal.SIGKILL
    desk = Desk(home)
    names = os.listdir(str(home / "files"))
    assert names == ([store.digest_of(data)] if place == "after rename" else [])
    if names:
        assert Path(desk.store.files.path(names[0])).read_bytes() == data
    desk.close()


def test_a_file_is_fsynced_before_it_has_its_name_and_then_its_directory(
    desk, home, monkeypatch
):
    (home / "run-1.out").write_bytes(b"z" * 70_000)
    calls: List[str] = []
    fsync, rename = os.fsync, os.rename

    def log_fsync(fd: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        calls.append("fsync directory" if is_directory else "fsync file")
        fsync(fd)

    def log_rename(source: str, path: str) -> None:
        calls.append("rename")
        rename(source, path)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "rename", log_rename)
    desk.store.files.keep_bytes(b"content")
    desk.store.files.keep_output(str(home / "run-1.out"))
    assert calls == ["fsync file", "rename", "fsync directory"] * 2


def test_a_large_output_is_moved_to_its_content(desk, home):
    path = home / "run-1.out"
    path.write_bytes(b"z" * 300_000)
    size, digest = desk.store.files.keep_output(str(path))
    assert (size, digest) == (300_000, store.digest_of(b"z" * 300_000))
    assert not path.exists()
    moved = Path(desk.store.files.output_path(digest))
    assert moved.read_bytes() == b"z" * 300_000
    assert list(desk.store.files.all_outputs()) == [digest]
    desk.store.files.drop_output(digest)
    assert not moved.exists()
