"""Every script that writes, killed and on a full disk at changes spread over all that it makes."""

from __future__ import annotations

from unittest.mock import ANY

import pytest

from bild.engines.build import find_compiler
from faults import scripts
from faults.injecting import Injector, Outcome, Trials

# (how, faults) of each script. `make faults` tries a thousand, drawn by chance.
PLAN = {
    "run_eval": (("before", 3), ("half", 3), ("full", 2)),
    "search_thresholds": (("before", 3), ("half", 2), ("full", 2)),
    "search_thresholds-study": (("half", 2), ("full", 1)),
    "compare_small_models": (("before", 2), ("half", 2), ("full", 1)),
    "benchmark": (("before", 1), ("half", 1), ("full", 1)),
    "make_calibration": (("before", 3), ("half", 3), ("full", 2)),
    "finetune": (("before", 2), ("half", 2), ("full", 1)),
    "align": (("before", 2), ("half", 1), ("full", 1)),
    "align-on-policy": (("half", 1),),
    "align-drafter": (("half", 1),),
    "measure_agreement": (("half", 1), ("full", 1)),
    "train_tokenizer": (("before", 2), ("half", 1), ("full", 1)),
    "make_demo_data": (("before", 1), ("half", 2), ("full", 1)),
    "check_duplicates": (("half", 1), ("full", 1)),
    "generate": (("before", 2), ("half", 2), ("full", 1)),
    "compare_rules": (("half", 2), ("full", 1)),
    "plot_tradeoff": (("half", 1), ("full", 1)),
    "make_adversary": (("half", 2), ("full", 1)),
    "show_trace": (("half", 1), ("full", 1)),
}


@pytest.fixture(scope="module")
def injector(tmp_path_factory):
    made = Injector(tmp_path_factory.mktemp("faults"), find_compiler()[0])
    yield made
    made.close()


def test_every_script_that_writes_is_in_the_plan(injector):
    assert set(PLAN) == set(injector.commands)
    assert sum(count for faults in PLAN.values() for _, count in faults) >= 60


@pytest.mark.parametrize(("name", "how"), [(n, how) for n in PLAN for how, _ in PLAN[n]])
def test_broken_off_it_goes_on_and_ends_as_if_nothing_had_been(injector, name, how):
    count = dict(PLAN[name])[how]
    _, changes = injector.whole(name)
    # Apart by turns, so that "before" and "half" do not meet at the same changes.
    shift = {"before": 0.25, "half": 0.5, "full": 0.75}[how]
    points = [max(1, round(changes * (i + shift) / count)) for i in range(count)]
    # All kills but the first in one chain: a run that was stopped is stopped again.
    for chain in (points[:1], points[1:]):
        if chain:
            assert injector.trial(name, how, chain).wrong == []


def test_faults_are_injected(injector):
    """A kill at the last change of all leaves something to be done, and is seen."""
    _, changes = injector.whole("check_duplicates")
    folder = injector.folder / "killed"
    assert injector.run("check_duplicates", folder, "half", 2)["code"] == -9
    assert scripts.left_over(folder) != []
    assert injector.run("check_duplicates", folder, "full", 1)["code"] == 2
    assert changes >= 4


def test_generate_broken_off_at_its_end_finishes_or_says_that_it_is_done(injector):
    """Killed when the output is in its place, and when it has cleared away behind it as well."""
    _, changes = injector.whole("generate")
    for at in (changes - 1, changes):
        assert injector.trial("generate", "half", [at]).wrong == []


class Quick:
    """Stands for an injector: of what a trial does nothing but its draw counts here."""

    def __init__(self, folder):
        folder.mkdir()

    def whole(self, name):
        return {}, 10

    def seconds(self, name):
        return 1.0

    def trial(self, name, how, points):
        if name == "broken":
            raise RuntimeError("no such script")
        return Outcome(len(points), [f"{name} differs"] if name == "bad" else [], 2.0)

    def close(self):
        pass


def test_the_long_form_goes_on_where_it_was_stopped_and_counts_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("faults.injecting.Injector", Quick)

    def trials(log, kills, names=("good", "bad")):
        made = Trials(tmp_path / log, names, kills, 60, seed=3)
        made.work(tmp_path / f"{log}-{kills}-{len(names)}")
        return made

    whole = trials("whole", 40)
    assert 40 <= whole.killed < 43
    kinds = whole.counts()["bad"]["faults"]
    assert kinds["before"] * kinds["half"] * kinds["full"] > 0
    trials("parts", 13)
    with (tmp_path / "parts").open("a") as stream:
        stream.write('{"script": "good", "num')  # killed as it wrote
    assert trials("parts", 40).counts() == whole.counts()
    assert len(whole.counts()["bad"]["complaints"]) == whole.counts()["bad"]["trials"]
    with pytest.raises(RuntimeError):  # nothing is counted that was not tried
        trials("whole", 99, ("good", "broken"))
    assert trials("whole", 1).counts() == whole.counts() | {"good": ANY}
