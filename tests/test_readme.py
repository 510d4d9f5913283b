"""README.md says what is: its tables and drawings are the code's, its examples run.

What is fenced as `console` is typed into one bash, in order, on a copy of the folder;
the examples in the table of utilities come after. Folded lines, ids, times and what
differs between machines (names, addresses, sizes) don't count.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from shlex import quote
from typing import Dict, Iterator, List, NamedTuple, Tuple

import pytest
from helpers import CHECKOUT, free_port

import comrade
import conditions
import record
import settings
import wire

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
FOLDER = "/home/ann"  # where README's copy is
NODE, ADDRESS = "old1", "192.168.1.11:7117"  # README's first machine
COLUMNS_MAX = 100  # a row of a table may be longer
SESSION_TIMEOUT_S = 120.0  # all examples take some 5 s

SESSION = r"""
set +o history
mark() { printf '\n<%s>\n' "$1"; }
# `bash leoronic` stays in the foreground; here it goes on once it is ready.
bash() {
	: >../out
	command bash "$@" >../out 2>&1 </dev/null &
	NODE=$!
	until grep -q ' is ready at ' ../out; do
		kill -0 $NODE || break
		sleep 0.05
	done
	grep -v 'psutil is not installed' ../out
}
trap 'kill $NODE 2>/dev/null' EXIT
"""
SESSION_END = "wait $NODE; mark $?\ntrap - EXIT\n"


class Step(NamedTuple):
    """A command, and what it prints."""

    command: str
    output: str


def section(title: str) -> str:
    """Return the text between this heading and the next one."""
    start = README.index("\n## %s\n" % title) + 1
    end = README.find("\n## ", start)
    return README[start:end] if end > 0 else README[start:]


def fenced(kind: str) -> List[str]:
    """Return what stands in blocks of that kind."""
    return re.findall(r"^```%s\n(.*?)^```$" % kind, README, re.MULTILINE | re.DOTALL)


def tables(text: str) -> Iterator[List[List[str]]]:
    """Yield each table's rows, without its heads."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
        yield [[cell.strip() for cell in row] for row in rows[2:]]


def table(title: str) -> List[List[str]]:
    """Return the rows of a section's one table."""
    (only,) = tables(section(title))
    return only


def code(cell: str) -> str:
    """Return what stands in the first backticks."""
    return cell.split("`")[1]


# ---- tables and drawings


def drawn_arrows(drawing: str) -> List[Tuple[str, str, str]]:
    """Read the lifecycle: in each row one arrow, from `o` to the tip's lane."""
    heads, *rows = drawing.splitlines()
    lanes = {
        (found.start() + found.end()) // 2: found.group()
        for found in re.finditer(r"\w+", heads)
    }
    arrows = []
    for row in rows:
        label, rest = row[: min(lanes) - 1].strip(), row[min(lanes) - 1 :]
        arrow = re.search(r"o-*>\||\|<-*o", rest)
        assert arrow, "no arrow in: " + row
        shift = min(lanes) - 1
        ends = [arrow.start() + shift, arrow.end() - 1 + shift]
        if arrow.group().startswith("|"):
            ends.reverse()
        source, target = (_lane(lanes, end) for end in ends)
        arrows.append((source, label, target))
    return arrows


def _lane(lanes: Dict[int, str], column: int) -> str:
    nearest = min(lanes, key=lambda lane: abs(lane - column))
    assert abs(nearest - column) <= 1, "an arrow ends beside its lane"
    return lanes[nearest]


def test_the_lifecycle_is_drawn_as_it_is():
    (drawing,) = fenced("lifecycle")
    arrows = drawn_arrows(drawing)
    real = {(a.value, event, b.value) for (a, event), b in record.LIFECYCLE.items()}
    assert set(arrows) == real
    assert len(arrows) == len(real)


def test_the_protocol_table_is_the_catalogue():
    (listing,) = fenced("protocol")
    text = re.sub(r"\n    (?!    )", "\n", listing)
    found = re.findall(
        r"^ ?(\d+)  (\w+) +(\w+) +(\w+) +(\w+) +(\S+)\n((?:(?! ?\d+  ).+\n)+)",
        text,
        re.MULTILINE,
    )
    shown = []
    for number, kind, sender, receiver, may, answer, rest in found:
        fields, colon, meaning = " ".join(rest.split()).partition(": ")
        assert colon and meaning.strip("? "), kind + " has no meaning"
        shown.append((int(number), kind, sender, receiver, may, answer, fields))
    real = [
        (
            int(kind),
            kind.name,
            row.sender,
            row.receiver,
            row.may,
            row.answer.name if row.answer else "-",
            " ".join(row.fields.split()) + (" + bytes" if row.raw else ""),
        )
        for kind, row in sorted(wire.CATALOGUE.items())
    ]
    assert shown == real


def test_the_settings_are_those_that_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    bare = settings.read_settings({"HOME": str(tmp_path)}, "/nowhere")
    names = re.findall(r"^  (LEORONIC_\w+)", settings.help_table(bare, 1, 1), re.M)
    rows = {row[0]: row[1] for row in table("Settings")}
    assert list(rows) == names
    host = settings.clean_hostname(socket.gethostname())
    cookies = [
        path.replace(str(tmp_path), "~") for path in settings.cookie_places(bare)
    ]
    defaults = {
        "HOME": bare.home.replace(str(tmp_path), "~").replace(host, "<hostname>"),
        "PORT": str(bare.port),
        "PEERS": "" if not bare.peers else "?",
        "DISCOVERY": "on" if bare.discovery else "off",
        "TAGS": "" if not bare.tags else "?",
        "RELAY_CORE": bare.relay_core,
        "NICE": str(bare.nice),
    }
    for name, value in defaults.items():
        shown = rows["LEORONIC_" + name]
        assert shown == ("`%s`" % value if value else "empty")
    assert cookies == ["/nowhere/.leoronic_cookie", "~/.leoronic_cookie"]
    shown = rows["LEORONIC_COOKIE_FILE"]
    assert shown == "`.leoronic_cookie` beside the scripts, else `~/.leoronic_cookie`"
    for name, value in ("CORES", bare.cores), ("MEMORY", bare.memory):
        assert (rows["LEORONIC_" + name], value) == ("what the machine has", None)


def test_the_utilities_are_those_that_there_are():
    source = (CHECKOUT / "leoronic_utilities").read_text()
    real = set(re.findall(r"^(leoronic_[a-z]\w*)\(\)", source, re.MULTILINE))
    names = [code(row[0]).split()[0] for row in table("Utilities")]
    assert set(names) == real
    assert len(names) == len(real)
    mentioned = set(re.findall(r"(?<!\.)\bleoronic_[a-z]\w*", README))
    programs = {"leoronic_utilities", "leoronic_demo", "leoronic_install"}
    assert mentioned - real == programs


def test_the_conditions_are_the_grammar():
    shown = [(code(row[0]), row[1]) for row in table("Conditions")]
    real = [
        (conditions.usage(verb), conditions.GRAMMAR[verb][1])
        for verb in conditions.GRAMMAR
    ]
    assert sorted(shown) == sorted(real)


def test_the_exit_codes_are_those_in_use():
    programs, utilities = tables(section("Exit codes"))
    real = {comrade.EXIT_DONE, comrade.EXIT_USAGE, comrade.EXIT_SYSTEM}
    assert {int(row[0]) for row in programs} == real
    source = (CHECKOUT / "leoronic_utilities").read_text()
    (returns,) = re.findall(r"^# Returns: (.*)$", source, re.MULTILINE)
    said = {int(number) for number in re.findall(r"\b\d+\b", returns)}
    assert {int(row[0]) for row in utilities} == said


def test_every_file_has_its_line():
    listed = [code(row[0]) for row in table("Developing")]
    real = {
        name
        for name in os.listdir(str(CHECKOUT))
        if name[0] not in "._" and name not in ("README.md", "tests")
    }
    assert set(listed) - {"tests/"} == real
    assert len(listed) == len(set(listed))


def test_links_within_lead_somewhere_and_lines_are_short():
    heads = re.findall(r"^## (.*)$", README, re.MULTILINE)
    targets = re.findall(r"\]\(#([a-z-]+)\)", README)
    assert set(targets) == {head.lower().replace(" ", "-") for head in heads}
    long = [
        line
        for line in README.splitlines()
        if len(line) > COLUMNS_MAX and not line.startswith("|")
    ]
    assert not long


def test_the_options_of_the_test_runner_are_those_it_takes():
    text = section("Developing")
    usage = subprocess.run(
        ["bash", str(CHECKOUT / "tests/run"), "--help"], stdout=subprocess.PIPE
    ).stdout.decode()
    for option in re.findall(r"bash tests/run (--\w+)", text):
        assert option in usage
    for path in re.findall(r"bash (?:tests/run )?((?:\.ci|tests)/[\w./]+)", text):
        assert (CHECKOUT / path).exists(), path


# ---- what can be typed


def steps() -> List[Step]:
    """Return the commands in all console blocks; `> ` goes on with a command."""
    found: List[Step] = []
    for line in "".join(fenced("console")).splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:], ""))
        elif line.startswith("> "):
            found[-1] = Step(found[-1].command + "\n" + line[2:], "")
        else:
            found[-1] = found[-1]._replace(output=found[-1].output + line + "\n")
    return found


def normal(text: str) -> str:
    """Take out what differs from run to run, and from machine to machine."""
    text = re.sub(r"\b(\d+)-[0-9a-f]{8}\b", r"\1-ID", text)
    text = re.sub(r"\bleoronic-[0-9a-f]{12}-", "leoronic-HEX-", text)
    text = re.sub(r"\b\d+ cores?\b", "N cores", text)
    text = re.sub(r"\b[\d.]+[KMGT]\b", "SIZE", text)
    text = re.sub(r"\b\d+s\b", "Ns", text)
    # bash 5.1 counts from 1 or 0 here, and has one more line to say
    text = re.sub(r"\bline [01]:", "line N:", text)
    text = re.sub(r".*syntax error: unexpected end of file\n", "", text)
    return " ".join(text.split())


class Ran(NamedTuple):
    """What a command printed, on both stdout and stderr, and returned."""

    output: str
    code: int


@pytest.fixture
def ran(tmp_path: Path) -> List[Ran]:
    """Run each step, then each example of the utilities; then see the node end."""
    skip = shutil.ignore_patterns(".git", ".*cache", ".leoronic_*", "__pycache__")
    shutil.copytree(str(CHECKOUT), str(tmp_path / "leoronic"), ignore=skip)
    port = free_port()
    here = settings.clean_hostname(socket.gethostname())
    commands = [step.command for step in steps()]
    commands += [code(row[0]).replace(NODE, here) for row in table("Utilities")]
    script = "".join("eval %s 2>&1\nmark $?\n" % quote(each) for each in commands)
    session = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-c", SESSION + script + SESSION_END],
        cwd=str(tmp_path),
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "LC_ALL": "C.UTF-8",
            "LEORONIC_PYTHON": os.environ["LEORONIC_PYTHON"],
            "LEORONIC_ADDRESS": "127.0.0.1",
            "LEORONIC_PORT": str(port),
            "LEORONIC_DISCOVERY": "off",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        text = session.communicate(timeout=SESSION_TIMEOUT_S)[0].decode()
    finally:
        session.kill()
        for control in tmp_path.glob(".leoronic/*/control"):  # none, if all went well
            os.kill(int(control.read_text().split()[2]), signal.SIGKILL)
    text = text.replace("127.0.0.1:%d" % port, ADDRESS).replace(str(tmp_path), FOLDER)
    text = re.sub(r"\b%s\b" % re.escape(here), NODE, text)
    pieces = re.split(r"\n<(\d+)>\n", text)
    return [Ran(out, int(code)) for out, code in zip(pieces[::2], pieces[1::2])]


@pytest.mark.timeout(SESSION_TIMEOUT_S + 30)
def test_what_is_printed_here_is_what_they_print(ran: List[Ran]) -> None:
    expected, examples = steps(), table("Utilities")
    assert expected[1].command == "bash leoronic"
    for step, real in zip(expected, ran):
        assert normal(real.output) == normal(step.output), step.command
    for row, real in zip(examples, ran[len(expected) :]):
        assert real.code == 0, row[0] + "\n" + real.output
    assert len(ran) == len(expected) + len(examples) + 1
    assert ran[-1].code == comrade.EXIT_DONE
