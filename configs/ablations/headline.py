"""Plain GRPO against the complete recipe, at equal tokens in all: calibration and probe count.

    polaris ablate configs/ablations/headline.py --out workdirs/ablations/headline

Expected before the runs: the recipe wins, by its rescue.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm, Table

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
RECIPE = {
    **task["BOTH"],
    "stages[0].steps": 60,
    "stages[0].temperature_rule": "probe",
    "stages[1].steps": 60,
    "stages[1].temperature_rule": "match_diversity",
}

TABLE = Table(
    config=task["CONFIG"],
    overrides=task["OVERRIDES"],
    bases=task["BASES"],
    seeds=task["SEEDS"],
    tuning=task["TUNING"],
    arms=(
        Arm("plain", {**task["PLAIN"], "stages[0].steps": 400}, tokens_of="polaris"),
        Arm(
            "polaris",
            RECIPE,
            config="configs/demo.py:two_stages",
            before=("calibrate", "probe"),
        ),
    ),
    evaluate=True,
    notes=task["decomposition"],
)
