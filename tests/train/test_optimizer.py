"""AdamW, the clip and the skip on a handful of numbers, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import OptimizerSection
from polaris_jax.train.optimizer import guarded_step, make_optimizer
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
