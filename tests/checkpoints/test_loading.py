"""Loading: what does not belong together is refused by name, in one sentence, and runs no code."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from mirror import save_checkpoint, save_mt5_tokenizer, save_t5_tokenizer
from safetensors.torch import load_file, save_file
from tiny import tiny_bart, tiny_marian, tiny_pegasus, tiny_t5
from transformers import T5Config, T5ForConditionalGeneration

from bild import BiLDModel
from bild.checkpoints import loading
from bild.checkpoints.identity import describe_model, describe_tokenizer
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.names import resolve_model
from bild.errors import BildError


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tiny_t5(0), tmp_path / "model")


def refuse(folder, *needles):
    """The one sentence a checkpoint is refused with."""
    with pytest.raises(BildError) as error:
        load_model(str(folder), torch.float32, "cpu", allow_pickle=True)
    sentence = str(error.value)
    for needle in (str(folder), *needles):
        assert needle in sentence
    assert "\n" not in sentence
    assert "above report" not in sentence
    return sentence


def edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    """Rewrite the weights; `change` gets them by name."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------ what loads


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("make", [tiny_t5, tiny_bart, tiny_marian, tiny_pegasus])
def test_what_was_saved_is_loaded(tmp_path, make, binary):
    saved = make(0)
    folder = str(save_checkpoint(saved, tmp_path, binary))
    loaded = load_model(folder, torch.float32, "cpu", allow_pickle=binary)
    for name, weight in saved.state_dict().items():
        if "embed_positions" not in name:  # Marian computes them anew
            assert torch.equal(loaded.state_dict()[name], weight), name
    assert not loaded.training


def test_a_pickle_is_loaded_only_where_that_is_allowed(tmp_path):
    folder = str(save_checkpoint(tiny_t5(0), tmp_path, binary=True))
    with pytest.raises(BildError, match=r"pytorch_model\.bin alone, a pickle.*allow_pickle=True"):
        BiLDModel.from_pretrained(folder, folder)
    BiLDModel.from_pretrained(folder, folder, allow_pickle=True)


@pytest.mark.parametrize("keyword", ["weights_only", "use_safetensors"])
def test_no_keyword_lets_code_in_weights_run(folder, keyword):
    with pytest.raises(BildError, match=f"{keyword}=False is not supported here"):
        BiLDModel.from_pretrained(str(folder), str(folder), **{keyword: False})


def test_a_tied_model_needs_one_copy(tmp_path):
    folder = save_checkpoint(tiny_t5(0, tied=True), tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_model(str(folder), torch.float32, "cpu")


def test_a_tensor_that_the_library_knows_to_be_harmless(folder):
    key = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    edit_weights(folder, lambda weights: weights.update({key: torch.zeros(32, 2)}))
    load_model(str(folder), torch.float32, "cpu")


def test_a_resolved_name_is_not_resolved_again(folder, monkeypatch):
    found = resolve_model(str(folder))
    monkeypatch.setattr(loading, "resolve_model", resolve_only_checkpoints)
    load_model(found, torch.float32, "cpu")


def resolve_only_checkpoints(found, *_):
    assert not isinstance(found, str)
    return found


# ------------------------------------------------------------------------------ weights


def test_layers_that_would_be_dropped(tmp_path):
    folder = save_checkpoint(tiny_t5(0, layers=8), tmp_path)
    edit(folder, num_layers=4)
    refuse(folder, "hold encoder.block.4.layer", "more, which its config.json has no place for")


def test_a_tensor_too_many(folder):
    edit_weights(folder, lambda weights: weights.update(other=torch.zeros(2)))
    refuse(folder, "hold other, which")


def test_a_tensor_too_few(folder):
    edit_weights(folder, lambda weights: weights.pop("decoder.final_layer_norm.weight"))
    refuse(folder, "lack decoder.final_layer_norm.weight")


def test_a_tensor_of_another_shape(folder):
    key = "encoder.block.0.layer.0.SelfAttention.q.weight"
    edit_weights(folder, lambda weights: weights.update({key: torch.zeros(8, 16)}))
    refuse(folder, f"hold {key} in the shape (8, 16)", "makes it (16, 16)")


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_a_tensor_that_holds_no_real_numbers(folder, dtype):
    key = "decoder.final_layer_norm.weight"
    edit_weights(folder, lambda weights: weights.update({key: torch.ones(16).to(dtype)}))
    refuse(folder, key, "no floating-point type")


def test_a_binary_tensor_that_holds_no_real_numbers(tmp_path):
    folder = save_checkpoint(tiny_t5(0), tmp_path, binary=True)
    weights = torch.load(folder / "pytorch_model.bin")
    weights["decoder.final_layer_norm.weight"] = torch.ones(16, dtype=torch.int32)
    torch.save(weights, folder / "pytorch_model.bin")
    refuse(folder, "decoder.final_layer_norm.weight", "torch.int32")


@pytest.mark.parametrize("binary", [False, True])
def test_weights_that_are_cut_off(tmp_path, binary):
    folder = save_checkpoint(tiny_t5(0), tmp_path, binary)
    path = folder / ("pytorch_model.bin" if binary else "model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    refuse(folder, "cannot load the model")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 100_000},
        {"d_model": 100_000, "d_ff": 400_000},
        {"vocab_size": 10**9},
        {"model_type": "t5gemma"},  # of which the default is a model of billions
    ],
    ids=str,
)
def test_a_model_that_is_not_in_its_weights_is_not_made(tmp_path, changes):
    folder = save_checkpoint(tiny_t5(0), tmp_path)
    edit(folder, **changes)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    refuse(folder, "config.json")
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


# ------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", "{", "", '["a", {"b": 1}]'])
def test_json_of_another_kind(folder, name, text):
    (folder / name).write_text(text)
    refuse(folder, "cannot load the model")


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"num_layers": "two"}, "num_layers"),
        ({"dense_act_fn": "sigmoid of mine", "feed_forward_proj": "sigmoid of mine"}, "sigmoid"),
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"model_type": "gpt2"}, "GPT2Config"),
        ({"model_type": 7}, "7"),
        ({"transformers_weights": "other.safetensors"}, "other.safetensors"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ""),
        ({"quantization_config": {"quant_method": "mine"}}, "does not act on"),
    ],
)
def test_a_setting_that_cannot_be_used(folder, changes, needle):
    edit(folder, **changes)
    refuse(folder, needle)


# ------------------------------------------------------------------------------ foreign code


@pytest.fixture
def trap(folder, monkeypatch):
    """A checkpoint that brings code of its own; whether it ran."""
    ran = folder / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import *\n"
    (folder / "own.py").write_text(code + "class Own(T5Config): model_type = 'own'\n")
    classes = {"AutoConfig": "own.Own", "AutoModelForSeq2SeqLM": "own.Own"}
    classes["AutoTokenizer"] = ["own.Own", None]
    edit(folder, model_type="own", auto_map=classes)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return ran


def test_no_code_of_a_model_is_run(trap, folder):
    refuse(folder)
    assert not trap.exists()


def test_no_code_of_a_tokenizer_is_run(trap, folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    with pytest.raises(BildError):
        load_tokenizer(str(folder))
    assert not trap.exists()


def test_running_it_cannot_be_asked_for(trap, folder):
    with pytest.raises(BildError, match="trust_remote_code=True is not supported"):
        load_model(str(folder), torch.float32, "cpu", trust_remote_code=True)
    assert not trap.exists()


@pytest.mark.parametrize("keyword", ["revision", "cache_dir", "token", "subfolder", "variant"])
def test_keywords_that_would_look_elsewhere(folder, keyword):
    """A name has been resolved by then, so that they would change nothing."""
    with pytest.raises(BildError, match=f"{keyword}='x' is not supported here: .+"):
        load_model(str(folder), torch.float32, "cpu", **{keyword: "x"})


def test_other_keywords_are_passed_on(folder):
    model = load_model(str(folder), torch.float32, "cpu", dropout_rate=0.25, revision=None)
    assert model.config.dropout_rate == 0.25


# ------------------------------------------------------------------------------ tokenizers


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints with the same tokenizer."""
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    for name in ("large", "small"):
        config.vocab_size = save_t5_tokenizer(tmp_path / name)
        save_checkpoint(T5ForConditionalGeneration(config), tmp_path / name)
    return str(tmp_path / "large"), str(tmp_path / "small")


def test_the_tokenizer_beside_the_large_model(pair):
    assert load_tokenizer(*pair).get_vocab() == load_tokenizer(pair[0]).get_vocab()


def test_a_pair_by_paths(pair):
    large, small = map(Path, pair)
    loaded = BiLDModel.from_pretrained(large, small, tokenizer=large)
    assert loaded.tokenizer.get_vocab() == load_tokenizer(large, small, large).get_vocab()
    assert BiLDModel.from_pretrained(large, small).tokenizer.is_fast
    assert describe_model(large, loaded.large) == describe_model(pair[0], loaded.large)
    assert describe_tokenizer(large) == describe_tokenizer(pair[0])


@pytest.mark.parametrize("broken", ["large", "small"])
@pytest.mark.parametrize("text", ["[]", "3", "{", "null", '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_named_whosever_it_is(pair, tmp_path, broken, text):
    (tmp_path / broken / "tokenizer.json").write_text(text)
    with pytest.raises(BildError, match=f"cannot load the tokenizer '.*{broken}'") as error:
        load_tokenizer(*pair)
    assert "\n" not in str(error.value)


def test_tokenizers_that_differ(pair, tmp_path):
    for file in (tmp_path / "small").glob("*token*"):
        file.unlink()
    save_mt5_tokenizer(tmp_path / "small")
    shutil.copy(tmp_path / "large" / "config.json", tmp_path / "small")
    with pytest.raises(BildError, match="the models' tokenizers differ"):
        load_tokenizer(*pair)
    load_tokenizer(*pair, name=pair[0])


def test_a_small_model_without_a_tokenizer(pair, tmp_path):
    for file in [*(tmp_path / "small").glob("*token*"), tmp_path / "small" / "spiece.model"]:
        file.unlink()
    load_tokenizer(*pair)
