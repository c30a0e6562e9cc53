r"""POLARIS-4B: Qwen3-4B in three stages of 39,936, 48,128 and 52,224 response tokens.

    polaris prepare   --config=configs/polaris_4b.py --workdir=/mnt/runs/4b \
        --config.data.problems=POLARIS-Project/Polaris-Dataset-53K
    polaris calibrate --config=configs/polaris_4b.py --workdir=/mnt/runs/4b
    sbatch --nodes=4 launch/gpu_slurm.sbatch train \
        --config=configs/polaris_4b.py:h100:32 --workdir=/mnt/runs/4b \
        --config.evaluate.problems=aime24
    launch/tpu_pod.sh --name POD --zone ZONE -- train \
        --config=configs/polaris_4b.py:v5p:2x2x4 --workdir=/mnt/runs/4b \
        --config.evaluate.problems=aime24
    polaris train --config=configs/polaris_4b.py:tiny --workdir=runs/tiny
    polaris evaluate --config=configs/polaris_4b.py:final:aime24 --workdir=/mnt/runs/4b \
        --checkpoint=latest --tag=aime24 --config.evaluate.problems=aime24

and the last likewise with aime25, minerva, olympiad and amc23. Base and trained model, pooled and
compared:

    polaris evaluate --config=configs/polaris_4b.py:final --workdir=/mnt/runs/4b \
        --checkpoint=base,latest --config.evaluate.problems=aime24+aime25

The cheapest check of the recipe trains nothing: the authors' checkpoint beside their own scores,
60 problems x 4 responses with YaRN and without (`released` alone: x 32):

    polaris evaluate --config=configs/polaris_4b.py:released:short --workdir=runs/released

Every 10 steps the run scores itself (avg@8) on the problems that evaluate.problems names; without
any it does not begin, unless evaluate.every_steps is 0.

What may stand after the colon: configs/_targets.py, which has a mesh for each pod that it names
(`polaris plan` shows how they fit), `final`, the recipe's final evaluation (avg@32; final:NAME has
the benchmark's own k), `base`, the base model's recommended settings, `released`, and `tiny`, a
smoke test for any CPU.

Numbers: the recipe's (about 700 steps over the three stages; the share of each is ours). Stages 2
and 3 pass the checkpoint's own 40,960 positions without YaRN: warned once.
What is not set here is a default of `polaris_jax/config/sections.py`, which are the recipe's.
No AIME figure of this configuration is ours: it has not been run here.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

# The file beside this one, from whatever directory this one is loaded.
aim = runpy.run_path(str(Path(__file__).with_name("_targets.py")))["aim"]

FINAL = {
    "n": 32,
    "temperature": 1.4,
    "top_p": 1.0,
    "top_k": 20,
    "max_response_tokens": 90_000,
    "yarn": "on",  # rope.yarn: factor 1.5 on 32,768
}

# Source: Qwen3's model card, thinking mode; 38,912 tokens for competition problems.
BASE = {
    "n": 32,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "max_response_tokens": 38_912,
    "yarn": "off",
}
RELEASED = "POLARIS-Project/Polaris-4B-Preview"


def get_config(target: str = "") -> ConfigDict:
    """Qwen3-4B, three stages. `target`: a pod or an evaluation, see configs/_targets.py."""
    config = default_config()
    config.model.path = "Qwen/Qwen3-4B"
    config.model.max_position_tokens = 53248
    config.rollout.max_logp_gap_mean = 0.05  # nats; bfloat16 alone gives 0.022 to 0.029
    config.stages = [
        stage(steps=300, max_response_tokens=39936, temperature=1.4, evaluate_temperature=1.2),
        stage(steps=200, max_response_tokens=48128, temperature=1.45, evaluate_temperature=1.4),
        stage(steps=200, max_response_tokens=52224, temperature=1.5, evaluate_temperature=1.4),
    ]
    config.evaluate.every_steps = 10
    config.evaluate.temperature = 1.2
    return aim(config, target, final=FINAL, base=BASE, released=RELEASED).lock()
