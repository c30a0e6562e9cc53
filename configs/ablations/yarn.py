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
from polaris_jax.ablate.outcome import read_outcome
from polaris_jax.ablate.statistics import Pair, paired, spread

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
    folder = epath.Path(str(out))
    outcomes = [found for run in TABLE.runs() if (found := read_outcome(folder, run)) is not None]
    score: dict[str, dict[Pair, float]] = {}  # of each arm
    for one in outcomes:
        score.setdefault(one.arm, {})[one.pair] = one.figure(TABLE.figure)
    known = [n for n in STEPS if all(name(n, factor) in score for factor in FACTORS)]
    if not known:
        return ""
    heads = [f"factor {f}" if f > 1 else "off" for f in FACTORS]
    lines = [
        "Mean score by length, in percent (the bases were trained on up to 5 steps):",
        "",
        f"| steps | {' | '.join(heads)} |",
        "|---" * (len(FACTORS) + 1) + "|",
    ]
    for steps in known:
        means = [spread(list(score[name(steps, f)].values())).mean for f in FACTORS]
        lines.append(f"| {steps} | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |")
    for factor in FACTORS[1:]:
        signs: dict[bool, list[str]] = {True: [], False: []}
        for steps in known:
            found = paired(score[name(steps, factor)], score[name(steps, 1.0)])
            if found is not None and abs(found.mean) > 2 * (found.stderr or 0.0):
                signs[found.mean > 0].append(str(steps))
        lines += [
            "",
            f"Factor {factor}: a loss of more than two standard errors at "
            f"{', '.join(signs[False]) or 'no number of'} steps, a gain at "
            f"{', '.join(signs[True]) or 'no number of'} steps.",
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
