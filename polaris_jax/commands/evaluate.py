r"""avg@k, pass@k, accuracy by length and by token budget, with and without YaRN.

`--checkpoint=latest` takes the workdir's newest checkpoint, a path any other (Orbax or Hugging
Face), none the base model. Leaves eval.json, responses.jsonl and eval.png, with `--tag=before` as
before_eval.json and so on. `--config.evaluate.yarn=both` draws the budget curve with and without
YaRN. Rerun it to continue where it stopped.

Example:
  polaris evaluate --config=configs/polaris_4b.py --workdir=runs/4b --checkpoint=latest \
      --config.evaluate.problems=aime25.jsonl --config.evaluate.n=32
"""

from __future__ import annotations

from polaris_jax.commands.flags import define_policy, parse
from polaris_jax.commands.run import run_measurement


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("evaluate", argv, doc=__doc__ or "", define=define_policy)
    return run_measurement(command)
