"""Recipes of training, as data: `PRESETS`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


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
        "a small model drawn to what its large one writes, by scripts/align.py: a lower rate, no "
        "dropout",
        learning_rate=1e-3,
        scale_parameter=True,
        batch_size=64,
        max_steps=600,
        scheduler="linear",
        warmup_steps=50,
        dropout=0.0,
    ),
    "drafter": TrainingPreset(
        "a drafter on a large model's encoder, by scripts/align.py --method drafter",
        learning_rate=1e-3,
        batch_size=64,
        max_steps=3000,
        scheduler="cosine",
        warmup_steps=100,
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
