"""Families whose forward is unlike the others': mixtures of experts, and those fed one by one."""

import pytest
import torch
from tiny import sources, tiny_bart, tiny_t5
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FSMTConfig,
    FSMTForConditionalGeneration,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from bild import BiLDConfig, BiLDModel, bild_generate
from bild.engines.huggingface import feeds_several

LOSSLESS = [BiLDConfig(0.0, 0.0, variant="verified"), BiLDConfig(1.1, 2.0)]


def lively(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return model.eval()


SHAPE = {
    **dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads",), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
    "d_model": 16,
}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 2}


def switch(seed):
    config = SwitchTransformersConfig(
        vocab_size=24, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
        num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    return lively(SwitchTransformersForConditionalGeneration(config), seed)


def nllb_moe(seed):
    config = NllbMoeConfig(
        vocab_size=24, max_position_embeddings=64, num_experts=2, encoder_sparse_step=2,
        decoder_sparse_step=2, **SHAPE, **IDS,
    )  # fmt: skip
    return lively(NllbMoeForConditionalGeneration(config), seed)


def fsmt(seed):
    config = FSMTConfig(
        langs=["de", "en"], src_vocab_size=24, tgt_vocab_size=24, max_position_embeddings=64,
        **SHAPE, **IDS, forced_eos_token_id=None, num_beams=1,
    )  # fmt: skip
    model = lively(FSMTForConditionalGeneration(config), seed)
    model.generation_config.num_beams = 1
    return model


def prophetnet(seed):
    config = ProphetNetConfig(
        vocab_size=24, hidden_size=16, encoder_ffn_dim=32, num_encoder_layers=2,
        num_encoder_attention_heads=2, decoder_ffn_dim=32, num_decoder_layers=2,
        num_decoder_attention_heads=2, max_position_embeddings=64, **IDS,
    )  # fmt: skip
    return lively(ProphetNetForConditionalGeneration(config), seed)


@pytest.mark.parametrize("make", [switch, nllb_moe, fsmt, prophetnet])
@pytest.mark.parametrize("config", LOSSLESS, ids=["verified", "large writes"])
def test_lossless_settings_give_what_transformers_writes(make, config):
    large = make(1)
    pair = BiLDModel(large, make(2))
    drafted = 0
    for source in sources(4, 4, vocab=24):
        own = large.generate(source, max_new_tokens=12, do_sample=False).tolist()
        output = pair.generate(source, bild_config=config, max_new_tokens=12)
        drafted += output.stats.drafted_tokens
        assert output.sequences.tolist() == own
        plugged = large.generate(
            source,
            custom_generate=bild_generate,
            small_model=pair.small,
            bild_config=config,
            max_new_tokens=12,
        )
        assert plugged.tolist() == own
    assert (drafted > 0) == (config.fallback_threshold == 0)


def bert2bert(kind="bert"):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=24, intermediate_size=32, max_position_embeddings=64, **shape)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    model = EncoderDecoderModel(config=config)
    model.config.decoder.model_type = kind
    return model


def test_only_families_that_were_tested_get_several_tokens_at_once():
    assert feeds_several(tiny_t5())
    assert feeds_several(tiny_bart())
    assert feeds_several(bert2bert())
    assert not feeds_several(bert2bert("electra"))
    assert not feeds_several(fsmt(1))
    assert not feeds_several(prophetnet(1))
    model = tiny_t5()
    model.config.model_type = "of tomorrow"
    assert not feeds_several(model)
