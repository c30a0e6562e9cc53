"""The whole recipe in minutes on a laptop: a small Qwen3, arithmetic word problems, two stages.

    launch/tiny.sh

or by hand, each command in the same workdir, with $run for
`--config=configs/tiny_cpu.py --workdir=workdirs/tiny`:

    polaris prepare $run
    polaris calibrate $run
    polaris probe $run
    polaris evaluate $run --tag=before
    polaris train $run
    polaris evaluate $run --checkpoint=latest
    polaris report $run

The base model is made on the spot: a supervised warm start on worked solutions of which a share
carries slips, as found text does (`polaris_jax.demo.arithmetic`). RL has no supervised loss.
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage


def get_config() -> ConfigDict:
    """Two stages with more budget and more heat, on two CPU cores."""
    config = default_config()

    config.warmstart.steps = 600
    config.warmstart.batch_size = 32
    config.warmstart.slip_rate = 0.35
    config.data.arithmetic.train = 320
    config.data.arithmetic.held_out = 256
    config.data.max_prompt_tokens = 64
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.max_position_tokens = 192
    config.mesh.fsdp = 1

    config.rollout.prompts_per_step = 32
    config.rollout.responses_per_prompt = 8
    config.rollout.slots = 128
    config.rollout.page_size = 16
    config.rollout.decode_steps = 16
    config.rollout.prefill_chunk = 64
    config.rollout.max_logp_gap_mean = 1e-3

    config.calibrate.n = 8
    config.calibrate.temperature = 0.6
    config.calibrate.batch_prompts = 128
    config.probe.start = 0.2
    config.probe.stop = 1.4
    config.probe.step = 0.2
    config.probe.problems = 64
    config.probe.n = 8
    config.probe.max_candidates = 3

    config.stages = [
        stage(steps=24, max_response_tokens=56, temperature=1.0, temperature_rule="probe"),
        stage(
            steps=24, max_response_tokens=72, temperature=1.1, temperature_rule="match_diversity"
        ),
    ]
    config.batch.row_len = 256
    config.batch.rows = 16
    config.batch.share_prompts = "off"  # on, the last bits differ from the recorded runs
    config.optimizer.learning_rate = 2e-4
    config.checkpoint.every_steps = 10

    config.evaluate.n = 8
    config.evaluate.temperature = 0.6
    config.evaluate.max_response_tokens = 72
    config.evaluate.length_edges = (24, 40)
    config.rope.yarn.original_max_position_embeddings = 128
    return config.lock()
