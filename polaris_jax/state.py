"""What outlives a step of training: tables, files, compiled update, and the road back after a kill.

A checkpoint holds the device state (`TrainState`) and the host state of `host_state`: stage,
accuracy table, rescue sink, loader position, groups in flight, stage records, counts. Everything
else of a step is a function of these, the config and the data, so a resumed run repeats an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import Counter
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.assemble import (
    evaluation_problems,
    fitting,
    fold_seed,
    grade,
    make_grader,
    make_sampler,
    sampler_shards,
    training_problems,
)
from polaris_jax.base_model import base_model_config, check_positions, load_base, yarn_scaling
from polaris_jax.batch import RescueBuffer, Substitution
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.config import RunConfig, check_pages, config_hash, row_len_tokens
from polaris_jax.data.loader import PromptLoader
from polaris_jax.mark import Mark, stage_from
from polaris_jax.measure.held_out import HeldOut
from polaris_jax.models import RopeScaling
from polaris_jax.records import Graded, Rollouts, StageState
from polaris_jax.reward.grade_ahead import GradeAhead
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.groups import Group, groups_from
from polaris_jax.run import workdir as workdir_lib
from polaris_jax.run.outputs import RunFiles
from polaris_jax.run.step_clock import StepClock
from polaris_jax.run.step_records import UPDATE_METRICS, step_text
from polaris_jax.sharding import make_mesh, split_devices
from polaris_jax.stages.controller import stage_ended
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.lengths import LengthTable
from polaris_jax.start_at import StartAt, check_left, check_start
from polaris_jax.system import processes
from polaris_jax.system.failures import at_run_time
from polaris_jax.system.progress import Progress
from polaris_jax.system.signals import StopRequest
from polaris_jax.train.state import TrainState, init_train_state, with_rope_scaling
from polaris_jax.train.update import Updater


class TrainingRun:
    """A run of `polaris train` from open to close; use it as a context manager."""

    def __init__(
        self,
        config: RunConfig,
        workdir: epath.Path,
        *,
        progress: Progress,
        overwrite: bool = False,
        start: StartAt | None = None,
    ) -> None:
        self.config, self.workdir, self.progress = config, workdir, progress
        self._overwrite, self._start = overwrite, start
        self.step = 0
        self.first_stage = 0
        self.left: StageState | None = None
        self.resumed: tuple[StageState, TrainState, PromptLoader, Sampler] | None = None
        self.stage_records: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.carried: tuple[Group, ...] = ()  # groups that the step before left in flight
        self.owed: dict[str, Any] | None = None  # metrics of a step whose line is not written yet
        self.clock = StepClock()
        self._closing = contextlib.ExitStack()
        self._held_out: HeldOut | None = None
        self._kernels = ""

    # ---- opening and closing

    def __enter__(self) -> TrainingRun:
        with contextlib.ExitStack() as opening:  # lets go of lock and workers if opening fails
            self._open(opening)
            self._closing = opening.pop_all()
        return self

    def _open(self, opening: contextlib.ExitStack) -> None:
        config, workdir = self.config, self.workdir
        if self._start is not None:
            check_start(self._start, config, workdir, overwrite=self._overwrite)
        self.problems, origin = training_problems(config, workdir, self.progress)
        scored = bool(config.evaluate.every_steps)
        held_out = evaluation_problems(config, self.progress)[0] if scored else []
        # What can be refused is, before --overwrite deletes a run and before anything is computed.
        model_config = base_model_config(config, workdir, self.progress)
        check_positions(config, model_config, self.progress)
        trainer_devices, self.sampler_devices = split_devices(
            config.rollout.devices, config.rollout.processes
        )
        check_pages(config, sampler_shards(config, self.sampler_devices))
        self.mesh = make_mesh(config.mesh, trainer_devices)
        self.updater = Updater(
            config.objective,
            config.optimizer,
            config.model,
            self.mesh,
            rows=config.batch.rows,
            row_len=row_len_tokens(config),
            parks=config.rollout.trainer_state == "host",
        )
        self.updater.check_model(model_config)
        self._claim = opening.enter_context(
            workdir_lib.claim(
                workdir, config, overwrite=self._overwrite, primary=processes.is_first()
            )
        )
        self.progress.line(f"problems: {len(self.problems)} from {origin}")
        if config.optimizer.moment_dtype != "float32":
            self.progress.line(
                f"optimizer.moment_dtype={config.optimizer.moment_dtype}: the recipe's is float32"
            )
        base, self.tokenizer = load_base(config, workdir, self.progress, mesh=self.mesh)
        self.problems = fitting(
            self.problems, config, tokenizer=self.tokenizer, progress=self.progress
        )
        self.base_config = base.config
        self.grader = opening.enter_context(make_grader(config))
        if scored:
            held_out = fitting(held_out, config, tokenizer=self.tokenizer, progress=self.progress)
            self._held_out = HeldOut(
                held_out,
                config,
                tokenizer=self.tokenizer,
                grader=self.grader,
                devices=self.sampler_devices,
            )
        self.accuracy = AccuracyTable(
            {p.id: p.pass_rate for p in self.problems if p.pass_rate is not None}
        )
        self.lengths = LengthTable(
            {p.id: p.response_tokens for p in self.problems if p.response_tokens is not None}
        )
        self.sink = RescueBuffer()
        self.checkpointer = Checkpointer(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            config_hash=config_hash(config),
            architecture=dataclasses.asdict(base.config),
            may_write=self._claim.check,
        )
        self.reference = base if config.objective.kl_coef else None
        keep_base = self.reference is not None
        self.state = init_train_state(base, config.optimizer, self.mesh, take=not keep_base)
        self._resume_or_start()
        self.files = opening.enter_context(
            contextlib.closing(
                RunFiles(
                    workdir,
                    config,
                    self._claim,
                    first_step=self.step,
                    lines_from=self.next_line,
                    tokenizer=self.tokenizer,
                )
            )
        )
        if self.files.redone:
            self.progress.line(f"{self.files.redone} steps are done again")
        if self.resumed is not None:
            self.files.write_stages(self.stage_records)
        opening.enter_context(at_run_time(lambda: f"step {self.step}"))

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)

    def _resume_or_start(self) -> None:
        latest = self.checkpointer.latest()
        if latest is not None:
            self.state, host = self.checkpointer.restore(latest, self.state)
            self._load_host_state(host)
            self.progress.line(f"resumed at step {latest}")
            stage = self._reopened(stage_from(host["stage"]))
            loader = self.make_loader()
            loader.load_state_dict(host["loader"])  # checks the problems, then drops
            self.state = with_rope_scaling(self.state, self.rope_scaling(stage.stage))
            sampler = self.make_sampler(self.state, stage.max_response_tokens)
            self.resumed = stage, self.state, loader, sampler
        elif self._start is not None:
            source = self._start.checkpoint
            other = Checkpointer.of(source, architecture=dataclasses.asdict(self.base_config))
            self.state, host = other.restore(other.latest_or_error(), self.state)
            self.state = self.updater.reset_optimizer(self.state)
            self._load_tables(host)
            self.first_stage = self._start.stage
            self.left = stage_from(host["stage"])
            check_left(self.left, self.config, source)
            if host.get("carried"):
                self.progress.line(
                    f"{len(host['carried'])} unfinished groups of {source} stay there"
                )
            self.progress.line(f"starting stage {self.first_stage} from {source}")

    def _reopened(self, stage: StageState) -> StageState:
        """A finished run goes on where the config now gives its last stage more steps."""
        finished = stage.finished and stage_ended(stage, self.config.stages)
        return self.within_tokens(dataclasses.replace(stage, finished=finished))

    def make_loader(self) -> PromptLoader:
        """Endless shuffled epochs over all problems."""
        return PromptLoader(
            self.problems,
            tokenizer=self.tokenizer,
            prompt_suffix=self.config.data.prompt_suffix,
            batch_size=self.config.rollout.prompts_per_step,
            seed=fold_seed(self.config.seed, "loader"),
        )

    def make_sampler(self, state: TrainState, max_response_tokens: int) -> Sampler:
        """A sampler of the state's weights, on the devices that sample."""
        sampler = make_sampler(
            state.params,
            self.config,
            max_response_tokens=max_response_tokens,
            devices=self.sampler_devices,
        )
        if sampler.kernels != self._kernels:
            self._kernels = sampler.kernels
            self.progress.line(f"decode kernels: {sampler.kernels}")
        return sampler

    # ---- the parts of a step

    def rng(self, name: str, attempt: int) -> np.random.Generator:
        """The generator of one random choice of this step: the same in a resumed run."""
        return np.random.default_rng(fold_seed(self.config.seed, self.step, name, attempt))

    def grade(self, rollouts: Rollouts, ahead: GradeAhead) -> Graded:
        """The rollouts with their rewards (permuted in each group under reward.control=permute)."""
        graded = grade(self.grader, rollouts, mode=self.config.reward.mode, ahead=ahead)
        if self.config.reward.control == "permute":
            reward_PR = self.rng("permute", 0).permuted(graded.reward_PR, axis=1)
            graded = dataclasses.replace(graded, reward_PR=reward_PR)
        return graded

    def evaluate(self, state: TrainState, step: int, stop: StopRequest) -> dict[str, Any]:
        """avg@n on the held-out problems, every `evaluate.every_steps` steps.

        Raises:
            RolloutAborted: `stop` asked for it in some process.
        """
        section = self.config.evaluate
        if self._held_out is None or (step + 1) % section.every_steps:
            return {}
        stage = self.config.stages[self.stage_records[-1]["stage"]]
        temperature = stage.evaluate_temperature or section.temperature
        with self.clock.timer("evaluate"):
            accuracy = self._held_out.score(
                state.params, temperature=temperature, should_abort=lambda: stop.requested
            )
        self.progress.line(
            f"step {step}: avg@{section.n} {accuracy:.1%} on {len(self._held_out)} held-out "
            f"problems at temperature {temperature:g}"
        )
        return {f"eval/avg@{section.n}": accuracy}

    def rope_scaling(self, stage: int) -> RopeScaling | None:
        """The rotary scaling of a stage: YaRN by its factor; at factor 1 the checkpoint's own."""
        factor = self.config.stages[stage].rope_factor
        return yarn_scaling(self.config.rope.yarn, factor) or self.base_config.rope_scaling

    # ---- counts, files, checkpoints

    def count(self, **numbers: int) -> None:
        """Adds to the run's totals."""
        self.counts.update(numbers)

    @property
    def next_line(self) -> int:
        """The step whose line of metrics.jsonl is written next."""
        return self.step if self.owed is None else self.step - 1

    @property
    def policy_version(self) -> int:
        """Updates that the policy has had since the run began."""
        return self.step - self.counts["steps_without_update"]

    @property
    def tokens_spent(self) -> bool:
        """The run has sampled `rollout.total_tokens`."""
        limit = self.config.rollout.total_tokens
        return bool(limit) and self.counts["sampled_tokens"] >= limit

    def within_tokens(self, stage: StageState) -> StageState:
        """`stage`, finished when the tokens are spent and no group is in flight any more."""
        spent = self.tokens_spent and not self.carried
        return dataclasses.replace(stage, finished=True) if spent else stage

    def count_batch(self, swapped: Substitution, *, since: Mark) -> dict[str, Any]:
        """Counts a step's substitution; its metrics, with all that was counted since its mark."""
        self.count(
            substituted_groups=swapped.replaced,
            donors_reused=swapped.reused,
            steps_without_update=int(swapped.action != "train"),
        )
        counted = ("rescued_groups", "resampled_batches", "steps_without_update")
        new = {f"batch/{k}": self.counts[k] - since.counts.get(k, 0) for k in counted}
        return new | {
            "batch/informative_groups": swapped.informative,
            "batch/substituted_groups": swapped.replaced,
            "batch/donors_reused": swapped.reused,
        }

    def write_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """The step's line of metrics.jsonl, and what a person sees of it."""
        stage = self.stage_records[-1]
        line = {"stage": stage["stage"], "data/dropped": stage["dropped_ids_count"]}
        self.files.write_metrics(step, dict.fromkeys(UPDATE_METRICS) | line | metrics)
        self.owed = None
        self.progress.line(step_text(step, metrics))

    def write_timing(self, step: int, sampler: Sampler) -> None:
        """The step's line of timing.jsonl."""
        line = self.clock.line(
            sampler,
            self.grader,
            update_tokens=self.counts["update_tokens"],
            devices=list(self.mesh.devices.flat),
        )
        self.files.write_timing(step, line)
        text = self.clock.grace_warning(line, self.config.checkpoint)
        if text:
            self.progress.line(f"warning: {text}")

    def close_stage_record(self, last_step: int) -> None:
        """Notes in stages.json at which step the present stage ended."""
        self.stage_records[-1]["last_step"] = last_step
        self.files.write_stages(self.stage_records)

    def mark(
        self, stage: StageState, loader: PromptLoader, *, owed: dict[str, Any] | None = None
    ) -> Mark:
        """The host state between two steps, cheap to take: tables are copied shallowly.

        Args:
            stage: after the step before.
            loader: the same.
            owed: the metrics of the step before, where its line is not written yet.
        """
        return Mark(
            step=self.step,
            stage=stage,
            loader=loader.state_dict(),
            stage_records=tuple(dict(record) for record in self.stage_records),
            accuracy=copy.copy(self.accuracy),
            lengths=copy.copy(self.lengths),
            sink=copy.copy(self.sink),
            counts=dict(self.counts),
            carried=self.carried,
            owed=owed,
        )

    def _load_host_state(self, host: dict[str, Any]) -> None:
        self.step = host["step"]
        self.stage_records = host["stage_records"]
        self._load_tables(host)
        self.counts = Counter(host["counts"])
        self.carried = groups_from(host.get("carried", []))  # earlier versions had none
        self.owed = host.get("owed")
        self.clock.begin_at(self.counts["update_tokens"])

    def _load_tables(self, host: dict[str, Any]) -> None:
        self.accuracy.load_state_dict(host["accuracy"])
        self.sink.load_state_dict(host["sink"])
        if "lengths" in host:  # checkpoints of earlier versions have none
            self.lengths.load_state_dict(host["lengths"])

    def save(self, state: TrainState, mark: Mark, *, replace: bool = False) -> None:
        """A whole checkpoint of `mark`'s step, unless (or, with `replace`, even if) it is there."""
        if replace or self.checkpointer.newest_saved != mark.step:
            # Told before the state is kept in which they count: the step's timing may never come.
            timeouts = processes.gather_objects(self.grader.stats()["timeouts"])
            self.files.note_timeouts(sum(timeouts))
            self.checkpointer.save(mark.step, state, mark.host_state())
