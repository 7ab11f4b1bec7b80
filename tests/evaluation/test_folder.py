"""A run's folder: gone on with where nothing differs, left alone elsewhere, reported once."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from bild.evaluation.folder import Identity, open_run

WORK = {"config": {"task": "demo", "seed": 0}, "data": "1"}
PLACE = {"threads": 2, "device": "cpu", "versions": {"torch": "2.13"}, "commit": "abc"}


def begin(folder, work=WORK, place=PLACE, *, finish=False, report=False):
    with open_run(folder, Identity(work, place)) as run:
        finished = run.finished
        if finish:
            (run.path / "run.json").write_text("{}")
        if report:
            run.reported()
    return run.path, finished


def test_an_unfinished_run_goes_on_and_a_reported_one_does_not(tmp_path):
    first, _ = begin(tmp_path)
    assert begin(tmp_path) == (first, False)
    assert begin(tmp_path, finish=True) == (first, False)
    assert begin(tmp_path, report=True) == (first, True)  # it was finished, but nobody was told
    again, finished = begin(tmp_path)
    assert again != first
    assert not finished


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 1}, "threads 2, not 1"),
        ({"device": "cuda:0"}, "device 'cpu', not 'cuda:0'"),
        ({"commit": "def"}, "commit 'abc', not 'def'"),
        ({"versions": {"torch": "2.14"}}, "versions torch '2.13', not '2.14'"),
        ({"versions": {"torch": "2.13", "numpy": "2"}}, "versions numpy None, not '2'"),
    ],
)
def test_a_run_begun_elsewhere_is_left_alone_and_the_difference_is_named(
    tmp_path, capsys, change, sentence
):
    first, _ = begin(tmp_path)
    before = {p: p.read_bytes() for p in first.iterdir()}
    second, _ = begin(tmp_path, place={**PLACE, **change})
    assert second != first
    said = capsys.readouterr().err
    assert str(first) in said
    assert f"was begun with {sentence}: it stays as it is, and a new run begins" in said
    assert {p: p.read_bytes() for p in first.iterdir()} == before
    # Back where it was begun, it goes on.
    assert begin(tmp_path)[0] == first


def test_other_work_begins_anew_without_a_word(tmp_path, capsys):
    first, _ = begin(tmp_path)
    assert begin(tmp_path, work={**WORK, "data": "2"})[0] != first
    assert capsys.readouterr().err == ""


def test_a_run_at_work_is_not_entered(tmp_path):
    first, _ = begin(tmp_path)
    with FileLock(first / "lock"):
        assert begin(tmp_path)[0] != first


def test_whether_it_is_finished_is_asked_under_its_lock(tmp_path, monkeypatch):
    """Another process may finish and report it between the look and the lock."""
    first, _ = begin(tmp_path)
    acquire = FileLock.acquire

    def late(lock, *args, **kwargs):
        (first / "run.json").write_text("{}")
        (first / "unreported").unlink(missing_ok=True)
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", late)
    assert begin(tmp_path)[0] != first


@pytest.mark.parametrize("step", ["_locked", "write_atomically", "write_json", "Path.rename"])
def test_one_killed_while_it_was_made_is_swept(tmp_path, monkeypatch, step):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"bild.evaluation.folder.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path)
    assert [p.name.startswith(".unfinished-") for p in tmp_path.iterdir()] == [True]
    run, _ = begin(tmp_path)
    assert list(tmp_path.iterdir()) == [run]


def test_one_that_another_process_is_making_is_left_alone(tmp_path):
    making, user = tmp_path / ".unfinished-1", tmp_path / ".unfinished-mine"
    making.mkdir()
    user.mkdir()
    (user / "notes.txt").write_text("mine")
    with FileLock(making / "lock"):
        run, _ = begin(tmp_path)
    assert sorted(tmp_path.iterdir()) == [making, user, run]


def test_a_lock_goes_with_its_folder(tmp_path):
    with open_run(tmp_path, Identity(WORK, PLACE)) as first:
        assert begin(tmp_path)[0] != first.path
    assert begin(tmp_path)[0] == first.path


def test_an_error_in_the_block_comes_out_as_it_is(tmp_path):
    class OwnError(TimeoutError):
        pass

    for _ in range(2):  # in a new run, and in one that goes on
        with pytest.raises(OwnError), open_run(tmp_path, Identity(WORK, PLACE)):
            raise OwnError
    assert len(list(tmp_path.iterdir())) == 1


def test_what_this_version_has_not_written_is_not_entered(tmp_path):
    for name, text in (("a", "not json"), ("b", "[1]"), ("c", '{"work": 1}'), ("d", "9" * 5000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity").write_text(text)
    path, _ = begin(tmp_path)
    assert path.name not in "abcd"
    assert json.loads((path / "identity").read_text()) == {"work": WORK, "place": PLACE}
