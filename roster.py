"""The members of the cluster as users see them: their names, and their rows.

Reason for this file beside node.py: nothing here decides anything.

Rules. Pure (D6). Reads a Mesh and a Matcher, changes nothing.
"""

from typing import Any, Dict, List, Optional, Tuple

from effects import Identity
from facts import Facts
from matching import Matcher
from mesh import Mesh
from whereabouts import Whereabouts
from workers import Worker


class Roster:
    """Who is there, in words and rows."""

    def __init__(
        self, me: Identity, mesh: Mesh, matcher: Matcher, ghosts: Whereabouts
    ) -> None:
        self.me = me
        self.mesh = mesh
        self.matcher = matcher
        self.ghosts = ghosts

    def shown_name(self, facts: Facts) -> str:
        """Give a comrade's name; name@address where nodes share one."""
        names = [other["name"] for other in self._everyone().values()]
        name = str(facts["name"])
        return name if names.count(name) < 2 else "%s@%s" % (name, facts["address"])

    def name_own(self) -> None:
        """Know by which name this node is shown, now that others may share it."""
        own = self.matcher.workers[self.me.writer]
        own.name = self.shown_name(self.mesh.facts)

    def ghost_name(self, writer: str) -> str:
        """Give a ghost's name, as a comrade's; told apart on one machine by its id."""
        offer = self.ghosts.known[writer]["offer"]
        name, place = str(offer["name"]), (offer["name"], offer["address"])
        others = [facts for key, facts in self._everyone().items() if key != writer]
        if not any(facts["name"] == name for facts in others):
            return name
        name += "@%s" % offer["address"]
        if any((facts["name"], facts["address"]) == place for facts in others):
            name += ".%s" % writer[:4]
        return name

    def _name_of(self, node_id: str, facts: Facts) -> str:
        is_ghost = node_id in self.ghosts.known
        return self.ghost_name(node_id) if is_ghost else self.shown_name(facts)

    def find_nodes(self, text: str) -> List[str]:
        """Give the ids of the nodes that a name, name@address or address means."""
        everyone = sorted(self._everyone().items())
        exact = [i for i, facts in everyone if text == self._name_of(i, facts)]
        return exact or [
            node_id
            for node_id, facts in everyone
            if text in (facts["name"], facts["address"])
        ]

    def _everyone(self) -> Dict[str, Facts]:
        """Give what all nodes offer, but for lost ones whose place another has.

        A machine that comes back with an empty disk is a new node, not two; so is a
        ghost that was started anew.
        """
        ghosts = self.ghosts
        members, here = self.mesh.members, {self.me.node_id: self.mesh.facts}
        here.update({m.node_id: m.facts for m in self.mesh.others()})
        here.update({i: ghosts.known[i]["offer"] for i in sorted(ghosts.present)})
        places = {(facts["name"], facts["address"]) for facts in here.values()}
        away = [(i, member.facts) for i, member in members.items()]
        away += [
            (i, facts["offer"])
            for i, facts in ghosts.known.items()
            if facts["state"] != "replaced"
        ]
        for node_id, facts in away:
            place = (facts["name"], facts["address"])
            if node_id not in here and place not in places:
                here[node_id] = facts
        return here

    def members(self) -> List[Dict[str, Any]]:
        """Give the nodes, as `leoronic_nodes --json` shows them."""
        workers = self.matcher.workers
        rows = []
        for node_id, facts in self._everyone().items():
            writer, state = node_id, self.ghosts.state_of(node_id)
            if not state:
                member = self.mesh.members.get(node_id)
                writer = member.writer if member is not None else self.me.writer
                state = self._state_of(node_id)
            row = self._row(facts, workers.get(writer), state)
            row["name"] = self._name_of(node_id, facts)
            row["clairvoyant"] = self._clairvoyant_of(node_id)
            row["role"] = "ghost" if node_id in self.ghosts.known else "comrade"
            rows.append(row)
        return sorted(
            rows, key=lambda row: (address_order(row["address"]), row["role"])
        )

    def places(self) -> List[List[Any]]:
        """Give each node's id, name, state, tags, address and role, as `members`."""
        found = []
        for node_id, facts in self._everyone().items():
            state = self.ghosts.state_of(node_id) or self._state_of(node_id)
            if state == "ready" and facts["draining"]:
                state = "draining"
            role = "ghost" if node_id in self.ghosts.known else "comrade"
            row = [node_id, self._name_of(node_id, facts), state]
            found.append([*row, list(facts["tags"]), facts["address"], role])
        return sorted(found, key=lambda row: (address_order(row[4]), row[5], row[0]))

    def node_of(self, writer: str) -> str:
        """Give the id of the node with that writer; a ghost's id is its writer."""
        if writer == self.me.writer:
            return self.me.node_id
        members = self.mesh.members.items()
        return next((i for i, member in members if member.writer == writer), writer)

    def seen(self, writer: str, name: str) -> Tuple[str, str]:
        """Give a node's name and state by its writer; of one started anew by its name.

        The state is '' if it isn't in the list any more, or never was.
        """
        everyone, node_id = self._everyone(), self.node_of(writer)
        ids = [node_id] if node_id in everyone else self.find_nodes(name)
        states = {i: self.ghosts.state_of(i) or self._state_of(i) for i in ids}
        if not states:
            return name, ""
        node_id = min(ids, key=lambda i: states[i])  # of one name: a lost one first
        return self._name_of(node_id, everyone[node_id]), states[node_id]

    def _state_of(self, node_id: str) -> str:
        if node_id in self.mesh.component:
            return "ready"
        return "suspect" if node_id in self.mesh.links else "lost"

    def _clairvoyant_of(self, writer: str) -> Optional[str]:
        facts = self.ghosts.known.get(writer)
        if facts is None or facts["state"] != "here":
            return None
        if facts["at"] == self.me.node_id:
            return self.shown_name(self.mesh.facts)
        member = self.mesh.members.get(facts["at"])
        return self.shown_name(member.facts) if member is not None else None

    def _row(
        self, facts: Facts, worker: Optional[Worker], state: str
    ) -> Dict[str, Any]:
        cores, memory, storage = worker.used() if worker is not None else (0, 0, 0)
        free = facts["memory"] - memory
        if facts["free_memory"] is not None:
            free = min(free, facts["free_memory"])
        if state == "ready" and facts["draining"]:
            state = "draining"
        return {
            "address": facts["address"],
            "name": facts["name"],
            "role": "",
            "state": state,
            "cores": facts["cores"],
            "cores_free": max(facts["cores"] - cores, 0),  # some may be ahead
            "memory_free": max(free, 0),
            "disk_free": max(facts["free_disk"] - storage, 0),
            "running": min(len(worker.runs), facts["cores"]) if worker else 0,
            "tags": facts["tags"],
            "clairvoyant": None,
        }


def address_order(address: str) -> Tuple[int, ...]:
    """Order addresses as numbers: .9 before .10."""
    return tuple(int(part) for part in address.split(".") if part.isdigit())
