"""What the compiled engine measures of a row of logits, against torch's own of the same row."""

import math

import pytest
import torch
from tiny import tiny_t5

from bild.checkpoints.drafter import make_drafter
from bild.engines import build, make_engine
from bild.engines.base import judge
from bild.engines.measures import spread
from bild.fallback import Entropy, Margin, Product
from bild.policy import DEAR_MEASURES

pytestmark = pytest.mark.skipif(
    build.find_compiler() is None, reason="no C++ compiler on this machine"
)

VOCABULARIES = (2, 5, 16, 17, 61)  # about the width of the engine's vectors
PENDING = [0, 1, 1, 0, 1] * 5  # fed in more than one piece


def reading(model, states=None):
    decoder = make_engine(model, "fast", compile=True).decoder("large")
    decoder.read(torch.tensor([[0, 1, 1, 0, 1]]), None, states)
    return decoder


def model(vocab, scale=1.0):
    made = tiny_t5(3, vocab=vocab, width=32, head_width=16)
    with torch.no_grad():
        made.lm_head.weight *= scale
    return made


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_entropies_and_ranks_are_those_of_torch(vocab, scale):
    decoder = reading(model(vocab, scale))
    logits = decoder.feed(PENDING)[4:]
    drafted = [*range(vocab), *PENDING][: len(logits) - 1]
    expected = judge(logits, logits, drafted, DEAR_MEASURES)
    decoder.rollback_to(0)
    found = decoder.verify(PENDING, drafted, 4, DEAR_MEASURES)
    assert found.entropies == pytest.approx(expected.entropies, rel=1e-4, abs=1e-5)
    assert list(found.ranks) == list(expected.ranks)
    decoder.rollback_to(0)
    assert not decoder.verify(PENDING, drafted, 4).entropies
    decoder.rollback_to(0)
    only = decoder.verify(PENDING, drafted, 4, {"ranks"})
    assert (list(only.entropies), list(only.ranks)) == ([], list(expected.ranks))


def stops(decoder, rule):
    decoder.rollback_to(0)
    return decoder.draft([0, 1], 1, rule).unsure is not None


@pytest.mark.parametrize("shortlist", [None, [0, 1], [0, 1, 3, 4, 9], list(range(40))])
@pytest.mark.parametrize("vocab", [17, 61])
def test_drafts_stop_where_torch_says_that_a_limit_is_passed(vocab, shortlist):
    large = model(vocab, scale=0.3)
    states = reading(large).encoder_outputs
    if shortlist is None:
        decoder = reading(large)
    else:
        known = torch.tensor([token for token in shortlist if token < vocab])
        decoder = reading(make_drafter(large, shortlist=known), states)
    entropy, margin = spread(decoder.feed([0, 1])[-1])
    assert 0.01 < entropy < math.log(vocab)
    assert not stops(decoder, Entropy(entropy * 1.001))
    assert stops(decoder, Entropy(entropy * 0.999))
    assert not stops(decoder, Margin(margin * 0.999))
    assert stops(decoder, Margin(margin * 1.001))


def test_a_product_is_of_the_tokens_of_one_draft():
    decoder = reading(model(17))
    for _ in range(2):  # the second as if there had been no first
        decoder.rollback_to(0)
        free = decoder.draft([0], 8, Product(0)).probabilities
        assert len(free) == 8
        products = [math.prod(free[: n + 1]) for n in range(8)]
        decoder.rollback_to(0)
        draft = decoder.draft([0], 8, Product(products[4] * 1.0001))
        assert products[3] > products[4]
        assert (len(draft.tokens), len(draft.probabilities)) == (4, 5)


def test_equally_likely_tokens_have_no_margin():
    decoder = reading(model(17, scale=0.0))
    assert stops(decoder, Margin(1e-12))
    assert not stops(decoder, Margin(0))
