"""Batches: every row is what it is alone, and what the rows ask is answered together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_engines import ENGINES
from reference import Cacheless, reference_decode
from tiny import EOS, PAD, sources, tiny_bart, tiny_t5
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.pipelines import SUPPORTED_TASKS

from bild import (
    BiLDConfig,
    BildError,
    BiLDModel,
    BiLDOutput,
    DecodeStats,
    bild_generate,
    greedy_generate,
)
from bild.checkpoints.early_exit import early_exit
from bild.engines import requests
from bild.generation.batching import run_rows

SIZES = (1, 2, 3, 17)
VARIANTS = ("authors", "paper", "verified")
LIMIT = 14
SEED = 38
_pairs = {}


def pair_on(options):
    """A pair that agrees often, whose rows end early and late; made once an engine."""
    key = tuple(options.items())
    if key not in _pairs:
        shape = {"width": 32, "head_width": 16}
        models = tiny_t5(SEED, **shape), tiny_t5(SEED, noise=0.3, **shape)
        _pairs[key] = BiLDModel(*models, **options)
    return _pairs[key]


def padded(rows):
    """Sources (1, S) each -> input_ids (B, longest) and their mask."""
    ids = pad_sequence([row[0] for row in rows], batch_first=True, padding_value=PAD)
    mask = pad_sequence([torch.ones_like(row[0]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def bare(sequences):
    """Rows as lists, without the padding after their end; the start token may be an end too."""
    rows = sequences.tolist()
    return [row[: row.index(EOS, 1) + 1] if EOS in row[1:] else row for row in rows]


def check(together, alone):
    """A batch's output against those of its rows."""
    assert bare(together.sequences) == [one.sequences[0].tolist() for one in alone]
    assert together.row_stats == tuple(one.stats for one in alone)
    assert together.stats == sum((one.stats for one in alone), DecodeStats())


# ------------------------------------------------------------------------------ equality


@pytest.mark.parametrize("options", ENGINES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 999),
    fallback=st.sampled_from((0.0, 0.3, 0.6, 0.9, 1.1)),
    rollback=st.sampled_from((0.0, 0.5, 2.0, float("inf"))),
    variant=st.sampled_from(VARIANTS),
    iters=st.sampled_from((1, 3, 10)),
    start=st.sampled_from(("large", "small")),
    lookahead=st.sampled_from((0, 1, float("inf"))),
)
def test_each_row_is_what_it_is_alone(
    options, size, seed, fallback, rollback, variant, iters, start, lookahead
):
    pair, rows = pair_on(options), sources(seed, size, longest=30)
    config = BiLDConfig(fallback, rollback, iters, variant, start, lookahead=lookahead)
    alone = [pair.generate(r, bild_config=config, max_new_tokens=LIMIT) for r in rows]
    check(pair.generate(**padded(rows), bild_config=config, max_new_tokens=LIMIT), alone)
    for batch_size in (1, 4):
        found = list(pair.generate_many(rows, config, batch_size=batch_size, max_new_tokens=LIMIT))
        assert [o.sequences.tolist() for o in found] == [o.sequences.tolist() for o in alone]
        assert [o.stats for o in found] == [o.stats for o in alone]
    large, small = Cacheless(pair.large, rows[0]), Cacheless(pair.small, rows[0])
    expected = reference_decode(
        *(large, small),
        fallback=fallback,
        rollback=rollback,
        variant=variant,
        start=start,
        num_small_iters=iters,
        max_length=1 + LIMIT,
        eos=EOS,
    )
    assert alone[0].sequences[0].tolist() == expected.tokens


def test_the_rows_of_these_tests_end_at_different_times_and_something_happens_in_them():
    pair = pair_on({"engine": "fast", "compile": False})
    given = padded(sources(5, 17, longest=30))
    output = pair.generate(**given, bild_config=BiLDConfig(0.3, 0.5), max_new_tokens=LIMIT)
    lengths = {stats.generated_tokens for stats in output.row_stats}
    assert len(lengths) > 3
    assert min(lengths) < LIMIT == max(lengths)
    assert min(output.stats.rollbacks, output.stats.fallbacks, output.stats.verified_tokens) > 5


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("size", SIZES)
def test_a_greedy_batch_is_transformers_own(options, size):
    pair, rows = pair_on(options), sources(11, size, longest=30)
    for which, model in (("large", pair.large), ("small", pair.small)):
        own = model.generate(**padded(rows), do_sample=False, max_new_tokens=LIMIT)
        output = pair.greedy(**padded(rows), which=which, max_new_tokens=LIMIT)
        assert torch.equal(output.sequences, own)
        alone = [pair.greedy(r, which=which, max_new_tokens=LIMIT) for r in rows]
        assert output.row_stats == tuple(one.stats for one in alone)
        found = pair.greedy_many(rows, which=which, batch_size=3, max_new_tokens=LIMIT)
        assert [o.sequences.tolist() for o in found] == [o.sequences.tolist() for o in alone]
    # Without a mask padding is text, as there.
    lossless = BiLDConfig(0.3, 0.0)
    given = padded(rows)["input_ids"]
    own = pair.large.generate(given, do_sample=False, max_new_tokens=LIMIT)
    output = pair.generate(given, bild_config=lossless, max_new_tokens=LIMIT)
    assert torch.equal(output.sequences, own)
    alone = pair.generate(
        given, bild_config=lossless, max_new_tokens=LIMIT, return_dict_in_generate=False
    )
    assert torch.equal(alone, own)


@pytest.mark.parametrize("options", ENGINES)
def test_scores_processors_and_prompts_of_each_row(options):
    pair, rows = pair_on(options), sources(13, 3, longest=30)
    prompts = torch.tensor([[PAD, 5], [PAD, 6], [PAD, 7]])
    allowed = [[*range(3, 9), EOS], [*range(6, 13), EOS], [*range(9, 16), EOS]]
    for extra, own in (
        ({"output_scores": True, "output_logits": True}, None),
        ({"no_repeat_ngram_size": 1, "output_scores": True}, None),
        ({"encoder_repetition_penalty": 2.0}, None),
        ({"decoder_input_ids": prompts}, lambda i: {"decoder_input_ids": prompts[i : i + 1]}),
        (
            {"prefix_allowed_tokens_fn": lambda row, ids: allowed[row]},
            lambda i: {"prefix_allowed_tokens_fn": lambda _, ids: allowed[i]},
        ),
    ):
        kwargs = {"bild_config": BiLDConfig(0.3, 0.5), "max_new_tokens": LIMIT, **extra}
        alone = [
            pair.generate(row, **kwargs | ({} if own is None else own(i)))
            for i, row in enumerate(rows)
        ]
        together = pair.generate(**padded(rows), **kwargs)
        check(together, alone)
        for name in ("scores", "logits"):
            if getattr(alone[0], name) is None:
                assert getattr(together, name) is None
                continue
            for place, scores in enumerate(getattr(together, name)):
                for i, one in enumerate(alone):
                    there = getattr(one, name)
                    if place < len(there):
                        assert torch.allclose(scores[i], there[place][0], atol=1e-3)
                    else:
                        assert scores[i].isnan().all()


@pytest.mark.parametrize("options", ENGINES)
def test_encoder_outputs_of_a_batch(options):
    pair, rows = pair_on(options), sources(17, 3, longest=30)
    given = padded(rows)
    states = pair.large.get_encoder()(**given)
    kwargs = {"bild_config": BiLDConfig(0.3, 0.5), "max_new_tokens": LIMIT}
    expected = pair.generate(**given, **kwargs).sequences
    for outputs in (states, (states[0],)):
        found = pair.generate(**given, encoder_outputs=outputs, **kwargs)
        assert torch.equal(found.sequences, expected)


@pytest.mark.parametrize("small", [{"noise": 0.3}, "early-exit"], ids=str)
@pytest.mark.parametrize("options", ENGINES)
def test_encoder_outputs_of_a_batch_need_no_ids(options, small):
    """(B, S, D) of both encoders, or of the one that both models read, padded as the mask says."""
    pair = pair_on(options)
    if small == "early-exit":
        pair = BiLDModel(pair.large, early_exit(pair.large, 1), **options)
    rows = sources(17, 3, longest=30)
    given = padded(rows)
    mask = {"attention_mask": given["attention_mask"]}
    kwargs = {"bild_config": BiLDConfig(0.3, 0.5), "max_new_tokens": LIMIT}
    alone = [pair.generate(row, **kwargs) for row in rows]
    states = {"encoder_outputs": pair.large.get_encoder()(**given)}
    if small != "early-exit":
        states["small_encoder_outputs"] = pair.small.get_encoder()(**given)
    check(pair.generate(**states, **mask, **kwargs), alone)
    check(Plugged(pair).generate(None, **states, **mask, **kwargs), alone)
    tuples = {name: (made[0],) for name, made in states.items()}
    check(pair.generate(**tuples, **mask, **kwargs), alone)
    split = [
        {name: (made[0][i : i + 1],) for name, made in states.items()}
        | {"attention_mask": mask["attention_mask"][i : i + 1]}
        for i in range(3)
    ]
    found = list(pair.generate_many(split, batch_size=2, **kwargs))
    assert [o.stats for o in found] == [o.stats for o in alone]
    large = {"encoder_outputs": states["encoder_outputs"], **mask, "max_new_tokens": LIMIT}
    greedy = pair.greedy(**given, max_new_tokens=LIMIT)
    assert torch.equal(pair.greedy(**large).sequences, greedy.sequences)
    drawn = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": LIMIT}
    one, other = (
        pair.generate(**those, **drawn, generator=torch.Generator().manual_seed(3))
        for those in (given, {**states, **mask})
    )
    assert torch.equal(one.sequences, other.sequences)
    assert len(one.sequences) == 6


def test_states_prompts_and_masks_of_other_rows_are_refused():
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(17, 3, longest=30)
    given, limit = padded(rows), {"max_new_tokens": 3}
    states = pair.large.get_encoder()(**given)[0]
    prompts = torch.tensor([[PAD, 5], [PAD, 6]])
    for extra, message in (
        ({"encoder_outputs": (states[:2],)}, "encoder_outputs must hold states of 3 source"),
        ({"encoder_outputs": (states.repeat(2, 1, 1),)}, "hold states of 3 source.*got 6"),
        ({"small_encoder_outputs": (states[:1],)}, "small_encoder_outputs must hold states of 3"),
        ({"decoder_input_ids": prompts}, "decoder_input_ids must have a row for each of 3"),
        ({"decoder_input_ids": prompts.tolist()}, "decoder_input_ids must be a tensor, got a list"),
        ({"attention_mask": given["attention_mask"].tolist()}, "attention_mask must .* got a list"),
        ({"attention_mask": given["attention_mask"][:2]}, "must have the shape of input_ids"),
    ):
        with pytest.raises(BildError, match=message):
            pair.generate(**{**given, **extra}, **limit)
    wider = BaseModelOutput(last_hidden_state=states.repeat(2, 1, 1))
    with pytest.raises(BildError, match="must hold states of 3 source"):
        Plugged(pair).generate(**given, encoder_outputs=wider, **limit)
    for door in (pair, Plugged(pair)):
        with pytest.raises(BildError, match="decoder_input_ids must have"):
            door.generate(rows[0], decoder_input_ids=prompts, **limit)
    with pytest.raises(BildError, match=r"attention_mask must be a tensor .* got a list"):
        pair.generate(rows[0], [[1] * rows[0].shape[1]], **limit)
    # One prompt is every row's.
    prompt = pair.generate(**given, decoder_input_ids=prompts[:1], **limit).sequences
    assert prompt[:, :2].tolist() == [[PAD, 5]] * 3


@pytest.mark.parametrize(
    "setting",
    [
        {"do_sample": True},
        {"num_return_sequences": 2},
        {"return_dict_in_generate": False},
        {"generation_config": GenerationConfig(do_sample=True)},
        {"streamer": object()},
        {"output_trace": True},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_source_cannot_bring_what_is_the_calls(setting):
    """A source that would draw did so from torch's own numbers: by the rows beside it."""
    pair, (row,) = pair_on({"engine": "fast", "compile": False}), sources(17, 1)
    given = [row, {"input_ids": row, **setting}]
    with pytest.raises(BildError, match=f"a source cannot bring {next(iter(setting))}="):
        list(pair.generate_many(given, max_new_tokens=3))


class Counting:
    """A logits processor that keeps a state: how many tokens it has been asked about."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores):
        self.calls += 1
        scores[:, 3 + self.calls % 13] = -torch.inf
        return scores


class Plugged:
    """`custom_generate=`, called as a pair."""

    def __init__(self, pair):
        self.large, self.small = pair.large, pair.small

    def generate(self, input_ids, attention_mask=None, **kwargs):
        return self.large.generate(
            input_ids, attention_mask=attention_mask, custom_generate=bild_generate,
            small_model=self.small, return_dict_in_generate=True, **kwargs,
        )  # fmt: skip


class AtTheEighthCall:
    """A criterion that keeps a state."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores, **_):
        self.calls += 1
        return torch.tensor([self.calls == 8] * len(ids))


@pytest.mark.parametrize("door", [lambda pair: pair, Plugged], ids=["pair", "plugged"])
def test_each_row_meets_what_keeps_a_state_as_the_call_was_given_it(door):
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(6, 4, longest=30)
    model, kwargs = door(pair), {"bild_config": BiLDConfig(0.3, 0.5), "max_new_tokens": LIMIT}

    def used():
        """A processor that has been asked about five tokens before."""
        processor, criterion = Counting(), AtTheEighthCall()
        processor.calls = 5
        return {"logits_processor": [processor], "stopping_criteria": [criterion]}

    alone, left = [], []
    for row in rows:
        own = used()
        alone.append(model.generate(row, **own, **kwargs))
        left.append(own["logits_processor"][0].calls)
    assert len(set(left)) > 1
    assert max(one.stats.rollbacks for one in alone) > 0
    own = used()
    check(model.generate(**padded(rows), **own, **kwargs), alone)
    assert own["logits_processor"][0].calls == left[-1]  # as the last row leaves it
    if isinstance(model, Plugged):
        return
    for size in (1, 3):
        own = used()
        found = list(pair.generate_many(rows, batch_size=size, **own, **kwargs))
        assert [o.stats for o in found] == [o.stats for o in alone]
        assert [o.sequences.tolist() for o in found] == [o.sequences.tolist() for o in alone]
        assert own["logits_processor"][0].calls == left[-1]
    # Sources may bring their own, one for all of them or each another.
    shared, others = used(), [used() for _ in rows]
    for brought in ([shared] * 4, others):
        given = [{"input_ids": row, **own} for row, own in zip(rows, brought, strict=True)]
        found = list(pair.generate_many(given, batch_size=3, **kwargs))
        assert [o.sequences.tolist() for o in found] == [o.sequences.tolist() for o in alone]
    assert [own["logits_processor"][0].calls for own in others] == left


def test_a_state_counts_the_steps_of_a_batch_as_transformers_does():
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(19, 3, longest=30)
    kwargs = {"max_new_tokens": LIMIT, "suppress_tokens": [EOS]}
    own = pair.large.generate(**padded(rows), logits_processor=[Counting()], **kwargs)
    config = BiLDConfig(0.3, 0.0)
    for model in (pair, Plugged(pair)):
        output = model.generate(
            **padded(rows), bild_config=config, logits_processor=[Counting()], **kwargs
        )
        assert torch.equal(output.sequences, own)
    output = pair.greedy(**padded(rows), logits_processor=[Counting()], **kwargs)
    assert torch.equal(output.sequences, own)


def test_rows_that_are_asked_of_a_state_are_decoded_together():
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(19, 3, longest=30)
    begun = []

    def given():
        for row in rows:
            begun.append(row)
            yield row

    found = pair.generate_many(given(), batch_size=3, logits_processor=[Counting()])
    next(found)
    assert len(begun) == 3


@pytest.mark.parametrize("door", [lambda pair: pair, Plugged], ids=["pair", "plugged"])
def test_the_watermark_that_keeps_a_state_is_each_rows_own(door):
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(19, 3, longest=30)
    watermark = SynthIDTextWatermarkingConfig(
        keys=[654, 400, 836], ngram_len=3, sampling_table_size=64, context_history_size=8
    )
    model, kwargs = door(pair), {"max_new_tokens": LIMIT, "suppress_tokens": [EOS]}
    kwargs |= {"bild_config": BiLDConfig(0.3, 0.5), "watermarking_config": watermark}
    alone = [model.generate(row, **kwargs) for row in rows]
    check(model.generate(**padded(rows), **kwargs), alone)


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: EncoderNoRepeatNGramLogitsProcessor(1, ids),
        lambda ids: EncoderRepetitionPenaltyLogitsProcessor(2.0, ids),
        lambda ids: PrefixConstrainedLogitsProcessor(lambda row, _: [3 + row, 5 + row], 1),
    ],
    ids=["ngrams", "penalty", "prefix"],
)
def test_processors_that_know_all_sources_are_refused(make):
    """They count rows, and each row is the first of its own: it would get what is another's."""
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(19, 3, longest=30)
    given, limit = padded(rows), {"max_new_tokens": 4}
    of_all = {"logits_processor": [make(given["input_ids"])], **limit}
    name = type(of_all["logits_processor"][0]).__name__
    for call in (
        lambda: pair.generate(**given, **of_all),
        lambda: pair.greedy(**given, **of_all),
        lambda: list(pair.generate_many(rows, batch_size=1, **of_all)),
        lambda: Plugged(pair).generate(**given, **of_all),
    ):
        with pytest.raises(BildError, match=f"cannot use {name} with several sources"):
            call()
    # With its source it is that source's.
    split = [{"input_ids": row, "logits_processor": [make(row)]} for row in rows]
    for row, own, output in zip(rows, split, pair.generate_many(split, **limit), strict=True):
        alone = pair.generate(row, logits_processor=own["logits_processor"], **limit)
        assert torch.equal(output.sequences, alone.sequences)


class OwnGuidance(UnbatchedClassifierFreeGuidanceLogitsProcessor):
    """Somebody's own kind of guidance."""


@pytest.mark.parametrize("door", [lambda pair: pair, Plugged], ids=["pair", "plugged"])
@pytest.mark.parametrize("kind", [UnbatchedClassifierFreeGuidanceLogitsProcessor, OwnGuidance])
@pytest.mark.parametrize("size", [1, 2])
def test_guidance_is_refused_by_its_name(door, kind, size):
    pair, rows = pair_on({"engine": "fast", "compile": False}), sources(19, size, longest=30)
    model = door(pair)
    with pytest.raises(BildError, match="UnbatchedClassifierFreeGuidanceLogitsProcessor, which"):
        model.generate(**padded(rows), logits_processor=[kind(1.5, pair.large)], max_new_tokens=3)
    with pytest.raises(BildError, match=r"guidance_scale=1\.5; use guidance_scale=1"):
        model.generate(**padded(rows), guidance_scale=1.5, max_new_tokens=3)


def test_other_families_decode_batches_too():
    pair, rows = BiLDModel(tiny_bart(3), tiny_bart(4, layers=1)), sources(3, 3)
    kwargs = {"bild_config": BiLDConfig(0.3, 0.5), "num_beams": 1, "max_new_tokens": 10}
    check(pair.generate(**padded(rows), **kwargs), [pair.generate(r, **kwargs) for r in rows])


# ------------------------------------------------------------------------------ plugged in


PLUGGED = {"max_new_tokens": LIMIT, "do_sample": False}


def test_custom_generate_decodes_batches_as_the_pair_does():
    pair, rows = pair_on({"engine": "transformers"}), sources(41, 3, longest=30)
    config, given = BiLDConfig(0.3, 0.5), padded(rows)
    expected = pair.generate(**given, bild_config=config, max_new_tokens=LIMIT)
    plugged = {**PLUGGED, "custom_generate": bild_generate, "small_model": pair.small}
    found = pair.large.generate(
        **given, **plugged, bild_config=config, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(found.sequences, expected.sequences)
    assert [s.generated_tokens for s in found.row_stats] == [
        s.generated_tokens for s in expected.row_stats
    ]
    assert found.scores[0].shape == (3, 16)
    greedy = pair.large.generate(**given, **PLUGGED, custom_generate=greedy_generate)
    assert torch.equal(greedy, pair.large.generate(**given, **PLUGGED))
    for extra, message in (
        ({"encoder_repetition_penalty": 2.0}, "cannot use EncoderRepetitionPenaltyLogitsProcessor"),
        ({"output_trace": True}, "output_trace= takes one source at a time, got a batch of 3"),
        ({"bild_streamer": Stub()}, "bild_streamer= takes one source at a time"),
    ):
        with pytest.raises(BildError, match=message):
            pair.large.generate(**given, **plugged, **extra)


def test_a_trainer_predicts_in_batches(tmp_path):
    pair, rows = pair_on({"engine": "transformers"}), sources(43, 5, longest=30)
    config = BiLDConfig(0.3, 0.5)
    trainer = Seq2SeqTrainer(
        pair.large,
        Seq2SeqTrainingArguments(
            str(tmp_path),
            predict_with_generate=True,
            per_device_eval_batch_size=3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        data_collator=lambda rows: padded([torch.tensor([r["input_ids"]]) for r in rows]),
    )
    data = [{"input_ids": row[0].tolist()} for row in rows]
    found = trainer.predict(
        data,
        custom_generate=bild_generate,
        small_model=pair.small,
        bild_config=config,
        **PLUGGED,
    ).predictions
    for own, row in zip(found.tolist(), rows, strict=True):
        alone = pair.generate(row, bild_config=config, max_new_tokens=LIMIT).sequences[0].tolist()
        assert own[: len(alone)] == alone
        assert set(own[len(alone) :]) <= {PAD, -100}


def test_transformers_has_no_pipeline_for_such_texts_as_the_page_says():
    gone = {"text2text-generation", "translation", "summarization"}
    assert not gone & set(SUPPORTED_TASKS)


# ------------------------------------------------------------------------------ together


@pytest.mark.parametrize("options", ENGINES[:2])
def test_one_large_forward_serves_all_rows(options, monkeypatch):
    pair = pair_on(options)
    asked = []
    real = requests._together

    def together(kind, company, group):
        asked.append((group[0].decoder.name, len(group)))
        return real(kind, company, group)

    monkeypatch.setattr(requests, "_together", together)
    # Where the library makes whole rounds nobody asks for a forward.
    monkeypatch.setattr("bild.generation.generate.make_rounds", lambda *_: None)
    output = pair.generate(
        **padded(sources(5, 8, longest=30)), bild_config=BiLDConfig(0.3, 0.5), max_new_tokens=LIMIT
    )
    large = [size for name, size in asked if name == "large"]
    forwards = [stats.large_forwards for stats in output.row_stats]
    # As many as the row that needs most: all others are served by the same.
    assert len(large) == max(forwards)
    assert sum(large) == sum(forwards)
    assert large[0] == 8


def test_waiting_sources_begin_where_others_have_ended():
    pair = pair_on({"engine": "fast", "compile": False})
    taken, ended = [], 0

    def given():
        for source in sources(23, 12, longest=30):
            taken.append(source)
            yield source

    for _ in pair.generate_many(given(), BiLDConfig(0.3, 0.5), batch_size=3, max_new_tokens=LIMIT):
        ended += 1
        assert ended <= len(taken)
    assert (ended, len(taken)) == (12, 12)

    finished = []
    busiest = 0

    def row(length, number):
        nonlocal busiest
        for _ in range(length):
            busiest = max(busiest, number - len(finished))
            yield requests.FeedRequest(Stub(), [0])
        return number

    lengths = [5, 1, 1, 1, 5, 1]
    rows = (row(n, i) for i, n in enumerate(lengths))
    for number, result in run_rows(rows, 2):
        assert number == result
        finished.append(number)
    # While the long first row goes on, three short ones come and go beside it.
    assert finished == [1, 2, 3, 0, 5, 4]
    assert busiest <= 1


class Stub:
    """A decoder that has nothing to say."""

    name, company = "large", None

    def feed(self, tokens):
        return None


@pytest.mark.parametrize("options", ENGINES[:2])
def test_sessions_are_given_back_however_it_ends(options):
    pair = pair_on(options)
    arranged = pair.engine.arranged()
    rows = sources(29, 6, longest=30)
    list(pair.generate_many(rows, batch_size=4, max_new_tokens=LIMIT))
    idle = len(arranged._idle)
    assert idle >= 4
    half = pair.generate_many(rows, batch_size=4, max_new_tokens=LIMIT)
    next(half)
    half.close()
    del half
    assert len(arranged._idle) == idle
    with pytest.raises(BildError, match="token id 99"):
        list(
            pair.generate_many([*rows[:2], torch.tensor([99])], batch_size=4, max_new_tokens=LIMIT)
        )
    assert len(arranged._idle) == idle


# ------------------------------------------------------------------------------ the surface


def test_sources_in_every_form():
    pair = pair_on({"engine": "fast", "compile": False})
    (source,) = sources(31, 1)
    ids = source[0].tolist()
    mask = [1] * len(ids)
    given = [source, source[0], ids, {"input_ids": ids, "attention_mask": mask}]
    given.append({"input_ids": torch.tensor([[*ids, PAD]]), "attention_mask": [*mask, 0]})
    found = list(pair.generate_many(given, max_new_tokens=LIMIT))
    assert all(isinstance(output, BiLDOutput) for output in found)
    assert {str(output.sequences.tolist()) for output in found} == {
        str(pair.generate(source, max_new_tokens=LIMIT).sequences.tolist())
    }
    assert list(pair.generate_many([])) == []


@pytest.mark.parametrize("options", ENGINES[:2])
def test_rows_of_a_batch_look_ahead(options):
    pair, rows = pair_on(options), sources(39, 6, longest=30)
    plain, ahead, priced = (
        pair.generate(
            **padded(rows), bild_config=BiLDConfig(0.6, 0.5, lookahead=n), max_new_tokens=20
        )
        for n in (0, 2, "auto")
    )
    assert torch.equal(plain.sequences, ahead.sequences)
    assert torch.equal(plain.sequences, priced.sequences)  # how far it looks the clock decides
    assert ahead.stats.guesses_held > 0
    assert ahead.stats.large_forwards < plain.stats.large_forwards
    assert pair._in_batches.prices.seen > 0


@pytest.mark.parametrize("options", ENGINES[:2])
@pytest.mark.parametrize("drafting", ["adaptive", "margin", "product", "entropy"])
def test_other_rules_of_drafting_write_the_large_models_output(options, drafting):
    pair, rows = pair_on(options), sources(47, 5, longest=30)
    config = BiLDConfig(0.3, 0.0, drafting=drafting)
    found = pair.generate(**padded(rows), bild_config=config, max_new_tokens=40)
    expected = pair.greedy(**padded(rows), max_new_tokens=40)
    assert torch.equal(found.sequences, expected.sequences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streamer": object()}, "streamer= with several outputs at a time"),
        ({"output_trace": True}, "output_trace= with several outputs at a time"),
        ({"attention_mask": torch.ones(2, 3)}, "attention_mask must have the shape of input_ids"),
        ({"bild_config": 3}, "bild_config must be a BiLDConfig"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_a_batch_cannot_be_given_is_refused(options, message):
    pair = pair_on({"engine": "fast", "compile": False})
    given = {"input_ids": torch.tensor([[3, 4], [5, 1]]), "max_new_tokens": 4, **options}
    with pytest.raises(BildError) as error:
        pair.generate(**given)
    assert message in str(error.value)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_a_batch_size_that_is_none_is_refused_at_once(size):
    pair = pair_on({"engine": "fast", "compile": False})
    for many in (pair.generate_many, pair.greedy_many):
        with pytest.raises(BildError, match="batch_size must be a whole number of at least 1"):
            many([], batch_size=size)
