"""Heads with weights of their own (T5 1.1, Flan-T5, mT5, UMT5) and heads that are the embedding.

Every configuration of transformers says that they are tied; only the weights tell the two apart.
"""

from __future__ import annotations

import pytest
import torch
from on_engines import ENGINES
from safetensors import safe_open
from tiny import sources, tiny_t5

from bild import BiLDConfig, BiLDModel
from bild.checkpoints.drafter import make_drafter
from bild.checkpoints.early_exit import early_exit
from bild.checkpoints.loading import load_model

HEADS = [
    ("t5", True),
    ("t5", False),
    ("mt5", True),
    ("mt5", False),
    ("umt5", True),
    ("umt5", False),
]
LIMIT = 12


@pytest.fixture(scope="module", params=HEADS, ids=lambda head: f"{head[0]}-{head[1]}")
def folder(request, tmp_path_factory):
    """A model of each kind in a folder; whether its head is tied."""
    kind, tied = request.param
    folder = tmp_path_factory.mktemp("head")
    model = tiny_t5(4, kind=kind, tied=tied, width=32, head_width=16)
    assert (model.lm_head.weight is model.shared.weight) == tied
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) != tied  # noqa: SIM118 (it is no mapping)
    return folder, tied


@pytest.mark.parametrize("options", ENGINES)
def test_a_head_is_read_and_scaled_as_it_is(folder, options):
    path, tied = folder
    large = load_model(path, torch.float32, "cpu")
    assert (large.lm_head.weight is large.shared.weight) == tied
    pair = BiLDModel(large, early_exit(large, 1), **options)
    assert (pair.small.lm_head.weight is pair.small.shared.weight) == tied
    for source in sources(4, 3):
        expected = large.generate(
            source, do_sample=False, max_new_tokens=LIMIT, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        found = pair.greedy(source, max_new_tokens=LIMIT, output_logits=True)
        assert torch.equal(found.sequences, expected.sequences)
        # Not the choice alone: a wrong scale would choose the same tokens, and never be unsure.
        for ours, theirs in zip(found.logits, expected.logits, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-3)
        output = pair.generate(source, bild_config=BiLDConfig(0.3, 0), max_new_tokens=LIMIT)
        assert torch.equal(output.sequences, expected.sequences)


def test_a_drafter_takes_the_head_with_its_scale(folder):
    large, states = load_model(folder[0], torch.float32, "cpu"), []
    drafter = make_drafter(large)
    large.decoder.final_layer_norm.register_forward_hook(lambda *given: states.append(given[-1]))
    start = torch.tensor([[0, 5, 6, 2]])
    with torch.no_grad():
        expected = large(input_ids=sources(4, 1)[0], decoder_input_ids=start).logits
        assert torch.allclose(drafter.head(states[0]), expected, atol=1e-5)
