"""The settings that fit, best first, and the nearest one if the config's own does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from polaris_jax.plan.job import Setting, distance, search_settings
from polaris_jax.plan.planner import Assessment, Planner

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


class Assessor(Protocol):
    """The methods of a planner that `nearest` calls."""

    def may_fit(self, setting: Setting) -> bool: ...
    def update_fits(self, setting: Setting) -> bool | None: ...
    def assess(self, setting: Setting) -> Assessment: ...


def nearest(
    base: Setting, settings: Iterable[Setting], *, planner: Assessor, limit: int = MAX_TRIED
) -> Assessment | None:
    """The setting nearest to `base` that fits, or None.

    The setting that needs the least memory and can be built is compiled first. If its update does
    not fit, no other setting is tried.

    Args:
        base: the setting that does not fit.
        settings: the candidates.
        planner: compiles and assesses the candidates.
        limit: largest number of candidates that are compiled.
    """
    candidates = [s for s in settings if s != base and planner.may_fit(s)]
    verdicts = (planner.update_fits(s) for s in sorted(candidates, key=_appetite))
    if not next((fits for fits in verdicts if fits is not None), False):
        return None
    for setting in sorted(candidates, key=lambda s: distance(base, s))[:limit]:
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
