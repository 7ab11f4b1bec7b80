"""Acceptance rules of other papers, with their sources; by name in `bild.rules`.

Every rule keeps a token that the large model would have written itself, and lets the
large model look at the end. What they say of other tokens is `accepts`, a pure function of one
token. Each has a setting at which no other token is accepted, so that the output is the large
model's own greedy output, and one at which every token is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from bild.policy import AcceptanceRule, Window, check_setting


@dataclass(frozen=True)
class TokenRule(AcceptanceRule):
    """A rule that judges each token for itself, and keeps what the large model agrees with."""

    @abstractmethod
    def accepts(self, window: Window, i: int) -> bool:
        """Whether a drafted token other than the large model's choice may stay.

        Args:
            window: a draft.
            i: the token's index in it.
        """

    def first_cut(self, window: Window) -> int | None:
        for i, token in enumerate(window.drafted):
            if window.large_tokens[i] != token and not self.accepts(window, i):
                return i
        return None


@dataclass(frozen=True)
class Exact(TokenRule):
    """Only the large model's own choice stays: greedy speculative decoding.

    Source: Stern et al., "Blockwise Parallel Decoding for Deep Autoregressive Models", NeurIPS
    2018, Section 3; Leviathan et al., "Fast Inference from Transformers via Speculative Decoding",
    ICML 2023, at temperature 0. Always exact.
    """

    def accepts(self, window: Window, i: int) -> bool:
        return False

    @property
    def is_lossless(self) -> bool:
        return self.checks_end


@dataclass(frozen=True)
class TopK(TokenRule):
    """A token stays if it is one of the large model's `k` likeliest, and not much less likely.

    Source: Stern et al. 2018, Section 5.1 (top-k selection); Xia et al., "Speculative Decoding:
    Exploiting Speculative Execution for Accelerating Seq2seq Generation", EMNLP Findings 2023,
    Section 3.2 (top-beta candidates within a tolerance tau).

    Attributes:
        k: 1 is exact, inf looks at the tolerance alone.
        tolerance: of `log max p_L - log p_L(token)`, nats; 0 is exact, inf looks at `k` alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances", "own_distances", "ranks"})

    k: float = 3
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        check_setting("topk", "k", self.k, 1, math.inf, whole=True)
        check_setting("topk", "tolerance", self.tolerance, 0, math.inf)

    def accepts(self, window: Window, i: int) -> bool:
        if self.k == 1:  # equally likely tokens are no reason to differ
            return False
        return window.ranks[i] < self.k and _within(_regret(window, i), self.tolerance)

    @property
    def is_lossless(self) -> bool:
        return self.checks_end and (self.k == 1 or self.tolerance == 0)


@dataclass(frozen=True)
class Typical(TokenRule):
    """A token stays if it is likely enough for the large model's entropy H at that place.

    It stays if `p_L >= min(eps, delta exp(-H))`: where the large model is unsure, less suffices.

    Source: Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding
    Heads", ICML 2024, Section 2.3.1.

    Attributes:
        eps: the hard threshold. 0 accepts every token; above 0.5, with delta = inf, is exact (a
            token with more than half of the probability is the large model's choice).
        delta: of the threshold that the entropy lowers; 0 accepts every token.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances", "entropies"})

    eps: float = 0.3
    delta: float = 0.09

    def __post_init__(self) -> None:
        check_setting("typical", "eps", self.eps, 0, 1)
        check_setting("typical", "delta", self.delta, 0, math.inf)

    def accepts(self, window: Window, i: int) -> bool:
        least = self.delta * math.exp(-window.entropies[i])
        return math.exp(-window.distances[i]) >= min(self.eps, least)

    @property
    def is_lossless(self) -> bool:
        return self.checks_end and self.eps > 0.5 and self.delta == math.inf


@dataclass(frozen=True)
class Lenient(TokenRule):
    """A token stays if it has at least the `share` of the probability of the large model's choice.

    `p_L(token) >= share max p_L`.

    Source: Leviathan et al. 2023, Appendix on lenience (their `l`), in its form for the most likely
    token; Narasimhan et al., "Faster Cascades via Speculative Decoding", ICLR 2025, has it as the
    third of its token-specific rules, with alpha = 1 - share.

    Attributes:
        share: 1 is exact, 0 accepts every token.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances", "own_distances"})

    share: float = 0.3

    def __post_init__(self) -> None:
        check_setting("lenient", "share", self.share, 0, 1)

    def accepts(self, window: Window, i: int) -> bool:
        allowed = math.inf if self.share == 0 else -math.log(self.share)
        return _within(_regret(window, i), allowed)

    @property
    def is_lossless(self) -> bool:
        return self.checks_end and self.share == 1


@dataclass(frozen=True)
class Regret(AcceptanceRule):
    """Tokens stay as long as all of an output together stay within a budget of log-probability.

    Each token that differs costs `log max p_L - log p_L(token)`, its regret; the first that the
    budget cannot pay is cut. The sum over an output bounds by how much its tokens, each in its
    place, are less likely than the large model's choices there. BiLD's threshold and `Lenient`
    bound each token for itself instead.

    Source: this project. The regret of one token is what Xia et al. 2023 bound by their tolerance.

    Attributes:
        budget: of an output, nats; 0 is exact, inf accepts every token.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances", "own_distances"})

    budget: float = 4.0

    def __post_init__(self) -> None:
        check_setting("regret", "budget", self.budget, 0, math.inf)

    def first_cut(self, window: Window) -> int | None:
        spent = window.spent
        for i, token in enumerate(window.drafted):
            if window.large_tokens[i] != token:
                spent += max(0.0, _regret(window, i))
                if not _within(spent, self.budget):
                    return i
        return None

    def spends(self, window: Window, kept: int) -> float:
        differ = (i for i in range(kept) if window.large_tokens[i] != window.drafted[i])
        return sum(max(0.0, _regret(window, i)) for i in differ)

    @property
    def is_lossless(self) -> bool:
        return self.checks_end and self.budget == 0


@dataclass(frozen=True)
class Ensemble(TokenRule):
    """A token stays if it certainly is the likeliest under a mixture of both models.

    The mixture is `(1 - weight) p_L + weight p_S`. Of the small model only its likeliest token is
    known, with its probability c; no other can have more than `min(c, 1 - c)`. A token stays if
    even so none can beat it. Elsewhere the large model's choice is written, which need not be the
    mixture's: the outputs lie between the large model's and the ensemble's.

    Source: the mixture as target is that of Fu et al., "Fast Large Language Model Collaborative
    Decoding via Speculation", ICML 2025 (weighted ensembles); the test by bounds is this project's.

    Attributes:
        weight: of the small model; 0 is exact, 1 accepts every token.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances", "own_distances", "confidences"})

    weight: float = 0.3

    def __post_init__(self) -> None:
        check_setting("ensemble", "weight", self.weight, 0, 1)

    def accepts(self, window: Window, i: int) -> bool:
        if self.weight == 0:  # equally likely tokens are no reason to differ
            return False
        small, drafted = window.confidences[i], math.exp(-window.distances[i])
        best = math.exp(-window.own_distances[i])
        w = self.weight
        rival = (1 - w) * best + w * min(small, 1 - small)
        return (1 - w) * drafted + w * small >= rival

    @property
    def is_lossless(self) -> bool:
        return self.checks_end and self.weight == 0


@dataclass(frozen=True)
class Cascade(TokenRule):
    """A token stays if the small model is nearly as sure of it as the large one of its own.

    `max p_S >= max p_L - alpha`; else the large model is deferred to. How likely the large model
    finds the drafted token is not asked.

    Source: Narasimhan et al. 2025, Section 3 (rule "Diff", as a speculative cascade; "OPT" of the
    same paper multiplies alpha by the total variation between both distributions).

    Attributes:
        alpha: -1 is exact, 1 accepts every token.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"own_distances", "confidences"})

    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_setting("cascade", "alpha", self.alpha, -1, 1)

    def accepts(self, window: Window, i: int) -> bool:
        if self.alpha == -1:
            return False
        return window.confidences[i] >= math.exp(-window.own_distances[i]) - self.alpha

    @property
    def is_lossless(self) -> bool:
        return self.checks_end and self.alpha == -1


def _regret(window: Window, i: int) -> float:
    """By how many nats the large model likes a drafted token less than its own choice."""
    return window.distances[i] - window.own_distances[i]


def _within(regret: float, allowed: float) -> bool:
    """Whether a regret is allowed; with nothing allowed, not even that of an equally likely token,
    so that the output is the large model's, ties included. Infinite ones are, if all are."""
    return allowed > 0 and (regret <= allowed or allowed == math.inf)
