"""Corpus splits, and a training small enough to watch, killed and gone on with."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer

from bild import BildError
from bild.training import (
    PRESETS,
    concatenate,
    split_by_sentence,
    train,
    train_tokenizer,
)

NOUNS = ["Hund", "Baum", "Fluss", "Zug", "Mond", "Garten", "Koffer", "Vogel", "Brief", "Schuh"]
THINGS = ["dog", "tree", "river", "train", "moon", "garden", "suitcase", "bird", "letter", "shoe"]
PAIRS = [
    (f"Der {n} ist {d}.", f"The {t} is {e}.")
    for n, t in zip(NOUNS, THINGS, strict=True)
    for d, e in (("alt", "old"), ("neu", "new"), ("weg", "gone"), ("hier", "here"))
]


def test_split_keeps_sentences_on_one_side():
    # Chains: one English sentence with two German ones, one of which has a second English one.
    chained = [(f"a{i}", f"x{i}") for i in range(300)]
    chained += [(f"A{i} ", f"y{i}") for i in range(0, 300, 3)]
    chained += [(f"b{i}", f"y{i}") for i in range(0, 300, 6)]
    train_pairs, validation, test = split_by_sentence(chained, 40, seed=0)
    assert len(validation) == len(test) == 40
    assert sorted(train_pairs + validation + test) == sorted(chained)
    sides = [
        {text.strip().lower() for pair in part for text in pair}
        for part in (train_pairs, validation, test)
    ]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert split_by_sentence(chained, 40, seed=1)[1] != validation


def test_split_refuses_more_than_there_is():
    with pytest.raises(BildError, match="cannot hold out 2 x 30 pairs from 40"):
        split_by_sentence(PAIRS, 30, seed=0)


def test_concatenation_uses_every_pair_once_in_lines_of_one_to_four():
    lines = concatenate(PAIRS, seed=3)
    count = [source.count(".") for source, _ in lines]
    assert sum(count) == len(PAIRS)
    assert set(count) <= {1, 2, 3, 4}
    assert len(set(count)) > 1
    assert all(s.count(".") == t.count(".") for s, t in lines)
    assert concatenate(PAIRS, seed=3) == lines != concatenate(PAIRS, seed=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = train_tokenizer((text for pair in PAIRS for text in pair), 48, folder)
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


def run(tokenizer, folder, **kwargs):
    options = {"max_steps": 6, "save_steps": 2, "bf16": False, **kwargs}
    return train(TINY, PAIRS[:32], PAIRS[32:], str(tokenizer), folder, **options)


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(
    tokenizer, tmp_path, monkeypatch
):
    whole = run(tokenizer, tmp_path / "whole")

    step = Seq2SeqTrainer.training_step
    done = []

    def dies(self, *args, **kwargs):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Seq2SeqTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tokenizer, tmp_path / "killed")
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    done.clear()
    monkeypatch.setattr(
        Seq2SeqTrainer,
        "training_step",
        lambda self, *a, **k: done.append(1) or step(self, *a, **k),
    )
    resumed = run(tokenizer, tmp_path / "killed")
    assert len(done) == 2  # steps 5 and 6, after the checkpoint of step 4
    assert resumed["validation_loss"] == pytest.approx(whole["validation_loss"], abs=1e-5)
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("killed", "whole"))
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name


def test_finetuning_starts_from_a_checkpoint_and_saves_half_precision(tokenizer, tmp_path):
    run(tokenizer, tmp_path / "base", max_steps=2)
    preset = replace(PRESETS["finetune"], batch_size=8, learning_rate=1e-6)
    facts = train(
        preset, PAIRS[:32], PAIRS[32:], str(tokenizer), tmp_path / "tuned",
        init_from=str(tmp_path / "base"), max_steps=1, bf16=False, save_dtype=torch.float16,
    )  # fmt: skip
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tuned = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tuned", dtype="auto")
    assert tuned.dtype == torch.float16
    assert facts["parameters"] == base.num_parameters()
    for (name, a), b in zip(base.named_parameters(), tuned.parameters(), strict=True):
        assert torch.allclose(a, b.float(), atol=5e-3), name


def test_a_preset_without_an_architecture_needs_a_checkpoint(tokenizer, tmp_path):
    with pytest.raises(BildError, match="--init-from"):
        train(PRESETS["finetune"], PAIRS, PAIRS, str(tokenizer), tmp_path)


def test_a_vocabulary_larger_than_the_text_can_fill_is_refused(tmp_path):
    with pytest.raises(BildError, match=r"tokenizer of 4000 tokens: .*too high"):
        train_tokenizer(["Der Hund ist alt."], 4000, tmp_path)
