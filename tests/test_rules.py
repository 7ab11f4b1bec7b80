"""The rules of other papers: what each says, which setting is exact and which the loosest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import EOS, TableDecoder, sure

from bild import BiLDConfig, BildError
from bild.acceptance import Cascade, Ensemble, Exact, Lenient, Regret, TopK, Typical
from bild.engines.base import judge, spread
from bild.fallback import Entropy, Margin, Product
from bild.generation.decoding import Stopping, decode
from bild.policy import FREE_MEASURES, RULES, DistanceRule, Step, Window
from bild.rules import ACCEPTANCE, FALLBACK, acceptance_rule, fallback_rule, rule_text

INF = math.inf
EXACT = (
    *("exact", "bild:threshold=0", "topk:k=1,tolerance=inf", "topk:k=inf,tolerance=0"),
    *("typical:eps=0.51,delta=inf", "lenient:share=1", "regret:budget=0", "ensemble:weight=0"),
    "cascade:alpha=-1",
)
LOOSEST = (
    *("bild:threshold=inf", "topk:k=inf,tolerance=inf", "typical:eps=0", "typical:delta=0"),
    *("lenient:share=0", "regret:budget=inf", "ensemble:weight=1", "cascade:alpha=1"),
)


def window(*tokens, drafted=(5,), **more):
    """A draft that is judged by the distributions `tokens`, {token: probability} each."""
    table = torch.full((len(tokens), 10), -40.0)
    for row, given_ in zip(table, tokens, strict=True):
        for token, p in given_.items():
            row[token] = math.log(p)
    verdict = judge(table, table, list(drafted), {"entropies", "ranks"})
    return replace(verdict.window(list(drafted), more.pop("small", [0.9] * len(tokens))), **more)


HALF = {3: 0.5, 5: 0.3, 7: 0.2}


def test_what_a_rule_is_told():
    w = window(HALF)
    assert w.large_tokens == [3]
    assert w.distances[0] == pytest.approx(-math.log(0.3), abs=1e-5)
    assert w.own_distances[0] == pytest.approx(-math.log(0.5), abs=1e-5)
    entropy = -sum(p * math.log(p) for p in HALF.values())
    assert w.entropies[0] == pytest.approx(entropy, abs=1e-4)
    assert list(w.ranks) == [1]


def test_distances_are_of_raw_scores_and_choices_of_processed_ones():
    raw = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    processed = raw.clone()
    processed[0, 0] = -INF  # banned
    w = judge(processed, raw, [2]).window([2], [0.9])
    assert w.large_tokens == [1]
    assert w.own_distances[0] == pytest.approx(-math.log(0.3), abs=1e-5)
    assert w.distances[0] == pytest.approx(-math.log(0.1), abs=1e-5)


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        (Exact(), False),
        (TopK(2, 0.52), True),  # log(0.5 / 0.3) is 0.511
        (TopK(2, 0.50), False),
        (TopK(1, INF), False),
        (Lenient(0.59), True),  # 0.3 is 0.6 of 0.5
        (Lenient(0.61), False),
        (Typical(0.29, INF), True),
        (Typical(0.31, INF), False),
        (Typical(1, 0.83), True),  # exp(-H) is 0.357
        (Typical(1, 0.85), False),
        (Regret(0.52), True),
        (Regret(0.50), False),
        (Ensemble(0.25), True),  # with c = 0.9: 0.3 * 0.75 + 0.9 * 0.25 > 0.5 * 0.75 + 0.1 * 0.25
        (Ensemble(0.15), False),
        (Cascade(-0.41), False),  # 0.9 >= 0.5 - alpha down to -0.4
        (Cascade(-0.39), True),
    ],
    ids=repr,
)
def test_a_token_that_differs(rule, stays):
    assert rule.first_cut(window(HALF)) == (None if stays else 0)


def test_a_mixture_is_believed_only_where_no_token_could_beat_the_draft():
    """Whatever the small model thinks of the rest, the token that stays is the mixture's own."""
    torch.manual_seed(0)
    stayed = 0
    for _ in range(400):
        large, small = torch.randn(2, 6).mul(1.5).softmax(-1)
        token, weight = int(small.argmax()), float(torch.rand(()))
        verdict = judge(large.log()[None], large.log()[None], [token])
        w = verdict.window([token], [float(small[token])])
        if Ensemble(weight).first_cut(w) is None and verdict.tokens[0] != token:
            stayed += 1
            assert int(((1 - weight) * large + weight * small).argmax()) == token
    assert stayed > 20


def test_a_budget_is_of_the_whole_output():
    two = window(HALF, HALF, drafted=(5, 5))
    each = math.log(0.5 / 0.3)
    assert Regret(2 * each + 0.01).first_cut(two) is None
    assert Regret(2 * each - 0.01).first_cut(two) == 1
    assert Regret(2 * each + 0.01).first_cut(replace(two, spent=each)) == 1
    assert Regret(9).spends(two, 2) == pytest.approx(2 * each, abs=1e-5)
    assert Regret(9).spends(two, 1) == pytest.approx(each, abs=1e-5)
    agreed = window(HALF, drafted=(3,))
    assert Regret(9).spends(agreed, 1) == 0
    assert Regret(each).first_cut(replace(agreed, spent=2 * each)) is None


def run(rule, large_rows, small_rows, limit=8, **config):
    config = BiLDConfig(0.2, acceptance=rule, **config)
    return decode(
        TableDecoder("large", large_rows),
        TableDecoder("small", small_rows),
        [0],
        config,
        Stopping(1 + limit, frozenset({EOS})),
    )


def test_a_budget_is_spent_over_windows_and_not_on_what_is_rolled_back():
    # Each 4 costs log(0.6 / 0.3) = 0.69 nats; each window holds one and then a 9, which nobody
    # could pay. Rolled back, a 9 costs nothing.
    doubt = torch.full((10,), -40.0)
    doubt[3], doubt[4] = math.log(0.6), math.log(0.3)
    sure3 = sure(3, 1 - 1e-6)
    large = [sure3, *[doubt, sure3] * 4]
    small = [sure3, *[sure(4), sure(9)] * 4]
    for budget, fours in ((0.6, 0), (0.7, 1), (1.3, 1), (1.4, 2), (2.8, 4), (10, 4)):
        output, stats = run(f"regret:budget={budget}", large, small)
        assert output.tokens.count(4) == fours, budget
        assert stats.rolled_back_tokens >= 4


def tables(seed):
    """Two models that often, but not always, agree: (rows of the large, rows of the small)."""
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(20, 10, generator=generator) * 2
    return list(large), list(large + torch.randn(20, 10, generator=generator) * 1.5)


@settings(max_examples=40)
@given(
    rule=st.sampled_from(EXACT),
    seed=st.integers(0, 30),
    fallback=st.sampled_from([0.0, 0.2, 0.5]),
    iters=st.sampled_from([1, 3, 10, INF]),
    start=st.sampled_from(["large", "small"]),
)
def test_exact_settings_write_what_the_large_model_writes(rule, seed, fallback, iters, start):
    large, small = tables(seed)
    config = BiLDConfig(fallback, 0, iters, start=start, acceptance=rule)
    assert config.is_lossless
    decoders = TableDecoder("large", large), TableDecoder("small", small)
    output, _ = decode(*decoders, [0], config, Stopping(1 + 12, frozenset({EOS})))
    greedy = [int(row.argmax()) for row in large[:12]]
    greedy = greedy[: greedy.index(EOS) + 1] if EOS in greedy else greedy
    assert output.tokens[1:] == greedy


@pytest.mark.parametrize("rule", EXACT)
def test_exact_settings_do_not_keep_a_token_that_is_as_likely(rule):
    tie = {3: 0.45, 5: 0.45, 7: 0.1}
    assert acceptance_rule(rule).first_cut(window(tie)) == 0


@pytest.mark.parametrize("rule", LOOSEST)
def test_loosest_settings_cut_nothing(rule):
    config = BiLDConfig(0, acceptance=rule)
    assert not config.is_lossless
    for seed in range(5):
        large, small = tables(seed)
        _, stats = run(rule, large, small)
        assert stats.rollbacks == 0
    nearly_banned = window({3: 1 - 1e-30, 5: 1e-30})
    assert config.acceptance_rule.first_cut(nearly_banned) is None


@pytest.mark.parametrize("name", sorted(ACCEPTANCE))
def test_looser_settings_keep_more(name):
    """Over each rule's settings the kept part of a draft grows, and differs."""
    chains = {
        "exact": [Exact()],
        "bild": [DistanceRule(t) for t in (0, 2, 4, INF)],
        "topk": [TopK(k, 5) for k in (1, 2, 4, INF)],
        "typical": [Typical(e, 9) for e in (0.6, 0.3, 0.05, 0)],
        "lenient": [Lenient(s) for s in (1, 0.5, 0.1, 0)],
        "regret": [Regret(b) for b in (0, 1, 4, INF)],
        "ensemble": [Ensemble(w) for w in (0, 0.3, 0.7, 1)],
        "cascade": [Cascade(a) for a in (-1, 0, 0.3, 1)],
    }
    lengths = []
    for rule in chains[name]:
        kept = 0
        for seed in range(20):
            large, small = map(torch.stack, tables(seed))
            drafted = small[:6].argmax(-1).tolist()
            confidences = small[:6].softmax(-1).amax(-1).tolist()
            verdict = judge(large[:6], large[:6], drafted, rule.needs)
            cut = rule.first_cut(verdict.window(drafted, confidences))
            kept += 6 if cut is None else cut
        lengths.append(kept)
    assert lengths == sorted(set(lengths))


# ------------------------------------------------------------------------------ fallback rules


def test_when_drafting_stops():
    step = Step(0.6, 0.3, 1.2, 0.25)
    assert [Product(x).should_stop(step) for x in (0, 0.3, 0.31, 1.1)] == [False, False, True, True]
    assert [Entropy(x).should_stop(step) for x in (0, 1.1, 1.2, INF)] == [True, True, False, False]
    assert [Margin(x).should_stop(step) for x in (0, 0.25, 0.26, 1.1)] == [
        *(False, False),
        *(True, True),
    ]
    assert Product(1.1).never_writes
    assert Margin(1.1).never_writes
    assert not Margin(1).never_writes


def test_what_a_fallback_rule_is_told():
    row = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    entropy, margin = spread(row)
    assert entropy == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.3, 0.2)), abs=1e-5)
    assert margin == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("drafting", "drafted"),
    [("max:threshold=0.69", 4), ("product:least=0.48", 2), ("product:least=0.34", 3)],
)
def test_the_product_is_of_one_draft(drafting, drafted):
    table = [sure(2), *[sure(3, 0.7) for _ in range(4)], sure(EOS)]
    config = BiLDConfig(0.99, INF, drafting=drafting, num_small_iters=4)
    decoders = TableDecoder("large", table), TableDecoder("small", table)
    _, stats = decode(*decoders, [0], config, Stopping(1 + 1 + drafted, frozenset({EOS})))
    assert stats.drafted_tokens == drafted
    assert stats.fallbacks == 0
    longer = TableDecoder("large", table), TableDecoder("small", table)
    _, stats = decode(*longer, [0], config, Stopping(9, frozenset({EOS})))
    assert (stats.fallbacks > 0) == (drafted < 4)


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", [*ACCEPTANCE, *FALLBACK])
def test_every_rule_has_a_text_and_documents_its_source(name):
    rule = acceptance_rule(name) if name in ACCEPTANCE else fallback_rule(name)
    parse = acceptance_rule if name in ACCEPTANCE else fallback_rule
    assert parse(rule_text(rule)) == rule
    assert name in ("bild", "max") or "Source: " in type(rule).__doc__


def test_a_configuration_holds_a_rule_as_its_whole_text():
    config = BiLDConfig(acceptance="typical", drafting="entropy")
    assert config.acceptance == "typical:eps=0.3,delta=0.09"
    assert config == BiLDConfig(acceptance=Typical(0.3, 0.09), drafting=Entropy(1.0))
    assert config.acceptance_rule == Typical(0.3, 0.09)
    assert config.fallback_rule == Entropy(1.0)
    assert BiLDConfig.from_dict(config.to_dict()) == config
    assert BiLDConfig(acceptance="lenient:share=0.1").acceptance == "lenient:share=0.1"
    assert BiLDConfig(acceptance=Regret(1 / 3)).acceptance_rule == Regret(1 / 3)
    assert config.described == "fallback entropy:limit=1, acceptance typical:eps=0.3,delta=0.09"
    assert BiLDConfig().described == "fallback 0.6, rollback 2, verified rules"
    assert BiLDConfig(0.6, drafting="margin:least=1.1").is_lossless


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("typcal", "acceptance rule must be one of exact, bild, topk, typical, lenient, regret, "),
        ("typical:mu=1", "has the settings eps, delta, each given once as name=number, got 'mu=1'"),
        ("typical:eps=0.1,eps=0.2", "got 'eps=0.2'"),
        ("exact:x=1", "has the settings (none)"),
        ("lenient:share=half", "share must be a number, got 'half'"),
        ("lenient:share=1.5", "lenient: share must be a number from 0 to 1, got 1.5"),
        ("lenient:share=nan", "got nan"),
        ("topk:k=1.5", "topk: k must be a whole number from 1 to inf, got 1.5"),
        ("bild:threshold=-1", "bild: threshold must be a number from 0 to inf, got -1"),
        (DistanceRule(2, first_far_only=True), "has no name"),
        (RULES["authors"](2.0), "has no name"),
    ],
)
def test_rules_that_do_not_exist_are_refused(rule, said):
    with pytest.raises(BildError) as error:
        BiLDConfig(acceptance=rule)
    assert said in str(error.value)


def test_fallback_rules_that_do_not_exist_are_refused():
    with pytest.raises(BildError, match="fallback rule must be one of max, entropy, margin, pro"):
        BiLDConfig(drafting="typical")


def test_most_rules_need_nothing_that_the_fast_engine_does_not_tell_anyway():
    dear = {n for n in ACCEPTANCE if not acceptance_rule(n).needs <= FREE_MEASURES}
    assert dear == {"topk", "typical"}


def test_a_part_of_a_window_is_a_window():
    w = Window([1, 2], [3, 4, 5], [0.1, 0.2], [0.3, 0.4], [0.5, 0.6], 0.7, [0.8, 0.9], [1, 2])
    assert w.part(1, 2) == Window([2], [4], [0.2], [0.4], [0.6], 0.7, [0.9], [2])
    assert Window([1], [3], [0.1], [0.3], [0.5]).part(0, 1).ranks == ()
