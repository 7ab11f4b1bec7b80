"""BiLD as a part of transformers: `generate`, its arguments, and what is refused."""

import threading

import pytest
import torch
from tiny import EOS, sources, tiny_t5
from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer
from transformers.generation import (
    GenerateEncoderDecoderOutput,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

import bild
from bild import BiLDConfig, BildError, BiLDModel, DecodeStats, bild_generate, greedy_generate

SEED = 32


@pytest.fixture(scope="module")
def pair():
    return BiLDModel(tiny_t5(SEED), tiny_t5(SEED, noise=0.25))


@pytest.fixture(scope="module")
def source():
    return sources(SEED, 1)[0]


def plug_in(pair, source, **kwargs):
    kwargs.setdefault("bild_config", BiLDConfig(0.4, 1.0))
    if "generation_config" not in kwargs:
        kwargs.setdefault("max_new_tokens", 16)
    return pair.large.generate(
        source, custom_generate=bild_generate, small_model=pair.small, **kwargs
    )


def test_public_names():
    from bild import BiLDConfig, BiLDModel, DecodeStats, bild_generate  # noqa: F401

    for name in bild.__all__:
        assert getattr(bild, name) is not None


def test_plug_in_and_model_give_the_same(pair, source):
    sequences = plug_in(pair, source)
    assert isinstance(sequences, torch.Tensor)
    output = pair.generate(source, bild_config=BiLDConfig(0.4, 1.0), max_new_tokens=16)
    assert torch.equal(output.sequences, sequences)
    assert isinstance(output.stats, DecodeStats)
    assert output.stats.generated_tokens == sequences.shape[1] - 1
    bare = pair.generate(
        source,
        bild_config=BiLDConfig(0.4, 1.0),
        max_new_tokens=16,
        return_dict_in_generate=False,
    )
    assert torch.equal(bare, sequences)
    again = plug_in(pair, source, return_dict_in_generate=True)
    assert (again.stats, again.scores) == (output.stats, None)


def test_generation_config_is_honoured(pair, source):
    config = GenerationConfig(
        max_new_tokens=9,
        suppress_tokens=[EOS],
        return_dict_in_generate=True,
        decoder_start_token_id=0,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    output = plug_in(pair, source, generation_config=config)
    assert output.sequences.shape == (1, 10)
    assert EOS not in output.sequences


PROCESSORS = [
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 16},
    {"forced_bos_token_id": 7},
    {"repetition_penalty": 1.8},
    {"bad_words_ids": [[5], [6, 7]]},
]


@pytest.mark.parametrize("options", PROCESSORS, ids=lambda o: next(iter(o)))
@pytest.mark.parametrize(
    "config", [BiLDConfig(1.1, 0), BiLDConfig(0.3, 0, variant="verified")], ids=["fb", "rb"]
)
def test_lossless_under_logits_processors(pair, options, config):
    changed = 0
    for source in sources(SEED, 4):
        options = {**options, "max_new_tokens": 16, "do_sample": False}
        greedy = pair.large.generate(source, **options)
        ours = pair.large.generate(source, custom_generate=greedy_generate, **options)
        assert torch.equal(ours, greedy)
        assert torch.equal(plug_in(pair, source, bild_config=config, **options), greedy)
        plain = pair.large.generate(source, max_new_tokens=16, do_sample=False)
        changed += not torch.equal(plain, greedy)
    assert changed, "this processor changed nothing: the test would pass without it"


def test_processors_act_on_both_models_with_the_prefix_before_each_position(pair, source):
    seen = []

    class Spy(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids[0].tolist())
            return scores

    output = plug_in(
        pair,
        source,
        bild_config=BiLDConfig(0.0, 0.5, variant="paper"),
        logits_processor=LogitsProcessorList([Spy()]),
        return_dict_in_generate=True,
    )
    stats = output.stats
    assert all(prefix[0] == 0 for prefix in seen)
    # Once for each position the small model scored; once for each drafted token the large model
    # looked at, and one more a forward.
    looked_at = stats.verified_tokens + stats.rolled_back_tokens
    assert looked_at > 0
    assert len(seen) == stats.small_forwards + looked_at + stats.large_forwards


def test_stopping_criteria_see_tokens_of_both_models(pair, source):
    free = plug_in(pair, source, suppress_tokens=[EOS])[0].tolist()
    stop = free[6]
    where = free.index(stop, 1)

    class StopAt(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] > 1 and input_ids[0, -1].item() == stop])

    stopped = plug_in(
        pair,
        source,
        suppress_tokens=[EOS],
        stopping_criteria=StoppingCriteriaList([StopAt()]),
    )[0].tolist()
    assert stopped == free[: where + 1]


def test_scores_are_those_of_the_writer(pair, source):
    output = plug_in(
        pair,
        source,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=[3],
        bild_config=BiLDConfig(0.3, 0.5),
    )
    written = output.sequences[0, 1:].tolist()
    assert len(output.scores) == len(output.logits) == len(written)
    for token, score, logit in zip(written, output.scores, output.logits, strict=True):
        assert score.shape == logit.shape == (1, 16)
        assert score.argmax().item() == token
        assert score[0, 3] == -torch.inf
        assert logit[0, 3] > -torch.inf


@pytest.mark.parametrize("processors", [{}, {"suppress_tokens": [3]}], ids=["plain", "processed"])
def test_scores_are_float32_whatever_the_model_is(source, processors):
    half = [tiny_t5(SEED, noise=n).to(torch.bfloat16) for n in (0, 0.25)]
    options = {
        **{"output_scores": True, "output_logits": True, "return_dict_in_generate": True},
        **{"max_new_tokens": 8, **processors},
    }
    outputs = [half[0].generate(source, **options)]
    pairs = [BiLDModel(*half, engine=engine) for engine in ("fast", "transformers")]
    outputs += [pair.generate(source, **options) for pair in pairs]
    outputs.append(plug_in(pairs[0], source, **options))
    for output in outputs:
        assert {t.dtype for t in (*output.scores, *output.logits)} == {torch.float32}


def test_forwards_of_a_model_alone_are_its_own(pair, source):
    for which, other in (("large", "small"), ("small", "large")):
        stats = pair.greedy(source, which=which, max_new_tokens=8).stats
        alone = getattr(pair, which)
        plug = alone.generate(
            source,
            custom_generate=greedy_generate,
            model_name=which,
            max_new_tokens=8,
            return_dict_in_generate=True,
        )
        assert plug.stats == stats
        for what in ("forwards", "tokens_fed"):
            assert getattr(stats, f"{which}_{what}") == stats.generated_tokens
            assert getattr(stats, f"{other}_{what}") == 0


def test_the_seconds_of_the_encoders_are_told(pair, source):
    both = pair.generate(source, max_new_tokens=2).encoder_seconds
    assert 0 < both < 60
    given = pair.large.get_encoder()(source)
    alone = pair.greedy(source, max_new_tokens=2, encoder_outputs=given).encoder_seconds
    assert 0 < alone < 60


def test_a_decoder_prompt_is_kept_and_not_counted(pair, source):
    prompt = torch.tensor([[0, 9, 4]])
    greedy = pair.large.generate(
        source, decoder_input_ids=prompt, do_sample=False, max_new_tokens=8
    )
    output = plug_in(
        pair,
        source,
        decoder_input_ids=prompt,
        max_new_tokens=8,
        bild_config=BiLDConfig(0.2, 0, variant="verified"),
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences, greedy)
    assert output.stats.generated_tokens == greedy.shape[1] - 3


class Letters:
    """Stands for a tokenizer: a letter a token."""

    def decode(self, ids, **kwargs):
        return "".join(chr(97 + int(i)) for i in ids) + "\n"


class Capture(TextStreamer):
    def __init__(self):
        super().__init__(Letters())
        self.tokens, self.ends = [], 0

    def put(self, value):
        assert not self.ends
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ends += 1


STREAMED = {
    "BiLDModel": lambda pair, source, **options: pair.generate(source, **options),
    "plug-in": plug_in,
    "plug-in, bild_streamer=": lambda pair, source, streamer, **options: plug_in(
        pair, source, bild_streamer=streamer, **options
    ),
    "plug-in, alone": lambda pair, source, bild_config, **options: pair.large.generate(
        source, custom_generate=greedy_generate, **options
    ),
}


@pytest.mark.parametrize("door", STREAMED.values(), ids=STREAMED)
def test_streamer_gets_every_token_once_and_in_order(pair, source, door):
    for variant in ("authors", "paper", "verified"):
        streamer = Capture()
        config = BiLDConfig(0.3, 0.2, variant=variant)
        output = door(
            pair, source, bild_config=config, max_new_tokens=16, streamer=streamer,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert streamer.tokens == output.sequences[0].tolist()
        assert streamer.ends == 1
        assert output.stats.generated_tokens > 2


@pytest.mark.parametrize("door", list(STREAMED.values())[:2], ids=list(STREAMED)[:2])
def test_a_reader_in_another_thread_gets_the_text_and_its_end(pair, source, door):
    streamer = TextIteratorStreamer(Letters(), skip_prompt=True, timeout=60)
    options = {"max_new_tokens": 16, "suppress_tokens": [EOS], "streamer": streamer}
    writer = threading.Thread(target=lambda: door(pair, source, **options))
    writer.start()
    text = "".join(streamer).replace("\n", "")
    writer.join()
    expected = door(pair, source, **{**options, "streamer": None, "return_dict_in_generate": True})
    assert text == Letters().decode(expected.sequences[0, 1:]).strip()


def test_two_streamers_are_refused(pair, source):
    with pytest.raises(BildError, match="give streamer= or bild_streamer="):
        plug_in(pair, source, streamer=Capture(), bild_streamer=Capture())


def test_the_output_is_transformers_own(pair, source):
    """Whatever expects one can use it: it is one, unpacks as one, and scores a sequence as one."""
    options = {"max_new_tokens": 8, "output_scores": True, "return_dict_in_generate": True}
    expected = pair.large.generate(source, **options)
    for output in (
        pair.generate(source, bild_config=BiLDConfig(0.2, 0.0), **options),
        plug_in(pair, source, bild_config=BiLDConfig(0.2, 0.0), **options),
    ):
        assert isinstance(output, GenerateEncoderDecoderOutput)
        assert torch.equal(output[0], expected.sequences)
        assert (output.decoder_attentions, output.past_key_values) == (None, None)
        assert set(output.keys()) >= {"sequences", "scores", "stats", "encoder_seconds"}
        probabilities = [
            pair.large.compute_transition_scores(o.sequences, o.scores, normalize_logits=True)
            for o in (output, expected)
        ]
        assert probabilities[0].shape == probabilities[1].shape


def test_twice_gives_the_same(pair, source):
    first, second = (pair.generate(source, max_new_tokens=16) for _ in range(2))
    assert torch.equal(first.sequences, second.sequences)
    assert first.stats == second.stats


def test_from_pretrained_round_trip(pair, source, tmp_path):
    pair.large.save_pretrained(tmp_path / "large")
    pair.small.save_pretrained(tmp_path / "small")
    loaded = BiLDModel.from_pretrained(str(tmp_path / "large"), str(tmp_path / "small"))
    assert torch.equal(
        loaded.generate(source, max_new_tokens=16).sequences,
        pair.generate(source, max_new_tokens=16).sequences,
    )
    half = BiLDModel.from_pretrained(
        str(tmp_path / "large"), str(tmp_path / "small"), dtype=torch.bfloat16
    )
    assert {half.large.dtype, half.small.dtype} == {torch.bfloat16}
    assert half.generate(source, max_new_tokens=4).stats.generated_tokens > 0


REFUSED = [
    ({"num_beams": 4}, "num_beams=4"),
    ({"do_sample": True, "num_beams": 2}, "num_beams=2"),
    ({"num_return_sequences": 2, "num_beams": 2}, "num_beams=2"),
    ({"use_cache": False}, "use_cache=False"),
    ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True"),
    ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states=True"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
    ({"bild_config": {"fallback_threshold": 0.5}}, "bild_config must be a BiLDConfig"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_unsupported_settings_are_refused_by_name_and_value(pair, source, options, message):
    with pytest.raises(BildError) as error:
        plug_in(pair, source, **options)
    assert message in str(error.value)


def test_sources_that_the_small_model_cannot_read_are_refused(pair, source):
    embedded = pair.large.get_input_embeddings()(source)
    with pytest.raises(BildError, match="needs input_ids"):
        plug_in(pair, None, inputs_embeds=embedded)
    encoded = pair.large.get_encoder()(source)
    with pytest.raises(BildError, match="needs input_ids"):
        plug_in(pair, None, encoder_outputs=encoded)


def test_a_missing_small_model_is_refused(pair, source):
    with pytest.raises(BildError, match="small_model=, a model, got None"):
        pair.large.generate(source, custom_generate=bild_generate)


def test_pairs_that_do_not_fit_are_refused_with_both_values():
    large = tiny_t5(1)
    with pytest.raises(BildError, match=r"16 tokens \(large\) and 200 \(small\)"):
        BiLDModel(large, tiny_t5(1, vocab=200))
    other = tiny_t5(1)
    other.generation_config.eos_token_id = 2
    with pytest.raises(BildError, match=r"eos_token_id differ: 1 \(large\) and 2 \(small\)"):
        BiLDModel(large, other)
    with pytest.raises(BildError, match="encoder-decoder model, got Linear"):
        BiLDModel(large, torch.nn.Linear(2, 2))
