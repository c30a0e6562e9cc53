"""The result of a run in one sentence with its interval, what ran, and how it ended, in words."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from polaris_jax.evaluate.intervals import paired_difference
from polaris_jax.report.run_files import RunFiles
from polaris_jax.report.summary import (
    not_comparable,
    pair_names,
    quarters,
    same_problem_scores,
    score_name,
)
from polaris_jax.run.standing import BEFORE, SCORE, duration, score_temperatures

Z = 1.96  # of a 95% interval, in standard errors
NO_SHIFT = ", so neither a gain nor a loss is shown"
Record = Mapping[str, Any]
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        kind: good: it finished. bad: it failed. open: it was stopped, or no end is recorded.
        text: one sentence.
    """

    kind: Literal["good", "bad", "open"]
    text: str


def further_sentence(run: RunFiles) -> str:
    """What is to be said beside the result: other scores of the run; "" if there are none."""
    before, after = run.before, run.evaluation
    if after is None:
        return ""
    if before is not None and (reason := not_comparable(before, after)):
        names = pair_names(before, after)
        return f"The score {names[0]} ({before['avg@k']:.1%}) is not comparable: {reason}."
    during = _during(run)
    return f"During training the held-out score went {during}." if during else ""


def result_sentence(run: RunFiles) -> str:
    """What came out, with a 95% interval if the files give one, in one sentence."""
    before, after = run.before, run.evaluation
    if before is not None and after is not None and not not_comparable(before, after):
        return gain_sentence(before, after)
    if after is not None:
        return score_sentence(after)
    if during := _during(run):
        return f"Held-out accuracy went {during}, measured during training, so without an interval."
    first, last = quarters(run.metrics)
    steps = sum(line["step"] >= 0 for line in run.metrics)
    if first is not None and last is not None:
        return (
            f"Mean reward of the training rollouts went from {first:.1%} to {last:.1%} (first and "
            f"last quarter of {plural(steps, 'step')}); no held-out score was taken, so there is "
            "no interval."
        )
    if before is not None:
        return score_sentence(before)
    if run.probe is not None and run.probe.get("initial_temperature") is not None:
        return (
            f"The probe suggests temperature {run.probe['initial_temperature']:g}; no step of "
            "training is recorded."
        )
    if run.calibrate is not None:
        c = run.calibrate
        return (
            f"Calibration keeps {c['kept']:,} of {c['problems']:,} problems ({c['shape']}); no "
            "step of training is recorded."
        )
    return "No step of training is recorded here, and no score."


def gain_sentence(before: Record, after: Record) -> str:
    """`Held-out accuracy rose from 36.0% to 68.0%: +32.0 points, 95% interval ...`."""
    gain, interval, paired = difference(before, after)
    points = f"{100 * gain:+.1f} points"
    what = f"avg@{after['k']} of {plural(after['problems'], 'problem')}{', paired' * paired}"
    moved = f"from {before['avg@k']:.1%} to {after['avg@k']:.1%}"
    if interval is None:
        return f"Held-out accuracy went {moved}: {points}, without an interval ({what})."
    low, high = interval
    verb = "rose" if low > 0 else "fell" if high < 0 else "went"
    text = f"Held-out accuracy {verb} {moved}: {points}, 95% interval {_points(interval)}"
    return f"{text}{NO_SHIFT * (verb == 'went')} ({what})."


def score_sentence(score: Record) -> str:
    """`The model after RL solves 35.2% of 128 held-out problems (95% interval ..., avg@4).`"""
    name = score_name(score)
    who = {"base model": "The base model", "after RL": "The model after RL"}.get(
        name, f"The model of {name}"
    )
    interval = score_interval(score)
    spread = "without an interval" if interval is None else f"95% interval {_shares(interval)}"
    return (
        f"{who} solves {score['avg@k']:.1%} of {plural(score['problems'], 'held-out problem')} "
        f"({spread}; avg@{score['k']})."
    )


def score_interval(score: Record) -> Interval | None:
    """The 95% interval of a score: its own, or by its standard error; None if it has neither.

    Problems that all have one score give none: an error of 0 says nothing of other problems.
    """
    if not score.get("stderr"):
        return None
    found = score.get("interval")
    if isinstance(found, list | tuple) and len(found) == 2:
        return float(found[0]), float(found[1])
    half = Z * score["stderr"]
    return max(0.0, score["avg@k"] - half), min(1.0, score["avg@k"] + half)


def difference(first: Record, second: Record) -> tuple[float, Interval | None, bool]:
    """Second minus first, its 95% interval, and whether it is paired by problem.

    Without the scores of the same problems the two are taken as independent.
    """
    pairs = same_problem_scores(first, second)
    if pairs is not None:
        found = paired_difference(*np.array(pairs, np.float64).T)
        return found.value, found.interval, True
    gain = second["avg@k"] - first["avg@k"]
    one, other = first.get("stderr"), second.get("stderr")
    half = 0.0 if one is None or other is None else Z * math.hypot(one, other)
    if not half:
        return gain, None, False
    return gain, (gain - half, gain + half), False


def _during(run: RunFiles) -> str:
    """`from 5.3% before training to 35.0% after 120 steps (avg@4)`; "" with fewer than two."""
    name = next((n for line in reversed(run.metrics) for n in line if n.startswith(SCORE)), "")
    scores = [(x["step"], x[name]) for x in run.metrics if x.get(name) is not None]
    if len(scores) < 2:
        return ""
    (first, low), (last, high) = scores[0], scores[-1]
    began = "before training" if first == BEFORE else f"after {plural(first + 1, 'step')}"
    config = (run.run or {}).get("config") or {}
    temperatures = score_temperatures(config, run.stages, (first, last))
    how = name.removeprefix("eval/")
    if len(temperatures) > 1:
        how += f", at temperatures {' and '.join(f'{t:g}' for t in temperatures)}"
    return f"from {low:.1%} {began} to {high:.1%} after {plural(last + 1, 'step')} ({how})"


def ending(run: RunFiles) -> Ending | None:
    """How the run ended, by run.json and stages.json; None without a run.json of a training."""
    record = run.run
    if record is None or record.get("command", "train") != "train":
        return None
    starts = [start for start in record.get("starts") or [] if isinstance(start, dict)]
    told = any("ended" in start for start in starts)
    how = str(starts[-1].get("ended", "")) if told else ""
    if how == "finished":
        return Ending("good", "The run finished.")
    if how.startswith("failed"):
        return Ending("bad", f"The run {how}")
    if how:
        return Ending("open", f"The run was {how}; the same command continues it.")
    lengths = [name for name in record.get("config") or {} if name.endswith("].steps")]
    last = run.stages[-1] if run.stages else {}
    complete = last.get("last_step") is not None and last["stage"] >= len(lengths) - 1
    if not told and complete:  # versions up to 0.2 record no end
        return Ending("good", "The run's last stage is complete.")
    return Ending(
        "open",
        "run.json records no end: the run still runs, or it was killed; polaris status says which.",
    )


def what_ran(run: RunFiles) -> str:
    """The run in words: method, model, batch, stages, machine, time. The unknown is left out."""
    if run.run is None:
        return "run.json is absent: config, versions and commit are unknown."
    config, record = run.run.get("config") or {}, run.run
    sentences = [_trained(run, config), _batch(run, config), _place(record)]
    if record.get("deterministic") is False:
        sentences.append("Not deterministic: the machine decided a reward, or changed.")
    return " ".join(sentence for sentence in sentences if sentence)


def _trained(run: RunFiles, config: Record) -> str:
    added = [
        name
        for name, field in (("rescue", "batch.rescue"), ("substitution", "batch.substitute"))
        if config.get(field)
    ]
    method = "GRPO" + (f" with {' and '.join(added)}" if added else "")
    steps = sum(line["step"] >= 0 for line in run.metrics)
    if not steps:
        return f"{method} on {_model(run, config)} has made no step yet."
    planned, stage = 0, 0
    while isinstance(length := config.get(f"stages[{stage}].steps"), int):
        planned, stage = planned + length, stage + 1
    of = f" of at most {planned}" if planned and planned != steps else ""
    stages = plural(len(run.stages), "stage") if run.stages else ""
    where = f" in {stages}" if stages else ""
    return f"{method} trained {_model(run, config)} for {plural(steps, 'step')}{of}{where}."


def _model(run: RunFiles, config: Record) -> str:
    shape = ((run.run or {}).get("identity") or {}).get("architecture") or {}
    path = config.get("model.path")
    size = ""
    if {"model_type", "num_layers", "hidden_size"} <= shape.keys():
        size = f"a {shape['model_type']} of {plural(shape['num_layers'], 'layer')}, width "
        size += str(shape["hidden_size"])
    if path and size:
        return f"{path} ({size})"
    return str(path or size or "the model")


def _batch(run: RunFiles, config: Record) -> str:
    prompts, responses = (
        config.get(f"rollout.{name}") for name in ("prompts_per_step", "responses_per_prompt")
    )
    parts = []
    if prompts and responses:
        parts.append(f"{prompts} prompts x {responses} responses a step")
    if run.stages:
        heat = _then(f"{stage['temperature']:.3g}" for stage in run.stages)
        tokens = _then(f"{stage['max_response_tokens']:,}" for stage in run.stages)
        parts.append(f"temperature {heat}, responses of up to {tokens} tokens")
    sampled = ((run.run or {}).get("counts") or {}).get("sampled_tokens")
    if isinstance(sampled, int):
        parts.append(f"{sampled:,} tokens sampled")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _place(record: Record) -> str:
    facts = []
    if isinstance(devices := record.get("devices"), dict) and devices:
        facts.append(", ".join(plural(count, f"{kind.upper()} device")
                               for kind, count in devices.items()))  # fmt: skip
    if record.get("commit"):
        facts.append(f"commit {str(record['commit'])[:12]}")
    versions = record.get("versions") or {}
    facts += [f"{name} {versions[name]}" for name in ("polaris_jax", "jax") if name in versions]
    starts = [start for start in record.get("starts") or [] if isinstance(start, dict)]
    if starts and "time" in starts[0]:
        facts.append(f"begun {str(starts[0]['time'])[:16].replace('T', ' ')} UTC")
    if len(starts) > 1:
        facts.append(f"started {len(starts)} times")
    if (seconds := _seconds(starts)) is not None:
        facts.append(f"{duration(seconds)} in all")
    text = ", ".join(facts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _seconds(starts: Sequence[Record]) -> float | None:
    """Seconds of all starts together; None if one has no end."""
    total = 0.0
    for start in starts:
        try:
            begun, ended = (
                datetime.datetime.fromisoformat(start[name]) for name in ("time", "ended_at")
            )
            total += (ended - begun).total_seconds()
        except (KeyError, TypeError, ValueError):
            return None
    return total if starts else None


def plural(count: int, noun: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _then(values: Any) -> str:
    """`72`, or `72 then 96`: equal neighbours once."""
    kept: list[str] = []
    for value in values:
        if not kept or kept[-1] != value:
            kept.append(value)
    return " then ".join(kept)


def _points(interval: Interval) -> str:
    low, high = (f"{100 * value:+.1f}" for value in interval)
    return f"{low} to {high}"


def _shares(interval: Interval) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"
