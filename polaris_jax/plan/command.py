"""Whether a config fits a topology, how long a step would take, and what to change if not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from polaris_jax.config import ConfigError, RunConfig
from polaris_jax.plan.compile import hold_libtpu
from polaris_jax.plan.fit import COLOCATED, Residency
from polaris_jax.plan.job import (
    Job,
    Setting,
    check_sampler,
    config_setting,
    distance,
    make_job,
    sampler_changes,
    sampler_device_count,
    search_settings,
)
from polaris_jax.plan.planner import Assessment, Planner
from polaris_jax.plan.roofline import ASSUMED, Efficiency
from polaris_jax.plan.table import plan_json
from polaris_jax.plan.topologies import Topology, devices, larger_topologies

MAX_TRIED = 12  # settings compiled in search of the nearest that fits


def search(planner: Planner, *, local_devices: int) -> list[Assessment]:
    """Every setting that fits, the fastest estimated step first, ties by memory.

    More rows a shard are tried only if fewer rows fit. A setting is not compiled if its resident
    memory alone is over the budget.
    """
    settings = search_settings(
        planner.job.model, devices=len(planner.devices), local_devices=local_devices
    )
    found: list[Assessment] = []
    too_many: set[tuple[object, int]] = set()
    for setting in sorted(settings, key=lambda s: s.rows):
        key = (setting.mesh, setting.sampler_tensor)
        if key in too_many or not planner.may_fit(setting):
            continue
        assessment = planner.assess(setting)
        if assessment.fits:
            found.append(assessment)
        else:
            too_many.add(key)
    return sorted(found, key=rank)


def rank(assessment: Assessment) -> tuple[float, float]:
    """A sort key that is smaller for a better setting: estimated seconds, then memory."""
    assert assessment.estimate is not None
    assert assessment.fit is not None
    largest = max(phase.total for phase in assessment.fit.phases[:3])
    return (assessment.estimate.step_s, float(largest))


def nearest(base: Setting, settings: Iterable[Setting], *, planner: Planner) -> Assessment | None:
    """The setting nearest to `base` that fits, or None.

    The setting that needs the least memory and can be built is compiled first. If its update does
    not fit, no other setting is tried.

    Args:
        base: the setting that does not fit.
        settings: the candidates.
        planner: compiles and assesses the candidates.
    """
    candidates = [s for s in settings if s != base and planner.may_fit(s)]
    verdicts = (planner.update_fits(s) for s in sorted(candidates, key=_appetite))
    if not next((fits for fits in verdicts if fits is not None), False):
        return None
    for setting in sorted(candidates, key=lambda s: distance(base, s))[:MAX_TRIED]:
        if planner.update_fits(setting):
            assessment = planner.assess(setting)
            if assessment.fits:
                return assessment
    return None


def _appetite(setting: Setting) -> tuple[float, ...]:
    """A sort key that is smaller for a setting that needs less of a device."""
    mesh = setting.mesh
    rows = setting.rows / setting.row_shards
    return (rows, -mesh.context, -mesh.tensor, -setting.sampler_tensor)


MAX_LARGER = 3  # larger pods of the family tried when nothing on this one fits


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Options of the command line that are not in the config.

    Attributes:
        stage: number of the stage, from 0; None: the stage with the longest responses.
        mean_response_tokens: mean length for the estimates; 0: see `make_job`.
        hbm_gib: memory of a device, GiB; 0: the chip's memory.
        residency: where the pool and the state stay between the phases.
        efficiency: shares of the chip's figures that a step is assumed to reach.
        search: True to list all settings that fit.
    """

    stage: int | None = None
    mean_response_tokens: float = 0.0
    hbm_gib: float = 0.0
    residency: Residency = COLOCATED
    efficiency: Efficiency = ASSUMED
    search: bool = False


def plan(
    config: RunConfig, topology: Topology, options: PlanOptions, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """The plan as JSON-able data; `fits` is the verdict.

    If the config's setting does not fit, `nearest` names one that does: on the same topology, or
    else on a larger one of the family. If the product refuses to build the setting, `nearest` names
    the sizes to change. With `options.search`, `settings` lists all settings that fit.

    Args:
        config: a checked config.
        topology: a parsed topology.
        options: options of the command line.
        say: called with one line for every setting and every compile.

    Raises:
        ConfigError: the setting is impossible: the mesh's sizes do not multiply to the number of
            devices, or the rows do not divide.
    """
    job = make_job(config, stage=options.stage, mean_response_tokens=options.mean_response_tokens)
    if topology.platform == "tpu":
        hold_libtpu(say)
    planner = _planner(job, topology, options, say)
    local = sampler_device_count(planner.devices, config)
    if options.search:
        check_sampler(config, local_devices=local)
        return _search(planner, local)
    setting = config_setting(config, devices=len(planner.devices), local_devices=local)
    assessment = planner.assess(setting)
    found = plan_json(planner, assessment)
    if not assessment.fits:
        found["nearest"] = _advice(planner, assessment, options, say)
    return found


def _planner(
    job: Job, topology: Topology, options: PlanOptions, say: Callable[[str], None]
) -> Planner:
    there = devices(topology)
    chip = topology.chip(len(there))
    if options.hbm_gib:
        chip = dataclasses.replace(chip, hbm_bytes=int(options.hbm_gib * (1 << 30)))
    return Planner(
        job,
        topology,
        there,
        chip,
        residency=options.residency,
        efficiency=options.efficiency,
        say=say,
    )


def _advice(
    planner: Planner, assessment: Assessment, options: PlanOptions, say: Callable[[str], None]
) -> str:
    """The nearest setting that fits, as one line."""
    base = assessment.setting
    say("does not fit; compiling others in search of the nearest that does")
    if planner.sampler_refusal(base):
        legal = _legal_sampler(planner, base, options, say)
        if legal:
            return legal
    if planner.job.config.rollout.num_pages and not assessment.refusals:
        left = planner.assess(base, num_pages=0)
        if left.fits and left.fit is not None:
            shards = max(
                1, sampler_device_count(planner.devices, planner.job.config) // base.sampler_tensor
            )
            return f"--config.rollout.num_pages={left.fit.pages * shards} (0: as many as fit)"
    found = _nearest_on(planner, assessment)
    if found is not None:
        return f"{found.setting} ({found.setting.flags()})"
    for larger in larger_topologies(planner.topology)[:MAX_LARGER]:
        try:
            other = _planner(planner.job, larger, options, say)
        except ConfigError as error:
            say(f"{larger.name}: {error}")
            continue
        found = _nearest_on(other, assessment)
        if found is not None:
            return f"--topology={larger.name}, {found.setting} ({found.setting.flags()})"
    return f"none on {planner.topology.name} or the next {MAX_LARGER} larger pods"


def _legal_sampler(
    planner: Planner, base: Setting, options: PlanOptions, say: Callable[[str], None]
) -> str:
    """Flags of the smallest change after which the product builds a refused sampler.

    The text also names what else has to change so that the setting fits. The text is empty if
    there is no such change.
    """
    job = planner.job
    for changes in sampler_changes(job.config.rollout):
        rollout = dataclasses.replace(job.config.rollout, **changes)
        config = dataclasses.replace(job.config, rollout=rollout)
        other = planner.with_job(dataclasses.replace(job, config=config))
        if other.sampler_refusal(base):
            continue
        flags = " ".join(f"--config.rollout.{name}={value}" for name, value in changes.items())
        assessment = other.assess(base)
        if assessment.fits:
            return flags
        return f"{flags}, {_advice(other, assessment, options, say)}"
    return ""


def _nearest_on(planner: Planner, refused: Assessment) -> Assessment | None:
    """The nearest setting that fits.

    If `refused` was judged by its memory, only settings that need no more of a device are tried. If
    the product refused to build the setting, one that needs more may be the remedy.
    """
    base = refused.setting
    local = sampler_device_count(planner.devices, planner.job.config)
    settings = search_settings(planner.job.model, devices=len(planner.devices), local_devices=local)
    if refused.fit is not None:
        settings = [s for s in settings if _asks_no_more(s, base)]
    return nearest(base, settings, planner=planner)


def _asks_no_more(setting: Setting, base: Setting) -> bool:
    """True if a setting needs no more of a device than `base` along each axis."""
    a, b = setting.mesh, base.mesh
    return (
        a.context * a.tensor >= b.context * b.tensor
        and setting.rows / setting.row_shards <= base.rows / base.row_shards
        and setting.sampler_tensor >= base.sampler_tensor
    )


def _search(planner: Planner, local: int) -> dict[str, Any]:
    found = search(planner, local_devices=local)
    if not found:
        return {
            "topology": planner.topology.name,
            "fits": False,
            "reasons": ["no setting fits"],
            "settings": [],
        }
    best = plan_json(planner, found[0])
    best["settings"] = [plan_json(planner, assessment) for assessment in found]
    return best
