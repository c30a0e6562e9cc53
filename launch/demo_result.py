"""What one run of the demo has shown, and what the recorded runs of all bases have.

usage: demo_result.py WORKDIR           the result of `make demo`
       demo_result.py tokens RUN        tokens that a run has sampled to learn
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from polaris_jax.demo.ways import count_rows, decompose, gain_lines

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "docs" / "results" / "ablations.json"
ARMS = {"plain": "plain GRPO", "polaris": "POLARIS"}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens(workdir: Path) -> int:
    """Tokens that a run has sampled to learn, calibration, probe and resets included."""
    counts = json.loads((workdir / "run.json").read_text())["counts"]
    total = counts["sampled_tokens"] + counts.get("reset_tokens", 0)
    for name in ("calibrate.json", "probe.json"):
        if (workdir / name).exists():
            total += json.loads((workdir / name).read_text())["sampled_tokens"]
    return total


def lines(workdir: Path) -> list[str]:
    before = count_rows(rows(workdir / "base" / "responses.jsonl"))
    score = json.loads((workdir / "base" / "eval.json").read_text())["avg@k"]
    found = ["", f"base        {score:6.1%} of the held-out problems"]
    for arm, name in ARMS.items():
        score = json.loads((workdir / arm / "eval.json").read_text())["avg@k"]
        gain = decompose(before, count_rows(rows(workdir / arm / "responses.jsonl")))
        found.append(f"{name:<11} {score:6.1%}, {tokens(workdir / arm):,} tokens sampled in all")
        found += [f"            {line}" for line in gain_lines(gain)]
    tables = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if "headline" in tables:
        found += ["", *recorded(tables["headline"])]
    return found


def recorded(summary: dict[str, Any]) -> list[str]:
    """The recorded table of all bases, at equal tokens in all."""
    arms = {arm["name"]: arm for arm in summary["arms"]}
    difference = arms["polaris"]["difference"]
    found = [
        f"recorded, {difference['n']} bases with one seed each, shorter stages, at equal tokens in "
        "all (docs/results/ablations.md):"
    ]
    for arm, name in ARMS.items():
        last = arms[arm]["last"]
        found.append(f"{name:<11} {last['mean']:6.1%} +- {last['stderr']:.1%} at the end")
    found.append(
        f"difference of the mean held-out score over the run: {100 * difference['mean']:+.1f} +- "
        f"{100 * difference['stderr']:.1f} points"
    )
    return found


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "tokens":
        print(tokens(Path(sys.argv[2])))
    elif len(sys.argv) == 2:
        print("\n".join(lines(Path(sys.argv[1]))))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
