"""What must follow once faults stop: liveness, in a core, within bounds.

How it works. A random core of the machines is healed for good. The others are healed
too, or each stays broken for ever in its own way: dead, off, paused, asleep, unheard,
deaf, parted (one of the parted may hear others that are parted: they live on), or with
a disk that fails or hangs; those of a bad disk alone stay members, and the core must
bear them. All that the core holds must finish, but for what only others could do.

    L1  links, then equal roots        L6  one coordinator, which all know
    L4  what ran on the dead is lost   L7  no task runs twice
    L2  nothing waits beside idle workers      L3  all is finished
    L10 nothing changes any more       L9  a month later all of it is forgotten
"""

from typing import Any, Dict, List

from copies import FINISHED
from disks import EIO, FULL
from world import World

from probation import MOST_S
from record import LIVING, UNFINISHED, Phase, Record, State

NOTICE_S = 5.0  # that others are unheard for ever is noticed; then bounds count
MESH_S = 4.0  # all are linked again: redials every 2 s
EQUAL_S = 5.0  # L1, from then on
COORDINATOR_S = 7.0  # L6, from then on
LOST_S = 20.0  # L4, from then on
STOP_S = 3.0  # a stop that is under way; 2 s, and the disk
ONCE_S = 5.0 + 1.0  # L7, from then on; the second is TERM's, in this sandbox
ATTACH_S = 10.0 + 5 * 3.0  # L5: the longest pause, and a dial of each that is late
TOLD_S = 10.0  # L5: ghosts have nothing left
IDLE_S = 15.0  # L2
DONE_S = 60.0  # L3, and the work: silence is 20 s, refusals back off
LOOK_S = 0.1  # ... and between two looks
SETTLED_S = 10.0  # L10, from the end of the faults: late echoes end links till then
SOON_S = 1.0  # a change is everywhere
QUIET_S = 3.0  # L10: nothing changes any more
FORGET_S = 15.0  # L9: a jump of the clock closes all links; then an hour's look
MONTH_S = 31 * 86400.0
CORE = 0.4  # how many seeds have machines that stay broken for ever
GHOSTS = 0.3  # how many of the ghosts then stay broken, too
MONTHS = 0.1  # how many go on for a month

PARTED = ("parted", "unheard", "deaf", "paused", "asleep")
GONE = ("dead", "off")
BAD_DISK = ("full", "eio", "hung")


def recover(world: World) -> None:
    """Heal a core for good, then demand liveness of it."""
    ledger, rng = world.ledger, world.rng
    world.heal()
    healed = world.t
    if rng.random() < CORE:
        break_rest(world)
    world.until(lambda: not stopping(world), STOP_S, 0.05)
    start_core(world)
    if world.broken:
        world.run(NOTICE_S)
    linked = world.until(world.is_meshed, MESH_S, 0.05)
    ledger.check(linked, "L1", "not all are linked again")
    equal = world.until(world.is_equal, EQUAL_S, 0.02)
    ledger.check(equal, "L1", "roots differ")
    one = world.until(lambda: is_agreed(world), COORDINATOR_S, 0.05)
    ledger.check(one, "L6", "coordinators %s" % world.coordinators())
    attached = world.until(lambda: not lonely(world), ATTACH_S, 0.1)
    ledger.check(attached, "L5", "not attached: %s" % lonely(world))
    lost = world.until(lambda: not orphans(world), LOST_S, 0.1)
    ledger.check(lost, "L4", "not called lost: %s" % orphans(world))
    once = world.until(lambda: not doubles(world), ONCE_S, 0.1)
    ledger.check(once, "L7", "run twice: %s" % doubles(world))
    ledger.check(finish(world), "L3", "unfinished: " + unfinished(world))
    told = world.until(lambda: not untold(world), TOLD_S, 0.1)
    ledger.check(told, "L5", "%s" % untold(world))
    world.run(max(SOON_S, healed + SETTLED_S - world.t))
    ledger.check(is_agreed(world), "L6", "%s" % world.coordinators())
    before = world.coordinators()
    world.run(QUIET_S)
    equal = world.until(world.is_equal, SOON_S, 0.02)  # who is deaf may still tell
    ledger.check(equal, "L1", "roots differ at the end")
    ledger.check(before == world.coordinators(), "L10", "coordinators change")
    ledger.check(is_agreed(world), "L6", "%s" % world.coordinators())
    ledger.settle()
    if rng.random() < MONTHS:
        wait_a_month(world)


# --- a core and the rest --------------------------------------------------------------


def break_rest(world: World) -> None:
    """Let some machines stay broken for ever."""
    rng, names = world.rng, sorted(world.hosts)
    world.ledger.is_healthy = False  # D2 is for one death at a time.
    rest = rng.sample(names, rng.randint(1, len(names) - 1))
    for name in sorted(rest):
        fate = rng.choice(PARTED + GONE + BAD_DISK)
        if fate in BAD_DISK:
            world.log("%s for ever: %s" % (name, fate))
            disk = world.hosts[name].disk
            disk.is_hung = fate == "hung"
            disk.error = {"full": FULL, "eio": EIO}.get(fate, "")
        else:
            world.broken.add(name)
    for name in sorted(world.ghosts):
        if rng.random() < GHOSTS:
            world.broken.add(name)
    for name in sorted(world.broken):
        break_one(world, name, rng.choice(PARTED + GONE))


def break_one(world: World, name: str, fate: str) -> None:
    """Break one for ever; others that are broken may still hear it."""
    inside = [other for other in world.machines if other not in world.broken]
    world.log("%s for ever: %s" % (name, fate))
    if fate == "dead":
        world.kill(name)
    elif fate == "off":
        world.power_off(name)
    elif fate == "paused":
        world.pause(name)
    elif fate == "asleep":
        world.suspend(name)
    else:
        for other in inside:
            if fate != "deaf":
                world.cut_way(name, other)
            if fate != "unheard":
                world.cut_way(other, name)


def stopping(world: World) -> List[str]:
    """Give who is on the way out: it is to be started again, and isn't there."""
    return [p.host.name for p in world.core() if p.node.hands.is_stopping]


def start_core(world: World) -> None:
    """Start who is dead, or not; somebody is there, and who alone can do a task."""
    wanted = [r.needs.conditions for r in unfinished_records(world)]
    for name, host in world.hosts.items():
        if host.process is None and name not in world.broken:
            is_wanted = ("worker:tag " + name,) in wanted
            if is_wanted or world.rng.random() < 0.7:
                world.start(name)
    for name, host in world.ghosts.items():
        if host.process is None and name not in world.broken:
            if world.rng.random() < 0.7:
                world.start(name)
    if not world.core():
        world.start(
            [name for name in sorted(world.hosts) if name not in world.broken][0]
        )


def is_agreed(world: World) -> bool:
    """Say whether all of the core know it, and take the same for the coordinator."""
    living = {process.node_id for process in world.core()}
    components = [process.node.mesh.component for process in world.core()]
    is_known = all(component == living for component in components)
    return is_known and len(set(world.coordinators())) == 1


# --- what must come to an end ---------------------------------------------------------


def orphans(world: World) -> List[str]:
    """Give the runs that count as living, but whose worker isn't in the core."""
    here = {process.writer for process in [*world.core(), *unbroken_ghosts(world)]}
    return [
        run
        for record in unfinished_records(world)
        for run, value in record.runs.items()
        if value.phase in LIVING and value.worker not in here
    ]


def doubles(world: World) -> List[str]:
    """Give the tasks that run more than once in the core, and are given up neither."""
    here = [*world.core(), *world.ledger.attachments.core_ghosts()]
    keys = [life.key for life in world.ledger.alive(here)]
    given_up = {r.key for r in records(world) if r.given_up}
    return sorted({key for key in keys if keys.count(key) > 1} - given_up)


class Idle:
    """Looks for tasks that wait although nobody in the core has anything to do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.since: Dict[str, float] = {}  # task -> when it was seen so first

    def is_over(self) -> bool:
        """Say whether all is finished that the core can finish; check L2 meanwhile."""
        left = may_finish(self.world)
        here = [*self.world.core(), *unbroken_ghosts(self.world)]
        if self.world.ledger.alive(here) or any_on_probation(self.world):
            self.since.clear()
        waiting = {r.key for r in left if is_simple(r)}
        for key in [key for key in self.since if key not in waiting]:
            del self.since[key]
        for key in sorted(waiting):
            waited = self.world.t - self.since.setdefault(key, self.world.t)
            is_soon = waited <= IDLE_S
            self.world.ledger.check(is_soon, "L2", "waits: " + unfinished(self.world))
        return not left


def any_on_probation(world: World) -> bool:
    """Say whether some worker gets a task now and then only (probation.py)."""
    matchers = [process.node.matcher for process in world.core()]
    return any(m.probation.failures(w) for m in matchers for w in m.workers)


def is_simple(record: Record) -> bool:
    """Say whether a waiting task could start anywhere, and nobody refuses it now."""
    refusals = sum(1 for run in record.runs.values() if run.phase.name == "RETURNED")
    is_plain = not record.needs.conditions and not record.needs.files
    return record.state is State.WAITING and is_plain and refusals < 3


def records(world: World) -> List[Record]:
    """Give the records of the core, one of each node."""
    return [r for p in world.core() for r in p.node.queue.records.values()]


def unfinished_records(world: World) -> List[Record]:
    """Give the records that some node of the core has and that aren't finished."""
    return [record for record in records(world) if record.state in UNFINISHED]


def may_finish(world: World) -> List[Record]:
    """Give those of them that don't wait for what only the rest has.

    Nor for a node whose disk hangs: it is given nothing (room.py).
    """
    here = [*world.core(), *unbroken_ghosts(world)]
    hosts = [process.host for process in here if not process.host.disk.is_hung]
    left = unfinished_records(world)
    if not hosts:
        return [r for r in left if _is_running(r)]
    tags = {"worker:" + tag for host in hosts for tag in host.tags}
    files = set().union(*(host.files for host in hosts))
    stuck = [r for r in left if not _can_run(r, tags, files)]
    if stuck:  # and what waits until all older ones are finished
        first, alone = min(stuck), "queue:is_first"
        left = [r for r in left if r < first or alone not in r.needs.conditions]
    return [r for r in left if _is_running(r) or _can_run(r, tags, files)]


def _is_running(record: Record) -> bool:
    return any(run.phase is Phase.STARTED for run in record.runs.values())


def _can_run(record: Record, tags: Any, files: Any) -> bool:
    wanted = [text for text in record.needs.conditions if text.startswith("worker:")]
    return tags.issuperset(wanted) and all(
        f.digest in files for f in record.needs.files
    )


def finish(world: World) -> bool:
    """Wait until all is finished; time on probation has a bound of its own."""
    idle, runs, seconds = Idle(world), 0, DONE_S
    for record in {r.key: r for r in unfinished_records(world)}.values():
        runs += 1 + record.needs.retries
        seconds += float(record.command.split()[0]) * (1 + record.needs.retries)
    left = {False: seconds, True: MOST_S * runs}
    while not (idle.is_over() and world.is_equal()):
        is_slowed = any_on_probation(world)
        if left[is_slowed] <= 0:
            return False
        left[is_slowed] -= LOOK_S
        world.run(LOOK_S)
    return True


def unfinished(world: World) -> str:
    """Name what isn't finished, and why."""
    found = []
    for process in world.core():
        for record in process.node.queue.in_order():
            if record.state in UNFINISHED:
                why = process.node.reason(record, process.now)
                runs = {key: run.phase.name for key, run in record.runs.items()}
                place = process.host.name
                found.append("%s at %s: %s %s" % (record.key, place, why, runs))
    return "; ".join(found)


def unbroken_ghosts(world: World) -> List[Any]:
    """Give the ghosts that run, and aren't broken for ever."""
    return [g for g in world.haunting() if g.host.name not in world.broken]


def lonely(world: World) -> List[str]:
    """Name the ghosts that should be attached to the core, but aren't."""
    attached = world.ledger.attachments.core_ghosts()
    return [g.host.name for g in unbroken_ghosts(world) if g not in attached]


def untold(world: World) -> List[str]:
    """Name what ghosts hold, though all is over and some disk can keep it (L5)."""
    disks = [process.host.disk for process in world.core()]
    if any(disk.is_hung or disk.error for disk in disks):
        return lonely(world)
    found = lonely(world)
    for ghost in unbroken_ghosts(world):
        name = ghost.host.name
        found += ["%s at %s" % (key, name) for key in ghost.node.queue.records]
        found += ["%s on %s's disk" % (key, name) for key in ghost.host.disk.rows]
    return found


def wait_a_month(world: World) -> None:
    """Let a month pass: whoever is away, what is over is forgotten (L9)."""
    for process in world.core():
        process.host.jump(MONTH_S)
    world.ledger.is_healthy = False  # A clock that jumps is no healthy one.
    gone = world.until(lambda: world.is_equal() and not kept(world), FORGET_S, 0.1)
    world.ledger.check(gone, "L9", "still there: %s" % kept(world))


def kept(world: World) -> List[str]:
    """Give what is over and still kept."""
    return sorted({record.key for record in records(world) if record.state in FINISHED})
