"""The temperature of a second stage: as before, regaining the diversity, or hot.

    polaris ablate configs/ablations/reset.py --out workdirs/ablations/reset

Expected before the runs: regaining the diversity gains a little in the second stage, since the
first lowers it; a hot second stage loses.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
LONG = {"stages[0].steps": 120, "stages[1].steps": 120}

TABLE = task["table"](
    Arm("fixed"),
    Arm("match-diversity", {"stages[1].temperature_rule": "match_diversity"}),
    Arm("hot", {"stages[1].temperature": 1.4}),
    config="configs/demo.py:two_stages",
    overrides={**task["BOTH"], **LONG},
)
