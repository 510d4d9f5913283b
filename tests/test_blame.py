"""Peers that are mad: how long one may hold up granting, and when it is kept away."""

import random
from typing import Any, Dict, List

import pytest
from desk import Client, Desk, request

import blame
from blame import AWAY_FIRST_S, AWAY_MOST_S, FREE_FAULTS, NODES_MAX, Blame
from effects import CloseLink, DialRefused, Frame, LinkLost, LinkUp, Log, Send
from hands import NO_ROOM
from record import Phase, encode

M, MW = "ab" * 8, "cd" * 8
CLAIMED: Dict[str, Any] = dict(claim=[9, 2], call=1, heeds=[MW, 1], term=9, ready=True)


class Scene(Desk):
    """A comrade, and a peer that says what a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: List[str] = []
        self.log: List[str] = []
        self.told: List[Send] = []
        self.beats = self.grants = 0
        self.root = ""  # of the peer's queue; "": the same as ours

    def perform(self, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, CloseLink):
                self.closed.append(effect.why)
            elif isinstance(effect, Log):
                self.log.append(effect.text)
            elif isinstance(effect, Send):
                self.told.append(effect)
        super().perform(effects)

    def up(self) -> bool:
        """A link of the peer comes up; say whether it is let in."""
        count = len(self.closed)
        self.step(LinkUp(M, MW))
        return len(self.closed) == count

    def hear(self, kind: str, **fields: Any) -> None:
        self.step(Frame(M, kind, fields))

    def join(self, seq: int, **facts: Any) -> None:
        """Let the peer be in the component: all parts are in, the links are told."""
        for part in (1, 2, 3):
            self.hear("MARK", p=part)
            self.hear("MARKED", p=part)
        me = self.node.me.node_id
        told: Dict[str, Any] = dict(id=M, writer=MW, starts=1, seq=seq, role="comrade")
        told.update(name="m", address="10.0.0.9", cores=1, memory=1, free_memory=None)
        told.update(free_disk=1, holds=[], tags=[], draining=True, stuck=False)
        told.update(links=[me], claim=None, ready=False, dead=[], follows=M, call=0)
        told.update(heeds=[MW, 0], term=0, stopping=False)
        self.hear("MEMBER", **dict(told, **facts))

    def pass_by(self, seconds: float) -> None:
        """Let time pass as a loop does: a turn each half a second at most."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 0.5, end)
            self.settle()

    def coordinate(self) -> None:
        """Let the peer be who coordinates: it claims to, and all follow it."""
        assert self.up()
        self.join(1, **CLAIMED)
        assert self.node.mesh.facts["follows"] == M

    def beat(self) -> None:
        """Let the peer say that it has what is here, and a second pass."""
        self.beats += 1
        root = self.root or "%x" % self.node.queue.root
        self.hear("HEARTBEAT", n=self.beats, heard=self.beats - 1, root=root)
        self.pass_by(1.0)

    def grant(self, worker: str, phase: Phase, **needs: Any) -> None:
        """Let the peer grant all that waits to a worker."""
        wires = [encode(record) for record in self.node.queue.in_order()]
        detail = {} if phase is Phase.GRANTED else {"at": 1.5}
        waiting = [wire for wire in wires if not wire.get("runs")]
        for wire in waiting:
            self.grants += 1
            run = "1.9.%s.%d" % (MW, self.grants)
            wire["runs"] = {run: [worker, 0, 0, int(phase), detail]}
        self.hear("RECORDS", n=self.grants, r=waiting, store=False)

    def add_one(self) -> None:
        Client(self, request(["add_task", "1K", "1", "1K", "true", "", "", "true"]))
        self.settle()


def test_one_that_dials_again_and_again_and_never_settles_holds_up_three_times() -> (
    None
):
    scene = Scene()
    began, granted = scene.now, 0.0
    for n in range(10):
        assert scene.up()
        if n == 0:
            scene.add_one()
        scene.pass_by(2.9)
        if scene.started and not granted:
            granted = scene.now - began
        scene.step(LinkLost(M, "eof"))
    assert 0 < granted <= 4 * 2.9 + 1
    # One that settles is waited for again.
    assert not scene.node.mesh.blame.may_hold_up(M)
    assert scene.up()
    scene.join(1)
    scene.step(LinkLost(M, "eof"))
    assert scene.node.mesh.blame.may_hold_up(M)


def test_bad_frames_keep_a_peer_away_for_a_growing_time_and_others_not() -> None:
    scene = Scene()
    away: List[float] = []
    for _ in range(FREE_FAULTS + 4):
        assert scene.up()
        scene.hear("RECORDS", n="no number", r=7)
        assert scene.closed.pop() == "bad frame"
        left = scene.node.mesh.blame.away(scene.now)
        away += [seconds for _, _, seconds in left]
        while scene.node.mesh.blame.is_away(M, scene.now):
            assert not scene.up() and scene.closed[-1] == "kept away"
            scene.step(LinkUp("ef" * 8, "ef" * 8))
            assert "ef" * 8 in scene.node.mesh.links
            scene.step(LinkLost("ef" * 8, "eof"))
            scene.now += 1
    assert away == [AWAY_FIRST_S * 2**n for n in range(4)]
    assert sum("is kept away for" in text for text in scene.log) == 4


def test_one_that_never_follows_who_coordinates_holds_up_a_minute_then_is_away() -> (
    None
):
    scene = Scene()
    assert scene.up()
    scene.join(1)
    scene.add_one()
    seconds = 0
    while not scene.started:
        seconds += 1
        assert seconds < 2 * blame.STUBBORN_S
        scene.hear("HEARTBEAT", n=seconds, heard=seconds - 1, root="0")
        scene.pass_by(1.0)
    assert seconds >= blame.STUBBORN_S and scene.closed == [
        "doesn't follow who coordinates"
    ]
    assert scene.node.mesh.blame.is_away(M, scene.now)
    assert not scene.up()


def test_one_that_follows_a_moment_later_is_not_to_blame() -> None:
    scene = Scene()
    assert scene.up()
    for seconds in range(3 * int(blame.STUBBORN_S)):
        mine = scene.node.mesh.facts
        is_late = seconds % 50 < 45
        follows = {} if is_late else dict(follows=mine["follows"], heeds=mine["heeds"])
        scene.join(seconds, **follows)
        scene.hear("HEARTBEAT", n=seconds, heard=seconds - 1, root="0")
        scene.pass_by(1.0)
    assert not scene.closed and M in scene.node.mesh.component


def test_one_that_coordinates_and_grants_nothing_holds_up_a_minute_then_is_away() -> (
    None
):
    scene = Scene()
    scene.coordinate()
    scene.add_one()
    began = scene.now
    while not scene.started:
        scene.beat()
        assert scene.now - began < 2 * blame.IDLE_S
    assert scene.now - began >= blame.IDLE_S and len(scene.closed) == 1
    assert scene.node.mesh.blame.is_away(M, scene.now) and not scene.up()


def grants_now_and_then(scene: Scene, second: int) -> None:
    if second % 20 == 5:
        scene.grant(MW, Phase.STARTED)
        scene.add_one()


def is_not_followed(scene: Scene, second: int) -> None:
    follows = M if second % 40 < 20 else "x" * 16
    scene.join(second + 2, **dict(CLAIMED, follows=follows))


def has_no_room(scene: Scene, second: int) -> None:
    scene.ask("drain")


def has_another_queue(scene: Scene, second: int) -> None:
    scene.root = "77"


@pytest.mark.parametrize(
    "hinder", [grants_now_and_then, is_not_followed, has_no_room, has_another_queue]
)
def test_one_that_has_a_reason_to_grant_nothing_is_not_to_blame(hinder: Any) -> None:
    scene = Scene()
    scene.coordinate()
    scene.add_one()
    for second in range(3 * int(blame.IDLE_S)):
        hinder(scene, second)
        scene.beat()
    assert not scene.closed and not scene.started


def test_what_one_grants_to_itself_and_never_ends_runs_elsewhere_once_it_is_gone() -> (
    None
):
    scene = Scene()
    scene.coordinate()
    for _ in range(4):
        scene.add_one()
    scene.grant(MW, Phase.STARTED)
    for _ in range(300):  # It may be a long task.
        scene.beat()
    assert not scene.closed and not scene.started
    assert scene.states() == ["running"] * 4
    scene.step(LinkLost(M, "eof"))
    scene.step(DialRefused(M))
    scene.pass_by(3.0)  # D12
    assert len(scene.started) == 4


@pytest.mark.parametrize("concurrency, most", [("true", 8), ("false", 1)])
def test_one_that_grants_more_than_there_is_room_for_gets_it_back(
    concurrency: str, most: int
) -> None:
    scene = Scene()  # of 4 cores; as many may wait for one
    scene.coordinate()
    for n in range(20):
        scene.ask("add_task", "1K", "1", "1K", concurrency, "", "", "echo %d" % n)
    scene.grant("a" * 16, Phase.GRANTED)
    scene.settle()
    assert len(scene.started) == most
    runs = [run for r in scene.node.queue.in_order() for run in r.runs.values()]
    why = [run.detail["why"] for run in runs if run.phase is Phase.RETURNED]
    assert why == [NO_ROOM] * (20 - most)


def test_one_that_says_it_keeps_what_it_does_not_is_one_copy_of_several() -> None:
    scene = Scene()
    honest = "ef" * 8
    assert scene.up()
    scene.join(1)
    scene.step(LinkUp(honest, honest))
    for part in (1, 2, 3):
        scene.step(Frame(honest, "MARK", {"p": part}))
        scene.step(Frame(honest, "MARKED", {"p": part}))
    client = scene.client("add_task", "1K", "1", "1K", "true", "", "", "true")
    scene.settle()
    assert client.answer.code is None  # It waits for a second disk.
    frames = [t for t in scene.told if t.kind == "RECORDS" and t.fields["store"]]
    assert {frame.peer for frame in frames} == {M, honest}
    (lie,) = [frame for frame in frames if frame.peer == M]
    scene.hear("STORED", n=lie.fields["n"], ok=True)
    scene.settle()
    assert client.answer.code == 0
    # What the user was told is true without it: it is on this disk, and on its way.
    assert any(key for effect in scene.persisted for key, _ in effect.rows)
    assert not scene.node.replica.is_sent(honest)


def test_what_is_remembered_is_bounded_and_forgotten() -> None:
    one, dice = Blame(), random.Random(1)
    for n in range(5000):
        node_id = "%016x" % dice.randrange(1000)
        one.note(node_id, float(n))
        one.is_stubborn(node_id, dice.random() < 0.5, float(n))
        one.is_idle(node_id, dice.random() < 0.5, n, float(n))
        one.on_link_lost(node_id, dice.random() < 0.5)
        assert len(one._known) <= NODES_MAX
    most = max(one.note("m", 1e6) for _ in range(40))
    assert most == AWAY_MOST_S and one.is_away("m", 1e6 + AWAY_MOST_S - 1)
    assert one.note("m", 1e6 + blame.FORGET_S) == 0  # it was quiet for so long
