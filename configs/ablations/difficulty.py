"""Curation: all problems, without those always solved, without the easier half, those alone.

    polaris ablate configs/ablations/difficulty.py --out workdirs/ablations/difficulty

The base always solves about a third of the problems, and never solves two fifths.

Expected before the runs: dropping what is always solved gains, since it teaches nothing; dropping
the easier half gains as much or less; what is always solved teaches nothing when trained on alone.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))


def curated(preset: str) -> Arm:
    """Training on what `polaris calibrate` keeps."""
    return Arm(preset, {**task["BOTH"], "calibrate.preset": preset}, before=("calibrate",))


TABLE = task["table"](
    curated("full"),
    curated("drop_perfect"),
    curated("aggressive"),
    Arm(
        "too-easy",
        {**task["BOTH"], "calibrate.preset": "range", "calibrate.min_rate": 1.0},
        before=("calibrate",),
    ),
)
