"""leoronic_get_output: what a task printed, or what it prints while it runs.

Reason for this file beside verbs.py: an output is in several places in turn (where its
task runs, on the way, kept by its digest), and may be followed through all of them.

Rules. Changes nothing. What a run that goes on has printed is asked for by letters, of
whichever node runs it, this one or a ghost too; what a run that is over printed is
found by its digest (outputs.py).

How it works. `--follow` asks where the task runs for what lies behind an offset, again
each FOLLOW_S once all of that is here. When the run is over, the rest comes from the
record. A run that begins anew is told, and followed from its start.

Invariants. No byte of a run is printed twice or left out. Nobody is asked while nobody
follows. Who doesn't answer is told of within ANSWER_S, who is lost at once. Between a
run's end and word of it lies some time (a large output is moved).
"""

from typing import Any, Dict, Generator, Optional

import choosing
from control import (
    PIECE_BYTES,
    Call,
    Control,
    Fetch,
    No,
    Until,
    Verb,
    Waits,
    more_room,
    only,
)
from letters import GIVE_UP_S, Letter
from record import UNFINISHED, Phase, Record, Run
from taskform import split_flags

FOLLOW_S = 0.5  # until it is asked again, if it had nothing more to give
ANSWER_S = 5.0  # a node that works has sent a piece by then; 26 kbit/s will do
ENDING_S = 5.0  # an output of a run that ends is waited for: it may be large


def get_output(ctl: Control, call: Call) -> Verb:
    """Print what a task printed: [--stderr] [--follow] ID."""
    flags, rest = split_flags(call.args[1:], ("--stderr", "--follow"))
    call.args[1:] = rest
    record = choosing.pick(ctl, only(call, "ID"))
    which = "err" if "--stderr" in flags else "out"
    printing = Printing(ctl, call, record, which)
    yield from printing.follow() if "--follow" in flags else printing.once()


class Printing:
    """How far the output of one task is printed."""

    def __init__(self, ctl: Control, call: Call, record: Record, which: str) -> None:
        self.ctl = ctl
        self.call = call
        self.record = record
        self.which = which
        self.run_key = ""
        self.offset = 0

    def once(self) -> Verb:
        """Print what there is now."""
        deadline, most = self.ctl.acts.clock() + ENDING_S, -1
        while True:
            run = self._run()
            if run is None:
                state = self.record.state.value
                raise No(
                    f"{self.record.shown} has no output; found that it is {state}, "
                    "and has not run; see leoronic_why"
                )
            if run.phase is Phase.ENDED:
                yield from self._rest(run)
                return
            if run.phase is Phase.GRANTED:
                return
            size: Optional[int] = -1
            if run.phase is Phase.STARTED and self._state_of(run) != "lost":
                size = yield from self._ask(run, ANSWER_S)
            if size is None or run.phase is Phase.LOST:
                raise self._lost(run)
            most = size if most < 0 else most  # A task may print without end.
            if 0 <= most <= self.offset:
                return
            if size >= 0:
                yield more_room(self.call)
            elif self._state_of(run) == "lost" or self.ctl.acts.clock() >= deadline:
                raise self._lost(run)
            else:
                yield Until(deadline)

    def follow(self) -> Verb:
        """Print what there is, and what comes, until the task is over."""
        patience = ANSWER_S
        while True:
            run = self._run()
            if run is not None and run.phase is Phase.ENDED:
                yield from self._rest(run)
            if run is not None and run.phase is Phase.STARTED:
                size = yield from self._ask(run, patience)
                if size is None:  # A letter may also be long on a bad line.
                    if patience == ANSWER_S:
                        self.call.err(self._silent(run) + "; going on once it does")
                    patience = min(2 * patience, GIVE_UP_S)
                if size is not None and size > self.offset:
                    yield more_room(self.call)
                else:
                    yield Until(self.ctl.acts.clock() + FOLLOW_S)
            elif self._is_over(run):
                return
            else:
                yield Until(None)

    def _run(self) -> Optional[Run]:
        """Give the run that speaks for the task; another one begins at its start."""
        queue = self.ctl.node.queue
        self.record = queue.records.get(self.record.key, self.record)
        run_key = self.record.telling_run()
        if run_key is None:
            return None
        if run_key != self.run_key:
            if self.offset:
                number = run_key.partition(".")[0]
                self.call.err(f"it runs anew; what follows is of try {number}")
            self.run_key, self.offset = run_key, 0
        return self.record.runs[run_key]

    def _is_over(self, run: Optional[Run]) -> bool:
        is_gone = self.record.key not in self.ctl.node.queue.records
        is_granted = run is not None and run.phase is Phase.GRANTED
        return is_gone or (self.record.state not in UNFINISHED and not is_granted)

    def _ask(self, run: Run, patience: float) -> Generator[Waits, Any, Optional[int]]:
        """Print one more piece of a run that goes on; give the size of all there is.

        -1: it doesn't go on there. None: nobody answers.
        """
        args: Dict[str, Any] = {"run": self.run_key, "which": self.which}
        args["offset"] = self.offset
        to = self.ctl.node.roster.node_of(run.worker)
        said = yield Letter(to, "live", args, patience=patience)
        if said is None:
            return None
        size = said[0].get("size", -1)
        if type(size) is not int or size < 0:
            return -1
        if said[1]:
            self.call.raw(said[1])
            self.offset += len(said[1])
        return size

    def _rest(self, run: Run) -> Verb:
        """Print what isn't printed yet of a run that is over."""
        size, digest = run.detail.get(self.which, (-1, ""))
        if 0 <= size <= self.offset:
            return
        found: Any = None
        if digest:
            found = yield Fetch(size, digest, run.worker)
        if isinstance(found, bytes):
            self.call.raw(found[self.offset :])
        elif found is not None:
            yield from self._send_file(found)
        else:
            raise self._lost(run)
        self.offset = size

    def _lost(self, run: Run) -> No:
        """Word that an output can't be had: who has it, and what to do."""
        shown = self.record.shown
        remedy = "try again, or see leoronic_doctor"
        if self.record.state not in UNFINISHED:
            remedy = f"try again later, or run it anew: leoronic_retry {shown}"
        elif run.phase is Phase.LOST:
            remedy = f"it will run again: see leoronic_why {shown}"
        what = f"the output of {shown} isn't here; found that {self._silent(run)}"
        return No(f"{what}; {remedy}")

    def _silent(self, run: Run) -> str:
        state = self._state_of(run)
        what = "isn't a node any more" if not state else f"is {state}"
        what = "doesn't give it" if state == "ready" else what
        return f"{_node(run)}, where it ran, {what}"

    def _state_of(self, run: Run) -> str:
        return self.ctl.node.roster.seen(run.worker, _node(run))[1]

    def _send_file(self, path: str) -> Verb:
        try:
            with open(path, "rb") as file:
                file.seek(self.offset)
                while True:
                    piece = file.read(PIECE_BYTES)
                    if not piece:
                        break
                    self.call.raw(piece)
                    yield more_room(self.call)
        except OSError as problem:
            raise No(
                f"the output of {self.record.shown} can't be read; found: "
                f"{problem.strerror}; see this node's log"
            ) from None


def _node(run: Run) -> str:
    return str(run.detail.get("node") or "another node")
