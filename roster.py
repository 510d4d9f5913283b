"""The members of the cluster as users see them: their names, and their rows.

Reason for this file beside node.py: nothing here decides anything.

Rules. Pure (D6). Reads a Mesh and a Matcher, changes nothing.
"""

from typing import Any, Dict, List, Optional, Tuple

from effects import Identity
from matching import Matcher
from mesh import Mesh
from workers import Worker


class Roster:
    """Who is there, in words and rows."""

    def __init__(self, me: Identity, mesh: Mesh, matcher: Matcher) -> None:
        self.me = me
        self.mesh = mesh
        self.matcher = matcher

    def shown_name(self, facts: Dict[str, Any]) -> str:
        """Give a node's name; name@address where nodes share one."""
        names = [other["name"] for other in self._everyone().values()]
        name = str(facts["name"])
        return name if names.count(name) < 2 else "%s@%s" % (name, facts["address"])

    def find_nodes(self, text: str) -> List[str]:
        """Give the ids of the nodes that a name, name@address or address means."""
        return [
            node_id
            for node_id, facts in sorted(self._everyone().items())
            if text in (facts["name"], facts["address"], self.shown_name(facts))
        ]

    def _everyone(self) -> Dict[str, Dict[str, Any]]:
        """Give the facts of all nodes, but for lost ones whose place another has.

        A machine that comes back with an empty disk is a new node, not two.
        """
        members, here = self.mesh.members, {self.me.node_id: self.mesh.facts}
        here.update({m.node_id: m.facts for m in self.mesh.others()})
        places = {(facts["name"], facts["address"]) for facts in here.values()}
        for node_id, member in members.items():
            place = (member.facts["name"], member.facts["address"])
            if node_id not in here and place not in places:
                here[node_id] = member.facts
        return here

    def members(self) -> List[Dict[str, Any]]:
        """Give the nodes, as `leoronic_nodes --json` shows them."""
        workers = self.matcher.workers
        rows = []
        for node_id, facts in self._everyone().items():
            state = "ready" if node_id in self.mesh.component else "lost"
            if state == "lost" and node_id in self.mesh.links:
                state = "suspect"
            member = self.mesh.members.get(node_id)
            writer = member.writer if member is not None else self.me.writer
            rows.append(self._row(facts, workers.get(writer), state))
        return sorted(rows, key=lambda row: address_order(row["address"]))

    def _row(
        self, facts: Dict[str, Any], worker: Optional[Worker], state: str
    ) -> Dict[str, Any]:
        cores, memory, storage = worker.used() if worker is not None else (0, 0, 0)
        free = facts["memory"] - memory
        if facts["free_memory"] is not None:
            free = min(free, facts["free_memory"])
        if state == "ready" and facts["draining"]:
            state = "draining"
        return {
            "address": facts["address"],
            "name": self.shown_name(facts),
            "role": facts["role"],
            "state": state,
            "cores": facts["cores"],
            "cores_free": facts["cores"] - cores,
            "memory_free": max(free, 0),
            "disk_free": max(facts["free_disk"] - storage, 0),
            "running": len(worker.runs) if worker is not None else 0,
            "tags": facts["tags"],
            "clairvoyant": None,
        }


def address_order(address: str) -> Tuple[int, ...]:
    """Order addresses as numbers: .9 before .10."""
    return tuple(int(part) for part in address.split(".") if part.isdigit())
