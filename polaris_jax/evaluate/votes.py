"""maj@k: how often the commonest answer of k responses is the right one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from polaris_jax.reward.math.normalize import Unreadable, canonical_key, tokens


def ballots(
    answers: Sequence[str | None], corrects: Sequence[bool]
) -> tuple[int, tuple[int, ...], int] | None:
    """The votes of one problem's responses.

    Every correct response votes for the right answer, however it is written. A wrong one votes for
    its answer as written, spaces and outer punctuation aside; wrong answers that are equal only by
    mathematics count apart, which favours the right one. A response without an answer has no vote.

    Args:
        answers: the answer found in each response; None where there is none.
        corrects: whether each response is correct.

    Returns:
        (votes for the right answer, votes for each wrong one, responses without a vote). None if a
        correct response has no answer, as with a reward function of the user's own: then nothing is
        known of what the others answered.
    """
    wrong: Counter[Hashable] = Counter()
    right = silent = 0
    for answer, correct in zip(answers, corrects, strict=True):
        if correct:
            if answer is None:
                return None
            right += 1
        elif answer is None:
            silent += 1
        else:
            wrong[_key(answer)] += 1
    return right, tuple(sorted(wrong.values(), reverse=True)), silent


def _key(answer: str) -> Hashable:
    try:
        return canonical_key(tokens(answer))
    except Unreadable:
        return " ".join(answer.split())


def chance_of_majority(right: int, wrong: Sequence[int], silent: int, k: int) -> float:
    """The chance that the commonest answer of k of the responses is right; a tie is drawn by lot.

    Exact: it counts the subsets of k responses, without sampling any.

    Args:
        right: votes for the right answer.
        wrong: votes for each wrong answer.
        silent: responses without a vote. If none of the k has a vote, nothing is answered: wrong.
        k: number of responses that are drawn, without replacement.

    Raises:
        ValueError: k is below 1 or above the number of responses.

    Source: self-consistency, Wang et al. 2022 (arXiv:2203.11171), section 2: the majority vote.
    """
    n = right + sum(wrong) + silent
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: maj@k needs 1 <= k <= {n}, the responses of a problem")
    won = 0.0
    for votes in range(1, min(right, k) + 1):
        # ways[drawn][ties]: draws of wrong answers, none above `votes`, `ties` of them at it
        ways: dict[tuple[int, int], int] = {(0, 0): 1}
        for size in wrong:
            grown: dict[tuple[int, int], int] = {}
            for (drawn, ties), count in ways.items():
                for taken in range(min(size, votes, k - votes - drawn) + 1):
                    key = (drawn + taken, ties + (taken == votes))
                    grown[key] = grown.get(key, 0) + count * math.comb(size, taken)
            ways = grown
        for (drawn, ties), count in ways.items():
            rest = k - votes - drawn
            if rest <= silent:
                subsets = math.comb(right, votes) * count * math.comb(silent, rest)
                won += subsets / math.comb(n, k) / (1 + ties)
    return won


def majority_scores(
    answers_PR: Sequence[Sequence[str | None]], correct_PR: np.ndarray, k: int
) -> np.ndarray | None:
    """maj@k of each problem, float64 [P]; None if answers are not known (see `ballots`).

    Args:
        answers_PR: the answer found in each response.
        correct_PR: whether each response is correct.
        k: number of responses that vote.

    Raises:
        ValueError: k is below 1 or above the number of responses.
    """
    scores = []
    for answers, correct_R in zip(answers_PR, correct_PR, strict=True):
        votes = ballots(answers, [bool(c) for c in correct_R])
        if votes is None:
            return None
        scores.append(chance_of_majority(*votes, k))
    return np.array(scores, np.float64)
