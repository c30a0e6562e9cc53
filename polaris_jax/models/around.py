"""The matrix products of a layer, which trainers on a mesh and a CPU's sampler replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jax import Array

from polaris_jax.models.layers import project, swiglu

if TYPE_CHECKING:
    from polaris_jax.models.decoder import Layers


class Around:
    """A layer's matrix products, and the steps around them, which do nothing in this class.

    `models` does not know the mesh. The trainer's subclass gathers weights that are stored split,
    and moves activations between "each device its own tokens" (residual stream, norms) and "each
    device its own heads" (inside attention and MLP). Another subclass holds the matrices in a
    layout of its own, and so makes the products itself.
    """

    def weights(self, layer: Layers) -> Layers:
        """The layer's parameters in the form that the products need."""
        return layer

    def enter(self, x_BTD: Array) -> Array:
        """A block's input, normed: own tokens -> the tokens that this device's heads work on."""
        return x_BTD

    def leave(self, x_BTD: Array) -> Array:
        """A block's output: partial sums over this device's heads -> own tokens."""
        return x_BTD

    def qkv(self, index: Array, layer: Layers, x_BTD: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values (q_BTNH, k_BTKH, v_BTKH) of layer `index`, without biases."""
        del index
        return (
            project(x_BTD, layer.q_DNH[...]),
            project(x_BTD, layer.k_DKH[...]),
            project(x_BTD, layer.v_DKH[...]),
        )

    def attention_output(self, index: Array, layer: Layers, out_BTNH: Array) -> Array:
        """[B, T, D] of the heads' outputs in layer `index`."""
        del index
        out_BTX = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
        o_NHD = layer.o_NHD[...]
        return project(out_BTX, o_NHD.reshape(-1, o_NHD.shape[-1]))

    def mlp(self, index: Array, layer: Layers, x_BTD: Array) -> Array:
        """[B, T, D] output of the gated MLP of layer `index`."""
        del index
        return swiglu(x_BTD, layer.gate_DF[...], layer.up_DF[...], layer.down_FD[...])
