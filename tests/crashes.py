"""Comrades that crash, what was promised before, and whether it was kept.

    story = Story(cluster.ledger)
    while crash(armed, others, story, Plan("after commit", 2)): ...
    story.check_end([armed, *others])

A *story* is all that was asked of a cluster and what it acknowledged; nothing is
believed that the cluster says of itself later on. An *armed* node kills itself at a
point of points.CATALOGUE (tests/killpoints.py) and is started again with the next plan,
so each restart begins from what the crash before has left.

Used by tests/test_crash.py (some of it) and tests/crash (all, for hours).
"""

import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set

import figures
from client import NoAnswer, ask
from cluster import Cluster, Ledger, Member, await_component, until
from helpers import CHECKOUT, POLL_S, READY_TIMEOUT_S, processes_of

TRIAL_S = 15.0  # for one scenario's tasks to end, on a busy machine
LARGE_BYTES = 100_000  # printed, or in a file: more than what goes into the database
CALM_EVERY = 3  # crashes; a task that lost five nodes is given up
NEVER = "worker:tag never"  # until the story's end


class Plan(NamedTuple):
    """Where the armed node kills itself, and at which passing."""

    place: str
    times: int = 1
    leads: bool = False  # it must be the coordinator for that
    damage: str = ""  # done to its database before: "header" or "all"


class Armed(Member):
    """A node that kills itself as planned; without a plan it only traces."""

    plan = Plan("")

    @property
    def trace(self) -> Path:
        return self.top / "trace"

    def command(self) -> List[str]:
        script = str(CHECKOUT / "tests" / "killpoints.py")
        python = [self.env["LEORONIC_PYTHON"], "-E", "-X", "utf8", script]
        return [*python, str(self.trace), self.plan.place, str(self.plan.times)]

    def launch(self) -> None:
        if self.trace.exists():
            self.trace.unlink()
        super().launch()

    def passings(self) -> Dict[str, int]:
        """Count how often each place was passed since the start."""
        count: Dict[str, int] = {}
        for line in self.trace.read_text().splitlines():
            count[line] = count.get(line, 0) + 1
        return count

    def is_dead(self) -> bool:
        """Say whether it is gone; fail if that wasn't the kill at the point."""
        assert self.process
        if self.process.poll() is None:
            return False
        assert self.process.returncode == -signal.SIGKILL, self.told()
        assert "killed at " + self.plan.place in self.passings()
        return True

    def is_dying(self) -> bool:
        """Say whether it is gone in a moment: its sockets are closed before that."""
        assert self.process
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            pass
        return self.is_dead()

    def rises(self) -> bool:
        """Start it; say whether it came up, and didn't die before."""
        self.launch()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.is_ready():
            if self.is_dead():
                return False
            assert time.monotonic() < deadline, "not ready:\n" + self.told()
            time.sleep(POLL_S)
        return True


def armed(cluster: Cluster) -> Armed:
    """Make the last node of a cluster an armed one; nothing is started."""
    last = cluster.nodes[-1]
    peers = last.env["LEORONIC_PEERS"].split()
    env = dict(cluster.env, LEORONIC_CORES="2")
    python = os.environ["LEORONIC_PYTHON"]
    node = Armed(last.address, cluster.port, peers, python=python, env=env)
    cluster.all.append(node)
    cluster.nodes[-1] = node
    return node


class Story:
    """What was asked of a cluster, and what it promised."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.may_refuse = False  # for the disk fails
        self.tried: Set[str] = set()  # names of tasks that may run
        self.kept: Dict[str, str] = {}  # id -> name: acknowledged
        self.idle: Set[str] = set()  # ids of those that wait until the end
        self.deleted: Set[str] = set()  # ids whose deletion was acknowledged
        self.doubtful: Set[str] = set()  # ids whose deletion was asked for
        self._count = itertools.count()

    def add(
        self, node: Member, conditions: str = "", files: str = "", more: str = ""
    ) -> Optional[str]:
        """Add a task; give its id, or None if that wasn't acknowledged."""
        n = next(self._count)
        name = "t%d" % n
        command = more + self.ledger.task(name)
        args = ["1K", "1", "1K", "true", conditions, files, command]
        args += [name] if n % 2 else []  # a name of the user's own
        self.tried.add(name)
        try:
            code, out, err = ask(node, "add_task", *args)
        except NoAnswer:
            return None
        if self.may_refuse and code == 1:
            assert b"disk" in err or b"cannot use" in err, err
            return None
        assert code == 0, (err, node.told())
        task = out.decode().strip()
        self.kept[task] = name
        if conditions == NEVER:
            self.idle.add(task)
        return task

    def delete(self, node: Member, task: str) -> None:
        """Delete a task that waits."""
        self.doubtful.add(task)
        try:
            code, _, err = ask(node, "del_task", task)
        except NoAnswer:
            return
        if self.may_refuse and code == 1:
            assert b"disk" in err or b"cannot use" in err, err
            return
        assert code == 0, (err, node.told())
        self.deleted.add(task)

    def check(self, nodes: Sequence[Member]) -> None:
        """Check that all that was acknowledged is on each of these nodes, soon."""
        for node in nodes:
            until(
                "all acknowledged tasks at %s: %s" % (node.address, self.lost(node)),
                lambda node=node: not self.lost(node),  # type: ignore[misc]
            )

    def lost(self, node: Member) -> List[str]:
        """Give what was acknowledged and isn't (so) on a node."""
        states = node.states()
        lost = sorted(set(self.kept) - set(states))
        return lost + [task for task in self.deleted if states[task] != "deleted"]

    def is_over(self, node: Member) -> bool:
        """Say whether all that can end has ended, as a node sees it."""
        states, left = node.states(), set(self.kept) - self.idle
        return all(states.get(task) == "done" for task in left)

    def await_over(self, nodes: Sequence[Member]) -> None:
        """Wait until all that was acknowledged has ended; tell what hasn't."""
        try:
            until("all is done", lambda: all(map(self.is_over, nodes)), 30)
        except AssertionError as problem:
            raise AssertionError(self.unfinished(nodes)) from problem

    def unfinished(self, nodes: Sequence[Member]) -> str:
        """Tell of the tasks that haven't ended, for a failed test."""
        told = ["%s: %s" % (node.address, node.ready()) for node in nodes]
        for node in nodes:
            for task, state in node.states().items():
                if state not in ("done", "deleted"):
                    why = node.sh("leoronic_why " + task)[1].decode()
                    told.append("%s %s %s\n%s" % (node.address, task, state, why))
            told.append(node.told())
        return "\n".join(told)

    def check_end(self, nodes: Sequence[Member], victim: Member) -> None:
        """Let all tasks end; check each, and that none ran that mustn't."""
        for node in nodes:
            node.call("leoronic_add_tag", "never")
        self.idle.difference_update(set(self.kept) - self.doubtful)
        self.check(nodes)
        # What nobody acknowledged may lack its file for ever, or have been given up.
        self.await_over(nodes)
        undone = {self.kept[task] for task in self.deleted}
        doubtful = {self.kept[task] for task in self.doubtful}
        ended = {line.task for line in self.ledger.lines("end")}
        started = set(self.ledger.starts())
        text = self.ledger.path.read_text()
        lost = set(self.kept.values()) - doubtful - ended
        assert not lost, "lost %s\n%s\n%s" % (lost, text, self.unfinished(nodes))
        assert started <= self.tried, "unexpected\n" + text
        assert not undone & started, "deleted, and run all the same\n" + text
        # Only what ran on the one that died may have begun twice (D2).
        for task in self.ledger.extra():
            where = [line.node for line in self.ledger.lines("start", task)]
            ours = [node for node in where if node.endswith("@" + victim.address)]
            alone = len(nodes) == 1
            assert alone or len(where) - len(ours) <= 1, "twice\n" + text


def acts(story: Story, node: Member, other: Member) -> Iterator[None]:
    """Do one after the other all that a cluster is for; stop where you like."""
    source = node.directory / "input"
    source.write_bytes(os.urandom(LARGE_BYTES))
    here = "worker:is " + node.address
    story.add(other)
    yield
    story.add(other, here)
    yield
    unwanted = story.add(node, NEVER)
    yield
    story.add(node, "", "input", "wc -c <input; ")
    yield
    if unwanted is not None:
        story.delete(node, unwanted)
    yield
    story.add(node, here, "", "head -c %d /dev/zero; " % LARGE_BYTES)
    yield
    story.add(node)


def crash(node: Armed, others: Sequence[Member], story: Story, plan: Plan) -> bool:
    """Start the node as planned and make it work; say whether it died of the plan.

    What was acknowledged before must be there again as soon as it is up.
    """
    if plan.damage:
        damage(node.home / "queue", plan.damage)
    node.plan = plan
    witness = others[0] if others else node
    if not node.rises():
        return True
    try:
        story.check([node, *others])
        if plan.leads:
            make_lead(node, witness, story)
        for _ in acts(story, node, witness):
            if node.is_dead():
                return True
        deadline = time.monotonic() + TRIAL_S
        while not node.is_dead():
            if story.is_over(node) or time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
    except (AssertionError, ValueError):  # it died while it was asked
        if not node.is_dying():
            raise
    return True


def make_lead(node: Armed, other: Member, story: Story) -> None:
    """Make it the coordinator: who has granted alone stays it (DESIGN 6)."""
    other.stop()
    try:
        task = story.add(node, "worker:is " + node.address)
        until("it runs alone", lambda: node.state(task or "") == "done")
    finally:  # also when the plan's point lies in here
        other.start()
    await_component([node, other])


def calm(node: Armed, others: Sequence[Member], story: Story) -> None:
    """Let all tasks end for once: after five losses in a row one would be given up."""
    node.plan = Plan("")
    node.start()
    story.await_over([node])
    story.check([node, *others])
    node.kill9()
    await_gone(node)


def run(cluster: Cluster, plans: Sequence[Plan]) -> List[Plan]:
    """Crash the last node of a cluster at each plan, one after the other; check.

    Gives the plans whose point was not reached.
    """
    node = armed(cluster)
    others = cluster.nodes[:-1]
    story = Story(cluster.ledger)
    try:
        for other in others:
            other.start()
        missed = []
        for i, plan in enumerate(plans):
            if i and i % CALM_EVERY == 0:
                calm(node, others, story)
            began = time.monotonic()
            if not crash(node, others, story, plan):
                missed.append(plan)
                node.kill9()
            await_gone(node)
            print("%.1f s: %s" % (time.monotonic() - began, plan))
        calm(node, others, story)
        node.start()
        if others:
            await_component(cluster.nodes)
        story.check_end(cluster.nodes, node)
    finally:
        cluster.close()
    figures.note(
        "%d crashes at named points, %d comrades" % (len(plans), len(cluster.nodes)),
        "0 lost",
        "0 of %d tasks; %d points reached"
        % (len(story.kept), len(plans) - len(missed)),
    )
    return missed


def damage(queue: Path, how: str) -> None:
    """Make a database that isn't in use one that can't be read."""
    path = queue / "db"
    if how == "header":
        with open(str(path), "r+b") as file:
            file.write(b"\xff" * 100)
    else:
        path.write_bytes(os.urandom(path.stat().st_size))
        for log in queue.glob("db-*"):
            log.unlink()


def await_gone(node: Member) -> None:
    """Wait until nothing of a killed node runs any more."""
    until("it is gone", lambda: not processes_of(node.home))


def strace_missing() -> str:
    """Say why strace can't be used here; empty: it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace isn't installed"
    probe = [strace, "-f", "--seccomp-bpf", "-e", "inject=fsync:error=EIO", "true"]
    if subprocess.run(probe, capture_output=True).returncode:
        return "strace can't trace here, or is older than 5.3"
    return ""
