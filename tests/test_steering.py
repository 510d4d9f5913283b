"""Steering the queue: which tasks are meant, taking them out, adding them anew."""

import pytest
from desk import Desk, file
from test_verbs import listed, refused, rows

import steering
from control import SLICE


@pytest.fixture
def desk():
    return Desk(cores=1)


@pytest.fixture
def three(desk):
    """Give a desk with a failed, a running and a waiting task."""
    for name in ("bad", "on", "next"):
        desk.add("echo " + name, ID=name)
    desk.begin("bad")
    desk.end("bad", 7)
    desk.begin("on")
    return desk


# --- last, all --------------------------------------------------------------------


def test_last_is_the_task_that_was_added_last(three):
    assert three.ask("why", "last").lines[0] == "next is waiting"
    three.add(ID="a", CONDITIONS="worker:tag x")
    assert three.ask("why", "last").lines[0] == "a is waiting"
    three.outputs = {"d": b"said"}
    assert three.ask("del_task", "last", "on", "next").code == 0
    three.end("on")
    three.add(ID="z")
    three.begin("z")
    three.end("z", 0, (4, "d"))
    assert three.ask("get_output", "last").out == b"said"
    assert three.ask("wait", "last").code == 0


@pytest.mark.parametrize("verb", ["why", "get_output", "wait", "del_task", "retry"])
def test_last_of_an_empty_queue_is_no_task(desk, verb):
    assert "the queue is empty" in refused(desk, desk.ask(verb, "last"), 1)


@pytest.mark.parametrize("verb", ["why", "get_output"])
def test_all_is_refused_where_one_task_is_meant(desk, verb):
    assert "ID can't be more than one" in refused(desk, desk.ask(verb, "all"))


def test_wait_for_all_is_wait_without_ids(three):
    client = three.client("wait", "all")
    three.settle()
    three.end("on")
    three.begin("next")
    assert client.answer.code is None
    three.end("next")
    three.settle()
    assert client.answer.code == 0


# --- del_task ---------------------------------------------------------------------


def test_deleting_all_wants_yes_and_then_takes_what_is_unfinished(three):
    answer = three.ask("del_task", "all")
    assert answer.code == 2
    what = "all would delete 2 tasks, 1 of them running; found all; if so, write: --yes"
    assert what in answer.err[0]
    assert three.states() == ["failed", "running", "waiting"]
    assert three.ask("del_task", "--yes", "all").code == 0
    assert three.states() == ["failed", "deleted", "deleted"]
    assert three.ask("del_task", "all") == (0, b"", [], [])


def test_what_deleting_all_would_take_is_counted(three):
    assert three.ask("count_all").lines == ["2 tasks, 1 of them running"]
    three.ask("del_task", "--yes", "all")
    assert three.ask("count_all").lines == []


def test_many_are_deleted_in_slices_and_all_are_durable_at_the_end(desk, monkeypatch):
    monkeypatch.setattr(steering, "DELETES", 50)
    assert desk.ask("add_tasks_str", listed() * 120).code == 0
    desk.disk = "later"
    client = desk.client("del_task", "all", "--yes")
    for most in (50, 100, 120):
        desk.settle()
        assert client.answer.code is None
        assert desk.states().count("deleted") == most
        desk.write()
    desk.settle()
    assert client.answer == (0, b"", [], [])


# --- drain ------------------------------------------------------------------------


def test_draining_with_a_timeout_waits_for_what_runs_there(three):
    client = three.client("drain", "--timeout", "100")
    three.advance(50)
    assert client.answer.code is None
    assert three.node.members()[0]["state"] == "draining"
    three.end("on")
    three.advance(steering.QUIET_S - 0.1)
    assert client.answer.code is None  # something may be under way
    three.advance(steering.LOOK_S)
    assert client.answer == (0, b"", [], [])
    assert three.states() == ["failed", "done", "waiting"]


def test_a_node_that_still_runs_something_when_time_is_up_stays_draining(three):
    client = three.client("drain", "old1", "--timeout=3s")
    three.advance(3.1)
    assert client.answer.code == 124
    assert "found 1 task there still; the node stays draining" in client.answer.err[0]
    assert three.node.members()[0]["state"] == "draining"


def test_draining_without_a_timeout_waits_for_nothing(three):
    assert three.ask("drain", "old1") == (0, b"", [], [])


@pytest.mark.parametrize("args", [["--timeout"], ["--timeout", "x"], ["--time", "3"]])
def test_a_wrong_timeout_drains_nothing(three, args):
    assert three.ask("drain", *args).code == 2
    assert three.ask("undrain", "--timeout", "3").code == 2
    assert three.node.members()[0]["state"] == "ready"


# --- retry ------------------------------------------------------------------------


def test_a_task_that_is_over_is_added_anew_under_its_name(three):
    three.ask("del_task", "next")
    three.end("on")
    answer = three.ask("retry", "bad", "on", "next")
    assert answer == (0, b"bad.r1\non.r1\nnext.r1\n", [], [])
    before, after = rows(three)[:3], rows(three)[3:]
    own = {"id", "state", "node", "attempt", "exit", "added", "started"}
    own |= {"finished", "reason"}
    for old, new in zip(before, after):
        same = old.keys() - own
        assert {name: old[name] for name in same} == {name: new[name] for name in same}
    three.begin("bad.r1")
    three.end("bad.r1", 7)
    assert three.ask("retry", "bad.r1").lines == ["bad.r2"]
    assert three.ask("retry", "bad").lines == ["bad.r3"]


def test_an_id_of_ours_is_retried_under_it_too_and_stays_what_a_prefix_means(desk):
    text = desk.add("x")
    desk.begin(text)
    desk.end(text, 1)
    assert desk.ask("retry", "last").lines == [text + ".r1"]
    assert desk.ask("why", "1-").lines[0].startswith(text + " is failed")


def test_all_retries_what_failed_and_each_once(three):
    for number in (1, 2):
        assert three.ask("retry", "all").lines == ["bad.r%d" % number]
        again = three.ask("retry", "all")
        assert (again.code, again.out) == (0, b"") and "nothing was added" in again.err[
            0
        ]
        if number == 1:
            three.end("on")
            three.end("next")
            three.end("bad.r1", 3)


def test_a_name_that_is_long_or_was_purged_is_not_taken(three):
    long = "x" * 64
    three.ask("del_task", "next", "on")
    three.end("on")
    three.add(ID=long)
    three.begin(long)
    three.end(long, 1)
    (new,) = three.ask("retry", long).lines
    assert new.endswith("-aaaaaaaa")
    assert three.ask("retry", "bad").lines == ["bad.r1"]
    three.ask("del_task", "bad.r1")
    (record,) = three.node.queue.find("bad.r1")
    three.node.queue.purge([record.key])
    assert three.ask("retry", "bad").lines == ["bad.r2"]


@pytest.mark.parametrize("wrong", ["on", "next", "nope"])
def test_of_several_none_is_retried_if_one_cannot_be(three, wrong):
    answer = three.ask("retry", "bad", wrong)
    assert answer.code == 1 and "nothing was added; ID is " in answer.err[0]
    assert len(three.states()) == 3


def test_a_task_whose_files_are_no_longer_kept_is_not_retried(desk):
    desk.files = {"/a": file("a", "c")}
    text = desk.add("cat a", FILES="a")
    desk.begin(text)
    desk.end(text, 1)
    desk.node.files.clear()
    answer = desk.ask("retry", text)
    assert answer.code == 1 and "FILES of " + text in answer.err[0]
    desk.node.files.add("c" * 64)
    assert desk.ask("retry", text).code == 0
    assert rows(desk)[1]["files"] == ["a"]


def test_a_retry_without_an_id_is_refused(desk):
    assert "ID is missing" in refused(desk, desk.ask("retry"))


def test_many_are_retried_in_slices(desk):
    assert desk.ask("add_tasks_str", listed() * (SLICE + 50)).code == 0
    assert desk.ask("del_task", "--yes", "all").code == 0
    ids = [row["id"] for row in rows(desk)]
    assert desk.ask("retry", *ids).lines == [text + ".r1" for text in ids]
