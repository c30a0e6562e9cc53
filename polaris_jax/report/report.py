"""A run directory in, figures/ and report.html out."""

from __future__ import annotations

import functools
from collections.abc import Callable

from etils import epath

from polaris_jax.config import ConfigError
from polaris_jax.report import scores
from polaris_jax.report.curves import (
    Curves,
    batch_figure,
    exploration_figure,
    length_figure,
    logprob_gap_figure,
    reward_figure,
    time_figure,
    update_figure,
)
from polaris_jax.report.figures import difficulty_figure, evaluation_figure, probe_figure
from polaris_jax.report.html import write_html
from polaris_jax.report.run_files import RunFiles, holds_anything, read_run
from polaris_jax.report.summary import ReportSummary, stage_rows, summary_rows
from polaris_jax.system.files import AnyPath, as_place

CURVES: tuple[tuple[str, Curves, str, str], ...] = (
    (
        "reward",
        reward_figure,
        "Mean reward of the rollouts as sampled, before rescue and substitution, and the share of "
        "groups whose responses disagree: only these teach. Held-out scores in between are graded "
        "in mode eval, with evaluate.max_response_tokens (by default the last stage's) in every "
        "stage.",
        "metrics.jsonl",
    ),
    (
        "length",
        length_figure,
        "Mean response length of correct and incorrect responses, and the share that reached the "
        "budget of its stage.",
        "metrics.jsonl",
    ),
    (
        "exploration",
        exploration_figure,
        "Entropy falls as a policy sharpens; a stage's start may raise the temperature so that "
        "diversity regains its former value.",
        "metrics.jsonl",
    ),
    (
        "batch",
        batch_figure,
        "Groups that a stored correct response rescued, groups replaced by an informative one, and "
        "easy problems dropped at stage ends.",
        "metrics.jsonl",
    ),
    (
        "update",
        update_figure,
        "Loss, gradient norm before clipping, and the share of tokens at the clip bounds (0 with "
        "one update a batch and current log-probs: the ratio is 1).",
        "metrics.jsonl",
    ),
    (
        "logprob_gap",
        logprob_gap_figure,
        "Absolute difference between the log-prob that the sampler reported and the one that the "
        "trainer computes, on tokens sampled in the same step.",
        "metrics.jsonl",
    ),
    (
        "time",
        time_figure,
        "Seconds by phase, tokens a second, and memory of the first process.",
        "timing.jsonl",
    ),
)


def make_report(run_dir: AnyPath) -> ReportSummary:
    """The run in figures/*.png and report.html, both in `run_dir`, and in the rows it returns.

    A file that is absent leaves its figures out; they are named in `absent`.

    Raises:
        FileNotFoundError: `run_dir` is no directory.
        ConfigError: it holds no file of a run.
    """
    run_dir = as_place(run_dir)
    run = read_run(run_dir)
    if not holds_anything(run):
        raise ConfigError(
            f"--workdir={run_dir}: holds no file of a run (metrics.jsonl, eval.json, ...); name "
            "the directory that the other commands were given"
        )
    folder = run_dir / "figures"
    paths: list[epath.Path] = []
    captions: list[str] = []
    absent: list[tuple[str, str]] = []

    def add(name: str, caption: str, source: str, draw: Callable[[epath.Path], bool]) -> None:
        path = folder / f"{name}.png"
        if source not in run.absent and draw(path):
            paths.append(path)
            captions.append(caption)
            return
        path.unlink(missing_ok=True)  # of an earlier report
        why = run.absent.get(source, "holds none of its metrics")
        absent.append((f"figure {name}", f"{source}: {why}"))

    _add_command_figures(run, add)
    for name, figure, caption, source in CURVES:
        lines = run.timing if source == "timing.jsonl" else run.metrics
        add(name, caption, source, functools.partial(figure, lines, run.stages))
    named = {reason.split(":")[0] for _, reason in absent}
    absent += [(name, why) for name, why in run.absent.items() if name not in named]

    stages = stage_rows(run)
    summary = ReportSummary(
        rows=summary_rows(run, stages),
        stages=stages,
        figures=tuple(paths),
        absent=tuple(absent),
        html=run_dir / "report.html",
    )
    write_html(summary, run, captions, title=f"POLARIS run: {run_dir.name}")
    return summary


def _add_command_figures(run: RunFiles, add: Callable[..., None]) -> None:
    def drawing(figure: Callable[..., None], summary: object, **more: object) -> Callable:
        def draw(path: epath.Path) -> bool:
            figure(summary, path, **more)
            return True

        return draw

    add(
        "evaluation",
        scores.caption(run.before, run.evaluation),
        "eval.json",
        drawing(evaluation_figure, run.evaluation, before=run.before),
    )
    add(
        "difficulty",
        "How many of the calibration rollouts solved each problem; the grey ones are left out of "
        "training.",
        "calibrate.json",
        drawing(difficulty_figure, run.calibrate),
    )
    add(
        "probe",
        "Accuracy and diversity over sampling temperatures. Training starts at the upper border of "
        "the robust zone.",
        "probe.json",
        drawing(probe_figure, run.probe),
    )
