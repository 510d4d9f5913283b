"""A machine as old as those that Leoronic is for: control groups make this one so.

Rules. Groups are made at the top of their hierarchies, so that is for root, and removed
at the end. Who was put into a group of memory by somebody else stays there: a limit of
its processes (ulimit -d) stands in for it. What can't be had here is said, never passed
over.

How it works. `prefix` is put before what is run (helpers.Node): it enters the groups,
and its children with it. Version 1 and 2 of control groups do; of the disk they slow
down what its callers wait for (fsync), not what the kernel writes later.
"""

import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

TOP = Path("/sys/fs/cgroup")
CORE_PERCENT = 30
MEMORY_BYTES = 256 << 20
WRITES_A_SECOND = 80  # a laptop's disk of 5400 revolutions
BYTES_A_SECOND = 20 << 20
PERIOD_US = 100000
QUOTA_US = PERIOD_US * CORE_PERCENT // 100

Limits = Dict[str, List[Tuple[str, str]]]  # controller -> file, text
V1: Limits = {
    "cpu": [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(QUOTA_US))],
    "memory": [("memory.limit_in_bytes", str(MEMORY_BYTES))],
    "blkio": [
        ("blkio.throttle.write_iops_device", "{disk} %d" % WRITES_A_SECOND),
        ("blkio.throttle.write_bps_device", "{disk} %d" % BYTES_A_SECOND),
    ],
}
V2: Limits = {
    "cpu": [("cpu.max", "%d %d" % (QUOTA_US, PERIOD_US))],
    "memory": [("memory.max", str(MEMORY_BYTES))],
    "io": [
        ("io.max", "{disk} wiops=%d wbps=%d" % (WRITES_A_SECOND, BYTES_A_SECOND)),
    ],
}
ENTER = 'n=$1; shift; for ((; n; n--)); do echo $$ >"$1/cgroup.procs"; shift; done; '


class OldMachine:
    """What is in force: `prefix` for what is run there, `told` for the table."""

    def __init__(self, state: str) -> None:
        """Make the groups; `state` is on the disk that is to be slow."""
        self._groups: List[Path] = []
        self._disk = disk_of(state)
        self._name = "leoronic-bench-%d" % os.getpid()
        told = ["one core", *(self._try(what) for what in ("cpu", "memory", "disk"))]
        self.told = ", ".join(told)

    @property
    def prefix(self) -> List[str]:
        """Give what enters the groups and becomes what follows it."""
        bound = "" if self._has("memory") else "ulimit -d %d; " % (MEMORY_BYTES >> 10)
        script = ENTER + bound + 'exec taskset -c 0 "$@"'
        groups = list(map(str, self._groups))
        return ["bash", "-ec", script, "old", str(len(groups)), *groups]

    def _has(self, controller: str) -> bool:
        return any(group.parent.name == controller for group in self._groups) or (
            is_v2() and bool(self._groups) and (self._groups[0] / "memory.max").exists()
        )

    def _try(self, what: str) -> str:
        names = {"disk": ("blkio", "io")}.get(what, (what, what))
        good = {
            "cpu": "%d %% of it" % CORE_PERCENT,
            "memory": "%d MiB" % (MEMORY_BYTES >> 20),
            "disk": "%d writes/s" % WRITES_A_SECOND,
        }[what]
        try:
            self._limit(names[is_v2()])
        except OSError as problem:
            if what == "memory":
                return "%s for each process" % good
            return "%s not limited (%s)" % (what, problem.strerror or problem)
        return good

    def _limit(self, controller: str) -> None:
        if not is_v2() and controller == "memory" and own_group(controller) != "/":
            raise OSError("the memory of this process is limited by somebody else")
        if is_v2():
            (TOP / "cgroup.subtree_control").write_text("+" + controller)
        group = (TOP if is_v2() else TOP / controller) / self._name
        if group not in self._groups:
            group.mkdir()
            self._groups.append(group)
        for name, text in (V2 if is_v2() else V1)[controller]:
            (group / name).write_text(text.replace("{disk}", self._disk))

    def close(self) -> None:
        """Remove the groups; nothing is in them any more."""
        while self._groups:
            self._groups.pop().rmdir()


def is_v2() -> bool:
    """Say whether there is version 2 of control groups, and it alone."""
    return (TOP / "cgroup.controllers").exists()


def own_group(controller: str) -> str:
    """Give the group that this process is in, in a hierarchy of version 1."""
    text = Path("/proc/self/cgroup").read_text()
    found = re.search(r"^\d+:(?:.*,)?%s(?:,.*)?:(.*)$" % controller, text, re.M)
    return found.group(1) if found else ""


def disk_of(path: str) -> str:
    """Give major:minor of the disk, not its partition, that a path is on."""
    device = os.stat(path).st_dev
    own = Path("/sys/dev/block/%d:%d" % (os.major(device), os.minor(device))).resolve()
    for place in (own, own.parent):
        if (place / "queue").exists():
            return (place / "dev").read_text().strip()
    return "none:none"  # the kernel will refuse it and say so


def milliseconds(text: str) -> Iterator[float]:
    """Read what bash's `time` has printed with TIMEFORMAT=%R."""
    return (float(line) * 1000 for line in text.split())
