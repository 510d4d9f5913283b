"""What tasks printed: kept where it ran, small ones everywhere, found from anywhere.

Reason for this file beside comrade.py: outputs have a way of their own, from a run's
end to whoever asks, and several places to be in.

Rules. Knows files and digests, nothing of tasks' states. Up to SMALL_OUTPUT_BYTES go
into the database, in the same transaction as the end that names them or an earlier one;
larger ones are moved to home/outputs, aside, before the end is told. What ended
elsewhere is fetched if it is small; a large one when somebody asks for it.

Invariants. An end that names an output is never told before that output is kept. A
node that can't keep it (a full disk) says so in the log and tells the end all the same.
"""

import os
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import sandbox
import store
from effects import RunEnded, WantOutput
from points import point
from transfer import Transfers
from wire import Kind

FETCHED_MAX = 64  # small outputs remembered for those who wait for the same

AnswerTo = Callable[[Union[None, bytes, str]], None]


class At(NamedTuple):
    """A ghost that ran a task, and the comrade that it is attached to."""

    place: str
    ghost: str


class Seams(NamedTuple):
    """What comrade.py does for this file."""

    aside: Callable[
        [Callable[[], Any], Callable[[Any, Optional[Exception]], None]], None
    ]
    small: Callable[[str, Callable[[Optional[bytes]], None]], None]
    on_end: Callable[[RunEnded], None]
    write: Callable[[], None]  # see to it that what is pending gets written
    log: Callable[[str], None]


class Outputs:
    """The outputs of one node."""

    def __init__(self, files: store.Files, transfers: Transfers, seams: Seams) -> None:
        self.files = files
        self.transfers = transfers
        self.seams = seams
        self.pending: List[Tuple[str, bytes]] = []  # to go with the next batch
        self.fetched: Dict[str, bytes] = {}  # the last few that came from elsewhere
        self.moving = 0  # ends that wait for their large outputs

    def take(self) -> List[Tuple[str, bytes]]:
        """Give what is to be written with the next batch."""
        pending, self.pending = self.pending, []
        return pending

    def on_its_way(self, digest: str) -> Optional[bytes]:
        """Give what waits for the next batch: its end may be known elsewhere by now."""
        return dict(self.pending).get(digest)

    def give_back(self, kept: Sequence[Tuple[str, bytes]]) -> None:
        """Take back what a batch that failed had: its rows are tried again, too."""
        self.pending[:0] = kept

    # --- of runs that end here ------------------------------------------------------

    def on_ended(self, event: sandbox.Ended) -> None:
        """Keep what a run printed, then tell its end."""
        point("before end")
        both = (event.out, event.err)
        if all(output.data is not None for output in both):
            self._tell(event, [self._keep_small(output) for output in both])
            return
        self.moving += 1
        self.seams.aside(
            lambda: [self._move(output) for output in both],
            lambda kept, error: self._on_moved(event, kept, error),
        )

    def _move(self, output: sandbox.Output) -> Optional[List[Any]]:
        if output.data is not None:
            return None
        return list(self.files.keep_output(output.path))

    def _on_moved(
        self, event: sandbox.Ended, kept: Any, error: Optional[Exception]
    ) -> None:
        self.moving -= 1
        if error is not None:
            self.seams.log("the output of %s is lost: %s" % (event.run, error))
        both = (event.out, event.err)
        found = [
            moved or self._keep_small(output)
            for moved, output in zip(kept or [None, None], both)
        ]
        self._tell(event, found)

    def _keep_small(self, output: sandbox.Output) -> List[Any]:
        if not output.data:
            return [output.size, ""]
        digest = store.digest_of(output.data)
        self.pending.append((digest, output.data))
        return [output.size, digest]

    def _tell(self, event: sandbox.Ended, both: List[List[Any]]) -> None:
        self.seams.on_end(
            RunEnded(
                event.run,
                event.exit,
                event.cause,
                event.began,
                event.ended,
                event.took,
                both[0],
                both[1],
            )
        )

    # --- of runs that ended elsewhere -------------------------------------------------

    def want(self, effect: WantOutput) -> None:
        """Get a small output that another comrade has, unless it is here."""

        def look(data: Optional[bytes]) -> None:
            if data is None:
                self._get(effect.digest, effect.size, effect.peer, self._keep_fetched)

        self.seams.small(effect.digest, look)

    def _get(
        self,
        digest: str,
        size: int,
        peer: str,
        then: Callable[[str, bool], Any],
        at: Optional[At] = None,
    ) -> None:
        self.transfers.want(
            *(Kind.OUTPUT_WANT, digest, size, peer),
            lambda is_here: then(digest, is_here),
            at.ghost if at is not None else "",
        )

    def _keep_fetched(self, digest: str, is_here: bool) -> Optional[bytes]:
        """Put a small output that came as a file into the database; give it."""
        if not is_here:
            return None
        if digest not in self.fetched:  # Several may have waited for the same.
            with open(self.files.path(digest), "rb") as file:
                data = file.read()
            self.files.drop(digest)
            self.pending.append((digest, data))
            self.seams.write()
            while len(self.fetched) >= FETCHED_MAX:
                del self.fetched[next(iter(self.fetched))]
            self.fetched[digest] = data
        return self.fetched[digest]

    # --- for whoever asks ---------------------------------------------------------

    def fetch(
        self, size: int, digest: str, answer: AnswerTo, at: Optional[At] = None
    ) -> None:
        """Answer with an output's bytes, its path, or None if nobody has it."""
        if size > sandbox.SMALL_OUTPUT_BYTES:
            self._fetch_large(size, digest, answer, at)
            return

        def look(data: Optional[bytes]) -> None:
            if data is not None:
                answer(data)
            else:
                self._search(size, digest, on_fetched, at)

        def on_fetched(digest: str, is_here: bool) -> None:
            answer(self._keep_fetched(digest, is_here))

        self.seams.small(digest, look)

    def _fetch_large(
        self, size: int, digest: str, answer: AnswerTo, at: Optional[At]
    ) -> None:
        for path in (self.files.output_path(digest), self.files.path(digest)):
            if os.path.exists(path):
                answer(path)
                return

        def on_fetched(_: str, is_here: bool) -> None:
            answer(self.files.path(digest) if is_here else None)

        self._search(size, digest, on_fetched, at)

    def _search(
        self,
        size: int,
        digest: str,
        then: Callable[[str, bool], Any],
        at: Optional[At],
    ) -> None:
        """Get an output that isn't here from where it may be.

        A large one of a ghost is there alone, a small one at least: who had it, too,
        may be gone. A ghost's clairvoyant brings it.
        """

        def on_brought(is_here: bool) -> None:
            if is_here:
                then(digest, True)
            else:
                self._get(digest, size, "", then)

        ask_ghost = self.transfers.ask_ghost
        if at is None or not ask_ghost(at.ghost, digest, size, on_brought):
            self._get(digest, size, at.place if at else "", then, at)
