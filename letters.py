"""Letters: a question that one node asks any other, and the reply.

Reason for this file beside peers.py and calls.py: those are about tasks, and about
calls that a ghost passes on; here one node wants something of another that no task and
no core is concerned with: its working directory (folder.py).

Rules. Owns no socket, and knows no question's meaning. LETTER and REPLY name whom they
are for and who asks, so each node on the way passes them on: a comrade to its own
ghost, else towards the member that has it, over others where there is no link; a ghost
to its clairvoyant. `way` says to whom.

    ask --LETTER--> (comrade -->) comrade (--> ghost)   take --answer--.
    then <--------------------------- REPLY ---------------------------'

How it works. A letter that isn't answered is sent again: whatever it asks for may be
done twice (folder.py sees to that), so a link that breaks costs seconds. `then` gets
None once nobody has answered for GIVE_UP_S, or nothing leads there for AWAY_S; sooner
where somebody waits at a prompt (Letter.patience).

Invariants. A call has one letter under way: so nobody is flooded, and a heartbeat waits
behind one reply of each (D9). A reply that nobody waits for, or
that isn't of who was asked, is dropped.
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from facts import number

AGAIN_S = 15.0  # without an answer: sent again, as soon as its way was lost meanwhile
GIVE_UP_S = 60.0  # in all: a disk that takes so long for 1 MiB hangs
AWAY_S = 8.0  # so long there may be no way: a link that broke is made anew in 2 s
LOOK_S = 1.0  # while a letter is under way, its way is looked at so often
HOPS = 8  # a letter goes no further
ANSWERING_MAX = 64  # letters that are being answered; more are sent again later

Said = Tuple[Dict[str, Any], bytes]
Fields = Dict[str, Any]


class Letter(NamedTuple):
    """What is asked of a node (its id; '' is the comrade one is, or goes through)."""

    to: str
    verb: str
    args: Fields
    body: bytes = b""
    patience: float = GIVE_UP_S  # in seconds: nobody answers for longer


class Seams(NamedTuple):
    """What a role does for this file."""

    me: str
    way: Callable[[str], Optional[str]]  # the peer that leads to a node; '' is here
    send: Callable[[str, str, Fields], None]  # peer, kind, fields
    # Asker, verb, args, body: answers later, through the last.
    answer: Callable[[str, str, Fields, bytes, Callable[[Said], None]], None]
    clock: Callable[[], float]


class Asked:
    """A letter of ours that waits for its reply."""

    def __init__(
        self, letter: Letter, then: Callable[[Optional[Said]], None], now: float
    ) -> None:
        self.letter = letter
        self.then = then
        self.since = self.heard = now  # asked; when there was a way last
        self.sent = float("-inf")


class Letters:
    """The letters of one node: its own, and those that pass."""

    def __init__(self, seams: Seams, first: int = 0) -> None:
        self.seams = seams
        self._asked: Dict[int, Asked] = {}
        self._answering: Dict[Tuple[str, int], None] = {}
        self._count = first  # random: a former process' replies may still come

    def ask(self, letter: Letter, then: Callable[[Optional[Said]], None]) -> None:
        """Ask; `then` gets the reply and its bytes, or None: nobody could be asked."""
        if not letter.to and self.seams.way("") is None:
            then(None)  # a ghost without a comrade says so at once
            return
        self._count += 1
        self._asked[self._count] = Asked(letter, then, self.seams.clock())
        self._send(self._count)

    def tick(self, now: float) -> Optional[float]:
        """Send again what wasn't answered; give the next time to look."""
        for n, asked in list(self._asked.items()):
            if self.seams.way(asked.letter.to) is None:
                asked.sent = float("-inf")
            else:
                asked.heard = now
            patience = asked.letter.patience
            if now - asked.since >= patience or now - asked.heard >= AWAY_S:
                del self._asked[n]
                asked.then(None)
            elif now - asked.sent >= AGAIN_S:
                self._send(n)
        return now + LOOK_S if self._asked else None

    def _send(self, n: int) -> None:
        asked = self._asked[n]
        to, verb, args, body, _ = asked.letter
        peer = self.seams.way(to)
        if peer is None:
            return
        asked.sent = self.seams.clock()
        fields = {"n": n, "to": to, "origin": self.seams.me, "verb": verb}
        fields.update(args=args, hops=HOPS, body=body)
        if peer:
            self.seams.send(peer, "LETTER", fields)
        else:
            self._on_letter(fields)

    def on_frame(self, kind: str, fields: Fields) -> None:
        """Take a LETTER or a REPLY; KeyError, TypeError, ValueError: it is none."""
        peer = self.seams.way(str(fields["to"]))
        if peer:
            hops = number(fields["hops"])
            if 0 < hops <= HOPS:
                self.seams.send(peer, kind, dict(fields, hops=hops - 1))
        elif peer == "" and kind == "LETTER":
            self._on_letter(fields)
        elif peer == "":
            n, said = number(fields["n"]), dict(fields["said"])
            asked = self._asked.get(n)
            if asked is not None and asked.letter.to in ("", fields["origin"]):
                del self._asked[n]
                asked.then((said, fields["body"]))

    def _on_letter(self, fields: Fields) -> None:
        origin, n = str(fields["origin"]), number(fields["n"])
        if (origin, n) in self._answering or len(self._answering) >= ANSWERING_MAX:
            return  # it is sent again if it must be
        self._answering[origin, n] = None

        def then(said: Said) -> None:
            self._answering.pop((origin, n), None)
            reply = {"n": n, "to": origin, "origin": self.seams.me, "hops": HOPS}
            self._reply(dict(reply, said=said[0], body=said[1]))

        args = dict(fields["args"])
        self.seams.answer(origin, str(fields["verb"]), args, fields["body"], then)

    def _reply(self, fields: Fields) -> None:
        peer = self.seams.way(fields["to"])
        if peer:
            self.seams.send(peer, "REPLY", fields)
        elif peer == "":
            self.on_frame("REPLY", fields)
