"""Counts of an example: what the libraries make of it, to the last digit, and each made once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from bild.tasks import metrics
from bild.tasks.chrf import chrf, chrf_counts
from bild.tasks.rouge import ROUGE_TYPES, rouge
from bild.tasks.words import bleu_by

# Few words, some with one stem and some without any, so that subsequences are many and tied.
WORD = st.sampled_from(
    ["a", "the", "run", "runs", "running", "river", "rivers", "3.5", "Dr.", "...", "ß", "cat"]
)
LINE = st.lists(WORD, max_size=14).map(" ".join)
TEXT = st.one_of(st.lists(LINE, max_size=5).map("\n".join), st.text(max_size=40))

SCORERS = {stem: RougeScorer(list(ROUGE_TYPES), use_stemmer=stem) for stem in (False, True)}


@settings(max_examples=300)
@given(TEXT, TEXT, st.booleans())
@example("the cat the", "cat the\ncat\nthe cat", False)
@example("İ ǅ x\ny", "x\x85y x\u2028y", True)
def test_rouge_is_rouge_scores_to_the_last_digit(prediction, reference, stem):
    expected = SCORERS[stem].score(reference, prediction)
    found = rouge(prediction, reference, stem=stem)
    assert found == tuple(expected[name].fmeasure for name in ROUGE_TYPES)


def test_rouge_of_long_texts_is_rouge_scores():
    """Longer than a machine word, with the subsequences of articles."""
    drawn = random.Random(3)
    words = [f"word{n}" for n in range(30)]
    for _ in range(10):
        texts = [
            "\n".join(" ".join(drawn.choices(words, k=drawn.randint(1, 90))) for _ in range(5))
            for _ in range(2)
        ]
        expected = SCORERS[False].score(texts[1], texts[0])
        assert rouge(*texts, stem=False) == tuple(expected[name].fmeasure for name in ROUGE_TYPES)


@settings(max_examples=200)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_chrf_is_sacrebleus_to_the_last_digit(pairs):
    predictions, references = zip(*pairs, strict=True)
    counts = np.sum([chrf_counts(p, r) for p, r in pairs], axis=0)
    assert chrf(counts.tolist()) == sacrebleu.corpus_chrf(predictions, [references]).score


@settings(max_examples=100)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.sampled_from(["13a", "char"]))
def test_bleu_is_sacrebleus_to_the_last_digit(pairs, tokenize):
    predictions, references = zip(*pairs, strict=True)
    bleu = sacrebleu.BLEU(tokenize=tokenize)
    expected = bleu.corpus_score(list(predictions), [list(references)])
    found = metrics.score(bleu_by(tokenize), predictions, references)
    assert (found.value, found.signature) == (expected.score, str(bleu.get_signature()))


@pytest.mark.parametrize(
    ("metric", "name"), [("bleu", "_bleu"), ("bleu", "chrf_counts"), ("rougeL", "rouge")]
)
def test_an_example_is_counted_once_whoever_asks(monkeypatch, metric, name):
    """A score, its interval and a difference; outputs that are those of another arm, too."""
    counted = []

    def counting(*arguments, **settings):
        counted.append(arguments)
        return original(*arguments, **settings)

    if name == "_bleu":
        original = metrics._bleu("13a").corpus_score
        monkeypatch.setattr(metrics._bleu("13a"), "corpus_score", counting)
    elif name == "rouge":
        original = metrics.rouge
        monkeypatch.setattr(metrics, name, counting)
    else:
        original = chrf_counts
        fresh = metrics.lru_cache(maxsize=metrics.KEPT)(counting)
        monkeypatch.setattr(metrics, "_chrf_counts", fresh)
    references = [f"{name} reads the river number {n}." for n in range(7)]
    a, b = (
        [text.replace("reads", verb) for text in references[:-1]] + references[-1:]
        for verb in ("saw", "crossed")
    )
    for texts in (a, b):
        metrics.score(metric, texts, references)
        metrics.bootstrap(metric, texts, references, samples=3)
    metrics.paired_bootstrap(metric, a, b, references, samples=3)
    once = 13 * (2 if name == "rouge" else 1)  # 6 + 6 + the one that both have; with a stemmer
    assert len(counted) == once
    assert metrics.KEPT >= 5 * 20_000  # no arm of a large run drives out what another has made
