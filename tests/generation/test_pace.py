"""Drafting that adapts: what it costs by a price model, where the clock is what forwards cost."""

from __future__ import annotations

import math

import pytest
import torch
from tables import EOS, TableDecoder, sure
from tiny import sources, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel
from bild.generation.decoding import Stopping, decode
from bild.generation.pace import LONGEST_REST, Experience
from bild.generation.trace import TraceRecorder

LENGTH = 128
ENCODER, SMALL, LARGE, TOKEN = 3.0, 0.25, 1.0, 0.05  # prices


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Priced(TableDecoder):
    """A table whose forwards take time; the small one's source too."""

    def __init__(self, name, rows, clock, price):
        self.clock, self.price = clock, price
        super().__init__(name, rows)

    def feed(self, tokens):
        self.clock.now += self.price + TOKEN * (len(tokens) - 1)
        return super().feed(tokens)


class Pair:
    """Decodes outputs one after the other; `right(i)` says whether the small model is right."""

    def __init__(self, right, confidence=0.95, drafting="adaptive", small=SMALL):
        self.clock = Clock()
        self.known = Experience(clock=self.clock)
        self.config = BiLDConfig(0.5, acceptance="exact", drafting=drafting)
        self.right, self.confidence, self.price = right, confidence, small
        self.written = 0

    def output(self, **options):
        """One output; what it took, and its stats."""
        start = self.clock.now
        large = [sure(2 + i % 7) for i in range(LENGTH + 1)]
        small = [
            sure(2 + i % 7 if self.right(self.written + i) else 9, self.confidence)
            for i in range(LENGTH + 1)
        ]
        decoders = (
            Priced("large", large, self.clock, LARGE),
            Priced("small", small, self.clock, self.price),
        )
        encoded = decoders[1].begin

        def read(*_):
            self.clock.now += ENCODER
            encoded(None, None)

        decoders[1].read = read
        decoders[1].read_later(None)
        stopping = Stopping(1 + LENGTH, frozenset({EOS}))
        output, stats = decode(
            *decoders, [0], self.config, stopping, experience=self.known, **options
        )
        assert output.tokens[1:] == [2 + i % 7 for i in range(LENGTH)]
        self.written += LENGTH
        return self.clock.now - start, stats


ALONE = LENGTH * LARGE


@pytest.mark.parametrize(("confidence", "small"), [(0.6, 0.05), (0.95, 0.25), (1 - 1e-6, 0.6)])
def test_a_small_model_that_always_errs_ends_within_five_percent(confidence, small):
    pair = Pair(lambda i: False, confidence, small=small)
    seconds = [pair.output()[0] for _ in range(20)]
    assert sum(seconds) <= 1.05 * 20 * ALONE
    assert sum(seconds[10:]) <= 1.02 * 10 * ALONE
    # Without adapting it is dear, whatever the small model costs.
    steady = Pair(lambda i: False, confidence, drafting="max:threshold=0.5", small=small)
    assert sum(steady.output()[0] for _ in range(3)) > 1.3 * 3 * ALONE


def test_a_good_small_model_is_used():
    pair = Pair(lambda i: True)
    steady = Pair(lambda i: True, drafting="max:threshold=0.5")
    seconds = [pair.output()[0] for _ in range(5)]
    usual = [steady.output()[0] for _ in range(5)]
    assert sum(seconds) < 0.6 * 5 * ALONE
    assert sum(seconds) < 1.1 * sum(usual)
    assert pair.known.limit > 10


def test_a_small_model_that_becomes_good_is_found_out():
    pair = Pair(lambda i: i > 20 * LENGTH)
    seconds = [pair.output()[0] for _ in range(60)]
    assert sum(seconds[:20]) <= 1.05 * 20 * ALONE
    assert sum(seconds[-10:]) < 0.6 * 10 * ALONE
    assert LONGEST_REST <= 20 * LENGTH  # tried again at least once in so many tokens


def test_a_small_model_that_costs_as_much_as_the_large_one_rests():
    pair = Pair(lambda i: True, small=1.1)
    seconds = [pair.output()[0] for _ in range(20)]
    assert sum(seconds[5:]) <= 1.05 * 15 * ALONE


def test_drafts_are_short_where_the_small_model_often_errs():
    pair = Pair(lambda i: i % 3 != 0)
    steady = Pair(lambda i: i % 3 != 0, drafting="max:threshold=0.5")
    adapted, usual = (sum(p.output()[0] for _ in range(10)) for p in (pair, steady))
    assert adapted < usual
    assert adapted <= 1.05 * 10 * ALONE
    assert pair.known.limit < 6


def test_while_it_rests_the_small_model_does_not_read():
    pair = Pair(lambda i: False)
    seconds, stats = zip(*(pair.output() for _ in range(20)), strict=True)
    idle = [s for s, found in zip(seconds, stats, strict=True) if not found.small_forwards]
    assert len(idle) > 8
    assert all(s == pytest.approx(ALONE) for s in idle)


def test_a_trace_tells_of_rests():
    pair, recorder = Pair(lambda i: False), TraceRecorder()
    _, stats = pair.output(recorder=recorder)
    trace = recorder.trace()
    assert len(trace.kept) == LENGTH
    assert sum(f.model == "large" for f in trace.forwards) == stats.large_forwards
    assert sum(len(r.removed) for r in trace.rollbacks) == stats.rolled_back_tokens > 0


def test_commits_come_in_order_and_whole():
    heard = []
    Pair(lambda i: i % 2).output(on_commit=heard.extend)
    assert heard == [2 + i % 7 for i in range(LENGTH)]


@pytest.mark.parametrize("engine", ["transformers", "fast"])
def test_real_pairs_write_the_large_model_s_text(engine):
    config = BiLDConfig(0.1, acceptance="exact", drafting="adaptive")
    for noise in (0.1, 3.0):
        pair = BiLDModel(tiny_t5(1), tiny_t5(1, noise=noise), engine=engine)
        for ids in sources(1, 6):
            output = pair.generate(ids, bild_config=config, max_new_tokens=40)
            greedy = pair.greedy(ids, max_new_tokens=40)
            assert output.sequences.tolist() == greedy.sequences.tolist()
            assert math.isfinite(output.encoder_seconds)
        assert pair._experience.prices.seen > 0


def test_damaged_scores_are_found_while_the_large_model_writes_alone():
    pair = Pair(lambda i: False)
    pair.known.left = 50
    nan = torch.full((10,), math.nan)
    large = [sure(2), sure(3), nan, sure(4)]
    decoders = TableDecoder("large", large), TableDecoder("small", large)
    with pytest.raises(BildError, match="large model's scores are NaN at output position 3"):
        decode(*decoders, [0], pair.config, Stopping(4), experience=pair.known)


def test_it_does_not_go_with_looking_ahead():
    with pytest.raises(BildError, match="decides itself how far to go; use lookahead=0"):
        BiLDConfig(drafting="adaptive", lookahead=2)
