"""The sampling temperature: cold, the probe's, and hot.

    polaris ablate configs/ablations/temperature.py --out workdirs/ablations/temperature

Expected before the runs: the probe's temperature is at least as good as 1.0; 0.4 explores too
little, and some of its runs collapse; 1.6 lies in the collapse zone and loses.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))


def at(temperature: float) -> dict[str, object]:
    """Both parts of the recipe at a fixed temperature."""
    return {**task["BOTH"], "stages[0].temperature": temperature}


TABLE = task["table"](
    Arm("1.0", at(1.0)),
    Arm("0.4", at(0.4)),
    Arm("probed", {**task["BOTH"], "stages[0].temperature_rule": "probe"}, before=("probe",)),
    Arm("1.3", at(1.3)),
    Arm("1.6", at(1.6)),
)
