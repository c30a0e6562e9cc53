"""A run that is killed, stopped and torn ends with the bytes of one that was not."""

import dataclasses
import json
import signal
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from polaris_jax import loop, step
from polaris_jax.__main__ import main
from polaris_jax.assemble import Parts
from polaris_jax.checkpoint import Checkpointer
from polaris_jax.config import BatchSection, RunConfig, build_config
from polaris_jax.measure import held_out
from polaris_jax.measure.held_out import HeldOutScore
from polaris_jax.records import Graded, Problem
from polaris_jax.rollout import RolloutAborted
from polaris_jax.stage_change import change_stage
from polaris_jax.state import RunState
from polaris_jax.step import resample_if_scarce, substitute
from polaris_jax.system.signals import StopRequest
from tests.support.kills import Life, assert_same_run, kill_at_random, metrics
from tests.support.micro_run import final_state, finish, flags, make_base, start_train
from tests.support.parts import Written, make_parts, make_state, stage_at

pytestmark = pytest.mark.xdist_group("loop")  # one worker makes what its tests share

ON_8 = ("--config.mesh.fsdp=8", "--config.batch.rows=8")  # this process's devices


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def line(base):
    """A run whose first stage leaves behind what it knows."""
    return flags(*base, "--config.stages[0].drop_above=0.2")


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    """The uninterrupted run that others are held against."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    out = finish(start_train(workdir, line))
    assert "finished: 9 steps" in out
    return workdir


def graded(*rewards: list[float]) -> Graded:
    """Groups of responses of one token, with the given rewards."""
    groups, width = range(len(rewards)), range(len(rewards[0]))
    return Graded(
        problem_ids=[f"p{i}" for i in groups],
        prompts=[(1,) for _ in groups],
        golds=["1" for _ in groups],
        token_ids=[[(2,) for _ in width] for _ in groups],
        logprobs=[[(-1.0,) for _ in width] for _ in groups],
        texts=[["x" for _ in width] for _ in groups],
        finish_reasons=[["stop" for _ in width] for _ in groups],
        reward_PR=np.array(rewards),
    )


@pytest.mark.parametrize(
    ("on_scarce", "max_resample", "action"),
    [
        ("train", 0, "train"),
        ("train", 2, "train"),
        ("skip", 0, "skip"),
        ("skip", 2, "skip"),
        ("resample", 0, "train"),
        ("resample", 1, "train"),
    ],
)
def test_a_scarce_batch_is_treated_as_configured(monkeypatch, on_scarce, max_resample, action):
    drawn = []

    def visit(parts, state, *, stop, attempt: int):
        drawn.append(attempt)
        return state, graded([0, 0], [0, 1], [1, 1], [1, 1]), {}

    monkeypatch.setattr(step, "collect_rollouts", visit)
    section = BatchSection(on_scarce=on_scarce, max_resample=max_resample, min_informative=0.5)
    parts = make_parts(RunConfig(batch=section))
    scarce = graded([0, 0], [1, 0], [0, 0], [1, 1])
    state, batch, _ = resample_if_scarce(parts, make_state(), scarce, stop=StopRequest())
    batch, swapped = substitute(parts, state, batch, before={})
    assert swapped.action == action
    assert drawn == ([1] if on_scarce == "resample" and max_resample else [])
    assert len(batch) == 4
    assert batch.informative_P.all() == (action == "train")


class Train:
    """A train state of which only the counter and the rotary scaling are read."""

    params, skips_in_a_row = SimpleNamespace(config=SimpleNamespace(rope_scaling=None)), 0


class Kept:
    """In the place of `SnapshotSaver`: (step, pending) of what was saved."""

    def __init__(self, newest: RunState) -> None:
        self.saved, self._newest = [], newest.snapshot().key

    def save(self, snapshot: Any) -> None:
        if snapshot.key != self._newest:
            self.saved.append((snapshot.step, snapshot.pending))
        self._newest = snapshot.key


class Position:
    digests: ClassVar[dict[str, str]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("stage", "done", "ending", "tokens", "said"),
    [
        (1, 5, None, 0, ""),
        (1, 5, None, 100, ""),
        (1, 3, "reward has stalled", 0, "stage 1 was ended early, reward has stalled: more steps"),
        (1, 3, "reward has stalled", 100, "stage 1 was ended early"),
        (1, 3, None, 100, "rollout.total_tokens=100 are spent: a larger number continues"),
        (0, 3, "reward has stalled", 100, "rollout.total_tokens=100 are spent"),
    ],
)
def test_a_finished_run_says_what_has_ended_it_early(stage, done, ending, tokens, said):
    config = build_config({"stages": [{"steps": 5}] * 2, "rollout": {"total_tokens": tokens}})
    reason = None if ending is None else {"reason": ending}
    state = make_state(
        stage=dataclasses.replace(stage_at(stage), steps_done=done, ending=reason, finished=True),
        counts={"sampled_tokens": 100},
    )
    assert loop.ended_early(config, state).startswith(said)
    assert bool(loop.ended_early(config, state)) == bool(said)


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped again", "scored"])
def test_a_run_that_owes_its_last_score_is_finished_once_it_has_it(monkeypatch, stopped):
    monkeypatch.setattr(loop, "write_timing", lambda *_: None)

    def score(parts: Parts, state: RunState, *, stop: StopRequest) -> HeldOutScore:
        if stopped:
            raise RolloutAborted("asked to")
        return HeldOutScore(0.25, n=4, diversity=0.5)

    monkeypatch.setattr(loop, "held_out_score", score)
    train: Any = Train()
    state = make_state(
        step=2,
        stage=stage_at(0, 2, finished=True),
        train=train,
        loader=Position(),
        counts={"sampled_tokens": 7},
        stage_records=({"stage": 0, "last_step": None, "dropped_ids_count": 0},),
        pending_metrics={"rollout/reward_mean": 0.5},
    )
    kept, written = Kept(state), Written()
    parts = make_parts(build_config({"evaluate": {"n": 4}}), checkpoints=kept, outputs=written)
    last = loop.train(parts, state, stop=StopRequest())
    assert last.done is not stopped
    assert (state.next_line, last.step) == (1, 2)  # its line is still to be written
    lines = [(number, line["eval/avg@4"]) for number, line in written.metrics]
    assert lines == ([] if stopped else [(1, 0.25)])
    assert kept.saved == ([] if stopped else [(2, False)])  # a rerun does not score once more


@pytest.mark.parametrize(
    ("step", "steps_done", "next_stage", "saved"),
    [
        (0, 0, None, False),  # the first stage has been entered: nothing to lose yet
        (4, 4, None, True),
        (5, 5, None, False),
        (5, 5, 1, True),  # the stage's end
        (5, 0, None, True),  # the next stage has been entered
    ],
)
def test_a_state_is_saved_at_the_cadence_and_at_a_stages_borders(
    step, steps_done, next_stage, saved
):
    train: Any = Train()
    state = make_state(
        step=step,
        stage=stage_at(0, steps_done),
        next_stage=next_stage,
        train=train,
        loader=Position(),
    )
    kept = Kept(make_state(step=99, train=train, loader=Position()))
    config = build_config({"checkpoint": {"every_steps": 4}})
    loop.save_if_due(make_parts(config, checkpoints=kept), state)
    assert bool(kept.saved) == saved


class Reused:
    """In the place of `Samplers`: a sampler for scores, which only counts its releases."""

    released = 0

    def reused(self, model: Any, *, max_response_tokens: int) -> Any:
        self.budget = max_response_tokens
        return self

    def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize(("stage", "temperature"), [(0, 0.7), (1, 1.4)])
def test_a_stage_is_scored_at_its_own_temperature(monkeypatch, stage, temperature):
    stages = [{"steps": 1}, {"steps": 1, "evaluate_temperature": 1.4, "max_response_tokens": 24}]
    config = build_config({"stages": stages, "evaluate": {"temperature": 0.7, "every_steps": 2}})
    asked: dict[str, Any] = {}

    def solve(solver: Any, sampler: Any, problems: Any, **settings: Any) -> Graded:
        asked.update(settings)
        return graded([0.0, 1.0])

    monkeypatch.setattr(held_out, "solve", solve)
    samplers, train = Reused(), Train()
    problems = (Problem("a", "?", "1"),)
    parts = make_parts(config, held_out=problems, samplers=samplers)
    state = make_state(step=2, stage=stage_at(stage), train=train)
    found = held_out.held_out_score(parts, state, stop=StopRequest())
    assert found is not None and found.score == 0.5
    assert asked["temperature"] == temperature
    # The last stage's budget, whichever stage it is, and graded as an evaluation.
    assert asked["max_response_tokens"] == samplers.budget == 24
    assert asked["mode"] == "eval"
    assert samplers.released == 1
    off_beat = make_state(step=3, stage=stage_at(stage), train=train)
    assert held_out.held_out_score(parts, off_beat, stop=StopRequest()) is None


def test_a_held_out_score_counts_correct_responses_and_says_the_mean_reward(monkeypatch):
    config = build_config({"evaluate": {"every_steps": 1}})
    parts = make_parts(config, held_out=(Problem("a", "?", "1"),), samplers=Reused())
    for correct_at, said in ((1.0, "avg@8 50.0%"), (0.5, "avg@8 100.0%, mean reward 0.750")):
        record = dataclasses.replace(graded([0.5 if correct_at < 1 else 0.0, 1.0]))
        record = dataclasses.replace(record, correct_at=correct_at)
        monkeypatch.setattr(held_out, "solve", lambda *_, record=record, **__: record)
        state = make_state(step=1, train=Train())
        held_out.held_out_score(parts, state, stop=StopRequest())
        line = parts.progress.lines[-1].replace(" on 1 held-out problems at temperature 0.6", "")
        assert line.endswith(said)


def test_a_held_out_score_has_the_diversity_of_its_responses(monkeypatch):
    config = build_config({"evaluate": {"every_steps": 1, "n": 2}})
    parts = make_parts(config, held_out=(Problem("a", "?", "1"),), samplers=Reused())
    texts = [["a b c d e", "a b c d f"]]  # 4 4-grams, 3 of them distinct
    record = dataclasses.replace(graded([0.0, 1.0]), texts=texts)
    monkeypatch.setattr(held_out, "solve", lambda *_, **__: record)
    state = make_state(step=1, train=Train())
    found = held_out.held_out_score(parts, state, stop=StopRequest())
    assert found is not None
    assert found.metrics() == {"eval/avg@2": 0.5, "eval/diversity": 0.75}


def test_a_run_learns_counts_and_says_what_it_did(whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(9))
    assert [line["stage"] for line in lines] == [0] * 5 + [1] * 4
    for name in (
        "rollout/reward_mean",
        "rollout/informative_share",
        "rollout/mean_length",
        "rollout/clip_ratio",
        "rollout/temperature",
        "rollout/diversity",
        "rollout/logp_gap_mean",
        "rollout/logp_gap_max",
        "batch/rescued_groups",
        "batch/substituted_groups",
        "batch/donors_reused",
        "batch/padding_share",
        "batch/tokens",
        "update/loss",
        "update/grad_norm",
        "update/entropy",
        "update/fresh_entropy",
        "update/clip_fraction_low",
        "update/clip_fraction_high",
        "update/ratio_mean",
        "update/skipped",
        "data/dropped",
        "data/epoch",
    ):
        assert all(name in line for line in lines), name
    for line in lines:  # rollouts/ names the donor of each group that was replaced
        path = whole / "rollouts" / f"step_{line['step']:06d}.jsonl"
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        donors = [r["substituted_by"] for r in rows if "substituted_by" in r and not r["sample"]]
        assert len(donors) == line["batch/substituted_groups"]
        assert set(donors) <= {row["problem_id"] for row in rows}
    # One update a batch with current log-probs: on-policy, so the ratio is 1 and nothing clips.
    assert all(line["update/ratio_mean"] == 1.0 for line in lines)
    assert all(line["update/clip_fraction_high"] == 0.0 for line in lines)
    assert max(line["rollout/logp_gap_mean"] for line in lines) < 1e-4
    assert np.mean([line["rollout/reward_mean"] for line in lines]) > 0.05
    # What picks the temperature's step is what the policy has sampled itself, no copy of it.
    entropies = [line["update/fresh_entropy"] for line in lines if line["stage"] == 1]
    last = final_state(whole)[1]["stage"]
    means = [float(np.mean(entropies[:2])), float(np.mean(entropies[2:]))]  # of the 4 steps
    assert [last["first_entropy"], last["last_entropy"]] == pytest.approx(means)
    assert any(line["update/fresh_entropy"] != line["update/entropy"] for line in lines)
    stages = json.loads((whole / "stages.json").read_text())
    assert [s["stage"] for s in stages] == [0, 1]
    assert [(s["first_step"], s["last_step"]) for s in stages] == [(0, 4), (5, 8)]
    assert stages[1]["temperature"] > stages[0]["temperature"]
    kinds = {d["kind"] for d in stages[1]["decisions"]}
    assert {"temperature", "drop_easy", "reset_optimizer"} <= kinds
    assert {line["data/dropped"] for line in lines[:5]} == {0}
    assert {line["data/dropped"] for line in lines[5:]} == {stages[1]["dropped_ids_count"]} != {0}
    timing = [json.loads(line) for line in (whole / "timing.jsonl").read_text().splitlines()]
    assert {"time/rollout_s", "time/grade_s", "time/update_s", "time/save_s"} <= timing[1].keys()
    assert 0 < timing[1]["time/weight_sync_s"] <= timing[1]["time/update_s"]
    assert timing[1]["throughput/weight_sync_bytes"] > 0
    assert timing[1]["throughput/update_flops_per_s"] > 0
    assert timing[1]["throughput/update_mfu"] is None  # nobody states a CPU's peak
    # A step's 6 prompts x 4 responses: what the entries have probed is no step's.
    assert [line["reward/graded"] for line in timing] == [24] * 9
    # After the second step of a stage nothing compiles.
    assert all(timing[i]["sampler/compiles"] == 0 for i in (2, 3, 4, 7, 8))


@pytest.mark.timeout(900)
def test_two_kills_change_nothing(line, whole, tmp_path):
    workdir = tmp_path / "run"
    Life(workdir, line).kill(at=3, delay_s=0.1)
    Life(workdir, line, dies_after="save").die()
    Life(workdir, line).finish()
    assert_same_run(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_five_kills_change_nothing(line, whole, tmp_path, seed):
    workdir = tmp_path / "run"
    kill_at_random(workdir, line, kills=5, seed=seed)
    last = Life(workdir, line)
    last.finish()
    assert last.whole is not None
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_a_kill_in_each_phase_changes_nothing(line, whole, tmp_path):
    workdir, found = tmp_path / "run", []
    moments = ("save", 1), ("update", 3), ("rollout", 2), ("save", 1), ("entry", 1)
    for moment, nth in moments:
        life = Life(workdir, line, dies_after=moment, nth=nth)
        life.die()
        found.append((life.lines, life.whole))
    last = Life(workdir, line)
    last.finish()
    found.append((last.lines, last.whole))
    assert found == [(0, None), (2, None), (2, 2), (2, 2), (4, 2), (5, 5)]
    assert_same_run(workdir, whole)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("reset", marks=pytest.mark.slow),
        pytest.param("drop", marks=pytest.mark.slow),
        "stages.json",
        pytest.param("entry", marks=pytest.mark.slow),
    ],
)
def test_a_stage_whose_entry_is_killed_is_entered_again(line, whole, tmp_path, moment):
    workdir = tmp_path / "run"
    Life(workdir, line, dies_after=moment).die()
    entered = json.loads((workdir / "stages.json").read_text())
    assert len(entered) == (2 if moment in ("stages.json", "entry") else 1)
    again = Life(workdir, line)
    assert "stage 1: 4 steps" in again.finish()
    assert (again.lines, again.whole) == (5, 5)
    assert_same_run(workdir, whole)
    assert metrics(workdir)[-1]["data/dropped"] > 0


def test_the_end_of_a_stage_is_saved_before_the_next_is_entered(base, tmp_path, monkeypatch):
    def killed(parts: Parts, state: RunState, *, stop: StopRequest) -> RunState:
        if state.next_stage == 1:
            raise RuntimeError("killed in the entry")
        return change_stage(parts, state, stop=stop)

    monkeypatch.setattr(loop, "change_stage", killed)
    rare = ("--config.stages[0].steps=1", "--config.checkpoint.every_steps=10")
    assert main(["train", *flags(*base, *ON_8, *rare), f"--workdir={tmp_path}"]) == 1
    assert Checkpointer(tmp_path / "checkpoints").latest() == 1


def test_a_signal_in_the_first_stages_entry_ends_the_run_at_once(
    base, tmp_path, monkeypatch, capsys
):
    def stopped(*_, stop, **__):
        assert not stop.requested
        raise RolloutAborted("asked to")

    monkeypatch.setattr(loop, "change_stage", stopped)
    assert main(["train", *flags(*base, *ON_8), f"--workdir={tmp_path}"]) == 0
    assert "stopped; rerun the same command to continue: 0 steps" in capsys.readouterr().out
    assert Checkpointer(tmp_path / "checkpoints").latest() is None


@pytest.mark.timeout(900)  # four starts, each of which compiles
def test_signals_leave_a_resumable_state(base, line, whole, tmp_path):
    workdir = tmp_path / "run"
    rare = [*line, "--config.checkpoint.every_steps=100"]  # what is there, a signal has left
    Life(workdir, rare).stop(signal.SIGTERM, at=1)
    Life(workdir, rare).stop(signal.SIGTERM, at=5)  # about when stage 1 is entered
    Life(workdir, rare).stop(signal.SIGINT, at=7, status=130)
    Life(workdir, line).finish()
    assert_same_run(workdir, whole)
    # The same command once more has nothing to do.
    assert "already complete" in finish(start_train(workdir, line))
    # Another config is refused, with the field that differs.
    other = start_train(workdir, [*line, "--config.optimizer.learning_rate=1e-3"])
    out, _ = other.communicate(timeout=60)
    assert other.returncode == 2
    assert "optimizer.learning_rate" in out
