"""Sums are right, and no held-out sum is ever trained on."""

import pytest

from polaris_jax.demo import sums


@pytest.mark.parametrize("name", ["three_numbers", "two_digits"])
def test_sides_are_disjoint_and_right(name):
    train = list(getattr(sums, name)())
    held_out = list(getattr(sums, f"{name}_held_out")())
    assert len(held_out) == 64 and 500 < len(train) <= 1024
    ids = [row["id"] for row in (*train, *held_out)]
    assert len(set(ids)) == len(ids)
    for row in (*train, *held_out):
        terms = [int(term) for term in row["id"].split("+")]
        assert row["answer"] == str(sum(terms))
        assert row["problem"] == f"What is {' + '.join(map(str, terms))}?"
    assert list(getattr(sums, name)()) == train
