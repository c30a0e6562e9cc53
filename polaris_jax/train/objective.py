"""The per-token loss: clipped surrogate, truncated importance sampling, KL and entropy terms.

The functions are pure functions of [B, T] arrays, and average nothing. The caller multiplies the
loss by `weight_BT` and sums; the weights contain the aggregation (see records.TrainBatch).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.config import ObjectiveSection

# exp(20) = 4.9e8. A log-ratio above 20 means a broken row, and inf x 0 would make the sum NaN.
MAX_LOG_RATIO = 20.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """The loss of every token and its parts; all [B, T], float32.

    Attributes:
        loss_BT: loss before the weight, nats x advantage.
        ratio_BT: current over old probability.
        clipped_low_BT: 1 if advantage < 0 and the lower clip made the gradient zero.
        clipped_high_BT: 1 if advantage > 0 and the upper clip made the gradient zero.
        clipped_dual_BT: 1 if the dual clip made the gradient zero.
        truncated_BT: 1 if the importance weight was cut to `tis_cap`.
        kl_BT: k3 estimate of KL(current || reference), nats; 0 without a reference.
    """

    loss_BT: Array
    ratio_BT: Array
    clipped_low_BT: Array
    clipped_high_BT: Array
    clipped_dual_BT: Array
    truncated_BT: Array
    kl_BT: Array


def token_loss(
    logp_BT: Array,
    objective: ObjectiveSection,
    *,
    entropy_BT: Array,
    old_logp_BT: Array,
    advantage_BT: Array,
    reference_logp_BT: Array | None = None,
) -> TokenLoss:
    """Each token's loss under `objective`, unweighted.

    The ratio is r = exp(logp - old). With advantage A the loss is max(-r A, -clip(r, 1 - clip_low,
    1 + clip_high) A). If A < 0 this loss is at most -dual_clip A. Two terms are added:
    kl_coef x (exp(d) - d - 1) with d = reference - logp, and -entropy_coef x entropy.

    `old_logprobs` selects the policy that r is measured against:

    - current: the policy itself, r = 1 with the gradient A grad(logp). `old_logp_BT` is not read.
    - recompute: `old_logp_BT`, which the caller took from the trainer before the first minibatch.
    - sampler: `old_logp_BT` as reported by the sampler. Besides the policy's own change, r then
      contains the mismatch between sampler and trainer (and any lag). So r is an importance weight
      and is truncated to min(r, tis_cap). The gradient of a truncated token is
      min(r, tis_cap) A grad(logp) and not zero, also beyond `MAX_LOG_RATIO`, where r counts as
      exp(MAX_LOG_RATIO). tis_cap=0 turns the cap off.

    If A > 0 the upper clip acts before any cap above 1 + clip_high. The cap bounds the tokens with
    A < 0, which PPO does not bound. With a cap below `dual_clip` the dual clip never acts.

    Args:
        logp_BT: log-prob under the parameters that are differentiated, nats.
        objective: the options of the loss.
        entropy_BT: entropy of the next token under the same parameters, nats.
        old_logp_BT: log-probs of the policy that r is measured against, nats.
        advantage_BT: the sequence's advantage at each response token.
        reference_logp_BT: log-probs of the frozen reference; needed when kl_coef > 0.

    Raises:
        ValueError: kl_coef > 0, but there are no reference log-probs.

    Source: PPO, Schulman et al. 2017 (arXiv:1707.06347), eq. 7; dual clip, Ye et al. 2020
        (arXiv:1912.09729), eq. 5; higher upper clip, DAPO, Yu et al. 2025 (arXiv:2503.14476), eq.
        10; truncated importance weights, Espeholt et al. 2018 (IMPALA, arXiv:1802.01561), section
        4.1, applied to the sampler-trainer mismatch by Yao et al. 2025 ("Your efficient RL
        framework secretly brings you off-policy RL training"); k3, Schulman 2020 ("Approximating
        KL divergence").
    Differs: Yao et al. multiply PPO's term by the truncated weight of a recomputed old policy over
        the sampler. Here there is no such recomputation: the sampler is the old policy, and the
        truncated weight takes the place of the ratio.
    """
    if objective.kl_coef > 0 and reference_logp_BT is None:
        raise ValueError(
            f"objective.kl_coef={objective.kl_coef}: the KL term needs the log-probs of a "
            "reference; pass the reference model to the update, or set kl_coef to 0"
        )
    if objective.old_logprobs == "current":
        old_logp_BT = jax.lax.stop_gradient(logp_BT)
    is_truncated = objective.old_logprobs == "sampler" and objective.tis_cap > 0
    gap_BT = logp_BT - old_logp_BT
    log_ratio_BT = jnp.clip(gap_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    if is_truncated:
        # Beyond its limits jnp.clip has no gradient, but a truncated token must keep its gradient.
        at_limit_BT = MAX_LOG_RATIO + (logp_BT - jax.lax.stop_gradient(logp_BT))
        log_ratio_BT = jnp.where(gap_BT >= MAX_LOG_RATIO, at_limit_BT, log_ratio_BT)
    ratio_BT = jnp.exp(log_ratio_BT)
    weight_BT, truncated_BT = ratio_BT, jnp.zeros_like(ratio_BT)
    if is_truncated:
        # A product with a constant instead of a minimum keeps the gradient, scaled to the cap.
        scale_BT = jnp.minimum(1.0, objective.tis_cap / jax.lax.stop_gradient(ratio_BT))
        weight_BT = ratio_BT * scale_BT
        truncated_BT = (scale_BT < 1.0).astype(jnp.float32)

    low, high = 1.0 - objective.clip_low, 1.0 + objective.clip_high
    clipped_BT = jnp.clip(weight_BT, low, high)
    loss_BT = jnp.maximum(-weight_BT * advantage_BT, -clipped_BT * advantage_BT)
    clipped_dual_BT = jnp.zeros_like(ratio_BT)
    if objective.dual_clip > 0:
        ceiling_BT = -objective.dual_clip * advantage_BT
        above_BT = (advantage_BT < 0) & (loss_BT > ceiling_BT)
        loss_BT = jnp.where(above_BT, ceiling_BT, loss_BT)
        clipped_dual_BT = above_BT.astype(jnp.float32)

    kl_BT = jnp.zeros_like(ratio_BT)
    if objective.kl_coef > 0 and reference_logp_BT is not None:
        rise_BT = jnp.clip(reference_logp_BT - logp_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        kl_BT = jnp.exp(rise_BT) - rise_BT - 1.0
        loss_BT = loss_BT + objective.kl_coef * kl_BT
    if objective.entropy_coef > 0:
        loss_BT = loss_BT - objective.entropy_coef * entropy_BT
    return TokenLoss(
        loss_BT=loss_BT,
        ratio_BT=ratio_BT,
        clipped_low_BT=((advantage_BT < 0) & (weight_BT < low)).astype(jnp.float32),
        clipped_high_BT=((advantage_BT > 0) & (weight_BT > high)).astype(jnp.float32),
        clipped_dual_BT=clipped_dual_BT,
        truncated_BT=truncated_BT,
        kl_BT=kl_BT,
    )
