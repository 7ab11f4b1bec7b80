"""Checkpoints with odd files, as a user meets them: exit code 2 and one line, whichever model."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import run_here
from mirror import Mirror


def edit(name, **changes):
    def change(folder):
        path = folder / name
        settings = json.loads(path.read_text()) if path.exists() else {}
        settings |= changes
        path.write_text(json.dumps({k: v for k, v in settings.items() if v != "out"}))

    return change


def replace(name, text):
    return lambda folder: (folder / name).write_text(text)


def without_start(folder):
    for name in ("config.json", "generation_config.json"):
        edit(name, decoder_start_token_id="out", bos_token_id="out")(folder)


def sharded(text):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return change


EIGHT_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}
FAULTS = {
    "no start": (without_start, "decoder_start_token_id"),
    "bitsandbytes": (
        edit("config.json", quantization_config=EIGHT_BITS),
        "cannot load the model",
    ),
    "activation": (
        edit("config.json", feed_forward_proj="mine", dense_act_fn="mine"),
        "cannot load the model",
    ),
    "field type": (edit("config.json", num_layers="two"), "num_layers"),
    "list": (replace("config.json", "[1, 2]"), "cannot load"),
    "generation list": (replace("generation_config.json", "[1, 2]"), "cannot load"),
    "generation cut off": (replace("generation_config.json", '{"eos'), "cannot load"),
    "index cut off": (sharded('{"weight_map": {"a"'), "index.json that cannot be read"),
    "index of numbers": (sharded('{"weight_map": {"a": 3}}'), "index.json that cannot be read"),
    "index outside": (
        sharded('{"weight_map": {"a": "../a.safetensors"}}'),
        "index.json that cannot be read",
    ),
    "tokenizer": (replace("tokenizer.json", "3"), "cannot load the tokenizer"),
    "layers": (edit("config.json", num_layers=0), "hold encoder.block.0"),
}


@pytest.mark.parametrize("which", ["large", "small"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_line(mirror: Mirror, monkeypatch, capsys, tmp_path, which, fault):
    change, needle = FAULTS[fault]
    folders = {}
    for role in ("large", "small"):
        folders[role] = shutil.copytree(mirror.model("api", role), tmp_path / role)
    change(folders[which])
    monkeypatch.setenv("BILD_DATA_ROOT", str(mirror.data))
    done = run_here(
        monkeypatch, capsys, "api", "--large", folders["large"], "--small", folders["small"],
        "--warmup", 0, "--max-eval-samples", 1, "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 2, done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert needle in done.err
