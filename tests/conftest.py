"""What every test starts from: an importable product, and a known environment.

Clears LEORONIC_* of whoever runs the tests, as it would steer comrades to their real
cluster, fails a test that leaves such a variable behind, and hears Ctrl-C however the
tests were started. The time limit for each test stands in .pytest.ini.
"""

import os
import signal
import sys
from typing import Dict, Iterator

import pytest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What tests/run tells the tests; everything else is the user's own.
TOLD = {
    "LEORONIC_PYTHON",
    "LEORONIC_SIM_SEEDS",
    "LEORONIC_SIM_FIRST",
    "LEORONIC_SEED",
    "LEORONIC_LAB_ROUNDS",
    "LEORONIC_FUZZ_INPUTS",
}


def _leaked() -> Dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("LEORONIC_") and name not in TOLD
    }


for _name in _leaked():
    del os.environ[_name]
os.environ["LC_ALL"] = "C.UTF-8"
os.environ["TZ"] = "UTC"
os.environ.setdefault("LEORONIC_PYTHON", sys.executable)
os.umask(0o022)
# A shell makes what runs beside it deaf to Ctrl-C; what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
sys.path.insert(0, TOP)


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    """Fail the test that leaves a LEORONIC_ variable behind, not the next one."""
    yield
    leaked = _leaked()
    for name in leaked:
        del os.environ[name]
    assert not leaked, "a test left these in the environment"
