"""What goes wrong in a seed: a random subset of all faults, at random times.

How it works. A seed has ghosts (ghostfaults.py) or, mostly, none; and it is one of
three kinds. In a *healthy* one at most one node at a time dies, stops, joins or comes
back, nobody is paused for 2.5 s, all stay connected: D2 must hold to the letter. In a
*paused* one a node is stopped for 4 to 11 s, maybe between deciding and sending, and D2
holds all the same (FAULTS 11 allows a duplicate): nobody counts as gone within 20 s of
silence. In a *rough* one anything of ROUGH may happen, at once. Then recovery.py heals
a core of it for good and demands liveness.

Each method of Faults is one fault; it is undone later, or when the core is healed.
"""

import random
from typing import Any, Callable, Dict, Iterable, List

from disks import EIO, FULL
from ghostfaults import GHOSTS, GhostFaults, start_ghosts
from ledger import Broken
from recovery import recover
from shapes import SHAPES
from world import World

from record import File

FAULTS_S = 12.0  # faults happen for this long
MONTH_S = 31 * 86400.0  # longer than finished tasks are kept (purge.py)
JUMPS_S = (1.0, 5.0, 60.0, 4000.0)  # below and above each patience of the core


class Faults(GhostFaults):
    """The faults of one seed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.names = sorted(world.hosts)
        self.ghosts = sorted(world.ghosts)
        self.victim = self.rng.choice(self.names)
        if self.ghosts and self.rng.random() < 0.5:
            self.victim = self.rng.choice(self.ghosts)

    def one(self) -> str:
        return self.rng.choice(self.names)

    def shuffled(self) -> List[str]:
        return self.rng.sample(self.names, len(self.names))

    def later(self, most: float, call: Callable[..., None], *args: Any) -> None:
        self.world.after(self.rng.uniform(0.05, most), call, *args)

    # --- the network --------------------------------------------------------------

    def cut(self) -> None:
        a, b = self.rng.sample(self.names, 2)
        self.world.cut(a, b)
        self.later(9, self.world.mend, a, b)

    def one_way(self) -> None:
        a, b = self.rng.sample(self.names, 2)
        self.world.cut_way(a, b)
        self.later(9, self.world.mend, a, b)

    def partition(self) -> None:
        group = self.rng.sample(self.names, self.rng.randint(1, len(self.names) - 1))
        self.world.partition(group)
        self.later(12, self.mend_all)

    def shape(self) -> None:
        """Any shape that has a name, with the nodes in any order."""
        shape = SHAPES[self.rng.choice(sorted(SHAPES))]
        self.world.shape(shape(self.shuffled()))
        self.later(12, self.mend_all)

    def mend_all(self) -> None:
        self.world.mend_all()

    def flap(self) -> None:
        """A link that breaks, and comes back, and breaks."""
        a, b = self.rng.sample(self.names, 2)
        for i in range(3):
            self.world.after(i * 2.5, self.world.break_links, a, b)

    def blink(self) -> None:
        """A link that is cut and mended, for longer and shorter than is noticed."""
        a, b = self.rng.sample(self.names, 2)
        at, period = 0.0, self.rng.uniform(0.5, 5)
        while at < 10:
            self.world.after(at, self.world.cut, a, b)
            self.world.after(at + period, self.world.mend, a, b)
            at += 2 * period

    def swizzle(self) -> None:
        """Clog some nodes one after the other; unclog them in another order."""
        chosen = self.rng.sample(self.names, self.rng.randint(1, len(self.names)))
        at = 0.0
        for name in chosen:
            at += self.rng.uniform(0, 2)
            self.world.after(at, self.world.partition, [name])
        for name in self.rng.sample(chosen, len(chosen)):
            at += self.rng.uniform(0, 2)
            self.world.after(at, self.unclog, name)

    def unclog(self, name: str) -> None:
        for other in self.names:
            if other != name:
                self.world.mend(name, other)

    def slow_network(self) -> None:
        self.world.network.delay = (0.001, self.rng.choice([0.1, 0.5]))

    def slow_way(self) -> None:
        a, b = self.rng.sample(self.names, 2)
        self.world.network.slow[a, b] = (0.05, self.rng.choice([0.5, 2.0]))

    def loss(self) -> None:
        self.world.network.loss = self.rng.uniform(0.05, 0.3)

    def echo(self) -> None:
        self.world.network.echo = self.rng.uniform(0.05, 0.5)

    def late(self) -> None:
        """What a broken link has lost comes with the next one."""
        self.world.network.late = self.rng.uniform(0.3, 1)
        self.flap()

    # --- processes and machines ---------------------------------------------------

    def kill(self) -> None:
        name = self.one()
        self.world.kill(name)
        self.later(6, self.world.start, name)

    def die(self) -> None:
        self.world.kill(self.one())

    def power_off(self) -> None:
        name = self.one()
        self.world.power_off(name)
        self.later(9, self.world.start, name)

    def blackout(self) -> None:
        """All lose power at once, and come back one by one."""
        for name in self.names:
            self.world.power_off(name)
            self.later(6, self.world.start, name)

    def stop(self) -> None:
        name = self.one()
        self.world.stop(name)
        self.later(8, self.world.start, name)

    def pause(self) -> None:
        name = self.one()
        self.world.pause(name)
        self.later(11, self.world.resume, name)

    def nap(self) -> None:
        name = self.one()
        self.world.pause(name)
        self.later(2.3, self.world.resume, name)

    def suspend(self) -> None:
        name = self.one()
        self.world.suspend(name)
        self.later(11, self.world.wake, name)

    def jump(self) -> None:
        self.world.hosts[self.one()].jump(self.rng.choice(JUMPS_S))

    def month(self) -> None:
        """It is a month later, everywhere: finished tasks are purged."""
        for name in self.names:
            self.world.hosts[name].jump(MONTH_S)

    def refuse(self) -> None:
        self.world.hosts[self.one()].refusal = 0.5

    # --- disks --------------------------------------------------------------------

    def lose_disk(self) -> None:
        name = self.one()
        self.world.kill(name)
        self.world.wipe(name)
        self.later(5, self.world.start, name)

    def flip(self) -> None:
        name = self.one()
        self.world.kill(name)
        self.world.flip(name, self.rng.choice([1, 1, 5]))
        self.later(5, self.world.start, name)

    def full_disk(self) -> None:
        disk = self.world.hosts[self.one()].disk
        disk.error = FULL
        self.later(6, setattr, disk, "error", "")

    def bad_disk(self) -> None:
        disk = self.world.hosts[self.one()].disk
        disk.error = EIO
        self.later(6, setattr, disk, "error", "")

    def bad_write(self) -> None:
        self.world.hosts[self.one()].disk.fails_once = True

    def hung_disk(self) -> None:
        disk = self.world.hosts[self.one()].disk
        disk.is_hung = True
        self.later(6, setattr, disk, "is_hung", False)

    def slow_disk(self) -> None:
        self.world.hosts[self.one()].disk.delay = (0.1, 1.0)

    # --- users --------------------------------------------------------------------

    def purge(self) -> None:
        self.world.purge(self.one())

    def delete(self) -> None:
        keys = sorted(self.world.ledger.promises.durable["add"])
        if keys:
            count = self.rng.choice([1, 1, min(len(keys), 10)])
            self.world.delete(self.one(), self.rng.sample(keys, count))

    # --- one at a time (D2) -------------------------------------------------------

    def single(self) -> None:
        """Kill, stop, switch off or bring back the one victim of this seed."""
        name, world = self.victim, self.world
        host = world.machines[name]
        if host.process is not None:
            getattr(world, self.rng.choice(["kill", "stop", "power_off"]))(name)
        else:
            if host.is_on and name in world.hosts and self.rng.random() < 0.2:
                world.wipe(name)
            world.start(name)

    def pause_one(self) -> None:
        """Pause the victim for long, maybe between a decision and its frames."""
        self.rng.choice([self.world.pause, self.world.pause_in_turn])(self.victim)
        self.world.after(self.rng.uniform(4, 11), self.world.resume, self.victim)


ROUGH = (
    "cut one_way partition shape flap blink swizzle slow_network slow_way loss echo "
    "late kill die power_off blackout stop pause nap suspend jump month refuse "
    "lose_disk flip full_disk bad_disk bad_write hung_disk slow_disk purge delete"
).split()
HEALTHY = "single nap slow_network slow_disk bad_write echo delete".split()
PAUSED = "pause_one slow_network slow_disk echo".split()
LASTING = frozenset(
    "slow_network slow_way loss echo slow_disk refuse ghosts_slow_disk".split()
)
# L8's bound is for those who aren't:
UNHURRIED = frozenset(["nap", "nap_ghost", "pause_one"])
AT_ONCE = 0.25  # of the kinds of faults, on average, in one rough seed


def add_tasks(world: World) -> None:
    """Let users add all kinds of tasks, anywhere, all the time."""
    rng = world.rng
    names = sorted(world.hosts)
    has_one_core = any(host.relay_cores for host in world.hosts.values())
    span = rng.choice([FAULTS_S, FAULTS_S, 2.0])
    for i in range(rng.randint(3, 8)):
        command = "%.1f %d" % (rng.uniform(0.1, 4), rng.random() < 0.15)
        needs: Dict[str, Any] = {}
        if rng.random() < 0.2:
            needs["retries"] = rng.randint(1, 2)
        if rng.random() < 0.2 and not has_one_core:
            needs["cores"] = 2
        if rng.random() < 0.1:
            needs["concurrency"] = False
        if rng.random() < 0.1:
            needs["conditions"] = ("worker:tag " + rng.choice(names),)
        if rng.random() < 0.1:
            needs["files"] = (File("data", "%064x" % i, 10, 0o644),)
        if rng.random() < 0.1:
            needs["conditions"] = ("queue:is_first",)
        counts = [rng.choice([1, 2, 3, 6])]
        if rng.random() < 0.1:
            needs["own"], counts = "own%d" % rng.randint(0, 2), [1]
        elif rng.random() < 0.15:  # in slices; one of five is given up
            last = rng.choice([0, 1, 1, 2, 2])
            counts = [rng.randint(1, 3) for _ in range(rng.randint(1, 3))] + [last]
        at = rng.uniform(0, span)
        world.at(at, _add, world, rng.choice(names), counts, command, needs)


def add_short_tasks(world: World, dice: random.Random) -> None:
    """Add some that run ahead of their cores; one of them turns out to be long."""
    name, at = dice.choice(sorted(world.hosts)), dice.uniform(0, FAULTS_S)
    for count, seconds in ((15, 0.1), (1, 1.0), (10, 0.1)):
        world.at(at, _add, world, name, [count], "%.1f 0 short" % seconds, {})


def _add(
    world: World, name: str, counts: List[int], command: str, needs: Dict[str, Any]
) -> None:
    world.add_slices(name, counts, command, **needs)


def plan(world: World) -> Iterable[str]:
    """Choose what goes wrong in this seed, and when."""
    rng, ledger = world.rng, world.ledger
    faults = Faults(world)
    own = GHOSTS if world.ghosts else {}
    ledger.is_healthy = rng.random() < 0.35
    kinds = HEALTHY if ledger.is_healthy else ROUGH
    if rng.random() < 0.1:
        ledger.is_healthy, kinds = True, PAUSED
    kinds = [*kinds, *own.get(kinds[0], [])]
    share = 0.5 if ledger.is_healthy else AT_ONCE
    chosen = [kind for kind in kinds if rng.random() < share] or [rng.choice(kinds)]
    ledger.is_prompt = ledger.is_healthy and UNHURRIED.isdisjoint(chosen)
    late = faults.victim if ledger.is_healthy else faults.one()
    for name in world.hosts:
        joins = rng.uniform(0.5, 8) if name == late and rng.random() < 0.4 else 0.0
        world.at(joins or rng.uniform(0, 0.5), world.start, name)
    if world.ghosts:
        start_ghosts(world, faults.victim)
    for kind in [kind for kind in chosen if kind in LASTING]:
        world.at(rng.uniform(0, 6), getattr(faults, kind))
    events, t = [kind for kind in chosen if kind not in LASTING], 3.0
    for _ in range(rng.randint(1, 7) if events else 0):
        t += rng.expovariate(0.6)
        if t < FAULTS_S:
            world.at(t, getattr(faults, rng.choice(events)))
    add_tasks(world)
    return chosen


def simulate(seed: int, walls: int = 0) -> World:
    """Run a seed to its end; Broken says what doesn't hold."""
    ghosts = "xyz"[: random_ghosts(seed)]
    world = World(seed, "abcde"[: random_size(seed)], walls, ghosts)
    try:
        chosen = plan(world)
        if seed % 4 == 2:
            add_short_tasks(world, random.Random(seed))
        world.log("seed %d: %s" % (seed, " ".join(chosen)))
        world.run(FAULTS_S)
        world.heap = [event for event in world.heap if not _is_fault(event)]
        world.heap.sort()
        recover(world)
    except Exception as problem:
        kind = "healthy" if world.ledger.is_healthy else "rough"
        text = "\n".join(world.story[-60:])
        told = "%s\n%s\nLEORONIC_SEED=%d (%s)" % (problem, text, seed, kind)
        raise Broken(told) from problem
    return world


def random_size(seed: int) -> int:
    """Give the number of nodes: mostly three."""
    return (3, 3, 3, 4, 5)[seed * 7919 % 5]


def random_ghosts(seed: int) -> int:
    """Give the number of ghosts: mostly none."""
    return {3: 1, 4: 2, 7: 1, 9: 3}.get(seed % 13, 0)


def _is_fault(event: Any) -> bool:
    """Say whether an event is a fault, or undoes one: time is up for both."""
    owner = getattr(event[2], "__self__", None)
    name = getattr(event[2], "__name__", "")
    is_ours = isinstance(owner, Faults) or event[2] is setattr
    return is_ours or (isinstance(owner, World) and name in WORLD_FAULTS)


WORLD_FAULTS = (
    "break_links cut cut_way kill kill_relay mend partition pause power_off resume "
    "start stop wake"
).split()
