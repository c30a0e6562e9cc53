"""The figures of training: curves over steps, stage borders marked.

Each takes the lines of metrics.jsonl or timing.jsonl, the records of stages.json and a path, and
returns False, drawing nothing, where the lines hold none of its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.ticker import MaxNLocator

from polaris_jax.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TOKENS,
    curve,
    from_zero,
    legend,
    mark_stages,
    numbers,
    panels,
    rates,
)

Lines = Sequence[dict[str, Any]]
Curves = Callable[[Lines, Sequence[dict[str, Any]], epath.Path], bool]
GIB = 2**30


def _has(lines: Lines, *names: str) -> bool:
    return any(line.get(name) is not None for line in lines for name in names)


def _steps(lines: Lines) -> np.ndarray:
    return np.array([line["step"] for line in lines], np.int64)


def reward_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """Mean reward, the informative share, and held-out accuracy during training."""
    if not _has(lines, "rollout/reward_mean"):
        return False
    steps = _steps(lines)
    with panels(path, "Reward of training rollouts", rows=2) as (top, bottom):
        curve(top, lines, "rollout/reward_mean", label="mean reward", color=BLUE)
        for name in sorted({n for line in lines for n in line if n.startswith("eval/avg@")}):
            values = numbers(lines, name)
            known = np.isfinite(values)
            top.plot(
                steps[known],
                values[known],
                "D",
                color=RED,
                ms=6,
                label=f"held-out {name.removeprefix('eval/')}",
            )
        rates(top, "reward")
        curve(bottom, lines, "rollout/informative_share", label="informative", color=GREEN)
        rates(bottom, "groups with unequal rewards")
        bottom.set_xlabel("step")
        mark_stages([top, bottom], stages, int(steps[-1]))
        legend(top)
        legend(bottom)
    return True


def length_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """Response lengths by outcome, and the share that the budget cut."""
    if not _has(lines, "rollout/mean_length"):
        return False
    steps = _steps(lines)
    with panels(path, "Response length", rows=2) as (top, bottom):
        for name, label, color in (
            ("rollout/mean_length", "all", INK),
            ("rollout/mean_length_correct", "correct", BLUE),
            ("rollout/mean_length_incorrect", "incorrect", ORANGE),
        ):
            curve(top, lines, name, label=label, color=color)
        _budget_line(top, stages, int(steps[-1]))
        from_zero(top, "tokens (mean)")
        top.yaxis.set_major_formatter(TOKENS)
        for name, label, color in (
            ("rollout/clip_ratio", "all", INK),
            ("rollout/clip_ratio_correct", "correct", BLUE),
            ("rollout/clip_ratio_incorrect", "incorrect", ORANGE),
        ):
            curve(bottom, lines, name, label=label, color=color)
        rates(bottom, "cut by the budget")
        highest = max(
            0.05,
            *(
                np.nanmax(np.append(numbers(lines, f"rollout/clip_ratio{s}"), 0.0))
                for s in ("", "_correct", "_incorrect")
            ),
        )
        bottom.set_ylim(0, min(1.02, 1.15 * highest))
        bottom.set_xlabel("step")
        mark_stages([top, bottom], stages, int(steps[-1]))
        legend(top)
        legend(bottom)
    return True


def _budget_line(axes: Any, stages: Lines, last_step: int) -> None:
    for index, stage in enumerate(stages):
        end = stages[index + 1]["first_step"] if index + 1 < len(stages) else last_step + 1
        axes.hlines(
            stage["max_response_tokens"],
            stage["first_step"] - 0.5,
            end - 0.5,
            color=RED,
            linewidth=1.2,
            linestyle=":",
            label="budget" if index == 0 else None,
        )


def exploration_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """Entropy, diversity and temperature: what the stage controller reacts to."""
    if not _has(lines, "update/entropy", "rollout/diversity"):
        return False
    steps = _steps(lines)
    with panels(path, "Exploration", rows=3) as (top, middle, bottom):
        curve(top, lines, "update/entropy", label="entropy", color=PURPLE)
        from_zero(top, "entropy, nats a token")
        curve(middle, lines, "rollout/diversity", label="diversity", color=ORANGE)
        middle.set_ylabel("distinct 4-grams / all")
        bottom.step(steps, numbers(lines, "rollout/temperature"), where="mid", color=RED)
        bottom.set_ylabel("temperature")
        bottom.set_xlabel("step")
        mark_stages([top, middle, bottom], stages, int(steps[-1]))
    return True


def batch_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """What the recipe changed in each batch: rescued, substituted, and easy problems dropped."""
    if not _has(lines, "batch/rescued_groups", "batch/substituted_groups"):
        return False
    steps = _steps(lines)
    with panels(path, "Rescue, substitution and dropped problems", rows=3) as axes:
        top, middle, bottom = axes
        rescued = np.nan_to_num(numbers(lines, "batch/rescued_groups"))
        top.bar(steps, rescued, width=0.9, color=GREEN)
        top.set_ylabel("groups rescued")
        swapped = np.nan_to_num(numbers(lines, "batch/substituted_groups"))
        reused = np.nan_to_num(numbers(lines, "batch/donors_reused"))
        middle.bar(steps, swapped, width=0.9, color=SKY, label="substituted")
        middle.bar(steps, reused, width=0.9, color=BLUE, label="by a donor\nused twice")
        middle.set_ylabel("groups substituted")
        bottom.step(steps, numbers(lines, "data/dropped"), where="mid", color=RED)
        bottom.set_ylabel("problems dropped")
        bottom.set_xlabel("step")
        for panel in axes:
            panel.set_ylim(bottom=0)
            panel.set_ylim(top=max(1.0, 1.15 * panel.get_ylim()[1]))
            panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        mark_stages(axes, stages, int(steps[-1]))
        legend(middle)
    return True


def update_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """Loss, gradient norm and clipping of the optimizer steps; skipped ones marked."""
    if not _has(lines, "update/loss", "update/grad_norm"):
        return False
    steps = _steps(lines)
    with panels(path, "Policy updates", rows=3) as (top, middle, bottom):
        curve(top, lines, "update/loss", label="loss", color=BLUE)
        top.set_ylabel("loss")
        curve(middle, lines, "update/grad_norm", label="norm", color=INK)
        skipped = numbers(lines, "update/skipped") > 0
        if skipped.any():
            middle.plot(
                steps[skipped],
                np.zeros(skipped.sum()),
                "x",
                color=RED,
                label="skipped",
                clip_on=False,
            )
        from_zero(middle, "gradient norm")
        for name, label, color in (
            ("update/clip_fraction_low", "clipped low", ORANGE),
            ("update/clip_fraction_high", "clipped high", SKY),
        ):
            curve(bottom, lines, name, label=label, color=color)
        rates(bottom, "tokens clipped")
        fractions = [numbers(lines, f"update/clip_fraction_{side}") for side in ("low", "high")]
        highest = float(np.nanmax(np.append(np.concatenate(fractions), 0.0)))
        bottom.set_ylim(0, max(0.01, min(1.02, 1.2 * highest)))
        bottom.set_xlabel("step")
        mark_stages([top, middle, bottom], stages, int(steps[-1]))
        legend(bottom)
        if skipped.any():
            legend(middle)
    return True


def logprob_gap_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """How far the sampler's log-probs lie from the trainer's, on freshly sampled tokens."""
    names = ("rollout/logp_gap_mean", "rollout/logp_gap_max")
    if not _has(lines, *names):
        return False
    steps = _steps(lines)
    with panels(path, "Sampler against trainer") as (axes,):
        for name, label, color in zip(names, ("mean", "largest"), (BLUE, ORANGE), strict=True):
            values = numbers(lines, name)
            axes.plot(steps, np.where(values > 0, values, np.nan), color=color, label=label)
        axes.set_yscale("log")
        axes.set_ylabel("|difference| of log-probs, nats")
        axes.set_xlabel("step")
        mark_stages([axes], stages, int(steps[-1]))
        legend(axes)
    return True


PHASES = (
    ("rollout", BLUE),
    ("grade", ORANGE),
    ("update", GREEN),
    ("evaluate", PURPLE),
    ("save", GREY),
)


def time_figure(lines: Lines, stages: Lines, path: epath.Path) -> bool:
    """Where the seconds of a step went, tokens a second, and memory."""
    if not _has(lines, *(f"time/{name}_s" for name, _ in PHASES)):
        return False
    steps = _steps(lines)
    with panels(path, "Time, speed and memory", rows=3) as (top, middle, bottom):
        floor = np.zeros(len(steps))
        for name, color in PHASES:
            seconds = np.nan_to_num(numbers(lines, f"time/{name}_s"))
            if seconds.any():
                top.bar(steps, seconds, bottom=floor, width=0.92, color=color, label=name)
                floor += seconds
        from_zero(top, "seconds a step")
        for name, label, color in (
            ("throughput/rollout_tokens_per_s", "rollout", BLUE),
            ("throughput/update_tokens_per_s", "update", GREEN),
        ):
            curve(middle, lines, name, label=label, color=color)
        from_zero(middle, "tokens / second")
        middle.yaxis.set_major_formatter(TOKENS)
        for name, label, color in (
            ("memory/host_bytes", "host", ORANGE),
            ("memory/device_bytes", "device", PURPLE),
            ("memory/device_peak_bytes", "device peak", SKY),
        ):
            curve(bottom, lines, name, unit=GIB, label=label, color=color)
        from_zero(bottom, "memory, GiB")
        bottom.set_xlabel("step")
        mark_stages([top, middle, bottom], stages, int(steps[-1]))
        for axes in (top, middle, bottom):
            legend(axes)
    return True
