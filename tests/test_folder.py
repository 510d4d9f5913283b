"""folder.py, collection.py: a directory read and written for others, never beyond."""

import os
import stat
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

import arrivals
import collection
import folder
from arrivals import Arrivals
from folder import Entry, Folder, Hidden

DISK = 1 << 40


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def top(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def made(top: Path, home: str = "", cookie: str = "", free: int = DISK) -> Folder:
    """Make a folder that files can be put into, as post.py does."""
    hidden, clock = Hidden(home, cookie), Clock()
    of = Folder(str(top), hidden, clock)
    into = Arrivals(str(top), hidden, lambda: free, clock)
    of.verbs.update(put=into.put, drop=into.drop)
    return of


def listed(of: Folder, room: int = 16384, hide: Any = ()) -> List[Entry]:
    """List all, a letter at a time."""
    found: List[Entry] = []
    while True:
        after = found[-1].path if found else ""
        args = {"after": after, "room": room, "hide": list(hide)}
        said, _ = of.answer("asker", "list", args, b"")
        assert "error" not in said, said
        found += [Entry(*row) for row in said["entries"]]
        if not said["more"]:
            return found


def read(of: Folder, path: Any, offset: Any = 0, size: Any = 100) -> Tuple[Any, bytes]:
    said, body = of.answer("asker", "read", {"spans": [[path, offset, size]]}, b"")
    return said.get("error") or said["got"][0], body


def put(
    of: Folder, name: Any, data: bytes, whole: bytes = b"", **more: Any
) -> Dict[str, Any]:
    """Put a piece; the last one of `whole`, if that is given."""
    digest = folder.digest_of_pieces()
    digest.update(whole or data)
    args = {"name": name, "token": "t", "offset": 0, "size": len(whole or data)}
    args.update(mode=0o640, source="", digest=digest.hexdigest())
    args.update(more)
    return of.answer("asker", "put", args, data)[0]


def tree(top: Path) -> None:
    """Make some of everything."""
    (top / "a").mkdir()
    (top / "a" / "x").write_text("x")
    (top / "a.b").write_text("between a and a/x in bytes")
    (top / "b").mkdir()
    (top / "b" / "deep").mkdir()
    (top / "b" / "deep" / "y").write_text("yy")
    (top / "z").write_bytes(b"zzz")


@pytest.mark.parametrize("room", [1, 200, 100000])
def test_a_listing_in_parts_tells_each_name_once_directories_before_what_is_in_them(
    top: Path, room: int
) -> None:
    tree(top)
    paths = [entry.path for entry in listed(made(top), room)]
    assert paths == ["a", "a/x", "a.b", "b", "b/deep", "b/deep/y", "z"]


def test_names_are_in_the_order_of_their_bytes(top: Path) -> None:
    names = [b"\xff1", b"\xff2", "\U0001f600".encode(), b"a", "\u00e9".encode()]
    for name in names:
        (top / os.fsdecode(name)).write_text("x")
    found = [entry.path for entry in listed(made(top), 1)]
    assert found == [name.decode("utf-8", "surrogateescape") for name in sorted(names)]


def test_what_lies_too_deep_is_told_and_holds_up_nothing(top: Path) -> None:
    deep = top.joinpath(*["d"] * (folder.DEPTH_MAX + 5))
    deep.mkdir(parents=True)
    (top / "z").write_text("z")
    found = listed(made(top))
    assert found[-2].kind == "can't be read: it lies too deep"
    assert found[-1].path == "z" and len(found) == folder.DEPTH_MAX + 3


@pytest.mark.parametrize("room", [1, 200])
def test_a_listing_goes_on_behind_a_path_also_where_nothing_is_remembered(
    top: Path, room: int
) -> None:
    tree(top)
    found: List[str] = []
    while True:
        args = {"after": found[-1] if found else "", "room": room, "hide": []}
        said, _ = made(top).answer("asker", "list", args, b"")  # a new one each time
        found += [row[0] for row in said["entries"]]
        if not said["more"]:
            break
    assert found == ["a", "a/x", "a.b", "b", "b/deep", "b/deep/y", "z"]


def test_a_listing_tells_kind_mode_time_and_size(top: Path) -> None:
    (top / "file").write_bytes(b"12345")
    os.chmod(str(top / "file"), 0o751)
    os.utime(str(top / "file"), ns=(5, 1234567890123456789))
    os.symlink("/etc/passwd", str(top / "link"))
    os.mkfifo(str(top / "pipe"))
    found = {entry.path: entry for entry in listed(made(top))}
    file = found["file"]
    assert (file.kind, file.mode, file.size) == ("file", 0o751, 5)
    assert file.mtime == os.stat(str(top / "file")).st_mtime_ns
    assert found["link"].kind == "a symbolic link"
    assert found["pipe"].kind == "a FIFO"


def test_cookie_state_half_files_and_what_the_asker_names_are_hidden(top: Path) -> None:
    home = top / ".leoronic" / "host"
    home.mkdir(parents=True)
    (home / "control").write_text("token")
    (top / ".leoronic" / "host-ghost1").mkdir()
    (top / "secret").write_text("another cookie")
    (top / ".leoronic_cookie").write_text("cookie")
    (top / (folder.PART + "1")).write_text("half")
    (top / "dest").mkdir()
    (top / "dest" / "copied").write_text("no")
    (top / "kept").write_text("yes")
    of = made(top, str(home), str(top / "secret"))
    mark = folder.identity(os.stat(str(top / "dest")))
    assert [entry.path for entry in listed(of, hide=[mark])] == ["kept"]
    assert [entry.path for entry in listed(of)] == ["dest", "dest/copied", "kept"]


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "..", "../x", "a/../../x", "a//x", "./a", "x\0", 7, None]
    + ["x" * 5000, "out/passwd", "link", "pipe", "a"],
)
def test_nothing_but_a_regular_file_inside_is_read(top: Path, path: Any) -> None:
    tree(top)
    os.symlink("/etc", str(top / "out"))
    os.symlink("z", str(top / "link"))
    os.mkfifo(str(top / "pipe"))
    found, body = read(made(top), path)
    assert isinstance(found, str) and body == b""


@pytest.mark.parametrize(
    "offset, size", [(-1, 5), (0, -1), (0, 1 << 40), (1.5, 1), ("0", 1), (1 << 62, 1)]
)
def test_spans_that_are_none_are_refused(top: Path, offset: Any, size: Any) -> None:
    tree(top)
    assert isinstance(read(made(top), "z", offset, size)[0], str)


def test_spans_are_read_and_hashed_one_after_the_other_errors_between_them(
    top: Path,
) -> None:
    tree(top)
    spans = [["z", 1, 9], ["gone", 0, 4], ["a/x", 0, 1]]
    said, body = made(top).answer("asker", "read", {"spans": spans}, b"")
    assert body == b"zzx" and said["got"][1] == "No such file or directory"
    said, _ = made(top).answer("asker", "hash", {"spans": spans}, b"")
    assert said["hashes"] == [folder.hash_of(b"zz"), None, folder.hash_of(b"x")]


def test_what_is_put_comes_in_pieces_any_of_them_twice(top: Path) -> None:
    of = made(top)
    (top / "new").write_text("what was there before")
    for _ in range(2):
        assert put(of, "new", b"12", size=5, digest="") == {}
    for _ in range(2):
        assert put(of, "new", b"3", size=5, offset=2, digest="") == {}
    assert (top / "new").read_text() == "what was there before"
    assert put(of, "new", b"45", b"12345", offset=3) == {}
    assert put(of, "new", b"45", b"12345", offset=3) == {"is_there": True}
    assert (top / "new").read_bytes() == b"12345"
    assert stat.S_IMODE(os.stat(str(top / "new")).st_mode) == 0o640
    assert os.listdir(str(top)) == ["new"]
    assert put(of, "new", b"", token="2") == {}
    assert (top / "new").read_bytes() == b""


def test_who_has_just_begun_has_the_file_begun_anew(top: Path) -> None:
    assert put(made(top), "x", b"12", size=3, digest="") == {}
    of = made(top)  # restarted
    answer = put(of, "x", b"3", b"123", offset=2)
    assert answer == {"error": arrivals.BEGIN_ANEW}
    assert not (top / "x").exists()
    assert put(of, "x", b"123") == {}


def test_what_is_being_sent_from_here_stays_as_it_is(top: Path) -> None:
    (top / "x").write_text("mine")
    os.symlink("x", str(top / "link"))
    for name in ("x", "link"):
        mark = folder.identity(os.stat(str(top / name)))
        assert put(made(top), name, b"mine", source=mark) == {"is_there": True}
    assert os.path.islink(str(top / "link"))


@pytest.mark.parametrize(
    "name",
    ["", "..", ".", "a/b", "/x", "x\0y", None, ".leoronic_cookie", "d", "my cookie"]
    + [folder.PART + "x"],
)
def test_a_name_that_leads_elsewhere_is_refused(top: Path, name: Any) -> None:
    (top / "d").mkdir()
    (top / "my cookie").write_text("secret")
    assert put(made(top, "", str(top / "my cookie")), name, b"x")["error"]
    assert sorted(os.listdir(str(top))) == ["d", "my cookie"]
    assert (top / "my cookie").read_text() == "secret"


def test_a_link_of_that_name_is_replaced_not_followed(top: Path) -> None:
    target = top.parent / "target"
    target.write_text("outside")
    os.symlink(str(target), str(top / "name"))
    assert put(made(top), "name", b"new") == {}
    assert target.read_text() == "outside"
    assert (top / "name").read_text() == "new"


def test_a_piece_beyond_the_end_other_content_and_a_full_disk_leave_nothing(
    top: Path,
) -> None:
    of = made(top)
    assert put(of, "x", b"123", size=2)["error"]
    assert put(of, "x", b"3", size=3, offset=-1)["error"]
    assert "not what was sent" in put(of, "x", b"12", b"34")["error"]
    put(of, "x", b"12", size=4, digest="")
    assert "missing" in put(of, "x", b"4", b"1234", offset=3)["error"]
    assert "not what was sent" in put(of, "x", b"12", size=3)["error"]
    assert "space" in put(made(top, free=10), "x", b"12345")["error"]
    assert os.listdir(str(top)) == []


def test_half_files_go_soon_or_later(top: Path) -> None:
    hidden, clock = Hidden("", ""), Clock()
    into = Arrivals(str(top), hidden, lambda: DISK, clock)
    of = Folder(str(top), hidden, clock)
    of.verbs.update(put=into.put, drop=into.drop)
    for n in range(arrivals.COMING_MAX):
        put(of, "x", b"1", size=2, digest="", token=n)
    assert "too many" in put(of, "x", b"1", size=2, token="more")["error"]
    of.answer("asker", "drop", {"token": 0}, b"")
    assert len(os.listdir(str(top))) == arrivals.COMING_MAX - 1
    clock.now = arrivals.IDLE_S + 1
    assert into.is_receiving
    into.drop_idle()
    assert os.listdir(str(top)) == [] and not into.is_receiving
    put(of, "x", b"1", size=2, digest="")
    Arrivals(str(top), hidden, lambda: DISK, clock).clean_up()  # after a crash
    assert os.listdir(str(top)) == []


@pytest.mark.parametrize("args", [{}, {"spans": 5}, {"spans": [[1]]}, {"room": "x"}])
@pytest.mark.parametrize("verb", ["list", "hash", "read", "put", "unknown"])
def test_a_letter_that_is_none_is_answered_with_an_error(
    top: Path, verb: str, args: Dict[str, Any]
) -> None:
    assert made(top).answer("asker", verb, args, b"")[0]["error"]


# --- where it is collected --------------------------------------------------------


def entry(
    path: str, size: int = 0, kind: str = folder.FILE, mode: int = 0o644
) -> Entry:
    return Entry(path, kind, mode, 10**18, size)


def into(tmp_path: Path) -> collection.Collection:
    collection.prepare(str(tmp_path / "dest"), ["node"])
    made = collection.Collection(str(tmp_path / "dest"), "node")
    made.open()
    return made


def test_files_and_directories_get_their_modes_and_times(tmp_path: Path) -> None:
    to = into(tmp_path)
    to.take([entry("d", kind=folder.DIRECTORY, mode=0o550)])
    to.write(entry("d/x", 3, mode=0o4755), b"abc")
    to.finish()
    found = os.stat(str(tmp_path / "dest/node/d/x"))
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o755, 10**18)
    found = os.stat(str(tmp_path / "dest/node/d"))
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o550, 10**18)
    assert os.listdir(str(tmp_path / "dest/node/d")) == ["x"]
    os.chmod(str(tmp_path / "dest/node/d"), 0o755)


def test_what_is_there_is_equal_by_size_and_time_or_is_compared(tmp_path: Path) -> None:
    to = into(tmp_path)
    entries = [entry(name, 2) for name in ("equal", "touched", "longer", "new")]
    for each, data in zip(entries[:3], (b"12", b"12", b"123")):
        to.write(each, data)
    os.utime(str(tmp_path / "dest/node/touched"))
    fetch, maybe, problems = to.take(entries)
    assert [e.path for e in fetch] == ["longer", "new"]
    assert [e.path for e in maybe] == ["touched"]
    assert problems == ""


def test_nothing_is_written_through_a_link_that_lies_in_dest(tmp_path: Path) -> None:
    to = into(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    os.symlink(str(outside), str(tmp_path / "dest/node/d"))
    os.symlink(str(outside / "file"), str(tmp_path / "dest/node/f"))
    _, _, problems = to.take([entry("d", kind=folder.DIRECTORY), entry("d/x", 1)])
    assert problems.count(":") == 2
    with pytest.raises(OSError):
        to.write(entry("d/x", 1), b"x")
    to.write(entry("f", 1), b"x")  # the link itself is replaced
    assert os.listdir(str(outside)) == ["file"]
    assert (outside / "file").read_text() == "mine"
    for path in ("../x", "/x", "d/../../x"):
        with pytest.raises(ValueError):
            to.write(entry(path, 1), b"x")


def test_a_nodes_part_of_dest_that_is_a_link_or_a_file_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "dest").mkdir()
    os.symlink("/etc", str(tmp_path / "dest" / "node"))
    (tmp_path / "dest" / "other").write_text("a file")
    collection.prepare(str(tmp_path / "dest"), ["node", "other"])
    for name in ("node", "other"):
        with pytest.raises(OSError):
            collection.Collection(str(tmp_path / "dest"), name).open()


def test_a_closed_directory_is_open_while_it_is_written_to(tmp_path: Path) -> None:
    for _ in range(2):
        to = into(tmp_path)
        to.take([entry("d", kind=folder.DIRECTORY, mode=0o111)])
        path = tmp_path / "dest/node/d"
        assert stat.S_IMODE(os.stat(str(path)).st_mode) == 0o700
        assert to.finish() == ""
        assert stat.S_IMODE(os.stat(str(path)).st_mode) == 0o111


def test_what_is_in_the_way_stays_and_is_told_of(tmp_path: Path) -> None:
    to = into(tmp_path)
    (tmp_path / "dest/node/d").write_text("a file")
    (tmp_path / "dest/node/f").mkdir()
    _, _, problems = to.take([entry("d", kind=folder.DIRECTORY), entry("f", 1)])
    assert "no directory is in the way" in problems
    assert "a directory is in the way" in problems
    assert (tmp_path / "dest/node/d").read_text() == "a file"


def test_a_part_goes_on_with_what_has_come(tmp_path: Path) -> None:
    to = into(tmp_path)
    large = entry("big", 6)
    part = to.part(large)
    part.write(0, b"abc")
    part.close()  # the call was broken off
    part = to.part(large)
    assert part.hash(0, 3) == folder.hash_of(b"abc")
    assert part.hash(3, 3) == ""
    (tmp_path / "dest/node/big").write_bytes(b"___def")
    assert to.hash("big", 3, 3) == folder.hash_of(b"def")
    part.copy(3, 3)
    part.finish(6)
    part.close()
    assert (tmp_path / "dest/node/big").read_bytes() == b"abcdef"
    assert os.listdir(str(tmp_path / "dest/node")) == ["big"]
