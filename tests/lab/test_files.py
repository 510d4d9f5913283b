"""Working directories, collected and sent to, over bad networks.

What these two do on a sound one: tests/test_filecalls.py.
"""

import os
import subprocess
import time
from pathlib import Path

import figures
import pytest
from cluster import until
from scenes import Lab, clock, marks
from tools import memory_of, slow_down

pytestmark = marks


def fill(path: Path, size: int) -> bytes:
    """Write a file of random bytes; give them."""
    data = os.urandom(size)
    path.write_bytes(data)
    return data


def test_between_two_without_a_link_and_a_ghost_of_the_third(lab: Lab) -> None:
    lan = lab(3)
    first, between, last = lan.nodes
    lan.part_two(first, last)
    ghost = lan.ghost()
    ghost.words = [between.address]
    lan.start()
    until("all are one", lambda: all(len(node.ready()) == 3 for node in lan.nodes))
    ghost.start()
    until("it is attached", lambda: ghost.clairvoyant(last) == between.name)
    data = {node: fill(node.directory / "data", 300000) for node in (last, ghost)}
    code, out, err = first.sh("leoronic_get_all_files all")
    assert code == 0, (out, err, first.told())
    for node, content in data.items():
        assert (first.directory / "all" / node.name / "data").read_bytes() == content
    sent = fill(first.directory / "sent", 300000)
    code, out, err = first.sh("leoronic_send_file sent")
    assert code == 0, (out, err)
    for node in (between, last, ghost):
        assert (node.directory / "sent").read_bytes() == sent


def test_over_64_kbit_heartbeats_go_on_meanwhile(lab: Lab) -> None:
    lan = lab(2)
    first, slow = lan.nodes
    lan.start()
    content = fill(slow.directory / "data", 150000)
    slow_down(lan, slow, "64kbit", "4kb")
    began = time.monotonic()
    code, out, err = first.sh("leoronic_get_all_files all", timeout=120)
    took = clock(began)
    assert code == 0, err.decode() + slow.told()[-800:]
    assert (first.directory / "all" / slow.name / "data").read_bytes() == content
    figures.note("150 KB collected over 64 kbit/s", "-", "%.0f s" % took)
    logs = [node.home / "log" for node in lan.nodes]
    silent = sum(log.read_text().count("silent") for log in logs if log.exists())
    figures.note("150 KB collected over 64 kbit/s: links lost", "0", str(silent))
    assert silent == 0


def test_a_link_that_breaks_meanwhile_costs_seconds(lab: Lab) -> None:
    lan = lab(2)
    first, other = lan.nodes
    lan.start()
    content = fill(other.directory / "data", 40_000_000)
    slow_down(lan, other, "100mbit")
    memory = memory_of(first)
    done = first.directory / "done"
    began = time.monotonic()
    first.sh("(leoronic_get_all_files all >out 2>&1; echo $? >done) & sleep 1")
    lan.unplug(other)
    time.sleep(2)
    lan.plug(other)
    until("it has ended", done.exists, 60)
    until("and said how", lambda: done.read_text().strip())
    took = clock(began)
    printed = (first.directory / "out").read_text()
    assert done.read_text().strip() == "0", printed
    assert (first.directory / "all" / other.name / "data").read_bytes() == content
    figures.note("40 MB collected, a cable out for 2 s", "-", "%.1f s" % took)
    grown = memory_of(first) - memory
    figures.note("40 MB collected: memory", "10 MiB", "%d MiB" % grown)
    assert grown < 20


@pytest.mark.timeout(1000)
def test_a_hundred_thousand_files_are_collected_while_the_nodes_answer(
    lab: Lab,
) -> None:
    lan = lab(2)
    first, other = lan.nodes
    lan.start()
    count = 100000
    make = "seq %d | split -l 1 -a 4 - many" % count
    subprocess.run(["bash", "-c", make], cwd=str(other.directory), check=True)
    memory = [memory_of(node) for node in lan.nodes]
    done = first.directory / "done"
    began = time.monotonic()
    script = "(leoronic_get_all_files all >out 2>&1; echo $? >done) >/dev/null 2>&1 &"
    first.sh(script)
    slowest = 0.0
    while not (done.exists() and done.read_text()):
        assert clock(began) < 800
        asked = time.monotonic()
        assert len(first.ready()) == 2
        slowest = max(slowest, clock(asked))
        time.sleep(0.2)
    took = clock(began)
    assert done.read_text().strip() == "0", (first.directory / "out").read_text()
    there = first.directory / "all" / other.name
    assert sum(len(files) for _, _, files in os.walk(str(there))) >= count
    grown = max(memory_of(n) - was for n, was in zip(lan.nodes, memory))
    figures.note("100,000 files collected", "-", "%.0f s" % took, "65")
    figures.note("100,000 files: others wait", "1 s", "%.2f s" % slowest, "65")
    figures.note("100,000 files: memory", "-", "%d MiB" % grown, "65")
    assert slowest < 3 and grown < 100
