"""The engines that tests run on."""

from __future__ import annotations

import pytest

from bild.engines import build

needs_compiler = pytest.mark.skipif(
    build.find_compiler() is None, reason="no C++ compiler on this machine"
)
ENGINES = [
    pytest.param({"engine": "fast", "compile": False}, id="torch"),
    pytest.param({"engine": "fast", "compile": True}, marks=needs_compiler, id="compiled"),
    pytest.param({"engine": "transformers"}, id="transformers"),
]
