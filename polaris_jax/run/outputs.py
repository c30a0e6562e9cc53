"""What a run writes beside its checkpoints: metrics, timing, stages.json, rollouts/, the tokenizer.

Only the first process writes, and only while it owns the workdir.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from polaris_jax.checkpoint.checkpointer import TOKENIZER
from polaris_jax.config import RunConfig
from polaris_jax.metrics import MetricsWriter, value_of
from polaris_jax.models.tokenizer import save_end_ids, save_tokenizer
from polaris_jax.records import Graded
from polaris_jax.reward import Grader
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.system import processes

# Null in the metrics of a step without an update.
UPDATE_METRICS = (
    "rollout/logp_gap_mean",
    "rollout/logp_gap_max",
    "batch/padding_share",
    "batch/attention_imbalance",
    "batch/context_imbalance",
    "batch/tokens",
    "update/loss",
    "update/grad_norm",
    "update/entropy",
    "update/fresh_entropy",
    "update/clip_fraction_low",
    "update/clip_fraction_high",
    "update/clip_fraction_dual",
    "update/ratio_mean",
    "update/skipped",
)


class Outputs:
    """The files of a training run.

    Args:
        workdir: gets the files.
        config: the run's config.
        claim: this run's claim on the workdir, checked before each write.
        tokenizer: saved beside the checkpoints, so that each can be converted on its own.
        end_ids: the model's end ids, saved with it.

    Attributes:
        first_line: the first step whose line is written; None before `begin`.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: RunConfig,
        claim: workdir_lib.Claim,
        *,
        tokenizer: Any,
        end_ids: Sequence[int] = (),
    ) -> None:
        self._workdir, self._config, self._claim = workdir, config, claim
        self._tokenizer, self._end_ids = tokenizer, tuple(end_ids)
        self._first = processes.is_first()
        self._writer: MetricsWriter | None = None
        self.first_line: int | None = None

    def begin(self, *, first_step: int, lines_from: int) -> int:
        """Opens the files and deletes what an earlier start of the run wrote after its checkpoint.

        Args:
            first_step: the step that is done next.
            lines_from: the step whose line is written next: the one before, if a stop came between
                its update and its line.

        Returns:
            The number of lines cut: steps that are done again.
        """
        self.first_line = lines_from
        self._writer = MetricsWriter(
            self._workdir,
            tensorboard=self._config.metrics.tensorboard,
            wandb=self._config.metrics.wandb,
            first_step=lines_from,
            enabled=self._first,
        )
        if not self._first:
            return 0
        redone = self._writer.cut_back(lines_from)
        workdir_lib.delete_rollouts_from(self._workdir, first_step)
        tokenizer_dir = self._workdir / "checkpoints" / TOKENIZER
        tokenizer_dir.mkdir(parents=True, exist_ok=True)
        save_tokenizer(self._tokenizer, tokenizer_dir)  # again: a kill may have torn it
        save_end_ids(self._end_ids, tokenizer_dir, replace=True)
        devices = Counter(device.device_kind for device in jax.devices())
        workdir_lib.note(self._workdir, devices=devices, processes=jax.process_count())
        return redone

    def close(self) -> None:
        """Flushes and closes what is open."""
        if self._writer is not None:
            self._writer.close()

    def write_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl: functions of config, data and seed alone.

        Metrics of an update that the step did not make are null.
        """
        assert self._writer is not None
        self._claim.check()
        self._writer.write(step, dict.fromkeys(UPDATE_METRICS) | metrics)

    def write_timing(self, step: int, line: dict[str, Any]) -> None:
        """One line of timing.jsonl: wall clock, throughput, memory, time-outs."""
        assert self._writer is not None
        self._writer.write_timing(step, line)

    def note_timeouts(self, grader: Grader) -> None:
        """Records in run.json that a time-out has decided a reward, if any process had one.

        Every process calls it before a checkpoint that contains the reward is saved.
        """
        timeouts = sum(processes.gather_objects(grader.stats()["timeouts"]))
        if timeouts and self._first:
            workdir_lib.mark_nondeterministic(self._workdir)

    def write_rollouts(
        self, step: int, graded: Graded, *, draws: Sequence[int], attempt: int
    ) -> None:
        """A step's responses, as sampled and graded, in rollouts/."""
        every = self._config.rollout.save_every
        if not every or step % every or not self._first:
            return
        self._claim.check()
        carries = self._config.rollout.partial_rollouts == "carry"
        rows = rollout_rows(graded, attempt=attempt, draws=draws if carries else None)
        workdir_lib.write_rollouts(self._workdir, step, rows, append=attempt > 0)

    def write_stages(self, records: Sequence[dict[str, Any]]) -> None:
        """stages.json, from the records that a checkpoint holds too."""
        if self._first:
            self._claim.check()
            workdir_lib.write_json(self._workdir / "stages.json", list(records))


def rollout_rows(
    graded: Graded, *, attempt: int, draws: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Rows of rollouts/step_N.jsonl: every response as sampled and graded.

    Args:
        graded: the batch as sampled and graded.
        attempt: number of the batch within its step, from 0.
        draws: draw number of each prompt. If given, a row also names its draw, and how many tokens
            each version of the policy gave.
    """
    rows: list[dict[str, Any]] = [
        {
            "problem_id": graded.problem_ids[p],
            "sample": r,
            "attempt": attempt,
            "gold": graded.golds[p],
            "text": graded.texts[p][r],
            "tokens": len(graded.token_ids[p][r]),
            "finish_reason": graded.finish_reasons[p][r],
            "reward": float(graded.reward_PR[p, r]),
        }
        for p in range(len(graded))
        for r in range(graded.reward_PR.shape[1])
    ]
    if draws is not None and graded.versions is not None:
        ages = [(draw, v) for draw, g in zip(draws, graded.versions, strict=True) for v in g]
        for row, (draw, versions) in zip(rows, ages, strict=True):
            row |= {"draw": draw, "versions": [list(pair) for pair in versions]}
    return rows


def step_text(step: int, metrics: Mapping[str, Any]) -> str:
    """A step's summary in one line, for the console."""

    def number(name: str, form: str) -> str:
        value = value_of(metrics.get(name))
        return "-" if value is None else format(value, form)

    return (
        f"step {step}: reward {number('rollout/reward_mean', '.3f')}  "
        f"informative {number('rollout/informative_share', '.0%')}  "
        f"length {number('rollout/mean_length', '.0f')}  "
        f"clipped {number('rollout/clip_ratio', '.0%')}  "
        f"entropy {number('update/entropy', '.3f')}  "
        f"rescued {number('batch/rescued_groups', 'd')}  "
        f"substituted {number('batch/substituted_groups', 'd')}"
    )
