"""A made-up run directory of the shape that the commands leave."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

STEPS = 48
BORDER = 24


def evaluation(score: float, *, yarn: bool = False) -> dict[str, Any]:
    budgets = [4, 8, 16, 32, 64, 96]
    return {
        "avg@k": score,
        "stderr": 0.019,
        "k": 8,
        "pass@k": {"1": score, "2": score**0.7, "4": score**0.45, "8": score**0.3},
        "problems": 256,
        "temperature": 1.0,
        "max_response_tokens": 96,
        "checkpoint": "latest",
        "length_groups": [
            {"name": "<32", "responses": 1210, "share": 0.59, "accuracy": min(1.0, score + 0.15)},
            {"name": "32-64", "responses": 838, "share": 0.41, "accuracy": score - 0.1},
            {"name": ">64", "responses": 0, "share": 0.0, "accuracy": None},
        ],
        "budget_curve": [
            {
                "budget": b,
                "accuracy": score * (1 - np.exp(-b / 20)),
                "accuracy_yarn": score * 0.95 * (1 - np.exp(-b / 22)) if yarn else None,
            }
            for b in budgets
        ],
    }


def metric_line(step: int, rng: np.random.Generator) -> dict[str, Any]:
    stage = int(step >= BORDER)
    reward = 0.36 + 0.42 * (1 - np.exp(-step / 14)) + 0.02 * rng.standard_normal()
    length = 40 + 0.5 * step + 2 * rng.standard_normal()
    return {
        "step": step,
        "stage": stage,
        "rollout/reward_mean": float(reward),
        "rollout/informative_share": float(0.8 - 0.008 * step + 0.03 * rng.standard_normal()),
        "rollout/mean_length": float(length),
        "rollout/mean_length_correct": float(length - 5),
        "rollout/mean_length_incorrect": None if step == 10 else float(length + 9),
        "rollout/clip_ratio": float(0.03 * np.exp(-step / 20)),
        "rollout/clip_ratio_correct": 0.0,
        "rollout/clip_ratio_incorrect": float(0.09 * np.exp(-step / 20)),
        "rollout/temperature": 1.1 if stage else 1.0,
        "rollout/diversity": float(0.42 - 0.003 * step + 0.08 * stage),
        "rollout/logp_gap_mean": float(2e-7 * (1 + rng.random())),
        "rollout/logp_gap_max": float(5e-6 * (1 + rng.random())),
        "batch/rescued_groups": int(rng.poisson(1.2)) if step > 3 else 0,
        "batch/substituted_groups": int(rng.poisson(6 + step / 8)),
        "batch/donors_reused": int(rng.poisson(0.6)),
        "batch/padding_share": 0.08,
        "batch/tokens": 10_000,
        "update/loss": float(0.01 * rng.standard_normal()),
        "update/grad_norm": float(0.4 + 0.1 * rng.random()),
        "update/entropy": float(0.62 - 0.006 * step + 0.1 * stage),
        "update/clip_fraction_low": 0.0,
        "update/clip_fraction_high": 0.0,
        "update/ratio_mean": 1.0,
        "update/skipped": int(step == 30),
        "data/dropped": 31 if stage else 0,
        "data/epoch": step // 24,
    } | (
        {"eval/avg@8": float(reward - 0.03), "eval/diversity": 0.4 - 0.003 * step}
        if step % 12 == 11
        else {}
    )


def timing_line(step: int, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "step": step,
        "time/rollout_s": float(2.6 + 0.4 * rng.random()),
        "time/grade_s": 0.25,
        "time/update_s": float(1.5 + 0.2 * rng.random()),
        "time/save_s": 0.3 if step % 10 == 9 else 0.0,
        "throughput/rollout_tokens_per_s": float(4100 + 300 * rng.random()),
        "throughput/update_tokens_per_s": float(6900 + 200 * rng.random()),
        "memory/host_bytes": 1.4e9 + 1e6 * step,
        "memory/device_bytes": None,
        "reward/graded_by_process": [128, 128],
    }


STAGES = [
    {
        "stage": 0,
        "first_step": 0,
        "last_step": BORDER - 1,
        "temperature": 1.0,
        "max_response_tokens": 72,
        "dropped_ids_count": 0,
        "decisions": [
            {"kind": "temperature", "value": 1.0, "reason": "highest probed", "table": []}
        ],
    },
    {
        "stage": 1,
        "first_step": BORDER,
        "last_step": STEPS - 1,
        "temperature": 1.1,
        "max_response_tokens": 96,
        "dropped_ids_count": 31,
        "decisions": [
            {"kind": "drop_easy", "value": 31, "reason": "mean accuracy above 0.9", "table": ["a"]},
            {"kind": "temperature", "value": 1.1, "reason": "reaches <the> target", "table": []},
            {"kind": "reset_optimizer", "value": True, "reason": "stage change"},
        ],
    },
]
PROBE = {
    "temperatures": [0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6],
    "accuracies": [0.34, 0.36, 0.37, 0.36, 0.31, 0.22, 0.09],
    "stderrs": [0.02] * 7,
    "diversities": [0.21, 0.26, 0.31, 0.37, 0.46, 0.58, 0.74],
    "zones": {
        "labels": ["rgz", "rgz", "rgz", "rgz", "cez", "pcz", "pcz"],
        "rgz": [0.4, 1.0],
        "cez": [1.0, 1.2],
        "pcz_from": 1.2,
    },
    "initial_temperature": 1.0,
}
CALIBRATE = {
    "n": 8,
    "histogram": [90, 110, 118, 112, 95, 84, 70, 56, 33],
    "shape": "mirrored J",
    "preset": "drop_perfect",
    "problems": 768,
    "kept": 735,
    "dropped": 33,
}
RUN = {
    "deterministic": True,
    "config": {"seed": 0, "stages[0].steps": 24},
    "versions": {"polaris_jax": "0.1.0", "jax": "0.10.2"},
    "commit": "abc1234",
    "starts": [{"time": "2026-01-01T00:00:00+00:00"}],
}


def write_run(run_dir: pathlib.Path) -> pathlib.Path:
    """Every file of a finished two-stage run in `run_dir`."""
    rng = np.random.default_rng(0)
    run_dir.mkdir(parents=True, exist_ok=True)
    documents = {
        "calibrate.json": CALIBRATE,
        "probe.json": PROBE,
        "run.json": RUN,
        "stages.json": STAGES,
        "before_eval.json": evaluation(0.36) | {"checkpoint": "base"},
        "eval.json": evaluation(0.68, yarn=True),
        "prepare.json": {"kept": 768},
    }
    for name, value in documents.items():
        (run_dir / name).write_text(json.dumps(value))
    for name, line in (("metrics.jsonl", metric_line), ("timing.jsonl", timing_line)):
        lines = [json.dumps(line(step, rng)) for step in range(STEPS)]
        (run_dir / name).write_text("\n".join(lines) + "\n")
    return run_dir


def response_row(problem: str, sample: int, reward: float) -> dict[str, Any]:
    """A row of rollouts/step_N.jsonl."""
    return {
        "problem_id": problem,
        "sample": sample,
        "attempt": 0,
        "question": f"What is {problem}?",
        "gold": "7",
        "text": f"Think. \\boxed{{{7 if reward else 8}}}",
        "tokens": 12,
        "finish_reason": "stop",
        "reward": reward,
        "answer": "7" if reward else "8",
        "reason": "" if reward else "another number",
    }


def hostile_row(text: str) -> dict[str, Any]:
    """A row each of whose texts is `text`."""
    row = response_row("p", 0, 0.0)
    words = ("problem_id", "question", "gold", "text", "answer", "reason", "rescue_text")
    return row | {"rescue_step": 0, "rescue_reward": 1.0} | dict.fromkeys(words, text)


def write_rollouts(
    run_dir: pathlib.Path, step: int, groups: list[list[dict[str, Any]]]
) -> pathlib.Path:
    """The file of a step's responses."""
    path = run_dir / "rollouts" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for group in groups for row in group))
    return path
