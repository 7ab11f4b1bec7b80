"""Parallel corpora: held-out splits, further training pairs, and lines of several sentences."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from bild.errors import BildError
from bild.tasks.data import LoadedData

Pair = tuple[str, str]

# How many neighbouring pairs make one training or test line: 1, 2, 3, 4, with these weights.
CONCATENATION_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


def split_by_sentence(
    pairs: Sequence[Pair], held_out: int, seed: int
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Split pairs into (train, validation, test) so that no sentence stands on two sides.

    Pairs that share a source or a target sentence (ignoring case and surrounding space) are
    one component; whole components go to one side. Components of more than eight pairs stay in
    training, so that the held-out sets are not many translations of a few sentences.

    Args:
        pairs: (source, target) sentences.
        held_out: pairs in validation and in test, each.
        seed: order in which components are drawn.

    Raises:
        BildError: there are not enough pairs that can be held out.
    """
    parent = list(range(len(pairs)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_seen: dict[tuple[str, str], int] = {}
    for i, pair in enumerate(pairs):
        for key in zip(("source", "target"), _key(pair), strict=True):
            parent[find(i)] = find(first_seen.setdefault(key, i))
    components: dict[int, list[int]] = defaultdict(list)
    for i in range(len(pairs)):
        components[find(i)].append(i)

    order = list(components.values())
    random.Random(seed).shuffle(order)
    train: list[int] = []
    held: tuple[list[int], list[int]] = ([], [])
    for component in order:
        side = next((s for s in held if len(s) + len(component) <= held_out), None)
        (train if side is None or len(component) > 8 else side).extend(component)
    validation, test = held
    if len(validation) != held_out or len(test) != held_out:
        raise BildError(
            f"cannot hold out 2 x {held_out} pairs from {len(pairs)}: "
            f"found {len(validation)} and {len(test)}; ask for fewer"
        )
    return (
        [pairs[i] for i in sorted(train)],
        [pairs[i] for i in validation],
        [pairs[i] for i in test],
    )


def joining_pairs(
    train: Iterable[Pair], held_out: Iterable[Pair], further: Iterable[Pair]
) -> list[Pair]:
    """The pairs of further corpora that may join the training part of a split.

    Case and surrounding space do not count. A pair of which either side stands on either side of a
    held-out pair is left out, and so is a pair that the training part or an earlier further pair
    repeats.

    Args:
        train, held_out: parts of a split.
        further: pairs of other corpora.
    """
    held = {text for pair in held_out for text in _key(pair)}
    seen = {_key(pair) for pair in train}
    joining = []
    for pair in further:
        key = _key(pair)
        if key not in seen and held.isdisjoint(key):
            seen.add(key)
            joining.append(pair)
    return joining


def concatenate(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Shuffle pairs and join one to four neighbours at random (`CONCATENATION_WEIGHTS`).

    Every pair is used exactly once, so that one call is one pass over the corpus and outputs of
    one to four sentences are in-domain.
    """
    rng = random.Random(seed)
    order = list(pairs)
    rng.shuffle(order)
    lines = []
    start = 0
    while start < len(order):
        count = rng.choices((1, 2, 3, 4), CONCATENATION_WEIGHTS)[0]
        group = order[start : start + count]
        lines.append((" ".join(s for s, _ in group), " ".join(t for _, t in group)))
        start += count
    return lines


def describe_data(data: LoadedData) -> dict[str, Any]:
    """What a record says of a training or test file."""
    return {"file": data.origin, "examples": len(data.examples), "sha256": data.sha256}


def _key(pair: Pair) -> tuple[str, str]:
    """What a pair is recognised by."""
    return pair[0].strip().lower(), pair[1].strip().lower()
