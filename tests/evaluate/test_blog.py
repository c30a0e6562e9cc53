"""The published table, and our scores beside it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from polaris_jax.evaluate.blog import COLUMNS, PUBLISHED, beside_blog, beside_lines, table
from tests.tolerances import CLOSED_FORM_ATOL

PAGE = Path(__file__).resolve().parents[2] / "docs" / "blog_table.json"


def test_the_page_is_what_the_module_prints():
    """`python -m polaris_jax.evaluate.blog > docs/blog_table.json` makes it anew."""
    assert PAGE.read_text() == json.dumps(table(), indent=1) + "\n"


def test_eight_models_on_five_benchmarks_with_the_disputed_baselines_marked():
    models = table()["models"]
    assert len(models) == 8 and all(set(m["scores"]) == set(COLUMNS) for m in models)
    disputed = {m["model"]: m["disputed"] for m in models if m["disputed"]}
    bases = ("DeepSeek-R1-Distill-Qwen-7B", "Qwen3-4B")
    assert disputed == {model: ["minerva", "olympiad"] for model in bases}
    assert PUBLISHED["POLARIS-4B-Preview"] == (81.2, 79.4, 44.0, 69.1, 94.8)


def test_ours_beside_theirs_with_the_error_of_sampling():
    ours_PR = np.array([[1, 1, 1, 0]] * 30, bool)
    found = beside_blog({"aime24": ours_PR, "mine": ours_PR})
    assert list(found) == ["aime24"]
    row = next(r for r in found["aime24"]["published"] if r["model"] == "POLARIS-4B-Preview")
    assert row["difference"] == pytest.approx(0.75 - 0.812, abs=CLOSED_FORM_ATOL)
    error = math.sqrt(30 * 0.25 / 4) / 30  # variance 1/4 a response, 4 of them, 30 problems
    assert found["aime24"]["sampling_error"] == pytest.approx(error, abs=CLOSED_FORM_ATOL)
    half = 1.959964 * math.sqrt(error**2 + error**2 * 4 / 32)
    low, high = row["interval"]
    assert (low, high) == pytest.approx((-0.062 - half, -0.062 + half), abs=1e-9)
    text = "\n".join(beside_lines(found, sets=["aime24", "mine"]))
    assert text.endswith("The blog has no score of mine.")
    assert "aime24: ours 75.0%, avg@4" in text  # all problems agree: no interval over others
    assert "POLARIS-4B-Preview: 81.2%, difference -6.2 (-" in text


def test_both_aime_sets_are_pooled_too():
    rng = np.random.default_rng(0)
    sets = {name: rng.random((30, 4)) < 0.8 for name in ("aime24", "aime25")}
    found = beside_blog(sets)
    assert list(found) == ["aime24", "aime25", "aime24+aime25"]
    pooled = found["aime24+aime25"]
    assert pooled["ours"] == pytest.approx((found["aime24"]["ours"] + found["aime25"]["ours"]) / 2)
    row = next(r for r in pooled["published"] if r["model"] == "POLARIS-4B-Preview")
    assert row["published"] == pytest.approx(0.803)
    low, high = pooled["interval"]
    around = f"(95% over problems like these: {low:.1%} to {high:.1%}), avg@4"
    assert around in "\n".join(beside_lines({"pooled": pooled}))


def test_problems_of_which_none_is_ever_solved_give_no_interval():
    found = beside_blog({"aime24": np.zeros((30, 4), bool)})
    assert {row["interval"] for row in found["aime24"]["published"]} == {None}
    lines = beside_lines(found)
    assert lines[0].startswith("aime24: ours 0.0%, avg@4; published avg@32")
    assert "(" not in lines[1].partition("difference")[2]


def test_one_response_a_problem_gives_no_interval_and_a_baseline_may_be_disputed():
    found = beside_blog({"minerva": np.ones((272, 1))})
    rows = {row["model"]: row for row in found["minerva"]["published"]}
    assert rows["Qwen3-4B"]["interval"] is None and rows["Qwen3-4B"]["disputed"]
    assert not rows["POLARIS-4B-Preview"]["disputed"]
    assert any("disputed" in line for line in beside_lines(found))
