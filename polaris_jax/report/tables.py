"""The tables of report.html."""

from __future__ import annotations

from collections.abc import Sequence

from polaris_jax.report.figures import group_count
from polaris_jax.report.page import escaped, folded, section, table
from polaris_jax.report.run_files import RunFiles
from polaris_jax.report.runs import NamedRun
from polaris_jax.report.summary import StageRow, named_scores, share


def evaluations_table(run: RunFiles) -> list[str]:
    """The held-out scores of a run, under a heading; [] if it has none."""
    present = named_scores(run)
    if not present:
        return []
    samples = {score["k"] for _, score in present}
    tokens = sorted({int(k) for _, score in present for k in (score.get("pass@k") or {})})
    rows = []
    for title, score in present:
        error = score.get("stderr")
        groups = score.get("length_groups") or []
        lengths = ", ".join(
            f"{g['name']}: {share(g['accuracy'])} (n={group_count(g)})" for g in groups
        )
        rows.append(
            [
                title,
                share(score["avg@k"])
                + (f" ± {error:.1%}" if error else "")
                + (f" (k={score['k']})" if len(samples) > 1 else ""),
                *(share((score.get("pass@k") or {}).get(str(k))) for k in tokens),
                f"{score['temperature']:g}",
                score["max_response_tokens"],
                lengths,
            ]
        )
    average = f"avg@{samples.pop() if len(samples) == 1 else 'k'}"
    header = ["", average, *(f"pass@{k}" for k in tokens)]
    header += ["temperature", "budget", "accuracy by length in tokens"]
    return ["<h3>Held-out evaluation</h3>", table(header, rows)]


def stages_table(stages: Sequence[StageRow]) -> list[str]:
    """The stages of a run and their decisions, under a heading; [] if it has none."""
    if not stages:
        return []
    rows, entries = [], []
    for stage in stages:
        if stage.decisions:
            decisions = "".join(f"<li>{escaped(d)}</li>" for d in stage.decisions)
            title = f"Decisions of stage {escaped(stage.stage)}"
            entries.append(f"<h3>{title}</h3><ul>{decisions}</ul>")
        rows.append(
            [
                stage.stage,
                stage.steps,
                f"{stage.temperature:.3g}",
                stage.max_response_tokens,
                f"{share(stage.reward_first)} → {share(stage.reward_last)}",
                stage.rescued,
                stage.substituted,
                stage.dropped_so_far,
            ]
        )
    header = ("stage", "steps", "temperature", "budget", "reward, first and last quarter")
    header += ("rescued", "substituted", "dropped before it")
    return ["<h3>Stages</h3>", table(header, rows), *entries]


def absent_table(absent: Sequence[tuple[str, str]]) -> list[str]:
    """What the report lacks, and why."""
    return [section("absent", "Not in this report", table((), absent))] if absent else []


def configuration(runs: Sequence[NamedRun]) -> list[str]:
    """Every field of the runs' configs, folded."""
    parts = []
    for run in runs:
        config = (run.files.run or {}).get("config")
        if config:
            lines = "\n".join(f"{name} = {value!r}" for name, value in sorted(config.items()))
            title = (
                f"{run.name}: {len(config)} fields" if len(runs) > 1 else f"{len(config)} fields"
            )
            text = "\n".join(escaped(line) for line in lines.split("\n"))
            parts.append(folded(title, f'<pre class="config">{text}</pre>'))
    return [section("config", "Configuration", *parts)] if parts else []
