r"""POLARIS on Qwen3-1.7B in two stages of 39,936 and 48,128 response tokens.

    polaris prepare   --config=configs/polaris_1p7b.py --workdir=/mnt/runs/1p7b \
        --config.data.problems=POLARIS-Project/Polaris-Dataset-53K
    polaris calibrate --config=configs/polaris_1p7b.py --workdir=/mnt/runs/1p7b \
        --config.calibrate.preset=full
    sbatch --nodes=4 launch/gpu_slurm.sbatch train \
        --config=configs/polaris_1p7b.py:h100:32 --workdir=/mnt/runs/1p7b \
        --config.evaluate.problems=aime24
    launch/tpu_pod.sh --name POD --zone ZONE -- train \
        --config=configs/polaris_1p7b.py:v5p:2x2x4 --workdir=/mnt/runs/1p7b \
        --config.evaluate.problems=aime24
    polaris train --config=configs/polaris_1p7b.py:tiny --workdir=runs/tiny

The recipe trains this model on all 53K problems: preset=full keeps those that it always solves,
which the default preset drops, and still measures pass rates and lengths.

Every 10 steps the run scores itself (avg@8) on the problems that evaluate.problems names; without
any it does not begin, unless evaluate.every_steps is 0.

What may stand after the colon: configs/_targets.py, which has a mesh for each pod that it names
(`polaris plan` shows how they fit), `base`, the base model's recommended evaluation, and `tiny`, a
smoke test for any CPU.

Numbers: the recipe's (the split of steps is ours). The released 1.7B scripts drop no easy
problems: stages[i].drop_above=1.0 reproduces them.
What is not set here is a default of `polaris_jax/config/sections.py`, which are the recipe's.
No AIME figure of this configuration is ours: it has not been run here.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

# The file beside this one, from whatever directory this one is loaded.
aim = runpy.run_path(str(Path(__file__).with_name("_targets.py")))["aim"]

# Source: Qwen3's model card, thinking mode; 38,912 tokens for competition problems.
BASE = {
    "n": 32,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "max_response_tokens": 38_912,
    "yarn": "off",
}


def get_config(target: str = "") -> ConfigDict:
    """Qwen3-1.7B, two stages. `target`: a pod or `tiny`, see configs/_targets.py."""
    config = default_config()
    config.model.path = "Qwen/Qwen3-1.7B"
    config.model.max_position_tokens = 49152
    config.rollout.max_logp_gap_mean = 0.05  # nats; bfloat16 alone gives 0.022 to 0.029
    config.stages = [
        stage(steps=400, max_response_tokens=39936, temperature=1.5, evaluate_temperature=1.2),
        stage(steps=300, max_response_tokens=48128, temperature=1.55, evaluate_temperature=1.4),
    ]
    config.evaluate.every_steps = 10
    config.evaluate.temperature = 1.2
    return aim(config, target, base=BASE).lock()
