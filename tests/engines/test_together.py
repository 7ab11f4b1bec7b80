"""Several sequences in one forward: each gets what it gets alone."""

import itertools
import random

import pytest
import torch
from on_engines import needs_compiler
from tiny import tiny_bart, tiny_t5

from bild.engines import make_engine
from bild.engines.requests import DraftRequest, FeedRequest, VerifyRequest, answer
from bild.engines.t5_batch import NativeCompany, TorchCompany
from bild.errors import BildError
from bild.fallback import Entropy, Margin, Product
from bild.policy import DEAR_MEASURES, MaxProbability

ENGINES = [
    pytest.param({"compile": False}, id="torch"),
    pytest.param({"compile": True}, marks=needs_compiler, id="compiled"),
    pytest.param({"compile": True, "precision": "int8"}, marks=needs_compiler, id="int8"),
]
ROWS = 5


def model():
    return tiny_t5(3, width=32, head_width=16)


def decoders(engine, seed):
    generator = torch.Generator().manual_seed(seed)
    made = [engine.decoder("large") for _ in range(ROWS)]
    for decoder in made:
        length = int(torch.randint(1, 40, (1,), generator=generator))
        decoder.read(torch.randint(2, 16, (1, length), generator=generator))
    return made


def requests(kind, rng, decoder, twin):
    """A random request of a decoder, and the same of its twin."""
    tokens = [rng.randrange(16) for _ in range(rng.choice((1, 1, 2, 5, 20)))]
    if kind is FeedRequest:
        arguments = (tokens,)
    elif kind is DraftRequest:
        rule = rng.choice((MaxProbability, Margin, Product))(rng.choice((0, 0.3, 0.9)))
        rule = rng.choice((rule, Entropy(rng.choice((0.5, 1, 2)))))
        arguments = (tokens, rng.randint(0, 9), rule, (1,))
    else:
        drafted = tokens[len(tokens) - rng.randint(0, len(tokens) - 1) :]
        needs = rng.choice(((), {"entropies"}, {"ranks"}, DEAR_MEASURES))
        arguments = (tokens, drafted, len(tokens) - len(drafted) - 1, needs)
    return kind(decoder, *arguments), kind(twin, *arguments)


def numbers(reply):
    """Everything in an answer, the discrete and the rest."""
    if isinstance(reply, torch.Tensor):
        return [], reply.flatten().tolist()
    exact = [reply.tokens, getattr(reply, "unsure", None), *getattr(reply, "ranks", ())]
    measured = (getattr(reply, name, ()) for name in ("distances", "entropies"))
    return exact, [*reply.probabilities, *itertools.chain(*measured)]


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("kind", [FeedRequest, DraftRequest, VerifyRequest])
def test_each_gets_what_it_gets_alone(options, kind):
    engine = make_engine(model(), "fast", **options)
    together, twins = decoders(engine, 1), decoders(engine, 1)
    rng = random.Random(7)
    for _ in range(8):
        rows = rng.sample(range(ROWS), rng.randint(2, ROWS))
        asked = [requests(kind, rng, together[i], twins[i]) for i in rows]
        found = answer([request for request, _ in asked])
        for reply, (_, twin) in zip(found, asked, strict=True):
            exact, close = numbers(reply)
            exact_alone, close_alone = numbers(twin.alone())
            assert exact == exact_alone
            # In machine code to the last bit; torch sums in another order for other sizes.
            tolerance = 0 if options["compile"] else 1e-3
            assert close == pytest.approx(close_alone, abs=tolerance, rel=0)
        for decoder, twin in zip(together, twins, strict=True):
            for name in ("length", "forwards", "tokens_fed"):
                assert getattr(decoder, name) == getattr(twin, name)
            length = rng.randint(0, decoder.length)
            decoder.rollback_to(length)
            twin.rollback_to(length)


@pytest.mark.parametrize("options", ENGINES)
def test_rows_of_one_model_are_asked_together_and_others_are_not(options, monkeypatch):
    company = NativeCompany if options["compile"] else TorchCompany
    calls = []
    feed = company.feed
    monkeypatch.setattr(
        company, "feed", lambda self, asked: calls.append(len(asked)) or feed(self, asked)
    )
    engine = make_engine(model(), "fast", **options)
    rows = decoders(engine, 2)
    other = make_engine(tiny_bart(3), "transformers").decoder("small")
    other.read(torch.tensor([[3, 4, 1]]))
    fewer_ids = engine.decoder("large", 9)
    fewer_ids.read(torch.tensor([[3, 4, 1]]))
    asked = [FeedRequest(d, [0]) for d in (*rows[:2], other, rows[2], fewer_ids)]
    found = answer(asked)
    assert calls == [3]  # one forward for the three; the other two are alone
    assert [len(logits[0]) for logits in found] == [16, 16, other.vocab_size, 16, 9]


@pytest.mark.parametrize("options", ENGINES)
def test_a_rule_that_the_engine_does_not_know_decides_in_python(options):
    engine = make_engine(model(), "fast", **options)
    together, twins = decoders(engine, 3), decoders(engine, 3)
    found = answer([DraftRequest(d, [0], 8, Margin(0.2), (1,)) for d in together])
    alone = [d.draft([0], 8, Margin(0.2), (1,)) for d in twins]
    assert [d.tokens for d in found] == [d.tokens for d in alone]
    assert [d.unsure for d in found] == [d.unsure for d in alone]
    assert len({len(d.tokens) for d in found}) > 1  # they do not all stop at once


@pytest.mark.parametrize("options", ENGINES)
def test_ids_that_are_none_are_refused_before_anything_is_read(options):
    rows = decoders(make_engine(model(), "fast", **options), 4)
    with pytest.raises((BildError, IndexError)):
        answer([FeedRequest(d, [99]) for d in rows])
    with pytest.raises(BildError, match="token id 16 is not one of the model's 16"):
        answer([VerifyRequest(d, [0, 3], [16], 0) for d in rows])
