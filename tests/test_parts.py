"""What is larger than a frame goes in parts: PURGED, and CHECK for ghosts."""

from typing import Any, Dict, List

import wire
from clairvoyants import Clairvoyants
from effects import (
    Add,
    Facts,
    Frame,
    GhostUp,
    Identity,
    LinkUp,
    NewTask,
    Persist,
    Send,
    Written,
)
from effects import Check as Look
from ghostnode import GhostNode
from node import Node
from record import Needs

A, B, G = "aa" * 8, "bb" * 8, "0123456789abcdef"
PART_BYTES_MAX = 128 << 10  # a heartbeat waits behind one


class Two:
    """Two comrades' cores and the frames between them, in order."""

    def __init__(self) -> None:
        self.now = 10.0
        self.nodes = {
            name: Node(
                Identity(name, name, name, "127.0.0.1"),
                *(2, 1 << 30, [], lambda regex, text: False),
            )
            for name in (A, B)
        }
        self.sent: List[Any] = []  # of all kinds: sender, kind, bytes
        for node in self.nodes.values():
            node.begin([], [], self.now)

    def link(self) -> None:
        made = [
            (name, self.nodes[name].step(LinkUp(other, other), self.now))
            for name, other in ((A, B), (B, A))
        ]
        for name, effects in made:
            self.do(name, effects)

    def do(self, name: str, effects: Any) -> None:
        queue = [(name, effect) for effect in effects]
        while queue:
            name, effect = queue.pop(0)
            made: List[Any] = []
            if isinstance(effect, Persist):
                written = Written(effect.seq, "")
                made = self.nodes[name].step(written, self.now)
                queue += [(name, one) for one in made]
            elif isinstance(effect, Send):
                kind = wire.Kind[effect.kind]
                payload = wire.encode(kind, effect.fields)
                self.sent.append((name, effect.kind, len(payload)))
                fields = wire.decode(kind, payload).fields
                frame = Frame(name, effect.kind, fields)
                made = self.nodes[effect.peer].step(frame, self.now)
                queue += [(effect.peer, one) for one in made]

    def pass_by(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            for name, node in self.nodes.items():
                self.do(name, node.tick(self.now)[0])

    def parts(self, name: str) -> List[int]:
        return [
            n for source, kind, n in self.sent if (source, kind) == (name, "PURGED")
        ]


def test_purged_that_fills_no_frame_is_told_in_parts_and_no_more_than_needed() -> None:
    two = Two()
    purged = {name: node.queue.purged for name, node in two.nodes.items()}
    for n in range(50000):  # tasks with ids of their users' own
        purged[A].add("%016x" % (n * 7919), 0, 0)
    for n in range(20000):  # one process' tasks, each second one
        purged[A].add(G, 2 * n + 1, 2 * n + 1)
    for n in range(3000):
        purged[B].add("%016x" % (n * 7919 + (n % 2)), 0, 0)
    two.link()
    two.pass_by(2.0)
    assert purged[A].intervals == purged[B].intervals
    assert two.nodes[A].queue.root == two.nodes[B].queue.root
    for name in (A, B):
        assert max(two.parts(name)) < PART_BYTES_MAX
    entries = 50000 + 20000
    assert sum(two.parts(A)) < 60 * entries
    # Of what A has told, B tells back one writer: that which came in several parts.
    assert sum(two.parts(B)) < 60 * (3000 + 20000)
    assert two.nodes[A].mesh.component == {A, B}
    two.sent.clear()
    two.pass_by(3.0)
    assert not two.parts(A) and not two.parts(B)
    two.nodes[A].queue.cover("%016x" % 5, 3, 4)
    two.pass_by(1.0)
    assert len(two.parts(A)) == 1 and not two.parts(B)
    assert two.nodes[A].queue.root == two.nodes[B].queue.root


def test_conditions_that_fill_no_frame_reach_a_ghost_in_parts() -> None:
    search = lambda regex, text: False  # noqa: E731
    node = Node(Identity(A, A, "a", "127.0.0.1"), 2, 1 << 30, [], search)
    node.begin([], [], 1.0)
    ghost = GhostNode(
        *(Identity(G, G, "g", "127.0.0.2"), 2, 1 << 30, []),
        Clairvoyants("", lambda: 0.5),
    )
    ghost.begin([], [], 1.0)
    ghost.step(Facts(frozenset(), 1 << 29, 1 << 30), 1.0)
    wanted = ["worker:has_file %04d%s" % (n, "x" * 900) for n in range(1500)]
    asked: List[str] = []
    sizes: List[int] = []

    def carry(made: List[Any]) -> None:
        for effect in made:
            if isinstance(effect, Persist):
                carry(node.step(Written(effect.seq, ""), 1.0))
            elif isinstance(effect, Send) and effect.peer == "g1":
                payload = wire.encode(wire.Kind[effect.kind], effect.fields)
                fields = wire.decode(wire.Kind[effect.kind], payload).fields
                if effect.kind == "CHECK":
                    sizes.append(len(payload))
                for one in ghost.step(Frame("k1", effect.kind, fields), 1.0):
                    if isinstance(one, Look):
                        asked[:] = one.conditions
                        held = frozenset(one.conditions)
                        ghost.step(Facts(held, 1 << 29, 1 << 30), 1.0)

    ghost.step(LinkUp("k1", A), 1.0)
    carry(node.step(GhostUp("g1", G), 1.0))
    offer: Dict[str, Any] = dict(name="g", address="127.0.0.2", cores=2, memory=1 << 30)
    offer.update(free_memory=None, free_disk=1 << 30, holds=[], tags=[])
    offer.update(draining=False, stuck=False)
    attach = dict(n=1, session=1, term=0, former=[], runs=[], offer=offer)
    carry(node.step(Frame("g1", "ATTACH", attach), 1.0))
    tasks = [NewTask("true", Needs(conditions=(text,)), "") for text in wanted]
    carry(node.step(Add(1, tasks, 1.0), 1.0))
    carry(node.tick(1.1)[0])
    assert sum(sizes) > wire.FRAME_BYTES_MAX and max(sizes) < PART_BYTES_MAX
    assert sorted(asked) == sorted(wanted)
