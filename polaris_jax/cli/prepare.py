r"""Problems from anywhere to the workdir's problems.parquet.

Reads `data.problems` (jsonl, json, parquet, a Hugging Face data set directory or name; empty: the
procedural problems of `data.arithmetic`), validates, deduplicates and filters; prepare.json counts
every row left out, by reason.

Example:
  polaris prepare --config=configs/polaris_4b.py --workdir=runs/4b \
      --config.data.problems=deepscaler.jsonl
"""

from __future__ import annotations

from polaris_jax.cli.flags import parse
from polaris_jax.cli.run import start_jax
from polaris_jax.interrupts import begin_work


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("prepare", argv, doc=__doc__ or "")
    start_jax(command)
    from polaris_jax.processes import is_first
    from polaris_jax.progress import Progress
    from polaris_jax.runs.prepare import prepare

    begin_work()
    prepare(command.config, command.workdir, progress=Progress(enabled=is_first()))
    return 0
