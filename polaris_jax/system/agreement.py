"""The command and config that all processes of a run must share, compared before jax compiles.

A process with another mesh or another checkpoint cadence would wait in a collective that the others
never reach. A process with other problems or weights would silently change the training. So each
fact is compared as soon as it is known: the command line here, problems in `assemble`, which reads
them, and weights in `models.weights.sources`, which finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jaxlib

import polaris_jax
from polaris_jax.config import RunConfig, config_fields
from polaris_jax.system import processes

# The one setting that may differ between hosts: the grader processes, which depend on the cores.
# All others are compared, including those that a resume may change, because they lead to different
# programs or collectives.
OF_A_HOST = ("reward.workers",)


def run_facts(config: RunConfig, command: Mapping[str, Any]) -> dict[str, Any]:
    """Facts by name in which the processes of one run must agree when they start.

    Args:
        config: config of this process.
        command: name, workdir and own flags of the command, JSON-able.
    """
    fields = {name: v for name, v in config_fields(config).items() if name not in OF_A_HOST}
    return {
        "polaris_jax": polaris_jax.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "command": dict(command),
        "config": fields,
    }


def agree_on_run(config: RunConfig, command: Mapping[str, Any]) -> None:
    """Checks that all processes run one command with one config and equal versions.

    Raises:
        ConfigError: processes differ. The text names the first fact and field that differ, the
            values, and the processes that hold each value.
    """
    processes.agree(run_facts(config, command))
