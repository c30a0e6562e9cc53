r"""POLARIS on Qwen3-1.7B in two stages of 39,936 and 48,128 response tokens.

    polaris prepare   --config=configs/polaris_1p7b.py --workdir=runs/1p7b \
        --config.data.problems=POLARIS-Project/Polaris-Dataset-53K
    polaris calibrate --config=configs/polaris_1p7b.py --workdir=runs/1p7b
    launch/gpu_slurm.sbatch --config=configs/polaris_1p7b.py --workdir=runs/1p7b

Numbers: the recipe's (the split of steps is ours). The released 1.7B scripts drop no easy
problems: stages[i].drop_above=1.0 reproduces them.
What is not set here is a default of `polaris_jax/config_sections.py`, which are the recipe's.
No AIME figure of this configuration is ours: it has not been run here.
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage


def get_config() -> ConfigDict:
    """Qwen3-1.7B, two stages."""
    config = default_config()
    config.model.path = "Qwen/Qwen3-1.7B"
    config.model.max_position_tokens = 49152
    config.stages = [
        stage(steps=400, max_response_tokens=39936, temperature=1.5),
        stage(steps=300, max_response_tokens=48128, temperature=1.55),
    ]
    config.evaluate.every_steps = 10
    config.evaluate.temperature = 1.2
    return config.lock()
