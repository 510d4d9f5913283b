"""How tasks and nodes are shown: the row, the table, JSON, CSV, conditions in words.

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
    TURN,
    Call,
    Control,
    Verb,
    more_room,
    printable,
    to_bytes,
)
from effects import Acked
from record import UNFINISHED, Record, Run, State

PROGRESS_S = 0.2  # between two redrawings
COMMAND_CHARS = 40  # of a command in the table: longer ones don't widen the column
FIELDS = (
    "id state node attempt exit command added started finished reason conditions "
    "files memory cores storage concurrency priority"
).split()
HEADS = "ID STATE NODE TIME TRY EXIT COMMAND REASON".split()
NODE_HEADS = "ADDRESS NAME ROLE STATE CORES MEMORY DISK RUNNING TAGS".split()


def pour(call: Call, texts: Iterable[str]) -> Verb:
    """Print texts in slices, no further ahead than the client reads."""
    held: List[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if len(held) >= SLICE or size >= PIECE_BYTES:
            call.raw(to_bytes("".join(held)))
            held, size = [], 0
            yield more_room(call)
    if held:
        call.raw(to_bytes("".join(held)))


# --- the queue ---------------------------------------------------------------------


def json_rows(ctl: Control, chosen: List[Record]) -> Iterator[str]:
    """Give the pieces of one JSON list of objects."""
    before = "["
    for record in chosen:
        yield before + json.dumps(row(ctl, record))
        before = ",\n "
    yield "]\n" if chosen else "[]\n"


def csv_rows(ctl: Control, chosen: List[Record]) -> Iterator[str]:
    """Give the lines of a CSV table, its header first."""
    yield ",".join(FIELDS) + "\n"
    for record in chosen:
        yield ",".join(map(_csv_cell, row(ctl, record).values())) + "\n"


def _csv_cell(value: Any) -> str:
    if isinstance(value, list):
        value = ";".join(item.replace(";", "\\;") for item in value)
    elif isinstance(value, bool):
        value = "true" if value else "false"
    cell = "" if value is None else str(value)
    if any(c in cell for c in ',"\r\n'):
        return '"{}"'.format(cell.replace('"', '""'))
    return cell


def table(ctl: Control, call: Call, chosen: List[Record]) -> Verb:
    """Lay out the queue, in two passes: all rows at once would cost too much memory."""
    widths = [len(head) for head in HEADS]
    for count, record in enumerate(chosen, 1):
        cells = _cells(ctl, record)
        cells[-1] = cells[-1][:COMMAND_CHARS]
        widths = [max(pair) for pair in zip(widths, map(len, cells))]
        if count % SLICE == 0:
            yield TURN

    def rows() -> Iterator[str]:
        yield laid_out(HEADS, [*widths, 0], call.width)
        for record in chosen:
            cells = [*_cells(ctl, record), printable(_reason(ctl, record))]
            yield laid_out(cells, [*widths, 0], call.width)

    yield from pour(call, rows())


def _reason(ctl: Control, record: Record) -> str:
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


def row(ctl: Control, record: Record) -> Dict[str, Any]:
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
        _reason(ctl, record),
        [text for text in shown if text],
        [file.name for file in needs.files],
        needs.memory,
        needs.cores,
        needs.storage,
        needs.concurrency,
        needs.priority,
    )
    return dict(zip(FIELDS, values))


def _cells(ctl: Control, record: Record) -> List[str]:
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
    workers = sorted(ctl.node.matcher.workers.values(), key=lambda w: w.name)
    rows = [(r.subject, r.is_met, r.text) for r in ctl.node.why(record, now)]
    here = []
    for text in record.needs.conditions:
        if conditions.is_worker(conditions.unwire(text)):
            names = [w.name for w in workers if text in w.holds]
            some = ", ".join(names[:5]) + (" .." if len(names) > 5 else "")
            here.append((text, bool(names), f"on {some}" if names else "on no node"))
    for subject, is_met, text in here + rows:
        mark = "ok     " if is_met else "not yet"
        words = in_words(ctl, record, f"{subject}: {text}")
        yield f"  {mark}  {printable(words)}"


# --- the progress of a wait -----------------------------------------------------------


class Bar:
    """The progress of a wait: drawn on a terminal only, and only what changed."""

    def __init__(self, call: Call, waited: List[Record]) -> None:
        self.call = call
        self.waited = waited
        self.drawn = float("-inf")
        self.text = ""

    def draw(self, now: float) -> Optional[float]:
        """Draw if it is time to; else give when it will be."""
        if not self.call.has_progress:
            return None
        if now - self.drawn < PROGRESS_S:
            return self.drawn + PROGRESS_S
        if self.call.out:  # Whoever doesn't read gets no more.
            return now + PROGRESS_S
        self.drawn = now
        text = _progress(self.waited)
        if text != self.text:
            self.text = text
            self.call.progress(text)
        return None


def _progress(waited: List[Record]) -> str:
    counts = {state: 0 for state in State}
    for record in waited:
        counts[record.state] += 1
    over = sum(n for state, n in counts.items() if state not in UNFINISHED)
    bar = "#" * (30 * over // max(len(waited), 1))
    return "[%-30s] %d/%d, %d running, %d failed" % (
        bar,
        over,
        len(waited),
        counts[State.RUNNING],
        counts[State.FAILED],
    )


# --- nodes, and laying out ----------------------------------------------------------


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


def laid_out(cells: List[str], widths: List[int], width: int) -> str:
    """Lay out a row of columns; the line is cut at width (0: never)."""
    line = "  ".join(map(str.ljust, cells, widths)).rstrip()
    return (line[: width - 1] + ">" if 0 < width < len(line) else line) + "\n"


def not_durable(acked: Acked) -> List[str]:
    """Word what a deletion that isn't on disk means; nothing if it is."""
    if acked.error:
        return [f"deleted, but not on disk yet; {acked.error}; a restart may undo it"]
    return []
