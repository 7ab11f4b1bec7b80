"""Sessions are the engine's own: reused, never shared, and on the weights as they are now."""

import copy
import pickle
import threading
import time

import pytest
import torch
from on_engines import needs_compiler
from tiny import sources, tiny_bart, tiny_t5
from torch import nn

from bild import BiLDConfig, BildError, BiLDModel
from bild.engines import make_engine, snapshot
from bild.engines.t5_native import NativeSession
from bild.generation.single import SingleModel

COMPILED = [False, pytest.param(True, marks=needs_compiler)]
CONFIG = BiLDConfig(0.6, 1.0)


def tiny(seed=0, **kwargs):
    return tiny_t5(seed, width=32, head_width=16, **kwargs)


def new_pair(compiled, seed=1):
    return BiLDModel(tiny(seed), tiny(seed, noise=0.3), engine="fast", compile=compiled)


def written(pair, given=None):
    given = sources(7, 3, longest=30) if given is None else given
    return [
        call.sequences.tolist()
        for source in given
        for call in (
            pair.generate(source, bild_config=CONFIG, max_new_tokens=20),
            pair.greedy(source, max_new_tokens=20),
            pair.greedy(source, which="small", max_new_tokens=20),
        )
    ]


# ------------------------------------------------------------------------------ reused


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_session_is_used_again_and_by_one_at_a_time(compiled):
    engine = make_engine(tiny(), "fast", compile=compiled)
    first, second = engine.decoder("large"), engine.decoder("small", 9)
    session = first._session
    assert second._session is not session
    first.release()
    third = engine.decoder("small", 9)
    assert third._session is session
    assert (third.name, third.vocab_size) == ("small", 9)
    first.release()  # it has nothing left to give back
    assert engine.decoder("large")._session is not session
    for call in (lambda: first.read(torch.tensor([[3, 1]])), lambda: first.encode(None, None)):
        with pytest.raises(BildError, match="the large decoder was released"):
            call()


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_used_session_computes_what_a_new_one_does(compiled):
    """Long and short sources and outputs, other vocabularies and threads, in turn."""
    model = tiny(4)
    engine = make_engine(model, "fast", compile=compiled)
    given = [*sources(5, 4, longest=60), torch.randint(3, 16, (1, 300)), torch.tensor([[1]])]
    before = torch.get_num_threads()
    try:
        for i, source in enumerate([*given, *reversed(given)]):
            torch.set_num_threads(1 + i % 3)
            vocab_size = (16, 9)[i % 2]
            used = engine.decoder("large", vocab_size)
            used.read(source)
            fresh = make_engine(model, "fast", compile=compiled).decoder("large", vocab_size)
            fresh.read(source)
            for tokens in ([0], [3, 4, 5, 6, 7], [8, 3] * (1 + 60 * (i % 2))):
                found = used.feed(tokens)
                assert found.shape == (len(tokens), vocab_size)
                torch.testing.assert_close(found, fresh.feed(tokens), rtol=1e-5, atol=1e-4)
            used.release()
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_memory_keeps_its_place_until_more_is_needed():
    engine = make_engine(tiny(), "fast", compile=True)

    def addresses(source, tokens):
        decoder = engine.decoder("large")
        decoder.read(source)
        for _ in range(tokens):
            decoder.feed([3])
        session: NativeSession = decoder._session
        struct = session._session
        decoder.release()
        return (
            *(struct.keys, struct.values, struct.cross_keys, struct.cross_values),
            *(struct.logits, struct.scratch),
        )

    long, short = torch.full((1, 90), 5), torch.tensor([[5, 6, 1]])
    first = addresses(long, 40)
    for source, tokens in ((short, 3), (long, 40), (short, 40), (long, 1)):
        assert addresses(source, tokens) == first
    assert addresses(torch.full((1, 900), 5), 300) != first


@needs_compiler
def test_encoding_another_source_leaves_a_sequence_whole():
    """Both work in the same scratch memory, which has to grow for a longer source."""
    decoder = make_engine(tiny(), "fast", compile=True).decoder("large")
    decoder.read(torch.tensor([[5, 6, 1]]))
    expected = decoder.feed([0, 3, 4]).clone()
    decoder.rollback_to(0)
    decoder.encode(torch.full((1, 2000), 5), None)
    assert torch.equal(decoder.feed([0, 3, 4]), expected)


FREE = {"suppress_tokens": [1]}  # no end of sequence


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_pair_gives_its_sessions_back_whatever_happens(compiled):
    pair = new_pair(compiled)
    source = torch.tensor([[5, 9, 3, 1]])

    def idle():
        return [len(m.engine.arranged()._idle) for m in pair.models.values()]

    expected = pair.generate(source, bild_config=CONFIG, max_new_tokens=20).sequences
    assert idle() == [1, 1]

    class Full:
        def put(self, value):
            if value.numel() == 1 and value.ndim == 1:
                raise OSError("disk full")

        def end(self):
            pass

    class Stopped:
        """As Ctrl-C in the middle of an output."""

        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > 3:
                raise KeyboardInterrupt
            return torch.tensor([False])

    calls = (
        lambda: pair.generate(source, stopping_criteria=[Stopped()], max_new_tokens=5, **FREE),
        lambda: pair.greedy(source, stopping_criteria=[Stopped()], max_new_tokens=5, **FREE),
        lambda: pair.generate(source, streamer=Full(), max_new_tokens=5),
        lambda: pair.greedy(source, streamer=Full(), max_new_tokens=5),
        lambda: pair.generate(source, torch.zeros_like(source), max_new_tokens=5),
        lambda: pair.generate(source, bild_config="none", max_new_tokens=5),
    )
    for call in calls:
        with pytest.raises((OSError, BildError, KeyboardInterrupt)):
            call()
        assert idle() == [1, 1]
    found = pair.generate(source, bild_config=CONFIG, max_new_tokens=20).sequences
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("compiled", COMPILED)
def test_threads_share_a_pair(compiled):
    pair = new_pair(compiled)
    given = sources(9, 8, longest=40)
    expected = written(pair, given)
    found = {}

    def run(number):
        found[number] = [written(pair, given) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [expected] * 3 for i in range(4)}
    assert 1 <= len(pair.engine.arranged()._idle) <= 4


@pytest.mark.parametrize("make", [tiny, tiny_bart])
def test_a_decoder_says_how_long_its_source_took(make, monkeypatch):
    decoder = make_engine(make()).decoder("large")
    assert decoder.encoder_seconds == 0
    start = time.perf_counter()
    decoder.read(torch.tensor([[5, 6, 1]]))
    assert 0 < decoder.encoder_seconds < time.perf_counter() - start
    for method in ("encode", "begin"):
        slow(decoder, method, monkeypatch)
    decoder.read(torch.tensor([[5, 6, 1]]))
    assert decoder.encoder_seconds > 0.1
    before = decoder.encoder_seconds
    decoder.feed([0, 3])
    assert decoder.encoder_seconds == before


def slow(decoder, method, monkeypatch):
    plain = getattr(decoder, method)

    def wait(*args):
        time.sleep(0.06)
        return plain(*args)

    monkeypatch.setattr(decoder, method, wait)


# ------------------------------------------------------------------------------ weights that change


def load_others(model):
    model.load_state_dict(tiny(8).state_dict())


def add_in_place(model):
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[0].SelfAttention.v.weight.add_(1.0)


def train_a_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    labels = torch.tensor([[3, 4, 5, 1]])
    model.train()
    model(input_ids=labels, labels=labels).loss.backward()
    optimizer.step()
    model.eval()


def new_data(model):
    layer = model.encoder.block[0].layer[-1].DenseReluDense.wi
    layer.weight.data = -layer.weight.data


def new_parameter(model):
    layer = model.decoder.block[1].layer[1].EncDecAttention
    layer.k.weight = nn.Parameter(-layer.k.weight.detach())


def new_part(model):
    layer = model.decoder.block[1].layer[1].EncDecAttention
    layer.o = nn.Linear(layer.o.in_features, layer.o.out_features, bias=False)


def new_head(model):
    model.set_output_embeddings(copy.deepcopy(model.lm_head))
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)


def half_precision(model):
    model.bfloat16()


CHANGES = [load_others, add_in_place, train_a_step, new_data, new_parameter, new_part, new_head]


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("change", [*CHANGES, half_precision])
def test_changed_weights_are_read_anew(compiled, change):
    pair = new_pair(compiled)
    before = written(pair)
    for model in (pair.large, pair.small):
        torch.manual_seed(4)
        change(model)
    after = written(pair)
    fresh = BiLDModel(
        copy.deepcopy(pair.large), copy.deepcopy(pair.small), engine="fast", compile=compiled
    )
    assert str(pair.engine) == str(fresh.engine)
    assert after == written(fresh)
    if change is not half_precision:  # which may well write the same
        assert after != before


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_decoder_in_use_reads_changed_weights_at_its_next_source(compiled):
    model = tiny(2)
    (source,) = sources(3, 1)
    decoder = make_engine(model, "fast", compile=compiled).decoder("large")
    plain = make_engine(model, "transformers").decoder("large")
    for change in (lambda m: None, load_others, new_parameter):
        change(model)
        states = plain.encode(source, None)
        for start in (
            lambda: decoder.read(source),
            lambda: decoder.begin(states, None),  # noqa: B023 (called in this turn)
        ):
            start()
            plain.read(source)
            torch.testing.assert_close(
                decoder.feed([0, 3]), plain.feed([0, 3]), rtol=1e-3, atol=5e-3
            )


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_model_that_became_another_is_refused(compiled):
    pair = new_pair(compiled)
    written(pair)
    layer = pair.large.decoder.block[0].layer[0].SelfAttention
    layer.q = nn.Sequential(layer.q)
    with pytest.raises(BildError, match=r"SelfAttention.q' is a .*Sequential.*new BiLDModel"):
        written(pair)
    layer.q = layer.q[0]
    if compiled:
        pair.large.half()
        with pytest.raises(BildError, match="float16, which the compiled engine does not"):
            written(pair)


def test_a_large_model_is_looked_at_in_full_every_so_often(monkeypatch):
    model = tiny(2, layers=6, decoder_layers=6)
    clock = [100.0]
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: clock[0])
    parameters = list(model.parameters())
    assert len(parameters) > snapshot.FEW
    taken = snapshot.Snapshot(model)
    spread = [i * (len(parameters) - 1) // (snapshot.SAMPLES - 1) for i in range(snapshot.SAMPLES)]
    for i, parameter in enumerate(parameters):
        with torch.no_grad():
            parameter.add_(1)
        assert taken.is_current() == (i not in spread)
        clock[0] += 2 * snapshot.FULL_SECONDS
        assert not taken.is_current()
        taken = snapshot.Snapshot(model)
    model.load_state_dict(model.state_dict())
    assert not taken.is_current()  # a change of everything is noticed at once


def test_a_hook_or_a_forward_put_on_later_is_noticed():
    for change in (
        lambda part: part.register_forward_hook(lambda *call: None),
        lambda part: part.register_forward_pre_hook(lambda *call: None),
        lambda part: setattr(part, "forward", part.forward),
    ):
        pair = new_pair(False)
        written(pair)
        change(pair.small.decoder.block[0])
        with pytest.raises(BildError, match=r"block.0' has (forward hooks|a forward of its own)"):
            written(pair)


def test_a_snapshot_knows_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = tiny(1)
    taken = snapshot.Snapshot(model)
    assert taken.is_current()
    model.lm_head.weight = nn.Parameter(torch.zeros(16, 32))
    assert not taken.is_current()


# ------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize(
    "options",
    [
        {"engine": "transformers"},
        {"engine": "fast", "compile": False},
        pytest.param({"compile": True}, marks=needs_compiler),
        pytest.param({"compile": True, "precision": "int8"}, marks=needs_compiler),
    ],
)
def test_a_pair_can_be_copied_and_pickled(copied, options):
    pair = BiLDModel(tiny(1), tiny(1, noise=0.3), **options)
    expected = written(pair)
    other = copied(pair)
    assert other.large is not pair.large
    assert other.models["large"].engine.model is other.large
    assert str(other.engine) == str(pair.engine)
    assert written(other) == expected
    load_others(other.large)
    assert written(other) != expected
    assert written(pair) == expected


@needs_compiler
def test_of_equally_likely_tokens_the_first_is_written():
    """The vocabulary is searched in parts, by vectors: neither may change which one is first."""
    model = tiny(3, vocab=301)
    weight = model.lm_head.weight
    with torch.no_grad():  # from 37 on rows repeat; those before hardly score
        weight[:37] *= 0.01
        weight[37:] = weight[37:44].repeat(38, 1)[: 301 - 37]
    alone = SingleModel(model, engine="fast", compile=True)
    chosen = set()
    for source in sources(3, 4):
        chosen |= {*alone.greedy(source, max_new_tokens=12).sequences[0].tolist()}
    assert max(chosen) in range(37, 44)
