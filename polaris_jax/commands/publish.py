"""A model card beside an export: README.md as the Hugging Face Hub reads it.

DIR is the workdir of a run. The card says what its files say: base model, data and how many of the
problems were kept, stages and settings, scores with intervals, commit, hardware, licences. What
they do not say stands in the card as `unknown: fill in`, and is printed. Nothing is uploaded or
downloaded. A card that this command did not write, or that was edited since, is not overwritten.

Example:
  polaris convert --from runs/4b/checkpoints --to runs/4b/export
  polaris publish runs/4b
"""

from __future__ import annotations

import re

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.run.record import RECORD
from polaris_jax.system.files import as_place
from polaris_jax.system.foreign import printable


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "export", "", "Hugging Face directory that gets the card; DIR/export", flag_values=values
    )
    flags.DEFINE_string(
        "license", "", "licence of the weights, such as apache-2.0; the base's", flag_values=values
    )
    flags.DEFINE_bool(
        "overwrite", False, "replace a card of another origin, or an edited one", flag_values=values
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse(
        "publish", argv, doc=__doc__ or "", define=_define, takes_config=False, operand="DIR"
    )
    own, workdir = command.flags, command.workdir
    if not (workdir / RECORD).exists():
        there = "holds no run (no run.json)" if workdir.is_dir() else "there is no such directory"
        raise ConfigError(f"{workdir}: {there}; name the --workdir of `polaris train`")
    if not re.fullmatch(r"[A-Za-z0-9.+-]*", own["license"]):
        raise ConfigError(
            f"--license={own['license']}: a licence's identifier has letters, digits, dots and "
            "dashes, like --license=apache-2.0"
        )
    from polaris_jax.publish import publish, read_facts

    facts = read_facts(workdir)
    export = as_place(own["export"]) if own["export"] else workdir / "export"
    path = publish(facts, export, license=own["license"], overwrite=own["overwrite"])
    print(printable(f"wrote {path}"))
    for text in facts.unknown:
        print(printable(f"not known: {text}"))
    return 0
