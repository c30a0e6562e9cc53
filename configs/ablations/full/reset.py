"""The temperature of later stages at full size: the first one's, the released ones, by measurement.

    polaris ablate configs/ablations/full/reset.py --out /mnt/ablations/reset --list

The recipe's source compares temperatures that rise from stage to stage with one that stays (the
figure after its Table of temperatures). Not run here.
"""

from polaris_jax.ablate import Arm, Table

TABLE = Table(
    config="configs/polaris_4b.py:h100:32",
    overrides={
        "data.problems": "POLARIS-Project/Polaris-Dataset-53K",
        "evaluate.problems": "aime24",
    },
    arms=(
        Arm("fixed", {"stages[1].temperature": 1.4, "stages[2].temperature": 1.4}),
        Arm("released"),
        Arm("match-diversity", config="configs/polaris_4b.py:match_diversity:h100:32"),
    ),
)
