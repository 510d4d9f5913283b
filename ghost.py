"""A ghost: a light worker without a queue, that works through one comrade.

    python3 ghost.py [N | ADDRESS]

    ghost.py -+- one loop: the link to its clairvoyant, ghostnode.py, the sandbox
              +- a thread for the journal, one for hashing and copying (store.py)
              +- the tasks' bash processes (sandbox.py)

Rules. This file performs what ghostnode.py decides; it owns the sockets and the
processes' ends, and decides nothing about tasks. It listens for this machine's
utilities alone (calls.py): to comrades a ghost dials.

How it works. As comrade.py, smaller. At the start, and whenever it is lonely, it asks
on the LAN who is there (discovery.py), and tries its own /24 where broadcasts are
swallowed (addresses.py). Whom LEORONIC_PEERS names, and the comrades of former days, it
asks by connecting.

Invariants. D5: attached and idle it wakes once a second, for its heartbeat. D13:
killed, its watcher takes its tasks with it. SIGINT, SIGTERM, SIGHUP hand back what runs
here and end the process with 0 within STOP_S.
"""

import os
import sys

from ownpath import as_module, prefer_stdlib

if __name__ == "__main__":
    as_module(__file__)
prefer_stdlib()

import errno  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import time  # noqa: E402
from _random import Random  # noqa: E402
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, cast  # noqa: E402

import calls  # noqa: E402
import clairvoyants  # noqa: E402
import cookie  # noqa: E402
import discovery  # noqa: E402
import doctor  # noqa: E402
import effects as core  # noqa: E402
import jar  # noqa: E402
import machine  # noqa: E402
import net  # noqa: E402
import outputs  # noqa: E402
import post  # noqa: E402
import sandbox  # noqa: E402
import settings  # noqa: E402
import store  # noqa: E402
import transfer  # noqa: E402
import wire  # noqa: E402
import workplace  # noqa: E402
from addresses import Sweep  # noqa: E402
from clients import ControlPort  # noqa: E402
from control import Acts, Call, Control  # noqa: E402
from ghostnode import GhostNode  # noqa: E402
from loop import InOrder, Loop, earliest  # noqa: E402
from process import (  # noqa: E402
    CLOSE_S,
    EXIT_DONE,
    EXIT_SYSTEM,
    EXIT_USAGE,
    STOP_S,
    STOP_SIGNALS,
    LogFile,
    Quit,
    clock,
    say,
    show,
    task_environ,
)
from shelf import Shelf  # noqa: E402
from wire import End, Kind  # noqa: E402

PROBE_S = 0.8  # to find out whether anybody is there, while looking around
FORMER_MAX = 20  # writers of former processes that are told, so that nobody waits
WRITE_SEQ = -1  # of a batch that only carries outputs
SAID_MAX = 1000  # lines about comrades that can't be had
LOAD_S = 5.0  # what a former process couldn't tell is read within this

USAGE = """usage: python3 ghost.py [N | ADDRESS]

A ghost of the comrade with the lowest IP address; of the one at index N (modulo their
number, counted from 0, sorted by address); or of the one at ADDRESS. Settings as for
`bash leoronic --help`.
"""


class Ghost:
    """The loop and all that it drives. `open`, then `run`; that gives the exit code."""

    def __init__(self, config: settings.Settings, wanted: str) -> None:
        self.config = config
        self.log = LogFile(os.path.join(config.home, "log"))
        self.loop = Loop(self.tick, self.log.write)
        self.watch, self.unwatch = self.loop.watch, self.loop.unwatch
        self.store = store.Store(config.home, self.loop.wake)
        self.files = self.store.files
        self.choice = clairvoyants.Clairvoyants(wanted, Random().random)
        self.links: Dict[str, net.Link] = {}
        self.batches: Dict[int, store.Batch] = {}
        self.then: Dict[int, Callable[..., None]] = {}
        self.perform = InOrder(lambda effect: PERFORM[type(effect)](self, effect))
        self.printed: Dict[str, bytes] = {}  # small outputs that may have to be sent
        self.stop_by: Optional[float] = None
        self._tickets = 0
        self._dialled: Optional[net.Link] = None
        self._dials = 0
        self._dial_by: Optional[float] = None
        self._probes: Dict[socket.socket, str] = {}
        self._probe_by = 0.0
        self._beacons: Optional[discovery.Discovery] = None
        self._is_hearing = False
        self._told = ""
        self._said: Set[str] = set()  # of comrades that can't be had
        self._addresses: List[str] = []
        self._has_stepped = False

    # --- starting -----------------------------------------------------------------

    def open(self) -> List[str]:
        """Take state directory, sandbox and cookie; give notices."""
        notices = self.store.open()
        found = settings.find_cookie(self.config)
        if not found.secret:
            raise Quit(
                EXIT_USAGE,
                "no cookie; found none at %s; copy it from a comrade's folder"
                % settings.cookie_places(self.config)[0],
            )
        notices += found.notices
        self.jar = jar.Jar(
            found.secret,
            cookie.kept(self.config.home),
            jar.Seams(
                *(clock, lambda: list(self.links)),
                lambda peer, kind, fields: self._send(core.Send(peer, kind, fields)),
                *(self._save_cookies, self._tell),
            ),
        )
        self._open_sandbox()
        self._open_core()
        self.store.start()
        self._read_printed()
        notices += self.store.notices
        self._open_post()
        self._open_control()
        if self.config.discovery and not self.config.address.startswith("127."):
            self._beacons = discovery.Discovery(
                self.config.port,
                self.node.me.writer,
                self.jar.clusters,
                is_comrade=False,
            )
        self._sweep = Sweep(lambda: discovery.sweep(self.config.address))
        self.jar.begin()
        return notices

    def _save_cookies(self, kept: cookie.Kept) -> None:
        home, user_home = self.config.home, self.config.user_home
        places = settings.cookie_places(self.config)
        job = lambda: cookie.save(home, places, user_home, kept)  # noqa: E731
        self.aside(job, self.jar.on_saved)

    def _open_sandbox(self) -> None:
        config = self.config
        self.sandbox = sandbox.Sandbox(
            config.directory,
            config.home,
            task_environ(config.home),
            self.watch,
            self.unwatch,
            self.files.path,
            clock,
        )
        self.sandbox.nice = config.nice
        self.sandbox.clean_up()
        self.transfers = transfer.Transfers(
            self.files,
            transfer.Seams(
                lambda: self.links, self.aside, self.small, clock, self.log.write
            ),
        )
        self.outputs = outputs.Outputs(
            self.files,
            self.transfers,
            outputs.Seams(
                self.aside, self.small, self.step, self._write_outputs, self.log.write
            ),
        )
        self.workplace = workplace.Workplace(
            self.sandbox,
            config.directory,
            config.memory is not None,
            workplace.Seams(
                self.step,
                lambda: config.hostname,
                lambda: config.address,
                self._shown_name,
                lambda: self.node.tags,
                lambda digests: self.shelf.use(digests),
                self._on_ended,
                clock,
            ),
        )

    def _open_core(self) -> None:
        config, found = self.config, machine.machine()
        rows = [json.loads(data) for _, data in self.store.load()]
        meta = {name: data.decode("ascii") for name, data in self.store.meta.items()}
        writer = os.urandom(8).hex()
        former = meta.get("writers", "").split()[-FORMER_MAX:]
        me = core.Identity(writer, writer, config.hostname, config.address)
        cores, memory = config.cores or found.cores, config.memory or found.memory
        self.node = GhostNode(me, cores, memory, config.tags, self.choice)
        self.node.load(rows, former)
        self._addresses = meta.get("comrades", "").split()
        self.meta = {"writers": " ".join([*former, writer]).encode("ascii")}
        self.node.files.update(self.files.all())
        self.shelf = Shelf(
            *(self.files, self.node.queue, self.node.files),
            *(lambda: machine.free_disk(config.home), self.log.write),
        )
        self._write_meta()

    def _open_post(self) -> None:
        me = self.node.me.writer
        config = self.config
        self.post = post.Post(
            *(config.directory, config.home, config.cookie_file),
            post.Seams(
                me,
                lambda to: "" if to == me else self._peer() or None,
                lambda peer, kind, fields: self._send(core.Send(peer, kind, fields)),
                lambda: [],  # its clairvoyant knows them
                lambda: dict(
                    doctor.of_machine(config.home, config.directory),
                    **self.jar.health(),
                ),
                lambda run, which: self.sandbox.live_output(run, which),
                lambda ticket, answer: self.control.on_answer(ticket, answer),
                *(self.watch, clock),
            ),
        )

    def _peer(self) -> str:
        """Give the link to the clairvoyant; '' if there is none."""
        return self.node.peer if self.node.clairvoyant else ""

    def _open_control(self) -> None:
        """Serve this machine's utilities: see calls.py."""
        acts = Acts(
            self._ask,
            *(calls.never, calls.never, calls.never),
            *(clock, time.time, self.log.write),
            lambda: settings.rows(self.config, *machine.machine()),
            *(self.post.aside, self.post.ask),
        )
        self.calls = calls.Passing(
            calls.GhostSeams(
                self._peer,
                lambda peer, kind, fields: self._send(core.Send(peer, kind, fields)),
                self._keep,
            )
        )
        # What a ghost answers by itself needs `me` and `tags` only.
        node = cast(Any, self.node)
        self.control = Control(node, acts, calls.ghost_verbs(self.calls))
        self.port = ControlPort(
            self.config.home,
            self.watch,
            self.unwatch,
            self.control.on_call,
            self._on_closed,
        )
        self.port.announce()

    def _on_closed(self, call: Call) -> None:
        self.control.on_closed(call)
        self.calls.on_closed(call)

    def _ask(self, message: core.Message) -> None:
        if isinstance(message, core.Stop):
            self.stop()
        else:
            self.step(message)

    def _keep(
        self,
        path: str,
        then: Callable[[Optional[store.Kept], Optional[Exception]], None],
    ) -> None:
        """Take a file of a call in; the task that needs it may come here, too."""

        def on_kept(kept: Optional[store.Kept], error: Optional[Exception]) -> None:
            if kept is not None:
                self.step(core.FileHere(kept.digest))
            then(kept, error)

        self.shelf.make_room_for([path])
        self.aside(lambda: self.files.keep(path), on_kept)

    def _read_printed(self) -> None:
        """Get what a former process's tasks printed and nobody has yet."""
        wanted = {
            digest
            for record in self.node.queue.records.values()
            for run in record.runs.values()
            for size, digest in (run.detail.get(o, (0, "")) for o in ("out", "err"))
            if digest and size <= sandbox.SMALL_OUTPUT_BYTES
        }
        for digest in sorted(wanted):
            self.small(digest, functools.partial(self._keep_printed, digest))
        until = clock() + LOAD_S
        while self.then and clock() < until:
            self.loop.turn(until)

    def _keep_printed(self, digest: str, data: Optional[bytes]) -> None:
        if data:
            self.printed[digest] = data

    # --- the loop -----------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped."""
        self.loop.on_signals(STOP_SIGNALS, self.stop)
        self.loop.on_signals([signal.SIGCHLD], lambda: None)
        self.node.begin(self.config.peers, self._addresses, clock())
        while not self.loop.is_over:
            self.loop.turn()
        return self._close()

    def tick(self) -> Optional[float]:
        """Take in all answers, do what is due; give the time of the next."""
        self._poll()
        now = clock()
        self._has_stepped = False
        effects, due = self.node.tick(now)
        self.perform(effects)
        times = [due, self.sandbox.tick(now), self.transfers.tick(now)]
        times += self._look_around(now)
        for link in self._all_links():
            times.append(link.tick(now))
        if self._dialled is not None and self._dial_by is not None:
            times.append(self._dial_by)
            if now >= self._dial_by:
                self._dialled.close(End.SILENT)
        self._sweep_links()
        for link in self._all_links():
            self._watch(link)
        self._tell_place()
        times.append(self.choice.lonely_at)
        times += self._serve_calls(now)
        if self.stop_by is not None:
            times.append(self.stop_by)
            self.loop.is_over = self.loop.is_over or now >= self.stop_by
        if self._has_stepped:
            times.append(now)  # The core's deadline may have changed.
        return earliest(times)

    def _serve_calls(self, now: float) -> List[Optional[float]]:
        times = [self.post.tick(now), self.control.tick(now, False)]
        self.calls.drop_lost()
        self.port.flush()
        self.calls.flush()
        return [*times, self.port.drop_silent(now), self.jar.tick(now)]

    def _all_links(self) -> List[net.Link]:
        dialled = [self._dialled] if self._dialled is not None else []
        return [*self.links.values(), *dialled]

    def step(self, message: core.Message) -> None:
        """Give the core a message and perform what follows."""
        self._has_stepped = True
        self.perform(self.node.step(message, clock()))

    def stop(self) -> None:
        """Hand back what runs here and end."""
        if self.stop_by is None:
            self.stop_by = clock() + STOP_S
            self.step(core.Stop())

    def _close(self) -> int:
        now = clock()
        self.control.on_stopped()
        self.port.flush()
        self.port.close()
        for link in self.links.values():
            if link.owes:
                link.on_writable(now)  # The good-bye leaves.
            link.close()
        if self._beacons is not None:
            self._beacons.close()
        self.sandbox.close()
        self.post.close(self.unwatch)
        self.store.close(CLOSE_S)
        self.log.write("stopped")
        self.log.close(CLOSE_S)
        return EXIT_DONE

    # --- whom to go to ------------------------------------------------------------

    def _look_around(self, now: float) -> List[Optional[float]]:
        """Ask on the LAN who is there, while there is no clairvoyant."""
        times: List[Optional[float]] = []
        if self._probes:
            times.append(self._probe_by)
            if now >= self._probe_by:
                for sock in list(self._probes):
                    self._end_probe(sock, False)
        if self._beacons is None:
            return times
        is_lonely = not self.node.peer
        is_hearing = is_lonely and self._beacons.want_read(now)
        if is_hearing != self._is_hearing:
            self._is_hearing = is_hearing
            if is_hearing:
                self.watch(self._beacons.fileno(), self._on_beacons, None)
            else:
                self.unwatch(self._beacons.fileno())
        if is_lonely:
            times.append(self._beacons.tick(now, True))
        # Also where comrades of former days are known: all may have other addresses.
        address = self._sweep.tick(now, is_lonely)
        if address:
            self._probe(core.Probe(address))
        return [*times, self._sweep.due]

    def _on_beacons(self) -> None:
        assert self._beacons is not None
        hints = self._beacons.on_readable(clock())
        found = [hint.address for hint in hints if hint.ours]
        if found:
            self.step(core.Found(found))

    def _probe(self, effect: core.Probe) -> None:
        """Connect, and hang up: somebody is there, or not."""
        try:
            sock = socket.socket()
        except OSError:  # no descriptor is free
            self.step(core.Probed(effect.address, False))
            return
        sock.setblocking(False)
        self._probes[sock] = effect.address
        self._probe_by = clock() + PROBE_S
        code = sock.connect_ex((effect.address, self.config.port))
        if code not in (0, errno.EINPROGRESS):
            self._end_probe(sock, False)
            return
        self.watch(sock.fileno(), lambda: None, lambda: self._on_probe(sock))

    def _on_probe(self, sock: socket.socket) -> None:
        is_there = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        self._end_probe(sock, is_there)

    def _end_probe(self, sock: socket.socket, is_there: bool) -> None:
        address = self._probes.pop(sock, "")
        if address:
            self.unwatch(sock.fileno())
            sock.close()
            self.step(core.Probed(address, is_there))

    def _dial(self, effect: core.Dial) -> None:
        self._call(effect.address, self.jar.newest)

    def _call(self, address: str, secret: bytes) -> None:
        me = wire.Hello(self.node.me.writer, self.node.me.writer, wire.Role.GHOST)
        shake = wire.Handshake(True, secret, me)
        own = self.config.address if self.config.address_is_given else ""
        try:
            link = net.dial(address, self.config.port, shake, clock(), own)
        except OSError:  # no descriptor is free: it is tried again
            self.step(core.DialEnded(address, End.BUSY.name))
            return
        self._dialled = link
        patience = self.choice.patience
        self._dial_by = None if patience is None else clock() + patience
        if link.ended is None:
            fd = link.fileno()
            link.release = lambda: self.unwatch(fd)
            self._watch(link)

    # --- links --------------------------------------------------------------------

    def _watch(self, link: net.Link) -> None:
        if link.ended is None:
            write = (lambda: self._on_write(link)) if link.want_write else None
            self.watch(link.fileno(), lambda: self._on_read(link), write)

    def _on_read(self, link: net.Link) -> None:
        was_stranger = link.is_stranger
        frames = link.on_readable(clock())
        if was_stranger and link.peer is not None:
            self._dials += 1
            self._dialled = None
            peer = "k%d" % self._dials
            self.links[peer] = link
            self.step(core.LinkUp(peer, link.peer.writer))
            self.jar.on_link(peer, link.shake.cookie)
        name = self._name_of(link)
        for frame in frames:
            self._on_frame(name, link, frame)
        self._sweep_links()

    def _name_of(self, link: net.Link) -> str:
        return next((name for name, one in self.links.items() if one is link), "")

    def _on_write(self, link: net.Link) -> None:
        if link.ended is None:
            link.on_writable(clock())
        self._sweep_links()

    def _on_frame(self, peer: str, link: net.Link, frame: wire.Frame) -> None:
        if frame.kind in wire.BULK:
            self.transfers.on_frame(peer, frame)
        elif frame.kind is Kind.BYE:
            is_stopping = frame.fields.get("why") == "stopping"
            link.close(End.STOPPING if is_stopping else End.CLOSING)
        elif frame.kind in wire.POST or frame.kind.name in calls.PASSING:
            self._has_stepped = True  # what it brings is to be sent in this turn
            try:
                fields = dict(frame.fields, body=frame.body)
                if frame.kind is Kind.NEW_COOKIE:
                    self.jar.on_frame(peer, fields)
                elif frame.kind in wire.POST:
                    self.post.on_frame(frame.kind.name, fields)
                else:
                    self.calls.on_frame(peer, frame.kind.name, fields)
            except (AttributeError, KeyError, TypeError, ValueError) as problem:
                self.log.write("%s: %r" % (frame.kind.name, problem))
                link.close(End.BAD_FRAME)
        else:
            self.step(core.Frame(peer, frame.kind.name, frame.fields))

    def _sweep_links(self) -> None:
        for peer, link in list(self.links.items()):
            if link.ended is not None:
                link.close()
                del self.links[peer]
                self.step(core.LinkLost(peer, net.LOST.get(link.ended, "broken")))
        link_dialled = self._dialled
        if link_dialled is not None and link_dialled.ended is not None:
            self._dialled = None
            link_dialled.close()
            end, address = link_dialled.ended, link_dialled.address
            other = self.jar.after(link_dialled.shake.cookie)
            if end is End.WRONG_COOKIE and other:
                self._call(address, other)
                return
            if end in (End.WRONG_COOKIE, End.WRONG_VERSION, End.NOT_OURS):
                self._tell_once("%s: %s" % (address, link_dialled.why))
            self.step(core.DialEnded(address, end.name))

    def _tell_place(self) -> None:
        """Tell the user whose ghost this is, when that changes."""
        if not self.node.clairvoyant:
            for text in self.choice.lonely(clock()):
                self._tell(text)
            return
        offer = self.node.offer
        place = "%s at %s" % (self.node.clairvoyant, self.choice.at)
        if not self._told:
            self._told = place
            cores = offer["cores"]
            text = "leoronic: ghost %s is ready, of %s; %d core%s, %s of memory\n"
            words = (self.config.hostname, place, cores, "" if cores == 1 else "s")
            show(text % (*words, settings.format_size(offer["memory"])))
        elif place != self._told:
            self._told = place
            self._tell("now a ghost of " + place)
        known = sorted(self.choice.known)
        if known != self._addresses:
            self._addresses = known
            self.meta["comrades"] = " ".join(known).encode("ascii")
            self._write_meta()

    def _tell(self, text: str) -> None:
        self.log.write(text)
        say(text)

    def _tell_once(self, text: str) -> None:
        """Tell why a comrade can't be had: it is dialled again and again."""
        if text not in self._said and len(self._said) < SAID_MAX:
            self._said.add(text)
            self._tell(text)

    def _shown_name(self) -> str:
        return "%s@%s" % (self.config.hostname, self.config.address)

    # --- performing what the core decides -----------------------------------------

    def _send(self, effect: core.Send) -> None:
        link = self.links.get(effect.peer)
        if link is None or link.ended is not None:
            return
        if effect.kind == "BYE":
            link.bye(effect.fields["why"])
        else:
            fields = dict(effect.fields)
            body = fields.pop("body", b"")  # of a call, or a letter
            link.send(Kind[effect.kind], fields, body)
        self._watch(link)

    def _close_link(self, effect: core.CloseLink) -> None:
        """The core knows it already; a BYE that is under way may still leave."""
        link = self.links.get(effect.peer)
        if link is not None and link.ended is None:
            link.bye("closing")

    def _push(self, effect: core.Push) -> None:
        data, link = self.printed.get(effect.digest), self.links.get(effect.peer)
        if data is not None and link is not None and link.ended is None:
            link.send(Kind.OUTPUT, {"digest": effect.digest}, data)

    def _persist(self, effect: core.Persist) -> None:
        batch = store.Batch(effect.seq, effect.rows, {}, self.outputs.take())
        self.batches[effect.seq] = batch
        self.store.write(batch)

    def _write_outputs(self) -> None:
        self.store.write(store.Batch(WRITE_SEQ, outputs=self.outputs.take()))

    def _write_meta(self) -> None:
        self.store.write(store.Batch(WRITE_SEQ, meta=dict(self.meta)))

    def _want_file(self, effect: core.WantFile) -> None:
        def then(is_here: bool) -> None:
            if is_here:
                self.step(core.FileHere(effect.digest))

        self.shelf.make_room(effect.size)
        self.transfers.want(Kind.FILE_WANT, effect.digest, effect.size, "", then)

    def _stopped(self, effect: core.Stopped) -> None:
        self.loop.is_over = True

    # --- what the threads answer --------------------------------------------------

    def aside(
        self, job: Callable[[], Any], then: Callable[[Any, Optional[Exception]], None]
    ) -> None:
        """Run what may take long in the other thread; `then` gets result and error."""
        self._tickets += 1
        self.then[self._tickets] = then
        self.store.aside(self._tickets, job)

    def small(self, digest: str, then: Callable[[Optional[bytes]], None]) -> None:
        """Look for a small output in the database; `then` gets it or None."""
        self._tickets += 1
        self.then[self._tickets] = then
        self.store.ask_output(self._tickets, digest)

    def _poll(self) -> None:
        for answer in self.store.poll():
            if isinstance(answer, store.Written):
                if answer.seq != WRITE_SEQ:
                    batch = self.batches.pop(answer.seq)
                    if answer.error:
                        self.outputs.give_back(batch.outputs)
                    self.step(core.Written(answer.seq, answer.error))
            elif isinstance(answer, store.Found):
                self.then.pop(answer.ticket)(answer.data)
            else:
                self.then.pop(answer.ticket)(answer.result, answer.error)
        self.workplace.poll()

    def _on_ended(self, event: sandbox.Ended) -> None:
        for output in (event.out, event.err):
            if output.data:
                self.printed[store.digest_of(output.data)] = output.data
        if not self.node.queue.records:
            self.printed.clear()
        self.outputs.on_ended(event)


PERFORM: Dict[type, Callable[..., None]] = {
    core.Check: lambda ghost, effect: ghost.workplace.check(effect.conditions),
    core.CloseLink: Ghost._close_link,
    core.Dial: Ghost._dial,
    core.Kill: lambda ghost, effect: ghost.sandbox.kill(*effect),
    core.Log: lambda ghost, effect: ghost.log.write(effect.text),
    core.Persist: Ghost._persist,
    core.Probe: Ghost._probe,
    core.Push: Ghost._push,
    core.Send: Ghost._send,
    core.Start: lambda ghost, effect: ghost.workplace.start(effect),
    core.Stopped: Ghost._stopped,
    core.WantFile: Ghost._want_file,
}


# --- the program ------------------------------------------------------------------


def serve(program: str, wanted: str) -> int:
    """Be a ghost until stopped; Quit says why it can't be."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(EXIT_DONE))
    os.umask(0o077)
    while True:
        config = settings.read_settings(os.environ, program, "ghost")
        try:
            ghost = Ghost(config, wanted)
            for notice in ghost.open():
                say(notice)
            return ghost.run()
        except store.StateInUse as problem:
            if not config.home_is_default:  # else another ghost was quicker: the next
                raise Quit(EXIT_USAGE, str(problem)) from None


def main(args: Sequence[str]) -> int:
    """Be the program; give its exit code."""
    program = os.path.dirname(os.path.abspath(__file__))
    try:
        if args in (["--help"], ["-h"]):
            return EXIT_DONE if show(USAGE) else EXIT_SYSTEM
        if len(args) > 1:
            raise Quit(EXIT_USAGE, "found %d arguments; see --help" % len(args))
        wanted, problem = clairvoyants.parse(args[0]) if args else ("", "")
        if problem:
            raise Quit(EXIT_USAGE, "the argument is %s; %s" % (args[0], problem))
        return serve(program, wanted)
    except settings.WrongSetting as wrong:
        say(str(wrong))
        return EXIT_USAGE
    except Quit as quit_:
        say(str(quit_))
        return quit_.code
    except (store.StateBroken, OSError) as broken:
        say(str(broken))
        return EXIT_SYSTEM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
