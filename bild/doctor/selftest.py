"""Ten seconds of decoding: what this machine's engine writes against what transformers writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bild.checkpoints.loading import load_model, load_tokenizer
from bild.config import BiLDConfig
from bild.doctor.findings import Finding
from bild.errors import BildError
from bild.generation.pair import BiLDModel

TEXTS = (
    "Heute Morgen lag überall Schnee.",
    "Kommt ihr mit dem Auto oder mit dem Fahrrad?",
    "Wir haben den ganzen Abend auf dich gewartet.",
)
SECONDS = 10.0


def self_test(large: str, small: str, texts: Sequence[str] = TEXTS) -> Finding:
    """Decode with the pair and with the large model alone, on both engines, for ten seconds.

    Args:
        large, small: folders or hub ids.
        texts: sources, as many as there is time for.
    """
    start = time.monotonic()
    try:
        import torch

        tokenizer = load_tokenizer(large, small)
        models = [load_model(name, torch.float32, "cpu") for name in (large, small)]
        ours = BiLDModel(*models)
        theirs = BiLDModel(*models, engine="transformers")
        done = 0
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            for kind in ("pair", "large model alone"):
                written = [_tokens(pair, kind, ids) for pair in (ours, theirs)]
                if written[0] != written[1]:
                    return Finding(
                        "self-test",
                        "error",
                        f"the {kind} writes other tokens on the engine ({ours.engine}) than on "
                        f"transformers, for {text!r}",
                        "use --engine transformers, and report this with `bild doctor --json`",
                    )
            done += 1
            if time.monotonic() - start > SECONDS:
                break
    except BildError as error:
        return Finding("self-test", "error", str(error), "see the findings above")
    seconds = time.monotonic() - start
    return Finding(
        "self-test",
        "ok",
        f"{done} sentence(s), engine {ours.engine}: token for token as transformers "
        f"({seconds:.1f} s)",
    )


def _tokens(pair: BiLDModel, kind: str, ids: Any) -> list[int]:
    options: Any = {"max_new_tokens": 48, "do_sample": False, "num_beams": 1}
    if kind == "pair":
        output: Any = pair.generate(ids, bild_config=BiLDConfig(0.6, 2.0), **options)
    else:
        output = pair.greedy(ids, **options)
    tokens: list[int] = output.sequences[0].tolist()
    return tokens
