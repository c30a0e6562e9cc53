"""A temperature sweep: accuracy, diversity, zones, and the temperature to begin with.

Leaves probe.json and probe.png. Rerun it to continue where it stopped.

Example:
  polaris probe --config=configs/polaris_4b.py --workdir=runs/4b --config.probe.n=16
"""

from __future__ import annotations

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.system.signals import begin_work


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("probe", argv, doc=__doc__ or "")
    start_jax(command)
    from polaris_jax.measure.probe import probe
    from polaris_jax.system.console import open_console

    begin_work()
    probe(command.config, command.workdir, progress=open_console())
    return 0
