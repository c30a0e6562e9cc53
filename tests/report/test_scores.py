"""A gain is told where two scores differ by their weights alone."""

import pytest

from polaris_jax.report.scores import caption, gain_text, not_comparable, pair_names, score_name
from tests.support.report.synthetic import evaluation

BEFORE = evaluation(0.36) | {"checkpoint": "base"}
AFTER = evaluation(0.68)


def test_equal_settings_give_a_gain():
    assert pair_names(BEFORE, AFTER) == ("before RL", "after RL")
    assert gain_text(BEFORE, AFTER) == "+32.0 ± 2.7 points"
    assert "same problems" in caption(BEFORE, AFTER)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperature": 1.3}, "temperature 1 and 1.3"),
        ({"k": 4}, "n 8 and 4"),
        ({"max_response_tokens": 48}, "budget 96 and 48"),
        ({"problems": 30}, "problems 256 and 30"),
        ({"top_p": 0.9}, "top_p None and 0.9"),
        ({"rope": "on", "yarn_factor": 2.0}, "YaRN off and x 2"),
        ({"checkpoint": "base"}, "both of the base model"),
        ({"temperature": 1.3, "k": 4}, "temperature 1 and 1.3, n 8 and 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_other_settings_do_not(change, reason):
    after = AFTER | change
    assert not_comparable(BEFORE, after) == reason
    assert gain_text(BEFORE, after) == f"not comparable: {reason}"
    assert "same problems" not in caption(BEFORE, after)


def test_a_budget_curve_with_yarn_beside_it_changes_no_score():
    assert not_comparable(BEFORE | {"rope": "off"}, AFTER | {"rope": "both"}) == ""


def test_two_scores_of_one_checkpoint():
    assert not_comparable(AFTER, AFTER) == "both of one checkpoint"
    assert pair_names(AFTER, AFTER) == ("after RL, tag before", "after RL")


def test_names_come_from_the_weights():
    assert score_name(AFTER | {"checkpoint": "/runs/4b/checkpoints/120"}) == (
        "checkpoint checkpoints/120"
    )
    assert pair_names(None, BEFORE)[1] == "base model"
    assert caption(None, BEFORE) == "Held-out problems."
