"""The lines that start a task in a keeper, and what the status it gives back means.

Reason for this file beside shells.py: this is text, to be read and tested without a
process; shells.py is processes and files.

Rules. Does nothing but make bytes. Whatever a command or an environment holds, it
reaches the task's bash as it is.
"""

import os
import signal
from typing import Dict, Mapping, Tuple

# Names to which bash gives a meaning of its own. In a keeper's environment they would
# steer the keeper, and a bash can't set some of them: `env` hands them to the task.
SHELL_NAMES = frozenset(
    "BASHOPTS BASHPID BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_COMMAND BASH_COMPAT "
    "BASH_LINENO BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_XTRACEFD DIRSTACK "
    "EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD IFS LINENO OPTIND "
    "POSIXLY_CORRECT PPID RANDOM SECONDS SHELLOPTS SRANDOM TMOUT UID".split()
)


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

    The first line is empty: an old bash takes one with odd bytes for a binary.
    """
    words = [b"\n"]
    for name, value in plain.items():
        words.append(name.encode() + b"=" + quote(os.fsencode(value)) + b" ")
    if odd:
        words.append(b"env ")
        words += [quote(os.fsencode(f"{k}={v}")) + b" " for k, v in odd.items()]
    # one line: where bash reads the next one with job control on, it also notes a task
    # that just exited. `return` keeps it from what is left of the script before
    end = b" </dev/null >&3 2>&4 3>&- 4>&- & set +m; return\n"
    return b"".join([*words, b"bash -c ", quote(command), end])


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
