"""Outputs on their way from a run's end to whoever asks, with files but no comrade."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

import store
from effects import RunEnded, WantOutput
from outputs import FETCHED_MAX, At, Outputs, Seams
from sandbox import SMALL_OUTPUT_BYTES, Ended, Output

LARGE = b"y" * (SMALL_OUTPUT_BYTES + 1)


class Desk:
    """The seams of outputs.py, played by lists."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.files = store.Files(str(home))
        self.files.open()
        self.database: Dict[str, bytes] = {}
        self.jobs: List[Tuple[Callable[[], Any], Callable[..., None]]] = []
        self.wanted: List[Tuple[str, int, str, Callable[[bool], None]]] = []
        self.named: List[str] = []  # ghosts, to those who are asked
        self.ghost = ""  # that is attached here
        self.ends: List[RunEnded] = []
        self.logged: List[str] = []
        seams = Seams(
            lambda job, then: self.jobs.append((job, then)),
            lambda digest, then: then(self.database.get(digest)),
            self.on_end,
            self.write,
            self.logged.append,
        )
        self.outputs = Outputs(self.files, self, seams)  # type: ignore[arg-type]

    def want(
        self,
        kind: Any,
        digest: str,
        size: int,
        peer: str,
        then: Callable[..., None],
        at: str = "",
    ) -> None:
        """Play Transfers: nothing comes until the test lets it."""
        self.wanted.append((digest, size, peer, then))
        self.named.append(at)

    def ask_ghost(
        self, ghost: str, digest: str, size: int, then: Callable[..., None]
    ) -> bool:
        if ghost == self.ghost:
            self.wanted.append((digest, size, "the relay", then))
        return ghost == self.ghost

    def on_end(self, end: RunEnded) -> None:
        self.write()  # node.py persists each end
        self.ends.append(end)

    def write(self) -> None:
        self.database.update(self.outputs.take())

    def do_jobs(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job, then in jobs:
            try:
                result, error = job(), None
            except OSError as problem:
                result, error = None, problem
            then(result, error)

    def bring(self, data: Optional[bytes]) -> None:
        """Let what is wanted arrive (None: nobody has it)."""
        wanted, self.wanted = self.wanted, []
        for _, _, _, then in wanted:
            if data is not None:
                self.files.keep_bytes(data)
            then(data is not None)

    def ended(self, out: Output, err: Output) -> None:
        self.outputs.on_ended(Ended("1.1.w.1", 0, "", 1.0, 2.0, 1.0, out, err))

    def fetched(self, size: int, digest: str, at: Optional[At] = None) -> List[Any]:
        answers: List[Any] = []
        self.outputs.fetch(size, digest, answers.append, at)
        return answers


def small(data: bytes) -> Output:
    return Output(len(data), data, "")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_small_output_is_in_the_database_no_later_than_its_end(desk: Desk) -> None:
    desk.ended(small(b"out\n"), small(b""))
    (end,) = desk.ends
    digest = store.digest_of(b"out\n")
    assert end.out == [4, digest] and end.err == [0, ""]
    assert desk.database == {digest: b"out\n"} and desk.jobs == []
    assert desk.fetched(4, digest) == [b"out\n"]


def test_what_waits_for_the_next_batch_can_be_had_already(desk: Desk) -> None:
    desk.outputs.pending = [("a", b"1"), ("b", b"2")]
    assert desk.outputs.on_its_way("b") == b"2"
    assert desk.outputs.on_its_way("c") is None


def test_outputs_of_a_batch_that_failed_go_with_the_next(desk: Desk) -> None:
    desk.outputs.pending = [("a", b"1"), ("b", b"2")]
    failed = desk.outputs.take()
    desk.outputs.pending.append(("c", b"3"))
    desk.outputs.give_back(failed)
    assert desk.outputs.take() == [("a", b"1"), ("b", b"2"), ("c", b"3")]


def test_a_large_output_is_moved_aside_before_its_end_is_told(desk: Desk) -> None:
    path = desk.home / "gathered"
    path.write_bytes(LARGE)
    desk.ended(Output(len(LARGE), None, str(path)), small(b"e"))
    assert desk.ends == [] and desk.outputs.moving == 1
    desk.do_jobs()
    (end,) = desk.ends
    assert desk.outputs.moving == 0 and not path.exists()
    assert end.out == [len(LARGE), store.digest_of(LARGE)]
    assert end.err == [1, store.digest_of(b"e")]
    (found,) = desk.fetched(*end.out)
    assert Path(found).read_bytes() == LARGE


def test_an_output_that_cannot_be_kept_is_logged_and_the_end_told(desk: Desk) -> None:
    gone = str(desk.home / "gone")
    desk.ended(Output(len(LARGE), None, gone), small(b"kept"))
    desk.do_jobs()
    (end,) = desk.ends
    assert end.out == [len(LARGE), ""] and "1.1.w.1" in desk.logged[0]
    assert desk.fetched(*end.err) == [b"kept"]


def test_what_ended_elsewhere_is_wanted_only_if_it_is_not_here(desk: Desk) -> None:
    digest = store.digest_of(b"far")
    desk.outputs.want(WantOutput(digest, 3, "peer"))
    assert [each[:3] for each in desk.wanted] == [(digest, 3, "peer")]
    desk.bring(b"far")
    assert desk.database == {digest: b"far"} and not desk.files.has(digest)
    desk.outputs.want(WantOutput(digest, 3, "peer"))
    assert desk.wanted == []


def test_all_who_ask_for_one_output_get_it(desk: Desk) -> None:
    digest = store.digest_of(b"far")
    first, second = desk.fetched(3, digest), desk.fetched(3, digest)
    desk.bring(b"far")
    assert first == second == [b"far"]


def test_what_nobody_has_is_answered_with_none(desk: Desk) -> None:
    answers = desk.fetched(3, "0" * 64), desk.fetched(len(LARGE), "1" * 64)
    desk.bring(None)
    assert answers == ([None], [None])


def test_a_large_output_from_elsewhere_is_given_as_a_file(desk: Desk) -> None:
    answers = desk.fetched(len(LARGE), store.digest_of(LARGE))
    desk.bring(LARGE)
    assert Path(answers[0]).read_bytes() == LARGE


def test_a_large_output_of_a_ghost_of_ours_is_brought_by_the_relay(desk: Desk) -> None:
    desk.ghost = "ours"
    digest = store.digest_of(LARGE)
    answers = desk.fetched(len(LARGE), digest, At("me", "ours"))
    assert [each[:3] for each in desk.wanted] == [(digest, len(LARGE), "the relay")]
    desk.bring(LARGE)
    assert Path(answers[0]).read_bytes() == LARGE and not desk.wanted


def test_a_small_output_that_only_our_ghost_has_is_brought_by_the_relay(
    desk: Desk,
) -> None:
    desk.ghost = "ours"
    digest = store.digest_of(b"said")
    answers = desk.fetched(4, digest, At("me", "ours"))
    assert [each[:3] for each in desk.wanted] == [(digest, 4, "the relay")]
    desk.bring(b"said")
    assert answers == [b"said"] and desk.database == {digest: b"said"}


def test_what_a_ghost_of_ours_lost_is_asked_for_everywhere(desk: Desk) -> None:
    desk.ghost = "ours"
    answers = desk.fetched(len(LARGE), store.digest_of(LARGE), At("me", "ours"))
    desk.bring(None)
    assert answers == [] and desk.wanted[0][2] == "" and desk.named == [""]
    desk.bring(LARGE)
    assert Path(answers[0]).read_bytes() == LARGE


def test_for_another_s_ghost_its_clairvoyant_is_asked_first(desk: Desk) -> None:
    desk.fetched(len(LARGE), store.digest_of(LARGE), At("b", "theirs"))
    assert desk.wanted[0][2] == "b" and desk.named == ["theirs"]


def test_only_the_last_few_that_came_are_remembered(desk: Desk) -> None:
    for i in range(FETCHED_MAX + 5):
        data = b"%d" % i
        desk.outputs.want(WantOutput(store.digest_of(data), len(data), ""))
        desk.bring(data)
    assert len(desk.outputs.fetched) == FETCHED_MAX
    assert len(desk.database) == FETCHED_MAX + 5
