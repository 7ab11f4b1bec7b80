"""Tiny random checkpoints under the published ids, their tokenizers, and a few examples a task.

Laid out as `BILD_MODELS_ROOT` and `BILD_DATA_ROOT` want it. The architectures are those of the
published checkpoints, shrunken: mT5 (gated GELU, untied head) for translation, T5 v1.0 (ReLU, tied
head) for the rest. As on the hub, only the SEBIS checkpoints bring their tokenizer.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import sentencepiece
import torch
from tiny import pad_vocabulary, tiny_t5
from transformers import AutoTokenizer, PreTrainedModel, T5Tokenizer

from bild.tasks.registry import TASKS

PUBLISHED = ("iwslt2017", "wmt2014", "xsum", "cnndm", "api")
MT5_TASKS = ("iwslt2017", "wmt2014")

PAIRS = (
    ("Der alte Gärtner gießt am Abend die Rosen.", "The old gardener waters the roses at dusk."),
    ("Wir haben den letzten Bus nach Hause verpasst.", "We missed the last bus home."),
    ("Könntest du bitte das Fenster schließen?", "Could you close the window, please?"),
    ("Im Keller stehen drei leere Kisten.", "Three empty boxes stand in the basement."),
    ("Sie liest ihrem Sohn jede Nacht eine Geschichte vor.", "She reads her son a story nightly."),
    ("Der Zug nach Bremen fährt heute später ab.", "The train to Bremen leaves later today."),
    ("Niemand wusste, wem der Hund gehört.", "Nobody knew whose dog it was."),
    ("Nach dem Regen roch die Luft nach Erde.", "After the rain the air smelled of soil."),
)

ARTICLES = (
    (
        "The town library will stay open until midnight this winter. The council said that many "
        "students had asked for a warm place to read. Two more librarians will be hired.",
        "A town library opens until midnight for students.",
    ),
    (
        "A baker in the harbour quarter has given away bread every Friday for ten years. "
        "On Monday his neighbours thanked him with a new oven.",
        "Neighbours buy a generous baker a new oven.",
    ),
    (
        "Engineers closed the old bridge after a crack was found in its northern pillar. "
        "Drivers have to take the tunnel, which adds twenty minutes.\nRepairs begin in May.",
        "The old bridge is closed after a crack was found.\nRepairs begin in May.",
    ),
    (
        "The school choir won the regional contest with a song that the pupils wrote themselves. "
        "They will sing it again at the summer fair.",
        "A school choir wins with its own song.",
    ),
)

CALLS = (
    ("reads all lines of a text file", "FileReader.new BufferedReader.new BufferedReader.readLine"),
    ("sorts a list of names", "ArrayList.new List.addAll Collections.sort"),
    ("joins two paths", "File.getPath File.separator StringBuilder.append"),
    ("opens a connection and sends a message", "Socket.new Socket.getOutputStream Stream.write"),
)


def examples(task: str) -> tuple[tuple[str, str], ...]:
    """(source, target) of a task, four of them."""
    if task in MT5_TASKS:
        return PAIRS[:4]
    return CALLS if task == "api" else ARTICLES


def train_spiece(folder: Path, vocab_size: int) -> Path:
    """A SentencePiece unigram model with T5's special ids, trained on the texts of this file."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text for group in (PAIRS, ARTICLES, CALLS) for pair in group for text in pair]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(t for text in texts for t in text.splitlines()),
        model_prefix=str(folder / "spiece"),
        vocab_size=vocab_size,
        model_type="unigram",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def save_mt5_tokenizer(folder: Path, vocab_size: int = 160) -> int:
    """As google/mt5-small: `spiece.model` and a few lines of JSON, no tokenizer.json."""
    train_spiece(folder, vocab_size)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    more = {"extra_ids": 0, "additional_special_tokens": None, "name_or_path": "google/mt5-small"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **more}))
    config = {"model_type": "mt5", "tokenizer_class": "T5Tokenizer", "vocab_size": 250112}
    (folder / "config.json").write_text(json.dumps(config))
    return vocab_size


def save_t5_tokenizer(folder: Path, vocab_size: int = 160) -> int:
    """As google-t5/t5-small: `spiece.model`, tokenizer.json and 100 sentinel tokens."""
    train_spiece(folder, vocab_size)
    tokenizer = T5Tokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 32128}))
    return len(tokenizer)


def save_checkpoint(model: PreTrainedModel, folder: Path, binary: bool = False) -> Path:
    """Save weights and configuration; `binary` as pytorch_model.bin, as the published ones are."""
    model.save_pretrained(folder)
    if binary:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def tiny_pair(
    task: str, tokens: int, large_padding: int, small_padding: int
) -> dict[str, PreTrainedModel]:
    """A task's large, small and aligned models for a tokenizer of so many tokens.

    Rows that only the large model has are the likeliest of all: unless they are left out, it
    writes nothing else. The mT5 models have more decoder than encoder layers.
    """
    kind = "mt5" if task in MT5_TASKS else "t5"
    # Of one seed and shape but for noise, so that the two agree often; the aligned one more so.
    shapes = {
        "large": (large_padding, 0.0),
        "small": (small_padding, 0.5),
        "aligned": (small_padding, 0.2),
    }
    models = {}
    for name, (padding, noise) in shapes.items():
        model = tiny_t5(
            seed=PUBLISHED.index(task) + 13,
            layers=1,
            decoder_layers=2 if kind == "mt5" else 1,
            vocab=tokens,
            kind=kind,
            noise=noise,
            tied=kind == "t5",
        )
        with torch.no_grad():  # sure enough of itself for drafts to be written, kept and cut
            model.decoder.final_layer_norm.weight.mul_(3)
        if padding:
            pad_vocabulary(model, padding)
            with torch.no_grad():
                head = model.get_output_embeddings().weight
                head[tokens + small_padding :] = 20 * head[3]
        models[name] = model
    return models


@dataclass(frozen=True)
class Mirror:
    """The two folders, and what stands in them."""

    models: Path
    data: Path

    @cached_property
    def environment(self) -> dict[str, str]:
        return {"BILD_MODELS_ROOT": str(self.models), "BILD_DATA_ROOT": str(self.data)}

    def model(self, task: str, role: str = "large") -> Path:
        return self.models / getattr(TASKS[task], role)


def build_mirror(root: Path) -> Mirror:
    """All published checkpoints and four examples of every task."""
    mirror = Mirror(root / "models", root / "data")
    save_mt5_tokenizer(mirror.models / "google/mt5-small")
    save_t5_tokenizer(mirror.models / "google-t5/t5-small")
    for task in PUBLISHED:
        entry = TASKS[task]
        if entry.tokenizer is None:
            tokens = save_t5_tokenizer(mirror.model(task))
            save_t5_tokenizer(mirror.model(task, "small"))
        else:
            tokens = len(AutoTokenizer.from_pretrained(mirror.models / entry.tokenizer))
        for role, model in tiny_pair(task, tokens, 0, 0).items():
            if getattr(entry, role) is not None:
                save_checkpoint(model, mirror.model(task, role))
        write_examples(mirror.data / task / f"{entry.split}.jsonl", task, gz=task == "cnndm")
    return mirror


def write_examples(path: Path, task: str, gz: bool = False) -> Path:
    """A task's examples as JSON Lines."""
    path = path.with_name(path.name + ".gz") if gz else path
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = (TASKS[task].source_key, TASKS[task].target_key)
    lines = [
        json.dumps(dict(zip(keys, e, strict=True)), ensure_ascii=False) for e in examples(task)
    ]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if gz else text.encode())
    return path
