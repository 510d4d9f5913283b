"""Whom to dial: which addresses are known, looked for, and told to the user.

Reason for this file beside links.py: which address is dialled when is a concern of its
own, with bounds of its own; links.py is about who answers there.

Rules. No TCP, nothing of the core. `Targets` and `Sweep` do no I/O at all; `Lookout`
owns the beacons' sockets and exists only with discovery on; `OwnAddress` owns a socket
on which the kernel tells of new addresses, and sends nothing.

How it works. A `Target` is an address. What a user, a peer or the disk has named is
dialled for ever; what a beacon or the sweep has hinted at is dialled a few times and
forgotten unless somebody proves himself there. Who waited longest is dialled first.
The own address is watched too, as a router may give another one (FAULTS 41).

Invariants. However many addresses strangers make up: ADDRESSES_MAX are known, hints
take HINT_DIALS_MAX of the slots and no named address's place. Names are never resolved.
"""

import socket
import sys
from typing import Callable, Dict, Iterator, List, Optional, Set, Tuple

import discovery
import net
from wire import End

DIALS_MAX = 8  # under way at once: old machines have slow networks too
HINT_DIALS_MAX = 4  # of these to addresses from which nobody has proved himself yet
HINT_TRIES = 3  # dials in vain to a beacon's address; the next beacon brings it back
STRANGE_S, STRANGE_MAX = 150.0, 16  # of another version: so long, so many are told of
TELL_INTERVAL_S = 1.0  # between lines about strangers (FAULTS 42)
OTHER_COOKIE_S = 1.0  # a cookie that was refused may be followed by one that counts
ADDRESSES_MAX = 300  # known at once, besides the user's
PUT_OFF_S = 10.0  # before the next dial to who can't be linked as things are
STEADY_S = 2.0  # a link that held so long is dialled anew at once
LONELY_SWEEP_S = 30.0  # without any peer for so long: try the own /24, slowly
SWEEP_STEP_S = 0.5  # one address at a time: 253 take two minutes
SWEEP_REST_S = 900.0  # before the next round
# Linux's numbers: the socket option's family, and the groups of its messages.
NETLINK_ROUTE, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0, 0x10, 0x40
NETLINK_BYTES = 65536  # more than any message; what is in them isn't looked at
PUT_OFF = (End.SELF, End.WRONG_COOKIE, End.WRONG_VERSION, End.NOT_OURS)

assert LONELY_SWEEP_S > discovery.BEACON_LONELY_S  # broadcasts come first
assert SWEEP_STEP_S * HINT_DIALS_MAX > net.DIAL_TIMEOUT_S  # a sweep finds slots free


def is_unicast(address: str) -> bool:
    """Say whether it is one host's IPv4 address; a name would block, and ask a DNS."""
    try:
        packed = socket.inet_pton(socket.AF_INET, address)
    except (OSError, TypeError, ValueError):
        return False
    return 0 < packed[0] < 224


class Teller:
    """Tells the user about others, neither the same twice nor at any rate."""

    def __init__(self, clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._clock = clock
        self._say = say
        self._said: Set[Tuple[str, str]] = set()
        self._said_at = float("-inf")
        self._refused: Dict[str, float] = {}  # address -> when its cookie was
        self._noted: Dict[str, Tuple[float, str]] = {}  # address -> when, why

    def once(self, about: str, what: str, is_noted: bool = False) -> None:
        """Say this unless it was said, or something else just now; note it."""
        now = self._clock()
        if is_noted:
            self._noted.pop(about, None)
            self._noted[about] = (now, what)
            if len(self._noted) > STRANGE_MAX:
                del self._noted[next(iter(self._noted))]
        is_new = (about, what) not in self._said and len(self._said) < ADDRESSES_MAX
        if is_new and now >= self._said_at + TELL_INTERVAL_S:
            self._said.add((about, what))
            self._said_at = now
            self._say("%s: %s" % (about, what))

    def noted(self) -> Dict[str, str]:
        """Give the addresses that were noted lately, and why."""
        recent = self._clock() - STRANGE_S
        return {a: why for a, (at, why) in self._noted.items() if at >= recent}

    def refuse(self, address: str, now: float) -> None:
        """Note another cookie; it is told unless the next one counts."""
        if len(self._refused) < ADDRESSES_MAX:
            self._refused.setdefault(address, now)

    def forgive(self, address: str) -> None:
        """Somebody there has proved himself."""
        self._refused.pop(address, None)

    def tick(self, now: float) -> Optional[float]:
        """Tell of other cookies; give the next time."""
        for address, at in list(self._refused.items()):
            if now >= at + OTHER_COOKIE_S:
                del self._refused[address]
                self.once(address, End.WRONG_COOKIE.value)
        return min((at + OTHER_COOKIE_S for at in self._refused.values()), default=None)


class Target:
    """An address that may be dialled; `tries` is left for a hint, None: for ever."""

    __slots__ = (
        "failures",
        "is_named",
        "is_scene",
        "link",
        "next_at",
        "owner",
        "tries",
        "verdict",
    )

    def __init__(self, tries: Optional[int] = None, is_named: bool = False) -> None:
        self.tries = tries
        self.is_named = is_named  # by the user
        self.failures = 0
        self.next_at = 0.0
        self.link: Optional[net.Link] = None  # a dial under way
        self.owner = ""  # the node id that answered there last
        self.is_scene = False  # its last link was to here
        self.verdict: Optional[End] = None  # of the last dial since then


class Targets:
    """The addresses that are known, and when each is to be dialled."""

    def __init__(self, peers: List[str], own: str, luck: Callable[[], float]) -> None:
        self.all = {a: Target(is_named=True) for a in peers if a != own}
        self._own = own
        self._luck = luck

    def move(self, own: str) -> None:
        """Dial this address no longer: it has become the own one."""
        self._own = own
        self.all.pop(own, None)

    def add(self, address: str, tries: Optional[int] = None) -> Optional[Target]:
        """Give the target of an address; None if it is none, or there are too many."""
        known = self.all.get(address)
        if known is not None:
            if tries is None:
                known.tries = None
            return known
        if address == self._own or not is_unicast(address):
            return None
        if len(self.all) >= ADDRESSES_MAX and not self._drop_one(tries is None):
            return None
        self.all[address] = Target(tries)
        return self.all[address]

    def _drop_one(self, any_kind: bool) -> bool:
        """Forget whoever answers least; for a hint, no other address has to go."""
        idle = [
            (target.tries is not None, target.failures, address)
            for address, target in self.all.items()
            if target.link is None and not target.is_named
            if target.tries is not None or (any_kind and target.failures)
        ]
        if idle:
            del self.all[max(idle)[2]]
        return bool(idle)

    def due(self, now: float, linked: Dict[str, net.Link]) -> List[Tuple[str, Target]]:
        """Give those to dial now, the longest waiting first, if slots are free."""
        busy = [target for target in self.all.values() if target.link is not None]
        free = DIALS_MAX - len(busy)
        hints = HINT_DIALS_MAX - sum(target.tries is not None for target in busy)
        chosen: List[Tuple[str, Target]] = []
        for address, target in sorted(self.all.items(), key=lambda at: at[1].next_at):
            is_hint = target.tries is not None
            if len(chosen) >= free or now < target.next_at:
                break
            if target.link is None and target.owner not in linked:
                if not is_hint or hints > 0:
                    chosen.append((address, target))
                    hints -= is_hint
        return chosen

    def next_at(self, now: float, linked: Dict[str, net.Link]) -> Optional[float]:
        """Give the time of the next dial; who waits for a slot needs none."""
        return min(
            (
                target.next_at
                for target in self.all.values()
                if target.link is None
                if target.owner not in linked and target.next_at > now
            ),
            default=None,
        )

    def on_ended(self, link: net.Link, now: float) -> Optional[Target]:
        """Plan the next dial if this link was the last one; give its target."""
        target = self.all.get(link.address)
        if target is None or target.link is not link:
            return None
        target.link, target.verdict = None, link.ended
        target.failures += 1
        is_vain = link.ended in PUT_OFF
        target.next_at = now + (PUT_OFF_S if is_vain else self._delay(target))
        if target.tries is not None:
            target.tries -= 1
            if target.tries <= 0:
                del self.all[link.address]
        return target

    def on_met(self, link: net.Link, owner: str) -> str:
        """Note who has proved himself at an address; give whose death that proves."""
        target = self.add(link.address)
        if target is None:
            return ""
        former = target.owner if target.is_scene and target.owner != owner else ""
        target.owner = owner
        if target.link is link:
            target.link = None
        if former:
            target.is_scene = False
            its = [other for other in self.all.values() if other.owner == former]
            former = "" if any(other.verdict is None for other in its) else former
        return former

    def on_lost(self, link: net.Link, owner: str, now: float) -> None:
        """A node's link is gone: dial it, at once unless links to it don't hold."""
        is_steady = now >= link.since + STEADY_S
        scene = self.add(link.address)
        if scene is not None:
            scene.owner = owner
        for target in self.all.values():
            if target.owner == owner:
                target.is_scene, target.verdict = target is scene, None
                target.failures = 0 if is_steady else target.failures + 1
                target.next_at = now + (0.0 if is_steady else self._delay(target))

    def failing(self, linked: Set[str], owners: Set[str]) -> List[Tuple[str, str]]:
        """Give the addresses that can't be had, and how the last dial ended there.

        Hints don't count, nor an address of a node that is linked by another.
        """
        return [
            (address, target.verdict.name)
            for address, target in sorted(self.all.items())
            if target.verdict is not None and target.tries is None
            if address not in linked and target.owner not in owners
        ]

    def is_dead(self, owner: str) -> bool:
        """Say whether it refuses where its link was, and isn't elsewhere either."""
        its = [target for target in self.all.values() if target.owner == owner]
        is_refused = any(t.is_scene and t.verdict is End.REFUSED for t in its)
        return is_refused and all(target.verdict is not None for target in its)

    def put_off(self, address: str, now: float, delay: float) -> None:
        """Dial an address later: who answers there can't be linked now."""
        target = self.all.get(address)
        if target is not None:
            target.next_at = max(target.next_at, now + delay)

    def _delay(self, target: Target) -> float:
        return net.redial_delay(target.failures, self._luck())


class OwnAddress:
    """Says when this machine's address has changed: the kernel tells, nothing polls.

    Only Linux does that; elsewhere there is no descriptor, and a restart is needed.
    """

    def __init__(self, look: Callable[[], str]) -> None:
        self._look = look
        self._sock = self._open()

    @staticmethod
    def _open() -> Optional[socket.socket]:
        if sys.platform != "linux":
            return None
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE)
        except OSError:
            return None  # a container that forbids it
        # Routes as well: the default one comes after the address.
        sock.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))
        return sock

    def fileno(self) -> int:
        """Return the descriptor to read from; -1 if there is none."""
        return self._sock.fileno() if self._sock is not None else -1

    def close(self) -> None:
        """Hear nothing any more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def on_readable(self, own: str, is_lonely: bool) -> str:
        """Take in what the kernel told; give the address to move to, or ''."""
        try:
            while self._sock is not None and self._sock.recv(NETLINK_BYTES):
                pass
        except OSError:
            pass  # all is read; or there was too much to tell: look all the same
        return self.choose(own, is_lonely)

    def choose(self, own: str, is_lonely: bool) -> str:
        """Give the address to move to, or ''.

        One that links hold on to is kept as long as the machine has it: a VPN that
        comes up must not tear a cluster apart. Loopback is where nobody is met.
        """
        found = self._look()
        if found == own or found.startswith("127.") or not is_unicast(found):
            return ""
        return found if is_lonely or not is_here(own) else ""


def is_here(address: str) -> bool:
    """Say whether this machine has that address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


class Sweep:
    """Tries the own /24, as some networks swallow broadcasts: only without any peer."""

    def __init__(self, line: Callable[[], Iterator[str]]) -> None:
        self._make = line
        self._line: Iterator[str] = iter(())
        self.due: Optional[float] = None

    def tick(self, now: float, is_lonely: bool) -> str:
        """Give the address whose turn it is, or ''; look at `due` then."""
        if not is_lonely:
            self.due = None
            return ""
        if self.due is None:
            self.due, self._line = now + LONELY_SWEEP_S, self._make()
        if now < self.due:
            return ""
        address = next(self._line, "")
        if not address:
            self._line = self._make()
        self.due = now + (SWEEP_STEP_S if address else SWEEP_REST_S)
        return address


class Lookout:
    """Beacons and the sweep: addresses that nobody has named (discovery is on)."""

    def __init__(
        self,
        beacons: discovery.Discovery,
        sweep: Sweep,
        targets: Targets,
        watch: Callable[[int, Callable[[], None], None], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._beacons, self._sweep, self._targets = beacons, sweep, targets
        self._watch, self._unwatch = watch, unwatch
        self._is_hearing = False
        self.heard: Set[str] = set()  # addresses whose broadcasts reach this node

    def tick(
        self, now: float, is_lonely: bool, on_read: Callable[[], None]
    ) -> List[Optional[float]]:
        """Say that we are here, try the next address; give the times of the next."""
        due = self._beacons.tick(now, lonely=is_lonely)
        was_hearing, self._is_hearing = self._is_hearing, self._beacons.want_read(now)
        if self._is_hearing and not was_hearing:
            self._watch(self._beacons.fileno(), on_read, None)
        elif was_hearing and not self._is_hearing:
            self._unwatch(self._beacons.fileno())
        address = self._sweep.tick(now, is_lonely)
        if address:
            self._targets.add(address, 1)
        return [due, self._sweep.due]

    def on_readable(self, now: float) -> List[str]:
        """Take beacons in; give the addresses of other clusters."""
        others = []
        for hint in self._beacons.on_readable(now):
            if not hint.ours:
                others.append(hint.address)
                continue
            target = self._targets.add(hint.address, HINT_TRIES)
            if len(self.heard) < ADDRESSES_MAX:
                self.heard.add(hint.address)
            if target is not None:
                target.next_at = min(target.next_at, now)  # it has just come up
        return others

    def close(self) -> None:
        """Hear and say nothing any more."""
        if self._is_hearing:
            self._unwatch(self._beacons.fileno())
        self._beacons.close()
