"""Logits processors and stopping criteria that keep a state between their calls.

transformers' greedy search asks one of them once a token, in order. Drafting and verifying ask it
of one position several times, and again after a rollback. So whatever is not known to depend on
its arguments alone is put, before each call, into the state in which the calls for the shorter
prefixes of this output left it: it is asked as if the output had been written in one go. Of several
outputs of one call each meets it as the call was given it (`Beginnings`), whatever is written
before or beside it.

A state is what Python's `pickle` would keep of an object, or of what a function has closed over.
Models, tokenizers, functions and classes within it are shared, not copied.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation import SynthIDTextWatermarkLogitsProcessor

from bild.errors import BildError

FUNCTIONS = ("logits_processor", "stopping_criteria")  # keywords of `generate`
SHARED = (
    *(nn.Module, PreTrainedTokenizerBase),
    *(FunctionType, BuiltinFunctionType, ModuleType, type),
)

UNCHANGING = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, Enum)


def rewinding(functions: Iterable[Any]) -> list[Any]:
    """Processors or criteria of which each may be asked about any prefix at any time.

    transformers' own depend on their arguments alone, but for the watermark of SynthID.
    """
    return [f if _may_be_asked_anywhere(f) else Rewinding(f) for f in functions]


def function_of(asked: Any) -> Any:
    """The processor or the criterion itself, of one that may be a `Rewinding`."""
    return asked.function if isinstance(asked, Rewinding) else asked


def settle(functions: Iterable[Any], length: int) -> None:
    """Put those that `rewinding` made into the state before a call about so many tokens."""
    for function in functions:
        if hasattr(function, "settle"):  # Rewinding, or what has one in it
            function.settle(length)


def _may_be_asked_anywhere(function: Any) -> bool:
    if isinstance(function, Rewinding):
        return True
    home = type(function).__module__.partition(".")[0]
    return home == "transformers" and not isinstance(function, SynthIDTextWatermarkLogitsProcessor)


class Rewinding:
    """One that may keep a state, asked about prefixes in any order.

    Args:
        function: a logits processor or a stopping criterion.
        start: its state before the first call of this output; None for the one it is in then.
    """

    def __init__(self, function: Any, start: State | None = None) -> None:
        self.function, self._start = function, start
        self._before: dict[int, State] = {}  # a call about a prefix of so many tokens
        self._now: State | None = None
        self._last = 0  # tokens of the prefix that was asked about last
        self._shared: list[_Shared] = []

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
        wanted = self._before.get(length) if self._before else self._start
        if wanted is not None and wanted != self._now:
            for shared in self._shared:
                shared.check(self.function)
            wanted.write(self.function)
            self._now = wanted

    def share(self, found: Iterable[_Shared]) -> None:
        """Hold objects together with others: refuse to go back once one of them has changed."""
        self._shared = list(found)

    def leave(self) -> None:
        """Put it into the state in which this output has left it, whatever it was asked since."""
        if self._now is not None:
            self._now.write(self.function)


class Beginnings:
    """Gives each output of a call its processors and criteria as the call was given them."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, State]] = {}  # by what holds the state, which is kept
        self._of_the_last: list[Rewinding] = []

    def of_a_row(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of `generate` for the next output.

        Raises:
            BildError: as `read_state`.
        """
        own = {name: list(keywords[name]) for name in FUNCTIONS if keywords.get(name)}
        met = {name: [self._as_given(f) for f in functions] for name, functions in own.items()}
        self._of_the_last = [f for found in met.values() for f in found if isinstance(f, Rewinding)]
        return {**keywords, **met}

    def _as_given(self, function: Any) -> Any:
        if _may_be_asked_anywhere(function):
            return function
        holder = _holder(function)
        if id(holder) not in self._found:
            self._found[id(holder)] = holder, read_state(function)
        return Rewinding(function, self._found[id(holder)][1])

    def leave(self) -> None:
        """All outputs are written: leave what keeps a state as the last of them does."""
        for function in self._of_the_last:
            function.leave()


# ------------------------------------------------------------------------------ shared states


def find_shared(functions: Iterable[Any]) -> None:
    """Let those of an output that were made by `rewinding` know what they hold together.

    Each goes back by itself, so that an object which two of them hold, and one changes, would fall
    into two. Once such an object has changed they refuse to go back.
    """
    own = [f for f in functions if isinstance(f, Rewinding)]
    reached = [_Reached(f.function) for f in own] if len(own) > 1 else []
    for place, mine in enumerate(reached):
        others: dict[int, Any] = {}  # what they reach, and by whom
        for other in (*reached[:place], *reached[place + 1 :]):
            others |= dict.fromkeys(other.found, other.function)
        common = mine.found.keys() & others.keys()
        if common:
            own[place].share(_Shared(value, others[id(value)]) for value in mine.outermost(common))


class _Reached:
    """What the state of a processor or a criterion holds and could change.

    Attributes:
        found: by the objects' ids.
    """

    def __init__(self, function: Any) -> None:
        self.function, holder = function, _holder(function)
        self.found: dict[int, Any] = {id(holder): holder}
        _look_through(holder, _Pickler(io.BytesIO(), self._find))

    def _find(self, value: Any) -> bool:
        if not isinstance(value, UNCHANGING):
            self.found[id(value)] = value
        return False

    def outermost(self, ids: Iterable[int]) -> list[Any]:
        """The objects of these ids that are in none of the others."""
        wanted, outer = set(ids), list[Any]()
        holder = _holder(self.function)
        if id(holder) in wanted:
            return [holder]

        def stops(value: Any) -> bool:
            if id(value) in wanted and not any(value is other for other in outer):
                outer.append(value)
            return id(value) in wanted

        _look_through(holder, _Pickler(io.BytesIO(), stops))
        return outer


class _Shared:
    """An object that two processors or criteria hold.

    Args:
        value: the object.
        other: the other one that holds it.
    """

    def __init__(self, value: Any, other: Any) -> None:
        self.value, self.other = value, other
        self._before = self._look()

    def _look(self) -> State:
        # Of a function its state is what it has closed over; pickle would keep its name.
        function = isinstance(self.value, FunctionType)
        return read_state(self.value if function else _Box(self.value))

    def check(self, function: Any) -> None:
        """Refuse what has changed.

        Raises:
            BildError: naming both functions and the object.
        """
        if self._look() != self._before:
            raise BildError(
                f"BiLD cannot use {_name(function)} beside {_name(self.other)}: one changes a "
                f"{type(self.value).__name__} that both hold, and each is taken back by itself; "
                "give each a state of its own, or make one of them of both"
            )


@dataclass
class _Box:
    """Has a value for its state."""

    value: Any


def _name(function: Any) -> str:
    holder = _holder(function)
    return str(getattr(holder, "__qualname__", type(holder).__qualname__))


# ------------------------------------------------------------------------------ states


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
    """Args:
    file: is written to.
    stops: is shown each object, and says whether to leave out what is in it.
    """

    def __init__(self, file: io.BytesIO, stops: Callable[[Any], bool] = lambda _: False) -> None:
        super().__init__(file)
        self.shared: list[Any] = []
        self._stops = stops

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, SHARED) and not self._stops(value):
            return None
        self.shared.append(value)
        return len(self.shared) - 1


def read_state(function: Any) -> State:
    """What a processor or a criterion holds.

    Raises:
        BildError: something that cannot be copied.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    _look_through(_holder(function), pickler)
    return State(file.getvalue(), tuple(pickler.shared))


def _look_through(holder: Any, pickler: _Pickler) -> None:
    try:
        pickler.dump(_content(holder))
    except Exception as error:  # whatever an object raises that was not made to be copied
        raise BildError(
            f"BiLD cannot use {_name(holder)}: it may keep a state, which has to be copied for "
            f"what is drafted and rolled back, and that fails ({error}); give its class "
            "__getstate__ and __setstate__"
        ) from error


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
