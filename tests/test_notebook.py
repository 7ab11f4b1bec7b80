"""bild_colab.ipynb: clean as it is committed, and run from its first cell to its last."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
from commands import ROOT, environment

NOTEBOOK = ROOT / "bild_colab.ipynb"
MISSING = [n for n in ("nbclient", "ipykernel") if importlib.util.find_spec(n) is None]


def source_of(cell):
    return "".join(cell["source"])


def test_it_is_committed_without_outputs_and_without_an_address():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert set(notebook["metadata"]) == {"accelerator", "kernelspec", "language_info"}
    text = "\n".join(map(source_of, notebook["cells"]))
    assert 'REPOSITORY = ""' in text
    assert "github.com" not in text


@pytest.mark.parametrize(("after", "removed"), [("2.9.0", False), ("2.13.0", True)])
def test_what_came_with_another_torch_is_removed_before_it_is_imported(monkeypatch, after, removed):
    """Else transformers cannot be imported, where the torch of the image is too old for this."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if "%pip install" in source_of(c)]
    code = re.sub(r"(?m)^( *)%pip (\w+) .*$", r"\1asked.append('\2')", source_of(cell))
    code = code.replace("from importlib.metadata import version\n", "")
    asked, environ = [], {}
    monkeypatch.chdir(ROOT)

    def version(name):
        return {"torch": after if asked else "2.9.0", "transformers": "4.57.1"}[name]

    exec(
        code.replace("os.environ", "environ").replace("    !git", "    #"),
        {"asked": asked, "environ": environ, "version": version, "REPOSITORY": "x"},
    )
    assert asked == (["install", "uninstall"] if removed else ["install"])
    assert "PYTHON" in environ


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_every_cell_runs_with_the_shipped_pair_and_without_the_hub(monkeypatch, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    settings.source = re.sub(r"(?m)^SENTENCES = \d+", "SENTENCES = 2", settings.source)
    settings.source = re.sub(r"(?m)^HUB = True", "HUB = False", settings.source)
    assert "SENTENCES = 2" in settings.source
    assert "HUB = False" in settings.source
    # A copy: the launchers write results into the folder they are started in.
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in {"out", ".git", ".venv"}:
            (checkout / entry.name).symlink_to(entry)
    for name, value in environment(tmp_path, {}).items():
        monkeypatch.setenv(name, value)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3")
    client.execute(cwd=str(checkout))

    shown = ["".join(map(text_of, c.outputs)) for c in notebook.cells if c.cell_type == "code"]
    _, install, demo, published, own, race, tradeoff = shown
    assert install == ""  # in a checkout nothing is cloned or installed
    assert re.search(r"\nBiLD +\d+\.\d\d ", demo)
    assert "2 examples" in demo
    assert len(list((checkout / "out" / "demo").glob("*/run.json"))) == 1
    assert published == "skipped: HUB is False\n"
    assert "DecodeStats(generated_tokens=" in own
    assert {"large", "small"} <= set(own.split())
    assert '<article class="bild-race">' in race
    assert "<svg" in tradeoff
    assert re.search(r"\d{8}-\d{6}, 2 examples", tradeoff)  # a run is called by its time


def text_of(output):
    """What an output of a cell shows."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    return data.get("text/html") or data.get("image/svg+xml") or data.get("text/plain", "")
