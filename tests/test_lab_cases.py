"""The list of the laboratory: whole, and of tests that exist; its table of figures."""

import ast
import sys
from pathlib import Path
from typing import Iterator, Set

import figures
import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS / "lab"))

from cases import ASKED, CASES, MERGED, REFERENCES, VOID  # noqa: E402


def names_in(file: str) -> Set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_case_that_was_asked_for_is_listed() -> None:
    assert sorted(set(ASKED) - set(CASES)) == []


def test_every_case_names_tests_that_exist_or_says_why_not() -> None:
    for number, (_, shown_by) in CASES.items():
        assert shown_by, number
        for name in shown_by:
            if name.startswith("("):
                assert name in (MERGED, VOID), number
            else:
                file, _, test = name.partition("::")
                assert test in names_in(file), "case %d: there is no %s" % (
                    number,
                    name,
                )


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(figures, "TABLE", [])
    yield


def test_rounds_of_one_thing_are_a_row_with_the_worst(table: None) -> None:
    for seconds in (1.5, 2.75, 1.0):
        figures.note("again", "3 s", "%.2f s" % seconds, "15")
    figures.note("equal", "1.2 to 5 s", "5.01 s", "3")
    figures.note("twice", "0", "0")
    figures.note("memory", "16 MiB", "16.4 MiB in 3 processes", "20")
    head, *rows = figures.lines({"15": "Slurm: 300 s"})
    assert head.split() == ["CASE", "WHAT", "EXPECTED", "MEASURED", "REFERENCE"]
    assert [" ".join(row.split()) for row in rows] == [
        "twice 0 0 -",
        "3 equal 1.2 to 5 s 5.01 s MISSED -",
        "15 again 3 s 2.75 s (worst of 3) Slurm: 300 s",
        "20 memory 16 MiB 16.4 MiB in 3 processes MISSED -",
    ]


def test_every_case_has_a_word_on_its_reference() -> None:
    assert all(REFERENCES.values())
