"""One report.html of a run or of several, and every figure as PNG and CSV.

The page is one file that needs no network: figures with values at every step, the runs' sampled
responses, the fields in which their configs differ. Of one run it lies in the run's directory; of
several in --out, with the runs laid over one another.

Example:
  polaris report runs/4b
  polaris report runs/seed0 runs/seed1 runs/seed2 --names=0,1,2 --out=compared
  polaris report --config=configs/tiny_cpu.py --workdir=workdirs/tiny
"""

from __future__ import annotations

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.system.files import as_place
from polaris_jax.system.signals import begin_work


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "out", "", "directory of the report; empty: the run's own, of several .", flag_values=values
    )
    flags.DEFINE_list("names", [], "a name for each run, as in plain,rescue", flag_values=values)
    flags.DEFINE_integer(
        "groups",
        96,
        "most groups whose responses the page shows; 0: none",
        lower_bound=0,
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("report", argv, doc=__doc__ or "", define=_define, operand="DIRS")
    own = command.flags
    for given in command.places:
        if not as_place(given).is_dir():
            raise ConfigError(f"--workdir={given}: there is no such directory")
    if own["out"] and as_place(own["out"]).is_file():
        raise ConfigError(f"--out={own['out']}: a file is there; name a directory")
    from polaris_jax.report import make_report

    begin_work()
    out = own["out"] or None
    print(make_report(*command.places, names=own["names"], out=out, groups=own["groups"]))
    return 0
