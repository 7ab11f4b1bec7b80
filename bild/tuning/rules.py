"""Rules for drafting and accepting side by side: one pair, the same examples, one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import set_seed

from bild.config import BiLDConfig
from bild.evaluation import loop as looping
from bild.evaluation.arms import BILD, SMALL, VANILLA
from bild.evaluation.environment import environment, peak_memory
from bild.evaluation.figures import arm_figures
from bild.evaluation.in_folder import run_in_folder
from bild.evaluation.loop import Sample
from bild.evaluation.own import OwnArm
from bild.evaluation.run import (
    Workload,
    describe_config,
    describe_data,
    describe_timing,
    identity,
    with_progress,
)
from bild.fallback import Adaptive
from bild.generation.pair import BiLDModel
from bild.rules import fallback_rule
from bild.tuning.record import RulesRecord

# From the closest to the large model to the loosest.
ACCEPTANCE = (
    *("exact", "bild:threshold=1", "bild:threshold=2", "bild:threshold=4"),
    *("topk:k=3,tolerance=0.7", "topk:k=3,tolerance=2"),
    *("typical:eps=0.3,delta=0.3", "typical:eps=0.1,delta=0.1", "typical:eps=0.03,delta=0.1"),
    *("lenient:share=0.5", "lenient:share=0.2", "lenient:share=0.05"),
    *("regret:budget=1", "regret:budget=3", "regret:budget=8"),
    *("ensemble:weight=0.3", "ensemble:weight=0.5", "ensemble:weight=0.8"),
    *("cascade:alpha=-0.2", "cascade:alpha=0", "cascade:alpha=0.2"),
)
DRAFTING = (
    *("max:threshold=0.2", "max:threshold=0.6", "entropy:limit=0.5", "entropy:limit=2"),
    *("margin:least=0.2", "margin:least=0.5", "product:least=0.1", "product:least=0.4"),
    "adaptive:threshold=0.2",
)


def rule_settings(
    base: BiLDConfig, acceptance: Sequence[str], drafting: Sequence[str]
) -> dict[str, BiLDConfig]:
    """The settings to compare, by label: each acceptance rule with the base's way of drafting, and
    each way of drafting with the exact rule, where only speed can differ.

    A way of drafting that decides itself how far to go makes no guesses, whatever the base does.

    Raises:
        BildError: a text that names no rule.
    """
    settings = [replace(base, acceptance=rule) for rule in acceptance]
    for rule in drafting:
        alone = isinstance(fallback_rule(rule), Adaptive)
        guesses = 0 if alone else base.lookahead
        settings.append(replace(base, acceptance="exact", drafting=rule, lookahead=guesses))
    return {label_of(s, base): s for s in settings}


def label_of(settings: BiLDConfig, base: BiLDConfig) -> str:
    """What tells settings from the base."""
    same = settings.drafting == base.drafting
    return str(settings.acceptance if same else settings.drafting)


def compare_rules(
    work: Workload, rules: Mapping[str, BiLDConfig], output_dir: Path, *, progress: bool = True
) -> tuple[RulesRecord, Path]:
    """Decode with the large model alone, the small one alone, and the pair by each rule, in turn.

    A comparison that was stopped goes on when it is started again; see `bild.evaluation.run`.

    Args:
        work: a pair, loaded.
        rules: settings by label.
        output_dir: where the folder of the run is made, under the task's name.
        progress: show a progress bar.

    Returns:
        The record and the path of its run.json.

    Raises:
        BildError: an output folder that cannot be written.
    """
    assert isinstance(work.runner, BiLDModel)
    set_seed(work.config.seed)
    arms = [OwnArm(VANILLA, work.runner), OwnArm(SMALL, work.runner)]
    arms += [OwnArm(BILD, work.runner, bild, label) for label, bild in rules.items()]
    loop, env = work.loop(), environment(work.large.device)
    resumed = 0

    def decode_into(path: Path) -> Iterator[Sample]:
        nonlocal resumed
        known = looping.read_samples(path, [arm.id for arm in arms], loop)
        resumed = len(known)
        found = looping.samples(arms, loop, path, known=known)
        return with_progress(found, loop.total, resumed, work.config.task) if progress else found

    def summarize(samples: list[Sample]) -> RulesRecord:
        built = {arm.id: arm.built for arm in arms}
        return RulesRecord(
            models=work.models,
            data=describe_data(work.data, samples),
            env=replace(env, resumed_after=resumed, peak_memory=peak_memory(work.large.device)),
            config=describe_config(work.config, work.task),
            metric=work.task.metric,
            timing=describe_timing(work.config),
            arms=arm_figures(samples, built, [work.task.metric]),
            rules=dict(rules),
        )

    folder = output_dir / work.config.task / "rules"
    own = identity(work, arms, env)
    return run_in_folder(folder, own, RulesRecord, decode_into, summarize)
