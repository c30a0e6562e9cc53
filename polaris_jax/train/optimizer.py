"""AdamW, the global-norm clip, and the step that non-finite gradients skip."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from polaris_jax.config import OptimizerSection

Tree = TypeVar("Tree")


def make_optimizer(section: OptimizerSection) -> optax.GradientTransformation:
    """AdamW with a constant learning rate and float32 moments.

    Weight decay acts on every parameter, norms and biases too: the original's AdamW had one
    parameter group. (At its learning rate, 1e-6 x 0.01 a step, the difference is below fp32's
    resolution of a norm weight near 1; at the demo's it is not.)

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    return optax.adamw(
        section.learning_rate,
        b1=section.b1,
        b2=section.b2,
        eps=section.eps,
        weight_decay=section.weight_decay,
    )


def clip_by_norm(grads: Tree, norm: Array, *, max_norm: float) -> Tree:
    """`grads` scaled down so that their global norm is at most `max_norm`.

    Args:
        grads: a pytree of gradients.
        norm: its global norm.
        max_norm: the bound.
    """
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda g: g * scale, grads)


def guarded_step(
    grads: Any,
    params: Any,
    *,
    opt_state: Any,
    transform: optax.GradientTransformation,
    max_grad_norm: float,
) -> tuple[Any, Any, Array, Array]:
    """One clipped optimizer step, or none when the gradient norm is not finite.

    Args:
        grads: float32 gradients.
        params: float32 parameters.
        opt_state: of `transform`.
        transform: the optimizer.
        max_grad_norm: the clip.

    Returns:
        (params, opt_state, gradient norm before the clip, skipped). When skipped, parameters and
        moments are those that came in, bit for bit.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(norm)
    clipped = clip_by_norm(grads, norm, max_norm=max_grad_norm)
    updates, new_opt_state = transform.update(clipped, opt_state, params)
    new_params = optax.apply_updates(params, updates)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return keep(new_params, params), keep(new_opt_state, opt_state), norm, ~finite
