"""Length of responses and how many of them their budget cut, by whether they were right."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LengthStats:
    """Means over a class of responses; None where the class is empty.

    Attributes:
        mean_length: response tokens.
        mean_length_correct: the same of right responses.
        mean_length_incorrect: the same of wrong ones.
        clip_ratio: share that the budget ended, in [0, 1].
        clip_ratio_correct: the same of right responses.
        clip_ratio_incorrect: the same of wrong ones.
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
        truncated_B: True where the budget ended the response.
        correct_B: True where the reward is 1.

    Raises:
        ValueError: shapes that differ.

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
