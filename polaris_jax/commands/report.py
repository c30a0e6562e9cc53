"""Every figure of a run as PNG, and one self-contained report.html.

Example:
  polaris report --config=configs/tiny_cpu.py --workdir=workdirs/demo
"""

from __future__ import annotations

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.system.signals import begin_work


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("report", argv, doc=__doc__ or "")
    if not command.workdir.is_dir():
        raise ConfigError(f"--workdir={command.workdir}: there is no such directory")
    from polaris_jax.report import make_report

    begin_work()
    print(make_report(command.workdir))
    return 0
