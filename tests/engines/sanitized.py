"""Decodes random T5s with the engine compiled by address and undefined-behaviour sanitizers.

    LD_PRELOAD="$(cc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 BILD_CACHE=... \\
        PYTHONPATH=tests python tests/engines/sanitized.py SECONDS

Says how many models and outputs there were. With `short` behind the seconds every buffer that the
engine is given is an element too short, which a sanitizer must see.
"""

from __future__ import annotations

import math
import random
import sys
import time

import torch
from tiny import sources, tiny_t5

from bild import BiLDConfig, BiLDModel
from bild.checkpoints.drafter import make_drafter
from bild.engines import build, t5_native
from bild.policy import RULES
from bild.rules import ACCEPTANCE, FALLBACK

S = (3, 12, 60)  # longest sources
SANITIZERS = (
    *("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    "-fno-sanitize-recover=all",
)


def model(drawn: random.Random, **same):
    """A random T5 with shapes as no published one has them."""
    return tiny_t5(
        drawn.randrange(10**6),
        layers=drawn.randint(1, 3),
        decoder_layers=drawn.randint(1, 3),
        width=16 * drawn.randint(1, 5),
        head_width=16 * drawn.randint(1, 3),
        tied=drawn.random() < 0.5,
        **same,
    )


def shorten() -> None:
    made = t5_native.buffer

    def shorter(*shape, dtype=torch.float32):
        return made(*shape[:-1], shape[-1] - 1, dtype=dtype) if shape[-1] > 1 else made(*shape)

    t5_native.buffer = shorter


def drafter(drawn: random.Random, large):
    """One that scores all tokens, or a shortlist of any length."""
    shortlist = None
    if drawn.random() < 0.5:
        ids = range(2, large.config.vocab_size)  # beside the end and the padding
        shortlist = torch.tensor([0, 1, *sorted(drawn.sample(ids, drawn.randint(1, len(ids))))])
    return make_drafter(large, shortlist=shortlist)


def decode(drawn: random.Random, pair: BiLDModel, vocab: int, together: bool) -> int:
    """How many outputs were made: of sources one by one, or of all of them in ragged batches."""
    texts = [s for n in (1, 3) for s in sources(drawn.randrange(10**6), n, vocab, drawn.choice(S))]
    config = BiLDConfig(
        drawn.uniform(0, 1), drawn.choice((0.0, 1.0, 4.0)), drawn.choice((1, 10, math.inf)),
        drawn.choice(sorted(RULES)), lookahead=drawn.choice((0, 1, math.inf)),
        acceptance=drawn.choice((None, *ACCEPTANCE)),
        drafting=drawn.choice((None, *sorted(set(FALLBACK) - {"adaptive"}))),  # it does not guess
    )  # fmt: skip
    limit = drawn.choice((1, 9, 150))
    if together:
        rows = ({"input_ids": text} for text in texts)
        size = drawn.randint(2, 5)
        return len(list(pair.generate_many(rows, config, batch_size=size, max_new_tokens=limit)))
    for text in texts:
        pair.generate(
            input_ids=text, bild_config=config, max_new_tokens=limit,
            # A trace is made by the loop in Python, all else in whole rounds.
            output_trace=(traced := drawn.random() < 0.4), return_dict_in_generate=traced,
        )  # fmt: skip
    return len(texts)


def main(seconds: float, short: bool) -> None:
    build.FLAGS = (*build.FLAGS, *SANITIZERS)
    build.load()
    if short:
        shorten()
    drawn = random.Random(0)
    torch.set_num_threads(drawn.randint(1, 3))
    end = time.process_time() + seconds
    models = outputs = 0
    while models < 4 or time.process_time() < end:
        same = {"vocab": drawn.randint(5, 90), "kind": drawn.choice(("t5", "mt5", "umt5"))}
        large = model(drawn, **same)
        small = drafter(drawn, large) if models % 2 else model(drawn, **same)
        pair = BiLDModel(
            large, small, engine="fast", compile=True,
            precision=drawn.choice(("float32", "bfloat16", "int8")),
        )  # fmt: skip
        outputs += decode(drawn, pair, same["vocab"], together=models % 4 > 1)
        models += 1
    print(f"{models} models, {outputs} outputs")


if __name__ == "__main__":
    main(float(sys.argv[1]), "short" in sys.argv)
