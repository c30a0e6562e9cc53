"""Length of responses and share of truncated ones, over all, right and wrong responses."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LengthStats:
    """Means over all, right and wrong responses; None if there are no such responses.

    Attributes:
        mean_length: mean tokens of all responses.
        mean_length_correct: mean tokens of right responses.
        mean_length_incorrect: mean tokens of wrong responses.
        clip_ratio: share of all responses that the budget ended, in [0, 1].
        clip_ratio_correct: share of right responses that the budget ended, in [0, 1].
        clip_ratio_incorrect: share of wrong responses that the budget ended, in [0, 1].
    """

    mean_length: float | None
    mean_length_correct: float | None
    mean_length_incorrect: float | None
    clip_ratio: float | None
    clip_ratio_correct: float | None
    clip_ratio_incorrect: float | None


def length_stats(
    tokens_B: np.ndarray, truncated_B: np.ndarray, correct_B: np.ndarray
) -> LengthStats:
    """Length statistics of B responses.

    Args:
        tokens_B: response tokens, the stop token included.
        truncated_B: True if the budget ended the response.
        correct_B: True if the reward is 1.

    Raises:
        ValueError: the shapes differ.

    Source: POLARIS, "Inference-Time Length Scaling"; its readings are clip ratios by stage.
    """
    tokens_B = np.asarray(tokens_B, np.float64)
    truncated_B, correct_B = np.asarray(truncated_B, bool), np.asarray(correct_B, bool)
    if not tokens_B.shape == truncated_B.shape == correct_B.shape:
        raise ValueError(
            f"shapes {tokens_B.shape}, {truncated_B.shape} and {correct_B.shape} differ: "
            "give one value a response"
        )
    classes = (np.ones_like(correct_B), correct_B, ~correct_B)
    lengths = [_mean(tokens_B[of]) for of in classes]
    clipped = [_mean(truncated_B[of]) for of in classes]
    return LengthStats(*lengths, *clipped)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
