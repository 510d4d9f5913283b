"""How each utility is called, and what it does: its usage line, its --help.

Reason for this file beside control.py: a table that every new utility adds a row to.
Wrong arguments, --help and Tab (completing.py) all read it.

Rules. A usage line begins with the function's name; what stands in capitals is for the
caller to fill in; [OPTIONS] are those of a task (taskform.py). It is short: it stands
below each message about wrong arguments. What there is to say of a word goes to --help.
"""

from typing import Dict, Iterator, NamedTuple, Tuple

TASK = "MEMORY CORES STORAGE CONCURRENCY CONDITIONS FILES"
COLUMNS = (40, 100)  # of a line of --help: on any terminal, and for reading
INDENT = 2
WORD_CHARS = 16  # of the first column of --help

ONE = ("ID", "an id, the beginning of one, or last: the task added last")
MANY = "ids, beginnings of them, last (the task added last), or all: "
NODE = ("NODE", "a name or an address, as leoronic_nodes shows it")
TIME = "seconds, or 90s, 10m, 1h30m"

Words = Tuple[Tuple[str, str], ...]


class Usage(NamedTuple):
    """One utility: how it is called, what it does, what its words mean."""

    line: str
    what: str
    words: Words = ()


OPTIONS: Words = (
    ("--timeout T", f"stop it after T: {TIME}"),
    ("--retries N", "run it again, up to N times, when it fails"),
    ("--priority N", "those with a higher N go first; 0 where none is given"),
    ("--keep-names", "the FILES keep their names; else they get unique ones"),
    ("the others", "see leoronic_task_format"),
)
SWEEP = Usage(
    f"leoronic_add_sweep [--send] [OPTIONS] {TASK} COMMAND [ID] [-- VALUE...]",
    "add one task for each value; print the ids",
    (
        ("VALUE...", "the values; without -- they are read from stdin, one a line"),
        ("COMMAND, ID", "may have placeholders; without any, {} is put behind COMMAND"),
        ("{}", "the value, quoted for bash"),
        ("{.} {/}", "without its extension; its last part"),
        ("{//} {/.}", "its directory; its last part without extension"),
        ("{#}", "its number: 1, 2, ..."),
        ("--send", "the value names a file, which is sent along"),
        *OPTIONS,
    ),
)
FROM_FILE = Usage(
    "leoronic_add_tasks_from_file FILE",
    "add the tasks of a file, all or none; print the ids",
    (("FILE", "one task a line, as behind leoronic_add_task; # begins a comment"),),
)
USAGES: Dict[str, Usage] = {
    "add_task": Usage(
        f"leoronic_add_task [OPTIONS] {TASK} COMMANDS [ID]",
        "add a task; print its id, and leave it in LEORONIC_ID",
        OPTIONS,
    ),
    "add_tasks": FROM_FILE,
    "add_tasks_str": Usage(
        "leoronic_add_tasks_from_str STRING",
        "add the tasks that stand in a string, all or none; print the ids",
        (("STRING", "one task a line, as behind leoronic_add_task"),),
    ),
    "add_tasks_sweep": SWEEP,
    "add_tasks_sweep_text": SWEEP,
    "add_tasks_text": FROM_FILE,
    "del_task": Usage(
        "leoronic_del_task [--yes] ID...",
        "take tasks out of the queue; running ones are stopped, wherever they run",
        (
            ("ID...", MANY + "those that wait or run"),
            ("--yes", "with all: don't ask"),
        ),
    ),
    "retry": Usage(
        "leoronic_retry ID...",
        "add tasks that are over anew, as ID.r1, then ID.r2; print the new ids",
        (("ID...", MANY + "those that failed and weren't added anew"),),
    ),
    "get_queue": Usage(
        "leoronic_get_queue [--json|--csv] [--last N] [STATE]",
        "show the queue",
        (
            ("STATE", "only waiting, running, done, failed or deleted ones"),
            ("--last N", "only the N added last"),
            ("--json, --csv", "for programs: all fields, nothing cut"),
        ),
    ),
    "get_output": Usage(
        "leoronic_get_output [--stderr] [--follow] ID",
        "print what a task printed, byte for byte, also while it runs",
        (
            ONE,
            ("--stderr", "what it printed on stderr"),
            ("--follow", "and what it prints from now on, until it is over"),
        ),
    ),
    "wait": Usage(
        "leoronic_wait [--timeout T] [ID...]",
        "wait until tasks are finished",
        (
            ("ID...", MANY + "those that wait or run, as without any ID"),
            ("--timeout T", f"give up after T: {TIME}"),
            ("returns", "0: all succeeded; 1: some did not; 124: time is up"),
        ),
    ),
    "why": Usage(
        "leoronic_why ID", "say why a task waits: each condition, each node", (ONE,)
    ),
    "top": Usage(
        "leoronic_top",
        "show nodes, rates, what runs and what waits, anew each second; q or Ctrl-C "
        "ends; where no terminal is: once",
    ),
    "nodes": Usage("leoronic_nodes [--json]", "show comrades and ghosts"),
    "add_tag": Usage("leoronic_add_tag TAG...", "give tags to this node"),
    "del_tag": Usage("leoronic_del_tag TAG...", "take tags from this node"),
    "get_tags": Usage("leoronic_get_tags", "print this node's tags"),
    "task_format": Usage(
        "leoronic_task_format", "print the fields of a task, all conditions, examples"
    ),
    "drain": Usage(
        "leoronic_drain [--timeout T] [NODE]",
        "let a node take no new task; it finishes what it runs",
        (
            (NODE[0], NODE[1] + "; without it, this node"),
            ("--timeout T", f"wait until it has, T at most: {TIME}"),
            ("returns", "124: time is up, and the node stays draining"),
        ),
    ),
    "undrain": Usage(
        "leoronic_undrain [NODE]",
        "let a node take tasks again",
        ((NODE[0], NODE[1] + "; without it, this node"),),
    ),
    "stop": Usage("leoronic_stop", "stop this node's comrade (or ghost)"),
    "config": Usage(
        "leoronic_config [--json]", "show this node's settings, where each comes from"
    ),
    "get_all_files": Usage(
        "leoronic_get_all_files [DEST]",
        "copy the working directory of every node to DEST/NODE/",
        (("DEST", "a directory; without it, the one you are in"),),
    ),
    "send_file": Usage(
        "leoronic_send_file FILE [TAG]",
        "put a file into the working directory of every node (with that tag)",
    ),
    "new_cookie": Usage(
        "leoronic_new_cookie [--grace T]",
        "give all nodes a new cookie, over their links; say how many have it",
        (
            ("--grace T", "T of being up long (1d) the old one lets in who was away"),
            ("returns", "1: some nodes don't have it yet"),
        ),
    ),
    "doctor": Usage(
        "leoronic_doctor",
        "say what is wrong in the cluster, and the command that mends it",
    ),
}


def of_function(name: str) -> str:
    """Give the usage of a function; '': unknown."""
    lines = [u.line for u in USAGES.values() if u.line.split()[0] == name]
    return lines[0] if lines else ""


def help_lines(verb: str, columns: int) -> Iterator[str]:
    """Give the lines of a utility's --help, folded to a width."""
    from textwrap import wrap  # 1 MiB that few need

    width = min(max(columns, COLUMNS[0]), COLUMNS[1])
    usage, indent = USAGES[verb], " " * INDENT
    yield from wrap("usage: " + usage.line, width, subsequent_indent=indent * 2)
    yield from wrap(usage.what, width, initial_indent=indent, subsequent_indent=indent)
    hanging = " " * (INDENT + WORD_CHARS)
    for word, text in usage.words:
        first = indent + word.ljust(WORD_CHARS)
        yield from wrap(text, width, initial_indent=first, subsequent_indent=hanging)
