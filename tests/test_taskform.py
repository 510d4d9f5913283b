"""What a user writes to describe a task: lines, fields, options, messages."""

import random
import re
import shlex
from functools import partial

import pytest
from helpers import cpu_s

import conditions
import taskform
from control import Wrong
from decoding import decode
from record import Needs, Record, canonical, encode
from taskform import (
    CONDITIONS_S,
    LIST_CHARS_MAX,
    TASK_FORMAT,
    Draft,
    is_task,
    kept_name,
    lines,
    split_flags,
    split_line,
    split_options,
    whole,
)

SOUND = ["1K", "1", "2M", "true", "", "", "echo hi"]
ALPHABET = [*"ab#*;~`.", "$HOME", " ", "  ", "\t", "'", '"', "\\", "\n", "\r"]
ALPHABET += ["\x0b", "\xa0", "\u2003", "é", "\udcff", '""', "''", '\\"', "\\\\"]


def reference(line):
    try:
        return shlex.split(line, comments=False)
    except ValueError:
        return None


def ours(line):
    try:
        return split_line(line)
    except Wrong:
        return None


def changed(**fields):
    names = "MEMORY CORES STORAGE CONCURRENCY CONDITIONS FILES COMMANDS".split()
    args = dict(zip(names, SOUND))
    args.update(fields)
    return list(args.values())


def refusal(args):
    with pytest.raises(Wrong) as caught:
        Draft(args)
    return str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_split_line_is_shlex_without_comments_on_random_lines(seed):
    chance = random.Random(seed)
    refused = 0
    for _ in range(2000):
        line = "".join(chance.choice(ALPHABET) for _ in range(chance.randrange(16)))
        expected = reference(line)
        assert ours(line) == expected, repr(line)
        refused += expected is None
    assert 100 < refused < 1900


@pytest.mark.parametrize(
    "line, words",
    [
        ("", []),
        (" \t\r", []),
        ("1 '' \"\" 2", ["1", "", "", "2"]),
        ('a"b c"d', ["ab cd"]),
        ("a'b c'\"d e\"f", ["ab cd ef"]),
        ("'\"'\"'\"", ["\"'"]),
        ('"$HOME" $(id) `id` ~ *', ["$HOME", "$(id)", "`id`", "~", "*"]),
        ("a#b # c", ["a#b", "#", "c"]),
        (r"a\ b", ["a b"]),
        (r"a\  b", ["a ", "b"]),
        (r'"a\"b\\c\$d"', ['a"b\\c\\$d']),
        (r"'a\'", ["a\\"]),
        ("a\xa0b\x0bc", ["a\xa0b\x0bc"]),
        ("a b\r", ["a", "b"]),
    ],
)
def test_a_line_splits_like_in_a_shell_that_expands_nothing(line, words):
    assert split_line(line) == words == shlex.split(line, comments=False)


@pytest.mark.parametrize("line", ["echo what's up", 'a "b', "a\\", "'\"'\"", 'a "b\\"'])
def test_an_open_quote_or_a_last_backslash_is_refused_in_three_parts(line):
    with pytest.raises(Wrong) as caught:
        split_line(line)
    assert str(caught.value).count("; ") >= 2


@pytest.mark.parametrize("piece", ['"', "'", "\\", 'a"b c"', "\\\\", '"\\', "x "])
def test_a_long_line_takes_time_in_proportion_to_its_length(piece):
    assert cpu_s(lambda: ours(piece * 100000)) < 2


def test_lines_come_with_their_numbers_and_without_their_ends():
    assert list(lines("a\nb\n\nc")) == ["a", "b", "", "c"]
    assert list(lines("")) == []
    assert list(lines("a\x0bb\u2028c\r\n")) == ["a\x0bb\u2028c\r"]


def test_only_lines_that_begin_with_a_hash_are_comments():
    assert not is_task("# a") and not is_task("#") and not is_task(" \t\r")
    assert is_task("a #b") and is_task("a#b") and is_task("'#'")


def test_a_sound_task_is_read_field_by_field():
    draft = Draft(
        ["--retries=3", "--timeout", "1h30m", "--keep-names", "--priority", "-5"]
        + ["64K", "2", "1G", "false", "worker:tag a; queue:is_first", "x; y\\;z"]
        + ["echo $HOME", "me-1"]
    )
    assert draft.needs._replace(conditions=(), files=()) == Needs(
        65536, 2, 1 << 30, False, (), (), True, 5400.0, 3, -5
    )
    assert draft.paths == ("x", "y;z")
    assert [c.verb for c in draft.conditions] == ["worker:tag", "queue:is_first"]
    assert (draft.command, draft.name) == ("echo $HOME", "me-1")


def test_an_empty_id_is_none():
    assert Draft([*SOUND, ""]).name == ""


WRONG_FIELDS = [
    ("MEMORY", "-1"),
    ("MEMORY", "-5K"),
    ("MEMORY", ""),
    ("MEMORY", "abc"),
    ("MEMORY", "5X"),
    ("MEMORY", "1e9"),
    ("MEMORY", "9999999999T"),
    ("MEMORY", "1\n"),
    ("CORES", "0"),
    ("CORES", "-1"),
    ("CORES", "1.5"),
    ("CORES", ""),
    ("CORES", "two"),
    ("CORES", "9999999"),
    ("CORES", "٣"),
    ("STORAGE", "-1"),
    ("STORAGE", "1 K"),
    ("STORAGE", ""),
    ("CONCURRENCY", "maybe"),
    ("CONCURRENCY", "True"),
    ("CONCURRENCY", ""),
    ("CONDITIONS", "queue:is_last"),
    ("CONDITIONS", "nonsense"),
    ("CONDITIONS", "queue:all_with_cmd_done ("),
    ("CONDITIONS", "queue:all_with_cmd_ok *"),
    ("CONDITIONS", "worker:tag"),
    ("CONDITIONS", "worker:has_file /etc/passwd"),
    ("CONDITIONS", "worker:has_file ../x"),
    ("CONDITIONS", "worker:has_file a/../../x"),
    ("CONDITIONS", "queue:is_first now"),
    ("CONDITIONS", "worker:tag " + "x" * 5001),
    ("CONDITIONS", ";".join("worker:tag a%d" % i for i in range(1001))),
    ("FILES", "x" * 5001),
    ("FILES", ";".join("a%d" % i for i in range(1001))),
    ("COMMANDS", ""),
    ("COMMANDS", " \n\t"),
    ("COMMANDS", "x" * 120001),
]


@pytest.mark.parametrize("name, text", WRONG_FIELDS)
def test_a_wrong_field_is_named_with_what_was_found_and_what_to_do(name, text):
    message = refusal(changed(**{name: text}))
    assert name in message
    assert message.count("; ") >= 2
    assert len(message) < 800


@pytest.mark.parametrize(
    "name", ["all", "last", "-x", "-", "a b", "a/b", "x" * 65, "é", "a\n", " "]
)
def test_an_id_that_cannot_be_one_is_refused(name):
    message = refusal([*SOUND, name])
    assert message.startswith("ID can't be an id; found ")
    assert message.count("; ") == 2


@pytest.mark.parametrize("name", ["a", "x" * 64, "A.b_c-9", "0", "alls", "_"])
def test_an_id_of_the_users_own_may_have_64_plain_characters(name):
    assert Draft([*SOUND, name]).name == name


@pytest.mark.parametrize("count", range(7))
def test_missing_fields_are_named(count):
    message = refusal(SOUND[:count])
    assert "COMMANDS" in message and "missing" in message and "7 or 8" in message
    assert message.count("; ") == 2


def test_too_many_fields_are_refused_naming_the_first_too_many():
    assert "found up; quote COMMANDS" in refusal([*SOUND, "id", "up", "x"])


@pytest.mark.parametrize(
    "options",
    [
        ["--retries"],
        ["--retries", "-1"],
        ["--retries", "101"],
        ["--timeout", "-5"],
        ["--timeout", "soon"],
        ["--timeout", ""],
        ["--priority", "1.5"],
        ["--priority", "9999999"],
        ["--keep-names=yes"],
        ["--fast"],
        ["--=1"],
    ],
)
def test_a_wrong_option_is_named(options):
    args = options if len(options) == 1 and "=" not in options[0] else options + SOUND
    message = refusal(args)
    assert options[0].partition("=")[0] in message
    assert message.count("; ") >= 2


def test_two_dashes_end_the_options():
    assert split_options(["--", "--x"], {}) == ({}, ["--x"])


def test_flags_may_stand_anywhere():
    assert split_flags(["a", "--json"], ("--json",)) == (["--json"], ["a"])
    with pytest.raises(Wrong):
        split_flags(["-j"], ("--json",))


def test_whole_numbers_are_told_their_limits():
    assert whole("N", "-3", -3, 3) == -3
    with pytest.raises(Wrong, match="from -3 to 3"):
        whole("N", "4", -3, 3)


@pytest.mark.parametrize(
    "path, name",
    [
        ("a", "a"),
        ("./a", "a"),
        ("d//./a", "d/a"),
        ("/x/a", "a"),
        ("../x/a", "a"),
        ("d/../a", "a"),
    ],
)
def test_kept_names_stay_inside_the_working_directory(path, name):
    assert kept_name(path) == name
    assert conditions.relative_inside(name)


@pytest.mark.parametrize("files", ["a;./a", "/x/a;a", "../a;/y/a"])
def test_two_files_of_one_name_cannot_keep_their_names(files):
    message = refusal(["--keep-names", *changed(FILES=files)])
    assert message.startswith("FILES has two files")
    assert message.count("; ") >= 2


def test_what_lines_have_in_common_is_kept_once_and_read_the_same_again():
    args = changed(CONDITIONS="worker:tag x;queue:done y", FILES="a;b")
    one, other = Draft(args), Draft([*args[:6], "echo other"])
    assert one.needs is other.needs and one.conditions is other.conditions
    taskform._read.cache_clear()
    again = Draft(args)
    for name in ("needs", "conditions", "paths", "command", "name", "options"):
        assert getattr(again, name) == getattr(one, name)
    for _ in range(2):  # what is wrong is told each time
        assert refusal(changed(CORES="0")).startswith("CORES")


WRITTEN = [  # of each field, as it may stand in a line
    ["1K", "'1K'", "5x", "--retries 1 1K", "'--retries' '1' 2K"],
    ["1", '"2"', "0"],
    ["1K", "1\\K", "''"],
    ["true", "false", "maybe", "tr'ue'"],
    ["''", '""', "'worker:tag x'", "'queue:done y'", '"worker:tag a b"', "nonsense"],
    ["''", '""', "in.csv", "\t''"],
    ["true", "'echo \"x\"'", '"echo $y"', '"a\\"b"', "''", "' '", "é\udcff", "it's"],
    ["", "", "mine", "# x"],
]


def as_a_draft(line):
    """Read it the long way; give its task, but for what has to be looked up."""
    draft = Draft(split_line(line))
    needs_more = draft.paths or any(c.verb == "queue:done" for c in draft.conditions)
    if draft.name or draft.options or needs_more:
        return None
    return draft.command, taskform.completed(draft.needs, draft.conditions, ())


def said(read, line):
    try:
        return read(line)
    except Wrong as problem:
        return str(problem)


def test_what_is_read_the_short_way_is_what_the_long_way_gives():
    chance = random.Random(5)
    seen = {"task": 0, "words": 0, "no": 0}
    for _ in range(5000):
        most = [chance.choice([words[0], words[0], *words]) for words in WRITTEN]
        line = chance.choice([" ", "\t "]).join(most).rstrip()
        short, long = said(taskform.plain, line), said(as_a_draft, line)
        if short is None:
            seen["no"] += 1
        else:
            assert short == long, repr(line)
            seen["words" if isinstance(short, str) else "task"] += 1
    assert min(seen.values()) > 100, seen


def test_a_line_of_quotes_and_blanks_takes_no_longer_the_short_way():
    for piece in ("'a' ", '"a" ', "a ", "'", '"', " ", "a"):
        line = piece * (200000 // len(piece)) + "\\"
        assert cpu_s(partial(said, taskform.plain, line)) < 1.0, piece


def test_a_file_named_twice_is_one_file():
    assert Draft(changed(FILES="a; b;a;")).paths == ("a", "b")


def test_the_format_shows_examples_that_are_taken():
    examples = re.findall(r"^ *leoronic_add_task (.*)$", TASK_FORMAT, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        Draft(split_line(example))
    for option in ("--keep-names", "--timeout", "--retries", "--priority"):
        assert option in TASK_FORMAT


def test_what_a_draft_lets_pass_is_taken_back_from_disk():
    drafts = [
        Draft(SOUND),
        Draft(changed(COMMANDS="\udcff" * 120000)),
        Draft(changed(CONDITIONS=";".join("worker:tag %d" % i for i in range(1000)))),
        Draft(changed(CONDITIONS="worker:tag " + "x" * 4989)),
        Draft(["--retries", "100", "--priority", "-1000000", *changed(CORES="100000")]),
        Draft(["--timeout", "365d", *changed(MEMORY="8191T", STORAGE="8191T")]),
    ]
    for draft in drafts:
        texts = tuple(conditions.wire(c) for c in draft.conditions)
        needs = draft.needs._replace(conditions=texts)
        record = Record("1-" + "a" * 16, draft.command, needs, 1, "me")
        again = decode(encode(record))
        assert again.needs == needs and again.command == draft.command
        assert len(canonical(encode(record))) < 1 << 20


def test_lists_of_conditions_and_files_have_a_bound():
    long = ";".join("worker:tag %04d%s" % (i, "x" * 80) for i in range(900))
    assert len(long) > LIST_CHARS_MAX
    assert refusal(changed(CONDITIONS=long)).startswith("CONDITIONS is too long; found")


COSTLY = "[\\0-\uffff]"  # behind (?i) 13 ms each, more than its length tells


@pytest.mark.parametrize(
    "text",
    [
        "queue:all_with_cmd_ok (?i)" + COSTLY * 400,
        ";".join("queue:all_with_cmd_ok (?i)%s%d" % (COSTLY, i) for i in range(900)),
        ";".join("queue:all_with_cmd_ok %d" % i + "(a)" * 1500 for i in range(10)),
    ],
    ids=["one", "many", "long ones"],
)
def test_regexes_that_are_costly_to_read_are_refused_soon(text):
    def read():
        re.purge()
        assert "(it takes too long) in CONDITIONS" in refusal(changed(CONDITIONS=text))

    assert cpu_s(read) < CONDITIONS_S + 0.05


def test_conditions_without_end_cost_no_time():
    long = changed(CONDITIONS="\\;" * (4 << 20))
    assert "CONDITIONS is too long" in refusal(long)
    assert cpu_s(lambda: refusal(long)) < 0.5
