"""How hard each problem is for this model: accuracy table, easy drop, curation, shape."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from polaris_jax.records import require_fields, require_rewards

Statistic = Literal["stage_mean", "last"]
Preset = Literal["full", "drop_perfect", "aggressive"]
Shape = Literal["mirrored J", "J", "U", "flat", "empty"]

CORRECT = 1.0
DROP_ABOVE = 0.9
AGGRESSIVE_ABOVE = 0.5
TOO_EASY_ABOVE = 0.7  # mean reward of a set from which it teaches too little
SKEW = 0.2  # difference of the two ends' shares from which one end carries the mass
ENDS = 0.8  # share of both ends together from which a balanced histogram is a U; uniform has 2/3


class AccuracyTable:
    """Right and seen responses of every problem, by stage, as integers.

    Record each visit once, before rescue and substitution. Calibration values are for display and
    for problems never visited; they enter no count.

    Args:
        calibration: problem id -> pass rate in [0, 1].

    Raises:
        ValueError: a pass rate outside [0, 1].

    Source: POLARIS, "Dynamically drop easy data during training".
    """

    def __init__(self, calibration: Mapping[str, float] | None = None) -> None:
        _check_rates(calibration or {})
        self._calibration: dict[Hashable, float] = {
            _plain(i): float(rate) for i, rate in (calibration or {}).items()
        }
        # stage -> problem id -> (right, seen, right in the newest visit, seen in it)
        self._visits: dict[int, dict[Hashable, tuple[int, int, int, int]]] = {}

    def __copy__(self) -> AccuracyTable:
        """A snapshot that later records do not reach."""
        other = AccuracyTable()
        other._calibration = dict(self._calibration)
        other._visits = {stage: dict(visits) for stage, visits in self._visits.items()}
        return other

    def record(
        self,
        problem_ids: Sequence[str] | np.ndarray,
        reward_PR: np.ndarray | Sequence[Sequence[float]],
        *,
        stage: int,
    ) -> None:
        """Adds one visit a group, in batch order; a problem that occurs twice has two visits.

        Args:
            problem_ids: P ids.
            reward_PR: rewards in [0, 1] as graded, before rescue and substitution.
            stage: index of the stage that the step belongs to.

        Raises:
            ValueError: unequal numbers of ids and groups, or a reward outside [0, 1].
        """
        reward_PR = np.asarray(reward_PR)
        if reward_PR.ndim != 2 or len(problem_ids) != len(reward_PR):
            raise ValueError(
                f"{len(problem_ids)} problem ids for rewards of shape {reward_PR.shape}: "
                "expected one row of rewards each"
            )
        require_rewards(reward_PR, problem_ids)
        visits = self._visits.setdefault(int(stage), {})
        right_P = (reward_PR >= CORRECT).sum(axis=1).tolist()
        seen = int(reward_PR.shape[1])
        for problem_id, right in zip(map(_plain, problem_ids), right_P, strict=True):
            before_right, before_seen, _, _ = visits.get(problem_id, (0, 0, 0, 0))
            visits[problem_id] = (before_right + right, before_seen + seen, right, seen)

    def forget(self, stage: int) -> None:
        """Drops the visits of a stage: those of another run, where this one begins in it."""
        self._visits.pop(stage, None)

    def easy_ids(
        self,
        stage: int,
        *,
        drop_above: float = DROP_ABOVE,
        statistic: Statistic = "stage_mean",
    ) -> tuple[str, ...]:
        """Problems to drop at the stage's end, in the order of their first visit in it.

        The comparison is strict and in integers: at 0.9, 36 right of 40 stay and 37 go. Problems
        that the stage did not visit stay.

        Args:
            stage: the stage just ended.
            drop_above: accuracy above which a problem is easy; read as the decimal it prints.
            statistic: "stage_mean" over the stage's visits, or "last": its newest visit alone.

        Raises:
            ValueError: unknown statistic.
        """
        if statistic not in ("stage_mean", "last"):
            raise ValueError(f"statistic={statistic!r}: expected stage_mean or last")
        limit = decimal_fraction(drop_above)
        easy = []
        for problem_id, (right, seen, last_right, last_seen) in self._visits.get(stage, {}).items():
            if statistic == "last":
                right, seen = last_right, last_seen
            if right * limit.denominator > seen * limit.numerator:
                easy.append(problem_id)
        return tuple(easy)

    def counts(self, problem_id: str, stage: int) -> tuple[int, int]:
        """(right, seen) of a problem in a stage; (0, 0) where it was not visited."""
        right, seen, _, _ = self._visits.get(stage, {}).get(_plain(problem_id), (0, 0, 0, 0))
        return right, seen

    def pass_rates(self) -> dict[str, float]:
        """Each known problem's mean in the newest stage that visited it, else its calibration."""
        rates: dict[Any, float] = dict(self._calibration)
        for stage in sorted(self._visits):
            for problem_id, (right, seen, _, _) in self._visits[stage].items():
                rates[problem_id] = right / seen
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Everything the table holds, in plain JSON types."""
        return {
            "calibration": [[i, rate] for i, rate in self._calibration.items()],
            "visits": [
                [stage, [[i, *counts] for i, counts in visits.items()]]
                for stage, visits in self._visits.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the contents by those of a `state_dict`; nothing is added to what was there.

        Raises:
            ValueError: a field of a `state_dict` is missing.
        """
        require_fields(state, "calibration", "visits")
        self._calibration = {i: float(rate) for i, rate in state["calibration"]}
        self._visits = {
            int(stage): {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}
            for stage, rows in state["visits"]
        }


def decimal_fraction(value: float) -> Fraction:
    """The fraction that a decimal prints as: 0.9 is 9/10, not the double next to it."""
    return Fraction(str(float(value)))


def curate(pass_rates: Mapping[str, float], preset: Preset = "drop_perfect") -> tuple[str, ...]:
    """The ids that stay in the training set, in the order given.

    Args:
        pass_rates: problem id -> share of calibration rollouts that solved it.
        preset: "full" keeps all; "drop_perfect" drops those always solved; "aggressive" drops
            those solved in more than half (4/8 stays).

    Raises:
        ValueError: unknown preset, or a rate outside [0, 1].

    Source: POLARIS, data difficulty and its ablation (40K, 26K, 19K problems).
    """
    _check_rates(pass_rates)
    if preset == "full":
        return tuple(pass_rates)
    if preset == "drop_perfect":
        return tuple(i for i, rate in pass_rates.items() if rate < 1.0)
    if preset == "aggressive":
        return tuple(i for i, rate in pass_rates.items() if rate <= AGGRESSIVE_ABOVE)
    raise ValueError(f"preset={preset!r}: expected full, drop_perfect or aggressive")


def _check_rates(pass_rates: Mapping[str, float]) -> None:
    for problem_id, rate in pass_rates.items():
        if not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"problem {problem_id!r}: pass rate {rate} must lie in [0, 1]; give the share of "
                "its responses that are right"
            )


def pass_rate_histogram(pass_rates: Iterable[float], n: int) -> np.ndarray:
    """How many problems were solved in 0/n, 1/n .. n/n of their rollouts, int64 [n + 1].

    A rate between two bins (a problem visited several times) counts in the nearer one.

    Raises:
        ValueError: n < 1, or a rate outside [0, 1].
    """
    rates = np.array(list(pass_rates), np.float64)
    if n < 1:
        raise ValueError(f"n={n}: a pass rate needs at least 1 rollout")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError("every pass rate must lie in [0, 1]")
    return np.bincount(np.floor(rates * n + 0.5).astype(np.int64), minlength=n + 1)


def shape_name(histogram: Sequence[int] | np.ndarray) -> Shape:
    """The name of a pass-rate histogram: "mirrored J", "J", "U" or "flat".

    Hard is a rate under 1/3, easy one over 2/3. A "mirrored J" holds more at the hard end by at
    least 0.2 of all problems, a "J" at the easy end; else a "U" holds at least 0.8 in both ends
    together; the rest is "flat". "empty" where there is no problem.

    Args:
        histogram: problems solved in 0/n .. n/n of their rollouts; n >= 1.

    Source: POLARIS, Figure 1 and 2 name the shapes. Differs: the bounds are ours.
    """
    counts = np.asarray(histogram, np.float64)
    total = counts.sum()
    if not total:
        return "empty"
    n = len(counts) - 1
    solved = np.arange(n + 1)
    hard = float(counts[3 * solved < n].sum() / total)
    easy = float(counts[3 * solved > 2 * n].sum() / total)
    if hard - easy >= SKEW:
        return "mirrored J"
    if easy - hard >= SKEW:
        return "J"
    return "U" if hard + easy >= ENDS else "flat"


def too_easy(pass_rates: Iterable[float]) -> bool:
    """True where the mean passes 0.7: such a set teaches too little; curate it harder."""
    rates = list(pass_rates)
    return bool(rates) and math.fsum(rates) / len(rates) > TOO_EASY_ABOVE


def _plain(problem_id: Any) -> Any:
    return problem_id.item() if isinstance(problem_id, np.generic) else problem_id
