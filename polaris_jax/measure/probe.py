"""Accuracy and diversity over temperatures, their zones, and the temperature to begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.assemble import load_base
from polaris_jax.config import RunConfig
from polaris_jax.data.problems import problems_digest
from polaris_jax.explore import Candidate, find_zones
from polaris_jax.explore.temperature import measure_candidate
from polaris_jax.explore.zones import MIN_SAMPLES, is_above_zero, tolerances
from polaris_jax.measure.inputs import (
    measured_on,
    open_progress,
    response_settings,
    reward_identity,
)
from polaris_jax.measure.probe_set import NO_PLATEAU
from polaris_jax.measure.solve import open_policy
from polaris_jax.records import Problem
from polaris_jax.report.figures import probe_figure
from polaris_jax.reward.configured import check_reward
from polaris_jax.run.owner import Ownership, command_owns
from polaris_jax.run.record import refuse_other_run, with_recorded_defaults
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.system import processes
from polaris_jax.system.progress import Progress
from polaris_jax.system.seeds import fold_seed

# Rows of earlier versions have no tokens.
ROW = [field.name for field in dataclasses.fields(Candidate) if field.name != "tokens"]


def probe(config: RunConfig, workdir: epath.Path, *, progress: Progress) -> dict[str, Any]:
    """The temperature sweep on a fixed probe set -> probe.json, probe.png.

    A rerun continues after the last finished temperature.

    Source: POLARIS, section 2 (temperature zones; initialise at the border where accuracy begins
        to fall).
    """
    config = with_recorded_defaults(workdir, config, progress.line)
    refuse_other_run(workdir, config, sections=("seed", "model", "data", "warmstart", "rope"))
    check_reward(config.reward)
    ensure_workdir(workdir)
    writes = ("probe_progress.jsonl", "probe_progress.identity.json", "probe.json", "probe.png")
    primary = processes.is_first()
    with command_owns(workdir, "probe", writes=writes, primary=primary) as ownership:
        return _probe(config, workdir, progress, ownership)


def _probe(
    config: RunConfig, workdir: epath.Path, progress: Progress, ownership: Ownership
) -> dict[str, Any]:
    section = config.probe
    max_response_tokens = section.max_response_tokens or config.stages[0].max_response_tokens
    measured = measured_on(config, workdir, progress)
    problems = measured.problems
    order = np.random.default_rng(fold_seed(config.seed, "probe set")).permutation(len(problems))
    problems = [problems[i] for i in order[: section.problems]]
    count = int(np.floor((section.stop - section.start) / section.step + 1e-6)) + 1
    temperatures = [round(section.start + i * section.step, 6) for i in range(count)]
    progress.line(
        f"probing {len(temperatures)} temperatures on {len(problems)} problems from "
        f"{measured.origin}"
    )
    done = open_progress(
        workdir / "probe_progress.jsonl",
        row_identity(config, problems, max_response_tokens=max_response_tokens),
        key=("temperature",),
        valid=lambda row: all(isinstance(row[name], int | float) for name in ROW),
        inputs=measured.inputs,
        places=measured.places,
        may_write=ownership.check,
    )
    rows = {row["temperature"]: row for row in done.rows}
    waiting, judged = [t for t in temperatures if t not in rows], []
    if waiting:
        base = load_base(config, workdir, progress)[0], measured.tokenizer
        responses = len(problems) * section.n
        with (
            open_policy(config, progress, base, max_response_tokens=max_response_tokens) as policy,
            progress.phase("probe", len(temperatures) * responses) as phase,
        ):
            for temperature in waiting:
                graded = policy.solve(
                    problems,
                    n=section.n,
                    temperature=temperature,
                    max_response_tokens=max_response_tokens,
                    seed_parts=(config.seed, "probe", f"{temperature:.4f}"),
                    mode=config.reward.mode,
                    on_progress=phase.sampling(len(rows) * responses, responses),
                )
                row = dataclasses.asdict(
                    measure_candidate(
                        temperature,
                        graded.texts,
                        graded.correct_PR,
                        tokens=graded.response_tokens,
                    )
                )
                judged.append(policy.judged(graded, problems, reward=config.reward))
                done.append([row])
                rows[temperature] = row
                phase.advance_to(len(rows) * responses, f"T {temperature:g}: {row['accuracy']:.1%}")
    columns = {
        name: [rows[t][key] for t in temperatures]
        for name, key in (
            ("accuracies", "accuracy"),
            ("stderrs", "stderr"),
            ("diversities", "diversity"),
        )
    }
    if judged:  # of a sweep that is cold at one end and collapses at the other, the best
        best = max(judged, key=lambda health: (health.informative, health.correct_share))
        for text in best.lines():
            progress.line(text)
    accuracies, stderrs = columns["accuracies"], columns["stderrs"]
    zones = None
    if is_above_zero(accuracies, stderrs):
        zones = find_zones(
            temperatures, accuracies, stderrs=stderrs, **tolerances(section, accuracies)
        )
    chosen = None if zones is None else zones.initial_temperature
    summary = {
        "temperatures": temperatures,
        **columns,
        "n": section.n,
        "problems": len(problems),
        "note": few_samples_note(len(problems), section.n),
        "max_response_tokens": max_response_tokens,
        "sampled_tokens": sum(rows[t].get("tokens", 0) for t in temperatures),
        "zones": zones
        and {k: v for k, v in dataclasses.asdict(zones).items() if k != "initial_temperature"},
        "initial_temperature": chosen,
        "at_edge": zones is not None and zones.at_edge,
    }
    if processes.is_first():
        ownership.check()
        write_json(workdir / "probe.json", summary)
        probe_figure(summary, workdir / "probe.png")
    if chosen is None:
        raise RuntimeError(
            f"probe: the best accuracy, {max(accuracies):.2%}, lies within two standard errors of "
            f"0, so there is no temperature to begin with; {NO_PLATEAU}"
        )
    edge = ", the hottest of the sweep: raise probe.stop to see where it ends"
    progress.line(
        f"robust zone up to {chosen:g}: suggested initial temperature {chosen:g}"
        f"{edge if summary['at_edge'] else ''}"
    )
    if summary["note"]:
        progress.line(f"note: {summary['note']}")
    return summary


def few_samples_note(problems: int, n: int) -> str | None:
    """A note that zone borders from few samples are noisy; None if there are enough samples."""
    samples = problems * n
    if samples >= MIN_SAMPLES:
        return None
    return (
        f"{samples} samples a temperature ({problems} problems x {n}): zone borders from fewer "
        f"than {MIN_SAMPLES} are uncertain; raise probe.n or probe.problems"
    )


def row_identity(
    config: RunConfig, problems: Sequence[Problem], *, max_response_tokens: int
) -> dict[str, Any]:
    """What a temperature's row depends on: those of another identity are not reused."""
    return response_settings(config, ("seed", "model", "data", "warmstart", "rope")) | {
        "reward.mode": config.reward.mode,
        **reward_identity(config.reward, problems),
        "n": config.probe.n,
        "budget": max_response_tokens,
        "problems": problems_digest(problems),
    }
