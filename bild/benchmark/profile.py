"""Where an arm's time goes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from bild.engines import Decoder


@dataclass
class ModelTime:
    """One model's share of a decoding: seconds in its encoder and in its decoder's forwards."""

    encoder: float = 0.0
    decoder: float = 0.0
    forwards: int = 0


class ForwardClock:
    """Within `with ForwardClock(models, device) as clock:`, adds up what each model takes.

    Whoever decodes, transformers or a `Decoder`: the models' own calls are timed and those of every
    `Decoder` class, the outermost where one makes the other. `draft` counts as one forward here;
    `DecodeStats` has their real number. `times` is complete once the block is left.

    Args:
        models: "large" and "small", as `Decoder.name` calls them.
        device: where they are. On a GPU the spans are taken from its own clock.
    """

    ENCODER = ("encode", "begin")
    DECODER = ("feed", "draft", "verify")

    def __init__(self, models: Mapping[str, Any], device: torch.device) -> None:
        self.times = {name: ModelTime() for name in models}
        self._models = models
        self._gpu = device.type == "cuda"
        self._depth = 0
        self._start: Any = None
        self._spans: list[tuple[str, bool, Any, Any]] = []  # name, encoder?, from, to
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> ForwardClock:
        for name, model in self._models.items():
            self._watch_module(model.get_encoder(), name, True)
            self._watch_module(model, name, False)
        for kind in _decoder_classes():
            for method in (*self.ENCODER, *self.DECODER):
                if method in vars(kind):
                    self._watch_method(kind, method, method in self.ENCODER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for undo in self._undo:
            undo()
        if self._gpu:
            torch.cuda.synchronize()
        for name, encoder, start, end in self._spans:
            time = self.times[name]
            seconds = start.elapsed_time(end) / 1000 if self._gpu else end - start
            if encoder:
                time.encoder += seconds
            else:
                time.decoder += seconds
                time.forwards += 1

    def _watch_module(self, module: nn.Module, name: str, encoder: bool) -> None:
        before = module.register_forward_pre_hook(lambda *_: self._enter())
        after = module.register_forward_hook(lambda *_: self._leave(name, encoder))
        self._undo += [before.remove, after.remove]

    def _watch_method(self, kind: type[Decoder], method: str, encoder: bool) -> None:
        original = vars(kind)[method]

        @functools.wraps(original)
        def timed(decoder: Decoder, *args: Any, **kwargs: Any) -> Any:
            self._enter()
            try:
                return original(decoder, *args, **kwargs)
            finally:
                self._leave(decoder.name, encoder)

        setattr(kind, method, timed)
        self._undo.append(lambda: setattr(kind, method, original))

    def _enter(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._start = self._now()

    def _leave(self, name: str, encoder: bool) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._spans.append((name, encoder, self._start, self._now()))

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _decoder_classes() -> list[type[Decoder]]:
    """`Decoder` and all classes made of it."""
    found: list[Any] = [Decoder]
    for kind in found:
        found += kind.__subclasses__()
    return found
