"""What the encoders read reaches both of them, or is refused by name."""

import pytest
import torch
from tiny import sources, tiny_bart, tiny_bert2bert, tiny_led, tiny_t5
from transformers import BatchEncoding, WhisperConfig, WhisperForConditionalGeneration

from bild import BiLDConfig, BildError, BiLDModel, bild_generate

LARGE_ALONE = BiLDConfig(1.1, 2.0)
SMALL_ALONE = BiLDConfig(0.0, torch.inf, torch.inf, variant="paper", start="small")
LIMIT = {"max_new_tokens": 10, "num_beams": 1}


def by_model(pair, ids, config, **kwargs):
    return pair.generate(ids, bild_config=config, **kwargs).sequences


def by_plug_in(pair, ids, config, **kwargs):
    return pair.large.generate(
        ids, custom_generate=bild_generate, small_model=pair.small, bild_config=config, **kwargs
    )


DOORS = pytest.mark.parametrize("door", [by_model, by_plug_in])


def case_led():
    ids = torch.arange(4, 24)[None]
    mask = torch.zeros_like(ids)
    mask[0, 0] = 1
    return BiLDModel(tiny_led(0), tiny_led(1, layers=1)), ids, {"global_attention_mask": mask}


def case_bert():
    ids = torch.arange(4, 14)[None]
    segments = torch.tensor([[0] * 5 + [1] * 5])
    return BiLDModel(tiny_bert2bert(0), tiny_bert2bert(1, layers=1)), ids, {
        "token_type_ids": segments
    }  # fmt: skip


@DOORS
@pytest.mark.parametrize("case", [case_led, case_bert])
def test_an_input_of_the_encoder_reaches_both_models(door, case):
    pair, ids, inputs = case()
    for config, alone in ((LARGE_ALONE, pair.large), (SMALL_ALONE, pair.small)):
        expected = alone.generate(ids, **inputs, **LIMIT)
        assert not torch.equal(expected, alone.generate(ids, **LIMIT)), "it changes nothing"
        assert torch.equal(door(pair, ids, config, **inputs, **LIMIT), expected)
    alone = pair.greedy(ids, which="small", **inputs, **LIMIT).sequences
    assert torch.equal(alone, pair.small.generate(ids, **inputs, **LIMIT))


@DOORS
def test_an_input_that_one_encoder_does_not_read_is_refused(door):
    pair, ids = BiLDModel(tiny_led(0), tiny_bart(1)), torch.arange(4, 14)[None]
    given = {"global_attention_mask": torch.ones_like(ids)}
    with pytest.raises(BildError, match="small model's encoder does not read global_attention_ma"):
        door(pair, ids, LARGE_ALONE, **given, **LIMIT)
    assert door(pair, ids, LARGE_ALONE, **LIMIT).shape[0] == 1


def test_an_input_that_no_encoder_reads_is_refused():
    pair, (ids,) = BiLDModel(tiny_t5(1), tiny_t5(2)), sources(1, 1)
    with pytest.raises(BildError, match="large model's encoder does not read token_type_ids="):
        pair.generate(ids, token_type_ids=torch.zeros_like(ids), **LIMIT)


@pytest.mark.parametrize("engine", ["fast", "transformers"])
def test_encoder_outputs_are_those_of_the_large_model(engine):
    pair = BiLDModel(tiny_t5(5), tiny_t5(6), engine=engine)
    (ids,), (other,) = sources(5, 1), sources(9, 1)
    other = other[:, :1].expand(1, ids.shape[1])
    made = pair.large.get_encoder()(other)  # of another source, to see that it is used
    expected = pair.large.generate(other, **LIMIT)
    assert not torch.equal(expected, pair.large.generate(ids, **LIMIT))
    found = by_model(pair, ids, LARGE_ALONE, encoder_outputs=made, **LIMIT)
    assert torch.equal(found, expected)
    assert torch.equal(pair.greedy(ids, encoder_outputs=made, **LIMIT).sequences, expected)
    # The small model reads the source itself.
    small = by_model(pair, ids, SMALL_ALONE, encoder_outputs=made, **LIMIT)
    assert torch.equal(small, pair.small.generate(ids, **LIMIT))


@pytest.mark.parametrize("make", [tiny_t5, tiny_bart])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_outputs_of_both_models_need_no_ids(make, padded):
    pair, config = BiLDModel(make(5), make(6)), BiLDConfig(0.2, 0.5)
    (ids,) = sources(5, 1)
    options = dict(LIMIT)
    if padded:
        options["attention_mask"] = torch.tensor([[1] * ids.shape[1] + [0] * 2])
        ids = torch.cat((ids, torch.zeros(1, 2, dtype=torch.long)), 1)
    mask = options.get("attention_mask")
    large, small = (m.get_encoder()(ids, attention_mask=mask) for m in (pair.large, pair.small))
    expected = pair.generate(ids, bild_config=config, **options)
    for given in ({}, {"input_ids": ids}):
        output = pair.generate(
            bild_config=config, encoder_outputs=large, small_encoder_outputs=small,
            **given, **options,
        )  # fmt: skip
        assert torch.equal(output.sequences, expected.sequences)
        assert output.stats == expected.stats
        plugged = pair.large.generate(
            custom_generate=bild_generate, small_model=pair.small, bild_config=config,
            encoder_outputs=large, small_encoder_outputs=small, **given, **options,
        )  # fmt: skip
        assert torch.equal(plugged, expected.sequences)
    for which, states in (("large", large), ("small", small)):
        alone = pair.greedy(which=which, encoder_outputs=states, **options).sequences
        assert torch.equal(alone, pair.greedy(ids, which=which, **options).sequences)


def test_encoder_outputs_of_the_small_model_are_used():
    pair, (ids,), (other,) = BiLDModel(tiny_t5(5), tiny_t5(6)), sources(5, 1), sources(9, 1)
    other = other[:, :1].expand(1, ids.shape[1])
    made = pair.small.get_encoder()(other)
    expected = pair.small.generate(other, **LIMIT)
    assert not torch.equal(expected, pair.small.generate(ids, **LIMIT))
    for door in (by_model, by_plug_in):
        found = door(pair, ids, SMALL_ALONE, small_encoder_outputs=made, **LIMIT)
        assert torch.equal(found, expected)
    with pytest.raises(BildError, match="does not support small_encoder_outputs="):
        pair.greedy(ids, small_encoder_outputs=made, **LIMIT)


def test_encoder_outputs_of_one_model_alone_are_refused():
    pair, (ids,) = BiLDModel(tiny_t5(5), tiny_t5(6)), sources(5, 1)
    large = pair.large.get_encoder()(ids)
    message = "needs input_ids=, for both models read the source; or small_encoder_outputs= besides"
    with pytest.raises(BildError, match=message):
        pair.generate(encoder_outputs=large, **LIMIT)
    with pytest.raises(BildError, match=message):
        by_plug_in(pair, None, LARGE_ALONE, encoder_outputs=large, **LIMIT)


def test_encoder_outputs_of_another_shape_are_refused():
    pair, (ids,) = BiLDModel(tiny_t5(5), tiny_t5(6)), sources(5, 1)
    states = pair.large.get_encoder()(ids).last_hidden_state
    for wrong in (states[0], states[..., :-1], states[:, :-1], states.repeat(2, 1, 1)):
        with pytest.raises(BildError, match="encoder_outputs must hold states of shape"):
            pair.generate(ids, encoder_outputs=(wrong,), **LIMIT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Ein Satz.", "got a text; give generate(**tokenizer(text, return_tensors='pt'))"),
        ([[3, 4, 1]], "must be a tensor of shape (1, tokens), got a list; give torch.tensor"),
        (BatchEncoding({"input_ids": 1}), "got a BatchEncoding; give generate(**inputs)"),
        ({"input_ids": 1}, "got a dict; give generate(**inputs)"),
        (torch.tensor([3, 4]), "got a tensor of shape (2,)"),
        (torch.tensor([[3, -4]]), "input_ids of shape (1, tokens)"),
        (torch.tensor([[3, 99]]), "token id 99, but the large model knows only 16"),
        (None, "needs input_ids="),
    ],
    ids=lambda v: str(type(v).__name__),
)
def test_what_is_no_sequence_of_ids_is_refused_in_words(given, message):
    pair = BiLDModel(tiny_t5(1), tiny_t5(2))
    for generate in (pair.generate, pair.greedy):
        with pytest.raises(BildError) as error:
            generate(given, **LIMIT)
        assert message in str(error.value)


def test_a_token_that_the_small_model_does_not_know_is_refused():
    with pytest.warns(UserWarning, match="from 16 on"):
        pair = BiLDModel(tiny_t5(1, vocab=24), tiny_t5(1))
    with pytest.raises(BildError, match="token id 20, but the small model knows only 16"):
        pair.generate(torch.tensor([[3, 20, 1]]), **LIMIT)


def tiny_whisper(seed):
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_source_positions=50, max_target_positions=40, pad_token_id=3,
        bos_token_id=3, eos_token_id=3, decoder_start_token_id=4, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def test_speech_is_refused_with_what_is_read_instead():
    pair = BiLDModel(tiny_whisper(0), tiny_whisper(1))
    sound = torch.randn(1, 8, 100)
    with pytest.raises(BildError, match="text sources only, not input_features="):
        pair.generate(input_features=sound, max_new_tokens=8)
    with pytest.raises(BildError, match="text sources only"):
        pair.large.generate(
            sound, custom_generate=bild_generate, small_model=pair.small, max_new_tokens=8
        )
