"""Loading models and tokenizers: whatever cannot be loaded is named, with the way out."""

from __future__ import annotations

import os
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bild.checkpoints.hub import resolve_model, resolve_tokenizer
from bild.checkpoints.vocabulary import check_tokenizers
from bild.errors import BildError, first_line


def load_model(
    name: str, dtype: torch.dtype, device: str | torch.device, **kwargs: Any
) -> PreTrainedModel:
    """One encoder-decoder model in evaluation mode: a folder, a mirrored id or a hub id.

    Raises:
        BildError: it cannot be found or read; it is named.
    """
    path = resolve_model(name)
    # For a repository without safetensors (all of kssteven's) transformers would ask an online
    # service to convert it, in a thread that the end of the process waits for.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise BildError(f"cannot load the model {name!r}: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])  # transformers has filled them with random numbers
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BildError(
            f"the weights of the model {name!r} lack {missing[0]}{others}; "
            "copy the whole checkpoint"
        )
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise BildError(f"cannot use device {str(device)!r}: {first_line(error)}") from error


def load_tokenizer(
    large: str, small: str | None = None, name: str | None = None
) -> PreTrainedTokenizerBase:
    """The pair's tokenizer: the one named, else the one beside the large model.

    Where both models bring one, the two must agree.

    Raises:
        BildError: there is none, or the models' tokenizers differ.
    """
    tokenizer = _read_tokenizer(large if name is None else name)
    if name is None and small is not None:
        try:
            folder = resolve_tokenizer(small)
        except BildError:
            return tokenizer  # only one of the two carries the tokenizer
        check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(folder))
    return tokenizer


def _read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(resolve_tokenizer(name))
    except (OSError, ValueError) as error:
        if isinstance(error, BildError):
            raise
        message = f"cannot load the tokenizer {name!r}: {first_line(error)}"
        raise BildError(message) from error


def find_device(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1", ...; "auto" is a GPU when there is one.

    Raises:
        BildError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BildError(f"device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BildError(f"device {name!r} was asked for, but torch sees no GPU; use --device cpu")
    return device
