"""Aligning a small model with a large one, so that it is taken back and falls back less.

`align_by_sequence` is the recipe of Kim et al. (NeurIPS 2023): the large model labels the training
sources, the small one is fine-tuned on its outputs. `align_on_policy` is DistillSpec (Zhou et al.,
arXiv 2310.08461): the small model's distribution is drawn to the large one's at every position, in
part on outputs that the small model has written itself, as it does when it drafts.

Letters used for shapes: B examples, T tokens, N positions that are not padding, V vocabulary.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedModel

from bild.checkpoints.contents import has_tokenizer
from bild.checkpoints.drafter import BiLDDrafter
from bild.checkpoints.identity import describe_model
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.names import Checkpoint, CheckpointName, resolve_model
from bild.checkpoints.vocabulary import check_tokenizers, shared_vocab_size
from bild.files import check_writable
from bild.tasks.data import load_file
from bild.training.config import LabelConfig, OnPolicyConfig, TrainingJob
from bild.training.labelling import label
from bild.training.trainer import TokenLossTrainer, train

# ------------------------------------------------------------------------------ sequence


def align_by_sequence(
    large: CheckpointName, job: TrainingJob, config: LabelConfig
) -> dict[str, Any]:
    """Label the training sources with the large model, then train on its outputs.

    The calibration set stays in the output folder as `calibration.jsonl`, with its card. Both
    steps go on where they were stopped.

    Args:
        large: folder or hub id of the large model.
        job: the training of the small model; its references are replaced.
        config: how the large model labels.

    Returns:
        The facts of the training, see `bild.training.trainer.train`.

    Raises:
        BildError: as `label` and `train`.
    """
    found = resolve_model(large)
    _require_one_tokenizer(found, job)
    check_writable(job.output_dir)
    output = job.output_dir / "calibration.jsonl"
    card = label(found, job.train, output, config, tokenizer=job.tokenizer)
    labelled = load_file(output, config.source_key, config.target_key, "train")
    method = {"name": "sequence", "large_model": card["model"], "labelled": card["source"]}
    return train(replace(job, train=labelled, method=method))


def _require_one_tokenizer(large: Checkpoint, job: TrainingJob) -> None:
    if has_tokenizer(large.path):  # else only the small model's checkpoint carries it
        check_tokenizers(load_tokenizer(large), load_tokenizer(job.tokenizer))


# ------------------------------------------------------------------------------ on-policy


def align_on_policy(
    large: CheckpointName, job: TrainingJob, config: OnPolicyConfig
) -> dict[str, Any]:
    """Train the small model towards the large one's distribution.

    Args:
        large: folder or hub id of the large model.
        job: the training of the small model; its file may hold references or a calibration set.
        config: divergence, and how often the small model writes its own targets.

    Returns:
        The facts of the training, see `bild.training.trainer.train`; their losses are divergences,
        in nats per token.

    Raises:
        BildError: models or tokenizers that cannot be a pair; as `train`.
    """
    found = resolve_model(large)
    _require_one_tokenizer(found, job)
    teacher = load_model(found, torch.float32, "cpu")
    method = {"name": "on-policy", "large_model": describe_model(found, teacher)}
    trainer = partial(OnPolicyTrainer, teacher=teacher, config=config)
    return train(replace(job, method={**method, **asdict(config)}), make_trainer=trainer)


def divergence(kind: str, small: Tensor, large: Tensor) -> Tensor:
    """How far two models' distributions are apart at each position.

    Args:
        kind: one of `bild.training.config.DIVERGENCES`.
        small, large: logits, (N, V).

    Returns:
        (N,), in nats.
    """
    p, q = log_softmax(large.float(), -1), log_softmax(small.float(), -1)
    if kind == "forward-kl":
        pointwise = kl_div(q, p, reduction="none", log_target=True)
    elif kind == "reverse-kl":
        pointwise = kl_div(p, q, reduction="none", log_target=True)
    else:
        mean = torch.logaddexp(p, q) - math.log(2)
        to_p, to_q = (kl_div(mean, x, reduction="none", log_target=True) for x in (p, q))
        pointwise = (to_p + to_q) / 2
    return pointwise.sum(-1)


class OnPolicyTrainer(TokenLossTrainer):
    """A trainer whose loss is the divergence to a teacher, averaged over tokens.

    Args:
        teacher: the large model; moved to the training's device.
        config: see `OnPolicyConfig`.
        **kwargs: as `Seq2SeqTrainer`.

    Raises:
        BildError: teacher and model cannot be a pair.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch, which the trainer is to scale

    def __init__(self, *, teacher: PreTrainedModel, config: OnPolicyConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher.to(self.args.device)
        self.config = config
        vocab_size = shared_vocab_size(teacher, self.model)
        shortlist = self.model.shortlist if isinstance(self.model, BiLDDrafter) else None
        # The token ids that are compared: those that both models score.
        self.compared = torch.arange(vocab_size) if shortlist is None else shortlist.cpu()

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """As the base's; in some steps the targets are the model's own outputs."""
        # Drawn by the step's number: the same in every process and after a resumption.
        draw = random.Random(f"{self.args.seed} {self.state.global_step}").random()
        if draw < self.config.own_share:
            inputs = self._with_own_outputs(model, self._prepare_inputs(inputs))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean divergence over the positions of the batch's labels that are not padding."""
        assert not return_outputs, "prediction_step, which would ask for them, does not call this"
        return self.token_losses(model, inputs).sum() / (inputs["labels"] != -100).sum()

    def token_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The divergence at each label, in nats: (B, T), 0 where the label is padding."""
        given = {**self._source(inputs), "decoder_input_ids": inputs["decoder_input_ids"]}
        logits = model(**given).logits  # (B, T, V)
        with torch.no_grad(), self.accelerator.autocast():
            target = self.teacher(**given).logits  # (B, T, V)
        counted = inputs["labels"] != -100  # (B, T)
        compared = self.compared.to(logits.device)
        pair = (x[counted][:, compared] for x in (logits, target))  # (N, compared) each
        losses = torch.zeros(counted.shape, device=counted.device)
        return losses.masked_scatter(counted, divergence(self.config.divergence, *pair))

    def _source(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What both models are given of the sources: a drafter the teacher's encoder states."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if isinstance(self.accelerator.unwrap_model(self.model), BiLDDrafter):
            with torch.no_grad(), self.accelerator.autocast():
                states = self.teacher.get_encoder()(**given)
            del given["input_ids"]
            given["encoder_outputs"] = states
        return given

    def _with_own_outputs(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with outputs that the model samples as it stands, instead of its targets."""
        writer = self.accelerator.unwrap_model(model)
        writer.eval()  # without dropout; the step switches back to training
        sampling: dict[str, Any] = {"do_sample": False}
        if self.config.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.config.temperature, "top_k": 0}
        written = writer.generate(
            **self._source(inputs),
            max_new_tokens=self.config.max_new_tokens,
            num_beams=1,
            use_cache=True,
            **sampling,
        )
        labels = written[:, 1:].clone()  # (B, T)
        labels[labels == self.processing_class.pad_token_id] = -100
        return {**inputs, "labels": labels, "decoder_input_ids": written[:, :-1]}
