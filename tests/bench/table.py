"""What benchmarks have in common: a figure beside its floor, peers, and the table.

Rules. A floor is measured in the same run, right before the figure it stands beside; a
ratio is taken round by round, and above 1 is better than the floor. Nothing asserts.
"""

import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from shlex import quote
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from helpers import Node, processes_of

TICK = os.sysconf("SC_CLK_TCK")
HEAD = ("what", "median", "least .. greatest", "n", "floor", "ratio", "reach", "peers")


class Row(NamedTuple):
    """One figure: a value for each round, and what was measured beside it."""

    what: str  # with its unit
    values: Sequence[float]
    floors: Sequence[float] = ()
    floor: str = ""  # what the floor is
    reach: str = ""
    is_cost: bool = False  # less is better
    peers: str = ""

    def ratio(self) -> str:
        """Give the median of the rounds' ratios."""
        if not self.floors:
            return ""
        pairs = zip(self.values, self.floors)
        ratios = [low / v if self.is_cost else v / low for v, low in pairs]
        return "%.2f" % statistics.median(ratios)

    def line(self) -> str:
        """Lay it out as a row of Markdown."""
        low = number(statistics.median(self.floors)) if self.floors else ""
        cells = [
            self.what,
            number(statistics.median(self.values)),
            "%s .. %s" % (number(min(self.values)), number(max(self.values))),
            str(len(self.values)),
            ("%s %s" % (low, self.floor)).strip(),
            self.ratio(),
            self.reach,
            self.peers,
        ]
        return "| %s |" % " | ".join(cells)


def number(value: float) -> str:
    """Write three digits that matter."""
    return "%.0f" % value if value >= 100 else "%.3g" % value


def head() -> List[str]:
    """Tell machine and versions, and begin the table."""
    lines = ["%s, %s" % (processor(), platform.platform())]
    for command in (
        *(["/usr/bin/python3", "--version"], ["bash", "--version"]),
        *(["parallel", "--version"], ["tsp", "-V"], ["nq", "-h"]),
    ):
        if shutil.which(command[0]):
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            told = done.stdout.decode(errors="replace").split("\n")[0]
            lines.append(told if done.returncode == 0 else command[0])
    return [
        *(line + "  " for line in lines),
        "load %.1f when it began" % os.getloadavg()[0],
        "",
        "| %s |" % " | ".join(HEAD),
        "|%s" % ("---|" * len(HEAD)),
    ]


def processor() -> str:
    """Name the machine's processors."""
    try:
        found = re.search(
            r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M
        )
    except OSError:
        found = None
    name = found.group(1) if found else platform.machine()
    return "%d x %s" % (os.cpu_count() or 0, name)


# --- floors and peers -------------------------------------------------------------


def seconds(script: str, directory: Optional[Path] = None) -> float:
    """Give what a bash script takes."""
    start = time.monotonic()
    subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=str(directory) if directory else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - start


XARGS = "seq %d | xargs -P2 -n1 bash -c true"

# {n} tasks, one after the other added, two at once, in an empty directory.
PEERS: Dict[str, str] = {
    "parallel": "seq {n} | parallel -j2 true",
    "tsp": "export TS_SOCKET=$PWD/tsp TMPDIR=$PWD; tsp -S 2\n"
    "for ((i = 0; i < {n}; i++)); do tsp -n true; done; tsp -w; tsp -K",
    "nq": "for ((i = 0; i < {n}; i++)); do NQDIR=$PWD/q$((i % 2)) nq true; done\n"
    "NQDIR=$PWD/q0 nq -w; NQDIR=$PWD/q1 nq -w",
}
# Those of PyPI, in an environment that LEORONIC_BENCH_PEERS names: module, script; with
# their start, for that is how they take a list.
PYPI_PEERS: Dict[str, Tuple[str, str]] = {
    "HyperQueue": (
        "hyperqueue",
        "python -c 'from hyperqueue import Job, LocalCluster\n"
        "from hyperqueue.cluster import WorkerConfig\n"
        "with LocalCluster() as cluster:\n"
        "    cluster.start_worker(WorkerConfig(cores=2))\n"
        "    client, job = cluster.client(), Job()\n"
        '    for _ in range({n}): job.program(["bash", "-c", "true"])\n'
        "    client.wait_for_jobs([client.submit(job)])'",
    ),
    "HyperShell": (
        "hypershell",
        "export HOME=$PWD; seq {n} | hs cluster -N 2 --no-db -t 'bash -c true'",
    ),
    "dask.distributed": (
        "distributed",
        "echo 'import subprocess\n"
        "from distributed import Client\n"
        'if __name__ == "__main__":\n'
        "    with Client(\n"
        "        n_workers=2, threads_per_worker=1, dashboard_address=None\n"
        "    ) as client:\n"
        '        run = lambda _: subprocess.call(["bash", "-c", "true"])\n'
        "        client.gather(client.map(run, range({n}), pure=False))' >it.py\n"
        "python it.py",
    ),
}
# One task on an idle machine, to the end as its shell sees it.
PEERS_ONE: Dict[str, str] = {
    "tsp": "export TS_SOCKET=$PWD/tsp TMPDIR=$PWD\n"
    "for ((i = 0; i < {n}; i++)); do tsp -n true; tsp -w; done; tsp -K",
    "nq": "for ((i = 0; i < {n}; i++)); do nq true; nq -w; done",
}


def peers_of(scripts: Dict[str, str], count: int, directory: Path) -> Dict[str, float]:
    """Give the seconds that each peer which is installed takes for so many tasks."""
    took = {}
    for name, script in scripts.items():
        if shutil.which(name):
            empty = directory / ("peer " + name)
            empty.mkdir()
            took[name] = seconds(script.replace("{n}", str(count)), empty)
            shutil.rmtree(str(empty))
    return took


def pypi_peers_of(count: int, directory: Path) -> Dict[str, float]:
    """Give the seconds that those of PyPI take, which an environment has."""
    path = os.environ.get("LEORONIC_BENCH_PEERS", "")
    took = {}
    for name, (module, script) in PYPI_PEERS.items() if path else ():
        python = os.path.join(path, "bin", "python")
        if subprocess.run([python, "-c", "import " + module]).returncode == 0:
            empty = directory / name
            empty.mkdir()
            script = f"PATH={quote(path)}/bin:$PATH\n" + script
            took[name] = seconds(script.replace("{n}", str(count)), empty)
            shutil.rmtree(str(empty))
    return took


def beside(
    floor: Callable[[], float], measure: Callable[[], float], rounds: int
) -> List[List[float]]:
    """Measure floor and figure in turn."""
    pairs = [(floor(), measure()) for _ in range(rounds)]
    return [list(values) for values in zip(*pairs)]


# --- what a node takes ------------------------------------------------------------


def stat(pid: int) -> List[str]:
    """Give the fields of /proc/PID/stat behind the name; none if it is gone."""
    try:
        text = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def cpu_s(*pids: int, with_children: bool = False) -> float:
    """Give the processor time of processes, with children that they waited for."""
    last = 15 if with_children else 13
    return sum(sum(map(int, stat(pid)[11:last])) for pid in pids) / TICK


def run_s(*pids: int) -> float:
    """Give the processor time of processes as the scheduler counts it, to the ns."""
    threads = [p for pid in pids for p in Path("/proc", str(pid), "task").iterdir()]
    return sum(int((p / "schedstat").read_text().split()[0]) for p in threads) / 1e9


def all_of(node: Node) -> List[int]:
    """Give the processes of a node: itself, shells, watcher, relay."""
    known = {int(p): stat(int(p)) for p in os.listdir("/proc") if p.isdigit()}
    found = [node.pid, *processes_of(node.home)]
    for pid in found:  # it grows on the way
        found += [p for p, f in known.items() if f and int(f[1]) == pid]
    return sorted(set(found))


def children_s() -> float:
    """Give the processor time of what this process has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pss(pids: Sequence[int]) -> float:
    """Give the MiB that processes take, shared pages shared out."""
    total = 0
    for pid in pids:
        try:
            text = Path("/proc", str(pid), "smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Pss:\s+(\d+)", text, re.M)
        total += int(found.group(1)) if found else 0
    return total / 1024


def peak_rss(node: Node) -> float:
    """Give the most MiB that a comrade's own process had in memory so far."""
    text = Path("/proc", str(node.pid), "status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+)", text, re.M)
    return int(found.group(1)) / 1024 if found else 0.0


def loopback(what: str) -> int:
    """Give the `bytes` or `packets` that loopback sent in this network namespace."""
    text = Path("/proc/self/net/dev").read_text()  # /sys tells of where it was mounted
    found = re.search(r"^ *lo:(.*)", text, re.M)
    fields = found.group(1).split() if found else []
    return int(fields[{"bytes": 8, "packets": 9}[what]])
