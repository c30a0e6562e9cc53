"""Plain GRPO against the complete recipe, at equal tokens in all: calibration and probe count.

    polaris ablate configs/ablations/headline.py --out workdirs/ablations/headline

Expected before the runs: the recipe wins. A third of the problems is always solved and teaches
plain GRPO nothing; two fifths are never solved, and the recipe trains on a rare success again.

Added after the first two arms had run: on the tuning base plain GRPO does as well at the lowest
rate of the grid as at the recipe's, so `plain-same-rate` has the recipe's rate.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
PLAIN = {**task["PLAIN"], "stages[0].steps": 1000}
TABLE = task["table"](
    Arm("plain", PLAIN, tokens_of="polaris"),
    Arm("polaris", config="configs/demo.py:recipe", before=("calibrate", "probe")),
    Arm("plain-same-rate", PLAIN, tokens_of="polaris", tuned_as="polaris"),
    tuning=task["TUNING"],
    evaluate=True,
    notes=task["decomposition"],
)
