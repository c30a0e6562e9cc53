"""How hard each problem is for this model, and the curated training set.

Samples `calibrate.n` responses a problem; leaves difficulty.parquet, curated.parquet,
difficulty.png and calibrate.json. Rerun it to continue where it stopped.

Example:
  polaris calibrate --config=configs/polaris_4b.py --workdir=runs/4b
"""

from __future__ import annotations

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.system.signals import begin_work


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("calibrate", argv, doc=__doc__ or "")
    start_jax(command)
    from polaris_jax.measure.calibrate import calibrate
    from polaris_jax.system.console import open_console

    begin_work()
    calibrate(command.config, command.workdir, progress=open_console())
    return 0
