"""The relay: a process beside a comrade that owns the sockets of its ghosts.

Rules. Executed by a comrade (relaying.py), never imported by one. Knows frames, not
what they mean; knows no queue and no cookie. What of a ghost concerns the queue goes to
main, in batches; heartbeats, file bodies and outputs end here: so a hundred ghosts cost
main next to nothing.

How it works. One loop (loop.py) for the ghosts' links, and two threads for the calls of
`desk.exchange` (relaying.py tells what they carry): one brings main what there is, the
other waits for what main has. Sockets of new ghosts come over stdin, a socket pair.

Invariants
1. A ghost's heartbeat is answered only if main has answered within FRESH_S: a relay
   never masks a main that is stuck or dead. At EOF of stdin it ends at once.
2. An output is told to main before the record that names it.
3. Files are read from the comrade's store and written under their digest only (D9).
"""

import os

from ownpath import as_module, prefer_stdlib

if __name__ == "__main__":
    as_module(__file__)
prefer_stdlib()

import json  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from typing import Any, Callable, Dict, List, Optional, Sequence  # noqa: E402

import net  # noqa: E402
import store  # noqa: E402
import transfer  # noqa: E402
import wire  # noqa: E402
from loop import Loop, earliest  # noqa: E402
from places import Worker  # noqa: E402
from process import CLOSE_S, LogFile, clock  # noqa: E402
from wire import End, Kind  # noqa: E402

FRESH_S = 3.0  # main has answered within this, or ghosts aren't answered either
WAIT_S = 1.0  # of the call that waits for what main has: three fit into FRESH_S
PAUSE_S = 2.5  # woken so much too late: this process was stopped, the ghosts were not
CONNECT_S, CONNECT_PAUSE_S = 20.0, 0.02  # main imports its manager meanwhile
CONFIG_BYTES_MAX = 65536

assert 2 * WAIT_S < FRESH_S


class Exchange:
    """The two threads that talk with main."""

    def __init__(self, told: Dict[str, Any], wake: Callable[[], None]) -> None:
        self.answered_at = clock()
        self.is_over = False
        self.problem = ""
        self._generation = told["generation"]
        self._wake = wake
        self._coming: List[Any] = []
        self._going: List[Any] = []
        self._has_some = threading.Condition()
        for work in (self._bring, self._wait):
            args = (told, work)
            threading.Thread(target=self._run, args=args, daemon=True).start()

    def take(self) -> List[Any]:
        """Give what main has said."""
        with self._has_some:
            coming, self._coming = self._coming, []
        return coming

    def tell(self, *item: Any) -> None:
        """Tell main something."""
        with self._has_some:
            self._going.append(item)
            self._has_some.notify()

    def _run(self, told: Dict[str, Any], work: Callable[[Any], None]) -> None:
        try:
            work(self._connect(told))
        except Exception as problem:  # main is gone, whatever way it shows
            self.problem = repr(problem)
            self.is_over = True
            self._wake()

    @staticmethod
    def _connect(told: Dict[str, Any]) -> Any:
        from multiprocessing.managers import BaseManager

        class Manager(BaseManager):
            pass

        Manager.register("desk")
        manager = Manager(address=told["path"], authkey=bytes.fromhex(told["key"]))
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                manager.connect()
                return manager.desk()  # type: ignore[attr-defined]  # registered
            except (OSError, EOFError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(CONNECT_PAUSE_S)  # a thread of its own; nobody waits

    def _bring(self, desk: Any) -> None:
        while True:
            with self._has_some:
                while not self._going:
                    self._has_some.wait()
                batch, self._going = self._going, []
            desk.exchange([self._generation, *batch], 0)
            self.answered_at = clock()

    def _wait(self, desk: Any) -> None:
        while True:
            coming = desk.exchange([self._generation], WAIT_S)
            self.answered_at = clock()
            if coming:
                with self._has_some:
                    self._coming += coming
                self._wake()


class Relay:
    """All ghosts of one comrade."""

    def __init__(self, stdin: socket.socket) -> None:
        told = json.loads(stdin.recv(CONFIG_BYTES_MAX).decode("ascii"))
        self.log = LogFile(os.path.join(told["home"], "log"))
        self.loop = Loop(self.tick, self.log.write)
        self.links: Dict[str, net.Link] = {}
        self.exchange = Exchange(told, self.loop.wake)
        self._worker = Worker(self.loop.watch)
        self._transfers = transfer.Transfers(
            store.Files(told["home"]),
            transfer.Seams(
                lambda: self.links,
                self._aside,
                lambda digest, then: then(None),
                clock,
                self.log.write,
            ),
        )
        self._stdin = stdin
        stdin.setblocking(False)
        self.loop.watch(stdin.fileno(), self._on_stdin)
        self._due: Optional[float] = None

    def run(self) -> None:
        """Serve until main has ended."""
        while not self.loop.is_over:
            self.loop.turn()
        self.log.close(CLOSE_S)

    def tick(self) -> Optional[float]:
        """Take what main has said, look after the links; give the next time."""
        now = clock()
        if self.exchange.is_over:
            self.log.write("the relay ends: " + self.exchange.problem)
            self.loop.is_over = True
            return None
        if self._due is not None and now > self._due + PAUSE_S:
            for link in self.links.values():
                link.last_heard = now
        for verb, number, *rest in self.exchange.take():
            ghost = self.links.get("g%d" % number)
            if verb == "fetch":
                self._fetch(number, *rest)
            elif ghost is None:
                pass  # it has just ended; main will hear of it
            elif verb == "send":
                self._send(ghost, *rest)
            else:
                ghost.bye("closing")
        for link in list(self.links.values()):
            link.tick(now)
        self._sweep()
        times = [self._transfers.tick(now)]
        times += [link.tick(now) for link in self.links.values()]
        for peer, link in self.links.items():
            self._watch(peer, link)
        self._due = earliest(times)
        return self._due

    # --- ghosts -------------------------------------------------------------------

    def _on_stdin(self) -> None:
        """Take the next ghost's socket; end with main."""
        room = socket.CMSG_SPACE(struct.calcsize("i"))
        try:
            head, rights, _, _ = self._stdin.recvmsg(net.HANDED.size, room)
        except (BlockingIOError, InterruptedError):
            return
        if not head:
            self.loop.is_over = True
            return
        number, keys, writer, address = net.HANDED.unpack(head)
        (fd,) = struct.unpack("i", rights[0][2])
        who = wire.Hello(writer.decode(), writer.decode(), wire.Role.GHOST)
        link = net.adopt(
            *(socket.socket(fileno=fd), address.rstrip(b"\0").decode(), who),
            *((keys[:32], keys[32:]), clock()),
        )
        peer = "g%d" % number
        self.links[peer] = link
        number = link.fileno()
        link.release = lambda: self.loop.unwatch(number)
        self._watch(peer, link)

    def _watch(self, peer: str, link: net.Link) -> None:
        if link.ended is None:
            write = (lambda: self._on_write(link)) if link.want_write else None
            self.loop.watch(link.fileno(), lambda: self._on_read(peer, link), write)

    def _on_read(self, peer: str, link: net.Link) -> None:
        for frame in link.on_readable(clock()):
            self._on_frame(peer, link, frame)
        self._sweep()

    def _on_write(self, link: net.Link) -> None:
        if link.ended is None:
            link.on_writable(clock())
        self._sweep()

    def _on_frame(self, peer: str, link: net.Link, frame: wire.Frame) -> None:
        kind = frame.kind
        number = int(peer[1:])
        if kind is Kind.HEARTBEAT:
            if clock() - self.exchange.answered_at < FRESH_S:
                link.send(kind, frame.fields)
        elif kind in wire.BULK:
            self._transfers.on_frame(peer, frame)
        elif kind is Kind.OUTPUT:
            digest = store.digest_of(frame.body)
            if frame.fields.get("digest") == digest:
                self.exchange.tell("output", number, digest, frame.body)
        elif kind is Kind.BYE:
            is_stopping = frame.fields.get("why") == "stopping"
            link.close(End.STOPPING if is_stopping else End.CLOSING)
        else:
            fields = frame.fields
            if wire.CATALOGUE[kind].raw:
                fields = dict(fields, body=frame.body)
            self.exchange.tell("frame", number, kind.name, fields)

    def _sweep(self) -> None:
        """Tell main of the links that have ended."""
        for peer, link in list(self.links.items()):
            if link.ended is not None:
                link.close()
                del self.links[peer]
                why = net.LOST.get(link.ended, "broken")
                self.exchange.tell("lost", int(peer[1:]), why)

    def _send(self, link: net.Link, kind: str, fields: Dict[str, Any]) -> None:
        if kind == "BYE":
            link.bye(fields["why"])
            return
        try:
            body = fields.pop("body", b"")
            link.send(Kind[kind], fields, body)
        except ValueError as problem:
            self.log.write("%s can't be sent to a ghost: %s" % (kind, problem))

    # --- outputs ------------------------------------------------------------------

    def _fetch(self, number: int, digest: str, size: int, ticket: int) -> None:
        """Get an output from a ghost into the comrade's files."""
        self._transfers.want(
            *(Kind.OUTPUT_WANT, digest, size, "g%d" % number),
            lambda is_here: self.exchange.tell("fetched", number, ticket, is_here),
        )

    def _aside(
        self, job: Callable[[], Any], then: Callable[[Any, Optional[Exception]], None]
    ) -> None:
        def guarded() -> Any:
            try:
                return job(), None
            except Exception as error:  # it is for whoever asked for the job
                return None, error

        self._worker.do(guarded, lambda both: then(*both))


def main(_: Sequence[str]) -> None:
    """Be the relay until main has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with main, not before
    os.umask(0o077)
    Relay(socket.socket(fileno=0)).run()


if __name__ == "__main__":
    main([])
