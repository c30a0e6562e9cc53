"""What a table's runs show, as JSON and as a page."""

import json

import pytest
from etils import epath

from polaris_jax.ablate import Arm, Table, Tuning
from polaris_jax.ablate.figure import ablation_figure
from polaris_jax.ablate.outcome import Outcome, chosen_value
from polaris_jax.ablate.page import as_markdown, summarise

TABLE = Table(
    (Arm("plain"), Arm("rescue", {"batch.rescue": True}), Arm("late")),
    config="c.py",
    bases={"a": {}, "b": {}},
)


def outcome(arm: str, base: str, *scores: float) -> Outcome:
    steps = tuple(enumerate(scores))
    return Outcome(arm, base, 0, 0.2, steps, sampled_tokens=1000, updates=7, total_tokens=1200)


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
    assert plain["tuned"] is None
    assert (rescue["sampled_tokens"], rescue["updates"]) == (1000, 7)
    assert json.loads(json.dumps(summary))["outcomes"][0]["scores"] == [[0, 0.1], [1, 0.3]]


def test_the_page_has_a_row_an_arm_and_says_what_is_missing():
    page = as_markdown(
        summarise(TABLE, OUTCOMES), title="rescue.py", failures={"runs/late/a-0": "no\n memory"}
    )
    assert "4 of 6 runs are finished, from 2 bases." in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `plain` | 2 | 18.8 ± 1.3 |  |  |  | 17.5 ± 12.5 | 1 | 1,200 | 7 |")
    assert "| +16.3 ± 3.7 | -31.4 to +63.9 | 2 of 2 |" in rows[1]
    assert "- `runs/late/a-0`: no memory" in page


TUNED = Table(
    (Arm("plain"), Arm("late", tuned_as="plain")),
    config="c.py",
    bases={"a": {}},
    tuning=Tuning("optimizer.learning_rate", (1e-4, 3e-4, 1e-3), {"t": {}}, seeds=(0, 1)),
)


def tried(value: float, seed: int, score: float) -> Outcome:
    return Outcome("plain", "t", seed, 0.2, ((0, score),), 10, updates=1, value=value)


def test_an_arm_takes_the_value_with_the_best_mean_and_the_page_shows_all():
    outcomes = [
        *(tried(1e-4, seed, 0.1) for seed in (0, 1)),
        *(tried(3e-4, seed, score) for seed, score in enumerate((0.1, 0.6))),
        *(tried(1e-3, seed, 0.3) for seed in (0, 1)),
    ]
    assert chosen_value(TUNED, "plain", outcomes) == chosen_value(TUNED, "late", outcomes) == 3e-4
    counted = [outcome("plain", "a", 0.2), outcome("late", "a", 0.4)]
    summary = summarise(TUNED, [*outcomes, *counted])
    assert summary["finished"] == 2  # what chooses a value is not counted
    plain, late = summary["arms"]
    assert plain["figure"]["n"] == 1 and late["difference"]["mean"] == pytest.approx(0.2)
    assert plain["tuned"]["value"] == 3e-4 and not plain["tuned"]["at_edge"]
    page = as_markdown(summary, title="t.py", failures={})
    assert "`optimizer.learning_rate` of each arm is the best of 0.0001, 0.0003, 0.001" in page
    assert "| `plain` | 10.0 ± 0.0 | 35.0 ± 25.0 | 30.0 ± 0.0 | 0.0003 |" in page
    edge = summarise(TUNED, [tried(v, 0, v) for v in (1e-4, 3e-4, 1e-3)] + counted)
    assert edge["arms"][0]["tuned"]["at_edge"]
    assert "0.001 (edge of the grid) |" in as_markdown(edge, title="t.py", failures={})


@pytest.mark.parametrize(
    ("values", "chosen", "at_edge"),
    [
        ((1e-3, 1e-4, 3e-4), 1e-3, True),
        ((1e-3, 1e-4, 3e-4), 1e-4, True),
        ((1e-3, 1e-4, 3e-4), 3e-4, False),
        (("adamw", "lion"), "lion", False),
        ((False, True), True, False),
        ((1e-3,), 1e-3, False),
    ],
    ids=["greatest", "least", "between", "words", "switch", "one"],
)
def test_the_edge_of_a_grid_is_its_least_and_its_greatest_number(values, chosen, at_edge):
    tuning = Tuning("optimizer.learning_rate", values, {"t": {}})
    table = Table((Arm("plain"),), config="c.py", bases={"a": {}}, tuning=tuning)
    outcomes = [tried(value, 0, 0.5 if value == chosen else 0.1) for value in values]
    (plain,) = summarise(table, [*outcomes, outcome("plain", "a", 0.2)])["arms"]
    assert (plain["tuned"]["value"], plain["tuned"]["at_edge"]) == (chosen, at_edge)


def test_a_value_without_a_run_is_no_choice():
    with pytest.raises(ValueError, match=r"arm 'plain': no tuning run with 0.0003 is finished"):
        chosen_value(TUNED, "plain", [tried(1e-4, 0, 0.1)])


def test_scores_of_bases_are_shown_without_what_training_takes(tmp_path):
    scored = [
        Outcome(arm, base, 0, 0.2, ((0, score),), 0, updates=0, after=score)
        for arm, base, score in [("plain", "a", 0.1), ("plain", "b", 0.2), ("rescue", "a", 0.3)]
    ]
    summary = summarise(TABLE, scored)
    page = as_markdown(summary, title="yarn.py", failures={})
    assert "| arm | runs | figure | difference | 95% | above 0 |\n" in page
    assert "| `rescue` | 1 | 30.0 | +20.0 |  | 1 of 1 |\n" in page
    assert "Tokens" not in page
    path = epath.Path(tmp_path / "a.png")
    ablation_figure(summary, path, title="yarn.py")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_figure_is_drawn(tmp_path):
    path = epath.Path(tmp_path / "a.png")
    ablation_figure(summarise(TABLE, OUTCOMES), path, title="rescue.py")
    assert path.read_bytes().startswith(b"\x89PNG")
    alone = summarise(TABLE, OUTCOMES[:1])  # one arm, one run: no difference, no error
    ablation_figure(alone, path, title="rescue.py")
