"""The trace: against tables, and against the cacheless models."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Cacheless, reference_decode
from tables import EOS, TableDecoder, distance, rows, sure
from tiny import sources, tiny_t5
from transformers.generation import BaseStreamer

from bild import BiLDConfig, BildError, BiLDModel, Trace, bild_generate, greedy_generate
from bild.engines import Draft, Verdict
from bild.generation.decoding import Stopping, decode
from bild.generation.trace import Forward, TraceRecorder
from bild.policy import Step

VARIANTS = ("authors", "paper", "verified")
LIMIT = 14


# ------------------------------------------------------------------------------ tables


def trace_of(large, small, config, limit=20):
    recorder = TraceRecorder()
    stopping = Stopping(1 + limit, frozenset({EOS}))
    output, _ = decode(large, small, [0], config, stopping, recorder=recorder)
    trace = recorder.trace()
    assert [t.token for t in trace.kept] == output.tokens[1:]
    return trace


def fates(trace):
    return [(t.token, t.position, t.writer, t.fate, t.replaced_by) for t in trace.tokens]


class Engine(TableDecoder):
    """Drafts and judges without handing out logits, as a compiled decoder would."""

    def draft(self, pending, limit, rule, eos_token_ids=()):
        tokens, probabilities = [], []
        self.cached += pending
        while len(tokens) < limit:
            p = self.rows[len(self.cached) - 1].softmax(-1)
            token = int(p.argmax())
            probabilities.append(float(p[token]))
            if rule.should_stop(Step(probabilities[-1], math.prod(probabilities))):
                return self._end(Draft(tokens, probabilities, token), pending)
            tokens.append(token)
            if token in eos_token_ids or len(tokens) == limit:
                break
            self.cached.append(token)
        return self._end(Draft(tokens, probabilities, None), pending)

    def _end(self, draft, pending):
        steps = len(draft.probabilities)
        self.forwards += steps
        self.tokens_fed += len(pending) + steps - 1
        self.length = len(self.cached)
        return draft

    def verify(self, pending, drafted, first_row=0, needs=()):
        table = [r.softmax(-1) for r in self.rows[self.length : self.length + len(pending)]]
        super().feed(pending)
        table = table[first_row:]
        return Verdict(
            [int(p.argmax()) for p in table],
            [float(p.max()) for p in table],
            [-math.log(p[t]) for p, t in zip(table, drafted, strict=False)],
        )

    def feed(self, tokens):
        raise AssertionError("an engine does not feed")


LARGE = rows(2, 3, 4, 5, 6, EOS)
SMALL = [sure(9), sure(3, 0.9), sure(8, 0.8), sure(7), sure(9, 0.4), sure(EOS)]


@pytest.mark.parametrize("kind", [TableDecoder, Engine])
def test_every_proposal_has_its_writer_and_its_fate(kind):
    trace = trace_of(
        kind("large", LARGE), kind("small", SMALL), BiLDConfig(0.6, 2, variant="paper")
    )
    # 2 | draft 3 8 7, unsure -> 8 is far: cut, 4 | draft 7, unsure -> far: cut, 5 | unsure -> 6 | 1
    assert fates(trace) == [
        (2, 0, "large", "kept", None),
        (3, 1, "small", "kept", None),
        (8, 2, "small", "rolled back", 5),
        (7, 3, "small", "rolled back", 5),
        (9, 4, "small", "unsure", 5),
        (4, 2, "large", "kept", None),
        (7, 3, "small", "rolled back", 8),
        (9, 4, "small", "unsure", 8),
        (5, 3, "large", "kept", None),
        (9, 4, "small", "unsure", 10),
        (6, 4, "large", "kept", None),
        (EOS, 5, "small", "kept", None),
    ]
    tokens = trace.tokens
    expected = [0.99, 0.9, 0.8, 0.99, 0.4, 0.99, 0.99, 0.4, 0.99, 0.4, 0.99, 0.99]
    assert [t.confidence for t in tokens] == pytest.approx(expected, rel=1e-4)
    looked_at = {1: LARGE[1], 2: LARGE[2], 3: LARGE[3], 6: LARGE[3]}
    for place, token in enumerate(tokens):
        if place in looked_at:
            far = distance(looked_at[place], token.token)
            assert token.distance == pytest.approx(far, rel=1e-4)
        else:
            assert token.distance is None
    assert [(len(r.removed), r.replacement.token) for r in trace.rollbacks] == [(2, 4), (1, 5)]
    assert [(f.model, f.tokens_fed) for f in trace.forwards] == [
        ("large", 1), ("small", 2), ("small", 1), ("small", 1), ("small", 1), ("large", 4),
        ("small", 1), ("small", 1), ("large", 2), ("small", 1), ("large", 1), ("small", 1),
    ]  # fmt: skip
    assert [t.forward for t in tokens] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_an_end_is_confirmed_or_replaced_by_verified_and_unseen_otherwise():
    end = [sure(9), sure(3), sure(EOS), sure(EOS)]
    for variant in ("authors", "paper"):
        trace = trace_of(
            TableDecoder("large", rows(2, 3, 4)), TableDecoder("small", end),
            BiLDConfig(0.6, 2, variant=variant),
        )  # fmt: skip
        assert [t.distance for t in trace.tokens] == [None, None, None]
    agreed = trace_of(
        TableDecoder("large", rows(2, 3, EOS)), TableDecoder("small", end),
        BiLDConfig(0.6, 2, variant="verified"),
    )  # fmt: skip
    assert fates(agreed)[-1] == (EOS, 2, "small", "kept", None)
    assert agreed.tokens[-1].distance == pytest.approx(-math.log(0.99), rel=1e-3)
    assert agreed.forwards[-1] == Forward("large", 2, seconds=0)  # a forward that wrote nothing
    refused = trace_of(
        TableDecoder("large", rows(2, 3, 4, EOS)), TableDecoder("small", end),
        BiLDConfig(0.6, 2, variant="verified"),
    )  # fmt: skip
    assert (EOS, 2, "small", "rolled back", 3) in fates(refused)


def test_the_small_model_may_start_and_may_be_forbidden_to_write():
    table = rows(2, 3, EOS)
    trace = trace_of(
        TableDecoder("large", table), TableDecoder("small", table), BiLDConfig(start="small")
    )
    assert {t.writer for t in trace.tokens} == {"small"}
    trace = trace_of(
        TableDecoder("large", table), TableDecoder("small", table), BiLDConfig(num_small_iters=0)
    )
    assert {f.model for f in trace.forwards} == {t.writer for t in trace.tokens} == {"large"}


def test_json_round_trip():
    banned = [sure(2), sure(3), sure(EOS)]
    banned[1] = torch.where(torch.arange(10) == 4, -math.inf, banned[1])
    trace = trace_of(
        TableDecoder("large", banned), TableDecoder("small", [sure(2), sure(4), sure(EOS)]),
        BiLDConfig(0.6, 2, variant="verified"),
    )  # fmt: skip
    assert math.inf in [t.distance for t in trace.tokens]
    fields = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    again = Trace.from_dict(fields)
    assert again == trace
    assert [f.seconds for f in again.forwards] == [f.seconds for f in trace.forwards]
    with pytest.raises(BildError, match="must be a probability, got 1"):
        Trace.from_dict({**fields, "tokens": [{**fields["tokens"][0], "confidence": 1.5}]})
    for bad in ({}, {**fields, "tokens": [{}]}, {**fields, "forwards": [{"model": "large"}]}):
        with pytest.raises(BildError, match="not a trace"):
            Trace.from_dict(bad)


# ------------------------------------------------------------------------------ real models


def check(pair, source, config, oracles):
    """The trace of one output against its stats, and every figure in it recomputed cachelessly."""
    output = pair.generate(source, bild_config=config, max_new_tokens=LIMIT, output_trace=True)
    trace, stats, tokens = output.trace, output.stats, output.trace.tokens
    agree(output)

    big, little = oracles
    expected = reference_decode(
        big, little, fallback=config.fallback_threshold, rollback=config.rollback_threshold,
        variant=config.variant, start=config.start, num_small_iters=config.num_small_iters,
        max_length=1 + LIMIT, eos=EOS,
    )  # fmt: skip
    assert [t.token for t in trace.kept] == expected.tokens[1:]
    fallen = [t for t in tokens if t.fate == "unsure"]
    assert (len(fallen), len(trace.rollbacks)) == (expected.fallbacks, expected.rollbacks)

    y = [0]  # the output at the time of each proposal
    for token in tokens:
        del y[1 + token.position :]
        log_p = torch.log_softmax((big if token.writer == "large" else little)(y)[-1], -1)
        assert int(log_p.argmax()) == token.token
        assert token.confidence == pytest.approx(math.exp(log_p.max().item()), abs=1e-5)
        assert (token.fate == "unsure") == (
            token.writer == "small" and token.confidence < config.fallback_threshold
        )
        if token.distance is not None:
            far = -torch.log_softmax(big(y)[-1], -1)[token.token].item()
            assert token.distance == pytest.approx(far, abs=1e-4)
        if token.fate != "unsure":
            y.append(token.token)
    assert stats.generated_tokens == len(y) - 1


def agree(output):
    """A trace and the stats of the same output tell one story."""
    trace, stats, tokens = output.trace, output.stats, output.trace.tokens
    assert [t.token for t in trace.kept] == output.sequences[0, 1:].tolist()
    assert [t.position for t in trace.kept] == list(range(stats.generated_tokens))
    small = [t for t in tokens if t.writer == "small" and t.fate != "unsure"]
    kept = [t for t in small if t.fate == "kept"]
    assert stats.fallbacks == sum(t.fate == "unsure" for t in tokens)
    assert stats.drafted_tokens == len(small)
    assert stats.rolled_back_tokens == len(small) - len(kept)
    assert stats.rollbacks == len(trace.rollbacks)
    assert stats.verified_tokens == sum(t.distance is not None for t in kept)
    for model in ("large", "small"):
        fed = [f.tokens_fed for f in trace.forwards if f.model == model]
        assert len(fed) == getattr(stats, f"{model}_forwards")
        assert sum(fed) == getattr(stats, f"{model}_tokens_fed")
    for token in tokens:
        assert trace.forwards[token.forward].model == token.writer
        assert (token.fate == "kept") == (token.replaced_by is None)
        if token.replaced_by is not None:
            assert tokens[token.replaced_by].writer == "large"
            assert tokens[token.replaced_by].position <= token.position


@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.05, 0.2, 0.5]),
    fallback=st.floats(0, 1),
    rollback=st.one_of(st.sampled_from([0.0, math.inf]), st.floats(0, 6)),
    iters=st.sampled_from([1, 3, 10]),
    start=st.sampled_from(["large", "small"]),
)
@settings(max_examples=10)
def test_every_figure_is_that_of_the_cacheless_models(
    seed, noise, fallback, rollback, iters, start
):
    large, small = tiny_t5(seed), tiny_t5(seed, noise=noise)
    (source,) = sources(seed, 1)
    oracles = Cacheless(large, source), Cacheless(small, source)
    for variant in VARIANTS:
        config = BiLDConfig(fallback, rollback, iters, variant, start)
        check(BiLDModel(large, small), source, config, oracles)


@pytest.fixture(scope="module")
def pair():
    return BiLDModel(tiny_t5(30), tiny_t5(30, noise=0.25))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_processors_count_as_the_writers_own(pair, variant):
    cut = 0
    for source in sources(30, 6):
        options = {
            "bild_config": BiLDConfig(0.2, 0.5, variant=variant),
            "max_new_tokens": 16,
            "no_repeat_ngram_size": 2,
            "repetition_penalty": 1.3,
            "output_scores": True,
        }
        output = pair.generate(source, output_trace=True, **options)
        agree(output)
        assert torch.equal(output.sequences, pair.generate(source, **options).sequences)
        for token, scores in zip(output.trace.kept, output.scores, strict=True):
            probability = scores[0].softmax(-1)[token.token].item()
            assert token.confidence == pytest.approx(probability, abs=1e-5)
        cut += len(output.trace.rollbacks)
    assert cut > 0


def test_it_is_only_there_when_asked_for_and_the_same_each_time(pair):
    (source,) = sources(30, 1)
    options = {"bild_config": BiLDConfig(0.3, 0.5), "max_new_tokens": LIMIT}
    assert pair.generate(source, **options).trace is None
    first, second = (pair.generate(source, output_trace=True, **options) for _ in range(2))
    assert first.trace == second.trace
    assert first.stats == second.stats
    assert min(f.seconds for f in first.trace.forwards) > 0
    with pytest.raises(BildError, match="output_trace=True needs return_dict_in_generate=True"):
        pair.large.generate(
            source, custom_generate=bild_generate, small_model=pair.small, output_trace=True
        )


def test_the_large_model_alone_has_a_trace_too(pair):
    (source,) = sources(30, 1)
    output = pair.large.generate(
        source,
        custom_generate=greedy_generate,
        max_new_tokens=20,
        output_trace=True,
        return_dict_in_generate=True,
    )
    trace = output.trace
    assert [t.token for t in trace.kept] == output.sequences[0, 1:].tolist()
    assert {t.writer for t in trace.tokens} == {"large"}
    assert len(trace.forwards) == output.stats.large_forwards


class Traced(BaseStreamer):
    """Notes what it is given, by which of its methods."""

    def __init__(self):
        self.put_calls, self.traced = 0, []

    def put(self, value):
        self.put_calls += 1

    def put_traced(self, tokens):
        self.traced += tokens

    def end(self):
        pass


def test_a_streamer_is_told_who_wrote_each_token_as_it_is_settled():
    large, small = tiny_t5(0), tiny_t5(0, noise=0.3)
    pair = BiLDModel(large, small, engine="transformers")
    writers = set()
    for seed in range(2, 12):
        source = torch.tensor([[seed, 9, 3, 11, 1]])
        streamer = Traced()
        options = {"bild_config": BiLDConfig(0.3, 1.0), "max_new_tokens": 14}
        output = pair.generate(source, streamer=streamer, output_trace=True, **options)
        assert [t.token for t in streamer.traced] == output.sequences[0, 1:].tolist()
        kept = [(t.token, t.writer) for t in output.trace.kept]
        assert [(t.token, t.writer) for t in streamer.traced] == kept
        assert streamer.put_calls == 1  # the prompt
        writers |= {t.writer for t in streamer.traced}
        plain = Traced()
        pair.generate(source, streamer=plain, **options)
        assert (plain.traced, plain.put_calls) == ([], 1 + len(kept))
    assert writers == {"large", "small"}
