"""How far a run's sequences may reach: rotary scaling and the limits of a model's positions."""

from __future__ import annotations

from collections.abc import Callable

from polaris_jax.config import ConfigError, RunConfig, YarnSection
from polaris_jax.models.config import ModelConfig, RopeScaling


def yarn_scaling(yarn: YarnSection, factor: float) -> RopeScaling | None:
    """The run's rotary scaling at `factor`; None at 1, which changes nothing."""
    if factor == 1.0:
        return None
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=yarn.original_max_position_embeddings,
        attention_factor=yarn.attention_factor,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
    )


def check_positions(config: RunConfig, model: ModelConfig, say: Callable[[str], None]) -> None:
    """Checks every stage's prompt + budget against the position limit, before weights are read.

    Raises:
        ConfigError: a stage exceeds the limit: `model.max_position_tokens`, or, when that is 0,
            the checkpoint's own positions times the stage's rope_factor.
    """
    for i, stage in enumerate(config.stages):
        needed = config.data.max_prompt_tokens + stage.max_response_tokens
        own = int(model.max_position_embeddings * stage.rope_factor)
        if needed <= own:
            continue
        if needed > (config.model.max_position_tokens or own):
            raise ConfigError(
                f"stages[{i}].max_response_tokens={stage.max_response_tokens}: with "
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
                f"{needed} positions, over the checkpoint's {own}; lower the budget, raise "
                f"stages[{i}].rope_factor, or set model.max_position_tokens={needed} to go beyond"
            )
        say(
            f"warning: stages[{i}] may reach {needed} positions, past the checkpoint's {own} "
            "without YaRN; model.max_position_tokens allows it"
        )
        return


def check_evaluated_positions(
    config: RunConfig,
    model: ModelConfig,
    say: Callable[[str], None],
    *,
    max_response_tokens: int,
    yarn: bool,
) -> None:
    """Checks the positions of an evaluation; `say` gets a warning if it passes the limit.

    Under YaRN the limit is factor x original length, and going past it is the recipe's own way
    (Source: POLARIS, section 4: 49,152 to 90,000). Without, it is the model's own, and only
    `model.max_position_tokens` or evaluate.yarn=both, which asks for the comparison, go past it.

    Args:
        config: the run's config.
        model: architecture of the evaluated model.
        say: gets the warning.
        max_response_tokens: budget of a response.
        yarn: True if the evaluation is under rope.yarn.

    Raises:
        ConfigError: without YaRN the budget exceeds what the model has positions for.
    """
    section = config.rope.yarn
    needed = config.data.max_prompt_tokens + max_response_tokens
    if yarn and section.factor > 1:
        original = section.original_max_position_embeddings
        limit = int(section.factor * original)
        whose = f"rope.yarn's {section.factor:g} x {original:,} = {limit:,}"
    else:
        limit, scaling = model.max_position_embeddings, model.rope_scaling
        if scaling is not None:
            trained = scaling.original_max_position_embeddings or limit
            limit = max(limit, int(scaling.factor * trained))
        whose = f"the model's own {limit:,} without YaRN"
        if config.evaluate.yarn != "both" and needed > (config.model.max_position_tokens or limit):
            raise ConfigError(
                f"evaluate.max_response_tokens={max_response_tokens}: with "
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence may reach "
                f"{needed} positions, over the model's {limit}; lower the budget, set "
                f"evaluate.yarn=on, or set model.max_position_tokens={needed} to go beyond"
            )
    if needed > limit:
        say(f"warning: responses may reach {needed:,} positions, past {whose}")
