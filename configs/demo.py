"""The demo: plain GRPO and the recipe from one small base model, on problems that are hard for it.

    make demo

or by hand, in two workdirs:

    polaris train --config=configs/demo.py:plain --workdir=workdirs/demo/plain
    polaris train --config=configs/demo.py:recipe --workdir=workdirs/demo/polaris

The base is a small Qwen3 made on the spot by a supervised warm start on worked solutions. Three
facts in ten are wrong in most of them (7 + 5 = 14), each in a way of its own, and a few are written
in a hurry (`polaris_jax.demo.arithmetic`). So the base always solves about a third of the problems
and never solves about two fifths, in 8 attempts. What it has to learn is many small things: a wrong
fact is written right once in ten times. RL has no supervised loss.

`configs/ablations/` compares the recipe's parts on the same task.
"""

from ml_collections import ConfigDict

from polaris_jax.config import default_config, stage

TARGETS = ("", "plain", "two_stages", "recipe")


def get_config(target: str = "") -> ConfigDict:
    """One stage on two CPU cores.

    `target`: empty; plain, GRPO without the recipe's parts; two_stages, for a change between
    stages; or recipe, two stages at measured temperatures.
    """
    if target not in TARGETS:
        raise ValueError(
            f"--config=configs/demo.py:{target}: take {', '.join(TARGETS[1:])}, or nothing"
        )
    config = default_config()

    config.warmstart.steps = 800
    config.warmstart.batch_size = 32
    config.warmstart.slip_rate = 0.1
    config.warmstart.habits = 0.3
    config.warmstart.hidden_size = 64
    config.warmstart.intermediate_size = 192
    config.warmstart.num_layers = 3
    config.data.arithmetic.train = 192
    config.data.arithmetic.held_out = 128
    config.data.max_prompt_tokens = 64
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.max_position_tokens = 192
    config.mesh.fsdp = 1

    config.rollout.prompts_per_step = 12
    config.rollout.responses_per_prompt = 4
    config.rollout.slots = 64
    config.rollout.page_size = 16
    config.rollout.decode_steps = 16
    config.rollout.prefill_chunk = 64
    config.rollout.max_logp_gap_mean = 1e-3

    config.calibrate.n = 8
    config.probe.start, config.probe.stop, config.probe.step = 0.6, 1.4, 0.2
    config.probe.problems = 32
    config.probe.n = 4  # 5% of the demo's tokens; zones of a real run need 2,048 samples
    config.probe.refine = 0  # so few samples cannot place a border any closer

    count = 2 if target in ("two_stages", "recipe") else 1
    fields = {"steps": 100, "max_response_tokens": 72, "temperature": 1.0}
    config.stages = [stage(**fields) for _ in range(count)]
    if target == "recipe":
        config.stages[0].temperature_rule = "probe"
        config.stages[1].temperature_rule = "match_diversity"
    config.batch.row_len = 256
    config.batch.rows = 4
    config.batch.share_prompts = "off"  # on, the last bits differ from the recorded runs
    config.optimizer.learning_rate = 1e-4
    config.checkpoint.every_steps = 20
    if target == "plain":
        config.batch.rescue = False
        config.batch.substitute = False

    config.evaluate.every_steps = 5
    config.evaluate.n = 4
    config.evaluate.temperature = 0.6
    config.evaluate.max_response_tokens = 72
    config.evaluate.length_edges = (24, 40)
    config.rope.yarn.original_max_position_embeddings = 128
    return config.lock()
