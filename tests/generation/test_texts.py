"""Text in, text out: a pair that carries its tokenizer."""

import copy
import pickle

import pytest
import torch
from tiny import letters, tiny_t5

from bild import BiLDConfig, BildError, BiLDModel
from bild.config import EvalConfig
from bild.evaluation.arms import Case
from bild.evaluation.own import own_arms
from bild.generation.loading import load_runner
from bild.generation.texts import NEW_TOKENS
from bild.tasks.sources import locate_models

SEED, VOCAB = 30, 48
LARGE_ALONE = BiLDConfig(1.1, 2.0)


@pytest.fixture(scope="module")
def pair():
    models = tiny_t5(SEED, vocab=VOCAB), tiny_t5(SEED, vocab=VOCAB, noise=0.25)
    return BiLDModel(*models, tokenizer=letters(VOCAB))


def expected(pair, text, **options):
    ids = pair.tokenizer(text, return_tensors="pt")["input_ids"]
    written = pair.large.generate(ids, **{"max_new_tokens": NEW_TOKENS, **options})
    return pair.tokenizer.decode(written[0], skip_special_tokens=True)


def test_a_text_gives_a_text_and_a_list_a_list_in_its_order(pair):
    texts = ["hello", "you", "worldwide"]
    answers = [expected(pair, text) for text in texts]
    assert len(set(answers)) == 3
    assert pair("hello", LARGE_ALONE) == answers[0]
    assert pair(texts, LARGE_ALONE) == pair(tuple(texts), LARGE_ALONE) == answers
    assert pair([]) == []
    assert pair("llo", LARGE_ALONE, prefix="he") == answers[0]


def test_settings_of_generate_go_with_a_text(pair):
    answer = pair("hello", LARGE_ALONE, max_new_tokens=5, suppress_tokens=[1])
    assert answer == expected(pair, "hello", max_new_tokens=5, suppress_tokens=[1])
    assert pair("hello", LARGE_ALONE, max_new_tokens=5, return_dict_in_generate=False)
    stop = expected(pair, "hello", suppress_tokens=[1])[3]
    cut = pair("hello", LARGE_ALONE, suppress_tokens=[1], stop_strings=stop)
    assert cut == expected(pair, "hello", suppress_tokens=[1]).split(stop)[0] + stop


def test_an_output_is_as_long_as_its_model_or_its_call_says_or_else_not_20_tokens(pair):
    other = copy.deepcopy(pair)
    free = {"suppress_tokens": [1]}
    assert NEW_TOKENS > 20
    assert pair("hello", LARGE_ALONE, **free) == expected(pair, "hello", **free)
    other.large.generation_config.max_length = 7
    short = expected(pair, "hello", max_new_tokens=6, **free)
    assert other("hello", LARGE_ALONE, **free) == short
    other.large.generation_config.max_length = None
    other.large.generation_config.max_new_tokens = 6
    assert other("hello", LARGE_ALONE, **free) == short


@pytest.mark.parametrize("given", [3, None, ["hello", 3], {"text": "hello"}, torch.ones(1, 2)])
def test_what_is_no_text_is_refused(pair, given):
    with pytest.raises(BildError, match="a pair is called with"):
        pair(given)


def test_the_tokenizer_is_loaded_from_beside_the_models_when_it_is_needed(pair, tmp_path):
    for name in ("large", "small"):
        getattr(pair, name).save_pretrained(tmp_path / name)
    names = str(tmp_path / "large"), str(tmp_path / "small")
    bare = BiLDModel.from_pretrained(*names)
    with pytest.raises(BildError, match="tokenizer"):
        bare("hello")
    pair.tokenizer.save_pretrained(tmp_path / "large")
    assert bare("hello", LARGE_ALONE) == expected(pair, "hello")
    pair.tokenizer.save_pretrained(tmp_path / "elsewhere")
    (tmp_path / "large" / "tokenizer.json").unlink()
    (tmp_path / "large" / "tokenizer_config.json").unlink()
    other = BiLDModel.from_pretrained(*names, tokenizer=str(tmp_path / "elsewhere"))
    assert other("hello", LARGE_ALONE) == expected(pair, "hello")


def test_a_pair_without_a_tokenizer_says_how_to_give_it_one(pair):
    bare = BiLDModel(pair.large, pair.small)
    with pytest.raises(BildError, match=r"has no tokenizer; give BiLDModel\(\.\.\., tokenizer="):
        bare("hello")
    bare.tokenizer = pair.tokenizer
    assert bare("hello", LARGE_ALONE) == expected(pair, "hello")
    with pytest.raises(BildError, match="has 60 tokens of which only 48 are known"):
        bare.tokenizer = letters(60)
    with pytest.raises(BildError, match="one of transformers' tokenizers, got a str"):
        BiLDModel(pair.large, pair.small, tokenizer="demo/large")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_has_the_tokenizer_too(pair, copied):
    assert copied(pair)("hello", LARGE_ALONE) == expected(pair, "hello")


def test_a_pair_says_what_it_is(pair):
    said = repr(BiLDModel(pair.large, pair.small, compile=False))
    assert said.startswith("BiLDModel(large=<T5ForConditionalGeneration of ")
    assert "small=<T5ForConditionalGeneration of 12096 parameters on fast, float32" in said
    assert said.endswith(", cpu)")
    assert "\n" not in said


@pytest.mark.parametrize("mode", ["unaligned", "vanilla"])
def test_an_evaluation_of_a_checkpoint_with_stop_strings(mode):
    """They stand in its generation_config.json; the arms know the tokenizer that finds them."""
    bild = BiLDConfig(1.1, 2.0) if mode == "unaligned" else None
    config = EvalConfig("demo", mode, bild)
    runner, tokenizer = load_runner(config, locate_models(config))
    for model in (runner.large, runner.small) if mode == "unaligned" else (runner.model,):
        model.generation_config.stop_strings = ["."]
    ids = tokenizer("Wir warten. Der Zug ist weg.", return_tensors="pt")["input_ids"]
    arms = own_arms(runner, bild)
    assert len(arms) == (3 if mode == "unaligned" else 1)
    for arm in arms:
        text = tokenizer.decode(arm.run(Case(ids, 40)).tokens)
        assert text.count(".") == 1
        assert text.endswith(".")
