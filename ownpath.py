"""How a role's script starts: as a module, our own folder behind the library.

Reason for this file: the scripts of all three roles must do this before they import
anything else, and from whatever they import first it must come.

Python keeps what it made of a module, but compiles a script at each start, and the
memory that takes (1.7 MiB for comrade.py) stays with the process: so each role executes
itself again, by way of START, as a module. The process id and descriptors stay.

Rules. Imports nothing that isn't loaded at every start of Python: any other import
could be taken from the working directory.
"""

import _signal  # type: ignore[import-not-found]
import os
import sys

# Nothing may be imported from the working directory, which -c would put first. Ctrl-C
# ends it without a traceback until it has a handler; `_signal` is built into Python.
START = (
    "import _signal as s, sys; s.signal(s.SIGINT, s.SIG_DFL); "
    "s.pthread_sigmask(s.SIG_UNBLOCK, [s.SIGINT]); "
    "sys.path[0], _, name = sys.argv[1].rpartition('/'); del sys.argv[0]; "
    "sys.exit(__import__(name[:-3]).main(sys.argv[1:]))"
)
FLAGS = ("-E", "-W", "ignore", "-X", "utf8")


def module_words(script: str) -> "list[str]":
    """Give the words of a command that runs a script as the module that it is."""
    return [sys.executable, *FLAGS, "-c", START, os.path.abspath(script)]


def open_standard() -> None:
    """Open stdin, stdout and stderr to nothing where they were closed.

    Else the next file that is opened would take the place, and what is printed.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it is this one


def as_module(script: str) -> None:
    """Execute a script anew as the module that it is; doesn't return."""
    open_standard()
    if sys.executable:  # else this is no ordinary Python: it goes on as a script
        _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGINT])  # START has it
        os.execv(sys.executable, module_words(script) + sys.argv[1:])


def prefer_stdlib() -> None:
    """Move our own folder behind the standard library.

    The working directory may be that folder, and a task may write `re.py` there; what
    pip installed may be called `settings`, so ours stands before site-packages.
    """
    own = os.path.dirname(os.path.abspath(__file__))
    rest = [path for path in sys.path if os.path.abspath(path or ".") != own]
    is_site = [path.endswith(("site-packages", "dist-packages")) for path in rest]
    place = is_site.index(True) if True in is_site else len(rest)
    sys.path[:] = rest[:place] + [own] + rest[place:]
