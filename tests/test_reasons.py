"""Why a task waits: each reason there is, told by a real node that has it."""

import json

import pytest
from desk import GIB, Desk, file

import effects as core
from matching import PATIENCE_S
from record import Phase, Run, State
from workers import Worker


@pytest.fixture
def desk():
    desk = Desk(cores=2)
    desk.step(core.Refresh())
    return desk


def why(desk, text):
    answer = desk.ask("why", text)
    assert answer.code == 0
    return answer.lines


def reason(desk, text):
    (record,) = desk.node.queue.find(text)
    return desk.node.reason(record, desk.now)


def another(desk):
    """Let there be one more worker, until the next turn."""
    worker = Worker("b" * 16, "old2", 4, 8 * GIB)
    worker.free_disk = 500 * GIB
    desk.node.matcher.attach(worker)
    return worker


def waits(desk, text, expected):
    """Check that a line of `why` says so, as what isn't met."""
    (record,) = desk.node.queue.find(text)
    rows = desk.node.why(record, desk.now)
    lines = ["%s: %s" % (row.subject, row.text) for row in rows if not row.is_met]
    assert any(expected in line for line in lines), lines


# --- of the whole cluster -----------------------------------------------------------


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"CORES": "9"}, "cores: no node has 9; the largest has 4"),
        (
            {"MEMORY": "9G"},
            "memory: no node has it: needs 9216.0 MiB, 8192.0 MiB are the most",
        ),
        (
            {"STORAGE": "1T"},
            "disk: no node has it: needs 1048576.0 MiB, 512000.0 MiB are the most",
        ),
    ],
)
def test_what_fits_nowhere_is_said_once_with_the_most_there_is(desk, fields, expected):
    text = desk.add(**fields)
    another(desk)
    waits(desk, text, expected)
    assert reason(desk, text).startswith(expected[:20])


def test_what_no_single_node_has_at_once_is_said(desk):
    desk.holds = lambda condition: condition == "worker:tag gpu"
    text = desk.add(CORES="3", CONDITIONS="worker:tag gpu")
    another(desk)
    waits(desk, text, "nodes: none has all of it at once")


def test_a_condition_that_nothing_has_looked_at_yet_waits(desk):
    desk.add("first")
    text = desk.add(CONDITIONS="queue:all_with_cmd_done first")
    (record,) = desk.node.queue.find(text)
    desk.node.matcher.waits.watches.clear()
    assert "nothing has looked at it yet" in reason(desk, text)
    assert record.state is State.WAITING


def test_what_fits_says_who_grants_it(desk):
    desk.node.coordinator.begin({"x", "y"}, desk.now)
    text = desk.add()
    line = "granting: waits 3 s more for nodes known before the start"
    waits(desk, text, line)
    assert reason(desk, text) == "fits on old1; " + line
    desk.advance(5)
    assert desk.states() == ["running"]


def test_who_could_have_it_but_not_now_comes_before_who_never_could(desk):
    for name in ("a1", "a2", "z"):
        worker = Worker(name * 8, name, 4, 8 * GIB)
        worker.free_disk = 500 * GIB
        desk.node.matcher.attach(worker)
    worker.draining = True
    desk.node.matcher.facts(worker, frozenset(["worker:tag gpu"]))
    desk.add("true", CONDITIONS="worker:tag gpu", ID="t")
    assert reason(desk, "t").startswith("z: ")


def test_until_it_is_on_disk_that_is_the_reason(desk):
    desk.disk = "later"
    desk.client("add_task", "1K", "1", "1K", "true", "", "", "x")
    assert reason(desk, "1-") == "is being written to disk"
    assert why(desk, "1-")[1] == "  is being written to disk"


def test_files_that_are_not_here_yet_are_named(desk):
    desk.files = {"/a": file("a", "c"), "/b": file("b", "d")}
    text = desk.add(FILES="/a;/b", CORES="2", CONDITIONS="worker:tag x")
    desk.node.files.discard("d" * 64)
    waits(desk, text, "FILES: not at this node yet: /b")


def test_files_that_were_only_where_the_task_was_added_say_so_if_that_is_gone(desk):
    desk.files = {"/a": file("a", "c")}
    text = desk.add(FILES="/a", CORES="2", CONDITIONS="worker:tag x")
    (record,) = desk.node.queue.find(text)
    desk.node.files.discard("c" * 64)
    record.adder = "old9"
    waits(
        desk, text, "/a; old9, where the task was added, is gone: wait for it, or add"
    )
    assert "leoronic_del_task " + text in reason(desk, text)
    rows = desk.ask("get_queue", "--json").out
    assert "FILES: not at this node yet: /a" in json.loads(rows)[0]["reason"]


def test_tasks_that_are_alike_have_one_reason_and_others_their_own(desk):
    for command in ("a", "b"):
        desk.begin(desk.add(command))
    for more in ({}, {}, {"CORES": "2"}, {"CONDITIONS": "queue:is_first"}):
        desk.add("x", **more)
    answer = desk.ask("get_queue", "--json", "waiting")
    rows = json.loads(answer.out.decode())
    first, same, larger, other = [row["reason"] for row in rows]
    assert first == same == "old1: cores: needs 1, 0 free"
    assert "needs 2" in larger and "is older" in other
    for record in desk.node.queue.in_order()[2:]:
        assert (
            desk.node.reason(record, desk.now)
            == {row["id"]: row["reason"] for row in rows}[record.shown]
        )


# --- of a node ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "attribute, expected",
    [
        ("draining", "old2: it is draining"),
        ("stuck", "old2: its disk doesn't answer"),
        ("away", "old2: what is free there is being looked at"),
        ("kept_for", "old2: is kept free for a bigger task"),
    ],
)
def test_what_keeps_a_node_from_taking_it_is_said(desk, attribute, expected):
    text = desk.add(CORES="4")
    setattr(another(desk), attribute, True)
    waits(desk, text, expected)


def test_a_refusal_is_told_with_its_cause_and_when_it_ends(desk):
    text = desk.add(CORES="2")
    desk.step(core.RunRefused(desk.run_of(text), "it is full"))
    waits(desk, text, "old1: refused it (it is full); asked again in 1 s")


def test_one_that_wants_its_node_for_itself_says_what_is_there(desk):
    desk.begin(desk.add())
    text = desk.add(CONCURRENCY="false")
    waits(desk, text, "old1: wants the node for itself: 1 task there")
    desk.advance(10)
    waits(desk, text, "room: smaller ones pass it for %d s more" % (PATIENCE_S - 10))


def test_a_node_that_is_lost_has_its_line(desk, monkeypatch):
    text = desk.add(CORES="9")
    row = dict(desk.node.members()[0], name="old7", state="lost")
    monkeypatch.setattr(desk.node, "members", lambda: [row])
    waits(desk, text, "old7: it is lost")


# --- of what was, or is not waiting -------------------------------------------------


def test_tries_are_counted_while_some_are_left(desk):
    text = desk.add("x", "--retries", "2", CORES="2")
    desk.begin(text)
    desk.ask("drain")
    desk.end(text, 3)
    assert why(desk, text)[:2] == [text + " is waiting", "  1 try failed, 2 left"]


def test_lost_nodes_are_counted(desk):
    text = desk.add("x", CONDITIONS="worker:tag x")
    (record,) = desk.node.queue.find(text)
    for n in (1, 2):
        run_key = "%d.1.%s.%d" % (n, "a" * 16, n)
        run = Run("b" * 16, 0, 0, Phase.GRANTED, {"node": "old2"})
        desk.node.queue.grant(record.key, run_key, run)
        desk.node.queue.advance(record.key, run_key, "lose", {})
    assert why(desk, text)[1] == "  lost its node 2 times"


def test_a_grant_that_has_not_started_says_so(desk):
    text = desk.add("x")
    assert why(desk, text) == [
        text + " is running on old1",
        "  granted, not started yet",
    ]
    desk.begin(text)
    assert why(desk, text) == [text + " is running on old1"]


def test_a_grant_that_is_held_for_a_file_says_so(desk):
    desk.files = {"/a": file("a", "c")}
    desk.disk = "later"
    desk.client("add_task", "1K", "1", "1K", "true", "", "/a", "x")
    desk.node.files.clear()
    desk.disk = "at once"
    desk.write()
    desk.settle()
    assert why(desk, "1-")[1:] == [
        "  granted, not started yet: a file that it needs isn't here yet"
    ]
