r"""All stages of the recipe, from the workdir's curated problems to a checkpoint.

Resumes by itself: the same command on the same workdir continues from the last complete
checkpoint. A workdir of another config is refused, naming the fields that differ; --overwrite
starts anew, but not again when a scheduler repeats the line (POLARIS_LAUNCH). `--stage N --from
CKPT` begins at stage N (from 0, as in `config.stages[N]`) with the weights, accuracy table and
rescue sink of another run's checkpoint. SIGTERM or a lost terminal leaves a checkpoint and exits 0
(or as POLARIS_STOPPED_STATUS says, for schedulers that restart only what has failed), Ctrl-C leaves
one and exits 130. A run of which half the steps taught nothing ends with 1.

Example:
  polaris train --config=configs/polaris_4b.py --workdir=runs/4b \
      --config.evaluate.problems=aime24 --config.stages[0].steps=300
"""

from __future__ import annotations

import os

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.config import ConfigError
from polaris_jax.run.record import begun_by_this_launch, has_finished
from polaris_jax.system.files import as_place
from polaris_jax.system.signals import LAUNCH, StopRequest, stopped_status


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("overwrite", False, "start anew in a used workdir", flag_values=values)
    flags.DEFINE_integer("stage", -1, "number of the stage to begin at, from 0", flag_values=values)
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
    config, workdir, overwrite = command.config, command.workdir, command.flags["overwrite"]
    if source and not as_place(source).exists():
        raise ConfigError(f"--from={source}: there is no such checkpoint")
    when_stopped = stopped_status()
    start_jax(command)
    from polaris_jax.commands.forecast import machine_forecast
    from polaris_jax.loop import run
    from polaris_jax.start import StartAt
    from polaris_jax.system.console import open_console
    from polaris_jax.system.processes import any_process, from_first

    if overwrite and from_first(lambda: begun_by_this_launch(workdir)):
        overwrite = False
        launch = f"{LAUNCH}={os.environ[LAUNCH]}"
        open_console().line(f"--overwrite is left out: {launch} began this run, which resumes")
    start = StartAt(stage, as_place(source)) if source else None
    stop = StopRequest()
    complete = not overwrite and has_finished(workdir)
    forecast = machine_forecast(config, trains=True)
    state = run(config, workdir, overwrite=overwrite, start=start, stop=stop, forecast=forecast)
    if state.done and state.guards.hopeless and not complete:
        return 1  # `run` has said why
    interrupted = any_process(stop.interrupted)  # one status in all processes
    return exit_status(state.done, interrupted=interrupted, when_stopped=when_stopped)


def exit_status(finished: bool, *, interrupted: bool, when_stopped: int) -> int:
    """130 after Ctrl-C in any process, `when_stopped` for a run with steps left, else 0."""
    return 130 if interrupted else 0 if finished else when_stopped
