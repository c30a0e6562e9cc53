"""The rules of the config over several fields; the range of one field is in its declaration.

No rule needs a file or a device. Each names the field, the value, the rule and the remedy in one
line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from polaris_jax.config.sections import (
    MIN_PROBE_STEP,
    SETTINGS,
    MeshSection,
    RunConfig,
    StageSection,
)
from polaris_jax.config.settings import config_fields, declared_name, require

MAX_PROBE_TEMPERATURES = 1000
GUARDS = ("uninformative", "zero_reward", "entropy", "length", "clip", "grader")


def validate(config: RunConfig) -> None:
    """Raises ConfigError if the config breaks a rule.

    Raises:
        ConfigError: a rule is broken. The text names the field, the value, the rule and the remedy.
    """
    require(bool(config.stages), "stages", [], "at least one stage is needed")
    for name, value in config_fields(config).items():
        SETTINGS[declared_name(name)].check(name, value)
    _check_rollout(config)
    _check_former_policies(config)
    _check_objective(config)
    for index, stage in enumerate(config.stages):
        _check_stage(config, index, stage)
    _check_row_len(config)
    _check_warmstart(config)
    _check_probe(config)
    _check_calibrate(config)
    for name in config.guards.stop.replace(",", " ").split():
        require(
            name in GUARDS,
            "guards.stop",
            config.guards.stop,
            f"{name} is no guard; name some of {', '.join(GUARDS)}",
        )
    _check_evaluate(config)
    _check_yarn(config)
    check_pages(config, max(1, config.rollout.data))


def check_mesh(mesh: MeshSection) -> None:
    """Checks the size of each axis, for a mesh that is no part of a config.

    Raises:
        ConfigError: a size is below 1, except fsdp=-1.
    """
    for name in ("data", "fsdp", "context", "tensor"):
        SETTINGS[f"mesh.{name}"].check(f"mesh.{name}", getattr(mesh, name))


def row_unit_tokens(context: int, tensor: int) -> int:
    """The number of tokens that a packed row's length must be a multiple of.

    Then every device gets equal parts of a row. The tokens of a row are split over mesh.context (in
    a multiple of twice as many chunks, see `models.row_order`) and over mesh.tensor.
    """
    return math.lcm(2 * context if context > 1 else 1, context * tensor)


def check_slots(slots: int, shards: int) -> None:
    """Raises ConfigError if `rollout.slots` cannot be split evenly over a sampler's data shards."""
    require(
        slots % max(1, shards) == 0,
        "rollout.slots",
        slots,
        f"must be a multiple of the sampler mesh's data={shards}; change rollout.slots or "
        "rollout.data",
    )


def check_pages(config: RunConfig, shards: int) -> None:
    """Raises ConfigError if the KV pool cannot hold one longest sequence of every budget.

    With rollout.data=0 the config does not fix `shards`, so a run checks again when it opens.

    Args:
        config: the run's config.
        shards: number of data shards of a sampler. Each shard has an equal part of the pages.

    Raises:
        ConfigError: a shard's part is too small. The text names the largest budget.
    """
    r = config.rollout
    if r.num_pages == 0:
        return
    budgets = {
        f"stages[{index}].max_response_tokens": stage.max_response_tokens
        for index, stage in enumerate(config.stages)
    }
    for name in ("evaluate", "probe", "calibrate"):  # 0: uses the budget of a stage
        budgets[f"{name}.max_response_tokens"] = getattr(config, name).max_response_tokens
    longest = max(budgets, key=lambda name: budgets[name])
    needed = config.data.max_prompt_tokens + budgets[longest]
    room = (r.num_pages // shards - 1) * r.page_size
    pages = (-(-needed // r.page_size) + 1) * shards
    require(
        needed <= room,
        "rollout.num_pages",
        r.num_pages,
        f"data.max_prompt_tokens={config.data.max_prompt_tokens} and {longest}={budgets[longest]} "
        f"make a sequence of {needed} tokens, and each of {shards} data shards has room for {room} "
        f"(pages of rollout.page_size={r.page_size}, the first not usable); set it to at least "
        f"{pages}, or to 0",
    )


def _check_rollout(config: RunConfig) -> None:
    r = config.rollout
    require(
        r.data == 0 or r.slots % r.data == 0,
        "rollout.slots",
        r.slots,
        f"each of rollout.data={r.data} shards has as many; choose a multiple of it",
    )
    require(
        r.num_pages == 0 or r.num_pages >= 2 * max(1, r.data),
        "rollout.num_pages",
        r.num_pages,
        f"each of {max(1, r.data)} data shards needs at least 2, as its first is not usable; "
        "raise it, or set it to 0",
    )


def _check_former_policies(config: RunConfig) -> None:
    """Tokens of another policy than the trained one need truncated importance weights."""
    r, o = config.rollout, config.objective
    if r.partial_rollouts == "carry":
        needs = "rollout.partial_rollouts=carry trains tokens of former policies"
    elif r.kv_dtype != "auto":
        needs = f"rollout.kv_dtype={r.kv_dtype} samples tokens from a rounded policy"
    else:
        return
    require(
        o.old_logprobs == "sampler",
        "objective.old_logprobs",
        o.old_logprobs,
        f"{needs}, each against the log-prob that it was sampled with; set it to sampler",
    )
    require(
        o.tis_cap > 0,
        "objective.tis_cap",
        o.tis_cap,
        f"{needs}, whose importance weights must be bounded; set it above 0, such as 2.0",
    )


def _check_objective(config: RunConfig) -> None:
    o, r = config.objective, config.rollout
    require(
        o.dual_clip == 0 or o.dual_clip > 1 + o.clip_high,
        "objective.dual_clip",
        o.dual_clip,
        "must exceed 1 + objective.clip_high, or be 0 to turn it off",
    )
    require(
        o.minibatches == 1 or o.old_logprobs != "current",
        "objective.minibatches",
        o.minibatches,
        "several updates a batch need fixed old log-probs; set objective.old_logprobs=recompute "
        "or sampler",
    )
    require(
        r.prompts_per_step % o.minibatches == 0,
        "objective.minibatches",
        o.minibatches,
        f"groups are not split, so it must divide rollout.prompts_per_step={r.prompts_per_step}",
    )


def _check_stage(config: RunConfig, index: int, stage: StageSection) -> None:
    path = f"stages[{index}]"
    require(
        stage.temperature_rule != "match_diversity" or index > 0,
        f"{path}.temperature_rule",
        stage.temperature_rule,
        "needs a stage before it; use fixed or probe in the first stage",
    )
    every_steps = config.evaluate.every_steps
    require(
        stage.end_score_gain == 0 or 0 < every_steps <= stage.end_window,
        f"{path}.end_score_gain",
        stage.end_score_gain,
        f"compares held-out scores of {path}.end_window={stage.end_window} steps, and "
        f"evaluate.every_steps={every_steps}; set that to 1 to {stage.end_window}, or "
        "raise end_window, or set it to 0 (off)",
    )
    needed = config.data.max_prompt_tokens + stage.max_response_tokens
    limit, row_len = config.model.max_position_tokens, config.batch.row_len
    require(
        limit == 0 or needed <= limit,
        f"{path}.max_response_tokens",
        stage.max_response_tokens,
        f"with data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
        f"{needed} positions, over model.max_position_tokens={limit}; lower the budget or "
        "raise the limit",
    )
    require(
        row_len == 0 or needed <= row_len,
        "batch.row_len",
        row_len,
        f"a sequence of stage {index} may reach {needed} tokens; set it to 0 or to at least that",
    )


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


def _check_warmstart(config: RunConfig) -> None:
    w, a = config.warmstart, config.data.arithmetic
    for name, section in ("data.arithmetic", a), ("warmstart", w):
        require(
            section.max_steps >= section.min_steps,
            f"{name}.max_steps",
            section.max_steps,
            f"must be at least {name}.min_steps={section.min_steps}",
        )
    require(
        a.hard_from == 0 or a.min_steps < a.hard_from <= a.max_steps,
        "data.arithmetic.hard_from",
        a.hard_from,
        f"must exceed data.arithmetic.min_steps={a.min_steps} and not "
        f"data.arithmetic.max_steps={a.max_steps}; set it between, or to 0 for even lengths",
    )
    require(
        w.num_heads % w.num_kv_heads == 0,
        "warmstart.num_kv_heads",
        w.num_kv_heads,
        f"must divide warmstart.num_heads={w.num_heads}",
    )
    require(w.head_dim % 2 == 0, "warmstart.head_dim", w.head_dim, "rotary width must be even")


def _check_calibrate(config: RunConfig) -> None:
    c = config.calibrate
    require(
        c.min_rate <= c.max_rate,
        "calibrate.min_rate",
        c.min_rate,
        f"no pass rate lies in [{c.min_rate:g}, {c.max_rate:g}]; set it to "
        f"calibrate.max_rate={c.max_rate:g} or less",
    )


def _check_probe(config: RunConfig) -> None:
    if config.probe.temperatures:
        _check_probed_list(config.probe.temperatures)
    else:
        _check_probed_range(config)
    p = config.probe
    further = "accuracy falls further in the exploration zone than in the robust one; set it to"
    require(
        p.cez_share >= p.rgz_share,
        "probe.cez_share",
        p.cez_share,
        f"{further} probe.rgz_share={p.rgz_share:g} or more",
    )
    require(
        p.cez_tolerance >= p.rgz_tolerance or p.cez_tolerance == 0,
        "probe.cez_tolerance",
        p.cez_tolerance,
        f"{further} probe.rgz_tolerance={p.rgz_tolerance:g} or more, or to 0 for probe.cez_share",
    )


def _check_probed_list(temperatures: Sequence[float]) -> None:
    steps = [b - a for a, b in itertools.pairwise(temperatures)]
    require(
        3 <= len(temperatures) <= MAX_PROBE_TEMPERATURES,
        "probe.temperatures",
        temperatures,
        f"zones need 3 to {MAX_PROBE_TEMPERATURES} temperatures; name more, or leave it empty for "
        "probe.start, probe.stop and probe.step",
    )
    require(
        min(steps) > MIN_PROBE_STEP - 1e-9,
        "probe.temperatures",
        temperatures,
        f"must ascend by at least {MIN_PROBE_STEP} each; sort the list and name each once",
    )


def _check_probed_range(config: RunConfig) -> None:
    p = config.probe
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


def _check_evaluate(config: RunConfig) -> None:
    e, limit = config.evaluate, config.model.max_position_tokens
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
        require(
            all(low < high for low, high in itertools.pairwise(edges)),
            f"evaluate.{name}",
            edges,
            "must ascend",
        )
    budget = e.max_response_tokens or config.stages[-1].max_response_tokens
    require(
        not e.budgets or e.budgets[-1] <= budget,
        "evaluate.budgets",
        e.budgets,
        f"a response ends at {budget} tokens (evaluate.max_response_tokens, or the last stage's), "
        "so nothing is known beyond; leave that budget out, or raise the other",
    )
    factors = e.attention_factors
    require(
        not factors or (e.yarn != "off" and config.rope.yarn.factor > 1),
        "evaluate.attention_factors",
        factors,
        "they are for evaluation under YaRN; set evaluate.yarn=on or both and rope.yarn.factor "
        "above 1",
    )
    require(
        len({*factors, config.rope.yarn.attention_factor}) == len(factors) + 1,
        "evaluate.attention_factors",
        factors,
        "must differ from one another and from rope.yarn.attention_factor, which is evaluated "
        "anyway",
    )


def _check_yarn(config: RunConfig) -> None:
    y, path = config.rope.yarn, "rope.yarn"
    require(
        y.beta_fast > y.beta_slow,
        f"{path}.beta_fast",
        y.beta_fast,
        f"must exceed {path}.beta_slow={y.beta_slow:g}",
    )
    scaled = [
        f"stages[{i}].rope_factor={stage.rope_factor:g}"
        for i, stage in enumerate(config.stages)
        if stage.rope_factor > 1
    ]
    if config.evaluate.yarn != "off" and y.factor > 1:
        scaled.append(f"evaluate.yarn={config.evaluate.yarn}")
    require(
        y.original_max_position_embeddings >= 1 or not scaled,
        f"{path}.original_max_position_embeddings",
        y.original_max_position_embeddings,
        f"{', '.join(scaled)} needs the length that the checkpoint was trained for; set it, such "
        "as to 32768 for Qwen3",
    )
