import time

import pytest
import torch
from tiny import sources, tiny_t5

from bild.evaluation import timing


def test_timed_measures_the_call():
    result, seconds = timing.timed(torch.device("cpu"), lambda: time.sleep(0.05) or 7)
    assert result == 7
    assert 0.05 <= seconds < 1


def test_forward_clock_counts_each_model_alone_and_lets_go(monkeypatch):
    model = tiny_t5(1)
    encoder = model.get_encoder()
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *a, **k: time.sleep(0.05) or forward(*a, **k))
    (source,) = sources(1, 1)
    with timing.ForwardClock({"large": model}, torch.device("cpu")) as clock:
        time.sleep(0.2)
        model.generate(source, max_new_tokens=3)
    assert 0.05 <= clock.times["large"].encoder < 0.2
    assert clock.times["large"].forwards == 3
    before = clock.times["large"].encoder
    model.generate(source, max_new_tokens=3)
    assert clock.times["large"].encoder == before


def test_speedup_is_the_ratio_of_sums_within_its_interval():
    baseline, method = [2.0, 4.0, 6.0, 100.0], [1.0, 2.0, 3.0, 100.0]
    ratio, low, high = timing.speedup(baseline, method)
    assert ratio == pytest.approx(112 / 106)
    assert 1.0 <= low < ratio < high <= 2.0
    assert timing.speedup(baseline, method) == (ratio, low, high)
    assert timing.speedup([3.0] * 5, [1.0] * 5) == pytest.approx((3.0, 3.0, 3.0))
