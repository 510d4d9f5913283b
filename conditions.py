"""Conditions: what must hold before a task may start, as text and as meaning.

Rules. Everything that knows what a condition looks like lives here, and nothing else.
Pure (D6): imports nothing of ours, does no I/O, reads no clock. Whether a regex is
sound, a file is there or a command is on the PATH is asked of functions passed in.

How it works. A user's text goes through `parse` once, when the task is added; from then
on a condition is a `Condition`, or its one-line form on the wire and on disk:

    "worker:tag gpu; queue:is_first"  --parse-->   [Condition("worker:tag", "gpu"), ...]
    Condition("worker:tag", "gpu")    --wire-->    "worker:tag gpu"    --unwire--> back

What a verb takes and means is one row of GRAMMAR; what makes an argument sound is one
row of ARGUMENTS. Errors, `leoronic_task_format` and `holds` all read these tables.

Invariants.
1. unwire(wire(c)) == c for every condition that `parse` returned.
2. What `parse` refuses for its argument `unwire` refuses too: a peer can't bring in
   what a user can't (D9). Regexes are the exception: their judge isn't here.
3. A verb that this version doesn't know is kept and passed on, and holds nowhere.

It does not decide `queue:` conditions (taskqueue.py counts them), resolve the ids of
`queue:done`, or look at any file.
"""

from typing import Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Tuple

BLANKS = " \t\r\n"  # what may stand around a piece; other white space may be in a name
SHOWN_CHARS = 200  # of what is wrong, in a message
DIGEST_CHARACTERS = 64  # a sha256 in hex, as the store of files names its content

QUEUE = "queue:"
WORKER = "worker:"
MAY_PLACE = "worker:may_place"  # internal: comes from --keep-names, never from a user


class WrongCondition(ValueError):
    """A text that is no condition; str() is the message for the user."""


class Condition(NamedTuple):
    """One condition: its verb with the family in front, and its argument or ''."""

    verb: str
    argument: str


def _nowhere(name: str, digest: str) -> bool:
    return False


class WorkerFacts(NamedTuple):
    """What `holds` may ask about one node; the functions look at the node's disk."""

    name: str
    address: str
    tags: FrozenSet[str]
    has_file: Callable[[str], bool]  # (path in the working directory)
    has_command: Callable[[str], bool]  # (name)
    may_place: Callable[[str, str], bool] = _nowhere  # (name, digest)


def split_list(text: str) -> List[str]:
    """Split at ';', where '\\;' is a literal one; trim blanks, drop empty pieces.

    Every other backslash stays what it is, so that regexes need no second escaping.
    """
    pieces: List[List[str]] = [[]]  # each in parts, with a literal ';' between two
    for text_between in text.split("\\;"):
        part, *others = text_between.split(";")
        pieces[-1].append(part)
        pieces += [[other] for other in others]
    joined = (";".join(parts).strip(BLANKS) for parts in pieces)
    return [piece for piece in joined if piece]


def relative_inside(path: str) -> bool:
    """Tell whether a path names something inside the directory it is relative to.

    Judges the text alone: links on the way are for whoever opens it.
    """
    parts = path.split("/")
    named = any(part not in ("", ".") for part in parts)
    return named and not path.startswith("/") and ".." not in parts and "\0" not in path


def _is_word(text: str) -> bool:
    return text.split() == [text]


def _is_command(text: str) -> bool:
    return bool(text) and "/" not in text and "\0" not in text


def _is_placing(text: str) -> bool:
    digest, _, name = text.partition(" ")
    hexadecimal = all(character in "0123456789abcdef" for character in digest)
    return hexadecimal and len(digest) == DIGEST_CHARACTERS and relative_inside(name)


# The name an argument has in the help -> is it sound, and what to write if it isn't.
ARGUMENTS: Mapping[str, Tuple[Callable[[str], bool], str]] = {
    "REGEX": (bool, "a Python regular expression"),
    "ID": (_is_word, "one id; for more tasks write more conditions, separated by ';'"),
    "TAG": (_is_word, "one tag; for more tags write more conditions, separated by ';'"),
    "PATH": (relative_inside, "a relative path inside the working directory, no '..'"),
    "NAME": (_is_command, "the name of a command, without a folder"),
    "NODE": (_is_word, "a node's name or address, as leoronic_nodes shows it"),
    "DIGEST NAME": (_is_placing, "a sha256 in hex and a relative name"),
}

# verb -> (the name of its argument or '', one line of help)
GRAMMAR: Mapping[str, Tuple[str, str]] = {
    "queue:is_first": ("", "all older tasks are complete"),
    "queue:all_with_cmd_done": (
        "REGEX",
        "all other tasks whose command matches REGEX are complete",
    ),
    "queue:all_with_cmd_ok": (
        "REGEX",
        "all other tasks whose command matches REGEX are complete with exit 0",
    ),
    "queue:done": ("ID", "the task ID is complete"),
    "worker:tag": ("TAG", "the node has the tag TAG"),
    "worker:has_file": ("PATH", "the node has the file PATH in its working directory"),
    "worker:has_command": ("NAME", "the node has the command NAME on its PATH"),
    "worker:is": ("NODE", "it is the node with the name or address NODE"),
}
VERBS: Mapping[str, Tuple[bool, str]] = {
    verb: (argument != "", text) for verb, (argument, text) in GRAMMAR.items()
}
_INTERNAL: Mapping[str, str] = {MAY_PLACE: "DIGEST NAME"}


def usage(verb: str) -> str:
    """Return how a user writes that verb of GRAMMAR: 'worker:tag TAG'."""
    return f"{verb} {GRAMMAR[verb][0]}".rstrip()


def parse(text: str, check_regex: Callable[[str], object]) -> List[Condition]:
    """Read a user's CONDITIONS; duplicates are dropped, the order is kept.

    check_regex gets each REGEX and raises, anything, if it isn't one: `re.compile` will
    do. Raises WrongCondition for the first piece that is wrong.
    """
    found: Dict[Condition, None] = {}
    for piece in split_list(text):
        verb, argument = [*piece.split(None, 1), "", ""][:2]
        if verb not in GRAMMAR:
            known = ", ".join(usage(verb) for verb in GRAMMAR)
            raise _wrong("unknown condition", piece, f"write one of {known}")
        condition = Condition(verb, argument)
        _check(condition, GRAMMAR[verb][0])
        if GRAMMAR[verb][0] == "REGEX":
            _check_regex(condition, check_regex)
        found[condition] = None
    return list(found)


def _check(condition: Condition, takes: str) -> None:
    """Raise WrongCondition unless the argument is what the verb takes."""
    verb, argument = condition
    if not takes:
        if argument:
            raise _wrong(f"{verb} takes no argument", wire(condition), f"write {verb}")
        return
    if not argument:
        raise _wrong(f"{verb} needs an argument", verb, f"write {verb} {takes}")
    is_sound, expected = ARGUMENTS[takes]
    if not is_sound(argument):
        raise _wrong(f"wrong {takes}", wire(condition), f"{takes} must be {expected}")


def _check_regex(condition: Condition, check: Callable[[str], object]) -> None:
    try:
        check(condition.argument)
    # Any exception is a verdict: re.error is no ValueError, deep nesting is a
    # RecursionError, a{99999999999} an OverflowError.
    except Exception as problem:
        reason = f"bad regular expression ({problem})"
        expected = f"REGEX must be {ARGUMENTS['REGEX'][1]}"
        raise _wrong(reason, wire(condition), expected) from problem


def _wrong(what: str, found: str, remedy: str) -> WrongCondition:
    found = found if len(found) <= SHOWN_CHARS else found[:SHOWN_CHARS] + ".."
    shown = found if found.isprintable() else ascii(found)
    return WrongCondition(f"{what} in CONDITIONS; found {shown}; {remedy}")


def wire(condition: Condition) -> str:
    """Return the form that records hold: the verb, and after one blank its argument."""
    return (
        f"{condition.verb} {condition.argument}"
        if condition.argument
        else condition.verb
    )


def unwire(text: object) -> Condition:
    """Read what `wire` wrote, here or at a peer; WrongCondition if it can't have."""
    if not isinstance(text, str) or not text.startswith((QUEUE, WORKER)):
        raise _wrong("no condition", str(text), "the record is damaged")
    verb, _, argument = text.partition(" ")
    condition = Condition(verb, argument)
    if verb in GRAMMAR:
        _check(condition, GRAMMAR[verb][0])
    elif verb in _INTERNAL:
        _check(condition, _INTERNAL[verb])
    return condition


def is_queue(condition: Condition) -> bool:
    """Tell whether the queue decides it."""
    return condition.verb.startswith(QUEUE)


def is_worker(condition: Condition) -> bool:
    """Tell whether each node decides it for itself."""
    return condition.verb.startswith(WORKER)


def may_place(name: str, digest: str) -> Condition:
    """Return the condition that no other content already has that name on the node."""
    return Condition(MAY_PLACE, f"{digest} {name}")


def holds(condition: Condition, worker: WorkerFacts) -> bool:
    """Tell whether a `worker:` condition holds on that node.

    A verb unknown to this version doesn't: a newer node may run the task.
    """
    if not is_worker(condition):
        raise ValueError(f"{wire(condition)} is not for a worker to decide")
    meaning = _MEANINGS.get(condition.verb)
    return meaning is not None and meaning(condition.argument, worker)


def _is_node(argument: str, worker: WorkerFacts) -> bool:
    # Nodes that share a name are shown as name@address, so that is an answer as well.
    names = (worker.name, worker.address, f"{worker.name}@{worker.address}")
    return argument.lower() in (name.lower() for name in names)


def _may_place(argument: str, worker: WorkerFacts) -> bool:
    digest, _, name = argument.partition(" ")
    return worker.may_place(name, digest)


_MEANINGS: Mapping[str, Callable[[str, WorkerFacts], bool]] = {
    "worker:tag": lambda argument, worker: argument in worker.tags,
    "worker:has_file": lambda argument, worker: worker.has_file(argument),
    "worker:has_command": lambda argument, worker: worker.has_command(argument),
    "worker:is": _is_node,
    MAY_PLACE: _may_place,
}
