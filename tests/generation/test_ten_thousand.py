"""Ten thousand outputs in one process: nothing is kept of them."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_t5

from bild import BiLDConfig, BiLDModel
from bild.engines.build import find_compiler

OUTPUTS, BEFORE = 10_000, 1000
OBJECTS = 3000  # that may be more of, where one an output would be 9,000
BYTES = 48_000_000  # likewise; a kept encoder state or plan an output would be several times that


def memory():
    """(objects that Python knows, bytes that the process holds, where Linux says so)."""
    gc.collect()
    table = Path("/proc/self/statm")
    pages = int(table.read_text().split()[1]) if table.exists() else 0
    return len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("together", [False, True])
def test_memory_stays_flat(together):
    large, small = (tiny_t5(0, width=32, head_width=16, noise=noise) for noise in (0.0, 0.3))
    compiled = find_compiler() is not None
    pair = BiLDModel(large, small, engine="fast", compile=compiled)
    config = BiLDConfig(0.6, 2.0)
    sources = [torch.tensor([[2 + i, *range(2, 9 + i), 1]]) for i in range(5)]

    def decode(count):
        if together:
            rows = ({"input_ids": sources[i % 5]} for i in range(count))
            return sum(1 for _ in pair.generate_many(rows, config, batch_size=8, max_new_tokens=1))
        for i in range(count):
            # Now and then a setting that was never there before.
            more = {"top_k": i} if i % 20 == 1 else {}
            pair.generate(sources[i % 5], bild_config=config, max_new_tokens=1 + i % 2, **more)
        return count

    decode(BEFORE)
    objects, held = memory()
    assert decode(OUTPUTS - BEFORE) == OUTPUTS - BEFORE
    more_objects, more_held = memory()
    assert more_objects < objects + OBJECTS
    assert more_held < held + BYTES
