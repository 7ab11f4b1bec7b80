"""A toy corpus, its tokenizer, and pairs of tiny models that fit it: trainings to watch."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import tiny_t5
from transformers import AutoTokenizer

from bild.tasks.data import LoadedData, load_file
from bild.training.tokenizer import train_tokenizer
from bild.tuning.prices import Costs

NOUNS = ["Hund", "Baum", "Fluss", "Zug", "Mond", "Garten", "Koffer", "Vogel", "Brief", "Schuh"]
THINGS = ["dog", "tree", "river", "train", "moon", "garden", "suitcase", "bird", "letter", "shoe"]
PAIRS = [
    (f"Der {n} ist {d}.", f"The {t} is {e}.")
    for n, t in zip(NOUNS, THINGS, strict=True)
    for d, e in (("alt", "old"), ("neu", "new"), ("weg", "gone"), ("hier", "here"))
]
VOCABULARY = 48

COSTS = Costs(
    large_forward=0.018,
    large_token=0.0032,
    small_forward=0.0043,
    large_encoder=0.025,
    small_encoder=0.009,
)  # seconds, as of a slow machine


def save_tokenizer(folder: Path) -> Path:
    train_tokenizer((text for pair in PAIRS for text in pair), VOCABULARY, folder)
    return folder


def save_model(folder: Path, tokenizer: Path, seed: int, **shape) -> Path:
    """A random T5, larger or smaller by `shape`, with the tokenizer beside it."""
    tiny_t5(seed, vocab=VOCABULARY, **shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def save_pair(folder: Path) -> Path:
    """A large and a small model of one size that the compiled engine runs, in folders so named."""
    tokenizer = save_tokenizer(folder / "tokenizer")
    for seed, name in enumerate(("large", "small")):
        save_model(
            folder / name, tokenizer, seed, layers=1, decoder_layers=1, width=64, head_width=16
        )
    return folder


def save_data(path: Path, pairs=PAIRS) -> LoadedData:
    """Write pairs as JSON Lines and load them."""
    lines = (json.dumps({"de": s, "en": t}, ensure_ascii=False) for s, t in pairs)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return load_file(path, "de", "en", path.stem)
