r"""avg@k, pass@k, maj@k, accuracy by length and by token budget, with and without YaRN.

`--checkpoint=latest` takes the workdir's newest checkpoint, a path any other (Orbax or Hugging
Face), none the base model. Leaves eval.json, responses.jsonl and eval.png, with `--tag=before` as
before_eval.json and so on. `--config.evaluate.yarn=both` draws the budget curve with and without
YaRN. Rerun it to continue where it stopped.
Several checkpoints, with commas between them, are scored one after the other on the same problems
and seeds, and set side by side with paired differences: eval_compared.json, .md and .png. `base` is
the base model. `--tag` then names each.
`--beside=blog` puts the POLARIS blog's table beside the score of its benchmarks.
`--compare A B ...` samples nothing: it sets evaluations side by side that are there already. They
are workdirs, eval.json or responses.jsonl files. Leaves the same three files in `--out` (without
it: here); `--names=A,B` names them.

Example:
  polaris evaluate --config=configs/polaris_4b.py --workdir=runs/4b --checkpoint=latest \
      --config.evaluate.problems=aime25 --config.evaluate.n=32
  polaris evaluate --config=configs/polaris_4b.py --workdir=runs/4b --checkpoint=base,latest \
      --tag=before,after --config.evaluate.problems=aime24+aime25
  polaris evaluate --compare runs/4b/before_eval.json runs/4b/after_eval.json --out figures
"""

from __future__ import annotations

import dataclasses

from absl import flags

from polaris_jax.commands.compare import compare_command
from polaris_jax.commands.flags import define_policy, parse
from polaris_jax.commands.run import run_measurement

MOST_COMPARED = 6


def _define(values: flags.FlagValues) -> None:
    define_policy(values)
    flags.DEFINE_enum(
        "beside", "none", ["none", "blog"], "blog: the published scores", flag_values=values
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    doc = __doc__ or ""
    compared = compare_command("evaluate", argv, doc=doc, most=MOST_COMPARED, least=1)
    if compared is not None:
        from polaris_jax.measure.compare_evaluations import compare_evaluations

        compare_evaluations(compared.sources, compared.names, compared.out, say=print)
        return 0
    command = parse("evaluate", argv, doc=doc, define=_define)
    if command.flags["beside"] == "blog":
        section = dataclasses.replace(command.config.evaluate, beside="blog")
        config = dataclasses.replace(command.config, evaluate=section)
        command = dataclasses.replace(command, config=config)
    return run_measurement(command)
