"""Mistakes end with exit code 2 and one sentence, lose nothing, and a stopped run goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from commands import AT_ONCE, NOWHERE, ROOT, run_command, run_here
from mirror import PAIRS, save_checkpoint, save_mt5_tokenizer, save_t5_tokenizer
from safetensors.torch import load_file, save_file
from tiny import tiny_t5
from transformers import AutoTokenizer, T5ForConditionalGeneration

from bild.errors import BildError
from bild.evaluation import run as runs
from bild.evaluation.own import OwnArm
from bild.evaluation.record import RunRecord
from bild.tasks.registry import TASKS

TASK = "iwslt2017"
SHORT = ("--max-new-tokens", 6, "--warmup", 0)


@pytest.fixture
def out(tmp_path):
    """An output folder that holds a finished run, an unfinished one and a stray file."""
    folder = tmp_path / "out"
    for name in ("20200101-000000", "20200102-000000"):
        run = folder / TASK / name
        run.mkdir(parents=True)
        (run / "identity").write_text("another run's")
        (run / "samples.jsonl").write_text('{"index": 0}\n')
    (folder / TASK / "20200101-000000" / "run.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def evaluate(mirror, monkeypatch, capsys, out):
    """`scripts/run_eval.py` with the mirror, short outputs and `out`."""
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments, to=out):
        return run_here(monkeypatch, capsys, *arguments, *SHORT, "--output-dir", to)

    return run


@pytest.fixture
def refuse(evaluate, out):
    """The sentence that a command is refused with, all that goes with it checked."""
    before = files(out)

    def run(*arguments, **options):
        done = evaluate(*arguments, **options)
        assert done.code == 2, done.err
        assert re.fullmatch(r"(.+ thread\(s\)\n)?", done.out)  # what was to run on what
        assert len(done.complaints) == 1, done.err
        sentence = done.complaints[0]
        assert sentence.startswith("error: ")
        assert "Traceback" not in done.err
        after = files(out)
        assert {name: after.get(name) for name in before} == before
        assert not any(name.endswith("run.json") for name in after.keys() - before.keys())
        return sentence

    return run


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_lines(path, *records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return path


# ------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        ((), ("task",)),
        (("iwslt2018",), ("iwslt2018", "iwslt2017", "cnndm")),
        ((TASK, "alligned"), ("alligned", "vanilla", "unaligned", "aligned")),
        ((TASK, "unaligned", "much"), ("fallback", "much")),
        ((TASK, "unaligned", "0.6", "two"), ("rollback", "two")),
        ((TASK, "unaligned", "nan"), ("fallback_threshold", "nan")),
        ((TASK, "unaligned", "0.6", "nan"), ("rollback_threshold", "nan")),
        ((TASK, "unaligned", "-0.1"), ("fallback_threshold", "-0.1")),
        ((TASK, "aligned", "0.6", "-2"), ("rollback_threshold", "-2")),
        ((TASK, "unaligned", "0.6", "2", "0"), ("samples", "at least 1", "got 0")),
        ((TASK, "unaligned", "0.6", "2", "-3"), ("samples", "at least 1", "got -3")),
        ((TASK, "unaligned", "0.6", "2", "5"), ("5 samples", "has 4")),
        ((TASK, "unaligned", "0.6", "2", "2.5"), ("max_eval_samples", "2.5")),
        ((TASK, "vanilla", "--max-eval-samples", "0"), ("samples", "at least 1", "got 0")),
        ((TASK, "vanilla", "--max-eval-samples", "99"), ("99 samples", "has 4")),
        ((TASK, "vanilla", "0", "0", "2", "--max-eval-samples", "3"), ("2 and 3",)),
        ((TASK, "unaligned", "0.6", "2", "4", "more"), ("more",)),
        ((TASK, "--variant", "mine"), ("variant", "mine", "authors, paper, verified")),
        ((TASK, "--start", "middle"), ("start", "middle", "large, small")),
        ((TASK, "--num-small-iters", "-1"), ("num_small_iters", "-1")),
        ((TASK, "--num-small-iters", "2.5"), ("num_small_iters", "2.5")),
        ((TASK, "--dtype", "int3"), ("dtype", "int3", "float32, bfloat16, float16")),
        ((TASK, "--device", "abacus"), ("device", "abacus", "cpu")),
        ((TASK, "--max-new-tokens", "0"), ("max_new_tokens", "at least 1", "got 0")),
        ((TASK, "--max-source-tokens", "-5"), ("max_source_tokens", "at least 1", "got -5")),
        ((TASK, "--warmup", "-1"), ("warmup", "at least 0", "got -1")),
        ((TASK, "--seed", "one"), ("seed", "one")),
        ((TASK, "--lagre", "x"), ("--lagre",)),
        ((TASK, "--seed", "-1"), ("seed", "at least 0", "got -1")),
        ((TASK, "--seed", str(2**32)), ("seed", "at most 4294967295")),
        ((TASK, "--threads", "0"), ("threads", "at least 1", "got 0")),
        ((TASK, "--threads", "99999999999"), ("threads", "at most 1024")),
        ((TASK, "--repeat", "0"), ("repeat", "at least 1", "got 0")),
        ((TASK, "--max-source-tokens", "9" * 20), ("max_source_tokens", "at most 1000000")),
        ((TASK, "--large", "x" * 300), ("large", "is too long for a name")),
        ((TASK, "--data-file", "a/" + "x" * 300), ("data-file", "is too long for a name")),
        ((TASK, "--record", "x" * 300 + ".json"), ("record", "is too long for a name")),
        ((TASK, "--large", "a\0b"), ("large", "holds a zero byte")),
        ((TASK, "--tokenizer", "a\udcff"), ("tokenizer", "is not UTF-8")),
        (("api", "aligned"), ("api has no aligned small model", "unaligned")),
    ],
    ids=lambda value: " ".join(map(str, value)) or "nothing",
)
def test_a_wrong_argument_is_named(mirror, monkeypatch, capsys, out, arguments, needles):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    before = files(out)
    done = run_here(monkeypatch, capsys, *arguments, *(("--output-dir", out) if arguments else ()))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for needle in needles:
        assert needle in done.err
    assert files(out) == before


@pytest.mark.parametrize("threshold", ["nan", "-1"])
def test_vanilla_refuses_thresholds_that_make_no_sense_too(refuse, threshold):
    assert threshold in refuse(TASK, "vanilla", threshold)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refuse):
    assert "'cuda'" in refuse(TASK, "vanilla", "--device", "cuda")


@pytest.mark.parametrize("fallback", ["0", "1.5", "inf"])
def test_the_ends_of_the_ranges_are_legal(evaluate, fallback):
    done = evaluate(TASK, "unaligned", fallback, "inf", "1").require_success()
    assert done.record().config.bild.rollback_threshold == float("inf")


# ------------------------------------------------------------------------------ data


GOOD = {"de": "Guten Tag.", "en": "Good day."}


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        (None, ("does not exist",)),
        ("", ("holds no examples",)),
        ("\n\n", ("holds no examples",)),
        ('{"de": "a", "en": "b"}\n{"de": "a", "en": \n', ("line 2", "not valid JSON")),
        ('{"de": "a", "en": "b"}\n\n{"de": "a", "en": "b"}\n', ("line 2", "empty")),
        ('{"de": "a", "en": "b"}\n["a", "b"]\n', ("line 2", "list")),
        ('{"de": "a", "en": "b"}\n' * 2 + '{"de": "a"}\n', ("line 3", "'en'")),
        ('{"de": null, "en": "b"}\n', ("line 1", "None", "'de'")),
        (b'{"de": "\xff", "en": "b"}\n', ("line 1", "UTF-8")),
    ],
    ids=["missing", "empty", "blank", "json", "gap", "list", "key", "null", "bytes"],
)
def test_a_bad_data_file_is_named_with_its_line(refuse, tmp_path, content, needles):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    sentence = refuse(TASK, "unaligned", "--data-file", path)
    for needle in (str(path), *needles):
        assert needle in sentence


@pytest.mark.parametrize("task", [TASK, "xsum"])
def test_an_empty_source_is_decoded_like_any_other(evaluate, tmp_path, task):
    keys = (TASKS[task].source_key, TASKS[task].target_key)
    rows = [dict(zip(keys, pair, strict=True)) for pair in (("", "Nothing."), ("  ", ""), PAIRS[0])]
    path = write_lines(tmp_path / "data.jsonl", *rows)
    done = evaluate(task, "unaligned", "--data-file", path).require_success()
    assert [line["source"] for line in done.samples()] == ["", "  ", PAIRS[0][0]]
    assert done.samples()[0]["source_tokens"] >= 1
    for line in done.samples():
        assert all(len(arm["tokens"]) > 1 for arm in line["arms"].values())
    assert done.record().data.truncated_sources == 0


def test_long_sources_are_cut_and_counted(evaluate, mirror, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(mirror.models / "google/mt5-small")
    exact = "der " * 9  # nine words, one token each, and the end of sequence
    length = len(tokenizer(exact)["input_ids"])
    sources = [exact, "Rosen", PAIRS[0][0] * 5, exact + "der"]
    path = write_lines(tmp_path / "data.jsonl", *({"de": s, "en": "x"} for s in sources))
    arguments = (TASK, "unaligned", "--data-file", path, "--max-source-tokens", length)
    done = evaluate(*arguments).require_success()
    assert [line["truncated"] for line in done.samples()] == [False, False, True, True]
    counts = [line["source_tokens"] for line in done.samples()]
    assert counts == [length, len(tokenizer("Rosen")["input_ids"]), length, length]
    assert done.record().data.truncated_sources == 2
    # What is decoded is the source cut, its end of sequence kept.
    cut = tokenizer.decode(tokenizer(sources[3])["input_ids"][: length - 1])
    write_lines(path, {"de": cut, "en": "x"})
    again = evaluate(*arguments).require_success()
    assert again.outcome() == done.outcome()[3:]


def test_a_source_beyond_the_tasks_own_limit_is_cut_to_it(evaluate, tmp_path):
    long = {"document": "bridge " * 1500, "summary": "A bridge."}
    short = {"document": "bridge", "summary": "A bridge."}
    path = write_lines(tmp_path / "data.jsonl", long, short)
    done = evaluate("xsum", "vanilla", "--data-file", path).require_success()
    assert [line["source_tokens"] == 1024 for line in done.samples()] == [True, False]
    assert done.record().data.truncated_sources == 1


# ------------------------------------------------------------------------------ models


def pair_member(folder, vocab=160, **options):
    return save_checkpoint(tiny_t5(3, vocab=vocab, kind="mt5", **options), folder)


def test_a_checkpoint_without_weights(refuse, mirror, tmp_path):
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "hollow")
    (folder / "model.safetensors").unlink()
    sentence = refuse(TASK, "unaligned", "--large", folder)
    assert str(folder) in sentence
    assert "no weights" in sentence


def test_a_small_checkpoint_without_weights_in_the_mirror(refuse, mirror, tmp_path, monkeypatch):
    models = shutil.copytree(mirror.models, tmp_path / "models")
    (models / TASKS[TASK].small / "model.safetensors").unlink()
    monkeypatch.setenv("BILD_MODELS_ROOT", str(models))
    sentence = refuse(TASK, "unaligned")
    assert TASKS[TASK].small in sentence
    assert "no weights" in sentence


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x08" + bytes(7) + b"{}      "])
def test_damaged_weights(refuse, mirror, tmp_path, content):
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(content)
    assert str(folder) in refuse(TASK, "vanilla", "--large", folder)


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_damaged_binary_weights(refuse, mirror, tmp_path, monkeypatch, content):
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "damaged")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "a pickle" in refuse(TASK, "vanilla", "--large", folder)
    monkeypatch.setenv("BILD_ALLOW_PICKLE", "0")  # what the flag sets is undone
    said = refuse(TASK, "vanilla", "--large", folder, "--allow-pickle")
    assert "cannot load the model" in said
    assert str(folder) in said


def test_binary_weights_that_run_code_are_refused(refuse, mirror, tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = shutil.copytree(mirror.model(TASK), tmp_path / "hostile")
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Payload()}, folder / "pytorch_model.bin")
    assert "a pickle" in refuse(TASK, "vanilla", "--large", folder)
    monkeypatch.setenv("BILD_ALLOW_PICKLE", "0")
    assert str(folder) in refuse(TASK, "vanilla", "--large", folder, "--allow-pickle")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_lacks_a_tensor(refuse, mirror, tmp_path):
    """transformers would fill it with random numbers."""
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sentence = refuse(TASK, "vanilla", "--large", folder)
    assert str(folder) in sentence
    assert "decoder.final_layer_norm.weight" in sentence


def test_weights_of_another_shape(refuse, mirror, tmp_path):
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "bent")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_ff": 48}))
    assert str(folder) in refuse(TASK, "vanilla", "--large", folder)


def test_a_configuration_that_is_not_json(refuse, mirror, tmp_path):
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "garbled")
    (folder / "config.json").write_text("{")
    assert str(folder) in refuse(TASK, "vanilla", "--large", folder)


def test_a_model_without_an_encoder(refuse, mirror, tmp_path):
    folder = shutil.copytree(mirror.model(TASK), tmp_path / "gpt")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    assert str(folder) in refuse(TASK, "vanilla", "--large", folder)


def test_vocabularies_that_differ(refuse, tmp_path):
    small = pair_member(tmp_path / "small", vocab=160 + 128)
    sentence = refuse(TASK, "unaligned", "--small", small)
    assert "vocabularies differ: 160 tokens (large) and 288 (small)" in sentence


def test_special_tokens_that_differ(refuse, tmp_path):
    model = tiny_t5(3, vocab=160, kind="mt5")
    model.config.eos_token_id = model.generation_config.eos_token_id = 2
    small = save_checkpoint(model, tmp_path / "small")
    sentence = refuse(TASK, "unaligned", "--small", small)
    assert "eos_token_id differ: 1 (large) and 2 (small)" in sentence


def test_tokenizers_that_differ(refuse, mirror, tmp_path):
    """Both SEBIS checkpoints bring their tokenizer; here one of them brings another."""
    small = shutil.copytree(mirror.model("api", "small"), tmp_path / "small")
    (small / "tokenizer.json").unlink()
    save_t5_tokenizer(small, vocab_size=158)
    sentence = refuse("api", "unaligned", "--small", small)
    assert "tokenizers differ: 260 tokens (large) and 258 (small)" in sentence


@pytest.mark.parametrize("mode", ["vanilla", "unaligned"])
def test_a_tokenizer_bigger_than_the_models(refuse, tmp_path, mode):
    save_mt5_tokenizer(tmp_path / "tokenizer", vocab_size=161)
    sentence = refuse(TASK, mode, "--tokenizer", tmp_path / "tokenizer")
    assert "161 tokens" in sentence
    assert "only 160" in sentence
    assert "--tokenizer" in sentence


def test_a_folder_without_a_tokenizer(refuse, mirror):
    sentence = refuse(TASK, "vanilla", "--tokenizer", mirror.model(TASK))
    assert "no tokenizer" in sentence


@pytest.mark.parametrize("role", ["large", "small"])
@pytest.mark.parametrize("more", [(), ("--num-small-iters", 0)], ids=["", "no drafts"])
def test_nan_weights_name_the_model(refuse, mirror, tmp_path, role, more):
    model = T5ForConditionalGeneration.from_pretrained(mirror.model("xsum", role))
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.q.weight[0, 0] = float("nan")
    folder = save_checkpoint(model, tmp_path / "nan")
    sentence = refuse("xsum", "unaligned", f"--{role}", folder, *more)
    assert f"the {role} model's scores are NaN" in sentence


# ------------------------------------------------------------------------------ where results go


def test_an_output_folder_below_a_file(refuse, out):
    sentence = refuse(TASK, "vanilla", to=out / "notes.txt" / "results")
    assert str(out / "notes.txt" / "results") in sentence
    assert "--output-dir" in sentence


def test_an_output_folder_that_is_a_file(refuse, out):
    assert str(out / "notes.txt") in refuse(TASK, "vanilla", to=out / "notes.txt")


def test_a_file_where_the_tasks_folder_should_be(refuse, out):
    (out / "wmt2014").write_text("mine as well")
    assert str(out / "wmt2014") in refuse("wmt2014", "vanilla")
    assert (out / "wmt2014").read_text() == "mine as well"


def test_a_record_file_that_cannot_be_written(refuse, out):
    assert str(out / TASK) in refuse(TASK, "vanilla", "--record", out / TASK)
    sentence = refuse(TASK, "vanilla", "--record", out / "notes.txt" / "run.json")
    assert str(out / "notes.txt") in sentence


@pytest.mark.parametrize("kind", ["link", "pipe", "dangling"])
def test_a_record_is_never_written_over_what_is_no_file(refuse, tmp_path, kind):
    path, mine = tmp_path / "record.json", tmp_path / "mine.txt"
    mine.write_text("mine")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    sentence = refuse(TASK, "vanilla", "--record", path)
    assert f"--record {str(path)!r} is a" in sentence
    assert mine.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_record_from_a_tree_that_is_not_clean_is_refused(refuse, monkeypatch, tmp_path):
    changes = ["bild/policy.py", "bild/new.py"]
    monkeypatch.setattr("bild.evaluation.environment.changed_files", lambda: changes)
    sentence = refuse(TASK, "vanilla", "--record", tmp_path / "run.json")
    assert "bild/policy.py, bild/new.py differ from it" in sentence
    assert "leave --record out" in sentence
    monkeypatch.setattr("bild.evaluation.environment.changed_files", lambda: None)
    sentence = refuse(TASK, "vanilla", "--record", tmp_path / "run.json")
    assert "does not run in a git checkout of its own" in sentence


def test_a_full_disk_is_one_sentence_and_costs_no_example(evaluate, monkeypatch, out):
    """The disk is full after two lines, then for run.json; then there is room again."""
    write, left = os.write, iter(range(2))

    def full(file, content):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        stopped = evaluate(TASK, "unaligned")
    assert stopped.code == 2
    assert "No space left on device" in stopped.complaints[-1]
    assert "Traceback" not in stopped.err
    with monkeypatch.context() as patch:
        patch.setattr("bild.evaluation.record.write_json", no_room)
        stopped = evaluate(TASK, "unaligned")
    assert stopped.code == 2
    assert "No space left on device" in stopped.complaints[-1]
    done = evaluate(TASK, "unaligned").require_success()
    assert done.record().env.resumed_after == 4
    assert [line["index"] for line in done.samples()] == [0, 1, 2, 3]


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_mirror_that_is_not_a_folder(refuse, monkeypatch, out):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(out / "notes.txt"))
    sentence = refuse(TASK, "vanilla")
    assert "BILD_MODELS_ROOT" in sentence
    assert str(out / "notes.txt") in sentence


# ------------------------------------------------------------------------------ stopped runs


def stop_after(patch, examples, error):
    """The BiLD arm raises where it should decode its next example."""
    run, left = OwnArm.run, iter(range(examples))

    def stopping(arm, case):
        if arm.kind == "bild" and next(left, None) is None:
            raise error
        return run(arm, case)

    patch.setattr(OwnArm, "run", stopping)


@pytest.fixture
def resume(evaluate, monkeypatch, tmp_path):
    """Stop a run after k examples and start it again: (an unbroken run, the folder, the end)."""

    def run(k, *arguments, between=lambda folder: None):
        whole = evaluate(*arguments, to=tmp_path / "whole").require_success()
        with monkeypatch.context() as patch:
            stop_after(patch, k, KeyboardInterrupt())
            stopped = evaluate(*arguments, to=tmp_path / "parts")
        assert stopped.code == 130
        assert "goes on from here" in stopped.err
        (folder,) = (tmp_path / "parts" / arguments[0]).iterdir()
        assert not (folder / "run.json").exists()
        assert (folder / "samples.jsonl").read_text().count("\n") == k
        between(folder)
        again = evaluate(*arguments, to=tmp_path / "parts").require_success()
        return whole, folder, again

    return run


@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_stopped_run_goes_on_where_it_was(resume, k):
    whole, folder, again = resume(k, TASK, "unaligned")
    assert again.path.parent == folder
    assert again.record().env.resumed_after == k
    assert again.outcome() == whole.outcome()
    assert [line["index"] for line in again.samples()] == [0, 1, 2, 3]
    mine, theirs = again.record(), whole.record()
    assert mine.data == theirs.data
    for ours, others in zip(mine.arms, theirs.arms, strict=True):
        assert (ours.stats, ours.quality) == (others.stats, others.quality)


@pytest.mark.parametrize(
    "torn", [b'{"index": 2, "source": "K\xc3\xb6n', b'{"index": 2, "source": "K\xc3', b"\0" * 50]
)
def test_a_torn_last_line_is_done_again(resume, torn):
    def tear(folder):
        with (folder / "samples.jsonl").open("ab") as log:
            log.write(torn)

    whole, folder, again = resume(2, TASK, "unaligned", between=tear)
    assert again.path.parent == folder
    assert again.record().env.resumed_after == 2
    assert again.outcome() == whole.outcome()


def swap(lines):
    return [lines[1], lines[0], lines[2]]


def edited(number, **fields):
    return lambda lines: [
        json.dumps({**json.loads(line), **fields}) if i == number else line
        for i, line in enumerate(lines)
    ]


@pytest.mark.parametrize(
    ("damage", "needles"),
    [
        (lambda lines: [lines[0], lines[1][:40], lines[2]], ("line 2", "JSONDecodeError")),
        (lambda lines: [*lines, ""], ("line 4",)),
        (lambda lines: [*lines, "{}"], ("line 4", "'arms'")),
        (lambda lines: [lines[0], lines[0], *lines[1:]], ("line 2", "doubled")),
        (lambda lines: [lines[0], lines[2]], ("line 2", "missing")),
        (swap, ("line 1", "swapped")),
        (lambda lines: [*lines, *[lines[-1]] * 2], ("line 4", "example 2", "example 3")),
        (edited(1, source="Something else."), ("line 2", "another source")),
        (edited(1, reference="Something else."), ("line 2", "another reference")),
        (edited(0, arms={}), ("line 1", "lacks the arm")),
        (edited(0, arms=None), ("line 1", "'arms'")),
        (edited(0, extra=1), ("line 1", "'extra'")),
        (edited(2, run=1), ("line 3", "pass 1")),
        (edited(0, index="9" * 5000), ("line 1",)),
    ],
    ids=[
        "cut", "empty", "object", "doubled", "missing", "swapped", "tail", "source", "reference",
        "no arms", "null arms", "field", "pass", "text",
    ],
)  # fmt: skip
def test_lines_that_are_not_of_this_run_are_refused_by_number(refuse, evaluate, monkeypatch, out,
                                                              damage, needles):  # fmt: skip
    """Nothing is scored that was not decoded here, and nothing is thrown away."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt())
        assert evaluate(TASK, "unaligned").code == 130
    (path,) = (p for p in out.glob(f"{TASK}/*/samples.jsonl") if "2020" not in str(p))
    lines = damage(path.read_text().splitlines())
    path.write_text("".join(line + "\n" for line in lines))
    before = path.read_bytes()
    sentence = refuse(TASK, "unaligned")
    for needle in (str(path), *needles):
        assert needle in sentence
    assert path.read_bytes() == before


def test_a_number_that_python_does_not_read_is_refused_by_line(refuse, evaluate, monkeypatch, out):
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        assert evaluate(TASK, "unaligned").code == 130
    (path,) = (p for p in out.glob(f"{TASK}/*/samples.jsonl") if "2020" not in str(p))
    path.write_text(path.read_text().replace('"index": 0', f'"index": {"9" * 5000}'))
    assert "line 1" in refuse(TASK, "unaligned")


def test_a_whole_line_without_its_end_is_kept(resume):
    def tear(folder):
        path = folder / "samples.jsonl"
        path.write_text(path.read_text().removesuffix("\n"))

    whole, _, again = resume(2, TASK, "unaligned", between=tear)
    assert again.record().env.resumed_after == 2
    assert again.outcome() == whole.outcome()


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_a_run_with_odd_line_separators_goes_on(resume, tmp_path, separator):
    rows = [{"de": f"Der Hund{separator}bellt.", "en": "A dog\tbarks."}, *[GOOD] * 3]
    path = write_lines(tmp_path / "data.jsonl", *rows)
    whole, _, again = resume(3, TASK, "unaligned", "--data-file", path)
    assert again.record().env.resumed_after == 3
    assert again.outcome() == whole.outcome()
    assert again.samples()[0]["source"] == rows[0]["de"]


@pytest.mark.parametrize(
    "change",
    [("--seed", 1), ("--max-eval-samples", 3), ("--dtype", "bfloat16"), ("--variant", "paper")],
    ids=lambda c: c[0],
)
def test_a_run_with_other_settings_starts_anew(evaluate, monkeypatch, change):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        assert evaluate(TASK, "unaligned").code == 130
    done = evaluate(TASK, "unaligned", *change).require_success()
    assert done.record().env.resumed_after == 0


def test_a_run_with_other_weights_or_data_starts_anew(evaluate, monkeypatch, mirror, tmp_path):
    large = shutil.copytree(mirror.model(TASK), tmp_path / "large")
    data = write_lines(tmp_path / "data.jsonl", *({"de": s, "en": t} for s, t in PAIRS[:3]))
    command = (TASK, "unaligned", "--large", large, "--data-file", data)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        assert evaluate(*command).code == 130
    shutil.copy(mirror.model("wmt2014") / "model.safetensors", large)
    assert evaluate(*command).require_success().record().env.resumed_after == 0
    shutil.copy(mirror.model(TASK) / "model.safetensors", large)
    write_lines(data, *({"de": s, "en": t} for s, t in PAIRS[1:4]))
    assert evaluate(*command).require_success().record().env.resumed_after == 0
    write_lines(data, *({"de": s, "en": t} for s, t in PAIRS[:3]))
    assert evaluate(*command).require_success().record().env.resumed_after == 2


def test_a_run_on_other_threads_begins_anew_and_says_so(evaluate, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        assert evaluate(TASK, "unaligned", "--threads", 1).code == 130
    done = evaluate(TASK, "unaligned", "--threads", 2).require_success()
    assert done.record().env.resumed_after == 0
    assert done.record().env.threads == 2
    said = [c for c in done.complaints if "was begun with" in c]
    assert len(said) == 1
    assert "was begun with threads 1, not 2: it stays as it is, and a new run begins" in said[0]
    back = evaluate(TASK, "unaligned", "--threads", 1).require_success()
    assert back.record().env.resumed_after == 2
    assert back.complaints == []


@pytest.mark.parametrize("change", ["commit", "code"])
def test_a_run_of_other_code_begins_anew_and_says_so(evaluate, monkeypatch, change):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        assert evaluate(TASK, "unaligned").code == 130
    here = runs.environment
    monkeypatch.setattr(runs, "environment", lambda *a: replace(here(*a), **{change: "f" * 40}))
    done = evaluate(TASK, "unaligned").require_success()
    assert done.record().env.resumed_after == 0
    assert f"was begun with {change} " in done.err


def test_what_was_killed_before_its_report_is_reported_and_not_decoded_again(
    evaluate, monkeypatch, tmp_path
):
    """Killed after run.json, before the copy of --record."""
    copy = tmp_path / "copy.json"
    with monkeypatch.context() as patch:
        patch.setattr("bild.show.tables.run_table", interrupted)
        assert evaluate(TASK, "unaligned", "--record", copy).code == 130
    with monkeypatch.context() as patch:
        stop_after(patch, 0, AssertionError("decoded again"))
        done = evaluate(TASK, "unaligned", "--record", copy).require_success()
    assert RunRecord.load(copy) == done.record()
    assert done.record().env.resumed_after == 0
    assert "\nBiLD " in done.out
    other = evaluate(TASK, "unaligned").require_success()
    assert other.path != done.path  # it was reported now


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_passes_over_the_examples_are_lines_of_one_run(evaluate):
    done = evaluate(TASK, "unaligned", "--repeat", 2).require_success()
    assert [(s["run"], s["index"]) for s in done.samples()] == [
        (run, index) for run in (0, 1) for index in range(4)
    ]
    record = done.record()
    assert (record.data.samples, record.timing.runs) == (4, 2)
    assert "intervals cover 2 runs and their examples" in done.out
    one = evaluate(TASK, "unaligned").require_success().record()
    for ours, theirs in zip(record.arms, one.arms, strict=True):
        assert (ours.stats, ours.quality) == (theirs.stats, theirs.quality)


def test_data_that_would_steer_a_terminal_is_shown_as_text(evaluate, tmp_path):
    hostile = "Tag.\x1b]0;owned\x07\x1b[2J"
    path = write_lines(tmp_path / "data.jsonl", {"de": hostile, "en": hostile})
    done = evaluate(TASK, "unaligned", "--data-file", path).require_success()
    assert "\x1b" not in done.out
    assert "\\x1b]0;owned" in done.out
    assert done.samples()[0]["source"] == hostile


def test_what_runs_on_what_is_said_before_it_runs(evaluate):
    first = evaluate(TASK, "unaligned", "--threads", 1).require_success().out.splitlines()[0]
    assert f"{TASKS[TASK].large} / {TASKS[TASK].small} on cpu, engine fast, float32" in first
    assert first.endswith(", 1 thread(s)")


def test_a_failure_of_the_program_is_not_hidden(evaluate, monkeypatch, out):
    """Only mistakes of the user are one sentence; a bug shows where it is."""
    stop_after(monkeypatch, 2, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        evaluate(TASK, "unaligned")
    (kept,) = (p for p in (out / TASK).iterdir() if not p.name.startswith("2020"))
    assert (kept / "samples.jsonl").read_text().count("\n") == 2


def test_nan_after_some_examples_keeps_them(refuse, evaluate, monkeypatch, out):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, BildError("the large model's scores are NaN at output position 3"))
        assert "NaN" in refuse(TASK, "unaligned")
    done = evaluate(TASK, "unaligned").require_success()
    assert done.record().env.resumed_after == 2


# ------------------------------------------------------------------------------ as a process


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [(("sideways",), "sideways"), (("unaligned", "-0.5"), "fallback_threshold"), ((), NOWHERE)],
    ids=["mode", "threshold", "no network"],
)
def test_a_process_ends_at_once_with_one_line(tmp_path, arguments, needle):
    done = run_command(
        [sys.executable, ROOT / "scripts" / "run_eval.py", TASK, *arguments], tmp_path, {}
    )
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert needle in done.err
    assert done.seconds < AT_ONCE


# ------------------------------------------------------------------------------ no memory


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_where_memory_is_short_the_settings_are_named_and_examples_are_kept(
    evaluate, monkeypatch, tmp_path, error
):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, error)
        done = evaluate(TASK, "unaligned", to=tmp_path / "runs")
    assert done.code == 2
    (sentence,) = done.complaints
    assert sentence.startswith("error: no memory is left (")
    assert "more" not in sentence.partition(")")[0]
    assert "; lower --batch-size, --max-source-tokens, --max-new-tokens; take --dtype" in sentence
    assert " or --device cpu; what is finished is kept" in sentence
    assert "Traceback" not in done.err
    (folder,) = (tmp_path / "runs" / TASK).iterdir()
    assert (folder / "samples.jsonl").read_text().count("\n") == 2
    again = evaluate(TASK, "unaligned", to=tmp_path / "runs").require_success()
    assert again.path.parent == folder
    assert again.record().env.resumed_after == 2
