"""Random histories: whatever happens, FAULTS.md's invariants hold.

LEORONIC_SIM_SEEDS=n runs n seeds instead of SEEDS; LEORONIC_SEED=n replays one.
"""

import os
import subprocess
import sys
from typing import Iterator

import pytest
from faults import simulate

SEEDS = 200
AT_ONCE = 20  # seeds in one test
TOLD = int(os.environ.get("LEORONIC_SIM_SEEDS", SEEDS))
ONE = os.environ.get("LEORONIC_SEED", "")


def _slices() -> Iterator[range]:
    if ONE:
        yield range(int(ONE), int(ONE) + 1)
        return
    for first in range(0, TOLD, AT_ONCE):
        yield range(first, min(first + AT_ONCE, TOLD))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "seeds", list(_slices()), ids=lambda seeds: "from_%d" % seeds[0]
)
def test_no_seed_breaks_an_invariant(seeds):
    for seed in seeds:
        simulate(seed)


TRACE = """
import sys
sys.path[:0] = %r
from faults import simulate
for seed in (%s):
    print(*simulate(seed).story, sep="\\n")
"""


def test_a_seed_decides_everything_whatever_the_order_of_sets():
    """Two processes with different hashes of strings tell the same story."""
    here = os.path.dirname(os.path.abspath(__file__))
    top = os.path.dirname(os.path.dirname(here))
    code = TRACE % ([here, top], "4, 7, 13, 47")
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
