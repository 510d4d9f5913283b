"""What each test of the laboratory gets, and the table at its end."""

import os
from typing import Any

import figures
from cases import REFERENCES
from netlab import lab

__all__ = ["lab"]


def pytest_generate_tests(metafunc: Any) -> None:
    """Run each test in so many rounds; the table shows the worst of them."""
    rounds = int(os.environ.get("LEORONIC_LAB_ROUNDS", "1"))
    if rounds > 1:
        metafunc.fixturenames.append("round_")
        metafunc.parametrize("round_", range(rounds))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures, and how busy the machine was."""
    if figures.TABLE:
        terminalreporter.section("what was measured")
        for line in figures.lines(REFERENCES):
            terminalreporter.write_line(line)
        load = "%.1f %.1f %.1f" % os.getloadavg()
        terminalreporter.write_line("load of the machine: %s" % load)
