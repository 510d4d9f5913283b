"""How a task or a node is shown: its row, as JSON, as CSV, conditions in words.

Reason for this file beside verbs.py: what users read of the queue is one concern, what
they may ask and how it is answered another.

Rules. Reads the node and changes nothing. Whatever users wrote goes to a terminal only
through `printable`; --json and --csv give it as it is.

Invariants. Tables, --json and --csv tell the same row (`row`). A long listing is made
in slices, no further ahead than the client reads, and never as a whole.
"""

import json
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import conditions
import settings
from control import (
    PIECE_BYTES,
    SLICE,
    Call,
    Control,
    Verb,
    more_room,
    printable,
    to_bytes,
)
from effects import Acked
from record import UNFINISHED, Record, Run, State

FIELDS = (
    "id state node attempt exit command added started finished reason conditions "
    "files memory cores storage concurrency priority"
).split()
NODE_HEADS = "ADDRESS NAME ROLE STATE CORES MEMORY DISK RUNNING TAGS".split()


def pour(call: Call, texts: Iterable[str]) -> Verb:
    """Print texts in slices, no further ahead than the client reads.

    Each piece costs the shell a fork, so one is of many slices.
    """
    held: List[str] = []
    size = 0
    for count, text in enumerate(texts, 1):
        held.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            call.raw(to_bytes("".join(held)))
            held, size = [], 0
        if count % SLICE == 0 or not held:
            yield more_room(call)
    if held:
        call.raw(to_bytes("".join(held)))


# --- the queue ---------------------------------------------------------------------


class Reasons:
    """The reasons of many tasks: for those that are alike it is found once a slice."""

    def __init__(self, ctl: Control) -> None:
        self.ctl = ctl
        self._known: Dict[Any, str] = {}
        self._left = SLICE

    def of(self, record: Record) -> str:
        """Give the reason of a task."""
        kind = None
        if record.state is State.WAITING:
            kind = self.ctl.node.alike(record)
        self._left -= 1
        if self._left == 0:
            self._known, self._left = {}, SLICE
        if kind is None:
            return reason(self.ctl, record)
        if kind not in self._known:
            self._known[kind] = reason(self.ctl, record)
        return self._known[kind]


def json_rows(ctl: Control, chosen: List[Record]) -> Iterator[str]:
    """Give the pieces of one JSON list of objects."""
    before, many = "[", Reasons(ctl)
    for record in chosen:
        yield before + json.dumps(row(ctl, record, many))
        before = ",\n "
    yield "]\n" if chosen else "[]\n"


def csv_rows(ctl: Control, chosen: List[Record]) -> Iterator[str]:
    """Give the lines of a CSV table, its header first."""
    yield ",".join(FIELDS) + "\n"
    many = Reasons(ctl)
    for record in chosen:
        yield ",".join(map(_csv_cell, row(ctl, record, many).values())) + "\n"


def _csv_cell(value: Any) -> str:
    if isinstance(value, list):
        value = ";".join(item.replace(";", "\\;") for item in value)
    elif isinstance(value, bool):
        value = "true" if value else "false"
    cell = "" if value is None else str(value)
    if any(c in cell for c in ',"\r\n'):
        return '"{}"'.format(cell.replace('"', '""'))
    return cell


def reason(ctl: Control, record: Record) -> str:
    """Say why a task waits, or the cause of its end, in the user's words."""
    if record.state is State.DONE:
        return ""
    return in_words(ctl, record, ctl.node.reason(record, ctl.acts.clock()))


def in_words(ctl: Control, record: Record, text: str) -> str:
    """Replace conditions in their inner form by what users write."""
    for wired in record.needs.conditions:
        if wired in text:
            shown = _shown_condition(ctl, wired)
            name = wired.split(" ", 2)[-1]
            what = f"{name} is free or has the same content (--keep-names)"
            text = text.replace(wired, shown or what)
    return text


def _told_by(record: Record) -> Tuple[int, Optional[Run]]:
    """Give the attempts so far, and the run that speaks for the state if one does."""
    key = record.telling_run()
    if key is None:
        return 0, None
    run = None if record.state is State.WAITING else record.runs[key]
    return int(key.partition(".")[0]), run


def row(ctl: Control, record: Record, many: Reasons) -> Dict[str, Any]:
    """Give a task as `--json` shows it."""
    needs = record.needs
    attempt, run = _told_by(record)
    detail = run.detail if run is not None else {}
    ended = {} if record.state in UNFINISHED else detail
    shown = [_shown_condition(ctl, text) for text in needs.conditions]
    values = (
        record.shown,
        record.state.value,
        detail.get("node"),
        attempt,
        ended.get("exit"),
        record.command,
        record.added,
        detail.get("at"),
        ended.get("end"),
        many.of(record),
        [text for text in shown if text],
        [file.name for file in needs.files],
        needs.memory,
        needs.cores,
        needs.storage,
        needs.concurrency,
        needs.priority,
    )
    return dict(zip(FIELDS, values))


def cells(ctl: Control, record: Record) -> List[str]:
    """Give a task as the table shows it, but for REASON."""
    attempt, run = _told_by(record)
    detail = run.detail if run is not None else {}
    took = None if record.state in UNFINISHED else detail.get("took")
    if record.state is State.RUNNING and "at" in detail:
        took = max(ctl.acts.wall() - detail["at"], 0)
    is_over = record.state not in UNFINISHED
    return [
        record.shown,
        record.state.value,
        printable(detail.get("node") or "-"),
        "-" if took is None else settings.format_duration(took),
        str(attempt or "-"),
        str(detail.get("exit", "-")) if is_over else "-",
        printable(record.command),
    ]


def _shown_condition(ctl: Control, text: str) -> str:
    condition = conditions.unwire(text)
    if condition.verb == conditions.MAY_PLACE:
        return ""
    record = ctl.node.queue.records.get(condition.argument)
    if condition.verb == "queue:done" and record is not None:
        return "queue:done " + record.shown
    return text


def why_lines(ctl: Control, record: Record, now: float) -> Iterator[str]:
    """Say what a waiting task waits for: each condition, each node."""
    for row in ctl.node.why(record, now):
        mark = "ok     " if row.is_met else "not yet"
        words = in_words(ctl, record, f"{row.subject}: {row.text}")
        yield f"  {mark}  {printable(words)}"


# --- nodes ------------------------------------------------------------------------


def node_cells(member: Dict[str, Any]) -> List[str]:
    """Give a node as the table shows it."""
    role = member["role"]
    if member["clairvoyant"]:
        role += " of " + member["clairvoyant"]
    cells = [
        member["address"],
        member["name"],
        role,
        member["state"],
        "%d/%d" % (member["cores_free"], member["cores"]),
        settings.format_size(member["memory_free"]),
        settings.format_size(member["disk_free"]),
        str(member["running"]),
        " ".join(member["tags"]) or "-",
    ]
    return [printable(cell) for cell in cells]


def not_durable(acked: Acked) -> List[str]:
    """Word what a deletion that isn't on disk means; nothing if it is."""
    if acked.error:
        return [f"deleted, but not on disk yet; {acked.error}; a restart may undo it"]
    return []
