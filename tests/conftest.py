"""Settings of all tests: quiet libraries, one thread, fixed examples, and no skips in CI."""

from __future__ import annotations

import os
from collections.abc import Generator

import mirror as mirrors
import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

settings.register_profile(
    "bild", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("bild")


@pytest.hookimpl(tryfirst=True)  # before a test's fixtures, of whatever scope
def pytest_runtest_setup() -> None:
    """Tiny models are slower on several threads, and much slower beside another process.

    Some tests leave another number behind: those that run `--threads`.
    """
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A name with an address in it is another one in every process; workers must agree on names."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"{named[0]} has an address in its name; give it an id of its own")


# What a machine may lack where CI is set; everything else that skips there is an error.
MAY_BE_SKIPPED = (
    "there is a GPU",
    "a processor without AVX2",
    "only root can give a file away",
)


def complain_of_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Turn a skip into a failure where CI is set, so that nothing is green by chance."""
    if not report.skipped or hasattr(report, "wasxfail") or not os.environ.get("CI"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if reason.removeprefix("Skipped: ") not in MAY_BE_SKIPPED:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, and CI is set: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    complain_of_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    complain_of_skip(report)
    return report


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> mirrors.Mirror:
    """A mirror of the published checkpoints and data; not to be changed."""
    return mirrors.build_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(autouse=True)
def clean_tree(monkeypatch):
    """Tests write records while somebody is at work on this tree; `--record` looks away."""
    monkeypatch.setattr("bild.evaluation.environment.changed_files", list)
