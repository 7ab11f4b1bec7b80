"""Drafting that adapts in batches, by a price model: the clock is what the forwards of all cost."""

from __future__ import annotations

import itertools

import pytest
import torch
from on_engines import ENGINES
from tables import EOS, TableDecoder, sure
from test_batching import bare, padded
from tiny import sources, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.engines import HuggingFaceDecoder, drive, requests
from bild.generation.batching import in_order, run_rows
from bild.generation.decoding import Stopping, decode_steps, greedy_steps
from bild.generation.pace import LONGEST_REST, Experience
from bild.generation.prices import Line
from bild.generation.steering import BatchExperience, Steering

LENGTH = 128
# Of a forward of one token, of each further one, and of the small model's encoder.
LARGE, SMALL, TOKEN, ENCODER = 1.0, 0.25, 0.05, 1.0
ADAPTIVE = BiLDConfig(0.5, acceptance="exact", drafting="adaptive")
STEADY = BiLDConfig(0.5, acceptance="exact", drafting="max:threshold=0.5")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class PricedCompany(requests.Company):
    """Tables that are asked together: one forward, of the tokens of all."""

    def __init__(self, clock, price):
        self.clock, self.price = clock, price

    def feed(self, asked):
        self.clock.now += self.price + TOKEN * (sum(len(r.tokens) for r in asked) - 1)
        return [TableDecoder.feed(r.decoder, r.tokens) for r in asked]


class Priced(TableDecoder):
    """A table whose forwards take time, those of its company together; its source too."""

    def __init__(self, name, rows, company):
        self._company = company
        super().__init__(name, rows)

    @property
    def company(self):
        return self._company

    def feed(self, tokens):
        return self._company.feed([requests.FeedRequest(self, tokens)])[0]

    def read(self, *_):
        self._company.clock.now += ENCODER
        self.encoder_seconds = ENCODER


class Batches:
    """Decodes tables, some at a time; `right(i)` says whether the small model is right."""

    def __init__(self, right, size, config=ADAPTIVE, confidence=0.95, small=SMALL):
        self.clock = Clock()
        self.known = BatchExperience(clock=self.clock)
        self.size, self.config, self.confidence, self.right = size, config, confidence, right
        self.companies = {
            "large": PricedCompany(self.clock, LARGE),
            "small": PricedCompany(self.clock, small),
        }

    def lengths(self, outputs):
        """Some end early, so that others take their places."""
        return [LENGTH - 7 * (i % 5) for i in range(outputs)]

    def row(self, length, steering):
        rows = {
            "large": [sure(2 + i % 7) for i in range(length + 1)],
            "small": [
                sure(2 + i % 7 if self.right(i) else 9, self.confidence) for i in range(length + 1)
            ],
        }
        large, small = (Priced(name, own, self.companies[name]) for name, own in rows.items())
        stopping = Stopping(1 + length, frozenset({EOS}))
        if steering is None:
            return greedy_steps(large, [0], stopping, at_a_time=4)
        small.read_later(None)
        return decode_steps(large, small, [0], self.config, stopping, experience=steering)

    def seconds(self, outputs, *, alone=False):
        """Of so many outputs, by both models or by the large one alone."""
        start, steering = self.clock.now, None if alone else Steering(self.known)
        lengths = self.lengths(outputs)
        rows = (self.row(length, steering) for length in lengths)
        self.stats = []
        for length, (output, stats) in zip(
            lengths, in_order(run_rows(rows, self.size)), strict=True
        ):
            assert output.tokens[1:] == [2 + i % 7 for i in range(length)]
            self.stats.append(stats)
        return self.clock.now - start


def always(_):
    return True


def never(_):
    return False


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_small_model_that_always_errs_ends_within_five_percent(size):
    batches = Batches(never, size)
    alone = batches.seconds(10 * size, alone=True)
    assert sum(batches.seconds(10 * size) for _ in range(2)) <= 1.05 * 2 * alone
    steady = Batches(never, size, STEADY)
    assert steady.seconds(size) > 1.3 * steady.seconds(size, alone=True)


def test_a_good_small_model_writes_for_one_row_and_rests_for_many():
    one, many = Batches(always, 1), Batches(always, 32)
    alone = one.seconds(8, alone=True)
    assert sum(one.seconds(8) for _ in range(2)) < 0.6 * 2 * alone
    assert all(stats.drafted_tokens > 0.8 * LENGTH * 0.7 for stats in one.stats)
    alone = many.seconds(96, alone=True)
    assert many.seconds(96) <= 1.05 * alone  # the first time, with nothing learned
    assert many.seconds(96) <= 1.05 * alone
    idle = [stats for stats in many.stats if not stats.small_forwards]
    assert len(idle) > 48  # of most the small model does not even read the source
    # Without adapting many rows lose by the same drafts.
    steady = Batches(always, 32, STEADY)
    assert steady.seconds(32) > 1.2 * steady.seconds(32, alone=True)


def test_one_pair_does_both_one_after_the_other():
    batches = Batches(always, 32)
    batches.seconds(32)
    batches.size = 1
    alone = batches.seconds(4, alone=True)
    batches.seconds(4)  # it begins as the many did, with a short rest
    assert batches.seconds(4) < 0.6 * alone
    batches.size = 32
    assert batches.seconds(32) <= 1.05 * batches.seconds(32, alone=True)


def test_where_few_rows_are_left_drafting_is_tried_again():
    batches = Batches(always, 32)
    batches.lengths = lambda outputs: [LENGTH // 4] * (outputs - 1) + [8 * LENGTH]
    alone = batches.seconds(32, alone=True)
    assert batches.seconds(32) < 0.7 * alone


def test_a_small_model_that_becomes_good_is_found_out():
    good = [False]
    batches = Batches(lambda i: good[0], 2)
    alone = batches.seconds(8, alone=True)
    assert sum(batches.seconds(8) for _ in range(4)) <= 1.05 * 4 * alone
    good[0] = True
    seconds = list(itertools.islice(iter(lambda: batches.seconds(8), None), 10))
    assert seconds[-1] < 0.7 * alone
    assert LONGEST_REST <= 5 * 4 * LENGTH


@pytest.mark.parametrize("length", [3, 6, 20])
def test_short_outputs_teach_as_well_each_batch_in_a_call_of_its_own(length):
    """The last round of a call is followed by no other one; of short outputs there is none else."""
    good = [False]
    batches = Batches(lambda i: good[0], 4)
    batches.lengths = lambda outputs: [length] * outputs
    for _ in range(6):
        batches.seconds(4)
    known = batches.known.of(4)
    assert known.next_rest > 32  # a trial has failed
    rested = known.left
    batches.seconds(4)
    assert known.left == max(0, rested - length)
    good[0] = True
    alone = batches.seconds(4, alone=True)
    tried = 0
    for _ in range(1 + known.left // length + 40):
        took = batches.seconds(4)
        tried += any(stats.drafted_tokens for stats in batches.stats)
    assert tried
    assert length < 6 or took < alone


def test_what_one_token_costs_is_asked_in_short_calls_too():
    batches = Batches(always, 2)
    batches.lengths = lambda outputs: [12] * outputs
    for _ in range(60):
        batches.seconds(2)
    # Of rounds of drafts alone the price of a lone token would be told from a line far away.
    assert batches.known.rounds <= 33
    assert batches.known.large.first == pytest.approx(LARGE, rel=0.05)


def test_drafts_are_as_long_as_their_last_token_pays():
    """Every fourth token is wrong: drafts of more than three tokens are waste, the dearer the more
    rows there are."""
    batches = Batches(lambda i: i % 4 != 3, 4)
    alone = batches.seconds(40, alone=True)
    adapted = batches.seconds(40)
    assert adapted <= 1.05 * alone
    assert adapted < Batches(lambda i: i % 4 != 3, 4, STEADY).seconds(40)


def test_prices_are_those_of_the_tokens_of_all_rows():
    batches = Batches(lambda i: i % 5 != 4, 4)
    batches.seconds(40)
    large, small = batches.known.large, batches.known.small
    assert (large.first, large.further) == (pytest.approx(LARGE), pytest.approx(TOKEN))
    assert (small.first, small.further) == (pytest.approx(SMALL), pytest.approx(TOKEN))
    assert large.step(8, shared=True) == pytest.approx(LARGE + 7 * TOKEN)
    assert large.step(8, shared=False) == pytest.approx(8 * LARGE)


def test_what_interrupts_a_forward_is_no_price():
    line = Line()
    for tokens in (1, 2, 3, 4) * 5:
        line.add(1 + 0.1 * (tokens - 1), 1, tokens)
    line.add(1000, 1, 2)
    assert 0.9 < line.first < 1.5


def test_a_number_of_rows_that_is_new_begins_as_the_nearest_known():
    known = BatchExperience()
    of_eight = known.of(8)
    of_eight.limit, of_eight.left, of_eight.next_rest = 7.0, 500, 1000
    assert known.of(5) is of_eight
    four = known.of(4)
    assert (four.limit, four.left, four.windows) == (7.0, 32, 0)
    assert known.of(9).limit == 7.0
    assert four is not of_eight


def test_rests_grow_with_what_a_trial_has_lost():
    cheap, dear = Experience(), Experience()
    for known, seconds in ((cheap, 1.2), (dear, 20.0)):
        known.prices.large = 1.0
        draft = requests.Draft([3], [0.9], unsure=4)
        while not known.left:
            known.saw([(draft, 0)], 3, seconds)
    assert cheap.left == 32
    assert dear.left == 3 * 19 / 0.04  # so that the loss is a twenty-fifth of the rest


# ------------------------------------------------------------------------------ real engines

PRICES = {"large": LARGE, "small": SMALL}
NO_END = {"eos_token_id": 16, "max_new_tokens": 60}  # one past the vocabulary


def adversary(seed):
    """A pair whose small model is surest of what the large one finds least likely."""
    shape = {"width": 32, "head_width": 16}
    large, small = tiny_t5(seed, **shape), tiny_t5(seed, **shape)
    with torch.no_grad():
        small.decoder.final_layer_norm.weight.neg_()
    return large, small


@pytest.fixture
def clock(monkeypatch):
    """What is asked of real engines costs its price: of a forward, however many rows it serves."""
    clock = Clock()
    answer = requests.answer

    def priced(asked):
        effort = requests.Effort(asked)
        replies = answer(asked)
        forwards, tokens = effort.so_far()
        name = asked[0].decoder.name
        clock.now += PRICES[name] * forwards + TOKEN * (tokens - forwards)
        return replies

    def one_by_one(steps):
        return drive(steps, lambda request: priced([request])[0])

    monkeypatch.setattr("bild.generation.batching.answer", priced)
    monkeypatch.setattr("bild.generation.sequences.answer_at_once", one_by_one)
    return clock


def feeds_take_time(clock, monkeypatch):
    """Each forward of transformers' own takes what it costs."""
    real = HuggingFaceDecoder.feed

    def feed(decoder, tokens):
        clock.now += PRICES[decoder.name] + TOKEN * (len(tokens) - 1)
        return real(decoder, tokens)

    monkeypatch.setattr(HuggingFaceDecoder, "feed", feed)


def test_rows_of_a_batch_within_transformers_learn_from_each_other(monkeypatch):
    clock = Clock()
    feeds_take_time(clock, monkeypatch)
    (large, small), rows = adversary(3), sources(5, 8)
    plugged = {"custom_generate": bild_generate, "small_model": small, "bild_config": ADAPTIVE}
    plugged |= {**NO_END, "return_dict_in_generate": True, "do_sample": False}

    def tried(output):
        return [bool(stats.small_forwards) for stats in output.row_stats]

    read, encode = [], HuggingFaceDecoder.encode
    monkeypatch.setattr(
        HuggingFaceDecoder,
        "encode",
        lambda decoder, *given: read.append(decoder.name) or encode(decoder, *given),
    )
    known = Experience(clock=clock)
    first = large.generate(**padded(rows), **plugged, experience=known)
    alone = large.generate(**padded(rows), do_sample=False, **NO_END)
    assert torch.equal(first.sequences, alone)
    assert tried(first)[0]
    assert tried(first).count(True) <= 4  # it rests longer and longer, row after row
    assert read.count("small") == tried(first).count(True)  # and does not even read the source
    second = large.generate(**padded(rows), **plugged, experience=known)  # and in the next call
    assert tried(second).count(True) <= 2
    # A call without begins anew, and its rows learn from each other as well.
    timed = type(
        "Timed", (Experience,), {"__init__": lambda own: Experience.__init__(own, clock=clock)}
    )
    monkeypatch.setattr("bild.generation.generate.Experience", timed)
    assert tried(large.generate(**padded(rows), **plugged)) == tried(first)


def test_an_experience_that_is_none_is_refused():
    (large, small), (row,) = adversary(3), sources(5, 1)
    with pytest.raises(BildError, match="experience must be an Experience, got a float"):
        large.generate(row, custom_generate=bild_generate, small_model=small, experience=0.5)


def timed_pair(models, options, clock):
    pair = BiLDModel(*models, **options)
    pair._experience.clock = pair._in_batches.clock = clock
    return pair


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("size", [1, 2])
def test_an_adversary_on_real_engines_ends_within_five_percent(options, size, clock):
    pair = timed_pair(adversary(3), options, clock)
    given = padded(sources(5, size))
    start = clock.now
    expected = pair.greedy(**given, **NO_END)
    alone, took = clock.now - start, []
    for _ in range(12):
        start = clock.now
        output = pair.generate(**given, bild_config=ADAPTIVE, **NO_END)
        took.append(clock.now - start)
        assert torch.equal(output.sequences, expected.sequences)
    assert alone > 59
    assert sum(took) <= 1.05 * 12 * alone
    start = clock.now
    steady = pair.generate(**given, bild_config=BiLDConfig(0.0, 0.0, 5, lookahead=0), **NO_END)
    assert steady.stats.rollbacks > 10 * size  # it errs indeed
    assert steady.stats.verified_tokens == 0


@pytest.mark.parametrize("options", ENGINES)
def test_rows_write_what_they_write_alone_whether_drafting_rests_or_not(options, clock):
    shape = {"width": 32, "head_width": 16}
    models = tiny_t5(35, **shape), tiny_t5(35, noise=0.1, **shape)
    pair, rows = timed_pair(models, options, clock), sources(7, 9, longest=30)
    alone = [pair.greedy(row, max_new_tokens=40).sequences[0].tolist() for row in rows]
    together = pair.generate(**padded(rows), bild_config=ADAPTIVE, max_new_tokens=40)
    assert bare(together.sequences) == alone
    for batch_size in (1, 3):
        found = pair.generate_many(rows, ADAPTIVE, batch_size=batch_size, max_new_tokens=40)
        assert [output.sequences[0].tolist() for output in found] == alone
    assert together.stats.drafted_tokens > 0
    assert any(known.next_rest > 32 for known in pair._in_batches.by_rows.values())
