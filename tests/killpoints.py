"""Starts a comrade that kills itself at a named point; for tests alone.

    python3 tests/killpoints.py TRACE PLACE TIMES        PLACE '': it only traces

The comrade is the real one: its environment is what `bash leoronic` would be given. At
the TIMES-th passing of PLACE the process gets SIGKILL. TRACE gets a line for each
passing, and at last `killed at PLACE`, so that a test knows what it has reached.

PLACE is a point of points.CATALOGUE; those of the send path may name what is being
sent, as `after send: STORED` (a kind of frame) or `before send: a grant` (what its
records tell: see TELLS). What a frame holds is seen where it is sealed, so that the
product needs no names for it.
"""

import json
import os
import signal
import sys
from typing import List

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# By the phase of a run: what a RECORDS frame tells of it.
TELLS = ("a grant", "a start", "a loss", "a return", "an end")
NEW_TASK = "a new task"


def told(kind: str, payload: bytes) -> List[str]:
    """Give what a frame is about: its kind, and what its records tell."""
    found = {kind}
    if kind == "RECORDS":
        for record in json.loads(payload.decode("ascii"))["r"]:
            runs = record.get("runs", {}).values()
            found.update(TELLS[run[3]] for run in runs)
            found.update(() if runs else [NEW_TASK])
    return sorted(found)


class Killer:
    """Counts passings; ends the process at the one that was chosen."""

    def __init__(self, trace: str, place: str, times: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._trace = os.open(trace, flags, 0o600)
        self._place = place
        self._left = times
        self._sealed: List[str] = []  # since the last send

    def note(self, kind: str, payload: bytes) -> None:
        """Note a frame that goes out with the next send."""
        self._sealed += told(kind, payload)

    def pass_by(self, name: str) -> None:
        """Be at a point."""
        places = [name]
        if name.endswith(" send"):
            places += ["%s: %s" % (name, what) for what in sorted(set(self._sealed))]
            if name == "after send":
                self._sealed = []
        os.write(self._trace, "".join(place + "\n" for place in places).encode())
        if self._place in places:
            self._left -= 1
            if self._left == 0:
                os.write(self._trace, b"killed at %s\n" % self._place.encode())
                os.kill(os.getpid(), signal.SIGKILL)


def main(trace: str, place: str, times: str) -> int:
    """Be a comrade with a killer in it."""
    sys.path.insert(0, TOP)
    import comrade
    import points
    import wire

    killer = Killer(trace, place, int(times))
    seal = wire.Seal.seal

    def noted(self: wire.Seal, kind: wire.Kind, payload: bytes) -> bytes:
        killer.note(kind.name, payload)
        return seal(self, kind, payload)

    wire.Seal.seal = noted  # type: ignore[assignment]
    points.POINT = killer.pass_by
    return comrade.main([])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
