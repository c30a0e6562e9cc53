"""Paired differences, their errors, intervals and signs, against independent implementations."""

import numpy as np
import pytest
import scipy.stats

from polaris_jax.ablate.statistics import paired, spread


def test_a_difference_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 9):
        a, b = rng.normal(size=(2, n)).tolist()
        found = paired(
            {("base", i): x for i, x in enumerate(a)}, {("base", i): x for i, x in enumerate(b)}
        )
        assert found is not None
        test = scipy.stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.mean == pytest.approx(np.mean(np.subtract(a, b)))
        assert found.stderr == pytest.approx(scipy.stats.sem(np.subtract(a, b)))
        sign = scipy.stats.binomtest(found.positive, found.positive + found.negative)
        assert found.sign_p == pytest.approx(sign.pvalue)


def test_only_pairs_count_and_base_and_seed_make_one():
    a = {("x", 0): 0.5, ("x", 1): 0.7, ("y", 0): 0.9}
    b = {("x", 0): 0.4, ("y", 0): 0.9, ("y", 1): 0.0}
    found = paired(a, b)
    assert found is not None
    assert (found.n, found.positive, found.negative) == (2, 1, 0)
    assert found.mean == pytest.approx(0.05)
    assert paired(a, {("z", 0): 1.0}) is None


def test_one_run_has_no_error():
    found = paired({("x", 0): 0.5}, {("x", 0): 0.4})
    assert found is not None
    assert (found.stderr, found.low, found.high) == (None, None, None)
    assert spread([0.5]).stderr is None
    with pytest.raises(ValueError, match="at least one run"):
        spread([])


def test_equal_runs_have_no_sign():
    found = paired({("x", 0): 0.5}, {("x", 0): 0.5})
    assert found is not None
    assert (found.positive, found.negative, found.sign_p) == (0, 0, 1.0)
