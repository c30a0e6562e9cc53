"""Two models' pass rates: counted by hand."""

import pytest

from polaris_jax.stages.comparison import PassRates, compare_pass_rates, rollouts_of

SMALL = PassRates({"a": 0.0, "b": 0.25, "c": 1.0, "d": 0.0, "only small": 1.0}, 4)
LARGE = PassRates({"d": 0.5, "c": 1.0, "b": 0.875, "a": 0.0, "x": 0.0, "y": 0.125}, 8)


def test_who_solves_what_is_counted_on_common_problems():
    found = compare_pass_rates(SMALL, LARGE)
    assert (found["common"], found["only_in"]) == (4, [1, 2])
    assert found["solved"] == {"both": 2, "first_only": 0, "second_only": 1, "neither": 1}
    assert found["always"] == {"both": 1, "first_only": 0, "second_only": 0, "neither": 3}
    assert found["means"] == pytest.approx([1.25 / 4, 2.375 / 4])
    assert found["difference"] == pytest.approx(1.125 / 4)
    differences = [0.0, 0.625, 0.0, 0.5]
    mean = sum(differences) / 4
    variance = sum((d - mean) ** 2 for d in differences) / 3
    assert found["difference_stderr"] == pytest.approx((variance / 4) ** 0.5)


def test_the_joint_table_is_in_the_fewer_rollouts_and_counts_each_problem_once():
    found = compare_pass_rates(SMALL, LARGE)
    assert found["n"] == 4
    # [small][large]: a (0, 0), b (1, 7/8 -> 4/4), c (4, 4), d (0, 2)
    expected = [[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    assert found["joint"] == expected


def test_each_model_keeps_its_own_histogram_over_all_its_problems():
    small, large = compare_pass_rates(SMALL, LARGE)["models"]
    assert (small["n"], small["histogram"]) == (4, [2, 1, 0, 0, 2])
    assert (large["n"], large["histogram"]) == (8, [2, 1, 0, 0, 1, 0, 0, 1, 1])
    assert large["problems"] == 6


def test_the_order_of_models_turns_the_result_around():
    there, back = compare_pass_rates(SMALL, LARGE), compare_pass_rates(LARGE, SMALL)
    assert back["difference"] == -there["difference"]
    assert back["solved"]["first_only"] == there["solved"]["second_only"]
    assert [list(row) for row in zip(*there["joint"], strict=True)] == back["joint"]


def test_nothing_in_common_compares_nothing():
    found = compare_pass_rates(SMALL, PassRates({"z": 0.5}, 8))
    assert (found["common"], found["difference"], found["means"]) == (0, None, [None, None])
    assert sum(found["solved"].values()) == 0


@pytest.mark.parametrize(
    ("rates", "n"),
    [
        ([0.0, 1.0], 1),
        ([0.25, 0.5], 4),
        ([0.125], 8),
        ([1 / 3, 0.5], 6),
        ([0.123456], 8),  # of no number up to 64: the usual one
    ],
)
def test_rollouts_are_guessed_from_rates(rates, n):
    assert rollouts_of(rates) == n
