"""The loop: fair orders, each line once, arms that may fail, and a report that is not missed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from records import run_record

from bild import BildError, DecodeStats
from bild.evaluation.arms import ArmId, Case, Outcome
from bild.evaluation.figures import seconds_of, speed_figures, texts_of
from bild.evaluation.folder import Identity
from bild.evaluation.in_folder import run_in_folder
from bild.evaluation.loop import Item, Loop, Sample, order, read_samples, samples
from bild.evaluation.record import RunRecord

ITEMS = [Item(f"source {i}", f"reference {i}", Case(torch.tensor([[i]]), 5)) for i in range(6)]


@dataclass
class Counting:
    """An arm that notes when it decodes what; `stop` raises at that many."""

    kind: str
    log: list
    stop: tuple[int, BaseException] | None = None
    fails_at: int | None = None
    built: str = "by hand"
    factor: float = 1.0
    id: ArmId = field(init=False)

    def __post_init__(self):
        self.id = ArmId(self.kind)

    def run(self, case):
        if self.stop is not None and len(self.log) == self.stop[0]:
            raise self.stop[1]
        index = int(case.input_ids[0, 0])
        if index == self.fails_at:
            raise RuntimeError("no\nmore")
        self.log.append((self.kind, index))
        return Outcome([index, 1], self.factor * (1 + index), 0.5, DecodeStats(generated_tokens=2))


def arms(log, *kinds, stop=None):
    return [Counting(kind, log, stop) for kind in kinds]


# ------------------------------------------------------------------------------ the order


@pytest.mark.parametrize("count", range(2, 17))
def test_every_arm_comes_first_equally_often_and_anywhere_else_by_chance(count):
    """Over 400 cases; the rotation before it never began with half of 16 arms."""
    orders = [order(count, number, seed=3) for number in range(400)]
    assert all(sorted(o) == list(range(count)) for o in orders)
    times = Counter(o[0] for o in orders)
    assert set(times) == set(range(count))
    assert max(times.values()) - min(times.values()) <= 1
    for place in range(1, count):
        times = Counter(o[place] for o in orders)
        assert min(times.values()) > 400 / count / 3
    after = Counter((a, b) for o in orders for a, b in pairwise(o))
    assert len(after) == count * (count - 1)


def test_two_arms_alternate_within_each_pair_of_cases_but_not_in_a_fixed_turn():
    firsts = [order(2, number, seed=0)[0] for number in range(40)]
    assert all({a, b} == {0, 1} for a, b in zip(firsts[::2], firsts[1::2], strict=True))
    assert 3 < sum(firsts[::2]) < 17


def test_the_order_is_the_seeds_alone():
    assert [order(5, n, 1) for n in range(50)] == [order(5, n, 1) for n in range(50)]
    assert [order(5, n, 1) for n in range(50)] != [order(5, n, 2) for n in range(50)]


# ------------------------------------------------------------------------------ lines


def test_every_arm_decodes_every_example_in_every_pass_once(tmp_path):
    log = []
    found = list(samples(arms(log, "vanilla", "bild"), Loop(ITEMS, runs=3), tmp_path / "s.jsonl"))
    assert Counter(log) == {(kind, i): 3 for kind in ("vanilla", "bild") for i in range(6)}
    assert [(s.run, s.index) for s in found] == [(r, i) for r in range(3) for i in range(6)]
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    ids = {str(arm): arm for arm in found[0].arms}
    assert [Sample.from_json(line, ids) for line in lines] == found


def test_warm_up_decodes_every_arm_and_writes_nothing(tmp_path):
    log = []
    loop = Loop(ITEMS, warmup=2)
    found = list(samples(arms(log, "vanilla", "bild"), loop, tmp_path / "s.jsonl"))
    assert log[:4] == [("vanilla", 0), ("vanilla", 1), ("bild", 0), ("bild", 1)]
    assert len(log) == 4 + 12
    assert len(found) == 6
    assert [set(map(str, s.warmup_seconds)) for s in found[:2]] == [
        {"vanilla@float32", "bild@float32"}, set(),
    ]  # fmt: skip


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 13])
def test_a_stopped_run_goes_on_in_the_same_order(tmp_path, stop):
    whole, parts = [], []
    loop = Loop(ITEMS, runs=2, seed=4)
    expected = list(samples(arms(whole, "a", "b", "c"), loop, tmp_path / "whole.jsonl"))
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(samples(arms(parts, "a", "b", "c", stop=(stop, KeyboardInterrupt())), loop, path))
    kept = len(path.read_text().splitlines())
    assert kept == stop // 3
    again = []
    found = list(samples(arms(again, "a", "b", "c"), loop, path))
    assert [s.arms for s in found] == [s.arms for s in expected]
    assert again == whole[3 * kept :]


def test_what_has_been_read_of_a_file_is_not_read_again(tmp_path, monkeypatch):
    """A line is parsed once when a run goes on: of 20,000 that is half a minute."""
    path, loop, both = tmp_path / "s.jsonl", Loop(ITEMS), arms([], "a", "b")
    found = list(samples(both, loop, path))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    known = read_samples(path, [arm.id for arm in both], loop)
    monkeypatch.setattr(Sample, "from_json", lambda *_: pytest.fail("read again"))
    again = samples(both, loop, path, known=known)
    assert [s.arms for s in again] == [s.arms for s in found]
    assert len(path.read_text().splitlines()) == len(ITEMS)


def test_an_arm_that_may_fail_stays_out_and_is_named(tmp_path):
    log, path = [], tmp_path / "s.jsonl"
    healthy, ill = Counting("vanilla", log), Counting("bild", log, fails_at=3)
    found = list(samples([healthy, ill], Loop(ITEMS, may_fail=True), path))
    assert [len(s.arms) for s in found] == [2, 2, 2, 1, 1, 1]
    assert {str(k): v for k, v in found[-1].failed.items()} == {"bild@float32": "RuntimeError: no"}
    assert Counter(log)[("vanilla", 5)] == 1
    content = path.read_text().splitlines()
    path.write_text("\n".join(content[:4]) + "\n")
    loop, ids = Loop(ITEMS, may_fail=True), [healthy.id, ill.id]
    again = list(samples([healthy], loop, path, found[3].failed, ids))
    assert [list(s.arms) for s in again] == [list(s.arms) for s in found]
    assert [s.failed for s in again] == [s.failed for s in found]


def test_where_every_arm_fails_the_run_ends_with_the_reasons(tmp_path):
    ill = Counting("vanilla", [], (0, RuntimeError("no more")))
    with pytest.raises(BildError, match="no arm can run: vanilla@float32: RuntimeError: no more"):
        list(samples([ill], Loop(ITEMS, may_fail=True), tmp_path / "s.jsonl"))
    with pytest.raises(RuntimeError, match="no more"):
        list(samples([ill], Loop(ITEMS), tmp_path / "s.jsonl"))


def test_lines_of_other_arms_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    list(samples(arms([], "vanilla", "bild"), Loop(ITEMS), path))
    with pytest.raises(BildError, match=r"line 1: the arm 'bild@float32' is not one of this run"):
        list(samples(arms([], "vanilla"), Loop(ITEMS), path))
    with pytest.raises(BildError, match=r"line 1 lacks the arm 'small@float32'"):
        list(samples(arms([], "vanilla", "bild", "small"), Loop(ITEMS), path))


def test_lines_with_another_counter_are_refused_and_kept(tmp_path):
    path = tmp_path / "s.jsonl"
    list(samples(arms([], "vanilla"), Loop(ITEMS), path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["arms"]["vanilla@float32"]["stats"]["new_counter"] = 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = path.read_bytes()
    with pytest.raises(BildError, match=r"line 1: field '.*new_counter' is missing or unknown"):
        list(samples(arms([], "vanilla"), Loop(ITEMS), path))
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------ figures


def test_figures_take_texts_of_one_pass_and_seconds_of_all(tmp_path):
    vanilla, bild = Counting("vanilla", []), Counting("bild", [], factor=0.25)
    loop = Loop(ITEMS, runs=2, to_text=str)
    found = list(samples([vanilla, bild], loop, tmp_path / "s.jsonl"))
    assert texts_of(found)[bild.id] == [f"[{i}, 1]" for i in range(6)]
    assert np.array(seconds_of(found, vanilla.id)).shape == (2, 6)
    speed = speed_figures(found, vanilla.id, bild.id)
    assert speed.speedup.value == pytest.approx(4)
    assert speed.seconds == pytest.approx(0.25 * 21)
    assert speed.encoder_seconds == pytest.approx(0.5 * 6)
    assert speed.seconds_per_sample == pytest.approx(0.25 * 21 / 6)


# ------------------------------------------------------------------------------ its folder


def test_a_run_that_ended_before_its_report_is_reported_and_not_done_again(tmp_path):
    log, shown = [], []

    def go(report):
        return run_in_folder(
            tmp_path, Identity({"work": 1}, {"place": 1}), RunRecord,
            lambda path: samples(arms(log, "vanilla"), Loop(ITEMS), path),
            lambda found: run_record(), report,
        )  # fmt: skip

    def killed(record, found, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(killed)
    assert len(log) == 6
    record, path = go(lambda *parts: shown.append(parts))
    assert len(log) == 6
    ((shown_record, found, shown_path),) = shown
    assert (shown_record, shown_path) == (record, path)
    assert len(found) == 6
    go(None)
    assert len(log) == 12  # it was reported: the same command is a new run


# ------------------------------------------------------------------------------ batches


class Together(Counting):
    """An arm that decodes examples together, faster."""

    def run_together(self, cases):
        self.log.append((self.kind, tuple(int(case.input_ids[0, 0]) for case in cases)))
        assert len(cases) > 0
        return [
            Outcome([int(c.input_ids[0, 0]), 1], 0.5, 0.1, DecodeStats(generated_tokens=2))
            for c in cases
        ]


def test_batches_are_decoded_by_each_arm_in_turn_and_resume_at_the_same_lines(tmp_path):
    log = []
    both = [Together(kind, log) for kind in ("vanilla", "bild")]
    loop = Loop(ITEMS[:5], warmup=1, batch_size=2, runs=2, seed=1)
    path = tmp_path / "samples.jsonl"
    found = list(samples(both, loop, path))
    assert [(s.run, s.index) for s in found] == [(r, i) for r in (0, 1) for i in range(5)]
    assert [s.arms[both[0].id].tokens[0] for s in found] == [*range(5)] * 2
    batches = [(0, 1), (2, 3), (4,)]
    assert log[:2] == [("vanilla", (0, 1)), ("bild", (0, 1))]  # the warm-up
    assert sorted(log[2:8]) == sorted((kind, b) for b in batches for kind in ("bild", "vanilla"))
    assert {kind for kind, _ in log[2:4]} == {"bild", "vanilla"}
    # A run that was stopped within a batch goes on with the rest of it.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3]), encoding="utf-8")
    log.clear()
    again = list(samples(both, loop, path))
    assert [batch for kind, batch in log if kind == "bild"][1:] == [(3,), (4,), *batches]
    assert [s.arms for s in again] == [s.arms for s in found]
    # What is resampled for intervals is a batch, not an example.
    assert seconds_of(found, both[0].id, 2) == [[1.0, 1.0, 0.5]] * 2
    assert seconds_of(found, both[0].id) == [[0.5] * 5] * 2
