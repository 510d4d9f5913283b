"""Sweeps: what a real bash makes of filled commands, the calls, and a real comrade."""

import os
import random
import subprocess
import time
from typing import Any, List, Sequence

import pytest
from cluster import Member
from desk import Desk, file
from helpers import cpu_s, free_port

import sweep
from control import Wrong, to_bytes

FIELDS = ["1K", "1", "1K", "true", "", ""]
ODD = [
    *("a", "", " ", "a b", "it's", '"', "'", "''", "\\", "a\\", "$(touch hit)"),
    *("`touch hit`", "$HOME", "${x}", "-rf", "--", "*", "~", "a;touch hit", "a\nb"),
    *("\n", "a=b", "if", "!x", "2", "{}", "{#}", "{a,b}", "#x", "é", "\udcff\udce9"),
    *("\x01\x7f", "<(ls)", "&", ")", "$'\\n'"),
]
SECONDS_FOR_10000 = 20.0  # some 3 s here; a loop in bash would take minutes


def filled(command: str, values: Sequence[str], *options: str) -> List[str]:
    made = sweep.Sweep([*options, *FIELDS, command])
    return [made.fill(n, value).command for n, value in enumerate(values, 1)]


def run(commands: Sequence[str], cwd: Any) -> List[str]:
    """Run each in a bash of its own; give what they printed."""
    printed = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", to_bytes(command)],
            cwd=str(cwd),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert done.returncode == 0, command
        printed.append(done.stdout.decode("utf-8", "surrogateescape"))
    return printed


# ---- the grammar


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a/b.c.jpg", ("a/b.c", "b.c.jpg", "a", "b.c")),
        ("b", ("b", "b", ".", "b")),
        ("/b", ("/b", "b", "/", "b")),
        ("/a/b", ("/a/b", "b", "/a", "b")),
        ("a.b/c", ("a.b/c", "c", "a.b", "c")),
        ("a/b/", ("a/b/", "", "a", "")),
        ("//", ("//", "", "/", "")),
        ("x\n.y/z\n.e", ("x\n.y/z\n", "z\n.e", "x\n.y", "z\n")),
    ],
)
def test_the_parts_of_a_value_are_those_of_gnu_parallel(value, expected):
    names = ("{.}", "{/}", "{//}", "{/.}")
    assert tuple(sweep.PARTS[name](value) for name in names) == expected


@pytest.mark.parametrize(
    "template, before, after",
    [
        ("printf %s {}", "", ""),
        ("printf %s a{}b", "a", "b"),
        ("printf %s 'a {} b'", "a ", " b"),
        ('printf %s "a {} b"', "a ", " b"),
        ("printf %s $'a\\n {} b'", "a\n ", " b"),
        ('printf %s "$(printf %s {}; echo .)"', "", "."),
        ('printf %s "$(printf %s "{}"; echo .)"', "", "."),
        ("x={}; printf %s \"$x\"", "", ""),
        ("# it's {} a \" comment\nprintf %s {}", "", ""),
        ("printf %s \\'{}\\'", "'", "'"),
        ("printf %s \"\\\"\"{}", '"', ""),
        ("echo ${#} >/dev/null; printf %s {}", "", ""),
        ("(printf %s {})", "", ""),
        ("case a in a) printf %s {};; esac", "", ""),
        ("f() { printf %s \"$1\"; }; f {}", "", ""),
        ("cat <<<x >/dev/null; printf %s {}", "", ""),
        ("printf %s {} && cat <<E >/dev/null\nx\nE", "", ""),
        ("x=(a {} b); printf %s \"${x[1]}\"", "", ""),
    ],
)  # fmt: skip
def test_whatever_a_value_holds_bash_takes_it_as_it_is(
    template, before, after, tmp_path
):
    values = [value for value in ODD if "$(" not in template or value[-1:] != "\n"]
    printed = run(filled(template, values), tmp_path)
    if "; echo ." in template:
        after = "."
    assert printed == [before + value + after for value in values]
    assert os.listdir(str(tmp_path)) == []  # nothing was run


@pytest.mark.parametrize(
    "name, value, what",
    [
        ("", "x" * 10000, "COMMANDS is too long"),
        ("", "x" * 120001, "COMMANDS is too long"),
        ("{}" * 10000, "x", "ID can't be an id"),
    ],
)
def test_thousands_of_places_for_a_long_value_cost_no_memory(name, value, what):
    made = sweep.Sweep([*FIELDS, "true " + "{}" * 10000, name])  # each 'quoted'

    def fill():
        with pytest.raises(Wrong, match=what):
            made.fill(1, value)

    assert cpu_s(fill) < 1  # and not the 100 MB of all of them


def test_random_nestings_of_quotes_hand_the_value_through(tmp_path):
    rng = random.Random(7)
    wrap = [
        lambda text: '"$(printf %%s %s; echo .)"' % text,
        lambda text: "$(printf %%s %s >&2)%s" % (text, text),
        lambda text: "\"a\"%s'b'" % text,
        lambda text: "\\\"%s\\'" % text,
        lambda text: "$'\\''%s\"'\"" % text,
    ]
    for _ in range(40):
        text = rng.choice(["{}", '"{}"', "'{}'", "$'{}'", '"{}"{}'])
        for _ in range(rng.randrange(3)):
            text = rng.choice(wrap)(text)
        template = "set -f; IFS=; printf %%s %s 2>/dev/null" % text
        value = rng.choice([v for v in ODD if v[-1:] != "\n"])
        # The same template, with a variable where the value is: what it should print.
        safe = text.replace("'{}'", '"$V"').replace('$"$V"', '"$V"')
        model = "set -f; IFS=; printf %%s %s 2>/dev/null" % (
            safe.replace('"{}"', '"$V"').replace("{}", '"$V"')
        )
        env = dict(os.environb, V=to_bytes(value))
        expected = subprocess.run(
            ["bash", "-c", model],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd=str(tmp_path),
        ).stdout.decode("utf-8", "surrogateescape")
        assert run(filled(template, [value]), tmp_path) == [expected], template
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize(
    "command, word",
    [
        ("echo `echo {}`", "` `"),
        ("echo \"${x:-{}}\"", "${ }"),
        ("echo ${x:-$(echo {})}", "${ }"),
        ("echo $[ {} ]", "$[ ]"),
        ("cat <<E\n{}\nE", "here-document"),
        ("cat <<'E'\nit's\nE\necho {}", "here-document"),
        ("echo $(case x in x) echo {};; esac)", "case"),
        ("echo ${x:-'} {}", "behind"),
        ("echo a # b", "comment"),
        ("echo 'a", "quotes"),
    ],
)  # fmt: skip
def test_where_bash_can_not_be_sure_a_placeholder_is_refused(command, word):
    with pytest.raises(Wrong) as problem:
        filled(command, ["a"])
    assert word in str(problem.value) and "; found " in str(problem.value)


def test_arithmetic_takes_numbers_and_nothing_else(tmp_path):
    assert run(filled("echo $(({} * {#}))", ["5", "-3"]), tmp_path) == ["5\n", "-6\n"]
    for value in ("a[$(touch hit)]", "x", "1 + 1", "", "5\n"):
        with pytest.raises(Wrong):
            filled("echo $(( ({}) + 1 ))", [value])


def test_a_command_without_a_placeholder_gets_the_value_at_its_end():
    assert filled("sort -u", ["a b"]) == ["sort -u 'a b'"]
    assert filled("echo {#}", ["a b"]) == ["echo '1'"]


# ---- the call


@pytest.fixture
def desk() -> Desk:
    return Desk()


def commands(desk: Desk) -> List[str]:
    return [record.command for record in desk.node.queue.in_order()]


def test_a_sweep_adds_a_task_for_each_value_and_prints_the_ids(desk):
    args = ["--retries", "2", *FIELDS, "echo {#} {}", "--", "a", "--", "\udcff"]
    answer = desk.ask("add_tasks_sweep", *args)
    assert answer.code == 0 and answer.err == []
    assert len(answer.lines) == 3
    found = commands(desk)
    assert found == ["echo '1' 'a'", "echo '2' '--'", "echo '3' '\udcff'"]
    assert {r.needs.retries for r in desk.node.queue.in_order()} == {2}


@pytest.mark.parametrize(
    "text, values",
    [
        ("a\nb\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),
        ("\n", [""]),
        (" a\r\n", [" a\r"]),
    ],
)
def test_values_of_stdin_come_one_a_line(desk, text, values):
    answer = desk.ask("add_tasks_sweep_text", text, *FIELDS, "echo")
    assert answer.code == 0
    assert commands(desk) == ["echo '%s'" % value for value in values]


def test_no_value_adds_nothing_and_says_so(desk):
    arguments = ["add_tasks_sweep", *FIELDS, "e", "--"]
    for args in (arguments, ["add_tasks_sweep_text", "", *FIELDS, "e"]):
        answer = desk.ask(*args)
        assert (answer.code, answer.out) == (0, b"")
        assert "there is no value" in answer.err[0]
    assert commands(desk) == []


@pytest.mark.parametrize(
    "args, word",
    [
        ([], "no --"),
        ([*FIELDS, "echo"], "no --"),
        ([*FIELDS, "--", "a"], "COMMANDS is missing"),
        ([*FIELDS[:3], "maybe", "", "", "echo", "--", "a"], "CONCURRENCY"),
        (["--sent", *FIELDS, "echo", "--", "a"], "no such option"),
        ([*FIELDS, "echo", "id", "--", "a", "b"], "ID would be that of every task"),
        ([*FIELDS, "echo", "id-{}", "--", "a", "b c"], "value 2: ID can't be an id"),
        ([*FIELDS, "echo $(({}))", "--", "1", "b"], "value 2: it stands in (( ))"),
        ([*FIELDS, "echo", "--", "a", "b" * 300000], "value 2: COMMANDS is too long"),
        (["--send", *FIELDS, "sort", "--", "there", "missing"], "value 2: FILES names"),
        (["--send", *FIELDS, "sort", "--", "there", ""], "value 2: it can't be"),
    ],
)
def test_wrong_arguments_add_nothing_and_name_what_is_wrong(desk, args, word):
    desk.files["/there"] = file("/there")
    answer = desk.ask("add_tasks_sweep", *args)
    assert (answer.code, answer.out) == (2, b"")
    assert word in answer.err[0]
    assert answer.err[1].startswith("leoronic: usage: leoronic_add_sweep ")
    assert commands(desk) == []


def test_ids_with_a_placeholder_make_a_sweep_safe_to_repeat(desk):
    args = [*FIELDS, "echo {}", "part-{#}", "--", "a", "b"]
    for _ in range(2):
        assert desk.ask("add_tasks_sweep", *args).lines == ["part-1", "part-2"]
    assert len(commands(desk)) == 2


def test_a_sent_file_is_a_file_of_its_task_alone(desk):
    for path in ("/a/x y.jpg", "/model"):
        desk.files[path] = file(path)
    args = ["--send", *FIELDS[:5], "model", "m model {} '{}' {/.}.png"]
    answer = desk.ask("add_tasks_sweep", *args, "--", "a/x y.jpg", "model")
    assert answer.code == 0, answer
    one, two = desk.node.queue.in_order()
    assert [f.name for f in one.needs.files] == ["model", "{}x y.jpg"]
    assert one.command == "m model {}x y.jpg '{}x y.jpg' 'x y'.png"
    assert [f.name for f in two.needs.files] == ["model", "{}model"]


def test_a_sent_file_that_keeps_its_name_is_quoted(desk):
    desk.files["/it's"] = file("/it's")
    args = ["--send", "--keep-names", *FIELDS, "sort {}", "--", "it's", "./it's"]
    desk.files["/./it's"] = file("/it's")
    assert desk.ask("add_tasks_sweep", *args).code == 0
    assert commands(desk) == ["sort 'it'\\''s'"] * 2


def test_a_name_that_also_stands_elsewhere_is_refused(desk):
    desk.files["/{}b/b"] = file("/{}b/b")
    answer = desk.ask("add_tasks_sweep", "--send", *FIELDS, "x {} {//}", "--", "{}b/b")
    assert answer.code == 2 and "can't be told apart" in answer.err[0]


# ---- a real comrade


@pytest.fixture(scope="module")
def node():
    address = "127.0.0.1"
    with Member(address, free_port([address]), env={"LEORONIC_CORES": "4"}) as member:
        yield member


def test_sent_files_arrive_and_odd_values_print_as_they_are(node):
    odd = ["it's a $(touch hit).txt", "é\n-n;.c", "-b.txt"]
    for name in odd:
        (node.directory / name).write_text(name)
    code, out, err = node.sh(
        "leoronic_add_sweep --send 1K 1 1K true '' '' "
        "'cat {}; echo {}; printf %s {/}' -- ./*.c ./*t"
    )
    ids = out.decode().split()
    assert code == 0 and not err and len(ids) == 3, err
    assert node.wait(*ids) == 0
    printed = [node.output(task).decode() for task in ids]
    for text, name in zip(printed, [odd[1], odd[2], odd[0]]):
        copy = text[len(name) : -len(name)]
        assert text.startswith(name) and text.endswith(name)
        assert copy.startswith("leoronic-") and copy.strip().endswith(name[-2:])
    assert not (node.directory / "hit").exists()


def test_values_of_a_pipe_and_of_arguments_travel_as_bytes(node):
    code, out, err = node.sh(
        b"printf 'a b\\n\\xff\\n' | "
        b"leoronic_add_sweep 1K 1 1K true '' '' 'printf %s {}'"
    )
    assert code == 0 and not err, err
    ids = out.decode().split()
    assert node.wait(*ids) == 0
    assert [node.output(task) for task in ids] == [b"a b", b"\xff"]


def test_a_nul_on_stdin_is_refused(node):
    code, out, err = node.sh(
        "printf 'a\\0b' | leoronic_add_sweep 1K 1 1K true '' '' echo"
    )
    assert (code, out) == (2, b"") and b"NUL" in err


def test_ten_thousand_values_are_added_in_seconds(node):
    began = time.monotonic()
    fields = "1K 1 1K true 'worker:tag never' '' "
    code, out, _ = node.sh(
        "leoronic_add_sweep %s 'echo {} {.}' -- {1..10000}.jpg; echo $LEORONIC_ID"
        % fields
    )
    took = time.monotonic() - began
    lines = out.decode().split()
    assert code == 0 and len(lines) == 10001 and lines[-1] == lines[-2]
    assert took < SECONDS_FOR_10000
    print("10,000 arguments: %.2f s" % took)
    began = time.monotonic()
    code, out, _ = node.sh("seq 10000 | leoronic_add_sweep %s 'echo'" % fields)
    took = time.monotonic() - began
    assert code == 0 and len(out.split()) == 10000 and took < SECONDS_FOR_10000
    print("10,000 lines: %.2f s" % took)
