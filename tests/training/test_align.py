"""Alignment and agreement: what the losses are, where they lead, and how they are counted."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import signal
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from commands import RESUMING, ROOT, run_command, run_here
from launching import run_processes, together
from safetensors.torch import load_file
from torch.distributions import Categorical, kl_divergence
from toy import PAIRS, save_data, save_model, save_tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer

from bild import BildError, BiLDModel
from bild.checkpoints.drafter import BiLDDrafter, make_drafter
from bild.evaluation.record import Interval
from bild.training import agreement, alignment, tokenizer
from bild.training.agreement import TEXTS, measure
from bild.training.alignment import (
    OnPolicyTrainer,
    align_by_sequence,
    align_on_policy,
    divergence,
)
from bild.training.config import (
    DIVERGENCES,
    AgreementConfig,
    DrafterOptions,
    LabelConfig,
    OnPolicyConfig,
    TrainingJob,
)
from bild.training.drafting import train_drafter
from bild.training.labelling import card_path
from bild.training.presets import PRESETS
from bild.training.record import AgreementRecord

PRESET = replace(PRESETS["finetune"], batch_size=8, warmup_steps=1, dropout=0.0, learning_rate=3e-3)
SHORT = 10  # tokens of an output


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of a large and a small model."""
    root = tmp_path_factory.mktemp("pair")
    tokenizer = save_tokenizer(root / "tokenizer")
    save_model(root / "large", tokenizer, seed=9)
    save_model(root / "small", tokenizer, seed=9, noise=0.1)
    return root


@pytest.fixture
def job(pair, tmp_path):
    """An alignment of the small model; `job(folder, steps)`."""
    data = save_data(tmp_path / "train.jsonl", PAIRS[:32])
    validation = save_data(tmp_path / "validation.jsonl", PAIRS[32:])
    small = str(pair / "small")

    def make(folder, steps=6, save_steps=2):
        return TrainingJob(
            PRESET.for_steps(steps), data, validation, small, tmp_path / folder,
            init_from=small, save_steps=save_steps, max_length=SHORT, bf16=False,
        )  # fmt: skip

    return make


# ------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_is_what_its_name_says_and_leads_to_the_large_model(kind):
    torch.manual_seed(0)
    large, small = torch.randn(2, 5, 7) * 2
    small.requires_grad_()
    p, q = Categorical(logits=large), Categorical(logits=small)
    m = Categorical(probs=(p.probs + q.probs) / 2)
    expected = {
        "forward-kl": kl_divergence(p, q),
        "reverse-kl": kl_divergence(q, p),
        "jsd": (kl_divergence(p, m) + kl_divergence(q, m)) / 2,
    }[kind]
    assert torch.allclose(divergence(kind, small, large), expected, atol=1e-6)
    assert divergence(kind, large, large).abs().max() < 1e-6
    optimizer = torch.optim.SGD([small], lr=2.0)
    for _ in range(1500):
        optimizer.zero_grad()
        divergence(kind, small, large).sum().backward()
        optimizer.step()
    assert torch.allclose(small.softmax(-1), large.softmax(-1), atol=0.02)


def test_own_outputs_stand_where_the_model_wrote_them(pair, job, monkeypatch):
    """Greedily written, each label is the model's first choice after its decoder input."""
    seen = []
    loss = OnPolicyTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        if model.training:
            with torch.no_grad():
                given = {k: v for k, v in inputs.items() if k != "labels"}
                choice = model(**given).logits.argmax(-1)
            counted = inputs["labels"] != -100
            seen.append((choice[counted], inputs["labels"][counted], counted.shape))
        return loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(OnPolicyTrainer, "compute_loss", watched)
    config = OnPolicyConfig(own_share=1, temperature=0, max_new_tokens=SHORT)
    align_on_policy(str(pair / "large"), job("own", steps=3), config)
    assert len(seen) == 3
    for choice, labels, shape in seen:
        assert shape[0] == 8
        assert len(labels) > 8
        assert torch.equal(choice, labels)


def test_the_share_of_own_outputs_is_that_asked_for(pair, job, monkeypatch):
    written = []
    own = OnPolicyTrainer._with_own_outputs
    monkeypatch.setattr(
        OnPolicyTrainer,
        "_with_own_outputs",
        lambda self, *a: written.append(self.state.global_step) or own(self, *a),
    )
    config = OnPolicyConfig(own_share=0.7, max_new_tokens=2)
    align_on_policy(str(pair / "large"), job("share", 20, save_steps=20), config)
    assert 10 <= len(written) <= 18


# ------------------------------------------------------------------------------ trainings


def test_on_policy_training_lowers_the_divergence_and_raises_agreement(pair, job):
    training = job("aligned", steps=40, save_steps=10)
    preset = replace(training.preset, learning_rate=1e-2)
    training = replace(training, preset=preset, validation=training.train)
    align_on_policy(str(pair / "large"), training, OnPolicyConfig(max_new_tokens=SHORT))
    log = json.loads((training.output_dir / "training.json").read_text())["log"]
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    record = measure(
        str(pair / "large"),
        [str(pair / "small"), str(training.output_dir)],
        training.validation,
        AgreementConfig(max_new_tokens=SHORT),
        folder=training.output_dir,
        progress=False,
    )
    before, after = (
        [r.agreement.value for r in record.results if r.model.endswith(name)]
        for name in ("small", "aligned")
    )
    assert all(b < a for b, a in zip(before, after, strict=True))


def test_a_killed_on_policy_training_goes_on_with_the_same_samples(pair, job, monkeypatch):
    config = OnPolicyConfig(own_share=1, max_new_tokens=SHORT)
    whole, killed = job("whole"), job("killed")
    align_on_policy(str(pair / "large"), whole, config)

    step, done = Seq2SeqTrainer.training_step, []

    def dies(self, *args, **kwargs):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Seq2SeqTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            align_on_policy(str(pair / "large"), killed, config)
    facts = align_on_policy(str(pair / "large"), killed, config)
    assert facts["resumed_from_step"] == 4
    assert facts["method"]["divergence"] == "forward-kl"
    with pytest.raises(BildError, match="method divergence is 'forward-kl', not 'jsd'"):
        align_on_policy(str(pair / "large"), killed, replace(config, divergence="jsd"))
    require_same_weights(killed.output_dir, whole.output_dir, 1e-6)


def require_same_weights(ours, theirs, tolerance):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    for name in theirs:
        difference = (ours[name].float() - theirs[name].float()).abs().max()
        assert difference <= tolerance, (name, difference)


def test_two_processes_label_and_train_as_one(pair, job, tmp_path):
    alone = job("alone")
    facts = align_by_sequence(
        str(pair / "large"),
        alone,
        LabelConfig(max_source_tokens=SHORT, max_new_tokens=SHORT, batch_size=3),
    )
    assert facts["method"]["labelled"]["sha256"] == alone.train.sha256
    assert facts["train"]["sha256"] != alone.train.sha256

    preset = f"from bild.training import presets; presets.PRESETS['toy'] = presets.{PRESET!r}\n"
    (tmp_path / "align.py").write_text(
        preset + f"import runpy; runpy.run_path({str(ROOT / 'scripts' / 'align.py')!r}, "
        "run_name='__main__')\n"
    )
    done = run_command(
        (
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", 0, "align.py", "toy",
            "--large", pair / "large", "--init-from", pair / "small",
            "--train-file", "train.jsonl", "--validation-file", "validation.jsonl",
            "--output-dir", "shared", "--max-steps", 6, "--save-steps", 2, "--max-length", SHORT,
            "--max-new-tokens", SHORT, "--label-batch-size", 3, "--save-dtype", "float32",
            "--no-bf16",
        ),
        tmp_path,
        {"PYTHONPATH": str(ROOT)},
    ).require_success()  # fmt: skip
    shared = tmp_path / "shared"
    ours, theirs = (folder / "calibration.jsonl" for folder in (shared, alone.output_dir))
    assert ours.read_bytes() == theirs.read_bytes()
    ours, theirs = (json.loads(card_path(path).read_text()) for path in (ours, theirs))
    assert {**ours, "env": None} == {**theirs, "env": None}
    assert done.out.count("validation_loss") == 1
    theirs = json.loads((shared / "training.json").read_text())
    assert theirs["train_loss"] == pytest.approx(facts["train_loss"], abs=1e-3)
    assert theirs["validation_loss"] == pytest.approx(facts["validation_loss"], abs=1e-3)
    require_same_weights(shared, alone.output_dir, 1e-4)


# ------------------------------------------------------------------------------ agreement


def test_a_model_agrees_with_itself_everywhere(pair, job, tmp_path):
    large = str(pair / "large")
    config = AgreementConfig(max_new_tokens=SHORT, batch_size=3)
    record = measure(large, [large], job("x").validation, config, folder=tmp_path, progress=False)
    assert not list(tmp_path.glob("*.parts"))
    assert [r.text for r in record.results] == list(TEXTS)
    for result in record.results:
        assert result.agreement == Interval(1.0, 1.0, 1.0)
        assert sum(b.positions for b in result.bins) == result.positions > 50
        assert result.calibration_error == pytest.approx(1 - result.mean_confidence)


def test_agreement_is_counted_at_each_position_of_both_texts(pair, job, tmp_path):
    validation = job("x").validation
    models = [AutoModelForSeq2SeqLM.from_pretrained(pair / name) for name in ("large", "small")]
    tokenizer = AutoTokenizer.from_pretrained(pair / "large")
    expected = []
    for text in TEXTS:
        agrees, confidence = [], []
        for example in validation.examples:  # one at a time, so without padding
            source = tokenizer("Der " + example.source, return_tensors="pt").input_ids
            if text == TEXTS[0]:
                target = tokenizer(text_target=example.target, return_tensors="pt").input_ids
            else:
                target = models[0].generate(source, do_sample=False, max_new_tokens=40)[:, 1:]
            with torch.no_grad():
                large, small = (m(source, labels=target).logits[0].softmax(-1) for m in models)
            agrees += (large.argmax(-1) == small.argmax(-1)).tolist()
            confidence += small.max(-1).values.tolist()
        expected.append((agrees, confidence))
    record = measure(
        str(pair / "large"),
        [str(pair / "small")],
        validation,
        AgreementConfig(prefix="Der ", max_new_tokens=40, batch_size=3),
        folder=tmp_path,
        progress=False,
    )
    for result, (agrees, confidence) in zip(record.results, expected, strict=True):
        assert result.positions == len(agrees)
        share = sum(agrees) / len(agrees)
        assert result.agreement.value == pytest.approx(share)
        assert 0 < result.agreement.low < share < result.agreement.high < 1
        error = 0.0
        for i, found in enumerate(result.bins):
            inside = [(a, c) for a, c in zip(agrees, confidence, strict=True) if int(10 * c) == i]
            assert found.positions == len(inside)
            if inside:
                agreeing, mean = (sum(x) / len(inside) for x in zip(*inside, strict=True))
                assert found.agreement == pytest.approx(agreeing)
                assert found.confidence == pytest.approx(mean, abs=1e-5)
                error += abs(agreeing - mean) * len(inside) / len(agrees)
        assert result.calibration_error == pytest.approx(error, abs=1e-5)
        assert len([b for b in result.bins if b.positions]) > 2


def test_a_stopped_measurement_goes_on_and_several_processes_make_the_record_of_one(
    pair, job, tmp_path, monkeypatch
):
    models, data = (str(pair / "large"), [str(pair / "small")]), job("x").validation  # 8 examples
    config = AgreementConfig(max_new_tokens=SHORT, batch_size=2)

    def go(folder):
        return measure(*models, data, config, folder=folder, progress=False)

    def results(record):
        return record.results, record.data, record.models

    whole = results(go(tmp_path / "alone"))
    generate, seen = agreement.generate_tokens, []

    def stopped(*given, **options):
        seen.append(None)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return generate(*given, **options)

    monkeypatch.setattr(agreement, "generate_tokens", stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        go(tmp_path / "stopped")
    assert "2 of 4 parts are done and kept" in stop.value.__notes__[0]
    assert results(go(tmp_path / "stopped")) == whole
    assert len(seen) == 3 + 2

    def process(rank):
        calls = []

        def killed(*given, **options):
            calls.append(None)
            if len(calls) == 1:
                together(tmp_path / "here", rank, 3)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return generate(*given, **options)

        monkeypatch.setattr(agreement, "generate_tokens", killed)  # in this fork alone
        record = go(tmp_path / "shared")
        if rank == 0:
            assert results(record) == whole
        else:
            assert record is None

    assert run_processes(3, process) == [0, -signal.SIGKILL, 0]
    assert not list(tmp_path.glob("*/*.parts"))


def test_the_script_compares_several_models_in_a_record_and_a_picture(
    pair, job, tmp_path, monkeypatch, capsys
):
    job("x")  # writes the data
    record = tmp_path / "agreement.json"
    done = run_here(
        monkeypatch, capsys, "--large", pair / "large", "--small", pair / "small", pair / "large",
        "--data-file", tmp_path / "validation.jsonl", "--record", record,
        "--max-new-tokens", SHORT, "--output-dir", tmp_path / "out", name="measure_agreement",
    ).require_success()  # fmt: skip
    content = AgreementRecord.load(record)
    assert content == AgreementRecord.load(tmp_path / "out" / "agreement.json")
    names = [model.rsplit("/", 1)[-1] for model in content.models.small]
    assert names == ["small", "large"]
    assert [r.model.rsplit("/", 1)[-1] for r in content.results] == [
        n for n in names for _ in TEXTS
    ]
    assert (content.data.samples, content.data.truncated_sources) == (8, 0)
    assert done.out.count("100.00 [100.00, 100.00]") == 2
    picture = ElementTree.parse(record.with_suffix(".svg")).getroot()
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {f"on {text}" for text in TEXTS} <= set(texts)
    assert sum("large: 100.0 % and 100.0 % agree" in text for text in texts) == 1


def test_scripts_promise_to_go_on_where_the_tests_say_so():
    scripts = (ROOT / "scripts").glob("*.py")
    assert {p.stem for p in scripts if "run(main, resumes=True)" in p.read_text()} == RESUMING


@pytest.mark.parametrize("resumes", [False, True])
def test_an_interrupted_script_promises_to_go_on_only_where_it_does(
    pair, job, tmp_path, monkeypatch, capsys, resumes
):
    job("x")  # writes the data

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for module, name in ((tokenizer, "train_tokenizer"), (alignment, "align_by_sequence")):
        monkeypatch.setattr(module, name, interrupted)
    aligning = (
        "finetune", "--init-from", pair / "small", "--train-file", tmp_path / "train.jsonl",
        "--validation-file", tmp_path / "validation.jsonl", "--output-dir", tmp_path / "out",
        "--large", pair / "large",
    )  # fmt: skip
    training = ("--data-file", tmp_path / "train.jsonl", "--output-dir", tmp_path / "out")
    flags, name = (aligning, "align") if resumes else (training, "train_tokenizer")
    flags = [*map(str, flags)]
    monkeypatch.setattr(sys, "argv", [name, *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert end.value.code == 130
    command = shlex.join(["python", str(ROOT / "scripts" / f"{name}.py"), *flags])
    promise = f"; the same command goes on from here:\n{command}" if resumes else ""
    assert capsys.readouterr().err == f"\nstopped{promise}\n"


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (("--own-share", "2"), ("own_share", "between 0 and 1", "2.0")),
        (("--temperature", "-1"), ("temperature", ">= 0", "-1.0")),
        (("--divergence", "tv"), ("tv", "forward-kl")),
        (("--save-steps", "0"), ("save_steps", "at least 1", "got 0")),
        (("--max-steps", "0"), ("max_steps", "at least 1", "got 0")),
        (("--train-file", "nowhere.jsonl"), ("nowhere.jsonl", "does not exist")),
        (("--large", "nowhere/at/all"), ("nowhere/at/all",)),
    ],
)
def test_mistakes_are_named_in_one_sentence(
    pair, job, tmp_path, monkeypatch, capsys, arguments, needles
):
    job("x")  # writes the data
    given = {
        "--large": pair / "large",
        "--init-from": pair / "small",
        "--train-file": tmp_path / "train.jsonl",
        "--validation-file": tmp_path / "validation.jsonl",
        "--output-dir": tmp_path / "out",
    }
    given |= dict([arguments])
    monkeypatch.chdir(tmp_path)
    flat = [part for pair in given.items() for part in pair]
    done = run_here(monkeypatch, capsys, "finetune", *flat, name="align")
    assert done.code == 2
    assert len(done.complaints) == 1
    assert all(needle in done.complaints[0] for needle in needles), done.err


def test_models_of_different_vocabularies_are_refused(pair, job, tmp_path):
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(pair / "large")
    tokenizer.add_tokens(["Zug!"])
    model = AutoModelForSeq2SeqLM.from_pretrained(pair / "large")
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(BildError, match=r"49 tokens \(large\) and 48 \(small\)"):
        align_on_policy(str(other), job("x"), OnPolicyConfig())


# ------------------------------------------------------------------------------ a drafter


def drafter_job(job, pair, folder, steps=6, save_steps=2, **kwargs):
    made = job(folder, steps, save_steps)
    return replace(made, init_from=None, tokenizer=str(pair / "large"), **kwargs)


@pytest.mark.parametrize("train_on", ["outputs", "references", "both"])
def test_a_drafter_comes_to_write_as_its_large_model_does(job, pair, train_on):
    work = drafter_job(job, pair, train_on, steps=40, save_steps=20)
    labels = LabelConfig(max_new_tokens=SHORT, batch_size=16)
    facts = train_drafter(
        str(pair / "large"), work, DrafterOptions(shortlist=20, train_on=train_on), labels,
        OnPolicyConfig(own_share=0.2, max_new_tokens=SHORT),
    )  # fmt: skip
    log = json.loads((work.output_dir / "training.json").read_text())["log"]
    validated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert validated[-1] < validated[0]
    assert facts["method"]["name"] == "drafter"
    loaded = BiLDModel.from_pretrained(str(pair / "large"), str(work.output_dir))
    assert isinstance(loaded.small, BiLDDrafter)
    assert len(loaded.small.shortlist) == 20


def test_a_drafter_goes_on_from_a_drafter_and_from_nothing_else(job, pair, tmp_path):
    options = DrafterOptions(train_on="references")
    first = drafter_job(job, pair, "first")
    train_drafter(str(pair / "large"), first, options, LabelConfig(), OnPolicyConfig(own_share=0))
    more = replace(drafter_job(job, pair, "more"), init_from=str(first.output_dir))
    train_drafter(str(pair / "large"), more, options, LabelConfig(), OnPolicyConfig(own_share=0))
    with pytest.raises(BildError, match="is a t5, not a drafter"):
        train_drafter(
            str(pair / "large"), job("other"), options, LabelConfig(), OnPolicyConfig(own_share=0)
        )


def test_a_drafter_of_another_large_model_of_this_width_becomes_this_ones(job, pair, tmp_path):
    save_model(tmp_path / "tuned", pair / "large", seed=4)
    tuned = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tuned")
    make_drafter(tuned).save_pretrained(tmp_path / "other")
    work = replace(drafter_job(job, pair, "taken over"), init_from=str(tmp_path / "other"))
    options = DrafterOptions(train_on="references")
    train_drafter(str(pair / "large"), work, options, LabelConfig(), OnPolicyConfig(own_share=0))
    pair_of = BiLDModel.from_pretrained
    assert isinstance(pair_of(str(pair / "large"), str(work.output_dir)).small, BiLDDrafter)
    with pytest.raises(BildError, match="trained for another large model"):
        pair_of(str(tmp_path / "tuned"), str(work.output_dir))
    with pytest.raises(BildError, match="trained for another large model"):
        pair_of(str(pair / "large"), str(tmp_path / "other"))


def test_a_drafter_cannot_be_chosen_by_what_it_writes(job, pair):
    work = drafter_job(job, pair, "best", preset=replace(PRESET, best_by="bleu"))
    with pytest.raises(BildError, match="--best-by last"):
        train_drafter(str(pair / "large"), work, DrafterOptions(), LabelConfig(), OnPolicyConfig())


def test_a_drafter_agrees_with_its_large_model_where_it_is_a_copy_of_it(tmp_path):
    save_model(tmp_path / "large", save_tokenizer(tmp_path / "tokenizer"), seed=9)
    large = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "large")
    make_drafter(large, layers=2).save_pretrained(tmp_path / "drafter")
    data = save_data(tmp_path / "data.jsonl", PAIRS[:8])
    folders = [str(tmp_path / name) for name in ("large", "drafter")]
    found = measure(
        *folders[:1], folders[1:], data, AgreementConfig(max_new_tokens=SHORT), folder=tmp_path
    )
    assert [result.agreement.value for result in found.results] == [1.0, 1.0]
