"""The tasks as data: where the examples and the checkpoints are, and what was published.

Adding a task is adding an entry to `BENCHMARKS`. Settings and scores of the five published tasks
are those of Kim et al., "Speculative Decoding with Big Little Decoder" (NeurIPS 2023), and of its
first reproduction (PopoDev/BiLD); both score the validation split, one example at a time, greedily.
"""

from __future__ import annotations

from dataclasses import dataclass

from bild.errors import BildError

MODES = ("vanilla", "unaligned", "aligned")


@dataclass(frozen=True)
class HubData:
    """Where a data set is on the hub.

    Data sets are read from the branch `refs/convert/parquet`, which the hub makes for every public
    data set: there one split is one small download. The repository's own files come second.

    Attributes:
        path: id of the data set.
        config: its configuration; None for the only one.
        split: its split.
        columns: spellings of the (source, target) columns, tried in this order;
            "translation.de" is the key "de" of the column "translation".
        script_only: the repository holds a loading script, which datasets no longer runs, so
            that only `refs/convert/parquet` can be read.
    """

    path: str
    config: str | None
    split: str
    columns: tuple[tuple[str, str], ...]
    script_only: bool = False


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
class Benchmark:
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
            aligned to the large one (None: there is none).
        tokenizer: hub id of the tokenizer; None: it lies beside the large model.
        thresholds: of each mode with two models, one or two presets. The first is the default and
            costs no quality, the second costs about one point of the metric and is faster.
        published: the rows to stand beside one's own.
        split: of the data set, also the name of its file under `BILD_DATA_ROOT`.
        file: examples that come with this repository, relative to its root.
        more_metrics: metrics of the published tables besides `metric`.
    """

    name: str
    description: str
    data: HubData | None
    source_key: str
    target_key: str
    prefix: str
    metric: str
    large: str
    small: str
    aligned: str | None
    tokenizer: str | None
    thresholds: dict[str, tuple[Thresholds, ...]]
    max_source_tokens: int = 1024
    max_new_tokens: int = 128
    published: tuple[PublishedRow, ...] = ()
    split: str = "validation"
    file: str | None = None
    more_metrics: tuple[str, ...] = ()

    def small_model(self, mode: str) -> str | None:
        """The small checkpoint of a mode; None for "vanilla".

        Raises:
            BildError: an unknown mode, or "aligned" where no aligned checkpoint exists.
        """
        if mode not in MODES:
            raise BildError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "aligned" and self.aligned is None:
            raise BildError(
                f"{self.name} has no aligned small model; run it with vanilla or unaligned"
            )
        return {"vanilla": None, "unaligned": self.small, "aligned": self.aligned}[mode]

    def default_thresholds(self, mode: str) -> Thresholds | None:
        """The first preset of a mode; None for "vanilla".

        Raises:
            BildError: as `small_model`.
        """
        return None if self.small_model(mode) is None else self.thresholds[mode][0]


def get(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        BildError: there is none; the known names are listed.
    """
    if name not in BENCHMARKS:
        raise BildError(f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


T4 = "Tesla T4"
RTX = "RTX 2080 Ti"
OWN_SMALL = "small model trained by the reproduction, 100k steps"


# (rollback, fallback, score, speedup) as the paper's table prints them.
PaperRow = tuple[float, float, float, float]
# The same and (fallback %, rollback %, mean length) from the reproduction's result files.
ReproductionRow = tuple[float | None, float | None, float, float, float | None, float | None, float]


def _paper(metric: str, **modes: tuple[PaperRow, ...]) -> list[PublishedRow]:
    return [
        PublishedRow("paper", mode, fallback, rollback, metric, score, speedup, hardware=T4)
        for mode, rows in modes.items()
        for rollback, fallback, score, speedup in rows
    ]


def _reproduction(
    metric: str, hardware: str | None, note: str = "", **modes: tuple[ReproductionRow, ...]
) -> list[PublishedRow]:
    return [
        PublishedRow(
            source="reproduction",
            mode=mode,
            fallback=fallback,
            rollback=rollback,
            metric=metric,
            score=score,
            speedup=speedup,
            fallback_rate=fallback_rate,
            rollback_rate=rollback_rate,
            mean_length=length,
            hardware=hardware,
            note=note,
        )
        for mode, rows in modes.items()
        for rollback, fallback, score, speedup, fallback_rate, rollback_rate, length in rows
    ]


def _small_alone(metric: str, score: float, length: float) -> PublishedRow:
    """The aligned small model without the large one: what a quality-speed plot must show."""
    return PublishedRow(
        "reproduction",
        "small",
        None,
        None,
        metric,
        score,
        None,
        mean_length=length,
        hardware=RTX,
        note="aligned small model alone",
    )


BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark(
            name="iwslt2017",
            description="IWSLT 2017, German to English talks",
            data=HubData(
                "IWSLT/iwslt2017",
                "iwslt2017-de-en",
                "validation",
                columns=(("translation.de", "translation.en"),),
                script_only=True,
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
            published=(
                *_paper(
                    "bleu",
                    unaligned=((2, 0.6, 40.33, 1.43), (3, 0.5, 39.44, 1.58)),
                    aligned=((3, 0.9, 40.24, 1.62), (4, 0.6, 39.13, 1.78)),
                ),
                *_reproduction(
                    "bleu",
                    RTX,
                    vanilla=((None, None, 40.33, 1.0, None, None, 29.1),),
                    unaligned=(
                        (2, 0.6, 40.33, 1.46, 16.8, 1.53, 29.1),
                        (3, 0.5, 39.44, 1.61, 10.5, 1.34, 29.1),
                    ),
                    aligned=(
                        (3, 0.9, 40.09, 1.52, 18.9, 0.65, 29.0),
                        (4, 0.6, 39.15, 1.73, 5.9, 0.97, 28.8),
                    ),
                ),
                # The same runs, timed on the card of the reproduction's other tables.
                *_reproduction(
                    "bleu",
                    T4,
                    vanilla=((None, None, 40.33, 1.0, None, None, 29.1),),
                    unaligned=(
                        (2, 0.6, 40.33, 1.26, 16.8, 1.53, 29.1),
                        (3, 0.5, 39.44, 1.39, 10.5, 1.34, 29.1),
                    ),
                    aligned=(
                        (3, 0.9, 40.09, 1.35, 18.9, 0.65, 29.0),
                        (4, 0.6, 39.15, 1.54, 5.9, 0.97, 28.8),
                    ),
                ),
                _small_alone("bleu", 37.42, 28.8),
            ),
        ),
        Benchmark(
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
            published=(
                *_paper(
                    "bleu",
                    unaligned=((2, 0.6, 31.28, 1.34), (3, 0.5, 30.47, 1.43)),
                    aligned=((2, 0.8, 31.26, 1.47), (5, 0.6, 30.33, 1.70)),
                ),
                *_reproduction(
                    "bleu",
                    T4,
                    vanilla=((None, None, 31.88, 1.0, None, None, 29.4),),
                    unaligned=(
                        (2, 0.6, 31.65, 1.27, 24.8, 0.94, 29.3),
                        (3, 0.5, 30.83, 1.34, 17.3, 0.83, 29.2),
                    ),
                    aligned=(
                        (2, 0.8, 31.65, 1.37, 18.1, 0.96, 29.2),
                        (5, 0.6, 30.54, 1.65, 9.0, 0.28, 29.2),
                    ),
                ),
                # The result file of the unaligned run does not hold its thresholds.
                *_reproduction(
                    "bleu",
                    None,
                    OWN_SMALL,
                    aligned=((4, 0.4, 28.71, 1.60, 3.230, 2.327, 29.7),),
                    unaligned=((None, None, 27.81, 1.41, 16.36, 2.359, 29.4),),
                ),
                _small_alone("bleu", 28.74, 29.0),
            ),
        ),
        Benchmark(
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
            published=(
                *_paper(
                    "rougeL",
                    unaligned=((3, 0.5, 35.12, 1.48), (5, 0.3, 34.02, 1.72)),
                    aligned=((2, 0.6, 35.05, 1.50), (5, 0.4, 33.95, 1.80)),
                ),
                # The rates of the aligned (2, 0.6) run are those of 4,997 samples.
                *_reproduction(
                    "rougeL",
                    T4,
                    vanilla=((None, None, 35.10, 1.0, None, None, 28.2),),
                    unaligned=(
                        (3, 0.5, 35.12, 1.40, None, None, 27.3),
                        (5, 0.3, 34.02, 1.54, 12.8, 3.42, 27.1),
                    ),
                    aligned=(
                        (2, 0.6, 34.96, 1.41, 21.1, 5.16, 27.2),
                        (5, 0.4, 33.96, 1.73, 8.5, 3.41, 27.1),
                    ),
                ),
                *_reproduction(
                    "rougeL",
                    None,
                    OWN_SMALL,
                    aligned=((4, 0.4, 34.28, 1.62, 10.90, 4.125, 26.9),),
                    unaligned=((4, 0.4, 34.26, 1.35, 30.43, 3.008, 27.2),),
                ),
                _small_alone("rougeL", 31.23, 27.2),
            ),
        ),
        Benchmark(
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
            published=(
                *_paper(
                    "rougeLsum",
                    unaligned=((3, 0.4, 41.44, 1.71), (6, 0.2, 40.57, 2.05)),
                    aligned=((3, 0.3, 41.52, 1.85), (6, 0.2, 40.96, 2.12)),
                ),
                *_reproduction(
                    "rougeLsum",
                    T4,
                    vanilla=((None, None, 41.54, 1.0, None, None, 74.8),),
                    unaligned=(
                        (3, 0.4, 41.44, 1.54, 8.1, 1.67, 76.1),
                        (6, 0.2, 40.56, 1.87, 1.4, 0.59, 76.9),
                    ),
                    aligned=(
                        (3, 0.3, 41.33, 1.48, 0.88, 4.54, 75.7),
                        (6, 0.2, 40.79, 1.67, 0.16, 3.03, 77.2),
                    ),
                ),
                _small_alone("rougeLsum", 40.43, 73.8),
            ),
        ),
        Benchmark(
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
            published=(
                *_reproduction(
                    "bleu",
                    RTX,
                    vanilla=((None, None, 20.00, 1.0, None, None, 20.8),),
                    unaligned=((5, 0.5, 19.33, 2.06, 6.3, 0.18, 20.6),),
                ),
                *_reproduction(
                    "rougeL",
                    RTX,
                    vanilla=((None, None, 40.83, 1.0, None, None, 20.8),),
                    unaligned=((5, 0.5, 40.20, 2.06, 6.3, 0.18, 20.6),),
                ),
            ),
        ),
        Benchmark(
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
                "unaligned": (Thresholds(0.4, 3), Thresholds(0.2, 5)),
                "aligned": (Thresholds(0.4, 3), Thresholds(0.2, 5)),
            },
            split="test",
            file="demo/sentences.jsonl",
        ),
    )
}
