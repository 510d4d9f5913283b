"""What goes into the core of a comrade and what comes out of it.

Reason for this file beside node.py: the messages and effects are what node.py,
comrade.py, the verbs and the simulator have in common; none of them should have to
import another to speak.

Rules. Values only: NamedTuples without behaviour. A message is something that happened
or is asked for; an effect is something to be done, now, by whoever drives the core.
"""

from typing import (
    Any,
    Dict,
    FrozenSet,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from record import Needs, Record

# --- messages ---------------------------------------------------------------------


class NewTask(NamedTuple):
    """A task to add: checked, its files kept; `name` is the user's own id or ''."""

    command: str
    needs: Needs
    name: str


class Add(NamedTuple):
    """Add tasks, all or nothing. Long lists come in slices: `more` but for the last."""

    ticket: int
    tasks: Sequence[NewTask]
    wall: float
    more: bool = False


class Abandon(NamedTuple):
    """Drop an add whose last slice will never come."""

    ticket: int


class Delete(NamedTuple):
    """Take tasks out of the queue; running ones are stopped."""

    ticket: int
    keys: Sequence[str]


class Sync(NamedTuple):
    """Answer when all that is known now is on disk; or, if so asked, when it hangs."""

    ticket: int
    unless_stuck: bool = False


class Tags(NamedTuple):
    """Give this node tags and take others away."""

    add: Sequence[str]
    remove: Sequence[str]


class Drain(NamedTuple):
    """Let a node (its id; '' is this one) take no new task, or take them again."""

    on: bool
    node: str = ""


class Stop(NamedTuple):
    """Hand back what runs here and end with Stopped."""


class Refresh(NamedTuple):
    """Somebody looks at the nodes: find out now what is free here."""


class Facts(NamedTuple):
    """The answer to Check: conditions that hold, bytes free (memory None: as set)."""

    holds: FrozenSet[str]
    free_memory: Optional[int]
    free_disk: int


class RunStarted(NamedTuple):
    """The sandbox started a run; `at` is wall-clock time."""

    run: str
    at: float


class RunRefused(NamedTuple):
    """The run can't start here: conditions, room or files fail."""

    run: str
    why: str


class RunEnded(NamedTuple):
    """A run is over and all that it started is gone. Outputs are [bytes, digest]."""

    run: str
    exit: int
    cause: str
    at: float
    end: float
    took: float
    out: List[Any]
    err: List[Any]


class Written(NamedTuple):
    """The store has fsynced a batch, or says why not."""

    seq: int
    error: str


class FileHere(NamedTuple):
    """A necessary file is in the store now."""

    digest: str


class LinkUp(NamedTuple):
    """A peer proved that it has the cookie: its node id and its process's writer."""

    peer: str
    writer: str


class GhostUp(NamedTuple):
    """A ghost proved that it has the cookie; `peer` names this link, and no other."""

    peer: str
    writer: str


class Cores(NamedTuple):
    """This node offers so many cores from now on."""

    cores: int


class LinkLost(NamedTuple):
    """A link is gone: stopping | closing (it said so), eof | silent | broken.

    Of a ghost's also relay: it was this side's relay that has ended.
    """

    peer: str
    why: str


class DialRefused(NamedTuple):
    """A peer's machine answers, but nothing listens there any more."""

    peer: str


class Moved(NamedTuple):
    """This machine has another address now."""

    address: str


class Frame(NamedTuple):
    """What came over a link; kinds and fields as in net.CATALOGUE."""

    peer: str
    kind: str
    fields: Dict[str, Any]


class Found(NamedTuple):
    """To a ghost: comrades seem to be at these addresses."""

    addresses: Sequence[str]


class Probed(NamedTuple):
    """To a ghost: whether something listens at an address."""

    address: str
    is_there: bool


class DialEnded(NamedTuple):
    """To a ghost: a dial came to nothing; `why` is the name of a wire.End."""

    address: str
    why: str


Message = Union[
    Cores,
    DialEnded,
    DialRefused,
    Found,
    GhostUp,
    Probed,
    FileHere,
    Frame,
    LinkLost,
    LinkUp,
    Moved,
    Abandon,
    Add,
    Delete,
    Sync,
    Tags,
    Drain,
    Stop,
    Facts,
    Refresh,
    RunStarted,
    RunRefused,
    RunEnded,
    Written,
]

# What peers, tasks and the disk tell, often several at once: a comrade's core may take
# these together (node.take), in order, with one turn of all its decisions behind them.
GATHERED = (Frame, RunEnded, RunRefused, RunStarted, Written)


# --- effects ----------------------------------------------------------------------


class Persist(NamedTuple):
    """Write to disk as one transaction; see store.Batch for the groups.

    One that nobody waits for `may_wait` a little, so that more come together.
    """

    seq: int
    rows: Sequence[Tuple[str, Optional[bytes]]]
    meta: Mapping[str, bytes]
    group: int = 0
    close: int = 0
    abort: int = 0
    may_wait: bool = False


class Acked(NamedTuple):
    """What a ticket asked for is durable, or `error` says why it didn't happen.

    `note` is for the user all the same: that this is the only copy so far.
    """

    ticket: int
    keys: Sequence[str]
    error: str
    note: str = ""


class Check(NamedTuple):
    """Find out which conditions hold here and what is free; answer with Facts."""

    conditions: Sequence[str]


class Start(NamedTuple):
    """Run a task here under this run key, unless conditions or room fail.

    `ahead`, if not 0: only once fewer runs than that go on here, behind another; and
    only if that is soon: else RunRefused follows, with BEHIND.
    """

    run: str
    record: Record
    attempt: int
    ahead: int = 0


BEHIND = "what ran before it took longer than was thought"  # a refusal


class Kill(NamedTuple):
    """Stop a run (TERM, grace, KILL); RunEnded follows with this cause."""

    run: str
    cause: str
    grace_s: float


class Stopped(NamedTuple):
    """All is handed back and on disk: the process may end."""


class Log(NamedTuple):
    """A line for the log."""

    text: str


class Send(NamedTuple):
    """Send a frame to a peer."""

    peer: str
    kind: str
    fields: Dict[str, Any]


class CloseLink(NamedTuple):
    """End a link: the peer is silent, or mad."""

    peer: str
    why: str


class WantFile(NamedTuple):
    """Get a necessary file, from this peer first; answer with FileHere."""

    digest: str
    size: int
    peer: str


class WantOutput(NamedTuple):
    """Get a small output that ended elsewhere, from this peer."""

    digest: str
    size: int
    peer: str


class Dial(NamedTuple):
    """Of a ghost: connect to a comrade; LinkUp or DialEnded follows."""

    address: str


class Probe(NamedTuple):
    """Of a ghost: find out whether something listens there; Probed follows."""

    address: str


class Push(NamedTuple):
    """Of a ghost: send a small output, ahead of the end that names it."""

    peer: str
    digest: str


Effect = Union[
    CloseLink,
    Dial,
    Probe,
    Push,
    Send,
    WantFile,
    WantOutput,
    Persist,
    Acked,
    Check,
    Start,
    Kill,
    Stopped,
    Log,
]


def is_beat(effect: Effect) -> bool:
    """Say whether an effect is a heartbeat."""
    return isinstance(effect, Send) and effect.kind == "HEARTBEAT"


class Identity(NamedTuple):
    """Who this process is: `node_id` lasts, `writer` is new at every start.

    `starts` counts the starts of this node; it orders facts of its processes.
    """

    node_id: str
    writer: str
    name: str
    address: str
    starts: int = 1
