"""Matching: what is picked, and what it costs, against an oracle that looks at all."""

import json
import random
import re
from typing import Any, Dict, List, Optional

import pytest

import conditions
import matching
import waits
from matching import Matcher
from probation import STREAK
from record import LIVING, UNFINISHED, File, Needs, Phase, Record, Run, State, encode
from taskqueue import Queue
from workers import Worker

W = "0123456789abcdef"
MIB = 1 << 20


class Bench:
    """A queue with its matcher, and workers to pick for."""

    def __init__(self, search: Any = None) -> None:
        self.searches = 0
        self.real_search = search or (lambda regex, text: bool(re.search(regex, text)))
        self.queue = Queue(self.on_change)
        self.matcher = Matcher(self.queue, self.search)
        self.n = 0

    def on_change(self, *change: Any) -> None:
        self.matcher.on_change(*change)

    def search(self, regex: str, text: str) -> bool:
        self.searches += 1
        return bool(self.real_search(regex, text))

    def worker(self, n: int = 1, cores: int = 4, memory: int = 4096 * MIB) -> Worker:
        worker = Worker("%016x" % n, "old%d" % n, cores, memory)
        worker.free_disk = 1 << 40
        self.matcher.attach(worker)
        return worker

    def add(self, command: str = "true", *texts: str, **needs: Any) -> Record:
        self.n += 1
        asked = Needs(conditions=texts, **needs)
        return self.queue.add(f"{self.n}-{W}", command, asked, "me", 0.0, "")

    def scan(self) -> None:
        while self.matcher.waits.scan():
            pass

    def grant(self, record: Record, worker: Worker) -> str:
        self.n += 1
        run_key = f"{record.next_attempt()}.1.{W}.{self.n}"
        run = Run(worker.writer, 0, 0, Phase.GRANTED, {})
        self.queue.grant(record.key, run_key, run)
        return run_key

    def pick(self, worker: Worker, now: float = 0.0) -> Optional[Record]:
        self.scan()
        return self.matcher.pick(worker, now)

    def take(self, worker: Worker, now: float = 0.0) -> Record:
        """Pick and grant; there must be something."""
        record = self.pick(worker, now)
        assert record is not None
        self.grant(record, worker)
        return record

    def finish(self, record: Record, code: int = 0) -> None:
        for run_key in record.living():
            if record.runs[run_key].phase is Phase.GRANTED:
                self.queue.advance(record.key, run_key, "start", {})
            self.queue.advance(record.key, run_key, "end", {"exit": code})

    def step(self, record: Record, event: str) -> None:
        for run_key in record.living():
            self.queue.advance(record.key, run_key, event, {})


# --- the oracle -----------------------------------------------------------------------


def is_met(bench: Bench, record: Record, text: str) -> bool:
    """Decide a `queue:` condition by looking at every task there is."""
    condition = conditions.unwire(text)
    others = [r for r in bench.queue.records.values() if r is not record]
    if condition.verb == "queue:is_first":
        return not any(r.state in UNFINISHED and r < record for r in others)
    if condition.verb == "queue:done":
        other = bench.queue.records.get(condition.argument)
        if other is None:
            return bench.queue.purged.covers(condition.argument)
        return other.state not in UNFINISHED
    matching_ones = [r for r in others if re.search(condition.argument, r.command)]
    if condition.verb == "queue:all_with_cmd_ok":
        return all(r.state is State.DONE for r in matching_ones)
    return not any(r.state in UNFINISHED for r in matching_ones)


def expected(bench: Bench, worker: Worker, now: float) -> Optional[Record]:
    """Give the first, by priority and age, of all waiting tasks that may go."""
    if worker.draining or worker.away:
        return None
    for record in sorted(
        bench.queue.records.values(), key=lambda r: (-r.needs.priority, r.order, r.key)
    ):
        needs = record.needs
        if record.state is not State.WAITING or record.key in bench.matcher.blocked:
            continue
        lost = sum(run.phase is Phase.LOST for run in record.runs.values())
        alone = not needs.concurrency or lost >= 2
        here = [t for t in needs.conditions if t.startswith("worker:")]
        asked = [t for t in needs.conditions if t.startswith("queue:")]
        running = list(worker.runs.values())
        if (
            all(t in worker.holds for t in here)
            and needs.cores + sum(n.cores for n, _ in running) <= worker.cores
            and needs.memory + sum(n.memory for n, _ in running) <= worker.memory
            and not (alone and running)
            and not any(lonely for _, lonely in running)
            and worker.refused.get(record.key, (0.0,))[0] <= now
            and all(is_met(bench, record, text) for text in asked)
        ):
            return record
    return None


TEXTS = [
    "queue:is_first",
    "queue:all_with_cmd_done ^a",
    "queue:all_with_cmd_done b",
    "queue:all_with_cmd_ok ^a",
    "worker:tag gpu",
    "worker:tag usb",
]


def random_step(  # noqa: C901 - a list of what may happen, each a line or two
    rng: random.Random, bench: Bench, workers: List[Worker]
) -> None:
    queue = bench.queue
    records = sorted(queue.records.values())
    roll = rng.random()
    if roll < 0.35 or not records:
        texts = rng.sample(TEXTS, rng.choice([0, 0, 0, 1, 1, 2]))
        if rng.random() < 0.15:
            n = rng.choice([rng.randrange(bench.n + 1), bench.n + rng.randrange(2, 5)])
            texts.append(f"queue:done {n}-{W}")  # it may come later, or never
        needs = {"cores": rng.choice([1, 1, 2]), "priority": rng.choice([0, 0, 0, 1])}
        needs["concurrency"] = rng.random() < 0.9
        if rng.random() < 0.2:
            bench.matcher.blocked.add(f"{bench.n + 1}-{W}")
        bench.add(rng.choice(["a", "ab", "b", "c"]), *texts, retries=1, **needs)
        return
    record = rng.choice(records)
    if roll < 0.65:
        event = rng.choice(["lose", "return", "end", "end", "end"])
        if event == "end":
            bench.finish(record, rng.choice([0, 0, 1]))
        else:
            bench.step(record, event)
    elif roll < 0.7:
        for run_key, run in sorted(record.runs.items()):
            if run.phase is Phase.LOST:
                event = rng.choice(["refute", "end"])
                detail = {"exit": rng.randrange(2)} if event == "end" else {}
                queue.advance(record.key, run_key, event, detail)
                break
    elif roll < 0.74:
        queue.delete(record.key)
    elif roll < 0.8 and record.state not in UNFINISHED:
        queue.purge([record.key])
    elif roll < 0.82:
        queue.cover(W, *[int(record.key.split("-")[0])] * 2)
    elif roll < 0.84:
        queue.give_up(record.key, "why")
    elif roll < 0.9:
        worker = rng.choice(workers)
        tags = [t for t in TEXTS[4:] if rng.random() < 0.6]
        bench.matcher.facts(worker, frozenset(tags))
    elif roll < 0.95:
        for key in sorted(bench.matcher.blocked):
            bench.matcher.unblock(key)
    else:
        # A copy from a peer that has it as older, or with another spec.
        wire = dict(matching_wire(record), o=max(record.order - 3, 0))
        if rng.random() < 0.3:
            wire["c"] = rng.choice("ab")
        queue.merge(wire)


def matching_wire(record: Record) -> Dict[str, Any]:
    return json.loads(json.dumps(encode(record)))  # type: ignore[no-any-return]


def check_mirror(bench: Bench, where: str) -> None:
    living = {
        run_key: run.worker
        for record in bench.queue.records.values()
        for run_key, run in record.runs.items()
        if run.phase in LIVING
    }
    assert bench.matcher.held == living, where
    for writer, worker in bench.matcher.workers.items():
        assert set(worker.runs) == {k for k, w in living.items() if w == writer}, where
    for text, watch in bench.matcher.waits.watches.items():
        assert conditions.wire(watch.condition) == text, where
        assert watch.buckets, where
    for bucket in bench.matcher.numbered.values():
        heap = bucket.heap
        valid = {r.key for r in heap if bench.matcher._is_placeable(bucket, r)}
        assert len(heap) - len(valid) <= bucket.stale <= 2 * len(heap) + 9, where


@pytest.mark.parametrize("seeds", [range(n, n + 30) for n in range(0, 90, 30)])
def test_every_pick_is_the_one_that_looking_at_all_tasks_gives(seeds, monkeypatch):
    monkeypatch.setattr(matching, "PATIENCE_S", 1e9)
    for seed in seeds:
        rng = random.Random(seed)
        bench = Bench()
        workers = [bench.worker(1), bench.worker(2, cores=2)]
        picks = 0
        for turn in range(120):
            random_step(rng, bench, workers)
            where = f"seed {seed}, turn {turn}"
            check_mirror(bench, where)
            worker = rng.choice(workers)
            wanted = expected(bench, worker, float(turn))
            found = bench.pick(worker, float(turn))
            assert found is wanted, where
            if found is not None:
                picks += 1
                run_key = bench.grant(found, worker)
                if rng.random() < 0.15:
                    bench.matcher.refuse(worker, found.key, "no", float(turn))
                    bench.queue.advance(found.key, run_key, "return", {})
            if turn % 40 == 39:
                # A new index over the same queue gives the same.
                other = bench.matcher.workers.pop(worker.writer)
                bench.matcher.attach(other)
                check_mirror(bench, where)
        assert picks, f"seed {seed}"
        finish_everything(bench, f"seed {seed}")


def finish_everything(bench: Bench, where: str) -> None:
    for record in list(bench.queue.records.values()):
        bench.queue.delete(record.key)
        bench.step(record, "return")
    matcher = bench.matcher
    matcher.peek()
    assert not (matcher.buckets or matcher.numbered or matcher.waits.watches), where
    assert not (matcher.waits.searching or matcher.wanted or matcher.parked), where
    assert not (matcher.held or matcher.waiting_since or matcher.ready), where
    assert matcher.waits.first() is None and not matcher.waits.oldest, where
    for worker in matcher.workers.values():
        assert not (worker.runs or worker.refused or worker.kept_for), where


# --- conditions -----------------------------------------------------------------------


def test_a_task_does_not_wait_for_itself_but_for_all_others():
    bench = Bench()
    worker = bench.worker()
    last = bench.add("merge", "queue:all_with_cmd_done m")
    other = bench.add("make")
    assert bench.take(worker) is other
    assert bench.pick(worker) is None
    bench.finish(other, 1)
    assert bench.take(worker) is last


def test_a_task_that_failed_is_done_but_not_ok_until_it_is_purged():
    bench = Bench()
    worker = bench.worker()
    failed = bench.add("make")
    bench.grant(failed, worker)
    bench.finish(failed, 1)
    ok = bench.add("x", "queue:all_with_cmd_ok make")
    assert bench.pick(worker) is None
    bench.queue.purge([failed.key])
    assert bench.pick(worker) is ok


def test_what_is_purged_elsewhere_and_never_was_here_is_complete():
    bench = Bench()
    worker = bench.worker()
    task = bench.add("x", f"queue:done 99-{W}")
    assert bench.pick(worker) is None
    bench.queue.cover(W, 99, 99)
    assert bench.pick(worker) is task


def test_a_regex_that_is_too_slow_counts_as_matching():
    def slow(regex: str, text: str) -> bool:
        raise TimeoutError

    bench = Bench(slow)
    worker = bench.worker()
    others = [bench.add(f"o{n}") for n in range(10)]
    task = bench.add("x", "queue:all_with_cmd_done (a+)+$")
    bench.scan()
    assert bench.searches == waits.SLOW_SEARCHES_MAX
    for other in others:
        assert bench.pick(worker) is not task
        bench.queue.delete(other.key)
    assert bench.pick(worker) is task
    late = bench.add("late")
    assert bench.searches == waits.SLOW_SEARCHES_MAX
    assert bench.pick(worker) is late
    why = bench.matcher.why(task, 0.0)
    assert not why[0].is_met and "too slow" in why[0].text and late.shown in why[0].text


def test_worker_conditions_park_a_bucket_until_some_worker_gains_them():
    bench = Bench()
    one, two = bench.worker(1), bench.worker(2)
    task = bench.add("x", "worker:tag gpu", "worker:tag usb")
    assert bench.matcher.wanted == {"worker:tag gpu": 1, "worker:tag usb": 1}
    bench.matcher.facts(one, frozenset(["worker:tag gpu"]))
    bench.matcher.facts(two, frozenset(["worker:tag usb"]))
    assert bench.matcher.peek() is None  # no single worker has both
    bench.matcher.facts(one, frozenset(["worker:tag gpu", "worker:tag usb"]))
    assert bench.pick(two) is None and bench.pick(one) is task
    bench.matcher.detach(one.writer)
    assert bench.matcher.peek() is None
    bench.matcher.attach(one)
    assert bench.pick(one) is task


def test_what_no_worker_is_big_enough_for_waits_for_one_that_is():
    bench = Bench()
    small = bench.worker(1, cores=1)
    task = bench.add("x", cores=2)
    assert bench.pick(small) is None and bench.matcher.peek() is None
    assert bench.pick(bench.worker(2, cores=2)) is task


# --- room -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        ({"cores": 2}, True),
        ({"cores": 3}, False),
        ({"memory": 3 * MIB}, True),
        ({"memory": 3 * MIB + 1}, False),
        ({"storage": 50}, True),
        ({"storage": 51}, False),
        ({"concurrency": False}, False),
    ],
)
def test_room_is_what_is_offered_less_what_running_tasks_asked_for(needs, fits):
    bench = Bench()
    worker = bench.worker(cores=4, memory=4 * MIB)
    worker.free_disk = 100
    bench.grant(bench.add(cores=2, memory=MIB, storage=50), worker)
    task = bench.add(**needs)
    assert bench.pick(worker) is (task if fits else None)


def test_files_need_room_beside_storage_also_those_of_running_tasks():
    bench = Bench()
    worker = bench.worker()
    worker.free_disk = 100
    needs = {"storage": 10, "files": (File("in", "ab" * 32, 30, 420),)}
    for _ in range(3):
        bench.add(**needs)
    bench.take(worker)
    bench.take(worker)
    assert bench.pick(worker) is None
    worker.free_disk = 120
    bench.take(worker)


def test_no_more_memory_is_given_than_is_free_now():
    bench = Bench()
    worker = bench.worker(memory=100 * MIB)
    worker.free_memory = 30 * MIB
    for _ in range(3):
        bench.add(memory=15 * MIB)
    bench.take(worker)
    bench.take(worker)
    assert bench.pick(worker) is None
    worker.free_memory = 15 * MIB
    bench.matcher.facts(worker, frozenset())
    bench.take(worker)


def test_a_task_that_wants_the_node_to_itself_gets_no_neighbour():
    bench = Bench()
    worker = bench.worker()
    lonely = bench.add(concurrency=False)
    bench.add()
    assert bench.take(worker) is lonely
    assert worker.is_full() and bench.pick(worker) is None


def test_after_two_losses_a_task_runs_alone_and_after_a_refutation_not():
    bench = Bench()
    worker = bench.worker()
    task = bench.add(retries=5)
    keys = []
    for _ in range(2):
        keys.append(bench.grant(task, worker))
        bench.step(task, "lose")
    other = bench.add()
    bench.grant(other, worker)
    assert bench.pick(worker) is None
    bench.queue.advance(task.key, keys[0], "end", {"exit": 1})  # waiting all along
    assert bench.pick(worker) is task


def test_priority_comes_before_age():
    bench = Bench()
    worker = bench.worker(cores=10)
    low, first = bench.add(priority=-1), bench.add()
    second, high = bench.add(memory=1), bench.add(priority=5)
    assert [bench.take(worker) for _ in range(4)] == [high, first, second, low]


@pytest.mark.parametrize("attribute", ["draining", "away"])
def test_a_worker_that_drains_or_is_away_gets_nothing(attribute):
    bench = Bench()
    worker = bench.worker()
    task = bench.add()
    setattr(worker, attribute, True)
    assert bench.pick(worker) is None
    assert any(not row.is_met for row in bench.matcher.why(task, 0.0))
    setattr(worker, attribute, False)
    assert bench.pick(worker) is task


# --- patience and refusals ------------------------------------------------------------


def test_smaller_tasks_pass_a_big_one_for_60_s_and_then_a_worker_is_kept_free():
    bench = Bench()
    worker = bench.worker(cores=2)
    running = bench.add()
    bench.grant(running, worker)
    big = bench.add(cores=2)
    small = [bench.add() for _ in range(3)]
    assert bench.take(worker, 100.0) is small[0]
    bench.finish(small[0])
    assert bench.take(worker, 159.0) is small[1]
    bench.finish(small[1])
    assert bench.pick(worker, 160.0) is None and worker.kept_for == big.key
    bench.finish(running)
    assert bench.take(worker, 161.0) is big and worker.kept_for == ""


def test_a_worker_is_no_longer_kept_for_a_task_that_runs_elsewhere_or_is_gone():
    for how in ("elsewhere", "deleted"):
        bench = Bench()
        worker = bench.worker(cores=2)
        bench.grant(bench.add(), worker)
        big, small = bench.add(cores=2), bench.add()
        bench.pick(worker, 0.0)
        assert bench.pick(worker, 60.0) is None and worker.kept_for == big.key
        if how == "elsewhere":
            bench.grant(big, bench.worker(2))
        else:
            bench.queue.delete(big.key)
        assert worker.kept_for == "" and bench.pick(worker, 61.0) is small


def test_an_empty_worker_without_room_is_not_kept_idle():
    bench = Bench()
    worker = bench.worker(memory=100 * MIB)
    worker.free_memory = 10 * MIB  # a browser has the rest
    bench.add(memory=50 * MIB)
    small = bench.add(memory=MIB)
    for now in (0.0, 60.0, 120.0):
        assert bench.pick(worker, now) is small and worker.kept_for == ""


def test_a_worker_is_not_kept_for_a_task_that_it_refused():
    bench = Bench()
    worker = bench.worker(cores=2)
    bench.grant(bench.add(), worker)
    big, small = bench.add(cores=2), bench.add()
    bench.matcher.refuse(worker, big.key, "no such file", 1000.0)
    bench.matcher.waiting_since[big.key] = 0.0
    assert bench.pick(worker, 1000.5) is small and worker.kept_for == ""


def test_a_refused_task_waits_1_s_doubling_to_10_min():
    bench = Bench()
    worker, other = bench.worker(1), bench.worker(2)
    task = bench.add()
    delays = []
    now = 0.0
    for _ in range(13):
        bench.matcher.refuse(worker, task.key, "no", now)
        delays.append(worker.refused[task.key][0] - now)
        assert bench.pick(worker, now + delays[-1] - 0.01) is None
        assert bench.pick(other, now) is task
        now += delays[-1]
        assert bench.pick(worker, now) is task
    assert delays == [float(1 << n) for n in range(10)] + [600.0] * 3


def test_a_refused_task_does_not_hold_up_its_like():
    for texts in ((), ("queue:all_with_cmd_done nothing",)):
        bench = Bench()
        worker = bench.worker()
        first, second = bench.add("x", *texts), bench.add("x", *texts)
        bench.matcher.refuse(worker, first.key, "no", 0.0)
        assert bench.pick(worker, 0.5) is second
        assert bench.pick(worker, 1.0) is first


# --- bounds and cost ------------------------------------------------------------------


def test_heaps_do_not_grow_when_the_same_tasks_come_and_go():
    bench = Bench()
    worker = bench.worker(cores=2)
    for n in range(10):
        bench.add(memory=n)
    bench.add("busy", cores=2, priority=9)
    for _ in range(500):
        extra = bench.add("b", "queue:is_first", priority=1)
        bench.queue.delete(extra.key)
        task = bench.add("c")
        bench.add("c2")
        bench.grant(task, worker)
        bench.step(task, "return")
        for record in [r for r in bench.queue.records.values() if r.command[0] == "c"]:
            bench.queue.delete(record.key)
            bench.queue.purge([record.key])
        bench.queue.purge([extra.key])
    matcher = bench.matcher
    entries = sum(len(bucket.heap) for bucket in matcher.buckets.values())
    assert len(matcher.buckets) == 11 and entries < 200
    assert len(matcher.ready) < 200 and len(matcher.waits.oldest) < 200


class Counted:
    """Counts the calls of candidate() and of search()."""

    def __init__(self, bench: Bench, monkeypatch: Any) -> None:
        self.bench, self.calls = bench, 0
        real = Matcher.candidate

        def candidate(matcher: Matcher, bucket: Any) -> Optional[Record]:
            self.calls += 1
            return real(matcher, bucket)

        monkeypatch.setattr(Matcher, "candidate", candidate)

    def of_10_picks(self, worker: Worker) -> int:
        self.bench.scan()
        self.calls = self.bench.searches = 0
        for _ in range(10):
            self.bench.finish(self.bench.take(worker))
        return self.calls + self.bench.searches


KINDS = {
    "alike": lambda n: ((), {}),
    "of files of their own": lambda n: ((), {"storage": n}),
    "waiting for the first": lambda n: (("queue:is_first",), {"storage": n}),
    "waiting for another": lambda n: ((f"queue:done {10**9 + n}-{W}",), {}),
    "waiting for a tag": lambda n: ((f"worker:tag t{n}",), {}),
    "too big for all": lambda n: ((), {"memory": 1 << 50, "storage": n}),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_pick_costs_the_same_with_many_waiting_as_with_100(kind, monkeypatch):
    costs: List[int] = []
    for count in (100, 10000):
        with monkeypatch.context() as patch:
            bench = Bench()
            worker = bench.worker()
            bench.add("blocks the first", memory=1 << 50)
            for n in range(count):
                texts, needs = KINDS[kind](n)
                bench.add("x", *texts, **needs)
            for _ in range(12):
                bench.add("y")
            costs.append(Counted(bench, patch).of_10_picks(worker))
    assert costs[1] <= costs[0] + 20, costs
    assert costs[0] < 200, costs


# --- a split cluster ------------------------------------------------------------------


def _half(bench: Bench, here: List[str], known: List[str]) -> None:
    bench.matcher.share(lambda key: matching.owner_of(key, known) not in here)
    while bench.matcher.move():
        pass


def test_halves_of_a_split_take_different_tasks_first():
    known = ["a" * 16, "b" * 16, "c" * 16]
    taken = []
    for here in (known[:1], known[1:]):
        bench = Bench()
        worker = bench.worker(cores=100)
        for _ in range(60):
            bench.add()
        _half(bench, here, known)
        own = {k for k in bench.queue.records if matching.owner_of(k, known) in here}
        first = [bench.take(worker).key for _ in range(len(own))]
        assert set(first) == own
        assert first == sorted(first, key=lambda key: int(key.split("-")[0]))
        taken.append(own)
        rest = [bench.take(worker).key for _ in range(60 - len(own))]
        assert len({*first, *rest}) == 60  # Then those of the other half, too.
    assert not taken[0] & taken[1] and len(taken[0] | taken[1]) == 60
    assert 8 <= len(taken[0]) <= 32  # A third of them, about.


def test_priority_goes_before_whose_task_it_is():
    known = ["a" * 16, "b" * 16]
    bench = Bench()
    worker = bench.worker()
    records = [bench.add(priority=n % 2) for n in range(20)]
    _half(bench, known[:1], known)
    assert bench.take(worker).needs.priority == 1
    urgent = [r for r in records if r.needs.priority == 1]
    owners = {matching.owner_of(r.key, known) for r in urgent}
    assert owners == set(known)  # Else this test would show nothing.


def test_when_all_are_back_age_alone_counts_again_and_nothing_is_left():
    bench = Bench()
    worker = bench.worker(cores=100)
    records = [bench.add() for _ in range(30)]
    _half(bench, ["a" * 16], ["a" * 16, "b" * 16])
    bench.matcher.share(None)
    while bench.matcher.move():
        pass
    assert [bench.take(worker) for _ in records] == records
    assert not bench.matcher.buckets and not bench.matcher.numbered


def test_tasks_change_buckets_in_slices(monkeypatch):
    monkeypatch.setattr(matching, "MOVE_SLICE", 10)
    bench = Bench()
    for _ in range(35):
        bench.add()
    bench.matcher.share(lambda key: True)
    turns = 1
    while bench.matcher.move():
        turns += 1
    assert turns == 4


def test_one_that_fails_at_once_what_ends_well_elsewhere_gets_few_tasks() -> None:
    bench = Bench()
    good, bad = bench.worker(1), bench.worker(2)
    for _ in range(40):
        bench.add("work")
    counts = {good: 0, bad: 0}
    for _ in range(15):
        for worker in (bad, good):
            record = bench.pick(worker)
            if record is not None:
                counts[worker] += 1
                run_key = bench.grant(record, worker)
                bench.queue.advance(record.key, run_key, "start", {})
                end = {"exit": int(worker is bad), "took": 0.01}
                bench.queue.advance(record.key, run_key, "end", end)
    assert counts == {good: 15, bad: STREAK}
    waits = bench.add("wait")
    (row,) = [r for r in bench.matcher.why(waits, 0.0) if r.subject == bad.name]
    assert not row.is_met and "on probation: its last 5 runs failed" in row.text
    due = bench.matcher.probation.deadline(0.0)
    assert due is not None and bench.pick(bad, due) is not None


def test_what_a_worker_holds_is_counted_as_if_it_were_summed() -> None:
    draw, worker = random.Random(5), Worker(W, "old1", 100, 1 << 40)
    files = (File("a", "d" * 64, 7, 0o644),)
    for _ in range(2000):
        run_key = "1.1.%s.%d" % (W, draw.randrange(20))
        if draw.randrange(2):
            worker.release(run_key)
        else:
            sizes = [draw.randrange(9) for _ in range(3)]
            needs = Needs(*sizes, files=draw.choice([(), files]))
            worker.hold(run_key, needs, draw.randrange(4) == 0)
        held = [needs for needs, _ in worker.runs.values()]
        assert worker.used() == (
            sum(needs.cores for needs in held),
            sum(needs.memory for needs in held),
            sum(needs.disk for needs in held),
        )
        is_lonely_there = any(alone for _, alone in worker.runs.values())
        is_told = "a task has the node for itself" in worker.busy_with(Needs(), False)
        assert is_told == is_lonely_there
        assert worker.is_full() == (is_lonely_there or worker.used()[0] >= 100)
