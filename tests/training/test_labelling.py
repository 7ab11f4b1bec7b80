"""Calibration sets: what is written, and that neither a kill nor sharding changes it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from commands import run_here
from toy import PAIRS, save_data, save_model, save_tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bild import BildError
from bild.files import sole_user
from bild.tasks.data import checksum, load_file
from bild.training import labelling
from bild.training.config import LabelConfig
from bild.training.labelling import card_path, label

CONFIG = LabelConfig(prefix="Der ", batch_size=4, chunk_size=16, max_new_tokens=9)  # 3 chunks


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    return save_model(root / "large", save_tokenizer(root / "tokenizer"), seed=9)


@pytest.fixture
def data(tmp_path):
    return save_data(tmp_path / "train.jsonl")


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that were generated; `batches.limit` is where the process dies."""

    class Batches(list):
        limit = None

    done = Batches()
    generate = labelling.generate_tokens

    def counted(model, tokenizer, sources, **options):
        if len(done) == done.limit:
            raise KeyboardInterrupt
        done.append(len(sources))
        return generate(model, tokenizer, sources, **options)

    monkeypatch.setattr(labelling, "generate_tokens", counted)
    return done


@pytest.mark.parametrize("beams", [1, 3])
def test_each_target_is_what_the_model_writes_for_its_source(large, data, tmp_path, beams):
    config = replace(CONFIG, num_beams=beams)
    card = label(str(large), data, tmp_path / "out.jsonl", config, progress=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(large)
    tokenizer = AutoTokenizer.from_pretrained(large)
    expected, tokens, unfinished = [], 0, 0
    for source, _ in PAIRS:  # one at a time, so without padding
        inputs = tokenizer("Der " + source, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, num_beams=beams, max_new_tokens=9)[0, 1:]
        expected.append((source, tokenizer.decode(output, skip_special_tokens=True)))
        tokens += len(output)
        unfinished += 1 not in output
    assert len({text for _, text in expected}) > 5
    made = load_file(tmp_path / "out.jsonl", "de", "en", "train")
    assert [(e.source, e.target) for e in made.examples] == expected
    assert card["sha256"] == made.sha256 == checksum(made.examples)
    assert card["counts"] == {
        "examples": 40,
        "output_tokens": tokens,
        "truncated_sources": 0,
        "unfinished_outputs": unfinished,
        "empty_outputs": sum(not text for _, text in expected),
        "equal_to_the_reference": 0,
    }
    assert card["source"] == {"file": "train.jsonl", "examples": 40, "sha256": data.sha256}
    assert card["settings"]["num_beams"] == beams
    assert card == json.loads(card_path(tmp_path / "out.jsonl").read_text())


def test_a_killed_labelling_goes_on_and_gives_the_same_file(large, data, tmp_path, batches):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    label(str(large), data, whole, CONFIG, progress=False)
    assert batches == [4] * 10

    batches.clear()
    batches.limit = 7  # in the second chunk
    with pytest.raises(KeyboardInterrupt):
        label(str(large), data, killed, CONFIG, progress=False)
    assert not killed.exists()

    batches.clear()
    batches.limit = None
    label(str(large), data, killed, CONFIG, progress=False)
    assert batches == [4] * 6  # the second chunk again, and the third
    assert killed.read_bytes() == whole.read_bytes()
    cards = [json.loads(card_path(path).read_text()) for path in (whole, killed)]
    assert {**cards[0], "env": None} == {**cards[1], "env": None}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "killed.card.json", "killed.jsonl", "train.jsonl", "whole.card.json", "whole.jsonl",
    ]  # fmt: skip

    batches.clear()
    label(str(large), data, killed, CONFIG, progress=False)
    assert batches == []  # it is finished


@pytest.mark.parametrize("kind", ["cut in half", "emptied", "a line less", "another text"])
def test_a_damaged_calibration_set_is_not_taken_for_a_finished_one(
    large, data, tmp_path, batches, kind
):
    output = tmp_path / "out.jsonl"
    label(str(large), data, output, CONFIG, progress=False)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(
        {
            "cut in half": whole[: len(whole) // 2],
            "emptied": b"",
            "a line less": b"".join(lines[:-1]),
            "another text": b"".join([*lines[:-1], lines[0]]),
        }[kind]
    )
    with pytest.raises(BildError, match=r"out\.jsonl.*remove it"):
        label(str(large), data, output, CONFIG, progress=False)
    output.unlink()
    batches.clear()
    label(str(large), data, output, CONFIG, progress=False)
    assert len(batches) == 10
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "needle"),
    [
        (lambda text: text[: len(text) // 2], "lines, not 4"),
        (lambda text: "", "holds 0 lines, not 4"),
        (lambda text: text.replace("tokens", "token"), "line 1"),
        (lambda text: text.replace("true", "3").replace("false", "3"), "line 1"),
        (lambda text: text + "{}\n", "line 5"),
    ],
    ids=["cut", "emptied", "field", "type", "more"],
)
def test_a_damaged_chunk_is_refused_by_name(large, data, tmp_path, batches, damage, needle):
    output = tmp_path / "out.jsonl"
    config = replace(CONFIG, chunk_size=4)
    batches.limit = 2
    with pytest.raises(KeyboardInterrupt):
        label(str(large), data, output, config, progress=False)
    batches.limit = None
    part = tmp_path / "out.jsonl.parts" / "000000.jsonl"
    part.write_text(damage(part.read_text()))
    with pytest.raises(BildError, match=rf"000000\.jsonl.*{needle}"):
        label(str(large), data, output, config, progress=False)
    part.unlink()
    label(str(large), data, output, config, progress=False)
    assert output.read_text().count("\n") == len(data.examples)


def test_a_damaged_card_is_refused_by_name(large, data, tmp_path):
    output = tmp_path / "out.jsonl"
    label(str(large), data, output, CONFIG, progress=False)
    card_path(output).write_text("{")
    with pytest.raises(BildError, match=r"out\.card\.json, line 1 is not JSON"):
        label(str(large), data, output, CONFIG, progress=False)


def test_two_labellings_do_not_share_an_output(large, data, tmp_path):
    output, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    parts.mkdir()
    with (
        sole_user(parts, "labelling"),
        pytest.raises(BildError, match=r"another labelling is at work in '.*out\.jsonl\.parts'"),
    ):
        label(str(large), data, output, CONFIG, progress=False)
    label(str(large), data, output, CONFIG, progress=False)
    parts.mkdir()  # as a process leaves it that is stopped after its last step
    label(str(large), data, output, CONFIG, progress=False)
    assert not parts.exists()


def test_other_work_is_not_mixed_in_or_written_over(large, data, tmp_path, batches):
    output = tmp_path / "out.jsonl"
    batches.limit = 5
    with pytest.raises(KeyboardInterrupt):
        label(str(large), data, output, CONFIG, progress=False)
    other = replace(CONFIG, num_beams=2)
    with pytest.raises(BildError, match=r"settings num_beams is 1, not 2"):
        label(str(large), data, output, other, progress=False)
    batches.limit = None
    label(str(large), data, output, CONFIG, progress=False)
    with pytest.raises(BildError, match=r"settings num_beams is 1, not 2"):
        label(str(large), data, output, other, progress=False)
    fewer = save_data(tmp_path / "train.jsonl", PAIRS[:9])
    with pytest.raises(BildError, match=r"source examples is 40, not 9"):
        label(str(large), fewer, output, CONFIG, progress=False)
    with pytest.raises(BildError, match=r"train\.card\.json"):
        label(str(large), data, tmp_path / "train.jsonl", CONFIG, progress=False)
    assert load_file(tmp_path / "train.jsonl", "de", "en", "train") == replace(fewer, split="train")


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (("--batch-size", "0"), ("batch_size", "at least 1", "got 0")),
        (("--num-beams", "-1"), ("num_beams", "got -1")),
        (("--source-key", "fr"), ("no key 'fr'", "line 1")),
        (("--output", "labels.txt"), ("--output", "labels.txt", ".jsonl")),
        (("--large", "nowhere/at/all"), ("nowhere/at/all",)),
    ],
)
def test_mistakes_are_named_in_one_sentence(
    large, data, tmp_path, monkeypatch, capsys, arguments, needles
):
    given = {
        "--large": large,
        "--data-file": tmp_path / "train.jsonl",
        "--output": tmp_path / "out.jsonl",
    }
    given |= dict([arguments])
    monkeypatch.chdir(tmp_path)
    flat = [part for pair in given.items() for part in pair]
    done = run_here(monkeypatch, capsys, *flat, name="make_calibration")
    assert done.code == 2
    assert len(done.complaints) == 1
    assert all(needle in done.complaints[0] for needle in needles), done.err


def test_what_was_written_is_told_as_it_is_asked_for(large, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.jsonl"
    command = ("--large", large, "--data-file", tmp_path / "train.jsonl", "--output", output)
    command += ("--max-new-tokens", 4)
    told = [
        run_here(monkeypatch, capsys, *command, *flags, name="make_calibration").require_success()
        for flags in ((), ("--json",), ("--quiet",))
    ]
    facts = json.loads(told[1].out)
    assert facts["examples"] == len(PAIRS)
    assert told[0].out.splitlines() == [f"{name}: {value}" for name, value in facts.items()]
    assert told[2].out == f"{output}\n"
