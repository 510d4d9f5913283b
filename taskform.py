"""What a user writes to describe a task: read, checked, wrong words told apart.

Reason for this file beside verbs.py: the form of a task (fields, flags, a line in
shell quoting) is one concern, used by three utilities; what they do with it another.

Rules. The only place that knows the order of the fields, the options and how a line
is split. No I/O: FILES are not opened here, ids not looked up (verbs.py).

Invariants. A Draft is sound in itself, or Wrong names the argument, what was found and
what to write; what it lets pass, decoding.decode takes back from disk. Nothing is
expanded: no glob, no variable, no `~`.
"""

import re
from functools import lru_cache
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
from process import within
from record import COMMAND_BYTES_MAX, COUNTER_MAX, RETRIES_MAX, File, Needs, is_name

PRIORITY_MOST = 1000000  # either way; enough for anybody's scheme
CORES_MOST = 100000  # likewise
LIST_PIECES_MAX = 1000  # of CONDITIONS or FILES; a record holds no more of the first
PIECE_CHARS_MAX = 5000  # of one of them; no path is longer
READS_KEPT = 64  # of what many lines of a list have in common
CONDITIONS_S = 0.03  # of the processor; (?i)[\0-\uffff] takes 13 ms, each time
LIST_CHARS_MAX = 50000  # of all of them: a record has to fit into a frame (1 MiB)
FIELDS = "MEMORY CORES STORAGE CONCURRENCY CONDITIONS FILES COMMANDS ID".split()
FIELDS_LEAST = 7  # ID may be left out

TASK_FORMAT = """
[OPTIONS] MEMORY CORES STORAGE CONCURRENCY CONDITIONS FILES COMMANDS [ID]

  MEMORY       memory that must be available: bytes, or 64K, 512M, 2G
  CORES        cores that must be free: 1, 2, ...
  STORAGE      disk space that must be free, beside the FILES: likewise
  CONCURRENCY  true: may run beside other tasks; false: has its node to itself
  CONDITIONS   what must hold before it starts, separated by ; ("" for none)
  FILES        files to copy to the node that runs it, separated by ; ("" for none)
  COMMANDS     what bash runs there
  ID           an id of your own, to add it only once and to refer to it

  --keep-names   the FILES keep their names; else they get unique ones, which
                 COMMANDS is told in their place
  --timeout T    stop it after T: seconds, or 90s, 10m, 1h30m
  --retries N    run it again, up to N times, when it fails
  --priority N   those with a higher N go first (0 where none is given)

  leoronic_add_task 1024 1 1024 true "" "" "echo hello world"
  leoronic_add_task 1G 2 1G true "queue:is_first; worker:tag x" a.csv "wc a.csv"

A list of tasks has one on each line, in shell quoting; nothing is expanded
there. Lines that begin with # are comments.

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


def take_option(
    args: Sequence[str], name: str, read: Callable[[str, str], Any]
) -> Tuple[Any, List[str]]:
    """Take an option with a value from among arguments, wherever it stands; or None."""
    for i, arg in enumerate(args):
        if arg == name or arg.startswith(name + "="):
            end = i + 2 if arg == name else i + 1
            options, _ = split_options(args[i:end], {name: read})
            return options[name], [*args[:i], *args[end:]]
    return None, list(args)


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

NO_OPTIONS: Dict[str, Any] = {}  # of most tasks; never written to

# --- a line in shell quoting ------------------------------------------------------

# Blanks, or a piece of a word: bare, in single quotes, in double quotes, escaped.
# Each alternative has its own first character and no nested repetition, so that a
# line takes time in proportion to its length.
_PIECE = re.compile(
    r"""([ \t\r\n]+)|([^ \t\r\n'"\\]+)|'([^']*)'|"([^"\\]*(?:\\.[^"\\]*)*)"|\\(.)""",
    re.DOTALL,
)
_ESCAPED = re.compile(r"""\\(["\\])""")
# What most lines are: words that are bare, or in quotes as a whole; of a task, seven.
_WORD = r"""(?:([^ \t\r\n'"\\]+)|'([^']*)'|"([^"\\]*)")"""
_UNNAMED = _WORD.replace("([^", "(?:[^")
_EASY_LINE = re.compile(r"[ \t\r\n]*(?:%s(?:[ \t\r\n]+|$))*" % _UNNAMED)
_EASY_WORD = re.compile(_WORD)
_EASY_TASK = re.compile(r"((?:%s[ \t\r\n]+){6})%s[ \t\r\n]*" % (_UNNAMED, _WORD))


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
    if _EASY_LINE.fullmatch(line):
        return ["".join(word) for word in _EASY_WORD.findall(line)]
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
    `told_of` those whose renaming in COMMANDS the user is told of. There may be a
    million at once, so they share what is the same.
    """

    __slots__ = (
        *("number", "unit", "options", "command", "name", "needs", "conditions"),
        *("paths", "names", "told_of"),
    )

    def __init__(
        self,
        args: Sequence[str],
        number: int = 0,
        more: Optional[Mapping[str, Callable[[str, str], Any]]] = None,
    ) -> None:
        """Read what was written, on that line; `more` are options besides."""
        self.number = number
        self.unit = "line"
        options, rest = split_options(args, dict(ADD_OPTIONS, **(more or {})))
        self.options = options or NO_OPTIONS
        _check_count(rest)
        fields, self.command = tuple(rest[:6]), rest[6]
        self.name = rest[7] if len(rest) > FIELDS_LEAST else ""
        self.needs, self.conditions, self.paths = _read(fields, *options.items())
        check_command(self.command)
        if self.name and more is None:  # else it is to be filled in: see `varied`
            _check_name(self.name)
        if self.needs.keep_names:
            _check_kept(self.paths)
        self.names = self.told_of = self.paths

    @property
    def where(self) -> str:
        """Name the line of a list that it is from."""
        return "%s %d: " % (self.unit, self.number) if self.number else ""

    def varied(
        self, command: str, name: str, paths: Sequence[str], names: Sequence[str]
    ) -> "Draft":
        """Give the same with another command, ID and FILES; Wrong if it can't be."""
        import copy  # of sweeps only; 0.1 MiB

        other = copy.copy(self)
        other.command, other.name = command, name
        other.paths, other.names = tuple(paths), tuple(names)
        check_command(command)
        if name:
            _check_name(name)
        if self.needs.keep_names:
            _check_kept(other.paths)
        return other


@lru_cache(maxsize=READS_KEPT)
def _read(
    fields: Tuple[str, ...], *options: Tuple[str, Any]
) -> Tuple[Needs, Tuple[conditions.Condition, ...], Tuple[str, ...]]:
    """Read all of a task but COMMANDS and ID: in a list that is mostly the same.

    Gives its needs, without conditions and files, and those.
    """
    memory, cores, storage, concurrency, texts, files = fields
    given = dict(options)
    needs = Needs(
        memory=size("MEMORY", memory),
        cores=whole("CORES", cores, 1, CORES_MOST),
        storage=size("STORAGE", storage),
        concurrency=_is_true("CONCURRENCY", concurrency),
        keep_names=given.get("--keep-names", False),
        timeout=given.get("--timeout", 0.0),
        retries=given.get("--retries", 0),
        priority=given.get("--priority", 0),
    )
    return needs, read_conditions(texts), tuple(_check_list("FILES", files))


def read_conditions(text: str) -> Tuple[conditions.Condition, ...]:
    """Read CONDITIONS, within CONDITIONS_S: regexes of few characters may be costly."""
    _check_list("CONDITIONS", text)
    try:
        return tuple(within(CONDITIONS_S, conditions.parse, text, re.compile))
    except conditions.WrongCondition as problem:
        raise Wrong(str(problem)) from None
    except TimeoutError:
        what = "CONDITIONS take too long to read"
        raise Wrong(told(what, text, "write fewer, or simpler ones")) from None


@lru_cache(maxsize=READS_KEPT)
def completed(
    needs: Needs, found: Tuple[conditions.Condition, ...], files: Tuple[File, ...]
) -> Needs:
    """Put conditions and files to needs: of a million equal ones there is only one."""
    return needs._replace(conditions=tuple(map(conditions.wire, found)), files=files)


def plain(line: str) -> Optional[Tuple[str, Needs]]:
    """Read a line the short way: seven easy words, of which none is to be looked up.

    Gives COMMANDS and needs; None: only Draft and verbs.py can read it.
    """
    found = _EASY_TASK.fullmatch(line)
    needs = _plain_needs(found.group(1)) if found else None
    if found is None or needs is None:
        return None
    command = str(found.group(found.lastindex or 0))
    check_command(command)
    return command, needs


@lru_cache(maxsize=READS_KEPT)
def _plain_needs(words: str) -> Optional[Needs]:
    """Read what stands before COMMANDS, once for neighbours that share it."""
    fields = split_line(words)
    if fields[0].startswith("--"):
        return None
    needs, found, files = _read(tuple(fields))
    if files or any(condition.verb == "queue:done" for condition in found):
        return None
    return completed(needs, found, ())


def _check_count(rest: Sequence[str]) -> None:
    if len(rest) < FIELDS_LEAST:
        missing = " ".join(FIELDS[len(rest) : FIELDS_LEAST])
        raise Wrong(
            '%s missing; found %d of 7 or 8 fields; write "" for an empty one'
            % (missing + (" is" if " " not in missing else " are"), len(rest))
        )
    late = next((text for text in rest[FIELDS_LEAST:] if text[:2] == "--"), "")
    if late:
        what = "an option stands behind the fields"
        raise Wrong(told(what, late, "write it in front of MEMORY"))
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
    if len(text) > LIST_CHARS_MAX:
        remedy = "write %d at most" % LIST_CHARS_MAX
        raise Wrong(f"{name} is too long; found {len(text)} characters; {remedy}")
    pieces = list(dict.fromkeys(conditions.split_list(text)))
    longest = max(pieces, key=len, default="")
    if len(longest) > PIECE_CHARS_MAX:
        what = "%s has a piece of over %d characters" % (name, PIECE_CHARS_MAX)
        raise Wrong(told(what, longest, "separate pieces by ;"))
    if len(pieces) > LIST_PIECES_MAX:
        remedy = "write %d at most" % LIST_PIECES_MAX
        raise Wrong(f"{name} is too long; found {len(pieces)} pieces; {remedy}")
    return pieces


def check_command(command: str) -> None:
    """Refuse what can't be run: nothing at all, or more than execve takes."""
    if not command.strip():
        remedy = "a task needs something to run"
        raise Wrong(told("COMMANDS is empty", command, remedy))
    if 4 * len(command) <= COMMAND_BYTES_MAX:
        return
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
