"""What a comrade hands to its store, and when: records, meta, and small outputs.

Reason for this file beside comrade.py: what the disk has of it is state of its own, and
so is the pace at which it is given more.

Rules. Decides nothing about durability: the core says of each batch whether somebody
waits for it. One that nobody waits for leaves PAUSE_S after the one before it: short
tasks change fifty records in that time, each of them twice, and an fsync costs a
processor about as much as a task. All leave in the order in which they came.

How it works. A batch is put together when it leaves, with what was printed until then;
what the store answers says what of the meta is on disk. When the disk has failed, what
the batch had of outputs goes with the next one.

Invariants. D10: a batch that somebody waits for is never held, nor is what came before
it. The core has one batch at a time under way that may be held; so none is held longer
than PAUSE_S.
"""

from typing import Callable, Dict, List, Optional

import store
from effects import Persist
from outputs import Outputs

PAUSE_S = 0.02  # to lose this much by a crash means to run some tasks once more
WRITE_SEQ = -1  # of a batch of which the core knows nothing


class Batches:
    """All that is on its way to one store."""

    def __init__(
        self,
        write: Callable[[store.Batch], None],
        clock: Callable[[], float],
        pause_s: float = PAUSE_S,
    ) -> None:
        self.meta: Dict[str, bytes] = {}  # what is to be kept beside the records
        self.outputs: Outputs
        self._write = write
        self._clock = clock
        self._pause_s = pause_s
        self._held: List[Persist] = []
        self._next = 0.0  # then one that may wait leaves
        self._writing: Dict[int, store.Batch] = {}
        self._written: Dict[str, bytes] = {}  # meta as the disk has it

    def remember(self, name: str, value: str) -> None:
        """Keep a fact beside the records, from the next batch on."""
        self.meta[name] = value.encode("ascii")

    def persist(self, effect: Persist) -> None:
        """Write what the core says, now or soon."""
        self._held.append(effect)
        if not effect.may_wait or self._clock() >= self._next:
            self.release()

    def tick(self, now: float) -> Optional[float]:
        """Let go what was held for long enough; give the time of the next."""
        if self._held and now >= self._next:
            self.release()
        return self._next if self._held else None

    def release(self) -> None:
        """Let go all that is held."""
        held, self._held = self._held, []
        for effect in held:
            new = dict(self.meta, **effect.meta)
            meta = {k: v for k, v in new.items() if self._written.get(k) != v}
            groups = (effect.group, effect.close, effect.abort)
            batch = store.Batch(
                effect.seq, effect.rows, meta, self.outputs.take(), *groups
            )
            self._writing[effect.seq] = batch
            self._write(batch)
        self._next = self._clock() + self._pause_s

    def write_outputs(self) -> None:
        """Write what was printed, without any record."""
        self._write(store.Batch(WRITE_SEQ, outputs=self.outputs.take()))

    def write_meta(self) -> None:
        """Write all facts, without any record; the core is over."""
        self._write(store.Batch(WRITE_SEQ, meta=self.meta))

    def on_written(self, answer: store.Written) -> bool:
        """Take the store's answer; say whether the core waits for it."""
        if answer.seq == WRITE_SEQ:
            return False
        batch = self._writing.pop(answer.seq)
        if answer.error:
            self.outputs.give_back(batch.outputs)
        else:
            self._written.update(batch.meta)
        return True
