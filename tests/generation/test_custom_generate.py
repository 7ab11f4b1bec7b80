"""The folder custom_generate/: BiLD by the path of a checkout, as transformers documents it."""

import re
import sys
import tomllib

import pytest
import torch
from commands import ROOT
from tiny import EOS, letters, sources, tiny_t5
from transformers import TextStreamer, dynamic_module_utils

from bild import BiLDConfig, BildError, BiLDModel, BiLDOutput, bild_generate

SEED = 31
OPTIONS = {"max_new_tokens": 16, "suppress_tokens": [EOS]}


@pytest.fixture(scope="module")
def pair():
    return tiny_t5(SEED, vocab=48), tiny_t5(SEED, vocab=48, noise=0.25)


@pytest.fixture
def generate(pair, tmp_path, monkeypatch):
    """`generate` of the large model by this checkout; transformers' copy of it is in `tmp_path`."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    large, small = pair

    def call(source, **options):
        options = {"small_model": small, "trust_remote_code": True, **OPTIONS, **options}
        return large.generate(source, custom_generate=str(ROOT), **options)

    return call


def test_it_is_bild(pair, generate):
    large, small = pair
    rolled_back = 0
    for source in sources(SEED, 3):
        config = BiLDConfig(0.3, 0.5)
        expected = large.generate(
            source, custom_generate=bild_generate, small_model=small, bild_config=config,
            return_dict_in_generate=True, **OPTIONS,
        )  # fmt: skip
        for given in (
            {"bild_config": config},
            {"fallback_threshold": 0.3, "rollback_threshold": 0.5},
        ):
            output = generate(source, return_dict_in_generate=True, **given)
            assert isinstance(output, BiLDOutput)
            assert torch.equal(output.sequences, expected.sequences)
            assert output.stats == expected.stats
        rolled_back += expected.stats.rollbacks
        assert torch.equal(generate(source, fallback_threshold=1.1), large.generate(
            source, **OPTIONS))  # fmt: skip
    assert rolled_back


def test_it_samples(pair, generate):
    large, small = pair
    (source,) = sources(SEED, 1)
    drawn = {"do_sample": True, "num_return_sequences": 3, "top_k": 8, **OPTIONS}
    expected = BiLDModel(large, small, engine="transformers").generate(
        source, bild_config=BiLDConfig(0.3, sampling="block"),
        generator=torch.Generator().manual_seed(3), **drawn,
    )  # fmt: skip
    found = generate(
        source, fallback_threshold=0.3, sampling="block",
        generator=torch.Generator().manual_seed(3), **drawn,
    )  # fmt: skip
    assert found.shape[0] == 3
    assert torch.equal(found, expected.sequences)


def test_streamers_and_stop_strings_reach_it(pair, generate, capsys):
    (source,) = sources(SEED, 1)
    tokenizer = letters(48)
    plain = pair[0].generate(source, **OPTIONS)[0].tolist()
    stop = tokenizer.decode(plain[5:7])
    expected = pair[0].generate(source, stop_strings=stop, tokenizer=tokenizer, **OPTIONS)
    assert 5 < expected.shape[1] < len(plain)
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    found = generate(
        source, fallback_threshold=0.2, rollback_threshold=0.0, stop_strings=stop,
        tokenizer=tokenizer, streamer=streamer,
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert capsys.readouterr().out.strip() == tokenizer.decode(expected[0, 1:])


def test_what_is_refused(pair, generate):
    (source,) = sources(SEED, 1)
    for options, message in (
        ({"small_model": None}, "needs small_model=, a model, got None"),
        ({"assistant_model": pair[1]}, "assistant_model=: the model that drafts"),
        ({"bild_config": BiLDConfig(), "variant": "paper"}, "give bild_config= or variant="),
        ({"num_beams": 2}, "num_beams=2"),
    ):
        with pytest.raises(BildError, match=re.escape(message)):
            generate(source, **options)


def test_its_code_runs_only_where_it_is_trusted(generate):
    (source,) = sources(SEED, 1)
    with pytest.raises(ValueError, match="trust_remote_code"):
        generate(source, trust_remote_code=False)


def test_its_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = [requirement.split(",")[0] for requirement in project["dependencies"]]
    listed = (ROOT / "custom_generate" / "requirements.txt").read_text(encoding="utf-8")
    assert listed.split() == lowest
