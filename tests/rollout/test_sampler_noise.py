"""The noise that the product draws with: uniform, independent of its neighbours, and the sampler's.

`test_sampling_distribution.py` tests the draw with numpy's noise; here it is the product's own.
"""

import jax
import numpy as np
import pytest
from scipy import stats

from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.programs.draw import RowParams, draw_tokens, row_keys, row_uniforms
from tests.rollout.programs.test_draw import row_params
from tests.rollout.programs.test_draw_distribution import OFF, VOCAB, logits, p_value
from tests.support.rollout.rollout_cases import CONFIG, dense_logits, small_model
from tests.tolerances import CHI_SQUARE_LEVEL

SEEDS, SAMPLES, POSITIONS = 40, 25, 50  # 50,000 draws
FIRST_SEED = 2**31 - 20  # training's seeds are 31 bits: these lie on both sides of a sign
BINS = 8


@jax.jit
def _uniforms(params: RowParams, position_B: jax.Array) -> jax.Array:
    return row_uniforms(row_keys(params), position_B)


def product_noise() -> np.ndarray:
    """[seeds, samples, positions] what the rows of these would be drawn with."""
    shape = (SEEDS, SAMPLES, POSITIONS)
    seed_B, sample_B, position_B = (x.ravel() for x in np.indices(shape, np.int32))
    params = row_params(len(seed_B))._replace(
        seed_B=seed_B.astype(np.uint32) + np.uint32(FIRST_SEED), sample_B=sample_B
    )
    return np.asarray(_uniforms(params, position_B)).reshape(shape)


def added_noise() -> np.ndarray:
    """That of a careless key, made of seed + sample: a seed's samples are the next one's, too."""
    noise = product_noise()
    seed, sample = np.indices((SEEDS, SAMPLES))
    return noise.reshape(-1, POSITIONS)[seed + sample]


def test_the_products_noise_gives_the_exact_distribution():
    uniform_B = product_noise().ravel()
    logit_BV = np.broadcast_to(logits(), (len(uniform_B), VOCAB))
    token_B, _ = jax.jit(draw_tokens)(logit_BV, uniform_B, row_params(len(uniform_B)))
    count_V = np.bincount(np.asarray(token_B), minlength=VOCAB)
    assert p_value(count_V, OFF) > CHI_SQUARE_LEVEL


NEIGHBOURS = {
    "next position": ((0, 0, 0), (0, 0, 1)),
    "next sample": ((0, 0, 0), (0, 1, 0)),
    "next seed": ((0, 0, 0), (1, 0, 0)),
    "next seed, sample before": ((0, 1, 0), (1, 0, 0)),
    "next sample, position before": ((0, 0, 1), (0, 1, 0)),
}


def pair_p_value(noise: np.ndarray, first: tuple, second: tuple) -> float:
    """Of the noise at two places a fixed way apart being uniform on the square."""
    step = np.maximum(first, second)
    ends = [size - s for size, s in zip(noise.shape, step, strict=True)]

    def at(place: tuple) -> np.ndarray:
        cut = tuple(slice(begin, begin + end) for begin, end in zip(place, ends, strict=True))
        return (noise[cut].ravel() * BINS).astype(int)

    count = np.bincount(at(first) * BINS + at(second), minlength=BINS * BINS)
    return float(stats.chisquare(count).pvalue)


@pytest.mark.parametrize("pair", NEIGHBOURS)
def test_neighbours_are_independent(pair):
    assert pair_p_value(product_noise(), *NEIGHBOURS[pair]) > CHI_SQUARE_LEVEL


def test_a_key_that_adds_up_its_parts_is_found():
    found = {p for p, at in NEIGHBOURS.items() if pair_p_value(added_noise(), *at) < 1e-9}
    assert "next seed, sample before" in found


# --- through the sampler ---

CONTEXT = [3, 17, 44, 8, 29, 51, 6, 33, 12]  # 8 of its tokens are cached: two whole pages
PROMPTS, N = 160, 128  # 20,480 draws
DRAWS = PROMPTS * N


@pytest.fixture(scope="module")
def first_tokens() -> np.ndarray:
    """[prompts, n] the first token of each sample of one context, a seed a prompt."""
    sampler = Sampler(
        small_model(),
        SamplerConfig(slots=256, page_size=4, num_pages=1024, max_len=16, decode_steps=1),
    )
    params = SamplingParams(temperature=1.0, n=N, max_tokens=1, seed=range(PROMPTS))
    groups = sampler.generate([CONTEXT] * PROMPTS, params)
    return np.array([[response.token_ids[0] for response in group] for group in groups])


def exact_mass() -> np.ndarray:
    logit_V = dense_logits(small_model(), CONTEXT).astype(np.float64)
    mass_V = np.exp(logit_V - logit_V.max())
    return mass_V / mass_V.sum()


def fit_p_value(count_V: np.ndarray, mass_V: np.ndarray) -> float:
    """Of the counts under the masses; what is expected fewer than 5 times counts as one."""
    expected_V = count_V.sum() * mass_V
    rare = expected_V < 5
    expected, count = (np.append(x[~rare], x[rare].sum()) for x in (expected_V, count_V))
    some = expected > 0
    return float(stats.chisquare(count[some], expected[some]).pvalue)


def test_a_samplers_first_tokens_follow_the_exact_softmax(first_tokens):
    mass_V = exact_mass()
    assert (DRAWS * mass_V > 5).sum() > CONFIG.vocab_size // 2  # not a handful of tokens
    count_V = np.bincount(first_tokens.ravel(), minlength=CONFIG.vocab_size)
    assert count_V.sum() == DRAWS
    assert fit_p_value(count_V, mass_V) > CHI_SQUARE_LEVEL
    sharp_V = mass_V**1.1 / (mass_V**1.1).sum()
    assert fit_p_value(count_V, sharp_V) < CHI_SQUARE_LEVEL  # a temperature 10% off is seen


@pytest.mark.parametrize("axis", [0, 1], ids=["next seed", "next sample"])
def test_a_samplers_neighbours_are_independent(first_tokens, axis):
    mass_V = exact_mass()
    # Tokens fall into four classes of about a quarter of the mass each.
    class_V = np.minimum((np.cumsum(mass_V) - mass_V / 2) * 4, 3).astype(int)
    share_C = np.bincount(class_V, mass_V, minlength=4)
    kind = np.moveaxis(class_V[first_tokens], axis, 0)
    pairs = (kind[:-1] * 4 + kind[1:]).ravel()
    count = np.bincount(pairs, minlength=16)
    assert fit_p_value(count, np.outer(share_C, share_C).ravel()) > CHI_SQUARE_LEVEL


def test_the_noise_of_a_row_is_its_own_under_any_default_generator():
    """jax's rbg draws a batch's numbers from its first key."""
    params = row_params(4)._replace(
        seed_B=np.arange(4, dtype=np.uint32), sample_B=np.zeros(4, np.int32)
    )
    position_B = np.full(4, 3, np.int32)
    expected = np.asarray(row_uniforms(row_keys(params), position_B))
    with jax.default_prng_impl("rbg"):
        alone = jax.tree.map(lambda x: x[2:3], params)
        np.testing.assert_array_equal(row_uniforms(row_keys(params), position_B), expected)
        np.testing.assert_array_equal(row_uniforms(row_keys(alone), position_B[:1]), expected[2:3])
