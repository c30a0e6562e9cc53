"""What a step of training leaves on disk and on the screen, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polaris_jax.config import CheckpointSection
from polaris_jax.metrics import value_of
from polaris_jax.records import Graded

# Null in the metrics of a step without an update.
UPDATE_METRICS = (
    "rollout/logp_gap_mean",
    "rollout/logp_gap_max",
    "batch/padding_share",
    "batch/attention_imbalance",
    "batch/context_imbalance",
    "batch/tokens",
    "update/loss",
    "update/grad_norm",
    "update/entropy",
    "update/fresh_entropy",
    "update/clip_fraction_low",
    "update/clip_fraction_high",
    "update/clip_fraction_dual",
    "update/ratio_mean",
    "update/skipped",
)
GRADER_STATS = ("graded", "timeouts", "crashes")
SAMPLER_STATS = (
    "slot_occupancy",
    "row_waste",
    "live_rows_min",
    "live_rows_max",
    "pages_peak",
    "preemptions",
    "prefix_hits",
    "prefix_query_tokens",
    "prefix_hit_tokens",
    "prefix_hit_rate",
    "compiles",
)


def rollout_rows(
    graded: Graded, *, attempt: int, draws: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Rows of rollouts/step_N.jsonl: every response as sampled and graded.

    Args:
        graded: as graded.
        attempt: which batch of its step it is.
        draws: of each prompt; then a row also names its draw, and how many tokens each version of
            the policy gave. None: without both.
    """
    rows: list[dict[str, Any]] = [
        {
            "problem_id": graded.problem_ids[p],
            "sample": r,
            "attempt": attempt,
            "gold": graded.golds[p],
            "text": graded.texts[p][r],
            "tokens": len(graded.token_ids[p][r]),
            "finish_reason": graded.finish_reasons[p][r],
            "reward": float(graded.reward_PR[p, r]),
        }
        for p in range(len(graded))
        for r in range(graded.reward_PR.shape[1])
    ]
    if draws is not None and graded.versions is not None:
        told = [(draw, v) for draw, g in zip(draws, graded.versions, strict=True) for v in g]
        for row, (draw, versions) in zip(rows, told, strict=True):
            row |= {"draw": draw, "versions": [list(pair) for pair in versions]}
    return rows


def beyond_grace(line: Mapping[str, Any], section: CheckpointSection) -> str:
    """What a preemption would cost, where a step's update and save outlast the grace; else "".

    A SIGTERM is answered between two phases: in a rollout or a held-out score at once, in an update
    when it has ended.

    Args:
        line: of timing.jsonl.
        section: of the config.
    """
    needed_s = line.get("time/update_s", 0.0) + line.get("time/save_s", 0.0)
    if needed_s <= section.grace_s:
        return ""
    return (
        f"update and checkpoint took {needed_s:.0f} s, over checkpoint.grace_s="
        f"{section.grace_s:g}: a host taken away in them loses the steps since its last checkpoint "
        f"(checkpoint.every_steps={section.every_steps})"
    )


def timing_line(
    seconds: Mapping[str, float],
    stats: Mapping[str, float],
    *,
    update_tokens: int,
    grading: Mapping[str, int],
) -> dict[str, Any]:
    """A step's timing.jsonl line: seconds a phase, tokens a second, the sampler's counts.

    Args:
        seconds: by phase.
        stats: `Sampler.stats()` of this step alone.
        update_tokens: response tokens of this step's update.
        grading: `Grader.stats()` of this step alone, summed over processes.
    """
    line: dict[str, Any] = {f"time/{name}_s": value for name, value in seconds.items()}
    if seconds.get("rollout"):
        line["throughput/rollout_tokens_per_s"] = stats["response_tokens"] / seconds["rollout"]
    if seconds.get("update") and update_tokens:
        line["throughput/update_tokens_per_s"] = update_tokens / seconds["update"]
    line["time/weight_sync_s"] = stats["weight_sync_s"]
    line["throughput/weight_sync_bytes"] = stats["weight_sync_bytes"]
    line |= {f"sampler/{name}": stats[name] for name in SAMPLER_STATS}
    return line | {f"reward/{name}": grading[name] for name in GRADER_STATS}


def step_text(step: int, metrics: Mapping[str, Any]) -> str:
    """The line that a person reads after a step."""

    def number(name: str, form: str) -> str:
        value = value_of(metrics.get(name))
        return "-" if value is None else format(value, form)

    return (
        f"step {step}: reward {number('rollout/reward_mean', '.3f')}  "
        f"informative {number('rollout/informative_share', '.0%')}  "
        f"length {number('rollout/mean_length', '.0f')}  "
        f"clipped {number('rollout/clip_ratio', '.0%')}  "
        f"entropy {number('update/entropy', '.3f')}  "
        f"rescued {number('batch/rescued_groups', 'd')}  "
        f"substituted {number('batch/substituted_groups', 'd')}"
    )
