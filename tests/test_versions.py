"""Nodes of two versions of the wire: neither works with the other, and both say why.

The newer ones run a copy of the program whose wire.VERSION is greater by one.
"""

import re
import shutil
import time
from pathlib import Path
from typing import Iterator, List

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


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Copy the program, of the next version."""
    skip = shutil.ignore_patterns(".*", "tests", "__pycache__")
    copy = tmp_path / "newer"
    shutil.copytree(str(CHECKOUT), str(copy), ignore=skip)
    text = (copy / "wire.py").read_text()
    line = "VERSION = %d\n"
    assert text.count(line % wire.VERSION) == 1
    (copy / "wire.py").write_text(
        text.replace(line % wire.VERSION, line % (wire.VERSION + 1))
    )
    return copy


@pytest.fixture
def nodes(program: Path) -> Iterator[List[Member]]:
    port = free_port([OLD, NEW])
    older = Member(OLD, port, [NEW])
    newer = Member(NEW, port, [OLD], program=program)
    try:
        older.start()
        newer.start()
        yield [older, newer]
    finally:
        older.close()
        newer.close()


def told(text: str) -> List[str]:
    return [line for line in text.splitlines() if "Leoronic's protocol" in line]


def test_two_versions_say_at_both_ends_which_has_which_and_what_to_do_once(
    nodes: List[Member],
) -> None:
    older, newer = nodes
    for node in nodes:
        until("it is told", lambda: told(node.printed()))  # noqa: B023
    time.sleep(QUIET_S)
    one, two = wire.VERSION, wire.VERSION + 1
    (at_older,) = told(older.printed())
    assert NEW + ": " + THEIRS % (two, one) + "update this node" in at_older
    (at_newer,) = told(newer.printed())
    assert OLD + ": " + THEIRS % (one, two) + "update that node" in at_newer
    for node in nodes:  # each serves on alone
        task = node.add("echo alone")
        assert node.wait(task) == 0 and len(node.members()) == 1


def test_a_ghost_of_another_version_says_so_once_and_so_does_its_comrade(
    nodes: List[Member], tmp_path: Path
) -> None:
    newer = nodes[1]
    ghost = Ghost(tmp_path, newer, 1, [NEW])
    ghost.start()
    try:
        until("the ghost tells", lambda: told(ghost.printed()))

        def told_at_comrade() -> List[str]:
            return [line for line in told(newer.printed()) if ghost.address in line]

        until("its comrade tells", told_at_comrade)
        time.sleep(QUIET_S)
        (line,) = told(ghost.printed())
        assert NEW + ": " in line and "update this node" in line
        assert len(told_at_comrade()) == 1
    finally:
        ghost.close()


def test_a_beacon_of_another_version_leads_to_a_dial_within_our_cluster_only() -> None:
    found = discovery.Discovery.__new__(discovery.Discovery)
    cluster, other = b"c" * wire.FINGERPRINT_BYTES, b"d" * wire.FINGERPRINT_BYTES
    vars(found).update(
        _port=7117, _cluster=cluster, _is_comrade=True, _node=b"n" * 8, _own=set()
    )
    vars(found).update(_hinted={})
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
