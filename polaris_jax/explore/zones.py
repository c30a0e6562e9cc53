"""Temperature zones of an accuracy curve, and the temperature that training starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from polaris_jax.config.sections import ProbeSection

Label = Literal["cold", "rgz", "cez", "pcz"]

# Shares of the plateau: the blog's 2 and 10 points at its 70%.
RGZ_TOLERANCE = 0.03
CEZ_TOLERANCE = 0.14
MIN_TEMPERATURES = 3
# Responses (problems x responses a problem) that each temperature of a sweep needs. test_zones.py
# simulates sweeps of the blog's curve. With 2,048 responses, all zone borders lie within one step
# (0.05) of the true ones in 19 of 20 sweeps; with 1,024 in 17, with 512 in 13.
MIN_SAMPLES = 2_048
ROUNDING = 1e-9  # 0.70 - 0.021 is not 0.679 in binary; a border value counts as inside


@dataclasses.dataclass(frozen=True)
class Zones:
    """The zones of a temperature sweep.

    The border between two zones is the last probed temperature inside the lower one.

    Attributes:
        labels: zone of each temperature, in ascending order of temperature: "cold" (too low to
            reach the plateau), "rgz" (Robust Generation Zone), "cez" (Controlled Exploration Zone)
            or "pcz" (Performance Collapse Zone).
        rgz: first and last temperature of the RGZ.
        cez: end of the RGZ and last temperature of the CEZ; None if the CEZ is empty.
        pcz_from: last temperature before the PCZ; None if the sweep does not reach the PCZ.
        initial_temperature: T0, the temperature that training starts from: the last temperature of
            the RGZ.
        at_edge: True if T0 is the hottest temperature of the sweep, so that the RGZ may end above.
    """

    labels: tuple[Label, ...]
    rgz: tuple[float, float]
    cez: tuple[float, float] | None
    pcz_from: float | None
    initial_temperature: float
    at_edge: bool = False


def find_zones(
    temperatures: Sequence[float] | np.ndarray,
    accuracies: Sequence[float] | np.ndarray,
    *,
    stderrs: Sequence[float] | np.ndarray | None = None,
    rgz_tolerance: float = RGZ_TOLERANCE,
    cez_tolerance: float = CEZ_TOLERANCE,
) -> Zones:
    """Cold, robust, exploration and collapse zone of a temperature sweep, and T0.

    Accuracies are smoothed by a centred mean of 3 points, of 2 at the two ends. The plateau is the
    highest smoothed accuracy. A temperature is inside a zone if its measured or its smoothed
    accuracy is at least the plateau minus the zone's tolerance. At the two ends only the measured
    accuracy counts, because a mean of 2 would hide a collapse that begins at the sweep's last step.
    The tolerance is a share of the plateau, and at a temperature never below the standard error
    there. A zone extends from the first to the last temperature inside, so a noisy point in between
    does not split the zone.

    Args:
        temperatures: at least 3 temperatures, distinct and ascending.
        accuracies: mean accuracy at each temperature, in [0, 1].
        stderrs: standard error of each accuracy; None: 0.
        rgz_tolerance: tolerance of the Robust Generation Zone, a share of the plateau.
        cez_tolerance: tolerance of the Controlled Exploration Zone, a share of the plateau, at
            least `rgz_tolerance`.

    Raises:
        ValueError: there are fewer than 3 temperatures, they do not ascend, lengths differ, a
            number is not finite, a standard error is negative, `rgz_tolerance` is negative or above
            `cez_tolerance`, or no accuracy is above 0.

    Source: POLARIS, "Temperature Zone". Differs: the text names no numbers; tolerances, smoothing
        and the cold zone are ours. Either accuracy, measured or smoothed, is enough: smoothing
        alone rounds off a sharp collapse and would end a zone one step early, and the measured
        accuracy alone moves a border for one unlucky point. The smoothed accuracies of the two ends
        are used for the plateau only.
    """
    temperatures = np.asarray(temperatures, np.float64)
    accuracies = np.asarray(accuracies, np.float64)
    errors = np.zeros(temperatures.shape) if stderrs is None else np.asarray(stderrs, np.float64)
    _check(temperatures, accuracies, errors, rgz_tolerance, cez_tolerance)
    labels = zone_labels(
        accuracies, errors, rgz_tolerance=rgz_tolerance, cez_tolerance=cez_tolerance
    )

    def of(label: Label) -> list[float]:
        return [float(t) for t, name in zip(temperatures, labels, strict=True) if name == label]

    robust, exploring = of("rgz"), of("cez")
    border = robust[-1]
    last_before_collapse = exploring[-1] if exploring else border
    return Zones(
        labels=labels,
        rgz=(robust[0], border),
        cez=(border, last_before_collapse) if exploring else None,
        pcz_from=last_before_collapse if "pcz" in labels else None,
        initial_temperature=border,
        at_edge=border == float(temperatures[-1]),
    )


def tolerances(
    section: ProbeSection,
    accuracies: Sequence[float] | np.ndarray,
    *,
    measured_only: bool = False,
) -> dict[str, float]:
    """A config's `rgz_tolerance` and `cez_tolerance` of `find_zones` for this curve.

    `probe.rgz_tolerance` and `probe.cez_tolerance` are points of accuracy, which runs of earlier
    versions recorded; where they are not 0 they count, and else `probe.rgz_share`, `cez_share`.

    Args:
        section: `config.probe`.
        accuracies: accuracy of each temperature, ascending.
        measured_only: see `zone_labels`.
    """
    measured = np.asarray(accuracies, np.float64)
    best = float((measured if measured_only else _smoothed(measured)).max())

    def share(points: float, usual: float) -> float:
        return points / best if points and best > 0 else usual

    rgz = share(section.rgz_tolerance, section.rgz_share)
    cez = share(section.cez_tolerance, section.cez_share)
    return {"rgz_tolerance": rgz, "cez_tolerance": max(rgz, cez)}


def is_above_zero(
    accuracies: Sequence[float] | np.ndarray, stderrs: Sequence[float] | np.ndarray
) -> bool:
    """True if the plateau lies more than two standard errors above 0: a sweep that measured one."""
    best, error = plateau(accuracies, stderrs)
    return best > 2 * error


def plateau(
    accuracies: Sequence[float] | np.ndarray, stderrs: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """The plateau of an accuracy curve, which is its highest smoothed accuracy, and its error.

    Args:
        accuracies: accuracy of each temperature, in ascending order of temperature.
        stderrs: standard error of each accuracy.

    Returns:
        (accuracy, standard error of this mean of up to 3 points)
    """
    smoothed = _smoothed(np.asarray(accuracies, np.float64))
    # A mean of k points: the square of its error is their mean squared error divided by k.
    k = np.full(len(smoothed), 1.0 if len(smoothed) < MIN_TEMPERATURES else 3.0)
    if len(smoothed) >= MIN_TEMPERATURES:
        k[[0, -1]] = 2.0
    errors = np.sqrt(_smoothed(np.square(np.asarray(stderrs, np.float64))) / k)
    best = float(smoothed.max())
    return best, float(errors[smoothed >= best - ROUNDING].max())


def zone_labels(
    accuracies: np.ndarray,
    stderrs: np.ndarray,
    *,
    rgz_tolerance: float = RGZ_TOLERANCE,
    cez_tolerance: float = CEZ_TOLERANCE,
    measured_only: bool = False,
) -> tuple[Label, ...]:
    """The zone of each point of an accuracy curve; the rules are those of `find_zones`.

    Args:
        accuracies: accuracy of each point, in ascending order of temperature; at least one point.
        stderrs: standard error of each accuracy.
        rgz_tolerance: tolerance of the Robust Generation Zone; see `find_zones`.
        cez_tolerance: tolerance of the Controlled Exploration Zone; see `find_zones`.
        measured_only: True: nothing is smoothed, neither a point nor the plateau. For a sweep of
            few points, in which a good neighbour would hide a collapse, and a bad one would lower
            what the others are held against.
    """
    smoothed = accuracies if measured_only else _smoothed(accuracies)
    best = smoothed.max()
    # At an end the mean of 2 halves a drop of accuracy. If the collapse begins at the sweep's last
    # temperature, the mean would hide the collapse, so only the measured accuracy counts there.
    either = np.maximum(accuracies, smoothed)
    either[[0, -1]] = accuracies[[0, -1]]

    def inside(tolerance: float) -> np.ndarray:
        widened = np.maximum(tolerance * best, stderrs)
        return np.flatnonzero(either >= best - widened - ROUNDING)

    first, last_robust = inside(rgz_tolerance)[[0, -1]]
    last_exploring = max(inside(cez_tolerance)[-1], last_robust)
    labels: list[Label] = []
    for i in range(len(accuracies)):
        if i < first:
            labels.append("cold")
        elif i <= last_robust:
            labels.append("rgz")
        else:
            labels.append("cez" if i <= last_exploring else "pcz")
    return tuple(labels)


def _smoothed(accuracies: np.ndarray) -> np.ndarray:
    """Centred mean of 3 points, of 2 at the ends; a curve of fewer than 3 points is unchanged."""
    if len(accuracies) < MIN_TEMPERATURES:
        return accuracies.copy()
    total, counts = accuracies.copy(), np.full(len(accuracies), 3.0)
    total[1:] += accuracies[:-1]
    total[:-1] += accuracies[1:]
    counts[[0, -1]] = 2.0
    return total / counts


def _check(
    temperatures: np.ndarray,
    accuracies: np.ndarray,
    errors: np.ndarray,
    rgz_tolerance: float,
    cez_tolerance: float,
) -> None:
    if temperatures.ndim != 1 or len(temperatures) < MIN_TEMPERATURES:
        raise ValueError(
            f"temperatures={temperatures.tolist()}: zones need at least {MIN_TEMPERATURES} "
            "temperatures; widen the sweep (probe.start, probe.stop) or lower probe.step"
        )
    for name, values in (("accuracies", accuracies), ("stderrs", errors)):
        if values.shape != temperatures.shape:
            raise ValueError(
                f"{name} has {values.size} values for {len(temperatures)} temperatures: "
                "give one each"
            )
    for name, values in (
        ("temperatures", temperatures),
        ("accuracies", accuracies),
        ("stderrs", errors),
    ):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}={values.tolist()}: every value must be finite")
    if (np.diff(temperatures) <= 0).any():
        raise ValueError(
            f"temperatures={temperatures.tolist()}: must ascend, each value once; sort the sweep "
            "and merge repeated temperatures"
        )
    if (errors < 0).any():
        raise ValueError(f"stderrs={errors.tolist()}: must not be negative")
    if not 0 <= rgz_tolerance <= cez_tolerance:
        raise ValueError(
            f"rgz_tolerance={rgz_tolerance}, cez_tolerance={cez_tolerance}: need "
            "0 <= rgz_tolerance <= cez_tolerance"
        )
    if not (accuracies > 0).any():
        raise ValueError(
            "accuracies are 0 at every temperature: there is no plateau to find; probe easier "
            "problems or a larger response budget"
        )
