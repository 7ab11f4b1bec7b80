"""A model card, README.md, from the facts of a training."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate


def model_card(name: str, facts: dict[str, Any]) -> str:
    """The card of a model that `bild.training.trainer.train` made.

    Args:
        name: of the model.
        facts: what `train` returns.
    """
    recipe, method = facts["recipe"], facts["method"]
    rows = [
        ["method", method["name"]],
        *([key.replace("_", " "), _show(key, method[key])] for key in method if key != "name"),
        ["started from", _start(facts)],
        ["parameters", f"{facts['parameters']:,}"],
        ["trained on", _data(facts["train"])],
        ["validated on", _data(facts["validation"])],
        ["prefix", f"`{facts['prefix']}`" if facts["prefix"] else "none"],
        ["steps", f"{facts['steps']:,}, {facts['passes']:g} passes over the data"],
        ["batch", f"{recipe['batch_size']} x {recipe['accumulation']}"],
        ["optimizer", _optimizer(recipe)],
        ["dropout", recipe["dropout"]],
        ["seed", facts["seed"]],
        ["training loss", f"{facts['train_loss']:.4f}"],
        ["validation loss", f"{facts['validation_loss']:.4f}"],
    ]
    if recipe["best_by"] is not None:
        score = f"{facts['validation_' + recipe['best_by']]:.2f}, best at step "
        rows.append([f"validation {recipe['best_by']}", f"{score}{facts['best_step']:,}"])
    versions = facts["env"]["versions"]
    made_with = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    rows.append(["made with", made_with])
    table = tabulate(rows, ("", name), tablefmt="github", disable_numparse=True)
    return (
        "---\nlibrary_name: transformers\ntags: [bild]\n---\n\n"
        f"# {name}\n\nA model of a Big Little Decoder pair.\n\n{table}\n\n"
        "![Losses over the training steps](learning_curve.svg)\n\n"
        "All facts and the log are in `training.json`; a file's sha256 is that of its examples, "
        "as `bild.tasks.data.checksum` computes it.\n"
    )


def _start(facts: dict[str, Any]) -> str:
    if facts["init_from"] is not None:
        return _model(facts["init_from"])
    if facts["method"]["name"] == "drafter":
        return "the large model's embeddings and last decoder layers"
    shape = facts["recipe"]["architecture"]
    layers = f"{shape['num_layers']} + {shape['num_decoder_layers']} layers"
    return f"nothing: T5, {layers}, width {shape['d_model']}"


def _show(key: str, value: Any) -> str:
    """An entry of the method: the large model, the data it has labelled, or a setting."""
    return {"large_model": _model, "labelled": _data}.get(key, str)(value)


def _model(model: dict[str, Any]) -> str:
    revision = "" if model["revision"] is None else f" at {model['revision']}"
    return f"{model['id']}{revision}, weights' sha256 `{model['fingerprint']}`"


def _data(data: dict[str, Any]) -> str:
    return f"{data['file']}, {data['examples']:,} examples, sha256 `{data['sha256']}`"


def _optimizer(recipe: dict[str, Any]) -> str:
    scaled = ", steps relative to each parameter's size" if recipe["scale_parameter"] else ""
    return (
        f"Adafactor, learning rate {recipe['learning_rate']:g}{scaled}; "
        f"{recipe['scheduler']}, {recipe['warmup_steps']} steps of warm-up"
    )
