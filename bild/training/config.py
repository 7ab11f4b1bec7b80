"""The settings of training, labelling, aligning and measuring agreement, checked as they are made.

None of them needs torch: a script finds a mistake in its arguments before torch has loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bild.config import DTYPES, Dtype
from bild.errors import BildError
from bild.tasks.data import LoadedData
from bild.training.presets import TrainingPreset

Divergence = Literal["forward-kl", "reverse-kl", "jsd"]
DIVERGENCES = get_args(Divergence)
TrainOn = Literal["outputs", "references", "both"]


@dataclass(frozen=True)
class TrainingJob:
    """One model to train.

    Attributes:
        preset: the recipe.
        train, validation: texts and references (or, for `train`, a calibration set).
        tokenizer: folder or hub id; saved beside the model.
        output_dir: the finished model; checkpoints lie in `output_dir/checkpoints`.
        init_from: folder or hub id of the checkpoint to start from; without it, a fresh model.
        prefix: put before every source.
        max_length: longer targets are cut, in tokens.
        max_source_length: the same for sources, prefix included; without it, `max_length`.
        save_steps: steps between checkpoints, which are also validation points.
        save_dtype: of the finished weights.
        bf16: autocast to bfloat16; without it, where the processor multiplies bfloat16 faster.
        seed: of the order of the examples, of dropout and of fresh weights.
        method: what sets this training apart from fine-tuning, for its record.

    Raises:
        BildError: a value outside its range, by name and value.
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
    save_dtype: Dtype = "float32"
    bf16: bool | None = None
    seed: int = 0
    method: dict[str, Any] = field(default_factory=lambda: {"name": "fine-tuning"})

    def __post_init__(self) -> None:
        _require_positive(self, "max_length", "max_source_length", "save_steps")
        _require_positive(self.preset, "max_steps")
        _require_dtype("save_dtype", self.save_dtype)
        if not 0 <= self.seed < 2**32:
            raise BildError(f"seed must be at least 0 and below 2**32, got {self.seed}")

    @property
    def checkpoints(self) -> Path:
        """Where the training's own checkpoints lie."""
        return self.output_dir / "checkpoints"


@dataclass(frozen=True)
class LabelConfig:
    """How a training set is labelled.

    Attributes:
        source_key, target_key: keys of the source and the reference in a record.
        prefix: put before every source; it is not written to the calibration set.
        num_beams: 1 for greedy, as the paper; more for beam search.
        max_source_tokens: longer sources are cut, prefix included.
        max_new_tokens: limit of an output.
        batch_size: sources in one forward.
        chunk_size: examples that are sorted by length, labelled and written together.
        dtype: of the weights.

    Raises:
        BildError: a value outside its range, by name and value.
    """

    source_key: str = "de"
    target_key: str = "en"
    prefix: str = ""
    num_beams: int = 1
    max_source_tokens: int = 1024
    max_new_tokens: int = 128
    batch_size: int = 64
    chunk_size: int = 1024
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        _require_positive(
            self, "num_beams", "max_source_tokens", "max_new_tokens", "batch_size", "chunk_size"
        )
        _require_dtype("dtype", self.dtype)


@dataclass(frozen=True)
class OnPolicyConfig:
    """How distributions are drawn together.

    Attributes:
        divergence: what is made small: "forward-kl" (large to small), "reverse-kl" (small to
            large) or "jsd".
        own_share: share of the steps, 0 to 1, whose targets the small model writes itself; the
            others have those of the training file.
        temperature: of that sampling; 0 for greedy.
        max_new_tokens: limit of outputs.

    Raises:
        BildError: a value outside its range, by name and value.
    """

    divergence: Divergence = "forward-kl"
    own_share: float = 0.5
    temperature: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            names = ", ".join(DIVERGENCES)
            raise BildError(f"divergence must be one of {names}, got {self.divergence!r}")
        if not 0 <= self.own_share <= 1:
            raise BildError(f"own_share must be between 0 and 1, got {self.own_share}")
        if not 0 <= self.temperature < math.inf:
            raise BildError(f"temperature must be a number >= 0, got {self.temperature}")
        _require_positive(self, "max_new_tokens")


@dataclass(frozen=True)
class DrafterOptions:
    """What a drafter is like that is trained from nothing, and on which texts.

    Attributes:
        layers: of its decoder.
        feed_width: of its feed-forward; None for the large model's.
        shortlist: token ids that its head scores, the most frequent of the training's targets;
            None for all.
        train_on: targets to train on: "outputs" (the large model's, which need no references),
            "references" (the training file's), or "both".

    Raises:
        BildError: a value outside its range, by name and value.
    """

    layers: int = 1
    feed_width: int | None = None
    shortlist: int | None = None
    train_on: TrainOn = "outputs"

    def __post_init__(self) -> None:
        _require_positive(self, "layers", "feed_width", "shortlist")
        if self.train_on not in get_args(TrainOn):
            names = ", ".join(get_args(TrainOn))
            raise BildError(f"train_on must be one of {names}, got {self.train_on!r}")


@dataclass(frozen=True)
class AgreementConfig:
    """How agreement is measured.

    Attributes:
        prefix: put before every source.
        max_source_tokens: longer sources are cut, prefix included.
        max_new_tokens: longer references are cut, and the limit of the large model's outputs.
        batch_size: examples in one forward.
        dtype: of the weights.

    Raises:
        BildError: a value outside its range, by name and value.
    """

    prefix: str = ""
    max_source_tokens: int = 1024
    max_new_tokens: int = 128
    batch_size: int = 16
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        _require_positive(self, "max_source_tokens", "max_new_tokens", "batch_size")
        _require_dtype("dtype", self.dtype)


def _require_positive(settings: object, *names: str) -> None:
    """None passes: it stands for another field's value."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise BildError(f"{name} must be at least 1, got {value}")


def _require_dtype(name: str, value: str) -> None:
    if value not in DTYPES:
        raise BildError(f"{name} must be one of {', '.join(DTYPES)}, got {value!r}")
