"""Runs that a keeper is given ahead, while another runs: order, ends, taking back.

What must hold whenever something comes between: a run that is refused never began and
never will, one that began ends once, and each end tells of its own run alone.
"""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Union

import pytest
from test_plain import PLAIN, make_programs
from test_sandbox import (
    AWKWARD,
    ENVIRON,
    PATIENCE_S,
    Box,
    below_here,
    comparable,
    gone,
    is_alive,
    output,
    plain_bash,
)

import sandbox
import slots
from process import clock
from sandbox import AHEAD_S, LATE, SMALL_OUTPUT_BYTES, Ended, Refused, Started
from shells import CHECK_PAUSE_S

pytestmark = pytest.mark.timeout(120)

HOLD = "while [ ! -e go ]; do sleep 0.005; done; "


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    if not hasattr(os, "memfd_create"):
        pytest.skip("there is no ahead")
    box = Box(tmp_path)
    box.run("true")  # its shell is up
    box.seen.clear()
    yield box
    box.box.close()
    assert gone(below_here(tmp_path), 5.0), "processes are left"


def started(box: Box, command: str, **more: object) -> str:
    run = box.start(command, **more)
    box.until(lambda: Started in kinds(box, run))
    return run


def kinds(box: Box, run: str) -> List[type]:
    return [type(event) for event in box.seen if event.run == run]


def let_go(box: Box, name: str = "") -> None:
    """Let a run that holds go on; no turn of the loop until a task has made `name`."""
    (box.work / "go").touch()
    wait(lambda: not name or (box.work / name).exists())


def wait(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def ended(box: Box, run: str) -> Ended:
    end = box.result(run)
    assert isinstance(end, Ended), end
    return end


def has_pid(box: Box, name: str = "pid") -> bool:
    path = box.work / name
    return path.exists() and path.read_text().endswith("\n")


def stop_keeper(box: Box) -> int:
    """Let words stay unread."""
    (keeper,) = box.box._shells._keepers
    os.kill(keeper.pid, signal.SIGSTOP)
    stat = Path("/proc/%d/stat" % keeper.pid)
    wait(lambda: stat.read_text().rpartition(") ")[2][0] == "T")
    return keeper.pid


# ---- order


def test_it_begins_after_the_one_before_without_a_turn_of_the_node(box: Box) -> None:
    first = started(box, HOLD + "echo 1 | tee -a order; exit 3")
    second = box.start("echo 2 | tee -a order; : >over; exit 4", ahead=True)
    let_go(box, "over")
    assert (box.work / "order").read_text() == "1\n2\n"
    ends = [ended(box, run) for run in (first, second)]
    assert [(end.exit, end.out.data) for end in ends] == [(3, b"1\n"), (4, b"2\n")]
    assert [(type(e), e.run) for e in box.seen] == [
        (kind, run) for run in (first, second) for kind in (Started, Ended)
    ]
    assert len(box.box._shells._keepers) == 1


def test_where_nothing_runs_it_starts_at_once_files_and_all(box: Box) -> None:
    files = (box.file("in.txt", b"in\n"),)
    assert ended(box, box.start("cat in.txt", files=files, ahead=True)).exit == 0
    assert len(box.box._shells._keepers) == 1


def test_what_no_keeper_can_take_is_refused_at_once(box: Box) -> None:
    waits = box.start("true", files=(box.file("in.txt", b"in\n"),))
    refused = [box.start("touch started", ahead=True)]  # that one has no keeper yet
    box.result(waits)
    first = started(box, HOLD)
    refused.append(box.start("true", files=(box.file("a", b"a"),), ahead=True))
    second = box.start("echo second", ahead=True)
    refused.append(box.start("touch started", ahead=True))  # one is enough
    let_go(box)
    assert ended(box, second).out.data == b"second\n" and ended(box, first)
    for run in refused:
        assert box.result(run) == Refused(run, LATE)
    assert box.files() == ["go"]


def test_nothing_goes_ahead_in_a_working_directory_that_was_replaced(box: Box) -> None:
    first, old = started(box, HOLD), box.work.parent / "old"
    box.box._shells.glance(clock())  # none of the next ones looks itself
    box.work.rename(old)
    box.work.mkdir()
    time.sleep(2 * CHECK_PAUSE_S)
    refused = box.start("true", ahead=True)
    (old / "go").touch()  # one that were ahead would run now
    assert box.result(refused) == Refused(refused, LATE)
    assert ended(box, first).exit == 0


def test_it_follows_the_one_that_has_run_for_longest(box: Box) -> None:
    started(box, "while [ ! -e never ]; do sleep 0.01; done")
    time.sleep(AHEAD_S)  # none of the short ones
    first = started(box, HOLD)
    started(box, "while [ ! -e go2 ]; do sleep 0.01; done")
    second = box.start("touch over", ahead=True)
    let_go(box, "over")
    assert ended(box, first) and ended(box, second)
    (box.work / "go2").touch()
    (box.work / "never").touch()


def test_without_files_in_memory_there_is_no_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "memory_file", lambda: -1)
    box = Box(tmp_path)
    try:
        first = started(box, HOLD)
        second = box.start("touch started", ahead=True)
        assert box.result(second) == Refused(second, LATE)
        let_go(box)
        assert ended(box, first) and box.files() == ["go"]
    finally:
        box.box.close()


# ---- taken back


def test_what_waits_too_long_is_refused_and_never_begins(box: Box) -> None:
    first = started(box, HOLD)
    for _ in range(3):
        before = time.monotonic()
        second = box.start("touch started", ahead=True)
        assert box.result(second) == Refused(second, LATE)
        assert time.monotonic() - before >= AHEAD_S
    third = box.start("echo third", ahead=True)
    let_go(box)
    assert ended(box, third).out.data == b"third\n" and ended(box, first)
    assert box.files() == ["go"]


def test_one_that_has_begun_is_not_refused_however_late_the_node_hears(
    box: Box,
) -> None:
    first = started(box, HOLD)
    second = box.start("touch over; sleep 0.5; exit 4", ahead=True)
    let_go(box, "over")
    time.sleep(2 * AHEAD_S)
    box.box.tick(time.monotonic() + 1e9)
    assert (ended(box, first).exit, ended(box, second).exit) == (0, 4)


def test_killed_before_it_begins_it_is_refused_with_that_cause(box: Box) -> None:
    first = started(box, HOLD)
    second = box.start("touch started", ahead=True)
    box.box.kill(second, "deleted", 5)
    let_go(box)
    assert ended(box, first).exit == 0
    assert box.result(second) == Refused(second, "deleted")
    assert box.files() == ["go"]


def test_a_word_that_the_keeper_has_not_read_outlives_the_one_behind_it(
    box: Box,
) -> None:
    keeper = stop_keeper(box)
    first = started(box, "echo first")
    second = box.start("touch started", ahead=True)
    box.box.kill(second, "deleted", 5)
    assert box.result(second) == Refused(second, "deleted")
    third = box.start("echo third", ahead=True)
    os.kill(keeper, signal.SIGCONT)
    assert ended(box, first).out.data == b"first\n"
    assert ended(box, third).out.data == b"third\n"
    assert box.files() == []


def test_killed_after_it_began_unheard_it_ends_with_that_cause(box: Box) -> None:
    first = started(box, HOLD + "exit 3")
    second = box.start("touch over; exec sleep 1000", ahead=True)
    let_go(box, "over")
    box.box.kill(second, "deleted", 5)
    end = ended(box, second)
    assert (end.exit, end.cause, ended(box, first).exit) == (143, "deleted", 3)
    assert ended(box, first).cause == ""


def test_killing_the_one_before_refuses_it(box: Box) -> None:
    first = started(box, HOLD)
    second = box.start("touch started", ahead=True)
    box.box.kill(first, "deleted", 5)
    end = ended(box, first)
    assert (end.exit, end.cause) == (143, "deleted")
    assert box.result(second) == Refused(second, LATE)
    assert box.run("ls").out.data == b""


def test_killing_the_one_before_after_its_end_changes_nothing(box: Box) -> None:
    first = started(box, HOLD)
    second = box.start("touch over; sleep 0.2; exit 4", ahead=True)
    let_go(box, "over")
    box.box.kill(first, "deleted", 0)
    ends = [ended(box, run) for run in (first, second)]
    assert [(end.exit, end.cause) for end in ends] == [(0, ""), (4, "")]


def test_killing_one_whose_leftovers_are_unheard_refuses_the_next(box: Box) -> None:
    first = started(box, HOLD + "sleep 1000 & echo $! >pid; exit 3")
    (keeper,) = box.box._shells._keepers
    second = box.start("touch started", ahead=True)
    let_go(box)
    pid = "/proc/%d/fd/0" % keeper.pid
    wait(lambda: has_pid(box) and not waits_for_word(pid))
    box.box.kill(second, "deleted", 5)
    assert box.result(second) == Refused(second, "deleted")
    end = ended(box, first)
    assert (end.exit, end.cause, box.files()) == (3, "", ["go", "pid"])


def waits_for_word(path: str) -> bool:
    """Whether a byte is in that pipe."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.ioctl(fd, termios.FIONREAD, count)
    os.close(fd)
    return count[0] > 0


def test_a_time_out_of_the_one_before_refuses_it(box: Box) -> None:
    first = started(box, HOLD, timeout=AHEAD_S)
    time.sleep(AHEAD_S / 2)
    second = box.start("touch started", ahead=True)
    assert box.result(second) == Refused(second, LATE)
    assert ended(box, first).cause == f"time-out after {AHEAD_S:g}s"
    assert box.files() == []


def test_its_time_out_counts_from_its_begin(box: Box) -> None:
    first = started(box, "sleep 0.05")
    second = box.start("exec sleep 1000", ahead=True, timeout=0.3)
    end = ended(box, second)
    assert end.cause == "time-out after 0.3s" and end.took >= 0.3
    assert end.began >= ended(box, first).ended


LEAVE = [
    "sleep 1000 & echo $! >pid; exit 3",
    "setsid sleep 1000 & echo $! >pid; exit 3",
    "(env -i setsid sh -c 'echo $$ >pid; exec sleep 1000' &) & sleep 0.3; exit 3",
]


@pytest.mark.parametrize("command", LEAVE)
def test_what_the_one_before_leaves_is_gone_and_nothing_began(
    box: Box, command: str
) -> None:
    first = started(box, HOLD + command)
    second = box.start("touch started", ahead=True)
    let_go(box)
    end = ended(box, first)
    assert (end.exit, end.cause) == (3, "")
    assert not is_alive(int((box.work / "pid").read_text()))
    assert box.result(second) == Refused(second, LATE)
    assert ended(box, box.start("ls", ahead=True)).out.data == b"go\npid\n"


LOSSES = ["kill -9 $PPID", "kill -9 $PPID; sleep 1000", "kill -9 -$PPID; sleep 1000"]


@pytest.mark.parametrize("command", LOSSES)
def test_a_keeper_that_is_killed_takes_what_was_ahead_to_nowhere(
    box: Box, command: str
) -> None:
    first = started(box, HOLD + command)
    second = box.start("touch started", ahead=True)
    let_go(box)
    assert ended(box, first).cause == "its shell was killed"
    assert box.result(second) == Refused(second, LATE)
    assert box.run("ls").out.data == b"go\n"


def test_one_that_kills_its_keeper_after_another_ends_as_killed(box: Box) -> None:
    first = started(box, HOLD + "exit 3")
    second = box.start("kill -9 $PPID; sleep 1000", ahead=True)
    let_go(box)
    assert ended(box, first).exit == 3
    assert ended(box, second).cause == "its shell was killed"


def test_stopping_refuses_what_has_not_begun(box: Box) -> None:
    first = started(box, HOLD)
    second = box.start("touch started", ahead=True)
    box.box.stop(5)
    assert box.result(second) == Refused(second, "its node stops")
    assert ended(box, first).cause == "its node stops"
    assert box.files() == []


# ---- ends


class Flow(NamedTuple):
    """What became of commands: their ends, refusals, and which began behind others."""

    ends: Dict[int, Ended]
    refused: Dict[int, str]
    behind: Set[int]


def flow(
    box: Box,
    commands: List[str],
    most: int = 1,
    disturb: Optional[Callable[[List[str]], None]] = None,
) -> Flow:
    """Run commands as a node does: `most` of them, and one ahead of each.

    One that was refused because it would be late comes again, unless its last end was
    a refusal for another reason.
    """
    todo = list(enumerate(commands))[::-1]
    numbers: Dict[str, int] = {}
    running: Set[str] = set()
    ahead: Set[str] = set()
    told = Flow({}, {}, set())
    seen = len(box.seen)
    is_late = False
    while len(told.ends) + len(told.refused) < len(commands):
        while todo and (len(running) < most or (len(ahead) < most and not is_late)):
            number, command = todo.pop()
            is_ahead = len(running) >= most
            run = box.start(command, ahead=is_ahead)
            numbers[run] = number
            (ahead if is_ahead else running).add(run)
        if disturb:
            disturb(sorted(running | ahead))
        box.turn(0.002 if disturb else 0.05)
        new, seen = box.seen[seen:], len(box.seen)
        for event in new:
            number = numbers[event.run]
            if isinstance(event, Started):
                if event.run in ahead:
                    ahead.remove(event.run)
                    running.add(event.run)
                    told.behind.add(number)
                continue
            assert number not in told.ends and number not in told.refused
            is_late = isinstance(event, Refused)
            if isinstance(event, Ended):
                running.remove(event.run)
                told.ends[number] = event
            else:
                ahead.discard(event.run)
                running.discard(event.run)
                if event.why == LATE:
                    todo.append((number, commands[number]))
                else:
                    told.refused[number] = event.why
    return told


def test_two_thousand_tasks_that_alternate_have_their_own_outputs_and_ends(
    box: Box,
) -> None:
    kinds = [
        "echo {0}",
        "echo {0}; echo err{0} >&2; exit {1}",
        "printf '%s' {0}",
        "exit {1}",
        "x={0}; echo $x >&2",
    ]
    commands = [kinds[i % 5].format(i, i % 100) for i in range(2000)]
    told = flow(box, commands, most=2)
    for i, end in told.ends.items():
        out = {0: b"%d\n", 1: b"%d\n", 2: b"%d"}.get(i % 5, b"")
        err = {1: b"err%d\n", 4: b"%d\n"}.get(i % 5, b"")
        exit = i % 100 if i % 5 in (1, 3) else 0
        wanted = [text % i if text else b"" for text in (out, err)]
        assert (end.exit, end.cause, [*output(end)]) == (exit, "", wanted), i
    assert len(told.behind) > 20  # how many depends on who else uses the machine


@pytest.mark.parametrize("commands", [AWKWARD, PLAIN], ids=["awkward", "plain"])
def test_ahead_of_each_other_commands_end_as_in_plain_bash(
    box: Box, commands: List[str]
) -> None:
    make_programs(box.work)
    told = flow(box, commands)
    different = []
    for number, end in told.ends.items():
        environ = dict(ENVIRON, LEORONIC_RUN=end.run, LEORONIC_HOME=str(box.home))
        expected = plain_bash(commands[number], box.work, environ)
        found = (end.exit, *map(comparable, output(end)))
        if found != (expected[0], *map(comparable, expected[1:])):
            different.append((commands[number][:200], found, expected))
    assert not different
    assert told.behind


def test_signals_and_exits_of_the_same_number_are_told_apart(box: Box) -> None:
    causes = {
        "exit 139": "",
        "kill -SEGV $$": "signal SEGV",
        "exit 137": "",
        "sh -c 'kill -9 $$'": "signal KILL",
        "kill -INT $$": "signal INT",
        "exit 255": "",
        "true": "",
    }
    draw = random.Random(3)
    commands = draw.choices(list(causes), k=150)
    told = flow(box, commands)
    for number, end in told.ends.items():
        assert end.cause == causes[commands[number]], (commands[number], end)


DEATHS = {"exit 139": "", "kill -SEGV $$": "signal SEGV", "exit 255": ""}


@pytest.mark.parametrize("command", DEATHS)
def test_after_what_may_be_a_death_by_a_signal_nothing_begins(
    box: Box, command: str
) -> None:
    first = started(box, HOLD + command)
    second = box.start("touch started; kill -SEGV $$", ahead=True)
    let_go(box)
    time.sleep(0.05)  # it would begin now
    assert box.result(second) == Refused(second, LATE)
    assert ended(box, first).cause == DEATHS[command]
    assert box.files() == ["go"]


def test_killing_one_whose_output_is_being_taken_takes_nothing_back(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, real = threading.Event(), slots.Slot.take_output
    size = SMALL_OUTPUT_BYTES + 1
    first = started(box, HOLD + "head -c %d /dev/zero" % size)
    second = box.start("echo second; touch over", ahead=True)
    monkeypatch.setattr(slots.Slot, "take_output", lambda *a: hangs.wait() and real(*a))
    let_go(box, "over")
    assert ended(box, second).out.data == b"second\n"
    keeper = stop_keeper(box)
    third = started(box, "echo third")
    box.box.kill(first, "deleted", 0)
    os.kill(keeper, signal.SIGCONT)
    assert ended(box, third).out.data == b"third\n"
    hangs.set()
    assert (ended(box, first).cause, ended(box, first).out.size) == ("", size)


def test_large_outputs_of_both_slots_are_kept_apart(box: Box) -> None:
    size = SMALL_OUTPUT_BYTES
    sizes = [size + 1, 10, size + 2, size + 3, 0, size, 5000, size + 4] * 3
    commands = [
        "head -c %d /dev/zero | tr '\\0' '%s'; echo %d >&2" % (n, chr(97 + i), i)
        for i, n in enumerate(sizes)
    ]
    told = flow(box, commands)
    for i, end in told.ends.items():
        assert output(end) == (bytes([97 + i]) * sizes[i], b"%d\n" % i)
    assert told.behind


def test_what_runs_ahead_is_never_shown_with_anothers_output(box: Box) -> None:
    seen: Dict[str, Set[bytes]] = {}

    def look(runs: List[str]) -> None:
        for run in runs:
            path = box.box.live_output(run, "out")
            seen.setdefault(run, set()).add(Path(path).read_bytes() if path else b"")

    commands = ["echo %d; sleep 0.01" % i for i in range(60)]
    told = flow(box, commands, disturb=look)
    for i, end in told.ends.items():
        assert seen[end.run] <= {b"", b"%d\n" % i}
    assert told.behind and any(len(texts) == 2 for texts in seen.values())


def test_refused_ones_never_ran_and_ended_ones_once_whatever_is_killed(
    box: Box,
) -> None:
    draw = random.Random(5)

    def disturb(runs: List[str]) -> None:
        if draw.random() < 0.5:
            box.box.kill(draw.choice(runs), "deleted", draw.choice((0, 5)))
        if draw.random() < 0.2:
            time.sleep(draw.random() * 0.01)  # the node is busy

    large = "; head -c %d /dev/zero" % (SMALL_OUTPUT_BYTES + 1)
    commands = [
        "echo $LEORONIC_RUN >>ledger"
        + draw.choice(["", "", "; exit 3", "; sleep 0.01", "; kill -9 $$", large])
        + ("; sleep 1000 & exit 0" if draw.random() < 0.05 else "")
        for _ in range(500)
    ]
    told = flow(box, commands, most=2, disturb=disturb)
    box.until(lambda: not box.box._runs)
    ledger = (box.work / "ledger").read_text().split()
    assert len(set(ledger)) == len(ledger)
    ends: Dict[str, Union[Ended, Refused]] = {}
    for event in box.seen:
        if not isinstance(event, Started):
            assert event.run not in ends
            ends[event.run] = event
    refused = {run for run, end in ends.items() if isinstance(end, Refused)}
    assert not refused & set(ledger)
    whole = {end.run for end in told.ends.values() if end.cause != "deleted"}
    assert whole <= set(ledger) <= set(ends) - refused
    assert refused and whole and told.behind


@pytest.mark.parametrize("ahead_s", [0.0005, 0.002, 0.004])
def test_taken_back_just_when_it_begins_it_ran_once_or_never(
    box: Box, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    monkeypatch.setattr(sandbox, "AHEAD_S", ahead_s)
    draw = random.Random(ahead_s)
    rest = [":", "sleep 0.001", "sleep 0.003", "sleep 1000 & :"]
    commands = [
        "echo $LEORONIC_RUN >>ledger; " + draw.choices(rest, (5, 5, 5, 1))[0]
        for _ in range(200)
    ]

    def pause(_: List[str]) -> None:
        time.sleep(draw.random() * 0.003)

    told = flow(box, commands, most=2, disturb=pause)
    ledger = (box.work / "ledger").read_text().split()
    assert len(ledger) == len(commands)
    assert set(ledger) == {end.run for end in told.ends.values()}
    assert told.behind and any(isinstance(event, Refused) for event in box.seen)
