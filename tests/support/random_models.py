"""Small random models, made by numpy: jax would compile a program for every shape."""

import math

import jax.numpy as jnp
import numpy as np

from polaris_jax.models import Decoder, ModelConfig, param_shapes


def random_model(
    config: ModelConfig, seed: int = 0, *, scale: float = 1.0, noise: float = 0.0, dtype="float32"
) -> Decoder:
    """Weights distributed as `Decoder.init` makes them, then changed.

    Args:
        config: the architecture.
        seed: another one gives other weights.
        scale: every weight times this.
        noise: standard deviation of what is added to each weight. Norms start at 1 and biases at 0:
            a test could not tell one from the other.
        dtype: of the weights.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in param_shapes(config).items():
        name = path.split("/")[-1]
        if "norm" in name:
            values = np.ones(shape)
        elif "bias" in name:
            values = np.zeros(shape)
        else:
            inputs = config.num_heads * config.head_dim if name == "o_NHD" else shape[1]
            std = 0.02 if name.endswith("VD") else 1 / math.sqrt(inputs)
            values = std * rng.standard_normal(shape)
        values = scale * values + noise * rng.standard_normal(shape)
        params[path] = jnp.asarray(values.astype(np.float32).astype(jnp.dtype(dtype)))
    return Decoder.from_params(config, params)
