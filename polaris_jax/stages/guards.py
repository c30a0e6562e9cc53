"""Guards of a run: what in the numbers of its steps is worth a warning, or ends the run.

Guards judge by informative groups: a run with 2% reward in which groups inform is healthy. A guard
fires when its condition has held for its number of steps in a row, and again at 2, 4, 8 .. times
that number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from polaris_jax.config.rollout import INT8_LOGP_GAP_MEAN
from polaris_jax.config.sections import GuardsSection, RunConfig

JUDGED_STEPS = 10  # fewest steps by which a run is called hopeless
BASELINE_STEPS = 3  # measured steps of a stage whose mean is the stage's start
GRADING_FAILURES = ("timeouts", "crashes", "memory", "errors", "invalid")
Metrics = Mapping[str, Any]  # a line of metrics.jsonl: numbers, or None


@dataclasses.dataclass(frozen=True)
class History:
    """What the guards remember of a run's steps; plain values, for a checkpoint.

    Attributes:
        steps: steps seen.
        idle_steps: steps without an informative group, or without an update.
        streaks: guard -> steps in a row, up to the newest, that met its condition.
        stage: the stage that `starts` belongs to.
        starts: metric -> its first values in the stage.
    """

    steps: int = 0
    idle_steps: int = 0
    streaks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    stage: int = -1
    starts: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def hopeless(self) -> bool:
        """True if at least half of the steps taught nothing, and there were enough to tell."""
        return self.steps >= JUDGED_STEPS and 2 * self.idle_steps >= self.steps

    def summary(self) -> str:
        """A warning if at least half of the steps taught nothing; else ""."""
        if not self.steps or 2 * self.idle_steps < self.steps:
            return ""
        return (
            f"{self.idle_steps} of {self.steps} steps taught nothing: no group informed, or no "
            "update was made; read rollouts/, see how hard the problems are with `polaris "
            "calibrate`, and docs/howto/reading_a_run.md"
        )


def watch(
    history: History, metrics: Metrics, *, step: int, section: GuardsSection
) -> tuple[History, list[str]]:
    """The history after one more step, and one line for each guard that fires.

    Args:
        history: the history before the step.
        metrics: the step's line of metrics.jsonl; a value that is absent or None meets no
            condition.
        step: number of the step.
        section: limits.

    Raises:
        RuntimeError: a guard fires that `guards.stop` names.
    """
    stage = metrics["stage"]
    starts = {k: list(v) for k, v in history.starts.items()} if stage == history.stage else {}
    met = _conditions(metrics, starts, section)
    streaks = {name: history.streaks.get(name, 0) + 1 for name in met}
    for name in ("update/entropy", "rollout/mean_length"):
        values, value = starts.setdefault(name, []), metrics.get(name)
        if value is not None and len(values) < BASELINE_STEPS:
            values.append(value)
    history = History(
        history.steps + 1, history.idle_steps + ("uninformative" in met), streaks, stage, starts
    )
    lines = []
    for name, text in met.items():
        limit = getattr(section, f"{name}_steps", section.steps)
        if is_due(streaks[name], limit):
            lines.append(f"step {step}: {text}, {streaks[name]} steps in a row")
            stop_if_named(name, lines[-1], section)
    return history, lines


def is_due(streak: int, limit: int) -> bool:
    """True at `limit` steps in a row, and at 2, 4, 8 .. times as many; never if `limit` is 0."""
    times, rest = divmod(streak, limit) if limit else (0, 0)
    return times > 0 and not rest and times & (times - 1) == 0


def stop_if_named(name: str, text: str, section: GuardsSection) -> None:
    """Raises RuntimeError if `guards.stop` names the guard."""
    if name in section.stop.replace(",", " ").split():
        raise RuntimeError(f"{text} (guards.stop names {name}; the last checkpoint is kept)")


def _conditions(
    metrics: Metrics, starts: Mapping[str, list[float]], section: GuardsSection
) -> dict[str, str]:
    """Guard -> what it says and what to look at, for each guard whose condition holds."""
    met = {}
    if metrics.get("batch/informative_groups") == 0 or metrics.get("batch/steps_without_update"):
        met["uninformative"] = (
            "nothing to learn from (no group informs, or no update; look at rollouts/, and run "
            "`polaris calibrate`)"
        )
    if metrics.get("rollout/reward_mean") == 0:
        met["zero_reward"] = (
            "every reward is 0 (look at rollouts/, reward.mode and max_response_tokens)"
        )
    clipped = metrics.get("rollout/clip_ratio") or 0.0
    if section.clip_ratio and clipped > section.clip_ratio:
        met["clip"] = (
            f"rollout/clip_ratio={clipped:.2f} over guards.clip_ratio={section.clip_ratio:g} (look "
            "at the ends of responses; raise the stage's max_response_tokens)"
        )
    for name, guard, low, high in (
        ("update/entropy", "entropy", section.entropy_low, section.entropy_high),
        ("rollout/mean_length", "length", 0.0, section.length_growth),
    ):
        value, begun = metrics.get(name), starts.get(name, [])
        if value is None or len(begun) < BASELINE_STEPS:
            continue
        times = value / max(sum(begun) / BASELINE_STEPS, 1e-12)
        if times < low:
            met[guard] = (
                f"{name}={value:.3g} is {times:.2f} of its stage's start, under "
                f"guards.entropy_low={low:g} (a collapse: look at rollout/diversity; raise the "
                "temperature, or lower optimizer.learning_rate)"
            )
        elif high and times > high:
            field = "entropy_high" if guard == "entropy" else "length_growth"
            met[guard] = (
                f"{name}={value:.3g} is {times:.1f} times its stage's start, over "
                f"guards.{field}={high:g} (look at rollouts/; lower optimizer.learning_rate)"
            )
    return met


def failed_grading(line: Metrics, *, step: int, section: GuardsSection) -> str:
    """A warning if grading failed for too many answers of a step; else "".

    Args:
        line: the step's line of timing.jsonl.
        step: number of the step.
        section: limits.

    Raises:
        RuntimeError: it failed for too many, and `guards.stop` names "grader".
    """
    failed = {name: line.get(f"reward/{name}", 0) for name in GRADING_FAILURES}
    graded, total = line.get("reward/graded", 0), sum(failed.values())
    if not section.grader_failures or total <= section.grader_failures * graded:
        return ""
    counts = ", ".join(f"{name} {count}" for name, count in failed.items() if count)
    text = (
        f"step {step}: grading failed for {total} of {graded} answers ({counts}), over "
        f"guards.grader_failures={section.grader_failures:g}; they score 0 (look at "
        "reward.function and reward.timeout_s)"
    )
    stop_if_named("grader", text, section)
    return text


def check_health(step: int, skips_in_a_row: int, metrics: Metrics, config: RunConfig) -> None:
    """Raises RuntimeError if the run must stop, since its numbers cannot be trusted.

    Raises:
        RuntimeError: too many non-finite updates in a row, or a sampler whose policy is not the
            trainer's; names the step, the value and the limit.
    """
    limit = config.optimizer.max_skips
    if skips_in_a_row >= limit:
        raise RuntimeError(
            f"step {step}: {skips_in_a_row} updates in a row had a non-finite gradient "
            f"(optimizer.max_skips={limit}); lower optimizer.learning_rate or look at the step's "
            "rollouts"
        )
    gap, gate = metrics.get("rollout/logp_gap_mean"), config.rollout.max_logp_gap_mean
    remedy = ""
    if config.rollout.kv_dtype != "auto":
        gate = gate or INT8_LOGP_GAP_MEAN
        remedy = f"; rollout.kv_dtype={config.rollout.kv_dtype} rounds it, auto does not"
    if gate and "rollout/logp_gap_mean" in metrics.get("nonfinite", ()):
        raise RuntimeError(
            f"step {step}: rollout/logp_gap_mean is not finite "
            f"(rollout.max_logp_gap_mean={gate:g}): the sampler or the trainer gave a sampled "
            f"token no log-prob; look at the step's rollouts{remedy}"
        )
    if gate and gap is not None and gap > gate:
        raise RuntimeError(
            f"step {step}: rollout/logp_gap_mean={gap:.4g} nats exceeds "
            f"rollout.max_logp_gap_mean={gate:g}: the sampler's policy is not the trainer's{remedy}"
        )
