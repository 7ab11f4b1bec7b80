"""Rules of other papers on real models: the same text on every engine, with and without guesses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sources, tiny_t5
from transformers.generation import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from bild import BiLDConfig, BiLDModel
from bild.engines import build

LIMIT = 16
RULES = (
    *("exact", "topk:k=2,tolerance=2", "typical:eps=0.1,delta=0.3", "lenient:share=0.1"),
    *("regret:budget=3", "ensemble:weight=0.6", "cascade:alpha=0.1"),
)
DRAFTING = (None, "entropy:limit=0.8", "margin:least=0.4", "product:least=0.2")
ENGINES = [("transformers", None), ("fast", False)]
if build.find_compiler() is not None:
    ENGINES.append(("fast", True))


@pytest.fixture(scope="module")
def pairs():
    made = []
    for seed in range(3):
        models = (
            tiny_t5(seed, width=32, head_width=16),
            tiny_t5(seed, noise=0.3, width=32, head_width=16),
        )
        made.append([BiLDModel(*models, engine=e, compile=c) for e, c in ENGINES])
    return made


@settings(max_examples=25)
@given(
    rule=st.sampled_from(RULES),
    drafting=st.sampled_from(DRAFTING),
    seed=st.integers(0, 2),
    source=st.integers(0, 7),
    lookahead=st.sampled_from([0, 2]),
)
def test_every_engine_writes_the_same(pairs, rule, drafting, seed, source, lookahead):
    config = BiLDConfig(0.3, 0, acceptance=rule, drafting=drafting)
    ahead = BiLDConfig(0.3, 0, acceptance=rule, drafting=drafting, lookahead=lookahead)
    ids = sources(seed, 8)[source]
    first, *others = pairs[seed]
    expected = first.generate(ids, bild_config=config, max_new_tokens=LIMIT)
    if rule == "exact":
        greedy = first.greedy(ids, max_new_tokens=LIMIT)
        assert expected.sequences.tolist() == greedy.sequences.tolist()
    for pair in (first, *others):
        found = pair.generate(ids, bild_config=ahead, max_new_tokens=LIMIT)
        assert found.sequences.tolist() == expected.sequences.tolist()
        if not lookahead:
            assert found.stats == expected.stats


def test_the_rules_and_the_kinds_of_drafting_do_differ(pairs):
    """What is compared above is not one text throughout."""
    seen = set()
    for rule in RULES:
        config = BiLDConfig(0.1, 0, acceptance=rule)
        outputs = [
            pairs[0][0].generate(ids, bild_config=config, max_new_tokens=LIMIT)
            for ids in sources(0, 8)
        ]
        seen.add(str([o.sequences.tolist() for o in outputs]))
    assert len(seen) >= 5
    counts = set()
    for drafting in DRAFTING:
        config = BiLDConfig(0.1, 0, drafting=drafting)
        output = pairs[0][0].generate(sources(0, 8)[5], bild_config=config, max_new_tokens=LIMIT)
        counts.add((output.stats.fallbacks, output.stats.drafted_tokens))
    assert len(counts) == len(DRAFTING)


@pytest.mark.parametrize("rule", ["exact", "regret:budget=0", "topk:k=1", "lenient:share=1"])
def test_exact_is_exact_behind_logits_processors(pairs, rule):
    processors = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])
    for ids in sources(1, 6):
        for pair in pairs[1]:
            options = {"logits_processor": processors, "max_new_tokens": LIMIT}
            greedy = pair.greedy(ids, **options)
            config = BiLDConfig(0.1, acceptance=rule, drafting="margin:least=0.05")
            output = pair.generate(ids, bild_config=config, **options)
            assert output.sequences.tolist() == greedy.sequences.tolist()
