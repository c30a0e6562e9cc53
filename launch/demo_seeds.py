"""Figures of `make demo-seeds`: gains of three arms over three seeds, with standard errors.

usage: demo_seeds.py tokens WORKDIR           sampled tokens of a finished run
       demo_seeds.py report ROOT OUTDIR       OUTDIR/demo_seeds.json and demo_seeds.md
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = (0, 1, 2)
ARMS = ("polaris", "plain", "control")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def sampled_tokens(workdir: Path) -> int:
    """Response tokens of all training rollouts, resampled batches included."""
    total = 0
    for path in sorted((workdir / "rollouts").glob("step_*.jsonl")):
        total += sum(json.loads(line)["tokens"] for line in path.read_text().splitlines())
    return total


def per_problem(path: Path) -> dict[str, float]:
    """Mean reward of each held-out problem in a responses.jsonl."""
    rewards: dict[str, list[float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rewards.setdefault(row["problem_id"], []).append(row["reward"])
    return {i: float(np.mean(r)) for i, r in rewards.items()}


def difference(a: dict[str, float], b: dict[str, float]) -> tuple[float, float]:
    """Mean paired difference over problems and its standard error."""
    values = np.array([a[i] - b[i] for i in sorted(a)])
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def collect(root: Path) -> dict[str, Any]:
    rows = []
    for seed in SEEDS:
        start = root / f"polaris-{seed}"
        before = read(start / "before_eval.json")
        row: dict[str, Any] = {
            "seed": seed,
            "before": before["avg@k"],
            "before_well_formed": before["well_formed_share"],
            "problems": before["problems"],
        }
        scores = {}
        for arm in ARMS:
            workdir = root / f"{arm}-{seed}"
            row[arm] = read(workdir / "eval.json")["avg@k"]
            row[f"{arm}_gain"] = row[arm] - row["before"]
            row[f"{arm}_tokens"] = sampled_tokens(workdir)
            scores[arm] = per_problem(workdir / "responses.jsonl")
        row["polaris_minus_plain"], row["polaris_minus_plain_stderr"] = difference(
            scores["polaris"], scores["plain"]
        )
        rows.append(row)
    gains = {arm: [row[f"{arm}_gain"] for row in rows] for arm in ARMS}
    over_seeds = np.array([row["polaris_minus_plain"] for row in rows])
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "rows": rows,
        "mean_gain": {arm: float(np.mean(g)) for arm, g in gains.items()},
        "lowest_gain": {arm: float(np.min(g)) for arm, g in gains.items()},
        "polaris_minus_plain": float(over_seeds.mean()),
        "polaris_minus_plain_stderr_over_seeds": float(over_seeds.std(ddof=1) / np.sqrt(len(rows))),
    }


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Three seeds of the demo",
        "",
        f"{result['date']}, commit `{result['commit'][:12]}`, {result['machine']}. Made by "
        "`make demo-seeds`.",
        "",
        f"avg@8 in percent on {result['rows'][0]['problems']} held-out problems; `before` is the "
        "warm start that RL begins from. All arms of a seed share it. `plain` is GRPO without "
        "rescue, substitution, probe, stages and curation, at equal tokens sampled in training "
        "(what POLARIS samples to calibrate, to probe and at a stage's entry is not among them); "
        "`control` is the recipe with rewards permuted inside each group.",
        "",
        "| seed | before | well formed | POLARIS | gain | plain | gain | control | gain | "
        "POLARIS - plain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [str(row["seed"]), f"{row['before']:.1%}", f"{row['before_well_formed']:.1%}"]
        for arm in ARMS:
            cells += [f"{row[arm]:.1%}", f"{100 * row[f'{arm}_gain']:+.1f}"]
        cells.append(
            f"{100 * row['polaris_minus_plain']:+.1f} +- "
            f"{100 * row['polaris_minus_plain_stderr']:.1f}"
        )
        lines.append("| " + " | ".join(cells) + " |")
    mean, low = result["mean_gain"], result["lowest_gain"]
    lines += [
        "",
        f"Mean gain: POLARIS {100 * mean['polaris']:+.1f} points (lowest "
        f"{100 * low['polaris']:+.1f}), plain {100 * mean['plain']:+.1f}, control "
        f"{100 * mean['control']:+.1f}. POLARIS minus plain: "
        f"{100 * result['polaris_minus_plain']:+.1f} +- "
        f"{100 * result['polaris_minus_plain_stderr_over_seeds']:.1f} points (standard error over "
        "the three seeds).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "tokens":
        print(sampled_tokens(Path(sys.argv[2])))
    elif len(sys.argv) == 4 and sys.argv[1] == "report":
        result, out = collect(Path(sys.argv[2])), Path(sys.argv[3])
        out.mkdir(parents=True, exist_ok=True)
        (out / "demo_seeds.json").write_text(json.dumps(result, indent=2) + "\n")
        (out / "demo_seeds.md").write_text(as_markdown(result))
        print(as_markdown(result))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
