r"""Log-probs of stored responses by position, beyond the trained length, with and without YaRN.

Samples nothing: it reads the responses that `polaris evaluate` left in the workdir under the same
`--tag`, takes the longest ones, and computes how likely their tokens are at each position without
rope.yarn, with it, and with each of evaluate.attention_factors. Leaves positions.json and
positions.png, with `--tag=after` as after_positions.json and so on.

Example:
  polaris positions --config=configs/polaris_4b.py:final --workdir=runs/4b --checkpoint=latest \
      --tag=after --config.evaluate.problems=aime24
"""

from __future__ import annotations

from absl import flags

from polaris_jax.commands.flags import check_tag, define_policy, parse
from polaris_jax.commands.run import start_jax


def _define(values: flags.FlagValues) -> None:
    define_policy(values)
    flags.DEFINE_integer("responses", 32, "responses, the longest ones", flag_values=values)


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("positions", argv, doc=__doc__ or "", define=_define)
    check_tag(command)
    start_jax(command)
    from polaris_jax.measure.positions import positions
    from polaris_jax.system import signals
    from polaris_jax.system.console import open_console

    signals.begin_work()
    positions(
        command.config,
        command.workdir,
        progress=open_console(),
        checkpoint=command.flags["checkpoint"],
        tag=command.flags["tag"],
        responses=command.flags["responses"],
    )
    return 0
