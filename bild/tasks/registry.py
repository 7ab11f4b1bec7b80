"""The tasks as data: where the examples and the checkpoints are, and what was published.

Adding a task is adding an entry to `TASKS`, and nothing else; what was published for it can stand
in published.json under its name. Settings and scores of the five published tasks are those of Kim
et al., "Speculative Decoding with Big Little Decoder" (NeurIPS 2023), and of its first reproduction
(PopoDev/BiLD); both score the validation split, one example at a time, greedily.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.policy import PUBLISHED

MODES = ("vanilla", "unaligned", "aligned", "drafter")


@dataclass(frozen=True)
class HubData:
    """Where a data set is on the hub.

    Data sets are read from the branch `refs/convert/parquet`, which the hub makes for every public
    data set: there one split is one small download, and nothing has to be run.

    Attributes:
        path: id of the data set.
        config: its configuration; None for the only one.
        split: its split.
        columns: spellings of the (source, target) columns, tried in this order;
            "translation.de" is the key "de" of the column "translation".
        revision: branch, or a commit of it, to pin the examples; what a branch stood for is
            recorded with every result.
    """

    path: str
    config: str | None
    split: str
    columns: tuple[tuple[str, str], ...]
    revision: str = "refs/convert/parquet"


@dataclass(frozen=True)
class Thresholds:
    """A pair of thresholds, in the order of the command line (`BiLDConfig` has their units)."""

    fallback: float
    rollback: float


@dataclass(frozen=True)
class PublishedRow:
    """One published result; None where a value was not published.

    Attributes:
        source: "paper" or "reproduction".
        mode: "vanilla" (large model alone), "small" (small model alone), "unaligned", "aligned".
        fallback, rollback: thresholds.
        metric: a name of `bild.tasks.metrics`.
        score: 0 to 100.
        speedup: vanilla time / time, on `hardware`.
        fallback_rate, rollback_rate: per 100 generated tokens.
        mean_length: generated tokens per example.
        hardware: the card.
        note: what sets this row apart.
    """

    source: str
    mode: str
    fallback: float | None
    rollback: float | None
    metric: str
    score: float
    speedup: float | None
    fallback_rate: float | None = None
    rollback_rate: float | None = None
    mean_length: float | None = None
    hardware: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Task:
    """A task: examples, checkpoints, limits, metric, and what was published for it.

    Attributes:
        name: its name, also that of its folder under `BILD_DATA_ROOT`.
        description: one line for people.
        data: its data set on the hub; None when `file` is all there is.
        source_key, target_key: keys of a JSON Lines record.
        prefix: put before every source text.
        max_source_tokens: longer sources are cut, prefix included.
        max_new_tokens: limit of an output.
        metric: the metric of the published tables, a name of `bild.tasks.metrics`.
        large, small, aligned: checkpoints: the large model, the small one, and the small one
            aligned to the large one (None: there is none, or it must be given). A hub id may pin a
            commit, `owner/name@commit`; what an id without one stood for is recorded with every
            result.
        tokenizer: hub id of the tokenizer; None: it lies beside the large model.
        thresholds: of each mode with two models, one or two presets. The first is the default and
            costs no quality, the second costs about one point of the metric and is faster. A mode
            without any has those of "unaligned".
        published: the rows to stand beside one's own.
        split: of the data set, also the name of its file under `BILD_DATA_ROOT`.
        file: examples that come with this repository, relative to its root.
        more_metrics: metrics of the published tables besides `metric`.
        source_tokens: tokens of a usual source, for pairs that are simulated without data: the
            mean length of sentences (translation), of articles cut at 1024 tokens (summaries) or
            of descriptions (api), rounded; the published result files do not hold it. None: not
            known.
        variant: the rules that the thresholds go with, a name of `bild.policy.RULES`.
        drafter: a checkpoint of `bild.checkpoints.drafter`, which reads the large model's encoder;
            None: there is none.
    """

    name: str
    description: str
    data: HubData | None
    source_key: str
    target_key: str
    prefix: str
    metric: str
    large: str | None
    small: str | None
    aligned: str | None
    tokenizer: str | None
    thresholds: dict[str, tuple[Thresholds, ...]]
    max_source_tokens: int = 1024
    max_new_tokens: int = 128
    published: tuple[PublishedRow, ...] = ()
    split: str = "validation"
    file: str | None = None
    more_metrics: tuple[str, ...] = ()
    source_tokens: int | None = None
    variant: str = BiLDConfig.variant
    drafter: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is a task of the user's, which `OWN` describes."""
        return self.name == OWN.name or self.name.startswith(f"{OWN.name}-")

    def small_model(self, mode: str) -> str | None:
        """The small checkpoint of a mode; None for "vanilla".

        Raises:
            BildError: an unknown mode, or one for which the task has no checkpoint.
        """
        if _known(mode) == "vanilla":
            return None
        models = {"unaligned": self.small, "aligned": self.aligned, "drafter": self.drafter}
        if models[mode] is None:
            if self.is_own:
                raise BildError(f"{self.name} has no small model of its own; give it with --small")
            what = "drafter" if mode == "drafter" else "aligned small model"
            raise BildError(
                f"{self.name} has no {what}; run it with vanilla or unaligned, or train one "
                "(bild align) and give it with --small"
            )
        return models[mode]

    def default_thresholds(self, mode: str) -> Thresholds | None:
        """The first preset of a mode; None for "vanilla".

        Raises:
            BildError: an unknown mode.
        """
        if _known(mode) == "vanilla":
            return None
        return self.thresholds.get(mode, self.thresholds["unaligned"])[0]

    def usual_source_tokens(self) -> int:
        """`source_tokens`.

        Raises:
            BildError: the entry does not say.
        """
        if self.source_tokens is None:
            raise BildError(
                f"the usual length of the sources of {self.name} is not known; give --source-tokens"
            )
        return self.source_tokens


def _known(mode: str) -> str:
    """The mode, if it is one.

    Raises:
        BildError: it is none.
    """
    if mode not in MODES:
        raise BildError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


@cache
def _published() -> dict[str, Any]:
    """published.json: of each task its rows, and remarks for people."""
    text = Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    tasks: dict[str, Any] = json.loads(text)
    return tasks


def published_rows(task: str) -> tuple[PublishedRow, ...]:
    """What was published for a task, in the order of the tables; empty where nothing was."""
    return tuple(PublishedRow(**row) for row in _published().get(task, {"rows": ()})["rows"])


def task_names() -> tuple[str, ...]:
    """What a command takes as a task."""
    return (*TASKS, OWN.name)


def get(name: str) -> Task:
    """The task of that name; `OWN` under another one for "own-" and a name.

    Raises:
        BildError: there is none; the known names are listed.
    """
    if name.startswith(f"{OWN.name}-"):
        return replace(OWN, name=name)
    if name not in task_names():
        raise BildError(f"unknown task {name!r}; choose one of {', '.join(task_names())}")
    return OWN if name == OWN.name else TASKS[name]


# What is said of it by flags, or by a file (`bild.cli`), stands in the settings of each run.
OWN = Task(
    name="own",
    description="a task of your own, by flags or by --task-file",
    data=None,
    source_key="source",
    target_key="target",
    prefix="",
    metric="bleu",
    large=None,
    small=None,
    aligned=None,
    tokenizer=None,
    thresholds={
        "unaligned": (Thresholds(BiLDConfig.fallback_threshold, BiLDConfig.rollback_threshold),)
    },
    split="own",
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="iwslt2017",
            description="IWSLT 2017, German to English talks",
            data=HubData(
                "IWSLT/iwslt2017",
                "iwslt2017-de-en",
                "validation",
                columns=(("translation.de", "translation.en"),),
            ),
            source_key="de",
            target_key="en",
            prefix="",
            metric="bleu",
            large="kssteven/mT5-large-iwslt2017-de-en",
            small="kssteven/mT5-small-iwslt2017-de-en",
            aligned="kssteven/mT5-small-iwslt2017-de-en-bild-aligned",
            tokenizer="google/mt5-small",
            thresholds={
                "unaligned": (Thresholds(0.6, 2), Thresholds(0.5, 3)),
                "aligned": (Thresholds(0.9, 3), Thresholds(0.6, 4)),
            },
            variant=PUBLISHED,
            published=published_rows("iwslt2017"),
            source_tokens=32,
        ),
        Task(
            name="wmt2014",
            description="WMT 2014, German to English news",
            data=HubData(
                "wmt/wmt14",
                "de-en",
                "validation",
                columns=(("translation.de", "translation.en"),),
            ),
            source_key="de",
            target_key="en",
            prefix="",
            metric="bleu",
            large="kssteven/mT5-large-wmt2014-de-en",
            small="kssteven/mT5-small-wmt2014-de-en",
            aligned="kssteven/mT5-small-wmt2014-de-en-bild-aligned",
            tokenizer="google/mt5-small",
            thresholds={
                "unaligned": (Thresholds(0.6, 2), Thresholds(0.5, 3)),
                "aligned": (Thresholds(0.8, 2), Thresholds(0.6, 5)),
            },
            variant=PUBLISHED,
            published=published_rows("wmt2014"),
            source_tokens=32,
        ),
        Task(
            name="xsum",
            description="XSum, one-sentence summaries of BBC articles",
            data=HubData(
                "EdinburghNLP/xsum", None, "validation", columns=(("document", "summary"),)
            ),
            source_key="document",
            target_key="summary",
            prefix="summarize: ",
            metric="rougeL",
            large="kssteven/T5-large-xsum",
            small="kssteven/T5-small-xsum",
            aligned="kssteven/T5-small-xsum-bild-aligned",
            tokenizer="google-t5/t5-small",
            thresholds={
                "unaligned": (Thresholds(0.5, 3), Thresholds(0.3, 5)),
                "aligned": (Thresholds(0.6, 2), Thresholds(0.4, 5)),
            },
            variant=PUBLISHED,
            published=published_rows("xsum"),
            source_tokens=512,
        ),
        Task(
            name="cnndm",
            description="CNN/DailyMail, summaries of news articles",
            data=HubData(
                "abisee/cnn_dailymail",
                "3.0.0",
                "validation",
                columns=(("article", "highlights"),),
            ),
            source_key="document",
            target_key="summary",
            prefix="summarize: ",
            metric="rougeLsum",
            large="kssteven/T5-large-cnndm",
            small="kssteven/T5-small-cnndm",
            aligned="kssteven/T5-small-cnndm-bild-aligned",
            tokenizer="google-t5/t5-small",
            thresholds={
                "unaligned": (Thresholds(0.4, 3), Thresholds(0.2, 6)),
                "aligned": (Thresholds(0.3, 3), Thresholds(0.2, 6)),
            },
            variant=PUBLISHED,
            published=published_rows("cnndm"),
            source_tokens=768,
        ),
        Task(
            name="api",
            description="DeepAPI, Java API sequences from descriptions",
            # "docstring", "code" is the reproduction's spelling for this data set.
            data=HubData(
                "paulh27/java_code_api_generation",
                None,
                "validation",
                columns=(("description", "api"), ("docstring", "code"), ("source", "target")),
            ),
            source_key="description",
            target_key="api",
            prefix="description for api: ",
            metric="bleu",
            large="SEBIS/code_trans_t5_large_api_generation_transfer_learning_finetune",
            small="SEBIS/code_trans_t5_small_api_generation_transfer_learning_finetune",
            aligned=None,
            tokenizer=None,
            thresholds={"unaligned": (Thresholds(0.5, 5),)},
            more_metrics=("rougeL",),
            variant=PUBLISHED,
            published=published_rows("api"),
            source_tokens=16,
        ),
        Task(
            name="demo",
            description="the shipped pair on the shipped sentences, German to English",
            data=None,
            source_key="de",
            target_key="en",
            prefix="",
            metric="bleu",
            large="demo/large",
            small="demo/small",
            aligned="demo/small-aligned",
            tokenizer=None,
            thresholds={
                "unaligned": (Thresholds(0.6, 2), Thresholds(0.2, 5)),
                "aligned": (Thresholds(0.6, 2), Thresholds(0.2, 5)),
                # The first is lossless: what it keeps is the large model's own first choice.
                "drafter": (Thresholds(0.7, 0.69), Thresholds(0.5, 2)),
            },
            split="test",
            file="demo/sentences.jsonl",
            drafter="demo/drafter",
        ),
    )
}
