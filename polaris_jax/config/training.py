"""The rules of training: rollout, objective, optimizer, stages (`rules` has the others)."""

from __future__ import annotations

from polaris_jax.config.sections import RunConfig, StageSection, require


def check_rollout(config: RunConfig) -> None:
    """Checks samples, groups, slots and pages of a training rollout.

    Raises:
        ConfigError: a rule is broken.
    """
    r = config.rollout
    require(
        r.responses_per_prompt >= 2,
        "rollout.responses_per_prompt",
        r.responses_per_prompt,
        "a group baseline needs at least 2 responses; set it to 2 or more, or use "
        "`polaris evaluate` for single samples",
    )
    require(
        r.top_p == 1.0,
        "rollout.top_p",
        r.top_p,
        "training rollouts must sample from the whole distribution, or the kept mass enters the "
        "ratio; set it to 1.0 (evaluate.top_p is free)",
    )
    require(
        r.top_k == 0,
        "rollout.top_k",
        r.top_k,
        "training rollouts must sample from the whole distribution; set it to 0 "
        "(evaluate.top_k is free)",
    )
    require(
        r.processes >= 1,
        "rollout.processes",
        r.processes,
        "the number of processes that share one sampler must be at least 1; set it to 1, or to a "
        "divisor of the number of the run's processes",
    )
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
    require(
        0 <= r.reserve < 1,
        "rollout.reserve",
        r.reserve,
        "a share of device memory; must lie in [0, 1)",
    )
    _check_partial(config)


def check_objective(config: RunConfig) -> None:
    """Checks the clips, caps and minibatches of the loss.

    Raises:
        ConfigError: a rule is broken.
    """
    o, r = config.objective, config.rollout
    require(
        0 < o.clip_low < 1,
        "objective.clip_low",
        o.clip_low,
        "ratios are clipped below 1 - clip_low, which must lie between 0 and 1; set it in (0, 1), "
        "such as to 0.2",
    )
    require(
        o.dual_clip == 0 or o.dual_clip > 1 + o.clip_high,
        "objective.dual_clip",
        o.dual_clip,
        "must exceed 1 + objective.clip_high, or be 0 to turn it off",
    )
    require(
        o.tis_cap == 0 or o.tis_cap >= 1,
        "objective.tis_cap",
        o.tis_cap,
        "a cap below 1 would weaken tokens whose policy has not moved; set it to 0 (off), or to 1 "
        "or more, such as 2.0",
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


def check_optimizer(config: RunConfig) -> None:
    """Checks AdamW's constants and the rules for scarce batches.

    Raises:
        ConfigError: a rule is broken.
    """
    opt, share = config.optimizer, config.batch.min_informative
    require(0 <= opt.b1 < 1, "optimizer.b1", opt.b1, "must lie in [0, 1)")
    require(0 <= opt.b2 < 1, "optimizer.b2", opt.b2, "must lie in [0, 1)")
    require(0 <= share <= 1, "batch.min_informative", share, "a share; must lie in [0, 1]")
    require(
        config.batch.substitute or config.batch.on_scarce == "train",
        "batch.on_scarce",
        config.batch.on_scarce,
        "has no effect with batch.substitute=False; set it to train, or batch.substitute to True",
    )


def check_stage(config: RunConfig, index: int, stage: StageSection) -> None:
    """Checks one stage: budget, temperature, drop and rotary scaling.

    Raises:
        ConfigError: a rule is broken.
    """
    path = f"stages[{index}]"
    require(stage.steps >= 1, f"{path}.steps", stage.steps, "must be at least 1")
    require(
        stage.max_response_tokens >= 1,
        f"{path}.max_response_tokens",
        stage.max_response_tokens,
        "must be at least 1",
    )
    require(
        stage.temperature > 0,
        f"{path}.temperature",
        stage.temperature,
        "training samples at a temperature above 0; greedy rollouts have no diversity",
    )
    require(
        stage.evaluate_temperature >= 0,
        f"{path}.evaluate_temperature",
        stage.evaluate_temperature,
        "must not be negative; 0 takes evaluate.temperature",
    )
    require(
        0 <= stage.drop_above <= 1,
        f"{path}.drop_above",
        stage.drop_above,
        "must lie in [0, 1]; 1.0 drops nothing",
    )
    require(
        stage.rope_factor >= 1,
        f"{path}.rope_factor",
        stage.rope_factor,
        "YaRN stretches positions; set it to 1.0 (off) or more",
    )
    require(
        stage.temperature_rule != "match_diversity" or index > 0,
        f"{path}.temperature_rule",
        stage.temperature_rule,
        "needs a stage before it; use fixed or probe in the first stage",
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


def _check_partial(config: RunConfig) -> None:
    r, o = config.rollout, config.objective
    require(
        0.5 <= r.partial_share <= 1,
        "rollout.partial_share",
        r.partial_share,
        "the share of a step's groups that it waits for; must lie in [0.5, 1] (below a half, more "
        "groups would be carried over than a step trains, and their lag could not be bounded)",
    )
    needs = "rollout.partial_rollouts=carry trains tokens of former policies"
    require(
        r.partial_rollouts == "wait" or o.old_logprobs == "sampler",
        "objective.old_logprobs",
        o.old_logprobs,
        f"{needs}, each against the log-prob that it was sampled with; set it to sampler",
    )
    require(
        r.partial_rollouts == "wait" or o.tis_cap > 0,
        "objective.tis_cap",
        o.tis_cap,
        f"{needs}, whose importance weights must be bounded; set it above 0, such as 2.0",
    )
