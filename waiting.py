"""leoronic_wait: until tasks are finished, and how far they are meanwhile.

Reason for this file beside verbs.py: a wait may last for days, and what is drawn during
it is most of what there is to say about it.

Rules. Changes nothing. Progress goes to stderr: one line drawn over itself where that
is a terminal; else a line now and then, and only if something has changed.

How it works. The wait is resumed when the queue changes; what is finished is looked at
no more. A draw counts what is left, at most each PROGRESS_S, more rarely if it is many.

Invariants. The line fits into the terminal, and is gone at the end. Whoever doesn't
read gets no more of it.
"""

from typing import List, Optional, Tuple

import choosing
import settings
import terminal
from control import Ask, Call, Control, No, Until, Verb
from effects import Sync
from record import UNFINISHED, Record, State
from taskform import duration, split_options

PROGRESS_S = 0.2  # between two redrawings
MANY = 5000  # tasks: to count so many takes some 2 ms
MANY_S = 1.0  # between two redrawings then
LINES_S = 5.0  # between two lines where no terminal is
BAR_CHARS = 20  # less where the terminal is narrow
MINUTE_S = 60.0


def wait(ctl: Control, call: Call) -> Verb:
    """Wait: [--timeout T] [ID...]; no ID, or `all`: for all unfinished ones."""
    options, rest = split_options(call.args[1:], {"--timeout": duration})
    clock = ctl.acts.clock
    deadline = clock() + options["--timeout"] if options else None
    if not rest or "all" in rest:
        waited = choosing.unfinished(ctl)
    else:
        problems: List[str] = []
        waited = yield from choosing.pick_all(ctl, rest, problems)
        for problem in problems[:1]:
            raise No(problem)
    left, progress = list(waited), Progress(call, waited, clock())
    while True:
        while left and not _is_unfinished(ctl, left[-1]):
            left.pop()
        now = clock()
        if not left or (deadline is not None and now >= deadline):
            break
        times = [t for t in (deadline, progress.draw(now)) if t is not None]
        yield Until(min(times, default=None))
    call.progress("")
    if not left:
        yield from _report(ctl, call, waited)
        return
    many = sum(1 for record in left if _is_unfinished(ctl, record))
    call.err(
        "time is up; found %d of %d not finished; see leoronic_get_queue"
        % (many, len(waited))
    )
    call.end(124)


def _is_unfinished(ctl: Control, record: Record) -> bool:
    """Say whether to wait on; an add that failed was forgotten, not finished."""
    return record.state in UNFINISHED and record.key in ctl.node.queue.records


def _report(ctl: Control, call: Call, waited: List[Record]) -> Verb:
    acked = yield Ask(lambda ticket: Sync(ticket))
    if acked.error:
        call.err(f"finished, but not on disk yet; {acked.error}; a restart may undo it")
    bad = [r for r in waited if r.state not in UNFINISHED and r.state is not State.DONE]
    if bad:
        some = ", ".join(f"{r.shown} ({r.state.value})" for r in bad[:3])
        raise No(
            "%d of %d did not succeed; found %s; see leoronic_get_queue"
            % (len(bad), len(waited), some + (" .." if len(bad) > 3 else ""))
        )


class Progress:
    """How far a wait is: drawn when it is time to, and only if it changed."""

    def __init__(self, call: Call, waited: List[Record], now: float) -> None:
        self.call = call
        self.began = now
        self.many = len(waited)
        self.left = waited  # those that weren't finished when last counted
        self.failed = 0
        self.first: Optional[int] = None  # finished at the first count
        self.pause, self.due = LINES_S, now + LINES_S
        _, self.text = self._count()
        if call.has_progress:
            self.pause = MANY_S if self.many > MANY else PROGRESS_S
            self.text, self.due = "", now

    def draw(self, now: float) -> Optional[float]:
        """Draw if it is time to; else give when it will be."""
        if now < self.due:
            return self.due
        self.due = now + self.pause
        if self.call.out:  # Whoever doesn't read gets no more.
            return self.due
        over, text = self._count()
        if text != self.text:
            self.text = text
            if self.call.has_progress:
                self.call.progress(self._line(over, text + self._speed(over, now)))
            else:
                self.call.err(text)
        return None

    def _count(self) -> Tuple[int, str]:
        """Count those that are over; say how all are."""
        over = [record for record in self.left if record.state not in UNFINISHED]
        self.failed += sum(1 for record in over if record.state is State.FAILED)
        self.left = [record for record in self.left if record.state in UNFINISHED]
        running = sum(1 for record in self.left if record.state is State.RUNNING)
        finished = self.many - len(self.left)
        self.first = finished if self.first is None else self.first
        form = "%d/%d finished, %d running, %d failed"
        return finished, form % (finished, self.many, running, self.failed)

    def _speed(self, over: int, now: float) -> str:
        """Word how many finish in a second or minute, and what the rest will take."""
        done, took = over - (self.first or 0), now - self.began
        if done <= 0 or took <= 0:
            return ""
        rate = done / took
        shown = "%.1f/s" % rate if rate >= 1 else "%.1f/min" % (rate * MINUTE_S)
        left = settings.format_duration((self.many - over) / rate)
        return f", {shown}, {left} left"

    def _line(self, over: int, text: str) -> str:
        """Put a bar in front, cut it all to the terminal, colour what is bad."""
        width = self.call.columns - 1  # In the last column some terminals wrap.
        size = min(BAR_CHARS, width - len(text) - len("[] "))
        if size > 0:
            bar = "#" * (size * over // max(self.many, 1))
            text = "[%s] %s" % (bar.ljust(size, "."), text)
        line = terminal.cut(text, width)
        failed = "%d failed" % self.failed
        if self.failed and self.call.has_colours("2"):
            line = line.replace(failed, terminal.RED + failed + terminal.PLAIN)
        return line
