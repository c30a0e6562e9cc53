"""One optimizer step from a packed batch: one compiled `accumulate`, one compiled `apply`.

A batch of any number of rows goes through `accumulate` in microbatches of a fixed shape, whose
gradients are summed into a float32 accumulator; `apply` clips, steps and skips. The loss is a plain
sum over tokens whose weights hold the aggregation, so neither the number of microbatches nor the
packing enters the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from polaris_jax.config import ModelSection, ObjectiveSection, OptimizerSection
from polaris_jax.metrics import Mean
from polaris_jax.models import ModelConfig, Qwen, next_token_logprobs
from polaris_jax.models.attention import attend as attention
from polaris_jax.records import TrainBatch
from polaris_jax.sharding import (
    batch_sharding,
    global_array,
    head_sharding,
    private_copies,
    replicated,
    row_shards,
)
from polaris_jax.train.objective import token_loss
from polaris_jax.train.optimizer import guarded_step, make_optimizer
from polaris_jax.train.state import TrainState, fresh_moments, state_shardings

Arrays = dict[str, Array]
Metrics = dict[str, Mean | float | None]

# TrainBatch fields that go to the device.
FIELDS = (
    "token_BT",
    "position_BT",
    "segment_BT",
    "weight_BT",
    "advantage_BT",
    "old_logp_BT",
    "temperature_BT",
    "fresh_BT",
)
MAX_UNROLLED_LAYERS = 8
LOGPROB_FIELDS = ("token_BT", "position_BT", "segment_BT", "temperature_BT")


@dataclasses.dataclass(frozen=True)
class _Programs:
    """The compiled functions for one model configuration."""

    shardings: TrainState
    zeros: Callable[[], Qwen]
    accumulate: Callable[..., tuple[Qwen, Arrays]]
    apply: Callable[[TrainState, Qwen], tuple[TrainState, Arrays]]
    logprobs: Callable[[Qwen, Arrays], Array]


class Updater:
    """Turns (TrainState, TrainBatch) into the next TrainState; owns the compiled programs.

    Programs are compiled at the first batch of a model configuration (a stage that changes the
    rotary scaling is another one) and serve every later batch, whatever its number of rows.

    Args:
        objective: the loss.
        optimizer: AdamW's constants and the gradient clip.
        model: compute dtype, attention back end, rematerialisation.
        mesh: from `sharding.make_mesh`.
        rows: packed rows of a microbatch, over all devices.
        row_len: tokens of a row.

    Raises:
        ValueError: `rows` does not divide over the mesh's data x fsdp.
    """

    def __init__(
        self,
        objective: ObjectiveSection,
        optimizer: OptimizerSection,
        model: ModelSection,
        mesh: Mesh,
        *,
        rows: int,
        row_len: int,
    ) -> None:
        if rows % row_shards(mesh):
            raise ValueError(
                f"batch.rows={rows}: the rows of a microbatch are split over mesh.data x mesh.fsdp "
                f"= {row_shards(mesh)} parts; set it to a multiple of {row_shards(mesh)}"
            )
        self.objective, self.optimizer, self.model, self.mesh = objective, optimizer, model, mesh
        self.rows, self.row_len = rows, row_len
        self._programs: dict[ModelConfig, _Programs] = {}
        self._reference: tuple[Qwen, Qwen] | None = None  # as given, as placed

    def update(
        self, state: TrainState, batch: TrainBatch, *, reference: Qwen | None = None
    ) -> tuple[TrainState, Metrics]:
        """The state after one optimizer step on `batch`, and what was measured on the way.

        `state` is donated: its arrays are gone afterwards.

        Args:
            state: parameters, moments, counters.
            batch: rows a multiple of the microbatch's; the same in every process.
            reference: the frozen model of the KL term, needed when kl_coef > 0. It is placed on
                the mesh once and runs under the policy's rotary scaling and temperature.

        Returns:
            (state, metrics). Metrics: update/{loss, grad_norm, entropy, clip_fraction_low,
            clip_fraction_high, clip_fraction_dual, tis_fraction, ratio_mean, kl} are `Mean`s, over
            response tokens where they speak of tokens; update/skipped is 1.0 when the gradient was
            not finite, and then parameters and moments are unchanged; rollout/logp_gap_mean and
            logp_gap_max are |sampler - trainer| in nats over tokens whose `fresh_BT` is 1 (the max
            is None without such tokens). The gap is taken under the parameters before this step:
            with several minibatches it is the plain gap in the first one only (with
            old_logprobs="recompute" in all).

        Raises:
            ValueError: a batch of another shape, a token id outside the vocabulary, or a missing
                reference.
        """
        config = state.params.config
        self._check(batch, config)
        if self.objective.kl_coef > 0 and reference is None:
            raise ValueError(
                f"objective.kl_coef={self.objective.kl_coef}: the KL term needs the reference "
                "model; pass reference=, or set kl_coef to 0"
            )
        programs = self._programs_for(config)
        placed = self._placed_reference(reference, config, programs)
        total = programs.zeros()
        sums = []
        for arrays in self._microbatches(batch):
            total, partial = programs.accumulate(state.params, total, arrays, placed)
            sums.append(partial)
        state, step = programs.apply(state, total)
        return state, _metrics(jax.device_get(sums), jax.device_get(step), self.objective)

    def recompute_logprobs(self, params: Qwen, batch: TrainBatch) -> TrainBatch:
        """`batch` with `old_logp_BT` under `params`; the sampler's go to `sampler_logp_BT`."""
        self._check(batch, params.config)
        programs = self._programs_for(params.config)
        parts = [
            programs.logprobs(params, arrays)
            for arrays in self._microbatches(batch, LOGPROB_FIELDS)
        ]
        logp_BT = np.concatenate([np.asarray(part) for part in jax.device_get(parts)])
        in_response_BT = (batch.weight_BT != 0) | (batch.fresh_BT != 0)
        logp_BT = np.where(in_response_BT, logp_BT, 0).astype(np.float32)
        sampler_logp_BT = (
            batch.old_logp_BT if batch.sampler_logp_BT is None else batch.sampler_logp_BT
        )
        return dataclasses.replace(batch, old_logp_BT=logp_BT, sampler_logp_BT=sampler_logp_BT)

    def reset_optimizer(self, state: TrainState) -> TrainState:
        """`state` with zero moments, as at a stage change; weights and counters stay."""
        shardings = self._programs_for(state.params.config).shardings
        return fresh_moments(state, self.optimizer, shardings=shardings)

    def _check(self, batch: TrainBatch, config: ModelConfig) -> None:
        count, length = batch.token_BT.shape
        if length != self.row_len or count == 0 or count % self.rows:
            raise ValueError(
                f"train batch of {count} rows x {length} tokens: expected a multiple of "
                f"{self.rows} rows (batch.rows) of {self.row_len} tokens (batch.row_len); pack it "
                "with the same two numbers"
            )
        low, high = int(batch.token_BT.min()), int(batch.token_BT.max())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"token ids {low} to {high}: must lie in [0, {config.vocab_size}), the model's "
                "vocabulary; the tokenizer belongs to another model"
            )

    def _microbatches(
        self, batch: TrainBatch, fields: Sequence[str] = (*FIELDS, "sampler_logp_BT")
    ) -> Iterator[Arrays]:
        sharding = batch_sharding(self.mesh)
        for first in range(0, batch.token_BT.shape[0], self.rows):
            arrays = {}
            for name in fields:
                value = getattr(batch, name)
                if name == "sampler_logp_BT" and value is None:
                    value = batch.old_logp_BT
                arrays[name] = global_array(value[first : first + self.rows], sharding)
            yield arrays

    def _placed_reference(
        self, reference: Qwen | None, config: ModelConfig, programs: _Programs
    ) -> Qwen | None:
        if reference is None or self.objective.kl_coef == 0:
            return None
        known = self._reference
        if known is None or known[0] is not reference or known[1].config != config:
            model = reference.with_rope_scaling(config.rope_scaling)
            known = reference, private_copies(model, programs.shardings.params)
            self._reference = known
        return known[1]

    def _programs_for(self, config: ModelConfig) -> _Programs:
        if config not in self._programs:
            self._programs[config] = _make_programs(
                config, self.objective, self.optimizer, self.model, self.mesh
            )
        return self._programs[config]


def _make_programs(
    config: ModelConfig,
    objective: ObjectiveSection,
    optimizer: OptimizerSection,
    model: ModelSection,
    mesh: Mesh,
) -> _Programs:
    """The jitted functions; every output's sharding is stated, so that none compiles twice."""
    shardings = state_shardings(config, optimizer, mesh)
    logprobs = functools.partial(sharded_logprobs, section=model, mesh=mesh)
    transform = make_optimizer(optimizer)

    def zeros() -> Qwen:
        shapes = jax.eval_shape(lambda key: Qwen.init(config, key), jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

    def accumulate(
        params: Qwen, total: Qwen, arrays: Arrays, reference: Qwen | None
    ) -> tuple[Qwen, Arrays]:
        loss = functools.partial(_loss, objective=objective, logprobs=logprobs)
        grads, sums = jax.grad(loss, has_aux=True)(params, arrays, reference)
        return jax.tree.map(jnp.add, total, grads), sums

    def apply(state: TrainState, total: Qwen) -> tuple[TrainState, Arrays]:
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

    whole = replicated(mesh)
    return _Programs(
        shardings=shardings,
        zeros=jax.jit(zeros, out_shardings=shardings.params),
        accumulate=jax.jit(accumulate, donate_argnums=1, out_shardings=(shardings.params, whole)),
        apply=jax.jit(apply, donate_argnums=0, out_shardings=(shardings, whole)),
        logprobs=jax.jit(lambda params, arrays: logprobs(params, arrays)[0], out_shardings=whole),
    )


def sharded_logprobs(
    params: Qwen, arrays: Arrays, *, section: ModelSection, mesh: Mesh
) -> tuple[Array, Array]:
    """(logp_BT, entropy_BT) as `models.token_logprobs` gives them, computed over the mesh.

    Args:
        params: weights of any float dtype; cast to `section.dtype` here.
        arrays: token_BT, position_BT, segment_BT, temperature_BT.
        section: compute dtype, attention back end, rematerialisation.
        mesh: activations are pinned to it by rows and heads, so that the compiler gathers one
            layer's weights at a time and not the activations.
    """
    model = jax.tree.map(lambda x: x.astype(section.dtype), params)
    config = model.config
    segment_BT = arrays["segment_BT"]
    pin = jax.lax.with_sharding_constraint
    q_sharding = head_sharding(mesh, config.num_heads)
    kv_sharding = head_sharding(mesh, config.num_kv_heads)

    def attend(_: Array, q: Array, k: Array, v: Array, carry: None) -> tuple[Array, None]:
        q, k, v = pin(q, q_sharding), pin(k, kv_sharding), pin(v, kv_sharding)
        out = attention(q, k, v, segment_BT, backend=section.attention)
        return pin(out, q_sharding), carry

    hidden_BTD, _ = model.forward(
        arrays["token_BT"],
        arrays["position_BT"],
        attend,
        None,
        remat=section.remat,
        # On the CPU a scan copies each layer's weights; unrolling deep models costs compile time.
        unroll=mesh.devices.flat[0].platform == "cpu" and config.num_layers <= MAX_UNROLLED_LAYERS,
    )
    return next_token_logprobs(
        model,
        pin(hidden_BTD, batch_sharding(mesh)),
        arrays["token_BT"],
        segment_BT,
        arrays["temperature_BT"],
    )


def _loss(
    params: Qwen,
    arrays: Arrays,
    reference: Qwen | None,
    *,
    objective: ObjectiveSection,
    logprobs: Callable[[Qwen, Arrays], tuple[Array, Array]],
) -> tuple[Array, Arrays]:
    """A microbatch's share of the loss, and the sums that metrics are made of."""
    logp_BT, entropy_BT = logprobs(params, arrays)
    reference_logp_BT = None
    if reference is not None:
        reference_logp_BT = jax.lax.stop_gradient(logprobs(reference, arrays)[0])
    weight_BT = arrays["weight_BT"]
    out = token_loss(
        logp_BT,
        objective,
        entropy_BT=entropy_BT,
        old_logp_BT=arrays["old_logp_BT"],
        advantage_BT=arrays["advantage_BT"],
        reference_logp_BT=reference_logp_BT,
    )
    # where, not only the product: 0 x inf of a masked token would poison the sum.
    loss = jnp.sum(jnp.where(weight_BT != 0, weight_BT * out.loss_BT, 0.0))
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
        "gap": jnp.sum(gap_BT),
        "gap_max": jnp.max(gap_BT),
    }
    return loss, jax.tree.map(jax.lax.stop_gradient, sums)


def _metrics(
    sums: Sequence[dict[str, Any]], step: dict[str, Any], objective: ObjectiveSection
) -> Metrics:
    """Sums over the microbatches, in float64, under their public names."""
    total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
    tokens, fresh = total["tokens"], total["fresh"]

    def share(name: str) -> Mean:
        return Mean(total[name], tokens)

    metrics: Metrics = {
        "update/loss": Mean(total["loss"], 1.0),
        "update/grad_norm": Mean(float(step["grad_norm"]), 1.0),
        "update/entropy": share("entropy"),
        "update/clip_fraction_low": share("clipped_low"),
        "update/clip_fraction_high": share("clipped_high"),
        "update/clip_fraction_dual": share("clipped_dual"),
        "update/ratio_mean": share("ratio"),
        "update/skipped": float(step["skipped"]),
        "rollout/logp_gap_mean": Mean(total["gap"], fresh),
        "rollout/logp_gap_max": max(float(part["gap_max"]) for part in sums) if fresh else None,
    }
    if objective.old_logprobs == "sampler":
        metrics["update/tis_fraction"] = share("truncated")
    if objective.kl_coef > 0:
        metrics["update/kl"] = share("kl")
    return metrics


def merge_metrics(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of several minibatches as one: means pooled, skips added, the gap's max taken.

    The log-prob gap is the first minibatch's: later ones run under parameters that have moved.
    """
    merged = dict(parts[0])
    for part in parts[1:]:
        for name, value in part.items():
            if not name.startswith("rollout/logp_gap"):
                merged[name] = merged[name] + value  # type: ignore[operator]
    return merged
