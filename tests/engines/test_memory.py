"""What is handed to the compiled engine: memory of its own kind and size, and checked arguments."""

import contextlib

import pytest
import torch
from on_engines import ENGINES, needs_compiler
from tiny import sources, tiny_bart, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel, bild_generate, greedy_generate
from bild.engines import make_engine, t5_structs
from bild.engines.t5_native import NativeSession, NativeStack
from bild.engines.t5_structs import PRECISIONS, CFallback
from bild.engines.t5_weights import read_stack

PARTS = ("encoder", "decoder")
COMPILED = [False, pytest.param(True, marks=needs_compiler)]


def tiny(seed=0, **kwargs):
    return tiny_t5(seed, width=32, head_width=16, **kwargs)


@contextlib.contextmanager
def default_dtype(dtype):
    """As transformers sets it, for the whole process, while some thread loads a model."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (default_dtype, torch.bfloat16),
        (default_dtype, torch.float16),
        (default_dtype, torch.float64),
        (default_device, "meta"),
    ],
)
def test_the_process_defaults_change_nothing(compiled, setting, value):
    (short,), (long,) = sources(21, 1), sources(22, 1, longest=60)

    def outputs(pair):
        calls = (
            pair.generate(long, bild_config=BiLDConfig(0.6, 1.0), max_new_tokens=150),
            pair.greedy(short, max_new_tokens=40, output_scores=True),
        )
        return [call.sequences.tolist() for call in calls]

    def new_pair():
        return BiLDModel(tiny(1), tiny(1, noise=0.3), engine="fast", compile=compiled)

    expected, other = outputs(new_pair()), new_pair()  # which has allocated nothing yet
    with setting(value):
        assert outputs(other) == expected


def padded(source, left, right):
    """The source with padding on both sides, and its mask."""
    ids = torch.nn.functional.pad(source, (left, right))
    mask = torch.zeros_like(ids)
    mask[:, left : left + source.shape[1]] = 1
    return ids, mask


@pytest.mark.parametrize(
    ("compiled", "precision"),
    [
        (False, "float32"),
        *(pytest.param(True, p, marks=needs_compiler) for p in PRECISIONS),
    ],
)
@pytest.mark.parametrize(("left", "right"), [(0, 5), (4, 0), (3, 17)])
def test_a_padded_source_is_the_bare_one_to_the_last_bit(compiled, precision, left, right):
    decoder = make_engine(tiny(9), "fast", precision, compiled).decoder("large")
    for source in sources(3, 3):
        decoder.read(source)
        bare = decoder.feed([0, 3, 4]).clone()
        decoder.read(*padded(source, left, right))
        assert torch.equal(decoder.feed([0, 3, 4]), bare)


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_mask_with_holes_is_transformers_own(compiled):
    model = tiny(9)
    plain = make_engine(model, "transformers").decoder("large")
    fast = make_engine(model, "fast", compile=compiled).decoder("large")
    source = torch.tensor([[0, 5, 7, 9, 4, 3, 1, 0]])
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 1, 0]])
    for kept in (mask, mask.bool(), mask.float()):
        plain.read(source, kept)
        fast.read(source, kept)
        torch.testing.assert_close(
            fast.feed([0, 3, 4]), plain.feed([0, 3, 4]), rtol=1e-3, atol=5e-3
        )
    fast.read(source, mask)
    hidden = fast.feed([0, 3, 4]).clone()
    fast.read(source)
    assert not torch.allclose(fast.feed([0, 3, 4]), hidden, atol=0.1)  # a mask matters


BAD_MASKS = [
    pytest.param(torch.zeros(1, 4, dtype=torch.long), "hides every token", id="all padding"),
    pytest.param(torch.ones(1, 3, dtype=torch.long), r"input_ids, \(1, 4\), got", id="too short"),
    pytest.param(torch.ones(4, dtype=torch.long), r"got \(4,\)", id="no batch"),
    pytest.param(torch.ones(2, 4, dtype=torch.long), r"got \(2, 4\)", id="two rows"),
]


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize(("mask", "message"), BAD_MASKS)
def test_a_mask_that_cannot_be_is_refused(options, mask, message):
    pair = BiLDModel(tiny(2), tiny(2, noise=0.1), **options)
    source = torch.tensor([[5, 7, 9, 1]])
    for call in (pair.generate, pair.greedy):
        with pytest.raises(BildError, match=message):
            call(source, attention_mask=mask, max_new_tokens=4)


@pytest.mark.parametrize("make", [tiny, tiny_bart])
def test_the_plug_in_refuses_a_source_that_is_all_padding(make):
    options = {"max_new_tokens": 4, "attention_mask": torch.zeros(1, 4, dtype=torch.long)}
    for method, more in ((bild_generate, {"small_model": make(1)}), (greedy_generate, {})):
        with pytest.raises(BildError, match="hides every token"):
            make().generate(torch.tensor([[5, 7, 9, 1]]), custom_generate=method, **options, **more)


@needs_compiler
def test_the_machine_code_does_nothing_with_nothing():
    """Below all checks: no tokens, no source. It used to divide by their number."""
    encoder, decoder = (NativeStack(read_stack(tiny(), p), "float32") for p in PARTS)
    session = NativeSession(encoder, decoder)
    session.begin(torch.empty(0, 32), 16)
    assert session.feed(0, []).shape == (0, 16)
    assert session.draft(0, [], 3, CFallback(), ()) == ([], [], None)
    assert session.verify(0, [], [], 0)[:3] == ([], [], [])
    encoder.library.bild_t5_encode(encoder.struct, session._session, None, 0, 16, None, None)


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("token", [12, 16, -1])
def test_verify_refuses_drafted_ids_that_it_does_not_score(options, token):
    decoder = make_engine(tiny(), **options).decoder("large", 12)
    decoder.read(torch.tensor([[5, 7, 9, 1]]))
    with pytest.raises(BildError, match=f"token id {token} is not one of the model's 12 scored"):
        decoder.verify([0, 3, 3], [3, token])


def layout_numbers():
    """Sizes of the structures, and the two limits."""
    return len(t5_structs.STRUCTURES) + 2


@needs_compiler
def test_structures_are_measured_when_the_library_is_loaded(monkeypatch):
    t5_structs.load()
    monkeypatch.setattr(t5_structs, "MAX_TOKENS", 32)
    with pytest.raises(AssertionError, match=r"t5\.cpp has .* Python"):
        t5_structs.load()
    monkeypatch.undo()
    known = layout_numbers()
    for fewer in range(known - 2):  # nothing is written behind what there is room for
        monkeypatch.setattr(t5_structs, "STRUCTURES", t5_structs.STRUCTURES[:fewer])
        with pytest.raises(AssertionError, match=rf"t5\.cpp has {known}: .* Python"):
            t5_structs.load()
        monkeypatch.undo()


def test_a_layout_is_written_as_far_as_there_is_room():
    calls = t5_structs.load()
    room = (t5_structs.Int * 12)(*[-1] * 12)
    assert calls.bild_t5_layout(room, 3) == layout_numbers()
    assert min(room[:3]) > 0
    assert room[3:] == [-1] * 9
