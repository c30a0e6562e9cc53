"""Intra-batch informative substitution: groups without a signal give way to groups with one."""

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
    """What a substitution did, and what is to be done with the batch.

    Attributes:
        source_P: int64, the group of the given batch that stands at each position of the returned
            one; p itself where nothing was replaced.
        informative: groups of the given batch whose rewards are not all equal.
        replaced: groups that gave way to a donor.
        reused: draws of a donor beyond its first.
        action: "train": update with the returned batch; "resample" or "skip": informative groups
            are scarce and `on_scarce` says so; "none": no group is informative, no update. The
            batch comes back unchanged unless the action is "train".
    """

    source_P: np.ndarray
    informative: int
    replaced: int
    reused: int
    action: Action


def no_substitution(graded: Graded) -> Substitution:
    """The record of a batch in which nothing is replaced."""
    informative = int(graded.informative_P.sum())
    action: Action = "train" if informative else "none"
    return Substitution(np.arange(len(graded)), informative, replaced=0, reused=0, action=action)


def substitute_uninformative(
    graded: Graded,
    *,
    min_informative: float = 1.0 / 3.0,
    on_scarce: OnScarce = "train",
    rng: np.random.Generator,
) -> tuple[Graded, Substitution]:
    """The batch with every uninformative group replaced by a whole informative one.

    A group moves whole: id, prompt, gold, responses, rewards, log-probs. Donors are
    drawn without replacement while they last, then with replacement.

    Args:
        graded: after rescue; not changed.
        min_informative: below this share of informative groups (strictly) they are scarce.
        on_scarce: what to do then. "train" substitutes anyway; "resample" and "skip" return the
            batch as it is and leave the rest to the caller.
        rng: draws, in this order: one `permutation` of the donors (ascending positions), whose
            head fills the uninformative positions in ascending order; then, if donors ran out,
            one `integers(donors, size=missing)` for the rest. No draw when nothing is replaced.

    Raises:
        ValueError: an unknown `on_scarce`, or `min_informative` outside [0, 1].

    Source: POLARIS, "Intra-Batch Informative Substitution". Differs: the released code copies the
        responses and keeps the gold of the group that gave way, and throws scarce batches away.
    """
    if on_scarce not in ("train", "resample", "skip"):
        raise ValueError(f"on_scarce={on_scarce!r}: expected train, resample or skip")
    if not 0 <= min_informative <= 1:
        raise ValueError(
            f"min_informative={min_informative}: a share, must lie in [0, 1]; set "
            "batch.min_informative within it"
        )
    informative_P = graded.informative_P if len(graded) else np.zeros(0, bool)
    donors, poor = np.flatnonzero(informative_P), np.flatnonzero(~informative_P)
    source_P = np.arange(len(graded))
    action: Action = "train"
    if not len(donors):
        action = "none"
    elif len(donors) / len(graded) < min_informative:
        action = on_scarce
    if action != "train" or not len(poor):
        return graded, Substitution(source_P, len(donors), 0, 0, action)

    drawn = rng.permutation(donors)[: len(poor)]
    missing = len(poor) - len(drawn)
    if missing:
        again = donors[rng.integers(len(donors), size=missing)]
        drawn = np.concatenate([drawn, again])
    source_P[poor] = drawn
    counts = Substitution(source_P, len(donors), len(poor), missing, action)
    return select_groups(graded, source_P), counts


def fresh_rows(graded: Graded, substitution: Substitution | None = None) -> np.ndarray:
    """True [P, R] for rows that the present policy sampled at this step and that are no copy.

    Args:
        graded: the batch that is packed, after rescue and substitution.
        substitution: what made it; None when there was none.
    """
    fresh_PR = ~np.asarray(graded.rescued_PR, bool)
    if substitution is not None:
        own_P = substitution.source_P == np.arange(len(graded))
        fresh_PR = fresh_PR & own_P[:, None]
    return fresh_PR
