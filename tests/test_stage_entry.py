"""What a stage's entry drops."""

from types import SimpleNamespace
from typing import Any

import pytest

from polaris_jax.config import ConfigError, build_config
from polaris_jax.stage_entry import _temperature, enter_stage
from polaris_jax.stages.controller import initial_state
from polaris_jax.stages.difficulty import AccuracyTable

CONFIG = build_config({"stages": [{"steps": 1}, {"steps": 1}]})


def entered(problem_ids: str, *, dropped: str, easy: str, config=CONFIG):
    """(StageState, ids that the loader was told to drop) of stage 1."""
    table, told = AccuracyTable(), []
    table.record(list(easy), [[1.0, 1.0]] * len(easy), stage=0)
    run: Any = SimpleNamespace(
        config=config,
        problems=[SimpleNamespace(id=i) for i in problem_ids],
        accuracy=table,
        carried=(),
        step=1,
        stage_records=[],
        rope_scaling=lambda _: None,
        updater=SimpleNamespace(reset_optimizer=lambda state: state),
        make_loader=lambda: SimpleNamespace(drop=told.extend),
        make_sampler=lambda *_: None,
        count=lambda **_: None,
        files=SimpleNamespace(write_stages=lambda _: None),
        progress=SimpleNamespace(line=lambda _: None),
    )
    left = initial_state(config.stages, dropped_ids=dropped)
    state: Any = {}
    stage, *_ = enter_stage(run, 1, state, left=left)
    return stage, told


def test_easy_problems_join_those_that_are_out():
    stage, told = entered("abcdef", dropped="b", easy="cab")
    assert list(stage.dropped_ids) == told == ["b", "c", "a"]


def test_problems_that_only_another_run_had_are_not_dropped():
    stage, told = entered("abc", dropped="xb", easy="yazx")
    assert list(stage.dropped_ids) == told == ["b", "a"]


def test_the_last_problems_stay():
    stage, told = entered("ab", dropped="", easy="abx")
    assert told == []
    assert stage.decisions[0]["value"] == 0


@pytest.mark.parametrize(
    ("statistic", "reason"),
    [
        ("stage_mean", "mean accuracy of the stage's visits above 0.9"),
        ("last", "accuracy of the stage's newest visit above 0.9"),
    ],
)
def test_the_decision_names_the_statistic_that_it_rests_on(statistic, reason):
    config = build_config({"stages": [{"steps": 1, "drop_statistic": statistic}, {"steps": 1}]})
    stage, _ = entered("ab", dropped="", easy="a", config=config)
    assert stage.decisions[0]["reason"] == reason


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"initial_temperature": null}'])
def test_a_damaged_probe_is_named_with_the_remedy(text, tmp_path):
    (tmp_path / "probe.json").write_text(text)
    config = build_config({"stages": [{"temperature_rule": "probe"}]})
    run: Any = SimpleNamespace(config=config, workdir=tmp_path)
    with pytest.raises(
        ConfigError, match=r"probe\.json: not what `polaris probe` leaves"
    ) as caught:
        _temperature(run, 0, {}, left=None, sampler=None, stop=None)
    assert "stages[0].temperature_rule=fixed" in str(caught.value)
