"""What each utility answers: codes, messages, what changed and what didn't."""

import csv
import io
import json
import random

import pytest
from desk import Desk, file
from test_taskform import SOUND, WRONG_FIELDS, changed

import conditions
import durable
import verbs
from control import OUT_BYTES_MAX, SLICE
from effects import Moved
from listing import FIELDS
from record import State
from usage import USAGES

FIELD_TYPES = {
    "id": str,
    "state": str,
    "node": (str, type(None)),
    "attempt": int,
    "exit": (int, type(None)),
    "command": str,
    "added": float,
    "started": (float, type(None)),
    "finished": (float, type(None)),
    "reason": str,
    "conditions": list,
    "files": list,
    "memory": int,
    "cores": int,
    "storage": int,
    "concurrency": bool,
    "priority": int,
}


def refused(desk, answer, code=2):
    """Check a refusal: its code, its form; nothing is in the queue."""
    assert answer.code == code, answer
    assert answer.out == b""
    assert answer.err[0].startswith("leoronic: ")
    assert answer.err[0].count("; ") >= 2, answer.err
    assert all(line.isprintable() for line in answer.err)
    assert not desk.states()
    return answer.err[0]


def rows(desk, *args):
    return json.loads(desk.ask("get_queue", "--json", *args).out.decode())


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def mixed():
    """Give a desk with a task in each state."""
    desk = Desk(cores=1)
    for name in ("done", "failed", "deleted", "running", "waiting"):
        desk.add("echo " + name, ID="t-" + name)
    desk.begin("t-done")
    desk.end("t-done", 0, (3, "d"))
    desk.begin("t-failed")
    desk.end("t-failed", 7, cause="signal KILL", err=(4, "e"))
    assert desk.ask("del_task", "t-deleted").code == 0
    desk.end("t-deleted", 143)
    desk.begin("t-running")
    return desk


# --- adding -----------------------------------------------------------------------


def test_add_prints_the_id_alone_on_a_line_once_it_is_on_disk(desk):
    desk.disk = "later"
    client = desk.client("add_task", *SOUND)
    desk.settle()
    assert client.answer.code is None and not client.answer.out
    assert not desk.started
    desk.write()
    desk.settle()
    assert client.answer == (0, b"1-aaaaaaaa\n", [], [])
    assert not desk.started  # alone, its disk has to know of the grant
    desk.write()
    desk.settle()
    assert desk.started


@pytest.mark.parametrize("disk, starts", [("no space left", True), ("later", False)])
def test_a_grant_waits_for_a_disk_that_hangs_and_for_none_that_fails(disk, starts):
    desk = Desk(cores=1)
    for name in ("first", "second"):
        desk.add(ID=name)
    desk.disk = disk
    desk.end("first")
    desk.advance(9.0)
    assert (len(desk.started) == 2) is starts
    desk.disk = "at once"
    desk.write()
    desk.settle()
    assert len(desk.started) == 2


def test_an_add_that_the_disk_refuses_is_gone_again(desk):
    desk.disk = "no space left on the disk of /home"
    assert "no space left" in refused_no(desk, desk.ask("add_task", *SOUND))


def refused_no(desk, answer):
    assert answer.code == 1 and not desk.states() and not answer.out
    return answer.err[0]


@pytest.mark.parametrize("name, text", WRONG_FIELDS)
def test_a_wrong_argument_changes_nothing_and_is_named(desk, name, text):
    assert name in refused(desk, desk.ask("add_task", *changed(**{name: text})))
    assert not desk.persisted


def test_the_usage_follows_a_wrong_argument(desk):
    usage = desk.ask("add_task", "1K").err[1]
    assert usage.startswith("leoronic: usage: leoronic_add")
    assert usage.endswith("; more: leoronic_add_task --help")


@pytest.mark.parametrize("verb", sorted(set(verbs.VERBS) & set(USAGES)))
def test_each_utility_says_how_it_is_called_and_does_nothing_else(desk, verb):
    answer = desk.ask(verb, "--help")
    assert (answer.code, answer.err) == (0, [])
    assert answer.lines[0].startswith("usage: leoronic_") and answer.lines[1:]
    assert max(map(len, answer.lines)) <= 80
    assert not desk.is_stopped and not desk.persisted
    assert desk.node.members()[0]["state"] == "ready"


def test_a_given_id_with_the_same_task_is_the_same_task(desk):
    assert desk.add("true", ID="mine") == "mine"
    assert desk.add("true", ID="mine") == "mine"
    assert len(desk.states()) == 1


@pytest.mark.parametrize(
    "change", [{"COMMANDS": "false"}, {"CORES": "2"}, {"CONDITIONS": "worker:tag a"}]
)
def test_a_given_id_with_another_task_is_refused(desk, change):
    desk.add("true", ID="mine")
    task = {"COMMANDS": "true", "STORAGE": "1K", **change}
    answer = desk.ask("add_task", *changed(**task), "mine")
    assert answer.code == 2 and len(desk.states()) == 1
    assert answer.err[0].startswith("leoronic: ID belongs to another task; found mine;")


def test_a_retry_of_a_deleted_task_says_so(desk):
    desk.add(ID="mine", CONDITIONS="worker:tag x")
    desk.ask("del_task", "mine")
    args = changed(STORAGE="1K", CONDITIONS="worker:tag x", COMMANDS="true")
    answer = desk.ask("add_task", *args, "mine")
    assert (answer.code, answer.out) == (0, b"mine\n")
    assert "deleted" in answer.err[0]


def test_the_id_of_a_purged_task_is_refused_in_words(desk):
    desk.add(ID="mine")
    desk.end("mine")
    desk.node.queue.purge(list(desk.node.queue.records))
    assert "purged" in refused(desk, desk.ask("add_task", *SOUND, "mine"))


def test_text_with_any_bytes_comes_back_as_it_was(desk):
    command = "printf '\udcff\n\té' # \"x\""
    desk.add(command)
    assert rows(desk)[0]["command"] == command


# --- FILES ------------------------------------------------------------------------


def test_files_are_read_from_the_callers_directory(desk):
    desk.files = {"/home/u/a.csv": file("a"), "/b": file("b", "1")}
    args = changed(FILES="a.csv;/b")
    assert desk.ask("add_task", *args, cwd="/home/u").code == 0
    assert rows(desk)[0]["files"] == ["a.csv", "/b"]


def test_a_missing_file_is_named_as_it_was_given(desk):
    answer = desk.ask("add_task", *changed(FILES="no/such.csv"), cwd="/home/u")
    assert "found no/such.csv;" in refused(desk, answer)


def test_a_file_that_cannot_be_kept_is_no_wrong_argument(desk):
    desk.files = {"/a": OSError(28, "No space left on device", "/state")}
    assert "No space" in refused_no(desk, desk.ask("add_task", *changed(FILES="a")))


def test_a_relative_file_from_a_directory_that_is_gone_is_refused(desk):
    answer = desk.ask("add_task", *changed(FILES="a"), cwd="")
    assert "working directory is gone" in refused(desk, answer)


def test_no_file_is_read_for_a_list_with_a_wrong_line(desk):
    desk.keeps_later = True
    text = '1K 1 1K true "" /a "cat a"\n1K 1 1K true "queue:done no" "" x\n'
    assert "line 2: CONDITIONS" in refused(desk, desk.ask("add_tasks_str", text))
    assert not desk.kept


def test_a_missing_file_in_a_list_is_named_with_its_line(desk):
    desk.files = {"/a": file("a")}
    text = '1K 1 1K true "" a x\n\n1K 1 1K true "" b x\n'
    message = refused(desk, desk.ask("add_tasks_str", text))
    assert "line 3: FILES" in message and "found b;" in message


def test_a_file_of_many_lines_is_read_once(desk):
    desk.files = {"/a": file("a")}
    asked = []
    keep = desk.keep
    desk.control.acts = desk.control.acts._replace(
        keep=lambda call, ticket, paths: (
            asked.extend(paths),
            keep(call, ticket, paths),
        )
    )
    assert desk.ask("add_tasks_str", '1K 1 1K true "" a x\n' * 50).code == 0
    assert asked == ["/a"]


def test_warnings_of_renames_come_with_their_line():
    desk = Desk(renames=lambda command, names: [f"{names[0]} inside {command}"])
    desk.files = {"/a": file("a")}
    answer = desk.ask("add_tasks_str", '# x\n1K 1 1K true "" a "xa\ty"\n')
    assert answer.code == 0
    assert answer.err == ["leoronic: line 2: a inside xa\\ty"]
    kept = desk.ask("add_task", "--keep-names", *changed(FILES="a"))
    assert kept.code == 0 and not kept.err


def test_keep_names_asks_for_room_for_the_name_but_tells_no_digest(desk):
    desk.files = {"/./a": file("a", "c")}
    text = desk.add("cat a", "--keep-names", FILES="./a")
    assert desk.node.queue.find(text)[0].needs.conditions == (
        conditions.wire(conditions.may_place("a", "c" * 64)),
    )
    assert rows(desk)[0]["conditions"] == []
    shown = desk.ask("why", text).out + desk.ask("get_queue").out
    assert b"cccc" not in shown and b"--keep-names" in shown


# --- lists ------------------------------------------------------------------------


def listed(command="x", name=""):
    return f'1K 1 1K true "" "" "{command}" {name}\n'


@pytest.mark.parametrize("count", [1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE, 777])
def test_a_list_gives_the_tasks_that_its_lines_give_one_by_one(count):
    """Needs are kept once for neighbours; names and options are read another way."""
    rng = random.Random(count)
    kinds = (
        "1K 1 1K true '' ''",
        "2K 1 1K false 'worker:tag x' ''",
        "--retries 2 1K 1",
    )
    lines, kind = [], kinds[0]
    for n in range(count):
        if rng.random() < 0.2:
            kind = rng.choice(kinds)
        rest = " 1K true '' ''" if kind[0] == "-" else ""
        name = f" name{n}" if rng.random() < 0.1 else ""
        lines.append(f"{kind}{rest} 'echo {n}'{name}\n")
    together, alone = Desk(), Desk()
    assert together.ask("add_tasks_str", "".join(lines)).code == 0
    for line in lines:
        assert alone.ask("add_tasks_str", line).code == 0
    found, expected = (
        [(r.command, r.needs, r.name) for r in desk.node.queue.in_order()]
        for desk in (together, alone)
    )
    assert len(found) == count and found == expected


def test_a_list_may_have_comments_blank_lines_tabs_and_crlf(desk):
    text = (
        "# c\r\n\r\n\t\n1K\t1 1K true '' '' 'a#b # c'\r\n#\n" + listed("last").strip()
    )
    answer = desk.ask("add_tasks_str", text)
    assert answer.code == 0 and len(answer.lines) == 2
    assert [row["command"] for row in rows(desk)] == ["a#b # c", "last"]


def test_nothing_is_expanded_in_a_list(desk):
    assert desk.ask("add_tasks_str", '1K 1 1K true "" "" "$HOME" `id`').code == 2
    assert desk.ask("add_tasks_str", '1K 1 1K true "" "" "$HOME ~ *"').code == 0
    assert rows(desk)[0]["command"] == "$HOME ~ *"


@pytest.mark.parametrize("number", [7, 10000])
def test_an_open_quote_on_one_line_of_many_adds_nothing(desk, number):
    text = [listed()] * 10000
    text[number - 1] = '1K 1 1K true "" "" "echo what\n'
    message = refused(desk, desk.ask("add_tasks_str", "".join(text)))
    assert message.startswith("leoronic: line %d: a quote is not closed; " % number)
    assert not desk.persisted


def test_a_long_list_is_added_in_slices_and_its_ids_come_in_order(desk):
    answer = desk.ask("add_tasks_str", "".join(map(listed, map(str, range(1000)))))
    assert answer.code == 0
    assert answer.lines == ["%d-aaaaaaaa" % n for n in range(1, 1001)]
    assert [row["command"] for row in rows(desk)] == [str(n) for n in range(1000)]


@pytest.mark.parametrize("slice_size", [1, 7, 1000, 10**6])
def test_a_list_that_is_let_go_in_many_turns_is_let_go_whole(desk, slice_size):
    desk.node.durable.slice = slice_size
    assert desk.ask("add_tasks_str", listed("0", "x")).code == 0
    text = "".join(listed(str(n), "x" if n == 0 else "") for n in range(1000))
    answer = desk.ask("add_tasks_str", text)
    assert answer.code == 0 and len(answer.lines) == 1000
    desk.settle()
    node = desk.node
    assert not (node.matcher.blocked or node.replica.held or node.replica.wanted)
    assert len(node.matcher.buckets) == 1 and node.durable.is_clean()
    (bucket,) = node.matcher.buckets.values()
    waiting = [r for r in node.queue.in_order() if r.state is State.WAITING]
    assert sorted(bucket.heap) == waiting and len(waiting) > 900 and desk.started
    staged = [
        key for effect in desk.persisted if effect.group for key, _ in effect.rows
    ]
    assert len(staged) == len(set(staged)) == 1000


def test_an_empty_list_says_so_and_is_no_error(desk):
    answer = desk.ask("add_tasks_str", "# nothing\n\n")
    assert answer.code == 0 and "no task" in answer.err[0]


@pytest.mark.parametrize("slice_number", [0, 1, 2, 3])
def test_a_client_that_leaves_during_its_list_leaves_nothing(desk, slice_number):
    desk.disk = "later"
    client = desk.client("add_tasks_str", listed() * (SLICE * 4))
    while not desk.states():
        desk.control.tick(desk.now, False)
    for _ in range(slice_number):
        if len(desk.states()) < 3 * SLICE:
            desk.control.tick(desk.now, False)
    assert len(desk.states()) in (SLICE, 2 * SLICE, 3 * SLICE)
    client.leave()
    desk.write()
    desk.settle()
    desk.write()
    assert not desk.states() and not desk.control.early
    assert any(effect.abort for effect in desk.persisted)


def test_a_long_list_is_no_further_ahead_of_the_disk_than_some_slices(desk):
    desk.disk, most = "later", SLICE * verbs.SLICES_AHEAD
    client = desk.client("add_tasks_str", listed() * (most * 2 + 1))
    waiting = []
    while not client.answer.lines:
        desk.settle()
        waiting.append(sum(len(effect.rows) for effect in desk.pending))
        assert desk.pending
        desk.write()
    assert waiting[:3] == [most, most, 1] and client.answer.code == 0
    assert len(client.answer.lines) == most * 2 + 1
    # Each piece costs the shell a fork; the last id is a line of its own.
    assert bytes(client.got).count(b"\nO ") + client.got.startswith(b"O ") <= 2


def test_a_long_list_waits_for_no_disk_that_hangs(desk):
    desk.disk, count = "later", SLICE * verbs.SLICES_AHEAD * 2 + 1
    client = desk.client("add_tasks_str", listed() * count)
    desk.settle()
    assert len(desk.states()) < count
    desk.advance(durable.STUCK_S + 0.1)
    assert len(desk.states()) == count and client.answer.code is None
    desk.write()
    desk.settle()
    assert client.answer.code == 0 and len(client.answer.lines) == count


def test_a_client_that_leaves_while_its_list_waits_for_the_disk_leaves_nothing(desk):
    desk.disk = "later"
    client = desk.client("add_tasks_str", listed() * (SLICE * verbs.SLICES_AHEAD + 1))
    desk.settle()
    assert desk.pending and desk.states()
    client.leave()
    desk.write()
    desk.settle()
    desk.write()
    assert not desk.states() and not desk.control.early
    assert any(effect.abort for effect in desk.persisted)


def test_a_client_that_leaves_while_its_files_are_read_adds_nothing(desk):
    desk.files, desk.keeps_later = {"/a": file("a")}, True
    client = desk.client("add_task", *changed(FILES="a"))
    client.leave()
    desk.answer_keeps()
    desk.settle()
    assert not desk.states()


def test_a_disk_that_fails_in_the_first_slice_leaves_nothing_of_a_list(desk):
    desk.disk = "no space left"
    answer = desk.ask("add_tasks_str", listed() * (SLICE * 3))
    assert "no space left" in refused_no(desk, answer)


def test_a_name_taken_while_a_list_is_handed_over_leaves_nothing_of_it(desk):
    text = listed() * SLICE + listed("mine", "x") + listed() * (SLICE * 2)
    client = desk.client("add_tasks_str", text)
    while not desk.states():
        desk.control.tick(desk.now, False)
    other = desk.client("add_task", *SOUND, "x")
    desk.settle()
    assert other.answer.code == 0
    assert client.answer.code == 1 and "nothing was added" in client.answer.err[0]
    assert len(desk.states()) == 1 and not desk.control.early


def test_one_id_for_two_tasks_of_a_list_is_refused_with_both_lines(desk):
    text = listed("a", "x") + listed("b") + listed("c", "x")
    message = refused(desk, desk.ask("add_tasks_str", text))
    assert "line 3: ID is that of line 1, another task; found x;" in message


def test_one_id_for_the_same_task_twice_is_one_task(desk):
    assert desk.ask("add_tasks_str", listed("a", "x") * 2).lines == ["x", "x"]
    assert len(desk.states()) == 1


def test_a_list_file_is_read_from_the_callers_directory(desk, tmp_path):
    (tmp_path / "list").write_bytes("\ufeff".encode() + listed().encode())
    assert desk.ask("add_tasks", "list", cwd=str(tmp_path)).code == 0
    assert len(desk.states()) == 1


def test_a_list_file_that_cannot_be_one_is_named(desk, tmp_path, monkeypatch):
    import os

    os.mkfifo(str(tmp_path / "fifo"))
    (tmp_path / "utf16").write_bytes(listed().encode("utf-16"))
    (tmp_path / "long").write_bytes(listed().encode() * 100)
    monkeypatch.setattr("verbs.LIST_BYTES_MAX", 1000)
    for name in ("fifo", "utf16", "long", "missing", ".", "", "a\nb"):
        message = refused(desk, desk.ask("add_tasks", name, cwd=str(tmp_path)))
        assert "FILE" in message
    assert "gone" in refused(desk, desk.ask("add_tasks", "long", cwd=""))


# --- queue:done -------------------------------------------------------------------


def test_queue_done_takes_ids_of_earlier_lines_and_prefixes_of_the_queue(desk):
    first = desk.add()
    text = listed("a", "x") + '1K 1 1K true "queue:done x;queue:done 1-" "" b\n'
    assert desk.ask("add_tasks_str", text).code == 0
    assert rows(desk)[2]["conditions"] == ["queue:done x", "queue:done " + first]


@pytest.mark.parametrize("text", ["no", "all", "-x", "x", "9-aaaaaaaa"])
def test_queue_done_of_an_unknown_id_is_refused(desk, text):
    args = changed(CONDITIONS="queue:done " + text)
    message = refused(desk, desk.ask("add_task", *args, "x"))
    assert "CONDITIONS has queue:done " + text in message


def test_queue_done_of_a_later_line_is_refused(desk):
    text = '1K 1 1K true "queue:done x" "" b\n' + listed("a", "x")
    assert "line 1: " in refused(desk, desk.ask("add_tasks_str", text))


def test_queue_done_of_a_purged_task_is_complete(desk):
    name, own = desk.add(), desk.add(ID="mine")
    desk.end(name)
    desk.end(own)
    desk.node.queue.purge(list(desk.node.queue.records))
    new = desk.add(CONDITIONS="queue:done %s; queue:done mine" % name)
    assert rows(desk)[0]["conditions"] == []
    assert desk.run_of(new)


# --- ids --------------------------------------------------------------------------

BY_ID = ["del_task", "get_output", "wait", "why", "retry"]


@pytest.mark.parametrize("verb", BY_ID)
def test_an_unknown_id_is_answered_with_1_and_named(desk, verb):
    for text in ("nope", "7-bbbbbbbb", "\x1b[2J"):
        assert "ID is unknown" in refused(desk, desk.ask(verb, text), 1)


@pytest.mark.parametrize("verb", BY_ID)
def test_what_cannot_be_an_id_is_answered_with_2(desk, verb):
    for text in ("", "-x", "--force"):
        refused(desk, desk.ask(verb, text))


@pytest.mark.parametrize("verb", ["del_task", "get_output", "why"])
def test_a_missing_id_is_answered_with_2(desk, verb):
    assert "ID is missing" in refused(desk, desk.ask(verb))


@pytest.mark.parametrize("verb", BY_ID)
def test_an_ambiguous_prefix_is_refused_naming_some(verb):
    desk = Desk(cores=1)
    for name in ("ab1", "ab2", "ab"):
        desk.add(ID=name)
    answer = desk.ask(verb, "a")
    assert answer.code == 1
    assert "ID means 3 tasks (ab, ab1, ab2); found a; give more" in answer.err[0]
    assert "deleted" not in desk.states()


def test_a_beginning_means_a_task_also_beside_what_it_was_retried_as(desk):
    for name in ("hello", "hello.r1", "hello.r2", "jo-1", "jo-10"):
        desk.add(ID=name)
    assert desk.ask("why", "hel").lines[0].startswith("hello is ")
    assert desk.ask("why", "hello.r1").lines[0].startswith("hello.r1 is ")
    assert "2 tasks (hello.r1, hello.r2);" in desk.ask("why", "hello.r").err[0]
    assert "2 tasks (jo-1, jo-10);" in desk.ask("why", "jo").err[0]


def test_a_whole_id_wins_over_longer_ones_and_a_prefix_will_do():
    desk = Desk(cores=1)
    for name in ("ab1", "ab2", "ab"):
        desk.add(ID=name)
    assert desk.ask("del_task", "ab", "ab1").code == 0
    assert desk.states() == ["deleted", "waiting", "deleted"]


@pytest.mark.parametrize("verb", ["why", "get_output", "nodes", "get_tags", "stop"])
def test_too_many_arguments_are_refused(desk, verb):
    refused(desk, desk.ask(verb, "a", "b"))
    assert not desk.is_stopped


# --- del_task ---------------------------------------------------------------------


def test_waiting_and_running_tasks_are_deleted_and_the_running_one_is_stopped(mixed):
    run = mixed.run_of("t-running")
    answer = mixed.ask("del_task", "t-waiting", "t-running", "t-running")
    assert answer == (0, b"", [], [])
    assert mixed.states() == ["done", "failed", "deleted", "deleted", "deleted"]
    assert mixed.kills[-1].run == run


@pytest.mark.parametrize("name", ["done", "failed", "deleted"])
def test_deleting_a_finished_task_says_so(mixed, name):
    answer = mixed.ask("del_task", "t-" + name)
    assert answer.code == 1
    assert f"{name} already; found t-{name}; " in answer.err[0]


def test_of_mixed_ids_those_that_can_be_are_deleted(mixed):
    answer = mixed.ask("del_task", "nope", "t-waiting", "t-done")
    assert answer.code == 1 and len(answer.err) == 2
    assert mixed.states()[4] == "deleted"


def test_what_was_asked_to_be_deleted_is_without_its_client(desk):
    desk.add(CONDITIONS="worker:tag x")
    desk.disk = "later"
    client = desk.client("del_task", "1-")
    client.leave()
    desk.write()
    assert desk.states() == ["deleted"]


def test_deleting_is_answered_once_it_is_on_disk(desk):
    desk.add(CONDITIONS="worker:tag x")
    desk.disk = "later"
    client = desk.client("del_task", "1-")
    assert client.answer.code is None
    desk.write("no space left")
    desk.settle()
    assert client.answer.code == 1 and "not on disk yet" in client.answer.err[0]


# --- get_queue --------------------------------------------------------------------


def test_json_has_exactly_the_fields_of_the_contract_with_their_types(mixed):
    found = rows(mixed)
    assert [row["state"] for row in found] == mixed.states()
    for row in found:
        assert list(row) == FIELDS == list(FIELD_TYPES)
        for name, value in row.items():
            assert isinstance(value, FIELD_TYPES[name]), name
            assert name == "concurrency" or not isinstance(value, bool)
    done, failed, deleted, running, waiting = found
    assert (done["exit"], done["node"], done["attempt"]) == (0, "old1", 1)
    assert done["finished"] - done["started"] == 5.0 and done["reason"] == ""
    assert (failed["exit"], failed["reason"]) == (7, "signal KILL")
    assert running["exit"] is running["finished"] is None and running["started"]
    assert waiting["node"] is waiting["started"] is None and waiting["attempt"] == 0
    assert "cores: needs 1" in waiting["reason"]


def test_csv_has_the_same_content(mixed):
    mixed.files = {"/a;b": file("/a;b"), "/c": file("/c")}
    mixed.add(
        'x,"y"\r\n\udcffz', FILES="a\\;b;c", CONDITIONS="worker:tag g;worker:tag h"
    )
    text = mixed.ask("get_queue", "--csv").out.decode("utf-8", "surrogateescape")
    head, *lines = csv.reader(io.StringIO(text, newline=""))
    assert head == FIELDS
    found = rows(mixed)
    assert len(lines) == len(found) == 6
    for cells, row in zip(lines, found):
        for name, cell in zip(head, cells):
            value = row[name]
            if isinstance(value, list):
                assert conditions.split_list(cell) == value
            elif isinstance(value, bool):
                assert cell == str(value).lower()
            else:
                assert cell == ("" if value is None else str(value))


def test_an_empty_queue_is_an_empty_list(desk):
    assert json.loads(desk.ask("get_queue", "--json").out.decode()) == []
    assert desk.ask("get_queue", "--csv").lines == [",".join(FIELDS)]
    assert len(desk.ask("get_queue").lines) == 1


@pytest.mark.parametrize("state", ["waiting", "running", "done", "failed", "deleted"])
def test_a_state_chooses_its_tasks(mixed, state):
    assert [row["id"] for row in rows(mixed, state)] == ["t-" + state]
    assert len(mixed.ask("get_queue", state).lines) == 2


@pytest.mark.parametrize(
    "args", [("lost",), ("",), ("done", "failed"), ("--xml",), ("--json", "--csv")]
)
def test_wrong_arguments_of_get_queue_are_refused(desk, args):
    refused(desk, desk.ask("get_queue", *args))


def test_the_table_has_its_columns_and_shows_commands_harmlessly(mixed):
    mixed.add("echo '\x1b[2J'\nrm \udcff", ID="evil")
    answer = mixed.ask("get_queue")
    head, *lines = answer.lines
    assert head.split() == "ID STATE NODE TIME TRY EXIT COMMAND REASON".split()
    assert lines[0].split() == "t-done done old1 5s 1 0 echo done".split()
    assert lines[1].split()[-2:] == ["signal", "KILL"]
    assert "echo '\\x1b[2J'\\nrm \\xff" in lines[5]
    places = [line.index("echo") for line in lines]
    assert len(set(places)) == 1 == len({head.index("COMMAND"), *places})


def test_the_time_of_a_running_task_goes_on(mixed):
    mixed.wall += 3600
    assert mixed.ask("get_queue", "running").lines[1].split()[3] == "1h00m"


def test_the_table_is_cut_at_the_width_of_a_terminal_only(desk):
    desk.add("x" * 1000)
    assert len(desk.ask("get_queue", columns="50", tty="2").lines[1]) > 1000
    lines = desk.ask("get_queue", columns="50", tty="1").lines
    assert len(lines[1]) == 50 and lines[1].endswith(">")


def test_a_failed_try_leaves_no_times_with_the_waiting_task():
    desk = Desk(cores=1)
    text = desk.add("x", "--retries", "1")
    desk.begin(text)
    desk.holds = lambda condition: False
    desk.ask("drain")
    desk.end(text, 3)
    (row,) = rows(desk)
    assert (row["state"], row["attempt"]) == ("waiting", 1)
    assert row["node"] is row["exit"] is row["started"] is row["finished"] is None
    assert "draining" in row["reason"]


@pytest.mark.parametrize("flags", [(), ("--json",), ("--csv",)])
def test_a_long_listing_waits_for_a_client_that_does_not_read(flags):
    desk = Desk(cores=1)
    text = listed("y" * 1000) * 3000
    assert desk.ask("add_tasks_str", text).code == 0
    client = desk.client("get_queue", *flags)
    client.reads = False
    for _ in range(500):
        desk.control.tick(desk.now, False)
    assert len(client.call.out) < OUT_BYTES_MAX + 400 * SLICE * 10
    client.reads = True
    desk.settle()
    for _ in range(100):
        client.flush()
        desk.settle()
    assert client.answer.code == 0
    assert client.answer.out.count(b"y" * 1000) == 3000


# --- why --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"CORES": "9"}, "old1: cores: needs 9, it has 4"),
        ({"MEMORY": "9G"}, "old1: memory: needs 9216.0 MiB, 4096.0 MiB it offers"),
        ({"STORAGE": "1T"}, "old1: disk: needs 1048576.0 MiB, 102400.0 MiB free"),
        ({"CONDITIONS": "worker:tag gpu"}, "worker:tag gpu: on no node"),
        ({"CONDITIONS": "worker:has_file x"}, "worker:has_file x: on no node"),
        ({"CONDITIONS": "worker:has_command x"}, "worker:has_command x: on no node"),
        ({"CONDITIONS": "worker:is old9"}, "worker:is old9: on no node"),
        ({"CONDITIONS": "queue:is_first"}, "queue:is_first: first is older and not"),
        ({"CONDITIONS": "queue:done first"}, "queue:done first: 1 task to go"),
        ({"CONDITIONS": "queue:all_with_cmd_done s"}, "queue:all_with_cmd_done s: 1"),
        ({"CONDITIONS": "queue:all_with_cmd_ok s"}, "queue:all_with_cmd_ok s: 1 task"),
    ],
)
def test_why_names_each_condition_and_what_a_node_lacks(desk, fields, expected):
    desk.add("sleep 9", ID="first")
    text = desk.add("x", **fields)
    answer = desk.ask("why", text)
    assert answer.code == 0
    assert answer.lines[0] == text + " is waiting"
    (line,) = [line for line in answer.lines if "not yet" in line and expected in line]
    assert rows(desk)[1]["reason"]


def test_why_tells_what_holds_too(desk):
    desk.holds = lambda text: text == "worker:tag gpu"
    text = desk.add("x", CONDITIONS="worker:tag gpu; worker:tag tpu")
    lines = desk.ask("why", text).lines
    assert "  ok       worker:tag gpu: on old1" in lines
    assert "  not yet  worker:tag tpu: on no node" in lines


def test_why_of_what_runs_or_is_over_says_where_and_how(mixed):
    assert mixed.ask("why", "t-running").lines == ["t-running is running on old1"]
    assert mixed.ask("why", "t-done").lines == ["t-done is done on old1, exit 0"]
    assert mixed.ask("why", "t-failed").lines == [
        "t-failed is failed on old1, exit 7",
        "  signal KILL",
    ]
    assert mixed.ask("why", "t-deleted").code == 0


# --- nodes, tags, draining --------------------------------------------------------


def test_nodes_shows_this_one(desk):
    desk.add()
    desk.ask("add_tag", "gpu", "big")
    head, line = desk.ask("nodes").lines
    assert (
        head.split() == "ADDRESS NAME ROLE STATE CORES MEMORY DISK RUNNING TAGS".split()
    )
    words = line.split()
    assert words[:5] == ["127.0.0.2", "old1", "comrade", "ready", "3/4"]
    assert words[7:] == ["1", "big", "gpu"]
    (node,) = json.loads(desk.ask("nodes", "--json").out.decode())
    assert set(node) >= set(
        "address name role state cores cores_free memory_free disk_free running tags "
        "clairvoyant".split()
    )
    assert node["tags"] == ["big", "gpu"] and node["cores_free"] == 3
    assert node["clairvoyant"] is None


def test_on_a_narrow_terminal_the_address_is_not_shown_twice(desk):
    member = dict(desk.node.members()[0], name="old1@127.0.0.2", tags=["printer"])
    desk.node.members = lambda: [member]
    for columns in ("70", "200"):
        line = desk.ask("nodes", columns=columns, tty="1").lines[1]
        assert line.startswith("127.0.0.2  old1 ") == (columns == "70")
        assert len(line) <= int(columns)
    assert "old1@127.0.0.2" in desk.ask("nodes").lines[1]


def test_nodes_shows_the_new_address_of_one_that_moved_and_tasks_find_it_there(desk):
    desk.holds = lambda text: desk.node.me.address in text
    desk.add(CONDITIONS="worker:is 127.0.0.9")
    assert not desk.started
    desk.step(Moved("127.0.0.9"))
    desk.settle()
    assert desk.started
    assert desk.ask("nodes").lines[1].startswith("127.0.0.9 ")


@pytest.mark.parametrize("tag", ["", "a b", "a\nb", "\x1b", "\udcff", "-x", "x" * 201])
@pytest.mark.parametrize("verb", ["add_tag", "del_tag"])
def test_a_wrong_tag_is_refused_and_none_is_changed(desk, verb, tag):
    desk.ask("add_tag", "old")
    assert "TAG" in refused(desk, desk.ask(verb, "old", "new", tag))
    assert desk.ask("get_tags").lines == ["old"]


def test_tags_are_added_and_taken_away(desk):
    assert desk.ask("add_tag", "b", "a", "é").code == 0
    assert desk.ask("add_tag", "a").code == 0
    assert desk.ask("get_tags").lines == ["a", "b", "é"]
    answer = desk.ask("del_tag", "a", "nope")
    assert answer.code == 1 and "nope" in answer.err[0]
    assert desk.ask("get_tags").lines == ["b", "é"]
    refused(desk, desk.ask("add_tag"))


def test_more_tags_than_others_take_are_refused_and_none_is_added(desk):
    many = ["%0200d" % n for n in range(1500)]
    assert "delete some" in refused(desk, desk.ask("add_tag", *many))
    assert desk.ask("get_tags").lines == []
    assert desk.ask("add_tag", *many[:1000]).code == 0


@pytest.mark.parametrize("name", [[], ["old1"], ["OLD1"], ["127.0.0.2"]])
def test_a_drained_node_takes_no_new_task_until_it_is_undrained(desk, name):
    assert desk.ask("drain", *name).code == 0
    text = desk.add()
    assert not desk.started
    assert "draining" in desk.ask("nodes").lines[1]
    assert "draining" in desk.ask("why", text).lines[1]
    assert desk.ask("undrain", *name).code == 0
    desk.settle()
    assert desk.started


@pytest.mark.parametrize("verb", ["drain", "undrain"])
def test_an_unknown_node_is_answered_with_1_and_a_wrong_one_with_2(desk, verb):
    assert "NODE is no node" in refused(desk, desk.ask(verb, "old9"), 1)
    for names in ([""], ["--all"], ["old1", "old2"]):
        refused(desk, desk.ask(verb, *names))
    assert desk.node.members()[0]["state"] == "ready"


def test_the_format_names_every_condition_with_its_argument(desk):
    text = desk.ask("task_format").out.decode()
    for verb in conditions.VERBS:
        assert conditions.usage(verb) in text
    assert "COMMANDS" in text
