"""The scripts that write, each with a small task for it, and what of its result must not change.

All of it runs on toy models; paths are relative to the folder of a trial.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from records import run_record
from toy import PAIRS, save_data, save_model, save_tokenizer

# What a clock, a machine or the moment decides, and what tells of a stop itself.
VOLATILE = {
    "seconds", "encoder_seconds", "warmup_seconds", "env", "timing", "speed", "beside",
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
    "eval_samples_per_second", "eval_steps_per_second", "train_loss", "resumed_from_step",
    "peak_memory", "costs", "unreported", "factors",
    "memory", "seconds_per_forward", "bytes_per_second", "of_ceiling", "ready_seconds",
    "encoder_share", "outside_share", "tokens_per_second",
}  # fmt: skip
STAMP = re.compile(r"\d{8}-\d{6}(-\d+)?")


def prepare(stage: Path) -> None:
    """Models and data of all tasks."""
    tokenizer = save_tokenizer(stage / "tokenizer")
    save_model(stage / "large", tokenizer, seed=9)
    save_model(stage / "small", tokenizer, seed=9, noise=0.3)
    save_model(stage / "other", tokenizer, seed=9, noise=0.1)
    save_data(stage / "train.jsonl", PAIRS[:32])
    save_data(stage / "few.jsonl", PAIRS[:6])
    save_data(stage / "validation.jsonl", PAIRS[32:])
    (stage / "records").mkdir()
    run_record().save(stage / "records" / "run.json")


def keeps_attributes(folder: Path) -> bool:
    """Whether the file system keeps with a file what `bild generate` says of it."""
    with tempfile.TemporaryFile(dir=folder) as tried:
        try:
            os.setxattr(tried.fileno(), "user.bild.tried", b"1")
        except (AttributeError, OSError):
            return False
    return True


def commands(stage: Path) -> dict[str, list[str]]:
    """The arguments of each script."""
    large, small, other, few, train, validation = (
        str(stage / name)
        for name in ("large", "small", "other", "few.jsonl", "train.jsonl", "validation.jsonl")
    )
    pair = ["--large", large, "--small", small, "--data-file", few, "--max-new-tokens", "6"]
    short = ["--warmup", "0", "--output-dir", "out", "--record", "record.json"]
    training = [
        "--init-from", small, "--train-file", train, "--validation-file", validation,
        "--max-length", "10", "--max-steps", "3", "--save-steps", "1", "--no-bf16",
        "--output-dir", "model",
    ]  # fmt: skip
    return {
        "run_eval": ["demo", "unaligned", "0.6", "2", *pair, *short],
        "search_thresholds": [
            "demo", *pair, *short, "--check-file", validation, "--fallbacks", "0.3", "0.6",
            "--rollbacks", "2", "3", "--budget", "0.6", "--max-loss", "50",
        ],
        "search_thresholds-study": [
            "demo", *pair, *short, "--fallbacks", "0.3", "0.5", "--rollbacks", "2", "3",
            "--max-loss", "50", "--storage", "sqlite:///search.db", "--trials", "3",
        ],
        "compare_small_models": [
            "demo", "--large", large, "--small", f"unaligned={small}", f"aligned={other}",
            "--data-file", few, "--test-file", validation, "--fallbacks", "0.4", "--rollbacks",
            "2", "3", "--max-new-tokens", "6", *short,
        ],
        "benchmark": [
            *pair, *short, "--samples", "2", "--arms", "greedy,bild-compiled", "--precisions",
            "float32", "--threads", "1", "--fallback", "0.6", "--rollback", "2",
        ],
        "make_calibration": [
            "--large", large, "--data-file", train, "--output", "set.jsonl", "--chunk-size", "8",
            "--batch-size", "4", "--max-new-tokens", "6",
        ],
        "finetune": ["finetune", *training],
        "align": ["align", *training, "--large", large, "--max-new-tokens", "6"],
        "align-on-policy": [
            "align", *training, "--large", large, "--max-new-tokens", "6", "--method", "on-policy",
        ],
        "align-drafter": [
            "drafter", *(training[2:]), "--large", large, "--max-new-tokens", "6", "--method",
            "drafter",
        ],
        "measure_agreement": [
            "--large", large, "--small", small, "--data-file", few, "--output-dir", "out",
            "--record", "record.json", "--max-new-tokens", "6",
        ],
        "train_tokenizer": [
            "--data-file", train, "--output-dir", "tokenizer", "--vocab-size", "44",
        ],
        "make_demo_data": [
            "--corpus", train, "--output-dir", "data", "--held-out", "4", "--vocab-size", "44",
        ],
        "check_duplicates": [few, "--corpus", validation, "--record", "record.json"],
        "generate": [
            few, "-o", "outputs.jsonl", "--large", large, "--small", small, "--source-key", "de",
            "--stats", *([] if keeps_attributes(stage) else ["--overwrite"]),
        ],
        "compare_rules": [
            "demo", *pair, *short, "--rules", "exact", "lenient:share=0.2", "--draftings",
            "entropy:limit=1",
        ],
        "plot_tradeoff": [str(stage / "records"), "--output-dir", "plots"],
        "make_adversary": ["demo", "adversary"],
        "show_trace": [
            "Der Hund ist alt.", "--large", large, "--small", small, "--max-new-tokens", "6",
            "--html", "trace.html", "--svg", "trace.svg",
        ],
    }  # fmt: skip


def result(folder: Path) -> dict[str, Any]:
    """What a script has left, by place: contents, less what may differ between two runs."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        place = STAMP.sub("*", str(path.relative_to(folder)))
        if path.suffix == ".db" or path.name == "study.json":  # when, and a name that was drawn
            found[place] = None
        elif path.suffix == ".json":
            found[place] = _steady(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").split("\n")
            assert lines.pop() == "", f"{place} ends in a torn line"
            found[place] = [_steady(json.loads(line)) for line in lines]
        elif path.name != "lock" and path.suffix not in (".html", ".svg", ".md", ".png"):
            found[place] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[place] = None
    return found


def left_over(folder: Path) -> list[str]:
    """What should not be there after success."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.name.startswith(".unfinished-")
        or path.suffix in (".tmp", ".parts")
        or path.name == "unreported"
        or (path.is_dir() and not any(path.iterdir()))
    ]


def _steady(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _steady(v) for k, v in content.items() if k not in VOLATILE}
    if isinstance(content, list):
        return [_steady(v) for v in content]
    return content
