"""`RunState`: everything that changes while a run runs, how it is saved and restored.

Every step takes a state and returns the next one. Tables are copied before they change, so a step
that is abandoned leaves the state before it as it was. Only the update donates: it consumes the
weights and moments of `RunState.train`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from polaris_jax.assemble import Parts
from polaris_jax.batch import RescueBuffer
from polaris_jax.checkpoint.snapshots import Snapshot
from polaris_jax.checkpoint.step_folders import ROPE_SCALING
from polaris_jax.config import longest_response_tokens
from polaris_jax.data.loader import PromptLoader
from polaris_jax.metrics.writer import reduce_metrics
from polaris_jax.records import Group, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.rollout.draft_store import DraftStore
from polaris_jax.rollout.groups import groups_from_host, groups_to_host
from polaris_jax.stages.controller import observe_score, stage_ended
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.stages.guards import History
from polaris_jax.stages.lengths import LengthTable
from polaris_jax.system.seeds import fold_seed
from polaris_jax.train.state import (
    TrainState,
    abstract_train_state,
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
            "problems": self.loader.digests,
            "counts": dict(self.counts),
            "lengths": self.lengths.state_dict(),
            "carried": groups_to_host(self.carried),
            "owed": None if pending is None else reduce_metrics(pending),
            "guards": dataclasses.asdict(self.guards),
        }
        facts = {ROPE_SCALING: None if scaling is None else dataclasses.asdict(scaling)}
        return Snapshot(self.step, self.stage.stage, pending is not None, self.train, host, facts)


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
