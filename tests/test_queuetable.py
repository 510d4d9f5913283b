"""The queue for eyes: columns, width, totals, the last ones; and in slices."""

import json

import pytest
from desk import Desk
from test_verbs import listed, refused

import terminal
from queuetable import COMMAND_LEAST


@pytest.fixture
def desk():
    return Desk(cores=1)


@pytest.fixture
def mixed(desk):
    """Give a desk with a task in each state but deleted."""
    for name in ("ok", "bad", "on", "next"):
        desk.add("echo " + name, ID="t-" + name)
    for name, code in (("ok", 0), ("bad", 7)):
        desk.begin("t-" + name)
        desk.end("t-" + name, code, cause="signal KILL" if code else "")
    desk.begin("t-on")
    return desk


def seen(desk, *args, columns="80", tty="1"):
    return desk.ask("get_queue", *args, columns=columns, tty=tty).lines


# --- columns ----------------------------------------------------------------------


def test_on_a_terminal_no_column_is_empty_and_totals_stand_below(mixed):
    head, *lines, totals = seen(mixed)
    assert head.split() == "ID STATE NODE TIME TRY EXIT COMMAND REASON".split()
    assert len(lines) == 4
    assert totals == "4 tasks: 1 waiting, 1 running, 1 done, 1 failed"
    head, line, totals = seen(mixed, "done")
    assert head.split() == "ID STATE NODE TIME TRY EXIT COMMAND".split()
    assert totals == "1 of 4 tasks: 1 done"
    head, line, totals = seen(mixed, "waiting")
    assert head.split() == "ID STATE COMMAND REASON".split()
    assert line.startswith("t-next  waiting  echo next  ")


def test_an_empty_queue_is_only_counted(desk):
    assert seen(desk) == ["0 tasks"]
    assert seen(desk, tty="")[0].split()[0] == "ID"


def test_piped_each_column_is_there_and_nothing_is_cut(desk):
    desk.add("x" * 300)
    head, line = seen(desk, columns="40", tty="02c")
    assert head.split() == "ID STATE NODE TIME TRY EXIT COMMAND REASON".split()
    assert "x" * 300 in line and "\033" not in line


@pytest.mark.parametrize("columns", ["30", "60", "80", "200"])
def test_lines_end_at_the_width_of_the_terminal(mixed, columns):
    mixed.add("y" * 100, CONDITIONS="worker:tag " + "z" * 100)
    mixed.add("\u6f22\u5b57" * 50, ID="wide")
    mixed.add("e\u0301" * 100, ID="combined")
    widths = [terminal.width_of(line) for line in seen(mixed, columns=columns)]
    assert max(widths) <= int(columns)


def test_a_long_command_leaves_room_for_the_reason(desk):
    desk.add("first")
    desk.add("y" * 300)
    _, _, line, _ = seen(desk)
    assert terminal.CUT + "  old1: cores: needs 1" in line
    assert COMMAND_LEAST <= line.count("y") < 40
    _, _, line, _ = seen(desk, columns="200")
    assert line.count("y") > 60 and "needs 1, 0 free" in line


def test_what_failed_or_runs_is_coloured_where_colours_are_wanted(mixed):
    lines = seen(mixed, tty="1c")
    coloured = [line for line in lines if "\033" in line]
    assert [line[:5] for line in coloured] == [terminal.RED, terminal.GREEN]
    assert all(line.endswith(terminal.PLAIN) for line in coloured)
    assert not any("\033" in line for line in seen(mixed) + seen(mixed, tty="c"))


# --- which ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, ids",
    [
        (["--last", "2"], ["t-on", "t-next"]),
        (["--last=1"], ["t-next"]),
        (["failed", "--last", "9"], ["t-bad"]),
        (["--last", "0"], []),
    ],
)
def test_the_last_ones_are_those_added_last_oldest_first(mixed, args, ids):
    rows = json.loads(mixed.ask("get_queue", "--json", *args).out.decode())
    assert [row["id"] for row in rows] == ids
    rows = json.loads(mixed.ask("get_queue", *args, "--json").out.decode())
    assert [row["id"] for row in rows] == ids


def test_the_last_ones_are_counted_of_all(mixed):
    assert seen(mixed, "--last", "2")[-1] == "2 of 4 tasks: 1 waiting, 1 running"


@pytest.mark.parametrize("text", ["", "-1", "x", "1.5"])
def test_a_wrong_number_is_refused(desk, text):
    assert "--last" in refused(desk, desk.ask("get_queue", "--last", text))
    assert "--last" in refused(desk, desk.ask("get_queue", "--last"))


# --- many -------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--json",), ("--csv",)])
def test_a_long_listing_is_made_in_many_short_turns(desk, flags):
    assert desk.ask("add_tasks_str", listed() * 3000).code == 0
    client = desk.client("get_queue", *flags, tty="1")
    turns, most = 0, 0
    while not client.call.is_over:
        before = len(client.got)
        desk.control.tick(desk.now, False)
        client.flush()
        turns, most = turns + 1, max(most, len(client.got) - before)
    assert turns >= 15 and most < 200 * 600
    assert len(client.answer.lines) >= 3000


# --- widths -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, width, expected",
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab>"),
        ("abcd", 1, ">"),
        ("abcd", 0, ""),
        ("\u6f22\u5b57", 4, "\u6f22\u5b57"),
        ("\u6f22\u5b57", 3, "\u6f22>"),
        ("\u6f22\u5b57", 2, ">"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
    ],
)
def test_a_text_is_cut_by_the_columns_that_it_takes(text, width, expected):
    assert terminal.cut(text, width) == expected
    assert terminal.width_of(terminal.filled(expected, 5)) == 5
