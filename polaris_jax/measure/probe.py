"""Accuracy and diversity over temperatures, their zones, and the temperature to begin with."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from polaris_jax.config import ProbeSection, RunConfig
from polaris_jax.data.problems import problems_digest
from polaris_jax.evaluate.scoring import FAILED
from polaris_jax.explore import Candidate, Zones, diversity_stderr, find_zones
from polaris_jax.explore.sweep import refined_temperature, sweep_temperatures, why_initial
from polaris_jax.explore.temperature import measure_candidate
from polaris_jax.explore.zones import MIN_SAMPLES, is_above_zero, tolerances
from polaris_jax.measure.inputs import (
    Measured,
    measured_on,
    open_progress,
    response_settings,
    reward_identity,
)
from polaris_jax.measure.policy import Policy, open_policy, with_decided_dtype
from polaris_jax.measure.probe_set import NO_PLATEAU
from polaris_jax.measure.responses import say_failed
from polaris_jax.measure.weights import Weights
from polaris_jax.measure.workload import UNKNOWN, Batches, Forecast, Workload
from polaris_jax.records import Graded, Problem
from polaris_jax.report.figures import probe_figure
from polaris_jax.reward.configured import check_reward
from polaris_jax.run.owner import Ownership, command_owns, tag_prefix
from polaris_jax.run.progress_file import ProgressFile
from polaris_jax.run.record import refuse_other_run, with_recorded_defaults
from polaris_jax.run.workdir import ensure_workdir, write_json
from polaris_jax.stages.health import Health
from polaris_jax.system import processes
from polaris_jax.system.progress import Phase, Progress
from polaris_jax.system.seeds import fold_seed

# Rows of earlier versions have no tokens.
ROW = [field.name for field in dataclasses.fields(Candidate) if field.name != "tokens"]
COLUMNS = {
    "accuracies": "accuracy",
    "stderrs": "stderr",
    "diversities": "diversity",
    "diversity_stderrs": "diversity_stderr",
    "entropies": "entropy",
    "mean_lengths": "mean_length",
    "clip_ratios": "clip_ratio",
}  # list in probe.json: field of a row; rows of earlier versions have the first three alone
Rows = dict[float, dict[str, Any]]


def probe(
    config: RunConfig,
    workdir: epath.Path,
    *,
    progress: Progress,
    checkpoint: str = "",
    tag: str = "",
    forecast: Forecast = UNKNOWN,
) -> dict[str, Any]:
    """The temperature sweep on a fixed probe set -> probe.json, probe.png.

    A rerun continues after the last finished temperature.

    Args:
        config: the run.
        workdir: gets the files.
        progress: gets lines and bars for a person.
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path.
        tag: put before the file names, e.g. `stage1` -> stage1_probe.json.
        forecast: what is known of the machine's speed.

    Raises:
        ConfigError: there is no such checkpoint, or problems or model do not suit the config.
        RuntimeError: no accuracy could be told from 0, so no temperature is suggested.

    Source: POLARIS, section 2 (temperature zones; initialise at the border where accuracy begins
        to fall).
    """
    config = with_recorded_defaults(workdir, config, progress.line)
    config = with_decided_dtype(config, Weights.of(workdir, checkpoint), progress.line)
    refuse_other_run(workdir, config, sections=("seed", "model", "data", "warmstart", "rope"))
    check_reward(config.reward)
    ensure_workdir(workdir)
    writes = ("probe_progress.jsonl", "probe_progress.identity.json", "probe.json", "probe.png")
    primary = processes.is_first()
    with command_owns(workdir, "probe", writes=writes, primary=primary, tag=tag) as ownership:
        measured = measured_on(
            config,
            workdir,
            progress,
            checkpoint=checkpoint,
            command="probe",
        )
        return _probe(
            config,
            workdir,
            progress,
            ownership,
            measured,
            prefix=tag_prefix(tag),
            forecast=forecast,
        )


def _probe(
    config: RunConfig,
    workdir: epath.Path,
    progress: Progress,
    ownership: Ownership,
    measured: Measured,
    *,
    prefix: str,
    forecast: Forecast,
) -> dict[str, Any]:
    section, problems = config.probe, measured.problems
    max_response_tokens = section.max_response_tokens or config.stages[0].max_response_tokens
    order = np.random.default_rng(fold_seed(config.seed, "probe set")).permutation(len(problems))
    problems = [problems[i] for i in order[: section.problems]]
    grid = sweep_temperatures(section)
    progress.line(
        f"probing {len(grid)} temperatures on {len(problems)} problems from {measured.origin}; "
        f"model: {measured.weights.name}"
    )
    done = open_progress(
        workdir / f"{prefix}probe_progress.jsonl",
        measured.scaling_identity(config)
        | row_identity(config, problems, max_response_tokens=max_response_tokens),
        key=("temperature",),
        valid=lambda row: all(isinstance(row[name], int | float) for name in ROW),
        inputs=measured.inputs,
        places=measured.places,
        may_write=ownership.check,
    )
    sweep = Sweep(
        config,
        measured,
        problems,
        done,
        max_response_tokens=max_response_tokens,
        forecast=forecast,
        progress=progress,
    )
    rows, judged = sweep.measure(grid, workdir)
    temperatures = sorted(rows)
    columns: dict[str, list[Any]] = {
        name: [rows[t].get(key) for t in temperatures] for name, key in COLUMNS.items()
    }
    if judged:  # of a sweep that is cold at one end and collapses at the other, the best
        best = max(judged, key=lambda health: (health.informative, health.correct_share))
        for text in best.lines():
            progress.line(text)
    failed = sum(row.get(FAILED, 0) for row in rows.values())
    zones = zones_of(section, rows)
    chosen = None if zones is None else zones.initial_temperature
    summary = {
        "temperatures": temperatures,
        **columns,
        "refined": [t for t in temperatures if t not in grid],
        "n": section.n,
        "problems": len(problems),
        "problem_set": problems_digest(problems),
        "note": doubts(
            columns["accuracies"],
            columns["stderrs"],
            problems=len(problems),
            n=section.n,
            tolerance=tolerances(section, columns["accuracies"])["cez_tolerance"],
        ),
        "max_response_tokens": max_response_tokens,
        "checkpoint": measured.weights.name,
        "model": measured.model,
        "sampled_tokens": sum(rows[t].get("tokens", 0) for t in temperatures),
        **({FAILED: failed} if failed else {}),
        "zones": zones
        and {k: v for k, v in dataclasses.asdict(zones).items() if k != "initial_temperature"},
        "initial_temperature": chosen,
        "at_edge": zones is not None and zones.at_edge,
        "reason": zones
        and why_initial(
            temperatures,
            columns["accuracies"],
            stderrs=columns["stderrs"],
            diversities=columns["diversities"],
            zones=zones,
            rgz_tolerance=tolerances(section, columns["accuracies"])["rgz_tolerance"],
        ),
    }
    say_failed(summary, len(rows) * len(problems) * section.n, progress.line)
    if processes.is_first():
        ownership.check()
        write_json(workdir / f"{prefix}probe.json", summary)
        probe_figure(summary, workdir / f"{prefix}probe.png")
    if chosen is None:
        raise RuntimeError(
            f"probe: the best accuracy, {max(columns['accuracies']):.2%}, lies within two standard "
            f"errors of 0, so there is no temperature to begin with; {NO_PLATEAU}"
        )
    edge = ", the hottest of the sweep: raise probe.stop to see where it ends"
    progress.line(
        f"robust zone up to {chosen:g}: suggested initial temperature {chosen:g}"
        f"{edge if summary['at_edge'] else ''}"
    )
    progress.line(f"why: {summary['reason']}")
    if summary["note"]:
        progress.line(f"note: {summary['note']}")
    return summary


def zones_of(section: ProbeSection, rows: Rows) -> Zones | None:
    """The zones of the temperatures measured so far; None if no accuracy can be told from 0."""
    temperatures = sorted(rows)
    accuracies = [rows[t]["accuracy"] for t in temperatures]
    stderrs = [rows[t]["stderr"] for t in temperatures]
    if not is_above_zero(accuracies, stderrs):
        return None
    return find_zones(temperatures, accuracies, stderrs=stderrs, **tolerances(section, accuracies))


class Sweep:
    """Measures temperatures on one probe set, or finds them measured by an earlier call.

    Args:
        config: the run.
        measured: the model.
        problems: the probe set.
        done: the progress file.
        max_response_tokens: largest length of a response in tokens.
        forecast: what is known of the machine's speed.
        progress: gets lines and bars for a person.
    """

    def __init__(
        self,
        config: RunConfig,
        measured: Measured,
        problems: Sequence[Problem],
        done: ProgressFile,
        *,
        max_response_tokens: int,
        forecast: Forecast,
        progress: Progress,
    ) -> None:
        self._config, self._measured, self._problems = config, measured, problems
        self._done, self._budget = done, max_response_tokens
        self._forecast, self._progress = forecast, progress
        self._known = {row["temperature"]: row for row in done.rows}
        self._judged: list[Health] = []

    def measure(self, grid: Sequence[float], workdir: epath.Path) -> tuple[Rows, list[Health]]:
        """The rows of the grid and of the temperatures that refine it, and what they say.

        Args:
            grid: temperatures to measure, ascending.
            workdir: where the warm start makes the base model, if there is one.

        Returns:
            (rows by temperature, health of each temperature that was sampled now)
        """
        config, most = self._config, len(grid) + self._config.probe.refine
        responses = len(self._problems) * config.probe.n
        rows = {t: self._known[t] for t in grid if t in self._known}
        following = self._following(grid, rows)
        if following is None:
            return rows, []
        left = most - len(rows)
        work = [Batches(left * responses, responses, config.probe.n, self._budget)]
        workload = Workload("probe", work, forecast=self._forecast, progress=self._progress)
        model = self._measured.weights.load(config, workdir, self._progress)
        with (
            open_policy(
                config,
                self._progress,
                (model, self._measured.tokenizer),
                max_response_tokens=self._budget,
                rope_scaling=self._measured.weights.first_stage_scaling(config),
            ) as policy,
            self._progress.phase("probe", most * responses) as phase,
        ):
            workload.starts()
            while following is not None:
                graded = self._sample(policy, following, phase, before=len(rows) * responses)
                row = measured_row(following, graded)
                self._done.append([row])
                rows[following] = row
                note = f"T {following:g}: {row['accuracy']:.1%}"
                phase.advance_to(len(rows) * responses, note)
                workload.did(responses=responses, tokens=graded.response_tokens)
                following = self._following(grid, rows)
        return rows, self._judged

    def _following(self, grid: Sequence[float], rows: Rows) -> float | None:
        """The temperature to sample next; None at the end. Known ones are added to `rows`."""
        while True:
            following = next((t for t in grid if t not in rows), None)
            if following is None and len(rows) < len(grid) + self._config.probe.refine:
                zones = zones_of(self._config.probe, rows)
                following = None if zones is None else refined_temperature(sorted(rows), zones)
            if following is None or following not in self._known:
                return following
            rows[following] = self._known[following]

    def _sample(self, policy: Policy, temperature: float, phase: Phase, *, before: int) -> Graded:
        config, problems = self._config, self._problems
        graded = policy.solve(
            problems,
            n=config.probe.n,
            temperature=temperature,
            max_response_tokens=self._budget,
            seed_parts=(config.seed, "probe", f"{temperature:.4f}"),
            mode=config.reward.mode,
            on_progress=phase.sampling(before, len(problems) * config.probe.n),
        )
        self._judged.append(policy.judged(graded, problems, reward=config.reward))
        return graded


def measured_row(temperature: float, graded: Graded) -> dict[str, Any]:
    """The row of one temperature: a `Candidate`, and what else its responses show.

    `entropy` is the mean of -log p over the sampled tokens, in nats. The expectation of -log p is
    the policy's entropy at this temperature, so no further pass over the responses is needed.
    """
    tokens = graded.response_tokens
    candidate = measure_candidate(temperature, graded.texts, graded.correct_PR, tokens=tokens)
    spent = -sum(math.fsum(logprobs) for group in graded.logprobs for logprobs in group)
    reasons = [reason for group in graded.finish_reasons for reason in group]
    failed = sum(map(sum, graded.failed or ()))
    return dataclasses.asdict(candidate) | {
        "diversity_stderr": diversity_stderr(graded.texts),
        "entropy": spent / tokens if tokens else None,
        "mean_length": tokens / len(reasons),
        "clip_ratio": reasons.count("length") / len(reasons),
        **({FAILED: failed} if failed else {}),
    }


def doubts(
    accuracies: Sequence[float],
    stderrs: Sequence[float],
    *,
    problems: int,
    n: int,
    tolerance: float,
) -> str | None:
    """A note that zone borders from few samples are noisy; None if there are enough samples.

    Args:
        accuracies: one for each temperature.
        stderrs: their standard errors.
        problems: number of problems.
        n: responses to each.
        tolerance: width of the exploration zone, as a share of the best accuracy. With errors above
            it, zones are as wide as the noise.
    """
    samples, notes = problems * n, []
    if samples < MIN_SAMPLES:
        notes.append(
            f"{samples} samples a temperature ({problems} problems x {n}): zone borders from fewer "
            f"than {MIN_SAMPLES} are uncertain; raise probe.n or probe.problems"
        )
    best, error = max(accuracies), statistics.median(stderrs)
    if best > 0 and error > tolerance * best:
        notes.append(
            f"the standard error, {error:.1%}, is {error / best:.0%} of the best accuracy, "
            f"{best:.1%}: temperatures can hardly be told apart, and the suggestion may be one at "
            "which training fails; probe more problems, or easier ones, or set "
            "stages[0].temperature yourself"
        )
    return "; ".join(notes) or None


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
