"""Keys and values in 8 bits: rotated, then rounded to whole numbers under a scale.

A head's keys are dominated by a few of their entries, and a scale that holds these leaves the
others few bits. So queries, keys and values are first turned by an orthonormal Hadamard matrix,
which spreads each entry over all of them. Scores do not change, and the output is turned back.

The numbers of a key depend on the key alone: on no neighbour in its page and on no other row. So
tokens do not depend on the schedule here either.

Source: rotations, QuaRot, Ashkboos et al. 2024 (arXiv:2404.00456), section 4.2; a scale for each
token and head, KVQuant, Hooper et al. 2024 (arXiv:2401.18079), section 3. Differs: the rotation
comes after the rotary positions, on keys and values alike, and there are no groups or outliers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polaris_jax.models import Decoder, ModelConfig

LARGEST = 127  # symmetric: -128 is not used
KEY_RANGE = 6.0
VALUE_RANGE = 4.0
LEAST_SCALE = 1e-30  # of a key that is 0


def rotate(x: Array) -> Array:
    """`x`, [..., H], times an orthonormal Hadamard matrix, which is its own inverse; float32.

    If H is no power of 2, each run of its largest factor that is one is turned by itself. The sums
    are additions in a fixed order: the bits do not depend on the number of rows, as those of a
    product of matrices may.
    """
    shape, power = x.shape, x.shape[-1] & -x.shape[-1]
    x = x.astype(jnp.float32)
    size = 1
    while size < power:
        pairs = x.reshape(*shape[:-1], -1, 2, size)
        one, other = pairs[..., 0, :], pairs[..., 1, :]
        x = jnp.stack([one + other, one - other], axis=-2)
        size *= 2
    return x.reshape(shape) * (power**-0.5)


def rotate_by_product(x: Array) -> Array:
    """`rotate`, as one product of matrices: on accelerators the sums would pass through memory."""
    width = x.shape[-1]
    signs_HH = jnp.asarray(_signs(width), x.dtype)
    turned = jnp.einsum(
        "...h,hi->...i",
        x,
        signs_HH,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return turned * (width & -width) ** -0.5


def _signs(width: int) -> np.ndarray:
    """The Hadamard matrix as 1, -1 and, between runs, 0; [H, H]."""
    power, signs = width & -width, np.ones((1, 1))
    while len(signs) < power:
        signs = np.kron(np.array([[1, 1], [1, -1]]), signs)
    return np.kron(np.eye(width // power), signs)


def rotated(
    attend: Callable[..., tuple[Array, Any]], turn: Callable[[Array], Array] = rotate
) -> Callable[..., tuple[Array, Any]]:
    """`attend` with its queries, keys and values turned, and its output turned back.

    Keys and values reach `attend` as float32, since they are rounded there.

    Args:
        attend: attention over pages, such as `kv.attend_pages`.
        turn: `rotate`, or `rotate_by_product`.
    """

    def turned(layer: Array, q: Array, k: Array, v: Array, *rest: Any, **named: Any) -> Any:
        out, pool = attend(layer, turn(q).astype(q.dtype), turn(k), turn(v), *rest, **named)
        return turn(out).astype(out.dtype), pool

    return turned


def quantise(x: Array, scale: Array | None = None) -> tuple[Array, Array]:
    """(int8 [..., H], float32 scale [...]): `x` is nearly their product.

    Args:
        x: float32 [..., H].
        scale: the scale; entries beyond 127 times the scale are cut. None: that of the largest
            entry, for each vector of H.
    """
    if scale is None:
        scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1) / LARGEST, LEAST_SCALE)
    number = jnp.clip(jnp.round(x / scale[..., None]), -LARGEST, LARGEST)
    return number.astype(jnp.int8), scale


def constant_steps(model: Decoder) -> Array:
    """Scales of keys and values in turn for each layer and KV head, float32 [L, 2K], from weights.

    A scale is `KEY_RANGE` or `VALUE_RANGE` times the root mean square that a rotated entry has if
    the normed inputs of the layer point nowhere in particular, over 127. Entries beyond are cut.

    Args:
        model: weights of a family for which `refusal` returns "".
    """
    p = model.layers
    assert p.attn_norm_D is not None  # `refusal`
    norm_LD = p.attn_norm_D[...].astype(jnp.float32)

    def square_LK(weight: Array, bias: Any) -> Array:
        """The mean square of a head's entries, for inputs of mean square 1."""
        weight = weight.astype(jnp.float32)
        found_LKH = jnp.einsum("ldkh,ld->lkh", weight**2, norm_LD**2)
        if bias is not None:
            found_LKH += bias[...].astype(jnp.float32) ** 2
        return jnp.mean(found_LKH, axis=-1)

    v_LK = square_LK(p.v_DKH[...], p.v_bias_KH)
    if p.k_norm_H is not None:
        k_L1 = jnp.mean(p.k_norm_H[...].astype(jnp.float32) ** 2, axis=-1, keepdims=True)
        k_LK = jnp.broadcast_to(k_L1, v_LK.shape)
    else:
        k_LK = square_LK(p.k_DKH[...], p.k_bias_KH)
    steps_LK2 = jnp.sqrt(jnp.stack([KEY_RANGE**2 * k_LK, VALUE_RANGE**2 * v_LK], axis=-1))
    return steps_LK2.reshape(len(v_LK), -1) / LARGEST + LEAST_SCALE


def refusal(config: ModelConfig) -> str:
    """Why `constant_steps` knows no scales for an architecture; "" if it does."""
    if config.family.norms == "before":
        return ""
    return (
        "with 8-bit keys and values it needs constant scales, which follow from the weights only "
        f"if a norm comes before attention, and model_type={config.model_type} has none there"
    )
