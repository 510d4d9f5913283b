"""Steering what is there: tasks are taken out, nodes take no more of them.

Reason for this file beside verbs.py: by those tasks come in and are told of; by these
what is there already is made to do something else.

Rules. Words what users read, changes nothing itself (control.Ask), as verbs.py.

Invariants. `all` takes nothing out unless whoever calls has said --yes: the shell asks,
where there is somebody to ask. A delete is answered once it is durable (D10). Many go
in slices: each costs a turn of the loop and a group commit. A node that has drained
has run nothing for QUIET_S: a grant that was under way would have come out.
"""

from typing import Any, Generator, List, Sequence

import choosing
from control import (
    TURN,
    Ask,
    Call,
    Control,
    No,
    Until,
    Verb,
    Waits,
    Wrong,
    at_most,
    printable,
    told,
)
from effects import Delete, Drain
from listing import not_durable
from record import UNFINISHED, Record, State
from taskform import duration, split_flags, take_option
from workers import tasks

QUIET_S = 1.0  # a drained node must run nothing for so long
LOOK_S = 0.25  # between two looks at it, while somebody waits
DELETES = 400  # tasks in one turn of the loop (20 ms) and one group commit


def del_task(ctl: Control, call: Call) -> Verb:
    """Take tasks out of the queue: [--yes] ID... or all."""
    flags, texts = split_flags(call.args[1:], ("--yes",))
    if not texts:
        raise Wrong("ID is missing; found no argument; write one ID or more")
    problems: List[str] = []
    if "all" in texts:
        chosen = choosing.unfinished(ctl)
        if chosen and not flags:
            what = "all would delete %s" % counted(chosen)
            raise Wrong(told(what, " ".join(texts), "if so, write: --yes all"))
    else:
        chosen = yield from choosing.pick_all(ctl, texts, problems)
    for record in chosen:
        if record.state not in UNFINISHED:
            what = f"ID is of a task that is {record.state.value} already"
            problems.append(told(what, record.shown, "nothing is left to be done"))
    keys = [record.key for record in chosen if record.state in UNFINISHED]
    for i in range(0, len(keys), DELETES):
        problems = (yield from _delete(keys[i : i + DELETES])) + problems
        yield TURN
    for problem in problems[:-1]:
        call.err(printable(problem))
    if problems:
        raise No(problems[-1])


def _delete(keys: List[str]) -> Generator[Waits, Any, List[str]]:
    acked = yield Ask(lambda ticket: Delete(ticket, keys))
    return not_durable(acked)


def count_all(ctl: Control, call: Call) -> Verb:
    """Say what `leoronic_del_task all` would take out: the shell asks about that."""
    at_most(call, 0)
    chosen = choosing.unfinished(ctl)
    if chosen:
        call.line(counted(chosen))
    yield TURN


def counted(chosen: List[Record]) -> str:
    """Count tasks in words."""
    running = sum(1 for record in chosen if record.state is State.RUNNING)
    return "%s, %d of them running" % (tasks(len(chosen)), running)


# --- draining ---------------------------------------------------------------------


def drain(ctl: Control, call: Call) -> Verb:
    """Let a node take no new task: [--timeout T] [NODE]; T: wait for what runs."""
    timeout, names = take_option(call.args[1:], "--timeout", duration)
    node_id = _node_named(ctl, call, names)
    ctl.acts.step(Drain(True, node_id))
    if timeout is not None:
        yield from _idle(ctl, call, node_id, timeout)
    yield TURN


def undrain(ctl: Control, call: Call) -> Verb:
    """Let a node take tasks again: [NODE]."""
    ctl.acts.step(Drain(False, _node_named(ctl, call, call.args[1:])))
    yield TURN


def names_node(call: Call) -> bool:
    """Say whether a call to drain or undrain names a node, or means the caller's."""
    return bool(take_option(call.args[1:], "--timeout", lambda name, text: text)[1])


def _node_named(ctl: Control, call: Call, names: Sequence[str]) -> str:
    """Give the id of the node that is named, or this one's."""
    call.args[1:] = names
    at_most(call, 1)
    if not names:
        return ctl.node.me.node_id
    name = names[0]
    if not name or name.startswith("-"):
        raise Wrong(told("NODE can't be a node", name, "see leoronic_nodes"))
    found = ctl.node.roster.find_nodes(name) or ctl.node.roster.find_nodes(name.lower())
    if not found:
        what = "NODE is no node's name or address"
        raise No(told(what, name, "see leoronic_nodes"))
    if len(found) > 1:
        what = "NODE means %d nodes" % len(found)
        raise No(told(what, name, "give the address"))
    return found[0]


def _idle(ctl: Control, call: Call, node_id: str, timeout: float) -> Verb:
    """Wait until nothing runs at a node, and what was granted before has come out."""
    now = ctl.acts.clock()
    deadline, quiet_since = now + timeout, now
    while True:
        now = ctl.acts.clock()
        left = _busy_with(ctl, node_id)
        if left:
            quiet_since = now
        if now - quiet_since >= QUIET_S:
            return
        if now >= deadline:
            call.err(
                "time is up; found %s there still; the node stays draining: see "
                "leoronic_nodes, leoronic_undrain" % tasks(left)
            )
            call.end(124)
            return
        # A look now and then: a ghost's own queue tells of no change.
        yield Until(min(now + LOOK_S, deadline))


def _busy_with(ctl: Control, node_id: str) -> int:
    """Count what runs at a node, or is about to."""
    node = ctl.node
    if node_id == node.me.node_id:
        return len(node.hands.mine) + len(node.hands.held)
    member = node.mesh.members.get(node_id)
    writer = member.writer if member is not None else node_id  # a ghost's id is its
    worker = node.matcher.workers.get(writer)
    if worker is None:
        return 0  # It is gone, and what it ran is others' to look after.
    return len(worker.runs) + (not worker.draining)  # until it is known to have heard
