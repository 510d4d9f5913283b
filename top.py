"""leoronic_top: one frame of it, so many lines of so many columns.

Reason for this file beside listing.py: a frame has room for some of each thing, and to
share it out is what this is about.

Rules. Keeps nothing between two frames: what a rate is counted from goes to the shell
as a line of text, and comes back with the next call. The shell redraws, keeps time and
keys, and restores the terminal (leoronic_utilities).

How it works. Two lines of totals, then a section each for nodes, for what runs, for
what waits. A section has a blank line, a head, and rows; lines are dealt out one by one
to those that have more to show. What has no place is counted.

Invariants. A frame has exactly the lines asked for and no line reaches the last column,
where some terminals wrap. It is made in slices.
"""

from heapq import nsmallest
from typing import Any, Dict, Generator, List, NamedTuple, Tuple

import terminal
from control import TURN, Call, Control, Verb, Waits, Wrong, at_most, printable
from listing import cells, node_cells, reason
from queuetable import totals
from record import UNFINISHED, Record, State

LINES = 24  # of a frame for no terminal
LINES_LEAST, LINES_MOST = 2, 500
COLUMNS_LEAST, COLUMNS_MOST = 20, 1000
RATE_S = 10.0  # what is told of is so long ago at most
SAMPLES_MAX = 60
SCANNED = 5000  # records in one turn of the loop: a few ms
COMMAND_CHARS = 60
ERASE, ERASE_BELOW = "\033[K", "\033[J"
NODE_COLUMNS = (1, 2, 3, 4, 7, 5)  # of node_cells
NODE_HEADS = "NAME ROLE STATE CORES RUNNING MEMORY".split()
RUN_COLUMNS = (0, 2, 3, 4, 6)  # of cells
RUN_HEADS = "ID NODE TIME TRY COMMAND".split()
WAIT_HEADS = "ID COMMAND REASON".split()


class Section(NamedTuple):
    """Rows under a head: those at hand, out of so many."""

    heads: List[str]
    rows: List[List[str]]
    total: int


def top(ctl: Control, call: Call) -> Verb:
    """Show one frame, as plain text, where no terminal is."""
    at_most(call, 0)
    width = min(max(call.columns, COLUMNS_LEAST), COLUMNS_MOST)
    lines = yield from _frame(ctl, width, LINES, "")
    while lines and not lines[-1]:
        lines.pop()
    for line in lines:
        call.line(line)


def top_frame(ctl: Control, call: Call) -> Verb:
    """Give the samples for the next frame, then a frame: COLUMNS LINES SAMPLES."""
    if len(call.args) != 4 or not all(text.isdecimal() for text in call.args[1:3]):
        raise Wrong("a frame is COLUMNS LINES SAMPLES; found other words; leoronic_top")
    columns = min(max(int(call.args[1][:6]), COLUMNS_LEAST), COLUMNS_MOST)
    lines = min(max(int(call.args[2][:6]), LINES_LEAST), LINES_MOST)
    samples = _samples(ctl, call.args[3])
    found = yield from _frame(ctl, columns, lines, _rates(samples))
    call.line(",".join("%.1f:%d:%d" % sample for sample in samples))
    is_coloured = "c" in call.tty
    for number, line in enumerate(found, 1):
        end = ERASE + (ERASE_BELOW if number == lines else "")
        call.line((_coloured(line) if is_coloured else line) + end)


# --- rates ------------------------------------------------------------------------

Sample = Tuple[float, int, int]  # wall clock, tasks that are over, tasks in all


def _samples(ctl: Control, text: str) -> List[Sample]:
    """Read what the last frames counted, and count once more."""
    now = ctl.acts.wall()
    found: List[Sample] = []
    for piece in text.split(",")[-SAMPLES_MAX:]:
        try:
            at, over, every = piece.split(":")
            sample = (float(at), int(over), int(every))
        except ValueError:
            continue
        if 0 <= now - sample[0] <= RATE_S:
            found.append(sample)
    counts = ctl.node.queue.counts
    over_now = sum(n for state, n in counts.items() if state not in UNFINISHED)
    return [*found, (now, over_now, len(ctl.node.queue.records))]


def _rates(samples: List[Sample]) -> str:
    (began, over, every), (now, over_now, every_now) = samples[0], samples[-1]
    if now <= began:
        return ""
    minutes = (now - began) / 60.0
    finished, added = max(over_now - over, 0), max(every_now - every, 0)
    return "; %.0f finished/min, %.0f added/min" % (finished / minutes, added / minutes)


# --- the frame --------------------------------------------------------------------


def _frame(
    ctl: Control, columns: int, lines: int, rates: str
) -> Generator[Waits, Any, List[str]]:
    """Make the lines of a frame."""
    waiting = yield from _first_waiting(ctl, lines)
    counts = ctl.node.queue.counts
    members = ctl.node.members()
    sections = [_nodes(members), _running(ctl, lines)]
    texts = [
        [r.shown, printable(r.command), printable(reason(ctl, r))] for r in waiting
    ]
    sections.append(Section(WAIT_HEADS, texts, counts[State.WAITING]))
    width = columns - 1
    found = [_title(ctl, members), totals(counts, len(ctl.node.queue.records)) + rates]
    shown = [section for section in sections if section.total]
    room = lines - len(found) - 2 * len(shown)
    for section, share in zip(shown, _shares([s.total for s in shown], room)):
        if share:
            found += ["", *_laid_out(section, share, width)]
    found = [terminal.cut(line, width) for line in found[:lines]]
    return found + [""] * (lines - len(found))


def _title(ctl: Control, members: List[Dict[str, Any]]) -> str:
    here = [m for m in members if m["state"] in ("ready", "draining")]
    free, every = sum(m["cores_free"] for m in here), sum(m["cores"] for m in here)
    name = printable(ctl.node.me.name)
    what = "1 node" if len(here) == 1 else "%d nodes" % len(here)
    return "leoronic on %s: %s, %d of %d cores free; q ends" % (name, what, free, every)


def _nodes(members: List[Dict[str, Any]]) -> Section:
    rows = [node_cells(member) for member in members]
    return Section(NODE_HEADS, [[r[i] for i in NODE_COLUMNS] for r in rows], len(rows))


def _running(ctl: Control, lines: int) -> Section:
    """Give what runs, longest first."""
    living = ctl.node.coordinator.living
    keys = {key for _, key in living.values()}
    records = [ctl.node.queue.records[key] for key in keys]
    running = [record for record in records if record.state is State.RUNNING]
    rows = [cells(ctl, record) for record in nsmallest(lines, running)]
    return Section(RUN_HEADS, [[r[i] for i in RUN_COLUMNS] for r in rows], len(running))


def _first_waiting(ctl: Control, most: int) -> Generator[Waits, Any, List[Record]]:
    """Give the tasks that wait, in the order in which they are looked at."""

    def place(record: Record) -> Tuple[int, Record]:
        return -record.needs.priority, record

    found: List[Record] = []
    every = list(ctl.node.queue.records.values())
    for i in range(0, len(every), SCANNED):
        some = [r for r in every[i : i + SCANNED] if r.state is State.WAITING]
        found = nsmallest(most, found + some, key=place)
        yield TURN
    return [record for record in found if record.state is State.WAITING]


def _shares(needs: List[int], room: int) -> List[int]:
    """Deal lines out, one each in turn, to those that need more."""
    given = [0] * len(needs)
    while room > 0 and given != needs:
        for i, need in enumerate(needs):
            if given[i] < need and room > 0:
                given[i] += 1
                room -= 1
    return given


def _laid_out(section: Section, share: int, width: int) -> List[str]:
    """Give the lines of a section; the last says how much has no place."""
    kept = section.rows[: share if section.total <= share else share - 1]
    more = section.total - len(kept)
    rows = [section.heads, *kept]
    widths = [max(map(terminal.width_of, column)) for column in zip(*rows)]
    command = section.heads.index("COMMAND") if "COMMAND" in section.heads else None
    if command is not None:
        _narrow(rows, widths, command, width)
    widths[-1] = 0
    lines = [terminal.row(row, widths) for row in rows]
    return lines + ([".. and %d more" % more] if more > 0 else [])


def _narrow(rows: List[List[str]], widths: List[int], command: int, width: int) -> None:
    """Let a command leave half of what is left to what stands behind it."""
    if command < len(widths) - 1:
        others = sum(widths[:command]) + len(terminal.GAP) * (len(widths) - 1)
        widths[command] = min(
            widths[command], COMMAND_CHARS, max((width - others) // 2, 8)
        )
        for row in rows:
            row[command] = terminal.cut(row[command], widths[command])


def _coloured(line: str) -> str:
    """Let heads be bold, and what is amiss red."""
    if line.split("  ")[0] in ("NAME", "ID") or line.startswith("leoronic on "):
        return terminal.BOLD + line + terminal.PLAIN
    return line
