"""Decode texts with a pair, one after the other, each finished line written down at once."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bild._version import __version__
from bild.checkpoints.identity import describe_model, describe_tokenizer
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.files import as_json
from bild.generation.loading import load_runner, source_tokens
from bild.generation.pair import BiLDModel
from bild.generation.sequences import stream_of
from bild.generation.stats import DecodeStats
from bild.generation.texts import written_texts
from bild.outputs.drawing import Drawing
from bild.outputs.reading import PIPE, FileJob, Text, look_through, read_texts
from bild.outputs.shared import decode_together, is_shared
from bild.outputs.writing import Partial, Pipe, is_finished, partial
from bild.processes import launch
from bild.progress import progress_bar
from bild.tasks.registry import Task
from bild.tasks.sources import Models


@dataclass(frozen=True)
class Written:
    """An output.

    Attributes:
        text: without special tokens; a list where several were drawn.
        stats: what happened, in all of them.
        truncated: the source was longer than what was read.
    """

    text: str | list[str]
    stats: DecodeStats
    truncated: bool = False


@dataclass(frozen=True)
class Decoding:
    """A pair that is loaded, and all that decides its outputs.

    Attributes:
        pair: on its engine.
        tokenizer: of both.
        config: thresholds and rules.
        task: prefix and limits.
        work: as JSON values, what two runs must share to write the same.
        drawing: how outputs are drawn; None where they are greedy.
    """

    pair: BiLDModel
    tokenizer: PreTrainedTokenizerBase
    config: BiLDConfig
    task: Task
    work: dict[str, Any]
    drawing: Drawing | None = None

    @classmethod
    def load(cls, config: EvalConfig, found: Models, drawing: Drawing | None = None) -> Decoding:
        """Load the pair.

        Raises:
            BildError: whatever cannot be loaded or does not fit, by name.
        """
        assert config.bild is not None
        assert found.small is not None
        pair, tokenizer = load_runner(config, found)
        assert isinstance(pair, BiLDModel)
        named = found.large if found.tokenizer is None else found.tokenizer
        limits = ("prefix", "max_source_tokens", "max_new_tokens")
        work = {
            "version": __version__,
            "large": describe_model(found.large, pair.large)["fingerprint"],
            "small": describe_model(found.small, pair.small)["fingerprint"],
            "tokenizer": describe_tokenizer(named)["fingerprint"],
            "rules": config.bild.to_dict(),
            "engine": str(pair.engine),
            "dtype": config.dtype,
            "forced_bos": config.forced_bos,
            **{name: getattr(found.task, name) for name in limits},
        }
        if drawing is not None:
            work["drawing"] = asdict(drawing)
        return cls(pair, tokenizer, config.bild, found.task, work, drawing)

    def write_all(self, texts: Iterable[Text], batch_size: int) -> Iterator[Written]:
        """Decode texts, so many at a time; in their order.

        What holds nothing but spaces stays empty and is not decoded.
        """
        cut: deque[bool | None] = deque()  # of each text on its way; None where it is empty

        def rows() -> Iterator[dict[str, Any]]:
            for text in texts:
                if not text.source.strip():
                    cut.append(None)
                    continue
                limit = self.task.max_source_tokens
                ids, length = source_tokens(self.tokenizer, self.task.prefix + text.source, limit)
                cut.append(length > limit)
                ids = ids.to(self.pair.device)
                row: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                if self.drawing is not None:
                    # By its line, so that it is the same however many are decoded at a time, and
                    # in a run that goes on.
                    row["generator"] = stream_of(self.drawing.seed, text.number)
                yield row

        def empty() -> Iterator[Written]:
            while cut and cut[0] is None:
                cut.popleft()
                count = 1 if self.drawing is None else self.drawing.num_return_sequences
                yield Written("" if count == 1 else [""] * count, DecodeStats())

        for output in self._outputs(rows(), batch_size):
            yield from empty()
            truncated = bool(cut.popleft())
            yield Written(written_texts(self.tokenizer, output), output.stats, truncated)
        yield from empty()

    def _outputs(self, rows: Iterator[dict[str, Any]], batch_size: int) -> Iterator[Any]:
        options: dict[str, Any] = {
            "max_new_tokens": self.task.max_new_tokens,
            "num_beams": 1,
            "return_dict_in_generate": True,
            **({"do_sample": False} if self.drawing is None else self.drawing.settings),
        }
        if batch_size > 1:
            many: Any = self.pair.generate_many(rows, self.config, batch_size=batch_size, **options)
            return many
        return (self.pair.generate(**row, bild_config=self.config, **options) for row in rows)


def generate_file(decoding: Decoding, job: FileJob) -> int:
    """Decode a file's texts in their order; go on where the same work was stopped.

    Args:
        decoding: the pair.
        job: what is read and written.

    Returns:
        How many texts there were.

    Raises:
        BildError: an input or output that cannot be used, by name and line, or an output that is
            there already.
    """
    if launch().count > 1 and PIPE in (job.source, job.output):
        raise BildError("several processes share files, not pipes; name files, or start one")
    total, sha256 = None, None
    if job.source != PIPE:
        contents = look_through(job.source)
        total, sha256 = contents.count, contents.sha256
    texts = read_texts(job.source, job.source_form, job.source_key)
    if job.output == PIPE:
        pipe = Pipe()
        _write_all(decoding, job, texts, pipe, total)
        return pipe.done
    names = ("source_form", "output_form", "source_key", "output_key", "stats")
    own = {name: getattr(job, name) for name in names}
    work = {**decoding.work, **own, "input": sha256}
    output = Path(job.output).expanduser()
    if total is not None and not job.overwrite and is_finished(output, work):
        _say_done(job, total)
        return total
    if total is not None and is_shared(output):
        _write_together(decoding, job, work, total)
        return total
    # What comes through a pipe may be something else than it was the last time.
    with partial(output, work, anew=job.source == PIPE) as lines:
        _write_all(decoding, job, islice(texts, lines.done, None), lines, total)
        lines.move_to(output)
    return lines.done


def _say_done(job: FileJob, total: int) -> None:
    if launch().is_first and not job.quiet:
        print(
            f"{job.output} is done: this command has written all {total:,} outputs; --overwrite "
            "decodes them again",
            file=sys.stderr,
        )


def _write_all(
    decoding: Decoding,
    job: FileJob,
    texts: Iterator[Text],
    lines: Partial | Pipe,
    total: int | None,
) -> None:
    bar = progress_bar(None, total, done=lines.done, unit="text", shown=not job.quiet)
    try:
        with bar:
            for text, written in zip_written(decoding, texts, job.batch_size):
                lines.add(as_line(job, text, written))
                bar.update()
    except KeyboardInterrupt as stop:
        stop.add_note(f"{lines.done:,} of {'?' if total is None else f'{total:,}'} texts are done")
        raise


def _write_together(decoding: Decoding, job: FileJob, work: dict[str, Any], total: int) -> None:
    """`_write_all` with other processes."""

    def decode(texts: Iterator[Text]) -> Iterator[str]:
        for text, written in zip_written(decoding, texts, job.batch_size):
            yield as_line(job, text, written)

    shown = not job.quiet and launch().is_first
    with progress_bar(None, total, unit="text", shown=shown) as bar:
        decode_together(decode, job, work, total, lambda done: bar.update(done - bar.n))


def zip_written(
    decoding: Decoding, texts: Iterable[Text], batch_size: int
) -> Iterator[tuple[Text, Written]]:
    """Each text with its output, in their order."""
    waiting: deque[Text] = deque()

    def taken() -> Iterator[Text]:
        for text in texts:
            waiting.append(text)
            yield text

    for written in decoding.write_all(taken(), batch_size):
        yield waiting.popleft(), written


def as_line(job: FileJob, text: Text, written: Written) -> str:
    """An output's line; in plain text, line breaks within it become spaces."""
    if job.output_form == "text":
        assert isinstance(written.text, str)  # several are refused before they are drawn
        return " ".join(written.text.splitlines())
    record: dict[str, Any] = dict(text.record or {"source": text.source})
    record[job.output_key] = written.text
    if job.stats:
        record["stats"] = {**asdict(written.stats), "truncated": written.truncated}
    return as_json(record)
