"""Every reader of what others wrote: peers, strangers, users, disks. See fuzzing.py.

What comes from a peer goes through the wire's own codec first: so an input is one that
could have come. Beyond "raises nothing else" a reader asserts what must hold after it:
what a node sends on can be sent and is taken by others, logs stay short, copies that
merged the same are equal.
"""

import json
import os
import random
import re
import tempfile
from typing import Any, Dict, List, Tuple

from desk import TOKEN, Client, Desk, request
from fuzzing import Reader, uncounted
from mutations import TOKENS, changed, mangled, nasty, nested, words
from test_calls import Joined

import calls
import conditions
import control
import cookie
import decoding
import discovery
import effects
import facts
import folder
import ghostnode
import ghosts
import jar
import journal
import letters
import peers
import record
import settings
import sweep
import taskform
import wire
from clairvoyants import Clairvoyants
from node import Node
from taskqueue import Queue

W, V, G = "0123456789abcdef", "fedcba9876543210", "00000000000000aa"
DIGEST = "ab" * 32
KEYS = ["1-" + W, "2-" + V, "3-" + G]
LOG_CHARS_MAX = 1000
PEERS_ERRORS = (KeyError, TypeError, ValueError, AttributeError)  # these end a link
NEEDS = ("queue:is_first", "worker:tag gpu", "queue:done 1-" + W, "worker:later x")
DETAIL: Dict[str, Any] = dict(exit=0, cause="", at=1.5, end=2.0, took=0.5, node="n")
DETAIL.update(out=[3, DIGEST], err=[0, ""])
RECORD: Dict[str, Any] = {
    **{"k": KEYS[0], "c": "sort in.csv", "o": 7, "by": "n", "at": 5.0, "cores": 2},
    **{"mem": 1024, "con": False, "if": list(NEEDS), "try": 2, "pri": 3, "time": 9.0},
    "files": [["in.csv", DIGEST, 10, 420]],
    "runs": {
        "1.2.%s.1" % W: [V, 0, 0, 4, DETAIL],
        "2.2.%s.2" % W: [W, 0, 1, 1, {"at": 1.5}],
        "3.2.%s.3" % V: [V, 0, 1, 2, {}],
    },
    "new": {"deep": [1, None, "x"]},
}
SHORT: Dict[str, Any] = dict(RECORD, **{"if": list(NEEDS[2:]), "new": 1})
SHORT["runs"] = dict(list(RECORD["runs"].items())[:2])
OFFER: Dict[str, Any] = dict(name="n", address="127.0.0.9", cores=2, memory=1 << 30)
OFFER.update(free_memory=1 << 29, free_disk=1 << 30, holds=[NEEDS[1]], tags=["gpu"])
OFFER.update(draining=False, stuck=False)
MEMBER: Dict[str, Any] = dict(OFFER, id=V, writer=V, starts=1, seq=3, role="comrade")
MEMBER.update(links=[W], claim=[2, 1], follows=W, call=1, heeds=[W, 1], term=2)
MEMBER.update(ready=True, stopping=False, dead=[G], later=[1])
GHOST = dict(id=G, session=1, seq=2, at=V, state="here", offer=OFFER)

# --- bytes of strangers and peers -----------------------------------------------------

COMRADES: Dict[str, Dict[str, Any]] = {
    "HEARTBEAT": {"n": 3, "heard": 2, "root": "1f"},
    "MEMBER": MEMBER,
    "RECORDS": {"n": 1, "r": [RECORD, dict(RECORD, k=KEYS[1])], "store": True},
    "GOT": {"n": 1},
    "STORED": {"n": 1, "ok": True},
    "PURGED": {"n": 1, "w": {W: [[1, 5], [9, 9]], V: [[1, 1]]}},
    "TREE": {"t": ["0"] * 512, "ask": True},
    "LEAF": {"n": 2, "leaf": 3, "k": {KEYS[0]: "12ab", KEYS[1]: "0"}},
    "MARK": {"p": 1},
    "MARKED": {"p": 2},
    "ALIVE": {"run": "1.2.%s.1" % W, "origin": V},
    "ALIVE_ANSWER": {"run": "1.2.%s.1" % W, "yes": True},
    "STOP": {"run": "2.2.%s.1" % W, "smaller": "1.2.%s.1" % W},
    "DRAIN": {"on": True},
    "ROUTE": {"kind": "STOP", "fields": {"run": "a"}, "to": G, "origin": V, "hops": 3},
    "GHOST": GHOST,
    "BYE": {"why": "closing"},
}
ATTACH = {"n": 1, "session": 1, "term": 2, "former": [V], "offer": OFFER}
OF_GHOSTS: Dict[str, Dict[str, Any]] = {
    "ATTACH": dict(ATTACH, runs=[[KEYS[0], "1.2.%s.1" % W]]),
    "RECORDS": {"n": 1, "r": [RECORD], "store": True},
    "OFFER": {"offer": OFFER},
    "ALIVE_ANSWER": {"run": "1.2.%s.1" % W, "yes": True, "origin": V},
    "BYE": {"why": "stopping"},
}
TO_GHOSTS: Dict[str, Dict[str, Any]] = {
    "COMRADES": {"n": 1, "name": "n", "addresses": ["127.0.0.9"], "term": 2},
    "RECORDS": {"n": 0, "r": [dict(RECORD, runs={})], "store": False, "term": 2},
    "GOT": {"n": 1},
    "STORED": {"n": 1, "ok": True},
    "PURGED": {"w": {W: [[1, 5]]}},
    "ALIVE": {"run": "1.2.%s.1" % W, "origin": V},
    "STOP": {"run": "2.2.%s.1" % W, "smaller": "1.2.%s.1" % W},
    "DRAIN": {"on": True},
    "CHECK": {"conditions": list(NEEDS), "on": True, "more": False},
    "HEARTBEAT": {"n": 0, "heard": 0, "root": ""},
    "BYE": {"why": "closing"},
}
for _good, _frames in (
    (COMRADES, peers.FRAMES),
    (OF_GHOSTS, ghosts.GHOST_FRAMES),
    (TO_GHOSTS, ghostnode.GHOSTS_FRAMES),
):
    assert set(_good) == set(_frames), "a kind has no example"


KINDS, GOOD = list(wire.Kind), list(COMRADES.values())


def decoder(dice: random.Random) -> None:
    """Frames as bytes: some authentic with junk in them, some damaged on the way."""
    seal = wire.Seal(b"k" * 32)
    data = b""
    for _ in range(dice.randrange(1, 4)):
        kind = dice.choice(KINDS)
        raw = wire.CATALOGUE[kind].raw
        good = dice.choice(GOOD)
        payload = wire.encode(kind, good if len(good) < 9 else {"n": 1}, b"xyz" * raw)
        if dice.random() < 0.02:
            payload = dice.choice((b"[", b'{"a":', b"[],", b'"",')) * 100000
        data += seal.seal(kind, mangled(payload, dice))
    if dice.random() < 0.3:
        data = mangled(data, dice)
    reader = wire.Decoder(wire.Seal(b"k" * 32))
    while data:
        size = dice.choice((1, 5, 100, 100000))
        reader.feed(data[:size])
        data = data[size:]
        for frame in iter(reader.next, None):
            assert isinstance(frame.fields, dict)


HELLO = wire.Hello(V, V, wire.Role.COMRADE)
SAID: List[bytes] = []  # what both ends of a good handshake said


def _handshake() -> List[bytes]:
    ends = [
        wire.Handshake(True, b"c" * 32, HELLO, nonce=b"n" * 32),
        wire.Handshake(False, b"c" * 32, HELLO._replace(writer=W), nonce=b"m" * 32),
    ]
    said = []
    for i in (0, 1, 0, 1):
        said.append(ends[i].take())
        ends[1 - i].feed(said[-1])
    assert all(end.keys for end in ends)
    return said


def handshake(dice: random.Random) -> None:
    """Both ends: nobody without the cookie has keys, and nothing is raised."""
    SAID[:] = SAID or _handshake()
    dialled = dice.random() < 0.5
    me = HELLO if dialled else HELLO._replace(writer=W)
    others = {wire.fingerprint(one): one for one in (b"c" * 32, b"d" * 32)}
    newest = dice.choice((b"c" * 32, b"d" * 32))
    end = wire.Handshake(dialled, newest, me, nonce=b"N" * 32, others=others)
    end.take()
    good = [SAID[1], SAID[3]] if dialled else [SAID[0], SAID[2]]
    data = mangled(b"".join(good), dice, SAID)
    while data and end.end is None and end.needs > 0:
        size = dice.randrange(1, end.needs + 1)
        end.feed(data[:size])
        data = data[size:]
        assert end.keys is None and len(end.take()) <= wire.HELLO.size + 32


def beacon(dice: random.Random) -> None:
    """Datagrams of strangers: hints at most, never one to another port."""
    one = discovery.Discovery.__new__(discovery.Discovery)
    sent: List[Any] = []
    one._port, one._node, one._clusters = 7117, b"n" * 8, lambda: [b"c" * 16]
    one._is_comrade, one._own = dice.random() < 0.5, []
    one._said = one._answered = one._rests_until = float("-inf")
    one._hinted = {}
    one._send = lambda *frame: sent.append(frame)  # type: ignore[method-assign]
    for n in range(4):
        good = (wire.MAGIC, wire.VERSION, dice.randrange(5), b"c" * 16, b"m" * 8, 7117)
        data = mangled(discovery.BEACON.pack(*good), dice)
        for hint in one._on_datagram(data, ("127.9.0.%d" % n, 9), 1.0):
            assert hint.port == 7117
    assert len(sent) <= 1


# --- an authenticated peer that is mad ------------------------------------------------


@uncounted
def _frame(
    dice: random.Random, good: Dict[str, Dict[str, Any]]
) -> Tuple[str, Dict[str, Any]]:
    """Make a frame that could have come: one that the codec lets through."""
    kind = dice.choice(sorted(good))
    value = good[kind] if dice.random() < 0.1 else changed(good[kind], dice)
    try:
        payload = wire.encode(wire.Kind[kind], value)
        return kind, wire.decode(wire.Kind[kind], payload).fields
    except (ValueError, AttributeError, wire.BadFrame):
        return kind, good[kind]


@uncounted
def _check(made: List[Any]) -> None:
    """What a node does with it must be of the kind that others take."""
    for effect in made:
        if isinstance(effect, effects.Log):
            assert len(effect.text) <= LOG_CHARS_MAX, effect.text[:200]
        elif isinstance(effect, effects.Send):
            kind = wire.Kind[effect.kind]
            fields = wire.decode(kind, wire.encode(kind, effect.fields)).fields
            if effect.kind == "MEMBER":
                facts.check_facts(fields)
            elif effect.kind == "GHOST":
                facts.check_ghost(fields)
            elif effect.kind == "RECORDS":
                for one in fields["r"]:
                    decoding.decode(one)


def _node() -> Tuple[Node, List[Any]]:
    search = lambda regex, text: re.search(regex, text) is not None  # noqa: E731
    node = Node(effects.Identity(W, W, "w", "127.0.0.1"), 2, 1 << 30, [], search)
    made: List[Any] = []
    node.begin([], [], 1.0)
    for peer in (V, G):
        made += node.step(effects.LinkUp(peer, peer), 1.0)
    made += node.step(effects.GhostUp("g1", "cc" * 8), 1.0)
    one = effects.NewTask("true", record.Needs(), "")
    made += node.step(effects.Add(1, [one], 1.0), 1.0)
    return node, made


def comrade(dice: random.Random) -> None:
    """A comrade's core, given frames of comrades and of a ghost."""
    node, made = _node()
    now = 1.0
    for _ in range(dice.randrange(2, 7)):
        now += dice.choice((0.0, 0.1, 0.6))
        if dice.random() < 0.3:
            made += node.step(effects.Frame("g1", *_frame(dice, OF_GHOSTS)), now)
        else:
            made += node.step(effects.Frame(V, *_frame(dice, COMRADES)), now)
        made += node.tick(now)[0]
        for effect in list(made):
            if isinstance(effect, effects.Persist):
                made += node.step(effects.Written(effect.seq, ""), now)
            elif isinstance(effect, effects.Check):
                made += node.step(effects.Facts(frozenset(), 1 << 29, 1 << 30), now)
        _check(made)
        made = []
    json.dumps(node.members(), allow_nan=False)
    for one in node.queue.in_order():
        node.reason(one, now)


def ghost(dice: random.Random) -> None:
    """A ghost's core, given frames of its clairvoyant."""
    luck = random.Random(1).random
    me = effects.Identity(G, G, "g", "127.0.0.3")
    node = ghostnode.GhostNode(me, 2, 1 << 30, [], Clairvoyants("", luck))
    node.begin(["127.0.0.1"], [], 1.0)
    made = node.step(effects.LinkUp(V, V), 1.0)
    now = 1.0
    for _ in range(dice.randrange(2, 7)):
        now += dice.choice((0.0, 0.1, 0.6))
        made += node.step(effects.Frame(V, *_frame(dice, TO_GHOSTS)), now)
        made += node.tick(now)[0]
        _check(made)
        made = []


def letter(dice: random.Random) -> None:
    """Letters and replies at a node between others."""
    sent: List[Any] = []
    seams = letters.Seams(
        W,
        lambda to: {W: "", "": "", V: V}.get(to),
        lambda *frame: sent.append(frame),
        lambda asker, verb, args, body, then: then(({"ok": 1}, b"")),
        lambda: 1.0,
    )
    node = letters.Letters(seams)
    node.ask(letters.Letter(V, "list", {}), lambda said: None)
    args = {"after": "", "room": 100}
    good = {
        "LETTER": dict(n=1, to=W, origin=V, verb="list", args=args, hops=8),
        "REPLY": dict(n=1, to=W, origin=V, said={"entries": []}, hops=8),
    }
    good["LETTER"]["to"] = dice.choice((W, V, "", G))
    kind, fields = _frame(dice, good)
    node.on_frame(kind, dict(fields, body=b"body"))
    for _, kind, fields in sent:
        rest = {k: v for k, v in fields.items() if k != "body"}
        wire.encode(wire.Kind[kind], rest, fields["body"])


TOP = tempfile.TemporaryDirectory(prefix="leoronic fuzz ")


def working_directory(dice: random.Random) -> None:
    """Questions of peers about this node's working directory."""
    top = os.path.join(TOP.name, "work")
    if not os.path.isdir(top):
        os.makedirs(os.path.join(top, "sub"))
        os.symlink("/etc", os.path.join(top, "link"))
        with open(os.path.join(top, "file"), "w") as file:
            file.write("text")
    asked = folder.Folder(top, folder.Hidden("", ""), lambda: 1.0)
    good: Dict[str, Dict[str, Any]] = {
        "list": {"after": "", "room": 1000, "hide": ["sub"]},
        "read": {"spans": [["file", 0, 100], ["link/passwd", 0, 100]]},
    }
    verb = dice.choice(sorted(good))
    args = changed(good[verb], dice)
    said, body = asked.answer("asker", verb, args, b"")
    asked.close()
    assert b"root:" not in body
    wire.encode(wire.Kind.REPLY, {"said": said}, body)


PASSED: Dict[str, Dict[str, Any]] = {
    **{"CALL": {"call": 2}, "TAKEN": {"call": 1}, "HANGUP": {"call": 1}},
    "KEPT": dict(call=1, digest=DIGEST, size=3, mode=420, error="", errno=0),
    **{"ANSWER": {"call": 1, "over": False}, "KEEP": {"call": 1, "path": "a.csv"}},
}


def passed_calls(dice: random.Random) -> None:
    """Calls that a ghost passes on: frames at both of their ends."""
    joined = Joined()
    call = control.Call(TOKEN)
    call.feed(request([b"add_task", *TASK]))
    joined.passing.pass_on(call, call.args)
    for _ in range(3):
        while joined.frames and dice.random() < 0.7:
            _hand(joined, *joined.frames.pop(0))
        kind, fields = _frame(dice, PASSED)
        end = "served" if kind in calls.OF_GHOSTS else "passed"
        _hand(joined, end, kind, dict(fields, body=mangled(b"O 3\nabcX 0\n", dice)))
        joined.serving.flush()


def _hand(joined: Joined, end: str, kind: str, fields: Dict[str, Any]) -> None:
    try:
        if end == "served":
            joined.serving.on_frame("g1", kind, fields)
        else:
            joined.passing.on_frame("k1", kind, fields)
    except PEERS_ERRORS:
        joined.peer = ""  # the link ends
        joined.serving.flush()
        joined.passing.drop_lost()


def merge(dice: random.Random) -> None:
    """A task's records: what is taken is taken by all, and in whatever order."""
    wires = [dict(SHORT, o=dice.randrange(9)), changed(SHORT, dice)]
    if dice.random() < 0.5:
        deep = nested(dice.choice((5, 30, 400)), dice) if dice.random() < 0.1 else None
        wires.append(changed(deep or wires[1], dice, 1))
    one, two = Queue(), Queue()
    for each in wires:
        one.merge(each)
    for each in reversed(wires):
        two.merge(each)
    assert one.root == two.root
    for found in one.records.values() if dice.random() < 0.2 else ():
        again = decoding.decode(json.loads(record.canonical(record.encode(found))))
        assert again.digest == found.digest


def decoded(dice: random.Random) -> None:
    """One record: taken, or Malformed in a few words."""
    try:
        decoding.decode(changed(RECORD, dice) if dice.random() < 0.9 else nasty(dice))
    except record.Malformed as problem:
        assert len(str(problem)) <= LOG_CHARS_MAX
        raise


# --- this machine: users, files, disks ------------------------------------------------


def condition(dice: random.Random) -> None:
    """CONDITIONS as a user writes them."""
    good = (b"queue:is_first; worker:tag gpu", b"queue:all_with_cmd_done ^sort .*a\\;b")
    good += (b"queue:done 12-abc;worker:has_file a b/c", b"worker:is old1;worker:x y")
    text = mangled(dice.choice(good), dice, good).decode("utf-8", "surrogateescape")
    for one in taskform.read_conditions(text):
        assert conditions.unwire(conditions.wire(one)) == one


TASK = (b"--retries", b"2", b"1K", b"2", b"1M", b"true", b"queue:is_first")
TASK += (b"a.csv;b\\;c", b"sort a.csv", b"mine")
LINES = b"1K 1 1K true '' '' 'echo hello'\n# a comment\n\n"
LINES += b"512M 2 1G false \"\" a.csv 'x' id\n"


def task_file(dice: random.Random) -> None:
    """A list of tasks in shell quoting: what passes here passes decoding too."""
    text = mangled(LINES, dice, TASK).decode("utf-8", "surrogateescape")
    for number, line in enumerate(taskform.lines(text), 1):
        if taskform.is_task(line):
            taskform.plain(line)
            _drafted(taskform.Draft(taskform.split_line(line), number))


def arguments(dice: random.Random) -> None:
    """The arguments of leoronic_add_task."""
    _drafted(taskform.Draft(words(dice, TASK)))


def _drafted(draft: taskform.Draft) -> None:
    if "\0" in draft.command + "".join(draft.paths):
        return  # no shell can give one, and the control port splits there
    found = [c for c in draft.conditions if c.verb != "queue:done"]  # its id is to be
    needs = draft.needs._replace(conditions=tuple(map(conditions.wire, found)))
    n = 0 if draft.name else 1
    key = record.named_key(draft.name, draft.command, needs) if draft.name else KEYS[0]
    one = record.Record(key, draft.command, needs, n + 1, "me")
    one.name = draft.name
    decoding.decode(json.loads(record.canonical(record.encode(one))))


SWEEP = (b"1K", b"1", b"1K", b"true", b"", b"", b"sort \"{}\" > '{.}'.out; $((2*{#}))")


def placeholders(dice: random.Random) -> None:
    """A sweep's command, and a value in each of its places."""
    made = sweep.Sweep(words(dice, SWEEP))
    value = mangled(b"dir/a b.csv", dice).replace(b"\0", b"")
    made.fill(dice.randrange(1, 9), value.decode("utf-8", "surrogateescape"))


CALLS: Tuple[Tuple[bytes, ...], ...] = (
    (b"add_task", *TASK),
    *((b"get_queue", flag) for flag in (b"--json", b"--csv", b"failed", b"-x")),
    *((b"get_output", b"--stderr", b"1-aaaaaaaa"), (b"why", b"1-"), (b"nodes",)),
    *((b"wait", b"--timeout", b"1s", b"1-aaaaaaaa"), (b"del_task", b"1-", b"x")),
    *((b"add_tag", b"gpu", b"big"), (b"drain", b"old1"), (b"config", b"--json")),
    (b"add_tasks_text", LINES),
    (b"add_tasks_sweep", *SWEEP, b"--", b"a", b"b"),
)


def requests(dice: random.Random) -> None:
    """The control port: bytes in slices, then what the verb makes of them."""
    call = control.Call(TOKEN)
    good = request(list(dice.choice(CALLS)))
    data = mangled(good, dice)
    if dice.random() < 0.5:
        data = TOKEN + b"\0" + data[len(TOKEN) + 1 :]
    is_whole = False
    while data and not is_whole:
        size = dice.choice((1, 7, 1000, 100000))
        is_whole = call.feed(data[:size])
        data = data[size:]


def utilities(dice: random.Random) -> None:
    """Each utility's arguments: an answer and an exit code, never a bug of ours."""
    desk = Desk()
    desk.add()
    name, *args = dice.choice(CALLS)
    client = Client(desk, request([name.decode(), *words(dice, args)]))
    desk.settle()
    assert not desk.logged, desk.logged[0][-300:]
    for line in client.answer.err:
        assert line.isprintable(), repr(line)


ENVIRON = {
    **{"HOME": "/tmp", "LEORONIC_HOME": "/tmp/x", "LEORONIC_ADDRESS": "127.0.0.2"},
    **{"LEORONIC_PORT": "7117", "LEORONIC_PEERS": "127.0.0.3, 127.0.0.4"},
    **{"LEORONIC_DISCOVERY": "off", "LEORONIC_CORES": "2", "LEORONIC_MEMORY": "1G"},
    **{"LEORONIC_TAGS": "a b", "LEORONIC_RELAY_CORE": "auto", "LEORONIC_NICE": "5"},
}


def environment(dice: random.Random) -> None:
    """The settings."""
    environ = dict(ENVIRON)
    for name in dice.sample(sorted(environ), 3):
        value = mangled(environ[name].encode(), dice).replace(b"\0", b"")
        environ[name] = value.decode("utf-8", "surrogateescape")
    settings.read_settings(environ, "/tmp")


def cookies(dice: random.Random) -> None:
    """A cookie's text."""
    cookie._checked("/cookie", mangled(b"00112233" * 8 + b"\n", dice))


KEPT = b"0 2-%s\n86400 1-%s\n0 %s\n" % (b"ab" * 32, b"cd" * 32, b"00112233" * 8)


def kept_cookies(dice: random.Random) -> None:
    """The cookies that a state directory keeps: what is read is written as it was."""
    for left, secret in cookie.parse_kept(mangled(KEPT, dice, (KEPT,))):
        assert 0 <= left < 1e9 and secret == secret.strip()


NEW_COOKIE = {"cookie": "3-" + "cd" * 32, "grace": 86400.0}


def new_cookie(dice: random.Random) -> None:
    """NEW_COOKIE of a peer: the newest never gets lower, what is told can be sent."""
    made: List[Any] = []
    seams = jar.Seams(
        *(lambda: 5.0, lambda: ["p", "q"]),
        lambda *told: made.append(effects.Send(*told)),
        *(lambda kept: None, lambda text: None),
    )
    mine = jar.Jar(b"2-" + b"ab" * 32, [], seams)
    for _ in range(3):
        before = jar.rank(mine.newest)
        good = dict(NEW_COOKIE, cookie="%d-%s" % (dice.randrange(1, 5), "cd" * 32))
        try:
            mine.on_frame("p", _frame(dice, {"NEW_COOKIE": good})[1])
        except PEERS_ERRORS:
            pass
        assert jar.rank(mine.newest) >= before
        assert len(mine.counting()) <= jar.COOKIES_MAX
    _check(made)


def rows(dice: random.Random) -> None:
    """What a state directory gives back at the start of a comrade."""
    search = lambda regex, text: False  # noqa: E731
    node = Node(effects.Identity(W, W, "w", "127.0.0.1"), 2, 1 << 30, [], search)
    node.load([changed(dict(RECORD, k=key), dice) for key in KEYS], {})
    node.begin([W], [V], 1.0)
    node.tick(2.0)


def salvage(dice: random.Random) -> None:
    """A database that was damaged anywhere: opened, and what is read is what was."""
    with tempfile.TemporaryDirectory(dir=TOP.name) as home:
        made = journal.Journal(home, 0, 1 << 20)
        made.open()
        good = {"row %d" % n: b"%d" % n * 50 for n in range(40)}
        made.write([journal.Batch(1, list(good.items()))])
        made.close()
        path = os.path.join(home, "queue", "db")
        with open(path, "r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(mangled(data, dice, TOKENS))
            file.truncate()
        again = journal.Journal(home, 0, 1 << 20)
        try:
            again.open()
            for key, value in again.rows():
                assert good.get(key) == value
        finally:
            again.close()


READERS: List[Reader] = [
    Reader("frames", decoder, (wire.BadFrame,), limit_s=0.1, limit_bytes=32 << 20),
    Reader("handshake", handshake),
    Reader("beacons", beacon),
    Reader("comrade's core", comrade, share=0.25),
    Reader("ghost's core", ghost, share=0.5),
    Reader("letters", letter, PEERS_ERRORS),
    Reader("passed calls", passed_calls, share=0.25),
    Reader("working directory", working_directory, share=0.5),
    Reader("a record", decoded, (record.Malformed,)),
    Reader("merging", merge, share=0.5),
    Reader("conditions", condition, (control.Wrong,)),
    Reader("list of tasks", task_file, (control.Wrong,)),
    Reader("add_task", arguments, (control.Wrong,)),
    Reader("sweep", placeholders, (control.Wrong,), limit_s=0.5),
    Reader("control port", requests, (ValueError,)),
    Reader("utilities", utilities, share=0.25),
    Reader("settings", environment, (settings.WrongSetting,), limit_s=2.0),
    Reader("cookie", cookies, (settings.WrongSetting,)),
    Reader("kept cookies", kept_cookies, (ValueError,)),
    Reader("new cookie", new_cookie),
    Reader("rows", rows, share=0.5),
    Reader("salvage", salvage, (journal.StateBroken,), share=0.01, limit_s=0.5),
]
