"""Dropping problems that the first stage has learned, on and off.

    polaris ablate configs/ablations/easy_drop.py --out workdirs/ablations/easy_drop

Expected before the runs: a gain, as the base masters its easy problems, which then teach nothing.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))

TABLE = task["table"](
    Arm("kept", {"stages[0].drop_above": 1.0}),
    Arm("dropped", {"stages[0].drop_above": 0.9}),
    config="configs/demo.py:two_stages",
    overrides=task["BOTH"],
)
