"""What the small ablations share: bases, learning rates, and the notes below their tables.

The task, the model and the sizes are those of configs/demo.py. Everything here was fixed before the
runs that count: nine bases with one RL seed each, three learning rates, and three further bases on
which each arm's learning rate is found. docs/notebook/ablations.md says what was changed after a
first run.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from etils import epath

from polaris_jax.ablate import Arm, Table, Tuning
from polaris_jax.ablate.outcome import FINISHED, read_outcome_at
from polaris_jax.ablate.statistics import spread
from polaris_jax.demo.ways import count_rows, decompose

CONFIG = "configs/demo.py"
STEPS = 60  # nearly four visits of each problem
OVERRIDES = {
    "stages[0].steps": STEPS,
    "batch.share_prompts": "on",  # a fifth faster; configs/demo.py keeps its recorded digits
    "evaluate.every_steps": 10,
}
SEEDS = (0,)
LEARNING_RATES = (3e-5, 1e-4, 3e-4)

PLAIN = {"batch.rescue": False, "batch.substitute": False}
RESCUE = {"batch.rescue": True, "batch.substitute": False}
SUBSTITUTION = {"batch.rescue": False, "batch.substitute": True}
BOTH = {"batch.rescue": True, "batch.substitute": True}


def base(number: int) -> dict[str, Any]:
    """Base `number`: a warm start and a problem set of its own."""
    return {"warmstart.seed": number, "data.arithmetic.seed": number}


BASES = {f"base{number}": base(number) for number in range(9)}
TUNING = Tuning(
    "optimizer.learning_rate",
    LEARNING_RATES,
    bases={"tuning": base(100), "tuning1": base(101), "tuning2": base(102)},
    seeds=SEEDS,
)


def plain(**fields: Any) -> Arm:
    """The arm that the others are compared with."""
    return Arm("plain", PLAIN, **fields)


def table(
    *arms: Arm,
    config: str = "",
    overrides: Mapping[str, Any] = MappingProxyType({}),
    of_base: Mapping[str, Any] = MappingProxyType({}),
    **fields: Any,
) -> Table:
    """A table of the fixed design.

    Args:
        arms: its arms.
        config: config of the arms that name none; empty: `CONFIG`, which makes the bases.
        overrides: further fields of every arm.
        of_base: further fields of every arm and base. A table with any has bases of its own; all
            others can share theirs.
        fields: other fields of the `Table`.
    """
    complete = [
        dataclasses.replace(
            arm, config=arm.config or config, overrides={**overrides, **arm.overrides}
        )
        for arm in arms
    ]
    usual = {"config": CONFIG, "bases": BASES, "seeds": SEEDS}
    return Table(complete, overrides={**OVERRIDES, **of_base}, **{**usual, **fields})


def headline(of_base: Mapping[str, Any] = MappingProxyType({})) -> Table:
    """Plain GRPO against the complete recipe, until both have sampled as many tokens in all.

    Args:
        of_base: the regime, as fields of every arm and base.
    """
    two_stages = {"stages[0].steps": STEPS, "stages[1].steps": STEPS}
    return table(
        Arm("plain", {**PLAIN, "stages[0].steps": 1000}, tokens_of="polaris"),
        Arm("polaris", two_stages, config="configs/demo.py:recipe", before=("calibrate", "probe")),
        tuning=TUNING,
        evaluate=True,
        notes=lambda out: f"{at_equal_updates(out)}\n\n{decomposition(out)}",
        of_base=of_base,
    )


def at_equal_updates(out: Any) -> str:
    """The headline's difference over as many updates, and what calibration, probe and resets took.

    Args:
        out: the folder of the table's runs.
    """
    out, pairs, shares = epath.Path(str(out)), [], []
    for run in sorted(out.glob("runs/polaris/*")):
        other = f"runs/plain/{run.name}"
        if not ((run / FINISHED).exists() and (out / other / FINISHED).exists()):
            continue  # the table was stopped before
        polaris, plain = (read_outcome_at(out, n) for n in (f"runs/polaris/{run.name}", other))
        last = max(step for step, _ in polaris.scores)
        early = tuple((step, score) for step, score in plain.scores if step <= last)
        same = dataclasses.replace(plain, scores=early)
        pairs.append(polaris.figure("mean") - same.figure("mean"))
        shares.append(1 - polaris.sampled_tokens / polaris.total_tokens)
    if not pairs:
        return ""
    found = spread(pairs)
    return (
        f"`polaris` takes {sum(shares) / len(shares):.0%} of its tokens for calibration, probe and "
        f"reset. Without them, over as many updates as `polaris` makes, its difference to `plain` "
        f"is {100 * found.mean:+.1f} ± {100 * (found.stderr or 0):.1f} points."
    )


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a responses.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def decomposition(out: Any) -> str:
    """Which part of each arm's gain lies within a way of writing, and which in its choice.

    Args:
        out: the folder of the table's runs.
    """
    out = Path(str(out))
    counted = {p.parent.name.rpartition("-")[0] for p in out.glob("runs/*/*/responses.jsonl")}
    if not counted:
        return ""
    before = {base: count_rows(rows(out / "bases" / base / "responses.jsonl")) for base in counted}
    lines = [
        "What the gain of the last weights consists of, in points, mean over the runs: more right "
        "answers within a way of writing, and other shares of the ways.",
        "",
        "| arm | gain | within a way | by the choice of the way | careful | right | hurried | "
        "right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(out.glob("runs/*")):
        gains = [
            decompose(before[path.parent.name.rpartition("-")[0]], count_rows(rows(path)))
            for path in sorted(arm.glob("*/responses.jsonl"))
        ]
        if not gains:
            continue
        parts = [
            100 * sum(getattr(gain, name) for gain in gains) / len(gains)
            for name in ("total", "within", "choice")
        ]
        cells = [f"`{arm.name}`", *(f"{part:+.1f}" for part in parts)]
        for way in ("careful", "hurried"):
            share = sum(gain.after[way].share for gain in gains) / len(gains)
            right = sum(gain.after[way].share * gain.after[way].right for gain in gains)
            cells += [f"{share:.0%}", f"{right / len(gains) / share:.1%}" if share else ""]
        lines.append(f"| {' | '.join(cells)} |")
    every, said = [before[base] for base in sorted(before)], []
    for way in ("careful", "hurried"):
        share = sum(ways[way].share for ways in every) / len(every)
        right = sum(ways[way].share * ways[way].right for ways in every) / len(every)
        said.append(
            f"{share:.0%} {way}" + (f", {right / share:.1%} of them right" if share else "")
        )
    lines += ["", f"Before: {'; '.join(said)}."]
    return "\n".join(lines)
