r"""Problems from anywhere to the workdir's problems.parquet.

Reads `data.problems` (jsonl, json, parquet, a Hugging Face data set directory or name; empty: the
procedural problems of `data.arithmetic`), validates, deduplicates and filters; prepare.json counts
every row left out, by reason.

Example:
  polaris prepare --config=configs/polaris_4b.py --workdir=runs/4b \
      --config.data.problems=deepscaler.jsonl
"""

from __future__ import annotations

from polaris_jax.commands.flags import parse
from polaris_jax.commands.run import start_jax
from polaris_jax.system.interrupts import begin_work


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("prepare", argv, doc=__doc__ or "")
    start_jax(command)
    from polaris_jax.measure.prepare import prepare
    from polaris_jax.system.processes import is_first
    from polaris_jax.system.progress import Progress

    begin_work()
    prepare(command.config, command.workdir, progress=Progress(enabled=is_first()))
    return 0
