import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from bild import BiLDConfig, BildError
from bild.benchmark.config import BenchmarkConfig
from bild.config import EvalConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"fallback_threshold": 0},
        {"fallback_threshold": 1.5},
        {"fallback_threshold": math.inf},
        {"rollback_threshold": 0},
        {"rollback_threshold": math.inf},
        {"num_small_iters": 0},
        {"num_small_iters": math.inf},
        {"variant": "verified", "start": "small"},
    ],
)
def test_the_ends_of_every_range_are_legal_and_survive_json(fields):
    config = BiLDConfig(**fields)
    for name, value in fields.items():
        assert getattr(config, name) == value
    assert BiLDConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fallback_threshold": -0.1}, "fallback_threshold must be a number >= 0, got -0.1"),
        ({"fallback_threshold": math.nan}, "fallback_threshold must be a number >= 0, got nan"),
        ({"fallback_threshold": "0.6"}, "got '0.6'"),
        ({"fallback_threshold": None}, "got None"),
        ({"rollback_threshold": -1}, "rollback_threshold must be a number >= 0, got -1"),
        ({"rollback_threshold": True}, "got True"),
        ({"num_small_iters": 2.5}, "num_small_iters must be a whole number >= 0 or inf, got 2.5"),
        ({"num_small_iters": -1}, "got -1"),
        ({"num_small_iters": math.nan}, "got nan"),
        ({"variant": "fast"}, "variant must be one of authors, paper, verified, got 'fast'"),
        ({"start": "both"}, "start must be one of large, small, got 'both'"),
    ],
)
def test_other_values_are_refused_by_name_and_value(fields, message):
    with pytest.raises(BildError) as error:
        BiLDConfig(**fields)
    assert message in str(error.value)


def test_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        BiLDConfig().fallback_threshold = 0.1


def test_unknown_field_in_a_record_is_refused():
    with pytest.raises(BildError, match="'temperature'"):
        BiLDConfig.from_dict({"temperature": 1.0})


def test_paths_stand_for_names_of_checkpoints_and_data():
    names = ("large", "small", "tokenizer", "data_file")
    for make in (
        lambda **given: EvalConfig("demo", "unaligned", BiLDConfig(), **given),
        lambda **given: BenchmarkConfig((), BiLDConfig(), 1, **given),
    ):
        assert make(**{n: Path("my") / n for n in names}) == make(**{n: f"my/{n}" for n in names})


def test_rules_are_those_of_the_fields_in_every_copy():
    """They are made once a configuration; no copy takes over those of another."""
    first = BiLDConfig(0.4, 2.0)
    assert (first.fallback_rule.threshold, first.acceptance_rule.threshold) == (0.4, 2.0)
    assert not first.is_lossless
    other = replace(first, fallback_threshold=0.9, rollback_threshold=0.5)
    assert (other.fallback_rule.threshold, other.acceptance_rule.threshold) == (0.9, 0.5)
    assert other.is_lossless
    again = pickle.loads(pickle.dumps(other))
    assert again == other == BiLDConfig(0.9, 0.5)
    assert again.acceptance_rule == other.acceptance_rule
    assert set(other.to_dict()) == set(BiLDConfig.__dataclass_fields__)
