"""Numbers in running text are those of the records, trainings and data that they speak of.

Tables are made from records and compared with them elsewhere (`tests/show/test_tables.py`); a
sentence drifts in silence.
"""

from __future__ import annotations

import json

import pytest
from commands import ROOT
from faults.test_injections import PLAN
from safetensors import safe_open

from bild.config import BiLDConfig


def read(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def training(model):
    return read(f"demo/{model}/training.json")


def parameters(model):
    facts = training(model)
    last = facts["stages"][-1] if "stages" in facts else facts
    return f"{last['parameters'] / 1e6:.1f} M"


def sentences():
    with (ROOT / "demo/sentences.jsonl").open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def megabytes_of_a_step():
    """What a step of the shipped large model reads in float32: the decoder and the head, but not
    what has made keys and values of the source.
    """
    of_the_source = ("encoder.", "EncDecAttention.k.", "EncDecAttention.v.")
    with safe_open(ROOT / "demo/large/model.safetensors", "pt") as weights:
        names = [n for n in weights.keys() if not any(p in n for p in of_the_source)]  # noqa: SIM118
        return sum(weights.get_tensor(n).numel() for n in names) * 4 / 1e6


def alone():
    """The published run of the large model alone."""
    runs = read("results/published/iwslt2017.json")["runs"]
    return next(run for run in runs if run["mode"] == "vanilla")


def faults():
    return sum(count for planned in PLAN.values() for _, count in planned)


def row(model):
    """Of the table of shipped models: steps and tokens of one that follows the large model."""
    facts = training(model)
    last, steps = facts["log"][-1], facts["recipe"].get("steps")
    assert steps in (None, last["step"])
    return f"{last['step']:,}", f"{last['target_tokens'] / 1e6:.1f} M tokens"


def lines(model):
    """That the large model wrote, and the model learned from."""
    return f"{training(model)['train'][-1]['examples']:,} lines"


DEFAULTS = BiLDConfig()
FACTS = [
    ("README.md", lambda: f"are small ({parameters('large')} parameters and less)"),
    ("README.md", lambda: f"| {sentences()} German sentences written for this project"),
    ("docs/alignment.md", lambda: f"has learned from {lines('small-aligned')}"),
    ("demo/README.md", lambda: f"on {lines('drafter')} that"),
    ("demo/README.md", lambda: "| + {} | {}, as below |".format(*row("small-aligned"))),
    (
        "demo/README.md",
        lambda: (
            f"| 256 | {parameters('drafter')} | "
            + "{}, from an earlier one | {}, as below |".format(*row("drafter"))
        ),
    ),
    ("docs/training.md", lambda: f"for a model of {parameters('large')} parameters"),
    ("docs/gpu-box.md", lambda: f"{alone()['seconds'] / 60:.0f} minutes for IWSLT's"),
    ("docs/gpu-box.md", lambda: f"IWSLT's {alone()['samples']} examples"),
    ("docs/reliability.md", lambda: f"The suite does this {faults()} times"),
    ("docs/notes.md", lambda: f"large model reads {megabytes_of_a_step():.0f} MB"),
    ("docs/first-run.md", lambda: f"`fallback_threshold` ({DEFAULTS.fallback_threshold:g})"),
    ("docs/first-run.md", lambda: f"`rollback_threshold` ({DEFAULTS.rollback_threshold:.1f})"),
]


@pytest.mark.parametrize(("page", "said"), FACTS)
def test_a_number_in_a_sentence_is_that_of_its_record(page, said):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert said() in text
