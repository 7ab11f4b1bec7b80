"""A task of one's own without code: files of several forms, `--task-file`, BLEU's tokenization."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import asdict

import pytest
import sacrebleu
from commands import run_here
from toy import PAIRS, save_pair

from bild.commands.generate import make_parser as generate_parser
from bild.commands.search import launch_command
from bild.commands.search import parse as parse_search
from bild.config import EvalConfig
from bild.errors import BildError
from bild.tasks.metrics import bootstrap, score
from bild.tasks.reading import Example, read_examples
from bild.tasks.registry import get
from bild.tasks.sources import locate_models
from bild.tasks.words import bleu_by
from bild.tuning.record import TriedPoint

FOUR = [*PAIRS[:3], ('Sie sagte: "Nein,\u2028nie."', "")]
EXAMPLES = [Example(*pair) for pair in FOUR]


def write(path, text):
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# ------------------------------------------------------------------------------ forms of files


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("form", ["jsonl", "translation", "list", "heading", "numbers", "texts"])
def test_each_form_holds_the_same_examples(tmp_path, form, ending):
    keys, targets = ("de", "en"), None
    rows = [{"de": s, "en": t, "id": i} for i, (s, t) in enumerate(FOUR)]
    if form in ("jsonl", "translation"):
        rows = rows if form == "jsonl" else [{"id": 1, "translation": row} for row in rows]
        path, text = "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    elif form == "list":
        path, text = "a.json", json.dumps(rows, indent=1)
    elif form == "texts":
        path, text = "a.txt", "".join(f"{s}\r\n" for s, _ in FOUR)
        targets = write(tmp_path / f"b.txt{ending}", "\n".join(t for _, t in FOUR) + "\n")
    else:
        lines = [f"{t}\tx\t{s}" for s, t in FOUR]
        keys = ("3", "1") if form == "numbers" else keys
        text = "\n".join(lines if form == "numbers" else ["en\tid\tde", *lines])
        path = "a.TSV" if ending == "" else "a.tsv"
    found = read_examples(write(tmp_path / f"{path}{ending}", text), *keys, targets)
    assert found == EXAMPLES


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "x\ty\na\tb\n", "line 1 has no column 'de' (its columns: x, y); name them by"),
        ("a.tsv", "de\ten\na\tb\na\tb\tc\n", "line 3 has 3 column(s), and line 1 has 2"),
        ("a.tsv", "de\ten\n", "holds no examples"),
        ("a.tsv", "", "holds no examples"),
        ("a.tsv", b"de\ten\n\xff\tb\n", "line 2 is not UTF-8"),
        ("a.txt", "one\n", "plain text, which holds no references; give them as --target-file"),
        ("a.json", "[]", "holds no list of examples"),
        ("a.json", '[{"de": "a", "en": "b"}, 3]', "entry 2 is a int, not an object"),
        ("a.json", '[{"de": "a"}]', "entry 1 has no key 'en' (its keys: de)"),
        ("a.json", '[{"de": "a",\n "en": ]', "(Expecting value at line 2)"),
        ("a.json", '{"de": 1, "en": "b"}', "line 1 has 1 as 'de'; it must be a string"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, name, text, said):
    path = write(tmp_path / name, text)
    with pytest.raises(BildError) as told:
        read_examples(path, "de", "en")
    assert said in str(told.value)
    assert str(path) in str(told.value)


def test_columns_by_number_must_be_there(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tb\n")
    for keys, odd in ((("1", "3"), "3"), (("0", "2"), "0")):
        with pytest.raises(BildError, match=rf"line 1 has 2 column\(s\), so that {odd} is none"):
            read_examples(path, *keys)


def test_two_texts_must_be_of_one_length(tmp_path):
    long, short = write(tmp_path / "long.txt", "a\nb\n"), write(tmp_path / "short.txt", "x\n")
    for pair in ((long, short), (short, long)):
        with pytest.raises(BildError, match=r"short.txt ends after line 1, and .*long.txt does"):
            read_examples(pair[0], "de", "en", pair[1])


def test_a_list_that_is_too_long_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("bild.tasks.reading.LARGEST_LIST", 40)
    path = write(tmp_path / "a.json", json.dumps([{"de": "a", "en": "b"}] * 3))
    with pytest.raises(BildError, match="write one object a line instead"):
        read_examples(path, "de", "en")


# ------------------------------------------------------------------------------ BLEU


def test_bleu_by_characters_is_sacrebleus(monkeypatch):
    theirs, ours = ["我们没赶上末班车。", "火车晚点了。"], ["我们错过了末班车。", "火车今天晚点。"]
    for tokenize in ("zh", "char", "intl"):
        found = score(f"bleu:{tokenize}", ours, theirs)
        assert found.value == sacrebleu.corpus_bleu(ours, [theirs], tokenize=tokenize).score
        assert f"tok:{tokenize}" in found.signature
        low, high = bootstrap(f"bleu:{tokenize}", ours, theirs, samples=50)
        assert low <= found.value <= high
    assert score("bleu:zh", ours, theirs).value > score("bleu", ours, theirs).value
    assert bleu_by("13a") == "bleu"


def test_a_tokenization_without_its_package_is_refused(monkeypatch):
    for name in ("MeCab", "ipadic"):
        monkeypatch.setitem(sys.modules, name, None)
    config = EvalConfig("own", "vanilla", None, bleu_tokenize="ja-mecab")
    with pytest.raises(BildError, match=r"needs MeCab and ipadic, .* 'sacrebleu\[ja\]'"):
        locate_models(config)
    with pytest.raises(BildError, match="must be one of 13a"):
        score("bleu:klingon", ["a"], ["a"])
    with pytest.raises(BildError, match="goes with the metric bleu, got 'rougeL'"):
        bleu_by("zh", "rougeL")


# ------------------------------------------------------------------------------ --task-file


TASK = """\
name: garden
data-file: data/test.tsv
source-key: 1
target-key: 2
prefix: "sag: "
metric: bleu
bleu-tokenize: char
max-source-tokens: 30
max-new-tokens: 6
large: ../models/large
small: ../models/small
fallback: 0.4
rollback: 1.5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    save_pair(folder / "models")
    (folder / "task" / "data").mkdir(parents=True)
    write(folder / "task" / "data" / "test.tsv", "\n".join("\t".join(p) for p in PAIRS[:3]))
    return folder


@pytest.fixture
def task(folder, monkeypatch, tmp_path):
    """The file, and a working folder elsewhere: its paths are seen from where it is."""
    monkeypatch.chdir(tmp_path)
    return write(folder / "task" / "garden.yaml", TASK)


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path):
    def run(*flags):
        own = ("--output-dir", tmp_path / "out", "--no-small-alone", "--warmup", 0)
        return run_here(monkeypatch, capsys, *flags, *own)

    return run


def test_a_file_describes_a_task_and_its_record_says_all_of_it(evaluate, task, tmp_path):
    done = evaluate("--task-file", task, "unaligned", 0.6)
    assert done.path.parent.parent == tmp_path / "out" / "own-garden"
    record = done.record()
    config = record.config
    assert (config.task, config.mode, record.metric) == ("own-garden", "unaligned", "bleu:char")
    assert (config.source_key, config.target_key, config.prefix) == ("1", "2", "sag: ")
    assert (config.max_source_tokens, config.max_new_tokens) == (30, 6)
    assert (config.bild.fallback_threshold, config.bild.rollback_threshold) == (0.6, 1.5)
    assert config.bleu_tokenize == "char"
    assert record.data.samples == 3
    assert "tok:char" in record.large.quality["bleu:char"].signature
    assert [(s["source"], s["reference"]) for s in done.samples()] == PAIRS[:3]
    assert get(config.task).description == get("own").description  # readable without the file
    assert "own-garden, unaligned, fallback 0.6, rollback 1.5" in done.out


def test_flags_alone_describe_a_task_too_and_make_the_same_outputs(evaluate, folder, task):
    from_file = evaluate("--task-file", task)
    models = [part for n in ("large", "small") for part in (f"--{n}", folder / "models" / n)]
    data = ("--data-file", folder / "task" / "data" / "test.tsv")
    by_flags = evaluate(
        *("own", "unaligned", 0.4, 1.5, *models, *data, "--source-key", 1, "--target-key", 2),
        *("--prefix", "sag: ", "--bleu-tokenize", "char", "--max-new-tokens", 6),
    )
    assert by_flags.outcome() == from_file.outcome()
    assert by_flags.record().large.quality == from_file.record().large.quality
    assert by_flags.record().config.task == "own"


def test_a_changed_setting_is_another_run(evaluate, task):
    first = evaluate("--task-file", task).require_success()
    (first.path.parent / "unreported").write_text("")  # as if it had been stopped before its report
    resumed = evaluate("--task-file", task)
    assert resumed.path == first.path
    for old, new in (('"sag: "', '"frag: "'), ("char", "intl"), ("tokens: 6", "tokens: 7")):
        (first.path.parent / "unreported").write_text("")
        write(task, TASK.replace(old, new))
        assert evaluate("--task-file", task).path != first.path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metric: bleu", "metrik: bleu", "line 6 has the key 'metrik', which is no setting"),
        ("metric: bleu", "metrik: bleu", "did you mean metric?"),
        ("metric: bleu", "metric: meteor", "line 6: argument --metric: must be one of bleu"),
        ("0.4", "viel", "line 12: argument --fallback: invalid float value: 'viel'"),
        ("0.4", "-1", "fallback_threshold must be a number >= 0, got -1"),
        ("tokens: 6", "tokens: [6]", "line 9: argument --max-new-tokens: must be a plain value"),
        ("metric: bleu", "prefix: x", "has 'prefix' twice"),
        ("name: garden", "name: ../x", "names the task '../x'; a name is of letters"),
        ("name: garden", "name: [x]", "names the task ['x']; a name is of letters"),
        ("test.tsv", "none.tsv", "data/none.tsv' does not exist"),
        ("bleu-tokenize: char", "bleu-tokenize: ja", "must be one of 13a, intl, char, zh"),
        ("metric: bleu", "metric: rougeL", "'char' goes with the metric bleu, got 'rougeL'"),
        ("small: ../models/small", "", "own-garden has no small model of its own"),
    ],
)
def test_what_is_wrong_in_a_task_is_named_with_its_line(evaluate, task, old, new, said):
    assert old in TASK
    write(task, TASK.replace(old, new, 1))
    done = evaluate("--task-file", task)
    assert (done.code, len(done.complaints), done.out) == (2, 1, "")
    assert said in done.err


def test_a_task_is_named_or_described_not_both(evaluate, task, monkeypatch, capsys):
    said = evaluate("demo", "--task-file", task).err
    assert said == "error: give the task demo or --task-file, not both\n"
    with pytest.raises(SystemExit):
        generate_parser().parse_args(["a", "-o", "b", "--task", "xsum", "--task-file", str(task)])
    assert "give --task xsum or --task-file, not both" in capsys.readouterr().err


def test_a_file_of_settings_names_a_task_and_wins_over_it(evaluate, task, tmp_path):
    settings = write(
        tmp_path / "run.yaml", f"task-file: {task}\nmax-new-tokens: 4\nmode: vanilla\n"
    )
    config = evaluate("--config", settings).record().config
    assert (config.task, config.mode, config.max_new_tokens) == ("own-garden", "vanilla", 4)


def test_outputs_of_a_file_are_written_with_what_a_task_says(task, monkeypatch, capsys, tmp_path):
    source = write(tmp_path / "in.tsv.txt", "\n".join(s for s, _ in PAIRS[:2]))
    done = run_here(
        monkeypatch, capsys, source, "-o", "out.txt", "--task-file", task, name="generate"
    )
    assert (done.code, done.out) == (0, "")
    a = generate_parser().parse_args(["a", "-o", "b", "--task-file", str(task)])
    assert (a.prefix, a.max_new_tokens, a.fallback) == ("sag: ", 6, 0.4)
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 2


def test_a_search_prints_the_command_of_the_task(task, folder, monkeypatch):
    point = TriedPoint(**dict.fromkeys(TriedPoint.__dataclass_fields__, 0) | {"fallback": 0.3})
    monkeypatch.setattr(sys, "argv", ["bild search", "--task-file", str(task), "--max-loss", "2"])
    a, config, _, changed = parse_search()
    assert launch_command(a, changed, point) == f"bild eval --task-file {task} unaligned 0.3 0"
    assert config.prefix == "sag: "
    monkeypatch.setattr(
        sys, "argv", ["bild search", "own", "--data-file", "x.tsv", "--source-key", "1"]
    )
    a, _, _, changed = parse_search()
    shown = launch_command(a, changed, point)
    assert shown == "bild eval own unaligned 0.3 0 --data-file x.tsv --source-key 1"


def test_small_models_and_engines_are_compared_on_it(task, folder, monkeypatch, capsys, tmp_path):
    test = write(tmp_path / "other.tsv", "\n".join("\t".join(p) for p in PAIRS[3:6]))
    small = f"one={folder / 'models' / 'small'}"
    done = run_here(
        *(monkeypatch, capsys, "--task-file", task, "--small", small, "--test-file", test),
        *("--fallbacks", 0.5, "--rollbacks", 2, "--output-dir", tmp_path / "out", "--json"),
        name="compare_small_models",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"] == ["bleu:char"]
    engines = ("--arms", "vanilla-fast", "--samples", 2, "--output-dir", tmp_path / "out")
    done = run_here(monkeypatch, capsys, "--task-file", task, *engines, "--json", name="benchmark")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["metric"], found["config"]["source_key"]) == ("bleu:char", "1")
    write(task, TASK + "forced-bos: x\n")
    done = run_here(monkeypatch, capsys, "--task-file", task, *engines, name="benchmark")
    assert "line 14 has the key 'forced-bos', which is no setting of a task that" in done.err


def test_the_settings_of_a_task_are_fields_of_a_run():
    """What a file may say is what a run's identity and record hold."""
    from bild.cli import SAID_OF_TASKS

    held = {*asdict(EvalConfig("own", "vanilla", None))} | {"variant", "fallback", "rollback"}
    assert set(SAID_OF_TASKS) <= held
