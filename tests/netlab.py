"""A LAN of this machine's own: comrades in network namespaces behind a switch.

    with Lan(3) as lan:          # old1, old2, old3, not started
        lan.start()
        lan.unplug(lan.nodes[0])

Needs root and iproute2; `missing()` says what isn't there. Each machine is a network
and a UTS namespace (so it has a name of its own) with lo and eth0; eth0's other end is
a port of a bridge, in a namespace that is the switch. Nothing of this is in the host's
own namespace: no route and no cable leads there, and `check` proves it before each
start, as the comrades here broadcast.

They are started as users do: `bash leoronic` in a folder, without any setting, from a
copy of the program with the cookie in it.

Cuts need nothing but iproute2: a port that is down (an unplugged cable), a port on
another bridge (a partition), isolated ports (two that can't hear each other), a false
hardware address for a neighbour (one direction is lost).
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Type,
    TypeVar,
)

import pytest
from cluster import Ledger, Member, at_once, await_component, until
from helpers import CHECKOUT, COOKIE

PREFIX = "leolab"
PORT = 7117
NET = "10.77.0."
NOWHERE_MAC = "02:00:00:00:00:99"
PROGRAM = ("*.py", "leoronic", "leoronic_utilities")
# A namespace as this host makes it, all down: nothing goes through these.
IDLE = ("lo", "tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0")
IDLE += ("ip6tnl0", "ip6gre0")


def missing() -> str:
    """Say what keeps the laboratory from working here; '' if nothing does."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for tool in ("ip", "bridge", "unshare"):
        if not shutil.which(tool):
            return "needs %s (iproute2, util-linux)" % tool
    name = "%s-%d-probe" % (PREFIX, os.getpid())
    try:
        run("ip", "netns", "add", name)
        try:
            run("ip", "-n", name, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", name, "link", "add", "v0", "type", "veth")
            run("ip", "netns", "exec", name, "unshare", "--uts", "true")
        finally:
            run("ip", "netns", "del", name)
    except AssertionError as problem:
        return "no network namespaces here: %s" % problem
    return ""


def run(*words: str) -> str:
    """Run a command that must succeed; give what it printed."""
    done = subprocess.run(words, capture_output=True)
    problem = done.stderr.decode(errors="replace").strip()
    assert done.returncode == 0, "%s: %s" % (" ".join(words), problem)
    return done.stdout.decode()


class Machine(Member):
    """A machine of the LAN; its comrade is started plainly."""

    def __init__(self, lan: "Lan", number: int, cookie: str = COOKIE) -> None:
        self.name = "old%d" % number
        super().__init__(NET + str(10 + number), PORT)
        self.lan = lan
        self.space = "%s-%d" % (lan.prefix, number)
        self.port_name = "p%d" % number
        self.home = self.top / ".leoronic" / self.name
        self.program = self.top / "leoronic folder"
        self.program.mkdir()
        for pattern in PROGRAM:
            for path in CHECKOUT.glob(pattern):
                shutil.copy(str(path), str(self.program))
        if cookie:
            self.give_cookie(cookie)
        python = self.env["LEORONIC_PYTHON"]
        names = [name for name in self.env if name.startswith("LEORONIC_")]
        for name in names:
            del self.env[name]
        self.env["LEORONIC_PYTHON"] = python  # this version is tested; no other
        self.env["LEORONIC_CORES"] = "4"  # as many on every host
        uts = 'hostname "$0" && exec "$@"'
        self.prefix = ["ip", "netns", "exec", self.space]
        self.prefix += ["unshare", "--uts", "sh", "-c", uts, self.name]
        # No attempt to fetch psutil: there is no way to the Internet from here.
        self.home.mkdir(parents=True)
        (self.home / "venv-tried").write_text("")

    def give_cookie(self, cookie: str) -> None:
        path = self.program / ".leoronic_cookie"
        path.write_text(cookie)
        path.chmod(0o600)

    def launch(self) -> None:
        self.lan.check()
        super().launch()

    def pids(self) -> List[int]:
        """Give all processes of this machine."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.space).split()]

    def power_off(self) -> None:
        """Kill all that runs on this machine, at once."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.process:
            self.process.wait(5)

    def pause(self) -> None:
        """Stop the comrade's process, as a debugger or a hibernation does."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.space, *words)

    def wipe(self) -> None:
        """Remove its state, as with a new disk."""
        shutil.rmtree(str(self.home))
        self.home.mkdir()
        (self.home / "venv-tried").write_text("")

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.go_on()
        super().close()


class Ghost(Machine):
    """A machine of the LAN that is a ghost; started plainly, it finds comrades."""

    def __init__(self, lan: "Lan", number: int, cookie: str = COOKIE) -> None:
        super().__init__(lan, number, cookie)
        self.home = self.top / ".leoronic" / (self.name + "-ghost1")
        self.words: List[str] = []  # arguments

    def command(self) -> List[str]:
        """Give what is run to start it, but for an interpreter that is tested."""
        return [
            self.env["LEORONIC_PYTHON"],
            str(self.program / "ghost.py"),
            *self.words,
        ]

    def is_ready(self) -> bool:
        return "ghost %s is ready, of " % self.name in self.printed()

    def clairvoyant(self, seen_by: Machine) -> str:
        """Give the name of its clairvoyant, as a comrade sees it; '' if it has none."""
        row = seen_by.members().get(self.address, {})
        return str(row.get("clairvoyant") or "").partition("@")[0]


M = TypeVar("M", bound=Machine)


class Lan:
    """Machines and the switch between them."""

    made = 0

    def __init__(self, count: int) -> None:
        Lan.made += 1
        self.prefix = "%s-%d-%d" % (PREFIX, os.getpid(), Lan.made)
        self.switch = self.prefix + "-switch"
        self.spaces: List[str] = []
        self.all: List[Machine] = []
        remove_orphans()
        try:
            self._space(self.switch)
            for bridge in ("br0", "br1"):
                self._switch("link", "add", bridge, "type", "bridge")
                self._switch("link", "set", bridge, "up")
            self.nodes = [self.machine() for _ in range(count)]
        except BaseException:
            self.close()
            raise
        self.ledger = Ledger(self.nodes[0].top)

    def _space(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self.spaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _switch(self, *words: str) -> str:
        return run("ip", "-n", self.switch, *words)

    def machine(self, cookie: str = COOKIE) -> Machine:
        """Plug in one more machine; its comrade isn't started."""
        return self._plug_in(Machine(self, len(self.all) + 1, cookie))

    def ghost(self) -> Ghost:
        """Plug in a machine for a ghost, which isn't started."""
        return self._plug_in(Ghost(self, len(self.all) + 1))

    def _plug_in(self, machine: M) -> M:
        self.all.append(machine)
        self._space(machine.space)
        port = machine.port_name
        peer = ["peer", "name", "eth0", "netns", machine.space]
        self._switch("link", "add", port, "type", "veth", *peer)
        self._switch("link", "set", port, "master", "br0", "up")
        machine.ip("addr", "add", machine.address + "/24", "dev", "eth0")
        machine.ip("link", "set", "eth0", "up")
        return machine

    # --- safety -------------------------------------------------------------------

    def check(self) -> None:
        """Fail unless all that the machines can reach are the machines."""
        host = os.stat("/proc/self/ns/net")
        ports = {machine.port_name for machine in self.all}
        for space in self.spaces:
            made = os.stat("/run/netns/" + space)
            assert (made.st_dev, made.st_ino) != (host.st_dev, host.st_ino), space
            found = links_of(space) - set(IDLE)
            wanted = {"br0", "br1"} | ports if space == self.switch else {"eth0"}
            assert found <= wanted, "%s has %s" % (space, found - wanted)
            routes = run(
                "ip", "-n", space, "route", "show", "table", "all"
            ).splitlines()
            way_out = [line for line in routes if line.startswith("default")]
            via = [line for line in routes if " via " in line]
            assert not way_out + via, "%s has a route out: %s" % (space, routes)
            cables = run("ip", "-n", space, "-o", "link", "show", "type", "veth")
            for cable in cables.splitlines():
                ends = self.spaces if space == self.switch else [self.switch]
                at = cable.rpartition("link-netns ")[2].split(" ")[0].rstrip("\\")
                assert at in ends, "a cable of %s leads to %s" % (space, cable)

    # --- starting -----------------------------------------------------------------

    def start(self, nodes: Optional[Sequence[Machine]] = None) -> None:
        """Start nodes one after the other; return once all see all."""
        chosen = self.nodes if nodes is None else nodes
        for node in chosen:
            node.start()
        await_component(chosen)

    def start_at_once(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.await_ready()
        await_component(self.nodes)

    # --- cuts ---------------------------------------------------------------------

    def unplug(self, machine: Machine) -> None:
        """Pull a machine's cable."""
        self._switch("link", "set", machine.port_name, "down")

    def plug(self, machine: Machine) -> None:
        self._switch("link", "set", machine.port_name, "up")

    def part(self, some: Sequence[Machine]) -> None:
        """Put some machines behind a switch of their own."""
        for machine in some:
            self._switch("link", "set", machine.port_name, "master", "br1")

    def heal(self) -> None:
        """Put all machines behind one switch."""
        for machine in self.all:
            self._switch("link", "set", machine.port_name, "master", "br0")

    def part_two(self, one: Machine, other: Machine, on: bool = True) -> None:
        """Let two not hear each other; both hear all others."""
        for machine in (one, other):
            run(
                *("bridge", "-n", self.switch, "link", "set", "dev"),
                *(machine.port_name, "isolated", "on" if on else "off"),
            )

    def lose_one_way(self, source: Machine, target: Machine, on: bool = True) -> None:
        """Lose all that one machine sends to another, not what it hears from it."""
        if on:
            words = ["replace", target.address, "lladdr", NOWHERE_MAC]
            source.ip("neigh", *words, "dev", "eth0", "nud", "permanent")
        else:
            source.ip("neigh", "del", target.address, "dev", "eth0")

    def lose_broadcasts(self) -> None:
        """Let the switch pass nothing on that is for all; ARP knows all already."""
        for machine in self.all:
            port = (
                "bridge",
                "-n",
                self.switch,
                "link",
                "set",
                "dev",
                machine.port_name,
            )
            run(*port, "bcast_flood", "off")
        for one in self.all:
            mac = one.ip("-o", "link", "show", "eth0").partition("link/ether ")[2]
            for other in self.all:
                if other is not one:
                    words = ["replace", one.address, "lladdr", mac.split(" ")[0]]
                    other.ip("neigh", *words, "dev", "eth0", "nud", "permanent")

    # --- the end ------------------------------------------------------------------

    def __enter__(self) -> "Lan":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        problem: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if problem is not None:
            for node in self.all:
                if node.log.exists():
                    print(node.told())
        self.close()

    def close(self) -> None:
        """Stop all comrades, remove all machines and the switch, whatever happens."""
        try:
            if self.all:
                at_once([node.close for node in self.all])
        finally:
            for space in self.spaces:
                remove(space)
            self.spaces = []


def links_of(space: str) -> Set[str]:
    """Give the names of a namespace's interfaces; '' is the host's own."""
    words = ["ip", *(["-n", space] if space else []), "-o", "link"]
    names = [line.split(": ")[1] for line in run(*words).splitlines()]
    return {name.partition("@")[0] for name in names}


def remove(space: str) -> None:
    """Kill what is left in a namespace that a Lan made, and remove it."""
    assert space.startswith(PREFIX + "-")
    for pid in run("ip", "netns", "pids", space).split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    until("%s is empty" % space, lambda: not run("ip", "netns", "pids", space).split())
    run("ip", "netns", "del", space)


def remove_orphans() -> None:
    """Remove what a test run that was killed left behind: its pid is in the name."""
    for line in run("ip", "netns", "list").splitlines():
        space = line.split(" ")[0]
        parts = space.split("-")
        if parts[0] == PREFIX and not Path("/proc", parts[1]).exists():
            remove(space)


def runs_of(machines: Sequence[Machine]) -> Dict[str, Set[str]]:
    """Give the runs that live on machines, by task: what /proc says, not Leoronic."""
    found: Dict[str, Set[str]] = {}
    for machine in machines:
        for pid in machine.pids():
            try:
                environ = Path("/proc", str(pid), "environ").read_bytes()
            except OSError:
                continue
            pairs = (item.partition(b"=") for item in environ.split(b"\0"))
            named = {name.decode(): value.decode() for name, _, value in pairs}
            if "LEORONIC_RUN" in named and "LEORONIC_TASK_ID" in named:
                task = named["LEORONIC_TASK_ID"]
                found.setdefault(task, set()).add(named["LEORONIC_RUN"])
    return found


def doubles(machines: Sequence[Machine]) -> List[str]:
    """Give the tasks that run twice."""
    return [task for task, runs in runs_of(machines).items() if len(runs) > 1]


def coordinators(ledger: Ledger) -> Set[str]:
    """Give the writers that granted what has started."""
    return {line.run.split(".")[2] for line in ledger.lines("start")}


def coordinator_of(lan: Lan) -> Machine:
    """Give the machine that grants: a task's id begins its adder's writer."""
    (writer,) = coordinators(lan.ledger)
    ids = [node.add("true").rpartition("-")[2] for node in lan.nodes]
    found = [node for node, text in zip(lan.nodes, ids) if writer.startswith(text)]
    assert len(found) == 1, (writer, ids)
    return found[0]


@pytest.fixture
def lab() -> Iterator[Callable[[int], Lan]]:
    """Make a LAN of so many machines, gone after the test."""
    made: List[Lan] = []

    def make(count: int) -> Lan:
        made.append(Lan(count))
        return made[-1]

    yield make
    try:
        for lan in made:
            for node in lan.all:
                if node.log.exists():
                    print(node.told())
    finally:
        for lan in made:
            lan.close()
