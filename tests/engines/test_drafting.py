"""A drafter on every engine: the same tokens as a decoder without caches, whatever its shape."""

from __future__ import annotations

import pytest
import torch
from reference import Cacheless, reference_decode
from tiny import EOS, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.checkpoints.drafter import BiLDDrafter, DrafterConfig, encoder_sizes, make_drafter
from bild.engines import make_engine

ENGINES = {
    "transformers": {"engine": "transformers"},
    "torch": {"engine": "fast", "compile": False},
    "compiled": {"engine": "fast", "compile": True},
}
SHORTLISTS = {"all": None, "shortlist": torch.tensor([1, 3, 4, 5, 8, 9, 11, 15])}
VARIANTS = ("authors", "paper", "verified")


class WithEncoder(torch.nn.Module):
    """A drafter that is called as a model with an encoder is: for the reference."""

    def __init__(self, large, drafter):
        super().__init__()
        self.large, self.drafter = large, drafter

    def forward(self, input_ids, attention_mask, decoder_input_ids, use_cache):
        states = self.large.get_encoder()(input_ids, attention_mask)
        return self.drafter(states, attention_mask, decoder_input_ids, use_cache=use_cache)


def narrow_drafter(large, shortlist):
    """Narrower than its large model, with two layers and random weights."""
    torch.manual_seed(5)
    config = DrafterConfig(
        vocab_size=16, d_model=32, d_kv=16, num_heads=1, d_ff=48, num_layers=2,
        num_decoder_layers=2, source_width=16, encoder_sizes=encoder_sizes(large),
        head_rows=None if shortlist is None else len(shortlist), scales_head=False,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    drafter = BiLDDrafter(config).eval()
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if "layer_norm" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 32**-0.5 * 2)
        if shortlist is not None:
            drafter.head_ids.copy_(shortlist)
    return drafter


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shortlist", SHORTLISTS)
@pytest.mark.parametrize("make", [make_drafter, narrow_drafter])
def test_a_pair_with_a_drafter_writes_what_the_reference_writes(engine, shortlist, make):
    large = tiny_t5(3, head_width=16)
    drafter = make(large, shortlist=SHORTLISTS[shortlist])
    pair = BiLDModel(large, drafter, **ENGINES[engine])
    drafted = 0
    for seed, variant in enumerate(VARIANTS):
        source = torch.randint(2, 16, (1, 6 + seed), generator=torch.Generator().manual_seed(seed))
        config = BiLDConfig(fallback_threshold=0.3, rollback_threshold=2.0, variant=variant)
        output = pair.generate(source, bild_config=config, max_new_tokens=16)
        expected = reference_decode(
            Cacheless(large, source), Cacheless(WithEncoder(large, drafter), source),
            fallback=0.3, rollback=2.0, variant=variant, max_length=17, eos=EOS,
        )  # fmt: skip
        assert output.sequences[0].tolist() == expected.tokens
        drafted += output.stats.drafted_tokens
    assert drafted > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_around_and_inside_a_source_is_hidden_from_the_drafter(engine):
    large = tiny_t5(3, head_width=16)
    drafter = make_drafter(large, shortlist=SHORTLISTS["shortlist"])
    pair = BiLDModel(large, drafter, **ENGINES[engine])
    source = torch.tensor([[0, 5, 7, 9, 1, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0]])
    options = {"bild_config": BiLDConfig(fallback_threshold=0.2), "max_new_tokens": 12}
    padded = pair.generate(source, mask, **options)
    assert padded.sequences.tolist() == pair.generate(source[:, 1:5], **options).sequences.tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_alone_it_writes_its_own_greedy_choices(engine):
    large = tiny_t5(3, head_width=16)
    drafter = make_drafter(large, shortlist=SHORTLISTS["shortlist"])
    pair = BiLDModel(large, drafter, **ENGINES[engine])
    source = torch.tensor([[5, 7, 9, 12, 1]])
    written = pair.greedy(source, which="small", max_new_tokens=10).sequences
    states, tokens = large.get_encoder()(source), [0]
    while len(tokens) < 11 and tokens[-1] != EOS:
        scores = drafter(states, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(scores.argmax()))
    assert written[0].tolist() == tokens


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_drafter_runs_in_the_compiled_engines_precisions(precision):
    large = tiny_t5(3, head_width=16)
    drafter = make_drafter(large, shortlist=SHORTLISTS["shortlist"])
    pair = BiLDModel(large, drafter, precision=precision)
    output = pair.generate(torch.tensor([[5, 7, 9, 12, 1]]), max_new_tokens=12,
                           bild_config=BiLDConfig(fallback_threshold=0.0, rollback_threshold=0.0,
                                                  variant="verified"))  # fmt: skip
    alone = pair.greedy(torch.tensor([[5, 7, 9, 12, 1]]), max_new_tokens=12)
    assert output.sequences.tolist() == alone.sequences.tolist()


def test_transformers_own_generate_takes_a_drafter():
    large = tiny_t5(3, head_width=16)
    drafter = make_drafter(large, shortlist=SHORTLISTS["shortlist"])
    source = torch.tensor([[5, 7, 9, 12, 1]])
    options = {"bild_config": BiLDConfig(fallback_threshold=0.2), "max_new_tokens": 12}
    output = large.generate(source, custom_generate=bild_generate, small_model=drafter, **options)
    expected = BiLDModel(large, drafter).generate(source, **options).sequences
    assert torch.equal(getattr(output, "sequences", output), expected)


def test_a_batch_has_a_drafter_too():
    large = tiny_t5(3, head_width=16)
    pair = BiLDModel(large, make_drafter(large, shortlist=SHORTLISTS["shortlist"]))
    sources = torch.tensor([[5, 7, 9, 12, 1], [4, 8, 1, 0, 0]])
    options = {"bild_config": BiLDConfig(fallback_threshold=0.2), "max_new_tokens": 12}
    rows = pair.generate(sources, (sources != 0).long(), **options).sequences
    for row, source in zip(rows, (sources[:1], sources[1:, :3]), strict=True):
        alone = pair.generate(source, **options).sequences[0]
        assert row.tolist()[: len(alone)] == alone.tolist()


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_a_drafter_does_not_read_a_source_by_itself(engine):
    options = {name: value for name, value in ENGINES[engine].items() if name != "engine"}
    drafter = make_engine(make_drafter(tiny_t5(3, head_width=16)), "fast", **options)
    with pytest.raises(BildError, match="has no encoder"):
        drafter.decoder("small").read(torch.tensor([[5, 1]]))


def test_the_small_model_may_have_a_precision_of_its_own():
    large, small = tiny_t5(3, head_width=16), tiny_t5(4, head_width=16)
    pair = BiLDModel(large, small, small_precision="int8")
    assert [m.engine.precision for m in pair.models.values()] == ["float32", "int8"]
    assert pair.with_small(tiny_t5(5, head_width=16)).models["small"].engine.precision == "int8"
    lossless = BiLDConfig(fallback_threshold=0.3, rollback_threshold=0.69, variant="verified")
    alone, drafted = BiLDModel(large, small), 0
    for token in range(5, 10):
        source = torch.tensor([[token, 7, 9, 12, 1]])
        output = pair.generate(source, bild_config=lossless, max_new_tokens=12)
        expected = alone.greedy(source, max_new_tokens=12)
        assert output.sequences.tolist() == expected.sequences.tolist()
        drafted += output.stats.drafted_tokens
    assert drafted > 0
