"""How tasks come in: all or none, in slices, told to nobody before the last one.

Reason for this file beside node.py: a long list of tasks is one promise that takes many
turns to make; nothing else in the core has a memory between two messages of one caller.

Rules. Pure (D6). The only place that makes keys of tasks.

How it works. Each slice is staged on disk under the ticket (store.Batch.group) and
held back from peers and placing. The last releases all and pledges it (durable.py).

Invariants. D8: a key is counted once by a writer, or is the hash of what a user named.
"""

from typing import Callable, Dict, List

from durable import Durable
from effects import Acked, Add, Effect, Identity, NewTask
from record import named_key
from room import Room
from taskqueue import Queue


class Bulk:
    """An add that comes in slices, until its last one."""

    def __init__(self) -> None:
        self.keys: List[str] = []
        self.new: List[str] = []
        self.error = ""


class Adding:
    """The adds under way at this node."""

    def __init__(
        self,
        me: Identity,
        queue: Queue,
        durable: Durable,
        room: Room,
        emit: Callable[[Effect], None],
    ) -> None:
        self.me = me
        self.queue = queue
        self.durable = durable
        self.room = room
        self.emit = emit
        self._tasks = 0  # counts keys (D8)
        self._bulk: Dict[int, Bulk] = {}

    def on_add(self, message: Add, now: float) -> None:
        """Take an add, or a slice of one."""
        bulk = self._bulk.setdefault(message.ticket, Bulk())
        fresh = [self._add_one(task, bulk, message.wall) for task in message.tasks]
        new = [key for key in fresh if key]
        bulk.new.extend(new)
        for key in new:
            self.durable.dirty.pop(key, None)  # its own batch writes it
        is_sliced = message.more or len(bulk.new) > len(new)
        group = message.ticket if is_sliced else 0
        if bulk.error:
            self._abandon(message.ticket, bulk.error)
        elif message.more:
            self._stage(message.ticket, bulk, new)
        else:
            if group:
                self._stage(message.ticket, bulk, new)
            del self._bulk[message.ticket]
            self.durable.pledge(message.ticket, bulk.keys, bulk.new, now, group)

    def _add_one(self, task: NewTask, bulk: Bulk, wall: float) -> str:
        """Add a task unless it is there already; give its key if it is new."""
        key = self._key_for(task, bulk)
        bulk.keys.append(key)
        if bulk.error or key in self.queue.records:
            return ""
        if task.needs.files:
            self.room.files.update(file.digest for file in task.needs.files)
        self.durable.matcher.blocked.add(key)
        self.durable.replica.held.add(key)
        self.queue.add(key, task.command, task.needs, self.me.name, wall, task.name)
        return key

    def _key_for(self, task: NewTask, bulk: Bulk) -> str:
        if not task.name:
            self._tasks += 1
            return "%d-%s" % (self._tasks, self.me.writer)
        key = named_key(task.name, task.command, task.needs)
        others = self.queue.names.get(task.name, [])
        if others and key not in others:
            bulk.error = "ID is %s; it belongs to another task; choose another" % (
                task.name
            )
        elif not others and self.queue.is_name_purged(task.name):
            bulk.error = (
                "ID is %s; it belonged to a task that is complete and purged; choose "
                "another" % task.name
            )
        return key

    def _stage(self, ticket: int, bulk: Bulk, keys: List[str]) -> None:
        """Write a slice of an add, to come to life with its last."""

        def written(error: str) -> None:
            if error:
                bulk.error = bulk.error or error
                self.durable.spoil(ticket, error)  # The last one may be out already.

        self.durable.persist(keys, written, ticket)

    def on_abandon(self, ticket: int) -> None:
        """Drop an add whose last slice will never come."""
        if ticket in self._bulk:
            self._abandon(ticket, "it was abandoned")

    def _abandon(self, ticket: int, error: str) -> None:
        """Drop an add of which nobody was told yet."""
        bulk = self._bulk.pop(ticket)
        self.durable.replica.held.difference_update(bulk.new)
        self.durable.forget(bulk.new)
        self.durable.persist([], lambda _: None, abort=ticket)
        self.emit(Acked(ticket, [], error))
