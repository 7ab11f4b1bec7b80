"""Pages, image and workflow around the code: the site builds, and what they say is so."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly from a copy of the pages with one more that nobody has listed."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    (folder / "docs" / "new-page.md").write_text("# A new page\n\n[code](../bild/cli.py)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "built"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "built"


def test_every_page_is_on_the_site_and_nothing_is_loaded_from_elsewhere(site):
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "how-bild-works.svg" in text
    for page in site.glob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]*?(?:src|href)=\"?([^\"\s>]+)", page.read_text("utf-8")
        )
        assert loaded
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page.name


def test_a_page_that_nobody_listed_and_a_file_of_the_repository_do_no_harm(site):
    text = (site / "new-page.html").read_text(encoding="utf-8")
    assert "More" in text
    assert "<code>bild/cli.py</code> in the repository" in text


def test_make_docs_builds_it():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "mkdocs build --strict" in recipe
    named = (ROOT / "requirements-docs.txt").read_text(encoding="utf-8")
    assert {"mkdocs", "mkdocs-material"} <= set(re.findall(r"^([\w-]+)==", named, re.MULTILINE))
    assert "-r requirements-docs.txt" in (ROOT / "requirements-dev.txt").read_text("utf-8")


# ------------------------------------------------------------------------------ what pages say


def sources() -> str:
    """All code, its broken sentences put together."""
    files = [*(ROOT / "bild").rglob("*.py"), *(ROOT / "scripts").glob("*"), ROOT / "Makefile"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_troubles_are_told_in_the_words_of_the_errors():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    said = re.findall(r"^\*\*`(.+?)`\*\*", page, re.MULTILINE)
    assert len(said) >= 10
    code = sources()
    for words in said:
        assert words in code, words


# ------------------------------------------------------------------------------ Dockerfile


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, their broken lines put together."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in whole.splitlines() if line.strip()]
    return [(name.upper(), rest) for name, rest in found]


APT = ("--no-install-recommends", "--yes", "apt-get update", "rm -rf /var/lib/apt")


def faults_of(text: str) -> list[str]:
    """What a linter of Dockerfiles (hadolint's rules) would say of one."""
    steps = instructions(text)
    said = []
    users = [rest for name, rest in steps if name == "USER"]
    if not users or users[-1] in ("root", "0"):
        said.append("runs as root")
    for name, rest in steps:
        if name == "FROM" and not re.search(r":(?!latest)[\w.-]+", rest):
            said.append("base image without a version")
        if name in ("ADD", "MAINTAINER"):
            said.append(f"{name} is not to be used")
        if name in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            said.append(f"{name} in shell form")
        if name == "WORKDIR" and not rest.startswith("/"):
            said.append("relative WORKDIR")
        if name == "RUN" and re.search(r"\bsudo\b|\bcd\b", rest):
            said.append("sudo or cd")
        if name == "RUN" and "apt-get install" in rest:
            said += [f"apt-get without {needed}" for needed in APT if needed not in rest]
        if name == "RUN" and "pip install" in rest and "--no-cache-dir" not in rest:
            said.append("pip keeps its cache")
    names = [name for name, _ in steps]
    return said + [f"{n} is not there once" for n in ("CMD", "HEALTHCHECK") if names.count(n) != 1]


def test_the_dockerfile_is_one_that_a_linter_likes():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert faults_of(text) == []
    names = [name for name, _ in instructions(text)]
    assert set(names) <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER", "ENV", "EXPOSE",
                          "HEALTHCHECK", "CMD"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("python:3.12-slim-bookworm", "python"), "base image without a version"),
        (("python:3.12-slim-bookworm", "python:latest"), "base image without a version"),
        (("USER bild", "USER root"), "runs as root"),
        ((" --no-install-recommends", ""), "apt-get without --no-install-recommends"),
        ((" --no-cache-dir", ""), "pip keeps its cache"),
        (("COPY . .", "ADD . ."), "ADD is not to be used"),
        (('CMD ["bild",', 'CMD bild #["bild",'), "CMD in shell form"),
    ],
)
def test_the_linter_finds_what_is_wrong(change, said):
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert change[0] in text
    assert said in faults_of(text.replace(*change))


def test_what_the_dockerfile_names_is_there():
    steps = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "out", ".env"} <= set(ignored)
    for name, rest in steps:
        for file in re.findall(r"[\w-]+\.txt", rest):
            assert (ROOT / file).is_file()
        if name == "EXPOSE":
            assert rest == "8000"
        if name == "CMD":
            from bild.commands.serve import OPTIONS, make_parser
            from bild.flags import read_fields
            from bild.serve.config import ServeConfig

            program, command, *flags = yaml.safe_load(rest)
            assert (program, command) == ("bild", "serve")
            given = make_parser().parse_args(flags)
            config = ServeConfig(allow_host=tuple(given.allow_host), **read_fields(given, *OPTIONS))
            assert config.port == 8000
            assert config.is_allowed("127.0.0.1")


# ------------------------------------------------------------------------------ GitHub


def test_the_workflow_runs_what_a_change_must_pass_and_builds_site_and_image():
    text = (ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()
    }
    assert commands["check"] == ["bash .ci/run"]
    assert (ROOT / ".ci/run").is_file()
    assert commands["docs"] == ["make docs"]
    assert shlex.split(commands["image"][0])[:2] == ["docker", "build"]
    assert "scripts/demo.py" in commands["image"][1]
    assert all("timeout-minutes" in job for job in jobs.values())
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_an_issue_form_has_what_github_wants(path: Path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids)) >= 1
    for part in form["body"]:
        assert part["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert part["attributes"]["label"]
