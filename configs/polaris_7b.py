r"""POLARIS-7B: DeepSeek-R1-Distill-Qwen-7B in three stages of 15,360 to 31,744 response tokens.

    polaris prepare   --config=configs/polaris_7b.py --workdir=/mnt/runs/7b \
        --config.data.problems=POLARIS-Project/Polaris-Dataset-53K
    polaris calibrate --config=configs/polaris_7b.py --workdir=/mnt/runs/7b \
        --config.calibrate.preset=full
    sbatch --nodes=4 launch/gpu_slurm.sbatch train \
        --config=configs/polaris_7b.py:h100:32 --workdir=/mnt/runs/7b \
        --config.evaluate.problems=aime24
    launch/tpu_pod.sh --name POD --zone ZONE -- train \
        --config=configs/polaris_7b.py:v5p:2x2x4 --workdir=/mnt/runs/7b \
        --config.evaluate.problems=aime24
    polaris train --config=configs/polaris_7b.py:tiny --workdir=runs/tiny

The recipe trains this model on all 53K problems: preset=full keeps those that it always solves,
which the default preset drops, and still measures pass rates and lengths.

Every 10 steps the run scores itself (avg@8) on the problems that evaluate.problems names; without
any it does not begin, unless evaluate.every_steps is 0.

What may stand after the colon: configs/_targets.py, which has a mesh for each pod that it names
(`polaris plan` shows how they fit), `base`, the base model's recommended evaluation, and `tiny`, a
smoke test for any CPU.

Numbers: the recipe's (the split of steps is ours). The released 7B scripts drop no easy problems:
stages[i].drop_above=1.0 reproduces them.
What is not set here is a default of `polaris_jax/config/sections.py`, which are the recipe's.
No AIME figure of this configuration is ours: it has not been run here.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

# The file beside this one, from whatever directory this one is loaded.
aim = runpy.run_path(str(Path(__file__).with_name("_targets.py")))["aim"]

# Source: DeepSeek-R1's model card, which gives 32,768 tokens; the prompt's 1,024 are taken off.
BASE = {
    "n": 32,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 0,
    "max_response_tokens": 31_744,
    "yarn": "off",
}


def get_config(target: str = "") -> ConfigDict:
    """R1-Distill-Qwen-7B, three stages. `target`: a pod or `tiny`, see configs/_targets.py."""
    config = default_config()
    config.model.path = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    config.model.max_position_tokens = 32768
    config.rollout.max_logp_gap_mean = 0.05  # nats; bfloat16 alone gives 0.022 to 0.029
    config.stages = [
        stage(steps=300, max_response_tokens=15360, temperature=0.7, evaluate_temperature=0.6),
        stage(steps=200, max_response_tokens=23552, temperature=1.0, evaluate_temperature=0.8),
        stage(steps=200, max_response_tokens=31744, temperature=1.1, evaluate_temperature=0.8),
    ]
    config.evaluate.every_steps = 10
    config.evaluate.temperature = 0.6
    return aim(config, target, base=BASE).lock()
