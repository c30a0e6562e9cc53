"""Several evaluations in one table: paired by problem, with the settings that must agree."""

from dataclasses import replace

import numpy as np
import pytest

from polaris_jax.config import EvaluateSection
from polaris_jax.evaluate.comparison import Evaluated, compared, comparison_lines
from polaris_jax.evaluate.intervals import paired_difference
from polaris_jax.evaluate.scoring import score_rows
from tests.tolerances import CLOSED_FORM_ATOL

SECTION = EvaluateSection(n=4, length_edges=(4,), budgets=(4, 8))


def rows_of(correct_PR, *, names=None, sets=None):
    """Rows of responses.jsonl with these grades."""
    rows = []
    for p, correct_R in enumerate(correct_PR):
        for r, correct in enumerate(correct_R):
            row = {
                "problem_id": names[p] if names else f"p{p:02d}",
                "sample": r,
                "reward": float(correct),
                "reward_at_4": 0.0,
                "answer": "1" if correct else str(2 + r),
                "tokens": 3 + (p + r) % 6,
                "finish_reason": "stop" if r else "length",
                "well_formed": True,
                "text": r"</think> \boxed{1}" if correct else "none",
            }
            rows.append(row | ({"pooled_set": sets[p]} if sets else {}))
    return rows


def evaluated(name, correct_PR, **options):
    rows = rows_of(correct_PR, **options)
    figures = score_rows(rows, SECTION, correct_at=1.0, max_response_tokens=8)
    return Evaluated(name, f"{name}.jsonl", figures, rows)


@pytest.fixture
def grades():
    rng = np.random.default_rng(0)
    rate_P = rng.random(20)
    return [rng.random((20, 4)) < np.clip(rate_P + gain, 0, 1)[:, None] for gain in (0.0, 0.2, 0.3)]


def test_each_is_compared_with_the_first_and_with_the_one_before(grades):
    names = ("base", "trained", "YaRN")
    found = compared([evaluated(n, g) for n, g in zip(names, grades, strict=True)])
    pairs = [(d["first"], d["second"]) for d in found["differences"]]
    assert pairs == [("base", "trained"), ("base", "YaRN"), ("trained", "YaRN")]
    expected = paired_difference(grades[0].mean(axis=1), grades[1].mean(axis=1))
    first = found["differences"][0]["avg@k"]
    assert first["value"] == pytest.approx(expected.value, abs=CLOSED_FORM_ATOL)
    assert first["interval"] == expected.interval and first["problems"] == 20
    assert first["stderr"] < first["unpaired_stderr"]
    assert found["differences"][0]["pass@k"]["1"]["value"] == pytest.approx(expected.value)
    assert found["differences"][0]["maj@k"]["1"]["value"] == pytest.approx(expected.value)
    gains = found["differences"][0]["by_difficulty"]
    total = sum(g["problems"] * g["gain"] for g in gains) / 20
    assert total == pytest.approx(expected.value, abs=CLOSED_FORM_ATOL)
    assert found["warnings"] == []
    text = "\n".join(comparison_lines(found))
    for words in ("| trained minus base |", "| base | 4 |", "error if unpaired", "8/8"):
        assert words in text


def test_only_common_problems_are_paired_and_it_is_said(grades):
    names = [f"p{p:02d}" for p in range(15, 35)]
    one, two = evaluated("a", grades[0]), evaluated("b", grades[1], names=names)
    found = compared([one, two])
    assert found["differences"][0]["avg@k"]["problems"] == 5
    assert found["warnings"] == [
        "the problems differ (a 20, b 20; 5 in common): each difference is of the problems that "
        "both have"
    ]
    apart = evaluated("c", grades[1], names=[f"q{p}" for p in range(20)])
    none = compared([one, apart])
    assert none["differences"][0]["avg@k"] is None
    assert "nothing can be paired" in comparison_lines(none)[-1]


def test_settings_that_differ_are_named(grades):
    one, two = (evaluated(name, grades[0]) for name in "ab")
    hotter = Evaluated("b", "b", {**two.figures, "temperature": 1.4}, two.rows)
    (warning,) = compared([one, hotter])["warnings"]
    assert warning.startswith("temperature differs (a 0.6, b 1.4): ")


def test_settings_that_the_scores_do_not_name_are_named_too(grades):
    """Prompt and reward are in responses.identity.json; YaRN's numbers count under YaRN alone."""
    one, two = (evaluated(name, grades[0]) for name in "ab")
    plain = {"yarn": False, "rope.yarn.factor": 1.5, "data.prompt_suffix": " Think."}
    asked = {
        "data.prompt_suffix": {"data.prompt_suffix": " Answer."},
        "data.system_prompt": {"data.system_prompt": "You are " + 60 * "very " + "good."},
        "reward.function": {"reward.function": "mine.py:score"},
    }
    for name, change in asked.items():
        found = compared(
            [replace(one, settings=plain), replace(two, settings={**plain, **change})]
        )["warnings"]
        assert [text.partition(" differs")[0] for text in found] == [name]
        assert len(found[0]) < 200
    other = plain | {"rope.yarn.factor": 2.0}
    assert compared([replace(one, settings=plain), replace(two, settings=other)])["warnings"] == []
    scaled = [replace(x, settings={**s, "yarn": True}) for x, s in ((one, plain), (two, other))]
    (warning,) = compared(scaled)["warnings"]
    assert warning.startswith("rope.yarn.factor differs (a 1.5; b 2.0): ")
    assert compared([replace(one, settings=plain), two])["warnings"] == []  # not known of b


def test_equal_ids_of_other_problems_are_said(grades):
    ids = [f"p{p:02d}" for p in range(20)]
    questions = {i: (f"question {i}", "1") for i in ids}
    one, two = (replace(evaluated(n, grades[0]), questions=questions) for n in "ab")
    assert compared([one, two])["warnings"] == []
    two = replace(
        two, questions=questions | {"p03": ("another", "1"), "p04": ("question p04", "2")}
    )
    (warning,) = compared([one, two])["warnings"]
    assert warning.startswith("2 of 20 common ids, such as 'p03', have another question or gold")


def test_responses_of_another_call_than_their_scores_are_said(grades):
    one, two = (evaluated(n, g) for n, g in zip("ab", grades[:2], strict=True))
    (warning,) = compared([one, replace(two, rows=two.rows[:40])])["warnings"][:1]
    assert "b: its eval.json says" in warning and "of 10: they are of two calls" in warning
    stale = replace(two, figures=two.figures | {"avg@k": 0.123})
    (warning,) = compared([one, stale])["warnings"]
    assert warning.startswith("b: its eval.json says 12.3% of 20 problems, and its responses")


def test_pooled_sets_have_scores_and_differences_of_their_own(grades):
    sets = ["aime24"] * 8 + ["aime25"] * 12
    one, two = (evaluated(n, g, sets=sets) for n, g in zip("ab", grades[:2], strict=True))
    assert one.figures["sets"]["aime24"]["avg@k"] == pytest.approx(grades[0][:8].mean())
    assert one.figures["sets"]["aime25"]["problems"] == 12
    assert one.figures["avg@k"] == pytest.approx(grades[0].mean())
    found = compared([one, two])["differences"][0]["sets"]
    assert found["aime25"]["value"] == pytest.approx(grades[1][8:].mean() - grades[0][8:].mean())
    assert "By set:" in comparison_lines(compared([one, two]))
