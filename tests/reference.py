"""Big Little Decoder without any cache, straight from the description: the test's oracle.

Every token recomputes both models over the whole prefix. It shares no code with `bild` and is
written the other way round: each written token carries who wrote it, and the large model looks
at the whole output each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Reference:
    tokens: list[int]
    fallbacks: int = 0
    rollbacks: int = 0
    rolled_back_tokens: int = 0
    large_calls: int = 0


class Cacheless:
    """A model's logits over a whole prefix, recomputed from nothing: (len(tokens), V).

    Answers are remembered per prefix, so that a grid of thresholds over one source is quick.
    """

    def __init__(self, model, source, attention_mask=None):
        self.model, self.source, self.mask = model, source, attention_mask
        self.known = {}

    @torch.no_grad()
    def __call__(self, tokens):
        key = tuple(tokens)
        if key not in self.known:
            self.known[key] = self.model(
                input_ids=self.source,
                attention_mask=self.mask,
                decoder_input_ids=torch.tensor([tokens]),
                use_cache=False,
            ).logits[0].float()  # fmt: skip
        return self.known[key]


def reference_decode(
    large,
    small,
    *,
    fallback,
    rollback,
    variant,
    start="large",
    num_small_iters=10,
    max_length,
    eos,
    bos=0,
    vocab=None,
):
    """`large` and `small` are `Cacheless` models over the same source."""
    out = Reference([bos])
    owner = ["prompt"]  # who wrote each token: prompt, large, draft (unseen by large), small
    in_control = start
    in_a_row = 0

    def logits(model):
        return model(out.tokens)[:, :vocab]

    def at_end():
        return out.tokens[-1] == eos or len(out.tokens) >= max_length

    while True:
        if in_control == "small":
            if in_a_row == num_small_iters:
                in_control = "large"
                continue
            distribution = torch.softmax(logits(small)[-1], -1)
            confidence, token = distribution.max(-1)
            if confidence.item() < fallback:
                out.fallbacks += 1
                in_control = "large"
                continue
            out.tokens.append(token.item())
            owner.append("draft")
            in_a_row += 1
            if at_end():
                if variant != "verified":
                    return out
                in_control = "large"
            continue

        out.large_calls += 1
        log_p = torch.log_softmax(logits(large), -1)
        drafts = [i for i, who in enumerate(owner) if who == "draft"]
        far = [i for i in drafts if -log_p[i - 1, out.tokens[i]].item() > rollback]
        wrong = [i for i in far if log_p[i - 1].argmax().item() != out.tokens[i]]
        if variant == "authors":
            wrong = wrong[:1] if far[:1] == wrong[:1] else []
        in_a_row = 0
        in_control = "small"
        if wrong:
            where = wrong[0]
            out.rollbacks += 1
            out.rolled_back_tokens += len(out.tokens) - where
            del out.tokens[where:], owner[where:]
            if variant == "authors":
                in_control = "large"
        elif drafts and at_end():
            return out
        owner[:] = ["small" if who == "draft" else who for who in owner]
        out.tokens.append(log_p[len(out.tokens) - 1].argmax().item())
        owner.append("large")
        if at_end():
            return out
