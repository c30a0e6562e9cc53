"""What a run writes beside its checkpoints: metrics, timing, stages.json, rollouts/, the tokenizer.

Only the first process writes, and only while the workdir is its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from polaris_jax.assemble import TOKENIZER
from polaris_jax.config import RunConfig
from polaris_jax.metrics import MetricsWriter
from polaris_jax.models.tokenizer import save_tokenizer
from polaris_jax.records import Graded
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.step_records import rollout_rows
from polaris_jax.system import processes


class RunFiles:
    """The files of a run from its step `first_step` on; later lines of an earlier life are cut.

    Args:
        workdir: gets the files.
        config: the run.
        claim: what makes the workdir this run's own.
        first_step: the step that is done next.
        lines_from: the step whose line is written next: the one before, when a stop came between
            its update and its line.
        tokenizer: laid beside the checkpoints, so that each can be converted on its own.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: RunConfig,
        claim: workdir_lib.Claim,
        *,
        first_step: int,
        lines_from: int,
        tokenizer: Any,
    ) -> None:
        self._workdir, self._config, self._claim = workdir, config, claim
        self._first = processes.is_first()
        self._writer = MetricsWriter(
            workdir,
            tensorboard=config.metrics.tensorboard,
            wandb=config.metrics.wandb,
            first_step=lines_from,
            enabled=self._first,
        )
        self.redone = 0  # steps of an earlier life that are done again
        if not self._first:
            return
        self.redone = self._writer.cut_back(lines_from)
        workdir_lib.delete_rollouts_from(workdir, first_step)
        tokenizer_dir = workdir / "checkpoints" / TOKENIZER
        tokenizer_dir.mkdir(parents=True, exist_ok=True)
        save_tokenizer(tokenizer, tokenizer_dir)  # again: a kill may have torn it
        devices = Counter(device.device_kind for device in jax.devices())
        workdir_lib.note(workdir, devices=devices, processes=jax.process_count())

    def close(self) -> None:
        """Flushes and closes what is open."""
        self._writer.close()

    def write_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl: functions of config, data and seed alone."""
        self._claim.check()
        self._writer.write(step, metrics)

    def write_timing(self, step: int, line: dict[str, Any]) -> None:
        """One line of timing.jsonl: wall clock, throughput, memory, time-outs."""
        self.note_timeouts(line["reward/timeouts"])
        self._writer.write_timing(step, line)

    def note_timeouts(self, timeouts: int) -> None:
        """Says in run.json, where there are any, that the clock has had a say."""
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
