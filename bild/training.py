"""Training the pairs: corpus splits, a tokenizer, presets, and one call into `Seq2SeqTrainer`.

Used by `scripts/make_demo_data.py` (splits and tokenizer) and `scripts/finetune.py` (training).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    set_seed,
)
from transformers.optimization import Adafactor
from transformers.trainer_utils import get_last_checkpoint

from bild.errors import BildError

Pair = tuple[str, str]

# How many neighbouring pairs make one training or test line: 1, 2, 3, 4, with these weights.
CONCATENATION_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


# ------------------------------------------------------------------------------ corpus


def split_by_sentence(
    pairs: Sequence[Pair], held_out: int, seed: int
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Split pairs into (train, validation, test) so that no sentence stands on two sides.

    Pairs that share a source or a target sentence (ignoring case and surrounding space) are
    one component; whole components go to one side. Components of more than eight pairs stay in
    training, so that the held-out sets are not many translations of a few sentences.

    Args:
        pairs: (source, target) sentences.
        held_out: pairs in validation and in test, each.
        seed: order in which components are drawn.
    """
    parent = list(range(len(pairs)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_seen: dict[tuple[str, str], int] = {}
    for i, (source, target) in enumerate(pairs):
        for key in (("source", source.strip().lower()), ("target", target.strip().lower())):
            parent[find(i)] = find(first_seen.setdefault(key, i))
    components: dict[int, list[int]] = defaultdict(list)
    for i in range(len(pairs)):
        components[find(i)].append(i)

    order = list(components.values())
    random.Random(seed).shuffle(order)
    train: list[int] = []
    held: tuple[list[int], list[int]] = ([], [])
    for component in order:
        side = next((s for s in held if len(s) + len(component) <= held_out), None)
        (train if side is None or len(component) > 8 else side).extend(component)
    validation, test = held
    if len(validation) != held_out or len(test) != held_out:
        raise BildError(
            f"cannot hold out 2 x {held_out} pairs from {len(pairs)}: "
            f"found {len(validation)} and {len(test)}; ask for fewer"
        )
    return (
        [pairs[i] for i in sorted(train)],
        [pairs[i] for i in validation],
        [pairs[i] for i in test],
    )


def concatenate(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Shuffle pairs and join one to four neighbours at random (`CONCATENATION_WEIGHTS`).

    Every pair is used exactly once, so that one call is one pass over the corpus and outputs of
    one to four sentences are in-domain.
    """
    rng = random.Random(seed)
    order = list(pairs)
    rng.shuffle(order)
    lines = []
    start = 0
    while start < len(order):
        count = rng.choices((1, 2, 3, 4), CONCATENATION_WEIGHTS)[0]
        group = order[start : start + count]
        lines.append((" ".join(s for s, _ in group), " ".join(t for _, t in group)))
        start += count
    return lines


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train a SentencePiece unigram model and save it as a T5 tokenizer in `folder`.

    Ids follow T5: 0 pad, 1 end of sequence, 2 unknown; no sentinel tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / "spiece"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(prefix),
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=0.9998,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise BildError(f"cannot train a tokenizer of {vocab_size} tokens: {error}") from error
    prefix.with_suffix(".vocab").unlink()
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    prefix.with_suffix(".model").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer


# ------------------------------------------------------------------------------ presets


@dataclass(frozen=True)
class TrainingPreset:
    """One recipe: the model when it starts from nothing, the optimizer and its schedule."""

    description: str
    learning_rate: float
    batch_size: int
    max_steps: int
    architecture: dict[str, Any] | None = None  # T5Config fields; None: start from a checkpoint
    accumulation: int = 1
    scale_parameter: bool = False  # Adafactor: step relative to the parameter's own size
    scheduler: str = "constant"
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    dropout: float = 0.1
    concatenate: bool = False
    label_smoothing: float = 0.0


def _from_scratch(description: str, max_steps: int, **architecture: Any) -> TrainingPreset:
    return TrainingPreset(
        description=description,
        architecture=architecture,
        learning_rate=1e-2,
        scale_parameter=True,
        batch_size=64,
        max_steps=max_steps,
        scheduler="warmup_stable_decay",
        scheduler_options={"num_decay_steps": max_steps * 2 // 5, "decay_type": "linear"},
        warmup_steps=100,
        dropout=0.0,
        concatenate=True,
    )


PRESETS: dict[str, TrainingPreset] = {
    "demo-large": _from_scratch(
        "the shipped large model: 8 + 8 layers, width 256",
        max_steps=2800,
        d_model=256, d_kv=32, num_heads=8, d_ff=512, num_layers=8, num_decoder_layers=8,
    ),
    "demo-small": _from_scratch(
        "the shipped small model: 3 + 1 layers, width 192",
        max_steps=2800,
        d_model=192, d_kv=32, num_heads=6, d_ff=512, num_layers=3, num_decoder_layers=1,
    ),
    "finetune": TrainingPreset(
        "a further pair fine-tuned from the shipped one",
        learning_rate=3e-3,
        scale_parameter=True,
        batch_size=64,
        max_steps=200,
        scheduler="linear",
        warmup_steps=50,
    ),
    "reproduction": TrainingPreset(
        "the reproduction's small models: Adafactor, constant 2e-4, batch 8 x 2, 100k steps",
        learning_rate=2e-4,
        batch_size=8,
        accumulation=2,
        max_steps=100_000,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------ training


def build_model(
    preset: TrainingPreset, init_from: str | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model that training starts from: a checkpoint, or the preset's fresh T5."""
    if init_from is not None:
        model = AutoModelForSeq2SeqLM.from_pretrained(
            init_from, dtype=torch.float32, dropout_rate=preset.dropout
        )
        return model
    if preset.architecture is None:
        raise BildError("this preset starts from a checkpoint: name it with --init-from")
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            dropout_rate=preset.dropout,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **preset.architecture,
        )
    )


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Pairs -> a data set of input_ids, labels and length (source + target tokens)."""
    inputs = tokenizer([s for s, _ in pairs], truncation=True, max_length=max_length)["input_ids"]
    labels = tokenizer(text_target=[t for _, t in pairs], truncation=True, max_length=max_length)[
        "input_ids"
    ]
    lengths = [len(i) + len(t) for i, t in zip(inputs, labels, strict=True)]
    return Dataset.from_dict({"input_ids": inputs, "labels": labels, "length": lengths})


def train(
    preset: TrainingPreset,
    train_pairs: Sequence[Pair],
    validation_pairs: Sequence[Pair],
    tokenizer_path: str,
    output_dir: Path,
    *,
    init_from: str | None = None,
    max_steps: int | None = None,
    max_length: int = 128,
    seed: int = 0,
    save_steps: int = 250,
    bf16: bool | None = None,
    save_dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Train and save one model into `output_dir`; started again, it goes on where it stopped.

    Args:
        preset: the recipe.
        train_pairs, validation_pairs: (source, target) texts.
        tokenizer_path: folder or hub id of the tokenizer; saved beside the model.
        output_dir: the finished model; checkpoints lie in `output_dir/checkpoints`.
        max_steps: optimizer steps instead of the preset's (the decay keeps its share).
        save_steps: steps between checkpoints, which are also validation points.
        bf16: autocast to bfloat16; None: where the processor multiplies bfloat16 faster.

    Returns:
        The model card's facts: losses, steps, seconds, parameters.
    """
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    model = build_model(preset, init_from, tokenizer)
    steps = preset.max_steps if max_steps is None else max_steps
    options = dict(preset.scheduler_options)
    if "num_decay_steps" in options:
        options["num_decay_steps"] = round(options["num_decay_steps"] * steps / preset.max_steps)

    examples = steps * preset.batch_size * preset.accumulation
    lines: list[Pair] = []
    passes = 0
    while len(lines) < examples:
        if preset.concatenate:
            lines += concatenate(train_pairs, seed=seed + passes)
        else:
            shuffled = list(train_pairs)
            random.Random(seed + passes).shuffle(shuffled)
            lines += shuffled
        passes += 1
    if preset.concatenate:
        validation_pairs = concatenate(validation_pairs, seed=seed)

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=preset.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=preset.accumulation,
        learning_rate=preset.learning_rate,
        lr_scheduler_type=preset.scheduler,
        lr_scheduler_kwargs=options,
        warmup_steps=min(preset.warmup_steps, steps),
        label_smoothing_factor=preset.label_smoothing,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=save_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=50,
        use_cpu=not torch.cuda.is_available(),
        bf16=_has_fast_bfloat16() if bf16 is None else bf16,
        report_to="none",
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    optimizer = Adafactor(
        model.parameters(),
        lr=preset.learning_rate,
        scale_parameter=preset.scale_parameter,
        relative_step=False,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=tokenize_pairs(lines, tokenizer, max_length),
        eval_dataset=tokenize_pairs(validation_pairs, tokenizer, max_length),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=4),
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )
    checkpoints = output_dir / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    result = trainer.train(resume_from_checkpoint=last)
    facts = {
        "init_from": init_from,
        "steps": steps,
        "passes": round(examples / len(lines) * passes, 2),
        "seed": seed,
        "parameters": sum(p.numel() for p in nn.Module.parameters(model)),
        "train_loss": result.training_loss,
        "validation_loss": trainer.evaluate()["eval_loss"],
        "seconds": result.metrics["train_runtime"],
    }
    model.config.use_cache = True  # the trainer switches it off
    model.to(save_dtype).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    (output_dir / "training.json").write_text(
        json.dumps({**facts, "log": trainer.state.log_history}, indent=1) + "\n"
    )
    return facts


def _has_fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
