r"""POLARIS-4B: Qwen3-4B in three stages of 39,936, 48,128 and 52,224 response tokens.

    polaris prepare   --config=configs/polaris_4b.py --workdir=runs/4b \
        --config.data.problems=POLARIS-Project/Polaris-Dataset-53K
    polaris calibrate --config=configs/polaris_4b.py --workdir=runs/4b
    launch/gpu_slurm.sbatch --config=configs/polaris_4b.py --workdir=runs/4b

Numbers: the recipe's (about 700 steps over the three stages; the share of each is ours). Stages 2
and 3 pass the checkpoint's own 40,960 positions without YaRN: warned once.
What is not set here is a default of `polaris_jax/config_sections.py`, which are the recipe's.
No AIME figure of this configuration is ours: it has not been run here.
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage


def get_config() -> ConfigDict:
    """Qwen3-4B, three stages."""
    config = default_config()
    config.model.path = "Qwen/Qwen3-4B"
    config.model.max_position_tokens = 53248
    config.stages = [
        stage(steps=300, max_response_tokens=39936, temperature=1.4),
        stage(steps=200, max_response_tokens=48128, temperature=1.45),
        stage(steps=200, max_response_tokens=52224, temperature=1.5),
    ]
    config.evaluate.every_steps = 10
    config.evaluate.temperature = 1.2
    return config.lock()
