"""What goes wrong with ghosts and relays in a seed that has some.

How it works. As in faults.py, whose faults happen too. In a healthy seed relays may die
whenever they like (no run is lost with one), and the one that dies and comes back may
be a ghost, or the clairvoyant of some.
"""

from random import Random
from typing import Callable, Dict, List

from world import World

AT_START_S = 2.0  # all ghosts are started within this
RELAY_CORES = 0.5  # how often a core is set aside for a relay


class GhostFaults:
    """Those of faults.Faults that are about ghosts; the rest is there."""

    world: World
    rng: Random
    names: List[str]  # of comrades
    ghosts: List[str]
    later: Callable[..., None]

    def ghost(self) -> str:
        return self.rng.choice(self.ghosts)

    def clairvoyants(self) -> List[str]:
        """Give the comrades that have ghosts now, or all."""
        living = self.world.living()
        return [p.host.name for p in living if p.desk.links] or self.names

    def kill_relay(self) -> None:
        self.world.kill_relay(self.rng.choice(self.clairvoyants()))

    def kill_ghost(self) -> None:
        name = self.ghost()
        self.world.kill(name)
        self.later(6, self.world.start, name)

    def stop_ghost(self) -> None:
        name = self.ghost()
        self.world.stop(name)
        self.later(8, self.world.start, name)

    def power_off_ghost(self) -> None:
        name = self.ghost()
        self.world.power_off(name)
        self.later(9, self.world.start, name)

    def pause_ghost(self) -> None:
        name = self.ghost()
        self.world.pause(name)
        self.later(11, self.world.resume, name)

    def nap_ghost(self) -> None:
        name = self.ghost()
        self.world.pause(name)
        self.later(2.3, self.world.resume, name)

    def suspend_ghost(self) -> None:
        name = self.ghost()
        self.world.suspend(name)
        self.later(11, self.world.wake, name)

    def cut_ghost(self) -> None:
        """Cut a ghost from its clairvoyant, or from all."""
        name, others = self.ghost(), [self.rng.choice(self.clairvoyants())]
        for other in self.rng.choice([others, self.names]):
            self.world.cut(name, other)
            self.later(9, self.world.mend, name, other)

    def ghost_one_way(self) -> None:
        pair = [self.ghost(), self.rng.choice(self.clairvoyants())]
        self.rng.shuffle(pair)
        self.world.cut_way(*pair)
        self.later(9, self.world.mend, *pair)

    def break_ghost(self) -> None:
        self.world.break_links(self.ghost(), self.rng.choice(self.clairvoyants()))

    def kill_clairvoyant(self) -> None:
        name = self.rng.choice(self.clairvoyants())
        self.world.kill(name)
        self.later(6, self.world.start, name)

    def lose_ghosts_disk(self) -> None:
        name = self.ghost()
        self.world.kill(name)
        self.world.wipe(name)
        self.later(5, self.world.start, name)

    def ghosts_bad_write(self) -> None:
        self.world.ghosts[self.ghost()].disk.fails_once = True

    def ghosts_slow_disk(self) -> None:
        self.world.ghosts[self.ghost()].disk.delay = (0.1, 1.0)


ROUGH = (
    "kill_relay kill_ghost stop_ghost power_off_ghost pause_ghost nap_ghost "
    "suspend_ghost cut_ghost ghost_one_way break_ghost kill_clairvoyant "
    "lose_ghosts_disk ghosts_bad_write ghosts_slow_disk"
).split()
GHOSTS: Dict[str, List[str]] = {  # by the first of the kinds that they go with
    "cut": ROUGH,
    "single": "kill_relay nap_ghost ghosts_slow_disk".split(),
    "pause_one": "kill_relay ghosts_slow_disk".split(),
}


def start_ghosts(world: World, late: str) -> None:
    """Start all ghosts, each going where its user wants it to."""
    rng = world.rng
    for host in world.hosts.values():
        host.relay_cores = int(rng.random() < RELAY_CORES)
    for name, host in world.ghosts.items():
        address = world.hosts[rng.choice(sorted(world.hosts))].address
        host.wanted = rng.choice(["", "", "1", "2", address])
        joins = rng.uniform(3, 9) if name == late and rng.random() < 0.4 else 0.0
        world.at(joins or rng.uniform(0, AT_START_S), world.start, name)
