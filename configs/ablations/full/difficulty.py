"""Data difficulty at full size: all of DeepScaleR, without what is always solved, the harder half.

    polaris ablate configs/ablations/full/difficulty.py --out /mnt/ablations/difficulty --list

The recipe's source trains DeepSeek-R1-Distill-Qwen-7B on 40K, 26K and 19K problems (its Figure 1),
and finds the middle set best. Not run here.
"""

from polaris_jax.ablate import Arm, Table


def curated(preset: str) -> Arm:
    """Training on what `polaris calibrate` keeps."""
    return Arm(preset, {"calibrate.preset": preset}, before=("prepare", "calibrate"))


TABLE = Table(
    config="configs/polaris_7b.py:h100:32",
    overrides={
        "data.problems": "agentica-org/DeepScaleR-Preview-Dataset",
        "evaluate.problems": "aime24",
    },
    arms=(curated("drop_perfect"), curated("full"), curated("aggressive")),
)
