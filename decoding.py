"""What comes from a disk or a peer, checked before it is believed (D9).

Reason for this file beside record.py: what a record means is one concern, what may
pretend to be one another.

Rules. Pure. `decode` gives a Record or raises Malformed, for any JSON value whatever,
quickly; nothing else here is for others. What isn't known is kept, for a newer version
may have written it, as long as it is small and plain.

Invariant. A record that was decoded encodes to the same bytes on every version and word
size, and no part of the core has to check it again.
"""

from functools import lru_cache
from typing import Any, Dict, Tuple

import conditions
from record import (
    ATTEMPT_MAX,
    COMMAND_BYTES_MAX,
    COUNTER_MAX,
    DEPTH_MAX,
    HEX,
    KNOWN_FIELDS,
    NAME_CHARS_MAX,
    NEEDS_KEPT,
    RETRIES_MAX,
    RUNS_MAX,
    TERM_MAX,
    File,
    Malformed,
    Needs,
    Phase,
    Record,
    Rest,
    Run,
    canonical,
    derive,
    is_name,
    is_writer,
    named_key,
    run_order,
    split_key,
)


def decode(wire: Any) -> Record:
    """Make a record of a JSON object, or raise Malformed (D9)."""
    if not isinstance(wire, dict):
        raise Malformed("a record must be an object")
    key = wire.get("k")
    n, _ = split_key(key)
    needs = _decode_needs(wire)
    command = _text(wire.get("c"), "c", COMMAND_BYTES_MAX)
    if not 0 < len(command.encode("utf-8", "surrogateescape")) <= COMMAND_BYTES_MAX:
        raise Malformed("c is empty or too long")
    order = _count(wire.get("o"), "o", COUNTER_MAX)
    adder = _text(wire.get("by"), "by", 300)
    added = _number(wire.get("at"), "at")
    name = _text(wire.get("id", ""), "id", NAME_CHARS_MAX)
    if bool(name) != (n == 0):
        raise Malformed("a user's own id goes with a key 0-.. and no other")
    if name and not is_name(name):
        raise Malformed("id has characters that no id has")
    if name and key != named_key(name, command, needs):
        raise Malformed("the key isn't the hash of what the user gave")
    deleted = _flag(wire.get("del", False), "del")
    given_up = _text(wire.get("gu", ""), "gu", 300)
    unknown = {field: wire[field] for field in wire if field not in KNOWN_FIELDS}
    _check_plain(unknown, DEPTH_MAX)
    record = Record(str(key), command, needs, order, adder)
    record.rest = Rest(needs, adder, added, name, deleted, given_up, unknown or None)
    runs = wire.get("runs", {})
    if not isinstance(runs, dict) or len(runs) > RUNS_MAX:
        raise Malformed("runs must be an object of %d runs at most" % RUNS_MAX)
    if runs:
        record.runs = {name: _decode_run(name, run) for name, run in runs.items()}
    record.state = derive(record)
    return record


def _decode_needs(wire: Dict[str, Any]) -> Needs:
    files = wire.get("files", ())
    wanted = wire.get("if", ())
    if not isinstance(files, (list, tuple)) or len(files) > 10000:
        raise Malformed("files must be a list")
    if not isinstance(wanted, (list, tuple)) or len(wanted) > 1000:
        raise Malformed("if must be a list")
    values = [wire.get(field, default) for field, default in _PLAIN.items()]
    try:
        needs = _plain_needs(tuple(wanted), *values)
    except TypeError:  # what can't be hashed is not what it should be
        needs = _plain_needs.__wrapped__(tuple(wanted), *values)
    if files:
        needs = needs._replace(files=tuple(_decode_file(file) for file in files))
    return needs


# Wire names of needs, and what is left out: all but conditions and files.
_PLAIN: Dict[str, Any] = {
    **{"mem": 0, "cores": 1, "sto": 0, "con": True},
    **{"keep": False, "time": 0.0, "try": 0, "pri": 0},
}


@lru_cache(maxsize=NEEDS_KEPT, typed=True)  # 1, 1.0 and True are three values
def _plain_needs(wanted: Tuple[Any, ...], *values: Any) -> Needs:
    """Check needs but for files, once for neighbours that share them."""
    memory, cores, storage, concurrency, keep, timeout, retries, priority = values
    return Needs(
        _count(memory, "mem", COUNTER_MAX),
        _count(cores, "cores", 1000000, 1),
        _count(storage, "sto", COUNTER_MAX),
        _flag(concurrency, "con"),
        tuple(_decode_condition(condition) for condition in wanted),
        (),
        _flag(keep, "keep"),
        _number(timeout, "time", 0.0),
        _count(retries, "try", RETRIES_MAX),
        _count(priority, "pri", 1 << 31, -(1 << 31)),
    )


def _decode_condition(text: Any) -> str:
    try:
        condition = conditions.unwire(_text(text, "if", 10000))
    except conditions.WrongCondition as problem:
        raise Malformed(str(problem)) from None
    if condition.verb == "queue:done":
        split_key(condition.argument)
    return str(text)


def _decode_file(file: Any) -> File:
    if not isinstance(file, (list, tuple)) or len(file) != 4:
        raise Malformed("a file must be [name, digest, size, mode]")
    digest = _text(file[1], "digest", 64)
    if len(digest) != 64 or not HEX.issuperset(digest):
        raise Malformed("a file's digest must be sha256 in hex")
    size = _count(file[2], "size", COUNTER_MAX)
    return File(
        _text(file[0], "name", 5000), digest, size, _count(file[3], "mode", 511)
    )


def _decode_run(key: str, run: Any) -> Run:
    try:
        # Checked for length first: to read a long number takes long.
        attempt, term, writer, n = run_order(key if len(key) < 70 else "")
    except (TypeError, ValueError):
        raise Malformed("a run has no run key") from None
    if key != "%d.%d.%s.%d" % (attempt, term, writer, n) or not is_writer(writer):
        raise Malformed(f"{key!r} is no run key")
    _count(attempt, "an attempt", ATTEMPT_MAX)
    _count(term, "a term", TERM_MAX)
    _count(n, "a run key", COUNTER_MAX)
    if not isinstance(run, (list, tuple)) or len(run) != 5:
        raise Malformed("a run must be a list of five")
    worker, session, inc, phase, detail = run
    if not isinstance(detail, dict):
        raise Malformed("a run's detail must be an object")
    if not is_writer(worker):
        raise Malformed("a run's worker must be a writer")
    phase = Phase(_count(phase, "phase", max(Phase)))
    _check_detail(phase, detail)
    return Run(
        worker,
        _count(session, "session", COUNTER_MAX),
        _count(inc, "incarnation", COUNTER_MAX),
        phase,
        detail,
    )


def _check_detail(phase: Phase, detail: Dict[str, Any]) -> None:
    for field in ("node", "cause", "why"):
        _text(detail.get(field, ""), field, 2000)
    for field in ("at", "end", "took"):
        _number(detail.get(field, 0.0), field)
    for field in ("out", "err"):
        output = detail.get(field, (0, ""))
        if not isinstance(output, (list, tuple)) or len(output) != 2:
            raise Malformed("an output must be [size, digest]")
        _count(output[0], field, COUNTER_MAX)
        if not HEX.issuperset(_text(output[1], field, 64)):
            raise Malformed("an output's digest must be hex")
    if phase is Phase.ENDED:
        _count(detail.get("exit"), "exit", 255)
    _check_plain(detail, DEPTH_MAX)
    if len(canonical(detail)) > 20000:
        raise Malformed("a run's detail is too long")


def _check_plain(value: Any, depth: int) -> None:
    """Accept only what each Python reads and writes as the same JSON text."""
    if depth == 0:
        raise Malformed("an unknown value is nested too deep")
    if isinstance(value, dict):
        if not all(isinstance(field, str) for field in value):
            raise Malformed("a field's name must be a text")
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            _check_plain(part, depth - 1)
    elif type(value) is int:
        _count(value, "an unknown value", 1 << 64, -(1 << 64))
    elif type(value) is float:
        _number(value, "an unknown value", -1e308, 1e308)
    elif value is not None and not isinstance(value, (str, bool)):
        raise Malformed("an unknown value is no JSON")


def _text(value: Any, field: str, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise Malformed("%s must be a text of %d characters at most" % (field, most))
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Malformed(f"{field} has characters that no bytes stand for") from None
    return value


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"{field} must be true or false")
    return value


def _count(value: Any, field: str, most: int, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Malformed("%s must be a whole number to %d" % (field, most))
    return value


def _number(value: Any, field: str, least: float = -1e12, most: float = 1e12) -> float:
    if type(value) not in (int, float) or not least <= value <= most:
        raise Malformed(f"{field} must be a number")
    return float(value) + 0.0  # -0.0 becomes 0.0: equal numbers, equal texts
