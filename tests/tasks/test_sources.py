"""Where an evaluation's checkpoints and data are: found once, before anything is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from commands import ROOT

from bild.checkpoints.names import Checkpoint
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.tasks import sources
from bild.tasks.registry import get
from bild.tasks.sources import locate


@pytest.fixture
def config(mirror, monkeypatch):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)

    def make(task="xsum", mode="unaligned", **options):
        bild = None if mode == "vanilla" else BiLDConfig()
        return EvalConfig(task, mode, bild, **options)

    return make


def test_a_pair_its_tokenizer_and_its_data(config, mirror):
    found = locate(config(max_new_tokens=7))
    for role in ("large", "small"):
        name = getattr(get("xsum"), role)
        assert getattr(found, role) == Checkpoint(name, mirror.models / name, None)
    assert found.tokenizer.path == mirror.models / "google-t5/t5-small"
    assert (found.task.max_new_tokens, found.task.max_source_tokens) == (7, 1024)
    assert found.data.available == 4


def test_a_tokenizer_beside_the_large_model_is_not_named(config):
    assert locate(config("api")).tokenizer is None


def test_a_large_model_alone(config):
    assert locate(config(mode="vanilla", small="no/such")).small is None


def test_the_configurations_names_come_first(config, mirror):
    other = str(mirror.model("api"))
    found = locate(config(large=other, small=other, tokenizer=other))
    assert {c.name for c in (found.large, found.small, found.tokenizer)} == {other}


def test_a_large_model_without_a_tokenizer_is_refused(config, mirror, tmp_path):
    folder = shutil.copytree(mirror.model("xsum"), tmp_path / "large")
    with pytest.raises(BildError, match="holds no tokenizer"):
        locate(config("api", large=str(folder)))


def test_each_name_is_resolved_once(config, monkeypatch):
    asked = []

    def counted(resolve):
        return lambda name: asked.append(name) or resolve(name)

    for name in ("resolve_model", "resolve_tokenizer"):
        monkeypatch.setattr(sources, name, counted(getattr(sources, name)))
    locate(config())
    task = get("xsum")
    assert asked == [task.large, task.small, task.tokenizer]


def test_a_revision_of_data_that_have_none(config):
    with pytest.raises(BildError, match=r"the revision 'v1' .* come from \$BILD_DATA_ROOT/xsum"):
        locate(config(data_revision="v1"))


def test_nothing_heavy_is_imported(tmp_path):
    code = (
        "import sys; from bild.tasks.sources import locate; from bild.config import *\n"
        "locate(EvalConfig('demo', 'unaligned', BiLDConfig()))\n"
        "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
