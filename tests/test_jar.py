"""A node's cookies: order, grace, restarts, spreading; the files they are kept in."""

import os
import random
import stat
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest

import cookie
import jar
import settings
from jar import Jar, rank
from wire import fingerprint

OLD = b"00112233445566778899aabbccddeeff" * 2
DAY = 86400.0


class Nodes:
    """Jars that are linked as `links` says; frames wait until they are delivered."""

    def __init__(self, count: int) -> None:
        self.now = 100.0
        self.links: Set[Tuple[int, int]] = set()
        self.frames: List[Tuple[int, int, Dict[str, Any]]] = []
        self.saved: List[List[Tuple[float, bytes]]] = [[] for _ in range(count)]
        self.jars = [self.make(i, OLD) for i in range(count)]

    def make(self, i: int, secret: bytes) -> Jar:
        def save(kept: List[Tuple[float, bytes]]) -> None:
            self.saved[i] = kept

        def send(peer: str, kind: str, fields: Dict[str, Any]) -> None:
            assert kind == "NEW_COOKIE"
            self.frames.append((i, int(peer), fields))

        def peers() -> List[str]:
            return [str(b) for a, b in sorted(self.links) if a == i]

        seams = jar.Seams(lambda: self.now, peers, send, save, lambda text: None)
        made = Jar(secret, self.saved[i], seams)
        made.begin()
        return made

    def restart(self, i: int, secret: bytes = b"") -> None:
        """Start a node anew; its file has the newest, unless another is said."""
        for other in range(len(self.jars)):
            self.cut(i, other)
        self.jars[i] = self.make(i, secret or self.jars[i].newest)

    def link(self, a: int, b: int) -> bool:
        """Link two as a handshake would: by the first that counts at both."""
        common = [c for c in self.jars[a].clusters() if c in self.jars[b].clusters()]
        if not common:
            return False
        self.links |= {(a, b), (b, a)}
        for i, other in ((a, b), (b, a)):
            secret = self.jars[a].counting()[common[0]]
            self.jars[i].on_link(str(other), secret)
        return True

    def cut(self, a: int, b: int) -> None:
        self.links -= {(a, b), (b, a)}
        self.frames = [f for f in self.frames if {f[0], f[1]} != {a, b}]

    def deliver(self, dice: Any = None) -> None:
        """Deliver all frames: links are in order, which link is next is by chance."""
        while self.frames:
            links = [(source, target) for source, target, _ in self.frames]
            chosen = dice.choice(links) if dice else links[0]
            source, target, fields = self.frames.pop(links.index(chosen))
            self.jars[target].on_frame(str(source), fields)

    def newest(self) -> Set[bytes]:
        return {one.newest for one in self.jars}


def test_a_made_cookie_is_above_all_before_it_and_any_other_text_is_below() -> None:
    nodes = Nodes(1)
    (one,) = nodes.jars
    made = [one.newest]
    for _ in range(30):
        assert one.succeed(DAY) == rank(one.newest)
        made.append(one.newest)
    assert made == sorted(made, key=rank) and len(set(made)) == 31
    assert rank(b"7-short") == (0, fingerprint(b"7-short").hex())
    assert rank(b"12-" + b"a" * 64)[0] == 12
    assert len(one.counting()) == jar.COOKIES_MAX


def test_a_new_one_reaches_all_over_others_and_the_old_counts_for_the_grace() -> None:
    nodes = Nodes(4)
    for pair in ((0, 1), (1, 2), (2, 3)):
        nodes.link(*pair)
    nodes.jars[0].succeed(60.0)
    nodes.deliver()
    assert len(nodes.newest()) == 1 and OLD not in nodes.newest()
    for one in nodes.jars:
        assert one.clusters() == [fingerprint(one.newest), fingerprint(OLD)]
        assert one.after(one.newest) == OLD and one.after(OLD) == b""
    nodes.now += 61
    for one in nodes.jars:
        assert one.clusters() == [fingerprint(one.newest)]
        assert one.after(one.newest) == b"" and one.health()["grace"] == 0


def test_who_was_away_gets_it_within_the_grace_and_is_refused_after_it() -> None:
    nodes = Nodes(3)
    nodes.link(0, 1)
    nodes.jars[0].succeed(60.0)
    nodes.deliver()
    nodes.now += 59
    assert nodes.link(1, 2)
    nodes.deliver()
    assert len(nodes.newest()) == 1
    # What it lets in itself it does no longer than the others do.
    assert nodes.jars[2].grace == pytest.approx(1.0)
    late = Nodes(2)
    late.jars[0].succeed(60.0)
    late.now += 61
    assert not late.link(0, 1)


def test_two_made_at_once_end_as_one_and_both_let_nodes_in() -> None:
    for _ in range(20):
        nodes = Nodes(3)
        nodes.link(0, 1)
        nodes.jars[0].succeed(DAY)
        nodes.jars[1].succeed(DAY)
        made = [nodes.jars[0].newest, nodes.jars[1].newest]
        nodes.deliver()
        assert nodes.newest() == {max(made, key=rank), OLD}
        lower = made.index(min(made, key=rank))
        assert set(made) <= set(nodes.jars[lower].counting().values())
        assert set(made) <= set(nodes.jars[1 - lower].counting().values())
        nodes.link(2, lower)
        nodes.deliver()
        assert len(nodes.newest()) == 1


def test_halves_that_both_made_some_meet_by_the_old_one() -> None:
    nodes = Nodes(4)
    nodes.link(0, 1)
    nodes.link(2, 3)
    nodes.jars[0].succeed(DAY)
    nodes.jars[2].succeed(DAY)
    nodes.deliver()
    nodes.jars[3].succeed(DAY)
    nodes.deliver()
    assert len(nodes.newest()) == 2
    assert nodes.link(1, 2)
    nodes.deliver()
    assert nodes.newest() == {nodes.jars[3].newest}
    assert rank(nodes.jars[0].newest)[0] == 2


def test_restarts_cannot_prolong_the_grace_beyond_twice_of_it() -> None:
    nodes = Nodes(1)
    nodes.jars[0].succeed(1000.0)
    lived = 0.0
    for _ in range(1000):
        nodes.restart(0)
        up = min(nodes.jars[0].grace, 100.0)
        lived += up
        nodes.now += up
        nodes.jars[0].tick(nodes.now)
    assert lived <= 2000.0
    assert nodes.jars[0].clusters() == [fingerprint(nodes.jars[0].newest)]


def test_what_counted_no_more_does_not_count_again_after_a_restart() -> None:
    nodes = Nodes(1)
    nodes.jars[0].succeed(1000.0)
    due = nodes.jars[0].tick(nodes.now)
    assert due == nodes.now + 1000.0
    nodes.now = due
    assert nodes.jars[0].tick(nodes.now) is None
    nodes.restart(0)
    assert len(nodes.jars[0].counting()) == 1


def test_a_file_that_is_behind_is_passed_over_and_one_put_there_by_hand_counts() -> (
    None
):
    nodes = Nodes(1)
    nodes.jars[0].succeed(1000.0)
    newest = nodes.jars[0].newest
    nodes.restart(0, OLD)  # killed before the file was written
    assert nodes.jars[0].newest == newest
    assert OLD in nodes.jars[0].counting().values()
    nodes.now += 1001
    nodes.jars[0].tick(nodes.now)
    nodes.restart(0, OLD)  # a file that can't be written, long after
    assert list(nodes.jars[0].counting().values()) == [newest]
    nodes.restart(0, b"of another cluster's")
    assert list(nodes.jars[0].counting().values()) == [b"of another cluster's"]
    assert nodes.saved[0] == [(0.0, b"of another cluster's")]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cookie": OLD.decode(), "grace": 1.0},
        {"cookie": "1-" + "a" * 63, "grace": 1.0},
        {"cookie": "1-" + "a" * 64 + "\n", "grace": 1.0},
        {"cookie": "1-" + "\xe9" * 64, "grace": 1.0},
        {"cookie": "0-" + "a" * 64, "grace": 1.0},
        {"cookie": "1-" + "a" * 64, "grace": -1},
        {"cookie": "1-" + "a" * 64, "grace": 1e300},
        {"cookie": "1-" + "a" * 64, "grace": None},
        {"cookie": "1-" + "a" * 64, "grace": "nan"},
        {"cookie": "1001-" + "a" * 64, "grace": 1.0},
        {"cookie": ["1"], "grace": 1.0},
    ],
)
def test_what_no_node_has_made_changes_nothing(fields: Dict[str, Any]) -> None:
    nodes = Nodes(1)
    with pytest.raises((KeyError, TypeError, ValueError)):
        nodes.jars[0].on_frame("7", fields)
    assert nodes.jars[0].newest == OLD and not nodes.saved[0] and not nodes.frames


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_all_that_meet_in_time_end_with_the_highest(seed: int) -> None:
    dice = random.Random(seed)
    nodes = Nodes(dice.randrange(2, 6))
    count = len(nodes.jars)
    for _ in range(dice.randrange(5, 40)):
        a, b = dice.randrange(count), dice.randrange(count)
        roll = dice.random()
        if roll < 0.2:
            nodes.jars[a].succeed(1e6)
        elif roll < 0.5 and a != b:
            nodes.cut(a, b)
            nodes.link(a, b)
        elif roll < 0.6:
            nodes.cut(a, b)
        elif roll < 0.7:
            nodes.restart(a)
        elif nodes.frames:
            nodes.jars[nodes.frames[0][1]].on_frame(
                *(lambda f: (str(f[0]), f[2]))(nodes.frames.pop(0))
            )
        nodes.now += dice.random()
    made = {secret for one in nodes.jars for secret in one.counting().values()}
    for a in range(count):
        for b in range(a):
            nodes.cut(a, b)
            # More than are kept may have been made meanwhile: then it is refused.
            if not nodes.link(a, b):
                assert len(made) > jar.COOKIES_MAX
                return
    nodes.deliver(dice)
    assert nodes.newest() == {max(made, key=rank)}


# --- on disk ------------------------------------------------------------------------


def test_what_is_kept_is_read_again_and_private(tmp_path: Path) -> None:
    kept = [(0.0, b"1-" + b"a" * 64), (61.9, OLD)]
    cookie.keep(str(tmp_path), kept)
    assert cookie.kept(str(tmp_path)) == [kept[0], (61.0, OLD)]
    assert stat.S_IMODE((tmp_path / cookie.KEPT).stat().st_mode) == 0o600
    assert os.listdir(str(tmp_path)) == [cookie.KEPT]


@pytest.mark.parametrize(
    "data", [b"", b"x", b"1 short\n", b"-1 %s\n" % OLD, b"1 %s\nx\n" % OLD, b"\xff\n"]
)
def test_what_is_no_list_of_cookies_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / cookie.KEPT).write_bytes(data)
    assert cookie.kept(str(tmp_path)) == []


def test_a_link_in_the_place_of_the_list_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0 %s\n" % OLD)
    (tmp_path / cookie.KEPT).symlink_to(tmp_path / "x")
    assert cookie.kept(str(tmp_path)) == []


def test_the_files_that_have_one_of_them_get_the_newest_and_no_others(
    tmp_path: Path,
) -> None:
    new = b"1-" + b"b" * 64
    home = tmp_path / "home"
    home.mkdir()
    beside, linked, other = (tmp_path / name for name in ("beside", "link", "other"))
    beside.write_bytes(OLD + b"\n")
    beside.chmod(0o600)
    linked.symlink_to(beside)
    other.write_bytes(b"another cluster's cookie\n")
    (home / cookie.NAME).write_bytes(OLD)
    places = [str(linked), str(other), str(tmp_path / "none")]
    assert cookie.replace(places, str(home), [(0.0, new), (5.0, OLD)]) == ""
    for path in (beside, home / cookie.NAME):
        assert path.read_bytes() == new + b"\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert linked.is_symlink() and other.read_bytes() == b"another cluster's cookie\n"
    assert sorted(os.listdir(str(home))) == [cookie.NAME]
    assert not (tmp_path / "none").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cookie"
    path.write_bytes(OLD)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cookie, "_write_new", full)
        problem = cookie.replace([str(path)], "", [(0.0, b"1-" + b"b" * 64), (0, OLD)])
    assert problem == "%s can't be written (No space left on device)" % path
    assert path.read_bytes() == OLD


def test_a_stick_that_cannot_be_written_does_not_keep_the_node_from_its_cookie(
    tmp_path: Path,
) -> None:
    stick, home = tmp_path / "stick", tmp_path / cookie.NAME
    stick.write_bytes(OLD)
    stick.chmod(0o644)
    new = b"1-" + b"b" * 64
    home.write_bytes(new)
    home.chmod(0o600)
    ignored = lambda fd, mode: None  # noqa: E731  # FAT
    with pytest.raises(settings.WrongSetting, match="two cookies differ"):
        cookie.find([str(stick)], str(tmp_path), fchmod=ignored)
    kept = [(0.0, new), (0.0, OLD)]
    found = cookie.find([str(stick)], str(tmp_path), fchmod=ignored, kept=kept)
    assert found == (new, str(home), [])
