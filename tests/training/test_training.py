"""A training small enough to watch: killed, damaged, gone on with; and what its figures mean."""

import json
import shutil
import tracemalloc
import zipfile
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree

import pytest
import torch
from commands import run_here
from safetensors.torch import load_file, save_file
from toy import PAIRS, save_data, save_tokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from bild import BildError
from bild.files import sole_user
from bild.tasks import metrics
from bild.tasks.reading import Example
from bild.training import trainer
from bild.training.batches import BLOCK, training_set
from bild.training.config import TrainingJob
from bild.training.presets import PRESETS
from bild.training.resuming import last_checkpoint, remove_half_deleted
from bild.training.tokenizer import train_tokenizer
from bild.training.trainer import arguments, train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    trained = AutoTokenizer.from_pretrained(folder)
    assert (trained.pad_token_id, trained.eos_token_id, trained.unk_token_id) == (0, 1, 2)
    assert len(trained) == 48
    assert trained.decode(trained("Der Mond ist neu.")["input_ids"][:-1]) == "Der Mond ist neu."
    return folder


TINY = replace(
    PRESETS["demo-small"],
    architecture={
        "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1,
        "num_decoder_layers": 1,
    },
    batch_size=8,
    warmup_steps=2,
)  # fmt: skip
SIX_STEPS = TINY.for_steps(6)


@pytest.fixture
def job(tokenizer, tmp_path):
    """A training of six steps; `job(folder, field=..., ...)` changes fields."""
    data = save_data(tmp_path / "train.jsonl", PAIRS[:32])
    validation = save_data(tmp_path / "validation.jsonl", PAIRS[32:])

    def make(folder, preset=SIX_STEPS, **fields):
        fields = {"validation": validation, "save_steps": 2, "bf16": False, **fields}
        return TrainingJob(
            preset, data, tokenizer=str(tokenizer), output_dir=tmp_path / folder, **fields
        )

    return make


@pytest.fixture
def steps(monkeypatch):
    """The training steps that were done; `steps.limit` is where the process dies."""

    class Steps(list):
        limit = None

    done = Steps()
    step = Seq2SeqTrainer.training_step

    def counted(self, *args, **kwargs):
        if len(done) == done.limit:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "training_step", counted)
    return done


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(job, steps):
    whole = train(job("whole"))
    steps.clear()
    steps.limit = 5
    killed = job("killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    assert not (killed.output_dir / "model.safetensors").exists()
    half_written = killed.output_dir / "checkpoints" / "checkpoint-5"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"half")
    written_again = half_written.with_name("checkpoint-6")
    written_again.mkdir()
    (written_again / ".tmpGGhilh").write_bytes(b"half")  # as safetensors calls it until it is whole

    steps.clear()
    steps.limit = None
    resumed = train(killed)
    assert not list(killed.output_dir.rglob(".tmp*"))
    assert len(steps) == 2  # steps 5 and 6, after the checkpoint of step 4
    assert (whole["resumed_from_step"], resumed["resumed_from_step"]) == (0, 4)
    assert resumed["validation_loss"] == pytest.approx(whole["validation_loss"], abs=1e-5)
    ours, theirs = (load_file(j.output_dir / "model.safetensors") for j in (killed, job("whole")))
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name

    steps.clear()
    assert train(killed) == json.loads(json.dumps(resumed))
    assert steps == []  # it is finished


DAMAGES = (
    "weights cut off", "weights gone", "state of nothing", "state of no object", "optimizer gone",
    "optimizer changed",
)  # fmt: skip


def damage(checkpoint, kind):
    weights, state = checkpoint / "model.safetensors", checkpoint / "trainer_state.json"
    optimizer = checkpoint / "optimizer.pt"
    if kind == "weights cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "weights gone":
        weights.unlink()
    elif kind == "state of nothing":
        state.write_text("{}")
    elif kind == "state of no object":
        state.write_text("[]")
    elif kind == "optimizer gone":  # the trainer would begin it anew without a word
        optimizer.unlink()
    else:
        with zipfile.ZipFile(optimizer) as archive:
            largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
        content = optimizer.read_bytes()
        at = content.index(largest) + len(largest) // 2
        optimizer.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(job, steps, capsys):
    whole = job("whole")
    train(whole)
    steps.clear()
    steps.limit = 5
    killed = job("killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    for kind in DAMAGES:
        copy = job(kind)
        shutil.copytree(killed.output_dir, copy.output_dir)
        damage(copy.output_dir / "checkpoints" / "checkpoint-4", kind)
        steps.clear()
        steps.limit = None
        capsys.readouterr()
        facts = train(copy)
        assert (facts["resumed_from_step"], len(steps)) == (2, 4), kind
        assert "checkpoint-4 is not whole" in capsys.readouterr().err
        ours, theirs = (load_file(j.output_dir / "model.safetensors") for j in (copy, whole))
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs), kind


def test_another_training_does_not_go_on_from_these_checkpoints(job, steps):
    steps.limit = 3
    with pytest.raises(KeyboardInterrupt):
        train(job("model"))
    with pytest.raises(BildError, match=r"its seed is 0, not 1"):
        train(job("model", seed=1))
    with pytest.raises(BildError, match=r"recipe max_steps is 6, not 7"):
        train(job("model", preset=TINY.for_steps(7)))


def test_bars_are_drawn_for_those_who_watch(job, monkeypatch):
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        assert arguments(job("model")).disable_tqdm != terminal


def test_killed_between_saving_and_deleting_it_keeps_no_checkpoint_more(job, monkeypatch):
    whole, killed = job("whole", preset=SIX_STEPS), job("killed", preset=SIX_STEPS)
    train(whole)

    def stop_at_the_last(**_):
        if (killed.checkpoints / "checkpoint-6").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.rotate_checkpoints", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert len(checkpoints_of(killed)) > len(checkpoints_of(whole))
    train(killed)
    assert checkpoints_of(killed) == checkpoints_of(whole)


def checkpoints_of(made):
    return sorted(path.name for path in made.checkpoints.glob("checkpoint-*"))


def test_two_trainings_do_not_share_a_folder(job):
    """A second process is refused in a sentence; when the first is done, it finds its work."""
    shared = job("shared")
    shared.checkpoints.mkdir(parents=True)
    with (
        sole_user(shared.checkpoints, "training"),
        pytest.raises(BildError, match=r"another training is at work in '.*checkpoints'"),
    ):
        train(shared)
    facts = train(shared)
    assert train(shared) == json.loads(json.dumps(facts))


def test_what_a_killed_training_left_half_written_is_removed(job):
    made = job("made")
    left = made.output_dir / ".unfinished-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    train(made)
    assert not any(p.name.startswith(".unfinished-") for p in made.output_dir.iterdir())


def test_the_validation_loss_is_per_token_of_the_whole_set(job, tmp_path):
    """A batch of long lines and one of short: the mean of their means is another number."""
    short = [("Der Hund ist alt.", "The dog is old.")] * 64
    long = [("Ja.", 4 * "train moon river ")] * 64
    validation = save_data(tmp_path / "mixed.jsonl", short + long)
    preset = replace(TINY.for_steps(10), concatenate=False)
    facts = train(job("made", preset=preset, validation=validation))
    folder = job("made").output_dir
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    means, counts = [], []
    for source, target in (short[0], long[0]):
        inputs = tokenizer(source, return_tensors="pt")
        labels = tokenizer(text_target=target, return_tensors="pt").input_ids
        with torch.no_grad():
            means.append(model(**inputs, labels=labels).loss.item())
        counts.append(labels.numel())
    expected = sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts)
    assert abs(expected - sum(means) / 2) > 0.1
    assert facts["validation_loss"] == pytest.approx(expected, abs=1e-4)


def test_finetuning_starts_from_a_checkpoint_and_saves_half_precision(job):
    base = job("base", preset=TINY.for_steps(2))
    train(base)
    preset = replace(PRESETS["finetune"].for_steps(1), batch_size=8, learning_rate=1e-6)
    tuned = job("tuned", preset=preset, init_from=str(base.output_dir), save_dtype="float16")
    facts = train(tuned)
    before = AutoModelForSeq2SeqLM.from_pretrained(base.output_dir, dtype=torch.float32)
    after = AutoModelForSeq2SeqLM.from_pretrained(tuned.output_dir, dtype="auto")
    assert after.dtype == torch.float16
    assert facts["parameters"] == before.num_parameters()
    assert facts["init_from"]["id"].endswith("/base")
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.allclose(a, b.float(), atol=5e-3), name


def test_the_best_checkpoint_is_kept_not_the_last(job, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 3.0])  # after steps 2, 4, 6; of the model that is kept
    monkeypatch.setattr(trainer, "scorer", lambda *_: lambda _: {"bleu": next(scores)})
    by_metric = job("best", preset=replace(SIX_STEPS, best_by="bleu"))
    facts = train(by_metric)
    assert (facts["best_step"], facts["validation_bleu"]) == (4, 3.0)
    kept = load_file(by_metric.output_dir / "model.safetensors")
    best, last = (
        load_file(by_metric.output_dir / "checkpoints" / f"checkpoint-{n}" / "model.safetensors")
        for n in (4, 6)
    )
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_a_training_killed_before_it_was_saved_is_saved_by_the_next(job, steps, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 3.0, 3.0])
    monkeypatch.setattr(trainer, "scorer", lambda *_: lambda _: {"bleu": next(scores)})
    killed = job("killed", preset=replace(SIX_STEPS, best_by="bleu"))

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    steps.clear()
    facts = train(killed)
    assert steps == []
    assert (facts["best_step"], facts["validation_bleu"]) == (4, 3.0)
    kept, best = (
        load_file(killed.output_dir / name / "model.safetensors")
        for name in ("", "checkpoints/checkpoint-4")
    )
    assert all(torch.equal(kept[name], best[name]) for name in kept)


def test_the_validation_score_is_that_of_the_models_own_outputs(job):
    preset = replace(TINY.for_steps(40), concatenate=False, best_by="rougeL", max_new_tokens=12)
    scored = job("scored", preset=preset, save_steps=40, prefix="Der ")
    facts = train(scored)
    model = AutoModelForSeq2SeqLM.from_pretrained(scored.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(scored.output_dir)
    texts = []
    for source, _ in PAIRS[32:]:
        inputs = tokenizer("Der " + source, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0]
        texts.append(tokenizer.decode(output, skip_special_tokens=True))
    references = [target for _, target in PAIRS[32:]]
    expected = metrics.score("rougeL", texts, references).value
    assert len(set(texts)) > 1
    assert expected > 10
    assert facts["validation_rougeL"] == pytest.approx(expected)


def test_the_folder_tells_what_the_model_is(job):
    made = job("made", preset=replace(TINY.for_steps(4), best_by="bleu", max_new_tokens=4))
    facts = train(made)
    card = (made.output_dir / "README.md").read_text(encoding="utf-8")
    for data in (made.train, made.validation):
        assert f"{data.origin}, {len(data.examples)} examples, sha256 `{data.sha256}`" in card
    assert f"{facts['validation_loss']:.4f}" in card
    assert "nothing: T5, 1 + 1 layers, width 16" in card
    curve = ElementTree.parse(made.output_dir / "learning_curve.svg").getroot()
    texts = [element.text for element in curve.iter() if element.tag.endswith("text")]
    assert {"step", "loss (nats per token)", "validation", "validation bleu"} <= set(texts)
    log = json.loads((made.output_dir / "training.json").read_text())["log"]
    assert [entry["step"] for entry in log if "eval_bleu" in entry][:2] == [2, 4]
    assert not any(p.name.startswith(".") for p in made.output_dir.iterdir())


def test_many_lines_are_tokenized_in_little_memory(job):
    """A pass after the other, a block at a time: never all tokens of a training in Python lists."""
    asked = []

    class Tokenizer:
        def __call__(self, texts=None, *, text_target=None, **_):
            given = texts if text_target is None else text_target
            asked.append(len(given))
            return {"input_ids": [list(range(1000, 1040)) for _ in given]}

    few = job("few")
    examples = tuple(Example(f"Haus {i}", f"house {i}") for i in range(4000))
    many = replace(few, train=replace(few.train, examples=examples))
    preset = replace(TINY.for_steps(20_000 // TINY.batch_size), concatenate=True)
    tracemalloc.start()
    try:
        one_pass, lines = training_set(replace(many, preset=preset), Tokenizer())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(lines) == preset.max_steps * TINY.batch_size * TINY.accumulation >= 20_000
    assert one_pass < 4000
    assert lines[7]["labels"] == list(range(1000, 1040))
    assert max(asked) <= BLOCK
    assert peak < 20_000_000  # as lists alone the tokens would take 50 MB


def test_each_pass_uses_every_example_once_in_batches_of_similar_lengths(job):
    preset = replace(TINY.for_steps(8), concatenate=False)  # 64 lines: two passes over 32
    longer = job("longer", preset=preset)
    tokenizer = AutoTokenizer.from_pretrained(longer.tokenizer)
    one_pass, lines = training_set(longer, tokenizer)
    assert one_pass == 32
    sources = [tokenizer.decode(ids, skip_special_tokens=True) for ids in lines["input_ids"]]
    assert sorted(sources) == sorted([source for source, _ in PAIRS[:32]] * 2)
    lengths = [len(i) + len(t) for i, t in zip(lines["input_ids"], lines["labels"], strict=True)]
    spread = [max(lengths[i : i + 8]) - min(lengths[i : i + 8]) for i in range(0, 64, 8)]
    assert sum(spread) < 0.6 * 8 * (max(lengths) - min(lengths))


def test_accumulated_batches_weigh_each_token_alike(job):
    """Two batches of four a step train as one of eight does."""
    one = replace(SIX_STEPS, concatenate=False)
    two = replace(one, batch_size=4, accumulation=2)
    facts = [train(job(f"x{p.accumulation}", preset=p)) for p in (one, two)]
    assert facts[0]["train_loss"] == pytest.approx(facts[1]["train_loss"], abs=1e-4)
    ours, theirs = (load_file(job(n).output_dir / "model.safetensors") for n in ("x1", "x2"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_a_batch_that_cannot_be_shared_is_refused(job, monkeypatch):
    monkeypatch.setattr(Seq2SeqTrainingArguments, "world_size", 3)
    with pytest.raises(BildError, match="batch of 8 cannot be shared by 3 processes"):
        train(job("model"))


def test_the_scripts_train_a_tokenizer_and_a_model_on_other_keys(tmp_path, monkeypatch, capsys):
    for name, pairs in (("train", PAIRS[:32]), ("validation", PAIRS[32:])):
        lines = (json.dumps({"description": s, "api": t}) for s, t in pairs)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    keys = ("--source-key", "description", "--target-key", "api")
    run = partial(run_here, monkeypatch, capsys, *keys)
    run(
        "--data-file", tmp_path / "train.jsonl", "--output-dir", tmp_path / "tokenizer",
        "--vocab-size", 44, name="train_tokenizer",
    ).require_success()  # fmt: skip
    monkeypatch.setitem(PRESETS, "api-small", replace(TINY, concatenate=False))
    done = run(
        "api-small", "--train-file", tmp_path / "train.jsonl", "--max-steps", 2,
        "--validation-file", tmp_path / "validation.jsonl", "--best-by", "rougeL",
        "--tokenizer", tmp_path / "tokenizer", "--output-dir", tmp_path / "model",
        name="finetune",
    ).require_success()  # fmt: skip
    assert "\nbest_step: 2\n" in done.out
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert (model.config.vocab_size, model.dtype) == (44, torch.float16)


def test_where_memory_is_short_settings_are_named_and_the_checkpoints_are_kept(
    tokenizer, tmp_path, monkeypatch, capsys
):
    for name, pairs in (("train", PAIRS[:32]), ("validation", PAIRS[32:])):
        save_data(tmp_path / f"{name}.jsonl", pairs)
    monkeypatch.setitem(PRESETS, "api-small", replace(TINY, concatenate=False))
    command = (
        "api-small", "--train-file", tmp_path / "train.jsonl", "--max-steps", 3, "--save-steps", 1,
        "--validation-file", tmp_path / "validation.jsonl", "--tokenizer", tokenizer,
        "--output-dir", tmp_path / "model",
    )  # fmt: skip
    whole, steps = Seq2SeqTrainer.training_step, []

    def short_of_memory(self, *given, **options):
        steps.append(self.state.global_step)
        if len(steps) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(self, *given, **options)

    monkeypatch.setattr(Seq2SeqTrainer, "training_step", short_of_memory)
    done = run_here(monkeypatch, capsys, *command, name="finetune")
    (sentence,) = done.complaints
    assert done.code == 2
    assert sentence.startswith("error: no memory is left (CUDA out of memory. Tried to allocate")
    assert "; lower --max-length, --max-source-length;" in sentence
    run_here(monkeypatch, capsys, *command, name="finetune").require_success()
    assert steps == [0, 1, 2, 2]


def test_a_preset_without_an_architecture_needs_a_checkpoint(job):
    with pytest.raises(BildError, match="--init-from"):
        train(job("model", preset=PRESETS["finetune"]))


def test_the_final_decay_keeps_its_share_when_the_steps_change():
    preset = PRESETS["demo-large"]
    shorter = preset.for_steps(preset.max_steps // 2)
    assert shorter.scheduler_options["num_decay_steps"] == round(0.4 * shorter.max_steps)
    assert preset.for_steps(preset.max_steps) == preset


def test_a_vocabulary_larger_than_the_text_can_fill_is_refused(tmp_path):
    with pytest.raises(BildError, match=r"tokenizer of 4000 tokens: .*too high"):
        train_tokenizer(["Der Hund ist alt."], 4000, tmp_path)


def test_what_was_being_deleted_goes_and_what_is_damaged_and_newer_stays(tmp_path):
    for step in (1, 2, 3, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.save({}, folder / name)
        if step in (2, 3):
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    last, passed_over = last_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-3"
    assert ["checkpoint-4" in said for said in passed_over] == [True]
    remove_half_deleted(tmp_path, last)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{s}" for s in (2, 3, 4)]
