"""Fixtures that several modules share."""

from __future__ import annotations

import mirror as mirrors
import pytest


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> mirrors.Mirror:
    """A mirror of the published checkpoints and data; not to be changed."""
    return mirrors.build_mirror(tmp_path_factory.mktemp("mirror"))
