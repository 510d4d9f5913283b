"""leoronic_get_all_files and leoronic_send_file, among real comrades and a ghost.

That letters pass over others where there is no link: tests/test_letters.py, and the
laboratory.
"""

import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest
from cluster import Member, until
from haunts import Ghost, Haunted

import folder

Tree = Dict[str, Tuple[Any, ...]]


@pytest.fixture(scope="module")
def haunted() -> Iterator[Haunted]:
    with Haunted(2, 1, first=51) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def emptied(haunted: Haunted) -> None:
    """Begin with empty working directories."""
    for node in [*haunted.nodes, *haunted.ghosts]:
        for path in node.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path))
            else:
                path.unlink()


def tree(top: Path) -> Tree:
    """Give what is below a directory: mode, time and content of each file."""
    found: Tree = {}
    for path in sorted(top.rglob("*")):
        facts = path.lstat()
        kind: Tuple[Any, ...] = (stat.S_IFMT(facts.st_mode), facts.st_mode)
        if stat.S_ISREG(facts.st_mode):
            kind += (facts.st_mtime_ns, path.read_bytes())
        found[str(path.relative_to(top))] = kind
    return found


def collected(dest: Path, node: Any) -> Path:
    return dest / ("%s@%s" % (os.uname().nodename.partition(".")[0], node.address))


def fill(node: Any, seed: int) -> None:
    """Put files of all sorts into a working directory."""
    top = node.directory
    (top / "sub dir" / "deeper").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o700)
    (top / "sub dir" / "deeper" / "x.txt").write_text("hello %d" % seed)
    (top / "nothing").write_bytes(b"")
    (top / "large").write_bytes(os.urandom(3_000_001))
    os.chmod(str(top / "large"), 0o640)
    for name in ("-rf", "$(id)", "new\nline", "\u00e9", "last"):
        (top / name).write_text(name)
    (top / os.fsdecode(b"bytes \xff")).write_bytes(b"\xff")
    deep = top.joinpath(*[os.fsdecode(b"\xff" * 200)] * 15)  # escaped six times as long
    deep.mkdir(parents=True)
    for n in range(30):
        (deep / ("deep%d" % n)).write_text("deep")
    for n in range(300):
        (top / ("small%d" % n)).write_text(str(n))
    os.utime(str(top / "last"), (1, 1))


def call(node: Member, words: str, code: int = 0, **more: Any) -> Tuple[str, str]:
    found, out, err = node.sh(words, **more)
    assert found == code, (out, err, node.told())
    return out.decode(), err.decode()


def test_all_is_collected_with_modes_and_times_and_nothing_twice(
    haunted: Haunted, tmp_path: Path
) -> None:
    everyone = [*haunted.nodes, *haunted.ghosts]
    for seed, node in enumerate(everyone):
        fill(node, seed)
    dest = tmp_path / "a" / "b"
    out, err = call(haunted.nodes[0], "leoronic_get_all_files '%s'" % dest)
    assert err == ""
    for node in everyone:
        assert tree(collected(dest, node)) == tree(node.directory)
        assert "%s: 339 files, 339 new" % collected(dest, node) in out
    assert stat.S_IMODE(dest.stat().st_mode) == 0o755  # whoever's umask it is
    # From another node, into the same place: all of it is there.
    out, err = call(haunted.nodes[1], "leoronic_get_all_files '%s'" % dest)
    assert out.count("339 files, 0 new, 0 bytes came") == 3
    # What differs comes again, equal content doesn't whatever its time.
    first = collected(dest, everyone[0])
    data = bytearray((first / "large").read_bytes())
    data[2_500_000] ^= 1
    (first / "large").write_bytes(bytes(data))
    (first / "last").write_text("LAST")
    (first / "small7").unlink()
    os.utime(str(first / "small8"))
    out, err = call(haunted.nodes[1], "leoronic_get_all_files '%s'" % dest)
    assert "339 files, 3 new, 881K came" in out, out  # a block of 1 MiB, and 5 bytes
    for node in everyone:
        assert tree(collected(dest, node)) == tree(node.directory)


def test_a_ghosts_machine_can_collect_and_send_too(
    haunted: Haunted, tmp_path: Path
) -> None:
    everyone = [*haunted.nodes, *haunted.ghosts]
    (ghost,) = haunted.ghosts
    env = {"LEORONIC_HOME": str(ghost.home)}
    source = tmp_path / "data set"
    source.write_bytes(os.urandom(1_000_000))
    os.chmod(str(source), 0o750)
    out, err = call(haunted.nodes[0], "leoronic_send_file '%s'" % source, env=env)
    assert err == "" and out.count(" has data set, 976K") == 3
    for node in everyone:
        path = node.directory / "data set"
        assert path.read_bytes() == source.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o750
    words = "leoronic_get_all_files dest"
    call(haunted.nodes[0], words, cwd=tmp_path, env=env)
    for node in everyone:
        assert tree(collected(tmp_path / "dest", node)) == tree(node.directory)


def test_a_file_that_a_task_waits_for_lets_it_start(haunted: Haunted) -> None:
    node = haunted.nodes[0]
    (node.directory / "input").write_text("for the ghost")
    task = node.add("cat input", "worker:tag ghost1; worker:has_file input")
    assert node.state(task) == "waiting"
    call(node, "leoronic_send_file input ghost1")
    assert not (haunted.nodes[1].directory / "input").exists()
    assert node.wait(task) == 0
    assert node.output(task) == b"for the ghost"


@pytest.mark.parametrize("dest", ["", ".", "dest", "some/where"])
def test_dest_within_a_working_directory_isnt_collected_itself(
    haunted: Haunted, dest: str
) -> None:
    node = haunted.nodes[0]
    (node.directory / "file").write_text("x")
    for _ in range(2):
        call(node, "leoronic_get_all_files " + dest)
        here = collected(node.directory / dest, node)
        assert sorted(tree(here)) == ["file"] + (["some"] if "/" in dest else [])


def test_what_is_no_file_is_left_out_with_a_word_and_what_cant_be_had_gives_1(
    haunted: Haunted, tmp_path: Path
) -> None:
    first, second = haunted.nodes
    os.symlink("/etc", str(first.directory / "link"))
    os.mkfifo(str(first.directory / "pipe"))
    words = "leoronic_get_all_files '%s'" % tmp_path
    _, err = call(second, words)
    assert "left out: link is neither file nor directory but a symbolic link" in err
    assert "left out: pipe is neither file nor directory but a FIFO" in err
    (first.directory / "d").mkdir()
    (first.directory / "d" / "x").write_text("x")
    (first.directory / "other").write_text("other")
    (collected(tmp_path, first) / "d").write_text("in the way")
    shutil.rmtree(str(collected(tmp_path, second)))
    collected(tmp_path, second).symlink_to("/etc")
    _, err = call(second, words, 1)
    assert "@127.0.0.52: missing: %s: " % collected(tmp_path, second) in err
    assert "missing: d: what is no directory is in the way" in err
    assert (collected(tmp_path, first) / "other").read_text() == "other"


def test_a_node_that_is_away_is_named_and_gives_1(
    haunted: Haunted, tmp_path: Path
) -> None:
    first, second = haunted.nodes
    (ghost,) = haunted.ghosts
    (second.directory / "file").write_text("x")
    assert ghost.process
    ghost.kill9()
    until("it is lost", lambda: first.members()[ghost.address]["state"] == "lost", 20)
    _, err = call(second, "leoronic_get_all_files '%s'" % tmp_path, 1)
    assert "@%s: missing: it can't be reached" % ghost.address in err
    assert (collected(tmp_path, second) / "file").read_text() == "x"
    out, err = call(second, "leoronic_send_file file", 1)
    assert out.count("has file") == 2
    assert "did not take file: it can't be reached" in err
    ghost.start()
    haunted.await_attached(ghost, first)


def test_a_ghost_without_a_comrade_says_so(haunted: Haunted) -> None:
    lonely = Ghost(haunted.nodes[0].top, haunted.nodes[0], 9, ["127.0.0.59"])
    lonely.start()
    try:
        until("it is up", lambda: (lonely.home / "control").exists())
        env = {"LEORONIC_HOME": str(lonely.home)}
        for words in ("leoronic_send_file /etc/hostname", "leoronic_get_all_files"):
            _, err = call(haunted.nodes[0], words, 3, env=env)
            assert "no comrade is reachable from here" in err
    finally:
        lonely.close()


def test_a_node_that_is_restarted_meanwhile_is_sent_the_file_anew(
    haunted: Haunted, tmp_path: Path
) -> None:
    first, second = haunted.nodes
    large = tmp_path / "large"
    with open(str(large), "wb") as file:
        for _ in range(120):
            file.write(os.urandom(1 << 20))
    second.call("leoronic_add_tag", "target")
    until("it is known", lambda: "target" in first.members()[second.address]["tags"])
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(first.sh, "leoronic_send_file '%s' target" % large)
        until("it comes", lambda: list(second.directory.glob(folder.PART + "*")))
        second.kill9()
        second.start()
        code, out, err = sent.result()
    assert code == 0, err
    assert (second.directory / "large").read_bytes() == large.read_bytes()
    assert [path.name for path in second.directory.iterdir()] == ["large"]


@pytest.mark.parametrize(
    "words, code, text",
    [
        ("leoronic_send_file", 2, "FILE is missing"),
        ("leoronic_send_file ''", 2, "FILE is empty"),
        ("leoronic_send_file nowhere", 2, "FILE can't be read (No such file"),
        ("leoronic_send_file .", 2, "FILE can't be read (it is no regular file)"),
        ("leoronic_send_file a b c", 2, "two arguments are taken"),
        ("leoronic_send_file /etc/hostname unknown", 1, "no node has the tag TAG"),
        ("leoronic_get_all_files a b", 2, "one argument is taken"),
        ("leoronic_get_all_files /etc/hostname", 1, "DEST can't be written"),
        ("leoronic_get_all_files /proc/x", 1, "DEST can't be written"),
    ],
)
def test_wrong_arguments_are_told(
    haunted: Haunted, words: str, code: int, text: str
) -> None:
    _, err = call(haunted.nodes[0], words, code)
    assert text in err
    assert all(not list(node.directory.iterdir()) for node in haunted.nodes)


def test_who_breaks_off_a_call_leaves_no_half_file_under_a_name(
    haunted: Haunted, tmp_path: Path
) -> None:
    first, second = haunted.nodes
    (second.directory / "huge").write_bytes(bytes(60_000_000))
    words = "leoronic_get_all_files '%s' & pid=$!; sleep 0.2; kill -9 $pid; wait $pid"
    assert first.sh(words % tmp_path)[0] == 137
    assert not (collected(tmp_path, second) / "huge").exists()
    time.sleep(0.2)  # the thread is still at it
    _, err = call(first, "leoronic_get_all_files '%s'" % tmp_path)
    assert tree(collected(tmp_path, second)) == tree(second.directory)
