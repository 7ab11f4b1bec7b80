"""A study that several workers share, in a database of Optuna's (any that SQLAlchemy reaches).

What a worker decodes with is a trial of the study, so that no two workers take the same thresholds;
what came of it is told to the study, and all propose from what it knows, the trials that others are
at included. Whatever they ask of it they ask in turn, so that there is no trial too many, and so
that SQLite will do.

A worker holds a lock on the number of its trial (`bild.sharing.Places`). The system takes it from
one that has ended, however it did, and another goes on with that very trial, at the example where
it stopped. (Optuna's heartbeats are for its own loop over an objective, not for those who ask and
tell; they would notice after minutes, and begin the trial anew.)
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.config import SearchConfig
from bild.errors import BildError, first_line
from bild.files import check_kind, write_json
from bild.json_files import read_json
from bild.sharing import LOOK, Places
from bild.tasks.registry import Thresholds
from bild.tuning.proposals import AXES, candidates, require_optuna, space

if TYPE_CHECKING:
    import optuna

TURN, RECORD = 0, 1  # places held by whose turn it is, and by who makes the record
TRIALS = 2  # the place of trial 0
BUSY = 60.0  # seconds that SQLite waits for a writer of other work
PASSWORD = re.compile(r"(//[^:/@]*):[^/]*@")


@dataclass(frozen=True)
class StudyConfig:
    """What workers share.

    Attributes:
        url: of the database, as SQLAlchemy has it.
        trials: how many different thresholds are to be tried, by all.
    """

    url: str
    trials: int

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return PASSWORD.sub(r"\1:***@", self.url)


@dataclass(frozen=True)
class Job:
    """A trial that this worker is at: its number, and the thresholds to decode with."""

    number: int
    thresholds: Thresholds


def study_config(url: str, trials: int | None, config: SearchConfig) -> StudyConfig:
    """What was asked for, checked.

    Args:
        url: of the database.
        trials: None for as many as the budget pays for when each is decoded to the end.
        config: of the search.

    Raises:
        BildError: a number of trials that there cannot be; a method that needs no study; a
            database that cannot be reached, or is no database.
    """
    if config.method != "optuna":
        raise BildError(
            f"--storage is for --method optuna, not {config.method}: processes share the grid "
            "without a database, under accelerate launch"
        )
    most = len(candidates(config, "optuna"))
    if trials is None:
        trials = min(most, int(config.budget * len(candidates(config, "grid"))))
    if not 1 <= trials <= most:
        raise BildError(
            f"--trials must be from 1 to {most}, the number of thresholds that Optuna may propose "
            f"within --fallbacks and --rollbacks, got {trials}"
        )
    found = StudyConfig(url, trials)
    _check_reachable(found)
    return found


class Study:
    """The study of a search, as one of its workers sees it. Everything is asked within `turn`.

    Args:
        config: the database.
        search: what is searched for.
        folder: where decoded examples are kept; all workers see it.

    Raises:
        BildError: Optuna is not installed; a file system without locks.
    """

    def __init__(self, config: StudyConfig, search: SearchConfig, folder: Path) -> None:
        require_optuna()
        self.config, self.folder = config, folder
        self._space = space(search)
        self._places = Places(folder / "workers", make=True)
        self._opened: optuna.Study | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within the block no other worker asks the study for anything.

        Raises:
            BildError: the database is out of reach.
        """
        while not self._places.hold(TURN):
            time.sleep(LOOK)
        try:
            with _asking(self.config):
                yield
        finally:
            self._places.release(TURN)

    def open(self) -> None:
        """Make the study, or find it.

        Raises:
            BildError: the database is that of a study in another folder, or the other way round.
        """
        import optuna

        storage = _storage(self.config)
        self._opened = optuna.create_study(
            storage=storage,
            study_name=self.folder.name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # it proposes nothing: see `Proposals`
        )
        path, known = self.folder / "study.json", self._opened.user_attrs.get("folder")
        check_kind(path)
        here = read_json(path, "it names the study").get("folder") if path.exists() else None
        if known is None and here is not None and (self.folder / "decoded").exists():
            raise BildError(
                f"the database {self.config.shown!r} does not know the study of {self.folder}: "
                "name one that all workers see with --storage; where it is lost, remove the folder"
            )
        if known is not None and known != here:
            raise BildError(
                f"the study in {self.config.shown!r} is not that of {str(self.folder)!r}: workers "
                "share what they decode through files; name a folder that all of them see with "
                "--output-dir, or another database with --storage"
            )
        if here is None:
            here = secrets.token_hex(8)
            write_json(path, {"folder": here})
        self._opened.set_user_attr("folder", here)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, finished or not, in order."""
        assert self._opened is not None
        return self._opened.get_trials(deepcopy=False)

    def finished(self) -> dict[Thresholds, int]:
        """What has been tried, in order, and on how many examples."""
        return {
            thresholds_of(trial): trial.user_attrs["samples"]
            for trial in self.trials
            if trial.state.is_finished()
        }

    def abandoned(self) -> Job | None:
        """A trial whose worker has ended without having finished it; it is this worker's now."""
        for trial in self.trials:
            if not trial.state.is_finished() and self._places.hold(TRIALS + trial.number):
                return Job(trial.number, thresholds_of(trial))
        return None

    def begin(self, thresholds: Thresholds) -> Job:
        """A new trial, which is this worker's."""
        import optuna

        assert self._opened is not None
        number = len(self.trials)
        held = self._places.hold(TRIALS + number)
        assert held, "no trial of this number was ever begun"
        self._opened.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=asdict(thresholds),
                distributions=self._space,
            )
        )
        return Job(number, thresholds)

    def tell(self, job: Job, *, speedup: float, headroom: float, samples: int) -> None:
        """What came of a trial of this worker; `headroom` below 0: the thresholds lose too much."""
        import optuna

        assert self._opened is not None
        frozen = self.trials[job.number]
        trial = optuna.trial.Trial(self._opened, frozen._trial_id)
        trial.set_user_attr("samples", samples)
        if not frozen.constraints:  # of one who was killed before the next line
            trial.set_constraint("headroom", -headroom)
        self._opened.tell(job.number, speedup)
        self._places.release(TRIALS + job.number)

    def hold_record(self) -> bool:
        """Whether this worker is the one that makes the record; where not, another does now."""
        return self._places.hold(RECORD)

    @property
    def recorded(self) -> int | None:
        """Of how many trials the record was made; None where there is none."""
        assert self._opened is not None
        found: int | None = self._opened.user_attrs.get("recorded")
        return found

    def record(self, trials: int) -> None:
        """The record of so many trials was made."""
        assert self._opened is not None
        self._opened.set_user_attr("recorded", trials)

    def close(self) -> None:
        """Give up what is held."""
        self._places.close()


def thresholds_of(trial: optuna.trial.FrozenTrial) -> Thresholds:
    """What a trial decodes with."""
    return Thresholds(*(round(trial.params[name], 10) for name in AXES))


# ------------------------------------------------------------------------------ the database


def _check_reachable(config: StudyConfig) -> None:
    require_optuna()
    import sqlalchemy

    with _asking(config):
        url = sqlalchemy.make_url(config.url)
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise BildError(
                f"--storage {config.shown!r} lies in memory, where no other worker sees it; name a "
                "file, as sqlite:///search.db"
            )
        engine = sqlalchemy.create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def _storage(config: StudyConfig) -> optuna.storages.RDBStorage:
    """The database with all of Optuna's tables, made whole where a killed worker has left some."""
    import optuna
    from optuna.storages._rdb.models import BaseModel

    is_file = config.url.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY}} if is_file else {}
    try:
        storage = optuna.storages.RDBStorage(config.url, engine_kwargs=options)
    except RuntimeError as error:  # its tables are of another version
        raise BildError(
            f"the database --storage {config.shown!r} is of another version of Optuna "
            f"({first_line(error)}); name a new one"
        ) from None
    # A table without its index, of one killed in between, would take a study twice.
    for table in BaseModel.metadata.sorted_tables:
        for index in table.indexes:
            index.create(storage.engine, checkfirst=True)
    return storage


@contextmanager
def _asking(config: StudyConfig) -> Iterator[None]:
    """Within the block a database that does not answer is refused by name."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OptunaError, ImportError) as error:
        raise BildError(
            f"the database --storage {config.shown!r} cannot be used ({first_line(error)}); name "
            "one that can be reached, as sqlite:///search.db; what is done is kept"
        ) from None
