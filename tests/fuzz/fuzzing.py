"""The fuzzer: seeded inputs for a reader, each timed; what shouldn't happen is a find.

A reader is given a `random.Random` that one number seeds, makes its input of it and
reads that. It may raise the errors that its product's docstring names, and no other;
it may take LIMIT_S of the processor and LIMIT_BYTES of memory. Inputs are counted from
0; the number and the reader's name give the input again: `read_one(reader, number)`.

LIMIT_S is meant for a machine that does `_work` in WORK_S. Where that takes longer
beside a slow input, that may take longer by as much: a machine for tests may run at a
quarter of its speed for hours, which tells nothing about the reader.

Memory is the process' own high-water mark (Linux): tracing each allocation would make
it five times slower. It is looked at after each BATCH; who passes it is looked for.
"""

import gc
import json
import random
import time
from functools import wraps
from typing import Any, Callable, Dict, List, NamedTuple, Tuple, Type, TypeVar, cast

LIMIT_S = 0.05
LIMIT_BYTES = 10 << 20
BATCH = 100
FINDS_MAX = 5  # of one reader; more tell nothing new
AGAIN = 3  # times that what was slow is tried again: a machine has other work
WORK_TIMES = 100  # rounds of `_work`
WORK_S = 0.0065  # of the processor for `_work`: Python 3.11 at 3 GHz

Read = Callable[[random.Random], None]
Step = TypeVar("Step", bound=Callable[..., Any])


class Reader(NamedTuple):
    """What is fuzzed: `share` of the inputs (it is slow), what it may raise."""

    name: str
    read: Read
    errors: Tuple[Type[BaseException], ...] = ()
    share: float = 1.0
    limit_s: float = LIMIT_S
    limit_bytes: int = LIMIT_BYTES


class Report(NamedTuple):
    """What came of it: `inputs` is how many were read, none twice."""

    name: str
    inputs: int
    slowest_s: float
    peak_bytes: int
    finds: List[str]


REPORTS: List[Report] = []  # of this run


_clock = {"stopped_s": 0.0}  # of the processor, for steps of the fuzzer's own


def uncounted(step: Step) -> Step:
    """Mark a reader's step that makes or checks something: no time of the product's."""

    @wraps(step)
    def marked(*args: Any) -> Any:
        began = time.process_time()
        try:
            return step(*args)
        finally:
            _clock["stopped_s"] += time.process_time() - began

    return cast(Step, marked)


def read_one(reader: Reader, number: int) -> float:
    """Read one input; give the seconds of the processor that it took."""
    dice = random.Random("%s %d" % (reader.name, number))
    _clock["stopped_s"] = 0.0
    began = time.process_time()
    try:
        reader.read(dice)
    except reader.errors:
        pass
    return time.process_time() - began - _clock["stopped_s"]


def fuzz(reader: Reader, inputs: int, first: int = 0) -> Report:
    """Read so many inputs, from number `first` on."""
    finds: List[str] = []
    slowest, peak = 0.0, 0
    count, done = max(1, int(inputs * reader.share)), 0
    read_one(reader, first)  # what it loads or remembers once is no matter
    gc.collect()
    gc.freeze() if hasattr(gc, "freeze") else None  # what tests hold costs no time
    for batch in range(first, first + count, BATCH):
        numbers = range(batch, min(batch + BATCH, first + count))
        before = _mark()
        for number in numbers:
            took = _guarded(reader, number, finds)
            done += 1
            if took > reader.limit_s:
                tries = [(_guarded(reader, number, []), _work()) for _ in range(AGAIN)]
                took = min(took for took, _ in tries)
                slower = min(work for _, work in tries) / WORK_S
                if took > reader.limit_s * max(1.0, slower):
                    finds.append("input %d takes %.0f ms" % (number, took * 1000))
            slowest = max(slowest, took)
        grown = _peak() - before
        if grown > reader.limit_bytes:
            grown = max(_hungry(reader, number, finds) for number in numbers)
        peak = max(peak, grown)
        if len(finds) >= FINDS_MAX:
            break
    return Report(reader.name, done, slowest, peak, finds)


def _work() -> float:
    """Do a fixed piece of what readers do; give the seconds of the processor."""
    text = json.dumps({"tasks": [{"id": "a%d" % n, "runs": [n]} for n in range(100)]})
    began = time.process_time()
    for _ in range(WORK_TIMES):
        json.dumps(json.loads(text), sort_keys=True)
    return time.process_time() - began


def _guarded(reader: Reader, number: int, finds: List[str]) -> float:
    try:
        return read_one(reader, number)
    except Exception as problem:
        finds.append("input %d raises %.300r" % (number, problem))
        return 0.0


def _hungry(reader: Reader, number: int, finds: List[str]) -> int:
    gc.collect()
    before = _mark()
    _guarded(reader, number, [])
    grown = _peak() - before
    if grown > reader.limit_bytes:
        finds.append("input %d takes %.1f MiB" % (number, grown / (1 << 20)))
    return grown


def _mark() -> int:
    """Begin to watch the high-water mark; give the memory in use."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # no Linux, or no right to: then the mark is that of the process
    return _status().get("VmRSS", 0)


def _peak() -> int:
    return _status().get("VmHWM", 0)


def _status() -> Dict[str, int]:
    try:
        with open("/proc/self/status") as file:
            rows = [line.split() for line in file if line.startswith("Vm")]
    except OSError:
        return {}
    return {row[0][:-1]: int(row[1]) << 10 for row in rows}


def table() -> List[str]:
    """Lay the reports of this run out, for people."""
    lines = [
        "%-24s %9s %11s %8s  finds" % ("reader", "inputs", "slowest ms", "peak MB")
    ]
    for r in REPORTS:
        shown = (r.name, r.inputs, r.slowest_s * 1000, r.peak_bytes / 1e6)
        lines.append("%-24s %9d %11.1f %8.1f  %d" % (*shown, len(r.finds)))
    return lines
