"""YaRN factors by length, inside and beyond the trained length; nothing is trained by RL.

    polaris ablate configs/ablations/yarn.py --out workdirs/ablations/yarn

The bases are warm-started on right, careful texts of 1 to 5 steps, so that what fails beyond is the
length. Each arm is a number of steps and a factor, compared with the same number without YaRN.

Expected before the runs: beyond the trained length a factor that covers it gains; inside, every
factor loses, the larger the more; so the curves cross near the trained length.
"""

import runpy
from pathlib import Path
from typing import Any

from etils import epath

from polaris_jax.ablate import Arm
from polaris_jax.ablate.outcome import read_outcome_at
from polaris_jax.ablate.statistics import spread

task = runpy.run_path(str(Path(__file__).with_name("_task.py")))
TRAINED_TOKENS = 96  # longest prompt and text of the warm start, rounded up
STEPS = (3, 5, 6, 7, 8)
FACTORS = (1.0, 1.25, 1.5, 2.0)


def name(steps: int, factor: float) -> str:
    """The arm's name."""
    return f"{steps}-steps-{factor if factor > 1 else 'off'}"


def arm(steps: int, factor: float) -> Arm:
    """Problems with that number of steps; YaRN scales positions by the factor."""
    fields = {
        "data.arithmetic.min_steps": steps,
        "data.arithmetic.max_steps": steps,
        "evaluate.yarn": "on" if factor > 1 else "off",
        "rope.yarn.factor": factor,
    }
    return Arm(name(steps, factor), fields, against=name(steps, 1.0) if factor > 1 else None)


def by_length(out: Any) -> str:
    """The scores with a row a length and a column a factor, and where each factor begins to pay.

    Args:
        out: the folder of the table's runs.
    """
    out = epath.Path(str(out))

    def scores(steps: int, factor: float) -> dict[str, float]:
        """{base: score}, of the runs that have ended."""
        runs = (f"runs/{name(steps, factor)}/{base}-{task['SEEDS'][0]}" for base in task["BASES"])
        ended = [run for run in runs if (out / run / task["FINISHED"]).exists()]
        return {run: read_outcome_at(out, run).figure("last") for run in ended}

    def difference(steps: int, factor: float) -> tuple[float, float]:
        """Mean difference to no YaRN, and its standard error."""
        own, off = scores(steps, factor).values(), scores(steps, 1.0).values()
        found = spread([a - b for a, b in zip(own, off, strict=False)])
        return found.mean, found.stderr or 0.0

    complete = [n for n in STEPS if all(len(scores(n, f)) == len(task["BASES"]) for f in FACTORS)]
    if not complete:
        return ""
    heads = [f"factor {f}" if f > 1 else "off" for f in FACTORS]
    lines = [
        "Mean score by length, in percent (the bases were trained on up to 5 steps):",
        "",
        f"| steps | {' | '.join(heads)} |",
        "|---" * (len(FACTORS) + 1) + "|",
    ]
    for steps in complete:
        cells = [f"{100 * spread(list(scores(steps, f).values())).mean:.1f}" for f in FACTORS]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    for factor in FACTORS[1:]:
        found = {steps: difference(steps, factor) for steps in complete}
        gains = [str(n) for n, (mean, error) in found.items() if mean > 2 * error]
        losses = [str(n) for n, (mean, error) in found.items() if mean < -2 * error]
        lines += [
            "",
            f"Factor {factor}: a loss of more than two standard errors at "
            f"{', '.join(losses) or 'no number of'} steps, a gain at "
            f"{', '.join(gains) or 'no number of'} steps.",
        ]
    return "\n".join(lines)


TABLE = task["table"](
    *(arm(steps, factor) for steps in STEPS for factor in FACTORS),
    of_base={
        "warmstart.slip_rate": 0.0,
        "warmstart.habits": 0.0,
        "warmstart.steps": 1200,
        "data.max_prompt_tokens": 96,
        "evaluate.max_response_tokens": 96,
        "rope.yarn.original_max_position_embeddings": TRAINED_TOKENS,
    },
    bases=task["BASES"],
    train=False,
    notes=by_length,
)
