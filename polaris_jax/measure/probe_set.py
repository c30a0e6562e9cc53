"""Accuracy and diversity of a run's policy on its fixed probe set, and the probed temperature."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from etils import epath

from polaris_jax.assemble import Parts
from polaris_jax.config import ConfigError
from polaris_jax.explore import Candidate
from polaris_jax.explore.temperature import measure_candidate
from polaris_jax.measure.solve import solve
from polaris_jax.records import Problem, StageState
from polaris_jax.rollout import Sampler
from polaris_jax.system.foreign import RECORD_BYTES, read_json
from polaris_jax.system.seeds import fold_seed
from polaris_jax.system.signals import StopRequest

# What to do about a sweep without a plateau above 0.
NO_PLATEAU = (
    "run it again on easier problems, with a larger probe.max_response_tokens, or with more "
    "samples (probe.n)"
)


def measure_temperature(
    parts: Parts,
    sampler: Sampler,
    stage: StageState,
    temperature: float,
    *,
    stop: StopRequest,
) -> Candidate:
    """Accuracy and diversity at a temperature, on the fixed probe set with the stage's budget."""
    graded = solve(
        parts.solver,
        sampler,
        probe_set(parts),
        n=parts.config.probe.n,
        temperature=temperature,
        max_response_tokens=stage.max_response_tokens,
        seed_parts=(parts.config.seed, "measure", stage.stage, f"{temperature:.4f}"),
        mode=parts.config.reward.mode,
        should_abort=lambda: stop.requested,
    )
    return measure_candidate(
        temperature, graded.texts, graded.correct_PR, tokens=graded.response_tokens
    )


def probe_set(parts: Parts) -> list[Problem]:
    """The problems on which temperatures are compared: the same at every stage change."""
    seed = fold_seed(parts.config.seed, "probe set")
    order = np.random.default_rng(seed).permutation(len(parts.problems))
    return [parts.problems[i] for i in order[: parts.config.probe.problems]]


def probe_identity(parts: Parts, stage: StageState) -> str:
    """Names problems, samples and budget: two diversities compare only if these texts are equal."""
    ids = sorted(problem.id for problem in probe_set(parts))
    digest = hashlib.blake2b(json.dumps(ids).encode(), digest_size=4).hexdigest()
    return (
        f"{len(ids)} problems ({digest}) x {parts.config.probe.n} responses of up to "
        f"{stage.max_response_tokens} tokens"
    )


def read_initial_temperature(path: epath.Path, *, stage: int) -> float | None:
    """The temperature that `polaris probe` suggests in probe.json; None without that file.

    Raises:
        ConfigError: the probe found no temperature, or the file holds something else.
    """
    if not path.exists():
        return None
    try:
        value = read_json(path, most_bytes=RECORD_BYTES)["initial_temperature"]
        if value is not None:
            return float(value)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what `polaris probe` leaves ({type(error).__name__}: {error}); "
            "delete it and run `polaris probe` again, or set "
            f"stages[{stage}].temperature_rule=fixed"
        ) from None
    raise ConfigError(
        f"{path}: `polaris probe` found no temperature, as no accuracy could be told from 0; "
        f"{NO_PLATEAU}, or set stages[{stage}].temperature_rule=fixed"
    )
