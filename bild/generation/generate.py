"""Big Little Decoder as a decoding method of transformers' `generate`.

    large.generate(**inputs, custom_generate=bild_generate, small_model=small,
                   bild_config=BiLDConfig(0.6, 2.0), max_new_tokens=128)

`generate` prepares the large model's encoder outputs, logits processors and stopping criteria
and then calls the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import ModelOutput

from bild.checkpoints.vocabulary import shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, HuggingFaceDecoder
from bild.errors import BildError
from bild.generation.decoding import OnCommit, Output, Stopping, decode, decode_greedy
from bild.generation.lookahead import Prices, decode_ahead
from bild.generation.plan import ENCODER_INPUTS, Plan, make_plan, refuse_keyword
from bild.generation.source import make_source
from bild.generation.stats import DecodeStats
from bild.generation.trace import SILENT, Recorder, Trace, TraceRecorder
from bild.policy import Writer

# What transformers' `generate` makes for a decoding method, besides inputs of the encoder.
MADE_BY_GENERATE = ("attention_mask", "encoder_outputs", "use_cache", "logits_to_keep")


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
        encoder_seconds: wall-clock seconds in which the source was read, by all models together;
            where an encoder's outputs were there already, without it.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    stats: DecodeStats | None = None
    trace: Trace | None = None
    encoder_seconds: float | None = None


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
    stop_strings: Any = None,
    **model_kwargs: Any,
) -> BiLDOutput | Tensor:
    """Big Little Decoder for `custom_generate=`; `model` is the large one.

    It runs on transformers' own forward; `BiLDModel` offers the fast engine.

    Args:
        small_model: the model that drafts; it must share the large one's vocabulary.
        bild_config: thresholds and variant; the defaults of `BiLDConfig` if None.
        bild_streamer: gets tokens once they can no longer be rolled back; it takes the place of
            `streamer=`, which transformers keeps: that one is given the prompt, nothing else, and
            no end, so that whoever waits for its tokens waits for ever.
        output_trace: put a `Trace` into the output; needs `return_dict_in_generate`.
        stop_strings: refused, for they need a tokenizer, which transformers keeps as well.

    The other arguments are made by `generate`: decoder prompt (1, P), processors, criteria,
    configuration, source ids (1, S), encoder outputs and attention mask. `assistant_model=` never
    arrives here: transformers keeps it, and it changes nothing.

    Raises:
        BildError: a batch over one, beams, sampling, or another unsupported setting, by name and
            value; an input that the small model's encoder does not read; a pair that does not fit.
    """
    if not isinstance(small_model, PreTrainedModel):
        given = "None" if small_model is None else f"a {type(small_model).__name__}"
        raise BildError(f"bild_generate needs small_model=, a model, got {given}")
    made = model_kwargs.pop("past_key_values", None)
    plan = make_plan(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        past_key_values=made,
    )
    models = {"large": model, "small": small_model}
    source = make_source(models, inputs_tensor, model_kwargs.get("attention_mask"), model_kwargs)
    _check_kwargs(model_kwargs, stop_strings)
    vocab_size = shared_vocab_size(model, small_model)
    large = HuggingFaceDecoder(model, "large", vocab_size)
    small = HuggingFaceDecoder(small_model, "small", vocab_size)
    large.read(source.ids, source.mask, model_kwargs["encoder_outputs"])
    small.read(source.ids, source.mask, **source.inputs)
    return decode_with_pair(plan, large, small, bild_config, bild_streamer, output_trace)


def greedy_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    inputs_tensor: Tensor,
    model_name: Writer = "large",
    shared_vocab: int | None = None,
    bild_streamer: BaseStreamer | None = None,
    output_trace: bool = False,
    stop_strings: Any = None,
    **model_kwargs: Any,
) -> BiLDOutput | Tensor:
    """Greedy decoding with one model, for `custom_generate=`: the baseline BiLD is timed against.

    It gives the tokens of transformers' own greedy search, through the same loop and cache code
    as `bild_generate`.

    Args:
        model_name: "large" or "small": what messages call the model, and as whose its forwards
            are counted.
        shared_vocab: write only the first so many ids, as a pair of which one has padding rows.
        bild_streamer, output_trace, stop_strings: as there.

    Other arguments and errors as there.
    """
    made = model_kwargs.pop("past_key_values", None)
    plan = make_plan(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        past_key_values=made,
    )
    models: dict[str, PreTrainedModel] = {model_name: model}
    source = make_source(models, inputs_tensor, model_kwargs.get("attention_mask"), model_kwargs)
    _check_kwargs(model_kwargs, stop_strings)
    decoder = HuggingFaceDecoder(model, model_name, shared_vocab)
    decoder.read(source.ids, source.mask, model_kwargs["encoder_outputs"])
    return decode_alone(plan, decoder, bild_streamer, output_trace)


def _check_kwargs(kwargs: Mapping[str, Any], stop_strings: Any) -> None:
    """Refuse what arrives from `generate` and that BiLD would have to ignore."""
    if stop_strings is not None:
        raise BildError(
            f"transformers hands no tokenizer to a decoding method, so that "
            f"stop_strings={stop_strings!r} cannot be looked for; give stopping_criteria="
            "StoppingCriteriaList([StopStringCriteria(tokenizer, stop_strings)]), or use "
            "BiLDModel.generate"
        )
    if kwargs.get("mm_encoder_outputs"):  # the large model has read an image on its own
        refuse_keyword("pixel_values")
    known = (*MADE_BY_GENERATE, *ENCODER_INPUTS, "mm_encoder_outputs")
    for name, value in kwargs.items():
        if value is not None and name not in known:
            refuse_keyword(name)


def decode_with_pair(
    plan: Plan,
    large: Decoder,
    small: Decoder,
    bild_config: BiLDConfig | None,
    streamer: BaseStreamer | None = None,
    output_trace: bool = False,
    prices: Prices | None = None,
) -> BiLDOutput | Tensor:
    """`decode` by a plan; both decoders have been given the source.

    Where the configuration looks ahead it is `decode_ahead`, unless something reads scores or a
    trace is asked for, which tells of plain rounds.
    """
    config = BiLDConfig() if bild_config is None else bild_config
    if not isinstance(config, BiLDConfig):
        way_out = "; give BiLDConfig(**fields)" if isinstance(bild_config, Mapping) else ""
        raise BildError(f"bild_config must be a BiLDConfig, got {bild_config!r}{way_out}")
    read = large.encoder_seconds + small.encoder_seconds
    loop: Callable[..., tuple[Output, DecodeStats]] = partial(decode, large, small, config=config)
    if config.lookahead != 0 and not (plan.reads_scores or output_trace):
        prices = Prices() if prices is None else prices
        loop = partial(_decode_ahead, large, small, config, prices)
    return _decode(plan, streamer, output_trace, loop, read)


def _decode_ahead(
    large: Decoder,
    small: Decoder,
    config: BiLDConfig,
    prices: Prices,
    prompt: list[int],
    stopping: Stopping,
    on_commit: OnCommit | None,
    **_: Any,
) -> tuple[Output, DecodeStats]:
    """`decode_ahead` with the arguments of `decode`, of which it needs fewer."""
    return decode_ahead(large, small, prompt, config, stopping, prices, on_commit)


def decode_alone(
    plan: Plan,
    decoder: Decoder,
    streamer: BaseStreamer | None = None,
    output_trace: bool = False,
) -> BiLDOutput | Tensor:
    """`decode_greedy` by a plan; the decoder has been given the source."""
    loop = partial(decode_greedy, decoder)
    return _decode(plan, streamer, output_trace, loop, decoder.encoder_seconds)


def _decode(
    plan: Plan,
    streamer: BaseStreamer | None,
    output_trace: bool,
    loop: Callable[..., tuple[Output, DecodeStats]],
    encoder_seconds: float,
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
        encoder_seconds=encoder_seconds,
    )


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
