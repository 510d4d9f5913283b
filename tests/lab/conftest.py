"""What each test of the laboratory gets, and the table at its end."""

from typing import Any

import figures
from netlab import lab

__all__ = ["lab"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures."""
    if figures.TABLE:
        terminalreporter.section("what was measured")
        for line in figures.lines():
            terminalreporter.write_line(line)
