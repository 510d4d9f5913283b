"""A comrade without sockets, disk or processes, for the tests of the control port.

`Desk` drives a real Control and a real Node: what the node wants written is answered at
once, with an error, or when the test says so; what it wants run ends when the test says
so. The clock is a number. `Client` is what leoronic_utilities would see.
"""

import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import effects as core
import verbs
from control import Acts, Call, Control, Fetch
from letters import Letter
from node import Node
from record import File

TOKEN = b"0123456789abcdef0123456789abcdef"
GIB = 1 << 30
PIECE_BYTES = 4  # of an output in one letter


class Answer(NamedTuple):
    """What a utility got: exit code (None: none), stdout, stderr, progress."""

    code: Optional[int]
    out: bytes
    err: List[str]
    progress: List[str]

    @property
    def lines(self) -> List[str]:
        return self.out.decode("utf-8", "surrogateescape").splitlines()


def request(
    args: Sequence[Any], cwd: str = "/", columns: str = "80", tty: str = ""
) -> bytes:
    """Give the bytes that a utility sends."""
    words = [TOKEN.decode("ascii"), str(len(args)), cwd, columns, tty, *args]
    raw = [
        w if isinstance(w, bytes) else w.encode("utf-8", "surrogateescape")
        for w in words
    ]
    return b"".join(word + b"\0" for word in raw)


def parse(data: bytes) -> Answer:
    """Read an answer as leoronic_utilities does."""
    code, err, progress = None, [], []
    out, at = bytearray(), 0
    while at < len(data):
        end = data.index(b"\n", at)
        kind, _, rest = data[at:end].partition(b" ")
        at = end + 1
        text = rest.decode("utf-8", "surrogateescape")
        if kind == b"O":
            assert len(data) >= at + int(rest)
            out += data[at : at + int(rest)]
            at += int(rest)
        elif kind == b"L":
            out += rest + b"\n"
        elif kind == b"E":
            err.append(text)
        elif kind == b"P":
            progress.append(text)
        else:
            assert kind == b"X", kind
            code = int(rest)
            assert at == len(data), "something follows the end"
    return Answer(code, bytes(out), err, progress)


class Client:
    """One call of a utility; `reads` is False for one that doesn't read."""

    def __init__(self, desk: "Desk", data: bytes) -> None:
        self.desk = desk
        self.call = Call(TOKEN)
        self.got = bytearray()
        self.reads = True
        self.most = 0  # bytes that waited for it at once
        assert self.call.feed(data)
        desk.clients.append(self)
        desk.control.on_call(self.call)
        self.flush()

    def flush(self) -> None:
        self.most = max(self.most, len(self.call.out))
        if self.reads:
            self.got += self.call.out
            self.call.out.clear()

    def leave(self) -> None:
        self.desk.clients.remove(self)
        self.desk.control.on_closed(self.call)

    @property
    def answer(self) -> Answer:
        self.flush()
        return parse(bytes(self.got))


class Desk:
    """See the top of this file."""

    def __init__(self, cores: int = 4, memory: int = 4 * GIB, **seams: Any) -> None:
        self.now = 1000.0
        self.wall = 1.7e9
        self.disk = "at once"  # or "later", or the text of an error
        self.pending: List[core.Persist] = []
        self.persisted: List[core.Persist] = []
        self.started: Dict[str, core.Start] = {}
        self.kills: List[core.Kill] = []
        self.holds: Callable[[str], bool] = lambda text: False
        self.free_memory: Optional[int] = None
        self.free_disk = 100 * GIB
        self.files: Dict[str, Any] = {}  # path -> File or OSError
        self.outputs: Dict[str, Any] = {}  # digest -> bytes, path or None
        self.letters: List[Letter] = []
        self.strange: Dict[str, str] = {}  # addresses of another version, and why
        self.live: Dict[Tuple[str, str], str] = {}
        self.kept: List[Tuple[int, Sequence[str]]] = []  # asked, not answered yet
        self.keeps_later = False
        self.is_stopped = False
        self.logged: List[str] = []
        self.clients: List[Client] = []
        me = core.Identity("id", "a" * 16, "old1", "127.0.0.2")
        search = lambda regex, text: re.search(regex, text) is not None  # noqa: E731
        self.node = Node(me, cores, memory, [], search)
        acts = Acts(
            step=self.step,
            keep=self.keep,
            fetch=self.fetch,
            renames=seams.get("renames", lambda command, names: []),
            clock=lambda: self.now,
            wall=lambda: self.wall,
            log=self.logged.append,
            ask_node=self.ask_node,
        )
        self.control = Control(self.node, acts, seams.get("verbs", verbs.VERBS))
        self._version = -1

    # --- what comrade.py does -----------------------------------------------------

    def step(self, message: core.Message) -> None:
        self._has_stepped = True
        self.perform(self.node.step(message, self.now))

    def perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, core.Persist):
                self.persisted.append(effect)
                if self.disk == "later":
                    self.pending.append(effect)
                else:
                    error = "" if self.disk == "at once" else self.disk
                    self.step(core.Written(effect.seq, error))
            elif isinstance(effect, core.Acked):
                self.control.on_answer(effect.ticket, effect)
            elif isinstance(effect, core.Check):
                holds = frozenset(t for t in effect.conditions if self.holds(t))
                self.step(core.Facts(holds, self.free_memory, self.free_disk))
            elif isinstance(effect, core.Start):
                self.started[effect.run] = effect
            elif isinstance(effect, core.Kill):
                self.kills.append(effect)
            elif isinstance(effect, core.Stopped):
                self.is_stopped = True

    def keep(self, call: Call, ticket: int, paths: Sequence[str]) -> None:
        self.kept.append((ticket, paths))
        if not self.keeps_later:
            self.answer_keeps()

    def answer_keeps(self) -> None:
        asked, self.kept = self.kept, []
        for ticket, paths in asked:
            found = [self.files.get(path, missing(path)) for path in paths]
            wrong = [each for each in found if isinstance(each, Exception)]
            self.control.on_answer(ticket, wrong[0] if wrong else found)

    def fetch(self, ticket: int, wanted: Fetch) -> None:
        self.control.on_answer(ticket, self.outputs.get(wanted.digest))

    def ask_node(self, ticket: int, letter: Letter) -> None:
        """Answer as post.py does where the run goes on."""
        args = letter.args
        self.letters.append(letter)
        if letter.verb == "health":
            self.control.on_answer(ticket, ({"strange": self.strange}, b""))
            return
        path = self.live.get((args["run"], args["which"]))
        said: Tuple[Dict[str, Any], bytes] = ({}, b"")
        if path:
            with open(path, "rb") as file:
                data = file.read()
            said = ({"size": len(data)}, data[args["offset"] :][:PIECE_BYTES])
        self.control.on_answer(ticket, said)

    def write(self, error: str = "") -> None:
        """Answer what waits for the disk."""
        pending, self.pending = self.pending, []
        for effect in pending:
            self.step(core.Written(effect.seq, error))

    def tick(self) -> Optional[float]:
        effects, due = self.node.tick(self.now)
        self._has_stepped = False
        self.perform(effects)
        version = self.node.queue.version
        has_changed, self._version = version != self._version, version
        due_here = self.control.tick(self.now, has_changed)
        for client in self.clients:
            client.flush()
        if self._has_stepped:  # as in comrade.py: the node's deadline may have changed
            due = self.now
        times = [t for t in (due, due_here) if t is not None]
        return min(times, default=None)

    def settle(self) -> Optional[float]:
        """Turn the loop until nothing is due now; give when something is."""
        for _ in range(100000):
            due = self.tick()
            if due is None or due > self.now:
                return due
        raise AssertionError("the loop spins")

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        due = self.settle()
        while due is not None and due <= end:
            self.now = due
            due = self.settle()
        self.now = end
        self.settle()

    # --- what a test asks ---------------------------------------------------------

    def client(self, *args: Any, **head: Any) -> Client:
        return Client(self, request(args, **head))

    def ask(self, *args: Any, **head: Any) -> Answer:
        """Call a utility that answers without anything else happening."""
        client = self.client(*args, **head)
        self.settle()
        return client.answer

    def add(self, command: str = "true", *options: str, **fields: str) -> str:
        """Add a task; give its id."""
        task = dict(MEMORY="1K", CORES="1", STORAGE="1K", CONCURRENCY="true")
        task.update(dict(CONDITIONS="", FILES="", COMMANDS=command, ID=""), **fields)
        answer = self.ask("add_task", *options, *task.values())
        assert answer.code == 0, answer
        assert answer.lines
        return answer.lines[-1]

    def run_of(self, text: str) -> str:
        """Give the key of the run of a task that was started and isn't over."""
        (record,) = self.node.queue.find(text)
        return record.living()[0]

    def begin(self, text: str) -> str:
        run = self.run_of(text)
        self.step(core.RunStarted(run, self.wall))
        return run

    def end(
        self, text: str, code: int = 0, out: Tuple[int, str] = (0, ""), **more: Any
    ) -> None:
        """End the run of a task."""
        run = self.run_of(text)
        cause, err = more.get("cause", ""), more.get("err", (0, ""))
        end = self.wall + 5
        self.step(
            core.RunEnded(run, code, cause, self.wall, end, 5.0, list(out), list(err))
        )
        self.settle()

    def states(self) -> List[str]:
        return [record.state.value for record in self.node.queue.in_order()]


def file(path: str, content: str = "0", size: int = 10) -> File:
    """Give what the store says of a file that it keeps."""
    return File("", (content * 64)[:64], size, 0o644)


def missing(path: str) -> OSError:
    return FileNotFoundError(2, "No such file or directory", path)
