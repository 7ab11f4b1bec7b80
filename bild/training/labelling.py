"""Calibration sets: a large model's own outputs as training targets (Kim et al., NeurIPS 2023).

"Model prediction alignment" trains the small model on what the large one writes for the training
sources, so that the two agree more often. A set is made in chunks of the training file. A finished
chunk is a file of its own, so that a run that was stopped goes on, and so that several processes
can share the work; batches are made inside a chunk, which is why neither changes a single token.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.checkpoints.identity import describe_model
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.names import CheckpointName, resolve_model
from bild.errors import BildError
from bild.evaluation.environment import environment
from bild.files import is_same_work, read_lines, sole_user, write_atomically, write_json
from bild.json_files import read_json
from bild.progress import progress_bar
from bild.tasks.data import LoadedData, checksum
from bild.tasks.reading import Example, read_jsonl
from bild.training.config import LabelConfig
from bild.training.corpus import describe_data

SCHEMA = 1
AGAIN = "remove it with its calibration set to begin anew"
FIELDS = {"text": str, "tokens": int, "finished": bool, "cut": bool}  # of a line of a chunk


def label(
    large: CheckpointName,
    data: LoadedData,
    output: Path,
    config: LabelConfig,
    *,
    tokenizer: CheckpointName | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the large model's output for every source of `data`, in the data's order.

    Called again after it was stopped, it goes on; after it has finished, it does nothing. Under
    `accelerate launch` the processes share the chunks, and all of them return together.

    Args:
        large: folder or hub id of the model.
        data: what to label; its targets are only counted.
        output: the JSON Lines file to write; `card_path(output)` is written beside it.
        config: settings; all of them are in the card.
        tokenizer: folder or hub id; None for the one beside the model.
        progress: show a progress bar, of the main process' share.

    Returns:
        The card: model, source, settings, counts, sha256 (`bild.tasks.data.checksum`), environment.

    Raises:
        BildError: a model that cannot be loaded; an output that holds something else, or not what
            its card says; another process that labels for this output.
    """
    if output.suffix != ".jsonl":
        raise BildError(f"--output must end in .jsonl, got {str(output)!r}")
    state = processes()
    found = resolve_model(large)
    model = load_model(found, getattr(torch, config.dtype), state.device)
    words = load_tokenizer(found, name=tokenizer)
    work = {
        "model": describe_model(found, model),
        "source": describe_data(data),
        "settings": asdict(config),
    }
    card, parts = card_path(output), output.with_name(output.name + ".parts")
    if not _is_finished(output, card, work):
        parts.mkdir(parents=True, exist_ok=True)
        # The processes of one labelling share the folder: one of them holds it for all.
        with sole_user(parts, "labelling") if state.is_main_process else nullcontext():
            _label_chunks(state, model, words, data.examples, parts, work, config, progress)
            if state.is_main_process:
                env = asdict(environment(state.device))
                _assemble(parts, data.examples, output, work, config, env)
            state.wait_for_everyone()
    if state.is_main_process:  # also where a process was stopped just before
        shutil.rmtree(parts, ignore_errors=True)
    return read_json(card, AGAIN)


def card_path(output: Path) -> Path:
    """Where the card of a calibration set is: `x.jsonl` has `x.card.json`."""
    return output.with_suffix(".card.json")


def processes() -> PartialState:
    """The processes that share this work: those of `accelerate launch`, or this one alone."""
    return PartialState(
        cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"),
        timeout=timedelta(days=7),  # the first to finish waits for the last
    )


@torch.inference_mode()
def generate_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    max_source_tokens: int,
    max_new_tokens: int,
    num_beams: int = 1,
) -> list[list[int]]:
    """One batch of outputs, greedy or by beam search.

    Args:
        sources: texts, with their prefix.
        max_source_tokens, max_new_tokens: limits.
        num_beams: 1 for greedy.

    Returns:
        The tokens of each output, without the start token, with the end of sequence if it is
        reached.
    """
    inputs = tokenizer(
        list(sources), truncation=True, max_length=max_source_tokens, padding=True,
        return_tensors="pt",
    ).to(model.device)  # fmt: skip
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
    )
    ends = end_tokens(model)
    rows = []
    for row in written[:, 1:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        rows.append(row[: end + 1])
    return rows


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The ids that end an output."""
    ids = model.generation_config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


# ------------------------------------------------------------------------------ files


def _is_finished(output: Path, card: Path, work: dict[str, Any]) -> bool:
    """Whether the calibration set is there, and is what its card says.

    Raises:
        BildError: something else is there.
    """
    is_begun = is_same_work(card, work)
    if not output.exists():
        return False
    if not is_begun:
        raise BildError(
            f"{str(output)!r} is there but not its card {card.name}; give another --output"
        )
    settings = work["settings"]
    try:
        examples = read_jsonl(output, settings["source_key"], settings["target_key"])
    except BildError as error:
        raise BildError(f"{error}; the calibration set is damaged, remove it") from None
    known = read_json(card, AGAIN).get("sha256")
    if checksum(examples) != known:
        raise BildError(
            f"{str(output)!r} holds {len(examples)} examples of sha256 {checksum(examples)}, but "
            f"its card {card.name} says {known}; remove it to begin anew"
        )
    return True


def _assemble(
    parts: Path,
    examples: Sequence[Example],
    output: Path,
    work: dict[str, Any],
    config: LabelConfig,
    env: dict[str, Any],
) -> None:
    """Write the card and, last, the calibration set from its finished chunks."""
    rows = []
    for start, part in _chunk_files(parts, len(examples), config.chunk_size).items():
        rows += _read_rows(part, min(config.chunk_size, len(examples) - start))
    pairs = zip(examples, rows, strict=True)
    labelled = [Example(example.source, row["text"]) for example, row in pairs]
    facts = {**_counts(rows, examples), "sha256": checksum(labelled), "env": env, "schema": SCHEMA}
    write_json(card_path(output), {**work, **facts})
    keys = (config.source_key, config.target_key)
    lines = (
        json.dumps(dict(zip(keys, (e.source, e.target), strict=True)), ensure_ascii=False)
        for e in labelled
    )
    write_atomically(output, "".join(f"{line}\n" for line in lines))


# ------------------------------------------------------------------------------ chunks


def _label_chunks(
    state: PartialState,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    parts: Path,
    work: dict[str, Any],
    config: LabelConfig,
    progress: bool,
) -> None:
    """Label the chunks that `parts` does not hold yet; returns when all processes are done."""
    files = _chunk_files(parts, len(examples), config.chunk_size)
    if not is_same_work(parts / "work.json", work) and state.is_main_process:
        parts.mkdir(parents=True, exist_ok=True)
        write_json(parts / "work.json", work)
    missing = [start for start in files if not files[start].exists()]
    state.wait_for_everyone()  # nothing is written before everyone knows what is missing
    own = missing[state.process_index :: state.num_processes]
    share = [examples[start : start + config.chunk_size] for start in own]
    shown = progress and state.is_main_process
    bar = progress_bar("labelling", sum(map(len, share)), shown=shown)
    with bar:
        for start, chunk in zip(own, share, strict=True):
            rows = _label_chunk(model, tokenizer, chunk, config, bar)
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            write_atomically(files[start], "".join(f"{line}\n" for line in lines))
    state.wait_for_everyone()


def _chunk_files(parts: Path, examples: int, size: int) -> dict[int, Path]:
    """Where the chunks are written, by their first example."""
    starts = range(0, examples, size)
    return {start: parts / f"{number:06}.jsonl" for number, start in enumerate(starts)}


def _label_chunk(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chunk: Sequence[Example],
    config: LabelConfig,
    bar: tqdm,
) -> list[dict[str, Any]]:
    """A chunk's outputs, in its order; batches are of similar lengths."""
    sources = [config.prefix + example.source for example in chunk]
    lengths = [len(ids) for ids in tokenizer(sources)["input_ids"]]
    order = sorted(range(len(chunk)), key=lengths.__getitem__, reverse=True)
    ends = end_tokens(model)
    rows: dict[int, dict[str, Any]] = {}
    for first in range(0, len(order), config.batch_size):
        batch = order[first : first + config.batch_size]
        outputs = generate_tokens(
            model,
            tokenizer,
            [sources[i] for i in batch],
            max_source_tokens=config.max_source_tokens,
            max_new_tokens=config.max_new_tokens,
            num_beams=config.num_beams,
        )
        for i, tokens in zip(batch, outputs, strict=True):
            rows[i] = {
                "text": tokenizer.decode(tokens, skip_special_tokens=True),
                "tokens": len(tokens),
                "finished": tokens[-1] in ends,
                "cut": lengths[i] > config.max_source_tokens,
            }
        bar.update(len(batch))
    return [rows[i] for i in range(len(chunk))]


def _read_rows(path: Path, size: int) -> list[dict[str, Any]]:
    """The lines of a finished chunk, of which there must be `size`.

    Raises:
        BildError: it is damaged.
    """
    rows = read_lines(path, _read_row)
    if len(rows) != size:
        raise BildError(f"{path} holds {len(rows)} lines, not {size}; remove it to label them")
    return rows


def _read_row(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    for name, kind in FIELDS.items():
        if type(row[name]) is not kind:
            raise ValueError(f"{name} is {row[name]!r:.40}")
    return row


def _counts(rows: Sequence[dict[str, Any]], examples: Sequence[Example]) -> dict[str, Any]:
    pairs = zip(rows, examples, strict=True)
    return {
        "counts": {
            "examples": len(rows),
            "output_tokens": sum(row["tokens"] for row in rows),
            "truncated_sources": sum(row["cut"] for row in rows),
            "unfinished_outputs": sum(not row["finished"] for row in rows),
            "empty_outputs": sum(not row["text"] for row in rows),
            "equal_to_the_reference": sum(row["text"] == e.target for row, e in pairs),
        }
    }
