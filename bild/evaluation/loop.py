"""The one loop over examples: every example decoded by each arm in turn, timed, written down.

For each example the arms run one after the other in one process, in a random order that the seed
fixes, so that a noisy or shared machine slows them alike. Timed is decoding alone, all encoders
included. Every finished example is a line of samples.jsonl at once; a run that was stopped goes on
there, and whatever the file says that is not of this run is refused by its line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bild.errors import BildError, first_line
from bild.evaluation.arms import Arm, ArmId, BatchArm, Case
from bild.evaluation.codec import decode as decode_json
from bild.files import append_lines, as_json, read_lines
from bild.generation.stats import DecodeStats

EXCLUDED_FROM_TIME = ("loading", "tokenization", "detokenization", "scoring", "warm-up")


@dataclass(frozen=True)
class Item:
    """One example.

    Attributes:
        source: its text, or what else it is called.
        reference: what should come out, where that is known.
        case: what is decoded.
        truncated: the source was longer than what is decoded.
    """

    source: str
    reference: str | None
    case: Case
    truncated: bool = False


@dataclass(frozen=True)
class ArmSample:
    """One example under one arm; as `Outcome`, with its text where there is a tokenizer."""

    text: str | None
    tokens: list[int]
    seconds: float
    encoder_seconds: float | None
    stats: DecodeStats | None

    @property
    def did(self) -> DecodeStats:
        """What happened, where the arm is one of ours."""
        assert self.stats is not None
        return self.stats


@dataclass(frozen=True)
class Sample:
    """One example under all arms: a line of samples.jsonl.

    Attributes:
        index: of the example.
        run: pass over the examples, from 0.
        source, reference: as of `Item`.
        source_tokens: of what was decoded.
        truncated: as of `Item`.
        arms: what they did.
        failed: arms that could not, and why; they stay out from then on.
        warmup_seconds: on the first line of a process: what the untimed examples took each arm.
        beside: what else was measured with this example.
        process: number of the one of several processes that decoded it; 0 where it was alone.
    """

    index: int
    run: int
    source: str
    reference: str | None
    source_tokens: int
    truncated: bool
    arms: dict[ArmId, ArmSample]
    failed: dict[ArmId, str] = field(default_factory=dict)
    warmup_seconds: dict[ArmId, float] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    process: int = 0

    BY_ARM = ("arms", "failed", "warmup_seconds")

    def of(self, kind: str) -> ArmSample:
        """What the first arm of this kind did."""
        return next(done for arm, done in self.arms.items() if arm.kind == kind)

    def to_json(self) -> str:
        """A line; arms by name."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in self.BY_ARM:
            fields[name] = {str(arm): v for arm, v in fields[name].items()}
        fields["arms"] = {name: asdict(arm) for name, arm in fields["arms"].items()}
        if not self.process:
            del fields["process"]
        return as_json(fields)

    @classmethod
    def from_json(cls, line: str, ids: Mapping[str, ArmId]) -> Sample:
        """The inverse of `to_json`; `ids` are the arms by name."""
        content = json.loads(line)
        sample = decode_json(_Line, content)
        unknown = [n for part in cls.BY_ARM for n in getattr(sample, part) if n not in ids]
        if unknown:
            raise BildError(f"the arm {unknown[0]!r} is not one of this run")
        fields = {name: getattr(sample, name) for name in cls.__dataclass_fields__}
        for name in cls.BY_ARM:
            fields[name] = {ids[arm]: v for arm, v in fields[name].items()}
        return cls(**fields)


@dataclass(frozen=True)
class _Line:
    """A `Sample` as JSON has it: its arms by name."""

    index: int
    run: int
    source: str
    reference: str | None
    source_tokens: int
    truncated: bool
    arms: dict[str, ArmSample]
    failed: dict[str, str]
    warmup_seconds: dict[str, float]
    beside: dict[str, Any]
    process: int = 0


# ------------------------------------------------------------------------------ the loop


@dataclass(frozen=True)
class Loop:
    """How examples are gone through.

    Attributes:
        items: the examples.
        warmup: untimed examples before the first.
        batch_size: examples that an arm decodes together before the next arm does. Over one, arms
            must be `BatchArm`s, and an example's seconds are its batch's, shared out evenly.
        runs: passes over the examples.
        seed: of the order of arms.
        to_text: makes text of output tokens; None where nobody reads it.
        beside: measures something else with each example, when these arms have run.
        may_fail: an arm that raises stays out from then on, instead of ending the run.
    """

    items: Sequence[Item]
    warmup: int = 0
    batch_size: int = 1
    runs: int = 1
    seed: int = 0
    to_text: Callable[[list[int]], str] | None = None
    beside: Callable[[Item, list[ArmId]], dict[str, Any]] | None = None
    may_fail: bool = False

    @property
    def total(self) -> int:
        """Lines of a finished run."""
        return len(self.items) * self.runs

    def batch(self, number: int) -> Sequence[Item]:
        """The examples that are decoded with the one of this line, from it on.

        Batches begin at the same lines of each pass, also where a run goes on within one.
        """
        index = number % len(self.items)
        return self.items[index : index + self.batch_size - index % self.batch_size]

    def starts(self, number: int) -> Iterator[int]:
        """The numbers of the lines at which batches begin, from this one on."""
        while number < self.total:
            yield number
            number += len(self.batch(number))


def order(count: int, number: int, seed: int) -> list[int]:
    """The order of `count` arms for the line of this number: random, and fair to who is first.

    In each `count` lines in a row, from a multiple of it on, every arm comes first once, in drawn
    turns; the others follow in an order drawn for the line.
    """
    block, turn = divmod(number, count)
    first = int(np.random.default_rng([seed, count, block]).permutation(count)[turn])
    others = np.random.default_rng([seed, count, block, turn]).permutation(count)
    return [first, *(int(i) for i in others if i != first)]


def samples(
    arms: Sequence[Arm],
    loop: Loop,
    path: Path,
    failed: Mapping[ArmId, str] | None = None,
    ids: Sequence[ArmId] | None = None,
    known: Sequence[Sample] | None = None,
) -> Iterator[Sample]:
    """The examples in samples.jsonl, then those decoded from there on, each written down at once.

    Args:
        arms: each with an id of its own.
        loop: the examples, and how they are gone through.
        path: the file, made where it is missing.
        failed: arms that stay out, and why.
        ids: of all arms, those that failed included, in their order; None for those of `arms`.
        known: what the caller has read of the file; None: it is read here.

    Raises:
        BildError: as `read_samples`; whatever an arm raises.
    """
    ids = [arm.id for arm in arms] if ids is None else ids
    known = read_samples(path, ids, loop) if known is None else known
    yield from known
    fresh = decode(arms, loop, loop.starts(len(known)), failed, ids)
    yield from append_lines(path, fresh, Sample.to_json)


def decode(
    arms: Sequence[Arm],
    loop: Loop,
    starts: Iterable[int] | None = None,
    failed: Mapping[ArmId, str] | None = None,
    ids: Sequence[ArmId] | None = None,
    process: int = 0,
) -> Iterator[Sample]:
    """Decode batch by batch. `starts` as of `Loop`, None for all; the others as of `samples`."""
    waiting = iter(loop.starts(0) if starts is None else starts)
    first = next(waiting, None)
    if first is None:  # nothing to warm up for
        return
    running = {arm.id: arm for arm in arms}
    assert len(running) == len(arms), "two arms have one id"
    out = {} if failed is None else dict(failed)
    ids = list(running) if ids is None else ids
    warmup_seconds = _warm_up(running, loop, out)
    for start in chain([first], waiting):
        batch = loop.batch(start)
        done: dict[ArmId, list[ArmSample]] = {}
        for place in order(len(ids), start // loop.batch_size, loop.seed):
            if ids[place] in running:
                found = _try(running, ids[place], batch, loop, out)
                if found is not None:
                    done[ids[place]] = found
        if not running:
            reasons = "; ".join(f"{arm}: {why}" for arm, why in out.items())
            raise BildError(f"no arm can run: {reasons}")
        for place, item in enumerate(batch):
            run, index = divmod(start + place, len(loop.items))
            yield Sample(
                index=index,
                run=run,
                source=item.source,
                reference=item.reference,
                source_tokens=item.case.input_ids.shape[1],
                truncated=item.truncated,
                arms={arm: done[arm][place] for arm in ids if arm in done},
                failed=dict(out),
                warmup_seconds=warmup_seconds,
                beside={} if loop.beside is None else loop.beside(item, list(done)),
                process=process,
            )
            warmup_seconds = {}


def _warm_up(running: dict[ArmId, Arm], loop: Loop, failed: dict[ArmId, str]) -> dict[ArmId, float]:
    seconds = {}
    for arm in list(running):
        start = time.perf_counter()
        number = 0
        while number < min(loop.warmup, len(loop.items)) and arm in running:
            _try(running, arm, loop.batch(number), loop, failed)
            number += loop.batch_size
        seconds[arm] = time.perf_counter() - start
    return seconds


def _try(
    running: dict[ArmId, Arm],
    arm: ArmId,
    batch: Sequence[Item],
    loop: Loop,
    failed: dict[ArmId, str],
) -> list[ArmSample] | None:
    """What an arm does with examples; None where it fails and may."""
    one = running[arm]
    try:
        if loop.batch_size == 1:
            outcomes = [one.run(item.case) for item in batch]
        else:
            assert isinstance(one, BatchArm)
            outcomes = one.run_together([item.case for item in batch])
    except Exception as error:  # whatever an engine may raise
        if not loop.may_fail:
            raise
        failed[arm] = reason(error)
        del running[arm]
        return None
    return [
        ArmSample(
            None if loop.to_text is None else loop.to_text(o.tokens),
            *(o.tokens, o.seconds, o.encoder_seconds, o.stats),
        )
        for o in outcomes
    ]


def reason(error: Exception) -> str:
    """Why an arm failed, in a line."""
    line = first_line(error)
    named = isinstance(error, BildError) or line == type(error).__name__
    return line if named else f"{type(error).__name__}: {line}"


def read_samples(path: Path, ids: Sequence[ArmId], loop: Loop) -> list[Sample]:
    """The examples in samples.jsonl, checked against the data; nothing is written.

    Args:
        path: the file; no examples where it is missing.
        ids: of the run's arms.
        loop: of the run.

    Raises:
        BildError: a line that is doubled, missing, of another example or of another version.
    """
    by_name = {str(arm): arm for arm in ids}
    known = read_lines(path, lambda line: Sample.from_json(line, by_name))
    for number, sample in enumerate(known):
        line = f"{path}, line {number + 1}"
        if number >= loop.total:
            raise BildError(f"{line} is one too many: there are {loop.total} examples to decode")
        run, index = divmod(number, len(loop.items))
        if (sample.run, sample.index) != (run, index):
            raise BildError(
                f"{line} holds example {sample.index} of pass {sample.run} where example {index} "
                f"of pass {run} belongs: lines are missing, doubled or swapped; move the file "
                "away to start anew"
            )
        check_sample(sample, line, ids, loop)
    return known


def check_sample(sample: Sample, line: str, ids: Sequence[ArmId], loop: Loop) -> None:
    """Refuse a line that does not say of its example what this run would.

    Args:
        sample: what it says.
        line: what it is called.
        ids: of the run's arms.
        loop: of the run.

    Raises:
        BildError: it is of another source or reference, or lacks an arm.
    """
    item = loop.items[sample.index]
    for what in ("source", "reference"):
        if getattr(sample, what) != getattr(item, what):
            raise BildError(
                f"{line} has another {what} than example {sample.index} of the data; move the file "
                "away to start anew"
            )
    missing = [arm for arm in ids if arm not in sample.arms and arm not in sample.failed]
    if missing:
        raise BildError(f"{line} lacks the arm {str(missing[0])!r}; move the file away")
