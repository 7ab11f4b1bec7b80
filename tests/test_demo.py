"""The shipped pair and the shipped sentences: what a newcomer runs."""

import json
from pathlib import Path

import pytest
import torch
from reference import Cacheless, reference_decode
from transformers import AutoTokenizer

from bild import BiLDConfig, BiLDModel, DecodeStats
from bild.tasks.reading import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
VARIANTS = ("authors", "paper", "verified")
LIMIT = 128


@pytest.fixture(scope="module")
def pair():
    """On the fast engine, compiled where there is a compiler: what a newcomer gets."""
    return BiLDModel.from_pretrained(str(DEMO / "large"), str(DEMO / "small"), engine="fast")


@pytest.fixture(scope="module")
def sources():
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "large")
    examples = read_jsonl(DEMO / "sentences.jsonl", "de", "en")
    return [tokenizer(e.source, return_tensors="pt").input_ids for e in examples]


@pytest.fixture(scope="module")
def greedy(pair, sources):
    return [pair.large.generate(s, do_sample=False, max_new_tokens=LIMIT) for s in sources]


def test_sentences_are_many_varied_and_clean():
    lines = (DEMO / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) >= 300
    assert all(set(r) == {"de", "en"} for r in records)
    assert len({r["de"] for r in records}) == len({r["en"] for r in records}) == len(records)
    words = [len(r["de"].split()) for r in records]
    assert min(words) >= 4
    assert max(words) <= 40


def test_the_pair_is_small_enough_to_ship_and_shares_its_tokenizer():
    assert sum(f.stat().st_size for f in DEMO.rglob("*") if f.is_file()) < 50e6
    ours, theirs = ((DEMO / size / "tokenizer.json").read_text() for size in ("large", "small"))
    aligned = (DEMO / "small-aligned" / "tokenizer.json").read_text()
    assert ours == theirs == aligned


@pytest.mark.parametrize(
    "config",
    [BiLDConfig(1.1, 2), BiLDConfig(0.4, 0, variant="verified")],
    ids=["fallback over 1", "verified, rollback 0"],
)
def test_lossless_settings_give_the_large_models_own_output(pair, sources, greedy, config):
    total = DecodeStats()
    for source, expected in zip(sources, greedy, strict=True):
        output = pair.generate(source, bild_config=config, max_new_tokens=LIMIT)
        assert torch.equal(output.sequences, expected)
        total += output.stats
    if config.fallback_threshold <= 1:
        assert total.large_forwards < 0.9 * total.generated_tokens


def test_the_drafter_gives_the_large_models_own_output_in_a_fraction_of_its_forwards(
    sources, greedy
):
    pair = BiLDModel.from_pretrained(
        str(DEMO / "large"), str(DEMO / "drafter"), engine="fast", small_precision="int8"
    )
    config = BiLDConfig(0.7, 0.69, variant="verified", start="small", lookahead=1)
    total, different = DecodeStats(), 0
    for source, expected in zip(sources, greedy, strict=True):
        output = pair.generate(source, bild_config=config, max_new_tokens=LIMIT)
        different += not torch.equal(output.sequences, expected)
        total += output.stats
    assert different <= 1  # where two tokens are one but for rounding
    assert total.large_forwards < 0.45 * total.generated_tokens


def parts_at_a_tie(ours, theirs, model):
    """Whether two outputs part where the model's two best tokens are one but for rounding."""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    best = model(ours[:at])[-1].topk(2)
    gap = float(best.values[0] - best.values[1])
    return gap < 1e-4 and {ours[at], theirs[at]} == set(best.indices.tolist())


def test_every_sentence_equals_the_cacheless_reference(pair, sources):
    """Variants and thresholds take turns over the sentences."""
    thresholds = [(0.6, 2.0), (0.3, 5.0), (0.9, 1.0), (0.5, 0.0)]
    rolled_back = ties = 0
    for i, source in enumerate(sources):
        variant = VARIANTS[i % 3]
        fallback, rollback = thresholds[i % 4]
        large = Cacheless(pair.large, source)
        expected = reference_decode(
            large,
            Cacheless(pair.small, source),
            fallback=fallback,
            rollback=rollback,
            variant=variant,
            max_length=1 + LIMIT,
            eos=1,
        )
        config = BiLDConfig(fallback, rollback, variant=variant)
        output = pair.generate(source, bild_config=config, max_new_tokens=LIMIT)
        tokens = output.sequences[0].tolist()
        if tokens != expected.tokens:
            assert parts_at_a_tie(tokens, expected.tokens, large)
            ties += 1
        rolled_back += expected.rollbacks
    assert rolled_back > 20
    assert ties <= 1
