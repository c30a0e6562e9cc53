"""What a stage's entry drops, and which temperature it takes."""

import dataclasses
from typing import Any

import pytest
from etils import epath

from polaris_jax import stage_change
from polaris_jax.assemble import Parts
from polaris_jax.config import ConfigError, build_config
from polaris_jax.explore import Candidate
from polaris_jax.records import NO_STAGE, Problem, StageState
from polaris_jax.stage_change import change_stage, warn_of_probes
from polaris_jax.stages.controller import initial_state
from polaris_jax.state import RunState
from polaris_jax.system.signals import StopRequest
from tests.support.parts import Screen, make_parts, make_state, stage_at

CONFIG = build_config({"stages": [{"steps": 1}, {"steps": 1}]})
MATCHED = build_config(
    {"stages": [{"steps": 1}, {"steps": 1, "temperature_rule": "match_diversity"}]}
)


NEVER = StopRequest()


class Sampler:
    """Counts how often it was released, with its weights or its pool alone."""

    released = 0
    pools_released = 0

    def release(self) -> None:
        self.released += 1

    def release_pool(self) -> None:
        self.pools_released += 1

    def reset_stats(self) -> None:
        pass


class Samplers:
    """Keeps what it made."""

    def __init__(self) -> None:
        self.made: list[Sampler] = []

    def make(self, model: Any, *, max_response_tokens: int) -> Sampler:
        self.made.append(Sampler())
        return self.made[-1]


class Loader:
    """Keeps the ids that it was asked to drop."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def __len__(self) -> int:
        return 1000

    def __copy__(self) -> "Loader":
        other = Loader()
        other.dropped = list(self.dropped)
        return other

    def drop(self, problem_ids: list[str]) -> int:
        self.dropped.extend(problem_ids)
        return len(problem_ids)


class Updater:
    def reset_optimizer(self, train: Any) -> Any:
        return train


class Grader:
    def stats(self) -> dict[str, int]:
        return {}


class Weights:
    """A train state whose parameters nobody reads."""

    params = None


def new_parts(problem_ids: str, config: Any = CONFIG, **given: Any) -> Parts:
    """Parts without model and files."""
    problems = tuple(Problem(i, "?", "1") for i in problem_ids)
    return make_parts(
        config,
        problems=problems,
        model_config=Architecture(),
        updater=Updater(),
        samplers=Samplers(),
        grader=Grader(),
        **given,
    )


class Architecture:
    rope_scaling = None


def entering(index: int, left: StageState | None = None, *, easy: str = "") -> RunState:
    """A state that is to enter stage `index`; `easy` problems were always solved in stage 0."""
    nothing = stage_at(NO_STAGE)
    state = make_state(
        step=1, stage=left or nothing, next_stage=index, train=Weights(), loader=Loader()
    )
    if easy:
        state.accuracy.record(list(easy), [[1.0, 1.0]] * len(easy), stage=0)
    return state


def change(parts: Parts, state: RunState) -> tuple[StageState, list[str]]:
    """(the stage entered, ids that the loader dropped)."""
    state = change_stage(parts, state, stop=NEVER)
    assert isinstance(state.loader, Loader)
    assert state.next_stage is None
    return state.stage, state.loader.dropped


def made_by(parts: Parts) -> list[Sampler]:
    assert isinstance(parts.solver.samplers, Samplers)
    return parts.solver.samplers.made


def ended(config=CONFIG, *, dropped: str = "", **fields: Any) -> StageState:
    """Stage 0, whose steps are done."""
    state = initial_state(config.stages, dropped_ids=dropped)
    return dataclasses.replace(state, **({"steps_done": 1} | fields))


def entered(problem_ids: str, *, dropped: str, easy: str, config=CONFIG):
    """(StageState, ids that the loader dropped) of stage 1."""
    left = ended(config, dropped=dropped)
    return change(new_parts(problem_ids, config), entering(1, left, easy=easy))


def test_easy_problems_join_those_that_are_out():
    stage, gone = entered("abcdef", dropped="b", easy="cab")
    assert list(stage.dropped_ids) == gone == ["b", "c", "a"]


def test_problems_that_only_another_run_had_are_not_dropped():
    stage, gone = entered("abc", dropped="xb", easy="yazx")
    assert list(stage.dropped_ids) == gone == ["b", "a"]


def test_the_last_problems_stay():
    stage, gone = entered("ab", dropped="", easy="abx")
    assert gone == []
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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"initial_temperature": "hot"}'])
def test_a_damaged_probe_is_named_with_the_remedy(text, tmp_path):
    (tmp_path / "probe.json").write_text(text)
    config = build_config({"stages": [{"temperature_rule": "probe"}]})
    parts = new_parts("a", config, workdir=epath.Path(tmp_path))
    with pytest.raises(
        ConfigError, match=r"probe\.json: not what `polaris probe` leaves"
    ) as caught:
        change(parts, entering(0))
    assert "stages[0].temperature_rule=fixed" in str(caught.value)


def test_a_probe_that_found_no_temperature_stops_the_run_with_the_remedy(tmp_path):
    (tmp_path / "probe.json").write_text('{"initial_temperature": null}')
    config = build_config({"stages": [{"temperature_rule": "probe"}]})
    parts = new_parts("a", config, workdir=epath.Path(tmp_path))
    with pytest.raises(ConfigError, match=r"probe\.json: `polaris probe` found no temp") as caught:
        change(parts, entering(0))
    assert "run it again on easier problems" in str(caught.value)
    assert "stages[0].temperature_rule=fixed" in str(caught.value)


def test_a_stage_of_which_the_end_was_not_seen_drops_nothing_where_it_goes_on():
    config = build_config({"stages": [{"steps": 3}, {"steps": 1}]})
    parts = new_parts("abc", config)
    stage, gone = change(parts, entering(0, ended(config, dropped="b"), easy="a"))
    assert list(stage.dropped_ids) == gone == ["b"]
    assert stage.decisions[0]["value"] == 0
    assert "stage 0 was left after 1 of its 3 steps" in stage.decisions[0]["reason"]


def test_the_next_stage_says_that_the_one_before_was_not_ended():
    config = build_config({"stages": [{"steps": 3}, {"steps": 1}]})
    screen = Screen()
    parts = new_parts("abc", config, progress=screen)
    stage, _ = change(parts, entering(1, ended(config), easy="a"))
    assert list(stage.dropped_ids) == ["a"]
    assert stage.decisions[0]["reason"].endswith("; stage 0 was left after 1 of its 3 steps")
    assert [line for line in screen.lines if "left after" in line] == [
        "entering stage 1; stage 0 was left after 1 of its 3 steps"
    ]


def test_every_decision_has_its_table():
    stage, _ = entered("abc", dropped="", easy="a")
    assert [d["kind"] for d in stage.decisions] == ["drop_easy", "temperature", "reset_optimizer"]
    assert all(set(d) == {"kind", "value", "reason", "table"} for d in stage.decisions)


def measured(parts, sampler, stage, temperature, *, stop):
    assert not sampler.released
    return Candidate(temperature, accuracy=0.5, diversity=temperature / 10)


@pytest.mark.parametrize("known", [True, False], ids=["of this version", "of an earlier one"])
def test_a_target_of_the_same_probe_set_picks_the_temperature(monkeypatch, known):
    monkeypatch.setattr(stage_change, "measure_temperature", measured)
    parts, left = new_parts("abcd", MATCHED), ended(MATCHED, target_diversity=0.144)
    if known:
        left = dataclasses.replace(left, target_probe=stage_change.probe_identity(parts, left))
    stage, _ = change(parts, entering(1, left))
    assert stage.temperature == pytest.approx(1.45)
    # What measured is let go before another is made for the new stage.
    assert [sampler.released for sampler in made_by(parts)] == [1, 0]


def test_the_measuring_sampler_is_let_go_when_a_signal_ends_it(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_change, "measure_temperature", stopped)
    parts = new_parts("abcd", MATCHED)
    with pytest.raises(KeyboardInterrupt):
        change(parts, entering(1, ended(MATCHED, target_diversity=0.1)))
    assert [sampler.released for sampler in made_by(parts)] == [1]


def test_an_entry_that_is_abandoned_leaves_the_state_before_it(monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    stages = [{"steps": 1}, {"steps": 1}, {"steps": 1, "temperature_rule": "match_diversity"}]
    config = build_config({"stages": stages})  # so stage 1 is measured once it is entered
    monkeypatch.setattr(stage_change, "measure_temperature", stopped)
    state = entering(1, ended(config), easy="a")
    state.accuracy.record(["b"], [[1.0, 0.0]], stage=1)  # another run's
    accuracy = state.accuracy.state_dict()
    with pytest.raises(KeyboardInterrupt):
        change_stage(new_parts("abcd", config), state, stop=NEVER)
    assert state.accuracy.state_dict() == accuracy
    assert isinstance(state.loader, Loader)
    assert state.loader.dropped == []


def test_new_moments_are_made_after_all_sampling_in_the_memory_of_the_pages(monkeypatch):
    done = []

    def measured_then(*given, **more):
        done.append("measured")
        return measured(*given, **more)

    def reset(_, train):
        (sampler,) = made_by(parts)
        done.append(("reset", sampler.pools_released))
        return train

    stages = [{"steps": 1}, {"steps": 1}, {"steps": 1, "temperature_rule": "match_diversity"}]
    config = build_config({"stages": stages})
    monkeypatch.setattr(stage_change, "measure_temperature", measured_then)
    monkeypatch.setattr(Updater, "reset_optimizer", reset)
    parts = new_parts("abcd", config)
    change(parts, entering(1, ended(config)))
    assert done == ["measured", ("reset", 1)]


@pytest.mark.parametrize(
    ("problem_ids", "probe"), [("abce", {}), ("abcd", {"n": 8}), ("abcd", {"problems": 2})]
)
def test_a_target_of_another_probe_set_is_refused(problem_ids, probe):
    parts, left = new_parts("abcd", MATCHED), ended(MATCHED, target_diversity=0.1)
    left = dataclasses.replace(left, target_probe=stage_change.probe_identity(parts, left))
    config = dataclasses.replace(MATCHED, probe=dataclasses.replace(MATCHED.probe, **probe))
    with pytest.raises(ConfigError, match=r"stages\[1\].*was measured on 4 .*give probe.problems,"):
        change(new_parts(problem_ids, config), entering(1, left))


def test_a_stage_keeps_what_its_target_was_measured_on(monkeypatch):
    monkeypatch.setattr(stage_change, "measure_temperature", measured)
    parts = new_parts("abcd", MATCHED)
    stage, _ = change(parts, entering(0))
    assert stage.target_diversity == pytest.approx(0.14)
    assert stage.target_probe == stage_change.probe_identity(parts, stage)
    assert "4 problems" in stage.target_probe and "32 responses" in stage.target_probe


def sweep(accuracies, slope):
    """A `measure_temperature` whose n-th call has the n-th accuracy, the last one for good."""
    calls = []

    def measured(parts, sampler, stage, temperature, *, stop):
        accuracy = accuracies[min(len(calls), len(accuracies) - 1)]
        calls.append(temperature)
        return Candidate(temperature, accuracy, diversity=slope * temperature, tokens=100)

    return measured, calls


@pytest.mark.parametrize("distance", [1, 3, 10])
def test_a_reset_tries_hotter_until_one_reaches_the_target(monkeypatch, distance):
    measured, calls = sweep([0.5], 0.1)
    monkeypatch.setattr(stage_change, "measure_temperature", measured)
    target = 0.1 * (1.4 + 0.05 * distance)
    state = change_stage(
        new_parts("abcd", MATCHED), entering(1, ended(MATCHED, target_diversity=target)), stop=NEVER
    )
    assert state.stage.temperature == pytest.approx(1.4 + 0.05 * distance)
    assert "reaches the target" in state.stage.decisions[1]["reason"]
    assert len(calls) == 1 + distance
    assert state.counts["reset_tokens"] == 100 * len(calls)
    assert [row["tokens"] for row in state.stage.decisions[1]["table"]] == [100] * len(calls)


def test_a_reset_says_why_it_misses_its_target(monkeypatch):
    for accuracies, tried, reason in (
        ([0.5], 11, "no candidate outside the collapse zone reaches the target 0.9000"),
        ([0.5, 0.49, 0.1, 0.05, 0.5], 4, "no candidate outside the collapse zone reaches"),
        ([0.5, 0.1, 0.05, 0.5], 3, "temperature 1.4 stays: all candidates above it lie in the col"),
    ):
        measured, calls = sweep(accuracies, 0.1)
        monkeypatch.setattr(stage_change, "measure_temperature", measured)
        stage, _ = change(
            new_parts("abcd", MATCHED), entering(1, ended(MATCHED, target_diversity=0.9))
        )
        assert len(calls) == tried
        assert stage.decisions[1]["reason"].startswith(reason)


PROBED = build_config({"stages": [{"steps": 1}, {"steps": 1, "temperature_rule": "probe"}]})


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (None, "warning: no probe.json in the workdir yet; stage 1 looks for it"),
        ('{"initial_temperature": 1.1}', ""),
        ('{"initial_temperature": null}', "found no temperature"),
        ("{", "not what `polaris probe` leaves"),
    ],
    ids=["missing", "probed", "nothing found", "damaged"],
)
def test_a_probe_that_a_later_stage_cannot_use_is_warned_of_at_the_start(tmp_path, known, said):
    if known is not None:
        (tmp_path / "probe.json").write_text(known)
    screen = Screen()
    parts = make_parts(PROBED, workdir=epath.Path(tmp_path), progress=screen)
    for state in (entering(0), make_state(stage=stage_at(0))):
        screen.lines.clear()
        warn_of_probes(parts, state)
        assert len(screen.lines) == bool(said)
        assert said in "".join(screen.lines)
    screen.lines.clear()
    for state in (entering(1, ended()), make_state(stage=stage_at(1))):
        warn_of_probes(parts, state)  # the stage says it itself, or has its temperature
    assert screen.lines == []
