"""What each utility does: its arguments checked, its answer formatted.

Reason for this file beside control.py: that is how a call travels, this is what users
see. One function a verb, `verb(control, call)`; VERBS lists them.

Rules. The only place that words what users read. Changes nothing itself: it asks the
node (control.Ask). A verb that must wait yields what for. taskform.py reads tasks.

Invariants. Wrong arguments change nothing and name the argument; adding many tasks is
all or nothing. Each message says what is wrong; what was found; what to do. Tables,
--json and --csv tell the same row (`row`). Long work goes in slices, and answers no
further ahead than the client reads.
"""

import errno
import json
import os
from stat import S_ISREG
from typing import Any, Callable, Dict, Generator, List, Optional, Tuple

import completing
import conditions
import inforce
import settings
from control import (
    PIECE_BYTES,
    SLICE,
    TURN,
    Ask,
    Call,
    Control,
    Fetch,
    Keep,
    No,
    Until,
    Verb,
    Waits,
    Wrong,
    more_room,
    printable,
    to_bytes,
    told,
)
from effects import Abandon, Add, Delete, Drain, NewTask, Refresh, Stop, Sync, Tags
from listing import (
    NODE_HEADS,
    Bar,
    csv_rows,
    json_rows,
    laid_out,
    node_cells,
    not_durable,
    pour,
    row,
    table,
    why_lines,
)
from record import UNFINISHED, File, Phase, Record, Run, State, named_key
from taskform import (
    TASK_FORMAT,
    Draft,
    duration,
    is_task,
    kept_name,
    lines,
    split_flags,
    split_line,
    split_options,
)

LIST_BYTES_MAX = 128 << 20  # of a file of tasks: half a million long lines
READ_BYTES = 1 << 20  # of it at once: a few ms
FINDS = 20  # ids looked up in one turn of the loop: a prefix is searched for
TAG_CHARS_MAX = 200
ENDING_S = 5.0  # an output of a run that ends is waited for: it may be large
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def only(call: Call, name: str) -> str:
    """Give the one argument of a call."""
    at_most(call, 1)
    if len(call.args) < 2:
        raise Wrong(f"{name} is missing; found no argument; write one {name}")
    return call.args[1]


def at_most(call: Call, most: int) -> None:
    """Refuse more arguments than a verb takes."""
    if len(call.args) > most + 1:
        what = "there are %d arguments, %d at most are taken" % (
            len(call.args) - 1,
            most,
        )
        raise Wrong(told(what, call.args[most + 1], "leave it out, or quote blanks"))


def find(ctl: Control, text: str) -> Record:
    """Give the one task that an id or a unique prefix means."""
    if not text or text.startswith("-"):
        raise Wrong(told("ID can't be an id", text, "see leoronic_get_queue"))
    found = ctl.node.queue.find(text)
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(sorted(r.shown for r in found)[:3])
        what = "ID means %d tasks (%s ..)" % (len(found), some)
        raise No(told(what, text, "give more of it"))
    if ctl.node.queue.is_id_purged(text):
        raise No(told("ID is of a task long complete", text, "it was purged"))
    raise No(told("ID is unknown", text, "see leoronic_get_queue"))


# --- adding -----------------------------------------------------------------------


def _add_task(ctl: Control, call: Call) -> Verb:
    yield from _add(ctl, call, [Draft(call.args[1:])])


def _add_tasks(ctl: Control, call: Call) -> Verb:
    yield from _add_lines(ctl, call, (yield from read_list(call)))


def read_list(call: Call) -> Generator[Waits, Any, str]:
    """Read the file of tasks that a call names, where the caller is."""
    path = only(call, "FILE")
    data = bytearray()
    try:
        # Without O_NONBLOCK a FIFO would hold up the whole node.
        fd = os.open(_absolute(call, "FILE", path), os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", 0) as file:
            if not S_ISREG(os.fstat(fd).st_mode):
                raise Wrong(told("FILE is no regular file", path, "name a text file"))
            while len(data) <= LIST_BYTES_MAX:
                piece = file.read(READ_BYTES)
                if not piece:
                    break
                data += piece
                yield TURN
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise Wrong(
            told(f"FILE can't be read ({why})", path, "name a text file")
        ) from None
    if len(data) > LIST_BYTES_MAX:
        what = "FILE is longer than %s" % settings.format_size(LIST_BYTES_MAX)
        raise Wrong(told(what, path, "split it"))
    if b"\0" in data:
        raise Wrong(told("FILE holds NUL bytes", path, "save it as UTF-8 text"))
    text = data.decode("utf-8", "surrogateescape")
    return text[1:] if text[:1] == "\ufeff" else text


def _absolute(call: Call, name: str, path: str) -> str:
    """Give the path of a file as the caller means it, as this process opens it."""
    if not path:
        raise Wrong(f'{name} is empty; found ""; name a file')
    if not call.cwd and not path.startswith("/"):
        remedy = "your working directory is gone: cd, or write a path from /"
        raise Wrong(told(f"{name} is relative", path, remedy))
    return os.fsdecode(to_bytes(os.path.join(call.cwd, path)))


def _add_tasks_str(ctl: Control, call: Call) -> Verb:
    yield from _add_lines(ctl, call, only(call, "STRING"))


def _add_sweep(ctl: Control, call: Call) -> Verb:
    import sweep  # a grammar that most nodes never need

    yield from _add(ctl, call, (yield from sweep.drafts(call)))


def _add_lines(ctl: Control, call: Call, text: str) -> Verb:
    drafts: List[Draft] = []
    for number, line in enumerate(lines(text), 1):
        if is_task(line):
            try:
                drafts.append(Draft(split_line(line), number))
            except Wrong as problem:
                raise Wrong("line %d: %s" % (number, problem)) from None
        if number % SLICE == 0:
            yield TURN
    if not drafts:
        call.err("the list holds no task; found only comments and blanks; add some")
        return
    yield from _add(ctl, call, drafts)


def _add(ctl: Control, call: Call, drafts: List[Draft]) -> Verb:
    yield from _check_ids(ctl, drafts)
    tasks: List[NewTask] = []
    kept: Dict[str, File] = {}
    names: Dict[str, Tuple[str, Draft]] = {}
    for draft in drafts:
        try:
            paths = [_absolute(call, "FILES", path) for path in draft.paths]
            new = [path for path in paths if path not in kept]
            if new:
                kept.update(zip(new, (yield Keep(new))))
            files = tuple(kept[path] for path in paths)
            tasks.append(_task(ctl, draft, files, names))
        except OSError as problem:
            raise _no_file(draft, problem) from None
        except (Wrong, No) as problem:
            raise type(problem)(f"{draft.where}{problem}") from None
        if draft.paths and not draft.needs.keep_names:
            for warning in ctl.acts.renames(draft.command, draft.told_of):
                call.err(draft.where + printable(warning))
        if len(tasks) % SLICE == 0:
            yield more_room(call)
    if tasks:
        yield from _send(ctl, call, tasks)


def _check_ids(ctl: Control, drafts: List[Draft]) -> Verb:
    """Refuse unknown ids before any file is read."""
    names: Dict[str, Tuple[str, Draft]] = {}
    for count, draft in enumerate(drafts, 1):
        try:
            for condition in draft.conditions:
                _resolve(ctl, condition, names)
        except Wrong as problem:
            raise Wrong(f"{draft.where}{problem}") from None
        names[draft.name] = ("", draft)
        if count % SLICE == 0:
            yield TURN


def _no_file(draft: Draft, problem: OSError) -> Exception:
    why = problem.strerror or str(problem)
    cause = problem.__cause__ if problem.errno is None else problem
    if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        return No(f"{draft.where}FILES can't be kept; found: {why}; nothing was added")
    named = os.fsencode(problem.filename or why).decode("utf-8", "surrogateescape")
    given = [path for path in draft.paths if path in named]
    found = max(given, key=len, default=";".join(draft.paths))
    what = f"{draft.where}FILES names what can't be used: {why}"
    return Wrong(told(what, found, "name files that are there"))


def _task(
    ctl: Control,
    draft: Draft,
    files: Tuple[File, ...],
    names: Dict[str, Tuple[str, Draft]],
) -> NewTask:
    """Resolve what a draft refers to; ids of earlier lines are in `names`."""
    found = [_resolve(ctl, condition, names) for condition in draft.conditions]
    named = tuple(file._replace(name=path) for path, file in zip(draft.names, files))
    if draft.needs.keep_names:
        found += [
            conditions.may_place(kept_name(file.name), file.digest) for file in named
        ]
    texts = tuple(conditions.wire(c) for c in found if c is not None)
    needs = draft.needs._replace(conditions=texts, files=named)
    if draft.name:
        key = named_key(draft.name, draft.command, needs)
        _check_name(ctl, draft.name, key, names)
        names[draft.name] = (key, draft)
    return NewTask(draft.command, needs, draft.name)


def _check_name(
    ctl: Control, name: str, key: str, names: Dict[str, Tuple[str, Draft]]
) -> None:
    """Refuse an id that is another task's; with the same task it is the same task."""
    remedy = "give another id, or the same task"
    if name in names and names[name][0] != key:
        number = names[name][1].number
        raise Wrong(told("ID is that of line %d, another task" % number, name, remedy))
    others = ctl.node.queue.names.get(name, [])
    if others and key not in others:
        raise Wrong(told("ID belongs to another task", name, remedy))
    if not others and ctl.node.queue.is_name_purged(name):
        raise Wrong(told("ID was that of a task since purged", name, "give another id"))


def _resolve(
    ctl: Control,
    condition: conditions.Condition,
    names: Dict[str, Tuple[str, Draft]],
) -> Optional[conditions.Condition]:
    """Put the key in place of the id in `queue:done ID`; None: it is purged."""
    text = condition.argument
    if condition.verb != "queue:done":
        return condition
    if text in names:
        return condition._replace(argument=names[text][0])
    try:
        return condition._replace(argument=find(ctl, text).key)
    except (Wrong, No) as problem:
        if ctl.node.queue.is_id_purged(text) and not ctl.node.queue.find(text):
            return None
        raise Wrong(f"CONDITIONS has queue:done {text}; {problem}") from None


def _send(ctl: Control, call: Call, tasks: List[NewTask]) -> Verb:
    """Hand tasks to the node under one ticket, in slices, all or nothing."""
    ticket, wall = ctl.ticket(), ctl.acts.wall()
    ctl.early[ticket] = None
    try:
        for i in range(0, len(tasks) - SLICE, SLICE):
            ctl.acts.step(Add(ticket, tasks[i : i + SLICE], wall, True))
            if ctl.early[ticket] is not None:
                raise No("nothing was added; " + ctl.early[ticket].error)
            yield TURN
    except GeneratorExit:
        ctl.acts.step(Abandon(ticket))
        raise
    finally:
        del ctl.early[ticket]
    last = tasks[(len(tasks) - 1) // SLICE * SLICE :]
    acked = yield Ask(lambda _: Add(ticket, last, wall), ticket)
    if acked.error:
        raise No("nothing was added; " + acked.error)
    if acked.note:
        call.err(acked.note)
    records = [ctl.node.queue.records.get(key) for key in acked.keys]
    ids = [record.shown for record in records if record is not None]
    for record in records:
        if record is not None and record.state is State.DELETED:
            what = "this task is there already, and deleted"
            call.err(told(what, record.shown, "to run it again, give another ID"))
    # The shell reads a line byte by byte: all but the last id go as one piece.
    yield from pour(call, (text + "\n" for text in ids[:-1]))
    for text in ids[-1:]:
        call.line(text)


# --- asking about tasks -----------------------------------------------------------


def _del_task(ctl: Control, call: Call) -> Verb:
    if len(call.args) < 2:
        raise Wrong("ID is missing; found no argument; write one ID or more")
    problems: List[str] = []
    keys: Dict[str, None] = {}
    for count, text in enumerate(call.args[1:], 1):
        try:
            record = find(ctl, text)
            if record.state in UNFINISHED:
                keys[record.key] = None
            else:
                what = f"ID is of a task that is {record.state.value} already"
                problems.append(told(what, text, "nothing is left to be done"))
        except No as unknown:
            problems.append(str(unknown))
        if count % FINDS == 0:
            yield TURN
    if keys:
        acked = yield Ask(lambda ticket: Delete(ticket, list(keys)))
        problems += not_durable(acked)
    for problem in problems[:-1]:
        call.err(printable(problem))
    if problems:
        raise No(problems[-1])


def _get_queue(ctl: Control, call: Call) -> Verb:
    flags, rest = split_flags(call.args[1:], ("--json", "--csv"))
    if len(set(flags)) > 1:
        raise Wrong(told("only one form is taken", " ".join(flags), "choose one"))
    known = ", ".join(state.value for state in State)
    if len(rest) > 1:
        raise Wrong(told("only one STATE is taken", " ".join(rest), f"one of {known}"))
    states = [state for state in State if rest in ([], [state.value])]
    if not states:
        raise Wrong(told("STATE is unknown", rest[0], f"write one of {known}"))
    chosen = [r for r in ctl.node.queue.in_order() if r.state in states]
    if "--json" in flags:
        yield from pour(call, json_rows(ctl, chosen))
    elif "--csv" in flags:
        yield from pour(call, csv_rows(ctl, chosen))
    else:
        yield from table(ctl, call, chosen)


def _get_output(ctl: Control, call: Call) -> Verb:
    flags, rest = split_flags(call.args[1:], ("--stderr",))
    call.args[1:] = rest
    record = find(ctl, only(call, "ID"))
    which = "err" if flags else "out"
    run, live = yield from _run_of(ctl, record, which)
    found: Any = live
    size, digest = run.detail.get(which, (-1, ""))
    if size == 0 or (size < 0 and _may_begin(ctl, run)):
        return
    if size > 0 and digest:
        found = yield Fetch(size, digest, run.worker)
    if isinstance(found, bytes):
        call.raw(found)
    elif found is not None:
        yield from _send_file(record, call, found)
    else:
        raise No(
            "the output of %s isn't here; found that it ran on %s; it may be lost"
            % (record.shown, run.detail.get("node") or "another node")
        )


def _run_of(
    ctl: Control, record: Record, which: str
) -> Generator[Waits, Any, Tuple[Run, Optional[str]]]:
    """Give the run that speaks for a task, and where its output gathers meanwhile.

    Between that and an end that is told lies some time: a large output is being moved.
    """
    deadline = ctl.acts.clock() + ENDING_S
    while True:
        run_key = record.telling_run()
        if run_key is None:
            raise No(
                f"{record.shown} has no output; found that it is {record.state.value}, "
                "and has not run; see leoronic_why"
            )
        run = record.runs[run_key]
        live = ctl.acts.live_output(run_key, which)
        is_ending = run.phase is Phase.STARTED and run.worker == ctl.node.me.writer
        if live or not is_ending or ctl.acts.clock() >= deadline:
            return run, live
        yield Until(deadline)


def _may_begin(ctl: Control, run: Run) -> bool:
    """Say whether a run is about to start here, and so has printed nothing yet."""
    return run.phase is Phase.GRANTED and run.worker == ctl.node.me.writer


def _send_file(record: Record, call: Call, path: str) -> Verb:
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size  # a task may print without end
            while left > 0:
                piece = file.read(min(PIECE_BYTES, left))
                if not piece:
                    break
                left -= len(piece)
                call.raw(piece)
                yield more_room(call)
    except OSError as problem:
        raise No(
            f"the output of {record.shown} can't be read; found: {problem.strerror}; "
            "see this node's log"
        ) from None


def _wait_for(ctl: Control, call: Call) -> Verb:
    options, rest = split_options(call.args[1:], {"--timeout": duration})
    clock = ctl.acts.clock
    deadline = clock() + options["--timeout"] if options else None
    waited: List[Record] = []
    for count, text in enumerate(rest, 1):
        waited.append(find(ctl, text))
        if count % FINDS == 0:
            yield TURN
    if not rest:
        waited = [r for r in ctl.node.queue.records.values() if r.state in UNFINISHED]
    left, bar = list(waited), Bar(call, waited)
    while True:
        while left and not _is_unfinished(ctl, left[-1]):
            left.pop()
        now = clock()
        if not left or (deadline is not None and now >= deadline):
            break
        times = [t for t in (deadline, bar.draw(now)) if t is not None]
        yield Until(min(times, default=None))
    call.progress("")
    if not left:
        yield from _report(ctl, call, waited)
        return
    many = sum(1 for record in left if _is_unfinished(ctl, record))
    call.err(
        "time is up; found %d of %d not finished; see leoronic_get_queue"
        % (many, len(waited))
    )
    call.end(124)


def _is_unfinished(ctl: Control, record: Record) -> bool:
    """Say whether to wait on; an add that failed was forgotten, not finished."""
    return record.state in UNFINISHED and record.key in ctl.node.queue.records


def _report(ctl: Control, call: Call, waited: List[Record]) -> Verb:
    acked = yield Ask(lambda ticket: Sync(ticket))
    if acked.error:
        call.err(f"finished, but not on disk yet; {acked.error}; a restart may undo it")
    bad = [r for r in waited if r.state not in UNFINISHED and r.state is not State.DONE]
    if bad:
        some = ", ".join(f"{r.shown} ({r.state.value})" for r in bad[:3])
        raise No(
            "%d of %d did not succeed; found %s; see leoronic_get_queue"
            % (len(bad), len(waited), some + (" .." if len(bad) > 3 else ""))
        )


def _why(ctl: Control, call: Call) -> Verb:
    record = find(ctl, only(call, "ID"))
    now = ctl.acts.clock()
    values = row(ctl, record)
    where = f" on {values['node']}" if values["node"] else ""
    code = f", exit {values['exit']}" if values["exit"] is not None else ""
    call.line(printable(f"{record.shown} is {record.state.value}{where}{code}"))
    if record.state is not State.WAITING or record.key in ctl.node.matcher.blocked:
        if values["reason"]:
            call.line("  " + printable(values["reason"]))
        return
    for line in why_lines(ctl, record, now):
        call.line(line)
    yield TURN


# --- nodes, tags, stopping --------------------------------------------------------


def _nodes(ctl: Control, call: Call) -> Verb:
    flags, rest = split_flags(call.args[1:], ("--json",))
    call.args[1:] = rest
    at_most(call, 0)
    ctl.acts.step(Refresh())
    members = ctl.node.members()
    if flags:
        call.raw((json.dumps(members) + "\n").encode("ascii"))
        return
    rows = [NODE_HEADS] + [node_cells(member) for member in members]
    widths = [max(map(len, column)) for column in zip(*rows)]
    yield from pour(call, (laid_out(cells, widths, call.width) for cells in rows))


def _tags(ctl: Control, call: Call) -> Verb:
    tags = call.args[1:]
    if not tags:
        raise Wrong("TAG is missing; found no argument; write one TAG or more")
    for tag in tags:
        is_word = tag.split() == [tag] and tag.isprintable() and tag[0] != "-"
        if not is_word or len(tag) > TAG_CHARS_MAX:
            remedy = "write a word without blanks, of at most 200 characters, no -"
            raise Wrong(told("TAG can't be a tag", tag, remedy + " in front"))
    is_add = call.args[0] == "add_tag"
    unknown = [tag for tag in tags if tag not in ctl.node.tags]
    ctl.acts.step(Tags(tags, ()) if is_add else Tags((), tags))
    if unknown and not is_add:
        what = "TAG is not one of this node"
        raise No(told(what, " ".join(unknown), "see leoronic_get_tags"))
    yield TURN


def _get_tags(ctl: Control, call: Call) -> Verb:
    at_most(call, 0)
    yield from pour(
        call, [printable(tag) + "\n" for tag in sorted(ctl.node.all_tags())]
    )


def _task_format(ctl: Control, call: Call) -> Verb:
    at_most(call, 0)
    call.raw((TASK_FORMAT.strip() + "\n").encode("ascii"))
    for verb, (_, text) in conditions.VERBS.items():
        call.raw(to_bytes("  %-29s %s\n" % (conditions.usage(verb), text)))
    yield TURN


def _drain(ctl: Control, call: Call) -> Verb:
    at_most(call, 1)
    node_id = ctl.node.me.node_id
    for name in call.args[1:]:
        if not name or name.startswith("-"):
            raise Wrong(told("NODE can't be a node", name, "see leoronic_nodes"))
        found = ctl.node.find_nodes(name) or ctl.node.find_nodes(name.lower())
        if not found:
            what = "NODE is no node's name or address"
            raise No(told(what, name, "see leoronic_nodes"))
        if len(found) > 1:
            what = "NODE means %d nodes" % len(found)
            raise No(told(what, name, "give the address"))
        node_id = found[0]
    ctl.acts.step(Drain(call.args[0] == "drain", node_id))
    yield TURN


def _stop(ctl: Control, call: Call) -> Verb:
    at_most(call, 0)
    ctl.stops.append(call)
    ctl.acts.step(Stop())
    yield TURN


VERBS: Dict[str, Callable[[Control, Call], Verb]] = {
    "add_task": _add_task,
    "add_tasks": _add_tasks,
    "add_tasks_str": _add_tasks_str,
    "add_tasks_sweep": _add_sweep,
    "add_tasks_sweep_text": _add_sweep,  # the values as text, one a line
    "add_tasks_text": _add_tasks_str,  # of a file that a ghost has read
    "del_task": _del_task,
    "get_queue": _get_queue,
    "get_output": _get_output,
    "wait": _wait_for,
    "why": _why,
    "nodes": _nodes,
    "add_tag": _tags,
    "del_tag": _tags,
    "get_tags": _get_tags,
    "task_format": _task_format,
    "drain": _drain,
    "undrain": _drain,
    "stop": _stop,
    "config": inforce.config,
    "complete": completing.complete,
}
