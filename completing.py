"""What Tab offers behind a utility: its options, ids, states, tags, nodes.

Reason for this file beside verbs.py: it reads how the utilities are used and does none
of what they do; a shell asks it while somebody types.

Rules. Changes nothing, complains of nothing: what it doesn't know it has no words for.
What a utility takes is told by its usage (usage.py) alone, so that a new one needs
nothing here: behind --help, its options; `last` where it takes an ID, `all` where ID...

Invariant. What is offered is one plain word for bash: it goes into a command line as it
is, and no tag of anybody may run there. Never more than WORDS_MAX.
"""

import re
from typing import Any, Dict, Generator, Iterator, List, Tuple

from control import TURN, Call, Control, Verb, Waits
from record import UNFINISHED, State
from taskform import ADD_OPTIONS
from usage import of_function

WORDS_MAX = 500  # more than anybody reads
SCANNED = 5000  # records in one turn of the loop: a few ms
PREFIX = "leoronic_"
PLAIN = re.compile(r"[A-Za-z0-9@%_+=:,./-]+\Z")

# Whose ids are of use where; elsewhere those of all.
FITTING: Dict[str, Tuple[State, ...]] = {
    "del_task": tuple(UNFINISHED),
    "wait": tuple(UNFINISHED),
    "why": (State.WAITING,),
    "retry": tuple(state for state in State if state not in UNFINISHED),
    "get_output": tuple(state for state in State if state is not State.WAITING),
}


def complete(ctl: Control, call: Call) -> Verb:
    """Offer words: complete INDEX WORD... as bash's COMP_CWORD and COMP_WORDS."""
    index, words = call.args[1:2], call.args[2:]
    at = int(index[0]) if index and re.fullmatch("[0-9]{1,6}", index[0]) else 0
    if not 0 < at < len(words) or not words[0].startswith(PREFIX):
        return
    usage = of_function(words[0])
    if words[at].startswith("-"):
        found = [*_options(usage), "--help"] if usage else []
    else:
        found = yield from _arguments(ctl, words[0][len(PREFIX) :], usage, words[at])
    fitting = {word for word in found if word.startswith(words[at])}
    for word in sorted(filter(PLAIN.match, fitting))[:WORDS_MAX]:
        call.line(word)


def _options(usage: str) -> List[str]:
    found = re.findall(r"--[a-z][a-z-]*", usage)
    return found + (list(ADD_OPTIONS) if "[OPTIONS]" in usage else [])


def _arguments(
    ctl: Control, name: str, usage: str, start: str
) -> Generator[Waits, Any, List[str]]:
    """Give the words for the arguments that a usage names."""
    named = set(re.findall(r"\b[A-Z]+\b", usage))
    found: List[str] = []
    if "MEMORY" in named:  # the ID of a new task, and all else, is the user's to invent
        return found
    if "STATE" in named:
        found += [state.value for state in State]
    if "NODE" in named:
        for row in ctl.node.members():
            found += [str(row["name"]), str(row["address"])]
    if "TAG" in named:
        found += _tags(ctl, name)
    if "ID" in named:
        found += ["all", "last"] if "ID..." in usage else ["last"]
        found += yield from _ids(ctl, FITTING.get(name, tuple(State)), start)
    return found


def _tags(ctl: Control, name: str) -> Iterator[str]:
    if name == "del_tag":
        yield from ctl.node.tags
        return
    for row in ctl.node.members():
        yield from row["tags"]


def _ids(
    ctl: Control, states: Tuple[State, ...], start: str
) -> Generator[Waits, Any, List[str]]:
    found: List[str] = []
    for count, record in enumerate(list(ctl.node.queue.records.values()), 1):
        if record.shown.startswith(start) and record.state in states:
            found.append(record.shown)
            if len(found) == WORDS_MAX:
                break
        if count % SCANNED == 0:
            yield TURN
    return found
