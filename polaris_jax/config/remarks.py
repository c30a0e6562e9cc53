"""What a person should know of a config that breaks no rule."""

from __future__ import annotations

from polaris_jax.config.sections import RunConfig


def remarks(config: RunConfig) -> list[str]:
    """A line for each setting that does nothing beside the others, or quietly leaves the recipe."""
    o, b, found = config.objective, config.batch, []
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
    return found
