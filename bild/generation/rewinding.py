"""Logits processors and stopping criteria that keep a state between their calls.

transformers' greedy search asks one of them once a token, in order. Drafting and verifying ask it
of one position several times, and again after a rollback. So whatever is not known to depend on
its arguments alone is put, before each call, into the state in which the calls for the shorter
prefixes of this output left it: it is asked as if the output had been written in one go.

A state is what Python's `pickle` would keep of an object, or of what a function has closed over.
Models, tokenizers, functions and classes within it are shared, not copied.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation import SynthIDTextWatermarkLogitsProcessor

from bild.errors import BildError

SHARED = (
    *(nn.Module, PreTrainedTokenizerBase),
    *(FunctionType, BuiltinFunctionType, ModuleType, type),
)


def rewinding(functions: Iterable[Any]) -> list[Any]:
    """Processors or criteria of which each may be asked about any prefix at any time.

    transformers' own depend on their arguments alone, but for the watermark of SynthID.
    """
    return [f if _depends_on_its_arguments(f) else Rewinding(f) for f in functions]


def settle(functions: Iterable[Any], length: int) -> None:
    """Put those that `rewinding` made into the state before a call about so many tokens."""
    for function in functions:
        if hasattr(function, "settle"):  # Rewinding, or what has one in it
            function.settle(length)


def _depends_on_its_arguments(function: Any) -> bool:
    home = type(function).__module__.partition(".")[0]
    stateful = isinstance(function, SynthIDTextWatermarkLogitsProcessor | Rewinding)
    return home == "transformers" and not stateful


class Rewinding:
    """One that may keep a state, asked about prefixes in any order.

    Args:
        function: a logits processor or a stopping criterion.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self._before: dict[int, State] = {}  # a call about a prefix of so many tokens
        self._now: State | None = None
        self._last = 0  # tokens of the prefix that was asked about last

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        length = input_ids.shape[1]
        self._now = read_state(self.function)
        self.settle(length)
        if length <= self._last:  # the loop never goes back behind where it went back to
            self._before = {n: s for n, s in self._before.items() if n == length}
        self._before[length] = self._now
        self._last = length
        answer = self.function(input_ids, scores)
        self._before[length + 1] = self._now = read_state(self.function)
        return answer

    def settle(self, length: int) -> None:
        """Go back, or on, to the state before a call about a prefix of so many tokens."""
        wanted = self._before.get(length)
        if wanted is not None and wanted != self._now:
            wanted.write(self.function)
            self._now = wanted


@dataclass(frozen=True)
class State:
    """What an object holds at one moment.

    Attributes:
        content: pickled.
        shared: the objects in it that are not copied.
    """

    content: bytes
    shared: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, State)
            and self.content == other.content
            and len(self.shared) == len(other.shared)
            and all(a is b for a, b in zip(self.shared, other.shared, strict=True))
        )

    def write(self, function: Any) -> None:
        """Give it back to the function that it was read from."""
        unpickler = pickle.Unpickler(io.BytesIO(self.content))
        unpickler.persistent_load = lambda place: self.shared[place]  # type: ignore[method-assign]
        state = unpickler.load()
        holder = _holder(function)
        if isinstance(holder, FunctionType):
            for cell, value in zip(holder.__closure__ or (), state, strict=True):
                if value:
                    cell.cell_contents = value[0]
        elif hasattr(type(holder), "__setstate__"):
            holder.__setstate__(state)
        elif state is not None:
            attributes, slots = state if isinstance(state, tuple) else (state, None)
            if attributes is not None:
                vars(holder).clear()
                vars(holder).update(attributes)
            for name, value in (slots or {}).items():
                setattr(holder, name, value)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.shared: list[Any] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, SHARED):
            return None
        self.shared.append(value)
        return len(self.shared) - 1


def read_state(function: Any) -> State:
    """What a processor or a criterion holds.

    Raises:
        BildError: something that cannot be copied.
    """
    holder = _holder(function)
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(_content(holder))
    except Exception as error:  # whatever an object raises that was not made to be copied
        name = getattr(holder, "__qualname__", type(holder).__qualname__)
        raise BildError(
            f"BiLD cannot use {name}: it may keep a state, which has to be copied for what is "
            f"drafted and rolled back, and that fails ({error}); give its class __getstate__ and "
            "__setstate__"
        ) from error
    return State(file.getvalue(), tuple(pickler.shared))


def _holder(function: Any) -> Any:
    """What keeps the state of a callable: of a method its object."""
    return function.__self__ if isinstance(function, MethodType) else function


def _content(holder: Any) -> Any:
    if not isinstance(holder, FunctionType):
        state: Callable[[], Any] = holder.__getstate__
        return state()
    contents: list[tuple[Any, ...]] = []
    for cell in holder.__closure__ or ():
        contents.append(())
        with suppress(ValueError):  # it has no value yet
            contents[-1] = (cell.cell_contents,)
    return contents
