"""YaRN factors by length, inside and beyond the trained length; nothing is trained by RL.

    polaris ablate configs/ablations/yarn.py --out workdirs/ablations/yarn

The bases are warm-started on right, careful texts of 1 to 5 steps, so that what fails beyond is the
length. Each arm is a number of steps and a factor, compared with the same number without YaRN.

Expected before the runs: beyond the trained length a factor that covers it gains; inside, every
factor loses, the larger the more; so the curves cross near the trained length.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
TRAINED_TOKENS = 96  # longest prompt and text of the warm start, rounded up
FACTORS = (1.0, 1.25, 1.5, 2.0)


def arm(steps: int, factor: float) -> Arm:
    """Problems with that number of steps; YaRN scales positions by the factor."""
    fields = {
        "data.arithmetic.min_steps": steps,
        "data.arithmetic.max_steps": steps,
        "evaluate.yarn": "on" if factor > 1 else "off",
        "rope.yarn.factor": factor,
    }
    against = f"{steps}-steps-off" if factor > 1 else None
    return Arm(f"{steps}-steps-{factor if factor > 1 else 'off'}", fields, against=against)


TABLE = task["table"](
    *(arm(steps, factor) for steps in (3, 5, 6, 7, 8) for factor in FACTORS),
    of_base={
        "warmstart.slip_rate": 0.0,
        "warmstart.habits": 0.0,
        "warmstart.steps": 1200,
        "data.max_prompt_tokens": 96,
        "evaluate.max_response_tokens": 96,
        "rope.yarn.original_max_position_embeddings": TRAINED_TOKENS,
    },
    bases=task["BASES"],
    train=False,
)
