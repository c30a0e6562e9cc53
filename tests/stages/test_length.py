"""Length statistics by hand."""

import dataclasses

import numpy as np
import pytest

from polaris_jax.stages import length_stats


def test_means_and_clip_ratios_by_class():
    stats = length_stats(
        np.array([10, 20, 30, 60]),
        np.array([False, True, False, True]),
        np.array([True, True, False, False]),
    )
    assert dataclasses.astuple(stats) == (30.0, 15.0, 45.0, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("correct", [True, False])
def test_an_empty_class_has_no_mean(correct):
    stats = length_stats(np.array([4]), np.array([True]), np.array([correct]))
    empty = "incorrect" if correct else "correct"
    assert getattr(stats, f"mean_length_{empty}") is None
    assert getattr(stats, f"clip_ratio_{empty}") is None
    assert (stats.mean_length, stats.clip_ratio) == (4.0, 1.0)


def test_no_response_has_no_statistics():
    none = np.zeros(0)
    assert set(dataclasses.astuple(length_stats(none, none, none))) == {None}


def test_one_value_a_response():
    with pytest.raises(ValueError, match="differ"):
        length_stats(np.zeros(2), np.zeros(2), np.zeros(3))
