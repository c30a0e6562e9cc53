"""Rescue on sets of growing difficulty.

    polaris ablate configs/ablations/rescue_by_difficulty.py --out workdirs/ablations/rescue

Expected before the runs: on one step no group needs a rescue, and the difference is about 0; it
grows with the number of steps, as fewer problems are solved.

A curve's first point is the base on problems of one to five steps. Of one step there are 96
held-out problems in place of 128: no more than 126 exist.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
LENGTHS = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4-5": (4, 5)}


def steps(low: int, high: int) -> dict[str, int]:
    """Problems of `low` to `high` steps; there are 126 of one step that no run trains on."""
    fields = {"data.arithmetic.min_steps": low, "data.arithmetic.max_steps": high}
    return fields | ({"data.arithmetic.held_out": 96} if high == 1 else {})


TABLE = task["table"](
    *(
        Arm(
            f"{name}-steps-{kind}",
            {**task[kind.upper()], **steps(*length)},
            against=None if kind == "plain" else f"{name}-steps-plain",
        )
        for name, length in LENGTHS.items()
        for kind in ("plain", "rescue")
    ),
)
