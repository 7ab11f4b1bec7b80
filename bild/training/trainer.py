"""Training one model of a pair: one call into transformers' `Seq2SeqTrainer`.

Used by `scripts/finetune.py` and, through `bild.training.alignment`, by `scripts/align.py`.

Letters used for shapes: B examples, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)
from transformers.optimization import Adafactor
from transformers.trainer_utils import rotate_checkpoints

from bild.checkpoints.identity import describe_model
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.vocabulary import check_tokenizer_size
from bild.errors import BildError
from bild.evaluation.environment import environment
from bild.files import (
    check_writable,
    is_same_work,
    moved_when_done,
    sole_user,
    write_atomically,
    write_json,
)
from bild.json_files import read_json
from bild.progress import watched
from bild.tasks import metrics
from bild.training.batches import training_set, validation_set
from bild.training.config import TrainingJob
from bild.training.corpus import describe_data
from bild.training.curves import learning_curve
from bild.training.model_card import model_card
from bild.training.resuming import last_checkpoint, remove_half_deleted, remove_scratch, step_of

# ------------------------------------------------------------------------------ the loss


def cross_entropy_per_token(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of a forward as its share of the optimizer step's mean over tokens.

    T5's own loss is a mean over the forward, which the trainer of transformers 5 takes for one
    over the whole step: with accumulation or several processes it would come out too large.

    Args:
        outputs: of the model; logits (B, T, V).
        labels: (B, T), -100 for padding.
        num_items_in_batch: labels of the step that are not padding; None: those given.
        label_smoothing: share of the probability that is spread over all tokens.

    Returns:
        A scalar, in nats per token.
    """
    total = cross_entropy(
        outputs.logits.flatten(0, 1).float(),
        labels.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class TokenLossTrainer(Seq2SeqTrainer):
    """A trainer whose validation loss is the mean over all tokens of the validation set.

    That of transformers is a mean of the batches' means, in which a token of a short line weighs
    more. The loss is the cross-entropy, without label smoothing.
    """

    def token_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The loss at each label, in nats: (B, T), 0 where the label is padding."""
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        # (B, V, T), as cross_entropy wants its classes; it leaves 0 at labels of -100.
        return cross_entropy(logits.float().transpose(1, 2), inputs["labels"], reduction="none")

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As the base's; the loss is counted by token, for `evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = self.token_losses(model, inputs).double().sum(-1)  # (B,)
        counts = (inputs["labels"] != -100).sum(-1)  # (B,)
        # Processes repeat examples to fill the last batch; these are left out here.
        losses, counts = self.accelerator.gather_for_metrics((losses, counts))
        self._validated += np.array([losses.sum().item(), counts.sum().item()])
        loss = losses.sum() / counts.sum()
        if prediction_loss_only:
            return loss, None, None
        generated = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        return loss, *generated[1:]

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the base's, with the loss per token."""
        self._validated = np.zeros(2)  # summed loss, tokens
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = float(self._validated[0] / self._validated[1])
        return output


# ------------------------------------------------------------------------------ one training


def train(
    job: TrainingJob,
    make_trainer: Callable[..., Seq2SeqTrainer] = TokenLossTrainer,
    make_model: Callable[[TrainingJob, PreTrainedTokenizerBase], PreTrainedModel] | None = None,
) -> dict[str, Any]:
    """Train and save one model; started again, it goes on where it stopped.

    The model is saved with its tokenizer, `training.json` (the facts and the trainer's log),
    `learning_curve.svg` and a model card, `README.md`. Under `accelerate launch` the processes
    share each batch, so that the recipe is the same whatever their number.

    Args:
        job: what to train.
        make_trainer: the trainer's class.
        make_model: makes the model that training starts from; None for `build_model`.

    Returns:
        The facts of `training.json`: recipe, data, steps, losses (the training's is that of its
        last steps), seconds (since it was started or gone on with last).

    Raises:
        BildError: a model or tokenizer that cannot be loaded or does not fit; a batch that the
            processes cannot share; an output folder that holds another training, or in which
            another process trains.
    """
    set_seed(job.seed)
    tokenizer = load_tokenizer(job.tokenizer)
    model = (build_model if make_model is None else make_model)(job, tokenizer)
    work = describe_job(job, model)
    finished = job.output_dir / "training.json"
    if is_same_work(finished, work):
        return _without_log(finished)
    is_same_work(job.checkpoints / "work.json", work)  # or its checkpoints are of another one
    check_writable(job.checkpoints)
    settings = arguments(job)
    is_main = settings.process_index == 0
    # The processes of one training share its folder: one of them holds it for all.
    with sole_user(job.checkpoints, "training") if is_main else nullcontext():
        return _train(job, make_trainer, settings, model, tokenizer, work)


def build_model(job: TrainingJob, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that training starts from: a checkpoint, or the preset's fresh T5.

    Raises:
        BildError: the preset has no architecture and the job no checkpoint; or as `load_model`.
    """
    preset = job.preset
    if job.init_from is not None:
        model = load_model(job.init_from, torch.float32, "cpu", dropout_rate=preset.dropout)
        check_tokenizer_size(tokenizer, model.get_input_embeddings().weight.shape[0])
        return model
    if preset.architecture is None:
        raise BildError("this preset starts from a checkpoint: name it with --init-from")
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            dropout_rate=preset.dropout,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **preset.architecture,
        )
    )


def arguments(job: TrainingJob) -> Seq2SeqTrainingArguments:
    """A job in the trainer's own words; the batch is shared by the processes and GPUs there are.

    Raises:
        BildError: they cannot share it.
    """
    preset = job.preset
    settings = Seq2SeqTrainingArguments(
        output_dir=str(job.checkpoints),
        max_steps=preset.max_steps,
        per_device_train_batch_size=preset.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=preset.accumulation,
        learning_rate=preset.learning_rate,
        lr_scheduler_type=preset.scheduler,
        lr_scheduler_kwargs=preset.scheduler_options,
        warmup_steps=min(preset.warmup_steps, preset.max_steps),
        train_sampling_strategy="sequential",  # the training set is in the order of training
        eval_strategy="steps",
        eval_steps=job.save_steps,
        save_strategy="steps",
        save_steps=job.save_steps,
        save_total_limit=2,
        predict_with_generate=preset.best_by is not None,
        generation_max_length=preset.max_new_tokens + 1,  # with the decoder's start token
        generation_num_beams=1,
        load_best_model_at_end=preset.best_by is not None,
        metric_for_best_model=preset.best_by,
        greater_is_better=None if preset.best_by is None else True,
        logging_steps=min(50, job.save_steps, preset.max_steps),
        use_cpu=not torch.cuda.is_available(),
        bf16=_has_fast_bfloat16() if job.bf16 is None else job.bf16,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=not watched(),  # then a line a `logging_steps`, for the file of a log
        seed=job.seed,
        data_seed=job.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,  # a data set has no others; a drafter takes no input_ids
    )
    devices = settings.world_size * max(1, settings.n_gpu)
    if preset.batch_size % devices:
        raise BildError(
            f"a batch of {preset.batch_size} cannot be shared by {devices} processes or GPUs; "
            "use a number that divides it"
        )
    settings.per_device_train_batch_size = preset.batch_size // devices
    return settings


def _train(
    job: TrainingJob,
    make_trainer: Callable[..., Seq2SeqTrainer],
    settings: Seq2SeqTrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    work: dict[str, Any],
) -> dict[str, Any]:
    """`train`, in a folder that no other process uses."""
    preset = job.preset
    one_pass, lines = training_set(job, tokenizer)
    validation, references = validation_set(job, tokenizer)
    score = None if preset.best_by is None else scorer(preset.best_by, tokenizer, references)
    generation_config = copy.deepcopy(model.generation_config)  # evaluation fills it in
    trainer = make_trainer(
        model=model,
        args=settings,
        train_dataset=lines,
        eval_dataset=validation,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=4),
        processing_class=tokenizer,
        optimizers=(_optimizer(job, model), None),
        compute_loss_func=partial(cross_entropy_per_token, label_smoothing=preset.label_smoothing),
        compute_metrics=score,
    )
    if trainer.is_world_process_zero():
        write_json(job.checkpoints / "work.json", work)
    last, passed_over = last_checkpoint(job.checkpoints)
    if trainer.is_world_process_zero():
        print(*passed_over, sep="\n", end="\n" * bool(passed_over), file=sys.stderr)
        remove_scratch(job.checkpoints)
        if last is not None:
            remove_half_deleted(job.checkpoints, last)
    trained = trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.is_world_process_zero():  # one that was killed between saving and deleting has more
        best = trainer.state.best_model_checkpoint
        rotate_checkpoints(str(job.checkpoints), settings.save_total_limit, best)
    facts = {
        **work,
        **results(job, trainer, trainer.evaluate(), one_pass),
        "seconds": trained.metrics["train_runtime"],
        "resumed_from_step": 0 if last is None else step_of(last),
        "env": asdict(environment(settings.device)),
    }
    if trainer.is_world_process_zero():
        model.config.use_cache = True  # the trainer switches it off
        model.generation_config = generation_config
        save(job, model, tokenizer, facts, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return facts


def results(
    job: TrainingJob, trainer: Seq2SeqTrainer, validation: dict[str, float], one_pass: int
) -> dict[str, Any]:
    """What a training came to.

    Args:
        job: the training.
        trainer: when it is done.
        validation: what its `evaluate` returned, of the model that is kept.
        one_pass: lines of one pass over the training file.
    """
    preset = job.preset
    examples = preset.max_steps * preset.batch_size * preset.accumulation
    # The trainer's own mean leaves out what was before a resumption.
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "steps": preset.max_steps,
        "passes": round(examples / one_pass, 2),
        "parameters": trainer.model.num_parameters(),
        "train_loss": losses[-1],
        "validation_loss": validation["eval_loss"],
    }
    if preset.best_by is not None:
        found[f"validation_{preset.best_by}"] = validation[f"eval_{preset.best_by}"]
        found["best_step"] = trainer.state.best_global_step
    return found


def _optimizer(job: TrainingJob, model: PreTrainedModel) -> Adafactor:
    return Adafactor(
        model.parameters(),
        lr=job.preset.learning_rate,
        scale_parameter=job.preset.scale_parameter,
        relative_step=False,
    )


def scorer(
    metric: str, tokenizer: PreTrainedTokenizerBase, references: Sequence[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Score generated tokens against the references, which stand in the same order."""

    def score(prediction: EvalPrediction) -> dict[str, float]:
        tokens = prediction.predictions[: len(references)]  # processes repeat some to fill a batch
        tokens = np.where(tokens < 0, tokenizer.pad_token_id, tokens)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return {metric: metrics.score(metric, texts, references).value}

    return score


# ------------------------------------------------------------------------------ files


def describe_job(job: TrainingJob, model: PreTrainedModel) -> dict[str, Any]:
    """Everything that decides what is trained, for the record and to recognise it again."""
    recipe = asdict(job.preset)
    return {
        "method": job.method,
        "init_from": None if job.init_from is None else describe_model(job.init_from, model),
        "train": describe_data(job.train),
        "validation": describe_data(job.validation),
        "recipe": {name: value for name, value in recipe.items() if name != "description"},
        "prefix": job.prefix,
        "max_length": job.max_length,
        "max_source_length": job.max_source_length,
        "seed": job.seed,
    }


def save(
    job: TrainingJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, Any],
    log: list[dict[str, float]],
) -> None:
    """Write the model and what belongs to it; training.json, which means "finished", last."""
    with moved_when_done(job.output_dir) as folder:
        model.to(getattr(torch, job.save_dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        learning_curve(log, job.preset.best_by, folder / "learning_curve.svg")
        write_atomically(folder / "README.md", model_card(job.output_dir.resolve().name, facts))
    write_json(job.output_dir / "training.json", {**facts, "log": log})


def _without_log(path: Path) -> dict[str, Any]:
    facts = read_json(path, "remove it to start anew")
    return {name: value for name, value in facts.items() if name != "log"}


def _has_fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
