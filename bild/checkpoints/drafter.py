"""A drafter: a small T5 decoder that reads what the LARGE model's encoder has made of the source.

It needs no encoder of its own and no sibling of the same family: any T5 gets one by
`scripts/align.py --method drafter`. Its head may score a shortlist of the vocabulary alone, the
tokens that occur in outputs; every other token has the score -inf. It is what BiLD calls the small
model (paper, Section 3), and belongs to ONE large model, whose encoder its config names.

Letters used for shapes: B sequences, S source tokens, T target tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedModel,
    T5Config,
)
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5PreTrainedModel, T5Stack

from bild.errors import BildError

LARGE_FAMILIES = ("t5", "mt5", "umt5")  # whose encoder a drafter can read
NO_ENCODER = (
    "a drafter has no encoder: it drafts for the large model that it was trained for, and reads "
    "its encoder_outputs"
)
TOLERANCE = 1e-3  # of the encoder's sizes: formats of half precision stay far below it


class DrafterConfig(T5Config):
    """A T5's configuration, of whose fields only those of a decoder count, and three of its own.

    Attributes:
        source_width: D of the large model's encoder.
        head_rows: token ids that the head scores; None for all.
        encoder_sizes: what tells the large model's encoder from others (`encoder_sizes`).
        scales_head: whether the head's input is scaled by D ** -0.5.
    """

    model_type = "bild-drafter"

    source_width: int = 512
    head_rows: int | None = None
    encoder_sizes: list[float] | None = None
    scales_head: bool = True


class BiLDDrafter(T5PreTrainedModel, GenerationMixin):
    """A decoder over another model's encoder states.

    Args:
        config: its shape.
    """

    config_class = DrafterConfig
    config: DrafterConfig
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012 (transformers reads it off the class)

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        inner = copy.deepcopy(config)
        inner.is_decoder, inner.num_layers = True, config.num_decoder_layers
        self.decoder = T5Stack(inner)
        size = config.num_heads * config.d_kv
        for block in self.decoder.block:
            for name in ("k", "v"):
                attention = block.layer[1].EncDecAttention
                setattr(attention, name, nn.Linear(config.source_width, size, bias=False))
        rows = config.vocab_size if config.head_rows is None else config.head_rows
        self.lm_head = nn.Linear(config.d_model, rows, bias=False)
        self.register_buffer("head_ids", torch.arange(rows))  # ascending
        self.post_init()

    @property
    def shortlist(self) -> Tensor | None:
        """The token ids that the head scores, ascending; None for all."""
        return None if self.config.head_rows is None else self.get_buffer("head_ids")

    def get_encoder(self, *args: Any, **kwargs: Any) -> Any:
        """None: it has none."""
        return None

    def get_decoder(self) -> Any:
        return self.decoder

    def get_input_embeddings(self) -> Any:
        return self.decoder.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs (B, T) for labels (B, T), as of any T5."""
        shifted: Tensor = self._shift_right(labels)
        return shifted

    def head(self, hidden: Tensor) -> Tensor:
        """Scores of the head's own rows, (B, T, rows), from the decoder's states (B, T, D)."""
        if self.config.scales_head:
            hidden = hidden * self.config.d_model**-0.5
        scores: Tensor = self.lm_head(hidden)
        return scores

    def forward(
        self,
        encoder_outputs: Any,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As a T5's, given the LARGE model's encoder states.

        Args:
            encoder_outputs: their first entry is (B, S, D) of the large model's encoder.
            attention_mask: (B, S), of the source.
            decoder_input_ids: (B, T).

        Returns:
            Logits (B, T, V), -inf where the head does not score.
        """
        states = encoder_outputs[0]
        made = self.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        scores = spread(self.head(made.last_hidden_state), self.shortlist, self.config.vocab_size)
        return Seq2SeqLMOutput(logits=scores, past_key_values=made.past_key_values)


def spread(scores: Tensor, shortlist: Tensor | None, vocab_size: int) -> Tensor:
    """Scores of all V token ids (..., V), -inf beyond the shortlist.

    Args:
        scores: of the shortlist, (..., rows).
        shortlist: (rows,) token ids; None: they are of all.
        vocab_size: V.
    """
    if shortlist is None:
        return scores
    full = scores.new_full((*scores.shape[:-1], vocab_size), -torch.inf)
    full[..., shortlist] = scores
    return full


def make_drafter(
    large: PreTrainedModel,
    layers: int = 1,
    feed_width: int | None = None,
    shortlist: Tensor | None = None,
) -> BiLDDrafter:
    """A drafter for a T5, as wide as it, begun with its embeddings and its last decoder layers.

    Args:
        large: the model whose encoder it reads.
        layers: of the decoder, at most the large one's.
        feed_width: of the feed-forward; None for the large model's.
        shortlist: token ids for the head, ascending; None for all.

    Raises:
        BildError: a model of another family, or with fewer layers.
    """
    check_readable(large)
    its = large.config
    if not 1 <= layers <= its.num_decoder_layers:
        raise BildError(
            f"a drafter has 1 to {its.num_decoder_layers} layers beside this large model, "
            f"got {layers}"
        )
    fields = {
        name: getattr(its, name)
        for name in (
            *("vocab_size", "d_model", "d_kv", "num_heads", "relative_attention_num_buckets"),
            *("relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj"),
            *("pad_token_id", "eos_token_id", "decoder_start_token_id"),
        )
    }
    source: Any = large.get_decoder()
    head = large.get_output_embeddings().weight.detach().float()
    drafter = BiLDDrafter(
        DrafterConfig(
            **fields,
            d_ff=its.d_ff if feed_width is None else feed_width,
            num_layers=layers,
            num_decoder_layers=layers,
            dropout_rate=0.0,
            source_width=its.d_model,
            head_rows=None if shortlist is None else len(shortlist),
            encoder_sizes=encoder_sizes(large),
            scales_head=scales_head(its),
        )
    )
    taken = range(its.num_decoder_layers - layers, its.num_decoder_layers)
    with torch.no_grad():
        drafter.decoder.embed_tokens.weight.copy_(source.embed_tokens.weight)
        drafter.decoder.final_layer_norm.weight.copy_(source.final_layer_norm.weight)
        for mine, number in zip(drafter.decoder.block, taken, strict=True):
            _copy_layer(mine, source.block[number])
        first = drafter.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        first.copy_(source.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
        drafter.lm_head.weight.copy_(head if shortlist is None else head[shortlist])
        if shortlist is not None:
            drafter.get_buffer("head_ids").copy_(shortlist)
    drafter.generation_config = copy.deepcopy(large.generation_config)
    return drafter.eval()


def _copy_layer(mine: nn.Module, other: nn.Module) -> None:
    """Every weight that has the same shape; of the others as much as fits, the rest at zero."""
    theirs = dict(other.named_parameters())
    for name, parameter in mine.named_parameters():
        weight = theirs.get(name)
        if weight is None:
            continue  # the position biases, which are the first layer's
        shared = tuple(slice(min(a, b)) for a, b in zip(parameter.shape, weight.shape, strict=True))
        if "wo." in name:  # new units of the feed-forward begin without effect
            parameter.zero_()
        parameter[shared] = weight[shared].to(parameter.dtype)


def scales_head(config: Any) -> bool:
    """Whether a model scales its head's input; each model type decides it differently (5.23)."""
    if config.model_type == DrafterConfig.model_type:
        return bool(config.scales_head)
    if config.model_type == "t5":
        return bool(config.scale_decoder_outputs)
    return bool(config.model_type == "umt5" and config.tie_word_embeddings)


def check_readable(large: PreTrainedModel) -> None:
    """Refuse a large model whose encoder no drafter can read.

    Raises:
        BildError: another family than T5's.
    """
    family = large.config.model_type
    if family not in LARGE_FAMILIES:
        raise BildError(
            f"a drafter reads the encoder of a {', '.join(LARGE_FAMILIES)}, not of {family!r}; "
            "use a small model with an encoder of its own"
        )


@torch.no_grad()
def encoder_sizes(large: PreTrainedModel) -> list[float]:
    """The root mean square of each weight of an encoder: what tells one model from another.

    They are the same for all precisions of one model, up to `TOLERANCE`.
    """
    encoder: Any = large.get_encoder()
    return [float(p.float().square().mean().sqrt()) for _, p in sorted(encoder.named_parameters())]


def check_large(drafter: BiLDDrafter, large: PreTrainedModel) -> None:
    """Refuse a large model other than the one that a drafter was trained for.

    Raises:
        BildError: another family, width or encoder.
    """
    _check_width(drafter, large)
    known, found = drafter.config.encoder_sizes, encoder_sizes(large)
    if known is None:
        raise BildError("the drafter's config.json lacks encoder_sizes; copy the whole checkpoint")
    if len(known) != len(found) or any(
        abs(a - b) > TOLERANCE * max(abs(a), 1e-6) for a, b in zip(known, found, strict=False)
    ):
        raise BildError(
            "the drafter was trained for another large model, whose encoder has other weights; "
            "use that one, or train a drafter for this one: scripts/align.py --method drafter"
        )


def hand_over(drafter: BiLDDrafter, large: PreTrainedModel) -> None:
    """Make a drafter that of another large model, for which it is about to be trained.

    Raises:
        BildError: another family or width.
    """
    _check_width(drafter, large)
    drafter.config.encoder_sizes = encoder_sizes(large)


def _check_width(drafter: BiLDDrafter, large: PreTrainedModel) -> None:
    check_readable(large)
    width = drafter.config.source_width
    if large.config.d_model != width:
        raise BildError(
            f"the drafter reads an encoder of width {width}, but the large model's is "
            f"{large.config.d_model}; use the large model that it was trained for"
        )


AutoConfig.register(DrafterConfig.model_type, DrafterConfig)
AutoModelForSeq2SeqLM.register(DrafterConfig, BiLDDrafter)
