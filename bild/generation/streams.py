"""Tokens handed to a streamer of transformers while an output is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation import BaseStreamer

from bild.generation.decoding import OnCommit
from bild.generation.trace import SILENT, Recorder


@dataclass(frozen=True)
class Stream:
    """Hands tokens to a streamer of transformers, once they can no longer be rolled back.

    Attributes:
        streamer: None for nobody.
        has_prompt: whether it has been given the prompt already.
    """

    streamer: BaseStreamer | None = None
    has_prompt: bool = False

    def begin(self, prompt: Tensor, recorder: Recorder = SILENT) -> OnCommit | None:
        """What is to be told of tokens that are committed; the prompt (1, P) is handed on.

        A streamer with a method `put_traced`, which takes a list of `TracedToken`s, gets the tokens
        by that instead, where the recorder keeps them.
        """
        if self.streamer is None:
            return None
        if not self.has_prompt:
            self.streamer.put(prompt.cpu())
        put_traced = getattr(self.streamer, "put_traced", None)
        if put_traced is None or recorder is SILENT:
            return self._put
        return lambda tokens: put_traced(recorder.latest(len(tokens)))

    def _put(self, tokens: list[int]) -> None:
        assert self.streamer is not None
        for token in tokens:
            self.streamer.put(torch.tensor([token], device="cpu"))

    def end(self) -> None:
        """There is no more to come."""
        if self.streamer is not None:
            self.streamer.end()
