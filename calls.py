"""Calls of utilities where only a ghost is: it passes them on to its clairvoyant.

Reason for this file beside control.py: a call that crosses a link has two ends and a
protocol of its own. Both are here, so that it can be read, and tested, as one.

Rules. Owns no socket, no file. What the verbs do is in verbs.py; which of them a ghost
answers by itself is `ghost_verbs`. A call that a clairvoyant serves is a control.Call
like any other; only its FILES lie elsewhere.

    client -- ghost: Passing                       clairvoyant: Serving -- Control
      request       CALL, piece by piece  ------>    Call.feed
                              <------  TAKEN         each piece
      answer                  <------  ANSWER        what is in Call.out
                    TAKEN  ------>                   once the client has read it
      FILES                   <------  KEEP path     control.Keep, one path each
                    KEPT, or its error  ------>      then the relay gets the file
      gone          HANGUP  ------>                  Control.on_closed

Bytes travel as field `body` between these classes and whoever sends.

Invariants
1. Of each call at most one piece is under way in a direction: a client that doesn't
   read holds up its own verb only, and no link is flooded (D9).
2. A link that ends, ends its calls at both ends; the ghost says whether something may
   have been done.
3. A task is added only when its files are in the clairvoyant's store.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import doctor
import facts
import filecalls
import rotation
import sending
from clients import CLIENTS_MAX
from control import (
    NO_COMRADE,
    NO_COMRADE_TEXT,
    Call,
    Control,
    Until,
    Verb,
    to_bytes,
)
from net import URGENT_BYTES_MAX
from record import File
from steering import names_node
from store import Kept
from verbs import DISK_ERRORS, read_list
from verbs import VERBS as OF_NODES

PIECE_BYTES = 16384  # of a request or an answer: a heartbeat waits for no more
PATH_BYTES_MAX = 4096  # Linux' own; a longer one can't be opened
BY_LETTER = dict(filecalls.VERBS, **sending.VERBS, **doctor.VERBS)
VERBS = dict(OF_NODES, **BY_LETTER, **rotation.VERBS)  # all there are, on any node
# What concerns this very machine, or begins at it.
OWN = frozenset(
    ("config", "add_tag", "del_tag", "get_tags", "stop", "task_format")
    + tuple(BY_LETTER)
)

assert CLIENTS_MAX * PIECE_BYTES < URGENT_BYTES_MAX  # all of a ghost's clients at once

Fields = Dict[str, Any]
Serve = Callable[[Control, Call], Verb]


def never(*_: Any) -> Any:
    """Stand for an act that none of a ghost's own verbs needs."""
    raise NotImplementedError


# --- the ghost's end --------------------------------------------------------------


class GhostSeams(NamedTuple):
    """What ghost.py does for this file."""

    peer: Callable[[], str]  # the link to the clairvoyant; '': there is none
    send: Callable[[str, str, Fields], None]  # peer, kind, fields
    keep: Callable[[str, Callable[[Optional[Kept], Optional[Exception]], None]], None]


class Passed:
    """A call that was passed on: over which link, how much of it, what is owed."""

    __slots__ = ("call", "is_owed", "peer", "request", "sent")

    def __init__(self, call: Call, peer: str, request: bytes) -> None:
        self.call = call
        self.peer = peer
        self.request = request
        self.sent = 0
        self.is_owed = False  # a piece of the answer is here, and not acknowledged


class Passing:
    """The calls of a ghost's clients that its clairvoyant answers."""

    def __init__(self, seams: GhostSeams) -> None:
        self.seams = seams
        self.calls: Dict[int, Passed] = {}
        self._count = 0

    def pass_on(self, call: Call, args: Sequence[str]) -> None:
        """Let the clairvoyant answer a call, with these arguments."""
        peer = self.seams.peer()
        if not peer:
            call.err(NO_COMRADE_TEXT)
            call.end(NO_COMRADE)
            return
        words = [str(len(args)), call.cwd, str(call.columns), call.tty, *args]
        request = to_bytes("".join(word + "\0" for word in words))
        self._count += 1
        self.calls[self._count] = Passed(call, peer, request)
        self._send_piece(self._count)

    def on_frame(self, peer: str, kind: str, fields: Fields) -> None:
        """Take a frame of the clairvoyant; KeyError and others: it is none of these."""
        take = PASSING[kind]
        passed = self.calls.get(fields["call"])
        if passed is not None and passed.peer == peer:
            take(self, fields["call"], passed, fields)

    def on_closed(self, call: Call) -> None:
        """The client is gone: so is its call."""
        for number, passed in list(self.calls.items()):
            if passed.call is call:
                del self.calls[number]
                self.seams.send(passed.peer, "HANGUP", {"call": number})

    def drop_lost(self) -> None:
        """End the calls whose link has ended."""
        peer = self.seams.peer()
        for number, passed in list(self.calls.items()):
            if passed.peer != peer:
                del self.calls[number]
                self._lose(passed)

    def flush(self) -> None:
        """Ask for more where the client has read all that came."""
        for number, passed in self.calls.items():
            if passed.is_owed and not passed.call.out:
                passed.is_owed = False
                self.seams.send(passed.peer, "TAKEN", {"call": number})

    def _lose(self, passed: Passed) -> None:
        what = "it may have been done or not: look with leoronic_get_queue, once one is"
        if passed.sent < len(passed.request):
            what = "nothing was done; try again once one is"
        passed.call.err(
            "no comrade is reachable from here; found that the link to it broke; "
            + what
        )
        passed.call.end(NO_COMRADE)

    def _send_piece(self, number: int) -> None:
        passed = self.calls[number]
        body = passed.request[passed.sent : passed.sent + PIECE_BYTES]
        if body:
            passed.sent += len(body)
            self.seams.send(passed.peer, "CALL", {"call": number, "body": body})

    def _on_taken(self, number: int, passed: Passed, fields: Fields) -> None:
        self._send_piece(number)

    def _on_answer(self, number: int, passed: Passed, fields: Fields) -> None:
        passed.call.out += fields["body"]
        passed.is_owed = True
        if fields["over"]:
            del self.calls[number]
            passed.call.is_over = True

    def _on_keep(self, number: int, passed: Passed, fields: Fields) -> None:
        def then(kept: Optional[Kept], error: Optional[Exception]) -> None:
            if self.calls.get(number) is passed:
                found = dict(_told_kept(kept, error), call=number)
                self.seams.send(passed.peer, "KEPT", found)

        self.seams.keep(str(fields["path"]), then)


def _told_kept(kept: Optional[Kept], error: Optional[Exception]) -> Fields:
    if kept is not None:
        return dict(kept._asdict(), error="", errno=0)
    known: Any = error
    cause = known.__cause__ if getattr(known, "errno", None) is None else known
    number = getattr(cause, "errno", None) or 0
    return {"digest": "", "size": 0, "mode": 0, "error": str(error), "errno": number}


PASSING: Dict[str, Callable[[Passing, int, Passed, Fields], None]] = {
    "ANSWER": Passing._on_answer,
    "KEEP": Passing._on_keep,
    "TAKEN": Passing._on_taken,
}


def ghost_verbs(passing: Passing) -> Dict[str, Serve]:
    """Give what a ghost does for each verb: what concerns itself it answers."""

    def passed(ctl: Control, call: Call) -> Verb:
        passing.pass_on(call, call.args)
        yield Until(None)  # The answer comes from elsewhere, and ends the call.

    def listed(ctl: Control, call: Call) -> Verb:
        text = yield from read_list(call)
        passing.pass_on(call, ["add_tasks_text", text])
        yield Until(None)

    def drain(ctl: Control, call: Call) -> Verb:
        is_passed = names_node(call)
        yield from (passed if is_passed else VERBS[call.args[0]])(ctl, call)

    verbs: Dict[str, Serve] = {name: passed for name in VERBS}
    verbs.update({name: VERBS[name] for name in OWN})
    verbs.update(add_tasks=listed, drain=drain, undrain=drain)
    return verbs


# --- the clairvoyant's end --------------------------------------------------------


class ServingSeams(NamedTuple):
    """What comrade.py does for this file."""

    is_linked: Callable[[str], bool]
    send: Callable[[str, str, Fields], None]  # peer, kind, fields
    has: Callable[[str], bool]  # this file is in the store
    fetch: Callable[[str, str, int, Callable[[bool], None]], None]  # from a ghost


class Keeping:
    """Files that a verb waits for, one after the other."""

    def __init__(self, ticket: int, paths: Sequence[str]) -> None:
        self.ticket = ticket
        self.paths = paths
        self.kept: List[File] = []


class Served:
    """A call of a ghost's client."""

    def __init__(self, peer: str, number: int) -> None:
        self.peer = peer
        self.number = number
        self.call = Call(b"")
        self.call.feed(b"\0")  # the empty token: the link has proved itself
        self.is_whole = False
        self.is_under_way = False  # a piece of the answer is
        self.keeping: Optional[Keeping] = None


class Serving:
    """The calls of this comrade's ghosts."""

    def __init__(self, control: Control, seams: ServingSeams) -> None:
        self.control = control
        self.seams = seams
        self.calls: Dict[Tuple[str, int], Served] = {}

    def on_frame(self, peer: str, kind: str, fields: Fields) -> None:
        """Take a frame of a ghost; ValueError and others: it is none of these."""
        if kind == "CALL":
            self._on_call(peer, fields)
            return
        served = self.calls.get((peer, fields["call"]))
        if served is not None:
            SERVING[kind](self, served, fields)

    def keep(self, call: Call, ticket: int, paths: Sequence[str]) -> bool:
        """Take files in where the caller is; False: it is on this machine."""
        for served in self.calls.values():
            if served.call is call:
                served.keeping = Keeping(ticket, paths)
                self._keep_next(served)
                return True
        return False

    def flush(self) -> None:
        """Send the next piece of each answer; forget the calls of links that ended."""
        for key, served in list(self.calls.items()):
            call = served.call
            if not self.seams.is_linked(served.peer):
                self._drop(served)
            elif not served.is_under_way and (call.out or call.is_over):
                body = bytes(call.out[:PIECE_BYTES])
                del call.out[:PIECE_BYTES]
                is_over = call.is_over and not call.out
                self._send(served, "ANSWER", over=is_over, body=body)
                served.is_under_way = True
                if is_over:
                    del self.calls[key]

    def _send(self, served: Served, kind: str, **fields: Any) -> None:
        self.seams.send(served.peer, kind, dict(fields, call=served.number))

    def _drop(self, served: Served) -> None:
        del self.calls[served.peer, served.number]
        self.control.on_closed(served.call)

    def _on_call(self, peer: str, fields: Fields) -> None:
        number = facts.number(fields["call"])
        served = self.calls.get((peer, number))
        if served is None:
            if sum(1 for each, _ in self.calls if each == peer) >= CLIENTS_MAX:
                raise ValueError("too many calls")
            served = self.calls[peer, number] = Served(peer, number)
        if served.is_whole:
            raise ValueError("a call that goes on behind its end")
        served.is_whole = served.call.feed(fields["body"])
        self._send(served, "TAKEN")
        if served.is_whole:
            if OWN.intersection(served.call.args[:1]):
                raise ValueError("a call that is the ghost's own")
            self.control.on_call(served.call)

    def _on_taken(self, served: Served, fields: Fields) -> None:
        served.is_under_way = False

    def _on_hangup(self, served: Served, fields: Fields) -> None:
        self._drop(served)

    # --- FILES --------------------------------------------------------------------

    def _keep_next(self, served: Served) -> None:
        keeping = served.keeping
        assert keeping is not None
        if len(keeping.kept) == len(keeping.paths):
            self._end_keeping(served, keeping.kept)
            return
        path = keeping.paths[len(keeping.kept)]
        if len(to_bytes(path)) > PATH_BYTES_MAX:
            self._end_keeping(served, OSError(f"cannot read {path}: its name is long"))
        else:
            self._send(served, "KEEP", path=path)

    def _end_keeping(self, served: Served, answer: Any) -> None:
        keeping, served.keeping = served.keeping, None
        if keeping is not None:
            self.control.on_answer(keeping.ticket, answer)

    def _on_kept(self, served: Served, fields: Fields) -> None:
        keeping = served.keeping
        if keeping is None:
            return
        if fields["error"]:
            number = facts.number(fields["errno"])
            self._end_keeping(served, _error(str(fields["error"]), number))
            return
        size, mode = (facts.number(fields[name]) for name in ("size", "mode"))
        file = File("", str(fields["digest"]), size, mode & 0o777)

        def then(is_here: bool) -> None:
            if served.keeping is not keeping:
                return
            if is_here:
                keeping.kept.append(file)
                self._keep_next(served)
            else:
                text = "%s can't be brought to this ghost's comrade; see its log"
                path = keeping.paths[len(keeping.kept)]
                self._end_keeping(served, _error(text % path, DISK_ERRORS[0]))

        if self.seams.has(file.digest):
            then(True)
        else:
            self.seams.fetch(served.peer, file.digest, file.size, then)


def _error(text: str, number: int) -> OSError:
    """Make an error as store.Files raises it: words, and what they stand for."""
    error = OSError(text)
    error.__cause__ = OSError(number, "") if number else None
    return error


SERVING: Dict[str, Callable[[Serving, Served, Fields], None]] = {
    "HANGUP": Serving._on_hangup,
    "KEPT": Serving._on_kept,
    "TAKEN": Serving._on_taken,
}
OF_GHOSTS = frozenset(["CALL", *SERVING])  # what a comrade takes
