"""The same scores in the manner of `evaluate`: batches, one by one, over several processes."""

from __future__ import annotations

import threading

import pytest
from test_metrics import GOOD, POOR, REFERENCES

from bild.errors import BildError
from bild.tasks.evaluate_metrics import BleuMetric, RougeMetric
from bild.tasks.metrics import score
from bild.tasks.rouge import ROUGE_TYPES


@pytest.mark.parametrize(
    ("metric", "make"),
    [("bleu", BleuMetric)]
    + [(name, lambda name=name, **options: RougeMetric(name, **options)) for name in ROUGE_TYPES],
)
def test_accumulation_equals_score(metric, make):
    accumulator = make()
    for start in range(0, len(GOOD), 7):
        part = slice(start, start + 7)
        accumulator.add_batch(predictions=GOOD[part], references=REFERENCES[part])
    expected = score(metric, GOOD, REFERENCES)
    assert accumulator.compute() == {
        "name": metric,
        "value": expected.value,
        "signature": expected.signature,
        **expected.extra,
    }
    again = accumulator.compute(predictions=GOOD[:5], references=REFERENCES[:5])
    assert again["value"] == score(metric, GOOD[:5], REFERENCES[:5]).value


def test_one_by_one():
    accumulator = BleuMetric()
    for prediction, reference in zip(GOOD, REFERENCES, strict=True):
        accumulator.add(prediction=prediction, reference=reference)
    assert accumulator.compute()["value"] == score("bleu", GOOD, REFERENCES).value


def test_accumulators_do_not_meet(monkeypatch, tmp_path):
    """Two at once, and nothing is written where evaluate would keep its cache."""
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "metrics"))
    one, two = BleuMetric(), BleuMetric()
    one.add_batch(predictions=GOOD, references=REFERENCES)
    two.add_batch(predictions=POOR, references=REFERENCES)
    assert one.compute()["value"] == score("bleu", GOOD, REFERENCES).value
    assert two.compute()["value"] == score("bleu", POOR, REFERENCES).value
    assert not (tmp_path / "metrics").exists()


def test_over_several_processes(tmp_path):
    """Each adds its half; the first scores all of it."""
    results = {}

    def work(process_id):
        accumulator = BleuMetric(
            num_process=2, process_id=process_id, cache_dir=str(tmp_path), experiment_id="test"
        )
        half = slice(process_id * 20, process_id * 20 + 20)
        accumulator.add_batch(predictions=GOOD[half], references=REFERENCES[half])
        results[process_id] = accumulator.compute()

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[1] is None
    assert results[0]["value"] == score("bleu", GOOD, REFERENCES).value


def test_accumulators_refuse():
    with pytest.raises(BildError, match="no predictions were added"):
        BleuMetric().compute()
    with pytest.raises(BildError, match="no predictions to score"):
        RougeMetric().compute(predictions=[], references=[])
    with pytest.raises(BildError, match="3 predictions were added with 2 references"):
        BleuMetric().add_batch(predictions=GOOD[:3], references=REFERENCES[:2])
    with pytest.raises(BildError, match="3 predictions were added with 2 references"):
        BleuMetric().compute(predictions=GOOD[:3], references=REFERENCES[:2])
    with pytest.raises(BildError, match="unknown ROUGE type 'rouge9'"):
        RougeMetric("rouge9")
    with pytest.raises(BildError, match="num_process=2 needs a folder"):
        BleuMetric(num_process=2, process_id=0)
