"""Each option of the per-token loss against a few lines of numpy, and its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import ObjectiveSection
from polaris_jax.train.objective import token_loss
from tests.tolerances import OBJECTIVE_RTOL

CASES = [
    pytest.param({}, id="current"),
    pytest.param({"old_logprobs": "recompute"}, id="clip"),
    pytest.param({"old_logprobs": "recompute", "dual_clip": 0.0}, id="no-dual-clip"),
    pytest.param(
        {"old_logprobs": "recompute", "clip_low": 0.1, "clip_high": 0.5}, id="clip-values"
    ),
    pytest.param({"old_logprobs": "sampler"}, id="tis"),
    pytest.param({"old_logprobs": "sampler", "tis_cap": 5.0}, id="tis-over-dual-clip"),
    pytest.param({"old_logprobs": "sampler", "tis_cap": 0.0}, id="no-tis"),
    pytest.param({"kl_coef": 0.3}, id="kl"),
    pytest.param({"entropy_coef": 0.2}, id="entropy"),
    pytest.param(
        {"old_logprobs": "sampler", "kl_coef": 0.1, "entropy_coef": 0.01}, id="everything"
    ),
]


def oracle(o, logp, old, advantage, entropy, reference):
    """(loss, d loss / d logp) of one token."""
    r = np.exp(logp - (logp if o.old_logprobs == "current" else old))
    w = min(r, o.tis_cap) if o.old_logprobs == "sampler" and o.tis_cap else r
    clipped = np.clip(w, 1 - o.clip_low, 1 + o.clip_high)
    loss = max(-w * advantage, -clipped * advantage)
    slope = -w * advantage if -w * advantage >= -clipped * advantage else 0.0
    if o.dual_clip and advantage < 0 and loss > -o.dual_clip * advantage:
        loss, slope = -o.dual_clip * advantage, 0.0
    if o.kl_coef:
        d = reference - logp
        loss, slope = loss + o.kl_coef * (np.exp(d) - d - 1), slope + o.kl_coef * (1 - np.exp(d))
    return loss - o.entropy_coef * entropy, slope


def tokens(seed=0, shape=(4, 64)):
    rng = np.random.default_rng(seed)
    old = rng.normal(-2, 1, shape)
    return {
        "logp_BT": old + rng.normal(0, 1, shape),  # ratios from 0.05 to 20: every branch is met
        "old_logp_BT": old,
        "advantage_BT": rng.choice([-1.7, -0.4, 0.0, 0.6, 1.5], shape),
        "entropy_BT": rng.random(shape) * 3,
        "reference_logp_BT": old + rng.normal(0, 0.7, shape),
    }


@pytest.mark.parametrize("options", CASES)
def test_loss_and_gradient_match_the_oracle(options):
    objective = dataclasses.replace(ObjectiveSection(), **options)
    case = tokens()
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in case.items()}
    logp = arrays.pop("logp_BT")

    def total(logp):
        return token_loss(logp, objective, **arrays).loss_BT.sum()

    loss_BT = np.asarray(token_loss(logp, objective, **arrays).loss_BT)
    slope_BT = np.asarray(jax.grad(total)(logp))
    want = [
        oracle(objective, *row)
        for row in zip(
            *(
                case[n].ravel()
                for n in (
                    "logp_BT",
                    "old_logp_BT",
                    "advantage_BT",
                    "entropy_BT",
                    "reference_logp_BT",
                )
            ),
            strict=True,
        )
    ]
    want_loss, want_slope = np.array(want).T.reshape(2, *logp.shape)
    np.testing.assert_allclose(loss_BT, want_loss, rtol=OBJECTIVE_RTOL, atol=OBJECTIVE_RTOL)
    np.testing.assert_allclose(slope_BT, want_slope, rtol=OBJECTIVE_RTOL, atol=OBJECTIVE_RTOL)


def test_the_case_meets_every_branch():
    case = {n: jnp.asarray(v, jnp.float32) for n, v in tokens().items()}
    logp = case.pop("logp_BT")
    over = ObjectiveSection(old_logprobs="sampler", tis_cap=5.0)
    out = token_loss(logp, over, **case)
    for name in ("clipped_low_BT", "clipped_high_BT", "clipped_dual_BT", "truncated_BT"):
        assert 0 < float(getattr(out, name).mean()) < 1, name


def test_on_policy_ratio_is_one_and_nothing_is_clipped():
    case = {n: jnp.asarray(v, jnp.float32) for n, v in tokens().items()}
    out = token_loss(case.pop("logp_BT"), ObjectiveSection(), **case)
    assert (out.ratio_BT == 1).all()
    for name in ("clipped_low_BT", "clipped_high_BT", "clipped_dual_BT", "truncated_BT"):
        assert not getattr(out, name).any(), name


def test_a_clipped_token_has_no_gradient_and_a_truncated_one_keeps_it_at_the_cap():
    def slope(logp, advantage, **options):
        objective = ObjectiveSection(old_logprobs="sampler", **options)
        zero = jnp.zeros((1, 1))

        def loss(x):
            return token_loss(
                jnp.full((1, 1), x),
                objective,
                entropy_BT=zero,
                old_logp_BT=zero,
                advantage_BT=zero + advantage,
            ).loss_BT.sum()

        return float(jax.grad(loss)(logp))

    assert slope(np.log(1.5), 1.0) == 0.0
    assert slope(np.log(0.5), -1.0) == 0.0
    assert slope(np.log(2.5), -1.0) == pytest.approx(2.0)
    assert slope(np.log(2.5), -1.0, tis_cap=0.0) == pytest.approx(2.5)
    assert slope(np.log(3.5), -1.0, tis_cap=0.0) == 0.0  # dual clip


@pytest.mark.parametrize("gap", [19.0, 20.0, 21.0, 199.0, 1e4, 1e30, np.inf])
@pytest.mark.parametrize("advantage", [-1.0, -0.3])
def test_a_truncated_token_keeps_its_gradient_however_far_its_ratio_lies(gap, advantage):
    def losses(logp, **options):
        zero = jnp.zeros((1, 1))
        return token_loss(
            logp,
            ObjectiveSection(**options),
            entropy_BT=zero,
            old_logp_BT=zero - 1.0 - gap,
            advantage_BT=zero + advantage,
        ).loss_BT.sum()

    logp = jnp.full((1, 1), -1.0)
    cut = {"old_logprobs": "sampler", "tis_cap": 2.0}
    loss, slope = jax.value_and_grad(losses)(logp, **cut)
    assert float(loss) == pytest.approx(-2.0 * advantage)
    assert float(slope[0, 0]) == pytest.approx(-2.0 * advantage)
    if gap > 20:  # nothing bounds these: they are broken rows, and stay without a gradient
        for options in ({"old_logprobs": "recompute"}, cut | {"tis_cap": 0.0}):
            assert float(jax.grad(losses)(logp, dual_clip=0.0, **options)[0, 0]) == 0.0


def test_a_token_that_gained_no_probability_from_beyond_the_limit_stays_finite():
    zero = jnp.zeros((1, 2))

    def losses(logp):
        return token_loss(
            logp,
            ObjectiveSection(old_logprobs="sampler"),
            entropy_BT=zero,
            old_logp_BT=zero,
            advantage_BT=jnp.array([[-1.0, 1.0]]),
        ).loss_BT.sum()

    loss, slope = jax.value_and_grad(losses)(jnp.full((1, 2), -1e4))
    assert np.isfinite(float(loss))
    assert np.isfinite(np.asarray(slope)).all()


def test_k3_is_the_kl_in_the_mean_and_never_negative():
    rng = np.random.default_rng(0)
    logit, reference = rng.normal(size=8), rng.normal(size=8)
    p = np.exp(logit) / np.exp(logit).sum()
    q = np.exp(reference) / np.exp(reference).sum()
    logp, ref = jnp.asarray(np.log(p))[None], jnp.asarray(np.log(q))[None]
    out = token_loss(
        logp.astype(jnp.float32),
        ObjectiveSection(kl_coef=1.0),
        entropy_BT=jnp.zeros((1, 8)),
        old_logp_BT=jnp.zeros((1, 8)),
        advantage_BT=jnp.zeros((1, 8)),
        reference_logp_BT=ref.astype(jnp.float32),
    )
    assert (out.kl_BT >= 0).all()
    expected = (p * np.log(p / q)).sum()
    assert float((p * np.asarray(out.kl_BT)[0]).sum()) == pytest.approx(expected, rel=1e-4)


def test_an_absurd_old_logprob_stays_finite():
    zero = jnp.zeros((1, 2))
    out = token_loss(
        zero,
        ObjectiveSection(old_logprobs="recompute", dual_clip=0.0),
        entropy_BT=zero,
        old_logp_BT=jnp.array([[-1e4, 1e4]]),
        advantage_BT=zero - 1.0,
    )
    assert np.isfinite(np.asarray(out.loss_BT)).all()


def test_kl_without_a_reference_is_refused():
    zero = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"objective.kl_coef=0.1.*reference"):
        token_loss(
            zero,
            ObjectiveSection(kl_coef=0.1),
            entropy_BT=zero,
            old_logp_BT=zero,
            advantage_BT=zero,
        )
