"""Which tasks a user means: by an id, the beginning of one, `last`, or `all`.

Reason for this file beside verbs.py: whatever is asked about tasks begins with naming
them, and all utilities understand the same names.

Rules. Reads the queue, changes nothing. Whether `all` has a meaning, and which, is the
utility's to say.

How it works. A task's whole id wins over the beginning of others. So does a task over
what it was tried anew as: `hel` means hello, also beside hello.r1. `last` is the
youngest by the queue's own order, which is that of adding, wherever in the cluster.

A task that is tried anew (leoronic_retry) is another task: `ID.r1`, then `ID.r2`. So
trying one anew twice, from two halves of a cluster, is one task, and `all` knows which
failed ones have been tried anew already.
"""

import re
from operator import attrgetter
from typing import Any, Dict, Generator, Iterable, List

from control import TURN, Control, No, Waits, Wrong, told
from record import NAME_CHARS_MAX, UNFINISHED, Record, State

FINDS = 20  # ids looked up in one turn of the loop: a prefix is searched for
NAMED = 3  # of the tasks that an id may mean
SCANNED = 5000  # records in one turn of the loop: a few ms
AGAIN = re.compile(r"(.*)\.r([0-9]{1,4})", re.DOTALL)

Found = Generator[Waits, Any, List[Record]]


def find(ctl: Control, text: str) -> Record:
    """Give the one task that an id or a unique prefix means."""
    if not text or text.startswith("-"):
        raise Wrong(told("ID can't be an id", text, "see leoronic_get_queue"))
    found = ctl.node.queue.find(text)
    if len(found) == 1:
        return found[0]
    if found:
        first = min(found, key=lambda r: len(r.shown))
        if all(record is first or _is_again(record, first) for record in found):
            return first
        some = ", ".join(sorted(r.shown for r in found)[:NAMED])
        some += " .." if len(found) > NAMED else ""
        what = "ID means %d tasks (%s)" % (len(found), some)
        raise No(told(what, text, "give more of it"))
    if ctl.node.queue.is_id_purged(text):
        raise No(told("ID is of a task long complete", text, "it was purged"))
    raise No(told("ID is unknown", text, "see leoronic_get_queue"))


def pick(ctl: Control, text: str) -> Record:
    """Give the one task that an id, a unique prefix, or `last` means."""
    if text == "all":
        raise Wrong(told("ID can't be more than one task here", text, "name one"))
    if text != "last":
        return find(ctl, text)
    records = ctl.node.queue.records.values()
    if not records:
        raise No(told("ID means no task", text, "the queue is empty; add some"))
    return max(records, key=attrgetter("order", "key"))


def pick_all(ctl: Control, texts: Iterable[str], problems: List[str]) -> Found:
    """Give the tasks that are named, each once; what names none goes to `problems`."""
    found: Dict[str, Record] = {}
    for count, text in enumerate(texts, 1):
        try:
            record = pick(ctl, text)
            found[record.key] = record
        except No as unknown:
            problems.append(str(unknown))
        if count % FINDS == 0:
            yield TURN
    return list(found.values())


def unfinished(ctl: Control) -> List[Record]:
    """Give what waits or runs, oldest first."""
    records = ctl.node.queue.records.values()
    return sorted(record for record in records if record.state in UNFINISHED)


def failed(ctl: Control) -> Found:
    """Give what failed and wasn't tried anew, oldest first."""
    found: List[Record] = []
    for count, record in enumerate(list(ctl.node.queue.records.values()), 1):
        if record.state is State.FAILED:
            base, number = _tries(record)
            if _again(base, number + 1) not in ctl.node.queue.names:
                found.append(record)
        if count % SCANNED == 0:
            yield TURN
    return sorted(found)


def name_anew(ctl: Control, record: Record) -> str:
    """Give the id under which a task is tried anew; '': one is made up."""
    base, number = _tries(record)
    queue = ctl.node.queue
    while True:
        number += 1
        name = _again(base, number)
        if name not in queue.names and not queue.is_name_purged(name):
            return name if len(name) <= NAME_CHARS_MAX else ""


def _tries(record: Record) -> "tuple[str, int]":
    found = AGAIN.fullmatch(record.shown)
    return (found.group(1), int(found.group(2))) if found else (record.shown, 0)


def _is_again(record: Record, first: Record) -> bool:
    base, number = _tries(record)
    return number > 0 and base == first.shown


def _again(base: str, number: int) -> str:
    return "%s.r%d" % (base, number)
