"""RMSNorm, rotary positions with their scalings, the gate of an MLP, and a layer's products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polaris_jax.models.config import ModelConfig, RopeScaling
from polaris_jax.models.products import Product

if TYPE_CHECKING:
    from polaris_jax.models.decoder import Layers


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """`x` scaled to unit root mean square over its last axis, times `weight`; computed in fp32.

    Args:
        x: [..., W].
        weight: [W].
        eps: added to the mean square.
    """
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return scaled(normed.astype(x.dtype), weight)


def scaled(x: Array, weight: Array) -> Array:
    """`x` times `weight` over its last axes, rounded once.

    The gradient of the weight is a sum over all tokens. In bfloat16 it would lose what is below
    1/256 of the sum so far; so the product is one of float32 numbers, which has the same bits.
    """
    return (x.astype(jnp.float32) * _wide(weight, x.ndim)).astype(x.dtype)


def shifted(x: Array, bias: Array) -> Array:
    """`x` plus `bias` over its last axes, rounded once; see `scaled`."""
    return (x.astype(jnp.float32) + _wide(bias, x.ndim)).astype(x.dtype)


def _wide(x: Array, ndim: int) -> Array:
    return jnp.expand_dims(x.astype(jnp.float32), range(ndim - x.ndim))


def rms_norm_heads(
    x_BTNH: Array,
    weight_NH: Array,
    eps: float,
    *,
    width: int,
    over_heads: Callable[[Array], Array],
) -> Array:
    """`rms_norm` over all heads of a token together.

    Args:
        x_BTNH: this device's heads.
        weight_NH: this device's weights.
        eps: added to the mean square.
        width: number of entries of all heads, on all devices.
        over_heads: sums over the devices that hold the other heads.
    """
    x32 = x_BTNH.astype(jnp.float32)
    square_BT = over_heads(jnp.sum(x32 * x32, axis=(-2, -1))) / width
    normed = x32 * jax.lax.rsqrt(square_BT + eps)[..., None, None]
    return scaled(normed.astype(x_BTNH.dtype), weight_NH)


@jax.custom_vjp
def gated(gate: Array, up: Array) -> Array:
    """silu(gate) * up, elementwise.

    The backward pass keeps the two inputs and nothing between: jax's own keeps the sigmoid and the
    silu too, half as much memory again, each written and read once more.
    """
    return jax.nn.silu(gate) * up


def _gated_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated(gate, up), (gate, up)


def _gated_backward(kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    gate, up = kept
    share = jax.nn.sigmoid(gate)
    return grad * up * (share * (1 + gate * (1 - share))), grad * (gate * share)


gated.defvjp(_gated_forward, _gated_backward)

# activation(gate) * up, by config.json's name of the activation.
GATES: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType({"silu": gated})


def rope_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Rotary angle per position for each pair of dimensions, and the factor on cos and sin.

    Returns:
        (float32 [H/2] radians a token, attention factor). Computed in float64 on the host.

    Source: RoFormer, Su et al. 2021 (arXiv:2104.09864); YaRN (arXiv:2309.00071) sections 3.2-3.4;
        llama3: the reference code of Llama 3.1.
    """
    width = config.head_dim
    frequency = config.rope_theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "default":
        return frequency.astype(np.float32), 1.0
    if scaling.rope_type == "linear":
        return (frequency / scaling.factor).astype(np.float32), 1.0
    if scaling.rope_type == "llama3":
        return _llama3(frequency, scaling).astype(np.float32), 1.0
    return _yarn(frequency, scaling, config).astype(np.float32), yarn_attention_factor(scaling)


def yarn_attention_factor(scaling: RopeScaling) -> float:
    """The factor on cos and sin: the explicit one, else 0.1 ln(factor) + 1."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def _yarn(frequency: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    width, original = config.head_dim, scaling.original_max_position_embeddings
    assert original is not None

    def dimension_of(turns: float) -> float:
        """The (fractional) pair that makes `turns` turns over the original length."""
        return (
            width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        )

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    interpolated_share = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    return frequency / scaling.factor * interpolated_share + frequency * (1 - interpolated_share)


def _llama3(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    original = scaling.original_max_position_embeddings
    assert original is not None
    wavelength = 2 * math.pi / frequency
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep_share = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 - keep_share) * frequency / scaling.factor + keep_share * frequency


def rope_tables(position_BT: Array, config: ModelConfig) -> tuple[Array, Array]:
    """cos and sin of every position, float32 [B, T, H/2], attention factor included."""
    frequency, factor = rope_frequencies(config)
    angle_BTh = position_BT.astype(jnp.float32)[..., None] * jnp.asarray(frequency)[None, None]
    return jnp.cos(angle_BTh) * factor, jnp.sin(angle_BTh) * factor


def apply_rope(x_BTNH: Array, cos_BTh: Array, sin_BTh: Array) -> Array:
    """`x_BTNH` with each pair (i, i + H/2) rotated by its angle; computed in fp32."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTh[:, :, None], sin_BTh[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


class Around:
    """A layer's matrix products, and the steps around them, which do nothing in this class.

    `models` does not know the mesh. The trainer's subclass gathers weights that are stored split,
    and moves activations between "each device its own tokens" (residual stream, norms) and "each
    device its own heads" (inside attention and MLP). Another subclass holds the matrices in a
    layout of its own, and so makes the products itself.

    Args:
        product: multiplies activations by a weight matrix; see `products.product_on`.
    """

    def __init__(self, product: Product = jnp.matmul):
        self._multiply = product

    def weights(self, layer: Layers) -> Layers:
        """The layer's parameters in the form that the products need."""
        return layer

    def enter(self, x_BTD: Array) -> Array:
        """A block's input, normed: own tokens -> the tokens that this device's heads work on."""
        return x_BTD

    def leave(self, x_BTD: Array) -> Array:
        """A block's output: partial sums over this device's heads -> own tokens."""
        return x_BTD

    def sum_over_heads(self, x_BT: Array) -> Array:
        """The sum of what the devices that share a token's heads hold."""
        return x_BT

    def qkv(self, index: Array, layer: Layers, x_BTD: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values (q_BTNH, k_BTKH, v_BTKH) of layer `index`, without biases."""
        del index
        return (
            self._project(x_BTD, layer.q_DNH[...]),
            self._project(x_BTD, layer.k_DKH[...]),
            self._project(x_BTD, layer.v_DKH[...]),
        )

    def attention_output(self, index: Array, layer: Layers, out_BTNH: Array) -> Array:
        """[B, T, D] of the heads' outputs in layer `index`."""
        del index
        out_BTX = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
        o_NHD = layer.o_NHD[...]
        return self._project(out_BTX, o_NHD.reshape(-1, o_NHD.shape[-1]))

    def gate_up(self, index: Array, layer: Layers, x_BTD: Array) -> tuple[Array, Array]:
        """The MLP's gate and up projections (gate_BTF, up_BTF) of layer `index`."""
        del index
        return self._project(x_BTD, layer.gate_DF[...]), self._project(x_BTD, layer.up_DF[...])

    def down(self, index: Array, layer: Layers, x_BTF: Array) -> Array:
        """[B, T, D] of the gated projections in layer `index`."""
        del index
        return self._project(x_BTF, layer.down_FD[...])

    def _project(self, x_BTD: Array, weight: Array) -> Array:
        """[B, T, ...]: `x_BTD` times `weight`, [D, ...].

        As one product of two matrices: on the CPU the gradient of the einsum over B and T takes
        twice as long (4,096 tokens, 128 x 384, forward and backward of a gated MLP: 54 ms against
        26).
        """
        batch, length, width = x_BTD.shape
        x_MD = x_BTD.reshape(batch * length, width)
        y = self._multiply(x_MD, weight.reshape(width, -1))
        return y.reshape(batch, length, *weight.shape[1:])
