"""How a utility's call travels: requests in any slices, answers, absent clients."""

import random

import pytest
from desk import TOKEN, Desk, parse, request

import control
from control import (
    DRAINED,
    OUT_BYTES_LOW,
    OUT_BYTES_MAX,
    QUOTED_CHARS,
    TURN,
    Ask,
    Call,
    Keep,
    No,
    Until,
    Wrong,
    more_room,
    printable,
    quoted,
    told,
)
from effects import Sync

WORDS = ["", "a", "two words", "x\ny", "\t", "é", "\udcff\udc80", "'\"\\$", "\r", "-n"]


def slices(data, chance):
    while data:
        size = chance.choice([1, 2, 3, 10, 50, len(data)])
        yield data[:size]
        data = data[size:]


def served(verb, **head):
    """Give a desk with this one verb, and a client that called it."""
    desk = Desk(verbs={"try": verb})
    return desk, desk.client("try", **head)


@pytest.mark.parametrize("seed", range(100))
def test_a_request_is_the_same_in_any_slices(seed):
    chance = random.Random(seed)
    args = [chance.choice(WORDS) for _ in range(chance.randrange(6))]
    call = Call(TOKEN)
    pieces = list(slices(request(args, "/a b\n\udcfe", "132", "02"), chance))
    for piece in pieces[:-1]:
        assert not call.feed(piece)
    assert call.feed(pieces[-1])
    assert call.args == args
    assert (call.cwd, call.columns, call.tty) == ("/a b\n\udcfe", 132, "02")


@pytest.mark.parametrize("place", range(len(TOKEN) + 1))
def test_a_wrong_token_is_refused_in_any_slices(place):
    token = bytearray(TOKEN + b"\0")
    token[place] ^= 1
    for seed in range(5):
        call = Call(TOKEN)
        with pytest.raises(ValueError):
            for piece in slices(bytes(token) + b"1\0/\0" * 5, random.Random(seed)):
                assert not call.feed(piece)


def test_the_first_bytes_of_a_token_tell_nothing():
    assert not Call(TOKEN).feed(b"x" * len(TOKEN))
    assert not Call(TOKEN).feed(TOKEN)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:7117\r\n\r\n",
        b"\0" * 100,
        b"\xff" * 100,
        TOKEN + b"0\0" + b"1\0/\x0080\0\0stop\0",
        b"x" * 10**6,
    ],
)
def test_what_is_no_request_of_ours_is_refused(data):
    with pytest.raises(ValueError):
        Call(TOKEN).feed(data)


@pytest.mark.parametrize(
    "count", [b"", b"-1", b"1_0", b" 1", b"x", b"9" * 50, b"1048577", "٣".encode()]
)
def test_a_number_of_arguments_that_is_none_is_refused(count):
    with pytest.raises(ValueError):
        Call(TOKEN).feed(b"\0".join([TOKEN, count, b"/", b"80", b"", b"stop", b""]))


def test_too_few_arguments_wait_and_too_many_are_left():
    call = Call(TOKEN)
    assert not call.feed(b"\0".join([TOKEN, b"2", b"/", b"80", b"", b"why", b""]))
    assert call.feed(b"1-a\0more\0")
    assert call.args == ["why", "1-a"]


def test_a_request_without_arguments_is_answered_with_2():
    answer = Desk().ask()
    assert answer.code == 2 and "no such verb" in answer.err[0]


def test_an_unknown_verb_is_answered_with_2_and_what_to_do():
    answer = Desk().ask("fly")
    assert answer.code == 2
    assert answer.err[0].startswith(
        "leoronic: this comrade has no such verb; found fly;"
    )


@pytest.mark.parametrize(
    "columns, expected", [("", 80), ("x", 80), ("0", 0), ("²", 80), ("9" * 99, 80)]
)
def test_columns_that_are_no_number_are_80(columns, expected):
    call = Call(TOKEN)
    assert call.feed(request(["stop"], columns=columns))
    assert call.columns == expected


def test_a_head_without_end_is_refused():
    call = Call(TOKEN)
    with pytest.raises(ValueError):
        for _ in range(10):
            call.feed(TOKEN + b"\0" if not call._request else b"x" * 10000)


def test_a_huge_request_takes_time_in_proportion_and_has_a_bound(monkeypatch):
    call = Call(TOKEN)
    data = request(["add_tasks_str", "x" * (8 << 20)])
    for start in range(0, len(data) - 65536, 65536):
        assert not call.feed(data[start : start + 65536])
    assert call.feed(data[start + 65536 :])
    assert len(call.args[1]) == 8 << 20
    monkeypatch.setattr(control, "REQUEST_BYTES_MAX", 1000)
    with pytest.raises(ValueError):
        Call(TOKEN).feed(request(["x" * 1000]))


def test_the_answer_says_what_goes_where():
    def verb(ctl, call):
        call.line("one\ntwo")
        call.err("bad")
        call.progress("half")
        call.raw(b"\0\xff\n")
        yield TURN

    desk, client = served(verb, tty="2")
    desk.settle()
    assert client.answer == (0, b"one\ntwo\n\0\xff\n", ["leoronic: bad"], ["half"])


def test_progress_is_shown_on_a_terminal_only():
    def verb(ctl, call):
        call.progress("half")
        yield TURN

    for tty, shown in (("", []), ("01", []), ("2", ["half"]), ("012", ["half"])):
        desk, client = served(verb, tty=tty)
        desk.settle()
        assert client.answer.progress == shown


@pytest.mark.parametrize("kind, code", [(Wrong, 2), (No, 1)])
def test_what_a_verb_refuses_ends_with_its_code_and_one_line(kind, code):
    def verb(ctl, call):
        raise kind("bad\n\x1b[2J\udcff; found x")
        yield

    answer = served(verb)[1].answer
    assert answer.code == code
    assert answer.err == ["leoronic: bad\\n\\x1b[2J\\xff; found x"]


def test_a_bug_in_a_verb_costs_its_call_alone_and_shows_no_traceback():
    def verb(ctl, call):
        yield TURN
        raise KeyError("secret")

    desk, client = served(verb)
    desk.settle()
    assert client.call.is_over and client.answer.code is None
    assert client.answer.err == [
        "leoronic: a bug of this comrade; found KeyError; its log says more"
    ]
    assert "Traceback" in desk.logged[0] and "secret" in desk.logged[0]


def test_a_bug_in_what_a_verb_asks_for_costs_its_call_alone():
    def verb(ctl, call):
        yield Ask(lambda ticket: 1 / 0)

    desk, client = served(verb)
    assert client.call.is_over and desk.logged


def test_an_answer_that_is_an_exception_is_raised_in_the_verb():
    def verb(ctl, call):
        try:
            yield Keep(["/x"])
        except OSError as problem:
            call.line(problem.filename)

    assert served(verb)[1].answer.out == b"/x\n"


def test_an_answer_that_nobody_asked_for_is_dropped():
    Desk().control.on_answer(77, None)


def test_until_wakes_at_its_time_or_when_the_queue_changes():
    woken = []

    def verb(ctl, call):
        while True:
            yield Until(1010.0)
            woken.append(ctl.acts.clock())

    desk, client = served(verb)
    assert desk.settle() == 1010.0
    woken.clear()
    desk.now = 1005.0
    desk.settle()
    assert woken == []
    desk.control.tick(1005.0, True)
    desk.now = 1010.0
    desk.control.tick(1010.0, False)
    assert woken == [1005.0, 1010.0]
    client.leave()


def test_nothing_is_due_while_all_wait_for_clients_or_changes():
    def verb(ctl, call):
        yield Until(None)

    desk, _ = served(verb)
    assert desk.settle() is None


def test_a_client_that_does_not_read_holds_up_a_bounded_buffer():
    def verb(ctl, call):
        for _ in range(1000):
            call.raw(b"x" * 65536)
            yield more_room(call)

    desk = Desk(verbs={"try": verb})
    client = desk.client("try")
    client.reads = False
    for _ in range(200):
        assert desk.settle() is None
    assert len(client.call.out) < OUT_BYTES_MAX + 2 * 65536
    client.reads = True
    for _ in range(2000):
        desk.settle()
    assert client.answer.code == 0
    assert len(client.answer.out) == 1000 * 65536
    assert client.most < OUT_BYTES_MAX + 2 * 65536


def test_room_comes_before_the_buffer_is_empty():
    resumed = []

    def verb(ctl, call):
        call.raw(b"x" * OUT_BYTES_MAX)
        yield DRAINED
        resumed.append(len(call.out))
        yield Until(None)

    desk = Desk(verbs={"try": verb})
    call = Call(TOKEN)
    call.feed(request(["try"]))
    desk.control.on_call(call)
    desk.settle()
    assert not resumed
    del call.out[: OUT_BYTES_MAX - OUT_BYTES_LOW + 100]
    desk.settle()
    assert resumed


@pytest.mark.parametrize("wait", [TURN, DRAINED, Until(None), Keep(["/x"])])
def test_a_client_that_goes_away_ends_its_verb(wait):
    ended = []

    def verb(ctl, call):
        try:
            call.raw(b"x" * OUT_BYTES_MAX)
            yield wait
            ended.append("went on")
        except GeneratorExit:
            ended.append("closed")
            raise

    desk = Desk(verbs={"try": verb})
    desk.keeps_later = True
    client = desk.client("try")
    client.leave()
    desk.answer_keeps()
    desk.settle()
    assert ended == ["closed"]
    assert client.call.out == b""


def test_what_the_node_was_asked_goes_on_without_its_client_but_no_further():
    seen = []

    def verb(ctl, call):
        seen.append((yield Ask(lambda ticket: Sync(ticket))))
        yield DRAINED
        seen.append("further")

    desk = Desk(verbs={"try": verb})
    desk.disk = "later"
    client = desk.client("try")
    client.leave()
    desk.write()
    desk.settle()
    assert len(seen) == 1 and not seen[0].error
    assert not desk.control._turning and not desk.control._asked


def test_one_that_leaves_while_others_are_served_is_served_no_more():
    desk = Desk(verbs={})
    clients = []

    def leaving(ctl, call):
        yield TURN
        clients[1].leave()

    def left(ctl, call):
        for _ in range(5):
            yield TURN
        raise AssertionError("it was served")

    desk.control.verbs = {"leaving": leaving, "left": left}
    clients += [desk.client("leaving"), desk.client("left")]
    desk.settle()
    assert not desk.logged


def test_a_stop_is_answered_once_the_node_has_stopped():
    desk = Desk()
    client = desk.client("stop")
    desk.settle()
    assert client.answer.code is None and desk.is_stopped
    desk.control.on_stopped()
    assert client.answer.code == 0


def test_words_are_shown_harmlessly_and_in_bounds():
    assert printable("aé") == "aé"
    assert printable("\x1b[1m\n\r\t\u202e\udcff\ud800") == (
        "\\x1b[1m\\n\\r\\t\\u202e\\xff\\ud800"
    )
    assert quoted("") == '""'
    assert quoted("x" * QUOTED_CHARS) == "x" * QUOTED_CHARS
    assert len(quoted("\n" * 10**6)) == QUOTED_CHARS + 2
    assert told("what", "it", "do") == "what; found it; do"


def test_text_that_is_no_utf8_goes_out_as_it_came_in():
    call = Call(TOKEN)
    call.line("\udcff")
    call.line("\ud800")
    assert parse(bytes(call.out)).out == b"\xff\n\\ud800\n"


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"\n", b"a\n\n  b \\ 'x'\t\n", b"x" * 599 + b"\n", b"L X 0\nX 0\n"],
)
def test_a_short_text_goes_as_lines_and_arrives_as_it_is(data):
    call = Call(b"")
    call.raw(data)
    assert b"O " not in call.out[:2] and call.out.count(b"\n") == data.count(b"\n")
    call.end(0)
    assert parse(bytes(call.out)).out == data


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"a\nb", b"\0\n", b"\x7f\n", b"\x01\n", b"\xc3\xa4\n", b"a\r\n"]
    + [b"x" * 600 + b"\n", b"x\n" * 301],
)
def test_other_bytes_go_raw(data):
    call = Call(b"")
    call.raw(data)
    assert call.out == b"O %d\n" % len(data) + data
