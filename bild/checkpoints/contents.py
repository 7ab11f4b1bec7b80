"""Which files make a checkpoint: its configuration, its weights, its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from bild.errors import BildError
from bild.json_files import read_json

CONFIG_FILES = ("config.json", "generation_config.json")

# In the order in which transformers looks for them; the first that is there is read.
SINGLE_WEIGHTS = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}
SHARDS = {
    ".safetensors": r"model-\d+-of-\d+\.safetensors",
    ".bin": r"pytorch_model-\d+-of-\d+\.bin",
}

# Of every tokenizer class in transformers (`vocab_files_names`), and what stands beside them. Chat
# templates are not among them: nothing here chats.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model",
    "spm_char.model", "source.spm", "target.spm", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "vocab-src.json", "vocab-tgt.json", "target_vocab.json", "dict.txt", "bpe.codes",
    "prophetnet.tokenizer", "normalizer.json", "byte_maps.json", "emoji.json", "entity_vocab.json",
    "word_pronunciation.json", "word_shape.json",
)  # fmt: skip

# A git checkout without LFS leaves these few lines in place of the weights.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


NO_TOKENIZER = (
    "holds no tokenizer (tokenizer.json, spiece.model, vocab.json, ...); give --tokenizer"
)


class DefectError(Exception):
    """What a folder lacks to be a checkpoint: the rest of a sentence that begins with its name."""


class PickleError(DefectError):
    """Weights that are there, but as a pickle alone, which was not allowed."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"has its weights in {file} alone, a pickle, which can hold code that runs as it is "
            "read; take a copy in safetensors, or give --allow-pickle (in Python "
            "allow_pickle=True) if you trust who made it"
        )


def model_files(names: Iterable[str], allow_pickle: bool = False) -> list[str]:
    """Of the files of a repository those to download for a model: weights of one format alone.

    Its tokenizer comes with them, where it has one.

    Raises:
        PickleError: there is nothing but pickles, and they are not allowed.
    """
    there = set(names)
    files = [name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if name in there]
    for suffix, single in SINGLE_WEIGHTS.items():
        shards = sorted(name for name in there if re.fullmatch(SHARDS[suffix], name))
        if not {single, f"{single}.index.json"} & there:
            continue
        if suffix == ".bin" and not allow_pickle:
            raise PickleError(single)
        return [*files, *([single] if single in there else [f"{single}.index.json", *shards])]
    return files


def tokenizer_files(names: Iterable[str]) -> list[str]:
    """Of the files of a repository those to download for its tokenizer.

    With its config.json, which decides the class where tokenizer_config.json does not.
    """
    there = set(names)
    return [name for name in ("config.json", *TOKENIZER_FILES) if name in there]


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads a folder's weights from, an index before its shards.

    Raises:
        DefectError: there are none, or not all of them.
    """
    for single in SINGLE_WEIGHTS.values():
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            return [index, *_shards(index)]
    raise DefectError(
        "holds no weights (model.safetensors, pytorch_model.bin or an index of one); "
        "copy the whole checkpoint"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index, "copy it again")["weight_map"].values()))
        inside = all(Path(name).name == name for name in names)
    except (BildError, KeyError, AttributeError, TypeError):
        names, inside = [], False
    if not names or not inside:
        raise DefectError(f"holds a {index.name} that cannot be read; copy the checkpoint again")
    shards = [index.with_name(name) for name in names]
    missing = next((shard.name for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise DefectError(f"lacks {missing}, named in {index.name}; copy the checkpoint again")
    return shards


def check_model(folder: Path, allow_pickle: bool = False) -> None:
    """Make sure that a folder can be read as a model, as far as its files' names tell.

    Args:
        folder: of the checkpoint.
        allow_pickle: weights may be pickles.

    Raises:
        DefectError: it cannot.
    """
    if not (folder / "config.json").is_file():
        raise DefectError("holds no config.json; give the folder of a transformers checkpoint")
    if (folder / "adapter_config.json").is_file():  # transformers would load it as well
        raise DefectError("holds an adapter (adapter_config.json); merge it into the model")
    for file in weight_files(folder):
        if file.suffix == ".bin" and not allow_pickle:
            raise PickleError(file.name)
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DefectError(f"holds a Git LFS pointer as {file.name}; run git lfs pull there")


def has_tokenizer(folder: Path) -> bool:
    """Whether any file of a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def check_tokenizer(folder: Path) -> None:
    """Make sure that a folder can be read as a tokenizer, as far as its files' names tell.

    Raises:
        DefectError: it cannot.
    """
    if not has_tokenizer(folder):
        raise DefectError(NO_TOKENIZER)
