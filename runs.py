"""A run: what the sandbox is asked for, its script, what it leaves, what is told of it.

Reason for this file beside sandbox.py: here is what one run is; there is when things
happen to it.
"""

from typing import Dict, NamedTuple, Optional, Set, Tuple, Union

from excess import Excess
from places import raw, renames, unique_name
from shells import Keeper
from slots import Slot
from taskscript import Scripts, cause_of

SMALL_OUTPUT_BYTES = 64 * 1024  # handed over in memory; more stays in a file
COMMAND_BYTES_MAX = 128 * 1024 - 1  # Linux: MAX_ARG_STRLEN, with the NUL
LATE = "what runs before it takes too long"  # why one is refused that is ahead
PRESS_FIRST_S, PRESS_LAST_S = 0.01, 0.05  # between two looks at what is being ended


class Job(NamedTuple):
    """A run to start. `files`: (name as the user gave it, digest, size, mode)."""

    run: str
    command: str
    env: Dict[str, str]
    files: Tuple[Tuple[str, str, int, int], ...] = ()
    keep_names: bool = False
    timeout: Optional[float] = None


class Output(NamedTuple):
    """`data` if it is small, else `path`: a file that the receiver moves away."""

    size: int
    data: Optional[bytes]
    path: str


class Started(NamedTuple):
    run: str
    at: float  # wall clock


class Refused(NamedTuple):
    """It never started, and nothing of it is left."""

    run: str
    why: str


class Ended(NamedTuple):
    """`exit` is 0..255, `began` and `ended` are wall clock, `took` is seconds."""

    run: str
    exit: int
    cause: str  # '', or 'signal KILL', 'time-out after 90s', what `kill` was given
    began: float
    ended: float
    took: float
    out: Output
    err: Output


Event = Union[Started, Refused, Ended]
NO_OUTPUT = Output(0, b"", "")


class Run:
    """One job on its way."""

    def __init__(self, job: Job, script: bytes, is_plain: bool) -> None:
        self.job = job
        self.script, self.is_plain = script, is_plain
        self.state = "PLACING"
        self.keeper: Optional[Keeper] = None
        self.slot: Optional[Slot] = None  # of its keeper
        self.behind: Optional[Run] = None  # what its keeper goes on with
        self.late = ""  # what it waits for, in words
        self.cause = ""  # why it was told to stop, or how it died
        self.exit: Optional[int] = None
        self.due: Optional[float] = None  # when `tick` must look at it
        self.kill_at = 0.0
        self.pause = PRESS_FIRST_S
        self.asked: Set[int] = set()  # processes that got their TERM
        self.foreign: Set[int] = set()  # another user's, which we may not kill
        self.began = self.ended = 0.0  # wall clock
        self.began_clock = self.took = 0.0

    def may_be_followed(self) -> bool:
        """Whether its keeper can be given another behind it."""
        is_fit = self.state == "RUNNING" and self.behind is None
        return is_fit and self.keeper is not None and self.keeper.takes_ahead()


def script_of(job: Job, scripts: Scripts) -> Tuple[bytes, bool]:
    """What a keeper must do for the job, and whether it is a plain script.

    ValueError tells why it can't be done.
    """
    names = [file[0] for file in job.files]
    command = job.command
    if names and not job.keep_names:
        command, _ = renames(
            command, names, lambda i: unique_name(job.run, i, names[i])
        )
    size = len(raw(command))
    if size > COMMAND_BYTES_MAX:
        raise ValueError(
            f"the command has {size} bytes; the system passes {COMMAND_BYTES_MAX}"
            " at most; put it into a file and run that"
        )
    environ = {**job.env, "LEORONIC_RUN": job.run}
    script, is_plain = scripts.make(raw(command), environ)
    if b"\0" in script:
        raise ValueError("a NUL byte is in the command; no program can be given one")
    return script, is_plain


def _take(slot: Slot, name: str) -> Output:
    size, data, path = slot.take_output(name, SMALL_OUTPUT_BYTES)
    return Output(size, None if path else data, path)


def take_all(
    keeper: Keeper, slot: Slot, status: int, excess: Excess
) -> Tuple[Output, Output, str]:
    """Take what a run has left in its keeper: out, err, and of what it died."""
    excess.cut_long_ones(slot.output_paths())
    was_signalled = status > 128 and keeper.was_signalled()
    cause = cause_of(status, was_signalled)
    return _take(slot, "out"), _take(slot, "err"), cause
