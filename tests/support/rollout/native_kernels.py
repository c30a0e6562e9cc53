"""Whether this machine can compile the native kernels, for the tests that need them."""

import jax.numpy as jnp
import pytest

from polaris_jax.rollout import native


def reason() -> str:
    """Why there are none, or ""."""
    try:
        native.load()
    except native.BuildFailed as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(reason()), reason=f"no native kernels here: {reason()}")
needs_bfloat16 = pytest.mark.skipif(
    not reason() and not native.multiplies_bfloat16(), reason="no AVX512-BF16 here"
)
DTYPES = [jnp.float32, pytest.param(jnp.bfloat16, marks=needs_bfloat16)]
