"""Who is there, who hears whom, who coordinates, who is gone.

Reason for this file beside node.py: membership and failure detection are a concern of
their own, with rules that must be read in one place.

Rules. Pure (D6). Knows links, members and their claims; nothing of tasks. Frames leave
through `send(peer, kind, fields)`, which the node turns into effects.

How it works. A *link* is an authenticated connection to a peer. Each second it carries
a heartbeat with a number and the last number heard, so an end knows when it is heard.
A link is *two-way* while both hold and its first part is exchanged (replica.py). Each
comrade gossips its *facts* (MEMBER, flooded, the newest of each node kept), among them
the list of its two-way links. The *component* is who can be reached over links that
both ends list; gossip makes it the same for all in it.

    coordinator = the claimant, if any has claimed (taken a term with its first grant):
                  the one with the most members before they met, then the lowest id;
                  else the lowest id that is ready (has reconciled); else the lowest

Views differ while gossip is under way, so to be the coordinator isn't enough: each
gossips whom it *follows*, and a coordinator grants only while all of its component
follow it. Facts go over a link behind the records with living runs (`gossip`), and who
follows another has stopped granting; so when all follow me I know every grant of each.
What they said before they were away is no answer: whose component grows gives out a new
*call*, a number, and who follows it says which call it heeds. Taking over and healing
need no other barrier, and no time-out: a member that says nothing drops out of the
component. (`is_frozen` is for the moment before somebody is in it: the peer of a new
link, or who is known only from what a member says.)
In a component where each is linked with each nobody passes on what another said, be it
records or facts (`covers`): who said it says it to all, in that order. Before a word is
said of one of its links having gone, all living runs are sent to all, and all facts.
All this holds for what a new link begins with. A link that drops out and works again
still brings what its ends said before either granted on its own: so it never counts
again, but is closed, unread if it was silent; the next one begins with a first part.

Invariants.
D2  Of two members of one component, at most one may grant at any moment, and it knows
    all that the others granted.
D3  One coordinator a component, once gossip has settled; a loser drops its claim.
D4  Times decide how soon something is noticed, never what is true.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from blame import Blame
from component import first_hop, is_whole, loose_ends, reachable
from deaths import GONE_EOF_S, Deaths
from facts import Facts, check_facts
from record import TERM_MAX

HEARTBEAT_S = 1.0
# Not two-way: without a valid frame for this long. A heartbeat's pause, a stop that is
# none yet (PAUSE_S) and a slow frame must fit in: or it looks like a partition (D2).
SUSPECT_S = 4.0
DEAD_S = 5.0  # not two-way: unheard by the peer for so long; it is closed by then
PAUSE_S = 2.5  # a loop gap this long means that this process itself was stopped
FREEZE_S = 3.0  # granting waits for who is about to join this long at most
FLAP_S = 60.0  # a link that failed less than this ago ...
FLAP_HOLD_S = 1.7  # ... must hold this long before it counts: frozen 2 s, with gossip
BUSY_DIFFERS = 1 / 16  # of a heartbeat, that roots differ while the queue changes
ROOT_DIFFERS = 2  # heartbeats with another root before reconciling again
DOUBTED_DIFFERS = ROOT_DIFFERS - BUSY_DIFFERS  # the next that differs is enough
MISSING_S = 3600.0  # a lost member is listed, and counted as missing, this long
FACTS_MAX = 200  # members known at once; a handful is what this is for
DEAD_TOLD = 20  # dead writers that are gossiped


class Member(NamedTuple):
    """A node as it describes itself; `links` are node ids, claim is [term, size]."""

    node_id: str
    writer: str
    starts: int
    seq: int
    facts: Facts

    @property
    def age(self) -> Tuple[int, str, int]:
        """What tells newer facts from older ones."""
        return (self.starts, self.writer, self.seq)


class Link:
    """An authenticated connection, as the core sees it."""

    def __init__(self, peer: str, writer: str, now: float) -> None:
        self.peer = peer
        self.writer = writer
        self.up_at = self.heard_at = now
        self.sent = 0  # heartbeats
        self.sent_at: Dict[int, float] = {}  # the last few
        self.heard = 0  # the number of their last heartbeat
        self.echoed_at = now  # when the last of ours that they heard was sent
        self.hold_until = now  # a link that flaps must hold this long
        self.gave_first = False
        self.got_first = False
        self.was_doubted = False  # and counts no more, whatever comes
        self.root_differs = 0.0  # heartbeats in a row
        self.version = 0  # of the queue at the last of them
        self.news: Dict[str, None] = {}  # members whose facts are to be sent

    def is_settled(self) -> bool:
        """Say whether both sides have merged the first part of the other."""
        return self.gave_first and self.got_first

    def is_two_way(self, now: float) -> bool:
        """Say whether it counts as a link of the component."""
        is_sure = self.is_settled() and not self.was_doubted
        return is_sure and self.hold_until <= now < self.doubtful_at()

    def is_at_rest(self, now: float) -> bool:
        """Say whether it counts, and the queue at its other end is ours."""
        return self.is_two_way(now) and self.root_differs == 0

    def doubtful_at(self) -> float:
        """Give the time when it stops being two-way, if nothing comes."""
        return min(self.heard_at + SUSPECT_S, self.echoed_at + DEAD_S)

    def note_doubt(self, now: float) -> None:
        """Remember that it dropped out of the component."""
        self.was_doubted |= self.is_settled() and now >= self.doubtful_at()

    def has_returned(self, now: float) -> bool:
        """Say whether it dropped out and works again."""
        return self.was_doubted and now < self.doubtful_at()

    def has_stalled(self, now: float) -> bool:
        """Say whether it dropped out for want of frames; those that come are old."""
        return self.was_doubted and now >= self.heard_at + SUSPECT_S


class Mesh:
    """The membership of one comrade."""

    def __init__(
        self,
        node_id: str,
        writer: str,
        starts: int,
        send: Callable[[str, str, Facts], None],
        on_uncovered: Callable[[], None] = lambda: None,
    ) -> None:
        self.node_id = node_id
        self.writer = writer
        self.starts = starts
        self.send = send
        self.on_uncovered = on_uncovered
        self.links: Dict[str, Link] = {}
        self.members: Dict[str, Member] = {}
        self.facts: Facts = {"links": [], "claim": None, "ready": False, "dead": []}
        self.facts.update(follows=node_id, term=0, stopping=False)
        self.facts.update(call=0, heeds=[writer, 0])
        self.component: Set[str] = {node_id}
        self.whole: Set[str] = set()  # the component, if each is linked with each
        self.left_at: Dict[str, float] = {}  # node -> when it dropped out
        self.failed_at: Dict[str, float] = {}  # peer -> when its link failed last
        self.deaths = Deaths(writer, self._tell_dead)
        self.blame = Blame()
        self.term = 0  # the highest known
        self.seq = 0
        self._due = 0.0  # the next heartbeat
        self._loose: Dict[Tuple[str, str], float] = {}  # ends of links -> since when
        self._refresh_at: Optional[float] = None  # when a link may change; 0: now
        self._refreshed = self._seen = 0.0

    # --- what happens -------------------------------------------------------------

    def on_link(self, peer: str, writer: str, now: float) -> Link:
        """Take a new link; what was known of an older process of the peer is over."""
        link = self.links[peer] = Link(peer, writer, now)
        known = self.members.get(peer)
        if known is not None and known.writer != writer:
            self.deaths.note(known.writer, now)
        elif now - self.failed_at.get(peer, -FLAP_S) < FLAP_S:
            link.hold_until = now + FLAP_HOLD_S  # a new process doesn't flap
        self.deaths.on_link(peer, writer, now)
        link.news = dict.fromkeys(sorted([*self.members, self.node_id]))
        self._due = now
        return link

    def on_link_lost(self, peer: str, why: str, now: float) -> None:
        """A link is gone: `stopping` and `closing` were said, the rest were not."""
        link = self.links.pop(peer, None)
        if link is None:
            return
        self.blame.on_link_lost(peer, link.is_settled())
        if why == "stopping":
            self.deaths.note(link.writer, now - GONE_EOF_S)
        elif why != "closing":
            self.failed_at[peer] = now
            if why == "eof":
                self.deaths.closed[peer] = (link.writer, now)
        self.refresh(now)

    def learn_term(self, term: int) -> None:
        """Know a term that somebody has seen: ours are to be above it."""
        if self.term < term <= TERM_MAX:
            self.term = term
            self.tell(term=term)

    def on_refused(self, peer: str, now: float) -> None:
        """A redial was refused: whose link had closed with EOF is dead."""
        self.deaths.on_refused(peer, now)

    def _tell_dead(self) -> None:
        self.tell(dead=sorted(list(self.deaths.at)[-DEAD_TOLD:]))

    def on_heartbeat(self, link: Link, fields: Facts, root: str, version: int) -> None:
        """Take a heartbeat: their number, the last of ours that they heard, their root.

        While our queue changes roots differ anyway; that counts for little. A heartbeat
        passes what waits before it: while more of theirs is to come it has no root.
        """
        link.heard = max(link.heard, fields["n"])
        link.echoed_at = link.sent_at.get(fields["heard"], link.echoed_at)
        is_resting, link.version = link.version == version, version
        if not fields["root"]:
            link.root_differs = max(link.root_differs, BUSY_DIFFERS)
        elif fields["root"] == root:
            link.root_differs = 0.0
        else:
            link.root_differs += 1 if is_resting else BUSY_DIFFERS

    def on_member(self, source: str, facts: Facts, now: float) -> bool:
        """Take a node's facts; pass them on and say so if they are news."""
        check_facts(facts)
        member = Member(
            facts["id"], facts["writer"], facts["starts"], facts["seq"], facts
        )
        known = self.members.get(member.node_id)
        if member.node_id == self.node_id or not self._is_news(known, member):
            return False
        if known is None and len(self.members) >= FACTS_MAX:
            return False
        if known is not None and known.writer != member.writer:
            self.deaths.note(known.writer, now)
        self.members[member.node_id] = member
        for peer, link in self.links.items():
            if peer != source and not self.covers(source, peer):
                link.news[member.node_id] = None
        linked = {link.writer for link in self.links.values()}
        for writer in facts["dead"]:
            if writer not in linked:
                self.deaths.note(writer, now)
        self.term = max(self.term, facts["term"])
        self.refresh(now)
        return True

    def _is_news(self, known: Optional[Member], member: Member) -> bool:
        # A node restored from an old backup counts its starts anew: so who proved to
        # be the node (a link) wins over any other process of it, and the dead lose.
        link = self.links.get(member.node_id)
        if link is not None and link.writer != member.writer:
            return False
        if known is None or (link is not None and known.writer != link.writer):
            return True
        x, y = (one.writer not in self.deaths.at for one in (known, member))
        return (y, member.age) > (x, known.age)

    def tell(self, **facts: Any) -> None:
        """Change facts of this node; what is new is gossiped."""
        if any(self.facts.get(name) != value for name, value in facts.items()):
            self.facts = dict(self.facts, **facts)
            self.seq += 1
            self._refresh_at = 0.0  # what follows from it
            for link in self.links.values():
                link.news[self.node_id] = None

    # --- time ---------------------------------------------------------------------

    def notice_pause(self, now: float) -> bool:
        """Say whether this process was stopped since it was here last.

        To be asked before anything is done: what came in meanwhile is out of date.
        """
        gap, self._seen = now - self._seen, now
        return bool(self.links) and gap > PAUSE_S  # linked, it is here each second

    def tick(
        self, now: float, root: Callable[[], int], is_sent: Callable[[str], bool]
    ) -> None:
        """Send heartbeats when due, with the root if all is sent; watch links."""
        is_due = self.links and now >= self._due
        if is_due:
            self._due = now + HEARTBEAT_S
            text = "%x" % root()
            for link in self.links.values():
                self._beat(link, text if is_sent(link.peer) else "", now)
        soon = now + HEARTBEAT_S if is_due else now  # a look now saves a turn then
        if self._refresh_at and soon >= self._refresh_at:
            self._refresh_at = self._next_change(self._refreshed)  # frames put it off
        if self._refresh_at is not None and now >= self._refresh_at:
            self.refresh(now)

    def _beat(self, link: Link, root: str, now: float) -> None:
        link.sent += 1
        link.sent_at[link.sent] = now
        link.sent_at.pop(link.sent - 8, None)
        fields = {"n": link.sent, "heard": link.heard, "root": root}
        self.send(link.peer, "HEARTBEAT", fields)

    def deadline(self) -> Optional[float]:
        """Give the time of the next heartbeat, or when a link or member times out."""
        if not self.links:
            return self._refresh_at
        return min(self._due, self._refresh_at or self._due)

    def dead_links(self, now: float) -> List[str]:
        """Give the peers that were silent for too long."""
        return [p for p, link in self.links.items() if now - link.heard_at >= DEAD_S]

    def gossip(self, may_send: Callable[[str], bool]) -> None:
        """Send news of members on each link that has nothing more urgent to send."""
        for peer, link in sorted(self.links.items()):
            if link.news and may_send(peer):
                news, link.news = link.news, {}
                if news.pop(self.node_id, self) is None:
                    self._tell_of(self.node_id, peer)  # First: it says who is dead.
                for node_id in sorted(news):
                    self._tell_of(node_id, peer)

    def _tell_of(self, node_id: str, peer: str) -> None:
        if node_id == self.node_id:
            me = {"id": node_id, "writer": self.writer}
            facts = dict(self.facts, starts=self.starts, seq=self.seq, **me)
            self.send(peer, "MEMBER", facts)
        elif node_id in self.members and node_id != peer:
            self.send(peer, "MEMBER", self.members[node_id].facts)

    # --- the component ------------------------------------------------------------

    def refresh(self, now: float) -> None:
        """Find out anew whom we hear, who is in the component, whom we follow."""
        self._refreshed = now
        for link in self.links.values():
            link.note_doubt(now)
        mine = [p for p, link in self.links.items() if link.is_two_way(now)]
        self.tell(links=sorted(mine))
        graph, before = self._graph(), self.component
        self.component = reachable(self.node_id, graph)
        whole, self.whole = self.whole, set()
        if is_whole(self.component, graph):
            self.whole = self.component
        if not whole <= self.whole:
            self._uncover()
        if not self.component <= before:
            self.tell(call=self.facts["call"] + 1)
        ends = loose_ends(self.component, graph)
        self._loose = {end: self._loose.get(end, now) for end in ends}
        away = [i for i in [*self.members, *self.left_at] if i not in self.component]
        self.left_at = {node_id: self.left_at.get(node_id, now) for node_id in away}
        for node_id, left in list(self.left_at.items()):
            if now - left >= MISSING_S:
                del self.left_at[node_id]
                self.members.pop(node_id, None)
        self._follow()
        self._refresh_at = self._next_change(now)

    def _uncover(self) -> None:
        """Make good for what wasn't passed on; the next heartbeats compare the rest."""
        for link in self.links.values():
            link.news.update(dict.fromkeys(sorted([*self.members, self.node_id])))
            link.root_differs = max(link.root_differs, DOUBTED_DIFFERS)
        self.on_uncovered()

    def covers(self, source: str, peer: str) -> bool:
        """Say whether a peer hears from the source itself what that has told us."""
        return source in self.whole and peer in self.whole

    def _follow(self) -> None:
        first, claim = self.coordinator(), self.facts["claim"]
        if first != self.node_id:
            claim = None
        elif claim and len(self.claims()) == 1:
            claim = [claim[0], len(self.component)]
        other = self.members.get(first)
        heeds = [other.writer, other.facts["call"]] if other else self._own_call()
        self.tell(follows=first, heeds=heeds, claim=claim, term=self.term)

    def _next_change(self, since: float) -> Optional[float]:
        times = [left + MISSING_S for left in self.left_at.values()]
        times += [at + FREEZE_S for at in self._loose.values()]
        for link in self.links.values():
            times += [link.hold_until, link.doubtful_at(), link.heard_at + DEAD_S]
        return min((t for t in times if t > since), default=None)

    def _graph(self) -> Dict[str, List[str]]:
        graph = {i: member.facts["links"] for i, member in self.members.items()}
        graph[self.node_id] = self.facts["links"]
        return graph

    def hop(self, target: str) -> Optional[str]:
        """Give the peer over which a member of the component is reached."""
        hop = first_hop(self.node_id, target, self._graph())
        return hop or (target if target in self.links else None)

    def others(self) -> List[Member]:
        """Give the other members of the component."""
        ids = sorted(self.component - {self.node_id})
        return [self.members[i] for i in ids if i in self.members]

    def missing(self, now: float) -> Set[str]:
        """Give the members lost less than an hour ago."""
        return {i for i, left in self.left_at.items() if now - left < MISSING_S}

    def maybe_apart(self) -> Set[str]:
        """Give the missing members that may live on the other side of a split."""
        return {
            node_id
            for node_id in self.left_at
            if node_id in self.members
            and self.members[node_id].writer not in self.deaths.at
            and not self.members[node_id].facts.get("stopping")
        }

    # --- coordinating -------------------------------------------------------------

    def claims(self) -> Dict[str, List[int]]:
        """Give the claims to coordinate in this component."""
        claims = {m.node_id: m.facts["claim"] for m in self.others()}
        claims[self.node_id] = self.facts["claim"]
        return {node_id: claim for node_id, claim in claims.items() if claim}

    def coordinator(self) -> str:
        """Give the node that grants in this component."""
        claims = self.claims()
        if claims:
            return min(claims, key=lambda i: (-claims[i][1], i))
        facts = {m.node_id: m.facts for m in self.others()}
        facts[self.node_id] = self.facts
        stay = [i for i in facts if not facts[i]["stopping"]] or list(facts)
        return min([i for i in stay if facts[i]["ready"]] or stay)

    def may_grant(self, now: float) -> bool:
        """Say whether this node grants for its component now."""
        return (
            self.coordinator() == self.node_id
            and all(self._heeds_me(m.facts) for m in self.others())
            and not self.is_frozen(now)
        )

    def _heeds_me(self, facts: Facts) -> bool:
        mine = (self._own_call(), self.node_id)
        return (facts["heeds"], facts["follows"]) == mine

    def _own_call(self) -> List[Any]:
        return [self.writer, self.facts["call"]]

    def claim(self) -> int:
        """Take a term for granting; one above all known unless we hold it already."""
        claim = self.facts["claim"]
        if not claim or claim[0] < self.term:
            self.term = min(self.term + 1, TERM_MAX)
            self.tell(claim=[self.term, len(self.component)], term=self.term)
        return self.term

    def is_frozen(self, now: float) -> bool:
        """Say whether somebody is about to join, so nothing may be granted.

        Until the peer of a new link is in the component: settled alone isn't enough,
        its facts, and with them whom it follows, come a moment later. The same for the
        peer that a member names.
        """
        if any(now - since < FREEZE_S for since in self._loose.values()):
            return True
        return any(
            now - link.up_at < FREEZE_S
            and self.blame.may_hold_up(link.peer)
            and not (link.is_settled() and link.peer in self.component)
            for link in self.links.values()
        )

    def writers(self) -> Set[str]:
        """Give the writers of the component's comrades."""
        return {self.writer, *(member.writer for member in self.others())}
