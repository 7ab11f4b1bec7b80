"""Ten seconds of decoding: what this machine's engine writes against what transformers writes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bild.checkpoints.loading import find_device, load_model, load_tokenizer
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
KINDS: dict[str, BiLDConfig | None] = {
    "pair": BiLDConfig(0.6, 2.0),
    "pair that is lossless": BiLDConfig(0.3, 0.69, variant="verified"),
    "large model alone": None,
}


def self_test(large: str, small: str, texts: Sequence[str] = TEXTS, device: str = "cpu") -> Finding:
    """Decode with the pair and with the large model alone, on both engines, for ten seconds.

    Args:
        large, small: folders or hub ids.
        texts: sources, as many as there is time for.
        device: as of `find_device`.
    """
    start = time.monotonic()
    try:
        import torch

        where = find_device(device)
        tokenizer = load_tokenizer(large, small)
        models = [load_model(name, torch.float32, where) for name in (large, small)]
        ours = BiLDModel(*models)
        theirs = BiLDModel(*models, engine="transformers")
        done = 0
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"].to(where)
            with _exact_products():
                kind = _different(ours, theirs, ids)
            if kind is not None:
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
        f"{done} sentence(s) on {where}, engine {ours.engine}: token for token as transformers "
        f"({seconds:.1f} s)",
    )


def _different(ours: BiLDModel, theirs: BiLDModel, ids: Any) -> str | None:
    """What writes other tokens on one engine than on the other; None: nothing."""
    for kind in KINDS:
        if _tokens(ours, kind, ids) != _tokens(theirs, kind, ids):
            return kind
    lossless, alone = (_tokens(ours, kind, ids) for kind in list(KINDS)[1:])
    return None if lossless == alone else "pair that is lossless"


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 in float32: a GPU may round them (TF32), and then tokens may differ."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _tokens(pair: BiLDModel, kind: str, ids: Any) -> list[int]:
    options: Any = {"max_new_tokens": 48, "do_sample": False, "num_beams": 1}
    config = KINDS[kind]
    if config is not None:
        output: Any = pair.generate(ids, bild_config=config, **options)
    else:
        output = pair.greedy(ids, **options)
    tokens: list[int] = output.sequences[0].tolist()
    return tokens
