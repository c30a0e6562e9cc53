r"""All stages of the recipe, from the workdir's curated problems to a checkpoint.

Resumes by itself: the same command on the same workdir goes on from the last whole checkpoint. A
workdir of another config is refused, naming the fields that differ; --overwrite starts anew.
`--stage N --from CKPT` begins at stage N (from 0, as in `config.stages[N]`) with the weights,
accuracy table and rescue sink of another run's checkpoint. SIGTERM or a lost terminal leaves a
checkpoint and exits 0 (or as POLARIS_STOPPED_STATUS says, for schedulers that restart only what has
failed), Ctrl-C leaves one and exits 130.

Example:
  polaris train --config=configs/polaris_4b.py --workdir=runs/4b \
      --config.evaluate.problems=aime24.jsonl --config.stages[0].steps=300
"""

from __future__ import annotations

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import ConfigError
from polaris_jax.system.files import as_place
from polaris_jax.system.signals import StopRequest, stopped_status


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("overwrite", False, "start anew in a used workdir", flag_values=values)
    flags.DEFINE_integer("stage", -1, "begin at this stage, from 0", flag_values=values)
    flags.DEFINE_string("from", "", "checkpoint to begin a later stage from", flag_values=values)


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("train", argv, doc=__doc__ or "", define=_define)
    stage, source = command.flags["stage"], command.flags["from"]
    if source and stage < 0:
        raise ConfigError(
            f"--from={source}: needs --stage=N too, the stage to begin at, from 0; give both or "
            "neither"
        )
    if stage >= 0 and not source:
        raise ConfigError(
            f"--stage={stage}: needs --from=CKPT too, the checkpoint to begin with; give both or "
            "neither"
        )
    if source and not as_place(source).exists():
        raise ConfigError(f"--from={source}: there is no such checkpoint")
    when_stopped = stopped_status()
    start_jax(command)
    from polaris_jax.loop import train
    from polaris_jax.start_at import StartAt
    from polaris_jax.system.processes import any_process, is_first
    from polaris_jax.system.progress import Progress

    progress = Progress(enabled=is_first())
    start = StartAt(stage, as_place(source)) if source else None
    with StopRequest() as stop:
        summary = train(
            command.config,
            command.workdir,
            progress=progress,
            stop=stop,
            overwrite=command.flags["overwrite"],
            start=start,
        )
    if summary.finished and summary.first_step == summary.last_step:
        progress.line(f"already complete: {summary.last_step} steps in {command.workdir}")
        return 0
    counts = "  ".join(f"{name} {value}" for name, value in sorted(summary.counts.items()))
    ending = "finished" if summary.finished else "stopped; rerun the same command to go on"
    if stop.signal is not None:
        ending += f" ({stop.waited_s:.1f} s after {stop.signal.name})"
    progress.line(f"{ending}: {summary.last_step} steps  {counts}")
    interrupted = any_process(stop.interrupted)  # one status in all processes, whoever was told
    return exit_status(summary.finished, interrupted=interrupted, when_stopped=when_stopped)


def exit_status(finished: bool, *, interrupted: bool, when_stopped: int) -> int:
    """130 after Ctrl-C in any process, `when_stopped` for a run with steps left, else 0."""
    return 130 if interrupted else 0 if finished else when_stopped
