"""A comrade's links to the others: who listens, who dials, which of two links stays.

Reason for this file beside net.py and comrade.py: net.py knows one link at a time; here
is what a comrade does with all of them, between the wire and the core.

Rules. No decision about tasks or members: what happens becomes a message to the node
(LinkUp, LinkLost, DialRefused, Frame), what the node wants is sent. Frames that carry
files and outputs go to transfer.py and never reach the core. One loop drives it all:
`tick` in each round, and the functions given to `watch` in between.

How it works. Addresses come from LEORONIC_PEERS, from broadcasts, from members' facts
and from the disk; whoever isn't linked is dialled, again and again with growing pauses,
and at once when a link broke (a refusal then proves that the process is dead). Both
ends dial, so twins happen: of two links to one process the one dialled by the lower
node id stays, of two dialled by the same the later. Both ends know which that is: the
nonce of a dial begins with its number.

The same node id from another process: if the old one answers a ping, the newcomer is a
clone (a copied state directory), is told so and draws a new id; else it replaces it.
When two with one id meet each other, the one that was started last draws a new one.
Until that is clear the newcomer isn't read, so nothing that it says is lost.

Who refuses a cookie is tried with the next that counts (jar.py). Whose own was refused
here, or named by a beacon, has a moment to come with another before the user is told.

Invariants
1. The core sees at most one link to a node, and LinkLost before the next LinkUp.
2. With discovery off nothing is sent to an address that no user and no peer has named.
3. A descriptor is unwatched before it is closed: its number may be another's at once.
4. What strangers and beacons can do is bounded: sockets, dials, addresses, lines told.
5. DialRefused comes from the address at which the lost link was, once the others that
   the node had don't answer either: a stale address must not prove a death.
"""

import os
import struct
from _random import Random  # `random` brings 0.1 MiB more, hashlib among it
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import discovery
import net
import wire
from addresses import (
    PUT_OFF_S,
    Lookout,
    OwnAddress,
    Sweep,
    Target,
    Targets,
    Teller,
)
from effects import DialRefused, Frame, Identity, LinkLost, LinkUp, Message
from jar import Jar
from wire import End, Kind, Role

PING_S = 1.0  # a clone's original has this long to answer
CLONE_S = 5.0  # whoever is up for longer is the original, of two with one id
PAUSE_S = 2.5  # woken so much too late: this process was stopped, the peers were not

OWN = frozenset((Kind.BYE, Kind.PING, Kind.PONG))  # they end here
DIAL_NUMBER = struct.Struct("!Q")


class Doubt(NamedTuple):
    """A newcomer has the id of `old`, which was sent the ping `n`."""

    old: net.Link
    n: int
    asked: float


class Seams(NamedTuple):
    """What comrade.py does for this file."""

    watch: Callable[[int, Callable[[], object], Optional[Callable[[], None]]], None]
    unwatch: Callable[[int], None]
    step: Callable[[Message], None]
    clock: Callable[[], float]
    say: Callable[[str], None]  # to the user and the log
    on_bulk: Callable[[str, wire.Frame], None]  # of no concern to the core
    on_clone: Callable[[], None]  # we are a clone: draw a new id
    on_ghost: Callable[[net.Link], None]  # one has proved itself: it is the relay's


def rank(link: net.Link, me: str) -> Tuple[bool, bytes]:
    """Give what decides between twins, in the same way at both ends."""
    assert link.peer is not None
    dialler, other = (me, link.peer.node) if link.dialled else (link.peer.node, me)
    return (dialler < other, link.order)


class Links:
    """All links of one comrade."""

    def __init__(
        self, me: Identity, jar: Jar, port: int, peers: List[str], seams: Seams
    ) -> None:
        self.me = me
        self.jar = jar
        self.seams = seams
        self.links: Dict[str, net.Link] = {}  # node id -> the link the core knows
        self.targets = Targets(peers, me.address, Random().random)
        self._lookout: Optional[Lookout] = None
        self._own: Optional[OwnAddress] = None
        self._all: Set[net.Link] = set()  # every link not yet known to have ended
        self._doubts: Dict[net.Link, Doubt] = {}  # by newcomer; it isn't watched
        self._watched: Dict[net.Link, bool] = {}  # for writing, too
        self._teller = Teller(seams.clock, seams.say)
        self._count = 0  # dials and pings
        self._due: Optional[float] = None
        self._has_stepped = False
        self._began = seams.clock()
        self._listener = self._listen(me.address, port)
        self.port = self._listener.port
        seams.watch(self._listener.fileno(), self._on_listener, None)

    def discover(
        self,
        interfaces: Callable[[], List[discovery.Interface]] = discovery.lan_interfaces,
        sweep: Callable[[str], Iterator[str]] = discovery.sweep,
    ) -> None:
        """Look for others on the LAN, and let them find us."""
        self._lookout = Lookout(
            discovery.Discovery(
                self.port, self.me.node_id, self.jar.clusters, interfaces=interfaces
            ),
            Sweep(lambda: sweep(self.me.address)),
            self.targets,
            self.seams.watch,
            self.seams.unwatch,
        )

    def follow(self, look: Callable[[], str], moved: Callable[[str], Message]) -> None:
        """Keep to this machine's address, of which a router may give another."""
        own = self._own = OwnAddress(look)

        def on_news() -> None:
            address = own.on_readable(self.me.address, not self.links)
            if address and self.move(address):
                self._step(moved(address))

        if own.fileno() >= 0:
            self.seams.watch(own.fileno(), on_news, None)

    def move(self, address: str) -> bool:
        """Listen at another address; links from the former one carry nothing now."""
        try:
            listener = self._listen(address, self.port)
        except OSError as problem:
            self._teller.once(address, "can't listen there: %s" % problem.strerror)
            return False
        self.seams.unwatch(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self.seams.watch(listener.fileno(), self._on_listener, None)
        self.seams.say("this machine's address is %s now" % address)
        self.me = self.me._replace(address=address)
        self.targets.move(address)
        for link in list(self._all):
            link.close()
        self._sweep(self.seams.clock())
        return True

    def know(self, addresses: Set[str]) -> None:
        """Take addresses that members have told; they are dialled."""
        for address in sorted(addresses):
            self.targets.add(address)

    def is_hopeful(self) -> bool:
        """Say whether some address hasn't been tried yet, or is being tried."""
        return any(t.link or not t.failures for t in self.targets.all.values())

    def health(self) -> Dict[str, Any]:
        """Give what leoronic_doctor asks: who is heard, what can't be dialled."""
        linked = {link.address for link in self.links.values()}
        return {
            "strange": self._teller.noted(),
            "hears": sorted(self.links),
            "failing": self.targets.failing(linked, set(self.links)),
            "broadcasts": self._lookout and sorted(self._lookout.heard),
            "up": self.seams.clock() - self._began,
            "port": self.port,
        }

    # --- the loop -----------------------------------------------------------------

    def tick(self, now: float) -> Optional[float]:
        """Do what is due; give the time of the next."""
        self._has_stepped = False
        self._forgive(now)
        for link in list(self._all):
            link.tick(now)
        self.flush()  # likely so; to ask the selector takes a turn
        self._sweep(now)
        self._settle(now)
        times: List[Optional[float]] = [self._teller.tick(now)]
        if self._lookout is not None:
            times += self._lookout.tick(now, not self.links, self._on_beacons)
        self._dial(now)
        times += [link.tick(now) for link in self._all]
        times += [doubt.asked + PING_S for doubt in self._doubts.values()]
        times.append(self.targets.next_at(now, self.links))
        for link in list(self._all):
            self._watch(link)
        self._due = min((t for t in times if t is not None), default=None)
        return now if self._has_stepped else self._due  # the core may have, at once

    def _forgive(self, now: float) -> None:
        """If this process was stopped itself it accuses nobody (DESIGN 7)."""
        if self._due is not None and now > self._due + PAUSE_S:
            for link in self._all:
                link.last_heard = now
            for new, doubt in self._doubts.items():
                self._doubts[new] = doubt._replace(asked=now)

    def _step(self, message: Message) -> None:
        self._has_stepped = True
        self.seams.step(message)

    def _on_beacons(self) -> None:
        assert self._lookout is not None
        now = self.seams.clock()
        for address in self._lookout.on_readable(now):
            self._teller.refuse(address, now)

    def _on_listener(self) -> None:
        now = self.seams.clock()
        new = self._listener.on_readable(now)
        self._sweep(now)
        for link in new:
            self._take(link)

    def _take(self, link: net.Link) -> None:
        fd = link.fileno()
        link.release = lambda: self._unwatch(link, fd)
        self._all.add(link)
        self._watch(link)

    def _watch(self, link: net.Link) -> None:
        was, wants = self._watched.get(link), link.want_write
        if link.ended is None and link not in self._doubts and was is not wants:
            self._watched[link] = wants
            write = (lambda: self._on_write(link)) if wants else None
            self.seams.watch(link.fileno(), lambda: self._on_read(link), write)

    def _unwatch(self, link: net.Link, fd: int) -> None:
        self._watched.pop(link, None)
        self.seams.unwatch(fd)

    def _on_read(self, link: net.Link) -> bool:
        now = self.seams.clock()
        try:
            was_stranger = link.is_stranger
            frames = link.on_readable(now)
            if was_stranger and link.peer is not None:
                self._on_peer(link, now)
            for frame in frames:
                self._on_frame(link, frame)
        except Exception:
            link.close()  # what it said is half taken in: begin anew (STYLE 9)
            raise
        self._sweep(now)
        is_up = link.ended is None and not was_stranger
        return is_up and all(frame.kind is Kind.HEARTBEAT for frame in frames)

    def _on_write(self, link: net.Link) -> None:
        if link.ended is None:  # its own `on_read` of this round may have closed it
            link.on_writable(self.seams.clock())
        self._sweep(self.seams.clock())

    def _on_frame(self, link: net.Link, frame: wire.Frame) -> None:
        peer = link.peer.node if link.peer is not None else ""
        why = frame.fields.get("why")
        if frame.kind is Kind.BYE:
            if why == "clone" and not self._stays(link):
                self.seams.on_clone()
            link.close(End.STOPPING if why == "stopping" else End.CLOSING)
        elif self.links.get(peer) is not link:
            pass  # a twin that has to go, or one that the core has closed
        elif frame.kind in wire.BULK or frame.kind in wire.POST:
            self.seams.on_bulk(peer, frame)
        elif frame.kind is Kind.PING:
            self.send(peer, "PONG", {"n": frame.fields.get("n")})
        elif frame.kind is Kind.PONG:
            self._on_pong(link, frame.fields.get("n"))
        else:
            self._step(Frame(peer, frame.kind.name, frame.fields))

    def _sweep(self, now: float) -> None:
        """Forget the links that have ended, and say so to the core."""
        for link in [link for link in self._all if link.ended is not None]:
            assert link.ended is not None
            self._all.discard(link)
            self._doubts.pop(link, None)
            link.close()
            if link.ended is End.GIVEN:
                continue
            self._on_ended(link, link.ended, now)
            peer = link.peer.node if link.peer is not None else ""
            if self.links.get(peer) is link:
                del self.links[peer]
                self.targets.on_lost(link, peer, now)
                self._step(LinkLost(peer, net.LOST.get(link.ended, "broken")))
            elif link.peer is not None:
                self.targets.put_off(link.address, now, net.REDIAL_MAX_S)

    # --- dialling -----------------------------------------------------------------

    def _shake(self, dialled: bool, cookie: bytes = b"") -> wire.Handshake:
        hello = wire.Hello(self.me.node_id, self.me.writer, Role.COMRADE)
        self._count += 1
        nonce = DIAL_NUMBER.pack(self._count)
        nonce += os.urandom(wire.NONCE_BYTES - len(nonce))
        roles = (Role.COMRADE,) if dialled else (Role.COMRADE, Role.GHOST)
        others = {} if dialled else self.jar.counting()
        cookie = cookie or self.jar.newest
        return wire.Handshake(dialled, cookie, hello, roles, nonce, others)

    def _listen(self, address: str, port: int) -> net.Listener:
        known = self.targets.all
        return net.Listener(
            address, port, lambda: self._shake(False), lambda other: other in known
        )

    def _dial(self, now: float) -> None:
        for address, target in self.targets.due(now, self.links):
            self._call(address, target, self.jar.newest, now)

    def _call(self, address: str, target: Target, cookie: bytes, now: float) -> None:
        shake, own = self._shake(True, cookie), self.me.address
        try:
            link = target.link = net.dial(address, self.port, shake, now, own)
        except OSError:  # no descriptor is free
            self.targets.put_off(address, now, net.REDIAL_MAX_S)
            return
        if link.ended is None:
            self._take(link)
        else:
            self._on_ended(link, link.ended, now)

    def _on_ended(self, link: net.Link, end: End, now: float) -> None:
        if end is End.WRONG_COOKIE:
            target = self.targets.all.get(link.address)
            other = self.jar.after(link.shake.cookie)
            if target is not None and target.link is link and other:
                self._call(link.address, target, other, now)
                return
            self._teller.refuse(link.address, now)
        elif end is End.WRONG_VERSION:
            self._teller.once(link.address, link.why, True)
        target = self.targets.on_ended(link, now)
        if target is not None and self.targets.is_dead(target.owner):
            self._step(DialRefused(target.owner))

    # --- who is at the other end --------------------------------------------------

    def _on_peer(self, link: net.Link, now: float) -> None:
        """A link is authenticated: choose between it and what was there."""
        assert link.peer is not None
        self._teller.forgive(link.address)
        if link.peer.role is Role.GHOST:
            self.seams.on_ghost(link)
            return
        former = self.targets.on_met(link, link.peer.node)
        self._sweep(now)
        if former and former not in self.links:
            self._step(DialRefused(former))  # another answers where its link was
        if link.peer.node == self.me.node_id:
            self._on_own_id(link, now)
        else:
            self._meet(link, link.peer, now)

    def _meet(self, link: net.Link, who: wire.Hello, now: float) -> None:
        old = self.links.get(who.node)
        if old is None or old.peer is None:
            self._use(link, who)
        elif old.peer.writer == who.writer:
            if rank(old, self.me.node_id) > rank(link, self.me.node_id):
                link.bye("closing")
            else:
                self._replace(old, link, who, "closing")
        else:
            self._count += 1
            old.send(Kind.PING, {"n": self._count})
            self._unwatch(link, link.fileno())
            self._doubts[link] = Doubt(old, self._count, now)

    def _on_own_id(self, link: net.Link, now: float) -> None:
        assert link.peer is not None
        self.targets.put_off(link.address, now, PUT_OFF_S)
        is_first = self.me.writer < link.peer.writer
        if not self._is_old():
            if not is_first:  # a toss; if it is for us, the other's BYE says what then
                self.seams.on_clone()
                link.bye("closing")
        elif is_first:
            link.bye("clone")
        else:
            link.send(Kind.BYE, {"why": "clone"})  # and hear whether it is old as well

    def _stays(self, link: net.Link) -> bool:
        """Say whether of two with one id, both old, this one keeps it."""
        who = link.peer
        if who is None or who.node != self.me.node_id:
            return False
        return self.me.writer < who.writer and self._is_old()

    def _is_old(self) -> bool:
        """Say whether this process surely isn't the clone that was started just now."""
        return self.seams.clock() >= self._began + CLONE_S

    def _replace(self, old: net.Link, new: net.Link, who: wire.Hello, why: str) -> None:
        del self.links[who.node]
        old.bye("closing")
        self._step(LinkLost(who.node, why))
        self._use(new, who)

    def _use(self, link: net.Link, who: wire.Hello) -> None:
        self.links[who.node] = link
        self._step(LinkUp(who.node, who.writer))
        self.jar.on_link(who.node, link.shake.cookie)

    def _on_pong(self, old: net.Link, n: Any) -> None:
        """The original lives: who came with its id is a clone."""
        for new, doubt in list(self._doubts.items()):
            if doubt.old is old and doubt.n == n:
                del self._doubts[new]
                new.bye("clone")

    def _settle(self, now: float) -> None:
        """Let those in whose predecessors have ended or don't answer."""
        for new, doubt in list(self._doubts.items()):
            who = new.peer
            if new not in self._doubts or who is None or new.ended is not None:
                continue
            if self.links.get(who.node) is not doubt.old:
                del self._doubts[new]
                self._meet(new, who, now)
            elif now >= doubt.asked + PING_S:
                del self._doubts[new]
                self._replace(doubt.old, new, who, "eof")

    # --- what the core wants ------------------------------------------------------

    def send(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        """Send a frame of the core in the next `tick`; a BYE ends the link then."""
        link = self.links.get(peer)
        if link is None or link.ended is not None:
            return
        try:
            if kind == "BYE":
                link.bye(fields["why"])
            else:
                fields = dict(fields)
                body = fields.pop("body", b"")  # of a letter
                link.send(Kind[kind], fields, body)
        except ValueError as problem:  # the record of a peer, a little too long
            self._teller.once(peer, "%s can't be sent: %s" % (kind, problem))

    def close(self, peer: str, why: str) -> None:
        """End a link; the core knows it already."""
        link = self.links.pop(peer, None)
        if link is not None:
            self.targets.on_lost(link, peer, self.seams.clock())
            if why == "kept away":
                self.targets.put_off(link.address, self.seams.clock(), PUT_OFF_S)
            if why == "silent":
                link.close(End.SILENT)
            else:
                link.bye("closing")

    def flush(self) -> bool:
        """Send what can be sent at once; say whether all is out."""
        now = self.seams.clock()
        met = [link for link in self._all if link.peer is not None]
        for link in met:
            if link.owes:
                link.on_writable(now)
        return not any(link.owes for link in met)

    def stop(self) -> None:
        """Listen no more and close everything."""
        self.seams.unwatch(self._listener.fileno())
        self._listener.close()
        if self._lookout is not None:
            self._lookout.close()
        if self._own is not None and self._own.fileno() >= 0:
            self.seams.unwatch(self._own.fileno())
            self._own.close()
        for link in list(self._all):
            link.close()
