"""The response budget: short, short and then long, long from the start, where length matters.

    polaris ablate configs/ablations/length.py --out workdirs/ablations/length

Problems have 3 to 8 steps. Half of the base's texts are careful, and the short budget cuts those of
more than about 4 steps; the hurried ones fit, and are mostly wrong.

Expected before the runs: the short budget loses on the long problems, and a long second stage wins
most of that back.
"""

import runpy
from pathlib import Path

from polaris_jax.ablate import Arm

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
SHORT, LONG = 40, 96
TO_8_STEPS = {
    "warmstart.slip_rate": 0.3,
    "data.arithmetic.min_steps": 3,
    "data.arithmetic.max_steps": 8,
    "warmstart.max_steps": 8,
    "data.max_prompt_tokens": 96,
    "evaluate.max_response_tokens": LONG,
}


def budgets(first: int, second: int) -> dict[str, int]:
    """The budgets of both stages."""
    return {"stages[0].max_response_tokens": first, "stages[1].max_response_tokens": second}


TABLE = task["table"](
    Arm("long", budgets(LONG, LONG)),
    Arm("short", budgets(SHORT, SHORT)),
    Arm("short-then-long", budgets(SHORT, LONG)),
    config="configs/demo.py:two_stages",
    overrides=task["BOTH"],
    of_base=TO_8_STEPS,
    evaluate=True,
)
