"""The dtypes in which sides run."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16")


def without_bfloat16() -> str:
    """Why no side runs in bfloat16 here; "": they do.

    A CPU that has no products of bfloat16 numbers emulates them, at a small part of float32's
    speed. No side is at its best so.
    """
    from polaris_jax.rollout.native import BuildFailed, multiplies_bfloat16

    try:
        return "" if multiplies_bfloat16() else "this CPU has no AVX512-BF16"
    except BuildFailed as error:
        return str(error)


def usable() -> tuple[str, ...]:
    """The dtypes in which sides run here."""
    return DTYPES[:1] if without_bfloat16() else DTYPES
