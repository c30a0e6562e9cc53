"""The temperatures of a probe, and why it suggests one of them."""

import numpy as np
import pytest

from polaris_jax.config import ConfigError, ProbeSection, build_config
from polaris_jax.explore import find_zones
from polaris_jax.explore.sweep import (
    MIN_GAP,
    refined_temperature,
    sweep_temperatures,
    why_initial,
)
from tests.explore.test_zones import GRID, blog_curve


def test_a_grid_or_a_list():
    grid = ProbeSection(start=0.4, stop=1.0, step=0.3)
    assert sweep_temperatures(grid) == [0.4, 0.7, 1.0]
    assert sweep_temperatures(ProbeSection(temperatures=(0.6, 1.0, 1.05))) == [0.6, 1.0, 1.05]


@pytest.mark.parametrize(
    ("temperatures", "words"),
    [
        ((0.6, 1.0), "zones need 3 to 1000"),
        ((0.6, 1.0, 0.8), "must ascend"),
        ((0.6, 0.6, 0.8), "must ascend"),
        ((0.0, 0.6, 0.8), "each must be above 0"),
    ],
)
def test_a_list_that_is_no_sweep_is_refused(temperatures, words):
    with pytest.raises(ConfigError, match=rf"probe.temperatures=.*{words}"):
        build_config({"probe": {"temperatures": temperatures}})


def refined(curve, grid, most):
    """The sweep after at most `most` refinements, measured without noise."""
    temperatures = list(grid)
    for _ in range(most):
        zones = find_zones(temperatures, np.interp(temperatures, GRID, curve))
        more = refined_temperature(temperatures, zones)
        if more is None:
            break
        temperatures = sorted([*temperatures, more])
    return temperatures, find_zones(temperatures, np.interp(temperatures, GRID, curve))


@pytest.mark.parametrize("flat_to", [1.3, 1.35, 1.4, 1.45])
def test_refinement_narrows_the_border_down_and_ends(flat_to):
    curve = blog_curve(flat_to=flat_to, slight_to=1.6)
    grid = sweep_temperatures(ProbeSection())
    truth = find_zones(GRID, curve).initial_temperature
    coarse, fine = (refined(curve, grid, most)[1] for most in (0, ProbeSection().refine))
    assert abs(fine.initial_temperature - truth) <= abs(coarse.initial_temperature - truth)
    assert abs(fine.initial_temperature - truth) <= 0.075 + 1e-9
    temperatures, zones = refined(curve, grid, 50)
    assert len(temperatures) <= len(grid) + 4
    assert min(np.diff(temperatures)) >= MIN_GAP
    assert refined_temperature(temperatures, zones) is None


def test_a_sweep_that_ends_in_the_robust_zone_has_no_border_to_refine():
    zones = find_zones([0.5, 1.0, 1.5], [0.4, 0.4, 0.4])
    assert refined_temperature([0.5, 1.0, 1.5], zones) is None


@pytest.mark.parametrize(
    ("accuracies", "stderrs", "words"),
    [
        pytest.param(
            [0.5, 0.7, 0.7, 0.69, 0.5],
            0.001,
            ["1.1 is the hottest", "69.0% +- 0.1%", "0.03 of it, ", "at 1.4 it is 50.0%"],
            id="share",
        ),
        pytest.param([0.5, 0.7, 0.7, 0.69, 0.5], 0.05, ["a standard error, 5.0"], id="noise"),
        pytest.param([0.5, 0.7, 0.7, 0.7, 0.7], 0.001, ["1.4 is", "the sweep ends"], id="edge"),
    ],
)
def test_the_reason_has_the_numbers(accuracies, stderrs, words):
    temperatures, errors = [0.2, 0.5, 0.8, 1.1, 1.4], [stderrs] * 5
    zones = find_zones(temperatures, accuracies, stderrs=errors)
    text = why_initial(
        temperatures,
        accuracies,
        stderrs=errors,
        diversities=[0.1, 0.2, 0.3, 0.4, 0.5],
        zones=zones,
        rgz_tolerance=0.03,
    )
    assert all(word in text for word in words), text
    assert "diversity goes from 0.200 to 0." in text
