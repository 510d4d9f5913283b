"""A thousand trials of each promise (FAULTS 52 and 53); some of them: test_crash.py."""

import os
import random
import shutil

import figures
import pytest
from trials import destroyed, power_cuts

TRIALS = 1000
SEED = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))


@pytest.mark.timeout(3600)
def test_what_one_acknowledged_survives_it_and_its_disk() -> None:
    found = destroyed(TRIALS)
    figures.note("add at A, A and its disk destroyed", "0 lost", found.told())
    assert not found.lost


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_what_a_lone_comrade_acknowledged_survives_a_power_cut() -> None:
    found = power_cuts(TRIALS, SEED)
    figures.note("add alone, power cut", "0 lost", found.told())
    assert not found.lost, "TEST_SEED=%d: %s" % (SEED, found.lost)
