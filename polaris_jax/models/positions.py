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


def positions_of(model: ModelConfig) -> int:
    """The positions of a model under its own rotary scaling, in tokens.

    Whoever adds YaRN to a config.json, as Qwen's model cards say, leaves its
    max_position_embeddings as it was. Others write factor x original length there.
    """
    limit, scaling = model.max_position_embeddings, model.rope_scaling
    if scaling is None:
        return limit
    return max(limit, int(scaling.factor * (scaling.original_max_position_embeddings or limit)))


def warn_beyond(model: ModelConfig, tokens: int, say: Callable[[str], None]) -> None:
    """Gives `say` a warning if a response may pass the model's positions.

    Args:
        model: the architecture, stretched as it will be.
        tokens: prompt and longest response.
    """
    if tokens > (limit := positions_of(model)):
        say(
            f"warning: prompt and --max_tokens are {tokens:,} tokens, and the model has {limit:,} "
            "positions; what lies beyond was not trained: lower --max_tokens, or stretch by --yarn"
        )


def check_positions(
    config: RunConfig, model: ModelConfig, say: Callable[[str], None], *, trains: bool = False
) -> None:
    """Checks every stage's prompt + budget against the position limit, before weights are read.

    `say` gets a warning if a stage passes the limit, or replaces the model's own rotary scaling; if
    the config `trains`, also if held-out scores pass it (`check_held_out_positions`).

    Raises:
        ConfigError: a stage exceeds the limit: `model.max_position_tokens`, or, when that is 0,
            the positions under the model's own rotary scaling, or its claimed positions times the
            stage's rope_factor.
    """
    _say_if_replaced(config, model, say)
    if trains:
        check_held_out_positions(config, model, say)
    for i, stage in enumerate(config.stages):
        passes = check_budget(
            config,
            model,
            say,
            field=f"stages[{i}].max_response_tokens",
            tokens=stage.max_response_tokens,
            stage=i,
        )
        if passes:
            return


def check_held_out_positions(
    config: RunConfig, model: ModelConfig, say: Callable[[str], None]
) -> None:
    """Warns if held-out scores during training go past the positions of a stage's scaling.

    `evaluate.yarn` is for `polaris evaluate`: during training the stage's scaling counts.
    """
    tokens, field = config.evaluate.max_response_tokens, "evaluate.max_response_tokens"
    if not config.evaluate.every_steps or not tokens:  # 0: the last stage's, which is checked
        return
    for i in range(len(config.stages)):
        if check_budget(config, model, say, field=field, tokens=tokens, stage=i, refuses=False):
            return


def check_budget(
    config: RunConfig,
    model: ModelConfig,
    say: Callable[[str], None],
    *,
    field: str,
    tokens: int,
    stage: int,
    refuses: bool = True,
) -> bool:
    """Checks prompt + budget against the position limit under a stage's rotary scaling.

    Args:
        config: the run's config.
        model: the architecture.
        say: gets a warning if the budget passes the limit.
        field: name of the budget.
        tokens: the budget.
        stage: index of the stage.
        refuses: False: what would be refused is a warning.

    Returns:
        True if the budget passes the limit.

    Raises:
        ConfigError: it passes the limit, and `model.max_position_tokens` does not allow it.
    """
    plain, factor = model.rope_scaling is None, config.stages[stage].rope_factor
    needed = config.data.max_prompt_tokens + tokens
    own = int(model.max_position_embeddings * factor) if factor > 1 else positions_of(model)
    if needed <= own:
        return False
    reach = f"may reach {needed} positions"
    if needed <= (config.model.max_position_tokens or own):
        say(
            f"warning: {field.removesuffix('.max_response_tokens')} {reach}, past the checkpoint's "
            f"{own}{' without YaRN' if plain else ''}; model.max_position_tokens allows it"
        )
        return True
    raise_factor = f", raise stages[{stage}].rope_factor" if plain else ""
    text = (
        f"{field}={tokens}: with data.max_prompt_tokens={config.data.max_prompt_tokens} a sequence "
        f"{reach}, over the checkpoint's {own}; lower the budget{raise_factor}, or set "
        f"model.max_position_tokens={needed} to go beyond"
    )
    if refuses:
        raise ConfigError(text)
    say(f"warning: {text}")
    return True


def _say_if_replaced(config: RunConfig, model: ModelConfig, say: Callable[[str], None]) -> None:
    """Says that stages replace the model's own scaling, of the one that goes furthest under it."""
    scaling, original = model.rope_scaling, config.rope.yarn.original_max_position_embeddings
    needed = {
        i: config.data.max_prompt_tokens + stage.max_response_tokens
        for i, stage in enumerate(config.stages)
        if stage.rope_factor > 1
    }
    for i in needed if scaling is None else ():
        reach = int(config.stages[i].rope_factor * original)
        named = f"stages[{i}].rope_factor={config.stages[i].rope_factor:g}"
        _say_if_no_longer(named, reach, model, say)
    if scaling is None or not needed:
        return
    i = max(needed, key=lambda i: needed[i] / config.stages[i].rope_factor)
    factor = config.stages[i].rope_factor
    say(
        f"warning: stages[{i}].rope_factor={factor:g} replaces the model's own rotary scaling "
        f"({scaling.rope_type}, factor {scaling.factor:g}); rope.yarn is made for "
        f"{factor:g} x {original:,} = {int(factor * original):,} positions, and a sequence may "
        f"reach {needed[i]:,}"
    )


def _say_if_no_longer(
    named: str, reach: int, model: ModelConfig, say: Callable[[str], None]
) -> None:
    """Says that a YaRN reaches no further than a model does without it."""
    own = model.max_position_embeddings
    if model.rope_scaling is None and reach <= own:
        say(
            f"warning: {named} is made for {reach:,} positions, and the model has {own:,} without "
            "it; set rope.yarn.original_max_position_embeddings to the length that the model was "
            "trained with, or the factor to 1"
        )


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
        _say_if_no_longer(f"rope.yarn.factor={section.factor:g}", limit, model, say)
    else:
        limit = positions_of(model)
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
