"""`bild doctor`: what it finds on this machine, and what it says of others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_command import bild, refused  # noqa: F401  (bild is a fixture)
from test_generate import pair  # noqa: F401  (a fixture)

from bild.doctor import facts as facts_module
from bild.doctor import selftest
from bild.doctor.facts import Facts, gather
from bild.doctor.findings import judge

GOOD = Facts(
    versions={"python": "3.11.7", "torch": "2.13.0"}, missing={}, imports="", compiler="g++",
    engine="compiled", compiled=True, instructions=("avx2",), cores=8, usable=8, quota=8,
    threads=4, wait_policy="", omp_threads="", load=0.5, memory=32 * 10**9,
    free_memory=20 * 10**9, free_disk=10**12, gpus=(), offline=False, roots=(),
)  # fmt: skip


def test_a_good_machine_needs_nothing():
    findings = judge(GOOD)
    assert {f.level for f in findings} == {"ok"}
    assert {f.advice for f in findings} == {""}
    assert {f.subject for f in findings} >= {
        "versions", "engine", "instructions", "threads", "memory", "disk", "GPU", "hub",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "subject", "level", "said", "advice"),
    [
        ({"imports": "torchvision::nms does not exist"}, "versions", "error", "nms",
         "pip uninstall torchvision"),
        ({"versions": {"torch": "not installed"}}, "versions", "error", "torch", "pip install"),
        ({"missing": {"web": ("gradio",)}}, "extras", "note", "[web] lacks gradio", "[web]"),
        ({"compiled": False, "engine": "no C++ compiler found"}, "engine", "note",
         "runs in PyTorch", "CXX"),
        ({"engine": "compiled without the instructions of this processor"}, "engine", "note",
         "without", "newer g++"),
        ({"instructions": ()}, "instructions", "note", "none", "gain little"),
        ({"quota": 2}, "threads", "note", "quota 2", "OMP_NUM_THREADS=2"),
        ({"usable": 1}, "threads", "note", "1 usable", "OMP_NUM_THREADS=1"),
        ({"load": 20.0}, "load", "note", "20.0 processes", "OMP_WAIT_POLICY=passive"),
        ({"free_memory": 10**9}, "memory", "note", "1.0 GB free", "4 to 6 GB"),
        ({"free_disk": 10**9}, "disk", "note", "1.0 GB free", "HF_HOME"),
        ({"roots": ("BILD_DATA_ROOT",)}, "hub", "error", "BILD_DATA_ROOT", "unset it"),
        ({"gpus": (("a card", 80 * 10**9),)}, "GPU", "ok", "a card, 80.0 GB", ""),
    ],
)  # fmt: skip
def test_what_is_amiss_is_named_with_what_to_do(change, subject, level, said, advice):
    found = [f for f in judge(replace(GOOD, **change)) if f.subject == subject and said in f.says]
    assert [f.level for f in found] == [level]
    assert advice in found[0].advice


@pytest.mark.parametrize("change", [{"threads": 1}, {"wait_policy": "PASSIVE"}])
def test_a_busy_machine_is_no_matter_for_one_thread_or_for_threads_that_sleep(change):
    assert "load" not in {f.subject for f in judge(replace(GOOD, load=20.0, **change))}


def test_this_machine_is_looked_at():
    found = gather()
    assert found.imports == ""
    assert found.versions["torch"] != "not installed"
    assert 1 <= found.usable <= found.cores
    assert found.memory is None or 0 < found.free_memory <= found.memory


def test_a_machine_without_a_compiler(monkeypatch):
    from bild.engines import build

    monkeypatch.setenv("CXX", "nowhere/g++")
    build.load.cache_clear()
    try:
        compiler, said, compiled = facts_module._engine()
    finally:
        build.load.cache_clear()
    assert not compiled
    assert compiler == ""
    assert said


def test_it_tests_itself_and_speaks_json(bild, pair):  # noqa: F811
    names = ("--large", pair / "large", "--small", pair / "small")
    code, out, err = bild("doctor", "--json", *names)
    assert err == ""
    content = json.loads(out)
    (last,) = (f for f in content["findings"] if f["subject"] == "self-test")
    assert last["level"] == "ok"
    assert "token for token" in last["says"]
    assert code == int(any(f["level"] == "error" for f in content["findings"]))
    assert content["facts"]["versions"]["bild"]


def test_an_engine_that_writes_other_tokens_is_found(bild, pair, monkeypatch):  # noqa: F811
    tokens = selftest._tokens

    def wrong(model, kind, ids):
        return tokens(model, kind, ids)[: 2 if model.engine.name == "fast" else None]

    monkeypatch.setattr(selftest, "_tokens", wrong)
    code, out, _ = bild("doctor", "--large", pair / "large", "--small", pair / "small")
    assert code == 1
    assert "error  self-test" in out
    assert "writes other tokens" in out
    assert "-> use --engine transformers" in out


def test_a_lossless_pair_that_is_not_is_found(bild, pair, monkeypatch):  # noqa: F811
    tokens = selftest._tokens

    def wrong(model, kind, ids):
        return tokens(model, kind, ids)[: 2 if "lossless" in kind else None]

    monkeypatch.setattr(selftest, "_tokens", wrong)
    code, out, _ = bild("doctor", "--large", pair / "large", "--small", pair / "small")
    assert code == 1
    assert "the pair that is lossless writes other tokens" in out


def test_the_self_test_goes_where_it_is_told_and_rounds_nothing(bild, pair, monkeypatch):  # noqa: F811
    seen = []
    tokens = selftest._tokens

    def look(model, kind, ids):
        seen.append(torch.get_float32_matmul_precision())
        return tokens(model, kind, ids)

    monkeypatch.setattr(selftest, "_tokens", look)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        names = ("--large", pair / "large", "--small", pair / "small")
        _, out, _ = bild("doctor", *names, "--device", "cpu")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}
    assert "on cpu, engine" in out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, _ = bild("doctor", *names, "--device", "cuda")
    assert code == 1
    assert "torch sees no GPU" in out


def test_a_pair_that_cannot_be_loaded_is_a_finding(bild, pair, tmp_path):  # noqa: F811
    code, out, _ = bild("doctor", "--large", tmp_path, "--small", pair / "small")
    assert code == 1
    assert str(tmp_path) in out
    assert "Traceback" not in out


def test_half_a_pair_is_refused(bild, pair):  # noqa: F811
    assert "both --large and --small" in refused(bild("doctor", "--large", pair / "large"))
