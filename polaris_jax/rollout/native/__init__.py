"""Decode kernels in C++ for a CPU: packed products and paged attention, by XLA's FFI.

XLA packs the matrices of a product in every call and copies pages before it attends to them. These
kernels do neither. They are compiled on the machine that runs them, if it has a C++ compiler.
"""

from polaris_jax.rollout.native.build import BuildFailed, load
from polaris_jax.rollout.native.ops import attend_staged, pack, packed_product, unpacked, zeros

__all__ = ["BuildFailed", "attend_staged", "load", "pack", "packed_product", "unpacked", "zeros"]
