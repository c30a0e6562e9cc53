"""Where a run begins: at its newest checkpoint, at another run's, or with the base model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from etils import epath

from polaris_jax.assemble import Parts
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.records import StageState
from polaris_jax.run.standing import tail_lines
from polaris_jax.state import RunState, abstract_state, new_loader, restore, stage_from, tables
from polaris_jax.system import processes
from polaris_jax.system.files import is_remote
from polaris_jax.train.state import init_train_state, load_sharded


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
    loader, stage = new_loader(parts), stage_from(host["stage"])
    if others := _other_problems(host.get("problems"), loader.digests):
        for table in inherited.values():
            table.drop(others)
        dropped = tuple(i for i in stage.dropped_ids if i not in others)
        stage = dataclasses.replace(stage, dropped_ids=dropped)
        if others == host["problems"].keys() & loader.digests.keys():  # so are those of the probe
            stage = dataclasses.replace(stage, target_diversity=None, target_probe=None)
        parts.progress.line(
            f"warning: {len(others)} ids of {source} are other problems here: nothing that it "
            "knows of them is taken over (visits, stored responses, what was dropped)"
        )
    if not parts.config.stages[start.stage].reset_optimizer:
        parts.progress.line(
            f"stages[{start.stage}].reset_optimizer=False: the moments are new all the same, for "
            "those of the other run are not read"
        )
    inherited["sink"].begin_anew(host["step"])
    inherited["accuracy"].add_calibration(own["accuracy"])
    inherited["lengths"].add_unknown(own["lengths"])
    return RunState(
        step=0,
        stage=dataclasses.replace(stage, finished=False),
        next_stage=start.stage,
        train=parts.updater.reset_optimizer(train),
        loader=loader,
        **inherited,
    )


def _other_problems(there: Mapping[str, str] | None, here: Mapping[str, str]) -> set[str]:
    """Ids that both runs have, of problems with another text or gold.

    Args:
        there: `PromptLoader.digests` of the other run; None in checkpoints of earlier versions.
        here: those of this run.
    """
    return {i for i, digest in (there or {}).items() if here.get(i, digest) != digest}


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
