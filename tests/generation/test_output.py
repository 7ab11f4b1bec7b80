"""What `generate` returns is the dictionary of its fields, as transformers' own outputs are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils import _pytree
from transformers.generation import GenerateEncoderDecoderOutput

from bild import BiLDOutput, DecodeStats

SEQUENCES = torch.tensor([[0, 5, 1]])
SCORES = (torch.zeros(1, 3), torch.ones(1, 3))


@pytest.mark.parametrize("fields", [{}, {"scores": SCORES}, {"scores": SCORES, "logits": SCORES}])
def test_it_holds_what_transformers_own_holds_in_its_order(fields):
    theirs = GenerateEncoderDecoderOutput(sequences=SEQUENCES, **fields)
    ours = BiLDOutput(sequences=SEQUENCES, **fields)
    assert list(ours) == list(theirs)
    assert ours.to_tuple() == theirs.to_tuple()
    more = BiLDOutput(sequences=SEQUENCES, **fields, stats=DecodeStats(), encoder_seconds=0.0)
    assert list(more) == [*theirs, "stats", "encoder_seconds"]
    assert more["stats"] == more.stats == DecodeStats()
    assert more.trace is None
    assert "trace" not in more


def test_it_may_be_made_of_a_dictionary_as_transformers_own():
    given = {"sequences": SEQUENCES, "scores": SCORES}
    ours, theirs = BiLDOutput(given), GenerateEncoderDecoderOutput(given)
    assert list(ours) == list(theirs) == ["sequences", "scores"]
    assert ours.sequences is SEQUENCES


def test_copies_and_pytrees_are_whole():
    output = BiLDOutput(sequences=SEQUENCES, scores=SCORES, encoder_seconds=0.5)
    leaves, spec = _pytree.tree_flatten(output)
    for other in (
        copy.deepcopy(output),
        pickle.loads(pickle.dumps(output)),
        _pytree.tree_unflatten(leaves, spec),
    ):
        assert list(other) == ["sequences", "scores", "encoder_seconds"]
        assert torch.equal(other.sequences, SEQUENCES)
        assert other.encoder_seconds == 0.5
