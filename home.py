"""The state directory itself: one process has it, it is private, and no link leads out.

Reason for this file beside store.py: what is kept in it is one concern, and whether it
can be trusted another.

Rules. Before anything in it is opened `take` has looked at it. Follows no link there:
what is written, emptied or removed below is the node's own.

Invariants
    1. A second process is told who has it, and changes nothing.
    2. Another user's directory is refused. One of our own that others could look into
       is tightened; if they could write there, each file has to be ours alone.

Not done: guarding it from this user, or root.
"""

import fcntl
import os
import stat
from typing import List

from database import StateBroken, StateInUse

OURS = ("files", "outputs", "queue", "runs")  # the launcher's venv has links of its own
FEED = ".feed"  # in runs: what a shell that was killed has left; it is only removed


def take(home: str, notices: List[str]) -> int:
    """Make sure that the directory is there, ours, private, and nobody else's now."""
    os.makedirs(home, 0o700, exist_ok=True)
    facts = os.stat(home)
    if facts.st_uid != os.geteuid():
        raise StateBroken(
            f"the state directory {home} belongs to another user (uid {facts.st_uid}); "
            "set LEORONIC_HOME to a directory of your own"
        )
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(os.path.join(home, "lock"), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 32).decode("ascii", "replace").strip()
        os.close(lock)
        raise StateInUse(
            f"the state directory {home} is in use by process {owner}; "
            "stop that one first, or set LEORONIC_HOME to another directory"
        ) from None
    except OSError:
        os.close(lock)
        raise
    try:
        os.pwrite(lock, b"%-10d\n" % os.getpid(), 0)
    except OSError:  # a full disk; it is the flock that counts
        pass
    try:
        if facts.st_mode & 0o077:
            _tighten(home, stat.S_IMODE(facts.st_mode), notices)
        _check_entries(home, was_open=bool(facts.st_mode & 0o022))
    except (OSError, StateBroken):
        os.chmod(home, stat.S_IMODE(facts.st_mode))  # to be found so the next time, too
        os.close(lock)
        raise
    return lock


def _check_entries(home: str, was_open: bool) -> None:
    """Refuse what another user may have put there, or what leads out."""
    below = (os.path.join(home, name) for name in OURS)
    for path in (home, *filter(os.path.isdir, below)):
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink() and not entry.name.endswith(FEED):
                    found = "a link to " + os.readlink(entry.path)
                    raise _planted(entry.path, found, "remove it")
                if was_open:
                    _check_owner(entry.path, entry.stat(follow_symlinks=False))


def _check_owner(path: str, facts: os.stat_result) -> None:
    remedy = "others could write there; remove it, or set LEORONIC_HOME to a new one"
    if facts.st_uid != os.geteuid():
        raise _planted(path, "a file of another user (uid %d)" % facts.st_uid, remedy)
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
        raise _planted(path, "a file that has another name, too", remedy)


def _planted(path: str, found: str, remedy: str) -> StateBroken:
    what = "the state directory has what no Leoronic made"
    return StateBroken(f"{what}; found {path}, {found}; {remedy}")


def _tighten(home: str, mode: int, notices: List[str]) -> None:
    try:
        os.chmod(home, 0o700)
        notices.append(f"others could look into {home} (mode {mode:o}); not any more")
    except OSError:  # a file system without modes
        notices.append(f"others can look into {home}: its file system can't prevent it")
