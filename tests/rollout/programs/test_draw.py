"""Drawing tokens: against a slow, obvious numpy reading of the definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.rollout.live import CompileCounter
from polaris_jax.rollout.programs.draw import RowParams, draw_tokens
from tests.support.rollout.rollout_cases import product_uniform, uniform_at
from tests.tolerances import LOGPROB_ATOL

draw = jax.jit(draw_tokens)


def row_params(count, *, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0) -> RowParams:
    def column(value, dtype):
        return np.broadcast_to(np.asarray(value, dtype), (count,))

    return RowParams(
        temperature_B=column(temperature, np.float32),
        top_p_B=column(top_p, np.float32),
        top_k_B=column(top_k, np.int32),
        min_p_B=column(min_p, np.float32),
        seed_B=column(0, np.uint32),
        sample_B=column(0, np.int32),
    )


def kept_by_oracle(logit_V, *, temperature, top_k, min_p, top_p) -> np.ndarray:
    """Kept tokens and their mass: temperature, top-k, min-p, then top-p on what is left."""
    scaled_V = logit_V.astype(np.float64) / temperature
    prob_V = np.exp(scaled_V - scaled_V.max())
    prob_V /= prob_V.sum()
    ranked = np.lexsort((np.arange(len(prob_V)), -scaled_V))
    kept = ranked[: top_k or None]
    kept = kept[prob_V[kept] >= min_p * prob_V.max()]
    before = np.cumsum(prob_V[kept]) - prob_V[kept]
    kept = kept[before < top_p * prob_V[kept].sum()] if top_p < 1 else kept
    mass_V = np.zeros_like(prob_V)
    mass_V[kept] = prob_V[kept]
    return mass_V


def tokens_over_uniforms(logit_V, uniforms, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Token and log-prob of each uniform; always 512 rows, so that a vocabulary compiles once."""
    logit_BV = np.broadcast_to(logit_V, (512, len(logit_V)))
    uniform_B = np.resize(np.asarray(uniforms, np.float32), 512)
    token_B, logp_B = draw(logit_BV, uniform_B, row_params(512, **settings))
    return np.asarray(token_B)[: len(uniforms)], np.asarray(logp_B)[: len(uniforms)]


CASES = [
    {"temperature": 1.0, "top_k": 0, "min_p": 0.0, "top_p": 1.0},
    {"temperature": 0.6, "top_k": 0, "min_p": 0.0, "top_p": 1.0},
    {"temperature": 1.5, "top_k": 5, "min_p": 0.0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "min_p": 0.0, "top_p": 0.7},
    {"temperature": 1.0, "top_k": 0, "min_p": 0.2, "top_p": 1.0},
    {"temperature": 1.3, "top_k": 9, "min_p": 0.05, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 500, "min_p": 0.0, "top_p": 0.01},
    {"temperature": 1.0, "top_k": 1, "min_p": 0.0, "top_p": 1.0},
    {"temperature": 0.7, "top_k": 0, "min_p": 1.0, "top_p": 1.0},
    {"temperature": 1.3, "top_k": 5, "min_p": 1.0, "top_p": 0.3},
    {"temperature": 1e-3, "top_k": 0, "min_p": 0.0, "top_p": 1.0},
]


@pytest.mark.parametrize("vocab", [7, 61, 200])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_follow_the_inverse_cdf_of_the_kept_mass(case, vocab):
    uniforms = (np.arange(512) + 0.5) / 512
    for seed in range(3):
        logit_V = np.random.default_rng(seed).normal(size=vocab).astype(np.float32) * 2
        mass_V = kept_by_oracle(logit_V, **case)
        running_V = np.cumsum(mass_V) / mass_V.sum()
        token_B, logp_B = tokens_over_uniforms(logit_V, uniforms, **case)
        assert mass_V[token_B].min() > 0
        expected_B = np.searchsorted(running_V, uniforms, side="right")
        edge_B = np.abs(running_V[None] - uniforms[:, None]).min(axis=1) < 1e-6
        np.testing.assert_array_equal(token_B[~edge_B], expected_B[~edge_B])
        scaled_V = (logit_V.astype(np.float64) - logit_V.max()) / case["temperature"]
        logp_V = scaled_V - np.log(np.exp(scaled_V).sum())
        np.testing.assert_allclose(logp_B, logp_V[token_B], atol=LOGPROB_ATOL)


@pytest.mark.parametrize(
    "filters", [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.74}], ids=str
)
def test_ties_go_to_the_lower_id(filters):
    logit_V = np.array([0, 1, 1, 0, 1, 1, 0], np.float32)
    settings = {"temperature": 1.0, "top_k": 0, "min_p": 0.0, "top_p": 1.0} | filters
    allowed = set(np.flatnonzero(kept_by_oracle(logit_V, **settings)))
    token_B, _ = tokens_over_uniforms(logit_V, (np.arange(256) + 0.5) / 256, **settings)
    assert set(token_B.tolist()) == allowed


@pytest.mark.parametrize("temperature", [1e-30, 1e-20, 1e-12, 1e-8, 1e-4])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "min_p": 1.0, "top_p": 1e-30}], ids=str)
def test_near_temperature_0_the_likeliest_token_is_certain(temperature, filters):
    rng = np.random.default_rng(0)
    logit_BV = rng.normal(size=(512, 61)).astype(np.float32) * 5
    np.put_along_axis(logit_BV, rng.integers(0, 61, (512, 1)), 40.0, axis=1)
    uniform_B = rng.uniform(size=512).astype(np.float32)
    token_B, logp_B = draw(logit_BV, uniform_B, row_params(512, temperature=temperature, **filters))
    np.testing.assert_array_equal(token_B, logit_BV.argmax(axis=1))
    assert (logp_B == 0).all()


@pytest.mark.parametrize("temperature", [0.6, 0.7, 1.0, 1.3, 1.5])
def test_min_p_of_1_leaves_the_likeliest_token(temperature):
    # The logits come out of a product in the same program, as in a decode step: what is fused with
    # it may be rounded in another way.
    rng = np.random.default_rng(1)
    hidden_BD = rng.normal(size=(512, 16)).astype(np.float32)
    head_DV = rng.normal(size=(16, 3001)).astype(np.float32) * 4

    @jax.jit
    def step(hidden_BD, uniform_B):
        logit_BV = hidden_BD @ head_DV
        params = row_params(512, temperature=temperature, min_p=1.0)
        return draw_tokens(logit_BV, uniform_B, params), jnp.argmax(logit_BV, axis=-1)

    (token_B, _), best_B = step(hidden_BD, rng.uniform(size=512).astype(np.float32))
    np.testing.assert_array_equal(token_B, best_B)


def test_temperature_0_is_argmax_with_logprobs_at_temperature_1():
    logit_V = np.array([0.0, 2.0, 2.0, -1.0, -2.0, -2.0, -9.0], np.float32)
    token_B, logp_B = tokens_over_uniforms(logit_V, [0.0, 0.5, 0.999], temperature=0.0)
    assert token_B.tolist() == [1, 1, 1]
    np.testing.assert_allclose(logp_B, 2 - np.log(np.exp(logit_V).sum()), atol=LOGPROB_ATOL)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_unit_interval_draw_tokens_of_positive_mass(uniform):
    logit_V = np.full(200, -300.0, np.float32)  # their mass is 0 in float32
    logit_V[[3, 40, 77]] = [1.0, 2.0, 1.5]
    token_B, _ = tokens_over_uniforms(logit_V, [uniform] * 4)
    assert token_B[0] == (3 if uniform == 0 else 77)


def test_rows_with_different_settings_do_not_see_one_another():
    rng = np.random.default_rng(0)
    logit_BV = jnp.asarray(rng.normal(size=(4, 61)) * 3, jnp.float32)
    uniform_B = jnp.asarray(rng.random(4), jnp.float32)
    mixed = row_params(
        4, temperature=[0.0, 0.7, 1.0, 1.4], top_k=[0, 3, 0, 0], top_p=[1.0, 1.0, 0.5, 1.0]
    )
    token_B, logp_B = draw(logit_BV, uniform_B, mixed)
    for i in range(4):
        alone = jax.tree.map(lambda x, i=i: np.broadcast_to(x[i], (4,)), mixed)
        alone_B, alone_logp_B = draw(logit_BV, uniform_B, alone)
        assert int(alone_B[i]) == int(token_B[i])
        assert float(alone_logp_B[i]) == float(logp_B[i])


def test_one_program_for_all_settings():
    logit_BV, uniform_B = jnp.zeros((2, 61)), jnp.zeros(2)
    fresh = jax.jit(lambda *args: draw_tokens(*args))
    with CompileCounter() as compiles:
        for settings in CASES:
            fresh(logit_BV, uniform_B, row_params(2, **settings))
    assert compiles.count == 1


def test_keys_are_the_documented_fold():
    for seed, sample, position in [(0, 0, 0), (7, 3, 11), (2**32 - 1, 1, 5)]:
        assert product_uniform(seed, sample, position) == uniform_at(seed, sample, position)
