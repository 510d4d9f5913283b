"""What goes wrong in a seed: a random subset of all faults, at random times.

How it works. A seed is one of three kinds. In a *healthy* one at most one node at a
time dies, stops, joins or comes back, nobody is paused for 2.5 s, all stay connected:
D2 must hold to the letter. In a *paused* one a node is stopped for 4 to 11 s, maybe
between deciding and sending, and D2 holds all the same (FAULTS 11 allows a duplicate):
nobody counts as gone within 20 s of silence. In a *rough* one anything of ROUGH may
happen, at once. Then all is healed for good (the dead come back, or stay away) and what
FAULTS.md calls liveness must follow within its bounds.
"""

from typing import Any, Callable, Dict, List

from ledger import Broken
from world import World

from record import UNFINISHED, File, Record

FAULTS_S = 12.0  # faults happen for this long
MESH_S = 4.0  # all are linked again: redials every 2 s
EQUAL_S = 5.0  # L1, from then on
COORDINATOR_S = 7.0  # L6, from then on
DONE_S = 60.0  # L3: silence is 20 s, tasks are short, refusals back off
QUIET_S = 3.0  # L10: nothing changes any more


class Faults:
    """The faults of one seed; each method is one, undone later or at heal."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.names = sorted(world.hosts)
        self.victim = self.rng.choice(self.names)

    def one(self) -> str:
        return self.rng.choice(self.names)

    def later(self, most: float, call: Callable[..., None], *args: Any) -> None:
        self.world.after(self.rng.uniform(0.05, most), call, *args)

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
        self.world.partition("".join(group))
        self.later(12, self.mend_all)

    def mend_all(self) -> None:
        for a, b in sorted(self.world.cuts):
            self.world.mend(a, b)

    def flap(self) -> None:
        a, b = self.rng.sample(self.names, 2)
        for i in range(3):
            self.world.after(i * 2.5, self.world.break_links, a, b)

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

    def lose_disk(self) -> None:
        name = self.one()
        self.world.kill(name)
        self.world.wipe(name)
        self.later(5, self.world.start, name)

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

    def bad_disk(self) -> None:
        disk = self.world.hosts[self.one()].disk
        disk.error = "no space left"
        self.later(6, setattr, disk, "error", "")

    def hung_disk(self) -> None:
        disk = self.world.hosts[self.one()].disk
        disk.is_hung = True
        self.later(6, setattr, disk, "is_hung", False)

    def slow_disk(self) -> None:
        self.world.hosts[self.one()].disk.delay = (0.1, 1.0)

    def slow_network(self) -> None:
        self.world.delay = (0.001, self.rng.choice([0.1, 0.5]))

    def refuse(self) -> None:
        self.world.hosts[self.one()].refusal = 0.5

    def purge(self) -> None:
        self.world.purge(self.one())

    def delete(self) -> None:
        keys = sorted(self.world.ledger.durable["add"])
        if keys:
            self.world.delete(self.one(), [self.rng.choice(keys)])

    def pause_one(self) -> None:
        """Pause the victim for long, maybe between a decision and its frames."""
        self.rng.choice([self.world.pause, self.world.pause_in_turn])(self.victim)
        self.world.after(self.rng.uniform(4, 11), self.world.resume, self.victim)

    # --- one at a time (D2) -------------------------------------------------------

    def single(self) -> None:
        """Kill, stop, switch off or bring back the one victim of this seed."""
        name, world = self.victim, self.world
        if world.hosts[name].process is not None:
            getattr(world, self.rng.choice(["kill", "stop", "power_off"]))(name)
        else:
            if world.hosts[name].is_on and self.rng.random() < 0.2:
                world.wipe(name)
            world.start(name)


ROUGH = (
    "cut one_way partition flap kill die power_off lose_disk stop pause nap bad_disk "
    "hung_disk slow_disk slow_network refuse purge delete"
).split()
HEALTHY = "single nap slow_network slow_disk".split()
PAUSED = "pause_one slow_network slow_disk".split()


def add_tasks(world: World) -> None:
    """Let users add all kinds of tasks, anywhere, all the time."""
    rng = world.rng
    names = sorted(world.hosts)
    span = rng.choice([FAULTS_S, FAULTS_S, 2.0])
    for i in range(rng.randint(3, 8)):
        command = "%.1f %d" % (rng.uniform(0.1, 4), rng.random() < 0.15)
        needs: Dict[str, Any] = {}
        if rng.random() < 0.2:
            needs["retries"] = rng.randint(1, 2)
        if rng.random() < 0.2:
            needs["cores"] = 2
        if rng.random() < 0.1:
            needs["concurrency"] = False
        if rng.random() < 0.1:
            needs["conditions"] = ("worker:tag " + rng.choice(names),)
        if rng.random() < 0.1:
            needs["files"] = (File("data", "%064x" % i, 10, 0o644),)
        if rng.random() < 0.1:
            needs["conditions"] = ("queue:is_first",)
        if rng.random() < 0.1:
            needs["own"] = "own%d" % rng.randint(0, 2)
        at = rng.uniform(0, span)
        count = rng.randint(1, 3)
        world.at(at, _add, world, rng.choice(names), count, command, needs)


def _add(world: World, name: str, count: int, command: str, needs: Any) -> None:
    if "own" in needs:
        count = 1
    world.add(name, count, command, **needs)


def plan(world: World) -> List[str]:
    """Choose what goes wrong in this seed, and when."""
    rng = world.rng
    faults = Faults(world)
    world.ledger.is_healthy = rng.random() < 0.4
    kinds = HEALTHY if world.ledger.is_healthy else ROUGH
    if rng.random() < 0.15:
        world.ledger.is_healthy, kinds = True, PAUSED
    chosen = [kind for kind in kinds if rng.random() < 0.5] or [rng.choice(kinds)]
    late = rng.choice(sorted(world.hosts))
    if world.ledger.is_healthy:
        late = faults.victim
    for name in world.hosts:
        joins = rng.uniform(0.5, 8) if name == late and rng.random() < 0.4 else 0.0
        world.at(joins or rng.uniform(0, 0.5), world.start, name)
    t = 3.0
    for _ in range(rng.randint(1, 7)):
        t += rng.expovariate(0.6)
        if t < FAULTS_S:
            world.at(t, getattr(faults, rng.choice(chosen)))
    add_tasks(world)
    return chosen


def simulate(seed: int) -> World:
    """Run a seed to its end; Broken says what doesn't hold."""
    world = World(seed, "abcde"[: random_size(seed)])
    try:
        chosen = plan(world)
        world.log("seed %d: %s" % (seed, " ".join(chosen)))
        world.run(FAULTS_S)
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


def recover(world: World) -> None:
    """Heal for good, then demand liveness."""
    ledger, rng = world.ledger, world.rng
    world.heap = [event for event in world.heap if not _is_fault(event)]
    world.heap.sort()
    world.heal()
    wanted = [r.needs.conditions for r in unfinished_records(world)]
    for name, host in world.hosts.items():
        is_wanted = ("worker:tag " + name,) in wanted
        if host.process is None and (is_wanted or rng.random() < 0.7):
            world.start(name)
    if not world.living():
        world.start(sorted(world.hosts)[0])
    linked = world.until(world.is_meshed, MESH_S, 0.05)
    ledger.check(linked, "L1", "not all are linked again")
    equal = world.until(world.is_equal, EQUAL_S, 0.02)
    ledger.check(equal, "L1", "roots differ")
    one = world.until(lambda: is_agreed(world), COORDINATOR_S, 0.05)
    ledger.check(one, "L6", "coordinators %s" % world.coordinators())
    done = world.until(lambda: world.is_over() and world.is_equal(), DONE_S, 0.1)
    ledger.check(done, "L3", "unfinished: " + unfinished(world))
    before = world.coordinators()
    world.run(QUIET_S)
    ledger.check(world.is_equal(), "L1", "roots differ at the end")
    ledger.check(before == world.coordinators(), "L10", "coordinators change")
    ledger.check(is_agreed(world), "L6", "%s" % world.coordinators())
    ledger.settle()


def _is_fault(event: Any) -> bool:
    owner = getattr(event[2], "__self__", None)
    name = getattr(event[2], "__name__", "")
    faulty = ("break_links", "kill", "stop", "pause", "power_off", "start", "resume")
    return isinstance(owner, Faults) or (isinstance(owner, World) and name in faulty)


def is_agreed(world: World) -> bool:
    """Say whether all know who is there, and take the same for the coordinator."""
    living = {process.host.name for process in world.living()}
    components = [process.node.mesh.component for process in world.living()]
    is_known = all(component == living for component in components)
    return is_known and len(set(world.coordinators())) == 1


def unfinished_records(world: World) -> List[Record]:
    """Give the records that some node has and that aren't finished."""
    queues = [process.node.queue for process in world.living()]
    return [r for q in queues for r in q.in_order() if r.state in UNFINISHED]


def unfinished(world: World) -> str:
    """Name what isn't finished, and why."""
    found = []
    for process in world.living():
        for record in process.node.queue.in_order():
            if record.state in UNFINISHED:
                why = process.node.reason(record, process.now)
                runs = {key: run.phase.name for key, run in record.runs.items()}
                place = process.host.name
                found.append("%s at %s: %s %s" % (record.key, place, why, runs))
    return "; ".join(found)
