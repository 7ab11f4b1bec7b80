"""Planted pairs: the plan has the recorded rates, and the models keep to the plan."""

import pytest
import torch
from transformers import MT5Config, T5Config

from bild import BiLDConfig, BildError, BiLDModel, DecodeStats
from bild.benchmark.plan import plan_outputs, recorded_rates
from bild.benchmark.planted import EOS, PAIRS, build_pair, configs
from bild.engines import build
from bild.tasks.registry import TASKS, Thresholds

CONFIG = BiLDConfig(0.4, 3.0)
LENGTH = 30

RECORDED = [
    (task, mode)
    for task in TASKS
    for mode in ("unaligned", "aligned")
    if any(r.mode == mode and r.fallback_rate is not None for r in TASKS[task].published)
]

ENGINES = {
    "transformers": {"engine": "transformers"},
    "fast": {"engine": "fast", "compile": False},
    **({"int8": {"precision": "int8"}} if build.find_compiler() else {}),
}


def tiny(kind, layers, width=256):
    return kind(
        vocab_size=512,
        d_model=width,
        d_kv=32,
        num_heads=2,
        d_ff=64,
        num_layers=layers,
        feed_forward_proj="gated-gelu" if kind is MT5Config else "relu",
        pad_token_id=0,
        eos_token_id=EOS,
        decoder_start_token_id=0,
    )


def plan(outputs=3, fallback_rate=10.0, rollback_rate=4.0):
    return plan_outputs(fallback_rate, rollback_rate, LENGTH, outputs, CONFIG)


def total(stats):
    return sum(stats, DecodeStats())


# ------------------------------------------------------------------------------ the plan


@pytest.mark.parametrize(("task", "mode"), RECORDED)
def test_plans_have_the_recorded_rates(task, mode):
    row = recorded_rates(task, mode)
    length, outputs = round(row.mean_length), 12
    config = BiLDConfig(row.fallback, row.rollback)
    plans = plan_outputs(row.fallback_rate, row.rollback_rate, length, outputs, config)
    stats = total(p.stats for p in plans)
    assert stats.generated_tokens == length * outputs
    one = 100 / stats.generated_tokens  # a rate can be met to the nearest whole event
    assert abs(stats.fallback_rate - row.fallback_rate) <= one / 2
    assert abs(stats.rollback_rate - row.rollback_rate) <= one / 2


def test_recorded_rates_are_chosen_by_thresholds_and_refused_by_name():
    assert recorded_rates("cnndm", "aligned").rollback_rate == 4.54
    assert recorded_rates("cnndm", "aligned", Thresholds(0.2, 6)).rollback_rate == 3.03
    with pytest.raises(BildError, match=r"cnndm aligned 0.9 9 .* unaligned 0.4 3, unaligned 0.2 6"):
        recorded_rates("cnndm", "aligned", Thresholds(0.9, 9))
    with pytest.raises(BildError, match="there are: none"):
        recorded_rates("demo", "unaligned")


def test_plans_repeat_and_impossible_rates_are_refused():
    assert plan() == plan()
    with pytest.raises(BildError, match="cannot have 10 fallbacks and 40 rollbacks"):
        plan(rollback_rate=40)


# ------------------------------------------------------------------------------ the models


@pytest.mark.parametrize("kind", [T5Config, MT5Config])
def test_the_pair_keeps_to_the_plan_on_every_engine_and_precision(kind):
    plans = plan()
    pair = build_pair(tiny(kind, 2), tiny(kind, 1), plans, CONFIG.fallback_threshold)
    assert total(p.stats for p in plans).rollbacks == 4
    runs = {name: BiLDModel(pair.large, pair.small, **options) for name, options in ENGINES.items()}
    for output, planned in zip(pair.outputs, plans, strict=True):
        assert output.tokens[-1] == EOS
        assert output.stats == planned.stats
        source = output.source(7)
        for name, model in runs.items():
            made = model.generate(source, bild_config=CONFIG, max_new_tokens=2 * LENGTH)
            assert tuple(made.sequences[0, 1:].tolist()) == output.tokens, name
            assert made.stats == output.stats, name
        alone = runs["fast"].greedy(source, max_new_tokens=LENGTH).sequences[0, 1:].tolist()
        assert tuple(alone) == output.tokens
    assert len({o.tokens for o in pair.outputs}) == len(plans)  # the source decides the output

    rough = BiLDModel(
        pair.large.to(torch.bfloat16), pair.small.to(torch.bfloat16), engine="fast", compile=False
    )
    for output in pair.outputs:
        made = rough.generate(output.source(7), bild_config=CONFIG, max_new_tokens=2 * LENGTH)
        assert tuple(made.sequences[0, 1:].tolist()) == output.tokens
        assert made.stats == output.stats


def test_the_small_model_alone_goes_astray_and_outputs_without_end_go_on():
    pair = build_pair(tiny(T5Config, 1), tiny(T5Config, 1), plan(), 0.4, ends=False)
    model = BiLDModel(pair.large, pair.small, engine="fast", compile=False)
    strays = 0
    for output in pair.outputs:
        assert EOS not in output.tokens
        large, small = (
            model.greedy(output.source(5), which=which, max_new_tokens=LENGTH).sequences[0, 1:]
            for which in ("large", "small")
        )
        assert tuple(large.tolist()) == output.tokens
        strays += int((large != small).sum())
    assert strays >= 4  # one a rollback, and one every other fallback


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_unsure_tokens_is_right_all_the_same(share):
    pair = build_pair(tiny(T5Config, 2), tiny(T5Config, 1), plan(), 0.4, guess_share=share)
    right = unsure = 0
    for planned, output in zip(plan(), pair.outputs, strict=True):
        before = torch.tensor([[0, *output.tokens[:-1]]])
        choices = pair.small(input_ids=output.source(7), decoder_input_ids=before).logits[0]
        for kind, choice, token in zip(
            planned.kinds, choices.argmax(-1).tolist(), output.tokens, strict=True
        ):
            unsure += kind == "unsure"
            right += kind == "unsure" and choice == token
    assert unsure >= 6
    assert right == int(unsure * share)


def test_weights_are_dense_and_normal():
    pair = build_pair(tiny(T5Config, 2), tiny(T5Config, 1), plan(), 0.4)
    smallest = torch.finfo(torch.bfloat16).tiny
    for model in (pair.large, pair.small):
        for name, weights in model.named_parameters():
            assert float((weights.abs() > smallest).float().mean()) > 0.999, name


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(BildError, match=r"20 planted outputs need \d+ tokens, but .* only 509"):
        build_pair(tiny(T5Config, 1), tiny(T5Config, 1), plan(20), 0.4)


# Of the published checkpoints. T5's are tied; its planted heads add vocabulary x width.
PARAMETERS = {
    "t5-large/t5-small": (737_668_096, 60_506_624),
    "mt5-large/mt5-small": (1_229_581_312, 300_176_768),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_shapes_are_the_published_ones(pair):
    from transformers import AutoModelForSeq2SeqLM

    for config, published in zip(configs(pair), PARAMETERS[pair], strict=True):
        with torch.device("meta"):
            model = AutoModelForSeq2SeqLM.from_config(config)
        untied = config.vocab_size * config.d_model if config.model_type == "mt5" else 0
        assert model.num_parameters() + untied == published
    with pytest.raises(BildError, match="unknown pair 'a/b'"):
        configs("a/b")
