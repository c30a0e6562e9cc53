"""Which settings fit, best first; and the nearest one where the config's own does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polaris_jax.plan.job import Setting, distance, search_settings
from polaris_jax.plan.planner import Assessment, Planner

MAX_TRIED = 24  # settings compiled in search of the nearest that fits


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


def nearest(
    base: Setting,
    settings: Iterable[Setting],
    *,
    may_fit: Callable[[Setting], bool],
    assess: Callable[[Setting], Assessment],
    limit: int = MAX_TRIED,
) -> Assessment | None:
    """The setting nearest to `base` that fits, or None.

    Args:
        base: what does not fit.
        settings: the candidates.
        may_fit: False: not worth a compile.
        assess: compiles.
        limit: candidates compiled at most.
    """
    candidates = sorted((s for s in settings if may_fit(s)), key=lambda s: distance(base, s))
    for setting in candidates[:limit]:
        if setting != base:
            assessment = assess(setting)
            if assessment.fits:
                return assessment
    return None
