"""The large model alone against the pair on one source, side by side and watched as they write.

The two take turns, one token at a time, and the next turn goes to the one that has used less time
so far. While one works the other rests, so each has the machine to itself, both stand at the same
time on their own clocks, and whatever else slows the machine slows both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.evaluation.arms import BILD, VANILLA
from bild.evaluation.own import OwnArm
from bild.generation.loading import load_runner, source_tokens
from bild.generation.output import BiLDOutput
from bild.generation.pair import BiLDModel
from bild.generation.stats import DecodeStats
from bild.generation.trace import Trace
from bild.tasks.sources import locate_models

WORD_STARTS = ("\u2581", "\u0120")  # how SentencePiece and byte-level BPE write a leading space


@dataclass(frozen=True)
class Runner:
    """One arm of a race, as far as it has come.

    Attributes:
        text: what it has written.
        seconds: its own wall clock: everything `generate` does, encoders included.
        stats: what happened; None while it is still writing.
        trace: who wrote what; None while it is still writing.
        pieces: the text of each of `trace.tokens`, with the space before it.
    """

    text: str
    seconds: float
    stats: DecodeStats | None = None
    trace: Trace | None = None
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Race:
    """Both arms over one source, at one moment.

    Attributes:
        source: the text.
        config: the pair's thresholds and variant.
        alone: the large model alone.
        bild: the pair.
        source_tokens: tokens of the source, prefix included.
        max_source_tokens, max_new_tokens: how many of them are read, and the limit of an output.
        unknown: characters of the source that the tokenizer does not know.
    """

    source: str
    config: BiLDConfig
    alone: Runner
    bild: Runner
    source_tokens: int
    max_source_tokens: int
    max_new_tokens: int
    unknown: str

    @property
    def finished(self) -> bool:
        return self.alone.trace is not None and self.bild.trace is not None

    @property
    def speedup(self) -> float:
        """Seconds of the large model alone over those of the pair."""
        return self.alone.seconds / self.bild.seconds


@dataclass(frozen=True)
class Racer:
    """A loaded pair, ready to race; one race at a time.

    Attributes:
        pair: the models.
        tokenizer: theirs.
        prefix: put before every source.
        max_source_tokens: longer sources are cut, prefix included.
        max_new_tokens: limit of an output.
    """

    pair: BiLDModel
    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    max_source_tokens: int = 1024
    max_new_tokens: int = 128

    @classmethod
    def load(cls, config: EvalConfig) -> Racer:
        """The models, the prefix and the limits of an evaluation, without its data.

        Raises:
            BildError: whatever cannot be found or does not fit, by name and value.
        """
        found = locate_models(config)
        if found.small is None:
            raise BildError("a race needs two models; choose the mode unaligned or aligned")
        pair, tokenizer = load_runner(config, found)
        assert isinstance(pair, BiLDModel)
        task = found.task
        return cls(pair, tokenizer, task.prefix, task.max_source_tokens, task.max_new_tokens)

    def warm_up(self, source: str) -> None:
        """Race for a few turns: a model's first forwards are its slowest."""
        with closing(self.run(source, BiLDConfig())) as race:
            for _ in islice(race, 16):
                pass

    def run(self, source: str, config: BiLDConfig) -> Generator[Race]:
        """Race: the state after every turn, the last of them finished.

        Raises:
            BildError: a source that is empty or no text, or what `generate` refuses.
        """
        ids, length = self._read(source)
        unknown = unknown_characters(self.tokenizer, source)
        arms = [_Turns(arm) for arm in self._arms(ids, config)]
        try:
            while running := [arm for arm in arms if not arm.done]:
                min(running, key=lambda arm: arm.seconds).step()
                alone, bild = (self._runner(arm) for arm in arms)
                limits = self.max_source_tokens, self.max_new_tokens
                yield Race(source, config, alone, bild, length, *limits, unknown)
        finally:
            for arm in arms:
                arm.abandon()

    def _read(self, source: str) -> tuple[Tensor, int]:
        """The tokens that the models read, (1, S), and how many there are of the whole source."""
        if not source.strip():
            raise BildError("the source is empty; give a sentence")
        try:
            source.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BildError(f"the source is not valid Unicode ({error.reason})") from None
        ids, length = source_tokens(self.tokenizer, self.prefix + source, self.max_source_tokens)
        return ids.to(self.pair.device), length

    def _arms(self, ids: Tensor, config: BiLDConfig) -> tuple[_Generate, _Generate]:
        """The large model alone, and the pair."""
        arms = OwnArm(VANILLA, self.pair), OwnArm(BILD, self.pair, config)
        options = {"max_new_tokens": self.max_new_tokens, "output_trace": True}

        def generating(arm: OwnArm) -> _Generate:
            mask = torch.ones_like(ids)
            return lambda streamer: arm.decoder(ids, mask, streamer=streamer, **options)()

        return generating(arms[0]), generating(arms[1])

    def _runner(self, arm: _Turns) -> Runner:
        text = self.tokenizer.decode(arm.tokens, skip_special_tokens=True)
        if arm.output is None:
            return Runner(text, arm.seconds)
        trace = arm.output.trace
        assert trace is not None
        pieces = tuple(token_text(self.tokenizer, t.token) for t in trace.tokens)
        return Runner(text, arm.seconds, arm.output.stats, trace, pieces)


def unknown_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The characters of a text that a tokenizer drops or reads as unknown, each once."""
    if tokenizer.unk_token_id is None:
        return ""
    letters = [c for c in dict.fromkeys(text) if not c.isspace()]
    read = tokenizer(letters, add_special_tokens=False)["input_ids"] if letters else []
    return "".join(c for c, ids in zip(letters, read, strict=True) if tokenizer.unk_token_id in ids)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token, with the space before it where it starts a word."""
    text = tokenizer.decode([token])
    starts_word = str(tokenizer.convert_ids_to_tokens(token)).startswith(WORD_STARTS)
    return f" {text.lstrip()}" if starts_word else text


_Generate = Callable[[BaseStreamer], BiLDOutput]


class _AbandonedError(Exception):
    """Unwinds a `generate` that nobody waits for."""


class _Turns(BaseStreamer):
    """One `generate` in a thread of its own, which only runs within `step`.

    Attributes:
        tokens: what it has written.
        seconds: what it has taken.
        output: what it returned, once it has.
    """

    def __init__(self, generate: _Generate) -> None:
        self.tokens: list[int] = []
        self.seconds = 0.0
        self.output: BiLDOutput | None = None
        self.done = False
        self._error: BaseException | None = None
        self._abandoned = False
        self._since = 0.0
        self._go, self._rests = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(generate,), daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Run up to the next token, or the end."""
        self._go.release()
        self._rests.acquire()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End it, wherever it stands."""
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()
        self._rest()
        self._wait()

    def end(self) -> None:
        """Nothing to do: the end of `generate` follows."""

    def _run(self, generate: _Generate) -> None:
        try:
            self._wait()
            self.output = generate(self)
        except _AbandonedError:
            return
        except BaseException as error:
            self._error = error
        self.done = True
        self._rest()

    def _wait(self) -> None:
        self._go.acquire()
        if self._abandoned:
            raise _AbandonedError
        self._since = time.perf_counter()

    def _rest(self) -> None:
        self.seconds += time.perf_counter() - self._since
        self._rests.release()
