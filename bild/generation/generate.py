"""Big Little Decoder as a decoding method of transformers' `generate`.

    large.generate(**inputs, custom_generate=bild_generate, small_model=small,
                   bild_config=BiLDConfig(0.6, 2.0), max_new_tokens=128)

`generate` prepares the large model's encoder outputs, logits processors and stopping criteria
and then calls the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer

from bild.checkpoints.early_exit import shares_encoder
from bild.checkpoints.vocabulary import shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, HuggingFaceDecoder, states_for
from bild.errors import BildError
from bild.fallback import Adaptive
from bild.generation.copying import with_copies
from bild.generation.decoding import Output, Steps, alone, decode_steps, greedy_steps
from bild.generation.kept_back import kept_back
from bild.generation.lookahead import ahead_steps
from bild.generation.output import BiLDOutput
from bild.generation.pace import Experience
from bild.generation.plan import ENCODER_INPUTS, Plan, make_plan, refuse_keyword
from bild.generation.rewinding import settle
from bild.generation.rounds import make_rounds, rounds_steps
from bild.generation.row_by_row import decode_row_by_row
from bild.generation.sampling import Sampler, sampled_alone, sampled_steps
from bild.generation.sequences import Samples
from bild.generation.source import SMALL_STATES, UNKNOWN, Source, make_source
from bild.generation.stats import DecodeStats
from bild.generation.steering import Steering, may_rest
from bild.generation.streams import Stream
from bild.generation.trace import SILENT, Recorder, TraceRecorder
from bild.policy import Writer

# What transformers' `generate` makes for a decoding method, besides inputs of the encoder.
MADE_BY_GENERATE = ("attention_mask", "encoder_outputs", "use_cache", "logits_to_keep")
PROMPT_MASK = "decoder_attention_mask"
MADE_FOR_A_PLAN = ("logits_processor", "stopping_criteria", "generation_config")


def bild_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    inputs_tensor: Tensor,
    small_model: PreTrainedModel | None = None,
    bild_config: BiLDConfig | None = None,
    bild_streamer: BaseStreamer | None = None,
    output_trace: bool = False,
    stop_strings: Any = None,
    small_encoder_outputs: Any = None,
    generator: torch.Generator | None = None,
    experience: Experience | None = None,
    **made: Any,
) -> BiLDOutput | Tensor:
    """Big Little Decoder for `custom_generate=`; `model` is the large one.

    It runs on transformers' own forward; `BiLDModel` offers the fast engine. `streamer=` and
    `stop_strings=` with `tokenizer=` do what they do in transformers' greedy search; stop strings
    of a generation configuration transformers refuses here.

    Args:
        small_model: the model that drafts; it must share the large one's vocabulary.
        bild_config: thresholds and variant; the defaults of `BiLDConfig` if None.
        bild_streamer: as `streamer=`, of which it takes the place.
        output_trace: put a `Trace` into the output; needs `return_dict_in_generate`.
        stop_strings: the output ends with the first of them.
        small_encoder_outputs: what the small model's encoder makes of the source, where it is there
            already; with `encoder_outputs=`, the large one's, no source ids are needed.
        generator: of the random numbers for `do_sample=True`, as of `BiLDModel.generate`.
        experience: what is known of drafting with this pair, by which `adaptive` drafting steers;
            it is added to, and may be given to the next call. None for what this call learns.

    The other arguments are made by `generate`: decoder prompt (B, P), source ids (B, S), whose rows
    are decoded one after the other, and in `made` processors, criteria, configuration, encoder
    outputs and attention mask.

    Raises:
        BildError: beams, or another unsupported setting, by name and value; an input that the small
            model's encoder does not read; a pair that does not fit.
    """
    experience = Experience() if experience is None else experience
    if not isinstance(experience, Experience):
        raise BildError(f"experience must be an Experience, got a {type(experience).__name__}")
    if len(input_ids) > 1:
        made |= {"bild_config": bild_config, "experience": experience}
        own = partial(bild_generate, model, small_model=small_model)
        made |= {"bild_streamer": bild_streamer, "output_trace": output_trace}
        made |= {"stop_strings": stop_strings, SMALL_STATES: small_encoder_outputs}
        return decode_row_by_row(own, model, input_ids, inputs_tensor, made, generator)
    if not isinstance(small_model, PreTrainedModel):
        given = "None" if small_model is None else f"a {type(small_model).__name__}"
        raise BildError(f"bild_generate needs small_model=, a model, got {given}")
    models = {"large": model, "small": small_model}
    made[SMALL_STATES] = small_encoder_outputs
    Samples.of(made, model, generator)  # a generator that is none, or that nobody asks
    call = _called(models, model, input_ids, inputs_tensor, stop_strings, made)
    vocab_size = shared_vocab_size(model, small_model)
    large = HuggingFaceDecoder(model, "large", vocab_size)
    small = HuggingFaceDecoder(small_model, "small", vocab_size)
    source = call.source
    large.read(source.ids, source.mask, source.states["large"])
    shared = shares_encoder(model, small_model)
    states = states_for(small, large, source.states.get("small"), shared=shared)
    read = small.read_later if may_rest(bild_config) else small.read
    read(source.ids, source.mask, states, **source.inputs)
    stream = call.stream(bild_streamer)
    drafter = with_copies(small, source.ids, bild_config, output_trace)
    told = stream, output_trace, experience, generator
    return decode_with_pair(call.plan, large, drafter, bild_config, *told)


def greedy_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    inputs_tensor: Tensor,
    model_name: Writer = "large",
    shared_vocab: int | None = None,
    bild_streamer: BaseStreamer | None = None,
    output_trace: bool = False,
    stop_strings: Any = None,
    **made: Any,
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
    if len(input_ids) > 1:
        own = partial(greedy_generate, model, model_name=model_name, shared_vocab=shared_vocab)
        made |= {"bild_streamer": bild_streamer, "output_trace": output_trace}
        made["stop_strings"] = stop_strings
        return decode_row_by_row(own, model, input_ids, inputs_tensor, made)
    models: dict[str, PreTrainedModel] = {model_name: model}
    call = _called(models, model, input_ids, inputs_tensor, stop_strings, made)
    if call.plan.samples:
        raise BildError("greedy_generate draws nothing; without it transformers samples itself")
    decoder = HuggingFaceDecoder(model, model_name, shared_vocab)
    source = call.source
    decoder.read(source.ids, source.mask, source.states[model_name])
    return decode_alone(call.plan, decoder, call.stream(bild_streamer), output_trace)


@dataclass(frozen=True)
class _Call:
    """A call of `generate`, as it reaches a decoding method.

    Attributes:
        plan, source: what is to be decoded; the source holds the states of the method's model.
        streamer: given to `generate`; it has been given the prompt already.
    """

    plan: Plan
    source: Source
    streamer: BaseStreamer | None

    def stream(self, own: BaseStreamer | None) -> Stream:
        """To whom tokens are handed on: `own`, or the streamer given to `generate`."""
        if own is None:
            return Stream(self.streamer, has_prompt=True)
        if self.streamer is not None:
            raise BildError("give streamer= or bild_streamer=, which are the same, not both")
        return Stream(own)


def _called(
    models: Mapping[str, PreTrainedModel],
    model: PreTrainedModel,
    input_ids: Tensor,
    inputs_tensor: Tensor,
    stop_strings: Any,
    made: Mapping[str, Any],
) -> _Call:
    """What `generate` has made of its arguments, checked.

    Args:
        models: those that read the source, by name.
        model, input_ids, inputs_tensor, stop_strings, made: of the decoding method.
    """
    kept = kept_back()
    if kept.assistant_model is not None:
        refuse_keyword("assistant_model")
    settings = {name: made[name] for name in MADE_FOR_A_PLAN}
    others = {name: value for name, value in made.items() if name not in MADE_FOR_A_PLAN}
    settings |= {name: others.pop(name, None) for name in ("past_key_values", PROMPT_MASK)}
    plan = make_plan(model, input_ids, **settings)
    plan = plan.with_stop_strings(stop_strings, kept.tokenizer)
    ids = None if bool((inputs_tensor == UNKNOWN).all()) else inputs_tensor
    source = make_source(models, ids, others.get("attention_mask"), others)
    if others.get("mm_encoder_outputs"):  # the large model has read an image on its own
        refuse_keyword("pixel_values")
    known = (*MADE_BY_GENERATE, *ENCODER_INPUTS, SMALL_STATES, "mm_encoder_outputs")
    for name, value in others.items():
        if value is not None and name not in known:
            refuse_keyword(name)
    return _Call(plan, source, kept.streamer)


def pair_steps(
    plan: Plan,
    large: Decoder,
    small: Decoder,
    bild_config: BiLDConfig | None,
    stream: Stream | None = None,
    output_trace: bool = False,
    experience: Experience | Steering | None = None,
    generator: torch.Generator | None = None,
) -> Steps[BiLDOutput | Tensor]:
    """`decode_steps`, or `sampled_steps`, by a plan; both decoders have been given the source.

    Where the configuration looks ahead it is `ahead_steps`, unless something reads scores or a
    trace is asked for, which tells of plain rounds. Where an engine can make whole rounds it does,
    on the same conditions.
    """
    config = BiLDConfig() if bild_config is None else bild_config
    if not isinstance(config, BiLDConfig):
        way_out = "; give BiLDConfig(**fields)" if isinstance(bild_config, Mapping) else ""
        raise BildError(f"bild_config must be a BiLDConfig, got {bild_config!r}{way_out}")
    experience = Experience() if experience is None else experience
    arguments = _Arguments(plan, Stream() if stream is None else stream, output_trace)
    prompt, stopping, on_commit = arguments.prompt, plan.stopping, arguments.on_commit
    seen = plan.samples or plan.reads_scores or output_trace
    prices, unseen = experience.prices, not seen
    steered = isinstance(config.fallback_rule, Adaptive)
    can = unseen and not steered  # rounds in one call
    rounds = make_rounds(large, small, prompt, config, stopping) if can else None
    if plan.samples:
        written = yield from sampled_steps(
            large, small, config=config, **arguments.where_it_samples(generator)
        )
    elif rounds is not None:
        written = yield from rounds_steps(rounds, prompt, config, prices, on_commit)
    elif unseen and config.lookahead != 0:
        known = config, stopping, prices, on_commit
        written = yield from ahead_steps(large, small, prompt, *known)
    else:
        written = yield from decode_steps(
            large, small, config=config, experience=experience, **arguments.of_the_loop
        )
    return _output(arguments, *written, large.encoder_seconds + small.encoder_seconds)


def single_steps(
    plan: Plan,
    decoder: Decoder,
    stream: Stream | None = None,
    output_trace: bool = False,
    at_a_time: int = 16,
    generator: torch.Generator | None = None,
) -> Steps[BiLDOutput | Tensor]:
    """`greedy_steps`, or `sampled_alone`, by a plan; the decoder has been given the source."""
    arguments = _Arguments(plan, Stream() if stream is None else stream, output_trace)
    if plan.samples:
        written = yield from sampled_alone(decoder, **arguments.where_it_samples(generator))
    else:
        written = yield from greedy_steps(decoder, at_a_time=at_a_time, **arguments.of_the_loop)
    return _output(arguments, *written, decoder.encoder_seconds)


decode_with_pair = alone(pair_steps)
decode_alone = alone(single_steps)


class _Arguments:
    """What the decoding loop is given by a plan."""

    def __init__(self, plan: Plan, stream: Stream, output_trace: bool) -> None:
        self.plan, self.stream = plan, stream
        self.recorder = _recorder(output_trace, plan.config)
        self.prompt: list[int] = plan.prompt[0].tolist()
        self.on_commit = stream.begin(plan.whole_prompt, self.recorder)

    @property
    def of_the_loop(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "stopping": self.plan.stopping,
            "processors": self.plan.processors,
            "keep_scores": self.plan.keeps_scores,
            "on_commit": self.on_commit,
            "recorder": self.recorder,
        }

    def where_it_samples(self, generator: torch.Generator | None) -> dict[str, Any]:
        """The same, with processors and chance in one."""
        known = self.of_the_loop
        known["sampler"] = Sampler(known.pop("processors"), generator)
        return known


def _output(
    arguments: _Arguments, output: Output, stats: DecodeStats, encoder_seconds: float
) -> BiLDOutput | Tensor:
    """What `generate` returns of one written output."""
    arguments.stream.end()
    plan = arguments.plan
    settle(plan.processors, len(output.tokens))
    settle(plan.stopping.criteria, len(output.tokens) + 1)  # they have seen the last token
    sequences = torch.tensor([output.tokens], device=plan.prompt.device)
    if plan.hidden.numel():
        sequences = torch.cat((plan.hidden, sequences), 1)
    config = plan.config
    if not config.return_dict_in_generate:
        return sequences
    return BiLDOutput(
        sequences=sequences,
        scores=tuple(s.processed[None] for s in output.scores) if config.output_scores else None,
        logits=tuple(s.raw[None] for s in output.scores) if config.output_logits else None,
        stats=stats,
        row_stats=(stats,),
        trace=arguments.recorder.trace(),
        encoder_seconds=encoder_seconds,
    )


def _recorder(output_trace: bool, config: GenerationConfig) -> Recorder:
    if output_trace and not config.return_dict_in_generate:
        raise BildError("output_trace=True needs return_dict_in_generate=True, to be put into")
    return TraceRecorder() if output_trace else SILENT
