"""Recorded decoder steps against the plain ones. Without a GPU a tape stands for the graph."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tiny import sources, tiny_t5
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bild import BiLDConfig, BildError, BiLDModel
from bild.checkpoints.drafter import make_drafter
from bild.engines import make_engine, t5_arrangement, t5_graphs
from bild.engines.measures import distances_from, top_token
from bild.engines.t5 import GraphT5Decoder, T5Decoder
from bild.engines.t5_graphs import WIDEST, WIDTHS, GraphSession
from bild.engines.t5_torch import FIRST_CAPACITY, feed_together
from bild.fallback import Entropy, Margin, Product
from bild.policy import DEAR_MEASURES, FallbackRule, MaxProbability

CLOSE = {"rtol": 1e-3, "atol": 5e-3}  # these models are lively: they magnify rounding
KINDS = {
    "t5": {},
    "t5, tied": {"tied": True},
    "mt5": {"kind": "mt5"},
    "umt5": {"kind": "umt5", "layers": 3, "decoder_layers": 3},
}
# What waits for the device, or makes a tensor on the host: neither can be recorded.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero", "equal")


class Tape(TorchDispatchMode):
    """Operations as a CUDA graph has them: the same ones, on the same memory, on every replay.

    What Python decided while it was recorded is decided for good.
    """

    def __init__(self, step):
        super().__init__()
        self.calls = []
        with self:
            step()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::").split(".")[0]
        assert name not in FORBIDDEN, f"{name} cannot be recorded"
        result = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    def __call__(self):
        made = {}

        def now(value):
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        for operation, args, kwargs, result in self.calls:
            again = operation(*tree_map(now, args), **tree_map(now, kwargs))
            for before, after in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(before, torch.Tensor):
                    made[id(before)] = after


def record_here(monkeypatch):
    """From here on engines decode as on a GPU."""
    monkeypatch.setattr(t5_arrangement, "records", lambda device: True)
    monkeypatch.setattr(t5_graphs, "recorder", lambda device: Tape)


def tiny(seed=3, **kwargs):
    return tiny_t5(seed, width=32, head_width=16, **kwargs)


def both(model, monkeypatch, vocab_size=None):
    """A decoder that launches, and one that replays."""
    plain = make_engine(model, "fast", compile=False)
    record_here(monkeypatch)
    recording = make_engine(model, "fast", compile=False)
    assert recording.arranged().records
    assert not plain.arranged().records
    decoders = [engine.decoder("large", vocab_size) for engine in (plain, recording)]
    assert [type(decoder) for decoder in decoders] == [T5Decoder, GraphT5Decoder]
    return decoders


def drafter():
    shortlist = torch.tensor([1, 3, 4, 5, 8, 9, 11, 15])
    return make_drafter(tiny(), shortlist=shortlist)


# ------------------------------------------------------------------------------ steps


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_scores_what_the_plain_engine_does(kind, monkeypatch):
    """Steps of all widths, over long and short sources in turn, with rollbacks, beyond the first
    memory and back."""
    decoders = both(tiny(**KINDS[kind]), monkeypatch)
    rng = random.Random(5)
    for source_length in (5, 150, 3, 40):
        source = torch.tensor([[rng.randrange(3, 16) for _ in range(source_length)] + [1]])
        for decoder in decoders:
            decoder.read(source)
        for _ in range(14):
            count = rng.choice((1, 1, 2, 3, 5, 8, 9, 11, 20, 30, 32, 33))
            tokens = [rng.randrange(16) for _ in range(count)]
            expected, found = (decoder.feed(tokens) for decoder in decoders)
            torch.testing.assert_close(found, expected, **CLOSE)
            if rng.random() < 0.4:
                length = rng.randrange(decoders[0].length + 1)
                for decoder in decoders:
                    decoder.rollback_to(length)
        assert decoders[0].length == decoders[1].length
    session = decoders[1].session
    assert session._cache.shape[3] > FIRST_CAPACITY
    assert session._cross.shape[3] > FIRST_CAPACITY
    assert len(session._steps) > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_steps_score_what_the_plain_engine_does(dtype, monkeypatch):
    decoders = both(tiny(seed=5).to(dtype), monkeypatch)
    states, others = (d.encode(torch.tensor([[5, 9, 12, 1]]), None)[0] for d in decoders)
    torch.testing.assert_close(others, states, rtol=0, atol=0.1 * states.abs().max().item())
    for decoder in decoders:
        decoder.begin((states,), None)
    for tokens in ([0], [3, 4, 5], [7] * 9, [8]):
        expected, found = (decoder.feed(tokens) for decoder in decoders)
        assert found.dtype == expected.dtype
        size = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * size)


@pytest.mark.parametrize("count", [1, 9, 13, 17, 25])
def test_the_last_places_of_the_memory_take_a_padded_step(count, monkeypatch):
    """What pads a step has places of its own, and is hidden from all that comes after."""
    decoders = both(tiny(), monkeypatch)
    for decoder in decoders:
        decoder.read(torch.tensor([[5, 9, 12, 1]]))
        for _ in range(4):
            decoder.feed([3, 7, 11, 4] * 6)
    assert decoders[0].length == 96
    fill = [[5, 8] * 16, [6] * count, [9, 4], [2] * 12][count == 1 :]
    for tokens in fill:
        for decoder in decoders:
            decoder.rollback_to(FIRST_CAPACITY - count)
        expected, found = (decoder.feed(tokens) for decoder in decoders)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_a_damaged_source_leaves_nothing_behind(monkeypatch):
    _, decoder = both(tiny(), monkeypatch)
    source = torch.tensor([[5, 9, 1]])
    decoder.read(source)
    expected = decoder.feed([0, 3])
    broken = torch.full((1, 60, 32), math.nan)
    decoder.begin((broken,), None)
    assert decoder.feed([0, 3, 4, 5]).isnan().all()
    decoder.read(source)
    assert torch.equal(decoder.feed([0, 3]), expected)


def test_a_recorded_encoder_makes_the_plain_ones_states(monkeypatch):
    """Short and long in turn, beyond what is recorded too, and with hidden tokens inside."""
    plain, recording = both(tiny(kind="umt5", layers=3), monkeypatch)
    rng = random.Random(2)
    for length in (5, 40, 16, 17, 3, 600, 40, 5):
        source = torch.tensor([[rng.randrange(3, 16) for _ in range(length - 1)] + [1]])
        for mask in (None, torch.arange(length)[None] != 1):
            expected, found = (d.encode(source, mask)[0] for d in (plain, recording))
            torch.testing.assert_close(found, expected, **CLOSE)
    assert set(recording.session.encode._runs) == {16, 48}  # since the one of 600 tokens


def test_logits_stay_what_they_were(monkeypatch):
    _, decoder = both(tiny(), monkeypatch)
    decoder.read(torch.tensor([[5, 9, 1]]))
    first = decoder.feed([0])
    kept = first.clone()
    decoder.feed([7])
    assert torch.equal(first, kept)


def test_a_session_serves_vocabularies_in_turn(monkeypatch):
    plain, recording = (d.engine for d in both(tiny(), monkeypatch))
    for vocab_size in (16, 9, 16):
        decoders = [engine.decoder("large", vocab_size) for engine in (plain, recording)]
        for decoder in decoders:
            decoder.read(torch.tensor([[5, 9, 1]]))
        expected, found = (decoder.feed([0, 12, 3]) for decoder in decoders)
        assert found.shape == (3, vocab_size)
        torch.testing.assert_close(found, expected, **CLOSE)
        verdicts = [decoder.verify([3, 4], [4], 0) for decoder in decoders]
        assert verdicts[0].tokens == verdicts[1].tokens
        for decoder in decoders:
            decoder.release()
    with pytest.raises(BildError, match="token id 12 is not one of the model's 9"):
        recording.decoder("large", 9).verify([0], [12])


def test_a_step_is_recorded_once_a_width(monkeypatch):
    _, decoder = both(tiny(), monkeypatch)
    recorded = []
    engine = decoder.engine
    session = decoder.session
    decoder.release()

    def noting(step):
        recorded.append(step.func.__name__)
        return Tape(step)

    session._record = session.encode._record = noting
    monkeypatch.setattr(t5_graphs, "recorder", lambda device: noting)
    for source in ([5, 9, 1], [4, 1], [9] * 100):
        decoder = engine.decoder("large")
        decoder.read(torch.tensor([source]))
        for tokens in ([0], [3], [3] * 9, [4] * 10, [6, 7]):
            decoder.feed(tokens)
        decoder.release()
    assert recorded.count("_step") == 3  # of 1, 2 and 10 tokens
    assert recorded.count("_run") == 2  # of 16 and 112 tokens


def test_recording_sessions_can_share_a_forward(monkeypatch):
    decoders = both(tiny(), monkeypatch)
    other = decoders[1].engine.decoder("large")
    for decoder in (*decoders, other):
        decoder.read(torch.tensor([[5, 9, 1]]))
        decoder.feed([0, 4])
    expected = decoders[0].feed([7, 8])
    fed = feed_together([decoders[1].session, other.session], [2, 2], [[7, 8], [7, 8]])
    for found in fed:
        torch.testing.assert_close(found, expected, **CLOSE)
    assert decoders[1].company is None


def test_a_model_that_left_its_gpu_is_fed_as_others_are(monkeypatch):
    model = tiny()
    plain, recording = both(model, monkeypatch)
    monkeypatch.setattr(t5_arrangement, "records", lambda device: False)
    recording.read(torch.tensor([[5, 1]]))
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    for decoder in (plain, recording):
        decoder.read(torch.tensor([[5, 9, 1]]))
    rule = MaxProbability(0)
    assert recording.draft([0], 4, rule).tokens == plain.draft([0], 4, rule).tokens
    assert recording.verify([3], [4]).tokens == plain.verify([3], [4]).tokens


# ------------------------------------------------------------------------------ drafts and verdicts


@dataclass(frozen=True)
class Even(FallbackRule):
    """Stops where the second digit of a probability is odd: no engine knows it."""

    def should_stop(self, step):
        return bool(int(step.probability * 10) % 2)


@pytest.mark.parametrize("model", [tiny, drafter])
def test_drafts_are_those_of_the_plain_engine(model, monkeypatch):
    decoders = both(model(), monkeypatch)
    states = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))
    lengths = set()
    for rule in (MaxProbability(0), MaxProbability(0.5), Product(0.2), Margin(0.2), Entropy(1.0),
                 Even()):  # fmt: skip
        for pending, eos in (([0], ()), ([0, 3, 4], (1, 9)), ([5] * 40, (1,))):
            for decoder in decoders:
                decoder.begin((states,), None)
            expected, found = (d.draft(pending, 6, rule, eos) for d in decoders)
            assert (found.tokens, found.unsure) == (expected.tokens, expected.unsure)
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
            for name in ("length", "forwards", "tokens_fed"):
                assert getattr(decoders[0], name) == getattr(decoders[1], name)
            lengths.add(len(found.tokens))
    assert len(lengths) > 2
    assert decoders[1].draft([3], 0, rule) == decoders[0].draft([3], 0, rule)


@pytest.mark.parametrize("model", [tiny, drafter])
def test_verdicts_are_those_of_the_plain_engine(model, monkeypatch):
    decoders = both(model(), monkeypatch)
    states = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))
    for needs in ((), DEAR_MEASURES):
        for decoder in decoders:
            decoder.begin((states,), None)
        for pending, drafted, first_row in (
            ([0, 3, 4], [3, 4], 0), ([0, 3, 4], [4, 9], 1), ([8], [], 0), ([8] * 9, [5], 8),
            ([8, 9], [], 1), ([4] * 40, [4] * 39, 0),
        ):  # fmt: skip
            expected, found = (d.verify(pending, drafted, first_row, needs) for d in decoders)
            assert found.tokens == expected.tokens
            assert list(found.ranks) == list(expected.ranks)
            for name in ("probabilities", "distances", "entropies"):
                values = list(getattr(expected, name))
                assert list(getattr(found, name)) == pytest.approx(values, abs=2e-3, rel=1e-3)
            assert decoders[0].length == decoders[1].length


@pytest.mark.parametrize("shortlist", [None, torch.tensor([2, 5, 30, 31])])
def test_a_step_tells_what_the_measures_do(shortlist):
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    logits[1] = 0.5  # all alike: the first is the best
    logits[2, 1] = -torch.inf
    logits[3, 2] = math.nan
    drafted = torch.tensor([0, 3, 1, 0, 2])
    told = t5_graphs.told_of(logits, drafted, shortlist).tolist()
    expected = distances_from(logits, drafted).tolist()
    for row, (token, distance, asked) in enumerate(told):
        best, probability = top_token(logits[row])
        assert token == (best if shortlist is None else shortlist[best])
        assert math.exp(-distance) == pytest.approx(probability, nan_ok=True)
        assert asked == pytest.approx(expected[row], nan_ok=True, abs=1e-6)
    assert told[1][0] == (0 if shortlist is None else 2)
    assert told[2][2] == math.inf


@pytest.mark.parametrize("kind", ["t5", "umt5", "drafter"])
def test_outputs_are_those_of_the_plain_engine(kind, monkeypatch):
    def pair():
        large = tiny(**KINDS.get(kind, {}))
        small = drafter() if kind == "drafter" else tiny(noise=0.3, **KINDS[kind])
        return BiLDModel(large, small, engine="fast", compile=False)

    def written(pair):
        return [
            call.sequences.tolist()
            for source in sources(7, 4, longest=30)
            for call in (
                pair.generate(source, bild_config=BiLDConfig(0.5, 1.0), max_new_tokens=20),
                pair.generate(
                    source, bild_config=BiLDConfig(0.3, 0.69, variant="verified"), max_new_tokens=20
                ),
                pair.greedy(source, max_new_tokens=20),
                pair.greedy(source, which="small", max_new_tokens=20),
            )
        ]

    expected = written(pair())
    record_here(monkeypatch)
    recording = pair()
    assert written(recording) == expected
    sessions = [m.engine.arranged()._idle for m in recording.models.values()]
    assert all(isinstance(session, GraphSession) for idle in sessions for session in idle)
    rows = torch.tensor([[5, 7, 9, 12, 1], [4, 8, 1, 0, 0]])
    plain = pair_of_rows(recording, rows)
    monkeypatch.setattr(t5_arrangement, "records", lambda device: False)
    assert plain == pair_of_rows(pair(), rows)


def pair_of_rows(pair, rows):
    config = BiLDConfig(0.5, 1.0)
    output = pair.generate(rows, (rows != 0).long(), bild_config=config, max_new_tokens=12)
    return output.sequences.tolist()


# ------------------------------------------------------------------------------ the recorder


class FakeGpu:
    """Says what was asked of torch.cuda; graphs call what was done last."""

    def __init__(self, monkeypatch, fails):
        self.said = []
        stream = SimpleNamespace(wait_stream=lambda other: None)

        class Graph:
            def replay(graph):  # noqa: N805
                self.said.append("replay")

        def graph(made, pool, stream, capture_error_mode):
            self.said.append(f"record in {capture_error_mode}")
            if fails:
                raise RuntimeError("operation not permitted")
            return nullcontext()

        for name, value in {
            "graph_pool_handle": lambda: "pool",
            "device": lambda device: nullcontext(),
            "current_stream": lambda: stream,
            "stream": lambda side: nullcontext(),
            "CUDAGraph": Graph,
            "graph": graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(t5_graphs, "_side_streams", lambda device: (stream, stream))


def test_a_step_is_warmed_up_recorded_and_replayed(monkeypatch):
    gpu = FakeGpu(monkeypatch, fails=False)
    recorder = t5_graphs.Recorder(torch.device("cuda", 0))
    replay = recorder(lambda: gpu.said.append("step"))
    assert gpu.said == ["step", "step", "record in thread_local", "step"]
    replay()
    assert gpu.said[4:] == ["replay"]


def test_a_step_that_cannot_be_recorded_is_launched(monkeypatch):
    gpu = FakeGpu(monkeypatch, fails=True)
    recorder = t5_graphs.Recorder(torch.device("cuda", 0))
    with pytest.warns(UserWarning, match=r"recorded as a CUDA graph \(operation not permitted\)"):
        replay = recorder(lambda: gpu.said.append("step"))
    del gpu.said[:]
    replay()
    assert gpu.said == ["step"]


def test_only_a_gpu_records():
    assert t5_graphs.records(torch.device("cuda", 1))
    assert not t5_graphs.records(torch.device("cpu"))
    assert not t5_graphs.records(torch.device("mps"))
    assert tuple(sorted(WIDTHS)) == WIDTHS
    assert WIDTHS[-1] == WIDEST
