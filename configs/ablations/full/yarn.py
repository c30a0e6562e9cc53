"""YaRN at full size: the trained model with and without it, at the attention factor of both kinds.

    polaris ablate configs/ablations/full/yarn.py --out /mnt/ablations/yarn --list

Nothing is trained: `evaluate` scores the authors' released checkpoint. The recipe's source reports
26% without and over 50% with YaRN on responses beyond 32K. Not run here.
"""

from polaris_jax.ablate import Arm, Table

TABLE = Table(
    config="configs/polaris_4b.py:final:aime25",
    overrides={
        "model.path": "POLARIS-Project/Polaris-4B-Preview",
        "evaluate.problems": "aime25",
        "model.max_position_tokens": 0,  # without YaRN, 90,000 tokens pass the trained positions
    },
    arms=(
        Arm("off", {"evaluate.yarn": "off"}),
        Arm("on"),
        Arm("attention-factor-1.0405", {"rope.yarn.attention_factor": 1.0405}),
    ),
    train=False,
)
