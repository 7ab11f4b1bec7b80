"""Models small enough to read: random T5s and relatives with lively, varied outputs."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LEDConfig,
    LEDForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

EOS, PAD = 1, 0


def tiny_t5(
    seed=0,
    *,
    layers=2,
    decoder_layers=2,
    vocab=16,
    kind="t5",
    noise=0.0,
    width=16,
    head_width=8,
    tied=False,
):
    """A random T5 whose outputs vary: the head is scaled up so that it is sure now and then.

    `noise` mixes other weights in, so that two models of one seed agree often but not always.
    The head is untied by default: a random tied model mostly repeats its last token.
    """
    config_class, model_class = {
        "t5": (T5Config, T5ForConditionalGeneration),
        "mt5": (MT5Config, MT5ForConditionalGeneration),
        "umt5": (UMT5Config, UMT5ForConditionalGeneration),
    }[kind]
    gated = kind != "t5"
    config = config_class(
        vocab_size=vocab,
        d_model=width,
        d_kv=head_width,
        num_heads=2,
        d_ff=32,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=tied,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    torch.manual_seed(seed)
    model = model_class(config)
    if not tied:
        untie(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                continue
            scale = 2.0 * width**-0.5
            if "shared" in name or "lm_head" in name:
                scale = 1.0
            elif "relative_attention_bias" in name:
                scale = 4.0  # where a token stands matters: outputs do not run in circles
            parameter.copy_(torch.randn(parameter.shape) * scale)
        if noise:
            torch.manual_seed(seed + 1000)
            for name, parameter in model.named_parameters():
                if "layer_norm" not in name:
                    parameter.add_(torch.randn(parameter.shape) * noise * parameter.std())
        if not tied:
            model.lm_head.weight.mul_(0.7)
    return model.eval()


def untie(model):
    """Give a T5's head weights of its own, which no setting does: transformers ties the head of
    whatever it makes, and unties it only where a checkpoint holds another one.
    """
    model.lm_head.weight = nn.Parameter(model.shared.weight.detach().clone())
    del model.all_tied_weights_keys["lm_head.weight"]
    return model


def pad_vocabulary(model, rows):
    """So many more tokens than there are; transformers' own `resize_token_embeddings` would tie the
    head of every T5.
    """
    tied = model.lm_head.weight is model.shared.weight
    for part in (model.shared, model.lm_head):
        part.weight = nn.Parameter(
            torch.cat([part.weight, torch.randn(rows, model.config.d_model)])
        )
    if tied:
        model.lm_head.weight = model.shared.weight
    for stack in (model.encoder, model.decoder):
        stack.embed_tokens.weight = model.shared.weight
    model.config.vocab_size += rows
    model.shared.num_embeddings = model.lm_head.out_features = model.config.vocab_size


def _rowdy(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return model.eval()


def tiny_bart(seed=0, layers=2):
    config = BartConfig(
        vocab_size=24, d_model=16, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=2,
        eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    return _rowdy(BartForConditionalGeneration(config), seed)


def tiny_marian(seed=0, layers=2):
    config = MarianConfig(
        vocab_size=24, d_model=16, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, decoder_vocab_size=24, forced_eos_token_id=None,
    )  # fmt: skip
    return _rowdy(MarianMTModel(config), seed)


def tiny_pegasus(seed=0, layers=2):
    config = PegasusConfig(
        vocab_size=24, d_model=16, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    return _rowdy(PegasusForConditionalGeneration(config), seed)


def tiny_led(seed=0, layers=2):
    config = LEDConfig(
        vocab_size=24, d_model=16, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, attention_window=4, max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    return _rowdy(LEDForConditionalGeneration(config), seed)


def tiny_bert2bert(seed=0, layers=2):
    part = BertConfig(
        vocab_size=24, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    config = EncoderDecoderConfig.from_encoder_decoder_configs(part, part)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    model = EncoderDecoderModel(config=config)
    for name, token in (("decoder_start", 2), ("pad", 0), ("eos", 1)):
        setattr(model.generation_config, f"{name}_token_id", token)
    return _rowdy(model, seed)


def sources(seed, count, vocab=16, longest=12):
    """`count` random sources of shape (1, 2..longest), each ending in EOS."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        length = int(torch.randint(1, longest, (1,), generator=generator))
        ids = torch.randint(3, vocab, (1, length), generator=generator)
        out.append(torch.cat([ids, torch.tensor([[EOS]])], -1))
    return out


def letters(vocab):
    """A tokenizer of one letter a token: "a" is 0 (and special), "b" is 1, ..."""
    known = {chr(97 + i): i for i in range(vocab)}
    made = Tokenizer(models.WordLevel(known, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="a")
