"""The script that keepers and their watcher are started by, and the process table.

Reason for this file beside sandbox.py: it is executed, not imported, between a node and
its shells, and must stay small for that.

Rules: imports nothing of Leoronic, for it is run as a script, isolated; shells.py and
sandbox.py import it for the process table.

    sandbox.py, shells.py --pipe--> watcher (sh), a child subreaper
             |                        +-- keeper (bash), a child subreaper
             +--- two FIFOs for each -----+     +-- the task: bash -c, and its orphans
                                      +-- keeper ...

A *keeper* runs one task after the other: told by a word, it sources the few lines that
shells.py made, or evaluates the one line of a plain command (taskscript.py), waits, and
reports the status. It has the files of two tasks, its slots, so that the next can be
given to it while one runs. What a task leaves behind becomes the keeper's child,
whatever it did to its session and environment, and the watcher's if the task killed its
keeper. At EOF of its pipe (the node has died, or closed it) the watcher kills all that
is below itself. Both start by way of this file, which executes what it stands for: no
Python is forked, and none stays in memory.

Keepers are in a pids cgroup below the node's own where one can be made: by root, as a
rule, for whom there is no other limit on processes. The watcher, which makes it, isn't.

Keepers are niced where the node is told to (LEORONIC_NICE), and so all of their tasks;
the watcher isn't: it has to kill in time.

A keeper leads a session without a terminal that its tasks share one after the other,
each in a process group of its own: setsid(1) would cost a task about what a bash does.

Not done here: where there are no child subreapers (they are Linux's), a process that
left both its session and its environment is lost sight of.
"""

import os
import signal
import sys
import time
from typing import Dict, Iterable, List, Mapping, NamedTuple, Set

AUTOGROUP_TRIES, AUTOGROUP_PAUSE_S = 20, 0.1
SWEEP_PAUSE_S = 0.005  # between two looks at what is being killed
PROCESSES_LEFT = 256  # of this user's limit: the node's and logins', whatever tasks do
DESCRIPTORS_MAX = 4096  # what may have been inherited ends there
PR_SET_CHILD_SUBREAPER = 36
CGROUPS = "/sys/fs/cgroup"  # where all systems have them
REMOVE_TRIES = 40  # of a cgroup: the last of its processes is just ending

# $1: how the names of its files begin. A word is a digit: of the slot whose file is to
# be sourced, which starts one job in the background and turns job control off again; or
# 2 more: then its line is evaluated, for bash's own messages to name no file. Job
# control gives the task a process group and default signals; while the task is waited
# for it is off, else one that stops itself would seem to have ended. This bash adds one
# to SHLVL, and takes it off again where it executes the task's.
#
# What ended with a status below 129 and left nothing below this bash is over. Else
# there is something to do for the node: until its g all words are dropped.
KEEPER = (  # one line: its number stands in what bash tells of a task
    'echo "up $$"; set -- "$1" /proc/$$/task/$$/children; '
    '[[ -r $2 ]] || set -- "$1" ""; '
    "while read -r -n1 _leoronic_task; do "
    "[[ $_leoronic_task == [0-3] ]] || continue; set -m; "
    'if [[ $_leoronic_task == [01] ]]; then . "$1.$_leoronic_task.feed" || exit; '
    'else IFS= read -r _leoronic_task <"$1.$((_leoronic_task - 2)).feed" && '
    'eval "$_leoronic_task" || exit; fi; '
    'wait $!; set -- "$1" "$2" "$?"; '
    'if [[ $3 -lt 129 && -n $2 ]] && { read -r _leoronic_task <"$2"; '
    '[[ -z $_leoronic_task ]]; }; then echo "ended $3"; else echo "left $3"; '
    "while read -r -n1 _leoronic_task && [[ $_leoronic_task != g ]]; do :; done; fi; "
    "done"
)

# Reads the keepers to start; "$@" is this file as a script. At EOF it becomes the
# sweeper, keeps its process id, and with it its children.
WATCHER = """
trap '' HUP INT QUIT TERM PIPE USR1 USR2
while read -r number; do
	"$@" keeper "$number" &
done
exec "$@" sweep
"""


# ---- processes


class Process(NamedTuple):
    parent: int
    session: int
    is_dead: bool  # a zombie; only its parent still knows it


def _read(path: str) -> bytes:
    """A file of /proc, whole; empty if there is none (any more) or it isn't ours."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def processes() -> Dict[int, Process]:
    """All processes; where there is no /proc, as `ps` tells them."""
    found = {}
    if not os.path.exists("/proc/self/stat"):
        for line in os.popen("ps -axo pid=,ppid=,sess=,stat="):
            pid, parent, session, state = line.split()[:4]
            group = int(session) if session.isdigit() else 0
            found[int(pid)] = Process(int(parent), group, state[0] == "Z")
        return found
    for name in os.listdir("/proc"):
        if name.isdigit():
            _, _, text = _read(f"/proc/{name}/stat").rpartition(b") ")
            if text:  # state parent group session ...
                fields = text.split(b" ", 4)
                is_dead = fields[0] in (b"Z", b"X", b"x")
                found[int(name)] = Process(int(fields[1]), int(fields[3]), is_dead)
    return found


def living(roots: Iterable[int], known: Mapping[int, Process]) -> List[int]:
    """Those of `roots` and of their descendants that are no zombies.

    Parents come first: a shell must not go on to its next command because what it waits
    for was signalled before.
    """
    children: Dict[int, List[int]] = {}
    for pid, process in known.items():
        children.setdefault(process.parent, []).append(pid)
    found = list(roots)
    seen = set(found)
    for pid in found:  # it grows on the way
        new = [child for child in children.get(pid, ()) if child not in seen]
        seen.update(new)
        found += new
    return [pid for pid in found if pid in known and not known[pid].is_dead]


def below(root: int, known: Mapping[int, Process]) -> List[int]:
    """The living descendants of a process."""
    return [pid for pid in living([root], known) if pid != root]


def carries(pid: int, *entries: bytes) -> bool:
    """Whether it was started with these `NAME=value`, or `NAME=` for any value."""
    environ = b"\0" + _read(f"/proc/{pid}/environ")
    return all(
        b"\0" + entry + (b"" if entry.endswith(b"=") else b"\0") in environ
        for entry in entries
    )


def signal_all(pids: Iterable[int], *numbers: int) -> Set[int]:
    """Send signals to all; return those that are another user's (sudo), and live on."""
    foreign = set()
    for pid in pids:
        for number in numbers:
            try:
                os.kill(pid, number)
            except PermissionError:
                foreign.add(pid)
            except OSError:  # gone
                break
    return foreign


def leftovers(home: str) -> List[int]:
    """The living processes of a former process with that state directory.

    A user's shell that has LEORONIC_HOME is none, and neither are we, though a task may
    have started us.
    """
    known = processes()
    own, pid = set(), os.getpid()
    while pid in known and pid not in own:
        own.add(pid)
        pid = known[pid].parent
    entry = b"LEORONIC_HOME=" + os.fsencode(home)
    roots = {
        pid
        for pid in set(known) - own
        if carries(pid, b"LEORONIC_RUN=", entry) or _is_helper(pid, home + "/runs")
    }
    return [pid for pid in living(sorted(roots), known) if pid not in own]


def _is_helper(pid: int, runs: str) -> bool:
    """Whether it is a keeper or watcher with its files there."""
    words = _read(f"/proc/{pid}/cmdline").split(b"\0")
    if b"leoronic-keeper" in words:
        return any(word.startswith(os.fsencode(runs) + b"/") for word in words)
    return b"leoronic-watcher" in words and os.fsencode(runs) in words


# ---- this file as a script


def _detach() -> None:
    """Lead a session, adopt orphans, have signals and descriptors as after login."""
    os.setsid()
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in range(1, signal.NSIG):
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):  # KILL, STOP, and the C library's own
            pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.closerange(3, DESCRIPTORS_MAX)


def _become_watcher(arguments: List[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    script = [sys.executable, "-I", "-S", os.path.abspath(__file__), *arguments]
    os.execv("/bin/sh", ["sh", "-c", WATCHER, "leoronic-watcher", *script])


def _yield_to_others(nice: int) -> None:
    """Let what comes of this process wait for other programs: processor and disk."""
    try:
        nice = max(nice, os.getpriority(os.PRIO_PROCESS, 0))  # never the other way
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        _say_to_autogroup(nice)
    except (AttributeError, OSError):
        pass  # another system: tasks run as they are
    # The system call has another number on each kind of machine; the program knows it.
    ask = ["ionice", "-c", "3", "-p", str(os.getpid())]
    os.spawnvp(os.P_WAIT, ask[0], ask)  # 127 where there is none


def _say_to_autogroup(nice: int) -> None:
    """Let this session yield as well: Linux may weigh sessions alike (sched(7))."""
    for _ in range(AUTOGROUP_TRIES):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as file:
                file.write(str(nice))
            return
        except BlockingIOError:  # it takes ten a second, of all but root
            time.sleep(AUTOGROUP_PAUSE_S)
        except OSError:
            return  # a kernel without them


def _less(most: int) -> int:
    """Give how many of so many processes tasks may have."""
    return max(most - PROCESSES_LEFT, most * 3 // 4)


def _leave_some_processes() -> None:
    """Let a task that forks without end fail before the node and the user's logins do.

    The limit is one on all of a user's processes, and none for root.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NPROC, (_less(soft), hard))
    except (ImportError, AttributeError, OSError, ValueError):
        pass  # another system


def pids_group(runs: str, top: str = CGROUPS, own: str = "/proc/self/cgroup") -> str:
    """Give the path of the cgroup for the tasks of a node; '' if there are none.

    Version 1 has a hierarchy of its own for pids, version 2 one for all; it is below
    the node's own, so that whatever limits that has still hold.
    """
    name = "leoronic" + runs.replace("/", ".")[-200:]
    for line in _read(own).decode("utf-8", "surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        below = top + "/pids" + path if "pids" in kinds.split(",") else ""
        if number == "0" and os.path.exists(top + "/cgroup.controllers"):
            below = top + path
        if below:
            return os.path.join(below, name)
    return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def make_pids_group(path: str) -> None:
    """Make it; nothing where the kernel or its owner doesn't let us."""
    above = os.path.dirname(path)
    if not os.path.exists(above + "/cgroup.procs"):
        return  # no path, or another system's
    try:
        if not os.path.isdir(path):  # of a node that lost its power
            os.mkdir(path)
        if not os.path.exists(path + "/pids.max"):  # version 2: not in use here yet
            _write(above + "/cgroup.subtree_control", "+pids")
        limit = _read(above + "/pids.max").strip()
        most = _less(int(limit)) if limit.isdigit() else 1 << 30
        # Half of what the kernel has for everyone: a bomb in a large one takes longer.
        for name in ("pid_max", "threads-max"):
            most = min(most, int(_read("/proc/sys/kernel/" + name) or 1 << 15) // 2)
        _write(path + "/pids.max", str(most))
    except (OSError, ValueError):
        remove_pids_group(path, 1)


def join_pids_group(path: str) -> None:
    """Let this process, and what comes of it, be in it, if it is there."""
    if path and os.path.exists(path + "/pids.max"):
        try:
            _write(path + "/cgroup.procs", str(os.getpid()))
        except OSError:
            pass


def remove_pids_group(path: str, tries: int = REMOVE_TRIES) -> None:
    """Remove it once nothing is in it."""
    while tries and os.path.isdir(path):
        tries -= 1
        try:
            os.rmdir(path)
        except OSError:
            time.sleep(SWEEP_PAUSE_S)


def _become_keeper(base: str, directory: str, umask: int, bash: str) -> None:
    report = os.open(base + ".did", os.O_WRONLY)
    try:
        with open(os.path.dirname(base) + "/environ", "rb") as file:
            entries = file.read().split(b"\0")[:-1]
        fds = [os.open(base + ".do", os.O_RDONLY), report]
        for name in (".notes", ".out0", ".err0", ".out1", ".err1"):
            fds.append(os.open(base + name, os.O_WRONLY | os.O_APPEND))
        os.chdir(directory)
        os.umask(umask)
        for target, fd in enumerate(fds):  # a source is never below a later target
            os.dup2(fd, target)
        report = 1
        argv = ["bash", "-p", "-c", KEEPER, "bash", base, "leoronic-keeper"]
        os.execve(bash, argv, dict(entry.split(b"=", 1) for entry in entries))
    except OSError as error:
        why = f"! {error.filename or bash}: {error.strerror}\n"
        os.write(report, os.fsencode(why))


def _sweep() -> None:
    """Kill all below this process, which was the watcher."""
    foreign: Set[int] = set()
    left = below(os.getpid(), processes())
    while left:
        foreign |= signal_all(left, signal.SIGKILL)
        time.sleep(SWEEP_PAUSE_S)
        left = [p for p in below(os.getpid(), processes()) if p not in foreign]


def main(arguments: List[str]) -> None:
    runs, directory, umask, bash, nice, role = arguments[:6]
    group = pids_group(runs)
    if role == "sweep":
        _sweep()
        remove_pids_group(group)
        return
    _detach()
    if role == "watcher":
        make_pids_group(group)
        _become_watcher(arguments[:5])
        return
    if int(nice):
        _yield_to_others(int(nice))
    join_pids_group(group)
    _leave_some_processes()
    _become_keeper(f"{runs}/{arguments[6]}", directory, int(umask), bash)


if __name__ == "__main__":
    main(sys.argv[1:])
