"""The arms of this package: the large model alone, the small one alone, and the pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bild.config import BiLDConfig
from bild.drawing import Distribution
from bild.engines import Engine
from bild.evaluation.arms import BILD, SMALL, VANILLA, ArmId, BatchCase, Case, Outcome, limits
from bild.evaluation.timing import timed
from bild.generation.output import BiLDOutput
from bild.generation.pair import BiLDModel
from bild.generation.sequences import stream_of
from bild.generation.single import SingleModel
from bild.generation.stats import DecodeStats
from bild.policy import Writer
from bild.tasks.registry import Thresholds

PLAIN = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True}


@dataclass(frozen=True)
class OwnArm:
    """BiLD, or one model alone, on one of our engines.

    Attributes:
        kind: `VANILLA`, `SMALL` or `BILD`.
        runner: the pair, or the large model alone.
        bild: thresholds and variant of the pair.
        label: of the small model, where there are several.
        thresholds: to be named by, where there are several pairs.
        drawn: what tokens are drawn from; None for greedy outputs.
        seed: of what is drawn. An example draws by it and its own number: the same in each pass
            and in a run that goes on.
    """

    kind: str
    runner: BiLDModel | SingleModel
    bild: BiLDConfig | None = None
    label: str = ""
    thresholds: Thresholds | None = None
    drawn: Distribution | None = None
    seed: int = 0

    @property
    def engine(self) -> Engine:
        """What runs the model that decides the output."""
        if isinstance(self.runner, SingleModel):
            return self.runner.engine
        return self.runner.models["small" if self.kind == SMALL else "large"].engine

    @property
    def id(self) -> ArmId:
        engine = self.engine
        return ArmId(
            self.kind,
            engine.name,
            engine.precision,
            engine.compiled,
            self.label,
            self.thresholds,
            ahead=self.bild is not None and self.bild.lookahead != 0,
            small_precision=self._small_precision(engine.precision),
        )

    def _small_precision(self, precision: str) -> str | None:
        """That of a pair's small model, where it is another one."""
        if self.kind != BILD:
            return None
        assert isinstance(self.runner, BiLDModel)
        small = self.runner.models["small"].engine.precision
        return None if small == precision else small

    @property
    def built(self) -> str:
        return str(self.engine)

    def run(self, case: Case) -> Outcome:
        if isinstance(case, BatchCase):
            return self._run_batches(case)
        device = self.engine.model.device
        ids = case.input_ids.to(device)
        mask = torch.ones_like(ids)
        options = limits(case, self.engine.model)
        if self.drawn is not None:
            options |= self.drawn.settings | {"generator": stream_of(self.seed, case.number)}
        decode = self.decoder(ids, mask, **options)
        output, seconds = timed(device, decode)
        assert output.sequences is not None
        assert output.stats is not None
        return Outcome(
            output.sequences[0, 1:].tolist(),
            seconds,
            output.encoder_seconds,
            output.stats,
        )

    def _run_batches(self, case: BatchCase) -> Outcome:
        """Many sources: where one is done the next begins."""
        assert self.drawn is None, "sources without numbers, by which outputs would be drawn"
        rows = [{"input_ids": ids} for ids in case.sources]
        outputs, seconds = self._decode(case, rows, case.batch_size)
        return Outcome(
            [token for output in outputs for token in output.sequences[0, 1:].tolist()],
            seconds,
            sum(output.encoder_seconds for output in outputs),
            sum((output.stats for output in outputs), DecodeStats()),
        )

    def run_together(self, cases: Sequence[Case]) -> list[Outcome]:
        """Decode cases in one batch; of its seconds each gets an equal part."""
        (limit,) = {(case.max_new_tokens, case.exact) for case in cases}
        case = Case(cases[0].input_ids, *limit)
        rows: list[dict[str, Any]] = [{"input_ids": c.input_ids} for c in cases]
        if self.drawn is not None:
            for row, c in zip(rows, cases, strict=True):
                row["generator"] = stream_of(self.seed, c.number)
        outputs, seconds = self._decode(case, rows, len(cases))
        read = sum(output.encoder_seconds for output in outputs) / len(cases)
        return [
            Outcome(o.sequences[0, 1:].tolist(), seconds / len(cases), read, o.stats)
            for o in outputs
        ]

    def _decode(
        self, case: Case, given: Sequence[dict[str, Any]], batch_size: int
    ) -> tuple[list[Any], float]:
        """What comes of sources within a case's limits, so many at a time, and seconds."""
        device = self.engine.model.device
        sources = [{**row, "input_ids": row["input_ids"].to(device)} for row in given]
        drawn = {} if self.drawn is None else self.drawn.settings
        options = {**limits(case, self.engine.model), **PLAIN, **drawn, "batch_size": batch_size}
        runner = self.runner
        which: Writer = "small" if self.kind == SMALL else "large"

        def decode() -> list[Any]:
            if self.kind == BILD:
                assert isinstance(runner, BiLDModel)
                return list(runner.generate_many(sources, self.bild, **options))
            write = runner.greedy_many if self.drawn is None else runner.sample_many
            model: dict[str, Any] = {} if isinstance(runner, SingleModel) else {"which": which}
            return list(write(sources, **model, **options))

        return timed(device, decode)

    def decoder(self, ids: Tensor, mask: Tensor, **options: Any) -> Callable[[], BiLDOutput]:
        """The call that decodes a source, (1, S); `options` as of `BiLDModel.generate`."""
        options = {**PLAIN, **options}
        runner = self.runner
        which: Writer = "small" if self.kind == SMALL else "large"

        def call() -> BiLDOutput:
            output: Any
            if isinstance(runner, SingleModel):
                write = runner.greedy if self.drawn is None else runner.sample
                output = write(ids, mask, **options)
            elif self.kind == BILD:
                output = runner.generate(ids, mask, self.bild, **options)
            else:
                alone = runner.greedy if self.drawn is None else runner.sample
                output = alone(ids, which=which, attention_mask=mask, **options)
            return cast(BiLDOutput, output)

        return call


def own_arms(
    runner: BiLDModel | SingleModel, bild: BiLDConfig | None, *, small_alone: bool = True
) -> list[OwnArm]:
    """The large model alone, and with a pair BiLD and perhaps the small model alone."""
    arms = [OwnArm(VANILLA, runner)]
    if isinstance(runner, BiLDModel):
        arms.append(OwnArm(BILD, runner, bild))
        if small_alone:
            arms.append(OwnArm(SMALL, runner))
    return arms
