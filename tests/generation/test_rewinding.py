"""Processors and criteria that keep a state are asked as transformers' greedy search asks them."""

import threading

import pytest
import torch
from tiny import EOS, sources, tiny_t5
from transformers import SynthIDTextWatermarkingConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.generation.rewinding import Rewinding

SEED = 30
LOSSLESS = BiLDConfig(0.0, 0.0, 4)
OPTIONS = {"max_new_tokens": 16, "suppress_tokens": [EOS]}


@pytest.fixture(scope="module")
def pair():
    return BiLDModel(tiny_t5(SEED, vocab=48), tiny_t5(SEED, vocab=48, noise=0.25))


def by_model(pair, source, **options):
    return pair.generate(source, bild_config=LOSSLESS, **options)


def by_plug_in(pair, source, **options):
    return pair.large.generate(
        source, custom_generate=bild_generate, small_model=pair.small, bild_config=LOSSLESS,
        return_dict_in_generate=True, **options,
    )  # fmt: skip


DOORS = pytest.mark.parametrize("door", [by_model, by_plug_in])


class EveryThirdCall(LogitsProcessor):
    """Counts its calls, as those do that act by the number of the token they are asked for."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls % 3 == 0:
            scores = scores.index_fill(1, scores.argmax(-1), -torch.inf)
        return scores


class NeverAgain(LogitsProcessor):
    """A grammar of a kind: follows the output token by token, in a state that grows."""

    def __init__(self):
        self.seen, self.banned = [], torch.zeros(48, dtype=torch.bool)

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids[0, -1].item())
        self.banned[self.seen[-1]] = True
        return scores.masked_fill(self.banned, -torch.inf)


class Slotted:
    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0

    __call__ = EveryThirdCall.__call__


class OwnState(EveryThirdCall):
    """Holds what cannot be pickled, and says itself what its state is."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self):
        return self.calls

    def __setstate__(self, calls):
        self.calls = calls


def closure():
    calls = 0

    def every_third_call(input_ids, scores):
        nonlocal calls
        calls += 1
        return scores.index_fill(1, scores.argmax(-1), -torch.inf) if calls % 3 == 0 else scores

    return every_third_call


class Holder:
    def __init__(self):
        self.calls = 0

    def every_third(self, input_ids, scores):
        return EveryThirdCall.__call__(self, input_ids, scores)


MAKERS = [EveryThirdCall, NeverAgain, Slotted, OwnState, closure, lambda: Holder().every_third]


@DOORS
@pytest.mark.parametrize("make", MAKERS, ids=lambda m: getattr(m, "__name__", str(m)))
def test_a_processor_with_a_state_writes_what_greedy_search_writes(pair, door, make):
    rolled_back = changed = 0
    for source in sources(SEED, 4):
        plain = pair.large.generate(source, **OPTIONS)
        expected = pair.large.generate(source, logits_processor=[make()], **OPTIONS)
        processors = LogitsProcessorList([make()])
        output = door(pair, source, logits_processor=processors, **OPTIONS)
        assert torch.equal(output.sequences, expected)
        rolled_back += output.stats.rollbacks
        changed += not torch.equal(expected, plain)
    assert changed
    assert rolled_back


@DOORS
def test_it_is_left_as_greedy_search_leaves_it(pair, door):
    (source,) = sources(SEED, 1)
    theirs, ours = NeverAgain(), NeverAgain()
    pair.large.generate(source, logits_processor=[theirs], **OPTIONS)
    door(pair, source, logits_processor=[ours], **OPTIONS)
    assert ours.seen == theirs.seen
    assert torch.equal(ours.banned, theirs.banned)


def test_one_without_a_state_keeps_what_it_holds(pair):
    class Pure(LogitsProcessor):
        def __init__(self):
            self.bias = [0.0] * 48

        def __call__(self, input_ids, scores):
            return scores + torch.tensor(self.bias)

    pure, (source,) = Pure(), sources(SEED, 1)
    bias = pure.bias
    by_model(pair, source, logits_processor=[pure], **OPTIONS)
    assert pure.bias is bias


class AtTheFifthToken(StoppingCriteria):
    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        assert scores is None
        return torch.tensor([self.calls == 5])


@DOORS
def test_a_criterion_with_a_state_ends_the_output_where_greedy_search_does(pair, door):
    rolled_back = 0
    for source in sources(SEED, 4):
        expected = pair.large.generate(source, stopping_criteria=[AtTheFifthToken()], **OPTIONS)
        criterion = AtTheFifthToken()
        output = door(pair, source, stopping_criteria=[criterion], **OPTIONS)
        assert torch.equal(output.sequences, expected)
        assert criterion.calls == 5
        rolled_back += output.stats.rollbacks
    assert rolled_back


def test_criteria_get_all_scores_where_they_are_kept(pair):
    counts = []

    def look(input_ids, scores, **kwargs):
        counts.append((len(scores), input_ids.shape[1] - 1))
        return torch.tensor([False])

    options = {**OPTIONS, "output_scores": True, "return_dict_in_generate": True}
    (source,) = sources(SEED, 1)
    pair.generate(source, stopping_criteria=[look], **options)
    assert counts == [(n, n) for n in range(1, 16)]


@DOORS
def test_the_watermark_of_synthid(pair, door):
    """The one of transformers' own processors that keeps a state and that BiLD runs."""
    watermark = SynthIDTextWatermarkingConfig(
        keys=[654, 400, 836], ngram_len=3, sampling_table_size=64, context_history_size=8
    )
    options = {**OPTIONS, "watermarking_config": watermark}
    changed = 0
    for source in sources(SEED, 4):
        expected = pair.large.generate(source, **options)
        changed += not torch.equal(expected, pair.large.generate(source, **OPTIONS))
        assert torch.equal(door(pair, source, **options).sequences, expected)
    assert changed


def test_a_state_that_cannot_be_copied_is_refused_with_a_way_out(pair):
    class Locked(EveryThirdCall):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    (source,) = sources(SEED, 1)
    with pytest.raises(BildError, match=r"cannot use .*Locked: .* give its class __getstate__ and"):
        by_model(pair, source, logits_processor=[Locked()], **OPTIONS)


class Tracker:
    """A processor, and a criterion that goes by the same state."""

    def __init__(self):
        self.seen, self.allowed = [], {"tokens": list(range(48))}

    def process(self, input_ids, scores):
        self.seen.append(input_ids[0, -1].item())
        return scores

    def ends(self, input_ids, scores, **kwargs):
        return torch.tensor([len(self.seen) >= 5])

    def __call__(self, input_ids, scores):
        return self.process(input_ids, scores)


def by_methods(tracker):
    return [tracker.process], [tracker.ends]


def by_reference(tracker):
    def ends(input_ids, scores, **kwargs):
        return torch.tensor([len(tracker.seen) >= 5])

    return [tracker], [ends]


def by_a_list(tracker):
    seen = tracker.seen

    def ends(input_ids, scores, **kwargs):
        return torch.tensor([len(seen) >= 5])

    return [tracker], [ends]


def by_a_tensor(tracker):
    counted = torch.zeros(1)

    def process(input_ids, scores):
        counted.add_(1)
        return scores

    def ends(input_ids, scores, **kwargs):
        return counted >= 5

    return [process], [ends]


def two_processors(tracker):
    return [tracker, tracker.process], []


@DOORS
@pytest.mark.parametrize("make", [by_methods, by_reference, by_a_list, by_a_tensor, two_processors])
def test_two_that_go_by_one_state_are_refused(pair, door, make):
    """Each is taken back by itself, so that the one would go by what the other has left behind."""
    processors, criteria = make(Tracker())
    given = {"logits_processor": LogitsProcessorList(processors), "stopping_criteria": criteria}
    (source,) = sources(SEED, 1)
    with pytest.raises(
        BildError, match=r"cannot use .* beside .*: one changes a (Tracker|list|Tensor)"
    ):
        door(pair, source, **given, **OPTIONS)


@DOORS
def test_two_may_hold_one_object_that_nobody_changes(pair, door):
    tracker = Tracker()
    allowed = tracker.allowed

    def looks(input_ids, scores, **kwargs):
        return torch.tensor([len(allowed["tokens"]) < 40])

    (source,) = sources(SEED, 1)
    given = {"logits_processor": LogitsProcessorList([tracker]), "stopping_criteria": [looks]}
    output = door(pair, source, **given, **OPTIONS)
    assert torch.equal(output.sequences, pair.large.generate(source, **OPTIONS))
    assert output.stats.rollbacks


def test_states_before_the_last_return_are_forgotten():
    followed = Rewinding(EveryThirdCall())
    scores = torch.zeros(1, 4)
    for length in (1, 2, 3, 4, 3, 4, 5, 4):
        followed(torch.zeros(1, length, dtype=torch.long), scores)
        assert followed.function.calls == length
    assert sorted(followed._before) == [4, 5]
