"""Which models the fast engine runs: those of which it knows every part.

It reads parameters and computes by itself what transformers' modules would. A module that computes
something else (an adapter, a hook, another class, quantized or offloaded weights) would be passed
over without a word, so that everything is compared with a list of what is known, and the rest
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5
from transformers.models.umt5 import modeling_umt5
from transformers.utils import output_capturing

from bild.checkpoints.drafter import BiLDDrafter, DrafterConfig
from bild.engines.t5_structs import ACTIVATIONS, MULTIPLE

# By model type: how its classes begin, and where they are.
FAMILIES: dict[str, tuple[str, ModuleType]] = {
    "t5": ("T5", modeling_t5),
    "mt5": ("MT5", modeling_mt5),
    "umt5": ("UMT5", modeling_umt5),
    DrafterConfig.model_type: ("T5", modeling_t5),
}
PARTS = (
    *("ForConditionalGeneration", "Stack", "Block", "LayerNorm", "Attention"),
    *("LayerSelfAttention", "LayerCrossAttention", "LayerFF"),
    *("DenseActDense", "DenseGatedActDense"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def not_covered(model: PreTrainedModel) -> str | None:
    """Why the fast engine cannot run this model, in words; None if it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} is not one of {', '.join(FAMILIES)}"
    if config.dense_act_fn not in ACTIVATIONS:
        return f"activation {config.dense_act_fn!r} is not one of {', '.join(ACTIVATIONS)}"
    return next(_reasons(model), None)


def _reasons(model: PreTrainedModel) -> Iterator[str]:
    """Whatever is not as it is known, in words."""
    prefix, module = FAMILIES[model.config.model_type]
    drafts = model.config.model_type == DrafterConfig.model_type
    expected = BiLDDrafter if drafts else getattr(module, f"{prefix}ForConditionalGeneration")
    if type(model) is not expected:
        yield f"it is a {type(model).__name__}, not a {expected.__name__}"
    activation = type(ACT2FN[model.config.dense_act_fn])
    known = {getattr(module, prefix + part) for part in PARTS}
    known |= {BiLDDrafter, nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList, activation}
    for name, part in model.named_modules():
        yield from _module_reasons(f"its part {name!r}" if name else "it", part, known)
    for name, parameter in model.named_parameters():
        yield from _parameter_reasons(name, parameter)
    yield from _dtype_reasons(model)
    if len({p.device for p in model.parameters()}) > 1:
        yield "weights lie on several devices"
    yield from _shape_reasons(model)


def _module_reasons(what: str, part: nn.Module, known: set[type]) -> Iterator[str]:
    kind = type(part)
    if kind not in known:
        yield f"{what} is a {kind.__module__}.{kind.__qualname__}, not a plain part of a T5"
    # accelerate gives a forward of its own to whatever it moves from device to device.
    if "forward" in vars(part):
        yield f"{what} has a forward of its own"
    if may_change(part._forward_hooks) or may_change(part._forward_pre_hooks):
        yield f"{what} has forward hooks"
    if isinstance(part, nn.Linear) and part.bias is not None:
        yield f"{what} has a bias"
    if isinstance(part, nn.Embedding) and part.max_norm is not None:
        yield f"{what} has a max_norm"


def may_change(hooks: Mapping[int, Callable[..., Any]]) -> bool:
    """Whether a module's forward hooks may change what it computes.

    Those that transformers puts on a model when its attentions or hidden states are asked for, and
    leaves there, only look on.
    """
    return any(getattr(h, "__module__", None) != output_capturing.__name__ for h in hooks.values())


def _parameter_reasons(name: str, parameter: nn.Parameter) -> Iterator[str]:
    if type(parameter) is not nn.Parameter or type(parameter.data) is not torch.Tensor:
        yield f"its weight {name!r} is a {type(parameter.data).__name__}, not a plain tensor"
    if parameter.device.type == "meta":
        yield f"its weight {name!r} is not in memory"


def _dtype_reasons(model: PreTrainedModel) -> Iterator[str]:
    # transformers keeps the feed-forward's last matrix in float32 when it loads T5 in float16.
    kept = ".wo.weight" if model.dtype == torch.float16 else ()
    dtypes = {p.dtype for name, p in model.named_parameters() if not name.endswith(kept)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        known = ", ".join(map(str, DTYPES))
        yield f"weights are {', '.join(sorted(map(str, dtypes)))}, not all one of {known}"


def _shape_reasons(model: Any) -> Iterator[str]:
    """Machine code reads as many numbers as the configuration says there are."""
    config = model.config
    width, inner, feed = config.d_model, config.num_heads * config.d_kv, config.d_ff
    shapes = {
        **dict.fromkeys(("q", "k", "v"), (inner, width)),
        "o": (width, inner),
        **dict.fromkeys(("wi", "wi_0", "wi_1"), (feed, width)),
        "wo": (width, feed),
        **dict.fromkeys(("layer_norm", "final_layer_norm"), (width,)),
        "relative_attention_bias": (config.relative_attention_num_buckets, config.num_heads),
    }
    for name, parameter in model.named_parameters():
        part = name.split(".")[-2]
        expected = shapes.get(part, (len(parameter), width))  # embeddings and head
        if ".EncDecAttention." in name and part in ("k", "v"):
            expected = inner, getattr(config, "source_width", width)
        if tuple(parameter.shape) != expected:
            yield f"its weight {name!r} has shape {tuple(parameter.shape)}, not {expected}"


def not_compilable(model: PreTrainedModel) -> str | None:
    """Why the machine code cannot run a model that the fast engine covers; None if it can."""
    if model.device.type != "cpu":
        return f"it is on {model.device}, and the compiled engine is for the CPU"
    if model.dtype == torch.float16:
        return "its weights are float16, which the compiled engine does not read; use bfloat16"
    for name in ("d_model", "d_kv", "d_ff", "source_width"):
        size = getattr(model.config, name, MULTIPLE)
        if size % MULTIPLE:
            return f"{name} is {size}, not a multiple of {MULTIPLE}"
    return None
