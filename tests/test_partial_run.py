"""Whole runs under rollout.partial_rollouts=carry: accounts, lag, kills, two processes."""

import collections
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.micro_run import final_leaves, finish, flags, make_base, start_train
from tests.test_loop import assert_same_run, wait_for
from tests.test_two_processes import Pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
STEPS, PROMPTS, RESPONSES, MAX_LAG = 9, 6, 4, 1


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
def whole(base, tmp_path_factory):
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert f"finished: {STEPS} steps" in finish(start_train(workdir, flags(*base, *carry())))
    return workdir


def rollout_rows(workdir: Path) -> list[dict]:
    files = sorted((workdir / "rollouts").iterdir())
    return [
        json.loads(line) | {"step": step}
        for step, file in enumerate(files)
        for line in file.read_text().splitlines()
    ]


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


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
def test_kills_change_nothing(base, whole, tmp_path, kills, seed):
    workdir, pick = tmp_path / "run", random.Random(seed)
    for goal in sorted(pick.sample(range(1, STEPS), kills)):
        process = start_train(workdir, flags(*base, *carry()))
        wait_for(workdir, process, goal)
        time.sleep(pick.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out = finish(start_train(workdir, flags(*base, *carry())))
    assert int(out.split("resumed at step ")[1].split()[0]) > 0
    assert_same_run(workdir, whole)
    assert rollout_rows(workdir) == rollout_rows(whole)


def test_sigterm_in_a_rollout_keeps_what_was_in_flight(base, whole, tmp_path):
    workdir = tmp_path / "run"
    for goal in (1, 3, 6):
        process = start_train(workdir, flags(*base, *carry()))
        wait_for(workdir, process, goal)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    finish(start_train(workdir, flags(*base, *carry())))
    assert_same_run(workdir, whole)


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
        assert (workdir / "stages.json").read_bytes() == (tmp_path / "0.6/stages.json").read_bytes()
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


def test_another_runs_stage_begins_without_its_unfinished_groups(base, whole, tmp_path):
    source = tmp_path / "source"
    process = start_train(source, flags(*base, *carry()))
    wait_for(source, process, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    workdir = tmp_path / "run"
    line = [*flags(*base, *carry()), "--stage=1", f"--from={source / 'checkpoints'}"]
    out = finish(start_train(workdir, line))
    assert "4 unfinished groups" in out
    check_accounts(workdir, 4)


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
