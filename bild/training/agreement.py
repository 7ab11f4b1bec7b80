"""How often a small model agrees with a large one, and whether its confidence tells.

Both models read the same prefixes ("teacher-forced"): those of the references, and those of the
large model's own outputs. At each position the small model agrees when its most likely token is the
large one's. Its probability of that token is its confidence, which BiLD's fallback threshold looks
at: a model is well calibrated when it agrees in p of the positions where its confidence is p. The
expected calibration error (Naeini et al., AAAI 2015) is the mean distance from that, over bins.

Letters used for shapes: B examples, T tokens, N positions that are not padding, V vocabulary.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.checkpoints.drafter import BiLDDrafter
from bild.checkpoints.identity import describe_model, describe_tokenizer
from bild.checkpoints.loading import find_device, load_model, load_tokenizer
from bild.checkpoints.names import CheckpointName, resolve_model
from bild.checkpoints.vocabulary import check_tokenizer_size, shared_vocab_size
from bild.errors import BildError
from bild.evaluation.environment import environment
from bild.evaluation.record import DataIdentity, Interval, ModelIdentity, Models
from bild.files import digest
from bild.processes import launch
from bild.progress import progress_bar
from bild.tasks.data import LoadedData
from bild.tasks.resampling import interval, resampled_sums
from bild.together import do_together
from bild.training.config import AgreementConfig
from bild.training.labelling import generate_tokens
from bild.training.record import Agreement, AgreementRecord, Bin

BINS = 10
TEXTS = ("references", "large model's outputs")


class Tally:
    """Positions of one small model on one text, as they are counted."""

    def __init__(self) -> None:
        self.per_example: list[tuple[int, int]] = []  # (agreeing positions, positions)
        self.bins = np.zeros((3, BINS))  # positions, agreeing positions, summed confidence

    def add(self, agrees: Tensor, confidence: Tensor, counted: Tensor) -> None:
        """Add a batch; agrees and counted are booleans, all three are (B, T)."""
        sums = torch.stack([(agrees & counted).sum(-1), counted.sum(-1)], -1)  # (B, 2)
        self.per_example += [(a, n) for a, n in sums.tolist()]
        agrees, confidence = agrees[counted].double(), confidence[counted].double()  # (N,)
        index = (confidence * BINS).long().clamp(max=BINS - 1)
        for row, weights in enumerate((torch.ones_like(confidence), agrees, confidence)):
            self.bins[row] += torch.bincount(index, weights, BINS).cpu().numpy()

    def to_json(self) -> dict[str, Any]:
        """What was counted, to be added up with other positions by `add_counted`."""
        return {"per_example": self.per_example, "bins": self.bins.tolist()}

    def add_counted(self, counted: dict[str, Any]) -> None:
        """Add what another `Tally` has counted."""
        self.per_example += [(a, n) for a, n in counted["per_example"]]
        self.bins += np.array(counted["bins"], dtype=float)

    def result(self, model: str, text: str) -> Agreement:
        """Agreement with a 95 % bootstrap interval over the examples, and the calibration."""
        counts = np.array(self.per_example, dtype=float)  # (examples, 2)
        sums = resampled_sums(counts)  # (resamples, 2)
        low, high = interval(sums[:, 0] / sums[:, 1])
        positions, agreeing, confidence = self.bins
        total = float(positions.sum())
        return Agreement(
            model=model,
            text=text,
            positions=int(total),
            agreement=Interval(float(agreeing.sum()) / total, low, high),
            mean_confidence=float(confidence.sum()) / total,
            calibration_error=float(np.abs(agreeing - confidence).sum()) / total,
            bins=tuple(
                Bin(
                    low=i / BINS,
                    high=(i + 1) / BINS,
                    positions=int(n),
                    share=float(n) / total,
                    agreement=float(agreeing[i] / n) if n else None,
                    confidence=float(confidence[i] / n) if n else None,
                )
                for i, n in enumerate(positions)
            ),
        )


def measure(
    large: CheckpointName,
    smalls: Sequence[CheckpointName],
    data: LoadedData,
    config: AgreementConfig,
    *,
    folder: Path,
    tokenizer: CheckpointName | None = None,
    report: Callable[[AgreementRecord], None] | None = None,
    progress: bool = True,
) -> AgreementRecord | None:
    """Agreement of small models with a large one on held-out text.

    Called again after it was stopped, it goes on. The processes of `accelerate launch` share the
    batches; the first one returns the record, the others None.

    Args:
        large, smalls: folders or hub ids; the small ones are measured on the same positions.
        data: held-out examples.
        config: settings.
        folder: where what is counted is kept until all is.
        tokenizer: folder or hub id; None for the one beside the large model.
        report: saves the record; then what was counted is removed.
        progress: show a progress bar.

    Raises:
        BildError: a model that cannot be loaded, does not fit the large one, or is called as
            another one is.
    """
    device, dtype = find_device("auto"), getattr(torch, config.dtype)
    found = [resolve_model(name) for name in (large, *smalls)]
    words = load_tokenizer(found[0], name=tokenizer)
    for small in found[1:]:
        load_tokenizer(found[0], small, tokenizer)  # refuses one that differs
    loaded = [load_model(checkpoint, dtype, device) for checkpoint in found]
    described = [ModelIdentity(**describe_model(c, m)) for c, m in zip(found, loaded, strict=True)]
    models = Models(described[0], {model.id: model for model in described[1:]})
    if len(models.small) < len(smalls):
        names = ", ".join(checkpoint.name for checkpoint in found[1:])
        raise BildError(f"two of the small models are called alike: {names}")
    env = environment(device)
    work = {
        "models": asdict(models),
        "tokenizer": describe_tokenizer(found[0] if tokenizer is None else tokenizer),
        "data": data.sha256,
        "config": asdict(config),
        "code": {"versions": env.versions, "code": env.code, "device": device.type},
    }
    parts = folder / f"agreement-{digest(work)[:12]}.parts"
    batches = _Batches(loaded, words, data, config)
    bar = progress_bar("agreement", batches.total, shown=progress and launch().is_first)
    with bar, torch.inference_mode():
        seen = lambda done: bar.update(min(done, batches.total) - bar.n)  # noqa: E731
        counted = do_together(parts, work, batches.total, batches.count, seen)
    if counted is None:
        return None
    record = AgreementRecord(
        models=models,
        data=DataIdentity(
            origin=data.origin,
            revision=data.revision,
            split=data.split,
            samples=len(data.examples),
            available=data.available,
            sha256=data.sha256,
            truncated_sources=sum(batch["truncated"] for batch in counted),
        ),
        env=env,
        config=config,
        results=_results(list(models.small), counted),
    )
    if report is not None:
        report(record)
    shutil.rmtree(parts, ignore_errors=True)
    return record


def _results(names: Sequence[str], counted: Sequence[dict[str, Any]]) -> tuple[Agreement, ...]:
    """Of each small model on each text, over all batches in their order."""
    tallies = [{text: Tally() for text in TEXTS} for _ in names]
    for batch in counted:
        for tally, own in zip(tallies, batch["tallies"], strict=True):
            for text in TEXTS:
                tally[text].add_counted(own[text])
    return tuple(
        tally[text].result(name, text)
        for name, tally in zip(names, tallies, strict=True)
        for text in TEXTS
    )


class _Batches:
    """The examples in batches, whose positions are counted; the first model is the large one."""

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        words: PreTrainedTokenizerBase,
        data: LoadedData,
        config: AgreementConfig,
    ) -> None:
        self._models, self._words, self._config = models, words, config
        self._examples = data.examples
        self._vocab_size = min(shared_vocab_size(models[0], model) for model in models[1:])
        check_tokenizer_size(words, self._vocab_size)
        self.total = math.ceil(len(data.examples) / config.batch_size)

    def count(self, number: int) -> dict[str, Any]:
        """The tallies of each small model on a batch, and sources cut short, as JSON values."""
        words, config, models = self._words, self._config, self._models
        batch = self._examples[number * config.batch_size : (number + 1) * config.batch_size]
        sources = [config.prefix + e.source for e in batch]
        whole = words(sources)["input_ids"]
        inputs = words(
            sources, truncation=True, max_length=config.max_source_tokens, padding=True,
            return_tensors="pt",
        ).to(models[0].device)  # fmt: skip
        references = words(
            text_target=[e.target for e in batch],
            truncation=True, max_length=config.max_new_tokens,
        )["input_ids"]  # fmt: skip
        limits = {
            "max_source_tokens": config.max_source_tokens,
            "max_new_tokens": config.max_new_tokens,
        }
        outputs = generate_tokens(models[0], words, sources, **limits)
        tallies = [{text: Tally() for text in TEXTS} for _ in models[1:]]
        for text, rows in zip(TEXTS, (references, outputs), strict=True):
            labels = pad_sequence(
                [torch.tensor(row) for row in rows], batch_first=True, padding_value=-100
            ).to(models[0].device)  # (B, T)
            (expected, _), *choices = _choices(models, inputs, labels, self._vocab_size)
            for tally, (choice, confidence) in zip(tallies, choices, strict=True):
                tally[text].add(choice == expected, confidence, labels != -100)
        return {
            "truncated": sum(len(ids) > config.max_source_tokens for ids in whole),
            "tallies": [{text: own[text].to_json() for text in TEXTS} for own in tallies],
        }


def _choices(
    models: Sequence[PreTrainedModel], inputs: Any, labels: Tensor, vocab_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each model's most likely token before each label, and its probability: (B, T) both."""
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for model in models:
        source = given
        if isinstance(model, BiLDDrafter):  # it reads what the large model's encoder makes
            states = models[0].get_encoder()(**given)
            source = {"encoder_outputs": states, "attention_mask": given["attention_mask"]}
        logits = model(
            **source,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        ).logits[..., :vocab_size]  # (B, T, V)
        confidence, choice = logits.float().softmax(-1).max(-1)
        yield choice, confidence
