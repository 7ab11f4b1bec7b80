"""Whether a model can be decoded in windows, found by trying: its tokens are fed in two ways.

Some models of transformers give other scores when several tokens are fed at once onto a cache: FSMT
then lets a token see those after it, ProphetNet refuses, and experts with little room route them
otherwise. A list of names would miss the next one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.errors import BildError

FIRST, COUNT, KEPT = 2, 8, 4  # tokens fed first, in all, and kept when the cache is cut

# What two ways of feeding may differ by, in spreads (standard deviations) of the scores. Sums are
# rounded otherwise in another order, in half precision much more so.
TOLERANCE, HALF_TOLERANCE = 5e-3, 0.15


class Probed(Protocol):
    """A decoder that has been given a source; see `HuggingFaceDecoder`."""

    model: PreTrainedModel
    vocab_size: int

    def restart(self) -> None:
        """Forget every token."""

    def forward(self, tokens: Sequence[int]) -> Tensor:
        """Feed tokens in one forward; their logits, (T, V)."""

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens."""


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def takes_several(decoder: Probed) -> bool:
    """Whether several tokens may be fed to a decoder's model at once; found once a model.

    Where not, each gets a forward of its own, and a warning says what that costs.

    Raises:
        BildError: tokens cannot be taken back from its cache either way.
    """
    if decoder.model not in _known:
        _known[decoder.model] = _probe(decoder)
    return _known[decoder.model]


def _probe(decoder: Probed) -> bool:
    tokens = _tokens(decoder)
    together, singly = [tokens[:FIRST], tokens[FIRST:]], [[token] for token in tokens]
    expected = _feed(decoder, singly)  # (COUNT, V)
    if bool(expected.isnan().any()):
        return True  # a damaged model: decoding says so
    full = decoder.model.dtype in (torch.float32, torch.float64)
    tolerance = TOLERANCE if full else HALF_TOLERANCE
    why_not = "its scores are others"
    try:
        first, again = _feed(decoder, together), _feed_again(decoder, together, [tokens[KEPT:]])
        if _equal(first, expected, tolerance) and _equal(again, expected[KEPT:], tolerance):
            return True
    except Exception as error:  # whatever a model does that was not made for this
        why_not = f"it raises {type(error).__name__}"
    kind = type(decoder.model).__name__
    if not _equal(_feed_again(decoder, singly, singly[KEPT:]), expected[KEPT:], tolerance):
        raise BildError(
            f"BiLD cannot run a {kind}: after tokens are taken back from its cache its scores are "
            "others than before"
        )
    warnings.warn(
        f"a {kind} is fed one token a forward, for {why_not} when several are fed at once: a draft "
        "is verified in as many forwards as it has tokens, so that nothing becomes faster",
        stacklevel=2,
    )
    return False


def _tokens(decoder: Probed) -> list[int]:
    """Ids to feed: the decoder's first, then others, none of them special."""
    settings = decoder.model.generation_config
    names = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")
    given = (getattr(settings, name, None) for name in names)
    special = {i for value in given for i in (value if isinstance(value, list) else [value])}
    usual = [i for i in range(decoder.vocab_size) if i not in special]
    start = settings.decoder_start_token_id
    start = usual[-1] if not isinstance(start, int) else start
    step = max(1, len(usual) // COUNT)
    return [start, *(usual[i * step % len(usual)] for i in range(1, COUNT))]


def _feed(decoder: Probed, windows: Sequence[Sequence[int]]) -> Tensor:
    """Logits of windows of tokens fed one after the other from the start."""
    decoder.restart()
    return torch.cat([decoder.forward(window).float() for window in windows])


def _feed_again(
    decoder: Probed, windows: Sequence[Sequence[int]], again: Sequence[Sequence[int]]
) -> Tensor:
    """Logits of the last tokens of `windows`, taken back and fed `again`."""
    _feed(decoder, windows)
    decoder.take_back(COUNT - KEPT)
    return torch.cat([decoder.forward(window).float() for window in again])


def _equal(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether logits (T, V) are the same but for rounding; `tolerance` is in their spread."""
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return False
    apart, spread = (one - other)[finite].abs().max(), other[finite].std()
    return bool(apart <= tolerance * spread)
