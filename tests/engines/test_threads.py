"""The compiled engine's threads: same outputs for any number, callers at once, fork, quotas."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_t5

from bild import BiLDConfig, BiLDModel
from bild.engines import threads

SOURCE = (torch.arange(40) % 13 + 3).view(1, -1)


@pytest.fixture
def several(monkeypatch):
    """Makes the engine believe that it may use any number of cores."""

    def use(count: int) -> None:
        torch.set_num_threads(count)
        monkeypatch.setattr(threads, "usable_cores", lambda: 64)
        monkeypatch.setattr(threads, "quota_cores", lambda: 64)

    return use


def pair(precision="float32"):
    large = tiny_t5(seed=1, width=64, head_width=16, layers=3)
    small = tiny_t5(seed=2, width=32, head_width=16)
    return BiLDModel(large, small, engine="fast", precision=precision, compile=True)


def decoded(model, tokens=24):
    config = BiLDConfig(0.02, 2.0)
    output = model.generate(
        SOURCE, bild_config=config, max_new_tokens=tokens, output_logits=True, eos_token_id=-1
    )
    return output.sequences[0].tolist(), torch.cat(output.logits)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_number_of_threads_changes_not_a_bit(several, precision):
    several(1)
    alone = decoded(pair(precision))
    for count in (2, 3, 7):
        several(count)
        model = pair(precision)
        for _ in range(3):  # shared and alone, as the pace tries both
            tokens, logits = decoded(model)
            assert tokens == alone[0]
            assert torch.equal(logits, alone[1])


def test_callers_at_once_share_or_work_alone(several):
    several(3)
    model = pair()
    wanted = decoded(model)[0]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: decoded(model)[0], range(24)))
    assert results == [wanted] * 24


def test_a_forked_child_goes_on(several):
    several(2)
    model = pair()
    wanted = decoded(model)[0]
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for its parent's threads would wait for ever
        same = decoded(model)[0] == wanted
        torch.set_num_threads(2)  # the compiled engine has threads of its own there
        config, limit = BiLDConfig(0.02, 2.0), {"max_new_tokens": 24, "eos_token_id": -1}
        plain = model.generate(SOURCE, bild_config=config, **limit)
        os._exit(0 if same and plain.sequences[0].tolist() == wanted else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert decoded(model)[0] == wanted


def test_no_more_threads_than_cores_or_quota(monkeypatch, tmp_path):
    torch.set_num_threads(6)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "quota_cores", lambda: 8)
    assert threads.thread_count() == 4
    monkeypatch.setattr(threads, "quota_cores", lambda: 2)
    assert threads.thread_count() == 2
    torch.set_num_threads(1)
    assert threads.thread_count() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.max": "max 100000"}, os.cpu_count()),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, os.cpu_count()),
        ({"cpu.max": "odd"}, os.cpu_count()),
        ({}, os.cpu_count()),
    ],
)
def test_the_control_groups_share(tmp_path, files, cores):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    assert threads.quota_cores.__wrapped__(tmp_path) == cores


def test_a_process_ends_while_its_helpers_sleep():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from bild.engines import threads; threads.usable_cores = threads.quota_cores = lambda: 2\n"
        "from tiny import tiny_t5; from bild import BiLDModel\n"
        "models = (tiny_t5(i, head_width=16) for i in (1, 2))\n"
        "pair = BiLDModel(*models, engine='fast', compile=True)\n"
        "print(pair.generate(torch.arange(3, 9).view(1, -1), max_new_tokens=20).sequences.shape[0])"
    )
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([tests, os.path.dirname(tests)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
