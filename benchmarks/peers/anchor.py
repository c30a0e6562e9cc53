"""The rate of a model's matrix products alone, in plain jax: the anchor of `benchmarks/check.py`.

    python benchmarks/peers/anchor.py NAME ROWS THREADS [PASSES SECONDS]

NAME is a model of `sampling/ours.py`. Each pass multiplies ROWS rows by every weight matrix of the
model once. There are at least PASSES of them, and they take at least SECONDS: a machine's speed
swings by a quarter within a tenth of a second. Nothing of our package takes part but the model's
sizes, so a slower machine slows the anchor and us, and a slower package slows us alone. Prints one
JSON line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["JAX_PLATFORMS"] = "cpu"


def main() -> None:
    name, rows, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    passes, least_s = (int(sys.argv[4]), float(sys.argv[5])) if len(sys.argv) > 4 else (9, 3.0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax
    from peers.sampling.ours import RANDOM

    config = RANDOM[name]
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    wide, hidden = config.intermediate_size, config.hidden_size
    shapes = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden)]
    shapes += [(hidden, wide), (hidden, wide), (wide, hidden)]
    shapes = shapes * config.num_layers + [(hidden, config.vocab_size)]
    keys = iter(jax.random.split(jax.random.key(0), 2 * len(shapes)))
    weights = [jax.random.normal(next(keys), shape) for shape in shapes]
    inputs = {n: jax.random.normal(next(keys), (rows, n)) for n in {s[0] for s in shapes}}

    @jax.jit
    def products(weights: list[jax.Array], inputs: dict[int, jax.Array]) -> list[jax.Array]:
        return [inputs[weight.shape[0]] @ weight for weight in weights]

    seconds = []
    while len(seconds) <= passes or sum(seconds[1:]) < least_s:
        start = time.perf_counter()
        jax.block_until_ready(products(weights, inputs))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"tokens_per_s": rows / statistics.median(seconds[1:])}))


if __name__ == "__main__":
    main()
