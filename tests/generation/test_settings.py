"""Settings and keywords of `generate`: honoured as transformers does, or refused by name."""

import pytest
import torch
from tiny import EOS, letters, sources, tiny_bart, tiny_t5
from transformers import (
    GenerationConfig,
    T5ForConditionalGeneration,
    WatermarkingConfig,
)
from transformers.generation import (
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from bild import BiLDConfig, BildError, BiLDModel, bild_generate, greedy_generate
from bild.generation.plan import HONOURED, KEPT_PLANS, NEUTRAL, SETTINGS, UNREAD

SEED = 30
VOCAB = 48  # enough for every watermark
LARGE_ALONE = BiLDConfig(1.1, 2.0)  # the large model writes every token
LOSSLESS = BiLDConfig(0.2, 0.0)


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def make_pair():
    return BiLDModel(tiny_t5(SEED, vocab=VOCAB), tiny_t5(SEED, vocab=VOCAB, noise=0.25))


@pytest.fixture(scope="module")
def source():
    return sources(SEED, 1, longest=9)[0]


def by_model(pair, source, **kwargs):
    output = pair.generate(source, **kwargs)
    return output if isinstance(output, torch.Tensor) else output.sequences


def by_plug_in(pair, source, **kwargs):
    output = pair.large.generate(
        source, custom_generate=bild_generate, small_model=pair.small, **kwargs
    )
    return output if isinstance(output, torch.Tensor) else output.sequences


DOORS = pytest.mark.parametrize("door", [by_model, by_plug_in])

EQUAL = [
    {"max_new_tokens": 1},
    {"max_length": 9, "max_new_tokens": None},
    {"max_new_tokens": None},  # the default length
    {"min_length": 14},
    {"min_new_tokens": 14},
    {"repetition_penalty": 1.8},
    {"encoder_repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [6, 7]]},
    {"suppress_tokens": [3, EOS]},
    {"begin_suppress_tokens": [9]},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": EOS},
    {"forced_eos_token_id": [EOS, 9]},
    {"eos_token_id": 9},
    {"eos_token_id": [EOS, 9]},
    {"eos_token_id": -1},
    {"exponential_decay_length_penalty": (5, 1.5)},
    {"sequence_bias": [[[5], -10.0]]},
    {"renormalize_logits": True},
    {"remove_invalid_values": True},
    {"prefix_allowed_tokens_fn": lambda batch, ids: [2, 4, 6, 8]},
    {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="lefthash")},
    {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
    {"max_time": 600.0},
    {"decoder_input_ids": torch.tensor([[0, 9, 4]])},
    {"decoder_input_ids": torch.tensor([[0, 9, 4]]), "min_new_tokens": 9},
    {"decoder_start_token_id": 4},
    {"decoder_start_token_id": [4]},
    {"bos_token_id": 4},
    {"generation_config": GenerationConfig(
        max_new_tokens=9, suppress_tokens=[EOS], decoder_start_token_id=0, eos_token_id=EOS,
        pad_token_id=0), "max_new_tokens": None},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.5},
    {"length_penalty": 2.0, "early_stopping": True},
    {"num_assistant_tokens": 3, "assistant_confidence_threshold": 0.9},
    {"synced_gpus": False},
    {"disable_compile": True},
    {"cache_implementation": "dynamic"},
    {"cache_implementation": "hybrid"},
    {"num_beams": 1, "num_beam_groups": 1, "guidance_scale": 1.0, "num_return_sequences": 1},
]  # fmt: skip


def name_of(options):
    return ", ".join(f"{k}={str(v)[:20]}" for k, v in options.items())


@pytest.mark.filterwarnings("ignore")  # transformers': settings without effect
@DOORS
@pytest.mark.parametrize("options", EQUAL, ids=name_of)
def test_what_is_honoured_equals_transformers(pair, source, door, options):
    options = {"max_new_tokens": 16, **options}
    expected = pair.large.generate(source, do_sample=False, **options)
    for config in (LARGE_ALONE, LOSSLESS):
        found = door(pair, source, bild_config=config, do_sample=False, **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "options", [{"min_new_tokens": 8}, {"no_repeat_ngram_size": 2}, {"forced_bos_token_id": 7}],
    ids=name_of,
)  # fmt: skip
def test_what_is_honoured_equals_transformers_for_bart(options):
    pair = BiLDModel(tiny_bart(3), tiny_bart(4, layers=1))
    options = {"max_new_tokens": 12, "num_beams": 1, "do_sample": False, **options}
    for source in sources(3, 2):
        expected = pair.large.generate(source, **options)
        for door in (by_model, by_plug_in):
            assert torch.equal(door(pair, source, bild_config=LOSSLESS, **options), expected)


def test_every_setting_of_this_transformers_is_on_a_list_or_refused():
    assert set(NEUTRAL) | HONOURED | UNREAD <= set(SETTINGS)
    assert not HONOURED & UNREAD
    assert not set(NEUTRAL) & (HONOURED | UNREAD)


REFUSED = [
    ({"num_beams": 4}, "num_beams=4; use num_beams=1"),
    ({"num_beam_groups": 2}, "num_beam_groups=2; use num_beam_groups=1"),
    ({"do_sample": True, "num_beams": 3}, "num_beams=3; use num_beams=1"),
    ({"num_return_sequences": 2, "num_beams": 2}, "=2; use num_"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
    ({"constraints": ["x"]}, "constraints=['x']; use constraints=None"),
    ({"force_words_ids": [[12]]}, "force_words_ids=[[12]]"),
    ({"dola_layers": "high"}, "dola_layers='high'"),
    ({"low_memory": True}, "low_memory=True; use low_memory=False"),
    ({"prefill_chunk_size": 2}, "prefill_chunk_size=2"),
    ({"guidance_scale": 1.5}, "guidance_scale=1.5; use guidance_scale=1"),
    ({"use_cache": False}, "use_cache=False; use use_cache=True"),
    ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
    ({"cache_config": {"backend": "quanto"}}, "cache_config={'backend': 'quanto'}"),
    ({"max_cache_len": 9}, "max_cache_len=9"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
    ({"assistant_early_exit": 1}, "assistant_early_exit=1"),
    ({"use_mtp": True}, "use_mtp=True"),
    ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True"),
    ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states=True"),
]


@pytest.mark.filterwarnings("ignore")
@DOORS
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_other_settings_are_refused_by_name_and_value(pair, source, door, options, message):
    with pytest.raises(BildError) as error:
        door(pair, source, max_new_tokens=4, **options)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


def test_a_setting_of_a_later_transformers_is_refused(pair, source, monkeypatch):
    """What is supported is a list: a field that nobody has looked at is not on it."""
    monkeypatch.setattr("bild.generation.plan.SETTINGS", (*SETTINGS, "new_decoding"))
    config = GenerationConfig(max_new_tokens=4, decoder_start_token_id=0, eos_token_id=EOS)
    config.new_decoding = "bold"
    with pytest.raises(BildError, match="new_decoding='bold'; use new_decoding=None"):
        by_plug_in(pair, source, generation_config=config)


CACHE = T5ForConditionalGeneration  # any value will do: the name is refused
KEYWORDS = [
    ({"token_healing": True}, "token_healing=True; use token_healing=False"),
    ({"past_key_values": CACHE}, "past_key_values=: each model's cache is made here"),
    ({"assistant_model": CACHE}, "assistant_model=: the model that drafts is the pair's small"),
    ({"negative_prompt_ids": torch.ones(1, 1)}, "negative_prompt_ids=: guidance keeps a cache"),
    ({"inputs": torch.ones(1, 1)}, "inputs=: give the source as input_ids="),
    ({"custom_generate": "some/repository"}, "custom_generate=: BiLD is the decoding method"),
    ({"fallback_threshold": 0.5}, "fallback_threshold=: give bild_config=BiLDConfig(fallback_"),
    ({"variant": "paper"}, "variant=: give bild_config=BiLDConfig(variant=...)"),
    ({"max_new_token": 5}, "max_new_token=: did you mean max_new_tokens?"),
    ({"head_mask": torch.ones(1)}, "head_mask=: leave it out"),
]


@pytest.mark.parametrize(("options", "message"), KEYWORDS, ids=lambda v: str(v)[:30])
def test_other_keywords_are_refused_by_name(pair, source, options, message):
    for generate in (pair.generate, pair.greedy):
        with pytest.raises(BildError) as error:
            generate(source, max_new_tokens=4, **options)
        assert message in str(error.value)
    nothing = dict.fromkeys(options)
    assert pair.generate(source, max_new_tokens=4, **nothing).stats.generated_tokens


def test_a_keyword_that_reaches_the_plug_in_is_refused_there(pair, source):
    with pytest.raises(BildError, match="assistant_model=: the model that drafts is the pair's"):
        by_plug_in(pair, source, assistant_model=pair.small, max_new_tokens=4)
    filled = pair.large(input_ids=source, decoder_input_ids=source, use_cache=True).past_key_values
    with pytest.raises(BildError, match="past_key_values="):
        by_plug_in(pair, source, past_key_values=filled, max_new_tokens=4)


def test_a_model_that_fills_its_cache_beforehand_is_refused(source):
    """As one that is tuned by a prefix does, inside its own `generate`."""
    pair = make_pair()
    filled = pair.large(input_ids=source, decoder_input_ids=source, use_cache=True).past_key_values
    generate = pair.large.generate
    pair.large.generate = lambda **given: generate(past_key_values=filled, **given)
    with pytest.raises(BildError, match="past_key_values=: each model's cache is made here"):
        pair.generate(source, max_new_tokens=4)


@DOORS
def test_a_dictionary_of_thresholds_is_refused_with_the_way_out(pair, source, door):
    with pytest.raises(
        BildError, match=r"got \{'fallback_threshold': 0.5\}; give BiLDConfig\(\*\*"
    ):
        door(pair, source, max_new_tokens=4, bild_config={"fallback_threshold": 0.5})


@DOORS
def test_guidance_is_refused(pair, source, door):
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, pair.large)
    with pytest.raises(BildError, match="cannot use UnbatchedClassifierFreeGuidance"):
        door(pair, source, max_new_tokens=4, logits_processor=LogitsProcessorList([guidance]))


# ------------------------------------------------------------------------------ padded prompts

PROMPT = torch.tensor([[0, 0, 0, 9, 4]])  # the decoder start token is that of padding
HIDDEN = torch.tensor([[0, 0, 1, 1, 1]])


@DOORS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 12, "max_new_tokens": None},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 9},
        {"stopping_criteria": [lambda ids, scores: torch.tensor([ids.shape[1] == 9])]},
    ],
    ids=name_of,
)
def test_a_padded_prompt_is_decoded_as_transformers_does(pair, source, door, options):
    options = {"max_new_tokens": 16, "decoder_input_ids": PROMPT, **options}
    expected = pair.large.generate(source, decoder_attention_mask=HIDDEN, **options)
    if not options.get("stopping_criteria"):
        assert not torch.equal(expected, pair.large.generate(source, **options))
    for config in (LARGE_ALONE, LOSSLESS):
        found = door(pair, source, bild_config=config, decoder_attention_mask=HIDDEN, **options)
        assert torch.equal(found, expected)


def test_a_streamer_gets_a_padded_prompt_too(pair, source):
    class Keep:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    for door in (by_model, by_plug_in):
        streamer = Keep()
        found = door(
            pair, source, decoder_input_ids=PROMPT, decoder_attention_mask=HIDDEN,
            max_new_tokens=6, streamer=streamer,
        )  # fmt: skip
        assert streamer.tokens == found[0].tolist()


@DOORS
def test_a_mask_that_hides_nothing_changes_nothing_whatever_the_model(door):
    pair, (source,) = BiLDModel(tiny_bart(3), tiny_bart(4, layers=1)), sources(3, 1)
    options = {"max_new_tokens": 8, "decoder_input_ids": torch.tensor([[1, 7, 8]])}
    expected = pair.large.generate(source, **options)
    mask = torch.ones(1, 3, dtype=torch.long)
    found = door(pair, source, bild_config=LOSSLESS, decoder_attention_mask=mask, **options)
    assert torch.equal(found, expected)
    mask[0, 0] = 0
    with pytest.raises(BildError, match="hides tokens for model type 'bart', only for t5, mt5"):
        door(pair, source, decoder_attention_mask=mask, **options)


@DOORS
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 0, 1, 1, 1]], "must hide padding before the decoder prompt and nothing else, got"),
        ([[1, 1, 1, 1, 0]], "must hide padding before the decoder prompt and nothing else, got"),
        ([[0, 0, 0, 0, 0]], "must hide padding before the decoder prompt and nothing else, got"),
        ([[1, 1]], "must have the shape of the decoder prompt, (1, 5), got (1, 2)"),
    ],
)
def test_other_masks_of_a_prompt_are_refused(pair, source, door, mask, message):
    with pytest.raises(BildError) as error:
        door(
            pair, source, decoder_input_ids=PROMPT, decoder_attention_mask=torch.tensor(mask),
            max_new_tokens=4,
        )  # fmt: skip
    assert message in str(error.value)


# ------------------------------------------------------------------------------ stop strings


@pytest.fixture(scope="module")
def tokenizer():
    return letters(VOCAB)


@pytest.fixture
def stop(pair, source):
    """Two letters in the middle of what the large model writes, and that output up to there."""
    written = pair.large.generate(source, max_new_tokens=16, suppress_tokens=[EOS])[0].tolist()
    text = "".join(chr(97 + token) for token in written)
    return text[5:7], written[: text.index(text[5:7], 1) + 2]


def test_stop_strings_end_the_output_where_transformers_ends_it(pair, source, tokenizer, stop):
    options = {"max_new_tokens": 16, "suppress_tokens": [EOS], "tokenizer": tokenizer}
    expected = pair.large.generate(source, stop_strings=stop[0], **options)
    assert expected[0].tolist() == stop[1]
    for config in (LARGE_ALONE, LOSSLESS):
        output = pair.generate(source, bild_config=config, stop_strings=stop[0], **options)
        assert torch.equal(output.sequences, expected)
    assert torch.equal(pair.greedy(source, stop_strings=[stop[0]], **options).sequences, expected)
    config = GenerationConfig(
        stop_strings=stop[0], max_new_tokens=16, suppress_tokens=[EOS], decoder_start_token_id=0
    )
    output = pair.generate(source, generation_config=config, tokenizer=tokenizer)
    assert torch.equal(output.sequences, expected)
    assert config.stop_strings == stop[0]


def test_stop_strings_of_the_model_itself(source, tokenizer, stop):
    pair = make_pair()
    pair.large.generation_config.stop_strings = [stop[0]]
    options = {"max_new_tokens": 16, "suppress_tokens": [EOS]}
    output = pair.generate(source, bild_config=LOSSLESS, tokenizer=tokenizer, **options)
    assert output.sequences[0].tolist() == stop[1]
    with pytest.raises(BildError, match="needs the tokenizer too; give tokenizer="):
        pair.generate(source, **options)


def test_stop_strings_of_the_plug_in(pair, source, tokenizer, stop):
    options = {"max_new_tokens": 16, "suppress_tokens": [EOS]}
    bild = {"custom_generate": bild_generate, "small_model": pair.small, "bild_config": LOSSLESS}
    for method in (bild, {"custom_generate": greedy_generate}):
        found = pair.large.generate(
            source, stop_strings=stop[0], tokenizer=tokenizer, **options, **method
        )
        assert found[0].tolist() == stop[1]
        with pytest.raises(BildError, match="needs the tokenizer too; give tokenizer="):
            pair.large.generate(source, stop_strings=stop[0], **options, **method)


def test_a_criterion_of_stop_strings_cuts_inside_a_draft(pair, source, tokenizer, stop):
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, stop[0])])
    found = by_plug_in(
        pair, source, stopping_criteria=criteria, max_new_tokens=16, suppress_tokens=[EOS],
        bild_config=LOSSLESS,
    )  # fmt: skip
    assert found[0].tolist() == stop[1]


# ------------------------------------------------------------------------------ remembered plans


def test_a_list_of_ends_that_is_changed_in_place_is_noticed(source):
    pair = make_pair()
    for model in (pair.large, pair.small):
        model.generation_config.eos_token_id = [EOS]
    before = pair.greedy(source, max_new_tokens=16).sequences[0].tolist()
    other = before[3]
    pair.large.generation_config.eos_token_id.append(other)
    after = pair.greedy(source, max_new_tokens=16).sequences[0].tolist()
    assert after == before[: before.index(other, 1) + 1]
    assert len(after) < len(before)


def test_no_more_than_so_many_plans_are_remembered(pair, source):
    model = pair.models["large"]
    for length in range(1, KEPT_PLANS + 9):
        pair.greedy(source, max_new_tokens=1, max_time=None, top_k=length)
    assert len(model._planner._known) <= KEPT_PLANS
    first = model._planner(source, {"max_new_tokens": 3})
    assert model._planner(source, {"max_new_tokens": 3}) is first
