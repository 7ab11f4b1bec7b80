"""The metrics in the manner of `evaluate`: add batches, in one process or several, then compute.

For evaluation loops of one's own that speak to `evaluate`; nothing in this package does. Local
classes, since `evaluate.load` fetches its code from the hub at run time.

    metric = RougeMetric("rougeLsum")
    for predictions, references in batches:
        metric.add_batch(predictions=predictions, references=references)
    metric.compute()["value"]
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from typing import Any

import datasets
import evaluate

from bild.errors import BildError
from bild.tasks.metrics import score
from bild.tasks.rouge import ROUGE_TYPES


class _CorpusMetric(evaluate.Metric):  # evaluate is not typed
    """Accumulates predictions and references, and scores all of them at once.

    In one process everything stays in memory, and the folder and lock that `evaluate` insists on
    are temporary: parallel runs do not meet, and a read-only home will do. Several processes must
    share a `cache_dir`.
    """

    metric = ""
    description = ""

    def __init__(self, **options: Any) -> None:
        if "cache_dir" not in options:
            processes = options.get("num_process", 1)
            if processes != 1:
                raise BildError(
                    f"num_process={processes!r} needs a folder that all processes share; "
                    "give cache_dir"
                )
            self._folder = tempfile.TemporaryDirectory(prefix="bild-metric-")
            options["cache_dir"] = self._folder.name
            options.setdefault("keep_in_memory", True)
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def add_batch(
        self,
        *,
        predictions: list[str] | None = None,
        references: list[str] | None = None,
        **others: Any,
    ) -> None:
        """Add texts with one reference each.

        Raises:
            BildError: not as many references as predictions.
        """
        sizes = [0 if texts is None else len(texts) for texts in (predictions, references)]
        if sizes[0] != sizes[1]:
            raise BildError(
                f"{sizes[0]} predictions were added with {sizes[1]} references; "
                "give one reference for each"
            )
        # By name: evaluate copies this function, and `super()` does not survive that.
        evaluate.Metric.add_batch(self, predictions=predictions, references=references, **others)

    def _finalize(self) -> None:
        if self.writer is None:
            raise BildError("no predictions were added to the metric; add some before compute()")
        super()._finalize()

    def _compute(
        self, predictions: list[str], references: list[str], **_: object
    ) -> dict[str, Any]:
        """`Score` as a dictionary, its extra values beside the others."""
        fields = asdict(score(self.metric, predictions, references))
        return {**fields.pop("extra"), **fields}


class BleuMetric(_CorpusMetric):
    """sacrebleu's BLEU and chrF2, 0 to 100."""

    metric = "bleu"
    description = "BLEU and chrF2 of a corpus with one reference each (sacrebleu)"


class RougeMetric(_CorpusMetric):
    """rouge_score's F-measures, 0 to 100.

    Args:
        rouge_type: the one given as "value"; the others stand beside it.
        **options: of `evaluate.Metric`.

    Raises:
        BildError: an unknown type, or several processes without a `cache_dir`.
    """

    description = "Mean ROUGE F-measures of a corpus with one reference each (rouge_score)"

    def __init__(self, rouge_type: str = "rougeLsum", **options: Any) -> None:
        if rouge_type not in ROUGE_TYPES:
            raise BildError(
                f"unknown ROUGE type {rouge_type!r}; choose one of {', '.join(ROUGE_TYPES)}"
            )
        self.metric = rouge_type
        super().__init__(**options)
