"""Drafts copied from the source and from the output so far."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import EOS, TableDecoder, rows, sure
from tiny import sources, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.generation.copying import CopyDecoder, continuation
from bild.generation.decoding import Stopping, decode


def test_what_followed_is_found():
    source = [5, 6, 7, 8, 9, 6, 7, 3, 1]
    assert continuation([0, 6, 7], source, 3, 100) == [8, 9, 6]  # the first place in the source
    assert continuation([0, 9, 6, 7], source, 9, 100) == [3, 1]  # the longer match
    assert continuation([0, 7], source, 3, 100) == []  # one token is no match
    assert continuation([0, 20, 21, 4, 20, 21], source, 2, 100) == [4, 20]  # the output's own
    assert continuation([0, 6, 7], source, 3, 9) == [8]  # 9 is no id of the pair
    assert continuation([0, 3, 1], source, 3, 100) == []  # nothing follows


TEXT = [2, 3, 4, 5, 6, 7, 8, EOS]


def run(alone, small_rows, source=TEXT):
    large = TableDecoder("large", rows(*TEXT))
    small = TableDecoder("small", small_rows)
    config = BiLDConfig(0.5, acceptance="exact", copying="alone" if alone else "first")
    stopping = Stopping(20, frozenset({EOS}))
    output, stats = decode(large, CopyDecoder(small, source, alone), [0], config, stopping)
    assert output.tokens == [0, *TEXT]
    return stats, large, small


def test_a_copy_costs_no_forward_of_the_small_model():
    stats, large, small = run(True, [])
    # 2 | 3 | (2 3 is found) 4 5 6 7 8 EOS drafted and confirmed
    assert [len(f) for f in large.fed] == [1, 1, 6]
    assert (stats.small_forwards, stats.drafted_tokens, stats.rollbacks) == (0, 6, 0)
    assert stats.full_windows == 0
    assert small.fed == []


def test_where_nothing_is_found_the_small_model_drafts():
    small_rows = [sure(9), sure(3), sure(9, 0.1), *rows(*TEXT[3:])]
    stats, _, small = run(False, small_rows, source=[9, 9])
    assert stats.small_forwards > 0
    assert stats.fallbacks == 1
    assert small.fed[0] == [0, 2]


def test_a_wrong_copy_is_rolled_back():
    stats, *_ = run(True, [], source=[2, 3, 9, 9, 5, 6, 9])
    assert stats.rollbacks > 0


@settings(max_examples=25)
@given(
    seed=st.integers(0, 3),
    source=st.integers(0, 5),
    copying=st.sampled_from(["first", "alone"]),
    engine=st.sampled_from(["transformers", "fast"]),
    drafting=st.sampled_from([None, "adaptive"]),
)
def test_the_exact_rule_writes_the_large_model_s_text(seed, source, copying, engine, drafting):
    pair = BiLDModel(tiny_t5(seed), tiny_t5(seed, noise=0.5), engine=engine)
    config = BiLDConfig(0.1, acceptance="exact", copying=copying, drafting=drafting)
    ids = sources(seed, 6)[source]
    output = pair.generate(ids, bild_config=config, max_new_tokens=24)
    assert output.sequences.tolist() == pair.greedy(ids, max_new_tokens=24).sequences.tolist()
    if copying == "alone":
        assert output.stats.small_forwards == 0


def test_rows_of_a_batch_copy_each_from_its_own_source():
    pair = BiLDModel(tiny_t5(1), tiny_t5(1, noise=0.5))
    config = BiLDConfig(0.1, acceptance="exact", copying="first")
    ids = sources(1, 5)
    many = pair.generate_many(ids, bild_config=config, max_new_tokens=20, batch_size=3)
    for source, output in zip(ids, many, strict=True):
        alone = pair.greedy(source, max_new_tokens=20)
        assert output.sequences.tolist() == alone.sequences.tolist()


def test_what_copies_cannot_do_is_refused():
    pair = BiLDModel(tiny_t5(1), tiny_t5(1, noise=0.5))
    config, ids = BiLDConfig(0.1, copying="alone"), sources(1, 1)[0]
    with pytest.raises(BildError, match="copied drafts have no scores"):
        pair.generate(ids, bild_config=config, repetition_penalty=1.2, max_new_tokens=5)
    with pytest.raises(BildError, match="leave output_trace out"):
        pair.generate(ids, bild_config=config, output_trace=True, max_new_tokens=5)
    with pytest.raises(BildError, match="copying must be one of no, first, alone, got 'yes'"):
        BiLDConfig(copying="yes")
    with pytest.raises(BildError, match="does not look ahead; use lookahead=0"):
        BiLDConfig(copying="first", lookahead=1)


def test_transformers_own_generate_takes_it():
    pair = BiLDModel(tiny_t5(1), tiny_t5(1, noise=0.5))
    config, ids = BiLDConfig(0.1, acceptance="exact", copying="alone"), sources(1, 1)[0]
    found = pair.large.generate(
        ids, custom_generate=bild_generate, small_model=pair.small, bild_config=config,
        max_new_tokens=20,
    )  # fmt: skip
    assert found.tolist() == pair.greedy(ids, max_new_tokens=20).sequences.tolist()
