"""What comrade.py is: the process around a node.Node, its links and its relay.

Rules. Does with a core what comrade.py does, in its order, and nothing else; what it
has in common with a ghost is machines.Process. Links of ghosts are relays.py's.
"""

import json
from typing import TYPE_CHECKING, Any, Callable, Dict

from machines import DIAL_S, MEMORY, PERFORM, Host, Process
from relays import Desk
from wires import Wire

import effects as core
from node import Node

if TYPE_CHECKING:
    from world import World

REDIAL_S = (0.2, 2.0)


class Comrade(Process):
    """One life of a comrade."""

    performs: Dict[type, Callable[..., None]]

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.node_id = self.kept.get("node_id") or host.new_id()
        self.known: Dict[str, str] = json.loads(self.kept.get("members", "{}"))
        starts = int(self.kept.get("starts", "0")) + 1
        self.meta.update(node_id=self.node_id, starts=str(starts))
        self.node = self.new_node()
        self.desk = Desk(self)
        self.ids: Dict[str, str] = {}  # machine -> the node id that answered there

    def new_node(self) -> Node:
        """Make a core for this process."""
        host, starts = self.host, int(self.meta["starts"])
        me = core.Identity(self.node_id, self.writer, host.name, host.address, starts)
        return Node(me, host.cores, MEMORY, (), lambda regex, text: regex in text)

    def load(self, node: Node) -> None:
        """Let a core take what the disk had."""
        node.files.update(self.host.files)
        node.load(self.rows(), self.found.meta)

    def begin(self) -> None:
        """Start from what the disk has."""
        world = self.world
        world.ledger.watch(self)
        self.load(self.node)
        world.ledger.on_recovered(self)
        self.node.begin(self.former, self.known, self.now)
        self.step(core.Sync(0))
        for name in world.hosts:
            if name != self.host.name:
                world.after(world.rng.uniform(0, 0.5), self.dial, name)
        self.tick_soon()

    def step(self, message: core.Message) -> None:
        """Give the core a message; what comrade.py gathers waits for the tick."""
        if not isinstance(message, core.GATHERED):
            super().step(message)
            return
        self.world.touch(self)
        self.node.take([message], self.now)
        self.tick_soon()

    def _look_after(self) -> None:
        known = {i: m.facts["address"] for i, m in self.node.mesh.members.items()}
        if known and known != self.known:
            self.known = known
            self.meta["members"] = json.dumps(self.known, sort_keys=True)

    # --- effects ------------------------------------------------------------------

    def _send(self, effect: core.Send) -> None:
        wire = self.wires.get(effect.peer)
        if effect.peer in self.desk:
            self.desk.send(effect.peer, effect.kind, effect.fields)
        elif wire is not None:
            wire.send(self, effect.kind, effect.fields)

    def _close_link(self, effect: core.CloseLink) -> None:
        wire = self.wires.get(effect.peer)
        if effect.peer in self.desk:
            self.desk.close(effect.peer)
        elif wire is not None:
            wire.close(self)
            self._redial(wire)

    def _acked(self, effect: core.Acked) -> None:
        if effect.ticket:  # 0 is the process's own Sync
            self.world.ledger.on_acked(self, effect)

    def _want_output(self, effect: core.WantOutput) -> None:
        """Outputs are empty here; outputs.py and its tests are about them."""

    # --- links --------------------------------------------------------------------

    def on_frame(self, wire: Wire, kind: str, fields: Dict[str, Any]) -> None:
        """Give the core what came."""
        self.step(core.Frame(wire.other(self).node_id, kind, fields))

    def on_end(self, wire: Wire, why: str) -> None:
        """A wire is gone, and not by our will."""
        self._redial(wire)
        self.step(core.LinkLost(wire.other(self).node_id, why))

    def is_linked(self, name: str) -> bool:
        """Say whether there is a wire to a machine."""
        return any(wire.other(self).host.name == name for wire in self.wires.values())

    def _redial(self, wire: Wire) -> None:
        name = wire.other(self).host.name
        self.world.after(self.world.rng.uniform(0.2, 0.5), self.dial, name)

    def dial(self, name: str) -> None:
        """Try to connect to a machine; go on trying while there is no link."""
        world, network, here = self.world, self.world.network, self.host.name
        if not self.is_alive() or self.is_linked(name):
            return
        there, pair = world.hosts[name], frozenset((name, here))
        is_open = not network.is_cut(here, name) and there.is_on
        if is_open and not self.is_paused and pair not in world.dialling:
            other, delay = there.process, 2 * network.latency(here, name)
            if other is None:
                refused = core.DialRefused(self.ids.get(name, name))
                world.after(delay, self.take, self.step, refused)
            elif not other.is_paused and delay <= DIAL_S:
                world.dialling.add(pair)
                wire = Wire(network, self, other)
                world.after(delay, _accept, world, wire, 1, pair)
        world.after(world.rng.uniform(*REDIAL_S), self.dial, name)


def _accept(world: "World", wire: Wire, side: int, pair: Any) -> None:
    """One end, then the other, has authenticated its peer."""
    process, other = wire.ends[side], wire.ends[1 - side]
    is_cut = world.network.is_cut(process.host.name, other.host.name)
    are_there = process.is_alive() and other.is_alive() and not process.is_paused
    if is_cut or not are_there:
        world.dialling.discard(pair)
        wire.close(other)
        return
    old = process.wires.get(other.node_id)
    if old is not None:
        old.close(process)
        process.step(core.LinkLost(other.node_id, "broken"))
    if not process.is_alive():
        world.dialling.discard(pair)
        return
    process.wires[other.node_id] = wire
    process.ids[other.host.name] = other.node_id
    process.step(core.LinkUp(other.node_id, other.writer))
    wire.open(process)
    if side == 1:
        delay = world.network.latency(process.host.name, other.host.name)
        world.after(min(delay, DIAL_S), _accept, world, wire, 0, pair)
    else:
        world.dialling.discard(pair)


Comrade.performs = {
    **PERFORM,
    core.Acked: Comrade._acked,
    core.CloseLink: Comrade._close_link,
    core.Send: Comrade._send,
    core.WantOutput: Comrade._want_output,
}
