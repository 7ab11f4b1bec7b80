"""A small and a large model that generate together."""

from __future__ import annotations

import os
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import BaseStreamer

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.generation import BiLDOutput, bild_generate
from bild.hub import resolve_model, resolve_tokenizer
from bild.vocabulary import check_tokenizers, shared_vocab_size


class BiLDModel:
    """Two encoder-decoder models that share a tokenizer, and one `generate`.

    Args:
        large, small: the pair.

    Raises:
        BildError: the models cannot be a pair; the values that differ are named.
    """

    def __init__(self, large: PreTrainedModel, small: PreTrainedModel) -> None:
        shared_vocab_size(large, small)
        self.large = large.eval()
        self.small = small.eval()

    @classmethod
    def from_pretrained(
        cls,
        large: str,
        small: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> BiLDModel:
        """Load both models: folders, ids under `BILD_MODELS_ROOT`, or hub ids.

        Args:
            large, small: checkpoints.
            dtype: precision of both models.
            device: where both models go.
            **kwargs: passed on to transformers' `from_pretrained` for both.

        Raises:
            BildError: a checkpoint that cannot be found, or models that cannot be a pair.
        """
        models = (load_model(name, dtype, device, **kwargs) for name in (large, small))
        return cls(*models)

    @property
    def device(self) -> torch.device:
        return self.large.device

    def to(self, *args: Any, **kwargs: Any) -> BiLDModel:
        """Move or cast both models, as `torch.nn.Module.to`."""
        self.large.to(*args, **kwargs)
        self.small.to(*args, **kwargs)
        return self

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        bild_config: BiLDConfig | None = None,
        *,
        streamer: BaseStreamer | None = None,
        **generate_kwargs: Any,
    ) -> BiLDOutput | Tensor:
        """Generate with both models; arguments and defaults of transformers' `generate`.

        Args:
            input_ids: source tokens, (1, S).
            attention_mask: (1, S), 1 for tokens and 0 for padding.
            bild_config: thresholds and variant.
            streamer: gets tokens once they can no longer be rolled back.
            **generate_kwargs: `max_new_tokens`, `logits_processor`, `stopping_criteria`,
                `generation_config`, `output_scores`, `output_trace` and so on.

        Returns:
            A `BiLDOutput` with `.sequences` and `.stats`, and with `output_trace=True` a
            `.trace` of who wrote each token; with `return_dict_in_generate=False`
            the sequences alone, (1, prompt + generated).

        Raises:
            BildError: an unsupported setting, by name and value.
        """
        generate_kwargs.setdefault("return_dict_in_generate", True)
        return self.large.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            custom_generate=bild_generate,
            small_model=self.small,
            bild_config=bild_config,
            bild_streamer=streamer,
            **generate_kwargs,
        )


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
        raise BildError(f"cannot load the model {name!r}: {_first_line(error)}") from error
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
        raise BildError(f"cannot use device {str(device)!r}: {_first_line(error)}") from error


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


def _read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(resolve_tokenizer(name))
    except (OSError, ValueError) as error:
        if isinstance(error, BildError):
            raise
        message = f"cannot load the tokenizer {name!r}: {_first_line(error)}"
        raise BildError(message) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
