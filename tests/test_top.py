"""leoronic_top: what a frame holds, that it fits, and that it costs little."""

import pytest
from desk import Desk
from test_verbs import listed

import terminal
from top import ERASE, ERASE_BELOW, RATE_S


@pytest.fixture
def desk():
    return Desk(cores=2)


@pytest.fixture
def busy(desk):
    """Give a desk where two tasks run and many wait."""
    text = "".join(listed("echo %d " % n + "x" * 100) for n in range(100))
    assert desk.ask("add_tasks_str", text).code == 0
    desk.add("rm '\x1b[2J'", "--priority", "5", ID="first", CONCURRENCY="false")
    for n in (1, 2):
        desk.begin("%d-" % n)
    return desk


def frame(desk, columns=80, lines=24, samples="", tty=""):
    answer = desk.ask("top_frame", str(columns), str(lines), samples, tty=tty)
    assert (answer.code, answer.err) == (0, [])
    head, *shown = answer.out.decode().split("\n")[:-1]
    assert len(shown) == lines
    assert all(line.endswith(ERASE) for line in shown[:-1])
    assert shown[-1].endswith(ERASE + ERASE_BELOW)
    return head, [line.partition(ERASE)[0] for line in shown]


@pytest.mark.parametrize(
    "columns, lines", [(80, 24), (200, 60), (40, 10), (20, 2), (80, 7)]
)
def test_a_frame_has_just_the_lines_and_no_line_reaches_the_last_column(
    busy, columns, lines
):
    _, shown = frame(busy, columns, lines)
    assert max(map(terminal.width_of, shown)) < columns
    assert shown[0].startswith("leoronic on old1")


def test_a_frame_shows_nodes_and_what_runs_and_waits_and_why(busy):
    _, shown = frame(busy)
    assert shown[0] == "leoronic on old1: 1 node, 0 of 2 cores free; q ends"
    assert shown[1] == "101 tasks: 99 waiting, 2 running"
    heads = [line.split() for line in shown if line[:3] in ("NAM", "ID ")]
    assert heads == [
        "NAME ROLE STATE CORES RUNNING MEMORY".split(),
        "ID NODE TIME TRY COMMAND".split(),
        "ID COMMAND REASON".split(),
    ]
    assert shown[4].split()[:5] == ["old1", "comrade", "ready", "0/2", "2"]
    assert shown[7].startswith("1-aaaaaaaa  old1  0s    1    echo 0 xx")
    assert " ".join(shown[11].split()).startswith("first rm '\\x1b[2J' old1: ")
    assert "old1: wants the node for itself" in shown[11]
    assert shown[-1] == ".. and 87 more"


def test_lines_are_dealt_out_to_what_has_more_to_show(desk):
    _, shown = frame(desk)
    assert shown[3].startswith("NAME") and shown[5:] == [""] * 19
    for n in range(4):
        desk.add("echo %d" % n)
    _, shown = frame(desk)
    assert [line.split()[0] for line in shown if line][2:] == (
        "NAME old1 ID 1-aaaaaaaa 2-aaaaaaaa ID 3-aaaaaaaa 4-aaaaaaaa".split()
    )


def test_rates_are_counted_since_what_the_last_frames_saw(desk):
    samples, shown = frame(desk)
    assert "/min" not in shown[1]
    for _ in range(3):
        for _ in range(2):
            desk.end(desk.add())
        desk.wall += 2
        samples, shown = frame(desk, samples=samples)
    assert shown[1].endswith("; 60 finished/min, 60 added/min")
    desk.wall += RATE_S - 1
    samples, shown = frame(desk, samples=samples)
    assert shown[1].endswith("; 0 finished/min, 0 added/min")
    assert samples.count(",") == 1  # the others are too old


@pytest.mark.parametrize("samples", ["x", "1:2", ":::,,", "nan:1:1", "1e999:0:0"])
def test_samples_that_are_none_are_left_out(desk, samples):
    _, shown = frame(desk, samples=samples)
    assert shown[1] == "0 tasks"


def test_heads_are_bold_where_colours_are_wanted(busy):
    _, shown = frame(busy, tty="c")
    assert [line[:8] for line in shown if "\033" in line] == [
        terminal.BOLD + word for word in ("leor", "NAME", "ID  ", "ID  ")
    ]
    assert not any("\033" in line for line in frame(busy)[1])


def test_without_a_terminal_it_is_one_frame_of_plain_lines(busy):
    answer = busy.ask("top", columns="80")
    assert answer.code == 0 and len(answer.lines) == 24
    assert "\033" not in answer.out.decode()
    assert busy.ask("top", "now").code == 2


@pytest.mark.parametrize("args", [[], ["80"], ["x", "24", ""], ["80", "-1", ""]])
def test_a_frame_of_no_size_is_refused(desk, args):
    assert desk.ask("top_frame", *args).code == 2


def test_a_long_queue_is_looked_through_in_slices(busy, monkeypatch):
    monkeypatch.setattr("top.SCANNED", 10)
    client = busy.client("top_frame", "80", "24", "")
    turns = 0
    while client.answer.code is None:
        busy.control.tick(busy.now, False)
        turns += 1
    assert turns == 11
