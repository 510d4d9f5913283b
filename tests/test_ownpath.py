"""How a role's script becomes the module that it is."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CHECKOUT

SCRIPT = """
import os, signal, sys
sys.path.append(%r)
from ownpath import as_module

def press():
    os.kill(os.getpid(), signal.SIGINT)

if __name__ == "__main__":
    execv = os.execv
    os.execv = lambda *words: (%s, execv(*words))
    as_module(__file__)
%s
def main(args):
    print(__name__, *args)
    return 7
"""


@pytest.mark.parametrize(
    "before, during, code, out",
    [
        ("None", "", 7, b"role a b\n"),
        ("press()", "", -signal.SIGINT, b""),  # as Python starts: it waits for START
        ("None", "press()", -signal.SIGINT, b""),  # while the rest is imported
    ],
)
def test_ctrl_c_at_any_time_of_the_start_ends_it_in_silence(
    before: str, during: str, code: int, out: bytes, tmp_path: Path
) -> None:
    script = tmp_path / "role.py"
    script.write_text(SCRIPT % (str(CHECKOUT), before, during))
    done = subprocess.run(
        [sys.executable, str(script), "a", "b"],
        cwd=str(tmp_path),
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, b"")
