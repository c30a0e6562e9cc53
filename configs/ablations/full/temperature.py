"""The initial temperature at full size: 0.6, 1.0, the recipe's 1.4, and 1.5.

    polaris ablate configs/ablations/full/temperature.py --out /mnt/ablations/temperature --list

The recipe's source compares initial temperatures of Qwen3-4B (its Figure 5): 0.6 and 1.0 fall
behind 1.4. One temperature holds for all stages here. Not run here.
"""

from polaris_jax.ablate import Arm, Table

STAGES = 3


def at(temperature: float) -> Arm:
    """One temperature in all stages."""
    fields = {f"stages[{index}].temperature": temperature for index in range(STAGES)}
    return Arm(f"T{temperature:g}", fields)


TABLE = Table(
    config="configs/polaris_4b.py:h100:32",
    overrides={
        "data.problems": "POLARIS-Project/Polaris-Dataset-53K",
        "evaluate.problems": "aime24",
    },
    arms=(at(1.4), at(0.6), at(1.0), at(1.5)),
)
