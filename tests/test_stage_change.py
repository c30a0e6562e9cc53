"""What a stage's entry drops, and which temperature it takes."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from polaris_jax import stage_change as stage_entry
from polaris_jax.config import ConfigError, build_config
from polaris_jax.explore import Candidate
from polaris_jax.records import StageState
from polaris_jax.stage_change import _temperature, enter_stage
from polaris_jax.stages.controller import initial_state
from polaris_jax.stages.difficulty import AccuracyTable

CONFIG = build_config({"stages": [{"steps": 1}, {"steps": 1}]})
MATCHED = build_config(
    {"stages": [{"steps": 1}, {"steps": 1, "temperature_rule": "match_diversity"}]}
)


class Sampler:
    """Counts what was made of it and let go."""

    made = released = 0

    def release(self) -> None:
        self.released += 1


def fake_run(problem_ids: str, config: Any) -> Any:
    """A run without model and files; `told` are the ids that its loader drops."""
    told: list[str] = []
    lines: list[str] = []
    samplers: list[Sampler] = []
    return SimpleNamespace(
        config=config,
        problems=[SimpleNamespace(id=i) for i in problem_ids],
        accuracy=AccuracyTable(),
        carried=(),
        step=1,
        stage_records=[],
        rope_scaling=lambda _: None,
        updater=SimpleNamespace(reset_optimizer=lambda state: state),
        make_loader=lambda: SimpleNamespace(drop=told.extend),
        make_sampler=lambda *_: samplers.append(Sampler()) or samplers[-1],
        count=lambda **_: None,
        files=SimpleNamespace(write_stages=lambda _: None),
        progress=SimpleNamespace(line=lines.append),
        told=told,
        lines=lines,
        samplers=samplers,
    )


def ended(config=CONFIG, *, dropped: str = "", **fields: Any) -> StageState:
    """Stage 0, whose steps are done."""
    state = initial_state(config.stages, dropped_ids=dropped)
    return dataclasses.replace(state, **({"steps_done": 1} | fields))


def entered(problem_ids: str, *, dropped: str, easy: str, config=CONFIG):
    """(StageState, ids that the loader was told to drop) of stage 1."""
    run = fake_run(problem_ids, config)
    run.accuracy.record(list(easy), [[1.0, 1.0]] * len(easy), stage=0)
    state: Any = {}
    stage, *_ = enter_stage(run, 1, state, left=ended(config, dropped=dropped))
    return stage, run.told


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


def test_a_stage_of_which_the_end_was_not_seen_drops_nothing_where_it_goes_on():
    config = build_config({"stages": [{"steps": 3}, {"steps": 1}]})
    run, state = fake_run("abc", config), {}
    run.accuracy.record(["a"], [[1.0, 1.0]], stage=0)
    stage, *_ = enter_stage(run, 0, state, left=ended(config, dropped="b"))  # pyright: ignore
    assert list(stage.dropped_ids) == run.told == ["b"]
    assert stage.decisions[0]["value"] == 0
    assert "stage 0 was left after 1 of its 3 steps" in stage.decisions[0]["reason"]


def test_the_next_stage_says_that_the_one_before_was_not_ended():
    config = build_config({"stages": [{"steps": 3}, {"steps": 1}]})
    run, state = fake_run("abc", config), {}
    run.accuracy.record(["a"], [[1.0, 1.0]], stage=0)
    stage, *_ = enter_stage(run, 1, state, left=ended(config))  # pyright: ignore
    assert list(stage.dropped_ids) == ["a"]
    assert stage.decisions[0]["reason"].endswith("; stage 0 was left after 1 of its 3 steps")
    assert [line for line in run.lines if "left after" in line] == [
        "entering stage 1; stage 0 was left after 1 of its 3 steps"
    ]


def test_every_decision_has_its_table():
    stage, _ = entered("abc", dropped="", easy="a")
    assert [d["kind"] for d in stage.decisions] == ["drop_easy", "temperature", "reset_optimizer"]
    assert all(set(d) == {"kind", "value", "reason", "table"} for d in stage.decisions)


def measured(run, sampler, stage, temperature, *, stop):
    assert not sampler.released
    return Candidate(temperature, accuracy=0.5, diversity=temperature / 10)


@pytest.mark.parametrize("known", [True, False], ids=["of this version", "of an earlier one"])
def test_a_target_of_the_same_probe_set_picks_the_temperature(monkeypatch, known):
    monkeypatch.setattr(stage_entry, "measure", measured)
    run, state = fake_run("abcd", MATCHED), {}
    left = ended(MATCHED, target_diversity=0.144)
    if known:
        left = dataclasses.replace(left, target_probe=stage_entry.probe_identity(run, left))
    stage, *_ = enter_stage(run, 1, state, left=left)  # pyright: ignore
    assert stage.temperature == pytest.approx(1.45)
    # What measured is let go before another is made for the new stage.
    assert [sampler.released for sampler in run.samplers] == [1, 0]


def test_the_measuring_sampler_is_let_go_when_a_signal_ends_it(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_entry, "measure", stopped)
    run, state = fake_run("abcd", MATCHED), {}
    with pytest.raises(KeyboardInterrupt):
        enter_stage(run, 1, state, left=ended(MATCHED, target_diversity=0.1))  # pyright: ignore
    assert [sampler.released for sampler in run.samplers] == [1]


@pytest.mark.parametrize(
    ("problem_ids", "probe"), [("abce", {}), ("abcd", {"n": 8}), ("abcd", {"problems": 2})]
)
def test_a_target_of_another_probe_set_is_refused(problem_ids, probe):
    run, state = fake_run("abcd", MATCHED), {}
    left = ended(MATCHED, target_diversity=0.1)
    left = dataclasses.replace(left, target_probe=stage_entry.probe_identity(run, left))
    config = dataclasses.replace(MATCHED, probe=dataclasses.replace(MATCHED.probe, **probe))
    with pytest.raises(ConfigError, match=r"stages\[1\].*was measured on 4 .*give probe.problems,"):
        enter_stage(fake_run(problem_ids, config), 1, state, left=left)  # pyright: ignore


def test_a_stage_keeps_what_its_target_was_measured_on(monkeypatch):
    monkeypatch.setattr(stage_entry, "measure", measured)
    run, state = fake_run("abcd", MATCHED), {}
    stage, *_ = enter_stage(run, 0, state)  # pyright: ignore
    assert stage.target_diversity == pytest.approx(0.14)
    assert stage.target_probe == stage_entry.probe_identity(run, stage)
    assert "4 problems" in stage.target_probe and "16 responses" in stage.target_probe
