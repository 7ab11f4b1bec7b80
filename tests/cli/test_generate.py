"""`bild generate`: files and pipes in and out, order, resuming, and what is refused."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from commands import ROOT, environment
from test_command import bild, refused  # noqa: F401  (bild is a fixture)
from toy import PAIRS, save_pair
from transformers import AutoTokenizer

from bild import BiLDConfig, BildError, BiLDModel
from bild.generation.sequences import stream_of
from bild.generation.stats import DecodeStats
from bild.outputs.reading import FileJob, form_of, read_texts
from bild.outputs.run import Decoding, Written, generate_file
from bild.outputs.writing import partial_of

SOURCES = [source for source, _ in PAIRS[:6]]
LIMIT = ("--max-new-tokens", "8", "--threads", "1")
RULES = BiLDConfig(0.6, 2.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return save_pair(folder)


@pytest.fixture(scope="module")
def expected(pair):
    """What `BiLDModel.generate` writes."""
    model = BiLDModel.from_pretrained(str(pair / "large"), str(pair / "small"))
    tokenizer = AutoTokenizer.from_pretrained(pair / "large")
    texts = []
    for source in SOURCES:
        inputs = tokenizer(source, return_tensors="pt")
        output = model.generate(**inputs, bild_config=RULES, max_new_tokens=8, do_sample=False)
        texts.append(tokenizer.decode(output.sequences[0], skip_special_tokens=True))
    assert len(set(texts)) > 3
    return texts


@pytest.fixture
def models(pair):
    return ("--large", pair / "large", "--small", pair / "small", *LIMIT)


# ------------------------------------------------------------------------------ the outputs


@pytest.mark.parametrize("packed", [False, True])
def test_plain_text_comes_out_line_for_line(bild, models, tmp_path, expected, packed):  # noqa: F811
    ending = ".txt.gz" if packed else ".txt"
    source, output = tmp_path / f"in{ending}", tmp_path / "new" / f"out{ending}"
    lines = [SOURCES[0], "", *SOURCES[1:5], "  ", SOURCES[5]]
    content = ("\ufeff" + "\r\n".join(lines)).encode()
    source.write_bytes(gzip.compress(content) if packed else content)
    assert bild("generate", source, "-o", output, *models) == (0, "", "")
    written = output.read_bytes()
    text = (gzip.decompress(written) if packed else written).decode()
    assert text.split("\n") == [expected[0], "", *expected[1:5], "", expected[5], ""]
    assert [p.name for p in output.parent.iterdir()] == [output.name]


def test_objects_keep_what_they_hold_and_tell_what_happened(bild, models, tmp_path, expected):  # noqa: F811
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": i, "translation": {"de": s, "en": "?"}} for i, s in enumerate(SOURCES)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bild("generate", source, "-o", output, "--stats", *models) == (0, "", "")
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{k: row[k] for k in ("id", "translation")} for row in found] == rows
    assert [row["output"] for row in found] == expected
    for row in found:
        assert row["stats"]["generated_tokens"] >= 1
        assert row["stats"]["large_forwards"] >= 1
        assert row["stats"]["truncated"] is False


@pytest.mark.parametrize("size", [2, 3, 50])
def test_several_at_a_time_are_the_same_in_the_same_order(bild, models, tmp_path, expected, size):  # noqa: F811
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(["", SOURCES[0], "", " ", *SOURCES[1:], ""]) + "\n")
    assert bild("generate", source, "-o", output, *models, "--batch-size", size) == (0, "", "")
    assert output.read_text().split("\n") == ["", expected[0], "", "", *expected[1:], "", ""]


def test_pipes_are_files_too(pair, models, tmp_path, expected):
    done = subprocess.run(
        [sys.executable, "-m", "bild", "generate", "-", "-o", "-", *map(str, models)],
        cwd=tmp_path, env=environment(tmp_path, {}), input="\n".join(SOURCES).encode(),
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().split("\n") == [*expected, ""]
    assert list(tmp_path.iterdir()) == []


def test_prefix_and_thresholds_are_those_of_the_flags(bild, pair, models, tmp_path):  # noqa: F811
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text(SOURCES[0] + "\n")
    flags = ("--prefix", "Der Hund ist: ", "--fallback", 1.5)
    assert bild("generate", source, "-o", output, *models, *flags)[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(pair / "large")
    model = BiLDModel.from_pretrained(str(pair / "large"), str(pair / "small")).large
    ids = tokenizer("Der Hund ist: " + SOURCES[0], return_tensors="pt").input_ids
    alone = model.generate(ids, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(alone[0], skip_special_tokens=True)
    assert output.read_text() == text + "\n"


def test_every_output_begins_with_the_token_that_is_forced(bild, pair, models, tmp_path):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(pair / "large")
    piece = next(t for t in tokenizer.convert_ids_to_tokens(range(5, 40)) if len(t.strip("▁")) == 1)
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(SOURCES))
    assert bild("generate", source, "-o", output, *models, "--forced-bos", piece)[0] == 0
    first = piece.replace("▁", "")
    assert all(line.strip().startswith(first) for line in output.read_text().splitlines())
    err = refused(bild("generate", source, "-o", tmp_path / "2", *models, "--forced-bos", "xx_XX"))
    assert "forced_bos 'xx_XX' is no token of the tokenizer" in err


# ------------------------------------------------------------------------------ drawn outputs

DRAWN = ("--do-sample", "--temperature", 1.5, "--top-k", 0, "--top-p", 0.95)


def test_drawn_outputs_are_those_of_the_seed_and_the_line(bild, pair, models, tmp_path):  # noqa: F811
    source = tmp_path / "in.txt"
    source.write_text("\n".join([SOURCES[0], "", SOURCES[0], *SOURCES[1:]]))

    def drawn(name, *flags):
        output = tmp_path / name
        assert bild("generate", source, "-o", output, *models, *DRAWN, *flags) == (0, "", "")
        return output.read_text().split("\n")

    lines = drawn("one.txt", "--seed", 3)
    assert lines == drawn("two.txt", "--seed", 3, "--batch-size", 4)
    assert lines != drawn("three.txt", "--seed", 4)
    assert lines[1] == ""
    assert lines[0] != lines[2]  # of the same text, on another line
    model = BiLDModel.from_pretrained(str(pair / "large"), str(pair / "small"))
    inputs = AutoTokenizer.from_pretrained(pair / "large")(SOURCES[0], return_tensors="pt")
    options = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 0.95}
    config, own = BiLDConfig(0.6, 2.0), stream_of(3, 3)
    output = model.generate(
        **inputs, bild_config=config, max_new_tokens=8, generator=own, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(pair / "large")
    assert lines[2] == tokenizer.decode(output.sequences[0], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["speculative", "block", "bild"])
def test_several_drawn_outputs_of_a_text_stand_in_a_list(bild, models, tmp_path, kind):  # noqa: F811
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"de": s}) + "\n" for s in [*SOURCES[:2], " "]))
    flags = ("--num-return-sequences", 3, "--sampling", kind, "--stats", "--source-key", "de")
    assert bild("generate", source, "-o", output, *models, *DRAWN, *flags) == (0, "", "")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(row["output"]) for row in rows] == [3, 3, 3]
    assert rows[2]["output"] == ["", "", ""]
    assert len(set(rows[0]["output"])) > 1
    assert rows[0]["stats"]["generated_tokens"] >= 3


def test_a_run_of_drawn_outputs_goes_on_with_the_same_ones(bild, models, tmp_path):  # noqa: F811
    source, whole, stopped = (tmp_path / name for name in ("in.txt", "whole.txt", "stopped.txt"))
    source.write_text("\n".join(SOURCES))
    command = ("generate", source, *models, *DRAWN)
    assert bild(*command, "-o", whole) == (0, "", "")
    generate_whole = Decoding.write_all

    def torn(self, texts, batch_size):
        yield from islice(generate_whole(self, texts, batch_size), 2)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "write_all", torn)
        bild(*command, "-o", stopped)
    assert partial_of(stopped).read_text().count("\n") == 3
    err = refused(bild(*command, "-o", stopped, "--seed", 9))
    assert "drawing seed is 0, not 9" in err
    assert bild(*command, "-o", stopped) == (0, "", "")
    assert stopped.read_text() == whole.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--temperature", 0.5), "--temperature is for drawn outputs; give --do-sample too"),
        (("--sampling", "block"), "--sampling is for drawn outputs; give --do-sample too"),
        (("--do-sample", "--num-return-sequences", 2), "--num-return-sequences needs JSON Lines"),
        (("--do-sample", "--temperature", 0), "temperature must be above 0 and finite, got 0"),
        (("--do-sample", "--top-p", 1.5), "top_p must be above 0 and at most 1, got 1.5"),
        (("--do-sample", "--top-k", -1), "top_k must be at least 0, got -1"),
        (("--do-sample", "--lookahead", 1), "guesses what is likeliest"),
        (("--do-sample", "--variant", "paper"), "variant='paper' does not judge drafts"),
    ],
)
def test_flags_of_drawn_outputs_that_make_no_sense(bild, models, tmp_path, flags, message):  # noqa: F811
    source = tmp_path / "in.txt"
    source.write_text(SOURCES[0])
    assert message in refused(bild("generate", source, "-o", tmp_path / "o.txt", *models, *flags))


# ------------------------------------------------------------------------------ resuming


@dataclass
class Echo:
    """Stands for a pair that is loaded; ends after so many texts."""

    left: int = 10**9
    work: dict = field(default_factory=lambda: {"rules": {"fallback": 0.5}})

    def write(self, source):
        if not self.left:
            raise RuntimeError("the machine is gone")
        self.left -= 1
        return Written(f"<{source}>", DecodeStats(generated_tokens=3))

    def write_all(self, texts, batch_size):
        return (self.write(text.source) for text in texts)


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"Zeile {i} für Käthe\n" for i in range(7)))
    return FileJob(str(source), str(tmp_path / "out.txt"), quiet=True)


WHOLE = "".join(f"<Zeile {i} für Käthe>\n" for i in range(7))


@pytest.mark.parametrize("k", [0, 1, 6, 7])
def test_a_stopped_run_goes_on_after_the_last_line(job, k):
    output = Path(job.output)
    if k < 7:
        with pytest.raises(RuntimeError):
            generate_file(Echo(k), job)
        assert not output.exists()
        assert partial_of(output).exists()
    rest = Echo(7 - k) if k < 7 else Echo()
    assert generate_file(rest, job) == 7
    assert output.read_text() == WHOLE
    assert not partial_of(output).exists()


def test_whatever_a_kill_leaves_is_gone_on_with(job):
    """The file of finished lines, cut off after every byte."""
    output = Path(job.output)
    with pytest.raises(RuntimeError):
        generate_file(Echo(3), job)
    content = partial_of(output).read_bytes()
    for length in range(len(content) + 1):
        partial_of(output).write_bytes(content[:length])
        assert generate_file(Echo(), job) == 7
        assert output.read_text() == WHOLE, length
        output.unlink()


def test_killed_between_the_file_and_its_clearing_away(job, monkeypatch):
    output = Path(job.output)
    with monkeypatch.context() as patch:
        patch.setattr("bild.outputs.writing.os.unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_file(Echo(), job)
    assert output.read_text() == WHOLE
    assert generate_file(Echo(0), job) == 7  # nothing is decoded again
    assert output.read_text() == WHOLE
    assert not partial_of(output).exists()


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def attributes(monkeypatch, tmp_path):
    """A file system that keeps attributes; where this is none, as if it were one."""
    try:
        os.setxattr(tmp_path, "user.tried", b"1")
    except (AttributeError, OSError):
        kept = {}

        def get(path, *_, **__):
            if os.stat(path).st_ino not in kept:
                raise OSError
            return kept[os.stat(path).st_ino]

        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(
            os, "setxattr", lambda f, _, value: kept.update({os.fstat(f).st_ino: value}), False
        )
        monkeypatch.setattr(os, "getxattr", get, raising=False)


@pytest.mark.usefixtures("attributes")
def test_the_same_command_once_more_finds_that_it_is_done(job, capsys):
    """As after a kill behind the last change of all."""
    assert generate_file(Echo(), job) == 7
    assert capsys.readouterr().err == ""
    assert generate_file(Echo(0), replace(job, quiet=False)) == 7
    said = f"{job.output} is done: this command has written all 7 outputs; --overwrite decodes"
    assert capsys.readouterr().err == f"{said} them again\n"
    other = Echo(0, work={"rules": {"fallback": 0.6}})
    with pytest.raises(BildError, match=r"another command: its rules fallback is 0\.5, not 0\.6"):
        generate_file(other, job)
    Path(job.output).write_text(WHOLE.replace("3", "4"))
    with pytest.raises(BildError, match="there already, made by this command, and was changed"):
        generate_file(Echo(0), job)
    assert generate_file(Echo(7), replace(job, overwrite=True)) == 7
    assert Path(job.output).read_text() == WHOLE
    packed = replace(job, output=f"{job.output}.gz")
    for left in (7, 0):
        assert generate_file(Echo(left), packed) == 7


@pytest.mark.usefixtures("attributes")
def test_done_is_no_error_of_the_command_and_another_one_is(bild, models, tmp_path):  # noqa: F811
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(SOURCES[:2]))
    command = ("generate", source, "-o", output, *models)
    assert bild(*command) == (0, "", "")
    code, out, err = bild(*command)
    assert (code, out) == (0, "")
    assert "is done: this command has written all 2 outputs" in err
    err = refused(bild(*command, "--rollback", 1))
    assert "its rules rollback_threshold is " in err
    assert "not 1.0; --overwrite replaces it" in err
    refused(bild("generate", "-", "-o", output, *models))  # of a pipe nobody knows whether it is


def test_where_no_attributes_are_kept_it_is_there_already(bild, models, tmp_path, monkeypatch):  # noqa: F811
    def refuse(*_, **__):
        raise OSError(errno.ENOTSUP, "no")

    monkeypatch.setattr(os, "setxattr", refuse, raising=False)
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(SOURCES[:2]))
    command = ("generate", source, "-o", output, *models)
    assert bild(*command) == (0, "", "")
    assert "is there already; --overwrite replaces it" in refused(bild(*command))


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}, {cli!r}]
from test_generate import Echo, FileJob, generate_file
class Slow(Echo):
    def write(self, source):
        time.sleep(0.05)
        return super().write(source)
generate_file(Slow(), FileJob({source!r}, {output!r}, quiet=True))
"""


def test_a_process_that_was_killed_loses_nothing(job, tmp_path):
    tests = ROOT / "tests"
    code = KILLED.format(
        tests=str(tests), cli=str(tests / "cli"), source=job.source, output=job.output
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(tmp_path, {}))
    path = partial_of(Path(job.output))
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 3):
        pass
    with pytest.raises(BildError, match="another process is writing"):
        generate_file(Echo(), job)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = path.read_bytes().count(b"\n") - 1
    assert 2 <= done < 7
    assert generate_file(Echo(7 - done), job) == 7
    assert Path(job.output).read_text() == WHOLE


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda job: (Echo(work={"rules": {"fallback": 0.6}}), job), "rules fallback is 0.5, not"),
        (lambda job: (Echo(), replace(job, output_form="jsonl")), "output_form is 'text', not"),
        (lambda job: (Path(job.source).write_text("x\n"), (Echo(), job))[1], "input is"),
    ],
    ids=["rules", "form", "input"],
)
def test_another_command_is_refused_and_changes_nothing(job, change, needle):
    with pytest.raises(RuntimeError):
        generate_file(Echo(3), job)
    path = partial_of(Path(job.output))
    before = path.read_bytes()
    decoding, other = change(job)
    with pytest.raises(BildError, match="was begun by another command") as error:
        generate_file(decoding, other)
    assert needle in str(error.value)
    assert path.read_bytes() == before


def test_a_file_that_is_no_beginning_of_ours_is_left_alone(job):
    path = partial_of(Path(job.output))
    path.write_text("my notes\n")
    with pytest.raises(BildError, match="move it away"):
        generate_file(Echo(), job)
    assert path.read_text() == "my notes\n"


def test_what_came_through_a_pipe_starts_anew(job, monkeypatch):
    piped = replace(job, source="-")

    class In:
        def __init__(self, text):
            self.buffer = io.BytesIO(text.encode())

    monkeypatch.setattr(sys, "stdin", In("a\nb\nc\n"))
    with pytest.raises(RuntimeError):
        generate_file(Echo(2), piped)
    monkeypatch.setattr(sys, "stdin", In("d\ne\n"))
    assert generate_file(Echo(), piped) == 2
    assert Path(job.output).read_text() == "<d>\n<e>\n"


def test_a_hundred_thousand_lines_take_no_more_memory_than_a_few(job, tmp_path):
    source = tmp_path / "long.jsonl"
    with source.open("w") as stream:
        for i in range(100_000):
            stream.write(json.dumps({"source": f"{i} " + "wort " * 20}) + "\n")
    long = replace(job, source=str(source), source_form="jsonl")
    generate_file(Echo(), job)
    Path(job.output).unlink()
    tracemalloc.start()
    try:
        assert generate_file(Echo(), long) == 100_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.stat().st_size > 10_000_000
    assert peak < 5_000_000
    with Path(job.output).open() as stream:
        assert all(line.startswith(f"<{i} wort") for i, line in enumerate(stream))


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        (None, ("does not exist",)),
        (b"", ("is empty",)),
        (b"a\n\xff\n", ("line 2", "UTF-8")),
        (b"x" * 10_000_001, ("line 1", "longer than 10,000,000 bytes")),
    ],
    ids=["missing", "empty", "bytes", "long"],
)
def test_an_input_that_cannot_be_read_is_named(job, content, needles):
    Path(job.source).unlink()
    if content is not None:
        Path(job.source).write_bytes(content)
    with pytest.raises(BildError) as error:
        generate_file(Echo(), job)
    for needle in (job.source, *needles):
        assert needle in str(error.value)
    assert not Path(job.output).exists()


@pytest.mark.parametrize(
    ("line", "needle"),
    [
        ("{", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ('["a"]', "is a list, not an object"),
        ('{"text": "a"}', "no text as 'source' (its keys: text); see --source-key"),
        ('{"source": 3}', "no text as 'source'"),
        ('{"source": "\\ud800"}', "surrogate"),
        ('{"source": "a", "x": "\\uD800"}', "surrogate"),
        ('{"source": "a", "x": ' + "9" * 5000 + "}", "is not a JSON object"),
    ],
)
def test_a_line_that_is_no_object_with_a_text_is_named(tmp_path, line, needle):
    path = tmp_path / "in.jsonl"
    path.write_text('{"source": "a"}\n' + line + "\n")
    texts = read_texts(str(path), "jsonl", "source")
    assert next(texts).source == "a"
    with pytest.raises(BildError, match="line 2") as error:
        next(texts)
    assert needle in str(error.value)


def test_a_gzip_file_that_is_none(tmp_path):
    path = tmp_path / "in.txt.gz"
    path.write_text("plain")
    with pytest.raises(BildError, match="no gzip file"):
        list(read_texts(str(path), "text", ""))
    path.write_bytes(gzip.compress(b"a\n" * 9999)[:-20])
    with pytest.raises(BildError, match="damaged"):
        list(read_texts(str(path), "text", ""))


def test_a_name_says_what_a_file_holds():
    assert [form_of(n, None) for n in ("a.txt", "a.jsonl", "a.jsonl.gz", "a.gz", "-")] == [
        "text", "jsonl", "jsonl", "text", "text",
    ]  # fmt: skip
    assert form_of("a.txt", "jsonl") == "jsonl"
    assert form_of("-", None, "jsonl") == "jsonl"


@pytest.mark.parametrize(
    ("flags", "needles"),
    [
        ((), ("--output",)),
        (("-o", "out.txt", "--stats"), ("--stats needs JSON Lines",)),
        (("-o", "."), ("is a folder",)),
        (("-o", "there.txt"), ("is there already", "--overwrite")),
        (("-o", "out.txt", "--large", "x"), ("--large is given without --small",)),
        (("-o", "out.txt", "--search", "in.txt"), ("in.txt",)),
        (("-o", "out.txt", "--search", "in.txt", "--fallback", "1"), ("--search gives the",)),
        (("-o", "out.txt", "--batch-size", "0"), ("batch_size", "got 0")),
        (("-o", "out.txt", "--fallback", "-1"), ("fallback_threshold", "-1")),
        (("-o", "out.txt", "--input-format", "csv"), ("'csv'", "text, jsonl")),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_a_wrong_command_is_one_sentence(bild, tmp_path, monkeypatch, flags, needles):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a\n")
    Path("there.txt").write_text("mine")
    err = refused(bild("generate", "in.txt", *flags))
    for needle in needles:
        assert needle in err
    assert Path("there.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", "there.txt"]


def test_without_a_checkout_the_shipped_pair_is_not_promised(bild, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bild.commands.generate.REPOSITORY_ROOT", tmp_path)
    Path("in.txt").write_text("a\n")
    err = refused(bild("generate", "in.txt", "-o", "out.txt"))
    assert "the shipped pair comes with a checkout and is not here; name yours with --large" in err


def test_decoding_is_named_by_all_that_decides_it(pair):
    """The identity of a file of outputs; torch's own numbers are not asked for."""
    from bild.config import EvalConfig
    from bild.tasks.sources import locate_models

    names = {"large": str(pair / "large"), "small": str(pair / "small")}
    config = EvalConfig("demo", "unaligned", RULES, **names, max_new_tokens=8)
    one = Decoding.load(config, locate_models(config))
    for change in (
        {"prefix": "x"}, {"max_new_tokens": 9}, {"dtype": "bfloat16"}, {"precision": "int8"},
        {"bild": BiLDConfig(0.7, 2.0)}, {"small": str(pair / "large")}, {"forced_bos": "</s>"},
    ):  # fmt: skip
        other = replace(config, **change)
        assert Decoding.load(other, locate_models(other)).work != one.work, change
    assert torch.get_num_threads() >= 1


def test_where_memory_is_short_a_smaller_batch_goes_on(bild, models, tmp_path, monkeypatch):  # noqa: F811
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"{text}\n" for text in SOURCES))
    generate_many = BiLDModel.generate_many

    def short_of_memory(self, *given, **options):
        for number, written in enumerate(generate_many(self, *given, **options)):
            if number == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            yield written

    monkeypatch.setattr(BiLDModel, "generate_many", short_of_memory)
    err = refused(bild("generate", source, "-o", output, *models, "--batch-size", "4"))
    assert "no memory is left (CUDA out of memory. Tried to allocate 2.00 GiB.)" in err
    assert "lower --batch-size, --max-source-tokens, --max-new-tokens" in err
    assert partial_of(output).read_bytes().count(b"\n") == 1 + 2
    assert bild("generate", source, "-o", output, *models)[0] == 0
    assert output.read_text().count("\n") == len(SOURCES)
