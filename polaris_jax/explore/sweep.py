"""The temperatures of a probe, those added at the borders of zones, and why one is suggested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polaris_jax.config.sections import ProbeSection
from polaris_jax.explore.zones import ROUNDING, Zones, plateau

MIN_GAP = 0.05  # of an added temperature from its neighbours: below, noise decides between them


def sweep_temperatures(section: ProbeSection) -> list[float]:
    """The temperatures of a sweep, ascending: `probe.temperatures`, else start, stop and step."""
    if section.temperatures:
        return [float(temperature) for temperature in section.temperatures]
    count = int(np.floor((section.stop - section.start) / section.step + 1e-6)) + 1
    return [round(section.start + i * section.step, 6) for i in range(count)]


def refined_temperature(temperatures: Sequence[float], zones: Zones) -> float | None:
    """A temperature that narrows a border down: halfway from it to the next hotter one.

    The robust zone's end comes first, since training starts there; then the end of the exploration
    zone.

    Args:
        temperatures: temperatures measured so far, ascending.
        zones: their zones.

    Returns:
        The temperature; None if both borders have a neighbour nearer than twice `MIN_GAP`, or lie
        at the sweep's end.
    """
    for border in (zones.initial_temperature, zones.pcz_from):
        hotter = [t for t in temperatures if border is not None and t > border]
        if border is None or not hotter:
            continue
        if hotter[0] - border >= 2 * MIN_GAP - ROUNDING:
            return round((border + hotter[0]) / 2, 4)
    return None


def why_initial(
    temperatures: Sequence[float],
    accuracies: Sequence[float],
    *,
    stderrs: Sequence[float],
    diversities: Sequence[float],
    zones: Zones,
    rgz_tolerance: float,
) -> str:
    """Why a probe suggests its initial temperature, in sentences with the numbers they rest on.

    Args:
        temperatures: the sweep, ascending.
        accuracies: accuracy at each temperature.
        stderrs: standard error of each accuracy.
        diversities: diversity at each temperature.
        zones: zones of the sweep.
        rgz_tolerance: the tolerance that they were found with, a share of the plateau.
    """
    chosen, best = zones.initial_temperature, plateau(accuracies, stderrs)[0]
    at, cold = list(temperatures).index(chosen), list(temperatures).index(zones.rgz[0])
    lost, share = best - accuracies[at], rgz_tolerance * best
    allowed = max(share, stderrs[at])
    what = "a standard error" if stderrs[at] > share else f"{rgz_tolerance:.2g} of it"
    rule = f"{what}, {100 * allowed:.1f} points, is allowed"
    if lost > allowed + ROUNDING:
        rule += "; its mean with its neighbours lies nearer"
    reason = (
        f"{chosen:g} is the hottest temperature of the robust zone: its accuracy "
        f"{accuracies[at]:.1%} +- {stderrs[at]:.1%} lies {100 * lost:.1f} points below the best "
        f"({best:.1%}, a mean of neighbours), and {rule}"
    )
    if zones.at_edge:
        reason += "; the sweep ends there, so the zone may not"
    else:
        reason += (
            f"; at {temperatures[at + 1]:g} it is {accuracies[at + 1]:.1%}, "
            f"{100 * (best - accuracies[at + 1]):.1f} points below"
        )
    if cold < at:
        reason += (
            f". From {temperatures[cold]:g} to {chosen:g} diversity goes from "
            f"{diversities[cold]:.3f} to {diversities[at]:.3f}"
        )
    return reason
