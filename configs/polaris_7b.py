r"""POLARIS-7B: DeepSeek-R1-Distill-Qwen-7B in three stages of 15,360 to 31,744 response tokens.

    polaris prepare   --config=configs/polaris_7b.py --workdir=runs/7b \
        --config.data.problems=POLARIS-Project/Polaris-Dataset-53K
    polaris calibrate --config=configs/polaris_7b.py --workdir=runs/7b
    launch/gpu_slurm.sbatch --config=configs/polaris_7b.py --workdir=runs/7b

Numbers: the recipe's (the split of steps is ours). The released 7B scripts drop no easy problems:
stages[i].drop_above=1.0 reproduces them.
What is not set here is a default of `polaris_jax/config_sections.py`, which are the recipe's.
No AIME figure of this configuration is ours: it has not been run here.
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage


def get_config() -> ConfigDict:
    """R1-Distill-Qwen-7B, three stages."""
    config = default_config()
    config.model.path = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    config.model.max_position_tokens = 32768
    config.stages = [
        stage(steps=300, max_response_tokens=15360, temperature=0.7),
        stage(steps=200, max_response_tokens=23552, temperature=1.0),
        stage(steps=200, max_response_tokens=31744, temperature=1.1),
    ]
    config.evaluate.every_steps = 10
    config.evaluate.temperature = 0.6
    return config.lock()
