"""Coverage-guided fuzzing of the same readers, with atheris; see `guided` beside this.

    python guided.py READER [option of libFuzzer]...        no READER: lists them

A reader draws what it does from dice. Here the dice are the fuzzer's bytes, so that it
can keep the draws that led to new code, and change some of them; when the bytes are
used up, dice that they seed go on. What is a find is as in fuzzing.py, but for time:
code that is watched is several times slower; and memory: what counts is by how much an
input raises the process' own peak.
"""

import random
import sys
import time
import warnings
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Dict, List, Set

import atheris

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
SLOWER = 5.0  # at most, watched
# What a reader needs and another is for: to watch it would take most of the time.
UNWATCHED: Dict[str, Set[str]] = {
    "merging": {"conditions", "decoding"},
    "list of tasks": {"decoding", "record"},
}
LONG = 2000  # bytes that one repetition makes; to wait for more is for test_fuzz.py


class Drawn(random.Random):
    """Dice that draw from bytes, and go on by themselves."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._is_over = False

    def getrandbits(self, k: int) -> int:
        """Give k bits: random.Random makes what else there is of them."""
        size = (k + 7) >> 3
        at, self._at = self._at, self._at + size
        piece = self._data[at : at + size]
        if len(piece) < size:
            if not self._is_over:
                self._is_over = True
                self.seed(self._data)
            return super().getrandbits(k)
        return int.from_bytes(piece, "big") >> (8 * size - k)

    def _randbelow(self, n: int) -> int:
        """Choose one of n: never throw a draw away, nor take more bytes than needed."""
        return self.getrandbits((n.bit_length() + 7) & ~7) % n

    def random(self) -> float:
        """Give a number in 0..1, of two bytes."""
        return self.getrandbits(16) / 65536.0


class Watched:
    """A reader as the fuzzer calls it; the worst yet is told as it comes."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._slowest_s = 0.0
        self._grown = self._peak = 0  # bytes

    def __call__(self, data: bytes) -> None:
        """Read one input, and judge what it took."""
        took = self._took(data)
        if took > SLOWER * self._reader.limit_s:
            took = min(self._took(data) for _ in range(3))
        before, self._peak = self._peak, getrusage(RUSAGE_SELF).ru_maxrss << 10
        grown = self._peak - before if before else 0
        if took > self._slowest_s or grown > self._grown:
            self._slowest_s = max(took, self._slowest_s)
            self._grown = max(grown, self._grown)
            worst = (self._slowest_s * 1000, self._grown / 1e6)
            print("worst: %.1f ms, %.1f MB" % worst, file=sys.stderr)
        if took > SLOWER * self._reader.limit_s:
            raise AssertionError("it takes %g s" % took)
        if grown > self._reader.limit_bytes:
            raise AssertionError("it takes %d bytes" % grown)

    def _took(self, data: bytes) -> float:
        began = time.process_time()
        try:
            self._reader.read(Drawn(data))
        except self._reader.errors:
            pass
        return time.process_time() - began


def main(args: List[str]) -> None:
    """Fuzz the reader that is named."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(TOP)]
    product = {path.stem for path in TOP.glob("*.py")}
    product -= UNWATCHED.get(args[0] if args else "", set())
    with atheris.instrument_imports(include=sorted(product)):
        import mutations
        from readers import READERS
    mutations.LONG = LONG
    warnings.simplefilter("ignore", FutureWarning)  # of regexes, as comrades do
    known = {reader.name: reader for reader in READERS}
    if not args or args[0] not in known:
        print("\n".join(known))
        return
    atheris.Setup([sys.argv[0], *args[1:]], Watched(known[args[0]]))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
