"""`RunState`: everything that changes while a run runs, how it is saved and where it starts.

Every step takes a state and returns the next one. Tables are copied before they change, so a step
that is abandoned leaves the state before it as it was. Only the update donates: it consumes the
weights and moments of `RunState.train`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from polaris_jax.assemble import Parts, load_base
from polaris_jax.batch import RescueBuffer
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.snapshots import Snapshot
from polaris_jax.config import ConfigError
from polaris_jax.data.loader import PromptLoader
from polaris_jax.metrics.writer import reduce_metrics
from polaris_jax.records import NO_STAGE, Group, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.groups import array_state, groups_from
from polaris_jax.stages.controller import stage_ended
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.lengths import LengthTable
from polaris_jax.system.seeds import fold_seed
from polaris_jax.train.state import (
    TrainState,
    abstract_train_state,
    init_train_state,
    with_rope_scaling,
)


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run between two steps.

    Attributes:
        step: steps done since the run began.
        stage: where the run stands in its stages.
        next_stage: the stage to enter before the next step; None within a stage.
        train: weights, moments and counters, as they lie between updates.
        loader: draws the prompts.
        accuracy: right and seen responses of each problem.
        lengths: mean response tokens of each problem's newest visit.
        sink: stored correct responses, for the rescue.
        sampler: the stage's sampler, with the present weights. A snapshot leaves it out. None
            before the first stage.
        counts: totals of the run by name.
        carried: groups in flight that the last step left, oldest first.
        stage_records: the entries of stages.json.
        pending_metrics: the newest step's metrics while its line of metrics.jsonl is not written.
    """

    step: int
    stage: StageState
    next_stage: int | None
    train: TrainState
    loader: PromptLoader
    accuracy: AccuracyTable
    lengths: LengthTable
    sink: RescueBuffer
    sampler: Sampler | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    carried: tuple[Group, ...] = ()
    stage_records: tuple[dict[str, Any], ...] = ()
    pending_metrics: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        """True if all stages are finished and all lines are written."""
        return self.stage.finished and self.pending_metrics is None

    @property
    def next_line(self) -> int:
        """The step whose line of metrics.jsonl is written next."""
        return self.step if self.pending_metrics is None else self.step - 1

    @property
    def policy_version(self) -> int:
        """Updates that the policy has had since the run began."""
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
        """The state as a checkpoint holds it; cheap, since nothing of it is copied."""
        pending = self.pending_metrics
        host = {
            "step": self.step,
            "stage": dataclasses.asdict(self.stage),
            "stage_records": list(self.stage_records),
            "accuracy": self.accuracy.state_dict(),
            "sink": self.sink.array_state(),
            "loader": self.loader.state_dict(),
            "counts": dict(self.counts),
            "lengths": self.lengths.state_dict(),
            "carried": array_state(self.carried),
            "owed": None if pending is None else reduce_metrics(pending),
        }
        return Snapshot(self.step, self.stage.stage, pending is not None, self.train, host)


@dataclasses.dataclass(frozen=True)
class StartAt:
    """Begin a run at stage `stage` (from 0) with the weights and tables of `checkpoint`."""

    stage: int
    checkpoint: epath.Path


def open_state(parts: Parts, start: StartAt | None = None) -> RunState:
    """The state that a run continues from: its newest checkpoint's, else that of a new run.

    The run's files are cut back to it. Give the state to `train` and keep no other reference: the
    first update deletes its weights.

    Args:
        parts: what the run is made of.
        start: begin a new run at a later stage, from another run's checkpoint.

    Raises:
        ConfigError: the checkpoint belongs to other problems, another model or unknown stages.
    """
    latest = parts.checkpoints.checkpointer.latest()
    if latest is not None:
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
    return state


def new_state(parts: Parts) -> RunState:
    """The state of a run that has not entered its first stage."""
    base = parts.reference or load_base(parts.base_path, mesh=parts.updater.mesh)[0]
    take = parts.reference is None  # else the update would delete the reference's arrays
    train = init_train_state(base, parts.config.optimizer, parts.updater.mesh, take=take)
    return RunState(0, before_stages(), 0, train, make_loader(parts), *new_tables(parts))


def restore(parts: Parts, step: int) -> RunState:
    """The state of the run's own checkpoint of `step`.

    A finished run continues if the config now gives its last stage more steps.
    """
    train, host = parts.checkpoints.checkpointer.restore(step, abstract_state(parts))
    tables, loader = load_tables(new_tables(parts), host), make_loader(parts)
    loader.load_state_dict(host["loader"])  # checks the problems, then drops
    parts.clock.begin_at(host["counts"].get("update_tokens", 0))
    parts.progress.line(f"resumed at step {step}")
    stage = stage_from(host["stage"])
    ended = stage_ended(stage, parts.config.stages)
    train = with_rope_scaling(train, parts.rope_scaling(stage.stage))
    state = RunState(
        host["step"],
        dataclasses.replace(stage, finished=stage.finished and ended),
        None,
        train,
        loader,
        *tables,
        sampler=parts.solver.samplers.make(
            train.params, max_response_tokens=stage.max_response_tokens
        ),
        counts=host["counts"],
        carried=groups_from(host.get("carried", []), parts.solver.stop_token_ids),
        stage_records=tuple(host["stage_records"]),
        pending_metrics=host.get("owed"),
    )
    state = within_tokens(parts, state)
    state = dataclasses.replace(state, next_stage=following(parts, state.stage))
    parts.checkpoints.found(state.snapshot())
    return state


def start_from(parts: Parts, start: StartAt) -> RunState:
    """A new run's state with the weights and tables of another run's checkpoint.

    Raises:
        ConfigError: the config has no stage that the other run was in, so neither its drop rule
            nor its rotary scaling is known.
    """
    source, count = start.checkpoint, len(parts.config.stages)
    other = Checkpointer.of(source, architecture=parts.model_config.architecture())
    train, host = other.restore(other.latest_or_error(), abstract_state(parts))
    left = stage_from(host["stage"])
    if left.stage >= count:
        raise ConfigError(
            f"--from={source}: its run was in stage {left.stage}, and the config has stages 0 to "
            f"{count - 1}; drop_above and rope_factor of that stage come from the config: list "
            "that run's stages before the new one, and name the new one in --stage"
        )
    if host.get("carried"):
        parts.progress.line(f"{len(host['carried'])} unfinished groups of {source} stay there")
    parts.progress.line(f"starting stage {start.stage} from {source}")
    left = dataclasses.replace(left, finished=False)
    train = parts.updater.reset_optimizer(train)
    tables = load_tables(new_tables(parts), host)
    return RunState(0, left, start.stage, train, make_loader(parts), *tables)


def abstract_state(parts: Parts) -> TrainState:
    """Shapes, dtypes and shardings of the train state: what a checkpoint is restored into."""
    return abstract_train_state(parts.model_config, parts.config.optimizer, mesh=parts.updater.mesh)


def before_stages() -> StageState:
    """The stage of a run that has entered none."""
    return StageState(NO_STAGE, first_step=0, steps_done=0, temperature=0, max_response_tokens=0)


def make_loader(parts: Parts) -> PromptLoader:
    """Endless shuffled epochs over all problems."""
    return PromptLoader(
        parts.problems,
        tokenizer=parts.solver.tokenizer,
        prompt_suffix=parts.config.data.prompt_suffix,
        batch_size=parts.config.rollout.prompts_per_step,
        seed=fold_seed(parts.config.seed, "loader"),
    )


Tables = tuple[AccuracyTable, LengthTable, RescueBuffer]


def new_tables(parts: Parts) -> Tables:
    """Accuracy, lengths and sink before the first step: what `calibrate` has measured."""
    rates = {p.id: p.pass_rate for p in parts.problems if p.pass_rate is not None}
    tokens = {p.id: p.response_tokens for p in parts.problems if p.response_tokens is not None}
    return AccuracyTable(rates), LengthTable(tokens), RescueBuffer()


def load_tables(tables: Tables, host: Mapping[str, Any]) -> Tables:
    """The same tables, filled with a checkpoint's contents."""
    accuracy, lengths, sink = tables
    accuracy.load_state_dict(host["accuracy"])
    sink.load_state_dict(host["sink"])
    if "lengths" in host:  # checkpoints of earlier versions have none
        lengths.load_state_dict(host["lengths"])
    return tables


def following(parts: Parts, stage: StageState) -> int | None:
    """The stage to enter next if `stage` has ended and is not the last; else None."""
    ended = stage_ended(stage, parts.config.stages)
    return stage.stage + 1 if ended and not stage.finished else None


def within_tokens(parts: Parts, state: RunState) -> RunState:
    """The state, finished if `rollout.total_tokens` are spent and no group is in flight."""
    if not state.tokens_spent(parts.config.rollout.total_tokens) or state.carried:
        return state
    return dataclasses.replace(state, stage=dataclasses.replace(state.stage, finished=True))


def stage_from(fields: Mapping[str, Any]) -> StageState:
    """A `StageState` from its fields as JSON gives them back."""
    restored = dict(fields)
    for name in ("dropped_ids", "decisions"):
        restored[name] = tuple(restored[name])
    return StageState(**restored)
