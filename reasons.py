"""Why a task waits, or what became of it, in words: a line for each reason there is.

Reason for this file beside node.py: what is decided in many places (conditions, room,
who may grant) is told in one; and telling decides nothing.

Rules. Pure (D6). Changes nothing. Conditions stand here as they are on the wire;
listing.py puts in what users write.

How it works. What holds for the whole cluster comes first (conditions, what no node
has, files that aren't here, who grants and why not now), then each node. `reason` is
the short form: what is amiss for the cluster; if nothing is, where the task fits; else
what two nodes lack.

Invariant. What waits has a reason, from its first moment on.
"""

from typing import TYPE_CHECKING, List, Optional, Tuple

import conditions
from matching import PATIENCE_S
from record import Needs, Phase, Record, State
from workers import Why, is_lonely, sizes

if TYPE_CHECKING:  # The node uses it; only the hint looks back.
    from node import Node

NAMED = 5  # of nodes where a condition holds, and of files
SHORT_ROWS = 2  # of the short form
DURABLE = "is being written to disk"


def why(node: "Node", record: Record, now: float) -> List[Why]:
    """Say what a waiting task waits for: the cluster's reasons, then each node's."""
    rows = _of_cluster(node, record, now)
    nodes = node.matcher.why_not_on(record, now)
    is_fitting = any(row.is_met for row in nodes)
    since = node.matcher.waiting_since.get(record.key)
    if since is not None and not is_fitting:
        left = max(since + PATIENCE_S - now, 0)
        text = "smaller ones pass it for %d s more; then a node is kept free" % left
        rows.append(Why("room", False, text))
    granting = _granting(node, now)
    rows += nodes + _absent(node)
    return rows + [granting] if is_fitting or not granting.is_met else rows


def reason(node: "Node", record: Record, now: float) -> str:
    """Say in a few words why a task waits, or how it ended."""
    if record.state is not State.WAITING:
        return _of_end(record)
    if record.key in node.matcher.blocked:
        return DURABLE
    rows = [row for row in _of_cluster(node, record, now) if not row.is_met]
    if not rows:
        nodes = node.matcher.why_not_on(record, now)
        fitting = [row.subject for row in nodes if row.is_met]
        if fitting:
            some = ", ".join(fitting[:SHORT_ROWS])
            return "fits on %s; granting: %s" % (some, _granting(node, now).text)
        # Who could have it, but not now, tells more than who never could.
        rows = sorted(nodes, key=lambda row: row.text.startswith("worker:"))
    return "; ".join("%s: %s" % (row.subject, row.text) for row in rows[:SHORT_ROWS])


def alike(node: "Node", record: Record) -> Optional[Tuple[int, bool]]:
    """Give what waiting tasks of one and the same reason have in common, if any do."""
    if any(text.startswith("queue:") for text in record.needs.conditions):
        return None
    key = record.key
    if key in node.matcher.blocked:
        return None
    if any(
        key in w.refused or key == w.kept_for for w in node.matcher.workers.values()
    ):
        return None
    if _files(node, record):  # it tells who added the task
        return None
    return id(record.needs), is_lonely(record)


def history(node: "Node", record: Record) -> List[str]:
    """Say what became of a task so far, a line each."""
    found = []
    tries = record.attempts(Phase.ENDED)
    if tries and record.needs.retries and record.state is not State.DONE:
        left = max(record.needs.retries + 1 - len(tries), 0)
        word = "try" if len(tries) == 1 else "tries"
        found.append("%d %s failed, %d left" % (len(tries), word, left))
    lost = len(record.attempts(Phase.LOST))
    if lost:
        found.append("lost its node %d times" % lost if lost > 1 else "lost its node")
    living = record.living()
    if record.state is State.RUNNING and len(living) > 1:
        found.append("runs %d times: all but the first will be stopped" % len(living))
    if record.state is State.RUNNING:
        run_key = living[0]
        if record.runs[run_key].phase is Phase.GRANTED:
            found.append("granted, not started yet" + _held(node, record, run_key))
    return found


# --- of the whole cluster -----------------------------------------------------------


def _of_cluster(node: "Node", record: Record, now: float) -> List[Why]:
    """Say what doesn't depend on one node alone: conditions, and what none has."""
    rows, here = [], []
    workers = node.matcher.workers.values()
    for text in record.needs.conditions:
        if conditions.is_worker(conditions.unwire(text)):
            here.append(text)
            names = sorted(w.name for w in workers if text in w.holds)
            some = ", ".join(names[:NAMED]) + " .." * (len(names) > NAMED)
            where = f"on {some}" if names else "on no node"
            rows.append(Why(text, bool(names), where))
        else:
            row = node.matcher.waits.why(record, text)
            rows.append(row or Why(text, False, "nothing has looked at it yet"))
    lacking = _nowhere(node, record.needs)
    if not lacking and all(row.is_met for row in rows):
        if not any(w.could_hold(record.needs, here) for w in workers):
            lacking = [Why("nodes", False, "none has all of it at once")]
    return rows + lacking + _files(node, record)


def _files(node: "Node", record: Record) -> List[Why]:
    """Say which files aren't here yet, and what has become of who sent them."""
    lacking = [f.name for f in record.needs.files if f.digest not in node.files]
    if not lacking:
        return []
    text = "not at this node yet: " + ", ".join(lacking[:NAMED])
    name, state = node.roster.seen("", record.adder)
    if state == "ready" and record.adder != node.me.name:
        text += f"; from {name}, where the task was added"
    elif state != "ready":
        text += f"; {name}, where the task was added, is {state or 'gone'}: wait for "
        text += f"it, or add the task again and leoronic_del_task {record.shown}"
    return [Why("FILES", False, text)]


def _nowhere(node: "Node", needs: Needs) -> List[Why]:
    """Say what no node has, and how much the largest has."""
    workers = node.matcher.workers.values()
    rows = []
    cores = max((w.cores for w in workers), default=0)
    if needs.cores > cores:
        text = "no node has %d; the largest has %d" % (needs.cores, cores)
        rows.append(Why("cores", False, text))
    memory = max((w.memory for w in workers), default=0)
    if needs.memory > memory:
        rows.append(_too_much("memory", needs.memory, memory))
    disk = max((w.free_disk for w in workers), default=0)
    if needs.disk > disk:
        rows.append(_too_much("disk", needs.disk, disk))
    return rows


def _too_much(what: str, needed: int, most: int) -> Why:
    text = sizes("no node has it", needed, "are the most there is", most)
    return Why(what, False, text)


def _granting(node: "Node", now: float) -> Why:
    """Say who grants, and what keeps it from doing so, as far as this node knows."""
    mesh, coordinator = node.mesh, node.coordinator
    first = mesh.members.get(mesh.coordinator())
    if first is not None:
        return Why("granting", True, "by " + node.roster.shown_name(first.facts))
    if node.hands.is_stopping:
        return Why("granting", False, "this comrade is stopping")
    away = coordinator.wait_for - mesh.component
    if away and now < coordinator.wait_until:
        left = coordinator.wait_until - now
        text = "waits %.0f s more for nodes known before the start" % max(left, 1)
        return Why("granting", False, text)
    if mesh.is_frozen(now):
        return Why("granting", False, "waits for a node that is joining")
    if not mesh.may_grant(now):
        return Why("granting", False, "not all nodes follow this one yet")
    if mesh.maybe_apart():
        return Why("granting", True, "here; tasks of missing nodes go last")
    return Why("granting", True, "here, in order of priority and age")


def _absent(node: "Node") -> List[Why]:
    """Say of the nodes that are no workers now what has become of them."""
    away = [row for row in node.members() if row["state"] in ("lost", "suspect")]
    return [Why(row["name"], False, "it is " + row["state"]) for row in away]


# --- of one task --------------------------------------------------------------------


def _of_end(record: Record) -> str:
    if record.given_up:
        return record.given_up
    run_key = record.telling_run()
    if run_key is None:
        return ""
    return str(record.runs[run_key].detail.get("cause", ""))


def _held(node: "Node", record: Record, run_key: str) -> str:
    """Say why a grant doesn't start, if it is this node's."""
    if run_key not in node.hands.held:
        return ""
    if not node.room.has_files(record):
        return ": a file that it needs isn't here yet"
    return ": another node must know of it first"
