"""Named points at which a test may end the process, to see what a crash there costs.

Reason for this file beside journal.py and net.py: what is promised is promised by disk
and network together, and the two must not import each other.

Rules. One function, which does nothing in production: no setting reaches it, only code
of a test that runs in the same process (tests/killpoints.py) puts something into POINT.
A point stands where a crash is seen from outside: beside a write that counts, a frame
that leaves, an answer to a user, a task's start and end. Anything between two points is
as if the process had died at the first of them.

Invariant. CATALOGUE has every name, is only appended to, and a test kills a comrade at
each (tests/test_crash.py).
"""

from typing import Callable, Optional, Tuple

CATALOGUE: Tuple[str, ...] = (
    "before commit",  # rows are in SQLite's hands: nothing is fsynced
    "after commit",  # fsynced, and nobody knows it yet
    "before rename",  # a file's content is fsynced, without its name
    "after rename",  # it has its name; its directory isn't fsynced
    "set aside",  # a damaged database is at its other name, there is no new one
    "salvaged",  # the new one is made, beside it
    "placed",  # the new one is in its place, the damaged one not yet where it stays
    "kept",  # it is; not yet said
    "before send",  # frames to a peer are sealed: grants, GOT, STORED, ends, ...
    "after send",  # the kernel has (some of) them
    "before answer",  # what a utility asked for is done; it hasn't been told
    "after answer",  # it has
    "before start",  # a grant to this node is about to become a process
    "after start",  # the process runs; no record says so
    "before end",  # a run is over; no record says so
)

POINT: Optional[Callable[[str], None]] = None


def point(name: str) -> None:
    """Let a test end the process here."""
    if POINT is not None:
        POINT(name)
