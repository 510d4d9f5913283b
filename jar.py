"""A node's cookies: the newest, and those before it that still let nodes in.

Reason for this file beside cookie.py and links.py: how a new cookie takes the place of
another everywhere is a set of rules of its own. cookie.py is about one file, links.py
about who is linked; comrades and ghosts have the same rules.

Rules. Owns no file and no socket, reads no clock but the one it is given. Of two
cookies the one with the higher `rank` is the newer, on every node: serial, then
fingerprint. A made one is written SERIAL-HEX, so a copy of the file needs nothing
beside it; any other text has the serial 0.

How it works. leoronic_new_cookie makes the successor of the newest one here and tells
it, veiled (wire.py), over every link; who learns one tells all its other links.

    comes in  higher than the newest -> is the newest; the former counts for the grace
              lower -> counts for its grace: two were made at once, or in two halves
    a link    authenticated by another than the newest -> that peer is told the newest
              on which another than the newest came    -> the same

So who was away comes in by the old cookie while it counts, and has the new one with its
link. Two halves that made one each meet by the old one, which both have: who dials
tries each that counts, the newest first. Later the old one is refused, in words that
say what to do: copy the file. Links that are open stay: their keys are their own.
Beacons name the newest; one that names any that counts is a hint whom to dial.

The grace is counted while the node is up, whatever its wall clock says. What is left at
a start is halved, and kept so: restarts don't prolong it beyond twice the grace in all,
and what counts no more is kept as well: it never counts again.
On disk (cookie.py) this list is written before the cookie's file. A start whose file
has one of the list takes the newest of it: so killed between the two, or where the file
can't be written, nothing is lost. A file with any other cookie was put there by hand:
it counts, and the list is forgotten; a node that was moved must not join two clusters.

Invariants.
1. While a process runs, its newest never gets lower; all that are linked have the same.
2. A stranger is held against the one cookie that he names: he has no second try.
3. COOKIES_MAX bounds what is kept, SERIALS_MAX what a mad peer can use up at once.

Not done: keeping the new one from who has the old one. He can join, so he is told; or
listen. README says what to do about a cookie that got out.
"""

import os
import re
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from wire import fingerprint

RANDOM_BYTES = 32
COOKIES_MAX = 8  # the newest, and those before it
SERIALS_MAX = 1000  # a peer may be ahead by so many
GRACE_MOST_S = 366 * 86400.0
MADE = re.compile(rb"([1-9][0-9]{0,8})-[0-9a-f]{64}\Z")

Kept = Sequence[Tuple[float, bytes]]  # seconds that it counts, cookie; the newest first
Rank = Tuple[int, str]


class Seams(NamedTuple):
    """What a role does for this file."""

    clock: Callable[[], float]
    peers: Callable[[], List[str]]  # all links
    send: Callable[[str, str, Dict[str, Any]], None]  # peer, kind, fields
    save: Callable[[List[Tuple[float, bytes]]], None]  # `on_saved` follows
    tell: Callable[[str], None]


def rank(cookie: bytes) -> Rank:
    """Give what orders cookies, the same on every node; it tells nobody the secret."""
    made = MADE.match(cookie)
    return int(made.group(1)) if made else 0, fingerprint(cookie).hex()


class Jar:
    """The cookies of one node."""

    def __init__(self, secret: bytes, kept: Kept, seams: Seams) -> None:
        """`secret` is what the file has, `kept` what `save` was given once."""
        self._seams = seams
        self.problem = ""  # why the newest can't be kept
        self._saving = 0  # how often `save` hasn't been answered
        self.newest = secret
        self._until: Dict[bytes, float] = {}  # those before it, the last one first
        self._due: Optional[float] = None  # when the next of them ceases to count
        self._is_kept = not kept
        now = seams.clock()
        if secret in [cookie for _, cookie in kept]:
            self.newest = kept[0][1]
            self._until = {cookie: now + left / 2 for left, cookie in kept[1:]}

    def begin(self) -> None:
        """Keep what is left, now that `save` can be called."""
        if not self._is_kept:
            self._save()

    def tick(self, now: float) -> Optional[float]:
        """Keep it that one counts no more; give the time of the next."""
        if self._due is not None and now >= self._due:
            self._save()
        return self._due

    def counting(self) -> Dict[bytes, bytes]:
        """Give what lets nodes in now, by fingerprint, the newest first."""
        now = self._seams.clock()
        former = [cookie for cookie, until in self._until.items() if now < until]
        return {fingerprint(cookie): cookie for cookie in (self.newest, *former)}

    def clusters(self) -> List[bytes]:
        """Give the fingerprints of those."""
        return list(self.counting())

    def after(self, tried: bytes) -> bytes:
        """Give the next cookie for whoever refused this one; empty: none is left."""
        cookies = list(self.counting().values())
        at = cookies.index(tried) + 1 if tried in cookies else len(cookies)
        return cookies[at] if at < len(cookies) else b""

    @property
    def grace(self) -> float:
        """How long one before the newest lets a node in yet, in seconds."""
        now = self._seams.clock()
        return max([now, *self._until.values()]) - now

    def health(self) -> Dict[str, Any]:
        """Give what leoronic_doctor asks: no secret; no cookie while that is saved."""
        newest = None if self._saving else list(rank(self.newest))
        return {"cookie": newest, "grace": self.grace, "unkept": self.problem}

    def on_saved(self, problem: Any, error: Any) -> None:
        """Note what `save` came to: a place that can't be written, or an error."""
        self._saving -= 1
        self.problem = str(error or problem or "")
        if self.problem:
            self._seams.tell("the newest cookie isn't kept; " + self.problem)

    # --- a new one ----------------------------------------------------------------

    def succeed(self, grace: float) -> Rank:
        """Make a new cookie and tell it to all; give its rank."""
        serial, _ = rank(self.newest)
        made = b"%d-%s" % (serial + 1, os.urandom(RANDOM_BYTES).hex().encode("ascii"))
        self._take(made, grace)
        return rank(self.newest)

    def on_link(self, peer: str, cookie: bytes) -> None:
        """A peer has proved that it has a cookie."""
        if cookie != self.newest:
            self._tell(peer)

    def on_frame(self, peer: str, fields: Mapping[str, Any]) -> None:
        """Take a NEW_COOKIE; TypeError, ValueError and others: it is none."""
        cookie, grace = str(fields["cookie"]).encode("ascii"), float(fields["grace"])
        if not MADE.match(cookie) or not 0 <= grace <= GRACE_MOST_S:
            raise ValueError("no cookie that a node has made")
        if rank(cookie)[0] > rank(self.newest)[0] + SERIALS_MAX:
            raise ValueError("a cookie from far ahead")
        self._take(cookie, grace, peer)
        if cookie != self.newest:
            self._tell(peer)

    def _take(self, cookie: bytes, grace: float, source: str = "") -> None:
        if cookie == self.newest or cookie in self._until:
            return
        until = self._seams.clock() + grace
        is_newer = rank(cookie) > rank(self.newest)
        former = self.newest if is_newer else cookie
        if is_newer:
            self.newest = cookie
            self._seams.tell("the cluster has a new cookie")
        latest = [(former, until), *self._until.items()]
        self._until = dict(latest[: COOKIES_MAX - 1])
        self._save()
        for peer in self._seams.peers() if is_newer else ():
            if peer != source:
                self._tell(peer)

    def _tell(self, peer: str) -> None:
        fields = {"cookie": self.newest.decode("ascii"), "grace": self.grace}
        self._seams.send(peer, "NEW_COOKIE", fields)

    def _save(self) -> None:
        now = self._seams.clock()
        self._due = min((t for t in self._until.values() if t > now), default=None)
        left = [(max(t - now, 0.0), cookie) for cookie, t in self._until.items()]
        self._saving += 1
        self._seams.save([(0.0, self.newest), *left])
