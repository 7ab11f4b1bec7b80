"""What a record calls a checkpoint: every file that decides an output counts, and no other."""

from __future__ import annotations

import importlib
import pkgutil
import shutil

import pytest
import transformers
from mirror import save_checkpoint, save_t5_tokenizer
from tiny import tiny_t5
from transformers import PreTrainedTokenizerBase

from bild.checkpoints.contents import CONFIG_FILES, TOKENIZER_FILES
from bild.checkpoints.identity import describe_model, describe_tokenizer, short_path
from bild.checkpoints.names import Checkpoint

MODEL = tiny_t5(0)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(MODEL, tmp_path / "models" / "mine")


def fingerprint(folder):
    return describe_model(str(folder), MODEL)["fingerprint"]


def test_a_model_is_described_without_the_folders_of_the_machine(folder):
    described = describe_model(str(folder), MODEL)
    assert described == {
        "id": "models/mine",
        "revision": None,
        "fingerprint": fingerprint(folder),
        "parameters": MODEL.num_parameters(),
    }
    assert len(described["fingerprint"]) == 64


def test_a_checkpoint_of_the_hub_is_described_by_its_name(folder):
    described = describe_model(Checkpoint("owner/name", folder, COMMIT), MODEL)
    assert (described["id"], described["revision"]) == ("owner/name", COMMIT)
    assert described["fingerprint"] == fingerprint(folder)


@pytest.mark.parametrize("name", [*CONFIG_FILES, "model.safetensors"])
def test_every_file_of_a_model_counts(folder, name):
    before = fingerprint(folder)
    path = folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert fingerprint(folder) != before


def test_generation_settings_that_appear_count(folder):
    (folder / "generation_config.json").unlink()
    before = fingerprint(folder)
    (folder / "generation_config.json").write_text("{}")
    assert fingerprint(folder) != before


def test_weights_that_are_not_read_do_not_count(folder):
    before = fingerprint(folder)
    for name in (
        "pytorch_model.bin",
        "adapter_model.safetensors",
        "training_args.bin",
        "README.md",
    ):
        (folder / name).write_text("x")
    assert fingerprint(folder) == before


def test_the_place_does_not_count(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(other) == fingerprint(folder)


def test_shards_count_with_their_index(tmp_path):
    MODEL.save_pretrained(tmp_path, max_shard_size="4kB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    before = {fingerprint(tmp_path)}
    for path in (shards[-1], tmp_path / "model.safetensors.index.json"):
        path.write_bytes(path.read_bytes() + b"\n")
        assert fingerprint(tmp_path) not in before
        before.add(fingerprint(tmp_path))


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_every_file_of_a_tokenizer_counts(tmp_path, name):
    save_t5_tokenizer(tmp_path)
    before = describe_tokenizer(str(tmp_path))["fingerprint"]
    path = tmp_path / name
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b"\n")
    assert describe_tokenizer(str(tmp_path))["fingerprint"] != before


def test_chat_templates_do_not_count(tmp_path):
    save_t5_tokenizer(tmp_path)
    before = describe_tokenizer(str(tmp_path))["fingerprint"]
    (tmp_path / "chat_template.jinja").write_text("x")
    assert describe_tokenizer(str(tmp_path))["fingerprint"] == before


def test_no_tokenizer_of_the_library_reads_another_file():
    """The list of files is ours, since a name is resolved before transformers is imported."""
    read = {}
    for module in pkgutil.walk_packages(transformers.models.__path__, "transformers.models."):
        if ".tokenization_" not in module.name:
            continue
        try:
            classes = vars(importlib.import_module(module.name)).values()
        except (ImportError, NameError):  # a library that is not here
            continue
        for kind in classes:
            if isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase):
                read |= dict.fromkeys((kind.vocab_files_names or {}).values(), kind.__name__)
    assert len(read) > 20
    assert {name: kind for name, kind in read.items() if name not in TOKENIZER_FILES} == {}


def test_short_path():
    assert short_path("/somewhere/deep/models/mine") == "models/mine"
    assert short_path("owner/name") == "owner/name"
    assert short_path(None) is None
