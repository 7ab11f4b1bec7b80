"""The fast engine runs what it knows, part by part; what else a model does is not passed over."""

import copy
import functools
import types
import warnings

import pytest
import torch
from tiny import sources, tiny_bart, tiny_t5
from torch import nn
from transformers import T5ForConditionalGeneration, T5Model

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.engines import make_engine
from bild.engines.coverage import not_covered

LARGE_WRITES = BiLDConfig(1.1, 3.0)  # every token is the large model's


class Adapter(nn.Module):
    """What adapters do: a plain layer, whose weight can still be read, and something added."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base_layer = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + 3 * self.b(self.a(x))


class OwnForward(T5ForConditionalGeneration):
    @functools.wraps(T5ForConditionalGeneration.forward)
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits[..., 7] += 50
        return output


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Wrapped(torch.Tensor):
    """A tensor of another class, as quantized weights are."""


def attention(model):
    return model.decoder.block[1].layer[0].SelfAttention


def with_adapter(model):
    attention(model).q = Adapter(attention(model).q)


def with_hook(model):
    model.lm_head.register_forward_hook(lambda m, i, out: out + 50 * (torch.arange(16) == 7))


def with_pre_hook(model):
    attention(model).o.register_forward_pre_hook(lambda m, args: (3 * args[0],))


def with_own_forward(model):
    plain = model.encoder.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.last_hidden_state = -output.last_hidden_state
        return output

    model.encoder.forward = forward


def with_subclass(model):
    model.__class__ = OwnForward


def with_parametrization(model):
    torch.nn.utils.parametrize.register_parametrization(attention(model).v, "weight", Twice())


def with_bias(model):
    layer = attention(model).v
    layer.bias = nn.Parameter(torch.randn(layer.out_features))


def with_max_norm(model):
    model.encoder.embed_tokens.max_norm = 0.5


def with_other_weights(model):
    layer = model.decoder.block[0].layer[-1].DenseReluDense.wi
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Wrapped))


CHANGES = [
    (with_adapter, r"SelfAttention.q' is a test_coverage.Adapter, not a plain part"),
    (with_hook, "part 'lm_head' has forward hooks"),
    (with_pre_hook, r"SelfAttention.o' has forward hooks"),
    (with_own_forward, "part 'encoder' has a forward of its own"),
    (with_subclass, "it is a OwnForward, not a T5ForConditionalGeneration"),
    (with_parametrization, r"SelfAttention.v' is a .*Parametrized"),
    (with_bias, r"SelfAttention.v' has a bias"),
    (with_max_norm, "part 'encoder.embed_tokens' has a max_norm"),
    (with_other_weights, r"wi.weight' is a Wrapped, not a plain tensor"),
]


def tiny(seed=0, **kwargs):
    return tiny_t5(seed, width=32, head_width=16, **kwargs)


def changed(change, seed=3):
    model = tiny(seed)
    torch.manual_seed(seed)
    change(model)
    return model.eval()


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_what_it_does_not_know_is_refused_or_run_by_transformers(change, why):
    model = changed(change)
    with pytest.raises(BildError, match=f"does not cover this model: .*{why}"):
        make_engine(model, "fast")
    with pytest.raises(BildError, match=why):
        make_engine(model, precision="int8")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pair = BiLDModel(model, tiny(3, noise=0.1))
    assert str(pair.engine) == "transformers, float32"
    assert ["it runs on transformers' own forward" in str(w.message) for w in warned] == [True]
    for source in sources(3, 3):
        own = model.generate(source, max_new_tokens=12, do_sample=False)
        found = pair.generate(source, bild_config=LARGE_WRITES, max_new_tokens=12)
        assert found.sequences.tolist() == own.tolist()


@pytest.mark.parametrize("before", [True, False])
def test_hooks_that_transformers_leaves_behind_only_look_on(before):
    """It puts them on a model whose attentions or hidden states are asked for, for good."""
    model, (source,) = tiny(3), sources(3, 1)

    def ask():
        asked = {"output_attentions": True, "output_hidden_states": True}
        model(input_ids=source, decoder_input_ids=source, **asked)
        assert any(part._forward_hooks for part in model.modules())

    if before:
        ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = BiLDModel(model, tiny(4), compile=False)
        if not before:
            ask()
        output = pair.generate(source, bild_config=LARGE_WRITES, max_new_tokens=8)
    assert pair.engine.name == "fast"
    assert torch.equal(output.sequences, model.generate(source, max_new_tokens=8))
    with_hook(model)
    with pytest.raises(BildError, match="'lm_head' has forward hooks"):
        pair.generate(source, max_new_tokens=8)


def test_the_changes_change_what_is_written():
    """Else the test above could not tell an engine that passes over them."""
    source = torch.tensor([[5, 9, 3, 12, 4, 1]])
    plain = tiny(3)(input_ids=source, decoder_input_ids=torch.tensor([[0, 3, 4]])).logits
    for change, _ in CHANGES:
        model = changed(change)
        if change is with_other_weights:
            continue
        found = model(input_ids=source, decoder_input_ids=torch.tensor([[0, 3, 4]])).logits
        assert not torch.allclose(found, plain, atol=1e-2), change.__name__


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_every_part_is_looked_at(kind):
    model = tiny(kind=kind)
    assert not_covered(model) is None
    for name, part in model.named_modules():
        hook = part.register_forward_hook(lambda *call: None)
        assert "has forward hooks" in not_covered(model), name
        hook.remove()
        part.forward = part.forward
        assert "has a forward of its own" in not_covered(model), name
        del part.forward
        kept, part.__class__ = part.__class__, type("Other", (part.__class__,), {})
        assert not_covered(model) is not None, name
        part.__class__ = kept
    assert not_covered(model) is None


def test_shapes_are_those_of_the_configuration():
    """The machine code reads as far as the configuration says."""
    for change in (
        lambda m: setattr(attention(m), "q", nn.Linear(32, 16, bias=False)),
        lambda m: setattr(attention(m), "o", nn.Linear(16, 32, bias=False)),
        lambda m: setattr(m.decoder, "final_layer_norm", type(m.decoder.final_layer_norm)(16)),
        lambda m: setattr(m, "lm_head", nn.Linear(16, 16, bias=False)),
        lambda m: setattr(m.encoder, "embed_tokens", nn.Embedding(16, 16)),
    ):
        assert "has shape" in not_covered(changed(change))
    with pytest.raises(BildError, match="large model scores 16 token ids, not 17"):
        make_engine(tiny(), "fast").decoder("large", 17)


def test_weights_that_are_not_there_are_refused():
    with torch.device("meta"):
        empty = T5ForConditionalGeneration(tiny().config)
    assert "is not in memory" in not_covered(empty)
    with pytest.raises(BildError, match="on the meta device: they were not loaded"):
        BiLDModel(empty, empty)


def test_other_families_need_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(make_engine(tiny_bart())) == "transformers, float32"
        assert str(make_engine(tiny_t5(), "transformers")) == "transformers, float32"


# ---------------------------------------------------------------------------- transformers' engine


def test_a_model_without_a_head_is_refused():
    headless = T5Model(tiny().config).eval()
    for call in (
        lambda: BiLDModel(headless, headless),
        lambda: BiLDModel(tiny(), headless),
        lambda: make_engine(headless),
        lambda: tiny().generate(
            torch.tensor([[3, 1]]), custom_generate=bild_generate, small_model=headless
        ),
    ):
        with pytest.raises(BildError, match="a T5Model has no head that scores tokens"):
            call()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [tiny, tiny_bart])
def test_quantized_layers_run_on_transformers_forward(make):
    quantize = torch.ao.quantization.quantize_dynamic
    large, small = (quantize(make(seed), {nn.Linear}, dtype=torch.qint8) for seed in (1, 2))
    pair = BiLDModel(large, small)
    assert str(pair.engine).startswith("transformers")
    for source in sources(1, 2):
        own = large.generate(source, max_new_tokens=12, do_sample=False)
        found = pair.generate(source, bild_config=LARGE_WRITES, max_new_tokens=12)
        assert found.sequences.tolist() == own.tolist()


@pytest.mark.parametrize("make", [tiny, tiny_bart])
def test_offloaded_weights_run_on_transformers_forward(make):
    from accelerate import cpu_offload

    large, small = make(1), make(2)
    (source,) = sources(1, 1)
    own = large.generate(source, max_new_tokens=8, do_sample=False).tolist()
    for model in (large, small):
        cpu_offload(model, torch.device("cpu"))
    pair = BiLDModel(large, small)
    assert pair.device == torch.device("cpu")
    found = pair.generate(source, bild_config=LARGE_WRITES, max_new_tokens=8)
    assert found.sequences.tolist() == own
    plugged = large.generate(
        source,
        custom_generate=bild_generate,
        small_model=small,
        bild_config=LARGE_WRITES,
        max_new_tokens=8,
    )
    assert plugged.tolist() == own


def test_prompt_learning_is_refused():
    """As peft has it: a model that carries its settings, or that prepares inputs otherwise."""
    wrapped = tiny()
    wrapped.active_peft_config = types.SimpleNamespace(is_prompt_learning=True)
    prepared = tiny()
    prepared.prepare_inputs_for_generation = lambda *args, **kwargs: {}
    for model in (wrapped, prepared):
        with pytest.raises(BildError, match="does not run prefix or prompt tuning"):
            BiLDModel(model, tiny(1), engine="transformers")
    restored = tiny()
    restored.prepare_inputs_for_generation = restored.prepare_inputs_for_generation
    restored.active_peft_config = types.SimpleNamespace(is_prompt_learning=False)
    BiLDModel(restored, tiny(1), engine="transformers")


def test_an_adapter_on_transformers_engine_needs_no_copy():
    """The engine reads the model as it is at each call."""
    model = changed(with_adapter)
    pair = BiLDModel(model, copy.deepcopy(model), engine="transformers")
    (source,) = sources(5, 1)
    with torch.no_grad():
        attention(model).q.b.weight.add_(1.0)
    own = model.generate(source, max_new_tokens=12, do_sample=False)
    found = pair.generate(source, bild_config=LARGE_WRITES, max_new_tokens=12)
    assert found.sequences.tolist() == own.tolist()


@pytest.mark.parametrize("compiled", [False, None])
def test_inputs_that_its_encoder_does_not_read_are_refused(compiled):
    decoder = make_engine(tiny(), "fast", compile=compiled).decoder("large")
    with pytest.raises(BildError, match="the fast engine's encoder reads no token_type_ids"):
        decoder.read(torch.tensor([[3, 1]]), token_type_ids=torch.tensor([[0, 1]]))
