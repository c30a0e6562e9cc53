"""Which settings fit, best first; and the nearest one where the config's own does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from polaris_jax.plan.job import Setting, distance, search_settings
from polaris_jax.plan.planner import Assessment, Planner

MAX_TRIED = 12  # settings compiled in search of the nearest that fits


def search(planner: Planner, *, local_devices: int) -> list[Assessment]:
    """Every setting that fits, the fastest estimated step first, ties by memory.

    More rows a shard are tried only where fewer fit, and no setting whose residents alone are over
    the budget is compiled.
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
    """What a better setting has less of: estimated seconds, then memory."""
    assert assessment.estimate is not None
    assert assessment.fit is not None
    largest = max(phase.total for phase in assessment.fit.phases[:3])
    return (assessment.estimate.step_s, float(largest))


class Assessor(Protocol):
    """What `nearest` needs of a planner."""

    def may_fit(self, setting: Setting) -> bool: ...
    def update_fits(self, setting: Setting) -> bool | None: ...
    def assess(self, setting: Setting) -> Assessment: ...


def nearest(
    base: Setting, settings: Iterable[Setting], *, planner: Assessor, limit: int = MAX_TRIED
) -> Assessment | None:
    """The setting nearest to `base` that fits, or None.

    The leanest one that can be built is asked first: where its update does not fit, none does.

    Args:
        base: what does not fit.
        settings: the candidates.
        planner: compiles.
        limit: candidates compiled at most.
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
    """Smaller for a setting that asks less of a device."""
    mesh = setting.mesh
    rows = setting.rows / setting.row_shards
    return (rows, -mesh.context, -mesh.tensor, -setting.sampler_tensor)
