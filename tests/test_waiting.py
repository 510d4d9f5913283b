"""leoronic_wait: when it ends and how, and how far it says it is."""

import pytest
from desk import Desk
from test_taskform import SOUND
from test_verbs import listed, refused

from waiting import LINES_S


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def mixed():
    """Give a desk with a task in each state."""
    desk = Desk(cores=1)
    for name in ("done", "failed", "deleted", "running", "waiting"):
        desk.add("echo " + name, ID="t-" + name)
    for name, code in (("done", 0), ("failed", 7)):
        desk.begin("t-" + name)
        desk.end("t-" + name, code)
    assert desk.ask("del_task", "t-deleted").code == 0
    desk.end("t-deleted", 143)
    desk.begin("t-running")
    return desk


# --- its end ----------------------------------------------------------------------


def test_wait_ends_with_0_when_all_succeeded_and_is_on_disk(desk):
    text = desk.add()
    client = desk.client("wait", text)
    desk.settle()
    assert client.answer.code is None
    desk.begin(text)
    desk.disk = "later"
    desk.end(text)
    assert client.answer.code is None
    desk.write()
    desk.settle()
    desk.write()
    desk.settle()
    assert client.answer == (0, b"", [], [])


def test_wait_for_all_takes_what_is_unfinished_now(mixed):
    client = mixed.client("wait")
    mixed.end("t-running")
    assert client.answer.code is None
    mixed.end("t-waiting")
    assert client.answer.code == 0


def test_wait_without_tasks_is_over_at_once(desk):
    assert desk.ask("wait").code == 0


@pytest.mark.parametrize("name", ["failed", "deleted"])
def test_what_failed_or_was_deleted_makes_wait_1(mixed, name):
    answer = mixed.ask("wait", "t-done", "t-" + name)
    assert answer.code == 1
    assert f"1 of 2 did not succeed; found t-{name} ({name}); see" in answer.err[0]


def test_a_task_deleted_meanwhile_ends_the_wait_with_1(mixed):
    client = mixed.client("wait", "t-waiting")
    mixed.ask("del_task", "t-waiting")
    assert client.answer.code == 1


@pytest.mark.parametrize("option", [["--timeout", "90"], ["--timeout=1m30s"]])
def test_time_is_up_after_the_timeout_and_not_before(mixed, option):
    client = mixed.client("wait", *option)
    mixed.advance(89.9)
    assert client.answer.code is None
    mixed.advance(0.2)
    assert client.answer.code == 124
    assert "found 2 of 2 not finished" in client.answer.err[0]


def test_a_timeout_of_0_only_looks(mixed):
    assert mixed.ask("wait", "--timeout", "0").code == 124
    assert mixed.ask("wait", "--timeout", "0", "t-done").code == 0


@pytest.mark.parametrize("text", ["-1", "soon", ""])
def test_a_wrong_timeout_is_refused(desk, text):
    assert "--timeout" in refused(desk, desk.ask("wait", "--timeout", text))


def test_a_wait_that_meets_a_failed_add_goes_on_without_it(desk):
    desk.disk = "later"
    desk.client("add_task", *SOUND)
    client = desk.client("wait")
    desk.disk = "no space left"
    desk.write("no space left")
    desk.settle()
    assert client.answer.code == 0


# --- how far it is ----------------------------------------------------------------


def test_progress_is_drawn_on_a_terminal_only_when_it_changed(mixed):
    client = mixed.client("wait", tty="2")
    mixed.advance(60)
    assert client.answer.progress == [
        "[%s] 0/2 finished, 1 running, 0 failed" % ("." * 20)
    ]
    mixed.end("t-running")
    mixed.advance(1)
    bar = "#" * 10 + "." * 10
    left = ", 1.0/min, 1m00s left"
    drawn = client.answer.progress[1]
    assert drawn == f"[{bar}] 1/2 finished, 1 running, 0 failed{left}"
    mixed.end("t-waiting")
    assert client.answer.progress[-1] == "" and client.answer.code == 0
    assert client.answer.err == []


def test_a_fast_wait_is_told_by_the_second(desk):
    assert desk.ask("add_tasks_str", listed() * 40).code == 0
    ids = [record.shown for record in desk.node.queue.in_order()]
    client = desk.client("wait", tty="2")
    desk.advance(1)
    for text in ids[:8]:
        desk.begin(text)
        desk.end(text)
    desk.advance(1)
    drawn = client.answer.progress[-1]
    assert drawn.endswith("8/40 finished, 4 running, 0 failed, 6.7/s, 4s left")


@pytest.mark.parametrize("columns", ["20", "40", "80", "200"])
def test_the_bar_fits_into_the_terminal(mixed, columns):
    client = mixed.client("wait", tty="2", columns=columns)
    mixed.end("t-running")
    mixed.advance(60)
    widths = [len(text) for text in client.answer.progress]
    assert 15 <= max(widths) < int(columns)


@pytest.mark.parametrize("tty, is_red", [("2", False), ("2c", True)])
def test_what_failed_is_coloured_if_colours_are_wanted(mixed, tty, is_red):
    client = mixed.client("wait", tty=tty)
    mixed.end("t-running", 3)
    mixed.advance(1)
    assert ("\033[31m1 failed\033[0m" in client.answer.progress[-1]) is is_red


def test_without_a_terminal_a_line_tells_of_changes_now_and_then(mixed):
    client = mixed.client("wait", tty="01c")
    mixed.advance(LINES_S - 0.1)
    assert client.answer.err == []
    mixed.advance(100)
    assert client.answer.err == []  # nothing has changed
    mixed.end("t-running", 3)
    mixed.advance(100)
    assert client.answer.err == ["leoronic: 1/2 finished, 1 running, 1 failed"]
    assert not client.answer.progress


def test_a_wait_whose_client_does_not_read_stays_small(mixed):
    client = mixed.client("wait", "t-waiting", tty="2")
    client.reads = False
    for _ in range(30):
        mixed.add(CONDITIONS="worker:tag x")
        mixed.advance(5)
    assert client.most < 1000
