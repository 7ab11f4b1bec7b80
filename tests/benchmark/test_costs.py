"""The cost model: counts against planned outputs, sums by hand, steps against a known clock."""

import time

import pytest
import torch
from tables import TableDecoder, rows
from test_planted import RECORDED
from tiny import tiny_bart, tiny_t5

from bild import BiLDConfig, DecodeStats
from bild.benchmark import costs
from bild.benchmark.costs import (
    DecoderSize,
    MemoryCeiling,
    StepTimes,
    expect,
    measure_steps,
    predict,
)
from bild.benchmark.plan import plan_outputs, recorded_rates


@pytest.mark.parametrize("variant", ["authors", "verified"])
@pytest.mark.parametrize(("task", "mode"), RECORDED)
def test_expected_forwards_come_near_those_of_planned_outputs(task, mode, variant):
    row = recorded_rates(task, mode)
    config = BiLDConfig(row.fallback, row.rollback, variant=variant)
    length = round(row.mean_length)
    plans = plan_outputs(row.fallback_rate, row.rollback_rate, length, 24, config)
    stats = sum((p.stats for p in plans), DecodeStats())
    expected = expect(stats.fallback_rate, stats.rollback_rate, length, config)
    assert expected.large_forward_rate == pytest.approx(stats.large_forward_rate, rel=0.1)
    small = stats.small_forwards / stats.generated_tokens
    assert expected.small_forwards == pytest.approx(small, rel=0.1)


def test_expected_forwards_at_the_ends_of_the_ranges():
    paper = BiLDConfig(num_small_iters=4, variant="paper", start="small")
    never = expect(0, 0, 10_000, paper)
    assert never.large_forward_rate == pytest.approx(100 / 5, rel=1e-3)
    assert never.small_forwards == pytest.approx(4 / 5, rel=1e-3)
    assert never.large_forwards[5] == pytest.approx(1 / 5, rel=1e-3)
    always = expect(100, 0, 10_000, paper)
    assert always.large_forward_rate == pytest.approx(100, rel=1e-3)
    assert always.large_forwards[1] == pytest.approx(1, rel=1e-3)
    # After a rollback the published code runs the large model once more.
    authors = BiLDConfig(num_small_iters=4, variant="authors", start="small")
    more = [expect(0, 5, 10_000, c).large_forward_rate for c in (paper, authors)]
    assert more[0] < more[1] < more[0] + 5


def test_prediction_is_the_sum_of_its_steps():
    steps = StepTimes(encoders=3.0, large={1: 1.0, 2: 1.5, 4: 2.5}, small=0.1)
    assert steps.large_step(3) == pytest.approx(2.0)
    expected = costs.Expected({1: 0.1, 3: 0.2}, small_forwards=0.9)
    assert predict(expected, steps, 10) == pytest.approx(3 + 10 * (0.1 + 0.2 * 2.0 + 0.09))
    assert expected.large_forward_rate == pytest.approx(30)
    assert costs.floor(expected, 1000, 100, 50) == pytest.approx((0.3 * 1000 + 0.9 * 100) / 50)


def test_steps_are_timed_where_they_are_and_leave_the_decoders_as_they_were():
    class Slow(TableDecoder):
        def feed(self, tokens):
            time.sleep(0.02 if self.name == "large" else 0.004)
            return super().feed(tokens)

        def encode(self, input_ids, attention_mask, **inputs):
            time.sleep(0.01)

    large, small = (Slow(name, rows(*[2] * 40)) for name in ("large", "small"))
    steps = measure_steps(large, small, torch.tensor([[3, 4, 1]]), prefix=13, repeats=2)
    assert (large.length, small.length) == (13, 13)
    assert tuple(steps.large) == costs.WIDTHS
    assert all(s >= 0.02 for s in steps.large.values())
    assert 0.004 <= steps.small < min(steps.large.values())
    assert steps.encoders >= 0.02
    assert costs.median_steps([steps]) == steps


def test_what_a_forward_reads_is_counted_by_hand():
    model = tiny_t5(
        layers=1, decoder_layers=3, vocab=16, width=16
    )  # 2 heads of 8, 32 in the middle
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(16, 16))
    layer = 6 * 16 * 16 + 2 * 16 * 32 + 3 * 16  # q k v o, q o of cross-attention; norms
    bias = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.numel()
    size = DecoderSize.of(model)
    heads = 16 * 16 + 16
    embedded_bias = 0 if size.weights == 3 * layer + heads else bias
    assert size == DecoderSize(3 * layer + heads + embedded_bias, 3 * 2 * 16)
    read = size.bytes_read("int8", source_tokens=5, output_tokens=2)
    assert read == size.weights + 4 * (3 * 2 * 16) * 7
    assert size.bytes_read("bfloat16", 0, 0) == 2 * size.weights
    assert DecoderSize.of(tiny_bart(layers=2)).keys_and_values == 2 * 2 * 16


def test_memory_ceiling_is_a_rate_of_reading(monkeypatch):
    monkeypatch.setattr(costs, "CEILING_BYTES", 2**24)
    ceiling = MemoryCeiling(torch.device("cpu"))
    assert 1e7 < ceiling.measure() < 1e13
