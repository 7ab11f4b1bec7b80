"""A small model that has nothing to do with an output is not even asked for a session."""

import pytest
import torch
from on_engines import ENGINES
from test_batching import padded, pair_on
from tiny import sources

from bild import BiLDConfig, BildError
from bild.engines import Decoder
from bild.generation.later import LaterDecoder
from bild.generation.pace import Experience
from bild.generation.steering import BatchExperience

ADAPTIVE = BiLDConfig(0.3, acceptance="exact", drafting="adaptive")
LIMIT = {"max_new_tokens": 20}


@pytest.fixture
def counted(monkeypatch):
    """A pair, and how often its small model's engine is asked for a decoder."""

    def make(options, left):
        pair, asked = pair_on(options), []
        engine = pair.models["small"].engine
        lend = engine.decoder
        monkeypatch.setattr(engine, "decoder", lambda *given: asked.append(given) or lend(*given))
        # Nothing of what other tests have taught this pair, which the clock decided.
        known = {size: Experience(left=left) for size in range(5)}
        monkeypatch.setattr(pair, "_experience", Experience(left=left))
        monkeypatch.setattr(pair, "_in_batches", BatchExperience(by_rows=known))
        return pair, asked

    return make


@pytest.mark.parametrize("options", ENGINES)
def test_where_drafting_rests_nobody_asks_for_the_small_model(options, counted):
    pair, asked = counted(options, left=10**6)
    rows = sources(7, 3, longest=30)
    together = pair.generate(**padded(rows), bild_config=ADAPTIVE, **LIMIT)
    alone = [pair.generate(row, bild_config=ADAPTIVE, **LIMIT) for row in rows]
    assert not asked
    greedy = pair.greedy(**padded(rows), **LIMIT)
    assert torch.equal(together.sequences, greedy.sequences)
    for output, row in zip(alone, rows, strict=True):
        assert torch.equal(output.sequences, pair.greedy(row, **LIMIT).sequences)
        assert (output.stats.small_forwards, output.stats.small_tokens_fed) == (0, 0)


@pytest.mark.parametrize("options", ENGINES)
def test_where_it_drafts_each_output_asks_once_and_gives_back(options, counted):
    pair, asked = counted(options, left=0)
    rows = sources(7, 3, longest=30)
    output = pair.generate(**padded(rows), bild_config=ADAPTIVE, **LIMIT)
    assert len(asked) == 3
    assert all(stats.small_forwards for stats in output.row_stats)
    if options["engine"] == "fast":
        arranged = pair.models["small"].engine.arranged()
        idle = len(arranged._idle)
        pair.generate(**padded(rows), bild_config=ADAPTIVE, **LIMIT)
        assert len(arranged._idle) == idle


def test_copies_alone_ask_for_no_small_model(counted):
    pair, asked = counted({"engine": "fast", "compile": False}, left=0)
    config = BiLDConfig(0.3, acceptance="exact", copying="alone")
    pair.generate(sources(7, 1)[0], bild_config=config, **LIMIT)
    assert not asked


@pytest.mark.parametrize("options", ENGINES[:2])
def test_a_session_is_given_back_where_its_source_cannot_be_read(options):
    pair = pair_on(options)
    row, arranged = sources(7, 1)[0], pair.engine.arranged()
    pair.greedy(row, **LIMIT)
    idle = len(arranged._idle)
    with pytest.raises(BildError, match="hides every token"):
        pair.greedy(row, attention_mask=torch.zeros_like(row), **LIMIT)
    assert len(arranged._idle) == idle


def test_it_passes_everything_on():
    """A method that it lacked would run as of the base class, past the engine's own."""
    public = {name for name, value in vars(Decoder).items() if callable(value) and name[0] != "_"}
    assert public - {"read", "read_later"} <= set(vars(LaterDecoder))
    later = LaterDecoder(lambda: None, "small", 8)
    assert (later.length, later.forwards, later.tokens_fed, later.company) == (0, 0, 0, None)
    with pytest.raises(AttributeError, match="session of a decoder that is not ready"):
        _ = later.session
