"""Rising rollback thresholds, decoded where they matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bild.config import BiLDConfig
from bild.evaluation.arms import BILD, ArmId, Case, Outcome
from bild.evaluation.own import OwnArm
from bild.evaluation.run import Workload


class RollbackRow:
    """Decodes with one fallback threshold and rising rollback thresholds, where these matter.

    The rules say up to which threshold an output stays the same (`AcceptanceRule.same_below`): on
    Tatoeba that spares three outputs in four, over rollbacks of 1, 2, 3 and 5.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[float, Outcome]] = {}  # source -> limit, outcome

    def arm(self, work: Workload) -> RollbackArm:
        """The pair's arm with the workload's thresholds; the rollback is at least the last one."""
        assert work.config.bild is not None
        own = OwnArm(BILD, work.runner, work.config.bild)
        return RollbackArm(own, work.config.bild, self._known)


@dataclass(frozen=True)
class RollbackArm:
    """A pair that decodes where its rollback threshold matters; it tells no seconds."""

    own: OwnArm
    bild: BiLDConfig
    known: dict[tuple[int, ...], tuple[float, Outcome]]

    @property
    def id(self) -> ArmId:
        return self.own.id

    @property
    def built(self) -> str:
        return self.own.built

    def run(self, case: Case) -> Outcome:
        source = tuple(case.input_ids[0].tolist())
        if source not in self.known or self.bild.rollback_threshold >= self.known[source][0]:
            ids = case.input_ids.to(self.own.engine.model.device)
            options = {"max_new_tokens": case.max_new_tokens, "output_trace": True}
            output = self.own.decoder(ids, torch.ones_like(ids), **options)()
            assert output.trace is not None
            assert output.sequences is not None
            distances = [t.distance for t in output.trace.tokens if t.distance is not None]
            limit = self.bild.acceptance_rule.same_below(distances)
            tokens = output.sequences[0, 1:].tolist()
            # No seconds: most outputs are looked up.
            self.known[source] = limit, Outcome(tokens, math.nan, None, output.stats)
        return self.known[source][1]
