"""How hard each problem is for this model, and the curated training set.

Samples `calibrate.n` responses a problem; leaves difficulty.parquet, curated.parquet,
difficulty.png and calibrate.json. Rerun it to continue where it stopped.
`--checkpoint=latest` takes the workdir's newest checkpoint in place of the base model, a path any
other (Orbax or Hugging Face); `--tag=after` then leaves after_difficulty.parquet and so on.
`--config.calibrate.keep_responses=true` keeps the responses in calibrate_responses/.
`--compare A B` samples nothing: it draws two models' pass rates side by side, and which problems
each of them solves. A and B are workdirs, difficulty.parquet files, or accuracy logs of the
original's format (jsonl). Leaves difficulty_compared.json and .png in `--out` (without it: here);
`--names=A,B` names them.

Example:
  polaris calibrate --config=configs/polaris_4b.py --workdir=runs/4b
  polaris calibrate --compare runs/1p7b runs/4b --out figures
"""

from __future__ import annotations

from polaris_jax.commands.compare import compare_command
from polaris_jax.commands.flags import define_policy, parse
from polaris_jax.commands.run import run_measurement


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    if (compared := compare_command("calibrate", argv, doc=__doc__ or "", most=2)) is not None:
        from polaris_jax.measure.compare_difficulty import compare_difficulty

        compare_difficulty(compared.sources, compared.names, compared.out, say=print)
        return 0
    command = parse("calibrate", argv, doc=__doc__ or "", define=define_policy)
    return run_measurement(command)
