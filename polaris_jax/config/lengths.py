"""Two rules of the config about long sequences: room in the KV pool, and YaRN's numbers."""

from __future__ import annotations

from polaris_jax.config.sections import RunConfig, require


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


def check_yarn(config: RunConfig) -> None:
    """Raises ConfigError if YaRN cannot be computed with the numbers in rope.yarn.

    Raises:
        ConfigError: a number is outside the range that YaRN is defined for.
    """
    y, path = config.rope.yarn, "rope.yarn"
    require(y.factor >= 1, f"{path}.factor", y.factor, "must be 1.0 (off) or more")
    require(
        y.attention_factor > 0,
        f"{path}.attention_factor",
        y.attention_factor,
        "must be above 0; 1.0 leaves attention as it is",
    )
    require(y.beta_slow > 0, f"{path}.beta_slow", y.beta_slow, "must be above 0")
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
