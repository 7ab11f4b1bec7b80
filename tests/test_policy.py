import math

import pytest
import torch
from tables import distance, sure

from bild import policy


def test_top_token_is_argmax_with_its_softmax_probability():
    scores = torch.tensor([0.0, 2.0, 1.0])
    token, probability = policy.top_token(scores)
    assert token == 1
    assert probability == pytest.approx(math.exp(2) / (1 + math.exp(2) + math.exp(1)), rel=1e-6)


def test_top_token_ignores_banned_tokens_and_passes_nan_on():
    token, probability = policy.top_token(torch.tensor([-math.inf, 1.0, -math.inf]))
    assert (token, probability) == (1, 1.0)
    assert math.isnan(policy.top_token(torch.tensor([0.0, math.nan]))[1])


def test_fallback_is_strict():
    assert policy.should_fall_back(0.59, 0.6)
    assert not policy.should_fall_back(0.6, 0.6)
    assert not policy.should_fall_back(0.0, 0.0)
    assert policy.should_fall_back(1.0, 1.1)


def rollback(rows, drafted, threshold, variant):
    logits = torch.stack(rows)
    distances = policy.distances(logits, torch.tensor(drafted)).tolist()
    return policy.first_rollback(distances, logits.argmax(-1).tolist(), drafted, threshold, variant)


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
