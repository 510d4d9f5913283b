"""Descriptors: newcomers may take so many; the rest is for this process' own work.

Reason for this file beside net.py and clients.py: both let strangers in, neither may
know the other, and what they share has one bound.

Rules. Counts nothing: a new descriptor has the lowest number that is free, so its own
number tells how many there are.

Invariant. Where a newcomer is let in only if `are_left` is true before or after it,
RESERVE are left for links of peers, tasks, files and the log: these open some in places
that can't all be prepared for none.
"""

import os
import resource

RESERVE = 64  # a task takes five for a moment; where few are allowed a quarter is left


def are_left(fd: int) -> bool:
    """Say whether the next newcomer may have one; `fd` is any that is open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        probe = os.dup(fd)
    except OSError:
        return False
    os.close(probe)
    most = limit - min(RESERVE, limit // 4)
    return limit == resource.RLIM_INFINITY or probe < most
