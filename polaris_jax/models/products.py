"""Matrix products of bfloat16 on a CPU, forward and backward.

XLA multiplies bfloat16 by the CPU's own instructions (AVX512-BF16) only if the result is float32
and the sums run along the rows of the first factor as they lie in memory (jax 0.10.2). It converts
all else to float32 first, which takes twice as long. `jnp.matmul` misses the fast way three times:
its result is bfloat16, so are its gradients, and a weight's gradient sums over the first
dimension of both factors.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Product = Callable[[Array, Array], Array]  # (x_MK, w_KN) -> [M, N]


def product_on(platform: str, dtype: str) -> Product:
    """The product of activations and a weight matrix that suits a platform and a dtype.

    Args:
        platform: the platform of the devices that multiply: "cpu", "gpu" or "tpu".
        dtype: name of the dtype that both factors have.
    """
    return bfloat16_product if platform == "cpu" and dtype == "bfloat16" else jnp.matmul


@jax.custom_vjp
def bfloat16_product(x_MK: Array, w_KN: Array) -> Array:
    """bfloat16 [M, N]: `x_MK` times `w_KN`, summed in float32 and rounded once."""
    return _dot(x_MK, w_KN, over=(1, 0))


def _forward(x_MK: Array, w_KN: Array) -> tuple[Array, tuple[Array, Array]]:
    return bfloat16_product(x_MK, w_KN), (x_MK, w_KN)


def _backward(kept: tuple[Array, Array], grad_MN: Array) -> tuple[Array, Array]:
    x_MK, w_KN = kept
    return _dot(grad_MN, w_KN, over=(1, 1)), _dot(_transposed(x_MK), grad_MN, over=(1, 0))


bfloat16_product.defvjp(_forward, _backward)


def _dot(a: Array, b: Array, *, over: tuple[int, int]) -> Array:
    dims = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32).astype(a.dtype)


def _transposed(x_MK: Array) -> Array:
    """`x_MK` transposed in memory, too: XLA would fold a plain transpose into the product.

    Only the flat form holds it back. The copy takes a twentieth of the product's time.
    """
    flat = jax.lax.optimization_barrier(x_MK.T.reshape(-1))
    return flat.reshape(x_MK.shape[1], x_MK.shape[0])
