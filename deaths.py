"""Which processes are dead, and whose runs may be called lost.

Reason for this file beside mesh.py: that is who belongs to the component; this is what
may be concluded of those who don't, a rule of its own.

Rules. Pure (D6). Knows writers (processes, by the name that each draws at its start)
and times; of links, tasks and the component only what it is told.

Invariant.
D12 A worker is gone: at once when it said BYE stopping; GONE_EOF_S after its death (its
    end closed and a redial was refused, or another process answered); else
    GONE_SILENT_S after it dropped out of the component. Never while it is in it.
"""

from typing import Callable, Dict, Iterable, Optional, Tuple

GONE_EOF_S = 1.2  # D13's watcher needs 1 s to take the tasks of a killed node down
REDIAL_MOST_S = 2.0  # a redial refused this soon after EOF: dead since EOF
GONE_SILENT_S = 15.0  # after dropping out (4 s, a ghost 5): 20 s in all, with gossip
DEAD_GHOSTS_MAX = 10000  # remembered; the dead of a year on a small cluster
DEAD_MAX = 200  # remembered; a handful is what this is for


class Deaths:
    """Which processes are dead, and which may be called gone (D12)."""

    def __init__(self, writer: str, tell: Callable[[], None]) -> None:
        self.writer = writer
        self.tell = tell  # the others
        self.at: Dict[str, float] = {}  # writer -> when it died
        self.missed_at: Dict[str, float] = {}  # writer of a run -> first not found
        self.closed: Dict[str, Tuple[str, float]] = {}  # peer -> writer, time of EOF
        self.ghosts: Dict[str, float] = {}  # the same as `at`; GHOST tells of them

    def note(self, writer: str, at: float) -> None:
        """Know that a process is dead, and tell the others."""
        if writer not in self.at and writer != self.writer:
            self.at[writer] = at
            if len(self.at) > DEAD_MAX:
                del self.at[next(iter(self.at))]
            self.tell()

    def note_ghost(self, writer: str, at: float) -> None:
        """Know that a ghost is dead; GHOST tells the others."""
        self.ghosts[writer] = at
        if len(self.ghosts) > DEAD_GHOSTS_MAX:
            del self.ghosts[next(iter(self.ghosts))]

    def on_link(self, peer: str, writer: str, now: float) -> None:
        """A peer answers: as the process it was, or as another."""
        closed, _ = self.closed.pop(peer, (writer, now))
        if closed != writer:
            self.note(closed, now)
        if self.at.pop(writer, None) is not None:
            self.tell()

    def on_refused(self, peer: str, now: float) -> None:
        """A redial was refused; the tasks have been dying since the link's end."""
        writer, at = self.closed.pop(peer, ("", now))
        if writer:
            self.note(writer, at if now - at <= REDIAL_MOST_S else now)

    def gone_at(
        self, writer: str, present: Iterable[str], now: float
    ) -> Optional[float]:
        """Give the time when what this writer ran may be called lost, if ever."""
        if writer in present:
            self.missed_at.pop(writer, None)
            return None
        dead = self.at.get(writer, self.ghosts.get(writer))
        if dead is not None:
            return dead + GONE_EOF_S
        return self.missed_at.setdefault(writer, now) + GONE_SILENT_S
