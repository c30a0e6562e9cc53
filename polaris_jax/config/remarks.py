"""What a person should know of a config that breaks no rule."""

from __future__ import annotations

from polaris_jax.config.sections import SETTINGS, RunConfig


def few_problems(problems: int, prompts_per_step: int) -> str:
    """A warning if a step has more prompts than there are problems; else ""."""
    if problems >= prompts_per_step:
        return ""
    return (
        f"warning: {problems} problems for rollout.prompts_per_step={prompts_per_step}: each is in "
        f"a step about {prompts_per_step / problems:.1f} times; bring more problems, or lower "
        "rollout.prompts_per_step"
    )


def remarks(config: RunConfig, *, problems: int | None = None) -> list[str]:
    """A line for each setting that does nothing beside the others, or quietly leaves the recipe.

    Args:
        config: the run's config.
        problems: number of training problems; None: not known.
    """
    o, b, found = config.objective, config.batch, []
    if problems is not None and (text := few_problems(problems, config.rollout.prompts_per_step)):
        found.append(text)
    if (moments := config.optimizer.moment_dtype) != "float32":
        found.append(f"optimizer.moment_dtype={moments}: the recipe's is float32")
    if o.old_logprobs == "sampler" and 0 < o.tis_cap <= 1 + o.clip_high:
        found.append(
            f"warning: objective.tis_cap={o.tis_cap:g}: cuts every weight before "
            f"objective.clip_high={o.clip_high:g} can, so that the upper clip never acts; set it "
            f"above {1 + o.clip_high:g}, such as 2.0"
        )
    if b.on_scarce == "resample" and b.max_resample == 0:
        found.append(
            "warning: batch.max_resample=0: batch.on_scarce=resample never samples again; set it "
            "to 1 or more, or batch.on_scarce=train"
        )
    if b.on_scarce == "train" and differs("batch.min_informative", b.min_informative):
        found.append(unused("batch.min_informative", "with batch.on_scarce=resample or skip"))
    if b.max_copies and not b.substitute:
        found.append(unused("batch.max_copies", "with batch.substitute=True"))
    if o.old_logprobs != "sampler" and differs("objective.tis_cap", o.tis_cap) and o.tis_cap:
        found.append(unused("objective.tis_cap", "with objective.old_logprobs=sampler"))
    for i, stage in enumerate(config.stages):
        if stage.end_reward_gain and 2 * stage.end_window > stage.steps:
            found.append(
                unused(
                    f"stages[{i}].end_reward_gain",
                    f"from step 2 x end_window={2 * stage.end_window} of a stage on, and this one "
                    f"has {stage.steps}",
                )
            )
    last = len(config.stages) - 1
    if differs("stages[i].drop_above", rate := config.stages[last].drop_above) and rate < 1:
        found.append(unused(f"stages[{last}].drop_above", "when a further stage begins"))
    found += _of_held_out(config)
    return found


def _of_held_out(config: RunConfig) -> list[str]:
    """What a held-out score during training does not take from the section `evaluate`."""
    e = config.evaluate
    if not e.every_steps:
        return []
    names = [
        name
        for name in ("yarn", "own_rope", "force_answer_tokens")
        if differs(f"evaluate.{name}", getattr(e, name))
    ]
    return [
        f"evaluate.{name}={getattr(e, name)}: acts in `polaris evaluate` alone; held-out scores "
        "during training are under the stage's rotary scaling and force no answer"
        for name in names
    ]


def differs(field: str, value: object) -> bool:
    """True if a field has another value than its default."""
    return value != SETTINGS[field].default


def unused(field: str, when: str) -> str:
    """The remark on a setting that does nothing here."""
    return f"warning: {field}: acts only {when}"
