"""Whole rounds in one call of the engine write and count what the loops in Python do."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS, sources, tiny_t5
from transformers.generation import MaxTimeCriteria, StoppingCriteriaList

from bild import BiLDConfig, BildError, BiLDModel
from bild.checkpoints.drafter import BiLDDrafter, make_drafter
from bild.engines import t5_rules
from bild.engines.build import find_compiler
from bild.engines.t5_batch import NativeCompany
from bild.engines.t5_rounds import LONGEST, NativeRounds
from bild.fallback import Adaptive
from bild.generation.decoding import Stopping, decode
from bild.generation.lookahead import decode_ahead
from bild.generation.pace import Experience
from bild.generation.prices import Prices
from bild.generation.rounds import AT_A_TIME, decode_rounds, make_rounds, round_rules
from bild.generation.source import Source
from bild.policy import RULES, DistanceRule, MaxProbability
from bild.rules import ACCEPTANCE as ACCEPTANCE_RULES
from bild.rules import FALLBACK

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")

SHORTLIST = torch.tensor([1, 3, 4, 5, 8, 9, 11, 15])


@cache
def tiny_pair(seed=0, noise=0.3, precision="float32", drafts=False):
    large = tiny_t5(seed, width=32, head_width=16)
    if drafts:
        small = make_drafter(large, shortlist=SHORTLIST)
    else:
        small = tiny_t5(seed, width=32, head_width=16, noise=noise)
    return BiLDModel(large, small, engine="fast", compile=True, precision=precision)


@contextmanager
def reading(pair, source):
    own = Source(source)
    with pair.models["large"].reading(own) as large:
        states = large.encoder_outputs if isinstance(pair.small, BiLDDrafter) else None
        with pair.models["small"].reading(own, states) as small:
            yield large, small


def in_one_call(pair, source, config, stopping, prompt=(0,), at_a_time=16, on_commit=None):
    with reading(pair, source) as (large, small):
        rounds = make_rounds(large, small, prompt, config, stopping)
        assert rounds is not None
        output, stats = decode_rounds(rounds, prompt, config, Prices(), on_commit, at_a_time)
        return output.tokens, stats, large.length, small.length


def by_the_loop(pair, source, config, stopping, prompt=(0,), on_commit=None):
    with reading(pair, source) as (large, small):
        if config.lookahead:
            arguments = large, small, prompt, config, stopping, Prices(), on_commit
            output, stats = decode_ahead(*arguments)
        else:
            output, stats = decode(large, small, prompt, config, stopping, on_commit=on_commit)
        return output.tokens, stats, large.length, small.length


# Settings on both sides of what random models say, and those that are exact.
ACCEPTANCE = (
    *(
        "exact",
        "bild:threshold=0.5",
        "topk:k=1",
        "topk:k=2,tolerance=2",
        "topk:k=inf,tolerance=0.3",
    ),
    *("topk:k=4,tolerance=inf", "topk:k=3,tolerance=0", "typical:eps=0.1,delta=0.3"),
    *("typical:eps=0.3,delta=0.9", "typical:eps=0.6,delta=inf", "typical:eps=0,delta=1"),
    *("lenient:share=0", "lenient:share=0.2", "lenient:share=0.7", "lenient:share=1"),
    *("regret:budget=0", "regret:budget=0.8", "regret:budget=5", "regret:budget=inf"),
    *("ensemble:weight=0", "ensemble:weight=0.4", "ensemble:weight=0.7", "ensemble:weight=1"),
    *("cascade:alpha=-1", "cascade:alpha=-0.1", "cascade:alpha=0.1", "cascade:alpha=1"),
)
ACCEPTS_ALL = {
    *("typical:eps=0,delta=1", "lenient:share=0", "regret:budget=inf"),
    *("ensemble:weight=1", "cascade:alpha=1"),
}
DRAFTING = (
    *("max:threshold=0.3", "entropy:limit=0", "entropy:limit=1.2", "entropy:limit=2"),
    *("entropy:limit=inf", "margin:least=0", "margin:least=0.1", "margin:least=0.5"),
    *("margin:least=1.1", "product:least=0.02", "product:least=0.3", "product:least=1.1"),
)
configs = st.builds(
    BiLDConfig,
    fallback_threshold=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.1]),
    rollback_threshold=st.sampled_from([0.0, 0.3, 0.69, 1.0, 3.0, math.inf]),
    num_small_iters=st.sampled_from([0, 1, 3, 10, math.inf]),
    variant=st.sampled_from(sorted(RULES)),
    start=st.sampled_from(["large", "small"]),
    lookahead=st.sampled_from([0, 1, 2, math.inf]),
    acceptance=st.none() | st.sampled_from(ACCEPTANCE),
    drafting=st.none() | st.sampled_from(DRAFTING),
)


@settings(max_examples=120)
@given(
    config=configs,
    seed=st.integers(0, 5),
    noise=st.sampled_from([0.05, 0.3, 1.0]),
    precision=st.sampled_from(["float32", "bfloat16", "int8"]),
    drafts=st.booleans(),
    limit=st.integers(0, 24),
    prompt=st.sampled_from([(0,), (0, 5), (0, 7, 3)]),
    ends=st.sampled_from([(EOS,), (EOS, 4, 9), ()]),
    at_a_time=st.sampled_from([1, 2, 5, 16]),
)
def test_rounds_are_those_of_the_loop(
    config, seed, noise, precision, drafts, limit, prompt, ends, at_a_time
):
    pair = tiny_pair(seed, noise, precision, drafts)
    stopping = Stopping(len(prompt) + limit, frozenset(ends))
    for source in sources(seed, 2):
        expected = by_the_loop(pair, source, config, stopping, prompt)
        assert in_one_call(pair, source, config, stopping, prompt, at_a_time) == expected


@settings(max_examples=30)
@given(config=configs, seed=st.integers(0, 5), limit=st.integers(0, 20))
def test_tokens_are_told_of_round_by_round(config, seed, limit):
    pair, (source,) = tiny_pair(seed), sources(seed, 1)
    stopping = Stopping(1 + limit, frozenset({EOS}))
    told, expected = [], []
    found = in_one_call(pair, source, config, stopping, on_commit=told.append)
    assert found == by_the_loop(pair, source, config, stopping, on_commit=expected.append)
    assert told == expected


def test_memory_grows_with_an_output():
    pair, (source,) = tiny_pair(2), sources(2, 1)
    for lookahead in (0, 2, math.inf):
        config = BiLDConfig(0.3, 1.0, lookahead=lookahead)
        stopping = Stopping(400)
        found = in_one_call(pair, source, config, stopping)
        assert found == by_the_loop(pair, source, config, stopping)
        assert len(found[0]) == 400


def test_as_long_as_it_pays_the_output_is_the_same_and_prices_are_learned():
    pair, prices = tiny_pair(3), Prices()
    config, stopping = BiLDConfig(0.3, 1.0, lookahead="auto"), Stopping(60)
    for source in sources(3, 3):
        with reading(pair, source) as (large, small):
            rounds = make_rounds(large, small, [0], config, stopping)
            output, stats = decode_rounds(rounds, [0], config, prices)
        plain = by_the_loop(pair, source, BiLDConfig(0.3, 1.0), stopping)
        assert output.tokens == plain[0]
        assert stats.guesses >= stats.guesses_held
    assert prices.seen >= 4
    assert prices.small > 0
    assert prices.large > 0


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("damaged", ["large", "small"])
@pytest.mark.parametrize("lookahead", [0, 2])
@pytest.mark.parametrize("start", ["large", "small"])
def test_damage_is_reported_where_it_is(drafts, damaged, lookahead, start):
    """Scores become NaN in the middle of an output: by a position that has no other effect."""
    pair = BiLDModel(*damaged_pair(damaged, drafts), engine="fast", compile=True)
    (source,) = sources(1, 1)
    config, stopping = BiLDConfig(0.2, 1.0, 3, start=start, lookahead=lookahead), Stopping(200)
    messages = []
    for decode_ in (in_one_call, by_the_loop):
        with pytest.raises(BildError, match=f"the {damaged} model's scores are NaN") as error:
            decode_(pair, source, config, stopping)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def damaged_pair(which, drafts):
    large = tiny_t5(1, width=32, head_width=16)
    small = make_drafter(large) if drafts else tiny_t5(1, width=32, head_width=16, noise=0.3)
    model = large if which == "large" else small
    attention = model.get_decoder().block[0].layer[0].SelfAttention
    with torch.no_grad():  # of the farthest keys
        attention.relative_attention_bias.weight[31].fill_(math.nan)
    return large, small


@pytest.mark.parametrize("acceptance", ACCEPTANCE)
def test_every_rule_is_that_of_the_loop(acceptance):
    """What is drawn above is here gone through: each acceptance rule by each way of drafting."""
    rollbacks, stopping = 0, Stopping(14, frozenset({EOS}))
    for number, drafting in enumerate(DRAFTING):
        pair, (source,) = tiny_pair(number % 3, 1.0, drafts=number % 5 == 4), sources(number, 1)
        for lookahead in (0, 1):
            config = BiLDConfig(acceptance=acceptance, drafting=drafting, lookahead=lookahead)
            found = in_one_call(pair, source, config, stopping)
            assert found == by_the_loop(pair, source, config, stopping)
            rollbacks += found[1].rollbacks
    assert (rollbacks == 0) == (acceptance in ACCEPTS_ALL)


def test_a_rule_of_the_clock_is_left_to_the_loop():
    assert not round_rules(BiLDConfig(drafting="adaptive")).are_native
    assert {kind for kind in FALLBACK.values() if kind is not Adaptive} == set(t5_rules.FALLBACKS)
    assert set(ACCEPTANCE_RULES.values()) == set(t5_rules.ACCEPTANCES)


@dataclass(frozen=True)
class Bolder(MaxProbability):
    def should_stop(self, step):
        return False


@dataclass(frozen=True)
class Milder(DistanceRule):
    def first_cut(self, window):
        return None


def test_a_class_made_of_a_known_rule_is_left_to_the_loop(monkeypatch):
    monkeypatch.setitem(FALLBACK, "bolder", Bolder)
    monkeypatch.setitem(RULES, "milder", Milder)
    assert round_rules(BiLDConfig()).are_native
    assert not round_rules(BiLDConfig(drafting="bolder")).are_native
    assert not round_rules(BiLDConfig(variant="milder")).are_native


class Counted:
    """How often rounds were asked for in one call."""

    def __init__(self, monkeypatch):
        self.calls = 0
        run = NativeRounds.run

        def counted(rounds, *arguments):
            self.calls += 1
            return run(rounds, *arguments)

        monkeypatch.setattr(NativeRounds, "run", counted)


KEPT_FROM = {
    "trace": {"output_trace": True},
    "scores": {"output_scores": True},
    "processors": {"no_repeat_ngram_size": 2},
    "criteria": {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(9999.0)])},
    "copying": {"bild_config": BiLDConfig(copying="first")},
}


@pytest.mark.parametrize("case", KEPT_FROM)
def test_where_something_looks_in_between_the_loop_decodes(case, monkeypatch):
    pair, (source,), counted = tiny_pair(3), sources(3, 1), Counted(monkeypatch)
    options = {"bild_config": BiLDConfig(0.3, 1.0), "max_new_tokens": 8}
    pair.generate(source, **options)
    assert counted.calls == 1
    pair.generate(source, **{**options, **KEPT_FROM[case]})
    assert counted.calls == 1


def test_rows_of_a_batch_make_their_rounds_in_one_call(monkeypatch):
    pair, together = tiny_pair(3), []
    made = NativeCompany.rounds
    monkeypatch.setattr(
        NativeCompany,
        "rounds",
        lambda self, asked: together.append(len(asked)) or made(self, asked),
    )
    source = torch.tensor([[3, 4, 5, 1], [7, 6, 2, 1], [8, 2, 5, 1]])
    pair.generate(source, bild_config=BiLDConfig(0.3, 1.0), max_new_tokens=30)
    assert together[0] == 3
    # Rows are asked again when another has ended or enough is written, never between two rounds.
    assert len(together) <= 3 * (1 + 30 // AT_A_TIME)


def test_rounds_of_many_rows_take_several_forwards_where_memory_is_bounded(monkeypatch):
    pair, rows = tiny_pair(3), sources(3, 7)
    settings = {"bild_config": BiLDConfig(0.3, 1.0, lookahead=1), "max_new_tokens": 30}
    alone = [pair.generate(row, **settings) for row in rows]
    monkeypatch.setattr("bild.engines.t5_batch.FORWARD", 1)
    found = list(pair.generate_many(rows, batch_size=7, **settings))
    assert [o.sequences.tolist() for o in found] == [o.sequences.tolist() for o in alone]
    assert [o.stats for o in found] == [o.stats for o in alone]


def test_pairs_that_cannot_are_left_to_the_loop():
    config, stopping, (source,) = BiLDConfig(0.3, 1.0), Stopping(20), sources(3, 1)
    large, small = (tiny_t5(3, width=32, head_width=16) for _ in "ls")
    for options in ({"engine": "transformers"}, {"engine": "fast", "compile": False}):
        with reading(BiLDModel(large, small, **options), source) as decoders:
            assert make_rounds(*decoders, [0], config, stopping) is None
    with reading(BiLDModel(large, small, engine="fast", compile=True), source) as (first, second):
        assert make_rounds(first, second, [0], config, stopping) is not None
        # A round without a limit could need any amount of memory.
        unlimited = BiLDConfig(0.3, 1.0, lookahead=math.inf)
        assert make_rounds(first, second, [0], unlimited, Stopping(1 + LONGEST)) is not None
        assert make_rounds(first, second, [0], unlimited, Stopping(2 + LONGEST)) is None
        second.vocab_size -= 1
        assert make_rounds(first, second, [0], config, stopping) is None


def test_a_token_that_no_model_knows_is_refused_as_by_the_loop():
    pair, (source,) = tiny_pair(3), sources(3, 1)
    messages = []
    for decode_ in (in_one_call, by_the_loop):
        with pytest.raises(BildError) as error:
            decode_(pair, source, BiLDConfig(0.3, 1.0), Stopping(20), (0, 99))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_what_a_pair_has_learned_of_prices_outlives_an_output():
    pair, (source,) = tiny_pair(3), sources(3, 1)
    pair._experience = Experience()
    config = BiLDConfig(0.3, 1.0, lookahead="auto")
    pair.generate(source, bild_config=config, max_new_tokens=8)
    assert pair._experience.prices.seen > 0
