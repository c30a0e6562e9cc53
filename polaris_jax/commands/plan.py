"""Does a config fit a pod, and how long would a step take? Nothing of the pod need be present.

Compiles update, prefill, decode and weight sync ahead of time for the topology's chips and adds up
what is resident in each phase. Topologies: v4|v5p|tpu7x:AxBxC, v5e|v6e:AxB, h100|h200:N, cpu:N.
Exit code 1 when it does not fit, with what to change. Seconds are estimates. TPUs need
`pip install 'polaris_jax[tpu]'`, GPUs `'polaris_jax[cuda12]'`.

Example:
  polaris plan --config=configs/polaris_4b.py --topology=v5p:2x2x4 --config.batch.rows=16
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from absl import flags

from polaris_jax.commands.flags import parse
from polaris_jax.config import ConfigError
from polaris_jax.system.files import file_to_write, write_bytes
from polaris_jax.system.signals import begin_work


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology", "", "the pod, such as v5p:2x2x4, v6e:8x8 or h100:8", flag_values=values
    )
    flags.DEFINE_integer(
        "stage",
        None,
        "stage, from 0; default: the one with the longest responses",
        flag_values=values,
    )
    flags.DEFINE_float(
        "mean_response_tokens",
        0.0,
        "mean length for the estimates; 0: 20,000 or half of the budget",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "pool", "freed", ["freed", "kept"], "the KV pool during the update", flag_values=values
    )
    flags.DEFINE_float(
        "hbm_gib", 0.0, "memory of a device; 0: the chip's", lower_bound=0.0, flag_values=values
    )
    flags.DEFINE_float(
        "mfu",
        0.4,
        "assumed model FLOPs utilisation of the update",
        lower_bound=0.01,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "bandwidth",
        0.6,
        "assumed share of the memory bandwidth in decode",
        lower_bound=0.01,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_bool("search", False, "try meshes and row counts", flag_values=values)
    flags.DEFINE_string("out", "plan.json", "where the plan is written", flag_values=values)


def main(argv: list[str]) -> int:
    """Runs the command; its exit code."""
    command = parse("plan", argv, doc=__doc__ or "", define=_define, takes_workdir=False)
    own = command.flags
    if not own["topology"]:
        raise ConfigError("--topology: needed; name one like v5p:2x2x4, v6e:8x8 or h100:8")
    from polaris_jax.plan.topologies import parse_topology

    topology, out = parse_topology(own["topology"]), file_to_write(own["out"], flag="--out")
    _before_jax(topology)
    from polaris_jax.plan.command import PlanOptions, plan
    from polaris_jax.plan.fit import Residency
    from polaris_jax.plan.roofline import Efficiency
    from polaris_jax.plan.table import plan_text

    options = PlanOptions(
        stage=own["stage"],
        mean_response_tokens=own["mean_response_tokens"],
        hbm_gib=own["hbm_gib"],
        residency=Residency(own["pool"], command.config.rollout.trainer_state),
        efficiency=Efficiency(mfu=own["mfu"], bandwidth=own["bandwidth"]),
        search=own["search"],
    )
    begin_work()
    found = plan(command.config, topology, options, say=_say)
    write_bytes(out, (json.dumps(found, indent=1) + "\n").encode())
    if "programs" in found:
        print(plan_text(found))
    for place, other in enumerate(found.get("settings", ()), 1):
        print(_setting_line(place, other))
    if not found["fits"]:
        advice = f"nearest that fits: {found['nearest']}" if found.get("nearest") else ""
        print("\n".join(["", *found["reasons"], advice]).rstrip(), file=sys.stderr)
        return 1
    return 0


def _setting_line(place: int, found: dict[str, Any]) -> str:
    estimate = found["estimate"]
    return (
        f"{place:>3}. about {estimate['step_s']:,.0f} s a step, {found['fit']['full_rows']} full "
        f"rows: {found['flags']}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _before_jax(topology: Any) -> None:
    """What jax and libtpu read when they are first used."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    for name in ("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    flag = "--xla_force_host_platform_device_count"
    if topology.platform == "cpu" and flag not in os.environ.get("XLA_FLAGS", ""):
        present = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{present} {flag}={topology.num_chips}".strip()
