"""What a user writes to describe a task: read, checked, wrong words told apart.

Reason for this file beside verbs.py: the form of a task (fields, flags, a line in
shell quoting) is one concern, used by three utilities; what they do with it another.

Rules. The only place that knows the order of the fields, the options and how a line
is split. No I/O: FILES are not opened here, ids not looked up (verbs.py).

Invariants. A Draft is sound in itself, or Wrong names the argument, what was found and
what to write; what it lets pass, decoding.decode takes back from disk. Nothing is
expanded: no glob, no variable, no `~`.
"""

import copy
import re
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import conditions
import settings
from control import Wrong, told
from record import COMMAND_BYTES_MAX, COUNTER_MAX, RETRIES_MAX, Needs, is_name

PRIORITY_MOST = 1000000  # either way; enough for anybody's scheme
CORES_MOST = 100000  # likewise
LIST_PIECES_MAX = 1000  # of CONDITIONS or FILES; a record holds no more of the first
PIECE_CHARS_MAX = 5000  # of one of them; no path is longer
LIST_CHARS_MAX = 50000  # of all of them: a record has to fit into a frame (1 MiB)
FIELDS = "MEMORY CORES STORAGE CONCURRENCY CONDITIONS FILES COMMANDS ID".split()
FIELDS_LEAST = 7  # ID may be left out

TASK_FORMAT = """
[OPTIONS] MEMORY CORES STORAGE CONCURRENCY CONDITIONS FILES COMMANDS [ID]

  MEMORY       memory that must be available: bytes, or 64K, 512M, 2G
  CORES        cores that must be free: 1, 2, ...
  STORAGE      disk space that must be free, beside the FILES: bytes, or 64K, 512M, 2G
  CONCURRENCY  true: may run beside other tasks; false: has its node to itself
  CONDITIONS   what must hold before it starts, separated by ; ("" for none)
  FILES        files to copy to the node that runs it, separated by ; ("" for none)
  COMMANDS     what bash runs there
  ID           an id of your own, to add it only once and to refer to it

  --keep-names   the FILES keep their names; else they get unique ones, also in COMMANDS
  --timeout T    stop it after T: seconds, or 90s, 10m, 1h30m
  --retries N    run it again, up to N times, when it fails
  --priority N   those with a higher N go first (0 where none is given)

  leoronic_add_task 1024 1 1024 true "" "" "echo hello world"
  leoronic_add_task 512M 2 1G false "queue:is_first; worker:tag gpu" a.csv "sort a.csv"

A list of tasks has one on each line, in shell quoting; nothing is expanded there.
Lines that begin with # are comments.

Conditions:
"""


def split_flags(
    args: Sequence[str], known: Sequence[str]
) -> Tuple[List[str], List[str]]:
    """Split flags, wherever they stand, from the rest; Wrong for an unknown one."""
    flags = [arg for arg in args if arg.startswith("-")]
    for flag in flags:
        if flag not in known:
            raise _no_option(flag, known)
    return flags, [arg for arg in args if not arg.startswith("-")]


def _no_option(found: str, known: Sequence[str]) -> Wrong:
    remedy = "it takes " + ", ".join(known) if known else "it takes none"
    return Wrong(told("no such option", found, remedy))


def split_options(
    args: Sequence[str], known: Mapping[str, Callable[[str, str], Any]]
) -> Tuple[Dict[str, Any], List[str]]:
    """Split leading options from the rest: `--option value` or `--option=value`.

    One whose reader is `flag` has no value. `--` ends the options.
    """
    options: Dict[str, Any] = {}
    rest = list(args)
    while rest and rest[0].startswith("--"):
        name, has_value, value = rest.pop(0).partition("=")
        if name == "--" and not has_value:
            break
        if name not in known:
            raise _no_option(name, list(known))
        if known[name] is flag:
            if has_value:
                raise Wrong(told(f"{name} takes no value", value, f"write {name}"))
        elif not has_value:
            if not rest:
                raise Wrong(f"{name} needs a value; found none; write {name} VALUE")
            value = rest.pop(0)
        options[name] = known[name](name, value)
    return options, rest


def flag(name: str, text: str) -> bool:
    """Read an option that is there or not."""
    return True


def size(name: str, text: str) -> int:
    """Read a size; Wrong names the argument."""
    try:
        found = settings.parse_size(text)
    except ValueError as problem:
        raise Wrong(f"{name} is {problem}") from None
    if found > COUNTER_MAX:
        raise Wrong(told(f"{name} is more than any machine has", text, "write less"))
    return found


def duration(name: str, text: str) -> float:
    """Read a time in seconds; Wrong names the argument."""
    try:
        return settings.parse_duration(text)
    except ValueError as problem:
        raise Wrong(f"{name} is {problem}") from None


def whole(name: str, text: str, least: int, most: int) -> int:
    """Read a whole number; Wrong names the argument."""
    if re.fullmatch(r"-?[0-9]{1,10}", text) and least <= int(text) <= most:
        return int(text)
    what = "%s is not a whole number from %d to %d" % (name, least, most)
    raise Wrong(told(what, text, "write such a number"))


ADD_OPTIONS: Dict[str, Callable[[str, str], Any]] = {
    "--keep-names": flag,
    "--timeout": duration,
    "--retries": lambda name, text: whole(name, text, 0, RETRIES_MAX),
    "--priority": lambda name, text: whole(name, text, -PRIORITY_MOST, PRIORITY_MOST),
}

# --- a line in shell quoting ------------------------------------------------------

# Blanks, or a piece of a word: bare, in single quotes, in double quotes, escaped.
# Each alternative has its own first character and no nested repetition, so that a
# line takes time in proportion to its length.
_PIECE = re.compile(
    r"""([ \t\r\n]+)|([^ \t\r\n'"\\]+)|'([^']*)'|"([^"\\]*(?:\\.[^"\\]*)*)"|\\(.)""",
    re.DOTALL,
)
_ESCAPED = re.compile(r"""\\(["\\])""")


def lines(text: str) -> Iterator[str]:
    """Give the lines of a text one by one, without their ends."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def is_task(line: str) -> bool:
    """Say whether a line of a list is a task: neither blank nor a comment."""
    line = line.strip(conditions.BLANKS)
    return line != "" and not line.startswith("#")


def split_line(line: str) -> List[str]:
    """Split a line in shell quoting into arguments; no expansion of any kind.

    It is shlex.split(line, comments=False), but for the time that takes.
    """
    words: List[str] = []
    parts: List[str] = []  # of the word that may go on
    at = 0
    while at < len(line):
        piece = _PIECE.match(line, at)
        if piece is None:
            raise _open_quote(line[at:])
        at = piece.end()
        kind = piece.lastindex or 0
        if kind != 1:
            text = piece.group(kind)
            parts.append(_ESCAPED.sub(r"\1", text) if kind == 4 else text)
        elif parts:
            words.append("".join(parts))
            parts = []
    return words + ["".join(parts)] if parts else words


def _open_quote(rest: str) -> Wrong:
    if rest[0] == "\\":
        remedy = "write it twice, or put a character behind it"
        return Wrong(told("a backslash ends the line", rest, remedy))
    remedy = f"close it with another {rest[0]} on the same line"
    return Wrong(told("a quote is not closed", rest, remedy))


# --- a task -----------------------------------------------------------------------


class Draft:
    """A task as a user wrote it: checked, its FILES not yet read, ids not resolved.

    `paths` are where its FILES are read, `names` what the task knows them by, and
    `told_of` those whose renaming in COMMANDS the user is told of.
    """

    def __init__(
        self,
        args: Sequence[str],
        number: int = 0,
        more: Optional[Mapping[str, Callable[[str, str], Any]]] = None,
    ) -> None:
        """Read what was written, on that line; `more` are options besides."""
        self.number = number
        self.where = "line %d: " % number if number else ""
        options, rest = split_options(args, dict(ADD_OPTIONS, **(more or {})))
        self.options = options
        _check_count(rest)
        memory, cores, storage, concurrency, texts, files, self.command = rest[:7]
        self.name = rest[7] if len(rest) > FIELDS_LEAST else ""
        self.needs = Needs(
            memory=size("MEMORY", memory),
            cores=whole("CORES", cores, 1, CORES_MOST),
            storage=size("STORAGE", storage),
            concurrency=_is_true("CONCURRENCY", concurrency),
            keep_names=options.get("--keep-names", False),
            timeout=options.get("--timeout", 0.0),
            retries=options.get("--retries", 0),
            priority=options.get("--priority", 0),
        )
        _check_list("CONDITIONS", texts)
        try:
            self.conditions = conditions.parse(texts, re.compile)
        except conditions.WrongCondition as problem:
            raise Wrong(str(problem)) from None
        self.paths = _check_list("FILES", files)
        _check_command(self.command)
        if self.name and more is None:  # else it is to be filled in: see `varied`
            _check_name(self.name)
        if self.needs.keep_names:
            _check_kept(self.paths)
        self.names = self.told_of = self.paths

    def varied(
        self, command: str, name: str, paths: Sequence[str], names: Sequence[str]
    ) -> "Draft":
        """Give the same with another command, ID and FILES; Wrong if it can't be."""
        other = copy.copy(self)
        other.command, other.name = command, name
        other.paths, other.names = list(paths), list(names)
        _check_command(command)
        if name:
            _check_name(name)
        if self.needs.keep_names:
            _check_kept(other.paths)
        return other


def _check_count(rest: Sequence[str]) -> None:
    if len(rest) < FIELDS_LEAST:
        missing = " ".join(FIELDS[len(rest) : FIELDS_LEAST])
        raise Wrong(
            '%s missing; found %d of 7 or 8 fields; write "" for an empty one'
            % (missing + (" is" if " " not in missing else " are"), len(rest))
        )
    if len(rest) > len(FIELDS):
        what = "there are %d fields, 7 or 8 are needed" % len(rest)
        raise Wrong(told(what, rest[len(FIELDS)], "quote COMMANDS as one word"))


def _is_true(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise Wrong(
            told(f"{name} is neither true nor false", text, "write one of them")
        )
    return text == "true"


def _check_list(name: str, text: str) -> List[str]:
    """Give the pieces of CONDITIONS or FILES, each once, if they aren't too many."""
    pieces = list(dict.fromkeys(conditions.split_list(text)))
    longest = max(pieces, key=len, default="")
    if len(longest) > PIECE_CHARS_MAX:
        what = "%s has a piece of over %d characters" % (name, PIECE_CHARS_MAX)
        raise Wrong(told(what, longest, "separate pieces by ;"))
    if len(pieces) > LIST_PIECES_MAX or len(text) > LIST_CHARS_MAX:
        raise Wrong(
            "%s is too long; found %d pieces, %d characters; write %d and %d at most"
            % (name, len(pieces), len(text), LIST_PIECES_MAX, LIST_CHARS_MAX)
        )
    return pieces


def _check_command(command: str) -> None:
    if not command.strip():
        remedy = "a task needs something to run"
        raise Wrong(told("COMMANDS is empty", command, remedy))
    length = len(command.encode("utf-8", "surrogateescape"))
    if length > COMMAND_BYTES_MAX:
        raise Wrong(
            "COMMANDS is too long; found %d bytes, %d are taken; put it into a file "
            "and name that in FILES" % (length, COMMAND_BYTES_MAX)
        )


def _check_name(name: str) -> None:
    if not is_name(name):
        remedy = "write 1 to 64 of A-Za-z0-9._- with no leading -, and not all or last"
        raise Wrong(told("ID can't be an id", name, remedy))


def _check_kept(paths: Sequence[str]) -> None:
    taken: Dict[str, str] = {}
    for path in paths:
        other = taken.setdefault(kept_name(path), path)
        if other != path:
            remedy = "leave out --keep-names, or rename one"
            what = "FILES has two files that would have one name"
            raise Wrong(told(what, f"{other} and {path}", remedy))


def kept_name(path: str) -> str:
    """Give the name under which --keep-names puts a file: inside, or its last part."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not conditions.relative_inside(path):
        parts = parts[-1:]
    return "/".join(parts)
