"""AdamW, the global-norm clip, and an optimizer step that skips non-finite gradients."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from polaris_jax.config import OptimizerSection

Tree = TypeVar("Tree")


def make_optimizer(section: OptimizerSection) -> optax.GradientTransformation:
    """AdamW with a constant learning rate; moments in `section.moment_dtype`.

    Weight decay acts on every parameter, norms and biases too: the original's AdamW had one
    parameter group. (At its learning rate, 1e-6 x 0.01 a step, the difference is below fp32's
    resolution of a norm weight near 1; at the demo's it is not.)

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    adamw = optax.adamw(
        section.learning_rate,
        b1=section.b1,
        b2=section.b2,
        eps=section.eps,
        weight_decay=section.weight_decay,
    )
    return adamw if section.moment_dtype == "float32" else _in_bfloat16(adamw)


def _in_bfloat16(adamw: optax.GradientTransformation) -> optax.GradientTransformation:
    """`adamw` with moments that are stored in bfloat16 and computed in float32.

    With b2 = 0.999 a step lowers the second moment by at most a thousandth of its value, a quarter
    of the distance between two bfloat16 numbers. Under rounding to nearest the second moment would
    grow and never fall. So both moments are rounded up or down at random, with the right mean. The
    noise is a function of the step count alone.
    """

    def init(params: Any) -> Any:
        return _floats(lambda x, _: x.astype(jnp.bfloat16), adamw.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide: Any = _floats(lambda x, _: x.astype(jnp.float32), state)
        updates, wide = adamw.update(updates, wide, params)
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), wide[0].count)
        return updates, _floats(
            lambda x, i: round_stochastically(x, jax.random.fold_in(key, i)), wide
        )

    return optax.GradientTransformation(init, update)


def _floats(function: Any, tree: Any) -> Any:
    """`function(leaf, number)` over the floating-point leaves; other leaves stay unchanged."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        treedef,
        [
            function(x, i) if jnp.issubdtype(x.dtype, jnp.floating) else x
            for i, x in enumerate(leaves)
        ],
    )


def round_stochastically(x: Array, key: Array) -> Array:
    """`x` rounded at random to one of its two bfloat16 neighbours, with `x` as the mean.

    Values that are not finite stay unchanged.

    Args:
        x: any shape, float32.
        key: random key of the noise.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 lacks the lower 16 bits: noise added to them carries over with the right probability.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def clip_by_norm(grads: Tree, norm: Array, *, max_norm: float) -> Tree:
    """`grads` scaled down so that their global norm is at most `max_norm`.

    Args:
        grads: a pytree of gradients.
        norm: global norm of `grads`.
        max_norm: largest global norm of the result.
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
        opt_state: state of `transform`.
        transform: the optimizer.
        max_grad_norm: largest global norm of the clipped gradient.

    Returns:
        (params, opt_state, gradient norm before the clip, skipped). If the step is skipped,
        parameters and moments are unchanged, bit for bit.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(norm)
    clipped = clip_by_norm(grads, norm, max_norm=max_grad_norm)
    updates, new_opt_state = transform.update(clipped, opt_state, params)
    new_params = optax.apply_updates(params, updates)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return keep(new_params, params), keep(new_opt_state, opt_state), norm, ~finite
