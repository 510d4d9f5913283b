"""What a seed makes of good input: bytes and JSON values, changed a little or badly."""

import random
from typing import Any, Dict, List, Sequence, Tuple

NASTY: Tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 1.5, -0.0, 1e308, -1e308, 1e-320),
    *(1 << 31, 1 << 50, (1 << 50) + 1, 1 << 53, (1 << 53) + 1, 1 << 64, -(1 << 63)),
    *("", "a", "\0", "\n", "\x1b[2J", "\ud800", "\udcff", "\u202e", "\U0001f600"),
    *("../x", "/etc/passwd", ".", "..", "*", "$(id)", "-x", "9" * 5000, "x" * 100000),
    *("nan", "1.1.0123456789abcdef.1", "1-0123456789abcdef", "0123456789abcdef"),
    *([], {}, [[]], [None], [0] * 1000, {"": {}}, {"k": 1}, ["x" * 300] * 300),
)
TOKENS: Tuple[bytes, ...] = (
    *(b"\0", b"\xff", b"\n", b"'", b'"', b"\\", b"\\;", b";", b"#", b"-", b"--", b" "),
    *(b"{}", b"{#}", b"{//}", b"$(", b"${", b"$((", b"`", b"<<x", b"<<'", b"case x in"),
    *(b"0", b"1", b"-1", b"9" * 30, b"1e999", b"NaN", b"true", b"null", b"[" * 50),
    *(b"--keep-names", b"--timeout=", b"--send", b"queue:is_first", b"worker:tag "),
    *(b"queue:all_with_cmd_done (", b"a{9999999999}", b"(?", b"[", b"*", b"(a|b)*c"),
    *(b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc3", b"LEORONIC_", b"=", b"/", b".."),
    *(b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"),
)
WEIGHT_MAX = 200000  # about bytes of JSON; texts may be six times as long there
LONG = 20000  # bytes that one repetition makes


def nested(depth: int, dice: random.Random) -> Any:
    """Give lists and objects within each other."""
    value: Any = dice.choice(NASTY)
    for _ in range(depth):
        value = [value] if dice.random() < 0.5 else {"a": value}
    return value


def nasty(dice: random.Random) -> Any:
    """Give a value that nobody expects."""
    if dice.random() < 0.05:
        return nested(dice.choice((5, 15, 25)), dice)
    return dice.choice(NASTY)


def changed(value: Any, dice: random.Random, times: int = 0) -> Any:
    """Give a JSON value with some parts replaced, dropped, doubled or exchanged."""
    for _ in range(times or dice.choice((1, 1, 1, 2, 3, 5))):
        made = _change(value, dice)
        value = made if _is_light(made) else value
    return value


def _is_light(value: Any) -> bool:
    """Say whether it may fit into a frame; to write it would cost more than to read."""
    left, weight = [(value, 1)], 0
    while left and weight < WEIGHT_MAX:
        one, times = left.pop()
        is_sized = isinstance(one, (str, list, dict))
        weight += times * (len(one) + 2 if is_sized else 8)
        if isinstance(one, dict):
            left += [(part, times) for part in (*one, *one.values())]
        elif isinstance(one, list) and one:
            if one.count(one[0]) == len(one):
                left.append((one[0], times * len(one)))
            else:
                left += [(part, times) for part in one]
    return weight < WEIGHT_MAX


def _change(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict) and value and dice.random() < 0.9:
        return _change_field(dict(value), dice)
    if isinstance(value, (list, tuple)) and value and dice.random() < 0.8:
        return _change_item(list(value), dice)
    if type(value) is int and dice.random() < 0.3:
        return value + dice.choice((-1, 1, 2))
    if isinstance(value, str) and value and dice.random() < 0.3:
        i = dice.randrange(len(value))
        put = dice.choice(("", "0", ".", "\0", "\xe9", " "))
        return value[:i] + put + value[i + 1 :]
    return nasty(dice)


def _change_field(value: Dict[str, Any], dice: random.Random) -> Dict[str, Any]:
    field = dice.choice(sorted(value))
    roll = dice.random()
    if roll < 0.7:
        value[field] = _change(value[field], dice)
    elif roll < 0.8:
        del value[field]
    elif roll < 0.9:
        value[dice.choice((field + "x", "", "new", "9" * 99))] = value[field]
    else:
        value[field] = value[dice.choice(sorted(value))]
    return value


def _change_item(value: List[Any], dice: random.Random) -> List[Any]:
    i = dice.randrange(len(value))
    roll = dice.random()
    if roll < 0.7:
        value[i] = _change(value[i], dice)
    elif roll < 0.8:
        del value[i]
    elif roll < 0.9:
        times = dice.choice((2, 50))  # what would not fit is not made at all
        return value * times if len(value) * times < WEIGHT_MAX else value
    else:
        value.insert(i, nasty(dice))
    return value


def mangled(data: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Give bytes that were cut, flipped, repeated, spliced, or had a token put in."""
    made = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 3, 6))):
        at = dice.randrange(len(made) + 1)
        end = min(len(made), at + dice.choice((0, 1, 2, 4, 8, 40)))
        roll = dice.random()
        if roll < 0.3:
            made[at:end] = dice.choice(TOKENS)
        elif roll < 0.5:
            made[at:end] = bytes(dice.randrange(256) for _ in range(dice.randrange(4)))
        elif roll < 0.6:
            del made[at : at + dice.choice((1, 5, 50, 5000))]
        elif roll < 0.7 and others:
            made[at:end] = dice.choice(others)[: dice.choice((8, 100, 5000))]
        elif roll < 0.73 and end > at:
            made[at:end] *= LONG // (end - at)
        elif end > at:
            made[at] ^= 1 << dice.randrange(8)
    return bytes(made)


def words(dice: random.Random, good: Sequence[bytes]) -> List[str]:
    """Give arguments as a shell would: without NUL, any bytes else."""
    made = [mangled(word, dice, good) if dice.random() < 0.3 else word for word in good]
    if dice.random() < 0.2:
        made.insert(dice.randrange(len(made) + 1), dice.choice(TOKENS))
    if made and dice.random() < 0.1:
        del made[dice.randrange(len(made))]
    return [w.replace(b"\0", b"").decode("utf-8", "surrogateescape") for w in made]
