"""Training the pairs: corpus splits, a tokenizer, presets, and one call into `Seq2SeqTrainer`.

Used by `scripts/make_demo_data.py` (splits and tokenizer), `scripts/train_tokenizer.py`,
`scripts/finetune.py` and, through `bild.training.alignment`, `scripts/align.py`.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
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
from transformers.trainer_pt_utils import get_length_grouped_indices

from bild.checkpoints.identity import describe_model
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.vocabulary import check_tokenizer_size
from bild.errors import BildError
from bild.evaluation.environment import environment
from bild.files import check_writable, is_same_work, moved_when_done, write_atomically, write_json
from bild.tasks import metrics
from bild.tasks.data import LoadedData
from bild.training.curves import learning_curve
from bild.training.model_card import model_card

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
    """One recipe: the model when it starts from nothing, the optimizer and its schedule.

    Attributes:
        description: one line for people.
        learning_rate, scale_parameter: of Adafactor; scaled, a step is relative to the size of
            the parameter.
        batch_size: examples in one forward and backward, of all processes together.
        max_steps: optimizer steps.
        architecture: fields of `T5Config`; None: start from a checkpoint.
        accumulation: batches in one optimizer step.
        scheduler, scheduler_options, warmup_steps: as the trainer's.
        dropout: in training.
        concatenate: join one to four neighbouring examples (see `concatenate`).
        label_smoothing: share of the probability that is spread over all tokens.
        best_by: keep the checkpoint whose greedy outputs score best on the validation file by
            this metric of `bild.tasks.metrics`; None: keep the last one and generate nothing.
        max_new_tokens: limit of those outputs.
    """

    description: str
    learning_rate: float
    batch_size: int
    max_steps: int
    architecture: dict[str, Any] | None = None
    accumulation: int = 1
    scale_parameter: bool = False
    scheduler: str = "constant"
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    dropout: float = 0.1
    concatenate: bool = False
    label_smoothing: float = 0.0
    best_by: str | None = None
    max_new_tokens: int = 150

    def for_steps(self, steps: int) -> TrainingPreset:
        """The same recipe for another number of steps; the final decay keeps its share."""
        options = dict(self.scheduler_options)
        if "num_decay_steps" in options:
            options["num_decay_steps"] = round(options["num_decay_steps"] * steps / self.max_steps)
        return replace(self, max_steps=steps, scheduler_options=options)


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


_DEMO_LARGE = _from_scratch(
    "the shipped large model: 8 + 8 layers, width 256",
    max_steps=2800,
    d_model=256, d_kv=32, num_heads=8, d_ff=512, num_layers=8, num_decoder_layers=8,
)  # fmt: skip
_DEMO_SMALL = _from_scratch(
    "the shipped small model: 3 + 1 layers, width 192",
    max_steps=2800,
    d_model=192, d_kv=32, num_heads=6, d_ff=512, num_layers=3, num_decoder_layers=1,
)  # fmt: skip


def _for_api(preset: TrainingPreset, description: str) -> TrainingPreset:
    """A demo recipe for some 23,000 short examples, which are seen several times."""
    return replace(
        preset.for_steps(4000),
        description=description,
        concatenate=False,
        dropout=0.1,
        batch_size=32,
        best_by="bleu",
    )


PRESETS: dict[str, TrainingPreset] = {
    "demo-large": _DEMO_LARGE,
    "demo-small": _DEMO_SMALL,
    "api-large": _for_api(_DEMO_LARGE, "Java API calls from descriptions, the large model"),
    "api-small": _for_api(_DEMO_SMALL, "Java API calls from descriptions, the small model"),
    "finetune": TrainingPreset(
        "a further pair fine-tuned from the shipped one",
        learning_rate=3e-3,
        scale_parameter=True,
        batch_size=64,
        max_steps=200,
        scheduler="linear",
        warmup_steps=50,
    ),
    "align": TrainingPreset(
        "a small model drawn to what its large one writes: a lower rate, no dropout",
        learning_rate=1e-3,
        scale_parameter=True,
        batch_size=64,
        max_steps=600,
        scheduler="linear",
        warmup_steps=50,
        dropout=0.0,
    ),
    "reproduction": TrainingPreset(
        "the reproduction's small models: Adafactor, constant 2e-4, batch 8 x 2, 100k steps, "
        "best checkpoint by BLEU",
        learning_rate=2e-4,
        batch_size=8,
        accumulation=2,
        max_steps=100_000,
        best_by="bleu",
    ),
}


# ------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class TrainingJob:
    """One model to train.

    Attributes:
        preset: the recipe.
        train, validation: texts and references (or, for `train`, a calibration set).
        tokenizer: folder or hub id; saved beside the model.
        output_dir: the finished model; checkpoints lie in `output_dir/checkpoints`.
        init_from: folder or hub id of the checkpoint to start from; None for a fresh model.
        prefix: put before every source.
        max_length: longer targets are cut, in tokens.
        max_source_length: the same for sources, prefix included; None: `max_length`.
        save_steps: steps between checkpoints, which are also validation points.
        save_dtype: of the finished weights.
        bf16: autocast to bfloat16; None: where the processor multiplies bfloat16 faster.
        seed: of the order of the examples, of dropout and of fresh weights.
        method: what sets this training apart from fine-tuning, for its record.
    """

    preset: TrainingPreset
    train: LoadedData
    validation: LoadedData
    tokenizer: str
    output_dir: Path
    init_from: str | None = None
    prefix: str = ""
    max_length: int = 128
    max_source_length: int | None = None
    save_steps: int = 250
    save_dtype: torch.dtype = torch.float32
    bf16: bool | None = None
    seed: int = 0
    method: dict[str, Any] = field(default_factory=lambda: {"name": "fine-tuning"})

    def __post_init__(self) -> None:
        for name in ("max_length", "max_source_length", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BildError(f"{name} must be at least 1, got {value}")
        if self.preset.max_steps < 1:
            raise BildError(f"max_steps must be at least 1, got {self.preset.max_steps}")


def build_model(job: TrainingJob, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that training starts from: a checkpoint, or the preset's fresh T5."""
    preset = job.preset
    if job.init_from is not None:
        model = load_model(job.init_from, torch.float32, "cpu", dropout_rate=preset.dropout)
        check_tokenizer_size(tokenizer, model.get_input_embeddings().weight.shape[0])
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
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, job: TrainingJob
) -> tuple[Dataset, list[int]]:
    """A data set of input_ids and labels, and each pair's length (source + target tokens)."""
    limit = job.max_length if job.max_source_length is None else job.max_source_length
    sources = [job.prefix + source for source, _ in pairs]
    targets = [target for _, target in pairs]
    inputs = tokenizer(sources, truncation=True, max_length=limit)["input_ids"]
    labels = tokenizer(text_target=targets, truncation=True, max_length=job.max_length)["input_ids"]
    lengths = [len(i) + len(t) for i, t in zip(inputs, labels, strict=True)]
    return Dataset.from_dict({"input_ids": inputs, "labels": labels}), lengths


def train(
    job: TrainingJob, make_trainer: Callable[..., Seq2SeqTrainer] = Seq2SeqTrainer
) -> dict[str, Any]:
    """Train and save one model; started again, it goes on where it stopped.

    The model is saved with its tokenizer, `training.json` (the facts and the trainer's log),
    `learning_curve.svg` and a model card, `README.md`. Under `accelerate launch` the processes
    share each batch, so that the recipe is the same whatever their number.

    Args:
        job: what to train.
        make_trainer: the trainer's class.

    Returns:
        The facts of `training.json`: recipe, data, steps, losses (the training's is that of its
        last steps), seconds (since it was started or gone on with last).

    Raises:
        BildError: a model or tokenizer that cannot be loaded or does not fit; a batch that the
            processes cannot share; an output folder that holds another training.
    """
    set_seed(job.seed)
    preset = job.preset
    tokenizer = load_tokenizer(job.tokenizer)
    model = build_model(job, tokenizer)
    work = _describe(job, model)
    finished = job.output_dir / "training.json"
    if is_same_work(finished, work):
        return _without_log(finished)
    checkpoints = job.output_dir / "checkpoints"
    is_begun = is_same_work(checkpoints / "work.json", work)
    check_writable(checkpoints)

    lines, train_set = _training_set(job, tokenizer)
    validation_set, references = _validation_set(job, tokenizer)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(checkpoints),
        max_steps=preset.max_steps,
        per_device_train_batch_size=preset.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=preset.accumulation,
        learning_rate=preset.learning_rate,
        lr_scheduler_type=preset.scheduler,
        lr_scheduler_kwargs=preset.scheduler_options,
        warmup_steps=min(preset.warmup_steps, preset.max_steps),
        train_sampling_strategy="sequential",  # the training set is in the order of training
        eval_strategy="steps",
        eval_steps=job.save_steps,
        save_strategy="steps",
        save_steps=job.save_steps,
        save_total_limit=2,
        predict_with_generate=preset.best_by is not None,
        generation_max_length=preset.max_new_tokens + 1,  # with the decoder's start token
        generation_num_beams=1,
        load_best_model_at_end=preset.best_by is not None,
        metric_for_best_model=preset.best_by,
        greater_is_better=None if preset.best_by is None else True,
        logging_steps=min(50, job.save_steps, preset.max_steps),
        use_cpu=not torch.cuda.is_available(),
        bf16=_has_fast_bfloat16() if job.bf16 is None else job.bf16,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=False,
        seed=job.seed,
        data_seed=job.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    devices = arguments.world_size * max(1, arguments.n_gpu)
    if preset.batch_size % devices:
        raise BildError(
            f"a batch of {preset.batch_size} cannot be shared by {devices} processes or GPUs; "
            "use a number that divides it"
        )
    arguments.per_device_train_batch_size = preset.batch_size // devices
    optimizer = Adafactor(
        model.parameters(),
        lr=preset.learning_rate,
        scale_parameter=preset.scale_parameter,
        relative_step=False,
    )
    generation_config = copy.deepcopy(model.generation_config)  # evaluation fills it in
    trainer = make_trainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=validation_set,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=4),
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        compute_loss_func=partial(cross_entropy_per_token, label_smoothing=preset.label_smoothing),
        compute_metrics=(
            None if preset.best_by is None else _scorer(preset.best_by, tokenizer, references)
        ),
    )
    if not is_begun and trainer.is_world_process_zero():
        write_json(checkpoints / "work.json", work)
    last = _last_checkpoint(checkpoints)
    trained = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    validation = trainer.evaluate()
    examples = preset.max_steps * preset.batch_size * preset.accumulation
    # The trainer's own mean leaves out what was before a resumption.
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        **work,
        "steps": preset.max_steps,
        "passes": round(examples / lines, 2),
        "parameters": model.num_parameters(),
        "train_loss": losses[-1],
        "validation_loss": validation["eval_loss"],
        "seconds": trained.metrics["train_runtime"],
        "resumed_from_step": 0 if last is None else _step(last),
        "env": asdict(environment(arguments.device)),
    }
    if preset.best_by is not None:
        facts[f"validation_{preset.best_by}"] = validation[f"eval_{preset.best_by}"]
        facts["best_step"] = trainer.state.best_global_step
    if trainer.is_world_process_zero():
        model.config.use_cache = True  # the trainer switches it off
        model.generation_config = generation_config
        _save(job, model.to(job.save_dtype), tokenizer, facts, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return facts


def cross_entropy_per_token(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of a forward as its share of the optimizer step's mean over tokens.

    T5's own loss is a mean over the forward, which the trainer of transformers 5 takes for one
    over the whole step: with accumulation or several processes it would come out too large.

    Args:
        outputs: of the model; logits (B, T, V).
        labels: (B, T), -100 for padding.
        num_items_in_batch: labels of the step that are not padding; None: those given.
        label_smoothing: share of the probability that is spread over all tokens.
    """
    total = cross_entropy(
        outputs.logits.flatten(0, 1).float(),
        labels.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


# ------------------------------------------------------------------------------ data


def _training_set(job: TrainingJob, tokenizer: PreTrainedTokenizerBase) -> tuple[int, Dataset]:
    """(lines of one pass, all lines of the training in its order).

    The lines of each batch are of similar lengths. The order depends on the seed alone, so that
    a training that goes on, or is shared by more processes, sees the same batches.
    """
    preset = job.preset
    batch = preset.batch_size * preset.accumulation
    examples = batch * preset.max_steps
    pairs = [(e.source, e.target) for e in job.train.examples]
    order: list[int] = []
    passes = 0
    if preset.concatenate:
        lines: list[Pair] = []
        while len(lines) < examples:
            lines += concatenate(pairs, seed=job.seed + passes)
            passes += 1
        tokens, lengths = tokenize_pairs(lines[:examples], tokenizer, job)
        order = list(range(examples))
        one_pass = len(lines) // passes
    else:
        tokens, lengths = tokenize_pairs(pairs, tokenizer, job)
        while len(order) < examples:
            shuffled = list(range(len(pairs)))
            random.Random(job.seed + passes).shuffle(shuffled)
            order += shuffled
            passes += 1
        del order[examples:]
        one_pass = len(pairs)
    generator = torch.Generator().manual_seed(job.seed)
    grouped = get_length_grouped_indices([lengths[i] for i in order], batch, generator=generator)
    return one_pass, tokens.select([order[i] for i in grouped])


def _validation_set(
    job: TrainingJob, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, list[str]]:
    """(lines, longest first, so that batches are of similar lengths; their references)."""
    pairs = [(e.source, e.target) for e in job.validation.examples]
    if job.preset.concatenate:
        pairs = concatenate(pairs, seed=job.seed)
    tokens, lengths = tokenize_pairs(pairs, tokenizer, job)
    order = sorted(range(len(pairs)), key=lengths.__getitem__, reverse=True)
    return tokens.select(order), [pairs[i][1] for i in order]


def _scorer(
    metric: str, tokenizer: PreTrainedTokenizerBase, references: Sequence[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Score generated tokens against the references, which stand in the same order."""

    def score(prediction: EvalPrediction) -> dict[str, float]:
        tokens = prediction.predictions[: len(references)]  # processes repeat some to fill a batch
        tokens = np.where(tokens < 0, tokenizer.pad_token_id, tokens)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return {metric: metrics.score(metric, texts, references).value}

    return score


# ------------------------------------------------------------------------------ files


def _describe(job: TrainingJob, model: PreTrainedModel) -> dict[str, Any]:
    """Everything that decides what is trained, for the record and to recognise it again."""
    recipe = asdict(job.preset)
    return {
        "method": job.method,
        "init_from": None if job.init_from is None else describe_model(job.init_from, model),
        "train": _describe_data(job.train),
        "validation": _describe_data(job.validation),
        "recipe": {name: value for name, value in recipe.items() if name != "description"},
        "prefix": job.prefix,
        "max_length": job.max_length,
        "max_source_length": job.max_source_length,
        "seed": job.seed,
    }


def _describe_data(data: LoadedData) -> dict[str, Any]:
    return {"file": data.origin, "examples": len(data.examples), "sha256": data.sha256}


def _save(
    job: TrainingJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, Any],
    log: list[dict[str, float]],
) -> None:
    """Write the model and what belongs to it; training.json, which means "finished", last."""
    with moved_when_done(job.output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        learning_curve(log, job.preset.best_by, folder / "learning_curve.svg")
        write_atomically(folder / "README.md", model_card(job.output_dir.resolve().name, facts))
    write_json(job.output_dir / "training.json", {**facts, "log": log})


def _without_log(path: Path) -> dict[str, Any]:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in facts.items() if name != "log"}


def _last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that is whole: the trainer writes its state last."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def _step(checkpoint: Path) -> int:
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def _has_fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
