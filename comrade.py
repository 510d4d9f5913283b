"""A comrade: one process per machine that holds the queue and runs tasks.

    bash leoronic -- comrade.py -+- main: one selectors loop, owns the queue (node.py)
                                 +- a thread for the journal, one for hashing (store.py)
                                 +- the tasks' bash processes (sandbox.py)
    other comrades ------- TCP --+- links.py, transfer.py
    this machine's shells -------+- clients.py, control.py, verbs.py

Rules. This file performs what node.py decides and owns all sockets and processes' ends;
it decides nothing about tasks. One thread owns the core: other threads leave answers
in queues and wake the loop. Nothing in the loop blocks.

The way of a task: a utility's call arrives on the control port (control.py), its verb
checks it and asks the node (verbs.py, node.Add); the node says Persist, the store says
Written, the node acknowledges and grants; Start goes to the sandbox, whose events go
back as RunStarted and RunEnded; that end is persisted like any other change.

The loop: `tick` gathers all answers, lets node, sandbox and control do what is due, and
gives the next deadline; `select` waits for that long; a ready file calls its function.

Invariants. D5: idle, the loop wakes for nothing. SIGINT, SIGTERM, SIGHUP
hand back what runs here and end the process with 0 within STOP_S.
"""

import os
import sys

from ownpath import as_module, prefer_stdlib

if __name__ == "__main__":
    as_module(__file__)
prefer_stdlib()

import errno  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence  # noqa: E402

import batches  # noqa: E402
import calls  # noqa: E402
import cookie  # noqa: E402
import discovery  # noqa: E402
import doctor  # noqa: E402
import effects as core  # noqa: E402
import jar  # noqa: E402
import links  # noqa: E402
import machine  # noqa: E402
import outputs  # noqa: E402
import places  # noqa: E402
import post  # noqa: E402
import relaying  # noqa: E402
import sandbox  # noqa: E402
import settings  # noqa: E402
import shells  # noqa: E402
import store  # noqa: E402
import transfer  # noqa: E402
import wire  # noqa: E402
import workplace  # noqa: E402
from clients import ControlPort  # noqa: E402
from control import Acts, Call, Control, Fetch  # noqa: E402
from loop import InOrder, Loop, earliest  # noqa: E402
from node import Node  # noqa: E402
from process import (  # noqa: E402
    CLOSE_S,
    EXIT_DONE,
    EXIT_SYSTEM,
    EXIT_USAGE,
    STOP_S,
    STOP_SIGNALS,
    VERSION,
    LogFile,
    Quit,
    Spare,
    clock,
    reap_inherited,
    say,
    search,
    set_aside,
    show,
    task_environ,
)
from record import File  # noqa: E402
from shelf import Shelf  # noqa: E402
from wire import Kind  # noqa: E402

POST = frozenset(kind.name for kind in wire.POST)
JOIN_S = 0.4  # a start listens this long for others before it says that it is ready
JOINING_S = 3.0  # ... and this long while one of them is being joined
ASK_LAN_S = 1.0  # before a cookie is made: is there a cluster that has one?

USAGE = """usage: bash leoronic [OPTION]

Starts a comrade in this folder, which becomes its working directory.
  --background  detached; prints the pid and the log's path once it is ready
  --demo        a cluster on this machine's loopback, for some seconds
  --install     shows how it starts with the machine; --install --yes does that
  --uninstall   undoes it
  --help        this text, with the settings in force
  --version     the version

Settings (environment variables, with the value in force):
"""


class Comrade:
    """The loop and all that it drives. `open`, then `run`; that gives the exit code."""

    def __init__(self, config: settings.Settings) -> None:
        self.config = config
        self.user_umask = os.umask(0o077)
        self.log = LogFile(os.path.join(config.home, "log"))
        self.loop = Loop(self.tick, self.log.write)
        self.watch, self.unwatch = self.loop.watch, self.loop.unwatch
        self.store = store.Store(config.home, self.loop.wake)
        self.files = self.store.files
        self.batches = batches.Batches(self.store.write, clock)
        self.then: Dict[int, Callable[..., None]] = {}  # what store answers are for
        self.is_clone = False
        self.stop_by: Optional[float] = None
        self.marked_pid = 0  # of the user's marked lines, while they run
        self._version = -1
        self.spare = Spare()
        self._has_stepped = False  # since the node gave its deadline
        self._node_due: Optional[float] = 0.0  # that deadline
        self._gathered: List[core.Message] = []  # for the node's next tick
        self._parts_due: Optional[float] = None  # that of all else
        self.perform = InOrder(lambda effect: PERFORM[type(effect)](self, effect))

    # --- starting -----------------------------------------------------------------

    def open(self) -> List[str]:
        """Take state directory, sandbox, queue and port; give notices."""
        notices = [
            "there is other state under %s; was this host renamed?" % name
            for name in settings.other_states(self.config)
        ]
        notices += self.store.open()
        self._open_jar(notices)
        self._open_sandbox()
        self._open_core()
        self._open_relay()
        self._open_links()
        self._open_transfers()
        self._open_post()
        self._open_control()
        notices += self.store.notices  # of loading
        self.store.start()
        self.jar.begin()
        self.port.announce()
        return notices

    def _open_jar(self, notices: List[str]) -> None:
        found = settings.find_cookie(self.config)
        if not found.secret:
            if self._is_on_lan():
                ask_lan(self.config)
            found = settings.make_cookie(self.config)
        notices += found.notices
        seams = jar.Seams(
            clock,
            lambda: [*self.links.links, *self.relay.peers],
            lambda peer, kind, fields: self._send(core.Send(peer, kind, fields)),
            self._save_cookies,
            self.tell,
        )
        self.jar = jar.Jar(found.secret, cookie.kept(self.config.home), seams)

    def _save_cookies(self, kept: cookie.Kept) -> None:
        home, user_home = self.config.home, self.config.user_home
        places = settings.cookie_places(self.config)
        job = lambda: cookie.save(home, places, user_home, kept)  # noqa: E731
        self.aside(job, self.jar.on_saved)

    def _is_on_lan(self) -> bool:
        return self.config.discovery and not self.config.address.startswith("127.")

    def _open_sandbox(self) -> None:
        self.sandbox = sandbox.Sandbox(
            self.config.directory,
            self.config.home,
            task_environ(self.config.home),
            self.watch,
            self.unwatch,
            self.files.path,
            clock,
        )
        self.sandbox.nice = self.config.nice
        self.sandbox.clean_up()
        self.workplace = workplace.Workplace(
            self.sandbox,
            self.config.directory,
            self.config.memory is not None,
            workplace.Seams(
                self.step,
                lambda: self.node.me.name,
                lambda: self.node.me.address,
                lambda: self.node.worker.name,
                lambda: self.node.room.all_tags(),
                self._use,
                lambda event: self.outputs.on_ended(event),
                clock,
            ),
        )

    def _open_relay(self) -> None:
        cores = self.node.worker.cores
        has_core = self.config.relay_core == "auto" and cores > 1

        def on_change(is_on: bool) -> None:
            if has_core:
                self.step(core.Cores(cores - 1 if is_on else cores))
                self.sandbox.keep_off(relay_core() if is_on else None)

        def keep(outputs: List[Any]) -> None:  # called by the manager's thread
            self.store.write(store.Batch(batches.WRITE_SEQ, outputs=outputs))

        self.relay = relaying.Relay(
            self.config.home,
            self.config.program,
            relay_core() if has_core else None,
            relaying.Seams(
                *(self._hear_ghost, clock, self.loop.wake, keep),
                *(self.watch, self.unwatch),
                self.log.write,
                on_change,
                self.jar.on_link,
            ),
        )

    def _open_core(self) -> None:
        found = machine.machine()
        meta = {name: data.decode("ascii") for name, data in self.store.meta.items()}
        writer = os.urandom(8).hex()
        former = meta.get("writers", "").split()
        starts = int(meta.get("starts", "0")) + 1
        node_id = meta.get("node_id") or os.urandom(8).hex()
        config = self.config
        me = core.Identity(node_id, writer, config.hostname, config.address, starts)
        cores, memory = config.cores or found.cores, config.memory or found.memory
        self.node = Node(me, cores, memory, config.tags, search)
        self.known: Dict[str, str] = json.loads(meta.get("members", "{}"))
        self.batches.remember("node_id", node_id)
        self.batches.remember("starts", str(starts))
        self.batches.remember("writers", " ".join([*former, writer]))
        self.shelf = Shelf(
            self.files,
            self.node.queue,
            self.node.files,
            lambda: machine.free_disk(config.home),
            self.log.write,
        )
        self.node.files.update(self.files.all())
        self.node.load(self._rows(), self.store.meta)
        self.node.begin(former, self.known, clock())
        self.shelf.tidy()

    def _rows(self) -> Iterator[Any]:
        for _, data in self.store.load():
            set_aside()
            yield json.loads(data)

    def _open_links(self) -> None:
        config = self.config
        try:
            self.links = links.Links(
                self.node.me,
                self.jar,
                config.port,
                [*config.peers, *sorted(set(self.known.values()) - set(config.peers))],
                links.Seams(
                    self.watch,
                    self.unwatch,
                    self.step,
                    clock,
                    self.tell,
                    self._on_bulk,
                    self._on_clone,
                    self.relay.hand,
                ),
            )
        except OSError as problem:
            raise cant_listen(config, problem) from None
        if self._is_on_lan():
            self.links.discover()
        if not config.address_is_given:
            self.links.follow(settings.default_address, core.Moved)

    def _open_transfers(self) -> None:
        self.transfers = transfer.Transfers(
            self.files,
            transfer.Seams(
                lambda: self.links.links,
                self.aside,
                self.small,
                clock,
                self.log.write,
                self._bring,
            ),
        )
        self.outputs = self.batches.outputs = outputs.Outputs(
            self.files,
            self.transfers,
            outputs.Seams(
                *(self.aside, self.small, self.step),
                *(self.batches.write_outputs, self.log.write),
            ),
        )

    def _open_post(self) -> None:
        me = self.node.me.node_id
        config = self.config
        self.post = post.Post(
            *(config.directory, config.home, config.cookie_file),
            post.Seams(
                me,
                lambda to: "" if to in ("", me) else self.node.ghosts.way_to(to),
                lambda peer, kind, fields: self._send(core.Send(peer, kind, fields)),
                *(self.node.roster.places, self._health),
                lambda run, which: self.sandbox.live_output(run, which),
                lambda ticket, answer: self.control.on_answer(ticket, answer),
                *(self.watch, clock),
            ),
        )

    def _health(self) -> Dict[str, Any]:
        """Give what leoronic_doctor asks of a comrade, besides its machine."""
        failures = self.node.matcher.probation.failures
        workers = self.node.matcher.workers.values()
        bad = {w.name: failures(w.writer) for w in workers if failures(w.writer)}
        return {
            "probation": bad,
            "away": self.node.mesh.blame.away(clock()),
            "stuck": self.node.durable.is_stuck(clock()),
            **self.jar.health(),
            **doctor.of_machine(self.config.home, self.config.directory),
            **self.links.health(),
        }

    def _on_bulk(self, peer: str, frame: wire.Frame) -> None:
        if frame.kind in wire.BULK:
            self.transfers.on_frame(peer, frame)
        else:
            fields = dict(frame.fields, body=frame.body)
            self._on_letter(core.Frame(peer, frame.kind.name, fields))

    def _on_letter(self, message: core.Frame) -> None:
        self._take_in(message, self._take_letter)

    def _take_letter(self, message: core.Frame) -> None:
        if message.kind == "NEW_COOKIE":
            self.jar.on_frame(message.peer, message.fields)
        else:
            self.post.on_frame(message.kind, message.fields)

    def _take_in(self, message: core.Frame, take: Callable[[core.Frame], None]) -> None:
        """Take a frame that is not for the core; a bad one ends its link."""
        self._has_stepped = True  # another turn: `control` may have something to do
        try:
            take(message)
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            self.log.write("%s of %s: %r" % (message.kind, message.peer, problem))
            self._close_link(core.CloseLink(message.peer, "bad frame"))
            self.step(core.LinkLost(message.peer, "broken"))

    def _open_control(self) -> None:
        acts = Acts(
            self.step,
            self._keep,
            self._fetch,
            lambda command, names: places.renames(command, names, str)[1],
            clock,
            time.time,
            self.log.write,
            lambda: in_force(self.config, self.node.me.address),
            *(self.post.aside, self.post.ask, self.jar.succeed),
        )
        self.control = Control(self.node, acts, calls.VERBS)
        self.calls = calls.Serving(
            self.control,
            calls.ServingSeams(
                *(lambda peer: peer in self.relay, self.relay.send),
                *(self.files.has, self._fetch_file),
            ),
        )
        self.port = ControlPort(
            self.config.home,
            self.watch,
            self.unwatch,
            self.control.on_call,
            self.control.on_closed,
        )

    # --- the loop -----------------------------------------------------------------

    def run(self, on_ready: Callable[[str], object]) -> int:
        """Serve until stopped; `on_ready` gets the ready line once all is up."""
        self.loop.on_signals(STOP_SIGNALS, self.stop)
        self.loop.on_signals([signal.SIGCHLD], self._on_child)
        self.step(core.Sync(0))
        start = clock()
        while not self.loop.is_over and self._is_joining(clock() - start):
            self.loop.turn(start + (JOIN_S if clock() < start + JOIN_S else JOINING_S))
        if not self.loop.is_over:
            on_ready(self._ready_line())
            self._run_marked_lines()
        while not self.loop.is_over:
            self.loop.turn()
        return self._close()

    def _is_joining(self, waited: float) -> bool:
        """Say whether somebody may still be met before this start is called ready."""
        mesh = self.node.mesh
        if mesh.links:
            is_met = all(self.node.replica.is_reconciled(peer) for peer in mesh.links)
            return waited < JOINING_S and not is_met
        if self._is_on_lan():
            return waited < JOIN_S
        return waited < JOIN_S and self.links.is_hopeful()

    def _ready_line(self) -> str:
        node = self.node
        names = [node.roster.shown_name(member.facts) for member in node.mesh.others()]
        return "leoronic: %s is ready at %s:%d, %d core%s, %s of memory; %s" % (
            node.me.name,
            node.me.address,
            self.config.port,
            node.worker.cores,
            "" if node.worker.cores == 1 else "s",
            settings.format_size(node.worker.memory),
            "joined " + ", ".join(names) if names else "no other comrade was found yet",
        )

    def tick(self) -> Optional[float]:
        """Take in all answers, do what is due; give the time of the next.

        Most turns at rest are for heartbeats alone: nobody else is asked then.
        """
        now = clock()
        is_due = self._parts_due is not None and now >= self._parts_due
        if self.loop.is_calm and not is_due:
            done = self._tick_node(now)
            if not done or (all(map(core.is_beat, done)) and self.links.flush()):
                return earliest([self._node_due, self._parts_due])
        self._poll()
        now = clock()
        self._tick_node(now)
        self._parts_due = self._tick_parts(now)
        return earliest([self._node_due, self._parts_due])

    def _tick_parts(self, now: float) -> Optional[float]:
        times = [self.sandbox.tick(now), self.transfers.tick(now)]
        set_aside()
        version = self.node.queue.version
        has_changed, self._version = version != self._version, version
        times.append(self.control.tick(now, has_changed))
        is_busy = has_changed or self.control.is_busy
        times.append(self.spare.look(len(self.node.queue.records), is_busy, now))
        self.calls.flush()
        self._know_members()
        times += [self.post.tick(now), self.relay.tick(now), self.jar.tick(now)]
        times += [self.links.tick(now), self.batches.tick(now)]  # links: what all send
        self.port.flush()
        times += [self.port.drop_silent(now), self.stop_by]
        self.loop.is_over |= self.stop_by is not None and now >= self.stop_by
        times.append(now if self._has_stepped else None)  # another deadline of the node
        return earliest(times)

    def _tick_node(self, now: float) -> List[core.Effect]:
        """Let the node decide, if it was told something or its deadline is over.

        A turn may be for a client alone: what the node goes through costs as much.
        """
        is_due = self._node_due is not None and now >= self._node_due
        if not (is_due or self._has_stepped):
            return []
        self.node.take(self._gathered, now)
        self._has_stepped, self._node_due = False, now  # due again if it breaks
        effects, self._node_due = self.node.tick(now)
        self.perform(effects)
        return effects

    def _know_members(self) -> None:
        """Dial the members that others told of, and remember them on disk."""
        members = self.node.mesh.members
        known = {i: str(m.facts["address"]) for i, m in members.items()}
        if known and known != self.known:
            self.known = known
            self.links.know(set(known.values()))
            self.batches.remember("members", json.dumps(known, sort_keys=True))

    def _on_child(self) -> None:
        if self.marked_pid and os.waitpid(self.marked_pid, os.WNOHANG)[0]:
            self.marked_pid = 0

    def tell(self, text: str) -> None:
        """Say something to the user and to the log."""
        self.log.write(text)
        say(text)

    # --- stopping -----------------------------------------------------------------

    def stop(self) -> None:
        """Hand back what runs here and end."""
        if self.stop_by is None:
            self.stop_by = clock() + STOP_S
            self._has_stepped = True
            self.perform(self.node.step(core.Stop(), clock()))

    def _on_clone(self) -> None:
        """Another process has our node id: stop, and start again as a new node."""
        if not self.is_clone:
            self.is_clone = True
            self.tell(
                "this state directory is a copy of another node's; taking a new id"
            )
            self.batches.remember("node_id", os.urandom(8).hex())
            self.batches.remember("writers", "")
            self.stop()

    def _close(self) -> int:
        if self.marked_pid:
            end_group(self.marked_pid)
        self.control.on_stopped()
        self.port.flush()
        while not self.links.flush() and self.stop_by and clock() < self.stop_by:
            time.sleep(0.01)  # The good-bye leaves; nothing else is left to do.
        self.port.close()
        self.links.stop()
        self.relay.stop()
        self.sandbox.close()
        self.post.close(self.unwatch)
        self.batches.release()
        if self.is_clone:  # else the new id waits for a batch that never comes
            self.batches.write_meta()
        self.store.close(CLOSE_S)
        self.log.write("stopped")
        self.log.close(CLOSE_S)
        if self.is_clone:
            as_module(__file__)
        return EXIT_DONE

    # --- performing what the node decides -----------------------------------------

    def step(self, message: core.Message) -> None:
        """Give the node a message and perform what follows."""
        self._has_stepped = True
        if isinstance(message, core.Stop):
            self.stop()
        elif isinstance(message, core.GATHERED):
            self._gathered.append(message)  # a turn of the node for each costs more
        else:
            self.node.take(self._gathered, clock())  # what came before it
            self.perform(self.node.step(message, clock()))

    def _hear_ghost(self, message: core.Message) -> None:
        """Take what the relay says; calls of utilities don't concern the core."""
        if not isinstance(message, core.Frame):
            self.step(message)
        elif message.kind in POST:
            self._on_letter(message)
        elif message.kind in calls.OF_GHOSTS:
            self._take_in(message, lambda frame: self.calls.on_frame(*frame))
        else:
            self.step(message)

    def _send(self, effect: core.Send) -> None:
        way = self.relay if effect.peer in self.relay else self.links
        way.send(effect.peer, effect.kind, effect.fields)

    def _close_link(self, effect: core.CloseLink) -> None:
        way = self.relay if effect.peer in self.relay else self.links
        way.close(effect.peer, effect.why)

    def _persist(self, effect: core.Persist) -> None:
        self.batches.persist(effect)

    def _acked(self, effect: core.Acked) -> None:
        self.control.on_answer(effect.ticket, effect)

    def _check(self, effect: core.Check) -> None:
        self.workplace.check(effect.conditions)

    def _start(self, effect: core.Start) -> None:
        self.workplace.start(effect)

    def _use(self, digests: Sequence[str]) -> None:
        if digests:
            self.aside(lambda: self.shelf.use(digests), lambda *_: None)

    def _kill(self, effect: core.Kill) -> None:
        self.sandbox.kill(effect.run, effect.cause, effect.grace_s)

    def _want_file(self, effect: core.WantFile) -> None:
        def then(is_here: bool) -> None:
            if is_here:
                self.step(core.FileHere(effect.digest))

        size, digest = effect.size, effect.digest
        self.shelf.make_room(size)
        self.transfers.want(Kind.FILE_WANT, digest, size, effect.peer, then)

    def _stopped(self, effect: core.Stopped) -> None:
        self.loop.is_over = self.outputs.moving == 0

    # --- what the threads answer --------------------------------------------------

    def aside(
        self, job: Callable[[], Any], then: Callable[[Any, Optional[Exception]], None]
    ) -> None:
        """Run what may take long in the other thread; `then` gets result and error."""
        ticket = self.control.ticket()
        self.then[ticket] = then
        self.store.aside(ticket, job)

    def small(self, digest: str, then: Callable[[Optional[bytes]], None]) -> None:
        """Look for a small output in the database; `then` gets it or None."""
        data = self.outputs.on_its_way(digest)
        if data is not None:
            then(data)
            return
        ticket = self.control.ticket()
        self.then[ticket] = then
        self.store.ask_output(ticket, digest)

    def _poll(self) -> None:
        for answer in self.store.poll():
            if isinstance(answer, store.Written):
                if self.batches.on_written(answer):
                    self.step(core.Written(answer.seq, answer.error))
            elif isinstance(answer, store.Found):
                self.then.pop(answer.ticket)(answer.data)
            else:
                self.then.pop(answer.ticket)(answer.result, answer.error)
        self.workplace.poll()

    # --- what the utilities need --------------------------------------------------

    def _keep(self, call: Call, ticket: int, paths: Sequence[str]) -> None:
        if self.calls.keep(call, ticket, paths):
            return
        self.shelf.make_room_for(paths)

        def job() -> List[File]:
            kept = [self.files.keep(path) for path in paths]
            return [File("", k.digest, k.size, k.mode) for k in kept]

        def then(result: Any, error: Optional[Exception]) -> None:
            self.control.on_answer(ticket, error or result)

        self.aside(job, then)

    def _fetch_file(
        self, peer: str, digest: str, size: int, then: Callable[[bool], None]
    ) -> None:
        self.shelf.make_room(size)
        self.relay.fetch(peer, digest, size, then)

    def _fetch(self, ticket: int, wanted: Fetch) -> None:
        def answer(found: Any) -> None:
            self.control.on_answer(ticket, found)

        place = self.node.ghosts.where.place_of(wanted.worker)
        at = outputs.At(place, wanted.worker) if place != wanted.worker else None
        self.outputs.fetch(wanted.size, wanted.digest, answer, at)

    def _bring(
        self, ghost: str, digest: str, size: int, then: Callable[[bool], None]
    ) -> bool:
        """Get an output from a ghost into this node's files; False: it isn't ours."""
        link = self.node.ghosts.own.get(ghost)
        if link is not None:
            self._fetch_file(link.peer, digest, size, then)
        return link is not None

    def _run_marked_lines(self) -> None:
        """Run what the user wrote at the marked place in `leoronic`."""
        launcher = os.path.join(self.config.program, "leoronic")
        environ = dict(os.environ, LEORONIC_HOME=self.config.home)
        script = 'umask "$1" && exec bash "$2" --marked-lines'
        umask = "%04o" % self.user_umask
        argv = ["bash", "-c", script, "bash", umask, launcher]
        with open(os.devnull, "rb") as nothing:
            fds = (nothing.fileno(), 1)
            self.marked_pid = shells.spawn(argv, environ, *fds, is_group=True)


PERFORM: Dict[type, Callable[..., None]] = {
    core.Acked: Comrade._acked,
    core.Check: Comrade._check,
    core.CloseLink: Comrade._close_link,
    core.Kill: Comrade._kill,
    core.Log: lambda comrade, effect: comrade.log.write(effect.text),
    core.Persist: Comrade._persist,
    core.Send: Comrade._send,
    core.Start: Comrade._start,
    core.Stopped: Comrade._stopped,
    core.WantFile: Comrade._want_file,
    core.WantOutput: lambda comrade, effect: comrade.outputs.want(effect),
}


# --- the program ------------------------------------------------------------------


def ask_lan(config: settings.Settings) -> None:
    """Before a cookie is made: if another cluster is there, say how to join it."""
    found = discovery.listen_for_cluster(config.port, ASK_LAN_S)
    if found:
        where = os.path.join(config.program, ".leoronic_cookie")
        raise Quit(
            EXIT_USAGE,
            "no cookie; a cluster answers from %s; copy its cookie here, then start "
            "again: scp %s:%s %s" % (", ".join(found), found[0], where, where),
        )


def in_force(config: settings.Settings, address: str) -> List[settings.Row]:
    """Give the settings as they are now: a router may have given another address."""
    return settings.rows(config._replace(address=address), *machine.machine())


def relay_core() -> Optional[int]:
    """Give the core that is set aside for the relay; None if there is just one."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    return max(cores) if len(cores) > 1 else None


def end_group(leader: int) -> None:
    """Stop a process and what it started."""
    try:
        os.killpg(leader, signal.SIGTERM)
    except OSError:
        pass  # it has just ended


def cant_listen(config: settings.Settings, problem: OSError) -> Quit:
    """Word why the cluster's port can't be had."""
    port, address = config.port, config.address
    if problem.errno == errno.EADDRINUSE:
        text = "port %d at %s is taken; found that another program listens there; stop "
        text += "that one, or set LEORONIC_PORT to another on every node"
        return Quit(EXIT_SYSTEM, text % (port, address))
    if problem.errno == errno.EADDRNOTAVAIL:
        text = "LEORONIC_ADDRESS is %s; it must be an IPv4 address of this machine; "
        text += "see them with: ip -4 addr"
        return Quit(EXIT_USAGE, text % address)
    if problem.errno in (errno.EACCES, errno.EPERM):
        text = "LEORONIC_PORT is %d; it must be one that this user may listen at, such "
        return Quit(EXIT_USAGE, (text + "as %d") % (port, settings.PORT_DEFAULT))
    text = "can't listen at %s:%d; found: %s; see LEORONIC_ADDRESS, LEORONIC_PORT"
    return Quit(EXIT_SYSTEM, text % (address, port, problem.strerror))


def serve(config: settings.Settings, on_ready: Callable[[str], object]) -> int:
    """Be a comrade until stopped; Quit says why it can't be."""
    reap_inherited()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(EXIT_DONE))
    try:
        comrade = Comrade(config)
        for notice in comrade.open():
            say(notice)
            comrade.log.write(notice)
        return comrade.run(on_ready)
    except (store.StateInUse, settings.WrongSetting) as problem:
        raise Quit(EXIT_USAGE, str(problem)) from None
    except (store.StateBroken, OSError) as problem:
        raise Quit(EXIT_SYSTEM, str(problem)) from None


def detach(config: settings.Settings) -> int:
    """Be a comrade in the background: prints pid and log once that is ready.

    Forks before there is any thread. Our own stdout stays the user's until then.
    """
    ready_in, ready_out = os.pipe()
    pid = os.fork()
    if pid:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
        os.close(ready_out)
        with os.fdopen(ready_in, "rb") as file:
            line = file.read()
        show(line.decode("utf-8", "replace"))
        # Without a code of its own it was killed, or stopped before it was ready.
        failed = not line and (os.WEXITSTATUS(os.waitpid(pid, 0)[1]) or EXIT_SYSTEM)
        return failed or EXIT_DONE
    os.close(ready_in)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.path.join(config.home, "log")

    def on_ready(line: str) -> None:
        text = "%s\nleoronic: pid %d, log %s\n" % (line, os.getpid(), log)
        os.write(ready_out, text.encode("utf-8", "replace"))
        os.close(ready_out)
        file = os.open(
            log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)

    return serve(config, on_ready)


def main(args: Sequence[str]) -> int:
    """Be the program; give its exit code."""
    program = os.path.dirname(os.path.abspath(__file__))
    try:
        if len(args) > 1 or (args and args[0] not in OPTIONS):
            raise Quit(EXIT_USAGE, "unknown argument: %s; see --help" % " ".join(args))
        if args == ["--version"]:
            return EXIT_DONE if show("leoronic %s\n" % VERSION) else EXIT_SYSTEM
        config = settings.read_settings(os.environ, program)
        if args == ["--help"]:
            table = settings.help_table(config, *machine.machine())
            return EXIT_DONE if show(USAGE + table) else EXIT_SYSTEM
        if args == ["--background"]:
            return detach(config)
        return serve(config, lambda line: show(line + "\n"))
    except settings.WrongSetting as problem:
        say(str(problem))
        return EXIT_USAGE
    except Quit as problem:
        say(str(problem))
        return problem.code


OPTIONS = ("--background", "--help", "--version")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
