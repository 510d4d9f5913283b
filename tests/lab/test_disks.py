"""What disks do: full, hanging, damaged, empty, a year old, copied; and who comes back.

Small disks are tmpfs, a disk that hangs is a frozen file system. What single calls of
the journal do when they fail is shown in tests/test_journal.py. Numbers: FAULTS.
"""

import random
import shutil
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import List, Tuple

import figures
import pytest
from cluster import at_once, await_component, await_equal, until
from netlab import Machine
from scenes import (
    SLACK_S,
    Lab,
    add_one,
    await_again,
    begin,
    check,
    clock,
    finish,
    marks,
    tasks_of,
)
from tools import add_to_program, carried, disk_that_hangs, fill, small_disk

pytestmark = marks

LONG = "x" * 30000  # a command that takes room


# --- coming back ------------------------------------------------------------------


@pytest.mark.parametrize("disk", ["old", "empty"])
def test_a_machine_without_power_comes_back(lab: Lab, disk: str) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    back = lan.nodes[0]
    doomed = tasks_of(lan.ledger, [back])
    back.power_off()
    await_again(lan, doomed)
    late = lan.nodes[1].add(lan.ledger.task("late", gated=True))
    if disk == "empty":
        back.wipe()
    began = time.monotonic()
    back.start()
    await_component(lan.nodes)
    joined = clock(began)
    await_equal(lan.nodes)
    figures.note("back with its %s disk" % disk, "3 s", "%.2f s" % joined, "38")
    assert joined < 3.0 + SLACK_S
    until("late runs", lambda: "late" in lan.ledger.running())
    finish(lan, back, [*tasks, "late"], doomed)
    assert back.state(late) == "done"


def test_all_lose_their_power_and_start_again_at_once(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = begin(lan, 6)
    kept = lan.nodes[2].add("echo kept", "worker:tag later")
    for node in lan.nodes:
        node.power_off()
    began = time.monotonic()
    lan.start_at_once()
    figures.note("power cut, all back: met", "5 s", "%.2f s" % clock(began), "71")
    until("all again", lambda: set(lan.ledger.running()) == set(tasks), 30)
    await_again(lan, tasks)
    figures.note("power cut: tasks run again", "10 s", "%.2f s" % clock(began), "8")
    lan.nodes[0].call("leoronic_add_tag", "later")
    finish(lan, lan.nodes[1], tasks, tasks)
    assert set(lan.ledger.extra().values()) == {1}
    assert lan.nodes[0].output(kept) == b"kept\n"


@pytest.mark.timeout(900)
def test_a_node_back_after_a_year_brings_nothing_back_to_life(lab: Lab) -> None:
    # A year is cut short in all copies: what is over is forgotten after three seconds.
    count = 10000
    lan = lab(3)
    for node in lan.nodes:
        add_to_program(node, "purge", "HOUR_S, KEEP_H = 0.5, 6")
    lan.start()
    away, first = lan.nodes[2], lan.nodes[0]
    count_file = lan.ledger.gate.with_name("c")
    command = "echo >>'%s'" % count_file
    first.add_all([command] * count, "worker:tag go")
    until("all have them", lambda: count_of(lan.nodes) == [count] * 3, 60)
    running = [away.add(lan.ledger.task("r%d" % i, gated=True)) for i in range(2)]
    until("they run", lambda: len(lan.ledger.running()) == 2)
    doomed = tasks_of(lan.ledger, [away])
    away.power_off()
    await_again(lan, doomed)
    lan.ledger.open_gate()
    began = time.monotonic()
    first.call("leoronic_add_tag", "go")
    lan.nodes[1].call("leoronic_add_tag", "go")
    until("all is over and purged", lambda: count_of(lan.nodes[:2]) == [0, 0], 600)
    text = "%.0f s" % clock(began)
    figures.note("%d tasks run and purged meanwhile" % count, "-", text, "36")
    ran = len(count_file.read_text().splitlines())
    before, began = carried(away), time.monotonic()
    away.start()
    await_component(lan.nodes)
    until("it has forgotten", lambda: count_of([away]) == [0], 60)
    text = "%.2f s" % clock(began)
    figures.note("back after a year: equal", "20 s", text, "36")
    text = "%d kB" % ((carried(away) - before) >> 10)
    figures.note("back after a year: synchronised with", "-", text, "36")
    time.sleep(5)
    again = len(count_file.read_text().splitlines()) - ran
    resurrected = again + sum(count_of(lan.nodes))
    figures.note("back after a year: resurrected", "0", str(resurrected), "36")
    assert ran == count and resurrected == 0 and running
    check(lan, ["r0", "r1"], doomed)


def count_of(nodes: List[Machine]) -> List[int]:
    """Count the tasks in each node's queue."""
    script = "leoronic_get_queue --csv | wc -l"
    found = at_once([partial(node.sh, script, timeout=600.0) for node in nodes])
    return [int(out) - 1 for _, out, _ in found]


# --- one directory, two processes ---------------------------------------------------


def test_a_second_comrade_on_one_state_directory_is_refused(lab: Lab) -> None:
    lan = lab(2)
    lan.start()
    tasks = begin(lan, 4)
    node = lan.nodes[0]
    began = time.monotonic()
    second = subprocess.run(
        [*node.prefix, "bash", str(node.program / "leoronic")],
        cwd=str(node.directory),
        env=node.env,
        capture_output=True,
        timeout=30,
    )
    took = clock(began)
    assert second.returncode == 100 and b"in use" in second.stderr, second
    figures.note(
        "a second process on one state: exit 100", "1 s", "%.2f s" % took, "39"
    )
    await_component(lan.nodes)
    finish(lan, node, tasks, [])


def test_a_state_directory_that_was_cloned_becomes_two_nodes(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    origin = lan.nodes[0]
    kept = origin.add("echo kept", "worker:tag later")
    await_equal(lan.nodes)
    origin.stop()
    clone = lan.machine()
    shutil.rmtree(str(clone.home))
    shutil.copytree(str(origin.home), str(clone.home))
    pair = [origin, clone]
    for node in pair:
        node.launch()
    began = time.monotonic()
    until("one is told", lambda: [n for n in pair if "is a copy" in n.printed()], 30)
    until("all talk", lambda: all(n.sh("leoronic_nodes")[0] == 0 for n in pair), 30)
    everyone = [*lan.nodes, clone]
    await_component(everyone, 40)
    took = clock(began)
    time.sleep(4)  # no ping-pong
    await_component(everyone)
    told = [node.printed().count("is a copy") for node in pair]
    figures.note("a cloned state directory: all ready", "-", "%.2f s" % took, "40")
    figures.note("a cloned state directory: new ids", "1", str(sum(told)), "40")
    assert sorted(told) == [0, 1]
    clone.call("leoronic_add_tag", "later")
    assert origin.wait(kept) == 0
    names = [clone.add(lan.ledger.task("c")), origin.add(lan.ledger.task("o"))]
    assert lan.nodes[1].wait(*names) == 0
    check(lan, ["c", "o"])
    await_equal(everyone)


# --- full disks -------------------------------------------------------------------


def add_long(node: Machine, name: str) -> Tuple[int, bytes, float]:
    """Add a task that takes room; give exit code, message and seconds."""
    began = time.monotonic()
    code, _, err = node.sh(
        "leoronic_add_task 1K 1 1K true 'worker:tag never' '' 'true %s' %s"
        % (LONG, name)
    )
    return code, err, clock(began)


def test_one_full_disk(lab: Lab) -> None:
    lan = lab(3)
    full = lan.nodes[0]
    with small_disk(full, "16m") as disk:
        lan.start()
        tasks = begin(lan, 6)
        filler = fill(disk)
        taken: List[str] = []
        slowest, refused = 0.0, 0
        for i in range(60):
            node = lan.nodes[i % 2]
            code, err, took = add_long(node, "n%d" % i)
            slowest = max(slowest, took)
            assert code in (0, 1), err
            if code == 0:
                taken.append("n%d" % i)
            else:
                assert b"nothing was added" in err and node is full, err
                refused += 1
        what = "one full disk of three"
        text = "%d of 60, %d at the full one" % (refused, refused)
        figures.note(what + ": adds refused", "-", text, "43")
        figures.note(what + ": the slowest add", "2 s", "%.2f s" % slowest, "43")
        lan.ledger.open_gate()
        until("tasks end", lambda: len(lan.ledger.lines("end")) == 6, 30)
        lan.nodes[1].call("leoronic_del_task", taken.pop())
        filler.unlink()
        states = until(
            "the full one has all",
            lambda: full.states() if set(taken) <= set(full.states()) else None,
            30,
        )
        assert full.add("true", "worker:tag never") and states
        lost = [name for name in taken if name not in lan.nodes[2].states()]
        figures.note(what + ": acknowledged, then lost", "0", str(len(lost)), "43")
        rows = await_equal(lan.nodes)
        assert not lost and len([r for r in rows if r["state"] == "done"]) == 6
        check(lan, tasks)
        full.power_off()


def test_all_disks_are_full(lab: Lab) -> None:
    lan = lab(3)
    with ExitStack() as stack:
        disks = [stack.enter_context(small_disk(node, "16m")) for node in lan.nodes]
        lan.start()
        tasks = begin(lan, 6)
        fillers = [fill(disk) for disk in disks]
        refused: List[float] = []
        slowest = 0.0
        for i in range(400):
            code, err, took = add_long(lan.nodes[i % 3], "n%d" % i)
            if code:
                assert code == 1 and b"no space left" in err.lower(), err
                refused.append(took)
                slowest = max(refused)
            if len(refused) >= 5:
                break
        assert len(refused) >= 5
        text = "%.2f s" % slowest
        figures.note("all disks full: an add is refused", "2 s", text, "44")
        lan.ledger.open_gate()
        until("tasks end", lambda: len(lan.ledger.lines("end")) == 6, 30)
        for filler in fillers:
            filler.unlink()
        rows = await_equal(lan.nodes, 30)
        done = len([row for row in rows if row["state"] == "done"])
        text = "%d of 6" % done
        figures.note("all disks full: ends that are known", "6 of 6", text, "44")
        assert done == 6 and add_long(lan.nodes[0], "again")[0] == 0
        check(lan, tasks)
        for node in lan.nodes:
            node.power_off()


# --- disks that hang or break -------------------------------------------------------


@pytest.mark.parametrize("role", ["worker", "drained"])
def test_a_disk_that_hangs_for_half_a_minute(lab: Lab, role: str) -> None:
    lan = lab(3)
    ill, well, other = lan.nodes
    with disk_that_hangs(ill) as hang:
        lan.start()
        tasks = begin(lan, 6)
        if role == "drained":
            ill.call("leoronic_drain")
        hang(True)
        began = time.monotonic()
        slowest, missed, count = 0.0, 0, 0
        while clock(began) < 30:
            slowest = max(slowest, add_one(lan, well, "w%d" % count))
            count += 1
            missed += other.members()[ill.address]["state"] in ("suspect", "lost")
            time.sleep(0.5)
        hang(False)
        began = time.monotonic()
        ill.call("leoronic_undrain")
        await_component(lan.nodes, 30)
        await_equal(lan.nodes, 30)
        equal = clock(began)
        what = "the disk of a %s node hangs for 30 s" % role
        figures.note(what + ": adds at the others", "2 s", "%.2f s" % slowest, "46")
        text = "%d of %d looks" % (missed, count)
        figures.note(what + ": it is missed", "0 looks", text, "46")
        assert missed == 0
        figures.note(what + ", goes on: equal", "10 s", "%.2f s" % equal, "46")
        lan.ledger.open_gate()
        assert well.wait(seconds=60) == 0
        check(lan, [*tasks, *["w%d" % i for i in range(count)]], tasks)
        ill.power_off()


def database(home: Path) -> Path:
    """Give the file with the queue."""
    return max((home / "queue").iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("how", ["bits flipped", "cut in half", "emptied"])
def test_a_damaged_queue_is_said_and_comes_back_from_the_others(
    lab: Lab, how: str
) -> None:
    lan = lab(3)
    lan.start()
    ids = lan.nodes[0].add_all(["true " + "y" * 200] * 400, "worker:tag never")
    await_equal(lan.nodes)
    ill = lan.nodes[1]
    ill.stop()
    path = database(ill.home)
    data = bytearray(path.read_bytes())
    luck = random.Random(49)
    for _ in range(40 if how == "bits flipped" else 0):
        data[luck.randrange(4096, len(data))] ^= 1 << luck.randrange(8)
    if how != "bits flipped":
        del data[len(data) // 2 if how == "cut in half" else 0 :]
    path.write_bytes(bytes(data))
    began = time.monotonic()
    ill.start()
    rows = await_equal(lan.nodes)
    took = clock(began)
    said = ill.printed()
    assert {row["id"] for row in rows} == set(ids)
    assert "damaged" in said, said
    figures.note("a queue with %s: repaired" % how, "10 s", "%.2f s" % took, "49")
    assert took < 10.0 + SLACK_S


def test_the_adder_dies_with_its_disk_right_after_each_acknowledgement(
    lab: Lab,
) -> None:
    lan = lab(3)
    lan.start()
    added: List[str] = []
    for i in range(9):
        node = lan.nodes[i % 3]
        words = "leoronic_add_task 1K 1 1K true 'worker:tag never' '' 'echo %d'" % i
        code, out, err = node.sh("%s && kill -9 %d" % (words, node.pid))
        assert (code, err) == (0, b""), err
        assert node.process and node.process.wait(5) == -9
        node.wipe()
        added.append(out.decode().strip())
        node.start()
        await_component(lan.nodes)
    rows = await_equal(lan.nodes)
    lost = set(added) - {row["id"] for row in rows}
    text = "%d lost of %d" % (len(lost), len(added))
    figures.note("added, killed at once, disk gone", "0 lost", text, "52")
    assert not lost
