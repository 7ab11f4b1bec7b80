"""What is read off a row of logits, and the one drafting loop."""

import math

import pytest
import torch
from tables import EOS, TableDecoder, rows, sure
from tiny import sources, tiny_t5

from bild.engines import draft_tokens, make_engine
from bild.engines.base import top_token
from bild.policy import NEVER_STOPS, FallbackRule, MaxProbability


def test_top_token_is_argmax_with_its_softmax_probability():
    scores = torch.tensor([0.0, 2.0, 1.0])
    token, probability = top_token(scores)
    assert token == 1
    assert probability == pytest.approx(math.exp(2) / (1 + math.exp(2) + math.exp(1)), rel=1e-6)


def test_top_token_ignores_banned_tokens_and_passes_nan_on():
    token, probability = top_token(torch.tensor([-math.inf, 1.0, -math.inf]))
    assert (token, probability) == (1, 1.0)
    assert math.isnan(top_token(torch.tensor([0.0, math.nan]))[1])


def test_a_draft_ends_where_its_rule_says():
    table = [sure(2), sure(3), sure(4, 0.5), sure(EOS)]
    decoder = TableDecoder("small", table)
    draft = decoder.draft([0], 10, MaxProbability(0.6))
    assert (draft.tokens, draft.unsure, len(draft.probabilities)) == ([2, 3], 4, 3)
    decoder.begin(None, None)
    assert decoder.draft([0], 10, NEVER_STOPS, {EOS}).tokens == [2, 3, 4, EOS]


def test_a_draft_ends_by_a_rule_that_nobody_knows():
    class EverySecond(FallbackRule):
        def __init__(self):
            self.asked = []

        def should_stop(self, step):
            self.asked.append(step.probability)
            return len(self.asked) == 3

    rule = EverySecond()
    draft = TableDecoder("small", rows(2, 3, 4, 5)).draft([0], 4, rule)
    assert (draft.tokens, draft.unsure) == ([2, 3], 4)
    assert draft.probabilities == rule.asked


def test_a_draft_reads_what_is_made_of_the_logits():
    decoder = TableDecoder("small", rows(2, 3, 4))
    written = []
    draft = draft_tokens(
        decoder.feed,
        [0],
        3,
        MaxProbability(0.5),
        ends=lambda token: written.append(token) or len(written) == 2,
        process=lambda raw: raw.roll(1),
    )
    assert (draft.tokens, written) == ([3, 4], [3, 4])


@pytest.mark.parametrize("engine", ["fast", "transformers"])
def test_engines_ask_a_rule_that_they_do_not_know(engine):
    class StopAtEvenCalls(FallbackRule):
        calls = 0

        def should_stop(self, step):
            self.calls += 1
            return self.calls % 2 == 0

    model = tiny_t5(3)
    rule = StopAtEvenCalls()
    decoder = make_engine(model, engine).decoder("small")
    (source,) = sources(3, 1)
    decoder.begin(decoder.encode(source, None), None)
    first = decoder.draft([0], 5, rule)
    assert (len(first.tokens), rule.calls) == (1, 2)
    assert first.unsure is not None
