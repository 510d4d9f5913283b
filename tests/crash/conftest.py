"""The table at the end of a run of all crashes."""

from typing import Any

import figures


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures."""
    if figures.TABLE:
        terminalreporter.section("what was measured")
        for line in figures.lines():
            terminalreporter.write_line(line)
