"""Loading models and tokenizers: whatever cannot be loaded is named, with the way out.

No code of a checkpoint is ever run (`trust_remote_code=False`), and every tensor of its weights
must be one of the model that its config.json describes, and the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bild.checkpoints.contents import has_tokenizer, weight_files
from bild.checkpoints.names import Checkpoint, CheckpointName, resolve_model, resolve_tokenizer
from bild.checkpoints.vocabulary import check_tokenizers
from bild.errors import BildError, first_line
from bild.processes import launch

# A model may have so many more parameters than its weights have bytes: position tables that are
# computed are in no file. Far beyond that, config.json is of another model.
COMPUTED_PARAMETERS = 100_000_000
LAYERS = (
    "num_layers", "num_decoder_layers", "num_hidden_layers", "num_encoder_layers",
    "encoder_layers", "decoder_layers",
)  # fmt: skip
# Keywords of `from_pretrained` that would look elsewhere than a name was resolved to.
WAYS_OUT = {
    "trust_remote_code": "no code of a checkpoint is run; make the model and give it to BiLDModel",
    "revision": "write it behind the name, owner/name@revision",
    "cache_dir": "set HF_HOME",
    "force_download": "remove the checkpoint from the hub's cache",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "token": "log in, or set HF_TOKEN",
    "proxies": "set HTTPS_PROXY",
    "subfolder": "download it, and give the folder",
    "variant": "rename its files to the usual names",
    "gguf_file": "convert it to safetensors",
}
ALWAYS = ("weights_only", "use_safetensors")  # keywords that may not be turned off
FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors calls them


def load_model(
    checkpoint: CheckpointName,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    allow_pickle: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """One encoder-decoder model in evaluation mode.

    Args:
        checkpoint: a folder, a mirrored id, a hub id, or what one of them was resolved to.
        dtype: of its weights.
        device: where it goes.
        allow_pickle: take weights that are no safetensors, as `resolve_model`; what they may hold
            is restricted even then (`weights_only=True`).
        **kwargs: passed on to transformers' `from_pretrained`.

    Raises:
        BildError: it cannot be found or read, or weights and configuration are not of one model; it
            is named, and so is the tensor.
    """
    for keyword, way_out in WAYS_OUT.items():
        if kwargs.get(keyword):
            raise BildError(f"{keyword}={kwargs[keyword]!r} is not supported here: {way_out}")
    for keyword in ALWAYS:
        if kwargs.get(keyword, True) is False:
            raise BildError(
                f"{keyword}=False is not supported here: no code in a file of weights is run"
            )
    found = resolve_model(checkpoint, allow_pickle)
    safe = all(f.suffix != ".bin" for f in weight_files(found.path))
    try:
        if (found.path / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(found.path)  # below, one that is broken counts as none
        _check_size(found, kwargs)
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            found.path,
            **{
                **kwargs,
                "dtype": dtype,
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,  # they are refused below, by name
                "trust_remote_code": False,
                "use_safetensors": safe,
                "weights_only": True,
            },
        )
    except BildError:
        raise
    # A checkpoint is foreign input to a large library: whatever it raises means the same here.
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise BildError(f"cannot load the model {found.name!r}: {_words(error)}") from error
    _check_report(found.name, report)
    method = getattr(model.config, "quantization_config", None)
    if method is not None and getattr(model, "hf_quantizer", None) is None:
        raise BildError(
            f"the model {found.name!r} has a quantization_config ({method}) that transformers "
            "does not act on; give a model that is not quantized"
        )
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise BildError(f"cannot use device {str(device)!r}: {first_line(error)}") from error


def load_tokenizer(
    large: CheckpointName,
    small: CheckpointName | None = None,
    name: CheckpointName | None = None,
) -> PreTrainedTokenizerBase:
    """The pair's tokenizer: the one named, else the one beside the large model.

    Where both models bring one, the two must agree.

    Raises:
        BildError: there is none, it cannot be read, or the models' tokenizers differ.
    """
    tokenizer = _read_tokenizer(resolve_tokenizer(large if name is None else name))
    if name is None and small is not None:
        beside = resolve_model(small)
        if has_tokenizer(beside.path):  # else only one of the two carries the tokenizer
            check_tokenizers(tokenizer, _read_tokenizer(beside))
    return tokenizer


def _is_failure(error: BaseException) -> bool:
    """Whether a library has failed, rather than been stopped: Rust code that panics raises what is
    no `Exception` and cannot be imported.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _read_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except BaseException as error:
        if not _is_failure(error):
            raise
        message = f"cannot load the tokenizer {checkpoint.name!r}: {_words(error)}"
        raise BildError(message) from error


# ------------------------------------------------------------------------------ what is refused


def _check_size(checkpoint: Checkpoint, kwargs: Mapping[str, Any]) -> None:
    """Refuse a configuration of a much larger model than the weights are of; nothing is allocated.

    Raises:
        BildError: so many layers or parameters that they cannot be in the files.
    """
    config = kwargs.get("config")
    if config is None:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    if not isinstance(config, PretrainedConfig):
        raise BildError(f"the config of the model {checkpoint.name!r} is a {type(config).__name__}")
    if getattr(config, "transformers_weights", None):
        raise BildError(
            f"the model {checkpoint.name!r} names other weights in its config.json "
            f"(transformers_weights = {config.transformers_weights!r}); take that entry out"
        )
    if getattr(config, "quantization_config", None) is not None:
        return  # how many parameters a byte holds is the quantizer's secret
    files = [f for f in weight_files(checkpoint.path) if f.suffix != ".json"]
    stored = dict(tensor for file in files for tensor in _tensors(file))
    for name, layers in _layers(config.to_dict()):
        if layers > len(stored):
            raise BildError(
                f"the config.json of the model {checkpoint.name!r} has {name} = {layers}, but its "
                f"weights are {len(stored)} tensors; copy the whole checkpoint"
            )
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False)
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(file.stat().st_size for file in files)
    if parameters > size + COMPUTED_PARAMETERS:
        raise BildError(
            f"the config.json of the model {checkpoint.name!r} describes {parameters:,} parameters,"
            f" but its weights are {size:,} bytes; copy the whole checkpoint"
        )
    for name, _ in model.named_parameters():
        if stored.get(name, "F32") not in FLOATS:
            raise BildError(
                f"the weights of the model {checkpoint.name!r} hold {name} as {stored[name]}, "
                "which is no floating-point type; convert them"
            )


def _tensors(file: Path) -> Iterator[tuple[str, str]]:
    """(name, type) of every tensor in a file of weights; their numbers are not read."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as weights:
            names: list[str] = weights.keys()
            for name in names:
                yield name, weights.get_slice(name).get_dtype()
        return
    for name, tensor in torch.load(file, map_location="meta", weights_only=True).items():
        if isinstance(tensor, torch.Tensor):
            yield name, "F32" if tensor.is_floating_point() else str(tensor.dtype)


def _layers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(name, value) of the numbers of layers in a configuration and in those within it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _layers(value)
        elif name in LAYERS and isinstance(value, int):
            yield name, value


def _check_report(name: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of the model: missing, left over, or of another shape.

    transformers fills what is missing with random numbers and drops what is left over. What it
    knows to be harmless (`_keys_to_ignore_on_load_unexpected`) is not in its report.
    """
    for key, stored, expected in sorted(report["mismatched_keys"]):
        raise BildError(
            f"the weights of the model {name!r} hold {key} in the shape {tuple(stored)}, but its "
            f"config.json makes it {tuple(expected)}; copy the whole checkpoint"
        )
    for kind, says in (("missing_keys", "lack"), ("unexpected_keys", "hold")):
        keys = sorted(report[kind])
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            which = "" if kind == "missing_keys" else ", which its config.json has no place for"
            raise BildError(
                f"the weights of the model {name!r} {says} {keys[0]}{others}{which}; "
                "copy the whole checkpoint"
            )


def _words(error: BaseException, most: int = 300) -> str:
    """An error's message on one line, after its type where that is not one that users know."""
    text = " ".join(str(error).split())
    text = text if len(text) <= most else text[:most] + " ..."
    if text and isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def find_device(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1", ...; "auto" is a GPU when there is one.

    Of several processes on a machine each gets the GPU of its number, counted round.

    Raises:
        BildError: no such device here.
    """
    if name == "auto":
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        name = "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"
    here = launch()
    if name == "cuda" and here.count > 1 and torch.cuda.is_available():
        name = f"cuda:{here.local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BildError(f"device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BildError(f"device {name!r} was asked for, but torch sees no GPU; use --device cpu")
    return device
