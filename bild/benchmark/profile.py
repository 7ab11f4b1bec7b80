"""Where an arm's time goes, found out in decodings of their own that nobody times.

Our arms run on decoders that stop a clock around every call; transformers' models are hooked.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bild.engines import Decoder, Draft, Engine, Verdict
from bild.evaluation.arms import Case, limits
from bild.evaluation.own import OwnArm
from bild.evaluation.timing import synchronize, timed
from bild.generation.single import SingleModel
from bild.policy import FallbackRule


@dataclass
class ModelTime:
    """One model's share of a decoding: seconds in its encoder and in its decoder's forwards."""

    encoder: float = 0.0
    decoder: float = 0.0
    forwards: int = 0


@dataclass
class Profile:
    """A decoding, taken apart.

    Attributes:
        seconds: all of it, the measuring included.
        models: what is spent in each model that took part, "large" and "small".
    """

    seconds: float = 0.0
    models: dict[str, ModelTime] = field(default_factory=dict)

    @property
    def encoder_share(self) -> float:
        """Of the time, the encoders'."""
        return sum(m.encoder for m in self.models.values()) / self.seconds

    @property
    def outside_share(self) -> float:
        """Of the time, what is spent in no model."""
        inside = sum(m.encoder + m.decoder for m in self.models.values())
        return 1 - inside / self.seconds


def total(profiles: Sequence[Profile]) -> Profile:
    """Several decodings as one."""
    names = dict.fromkeys(name for p in profiles for name in p.models)
    parts = {name: [p.models[name] for p in profiles if name in p.models] for name in names}
    return Profile(
        sum(p.seconds for p in profiles),
        {
            name: ModelTime(
                sum(m.encoder for m in own),
                sum(m.decoder for m in own),
                sum(m.forwards for m in own),
            )
            for name, own in parts.items()
        },
    )


# ------------------------------------------------------------------------------ our arms


def profile_own(arm: OwnArm, case: Case) -> Profile:
    """A decoding of one of our arms, on the same engines and sessions as ever."""
    found = Profile()
    runner = copy.copy(arm.runner)
    if isinstance(runner, SingleModel):
        runner.engine = _TimedEngine(runner.engine, found)
    else:
        runner.models = {n: copy.copy(m) for n, m in runner.models.items()}
        for model in runner.models.values():
            model.engine = _TimedEngine(model.engine, found)
    device = arm.engine.model.device
    ids = case.input_ids.to(device)
    options = limits(case, arm.engine.model)
    decode = replace(arm, runner=runner).decoder(ids, torch.ones_like(ids), **options)
    _, found.seconds = timed(device, decode)
    return found


class _TimedEngine:
    """An engine whose decoders are timed."""

    def __init__(self, engine: Engine, found: Profile) -> None:
        self.engine, self.found = engine, found
        self.model, self.name = engine.model, engine.name
        self.precision, self.compiled = engine.precision, engine.compiled

    def decoder(self, name: str, vocab_size: int | None = None) -> Decoder:
        times = self.found.models.setdefault(name, ModelTime())
        return _TimedDecoder(self.engine.decoder(name, vocab_size), times)


class _TimedDecoder(Decoder):
    """A decoder around another one, with a clock."""

    def __init__(self, inner: Decoder, times: ModelTime) -> None:
        self.inner, self.times = inner, times
        self.name, self.vocab_size = inner.name, inner.vocab_size
        self.has_encoder = inner.has_encoder

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def read(self, *args: Any, **kwargs: Any) -> None:
        _, seconds = timed(self.device, lambda: self.inner.read(*args, **kwargs))
        self.times.encoder += seconds
        self.encoder_seconds = self.inner.encoder_seconds
        self.encoder_outputs = self.inner.encoder_outputs
        self._follow()

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> Any:
        return self.inner.encode(input_ids, attention_mask, **inputs)

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self.inner.begin(encoder_outputs, attention_mask)
        self._follow()

    def release(self) -> None:
        self.inner.release()

    def rollback_to(self, length: int) -> None:
        self.inner.rollback_to(length)
        self._follow()

    def feed(self, tokens: Sequence[int]) -> Tensor:
        return self._forward(lambda: self.inner.feed(tokens))

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        return self._forward(lambda: self.inner.draft(pending, limit, rule, eos_token_ids))

    def verify(
        self,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int = 0,
        needs: Collection[str] = (),
    ) -> Verdict:
        return self._forward(lambda: self.inner.verify(pending, drafted, first_row, needs))

    def _forward(self, call: Callable[[], Any]) -> Any:
        before = self.inner.forwards
        result, seconds = timed(self.device, call)
        self.times.decoder += seconds
        self.times.forwards += self.inner.forwards - before
        self._follow()
        return result

    def _follow(self) -> None:
        inner = self.inner
        self.length, self.forwards, self.tokens_fed = inner.length, inner.forwards, inner.tokens_fed


# ------------------------------------------------------------------------------ transformers' arms


def profile_modules(
    models: Mapping[str, Any], device: torch.device, decode: Callable[[], object]
) -> Profile:
    """A decoding by transformers' own code.

    Args:
        models: "large" and "small".
        device: where they are.
        decode: decodes.
    """
    found = Profile()
    with _hooked(models, device, found):
        _, found.seconds = timed(device, decode)
    return found


@contextmanager
def _hooked(models: Mapping[str, Any], device: torch.device, found: Profile) -> Iterator[None]:
    """Within the block, the models' calls are added up: the outermost where one makes another."""
    depth, start = 0, 0.0

    def enter(*_: Any) -> None:
        nonlocal depth, start
        depth += 1
        if depth == 1:
            synchronize(device)
            start = time.perf_counter()

    def leave(name: str, encoder: bool) -> None:
        nonlocal depth
        depth -= 1
        if depth:
            return
        synchronize(device)
        seconds = time.perf_counter() - start
        times = found.models.setdefault(name, ModelTime())
        if encoder:
            times.encoder += seconds
        else:
            times.decoder += seconds
            times.forwards += 1

    hooks = []
    for name, model in models.items():
        parts: list[tuple[nn.Module | None, bool]] = [(model.get_encoder(), True), (model, False)]
        for module, encoder in parts:
            if module is None:  # a drafter has no encoder
                continue
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(lambda *_, n=name, e=encoder: leave(n, e)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
