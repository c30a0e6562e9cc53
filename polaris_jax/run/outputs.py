"""What a run writes beside its checkpoints: metrics, timing, stages.json, rollouts/, the tokenizer.

Only the first process writes, and only while it owns the workdir.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from polaris_jax.batch import RescueBuffer, StoredResponse
from polaris_jax.checkpoint.checkpointer import TOKENIZER
from polaris_jax.checkpoint.step_folders import MANIFEST, seal
from polaris_jax.config import RunConfig
from polaris_jax.data.prompts import read_template
from polaris_jax.metrics import MetricsWriter, value_of
from polaris_jax.metrics.trackers import WandbNames
from polaris_jax.metrics.writer import METRICS
from polaris_jax.models.tokenizer import replace_tokenizer
from polaris_jax.records import Graded, Problem
from polaris_jax.reward import Grader
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.standing import BEFORE
from polaris_jax.system import processes
from polaris_jax.system.cache import cpu_features
from polaris_jax.system.files import delete_partials, files_below
from polaris_jax.system.foreign import one_line
from polaris_jax.system.progress import say

# Null in the metrics of a step without an update.
UPDATE_METRICS = (
    *("rollout/logp_gap_mean", "rollout/logp_gap_max", "batch/padding_share", "batch/tokens"),
    *("batch/attention_imbalance", "batch/context_imbalance", "update/loss", "update/grad_norm"),
    *("update/entropy", "update/fresh_entropy", "update/ratio_mean", "update/skipped"),
    *(f"update/clip_fraction_{side}" for side in ("low", "high", "dual")),
)

_SCORED = b'{"step": %d,' % BEFORE


class Outputs:
    """The files of a training run.

    Args:
        workdir: gets the files.
        config: the run's config.
        claim: this run's claim on the workdir, checked before each write.
        tokenizer: saved beside the checkpoints, so that each can be converted on its own.
        end_ids: the model's end ids, saved with it.
        numerics: what results depend on beside config, data and seed (`numerics_of`), for run.json.

    Attributes:
        first_line: the first step whose line is written; None before `begin`.
        scored_before: True if metrics.jsonl has the score of the first weights, whose step is -1.
    """

    def __init__(
        self,
        workdir: epath.Path,
        config: RunConfig,
        claim: workdir_lib.Claim,
        *,
        tokenizer: Any,
        end_ids: Sequence[int] = (),
        numerics: Mapping[str, Any] | None = None,
    ) -> None:
        self._workdir, self._config, self._claim = workdir, config, claim
        self._tokenizer, self._end_ids = tokenizer, tuple(end_ids)
        self._numerics = dict(numerics or {})
        self._first = processes.is_first()
        self._kept: list[list[dict[str, Any]]] = []  # rows of the present step, by group
        self._writer: MetricsWriter | None = None
        self.first_line: int | None = None
        self.scored_before = False

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
        if self._first:  # before anything is cut: a place that cannot be written loses nothing
            tokenizer_dir = self._workdir / "checkpoints" / TOKENIZER
            tokenizer_dir.mkdir(parents=True, exist_ok=True)
            for folder in {path.parent for path in files_below(tokenizer_dir, links=False)}:
                delete_partials(folder)
            (tokenizer_dir / MANIFEST).unlink(missing_ok=True)
            # Again: a kill may have torn it.
            template = read_template(self._config.data.chat_template)
            replace_tokenizer(
                self._tokenizer, tokenizer_dir, end_ids=self._end_ids, template=template
            )
            seal(tokenizer_dir)
        metrics = self._config.metrics
        self._writer = MetricsWriter(
            self._workdir,
            tensorboard=metrics.tensorboard,
            wandb=metrics.wandb,
            names=WandbNames(
                project=metrics.wandb_project,
                name=metrics.wandb_name,
                group=metrics.wandb_group,
                tags=metrics.wandb_tags,
            ),
            samples=metrics.samples,
            first_step=lines_from,
            enabled=self._first,
        )
        redone, missing = self._writer.cut_back(lines_from)
        lines, scored = self._workdir / METRICS, False
        if self._first and lines.exists():
            scored = lines.read_bytes().startswith(_SCORED)
        self.scored_before = processes.any_process(scored)  # the others may read an older file
        if not self._first:
            return 0
        if missing:
            say(
                f"warning: {METRICS} has no line for {len(missing)} of the steps before the "
                f"checkpoint, the first of them {missing[0]}; the run continues, and run.json "
                "names them in missing_metrics",
                sys.stderr,
            )
        workdir_lib.delete_rollouts_from(self._workdir, first_step)
        devices = Counter(device.device_kind for device in jax.devices())
        facts = {"devices": devices, "processes": jax.process_count()}
        workdir_lib.note(
            self._workdir, **facts, **({"missing_metrics": missing} if missing else {})
        )
        if changed := workdir_lib.note_numerics(self._workdir, self._numerics, step=first_step):
            say(
                f"warning: {', '.join(changed)} differ from the run's last start: from step "
                f"{first_step} on the results are not those of an uninterrupted run (run.json: "
                "deterministic, numerics_changes)",
                sys.stderr,
            )
        return redone

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Records an error in run.json as the end of this start; closes, which may take a while."""
        if error is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the workdir is another run's now
                self.note_end(f"failed: {one_line(error)}")
        self.close()

    def close(self) -> None:
        """Flushes and closes what is open."""
        if self._writer is not None:
            self._writer.close()

    def note_end(self, how: str, counts: Mapping[str, int] | None = None) -> None:
        """Records in run.json how this start ended, and the run's totals."""
        if self._first:
            self._claim.check()
            workdir_lib.note_end(self._workdir, how, counts)

    def write_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl: functions of config, data and seed alone.

        Metrics of an update that the step did not make are null.
        """
        assert self._writer is not None
        self._claim.check()
        self._writer.write(step, dict.fromkeys(UPDATE_METRICS) | metrics)

    def write_score_before(self, metrics: dict[str, Any]) -> None:
        """The line of metrics.jsonl for the weights before the first update."""
        assert self._writer is not None
        self._claim.check()
        self._writer.write(BEFORE, metrics)
        self.scored_before = True

    def write_timing(self, step: int, line: dict[str, Any]) -> None:
        """One line of timing.jsonl: wall clock, throughput, memory, time-outs."""
        assert self._writer is not None
        self._claim.check()
        self._writer.write_timing(step, line)

    def note_grading(self, grader: Grader) -> None:
        """Records in run.json that something beside the answers has decided a reward.

        That is a time-out, a memory failure or the death of a worker, in any process. Every process
        calls it before a checkpoint that contains the reward is saved.
        """
        stats = grader.stats()
        failures = sum(processes.gather_objects(sum(stats[name] for name in NOT_REPEATABLE)))
        if failures and self._first:
            self._claim.check()
            workdir_lib.mark_nondeterministic(self._workdir)

    def keep_rollouts(
        self,
        step: int,
        graded: Graded,
        *,
        rescued: Graded,
        sink: RescueBuffer,
        problems: Sequence[Problem],
        draws: Sequence[int],
        attempt: int,
    ) -> None:
        """Keeps a batch's responses until `write_rollouts`; see `rollout_rows`.

        Args:
            step: number of the step.
            graded: the batch as sampled and graded.
            rescued: the batch after the rescue.
            sink: the sink from which it was rescued.
            problems: problems that have the batch's ids.
            draws: draw number of each prompt.
            attempt: number of the batch within its step, from 0.
        """
        if not attempt:  # an abort may have left those of a step that is done again
            self._kept = []
        if not self._saves(step):
            return
        carries = self._config.rollout.partial_rollouts == "carry"
        wanted = set(graded.problem_ids)
        questions = {p.id: p.problem for p in problems if p.id in wanted}
        rows = rollout_rows(
            graded,
            questions=[questions.get(problem_id, "") for problem_id in graded.problem_ids],
            rescues={
                (p, r): sink.get(graded.problem_ids[p])
                for p, r in np.argwhere(np.asarray(rescued.rescued_PR, bool)).tolist()
            },
            attempt=attempt,
            draws=draws if carries else None,
        )
        responses = graded.reward_PR.shape[1]
        self._kept += [rows[i : i + responses] for i in range(0, len(rows), responses)]

    def write_rollouts(self, step: int, *, donors: Mapping[int, int]) -> None:
        """The responses of a step in rollouts/: every group that was kept since its first batch.

        Rows of a group that a copy of another one replaced name that one, as `substituted_by`.

        Args:
            step: number of the step.
            donors: {place of a replaced group: place of its donor} among the groups kept.
        """
        kept, self._kept = self._kept, []
        if not self._saves(step):
            return
        self._claim.check()
        for place, donor in donors.items():
            for row in kept[place]:
                row["substituted_by"] = kept[donor][0]["problem_id"]
        rows = [row for group in kept for row in group]
        workdir_lib.write_rollouts(self._workdir, step, rows)
        if self._writer is not None:
            self._writer.show_samples(step, [row for row in rows if not row["attempt"]])

    def _saves(self, step: int) -> bool:
        """True if this process writes the responses of the step."""
        every = self._config.rollout.save_every
        return self._first and every > 0 and step % every == 0

    def write_stages(self, records: Sequence[dict[str, Any]]) -> None:
        """stages.json, from the records that a checkpoint holds too."""
        if self._first:
            self._claim.check()
            workdir_lib.write_json(self._workdir / "stages.json", list(records))
            if self._writer is not None:
                self._writer.show_stages(records)


def numerics_of(kernels: str) -> dict[str, Any]:
    """What the last bits of a run depend on, beside config, data and seed, by name.

    Args:
        kernels: the sampler's decode kernels, with the compiler that made them.
    """
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    found = {
        "decode kernels": kernels,
        "device": device.device_kind,
        "versions": versions,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    if device.platform == "cpu":
        digest = hashlib.sha256(cpu_features().encode()).hexdigest()[:16]
        found |= {"CPU features": digest, "CPU threads": _threads()}
    return found


def _threads() -> int:
    """The CPUs that this process may use, which is how many threads XLA starts."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def rollout_rows(
    graded: Graded,
    *,
    questions: Sequence[str],
    rescues: Mapping[tuple[int, int], StoredResponse | None],
    attempt: int,
    draws: Sequence[int] | None,
) -> list[dict[str, Any]]:
    """Rows of rollouts/step_N.jsonl: every response as sampled and graded.

    A response in whose place a stored one was trained also has the stored one's step, reward and
    text, as `rescue_step`, `rescue_reward` and `rescue_text`.

    Args:
        graded: the batch as sampled and graded.
        questions: [P] the problems as in the data set.
        rescues: {(p, r): the stored response that took the place of response r to prompt p}.
        attempt: number of the batch within its step, from 0.
        draws: draw number of each prompt. If given, a row also names its draw, and how many tokens
            each version of the policy gave.
    """
    rows: list[dict[str, Any]] = [
        {
            "problem_id": graded.problem_ids[p],
            "sample": r,
            "attempt": attempt,
            "question": questions[p],
            "gold": graded.golds[p],
            "text": graded.texts[p][r],
            "tokens": len(graded.token_ids[p][r]),
            "finish_reason": graded.finish_reasons[p][r],
            "reward": float(graded.reward_PR[p, r]),
        }
        for p in range(len(graded))
        for r in range(graded.reward_PR.shape[1])
    ]
    for name, groups in (("answer", graded.answers), ("reason", graded.reasons)):
        for row, value in zip(rows, (x for g in groups or () for x in g), strict=bool(groups)):
            row[name] = value
    responses = graded.reward_PR.shape[1]
    for (p, r), stored in rescues.items():
        if stored is not None:
            rows[p * responses + r] |= {
                "rescue_step": stored.step,
                "rescue_reward": stored.reward,
                "rescue_text": stored.text,
            }
    if graded.parts is not None:
        for row, parts in zip(rows, (x for g in graded.parts for x in g), strict=True):
            row |= {"parts": dict(parts)} if parts else {}
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


# Failures of grading that depend on the machine and its load: a rerun may grade otherwise.
NOT_REPEATABLE = ("timeouts", "crashes", "memory")
