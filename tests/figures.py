"""Figures that tests measure: what is expected, what was measured, for which case.

Noted here, printed by the test that noted them (`-rP` shows it) and, as a table, at the
end of a run of the laboratory. Several notes of one thing, from several rounds, are one
row that shows the worst: the one with the largest number in it.
"""

import re
from typing import Dict, List, Mapping, NamedTuple, Tuple

NUMBER = re.compile(r"\d+(?:\.\d+)?")
BOUND = re.compile(r"(?:[\d.]+ to )?([\d.]+) (?:s|MiB)")


class Figure(NamedTuple):
    """One measurement; `case` is a number of FAULTS, or ''."""

    what: str
    expected: str
    measured: str
    case: str

    @property
    def size(self) -> float:
        return max(map(float, NUMBER.findall(self.measured)), default=0.0)

    @property
    def is_missed(self) -> bool:
        """Say whether seconds or MiB were expected, and it were more."""
        bound = BOUND.fullmatch(self.expected)
        return bound is not None and self.size > float(bound.group(1))


TABLE: List[Figure] = []


def note(what: str, expected: str, measured: str, case: str = "") -> None:
    """Note a figure."""
    TABLE.append(Figure(what, expected, measured, case))
    print("FIGURE %s | %s | %s | %s" % TABLE[-1])


def worst() -> List[Tuple[Figure, int]]:
    """Give the worst figure of each thing, in order of cases, and of how many."""
    rounds: Dict[Tuple[str, str], List[Figure]] = {}
    for figure in TABLE:
        rounds.setdefault((figure.case, figure.what), []).append(figure)
    found = [(max(all_, key=lambda f: f.size), len(all_)) for all_ in rounds.values()]
    return sorted(found, key=lambda row: int(row[0].case or 0))


def lines(references: Mapping[str, str] = {}) -> List[str]:
    """Lay out all figures, beside what a reference system has for the case."""
    rows = [("CASE", "WHAT", "EXPECTED", "MEASURED", "REFERENCE")]
    for figure, count in worst():
        text = figure.measured + (" (worst of %d)" % count if count > 1 else "")
        text += " MISSED" if figure.is_missed else ""
        reference = references.get(figure.case, "-")
        rows.append((figure.case, figure.what, figure.expected, text, reference))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
