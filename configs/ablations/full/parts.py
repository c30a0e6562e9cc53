"""Rescue, substitution, KL and entropy terms at full size.

    polaris ablate configs/ablations/full/parts.py --out /mnt/ablations/parts --list

The recipe's source uses rescue and substitution, drops the KL and the entropy term, and shows no
figure for either. Not run here.
"""

from polaris_jax.ablate import Arm, Table

TABLE = Table(
    config="configs/polaris_4b.py:h100:32",
    overrides={
        "data.problems": "POLARIS-Project/Polaris-Dataset-53K",
        "evaluate.problems": "aime24",
    },
    arms=(
        Arm("recipe"),
        Arm("no-rescue", {"batch.rescue": False}),
        Arm("no-substitution", {"batch.substitute": False}),
        Arm(
            "dynamic-sampling",
            {
                "batch.substitute": False,
                "batch.on_scarce": "resample",
                "batch.min_informative": 1.0,
            },
        ),
        Arm("kl-0.001", {"objective.kl_coef": 0.001}),
        Arm("entropy-0.001", {"objective.entropy_coef": 0.001}),
        Arm("no-clip-higher", {"objective.clip_high": 0.2}),
    ),
)
