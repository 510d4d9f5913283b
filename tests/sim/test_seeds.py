"""Random histories: whatever happens, FAULTS.md's invariants hold.

LEORONIC_SIM_SEEDS=n runs n seeds instead of SEEDS, LEORONIC_SIM_FIRST=n begins with n,
LEORONIC_SEED=n replays one. All three pass tests/run and conftest.py.
"""

import os
import subprocess
import sys
from typing import Iterator

import pytest
from faults import simulate
from ledger import Broken

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))

SEEDS = 200
AT_ONCE = 20  # seeds in one test
FIRST = int(os.environ.get("LEORONIC_SIM_FIRST", "0"))
TOLD = int(os.environ.get("LEORONIC_SIM_SEEDS", SEEDS))
ONE = os.environ.get("LEORONIC_SEED", "")


def _slices() -> Iterator[range]:
    if ONE:
        yield range(int(ONE), int(ONE) + 1)
        return
    for first in range(FIRST, FIRST + TOLD, AT_ONCE):
        yield range(first, min(first + AT_ONCE, FIRST + TOLD))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "seeds", list(_slices()), ids=lambda seeds: "from_%d" % seeds[0]
)
def test_no_seed_breaks_an_invariant(seeds):
    failed = []
    for seed in seeds:
        try:
            simulate(seed)
        except Broken as problem:
            failed.append(str(problem))
    assert not failed, "%d of %d seeds\n%s" % (
        *(len(failed), len(seeds), "\n\n".join(failed)),
    )


SOME = (4, 7, 13, 47)  # of each kind: healthy, paused, rough


def test_wall_clocks_change_nothing_s13():
    for seed in SOME:
        one, other = simulate(seed, walls=1), simulate(seed, walls=2)
        assert one.story == other.story
        assert (one.steps, one.network.frames) == (other.steps, other.network.frames)


def test_a_seed_that_fails_can_be_replayed_by_its_number():
    """What tests/run and conftest.py let through reaches this file."""
    environ = dict(os.environ, LEORONIC_SEED="12345")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__]
    found = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, check=True, cwd=TOP
    )
    assert b"from_12345]" in found.stdout
    assert b"from_0]" not in found.stdout


TRACE = """
import sys
sys.path[:0] = %r
from faults import simulate
for seed in %r:
    print(*simulate(seed).story, sep="\\n")
"""


def test_a_seed_decides_everything_whatever_the_order_of_sets():
    """Two processes with different hashes of strings tell the same story."""
    code = TRACE % ([HERE, TOP], SOME)
    stories = []
    for hashes in ("1", "2"):
        environ = dict(os.environ, PYTHONHASHSEED=hashes)
        stories.append(
            subprocess.run(
                [sys.executable, "-c", code],
                env=environ,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
    assert stories[0] == stories[1]
