"""Every family of transformers is right or refused, found by trying and not by its name."""

import warnings

import pytest
import torch
import transformers as tf
from families import SINGLY, TOGETHER
from reference import Cacheless, reference_decode
from tiny import sources, tiny_bart, tiny_t5
from transformers import DynamicCache

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.engines import HuggingFaceDecoder
from bild.engines.probe import takes_several

OPTIONS = {"max_new_tokens": 12, "bad_words_ids": [[0]]}  # padding is masked in some families
LOSSLESS = BiLDConfig(0.0, 0.0, 4)
GRID = [(0.9, 0.2, "verified"), (0.2, 0.5, "paper"), (0.6, 1.0, "authors")]


def small_for(make, seed):
    """The same model with a little noise, which agrees often, or another one, which seldom does."""
    if seed % 2:
        return make(seed + 50)
    model = make(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.01 * parameter.std())
    return model


def reading(model, which="large"):
    decoder = HuggingFaceDecoder(model, which)
    decoder.read(sources(1, 1)[0])
    return decoder


@pytest.mark.parametrize("family", TOGETHER)
def test_families_that_take_several_tokens_at_once(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = reading(TOGETHER[family](3))
    assert takes_several(decoder)
    assert (decoder.length, decoder.forwards, decoder.tokens_fed) == (0, 0, 0)
    decoder.feed([0, 5, 7])
    assert decoder.forwards == 1


@pytest.mark.parametrize("family", SINGLY)
def test_families_that_do_not_are_told_of(family):
    with pytest.warns(UserWarning, match="is fed one token a forward"):
        decoder = reading(SINGLY[family](3))
    assert not takes_several(decoder)
    decoder.feed([0, 5, 7])
    assert (decoder.forwards, decoder.tokens_fed) == (3, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*TOGETHER, *SINGLY])
def test_lossless_rules_give_transformers_own_greedy_output(family):
    make = (TOGETHER | SINGLY)[family]
    rolled_back = drafted = 0
    for seed in range(7, 11):
        pair = BiLDModel(make(seed), small_for(make, seed), engine="transformers")
        (source,) = sources(seed, 1)
        greedy = pair.large.generate(source, do_sample=False, **OPTIONS)
        for config in (LOSSLESS, BiLDConfig(1.1, 2.0)):
            output = pair.generate(source, bild_config=config, do_sample=False, **OPTIONS)
            assert torch.equal(output.sequences, greedy)
            rolled_back += output.stats.rollbacks
            drafted += output.stats.verified_tokens
            plugged = pair.large.generate(
                source, custom_generate=bild_generate, small_model=pair.small,
                bild_config=config, do_sample=False, **OPTIONS,
            )  # fmt: skip
            assert torch.equal(plugged, greedy)
        alone = pair.greedy(source, which="small", do_sample=False, **OPTIONS).sequences
        assert torch.equal(alone, pair.small.generate(source, do_sample=False, **OPTIONS))
    assert rolled_back > 0
    assert drafted > 0


@pytest.mark.parametrize("family", TOGETHER)
def test_rules_that_lose_something_give_the_oracles_output(family):
    """Where the output is nobody's greedy one, the loop without any cache says what is right."""
    make, interventions = TOGETHER[family], 0
    for seed in (7, 8, 9):
        pair = BiLDModel(make(seed), small_for(make, seed), engine="transformers")
        ends = pair.large.generation_config
        start, eos = ends.decoder_start_token_id, ends.eos_token_id
        (source,) = sources(seed, 1)
        models = Cacheless(pair.large, source), Cacheless(pair.small, source)
        for fallback, rollback, variant in GRID:
            expected = reference_decode(
                *models, fallback=fallback, rollback=rollback, variant=variant, num_small_iters=4,
                max_length=13, eos=eos, bos=start,
            )  # fmt: skip
            config = BiLDConfig(fallback, rollback, 4, variant=variant)
            output = pair.generate(source, bild_config=config, max_new_tokens=12, num_beams=1)
            assert output.sequences[0].tolist() == expected.tokens
            assert output.stats.fallbacks == expected.fallbacks
            assert output.stats.rollbacks == expected.rollbacks
            interventions += expected.rollbacks + expected.fallbacks
    assert interventions


@pytest.mark.parametrize("family", ["t5", "longt5", "switch", "t5gemma"])
def test_a_prompt_behind_hidden_tokens_where_positions_are_relative(family):
    changed = 0
    for seed in range(7, 19):
        pair = BiLDModel(TOGETHER[family](seed), small_for(TOGETHER[family], seed))
        start = pair.large.generation_config.decoder_start_token_id
        (source,) = sources(seed, 1)
        given = {
            **OPTIONS,
            "decoder_input_ids": torch.tensor([[start] * 4 + [9, 4]]),
            "do_sample": False,
        }
        mask = torch.tensor([[0, 0, 0, 1, 1, 1]])
        greedy = pair.large.generate(source, decoder_attention_mask=mask, **given)
        output = pair.generate(
            source, bild_config=LOSSLESS, decoder_attention_mask=mask, **given
        ).sequences
        assert torch.equal(output, greedy)
        changed += not torch.equal(greedy, pair.large.generate(source, **given))
    assert changed


def test_a_model_is_tried_once():
    model, calls = tiny_bart(3), []
    forward = model.forward
    model.forward = lambda **given: calls.append(1) or forward(**given)
    reading(model)
    tried = len(calls)
    assert 8 < tried < 32
    reading(model)
    assert len(calls) == tried


def test_a_cache_that_cannot_be_cut_is_refused(monkeypatch):
    monkeypatch.setattr(DynamicCache, "crop", lambda self, count: None)
    with pytest.raises(BildError, match="BiLD cannot run a BartForConditionalGeneration: after to"):
        reading(tiny_bart(3))


def test_a_damaged_model_is_named_by_the_loop():
    model = tiny_bart(3)
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(BildError, match="large model's scores are NaN"):
        BiLDModel(model, tiny_bart(3)).generate(sources(3, 1)[0], max_new_tokens=4)


def without_head():
    return tf.T5Model(tiny_t5(1).config)


def classifier():
    return tf.BartForSequenceClassification(tiny_bart(1).config)


def decoder_only():
    return tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=24))


def dia():
    part = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 24,
    }  # fmt: skip
    cross = {"cross_num_attention_heads": 2, "cross_num_key_value_heads": 2, "cross_head_dim": 8,
             "cross_hidden_size": 16}  # fmt: skip
    parts = {"encoder_config": part, "decoder_config": {**part, **cross, "num_channels": 2}}
    return tf.DiaForConditionalGeneration(tf.DiaConfig(**parts, delay_pattern=[0, 1]))


def musicgen():
    from transformers import EncodecConfig, MusicgenConfig, MusicgenDecoderConfig

    text = tf.T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    sound = EncodecConfig(
        num_filters=2, hidden_size=8, codebook_size=16, codebook_dim=8, upsampling_ratios=[2, 2]
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=24, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2, hidden_size=16,
        num_codebooks=2,
    )  # fmt: skip
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=sound.to_dict(), decoder=decoder.to_dict()
    )
    return tf.MusicgenForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_head, "a T5Model has no head that scores tokens"),
        (classifier, "a BartForSequenceClassification has no head that scores tokens"),
        (decoder_only, "must be an encoder-decoder model, got GPT2LMHeadModel"),
        (dia, "a DiaForConditionalGeneration has no head that scores tokens"),
        (musicgen, "a MusicgenForConditionalGeneration has no head that scores tokens"),
    ],
)
def test_models_that_cannot_be_decoded_are_refused_in_words(make, message):
    model = make().eval()
    with pytest.raises(BildError) as error:
        BiLDModel(model, model)
    assert message in str(error.value)
    with pytest.raises(BildError) as error:
        tiny_t5(1).generate(
            sources(1, 1)[0], custom_generate=bild_generate, small_model=model, max_new_tokens=4
        )
    assert message in str(error.value)
