"""Submitting many: one command with placeholders, a list of values, a task for each.

Reason for this file beside taskform.py: where in a command a value may be put, and how
it is quoted there, is a small grammar of its own.

Rules. No I/O. What a task is, is taskform.Draft's; this file only fills it in. Values
are the bytes that the user gave (surrogateescape).

How it works. The command is read once, as bash would: each placeholder stands bare, in
quotes, or in arithmetic. Then each value is put into each place in that place's form.

    {} the value   {.} without extension   {/} last part   {//} directory
    {/.} last part without extension   {#} its number, from 1      (as in GNU parallel)

With --send the value is a file that goes along. In the record its name is SENT and the
last part, and so `{}` in the command; where the task runs that becomes the copy's name
(places.renames), which needs no quotes.

Invariants
1. Whatever is in a value, bash takes it as one word, or as a piece of the quoted string
   that it stands in: nothing in it is expanded, run, or ends a quote. Where this file
   can't be sure of that, the placeholder is refused.
2. A placeholder in a comment is none.
"""

import re
from typing import Any, Callable, Dict, Generator, List, NamedTuple, Sequence, Tuple

from control import SLICE, TURN, Call, Waits, Wrong, told
from record import COMMAND_BYTES_MAX, NAME_CHARS_MAX
from taskform import PIECE_CHARS_MAX, Draft, check_command, flag, kept_name

PLACEHOLDER = re.compile(r"\{(?:#|\.|/|//|/\.)?\}")
SENT = "{}"  # before a sent file's name: all of these in a command are placeholders
END = "--"  # the values follow

BEFORE_COMMENT = " \t\n;&|()"
HERE = re.compile(r"<<(?!<)")
CASE = re.compile(r"case(?=[ \t\n])")

# --- where a placeholder stands ---------------------------------------------------

# What bash is in the midst of. In WORD quotes open; the last three take no value.
WORD, PARENS, SINGLE, DOUBLE, ANSI, NUMBER = (
    "word",
    "( )",
    "' '",
    '" "',
    "$' '",
    "(( ))",
)
BRACES, BACKQUOTES, OLD_NUMBER = "${ }", "` `", "$[ ]"
REFUSED = (BRACES, BACKQUOTES, OLD_NUMBER)

# What opens something, by what it is met in; the longest first.
_NESTED = (("$((", NUMBER), ("$(", PARENS), ("${", BRACES), ("$[", OLD_NUMBER))
_BARE = (
    *(("$'", ANSI), ('$"', DOUBLE), *_NESTED, ("((", NUMBER)),
    *(("(", PARENS), ("'", SINGLE), ('"', DOUBLE), ("`", BACKQUOTES)),
)
OPENS: Dict[str, Tuple[Tuple[str, str], ...]] = {
    WORD: _BARE,
    PARENS: _BARE,
    DOUBLE: (*_NESTED, ("`", BACKQUOTES)),
    NUMBER: (*_NESTED, ("(", NUMBER), ("`", BACKQUOTES)),
    BRACES: (*_NESTED, ('"', DOUBLE), ("`", BACKQUOTES)),
    OLD_NUMBER: (*_NESTED, ("[", OLD_NUMBER)),
    SINGLE: (),
    ANSI: (),
    BACKQUOTES: (),
}
CLOSES = {
    **{PARENS: ")", NUMBER: ")", SINGLE: "'", DOUBLE: '"', ANSI: "'"},
    **{BRACES: "}", BACKQUOTES: "`", OLD_NUMBER: "]"},
}


class Place(NamedTuple):
    """A placeholder, and the text before it."""

    before: str
    name: str
    within: str


class Reader:
    """Reads a command as bash would, as far as quotes matter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.places: List[Place] = []
        self.rest = ""  # behind the last placeholder
        self.is_in_comment = False  # at the end
        self._stack = [WORD]
        self._at = self._from = 0
        self._has_here = False  # its body begins with the next line
        self._doubt = ""  # why a placeholder from here on is refused
        while self._at < len(text):
            self._step()
        self.rest = text[self._from :]

    def _step(self) -> None:
        text, at, within = self.text, self._at, self._stack[-1]
        if text[at] == "\\" and within != SINGLE:
            self._at += 2
            return
        found = PLACEHOLDER.match(text, at)
        if found:
            self._place(found.group(), found.end())
            return
        if within in (WORD, PARENS) and self._skip_bare():
            return
        for opener, what in OPENS[within]:
            if text.startswith(opener, at):
                # `$((` is closed by two: each is one level.
                self._stack += [what] * (opener.count("(") if what is NUMBER else 1)
                self._at += len(opener)
                return
        if text[at] == CLOSES.get(within):
            self._stack.pop()
        elif within is BRACES and text[at] == "'":
            self._doubt = self._doubt or "behind a ' inside ${ }"
        self._at += 1

    def _skip_bare(self) -> bool:
        """Pass over a comment; note what makes the rest hard to tell."""
        text, at = self.text, self._at
        is_first = at == 0 or text[at - 1] in BEFORE_COMMENT
        if text[at] == "\n" and self._has_here:
            self._doubt = self._doubt or "in or behind a here-document"
        elif HERE.match(text, at):
            self._has_here = True
            self._at += 2
            return True
        elif text.startswith("<<<", at):
            self._at += 3
            return True
        elif is_first and text[at] == "#":
            end = text.find("\n", at)
            self.is_in_comment = end < 0
            self._at = len(text) if end < 0 else end
            return True
        elif is_first and CASE.match(text, at) and PARENS in self._stack:
            self._doubt = self._doubt or "behind a case inside $( )"
        return False

    def _place(self, name: str, end: int) -> None:
        refused = [what for what in self._stack if what in REFUSED]
        doubt = "inside " + refused[0] if refused else self._doubt
        if doubt:
            found = self.text[max(self._at - 20, 0) : end + 10]
            remedy = "put it into a variable before that: x={}; and write $x there"
            raise Wrong(told("COMMAND has %s %s" % (name, doubt), found, remedy))
        before = self.text[self._from : self._at]
        self.places.append(Place(before, name, self._stack[-1]))
        self._at = self._from = end


def read(command: str) -> Reader:
    """Find the placeholders; a command without any gets ` {}` at its end."""
    reader = Reader(command)
    if reader.places:
        return reader
    if reader.is_in_comment:
        remedy = "write {} where the value is to be"
        raise Wrong(told("COMMAND has no {} and ends in a comment", command, remedy))
    reader = Reader(command + " {}")
    if not reader.places or reader.places[-1].within is not WORD:
        remedy = "write {} where the value is to be"
        raise Wrong(told("COMMAND has no {} and ends within quotes", command, remedy))
    return reader


# --- what is put there ------------------------------------------------------------


def _last(value: str) -> str:
    return value.rpartition("/")[2]


def _stem(value: str) -> str:
    return re.sub(r"\.[^/.]*\Z", "", value)


def _directory(value: str) -> str:
    head, slash, _ = value.rstrip("/").rpartition("/")
    return head.rstrip("/") or ("/" if slash or value.startswith("/") else ".")


PARTS: Dict[str, Callable[[str], str]] = {
    "{}": lambda value: value,
    "{.}": _stem,
    "{/}": _last,
    "{//}": _directory,
    "{/.}": lambda value: _stem(_last(value)),
}


def _escaped(value: str) -> str:
    """Give what means the value inside single quotes."""
    return value.replace("'", "'\\''")


def _number(value: str) -> str:
    if not re.fullmatch("-?[0-9]{1,18}", value):
        remedy = "only numbers can be put into (( )), ${..}, $[..]; use a variable"
        raise Wrong(told("it stands in (( )) and is no number", value, remedy))
    return value


FORMS: Dict[str, Callable[[str], str]] = {
    WORD: lambda value: "'%s'" % _escaped(value),
    PARENS: lambda value: "'%s'" % _escaped(value),
    SINGLE: _escaped,
    DOUBLE: lambda value: "\"'%s'\"" % _escaped(value),
    ANSI: lambda value: "''%s'$'" % _escaped(value),
    NUMBER: _number,
}


class Sweep:
    """A task with places for a value: what `fill` makes of each one."""

    def __init__(self, args: Sequence[str]) -> None:
        self.draft = Draft(args, more={"--send": flag})
        self.sends = self.draft.options.get("--send", False)
        self.is_renamed = self.sends and not self.draft.needs.keep_names
        self.reader = read(self.draft.command)

    def fill(self, number: int, value: str) -> Draft:
        """Make the task for a value; Wrong if there can't be one."""
        paths, names = list(self.draft.paths), list(self.draft.paths)
        sent = ""
        if self.sends:
            sent = self._sent(value)
            if self.is_renamed or value not in paths:
                paths.append(value)
                names.append(sent if self.is_renamed else value)
        if len(value) > COMMAND_BYTES_MAX:
            check_command(value)  # it is too long on its own
        command, count = self._command(number, value, sent)
        if self.is_renamed and command.count(sent) != count:
            remedy = "rename it, or send it as one of FILES"
            raise Wrong(told("its name can't be told apart in COMMAND", value, remedy))
        name = self._plain(self.draft.name, number, value)
        return self.draft.varied(command, name, paths, names)

    def _sent(self, value: str) -> str:
        if not value or len(value) > PIECE_CHARS_MAX:
            raise Wrong(told("it can't be the name of a file", value, "name a file"))
        return SENT + _last(value) if self.is_renamed else kept_name(value)

    def _command(self, number: int, value: str, sent: str) -> Tuple[str, int]:
        """Give the command, and how often the sent file stands in it."""
        pieces: List[str] = []
        count = size = 0
        for before, name, within in self.reader.places:
            pieces.append(before)
            if name == "{}" and self.is_renamed and within is not NUMBER:
                pieces.append(sent)
                count += 1
            elif name == "{#}":
                pieces.append(FORMS[within](str(number)))
            else:
                text = sent if name == "{}" and sent else PARTS[name](value)
                pieces.append(FORMS[within](text))
            size += len(before) + len(pieces[-1])
            if size > COMMAND_BYTES_MAX:  # thousands of places for a long value
                check_command("".join(pieces))
        return "".join(pieces) + self.reader.rest, count

    @staticmethod
    def _plain(text: str, number: int, value: str) -> str:
        """Fill in an id, which bash never reads."""

        def put(found: "re.Match[str]") -> str:
            name = found.group()
            part = str(number) if name == "{#}" else PARTS[name](value)
            return part[: NAME_CHARS_MAX + 1]  # no longer one can be an id

        return PLACEHOLDER.sub(put, text)


# --- the call ---------------------------------------------------------------------


def drafts(call: Call) -> Generator[Waits, Any, List[Draft]]:
    """Make the drafts of a call: VERB [TEXT] FIELD... [-- VALUE...]."""
    args, values = _split(call)
    sweep = Sweep(args)
    if (
        len(values) > 1
        and sweep.draft.name
        and not PLACEHOLDER.search(sweep.draft.name)
    ):
        remedy = "put {#}, or another placeholder, into it"
        raise Wrong(told("ID would be that of every task", sweep.draft.name, remedy))
    if not values:
        call.err("there is no value; found none behind -- or on stdin; name some")
    found: List[Draft] = []
    for number, value in enumerate(values, 1):
        try:
            found.append(sweep.fill(number, value))
        except Wrong as problem:
            raise Wrong("value %d: %s" % (number, problem)) from None
        found[-1].unit, found[-1].number = "value", number
        # Each of them would be warned of the same.
        found[-1].told_of = sweep.draft.paths if number == 1 else ()
        if number % SLICE == 0:
            yield TURN
    return found


def _split(call: Call) -> Tuple[List[str], List[str]]:
    args = call.args[1:]
    if call.args[0] == "add_tasks_sweep_text":
        text = args.pop(0) if args else ""
        return args, text.split("\n")[: -1 if text.endswith("\n") or not text else None]
    if END not in args:
        raise Wrong(
            "the values are missing; found no --; write -- VALUE... at the end, or "
            "give them on stdin, one a line"
        )
    at = args.index(END)
    return args[:at], args[at + 1 :]
