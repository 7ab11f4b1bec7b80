"""The loop against fixed tables, and against the cacheless re-implementation in reference.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Cacheless, reference_decode
from tables import EOS, TableDecoder, rows, sure
from tiny import sources, tiny_bart, tiny_marian, tiny_pegasus, tiny_t5
from transformers.generation import LogitsProcessorList

from bild import BiLDConfig, BildError, BiLDModel, DecodeStats
from bild.generation.decoding import Stopping, decode, decode_greedy

VARIANTS = ("authors", "paper", "verified")
FALLBACKS = (0.0, 0.3, 0.6, 0.9, 1.1)
ROLLBACKS = (0.0, 0.5, 2.0, math.inf)


# ------------------------------------------------------------------------------ tables


def run(large_rows, small_rows, config, limit=20, **kwargs):
    large, small = TableDecoder("large", large_rows), TableDecoder("small", small_rows)
    output, stats = decode(
        large, small, [0], config, Stopping(1 + limit, frozenset({EOS})), **kwargs
    )
    for decoder in (large, small):
        assert decoder.cached == output.tokens[: decoder.length]
    return output.tokens[1:], stats, large, small


def test_a_sure_agreeing_draft_is_accepted_whole():
    table = rows(2, 3, 4, 5, EOS)
    tokens, stats, _large, small = run(table, table, BiLDConfig(0.6, 2, variant="paper"))
    assert tokens == [2, 3, 4, 5, EOS]
    assert stats.large_forwards == 1  # the first token; the end is not looked at
    assert small.fed == [[0, 2], [3], [4], [5]]
    assert (stats.fallbacks, stats.rollbacks, stats.drafted_tokens) == (0, 0, 4)


def test_an_unsure_token_is_thrown_away_and_written_by_the_large_model():
    large = rows(2, 3, 4, EOS)
    small = [sure(9), sure(3), sure(9, 0.5), sure(EOS)]
    tokens, stats, decoder, _ = run(large, small, BiLDConfig(0.6, 2, variant="paper"))
    assert tokens == [2, 3, 4, EOS]
    assert (stats.fallbacks, stats.rollbacks, stats.verified_tokens) == (1, 0, 1)
    assert decoder.fed == [[0], [2, 3]]


def test_a_far_token_is_rolled_back_with_everything_after_it():
    large = rows(2, 3, 4, 5, 6, EOS)
    small = [sure(9), sure(3), sure(8), sure(7), sure(9, 0.1), sure(EOS)]
    config = BiLDConfig(0.6, 2, variant="paper")
    tokens, stats, large_decoder, small_decoder = run(large, small, config)
    # 2 | draft 3 8 7, unsure -> large sees 8 is far: cut, 4 | draft 7 is far too: cut, 5 | unsure
    assert tokens == [2, 3, 4, 5, 6, EOS]
    assert (stats.rollbacks, stats.rolled_back_tokens) == (2, 3)
    assert stats.fallbacks == 3
    assert large_decoder.fed == [[0], [2, 3, 8, 7], [4, 7], [5]]
    assert small_decoder.fed == [[0, 2], [3], [8], [7], [4], [7], [5], [6]]


def test_authors_keep_control_with_the_large_model_after_a_rollback():
    large = rows(2, 3, 4, 5, EOS)
    small = [sure(9), sure(8), sure(9, 0.1), sure(9, 0.1), sure(9, 0.1)]
    for variant, fed in (
        ("paper", [[0], [2, 8], [3], [4], [5]]),
        ("authors", [[0], [2, 8], [3], [4], [5]]),
    ):
        tokens, stats, decoder, small_decoder = run(large, small, BiLDConfig(0.6, 2, 10, variant))
        assert tokens == [2, 3, 4, 5, EOS]
        assert decoder.fed == fed
        # "paper" asks the small model right after the rollback, "authors" one token later.
        assert stats.fallbacks == {"paper": 4, "authors": 3}[variant]
        assert small_decoder.fed[2] == {"paper": [3], "authors": [3, 4]}[variant]


def test_a_rollback_to_end_of_sequence_ends_the_output():
    for variant in VARIANTS:
        tokens, stats, *_ = run(
            rows(2, EOS, 4, 5), [sure(9), sure(8), sure(9, 0.1)], BiLDConfig(0.6, 2, 10, variant)
        )
        assert tokens == [2, EOS]
        assert stats.rollbacks == 1


def test_a_drafted_end_is_believed_except_by_verified():
    large, small = rows(2, 3, 4, EOS, EOS), [sure(9), sure(3), sure(EOS), sure(EOS), sure(EOS)]
    for variant in ("authors", "paper"):
        tokens, stats, *_ = run(large, small, BiLDConfig(0.6, 2, 10, variant))
        assert tokens == [2, 3, EOS]
        assert stats.large_forwards == 1
    tokens, stats, decoder, _ = run(large, small, BiLDConfig(0.6, 2, 10, "verified"))
    assert tokens == [2, 3, 4, EOS]
    assert stats.rollbacks == 1
    # The end is checked without being fed, and its confirmation adds no token.
    assert decoder.fed == [[0], [2, 3], [4]]


def test_length_limit_reached_by_the_small_model():
    large, small = rows(2, 3, 4, 5), [sure(9), sure(3), sure(8), sure(8)]
    tokens, stats, *_ = run(large, small, BiLDConfig(0.6, 2, 10, "paper"), limit=3)
    assert tokens == [2, 3, 8]
    assert stats.large_forwards == 1
    tokens, stats, *_ = run(large, small, BiLDConfig(0.6, 2, 10, "verified"), limit=3)
    assert tokens == [2, 3, 4]
    assert stats.generated_tokens == 3


def test_control_changes_hands_after_num_small_iters():
    table = rows(*[2] * 30)
    tokens, stats, large, _ = run(table, table, BiLDConfig(0, math.inf, 4, "paper"), limit=11)
    assert tokens == [2] * 11
    assert [len(f) for f in large.fed] == [1, 5, 5]  # the 1st, 6th and 11th token are its own
    assert (stats.full_windows, stats.mean_accepted_length) == (2, 4)
    _, stats, *_ = run(table, table, BiLDConfig(0, math.inf, math.inf, "paper"), limit=29)
    assert (stats.large_forwards, stats.small_forwards) == (1, 28)
    _, stats, *_ = run(table, table, BiLDConfig(0, math.inf, 0), limit=5)
    assert (stats.large_forwards, stats.small_forwards) == (5, 0)


def test_the_small_model_may_start():
    table = rows(2, 3, EOS)
    tokens, _stats, large, small = run(
        table, table, BiLDConfig(0.6, 2, variant="paper", start="small")
    )
    assert tokens == [2, 3, EOS]
    assert (large.fed, small.fed) == ([], [[0], [2], [3]])
    _, _, large, _ = run(table, table, BiLDConfig(0.6, 2, variant="verified", start="small"))
    assert large.fed == [[0, 2, 3]]


def test_a_threshold_of_zero_is_zero():
    # The published code read 0 as "unset". Here p = 0.05 does not fall back at 0 ...
    table = [sure(2, 0.2) for _ in range(3)] + [sure(EOS)]
    _, stats, *_ = run(table, table, BiLDConfig(0.0, math.inf))
    assert stats.fallbacks == 0
    # ... and a distance of 1e-3 rolls back at 0.
    large = [sure(2), sure(3, 0.501, second=4), sure(EOS)]
    small = [sure(2), sure(4), sure(EOS)]
    tokens, stats, *_ = run(large, small, BiLDConfig(0.6, 0.0, variant="verified"))
    assert (tokens, stats.rollbacks) == ([2, 3, EOS], 1)


def test_only_settled_tokens_are_committed():
    large = rows(2, 3, 4, 5, 6, EOS)
    small = [sure(9), sure(3), sure(8), sure(7), sure(9, 0.1), sure(EOS)]
    for variant in VARIANTS:
        seen = []
        tokens, *_ = run(large, small, BiLDConfig(0.6, 2, 10, variant), on_commit=seen.append)
        assert list(itertools.chain.from_iterable(seen)) == tokens
        assert len(seen) > 1


def test_nan_scores_name_the_model_and_the_position():
    good, bad = rows(2, 3, 4, EOS), rows(2, 3, 4, EOS)
    bad[2] = torch.full_like(bad[2], math.nan)
    with pytest.raises(BildError, match="small model's scores are NaN at output position 3"):
        run(good, bad, BiLDConfig(0.6, 2))
    with pytest.raises(BildError, match="large model's scores are NaN at output position 3"):
        run(bad, good, BiLDConfig(1.1, 2))


def test_stats_add_up_and_rates_are_per_100_tokens():
    a = DecodeStats(generated_tokens=40, fallbacks=4, rollbacks=1, large_forwards=10)
    b = DecodeStats(generated_tokens=10, fallbacks=1, verifications=2, verified_tokens=7)
    total = a + b
    assert (total.generated_tokens, total.fallback_rate, total.rollback_rate) == (50, 10.0, 2.0)
    assert (total.large_forward_rate, total.mean_accepted_length) == (20.0, 3.5)
    assert math.isnan(DecodeStats().fallback_rate)


# ------------------------------------------------------------------------------ real models

MAX_NEW_TOKENS = 14


def check(large, small, source, config, mask=None, oracles=None):
    """Decode with BiLD and compare tokens and counts with the cacheless oracle."""
    big, little = oracles or (Cacheless(large, source, mask), Cacheless(small, source, mask))
    expected = reference_decode(
        big,
        little,
        fallback=config.fallback_threshold,
        rollback=config.rollback_threshold,
        variant=config.variant,
        start=config.start,
        num_small_iters=config.num_small_iters,
        max_length=1 + MAX_NEW_TOKENS,
        eos=EOS,
        vocab=min(m.lm_head.weight.shape[0] for m in (large, small)),
    )
    output = BiLDModel(large, small).generate(
        source, attention_mask=mask, bild_config=config, max_new_tokens=MAX_NEW_TOKENS
    )
    stats = output.stats
    assert output.sequences[0].tolist() == expected.tokens
    assert (stats.fallbacks, stats.rollbacks, stats.rolled_back_tokens, stats.large_forwards) == (
        expected.fallbacks,
        expected.rollbacks,
        expected.rolled_back_tokens,
        expected.large_calls,
    )
    # Every token once to each model, unless it was rolled back.
    for fed in (stats.large_tokens_fed, stats.small_tokens_fed):
        assert fed <= stats.generated_tokens + stats.rolled_back_tokens
    return output


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["t5", "mt5"]),
    layers=st.integers(1, 2),
    decoder_layers=st.integers(1, 3),
    noise=st.sampled_from([0.05, 0.2, 0.5]),
    fallback=st.one_of(st.sampled_from(FALLBACKS), st.floats(0, 1)),
    rollback=st.one_of(st.sampled_from(ROLLBACKS), st.floats(0, 6)),
    iters=st.sampled_from([0, 1, 3, 10, math.inf]),
    start=st.sampled_from(["large", "small"]),
)
@settings(max_examples=200)
def test_equal_to_the_cacheless_reference(
    seed, kind, layers, decoder_layers, noise, fallback, rollback, iters, start
):
    shape = {"kind": kind, "layers": layers}
    large = tiny_t5(seed, decoder_layers=decoder_layers, **shape)
    small = tiny_t5(seed, decoder_layers=2, noise=noise, **shape)
    (source,) = sources(seed, 1)
    oracles = Cacheless(large, source), Cacheless(small, source)
    for variant in VARIANTS:
        config = BiLDConfig(fallback, rollback, iters, variant, start)
        check(large, small, source, config, oracles=oracles)


@pytest.mark.parametrize("seed", [19, 30, 36])
def test_equal_to_the_reference_over_the_whole_threshold_grid(seed):
    kind = "mt5" if seed == 30 else "t5"
    large = tiny_t5(seed, kind=kind)
    small = tiny_t5(seed, kind=kind, noise=0.25)
    (source,) = sources(seed, 1)
    oracles = Cacheless(large, source), Cacheless(small, source)
    greedy = large.generate(source, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    total = DecodeStats()
    for variant, fallback, rollback in itertools.product(VARIANTS, FALLBACKS, ROLLBACKS):
        config = BiLDConfig(fallback, rollback, variant=variant)
        output = check(large, small, source, config, oracles=oracles)
        total += output.stats
        if fallback > 1 or (variant == "verified" and rollback == 0):
            assert torch.equal(output.sequences, greedy)
    # The grid is only worth something if things happen in it.
    assert min(total.fallbacks, total.verified_tokens) > 10
    assert total.rollbacks >= 4


@pytest.mark.parametrize("make", [tiny_bart, tiny_marian, tiny_pegasus])
def test_any_encoder_decoder_model(make):
    large, small = make(3), make(4, layers=1)
    for source in sources(3, 3):
        greedy = large.generate(source, do_sample=False, num_beams=1, max_new_tokens=12)
        for config in (BiLDConfig(1.1, 2), BiLDConfig(0.0, 0.0, variant="verified")):
            output = BiLDModel(large, small).generate(
                source, bild_config=config, num_beams=1, max_new_tokens=12
            )
            assert torch.equal(output.sequences, greedy)


def test_padded_source_equals_the_bare_one():
    large, small = tiny_t5(5), tiny_t5(5, noise=0.2)
    (source,) = sources(5, 1)
    padded = torch.cat([source, torch.zeros(1, 4, dtype=torch.long)], -1)
    mask = (torch.arange(padded.shape[1]) < source.shape[1]).long()[None]
    config = BiLDConfig(0.5, 1.0)
    bare = check(large, small, source, config)
    assert torch.equal(check(large, small, padded, config, mask).sequences, bare.sequences)


def test_a_deeper_decoder_than_encoder():
    large, small = tiny_t5(6, layers=1, decoder_layers=4), tiny_t5(6, layers=2, decoder_layers=3)
    (source,) = sources(6, 1)
    for variant in VARIANTS:
        check(large, small, source, BiLDConfig(0.3, 1.0, variant=variant))


def test_vocabularies_that_differ_in_padding_rows():
    large, small = tiny_t5(7, vocab=30), tiny_t5(7, vocab=24)
    (source,) = sources(7, 1)
    output = check(large, small, source, BiLDConfig(0.2, 1.0))
    assert max(output.sequences[0].tolist()) < 24


def test_work_grows_linearly_with_the_output():
    large, small = tiny_t5(9), tiny_t5(9, noise=0.1)
    (source,) = sources(8, 1)
    pair = BiLDModel(large, small)
    for length in (32, 128, 512):
        stats = pair.generate(
            source,
            bild_config=BiLDConfig(0.3, 2.0),
            max_new_tokens=length,
            suppress_tokens=[EOS],
        ).stats
        assert stats.generated_tokens == length
        assert stats.rolled_back_tokens < length
        for fed in (stats.large_tokens_fed, stats.small_tokens_fed):
            assert fed <= length + stats.rolled_back_tokens


def test_greedy_baseline_with_processors():
    table = [sure(2), sure(2), sure(2), sure(EOS)]

    def ban_repeats(ids, scores):
        scores[:, ids[0, 1:]] = -math.inf
        return scores

    decoder = TableDecoder("large", table)
    processors = LogitsProcessorList([ban_repeats])
    output, stats = decode_greedy(decoder, [0], Stopping(4, frozenset({EOS})), processors)
    assert output.tokens[1] == 2
    assert len(set(output.tokens[1:])) == 3
    assert (stats.generated_tokens, decoder.fed[1:]) == (3, [[t] for t in output.tokens[1:3]])
