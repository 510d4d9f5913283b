"""Which comrade a ghost goes to: the first choice, and where to when it is lost.

Reason for this file beside ghostnode.py: the seed's words about it are a rule of its
own, to be read, and tested, in one place.

Rules. Pure (D6). Knows addresses, no nodes. Says whom to dial and when; `luck` is a
random number in 0..1, so that two hundred ghosts don't all arrive at once.

How it works. Before the first attachment the ghost looks around for FIND_S: who is
found is sorted as numbers (.9 before .10). Then

    python3 ghost.py             the lowest
    python3 ghost.py 2           the one at index 2 mod y, of the y that are found
    python3 ghost.py 10.0.0.7    that one

When a link breaks: that clairvoyant once more. If that fails, or if it was silent: the
second-lowest, or the lowest if it wasn't on that; then on through the list, round after
round with growing pauses, for ever. Refused connections are passed at once, a busy
comrade is tried again. A ghost that was given an address tries that one first, each
time, and comes back to it.

Invariants. At most one dial at a time. Never gives up while it knows an address; no
address is forgotten, and they are bounded.
"""

from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

FIND_S = 1.0  # answers to a question on the LAN take 1 ms; two questions fit
SPREAD_S = 0.8  # ghosts of a lost clairvoyant come to the next within this
REDIAL_S = 1.0  # whose link broke has this long to answer: it may be there
AGAIN_S = 0.3  # a busy comrade is tried again after so long, and up to twice as long
BUSY_TRIES = 8  # then the next one has its turn
ROUND_FIRST_S, ROUND_MOST_S = 0.5, 10.0  # between two rounds through the list
STEADY_S = 2.0  # a link that didn't hold so long is no reason to dial at once
LONELY_S = 5.0  # at the start without anybody: then the user is told
RETURN_S = 30.0  # a ghost that was given an address looks there so often
ADDRESSES_MAX = 300


def in_order(addresses: Iterable[str]) -> List[str]:
    """Sort addresses as numbers: .9 before .10."""
    return sorted(addresses, key=lambda a: [int(part) for part in a.split(".")])


def is_address(text: str) -> bool:
    """Say whether it is one host's IPv4 address, as this file sorts them."""
    parts = text.split(".")
    numbers = [int(p) for p in parts if len(p) < 4 and p.isascii() and p.isdigit()]
    return (
        len(parts) == len(numbers) == 4 and max(numbers) < 256 and 0 < numbers[0] < 224
    )


class Clairvoyants:
    """The addresses that a ghost knows, and whose turn it is."""

    def __init__(self, wanted: str, luck: Callable[[], float]) -> None:
        """`wanted` is what the user gave: '', an index, or an address."""
        self.index = int(wanted) if wanted.isdigit() else 0
        self.home = wanted if "." in wanted else ""
        self.luck = luck
        self.known: Dict[str, None] = {}  # an ordered set
        self.at = ""  # the one that the ghost is attached to
        self.dialling = ""
        self._line: List[str] = []  # whose turn is next
        self._due: Optional[float] = None
        self._choose_at: Optional[float] = None  # the end of looking around
        self._found: Dict[str, None] = {}
        self._tries = 0
        self._rounds = 0
        self._up_at = 0.0
        self._quick = 0  # links in a row that didn't hold
        self._lost = ""  # the clairvoyant that was lost last
        self.lonely_at: Optional[float] = None  # then `lonely` is to be asked
        if self.home:
            self.known[self.home] = None

    # --- what is known ------------------------------------------------------------

    def begin(
        self, given: Iterable[str], remembered: Iterable[str], now: float
    ) -> None:
        """Begin to look around; `given` are LEORONIC_PEERS."""
        self.known.update(dict.fromkeys(given))
        self.learn(remembered)
        self._choose_at = now if self.home else now + FIND_S
        self.lonely_at = now + LONELY_S

    def learn(self, addresses: Iterable[str]) -> None:
        """Know more comrades, from the cluster itself or the disk."""
        for address in addresses:
            if len(self.known) < ADDRESSES_MAX and is_address(address):
                self.known.setdefault(address)

    def find(self, addresses: Iterable[str], now: float) -> None:
        """Know who answers just now."""
        new = [address for address in addresses if address not in self._found]
        self.learn(new)
        if self._choose_at is not None:
            self._found.update(dict.fromkeys(new))
        elif not self.at and not self.dialling:
            self._line[:0] = [a for a in new if a in self.known]
            self._due = min(self._due or now, now)

    def probes(self) -> List[str]:
        """Give the addresses of which it must be found out whether anybody is there."""
        return [a for a in self.known if a != self.home] if not self.home else []

    @property
    def patience(self) -> Optional[float]:
        """Seconds that the dial under way may take; None: as long as any."""
        return REDIAL_S if self.dialling == self._lost else None

    # --- what happens -------------------------------------------------------------

    def next(self, now: float) -> str:
        """Give whom to dial now, or ''."""
        if self._choose_at is not None and now >= self._choose_at:
            self._choose(now)
        if self.dialling or self._due is None or now < self._due:
            return ""
        if self.at:  # attached, but not where it belongs
            self._due = now + RETURN_S
            self.dialling = self.home
            return self.home
        if not self._line:
            self._line = self._round()
        if not self._line:
            self._due = None
            return ""
        self.dialling = self._line.pop(0)
        self._due = None
        return self.dialling

    def _choose(self, now: float) -> None:
        found = in_order(self._found)
        self._choose_at, self._due = None, now
        if self.home:
            self._line = [self.home]
        elif found:
            first = self.index % len(found)
            self._line = [found[first], *found[:first], *found[first + 1 :]]

    def _round(self) -> List[str]:
        others = [a for a in in_order(self.known) if a != self.home]
        return ([self.home] if self.home else []) + others

    def on_up(self, address: str, now: float) -> None:
        """The dial succeeded: attached there."""
        self.dialling, self.at, self._up_at = "", address, now
        self._line, self._tries, self._rounds = [], 0, 0
        self.lonely_at = None
        is_home = not self.home or address == self.home
        self._due = None if is_home else now + RETURN_S

    def on_failed(self, address: str, why: str, now: float) -> None:
        """The dial came to nothing; `why` is the name of a wire.End."""
        self.dialling = ""
        if self.at:
            return
        if why == "BUSY" and self._tries < BUSY_TRIES:
            self._tries += 1
            self._line.insert(0, address)
            self._due = now + AGAIN_S * (1 + self.luck())
            return
        self._tries = 0
        if self._line:
            # The first one was the lost clairvoyant itself: all its ghosts go on now.
            self._due = now + (SPREAD_S * self.luck() if self._rounds == 0 else 0.0)
            self._rounds = max(self._rounds, 1)
        else:
            self._rounds += 1
            pause = min(ROUND_FIRST_S * 2.0 ** min(self._rounds, 10), ROUND_MOST_S)
            self._due = now + pause * (0.5 + self.luck() / 2)

    def on_lost(self, now: float, may_be_there: bool) -> None:
        """The clairvoyant is lost: find another; it first, if it may be there."""
        lost, self.at = self.at, ""
        self._lost = lost
        line = dict.fromkeys([self.home, lost, *in_order(self.known)])
        self._line = [a for a in line if a and (a != lost or may_be_there)]
        self._rounds = 0
        if now - self._up_at < STEADY_S:
            self._quick += 1
            pause = min(ROUND_FIRST_S * 2.0 ** min(self._quick, 10), ROUND_MOST_S)
            self._due = now + pause * (0.5 + self.luck() / 2)
        else:
            self._quick = 0
            self._due = now + (0.0 if may_be_there else SPREAD_S * self.luck())

    def lonely(self, now: float) -> List[str]:
        """Give what the user is to be told, once, if nobody has answered so long."""
        if self.lonely_at is None or now < self.lonely_at:
            return []
        self.lonely_at = None
        tried = ", ".join(in_order(self.known)) or "no address"
        text = "no comrade answers yet; found %s to try; start one with: bash leoronic"
        return [(text + ", or set LEORONIC_PEERS") % tried]

    def deadline(self) -> Optional[float]:
        """Give the time when it is somebody's turn."""
        times = [self._choose_at, None if self.dialling else self._due]
        return min((t for t in times if t is not None), default=None)


def parse(text: str) -> Tuple[str, Any]:
    """Read the argument of `ghost.py`; give it, or '' and what is wrong with it."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return text, None
    if is_address(text):
        return text, None
    return "", "it must be a whole number, or the IPv4 address of a comrade"
