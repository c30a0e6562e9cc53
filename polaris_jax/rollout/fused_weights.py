"""The sampler's weights for a CPU: some matrices side by side, none sliced in a loop.

A scan over stacked weights copies each layer's slice before it multiplies, which doubles the time
of a step of few rows. So a CPU holds the weights in one of two forms (`Matrices`):

    SeparateMatrices  every layer's an array of its own, and the loop over layers picks one by
                      `lax.switch`, whose branches hold nothing but the product: the speed of an
                      unrolled loop, and the layer is compiled once however many there are
    PackedMatrices    all layers' in panels, as the kernels in `native` read them

Q, K and V make one product, gate and up another. The head is [D, V], the order in which a product
with few rows runs fastest; tied embeddings are its columns.

One device only. The layer itself is that of `models.decoder`, called through `Around`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from polaris_jax.models import Around, Attention, Decoder, ModelConfig, attend
from polaris_jax.models.decoder import Attend, Layers, run_layers
from polaris_jax.models.family import param_shapes
from polaris_jax.rollout import native
from polaris_jax.rollout.kv.bits import held, held_dtype, numbers

MATRICES = ("q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD")


class Matrices(Protocol):
    """A matrix [D, X] of each layer."""

    def product(
        self,
        layer: Array | int,
        x_MD: Array,
        *,
        rows: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> Array:
        """[M, X]: `x_MD` times a layer's matrix, in `dtype`, by default that of the two.

        Rows that are not among `rows`, as in `FusedWeights.rows`, may be anything finite; None: all
        count.
        """
        ...

    def columns(self, index: Array) -> Array:
        """[..., D]: columns of the first layer's matrix, by an index of any shape."""
        ...

    def whole(self) -> Array:
        """[D, X]: the first layer's matrix."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeparateMatrices:
    """`Matrices` as one array a layer, for XLA's products."""

    arrays: tuple[Array, ...]

    def product(
        self,
        layer: Array | int,
        x_MD: Array,
        *,
        rows: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> Array:
        """One branch a layer, with the product alone."""
        del rows
        multiply = functools.partial(jnp.matmul, preferred_element_type=dtype)
        branches = [lambda x, w, i=i: multiply(x, w[i]) for i in range(len(self.arrays))]
        return jax.lax.switch(layer, branches, x_MD, self.arrays)

    def columns(self, index: Array) -> Array:
        """See `Matrices`."""
        return jnp.moveaxis(self.arrays[0][:, index], 0, -1)

    def whole(self) -> Array:
        """See `Matrices`."""
        return self.arrays[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMatrices:
    """`Matrices` in panels, for the native product."""

    panel_LPDC: Array
    num_rows: int = dataclasses.field(metadata={"static": True})
    num_columns: int = dataclasses.field(metadata={"static": True})

    def product(
        self,
        layer: Array | int,
        x_MD: Array,
        *,
        rows: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> Array:
        """See `Matrices`; sums are float32."""
        out_MX = native.packed_product(
            layer, x_MD, self.panel_LPDC, columns=self.num_columns, rows=rows
        )
        return out_MX.astype(dtype or x_MD.dtype)

    def columns(self, index: Array) -> Array:
        """See `Matrices`."""
        return native.columns_of(self.panel_LPDC[0], index, rows=self.num_rows)

    def whole(self) -> Array:
        """See `Matrices`."""
        return native.unpacked(self.panel_LPDC[0], rows=self.num_rows, columns=self.num_columns)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedWeights:
    """A model for decoding; an immutable pytree with what `Decoder` has for a forward pass.

    Attributes:
        config: the architecture.
        layers: norms and biases, stacked; the matrices are None.
        qkv: matrices of all layers, each [D, (N + 2K) H].
        output: matrices of all layers, each [N H, D].
        gate_up: matrices of all layers, each [D, 2F].
        down: matrices of all layers, each [F, D].
        norm_D: the final norm.
        head: [D, V]; if head and embeddings are tied, the columns are the embeddings.
        embed_VD: the embeddings, beside `PackedMatrices` as `kv.bits` holds them; None if tied.
        rows: int32 indices of the rows of a call that are needed, ascending; an index behind the
            last row ends the list. Products leave out the others. None: all are needed.
    """

    layers: Layers
    qkv: Matrices
    output: Matrices
    gate_up: Matrices
    down: Matrices
    norm_D: Array
    head: Matrices
    embed_VD: Array | None
    config: ModelConfig = dataclasses.field(metadata={"static": True})
    rows: Array | None = None

    def __call__(
        self,
        token_BT: Array,
        position_BT: Array,
        segment_BT: Array | None = None,
        *,
        attention: Attention = "auto",
        remat: str = "none",
    ) -> Array:
        """`Decoder.__call__`, forward only."""
        del remat

        def attend_row(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
            return attend(q, k, v, segment_BT, backend=attention), carry

        return self.forward(token_BT, position_BT, attend_row, None)[0]

    def head_weight(self) -> Array:
        """`Decoder.head_weight`: [V, D]."""
        return self.head.whole().T

    def forward(
        self,
        token_BT: Array,
        position_BT: Array,
        attend: Attend,
        carry: Any,
        *,
        unroll: bool = False,
    ) -> tuple[Array, Any]:
        """`Decoder.forward`; layers always go by a loop, which costs nothing here."""
        del unroll
        if self.embed_VD is None:
            x_BTD = self.head.columns(token_BT)
        else:
            x_BTD = numbers(self.embed_VD[token_BT])
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
        """`Decoder.unembed`: float32 logits [B, T, V]."""
        batch, length, width = hidden_BTD.shape
        logit_XV = self.head.product(
            0, hidden_BTD.reshape(-1, width), rows=self.rows, dtype=jnp.float32
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
        parts = jnp.split(self._product(index, self._weights.qkv, x_BTD), ends, axis=-1)
        q, k, v = (x.reshape(*x.shape[:2], -1, width) for x in parts)
        return q, k, v

    def attention_output(self, index: Array, layer: Layers, out_BTNH: Array) -> Array:
        del layer
        out_BTX = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
        return self._product(index, self._weights.output, out_BTX)

    def gate_up(self, index: Array, layer: Layers, x_BTD: Array) -> tuple[Array, Array]:
        del layer
        gate_BTF, up_BTF = jnp.split(self._product(index, self._weights.gate_up, x_BTD), 2, axis=-1)
        return gate_BTF, up_BTF

    def down(self, index: Array, layer: Layers, x_BTF: Array) -> Array:
        del layer
        return self._product(index, self._weights.down, x_BTF)

    def _product(self, layer: Array, matrices: Matrices, x_BTD: Array) -> Array:
        batch, length, width = x_BTD.shape
        x_MD = x_BTD.reshape(-1, width)
        out_MX = matrices.product(layer, x_MD, rows=self._weights.rows)
        return out_MX.reshape(batch, length, -1)


# The weights that the programs take: fused on a CPU without a mesh.
Model = Decoder | FusedWeights


def without_dead_tail(model: Model, alive_B: Array) -> Model:
    """The model for a call whose rows behind the last live one are not needed.

    Args:
        model: the weights.
        alive_B: which rows are alive.
    """
    if not isinstance(model, FusedWeights):
        return model
    at_B = jnp.arange(alive_B.shape[0], dtype=jnp.int32)
    last = jnp.max(jnp.where(alive_B, at_B, -1))
    return dataclasses.replace(model, rows=jnp.where(at_B <= last, at_B, at_B.size))


def with_rows(model: Model, rows_M: Array) -> Model:
    """The model for a call in which the rows of a list are needed alone.

    Args:
        model: the weights.
        rows_M: see `FusedWeights.rows`; it has all indices or ends with the number of rows.
    """
    return dataclasses.replace(model, rows=rows_M) if isinstance(model, FusedWeights) else model


def refusal(config: ModelConfig) -> str:
    """Why a model's layers cannot be held as `FusedWeights`; "" if they can."""
    missing = [name for name in MATRICES if f"layers/{name}" not in param_shapes(config)]
    return f"does not know layers without {', '.join(missing)}" if missing else ""


def fuse(model: Decoder, *, packed: bool = False) -> FusedWeights:
    """The weights of `model` for decoding on a CPU; to be jitted.

    Args:
        model: the model, on one device.
        packed: True: make `PackedMatrices`, which need the native kernels. False: make
            `SeparateMatrices`.
    """
    config, p = model.config, model.params()

    def matrices(arrays: list[Array]) -> Matrices:
        if packed:
            return PackedMatrices(native.pack(jnp.stack(arrays)), *arrays[0].shape)
        return SeparateMatrices(tuple(arrays))

    def each(*names: str, rows: int) -> Matrices:
        parts = [
            [p[f"layers/{n}"][i].reshape(rows, -1) for n in names] for i in range(config.num_layers)
        ]
        return matrices([jnp.concatenate(part, axis=1) for part in parts])

    width, heads_width = config.hidden_size, config.num_heads * config.head_dim
    embed_VD = None if config.tie_embeddings else p["embed_VD"]
    if packed and embed_VD is not None:
        embed_VD = held(embed_VD, held_dtype(embed_VD.dtype))
    kept = {path.removeprefix("layers/"): x for path, x in p.items() if path.startswith("layers/")}
    return FusedWeights(
        layers=Layers({name: x for name, x in kept.items() if name not in MATRICES}),
        qkv=each("q_DNH", "k_DKH", "v_DKH", rows=width),
        output=each("o_NHD", rows=heads_width),
        gate_up=each("gate_DF", "up_DF", rows=width),
        down=each("down_FD", rows=config.intermediate_size),
        norm_D=p["norm_D"],
        head=matrices([model.head_weight().T]),
        embed_VD=embed_VD,
        config=config,
    )
