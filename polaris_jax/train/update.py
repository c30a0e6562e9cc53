"""One optimizer step from a packed batch: one compiled `accumulate`, one compiled `apply`.

A batch is split into microbatches of a fixed shape. `accumulate` adds the gradient of one
microbatch to a float32 accumulator. On a CPU one call takes several microbatches and gives the same
bits. `apply` clips the gradient and takes the optimizer step, or skips the step if the gradient is
not finite. The loss is a plain sum over tokens: `TrainBatch.weight_BT` contains the aggregation
(`objective.aggregation`), so the result depends neither on the number of microbatches nor on the
packing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from polaris_jax.config import ModelSection, ObjectiveSection, OptimizerSection
from polaris_jax.metrics import Mean
from polaris_jax.models import Decoder, ModelConfig, shard_work
from polaris_jax.records import TrainBatch
from polaris_jax.sharding import (
    CONTEXT,
    batch_sharding,
    global_array,
    moved,
    private_copies,
    replicated,
    row_shards,
    stack_sharding,
)
from polaris_jax.train.metrics import Metrics, update_metrics
from polaris_jax.train.programs import (
    BRANCH,
    FIELDS,
    LOGPROB_FIELDS,
    Arrays,
    UpdatePrograms,
    resolve_share_prompts,
    update_programs,
)
from polaris_jax.train.sharded_model import CONTEXT_LAYOUT, sharded_model, warn_of_copies
from polaris_jax.train.state import TrainState, fresh_moments, is_placed, parked_shardings

# On a CPU one call takes a stack of microbatches. Each call allocates its temporaries anew, and the
# operating system clears that memory. With a call for each microbatch the clearing took a fifth of
# an update's CPU time.
STACKED_MICROBATCHES = 16


class Updater:
    """Turns (TrainState, TrainBatch) into the next TrainState; owns the compiled programs.

    Programs are compiled at the first batch of a model configuration and serve every later batch,
    whatever its number of rows. A stage that changes the rotary scaling changes the configuration.

    Args:
        objective: options of the loss.
        optimizer: AdamW's constants and the gradient clip.
        model: compute dtype, attention back end, rematerialisation.
        mesh: mesh from `sharding.make_mesh`.
        rows: packed rows of a microbatch, over all devices; 0: one for each data x fsdp shard.
        row_len: tokens of a row.
        share_prompts: `batch.share_prompts`, see `shares_prompts`.
        parks: True: `park` moves the state into host memory, so that the sampler may use the
            device memory between updates. False: `park` and `fetch` return the state unchanged.

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
        share_prompts: Literal["auto", "on", "off"] = "off",
        parks: bool = False,
    ) -> None:
        self.shards = row_shards(mesh)
        rows = rows or self.shards
        if rows % self.shards:
            raise ValueError(
                f"batch.rows={rows}: the rows of a microbatch are split over mesh.data x mesh.fsdp "
                f"= {self.shards} parts; set it to 0 or a multiple of {self.shards}"
            )
        self.objective, self.optimizer, self.model, self.mesh = objective, optimizer, model, mesh
        self.rows, self.row_len, self._parks = rows, row_len, parks
        self._share_prompts: Literal["auto", "on", "off"] = share_prompts
        self._reference: tuple[Decoder, Decoder] | None = None  # (argument, placed copy)

    def check_model(self, config: ModelConfig, say: Callable[[str], None]) -> None:
        """Checks that models of this architecture can be trained; compiles nothing.

        Args:
            config: the architecture.
            say: gets a line about what is slower than it might be.

        Raises:
            ConfigError: see `sharded_model` and `resolve_share_prompts`.
        """
        sharded_model(config, self.model, self.mesh, row_len=self.row_len, say=say)
        self.shares_prompts(config)
        warn_of_copies(config, self.mesh)

    def numerics(self, config: ModelConfig) -> dict[str, Any]:
        """What an update's numbers depend on beside batch and config, by name."""
        sharded = sharded_model(config, self.model, self.mesh, row_len=self.row_len)
        found = {"shared prompts": self.shares_prompts(config), "attention": sharded.attention}
        found |= {"microbatch rows": self.rows, "row tokens": self.row_len}  # as resolved
        found["remat"] = self.model.remat
        return found

    def shares_prompts(self, config: ModelConfig) -> bool:
        """Whether batches for this architecture are packed with shared prompts.

        Raises:
            ConfigError: see `check_model`.
        """
        sharded = sharded_model(config, self.model, self.mesh, row_len=self.row_len)
        return resolve_share_prompts(self._share_prompts, sharded.attention, self.objective)

    def update(
        self, state: TrainState, batch: TrainBatch, *, reference: Decoder | None = None
    ) -> tuple[TrainState, Metrics]:
        """The state after one optimizer step on `batch`, and the step's metrics.

        `state` is donated: its arrays are deleted.

        Args:
            state: parameters, moments, counters.
            batch: packed rows, a multiple of a microbatch's rows; the same in every process.
            reference: the frozen model of the KL term, needed if kl_coef > 0, else ignored. The
                model is placed on the mesh once, and runs under the policy's rotary scaling and
                temperature. The model's own arrays are used without copies if they are float32 and
                placed like the trainer's weights.

        Returns:
            (state, metrics). Each metric is a `Mean`, except update/skipped,
            batch/shared_prompt_tokens and rollout/logp_gap_max:

            - update/{entropy, clip_fraction_low, clip_fraction_high, clip_fraction_dual,
              tis_fraction, ratio_mean, kl}: means over tokens whose `weight_BT` is not 0.
              tis_fraction is present only if old_logprobs is "sampler", kl only if kl_coef > 0.
            - update/loss, update/grad_norm: the batch's loss, and the gradient's norm before it is
              clipped.
            - update/skipped: 1.0 if the gradient was not finite, else 0.0. If it is 1.0, parameters
              and moments are unchanged.
            - update/fresh_entropy: mean entropy over tokens whose `fresh_BT` is 1.
            - rollout/logp_gap_mean, rollout/logp_gap_max: |sampler - trainer| log-prob in nats over
              tokens whose `fresh_BT` is 1; the max is None if there are none. The trainer's
              log-probs are those before this step. With old_logprobs="recompute" they are the
              recomputed ones, so no minibatch's gap contains the updates of earlier minibatches.
            - batch/{padding_share, attention_imbalance, context_imbalance}: figures of the packing.
            - batch/shared_prompt_tokens: prompt tokens that were not computed again; present only
              if the batch shares prompts.

        Raises:
            ValueError: the batch's shape does not match `rows` and `row_len`, a token id is outside
                the vocabulary, or the reference is missing.
        """
        programs = self._programs_for(state.params.config)
        total, sums = self.gradient(state.params, batch, reference=reference)
        state, step = programs.apply(state, total)
        metrics = update_metrics(jax.device_get(sums), jax.device_get(step), self.objective)
        if batch.branch_BT is not None:
            metrics["batch/shared_prompt_tokens"] = float(batch.shared_prompt_tokens)
        return state, metrics | {
            "batch/padding_share": Mean(batch.padding_share, 1.0),
            "batch/attention_imbalance": Mean(batch.attention_imbalance, 1.0),
            "batch/context_imbalance": Mean(self.context_imbalance(batch), 1.0),
        }

    def context_imbalance(self, batch: TrainBatch) -> float:
        """How unevenly the tokens of a row split the attention work over context shards.

        For one row this is the work of the busiest context shard divided by the mean over shards.
        Rows are averaged with their work as weights. Work is counted as for the back end `chunked`,
        which skips tiles of other segments. A back end that computes complete rows (`splash`) is
        balanced whatever this figure is. See docs/decisions/update.md.

        Returns:
            A number of at least 1: 1 if every row is one segment, usually more for packed rows.
        """
        shards = self.mesh.shape[CONTEXT]
        work_BC = shard_work(batch.segment_BT, shards, CONTEXT_LAYOUT, branch_BT=batch.branch_BT)
        return float(work_BC.max(axis=1).sum() / work_BC.mean(axis=1).sum())

    def gradient(
        self, params: Decoder, batch: TrainBatch, *, reference: Decoder | None = None
    ) -> tuple[Decoder, list[Arrays]]:
        """The float32 gradient of the loss over the complete batch, and sums for the metrics.

        For arguments and errors see `update`.

        Returns:
            (gradient, sums). `sums` has one entry a call of the compiled program. An entry
            has the sums of a microbatch, or of a stack of microbatches on a CPU.
        """
        config = params.config
        self._check(batch, config)
        if self.objective.kl_coef > 0 and reference is None:
            raise ValueError(
                f"objective.kl_coef={self.objective.kl_coef}: the KL term needs the reference "
                "model; pass reference=, or set kl_coef to 0"
            )
        programs = self._programs_for(config)
        placed = self._placed_reference(reference, config, programs)
        total, sums = programs.zeros(), []
        if programs.sharded.platform == "cpu":
            for arrays, count in self._stacks(batch, programs):
                total, partial = programs.accumulate_many(params, total, arrays, count, placed)
                sums.append(partial)
            return total, sums
        for arrays in self._microbatches(batch, programs):
            total, partial = programs.accumulate(params, total, arrays, placed)
            sums.append(partial)
        return total, sums

    def recompute_logprobs(self, params: Decoder, batch: TrainBatch) -> TrainBatch:
        """`batch` with `old_logp_BT` computed under `params`.

        The sampler's log-probs are kept in `sampler_logp_BT`.

        Raises:
            ValueError: see `update`.
        """
        self._check(batch, params.config)
        programs = self._programs_for(params.config)
        parts = [
            programs.logprobs(params, arrays)
            for arrays in self._microbatches(batch, programs, LOGPROB_FIELDS)
        ]
        logp_BT = np.concatenate([np.asarray(part) for part in jax.device_get(parts)])
        order = programs.sharded.token_order()
        if order is not None:
            logp_BT = logp_BT[:, np.argsort(order)]
        sampler_logp_BT = (
            batch.old_logp_BT if batch.sampler_logp_BT is None else batch.sampler_logp_BT
        )
        return dataclasses.replace(batch, old_logp_BT=logp_BT, sampler_logp_BT=sampler_logp_BT)

    def park(self, state: TrainState) -> TrainState:
        """`state` in host memory, for the time between updates; unchanged if `parks` is False.

        The counters stay on the device. The arrays of the given state that are moved are deleted.
        """
        return moved(state, self._between_updates(state.params.config)) if self._parks else state

    def fetch(self, state: TrainState) -> TrainState:
        """`state` on the devices, ready for an update: undoes `park`.

        The arrays of the given state that are moved are deleted.
        """
        shardings = self._programs_for(state.params.config).shardings
        return moved(state, shardings) if self._parks else state

    def reset_optimizer(self, state: TrainState) -> TrainState:
        """`state` with zero moments, for a stage change; weights and counters stay."""
        shardings = self._between_updates(state.params.config)
        return fresh_moments(state, self.optimizer, shardings=shardings)

    def _between_updates(self, config: ModelConfig) -> TrainState:
        shardings = self._programs_for(config).shardings
        return parked_shardings(shardings) if self._parks else shardings

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

    def _parts(
        self, batch: TrainBatch, programs: UpdatePrograms, fields: Sequence[str], rows: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batch's `fields` as host arrays, at most `rows` rows at a time.

        The tokens of a row are in the order in which the mesh's context shards take them.
        """
        order = programs.sharded.token_order()
        shared = () if batch.branch_BT is None else (BRANCH,)
        values = {name: _field(batch, name) for name in (*fields, *shared)}
        for first in range(0, batch.token_BT.shape[0], rows):
            part = {name: x_BT[first : first + rows] for name, x_BT in values.items()}
            yield part if order is None else {name: x_BT[:, order] for name, x_BT in part.items()}

    def _microbatches(
        self, batch: TrainBatch, programs: UpdatePrograms, fields: Sequence[str] = FIELDS
    ) -> Iterator[Arrays]:
        sharding = batch_sharding(self.mesh)
        for part in self._parts(batch, programs, fields, self.rows):
            yield {name: global_array(x_BT, sharding) for name, x_BT in part.items()}

    def _stacks(
        self, batch: TrainBatch, programs: UpdatePrograms
    ) -> Iterator[tuple[Arrays, Array]]:
        """Yields stacks of microbatches and the number of microbatches in each.

        Every stack is padded to `STACKED_MICROBATCHES`, so that one program serves all.
        """
        sharding, size = stack_sharding(self.mesh), STACKED_MICROBATCHES * self.rows
        for part in self._parts(batch, programs, FIELDS, size):
            rows = len(part["token_BT"])
            stack = {
                name: global_array(
                    np.pad(x_BT, ((0, size - rows), (0, 0))).reshape(-1, self.rows, self.row_len),
                    sharding,
                )
                for name, x_BT in part.items()
            }
            count = np.asarray(rows // self.rows, np.int32)
            yield stack, global_array(count, replicated(self.mesh))

    def _placed_reference(
        self, reference: Decoder | None, config: ModelConfig, programs: UpdatePrograms
    ) -> Decoder | None:
        if reference is None or self.objective.kl_coef == 0:
            return None
        known = self._reference
        if known is None or known[0] is not reference or known[1].config != config:
            model = reference.with_rope_scaling(config.rope_scaling)
            # No program donates the reference, so arrays that are already placed need no copies.
            wanted = programs.shardings.params
            placed = model if is_placed(model, wanted) else private_copies(model, wanted)
            known = reference, placed
            self._reference = known
        return known[1]

    def _programs_for(self, config: ModelConfig) -> UpdatePrograms:
        return update_programs(
            config, self.objective, self.optimizer, self.model, self.mesh, row_len=self.row_len
        )


def _field(batch: TrainBatch, name: str) -> np.ndarray:
    """The array [rows, row_len] of a name in `FIELDS`; targets are the tokens one place later."""
    if name == "target_BT":
        return np.pad(batch.token_BT[:, 1:], ((0, 0), (0, 1)))
    if name == "sampler_logp_BT" and batch.sampler_logp_BT is None:
        return batch.old_logp_BT
    return getattr(batch, name)
