"""The response budget at full size: 24K, 24K and then 40K, 40K from the start.

    polaris ablate configs/ablations/full/length.py --out /mnt/ablations/length --list

The recipe's source finds that Qwen3-4B loses at 24K, for good, and gains steadily at 40K. Scores
are those of a budget of 40K. Not run here.
"""

from polaris_jax.ablate import Arm, Table

SHORT, LONG = 24_576, 39_936


def budgets(first: int, second: int) -> dict[str, int]:
    """The budgets of the first two stages; the third keeps the second's."""
    return {
        "stages[0].max_response_tokens": first,
        "stages[1].max_response_tokens": second,
        "stages[2].max_response_tokens": second,
    }


TABLE = Table(
    config="configs/polaris_4b.py:h100:32",
    overrides={
        "data.problems": "POLARIS-Project/Polaris-Dataset-53K",
        "evaluate.problems": "aime24",
        "evaluate.max_response_tokens": LONG,
    },
    arms=(
        Arm("long", budgets(LONG, LONG)),
        Arm("short", budgets(SHORT, SHORT)),
        Arm("short-then-long", budgets(SHORT, LONG)),
    ),
)
