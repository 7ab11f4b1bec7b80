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


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny models are slower on several threads, and much slower beside another process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> mirrors.Mirror:
    """A mirror of the published checkpoints and data; not to be changed."""
    return mirrors.build_mirror(tmp_path_factory.mktemp("mirror"))
