"""What processes of a run must have in common, as told in one line."""

import pytest

from polaris_jax.system.processes import agree, disagreement


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([{"config": "a", "jax": "1"}] * 3, ""),
        (
            [{"config": "a", "jax": "1"}, {"config": "a", "jax": "2"}, {"config": "a", "jax": "1"}],
            "jax differs between the processes of this run: 1 in process 0, 2; 2 in process 1",
        ),
        (
            [{"config": "a"}, {"config": "b"}, {"config": "c"}],
            "config differs between the processes of this run: a in process 0; b in process 1; "
            "c in process 2",
        ),
        ([{"config": "a"}, {}], "config differs"),
    ],
    ids=["same", "one", "all", "absent"],
)
def test_the_first_difference_is_told_with_its_holders(facts, words):
    told = disagreement(facts)
    assert told.startswith(words)
    assert bool(told) == bool(words)


def test_one_process_agrees_with_itself():
    agree({"config": "a"})
