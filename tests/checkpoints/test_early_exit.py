"""The large model's first layers as the small model."""

import pytest
import torch
from commands import run_here
from tiny import sources, tiny_bart, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel, bild_generate
from bild.benchmark.kinds import PairArm
from bild.checkpoints.early_exit import early_exit, exit_layers
from bild.evaluation.arms import BILD, Case


def pair(engine, kind="t5", **config):
    large = tiny_t5(2, decoder_layers=4, kind=kind, tied=kind == "t5")
    return BiLDModel(large, early_exit(large, 2), engine=engine, **config)


@pytest.mark.parametrize("engine", ["transformers", "fast"])
@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_with_the_exact_rule_it_writes_the_large_model_s_text(engine, kind):
    both = pair(engine, kind)
    drafted = 0
    for ids in sources(2, 5):
        greedy = both.greedy(ids, max_new_tokens=16)
        output = both.generate(
            ids, bild_config=BiLDConfig(0.1, acceptance="exact"), max_new_tokens=16
        )
        assert output.sequences.tolist() == greedy.sequences.tolist()
        drafted += output.stats.drafted_tokens
    assert drafted > 0


def test_it_is_the_large_model_left_early():
    large = tiny_t5(2, decoder_layers=4)
    small = early_exit(large, 2)
    (ids,) = sources(5, 1)
    start = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        deep = large(input_ids=ids, decoder_input_ids=start, output_hidden_states=True)
        hidden = deep.decoder_hidden_states[2]  # after two layers
        expected = large.lm_head(large.decoder.final_layer_norm(hidden))
        found = small(input_ids=ids, decoder_input_ids=start).logits
    assert torch.allclose(found, expected, atol=1e-4)
    shared = {p.data_ptr() for p in large.parameters()}
    assert all(p.data_ptr() in shared for p in small.parameters())
    assert len(large.decoder.block) == 4


@pytest.mark.parametrize("engine", ["transformers", "fast"])
def test_the_source_is_read_once(engine, monkeypatch):
    both = pair(engine)
    kind = type(both.models["small"].engine.decoder("small"))
    read = []
    encode = kind.encode
    monkeypatch.setattr(
        kind, "encode", lambda self, *a, **k: read.append(self.name) or encode(self, *a, **k)
    )
    both.generate(sources(2, 1)[0], max_new_tokens=8)
    assert read == ["large"]


def test_the_source_is_read_once_in_transformers_own_generate_too():
    large, (ids,), read = tiny_t5(2, layers=4, decoder_layers=4), sources(2, 1), []
    large.encoder.register_forward_hook(lambda *_: read.append("large"))
    output = large.generate(
        ids,
        custom_generate=bild_generate,
        small_model=early_exit(large, 2),
        bild_config=BiLDConfig(0.1, acceptance="exact"),
        max_new_tokens=8,
        return_dict_in_generate=True,
    )
    assert read == ["large"]
    assert output.stats.drafted_tokens > 0


def test_the_steps_of_a_benchmark_read_the_source_once(monkeypatch):
    both, read = pair("fast", "t5"), []
    arm = PairArm(kind=BILD, runner=both, bild=BiLDConfig())
    kind = type(both.models["small"].engine.decoder("small"))
    encode = kind.encode
    monkeypatch.setattr(
        kind, "encode", lambda self, *a, **k: read.append(self.name) or encode(self, *a, **k)
    )
    arm.steps(Case(sources(2, 1)[0], 8))
    assert set(read) == {"large"}


def test_what_cannot_be_left_early_is_refused():
    large = tiny_t5(0, decoder_layers=3)
    for layers in (0, 3, 9):
        with pytest.raises(
            BildError, match=f"after 1 to 2 of the .* 3 decoder layers, got {layers}"
        ):
            early_exit(large, layers)
    with pytest.raises(BildError, match="early exit is of t5, mt5, umt5, not of bart"):
        early_exit(tiny_bart(), 1)
    assert exit_layers("early-exit:12") == 12
    assert exit_layers("my/early-exit") is None


def test_a_command_and_a_record_know_it(mirror, monkeypatch, capsys, tmp_path):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    run = ("iwslt2017", "--max-eval-samples", 2, "--max-new-tokens", 6, "--output-dir", tmp_path)
    done = run_here(monkeypatch, capsys, *run, "--small", "early-exit:1", "--rule", "exact")
    record = done.require_success().record()
    assert record.models.small["small"].id == "early-exit:1"
    assert record.arm("bild").identical == 1
    done = run_here(monkeypatch, capsys, *run, "--small", "early-exit:9")
    assert done.code == 2
    assert "decoder layers, got 9" in done.err
