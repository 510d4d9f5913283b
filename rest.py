"""When a comrade's core is at rest, so that heartbeats make no turn of it.

Reason for this file beside node.py: that says what a turn is; here is when one may be
left out. At rest, most of what a comrade costs would be turns that find nothing.

Rules. Pure (D6). What may need a turn makes one: all that is told, all deadlines, each
change of a record. In doubt there is a turn.

    news, or a deadline --> turn --> rest: heartbeats go out and come in --> news ...

Invariants
1. A heartbeat makes no turn only if its sender counts, has our queue, and nothing
   followed from it.
2. Our own make none only while no task is open, all is on disk, nobody is to be told
   of anything, and no ghost is attached; and for REST_S at most.
"""

from typing import TYPE_CHECKING, Optional

from effects import Frame, Message

if TYPE_CHECKING:
    from node import Node

REST_S = 5.0


class Rest:
    """The rest of one node."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.has_news = True  # since the last turn
        self._due: Optional[float] = None  # what the turn itself waits for
        self._until = 0.0
        self.next_at: Optional[float] = None  # when the node is to be asked again

    def note(self, message: Message, is_quiet: bool) -> None:
        """Take what the core was told; `is_quiet`: nothing followed from it."""
        node = self.node
        if is_quiet and isinstance(message, Frame) and message.kind == "HEARTBEAT":
            link = node.mesh.links.get(message.peer)
            if link is not None and link.is_at_rest(node.now):
                return
        self.has_news = True

    def is_over(self, now: float) -> bool:
        """Say whether anything is to be done, be it a heartbeat."""
        return self.has_news or (self.next_at is not None and now >= self.next_at)

    def goes_on(self, now: float) -> bool:
        """Say whether a turn would find nothing to do, now or soon."""
        node = self.node
        return (
            not self.has_news
            and now < self._until
            and (self._due is None or now < self._due)
            and not (node.queue.unfinished() or node.ghosts.own)
            and node.durable.is_clean()
            and not node.hands.is_stopping
            and all(
                link.is_at_rest(now) and not link.news
                for link in node.mesh.links.values()
            )
        )

    def begin(self, now: float, due: Optional[float]) -> None:
        """Rest behind a turn, until what that waits for."""
        self.has_news, self._due, self._until = False, due, now + REST_S

    def wait(self) -> Optional[float]:
        """Give the time of the next call of `tick`, if any is needed."""
        times = (self._due, self.node.mesh.deadline())
        self.next_at = min((t for t in times if t is not None), default=None)
        return self.next_at
