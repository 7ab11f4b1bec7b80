"""What the commands that train share: their arguments, and the training that these ask for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bild.cli import add_data_keys
from bild.errors import BildError
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import add_allow_pickle
from bild.tasks.data import load_file
from bild.tasks.metrics import METRICS
from bild.training.config import TrainingJob
from bild.training.presets import PRESETS

TRAINING_OPTIONS = (
    "init_from", "prefix", "max_length", "max_source_length", "save_steps", "bf16", "save_dtype",
    "seed",
)  # fmt: skip


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every script that trains; `training_job` reads them."""
    add = parser.add_argument
    add(
        "preset",
        choices=PRESETS,
        help="; ".join(f"{n}: {p.description}" for n, p in PRESETS.items()),
    )
    add("--train-file", type=Path, required=True, metavar="FILE", help="JSON Lines (.gz)")
    add("--validation-file", type=Path, required=True, metavar="FILE", help="JSON Lines (.gz)")
    add("--output-dir", type=Path, required=True, metavar="FOLDER", help="the finished model")
    add("--tokenizer", help="folder or hub id (default: the checkpoint's)")
    add_data_keys(parser)
    add("--max-steps", type=int, metavar="N", help="optimizer steps (default: the preset's)")
    add(
        "--best-by",
        choices=("last", *METRICS),
        help="keep the checkpoint with the best validation score, or the last (default: the "
        "preset's)",
    )
    add_fields(parser, TrainingJob, *TRAINING_OPTIONS, save_dtype={"default": "float16"})
    add_allow_pickle(parser)


def training_job(a: argparse.Namespace) -> TrainingJob:
    """The training that was asked for.

    Raises:
        BildError: a value, file or folder that cannot be used.
    """
    tokenizer = a.init_from if a.tokenizer is None else a.tokenizer
    if tokenizer is None:
        raise BildError("a model from nothing needs a tokenizer: name one with --tokenizer")
    preset = PRESETS[a.preset]
    if a.max_steps is not None:
        preset = preset.for_steps(a.max_steps)
    if a.best_by is not None:
        preset = replace(preset, best_by=None if a.best_by == "last" else a.best_by)
    job = TrainingJob(
        preset,
        load_file(a.train_file, a.source_key, a.target_key, "train"),
        load_file(a.validation_file, a.source_key, a.target_key, "validation"),
        tokenizer,
        a.output_dir,
        **read_fields(a, *TRAINING_OPTIONS),
    )
    check_writable(a.output_dir)
    return job
