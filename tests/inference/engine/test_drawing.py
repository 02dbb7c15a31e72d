"""inference/engine/drawing.py against transformers' logits processors, and against chance."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from srpo_jax.inference.engine import drawing
from srpo_jax.inference.engine.drawing import Sampling, Seen, allowed_ids, draw
from tests.support.chance import fits

VOCABULARY, PADDED = 387, 400
BLOCKED = np.asarray([0, 3, 127, 128, 386], np.int32)
ALLOWED = allowed_ids(VOCABULARY, PADDED, BLOCKED)
FILTERS = {
    "all": Sampling(),
    "cold": Sampling(temperature=0.5),
    "top_k": Sampling(temperature=0.7, top_k=7),
    "top_p": Sampling(top_p=0.9),
    "a cold top_p": Sampling(temperature=0.5, top_p=0.8),
    "one is enough": Sampling(top_p=1e-6),
    "min_p": Sampling(temperature=2.0, min_p=0.05),
    "together": Sampling(0.8, top_p=0.95, top_k=50, min_p=0.02, repetition_penalty=1.3),
    "more than there are": Sampling(top_k=1000, top_p=0.999),
    "repetition": Sampling(repetition_penalty=0.6),
}


def random_logits(rows: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(rows).normal(0, scale, (rows, PADDED)).astype(np.float32)


def seen_of(before: np.ndarray, drawn: np.ndarray) -> Seen:
    """Of ids [rows, n] each."""
    marks = [np.zeros((len(ids), PADDED), bool) for ids in (before, drawn)]
    for mark, ids in zip(marks, (before, drawn), strict=True):
        np.put_along_axis(mark, ids, True, 1)
    return Seen(*map(jnp.asarray, marks))


def transformers_probabilities(logits: np.ndarray, ids: np.ndarray, sampling: Sampling):
    """float32 [rows, V], by transformers' processors in the order in which it applies them."""
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    wanted = [
        (sampling.repetition_penalty != 1, "RepetitionPenalty", sampling.repetition_penalty),
        (True, "Temperature", sampling.temperature),
        (sampling.top_k, "TopK", sampling.top_k),
        (sampling.top_p < 1, "TopP", sampling.top_p),
        (sampling.min_p, "MinP", sampling.min_p),
    ]
    scores = torch.tensor(np.where(ALLOWED, logits, -np.inf))
    for used, name, value in wanted:
        kind = "LogitsProcessor" if name == "RepetitionPenalty" else "LogitsWarper"
        if used:
            scores = getattr(processors, name + kind)(value)(torch.tensor(ids), scores)
    return torch.softmax(scores, -1).numpy()


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_kept_and_how_likely_it_is_are_transformers(name):
    """The same ids for 200 rows of logits, with the same probabilities to 1e-6: penalties, then
    temperature, top_k, top_p and min_p."""
    sampling, logits = FILTERS[name], random_logits(200)
    rng = np.random.default_rng(1)
    before, drawn = (rng.integers(0, VOCABULARY, (200, n)) for n in (20, 6))
    expected = transformers_probabilities(logits, np.concatenate([before, drawn], 1), sampling)
    ours = jnp.where(ALLOWED, logits, -jnp.inf)
    ours = drawing._penalised(ours, seen_of(before, drawn), sampling)
    ours = np.asarray(jax.nn.softmax(drawing._filtered(ours / sampling.temperature, sampling)))
    np.testing.assert_array_equal(ours > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_presence_is_of_what_was_drawn_alone():
    """OpenAI's presence penalty: subtracted once from the logit of an id that the branch has, not
    from those of the prompt, and behind the division of the other penalty."""
    logits = np.asarray([[2.0, -2.0, 2.0, 1.0]], np.float32)
    seen = Seen(jnp.asarray([[1, 0, 0, 0]], bool), jnp.asarray([[0, 1, 1, 0]], bool))
    found = drawing._penalised(logits, seen, Sampling(presence_penalty=0.5))
    np.testing.assert_array_equal(found, [[2.0, -2.5, 1.5, 1.0]])
    both = Sampling(presence_penalty=0.5, repetition_penalty=2.0)
    np.testing.assert_array_equal(drawing._penalised(logits, seen, both), [[1, -4.5, 0.5, 1]])
    assert both.remembers and not Sampling(top_p=0.5).remembers


@pytest.mark.parametrize(
    "name, vary",
    [("all", "seeds"), ("all", "numbers"), ("a cold top_p", "seeds"), ("together", "seeds")],
)
def test_draws_are_as_likely_as_transformers_says(name, vary):
    """4000 draws, each with a seed of its own or each another token of one branch: chi-square
    against transformers' softmax below its 99.9 % point, and none of what has no probability. The
    log-probability is that of the plain softmax over the allowed ids, whatever was filtered."""
    count, sampling = 4000, FILTERS[name]
    logits = np.repeat(random_logits(1, 1.5), count, axis=0)
    ids = np.repeat(np.arange(1, 60)[None], count, axis=0)
    seeds, number = np.full((count, 2), 7, np.uint32), np.zeros(count, np.int32)
    if vary == "seeds":
        seeds[:, 1] = np.arange(count)
    else:
        number[:] = np.arange(count)
    seen = seen_of(ids, ids[:, :1]) if sampling.remembers else None
    token, logp = jax.jit(draw, static_argnums=4)(logits, ALLOWED, seeds, number, sampling, seen)
    probabilities = transformers_probabilities(logits[:1], ids[:1], sampling)[0]
    fits(np.asarray(token), probabilities)
    plain = jax.nn.log_softmax(jnp.where(ALLOWED, logits[0], -jnp.inf))
    np.testing.assert_allclose(logp, plain[token], atol=1e-5)


def test_a_draw_is_of_its_seed_and_number():
    """All 64 bits of the seed and the number of the token decide; the place in the batch and the
    logits of others do not."""
    logits = random_logits(4, 0.1)
    drawn = jax.jit(functools.partial(draw, sampling=Sampling()))
    seeds = np.asarray([[1, 2], [1, 3], [2, 2], [1, 2]], np.uint32)
    number = np.asarray([0, 0, 0, 1], np.int32)
    flat = np.repeat(logits[:1], 4, axis=0)
    token, _ = drawn(flat, ALLOWED, seeds, number)
    assert len(set(token.tolist())) == 4
    swapped, _ = drawn(flat[::-1], ALLOWED, seeds[::-1], number[::-1])
    assert swapped.tolist() == token.tolist()[::-1]
    beside, _ = drawn(np.concatenate([flat[:1], logits[1:]]), ALLOWED, seeds, number)
    assert beside[0] == token[0]


def test_branches_with_samplings_of_their_own():
    """Greedy, warm, and of a few ids, side by side: each draws what a Sampling of the same two
    draws, whoever else is there."""
    ways = [(0.0, 1.0), (0.7, 1.0), (1.0, 0.8), (0.0, 0.5), (2.0, 0.3)]
    logits = np.repeat(random_logits(4, 1.5), len(ways), axis=0)
    pairs = np.asarray(ways * 4, np.float32)
    seeds = np.stack([np.arange(20), np.arange(20) + 7], 1).astype(np.uint32)
    number = np.arange(20, dtype=np.int32)
    drawn = jax.jit(draw)
    own = drawing.OwnSampling(pairs[:, 0], pairs[:, 1])
    token, logp = drawn(logits, ALLOWED, seeds, number, own)
    for i, (temperature, top_p) in enumerate(ways):
        some = slice(i, None, len(ways))
        rows = logits[some], ALLOWED, seeds[some], number[some]
        alone = jax.jit(draw, static_argnums=4)(*rows, Sampling(temperature, top_p))
        own = drawing.OwnSampling(pairs[some, 0], pairs[some, 1])
        assert token[some].tolist() == alone[0].tolist() == drawn(*rows, own)[0].tolist()
        np.testing.assert_allclose(logp[some], alone[1], atol=1e-5)


ONE = float(np.nextafter(np.float32(1), np.float32(0)))
# With blocks of one id, of two, and filled up to blocks of three; few, as each compiles.
SIZES = (1, 256, 257)
uniforms = st.one_of(st.sampled_from([0.0, ONE, 0.5]), st.floats(0, ONE, width=32))


@st.composite
def rows_of_logits(draws):
    """float32 [V] with ties, ids that are blocked, and one at least that is not."""
    size = draws(st.sampled_from(SIZES))
    values = st.one_of(
        st.floats(-80, 80, width=32), st.sampled_from([0.0, -0.0, 1.0, -1e30, 1e30, -np.inf])
    )
    logits = draws(arrays.arrays(np.float32, size, elements=values, fill=st.just(-np.inf)))
    logits[draws(st.integers(0, size - 1))] = draws(st.floats(-80, 80, width=32))
    return logits


@functools.partial(jax.jit, static_argnums=2)
def filtered_and_drawn(logits, uniform, sampling):
    wanted = drawing._filtered(logits / sampling.temperature, sampling)
    return wanted, drawing._inverse(wanted, uniform)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(
    rows_of_logits(),
    uniforms,
    uniforms,
    st.sampled_from([Sampling(), Sampling(0.5, top_p=0.8, top_k=5, min_p=0.1)]),
)
def test_nothing_that_was_dropped_is_ever_drawn(logits, first, second, sampling):
    """Whatever the uniform numbers are, 0 and just below 1 among them, and however the blocks cut
    the vocabulary: the id is there and has a weight; the likeliest id is never dropped."""
    wanted, token = filtered_and_drawn(logits, np.asarray([first, second], np.float32), sampling)
    assert 0 <= token < len(logits)
    assert np.asarray(wanted)[token] > -np.inf
    assert np.asarray(wanted)[np.argmax(logits)] > -np.inf
    kept = np.asarray(wanted) > -np.inf
    assert not (kept & (logits == -np.inf)).any()
    if kept.any() and not kept.all():  # from some logit up, ties together
        assert logits[kept].min() > logits[~kept].max()


def test_the_uniform_numbers_name_block_and_id():
    """The first number walks over the blocks by their weights, the second over the ids of one."""
    logits = np.full(384, -np.inf, np.float32)  # 128 blocks of three ids
    ids = [3, 5, 120, 383]
    logits[ids] = np.log([1.0, 3.0, 4.0, 8.0])  # blocks weigh 1/4, 1/4 and 1/2
    for first, second, expected in (
        (0.0, 0.0, 3),
        (0.249, 0.249, 3),
        (0.249, 0.251, 5),
        (0.251, 0.9, 120),
        (0.501, 0.0, 383),
        (ONE, ONE, 383),
    ):
        token = filtered_and_drawn(logits, np.asarray([first, second], np.float32), Sampling())[1]
        assert token == expected


def test_sums_that_round_draw_nothing_of_no_weight():
    """A long cumulative sum is made in parts, and need not rise where it should: between two such
    sums lies an id of no weight, which is never drawn, also behind all that have one."""
    rng = np.random.default_rng(0)
    parts = (rng.random((500, 1200)) * (rng.random((500, 1200)) < 0.3)).astype(np.float32)
    parts[:250, 700:] = 0
    sums = np.asarray(jax.jit(functools.partial(jnp.cumsum, axis=-1))(parts))
    rises = (np.diff(sums) > 0) & (parts[:, 1:] == 0)
    rises[:250, :700] = False
    rows = np.flatnonzero(rises.any(1))
    before = np.argmax(rises[rows], axis=1)
    between = (sums[rows, before].astype(np.float64) + sums[rows, before + 1]) / 2
    uniform = (between / sums[rows, -1]).astype(np.float32)
    drawn = np.asarray(jax.jit(drawing._first_above)(parts[rows], uniform))
    assert (rows < 250).sum() > 20 < (rows >= 250).sum()
    assert (parts[rows, drawn] > 0).all()


def test_of_the_likeliest_the_first_is_taken():
    """Greedy: ties go to the lowest allowed id, as argmax has it, whatever the seed; filters keep
    ids of one logit together, 0 and -0 too, though compilers take adding 0 for nothing."""
    logits = np.zeros((3, PADDED), np.float32)
    logits[1, [0, 3, 200, 300]] = 1.0
    logits[2, [386, 399]] = 5.0
    token, logp = draw(
        logits,
        ALLOWED,
        np.asarray([[0, 1], [2, 3], [4, 5]], np.uint32),
        np.zeros(3, np.int32),
        Sampling(temperature=0),
    )
    assert token.tolist() == [1, 200, 1]
    assert logp[0] == pytest.approx(-np.log(VOCABULARY - len(BLOCKED)), abs=1e-5)
    kept = drawing._filtered(jnp.asarray([3.0, 1.0, 3.0, 0.0]), Sampling(top_k=1, top_p=0.1))
    np.testing.assert_array_equal(kept, [3.0, -np.inf, 3.0, -np.inf])
    zeros = jax.jit(functools.partial(drawing._filtered, sampling=Sampling(top_k=1)))
    np.testing.assert_array_equal(zeros(jnp.asarray([-0.0, -1.0, 0.0])), [0.0, -np.inf, 0.0])


ordinary = st.floats(width=32, allow_nan=False, allow_subnormal=False)


@hypothesis.given(arrays.arrays(np.float32, 8, elements=ordinary))
@hypothesis.settings(max_examples=100, deadline=None)
def test_bits_are_in_the_order_of_the_numbers(values):
    """What a threshold is looked for in: less, equal and greater are the same, infinities too, and
    zero has one sign, whatever the compiler makes of adding it."""
    bits = np.asarray(jax.jit(drawing._ordered)(values))
    np.testing.assert_array_equal(bits[:, None] < bits, values[:, None] < values)
