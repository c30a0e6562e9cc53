"""Whole runs under rollout.partial_rollouts=carry: accounts, lag, kills, two processes."""

import collections
import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.kills import STEPS, Life, assert_same_run, kill_at_random, metrics
from tests.support.micro_run import final_leaves, finish, flags, make_base, start_train
from tests.test_two_processes import Pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PROMPTS, RESPONSES, MAX_LAG = 6, 4, 1


def carry(*more: str) -> list[str]:
    fields = {
        "rollout.partial_rollouts": "carry",
        "rollout.partial_share": 0.6,
        "rollout.partial_max_lag": MAX_LAG,
        "rollout.decode_steps": 2,  # so that groups end at different calls
        "objective.old_logprobs": "sampler",
    }
    return [*(f"--config.{name}={value}" for name, value in fields.items()), *more]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def line(base):
    return flags(*base, *carry())


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert f"finished: {STEPS} steps" in finish(start_train(workdir, line))
    return workdir


def rollout_rows(workdir: Path) -> list[dict]:
    files = sorted((workdir / "rollouts").iterdir())
    return [
        json.loads(line) | {"step": step}
        for step, file in enumerate(files)
        for line in file.read_text().splitlines()
    ]


def check_accounts(workdir: Path, steps: int) -> None:
    """Every sample of every draw is trained once; draws have no gap; no token is too old."""
    rows = rollout_rows(workdir)
    assert len(rows) == steps * PROMPTS * RESPONSES
    seen = collections.Counter((r["problem_id"], r["draw"], r["sample"]) for r in rows)
    assert set(seen.values()) == {1}
    draws = collections.defaultdict(set)
    for problem_id, draw, _ in seen:
        draws[problem_id].add(draw)
    assert all(found == set(range(len(found))) for found in draws.values())
    lines = metrics(workdir)
    for row in rows:
        assert sum(count for _, count in row["versions"]) == row["tokens"]
    for step, line in enumerate(lines):
        lags = [step - version for r in rows if r["step"] == step for version, _ in r["versions"]]
        assert line["rollout/lag_max"] == max(lags) <= MAX_LAG
        assert min(lags) >= 0


def test_every_response_is_trained_once_and_in_time(whole):
    lines = metrics(whole)
    assert [line["update/skipped"] for line in lines] == [0.0] * STEPS  # a version is a step here
    check_accounts(whole, STEPS)
    stale = [line["rollout/stale_share"] for line in lines]
    assert max(stale) > 0.05 and stale[0] == 0.0
    carried = [line["rollout/carried_groups"] for line in lines]
    assert carried == [4, 4, 4, 4, 0, 4, 4, 4, 0]  # ceil(6 / 0.6) - 6; none at a stage's end
    assert all(
        line["rollout/carried_tokens"] > 0 for line in lines if line["rollout/carried_groups"]
    )
    assert all(line["rollout/logp_gap_max"] < 1e-4 for line in lines)
    assert any(line["update/ratio_mean"] != 1.0 for line in lines)
    timing = [json.loads(line) for line in (whole / "timing.jsonl").read_text().splitlines()]
    assert all(timing[i]["sampler/compiles"] == 0 for i in (2, 3, 4, 7, 8))


@pytest.mark.parametrize(("kills", "seed"), [(2, 0), (4, 1)])
def test_kills_change_nothing(line, whole, tmp_path, kills, seed):
    workdir = tmp_path / "run"
    kill_at_random(workdir, line, kills=kills, seed=seed)
    last = Life(workdir, line)
    last.finish()
    assert last.whole is not None
    assert_same_run(workdir, whole)


def test_a_kill_in_each_phase_changes_nothing(line, whole, tmp_path):
    workdir = tmp_path / "run"
    for moment, nth in (("update", 3), ("rollout", 8), ("save", 1), ("entry", 1)):
        Life(workdir, line, dies_after=moment, nth=nth).die()
    Life(workdir, line).finish()
    assert_same_run(workdir, whole)


def test_sigterm_in_a_rollout_keeps_what_was_in_flight(line, whole, tmp_path):
    workdir = tmp_path / "run"
    rare = [*line, "--config.checkpoint.every_steps=100"]  # what is there, a signal has left
    for at in (1, 3, 6):
        Life(workdir, rare).stop(signal.SIGTERM, at=at)
    Life(workdir, line).finish()
    assert_same_run(workdir, whole)


def decisions(workdir):
    """stages.json without the reasons: they name entropies of steps whose groups differ."""
    stages = json.loads((workdir / "stages.json").read_text())
    for stage in stages:
        for made in stage["decisions"]:
            del made["reason"]
    return stages


def test_under_the_same_weights_a_draw_has_the_response_of_a_run_that_waits(base, tmp_path):
    """Learning rate 0; a share of 1 begins what it trains and waits for all of it."""
    rows = {}
    for share in ("0.6", "1.0"):
        workdir = tmp_path / share
        still = "--config.optimizer.learning_rate=0.0", f"--config.rollout.partial_share={share}"
        finish(start_train(workdir, flags(*base, *carry(*still))))
        rows[share] = {
            (row["problem_id"], row["draw"], row["sample"]): row for row in rollout_rows(workdir)
        }
        assert decisions(workdir) == decisions(tmp_path / "0.6")
    assert rows["0.6"].keys() == rows["1.0"].keys()
    went_on = 0
    for key, row in rows["1.0"].items():
        other = rows["0.6"][key]
        for name in ("text", "tokens", "finish_reason", "reward"):
            assert other[name] == row[name], (key, name)
        assert len(row["versions"]) == 1
        went_on += len(other["versions"]) > 1
    assert went_on > 20


def test_the_token_budget_lets_what_is_in_flight_end_first(base, whole, tmp_path):
    rows = rollout_rows(whole)
    tokens = sum(row["tokens"] for row in rows if row["step"] <= 1)
    workdir = tmp_path / "run"
    more = f"--config.rollout.total_tokens={tokens}"
    out = finish(start_train(workdir, flags(*base, *carry(more))))
    assert "finished: 3 steps" in out
    check_accounts(workdir, 3)
    assert metrics(workdir)[-1]["rollout/carried_groups"] == 0


def test_another_runs_stage_begins_without_its_unfinished_groups(line, tmp_path):
    source = tmp_path / "source"
    Life(source, line).stop(signal.SIGTERM, at=2)
    workdir = tmp_path / "run"
    onward = [*line, "--stage=1", f"--from={source / 'checkpoints'}"]
    onward.append("--config.optimizer.moment_dtype=bfloat16")  # the source's are float32
    out = finish(start_train(workdir, onward))
    assert "4 unfinished groups" in out
    check_accounts(workdir, 4)
    assert "are left out: the run has begun" in finish(start_train(workdir, onward))


@pytest.mark.parametrize(
    "fields",
    ["mesh.fsdp=2", "mesh.fsdp=2 rollout.processes=2 rollout.data=2"],
    ids=["a sampler each", "one sampler"],
)
def test_two_processes_carry_the_same_groups(base, tmp_path, fields):
    """Killed and run again, they end with the bytes of a pair that was not."""
    fields = " ".join([fields, *(field.removeprefix("--config.") for field in carry())])
    results = []
    for name in ("whole", "stopped"):
        workdir = tmp_path / name
        if name == "stopped":
            with Pair(base, workdir, fields=fields) as pair:
                pair.wait_for_steps(1)
                for pid in [pair.pid(rank) for rank in (0, 1)]:
                    os.kill(pid, signal.SIGKILL)
                pair.outcome()
        with Pair(base, workdir, fields=fields) as pair:
            status, out, err = pair.outcome()
        assert status == 0, out + err
        check_accounts(workdir, 4)
        carried = [line["rollout/carried_groups"] for line in metrics(workdir)]
        assert carried == [4, 0, 4, 0]
        results.append((workdir / "metrics.jsonl").read_bytes())
        results.append({k: v.tobytes() for k, v in final_leaves(workdir).items()})
    assert results[:2] == results[2:]
