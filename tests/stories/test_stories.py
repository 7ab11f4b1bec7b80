"""Five users, each from zero: an empty home, no network, the commands as they would be typed.

The models are tiny; a command is a process of its own wherever a user would start one.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys

import pytest
from commands import ROOT, environment, run_command
from mirror import examples
from toy import PAIRS, save_pair

from bild import BiLDConfig, BiLDModel

BILD = (sys.executable, "-m", "bild")
TEXTS = [source for source, _ in PAIRS[:6]]
RULES = BiLDConfig(0.6, 2.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What somebody has fine-tuned: two folders with a tokenizer each."""
    folder = tmp_path_factory.mktemp("mine")
    return save_pair(folder)


@pytest.fixture(scope="module")
def written(pair):
    """The outputs of `TEXTS` by `BiLDModel`."""
    model = BiLDModel.from_pretrained(pair / "large", pair / "small")
    outputs = model(TEXTS, RULES, max_new_tokens=8)
    assert len(set(outputs)) > 3
    return outputs


@pytest.fixture
def user(tmp_path):
    """Types commands in an empty home; whatever happens, no stack trace is seen."""

    def types(*command, code=0, **more):
        done = run_command(command, tmp_path, more)
        assert "Traceback" not in done.out + done.err, done.err
        assert done.code == code, f"{done.out}\n{done.err}"
        return done

    return types


def as_lines(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------ a newcomer


def test_a_newcomer_sees_the_shipped_pair_at_work_and_asks_it_something(user, tmp_path):
    assert "bild generate" in user(*BILD, "--help").out
    demo = user("bash", ROOT / "run_demo.sh", "--max-eval-samples", "2", "--warmup", "0")
    assert demo.err == ""
    record = demo.record()
    assert record.data.samples == 2
    assert {arm.id.kind for arm in record.arms} == {"vanilla", "bild", "small"}
    assert "BiLD" in demo.out
    assert demo.path.is_relative_to(tmp_path / "out" / "demo")

    asked = user(*BILD, "trace", "Wir warten auf den Zug.")
    assert "Wir warten auf den Zug." in asked.out
    wrong = user(*BILD, "evaluate", "demo", code=2)
    assert wrong.err.startswith("error: ")
    assert "eval" in wrong.err


# ------------------------------------------------------------------------------ a pair and a file


def test_a_file_of_texts_is_decoded_by_a_pair_of_ones_own(user, pair, written, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]) + "\n")
    models = ("--large", pair / "large", "--small", pair / "small", "--max-new-tokens", 8)
    command = (*BILD, "generate", "in.txt", "-o", "out.txt", *models)
    done = user(*command)
    assert (done.out, done.err) == ("", "")
    lines = (tmp_path / "out.txt").read_text().split("\n")
    assert lines == [written[0], "", *written[1:], ""]

    other = user(*command, "--max-new-tokens", 7, code=2)
    assert "--overwrite" in other.err
    missing = user(*BILD, "generate", "inn.txt", "-o", "other.txt", *models, code=2)
    assert "inn.txt" in missing.err
    assert not (tmp_path / "other.txt").exists()


def test_a_model_that_was_fine_tuned_a_moment_ago_is_one_of_the_pair(user, pair, tmp_path):
    for name, some in (("train", PAIRS[:8]), ("validation", PAIRS[8:10])):
        as_lines(tmp_path / f"{name}.jsonl", [{"de": s, "en": t} for s, t in some])
    files = ("--train-file", "train.jsonl", "--validation-file", "validation.jsonl")
    start = ("finetune", "--init-from", pair / "small", "--max-steps", 2)
    user(*BILD, "finetune", *start, *files, "--output-dir", "tuned")
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    models = ("--large", pair / "large", "--small", "tuned", "--max-new-tokens", 8)
    done = user(*BILD, "generate", "in.txt", "-o", "out.txt", *models)
    assert done.err == ""
    assert len((tmp_path / "out.txt").read_text().splitlines()) == len(TEXTS)


# ------------------------------------------------------------------------------ a published row


def test_a_published_row_is_run_from_mirrored_folders(user, mirror):
    without = user("bash", ROOT / "run_iwslt2017.sh", "aligned", "0.9", "3", code=2)
    assert "BILD_MODELS_ROOT" in without.err
    done = user(
        *("bash", ROOT / "run_iwslt2017.sh", "aligned", "0.9", "3", "--max-new-tokens", "8"),
        **mirror.environment,
    )
    assert done.err == ""
    record = done.record()
    assert record.config.mode == "aligned"
    assert (record.config.bild.fallback_threshold, record.config.bild.rollback_threshold) == (
        0.9,
        3,
    )
    assert record.config.bild.variant == "authors"
    samples = done.samples()
    assert [(s["source"], s["reference"]) for s in samples] == [*examples("iwslt2017")]
    assert "published" in done.out


# ------------------------------------------------------------------------------ data of one's own


def test_a_data_set_of_ones_own_is_scored_by_flags_alone(user, pair, tmp_path):
    rows = [{"frage": source, "antwort": target} for source, target in PAIRS[:4]]
    as_lines(tmp_path / "mine.jsonl", rows)
    command = (
        *(*BILD, "eval", "demo", "--data-file", "mine.jsonl", "--large", pair / "large"),
        *("--small", pair / "small", "--max-new-tokens", 8, "--warmup", 0),
    )
    unkeyed = user(*command, code=2)
    assert "no key 'de' (its keys: antwort, frage)" in unkeyed.err
    keys = ("--source-key", "frage", "--target-key", "antwort", "--metric", "rougeL")
    done = user(*command, *keys, "--prefix", "frage: ")
    assert done.err == ""
    record = done.record()
    assert (record.metric, record.data.samples) == ("rougeL", 4)
    assert record.config.prefix == "frage: "
    assert [(s["source"], s["reference"]) for s in done.samples()] == PAIRS[:4]
    assert "rougeL" in done.out or "ROUGE-L" in done.out


# ------------------------------------------------------------------------------ a service


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        content = json.dumps(body)
        connection.request("POST", path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_another_program_asks_a_service(pair, written, tmp_path):
    flags = ("--port", 0, "--large", pair / "large", "--small", pair / "small")
    limits = ("--max-new-tokens", 8)
    process = subprocess.Popen(
        [*map(str, (*BILD, "serve", *flags, *limits))],
        cwd=tmp_path, env=environment(tmp_path, {}), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())[1])
        status, content = post(port, "/generate", {"text": TEXTS})
        assert status == 200
        assert [output["text"] for output in json.loads(content)["outputs"]] == written
        status, content = post(port, "/stream", {"text": TEXTS[0]})
        assert status == 200
        assert "event: pieces" in content
        assert "event: done" in content
        status, content = post(port, "/generate", {"texts": TEXTS})
        assert 400 <= status < 500
        assert "Traceback" not in content
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in out + err
        assert process.returncode in (143, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
