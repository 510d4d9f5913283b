"""Figures that tests measure: case, what is expected, what was measured.

Noted here, printed by the test that noted them (`-rP` shows it) and, as a table, at the
end of a run of the laboratory.
"""

from typing import List, Tuple

TABLE: List[Tuple[str, str, str]] = []


def note(case: str, expected: str, measured: str) -> None:
    """Note a figure."""
    TABLE.append((case, expected, measured))
    print("FIGURE %s | %s | %s" % (case, expected, measured))


def lines() -> List[str]:
    """Lay out all figures."""
    rows = [("CASE", "EXPECTED", "MEASURED"), *TABLE]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
