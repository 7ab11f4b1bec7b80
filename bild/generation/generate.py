"""Big Little Decoder as a decoding method of transformers' `generate`.

    large.generate(**inputs, custom_generate=bild_generate, small_model=small,
                   bild_config=BiLDConfig(0.6, 2.0), max_new_tokens=128)

`generate` prepares the large model's encoder outputs, logits processors and stopping criteria
and then calls the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import (
    BaseStreamer,
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.utils import ModelOutput

from bild.checkpoints.vocabulary import shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, HuggingFaceDecoder
from bild.errors import BildError
from bild.generation.decoding import Output, Stopping, decode, decode_greedy
from bild.generation.stats import DecodeStats
from bild.generation.trace import SILENT, Recorder, Trace, TraceRecorder

# GenerationConfig fields that would change what is generated and that BiLD does not do.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "do_sample": (None, False),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "cache_implementation": (None, "dynamic"),
    "use_cache": (None, True),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "token_healing": (None, False),
}


@dataclass
class BiLDOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`.

    Attributes:
        sequences: (1, prompt + generated), as transformers' own.
        scores: with `output_scores`, one (1, V) tensor a generated token: the scores, after the
            logits processors, of the model that wrote it.
        logits: with `output_logits`, the same before the processors.
        stats: what happened.
        trace: with `output_trace`, who wrote each token, and what came to nothing.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    stats: DecodeStats | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Plan:
    """What transformers' `generate` makes of its arguments before it decodes.

    Attributes:
        prompt: decoder tokens to start from, (1, P).
        stopping, processors: when an output ends, and what acts on scores.
        config: everything else, with the model's own settings merged in.
    """

    prompt: Tensor
    stopping: Stopping
    processors: LogitsProcessorList
    config: GenerationConfig

    @property
    def keeps_scores(self) -> bool:
        c = self.config
        return bool(c.return_dict_in_generate and (c.output_scores or c.output_logits))


def make_plan(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **_: Any,
) -> Plan:
    """A decoding method for `custom_generate=` that decodes nothing.

    Raises:
        BildError: an unsupported setting, by name and value.
    """
    for name, allowed in UNSUPPORTED.items():
        value = getattr(generation_config, name, None)
        if value not in allowed:
            raise BildError(f"BiLD does not support {name}={value!r}; use {name}={allowed[-1]!r}")
    return Plan(input_ids, _stopping(stopping_criteria), logits_processor, generation_config)


def bild_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    inputs_tensor: Tensor,
    small_model: PreTrainedModel | None = None,
    bild_config: BiLDConfig | None = None,
    bild_streamer: BaseStreamer | None = None,
    output_trace: bool = False,
    **model_kwargs: Any,
) -> BiLDOutput | Tensor:
    """Big Little Decoder for `custom_generate=`; `model` is the large one.

    It runs on transformers' own forward; `BiLDModel` offers the fast engine.

    Args:
        small_model: the model that drafts; it must share the large one's vocabulary.
        bild_config: thresholds and variant; the defaults of `BiLDConfig` if None.
        bild_streamer: gets tokens once they can no longer be rolled back (`streamer=` itself is
            not handed on by transformers; `BiLDModel.generate` takes it under that name).
        output_trace: put a `Trace` into the output; needs `return_dict_in_generate`.

    The other arguments are made by `generate`: decoder prompt (1, P), processors, criteria,
    configuration, source ids (1, S), encoder outputs and attention mask.

    Raises:
        BildError: a batch over one, beams, sampling, or another unsupported setting, by name and
            value; a pair that does not fit.
    """
    if not isinstance(small_model, PreTrainedModel):
        raise BildError(f"bild_generate needs small_model=, a model, got {small_model!r}")
    plan = make_plan(model, input_ids, logits_processor, stopping_criteria, generation_config)
    check_source(inputs_tensor)
    vocab_size = shared_vocab_size(model, small_model)
    attention_mask = model_kwargs.get("attention_mask")
    large = HuggingFaceDecoder(model, "large", vocab_size)
    small = HuggingFaceDecoder(small_model, "small", vocab_size)
    large.read(inputs_tensor, attention_mask, model_kwargs["encoder_outputs"])
    small.read(inputs_tensor, attention_mask)
    return decode_with_pair(plan, large, small, bild_config, bild_streamer, output_trace)


def greedy_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    inputs_tensor: Tensor,
    model_name: str = "large",
    shared_vocab: int | None = None,
    bild_streamer: BaseStreamer | None = None,
    output_trace: bool = False,
    **model_kwargs: Any,
) -> BiLDOutput | Tensor:
    """Greedy decoding with one model, for `custom_generate=`: the baseline BiLD is timed against.

    It gives the tokens of transformers' own greedy search, through the same loop and cache code
    as `bild_generate`.

    Args:
        model_name: what messages call the model.
        shared_vocab: write only the first so many ids, as a pair of which one has padding rows.
        bild_streamer, output_trace: as there.

    Other arguments and errors as there.
    """
    plan = make_plan(model, input_ids, logits_processor, stopping_criteria, generation_config)
    check_source(inputs_tensor)
    decoder = HuggingFaceDecoder(model, model_name, shared_vocab)
    decoder.read(inputs_tensor, model_kwargs.get("attention_mask"), model_kwargs["encoder_outputs"])
    return decode_alone(plan, decoder, bild_streamer, output_trace)


def decode_with_pair(
    plan: Plan,
    large: Decoder,
    small: Decoder,
    bild_config: BiLDConfig | None,
    streamer: BaseStreamer | None = None,
    output_trace: bool = False,
) -> BiLDOutput | Tensor:
    """`decode` by a plan; both decoders have been given the source."""
    config = BiLDConfig() if bild_config is None else bild_config
    if not isinstance(config, BiLDConfig):
        raise BildError(f"bild_config must be a BiLDConfig, got {bild_config!r}")
    return _decode(plan, streamer, output_trace, partial(decode, large, small, config=config))


def decode_alone(
    plan: Plan,
    decoder: Decoder,
    streamer: BaseStreamer | None = None,
    output_trace: bool = False,
) -> BiLDOutput | Tensor:
    """`decode_greedy` by a plan; the decoder has been given the source."""
    return _decode(plan, streamer, output_trace, partial(decode_greedy, decoder))


def _decode(
    plan: Plan,
    streamer: BaseStreamer | None,
    output_trace: bool,
    loop: Callable[..., tuple[Output, DecodeStats]],
) -> BiLDOutput | Tensor:
    recorder = _recorder(output_trace, plan.config)
    output, stats = loop(
        prompt=plan.prompt[0].tolist(),
        stopping=plan.stopping,
        processors=plan.processors,
        keep_scores=plan.keeps_scores,
        on_commit=_streaming(streamer, plan.prompt),
        recorder=recorder,
    )
    if streamer is not None:
        streamer.end()
    return _result(plan, output, stats, recorder)


def check_source(inputs: Tensor | None) -> Tensor:
    """Source ids (1, S); anything else is refused."""
    if inputs is None:
        raise BildError("BiLD needs input_ids=, for both models read the source")
    wrong_shape = inputs.ndim != 2 or inputs.shape[1] == 0
    if wrong_shape or inputs.is_floating_point() or bool((inputs < 0).any()):
        raise BildError(
            "BiLD needs input_ids of shape (1, tokens), for both models read the source; "
            f"got a tensor of shape {tuple(inputs.shape)}, {inputs.dtype}"
        )
    if inputs.shape[0] != 1:
        raise BildError(f"BiLD decodes one input at a time, got a batch of {inputs.shape[0]}")
    return inputs


def _stopping(criteria: StoppingCriteriaList) -> Stopping:
    """Transformers' criteria with the two that always stand there read out, for speed."""
    max_length: int | None = None
    eos: frozenset[int] = frozenset()
    others = StoppingCriteriaList()
    for criterion in criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = criterion.max_length
        elif type(criterion) is EosTokenCriteria:
            eos |= frozenset(criterion.eos_token_id.tolist())
        else:
            others.append(criterion)
    if max_length is None:
        raise BildError("BiLD needs a length limit: give max_new_tokens= or max_length=")
    return Stopping(max_length, eos, others)


def _streaming(streamer: BaseStreamer | None, prompt: Tensor) -> Callable[[list[int]], None] | None:
    if streamer is None:
        return None
    streamer.put(prompt.cpu())

    def commit(tokens: list[int]) -> None:
        for token in tokens:
            streamer.put(torch.tensor([token], device="cpu"))

    return commit


def _recorder(output_trace: bool, config: GenerationConfig) -> Recorder:
    if output_trace and not config.return_dict_in_generate:
        raise BildError("output_trace=True needs return_dict_in_generate=True, to be put into")
    return TraceRecorder() if output_trace else SILENT


def _result(
    plan: Plan, output: Output, stats: DecodeStats, recorder: Recorder
) -> BiLDOutput | Tensor:
    sequences = torch.tensor([output.tokens], device=plan.prompt.device)
    config = plan.config
    if not config.return_dict_in_generate:
        return sequences
    return BiLDOutput(
        sequences=sequences,
        scores=tuple(s.processed[None] for s in output.scores) if config.output_scores else None,
        logits=tuple(s.raw[None] for s in output.scores) if config.output_logits else None,
        stats=stats,
        trace=recorder.trace(),
    )
