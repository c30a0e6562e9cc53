"""The trainer's state between updates: a frozen pytree, placed on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from polaris_jax.config import OptimizerSection
from polaris_jax.models import (
    Decoder,
    ModelConfig,
    RopeScaling,
    load_config,
    load_pretrained,
    model_shardings,
    param_axes,
)
from polaris_jax.sharding import (
    TRAINER_RULES,
    in_host_memory,
    param_shardings,
    private_copies,
    replicated,
)
from polaris_jax.train.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Master weights, moments and counters; every update takes one and returns the next.

    Attributes:
        params: float32 weights. The update donates them: copy weights that must outlive an update.
        opt_state: AdamW's moments, split like the weights (in host memory with
            `optimizer.moments_in_host_memory`), and its step count.
        step: int32, updates applied since the run began (skipped ones not counted).
        skips_in_a_row: int32, updates skipped for non-finite gradients since the last applied one.
    """

    params: Decoder
    opt_state: Any
    step: Array
    skips_in_a_row: Array


def init_train_state(
    model: Decoder, optimizer: OptimizerSection, mesh: Mesh, *, take: bool = False
) -> TrainState:
    """A fresh state around float32 copies of `model`'s weights, placed on the mesh.

    The copies share no buffer with `model`. With several processes `model` either holds the same
    values in each process, on host or local devices, or is placed on a mesh of all processes.

    Args:
        model: the weights.
        optimizer: the optimizer's settings.
        mesh: the trainer's mesh.
        take: True to use the arrays of `model` without copies if they are float32 and placed as the
            trainer needs them, so that memory holds one model only. The first update then deletes
            the arrays, so the caller must not keep `model`.
    """
    shardings = state_shardings(model.config, optimizer, mesh)
    if take and is_placed(model, shardings.params):
        return _fresh(model, optimizer, shardings)
    params = private_copies(model, shardings.params, dtype=jnp.float32)
    return _fresh(params, optimizer, shardings)


def is_placed(model: Decoder, shardings: Decoder) -> bool:
    """True if every weight is float32 and has its sharding."""
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(shardings), strict=True)
    return all(leaf.dtype == jnp.float32 and leaf.sharding == s for leaf, s in pairs)


def random_train_state(
    config: ModelConfig, key: Array, *, optimizer: OptimizerSection, mesh: Mesh
) -> TrainState:
    """A fresh state around random weights, made in place on the mesh."""
    shardings = state_shardings(config, optimizer, mesh)
    make = jax.jit(lambda key: Decoder.init(config, key), out_shardings=shardings.params)
    return _fresh(make(key), optimizer, shardings)


def abstract_train_state(
    config: ModelConfig, optimizer: OptimizerSection, *, mesh: Mesh
) -> TrainState:
    """The state's shapes, dtypes and shardings without its arrays: for restore and AOT compiles."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _abstract(config, optimizer),
        state_shardings(config, optimizer, mesh),
    )


def state_shardings(config: ModelConfig, optimizer: OptimizerSection, mesh: Mesh) -> TrainState:
    """A TrainState with a NamedSharding in place of every leaf: moments are split like weights."""
    abstract = _abstract(config, optimizer)
    params = param_shardings(abstract.params, mesh, TRAINER_RULES, axes=param_axes(config))
    moments = in_host_memory(params) if optimizer.moments_in_host_memory else params
    rest = dataclasses.replace(abstract, params=None)
    rest = _map_models(lambda _: moments, rest, other=lambda _: replicated(mesh))
    return dataclasses.replace(rest, params=params)


def _map_models(
    function: Callable[[Decoder], Any],
    tree: Any,
    *,
    other: Callable[[Any], Any] = lambda leaf: leaf,
) -> Any:
    """A pytree with `function` applied to each model in it, and `other` to all other leaves."""
    return jax.tree.map(
        lambda node: function(node) if isinstance(node, Decoder) else other(node),
        tree,
        is_leaf=lambda node: isinstance(node, Decoder),
    )


def parked_shardings(shardings: TrainState) -> TrainState:
    """`state_shardings` with weights and moments in host memory; the counters stay on device."""
    model_shardings = in_host_memory(shardings.params)
    opt_state = _map_models(lambda _: model_shardings, shardings.opt_state)
    return dataclasses.replace(shardings, params=model_shardings, opt_state=opt_state)


def fresh_moments(
    state: TrainState, optimizer: OptimizerSection, *, shardings: TrainState
) -> TrainState:
    """`state` with zero moments, as at a stage change; weights and `step` stay."""
    init: Any = jax.jit(make_optimizer(optimizer).init, out_shardings=shardings.opt_state)
    return dataclasses.replace(state, opt_state=init(state.params))


def _abstract(config: ModelConfig, optimizer: OptimizerSection) -> TrainState:
    def init(key: Array) -> TrainState:
        params: Any = Decoder.init(config, key)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, make_optimizer(optimizer).init(params), zero, zero)

    return jax.eval_shape(init, jax.random.key(0))


def _fresh(params: Decoder, optimizer: OptimizerSection, shardings: TrainState) -> TrainState:
    def init(params: Any) -> tuple[Any, Array, Array]:
        opt_state = make_optimizer(optimizer).init(params)
        return opt_state, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    out = (shardings.opt_state, shardings.step, shardings.skips_in_a_row)
    opt_state, step, skips_in_a_row = jax.jit(init, out_shardings=out)(params)
    return TrainState(params, opt_state, step, skips_in_a_row)


def with_rope_scaling(state: TrainState, rope_scaling: RopeScaling | None) -> TrainState:
    """The same numbers under other rotary frequencies, in parameters and moments.

    The moments change, too, because their pytrees hold the model's config.
    """
    return _map_models(lambda model: model.with_rope_scaling(rope_scaling), state)


def load_sharded(path: str, mesh: Mesh) -> Decoder:
    """The float32 model at `path`, split over the mesh as the trainer splits it.

    Each process reads only its own parts.
    """
    shardings = model_shardings(load_config(path), mesh, TRAINER_RULES)
    return load_pretrained(path, dtype="float32", shardings=shardings)[0]
