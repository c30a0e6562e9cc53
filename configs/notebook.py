"""What the notebooks train: a model of 0.1M parameters on one-step word problems, in seconds.

    polaris train --config=configs/notebook.py --workdir=workdirs/notebook

The base is made on the spot by a supervised warm start on worked solutions, of whose results a
share carries slips. So it answers in the right form, and is right now and then: what reinforcement
learning needs.
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

FAMILIES = ("number", "trade", "box")


def get_config() -> ConfigDict:
    """One stage of 16 steps, on two CPU cores."""
    config = default_config()

    config.warmstart.steps = 500
    config.warmstart.batch_size = 32
    config.warmstart.learning_rate = 1e-2
    config.warmstart.slip_rate = 0.3
    config.warmstart.max_steps = 1
    config.warmstart.families = FAMILIES
    config.warmstart.hidden_size = 64
    config.warmstart.intermediate_size = 128
    config.warmstart.num_layers = 2
    config.warmstart.num_heads = 2
    config.warmstart.num_kv_heads = 1
    config.warmstart.max_position_tokens = 256
    config.data.arithmetic.train = 96
    config.data.arithmetic.held_out = 48
    config.data.arithmetic.max_steps = 1
    config.data.arithmetic.families = FAMILIES
    config.data.max_prompt_tokens = 64
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.max_position_tokens = 128
    config.mesh.fsdp = 1

    config.rollout.prompts_per_step = 16
    config.rollout.responses_per_prompt = 8
    config.rollout.slots = 64
    config.rollout.page_size = 16
    config.rollout.decode_steps = 16
    config.rollout.prefill_chunk = 64
    config.rollout.max_logp_gap_mean = 1e-3

    config.calibrate.n = 8
    config.calibrate.temperature = 1.0
    config.probe.start, config.probe.stop, config.probe.step = 0.2, 1.8, 0.2
    config.probe.problems = 32
    config.probe.n = 8
    config.probe.refine = 0

    config.stages = [stage(steps=16, max_response_tokens=32, temperature=1.0)]
    config.batch.row_len = 256
    config.batch.rows = 8
    config.optimizer.learning_rate = 1e-3
    config.reward.workers = 1
    config.checkpoint.every_steps = 8
    config.metrics.tensorboard = False

    config.evaluate.every_steps = 4
    config.evaluate.n = 4
    config.evaluate.temperature = 0.6
    config.evaluate.max_response_tokens = 32
    config.evaluate.length_edges = (12, 20)
    config.rope.yarn.original_max_position_embeddings = 128
    return config.lock()
