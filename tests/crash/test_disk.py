"""Every call that writes to the state directory fails once, alone and beside a peer."""

import figures
import pytest
from badcalls import KINDS, Fault, calls, try_fault
from crashes import strace_missing

NO_STRACE = strace_missing()
pytestmark = [
    pytest.mark.skipif(bool(NO_STRACE), reason=NO_STRACE),
    pytest.mark.timeout(3600),
]
MORE = 2  # calls beyond those counted: a slow disk makes one batch of what was two


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "beside a sound one"])
@pytest.mark.parametrize("again", [False, True], ids=["at first", "on what is there"])
def test_whichever_call_fails_nothing_acknowledged_is_lost(
    kind: str, error: str, beside: int, again: bool
) -> None:
    count = calls(kind, again)
    assert count
    hit = 0
    for n in range(count + MORE):
        hit += try_fault(Fault(kind, error, n + 1), beside, again)
    case = "%s %s, %s, %s" % (kind, error, beside, again)
    figures.note(case, "every of %d" % count, "%d failed, 0 lost" % hit)
    assert hit > count // 2


@pytest.mark.parametrize("kind", ["fsync", "pwrite", "rename"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "beside a sound one"])
def test_a_disk_that_fails_for_good_loses_nothing_acknowledged(
    kind: str, error: str, beside: int
) -> None:
    for n in range(0, calls(kind), 4):
        try_fault(Fault(kind, error, n + 1, True), beside)
