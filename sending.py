"""leoronic_send_file: a file put into the working directories of nodes.

Reason for this file beside filecalls.py: that is about what comes from nodes; with this
it would outgrow its size.

Rules. As filecalls.py. Each node gets the file in pieces, one node after the other, and
puts it there once its digest is right (folder.py, arrivals.py).

Invariants. A node has the whole file or what it had before. One that is restarted
meanwhile is sent it anew; one that is left is told to drop what has come.
"""

import os
import stat

from control import (
    Call,
    Control,
    Do,
    No,
    Verb,
    Wrong,
    absolute,
    at_most,
    printable,
    told,
)
from filecalls import Gone, Pace, Place, Steps, amount, places_of, with_comrade
from letters import Letter

SEND_TRIES = 3  # to a node that is restarted meanwhile


def _send_file(ctl: Control, call: Call) -> Verb:
    at_most(call, 2)
    if len(call.args) < 2:
        raise Wrong("FILE is missing; found no argument; write one FILE")
    path = absolute(call, "FILE", call.args[1])
    tag = call.args[2] if len(call.args) > 2 else ""
    if not tag and len(call.args) > 2:
        raise Wrong(told("TAG is empty", tag, "leave it out to mean every node"))
    places = yield from places_of(ctl)
    chosen = [place for place in places if not tag or tag in place.tags]
    if not chosen:
        raise No(told("no node has the tag TAG", tag, "see leoronic_nodes"))
    source = yield from _open(path, call.args[1])
    is_taken = True
    try:
        for place in chosen:
            try:
                why = yield from _send(ctl, call, place, source)
            except Gone:
                why = "it can't be reached"
            call.progress("")
            if why:
                call.err(
                    printable("%s did not take %s: %s" % (place.name, source.name, why))
                )
                is_taken = False
            else:
                size = amount(source.size)
                call.line(printable("%s has %s, %s" % (place.name, source.name, size)))
    finally:
        ctl.acts.aside(0, source.close)
    if not is_taken:
        call.end(1)


class Source:
    """A file that is being sent."""

    def __init__(self, path: str) -> None:
        from folder import identity

        self._fd = -1
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self._fd = os.open(path, flags)
        facts = self._facts = os.fstat(self._fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError("it is no regular file")
        self.name = os.path.basename(path)
        self.size = facts.st_size
        self.mode = stat.S_IMODE(facts.st_mode)
        self.identity = identity(facts)

    def read(self, offset: int, size: int) -> bytes:
        """Give bytes; OSError if the file isn't what it was."""
        now, data = os.fstat(self._fd), os.pread(self._fd, size, offset)
        is_same = (now.st_mtime_ns, now.st_size) == (self._facts.st_mtime_ns, self.size)
        if not is_same or len(data) < min(size, self.size - offset):
            raise OSError("it changed while it was sent")
        return data

    def close(self) -> None:
        """Give it back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close  # also when whoever asked for it had gone


def _open(path: str, shown: str) -> Steps:
    try:
        return (yield Do(lambda: Source(path)))
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise Wrong(
            told("FILE can't be read (%s)" % why, shown, "name a regular file")
        ) from None


def _send(ctl: Control, call: Call, place: Place, source: Source) -> Steps:
    """Put the file there; give why it wasn't taken, '' if it was."""
    from arrivals import BEGIN_ANEW

    if place.state == "lost":
        raise Gone()
    why = BEGIN_ANEW
    for _ in range(SEND_TRIES):  # a node that is restarted forgets what had come
        if why == BEGIN_ANEW:
            why = yield from _Sending(ctl, call, place, source).all()
    return why


class _Sending:
    """A file on its way to one node."""

    def __init__(self, ctl: Control, call: Call, place: Place, source: Source) -> None:
        self.ctl = ctl
        self.call = call
        self.place = place
        self.source = source
        self.pace = Pace(ctl, place.node)
        self.token = os.urandom(8).hex()

    def all(self) -> Steps:
        """Send it in pieces; give why it wasn't taken."""
        try:
            return (yield from self._all())
        except BaseException as problem:  # Gone, or whoever called is
            drop = Letter(self.place.node, "drop", {"token": self.token})
            self.ctl.acts.ask_node(0, drop)
            if isinstance(problem, OSError):
                return problem.strerror or str(problem)
            raise

    def _all(self) -> Steps:
        from folder import digest_of_pieces

        source, digest, offset = self.source, digest_of_pieces(), 0
        while True:
            at, room = offset, self.pace.room
            data = yield Do(lambda: source.read(at, room))  # noqa: B023
            digest.update(data)
            offset += len(data)
            is_last = offset == source.size
            args = {
                "name": source.name,
                "token": self.token,
                "offset": at,
                "size": source.size,
                "mode": source.mode,
                "source": source.identity,
                "digest": digest.hexdigest() if is_last else "",
            }
            said, _ = yield from self.pace.ask("put", args, data)
            if said.get("error"):
                return str(said["error"])
            if is_last or said.get("is_there"):
                return ""
            done = "%s of %s" % (amount(offset), amount(source.size))
            self.call.progress(printable("%s: %s" % (self.place.name, done)))


VERBS = {"send_file": with_comrade(_send_file)}
