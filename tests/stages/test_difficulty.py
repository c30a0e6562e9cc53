"""Accuracy table, easy drop, curation and shapes."""

import copy
import json

import numpy as np
import pytest

from polaris_jax.stages import (
    AccuracyTable,
    curate,
    pass_rate_histogram,
    shape_name,
)


def visit(right, seen):
    return [[1.0] * right + [0.0] * (seen - right)]


def table_of(*visits, **options):
    """A table of (id, right, seen, stage) visits of 8 or any other number of responses."""
    table = AccuracyTable(**options)
    for problem_id, right, seen, stage in visits:
        table.record([problem_id], visit(right, seen), stage=stage)
    return table


def counts(table, problem_id, stage):
    """(right, seen) of a problem in a stage."""
    rows = dict(table.state_dict()["visits"]).get(stage, [])
    return next(((right, seen) for i, right, seen, *_ in rows if i == problem_id), (0, 0))


def test_drop_is_strict_36_of_40_stays_and_37_goes():
    five = [8, 8, 8, 8]
    table = table_of(
        *(("stays", right, 8, 0) for right in (*five, 4)),
        *(("goes", right, 8, 0) for right in (*five, 5)),
    )
    assert counts(table, "stays", 0) == (36, 40)
    assert counts(table, "goes", 0) == (37, 40)
    assert table.easy_ids(0) == ("goes",)


@pytest.mark.parametrize("limit", ["0.1", "0.3", "0.7", "0.9", "0.95"])
@pytest.mark.parametrize("seen", [180, 2_000])  # 180 * 0.7 is less than 126 in binary
def test_the_limit_is_its_decimal_and_not_the_double_next_to_it(limit, seen):
    border = round(float(limit) * seen)
    for right in (border - 1, border, border + 1):
        easy = table_of(("q", right, seen, 0)).easy_ids(0, drop_above=float(limit))
        assert bool(easy) == (right > border)


def test_limit_1_drops_nothing():
    assert table_of(("q", 8, 8, 0)).easy_ids(0, drop_above=1.0) == ()


def test_mean_over_the_stage_and_last_visit_are_two_statistics():
    table = table_of(("a", 0, 8, 0), ("a", 8, 8, 0), ("b", 8, 8, 0), ("b", 8, 8, 0), ("b", 7, 8, 0))
    assert table.easy_ids(0, statistic="stage_mean") == ("b",)  # 23 of 24
    assert table.easy_ids(0, statistic="last") == ("a",)
    with pytest.raises(ValueError, match="statistic='median'"):
        table.easy_ids(0, statistic="median")


def test_only_the_stage_just_ended_counts():
    table = table_of(("easy before", 8, 8, 0), ("easy now", 0, 8, 0), ("easy now", 8, 8, 1))
    assert table.easy_ids(1) == ("easy now",)
    assert table.easy_ids(0) == ("easy before",)
    assert table.easy_ids(2) == ()


def test_a_forgotten_stage_counts_no_more():
    table = AccuracyTable()
    table.record(["a"], [[1.0] * 4], stage=0)
    table.record(["a"], [[1.0] * 4], stage=1)
    table.forget(1)
    table.forget(2)  # never seen
    assert table.easy_ids(1) == ()
    assert table.easy_ids(0) == ("a",)


def test_calibration_never_counts():
    table = table_of(("visited", 4, 8, 0), calibration={"visited": 1.0, "unvisited": 1.0})
    assert table.easy_ids(0) == ()  # neither the seed of a visited problem nor an unvisited one
    table.record(["visited"], visit(8, 8), stage=1)
    assert table.easy_ids(1) == ("visited",)


def test_a_problem_twice_in_a_batch_has_two_visits_in_order():
    table = AccuracyTable()
    table.record(["q", "r", "q"], [[1, 1], [1, 0], [0, 0]], stage=0)
    assert counts(table, "q", 0) == (2, 4)
    assert table.easy_ids(0, statistic="last") == ()


def test_order_of_easy_ids_is_that_of_first_visits():
    table = table_of(*((i, 8, 8, 0) for i in "cabac"))
    assert table.easy_ids(0) == ("c", "a", "b")


def test_restored_table_counts_a_repeated_step_once():
    table = table_of(("q", 8, 8, 0), calibration={"q": 0.5})
    saved = json.loads(json.dumps(table.state_dict()))
    table.record(["q"], visit(0, 8), stage=0)  # a step that the kill undoes
    for restored in (table, AccuracyTable(), table_of(("x", 1, 8, 3))):
        restored.load_state_dict(saved)
        restored.record(["q"], visit(0, 8), stage=0)
        assert counts(restored, "q", 0) == (8, 16)
        assert restored.state_dict() == table.state_dict()


def test_state_keeps_order_and_last_visits():
    rng = np.random.default_rng(0)
    table = AccuracyTable()
    for stage in (0, 0, 1):
        ids = [f"p{i}" for i in rng.integers(0, 9, 12)]
        table.record(ids, rng.integers(0, 2, (12, 4)).astype(np.float32), stage=stage)
    other = AccuracyTable()
    other.load_state_dict(json.loads(json.dumps(table.state_dict())))
    for stage in (0, 1):
        for statistic in ("stage_mean", "last"):
            options = {"drop_above": 0.4, "statistic": statistic}
            assert other.easy_ids(stage, **options) == table.easy_ids(stage, **options)


def test_a_copy_is_a_snapshot():
    table = table_of(("q", 8, 8, 0))
    before = copy.copy(table)
    table.record(["q"], visit(0, 8), stage=0)
    assert counts(before, "q", 0) == (8, 8)
    assert counts(table, "q", 0) == (8, 16)


def test_records_arrays_of_ids_as_plain_json():
    table = AccuracyTable()
    table.record(np.array(["q"]), np.array([[1.0, 0.0]], np.float32), stage=np.int64(0))
    assert json.loads(json.dumps(table.state_dict()))["visits"] == [[0, [["q", 1, 2, 1, 2]]]]


@pytest.mark.parametrize("value", [float("nan"), -0.1, 2.0])
def test_rates_and_rewards_outside_0_to_1_are_refused(value):
    with pytest.raises(ValueError, match=rf"problem 'a': pass rate {value} must lie in \[0, 1\]"):
        AccuracyTable({"a": value})
    table = AccuracyTable()
    with pytest.raises(ValueError, match=rf"reward_PR\[1, 0\]={value} \(problem 'b'\)"):
        table.record(["a", "b"], [[0.0, 1.0], [value, 1.0]], stage=0)
    assert counts(table, "a", 0) == (0, 0)


@pytest.mark.parametrize("name", ["calibration", "visits"])
def test_a_state_without_a_field_is_refused_and_changes_nothing(name):
    table = table_of(("a", 1, 2, 0))
    before = table.state_dict()
    with pytest.raises(ValueError, match=f"state holds no '{name}'"):
        table.load_state_dict({key: value for key, value in before.items() if key != name})
    assert table.state_dict() == before


def test_ids_and_groups_must_match():
    with pytest.raises(ValueError, match="2 problem ids"):
        AccuracyTable().record(["a", "b"], [[1.0]], stage=0)


RATES = {f"k{k}": k / 8 for k in range(9)}


@pytest.mark.parametrize(
    ("preset", "kept"),
    [
        pytest.param("full", range(9), id="full"),
        pytest.param("drop_perfect", range(8), id="drop-8-of-8"),
        pytest.param("aggressive", range(5), id="keep-up-to-4-of-8"),
    ],
)
def test_presets(preset, kept):
    assert curate(RATES, preset) == tuple(f"k{k}" for k in kept)


def test_curation_defaults_to_drop_perfect_and_refuses_nonsense():
    assert curate(RATES) == curate(RATES, "drop_perfect")
    with pytest.raises(ValueError, match="preset='hard'"):
        curate(RATES, "hard")
    with pytest.raises(ValueError, match="'q': pass rate"):
        curate({"q": float("nan")})


def test_a_range_keeps_both_of_its_ends():
    def kept(lowest, highest):
        return curate(RATES, "range", lowest=lowest, highest=highest)

    assert kept(0.125, 0.75) == tuple(f"k{k}" for k in range(1, 7))
    assert kept(0.13, 0.74) == tuple(f"k{k}" for k in range(2, 6))
    assert kept(0.0, 1.0) == tuple(RATES)
    thirds = {f"k{k}": k / 10 for k in range(11)}  # a rate is the double of its decimal
    assert curate(thirds, "range", lowest=0.3, highest=0.7) == ("k3", "k4", "k5", "k6", "k7")


def test_histogram_counts_every_problem_once():
    assert pass_rate_histogram(RATES.values(), 8).tolist() == [1] * 9
    assert pass_rate_histogram([23 / 24, 1 / 24, 0.5], 8).tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert pass_rate_histogram([], 2).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        pass_rate_histogram([1.5], 8)


@pytest.mark.parametrize(
    ("histogram", "name"),
    [
        pytest.param([40, 18, 10, 7, 6, 5, 5, 5, 4], "mirrored J", id="hard"),
        pytest.param([4, 5, 5, 5, 6, 7, 10, 18, 40], "J", id="easy"),
        pytest.param([35, 5, 3, 2, 2, 2, 3, 8, 40], "U", id="both-ends"),
        pytest.param([10] * 9, "flat", id="uniform"),
        pytest.param([0] * 9, "empty", id="no-problem"),
        pytest.param([6, 2], "mirrored J", id="one-rollout-a-problem"),
        pytest.param([9, 0], "unsolved", id="one-rollout-and-none-solved"),
        pytest.param([178, 8, 3, 1, 1, 1, 0, 0, 0], "unsolved", id="178-of-192"),
        pytest.param([192] + [0] * 8, "unsolved", id="random-weights"),
        pytest.param([85, 10, 3, 1, 1, 0, 0, 0, 0], "mirrored J", id="under-nine-tenths"),
        pytest.param([15, 8, 7, 20, 25, 20, 2, 2, 1], "hump", id="skewed-in-the-middle"),
    ],
)
def test_shapes(histogram, name):
    assert shape_name(histogram) == name
    mirrored = {"J": "mirrored J", "mirrored J": "J", "unsolved": "solved", "solved": "unsolved"}
    assert shape_name(histogram[::-1]) == mirrored.get(name, name)


def test_dropping_the_solved_turns_a_j_into_its_mirror():
    histogram = np.array([25, 12, 8, 6, 5, 5, 6, 8, 60])
    assert shape_name(histogram) == "J"
    histogram[8] = 0
    assert shape_name(histogram) == "mirrored J"


def test_a_response_is_right_from_correct_at_on():
    table = AccuracyTable()
    rewards = np.array([[0.7, 0.69, 1.0, 0.0]], np.float32)
    table.record(["q"], rewards, stage=0, correct_at=0.7)
    table.record(["r"], rewards, stage=0)
    assert (counts(table, "q", 0), counts(table, "r", 0)) == ((2, 4), (1, 4))


def test_the_most_learnable_problem_is_solved_half_of_the_time():
    table = table_of(*((str(right), right, 8, 0) for right in range(9)))
    weights = table.learnable([str(right) for right in range(9)])
    values = list(weights.values())
    assert max(weights, key=weights.__getitem__) == "4"
    assert values == pytest.approx(values[::-1])  # p and 1 - p teach alike
    assert values[:5] == sorted(values[:5])
    # The mean of p (1 - p) under Beta(1 + right, 1 + wrong), by numerical integration.
    p = (np.arange(200_000) + 0.5) / 200_000
    for right, value in enumerate(values):
        density = p**right * (1 - p) ** (8 - right)
        assert value == pytest.approx(float((density * p * (1 - p)).sum() / density.sum()))


def test_a_run_that_begins_from_another_keeps_its_own_calibration():
    inherited = table_of(("seen", 8, 8, 0), calibration={"both": 1.0, "theirs": 1.0})
    inherited.add_calibration(AccuracyTable({"both": 0.5, "mine": 0.0, "seen": 0.5}))
    weights = inherited.learnable(["both", "mine", "theirs", "seen"])
    own = AccuracyTable({"both": 0.5, "mine": 0.0, "theirs": 1.0})
    assert {k: weights[k] for k in ("both", "mine", "theirs")} == own.learnable(
        ["both", "mine", "theirs"]
    )
    assert weights["seen"] == table_of(("seen", 8, 8, 0)).learnable(["seen"])["seen"]


def test_what_is_learnable_follows_the_newest_visits():
    unseen = AccuracyTable().learnable(["new"])["new"]
    assert unseen == pytest.approx(1 / 6)
    calibrated = AccuracyTable({"q": 0.5}).learnable(["q"])["q"]
    assert calibrated == table_of(("q", 4, 8, 0)).learnable(["q"])["q"]
    # A stage's visit takes the place of calibration and of the stage before.
    later = table_of(("q", 4, 8, 0), ("q", 0, 8, 1), calibration={"q": 0.5})
    assert later.learnable(["q"]) == table_of(("q", 0, 8, 0)).learnable(["q"])
    # A run that began in stage 1 from one that was in stage 2.
    begun = table_of(("q", 0, 8, 1), ("q", 8, 8, 2))
    begun.forget(1)
    begun.record(["q"], [[1] * 4 + [0] * 4], stage=1)
    again = AccuracyTable()
    again.load_state_dict(begun.state_dict())
    for table in (begun, again):
        assert table.learnable(["q"]) == table_of(("q", 4, 8, 0)).learnable(["q"])
    # The newest visit weighs as much as all earlier ones together.
    many = table_of(*[("q", 0, 8, 0)] * 9, ("q", 8, 8, 0)).learnable(["q"])["q"]
    assert many == table_of(("q", 0, 8, 0), ("q", 8, 8, 0)).learnable(["q"])["q"]
