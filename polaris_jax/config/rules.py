"""The rules of the config: every check that needs no file and no device.

Each rule names the field, the value, the rule and the remedy in one line.
"""

from __future__ import annotations

import itertools
import math

from polaris_jax.config.lengths import check_pages, check_yarn
from polaris_jax.config.sections import (
    MAX_ANSWER_TIMEOUT_S,
    MAX_SLIP_RATE,
    MIN_WORKER_MEMORY_BYTES,
    SEED_LIMIT,
    MeshSection,
    RunConfig,
    require,
)
from polaris_jax.config.training import check_objective, check_optimizer, check_rollout, check_stage

MIN_PROBE_STEP = 0.001  # closer temperatures sample nearly alike and measure the same
MAX_PROBE_TEMPERATURES = 1000

POSITIVE = {
    "rollout": "prompts_per_step slots page_size decode_steps prefill_chunk tensor partial_max_lag",
    "data": "max_prompt_tokens",
    "objective": "minibatches",
    "optimizer": "max_grad_norm max_skips eps",
    "reward": "workers timeout_s",
    "calibrate": "n temperature batch_prompts",
    "probe": "start step problems n max_candidates",
    "checkpoint": "every_steps keep_last grace_s",
    "evaluate": "n",
    "distributed": "heartbeat_timeout_s",
    "warmstart": "batch_size examples learning_rate hidden_size intermediate_size num_layers "
    "num_heads num_kv_heads head_dim max_position_tokens",
}
NOT_NEGATIVE = {
    "rollout": "num_pages prefill_budget max_logp_gap_mean save_every total_tokens data devices",
    "batch": "row_len rows max_resample",
    "model": "max_position_tokens",
    "objective": "clip_high tis_cap kl_coef entropy_coef dual_clip",
    "optimizer": "learning_rate weight_decay",
    "calibrate": "max_response_tokens",
    "probe": "max_response_tokens rgz_tolerance cez_tolerance",
    "evaluate": "every_steps temperature top_k max_response_tokens",
    "warmstart": "steps",
}


def validate(config: RunConfig) -> None:
    """Raises ConfigError if the config breaks a rule.

    Raises:
        ConfigError: a rule is broken. The text names the field, the value, the rule and the remedy.
    """
    _check_signs(config)
    check_rollout(config)
    check_objective(config)
    check_optimizer(config)
    require(bool(config.stages), "stages", [], "at least one stage is needed")
    for index, stage in enumerate(config.stages):
        check_stage(config, index, stage)
    check_mesh(config.mesh)
    _check_row_len(config)
    _check_reward(config)
    _check_warmstart(config)
    _check_seeds(config)
    _check_probe(config)
    _check_evaluate(config)
    check_yarn(config)
    check_pages(config, max(1, config.rollout.data))


def row_unit_tokens(context: int, tensor: int) -> int:
    """The number of tokens that a packed row's length must be a multiple of.

    Then every device gets equal parts of a row. The tokens of a row are split over mesh.context (in
    a multiple of twice as many chunks, see `models.row_order`) and over mesh.tensor.
    """
    return math.lcm(2 * context if context > 1 else 1, context * tensor)


def _check_signs(config: RunConfig) -> None:
    for section, names in POSITIVE.items():
        for name in names.split():
            value = getattr(getattr(config, section), name)
            require(value > 0, f"{section}.{name}", value, "must be above 0")
    for section, names in NOT_NEGATIVE.items():
        for name in names.split():
            value = getattr(getattr(config, section), name)
            require(value >= 0, f"{section}.{name}", value, "must not be negative")


def check_mesh(mesh: MeshSection) -> None:
    """Raises ConfigError if an axis has a size that no number of devices allows.

    Raises:
        ConfigError: a size is below 1, except fsdp=-1.
    """
    for name in ("data", "fsdp", "context", "tensor"):
        size, rest = getattr(mesh, name), name == "fsdp"
        rule = "must be at least 1" + (", or -1 for the rest" if rest else "")
        require(size >= 1 or (rest and size == -1), f"mesh.{name}", size, rule)


def _check_row_len(config: RunConfig) -> None:
    mesh, row_len = config.mesh, config.batch.row_len
    unit = row_unit_tokens(mesh.context, mesh.tensor)
    require(
        row_len % unit == 0,
        "batch.row_len",
        row_len,
        f"with mesh.context={mesh.context} and mesh.tensor={mesh.tensor} it must be a multiple of "
        f"{unit}; set it to {-(-row_len // unit) * unit}, or to 0",
    )


def _check_reward(config: RunConfig) -> None:
    r = config.reward
    require(
        r.timeout_s <= MAX_ANSWER_TIMEOUT_S,
        "reward.timeout_s",
        r.timeout_s,
        f"the deadline of one answer, at most {MAX_ANSWER_TIMEOUT_S:g} (a day); lower it, such as "
        "to 5.0",
    )
    require(
        r.memory_limit_bytes == 0 or r.memory_limit_bytes >= MIN_WORKER_MEMORY_BYTES,
        "reward.memory_limit_bytes",
        r.memory_limit_bytes,
        f"a worker needs {MIN_WORKER_MEMORY_BYTES} to load; set it to that or more, or to 0 for no "
        "limit",
    )


def _check_seeds(config: RunConfig) -> None:
    """Checks the seeds that go into generators unhashed; `seed` and evaluate.seed are hashed."""
    for name, seed in (
        ("data.arithmetic.seed", config.data.arithmetic.seed),
        ("warmstart.seed", config.warmstart.seed),
    ):
        require(
            0 <= seed < SEED_LIMIT,
            name,
            seed,
            "must lie in [0, 2^63); set it to 0 or another number in that range",
        )


def _check_warmstart(config: RunConfig) -> None:
    w, arithmetic = config.warmstart, config.data.arithmetic
    require(
        0 <= w.slip_rate <= MAX_SLIP_RATE,
        "warmstart.slip_rate",
        w.slip_rate,
        f"must lie in [0, {MAX_SLIP_RATE}], as a text of many slips has no higher rate",
    )
    require(
        w.num_heads % w.num_kv_heads == 0,
        "warmstart.num_kv_heads",
        w.num_kv_heads,
        f"must divide warmstart.num_heads={w.num_heads}",
    )
    require(w.head_dim % 2 == 0, "warmstart.head_dim", w.head_dim, "rotary width must be even")
    for name in ("train", "held_out"):
        count = getattr(arithmetic, name)
        require(count >= 0, f"data.arithmetic.{name}", count, "must not be negative; 0 is none")


def _check_probe(config: RunConfig) -> None:
    p = config.probe
    require(
        p.step >= MIN_PROBE_STEP,
        "probe.step",
        p.step,
        f"temperatures must lie at least {MIN_PROBE_STEP} apart; set it to that or more, such as "
        "to 0.1",
    )
    count = (p.stop - p.start) / p.step + 1
    require(
        count < MAX_PROBE_TEMPERATURES + 1,
        "probe.stop",
        p.stop,
        f"from probe.start={p.start:g} in steps of {p.step:g} the sweep has {count:.0f} "
        f"temperatures, over {MAX_PROBE_TEMPERATURES}; lower it, or raise probe.step",
    )
    require(
        (p.stop - p.start) / p.step > 2 - 1e-6,
        "probe.stop",
        p.stop,
        f"zones need at least 3 temperatures; from probe.start={p.start:g} in steps of "
        f"{p.step:g} set it to {p.start + 2 * p.step:g} or more, or lower probe.step",
    )
    require(
        p.cez_tolerance >= p.rgz_tolerance,
        "probe.cez_tolerance",
        p.cez_tolerance,
        f"accuracy falls further in the exploration zone than in the robust one; set it to "
        f"probe.rgz_tolerance={p.rgz_tolerance:g} or more",
    )


def _check_evaluate(config: RunConfig) -> None:
    e, limit = config.evaluate, config.model.max_position_tokens
    require(0 < e.top_p <= 1, "evaluate.top_p", e.top_p, "must lie in (0, 1]")
    needed = config.data.max_prompt_tokens + e.max_response_tokens
    require(
        limit == 0 or needed <= limit or e.yarn != "off",
        "evaluate.max_response_tokens",
        e.max_response_tokens,
        f"a sequence may reach {needed} positions, over model.max_position_tokens={limit}; lower "
        "the budget, raise the limit, or set evaluate.yarn=on",
    )
    require(bool(e.length_edges), "evaluate.length_edges", (), "at least one length is needed")
    for name in ("length_edges", "budgets"):
        edges = getattr(e, name)
        require(min(edges, default=1) >= 1, f"evaluate.{name}", edges, "each must be at least 1")
        require(
            all(low < high for low, high in itertools.pairwise(edges)),
            f"evaluate.{name}",
            edges,
            "must ascend",
        )
