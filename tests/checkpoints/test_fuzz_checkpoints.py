"""Model folders of any damage: they load, or are refused in one sentence, in bounded memory."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
import torch
from damage import broken_bytes, broken_json, taken_or_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from mirror import save_checkpoint, save_t5_tokenizer
from tiny import tiny_t5

from bild.checkpoints.drafter import make_drafter
from bild.checkpoints.loading import load_model, load_tokenizer

MORE_BYTES = 1_000_000_000  # that a damaged model of some kilobytes may cost


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and a drafter with a tokenizer beside each; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    large = tiny_t5(0, vocab=160, layers=1, decoder_layers=1)
    for name, model in (("t5", large), ("drafter", make_drafter(large))):
        save_t5_tokenizer(root / name)
        save_checkpoint(model, root / name)
    return root


def check(folders, tmp_path, kind, file, damage, load, examples):
    """Damage a file of a copy of a folder again and again, and load it."""
    folder = shutil.copytree(folders / kind, tmp_path / "damaged")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seen = set()

    @settings(max_examples=examples)
    @given(damage((folder / file).read_bytes()))
    def damaged(content):
        (folder / file).write_bytes(content)
        seen.add(taken_or_refused(lambda: load(str(folder)), folder))

    damaged()
    assert False in seen
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < before + MORE_BYTES


def values(content):
    return broken_json(json.loads(content)).map(lambda c: json.dumps(c).encode())


def values_or_bytes(content):
    return st.one_of(values(content), broken_bytes(content))


def head(content):
    """The header of safetensors, and little of the numbers."""
    size = 8 + int.from_bytes(content[:8], "little")

    def with_header(header):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[size:]

    return st.one_of(
        broken_json(json.loads(content[8:size])).map(with_header),
        broken_bytes(content[: size + 64]).map(lambda start: start + content[size + 64 :]),
        st.sampled_from([b"", content[:-4], b"\xff" * 8 + content[8:], content[8:]]),
    )


def load(folder):
    load_model(folder, torch.float32, "cpu")


@pytest.mark.parametrize("kind", ["t5", "drafter"])
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("config.json", values_or_bytes),
        ("generation_config.json", values_or_bytes),
        ("model.safetensors", head),
    ],
)
def test_models(folders, tmp_path, kind, file, damage):
    check(folders, tmp_path, kind, file, damage, load, 25)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "spiece.model"])
def test_tokenizers(folders, tmp_path, file):
    damage = broken_bytes if file == "spiece.model" else values_or_bytes
    kind = "t5"
    if file == "spiece.model":  # it is read where nothing else is there
        for other in ("tokenizer.json", "tokenizer_config.json"):
            (folders / "drafter" / other).unlink()
        kind = "drafter"
    check(folders, tmp_path, kind, file, damage, load_tokenizer, 25)
