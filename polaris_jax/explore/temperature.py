"""The temperature reset at a stage's end: candidates, their measurement, and the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from polaris_jax.explore.diversity import NGRAM, distinct_ngrams
from polaris_jax.explore.zones import CEZ_TOLERANCE, RGZ_TOLERANCE, zone_labels

SMALL_INTERVAL = 0.05
LARGE_INTERVAL = 0.1
LARGE_FALL = 0.1  # relative fall of entropy in a stage from which the large interval is taken
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What the fixed probe set gave at one temperature.

    Attributes:
        temperature: sampling temperature.
        accuracy: mean accuracy, in [0, 1].
        diversity: distinct-4-gram, in [0, 1].
        stderr: standard error of the accuracy.
        tokens: response tokens that were sampled for it; 0 if unknown.
    """

    temperature: float
    accuracy: float
    diversity: float
    stderr: float = 0.0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Decision:
    """A chosen temperature.

    Attributes:
        temperature: temperature of the next stage.
        reason: one sentence with the numbers it rests on.
        table: every candidate as a plain dict with its zone, in ascending order, for stages.json.
        reached: True if the temperature's diversity reaches the target.
    """

    temperature: float
    reason: str
    table: tuple[dict[str, Any], ...] = ()
    reached: bool = False

    def collapsed(self, current: float) -> int:
        """The number of candidates above `current` in the Performance Collapse Zone."""
        return sum(row["zone"] == "pcz" and row["temperature"] > current for row in self.table)


def candidate_temperatures(
    current: float, entropy_first: float | None, entropy_last: float | None, max_candidates: int
) -> tuple[float, ...]:
    """The temperatures above `current` to measure at a stage's end, in ascending order.

    They lie 0.05 apart if the policy's entropy fell by under 10% (relative) in the stage, or is
    unknown, else 0.1.

    Args:
        current: the finished stage's temperature.
        entropy_first: policy entropy at the stage's first step, nats.
        entropy_last: policy entropy at the last step, nats.
        max_candidates: largest number of temperatures.

    Raises:
        ValueError: max_candidates < 1 or current <= 0.

    Source: POLARIS, "Dynamic Temperature Reset". Differs: the text says "slightly" and "a larger
        interval"; 10% and 0.1 are ours.
    """
    if max_candidates < 1 or current <= 0:
        raise ValueError(
            f"max_candidates={max_candidates}, current={current}: both must be above 0"
        )
    interval = SMALL_INTERVAL
    if entropy_first is not None and entropy_last is not None and entropy_first > 0:
        fall = (entropy_first - entropy_last) / entropy_first
        if fall >= LARGE_FALL - ROUNDING:
            interval = LARGE_INTERVAL
    return tuple(round(current + k * interval, 6) for k in range(1, max_candidates + 1))


def measure_candidate(
    temperature: float,
    groups: Sequence[Sequence[str]],
    reward_PR: np.ndarray,
    n: int = NGRAM,
    *,
    tokens: int = 0,
) -> Candidate:
    """The `Candidate` of a probe's rollouts at one temperature.

    The standard error is that of resampling the same problems: the spread inside each problem,
    not between them, since every temperature is measured on one fixed set. With one response a
    problem the spread between problems takes its place.

    Args:
        temperature: sampling temperature of the responses.
        groups: [P][R] response texts.
        reward_PR: their rewards in [0, 1].
        n: words of an n-gram.
        tokens: response tokens that were sampled.

    Raises:
        ValueError: no reward.
    """
    reward_PR = np.asarray(reward_PR, np.float64)
    if reward_PR.ndim != 2 or not reward_PR.size:
        raise ValueError(f"reward_PR has shape {reward_PR.shape}: expected [P, R], both above 0")
    problems, responses = reward_PR.shape
    if responses > 1:
        variance = (reward_PR.var(axis=1, ddof=1) / responses).sum() / problems**2
    else:
        variance = reward_PR.var(ddof=1) / problems if problems > 1 else 0.0
    return Candidate(
        temperature=float(temperature),
        accuracy=float(reward_PR.mean()),
        diversity=distinct_ngrams(groups, n),
        stderr=float(np.sqrt(variance)),
        tokens=tokens,
    )


def next_temperature(
    candidates: Sequence[Candidate],
    *,
    current: float,
    target_diversity: float,
    rgz_tolerance: float = RGZ_TOLERANCE,
    cez_tolerance: float = CEZ_TOLERANCE,
) -> Decision:
    """The next stage's temperature: the lowest that brings the diversity back.

    Only candidates above `current` that are not in the Performance Collapse Zone are considered.
    The choice is the lowest one that reaches the target. If none reaches the target, the choice is
    the highest one. If there is no such candidate, `current` stays. `current` also stays if the
    sweep is uninformative: no response had an n-gram at the stage's start, or no candidate has a
    right answer. The zones are those of the complete sweep, the present temperature included, by
    each candidate's measured accuracy (see `zone_labels`).

    Args:
        candidates: measured on one fixed probe set, in any order, with one n and one budget. Put
            the present temperature among them, so that a collapse right above it is seen.
        current: the finished stage's temperature.
        target_diversity: diversity of the probe set at the finished stage's start.
        rgz_tolerance: tolerance of the Robust Generation Zone; see `find_zones`.
        cez_tolerance: tolerance of the Controlled Exploration Zone; see `find_zones`.

    Raises:
        ValueError: a temperature twice, or a number that is not finite.

    Source: POLARIS, "Dynamic Temperature Reset Across Training Stages".
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.temperature)
    _check(ordered, current, target_diversity)
    if not ordered:
        return Decision(float(current), f"no candidate was measured; temperature {current} stays")
    labels = zone_labels(
        np.array([c.accuracy for c in ordered], np.float64),
        np.array([c.stderr for c in ordered], np.float64),
        rgz_tolerance=rgz_tolerance,
        cez_tolerance=cez_tolerance,
        measured_only=True,
    )
    table = tuple(
        {**dataclasses.asdict(c), "zone": zone} for c, zone in zip(ordered, labels, strict=True)
    )
    if target_diversity <= ROUNDING:
        why = "the target diversity is 0, as no response was long enough for an n-gram"
        return Decision(float(current), f"temperature {current} stays: {why}", table)
    if not any(c.accuracy > 0 for c in ordered):
        why = "there is no right answer at any temperature"
        return Decision(float(current), f"temperature {current} stays: {why}", table)
    above = [
        (c, zone)
        for c, zone in zip(ordered, labels, strict=True)
        if c.temperature > current + ROUNDING
    ]
    usable = [c for c, zone in above if zone != "pcz"]
    reaching = [c for c in usable if c.diversity >= target_diversity - ROUNDING]
    if reaching:
        best = reaching[0]
        reason = (
            f"lowest temperature above {current} whose diversity {best.diversity:.4f} reaches the "
            f"target {target_diversity:.4f}"
        )
    elif usable:
        best = usable[-1]
        reason = (
            f"no candidate outside the collapse zone reaches the target {target_diversity:.4f}; "
            f"the highest of them has diversity {best.diversity:.4f}"
        )
    else:
        why = "all candidates above it lie in the collapse zone" if above else "none lies above it"
        return Decision(float(current), f"temperature {current} stays: {why}", table)
    return Decision(float(best.temperature), reason, table, reached=bool(reaching))


def _check(ordered: Sequence[Candidate], current: float, target_diversity: float) -> None:
    for candidate in ordered:
        for name, value in dataclasses.asdict(candidate).items():
            if not np.isfinite(value):
                raise ValueError(f"{candidate}: {name} must be finite; measure it again")
    if not np.isfinite(target_diversity):
        raise ValueError(f"target_diversity={target_diversity}: must be finite")
    if not current > 0:
        raise ValueError(f"current={current}: must be above 0")
    temperatures = [candidate.temperature for candidate in ordered]
    if len(set(temperatures)) < len(temperatures):
        raise ValueError(f"candidates hold temperatures {temperatures}: each may occur once")
