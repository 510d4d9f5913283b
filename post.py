"""A node's post: letters to and from it, its working directory that they are about.

Reason for this file beside comrade.py and ghost.py: both have the same, and neither may
import the other.

Rules. Joins letters.py, folder.py, arrivals.py and a thread; decides nothing. What may
block is done in that thread, one thing after the other.

Invariant. A frame that is no letter ends the link it came over (D9), nothing else.
"""

import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from arrivals import IDLE_S, Arrivals
from folder import Folder, Hidden
from letters import Letter, Letters, Said
from letters import Seams as LetterSeams
from machine import free_disk
from places import Worker

LIVE_BYTES = 16384  # of an output in one letter: a heartbeat waits for no more


class Seams(NamedTuple):
    """What a role does for this file."""

    me: str
    way: Callable[[str], Optional[str]]  # to a node; '' is this one
    send: Callable[[str, str, Dict[str, Any]], None]  # peer, kind, fields
    places: Callable[[], List[Any]]  # of all nodes, as roster.py gives them
    health: Callable[[], Dict[str, Any]]  # of this node, for leoronic_doctor
    live: Callable[[str, str], Optional[str]]  # where a run's out or err gathers
    on_answer: Callable[[int, Any], None]  # to a verb, by its ticket
    watch: Callable[[int, Callable[[], None]], None]
    clock: Callable[[], float]


class Post:
    """The post of one node."""

    def __init__(self, directory: str, home: str, cookie: str, seams: Seams) -> None:
        self._seams = seams
        hidden = Hidden(home, cookie)
        self._folder = Folder(directory, hidden)
        self._arrivals = Arrivals(
            directory, hidden, lambda: free_disk(directory), seams.clock
        )
        self._arrivals.clean_up()
        self._folder.verbs.update(put=self._arrivals.put, drop=self._arrivals.drop)
        self._worker = Worker(seams.watch)
        self._letters = Letters(
            LetterSeams(seams.me, seams.way, seams.send, self._answer, seams.clock),
            int.from_bytes(os.urandom(4), "big"),
        )
        self._look_at: Optional[float] = None
        self.on_frame = self._letters.on_frame

    def tick(self, now: float) -> Optional[float]:
        """Look after letters, and after files that no longer come."""
        if not self._arrivals.is_receiving:
            self._look_at = None
        elif self._look_at is None or now >= self._look_at:
            self._look_at = now + IDLE_S
            self._worker.do(self._arrivals.drop_idle)
        times = [self._letters.tick(now), self._look_at]
        return min((t for t in times if t is not None), default=None)

    def ask(self, ticket: int, letter: Letter) -> None:
        """Ask a node for a verb."""
        on_answer = self._seams.on_answer
        self._letters.ask(letter, lambda said: on_answer(ticket, said))

    def aside(self, ticket: int, job: Callable[[], Any]) -> None:
        """Do what may block for a verb."""

        def guarded() -> Any:
            try:
                return job()
            except Exception as problem:  # it is for the verb
                return problem

        self._worker.do(guarded, lambda found: self._seams.on_answer(ticket, found))

    def close(self, unwatch: Callable[[int], None]) -> None:
        """Drop what is half here."""
        self._worker.close(unwatch)
        self._arrivals.close()
        self._folder.close()

    def _answer(
        self,
        asker: str,
        verb: str,
        args: Dict[str, Any],
        body: bytes,
        then: Callable[[Said], None],
    ) -> None:
        if verb == "nodes":
            then(({"nodes": self._seams.places()}, b""))
            return
        if verb == "health":
            then((self._seams.health(), b""))
            return

        if verb == "live":
            self._answer_live(str(args.get("run")), args, then)
            return

        def answered(said: Any) -> None:
            then(({"error": said}, b"") if isinstance(said, str) else said)

        self._worker.do(lambda: self._folder.answer(asker, verb, args, body), answered)

    def _answer_live(
        self, run: str, args: Dict[str, Any], then: Callable[[Said], None]
    ) -> None:
        """Give a piece of what a run prints that goes on here, for leoronic_get_output.

        If it has ended by then, the file may be another run's already.
        """
        which, offset = args.get("which"), args.get("offset")
        is_sound = which in ("out", "err") and type(offset) is int and offset >= 0
        path = self._seams.live(run, str(which)) if is_sound else None
        if path is None:
            then(({}, b""))
            return

        def answered(said: Any) -> None:
            is_live = self._seams.live(run, str(which)) == path
            then(said if is_live and not isinstance(said, str) else ({}, b""))

        self._worker.do(lambda: _piece(str(path), int(str(offset))), answered)


def _piece(path: str, offset: int) -> Said:
    try:
        with open(path, "rb", 0) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(min(offset, size))
            return {"size": size}, file.read(LIVE_BYTES)
    except OSError:
        return {}, b""  # It has just ended.
