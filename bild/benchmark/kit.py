"""The models that the arms of a benchmark share."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from bild.config import BiLDConfig
from bild.engines import EngineName
from bild.generation.pair import BiLDModel

Models = tuple[PreTrainedModel, PreTrainedModel]  # large, small


class Kit:
    """What arms are made from; arms of one precision share the models, of one engine the pair.

    Args:
        models: the pair, in float32.
        bild: thresholds and variant of the BiLD arms.
        device: where all arms run; the models are moved there.
        cache: a folder for converted models.
        fingerprint: of the pair, for the cache.
    """

    def __init__(
        self, models: Models, bild: BiLDConfig, device: torch.device, cache: Path, fingerprint: str
    ) -> None:
        large, small = models
        self._models: dict[str, Models] = {"float32": (large.to(device), small.to(device))}
        self._pairs: dict[tuple[str, str | None, EngineName, bool | None], BiLDModel] = {}
        self.bild, self.device = bild, device
        self.cache, self.fingerprint = cache, fingerprint

    def models(self, precision: str) -> Models:
        """The pair with its weights in a precision that torch has."""
        if precision not in self._models:
            large, small = (_cast(m, getattr(torch, precision)) for m in self._models["float32"])
            self._models[precision] = large, small
        return self._models[precision]

    def pair(
        self,
        precision: str,
        engine: EngineName,
        compile: bool | None,
        small_precision: str | None = None,
    ) -> BiLDModel:
        """The pair on one of our engines; the fast one has weights of its own."""
        key = precision, small_precision, engine, compile
        if key not in self._pairs:
            models = self.models("float32" if precision == "int8" else precision)
            # transformers has the models' own precision.
            asked = precision if engine == "fast" else None
            self._pairs[key] = BiLDModel(
                *models,
                engine=engine,
                precision=asked,
                compile=compile,
                small_precision=small_precision,
            )
        return self._pairs[key]

    def release(self) -> None:
        """Let go of the models: those that no arm holds give their memory back."""
        self._models = {}
        self._pairs = {}


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy in another precision, without one in the old precision on the way."""
    parameters = list(model.parameters())
    cast = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in parameters}
    return copy.deepcopy(model, cast)  # what it finds there it takes for copied
