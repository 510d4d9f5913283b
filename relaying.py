"""A comrade's side of its relay: starting it, giving it ghosts, talking with it.

Reason for this file beside comrade.py and relay.py: relay.py is another process, that
imports nothing of this; comrade.py would outgrow its size.

Rules. Knows frames, not what they mean. A ghost is handed over once it has proved that
it has the cookie: so a stranger can't make this process start anything (D14), and the
relay never needs the cookie.

    main --- socket pair: socket, keys, name of each new ghost; EOF ends it ---> relay
    main <-- multiprocessing.managers, AF_UNIX: desk.exchange(batch, wait) ----- relay

How it works. `exchange` is called by two threads of the relay: with what the relay has
(answered at once), and with nothing, to wait for what main has (answered when there is
something, after `wait` seconds at the latest). Each call waits for the loop's answer,
not just its thread's: a main that is stuck answers nobody, and so the relay, which
answers ghosts only while it was answered lately, never masks that. Small outputs go
from the manager's thread to the journal's, ahead of the records that name them.

Batch to main: [generation, (verb, link, ...)...]: frame(kind, fields), lost(why),
output(digest, data), fetched(ticket, is_here). From main: send(kind, fields),
close(why), fetch(digest, size, ticket).

Invariants. What an ended relay still says is not heard, and what was for it is not told
to the next. A relay that ends takes no run with it: its ghosts' links are lost for the
reason `relay`, and the next ghost starts another.
"""

import json
import os
import signal
import socket
import struct
import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Set, Tuple

import net
import ownpath
import shells
from effects import Frame, GhostUp, LinkLost, Message

IDLE_S = 60.0  # the relay is kept so long after the last ghost has gone
PATH_BYTES_MAX = 100  # of an AF_UNIX address: 108 with the NUL, on Linux
SCRIPT = "relay.py"


def name_of(number: int) -> str:
    """Give the name of a ghost's link, as the core knows it: no node id is like it."""
    return "g%d" % number


class _Call:
    """One exchange under way."""

    def __init__(self, batch: List[Any], wait: float) -> None:
        self.batch = batch
        self.wait = wait
        self.until: Optional[float] = None  # the loop sets it
        self.answer: List[Any] = []
        self.done = threading.Lock()
        self.done.acquire()


class Desk:
    """What the relay calls; its thread waits here for the loop."""

    def __init__(
        self, wake: Callable[[], None], keep: Callable[[List[Tuple[str, bytes]]], None]
    ) -> None:
        self._wake = wake
        self._keep = keep
        self.calls: Deque[_Call] = deque()

    def exchange(self, batch: List[Any], wait: float) -> List[Any]:
        """Hand over what the relay has; get what main has, within `wait` seconds."""
        printed = [item[2:4] for item in batch[1:] if item[0] == "output"]
        if printed:
            self._keep([(digest, data) for digest, data in printed])
        rest = [item for item in batch[1:] if item[0] != "output"]
        call = _Call([batch[0], *rest], wait)
        self.calls.append(call)
        self._wake()
        call.done.acquire()
        return call.answer


class Seams(NamedTuple):
    """What comrade.py does for this file."""

    step: Callable[[Message], None]
    clock: Callable[[], float]
    wake: Callable[[], None]
    keep: Callable[[List[Tuple[str, bytes]]], None]  # small outputs; any thread
    watch: Callable[[int, Callable[[], None], None], None]
    unwatch: Callable[[int], None]
    log: Callable[[str], None]
    on_change: Callable[[bool], None]  # a relay runs, or no longer
    on_link: Callable[[str, bytes], None]  # a ghost has proved that it has a cookie


class Relay:
    """The relay of one comrade, while there are ghosts."""

    def __init__(
        self, home: str, program: str, core: Optional[int], seams: Seams
    ) -> None:
        self._home, self._program, self._core = home, program, core
        self._seams = seams
        self._desk = Desk(seams.wake, seams.keep)
        self._calls: List[_Call] = []  # those that wait for something to tell
        self._to_tell: List[Any] = []
        self._links: Dict[str, int] = {}  # links of ghosts, by name
        self._count = 0
        self._generation = 0
        self._pid = 0
        self._sock: Optional[socket.socket] = None
        self._key = b""
        self._idle_since: Optional[float] = None
        self._handing: Set[net.Link] = set()  # whose handshake isn't sent out yet
        self._fetching: Dict[int, Callable[[bool], None]] = {}

    def __contains__(self, peer: str) -> bool:
        """Say whether a link is one of a ghost's."""
        return peer in self._links

    @property
    def peers(self) -> List[str]:
        """Give the links of ghosts."""
        return list(self._links)

    @property
    def pid(self) -> int:
        """The relay's process; 0: there is none."""
        return self._pid

    # --- what comrade.py calls ----------------------------------------------------

    def hand(self, link: net.Link) -> None:
        """Take a ghost that has just proved itself."""
        self._handing.add(link)
        self._hand_over()

    def send(self, peer: str, kind: str, fields: Dict[str, Any]) -> None:
        """Send a frame to a ghost."""
        if peer in self._links:
            self._to_tell.append(("send", self._links[peer], kind, fields))

    def close(self, peer: str, why: str) -> None:
        """End a ghost's link; the core knows it already."""
        number = self._links.pop(peer, None)
        if number is not None:
            self._to_tell.append(("close", number, why))

    def fetch(
        self, peer: str, digest: str, size: int, then: Callable[[bool], None]
    ) -> None:
        """Let the relay get an output from a ghost into this node's files."""
        number = self._links.get(peer)
        if number is None:
            then(False)
            return
        self._count += 1
        self._fetching[self._count] = then
        self._to_tell.append(("fetch", number, digest, size, self._count))

    def tick(self, now: float) -> Optional[float]:
        """Take what the relay has said, tell it what there is; give the next time."""
        self._hand_over()
        while self._desk.calls:
            self._take(self._desk.calls.popleft(), now)
        self._answer(now)
        if self._pid and not self._links and not self._handing:
            self._idle_since = self._idle_since or now
            if now >= self._idle_since + IDLE_S:
                self._end()
                return None
        else:
            self._idle_since = None
        times = [call.until for call in self._calls if call.until is not None]
        if self._idle_since is not None:
            times.append(self._idle_since + IDLE_S)
        return min(times, default=None)

    def stop(self) -> None:
        """End the relay with this process."""
        self._end()

    # --- the relay's process ------------------------------------------------------

    def _start(self) -> None:
        if not self._key:
            self._serve()
        self._generation += 1
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock, theirs = pair
        words = ownpath.module_words(os.path.join(self._program, SCRIPT))
        with theirs:
            self._pid = shells.spawn(words, os.environ, theirs.fileno(), 1)
        told = {
            "path": self._path,
            "key": self._key.hex(),
            "home": self._home,
            "generation": self._generation,
        }
        self._sock.send(json.dumps(told).encode("ascii"))
        self._sock.setblocking(False)
        self._seams.watch(self._sock.fileno(), self._on_end, None)
        if self._core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._pid, {self._core})
        self._seams.log("a ghost is here: the relay is started, process %d" % self._pid)
        self._seams.on_change(True)

    def _serve(self) -> None:
        """Have a manager in a thread, once: importing it takes longer than a turn."""
        self._key = os.urandom(32)
        self._path = path = os.path.join(self._home, "relay")
        try:
            os.unlink(path)  # of a former process that was killed
        except OSError:
            pass
        if len(os.fsencode(path)) > PATH_BYTES_MAX:  # a shorter way to the same place
            folder = os.open(self._home, os.O_RDONLY)
            self._path = "/proc/%d/fd/%d/relay" % (os.getpid(), folder)
        threading.Thread(target=self._run_server, daemon=True).start()

    def _run_server(self) -> None:
        from multiprocessing.managers import BaseManager

        class Manager(BaseManager):
            pass

        Manager.register("desk", callable=lambda: self._desk, exposed=("exchange",))
        manager = Manager(address=self._path, authkey=self._key)
        manager.get_server().serve_forever()

    def _on_end(self) -> None:
        """The relay has ended, by itself."""
        self._seams.log("the relay has ended; its ghosts will come back")
        self._end()

    def _end(self) -> None:
        if self._sock is None:
            return
        self._seams.unwatch(self._sock.fileno())
        self._sock.close()
        self._sock = None
        pid, self._pid = self._pid, 0
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except OSError:
            pass  # it is gone already
        self._generation += 1  # what it has said meanwhile isn't heard
        self._to_tell = []
        self._answer_all()
        fetching, self._fetching = self._fetching, {}
        for then in fetching.values():
            then(False)
        links, self._links = self._links, {}
        for peer in links:
            self._seams.step(LinkLost(peer, "relay"))
        self._seams.on_change(False)

    def _hand_over(self) -> None:
        for link in list(self._handing):
            given = (
                link.give() if link.ended is None and link.peer is not None else None
            )
            if given is None and link.ended is None:
                continue  # its socket is full just now
            self._handing.discard(link)
            if given is not None and link.peer is not None:
                peer = self._give(link.peer.writer, link.address, *given)
                if peer:
                    self._seams.on_link(peer, link.shake.cookie)

    def _give(
        self, writer: str, address: str, sock: socket.socket, keys: Tuple[bytes, bytes]
    ) -> str:
        with sock:
            if self._sock is None:
                self._start()
            assert self._sock is not None
            number = self._count = self._count + 1
            head = net.HANDED.pack(
                *(number, b"".join(keys), writer.encode(), address.encode())
            )
            fds = struct.pack("i", sock.fileno())
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            try:
                self._sock.sendmsg([head], rights)
            except OSError as problem:  # it is just ending, or hundreds wait there
                self._seams.log("a ghost can't be handed over: %s" % problem)
                return ""
        peer = name_of(number)
        self._links[peer] = number
        self._seams.step(GhostUp(peer, writer))
        return peer

    # --- exchanging ---------------------------------------------------------------

    def _take(self, call: _Call, now: float) -> None:
        if call.batch[0] != self._generation:
            call.done.release()
            return
        for verb, *rest in call.batch[1:]:
            if verb == "fetched":
                then = self._fetching.pop(rest[1], None)
                if then is not None:
                    then(rest[2])
                continue
            peer = name_of(rest[0])
            if peer not in self._links:
                continue
            if verb == "frame":
                self._seams.step(Frame(peer, rest[1], rest[2]))
            elif verb == "lost":
                del self._links[peer]
                self._seams.step(LinkLost(peer, rest[1]))
        if call.wait > 0:
            call.until = now + call.wait
            self._calls.append(call)
        else:
            call.done.release()

    def _answer(self, now: float) -> None:
        for call in list(self._calls):
            if self._to_tell or (call.until is not None and now >= call.until):
                call.answer, self._to_tell = self._to_tell, []
                self._calls.remove(call)
                call.done.release()

    def _answer_all(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call.done.release()
