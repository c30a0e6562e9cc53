"""Every default, as `polaris_jax.config` declares it; the other files here start from it.

    polaris train --config=configs/base.py --workdir=runs/mine \
        --config.model.path=Qwen/Qwen3-0.6B --config.data.problems=problems.jsonl
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config


def get_config() -> ConfigDict:
    """The defaults: the recipe's numbers, one stage, no weights and no data named."""
    return default_config()
