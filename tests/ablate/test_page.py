"""What a table's runs show, as JSON and as a page."""

import json

import pytest

from polaris_jax.ablate import Arm, Table
from polaris_jax.ablate.outcome import Outcome
from polaris_jax.ablate.page import as_markdown, summarise

TABLE = Table(
    (Arm("plain"), Arm("rescue", {"batch.rescue": True}), Arm("late")),
    config="c.py",
    bases={"a": {}, "b": {}},
)


def outcome(arm: str, base: str, *scores: float) -> Outcome:
    steps = tuple(enumerate(scores))
    return Outcome(arm, base, 0, before=0.2, scores=steps, sampled_tokens=1000, updates=7)


OUTCOMES = [
    outcome("plain", "a", 0.1, 0.3),
    outcome("plain", "b", 0.3, 0.05),
    outcome("rescue", "a", 0.3, 0.5),
    outcome("rescue", "b", 0.2, 0.4),
]


def test_figures_and_differences():
    summary = summarise(TABLE, OUTCOMES)
    assert (summary["runs"], summary["finished"], summary["against"]) == (6, 4, "plain")
    plain, rescue = summary["arms"]
    assert plain["figure"]["mean"] == pytest.approx((0.2 + 0.175) / 2)
    assert plain["difference"] is None
    assert (plain["collapsed"], rescue["collapsed"]) == (1, 0)  # 0.05 is under half of 0.2
    assert rescue["difference"]["mean"] == pytest.approx((0.2 + 0.125) / 2)
    assert (rescue["difference"]["positive"], rescue["difference"]["n"]) == (2, 2)
    assert rescue["last"]["mean"] == pytest.approx(0.45)
    assert (rescue["sampled_tokens"], rescue["updates"]) == (1000, 7)
    assert json.loads(json.dumps(summary))["outcomes"][0]["scores"] == [[0, 0.1], [1, 0.3]]


def test_the_page_has_a_row_an_arm_and_says_what_is_missing():
    page = as_markdown(
        summarise(TABLE, OUTCOMES), title="rescue.py", failures={"runs/late/a-0": "no memory"}
    )
    assert "4 of 6 runs are finished, from 2 bases." in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `plain` | 2 | 18.8 ± 1.3 |  |  |  | 17.5 ± 12.5 | 1 | 1,000 | 7 |")
    assert "| +16.3 ± 3.7 | -31.4 to +63.9 | 2 of 2 |" in rows[1]
    assert "- `runs/late/a-0`: no memory" in page
