"""Settings of all tests: quiet libraries, one thread a test model, fixed random examples."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> mirrors.Mirror:
    """A mirror of the published checkpoints and data; not to be changed."""
    return mirrors.build_mirror(tmp_path_factory.mktemp("mirror"))
