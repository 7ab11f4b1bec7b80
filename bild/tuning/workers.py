"""One search by several workers: processes of one machine or of many, whichever of them die.

They share a study (`bild.tuning.study`) and a folder, which holds prices, decoded examples and in
the end the record. Who comes first measures the prices and decodes with the large model alone;
from then on each decodes with thresholds of its own, gives them up as soon as it is clear what they
are worth by what all have found, and proposes the next. When as many were tried as were asked for,
one of them makes the record, or whoever gives the same command again.

All workers price with the same figures, those of the first, and so must be alike: an unlike machine
would find other thresholds fast, and one that decodes otherwise would judge other texts.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

from tqdm.auto import tqdm

from bild.config import SearchConfig
from bild.errors import BildError
from bild.evaluation.folder import Identity, own_folder, read_identity
from bild.evaluation.run import Workload
from bild.files import as_read, digest
from bild.processes import go_on_alone, launch
from bild.progress import progress_bar
from bild.sharing import PATIENCE
from bild.tasks.data import LoadedData
from bild.tasks.registry import Thresholds
from bild.tuning.examine import Search
from bild.tuning.proposals import Proposals, candidates
from bild.tuning.record import SearchRecord
from bild.tuning.search import begin, conclude, plain, presets
from bild.tuning.study import Job, Study, StudyConfig, thresholds_of

POLL = 1.0  # seconds between two looks at what others do


def search_together(
    work: Workload,
    config: SearchConfig,
    shared: StudyConfig,
    output_dir: Path,
    *,
    check: LoadedData | None = None,
    progress: bool = True,
) -> tuple[SearchRecord, Path] | None:
    """Search with the other workers of the study until as many thresholds were tried as asked for.

    Args:
        work, config, output_dir, check, progress: as of `bild.tuning.search.search_thresholds`.
        shared: the study.

    Returns:
        The record and the path it was saved to; None where another worker makes it.

    Raises:
        BildError: a machine unlike that of the others; a database or folder that cannot be used or
            is not that of the others; others that finish nothing.
    """
    work, own = plain(work)
    folder = _folder(output_dir / work.config.task, own, config, shared)
    study = Study(shared, config, folder)
    try:
        with study.turn():
            study.open()
            begun = begin(work, config, folder, progress)
            before = study.recorded
        search = begun.search
        with progress_bar("search", shared.trials * search.plan.total, shown=progress) as bar:
            work_on(search, study, bar, presets(work.task), work.config.seed)
            if not study.hold_record():
                return None
            with study.turn():
                if before != study.recorded == len(study.finished()):
                    return None  # another worker has made it just now
                learn(search, study, bar)
                search.put_in_order(study.finished())
            while (again := search.reopened()) is not None:
                search.examine(again, bar)
        if launch().count > 1:
            go_on_alone()
        made = conclude(begun, folder, check, progress, len(search.tried))
        with study.turn():
            study.record(len(search.tried))
        return made
    finally:
        study.close()


def work_on(
    search: Search, study: Study, bar: tqdm, first: tuple[Thresholds, ...] = (), seed: int = 0
) -> None:
    """Decode with thresholds that nobody else decodes with, until enough were tried by all.

    Where others are at the last ones they are waited for, and what they leave is taken over.

    Args:
        search: what decodes.
        study: who is at what, and what came of it.
        bar: shows examples.
        first: thresholds to begin with, where they are in the space.
        seed: of the proposals.

    Raises:
        BildError: others are at the last thresholds, and none were finished for too long.
    """
    done, since, longest = -1, time.monotonic(), 0.0
    while True:
        with study.turn():
            learn(search, study, bar)
            job = _next_job(search, study, first, seed)
            finished = len(study.finished())
        if job is not None:
            started = time.monotonic()
            search.examine(job.thresholds, bar)
            with study.turn():
                study.tell(
                    job,
                    speedup=search.speedup(job.thresholds),
                    headroom=search.headroom(job.thresholds),
                    samples=search.tried[job.thresholds].samples,
                )
            longest = max(longest, time.monotonic() - started)
            continue
        wanted = study.config.trials
        if finished >= wanted:
            return
        if finished != done:
            done, since = finished, time.monotonic()
        if time.monotonic() - since > max(PATIENCE, 10 * longest):
            raise BildError(
                f"other workers are at the last {wanted - finished} of {wanted} trials in "
                f"{str(study.folder)!r} and finish none: one hangs, or its machine is gone; end "
                "them, and the same command goes on from here"
            )
        time.sleep(POLL)


def learn(search: Search, study: Study, bar: tqdm) -> None:
    """Look at what other workers have found."""
    for thresholds, samples in study.finished().items():
        if thresholds not in search.tried:
            search.learn(thresholds, samples)
            bar.update(samples)


def _next_job(search: Search, study: Study, first: tuple[Thresholds, ...], seed: int) -> Job | None:
    """A trial for this worker; None where there is none to begin, nor one that was left."""
    left = study.abandoned()
    trials = study.trials
    if left is not None or len(trials) >= study.config.trials:
        return left
    taken = {thresholds_of(trial) for trial in trials}
    proposals = Proposals(search.config, tuple(t for t in first if t not in taken), seed)
    proposals.learn(trials)
    found = proposals.next(taken, search.centre)
    if found in taken:  # it asks for known ones too, and then for a neighbour of the best
        found = proposals.next(taken, search.centre)
    if found is None:
        found = next(t for t in candidates(search.config, "optuna") if t not in taken)
    return study.begin(found)


def _folder(parent: Path, own: Identity, config: SearchConfig, shared: StudyConfig) -> Path:
    """The folder of a study: of one work in one place, with one goal, in one database.

    Raises:
        BildError: workers in another place have begun it, and are not done.
    """
    asked = {n: v for n, v in asdict(config).items() if n not in ("budget", "method")}
    work = {**own.work, "search": asked, "database": digest(shared.shown)}
    own = replace(own, work=work)
    if own.place["device"] != "cpu":  # one name for the GPUs of several workers
        own = replace(own, place={**own.place, "device": "cuda:0"})
    for path in sorted(parent.glob("study-*/identity")):
        known = read_identity(path)
        if known is None or known["work"] != as_read(work):
            continue
        difference = own.difference(known["place"])
        if difference and not path.with_name(f"{config.method}.json").exists():
            raise BildError(
                f"this worker is not like those in {str(path.parent)!r}, which was begun with "
                f"{difference}: one study has one set of prices; give all workers the same, or "
                "remove that folder or name another --storage to begin anew"
            )
    return own_folder(parent, "study", own)
