"""What fits into a line of a terminal: the width of a text, cutting it, filling it up.

Reason for this file beside listing.py: how wide a text is has nothing to do with what
it tells; whatever is drawn for eyes needs it.

Rules. Takes what is printable on one line already (control.printable). Colours come
last: they have no width and are never cut.

Invariant. A line that was cut to a width takes no more columns than that, also where
it has wide (Chinese, Japanese, Korean) or combining characters.
"""

from typing import List

CUT = ">"  # stands at the end of what was cut
GAP = "  "  # between two columns
RED, GREEN, BOLD, PLAIN = "\033[31m", "\033[32m", "\033[1m", "\033[0m"


def width_of(text: str) -> int:
    """Give the columns that a text takes."""
    return len(text) if text.isascii() else sum(map(_width_of_char, text))


def _width_of_char(c: str) -> int:
    from unicodedata import combining, east_asian_width  # 1 MiB that few need

    return 0 if combining(c) else 1 + (east_asian_width(c) in "WF")


def cut(text: str, width: int) -> str:
    """Cut a text so that it takes at most that many columns; it shows where it was."""
    if width_of(text) <= width:
        return text
    kept: List[str] = []
    left = width - len(CUT)
    for c in text:
        left -= width_of(c)
        if left < 0:
            break
        kept.append(c)
    return ("".join(kept) + CUT)[: max(width, 0)]


def filled(text: str, width: int) -> str:
    """Fill a text up with blanks to that many columns."""
    return text + " " * (width - width_of(text))


def row(cells: List[str], widths: List[int], width: int = 0) -> str:
    """Lay out a row of columns; the line is cut at width (0: never)."""
    line = GAP.join(map(filled, cells, widths)).rstrip()
    return cut(line, width) if width > 0 else line
