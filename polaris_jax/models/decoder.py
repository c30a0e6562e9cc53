"""The model of trainer and sampler: one decoder for every family of `family.FAMILIES`.

`Decoder` is a `flax.nnx.Module` used as an immutable pytree, with plain `jax.jit`, `jax.grad` and
`tree.map`. Layers are stacked on a leading L axis and scanned. Trainer and sampler pass different
`attend` functions to `forward`: the trainer's attends within the row, and the sampler's writes keys
and values into its page pool, which is part of the scan's carry.

A layer does what its parameters are for: biases, norms before or after a block and norms of queries
and keys are left out if the family has no parameters for them.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from polaris_jax.models import attention as attention_lib
from polaris_jax.models.config import ModelConfig, RopeScaling
from polaris_jax.models.family import PARAMS, param_shapes
from polaris_jax.models.layers import (
    GATES,
    Around,
    apply_rope,
    rms_norm,
    rms_norm_heads,
    rope_tables,
    shifted,
)

# attend(layer_index, q_BTNH, k_BTKH, v_BTKH, carry) -> (out_BTNH, carry)
Attend = Callable[[Array, Array, Array, Array, Any], tuple[Array, Any]]
# What is kept for the backward pass: "none" keeps everything, "layer" each layer's input, and
# "layer_offload" each layer's input in host memory.
Remat = Literal["none", "layer", "layer_offload"]
LAYER_INPUT = "layer_input"


def model_tree_path(path: tuple[Any, ...]) -> str:
    """The `param_axes` key of a leaf, from its jax key path."""
    names = [str(getattr(k, "name", getattr(k, "key", k))) for k in path]
    return "/".join(n for n in names if n != "value")


class Layers(nnx.Module):
    """Parameters of all layers, stacked on a leading L axis, or of one layer without that axis.

    Parameters that the architecture lacks are None.
    """

    attn_norm_D: nnx.Param | None
    q_DNH: nnx.Param
    k_DKH: nnx.Param
    v_DKH: nnx.Param
    o_NHD: nnx.Param
    q_bias_NH: nnx.Param | None
    k_bias_KH: nnx.Param | None
    v_bias_KH: nnx.Param | None
    q_norm_H: nnx.Param | None
    k_norm_H: nnx.Param | None
    q_norm_NH: nnx.Param | None
    k_norm_KH: nnx.Param | None
    attn_out_norm_D: nnx.Param | None
    mlp_norm_D: nnx.Param | None
    gate_DF: nnx.Param
    up_DF: nnx.Param
    down_FD: nnx.Param
    mlp_out_norm_D: nnx.Param | None

    def __init__(self, params: dict[str, Array]):
        for path in PARAMS:
            folder, _, name = path.rpartition("/")
            if folder:
                setattr(self, name, nnx.Param(params[name]) if name in params else None)


class Decoder(nnx.Module):
    """Weights and forward pass of one decoder; an immutable pytree.

    Build one with `Decoder.init`, `Decoder.from_params`, or `load_pretrained`.
    """

    def __init__(self, config: ModelConfig, params: dict[str, Array]):
        self.config = config
        self.embed_VD = nnx.Param(params["embed_VD"])
        self.layers = Layers(
            {p.removeprefix("layers/"): x for p, x in params.items() if p.startswith("layers/")}
        )
        self.norm_D = nnx.Param(params["norm_D"])
        self.head_VD = None if config.tie_embeddings else nnx.Param(params["head_VD"])

    @classmethod
    def from_params(cls, config: ModelConfig, params: dict[str, Array]) -> Decoder:
        """A model over the given arrays, keyed like `param_shapes`.

        Raises:
            ValueError: a parameter is missing, unexpected or misshapen; the message names it.
        """
        shapes = param_shapes(config)
        if missing := sorted(shapes.keys() - params.keys()):
            raise ValueError(f"parameters {missing}: missing for model_type={config.model_type}")
        if extra := sorted(params.keys() - shapes.keys()):
            raise ValueError(f"parameters {extra}: unexpected for model_type={config.model_type}")
        for path, shape in shapes.items():
            if tuple(params[path].shape) != shape:
                raise ValueError(f"{path}: shape {tuple(params[path].shape)}, expected {shape}")
        return cls(config, params)

    @classmethod
    def init(cls, config: ModelConfig, key: Array, *, dtype: DTypeLike = jnp.float32) -> Decoder:
        """Random weights: norms 1, biases 0, embeddings std 0.02, matrices std fan_in^-1/2."""
        params = {}
        for path, shape in param_shapes(config).items():
            name = path.split("/")[-1]
            if "norm" in name:
                params[path] = jnp.ones(shape, dtype)
            elif "bias" in name:
                params[path] = jnp.zeros(shape, dtype)
            else:
                fan_in = {"o_NHD": config.num_heads * config.head_dim}.get(name, shape[1])
                std = 0.02 if name.endswith("VD") else fan_in**-0.5
                noise = jax.random.normal(jax.random.fold_in(key, _stable_id(path)), shape)
                params[path] = (noise * std).astype(dtype)
        return cls.from_params(config, params)

    def params(self) -> dict[str, Array]:
        """Every parameter by its path, stacked layers; the inverse of `from_params`."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self)
        return {model_tree_path(path): leaf for path, leaf in leaves}

    def with_rope_scaling(self, rope_scaling: RopeScaling | None) -> Decoder:
        """The same weights under other rotary frequencies."""
        config = dataclasses.replace(self.config, rope_scaling=rope_scaling)
        return Decoder.from_params(config, self.params())

    def __call__(
        self,
        token_BT: Array | np.ndarray,
        position_BT: Array | np.ndarray,
        segment_BT: Array | np.ndarray | None = None,
        *,
        attention: attention_lib.Attention = "auto",
        remat: Remat = "none",
    ) -> Array:
        """Final hidden states after the last norm, [B, T, D]; `unembed` turns them into logits.

        Args:
            token_BT: token ids in [0, V). Ids outside are clamped silently; check them on the host.
            position_BT: rotary positions, from 0 in each segment.
            segment_BT: 0 is padding, segments count from 1; None: one segment a row.
            attention: back end, see models.attention.
            remat: "layer" keeps only each layer's input for the backward pass.
        """
        token_BT, position_BT = jnp.asarray(token_BT), jnp.asarray(position_BT)
        segment_BT = None if segment_BT is None else jnp.asarray(segment_BT)

        def attend(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
            return attention_lib.attend(q, k, v, segment_BT, backend=attention), carry

        return self.forward(token_BT, position_BT, attend, None, remat=remat)[0]

    def forward(
        self,
        token_BT: Array,
        position_BT: Array,
        attend: Attend,
        carry: Any,
        *,
        remat: Remat = "none",
        unroll: bool = False,
    ) -> tuple[Array, Any]:
        """Final hidden states and the last `carry`; `attend` computes the attention.

        Args:
            token_BT: token ids.
            position_BT: rotary positions.
            attend: (layer index, q_BTNH, k_BTKH, v_BTKH, carry) -> (out_BTNH, carry), with
                QK-norm and rotary positions already applied.
            carry: state that is passed from layer to layer (the sampler's page pool), or None.
            remat: see `__call__`.
            unroll: True for a Python loop over layers instead of a scan; on the CPU a scan copies
                each layer's weights.
        """
        x_BTD = self.embed_VD[...][token_BT]
        return run_layers(
            self.config,
            self.layers,
            self.norm_D[...],
            x_BTD,
            position_BT,
            attend,
            carry,
            remat=remat,
            unroll=unroll,
        )

    def unembed(self, hidden_BTD: Array) -> Array:
        """float32 logits [B, T, V] from hidden states."""
        head_VD = self.head_weight()
        return jnp.einsum("btd,vd->btv", hidden_BTD, head_VD, preferred_element_type=jnp.float32)

    def head_weight(self) -> Array:
        """The head's rows, [V, D]; the embedding's rows if head and embedding are tied."""
        return (self.embed_VD if self.head_VD is None else self.head_VD)[...]


def run_layers(
    config: ModelConfig,
    layers: Layers,
    norm_D: Array,
    x_BTD: Array,
    position_BT: Array,
    attend: Attend,
    carry: Any,
    *,
    remat: Remat = "none",
    unroll: bool = False,
    around: Around | None = None,
) -> tuple[Array, Any]:
    """`Decoder.forward` from embedded tokens, over stacked layers of any owner.

    Args:
        config: the architecture.
        layers: stacked layers; matrices may be None if `around` makes the products itself.
        norm_D: weights of the final norm.
        x_BTD: embeddings of this device's tokens.
        position_BT: rotary positions of the tokens that `attend` gets, i.e. after `around.enter`.
        attend: see `Decoder.forward`.
        carry: see `Decoder.forward`.
        remat: see `Decoder.__call__`.
        unroll: see `Decoder.forward`.
        around: a layer's products and the steps around them; None: those of one device.
    """
    if config.family.scale_embeddings:
        x_BTD = x_BTD * jnp.asarray(config.hidden_size**0.5, x_BTD.dtype)
    cos_BTh, sin_BTh = rope_tables(position_BT, config)
    layer_fn = functools.partial(_layer, config, attend, cos_BTh, sin_BTh, around or Around())
    if remat not in get_args(Remat):
        raise ValueError(f"remat={remat!r}: expected one of {', '.join(get_args(Remat))}")
    if remat != "none":
        layer_fn = jax.checkpoint(layer_fn, policy=_policy(remat), prevent_cse=unroll)
    index_L = jnp.arange(config.num_layers)
    if unroll:
        for i, layer in enumerate(_unstacked(layers, config.num_layers)):
            (x_BTD, carry), _ = layer_fn((x_BTD, carry), (index_L[i], layer))
    else:
        (x_BTD, carry), _ = jax.lax.scan(layer_fn, (x_BTD, carry), (index_L, layers))
    return rms_norm(x_BTD, norm_D.astype(x_BTD.dtype), config.rms_norm_eps), carry


def _layer(
    config: ModelConfig,
    attend: Attend,
    cos_BTh: Array,
    sin_BTh: Array,
    around: Around,
    state: tuple[Array, Any],
    xs: tuple[Array, Layers],
) -> tuple[tuple[Array, Any], None]:
    x_BTD, carry = state
    x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
    index, p = xs
    with jax.named_scope("weights"):
        p = around.weights(p)
    with jax.named_scope("attention"):
        y_BTD = around.enter(_normed(x_BTD, p.attn_norm_D, config))
        q_BTNH, k_BTKH, v_BTKH = around.qkv(index, p, y_BTD)
        if p.q_bias_NH is not None and p.k_bias_KH is not None and p.v_bias_KH is not None:
            q_BTNH = shifted(q_BTNH, p.q_bias_NH[...])
            k_BTKH = shifted(k_BTKH, p.k_bias_KH[...])
            v_BTKH = shifted(v_BTKH, p.v_bias_KH[...])
        q_BTNH = _qk_normed(q_BTNH, p.q_norm_H, p.q_norm_NH, config.num_heads, config, around)
        k_BTKH = _qk_normed(k_BTKH, p.k_norm_H, p.k_norm_KH, config.num_kv_heads, config, around)
        q_BTNH = apply_rope(q_BTNH, cos_BTh, sin_BTh)
        k_BTKH = apply_rope(k_BTKH, cos_BTh, sin_BTh)
        out_BTNH, carry = attend(index, q_BTNH, k_BTKH, v_BTKH, carry)
        out_BTD = around.leave(around.attention_output(index, p, out_BTNH))
        x_BTD = x_BTD + _normed(out_BTD, p.attn_out_norm_D, config)
    with jax.named_scope("mlp"):
        y_BTD = around.enter(_normed(x_BTD, p.mlp_norm_D, config))
        gate_BTF, up_BTF = around.gate_up(index, p, y_BTD)
        gated_BTF = GATES[config.family.activation](gate_BTF, up_BTF)
        out_BTD = around.leave(around.down(index, p, gated_BTF))
        x_BTD = x_BTD + _normed(out_BTD, p.mlp_out_norm_D, config)
    return (x_BTD, carry), None


def _normed(x_BTD: Array, weight_D: nnx.Param | None, config: ModelConfig) -> Array:
    """`x_BTD`, normed if the family has a norm here."""
    return x_BTD if weight_D is None else rms_norm(x_BTD, weight_D[...], config.rms_norm_eps)


def _qk_normed(
    x_BTNH: Array,
    weight_H: nnx.Param | None,
    weight_NH: nnx.Param | None,
    num_heads: int,
    config: ModelConfig,
    around: Around,
) -> Array:
    """Queries or keys, normed over each head, over all `num_heads` together, or not at all."""
    if weight_H is not None:
        return rms_norm(x_BTNH, weight_H[...], config.rms_norm_eps)
    if weight_NH is None:
        return x_BTNH
    return rms_norm_heads(
        x_BTNH,
        weight_NH[...],
        config.rms_norm_eps,
        width=num_heads * config.head_dim,
        over_heads=around.sum_over_heads,
    )


def _unstacked(layers: Layers, count: int) -> list[Layers]:
    """Each layer's parameters.

    The stack is split and not indexed: the gradient of a split is one concatenation, but the
    gradient of `count` indices is a sum of `count` stacks.
    """
    leaves, treedef = jax.tree.flatten(layers)
    parts = [jax.lax.split(leaf, (1,) * count, axis=0) for leaf in leaves]
    return [treedef.unflatten([part[0] for part in layer]) for layer in zip(*parts, strict=True)]


def _policy(remat: Remat) -> Callable[..., Any]:
    if remat == "layer":
        return jax.checkpoint_policies.nothing_saveable
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )


def _stable_id(text: str) -> int:
    """A 31-bit hash of a name. Keys are folded by name, so a new name leaves others unchanged."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF
