"""Plain GRPO against the complete recipe, at equal tokens in all: calibration and probe count.

    polaris ablate configs/ablations/headline.py --out workdirs/ablations/headline

The first of three regimes: a third of the problems is always solved, two fifths are never solved.

Expected before the runs: the recipe wins. What is always solved teaches plain GRPO nothing, and the
recipe trains on a rare success again. Six pairs of an earlier run with longer stages were known
when this table was written, and showed no lead (docs/notebook/ablations.md).
"""

import runpy
from pathlib import Path

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
TABLE = task["headline"]()
