"""What the full-size configs take after a colon: a pod, an evaluation, a rule, or `tiny`.

    --config=configs/polaris_4b.py:v5p:2x2x4    Qwen3-4B on 16 v5p chips
    --config=configs/polaris_4b.py:tiny         the same stages with a model that a laptop trains
    --config=configs/polaris_4b.py:final:amc23  evaluation as the recipe's final one
    --config=configs/polaris_4b.py:base:amc23   evaluation as the base model's makers recommend
    --config=configs/polaris_4b.py:released:short    the authors' own checkpoint, with few responses
    --config=configs/polaris_4b.py:match_diversity:v5p:2x2x4    later temperatures by measurement

A pod sets the mesh, the sampler's mesh and its page pool; every number of the recipe stays.
`polaris plan` shows what each of them leaves free. `final` sets `evaluate` alone, to what the
recipe states for that model's final evaluation: avg@32, or with a benchmark's name its own k.
`base` does the same with the settings that the base model's makers recommend. `released` evaluates
the checkpoint that the recipe's authors published, with and without YaRN, on AIME24 and AIME25, and
puts the published scores beside: 60 problems x 32 responses, `released:short` x 4, and with a
benchmark's name that benchmark with its own k.
`match_diversity`, before another target or alone, chooses the temperature of each later stage so
that the diversity of the stage before is regained, as the recipe's text says, in place of the
released scripts' fixed temperatures.
`tiny` is a smoke test of a config's shape: two steps a stage, a small model made on the spot,
arithmetic problems.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from polaris_jax.evaluate.benchmarks import BENCHMARKS


@dataclasses.dataclass(frozen=True)
class Pod:
    """How a pod is divided.

    Attributes:
        context: mesh.context, parts of a row of the trainer; mesh.fsdp takes the other devices.
        tensor: rollout.tensor, devices that share one copy of the sampler's weights.
        slots: rollout.slots of one process (the chips of one host).
        page_size: rollout.page_size, in tokens.
    """

    context: int
    tensor: int
    slots: int
    page_size: int = 64


# A host holds 4 chips of a pod (8 where one v6e or v5e host is the whole slice), or 8 GPUs.
PODS = {
    "v5p:2x2x1": Pod(context=1, tensor=1, slots=128),
    "v5p:2x2x4": Pod(context=1, tensor=1, slots=128),
    "v5p:4x4x2": Pod(context=1, tensor=1, slots=128),
    "v6e:2x4": Pod(context=4, tensor=2, slots=64),
    "v6e:4x8": Pod(context=2, tensor=4, slots=64),
    "v6e:8x8": Pod(context=2, tensor=4, slots=64),
    "v5e:4x8": Pod(context=8, tensor=4, slots=32),
    "v5e:8x16": Pod(context=4, tensor=4, slots=32),
    "v5e:16x16": Pod(context=4, tensor=4, slots=32),
    "h100:8": Pod(context=1, tensor=1, slots=256),
    "h100:32": Pod(context=1, tensor=1, slots=256),
}


RESET = "match_diversity"
FINAL = ("final", *(f"final:{name}" for name in BENCHMARKS))
BASE = ("base", *(f"base:{name}" for name in BENCHMARKS))
RELEASED = ("released", "released:short", *(f"released:{name}" for name in BENCHMARKS))
SHORT_N = 4  # responses a problem of released:short
POOL = "aime24+aime25"


def aim(
    config: ConfigDict,
    target: str,
    *,
    final: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
    released: str = "",
) -> ConfigDict:
    """`config` for `target`: a pod, an evaluation, `tiny`, or empty for no change.

    Args:
        config: of the file.
        target: what stands after the colon; match_diversity may stand before another target.
        final: the recipe's final evaluation as fields of `evaluate`; None: it states none.
        base: the base model's recommended settings, likewise.
        released: Hub name of the checkpoint that the recipe's authors published; "": none whose
            settings are known.

    Raises:
        ValueError: another target, or a final evaluation that is not stated.
    """
    if target.partition(":")[0] == RESET:
        for entry in config.stages[1:]:
            entry.temperature_rule = RESET
        target = target.partition(":")[2]
    if not target:
        return config
    if target in FINAL:
        if final is None:
            raise ValueError(
                f"--config=...:{target}: the recipe states no final evaluation of this model; set "
                "evaluate.{n,temperature,top_k,max_response_tokens,yarn} yourself"
            )
        return _evaluated(config, final, target)
    if target in BASE and base is not None:
        return _evaluated(config, base, target)
    if target in RELEASED:
        if final is None or not released:
            raise ValueError(
                f"--config=...:{target}: no settings are stated for a released checkpoint of this "
                "model; set model.path and evaluate.* yourself"
            )
        return _released(config, final, released, target.partition(":")[2])
    if target == "tiny":
        return _shrunk(config)
    if target not in PODS:
        known = (*PODS, *FINAL, *BASE, *RELEASED)
        raise ValueError(
            f"--config=...:{target}: no such target; take one of {', '.join(known)}, "
            f"tiny, or {RESET}, alone or before one of these; h100:8 holds for any number of such "
            "hosts, and `polaris plan --search` without a target finds the fields of other hardware"
        )
    pod = PODS[target]
    config.mesh.context = pod.context
    config.rollout.tensor = pod.tensor
    config.rollout.slots = pod.slots
    config.rollout.page_size = pod.page_size
    return config


def _evaluated(config: ConfigDict, fields: Mapping[str, Any], target: str) -> ConfigDict:
    config.evaluate.update(fields)
    if ":" in target:
        config.evaluate.n = BENCHMARKS[target.partition(":")[2]].k
    return config


def _released(
    config: ConfigDict, final: Mapping[str, Any], released: str, which: str
) -> ConfigDict:
    """The published checkpoint under the final settings, without YaRN and with it."""
    config.model.path = released
    config.evaluate.update(final)
    config.evaluate.every_steps = 0
    config.evaluate.problems = POOL
    config.evaluate.yarn = "both"
    config.evaluate.own_rope = "drop"  # its config.json has YaRN already
    config.evaluate.beside = "blog"
    if which == "short":
        config.evaluate.n = SHORT_N
    elif which:
        config.evaluate.problems = which
        config.evaluate.n = BENCHMARKS[which].k
    return config


def _shrunk(config: ConfigDict) -> ConfigDict:
    """Every length, count and width down; stages, rules, objective and optimizer as they are."""
    config.model.path = ""
    config.model.dtype = "float32"
    config.model.max_position_tokens = 192
    # Enough for some right answers at the recipe's temperatures, so that updates are made too.
    config.warmstart.steps = 250
    config.warmstart.batch_size = 32
    config.warmstart.num_layers = 2
    config.data.problems = ""
    config.data.arithmetic.train = 64
    config.data.arithmetic.held_out = 8
    config.data.max_prompt_tokens = 64
    config.rollout.prompts_per_step = 8
    config.rollout.slots = 64
    config.rollout.page_size = 16
    config.rollout.prefill_chunk = 64
    config.calibrate.n = 2
    config.calibrate.batch_prompts = 8
    config.probe.start, config.probe.stop, config.probe.step = 0.4, 1.2, 0.4
    config.probe.problems, config.probe.n = 4, 2
    for index, entry in enumerate(config.stages):
        entry.steps = 2
        entry.max_response_tokens = 56 + 8 * index
    config.checkpoint.every_steps = 2
    config.evaluate.every_steps = 0
    config.evaluate.n = 2
    config.evaluate.max_response_tokens = 56
    config.evaluate.length_edges = (24, 40)
    config.rope.yarn.original_max_position_embeddings = 64
    return config
