"""`RunState`: everything that changes while a run runs, how it is saved and where it starts.

Every step takes a state and returns the next one. Tables are copied before they change, so a step
that is abandoned leaves the state before it as it was. Only the update donates: it consumes the
weights and moments of `RunState.train`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from polaris_jax.assemble import Parts
from polaris_jax.batch import RescueBuffer
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.snapshots import Snapshot
from polaris_jax.checkpoint.step_folders import ROPE_SCALING
from polaris_jax.config import ConfigError, RunConfig, longest_response_tokens
from polaris_jax.data.loader import PromptLoader
from polaris_jax.metrics.writer import reduce_metrics
from polaris_jax.records import Group, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.draft_store import DraftStore
from polaris_jax.rollout.groups import groups_from_host, groups_to_host
from polaris_jax.run.standing import tail_lines
from polaris_jax.stages.controller import observe_score, stage_ended
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.guards import History
from polaris_jax.stages.lengths import LengthTable
from polaris_jax.system import processes
from polaris_jax.system.files import is_remote
from polaris_jax.system.seeds import fold_seed
from polaris_jax.train.state import (
    TrainState,
    abstract_train_state,
    init_train_state,
    load_sharded,
    with_rope_scaling,
)


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run between two steps.

    Attributes:
        step: steps done since the run began.
        stage: where the run stands in its stages.
        next_stage: the stage to enter before the next step; None within a stage.
        train: the trainer's weights, moments and counters; in host memory if
            `rollout.trainer_state` is host.
        loader: draws the prompts.
        accuracy: correct and total responses of each problem, by stage.
        lengths: mean response tokens of each problem's newest visit.
        sink: stored correct responses, for the rescue.
        drafts: newest responses of each problem, for the sampler's drafts.
        sampler: the stage's sampler, with the present weights. A snapshot leaves it out. None
            before the first stage.
        counts: totals of the run by name.
        carried: groups that the last step started and did not train, oldest first.
        stage_records: the entries of stages.json.
        pending_metrics: the newest step's metrics until they are written to metrics.jsonl; else
            None.
        guards: what the guards remember of the steps written.
    """

    step: int
    stage: StageState
    next_stage: int | None
    train: TrainState
    loader: PromptLoader
    accuracy: AccuracyTable
    lengths: LengthTable
    sink: RescueBuffer
    drafts: DraftStore = dataclasses.field(default_factory=DraftStore)
    sampler: Sampler | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    carried: tuple[Group, ...] = ()
    stage_records: tuple[dict[str, Any], ...] = ()
    pending_metrics: dict[str, Any] | None = None
    guards: History = dataclasses.field(default_factory=History)

    @property
    def done(self) -> bool:
        """True if all stages are finished and all lines are written."""
        return self.stage.finished and self.pending_metrics is None

    @property
    def at_stage_end(self) -> bool:
        """True if the newest step was the last of its stage."""
        return self.next_stage is not None or self.stage.finished

    @property
    def next_line(self) -> int:
        """The step whose line of metrics.jsonl is written next."""
        return self.step if self.pending_metrics is None else self.step - 1

    @property
    def policy_version(self) -> int:
        """Number of steps with an update since the run began."""
        return self.step - self.counts.get("steps_without_update", 0)

    def live_sampler(self) -> Sampler:
        """The stage's sampler, once a stage has been entered."""
        assert self.sampler is not None, "a stage must be entered first"
        return self.sampler

    def counted(self, **numbers: int) -> RunState:
        """The state with `numbers` added to its totals."""
        added = {name: self.counts.get(name, 0) + number for name, number in numbers.items()}
        return dataclasses.replace(self, counts={**self.counts, **added})

    def tokens_spent(self, total_tokens: int) -> bool:
        """True once the run has sampled `total_tokens` (`rollout.total_tokens`; 0: no limit)."""
        return bool(total_tokens) and self.counts.get("sampled_tokens", 0) >= total_tokens

    def snapshot(self) -> Snapshot:
        """The state as a checkpoint holds it. The train state's arrays are shared, not copied."""
        pending = self.pending_metrics
        scaling = self.train.params.config.rope_scaling  # the stage's, not the base model's
        host = {
            "step": self.step,
            "stage": dataclasses.asdict(self.stage),
            "stage_records": list(self.stage_records),
            "accuracy": self.accuracy.state_dict(),
            "sink": self.sink.array_state(),
            "drafts": self.drafts.array_state(),
            "loader": self.loader.state_dict(),
            "counts": dict(self.counts),
            "lengths": self.lengths.state_dict(),
            "carried": groups_to_host(self.carried),
            "owed": None if pending is None else reduce_metrics(pending),
            "guards": dataclasses.asdict(self.guards),
        }
        facts = {ROPE_SCALING: None if scaling is None else dataclasses.asdict(scaling)}
        return Snapshot(self.step, self.stage.stage, pending is not None, self.train, host, facts)


@dataclasses.dataclass(frozen=True)
class StartAt:
    """Begin a run at stage `stage` (from 0) with the weights and tables of `checkpoint`."""

    stage: int
    checkpoint: epath.Path


def check_start(start: StartAt, config: RunConfig, workdir: epath.Path, *, overwrite: bool) -> None:
    """Checks where a run is to begin before anything is deleted or computed.

    Raises:
        ConfigError: there is no such stage or checkpoint, or `overwrite` would delete the
            checkpoint, or the run that was here although none can begin from the checkpoint.
    """
    stage, checkpoint = start.stage, start.checkpoint
    if not 0 <= stage < len(config.stages):
        raise ConfigError(f"--stage={stage}: the config has stages 0 to {len(config.stages) - 1}")
    if overwrite:
        source, own = _real(checkpoint), _real(workdir)
        if source == own or f"{source}/".startswith(f"{own}/checkpoints/"):
            raise ConfigError(
                f"--from={checkpoint}: --overwrite would delete it, as it lies in "
                f"workdir={workdir}; choose another --workdir"
            )
    other = Checkpointer.of(checkpoint)
    if overwrite:
        _step_to_begin_from(other, start, config)


def _real(path: epath.Path) -> str:
    return str(path).rstrip("/") if is_remote(path) else os.path.realpath(path)  # epath keeps links


def open_state(parts: Parts, start: StartAt | None = None) -> RunState:
    """The state that a run continues from: its newest checkpoint's, else that of a new run.

    Metrics and rollouts of later steps are deleted. Give the state to `train` and keep no other
    reference: the first update deletes its weights.

    Args:
        parts: what the run is made of.
        start: begin a new run at a later stage, from another run's checkpoint.

    Raises:
        ConfigError: the checkpoint belongs to other problems, another model or unknown stages; or
            there is none to read, and the workdir has steps that a new run would delete.
    """
    latest = parts.checkpoints.checkpointer.latest()
    if latest is None and (lost := processes.from_first(lambda: _lost_steps(parts))):
        raise ConfigError(lost)
    if latest is not None:
        if start is not None:
            parts.progress.line(
                f"--from={start.checkpoint} --stage={start.stage} are left out: the run has begun, "
                "and continues from its own checkpoint"
            )
        state = restore(parts, latest)
    elif start is not None:
        state = start_from(parts, start)
    else:
        state = new_state(parts)
    state = dataclasses.replace(state, train=parts.updater.park(state.train))
    redone = parts.outputs.begin(first_step=state.step, lines_from=state.next_line)
    if redone:
        parts.progress.line(f"{redone} steps are done again")
    if latest is not None:
        parts.outputs.write_stages(state.stage_records)
        parts.checkpoints.checkpointer.tidy()
    return state


def _lost_steps(parts: Parts) -> str:
    """Why a new run must not begin here: its steps would replace those of a run; "" if none would.

    A run that was killed before its first checkpoint begins anew. A disk that is not mounted, or
    has lost its files, does not look like that.
    """
    checkpointer, every = parts.checkpoints.checkpointer, parts.config.checkpoint.every_steps
    done = max((line["step"] for line in tail_lines(parts.workdir / "metrics.jsonl")), default=-1)
    if damaged := checkpointer.damaged():
        why = f"none of its checkpoints ({', '.join(map(str, damaged))}) can be read"
    elif every and done >= every:  # a step begins when the save before it has ended
        why = f"it holds no checkpoint, and one is due every {every} steps"
    else:
        return ""
    return (
        f"{checkpointer.directory}: {why}, so that the run would begin anew and delete its metrics "
        f"and rollouts of {done + 1} steps; mount or mend that directory and start again, or use "
        "--overwrite to begin anew"
    )


def new_state(parts: Parts) -> RunState:
    """The state of a run that has not entered its first stage."""
    base = parts.reference or load_sharded(parts.base_path, parts.updater.mesh)
    take = parts.reference is None  # the update deletes its arrays; the reference keeps its own
    return RunState(
        step=0,
        stage=StageState(),
        next_stage=0,
        train=init_train_state(base, parts.config.optimizer, parts.updater.mesh, take=take),
        loader=new_loader(parts),
        **tables(parts),
    )


def restore(parts: Parts, step: int) -> RunState:
    """The state of the run's own checkpoint of `step`.

    A finished run continues if the config now gives its last stage more steps.
    """
    train, host = parts.checkpoints.checkpointer.restore(step, abstract_state(parts))
    loader, stage = new_loader(parts), stage_from(host["stage"])
    loader.load_state_dict(host["loader"])  # raises for other problems; drops what was dropped
    parts.progress.line(f"resumed at step {step}")
    train = with_rope_scaling(train, parts.rope_scaling(stage.stage))
    state = RunState(
        step=host["step"],
        stage=stage,
        next_stage=None,
        train=train,
        loader=loader,
        **tables(parts, host),
        sampler=parts.solver.samplers.make(
            train.params, max_response_tokens=longest_response_tokens(parts.config)
        ),
        counts=host["counts"],
        carried=groups_from_host(host.get("carried", []), parts.solver.stop_token_ids),
        stage_records=tuple(host["stage_records"]),
        pending_metrics=host.get("owed"),
        guards=History(**host.get("guards", {})),  # checkpoints of earlier versions have none
    )
    state = with_next_stage(parts, state)
    parts.checkpoints.found(state.snapshot())
    return state


def start_from(parts: Parts, start: StartAt) -> RunState:
    """A new run's state with the weights and tables of another run's checkpoint.

    Raises:
        ConfigError: see `_step_to_begin_from`; or the checkpoint has another architecture.
    """
    source = start.checkpoint
    other = Checkpointer.of(source, architecture=parts.model_config.architecture())
    step = _step_to_begin_from(other, start, parts.config)
    needed = dataclasses.replace(abstract_state(parts), opt_state=())  # its moments are not used
    train, host = other.restore(step, needed, partial=True)
    if host.get("carried"):
        parts.progress.line(f"{len(host['carried'])} unfinished groups of {source} stay there")
    parts.progress.line(f"starting stage {start.stage} from {source}")
    inherited, own = tables(parts, host), tables(parts)
    inherited["sink"].begin_anew(host["step"])
    inherited["accuracy"].add_calibration(own["accuracy"])
    inherited["lengths"].add_unknown(own["lengths"])
    return RunState(
        step=0,
        stage=dataclasses.replace(stage_from(host["stage"]), finished=False),
        next_stage=start.stage,
        train=parts.updater.reset_optimizer(train),
        loader=new_loader(parts),
        **inherited,
    )


def _step_to_begin_from(other: Checkpointer, start: StartAt, config: RunConfig) -> int:
    """The newest step of another run, with every byte verified.

    Raises:
        ConfigError: no step is whole, or it holds weights alone, or the config has no stage that
            the other run was in, so neither its drop rule nor its rotary scaling is known.
    """
    source, count = start.checkpoint, len(config.stages)
    step = other.latest_or_error()
    if "step" not in other.facts(step)["arrays"]:
        raise ConfigError(
            f"--from={source}: holds weights alone, so no run can continue from it; make a model "
            "directory of it with `polaris convert`, and name that in model.path, without --from"
        )
    left = stage_from(other.host(step)["stage"])
    if left.stage >= count:
        raise ConfigError(
            f"--from={source}: its run was in stage {left.stage}, and the config has stages 0 to "
            f"{count - 1}; drop_above and rope_factor of that stage come from the config: list "
            "that run's stages before the new one, and name the new one in --stage"
        )
    return step


def abstract_state(parts: Parts) -> TrainState:
    """Shapes, dtypes and shardings of the train state: what a checkpoint is restored into."""
    return abstract_train_state(parts.model_config, parts.config.optimizer, mesh=parts.updater.mesh)


def new_loader(parts: Parts) -> PromptLoader:
    """Endless shuffled epochs over all problems."""
    return PromptLoader(
        parts.problems,
        tokenizer=parts.solver.tokenizer,
        prompt_format=parts.solver.prompt_format,
        batch_size=parts.config.rollout.prompts_per_step,
        seed=fold_seed(parts.config.seed, "loader"),
    )


def tables(parts: Parts, host: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tables `accuracy`, `lengths`, `sink`, `drafts`: from calibration, or a checkpoint."""
    rates = {p.id: p.pass_rate for p in parts.problems if p.pass_rate is not None}
    tokens = {p.id: p.response_tokens for p in parts.problems if p.response_tokens is not None}
    accuracy, lengths, sink = AccuracyTable(rates), LengthTable(tokens), RescueBuffer()
    rollout = parts.config.rollout
    drafts = DraftStore(rollout.draft_store_tokens if rollout.draft == "history" else 0)
    if host is not None:
        accuracy.load_state_dict(host["accuracy"])
        sink.load_state_dict(host["sink"])
        if "lengths" in host:  # checkpoints of earlier versions have none
            lengths.load_state_dict(host["lengths"])
        if "drafts" in host:
            drafts.load_state_dict(host["drafts"])
    return {"accuracy": accuracy, "lengths": lengths, "sink": sink, "drafts": drafts}


def with_score(parts: Parts, state: RunState, score: float) -> RunState:
    """The state after a held-out score, which may end its stage (`stages[i].end_score_gain`)."""
    stage, decisions = observe_score(state.stage, score, parts.config.stages)
    state = dataclasses.replace(state, stage=stage)
    return with_next_stage(parts, state) if decisions else state


def with_next_stage(parts: Parts, state: RunState) -> RunState:
    """The state with `next_stage` set if its stage has ended, or `stage.finished` if the run has.

    The run ends with its last stage, or once `rollout.total_tokens` are spent. What ends a stage or
    the run before its last step waits until no group is in flight.
    """
    stages, stage = parts.config.stages, state.stage
    ended = stage_ended(stage, stages) and not state.carried
    spent = state.tokens_spent(parts.config.rollout.total_tokens) and not state.carried
    finished = spent or (ended and stage.stage == len(stages) - 1)
    return dataclasses.replace(
        state,
        stage=dataclasses.replace(stage, finished=finished),
        next_stage=stage.stage + 1 if ended and not finished else None,
    )


def stage_from(fields: Mapping[str, Any]) -> StageState:
    """A `StageState` from a checkpoint's fields, in which JSON has lists for tuples."""
    names = ("dropped_ids", "decisions", "first_entropies", "last_entropies")
    lists = {name: tuple(fields.get(name, ())) for name in names}
    rows = {name: tuple(map(tuple, fields.get(name, ()))) for name in ("recent", "scores")}
    return StageState(**{**fields, **lists, **rows})
