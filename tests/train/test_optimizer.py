"""AdamW, the clip and the skip on a handful of numbers, against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import OptimizerSection
from polaris_jax.train.optimizer import guarded_step, make_optimizer, round_stochastically
from tests.tolerances import OBJECTIVE_RTOL

SECTION = OptimizerSection(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0)
PARAMS = {"norm_D": jnp.array([1.0, 2.0]), "w_DF": jnp.array([[0.5, -3.0], [4.0, 0.0]])}
GRADS = {"norm_D": jnp.array([0.3, -0.1]), "w_DF": jnp.array([[2.0, 0.0], [-1.0, 0.5]])}


def run(steps, section=SECTION):
    transform = make_optimizer(section)
    params, opt_state = PARAMS, transform.init(PARAMS)
    for grads in steps:
        params, opt_state, norm, skipped = guarded_step(
            grads,
            params,
            opt_state=opt_state,
            transform=transform,
            max_grad_norm=section.max_grad_norm,
        )
    return params, opt_state, norm, skipped


def oracle(steps, section=SECTION):
    """AdamW of Loshchilov and Hutter, decay on every parameter, after a global-norm clip."""
    params = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, grads in enumerate(steps, start=1):
        norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))
        for k in params:
            g = np.asarray(grads[k], np.float64) * min(1, section.max_grad_norm / norm)
            m[k] = section.b1 * m[k] + (1 - section.b1) * g
            v[k] = section.b2 * v[k] + (1 - section.b2) * g**2
            m_hat, v_hat = m[k] / (1 - section.b1**t), v[k] / (1 - section.b2**t)
            step = m_hat / (np.sqrt(v_hat) + section.eps) + section.weight_decay * params[k]
            params[k] = params[k] - section.learning_rate * step
    return params, norm


@pytest.mark.parametrize("scale", [1.0, 0.01], ids=["clipped", "unclipped"])
def test_three_steps_match_the_oracle(scale):
    steps = [{k: g * scale * n for k, g in GRADS.items()} for n in (1.0, -0.5, 2.0)]
    got, _, norm, skipped = run(steps)
    want, want_norm = oracle(steps)
    for name in PARAMS:
        np.testing.assert_allclose(got[name], want[name], rtol=OBJECTIVE_RTOL, atol=OBJECTIVE_RTOL)
    assert float(norm) == pytest.approx(want_norm, rel=OBJECTIVE_RTOL)
    assert not skipped


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_non_finite_gradient_moves_nothing(bad):
    broken = {**GRADS, "norm_D": jnp.array([bad, 0.0])}
    params, opt_state, norm, skipped = run([GRADS, broken])
    want_params, want_opt_state, _, _ = run([GRADS])
    assert skipped and not np.isfinite(norm)
    assert all((params[k] == want_params[k]).all() for k in PARAMS)
    assert int(opt_state[0].count) == int(want_opt_state[0].count) == 1
    for k in PARAMS:
        assert (opt_state[0].mu[k] == want_opt_state[0].mu[k]).all()
        assert (opt_state[0].nu[k] == want_opt_state[0].nu[k]).all()


def test_a_zero_gradient_only_decays():
    zero = {k: g * 0 for k, g in GRADS.items()}
    params, _, _, skipped = run([zero])
    for name, start in PARAMS.items():
        np.testing.assert_allclose(params[name], start * (1 - 1e-2 * 0.1), rtol=OBJECTIVE_RTOL)
    assert not skipped


def test_stochastic_rounding_hits_the_neighbours_with_the_right_mean():
    x = jnp.full(20_000, 1.0 + 2**-9, jnp.float32)  # a quarter of the way from 1 to its neighbour
    rounded = np.asarray(round_stochastically(x, jax.random.key(0)), np.float64)
    assert set(rounded) == {1.0, 1.0 + 2**-7}
    # Binomial: 0.003 is one standard deviation of the share at 20,000 draws.
    assert (rounded > 1).mean() == pytest.approx(0.25, abs=4 * 0.003)
    exact = jnp.array([0.0, -2.0, jnp.inf, jnp.nan, 3.0e38], jnp.float32)
    kept = np.asarray(round_stochastically(exact, jax.random.key(1)), np.float32)
    np.testing.assert_array_equal(kept[:4], [0.0, -2.0, np.inf, np.nan])


def test_bfloat16_second_moment_falls_as_the_float32_one_does():
    """Rounded to the nearest it would stay where the large gradients left it."""
    size = 4096
    params = {"w": jnp.ones(size)}
    steps = [{"w": jnp.ones(size)}] * 5 + [{"w": jnp.zeros(size)}] * 300
    second = {}
    for dtype in ("float32", "bfloat16"):
        transform = make_optimizer(dataclasses.replace(SECTION, moment_dtype=dtype))
        update = jax.jit(transform.update)
        state = transform.init(params)
        for grads in steps:
            _, state = update(grads, state, params)
        assert state[0].nu["w"].dtype == jnp.dtype(dtype)
        second[dtype] = float(np.asarray(state[0].nu["w"], np.float64).mean())
    # Mean of 4,096 entries, each off by some 300 roundings of 2^-8 / sqrt(12): 0.03 %.
    assert second["bfloat16"] == pytest.approx(second["float32"], rel=2e-3)
