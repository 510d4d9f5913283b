"""The control port: how a utility's call travels, and how its verb is carried on.

Rules. Owns no socket: comrade.py feeds bytes into a `Call` and sends what gathers in
`Call.out`. What the verbs do is in verbs.py; this file knows none of them.

How it works. A request is `token NUL argc NUL cwd NUL columns NUL tty NUL` and then
argc arguments, each NUL-terminated; tty is the digits of 0, 1, 2 that are terminals,
and c if those show colours.
The answer is a sequence of
    E text \\n      a line for stderr
    L text \\n      a line for stdout (no fork needed in the shell)
    P text \\n      progress, to be redrawn on stderr; an empty one clears it
    O n \\n bytes   n raw bytes for stdout (at the cost of a fork)
    X code \\n      the end. An answer without it was cut short: exit 3
A verb is a generator that yields what it waits for (Ask, Keep, Fetch, Until, Do,
Letter, TURN, DRAINED) and is resumed with the answer, so that each reads from top to
bottom and none holds up the loop: long work yields TURN.

A client may go away at any moment. What its verb only prepared ends there (its
generator is closed: a list of tasks that is half handed over is abandoned); what was
asked of the node goes on.

Invariants. A client that stops reading costs a bounded buffer and nobody's time. A
request without the token is dropped before it is parsed. No traceback reaches a user:
a verb that breaks loses its connection without an X, which means "done or not, who
knows", and the log has the traceback.
"""

import os
import re
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Generator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

try:  # hmac.compare_digest without OpenSSL's 3.5 MiB
    from _operator import _compare_digest as compare_digest
except ImportError:  # pragma: no cover - other Python implementations
    from hmac import compare_digest  # type: ignore[no-redef]

from effects import Message
from letters import Letter
from process import traced
from settings import Row
from usage import USAGES, help_lines

if TYPE_CHECKING:  # A ghost has another core, and no memory for a comrade's.
    from node import Node

REQUEST_BYTES_MAX = 256 << 20  # a list of a million long lines
HEAD_FIELDS = 5  # token, argc, cwd, columns, tty
HEAD_BYTES_MAX = 65536  # of those: a path has 4096 at most
ARGS_MAX = 1 << 20  # `leoronic_del_task` of every task there is
COLUMNS = 80  # of a terminal that doesn't say
OUT_BYTES_MAX = 1 << 20  # then the verb waits for the client to read
OUT_BYTES_LOW = OUT_BYTES_MAX // 2  # until this little is left
NO_COMRADE = 3  # the exit code, as leoronic_utilities'
NO_COMRADE_TEXT = (
    "no comrade is reachable from here; found that this ghost is looking for one; "
    "start one with: bash leoronic"
)
SLICE = 200  # tasks handled in one turn of the loop (a few ms)
PIECE_BYTES = 65536  # of a large output
# Up to some hundred bytes a shell reads one by one sooner than it forks; only what any
# bash prints as it is, in whole lines.
_SHORT_TEXT = re.compile(rb"(?=.{1,600}\Z)(?:[\t -~]*\n)+", re.DOTALL)
QUOTED_CHARS = 100  # of what a user wrote, in a message
NUMERALS = frozenset("0123456789")


class Wrong(Exception):
    """Wrong arguments (exit 2); the text is for the user."""


class No(Exception):
    """The answer is no (exit 1); the text is for the user."""


# --- words ------------------------------------------------------------------------


def printable(text: str) -> str:
    """Show a text on one line, without what would disturb a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # a byte that is no UTF-8
        return "\\x%02x" % (ord(c) - 0xDC00)
    return c.encode("unicode_escape").decode("ascii")


def quoted(text: str) -> str:
    """Show what a user wrote, within a message."""
    shown = printable(text[: QUOTED_CHARS + 1])
    if len(shown) > QUOTED_CHARS:
        return shown[:QUOTED_CHARS] + ".."
    return shown if shown and shown == shown.strip() else f'"{shown}"'


def told(what: str, found: str, remedy: str) -> str:
    """Word a problem: what is wrong; what was found; what to do."""
    return f"{what}; found {quoted(found)}; {remedy}"


def to_bytes(text: str) -> bytes:
    """Give the bytes that a text was made of."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # A lone surrogate that some peer put into JSON.
        return text.encode("utf-8", "backslashreplace")


# --- what a verb may wait for -------------------------------------------------------


class Ask(NamedTuple):
    """Send the node a message made with a ticket; resumed with Acked."""

    message: Callable[[int], Message]
    ticket: int = 0  # one that is under way already; 0: a new one


class Keep(NamedTuple):
    """Take files into the store; resumed with a list of File, or raises OSError."""

    paths: Sequence[str]


class Fetch(NamedTuple):
    """Get an output; resumed with bytes, a path, or None if it is gone."""

    size: int
    digest: str
    worker: str  # the writer that ran the task


class Until(NamedTuple):
    """Resumed when the queue has changed or at a time (None: whenever it changes)."""

    deadline: Optional[float]


class Pause(NamedTuple):
    """Resumed at the next turn of the loop, or once the client has read its answer."""

    is_for_client: bool


class Do(NamedTuple):
    """Do what may take long in a thread; resumed with its result, or what it raised."""

    job: Callable[[], Any]


TURN = Pause(False)
DRAINED = Pause(True)
Waits = Union[Ask, Keep, Fetch, Until, Pause, Do, Letter]
Verb = Generator[Waits, Any, None]


class Acts(NamedTuple):
    """What comrade.py does for this file (seams)."""

    step: Callable[[Message], None]
    keep: Callable[["Call", int, Sequence[str]], None]  # answers through on_answer
    fetch: Callable[[int, Fetch], None]  # the same
    renames: Callable[[str, Sequence[str]], List[str]]  # warnings
    clock: Callable[[], float]
    wall: Callable[[], float]
    log: Callable[[str], None] = lambda text: None
    settings: Callable[[], Sequence[Row]] = lambda: ()
    # Ticket (0: nobody waits) and job; the same, and a letter; both by on_answer.
    aside: Callable[[int, Callable[[], Any]], None] = lambda *_: None
    ask_node: Callable[[int, Letter], None] = lambda *_: None
    new_cookie: Callable[[float], Tuple[int, str]] = lambda grace: (0, "")


class Call:
    """One client: its request as it arrives, its answer as it is made."""

    def __init__(self, token: bytes) -> None:
        self.args: List[str] = []
        self.cwd = self.tty = ""
        self.columns = 0
        self.out = bytearray()
        self.is_over = False
        self._token = token + b"\0"
        self._request = bytearray()
        self._nuls = 0
        self._is_known = False  # it has shown the token
        self._wanted = 0  # NULs in the whole request; 0: its head isn't here yet

    def feed(self, data: bytes) -> bool:
        """Take bytes; say whether the request is whole. ValueError: not one of ours."""
        self._request += data
        self._nuls += data.count(b"\0")
        if len(self._request) > REQUEST_BYTES_MAX:
            raise ValueError("the request is too long")
        if not self._is_known:
            # All of it at once: refusing a wrong first byte would tell the right one.
            if len(self._request) < len(self._token):
                return False
            shown = bytes(self._request[: len(self._token)])
            if not compare_digest(shown, self._token):
                raise ValueError("no request of ours")
            self._is_known = True
        if not self._wanted:
            if self._nuls < HEAD_FIELDS and len(self._request) <= HEAD_BYTES_MAX:
                return False
            self._read_head()
        if self._nuls < self._wanted:
            return False
        text = self._request.decode("utf-8", "surrogateescape")
        self.args = text.split("\0", self._wanted)[HEAD_FIELDS : self._wanted]
        self._request = bytearray()
        return True

    def _read_head(self) -> None:
        head = self._request[:HEAD_BYTES_MAX].split(b"\0", HEAD_FIELDS)
        if len(head) <= HEAD_FIELDS:
            raise ValueError("the head is too long")
        fields = [bytes(f).decode("utf-8", "surrogateescape") for f in head]
        _, argc, self.cwd, columns, self.tty = fields[:HEAD_FIELDS]
        if not _is_number(argc) or int(argc) > ARGS_MAX:
            raise ValueError("no number of arguments")
        self.columns = int(columns) if _is_number(columns) else COLUMNS
        self._wanted = HEAD_FIELDS + int(argc)

    def line(self, text: str) -> None:
        """Print a line on stdout."""
        self._item("L", text)

    def err(self, text: str) -> None:
        """Print a message on stderr."""
        self._item("E", "leoronic: " + text)

    def progress(self, text: str) -> None:
        """Redraw the progress line; nothing where stderr is no terminal."""
        if self.has_progress:
            self._item("P", text)

    @property
    def has_progress(self) -> bool:
        """Say whether somebody sees the progress line."""
        return "2" in self.tty

    @property
    def width(self) -> int:
        """Give the columns of the terminal that stdout is; 0: it is none."""
        return self.columns if "1" in self.tty else 0

    def has_colours(self, descriptor: str) -> bool:
        """Say whether stdout (1) or stderr (2) shows colours, and should."""
        return descriptor in self.tty and "c" in self.tty

    def raw(self, data: bytes) -> None:
        """Print bytes on stdout; a short text as lines, which cost no fork there."""
        if _SHORT_TEXT.fullmatch(data):
            self.out += b"L " + data[:-1].replace(b"\n", b"\nL ") + b"\n"
        else:
            self.out += b"O %d\n" % len(data) + data

    def end(self, code: int) -> None:
        """End the answer; what follows is ignored."""
        if not self.is_over:
            self._item("X", str(code))
            self.is_over = True

    def _item(self, kind: str, text: str) -> None:
        for line in text.split("\n"):
            self.out += to_bytes(f"{kind} {line}\n")


def _is_number(text: str) -> bool:
    return 0 < len(text) < 10 and NUMERALS.issuperset(text)


def more_room(call: Call) -> "Pause":
    """Give what to yield between two pieces of a long answer."""
    return TURN if len(call.out) < OUT_BYTES_MAX else DRAINED


# --- the arguments of a call --------------------------------------------------------


def only(call: Call, name: str) -> str:
    """Give the one argument of a call."""
    at_most(call, 1)
    if len(call.args) < 2:
        raise Wrong(f"{name} is missing; found no argument; write one {name}")
    return call.args[1]


def at_most(call: Call, most: int) -> None:
    """Refuse more arguments than a verb takes."""
    if len(call.args) > most + 1:
        count = ("no argument is", "one argument is", "two arguments are")[most]
        remedy = "leave it out" + (", or quote blanks" if most else "")
        raise Wrong(told(f"{count} taken", call.args[most + 1], remedy))


def absolute(call: Call, name: str, path: str) -> str:
    """Give the path of a file as the caller means it, as this process opens it."""
    if not path:
        raise Wrong(f'{name} is empty; found ""; name a file')
    if not call.cwd and not path.startswith("/"):
        remedy = "your working directory is gone: cd, or write a path from /"
        raise Wrong(told(f"{name} is relative", path, remedy))
    return os.fsdecode(to_bytes(os.path.join(call.cwd, path)))


class Waiting:
    """A verb that isn't done: its call, its generator, what it waits for."""

    __slots__ = ("call", "verb", "on")

    def __init__(self, call: Call, verb: Verb) -> None:
        self.call = call
        self.verb = verb
        self.on: Optional[Waits] = None


class Control:
    """Serves the calls of this machine's utilities."""

    def __init__(
        self, node: "Node", acts: Acts, verbs: Mapping[str, "Callable[..., Verb]"]
    ) -> None:
        self.node = node
        self.acts = acts
        self.verbs = verbs
        self._tickets = 0
        self._asked: Dict[int, Waiting] = {}
        self._turning: List[Waiting] = []
        self._watching: List[Waiting] = []
        self.stops: List[Call] = []
        # Tickets of adds in slices -> how they ended before their last slice.
        self.early: Dict[int, Any] = {}

    # --- the trampoline -----------------------------------------------------------

    def on_call(self, call: Call) -> None:
        """Serve a whole request; what it waits for is remembered."""
        name = call.args[0] if call.args else ""
        verb = self.verbs.get(name)
        if verb is None:
            remedy = "it is of another version than leoronic_utilities; restart it"
            call.err(told("this comrade has no such verb", name, remedy))
            call.end(2)
            return
        if call.args[1:] == ["--help"] and name in USAGES:
            for line in help_lines(name, call.columns):
                call.line(line)
            call.end(0)
            return
        self._resume(Waiting(call, verb(self, call)), None)

    def on_answer(self, ticket: int, answer: Any) -> None:
        """Hand a verb what it asked for; an exception is raised in it."""
        waiting = self._asked.pop(ticket, None)
        if waiting is not None:
            self._resume(waiting, answer)
        elif ticket in self.early:
            self.early[ticket] = answer

    def on_closed(self, call: Call) -> None:
        """Forget a client that is gone; what was asked of the node goes on."""
        call.is_over = True
        call.out.clear()
        asked = {t: w for t, w in self._asked.items() if w.call is call}
        kept = {t for t, w in asked.items() if isinstance(w.on, Ask)}
        for waiting in self._turning + self._watching:
            if waiting.call is call:
                waiting.verb.close()
        for ticket in asked.keys() - kept:
            self._asked.pop(ticket).verb.close()
        self._turning = [w for w in self._turning if w.call is not call]
        self._watching = [w for w in self._watching if w.call is not call]

    def on_stopped(self) -> None:
        """Tell those who asked for it that this comrade has stopped."""
        for call in self.stops:
            call.end(0)

    @property
    def is_busy(self) -> bool:
        """Whether a verb is at something long, its own or the node's."""
        return bool(self._turning or self._asked)

    def tick(self, now: float, has_changed: bool) -> Optional[float]:
        """Resume what is due; give the time of the next call."""
        turning, self._turning = self._turning, []
        for waiting in turning:
            if waiting.on is DRAINED and len(waiting.call.out) > OUT_BYTES_LOW:
                self._turning.append(waiting)
            else:
                self._resume(waiting, None)
        watching, self._watching = self._watching, []
        for waiting in watching:
            assert isinstance(waiting.on, Until)
            deadline = waiting.on.deadline
            if has_changed or (deadline is not None and deadline <= now):
                self._resume(waiting, None)
            else:
                self._watching.append(waiting)
        if any(w.on is TURN for w in self._turning):
            return now
        deadlines = [w.on.deadline for w in self._watching if isinstance(w.on, Until)]
        return min((d for d in deadlines if d is not None), default=None)

    def _resume(self, waiting: Waiting, answer: Any) -> None:
        call = waiting.call
        try:
            if isinstance(answer, Exception):
                waiting.on = waiting.verb.throw(answer)
            else:
                waiting.on = waiting.verb.send(answer)
            self._wait(waiting)
        except StopIteration:
            if call not in self.stops:
                call.end(0)
        except (Wrong, No) as problem:
            call.err(printable(str(problem)))
            if isinstance(problem, Wrong) and call.args[0] in USAGES:
                line = USAGES[call.args[0]].line
                call.err(f"usage: {line}; more: {line.split()[0]} --help")
            call.end(2 if isinstance(problem, Wrong) else 1)
        except Exception as problem:  # Our bug must cost one call, not the node.
            self.acts.log(traced())
            found = type(problem).__name__
            call.err(told("a bug of this comrade", found, "its log says more"))
            call.is_over = True

    def _wait(self, waiting: Waiting) -> None:
        on = waiting.on
        if waiting.call.is_over and not isinstance(on, Ask):
            waiting.verb.close()  # The client went away while the node was asked.
        elif isinstance(on, Pause):
            self._turning.append(waiting)
        elif isinstance(on, Until):
            self._watching.append(waiting)
        else:
            ticket = (on.ticket if isinstance(on, Ask) else 0) or self.ticket()
            self._asked[ticket] = waiting
            if isinstance(on, Ask):
                self.acts.step(on.message(ticket))
            elif isinstance(on, Keep):
                self.acts.keep(waiting.call, ticket, on.paths)
            elif isinstance(on, Fetch):
                self.acts.fetch(ticket, on)
            elif isinstance(on, Do):
                self.acts.aside(ticket, on.job)
            elif isinstance(on, Letter):
                self.acts.ask_node(ticket, on)

    def ticket(self) -> int:
        """Give a number for what is asked of the node."""
        self._tickets += 1
        return self._tickets
