"""leoronic_new_cookie on real comrades and a ghost, on loopback."""

import time
from pathlib import Path
from typing import Any

from cluster import Member, until
from haunts import Ghost, Haunted
from helpers import CHECKOUT, COOKIE

import jar

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
GRACE = "10s"  # the least
SECRET = COOKIE.strip().encode("ascii")


def cookie_of(node: Any) -> bytes:
    """Give what a node's cookie file has."""
    return Path(node.env["LEORONIC_COOKIE_FILE"]).read_bytes().strip()


def own_cookie(ghost: Ghost, haunted: Haunted) -> None:
    """Give a ghost a cookie file of its own: they share one with the first node."""
    path = ghost.directory.parent / ("cookie of " + ghost.address)
    path.write_bytes(cookie_of(haunted.nodes[0]) + b"\n")
    path.chmod(0o600)
    ghost.env["LEORONIC_COOKIE_FILE"] = str(path)


def rotate(node: Member, *words: str) -> str:
    """Make a new cookie; give the line that is printed."""
    return node.call("leoronic_new_cookie", *words).strip()


def test_all_have_it_at_once_runs_go_on_and_a_stranger_has_read_nothing() -> None:
    with Haunted(3, 1, first=81) as haunted:
        (ghost,) = haunted.ghosts
        slow = haunted.nodes[0].add("sleep 3; echo done", "worker:tag ghost1")
        told = rotate(haunted.nodes[1])
        assert told.startswith("4 of 4 nodes have the new cookie; ")
        assert "leoronic_new_cookie\n    %s\n" % told in README
        new = cookie_of(haunted.nodes[1])
        assert jar.MADE.match(new) and new != SECRET
        for one in (*haunted.nodes, ghost):
            until("written", lambda: cookie_of(one) == new)  # noqa: B023
            path = Path(one.env["LEORONIC_COOKIE_FILE"])
            assert path.stat().st_mode & 0o777 == 0o600
            assert (one.home / "cookies").stat().st_mode & 0o777 == 0o600
        for node in haunted.nodes:
            code, out, _ = node.sh("leoronic_doctor")
            assert code == 0 and b"the cookie before this one lets nodes in" in out
        assert haunted.nodes[2].wait(slow) == 0
        assert haunted.nodes[2].output(slow) == b"done\n"
        assert haunted.nodes[0].states()[slow] == "done"
        rows = haunted.nodes[0].rows()
        assert [row["attempt"] for row in rows] == [1]
        # From a ghost as from a comrade; and again, on top of what is there.
        env = {"LEORONIC_HOME": str(ghost.home)}
        code, out, err = haunted.nodes[0].sh("leoronic_new_cookie", env=env)
        assert (code, err) == (0, b"") and out.startswith(b"4 of 4 nodes"), (out, err)
        assert jar.rank(cookie_of(haunted.nodes[0]))[0] == 2


def test_who_is_killed_meanwhile_comes_back_by_the_old_one_and_has_the_new_one() -> (
    None
):
    with Haunted(3, 2, first=91) as haunted:
        first, second, third = haunted.nodes
        ghost, other = haunted.ghosts
        for one in (ghost, other):
            own_cookie(one, haunted)
            one.stop()
        other.start(second.address)
        haunted.await_attached(other, second, first)
        third.kill9()
        code, out, err = first.sh("leoronic_new_cookie")
        assert (code, err) == (1, b""), (out, err)
        assert b" of " in out and b" nodes have the new cookie, not " in out
        assert b"who is back within 1d00h gets it" in out
        assert cookie_of(third) == cookie_of(ghost) == SECRET
        until("written", lambda: cookie_of(other) == cookie_of(second))
        third.start()
        ghost.start()
        addresses = {node.address for node in haunted.nodes}
        until("met", lambda: all(addresses <= {*n.ready()} for n in haunted.nodes))
        for one in (third, ghost):
            until("handed", lambda: cookie_of(one) == cookie_of(first))  # noqa: B023
        assert "another cookie" not in third.printed() + first.printed()
        assert "another cookie" not in ghost.printed()
        until("well", lambda: third.sh("leoronic_doctor")[0] == 0)


def test_the_old_one_is_refused_after_the_grace_and_it_is_said_what_to_do() -> None:
    with Haunted(3, 0, first=101) as haunted:
        first, second, third = haunted.nodes
        third.stop()
        began = time.monotonic()
        assert first.sh("leoronic_new_cookie --grace " + GRACE)[0] == 1
        time.sleep(max(0.0, began + 10.5 - time.monotonic()))
        third.start()
        words = "it has another cookie: copy one machine's cookie file to the others"
        until("told at both", lambda: words in first.printed() + second.printed())
        until("told there", lambda: words in third.printed())
        assert first.ready() == [first.address, second.address]
        words = "it is lost: it has another cookie\n           if it is to join:  scp "
        until("dialled", lambda: words.encode() in first.sh("leoronic_doctor")[1])
        third.stop()
        new = cookie_of(first)
        Path(third.env["LEORONIC_COOKIE_FILE"]).write_bytes(new + b"\n")
        third.start()
        haunted.await_all()
        # What is kept does not let the old one in again.
        first.restart()
        haunted.await_all()
        assert b"lets nodes in" not in first.sh("leoronic_doctor")[1]


def test_two_at_once_and_halves_that_both_made_one_are_one_cluster_again() -> None:
    with Haunted(2, 0, first=111) as haunted:
        first, second = haunted.nodes
        first.stop()
        assert second.sh("leoronic_new_cookie")[0] == 1
        second.stop()
        first.start()
        for _ in range(2):
            assert rotate(first).startswith("1 of 1 nodes")  # it knows no other yet
        assert cookie_of(first) != cookie_of(second)
        second.start()
        haunted.await_all()
        until("one", lambda: cookie_of(first) == cookie_of(second))
        assert jar.rank(cookie_of(first))[0] == 2


def test_wrong_arguments_change_nothing() -> None:
    with Haunted(1, 0, first=121) as haunted:
        (node,) = haunted.nodes
        for words in ("x", "--grace", "--grace 9s", "--grace 9999d", "--force"):
            code, out, err = node.sh("leoronic_new_cookie " + words)
            assert (code, out) == (2, b"") and err.startswith(b"leoronic: "), (
                code,
                err,
            )
        assert cookie_of(node) == SECRET
        assert rotate(node).startswith("1 of 1 nodes have the new cookie; ")
