"""The table at the end of a run of the fuzzer."""

import os
from typing import Any

import fuzzing


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what came of it, if somebody asked for it."""
    if "LEORONIC_FUZZ_INPUTS" in os.environ:
        terminalreporter.section("fuzzing")
        for line in fuzzing.table():
            terminalreporter.write_line(line)
