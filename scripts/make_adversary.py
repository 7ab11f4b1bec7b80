"""Make a small model that always errs, to see what drafting costs where it never pays.

    python scripts/make_adversary.py demo out/adversary
    python scripts/run_eval.py demo --small out/adversary --rule exact --drafting adaptive
    python scripts/run_eval.py demo --small out/adversary --rule exact --drafting max:threshold=0.2

It is the task's small model with its last norm turned round: what it found least likely it now
finds likeliest. With --drafting adaptive BiLD then is to end near the large model alone.
"""

from __future__ import annotations

from pathlib import Path

from bild.cli import quiet_loading, run
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.files import check_writable, moved_when_done, sole_user, writing
from bild.parser import Parser
from bild.tasks.registry import MODES, TASKS
from bild.tasks.sources import locate


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("task", choices=TASKS, help="whose small model")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--mode", default="unaligned", choices=MODES[1:], help="which small model")
    a = parser.parse_args()
    check_writable(a.folder)
    found = locate(EvalConfig(a.task, a.mode, BiLDConfig()))
    quiet_loading()

    # Only now: these import torch and transformers, which takes seconds.
    import torch

    from bild.checkpoints.loading import load_model, load_tokenizer

    assert found.small is not None
    model = load_model(found.small, torch.float32, torch.device("cpu"))
    norm = getattr(getattr(model, "decoder", None), "final_layer_norm", None)
    if norm is None:
        raise BildError(f"{type(model).__name__} has no last norm to turn round; only T5 has")
    with torch.no_grad():
        norm.weight.neg_()
    tokenizer = load_tokenizer(found.large, found.small, found.tokenizer)
    alone = sole_user(a.folder, "maker of models")
    with alone, writing(a.folder), moved_when_done(a.folder) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    print(a.folder)


if __name__ == "__main__":
    run(main)
