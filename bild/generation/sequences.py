"""How a call of `generate` becomes outputs: one at once, or several, as the rows of a batch.

Where outputs are sampled, each has random numbers of its own. One output alone draws straight from
the generator that is given, or from torch's own, as transformers does. Of several each draws from a
stream that its place in the call decides, and one number of that generator: so its tokens do not
depend on what is decoded beside it, nor on how many at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.errors import BildError
from bild.generation.batching import (
    as_keywords,
    check_batch_size,
    decode_rows,
    refuse_of_one_row,
    rows_given,
    split_rows,
)
from bild.generation.decoding import Steps, answer_at_once
from bild.generation.output import BiLDOutput, gather, pad_token_id

MakeSteps = Callable[..., Steps[BiLDOutput | Tensor]]


def stream_of(seed: int, *places: int) -> torch.Generator:
    """Random numbers of one output, on the CPU: the same for the same seed and places.

    Args:
        seed: any whole number.
        places: of the output, as the number of its text, and which of that text's outputs it is.
    """
    digest = hashlib.sha256(repr((seed, *places)).encode()).digest()
    generator = torch.Generator(device="cpu")
    return generator.manual_seed(int.from_bytes(digest[:4], "little"))  # it reads no more


def check_generator(generator: Any) -> torch.Generator | None:
    """Refuse what is no generator of random numbers on the CPU."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        where = f" on {generator.device}" if isinstance(generator, torch.Generator) else ""
        raise BildError(
            "generator must be a torch.Generator on the CPU, where all tokens are drawn, got a "
            f"{type(generator).__name__}{where}; give torch.Generator().manual_seed(0)"
        )
    return generator


def setting(name: str, keywords: Mapping[str, Any], model: PreTrainedModel) -> Any:
    """A setting of `generate`, as transformers finds it; None where nobody has set it."""
    configs = keywords.get("generation_config"), model.generation_config
    values = (keywords.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)


@dataclass(frozen=True)
class Samples:
    """What a call asks for besides greedy outputs.

    Attributes:
        count: outputs of each source.
        generator: of the call.
        drawn: whether outputs are sampled at all.
    """

    count: int = 1
    generator: torch.Generator | None = None
    drawn: bool = False

    @classmethod
    def of(cls, keywords: Mapping[str, Any], model: PreTrainedModel, generator: Any) -> Samples:
        """Those of a call of `generate`.

        Raises:
            BildError: a number of outputs that is none; a generator that is none, or is not asked.
        """
        if not setting("do_sample", keywords, model):
            if generator is not None:
                raise BildError("generator= decides what is drawn; give do_sample=True with it")
            return cls()  # of greedy outputs all are alike: the settings' check refuses several
        count = setting("num_return_sequences", keywords, model)
        count = 1 if count is None else count
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise BildError(f"num_return_sequences must be a whole number >= 1, got {count!r}")
        return cls(count, check_generator(generator), drawn=True)

    def each(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The keywords of each output: a source's read what the first of them has encoded.

        Args:
            rows: the keywords of each source; with a generator of its own, its outputs draw from
                that.
        """
        if not self.drawn:
            return (dict(row) for row in rows)
        seed = _seed(self.generator)
        return (own for i, row in enumerate(rows) for own in self._of_source(row, seed, i))

    def _of_source(self, row: Mapping[str, Any], seed: int, place: int) -> Iterator[dict[str, Any]]:
        own = check_generator(row.get("generator"))
        if self.count == 1:
            yield {**row, "generator": stream_of(seed, place, 0) if own is None else own}
            return
        if own is not None:
            seed, place = _seed(own), 0
        encoded: dict[str, Any] = {}
        for i in range(self.count):
            stream = stream_of(seed, place, i)
            yield {**row, "num_return_sequences": 1, "generator": stream, "encoded": encoded}


def _seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def generate_rows(
    steps: MakeSteps,
    model: PreTrainedModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    generator: torch.Generator | None,
    keywords: Mapping[str, Any],
    **of_a_row: Any,
) -> BiLDOutput | Tensor:
    """All that a call of `generate` asks for, decoded together.

    Args:
        steps: makes an output of one source, given its keywords.
        model: whose settings hold, and whose padding fills up rows.
        input_ids, attention_mask, generator: of the call.
        keywords: its others.
        **of_a_row: keywords of `steps` where there are several outputs.
    """
    asked = Samples.of(keywords, model, generator)
    several = rows_given(input_ids, keywords) > 1
    if asked.count == 1 and not several:
        return answer_at_once(steps(input_ids, attention_mask, generator=generator, **keywords))
    if several:
        rows = split_rows(input_ids, attention_mask, keywords)
    else:
        refuse_of_one_row(keywords)
        rows = [{**keywords, "input_ids": input_ids, "attention_mask": attention_mask}]
    wanted = [{**of_a_row, **row} for row in asked.each(rows)]
    found = list(decode_rows(steps, wanted, len(wanted)))
    return gather(found, pad_token_id(keywords, model))


def generate_many_rows(
    steps: MakeSteps,
    model: PreTrainedModel,
    sources: Iterable[Any],
    batch_size: int,
    generator: torch.Generator | None,
    keywords: Mapping[str, Any],
    **of_a_row: Any,
) -> Iterator[BiLDOutput | Tensor]:
    """What `generate_rows` returns of each source, so many outputs being decoded at a time.

    Args:
        sources: as of `BiLDModel.generate_many`.
        batch_size: outputs decoded at a time.

    The others as there.
    """
    check_batch_size(batch_size, keywords)
    asked = Samples.of(keywords, model, generator)
    shared = {**of_a_row, **keywords}
    rows = ({**shared, **as_keywords(source)} for source in sources)
    found = decode_rows(steps, asked.each(rows), batch_size)
    if asked.count == 1:
        return found
    pad = pad_token_id(keywords, model)
    return (gather([first, *islice(found, asked.count - 1)], pad) for first in found)
