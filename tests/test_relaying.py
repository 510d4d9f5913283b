"""A comrade's side of its relay, with the relay's own threads and no comrade.

The relay's process is a stand-in (a script in a folder that is the `program`): it tells
the test what it was told and lives until main hangs up. What the real one would say is
said by relay.Exchange, the very class it uses. The clock is a number.
"""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

import relaying
import wire
from effects import Frame, GhostUp, LinkLost
from relay import WAIT_S, Exchange

STAND_IN = """
import os, socket

def main(_):
    sock = socket.socket(fileno=0)
    told = sock.recv(65536)
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "new"), "wb") as out:
        out.write(told)
    os.rename(out.name, out.name[:-3] + "told")
    while sock.recv(65536):
        pass
"""
PATIENCE_S = 10.0  # for what takes a moment
MOMENT_S = 0.3  # in which what must not come would have come
DIGEST = "d" * 64
GHOST = wire.Role.GHOST


class Handed:
    """A link of a ghost that has proved itself, as far as a relay is given it."""

    ended = None
    address = "127.0.0.31"

    def __init__(self, writer: str, given: List[Any]) -> None:
        self.shake = wire.Handshake(False, b"c" * 32, wire.Hello(writer, writer, GHOST))
        self.peer = wire.Hello(writer, writer, GHOST)
        self.given = given

    def give(self) -> Any:
        """Give socket and keys, or None: what this side said isn't sent out yet."""
        return self.given.pop(0)


class Main:
    """What comrade.py is to relaying.Relay."""

    def __init__(self, top: Path) -> None:
        self.now = 100.0
        self.happened: List[Any] = []  # steps and kept outputs, in order
        self.changes: List[bool] = []
        self.cookies: List[Tuple[str, bytes]] = []  # that ghosts have proved to have
        self.watched: Dict[int, Callable[[], None]] = {}
        self.program = top / "program"
        self.program.mkdir()
        (self.program / relaying.SCRIPT).write_text(STAND_IN)
        home = top / "home"
        home.mkdir()
        seams = relaying.Seams(
            step=self.happened.append,
            clock=lambda: self.now,
            wake=lambda: None,
            keep=lambda outputs: self.happened.append(("keep", outputs)),
            watch=self._watch,
            unwatch=lambda fd: self.watched.pop(fd) and None,
            log=lambda text: None,
            on_change=self.changes.append,
            on_link=lambda peer, cookie: self.cookies.append((peer, cookie)),
        )
        self.relay = relaying.Relay(str(home), str(self.program), None, seams)
        self.ends: List[socket.socket] = []

    def _watch(self, fd: int, on_read: Callable[[], None], on_write: None) -> None:
        self.watched[fd] = on_read

    def hand(self, writer: str = "a" * 16) -> str:
        """Hand a ghost over; give its link's name."""
        ours, theirs = socket.socketpair()
        self.ends.append(ours)
        link = Handed(writer, [(theirs, (bytes(32), bytes(32)))])
        self.relay.hand(link)  # type: ignore[arg-type]
        up = self.happened.pop()
        assert isinstance(up, GhostUp) and up.writer == writer
        assert self.cookies[-1] == (up.peer, b"c" * 32) and up.peer in self.relay.peers
        return up.peer

    def connect(self) -> Exchange:
        """Be the relay that was started last."""
        told = self.program / "told"
        self.until(told.exists)
        facts = json.loads(told.read_text())
        told.unlink()
        return Exchange(facts, lambda: None)

    def until(self, holds: Callable[[], Any]) -> Any:
        """Let the loop turn until it holds."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.relay.tick(self.now)
            found = holds()
            if found:
                return found
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def turn_for_a_moment(self) -> None:
        deadline = time.monotonic() + MOMENT_S
        while time.monotonic() < deadline:
            self.relay.tick(self.now)
            time.sleep(0.01)

    def end_relay(self) -> None:
        """Kill the relay's process, and notice it as the loop does."""
        os.kill(self.relay.pid, signal.SIGKILL)
        (on_end,) = self.watched.values()
        on_end()


@pytest.fixture
def main(tmp_path: Path) -> Iterator[Main]:
    made = Main(tmp_path)
    yield made
    made.relay.stop()
    for end in made.ends:
        end.close()


def number(peer: str) -> int:
    return int(peer[1:])


def test_the_relay_is_started_with_the_first_ghost_and_once(main: Main) -> None:
    assert main.relay.pid == 0 and main.relay.tick(main.now) is None
    first = main.hand()
    pid = main.relay.pid
    second = main.hand("b" * 16)
    assert pid and main.relay.pid == pid and main.changes == [True]
    assert first != second and first in main.relay and second in main.relay


def test_what_a_ghost_says_is_heard_and_what_is_for_it_is_told(main: Main) -> None:
    peer = main.hand()
    relay = main.connect()
    relay.tell("frame", number(peer), "OFFER", {"offer": {}})
    main.until(lambda: main.happened)
    assert main.happened == [Frame(peer, "OFFER", {"offer": {}})]
    main.relay.send(peer, "GOT", {"n": 7})
    main.relay.close(peer, "moved")
    assert peer not in main.relay
    told: List[Tuple[Any, ...]] = []
    main.until(lambda: told.extend(relay.take()) or len(told) == 2)
    link = number(peer)
    assert told == [("send", link, "GOT", {"n": 7}), ("close", link, "moved")]


def test_an_output_is_kept_before_the_record_that_names_it_is_heard(main: Main) -> None:
    peer = main.hand()
    relay = main.connect()
    relay.tell("output", number(peer), DIGEST, b"said")
    relay.tell("frame", number(peer), "RECORDS", {"n": 1})
    main.until(lambda: len(main.happened) == 2)
    assert main.happened[0] == ("keep", [(DIGEST, b"said")])
    assert main.happened[1] == Frame(peer, "RECORDS", {"n": 1})


def test_a_ghost_whose_link_has_ended_is_lost_for_the_reason_that_is_told(
    main: Main,
) -> None:
    peer = main.hand()
    relay = main.connect()
    relay.tell("lost", number(peer), "eof")
    relay.tell("frame", number(peer), "OFFER", {})  # nobody's any more
    main.until(lambda: main.happened)
    main.turn_for_a_moment()
    assert main.happened == [LinkLost(peer, "eof")]
    assert peer not in main.relay


def test_a_main_that_is_stuck_answers_the_relay_nothing(main: Main) -> None:
    main.hand()
    relay = main.connect()
    at = relay.answered_at
    relay.tell("frame", 0, "OFFER", {})
    time.sleep(WAIT_S + MOMENT_S)  # its thread lives, its loop doesn't turn
    assert relay.answered_at == at
    main.until(lambda: relay.answered_at > at)


def test_what_an_ended_relay_still_says_isnt_heard(main: Main) -> None:
    peer = main.hand()
    former = main.connect()
    main.end_relay()
    assert main.happened == [LinkLost(peer, "relay")]
    main.happened.clear()
    new = main.hand("b" * 16)
    main.connect()
    for link in (peer, new):
        former.tell("frame", number(link), "OFFER", {})
        former.tell("lost", number(link), "eof")
    main.turn_for_a_moment()
    assert main.happened == [] and new in main.relay


def test_what_was_for_an_ended_relay_isnt_told_to_the_next(main: Main) -> None:
    peer = main.hand()
    main.relay.send(peer, "GOT", {"n": 1})
    fetched: List[bool] = []
    main.relay.fetch(peer, DIGEST, 5, fetched.append)
    main.end_relay()
    assert fetched == [False] and main.changes == [True, False]
    main.relay.send(peer, "GOT", {"n": 2})  # the core may not know it yet
    main.happened.clear()
    new = main.hand("b" * 16)
    main.relay.send(new, "GOT", {"n": 3})
    told: List[Tuple[Any, ...]] = []
    relay = main.connect()
    main.until(lambda: told.extend(relay.take()) or told)
    assert told == [("send", number(new), "GOT", {"n": 3})]
    assert main.changes == [True, False, True]


def test_an_output_is_fetched_once_the_relay_says_so(main: Main) -> None:
    peer = main.hand()
    relay = main.connect()
    fetched: List[bool] = []
    main.relay.fetch(peer, DIGEST, 5, fetched.append)
    told: List[Tuple[Any, ...]] = []
    main.until(lambda: told.extend(relay.take()) or told)
    ((verb, link, digest, size, ticket),) = told
    assert (verb, link, digest, size) == ("fetch", number(peer), DIGEST, 5)
    for _ in range(2):  # said twice it is heard once
        relay.tell("fetched", link, ticket, True)
    main.until(lambda: fetched)
    main.turn_for_a_moment()
    assert fetched == [True]
    main.relay.fetch("g999", DIGEST, 5, fetched.append)  # no such ghost
    assert fetched == [True, False]


def test_the_relay_ends_when_there_was_no_ghost_for_a_while(main: Main) -> None:
    peer = main.hand()
    pid = main.relay.pid
    main.relay.close(peer, "moved")
    assert main.relay.tick(main.now) == main.now + relaying.IDLE_S
    main.now += relaying.IDLE_S - 1
    main.relay.tick(main.now)
    again = main.hand("b" * 16)  # one that comes in time keeps it
    main.now += 2
    main.relay.tick(main.now)
    assert main.relay.pid == pid and main.changes == [True]
    main.relay.close(again, "moved")
    main.relay.tick(main.now)
    main.now += relaying.IDLE_S
    assert main.relay.tick(main.now) is None
    assert main.relay.pid == 0 and main.changes == [True, False]
    assert not os.path.exists("/proc/%d" % pid)  # and it is waited for


def test_a_ghost_whose_socket_is_full_is_handed_over_later(main: Main) -> None:
    ours, theirs = socket.socketpair()
    main.ends.append(ours)
    link = Handed("a" * 16, [None, (theirs, (bytes(32), bytes(32)))])
    main.relay.hand(link)  # type: ignore[arg-type]
    assert main.relay.pid == 0 and main.happened == []
    main.relay.tick(main.now)
    assert main.relay.pid and main.happened == [GhostUp("g1", "a" * 16)]
