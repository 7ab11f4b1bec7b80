"""A drafter's checkpoint: whose it is, what it is made from, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_t5
from toy import save_tokenizer

from bild import BildError, BiLDModel
from bild.checkpoints.drafter import BiLDDrafter, check_large, make_drafter, spread
from bild.checkpoints.loading import load_model
from bild.checkpoints.vocabulary import output_rows, shared_vocab_size

SHORTLIST = torch.tensor([1, 3, 4, 8, 9, 15])


def test_a_drafter_is_saved_and_loaded_like_any_checkpoint(tmp_path):
    drafter = make_drafter(tiny_t5(1), shortlist=SHORTLIST)
    drafter.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), torch.float32, "cpu")
    assert type(loaded) is BiLDDrafter
    assert loaded.shortlist.tolist() == SHORTLIST.tolist()
    for name, value in drafter.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_it_begins_as_the_large_models_last_layers(kind):
    """With all the layers it IS the large model, where positions are only the first layer's."""
    large = tiny_t5(2, kind=kind, decoder_layers=1)
    drafter = make_drafter(large)
    states = large.get_encoder()(torch.tensor([[5, 6, 7, 1]]))
    given = {"encoder_outputs": states, "decoder_input_ids": torch.tensor([[0, 4, 9]])}
    assert torch.allclose(drafter(**given).logits, large(**given).logits, atol=1e-5)


def test_its_feed_forward_may_be_wider_and_begins_with_the_same_outputs():
    large = tiny_t5(2, decoder_layers=1)
    states = large.get_encoder()(torch.tensor([[5, 6, 7, 1]]))
    given = {"encoder_outputs": states, "decoder_input_ids": torch.tensor([[0, 4, 9]])}
    wider = make_drafter(large, feed_width=64)
    assert wider.config.d_ff == 64
    assert torch.allclose(wider(**given).logits, large(**given).logits, atol=1e-5)


def test_tokens_beyond_the_shortlist_have_no_chance():
    scores = torch.tensor([[0.5, 1.5]])
    assert spread(scores, torch.tensor([1, 3]), 5).tolist() == [
        [-torch.inf, 0.5, -torch.inf, 1.5, -torch.inf]
    ]


def test_it_counts_as_scoring_the_large_models_whole_vocabulary():
    large = tiny_t5(1)
    drafter = make_drafter(large, shortlist=SHORTLIST)
    assert output_rows(drafter) == 16
    assert shared_vocab_size(large, drafter) == 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_large_model_is_known_in_any_precision(dtype):
    check_large(make_drafter(tiny_t5(1)), tiny_t5(1).to(dtype))


def test_another_large_model_is_refused():
    drafter = make_drafter(tiny_t5(1))
    with pytest.raises(BildError, match="trained for another large model"):
        BiLDModel(tiny_t5(2), drafter)
    with pytest.raises(BildError, match="trained for another large model"):
        BiLDModel(tiny_t5(1, noise=0.01), drafter)
    with pytest.raises(BildError, match="of width 16, but the large model's is 32"):
        BiLDModel(tiny_t5(1, width=32), drafter)


def test_more_layers_than_the_large_model_has_are_refused():
    with pytest.raises(BildError, match="1 to 2 layers beside this large model, got 3"):
        make_drafter(tiny_t5(1), layers=3)


def test_a_folder_with_another_shortlist_than_its_config_says_is_refused(tmp_path):
    drafter = make_drafter(tiny_t5(1), shortlist=SHORTLIST)
    drafter.config.head_rows = 5
    drafter.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(BildError, match=r"lm_head|head_ids"):
        load_model(str(tmp_path), torch.float32, "cpu")
