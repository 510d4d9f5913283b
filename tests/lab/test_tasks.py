"""What tasks and users do: many at once, deleted at bad moments, hostile, upgraded.

Numbers are those of FAULTS.
"""

import os
import shutil
import signal
import subprocess
import time
from typing import List

import figures
import pytest
from cluster import at_once, await_component, await_equal, until
from netlab import coordinators
from scenes import (
    SLACK_S,
    Lab,
    begin,
    check,
    clock,
    extra_text,
    latencies,
    marks,
    share,
    tasks_of,
)
from test_cluster import find_python
from tools import kill, memory_of, small_disk

pytestmark = marks


def test_a_healthy_network_starts_each_of_a_thousand_tasks_once(lab: Lab) -> None:
    lan = lab(4)
    lan.start()
    tasks = ["t%d" % i for i in range(1000)]
    began = time.monotonic()
    for i, node in enumerate(lan.nodes):
        node.add_all([lan.ledger.task(name) for name in tasks[i::4]])
    until("all ended", lambda: len(lan.ledger.lines("end")) >= 1000, 120)
    took = clock(began)
    assert lan.nodes[0].wait() == 0
    figures.note("healthy: 1000 tasks on 4 nodes done", "all", "%.1f s" % took, "1")
    figures.note("healthy: 1000 tasks, twice", "0", extra_text(lan), "1")
    check(lan, tasks)
    await_equal(lan.nodes)
    assert len(coordinators(lan.ledger)) == 1
    ids = [lan.nodes[i % 4].add("true") for i in range(60)]
    assert lan.nodes[0].wait(*ids) == 0
    waits = [w for node in lan.nodes for w in latencies(node, ids)]
    p95 = share(sorted(waits), 0.95)
    figures.note("healthy: added to started, 95 %", "0.05 s", "%.3f s" % p95, "1")


def test_a_fourth_joins_and_one_is_killed_while_tasks_run(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = ["t%d" % i for i in range(150)]
    lan.nodes[1].add_all([lan.ledger.task(name, 0.5) for name in tasks])
    until("under way", lambda: len(lan.ledger.lines("end")) > 20)
    fourth = lan.machine()
    fourth.start()
    until("it works", lambda: tasks_of(lan.ledger, [fourth]))
    victim = lan.nodes[0]
    before = {line.run for line in lan.ledger.lines("end") if line.at < time.time() - 1}
    victim.kill9()
    assert lan.nodes[2].wait(seconds=60) == 0
    its = [line for line in lan.ledger.lines("start") if line.node == victim.name]
    doomed = [line.task for line in its if line.run not in before]
    what = "150 tasks, a fourth joins, one is killed: twice"
    figures.note(what, "what it ran: %d" % len(doomed), extra_text(lan), "1")
    check(lan, tasks, doomed)
    await_equal([*lan.nodes[1:], fourth])


# --- users ------------------------------------------------------------------------


def test_an_add_whose_answer_was_lost_may_be_repeated_elsewhere(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    tasks = []
    for i in range(10):
        name = "mine%d" % i
        tasks.append(name)
        command = lan.ledger.task(name)
        words = "leoronic_add_task 1K 1 1K true '' '' \"$COMMAND\" %s" % name
        script = "source leoronic_utilities; " + words
        client = subprocess.Popen(
            [*lan.nodes[0].prefix, "bash", "-c", script],
            cwd=str(lan.nodes[0].program),
            env=dict(lan.nodes[0].env, COMMAND=command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.004 * i)  # before, within and after the call
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        assert lan.nodes[1].add(command, name=name) == name
    assert lan.nodes[2].wait(*tasks) == 0
    rows = await_equal(lan.nodes)
    text = "%d of 10" % len(rows)
    figures.note("ack lost, repeated elsewhere: tasks", "10 of 10", text, "51")
    assert sorted(row["id"] for row in rows) == sorted(tasks)
    check(lan, tasks)


def test_a_task_is_deleted_at_every_moment(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    first, second, third = lan.nodes
    waiting = first.add(lan.ledger.task("waiting"), "worker:tag never")
    assert second.sh("leoronic_del_task " + waiting)[0] == 0  # before it is granted
    running = first.add("trap '' TERM; sleep 1000", "worker:is old3")
    until("it runs", lambda: "sleep 1000" in commands(third.pids()))
    began = time.monotonic()
    assert second.sh("leoronic_del_task " + running)[0] == 0
    until("it is stopped", lambda: "sleep 1000" not in commands(third.pids()))
    text = "%.2f s" % clock(began)
    figures.note("a running task that ignores TERM is deleted", "7 s", text, "54")
    over = first.add("true")
    assert first.wait(over) == 0
    assert second.sh("leoronic_del_task " + over)[0] == 1  # after its end
    assert second.sh("leoronic_del_task " + running)[0] == 1  # twice
    assert second.sh("leoronic_del_task nothing")[0] == 1  # unknown
    deleted: List[str] = []
    for i in range(20):  # right at its start
        name = "race%d" % i
        task = first.add(lan.ledger.task(name, gated=True))
        if second.sh("leoronic_del_task " + task)[0] == 0:
            deleted.append(name)
    known = len(lan.ledger.lines("start"))
    lan.ledger.open_gate()
    time.sleep(3)
    late = [x.task for x in lan.ledger.lines("start")[known:] if x.task in deleted]
    ended = [x.task for x in lan.ledger.lines("end") if x.task in deleted]
    what = "%d deleted at their start" % len(deleted)
    text = "%d started later, %d ended" % (len(late), len(ended))
    figures.note(what, "0 started later", text, "54")
    assert deleted and not late and not ended
    assert not lan.ledger.lines("start", "waiting")


def test_a_task_deleted_in_one_half_is_stopped_in_the_other_after_the_heal(
    lab: Lab,
) -> None:
    lan = lab(3)
    lan.start()
    away = lan.nodes[2]
    task = lan.nodes[0].add(lan.ledger.task("far", gated=True), "worker:is old3")
    until("it runs", lambda: "far" in lan.ledger.running())
    lan.unplug(away)
    until("it is away", lambda: len(lan.nodes[0].ready()) == 2)
    lan.nodes[0].call("leoronic_del_task", task)
    began = time.monotonic()
    lan.plug(away)
    until("it is stopped", lambda: not tasks_alive(away.pids(), task))
    took = clock(began)
    figures.note(
        "deleted in the other half, healed: stopped", "10 s", "%.2f s" % took, "54"
    )
    assert took < 10.0 + SLACK_S
    assert [row["state"] for row in await_equal(lan.nodes)] == ["deleted"]


def commands(pids: List[int]) -> str:
    """Give the command lines of processes."""
    found = []
    for pid in pids:
        try:
            with open("/proc/%d/cmdline" % pid, "rb") as file:
                found.append(file.read().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def tasks_alive(pids: List[int], task: str) -> bool:
    """Say whether one of these processes is of a task."""
    mark = b"LEORONIC_TASK_ID=%s\0" % task.encode()
    for pid in pids:
        try:
            with open("/proc/%d/environ" % pid, "rb") as file:
                if mark in file.read() + b"\0":
                    return True
        except OSError:
            continue
    return False


def test_fifty_clients_add_at_once(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    node = lan.nodes[0]
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do leoronic_add_task 1K 1 1K true "
    script += "'worker:tag never' '' true || exit; done"
    began = time.monotonic()
    done = at_once([lambda: node.sh(script, timeout=120) for _ in range(50)])
    took = clock(began)
    acked = sum(len(out.split()) for _, out, _ in done)
    refused = [err for code, _, err in done if code]
    await_equal(lan.nodes, 40)
    count = len(node.states())
    what = "50 clients add 10 tasks each"
    figures.note(what + ": all answered", "-", "%.1f s" % took, "60")
    text = "%d of 500" % acked
    figures.note(what + ": acknowledged", "500, or refused in words", text, "60")
    figures.note(what + ": memory", "-", "%d MiB" % memory_of(node), "60")
    assert count >= acked and all(err.startswith(b"leoronic: ") for err in refused)
    assert acked + 10 * len(refused) >= 500


# --- hostile tasks ----------------------------------------------------------------


def test_a_task_that_kills_its_node_is_given_up_after_five(lab: Lab) -> None:
    lan = lab(3)
    lan.start()
    calm = begin(lan, 3, by=1)
    for node in lan.nodes:
        (node.top / "victim").write_text(str(node.pid))
        node.env["VICTIM"] = str(node.top / "victim")
    for node in lan.nodes:  # so that their tasks see VICTIM
        node.restart()
        (node.top / "victim").write_text(str(node.pid))
    await_component(lan.nodes)
    until("all run", lambda: len(lan.ledger.running()) == 3)
    before = set(lan.ledger.extra())
    deadly = lan.nodes[1].add('kill -9 "$(cat "$VICTIM")"; sleep 100')
    deaths = 0
    began = time.monotonic()
    while clock(began) < 100:
        for node in lan.nodes:
            if node.process and node.process.poll() is not None:
                deaths += 1
                node.start()
                (node.top / "victim").write_text(str(node.pid))
        if lan.nodes[0].state(deadly) == "failed":
            break
    await_component(lan.nodes, 30)
    figures.note("a task that kills its node: nodes killed", "5", str(deaths), "56")
    (row,) = [row for row in await_equal(lan.nodes) if row["id"] == deadly]
    assert row["state"] == "failed" and deaths == 5
    lan.ledger.open_gate()
    until("others end", lambda: len(lan.ledger.lines("end")) == 3, 40)
    text = "%d of 3" % len({line.task for line in lan.ledger.lines("end")})
    figures.note("... other tasks done", "3 of 3", text, "56")
    check(lan, calm, [*calm, *before])


def test_a_task_that_prints_a_gigabyte_leaves_the_memory_flat(lab: Lab) -> None:
    lan = lab(2)
    lan.start()
    node = lan.nodes[0]
    before = memory_of(node, "VmRSS")
    loud = node.add(
        "(trap '' TERM; exec >&- 2>&-; sleep 500) & setsid sleep 501 & "
        "head -c 1000000000 /dev/urandom",
        "worker:is old1",
    )
    assert node.wait(loud, seconds=90) == 0
    grown = memory_of(node) - before
    left = [pid for pid in node.pids() if tasks_alive([pid], loud)]
    figures.note("a task prints 1 GB: memory grows by", "-", "%d MiB" % grown, "57")
    figures.note("... processes it left behind", "0", str(len(left)), "57")
    assert not left and grown < 64
    for pid in left:
        kill(pid)


def test_a_task_that_prints_more_than_the_disk_holds_is_cut(lab: Lab) -> None:
    lan = lab(2)
    node = lan.nodes[0]
    with small_disk(node, "200m") as disk:
        lan.start()
        before = memory_of(node, "VmRSS")
        began = time.monotonic()
        loud = node.add("head -c 10G /dev/zero", "worker:is old1")
        beside = [node.add("sleep 1; echo beside", "worker:is old1") for _ in range(3)]
        assert node.wait(*beside, seconds=120) == 0, node.told()
        assert node.wait(loud, seconds=300) in (0, 1)
        took = clock(began)
        left = shutil.disk_usage(str(disk)).free
        grown = memory_of(node) - before
        (row,) = [row for row in node.rows() if row["id"] == loud]
        code, out, _ = node.sh("leoronic_get_output %s | tail -c 300" % loud)
        assert b"were dropped here" in out, (row, out)
        assert node.wait(node.add("echo next", "worker:is old1")) == 0
        assert len(lan.nodes[1].ready()) == 2
        node.power_off()
    what = "a task prints 10 GB on a disk of 200 MB"
    figures.note(what + ": ends after", "-", "%.0f s" % took, "57")
    figures.note(what + ": MB free then", "-", "%.0f" % (left / 1e6), "57")
    figures.note(what + ": memory", "-", "%d MiB" % grown, "57")
    assert left > 100e6 and grown < 64


def test_a_task_that_fills_the_disk_fails_alone(lab: Lab) -> None:
    lan = lab(2)
    node = lan.nodes[0]
    with small_disk(node, "64m") as disk:
        lan.start()
        # Its own working directory is as good a place: here it is the worst one.
        filler = node.add(f"head -c 1G /dev/zero >'{disk}/filler'", "worker:is old1")
        assert node.wait(filler, seconds=60) == 1
        free = shutil.disk_usage(str(disk)).free
        began = time.monotonic()
        cleared = node.add(f"rm '{disk}/filler'", "worker:is old1")
        code = node.wait(cleared, seconds=60)
        took = clock(began)
        assert code == 0, node.told()
        assert node.wait(node.add("echo next", "worker:is old1")) == 0
        await_equal(lan.nodes)
        node.power_off()
    figures.note("a task fills the disk: bytes free", "-", str(free), "57")
    figures.note("... the next one, which clears it", "-", "%.1f s" % took, "57")


# --- upgrades ---------------------------------------------------------------------


def test_a_rolling_upgrade_of_python(lab: Lab) -> None:
    old, new = find_python("3.7"), find_python("3.13")
    if not (old and new):
        pytest.skip("Python 3.7 and 3.13 aren't both here")
    lan = lab(3)
    for node in lan.nodes:
        node.env["LEORONIC_PYTHON"] = old
    lan.start()
    tasks = ["t%d" % i for i in range(200)]
    lan.nodes[0].add_all([lan.ledger.task(name, 0.5) for name in tasks])
    for node in lan.nodes:
        node.env["LEORONIC_PYTHON"] = new
        node.restart()
        await_component(lan.nodes)
    assert lan.nodes[1].wait(seconds=90) == 0
    await_equal(lan.nodes)
    text = "%d of 200" % sum(lan.ledger.extra().values())
    figures.note("3.7 to 3.13, one by one: handed back", "-", text, "69")
    text = "%d lost" % len(lan.ledger.amiss(tasks)[0])
    figures.note("3.7 to 3.13, one by one, 200 tasks", "0 lost", text, "69")
    check(lan, tasks, tasks)
