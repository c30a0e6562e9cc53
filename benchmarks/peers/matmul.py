"""The rate at which XLA multiplies float32 on this machine's CPU, beside which times are given."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, sys, time
os.environ["JAX_PLATFORMS"] = "cpu"
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
import jax, jax.numpy as jnp
a = jnp.ones((2048, 2048)); f = jax.jit(jnp.matmul); f(a, a).block_until_ready()
best = []
for _ in range(9):
    t = time.perf_counter(); f(a, a).block_until_ready(); best.append(time.perf_counter() - t)
best.sort()
print(2 * 2048**3 / best[4])
"""


def rate(threads: int) -> float:
    """FLOP/s of a product of 2048 x 2048 matrices, the median of 9, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
