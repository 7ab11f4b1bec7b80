"""The fast engine against transformers' own forward: equal tokens, close scores, named limits."""

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_engines import needs_compiler
from tiny import sources, tiny_bart, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel
from bild.engines import HuggingFaceDecoder, build, make_engine
from bild.engines.t5_structs import PRECISIONS
from bild.policy import NEVER_STOPS, MaxProbability

needs_avx2 = pytest.mark.skipif(
    not {"avx2", "fma"} <= set(build._processor().split()), reason="a processor without AVX2"
)
COMPILED = [False, pytest.param(True, marks=needs_compiler)]
KINDS = {
    "t5": {},
    "t5, tied": {"tied": True},
    "t5, deep decoder": {"layers": 1, "decoder_layers": 4},
    "mt5": {"kind": "mt5"},
    "umt5": {"kind": "umt5", "layers": 3, "decoder_layers": 3},
}
CLOSE = {"rtol": 1e-3, "atol": 5e-3}  # these models are lively: they magnify rounding
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.1, "int8": 0.1}  # of the largest logit


def tiny(seed=0, **kwargs):
    return tiny_t5(seed, width=32, head_width=16, **kwargs)


def both(model, compiled, precision=None):
    fast = make_engine(model, "fast", precision, compiled).decoder("large")
    return HuggingFaceDecoder(model, "large"), fast


def begin(decoder, source, mask=None):
    decoder.begin(decoder.encode(source, mask), mask)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_logits_are_transformers_own(kind, compiled):
    plain, fast = both(tiny(3, **KINDS[kind]), compiled)
    for source in sources(5, 3, longest=40):
        begin(plain, source)
        begin(fast, source)
        torch.testing.assert_close(
            fast.encode(source, None)[0], plain.encode(source, None)[0], **CLOSE
        )
        # 1, 7 and 40 tokens at once: a step, a verification, a prompt fed in pieces
        for tokens in ([0], [3, 4, 5, 6, 7, 8, 9], [5, 11] * 20):
            torch.testing.assert_close(fast.feed(tokens), plain.feed(tokens), **CLOSE)
        for decoder in (plain, fast):
            decoder.rollback_to(4)
            decoder.rollback_to(9)  # not longer: nothing to forget
        torch.testing.assert_close(fast.feed([9, 3]), plain.feed([9, 3]), **CLOSE)
        assert (fast.length, fast.forwards, fast.tokens_fed) == (6, 4, 50)
        assert (plain.length, plain.forwards, plain.tokens_fed) == (6, 4, 50)


@pytest.mark.parametrize("compiled", COMPILED)
def test_draft_and_verify_are_those_made_of_logits(compiled):
    plain, fast = both(tiny(4), compiled)
    (source,) = sources(2, 1)
    for threshold, limit in ((0.0, 30), (0.5, 30), (0.9, 5), (2.0, 3), (0.5, 0)):
        begin(plain, source)
        begin(fast, source)
        ours, theirs = (d.draft([0], limit, MaxProbability(threshold), {1}) for d in (fast, plain))
        assert (ours.tokens, ours.unsure) == (theirs.tokens, theirs.unsure)
        assert ours.probabilities == pytest.approx(theirs.probabilities, rel=1e-2)
        assert (fast.length, fast.forwards) == (plain.length, plain.forwards)
    drafted = [3, 9, 4, 4, 8] * 5
    for count, first_row in ((5, 0), (5, 2), (25, 0), (25, 20)):
        for pending in ([7] * (first_row + 1) + drafted[:count], [7] * (first_row + 1)):
            asked = drafted[: max(len(pending) - first_row - 1, 0)]
            begin(plain, source)
            begin(fast, source)
            ours, theirs = (d.verify(pending, asked, first_row) for d in (fast, plain))
            assert ours.tokens == theirs.tokens
            assert ours.probabilities == pytest.approx(theirs.probabilities, rel=1e-2)
            assert ours.distances == pytest.approx(theirs.distances, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 40),
    fallback=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.1]),
    rollback=st.sampled_from([0.0, 0.5, 2.0, math.inf]),
    variant=st.sampled_from(["authors", "paper", "verified"]),
    start=st.sampled_from(["large", "small"]),
)
def test_tokens_equal_transformers_engine(compiled, seed, fallback, rollback, variant, start):
    large, small = tiny(seed), tiny(seed, noise=0.3)
    config = BiLDConfig(fallback, rollback, variant=variant, start=start)
    slow = BiLDModel(large, small, engine="transformers")
    fast = BiLDModel(large, small, engine="fast", compile=compiled)
    for source in sources(seed, 2):
        ours, theirs = (
            m.generate(source, bild_config=config, max_new_tokens=30) for m in (fast, slow)
        )
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        assert ours.stats == theirs.stats
        own = large.generate(source, max_new_tokens=30, do_sample=False)
        assert fast.greedy(source, max_new_tokens=30).sequences.tolist() == own.tolist()


@pytest.mark.parametrize("compiled", COMPILED)
def test_long_outputs_outgrow_the_first_cache(compiled):
    plain, fast = both(tiny(6), compiled)
    (source,) = sources(4, 1)
    begin(plain, source)
    begin(fast, source)
    step = list(itertools.islice(itertools.cycle([3, 7, 5, 11]), 100))
    for _ in range(4):
        torch.testing.assert_close(fast.feed(step), plain.feed(step), **CLOSE)


@pytest.mark.parametrize("compiled", COMPILED)
def test_padding_is_not_read(compiled):
    _, fast = both(tiny(7), compiled)
    (source,) = sources(8, 1)
    padded = torch.cat([source, torch.zeros(1, 5, dtype=torch.long)], 1)
    mask = (torch.arange(padded.shape[1]) < source.shape[1]).long()[None]
    begin(fast, source)
    bare = fast.feed([0, 3])
    begin(fast, padded, mask)
    torch.testing.assert_close(fast.feed([0, 3]), bare, **CLOSE)


@needs_compiler
@pytest.mark.parametrize("precision", TOLERANCE)
def test_logits_within_the_tolerance_of_their_precision(precision):
    plain, fast = both(tiny(9), True, precision)
    (source,) = sources(9, 1)
    begin(plain, source)
    begin(fast, source)
    expected = plain.feed([0, 3, 4])
    error = (fast.feed([0, 3, 4]) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[precision]
    assert precision == "float32" or error > 1e-5  # it is another precision


def half(model):
    """In float16, as transformers loads it: the feed-forward's last matrix stays in float32."""
    for name, parameter in model.named_parameters():
        if not name.endswith(".wo.weight"):
            parameter.data = parameter.data.half()
    return model


@pytest.mark.parametrize("make", [half, torch.nn.Module.half])
@pytest.mark.parametrize("kind", KINDS)
def test_float16_logits_are_transformers_own(kind, make):
    plain, fast = both(make(tiny(15, **KINDS[kind])), None)
    assert str(fast.engine) == "fast, float16, not compiled"
    for source in sources(15, 3, longest=40):
        begin(plain, source)
        begin(fast, source)
        for tokens in ([0], [3, 4, 5, 6], [7]):
            expected, found = plain.feed(tokens), fast.feed(tokens)
            assert found.dtype == torch.float16
            error = (found.float() - expected.float()).abs().max() / expected.abs().max()
            assert error < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("make", [half, torch.nn.Module.half])
def test_float16_states_do_not_overflow(make):
    model = tiny(16)
    added, hooks = [], []
    with torch.no_grad():
        for block in model.encoder.block:
            matrix = block.layer[-1].DenseReluDense.wo
            matrix.weight.fill_(1800.0)
            hook = matrix.register_forward_hook(lambda *call: added.append(float(call[-1].min())))
            hooks.append(hook)
    (source,) = sources(16, 1)
    expected = model.encoder(source).last_hidden_state
    for hook in hooks:
        hook.remove()
    assert max(added) < 65504 < sum(added)  # float16 holds each layer's part, not their sum
    found = make_engine(make(model), "fast").decoder("large").encode(source, None)[0]
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


@needs_compiler
@pytest.mark.parametrize("precision", TOLERANCE)
def test_long_sources(precision):
    """Sources that take several passes over the weights."""
    plain, fast = both(tiny(14), True, precision)
    source = torch.randint(3, 16, (1, 200), generator=torch.Generator().manual_seed(14))
    expected = plain.encode(source, None)[0]
    error = (fast.encode(source, None)[0] - expected).norm() / expected.norm()
    assert error < TOLERANCE[precision]


@needs_compiler
def test_threads_do_not_change_the_result():
    model = tiny(10)
    (source,) = sources(10, 1)
    outputs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            _, fast = both(model, True)
            begin(fast, source)
            outputs.append(fast.feed([0, 3, 4, 5]))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


@needs_compiler
def test_unknown_ids_are_refused_and_not_read():
    pair = BiLDModel(tiny(13), tiny(13, noise=0.1), engine="fast", compile=True)
    with pytest.raises(BildError, match="token id 16, but the large model knows only 16"):
        pair.generate(torch.tensor([[3, 16, 1]]), max_new_tokens=5)
    decoder = pair.engine.decoder("large")
    decoder.read(torch.tensor([[3, 1]]))
    for call in (
        lambda: decoder.feed([99]),
        lambda: decoder.draft([-1], 3, NEVER_STOPS),
        lambda: decoder.verify([16, 3], [3]),
        lambda: decoder.read(torch.tensor([[3, 16, 1]])),  # past the check of `generate`
    ):
        with pytest.raises(BildError, match="is not one of the model's 16 embeddings"):
            call()


@needs_compiler
def test_a_damaged_model_is_reported():
    large = tiny(11)
    with torch.no_grad():
        large.lm_head.weight[5] = math.nan
    pair = BiLDModel(large, tiny(11, noise=0.1), engine="fast", compile=True)
    (source,) = sources(11, 1)
    with pytest.raises(BildError, match="large model's scores are NaN"):
        pair.generate(source, max_new_tokens=5)


def test_auto_is_fast_where_it_can_be():
    assert str(make_engine(tiny())).startswith("fast, float32")
    assert str(make_engine(tiny_bart())) == "transformers, float32"
    odd = str(make_engine(tiny_t5()))  # heads of 8: covered, but not by the machine code
    assert odd == "fast, float32, not compiled"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny, {"engine": "quick"}, "engine must be one of auto, fast, transformers, got 'quick'"),
        (tiny, {"precision": "int4"}, "precision must be one of .* got 'int4'"),
        (tiny_bart, {"engine": "fast"}, "model type 'bart' is not one of t5, mt5, umt5"),
        (tiny_bart, {"precision": "int8"}, "needs the fast engine, .* 'bart'"),
        (tiny, {"engine": "transformers", "compile": True}, "compile=True needs the fast engine"),
        (tiny, {"precision": "int8", "compile": False}, "needs the compiled engine"),
        (tiny_t5, {"compile": True}, "d_kv is 8, not a multiple of 16"),
        (lambda: tiny().double(), {"engine": "fast"}, "weights are torch.float64, not all one of"),
        (lambda: tiny().half(), {"compile": True}, "float16, which the compiled engine does not"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(make, options, message):
    with pytest.raises(BildError, match=message):
        make_engine(make(), **options)


CHILD = """
import sys, warnings
sys.path.insert(0, "tests")
from tiny import tiny_t5
from bild import BildError
from bild.engines import make_engine
model = tiny_t5(width=32, head_width=16)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(make_engine(model))
print([str(w.message) for w in caught if "uncompiled" in str(w.message)])
try:
    make_engine(model, compile=True)
except BildError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("compiler", "complaint"),
    [("no-such-compiler", "no C++ compiler found"), ("false", "cannot compile the engine")],
)
def test_without_a_working_compiler_it_says_so_and_runs_uncompiled(tmp_path, compiler, complaint):
    env = {**os.environ, "CXX": compiler, "BILD_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, env=env, check=True
    )
    engine, warned, refused = result.stdout.strip().splitlines()
    assert engine == "fast, float32, not compiled"
    assert complaint in warned
    assert complaint in refused
    assert "compile=False" in refused
    assert list(tmp_path.iterdir()) == []


@needs_compiler
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="any, without OpenMP"),
        pytest.param(("-march=haswell",), id="AVX2", marks=needs_avx2),
    ],
)
def test_lesser_processors_compute_the_same(monkeypatch, tmp_path, flags):
    """Without the instructions of this machine's processor that others lack."""
    model = tiny(12)
    (source,) = sources(12, 1)

    def logits(precision):
        _, fast = both(model, True, precision)
        begin(fast, source)
        return fast.feed([0, 3, 4, 5, 6])

    here = {p: logits(p) for p in PRECISIONS}
    monkeypatch.setenv("BILD_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "OPTIONAL_FLAGS", (flags,))
    build.load.cache_clear()
    try:
        for precision, expected in here.items():
            torch.testing.assert_close(logits(precision), expected, rtol=1e-3, atol=1e-3)
    finally:
        build.load.cache_clear()
