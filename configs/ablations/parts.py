"""Rescue, substitution and what could stand in their place, each at its best learning rate.

    polaris ablate configs/ablations/parts.py --out workdirs/ablations/parts

Expected before the runs: rescue gains, since two fifths of the problems are never solved at first
and every problem returns after sixteen steps; substitution gains little or nothing, since copies
bring no new problem; dynamic sampling pays for its informative groups with two to three times the
tokens a step, and has as many tokens in all as plain GRPO.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
DYNAMIC = {
    **task["PLAIN"],
    "batch.on_scarce": "resample",
    "batch.min_informative": 1.0,
    "batch.max_resample": 4,
    "stages[0].steps": 400,  # its tokens end it
}

TABLE = task["table"](
    task["plain"](),
    Arm("substitution", task["SUBSTITUTION"]),
    Arm("rescue", task["RESCUE"]),
    Arm("both", task["BOTH"]),
    Arm("one-copy", {**task["BOTH"], "batch.max_copies": 1}),
    Arm("dynamic", DYNAMIC, tokens_of="plain"),
    Arm("weighting", {**task["PLAIN"], "data.weighting": "pass_rate"}),
    tuning=task["TUNING"],
    evaluate=True,
    notes=task["decomposition"],
)
