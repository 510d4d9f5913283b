"""What ghost.py is: the process around a ghostnode.GhostNode, its dials and its link.

Rules. Does with a core what ghost.py does, in its order, and nothing else; what it has
in common with a comrade is machines.Process.

How it works. A dial reaches a comrade's main as a stranger's handshake does: refused
where nothing listens, lost where it is cut or off, late where main is paused. Once it
has proved itself, main hands it to its relay (relays.py). While it has no clairvoyant
the ghost asks on the LAN who is there, as discovery.py does.
"""

import hashlib
import json
from typing import Any, Dict, List, Optional, Tuple

from machines import DIAL_S, MEMORY, PERFORM, WRITE_SEQ, Host, Process
from wires import Wire

import effects as core
from clairvoyants import Clairvoyants
from ghost import FORMER_MAX
from ghostnode import GhostNode
from wire import End

HANDSHAKE_S = 3.0  # then a comrade that was reached has taken too long
ASK_S = 2.0  # who is there is asked so often


class Ghost(Process):
    """One life of a ghost."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.former = self.former[-FORMER_MAX:]
        self.meta["writers"] = " ".join([*self.former, self.writer])
        self.choice = Clairvoyants(host.wanted, self.world.rng.random)
        me = core.Identity(self.writer, self.writer, host.name, host.address)
        self.node = GhostNode(me, host.cores, MEMORY, host.tags, self.choice)
        self.node_id = self.writer
        self._dialled: Optional[Tuple[int, str]] = None
        self._dials = 0

    def begin(self) -> None:
        """Start from what the disk has."""
        self.world.ledger.attachments.watch(self)
        self.node.files.update(self.host.files)
        self.node.load(self.rows(), self.former)
        self.world.ledger.attachments.on_recovered(self)
        self._persist(core.Persist(WRITE_SEQ, [], {}))
        remembered = json.loads(self.kept.get("comrades", "[]"))
        self.node.begin((), remembered, self.now)
        self._look_around()
        self.tick_soon()

    def _look_after(self) -> None:
        known = json.dumps(sorted(self.choice.known))
        if self.node.clairvoyant and self.meta.get("comrades") != known:
            self.meta["comrades"] = known
            self._persist(core.Persist(WRITE_SEQ, [], {}))

    # --- whom to go to ------------------------------------------------------------

    def _look_around(self) -> None:
        """Ask on the LAN who is there, while there is no clairvoyant."""
        if not self.is_alive():
            return
        if not self.node.peer and not self.is_paused:
            for name, host in sorted(self.world.hosts.items()):
                process = host.process
                is_cut = self.world.network.is_cut(self.host.name, name)
                if process is not None and not process.is_paused and not is_cut:
                    delay = 2 * self.world.network.latency(self.host.name, name)
                    found = core.Found([host.address])
                    self.world.after(delay, self.take, self.step, found)
        self.world.after(ASK_S, self._look_around)

    def _probe(self, effect: core.Probe) -> None:
        host = self.world.host_at(effect.address)
        is_cut = self.world.network.is_cut(self.host.name, host.name)
        is_there = host.process is not None and not is_cut
        delay = DIAL_S
        if host.is_on and not is_cut:
            delay = 2 * self.world.network.latency(self.host.name, host.name)
        probed = core.Probed(effect.address, is_there and delay < DIAL_S)
        self.world.after(min(delay, DIAL_S), self.take, self.step, probed)

    def _dial(self, effect: core.Dial) -> None:
        world, host = self.world, self.world.host_at(effect.address)
        self._dials += 1
        number, here = self._dials, self.host.name
        self._dialled = (number, effect.address)
        delay = 2 * world.network.latency(here, host.name)
        if world.network.is_cut(here, host.name) or not host.is_on or delay > DIAL_S:
            world.after(DIAL_S, self.take, self._fail, number, End.SILENT)
        else:
            world.after(delay, self._reach, number, host)

    def _reach(self, number: int, host: Host) -> None:
        """The comrade's kernel has the connection; its main is to answer."""
        if host.process is None:
            self.take(self._fail, number, End.REFUSED)
            return
        self.world.after(HANDSHAKE_S, self.take, self._fail, number, End.LATE)
        host.process.take(self._prove, number, host.process)

    def _prove(self, number: int, comrade: Any) -> None:
        """This ghost has proved itself to a comrade."""
        world, here = self.world, self.host.name
        is_given_up = self._dialled is None or self._dialled[0] != number
        is_cut = world.network.is_cut(here, comrade.host.name)
        if is_given_up or is_cut or not self.is_alive():
            return
        wire = self.wires["k%d" % number] = comrade.desk.hand(self)
        delay = world.network.latency(comrade.host.name, here)
        world.after(delay, self.take, self._on_up, number, wire)

    def _on_up(self, number: int, wire: Wire) -> None:
        peer = "k%d" % number
        if self.wires.get(peer) is not wire:
            return
        if self._dialled is None or self._dialled[0] != number:
            wire.close(self)
            return
        if wire.is_closed[1 - wire.side(self)] and not wire.queues[wire.side(self)]:
            return  # Its machine is off: nothing more comes, but the time's end.
        self._dialled = None
        self.step(core.LinkUp(peer, wire.other(self).comrade.node_id))
        wire.open(self)

    def _fail(self, number: int, end: End) -> None:
        if self._dialled is not None and self._dialled[0] == number:
            address, self._dialled = self._dialled[1], None
            self.step(core.DialEnded(address, end.name))

    # --- the link -----------------------------------------------------------------

    def on_frame(self, wire: Wire, kind: str, fields: Dict[str, Any]) -> None:
        """Give the core what came; a BYE ends the link."""
        peer = next((name for name, one in self.wires.items() if one is wire), "")
        if kind == "BYE":
            wire.close(self)
            is_stopping = fields["why"] == "stopping"
            why = "stopping" if is_stopping else "closing"
            self.step(core.LinkLost(peer, why))
        else:
            self.step(core.Frame(peer, kind, fields))

    def on_end(self, wire: Wire, why: str) -> None:
        """The link is gone, and not by our will; `close` has forgotten its name."""
        peer = self.node.peer
        if peer and peer not in self.wires:
            self.step(core.LinkLost(peer, why))

    def _send(self, effect: core.Send) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            wire.send(self, effect.kind, effect.fields)
            if effect.kind == "BYE":
                wire.close(self)

    def _close_link(self, effect: core.CloseLink) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            wire.close(self)

    def output(self, run: str) -> List[Any]:
        """Give what a run printed: something that no other has."""
        return [len(run), hashlib.sha256(run.encode("ascii")).hexdigest()]

    def _push(self, effect: core.Push) -> None:
        wire = self.wires.get(effect.peer)
        if wire is not None:
            wire.send(self, "OUTPUT", {"digest": effect.digest})


Ghost.performs = {
    **PERFORM,
    core.CloseLink: Ghost._close_link,
    core.Dial: Ghost._dial,
    core.Probe: Ghost._probe,
    core.Push: Ghost._push,
    core.Send: Ghost._send,
}
