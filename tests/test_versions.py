"""Nodes of two versions of the wire: neither works with the other, and both say why.

The newer ones run a copy of the program whose wire.VERSION is greater by one.
"""

import re
import shutil
import time
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple

import pytest
from cluster import Member, until
from haunts import Ghost
from helpers import CHECKOUT, free_port

import discovery
import net
import wire

OLD, NEW = "127.0.0.91", "127.0.0.92"
QUIET_S = 12.0  # over addresses.PUT_OFF_S: it was dialled again meanwhile
THEIRS = "it speaks version %d of Leoronic's protocol, this node version %d; "


def newer_program(copy: Path) -> Path:
    """Copy the program, of the next version."""
    skip = shutil.ignore_patterns(".*", "tests", "__pycache__")
    shutil.copytree(str(CHECKOUT), str(copy), ignore=skip)
    text = (copy / "wire.py").read_text()
    line = "VERSION = %d\n"
    assert text.count(line % wire.VERSION) == 1
    (copy / "wire.py").write_text(
        text.replace(line % wire.VERSION, line % (wire.VERSION + 1))
    )
    return copy


class Scene(NamedTuple):
    """Two comrades of two versions and an old ghost, which all have had their say."""

    older: Member
    newer: Member
    ghost: Ghost


@pytest.fixture(scope="module")
def scene(tmp_path_factory: Any) -> Iterator[Scene]:
    port = free_port([OLD, NEW])
    older = Member(OLD, port, [NEW])
    folder = tmp_path_factory.mktemp("versions")
    newer = Member(NEW, port, [OLD], program=newer_program(folder / "newer"))
    ghost = Ghost(folder, newer, 1, [NEW])
    try:
        older.start()
        newer.start()
        ghost.start()
        for teller in (older, newer, ghost):
            until("it is told", lambda: told(teller.printed()))  # noqa: B023
        until("of the ghost, too", lambda: told(newer.printed(), ghost.address))
        time.sleep(QUIET_S)
        yield Scene(older, newer, ghost)
    finally:
        ghost.close()
        older.close()
        newer.close()


def told(text: str, about: str = "") -> List[str]:
    lines = [line for line in text.splitlines() if "Leoronic's protocol" in line]
    return [line for line in lines if about in line]


def test_two_versions_say_at_both_ends_which_has_which_and_what_to_do_once(
    scene: Scene,
) -> None:
    one, two = wire.VERSION, wire.VERSION + 1
    (at_older,) = told(scene.older.printed())
    assert NEW + ": " + THEIRS % (two, one) + "update this node" in at_older
    (at_newer,) = told(scene.newer.printed(), OLD)
    assert OLD + ": " + THEIRS % (one, two) + "update that node" in at_newer
    for node, other in ((scene.older, NEW), (scene.newer, OLD)):
        for utility in ("leoronic_nodes", "leoronic_doctor"):
            out, err = node.sh(utility)[1:]
            assert b"%s is no node of this cluster: it speaks" % other.encode() in (
                out + err
            ), utility
    for node in (scene.older, scene.newer):  # each serves on alone
        task = node.add("echo alone")
        assert node.wait(task) == 0 and len(node.members()) == 1


def test_a_ghost_of_another_version_says_so_once_and_so_does_its_comrade(
    scene: Scene,
) -> None:
    (line,) = told(scene.ghost.printed())
    assert NEW + ": " in line and "update this node" in line
    assert len(told(scene.newer.printed(), scene.ghost.address)) == 1


def test_a_beacon_of_another_version_leads_to_a_dial_within_our_cluster_only() -> None:
    found = discovery.Discovery.__new__(discovery.Discovery)
    cluster, other = b"c" * wire.FINGERPRINT_BYTES, b"d" * wire.FINGERPRINT_BYTES
    vars(found).update(_port=7117, _is_comrade=True, _node=b"n" * 8, _own=set())
    vars(found).update(_hinted={}, _clusters=lambda: [cluster])
    for their_cluster, expected in ((cluster, [True]), (other, [])):
        beacon = discovery.BEACON.pack(
            *(wire.MAGIC, wire.VERSION + 1, discovery.Say.HERE, their_cluster),
            *(b"m" * 8, 7117),
        )
        hints = list(found._on_datagram(beacon, ("127.0.0.9", 1), 0.0))
        assert [hint.ours for hint in hints] == expected


def test_the_words_name_both_versions_and_the_older_end() -> None:
    assert re.search(
        "version 3 .* version 2; update this node", net.version_words(3, 2)
    )
    assert re.search(
        "version 2 .* version 3; update that node", net.version_words(2, 3)
    )
