"""Where the ghosts of a cluster are, as every comrade knows it, and what each offers.

Reason for this file beside ghosts.py: that is what a clairvoyant does for its own
ghosts; this is the same for all comrades, and about all ghosts.

Rules. Pure (D6). Keeps GHOST facts, gossips them, and has a Worker for each who is
present. Facts are written by a ghost's clairvoyant alone (`author`).

How it works. The greatest (session, seq) of a ghost counts: it counts its sessions, one
each ATTACH, its clairvoyant what it writes. A ghost is *present* while its newest facts
say that it is here, and the comrade that they name is in the component.

Invariants. Facts go over a link behind records with living runs, as those of members
do. KNOWN_MAX are known at once; who was away for an hour is forgotten.
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, Set, Tuple

from deaths import GONE_SILENT_S
from facts import Facts, next_number
from mesh import MISSING_S
from workers import Worker

if TYPE_CHECKING:  # The node makes it; only the hint looks back.
    from node import Node

KNOWN_MAX = 1000  # ghosts known at once
FORGET_S = 60.0  # between two looks for whom to forget
REPLACED_S = 5.0  # who came back as another is listed so long


class Whereabouts:
    """All ghosts, as one comrade knows them."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.mesh = node.mesh
        self.known: Dict[str, Facts] = {}  # writer -> the newest facts
        self.present: Set[str] = set()  # writers
        self._left_at: Dict[str, float] = {}  # writer -> when it was present last
        self._news: Dict[str, Dict[str, None]] = {}  # peer -> writers to tell of
        self._component: Set[str] = set()  # as `look_around` saw it
        self._forget_at = 0.0

    # --- facts ----------------------------------------------------------------------

    def author(self, writer: str, now: float, **changed: Any) -> None:
        """Write facts of a ghost, as its clairvoyant; they are gossiped."""
        known = self.known.get(writer)
        facts: Facts = dict(
            known or {"id": writer, "seq": 0, "session": 0, "offer": {}}
        )
        facts.update(changed)
        facts["at"] = self.mesh.node_id
        if facts != known:
            facts["seq"] = next_number(facts["seq"])
            self.take(facts, "", now)

    def are_news(self, facts: Facts) -> bool:
        """Say whether facts are newer than what is known."""
        known = self.known.get(facts["id"])
        return known is None or _age(facts) > _age(known)

    def take(self, facts: Facts, source: str, now: float) -> None:
        """Know facts, and pass them on to whom their sender doesn't tell them."""
        writer = facts["id"]
        if writer not in self.known and len(self.known) >= KNOWN_MAX:
            self._drop_one()
        self.known[writer] = facts
        for peer, news in self._news.items():
            if peer != source and not self.mesh.covers(source, peer):
                news[writer] = None
        if facts["state"] == "here":
            self.mesh.deaths.ghosts.pop(writer, None)
        elif facts["state"] in ("dead", "replaced"):
            self.mesh.deaths.note_ghost(
                writer, self.mesh.deaths.ghosts.get(writer, now)
            )
        self._place(writer, now)

    def on_link(self, peer: str) -> None:
        """A new link to a comrade: it is told of all ghosts."""
        self._news[peer] = dict.fromkeys(sorted(self.known))

    def tell_all(self) -> None:
        """Tell all comrades of all ghosts, as facts may not have been passed on."""
        for peer in self._news:
            self.on_link(peer)

    def on_link_lost(self, peer: str) -> None:
        """A link to a comrade is gone."""
        self._news.pop(peer, None)

    def gossip(self, may_send: Callable[[str], bool]) -> None:
        """Send news of ghosts on each link that has nothing more urgent to send."""
        for peer, news in sorted(self._news.items()):
            if news and may_send(peer):
                for writer in news:
                    if writer in self.known:
                        self.node.send(peer, "GHOST", self.known[writer])
                news.clear()

    # --- who is present -----------------------------------------------------------

    def look_around(self, now: float) -> None:
        """Find out anew who is present if the component changed."""
        if self.mesh.component != self._component:
            self._component = self.mesh.component
            for writer in sorted(self.known):
                self._place(writer, now)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_S
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop who was away for so long, or has come back as another."""
        for writer, left in list(self._left_at.items()):
            is_replaced = self.known[writer]["state"] == "replaced"
            if now - left >= (REPLACED_S if is_replaced else MISSING_S):
                del self._left_at[writer], self.known[writer]

    def _drop_one(self) -> None:
        """Make room: forget who has been away for longest, if anybody is."""
        if self._left_at:
            writer = min(self._left_at, key=lambda w: self._left_at[w])
            del self._left_at[writer], self.known[writer]

    def _place(self, writer: str, now: float) -> None:
        """Let a ghost be a worker, or not."""
        facts = self.known[writer]
        if facts["state"] == "here" and facts["at"] in self.mesh.component:
            self.present.add(writer)
            self._left_at.pop(writer, None)
            self._employ(writer, facts["offer"])
        else:
            self.present.discard(writer)
            self._left_at.setdefault(writer, now)
            self.node.matcher.detach(writer)
        self.node.roster.name_own()

    def _employ(self, writer: str, offer: Facts) -> None:
        matcher = self.node.matcher
        worker = matcher.workers.get(writer)
        if worker is None:
            worker = Worker(writer, "", 0, 0)
            matcher.attach(worker)
        worker.name = self.node.roster.ghost_name(writer)
        worker.cores, worker.memory = offer["cores"], offer["memory"]
        worker.free_memory, worker.free_disk = offer["free_memory"], offer["free_disk"]
        worker.draining = offer["draining"]
        matcher.facts(worker, frozenset(offer["holds"]))

    def state_of(self, writer: str) -> str:
        """Give the state of a ghost in a user's word; '' for who is none."""
        facts = self.known.get(writer)
        if facts is None or writer in self.present:
            return "ready" if facts is not None else ""
        may_come = facts["state"] in ("here", "away")
        age = self.node.now - self._left_at[writer]
        return "suspect" if may_come and age < GONE_SILENT_S else "lost"

    def place_of(self, target: str) -> str:
        """Give the node to send to, to reach a node or a ghost."""
        facts = self.known.get(target)
        return str(facts["at"]) if facts is not None else target


def _age(facts: Facts) -> Tuple[int, int]:
    return (facts["session"], facts["seq"])
