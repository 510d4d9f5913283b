"""leoronic_get_output: from wherever it is, also while the task runs."""

import pytest
from desk import Desk

from control import OUT_BYTES_MAX
from letters import GIVE_UP_S
from printed import ANSWER_S, ENDING_S, FOLLOW_S
from record import Phase, Run


@pytest.fixture
def desk():
    return Desk(cores=1)


@pytest.fixture
def mixed(desk):
    """Give a desk with a task that is done, failed, running, waiting."""
    for name in ("done", "failed", "running", "waiting"):
        desk.add("echo " + name, ID="t-" + name)
    desk.begin("t-done")
    desk.end("t-done", 0, (3, "d"))
    desk.begin("t-failed")
    desk.end("t-failed", 7, err=(4, "e"))
    desk.begin("t-running")
    return desk


def test_output_comes_byte_for_byte(mixed):
    mixed.outputs = {"d": b"\0\xff\n", "e": b"E 1\n"}
    assert mixed.ask("get_output", "t-done") == (0, b"\0\xff\n", [], [])
    assert mixed.ask("get_output", "--stderr", "t-failed") == (0, b"E 1\n", [], [])
    assert mixed.ask("get_output", "t-failed", "--stderr").out == b"E 1\n"
    assert mixed.ask("get_output", "t-failed") == (0, b"", [], [])


def test_output_that_is_gone_or_not_there_is_said_to_be(mixed):
    assert "isn't here" in mixed.ask("get_output", "t-done").err[0]
    answer = mixed.ask("get_output", "t-waiting")
    assert answer.code == 1 and "has not run" in answer.err[0]
    client = mixed.client("get_output", "t-running")
    mixed.advance(ENDING_S)
    assert client.answer.code == 1


def test_an_output_that_is_being_moved_is_waited_for(mixed):
    mixed.outputs = {"d": b"all of it"}
    client = mixed.client("get_output", "t-running")
    mixed.settle()
    assert client.answer.code is None
    mixed.end("t-running", out=(9, "d"))
    assert client.answer == (0, b"all of it", [], [])


def test_the_output_of_a_running_task_is_what_it_has_printed(mixed, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"so far")
    mixed.live[(mixed.run_of("t-running"), "out")] = str(path)
    assert mixed.ask("get_output", "t-running").out == b"so far"


def test_a_large_output_comes_whole_through_a_bounded_buffer(mixed, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(bytes(range(256)) * 40000)
    mixed.outputs = {"d": str(path)}
    client = mixed.client("get_output", "t-done")
    client.reads = False
    for _ in range(50):
        mixed.settle()
    assert len(client.call.out) < OUT_BYTES_MAX + 200000
    client.reads = True
    for _ in range(100):
        mixed.settle()
    assert client.answer.code == 0 and client.answer.out == path.read_bytes()
    mixed.outputs = {"d": str(tmp_path / "gone")}
    assert mixed.ask("get_output", "t-done").code == 1


# --- followed ---------------------------------------------------------------------


class Prints:
    """What the run of a task prints, and who follows it."""

    def __init__(self, desk, path, text="t-running", **call):
        self.desk, self.path, self.text = desk, path, text
        self.run = desk.run_of(text)
        path.write_bytes(b"")
        desk.live[self.run, "out"] = str(path)
        self.client = desk.client("get_output", "--follow", text, **call)

    def print(self, data):
        with self.path.open("ab") as file:
            file.write(data)
        self.desk.advance(FOLLOW_S)
        return self.client.answer.out

    def end(self, code=0):
        del self.desk.live[self.run, "out"]
        data = self.path.read_bytes()
        self.desk.outputs["digest"] = data
        self.desk.end(self.text, code, (len(data), "digest"))
        self.desk.settle()
        return self.client.answer


@pytest.fixture
def prints(mixed, tmp_path):
    return Prints(mixed, tmp_path / "out")


def test_what_a_task_prints_comes_while_it_runs_and_the_rest_at_its_end(prints):
    assert prints.print(b"one\n") == b"one\n"
    assert prints.print(b"\0\xff and more than a piece") == (
        b"one\n\0\xff and more than a piece"
    )
    assert prints.client.answer.code is None
    with prints.path.open("ab") as file:
        file.write(b" last")
    answer = prints.end()
    assert answer == (0, b"one\n\0\xff and more than a piece last", [], [])


def test_nobody_is_asked_once_who_followed_is_gone(prints):
    prints.print(b"x")
    asked = len(prints.desk.letters)
    assert asked
    prints.client.leave()
    prints.desk.advance(60)
    assert len(prints.desk.letters) == asked


def test_an_idle_task_is_asked_about_twice_a_second_and_no_more(prints):
    before = len(prints.desk.letters)
    prints.desk.advance(60)
    assert len(prints.desk.letters) - before <= 60 / FOLLOW_S + 2


def test_following_a_task_that_is_over_or_was_deleted_ends_at_once(mixed):
    mixed.outputs = {"d": b"abc"}
    assert mixed.ask("get_output", "--follow", "t-done") == (0, b"abc", [], [])
    client = mixed.client("get_output", "t-waiting", "--follow")
    mixed.settle()
    assert client.answer.code is None  # it may yet run
    mixed.ask("del_task", "t-waiting")
    assert client.answer == (0, b"", [], [])


def test_a_task_is_followed_from_before_it_runs(mixed, tmp_path):
    client = mixed.client("get_output", "--follow", "t-waiting")
    mixed.end("t-running")
    (tmp_path / "out").write_bytes(b"begun")
    mixed.live[mixed.run_of("t-waiting"), "out"] = str(tmp_path / "out")
    mixed.begin("t-waiting")
    mixed.settle()
    assert client.answer.out == b"begun"


def test_a_try_that_begins_anew_is_told_and_followed_from_its_start(desk, tmp_path):
    text = desk.add("x", "--retries", "1")
    desk.begin(text)
    first = Prints(desk, tmp_path / "out", text)
    assert first.print(b"first try") == b"first try"
    answer = first.end(3)
    assert answer.code is None
    desk.begin(text)
    desk.live[desk.run_of(text), "out"] = str(tmp_path / "out")
    (tmp_path / "out").write_bytes(b", second")
    desk.advance(FOLLOW_S)
    assert first.client.answer.out == b"first try, second"
    assert first.client.answer.err == [
        "leoronic: it runs anew; what follows is of try 2"
    ]
    desk.live.clear()
    desk.outputs["digest"] = b", second and last"
    desk.end(text, 0, (17, "digest"))
    desk.settle()
    assert first.client.answer[:2] == (0, b"first try, second and last")


def test_stderr_is_followed_alike(mixed, tmp_path):
    (tmp_path / "err").write_bytes(b"oh")
    mixed.live[mixed.run_of("t-running"), "err"] = str(tmp_path / "err")
    client = mixed.client("get_output", "--follow", "--stderr", "t-running")
    mixed.settle()
    assert client.answer.out == b"oh"


def test_a_run_elsewhere_is_asked_of_its_node(desk):
    text = desk.add("x", CONDITIONS="worker:tag y")
    (record,) = desk.node.queue.find(text)
    run = Run("b" * 16, 0, 0, Phase.STARTED, {"node": "old2"})
    desk.node.queue.grant(record.key, "1.1.%s.1" % ("a" * 16), run)
    client = desk.client("get_output", text)
    desk.settle()
    assert [letter.to for letter in desk.letters[:1]] == ["b" * 16]
    desk.advance(ENDING_S)
    assert client.answer.code == 1
    assert (
        "found that old2, where it ran, isn't a node any more" in client.answer.err[0]
    )


def test_a_node_that_does_not_answer_is_told_of_at_once_with_what_to_do(mixed):
    mixed.control.acts = mixed.control.acts._replace(ask_node=letters_of(mixed))
    answer = mixed.ask("get_output", "t-running")
    assert answer.code == 1 and mixed.letters[-1].patience == ANSWER_S
    assert "old1, where it ran, doesn't give it; try again" in answer.err[0]
    answer = mixed.ask("get_output", "t-done")
    assert answer.err[0].endswith("or run it anew: leoronic_retry t-done")


def test_a_follower_is_told_once_that_the_node_does_not_answer(mixed):
    mixed.control.acts = mixed.control.acts._replace(ask_node=letters_of(mixed))
    client = mixed.client("get_output", "--follow", "t-running")
    mixed.advance(20 * FOLLOW_S)
    assert client.answer.code is None
    assert client.answer.err == [
        "leoronic: old1, where it ran, doesn't give it; going on once it does"
    ]
    assert mixed.letters[-1].patience == GIVE_UP_S


def letters_of(desk):
    """Answer letters as letters.py does whose node doesn't."""

    def ask_node(ticket, letter):
        desk.letters.append(letter)
        desk.control.on_answer(ticket, None)

    return ask_node


def test_a_follower_that_does_not_read_holds_up_its_own_call_only(prints):
    prints.client.reads = False
    prints.path.write_bytes(bytes(100))
    prints.desk.letters.clear()
    prints.client.call.raw(bytes(OUT_BYTES_MAX))  # it has this to read yet
    prints.desk.advance(60 * FOLLOW_S)
    assert len(prints.desk.letters) <= 1
