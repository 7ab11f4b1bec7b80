"""A bounded queue of texts, and the threads that decode them.

A text that comes alone is decoded alone, which is the fastest for it. Where several wait they are
decoded together, and those that come meanwhile join them as soon as there is room, whatever their
settings: nobody waits for the longest of a batch (`bild.generation.batching`).

Nothing here knows of HTTP: a `Job` is put in, its future gets the `Answer`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.generation.batching import fail_alone, run_rows
from bild.generation.decoding import Steps, answer_at_once
from bild.generation.loading import source_tokens
from bild.generation.output import BiLDOutput
from bild.generation.pair import BiLDModel
from bild.generation.stats import DecodeStats
from bild.generation.steering import Steering
from bild.generation.trace import TracedToken
from bild.outputs.drawing import Drawing
from bild.serve.drawing import options
from bild.shortage import of_a_text
from bild.show.race import token_text

MEMORY = 0.9  # how much the past counts in the mean of seconds a text


@dataclass(frozen=True)
class Piece:
    """The text of one token, with the space before it where it starts a word, and its writer."""

    text: str
    writer: str


@dataclass(frozen=True)
class Answer:
    """What came of a text.

    Attributes:
        text: the output.
        stats: what happened.
        pieces: who wrote each token; None where nobody asked.
        source_tokens: of the text, prefix included.
        truncated: whether the text was longer than what is read.
        seconds: of decoding.
    """

    text: str
    stats: DecodeStats
    pieces: tuple[Piece, ...] | None
    source_tokens: int
    truncated: bool
    seconds: float


@dataclass(eq=False)
class Job:
    """A text that waits to be decoded.

    Attributes:
        text: the source.
        config: thresholds and rules.
        max_new_tokens: limit of the output.
        writers: whether to say who wrote each token.
        on_pieces: is told of tokens that can no longer change, in a thread of the service.
        drawing: how the output is drawn; None for a greedy one.
        place: of the text in its request, by which it draws.
        future: gets an `Answer`, or a `BildError`.
        since: when it came, by the monotonic clock.
    """

    text: str
    config: BiLDConfig
    max_new_tokens: int
    writers: bool = False
    on_pieces: Callable[[list[Piece]], None] | None = None
    drawing: Drawing | None = None
    place: int = 0
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    abandoned: bool = False  # nobody waits for it any more

    @property
    def watched(self) -> bool:
        """Whether it is to be told who wrote each token."""
        return self.writers or self.on_pieces is not None


class QueueFullError(BildError):
    """There is no room for more texts.

    Attributes:
        seconds: after which there may be room again.
    """

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class AbandonedError(Exception):
    """Nobody waits for this output."""


@dataclass(frozen=True)
class Translator:
    """A loaded pair, and how its texts are read and written.

    Attributes:
        pair, tokenizer: the models and their tokenizer.
        prefix: put before every text.
        max_source_tokens, max_new_tokens: limits; longer texts are cut, longer outputs end.
    """

    pair: BiLDModel
    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    max_source_tokens: int = 1024
    max_new_tokens: int = 128
    _lock: threading.Lock = field(default_factory=threading.Lock)  # tokenizers cut one at a time

    def decode(self, job: Job) -> Answer:
        """Decode a text.

        Raises:
            BildError: what `BiLDModel.generate` refuses.
        """
        return answer_at_once(self._row(job))

    def decode_joining(
        self, jobs: Iterable[Job | None], size: int
    ) -> Iterator[tuple[Job, Answer | Exception]]:
        """Decode texts together, each to what it becomes alone.

        Args:
            jobs: taken as soon as there is room; None where none waits just now.
            size: how many are decoded at a time.

        Yields:
            Each job once it has ended, with its answer or its error.
        """
        taken: dict[int, Job] = {}
        number, steering = count(), self.pair.steering()

        def rows() -> Iterator[Steps[Answer | Exception] | None]:
            for job in jobs:
                if job is not None:
                    taken[next(number)] = job
                yield None if job is None else fail_alone(self._row(job, together=steering))

        for place, found in run_rows(rows(), size):
            yield taken.pop(place), found

    def _row(self, job: Job, *, together: Steering | None = None) -> Steps[Answer]:
        """A text's decoding, `together` with those that have the same, or alone."""
        ids, length = self._read(job)
        pieces = _Pieces(self, job) if job.watched else None
        start = time.perf_counter()
        output = yield from self.pair.steps(
            ids, torch.ones_like(ids), job.config,
            streamer=_Nobody(job) if pieces is None else pieces,
            output_trace=pieces is not None, together=together,
            **options(job.max_new_tokens, job.drawing, job.place),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        return self._answer(output, length, seconds, None if pieces is None else pieces.all)

    def _read(self, job: Job) -> tuple[Tensor, int]:
        """The tokens that are read, (1, S), and how many there are of the whole text."""
        with self._lock:
            ids, length = source_tokens(
                self.tokenizer, self.prefix + job.text, self.max_source_tokens
            )
        return ids.to(self.pair.device), length

    def _answer(
        self, output: Any, length: int, seconds: float, pieces: Sequence[Piece] | None = None
    ) -> Answer:
        assert isinstance(output, BiLDOutput)
        assert output.sequences is not None
        assert output.stats is not None
        return Answer(
            text=self.tokenizer.decode(output.sequences[0], skip_special_tokens=True),
            stats=output.stats,
            pieces=None if pieces is None else tuple(pieces),
            source_tokens=length,
            truncated=length > self.max_source_tokens,
            seconds=seconds,
        )

    def pieces(self, tokens: Sequence[TracedToken]) -> list[Piece]:
        """Tokens as text, those left out that are none, as the end of the sequence."""
        special = set(self.tokenizer.all_special_ids)
        return [
            Piece(token_text(self.tokenizer, t.token), t.writer)
            for t in tokens
            if t.token not in special
        ]


class Decodes(Protocol):
    """What decodes jobs: a `Translator`."""

    def decode(self, job: Job) -> Answer:
        """One job."""

    def decode_joining(
        self, jobs: Iterable[Job | None], size: int
    ) -> Iterator[tuple[Job, Answer | Exception]]:
        """Several, and those that come meanwhile."""


class _Nobody(BaseStreamer):
    """Ends a decoding that nobody waits for."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def put(self, value: Any) -> None:
        if self.job.abandoned:
            raise AbandonedError

    def end(self) -> None:
        """Nothing to do."""


class _Pieces(_Nobody):
    """Hands tokens on with their writers."""

    def __init__(self, translator: Translator, job: Job) -> None:
        super().__init__(job)
        self.translator = translator
        self.all: list[Piece] = []

    def put_traced(self, tokens: list[TracedToken]) -> None:
        self.put(tokens)
        new = self.translator.pieces(tokens)
        self.all += new
        if new and self.job.on_pieces is not None:
            self.job.on_pieces(new)


class Worker:
    """Threads that decode what is put in, first come, first served.

    Args:
        translator: decodes jobs.
        room: jobs that may wait.
        threads: how many.
        longest_wait: seconds after which a job that still waits is given up.
        batch: jobs that a thread decodes together, if so many wait.
    """

    def __init__(
        self,
        translator: Decodes,
        room: int,
        threads: int = 1,
        longest_wait: float = 60,
        batch: int = 1,
    ) -> None:
        self._translator, self._room, self._longest_wait = translator, room, longest_wait
        self._batch = batch
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.1  # of a text, on average
        self.running = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closed

    def put(self, jobs: Sequence[Job]) -> None:
        """Put jobs in: all of them or none.

        Raises:
            QueueFullError: there is no room for all of them, or the service ends.
        """
        with self._changed:
            if self._closed:
                raise QueueFullError("the service is about to end; ask another one", 5)
            if len(self._waiting) + len(jobs) > self._room:
                seconds = self._seconds * len(self._waiting) / len(self._threads)
                raise QueueFullError(
                    f"{len(self._waiting)} texts are waiting, and there is room for {self._room}; "
                    "come again later",
                    max(1, round(seconds)),
                )
            self._waiting.extend(jobs)
            self._changed.notify(len(jobs))

    def close(self) -> None:
        """Take no more jobs, and return when those that are there are done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self, *, wait: bool) -> Job | None:
        """The wanted job that waits longest; None where none does, and with `wait` none will."""
        while True:
            with self._changed:
                while wait and not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return None
                job = self._waiting.popleft()
            if self._is_wanted(job):
                with self._changed:
                    self.running += 1
                return job

    def _work(self) -> None:
        while (job := self._take(wait=True)) is not None:
            if self._batch > 1 and self._waiting:
                self._do_together(job)
            else:
                self._do(job)

    def _is_wanted(self, job: Job) -> bool:
        """Whether somebody still waits for a job, and has not waited too long."""
        waited = time.monotonic() - job.since
        if job.abandoned or not job.future.set_running_or_notify_cancel():
            return False
        if waited > self._longest_wait:
            late = f"the text has waited for {waited:.0f} s, which is too long; come again later"
            job.future.set_exception(QueueFullError(late, max(1, round(self._longest_wait))))
            return False
        return True

    def _do(self, job: Job) -> None:
        try:
            found: Answer | BaseException = self._translator.decode(job)
        except BaseException as error:  # whatever it is, whoever waits must hear of it
            found = error
        self._give(job, found)

    def _do_together(self, first: Job) -> None:
        """Decode a job with those that wait, and with those that come while any of them runs."""
        busy: list[Job] = []

        def coming() -> Iterator[Job | None]:
            job: Job | None = first
            while job is not None or busy:
                if job is not None:
                    busy.append(job)
                yield job
                job = self._take(wait=False)

        try:
            for job, found in self._translator.decode_joining(coming(), self._batch):
                self._give(job, found, len(busy))
                busy.remove(job)
        except Exception as error:  # then each alone, so that it is known whose fault it was
            for job in busy:
                if job.on_pieces is None:
                    self._do(job)
                else:  # nobody wants to read the beginning of a text twice
                    self._give(job, error)

    def _give(self, job: Job, found: Answer | BaseException, of: int = 1) -> None:
        """Hand over what came of a job; of so many that ran together."""
        with self._changed:
            self.running -= 1
        if isinstance(found, AbandonedError):
            found = BildError("nobody waits for this output")
        if isinstance(found, BaseException):
            job.future.set_exception(of_a_text(found))
            return
        self._seconds = MEMORY * self._seconds + (1 - MEMORY) * found.seconds / of
        job.future.set_result(found)
