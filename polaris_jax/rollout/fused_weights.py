"""The sampler's weights as a CPU likes them: every matrix an array of its own, some side by side.

Over stacked weights a scan copies each layer's slice before it multiplies: twice the time of a
step of few rows. So each layer's matrices are arrays of their own, and the loop over layers picks
one by `lax.switch`, whose branches hold nothing but the product: speed of an unrolled loop, and
the layer is compiled once however many there are. Q, K and V make one product, gate and up another.
The head is [D, V], the order in which a product with few rows runs fastest; tied embeddings are its
columns.

One device only. The layer itself is `models.qwen`'s, by way of `Around`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polaris_jax.models import Around, Attention, ModelConfig, Qwen, attend
from polaris_jax.models.layers import project
from polaris_jax.models.qwen import Attend, Layers, run_layers

MATRICES = ("q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedWeights:
    """A model for decoding; an immutable pytree with what `Qwen` has for a forward pass.

    Attributes:
        config: the architecture.
        layers: norms and biases, stacked; the matrices are None.
        qkv_DX: of each layer, [D, (N + 2K) H].
        output_XD: of each layer, [N H, D].
        gate_up_DX: of each layer, [D, 2F].
        down_FD: of each layer.
        norm_D: the final norm.
        head_DV: the head; where it is tied, its columns are the embeddings.
        embed_VD: the embeddings, or None where they are tied.
    """

    layers: Layers
    qkv_DX: tuple[Array, ...]
    output_XD: tuple[Array, ...]
    gate_up_DX: tuple[Array, ...]
    down_FD: tuple[Array, ...]
    norm_D: Array
    head_DV: Array
    embed_VD: Array | None
    config: ModelConfig = dataclasses.field(metadata={"static": True})

    def __call__(
        self,
        token_BT: Array,
        position_BT: Array,
        segment_BT: Array | None = None,
        *,
        attention: Attention = "auto",
        remat: str = "none",
    ) -> Array:
        """`Qwen.__call__`, forward only."""
        del remat

        def attend_row(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
            return attend(q, k, v, segment_BT, backend=attention), carry

        return self.forward(token_BT, position_BT, attend_row, None)[0]

    def head_weight(self) -> Array:
        """`Qwen.head_weight`: [V, D]."""
        return self.head_DV.T

    def forward(
        self,
        token_BT: Array,
        position_BT: Array,
        attend: Attend,
        carry: Any,
        *,
        unroll: bool = False,
    ) -> tuple[Array, Any]:
        """`Qwen.forward`; layers always go by a loop, which costs nothing here."""
        del unroll
        if self.embed_VD is None:
            x_BTD = jnp.moveaxis(self.head_DV[:, token_BT], 0, -1)
        else:
            x_BTD = self.embed_VD[token_BT]
        return run_layers(
            self.config,
            self.layers,
            self.norm_D,
            x_BTD,
            position_BT,
            attend,
            carry,
            around=_FusedProducts(self),
        )

    def unembed(self, hidden_BTD: Array) -> Array:
        """`Qwen.unembed`: float32 logits [B, T, V]."""
        batch, length, width = hidden_BTD.shape
        logit_XV = jnp.matmul(
            hidden_BTD.reshape(-1, width), self.head_DV, preferred_element_type=jnp.float32
        )
        return logit_XV.reshape(batch, length, -1)


class _FusedProducts(Around):
    """The products of the layer that the loop has come to."""

    def __init__(self, weights: FusedWeights):
        self._weights = weights

    def qkv(self, index: Array, layer: Layers, x_BTD: Array) -> tuple[Array, Array, Array]:
        del layer
        config = self._weights.config
        width, heads = config.head_dim, config.num_heads
        ends = (heads * width, (heads + config.num_kv_heads) * width)
        parts = jnp.split(_product(index, self._weights.qkv_DX, x_BTD), ends, axis=-1)
        q, k, v = (x.reshape(*x.shape[:2], -1, width) for x in parts)
        return q, k, v

    def attention_output(self, index: Array, layer: Layers, out_BTNH: Array) -> Array:
        del layer
        out_BTX = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
        return _product(index, self._weights.output_XD, out_BTX)

    def mlp(self, index: Array, layer: Layers, x_BTD: Array) -> Array:
        del layer
        gate_BTF, up_BTF = jnp.split(_product(index, self._weights.gate_up_DX, x_BTD), 2, axis=-1)
        return _product(index, self._weights.down_FD, jax.nn.silu(gate_BTF) * up_BTF)


def _product(index: Array, weights: tuple[Array, ...], x_BTD: Array) -> Array:
    """`x_BTD` times the weights of layer `index`: one branch a layer, with the product alone."""
    branches = [lambda x, w, i=i: project(x, w[i]) for i in range(len(weights))]
    return jax.lax.switch(index, branches, x_BTD, weights)


def fuse(model: Qwen) -> FusedWeights:
    """The weights of `model` in arrays of their own; to be jitted."""
    config, p = model.config, model.params()
    rows_L = range(config.num_layers)

    def each(*names: str, rows: int) -> tuple[Array, ...]:
        parts = [[p[f"layers/{n}"][i].reshape(rows, -1) for n in names] for i in rows_L]
        return tuple(jnp.concatenate(part, axis=1) for part in parts)

    width, heads_width = config.hidden_size, config.num_heads * config.head_dim
    kept = {path.removeprefix("layers/"): x for path, x in p.items() if path.startswith("layers/")}
    return FusedWeights(
        layers=Layers({name: x for name, x in kept.items() if name not in MATRICES}),
        qkv_DX=each("q_DNH", "k_DKH", "v_DKH", rows=width),
        output_XD=each("o_NHD", rows=heads_width),
        gate_up_DX=each("gate_DF", "up_DF", rows=width),
        down_FD=each("down_FD", rows=config.intermediate_size),
        norm_D=p["norm_D"],
        head_DV=model.head_weight().T,
        embed_VD=None if config.tie_embeddings else p["embed_VD"],
        config=config,
    )
