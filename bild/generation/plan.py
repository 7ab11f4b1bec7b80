"""What the arguments of `generate` come to, made by transformers' own `generate`.

`make_plan` is a decoding method for `custom_generate=` that decodes nothing: transformers merges
the settings, builds logits processors and stopping criteria, and hands them over. What BiLD honours
is a list, here; everything else is refused by name and value.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation import (
    EosTokenCriteria,
    GenerationMixin,
    GenerationMode,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from bild.config import BiLDConfig
from bild.errors import BildError, first_line
from bild.generation.decoding import Stopping, scores_are_read
from bild.generation.prompts import behind, hidden_tokens
from bild.generation.rewinding import find_shared, function_of, rewinding

# Settings that do what they do in transformers' greedy search, or where it samples.
HONOURED = frozenset(
    (
        *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time"),
        *("stop_strings", "pad_token_id", "bos_token_id", "eos_token_id"),
        *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
        *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"),
        *("begin_suppress_tokens", "sequence_bias", "exponential_decay_length_penalty"),
        *("renormalize_logits", "remove_invalid_values", "watermarking_config"),
        *("output_scores", "output_logits", "return_dict_in_generate"),
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
        *("epsilon_cutoff", "eta_cutoff"),
    )
)
# Settings that transformers reads neither in greedy search nor where it samples: of beams, of how
# a model drafts for another one there; and of torch.compile, which nothing here uses.
UNREAD = frozenset(
    (
        *("length_penalty", "early_stopping", "diversity_penalty"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_lookbehind"),
        *("assistant_confidence_threshold", "target_lookbehind", "max_matching_ngram_size"),
        *("assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile"),
        "transformers_version",
    )
)
# Of the other settings the values, besides None, that ask for nothing else. (Of several samples of
# a source each has a plan of its own.)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "use_cache": (True,),
    "cache_implementation": ("dynamic", "hybrid"),  # transformers unsets the second itself
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "token_healing": (False,),
    "use_mtp": (False,),
    "low_memory": (False,),
    "is_assistant": (False,),
}
SETTINGS = tuple(name for name in vars(GenerationConfig()) if not name.startswith("_"))

# What an encoder may read of a source besides its ids and their mask.
ENCODER_INPUTS = (
    *("token_type_ids", "position_ids", "global_attention_mask", "lang_ids"),
    *("pixel_values", "bbox", "visual_bbox"),
)
PROMPT = ("decoder_input_ids", "decoder_attention_mask")
# Keywords of `generate` that are no settings and no inputs of an encoder.
KEYWORDS = (
    *("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"),
    *PROMPT,
    *("tokenizer", "synced_gpus"),
)
WAYS_OUT = {
    "inputs": "give the source as input_ids=",
    "inputs_embeds": "both models embed the source themselves; give input_ids=",
    "past_key_values": "each model's cache is made here; a prefix-tuned model cannot be run",
    "decoder_inputs_embeds": "give decoder_input_ids=",
    "assistant_model": "the model that drafts is the pair's small model",
    "custom_generate": "BiLD is the decoding method",
    "negative_prompt_ids": "guidance keeps a cache of a model between its calls",
    "pixel_values": "the small model's encoder would not read them; leave them out",
    "input_features": "only text sources are read; give input_ids=",
    "input_values": "only text sources are read; give input_ids=",
    **{
        name: f"give bild_config=BiLDConfig({name}=...)" for name in BiLDConfig.__dataclass_fields__
    },
}

KEPT_PLANS = 64


@dataclass(frozen=True)
class Plan:
    """What transformers' `generate` makes of its arguments before it decodes.

    Attributes:
        prompt: decoder tokens to start from, (1, P).
        stopping, processors: when an output ends, and what acts on scores.
        config: everything else, with the model's own settings merged in.
        hidden: tokens before the prompt that no model sees, (1, n).
    """

    prompt: Tensor
    stopping: Stopping
    processors: LogitsProcessorList
    config: GenerationConfig
    hidden: Tensor

    @property
    def whole_prompt(self) -> Tensor:
        """The prompt as it was given, (1, n + P)."""
        return torch.cat((self.hidden, self.prompt), 1) if self.hidden.numel() else self.prompt

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; else each is the likeliest."""
        return bool(self.config.do_sample)

    @property
    def keeps_scores(self) -> bool:
        c = self.config
        return bool(c.return_dict_in_generate and (c.output_scores or c.output_logits))

    @property
    def reads_scores(self) -> bool:
        """Whether anything but the decoding loop looks at scores."""
        return scores_are_read(self.stopping, self.processors, self.keeps_scores)

    def with_stop_strings(self, strings: Any, tokenizer: Any) -> Plan:
        """The same plan, by which an output ends with one of the strings as well.

        Args:
            strings: a string or several; None for none.
            tokenizer: of the outputs.

        Raises:
            BildError: strings without a tokenizer.
        """
        if strings is None:
            return self
        if tokenizer is None:
            raise BildError(f"stop_strings={strings!r} needs the tokenizer too; give tokenizer=")
        criteria = StoppingCriteriaList(self.stopping.criteria)
        criteria.append(StopStringCriteria(tokenizer, strings))
        return replace(self, stopping=replace(self.stopping, criteria=criteria))


def make_plan(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **made: Any,
) -> Plan:
    """A decoding method for `custom_generate=` that decodes nothing.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config: of `generate`.
        **made: what else it has made; of that the cache and the prompt's mask are looked at.
            (Parameters of their names would be taken out of the user's keywords.)

    Raises:
        BildError: a setting that is not supported, by name and value; no length limit; guidance; a
            cache that holds something.
    """
    if len(input_ids) != 1:
        raise BildError(f"decoder_input_ids must have one row for a source, got {len(input_ids)}")
    cache: Cache | None = made.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        refuse_keyword("past_key_values")
    check_settings(generation_config)
    for processor in logits_processor:
        if isinstance(function_of(processor), UnbatchedClassifierFreeGuidanceLogitsProcessor):
            raise BildError(
                "BiLD cannot use UnbatchedClassifierFreeGuidanceLogitsProcessor, which keeps a "
                "cache of a model between its calls"
            )
    count = hidden_tokens(model, input_ids, made.get("decoder_attention_mask"))
    hidden, prompt = input_ids[:, :count], input_ids[:, count:]
    stopping, processors = _stopping(stopping_criteria), rewinding(logits_processor)
    find_shared((*processors, *stopping.criteria))
    if count:
        criteria = StoppingCriteriaList(behind(stopping.criteria, hidden))
        limit = stopping.max_length - count
        stopping = replace(stopping, max_length=limit, criteria=criteria)
        processors = behind(processors, hidden)
    return Plan(prompt, stopping, LogitsProcessorList(processors), generation_config, hidden)


def check_settings(config: GenerationConfig) -> None:
    """Refuse every setting that would change what is generated and that BiLD does not honour.

    Raises:
        BildError: naming it, its value, and the value to give instead.
    """
    for name in SETTINGS:
        _check_setting(name, getattr(config, name, None))
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise BildError(f"BiLD decodes greedily or samples; these settings ask for {mode.value}")


def _check_setting(name: str, value: Any) -> None:
    neutral = NEUTRAL.get(name, ())
    if name in HONOURED or name in UNREAD or value is None or value in neutral:
        return
    instead = neutral[0] if neutral else None
    raise BildError(f"BiLD does not support {name}={value!r}; use {name}={instead!r}")


def check_keywords(model: PreTrainedModel, given: Mapping[str, Any]) -> None:
    """Refuse keywords of `generate` that BiLD would have to ignore; None counts as not given.

    Raises:
        BildError: naming the keyword, or the setting and its value, and the way out.
    """
    own = _own_keywords(type(model).generate)
    for name, value in given.items():
        if name in SETTINGS:
            _check_setting(name, value)
        elif name in PROMPT and value is not None and not isinstance(value, Tensor):
            raise BildError(f"{name} must be a tensor, got a {type(value).__name__}")
        elif value is not None and name not in (*KEYWORDS, *ENCODER_INPUTS, *own):
            refuse_keyword(name)


def refuse_keyword(name: str) -> NoReturn:
    """Say that a keyword of `generate` cannot be given, and what to give instead."""
    if name in WAYS_OUT:
        raise BildError(f"BiLD does not support {name}=: {WAYS_OUT[name]}")
    near = get_close_matches(name, (*SETTINGS, *KEYWORDS, *ENCODER_INPUTS), 1)
    raise BildError(
        f"BiLD does not support {name}=: "
        + (f"did you mean {near[0]}?" if near else "leave it out")
    )


@cache
def _own_keywords(own: Callable[..., Any]) -> frozenset[str]:
    """What a model's own `generate` takes besides transformers', such as a target language."""
    usual: Any = GenerationMixin.generate
    usuals = {"args", *inspect.signature(usual).parameters}
    return frozenset(inspect.signature(own).parameters) - usuals


class Planner:
    """Makes the plans of one model.

    A plan takes transformers 2 ms, so plans are remembered where they depend on no input: nothing
    but plain settings is given, and nothing but lengths and end of sequence stops the output.

    Args:
        model: whose `generate` is asked.
        find_tokenizer: the one that looks for stop strings where no other is given, if any.
    """

    def __init__(
        self, model: PreTrainedModel, find_tokenizer: Callable[[], Any] = lambda: None
    ) -> None:
        self.model, self.find_tokenizer = model, find_tokenizer
        self._known: dict[Any, tuple[dict[str, Any], Plan]] = {}

    def __call__(self, source: Tensor, keywords: Mapping[str, Any]) -> Plan:
        """The plan of `generate`'s keywords over a source, (1, S).

        Raises:
            BildError: a keyword or a setting that is not supported.
        """
        check_keywords(self.model, keywords)
        given = {k: v for k, v in keywords.items() if v is not None or k in SETTINGS}
        keywords = {"return_dict_in_generate": True, **given}
        plain = all(v is None or isinstance(v, (bool, int, float)) for v in keywords.values())
        key = tuple(sorted(keywords.items())) if plain else None
        settings = vars(self.model.generation_config)
        known = self._known.get(key)
        if known is not None and known[0] == settings:
            return known[1]
        keywords, strings, tokenizer = self._without_stop_strings(keywords)
        plan = self._make(source, keywords).with_stop_strings(strings, tokenizer)
        if plain and not plan.processors and not plan.stopping.criteria:
            if len(self._known) >= KEPT_PLANS:
                del self._known[next(iter(self._known))]  # the oldest
            # A copy: lists of settings, as of ends of sequence, can be changed in place.
            self._known[key] = copy.deepcopy(settings), plan
        return plan

    def _make(self, source: Tensor, keywords: Mapping[str, Any]) -> Plan:
        nothing = BaseModelOutput(last_hidden_state=torch.empty(*source.shape, 0))
        try:
            plan: Plan = self.model.generate(
                input_ids=source, encoder_outputs=nothing, custom_generate=make_plan, **keywords
            )
        except BildError:
            raise
        except ValueError as error:  # as of a checkpoint without decoder_start_token_id
            raise BildError(
                f"{type(self.model).__name__}.generate refuses its settings: {first_line(error)}"
            ) from error
        return plan

    def _without_stop_strings(self, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        """Keywords that ask for no stop strings, those that these ask for, and the tokenizer."""
        keywords = dict(keywords)
        tokenizer = keywords.pop("tokenizer", None)
        configs = keywords.get("generation_config"), self.model.generation_config
        strings = [
            keywords.pop("stop_strings", None),
            *(getattr(c, "stop_strings", None) for c in configs),
        ]
        first = next((s for s in strings if s is not None), None)
        if first is not None:
            keywords["stop_strings"] = None
            tokenizer = self.find_tokenizer() if tokenizer is None else tokenizer
        return keywords, first, tokenizer


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
    return Stopping(max_length, eos, StoppingCriteriaList(rewinding(others)))
