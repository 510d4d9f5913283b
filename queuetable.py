"""The queue as leoronic_get_queue shows it: which tasks, and as a table for eyes.

Reason for this file beside listing.py: that is what is told of one task, in any form;
here is how many are laid out, for a program and for somebody at a terminal.

Rules. Changes nothing. Piped, each column is there and nothing is cut. On a terminal
columns in which nothing stands are left out, lines end at its width, what failed or
runs is coloured (unless NO_COLOR), and the totals stand below.

How it works. Two passes: the first for the widths, the second to print. All rows at
once would cost too much memory, so each is made twice; both passes go in slices.
"""

from typing import Any, Dict, Generator, Iterator, List, NamedTuple

import terminal
from control import SLICE, TURN, Call, Control, Verb, Waits, Wrong, printable, told
from listing import Reasons, cells, csv_rows, json_rows, pour, reason
from record import Record, State
from taskform import split_flags, take_option, whole
from workers import tasks

HEADS = "ID STATE NODE TIME TRY EXIT COMMAND REASON".split()
COMMAND = HEADS.index("COMMAND")
COMMAND_CHARS = 40  # of a command, piped: longer ones don't widen the column
COMMAND_LEAST = 12  # of it, beside a REASON, on a narrow terminal
SCANNED = 5000  # records in one turn of the loop: a few ms
LAST_MOST = 10**9
COLOURS = {State.FAILED: terminal.RED, State.RUNNING: terminal.GREEN}


class Wanted(NamedTuple):
    """Which tasks, and in which form: '', --json or --csv."""

    form: str
    states: List[State]
    last: int  # so many of them at most


def get_queue(ctl: Control, call: Call) -> Verb:
    """Show the queue: [--json|--csv] [--last N] [STATE]."""
    wanted = _wanted(call.args[1:])
    chosen = yield from _chosen(ctl, wanted)
    if wanted.form == "--json":
        yield from pour(call, json_rows(ctl, chosen))
    elif wanted.form == "--csv":
        yield from pour(call, csv_rows(ctl, chosen))
    else:
        yield from _table(ctl, call, chosen)


def _wanted(args: List[str]) -> Wanted:
    last, rest = take_option(args, "--last", lambda n, t: whole(n, t, 0, LAST_MOST))
    flags, rest = split_flags(rest, ("--json", "--csv", "--last"))
    if len(set(flags)) > 1:
        raise Wrong(told("only one form is taken", " ".join(flags), "choose one"))
    known = ", ".join(state.value for state in State)
    if len(rest) > 1:
        raise Wrong(told("only one STATE is taken", " ".join(rest), f"one of {known}"))
    states = [state for state in State if rest in ([], [state.value])]
    if not states:
        raise Wrong(told("STATE is unknown", rest[0], f"write one of {known}"))
    return Wanted("".join(flags[:1]), states, LAST_MOST if last is None else last)


def _chosen(ctl: Control, wanted: Wanted) -> Generator[Waits, Any, List[Record]]:
    """Give the tasks that are to be shown, oldest first."""
    records = ctl.node.queue.in_order()
    yield TURN
    chosen: List[Record] = []
    for count, record in enumerate(reversed(records), 1):
        if len(chosen) == wanted.last:
            break
        if record.state in wanted.states:
            chosen.append(record)
        if count % SCANNED == 0:
            yield TURN
    chosen.reverse()
    return chosen


def _table(ctl: Control, call: Call, chosen: List[Record]) -> Verb:
    is_seen = bool(call.width)
    widths = [0 if is_seen else len(head) for head in HEADS]
    counts: Dict[State, int] = {state: 0 for state in State}
    for count, record in enumerate(chosen, 1):
        counts[record.state] += 1
        found = cells(ctl, record)
        if not is_seen:
            found[COMMAND] = found[COMMAND][:COMMAND_CHARS]
        # What waits has a reason; to find it may be dear, and it has no width.
        found.append("?" if record.state is State.WAITING else reason(ctl, record))
        for i, cell in enumerate(found):
            if cell not in ("", "-"):
                widths[i] = max(widths[i], terminal.width_of(cell), len(HEADS[i]))
        if count % SLICE == 0:
            yield TURN
    columns = [i for i, width in enumerate(widths) if width]
    if is_seen:
        _narrow(widths, columns, call.width)
    if chosen or not is_seen:
        yield from pour(call, _lines(ctl, call, chosen, (columns, widths)))
    if is_seen:
        text = totals(counts, len(ctl.node.queue.records))
        call.line(terminal.cut(text, call.width))


def _narrow(widths: List[int], columns: List[int], width: int) -> None:
    """Let the command leave half of the room to the reason."""
    if columns[-1:] == [len(HEADS) - 1]:
        others = sum(widths[i] + len(terminal.GAP) for i in columns[:-1])
        room = width - others + widths[COMMAND]
        widths[COMMAND] = min(widths[COMMAND], max(room // 2, COMMAND_LEAST))


def _lines(
    ctl: Control, call: Call, chosen: List[Record], shape: "tuple[List[int], List[int]]"
) -> Iterator[str]:
    columns, widths = shape
    kept = [widths[i] for i in columns[:-1]] + [0]
    is_cut = call.width > 0 and COMMAND in columns[:-1]
    yield terminal.row([HEADS[i] for i in columns], kept, call.width) + "\n"
    many = Reasons(ctl)
    for record in chosen:
        found = [*cells(ctl, record), printable(many.of(record))]
        if is_cut:
            found[COMMAND] = terminal.cut(found[COMMAND], widths[COMMAND])
        line = terminal.row([found[i] for i in columns], kept, call.width)
        colour = COLOURS.get(record.state) if call.has_colours("1") else None
        yield (colour + line + terminal.PLAIN if colour else line) + "\n"


def totals(counts: Dict[State, int], every: int) -> str:
    """Count tasks by their states: those shown, of all."""
    shown = sum(counts.values())
    some = "%d of %s" % (shown, tasks(every)) if shown != every else tasks(every)
    parts = ["%d %s" % (n, state.value) for state, n in counts.items() if n]
    return some + (": " + ", ".join(parts) if parts else "")
