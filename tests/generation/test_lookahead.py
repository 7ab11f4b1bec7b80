"""Guesses change the number of forwards and nothing else."""

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import EOS, TableDecoder, rows, sure
from tiny import sources, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel
from bild.engines import Verdict
from bild.generation.decoding import Stopping, decode
from bild.generation.lookahead import Finding, check_proposal, decode_ahead
from bild.generation.prices import Prices
from bild.policy import RULES

SAME = (
    "generated_tokens", "fallbacks", "rollbacks", "rolled_back_tokens", "drafted_tokens",
    "full_windows", "verified_tokens",
)  # fmt: skip


def run(large_rows, small_rows, config, limit=20):
    large, small = TableDecoder("large", large_rows), TableDecoder("small", small_rows)
    stopping = Stopping(1 + limit, frozenset({EOS}))
    output, stats = decode_ahead(large, small, [0], config, stopping, Prices())
    for decoder in (large, small):
        assert decoder.cached == output.tokens[: decoder.length]
    return output.tokens[1:], stats, large


def test_a_right_guess_saves_a_large_forward():
    large = rows(2, 3, 4, 5, 6, EOS)
    small = [sure(2), sure(3), sure(4, 0.5), sure(5), sure(6), sure(EOS)]
    plain, hedged = (BiLDConfig(0.6, 2, lookahead=n) for n in (0, 9))
    tokens, stats, decoder = run(large, small, hedged)
    assert tokens == [2, 3, 4, 5, 6, EOS]
    # The first token and the unsure one are guessed; one forward sees all but the end.
    assert decoder.fed == [[0, 2, 3, 4, 5, 6]]
    assert (stats.guesses, stats.guesses_held, stats.fallbacks) == (2, 2, 1)
    _, stats, decoder = run(large, small, plain)
    assert len(decoder.fed) == 3


def test_a_wrong_guess_is_replaced_and_is_no_rollback():
    large = rows(2, 3, 4, 5, EOS)
    small = [sure(2), sure(3), sure(9, 0.5), sure(5), sure(EOS)]
    tokens, stats, decoder = run(large, small, BiLDConfig(0.6, 2, lookahead=9))
    assert tokens == [2, 3, 4, 5, EOS]
    assert (stats.rollbacks, stats.guesses, stats.guesses_held) == (0, 2, 1)
    assert decoder.fed[0] == [0, 2, 3, 9, 5]
    assert decoder.fed[1] == [4, 5]


def test_an_end_behind_a_guess_is_not_believed_before_the_guess():
    large = rows(2, 3, 4, EOS)
    small = [sure(2), sure(9, 0.5), sure(EOS), sure(EOS)]
    for variant in RULES:
        tokens, _, decoder = run(large, small, BiLDConfig(0.6, 9, 10, variant, lookahead=9))
        plain, _, _ = run(large, small, BiLDConfig(0.6, 9, 10, variant))
        assert tokens == plain
        assert tokens[:2] == [2, 3]
        # Where the end is not checked, nothing behind the last guess is fed.
        assert decoder.fed[0] == ([0, 2] if variant != "verified" else [0, 2, 9])


def test_what_is_checked():
    rule = RULES["verified"](2.0)
    # a window of two, a guess, a window of one
    verdict = Verdict([5, 6, 7, 8, 9], [1.0] * 5, [0.1, 0.1, 3.0, 0.1])
    far = Verdict([5, 6, 7, 8], [1.0] * 4, [0.1, 3.0, 0.1, 3.0])

    def check(verdict, tokens):
        return check_proposal(rule, verdict.window(tokens, [1.0] * len(tokens)), [2])

    assert check(verdict, [5, 6, 7, 8]) == Finding(None, False, 2, 1)
    assert check(verdict, [5, 6, 4, 8]) == Finding(2, False, 1, 0)
    assert check(far, [5, 4, 7, 8]) == Finding(1, True, 1, 0, 1)
    assert check(far, [5, 6, 7, 4]) == Finding(3, True, 2, 1, 1)


def tiny_pair(seed, noise, vocab=16):
    return (
        tiny_t5(seed, vocab=vocab, width=32, head_width=16),
        tiny_t5(seed, vocab=vocab, width=32, head_width=16, noise=noise),
    )


@pytest.mark.parametrize("engine", ["transformers", "fast"])
@pytest.mark.parametrize("variant", sorted(RULES))
@settings(max_examples=12)
@given(
    seed=st.integers(0, 7),
    noise=st.sampled_from([0.05, 0.3, 1.0]),
    fallback=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.1]),
    rollback=st.sampled_from([0.0, 0.3, 1.0, 3.0, math.inf]),
    iters=st.sampled_from([0, 1, 3, 10, math.inf]),
    start=st.sampled_from(["large", "small"]),
    lookahead=st.sampled_from([1, 2, math.inf, "auto"]),
    limit=st.integers(1, 24),
)
def test_hedged_writes_what_plain_writes(
    engine, variant, seed, noise, fallback, rollback, iters, start, lookahead, limit
):
    pair = BiLDModel(*tiny_pair(seed, noise), engine=engine)
    for source in sources(seed, 2):
        configs = [
            BiLDConfig(fallback, rollback, iters, variant, start, ahead) for ahead in (0, lookahead)
        ]
        plain, hedged = (
            pair.generate(source, bild_config=config, max_new_tokens=limit) for config in configs
        )
        assert hedged.sequences.tolist() == plain.sequences.tolist()
        if configs[1].is_lossless:  # a turn may end with a guess, and the next one begins later
            continue
        for name in SAME:
            assert getattr(hedged.stats, name) == getattr(plain.stats, name), name
        assert hedged.stats.large_forwards <= plain.stats.large_forwards
        if lookahead != "auto":
            saved = plain.stats.large_forwards - hedged.stats.large_forwards
            # Of the last guess of all a forward may be needed to confirm it, as for any token.
            assert saved in (hedged.stats.guesses_held, hedged.stats.guesses_held - 1)


@pytest.mark.parametrize("lookahead", [1, "auto"])
def test_where_the_output_is_the_large_models_own_a_guess_may_stand_at_the_end(lookahead):
    large = rows(2, 3, 4, 5, EOS)
    # Unsure of the second and of the fourth token; the first is guessed as well.
    small = [sure(2), sure(3, 0.5), sure(4), sure(5, 0.4), sure(EOS)]
    config = BiLDConfig(0.6, 0.5, start="small", lookahead=lookahead)
    tokens, stats, decoder = run(large, small, config)
    assert tokens == [2, 3, 4, 5, EOS]
    # With a limit of one the second guess ends the turn; both are sure enough to go on by price.
    if lookahead == 1:
        assert decoder.fed == [[0, 2, 3, 4, 5]]
        assert (stats.guesses, stats.guesses_held, stats.fallbacks) == (2, 2, 2)
    wrong = [sure(2), sure(3, 0.5), sure(4), sure(9, 0.4), sure(EOS)]
    tokens, stats, decoder = run(large, wrong, config)
    assert tokens == [2, 3, 4, 5, EOS]
    assert (stats.guesses_held, stats.rollbacks) == (1, 0)
    # Where the output may differ from the large model's the next token is the small one's.
    lossy = BiLDConfig(0.6, 0.7, start="small", lookahead=1)
    assert run(large, small, lossy)[2].fed[0] == [0, 2, 3, 4]


@pytest.mark.parametrize("acceptance", [None, "exact"])
@settings(max_examples=12)
@given(
    seed=st.integers(0, 5),
    fallback=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.1]),
    iters=st.sampled_from([0, 1, 3, 10]),
    start=st.sampled_from(["large", "small"]),
    lookahead=st.sampled_from([1, 2, math.inf, "auto"]),
    limit=st.integers(1, 24),
)
def test_lossless_and_hedged_it_is_the_large_models_output(
    acceptance, seed, fallback, iters, start, lookahead, limit
):
    pair = BiLDModel(*tiny_pair(seed, 0.3), engine="transformers")
    config = BiLDConfig(
        fallback, 0.5, iters, start=start, lookahead=lookahead, acceptance=acceptance
    )
    assert config.is_lossless
    for source in sources(seed, 2):
        output = pair.generate(source, bild_config=config, max_new_tokens=limit)
        alone = pair.greedy(source, max_new_tokens=limit)
        assert output.sequences.tolist() == alone.sequences.tolist()
        assert output.stats.large_forwards <= alone.stats.large_forwards


def test_where_scores_are_read_or_traced_it_is_plain():
    pair = BiLDModel(*tiny_pair(3, 0.3))
    (source,) = sources(3, 1)
    config = BiLDConfig(0.5, 1.0, lookahead=math.inf)
    plain = pair.generate(source, bild_config=config, max_new_tokens=20, output_scores=True)
    traced = pair.generate(source, bild_config=config, max_new_tokens=20, output_trace=True)
    hedged = pair.generate(source, bild_config=config, max_new_tokens=20)
    assert plain.stats.guesses == traced.stats.guesses == 0 < hedged.stats.guesses
    assert plain.sequences.tolist() == traced.sequences.tolist() == hedged.sequences.tolist()


def test_a_streamer_gets_what_can_no_longer_change():
    pair = BiLDModel(*tiny_pair(4, 0.3))
    (source,) = sources(4, 1)
    got = []

    class Streamer:
        def put(self, tokens):
            got.extend(tokens.flatten().tolist())

        def end(self):
            got.append("end")

    config = BiLDConfig(0.5, 1.0, lookahead=math.inf)
    output = pair.generate(source, bild_config=config, max_new_tokens=20, streamer=Streamer())
    assert got == [*output.sequences[0].tolist(), "end"]


def test_a_damaged_model_is_reported():
    large, small = tiny_pair(5, 0.1)
    with torch.no_grad():
        small.decoder.final_layer_norm.weight.fill_(math.nan)
    pair = BiLDModel(large, small, engine="transformers")
    with pytest.raises(BildError, match="the small model's scores are NaN"):
        pair.generate(torch.tensor([[3, 4, 1]]), bild_config=BiLDConfig(0, 2, lookahead=2))


def test_the_price_of_a_guess():
    prices = Prices(small=0.1, large=1.0, token=0.1, seen=9)
    # saved 0.9 with its chance, lost 3 * 0.2 with the rest
    assert prices.worth_it(0.41)
    assert not prices.worth_it(0.39)
    dear = Prices(small=0.9, large=1.0, token=0.5, seen=9)
    assert not dear.worth_it(0.8)
    prices = Prices()
    prices.drafted(0.5, 5)
    for width, seconds in ((1, 1.0), (3, 1.4), (1, 1.0), (3, 1.4)):
        prices.verified(seconds, width)
    assert (prices.small, prices.large, prices.token) == pytest.approx((0.1, 1.0, 0.2))


def test_prices_are_told_from_noise_and_from_interruptions():
    """Forwards of one token alone are rare behind guesses; a process that waits is no price."""
    random, prices = Random(0), Prices()
    for number in range(400):
        width = random.randint(2, 8)
        seconds = 1.0 + 0.02 * (width - 1) + random.gauss(0, 0.1)
        prices.verified(50.0 if number % 50 == 49 else seconds, width)
    assert prices.large == pytest.approx(1.0, abs=0.2)
    assert prices.token < 0.08
    for _ in range(50):
        prices.verified(1.5, 4)  # of one width alone nothing is known of a further token
    assert prices.large + 3 * prices.token == pytest.approx(1.5, abs=0.25)


@pytest.mark.parametrize("value", [-1, 0.5, "often", None, True, math.nan])
def test_what_lookahead_may_be(value):
    with pytest.raises(BildError, match="lookahead must be auto, a whole number"):
        BiLDConfig(lookahead=value)


def test_the_loop_is_the_same_without_guesses():
    table = rows(2, 3, 4, 5, EOS)
    config = BiLDConfig(0.6, 2)
    large, small = TableDecoder("large", table), TableDecoder("small", table)
    output, stats = decode(large, small, [0], config, Stopping(21, frozenset({EOS})))
    tokens, ahead, decoder = run(table, table, config)
    assert (tokens, ahead, decoder.fed) == (output.tokens[1:], stats, large.fed)
