"""Scores equal those of the libraries called directly; intervals are what they claim."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import punkt
import pytest
import sacrebleu
from mirror import ARTICLES
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from rouge_score import rouge_scorer, scoring

import bild.tasks.metrics
from bild.checkpoints.names import REPOSITORY_ROOT
from bild.errors import BildError
from bild.tasks.metrics import (
    METRICS,
    Score,
    bootstrap,
    paired_bootstrap,
    score,
    split_sentences,
)
from bild.tasks.rouge import ROUGE_TYPES

TEXT = """the a small large model house river reads writes running runner over under near Dr. Smith
went home He was tired They said that it will rain tomorrow 3.5 1,000 percent of people"""


def sentences(seed, count=40):
    """Random texts of one to three sentences of English words."""
    rng = random.Random(seed)
    return [
        " ".join(
            " ".join(rng.choices(TEXT.split(), k=rng.randint(3, 12))).capitalize()
            + rng.choice(".!?")
            for _ in range(rng.randint(1, 3))
        )
        for _ in range(count)
    ]


def damaged(texts, share, seed):
    """The texts with this share of their words gone."""
    rng = random.Random(seed)
    return [" ".join(w for w in text.split() if rng.random() >= share) for text in texts]


REFERENCES = sentences(0)
GOOD = damaged(REFERENCES, 0.15, 1)
POOR = damaged(REFERENCES, 0.3, 2)


# ------------------------------------------------------------------------------ scores


def test_bleu_equals_sacrebleu():
    result = score("bleu", GOOD, REFERENCES)
    assert result.value == sacrebleu.corpus_bleu(GOOD, [REFERENCES]).score
    assert result.extra == {"chrF2": sacrebleu.corpus_chrf(GOOD, [REFERENCES]).score}
    assert 20 < result.value < 95
    bleu = sacrebleu.BLEU()
    bleu.corpus_score(GOOD, [REFERENCES])
    assert result.signature == str(bleu.get_signature())
    assert "tok:13a|smooth:exp" in result.signature


@pytest.mark.parametrize("metric", ROUGE_TYPES)
def test_rouge_equals_rouge_score(metric):
    # Unrelated texts too: only there do the two sides of ROUGE-Lsum differ.
    predictions = GOOD[:20] + sentences(1)[20:]
    result = score(metric, predictions, REFERENCES)
    for stem, suffix in ((False, ""), (True, "_stem")):
        scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=stem)
        total = dict.fromkeys(ROUGE_TYPES, 0.0)
        for prediction, reference in zip(predictions, REFERENCES, strict=True):
            one = scorer.score(
                "\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction))
            )
            for name in ROUGE_TYPES:
                total[name] += one[name].fmeasure
        for name in ROUGE_TYPES:
            expected = 100 * total[name] / len(GOOD)
            assert result.extra[name + suffix] == pytest.approx(expected, abs=1e-9)
    assert result.value == result.extra[metric]
    assert result.name == metric
    assert result.signature.startswith(f"{metric}|")
    assert "stem:no" in result.signature


def test_rouge_agrees_with_the_published_aggregation():
    """rouge_score's own aggregator, the median of bootstrapped means, made the published values."""
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    aggregator = scoring.BootstrapAggregator()
    np.random.seed(0)
    for prediction, reference in zip(GOOD, REFERENCES, strict=True):
        aggregator.add_scores(scorer.score(reference, prediction))
    published = 100 * aggregator.aggregate()["rougeL"].mid.fmeasure
    assert score("rougeL", GOOD, REFERENCES).value == pytest.approx(published, abs=0.3)


def test_stemming_is_only_in_the_extra_values():
    result = score("rouge1", ["the runners were running"], ["the runner was running"])
    assert result.value == pytest.approx(50)
    assert result.extra["rouge1_stem"] == pytest.approx(75)


def test_rouge_lsum_is_by_sentence():
    """Two sentences in the other order: the longest common subsequence has one, Lsum both."""
    reference = "The cat sleeps soundly. Dogs bark at night."
    prediction = "Dogs bark at night. The cat sleeps soundly."
    result = score("rougeLsum", [prediction], [reference])
    assert result.value == pytest.approx(100)
    assert result.extra["rougeL"] == pytest.approx(50)
    assert "split:punkt-" in result.signature
    assert "split:" not in score("rougeL", [prediction], [reference]).signature
    lines = reference.replace(". ", " .\n")  # CNN/DailyMail: one sentence a line
    assert score("rougeLsum", [prediction], [lines]).value == pytest.approx(100)


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_and_hopeless(metric):
    assert score(metric, REFERENCES, REFERENCES).value == pytest.approx(100)
    assert score(metric, ["zzz zzz zzz zzz"] * len(REFERENCES), REFERENCES).value < 1


@pytest.mark.parametrize("metric", METRICS)
def test_empty_texts_score_zero(metric):
    assert score(metric, ["", ""], ["a house", ""]).value == 0
    low, high = bootstrap(metric, ["", ""], ["a house", ""], samples=5)
    assert (low, high) == (0, 0)


def test_a_score_is_frozen():
    result = score("bleu", GOOD, REFERENCES)
    assert isinstance(result, Score)
    with pytest.raises(AttributeError):
        result.value = 100.0


# ------------------------------------------------------------------------------ sentences


# As NLTK 3.10 with its English Punkt model splits them.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith went home. He was tired.", ["Dr. Smith went home.", "He was tired."]),
        (
            "The U.S. economy grew 2.5 percent, Mr. Bush said. Analysts agreed!",
            ["The U.S. economy grew 2.5 percent, Mr. Bush said.", "Analysts agreed!"],
        ),
        (
            'He asked: "Why?" Nobody knew. (Not even she.) So it ended.',
            ['He asked: "Why?"', "Nobody knew.", "(Not even she.)", "So it ended."],
        ),
        ("It rose to $3.5 bn. in Jan. and fell.", ["It rose to $3.5 bn.", "in Jan. and fell."]),
        ("no punctuation at all", ["no punctuation at all"]),
        ("first line .\nSecond line .", ["first line .", "Second line ."]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


def test_sentences_are_nltks():
    """NLTK itself, with the parameters that are in the wheel: it would fetch them at run time."""
    theirs = PunktParameters()
    ours = punkt.load_model("english")
    for name in ("abbrev_types", "collocations", "sent_starters"):
        setattr(theirs, name, set(getattr(ours, name)))
    theirs.ortho_context.update(ours.ortho_context)
    nltk = PunktSentenceTokenizer(theirs)
    hard = (
        "Dr. Smith went to Washington D.C. on Jan. 5. He met Mr. Jones at 3 p.m. They talked.",
        '"Why?" she asked. No. 5 was left... Nobody knew! (Not even J. K. R. Brown.) "It is over."',
        "The U.S. Senate voted, i.e. it did. A list: 1. one 2. two.\nThe U.N. E.g. this. etc. End",
        "Prof. Ames, Ph.D., of St. Mary's paid $3.5 bn. in Oct. 1999.He left ? Yes, perhaps",
    )
    for text in (*hard, *(text for pair in ARTICLES for text in pair), *REFERENCES):
        assert split_sentences(text) == nltk.tokenize(text), text


# ------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize("metric", METRICS)
def test_bootstrap_equals_scoring_each_resampled_corpus(metric):
    """Against the slow way: draw examples, score the corpus they make."""
    rng = np.random.default_rng(7)
    values = []
    for _ in range(30):
        drawn = rng.integers(len(GOOD), size=len(GOOD))
        corpus = [[texts[i] for i in drawn] for texts in (GOOD, REFERENCES)]
        values.append(score(metric, *corpus).value)
    expected = np.percentile(values, (2.5, 97.5))
    assert bootstrap(metric, GOOD, REFERENCES, samples=30, seed=7) == pytest.approx(
        tuple(expected), abs=1e-9
    )


@pytest.mark.parametrize("metric", METRICS)
def test_bootstrap_surrounds_the_score(metric):
    low, high = bootstrap(metric, GOOD, REFERENCES, samples=200)
    assert low < score(metric, GOOD, REFERENCES).value < high
    assert (low, high) == bootstrap(metric, GOOD, REFERENCES, samples=200)
    assert (low, high) != bootstrap(metric, GOOD, REFERENCES, samples=200, seed=1)


def test_more_examples_narrow_the_interval():
    few = bootstrap("rougeL", GOOD[:10], REFERENCES[:10], samples=200)
    many = bootstrap("rougeL", GOOD * 10, REFERENCES * 10, samples=200)
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_one_example_has_no_spread():
    low, high = bootstrap("bleu", GOOD[:1], REFERENCES[:1], samples=20)
    assert low == high == pytest.approx(score("bleu", GOOD[:1], REFERENCES[:1]).value)


@pytest.mark.parametrize("metric", METRICS)
def test_paired_difference(metric):
    difference, low, high = paired_bootstrap(metric, GOOD, POOR, REFERENCES, samples=200)
    exact = score(metric, GOOD, REFERENCES).value - score(metric, POOR, REFERENCES).value
    assert difference == pytest.approx(exact)
    assert 0 < low < difference < high
    mirrored = paired_bootstrap(metric, POOR, GOOD, REFERENCES, samples=200)
    assert mirrored == pytest.approx((-difference, -high, -low))


def test_equal_systems_do_not_differ():
    assert paired_bootstrap("bleu", GOOD, list(GOOD), REFERENCES, samples=50) == (0, 0, 0)


def test_pairing_beats_two_separate_intervals():
    almost = damaged(GOOD, 0.02, 3)
    _, low, high = paired_bootstrap("rougeL", GOOD, almost, REFERENCES, samples=200)
    alone = bootstrap("rougeL", GOOD, REFERENCES, samples=200)
    assert high - low < (alone[1] - alone[0]) / 2


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blue", GOOD, REFERENCES), "unknown metric 'blue'; choose one of bleu, rouge1"),
        (("bleu", [], []), "no predictions to score"),
        (("rougeL", [], REFERENCES), "no predictions to score"),
        (("bleu", GOOD[:3], REFERENCES[:2]), "3 predictions cannot be scored against 2 references"),
        (("bleu", "a text", ["a text"]), "predictions must be a list of texts, got the text"),
        (("bleu", ["a", None], ["a", "b"]), r"predictions\[1\] must be a text, got None"),
        (("rougeL", ["a"], [["a"]]), r"references\[0\] must be a text, got \['a'\]"),
    ],
)
def test_refused(arguments, message):
    metric, predictions, references = arguments
    with pytest.raises(BildError, match=message):
        score(metric, predictions, references)
    with pytest.raises(BildError, match=message):
        bootstrap(metric, predictions, references)
    with pytest.raises(BildError, match=message):
        paired_bootstrap(metric, predictions, predictions, references)


def test_second_system_is_checked_too():
    with pytest.raises(BildError, match="39 predictions cannot be scored against 40"):
        paired_bootstrap("bleu", GOOD, GOOD[1:], REFERENCES)


@pytest.mark.parametrize("samples", [0, -5, 1.5, True])
def test_bad_number_of_samples(samples):
    with pytest.raises(BildError, match=f"must be at least 1, got {samples}"):
        bootstrap("bleu", GOOD, REFERENCES, samples=samples)


def test_scoring_does_not_import_evaluate_nor_touch_the_network(tmp_path):
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from bild.tasks.metrics import score\n"
        "print(score('rougeLsum', ['A cat. A dog.'], ['A cat. A dog.']).value)\n"
        "print(score('bleu', ['A cat and a dog.'], ['A cat and a dog.']).value)\n"
        "print('evaluate' in sys.modules)\n"
    )
    env = {"PYTHONPATH": str(REPOSITORY_ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    rouge, bleu, imported = run.stdout.split()
    assert (float(rouge), imported) == (100, "False")
    assert float(bleu) == pytest.approx(100)


def test_no_such_name():
    with pytest.raises(AttributeError, match="has no attribute 'MeteorMetric'"):
        _ = bild.tasks.metrics.MeteorMetric
