"""A run takes the share of a GPU's memory that plans count on."""

import os

import pytest

from polaris_jax.commands.run import GPU_SHARE, GPU_SHARE_NAMES, take_gpu_memory
from polaris_jax.plan.fit import BUDGET


def test_it_is_what_a_plan_counts_on():
    assert GPU_SHARE == BUDGET


@pytest.mark.parametrize("given", ["", *GPU_SHARE_NAMES])
def test_a_variable_of_jax_counts_instead(given, monkeypatch):
    for name in GPU_SHARE_NAMES:
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(given, "0.5")
    take_gpu_memory()
    found = {name: os.environ.get(name) for name in GPU_SHARE_NAMES}
    monkeypatch.delenv(GPU_SHARE_NAMES[0], raising=False)
    wanted = {given: "0.5"} if given else {GPU_SHARE_NAMES[0]: str(GPU_SHARE)}
    assert {name: value for name, value in found.items() if value} == wanted
