"""The lines that start a task in a keeper, and what the status it gives back means.

Reason for this file beside shells.py: this is text, to be read and tested without a
process; shells.py is processes and files.

Rules. Does nothing but make bytes. Whatever a command or an environment holds, it
reaches the task's bash as it is.

How it works. Each task has its `bash -c`, but for a *plain* command: one builtin that
says nothing of its shell, or one program, with words that a shell takes as they stand.
Nobody can tell there which bash it was, and starting one costs more than the rest of
such a task; so the keeper, a bash itself, runs it as its own background job: what
`bash -c` would come to. Anything else, a variable or a redirection, is not plain.
"""

import os
import re
import signal
from functools import lru_cache
from typing import Callable, Dict, Mapping, Tuple

# Names to which bash gives a meaning of its own. In a keeper's environment they would
# steer the keeper, and a bash can't set some of them: `env` hands them to the task.
SHELL_NAMES = frozenset(
    "BASHOPTS BASHPID BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_COMMAND BASH_COMPAT "
    "BASH_LINENO BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_XTRACEFD DIRSTACK "
    "EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD IFS LINENO OPTIND "
    "POSIXLY_CORRECT PPID RANDOM SECONDS SHELLOPTS SRANDOM TMOUT UID "
    "_leoronic_task".split()  # the last is the keeper's own
)

# What all of bash takes as it stands. No ~ { } * ? [ ! # ^ outside quotes; in double
# ones nothing that means something there.
_BARE, _QUOTED = rb"[\w@%+:=,./-]", rb"'[ -&(-~\t]*'|\"[ !#%-\[\]-_a-~\t]*\""
_PLAIN = re.compile(
    rb" *([\w+./:-]+)((?: +(?:%s|%s)+)*) *" % (_BARE, _QUOTED), re.ASCII
)
_SAFE_BUILTINS = frozenset([b":", b"echo", b"false", b"printf", b"true"])
_OWN_WORDS = frozenset(  # of bash: not the program of that name
    b". [ alias bg bind break builtin caller case cd command compgen complete compopt "
    b"continue coproc declare dirs disown do done elif else enable esac eval exec exit "
    b"export fc fg fi for function getopts hash help history if in jobs kill let local "
    b"logout mapfile popd printf pushd pwd read readarray readonly return select set "
    b"shift shopt source suspend test then time times trap type typeset ulimit umask "
    b"unalias unset until wait while".split()
)
SLOTS = 2  # of a keeper: for the task that runs, and for one behind it
PLAIN_BYTES_MAX = 4096  # no limit of the system's is near


def quote(text: bytes) -> bytes:
    """Make one word of it for a shell."""
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


def split_environ(environ: Mapping[str, str]) -> Tuple[Dict[str, str], Dict[str, str]]:
    """What a bash can have in its environment, and what only `env` can give."""
    odd = {name: environ[name] for name in SHELL_NAMES if name in environ}
    return {k: v for k, v in environ.items() if k not in odd}, odd


def task_script(
    command: bytes, plain: Mapping[str, str], odd: Mapping[str, str]
) -> bytes:
    """What a keeper sources to start a task, with these additions to its environment.

    `closing` comes behind it. The first line is empty: an old bash takes one with odd
    bytes for a binary.
    """
    words = [b"\n", _assignments(plain)]
    if odd:
        words.append(b"env ")
        words += [quote(os.fsencode(f"{k}={v}")) + b" " for k, v in odd.items()]
    return b"".join([*words, b"bash -c ", quote(command)])


def descriptor(slot: int, name: str) -> int:
    """The number under which a keeper has the `out` or `err` of a slot."""
    return 3 + 2 * slot + (name == "err")


def closing(slot: int, is_plain: bool) -> bytes:
    """Give what each script ends with: its output goes to that slot.

    One line: where bash reads the next one with job control on, it also notes a task
    that just exited. `return` keeps it from what is left of the script before.
    """
    return _CLOSING[slot, is_plain]


def _closing(slot: int, is_plain: bool) -> bytes:
    out, err = descriptor(slot, "out"), descriptor(slot, "err")
    closed = "".join(" %d>&-" % number for number in range(3, 3 + 2 * SLOTS))
    end = "\n" if is_plain else "; return\n"
    return f" </dev/null >&{out} 2>&{err}{closed} & set +m{end}".encode()


_CLOSING = {
    (slot, is_plain): _closing(slot, is_plain)
    for slot in range(SLOTS)
    for is_plain in (False, True)
}


class Scripts:
    """What keepers are given for the tasks of one node."""

    def __init__(
        self, environ: Mapping[str, str], is_program: Callable[[str], bool]
    ) -> None:
        """Know the node's environment; is_program: the system can execute that name."""
        self._odd = split_environ(environ)[1]
        steering = ("BASH", "CDPATH", "GLOBIGNORE")
        self._has_plain = not self._odd and not any(
            name.startswith(steering) for name in environ
        )
        self._is_program = is_program

    def make(self, command: bytes, more: Mapping[str, str]) -> Tuple[bytes, bool]:
        """Give the script for a command with these additions to its environment.

        It is for a keeper to evaluate if the command is plain, which is told, too.
        """
        plain, odd = split_environ(more)
        if self._has_plain and not odd:
            script = self._plain(command, plain)
            if script:
                return script, True
        return task_script(command, plain, {**self._odd, **odd}), False

    def _plain(self, command: bytes, environ: Mapping[str, str]) -> bytes:
        """One line, as bash counts them in what it tells; nothing if not plain."""
        found = _PLAIN.fullmatch(command)
        if not found or len(command) > PLAIN_BYTES_MAX:
            return b""
        name, words = found.groups()
        if name in _SAFE_BUILTINS:
            if b"%(" in words:
                return b""  # printf: the time at which the shell was started
        elif name in _OWN_WORDS or not self._is_program(name.decode("ascii")):
            return b""
        start = _assignments(environ)
        if b"\n" in start or not start.isascii():
            return b""  # bash reads this by `read`
        return start + command


def _assignments(environ: Mapping[str, str]) -> bytes:
    return b"".join(map(_assignment, environ.items()))


@lru_cache(maxsize=100)
def _assignment(entry: Tuple[str, str]) -> bytes:
    """Make one; most have the same value for each task."""
    return entry[0].encode() + b"=" + quote(os.fsencode(entry[1])) + b" "


def cause_of(status: int, was_signalled: bool) -> str:
    """Name the signal of which a task died, '' if it just exited with that status.

    bash notes every death by a signal but for these three; there its convention counts.
    """
    number = status - 128
    if number <= 0 or number >= signal.NSIG:
        return ""
    unnoted = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    if not was_signalled and number not in unnoted:
        return ""
    try:
        return "signal " + signal.Signals(number).name[3:]
    except ValueError:
        return f"signal {number}"
