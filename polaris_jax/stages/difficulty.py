"""How hard each problem is for this model: accuracy table, easy drop, curation, shape."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from polaris_jax.records import correct_rewards, require_fields, require_rewards

Statistic = Literal["stage_mean", "last"]
Preset = Literal["full", "drop_perfect", "aggressive", "range"]
Shape = Literal["unsolved", "solved", "mirrored J", "J", "U", "hump", "flat", "empty"]

DROP_ABOVE = 0.9
AGGRESSIVE_ABOVE = 0.5
TOO_EASY_ABOVE = 0.7  # mean reward above which a set teaches too little
CALIBRATION_WEIGHT = 8  # responses that a calibrated pass rate counts as
SKEW = 0.2  # smallest difference between the two ends' shares that makes a J
ENDS = 0.8  # smallest share of both ends together that makes a U; a uniform histogram has 2/3
ALL_BUT_ALL = 0.9  # share of 0/n (or of n/n) from which a set is unsolved (or solved)


class AccuracyTable:
    """Counts of right responses and of seen responses, for every problem and stage.

    Record each visit once, before rescue and substitution. Calibration values are for display and
    for problems never visited. They are not part of any count.

    Args:
        calibration: problem id -> pass rate in [0, 1].

    Raises:
        ValueError: a pass rate is outside [0, 1].

    Source: POLARIS, "Dynamically drop easy data during training".
    """

    def __init__(self, calibration: Mapping[str, float] | None = None) -> None:
        _check_rates(calibration or {})
        self._calibration: dict[Hashable, float] = {
            _plain(i): float(rate) for i, rate in (calibration or {}).items()
        }
        # stage -> problem id -> (right, seen, right in the newest visit, seen in the newest visit)
        self._visits: dict[int, dict[Hashable, tuple[int, int, int, int]]] = {}

    def __copy__(self) -> AccuracyTable:
        """A copy that later records do not change."""
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
        correct_at: float = 1.0,
    ) -> None:
        """Adds one visit for each group, in batch order. A problem may occur twice (two visits).

        Args:
            problem_ids: P ids.
            reward_PR: graded rewards in [0, 1], before rescue and substitution.
            stage: index of the stage that the step belongs to.
            correct_at: reward from which a response counts as right.

        Raises:
            ValueError: the numbers of ids and groups differ, or a reward is outside [0, 1].
        """
        reward_PR = np.asarray(reward_PR)
        if reward_PR.ndim != 2 or len(problem_ids) != len(reward_PR):
            raise ValueError(
                f"{len(problem_ids)} problem ids for rewards of shape {reward_PR.shape}: "
                "expected one row of rewards each"
            )
        require_rewards(reward_PR, problem_ids)
        visits = self._visits.setdefault(int(stage), {})
        right_P = correct_rewards(reward_PR, correct_at).sum(axis=1).tolist()
        seen = int(reward_PR.shape[1])
        for problem_id, right in zip(map(_plain, problem_ids), right_P, strict=True):
            before_right, before_seen, _, _ = visits.get(problem_id, (0, 0, 0, 0))
            visits[problem_id] = (before_right + right, before_seen + seen, right, seen)

    def add_calibration(self, other: AccuracyTable) -> None:
        """Takes the other table's calibration in place of this one's, where both have a problem."""
        self._calibration = {**self._calibration, **other._calibration}

    def forget(self, stage: int) -> None:
        """Deletes the visits of a stage, if a run starts in it with the table of another run."""
        self._visits.pop(stage, None)

    def drop(self, problem_ids: Collection[str]) -> None:
        """Deletes all that is known of these problems."""
        for table in (self._calibration, *self._visits.values()):
            for problem_id in map(_plain, problem_ids):
                table.pop(problem_id, None)

    def easy_ids(
        self,
        stage: int,
        *,
        drop_above: float = DROP_ABOVE,
        statistic: Statistic = "stage_mean",
    ) -> tuple[str, ...]:
        """Problems to drop at the stage's end, in the order of their first visit in the stage.

        The comparison is strict and in integers: at 0.9, a problem with 36 right of 40 stays and
        one with 37 is dropped. Problems that the stage did not visit stay.

        Args:
            stage: the stage just ended.
            drop_above: accuracy above which a problem is easy; used as the decimal that it prints.
            statistic: "stage_mean" uses all visits of the stage, "last" only the newest visit.

        Raises:
            ValueError: the statistic is unknown.
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

    def learnable(self, problem_ids: Iterable[str]) -> dict[str, float]:
        """The expected p(1 - p) of each problem, p its pass rate now: the variance of its reward.

        The expectation is under Beta(1 + right, 1 + wrong). The counts are those of the newest
        visit, with the mean of the stage's earlier visits as one visit more, as the policy moves.
        Without a visit in training the calibration counts as 8 responses. A problem that was never
        seen has 1/6, the prior's.

        Source: for p(1 - p) as what a group can teach, Foster and Foerster 2025, "Learning to
            Reason at the Frontier of Learnability" (arXiv:2502.12272), section 3.
        """
        newest = {
            problem_id: counts
            for stage in self._visits  # in the order of their first visits
            for problem_id, counts in self._visits[stage].items()
        }
        weights = {}
        for problem_id in problem_ids:
            right = seen = 0.0
            if (key := _plain(problem_id)) in newest:
                all_right, all_seen, right, seen = newest[key]
                if all_seen > seen:
                    right += seen * (all_right - right) / (all_seen - seen)
                    seen *= 2
            elif key in self._calibration:
                right, seen = CALIBRATION_WEIGHT * self._calibration[key], CALIBRATION_WEIGHT
            a, b = 1 + right, 1 + seen - right
            weights[problem_id] = a * b / ((a + b) * (a + b + 1))
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The table's contents in plain JSON types."""
        return {
            "calibration": [[i, rate] for i, rate in self._calibration.items()],
            "visits": [
                [stage, [[i, *counts] for i, counts in visits.items()]]
                for stage, visits in self._visits.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the contents by those of a `state_dict`.

        Raises:
            ValueError: `state` lacks a field.
        """
        require_fields(state, "calibration", "visits")
        self._calibration = {i: float(rate) for i, rate in state["calibration"]}
        self._visits = {
            int(stage): {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}
            for stage, rows in state["visits"]
        }


def decimal_fraction(value: float) -> Fraction:
    """The exact fraction of the decimal that a float prints: 0.9 gives 9/10."""
    return Fraction(str(float(value)))


def curate(
    pass_rates: Mapping[str, float],
    preset: Preset = "drop_perfect",
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> tuple[str, ...]:
    """The ids that stay in the training set, in the order given.

    Args:
        pass_rates: problem id -> share of calibration rollouts that solved it.
        preset: "full" keeps all problems; "drop_perfect" drops those that are always solved;
            "aggressive" drops those solved in more than half of the rollouts (4/8 stays); "range"
            keeps those whose rate lies in [lowest, highest].
        lowest: lowest rate that "range" keeps.
        highest: highest rate that "range" keeps.

    Raises:
        ValueError: the preset is unknown, or a rate is outside [0, 1].

    Source: POLARIS, data difficulty and its ablation (40K, 26K, 19K problems).
    """
    _check_rates(pass_rates)
    if preset == "full":
        return tuple(pass_rates)
    if preset == "drop_perfect":
        return tuple(i for i, rate in pass_rates.items() if rate < 1.0)
    if preset == "aggressive":
        return tuple(i for i, rate in pass_rates.items() if rate <= AGGRESSIVE_ABOVE)
    if preset == "range":
        return tuple(i for i, rate in pass_rates.items() if lowest <= rate <= highest)
    raise ValueError(f"preset={preset!r}: expected full, drop_perfect, aggressive or range")


def _check_rates(pass_rates: Mapping[str, float]) -> None:
    for problem_id, rate in pass_rates.items():
        if not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"problem {problem_id!r}: pass rate {rate} must lie in [0, 1]; give the share of "
                "its responses that are right"
            )


def pass_rate_histogram(pass_rates: Iterable[float], n: int) -> np.ndarray:
    """The number of problems solved in 0/n, 1/n .. n/n of their rollouts, int64 [n + 1].

    A rate between two bins (from a problem visited several times) counts in the nearer bin.

    Raises:
        ValueError: n < 1, or a rate is outside [0, 1].
    """
    rates = np.array(list(pass_rates), np.float64)
    if n < 1:
        raise ValueError(f"n={n}: a pass rate needs at least 1 rollout")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError("every pass rate must lie in [0, 1]")
    return np.bincount(np.floor(rates * n + 0.5).astype(np.int64), minlength=n + 1)


def shape_name(histogram: Sequence[int] | np.ndarray) -> Shape:
    """The name of a pass-rate histogram, which its defining bins must justify.

    "unsolved": at least 90% of the problems were never solved. "solved": at least 90% always.
    Otherwise a rate under 1/3 is hard, a rate over 2/3 is easy, and the rest is middling:

    - "mirrored J": hard problems exceed easy ones by at least 0.2 of all problems, and are at least
      as many as middling ones. "J": the same with hard and easy exchanged.
    - "U": hard and easy problems together are at least 0.8 of all.
    - "hump": middling problems are more than half of all.
    - "flat": all else. "empty": there is no problem.

    Args:
        histogram: problems solved in 0/n .. n/n of their rollouts; n >= 1.

    Source: POLARIS, Figure 1 and 2 name the shapes. Differs: the limits are ours.
    """
    counts = np.asarray(histogram, np.float64)
    total = counts.sum()
    if not total:
        return "empty"
    n = len(counts) - 1
    if counts[0] >= ALL_BUT_ALL * total:
        return "unsolved"
    if counts[n] >= ALL_BUT_ALL * total:
        return "solved"
    solved = np.arange(n + 1)
    hard = float(counts[3 * solved < n].sum() / total)
    easy = float(counts[3 * solved > 2 * n].sum() / total)
    middling = 1.0 - hard - easy
    if hard - easy >= SKEW and hard >= middling:
        return "mirrored J"
    if easy - hard >= SKEW and easy >= middling:
        return "J"
    if hard + easy >= ENDS:
        return "U"
    return "hump" if middling > 0.5 else "flat"


def _plain(problem_id: Any) -> Any:
    return problem_id.item() if isinstance(problem_id, np.generic) else problem_id
