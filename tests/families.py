"""A tiny random model of each encoder-decoder family of transformers."""

from __future__ import annotations

import torch
import transformers as tf
from tiny import tiny_bart, tiny_bert2bert, tiny_led, tiny_marian, tiny_pegasus, tiny_t5

PAD, EOS, VOCAB = 0, 1, 24
TOKENS = {"pad_token_id": PAD, "eos_token_id": EOS}


def lively(model, seed):
    """Weights that make outputs vary, and no beams that a configuration asks for."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    model.generation_config.num_beams = 1
    return model.eval()


def t5_like(model_class, config_class, seed, **options):
    config = config_class(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2,
        num_heads=2, decoder_start_token_id=PAD, **TOKENS, **options,
    )  # fmt: skip
    return lively(model_class(config), seed)


def bart_like(model_class, config_class, seed, **options):
    config = config_class(
        vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, bos_token_id=2,
        decoder_start_token_id=EOS, forced_eos_token_id=None, **TOKENS, **options,
    )  # fmt: skip
    return lively(model_class(config), seed)


def switch(seed, **options):
    return t5_like(
        tf.SwitchTransformersForConditionalGeneration, tf.SwitchTransformersConfig, seed,
        num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **options,
    )  # fmt: skip


def nllb_moe(seed):
    return bart_like(
        tf.NllbMoeForConditionalGeneration, tf.NllbMoeConfig, seed, num_experts=2,
        encoder_sparse_step=2, decoder_sparse_step=2, router_jitter_noise=0.0,
    )  # fmt: skip


def m2m_100(seed):
    return bart_like(tf.M2M100ForConditionalGeneration, tf.M2M100Config, seed)


def mbart(seed):
    return bart_like(tf.MBartForConditionalGeneration, tf.MBartConfig, seed)


def longt5(seed):
    return t5_like(tf.LongT5ForConditionalGeneration, tf.LongT5Config, seed, local_radius=4)


def t5gemma(seed):
    part = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6,
        "max_position_embeddings": 64,
    }  # fmt: skip
    config = tf.T5GemmaConfig(
        encoder=part, decoder=part, vocab_size=VOCAB, bos_token_id=2, **TOKENS
    )
    config.decoder_start_token_id = 2
    return lively(tf.T5GemmaForConditionalGeneration(config), seed)


def fsmt(seed):
    config = tf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, d_model=16,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        bos_token_id=2, decoder_start_token_id=EOS, forced_eos_token_id=None, **TOKENS,
    )  # fmt: skip
    return lively(tf.FSMTForConditionalGeneration(config), seed)


def prophetnet(seed):
    config = tf.ProphetNetConfig(
        vocab_size=VOCAB, hidden_size=16, num_encoder_layers=2, num_decoder_layers=2,
        num_encoder_attention_heads=2, num_decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, bos_token_id=2,
        decoder_start_token_id=2, **TOKENS,
    )  # fmt: skip
    return lively(tf.ProphetNetForConditionalGeneration(config), seed)


TOGETHER = {
    "t5": tiny_t5,
    "bart": tiny_bart,
    "marian": tiny_marian,
    "pegasus": tiny_pegasus,
    "led": tiny_led,
    "bert2bert": tiny_bert2bert,
    "mbart": mbart,
    "m2m_100": m2m_100,
    "longt5": longt5,
    "t5gemma": t5gemma,
    "switch": switch,
    "nllb-moe": nllb_moe,
}
"""Families whose models take several tokens at once."""

SINGLY = {
    "fsmt": fsmt,
    "prophetnet": prophetnet,
    "switch with little room": lambda seed: switch(seed, expert_capacity=1),
}
"""Those whose models do not."""
