"""A T5 on a GPU: a decoder step is recorded once, as a CUDA graph, and replayed; so is the encoder.

Launching a step's kernels one by one from Python takes far longer than the GPU needs for them. A
graph launches all of them at once, but it reads and writes the same memory whenever it is replayed.
So everything that differs between two steps lies in memory that stays in its place: the tokens,
where they stand, the cache, what is made of the source. The step attends to all positions that
there is memory for, and those that a token must not see have the bias -inf.

The step ends with what the decoding loop asks of it, so that Python reads a few numbers, once.

Letters used for shapes: S source tokens, T fed tokens, P positions the cache holds, D model width,
H heads, C width of a head, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bild.checkpoints.drafter import spread
from bild.engines.t5_torch import (
    TorchEncoder,
    TorchSession,
    add,
    feed_forward,
    feed_together,
    norm,
    room_for,
)
from bild.engines.t5_weights import Stack

# Tokens of a step; one of another number has tokens behind its own that nobody looks at. What they
# leave in the cache is hidden until it is written over.
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)
WIDEST = WIDTHS[-1]  # longer feeds run as `TorchSession`'s
LONGEST_SOURCE = 512  # tokens; longer sources are encoded as by `TorchEncoder`
SOURCE_STEP = 16  # sources are recorded for lengths this far apart
WARM_UPS = 2  # runs before recording: libraries allocate and choose in the first ones

_recording = Lock()  # one step is recorded at a time


def records(device: torch.device) -> bool:
    """Whether models on this device decode by recorded steps."""
    return device.type == "cuda"


class GraphEncoder(TorchEncoder):
    """A `TorchEncoder` that is recorded for sources of so many tokens, hidden ones behind them."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        device = stack.embedding.device
        self._runs: dict[int, Callable[[], None]] = {}  # by length
        self._record = recorder(device)
        self._tokens = torch.zeros(LONGEST_SOURCE, dtype=torch.long, device=device)
        self._hidden = torch.ones(LONGEST_SOURCE, dtype=torch.bool, device=device)
        self._states = torch.zeros(
            (LONGEST_SOURCE, stack.width), dtype=stack.final_norm.dtype, device=device
        )
        self._bias(LONGEST_SOURCE)

    def _bias(self, length: int) -> list[Tensor]:
        before = self._biases
        tables = super()._bias(length)
        if self._biases is not before:  # what was recorded reads the old ones
            self._runs.clear()
            self._record = recorder(self.stack.embedding.device)
        return tables

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        size = len(tokens)
        if size > LONGEST_SOURCE or hidden is not None:
            return super().__call__(tokens, hidden)
        length = -(-size // SOURCE_STEP) * SOURCE_STEP
        self._tokens[:size] = tokens
        self._hidden[:size] = False
        self._hidden[size:] = True
        if length not in self._runs:
            self._runs[length] = self._record(partial(self._run, length))
        self._runs[length]()
        return self._states[:size].clone()

    def _run(self, length: int) -> None:
        run = super().__call__
        self._states[:length] = run(self._tokens[:length], self._hidden[:length])


class GraphSession(TorchSession):
    """A `TorchSession` whose short steps are recorded, and looked at where they run.

    Args:
        encode: the encoder, of which the session makes one of its own; None for a drafter.
        stack: the decoder's parameters.
    """

    def __init__(self, encode: TorchEncoder | None, stack: Stack) -> None:
        super().__init__(None if encode is None else GraphEncoder(encode.stack), stack)
        on_gpu = self.device.type == "cuda"
        self._steps: dict[int, Callable[[], None]] = {}  # by width
        self._record = recorder(self.device)
        # The first token's position, the tokens, and the tokens whose distances are asked for.
        self._asked = torch.zeros(1 + 2 * WIDEST, dtype=torch.long, device=self.device)
        self._told = torch.zeros(WIDEST, 3, dtype=torch.float64, device=self.device)
        # The same on the host's side, where a GPU reads and writes by itself.
        self._ask = torch.zeros(1 + 2 * WIDEST, dtype=torch.long, pin_memory=on_gpu)
        self._answer = torch.zeros(WIDEST, 3, dtype=torch.float64, pin_memory=on_gpu)
        self._offsets = torch.arange(WIDEST, device=self.device)
        self._scored = 0  # V of the rows below
        self._set_vocabulary(stack.vocab_size)

    def _set_vocabulary(self, vocab_size: int) -> None:
        """Memory for logits, which recorded steps write to."""
        self.vocab_size = vocab_size
        if self._scored == vocab_size:
            return
        w = self.stack
        self._forget_steps()
        self._scored, self._rows = vocab_size, w.rows(vocab_size)
        self._logits = torch.empty((WIDEST, self._rows), dtype=w.head.dtype, device=self.device)

    def _forget_steps(self) -> None:
        """Memory has moved: what was recorded works in the old."""
        self._steps.clear()
        self._record = recorder(self.device)

    @torch.inference_mode()
    def begin(self, states: Tensor, vocab_size: int) -> None:
        w = self.stack
        self._set_vocabulary(vocab_size)
        states = states.to(w.head.dtype)
        self._source = len(states)
        capacity = self._cross.shape[3]
        if capacity < self._source:
            self._forget_steps()
            capacity = room_for(self._source)
            self._cross = self._memory(capacity)
            self._unseen = torch.zeros((1, 1, capacity), dtype=w.head.dtype, device=self.device)
        # Nothing of an earlier source may be left: what is hidden still is multiplied, by zero,
        # and of a damaged one it may be NaN.
        self._cross.zero_()
        self._cache.zero_()
        made = functional.linear(states, w.cross_projections)  # (S, layers 2 H C)
        made = made.view(-1, len(w.layers), 2, w.heads, w.head_width)
        self._cross[:, :, :, : self._source] = made.permute(1, 2, 3, 0, 4)
        self._unseen.zero_()
        self._unseen[..., self._source :] = -torch.inf

    def reserve(self, length: int, needed: int) -> None:
        if needed <= self._cache.shape[3]:
            return
        super().reserve(length, needed)
        self._forget_steps()
        capacity = self._cache.shape[3]
        # The entry of each key in the table of biases by offset, for a query at position 0.
        self._entries = torch.arange(capacity - 1, 2 * capacity - 1, device=self.device)

    @torch.inference_mode()
    def feed(self, length: int, tokens: Sequence[int]) -> Tensor:
        if len(tokens) > WIDEST:
            return feed_together([self], [length], [tokens])[0]
        self._run(length, tokens)
        logits = self._logits[: len(tokens)].clone()  # the next step writes where these lie
        self._wait()
        shortlist = None if self.stack.shortlist is None else self.stack.shortlist[: self._rows]
        return spread(logits, shortlist, self.vocab_size)

    @torch.inference_mode()
    def look(
        self, length: int, tokens: Sequence[int], drafted: Sequence[int] = (), first_row: int = 0
    ) -> list[list[float]]:
        """`feed`, and what it says of each next token instead of its scores.

        Args:
            length: of the cached tokens.
            tokens: T of them, at most `WIDEST`.
            drafted: tokens whose distances are asked for; of a head without a shortlist alone.
            first_row: the row of the first of them.

        Returns:
            T times: the best token, its distance, and that of the drafted token, if there is one;
            in nats.
        """
        self._run(length, tokens, drafted, first_row)
        self._answer.copy_(self._told, non_blocking=True)
        self._wait()
        told: list[list[float]] = self._answer[: len(tokens)].tolist()
        return told

    def _run(
        self, length: int, tokens: Sequence[int], drafted: Sequence[int] = (), first_row: int = 0
    ) -> None:
        width = next(width for width in WIDTHS if width >= len(tokens))
        self.reserve(length, length + width)
        asked = [0] * (1 + 2 * WIDEST)
        asked[0] = length
        asked[1 : 1 + len(tokens)] = tokens
        first = 1 + WIDEST + first_row
        asked[first : first + len(drafted)] = drafted
        self._ask.copy_(torch.tensor(asked, device="cpu"))
        self._asked.copy_(self._ask, non_blocking=True)
        if width not in self._steps:
            self._steps[width] = self._record(partial(self._step, width))
        self._steps[width]()

    def _wait(self) -> None:
        """Until the GPU has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _step(self, count: int) -> None:
        """The decoder for `count` tokens: from `_asked`, to `_logits` and `_told`.

        Nothing here may depend on what a tensor holds, nor wait for it.
        """
        w = self.stack
        positions = self._offsets[:count] + self._asked[0]
        x = w.embed(self._asked[1 : 1 + count])  # (T, D)
        entries = (self._entries - positions[:, None]).flatten()
        previous, bias = None, x
        for i, layer in enumerate(w.layers):
            if layer.buckets is not previous:
                previous = layer.buckets
                bias = self._bias[i].index_select(1, entries).view(w.heads, count, -1)  # (H, T, P)
            projected = functional.linear(norm(x, layer.own.norm, w.epsilon), w.projections[i])
            projected = projected.view(count, 3, w.heads, w.head_width).permute(1, 2, 0, 3)
            self._cache[i].index_copy_(2, positions, projected[1:])
            x = add(x, attend(projected[0], self._cache[i], bias), layer.own.o)
            assert layer.cross is not None
            asking = functional.linear(norm(x, layer.cross.norm, w.epsilon), layer.cross.q)
            asking = asking.view(count, w.heads, w.head_width).transpose(0, 1)
            x = add(x, attend(asking, self._cross[i], self._unseen), layer.cross.o)
            x = feed_forward(x, layer.feed, w.activation, w.epsilon)
        x = norm(x, w.final_norm, w.epsilon)
        if w.output_scale != 1:
            x = x * w.output_scale
        logits = self._logits[:count]
        torch.mm(x, w.head[: self._rows].t(), out=logits)
        drafted = self._asked[1 + WIDEST : 1 + WIDEST + count]
        self._told[:count] = told_of(logits, drafted, w.shortlist)


def attend(q: Tensor, cached: Tensor, bias: Tensor) -> Tensor:
    """Queries (H, T, C) over cached keys and values (2, H, n, C), with biases that are broadcast to
    (H, T, n) -> (T, H C)."""
    keys, values = cached
    mixed = functional.scaled_dot_product_attention(
        q[None], keys[None], values[None], attn_mask=bias[None], scale=1
    )
    return mixed[0].transpose(0, 1).reshape(q.shape[1], -1)


def told_of(logits: Tensor, drafted: Tensor, shortlist: Tensor | None) -> Tensor:
    """Per row the best token (the first of equals), its distance and that of a drafted one; (T, 3).

    Args:
        logits: (T, rows) of the head.
        drafted: (T,) rows of the head.
        shortlist: the tokens of the head's rows; None where each row is that of its number.
    """
    floats = logits.float()
    best = floats.max(-1).indices
    distances = -floats.log_softmax(-1).gather(-1, torch.stack((best, drafted), -1))
    tokens = best if shortlist is None else shortlist.index_select(0, best)
    return torch.cat((tokens.double()[:, None], distances.double()), -1)


@cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """For warming up, and for recording: what libraries work in is one stream's own, so that what
    is recorded shares it with nothing but what is recorded."""
    warm_up, recording = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
    return warm_up, recording


def recorder(device: torch.device) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """What makes of a step one that is replayed; on other devices than a GPU, the step itself."""
    return Recorder(device) if device.type == "cuda" else _as_it_is


def _as_it_is(step: Callable[[], None]) -> Callable[[], None]:
    return step


class Recorder:
    """Records steps that never run at the same time, and so may share memory for what they compute.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does as `step` does now, in the same memory, whenever it is called.

        `step` is run, which must do no harm; where this driver cannot record it, it is returned.
        """
        with (
            _recording,
            torch.cuda.device(self.device),
            # Others plan at run time, for the sizes that they see.
            sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]),
        ):
            warm_up, stream = _side_streams(self.device)
            warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm_up):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(warm_up)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(
                    graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"
                ):
                    step()
            except RuntimeError as error:
                warnings.warn(
                    f"a decoder step could not be recorded as a CUDA graph ({error}); its kernels "
                    "are launched one by one, which is slower",
                    stacklevel=2,
                )
                return step
        return graph.replay
