"""The compiled functions of an update, for one architecture, mesh and row length.

The sharding of every output is stated, so that no function compiles twice. Gradients, parameters
and state are donated if a new value replaces them. Nothing here needs a device: on a topology's
mesh the same functions lower and compile ahead of time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from polaris_jax.config import ConfigError, ModelSection, ObjectiveSection, OptimizerSection
from polaris_jax.models import Attention, Decoder, ModelConfig, shares_prompts
from polaris_jax.sharding import (
    MESH_AXES,
    batch_sharding,
    on_device,
    replicated,
    stack_sharding,
    wide_axes,
)
from polaris_jax.train.objective import TokenLoss, token_loss
from polaris_jax.train.optimizer import guarded_step, make_optimizer
from polaris_jax.train.sharded_model import (
    ShardedModel,
    local_logprobs,
    local_token_losses,
    reduce_gradients,
    sharded_model,
)
from polaris_jax.train.state import TrainState, abstract_train_state, state_shardings

Arrays = dict[str, Array]

BRANCH = "branch_BT"  # uploaded with the others if prompts are shared
INT_FIELDS = ("token_BT", "target_BT", "position_BT", "segment_BT")
LOGPROB_FIELDS = (*INT_FIELDS, "temperature_BT", "weight_BT", "fresh_BT")
# The arrays that are uploaded, [rows, row_len] each: TrainBatch's fields and the next tokens.
FIELDS = (*LOGPROB_FIELDS, "advantage_BT", "old_logp_BT", "sampler_logp_BT")

# The names that `local_loss` sums over a microbatch's tokens; `*_max` is a maximum.
SUMS = (
    *("loss", "tokens", "entropy", "ratio", "kl", "clipped_low", "clipped_high", "clipped_dual"),
    *("truncated", "fresh", "fresh_entropy", "gap", "gap_max"),
)


@dataclasses.dataclass(frozen=True)
class UpdatePrograms:
    """The jitted functions of an update, and their shardings.

    Attributes:
        sharded: how the model runs on the mesh.
        shardings: a NamedSharding for every leaf of the state.
        zeros: () -> a float32 gradient accumulator.
        accumulate: (params, accumulator, arrays, reference or None) -> (accumulator, sums). The
            accumulator is donated.
        accumulate_many: (params, accumulator, arrays of U microbatches, [U, rows, row_len] each,
            count, reference or None) -> (accumulator, sums [U]). The first `count` microbatches run
            one after the other; the sums of the others are 0. The accumulator is donated.
        apply: (state, accumulator) -> (state, step metrics). The state is donated.
        logprobs: (params, arrays) -> logp_BT, 0 at tokens that do not count; every device holds the
            complete result.
    """

    sharded: ShardedModel
    shardings: TrainState
    zeros: Callable[[], Decoder]
    accumulate: Callable[..., tuple[Decoder, Arrays]]
    accumulate_many: Callable[..., tuple[Decoder, Arrays]]
    apply: Callable[[TrainState, Decoder], tuple[TrainState, Arrays]]
    logprobs: Callable[[Decoder, Arrays], Array]


@functools.lru_cache(maxsize=8)  # the runs of an ablation follow each other in one process
def update_programs(
    config: ModelConfig,
    objective: ObjectiveSection,
    optimizer: OptimizerSection,
    model: ModelSection,
    mesh: Mesh,
    *,
    row_len: int,
) -> UpdatePrograms:
    """The functions of an update for one architecture, mesh and row length.

    Equal arguments get the same functions, so that they are traced and compiled once a process.

    Raises:
        ConfigError: see `sharded_model`.
    """
    sharded = sharded_model(config, model, mesh, row_len=row_len)
    shardings = state_shardings(config, optimizer, mesh)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings.params)
    reference_specs = specs if objective.kl_coef > 0 else PartitionSpec()
    tokens, stacks = batch_sharding(mesh).spec, stack_sharding(mesh).spec
    whole = replicated(mesh)
    transform = make_optimizer(optimizer)
    everywhere = wide_axes(mesh, MESH_AXES)

    def zeros() -> Decoder:
        shapes = jax.eval_shape(lambda key: Decoder.init(config, key), jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

    def accumulate(
        params: Decoder, total: Decoder, arrays: Arrays, reference: Decoder | None
    ) -> tuple[Decoder, Arrays]:
        def loss(params: Decoder) -> tuple[Array, Arrays]:
            return local_loss(params, arrays, reference, objective=objective, sharded=sharded)

        grads, sums = jax.grad(loss, has_aux=True)(params)
        with jax.named_scope("reduce_gradients"):
            grads = reduce_gradients(grads, sharded)
        return jax.tree.map(jnp.add, total, grads), _over_devices(sums, everywhere)

    def accumulate_many(
        params: Decoder, total: Decoder, stack: Arrays, count: Array, reference: Decoder | None
    ) -> tuple[Decoder, Arrays]:
        def one(i: Array, carry: tuple[Decoder, Arrays]) -> tuple[Decoder, Arrays]:
            total, sums = carry
            arrays = {name: x_UBT[i] for name, x_UBT in stack.items()}
            total, own = accumulate(params, total, arrays, reference)
            return total, {name: sums[name].at[i].set(x) for name, x in own.items()}

        sums = {name: jnp.zeros(stack["token_BT"].shape[0], jnp.float32) for name in SUMS}
        return jax.lax.fori_loop(0, count, one, (total, sums))

    def apply(state: TrainState, total: Decoder) -> tuple[TrainState, Arrays]:
        if optimizer.moments_in_host_memory:
            fetched = jax.device_put(state.opt_state, on_device(shardings.opt_state))
            state = dataclasses.replace(state, opt_state=fetched)
        params, opt_state, norm, skipped = guarded_step(
            total,
            state.params,
            opt_state=state.opt_state,
            transform=transform,
            max_grad_norm=optimizer.max_grad_norm,
        )
        skips = jnp.where(skipped, state.skips_in_a_row + 1, 0)
        step = state.step + jnp.where(skipped, 0, 1)
        return TrainState(params, opt_state, step, skips), {"grad_norm": norm, "skipped": skipped}

    def logprobs(params: Decoder, arrays: Arrays) -> Array:
        return local_logprobs(params, arrays, sharded)[0]

    def on_mesh(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        # Unchecked: the rules for replication do not know the attention kernels.
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    return UpdatePrograms(
        sharded=sharded,
        shardings=shardings,
        zeros=jax.jit(zeros, out_shardings=shardings.params),
        accumulate=jax.jit(
            on_mesh(accumulate, (specs, specs, tokens, reference_specs), (specs, PartitionSpec())),
            donate_argnums=1,
            out_shardings=(shardings.params, whole),
        ),
        accumulate_many=jax.jit(
            on_mesh(
                accumulate_many,
                (specs, specs, stacks, PartitionSpec(), reference_specs),
                (specs, PartitionSpec()),
            ),
            donate_argnums=1,
            out_shardings=(shardings.params, whole),
        ),
        apply=jax.jit(apply, donate_argnums=0, out_shardings=(shardings, whole)),
        logprobs=jax.jit(on_mesh(logprobs, (specs, tokens), tokens), out_shardings=whole),
    )


def abstract_arguments(
    config: ModelConfig,
    optimizer: OptimizerSection,
    *,
    mesh: Mesh,
    rows: int,
    row_len: int,
    share_prompts: bool = False,
) -> tuple[TrainState, Decoder, Arrays]:
    """(state, gradient accumulator, arrays of a microbatch) as shapes with shardings."""
    state = abstract_train_state(config, optimizer, mesh=mesh)
    sharding = batch_sharding(mesh)
    whole_numbers = (*INT_FIELDS, BRANCH)
    arrays: Any = {
        name: jax.ShapeDtypeStruct(
            (rows, row_len), jnp.int32 if name in whole_numbers else jnp.float32, sharding=sharding
        )
        for name in (*FIELDS, *((BRANCH,) if share_prompts else ()))
    }
    return state, state.params, arrays


def resolve_share_prompts(
    asked: Literal["auto", "on", "off"], attention: Attention, objective: ObjectiveSection
) -> bool:
    """Whether packed rows hold a prompt once for all of its responses there.

    Args:
        asked: `batch.share_prompts`. auto: if attention and objective allow it.
        attention: the resolved back end.
        objective: an aggregation that depends on the packing allows no sharing.

    Raises:
        ConfigError: `on`, and attention or objective do not allow it.
    """
    refusal = ""
    if not shares_prompts(attention):
        refusal = (
            f"model.attention={attention} cannot keep responses apart that share a prompt; set it "
            "to auto or off, or model.attention=chunked"
        )
    elif objective.aggregation == "microbatch_token_mean":
        refusal = (
            "under objective.aggregation=microbatch_token_mean the loss depends on the packing, "
            "which sharing changes; set it to auto or off"
        )
    if asked == "on" and refusal:
        raise ConfigError(f"batch.share_prompts=on: {refusal}")
    return asked != "off" and not refusal


def _over_devices(sums: Arrays, axes: tuple[str, ...]) -> Arrays:
    if not axes:
        return sums
    return {
        name: jax.lax.pmax(x, axes) if name.endswith("_max") else jax.lax.psum(x, axes)
        for name, x in sums.items()
    }


def local_loss(
    params: Decoder,
    arrays: Arrays,
    reference: Decoder | None,
    *,
    objective: ObjectiveSection,
    sharded: ShardedModel,
) -> tuple[Array, Arrays]:
    """This device's share of a microbatch's loss, and the sums for metrics (see `SUMS`)."""
    terms = {name: arrays[name] for name in ("weight_BT", "old_logp_BT", "advantage_BT")}
    if reference is not None:
        terms["reference_logp_BT"] = local_logprobs(reference, arrays, sharded)[0]

    def parts(logp: Array, entropy: Array, terms: Arrays) -> TokenLoss:
        return token_loss(
            logp,
            objective,
            entropy_BT=entropy,
            old_logp_BT=terms["old_logp_BT"],
            advantage_BT=terms["advantage_BT"],
            reference_logp_BT=terms.get("reference_logp_BT"),
        )

    def weighted(logp: Array, entropy: Array, terms: Arrays) -> Array:
        weight = terms["weight_BT"]
        # jnp.where and not only the product: 0 x inf at a masked token would make the sum NaN.
        return jnp.where(weight != 0, weight * parts(logp, entropy, terms).loss_BT, 0.0)

    loss, logp_BT, entropy_BT = local_token_losses(
        params, arrays, sharded, terms=terms, token_loss=weighted
    )
    out = parts(logp_BT, entropy_BT, terms)  # the same terms again, for the metrics
    weight_BT = arrays["weight_BT"]
    is_counted_BT = (weight_BT != 0).astype(jnp.float32)
    present_BT = arrays["old_logp_BT"] if objective.old_logprobs == "recompute" else logp_BT
    gap_BT = jnp.abs(present_BT - arrays["sampler_logp_BT"]) * arrays["fresh_BT"]
    sums = {
        "loss": loss,
        "tokens": jnp.sum(is_counted_BT),
        "entropy": jnp.sum(entropy_BT * is_counted_BT),
        "ratio": jnp.sum(out.ratio_BT * is_counted_BT),
        "kl": jnp.sum(out.kl_BT * is_counted_BT),
        "clipped_low": jnp.sum(out.clipped_low_BT * is_counted_BT),
        "clipped_high": jnp.sum(out.clipped_high_BT * is_counted_BT),
        "clipped_dual": jnp.sum(out.clipped_dual_BT * is_counted_BT),
        "truncated": jnp.sum(out.truncated_BT * is_counted_BT),
        "fresh": jnp.sum(arrays["fresh_BT"]),
        "fresh_entropy": jnp.sum(entropy_BT * arrays["fresh_BT"]),
        "gap": jnp.sum(gap_BT),
        "gap_max": jnp.max(gap_BT),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, sums)
