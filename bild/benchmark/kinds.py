"""Every engine a user could decode with, by name: the arms of a benchmark.

The command line calls an arm by its kind, which runs in each precision it may have, or in full, as
"bild-compiled@int8", or "bild-compiled@float32/int8" where the small model has a precision of its
own. Adding an engine is adding an entry to `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from bild.benchmark.costs import StepTimes, measure_steps
from bild.benchmark.kit import Kit
from bild.benchmark.profile import Profile, profile_own
from bild.benchmark.rivals import CTranslate2Arm, TransformersArm
from bild.checkpoints.early_exit import shares_encoder
from bild.engines import EngineName
from bild.errors import BildError
from bild.evaluation.arms import BILD, SMALL, VANILLA, Arm, ArmId, Case
from bild.evaluation.own import OwnArm
from bild.fallback import Adaptive
from bild.generation.pair import BiLDModel

FLOATS = ("float32", "bfloat16", "float16")
COMPILED = ("float32", "bfloat16", "int8")
PRECISIONS = (*FLOATS, "int8")


class BenchmarkArm(Arm, Protocol):
    """An arm that lets itself be taken apart.

    Raises:
        BildError: as it is made, where it cannot run here; the reason is given.
    """

    def profile(self, case: Case) -> Profile:
        """A decoding that nobody times, taken apart."""


class PairArm(OwnArm):
    """This package: BiLD, or one model alone, on one of its engines."""

    @property
    def id(self) -> ArmId:
        adapts = self.bild is not None and isinstance(self.bild.fallback_rule, Adaptive)
        return replace(super().id, adaptive=adapts)

    def profile(self, case: Case) -> Profile:
        """A decoding taken apart, on decoders with a clock."""
        return profile_own(self, case)

    def steps(self, case: Case) -> StepTimes | None:
        """What single steps of its engines take; of the pair as the paper has it alone."""
        if self.kind != BILD or self.id.ahead or self.id.adaptive:
            return None
        assert isinstance(self.runner, BiLDModel)
        pair = self.runner.models
        ids = case.input_ids.to(self.runner.device)
        large, small = (m.engine.decoder(m.name, m.vocab_size) for m in pair.values())
        try:
            shared = shares_encoder(self.runner.large, self.runner.small)
            return measure_steps(large, small, ids, case.max_new_tokens // 2, shared=shared)
        finally:
            large.release()
            small.release()


@dataclass(frozen=True)
class Kind:
    """A kind of arm.

    Attributes:
        title: what people call it.
        id: its `ArmId`, in whatever precision.
        precisions: those it may have.
        make: makes an arm of a kit.
        converts: it writes its own copy of the models first, whose room others can have later.
    """

    title: str
    id: ArmId
    precisions: tuple[str, ...]
    make: Callable[[Kit, ArmId], BenchmarkArm]
    converts: bool = False


def _own(kit: Kit, id: ArmId, engine: EngineName, compile: bool | None) -> PairArm:
    ahead = kit.bild.lookahead if kit.bild.lookahead != 0 else "auto"
    bild = replace(kit.bild, lookahead=ahead if id.ahead else 0)
    bild = replace(bild, drafting="adaptive") if id.adaptive else bild
    pair = kit.pair(id.precision, engine, compile, id.small_precision)
    return PairArm(id.kind, pair, bild)


def _ours(kind: str, title: str, way: str = "") -> dict[str, Kind]:
    """One kind on each of our engines; `way` of the pair: "ahead", "adaptive" or neither."""
    on: dict[str, tuple[str, tuple[str, ...], EngineName, bool | None]] = {
        "transformers": ("transformers engine", FLOATS, "transformers", None),
        "fast": ("fast engine", FLOATS, "fast", False),
        "compiled": ("fast engine, compiled", COMPILED, "fast", True),
    }
    return {
        "-".join(filter(None, (kind, way, name))): Kind(
            f"{title}, {engine_title}",
            ArmId(
                kind,
                engine,
                compiled=bool(compile),
                ahead=way == "ahead",
                adaptive=way == "adaptive",
            ),
            precisions,
            partial(_own, engine=engine, compile=compile),
        )
        for name, (engine_title, precisions, engine, compile) in on.items()
    }


KINDS: dict[str, Kind] = {
    "greedy": Kind("transformers greedy", ArmId("greedy"), FLOATS, TransformersArm),
    "assisted-heuristic": Kind(
        "transformers assisted, heuristic",
        ArmId("assisted-heuristic"),
        FLOATS,
        partial(TransformersArm, schedule="heuristic"),
    ),
    "assisted-constant": Kind(
        "transformers assisted, constant",
        ArmId("assisted-constant"),
        FLOATS,
        partial(TransformersArm, schedule="constant"),
    ),
    "static-compile": Kind(
        "transformers static cache, torch.compile",
        ArmId("static-compile"),
        FLOATS,
        partial(TransformersArm, compiled=True),
    ),
    "greedy-small": Kind(
        "transformers greedy, small alone",
        ArmId("greedy-small"),
        FLOATS,
        partial(TransformersArm, which="small"),
    ),
    "ctranslate2": Kind(
        "CTranslate2 greedy", ArmId("ctranslate2"), PRECISIONS, CTranslate2Arm, converts=True
    ),
    **_ours(VANILLA, "large alone"),
    **_ours(SMALL, "small alone"),
    **_ours(BILD, "BiLD"),
    **_ours(BILD, "BiLD with guesses", "ahead"),
    **_ours(BILD, "BiLD, adaptive", "adaptive"),
}


def kind_of(arm: ArmId) -> Kind:
    """The kind that an arm is of."""
    plain = replace(arm, precision="float32", small_precision=None)
    return next(kind for kind in KINDS.values() if kind.id == plain)


def parse_arms(given: Iterable[str], precisions: Iterable[str]) -> tuple[ArmId, ...]:
    """The arms that a command line names: each kind in each of the precisions it may have.

    Args:
        given: kinds, or full names as "bild-compiled@float32/int8", whose precisions stay.
        precisions: asked for.

    Raises:
        BildError: an unknown kind or precision; those known are listed.
    """
    precisions = list(precisions)
    for precision in precisions:
        _check("precision", precision, PRECISIONS)
    arms: dict[ArmId, None] = {}
    for text in given:
        name, at, precision = text.partition("@")
        _check("arm", name, KINDS)
        kind, small = KINDS[name], None
        if at:
            precision, slash, small = precision.partition("/")
            _check(f"precision of {name}", precision, kind.precisions)
            if slash:
                own = COMPILED if kind.id.kind == BILD and kind.id.compiled else ()
                _check(f"precision of the small model of {name}", small, own)
        wanted = [precision] if at else [p for p in precisions if p in kind.precisions]
        small = None if small in ("", precision) else small
        arms |= dict.fromkeys(replace(kind.id, precision=p, small_precision=small) for p in wanted)
    if not arms:
        raise BildError(f"no arm can run in {', '.join(precisions)}; choose another precision")
    return tuple(arms)


def _check(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise BildError(f"unknown {what} {value!r}; choose from {', '.join(known)}")
