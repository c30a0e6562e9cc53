"""Plain GRPO against the complete recipe, at equal tokens in all: calibration and probe count.

    polaris ablate configs/ablations/headline.py --out workdirs/ablations/headline

Expected before the runs: the recipe wins. A third of the problems is always solved and teaches
plain GRPO nothing; two fifths are never solved, and the recipe trains on a rare success again.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
TABLE = task["table"](
    Arm("plain", {**task["PLAIN"], "stages[0].steps": 1000}, tokens_of="polaris"),
    Arm("polaris", config="configs/demo.py:recipe", before=("calibrate", "probe")),
    tuning=task["TUNING"],
    evaluate=True,
    notes=task["decomposition"],
)
