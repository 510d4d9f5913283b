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
from collections import deque
from stat import S_ISREG
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Generator,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import choosing
import completing
import conditions
import inforce
import printed
import queuetable
import settings
import steering
import terminal
import top
import waiting
from control import (
    SLICE,
    TURN,
    Ask,
    Call,
    Control,
    Keep,
    No,
    Verb,
    Waits,
    Wrong,
    absolute,
    at_most,
    more_room,
    only,
    printable,
    to_bytes,
    told,
)
from effects import Abandon, Add, NewTask, Refresh, Stop, Sync, Tags
from facts import TEXTS_BYTES_MAX, clipped
from letters import Letter
from listing import (
    NODE_HEADS,
    Reasons,
    node_cells,
    pour,
    row,
    why_lines,
)
from record import UNFINISHED, File, Needs, Record, State, named_key
from taskform import (
    TASK_FORMAT,
    Draft,
    completed,
    is_task,
    kept_name,
    lines,
    plain,
    split_flags,
    split_line,
)

LIST_BYTES_MAX = 128 << 20  # of a file of tasks: half a million long lines
READ_BYTES = 1 << 20  # of it at once: a few ms
SLICES_AHEAD = 20  # of a list, of the disk: else all its rows would wait in memory
TAG_CHARS_MAX = 200
Names = Dict[str, Tuple[str, Draft]]  # of earlier lines -> key, and what it is of
# What was read of a list. A command has the needs that stand before it: a million of
# NewTask would leave 60 MiB of holes between the commands.
Item = Union[Draft, NewTask, Needs, str]
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


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
        fd = os.open(absolute(call, "FILE", path), os.O_RDONLY | os.O_NONBLOCK)
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


def _add_tasks_str(ctl: Control, call: Call) -> Verb:
    yield from _add_lines(ctl, call, only(call, "STRING"))


def _add_sweep(ctl: Control, call: Call) -> Verb:
    import sweep  # a grammar that most nodes never need

    yield from _add(ctl, call, [*(yield from sweep.drafts(call))])


def _add_lines(ctl: Control, call: Call, text: str) -> Verb:
    drafts: List[Item] = []
    needs: Optional[Needs] = None
    for number, line in enumerate(lines(text), 1):
        if is_task(line):
            try:
                found = plain(line)
                if found is None:
                    drafts.append(Draft(split_line(line), number))
                else:
                    if found[1] is not needs:
                        drafts.append(found[1])
                        needs = found[1]
                    drafts.append(found[0])
            except Wrong as problem:
                raise Wrong("line %d: %s" % (number, problem)) from None
        if number % SLICE == 0:
            yield TURN
    del text  # it may be large
    if not drafts:
        call.err("the list holds no task; found only comments and blanks; add some")
        return
    yield from _add(ctl, call, drafts)


def _add(ctl: Control, call: Call, drafts: List[Item]) -> Verb:
    """Add what was read: drafts, and tasks of which nothing is to be looked up."""
    yield from _check_ids(ctl, drafts)
    slices: Deque[List[Item]] = deque([[]])
    count, needs = 0, []
    kept: Dict[str, File] = {}
    names: Names = {}
    drafts.reverse()
    while drafts:  # each gives its memory back: there may be a million
        draft = drafts.pop()
        if isinstance(draft, Needs):
            needs = [draft]
        elif isinstance(draft, Draft):
            draft = yield from _look_up(ctl, call, draft, kept, names)
        slices[-1].append(draft)
        count += not isinstance(draft, Needs)
        if count == SLICE and drafts:
            slices.append([*needs])
            count = 0
            yield more_room(call)
    if slices[0]:
        yield from _send(ctl, call, slices)


def _look_up(
    ctl: Control, call: Call, draft: Draft, kept: Dict[str, File], names: Names
) -> Generator[Waits, Any, NewTask]:
    """Make the task of a draft: its files kept, what it refers to found."""
    try:
        paths = [absolute(call, "FILES", path) for path in draft.paths]
        new = [path for path in paths if path not in kept]
        if new:
            kept.update(zip(new, (yield Keep(new))))
        task = _task(ctl, draft, tuple(kept[path] for path in paths), names)
    except OSError as problem:
        raise _no_file(draft, problem) from None
    except (Wrong, No) as problem:
        raise type(problem)(f"{draft.where}{problem}") from None
    if draft.paths and not draft.needs.keep_names:
        for warning in ctl.acts.renames(draft.command, draft.told_of):
            call.err(draft.where + printable(warning))
    return task


def _tasks(items: Sequence[Item]) -> List[NewTask]:
    """Make the tasks of what was read and looked up."""
    tasks: List[NewTask] = []
    needs = Needs()
    for item in items:
        if isinstance(item, Needs):
            needs = item
        elif isinstance(item, NewTask):
            tasks.append(item)
        elif isinstance(item, str):
            tasks.append(NewTask(item, needs, ""))
    return tasks


def _check_ids(ctl: Control, drafts: List[Item]) -> Verb:
    """Refuse unknown ids before any file is read."""
    names: Names = {}
    for count, draft in enumerate(drafts, 1):
        if isinstance(draft, Draft):
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
    names: Names,
) -> NewTask:
    """Resolve what a draft refers to; ids of earlier lines are in `names`."""
    found = [_resolve(ctl, condition, names) for condition in draft.conditions]
    named = tuple(file._replace(name=path) for path, file in zip(draft.names, files))
    if draft.needs.keep_names:
        found += [
            conditions.may_place(kept_name(file.name), file.digest) for file in named
        ]
    needs = completed(draft.needs, tuple(c for c in found if c is not None), named)
    if draft.name:
        key = named_key(draft.name, draft.command, needs)
        _check_name(ctl, draft.name, key, names)
        names[draft.name] = (key, draft)
    return NewTask(draft.command, needs, draft.name)


def _check_name(ctl: Control, name: str, key: str, names: Names) -> None:
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
    names: Names,
) -> Optional[conditions.Condition]:
    """Put the key in place of the id in `queue:done ID`; None: it is purged."""
    text = condition.argument
    if condition.verb != "queue:done":
        return condition
    if text in names:
        return condition._replace(argument=names[text][0])
    try:
        return condition._replace(argument=choosing.find(ctl, text).key)
    except (Wrong, No) as problem:
        if ctl.node.queue.is_id_purged(text) and not ctl.node.queue.find(text):
            return None
        raise Wrong(f"CONDITIONS has queue:done {text}; {problem}") from None


def _send(ctl: Control, call: Call, slices: Deque[List[Item]]) -> Verb:
    """Hand tasks to the node under one ticket, all or nothing.

    What is handed over is taken out of `slices`: there may be a million.
    """
    ticket, wall = ctl.ticket(), ctl.acts.wall()
    ctl.early[ticket] = None
    try:
        for count in range(1, len(slices)):
            ctl.acts.step(Add(ticket, _tasks(slices.popleft()), wall, True))
            if ctl.early[ticket] is not None:
                raise No("nothing was added; " + ctl.early[ticket].error)
            if count % SLICES_AHEAD == 0:
                yield Ask(lambda ticket: Sync(ticket, unless_stuck=True))
            yield TURN
    except GeneratorExit:
        ctl.acts.step(Abandon(ticket))
        raise
    finally:
        del ctl.early[ticket]
    acked = yield Ask(lambda _: Add(ticket, _tasks(slices.popleft()), wall), ticket)
    if acked.error:
        raise No("nothing was added; " + acked.error)
    if acked.note:
        call.err(acked.note)
    # The shell reads a line byte by byte: all but the last id go as one piece.
    yield from pour(call, (text + "\n" for text in _ids(ctl, call, acked.keys[:-1])))
    for text in _ids(ctl, call, acked.keys[-1:]):
        call.line(text)


def _ids(ctl: Control, call: Call, keys: Sequence[str]) -> Iterator[str]:
    """Give the ids of tasks that were added, as they are asked for."""
    for key in keys:
        record = ctl.node.queue.records.get(key)
        if record is not None:
            if record.state is State.DELETED:
                what = "this task is there already, and deleted"
                call.err(told(what, record.shown, "to run it again, give another ID"))
            yield record.shown


def _retry(ctl: Control, call: Call) -> Verb:
    """Add tasks that are over anew, all or none, under names that tell of it."""
    texts = call.args[1:]
    if not texts:
        raise Wrong("ID is missing; found no argument; write one ID or more")
    problems: List[str] = []
    if "all" in texts:
        chosen = yield from choosing.failed(ctl)
        if not chosen:
            call.err("nothing was added; found no task that failed and wasn't retried")
    else:
        chosen = yield from choosing.pick_all(ctl, texts, problems)
    problems += [text for text in map(lambda r: _no_retry(ctl, r), chosen) if text]
    for problem in problems[:1]:
        raise No("nothing was added; " + problem)
    names = [choosing.name_anew(ctl, record) for record in chosen]
    tasks: List[Item] = [
        NewTask(r.command, r.needs, name) for r, name in zip(chosen, names)
    ]
    if tasks:
        pieces = range(0, len(tasks), SLICE)
        yield from _send(ctl, call, deque(tasks[i : i + SLICE] for i in pieces))


def _no_retry(ctl: Control, record: Record) -> str:
    """Say why a task can't be added anew; empty: it can be."""
    if record.state in UNFINISHED:
        what = f"ID is of a task that is {record.state.value}"
        return told(what, record.shown, "it may be retried once it is over")
    for file in record.needs.files:
        if file.digest not in ctl.node.files:
            what = f"FILES of {record.shown} are no longer kept here"
            return told(what, file.name, "add it anew with leoronic_add_task")
    return ""


# --- asking about tasks -----------------------------------------------------------


def _why(ctl: Control, call: Call) -> Verb:
    record = choosing.pick(ctl, only(call, "ID"))
    now = ctl.acts.clock()
    values = row(ctl, record, Reasons(ctl))
    where = f" on {values['node']}" if values["node"] else ""
    code = f", exit {values['exit']}" if values["exit"] is not None else ""
    call.line(printable(f"{record.shown} is {record.state.value}{where}{code}"))
    for text in ctl.node.history(record):
        call.line("  " + printable(text))
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
    widths = [max(map(terminal.width_of, column)) for column in zip(*rows)]
    if 0 < call.width < sum(widths) + len(terminal.GAP) * (len(widths) - 1):
        for cells in rows:  # name@address: the address stands in front of it
            name, _, address = cells[1].partition("@")
            cells[1] = name if address == cells[0] else cells[1]
        widths[1] = max(terminal.width_of(cells[1]) for cells in rows)
    lines = (terminal.row(cells, widths, call.width) + "\n" for cells in rows)
    yield from pour(call, lines)
    said = yield Letter("", "health", {})
    for address, why in (said[0] if said else {}).get("strange", {}).items():
        call.err(f"{address} is no node of this cluster: {why}")


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
    wanted = ctl.node.all_tags().union(tags)
    if is_add and len(clipped(wanted)) < len(wanted):
        what = "TAG can't be added: a node has %d KiB of tags at most"
        raise Wrong(told(what % (TEXTS_BYTES_MAX >> 10), tags[-1], "delete some"))
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
        call.raw(to_bytes("  %s\n      %s\n" % (conditions.usage(verb), text)))
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
    "del_task": steering.del_task,
    "count_all": steering.count_all,
    "retry": _retry,
    "get_queue": queuetable.get_queue,
    "get_output": printed.get_output,
    "wait": waiting.wait,
    "why": _why,
    "top": top.top,
    "top_frame": top.top_frame,
    "nodes": _nodes,
    "add_tag": _tags,
    "del_tag": _tags,
    "get_tags": _get_tags,
    "task_format": _task_format,
    "drain": steering.drain,
    "undrain": steering.undrain,
    "stop": _stop,
    "config": inforce.config,
    "complete": completing.complete,
}
