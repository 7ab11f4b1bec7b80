"""Whether a model is still what its weights were copied from."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn


class Snapshot:
    """The parts and parameters of a model at one moment.

    A parameter has changed if another stands in its place, if its memory is elsewhere, or if torch
    counted a write to it. What is written past torch (through `.data`, say) is not counted.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        parts: list[tuple[dict[str, Any], str, Any]] = []
        parameters: list[tuple[dict[str, Any], str, Any]] = []
        for module in model.modules():
            parts += [(module._modules, name, m) for name, m in module._modules.items()]
            parameters += [(module._parameters, name, p) for name, p in module._parameters.items()]
        self._held = parts + parameters
        self._folders = [folder for folder, _, _ in self._held]
        self._names = [name for _, name, _ in self._held]
        self._contents = [content for _, _, content in self._held]
        self._parameters = [p for _, _, p in parameters if p is not None]
        # Tensors made in inference mode have no count of writes.
        self._counted = [p for p in self._parameters if not p.is_inference()]
        self._writes, self._addresses = self._state()

    def _state(self) -> tuple[list[int], list[int]]:
        return [p._version for p in self._counted], [p.data_ptr() for p in self._parameters]

    def is_current(self) -> bool:
        """Whether nothing has changed; some ten microseconds."""
        now = map(dict.get, self._folders, self._names)
        return all(map(operator.is_, now, self._contents)) and self._state() == (
            self._writes,
            self._addresses,
        )
