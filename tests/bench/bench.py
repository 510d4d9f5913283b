"""Benchmarks: each figure beside a floor that is measured in the same run.

    bash tests/run --bench [NAME...]      all, or the named ones; --rounds N (default 5)

Nothing here asserts: absolute times mean little on shared machines. Each row is the
median of the rounds with its least and greatest; ratios are taken round by round.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, List, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import Node, free_port, processes_of

TASKS = 1000  # short ones in a round
MANY = 100000  # added at once
BIG_MIB = 1024  # of the large necessary file
IDLE_S = 20.0  # looked at while nothing happens
ADDRESSES = ["127.0.0.31", "127.0.0.32", "127.0.0.33"]


def floor() -> float:
    """Give tasks per second of xargs: fork and exec of bash, on two processors."""
    start = time.monotonic()
    numbers = "\n".join(map(str, range(TASKS))).encode()
    command = ["xargs", "-P2", "-n1", "bash", "-c", "true"]
    subprocess.run(command, input=numbers, check=True)
    return TASKS / (time.monotonic() - start)


def cluster(stack: ExitStack, count: int, **env: str) -> List[Node]:
    """Start comrades that know each other."""
    addresses = ADDRESSES[:count]
    port = free_port(addresses)
    return [
        stack.enter_context(
            Node(address, port, [a for a in addresses if a != address], env=dict(env))
        )
        for address in addresses
    ]


def listed(command: str, count: int) -> str:
    """Give a list of equal tasks."""
    return "1K 1 1K true '' '' '%s'\n" % command * count


def throughput(nodes: List[Node], command: str) -> float:
    """Give tasks per second from adding a list to its last end."""
    path = nodes[0].directory / "list"
    path.write_text(listed(command, TASKS))
    start = time.monotonic()
    script = "leoronic_add_tasks_from_file list >/dev/null && leoronic_wait"
    code, _, err = nodes[0].sh(script, timeout=600)
    assert code == 0, err
    return TASKS / (time.monotonic() - start)


def one_node(rounds: int) -> List[str]:
    """1,000 x true on one node, journalled, beside xargs -P2."""
    with ExitStack() as stack:
        nodes = cluster(stack, 1, LEORONIC_CORES="2")
        return beside("one node, tasks/s", lambda: throughput(nodes, "true"), rounds)


def one_node_output(rounds: int) -> List[str]:
    """1,000 x echo on one node, outputs kept, beside xargs -P2."""
    with ExitStack() as stack:
        nodes = cluster(stack, 1, LEORONIC_CORES="2")
        name = "one node with output, tasks/s"
        return beside(name, lambda: throughput(nodes, "echo hello"), rounds)


def three_nodes(rounds: int) -> List[str]:
    """1,000 x true on three comrades on the same processors, beside xargs -P2."""
    with ExitStack() as stack:
        nodes = cluster(stack, 3, LEORONIC_CORES="1")
        name = "three comrades, tasks/s"
        return beside(name, lambda: throughput(nodes, "true"), rounds)


def beside(name: str, measure: Callable[[], float], rounds: int) -> List[str]:
    """Measure and floor in turn; give the row of both and the row of the ratio."""
    measure()  # The first round starts the shells.
    floors, rates = [], []
    for _ in range(rounds):
        floors.append(floor())
        rates.append(measure())
    ratios = [rate / low for rate, low in zip(rates, floors)]
    return [
        row(name, rates),
        row("  xargs -P2, tasks/s", floors),
        row("  ratio", ratios),
    ]


def submit(rounds: int) -> List[str]:
    """One leoronic_add_task in a shell loop, durable, beside a bare python."""
    count = 200
    with ExitStack() as stack:
        (node,) = cluster(stack, 1, LEORONIC_CORES="1")
        add = "leoronic_add_task 1K 1 1K true 'worker:tag none' '' true"
        loop = "for ((i = 0; i < %d; i++)); do %s; done >/dev/null"
        adds, captured, pythons = [], [], []
        for _ in range(rounds):
            adds.append(timed(node, loop % (count, add)) / count * 1000)
            inside = "x=$(%s)" % add
            captured.append(timed(node, loop % (count, inside)) / count * 1000)
            python = "%s -I -S -c pass" % sys.executable
            pythons.append(timed(node, loop % (20, python)) / 20 * 1000)
    return [
        row("leoronic_add_task, ms", adds),
        row("  inside $(...), ms", captured),
        row("  python3 -I -S -c pass, ms", pythons),
    ]


def timed(node: Node, script: str) -> float:
    """Give the seconds that a script takes, without bash's start."""
    code, out, err = node.sh("TIMEFORMAT=%%R; time { %s; }" % script, timeout=300)
    assert code == 0, err
    return float(err.decode().split()[-1])


def latency(rounds: int) -> List[str]:
    """From adding a task to its end, as the shell sees it, on an idle node."""
    with ExitStack() as stack:
        (node,) = cluster(stack, 1, LEORONIC_CORES="2")
        script = "leoronic_add_task 1K 1 1K true '' '' true >/dev/null; leoronic_wait"
        times = [timed(node, script) * 1000 for _ in range(10 * rounds)]
    return [row("add to end seen, ms", times)]


def many(rounds: int) -> List[str]:
    """100,000 tasks from a file, waiting; memory before and after."""
    with ExitStack() as stack:
        (node,) = cluster(stack, 1, LEORONIC_CORES="1")
        path = node.directory / "list"
        line = "1K 1 1K true 'worker:tag none' '' 'echo %d'\n"
        path.write_text("".join(line % i for i in range(MANY)))
        before = pss(node)
        seconds = timed(node, "leoronic_add_tasks_from_file list >/dev/null")
        after = pss(node)
        listing = timed(node, "leoronic_get_queue --json >/dev/null")
        node.stop()
        start = time.monotonic()
        node.start()
        restart = time.monotonic() - start
    return [
        row("100,000 tasks added, s", [seconds]),
        row("  memory they take, MiB", [after - before]),
        row("  listed as JSON, s", [listing]),
        row("  restart with them, s", [restart]),
    ]


def idle(rounds: int) -> List[str]:
    """Memory, processor time and traffic of three idle comrades, each."""
    with ExitStack() as stack:
        nodes = cluster(stack, 3, LEORONIC_CORES="2")
        time.sleep(3)
        cpu, bytes_sent = sum(map(cpu_s, nodes)), loopback_bytes()
        time.sleep(IDLE_S)
        busy = (sum(map(cpu_s, nodes)) - cpu) / 3 / IDLE_S * 100
        # Each of three links is counted once on its way out.
        traffic = (loopback_bytes() - bytes_sent) / 3 / IDLE_S
        memory = [pss(node) for node in nodes]
    return [
        row("idle comrade, PSS of its processes, MiB", memory),
        row("  processor, % of a core", [busy]),
        row("  traffic for each peer, both ways, bytes/s", [traffic]),
    ]


def first_task(rounds: int) -> List[str]:
    """From `bash leoronic` to the end of the first task."""
    times = []
    for _ in range(rounds):
        start = time.monotonic()
        with Node(ADDRESSES[0]) as node:
            node.sh("leoronic_add_task 1K 1 1K true '' '' true; leoronic_wait")
            times.append(time.monotonic() - start)
    return [row("start to first task done, s", times)]


def big_file(rounds: int) -> List[str]:
    """A 1 GiB necessary file on its way to three comrades, beside cat | cat."""
    with ExitStack() as stack:
        nodes = cluster(stack, 3, LEORONIC_CORES="1")
        path = nodes[0].directory / "big"
        with open(str(path), "wb") as file:
            for _ in range(BIG_MIB):
                file.write(os.urandom(1 << 20))
        start = time.monotonic()
        command = ["sh", "-c", "cat big | cat > big2; rm big2"]
        subprocess.run(command, cwd=str(path.parent), check=True)
        pipe = time.monotonic() - start
        before = [peak_rss(node) for node in nodes]
        add = "leoronic_add_task 1K 1 1K true 'worker:is %s' big 'wc -c < big'"
        script = add % nodes[2].address + " x >/dev/null; leoronic_wait x"
        start = time.monotonic()
        code, _, err = nodes[0].sh(script, timeout=600)
        assert code == 0, err
        took = time.monotonic() - start
        grown = [peak_rss(node) - b for node, b in zip(nodes, before)]
        log = "".join(node.printed() for node in nodes)
    return [
        row("1 GiB file added, sent and used, MiB/s", [BIG_MIB / took]),
        row("  cat | cat > file, MiB/s", [BIG_MIB / pipe]),
        row("  peak memory more, each comrade, MiB", grown),
        row("  lines told meanwhile", [log.count("\n") - len(nodes)]),
    ]


def peak_rss(node: Node) -> float:
    """Give the most MiB that a comrade's own process had in memory so far."""
    text = Path("/proc", str(node.pid), "status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+)", text, re.M).group(1)) / 1024


def pss(node: Node) -> float:
    """Give the MiB that a node's processes take, shared pages shared out."""
    total = 0
    for pid in processes_of(node.home) + [node.pid]:
        try:
            text = Path("/proc", str(pid), "smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss:\s+(\d+)", text, re.M).group(1))
    return total / 1024


def cpu_s(node: Node) -> float:
    """Give the seconds of processor time that a comrade's own process has used."""
    fields = Path("/proc", str(node.pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loopback_bytes() -> int:
    """Give the bytes that the loopback interface has sent."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def row(name: str, values: Sequence[float]) -> str:
    """Lay out one figure: median, least, greatest, how many."""
    middle = statistics.median(values)
    return "%-46s %10.2f %10.2f %10.2f  (%d)" % (
        name,
        middle,
        min(values),
        max(values),
        len(values),
    )


BENCHES: Dict[str, Callable[[int], List[str]]] = {
    bench.__name__: bench
    for bench in (
        one_node,
        one_node_output,
        three_nodes,
        submit,
        latency,
        many,
        idle,
        first_task,
        big_file,
    )
}


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bash = subprocess.run(["bash", "--version"], capture_output=True, text=True)
    print("Python %s, %s" % (sys.version.split()[0], bash.stdout.split("\n")[0]))
    print("%d processors, %s" % (os.cpu_count() or 0, shutil.which("xargs")))
    print("%-46s %10s %10s %10s" % ("", "median", "least", "greatest"))
    for name in options.names or BENCHES:
        for line in BENCHES[name](options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
