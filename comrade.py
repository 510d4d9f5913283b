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

from ownpath import prefer_stdlib

prefer_stdlib()

import errno  # noqa: E402
import json  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from typing import Any, Callable, Dict, List, Optional, Sequence  # noqa: E402

import calls  # noqa: E402
import discovery  # noqa: E402
import effects as core  # noqa: E402
import links  # noqa: E402
import machine  # noqa: E402
import outputs  # noqa: E402
import places  # noqa: E402
import relaying  # noqa: E402
import sandbox  # noqa: E402
import settings  # noqa: E402
import shells  # noqa: E402
import store  # noqa: E402
import transfer  # noqa: E402
import verbs  # noqa: E402
import workplace  # noqa: E402
from clients import ControlPort  # noqa: E402
from control import Acts, Call, Control, Fetch  # noqa: E402
from loop import Loop  # noqa: E402
from node import Node  # noqa: E402
from process import (  # noqa: E402
    CLOSE_S,
    EXIT_DONE,
    EXIT_SYSTEM,
    EXIT_USAGE,
    STOP_S,
    STOP_SIGNALS,
    LogFile,
    Quit,
    Search,
    clock,
    reap_inherited,
    say,
    task_environ,
)
from record import File  # noqa: E402
from shelf import Shelf  # noqa: E402
from wire import Kind  # noqa: E402

VERSION = "1.0"
JOIN_S = 0.4  # a start listens this long for others before it says that it is ready
JOINING_S = 3.0  # ... and this long while one of them is being joined
ASK_LAN_S = 1.0  # before a cookie is made: is there a cluster that has one?
WRITE_SEQ = -1  # of a batch that only carries outputs; the core knows nothing of it

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
        self.meta: Dict[str, bytes] = {}  # what is to be kept beside the records
        self.writing: Dict[int, store.Batch] = {}  # batches under way
        self.written: Dict[str, bytes] = {}  # meta as the disk has it
        self.then: Dict[int, Callable[..., None]] = {}  # what store answers are for
        self.is_clone = False
        self.stop_by: Optional[float] = None
        self.marked_pid = 0  # of the user's marked lines, while they run
        self._version = -1
        self._has_stepped = False  # since the node gave its deadline

    # --- starting -----------------------------------------------------------------

    def open(self) -> List[str]:
        """Take state directory, sandbox, queue and port; give notices."""
        notices = [
            "there is other state under %s; was this host renamed?" % name
            for name in settings.other_states(self.config)
        ]
        notices += self.store.open()
        cookie = self._open_cookie(notices)
        self._open_sandbox()
        self._open_core()
        self._open_relay()
        self._open_links(cookie)
        self._open_transfers()
        self._open_control()
        notices += self.store.notices  # of loading
        self.store.start()
        self.port.announce()
        return notices

    def _open_cookie(self, notices: List[str]) -> bytes:
        found = settings.find_cookie(self.config)
        if not found.secret:
            if self._is_on_lan():
                ask_lan(self.config)
            found = settings.make_cookie(self.config)
        notices += found.notices
        return found.secret

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
                lambda: self.node.shown_name(self.node.mesh.facts),
                lambda: self.node.room.all_tags(),
                self._use,
                lambda event: self.outputs.on_ended(event),
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
            self.store.write(store.Batch(WRITE_SEQ, outputs=outputs))

        self.relay = relaying.Relay(
            self.config.home,
            self.config.program,
            relay_core() if has_core else None,
            relaying.Seams(
                *(self._hear_ghost, clock, self.loop.wake, keep),
                *(self.watch, self.unwatch),
                *(self.log.write, on_change),
            ),
        )

    def _open_core(self) -> None:
        found = machine.machine()
        rows = [json.loads(data) for _, data in self.store.load()]
        meta = {name: data.decode("ascii") for name, data in self.store.meta.items()}
        writer = os.urandom(8).hex()
        former = meta.get("writers", "").split()
        starts = int(meta.get("starts", "0")) + 1
        node_id = meta.get("node_id") or os.urandom(8).hex()
        config = self.config
        me = core.Identity(node_id, writer, config.hostname, config.address, starts)
        cores, memory = config.cores or found.cores, config.memory or found.memory
        self.node = Node(me, cores, memory, config.tags, Search())
        self.known: Dict[str, str] = json.loads(meta.get("members", "{}"))
        self._remember("node_id", node_id)
        self._remember("starts", str(starts))
        self._remember("writers", " ".join([*former, writer]))
        self.shelf = Shelf(
            self.files,
            self.node.queue,
            self.node.files,
            lambda: machine.free_disk(config.home),
            self.log.write,
        )
        self.node.files.update(self.files.all())
        self.node.load(rows, self.store.meta)
        self.node.begin(former, self.known, clock())
        self.shelf.tidy()

    def _open_links(self, cookie: bytes) -> None:
        config = self.config
        try:
            self.links = links.Links(
                self.node.me,
                cookie,
                config.port,
                [*config.peers, *sorted(set(self.known.values()) - set(config.peers))],
                links.Seams(
                    self.watch,
                    self.unwatch,
                    self.step,
                    clock,
                    self.tell,
                    lambda peer, frame: self.transfers.on_frame(peer, frame),
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
        self.outputs = outputs.Outputs(
            self.files,
            self.transfers,
            outputs.Seams(
                self.aside, self.small, self.step, self._write_outputs, self.log.write
            ),
        )

    def _open_control(self) -> None:
        acts = Acts(
            self.step,
            self._keep,
            self._fetch,
            self.sandbox.live_output,
            lambda command, names: places.renames(command, names, str)[1],
            clock,
            time.time,
            self.log.write,
            lambda: in_force(self.config, self.node.me.address),
        )
        self.control = Control(self.node, acts, verbs.VERBS)
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

    def _remember(self, name: str, value: str) -> None:
        self.meta[name] = value.encode("ascii")

    # --- the loop -----------------------------------------------------------------

    def run(self, on_ready: Callable[[str], None]) -> int:
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
        names = [node.shown_name(member.facts) for member in node.mesh.others()]
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
        """Take in all answers, do what is due; give the time of the next."""
        self._poll()
        now = clock()
        self._has_stepped = False
        effects, due = self.node.tick(now)
        self.perform(effects)
        times = [due, self.sandbox.tick(now), self.transfers.tick(now)]
        version = self.node.queue.version
        has_changed, self._version = version != self._version, version
        times.append(self.control.tick(now, has_changed))
        self.calls.flush()
        self._know_members()
        times += [self.relay.tick(now), self.links.tick(now)]
        self.port.flush()
        times.append(self.port.drop_silent(now))
        if self.stop_by is not None:
            times.append(self.stop_by)
            self.loop.is_over = self.loop.is_over or now >= self.stop_by
        if self._has_stepped:
            times.append(now)  # The node's deadline may have changed.
        return min((t for t in times if t is not None), default=None)

    def _know_members(self) -> None:
        """Dial the members that others told of, and remember them on disk."""
        members = self.node.mesh.members
        known = {i: str(m.facts["address"]) for i, m in members.items()}
        if known and known != self.known:
            self.known = known
            self.links.know(set(known.values()))
            self._remember("members", json.dumps(known, sort_keys=True))

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
            self.perform(self.node.step(core.Stop(), clock()))

    def _on_clone(self) -> None:
        """Another process has our node id: stop, and start again as a new node."""
        if not self.is_clone:
            self.is_clone = True
            self.tell(
                "this state directory is a copy of another node's; taking a new id"
            )
            self._remember("node_id", os.urandom(8).hex())
            self._remember("writers", "")
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
        if self.is_clone:  # else the new id waits for a batch that never comes
            self.store.write(store.Batch(WRITE_SEQ, meta=self.meta))
        self.store.close(CLOSE_S)
        self.log.write("stopped")
        self.log.close(CLOSE_S)
        if self.is_clone:
            python = [sys.executable, "-E", "-X", "utf8"]  # as the launcher starts it
            os.execv(sys.executable, [*python, *sys.argv])
        return EXIT_DONE

    # --- performing what the node decides -----------------------------------------

    def step(self, message: core.Message) -> None:
        """Give the node a message and perform what follows."""
        self._has_stepped = True
        if isinstance(message, core.Stop):
            self.stop()
        else:
            self.perform(self.node.step(message, clock()))

    def perform(self, effects: Sequence[core.Effect]) -> None:
        """Carry out effects in order."""
        for effect in effects:
            PERFORM[type(effect)](self, effect)

    def _hear_ghost(self, message: core.Message) -> None:
        """Take what the relay says; calls of utilities don't concern the core."""
        if not isinstance(message, core.Frame) or message.kind not in calls.OF_GHOSTS:
            self.step(message)
            return
        self._has_stepped = True  # another turn: `control` may have something to do
        try:
            self.calls.on_frame(*message)
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            self.log.write("%s of a ghost: %r" % (message.kind, problem))
            self.relay.close(message.peer, "bad frame")
            self.step(core.LinkLost(message.peer, "broken"))

    def _send(self, effect: core.Send) -> None:
        way = self.relay if effect.peer in self.relay else self.links
        way.send(effect.peer, effect.kind, effect.fields)

    def _close_link(self, effect: core.CloseLink) -> None:
        way = self.relay if effect.peer in self.relay else self.links
        way.close(effect.peer, effect.why)

    def _persist(self, effect: core.Persist) -> None:
        new = dict(self.meta, **effect.meta)
        meta = {k: v for k, v in new.items() if self.written.get(k) != v}
        kept = self.outputs.take()
        groups = (effect.group, effect.close, effect.abort)
        batch = store.Batch(effect.seq, effect.rows, meta, kept, *groups)
        self.writing[effect.seq] = batch
        self.store.write(batch)

    def _write_outputs(self) -> None:
        self.store.write(store.Batch(WRITE_SEQ, outputs=self.outputs.take()))

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

    def _log(self, effect: core.Log) -> None:
        self.log.write(effect.text)

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
                self._on_written(answer)
            elif isinstance(answer, store.Found):
                self.then.pop(answer.ticket)(answer.data)
            else:
                self.then.pop(answer.ticket)(answer.result, answer.error)
        self.workplace.poll()

    def _on_written(self, answer: store.Written) -> None:
        if answer.seq == WRITE_SEQ:
            return
        batch = self.writing.pop(answer.seq)
        if answer.error:
            self.outputs.give_back(batch.outputs)
        else:
            self.written.update(batch.meta)
        self.step(core.Written(answer.seq, answer.error))

    # --- what the utilities need --------------------------------------------------

    def _keep(self, call: Call, ticket: int, paths: Sequence[str]) -> None:
        if self.calls.keep(call, ticket, paths):
            return
        self.shelf.make_room(sum(map(size_of, paths)))

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
    core.Log: Comrade._log,
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
        text = "LEORONIC_ADDRESS is %s; it must be an IPv4 address of this machine"
        return Quit(EXIT_USAGE, text % address)
    if problem.errno in (errno.EACCES, errno.EPERM):
        text = "LEORONIC_PORT is %d; it must be one that this user may listen at, such "
        return Quit(EXIT_USAGE, (text + "as %d") % (port, settings.PORT_DEFAULT))
    text = "can't listen at %s:%d; found: %s; see LEORONIC_ADDRESS, LEORONIC_PORT"
    return Quit(EXIT_SYSTEM, text % (address, port, problem.strerror))


def size_of(path: str) -> int:
    """Give the bytes of a file; 0 if it can't be looked at."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def serve(config: settings.Settings, on_ready: Callable[[str], None]) -> int:
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
        sys.stdout.write(line.decode("utf-8", "replace"))
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
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
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
            print("leoronic " + VERSION)
            return EXIT_DONE
        config = settings.read_settings(os.environ, program)
        if args == ["--help"]:
            table = settings.help_table(config, *machine.machine())
            print(USAGE + table, end="")
            return EXIT_DONE
        if args == ["--background"]:
            return detach(config)
        return serve(config, lambda line: print(line, flush=True))
    except settings.WrongSetting as problem:
        say(str(problem))
        return EXIT_USAGE
    except Quit as problem:
        say(str(problem))
        return problem.code


OPTIONS = ("--background", "--help", "--version")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
