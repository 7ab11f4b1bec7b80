"""The two decisions as pure functions, and a rule of one's own."""

import math
from dataclasses import dataclass

import pytest
import torch
from tables import EOS, TableDecoder, distance, rows, sure

from bild import BiLDConfig, BildError
from bild.engines.base import distances_from
from bild.generation.decoding import Stopping, decode
from bild.policy import RULES, AcceptanceRule, DistanceRule, MaxProbability, Step, Window


def test_fallback_is_strict():
    assert MaxProbability(0.6).should_stop(Step(0.59, 0.59))
    assert not MaxProbability(0.6).should_stop(Step(0.6, 0.6))
    assert not MaxProbability(0.0).should_stop(Step(0.0, 0.0))
    assert MaxProbability(1.1).should_stop(Step(1.0, 1.0))


def cut(rule, distances, large_tokens, drafted):
    unread = [math.nan] * len(drafted)
    return rule.first_cut(Window(drafted, large_tokens, distances, unread, unread))


def rollback(rows, drafted, threshold, variant):
    logits = torch.stack(rows)
    distances = distances_from(logits, torch.tensor(drafted)).tolist()
    return cut(RULES[variant](threshold), distances, logits.argmax(-1).tolist(), drafted)


@pytest.mark.parametrize("variant", ["authors", "paper", "verified"])
def test_rollback_needs_distance_and_another_argmax(variant):
    rows = [sure(3), sure(4), sure(5)]
    assert rollback(rows, [3, 4, 5], 0.0, variant) is None  # far (p < 1), but agreed everywhere
    far = distance(rows[1], 7)
    assert rollback(rows, [3, 7, 5], far + 1e-3, variant) is None
    assert rollback(rows, [3, 7, 5], far - 1e-3, variant) == 1
    assert rollback(rows, [3, 7, 5], math.inf, variant) is None


def test_rollback_takes_the_earliest():
    assert rollback([sure(3), sure(4), sure(5)], [8, 8, 8], 1.0, "paper") == 0
    assert rollback([sure(3), sure(4), sure(5)], [8, 8, 8], 1.0, "authors") == 0


def test_authors_look_only_at_the_first_far_position():
    # Position 0: over the threshold of 0.5 although it is the large model's own favourite.
    rows = [sure(3, 0.5), sure(4)]
    assert distance(rows[0], 3) > 0.5
    assert rollback(rows, [3, 9], 0.5, "authors") is None
    assert rollback(rows, [3, 9], 0.5, "paper") == 1


def test_distance_is_strict_and_infinite_logits_do_not_pass_an_infinite_threshold():
    row = torch.zeros(2)
    row[0] = math.log(3)  # p = (3/4, 1/4)
    exact = float(torch.tensor([math.log(3), 0.0]).logsumexp(-1))
    assert rollback([row], [1], exact, "paper") is None
    banned = torch.tensor([0.0, -math.inf])
    assert rollback([banned], [1], math.inf, "paper") is None
    assert rollback([banned], [1], 100.0, "paper") == 0


def test_lossless_is_what_the_rules_say():
    for variant, rollback_threshold in (("verified", 0.7), ("paper", 0), ("authors", 0)):
        assert not BiLDConfig(0.6, rollback_threshold, variant=variant).is_lossless
    assert BiLDConfig(0.6, 0, variant="verified").is_lossless
    assert BiLDConfig(0.6, 0.69, variant="verified").is_lossless  # below log 2
    for variant in RULES:
        assert BiLDConfig(1.1, 5, variant=variant).is_lossless
        assert not BiLDConfig(1.0, 5, variant=variant).is_lossless


def test_a_draft_is_judged_alike_below_the_next_distance():
    distances, large, drafted = [0.5, 2.0, 3.5], [8, 4, 7], [3, 4, 5]
    for variant in RULES:
        rule = RULES[variant](1.0)
        assert rule.same_below(distances) == 2.0
        answers = [cut(RULES[variant](t), distances, large, drafted) for t in (1.0, 1.9, 2.0)]
        assert answers[0] == answers[1]
        assert RULES[variant](3.5).same_below(distances) == math.inf
    # By these the agreed position 1 hides position 2, until the threshold reaches it.
    assert cut(RULES["authors"](1.9), distances, large, drafted) is None
    assert cut(RULES["authors"](2.0), distances, large, drafted) == 2


@pytest.fixture
def own_rule(monkeypatch):
    """A rule of one's own: one class, one entry, and no other file knows of it."""

    @dataclass(frozen=True)
    class SumOfDistances(AcceptanceRule):
        """Cut where the distances add up to more than a threshold, whoever agrees."""

        threshold: float

        def first_cut(self, window):
            total = 0.0
            for i, far in enumerate(window.distances):
                total += far
                if total > self.threshold:
                    return i
            return None

    monkeypatch.setitem(RULES, "sum", SumOfDistances)
    return SumOfDistances


def test_a_rule_of_ones_own_is_one_class(own_rule):
    config = BiLDConfig(0.2, 1.0, variant="sum")
    assert BiLDConfig.from_dict(config.to_dict()) == config
    assert config.acceptance_rule == own_rule(1.0)
    assert not config.is_lossless

    # The large model gives each drafted token 0.5, so 0.69 nats; the second passes 1 nat.
    large = [sure(2), *(sure(3, 0.5) for _ in range(4)), sure(EOS)]
    small = [sure(9), *(sure(3) for _ in range(4)), sure(EOS)]
    decoders = TableDecoder("large", large), TableDecoder("small", small)
    stopping = Stopping(1 + 8, frozenset({EOS}))
    output, stats = decode(*decoders, [0], config, stopping)
    assert output.tokens[1:] == [2, 3, 3, 3, 3, EOS]
    assert stats.rollbacks == 2
    _, usual = decode(
        TableDecoder("large", large),
        TableDecoder("small", small),
        [0],
        BiLDConfig(0.2, 1.0),
        stopping,
    )
    assert usual.rollbacks == 0


def test_a_rule_that_needs_what_nobody_measures_is_refused(monkeypatch):
    @dataclass(frozen=True)
    class Curiosity(DistanceRule):
        needs = frozenset({"distances", "curiosities"})

    monkeypatch.setitem(RULES, "curious", Curiosity)
    table = rows(2, 3, EOS)
    with pytest.raises(BildError, match="Curiosity needs 'curiosities' of a draft"):
        decode(
            TableDecoder("large", table),
            TableDecoder("small", table),
            [0],
            BiLDConfig(variant="curious"),
            Stopping(5, frozenset({EOS})),
        )
