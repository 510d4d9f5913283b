"""A peer that has the cookie and is mad: what it says is set aside, the others go on.

Two real comrades; the third is this test, which speaks the protocol over real sockets.
"""

import json
import os
import re
import time
from typing import Any, Dict, Iterator, List

import pytest
from cluster import Member, await_component, await_equal, until
from desk import Client, Desk, request
from helpers import free_port
from strangers import Peer, Usage
from test_record import MALFORMED, good

import wire
from effects import Frame, GhostUp, LinkUp
from record import ATTEMPT_MAX, COUNTER_MAX, TERM_MAX
from wire import Kind

ONE, TWO, MAD = "127.13.0.1", "127.13.0.31", "127.13.0.32"
W = "0123456789abcdef"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LOG_BYTES_MAX = 200000


@pytest.fixture(scope="module")
def pair() -> Iterator[List[Member]]:
    port = free_port([ONE, TWO])
    with Member(ONE, port, [TWO]) as one, Member(TWO, port, [ONE]) as two:
        await_component([one, two])
        yield [one, two]
        for node in (one, two):
            log = node.home / "log"
            text = log.read_text() if log.exists() else ""
            assert "Traceback" not in text + node.printed(), node.told()
            assert not CONTROLS.search(text + node.printed())
            assert len(text) < LOG_BYTES_MAX
            assert len(max(text.splitlines(), key=len, default="")) < 2000


@pytest.fixture
def mad(pair: List[Member]) -> Iterator["Mad"]:
    one = Mad(pair)
    yield one
    one.peer.close()
    # Whatever it said: what is added at one side runs at the other.
    task = pair[0].add("echo on", "worker:is " + TWO)
    assert pair[0].wait(task) == 0 and pair[1].output(task) == b"on\n"
    await_equal(pair)


class Mad:
    """A comrade's end of a link that says what it is told to."""

    def __init__(self, pair: List[Member]) -> None:
        self.pair = pair
        self.usage = Usage(pair[0])
        self.peer = Peer(pair[0].port, MAD).join()

    def say(self, kind: Kind, fields: Dict[str, Any]) -> bool:
        """Say it, over a new link if need be; tell whether the link has survived."""
        return self._sent(wire.encode(kind, fields), kind)

    def say_bytes(self, kind: Kind, payload: bytes) -> bool:
        return self._sent(payload, kind)

    def _sent(self, payload: bytes, kind: Kind) -> bool:
        if self.peer.link.ended is not None:
            self.peer = Peer(self.pair[0].port, MAD).join()
        self.peer.say_payload(kind, payload)
        for _ in range(2):  # links answer before the core takes what came with it
            self.peer.say_payload(Kind.PING, b'{"n":77}')
            self.peer.until(lambda: self.peer.link.ended or self._is_answered())
            self.peer.heard.clear()
        return self.peer.link.ended is None

    def _is_answered(self) -> bool:
        return any(f == wire.Frame(Kind.PONG, {"n": 77}) for f in self.peer.heard)

    def records(self, *wires: Any) -> bool:
        return self.say(Kind.RECORDS, {"n": 1, "r": list(wires), "store": True})


def task(**changed: Any) -> Dict[str, Any]:
    """Make a record that would be a task, but for what is changed."""
    record = dict({"k": "1-" + os.urandom(8).hex(), "c": "true", "o": 1}, **changed)
    return dict({"by": "mad", "at": 1.0}, **record)


def _poison() -> Iterator[Any]:
    """Give the malformed records that can be a frame."""
    for field, value in MALFORMED:
        try:
            text = json.dumps(dict(good(), **{field: value}), allow_nan=False)
            wire.decode(Kind.PING, text.encode())
        except (TypeError, ValueError, RecursionError, wire.BadFrame):
            continue
        if len(text) < 200000 and field != "new":  # {1: 2} is sound as JSON
            yield json.loads(text)


def test_poison_records_are_set_aside_and_the_others_of_their_frame_taken(
    pair: List[Member], mad: Mad
) -> None:
    sound = [task(c="echo sound %d" % n) for n in range(3)]
    poison = list(_poison())
    assert len(poison) > 80
    half = len(poison) // 2
    assert mad.records(*poison[:half], *sound[:2])
    assert mad.records(*poison[half:], None, "x", 7, [], sound[2])
    until("the sound ones are here", lambda: len(pair[1].states()) >= 3)
    log = pair[0].home / "log"
    until("it is told", lambda: log.read_text().count("is set aside: ") >= 100)
    commands = sorted(row["command"] for row in pair[0].rows())
    assert commands == [one["c"] for one in sound]


BAD_PAYLOADS = {
    "NaN": b'{"n":NaN,"r":[],"store":false}',
    "Infinity": b'{"n":-Infinity}',
    "10,000 digits": b'{"n":%s}' % (b"9" * 10000),
    "100,000 deep": b'{"n":%s}' % (b"[" * 100000),
    "40 deep": b'{"n":%s1%s}' % (b"[" * 40, b"]" * 40),
    "twice": b'{"n":1,"n":2}',
    "not UTF-8": b'{"n":"\xff\xfe"}',
    "no object": b"[1,2]",
    "cut short": b'{"n":1',
    "nothing": b"",
    "values": b'{"n":[' + b"{}," * 200000 + b"0]}",
    "no such field": b"{}",
    "fields of other kinds": b'{"n":{},"r":"abc","store":[],"w":1,"t":7,"p":"x"}',
}


@pytest.mark.parametrize("name", sorted(BAD_PAYLOADS))
def test_a_frame_of_junk_costs_its_link_alone(mad: Mad, name: str) -> None:
    for kind in (Kind.RECORDS, Kind.MEMBER, Kind.HEARTBEAT):
        assert not mad.say_bytes(kind, BAD_PAYLOADS[name])
    assert mad.usage.grown_mb < 30


def test_an_unknown_kind_costs_its_link_and_unknown_fields_nothing(mad: Mad) -> None:
    link = mad.peer.link
    link._wire += link._seal.seal(200, b"{}")  # type: ignore[arg-type]  # on purpose
    mad.peer.until(lambda: mad.peer.link.ended)
    new = task(c="echo new", future={"a": [1, {"b": None}]})
    assert mad.say(Kind.RECORDS, {"n": 1, "r": [new], "store": False, "later": [1]})


def test_the_highest_numbers_there_are_stop_no_adding_and_no_granting(
    pair: List[Member], mad: Mad
) -> None:
    high = task(o=COUNTER_MAX, c="echo high", pri=1 << 31)
    lost = [W, COUNTER_MAX, COUNTER_MAX, 2, {"at": 1e12}]
    key = "%d.%d.%s.%d" % (ATTEMPT_MAX, TERM_MAX, W, COUNTER_MAX)
    assert mad.records(high, task(runs={key: lost}, c="echo lost", at=-1e12))
    assert mad.say(Kind.PURGED, {"w": {W: [[1, COUNTER_MAX]]}})
    until("both are done", lambda: _done(pair[1], "echo high", "echo lost"))


def _done(node: Member, *commands: str) -> bool:
    done = [row["command"] for row in node.rows() if row["state"] == "done"]
    return set(commands) <= set(done)


def test_contradictions_end_equal_at_all(pair: List[Member], mad: Mad) -> None:
    key = "1-" + os.urandom(8).hex()
    several = [task(k=key, c="echo %d" % n, o=n, cores=1 + n % 2) for n in range(9)]
    assert mad.records(*several)
    until("it is known", lambda: key[:10] in " ".join(pair[1].states()))
    rows = await_equal(pair)
    assert sum(row["id"].startswith(key[:10]) for row in rows) == 1


def strange_facts(node: str, writer: str) -> Dict[str, Any]:
    """Make facts that are within all bounds, and no pleasure to read."""
    facts: Dict[str, Any] = dict(id=node, writer=writer, starts=1, seq=1, role="x")
    facts.update(name="n\n" + NASTY, address="127.13.0.99", cores=1, memory=1)
    facts.update(free_memory=None, free_disk=1, holds=[], tags=["t" + NASTY])
    facts.update(draining=False, stuck=False, links=[], claim=None, ready=False)
    facts.update(dead=[], follows=node, call=0, heeds=["", 0], term=TERM_MAX)
    facts["stopping"] = False
    return facts


def test_facts_out_of_bounds_and_names_that_move_a_terminal(
    pair: List[Member], mad: Mad
) -> None:
    facts = strange_facts(mad.peer.me.node, mad.peer.me.writer)
    assert mad.say(Kind.MEMBER, facts)
    wrong: Dict[str, Any] = {"name": "x" * 100000, "seq": 1 << 60, "term": TERM_MAX + 1}
    wrong.update(tags=["t" * 1000] * 1000, links=[W] * 2000, id="\xe9" * 16)
    for field, value in wrong.items():
        assert not mad.say(Kind.MEMBER, dict(facts, **{"seq": 2, field: value}))
        mad.peer.close()
    for node in pair:
        code, out, err = node.sh("leoronic_nodes; leoronic_nodes --json >/dev/null")
        assert code == 0 and not CONTROLS.search((out + err).decode())
    until("it is lost", lambda: _state(pair[1], "127.13.0.99") in ("lost", ""))


def _state(node: Member, address: str) -> str:
    return str(node.members().get(address, {}).get("state", ""))


NASTY = "\x1b[2J\x07\u202e\x9b\r"
SHOWING = ["get_queue", "get_queue --json", "nodes", "nodes --json", "get_tags"]
SHOWING += ["why 1-", "why 2-", "why 3-", "wait --timeout 0.1s", "get_output 3-"]


def test_no_utility_prints_what_would_move_a_terminal() -> None:
    desk = Desk()
    desk.step(LinkUp(W, W))
    detail = dict(exit=1, cause="c" + NASTY, at=1.5, end=2.0, took=0.5, node=NASTY)
    wanted = ["worker:later " + NASTY]
    wires = [
        task(k="1-" + W, c="echo\n" + NASTY, by=NASTY, gu=NASTY),
        task(k="2-" + W, c="echo " + NASTY, **{"if": wanted}),
        task(k="3-" + W, c="echo", runs={"1.1.%s.1" % W: [W, 0, 0, 4, detail]}),
    ]
    desk.step(Frame(W, "RECORDS", {"n": 1, "r": wires, "store": False}))
    desk.step(Frame(W, "MEMBER", strange_facts(W, W)))
    assert len(desk.node.queue.records) == 3 and len(desk.node.members()) == 2
    for call in SHOWING:
        client = Client(desk, request(call.split()))
        for _ in range(3):
            desk.settle()
            desk.now += 1
        code, out, err, progress = client.answer
        assert code is not None, call
        shown = out.decode() + "".join(err + progress)
        assert not CONTROLS.search(shown) and "\u202e" not in shown, (call, shown)


@pytest.mark.parametrize("state", ["here", "away", "dead", "replaced"])
def test_no_comrade_is_a_ghost_whatever_is_said_of_it(state: str) -> None:
    desk = Desk()
    own = desk.node.me.writer
    desk.step(LinkUp(W, W))
    offer = dict(name="g", address="127.13.0.99", cores=9, memory=1, free_memory=1)
    offer.update(free_disk=1, holds=[], tags=[], draining=True)
    facts = dict(id=own, session=1, seq=9, at="ab" * 8, state=state, offer=offer)
    desk.step(Frame(W, "GHOST", facts))
    assert W in desk.node.mesh.links  # it may have passed on what another made up
    desk.step(GhostUp("g1", own))
    ask = dict(n=1, session=1, term=0, former=[], runs=[], offer=offer)
    desk.step(Frame("g1", "ATTACH", ask))
    assert not desk.node.ghosts.own and not desk.node.ghosts.where.known
    worker = desk.node.matcher.workers[own]
    assert worker is desk.node.worker and worker.cores == 4 and worker.name == "old1"


def test_a_mad_peer_costs_neither_memory_nor_time(pair: List[Member], mad: Mad) -> None:
    began = time.monotonic()
    text = "x" * 100000
    for n in range(30):
        assert mad.say(Kind.LEAF, {"n": n, "leaf": 1, "k": {text + str(n): text}})
        assert mad.say(
            Kind.ROUTE, {"kind": text, "fields": {}, "to": W, "hops": 1 << 60}
        )
    assert mad.usage.grown_mb < 10
    assert time.monotonic() - began < 20
