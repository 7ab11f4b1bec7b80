"""What a comparison of small models decodes, where it lies, and how several processes share it.

First come the units of the grid, which any process may do in any order: the large model alone on a
set of examples, and for a small model the row of one fallback threshold, whose rollback thresholds
share what they decode. Then the first process chooses operating points, writes down which, and all
time them together as in any evaluation (`bild.evaluation.shared`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bild.config import GridConfig
from bild.evaluation.arms import BILD, SMALL, VANILLA
from bild.evaluation.folder import is_at_work
from bild.evaluation.loop import Loop, Sample, samples
from bild.evaluation.own import OwnArm
from bild.evaluation.run import Workload
from bild.evaluation.shared import help_decode, wait_for_first
from bild.files import digest, write_json
from bild.json_files import read_json
from bild.tasks.data import LoadedData
from bild.tasks.registry import Thresholds
from bild.together import do_together
from bild.tuning.rollback import RollbackRow

SPLITS = ("validation", "test")

# By label of a small model, the thresholds of its operating points, each once.
Points = Mapping[str, Sequence[Thresholds]]


@dataclass(frozen=True)
class Unit:
    """A part of the grid: a row of a small model, or the large model alone.

    Attributes:
        split: whose examples are decoded.
        label: of the small model; None for the large model alone.
        fallback: of the row.
    """

    split: str
    label: str | None = None
    fallback: float = 0.0


class Decodings:
    """Everything that is decoded for a comparison, in its folder.

    Args:
        works: by label, on the validation examples.
        test: the test examples.
        grid: the thresholds.
        folder: of the comparison.
    """

    def __init__(
        self, works: Mapping[str, Workload], test: LoadedData, grid: GridConfig, folder: Path
    ) -> None:
        self.labels, self.grid, self.folder = list(works), grid, folder
        validation = replace(works[self.labels[0]].data, split="validation")
        self.data = {"validation": validation, "test": replace(test, split="test")}
        self.works = {
            split: {label: replace(work, data=data) for label, work in works.items()}
            for split, data in self.data.items()
        }
        self.small = {label: work.models.small["small"] for label, work in works.items()}
        fingerprints = {label: model.fingerprint for label, model in self.small.items()}
        data = [data.sha256 for data in self.data.values()]
        self.timed_in = folder / f"timed-{digest([fingerprints, data])[:12]}"

    @property
    def swept(self) -> list[str]:
        """The splits that are decoded with all of the grid."""
        return [split for split in SPLITS if self.grid.on_test or split == "validation"]

    def large_alone(self, split: str) -> Iterator[Sample]:
        """The large model's examples."""
        work = self.works[split][self.labels[0]]
        arm = OwnArm(VANILLA, work.runner)
        return samples([arm], _untimed(work), self._folder(split) / "large.jsonl")

    def row(
        self, split: str, label: str, fallback: float
    ) -> Iterator[tuple[Thresholds, Iterator[Sample]]]:
        """With rising rollback thresholds, the examples with each; to be gone through in turn."""
        work = self.works[split][label]
        loop = _untimed(work)
        folder = self._folder(split) / self.small[label].fingerprint[:12]
        folder.mkdir(exist_ok=True)
        row = RollbackRow()
        for rollback in self.grid.rollbacks:
            thresholds = Thresholds(fallback, rollback)
            arm = row.arm(work.with_thresholds(thresholds))
            path = folder / f"{fallback:g}-{rollback:g}.jsonl"
            yield thresholds, samples([arm], loop, path)

    def timed_arms(self, points: Points) -> list[OwnArm]:
        """The large model alone, each small model alone, each operating point once."""
        works = self.works["test"]
        arms = [OwnArm(VANILLA, works[self.labels[0]].runner)]
        for label, work in works.items():
            arms.append(OwnArm(SMALL, work.runner, label=label))
            for thresholds in points[label]:
                bild = work.with_thresholds(thresholds).config.bild
                arms.append(OwnArm(BILD, work.runner, bild, label, thresholds))
        return arms

    def timed_loop(self) -> Loop:
        """The test examples, as they are timed."""
        return self.works["test"][self.labels[0]].loop()

    def timed_path(self, arms: Sequence[OwnArm]) -> Path:
        """Where the examples lie that these arms were timed on."""
        return self.timed_in / digest([str(arm.id) for arm in arms])[:12] / "samples.jsonl"

    def _folder(self, split: str) -> Path:
        folder = self.folder / self.data[split].sha256[:12]
        folder.mkdir(exist_ok=True)
        return folder

    # -------------------------------------------------------------------------- shared

    def share_grid(self, own: Mapping[str, Any]) -> None:
        """Decode the grid with the other processes.

        Args:
            own: the identity of the comparison, as JSON values.

        Raises:
            BildError: as `bild.together.do_together`.
        """
        units = self._units()
        work = {
            **own,
            "small": {label: asdict(model) for label, model in self.small.items()},
            "examples": {split: data.sha256 for split, data in self.data.items()},
            "units": [[*asdict(unit).values()] for unit in units],
            "rollbacks": self.grid.rollbacks,
        }
        do_together(self.folder / "shared", work, len(units), lambda n: self._decode(units[n]))

    def forget_shared(self) -> None:
        """Who decoded what of the grid; what is missing this process decodes."""
        shutil.rmtree(self.folder / "shared", ignore_errors=True)

    def tell_points(self, points: Points) -> None:
        """Tell the other processes which arms are timed."""
        said = {label: [[*asdict(t).values()] for t in own] for label, own in points.items()}
        write_json(self._points, said)

    def forget_points(self) -> None:
        """They are timed, or a launch that was killed has told them."""
        self._points.unlink(missing_ok=True)

    def help(self, own: Mapping[str, Any], record: Path) -> None:
        """Do what another process than the first does; arguments as of `share_grid`.

        Args:
            own: as of `share_grid`.
            record: the comparison's, which the first process makes.

        Raises:
            BildError: as `share_grid`; the first process has ended.
        """
        self.share_grid(own)
        if record.exists() and not is_at_work(self.folder):  # all was done when this one came
            return
        wait_for_first(self._points, self.folder, "what to time")
        said = read_json(self._points, "the same command goes on")
        points = {label: [Thresholds(*t) for t in said[label]] for label in self.labels}
        arms = self.timed_arms(points)
        help_decode(arms, self.timed_loop(), self.timed_path(arms))

    @property
    def _points(self) -> Path:
        return self.timed_in / "points.json"

    def _units(self) -> list[Unit]:
        """All of the grid, the longest first; models that are the same are decoded once."""
        once = {model.fingerprint: label for label, model in self.small.items()}.values()
        splits = sorted(SPLITS, key=lambda split: -len(self.data[split].examples))
        rows = [
            Unit(split, label, fallback)
            for split in splits
            if split in self.swept
            for label in once
            for fallback in self.grid.fallbacks
        ]
        return [*(Unit(split) for split in splits), *rows]

    def _decode(self, unit: Unit) -> None:
        if unit.label is None:
            for _ in self.large_alone(unit.split):
                pass
        else:
            for _, found in self.row(unit.split, unit.label, unit.fallback):
                for _ in found:
                    pass


def _untimed(work: Workload) -> Loop:
    return replace(work.loop(), warmup=0, runs=1)
