"""Which necessary files and large outputs stay in the store, and which go first.

Reason for this file beside store.py: the store keeps contents and knows no tasks; what
may be dropped depends on the queue.

Rules. A file that an unfinished task names is never dropped. What no record names any
more goes at the next start. Files of finished tasks are kept, for they may be asked for
again, but only while there is room: before a file is taken, enough of them are
dropped, the longest unused first, that it fits and FLOOR stays free.

At a ghost, which holds the records of what it runs alone, the same is done with the
files of all others; what it printed stays, for nobody else has it.

Invariants. The digests in `known`, which the core believes to be here, are in it.
Nothing is looked through while there is room.
"""

import os
from typing import Callable, Iterable, List, Set, Tuple

import store
from record import UNFINISHED
from taskqueue import Queue

FLOOR = 512 << 20  # bytes of the state's disk that files of finished tasks leave free


class Shelf:
    """The contents of one node's store, seen from its queue."""

    def __init__(
        self,
        files: store.Files,
        queue: Queue,
        known: Set[str],
        free: Callable[[], int],
        log: Callable[[str], None],
    ) -> None:
        self.files = files
        self.queue = queue
        self.known = known
        self.free = free
        self.log = log

    def tidy(self) -> None:
        """Drop what no record names any more, at a start; know what is here."""
        named: Set[str] = set()
        for record in self.queue.records.values():
            named.update(file.digest for file in record.needs.files)
            for run in record.runs.values():
                named.update(run.detail.get(o, (0, ""))[1] for o in ("out", "err"))
        for digest in list(self.files.all()):
            if digest in named:
                self.known.add(digest)
            else:
                self._drop(digest)
        for digest in set(self.files.all_outputs()) - named:
            self.files.drop_output(digest)

    def use(self, digests: Iterable[str]) -> None:
        """Note that files are used now."""
        for digest in digests:
            try:
                os.utime(self.files.path(digest))
            except OSError:
                pass  # Only the order of dropping suffers.

    def make_room_for(self, paths: Iterable[str]) -> None:
        """Make room for files that are to be taken in, as far as they can be seen."""
        size = 0
        for path in paths:
            try:
                size += os.stat(path).st_size
            except OSError:
                pass  # whoever reads it will say why not
        self.make_room(size)

    def make_room(self, size: int) -> None:
        """Drop files of finished tasks until that many bytes and FLOOR are free."""
        if self.free() >= size + FLOOR:
            return
        needed: Set[str] = set()
        for record in self.queue.records.values():
            if record.state in UNFINISHED:
                needed.update(file.digest for file in record.needs.files)
        idle = sorted(self._age(digest) for digest in set(self.files.all()) - needed)
        dropped: List[str] = []
        for _, digest in idle:
            if self.free() >= size + FLOOR:
                break
            self._drop(digest)
            dropped.append(digest)
        if dropped:
            self.log("the disk gets full: %d files dropped" % len(dropped))

    def _age(self, digest: str) -> Tuple[float, str]:
        try:
            return os.stat(self.files.path(digest)).st_mtime, digest
        except OSError:
            return 0.0, digest

    def _drop(self, digest: str) -> None:
        self.files.drop(digest)
        self.known.discard(digest)
