"""Intra-batch informative substitution: informative groups replace uninformative ones."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from polaris_jax.batch.groups import select_groups
from polaris_jax.records import Graded

OnScarce = Literal["train", "resample", "skip"]
Action = Literal["train", "resample", "skip", "none"]


@dataclasses.dataclass(frozen=True)
class Substitution:
    """What a substitution did, and what the caller must do with the batch.

    Attributes:
        source_P: int64, for each position in the returned batch, the index of its group in the
            given batch; p itself if the group was not replaced.
        informative: number of groups in the given batch whose rewards are not all equal.
        replaced: number of groups replaced by a donor.
        reused: number of draws of a donor beyond its first.
        action: "train": update with the returned batch; "resample" or "skip": informative groups
            are scarce and `on_scarce` has this value; "none": no group is informative, no update.
            The returned batch is the given one unless the action is "train".
    """

    source_P: np.ndarray
    informative: int
    replaced: int
    reused: int
    action: Action

    def donors(self, place_P: np.ndarray) -> dict[int, int]:
        """{place of a replaced group: place of its donor}.

        Args:
            place_P: place of each group of the given batch, int64, in whatever the caller counts.
        """
        replaced = np.flatnonzero(self.source_P != np.arange(len(self.source_P)))
        return {int(place_P[p]): int(place_P[self.source_P[p]]) for p in replaced}


def no_substitution(graded: Graded, *, action: Action = "train") -> Substitution:
    """The `Substitution` of a batch in which no group is replaced."""
    informative = int(graded.informative_P.sum())
    action = action if informative else "none"
    return Substitution(np.arange(len(graded)), informative, replaced=0, reused=0, action=action)


def substitute_uninformative(
    graded: Graded,
    *,
    min_informative: float = 1.0 / 3.0,
    on_scarce: OnScarce = "train",
    max_copies: int = 0,
    rng: np.random.Generator,
) -> tuple[Graded, Substitution]:
    """Replaces every uninformative group by a copy of an informative one, the donor.

    All fields of a donor are copied: id, prompt, gold, responses, rewards, log-probs. Donors are
    drawn without replacement until all are used, then with replacement. With `max_copies` the
    last uninformative groups may stay, whose advantages are 0.

    Args:
        graded: the batch after rescue; not changed.
        min_informative: share of informative groups below which (strictly) they are scarce.
        on_scarce: what to do if they are scarce. "train" substitutes anyway; "resample" and "skip"
            return the given batch and leave the decision to the caller.
        max_copies: largest number of copies of one donor; 0: no limit.
        rng: draws one `permutation` of the donors (ascending positions), whose head fills the
            uninformative positions in ascending order. If there are too few donors, it then draws
            one `integers(donors, size=missing)`, or with a limit one `permutation` of the copies
            that it leaves. Nothing is drawn if no group is replaced.

    Raises:
        ValueError: `on_scarce` is unknown, `min_informative` is outside [0, 1], or `max_copies` is
            below 0.

    Source: POLARIS, "Intra-Batch Informative Substitution". Differs: the released code copies the
        responses but keeps the replaced group's gold, and discards scarce batches.
    """
    if on_scarce not in ("train", "resample", "skip"):
        raise ValueError(f"on_scarce={on_scarce!r}: expected train, resample or skip")
    if not 0 <= min_informative <= 1:
        raise ValueError(
            f"min_informative={min_informative}: a share, must lie in [0, 1]; set "
            "batch.min_informative within it"
        )
    if max_copies < 0:
        raise ValueError(f"max_copies={max_copies}: must not be negative; 0 is no limit")
    informative_P = graded.informative_P if len(graded) else np.zeros(0, bool)
    donors, poor = np.flatnonzero(informative_P), np.flatnonzero(~informative_P)
    source_P = np.arange(len(graded))
    action: Action = "train"
    if not len(donors):
        action = "none"
    elif is_scarce(graded, min_informative):
        action = on_scarce
    if action != "train" or not len(poor):
        return graded, Substitution(source_P, len(donors), 0, 0, action)

    drawn = rng.permutation(donors)[: len(poor)]
    missing = len(poor) - len(drawn)
    if missing and max_copies:
        again = rng.permutation(np.repeat(donors, max_copies - 1))[:missing]
    else:
        again = donors[rng.integers(len(donors), size=missing)] if missing else donors[:0]
    drawn = np.concatenate([drawn, again])
    source_P[poor[: len(drawn)]] = drawn
    counts = Substitution(source_P, len(donors), len(drawn), len(again), action)
    return select_groups(graded, source_P), counts


def is_scarce(graded: Graded, min_informative: float) -> bool:
    """True if the share of informative groups is below `min_informative`, or there is none."""
    informative = int(graded.informative_P.sum()) if len(graded) else 0
    return informative == 0 or informative / len(graded) < min_informative


def fresh_rows(graded: Graded, substitution: Substitution | None = None) -> np.ndarray:
    """True for rows that the present policy sampled at this step and that are no copy, [P, R].

    Args:
        graded: the batch to pack, after rescue and substitution.
        substitution: the substitution that gave the batch; None if there was none.
    """
    fresh_PR = ~np.asarray(graded.rescued_PR, bool)
    if substitution is not None:
        own_P = substitution.source_P == np.arange(len(graded))
        fresh_PR = fresh_PR & own_P[:, None]
    return fresh_PR
