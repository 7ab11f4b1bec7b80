"""Whether a model is still what its weights were copied from."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from torch import Tensor, nn

from bild.engines.coverage import may_change

# To look at all of a model's parts, which are scattered over memory, takes as long as a forward of
# a small one. So it is done no more often than this, unless there are few; in between a sample of
# the parameters is looked at, of which a change of all of them is seen.
FULL_SECONDS = 0.25
FEW, SAMPLES = 64, 4  # parameters
VERSION = operator.attrgetter("_version")


class Snapshot:
    """The parts and parameters of a model at one moment; it has no hooks that change anything.

    A parameter has changed if another stands in its place, if its memory is elsewhere, or if torch
    counted a write to it. What is written past torch (through `.data`, say) is not counted.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        folders: list[dict[str, Any]] = [f for m in modules for f in (m._parameters, m._modules)]
        self._folders = [folder for folder in folders for _ in folder]
        self._names = [name for folder in folders for name in folder]
        self._contents = [content for folder in folders for content in folder.values()]
        self._hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._attributes = [vars(module) for module in modules]
        parameters = list(model.parameters())
        last = len(parameters) - 1
        self._all = _Writes(parameters)
        self._sample = _Writes([parameters[i * last // (SAMPLES - 1)] for i in range(SAMPLES)])
        self._few = len(parameters) <= FEW
        self._looked = time.monotonic()

    def is_current(self) -> bool:
        """Whether nothing has changed, as far as the sample says or, every so often, in full."""
        now = time.monotonic()
        if not self._few and now - self._looked < FULL_SECONDS:
            return self._sample.are_the_same()
        self._looked = now
        if any(map(may_change, filter(None, self._hooks))):
            return False
        if any(map(operator.contains, self._attributes, repeat("forward"))):
            return False
        here = map(dict.get, self._folders, self._names)
        return all(map(operator.is_, here, self._contents)) and self._all.are_the_same()


class _Writes:
    """How often parameters have been written, and where they lie, at one moment."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        # Tensors made in inference mode have no count of writes.
        self._counted = [p for p in parameters if not p.is_inference()]
        self._found = self._look()

    def _look(self) -> tuple[list[int], list[int]]:
        # Without a loop in Python: this is done for every sequence.
        addresses = list(map(Tensor.data_ptr, self._parameters))
        return addresses, list(map(VERSION, self._counted))

    def are_the_same(self) -> bool:
        """Whether both are as they were."""
        return self._look() == self._found
