"""Controls, from which nothing can be learned: rewards permuted, golds of other problems.

    polaris ablate configs/ablations/controls.py --out workdirs/ablations/controls

Expected before the runs: both controls stay at the base's score, which is the score at step -1.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))

TABLE = task["table"](
    Arm("both", task["BOTH"]),
    Arm("permuted", {**task["BOTH"], "reward.control": "permute"}),
    Arm("foreign-golds", {**task["BOTH"], "reward.control": "foreign_golds"}),
    evaluate=True,
    notes=task["decomposition"],
)
