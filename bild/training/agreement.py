"""How often a small model agrees with a large one, and whether its confidence tells.

Both models read the same prefixes ("teacher-forced"): those of the references, and those of the
large model's own outputs. At each position the small model agrees when its most likely token is the
large one's. Its probability of that token is its confidence, which BiLD's fallback threshold looks
at: a model is well calibrated when it agrees in p of the positions where its confidence is p. The
expected calibration error (Naeini et al., AAAI 2015) is the mean distance from that, over bins.

Letters used for shapes: B examples, T tokens, N positions that are not padding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from bild.checkpoints.identity import describe_model
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.vocabulary import check_tokenizer_size, shared_vocab_size
from bild.evaluation.environment import environment
from bild.tasks.data import LoadedData
from bild.training.config import AgreementConfig
from bild.training.corpus import describe_data
from bild.training.labelling import generate_tokens, processes

SCHEMA = 1
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

    def result(self) -> dict[str, Any]:
        """Agreement with a 95 % bootstrap interval over the examples, and the calibration."""
        counts = np.array(self.per_example, dtype=float)  # (examples, 2)
        picks = np.random.default_rng(12345).integers(0, len(counts), (1000, len(counts)))
        sums = counts[picks].sum(axis=1)  # (resamples, 2)
        low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
        positions, agreeing, confidence = self.bins
        total = positions.sum()
        bins = [
            {
                "low": i / BINS,
                "high": (i + 1) / BINS,
                "positions": int(positions[i]),
                "share": float(positions[i] / total),
                "agreement": float(agreeing[i] / positions[i]) if positions[i] else None,
                "confidence": float(confidence[i] / positions[i]) if positions[i] else None,
            }
            for i in range(BINS)
        ]
        return {
            "positions": int(total),
            "agreement": {
                "value": float(agreeing.sum() / total),
                "low": float(low),
                "high": float(high),
            },
            "mean_confidence": float(confidence.sum() / total),
            "calibration_error": float(np.abs(agreeing - confidence).sum() / total),
            "bins": bins,
        }


def measure(
    large: str,
    smalls: Sequence[str],
    data: LoadedData,
    config: AgreementConfig,
    *,
    tokenizer: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Agreement of small models with a large one on held-out text.

    Args:
        large, smalls: folders or hub ids; the small ones are measured on the same positions.
        data: held-out examples.
        config: settings.
        tokenizer: folder or hub id; None for the one beside the large model.
        progress: show a progress bar.

    Returns:
        A record: schema, config, models, data, env, and "results", one entry for each small
        model and each of `TEXTS`, shares and probabilities being 0 to 1.

    Raises:
        BildError: a model that cannot be loaded or does not fit the large one.
    """
    device, dtype = processes().device, getattr(torch, config.dtype)
    words = load_tokenizer(large, name=tokenizer)
    for small in smalls:
        load_tokenizer(large, small, tokenizer)  # refuses one that differs
    models = [load_model(name, dtype, device) for name in (large, *smalls)]
    vocab_size = min(shared_vocab_size(models[0], model) for model in models[1:])
    check_tokenizer_size(words, vocab_size)
    limits = {
        "max_source_tokens": config.max_source_tokens,
        "max_new_tokens": config.max_new_tokens,
    }
    tallies = [{text: Tally() for text in TEXTS} for _ in smalls]
    bar = tqdm(total=len(data.examples), desc="agreement", unit="example", disable=not progress)
    with bar, torch.inference_mode():
        for first in range(0, len(data.examples), config.batch_size):
            batch = data.examples[first : first + config.batch_size]
            sources = [config.prefix + e.source for e in batch]
            inputs = words(
                sources, truncation=True, max_length=config.max_source_tokens, padding=True,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            references = words(
                text_target=[e.target for e in batch],
                truncation=True, max_length=config.max_new_tokens,
            )["input_ids"]  # fmt: skip
            outputs = generate_tokens(models[0], words, sources, **limits)
            for text, rows in zip(TEXTS, (references, outputs), strict=True):
                labels = pad_sequence(
                    [torch.tensor(row) for row in rows], batch_first=True, padding_value=-100
                ).to(device)  # (B, T)
                (expected, _), *choices = _choices(models, inputs, labels, vocab_size)
                for tally, (choice, confidence) in zip(tallies, choices, strict=True):
                    tally[text].add(choice == expected, confidence, labels != -100)
            bar.update(len(batch))
    described = [describe_model(n, m) for n, m in zip((large, *smalls), models, strict=True)]
    return {
        "config": asdict(config),
        "models": {"large": described[0], "small": described[1:]},
        "data": describe_data(data),
        "results": [
            {"model": small["id"], "text": text, **tally[text].result()}
            for small, tally in zip(described[1:], tallies, strict=True)
            for text in TEXTS
        ],
        "env": asdict(environment(device)),
        "schema": SCHEMA,
    }


def _choices(
    models: Sequence[PreTrainedModel], inputs: Any, labels: Tensor, vocab_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each model's most likely token before each label, and its probability: (B, T) both."""
    for model in models:
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        ).logits[..., :vocab_size]  # (B, T, V)
        confidence, choice = logits.float().softmax(-1).max(-1)
        yield choice, confidence
