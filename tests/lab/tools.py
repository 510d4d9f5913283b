"""What the laboratory does to machines, besides what netlab.py does with cables.

Firewalls (nft) that lose what comes from some, or some of what comes; slow cables
(tbf); a line through a proxy that delays, damages and breaks (line.py); disks that are
small (tmpfs) or hang (a frozen file system); other clocks (time namespaces); programs
with an addition, for what can't be done from outside. All of it is inside a machine's
own namespace, or in its own folder, and goes with it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Set

import pytest
from cluster import Member, until
from netlab import PORT, Lan, Machine, missing, run

REASON = missing()
needs_lab = pytest.mark.skipif(bool(REASON), reason="the laboratory " + REASON)
long = pytest.mark.long

HOOK = """
table inet lab {
chain in { type filter hook input priority 0; }
}
flush chain inet lab in
"""


def missing_nft() -> str:
    """Say what keeps nft from working here; '' if nothing does."""
    if REASON:
        return REASON
    if not shutil.which("nft"):
        return "no nft here (apt install nftables)"
    words = ["unshare", "--net", "nft", "-f", "-"]  # a namespace of its own
    done = subprocess.run(words, input=HOOK.encode(), capture_output=True)
    return "nft: " + done.stderr.decode() if done.returncode else ""


NO_NFT = missing_nft()
needs_nft = pytest.mark.skipif(bool(NO_NFT), reason="a case of nft's: " + NO_NFT)


class Firewall:
    """What some machines don't hear: rules for what comes in, set all at once."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.rules: Dict[Machine, Set[str]] = {machine: set() for machine in machines}

    def _apply(self, machines: Iterable[Machine]) -> None:
        for machine in machines:
            rules = ["add rule inet lab in " + rule for rule in self.rules[machine]]
            done = subprocess.run(
                ["ip", "netns", "exec", machine.space, "nft", "-f", "-"],
                input=(HOOK + "\n".join(sorted(rules)) + "\n").encode(),
                capture_output=True,
            )
            assert done.returncode == 0, done.stderr.decode()

    def deafen(self, target: Machine, source: Machine) -> None:
        """Let one not hear another; it is heard all the same."""
        self.rules[target].add("ip saddr %s drop" % source.address)
        self._apply([target])

    def cut(self, one: Machine, other: Machine) -> None:
        """Let two not hear each other."""
        self.deafen(one, other)
        self.deafen(other, one)

    def only(self, pairs: Iterable[Sequence[Machine]]) -> None:
        """Let just these pairs hear each other."""
        linked = {frozenset(pair) for pair in pairs}
        for target in self.rules:
            self.rules[target] = {
                "ip saddr %s drop" % source.address
                for source in self.rules
                if source is not target and frozenset((source, target)) not in linked
            }
        self._apply(self.rules)

    def lose(self, percent: int) -> None:
        """Lose some of what comes over the cable to each, by chance."""
        rule = 'iifname != "lo" numgen random mod 100 < %d drop' % percent
        for machine in self.rules:
            self.rules[machine] = {rule}
        self._apply(self.rules)

    def lose_datagrams(self) -> None:
        """Lose all beacons."""
        for machine in self.rules:
            self.rules[machine] = {"udp dport %d drop" % PORT}
        self._apply(self.rules)

    def clear(self) -> None:
        """Let everybody hear everybody."""
        for machine in self.rules:
            self.rules[machine] = set()
        self._apply(self.rules)


def slow_down(lan: Lan, machine: Machine, rate: str, buffer: str = "64kb") -> None:
    """Let a machine's cable carry no more than that, both ways; '' as before."""
    for space, device in ((machine.space, "eth0"), (lan.switch, machine.port_name)):
        words = ["tc", "-n", space, "qdisc"]
        subprocess.run([*words, "del", "dev", device, "root"], capture_output=True)
        if rate:
            shape = ["tbf", "rate", rate, "burst", buffer, "latency", "400ms"]
            run(*words, "add", "dev", device, "root", *shape)


def carried(machine: Machine) -> int:
    """Give the bytes that have passed a machine's cable, both ways."""
    (facts,) = json.loads(machine.ip("-j", "-s", "link", "show", "eth0"))
    stats = facts["stats64"]
    return int(stats["rx"]["bytes"]) + int(stats["tx"]["bytes"])


@contextmanager
def line(
    lan: Lan, one: Machine, other: Machine, **options: Any
) -> Iterator[Callable[[], List[str]]]:
    """Join two that can't hear each other by a proxy; give what it has told.

    It is a machine of its own that neither is cut from; `one` is told of it.
    Options: delay_s, damage_bytes (one bit in so many), cut_bytes (at most).
    """
    lan.part_two(one, other)
    between = lan.machine()
    one.env["LEORONIC_PEERS"] = between.address
    words = [between.address, other.address, str(PORT), json.dumps(options)]
    log = between.top / "line"
    with open(str(log), "wb") as out:
        script = str(Path(__file__).parent / "line.py")
        process = subprocess.Popen(
            [*between.prefix, sys.executable, script, *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        until("the line is up", lambda: "ready" in log.read_text())
        yield lambda: log.read_text().splitlines()
    finally:
        process.kill()
        process.wait()


@contextmanager
def small_disk(machine: Machine, size: str) -> Iterator[Path]:
    """Put a machine's state onto a disk of that size; it has lost its power then."""
    with _mounted(machine, ["-t", "tmpfs", "-o", "size=" + size, "none"]) as home:
        yield home


@contextmanager
def disk_that_hangs(machine: Machine) -> Iterator[Callable[[bool], None]]:
    """Put a machine's state onto a disk that hangs while it is told to."""
    for tool in ("mkfs.ext4", "fsfreeze"):
        if not shutil.which(tool):
            pytest.skip("needs %s (e2fsprogs, util-linux)" % tool)
    image = machine.top / "image"
    with open(str(image), "wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", str(image))
    with _mounted(machine, ["-o", "loop", str(image)]) as home:
        state = [False]

        def hang(on: bool) -> None:
            if on is not state[0]:
                run("fsfreeze", "-f" if on else "-u", str(home))
                state[0] = on

        try:
            yield hang
        finally:
            hang(False)  # else what waits for it can't even be killed


@contextmanager
def _mounted(machine: Machine, words: List[str]) -> Iterator[Path]:
    home = machine.home
    done = subprocess.run(["mount", *words, str(home)], capture_output=True)
    if done.returncode:
        pytest.skip("can't mount here: %s" % done.stderr.decode())
    (home / "venv-tried").write_text("")
    try:
        yield home
    finally:
        machine.power_off()
        run("umount", str(home))


def fill(folder: Path) -> Path:
    """Fill a disk to the last block; give the file to remove."""
    path = folder / "filler"
    with open(str(path), "wb", 0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def add_to_program(machine: Machine, module: str, code: str) -> None:
    """Add code to a machine's copy of a module, before it runs as a program."""
    add_to_script(machine.program / (module + ".py"), code)


def add_to_script(path: Path, code: str) -> None:
    """Add code to a script, before what it does as a program, if it is one."""
    text, main, rest = path.read_text().rpartition('\nif __name__ == "__main__":')
    text, rest = (text, rest) if main else (rest, "")
    path.write_text("%s\n%s\n%s%s" % (text, code, main, rest))


def in_another_time(machine: Machine, seconds: int) -> None:
    """Let a machine's clocks since boot show so much more, from its next start on."""
    at = machine.prefix.index("unshare")
    offset = str(seconds)
    words = ["unshare", "--time", "--monotonic", offset, "--boottime", offset]
    machine.prefix[at:at] = words


def has_time_namespaces() -> bool:
    """Say whether a program can be given another time since boot."""
    words = ["unshare", "--time", "--boottime", "100000000", "cat", "/proc/uptime"]
    done = subprocess.run(words, capture_output=True)
    return done.returncode == 0 and float(done.stdout.split()[0]) > 1e8


@contextmanager
def hog(count: int) -> Iterator[None]:
    """Keep so many cores busy."""
    words = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(words) for _ in range(count)]
    try:
        yield
    finally:
        for each in hogs:
            each.kill()
            each.wait()


@contextmanager
def meanwhile(act: Callable[[random.Random], None], seed: int) -> Iterator[List[int]]:
    """Do something again and again beside the test; give how often, as a list's one."""
    is_over = threading.Event()
    count, problems = [0], []

    def go() -> None:
        luck = random.Random(seed)
        try:
            while not is_over.is_set():
                act(luck)
                count[0] += 1
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield count
    finally:
        is_over.set()
        thread.join()
    assert not problems, problems


def pause_for(machine: Machine, seconds: float) -> None:
    """Stop a comrade's process for a while."""
    machine.pause()
    try:
        time.sleep(seconds)
    finally:
        machine.go_on()


def memory_of(node: Member, field: str = "VmHWM") -> int:
    """Give a comrade's memory in MiB: the most it had, or what it has (VmRSS)."""
    return memory_of_process(node.pid, field)


def memory_of_process(pid: int, field: str = "VmHWM") -> int:
    """Give a process's memory in MiB, as `memory_of`."""
    for row in Path("/proc", str(pid), "status").read_text().splitlines():
        if row.startswith(field + ":"):
            return int(row.split()[1]) >> 10
    raise AssertionError("no " + field)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
