"""The cluster's cookie: the secret file that lets a node in; found, judged, or made.

Reason for this file beside settings.py: what makes a file trustworthy is a concern of
its own, and settings.py is full. Its face is settings.find_cookie and make_cookie.

Rules. Nothing else opens the cookie. Imports nothing of ours and reads no environment.
Every error is a `WrongSetting`, whose text is all that the user needs: what is wrong,
what was found, what to do.

How it works. The file is opened once and judged by its descriptor, never by its name:

    another user's, or a link to such ──────> refused in words
    empty, short, long, not plain text ─────> refused in words
    own, but others may read it ──> chmod ──> tightened
                                      └─ no effect (a FAT stick) ──> copied home

What jar.py has to keep is a list in the state directory, which is read with the cookie.

Invariants.
1. No cookie is removed, or overwritten but by a newer one of its own cluster.
2. None is visible before it is whole (where the filesystem knows links, or renames).
3. What is returned is private to this user, or the user is told that it isn't.

It does not listen for other clusters before one is made (comrade.py does), and does
not use the secret (net.py does).
"""

import os
import stat
from typing import (
    Callable,
    FrozenSet,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

NAME = ".leoronic_cookie"
RANDOM_BYTES = 32  # 256 bits, written as hex
BYTES_MIN = 16  # shorter is a typing error or a guess away
BYTES_MAX = 1024  # longer isn't a cookie but some other file
MODE = 0o600
KEPT = "cookies"  # in the state directory
KEPT_BYTES_MAX = 16384
LOOSE = 0o077  # what nobody but the owner may have


Kept = Sequence[Tuple[float, bytes]]  # see jar.py


class WrongSetting(Exception):
    """A setting, or the cookie, can't be used; str() is the whole message."""


class Cookie(NamedTuple):
    """The secret ('' if there is none), where it is, and what to tell the user."""

    secret: bytes
    path: str
    notices: List[str]


def find(
    places: Sequence[str],
    user_home: str,
    user: Optional[int] = None,
    fchmod: Callable[[int, int], None] = os.fchmod,
    kept: Kept = (),
) -> Cookie:
    """Read the cookie at the first of the places that has one; else an empty Cookie.

    Tightens loose modes, or copies the file to the home directory where that has no
    effect. WrongSetting in all cases where the file there can't be trusted. Tests pass
    another user's id, and the fchmod of a FAT stick; `kept` is what `kept` has read.
    """
    me = os.geteuid() if user is None else user
    for path in filter(os.path.lexists, places):
        secret, found, is_private = _read(path, me, fchmod)
        if not is_private:
            loose = Cookie(secret, path, [])
            return _bring_home(loose, user_home, me, fchmod, kept)
        notices = []
        if found & LOOSE:
            change = f"tightened from {found:04o} to {MODE:04o}"
            notices = [f"others could read the cookie {path}; {change}"]
        return Cookie(secret, path, notices)
    return Cookie(b"", "", [])


def make(places: Sequence[str], user_home: str) -> Cookie:
    """Make a cookie where none is, at the first of the places that can be written.

    Where another process is faster, its cookie is the one. WrongSetting if no place
    can be written.
    """
    secret = os.urandom(RANDOM_BYTES).hex().encode("ascii")
    problems = []
    for path in places:
        try:
            is_mine = _create(path, secret)
        except OSError as problem:
            problems.append(f"{path} ({problem.strerror})")
            continue
        cookie = find(places, user_home)
        if is_mine:
            advice = "copy it to every node that is to join"
            cookie.notices.insert(0, f"made the cluster's cookie {path}; {advice}")
        return cookie
    tried = ", ".join(problems)
    raise WrongSetting(
        f"the cookie can't be written; tried {tried}; "
        "set LEORONIC_COOKIE_FILE to a path that can be written"
    )


# ---- newer ones


def kept(home: str) -> List[Tuple[float, bytes]]:
    """Read what `keep` wrote into a state directory; nothing if that is no list."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(os.path.join(home, KEPT), flags)
    except OSError:
        return []
    try:
        return parse_kept(os.read(fd, KEPT_BYTES_MAX))
    except (OSError, ValueError):
        return []
    finally:
        os.close(fd)


def parse_kept(data: bytes) -> List[Tuple[float, bytes]]:
    """Read lines of `seconds cookie`; ValueError: they are none."""
    found = []
    for line in data.split(b"\n")[:-1]:
        left, _, secret = line.partition(b" ")
        if not left.isdigit() or len(left) > 9:
            raise ValueError("no time that a cookie counts")
        try:
            found.append((float(left), _checked(KEPT, secret)))
        except WrongSetting as problem:
            raise ValueError(str(problem)) from None
    return found


def keep(home: str, cookies: Kept) -> None:
    """Write that list into a state directory, whole or not at all; OSError."""
    lines = b"".join(b"%d %s\n" % (int(left), one) for left, one in cookies)
    _write_over(os.path.join(home, KEPT), lines)


def save(home: str, places: Sequence[str], user_home: str, cookies: Kept) -> str:
    """Keep the list, then see to the files; give what can't be written there."""
    keep(home, cookies)
    return replace(places, user_home, cookies)


def replace(places: Sequence[str], user_home: str, cookies: Kept) -> str:
    """Write the newest wherever one from before it is; give what can't be written."""
    newest, problem = cookies[0][1], ""
    homes = [os.path.join(user_home, NAME)] if user_home else []
    for path in dict.fromkeys([*places, *homes]):
        try:
            secret, _, _ = _read(path, os.geteuid(), os.fchmod)
        except WrongSetting:
            continue  # none is there, or one that isn't ours to change
        if secret == newest or secret not in _known(cookies):
            continue
        try:
            _write_over(os.path.realpath(path), newest + b"\n")
        except OSError as error:
            problem = problem or f"{path} can't be written ({error.strerror})"
    return problem


def _known(cookies: Kept) -> Set[bytes]:
    return {secret for _, secret in cookies}


def _write_over(path: str, content: bytes) -> None:
    """Write a file in the place of the one that is there, if any."""
    partial = f"{path}.{os.urandom(8).hex()}"  # other nodes may write it just now
    _write_new(partial, content)
    try:
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise
    _flush_folder(os.path.dirname(path))


# ---- reading and writing one


def _read(
    path: str, me: int, fchmod: Callable[[int, int], None]
) -> Tuple[bytes, int, bool]:
    """Return the secret, the mode it was found with, and whether it is private now."""
    try:
        _check_owner(path, os.lstat(path), frozenset((me, 0)))
        _check_owner(path, os.stat(path), frozenset((me,)))
        # Not blocking: a FIFO in that place must not hang the start.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise WrongSetting(
            f"the cookie {path} can't be read; {problem.strerror}{_link_text(path)}; "
            "mend or remove it, or set LEORONIC_COOKIE_FILE"
        ) from problem
    try:
        status = os.fstat(fd)
        _check_owner(path, status, frozenset((me,)))
        if not stat.S_ISREG(status.st_mode):
            raise _bad(path, "it is not a regular file")
        secret = os.read(fd, BYTES_MAX + 1)
        is_private = _tighten(fd, fchmod)
    except OSError as problem:
        raise _bad(path, str(problem.strerror)) from problem
    finally:
        os.close(fd)
    return _checked(path, secret), stat.S_IMODE(status.st_mode), is_private


def _check_owner(path: str, status: os.stat_result, trusted: FrozenSet[int]) -> None:
    """Refuse a file (or a link: root may have made that) of another user."""
    if status.st_uid in trusted:
        return
    owner = _user_name(status.st_uid)
    raise WrongSetting(
        f"the cookie {path} belongs to another user; found {owner}{_link_text(path)}; "
        f"start as {owner}, or set LEORONIC_COOKIE_FILE to a copy of your own"
    )


def _user_name(user: int) -> str:
    # Imported here: only messages need it.
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _link_text(path: str) -> str:
    return f", a link to {os.readlink(path)}" if os.path.islink(path) else ""


def _bad(path: str, found: str) -> WrongSetting:
    return WrongSetting(
        f"the cookie {path} can't be used; {found}; copy it anew from another node, or "
        "remove it here and on all nodes to have one made"
    )


def _checked(path: str, content: bytes) -> bytes:
    """Return one line of printable ASCII, stripped; the hex of ours is an example."""
    secret = content.strip()
    if not secret:
        raise _bad(path, "it is empty")
    if len(content) > BYTES_MAX:
        raise _bad(path, f"it is longer than {BYTES_MAX} bytes")
    if any(not 0x20 <= byte < 0x7F for byte in secret):
        raise _bad(path, "it is garbled: not one line of plain text")
    if len(secret) < BYTES_MIN:
        found = f"it has {len(secret)} bytes, at least {BYTES_MIN} are needed"
        raise _bad(path, found)
    return secret


def _tighten(fd: int, fchmod: Callable[[int, int], None]) -> bool:
    """Take the file from everyone else; False where modes can't be changed."""
    if os.fstat(fd).st_mode & LOOSE:
        try:
            fchmod(fd, MODE)
        except OSError:
            return False  # read-only, or FAT without "quiet"
    return not os.fstat(fd).st_mode & LOOSE


def _bring_home(
    loose: Cookie,
    user_home: str,
    me: int,
    fchmod: Callable[[int, int], None],
    kept: Kept,
) -> Cookie:
    """Copy a cookie that chmod can't protect to the home directory, and use that."""
    target = os.path.join(user_home, NAME)
    if not user_home or os.path.realpath(loose.path) == target:
        advice = "set LEORONIC_COOKIE_FILE to a disk that knows modes"
        warning = f"others can read the cookie {loose.path}; chmod has no effect there"
        return loose._replace(notices=[f"{warning}; {advice}"])
    try:
        is_mine = _create(target, loose.secret)
    except OSError as problem:
        raise WrongSetting(
            f"others can read the cookie {loose.path}, chmod has no effect there; "
            f"{target} can't be written ({problem.strerror}); set LEORONIC_COOKIE_FILE"
        ) from problem
    secret, _, _ = _read(target, me, fchmod)
    if secret != loose.secret and not {secret, loose.secret} <= _known(kept):
        raise WrongSetting(
            f"two cookies differ; found {loose.path}, which others can read, and "
            f"{target}; remove the one of the other cluster"
        )
    notice = f"others can read the cookie {loose.path}; copied to {target}, used there"
    return Cookie(secret, target, [notice] if is_mine else [])


def _create(path: str, secret: bytes) -> bool:
    """Write a cookie where none is; False if one is there. OSError if it can't be."""
    folder = os.path.dirname(path)
    partial = f"{path}.{os.urandom(8).hex()}"
    try:
        _write_new(partial, secret + b"\n")
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError:  # FAT knows no links
            _write_new(path, secret + b"\n")
    except FileExistsError:
        return False
    finally:
        if os.path.lexists(partial):
            os.unlink(partial)
    _flush_folder(folder)
    return True


def _write_new(path: str, content: bytes) -> None:
    """Write a file that isn't there yet, whole or (the disk is full) not at all."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(path, flags, MODE)
    try:
        os.write(fd, content)
        os.fsync(fd)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def _flush_folder(folder: str) -> None:
    """Make the new name survive a power cut: the other nodes have copies by then."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # a folder that may be written but not listed
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
