"""Log-probs of packed rows over the complete mesh: the model inside `jax.shard_map`.

Each device holds a shard of every parameter and its own tokens of its own rows; [B, T] is the local
shape here. The devices exchange:

    parameters      As a layer runs, its matrices are cast to the compute dtype and gathered over
                    the axes that only store them. Their gradients return by a float32
                    reduce-scatter. Heads and MLP width stay split over `tensor`.
    activations     The residual stream and the norms work on a device's own tokens. A block gathers
                    its input over `tensor` and scatters its partial sums back (Korthikanti et al.
                    2022, "Reducing activation recomputation in large transformer models", section
                    4.2).
    keys, values    Keys and values are gathered over `context` layer by layer; queries stay. Rows
                    are laid out in zigzag order, so that every context shard has the same causal
                    work.
    vocabulary      The vocabulary is split over `context` and `tensor`; see `models.counted_loss`.
                    The head runs only at tokens that count.

Nothing here is summed over the batch: each device differentiates its own share of the loss and then
calls `reduce_gradients`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from polaris_jax.config import ConfigError, ModelSection, row_unit_tokens
from polaris_jax.models import (
    CHUNK_TOKENS,
    Around,
    Attention,
    ContextShard,
    Decoder,
    HeadLoop,
    Layers,
    ModelConfig,
    attend,
    counted_logprobs,
    counted_loss,
    in_row_order,
    model_tree_path,
    packs_rows,
    param_axes,
    param_shapes,
    resolve_attention,
    row_order,
)
from polaris_jax.models.decoder import run_layers
from polaris_jax.models.products import product_on
from polaris_jax.sharding import (
    CONTEXT,
    MESH_AXES,
    TENSOR,
    TOKEN_AXES,
    TRAINER_RULES,
    leaf_spec,
    wide_axes,
)
from polaris_jax.system import processes
from polaris_jax.system.progress import say
from polaris_jax.train.split_embedding import embed_tokens

Arrays = dict[str, Array]
# (dimension, mesh axes) of each gather that turns a stored shard into what a layer's products need.
Gathers = tuple[tuple[int, tuple[str, ...]], ...]

MAX_UNROLLED_LAYERS = 8
# A CPU's caches hold the logits of few tokens: 128 take a quarter less time than 512 (V = 8,192).
CPU_HEAD_CHUNK_TOKENS = 128
CONTEXT_LAYOUT = "zigzag"


@dataclasses.dataclass(frozen=True)
class ShardedModel:
    """How one architecture runs on one mesh; static under jit.

    Attributes:
        config: the architecture.
        mesh: from `sharding.make_mesh`.
        row_len: tokens of a complete packed row, over all shards.
        dtype: dtype of the computation; parameters and their gradients are float32.
        attention: the resolved back end.
        remat: see `models.decoder.run_layers`.
        specs: PartitionSpec of every parameter by its path.
    """

    config: ModelConfig
    mesh: Mesh
    row_len: int
    dtype: str
    attention: Attention
    remat: str
    specs: tuple[tuple[str, PartitionSpec], ...]

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices, which may be absent (ahead-of-time compiles)."""
        return self.mesh.devices.flat[0].platform

    def spec(self, path: str) -> PartitionSpec:
        """The PartitionSpec under which the parameter is stored."""
        return dict(self.specs)[path]

    def axes(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The mesh axes of `names` that have more than one device."""
        return wide_axes(self.mesh, names)

    def token_order(self) -> np.ndarray | None:
        """int32 [row_len], the row's index at each place of the layout; None: in row order."""
        shards = self.mesh.shape[CONTEXT]
        return row_order(self.row_len, shards, CONTEXT_LAYOUT) if shards > 1 else None


def sharded_model(
    config: ModelConfig,
    section: ModelSection,
    mesh: Mesh,
    *,
    row_len: int,
    say: Callable[[str], None] = lambda line: None,
) -> ShardedModel:
    """How one architecture runs on a mesh with a row length, after checks.

    `say` gets a line if `model.attention=auto` finds none of the platform's own back ends.

    Raises:
        ConfigError: a mesh axis does not divide what it splits, or the attention back end does not
            support the platform or the shapes.
    """
    _check_mesh(config, mesh, row_len=row_len)
    platform = mesh.devices.flat[0].platform
    try:
        attention = resolve_attention(
            section.attention,
            platform=platform,
            length=row_len,
            head_dim=config.head_dim,
            num_heads=config.num_heads // mesh.shape[TENSOR],
            num_kv_heads=config.num_kv_heads // mesh.shape[TENSOR],
            context_shards=mesh.shape[CONTEXT],
            dtype=section.arithmetic,
            one_segment_a_row=not packs_rows(section.attention),
            say=say,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    shapes, axes = param_shapes(config), param_axes(config)
    specs = tuple(
        (path, leaf_spec(path, shapes[path], axes[path], mesh=mesh, rules=TRAINER_RULES))
        for path in sorted(shapes)
    )
    return ShardedModel(config, mesh, row_len, section.arithmetic, attention, section.remat, specs)


def warn_of_copies(config: ModelConfig, mesh: Mesh) -> None:
    """Says so, once a run, if devices would hold the same weights that could hold parts of them."""
    width, axis = config.hidden_size, "embed"
    asked = wide_axes(mesh, TRAINER_RULES[axis])
    spec = leaf_spec(axis, (width,), (axis,), mesh=mesh, rules=TRAINER_RULES)
    taken = (spec[0],) if isinstance(spec[0], str) else spec[0] or ()
    parts, held = (math.prod(mesh.shape[name] for name in names) for names in (asked, taken))
    if held < parts and processes.is_first():
        named = " x ".join(f"mesh.{name}={mesh.shape[name]}" for name in asked)
        share = "all" if held == 1 else f"1/{held} of all"
        say(
            f"warning: {named} does not divide the model's hidden_size={width}, so that each "
            f"device holds {share} weights and their optimizer state, not 1/{parts} of them; "
            "choose sizes whose product is a divisor",
            sys.stderr,
        )


def _check_mesh(config: ModelConfig, mesh: Mesh, *, row_len: int) -> None:
    tensor, context = mesh.shape[TENSOR], mesh.shape[CONTEXT]
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        size = getattr(config, name)
        if size % tensor:
            raise ConfigError(
                f"mesh.tensor={tensor}: must divide the model's {name}={size}; choose a divisor"
            )
    unit = row_unit_tokens(context, tensor)
    if row_len % unit:
        raise ConfigError(
            f"batch.row_len={row_len}: the tokens of a row are split over mesh.context={context} "
            f"(twice as many parts, for balance) and mesh.tensor={tensor}; choose a multiple of "
            f"{unit}, or 0"
        )


def local_logprobs(params: Decoder, arrays: Arrays, sharded: ShardedModel) -> tuple[Array, Array]:
    """(logp_BT, entropy_BT) of this device's counted tokens, float32, nats; inside shard_map.

    An entry has the meaning that `models.token_logprobs` documents, and is 0 at tokens that do not
    count. Not differentiable.

    Args:
        params: this device's shard of each parameter, float32.
        arrays: token_BT, target_BT, position_BT, segment_BT, temperature_BT, weight_BT and fresh_BT
            of this device's tokens, in `sharded.token_order`; and branch_BT if prompts are shared.
            A token counts, in the loss or in the log-prob gap, if its weight_BT or its fresh_BT is
            not 0.
        sharded: how the model runs on the mesh.
    """
    return counted_logprobs(*_head_inputs(params, arrays, sharded), loop=_head_loop(sharded))


def local_token_losses(
    params: Decoder,
    arrays: Arrays,
    sharded: ShardedModel,
    *,
    terms: Arrays,
    token_loss: Callable[[Array, Array, Arrays], Array],
) -> tuple[Array, Array, Array]:
    """(loss, logp_BT, entropy_BT) of this device's counted tokens; inside shard_map.

    The loss is the sum of `token_loss` over the counted tokens, and is differentiable in `params`.
    The other two are the results of `local_logprobs`, without a gradient.

    Args:
        params: see `local_logprobs`.
        arrays: see `local_logprobs`.
        sharded: how the model runs on the mesh.
        terms: see `models.counted_loss`.
        token_loss: see `models.counted_loss`.
    """
    inputs = _head_inputs(params, arrays, sharded)
    return counted_loss(*inputs, terms, token_loss=token_loss, loop=_head_loop(sharded))


def _head_loop(sharded: ShardedModel) -> HeadLoop:
    # All devices of the mesh run in lockstep, not only those that share the vocabulary: at the next
    # gather of a weight the others have to wait for the slowest in any case.
    return HeadLoop(
        chunk_tokens=CPU_HEAD_CHUNK_TOKENS if sharded.platform == "cpu" else CHUNK_TOKENS,
        vocab_axes=_axes_of(sharded.spec("embed_VD")[0]),
        lockstep_axes=sharded.axes(MESH_AXES),
    )


HeadInputs = tuple[Array, Array, Array, Array, Array]


def _head_inputs(params: Decoder, arrays: Arrays, sharded: ShardedModel) -> HeadInputs:
    """head_VD, hidden_BTD, target_BT, temperature_BT, counted_BT of this device's tokens."""
    head = "embed_VD" if sharded.config.tie_embeddings else "head_VD"
    return (
        _table(params.head_weight(), head, sharded),
        _local_hidden(params, arrays, sharded),
        arrays["target_BT"],
        arrays["temperature_BT"],
        (arrays["weight_BT"] != 0) | (arrays["fresh_BT"] != 0),
    )


def _local_hidden(params: Decoder, arrays: Arrays, sharded: ShardedModel) -> Array:
    """Final hidden states [B, T, D] of this device's tokens."""
    vocab_axes = _axes_of(sharded.spec("embed_VD")[0])
    with jax.named_scope("embed"):
        table_VD = _table(params.embed_VD[...], "embed_VD", sharded)
        static = (vocab_axes, sharded.dtype, table_VD.shape[0])
        x_BTD: Any = embed_tokens(static, table_VD, arrays["token_BT"])
    context, tensor = sharded.axes((CONTEXT,)), sharded.axes((TENSOR,))
    segment_BS, branch_BS = (
        None if x is None else _in_row_order(_gather_tokens(x, context + tensor), sharded)
        for x in (arrays["segment_BT"], arrays.get("branch_BT"))
    )
    position_BT = _gather_tokens(arrays["position_BT"], tensor)
    shard = ContextShard(CONTEXT, sharded.mesh.shape[CONTEXT], CONTEXT_LAYOUT) if context else None

    def attention(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
        k, v = (_in_row_order(_gather_tokens(x, context), sharded) for x in (k, v))
        backend = sharded.attention
        out = attend(q, k, v, segment_BS, backend=backend, context=shard, branch_BS=branch_BS)
        return out, carry

    hidden_BTD, _ = run_layers(
        params.config,
        params.layers,
        params.norm_D[...],
        x_BTD,
        position_BT,
        attention,
        None,
        remat=sharded.remat,  # pyright: ignore[reportArgumentType]
        # On the CPU a scan copies each layer's weights; unrolling deep models costs compile time.
        unroll=sharded.platform == "cpu" and sharded.config.num_layers <= MAX_UNROLLED_LAYERS,
        around=_Gathered(sharded),
    )
    return hidden_BTD


def reduce_gradients(grads: Decoder, sharded: ShardedModel) -> Decoder:
    """This device's shard of the full gradient, from the gradient of its own share of the loss."""

    def reduce(key_path: tuple[Any, ...], grad: Array) -> Array:
        held = {a for part in sharded.spec(model_tree_path(key_path)) for a in _axes_of(part)}
        rest = sharded.axes(tuple(a for a in MESH_AXES if a not in held))
        return jax.lax.psum(grad, rest) if rest else grad

    return jax.tree_util.tree_map_with_path(reduce, grads)


class _Gathered(Around):
    """Gathers weights for a layer's products, and moves activations between tokens and heads."""

    def __init__(self, sharded: ShardedModel):
        super().__init__(product_on(sharded.platform, sharded.dtype))
        self._sharded = sharded
        self._tensor = sharded.axes((TENSOR,))

    def weights(self, layer: Layers) -> Layers:
        def gather(key_path: tuple[Any, ...], w: Array) -> Array:
            spec = self._sharded.spec(f"layers/{model_tree_path(key_path)}")
            # A layer's slice has no L; heads and MLP width stay split.
            gathers = _gathers(spec[1:], keep=(TENSOR,))
            return _gather_weight(gathers, self._sharded.dtype, w)

        return jax.tree_util.tree_map_with_path(gather, layer)

    def enter(self, x_BTD: Array) -> Array:
        return _gather_tokens(x_BTD, self._tensor)

    def sum_over_heads(self, x_BT: Array) -> Array:
        return jax.lax.psum(x_BT, self._tensor) if self._tensor else x_BT

    def leave(self, x_BTD: Array) -> Array:
        if not self._tensor:
            return x_BTD
        return jax.lax.psum_scatter(x_BTD, self._tensor, scatter_dimension=1, tiled=True)


def _table(table_VD: Array, path: str, sharded: ShardedModel) -> Array:
    """A vocabulary table with complete rows: values of the compute dtype in float32.

    The pair of casts costs nothing, because the compiler folds the two. It makes the table's
    gradient, a sum over all tokens, float32.
    """
    gathers = _gathers(sharded.spec(path), keep=TOKEN_AXES)
    whole_VD: Any = _gather_weight(gathers, sharded.dtype, table_VD)
    return whole_VD.astype(jnp.float32)


def _axes_of(part: Any) -> tuple[str, ...]:
    """The mesh axes of one dimension of a PartitionSpec."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _gathers(spec: Any, *, keep: tuple[str, ...]) -> Gathers:
    parts = (
        (dim, tuple(a for a in _axes_of(part) if a not in keep)) for dim, part in enumerate(spec)
    )
    return tuple((dim, axes) for dim, axes in parts if axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather_weight(gathers: Gathers, dtype: DTypeLike, w: Array) -> Array:
    w = w.astype(dtype)
    for dim, axes in gathers:
        w = jax.lax.all_gather(w, axes, axis=dim, tiled=True)
    return w


def _gather_weight_forward(gathers: Gathers, dtype: DTypeLike, w: Array) -> tuple[Array, None]:
    return _gather_weight(gathers, dtype, w), None


def _gather_weight_backward(
    gathers: Gathers, dtype: DTypeLike, _: None, grad: Array
) -> tuple[Array]:
    # The devices' gradients are summed in float32, whatever the dtype of the product.
    grad = grad.astype(jnp.float32)
    for dim, axes in reversed(gathers):
        grad = jax.lax.psum_scatter(grad, axes, scatter_dimension=dim, tiled=True)
    return (grad,)


_gather_weight.defvjp(_gather_weight_forward, _gather_weight_backward)


def _gather_tokens(x: Array, axes: tuple[str, ...]) -> Array:
    """[B, T, ...] of all devices along `axes`, in the layout's order."""
    return jax.lax.all_gather(x, axes, axis=1, tiled=True) if axes else x


def _in_row_order(x: Array, sharded: ShardedModel) -> Array:
    """[B, S, ...] of complete rows, reordered from the layout's order to row order."""
    return in_row_order(x, sharded.mesh.shape[CONTEXT], CONTEXT_LAYOUT)
