"""The product of bfloat16 on a CPU is `jnp.matmul`, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.products import bfloat16_product, product_on

ONE_BIT = 2.0**-8  # a rounding to bfloat16's 8 bits errs by at most half of the last one
SUM_ERROR = 1e-6  # of float32 sums of up to 130 terms, over the greatest result


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


@pytest.mark.parametrize(("rows", "width", "out"), [(24, 16, 40), (1, 8, 1), (130, 64, 24)])
def test_values_and_gradients_are_those_of_matmul(rows, width, out):
    args = normal(0, rows, width), normal(1, width, out), normal(2, rows, out)

    def results(product, x_MK, w_KN, grad_MN):
        y_MN, back = jax.vjp(product, x_MK, w_KN)
        return y_MN, *back(grad_MN)

    plain = results(bfloat16_product, *args)
    compiled = jax.jit(lambda *args: results(bfloat16_product, *args))(*args)
    exact = results(jnp.matmul, *(x.astype(jnp.float32) for x in args))
    for found, want in zip((*plain, *compiled), (*exact, *exact), strict=True):
        assert found.dtype == jnp.bfloat16
        scale = float(jnp.abs(want).max())
        np.testing.assert_allclose(
            found.astype(jnp.float32), want, rtol=ONE_BIT, atol=SUM_ERROR * scale
        )


def test_other_platforms_and_dtypes_multiply_as_before():
    assert product_on("cpu", "bfloat16") is bfloat16_product
    for platform, dtype in (("tpu", "bfloat16"), ("gpu", "bfloat16"), ("cpu", "float32")):
        assert product_on(platform, dtype) is jnp.matmul


def test_no_product_of_a_step_gives_bfloat16():
    """XLA's CPU back end converts such a product to float32 first: twice the time."""
    x_MK, w_KN = normal(0, 24, 16), normal(1, 16, 40)

    def dots(product):
        step = jax.grad(lambda x, w: product(x, w).sum().astype(jnp.float32), argnums=(0, 1))
        text = str(jax.make_jaxpr(step)(x_MK, w_KN))
        return [line.split("=")[0] for line in text.splitlines() if "dot_general[" in line]

    assert len(dots(bfloat16_product)) >= 2
    assert all(":f32" in line for line in dots(bfloat16_product))
    assert not all(":f32" in line for line in dots(jnp.matmul))
