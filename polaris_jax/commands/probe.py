"""A temperature sweep: accuracy, diversity, zones, and the temperature to begin with.

Leaves probe.json and probe.png. Rerun it to continue where it stopped. The sweep is a grid
(`probe.start`, `stop`, `step`) or a list (`probe.temperatures`); `probe.refine` more temperatures
narrow down where zones end. `--checkpoint=latest` takes the workdir's newest checkpoint in place of
the base model, a path any other (Orbax or Hugging Face); `--tag=stage1` then leaves
stage1_probe.json and so on.
`--compare A B ...` samples nothing: it draws several probes in one figure. They are workdirs or
probe.json files. Leaves probes_compared.png in `--out` (without it: here); `--names=A,B` names
them.

Example:
  polaris probe --config=configs/polaris_4b.py --workdir=runs/4b --config.probe.n=16
  polaris probe --compare runs/4b runs/4b/stage1_probe.json --out figures
"""

from __future__ import annotations

from polaris_jax.commands.compare import compare_command
from polaris_jax.commands.flags import define_policy, parse
from polaris_jax.commands.run import run_measurement


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    if (compared := compare_command("probe", argv, doc=__doc__ or "", most=6)) is not None:
        from polaris_jax.measure.compare_probes import compare_probes

        compare_probes(compared.sources, compared.names, compared.out, say=print)
        return 0
    command = parse("probe", argv, doc=__doc__ or "", define=define_policy)
    return run_measurement(command)
