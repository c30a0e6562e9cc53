"""Which settings a search compiles, and what it makes of them; compiles are made up."""

import dataclasses
import types

import pytest

from polaris_jax.config import MeshSection
from polaris_jax.models.presets import preset
from polaris_jax.plan.fit import Fit, Phase
from polaris_jax.plan.job import Setting, search_settings
from polaris_jax.plan.search import nearest, search

DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Made:
    """Stands for an assessment."""

    setting: Setting
    fits: bool
    seconds: float

    @property
    def estimate(self):
        return types.SimpleNamespace(step_s=self.seconds)

    @property
    def fit(self):
        return Fit(1, (Phase("update", (("all", self.setting.rows),)),), 1, 1, ())


class MadeUpPlanner:
    """Fits where a device has at most 2 rows; the more context, the slower."""

    def __init__(self, most_rows=2):
        self.job = types.SimpleNamespace(model=preset("qwen3-4b"))
        self.devices = range(DEVICES)
        self.most_rows, self.compiled = most_rows, []

    def may_fit(self, setting):
        return setting.sampler_tensor > 1

    def update_fits(self, setting):
        return setting.rows / setting.row_shards <= self.most_rows

    def assess(self, setting):
        self.compiled.append(setting)
        rows = setting.rows / setting.row_shards
        return Made(setting, rows <= self.most_rows, setting.mesh.context + setting.mesh.tensor)


def test_best_first_and_nothing_compiled_that_cannot_fit():
    planner = MadeUpPlanner()
    found = search(planner, local_devices=4)
    assert found
    assert [m.seconds for m in found] == sorted(m.seconds for m in found)
    assert found[0].setting.mesh == MeshSection(1, DEVICES, 1, 1)
    assert all(setting.sampler_tensor > 1 for setting in planner.compiled)


def test_more_rows_are_not_tried_where_fewer_do_not_fit():
    planner = MadeUpPlanner(most_rows=0)
    assert search(planner, local_devices=4) == []
    assert {s.rows / s.row_shards for s in planner.compiled} == {1}


BASE = Setting(MeshSection(1, 8, 1, 1), 32, 2)


def test_a_leanest_setting_that_cannot_be_rules_out_nothing():
    class OfShortRows(MadeUpPlanner):
        """Rows do not divide into the chunks that much context needs."""

        def update_fits(self, setting):
            return super().update_fits(setting) if setting.mesh.context < 4 else None

    planner = OfShortRows(2)
    settings = search_settings(planner.job.model, devices=DEVICES, local_devices=4)
    found = nearest(BASE, settings, planner=planner)
    assert found is not None
    assert found.setting == Setting(MeshSection(1, 8, 1, 1), 16, 2)


@pytest.mark.parametrize(
    ("most_rows", "expected"),
    [
        pytest.param(2, Setting(MeshSection(1, 8, 1, 1), 16, 2), id="fewer rows"),
        pytest.param(0, None, id="none"),
    ],
)
def test_the_nearest_setting_that_fits(most_rows, expected):
    planner = MadeUpPlanner(most_rows)
    settings = search_settings(planner.job.model, devices=DEVICES, local_devices=4)
    found = nearest(BASE, settings, planner=planner)
    assert (found.setting if found else None) == expected
    assert all(planner.update_fits(setting) for setting in planner.compiled)
