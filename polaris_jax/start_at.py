"""Beginning at a later stage with another run's checkpoint: where that is refused."""

from __future__ import annotations

import dataclasses
import os

from etils import epath

from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.records import StageState
from polaris_jax.system.files import is_remote


@dataclasses.dataclass(frozen=True)
class StartAt:
    """Begin a run at stage `stage` (from 0) with the weights and tables of `checkpoint`."""

    stage: int
    checkpoint: epath.Path


def check_start(start: StartAt, config: RunConfig, workdir: epath.Path, *, overwrite: bool) -> None:
    """Returns where the run may begin so; asked before anything is deleted or loaded.

    Raises:
        ConfigError: there is no such stage, or `overwrite` would delete the checkpoint first.
    """
    if not 0 <= start.stage < len(config.stages):
        raise ConfigError(
            f"--stage={start.stage}: the config has stages 0 to {len(config.stages) - 1}"
        )
    source, own = _real(start.checkpoint), _real(workdir)
    if overwrite and (source == own or f"{source}/".startswith(f"{own}/checkpoints/")):
        raise ConfigError(
            f"--from={start.checkpoint}: --overwrite would delete it, as it lies in "
            f"workdir={workdir}; choose another --workdir"
        )


def check_left(left: StageState, config: RunConfig, source: epath.Path) -> None:
    """Returns where the config has the stage that the other run was in.

    Raises:
        ConfigError: it has not, so neither its drop rule nor its rotary scaling is known.
    """
    if left.stage >= len(config.stages):
        raise ConfigError(
            f"--from={source}: its run was in stage {left.stage}, and the config has stages 0 to "
            f"{len(config.stages) - 1}; drop_above and rope_factor of that stage come from the "
            "config: list that run's stages before the new one, and name the new one in --stage"
        )


def _real(path: epath.Path) -> str:
    return str(path).rstrip("/") if is_remote(path) else os.path.realpath(path)  # epath keeps links
