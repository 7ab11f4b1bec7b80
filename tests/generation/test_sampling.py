"""Sampling: distributions against the large model's own, random numbers, and what is refused."""

import itertools
from collections import Counter

import pytest
import torch
from on_engines import ENGINES, needs_compiler
from tiny import letters, sources, tiny_t5
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper

from bild import (
    BiLDConfig,
    BildError,
    BiLDModel,
    DecodeStats,
    bild_generate,
    greedy_generate,
)
from bild.checkpoints.drafter import make_drafter
from bild.checkpoints.early_exit import early_exit
from bild.engines import Decoder, Draft
from bild.generation import sampling
from bild.generation.decoding import Stopping, answer_at_once
from bild.generation.sampled_rules import SAMPLING, Standing, block, speculative
from bild.generation.sampling import Sampler, sampled_alone, sampled_steps
from bild.generation.sequences import stream_of

EXACT = ("speculative", "block")
KINDS = tuple(SAMPLING)
LIMIT = 12
_pairs = {}


def pair_on(options):
    """A pair that agrees now and then; made once an engine."""
    key = tuple(options.items())
    if key not in _pairs:
        shape = {"width": 32, "head_width": 16, "vocab": 12}
        models = tiny_t5(5, **shape), tiny_t5(5, noise=0.4, **shape)
        _pairs[key] = BiLDModel(*models, **options)
    return _pairs[key]


@pytest.fixture
def pair():
    return pair_on({"engine": "fast", "compile": False})


@pytest.fixture(scope="module")
def source():
    return sources(4, 1, vocab=12, longest=9)[0]


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------ distributions


def surprise(counted, expected):
    """The chance of counts so far from an expected distribution: Pearson's chi-square test.

    Outcomes that are expected less than five times are counted as one.
    """
    total = sum(counted.values())
    assert set(counted) <= set(expected), "an impossible outcome"
    pairs = [(counted[outcome], total * p) for outcome, p in expected.items()]
    cells = [pair for pair in pairs if pair[1] >= 5]
    if len(cells) < len(pairs):
        cells.append((total - sum(c[0] for c in cells), total - sum(c[1] for c in cells)))
    distance = sum((seen - awaited) ** 2 / awaited for seen, awaited in cells)
    half = torch.tensor([(len(cells) - 1) / 2, distance / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(*half))


class Table(Decoder):
    """A model whose distribution after each prefix is written down; ids 0 to 2, 2 ends."""

    vocab_size, device = 3, torch.device("cpu")
    size = 3  # longest output, prompt excluded

    def __init__(self, name, seed, spread=1.5):
        self.name, generator = name, torch.Generator().manual_seed(seed)
        prefixes = [p for n in range(4) for p in itertools.product(range(3), repeat=n)]
        scores = spread * torch.randn((len(prefixes), 3), generator=generator)
        self.scores = dict(zip(prefixes, scores.log_softmax(-1), strict=True))
        self.begin(None, None)

    def encode(self, *args):
        raise AssertionError

    def begin(self, encoder_outputs, attention_mask):
        self.fed, self.length, self.forwards, self.tokens_fed = [], 0, 0, 0

    def feed(self, tokens):
        start = len(self.fed)
        self.fed += tokens
        self.length, self.forwards = len(self.fed), self.forwards + 1
        places = range(start + 1, self.length + 1)
        return torch.stack([self.scores[tuple(self.fed[1:end])] for end in places])

    def rollback_to(self, length):
        del self.fed[length:]
        self.length = len(self.fed)

    def outputs(self):
        """The probability of each output, by enumeration."""
        found, open_ = {}, {(): 1.0}
        while open_:
            prefix, mass = open_.popitem()
            if len(prefix) == self.size or prefix[-1:] == (2,):
                found[prefix] = mass
                continue
            for token, p in enumerate(self.scores[prefix].exp().tolist()):
                open_[*prefix, token] = mass * p
        return found


# The small model is sure of some prefixes and not of others, so that drafts end early.
ON_TABLES = {"fallback_threshold": 0.55, "start": "small"}


def sampled_from_tables(config, runs=1000, spread=1.5):
    """The counted outputs of the loop over two tables, and what the large one's are."""
    large, small = Table("large", 1, spread), Table("small", 2, spread)
    stopping, counted = Stopping(1 + Table.size, frozenset({2})), Counter()
    sampler = Sampler(LogitsProcessorList(), seeded())
    for _ in range(runs):
        large.begin(None, None)
        small.begin(None, None)
        y, _ = answer_at_once(sampled_steps(large, small, [0], config, stopping, sampler))
        counted[tuple(y.tokens[1:])] += 1
    return counted, large.outputs()


@pytest.mark.parametrize("num_small_iters", [2, 10])
@pytest.mark.parametrize("kind", EXACT)
def test_exact_rules_sample_what_the_large_model_samples(kind, num_small_iters):
    config = BiLDConfig(**ON_TABLES, sampling=kind, num_small_iters=num_small_iters)
    assert surprise(*sampled_from_tables(config)) > 1e-4


def own_samples_instead_of_what_is_left(p, q, drafted, chances):
    standing = speculative(p, q, drafted, chances)
    return standing._replace(weights=p[standing.kept] if standing.kept < len(p) else None)


def all_stand(p, q, drafted, chances):
    return Standing(len(drafted), p[len(drafted)] if len(drafted) < len(p) else None)


def too_strict(p, q, drafted, chances):
    return speculative(p, q, drafted, [min(1.0, 1.5 * chance) for chance in chances])


def block_that_forgets_its_weight(p, q, drafted, chances):
    standing = block(p, q, drafted, chances)
    weights = None if standing.weights is None else speculative(p, q, drafted, chances).weights
    return Standing(standing.kept, weights)


@pytest.mark.parametrize(
    "wrong",
    [own_samples_instead_of_what_is_left, all_stand, too_strict, block_that_forgets_its_weight],
)
def test_the_same_test_finds_wrong_rules(wrong, monkeypatch):
    monkeypatch.setitem(SAMPLING, "speculative", lambda _: wrong)
    config = BiLDConfig(**ON_TABLES, sampling="speculative")
    assert surprise(*sampled_from_tables(config)) < 1e-6


def test_the_same_test_finds_that_bild_is_lossy():
    config = BiLDConfig(**ON_TABLES, sampling="bild", rollback_threshold=1.0)
    assert surprise(*sampled_from_tables(config)) < 1e-6


def test_the_same_test_finds_drafts_that_throw_unlikely_tokens_away(monkeypatch):
    """Where a draft ends must not depend on the token that is drawn there."""
    draw = sampling._draw

    def choosy(decoder, y, *told):
        draft, q, ended = yield from draw(decoder, y, *told)
        if draft.tokens and float(q[-1, draft.tokens[-1]]) < 0.4:
            y.cut(len(y.tokens) - 1)
            decoder.rollback_to(len(y.tokens))
            return Draft(draft.tokens[:-1], draft.probabilities[:-1], None), q[:-1], False
        return draft, q, ended

    monkeypatch.setattr(sampling, "_draw", choosy)
    config = BiLDConfig(0.0, num_small_iters=1, start="small", sampling="speculative")
    assert surprise(*sampled_from_tables(config, spread=0.4)) < 1e-6


def drafts(p, q, generator, count):
    """Drafts of a small model whose distributions (T, V) are the same after any prefix."""
    return [
        (torch.multinomial(q, 1, generator=generator)[:, 0].tolist(),
         torch.rand(len(q), generator=generator).tolist())
        for _ in range(count)
    ]  # fmt: skip


def test_of_a_block_at_least_as_many_tokens_stand():
    p, q = torch.rand((4, 5), generator=seeded(1)), torch.rand((3, 5), generator=seeded(2))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    drawn = drafts(p, q, seeded(), 3000)
    stand = {rule: sum(rule(p, q, *one).kept for one in drawn) for rule in (speculative, block)}
    assert stand[block] > 1.01 * stand[speculative]


@pytest.mark.parametrize("rule", [speculative, block])
def test_all_of_a_draft_stands_that_the_large_model_would_draw_itself(rule):
    p = torch.rand((4, 5), generator=seeded(3))
    p /= p.sum(-1, keepdim=True)
    for drafted, chances in drafts(p, p[:3], seeded(), 50):
        assert rule(p[:3], p[:3], drafted, chances) == Standing(3, None)
        assert torch.equal(rule(p, p[:3], drafted, chances).weights, p[3])


@pytest.mark.parametrize("rule", [speculative, block])
def test_what_the_large_model_never_draws_never_stands(rule):
    p, q = torch.tensor([[0.0, 0.5, 0.5]] * 2), torch.tensor([[0.8, 0.2, 0.0]])
    assert rule(p, q, [0], [0.0]).kept == 0
    assert rule(p, q, [0], [0.0]).weights.tolist() == pytest.approx([0.0, 0.3, 0.5])


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        pytest.param(ENGINES[0].values[0], "block", id="torch"),
        pytest.param(ENGINES[1].values[0], "speculative", marks=needs_compiler, id="compiled"),
        pytest.param(ENGINES[2].values[0], "speculative", id="transformers"),
    ],
)
def test_first_tokens_are_distributed_as_the_large_models(options, kind, source):
    """Both engines, with warpers, as sequences of one source."""
    pair, warped = pair_on(options), {"temperature": 1.3, "top_k": 6, "top_p": 0.95}
    config = BiLDConfig(0.3, sampling=kind, start="small")
    limits = {"max_new_tokens": 2, "return_dict_in_generate": False}
    sampled = pair.generate(
        source, bild_config=config, do_sample=True, num_return_sequences=300, generator=seeded(),
        **limits, **warped,
    )  # fmt: skip
    expected, config = Counter(), GenerationConfig(**warped)
    keep = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 1}
    prompts = [[0]]
    for _ in range(2):
        masses = {tuple(p): expected.pop(tuple(p), 1.0) for p in prompts}
        prompts = []
        for prompt, mass in masses.items():
            if prompt[-1:] == (1,):
                expected[prompt] += mass
                continue
            scores = pair.large.generate(
                source, do_sample=True, generation_config=config, **keep,
                decoder_input_ids=torch.tensor([prompt]),
            ).scores[0][0]  # fmt: skip
            for token, p in enumerate(scores.softmax(-1).tolist()):
                if p:
                    expected[*prompt, token] += mass * p
                    prompts.append([*prompt, token])
    counted = Counter(
        tuple(row[: row.index(1) + 1] if 1 in row else row) for row in sampled.tolist()
    )
    assert surprise(counted, expected) > 1e-4


# ------------------------------------------------------------------------------ random numbers

WARPED = [
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 3},
    {"min_p": 0.1, "top_k": 0},
    {"typical_p": 0.8, "repetition_penalty": 1.3},
    {"epsilon_cutoff": 0.02, "eta_cutoff": 0.02, "renormalize_logits": True},
    {"top_h": 0.7, "min_new_tokens": 6},
]


@pytest.mark.parametrize("options", ENGINES)
@pytest.mark.parametrize("warped", WARPED, ids=str)
def test_one_model_draws_what_transformers_draws(options, warped, source):
    pair = pair_on(options)
    torch.manual_seed(5)
    own = pair.large.generate(source, do_sample=True, max_new_tokens=LIMIT, **warped)
    torch.manual_seed(5)
    assert torch.equal(pair.sample(source, max_new_tokens=LIMIT, **warped).sequences, own)
    found = pair.sample(source, max_new_tokens=LIMIT, generator=seeded(5), **warped)
    assert torch.equal(found.sequences, own)
    assert found.stats.generated_tokens == found.stats.large_forwards == own.shape[1] - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_again_and_another_one_something_else(pair, source, kind):
    def drawn(**seed):
        config = BiLDConfig(0.3, sampling=kind)
        options = {"do_sample": True, "max_new_tokens": LIMIT, "num_return_sequences": 5}
        return pair.generate(source, bild_config=config, **options, **seed).sequences.tolist()

    assert drawn(generator=seeded(1)) == drawn(generator=seeded(1)) != drawn(generator=seeded(2))
    torch.manual_seed(3)
    first, second = drawn(), drawn()
    torch.manual_seed(3)
    assert drawn() == first != second


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        pytest.param(ENGINES[0].values[0], "block", id="torch"),
        pytest.param(ENGINES[1].values[0], "speculative", marks=needs_compiler, id="compiled"),
        pytest.param(ENGINES[2].values[0], "bild", id="transformers"),
    ],
)
def test_a_rows_tokens_do_not_depend_on_the_rows_beside_it(options, kind):
    pair, config = pair_on(options), BiLDConfig(0.3, sampling=kind)
    rows = sources(9, 3, vocab=12)
    shared = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 2}
    found = {
        size: [
            (o.sequences.tolist(), o.row_stats)
            for o in pair.generate_many(rows, config, batch_size=size, generator=seeded(), **shared)
        ]
        for size in (1, 4)
    }
    assert found[1] == found[4]
    assert [len(stats) for _, stats in found[1]] == [2, 2, 2]
    # Each output by itself, with the numbers of its own.
    seed = int(torch.randint(2**62, (), generator=seeded()))
    del shared["num_return_sequences"]
    for i, row in enumerate(rows):
        for j in range(2):
            one = pair.generate(row, bild_config=config, generator=stream_of(seed, i, j), **shared)
            assert one.row_stats[0] == found[1][i][1][j]
            alone = one.sequences[0].tolist()
            assert found[1][i][0][j][: len(alone)] == alone


def test_a_batch_gives_so_many_sequences_of_each_source(pair):
    """(B, S) -> (B n, T), in transformers' order; both doors; the encoder runs once a source."""
    rows = torch.cat([row[:, -4:] for row in sources(11, 9, vocab=12) if row.shape[1] >= 4][:2])
    options = {"do_sample": True, "max_new_tokens": LIMIT, "num_return_sequences": 3}
    read = []
    decoder = type(pair.models["large"].engine.decoder("large", 12))
    with pytest.MonkeyPatch.context() as patch:
        encode = decoder.encode
        patch.setattr(
            decoder, "encode", lambda own, *given: read.append(own) or encode(own, *given)
        )
        found = pair.generate(rows, generator=seeded(), **options)
    assert len(found.sequences) == len(found.row_stats) == 6
    assert len(read) == 2 * 2  # two models
    plugged = pair.large.generate(
        rows, custom_generate=bild_generate, small_model=pair.small, generator=seeded(), **options
    )
    assert torch.equal(plugged, found.sequences)


def test_sources_may_bring_generators_of_their_own(pair):
    rows = sources(9, 3, vocab=12)
    options = {"do_sample": True, "max_new_tokens": LIMIT}
    given = [{"input_ids": row, "generator": seeded(i)} for i, row in enumerate(rows)]
    for i, output in enumerate(pair.generate_many(given, batch_size=2, **options)):
        alone = pair.generate(rows[i], generator=seeded(i), **options)
        assert torch.equal(output.sequences, alone.sequences)


@pytest.mark.parametrize("which", ["large", "small"])
def test_one_model_draws_many_as_it_draws_each(pair, which):
    rows, options = sources(9, 5, vocab=12), {"temperature": 1.3, "max_new_tokens": LIMIT}
    given = [{"input_ids": row, "generator": seeded(i)} for i, row in enumerate(rows)]
    found = list(pair.sample_many(given, which=which, batch_size=3, **options))
    for i, output in enumerate(found):
        alone = pair.sample(rows[i], which=which, generator=seeded(i), **options)
        assert torch.equal(output.sequences, alone.sequences)
    assert len({str(output.sequences.tolist()) for output in found}) == 5
    single = pair.models[which].sample_many(rows, generator=seeded(), **options)
    again = pair.sample_many(rows, which=which, batch_size=2, generator=seeded(), **options)
    assert [o.sequences.tolist() for o in single] == [o.sequences.tolist() for o in again]


def test_greedy_batches_leave_torchs_random_numbers_alone(pair):
    rows = sources(9, 2, vocab=12)
    before = torch.get_rng_state()
    list(pair.generate_many(rows, max_new_tokens=4))
    list(pair.greedy_many(rows, max_new_tokens=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_of_one_seed_differ_by_place():
    firsts = {
        float(torch.rand((), generator=stream_of(0, i, j))) for i in range(40) for j in range(5)
    }
    assert len(firsts) == 200
    assert stream_of(1, 0).initial_seed() != stream_of(0, 1).initial_seed()


# ------------------------------------------------------------------------------ the likeliest


@pytest.mark.parametrize("options", ENGINES[:2])
@pytest.mark.parametrize("certain", [{"top_k": 1}, {"temperature": 1e-6}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_where_chance_is_taken_away_the_output_is_greedy(kind, certain, options):
    pair = pair_on(options)
    for row in sources(13, 3, vocab=12):
        config = BiLDConfig(0.4, rollback_threshold=3.0, sampling=kind)
        sampled = pair.generate(
            row, bild_config=config, do_sample=True, max_new_tokens=LIMIT, **certain
        )
        exact = BiLDConfig(0.4, acceptance="exact")
        greedy = pair.generate(row, bild_config=exact, do_sample=False, max_new_tokens=LIMIT)
        assert torch.equal(sampled.sequences, greedy.sequences)
        assert sampled.stats == greedy.stats


@pytest.mark.parametrize("variant", ["authors", "paper", "verified"])
def test_sampled_bild_without_chance_follows_every_variant(pair, variant):
    """Certain distributions are infinitely far from what they differ from."""
    for row in sources(13, 4, vocab=12):
        config = BiLDConfig(0.4, 1.0, variant=variant, sampling="bild")
        options = {"max_new_tokens": LIMIT, "bild_config": config}
        sampled = pair.generate(row, do_sample=True, temperature=1e-6, **options)
        strict = BiLDConfig(0.4, 0.0, variant=variant)
        greedy = pair.generate(row, **{**options, "bild_config": strict})
        if variant == "verified":
            assert torch.equal(sampled.sequences, greedy.sequences)
        assert sampled.stats.generated_tokens == sampled.sequences.shape[1] - 1


@pytest.mark.parametrize("small", ["drafter", "early exit"])
def test_small_models_without_an_encoder_of_their_own_draft_too(small, source):
    """A drafter knows a part of the vocabulary: all else has no chance, with any warper."""
    large = tiny_t5(3, width=32, head_width=16, vocab=12)
    shortlist = torch.tensor([1, 3, 4, 7, 8, 11])
    one_layer = early_exit(large, 1)
    drafts = make_drafter(large, shortlist=shortlist) if small == "drafter" else one_layer
    pair = BiLDModel(large, drafts, engine="fast", compile=False)
    greedy = pair.greedy(source, max_new_tokens=LIMIT).sequences
    shared = {"do_sample": True, "max_new_tokens": LIMIT}
    for kind, warped in zip(itertools.cycle(KINDS), WARPED, strict=False):
        given = {"bild_config": BiLDConfig(0.3, sampling=kind), **shared}
        found = pair.generate(source, num_return_sequences=2, **warped, **given)
        assert found.stats == sum(found.row_stats, DecodeStats())
        assert torch.equal(pair.generate(source, top_k=1, **given).sequences, greedy)


# ------------------------------------------------------------------------------ what goes with it


@pytest.mark.parametrize("kind", KINDS)
def test_streams_traces_scores_and_counts_tell_of_the_output(pair, source, kind):
    class Kept:
        def __init__(self):
            self.tokens = []

        def put(self, tokens):
            self.tokens += tokens.flatten().tolist()

        def end(self):
            self.tokens.append("end")

    config = BiLDConfig(0.4, 1.0, sampling=kind)
    options = {"do_sample": True, "max_new_tokens": LIMIT, "bild_config": config, "top_k": 4}
    for seed in range(6):
        kept, given = Kept(), {**options, "output_scores": True, "output_logits": True}
        output = pair.generate(
            source, streamer=kept, output_trace=True, generator=seeded(seed), **given
        )
        tokens, stats = output.sequences[0].tolist(), output.stats
        assert kept.tokens == [*tokens, "end"]
        assert [t.token for t in output.trace.kept] == tokens[1:]
        assert len(output.scores) == len(output.logits) == stats.generated_tokens
        for token, scores in zip(tokens[1:], output.scores, strict=True):
            assert scores[0].isfinite().sum() == 4
            assert scores[0, token].isfinite()
        assert stats.drafted_tokens == stats.verified_tokens + stats.rolled_back_tokens
        assert stats.large_forwards >= stats.verifications
        plain = pair.generate(source, generator=seeded(seed), **options)
        assert torch.equal(plain.sequences, output.sequences)
        assert plain.stats == stats


def test_stop_strings_end_what_is_drawn(pair, source):
    stop = {"stop_strings": ["h"], "tokenizer": letters(12)}
    ended = 0
    for seed in range(8):
        options = {"do_sample": True, "max_new_tokens": LIMIT, "generator": seeded(seed)}
        tokens = pair.generate(source, bild_config=BiLDConfig(0.3), **options, **stop).sequences[0]
        ended += tokens[-1] == 7
        assert 7 not in tokens[1:-1].tolist()
    assert ended


def test_a_processor_of_ones_own_acts_on_both_models(pair, source):
    def even(ids, scores):
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 1, -torch.inf)

    options = {"do_sample": True, "max_new_tokens": LIMIT, "num_return_sequences": 4}
    found = pair.generate(source, logits_processor=[even], generator=seeded(), **options)
    assert not (found.sequences % 2).any()


def test_texts_give_lists_of_samples():
    tokenizer = letters(12)
    models = pair_on({"engine": "fast", "compile": False})
    pair = BiLDModel(models.large, models.small, engine="fast", compile=False, tokenizer=tokenizer)
    options = {"do_sample": True, "max_new_tokens": 5}
    written = pair(["dhgb", "fegb"], num_return_sequences=3, generator=seeded(), **options)
    assert [len(texts) for texts in written] == [3, 3]
    assert len(pair("dhgb", num_return_sequences=3, generator=seeded(), **options)) == 3
    assert isinstance(pair("dhgb", generator=seeded(), **options), str)


def test_the_first_warper_and_what_follows_do_not_change_how_sure_a_model_is():
    def doubled(ids, scores):
        return 2 * scores

    raw = torch.tensor([1.0, 2.0])
    cold = TemperatureLogitsWarper(0.5)
    scores, plain = Sampler(LogitsProcessorList([doubled, cold, doubled])).scores([0], raw)
    assert scores.processed.tolist() == [8.0, 16.0]
    assert plain.tolist() == [2.0, 4.0]
    assert raw.tolist() == [1.0, 2.0]


def test_one_model_alone_with_tables_draws_from_its_table():
    large, counted = Table("large", 1), Counter()
    sampler = Sampler(LogitsProcessorList(), seeded())
    for _ in range(1000):
        large.begin(None, None)
        stopping = Stopping(1 + Table.size, frozenset({2}))
        y, _ = answer_at_once(sampled_alone(large, [0], stopping, sampler))
        counted[tuple(y.tokens[1:])] += 1
    assert surprise(counted, large.outputs()) > 1e-4


# ------------------------------------------------------------------------------ refused

REFUSED = [
    ({"acceptance": "exact"}, "acceptance='exact' does not judge drafts with do_sample=True"),
    ({"variant": "authors"}, "variant='authors' does not judge drafts with do_sample=True"),
    ({"acceptance": "regret:budget=4", "sampling": "bild"}, "judges greedy drafts alone"),
    ({"lookahead": 1}, "lookahead=1 guesses"),
    ({"copying": "first"}, "copying='first' drafts without probabilities"),
    ({"drafting": "adaptive"}, "goes by the clock"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=str)
def test_settings_of_greedy_drafts_are_refused(pair, source, fields, message):
    with pytest.raises(BildError, match=message):
        pair.generate(source, bild_config=BiLDConfig(**fields), do_sample=True, max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": torch.Generator()}, "give do_sample=True"),
        ({"generator": 3, "do_sample": True}, "must be a torch.Generator on the CPU.*got a int"),
        ({"num_return_sequences": 0, "do_sample": True}, "num_return_sequences"),
        ({"num_return_sequences": 2, "do_sample": True, "output_trace": True}, "output_trace="),
        ({"num_return_sequences": 2, "do_sample": True, "streamer": object()}, "streamer="),
    ],
)
def test_calls_that_make_no_sense_are_refused(pair, source, options, message):
    with pytest.raises(BildError, match=message):
        pair.generate(source, max_new_tokens=4, **options)


def test_sampling_is_one_of_three():
    with pytest.raises(BildError, match="sampling must be one of speculative, block, bild"):
        BiLDConfig(sampling="nucleus")


def test_greedy_doors_draw_nothing(pair, source):
    for call in (pair.greedy, pair.models["large"].greedy):
        with pytest.raises(BildError, match="use sample in place of do_sample=True"):
            call(source, do_sample=True, max_new_tokens=4)
    with pytest.raises(BildError, match="greedy_generate draws nothing"):
        pair.large.generate(
            source, custom_generate=greedy_generate, do_sample=True, max_new_tokens=4
        )
    with pytest.raises(BildError, match="give do_sample=True"):
        pair.large.generate(
            source, custom_generate=bild_generate, small_model=pair.small, generator=seeded(),
            max_new_tokens=4,
        )  # fmt: skip
