"""Conditions: reading a user's text, the form in records, what holds on a node."""

import random
import re
from functools import partial
from typing import Any

import pytest
from helpers import cpu_s

import conditions
from conditions import Condition, WorkerFacts, WrongCondition

DIGEST = "0123456789abcdef" * 4


def parse(text: str) -> Any:
    return conditions.parse(text, re.compile)


def facts(**changes: Any) -> WorkerFacts:
    """Return a node that has next to nothing, but for the changes."""
    bare = WorkerFacts(
        name="old1",
        address="10.0.0.7",
        tags=frozenset(),
        has_file=lambda path: False,
        has_command=lambda name: False,
    )
    return bare._replace(**changes)


def holds(text: str, **changes: Any) -> bool:
    return conditions.holds(parse(text)[0], facts(**changes))


# ---- lists


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" ;; \t;\n", []),
        ("a", ["a"]),
        (" a b ; c ", ["a b", "c"]),
        (r"a\;b;c", ["a;b", "c"]),
        (r"a\;\;b", ["a;;b"]),
        (r"a\;;b", ["a;", "b"]),
        (r"\;", [";"]),
        (r"a\;b\;c", ["a;b;c"]),
        (r"\d+\.x;y", [r"\d+\.x", "y"]),
        (r"a\\;b", [r"a\;b"]),
        ("a\\", ["a\\"]),
        ("\xa0a\xa0", ["\xa0a\xa0"]),
        ("b\udcff;c", ["b\udcff", "c"]),
    ],
)
def test_lists_split_at_semicolons_and_keep_escaped_ones(text, pieces):
    assert conditions.split_list(text) == pieces


def test_any_list_of_names_survives_escaping_and_splitting():
    chooser = random.Random(7)
    for _ in range(2000):
        names = [
            "".join(chooser.choice("ab;. \n") for _ in range(5)).strip() or "x"
            for _ in range(chooser.randrange(4))
        ]
        text = " ; ".join(name.replace(";", r"\;") for name in names)
        assert conditions.split_list(text) == names


def test_splitting_takes_time_in_proportion_to_the_text():
    for text in ("\\;" * 100000, ";" * 200000, "x;" * 100000):
        assert cpu_s(partial(conditions.split_list, text)) < 0.5


# ---- reading what users write


def test_all_conditions_of_the_contract_are_read():
    text = (
        "queue:is_first; queue:all_with_cmd_done ^make all; queue:all_with_cmd_ok x|y;"
        "queue:done n-1f; worker:tag gpu; worker:has_file in/a b.txt;"
        "worker:has_command gcc; worker:is old1"
    )
    assert parse(text) == [
        Condition("queue:is_first", ""),
        Condition("queue:all_with_cmd_done", "^make all"),
        Condition("queue:all_with_cmd_ok", "x|y"),
        Condition("queue:done", "n-1f"),
        Condition("worker:tag", "gpu"),
        Condition("worker:has_file", "in/a b.txt"),
        Condition("worker:has_command", "gcc"),
        Condition("worker:is", "old1"),
    ]


def test_no_condition_is_an_empty_list():
    assert parse(" ; ") == []


def test_duplicates_are_dropped_and_the_order_is_kept():
    verbs = [c.argument for c in parse("worker:tag b;worker:tag a;worker:tag   b")]
    assert verbs == ["b", "a"]


def test_a_regex_may_hold_escaped_semicolons_and_inner_blanks():
    assert parse(r"queue:all_with_cmd_done a\; *b")[0].argument == "a; *b"


@pytest.mark.parametrize(
    ("text", "named", "remedy"),
    [
        ("queue:frist", "queue:frist", "queue:is_first"),
        ("tag gpu", "tag gpu", "worker:tag TAG"),
        ("Worker:tag gpu", "Worker:tag gpu", "worker:tag TAG"),
        ("queue:is_first now", "queue:is_first now", "write queue:is_first"),
        ("worker:tag", "worker:tag", "write worker:tag TAG"),
        ("worker:tag gpu ssd", "worker:tag gpu ssd", "more conditions"),
        ("queue:done 1 2", "queue:done 1 2", "more conditions"),
        ("queue:all_with_cmd_done", "queue:all_with_cmd_done", "REGEX"),
        ("queue:all_with_cmd_done a(", "a(", "regular expression"),
        ("queue:all_with_cmd_ok *", "*", "regular expression"),
        ("worker:has_file /etc/passwd", "/etc/passwd", "relative"),
        ("worker:has_file ../x", "../x", "relative"),
        ("worker:has_file a/../../x", "a/../../x", "relative"),
        ("worker:has_file .", "has_file .", "relative"),
        ("worker:has_command /bin/sh", "/bin/sh", "without a folder"),
        (f"worker:may_place {DIGEST} a", "worker:may_place", "write one of"),
        ("worker:tag a;queue:nope;worker:tag b", "queue:nope", "write one of"),
    ],
)
def test_a_wrong_condition_is_named_with_what_to_write_instead(text, named, remedy):
    with pytest.raises(WrongCondition) as caught:
        parse(text)
    what, found, to_do = str(caught.value).split("; ", 2)
    assert "CONDITIONS" in what
    assert named in found
    assert remedy in to_do


@pytest.mark.parametrize("regex", ["(" * 20000, "a{99999999999999999999}", "(?P<1>a)"])
def test_a_regex_is_refused_in_words_whatever_its_judge_raises(regex):
    with pytest.raises(WrongCondition, match="bad regular expression"):
        parse("queue:all_with_cmd_done " + regex)


def test_messages_are_one_line_whatever_was_written():
    with pytest.raises(WrongCondition) as caught:
        parse("bad\n\x1b[2J\udcff")
    assert str(caught.value).isprintable()


# ---- paths


@pytest.mark.parametrize(
    "path", ["a", "a/b", "./a", "a//b", "..a", "a..", "a\nb", "-rf", "$(id)", "a/"]
)
def test_paths_inside_are_accepted(path):
    assert conditions.relative_inside(path)


@pytest.mark.parametrize(
    "path", ["", ".", "./", "/", "/a", "//a", "..", "../a", "a/..", "a/../b", "a\0b"]
)
def test_paths_that_lead_out_or_nowhere_are_refused(path):
    assert not conditions.relative_inside(path)


# ---- the form in records


def test_every_condition_comes_back_from_its_form_in_records():
    for text in [
        "queue:is_first",
        "queue:all_with_cmd_done a  b\nc",
        "worker:has_file \udcff x",
        "worker:is old1@10.0.0.7",
    ]:
        for condition in parse(text):
            assert conditions.unwire(conditions.wire(condition)) == condition
    placing = conditions.may_place("a b", DIGEST)
    assert conditions.unwire(conditions.wire(placing)) == placing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "tag gpu",
        "worker:tag",
        "worker:has_file ../x",
        "worker:has_file /x",
        "queue:is_first x",
        "worker:may_place",
        "worker:may_place abc name",
        f"worker:may_place {DIGEST} ../x",
        None,
        7,
        ["worker:tag a"],
    ],
)
def test_a_peer_can_bring_in_nothing_that_a_user_could_not(text):
    with pytest.raises(WrongCondition):
        conditions.unwire(text)


def test_a_condition_of_a_newer_version_is_kept_and_holds_nowhere():
    condition = conditions.unwire("worker:has_moon full now")
    assert conditions.wire(condition) == "worker:has_moon full now"
    assert conditions.is_worker(condition)
    assert not conditions.holds(condition, facts())


# ---- meaning


def test_each_condition_is_for_the_queue_or_for_a_worker():
    for verb in conditions.VERBS:
        condition = Condition(verb, "x")
        assert conditions.is_queue(condition) != conditions.is_worker(condition)


def test_a_tag_holds_where_the_node_has_it():
    assert holds("worker:tag gpu", tags=frozenset(["gpu", "ssd"]))
    assert not holds("worker:tag gpu", tags=frozenset(["gpus"]))


def test_a_file_and_a_command_are_asked_of_the_node():
    assert holds("worker:has_file a/b c", has_file=lambda path: path == "a/b c")
    assert not holds("worker:has_file a")
    assert holds("worker:has_command gcc", has_command=lambda name: name == "gcc")
    assert not holds("worker:has_command gcc")


@pytest.mark.parametrize("node", ["old1", "OLD1", "10.0.0.7", "old1@10.0.0.7"])
def test_a_node_answers_to_its_name_its_address_and_both(node):
    assert holds("worker:is " + node)


@pytest.mark.parametrize("node", ["old", "old11", "10.0.0.70", "old1@10.0.0.8", "@"])
def test_a_node_does_not_answer_to_anothers_name(node):
    assert not holds("worker:is " + node)


def test_keeping_names_is_asked_of_the_node_with_name_and_digest():
    asked = []
    worker = facts(may_place=lambda name, digest: not asked.append((name, digest)))
    assert conditions.holds(conditions.may_place("in/a b", DIGEST), worker)
    assert asked == [("in/a b", DIGEST)]
    assert not conditions.holds(conditions.may_place("in/a b", DIGEST), facts())


def test_a_condition_of_the_queue_is_not_a_workers_to_decide():
    with pytest.raises(ValueError, match="queue:is_first"):
        conditions.holds(Condition("queue:is_first", ""), facts())


# ---- the tables


def test_every_verb_has_help_and_an_argument_that_is_described():
    for verb, (needs_argument, text) in conditions.VERBS.items():
        assert text
        words = conditions.usage(verb).split()
        assert words[0] == verb
        assert (len(words) > 1) == needs_argument
        assert all(word in conditions.ARGUMENTS for word in words[1:])


def test_every_workers_verb_has_a_meaning():
    for verb in conditions.VERBS:
        if verb.startswith("worker:"):
            name = {"worker:is": "old1"}.get(verb, "x")
            everything = facts(
                tags=frozenset("x"),
                has_file=lambda path: True,
                has_command=lambda name: True,
            )
            assert conditions.holds(Condition(verb, name), everything), verb


@pytest.mark.parametrize("text", ["\xa0", "\x0b", "queue:is_first;\u2003"])
def test_a_piece_of_blanks_that_are_none_is_an_unknown_condition(text: str) -> None:
    with pytest.raises(WrongCondition, match="unknown condition"):
        parse(text)


def test_what_is_wrong_is_shown_in_a_few_words() -> None:
    with pytest.raises(WrongCondition) as caught:
        parse("worker:wrong " + "x" * 5000)
    assert len(str(caught.value)) < 800
