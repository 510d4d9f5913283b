"""What Tab offers: whose ids, which options, and nothing that bash would run."""

from typing import Any, List

import pytest
from desk import Desk

import completing
from taskform import ADD_OPTIONS
from usage import USAGES


@pytest.fixture
def desk() -> Desk:
    return Desk()


def offered(desk: Desk, *words: str, at: Any = None) -> List[str]:
    index = str(len(words) - 1 if at is None else at)
    answer = desk.ask("complete", index, *words)
    assert (answer.code, answer.err) == (0, [])
    return answer.lines


def test_options_are_those_of_the_usage(desk):
    options = offered(desk, "leoronic_add_task", "--")
    assert options == sorted(set(options)) and set(options) == {*ADD_OPTIONS, "--help"}
    sweep = {"--send", "--help", *ADD_OPTIONS}
    assert set(offered(desk, "leoronic_add_sweep", "-")) == sweep
    assert offered(desk, "leoronic_get_queue", "--c") == ["--csv"]
    assert offered(desk, "leoronic_stop", "-") == ["--help"]


def test_ids_are_those_that_the_utility_can_do_something_with(desk):
    done, waits = desk.add(ID="one-done"), desk.add("true", CORES="100", ID="one-waits")
    desk.settle()
    desk.begin(done)
    desk.end(done)
    assert offered(desk, "leoronic_wait", "one") == [waits]
    assert offered(desk, "leoronic_why", "") == ["last", waits]
    assert offered(desk, "leoronic_wait", "") == ["all", "last", waits]
    assert offered(desk, "leoronic_del_task", "--", "o") == [waits]
    assert offered(desk, "leoronic_get_output", "one-") == [done]
    assert offered(desk, "leoronic_get_output", "two") == []
    assert offered(desk, "leoronic_add_task", "o") == []


def test_states_nodes_and_tags_are_offered_where_they_are_named(desk):
    desk.ask("add_tag", "gpu", "quiet")
    desk.settle()
    assert offered(desk, "leoronic_get_queue", "d") == ["deleted", "done"]
    assert offered(desk, "leoronic_drain", "o") == ["old1"]
    assert offered(desk, "leoronic_drain", "127") == ["127.0.0.2"]
    assert offered(desk, "leoronic_del_tag", "") == ["gpu", "quiet"]
    assert offered(desk, "leoronic_add_tag", "g") == ["gpu"]


@pytest.mark.parametrize("tag", ["$(id)", "`id`", "a;b", "*", "~x", "é\x7f"[:1]])
def test_what_bash_would_not_take_as_it_is_is_not_offered(desk, tag):
    desk.ask("add_tag", tag)
    assert offered(desk, "leoronic_del_tag", "") == []


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["x"],
        ["1"],
        ["1", "leoronic_wait"],
        ["0", "leoronic_wait"],
        ["-1", "a", "b"],
    ],
)
def test_what_makes_no_sense_gets_no_words_and_no_complaint(desk, args):
    answer = desk.ask("complete", *args)
    assert (answer.code, answer.out, answer.err) == (0, b"", [])
    assert offered(desk, "leoronic_other", "") == []
    assert offered(desk, "other", "") == []


def test_no_more_words_are_offered_than_anybody_reads(desk):
    text = "1K 100 1K true '' '' true\n" * (completing.WORDS_MAX + 10)
    assert desk.ask("add_tasks_str", text).code == 0
    assert len(offered(desk, "leoronic_wait", "")) == completing.WORDS_MAX


def test_every_usage_begins_with_the_name_of_its_function():
    assert all(u.line.startswith("leoronic_") for u in USAGES.values())
