"""Whether this machine can compile the native kernels, for the tests that need them."""

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
